"""What the classifier and the regressor share: `fit`, the network behind its attributes, and its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import checks, layers
from ..checks import Array
from ..model import Sequential
from .arguments import ACTIVATIONS, CHECKS
from .epochs import fit_stochastic
from .lbfgs import fit_lbfgs
from .rows import outputs, passes


class Perceptron(BaseEstimator):
    """Base class of the classifier and the regressor."""

    model_: Sequential
    loss_: float
    loss_curve_: list[float]
    best_loss_: float | None
    validation_scores_: list[float] | None
    validation_loss_curve_: list[float] | None
    best_validation_score_: float | None
    n_iter_: int
    t_: int
    n_layers_: int
    n_outputs_: int
    n_features_in_: int
    out_activation_: str
    class_weight: dict[Any, float] | str | None = None

    # ------------------------------------------------------------------------------------ training
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> Self:
        """Train for ``max_iter`` epochs or until converged.

        Parameters
        ----------
        X : array or sparse matrix (n, features)
            Sparse rows are made dense a batch at a time.
        y : array (n,), for several labels or outputs (n, outputs)
        sample_weight : array (n,), optional
            Not negative.
        X_val, y_val : arrays, optional
            Validation data, instead of the part ``validation_fraction`` of the rows. Every epoch is scored on them;
            without ``early_stopping`` the scores have no other use.

        Returns
        -------
        self
        """
        return self._train(X, y, sample_weight, X_val, y_val)

    def _train(self, X, y, sample_weight, X_val=None, y_val=None, *, incremental=False):
        for name, check in CHECKS.items():
            check(name, getattr(self, name))
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must come together, got one of them")
        if incremental and self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True; it makes one epoch a call: set it to False"
            )
        before = vars(self).copy()
        try:
            X, y, weight, X_val, y_val, random = self._prepared(X, y, sample_weight, X_val, y_val, incremental)
            model = self._network()
        except Exception:  # refused: the estimator is as it was
            vars(self).clear()
            vars(self).update(before)
            raise
        if self.solver == "lbfgs":
            fit_lbfgs(self, X, y, self._weight(y, weight))
        else:
            fit_stochastic(self, X, y, weight, X_val, y_val, random, incremental)
        self._show()
        if not model.network.all_finite():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        return self

    def _prepared(self, X, y, sample_weight, X_val, y_val, incremental):
        """The checked data and the generator, and a network to train with them."""
        begin = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._checked_pair(X, y, reset=begin, incremental=incremental)
        weight = None if sample_weight is None else checks.weights("sample_weight", sample_weight, X.shape[0])
        if X_val is not None:
            X_val, y_val = self._checked_pair(X_val, y_val, reset=False, incremental=True)
        draws = begin or self.early_stopping or (self.shuffle and X.shape[0] > 1)
        random = check_random_state(self.random_state) if draws else None  # making one takes longer than a small step
        if begin:
            self._begin(X, y, random)
        return X, y, weight, X_val, y_val, random

    def _begin(self, X, y, random):
        """The first weights and biases (Glorot & Bengio, 2010), and nothing learned."""
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        hidden = [checks.integer(f"hidden_layer_sizes[{i}]", size, minimum=1) for i, size in enumerate(hidden)]
        outputs, self.out_activation_ = self._output(y)
        coefs, intercepts = [], []
        for fan_in, fan_out in pairwise([X.shape[1], *hidden, outputs]):
            bound = math.sqrt((2 if self.activation == "logistic" else 6) / (fan_in + fan_out))
            coefs.append(random.uniform(-bound, bound, (fan_in, fan_out)))
            intercepts.append(random.uniform(-bound, bound, fan_out))
        self._build(coefs, intercepts, np.float64 if self.solver == "lbfgs" else X.dtype)
        if self.dropout:
            self.model_.generator = np.random.default_rng(random.randint(2**31 - 1))
        self.n_outputs_, self.n_layers_, self.n_iter_, self.t_ = outputs, len(coefs) + 1, 0, 0
        self._no_improvement_count, self.loss_curve_ = 0, []
        self.best_loss_ = None if self.early_stopping else math.inf
        self.validation_scores_ = [] if self.early_stopping else None
        self.best_validation_score_ = -math.inf if self.early_stopping else None
        self.validation_loss_curve_ = None
        vars(self).pop("_optimizer", None)

    # ------------------------------------------------------------------------------------- network
    def _settings(self):
        return self.activation, self.dropout, self.device, self.precision, self.dtype and np.dtype(self.dtype)

    def _build(self, coefs, intercepts, dtype):
        """A network of these weights and biases."""
        chain = []
        for weight, bias in zip(coefs, intercepts, strict=True):
            linear = layers.Linear(*np.shape(weight))
            linear.weight, linear.bias = weight, bias
            chain += [linear, ACTIVATIONS[self.activation]()]
            if self.dropout:
                chain.append(layers.Dropout(self.dropout))
        chain = chain[: chain.index(linear) + 1]  # no activation of the last one
        self.model_ = Sequential(*chain, dtype=self.dtype or dtype, device=self.device, precision=self.precision)
        self._built = self._settings()
        self._show()

    def _show(self):
        """Let ``coefs_`` and ``intercepts_`` be those of the network."""
        linear = [layer for layer in self.model_.layers if isinstance(layer, layers.Linear)]
        self._coefs, self._intercepts = [layer.weight for layer in linear], [layer.bias for layer in linear]
        self._shown = (*self._coefs, *self._intercepts)

    def _network(self):
        """The network with what ``coefs_``, ``intercepts_`` and the arguments are now."""
        present = (*self._coefs, *self._intercepts)
        same = len(present) == len(vars(self).get("_shown", ()))
        if same and self._built == self._settings() and all(map(lambda a, b: a is b, present, self._shown)):
            return self.model_
        shapes = [np.shape(array) for array in present]
        if same and self._built == self._settings() and shapes == [np.shape(array) for array in self._shown]:
            linear = [layer for layer in self.model_.layers if isinstance(layer, layers.Linear)]
            for layer, weight, bias in zip(linear, self._coefs, self._intercepts, strict=True):
                layer.weight, layer.bias = weight, bias
            self._show()
        else:
            dtype = self.model_.dtype if hasattr(self, "model_") else np.result_type(np.float32, *self._coefs)
            self._build([np.array(array) for array in self._coefs], [np.array(a) for a in self._intercepts], dtype)
            vars(self).pop("_optimizer", None)
        return self.model_

    def _given(self, name):
        if name not in vars(self):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name[1:]}_'; it has after fit")
        return vars(self)[name]

    @property
    def coefs_(self) -> list[Array]:
        """Weights of the linear layers, each (in, out): views, which write to the network; others can be put in."""
        return self._given("_coefs")

    @coefs_.setter
    def coefs_(self, value: Sequence[ArrayLike]) -> None:
        self._coefs = list(value)

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of the linear layers, each (out,), likewise."""
        return self._given("_intercepts")

    @intercepts_.setter
    def intercepts_(self, value: Sequence[ArrayLike]) -> None:
        self._intercepts = list(value)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    def __getstate__(self) -> dict[str, Any]:
        if not hasattr(self, "model_"):
            return super().__getstate__()
        self._network()
        views = ("_coefs", "_intercepts", "_shown")  # of the network, which goes along
        return {name: value for name, value in super().__getstate__().items() if name not in views}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if hasattr(self, "model_"):
            self._show()

    # ----------------------------------------------------------------------------------- predictions
    def _checked_outputs(self, X):
        """What the network gives for X to predict for."""
        if not passes(self, X):
            check_is_fitted(self)
            X = validate_data(self, X, accept_sparse="csr", reset=False)
        return outputs(self._network(), X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _weight(self, y, weight):
        """Sample weights with the weights of classes."""
        return weight
