"""Rows that lie on several ranks: which rows are whose, and steps whose gradients are summed over the ranks.

The global batch is the union of what the ranks have of it. A rank contributes ``Σ wᵢ ∇lᵢ`` and ``Σ wᵢ`` over its own
rows, and both are divided after the reduction, so ranks may have any number of rows of any weight, none included. The
order of an epoch is one of all rows: every rank draws the same, as its generator is that of rank 0, and takes what it
has. So ``p`` ranks train as one process does that has all rows, one rank after the other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import data
from .checks import Array
from .distributed import NCCLRanks
from .kernels import program as programs
from .losses import LossFunction
from .optimizers import Optimizer
from .ranks import Elsewhere, Ranks
from .steps import StoredStep, StoredSteps

if TYPE_CHECKING:
    from .model import Sequential

# What travels behind the gradient: the sum of the losses, that of the weights, hits, and whether a rank wants to stop,
# or a checkpoint.
LOSS, WEIGHT, HITS, STOP, KEEP, TAIL = range(6)


# ------------------------------------------------------------------------------------------------ rows
class Shard(data.Chunk):
    """The rows of this rank among those of all; its order is of all rows, numbered one rank after the other.

    Parameters
    ----------
    chunk : Chunk
        The own rows.
    ranks : Ranks

    Attributes
    ----------
    count : int
        How many rows the ranks train on together.
    first : int
        The number of the first own row among all, as dropout counts them.
    unit : float
        The mean weight of a row: sums of weights are in multiples of it.
    """

    def __init__(self, chunk: data.Chunk, ranks: Ranks) -> None:
        self.__dict__.update(chunk.__dict__)
        self.ranks = ranks
        weighted = self.weight is not None
        lengths, counts, weights, flags = ranks.gathered(
            len(self.X), self.count, self.weight.sum() if weighted else len(self.X), weighted
        ).T
        if flags.any() and not weighted:
            self.weight = np.ones(len(self.X))
        self.counts, self.mine = counts.astype(np.int64), self.count
        self.count, self.unit = int(counts.sum()), float(weights.sum() / max(counts.sum(), 1))
        self.first, self.begin = (int(numbers[: ranks.rank].sum()) for numbers in (lengths, counts))
        self.own = None if self.weight is None else np.flatnonzero(self.weight)

    def order(self, model: Sequential, shuffle: data.Shuffle, epoch: int) -> Array:
        """A full permutation of all rows, or the ranks' own orders, from which a batch takes what is in proportion."""
        if shuffle is True:
            return data.epoch_rows(model._kernels, model.generator, range(self.count), True)
        parts = [
            start + data.epoch_rows(model._kernels, model.generator, range(count), shuffle)
            for start, count in zip(np.cumsum(self.counts) - self.counts, self.counts.tolist(), strict=True)
        ]
        how_far = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in self.counts.tolist()])
        return np.concatenate(parts)[np.argsort(how_far, kind="stable")]

    def here(self, rows: Array) -> Array:
        """Which of these rows of an order this rank has."""
        return np.flatnonzero((rows >= self.begin) & (rows < self.begin + self.mine))

    def local(self, rows: Array) -> Array:
        """The rows of X that this rank has of these rows of an order."""
        rows = rows[self.here(rows)] - self.begin
        return rows if self.own is None else self.own[rows]

    def _step_sums(self, of_rows, order, batch_size):
        """The sums over the global batches of what each row has."""
        steps = self.here(order) // batch_size
        sums = np.bincount(steps, of_rows(self.local(order)), minlength=-(-len(order) // batch_size)).astype(np.float64)
        self.ranks.communicator.allreduce_(sums)
        return sums


def check_rows(shard: Shard, validated: float, ranks: Ranks) -> None:
    """Refuse ranks that have no rows at all, and validation data on some of them only."""
    if not shard.count:
        raise ValueError(f"X must have at least one row on some of the {ranks.size} ranks, and none has")
    if 0 < validated < ranks.size:
        raise ValueError(
            f"validation_data must be there on all {ranks.size} ranks or on none, and {validated:.0f} have some; "
            f"a rank may pass arrays without rows"
        )


# ---------------------------------------------------------------------------------------------- steps
class Across:
    """What the ranks' rows of a batch have in common: its moments, and what they add to the gradient of every row.

    Attributes
    ----------
    weight : float64 array (n,)
        The weights of the own rows.
    total : float
        The sum of all weights of the batch, known after its first moments.
    """

    def __init__(self, ranks: Ranks, model: Sequential) -> None:
        self.ranks, self.network, self.to_host = ranks, model.network, model._kernels.to_host

    def __call__(self, operation: str, values: list[Any]) -> None:
        """Make what the own rows left that of the batch."""
        if operation == "batch_moments":
            _, _, eps, *written = values
            parts = self.moments(eps, *(np.array(self.to_host(array), np.float64) for array in written[:2]))
        elif operation == "norm_backward_params":
            *_, of_weight, of_bias = written = values
            written = [of_weight, of_bias]
            sums = np.stack([np.array(self.to_host(array), np.float64) for array in written])
            self.ranks.communicator.allreduce_(sums)
            parts = list(sums)
        else:
            return
        for array, part in zip(written, parts, strict=True):
            self.network.write(array, part)

    @np.errstate(all="ignore")
    def moments(self, eps: float, mean: Array, scale: Array) -> list[Array]:
        """Mean, scale and variance over the batch from those of the own rows (Chan, Golub & LeVeque, 1983)."""
        weight, communicator = self.weight.sum(), self.ranks.communicator
        first = np.array([weight, np.square(self.weight).sum(), np.count_nonzero(self.weight), *(weight * mean)])
        communicator.allreduce_(first)
        self.total, squares, counted = first[:3].tolist()
        of_all = first[3:] / self.total
        second = weight * (np.maximum(1 / np.square(scale) - eps, 0.0) + np.square(mean - of_all))
        communicator.allreduce_(second)
        biased = second / self.total
        unbiased = biased / (1 - squares / self.total**2) if counted > 1 else np.full_like(biased, np.nan)
        return [of_all, 1 / np.sqrt(biased + eps), unbiased]


class SharedStep(StoredStep):
    """A step whose gradients are summed over the ranks and divided by the sum of all weights.

    The gradient travels without padding, and behind it what else the ranks must know of the batch. Between GPUs the
    buffer travels as it lies there, and the rest through the host.
    """

    def __init__(
        self, model: Sequential, loss: LossFunction, optimizer: Optimizer, shard: Shard, accumulate: int
    ) -> None:
        super().__init__(model, loss, optimizer)
        self.shard, self.ranks = shard, shard.ranks
        self.across = Across(self.ranks, model) if model.program.meets else None
        self.communicator = self.ranks.communicator
        self.between_devices = not self.network.on_host and isinstance(self.communicator, NCCLRanks)
        self.flat = np.empty(self.network.count + TAIL, model.dtype)
        self.kept = self.network.like(1) if accumulate > 1 else None  # the gradients of batches before

    @np.errstate(all="ignore")
    def add(
        self, x: Any, y: Any, weight: Array | None, numbers: Array | None = None, keys: Array | None = None
    ) -> tuple[float, int]:
        """`StoredStep.add` of the global batch, of which this rank has these rows."""
        model, n = self.model, len(x)
        tail = np.zeros(TAIL)
        if n == 0:  # a row of weight 0 goes the way of the others, and adds nothing
            x, numbers, counts = np.zeros((1, model.in_features), model.dtype), np.zeros(1, np.int64), np.zeros(1)
        else:
            counts = np.ones(n) if weight is None else weight
        if self.across is not None:
            self.across.weight = counts
        out = model.outputs(x, True, counts, numbers, keys, self.across)
        if self.across is not None:
            model.last_call.give(programs.ROW_WEIGHT, counts / self.across.total)
        gradient = model._empty(out.shape, model.dtype)
        if n:
            value, of_mean, tail[HITS] = self.evaluate(out, y, weight)
            tail[WEIGHT] = counts.sum() / self.shard.unit
            tail[LOSS] = value * tail[WEIGHT]
            model._kernels.scale(of_mean, tail[WEIGHT], gradient)
        else:
            model._kernels.clear(gradient)
        model.backward_parameters(gradient)
        self.reduce(tail)
        value = float(tail[LOSS] / tail[WEIGHT])
        if math.isfinite(value):
            if self.kept is not None:
                self.keep()
            model.last_call.update_statistics()
            self.count += tail[WEIGHT]
        return value, int(tail[HITS])

    def reduce(self, tail: Array) -> None:
        """Sum the stored gradients, and what travels with them, over the ranks."""
        interrupts, keeps = self.ranks.interrupts, self.ranks.keeps
        tail[STOP] = interrupts.asked
        if keeps is not None:
            tail[KEEP] = keeps.asked if isinstance(keeps, Elsewhere) else keeps.requested
        if self.between_devices:
            self.communicator.allreduce_(tail)
            self.communicator.allreduce_(self.network.gradients)
        else:
            self.network.pack(self.network.gradients, self.flat)
            self.flat[-TAIL:] = tail
            self.communicator.allreduce_(self.flat)
            self.network.unpack(self.flat[:-TAIL], self.network.gradients)
            tail[:] = self.flat[-TAIL:]
        interrupts.came |= bool(tail[STOP] > 0)
        if keeps is not None and tail[KEEP] + tail[STOP] > 0:
            if isinstance(keeps, Elsewhere):
                keeps.asked, keeps.agreed = False, True
            else:
                keeps.requested = True

    def keep(self) -> None:
        """Add the stored gradients to those of the batches before."""
        kernels, network = self.model._kernels, self.network
        if self.count == 0:
            kernels.copy(network.gradients, self.kept[0])
            return
        pairs = zip(network.gradient_views, network.views_of(self.kept[0]), strict=True)
        for new, kept in ((a, b) for pair in pairs for a, b in zip(*pair, strict=True) if a is not None):
            new, kept = (view if len(view.shape) == 2 else view.reshape(1, -1) for view in (new, kept))
            kernels.add(kept, new, kept)

    def update(self) -> None:
        """Update by the mean over all rows since the last update."""
        if self.count and self.kept is not None:
            self.network.store_gradients()
            self.model._kernels.copy(self.kept[0], self.network.gradients)
        super().update()


class SharedSteps(StoredSteps):
    """`StoredSteps` of global batches, of which each rank makes its part."""

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        optimizer: Optimizer,
        shard: Shard,
        batch_size: int,
        accumulate: int,
    ) -> None:
        super().__init__(model, loss, optimizer, shard, batch_size, accumulate)
        self.step = SharedStep(model, loss, optimizer, shard, accumulate)

    def __call__(self, rows: Array, step_loss: Array, step_hits: Array) -> int:
        return super().__call__(self.chunk.local(rows), step_loss, step_hits)
