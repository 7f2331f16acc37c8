"""`MLPClassifier` and `MLPRegressor` for scikit-learn: its names and conventions in front of `Sequential.fit`.

The arguments, their defaults and the fitted attributes are those of ``sklearn.neural_network``, and so are the first
weights, the stopping rule and, without shuffling and penalty, the steps. The notes of the classes say what differs.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import checks, layers, losses, optimizers
from .checks import Array
from .model import Sequential

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise ImportError('fastbp.sklearn needs the package scikit-learn: pip install "fastbp[sklearn]"') from None

__all__ = ["MLPClassifier", "MLPRegressor"]

ACTIVATIONS = {
    "identity": layers.Identity,
    "logistic": layers.Sigmoid,
    "tanh": layers.Tanh,
    "relu": layers.ReLU,
    "leaky_relu": layers.LeakyReLU,
    "elu": layers.ELU,
    "selu": layers.SELU,
    "gelu": layers.GELU,
    "silu": layers.SiLU,
    "softplus": layers.Softplus,
}
LOSSES = {  # by the function that turns outputs into predictions
    "identity": losses.HalfSquaredErrorLoss,
    "logistic": losses.BCEWithLogitsLoss,
    "softmax": losses.CrossEntropyLoss,
}
AUTO_BATCH = 200  # rows of a batch where batch_size="auto"


def _auto_or_integer(argument, value):
    if value != "auto":
        checks.integer(argument, value, minimum=1)


def _integer_or_infinite(argument, value):
    if value != math.inf:
        checks.integer(argument, value, minimum=1)


_count = partial(checks.integer, minimum=1)
_below_1 = partial(checks.real, below=1.0)
CHECKS = {
    "activation": partial(checks.choice, allowed=ACTIVATIONS),
    "solver": partial(checks.choice, allowed=("adam", "sgd")),
    "alpha": checks.real,
    "batch_size": _auto_or_integer,
    "learning_rate_init": checks.positive,
    "max_iter": _count,
    "shuffle": checks.boolean,
    "tol": checks.real,
    "warm_start": checks.boolean,
    "momentum": _below_1,
    "nesterovs_momentum": checks.boolean,
    "early_stopping": checks.boolean,
    "validation_fraction": _below_1,
    "beta_1": _below_1,
    "beta_2": _below_1,
    "epsilon": checks.positive,
    "n_iter_no_change": _integer_or_infinite,
    "dropout": _below_1,
    "dtype": checks.dtype,
}


class _Watch:
    """A callback that scores every epoch where there is something to score, and ends training as scikit-learn does.

    Training ends when for more than ``patience`` epochs the watched value, the score or the negative loss, was not
    better than its best by ``tol``. Where the score is watched, the weights of its best epoch are restored.
    """

    def __init__(self, tol, patience, score, by_score):
        self.tol, self.patience, self.score, self.by_score = tol, patience, score, by_score
        self.scores, self.best, self.stale, self.converged, self.weights = [], -math.inf, 0, False, None

    def on_epoch_end(self, model, record):
        if self.score is not None:
            self.scores.append(self.score())
        value = self.scores[-1] if self.by_score else -record["loss"]
        self.stale = self.stale + 1 if value < self.best + self.tol else 0
        if value > self.best:
            self.best = value
            self.weights = model.flat_parameters if self.by_score else None
        self.converged = self.stale > self.patience
        return self.converged

    def on_fit_end(self, model, history):
        if self.weights is not None:
            model.flat_parameters = self.weights


def _store(estimator, arguments):
    """Keep the arguments of ``__init__`` unchanged, as scikit-learn requires."""
    vars(estimator).update({name: value for name, value in arguments.items() if name != "self"})


class _Perceptron(BaseEstimator):
    """Base class of the classifier and the regressor."""

    model_: Sequential
    loss_: float
    loss_curve_: list[float]
    best_loss_: float | None
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    n_iter_: int
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
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> Self:
        """Train for ``max_iter`` epochs or until converged.

        Parameters
        ----------
        X : array (n, features)
        y : array (n,), for a regressor also (n, outputs)
        sample_weight : array (n,), optional
            Not negative; rows of weight 0 are left out.
        X_val, y_val : arrays, optional
            Validation data, instead of the part ``validation_fraction`` of the rows. Every epoch is scored on them;
            without ``early_stopping`` the scores have no other use.

        Returns
        -------
        self
        """
        begin = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._train(X, y, sample_weight, X_val, y_val, begin=begin)

    def _train(self, X, y, sample_weight, X_val=None, y_val=None, *, begin, incremental=False):
        for name, check in CHECKS.items():
            check(name, getattr(self, name))
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must come together, got one of them")
        if incremental and self.early_stopping:
            raise ValueError("partial_fit makes one epoch a call: it needs early_stopping=False")
        X, y = self._checked_pair(X, y, reset=begin, define=begin and not incremental)
        weight = None if sample_weight is None else checks.weights("sample_weight", sample_weight, len(X))
        random = check_random_state(self.random_state)
        model = self._new_model(y, random) if begin else self.model_
        weight_val = None
        if X_val is not None:
            X_val, y_val = self._checked_pair(X_val, y_val, reset=False)
        elif self.early_stopping:
            rows, rows_val = self._split(y, random)
            X, X_val, y, y_val = X[rows], X[rows_val], y[rows], y[rows_val]
            if weight is not None:
                weight, weight_val = weight[rows], weight[rows_val]
        if begin:  # after the weights and the split, for which scikit-learn draws the same
            model.generator = np.random.default_rng(random.randint(2**31 - 1))
        if self.class_weight is not None:
            weight = compute_sample_weight(self.class_weight, y) * (1 if weight is None else weight)
            weight = checks.weights("sample_weight times class_weight", weight, len(X))
        batch_size, batch_weight = self._batch(len(X), weight)
        if begin or not incremental:
            model.optimizer = self._new_optimizer()
        model.optimizer.weight_decay = self.alpha / batch_weight

        self.model_ = model
        if begin:
            self.loss_curve_, self.validation_scores_ = [], None
        score = None if X_val is None else partial(self._score, X_val, y_val, weight_val)
        watch = _Watch(self.tol, self.n_iter_no_change, score, self.early_stopping)
        history = model.fit(
            X,
            self._target(y),
            loss=LOSSES[self.out_activation_](),
            optimizer=model.optimizer,
            epochs=1 if incremental else self.max_iter,
            batch_size=batch_size,
            shuffle=self.shuffle,
            validation_data=None if X_val is None else (X_val, self._target(y_val)),
            sample_weight=weight,
            callbacks=[watch, *(self.callbacks or ())],
            verbose=bool(self.verbose),
        )
        self._keep_results(history, watch)
        if len(history) == self.max_iter and not watch.converged and not incremental:
            warnings.warn(
                f"training reached max_iter={self.max_iter} epochs and has not converged: the "
                f"{'validation score' if self.early_stopping else 'loss'} still gets better by more than "
                f"tol={self.tol}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _keep_results(self, history, watch):
        self.loss_curve_ = self.loss_curve_ + history.column("loss")
        self.n_iter_, self.loss_ = len(history), self.loss_curve_[-1]
        if watch.score is not None:
            self.validation_scores_ = (self.validation_scores_ or []) + watch.scores
        self.best_loss_ = None if self.early_stopping else min(self.loss_curve_)
        self.best_validation_score_ = None if self.validation_scores_ is None else max(self.validation_scores_)

    def _batch(self, rows, weight):
        """The rows of a batch, and the mean sum of their weights."""
        trained_rows = rows if weight is None else np.count_nonzero(weight)
        batch_size = min(AUTO_BATCH if self.batch_size == "auto" else self.batch_size, trained_rows)
        return batch_size, batch_size if weight is None else batch_size * weight.sum() / trained_rows

    def _split(self, y, random):
        """Rows to train on and to validate on."""
        rows, rows_val = train_test_split(
            np.arange(len(y)), test_size=self.validation_fraction, random_state=random, stratify=self._strata(y)
        )
        if len(rows_val) < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(y)} rows leaves {len(rows_val)} to validate "
                f"on, and 2 are needed; use a larger one, or more rows"
            )
        return rows, rows_val

    def _new_model(self, y, random):
        """An untrained network, with the first weights and biases that scikit-learn draws (Glorot & Bengio, 2010)."""
        hidden = self.hidden_layer_sizes
        hidden = [hidden] if isinstance(hidden, numbers.Integral) else list(hidden)
        hidden = [checks.integer(f"hidden_layer_sizes[{i}]", size, minimum=1) for i, size in enumerate(hidden)]
        self.n_outputs_, self.out_activation_ = self._output(y)
        chain = []
        for fan_in, fan_out in pairwise([self.n_features_in_, *hidden, self.n_outputs_]):
            bound = math.sqrt((2 if self.activation == "logistic" else 6) / (fan_in + fan_out))
            linear = layers.Linear(fan_in, fan_out)
            linear.weight = random.uniform(-bound, bound, (fan_in, fan_out))
            linear.bias = random.uniform(-bound, bound, fan_out)
            chain += [linear, ACTIVATIONS[self.activation]()]
            if self.dropout:
                chain.append(layers.Dropout(self.dropout))
        chain = chain[: chain.index(linear) + 1]  # no activation of the last one
        return Sequential(*chain, dtype=self.dtype, device=self.device, precision=self.precision)

    def _new_optimizer(self):
        if self.solver == "adam":
            return optimizers.Adam(lr=self.learning_rate_init, betas=(self.beta_1, self.beta_2), eps=self.epsilon)
        nesterov = bool(self.nesterovs_momentum and self.momentum)
        return optimizers.SGD(lr=self.learning_rate_init, momentum=self.momentum, nesterov=nesterov)

    # --------------------------------------------------------------------------------- fitted state
    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    @property
    def coefs_(self) -> list[Array]:
        """Weights of the linear layers, each (in, out): views, which write to the network."""
        return [layer.weight for layer in self.model_.layers if isinstance(layer, layers.Linear)]

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of the linear layers, each (out,)."""
        return [layer.bias for layer in self.model_.layers if isinstance(layer, layers.Linear)]

    @property
    def n_layers_(self) -> int:
        """Number of layers as scikit-learn counts them, the input included."""
        return len(self.coefs_) + 1

    def _checked_input(self, X):
        """X to predict for."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False)


class MLPClassifier(ClassifierMixin, _Perceptron):
    """A multilayer perceptron that classifies, trained on the logistic or cross-entropy loss.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layers.
    activation : str
        Of the hidden layers: ``"identity"``, ``"logistic"``, ``"tanh"``, ``"relu"``, and besides those of scikit-learn
        ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"gelu"``, ``"silu"``, ``"softplus"``.
    solver : "adam" or "sgd"
    alpha : float
        Strength of the L2 penalty ``alpha ‖W‖² / 2``, divided by the rows of a batch.
    batch_size : int or "auto"
        ``"auto"`` means ``min(200, n)``; a number above n means n.
    learning_rate_init : float
        The learning rate, which is constant.
    max_iter : int
        Most epochs.
    shuffle : bool
        A new order every epoch.
    random_state : int, RandomState or None
        Draws the first weights, the validation rows, the order and the dropout.
    tol : float
        Smallest improvement of the loss, or of the validation score, that counts.
    verbose : bool
        Print a line an epoch.
    warm_start : bool
        `fit` continues with the network of the last one, whatever ``hidden_layer_sizes`` says now.
    momentum : float
        Of ``"sgd"``, in [0, 1).
    nesterovs_momentum : bool
    early_stopping : bool
        Stop by the score on validation data instead of the training loss, and restore the best weights.
    validation_fraction : float
        Part of the rows, stratified by class (in scikit-learn only where there are two), that ``early_stopping`` holds
        out when `fit` is given no ``X_val``.
    beta_1, beta_2, epsilon : float
        Of ``"adam"``.
    n_iter_no_change : int or inf
        Training ends after more epochs than this without improvement.
    dropout : float
        Probability of dropping a hidden unit.
    class_weight : dict, "balanced" or None
        Weights of the classes; sample weights are multiplied by them.
    dtype : "float32" or "float64"
        Of the network and of all computation.
    device, precision : str
        As in `Sequential`.
    callbacks : list or None
        As in `Sequential.fit`.

    Attributes
    ----------
    model_ : Sequential
        The network; ``model_.history`` has the epochs of the last `fit`, ``model_.save(path)`` writes it.
    classes_ : array (classes,)
    coefs_, intercepts_ : lists of arrays
        Weights (in, out) and biases (out,), views into ``model_``.
    n_layers_, n_outputs_, n_features_in_ : int
        With two classes there is one output.
    feature_names_in_ : array of str
        Where X had names.
    out_activation_ : str
        ``"logistic"`` for two classes, else ``"softmax"``.
    loss_curve_ : list
        The loss of every epoch; ``loss_`` is the last.
    best_loss_ : float or None
        The lowest; None with ``early_stopping``.
    validation_scores_ : list or None
        Accuracy, of a regressor R², after every epoch, where there are validation data; the highest is
        ``best_validation_score_``.
    n_iter_ : int
        Epochs of the last `fit`.

    Notes
    -----
    What differs from ``sklearn.neural_network``: ``alpha`` becomes the ``weight_decay`` ``alpha / batch_size`` of the
    optimizer (with weights, alpha by the mean sum of weights of a batch), so that biases are decayed as well and a last
    batch that is short is not decayed more; losses are given without the penalty, and those of a regressor, on which
    ``tol`` looks, are sums over outputs, not means. In ``"adam"`` epsilon is added to ``√v̂``, as PyTorch has it. The
    first argument of a regressor is ``hidden_layer_sizes``, there is no ``loss``. The computation is float32 by
    default, whatever dtype X has. A loss that is not finite is a FloatingPointError, and Ctrl-C raises
    KeyboardInterrupt. ``"lbfgs"``, ``learning_rate`` other than constant, sparse X and targets with several labels
    are not supported.
    """

    classes_: Array

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.001,
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
        dropout: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        _store(self, locals())

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, classes: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch, the first of all or one more.

        Parameters
        ----------
        X : array (n, features)
        y : array (n,)
        sample_weight : array (n,), optional
        classes : array, optional
            All classes there will be; needed by the first call.

        Returns
        -------
        self
        """
        begin = not self.__sklearn_is_fitted__()
        if isinstance(self.class_weight, str):
            raise ValueError('class_weight="balanced" needs all rows at once: pass partial_fit a dict of weights')
        if begin and classes is None:
            raise ValueError("the first call to partial_fit needs classes, all that there will be")
        if classes is not None:
            classes = np.unique(classes)
            if not begin and not np.array_equal(classes, self.classes_):
                raise ValueError(f"classes must be those of the first call, {self.classes_}; got {classes}")
            self._set_classes(classes)
        return self._train(X, y, sample_weight, begin=begin, incremental=True)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of every row, (n,)."""
        return self._predict(self._checked_input(X))

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of the classes, (n, classes), in the order of ``classes_``."""
        return self._predict_proba(self._checked_input(X))

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Logarithms of the probabilities, (n, classes)."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _predict(self, X):
        return self.classes_[self._predict_proba(X).argmax(axis=1)]

    def _predict_proba(self, X):
        probability = self.model_.predict_proba(X)
        return np.hstack([1 - probability, probability]) if self.n_outputs_ == 1 else probability

    def _score(self, X, y, weight):
        return accuracy_score(y, self._predict(X), sample_weight=weight)

    def _checked_pair(self, X, y, reset, define=False):
        """X and labels as arrays; ``define`` makes the labels the classes, else they must be among them."""
        X, y = validate_data(self, X, y, reset=reset)
        check_classification_targets(y)
        if define:
            self._set_classes(np.unique(y))
        unknown = np.setdiff1d(y, self.classes_)
        if unknown.size:
            raise ValueError(f"y must hold classes among {self.classes_}, got also {unknown}")
        return X, y

    def _set_classes(self, classes):
        if len(classes) < 2:
            raise ValueError(f"y must have at least 2 classes, got {len(classes)} class: {classes}")
        self.classes_ = classes

    def _target(self, y):
        return np.searchsorted(self.classes_, y)

    @staticmethod
    def _strata(y):
        return y

    def _output(self, y):
        """The number of outputs and what turns them into predictions."""
        return (1, "logistic") if len(self.classes_) == 2 else (len(self.classes_), "softmax")


class MLPRegressor(RegressorMixin, _Perceptron):
    """A multilayer perceptron that predicts numbers, trained on half the squared error.

    Parameters, attributes and what differs from ``sklearn.neural_network`` are those of `MLPClassifier`, without
    ``class_weight`` and ``classes_``. ``y`` may have several columns; the validation score is R².
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.001,
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
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        _store(self, locals())

    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one epoch, the first of all or one more.

        Parameters
        ----------
        X : array (n, features)
        y : array (n,) or (n, outputs)
        sample_weight : array (n,), optional

        Returns
        -------
        self
        """
        return self._train(X, y, sample_weight, begin=not self.__sklearn_is_fitted__(), incremental=True)

    def predict(self, X: ArrayLike) -> Array:
        """Predictions, (n,), or (n, outputs) for several outputs."""
        return self._predict(self._checked_input(X))

    def _predict(self, X):
        prediction = self.model_.predict(X)
        return prediction.ravel() if self.n_outputs_ == 1 else prediction

    def _score(self, X, y, weight):
        return r2_score(y, self._predict(X), sample_weight=weight)

    def _checked_pair(self, X, y, reset, define=False):
        """X and targets as arrays, one column of them as a vector."""
        X, y = validate_data(self, X, y, reset=reset, multi_output=True, y_numeric=True)
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    @staticmethod
    def _target(y):
        return y

    @staticmethod
    def _strata(y):
        return None

    @staticmethod
    def _output(y):
        return 1 if y.ndim == 1 else y.shape[1], "identity"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
