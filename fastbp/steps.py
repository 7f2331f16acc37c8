"""Training steps: many in one call of the kernels, or one at a time through stored gradients.

A loss of `losses` and an optimizer of `optimizers` train inside the kernels. A user's loss function ``(prediction,
target) -> (value, gradient)``, an optimizer with ``clip_norm``, and ``accumulate`` need stored gradients.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import checks
from .backend import Kernels
from .checks import Array
from .kernels import layout
from .losses import Loss, LossFunction, refuse_changed
from .optimizers import Optimizer

if TYPE_CHECKING:
    from .data import Chunk
    from .model import Sequential

# What the host does while steps run: a function that returns another, which is called when they are done, or None.
Meanwhile: TypeAlias = Callable[[], Callable[[], object] | None]

STAGING_BYTES = 16 << 20  # rows, as given and converted, held at once where the kernels cannot read the data directly


# --------------------------------------------------------------------------------- single steps
def check_loss(loss: Any) -> None:
    """Refuse what is no loss."""
    _not_a_class("loss", loss)
    if not callable(loss):
        raise TypeError(f"loss must be a loss or a function (prediction, target) -> (value, gradient), got {loss!r}")


def _not_a_class(argument, given):
    if isinstance(given, type):
        raise TypeError(f"{argument} must be an object, got a class; pass {argument}={given.__name__}()")


def check_pair(loss: Any, optimizer: Any) -> None:
    """Refuse a loss or an optimizer that cannot train."""
    check_loss(loss)
    _not_a_class("optimizer", optimizer)
    checks.instance("optimizer", optimizer, Optimizer)


def compiled(loss: LossFunction, optimizer: Optimizer) -> bool:
    """Whether steps with these run inside the kernels."""
    return isinstance(loss, Loss) and optimizer.clip_norm is None


def single_step(model: Sequential, loss: LossFunction, optimizer: Optimizer) -> CompiledStep | StoredStep:
    """What `Sequential.train_step` calls for this loss and optimizer: a function (x, y) -> loss."""
    check_pair(loss, optimizer)
    model.require_trainable()
    optimizer.require_free_for(model._parameters)
    return (CompiledStep if compiled(loss, optimizer) else StoredStep)(model, loss, optimizer)


NOT_RUN = -1  # where the kernels will write the hits of a step


def finished_steps(step_loss: Array, step_hits: Array) -> int:
    """How many steps have been made, by what they have written: for who was interrupted before he was told.

    An exception of a signal handler may come as soon as the kernels return. The updates are made then, and the
    optimizer is to count them.
    """
    return int(np.logical_and.accumulate((step_hits != NOT_RUN) & np.isfinite(step_loss)).sum())


class CompiledStep:
    """One step as one compiled call; what does not change between steps is prepared once."""

    def __init__(self, model: Sequential, loss: Loss, optimizer: Optimizer) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.dtype, self.outputs, self.meets = model.dtype, model.out_features, model.program.meets
        self.steps = model._kernels.network_train_steps
        self.network = model._parameters
        self.values, self.statistics = self.network.values, self.network.statistics
        self.ready = 0, 0, None, None  # the most rows, dimensions of the target, row numbers, and a workspace for them
        self.step_loss, self.step_hits = np.zeros(1), np.zeros(1, np.int64)
        self.staging = None if self.network.on_host else Staging(model._kernels)
        self.labels, self.bounded = loss.name in layout.LABEL_LOSSES, loss.target_range is not None

    def __call__(self, x: Any, y: Any) -> float:
        simple = type(x) is np.ndarray and x.dtype == self.dtype and x.ndim == 2 and checks.readable(x)
        if not simple or x.shape[1] != self.model.in_features:
            x = self.model._batch("x", x, self.model.in_features, self.dtype)
        n = len(x)
        if self.meets:
            checks.batch_that_meets(n)
        unchecked = False
        if self.staging is not None and checks.on_device(y):
            y = self.model._kernels.borrowing.as_device_array(y)
            unchecked = self.stays(y, n)
        if not unchecked:
            y = self.target(y, n)
        weight = None if unchecked else self.loss.row_weight(y, None)
        if n > self.ready[0] or y.ndim != self.ready[1] or n == 0:
            self.make_ready(x, y)
        _, _, all_rows, workspace = self.ready
        if self.staging is not None:
            x, y, weight = self.staging(x, y, weight)
        optimizer, generator = self.optimizer, self.model.generator.bit_generator
        before = generator.state if unchecked and self.model.program.drops else None
        coefficients = optimizer.next_coefficients()
        keys = self.model.step_keys(1)
        self.network.discard_gradients()
        self.step_hits[0] = NOT_RUN
        try:
            optimizer.step_count += self.steps(
                workspace, self.values, self.statistics, optimizer.state, coefficients, keys, x, y, weight,
                all_rows[:n], n, self.step_loss, self.step_hits,
            )  # fmt: skip
        except BaseException:
            optimizer.step_count += finished_steps(self.step_loss, self.step_hits)
            raise
        if self.staging is not None:
            self.staging.used()
        value = self.step_loss.item()
        if unchecked and self.labels and not math.isfinite(value):  # as a label that is out of range makes it
            try:
                self.loss.checked_target("y", self.model._kernels.to_host(y), n, self.outputs)
            except ValueError:
                if before is not None:
                    generator.state = before
                raise
        return value

    def stays(self, y: Any, rows: int) -> bool:
        """Whether a target on the device is as a kernel reads it, and nothing asks for a look at it before the step."""
        if self.ready[1] == 0 or self.loss.weighs_by_target or not y.is_c_contiguous():
            return False
        if self.labels:
            return y.dtype == np.int64 and tuple(y.shape) == (rows,)
        return y.dtype == self.dtype and tuple(y.shape) == (rows, self.outputs) and not self.bounded

    def make_ready(self, x: Array, y: Array) -> None:
        """Make a workspace for batches like this one: for its rows, and for labels or a matrix of targets."""
        checks.not_empty("x", x)
        self.optimizer.bind(self.network)
        workspace = self.model.training_workspace(self.loss, self.loss.kernel(y), self.optimizer, len(x))
        self.ready = len(x), y.ndim, np.arange(len(x)), workspace

    def target(self, y: Any, rows: int) -> Array:
        """The target as a kernel reads it."""
        if type(y) is np.ndarray and checks.readable(y):
            if self.labels and y.dtype == np.int64 and y.shape == (rows,):
                if checks.are_labels(y, self.outputs):
                    return self.loss.checked_target("y", y, rows, self.outputs) if self.ready[1] == 0 else y
            elif y.dtype == self.dtype and y.shape == (rows, self.outputs) and not self.bounded:
                return y
        y = self.model._kernels.to_host(y) if checks.on_device(y) else y
        y = self.loss.checked_target("y", y, rows, self.outputs)
        return checks.converted(y, np.int64 if self.loss.takes_labels(y) else self.dtype)


def checked_result(result: Any, shape: tuple[int, ...]) -> tuple[float, Array]:
    """(value, gradient) of a user's loss."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"loss must return (value, gradient), got {type(result).__name__}")
    value, gradient = float(result[0]), checks.numeric("the gradient that loss returns", result[1])
    checks.shape("the gradient that loss returns", gradient, shape)
    return value, gradient


class StoredStep:
    """Forward, loss and backward of batches, whose gradients are averaged by weight, then one update."""

    def __init__(self, model: Sequential, loss: LossFunction, optimizer: Optimizer) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.network = model._parameters
        self.count = 0.0  # the weight of the batches since the last update, as multiples of the first
        self.weightless = False  # whether there was a batch of weight 0 since then

    def __call__(self, x: Any, y: Any) -> float:
        """One batch, one update; returns the loss before it."""
        weight = None
        if isinstance(self.loss, Loss):
            x = self.model._batch("x", x, self.model.in_features, self.model.dtype)
            checks.not_empty("x", x)
            y = self.model._kernels.to_host(y) if checks.on_device(y) else y
            y = self.loss.checked_target("y", y, len(x), self.model.out_features)
            weight = self.loss.row_weight(y, None)
        self.count, self.weightless = 0.0, False
        value, _ = self.add(x, y, weight)
        self.update()
        return value

    def add(
        self, x: Any, y: Any, weight: Array | None, numbers: Array | None = None, keys: Array | None = None
    ) -> tuple[float, int]:
        """Add the gradients of a batch, unless its loss is not finite; returns (loss, hits).

        ``numbers`` are those that `Dropout` knows the rows by: by default their places in the batch. ``keys`` are its
        random bits, by default the next ones.
        """
        out = self.model.outputs(x, True, weight, numbers, keys)
        checks.not_empty("x", out)
        rows = len(out) if weight is None else float(weight.sum())
        if rows < layout.LEAST_WEIGHT:  # loss and gradient are 0, as in the kernels
            gradient = self.model._empty(out.shape, self.model.dtype)
            self.model._kernels.clear(gradient)
            self.model.backward_parameters(gradient, self.count > 0)
            self.weightless = True
            return 0.0, self.evaluate(out, y, None)[2] if isinstance(self.loss, Loss) else 0
        value, gradient, hits = self.evaluate(out, y, weight)
        if math.isfinite(value):
            self.first = rows if self.count == 0 else self.first
            share = rows / self.first
            if share != 1:
                gradient, whole = self.model._empty(gradient.shape, self.model.dtype), gradient
                self.model._kernels.scale(whole, share, gradient)
            self.model.backward_parameters(gradient, self.count > 0)
            self.model.last_call.update_statistics()
            self.count += share
        return value, hits

    def evaluate(self, out: Any, y: Any, weight: Array | None) -> tuple[float, Any, int]:
        """Value, gradient and hits of a batch; a user's loss gets arrays of the host."""
        model = self.model
        if isinstance(self.loss, Loss):
            gradient = model._empty(out.shape, model.dtype)
            value, hits = self.loss.of_batch(model._kernels, out, y, weight, gradient)
            return value, gradient, hits
        prediction = model.handed_out(out)
        arguments = (prediction, y) if weight is None else (prediction, y, weight)
        value, gradient = checked_result(self.loss(*arguments), prediction.shape)
        return value, model._batch("the gradient that loss returns", gradient, model.out_features, model.dtype), 0

    def update(self) -> None:
        """Update by the mean of the gradients since the last update, where there are some."""
        if self.count or self.weightless:
            if self.count not in (0, 1):
                self.network.scale_gradients(1 / self.count)
            self.count, self.weightless = 0.0, False
            self.optimizer.bind(self.network)
            self.optimizer.step()
        self.network.discard_gradients()


# --------------------------------------------------------------------------------- steps of an epoch
class CompiledSteps:
    """Runs slices of an epoch inside the kernels, from the data itself or from converted copies of its rows.

    Parameters
    ----------
    model, loss, optimizer
    chunk : Chunk
    batch_size : int
    once : bool
        Whether the data are used in one epoch only: then they are not kept on a device.
    before : CompiledSteps, optional
        Those of the chunk before; their memory for pieces is used again.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        chunk: Chunk,
        batch_size: int,
        once: bool = False,
        before: CompiledSteps | None = None,
    ) -> None:
        kernels = model._kernels
        self.kernels, self.model, self.loss, self.loss_kernel = kernels, model, loss, loss.kernel(chunk.y)
        self.values, self.statistics = model.network.values, model.network.statistics
        self.optimizer, self.batch_size = optimizer, batch_size
        self.workspace = self.workspace_for(batch_size)
        self.dtype, self.X, self.y, self.weight, self.first = model.dtype, chunk.X, chunk.y, chunk.weight, chunk.first
        self.labels, self.outputs, self.pieces = chunk.labels, model.out_features, None
        self.on_device = not model.network.on_host
        if model.network.on_host:
            X, y = self.X, self.y
            self.direct = (
                checks.readable(X) and checks.readable(y) and kernels.gathers(X.dtype) and kernels.gathers(y.dtype)
            )
        else:
            once = once and isinstance(self.X, np.ndarray)
            there = None if once else kernels.resident((self.X, self.y, self.weight), self.dtype)
            self.direct = there is not None
            self.X, self.y, self.weight = there or (kernels.to_host(self.X), self.y, self.weight)
            if not self.direct:
                self.pieces = kernels.pieces((self.X, self.y, self.weight), self.dtype, before and before.pieces)
        self.together = len(self.X)
        if not self.direct:
            row_bytes = sum(
                (array.itemsize + self.dtype.itemsize) * math.prod(array.shape[1:]) for array in (self.X, self.y)
            )
            self.together = max(1, STAGING_BYTES // (batch_size * row_bytes))

    def workspace_for(self, batch_size: int) -> Any:
        """A workspace for batches of up to so many rows."""
        return self.model.training_workspace(self.loss, self.loss_kernel, self.optimizer, batch_size)

    def start(self, order: Array, steps: int, done: int = 0) -> None:
        """Prepare this many steps on the rows in this order, of which some are done."""
        self.batch = done
        self.keys = self.model.step_keys(steps)
        if self.pieces is not None:
            self.pieces.start(order, self.together * self.batch_size)

    settled = True  # no gradients wait for an update between calls
    exchange: Any = None  # with other processes, as of `network_train_steps`
    meanwhile: Meanwhile | None = None  # during the next call; only steps on a device let the host go on

    @property
    def most(self) -> int:
        """The most steps the next call may have: those of a piece, where data come in pieces."""
        return self.together if self.pieces is None else self.together - self.batch % self.together

    def __call__(
        self,
        rows: Array,
        step_loss: Array,
        step_hits: Array,
        decay: Array | None = None,
        step_squares: Array | None = None,
    ) -> int:
        """Run the batches of these rows; return how many are done, fewer than all when a loss is not finite.

        What a callback has set in the optimizer holds from here on. With ``decay``, a number a batch, ``decay W`` is
        added to the gradients of weights, not of biases; ``step_squares`` is as of `network_train_steps`. Both need a
        network on the host.
        """
        steps = len(step_loss)
        coefficients = self.optimizer.next_coefficients(steps) if decay is None else self.optimizer.next_decaying(decay)
        keys = self.keys[self.batch : self.batch + steps]
        if not self.on_device or step_squares is not None:  # which a device refuses
            done = self._run(rows, coefficients, keys, step_loss, step_hits, step_squares)
        elif self.pieces is not None:
            done = self._run_piece(rows, coefficients, keys, step_loss, step_hits)
        else:
            wait = self._launched(coefficients, keys, (self.X, self.y, self.weight), self._numbered(rows))
            done = self._finished(wait, step_loss, step_hits)
        self.batch += done + (done < steps)
        if done < steps and self.labels:
            failed = rows[done * self.batch_size : (done + 1) * self.batch_size]
            y, weight = (
                None if array is None else self.kernels.to_host(array)[failed] for array in (self.y, self.weight)
            )
            refuse_changed("y", y, weight, self.outputs, failed)
        return done

    def _run(self, rows, coefficients, keys, step_loss, step_hits, step_squares):
        """Run steps on the data itself, or on a copy."""
        X, y, weight = self.X, self.y, self.weight
        if not self.direct:
            X = checks.converted(X[rows], self.dtype)
            y = y[rows] if self.labels else checks.converted(y[rows], self.dtype)
            weight = None if weight is None else weight[rows]
            rows = np.stack([np.arange(len(rows)), rows + self.first])
        else:
            rows = self._numbered(rows)
        step_hits.fill(NOT_RUN)
        try:
            done = self.kernels.network_train_steps(
                self.workspace, self.values, self.statistics, self.optimizer.state, coefficients, keys, X, y, weight,
                rows, self.batch_size, step_loss, step_hits, step_squares, self.exchange,
            )  # fmt: skip
        except BaseException:
            self.optimizer.step_count += finished_steps(step_loss, step_hits)
            raise
        self.optimizer.step_count += done
        return done

    def _numbered(self, rows):
        """Rows of the data, with the numbers that dropout knows them by where these are others."""
        return np.stack([rows, rows + self.first]) if self.first else rows

    def _run_piece(self, rows, coefficients, keys, step_loss, step_hits):
        """Run steps on a piece on the device; meanwhile the host prepares the next one."""
        piece, batch = divmod(self.batch, self.together)
        arrays = self.pieces.arrays_of(piece)
        numbers = np.stack([batch * self.batch_size + np.arange(len(rows)), rows + self.first])
        wait = self._launched(coefficients, keys, arrays, numbers)

        def prepare():
            self.pieces.launched(piece)
            self.pieces.prepare(piece + 1)

        return self._finished(wait, step_loss, step_hits, prepare=prepare)

    def _launched(self, coefficients, keys, arrays, rows):
        """Launch steps on arrays of a device; returns the function that waits for them."""
        return self.kernels.launch_train_steps(
            self.workspace, self.values, self.statistics, self.optimizer.state, coefficients, keys, *arrays, rows,
            self.batch_size,
        )  # fmt: skip

    def _finished(self, wait, step_loss, step_hits, *, prepare=None):
        """Call ``prepare``, where there is one, and do what else there is to do while steps run; then wait for them."""
        step_hits.fill(NOT_RUN)
        try:
            try:
                if prepare is not None:
                    prepare()
                then = self.meanwhile() if self.meanwhile else None
            finally:
                done = wait(step_loss, step_hits)
        except BaseException:
            self.optimizer.step_count += finished_steps(step_loss, step_hits)
            raise
        self.optimizer.step_count += done
        if then is not None:
            then()
        return done


class Staging:
    """Memory of a device for the rows of a step, whose addresses stay the same, so that a captured step is replayed.

    Rows of the host go by page-locked memory, from which the device copies while the host goes on; rows that are on the
    device are copied there.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.there: dict[int, Any] = {}  # place among the arguments -> memory of the device
        self.here: dict[int, Array] = {}  # and page-locked memory of the host
        self.views: dict[int, tuple[int, Any]] = {}  # and how many rows the last step had, and the memory of these
        self.under_way = False  # whether copies may not have ended
        weakref.finalize(self, _release, kernels, self.here).atexit = False

    def __call__(self, *arrays: Any) -> list[Any]:
        """The arrays in their places; None is returned unchanged. After the step, `used` is to be called."""
        if self.under_way:  # the step before was interrupted
            self.kernels.synchronize()
        self.under_way = True
        return [None if array is None else self._placed(place, array) for place, array in enumerate(arrays)]

    def used(self) -> None:
        """Note that the host has waited for a step."""
        self.under_way = False

    def _placed(self, place, array):
        rows, of_host, there = len(array), isinstance(array, np.ndarray), self.there.get(place)
        if there is None or len(there) < rows or (there.dtype, there.shape[1:]) != (array.dtype, array.shape[1:]):
            there = self.there[place] = self.kernels.empty(array.shape, array.dtype)
            self.here.pop(place, None)
            self.views.pop(place, None)
        if self.views.get(place, (None, None))[0] != rows:
            self.views[place] = rows, there[:rows]
        view = self.views[place][1]
        if of_host:
            if place not in self.here:
                self.here[place] = self.kernels.memory.pinned(there.shape, there.dtype)
            array, given = self.here[place][:rows], array
            array[...] = given
        return self.kernels.memory.to_device(array, view)


def _release(kernels, here):
    """Wait for the copies that may still read page-locked memory, before it is freed."""
    if here:
        kernels.synchronize()


class Rows:
    """Rows of matrices in the dtype of a network: gathered by the kernels where they can read the data."""

    def __init__(self, model: Sequential, matrices: Sequence[Any]) -> None:
        self.kernels, self.empty, self.dtype = model._kernels, model._empty, model.dtype
        if model.network.on_host:
            self.direct = all(checks.readable(matrix) and self.kernels.gathers(matrix.dtype) for matrix in matrices)
        else:
            there = self.kernels.resident(matrices, self.dtype)
            self.direct = there is not None
            matrices = there or [self.kernels.to_host(matrix) for matrix in matrices]
        self.matrices = matrices

    def __call__(self, rows: Array) -> list[Any]:
        """These rows of every matrix."""
        if not self.direct:
            return [checks.converted(matrix[rows], self.dtype) for matrix in self.matrices]
        gathered = [self.empty((len(rows), matrix.shape[1]), self.dtype) for matrix in self.matrices]
        rows = self.kernels.to_device(rows)
        for matrix, out in zip(self.matrices, gathered, strict=True):
            self.kernels.gather(matrix, rows, out)
        return gathered


class StoredSteps:
    """Runs batches through stored gradients, one a call, with an update after every ``accumulate`` of them."""

    most = 1
    meanwhile: Meanwhile | None = None  # never called: these steps wait for what they have launched

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        optimizer: Optimizer,
        chunk: Chunk,
        batch_size: int,
        accumulate: int,
    ) -> None:
        self.step = StoredStep(model, loss, optimizer)
        self.step_keys = model.step_keys
        self.chunk, self.batch_size, self.accumulate = chunk, batch_size, accumulate
        # Labels are not converted, and a user's loss reads targets in their own dtype.
        self.gathers_y = isinstance(loss, Loss) and not chunk.labels
        self.batch_of = Rows(model, [chunk.X, chunk.y] if self.gathers_y else [chunk.X])

    def start(self, order: Array, steps: int, done: int = 0) -> None:
        """Prepare this many batches, of which whole groups are done; the last group may be shorter."""
        self.batch, self.batches = done, steps
        self.keys = self.step_keys(steps)
        self.step.count, self.step.weightless = 0.0, False

    @property
    def settled(self) -> bool:
        """Whether the last group of ``accumulate`` batches is complete, so that no gradients wait for an update."""
        return self.batch % self.accumulate == 0 or self.batch == self.batches

    def __call__(self, rows: Array, step_loss: Array, step_hits: Array) -> int:
        chunk = self.chunk
        weight = None if chunk.weight is None else chunk.weight[rows]
        X, *y = self.batch_of(rows)
        y = y[0] if self.gathers_y else chunk.y[rows]
        keys = self.keys[self.batch : self.batch + 1]
        step_loss[0], step_hits[0] = self.step.add(X, y, weight, rows + chunk.first, keys)
        self.batch += 1
        if self.batch % self.accumulate == 0 or self.batch == self.batches:
            self.step.update()
        return int(math.isfinite(step_loss[0]))
