"""Training on several ranks: which rows are whose, what is summed over the ranks, and who decides.

The global batch is the union of what the ranks have of it. A rank contributes ``Σ wᵢ ∇lᵢ`` and ``Σ wᵢ`` over its own
rows, and both are divided after the reduction, so ranks may have any number of rows of any weight, none included. The
order of an epoch is one of all rows: every rank draws the same, as its generator is that of rank 0, and takes what it
has. So ``p`` ranks train as one process does that has all rows, one rank after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import data
from .checks import Array
from .distributed import Communicator, NCCLRanks
from .kernels import program as programs
from .losses import LossFunction
from .optimizers import Optimizer
from .steps import Interrupts, StoredStep, StoredSteps

if TYPE_CHECKING:
    from .model import Sequential

# What travels behind the gradient: the sum of the losses, that of the weights, hits, and whether a rank wants to stop,
# or a checkpoint.
LOSS, WEIGHT, HITS, STOP, KEEP, TAIL = range(6)
MEMBERS = "rank", "size", "allreduce_", "broadcast_", "barrier"


def of(communicator: Any) -> Ranks | None:
    """The ranks of a communicator; None where there is one process, which needs nobody."""
    if communicator is None:
        return None
    missing = [name for name in MEMBERS if not hasattr(communicator, name)]
    if missing:
        raise TypeError(
            f"communicator must have {', '.join(MEMBERS)}, and {communicator!r} lacks {', '.join(missing)}; "
            f"pass fastbp.distributed.mpi()"
        )
    return Ranks(communicator) if communicator.size > 1 else None


@contextmanager
def agreed(ranks: Ranks | None) -> Iterator[None]:
    """What follows succeeds on all ranks, or raises on all: an error of one is told to the others."""
    if ranks is None:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    ranks.agree(failure)


class Ranks:
    """The ranks of a training; every method is called by all of them at the same place.

    Attributes
    ----------
    interrupts : SharedInterrupts
    keeps : Checkpoints, Elsewhere or None
        What a request for a checkpoint is told to.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator, self.rank, self.size = communicator, communicator.rank, communicator.size
        self.first = self.rank == 0
        self.interrupts, self.keeps = SharedInterrupts(), None

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over the ranks."""
        buffer = np.array(numbers, np.float64)
        self.communicator.allreduce_(buffer)
        return buffer.tolist()

    def gathered(self, *numbers: float) -> Array:
        """The numbers of every rank, float64 (size, count)."""
        buffer = np.zeros((self.size, len(numbers)))
        buffer[self.rank] = numbers
        self.communicator.allreduce_(buffer)
        return buffer

    def told(self, text: str, root: int = 0) -> str:
        """The text of one rank."""
        raw = np.frombuffer(text.encode(), np.uint8)
        size = np.array([len(raw)], np.int64)
        self.communicator.broadcast_(size, root)
        buffer = np.zeros(int(size[0]), np.uint8)
        if self.rank == root:
            buffer[:] = raw
        if buffer.size:
            self.communicator.broadcast_(buffer, root)
        return buffer.tobytes().decode()

    def shared(self, config: Any, arrays: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        """JSON and arrays of rank 0; on the others what is passed counts for nothing."""
        layout = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
        config, layout = json.loads(self.told(json.dumps([config, layout]) if self.first else ""))
        received = {}
        for name, dtype, shape in layout:
            buffer = np.array(arrays[name], order="C") if self.first else np.empty(shape, dtype)
            if buffer.nbytes:
                self.communicator.broadcast_(buffer.reshape(-1).view(np.uint8))
            received[name] = buffer
        return config, received

    def agree(self, error: Exception | None) -> None:
        """Raise where some rank has an error: there its own, elsewhere one that tells of it."""
        failed = np.flatnonzero(self.gathered(error is not None)[:, 0])
        if not failed.size:
            return
        message = self.told(f"{type(error).__name__}: {error}", int(failed[0]))
        if error is not None:
            raise error
        raise RuntimeError(f"rank {failed[0]} of {self.size} refused to train: {message}")

    def require_same(self, description: dict[str, Any]) -> None:
        """Refuse to train unless every rank is described as rank 0 is."""
        here = json.loads(json.dumps(description))
        there = json.loads(self.told(json.dumps(here)))
        with agreed(self):
            for key, value in there.items():
                if here[key] != value:
                    raise ValueError(
                        f"all ranks must train the same network by the same code: {key} is {here[key]!r} on rank "
                        f"{self.rank}, and {value!r} on rank 0"
                    )

    def begin_alike(self, model: Sequential, optimizer: Optimizer) -> None:
        """Give all ranks the weights, the generator and the state of the optimizer that rank 0 has."""
        generator, state = model.generator.bit_generator, optimizer.state_dict()
        scalars = [generator.state, state.pop("step_count")]
        scalars, state = self.shared(scalars, state)
        _, weights = self.shared(None, model.state_dict())
        if not self.first:
            generator.state, step_count = scalars
            model.load_state_dict(weights)
            optimizer.load_state_dict(state | {"step_count": step_count})

    def decided(self, stopped: bool, optimizer: Optimizer) -> bool:
        """Whether rank 0 stops; the learning rate, where it is a number, becomes that of rank 0 too."""
        decision = np.array([stopped, 0.0 if callable(optimizer.lr) else optimizer.lr], np.float64)
        self.communicator.broadcast_(decision)
        if not callable(optimizer.lr) and optimizer.lr != decision[1]:
            optimizer.lr = float(decision[1])
        return bool(decision[0])


@cache
def code() -> str:
    """A hash of the sources of this library."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted({*package.rglob("*.py"), *(package / "kernels").rglob("*.py")}):  # which may be a link
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def description(training: Any, call: dict[str, Any], unit: dict[str, Any]) -> dict[str, Any]:
    """What must be the same on every rank, as JSON."""
    return call | {
        "code of fastbp": code(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "unit": unit,
        "epochs": training.settings.epochs,
        "kind of target": "labels" if training.source.labels else "values",
        "batches watched by callbacks": training.each_batch,
    }


# ------------------------------------------------------------------------------------- stopping, keeping
class SharedInterrupts(Interrupts):
    """A Ctrl-C is told to the other ranks with the next gradient, and raised by all after the same step.

    Attributes
    ----------
    asked : bool
        Whether one came here.
    """

    asked = False

    def _handle(self, number, frame):
        self.asked = True

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.came |= kind is None and self.asked  # after the last step nobody waits for this rank
        super().__exit__(kind, error, traceback)


class Elsewhere:
    """Stands for the checkpoints on ranks other than 0, which writes them: a request here is told to rank 0."""

    def __init__(self, every: int) -> None:
        self.every, self.asked, self.agreed = every, False, False

    @property
    def requested(self) -> bool:
        """Whether all ranks know of a request."""
        return self.agreed

    @requested.setter
    def requested(self, value: bool) -> None:
        self.asked = value

    def write(self, training: Any) -> None:
        """Rank 0 does."""
        self.agreed = False


# ---------------------------------------------------------------------------------------------- rows
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
