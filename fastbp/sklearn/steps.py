"""Training steps of an estimator, whose weights have a penalty that every batch divides by its own rows."""

from __future__ import annotations

import math

import numpy as np

from .. import checks, losses
from ..steps import EagerStep, FusedStep
from .rows import dense


class Steps:
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
        x, target = checks.converted(dense(self.X[rows]), self.model.dtype), self.target[rows]
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
