"""Losses: the mean over rows, and the gradient of exactly that number."""

import numpy as np

from . import backend, checks
from .kernels import table


class Loss:
    """What the losses share.

    Called as ``loss(prediction, target, sample_weight=None)`` a loss returns ``(value, gradient)``. With weights
    the mean over rows is ``Σ wᵢ lᵢ / Σ wᵢ``. Any callable of that form can be used in the place of a loss.

    Parameters
    ----------
    device : str
        Whose kernels a call uses; a model that trains with the loss uses its own.

    Attributes
    ----------
    name : str
        Its name in ``fastbp.kernels.table``, which gives its ``code``.
    parameter : float
        The number its kernel takes, where it takes one.
    labels : bool
        Whether a target is one integer label a row.
    """

    name = None
    parameter = 0.0

    def __init__(self, *, device="cpu"):
        self.device = device

    @property
    def labels(self):
        return self.name in table.LABEL_LOSSES

    def __init_subclass__(cls):
        cls.code = table.LOSSES.index(cls.name)

    def __call__(self, prediction, target, sample_weight=None):
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
            Of the value, with respect to ``prediction``.
        """
        prediction = checks.matrix("prediction", prediction)
        checks.not_empty("prediction", prediction)
        dtype = np.dtype(np.float64 if prediction.dtype == np.float64 else np.float32)
        prediction = checks.converted(prediction, dtype)
        rows, outputs = prediction.shape
        target = self.prepared_target("target", target, rows, outputs, dtype)
        weight = np.ones(rows) if sample_weight is None else checks.weights("sample_weight", sample_weight, rows)
        weight = weight / weight.sum()
        gradient = np.empty_like(prediction)
        row_loss, _ = self.rows(backend.load(self.device), prediction, target, weight, gradient)
        return float((row_loss * weight).sum()), gradient

    def checked_target(self, argument, target, rows, outputs):
        """The target as labels or as a matrix, not yet converted."""
        check = checks.labels if self.labels else checks.targets
        return check(argument, target, rows, outputs)

    def prepared_target(self, argument, target, rows, outputs, dtype):
        """The target as a kernel takes it."""
        target = self.checked_target(argument, target, rows, outputs)
        return target if self.labels else checks.converted(target, dtype)

    def rows(self, kernels, prediction, target, weight, gradient):
        """Loss and hit of every row; ``gradient``, which may be ``prediction``, is written."""
        row_loss, row_hit = np.empty(len(prediction), prediction.dtype), np.empty(len(prediction), np.int64)
        kernels.loss_forward_backward(
            self.code, self.parameter, prediction, target, weight, row_loss, row_hit, gradient
        )
        return row_loss, row_hit

    def config(self):
        """Arguments that make this loss again."""
        return {}

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"


class HalfSquaredErrorLoss(Loss):
    """``½ Σ_k (ŷ_k - y_k)²``, summed over outputs, mean over rows; gradient ``(ŷ - y) / n``."""

    name = "half_squared_error"


class MSELoss(Loss):
    """``(ŷ - y)²``, mean over all elements; gradient ``2 (ŷ - y) / (n·out)``."""

    name = "mean_squared_error"


class CrossEntropyLoss(Loss):
    """``-log softmax(s)_y``, mean over rows; gradient ``(softmax(s) - onehot(y)) / n``.

    The prediction ``s`` is logits, the target one integer label a row.
    """

    name = "cross_entropy"

    @staticmethod
    def probabilities(prediction):
        """``softmax(s)`` of every row."""
        exponential = np.exp(prediction - prediction.max(axis=1, keepdims=True))
        return exponential / exponential.sum(axis=1, keepdims=True)


LOSSES = {cls.__name__: cls for cls in (HalfSquaredErrorLoss, MSELoss, CrossEntropyLoss)}
