"""`MLPRegressor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from .. import losses
from ..checks import Array
from .arguments import LOSSES, REGRESSOR_CHECKS, store, trains_by_batches
from .base import Perceptron
from .rows import are_numbers, passes
from .steps import Objective


class MLPRegressor(RegressorMixin, Perceptron):
    """A multilayer perceptron that predicts numbers.

    Parameters, attributes and what differs from ``sklearn.neural_network`` are those of `MLPClassifier`, without
    ``class_weight`` and ``classes_``. ``y`` may have several columns; the validation score is R².

    Parameters
    ----------
    loss : str, or loss of fastbp
        ``"squared_error"``, half of it; ``"poisson"``, half the Poisson deviance, predicts ``exp`` of the outputs, for
        targets that are not negative; and besides those of scikit-learn ``"absolute_error"``, ``"huber"`` and
        ``"quantile"`` (the median), or ``fastbp.HuberLoss(delta=…)``, ``fastbp.QuantileLoss(q)``. The reported loss is
        the mean over outputs, of ``"poisson"`` the sum; what is followed is the gradient of the sum.
    output_activation : str or None
        Of the output layer, one of those of hidden layers: ``"softplus"`` for numbers above 0, ``"logistic"`` for
        shares.
    """

    _metric = staticmethod(r2_score)
    _rules = REGRESSOR_CHECKS

    def __init__(
        self,
        loss: str | losses.Loss = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str | Callable[[int], float] = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        output_activation: str | None = None,
        normalization: str | None = None,
        residual: bool = False,
        max_grad_norm: float | None = None,
        dtype: DTypeLike = None,
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        store(self, locals())

    @available_if(trains_by_batches)
    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one epoch, the first of all or one more.

        Parameters
        ----------
        X : array or sparse matrix (n, features)
        y : array (n,) or (n, outputs)
        sample_weight : array (n,), optional

        Returns
        -------
        self
        """
        return self._train(X, y, sample_weight, incremental=True)

    def predict(self, X: ArrayLike) -> Array:
        """Predictions, (n,), or (n, outputs) for several outputs."""
        return self._from_outputs(self._checked_outputs(X))

    def _from_outputs(self, outputs):
        if self.out_activation_ == "exp":
            with np.errstate(over="ignore"):
                outputs = np.exp(outputs)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def _checked_pair(self, X, y, reset, incremental):
        """X and targets as arrays, one column of them as a vector."""
        poisson = isinstance(self._kind(), losses.PoissonLoss)
        if poisson and self.output_activation is not None:
            raise ValueError(
                f'output_activation must be None for loss="poisson", which predicts exp of the outputs; '
                f"got {self.output_activation!r}"
            )
        if not (incremental and not reset and passes(self, X) and are_numbers(y, len(X))):
            X, y = validate_data(
                self, X, y, accept_sparse="csr", multi_output=True, y_numeric=True, dtype=(np.float64, np.float32),
                reset=reset,
            )  # fmt: skip
            y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if poisson and y.min() < 0:
            raise ValueError(f'y must not be negative for loss="poisson", got {y.min()}')
        return X, y

    def _kind(self):
        """The loss of the kernels."""
        return LOSSES[self.loss]() if isinstance(self.loss, str) else self.loss

    def _output(self, y):
        kind = "exp" if isinstance(self._kind(), losses.PoissonLoss) else self.output_activation or "identity"
        return 1 if y.ndim == 1 else y.shape[1], kind

    def _objective(self):
        loss, outputs = self._kind(), self.n_outputs_
        if isinstance(loss, losses.HalfSquaredErrorLoss):
            return Objective(loss, 1 / outputs, 1.0)
        return Objective(loss, outputs if isinstance(loss, losses.PoissonLoss) else 1.0, outputs)

    def _target(self, y):
        return y.reshape(len(y), -1).astype(self.model_.dtype)

    @staticmethod
    def _strata(y):
        return None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
