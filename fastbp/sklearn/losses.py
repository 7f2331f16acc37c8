"""Losses of scikit-learn's networks that the kernels do not have."""

from __future__ import annotations

import numpy as np
from scipy import special

from .. import losses


def multilabel_loss(prediction, target, weight=None):
    """Binary cross-entropy, summed over the labels."""
    value, gradient = losses.BCEWithLogitsLoss()(prediction, target, weight)
    return value * prediction.shape[1], gradient * prediction.shape[1]


def poisson_loss(prediction, target, weight=None):
    """Half the Poisson deviance of ``exp(prediction)``, summed over outputs; mean over rows."""
    share = np.full(len(target), 1 / len(target)) if weight is None else weight / weight.sum()
    share = share[:, None].astype(prediction.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.exp(prediction)
        value = special.xlogy(target, target) - target - target * prediction + mean
        return float((value * share).sum(dtype=np.float64)), (mean - target) * share
