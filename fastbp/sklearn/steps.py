"""Training steps of an estimator: batches with the penalty ``alpha ‖W‖² / 2``, over the sum of a batch's weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .. import checks
from ..checks import Array
from ..losses import Loss
from ..steps import STAGING_BYTES, CompiledSteps, StoredStep, compiled
from .rows import dense


class Rows(NamedTuple):
    """Checked rows, as `CompiledSteps` takes them."""

    X: Any
    y: Array
    weight: Array | None
    labels: bool
    first: int = 0  # the number that dropout knows the first of them by


class Objective(NamedTuple):
    """A loss of the kernels, and what scikit-learn's is in terms of it.

    ``share`` times the loss is what is reported, ``scale`` times its gradient is what is followed: of a regression
    scikit-learn reports the mean over outputs and follows the gradient of the sum.
    """

    loss: Loss
    share: float
    scale: float


class Steps:
    """Runs batches of rows, many in one compiled call where that can be; `Slices` cuts an epoch into calls.

    After a loss that is not finite the weights count as lost, as they would be: all become NaN.

    Parameters
    ----------
    model : Sequential
    objective : Objective
    optimizer : SGD or Adam
        Of `rate`.
    """

    def __init__(self, model, objective, optimizer):
        self.model, self.network, self.optimizer, self.objective = model, model.network, optimizer, objective
        optimizer.bind(self.network)
        model.remember_loss(objective.loss)
        self.stored = StoredStep(model, objective.loss, optimizer)
        self.alpha = self.penalised = self.decay = None  # the decay is that of batches of these sums of weights
        self.divided, self.sizes = None, np.empty(0)
        self.give(None, None, None, 0.0, 1)

    def give(self, X, target, weight, alpha, batch_size):
        """What the next batches are of, with which penalty."""
        self.X, self.target, self.weight = X, target, weight
        if alpha != self.alpha:
            self.alpha, self.penalised, self.decay = alpha, None, None
        self.batch_size, self.lost = batch_size, False
        # Elsewhere than on the host updates know no decay.
        self.compiled = compiled(self.objective.loss, self.optimizer) and (self.network.on_host or not alpha)
        self.run = None

    def _run_of(self, X, target, weight):
        """Compiled steps on these rows."""
        rows = Rows(X, target, weight, self.objective.loss.takes_labels(target))
        return CompiledSteps(self.model, self.objective.loss, self.optimizer, rows, self.batch_size)

    def _run_of_all(self):
        """Those on all rows, where they are dense."""
        if self.run is None:
            self.run = self._run_of(self.X, self.target, self.weight)
        return self.run

    @property
    def most(self):
        """The most batches a call may have."""
        if not self.compiled:
            return 1
        if sparse.issparse(self.X):
            return max(1, STAGING_BYTES // (self.batch_size * self.X.shape[1] * self.X.dtype.itemsize))
        return self._run_of_all().together

    def __call__(self, rows, step_loss, step_hits):
        """Run the batches of these rows, whose losses before their updates are written to ``step_loss``.

        Returns how many are done: those before the first loss that is not finite. After that none is run.
        """
        if self.lost:
            step_loss[:] = math.nan
            return len(step_loss)
        if self.weight is None:
            return self._counted(rows, self.sizes_of(len(rows)), step_loss, step_hits)
        totals, done = np.add.reduceat(self.weight[rows], np.arange(0, len(rows), self.batch_size)), 0
        for end in (*np.flatnonzero(totals == 0), len(step_loss)):  # a batch without weight counts for nothing
            if end > done:
                part, size = slice(done, end), self.batch_size
                finished = self._counted(rows[done * size : end * size], totals[part], step_loss[part], step_hits[part])
                if finished < end - done:
                    return done + finished
            step_loss[end : end + 1] = 0.0
            done = end + 1
        return len(step_loss)

    def sizes_of(self, rows):
        """The rows of every batch, float64 (batches,): the same array where the last ones were divided so."""
        if self.divided != (rows, self.batch_size):
            batches = -(-rows // self.batch_size)
            self.divided, self.sizes = (rows, self.batch_size), np.full(batches, float(self.batch_size))
            self.sizes[-1] = rows - (batches - 1) * self.batch_size
        return self.sizes

    def _counted(self, rows, totals, step_loss, step_hits):
        """Batches that count; how many have a finite loss."""
        finished = (self._together if self.compiled else self._stored)(rows, totals, step_loss, step_hits)
        if finished < len(totals):
            self.lost = True
            self.model.flat_parameters = np.full(self.network.count, math.nan, self.model.dtype)
        return finished

    def _together(self, rows, totals, step_loss, step_hits):
        """Batches in one call; how many have a finite loss."""
        order, squares = rows, None
        if sparse.issparse(self.X):
            run = self._run_of(*self._rows_of(rows))
            order = np.stack([np.arange(len(rows)), rows])
        else:
            run = self._run_of_all()
        if self.alpha:
            if totals is not self.penalised:
                self.penalised, self.decay = totals, self.alpha / (totals * self.objective.scale)
            squares = np.zeros(len(totals))
        run.start(rows, len(totals))
        self.network.discard_gradients()
        done = run(order, step_loss, step_hits, self.decay, squares)
        step_loss *= self.objective.share
        if squares is not None:
            step_loss += 0.5 * self.alpha * squares / totals
        finite = np.isfinite(step_loss[:done])
        return done if finite.all() else int(finite.argmin())

    def _stored(self, rows, totals, step_loss, step_hits):
        """The same a batch at a time, through stored gradients."""
        for i, total in enumerate(totals):
            numbers = rows[i * self.batch_size : (i + 1) * self.batch_size]
            step_loss[i] = value = self.gradients(*self._rows_of(numbers), total, numbers)
            if math.isfinite(value):
                self.optimizer.step()
            self.network.discard_gradients()
            if not math.isfinite(value):
                return i
        return len(totals)

    def _rows_of(self, rows):
        """These rows of X, of the targets and of the weights."""
        x, target = checks.converted(dense(self.X[rows]), self.model.dtype), self.target[rows]
        return x, target, None if self.weight is None else self.weight[rows]

    def batch(self):
        """All rows, their targets and weights, and the sum of these."""
        x, target, weight = self._rows_of(slice(None))
        return x, target, weight, float(len(target) if weight is None else weight.sum())

    def gradients(self, x, target, weight, total, numbers=None):
        """The loss of a batch with its penalty; its gradients are stored, before ``scale``, where it is finite."""
        self.stored.count = 0.0
        value = self.stored.add(x, target, weight, numbers)[0] * self.objective.share
        if self.alpha:
            value += 0.5 * self.alpha * self.network.weights_squared() / total
            if math.isfinite(value):
                self.network.add_decay(self.alpha / (total * self.objective.scale))
        return value
