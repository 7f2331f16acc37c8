"""Training in slices of steps: Ctrl-C is answered between them, and the weights of before can come back."""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]  # `signal` adds a look-up in an enum: 5 us a call
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from .checks import Array
from .optimizers import Optimizer
from .parameters import Parameters

if TYPE_CHECKING:
    from .steps import CompiledSteps, Meanwhile, StoredSteps

SLICE_SECONDS = 0.1  # of training steps in one call of the kernels: Ctrl-C is answered between calls
SLOW = 1e9  # operations a second that the first slice assumes
FIRST_STEPS = 256  # the most steps that the first slice may have, whatever they cost
SLICE_GROWTH = 16  # how many times longer a slice may be than the one before, which was timed


class Interrupts:
    """While steps run, Ctrl-C waits for the end of their slice, where weights, state and count are consistent.

    Setting ``came`` from another thread does what Ctrl-C does. A handler that a callback sets stays.
    """

    def __init__(self) -> None:
        self.came = False
        self.installed = False  # whether Ctrl-C may come here
        self.deferred = True  # until the body of the with statement runs, which then raises what came before

    def __enter__(self) -> Interrupts:
        self.deferred = True
        main = threading.current_thread() is threading.main_thread()
        if main and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            self.installed = True
            try:
                _signal.signal(_signal.SIGINT, self._handle)
            except BaseException:  # of another signal's handler
                self.restore()
                raise
        return self

    def _handle(self, number, frame):
        if not self.deferred:
            raise KeyboardInterrupt
        self.came = True

    def raise_deferred(self) -> None:
        """End a slice; raises the Ctrl-C that came during it."""
        self.deferred = False
        if self.came:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.deferred = True
        try:
            self.restore()
        except BaseException:  # of another signal's handler: it came once
            self.restore()
            raise
        if kind is None:
            self.raise_deferred()

    def restore(self) -> None:
        """Let Ctrl-C do what it did before."""
        if self.installed:
            if _signal.getsignal(_signal.SIGINT) == self._handle:  # a callback may have set its own, which stays
                _signal.signal(_signal.SIGINT, _signal.default_int_handler)
            self.installed = False


class Slices:
    """Cuts epochs into calls short enough for Ctrl-C, by the time that earlier steps took.

    Parameters
    ----------
    network : Parameters
        What the steps change. Its size gives the operations of a step, for the first slice.
    interrupts : Interrupts
    most : int or None
        The most steps a slice may have.
    """

    def __init__(self, network: Parameters, interrupts: Interrupts, most: int | None = None) -> None:
        self.network, self.interrupts, self.most = network, interrupts, most
        self.steps = None

    def __call__(
        self,
        run_steps: CompiledSteps | StoredSteps,
        order: Array,
        step_loss: Array,
        step_hits: Array,
        done: int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Iterator[tuple[int, int, bool]]:
        """Run the batches of ``order`` that are not done; yields (first, end, failed) after every slice.

        ``meanwhile`` is for the last slice, of steps that let the host go on. Where a slice failed, the loss in
        ``step_loss[end]`` is not finite, and that batch is left out. A Ctrl-C that came during a slice is left to the
        caller.
        """
        batch_size, steps = run_steps.batch_size, len(step_loss)
        if self.steps is None:
            row_operations = 6 * self.network.size
            self.steps = max(1, min(int(SLICE_SECONDS * SLOW / (batch_size * row_operations)), FIRST_STEPS))
        while done < steps:
            most = run_steps.most if self.most is None else self.most
            stop = min(done + min(self.steps, most), steps)
            rows = order[done * batch_size : stop * batch_size]
            run_steps.meanwhile = meanwhile if stop == steps else None
            begin = time.perf_counter()
            self.interrupts.deferred = True
            finished = self.network.changes.under_way(run_steps, rows, step_loss[done:stop], step_hits[done:stop])
            self.interrupts.deferred = False
            seconds = time.perf_counter() - begin
            run_steps.meanwhile = None  # it holds on to the training, which holds on to these steps
            if finished:
                self.steps = max(1, min(int(SLICE_SECONDS * finished / seconds), SLICE_GROWTH * self.steps))
            end = done + finished
            yield done, end, end < stop
            done = end + (end < stop)


class Snapshot:
    """The weights at the start of the last epoch that began with finite ones.

    Attributes
    ----------
    values : buffers, or None
    epoch : int or None
        Whose start they are of.
    before : int
        Updates that the optimizer had done when training began.
    """

    def __init__(self, network: Parameters, optimizer: Optimizer) -> None:
        self._network, self._optimizer = network, optimizer
        self._found = None  # the version of the weights that were found to be finite

    def begin(self) -> None:
        """A training begins: stored gradients are discarded, which gives the weights another version."""
        found = self._found == self._network.version
        self._network.discard_gradients()
        self._found = self._network.version if found else None
        self.before = self._optimizer.step_count
        self.values = self.epoch = None
        self._looked: tuple[int, bool] | None = None  # version of the weights, and whether they were finite then

    def take(self, epoch: int) -> None:
        """Keep the weights, unless some are not finite."""
        network = self._network
        unchanged = self._found == network.version and not network.handed_out  # since `finite_after` looked
        if unchanged or network.all_finite():
            network.kept = self.values = network.copied_values(network.kept)
            self.epoch = epoch

    def look(self) -> Callable[[], None]:
        """Begin to look at the weights that launches of steps will leave; to be called once these have been made."""
        version, finite = self._network.version, self._network.launch_all_finite()

        def seen():
            self._looked = version, finite()

        return seen

    def finite_after(self, epoch: int) -> bool:
        """Whether the weights at the end of an epoch are finite, where they were so at its start."""
        looked, self._looked = self._looked, None
        if self.epoch != epoch:
            return True
        version, finite = looked or (None, False)
        if version != self._network.version:  # nobody has looked, or somebody has written since
            finite = self._network.all_finite()
        self._found = self._network.version if finite else None
        return finite

    def restore(self) -> str:
        """Restore the weights and reset the optimizer, where there were updates; returns what was done."""
        if self._optimizer.step_count == self.before or self.epoch is None:
            return "nothing has been changed"
        self._network.restore_values(self.values)
        self._optimizer.reset()
        return f"weights are back at those epoch {self.epoch} began with, and the optimizer at its beginning"
