"""Training steps of an estimator: batches with the penalty ``alpha ‖W‖² / 2``, over the sum of a batch's weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .. import checks
from ..losses import Loss
from ..steps import CompiledStep, StoredStep, compiled
from .rows import dense


class Objective(NamedTuple):
    """A loss of the kernels, and what scikit-learn's is in terms of it.

    ``share`` times the loss is what is reported, ``scale`` times its gradient is what is followed: of a regression
    scikit-learn reports the mean over outputs and follows the gradient of the sum.
    """

    loss: Loss
    share: float
    scale: float

    def same_as(self, other):
        """Whether steps that were made ready for the one do for the other."""
        one, two = self.loss, other.loss
        return type(one) is type(two) and one.parameter == two.parameter and self[1:] == other[1:]


class Steps:
    """Runs batches of rows; `Slices` cuts an epoch into calls.

    After a loss that is not finite the weights count as lost, as they would be: all become NaN.

    Parameters
    ----------
    model : Sequential
    objective : Objective
    optimizer : SGD or Adam
        Of `rate`.
    """

    most = 1 << 20  # batches a call may have

    def __init__(self, model, objective, optimizer):
        self.model, self.network, self.optimizer, self.objective = model, model.network, optimizer, objective
        optimizer.bind(self.network)
        model.remember_loss(objective.loss)
        self.compiled = CompiledStep(model, objective.loss, optimizer) if compiled(objective.loss, optimizer) else None
        self.stored = StoredStep(model, objective.loss, optimizer)
        self.give(None, None, None, 0.0, 1)

    def give(self, X, target, weight, alpha, batch_size):
        """What the next batches are of, with which penalty."""
        self.X, self.target, self.weight = X, target, weight
        self.alpha, self.batch_size, self.lost = alpha, batch_size, False

    def __call__(self, rows, step_loss, step_hits):
        """Run the batches of these rows, whose losses before their updates are written to ``step_loss``.

        Returns how many are done: those before the first loss that is not finite. After that none is run.
        """
        if self.lost:
            step_loss[:] = math.nan
            return len(step_loss)
        for i in range(len(step_loss)):
            step_loss[i] = value = self._step(rows[i * self.batch_size : (i + 1) * self.batch_size])
            if not math.isfinite(value):
                self.lost = True
                self.model.flat_parameters = np.full(self.network.count, math.nan, self.model.dtype)
                return i
        return len(step_loss)

    def _step(self, rows):
        """One step; its loss with the penalty."""
        x, target, weight, total = self.batch(rows)
        if total == 0:
            return 0.0
        if self.compiled and (self.network.on_host or not self.alpha):  # elsewhere updates know no decay
            penalty = self.penalty(total)
            decay = self.alpha / (total * self.objective.scale) if self.alpha else None
            return self.compiled(x, target, weight, decay) * self.objective.share + penalty
        value = self.gradients(x, target, weight, total)
        if math.isfinite(value):
            self.optimizer.step()
        self.network.discard_gradients()
        return value

    def batch(self, rows):
        """These rows of X, of the targets and of the weights, and the sum of these."""
        x, target = checks.converted(dense(self.X[rows]), self.model.dtype), self.target[rows]
        if self.weight is None:
            return x, target, None, len(target)
        weight = self.weight[rows]
        return x, target, weight, float(weight.sum())

    def penalty(self, total):
        """The penalty of a batch whose weights have this sum."""
        return 0.5 * self.alpha * self.network.weights_squared() / total if self.alpha else 0.0

    def gradients(self, x, target, weight, total):
        """The loss of a batch with its penalty; its gradients are stored, before ``scale``, where it is finite."""
        self.stored.count = 0.0
        value = self.stored.add(x, target, weight)[0] * self.objective.share + self.penalty(total)
        if self.alpha and math.isfinite(value):
            self.network.add_decay(self.alpha / (total * self.objective.scale))
        return value
