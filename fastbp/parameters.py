"""The parameters of a network and their gradients: one flat, padded, aligned buffer each; and running statistics.

The program (``kernels/program.py``) says where a weight or a bias lies. What users see is named views of shape
``(in, out)`` and ``(out,)`` and packed copies; what padding holds means nothing. Running statistics of batch
normalisation have a buffer of their own: no optimizer changes them, and they are no part of packed copies.

The buffers lie in the memory that the backend computes with. On the host a named view shares the buffer; on a device it
is a read-only copy, and values are written by assigning whole arrays.
"""

from __future__ import annotations

import math
import threading
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from . import backend, checks
from .checks import Array
from .kernels import program as programs
from .kernels.walk import views_in

T = TypeVar("T")

LEAST_SQUARED = 2.0**-900  # of a norm: the squares of smaller numbers lose digits


class Changes:
    """While steps run, values, statistics and the state of optimizers change together; who copies them waits.

    On the thread that changes them, in a signal handler, waiting would have no end: it is refused.
    """

    def __init__(self) -> None:
        self._lock, self._next = threading.RLock(), threading.RLock()  # who waits holds the second, and comes next
        self._thread = None  # that changes; known before the lock is taken, so that a handler never waits for itself

    def under_way(self, change: Callable[..., T], *arguments: Any) -> T:
        """Call ``change``, and hold off those who copy; what it returns."""
        before = self._thread
        try:
            with self._next:
                self._thread = threading.get_ident()
            with self._lock:
                return change(*arguments)
        finally:
            self._thread = before

    @contextmanager
    def none(self, what: str) -> Iterator[None]:
        """Hold off changes; ``what`` is being done is for the error."""
        if self._thread == threading.get_ident():
            raise RuntimeError(
                f"{what} in the middle of a training step, as in a signal handler, would mix old and new values; "
                f"there call fastbp.request_checkpoint(), with fit(checkpoint=…)"
            )
        with self._next, self._lock:
            yield


Views: TypeAlias = list[tuple[Any, Any]]  # (weight, bias) of every row, None where a row has none


class Parameters:
    """The buffers of one network.

    Parameters
    ----------
    layers : sequence of kernels.program.Layer
    prefixes : sequence of str
        What stands before ``weight`` and ``bias`` in a name, one a row of layers.
    dtype, device
    precision : str
        Of products, a name from ``kernels.layout.PRECISIONS`` that the device has for this dtype.

    Attributes
    ----------
    version : int
        Increases whenever the library changes values; writes into a view do not count.
    changes : Changes
        Whether some are under way.
    program : kernels.program.Program
    owner : function that returns an object with ``freeze(frozen)``, or None
        The model whose network this is.
    """

    owner: Callable[[], Any] | None = None

    def __init__(
        self,
        layers: Sequence[programs.Layer],
        prefixes: Sequence[str],
        dtype: np.dtype[Any],
        device: str,
        precision: str = "ieee",
    ) -> None:
        self.device, self.dtype = device, dtype
        backend.check_precision(precision, dtype, device)
        self.program = programs.lower(layers, dtype.itemsize, precision)
        self.prefixes = tuple(prefixes)
        self.optimizers = weakref.WeakSet()  # those that have state of this network
        self._allocate()
        self.version, self.changes = 0, Changes()

    def _allocate(self):
        self.backend = backend.load(self.device)
        self.on_host = backend.on_host(self.device)
        self.places = self.backend.to_device(self.program.places)
        self.values = self.backend.zeros(self.size, self.dtype)
        self.statistics = self.backend.zeros(self.program.statistics_size, self.dtype)
        self.views = self.views_of(self.values)
        self.statistic_views = {
            (array.row, array.name): array.view(self.statistics) for array in self.program.statistics
        }
        self.whole = views_in(programs.PARAMETERS, self.program.arrays, self.values) | views_in(
            programs.STATISTICS, self.program.statistics, self.statistics
        )
        self.kept = None  # of the last `fit`: buffers for a snapshot, which the next uses again
        self.handed_out = False  # whether somebody may hold a writable view
        self._gradients = None  # their buffer, the views into it, and those of a walk
        self._gradients_stored = False

    def _packed(self):
        """Values, statistics and stored gradients, whatever the device."""
        statistics = np.array(self.backend.to_host(self.statistics))
        return self.pack(self.values), statistics, self.pack(self._gradients[0]) if self._gradients_stored else None

    def _allocate_with(self, values, statistics, gradients):
        self._allocate()
        self.unpack(values, self.values)
        if statistics.size:
            self.write(self.statistics, statistics)
        if gradients is not None:
            self.store_gradients()
            self.unpack(gradients, self._gradients[0])

    def __getstate__(self) -> tuple[Any, ...]:
        attributes = {name: getattr(self, name) for name in ("device", "dtype", "prefixes")}
        with self.changes.none("copying a model"):
            return attributes, self.program.layers, self.precision, *self._packed()

    def __setstate__(self, state: Any) -> None:
        attributes, layers, precision, *packed = state
        self.__dict__.update(attributes)
        self.program = programs.lower(layers, self.dtype.itemsize, precision)
        self.optimizers, self.version, self.changes = weakref.WeakSet(), 0, Changes()
        self._allocate_with(*packed)

    @property
    def size(self) -> int:
        """Elements of a parameter buffer."""
        return self.program.size

    @property
    def precision(self) -> str:
        """What the factors of products are rounded to."""
        return self.program.precision

    def to(self, device: str, precision: str) -> None:
        """Move values, stored gradients and the state of the optimizers; if that fails, nothing is changed."""
        backend.check_precision(precision, self.dtype, device)
        if device != self.device:
            self._move(device)
        self.program = self.program.with_precision(precision)

    def freeze(self, frozen: Collection[int]) -> None:
        """Let the rows of these numbers not train, and all others; stored gradients are discarded."""
        self.program = self.program.with_frozen(frozen)
        self._gradients, self._gradients_stored = None, False  # new ones are 0, and of frozen rows they stay it

    def trained(self, *buffers: Any) -> Iterator[tuple[Any, ...]]:
        """The parts of buffers of the parameters' shape that an optimizer changes."""
        for part in self.program.trained:
            whole = part == slice(0, self.size)
            yield buffers if whole else tuple(buffer[part] for buffer in buffers)

    def _move(self, device):
        packed, before = self._packed(), dict(self.__dict__)
        states = [(optimizer, list(map(self.pack, optimizer.state))) for optimizer in self.optimizers]
        try:
            self.device = device
            self._allocate_with(*packed)
            moved = [self.like(len(state)) for _, state in states]
            for buffers, (_, state) in zip(moved, states, strict=True):
                for buffer, values in zip(buffers, state, strict=True):
                    self.unpack(values, buffer)
        except BaseException:
            self.__dict__.update(before)
            raise
        for buffers, (optimizer, _) in zip(moved, states, strict=True):
            optimizer.state = buffers
        self.version += 1

    # ------------------------------------------------------------------------------- gradients
    @property
    def gradients(self) -> Any:
        """The gradient buffer; an error where no gradients are stored."""
        self._require_gradients()
        return self._gradients[0]

    @property
    def gradient_views(self) -> Views:
        """(weight, bias) views of the gradients of every row; an error where no gradients are stored."""
        self._require_gradients()
        return self._gradients[1]

    @property
    def whole_gradients(self) -> dict[tuple[int, int], Any]:
        """The gradients as a walk finds them, stored or not."""
        return self._gradients[2]

    def _require_gradients(self):
        if not self._gradients_stored:
            raise RuntimeError(
                "no gradients are stored: backward() has not run since the start or since the last train_step() "
                "or fit(), which do not store gradients; call forward() and backward() first"
            )

    def store_gradients(self, all_overwritten: bool = False) -> Views:
        """(weight, bias) views to write gradients into; zero where none were stored, unless all will be overwritten."""
        if self._gradients is None:
            buffer = self.backend.zeros(self.size, self.dtype)
            whole = views_in(programs.PARAMETER_GRADIENTS, self.program.arrays, buffer)
            self._gradients = buffer, self.views_of(buffer), whole
        elif not self._gradients_stored and not all_overwritten:
            self.clear(self._gradients[0])
        self._gradients_stored = True
        return self._gradients[1]

    def apart_from_gradients(self, array: Any) -> Any:
        """The array, copied where it lies in the memory that gradients are written to."""
        shared = self._gradients is not None and self.on_host and np.may_share_memory(array, self._gradients[0])
        return array.copy() if shared else array

    def discard_gradients(self) -> None:
        """Mark the stored gradients stale: they belong to earlier parameter values."""
        self._gradients_stored = False
        self.version += 1

    def zero_gradients(self) -> None:
        """Set the stored gradients to zero."""
        if self._gradients_stored:
            self.clear(self._gradients[0])

    def gradient_norm(self) -> float:
        """Euclidean norm of all stored gradients, in float64; padding does not count."""
        return norm(self.backend, self.places, self.gradients, self.pack)

    def clip_gradients(self, most: float) -> None:
        """Multiply the stored gradients by ``most / norm`` where their norm is larger; NaN stays NaN."""
        clip(self.backend, self.places, self.gradients, self.pack, most)

    def scale_gradients(self, factor: float) -> None:
        """Multiply the stored gradients."""
        self.backend.scale(self.gradients, factor, self.gradients)

    def weights_squared(self) -> float:
        """``Σ W²`` over the weights of linear layers that train, in float64; biases do not count."""
        return self.backend.squared_norm(self.backend.to_device(self.program.trained_matrices), self.values)

    def add_decay(self, decay: float) -> None:
        """Add ``decay W`` to the stored gradients of the weights of linear layers; biases do not decay."""
        decayed = self.backend.empty(self.size, self.dtype)
        self.backend.scale(self.values, decay, decayed)
        for (gradient, _), (term, _) in zip(self.gradient_views, self.views_of(decayed), strict=True):
            if gradient is not None and len(gradient.shape) == 2:
                self.backend.add(gradient, term, gradient)

    # -------------------------------------------------------------------------- whole buffers
    def write(self, view: Any, values: ArrayLike) -> None:
        """Copy an array of the host into a buffer, or into a view of one."""
        if self.on_host:
            view[...] = values
        else:
            self.backend.write(view, values)

    def clear(self, buffer: Any) -> None:
        """Set a buffer to zero."""
        self.backend.clear(buffer)

    def fingerprint(self, row: int | None = None) -> int | None:
        """A number that changes with the values, of all rows of layers or of one; None where only the library writes.

        Then `version` tells of changes. It is a pass over memory, and only made once a writable view was handed out.
        """
        if not self.handed_out:
            return None
        values = self.values if row is None else self.values[self.span(row)]
        return zlib.crc32(self.statistics, zlib.crc32(values))

    def all_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return self.backend.all_finite(self.places, self.values)

    def launch_all_finite(self) -> Callable[[], bool]:
        """`all_finite` on a device, which goes on: a function to be called once its launches have been waited for."""
        return self.backend.launch_all_finite(self.places, self.values)

    def copied_values(self, to: Any = None) -> Any:
        """Values and statistics in buffers of their device, for `restore_values`; ``to`` are some there already."""
        to = to or tuple(self.backend.empty(buffer.size, self.dtype) for buffer in (self.values, self.statistics))
        self._copy((self.values, self.statistics), to)
        return to

    def named_views(self, copied: Any) -> dict[str, Any]:
        """Views by name, as of `Sequential.state_dict`, into what `copied_values` returned."""
        parts = zip((self.program.arrays, self.program.statistics), copied, strict=True)
        return {
            self.prefixes[array.row] + array.name: array.view(buffer) for arrays, buffer in parts for array in arrays
        }

    def restore_values(self, copied: Any) -> None:
        """Make values and statistics those of a copy."""
        self.changes.under_way(self._copy, copied, (self.values, self.statistics))
        self.version += 1

    def _copy(self, buffers, to):
        for buffer, copied in zip(buffers, to, strict=True):
            if buffer.size:
                self.backend.copy(buffer, copied)

    def named_copy(self, copied: Any) -> dict[str, Array]:
        """Arrays of the host by name, as of `Sequential.state_dict`, from what `copied_values` returned."""
        values, statistics = map(self.backend.to_host, copied)
        arrays = [(array, values) for array in self.program.arrays]
        arrays += [(array, statistics) for array in self.program.statistics]
        arrays.sort(key=lambda pair: pair[0].row)
        return {self.prefixes[array.row] + array.name: np.array(array.view(buffer)) for array, buffer in arrays}

    def copy_of_named(self, named: Mapping[str, ArrayLike]) -> Any:
        """What `copied_values` would have returned, from what `named_copy` returned."""
        copied = self.copied_values()
        for buffer, arrays in zip(copied, (self.program.arrays, self.program.statistics), strict=True):
            host = np.zeros(buffer.size, self.dtype)
            for array in arrays:
                array.view(host)[...] = named[self.prefixes[array.row] + array.name]
            if arrays:
                self.write(buffer, host)
        return copied

    # ----------------------------------------------------------------------------------- views
    def named(self) -> list[Parameter]:
        """A `Parameter` for every weight and bias, in the order of the layers."""
        return [
            Parameter(self, row, part, self.prefixes[row] + ("weight", "bias")[part])
            for row, pair in enumerate(self.views)
            for part, view in enumerate(pair)
            if view is not None
        ]

    def named_statistics(self) -> list[Statistic]:
        """A `Statistic` for every running one."""
        return [
            Statistic(self, array.row, array.name, self.prefixes[array.row] + array.name)
            for array in self.program.statistics
        ]

    def state(self) -> list[Parameter | Statistic]:
        """Parameters and running statistics, layer by layer."""
        return sorted([*self.named(), *self.named_statistics()], key=lambda part: part.row)

    def view(self, row: int, name: str) -> Any:
        """The weight, the bias or a running statistic of a row of layers."""
        if name in ("weight", "bias"):
            return self.views[row][name == "bias"]
        return self.statistic_views[row, name]

    def span(self, row: int) -> slice:
        """The slice of the buffers that belongs to a row of layers."""
        begin = min(array.offset for array in self.program.arrays if array.row == row)
        return slice(begin, min((a.offset for a in self.program.arrays if a.row > row), default=self.size))

    def like(self, count: int) -> tuple[Any, ...]:
        """Zero-filled buffers of the parameters' shape, for an optimizer's state."""
        return tuple(self.backend.zeros(self.size, self.dtype) for _ in range(count))

    # ------------------------------------------------------------------------- packed copies
    def pack(self, buffer: Any, flat: Array | None = None) -> Array:
        """One-dimensional copy without padding: layer by layer the weight row by row, then the bias; into ``flat``."""
        flat, start = np.empty(self.count, self.dtype) if flat is None else flat, 0
        for view in real(self._readable_views(buffer)):
            flat[start : start + view.size].reshape(view.shape)[...] = view
            start += view.size
        return flat

    def unpack(self, flat: Array, buffer: Any) -> None:
        """Write a packed array into a buffer."""
        host, start = buffer if self.on_host else np.zeros(self.size, self.dtype), 0
        for view in real(self._readable_views(host)):
            view[...] = flat[start : start + view.size].reshape(view.shape)
            start += view.size
        if not self.on_host:
            self.write(buffer, host)

    def _readable_views(self, buffer):
        """(weight, bias) views that NumPy reads: into the buffer, or into a copy of it on the host."""
        if self.on_host:
            if buffer is self.values:
                return self.views
            return self.views_of(buffer)
        return self.views_of(buffer if isinstance(buffer, np.ndarray) else self.backend.to_host(buffer))

    def readable(self, view: Any) -> Any:
        """One of the views as users see it."""
        if self.on_host or view is None:
            self.handed_out = True
            return view
        copy = self.backend.to_host(view)
        copy.flags.writeable = False  # what is written into a copy would be lost
        return copy

    def views_of(self, buffer: Any) -> Views:
        """(weight, bias) views into another buffer of the parameters' shape."""
        return self.program.views(buffer)

    @property
    def count(self) -> int:
        """Number of real parameters."""
        return sum(math.prod(view.shape) for view in real(self.views))

    def checked_flat(self, argument: str, value: ArrayLike) -> Array:
        """``value`` as a packed array of all parameters."""
        array = checks.numeric(argument, value)
        checks.shape(argument, array, (self.count,))
        return array


def norm(kernels: backend.Kernels, places: Any, gradients: Any, pack: Callable[[Any], Array]) -> float:
    """Euclidean norm of gradients that lie at these places, in float64; ``pack`` gives them without what pads them."""
    squared = kernels.squared_norm(places, gradients)
    if LEAST_SQUARED < squared < math.inf:
        return math.sqrt(squared)
    packed = pack(gradients).astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        largest = float(np.abs(packed).max(initial=0.0))
        if not 0 < largest < math.inf:
            return largest
        return largest * math.sqrt(float(np.square(packed / largest).sum()))


def clip(kernels: backend.Kernels, places: Any, gradients: Any, pack: Callable[[Any], Array], most: float) -> None:
    """Multiply gradients, as of `norm`, by ``most / norm`` where their norm is larger; NaN stays NaN."""
    before = norm(kernels, places, gradients, pack)
    if before == math.inf and kernels.all_finite(places, gradients):
        kernels.scale(gradients, 1 / gradients.size, gradients)  # their norm is finite then
        kernels.scale(gradients, most / norm(kernels, places, gradients, pack), gradients)
    elif not before <= most:
        kernels.scale(gradients, most / before, gradients)


def real(views: Views) -> list[Any]:
    """The arrays among (weight, bias) views, in order."""
    return [view for pair in views for view in pair if view is not None]


class Parameter:
    """A named weight or bias: a view into the buffers of its network.

    Attributes
    ----------
    name : str
        As in `Sequential.state_dict`, for example ``"0.weight"``.
    data : array
        View of the values; assigning copies in. For a model on a device other than the host, a read-only copy.
    grad : array
        View of the gradient, likewise; an error where no gradients are stored.
    """

    def __init__(self, parameters: Parameters, row: int, part: int, name: str) -> None:
        self.network, self.row, self._part, self.name = parameters, row, part, name

    @property
    def _view(self):
        return self.network.views[self.row][self._part]

    @property
    def data(self) -> Array:
        return self.network.readable(self._view)

    @data.setter
    def data(self, value: ArrayLike) -> None:
        assign(self.network, self.name, self._view, value)

    @property
    def grad(self) -> Array:
        return self.network.readable(self.network.gradient_views[self.row][self._part])

    def copied(self) -> Array:
        """A copy of the values on the host."""
        return np.array(self.network.backend.to_host(self._view))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._view.shape)

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self.network.dtype})"


class Statistic(Parameter):
    """A named running statistic, which has no gradient: ``data`` is as of a `Parameter`."""

    @property
    def _view(self):
        return self.network.statistic_views[self.row, self._part]

    @property
    def grad(self) -> Any:
        raise AttributeError(f"{self.name} is a running statistic: it has no gradient")


def assign(network: Parameters, name: str, view: Any, value: ArrayLike) -> None:
    """Copy ``value``, of exactly the shape of the view, into a view of a network's values."""
    array = checks.numeric(name, value)
    checks.shape(name, array, tuple(view.shape))
    network.write(view, array)
    network.version += 1
