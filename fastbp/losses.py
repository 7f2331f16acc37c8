"""Losses: the mean over rows, and the gradient of exactly that number.

The kernel of a loss can depend on the target: cross-entropy has one for labels and one for probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike

from . import backend, checks
from .backend import Kernels
from .checks import Array
from .graph import Function, Variable
from .kernels import layout

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HalfSquaredErrorLoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "PoissonLoss",
    "QuantileLoss",
]

NO_LABEL = -1  # of rows that are ignored: no class, and of weight 0

LossFunction: TypeAlias = Callable[..., tuple[float, ArrayLike]]  # (prediction, target, weights if there are any)


def refuse_changed(argument: str, labels: Array, weight: Array | None, outputs: int, rows: Array | None = None) -> None:
    """Raise where labels that count are not as they were checked: kernels make NaN of them, and no step.

    Parameters
    ----------
    argument : str
    labels, weight : arrays (n,)
    outputs : int
    rows : int array (n,), optional
        Where they are in the array of that name.
    """
    wrong = (labels < 0) | (labels >= outputs)
    if weight is not None:
        wrong &= weight != 0
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{argument} was changed while it was in use: labels go from 0 to {outputs - 1}, and now "
            f"{argument}[{first if rows is None else rows[first]}] = {labels[first]}; the weights are those of the "
            f"last finished step"
        )


class LossOf(Function):
    """A loss as one function of the graph: the gradient is known as soon as the value is."""

    reads_inputs = False

    @staticmethod
    def forward(ctx: Any, loss: Loss, prediction: Any, target: Any, sample_weight: Any) -> Any:
        if ctx.inputs[2] is not None and ctx.inputs[2].requires_grad:
            raise TypeError("target must not require a gradient, which losses do not have for it: use its .data")
        if ctx.inputs[3] is not None and ctx.inputs[3].requires_grad:
            raise TypeError("sample_weight must not require a gradient, which losses do not have: use its .data")
        ctx.loss = loss
        value, gradient = loss(prediction, target, sample_weight)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return None, grad * ctx.saved_tensors[0], None, None

    @property
    def label(self) -> str:
        return type(self.loss).__name__


def _mapped(device, prediction, call):
    """What ``call(kernels, prediction, out)`` writes: on the GPU for a prediction that is there, else on the host."""
    kernels = backend.load(device)
    if not backend.on_host(device) and kernels.is_there(prediction):
        out = kernels.empty(prediction.shape, prediction.dtype)
    else:
        prediction = checks.batch("prediction", prediction)
        out = np.empty_like(prediction)
    call(kernels, prediction, out)
    return out


class Loss:
    """Base class of the losses.

    Called as ``loss(prediction, target, sample_weight=None)`` a loss returns ``(value, gradient)``. With weights
    the mean over rows is ``Σ wᵢ lᵢ / Σ wᵢ``. Any callable of that form can be used as a loss.

    Parameters
    ----------
    device : str
        The device that a call computes on; a model that trains with the loss uses its own.

    Attributes
    ----------
    name : str
        Its name in ``fastbp.kernels.layout``.
    parameter : float
        The number its kernel takes, where it takes one.
    """

    name: str
    parameter = 0.0
    target_range: tuple[float, float] | None = None  # (least, largest) of a target, where it is bounded

    def __init__(self, *, device: str = "cpu") -> None:
        self.device = checks.choice("device", device, backend.MODULES)

    @overload
    def __call__(
        self, prediction: Variable, target: ArrayLike | Variable, sample_weight: ArrayLike | None = None
    ) -> Variable: ...
    @overload
    def __call__(
        self, prediction: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Array]: ...
    def __call__(
        self, prediction: ArrayLike | Variable, target: ArrayLike | Variable, sample_weight: ArrayLike | None = None
    ) -> Any:
        """Value and gradient.

        Parameters
        ----------
        prediction : array (n, out)
            float64 is kept, every other real dtype is computed in float32.
        target : array (n, out), or (n,) for one output; integer labels (n,) for a loss of labels
        sample_weight : array (n,), optional

        Returns
        -------
        value : float
        gradient : array (n, out)
            The gradient of the value with respect to ``prediction``. If ``prediction`` is a `fastbp.Variable`, only the
            value is returned, as a Variable.

        Raises
        ------
        TypeError, ValueError
            Shapes or values are not as they must be; all weights are 0.
        """
        if type(prediction) is Variable:
            return LossOf.apply(self, prediction, target, sample_weight)
        prediction = checks.batch("prediction", prediction)
        checks.not_empty("prediction", prediction)
        target = self.checked_target("target", target, *prediction.shape)
        if sample_weight is not None:
            sample_weight = checks.weights("sample_weight", sample_weight, len(prediction))
        weight = self.row_weight(target, sample_weight)
        gradient = np.empty_like(prediction)
        value, _ = self.of_batch(backend.load(self.device), prediction, target, weight, gradient)
        return value, gradient

    # ----------------------------------------------------------------------------- for training
    def kernel(self, target: Array) -> str:
        """Name in ``fastbp.kernels.layout`` of the kernel for this target, an array."""
        return self.name

    def takes_labels(self, target: Array) -> bool:
        """Whether this target, an array, is one integer label a row."""
        return self.kernel(target) in layout.LABEL_LOSSES

    def checked_target(self, argument: str, target: ArrayLike, rows: int, outputs: int) -> Array:
        """The target as labels or as a matrix, not yet converted."""
        target = checks.numeric(argument, target)
        if self.takes_labels(target):
            return checks.labels(argument, target, rows, outputs)
        target = checks.targets(argument, target, rows, outputs)
        if self.target_range is not None:
            checks.within(argument, target, *self.target_range)
        return target

    @property
    def weighs_by_target(self) -> bool:
        """Whether `row_weight` looks at the targets."""
        return False

    def row_weight(self, target: Array, sample_weight: Array | None) -> Array | None:
        """The weights of the rows, float64 (n,) or None, from their checked targets and sample weights."""
        return sample_weight

    def of_rows(
        self, kernels: Kernels, prediction: Any, target: Array, weight: Array, gradient: Any
    ) -> tuple[Array, Array]:
        """Loss and hit of every row; ``gradient``, which may be ``prediction``, is written.

        Parameters
        ----------
        kernels : module
        prediction : array (n, out)
        target : array (n,) or (n, out), checked; where it is on a device, in the dtype that the kernel reads
        weight : float64 array (n,)
            Weights with a sum of 1, by which the gradient is multiplied.
        gradient : array (n, out)
        """
        row_loss, row_hit = np.empty(len(prediction), prediction.dtype), np.empty(len(prediction), np.int64)
        code = layout.LOSSES.index(self.kernel(target))
        if isinstance(target, np.ndarray):
            target = checks.converted(target, np.int64 if self.takes_labels(target) else prediction.dtype)
        outputs = prediction.shape[1]
        kernels.loss_forward_backward(code, self.parameter, prediction, target, weight, row_loss, row_hit, gradient)
        if isinstance(target, np.ndarray) and self.takes_labels(target) and np.isnan(row_loss).any():
            refuse_changed("target", target, weight, outputs)
        return row_loss, row_hit

    def of_batch(
        self, kernels: Kernels, prediction: Any, target: Array, weight: Array | None, gradient: Any
    ) -> tuple[float, int]:
        """Value and number of hits of a batch, as `of_rows`; ``weight`` float64 (n,) with any sum above 0, or None."""
        weight = np.ones(len(prediction)) if weight is None else weight
        with np.errstate(all="ignore"):
            weight = weight / weight.sum()
            row_loss, row_hit = self.of_rows(kernels, prediction, target, weight, gradient)
            return float((row_loss * weight).sum()), int(row_hit.sum())

    # ----------------------------------------------------------------------------------- files
    def config(self) -> dict[str, Any]:
        """Arguments that recreate this loss."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"


class HalfSquaredErrorLoss(Loss):
    """``½ Σ_k (ŷ_k - y_k)²``, summed over outputs, mean over rows; gradient ``(ŷ - y) / n``."""

    name = "half_squared_error"


class MSELoss(Loss):
    """``(ŷ - y)²``, mean over all elements; gradient ``2 (ŷ - y) / (n·out)``."""

    name = "mean_squared_error"


class L1Loss(Loss):
    """``|ŷ - y|``, mean over all elements; gradient ``sign(ŷ - y) / (n·out)``, 0 at 0."""

    name = "l1"


class HuberLoss(Loss):
    """``e²/2`` where ``|e| ≤ delta``, else ``delta (|e| - delta/2)``, with ``e = ŷ - y``; mean over all elements.

    Gradient ``e / (n·out)``, clipped to ``±delta / (n·out)`` (Huber, 1964).

    Parameters
    ----------
    delta : float
        Above 0.
    device : str

    Raises
    ------
    TypeError, ValueError
        ``delta`` is no number, or not above 0 and finite.
    """

    name = "huber"

    def __init__(self, delta: float = 1.0, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.parameter = checks.positive("delta", delta)

    def config(self) -> dict[str, Any]:
        return {"delta": self.parameter}


class QuantileLoss(Loss):
    """``max(q (y - ŷ), (1 - q) (ŷ - y))``, mean over all elements: the pinball loss, least at the quantile q of y.

    Gradient ``-q / (n·out)`` below y, ``(1 - q) / (n·out)`` above, 0 at y (Koenker & Bassett, 1978).

    Parameters
    ----------
    q : float
        Between 0 and 1, both excluded. With 0.5 it is half of `L1Loss`.
    device : str

    Raises
    ------
    TypeError, ValueError
        ``q`` is no number, or not between 0 and 1.
    """

    name = "quantile"

    def __init__(self, q: float = 0.5, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.parameter = checks.positive("q", q)
        if self.parameter >= 1:
            raise ValueError(f"q must be between 0 and 1, both excluded, got {q!r}")

    def config(self) -> dict[str, Any]:
        return {"q": self.parameter}


class PoissonLoss(Loss):
    """``e^s - y - y (s - ln y)`` of a log-mean s, mean over all elements; gradient ``(e^s - y) / (n·out)``.

    Half the Poisson deviance of the mean ``e^s``, as scikit-learn has it: not negative, and 0 where ``e^s = y``.
    PyTorch's ``PoissonNLLLoss(log_input=True)`` leaves out what the target alone decides, ``y ln y - y``, and has the
    same gradient. Targets are not negative. The network's output is s: the counts it expects are
    ``np.exp(model.predict(X))``.
    """

    name = "poisson"
    target_range = 0, math.inf


class BCELoss(Loss):
    """``-(y ln p + (1 - y) ln(1 - p))`` of probabilities p, mean over all elements.

    Logarithms are bounded below by -100, so that the value is finite at p = 0 and 1; the gradient
    ``(p - y) / (p (1 - p)) / (n·out)`` divides by no less than 1e-12. Targets are in [0, 1]. For logits,
    `BCEWithLogitsLoss` is more exact.
    """

    name = "binary_cross_entropy"
    target_range = 0, 1

    @staticmethod
    def probabilities(prediction: Any, *, device: str = "cpu") -> Any:
        """The prediction itself."""
        return prediction


class BCEWithLogitsLoss(Loss):
    """``ln(1 + e^s) - y s`` of logits s, mean over all elements; gradient ``(σ(s) - y) / (n·out)``.

    The same as `BCELoss` of ``σ(s)``, without its overflow. Targets are in [0, 1].

    Parameters
    ----------
    pos_weight : float, optional
        Above 0: the term of the positive class, ``y ln(1 + e^-s)``, is multiplied by it, in every output. The mean is
        over the elements, not over their weights, as PyTorch's.
    device : str

    Raises
    ------
    TypeError, ValueError
        ``pos_weight`` is no number, or not above 0 and finite.
    """

    name = "binary_cross_entropy_with_logits"
    target_range = 0, 1

    def __init__(self, pos_weight: float | None = None, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.pos_weight = None if pos_weight is None else checks.positive("pos_weight", pos_weight)
        self.parameter = 1.0 if self.pos_weight is None else self.pos_weight

    def config(self) -> dict[str, Any]:
        return {"pos_weight": self.pos_weight}

    @staticmethod
    def probabilities(prediction: Any, *, device: str = "cpu") -> Any:
        """``σ(s)`` of every element, an array (n, out): on the GPU for a prediction that is there."""
        sigmoid = layout.ACTIVATIONS.index("sigmoid")
        return _mapped(device, prediction, lambda kernels, z, out: kernels.activation_forward(z, sigmoid, 0.0, out))


class CrossEntropyLoss(Loss):
    """``-Σ_k y_k log softmax(s)_k``, mean over rows; gradient ``(softmax(s) Σ_k y_k - y) / n``.

    The prediction ``s`` is logits (n, out). The target is one integer label a row (n,), of which y is the one-hot
    row, or floating-point probabilities (n, out).

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): y becomes ``(1 - label_smoothing) y + label_smoothing / out``.
    class_weight : array (out,), optional
        Not negative. The weight of a row is ``class_weight[label]``, or ``Σ_k y_k class_weight_k``, times its sample
        weight; the mean over rows is ``Σ wᵢ lᵢ / Σ wᵢ``. With label smoothing as well the whole smoothed loss of a
        row has this weight; PyTorch weights the terms of the smoothing one by one.
    ignore_index : int, optional
        The label of rows that do not count: they have weight 0, and the mean is over the others. It need not be one
        of the classes; PyTorch's is -100. Rows of probabilities all count.
    device : str

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be; all rows of a call are ignored.
    """

    name = "cross_entropy"
    target_range = 0, 1

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        super().__init__(device=device)
        if ignore_index is not None:
            ignore_index = checks.integer("ignore_index", ignore_index, minimum=np.iinfo(np.int64).min)
        self.ignore_index = ignore_index
        self.parameter = checks.real("label_smoothing", label_smoothing, below=1.0)
        if class_weight is not None:
            class_weight = checks.numeric("class_weight", class_weight)
            class_weight = checks.weights("class_weight", class_weight, class_weight.size, each="class").copy()
        self.class_weight = class_weight

    def kernel(self, target: Array) -> str:
        """The kernel for probabilities where the target is a matrix of floating-point numbers, else that for labels."""
        return "soft_cross_entropy" if target.ndim == 2 and target.dtype.kind == "f" else self.name

    def checked_target(self, argument: str, target: ArrayLike, rows: int, outputs: int) -> Array:
        """The target as labels or as probabilities, not yet converted."""
        if self.class_weight is not None and len(self.class_weight) != outputs:
            raise ValueError(
                f"class_weight must have one weight for each of the {outputs} outputs, got {len(self.class_weight)}"
            )
        target = checks.numeric(argument, target)
        if self.ignore_index is None or not self.takes_labels(target) or target.dtype.kind not in "iu":
            return super().checked_target(argument, target, rows, outputs)
        ignored = target == self.ignore_index
        if not ignored.any():
            return super().checked_target(argument, target, rows, outputs)
        labels = super().checked_target(argument, np.where(ignored, 0, target), rows, outputs)
        labels[ignored] = NO_LABEL
        return labels

    @property
    def weighs_by_target(self) -> bool:
        """With class weights, or labels that are ignored."""
        return self.class_weight is not None or self.ignore_index is not None

    def row_weight(self, target: Array, sample_weight: Array | None) -> Array | None:
        """Sample weights times class weights; 0 for rows that are ignored."""
        if not self.weighs_by_target:
            return sample_weight
        labels = self.takes_labels(target)
        if self.class_weight is None:
            if not labels or target.min(initial=0) >= 0:
                return sample_weight
            weight = (target >= 0).astype(np.float64)
        elif labels:
            weight = self.class_weight[target]
            weight[target < 0] = 0.0
        else:
            weight = np.empty(len(target))
            for part in checks.blocks(target):
                weight[part] = (target[part] * self.class_weight).sum(axis=1)
        if sample_weight is not None:
            weight *= sample_weight
        if not weight.any():
            raise ValueError(
                "ignore_index, class_weight or sample_weight give every row a weight of 0: there is nothing to average"
            )
        return weight

    @staticmethod
    def probabilities(prediction: Any, *, device: str = "cpu") -> Any:
        """``softmax(s)`` of every row, an array (n, out): on the GPU for a prediction that is there."""
        return _mapped(device, prediction, lambda kernels, z, out: kernels.softmax(z, out))

    def config(self) -> dict[str, Any]:
        weight = None if self.class_weight is None else self.class_weight.tolist()
        return {"label_smoothing": self.parameter, "class_weight": weight, "ignore_index": self.ignore_index}


LOSSES: dict[str, type[Loss]] = {name: globals()[name] for name in __all__}
