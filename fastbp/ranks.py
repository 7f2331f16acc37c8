"""The ranks of a training: what they tell each other, what they agree on, and who decides."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import Array
from .distributed import Communicator
from .optimizers import Optimizer
from .slices import Interrupts

if TYPE_CHECKING:
    from .model import Sequential

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


def agreed(ranks: Ranks | None) -> AbstractContextManager[None]:
    """What follows succeeds on all ranks, or raises on all: an error of one is told to the others."""
    return nullcontext() if ranks is None else _agreed(ranks)


@contextmanager
def _agreed(ranks):
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
