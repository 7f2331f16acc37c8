"""`MLPClassifier` and `MLPRegressor` in the place of scikit-learn's: its arguments, rules and numbers, our kernels.

The arguments, their order and defaults, the fitted attributes, the first weights, the order of rows, the penalty, the
stopping rules and the warnings are those of ``sklearn.neural_network``. The notes of the classes say what differs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import callbacks as watching
from . import checks, layers, losses, optimizers
from .checks import Array
from .model import Sequential
from .steps import EagerStep, FusedStep, Interrupts
from .training import History, Validation

try:
    from scipy import optimize, sparse, special
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import type_of_target, unique_labels
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
AUTO_BATCH = 200  # rows of a batch where batch_size="auto"
LEAST_RATE = 1e-6  # where learning_rate="adaptive" ends
FLOATS = np.dtype(np.float64), np.dtype(np.float32)
BLOCK_BYTES = 16 << 20  # of sparse rows that are made dense at once to predict


def _auto_or_integer(argument, value):
    if value != "auto":
        checks.integer(argument, value, minimum=1)


def _integer_or_infinite(argument, value):
    if value != math.inf:
        checks.integer(argument, value, minimum=1)


def _dtype_or_none(argument, value):
    if value is not None:
        checks.dtype(argument, value)


_count = partial(checks.integer, minimum=1)
_below_1 = partial(checks.real, below=1.0)
CHECKS = {
    "activation": partial(checks.choice, allowed=ACTIVATIONS),
    "solver": partial(checks.choice, allowed=("lbfgs", "sgd", "adam")),
    "alpha": checks.real,
    "batch_size": _auto_or_integer,
    "learning_rate": partial(checks.choice, allowed=("constant", "invscaling", "adaptive")),
    "learning_rate_init": checks.positive,
    "power_t": checks.real,
    "max_iter": _count,
    "shuffle": checks.boolean,
    "tol": checks.real,
    "warm_start": checks.boolean,
    "momentum": checks.share,
    "nesterovs_momentum": checks.boolean,
    "early_stopping": checks.boolean,
    "validation_fraction": _below_1,
    "beta_1": _below_1,
    "beta_2": _below_1,
    "epsilon": checks.positive,
    "n_iter_no_change": _integer_or_infinite,
    "max_fun": _count,
    "dropout": _below_1,
    "dtype": _dtype_or_none,
}


# ------------------------------------------------------------------------------------------- losses
def _multilabel_loss(prediction, target, weight=None):
    """Binary cross-entropy, summed over the labels."""
    value, gradient = losses.BCEWithLogitsLoss()(prediction, target, weight)
    return value * prediction.shape[1], gradient * prediction.shape[1]


def _poisson_loss(prediction, target, weight=None):
    """Half the Poisson deviance of ``exp(prediction)``, summed over outputs; mean over rows."""
    share = np.full(len(target), 1 / len(target)) if weight is None else weight / weight.sum()
    share = share[:, None].astype(prediction.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.exp(prediction)
        value = special.xlogy(target, target) - target - target * prediction + mean
        return float((value * share).sum(dtype=np.float64)), (mean - target) * share


# ---------------------------------------------------------------------------------------- optimizers
class _Adam(optimizers.Adam):
    """Adam with epsilon beside ``√v`` itself, before the bias correction."""

    def _fill(self, columns, lr, t):
        super()._fill(columns, lr, t)
        columns[5] = self.eps


class _Rate:
    """The optimizer of an estimator, and what its policy makes of the learning rate.

    The velocities of scikit-learn hold learning rates, ours do not: where the rate changes, they are scaled.
    """

    def __init__(self, estimator):
        self.policy = "constant" if estimator.solver == "adam" else estimator.learning_rate
        self.first, self.power = float(estimator.learning_rate_init), estimator.power_t
        if estimator.solver == "adam":
            betas = estimator.beta_1, estimator.beta_2
            self.optimizer = _Adam(lr=self.first, betas=betas, eps=estimator.epsilon)
        else:
            momentum = min(estimator.momentum, math.nextafter(1.0, 0.0))  # our optimizers want it below 1
            nesterov = bool(estimator.nesterovs_momentum and momentum)
            self.optimizer = optimizers.SGD(lr=self.first, momentum=momentum, nesterov=nesterov)

    @property
    def learning_rate(self):
        return self.optimizer.lr

    def change(self, rate):
        optimizer = self.optimizer
        for velocity in optimizer.state:
            optimizer.network.backend.scale(velocity, optimizer.lr / rate, velocity)
        optimizer.lr = rate

    def epoch_ended(self, rows_seen):
        if self.policy == "invscaling":
            self.change(self.first / (rows_seen + 1) ** self.power)

    def after_no_improvement(self):
        """What is done about it, and whether training ends."""
        if self.policy != "adaptive":
            return "Stopping.", True
        if self.learning_rate <= LEAST_RATE:
            return "Learning rate too small. Stopping.", True
        self.change(self.learning_rate / 5)
        return f"Setting learning rate to {self.learning_rate:f}", False


# ------------------------------------------------------------------------------------------ training
def _dense(X):
    return X.toarray() if sparse.issparse(X) else X


class _Steps:
    """Training steps with the penalty ``alpha ‖W‖² / 2`` of the weights, over the sum of a batch's weights.

    After a loss that is not finite the weights count as lost, as they would be: all become NaN.
    """

    def __init__(self, estimator, optimizer, X, target, weight):
        self.model, self.alpha, self.optimizer = estimator.model_, estimator.alpha, optimizer
        self.X, self.target, self.weight = X, target, weight
        self.network, self.lost = self.model.network, False
        self.loss, self.share = estimator._loss_and_share()
        optimizer.bind(self.network)
        self.model.remember_loss(self.loss)
        self.stored = EagerStep(self.model, self.loss, optimizer)
        fused = isinstance(self.loss, losses.Loss) and self.network.on_host
        self.fused = FusedStep(self.model, self.loss, optimizer) if fused else None

    def batch(self, rows):
        """These rows of X, of the targets and of the weights, and the sum of these."""
        x, target = checks.converted(_dense(self.X[rows]), self.model.dtype), self.target[rows]
        weight = None if self.weight is None else self.weight[rows]
        return x, target, weight, len(target) if weight is None else float(weight.sum())

    def penalty(self, total):
        return 0.5 * self.alpha * self.network.weights_squared() / total if self.alpha else 0.0

    def gradients(self, x, target, weight, total):
        """The loss of a batch, with its penalty; its gradients are stored, where it is finite."""
        self.stored.count = 0.0
        value = self.stored.add(x, target, weight)[0] * self.share + self.penalty(total)
        if self.alpha and math.isfinite(value):
            self.network.add_decay(self.alpha / total)
        return value

    def __call__(self, rows):
        """A step on these rows; its loss before the update."""
        if self.lost:
            return math.nan
        x, target, weight, total = self.batch(rows)
        if total == 0:
            return 0.0
        if self.fused:
            penalty = self.penalty(total)
            value = self.fused(x, target, weight, self.alpha / total) * self.share + penalty
        else:
            value = self.gradients(x, target, weight, total)
            if math.isfinite(value):
                self.optimizer.step()
        if not math.isfinite(value):
            self.lost = True
            self.model.flat_parameters = np.full(self.network.count, math.nan, self.model.dtype)
        self.network.discard_gradients()
        return value


class _Best:
    """The weights of the best epoch; those from before training, until there is one."""

    def __init__(self, model):
        self.network, self.kept = model.network, None
        self.keep()

    def keep(self):
        self.kept = self.network.copied_values(self.kept)

    def restore(self):
        self.network.restore_values(self.kept)


def _store(estimator, arguments):
    """Keep the arguments of ``__init__`` unchanged, as scikit-learn requires."""
    vars(estimator).update({name: value for name, value in arguments.items() if name != "self"})


def _stochastic(estimator):
    """Whether there is `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError('partial_fit needs solver="sgd" or "adam"; "lbfgs" trains on all rows at once')
    return True


class _Perceptron(BaseEstimator):
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
            self._fit_lbfgs(X, y, self._weight(y, weight))
        else:
            self._fit_stochastic(X, y, weight, X_val, y_val, random, incremental)
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

    def _fit_lbfgs(self, X, y, weight):
        """L-BFGS over all parameters, on all rows at once."""
        model = self.model_
        steps = _Steps(self, optimizers.SGD(lr=1.0), X, self._target(y), weight)
        batch = steps.batch(slice(None))

        def value_and_gradient(flat):
            model.flat_parameters = flat
            value = steps.gradients(*batch)
            gradient = model.flat_gradients if math.isfinite(value) else np.full(len(flat), math.nan)
            return value, gradient.astype(np.float64)

        def report(intermediate_result):
            print(f"loss = {intermediate_result.fun:.8f}")

        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        with model.exclusive():
            result = optimize.minimize(
                value_and_gradient, model.flat_parameters.astype(np.float64), method="L-BFGS-B", jac=True,
                options=options, callback=report if self.verbose else None,
            )  # fmt: skip
            model.flat_parameters = result.x
            model.network.discard_gradients()
        self.n_iter_, self.loss_ = min(result.nit, self.max_iter), result.fun
        if result.status:
            warnings.warn(
                f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}): {result.message}; "
                f"raise max_iter={self.max_iter} or max_fun={self.max_fun}, or scale the data",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _fit_stochastic(self, X, y, weight, X_val, y_val, random, incremental):
        given, weight_val = X_val is not None, None
        if self.early_stopping and not given:
            strata = self._strata(y)
            rows, rows_val = train_test_split(
                np.arange(X.shape[0]), random_state=random, test_size=self.validation_fraction, stratify=strata
            )
            if len(rows_val) < 2:
                raise ValueError(
                    "The validation set is too small. Increase 'validation_fraction' or the size of your dataset: "
                    f"validation_fraction={self.validation_fraction} of {X.shape[0]} rows leaves {len(rows_val)}, "
                    "and 2 are needed"
                )
            X, X_val, y, y_val = X[rows], X[rows_val], y[rows], y[rows_val]
            if weight is not None:
                weight, weight_val = weight[rows], weight[rows_val]
        batch_size = min(AUTO_BATCH, X.shape[0]) if self.batch_size == "auto" else self.batch_size
        if batch_size > X.shape[0]:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
            batch_size = X.shape[0]
        if not (incremental and hasattr(self, "_optimizer")):
            self._optimizer = _Rate(self)
        model, rate = self.model_, self._optimizer
        model.optimizer = rate.optimizer
        steps = _Steps(self, rate.optimizer, X, self._target(y), self._weight(y, weight))
        score = None if X_val is None else partial(self._score_of, X_val, y_val, weight_val)
        validation = Validation(model, steps.loss, (_dense(X_val), self._target(y_val))) if given else None
        if score is not None and self.validation_scores_ is None:
            self.validation_scores_ = []
        if given:
            self.validation_loss_curve_ = self.validation_loss_curve_ or []
        watchers = watching.checked(list(self.callbacks or ()))
        count, order, epochs = X.shape[0], np.arange(X.shape[0]), 1 if incremental else self.max_iter
        run = {"epochs": epochs, "batch_size": batch_size, "steps": -(-count // batch_size), "rows": count}
        run |= {"verbose": bool(self.verbose), "validation_rows": 0 if X_val is None else X_val.shape[0]}
        model.history = history = History()
        self.n_iter_, best = 0, _Best(model) if self.early_stopping else None
        try:
            with model.exclusive(), Interrupts() as interrupts:
                watching.call(watchers, "on_fit_begin", model, run)
                for epoch in range(1, epochs + 1):
                    begin = time.perf_counter()
                    if self.shuffle and count > 1:
                        order = order[random.permutation(count)]
                    total = 0.0
                    for number, start in enumerate(range(0, count, batch_size), 1):
                        rows = order[start : start + batch_size]
                        interrupts.deferred = True
                        value = steps(rows)
                        interrupts.raise_deferred()
                        total += value * len(rows)
                        watching.call(watchers, "on_batch_end", model, {"epoch": epoch, "batch": number, "loss": value})
                    self._epoch_ended(epoch, total / count, count, score, best)
                    val_loss, val_accuracy = validation() if validation else (None, None)
                    if validation:
                        val_loss *= steps.share
                        self.validation_loss_curve_.append(val_loss)
                    record = {"epoch": epoch, "loss": self.loss_, "val_loss": val_loss, "accuracy": None}
                    record |= {"val_accuracy": val_accuracy, "lr": rate.learning_rate}
                    history.append(record | {"seconds": time.perf_counter() - begin})
                    stop = watching.call(watchers, "on_epoch_end", model, history[-1])
                    if self._converged(rate) or stop or incremental:
                        break
                    if epoch == epochs:
                        warnings.warn(
                            f"Stochastic Optimizer: Maximum iterations ({epochs}) reached and the optimization hasn't "
                            f"converged yet.",
                            ConvergenceWarning,
                            stacklevel=4,
                        )
                watching.call(watchers, "on_fit_end", model, history)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        if self.early_stopping:
            best.restore()

    def _epoch_ended(self, epoch, loss, rows, score, weights):
        """Keep what an epoch gave, and count those without improvement."""
        self.n_iter_, self.loss_ = epoch, loss
        self.t_ += rows
        self.loss_curve_.append(loss)
        if self.verbose:
            print(f"Iteration {epoch}, loss = {loss:.8f}")
        if score is not None:
            self.validation_scores_.append(score())
            if self.verbose:
                print(f"Validation score: {self.validation_scores_[-1]:f}")
        if self.early_stopping:
            last, best = self.validation_scores_[-1], self.best_validation_score_
            worse = last < best + self.tol
            if last > best:
                self.best_validation_score_ = last
                weights.keep()
        else:
            worse = loss > self.best_loss_ - self.tol
            self.best_loss_ = loss if loss < self.best_loss_ else self.best_loss_
        self._no_improvement_count = self._no_improvement_count + 1 if worse else 0

    def _converged(self, rate):
        """Whether training ends for want of improvement; changes the learning rate as its policy says."""
        rate.epoch_ended(self.t_)
        if not self._no_improvement_count > self.n_iter_no_change:
            return False
        what, end = rate.after_no_improvement()
        if self.verbose:
            watched = "Validation score" if self.early_stopping else "Training loss"
            print(
                f"{watched} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs. "
                f"{what}"
            )
        if not end:
            self._no_improvement_count = 0
        return end

    def _score_of(self, X, y, weight):
        prediction = self._from_outputs(self._outputs(self.model_, X))
        if prediction.dtype.kind == "f" and not np.isfinite(prediction).all():
            return math.nan
        return self._metric(y, prediction, sample_weight=weight)

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
        if not self._passes(X):
            check_is_fitted(self)
            X = validate_data(self, X, accept_sparse="csr", reset=False)
        return self._outputs(self._network(), X)

    def _passes(self, X):
        """Whether X is a plain array that `validate_data` would return unchanged: looking takes a few microseconds."""
        state = vars(self)
        if type(X) is not np.ndarray or X.ndim != 2 or X.dtype not in FLOATS or not X.size:
            return False
        if "_coefs" not in state or "feature_names_in_" in state or X.shape[1] != state.get("n_features_in_"):
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            return math.isfinite(np.add.reduce(X, axis=None))

    @staticmethod
    def _outputs(model, X):
        if not sparse.issparse(X):
            if X.dtype != model.dtype:
                checks.finite("X", X, model.dtype)
            return model.predict(X)
        rows = max(1, BLOCK_BYTES // (X.shape[1] * model.dtype.itemsize))
        return np.vstack([model.predict(X[start : start + rows].toarray()) for start in range(0, X.shape[0], rows)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _weight(self, y, weight):
        """Sample weights with the weights of classes."""
        return weight


class MLPClassifier(ClassifierMixin, _Perceptron):
    """A multilayer perceptron that classifies, trained on the logistic or cross-entropy loss.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layers.
    activation : str
        Of the hidden layers: ``"identity"``, ``"logistic"``, ``"tanh"``, ``"relu"``, and besides those of scikit-learn
        ``"leaky_relu"``, ``"elu"``, ``"selu"``, ``"gelu"``, ``"silu"``, ``"softplus"``.
    solver : "adam", "sgd" or "lbfgs"
        ``"lbfgs"`` is SciPy's, on all rows at once.
    alpha : float
        Strength of the L2 penalty ``alpha ‖W‖² / 2`` of the weights, biases apart, which every batch divides by its
        rows, or by the sum of their weights. It is part of the loss.
    batch_size : int or "auto"
        ``"auto"`` means ``min(200, n)``; a number above n means n.
    learning_rate : "constant", "invscaling" or "adaptive"
        Of ``"sgd"``: ``learning_rate_init``; that divided by ``(t_ + 1) ** power_t`` after every epoch; or divided by 5
        whenever training would end, until it is 1e-6.
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
        learning_rate: str = "constant",
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
        class_weight: dict[Any, float] | str | None = None,
        dtype: DTypeLike = None,
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        _store(self, locals())

    @available_if(_stochastic)
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
        return self._train(X, y, sample_weight, incremental=True)

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
        if incremental and not reset and self._passes(X) and self._are_classes(y, len(X)):
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
        return bool((classes[np.minimum(np.searchsorted(classes, y), len(classes) - 1)] == y).all())

    def _set_classes(self, y):
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    def _output(self, y):
        """The number of outputs and what turns them into predictions."""
        if self._label_binarizer.y_type_ == "multiclass":
            return len(self.classes_), "softmax"
        return self._label_binarizer.transform(y[:1]).shape[1], "logistic"

    def _loss_and_share(self):
        """The loss, and what its value is multiplied by."""
        if self.out_activation_ == "softmax":
            return losses.CrossEntropyLoss(), 1.0
        return losses.BCEWithLogitsLoss() if self.n_outputs_ == 1 else _multilabel_loss, 1.0

    def _target(self, y):
        if self.out_activation_ == "softmax":
            return np.searchsorted(self.classes_, y)
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


class MLPRegressor(RegressorMixin, _Perceptron):
    """A multilayer perceptron that predicts numbers, trained on half the squared error or on the Poisson deviance.

    Parameters, attributes and what differs from ``sklearn.neural_network`` are those of `MLPClassifier`, without
    ``class_weight`` and ``classes_``. ``y`` may have several columns; the validation score is R².

    Parameters
    ----------
    loss : "squared_error" or "poisson"
        ``"poisson"`` predicts ``exp`` of the outputs, for targets that are not negative.
    """

    _metric = staticmethod(r2_score)

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
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
        dtype: DTypeLike = None,
        device: str = "cpu",
        precision: str = "ieee",
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        _store(self, locals())

    @available_if(_stochastic)
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
        checks.choice("loss", self.loss, ("squared_error", "poisson"))
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, y_numeric=True, dtype=(np.float64, np.float32),
            reset=reset,
        )  # fmt: skip
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(f'y must not be negative for loss="poisson", got {y.min()}')
        return X, y

    def _output(self, y):
        return 1 if y.ndim == 1 else y.shape[1], "exp" if self.loss == "poisson" else "identity"

    def _loss_and_share(self):
        if self.out_activation_ == "exp":
            return _poisson_loss, 1.0
        return losses.HalfSquaredErrorLoss(), 1 / self.n_outputs_

    def _target(self, y):
        return y.reshape(len(y), -1).astype(self.model_.dtype)

    @staticmethod
    def _strata(y):
        return None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
