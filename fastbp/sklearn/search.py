"""`MLPSearchCV`: scikit-learn's search, whose candidates and folds train side by side on the threads of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from numbers import Integral
from typing import Any, ClassVar, Self

import joblib
import numpy as np
from joblib.parallel import ThreadingBackend
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, ParameterGrid, ParameterSampler

from .. import backend
from .arguments import store
from .epochs import Group, started


class SideBySide(ThreadingBackend):
    """Threads of joblib, each of which runs the kernels alone; what aborts one training stops the others."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.group, self.entered = Group(), []

    def _get_pool(self):
        if self._pool is None:
            self._pool = ThreadPool(self._n_jobs, self._begin)
        return self._pool

    def _begin(self):
        alone = backend.load("cpu").serial()
        alone.__enter__()  # for as long as there is the thread
        self.entered.append(alone)
        started.group = self.group

    def abort_everything(self, ensure_ready=True):
        self.group.stop()
        super().abort_everything(ensure_ready)


class MLPSearchCV(GridSearchCV):
    """Search for the arguments of an estimator by cross-validation: a grid, or a sample of it.

    scikit-learn's `GridSearchCV` and `RandomizedSearchCV` in one, with their attributes (``cv_results_``,
    ``best_params_``, ``best_score_``, ``best_estimator_``, …) and their numbers. The fits of all candidates and folds
    run side by side, each on one thread of this process; every one gives the bits of a fit alone.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or an estimator that has one inside, such as a pipeline
    param_grid : dict, or list of dicts
        Values to try, by argument; with ``n_iter`` also distributions, objects with ``rvs``.
    n_iter : int or None
        How many candidates are drawn; None tries all of the grid.
    scoring, refit, cv, verbose, error_score, return_train_score
        As in scikit-learn.
    n_jobs : int or None
        Fits at a time; None is `fastbp.get_num_threads`, and 1 where the estimator's device is ``"cuda"``.
    random_state : int, RandomState or None
        Draws the candidates, with ``n_iter``.

    Raises
    ------
    TypeError, ValueError
        As of scikit-learn's searches.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = GridSearchCV._parameter_constraints | {
        "n_iter": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: BaseEstimator,
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        n_iter: int | None = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: bool | str | Callable[..., int] = True,
        cv: Any = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
        error_score: float | str = math.nan,
        return_train_score: bool = False,
    ) -> None:
        store(self, locals())
        self.pre_dispatch = "2*n_jobs"

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, **params: Any) -> Self:
        """Fit every candidate on every fold, then the best one on all rows.

        Parameters
        ----------
        X : array or sparse matrix (n, features)
        y : array (n,) or (n, outputs)
        **params
            Of the estimator's `fit`, such as ``sample_weight``, which are split as X is; ``groups`` go to ``cv``.

        Returns
        -------
        self
        """
        arguments = self.estimator.get_params()
        on_gpu = any(name.split("__")[-1] == "device" and value == "cuda" for name, value in arguments.items())
        threads = 1 if on_gpu else backend.get_num_threads()
        with joblib.parallel_config(backend=SideBySide(), n_jobs=threads):
            return super().fit(X, y, **params)

    def _run_search(self, evaluate_candidates):
        if self.n_iter is None:
            evaluate_candidates(ParameterGrid(self.param_grid))
        else:
            evaluate_candidates(ParameterSampler(self.param_grid, self.n_iter, random_state=self.random_state))
