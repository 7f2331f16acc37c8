"""Rows that lie on several ranks: which rows are whose, and steps whose gradients are summed over the ranks.

The global batch is the union of what the ranks have of it. A rank contributes ``Σ wᵢ ∇lᵢ / w`` over its own rows, where
``w`` is the sum of all weights of the batch, so ranks may have any number of rows of any weight, none included. Steps
inside the kernels know ``w`` at the start of an epoch; through stored gradients ``Σ wᵢ`` is reduced with each of them,
and what is divided is the sum. The order of an epoch is one of all rows: every rank draws the same, as its generator is
that of rank 0, and takes what it has. So ``p`` ranks train as one process does that has all rows, one rank after the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import data, parameters
from .checks import Array
from .distributed import NCCLRanks
from .kernels import program as programs
from .losses import Loss, LossFunction
from .optimizers import Optimizer
from .ranks import Elsewhere, Ranks, agreed
from .steps import CompiledSteps, StoredStep, StoredSteps

if TYPE_CHECKING:
    from .model import Sequential

# What travels behind the gradient: the sum of the losses, hits, the sum of the weights, which steps inside the kernels
# know before, and whether a rank wants to stop, or a checkpoint.
LOSS, HITS, WEIGHT, STOP, KEEP, TAIL = range(6)


# ------------------------------------------------------------------------------------------------ rows
class Shard(data.Chunk):
    """The rows of this rank among those of all; its order is of all rows, numbered one rank after the other.

    Parameters
    ----------
    chunk : Chunk
        The own rows.
    ranks : Ranks
    by_place : bool
        Whether an order is that of a function, which numbers the rows of weight 0 too.

    Attributes
    ----------
    count : int
        How many rows the ranks train on together.
    first : int
        The number of the first own row among all of the epoch, as dropout counts them.
    begin, mine : int
        The number of the first own row in an order, and how many there are.
    own : int64 array (mine,) or None
        Those rows in X.
    unit : float
        The mean weight of a row: sums of weights are in multiples of it.
    """

    def __init__(self, chunk: data.Chunk, ranks: Ranks, by_place: bool = False) -> None:
        self.__dict__.update(chunk.__dict__)
        self.ranks = ranks
        weighted, length = self.weight is not None, len(self.X)
        befores, lengths, counts, weights, flags, labels = ranks.gathered(
            self.first, length, self.count, self.weight.sum() if weighted else length, weighted, self.labels
        ).T
        if 0 < labels.sum() < ranks.size:
            raise ValueError(
                f"y must be labels on all {ranks.size} ranks or on none, and on {labels.sum():.0f} of them it is"
            )
        if flags.any() and not weighted:
            self.weight = np.ones(length)
        self.counts = (lengths if by_place else counts).astype(np.int64)
        self.begin, self.mine = int(self.counts[: ranks.rank].sum()), int(self.counts[ranks.rank])
        self.own = None if self.weight is None or by_place else np.flatnonzero(self.weight)
        self.first = int(befores.sum() + lengths[: ranks.rank].sum())
        self.places = range(int(lengths.sum()))
        self.count, self.unit = int(counts.sum()), float(weights.sum() / max(counts.sum(), 1))

    def order(self, model: Sequential, shuffle: data.Shuffle, epoch: int) -> Array:
        """A full permutation of all rows, or the ranks' own orders, from which a batch takes what is in proportion.

        A function of rank 0 is asked.
        """
        if callable(shuffle):
            told = {}
            with agreed(self.ranks):
                if self.ranks.first:
                    told["order"] = data.epoch_rows(model._kernels, model.generator, self.places, shuffle, None, epoch)
            return self.ranks.shared(None, told)[1]["order"]
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
        return self.in_x(rows[self.here(rows)])

    def in_x(self, rows: Array) -> Array:
        """The rows of X that these rows of an order are, all of which this rank has."""
        rows = rows - self.begin
        return rows if self.own is None else self.own[rows]

    def _step_sums(self, of_rows, order, batch_size):
        """The sums over the global batches of what each row has."""
        steps = self.here(order) // batch_size
        sums = np.bincount(steps, of_rows(self.local(order)), minlength=-(-len(order) // batch_size)).astype(np.float64)
        self.ranks.communicator.allreduce_(sums)
        return sums


class Shards:
    """The chunks of iterables on all ranks: the first of every rank is a chunk of all of them, and so on.

    Parameters
    ----------
    chunks : Chunks
        The own ones.
    ranks : Ranks
    by_place : bool
        As of a `Shard`.
    """

    def __init__(self, chunks: data.Chunks, ranks: Ranks, by_place: bool) -> None:
        self.chunks, self.ranks, self.by_place = chunks, ranks, by_place

    def epoch(self, done: int = 0) -> Iterator[Shard]:
        """The chunks of an epoch; those that are done are taken and passed over."""
        chunks, size = self.chunks.epoch(done), self.ranks.size
        while True:
            with agreed(self.ranks):
                chunk = next(chunks, None)
            there = int(self.ranks.total(chunk is not None)[0])
            if chunk is None and there == 0:
                return
            if chunk is None or there < size:
                raise ValueError(
                    f"X must give as many chunks on every rank, and {there} of {size} ranks have one more than the "
                    f"others; a chunk may have arrays without rows"
                )
            shard = Shard(chunk, self.ranks, self.by_place)
            if not shard.places:
                raise ValueError(f"a chunk must have at least one row on some of the {size} ranks, and none has")
            yield shard


def shared(source: data.Chunk | data.Chunks, ranks: Ranks, by_place: bool) -> Shard | Shards:
    """The data of all ranks, of which these are the own ones."""
    return (Shard if isinstance(source, data.Chunk) else Shards)(source, ranks, by_place)


def check_rows(source: Shard | Shards, validated: float, ranks: Ranks) -> None:
    """Refuse ranks that have no rows at all, and validation data on some of them only."""
    if isinstance(source, Shard) and not source.count:
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


def ask(ranks: Ranks, tail: Array) -> None:
    """Let the others know, with the gradient, whether this rank wants to stop, or a checkpoint."""
    tail[STOP] = ranks.interrupts.asked
    if ranks.keeps is not None:
        tail[KEEP] = ranks.keeps.asked if isinstance(ranks.keeps, Elsewhere) else ranks.keeps.requested


def answer(ranks: Ranks, tail: Array) -> None:
    """Do what some rank asked for."""
    keeps = ranks.keeps
    ranks.interrupts.came |= bool(tail[STOP] > 0)
    if keeps is not None and tail[KEEP] + tail[STOP] > 0:
        if isinstance(keeps, Elsewhere):
            keeps.asked, keeps.agreed = False, True
        else:
            keeps.requested = True


class Exchange:
    """What a step inside the kernels does with the other ranks, as `network_train_steps` asks for it.

    Attributes
    ----------
    weight : float
        The sum of all weights of the batch.
    buffer : array (parameters that train + TAIL,)
        The gradient, and what travels behind it.
    """

    def __init__(self, ranks: Ranks, model: Sequential, clip_norm: float | None) -> None:
        self.ranks, self.kernels, self.clip_norm, self.weight = ranks, model._kernels, clip_norm, 0.0
        self.across = Across(ranks, model) if model.program.meets else None
        size = model.program.trained_size
        self.buffer = np.zeros(size + TAIL, model.dtype)
        self.gradient, self.places = self.buffer[:size], np.array([[0, 1, size, size]])

    def share(self, operation: str, values: list[Any]) -> None:
        """Make moments and sums of the own rows those of the batch."""
        if self.across is not None:
            self.across(operation, values)

    @np.errstate(all="ignore")
    def reduce(self) -> None:
        """Sum the gradient, and what travels with it, over the ranks, and clip it where that is wanted."""
        tail = self.buffer[-TAIL:]
        ask(self.ranks, tail)
        self.ranks.communicator.allreduce_(self.buffer)
        answer(self.ranks, tail)
        if self.clip_norm is not None:
            parameters.clip(self.kernels, self.places, self.gradient, np.asarray, self.clip_norm)


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
        ask(self.ranks, tail)
        if self.between_devices:
            self.communicator.allreduce_(tail)
            self.communicator.allreduce_(self.network.gradients)
        else:
            self.network.pack(self.network.gradients, self.flat)
            self.flat[-TAIL:] = tail
            self.communicator.allreduce_(self.flat)
            self.network.unpack(self.flat[:-TAIL], self.network.gradients)
            tail[:] = self.flat[-TAIL:]
        answer(self.ranks, tail)

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


def shared_steps(
    model: Sequential, loss: LossFunction, optimizer: Optimizer, shard: Shard, batch_size: int, accumulate: int
) -> CompiledSharedSteps | SharedSteps:
    """What runs the steps of a shard: inside the kernels, or through stored gradients where those are wanted."""
    if isinstance(loss, Loss) and accumulate == 1 and model.network.on_host:
        return CompiledSharedSteps(model, loss, optimizer, shard, batch_size)
    return SharedSteps(model, loss, optimizer, shard, batch_size, accumulate)


class CompiledSharedSteps(CompiledSteps):
    """Runs global batches inside the kernels; between gradient and update of each is a collective."""

    def __init__(self, model: Sequential, loss: Loss, optimizer: Optimizer, shard: Shard, batch_size: int) -> None:
        super().__init__(model, loss, optimizer, shard, max(1, batch_size * shard.mine // max(shard.count, 1)))
        self.shard, self.batch_size = shard, batch_size
        self.exchange = Exchange(shard.ranks, model, optimizer.clip_norm)

    @property
    def most(self) -> int:
        """One: a rank is told after every step whether another wants to stop."""
        return 1

    def start(self, order: Array, steps: int, done: int = 0) -> None:
        """As of `CompiledSteps`; the workspace is for the most rows that this rank has of a batch."""
        super().start(order, steps, done)
        here, starts = self.shard.here(order), np.arange(steps + 1) * self.batch_size
        self.rows, self.parts = self.shard.in_x(order[here]), np.searchsorted(here, starts)
        self.workspace = self.workspace_for(max(1, int(np.diff(self.parts).max())))
        self.weights = np.diff(np.minimum(starts, len(order))).astype(np.float64)
        if self.shard.weight is not None:
            self.weights = self.shard.step_weights(order, self.batch_size)

    def __call__(self, rows: Array, step_loss: Array, step_hits: Array) -> int:
        step, exchange, weight = self.batch, self.exchange, self.shard.weight
        own, exchange.weight = self.rows[self.parts[step] : self.parts[step + 1]], self.weights[step].item()
        if exchange.across is not None:
            exchange.across.weight = np.ones(len(own)) if weight is None else weight[own]
        coefficients = self.optimizer.next_coefficients()
        done = self._run(own, coefficients, self.keys[step : step + 1], step_loss, step_hits, None)
        self.batch += 1
        return done


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
