"""What the classifier and the regressor share: `fit`, the network behind its attributes, and its outputs."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import chains, checks, layers
from ..checks import Array
from ..model import Sequential
from .arguments import ACTIVATIONS, CHECKS, NORMALIZATIONS, check
from .epochs import Epochs
from .lbfgs import fit_lbfgs
from .rows import check_held, outputs, passes

# The arguments that a network is built by, besides its weights.
SHAPING = "activation", "normalization", "residual", "dropout", "output_activation", "dtype", "device", "precision"
OF_A_NETWORK = "model_", "_coefs", "_intercepts", "_shown", "_optimizer", "_steps"
OF_A_PROCESS = "_coefs", "_intercepts", "_shown", "_steps", "_checked_arguments"  # views, workspaces: not pickled


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
    output_activation: str | None = None
    _rules = CHECKS

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
        check(self, self._rules)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must come together, got one of them")
        if incremental and self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True; it makes one epoch a call: set it to False"
            )
        before = vars(self).copy()
        try:
            train = self._prepared(X, y, sample_weight, X_val, y_val, incremental)
        except Exception:  # refused: the estimator is as it was
            vars(self).clear()
            vars(self).update(before)
            raise
        train()
        network = self.model_.network
        if not network.on_host:
            self._show()
        if not network.all_finite():
            for name in OF_A_NETWORK:
                vars(self).pop(name, None)
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        return self

    def _prepared(self, X, y, sample_weight, X_val, y_val, incremental):
        """What trains, from checked data, and a network to train with them."""
        begin = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._checked_pair(X, y, reset=begin, incremental=incremental)
        weight = None if sample_weight is None else checks.weights("sample_weight", sample_weight, X.shape[0])
        validation = None if X_val is None else self._checked_pair(X_val, y_val, reset=False, incremental=True)
        draws = begin or self.early_stopping or (self.shuffle and X.shape[0] > 1)
        random = check_random_state(self.random_state) if draws else None  # making one takes longer than a small step
        if begin:
            self._begin(X, y, random)
        dtype = self._network().dtype
        check_held(X, dtype)
        checks.finite("y", y, dtype)
        if self.solver == "lbfgs":
            return partial(fit_lbfgs, self, X, self._checked_target(y), self._weight(y, weight))
        return Epochs(self, X, y, weight, validation, random, incremental).run

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
        self._forget_training()

    def _forget_training(self):
        """The next `partial_fit` begins with a new optimizer."""
        vars(self).pop("_optimizer", None)
        vars(self).pop("_steps", None)

    # ------------------------------------------------------------------------------------- network
    def _settings(self):
        state = vars(self)
        return [state[name] for name in SHAPING if name in state]

    def _build(self, coefs, intercepts, dtype):
        """A network of these weights and biases."""
        *hidden, last = (layers.Linear(*np.shape(weight)) for weight in coefs)
        for linear, weight, bias in zip((*hidden, last), coefs, intercepts, strict=True):
            linear.weight, linear.bias = weight, bias
        chain = []
        for linear in hidden:
            block = [linear]
            if self.normalization:
                block.append(NORMALIZATIONS[self.normalization](linear.out_features))
            block.append(ACTIVATIONS[self.activation]())
            if self.dropout:
                block.append(layers.Dropout(self.dropout))
            around = self.residual and linear.in_features == linear.out_features
            chain += [layers.Residual(*block)] if around else block
        chain.append(last)
        if self.output_activation is not None:
            chain.append(ACTIVATIONS[self.output_activation]())
        self.model_ = Sequential(*chain, dtype=self.dtype or dtype, device=self.device, precision=self.precision)
        self._built = self._settings()
        self._show()

    def _layers(self, kind):
        return [layer for layer in chains.flattened(self.model_.layers) if isinstance(layer, kind)]

    def _show(self):
        """Let ``coefs_`` and ``intercepts_`` be those of the network."""
        linear = self._layers(layers.Linear)
        self._coefs, self._intercepts = [layer.weight for layer in linear], [layer.bias for layer in linear]
        self._shown = (*self._coefs, *self._intercepts)

    def _rebuild(self):
        """A network of ``coefs_`` and ``intercepts_`` as the arguments now say; what normalises stays, if it fits."""
        before = self._layers(layers.Normalization) if hasattr(self, "model_") else []
        dtype = self.model_.dtype if hasattr(self, "model_") else np.result_type(np.float32, *self._coefs)
        self._build([np.array(array) for array in self._coefs], [np.array(a) for a in self._intercepts], dtype)
        after = self._layers(layers.Normalization)
        if list(map(repr, before)) == list(map(repr, after)):
            for old, new in zip(before, after, strict=True):
                for name in new.shapes:
                    setattr(new, name, np.array(getattr(old, name)))
        self._forget_training()

    def _network(self):
        """The network with what ``coefs_``, ``intercepts_`` and the arguments are now."""
        present, shown = (*self._coefs, *self._intercepts), vars(self).get("_shown", ())
        same = len(present) == len(shown) and self._built == self._settings()
        if same and all(map(operator.is_, present, shown)):
            return self.model_
        if same and list(map(np.shape, present)) == list(map(np.shape, shown)):
            for layer, weight, bias in zip(self._layers(layers.Linear), self._coefs, self._intercepts, strict=True):
                layer.weight, layer.bias = weight, bias
            self._show()
        else:
            self._rebuild()
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
        return {name: value for name, value in super().__getstate__().items() if name not in OF_A_PROCESS}

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

    def _checked_target(self, y):
        """What the loss reads: labels, or a matrix of as many columns as the network has outputs."""
        target, outputs = self._target(y), self.model_.out_features
        if target.ndim == 2 and target.shape[1] != outputs:
            raise ValueError(
                f"y must have {outputs} output{'s' * (outputs != 1)} a row, as the network has that trains on, got "
                f"{target.shape[1]}; for another network call fit with warm_start=False"
            )
        return target

    def _weight(self, y, weight):
        """Sample weights with the weights of classes."""
        return weight
