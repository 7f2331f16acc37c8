"""Loss and accuracy on data that is not trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from . import checks, data
from .losses import Loss, LossFunction
from .steps import check_loss, checked_result

if TYPE_CHECKING:
    from .model import Sequential
    from .ranks import Ranks


def evaluate(
    model: Sequential,
    X: ArrayLike,
    y: ArrayLike,
    *,
    loss: LossFunction | None = None,
    sample_weight: ArrayLike | None = None,
) -> dict[str, float | None]:
    """Loss and accuracy on data, as `fit` has them of its validation data.

    Parameters
    ----------
    X : array (n, in)
    y : array (n, out), or integer labels (n,) for a loss of labels
    loss : loss, optional
        By default the last one that `fit` or `train_step` used.
    sample_weight : array (n,), optional
        ``loss`` is the mean with these weights; ``accuracy`` counts every row once.

    Returns
    -------
    dict
        ``loss``, and ``accuracy``, which is None where the targets are not labels.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be.
    """
    loss = model.last_loss if loss is None else loss
    if loss is None:
        raise ValueError("evaluate needs a loss: pass for example loss=fastbp.CrossEntropyLoss()")
    check_loss(loss)
    arrays = (X, y) if sample_weight is None else (X, y, sample_weight)
    value, accuracy = Validation(model, loss, arrays, ("X", "y", "sample_weight"))()
    return {"loss": value, "accuracy": accuracy}


class Validation:
    """Loss and accuracy on data that is not trained on."""

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        arrays: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike],
        names: Sequence[str] = ("validation_data[0]", "validation_data[1]", "validation_data[2]"),
        ranks: Ranks | None = None,
    ) -> None:
        if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 3):
            what = type(arrays).__name__ + (f" of {len(arrays)}" if isinstance(arrays, tuple | list) else "")
            raise TypeError(f"validation_data must be a pair (X, y), or (X, y, sample_weight); got {what}")
        self.model, self.loss, self.ranks = model, loss, ranks
        self.X, self.y = data.checked_pair(model, loss, *arrays[:2], names, ranks is not None)
        self.rows = len(self.X)  # on several ranks, `fit` makes it those of all
        weight = arrays[2] if len(arrays) == 3 else None
        if weight is not None:
            weight = checks.weights(names[2], weight, len(self.X))
        self.weight = loss.row_weight(self.y, weight) if isinstance(loss, Loss) else weight
        if not model.network.on_host:
            self.X, *_ = model._kernels.resident((self.X,), model.dtype) or (self.X,)

    def of(self, model: Sequential) -> Validation:
        """This validation for another model of the same shape and dtype."""
        other = copy.copy(self)
        other.model = model
        return other

    def __call__(self) -> tuple[float, float | None]:
        """(loss, accuracy or None)."""
        if self.ranks is None:
            loss, weight, hits, labelled = self.sums()
        else:
            loss, weight, hits, labelled = self.ranks.total(*self.sums())
        with np.errstate(all="ignore"):
            value = float(np.divide(loss, weight))
        return value, hits / labelled if isinstance(self.loss, Loss) and self.loss.takes_labels(self.y) else None

    def sums(self) -> tuple[float, float, int, int]:
        """The sum of the losses by weight and that of the weights; hits, and how many rows have a label."""
        if not len(self.X):
            return 0.0, 0.0, 0, 0
        if isinstance(self.loss, Loss):
            return self._by_rows(self.loss)
        prediction = self.model.predict(self.X)
        weight = () if self.weight is None else (self.weight,)
        value, _ = checked_result(self.loss(prediction, self.y, *weight), prediction.shape)
        if self.ranks is None:
            return value, 1.0, 0, 0
        total = len(self.X) if self.weight is None else self.weight.sum()
        return value * total, total, 0, 0

    @np.errstate(all="ignore")
    def _by_rows(self, loss):
        """The sums, some rows at a time."""
        model, X = self.model, self.X
        row_loss, hits = np.empty(len(X)), 0
        counts = np.ones(len(X)) if self.weight is None else (self.weight > 0).astype(np.float64)
        for start in range(0, len(X), model.prediction_block):
            part = slice(start, start + model.prediction_block)
            prediction = model.predict(X[part], to_host=False)
            unused = prediction  # the gradient, written in place
            row_loss[part], row_hit = loss.of_rows(model._kernels, prediction, self.y[part], counts[part], unused)
            hits += int(row_hit.sum())
        labelled = int(np.count_nonzero(self.y >= 0)) if loss.takes_labels(self.y) else 0
        if self.weight is None:
            return row_loss.sum(), len(X), hits, labelled
        row_loss *= self.weight
        return row_loss.sum(), self.weight.sum(), hits, labelled
