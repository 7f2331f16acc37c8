"""`MLPClassifier`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy import sparse, special
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from .. import checks, losses
from ..checks import Array
from .arguments import store, trains_by_batches
from .base import Perceptron
from .rows import passes
from .steps import Objective


class MLPClassifier(ClassifierMixin, Perceptron):
    """A multilayer perceptron that classifies, trained on the logistic or cross-entropy loss.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layers.
    activation : str
        Of the hidden layers: ``"identity"``, ``"logistic"``, ``"tanh"``, ``"relu"``, and besides those of scikit-learn
        ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"gelu"``, ``"silu"``, ``"softplus"``, ``"mish"``.
    solver : "adam", "sgd" or "lbfgs"
        ``"lbfgs"`` is SciPy's, on all rows at once.
    alpha : float
        Strength of the L2 penalty ``alpha ‖W‖² / 2`` of the weights, biases apart, which every batch divides by its
        rows, or by the sum of their weights. It is part of the loss.
    batch_size : int or "auto"
        ``"auto"`` means ``min(200, n)``; a number above n means n.
    learning_rate : "constant", "invscaling", "adaptive", or function
        Of ``"sgd"``: ``learning_rate_init``; that divided by ``(t_ + 1) ** power_t`` after every epoch; or divided by 5
        whenever training would end, until it is 1e-6. Of ``"sgd"`` and ``"adam"`` a schedule, such as
        ``fastbp.CosineSchedule(…)``: a function of the number of updates done, in place of ``learning_rate_init``.
    learning_rate_init, power_t : float
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
        Of ``"sgd"``, in [0, 1].
    nesterovs_momentum : bool
    early_stopping : bool
        Stop by the score on validation data instead of the training loss, and restore the best weights.
    validation_fraction : float
        Part of the rows that ``early_stopping`` holds out when `fit` is given no ``X_val``; stratified for two classes.
    beta_1, beta_2, epsilon : float
        Of ``"adam"``.
    n_iter_no_change : int or inf
        Training ends after more epochs than this without improvement.
    max_fun : int
        Most evaluations of the loss by ``"lbfgs"``.
    dropout : float
        Probability of dropping a hidden unit.
    normalization : "batch", "layer" or None
        `BatchNorm1d` or `LayerNorm` after every hidden layer, before its activation. ``"batch"`` refuses a batch of one
        row.
    residual : bool
        Hidden layers of equal width add their input to what they give, by `Residual`.
    max_grad_norm : float or None
        Largest Euclidean norm of the gradient, penalty and all; of ``"sgd"`` and ``"adam"``. Steps take several calls
        then.
    class_weight : dict, "balanced" or None
        Weights of the classes; sample weights are multiplied by them. ``"balanced"`` gives all classes the same sum of
        weights.
    dtype : "float32", "float64" or None
        Of the network and of all computation; None is that of X, float64 where X is neither, and for ``"lbfgs"``.
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
        Weights (in, out) and biases (out,): views into ``model_``. Other arrays, or lists, may be assigned.
    n_layers_, n_outputs_, n_features_in_ : int
        With two classes there is one output.
    feature_names_in_ : array of str
        Where X had names.
    out_activation_ : str
        ``"softmax"`` for three and more classes, else ``"logistic"``.
    loss_curve_ : list
        The loss of every epoch; ``loss_`` is the last.
    best_loss_ : float or None
        The lowest; None with ``early_stopping``.
    validation_scores_ : list or None
        Accuracy, of a regressor R², after every epoch, where there are validation data; with ``early_stopping`` the
        highest is ``best_validation_score_``.
    validation_loss_curve_ : list or None
        The loss on ``X_val`` after every epoch, without penalty, where `fit` was given it.
    n_iter_, t_ : int
        Epochs of the last `fit`; rows seen in all.

    Notes
    -----
    What differs from ``sklearn.neural_network``: the logarithm in the loss is not cut off where a probability is less
    than the precision of the dtype; after the first loss that is not finite, weights and losses are NaN; weights of
    rows must not be negative, and a batch whose weights are all 0 counts for nothing.
    """

    classes_: Array
    _metric = staticmethod(accuracy_score)

    def __init__(
        self,
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
        normalization: str | None = None,
        residual: bool = False,
        max_grad_norm: float | None = None,
        class_weight: dict[Any, float] | str | None = None,
        dtype: DTypeLike = None,
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        store(self, locals())

    @available_if(trains_by_batches)
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, classes: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch, the first of all or one more.

        Parameters
        ----------
        X : array or sparse matrix (n, features)
        y : array (n,) or (n, labels)
        sample_weight : array (n,), optional
        classes : array, optional
            All classes there will be; needed by the first call.

        Returns
        -------
        self
        """
        if isinstance(self.class_weight, str):
            raise ValueError('class_weight="balanced" needs all rows at once: pass partial_fit a dict of weights')
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit, all that there will be")
        if first:
            self._set_classes(y if type_of_target(y).startswith("multilabel") else unique_labels(classes))
        elif classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_}; got {classes}")
        try:
            return self._train(X, y, sample_weight, incremental=True)
        finally:
            if not hasattr(self, "coefs_"):  # the next call is the first one again
                vars(self).pop("classes_", None)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of every row, (n,); of several labels whether each is more probable than not."""
        return self._from_outputs(self._checked_outputs(X))

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of the classes, (n, classes), in the order of ``classes_``."""
        outputs = self._checked_outputs(X)
        if self.out_activation_ == "softmax":
            return losses.CrossEntropyLoss.probabilities(outputs)
        return special.expit(np.hstack([-outputs, outputs]) if self.n_outputs_ == 1 else outputs)

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Logarithms of the probabilities, (n, classes), exact where these are small."""
        outputs = self._checked_outputs(X)
        if self.out_activation_ == "softmax":
            return special.log_softmax(outputs, axis=1)
        if self.n_outputs_ == 1:
            return special.log_expit(np.hstack([-outputs, outputs]))
        # Labels whose probabilities are rounded to 1 stay equal.
        return np.where(outputs > 0, np.log(special.expit(outputs)), special.log_expit(outputs))

    def _from_outputs(self, outputs):
        if self.out_activation_ == "softmax":
            return self.classes_[outputs.argmax(axis=1)]
        positive = outputs > 0
        if self._label_binarizer.y_type_.startswith("multilabel"):
            return self._label_binarizer.inverse_transform(positive.astype(int))
        return self.classes_[np.minimum(positive.ravel(), len(self.classes_) - 1).astype(int)]

    def _checked_pair(self, X, y, reset, incremental):
        """X and labels as arrays; the labels are the classes, or must be among them."""
        if incremental and not reset and passes(self, X) and self._are_classes(y, len(X)):
            return X, y
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, dtype=(np.float64, np.float32), reset=reset
        )
        y = y.toarray() if sparse.issparse(y) else y
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._set_classes(y)
            return X, y
        classes = unique_labels(y)
        if self.warm_start and not incremental and set(classes) != set(self.classes_):
            raise ValueError(
                f"warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {classes}"
            )
        unknown = np.setdiff1d(classes, self.classes_)
        if unknown.size:
            raise ValueError(f"y must hold classes among {self.classes_}, got also {unknown}")
        return X, y

    def _are_classes(self, y, rows):
        """Whether y is a plain array of known classes, one a row."""
        classes = vars(self).get("classes_")
        if type(y) is not np.ndarray or y.shape != (rows,) or classes is None or y.dtype != classes.dtype:
            return False
        if y.dtype.kind not in "iub" or self._label_binarizer.y_type_.startswith("multilabel"):
            return False
        return bool(np.logical_and.reduce(classes.take(classes.searchsorted(y), mode="clip") == y))

    def _set_classes(self, y):
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    def _output(self, y):
        """The number of outputs and what turns them into predictions."""
        if self._label_binarizer.y_type_ == "multiclass":
            return len(self.classes_), "softmax"
        return self._label_binarizer.transform(y[:1]).shape[1], "logistic"

    def _objective(self):
        if self.out_activation_ == "softmax":
            return Objective(losses.CrossEntropyLoss(), 1.0, 1.0)
        return Objective(losses.BCEWithLogitsLoss(), self.n_outputs_, self.n_outputs_)  # of labels the sum

    def _target(self, y):
        if y.ndim == 1:
            labels = self.classes_.searchsorted(y)
            return labels if self.out_activation_ == "softmax" else labels[:, None].astype(self.model_.dtype)
        return self._label_binarizer.transform(y).astype(self.model_.dtype)

    def _strata(self, y):
        return self._label_binarizer.transform(y).astype(bool) if self.n_outputs_ == 1 else None

    def _weight(self, y, weight):
        if self.class_weight is None:
            return weight
        if y.ndim != 1:
            raise ValueError("class_weight must be None for several labels, whose rows are of no single class")
        label = np.searchsorted(self.classes_, y)
        weight = np.ones(len(y)) if weight is None else weight
        if self.class_weight == "balanced":
            sums = np.bincount(label, weight, len(self.classes_))
            of_class = weight.sum() / (np.count_nonzero(sums) * np.where(sums, sums, 1))
        elif isinstance(self.class_weight, dict):
            of_class = np.array([self.class_weight.get(name, 1.0) for name in self.classes_.tolist()])
        else:
            raise ValueError(f'class_weight must be a dict, "balanced" or None, got {self.class_weight!r}')
        return checks.weights("sample_weight times class_weight", weight * of_class[label], len(y))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
