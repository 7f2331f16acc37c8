"""Arrays on the GPU: allocated, copied, passed to kernels as flat memory, and lent to other libraries."""

import numpy as np

from .. import exchange
from . import borrowing, streams
from .driver import cuda, memory_info, require, simulated

if simulated:
    from .driver import Array
else:
    from .arrays import Array, PageLocked, give_back


def free_memory():
    """Bytes that are free on the GPU; infinite in the simulator."""
    require()
    streams.stream()  # makes the context that of the thread
    if not simulated:
        give_back()
    return memory_info()[0]


def empty(shape, dtype):
    """An uninitialised C-contiguous array on the GPU, whose first element begins a cache line.

    MemoryError says how much was asked for and how much is free.
    """
    require()
    dtype = np.dtype(dtype)
    try:
        return new_array(shape, dtype)
    except Exception as error:
        if not _out_of_memory(error):
            raise
        free, total = memory_info()
        raise MemoryError(
            f"no room on the GPU for an array of shape {shape} and dtype {dtype}: {_mib(shape, dtype)}, "
            f"{free / 2**20:.1f} of {total / 2**20:.1f} MiB free; use smaller batches, or free other arrays"
        ) from error


def new_array(shape, dtype):
    """An array of uninitialised memory."""
    if simulated:
        array = cuda.device_array(shape, dtype)
        array.__class__ = DeviceArray
        return array
    return DeviceArray.new(_shape(shape), dtype)


def _shape(shape):
    return tuple(map(int, shape)) if isinstance(shape, tuple | list) else (int(shape),)


def _out_of_memory(error):
    return "OUT_OF_MEMORY" in str(error).upper().replace(" ", "_")


def _mib(shape, dtype):
    return f"{int(np.prod(shape, dtype=np.int64)) * dtype.itemsize / 2**20:.1f} MiB"


def to_device(array, to=None):
    """A copy on the GPU; without ``to``, an array that is on the GPU already is returned as it is.

    Parameters
    ----------
    array : array of the host or of the GPU
    to : device array of the same shape and dtype, optional
        Where the copy is written.
    """
    require()
    if borrowing.is_on_device(array) and to is None:
        return borrowing.as_device_array(array)
    if to is None:
        to = empty(array.shape, array.dtype)
    array = borrowing.as_device_array(array) if borrowing.is_on_device(array) else np.ascontiguousarray(array)
    if array.size:
        to.copy_to_device(array, stream=streams.stream())
    return to


def to_host(array, to=None):
    """A copy on the host, made when all launches so far have finished; into the array ``to`` where it is given."""
    require()
    array = borrowing.as_device_array(array)
    if array.size == 0:
        return np.empty(array.shape, array.dtype) if to is None else to
    if not array.is_c_contiguous():
        return np.lib.stride_tricks.as_strided(to_host(flat(array)), array.shape, array.strides).copy()
    to = np.empty(array.shape, array.dtype) if to is None else to
    array.copy_to_host(to, stream=streams.stream())
    streams.wait()
    return to


def fetch(array, pinned):
    """Begin to copy an array to page-locked memory of the host; it is there once launches have been waited for."""
    array.copy_to_host(pinned, stream=streams.stream())


def pinned(shape, dtype):
    """An uninitialised array of the host in page-locked memory, from which `send` copies while the host goes on.

    MemoryError where the host has no such memory left.
    """
    require()
    dtype = np.dtype(dtype)
    try:
        return new_pinned(shape, dtype)
    except Exception as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(
            f"the host has no page-locked memory left for an array of shape {shape} and dtype {dtype}: "
            f"{_mib(shape, dtype)}; use smaller batches, or see what else on this machine locks memory"
        ) from error


def new_pinned(shape, dtype):
    """An uninitialised array in page-locked memory."""
    return cuda.pinned_array(shape, dtype) if simulated else np.asarray(PageLocked(_shape(shape), dtype))


def send(host, to):
    """Begin to copy page-locked memory to the GPU, on `copy_stream`; it must not change until the copy has ended."""
    to.copy_to_device(host, stream=streams.copy_stream())


def flat(array):
    """The memory from an array's first element to its last as an array of one dimension, which is what kernels take.

    The rows of a matrix may lie any distance apart (`leading` tells it), but the elements of a row must be adjacent.
    """
    array = borrowing.as_device_array(array)
    if array.ndim == 1 and array.strides[0] == array.dtype.itemsize:
        return array
    if array.size == 0:
        return empty(1, array.dtype)
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    itemsize = array.dtype.itemsize
    return window(array, 0, (last // itemsize + 1,), (itemsize,), array.dtype)


def beginning(array):
    """What a launch takes for the memory of an array: on a GPU the array itself, as its address is all that is read."""
    return flat(array) if simulated or array.size == 0 else array


def window(array, start, shape, strides, dtype):
    """An array of any shape and strides over the memory of another, from ``start`` bytes after its first element."""
    if simulated:
        return Array(np.asarray(exchange.Memory(borrowing.address(array) + start, shape, strides, dtype, array)))
    return array.seen_as(array.address + start, tuple(shape), tuple(strides), np.dtype(dtype))


def leading(array) -> int:
    """The leading dimension of an array: how many elements it is from one row to the next."""
    return array.strides[0] // array.dtype.itemsize


class DeviceArray(Array):
    """A device array that other libraries can use without a copy; their work on it waits for our launches."""

    @property
    def __cuda_array_interface__(self):
        self._lend()
        return super().__cuda_array_interface__ | {"stream": int(streams.stream())}

    def _lend(self):
        """Note that another library has the memory: nothing orders its launches before ours."""
        if not simulated and self.size:
            self.owner.lent = True

    def __array__(self, dtype=None, copy=None):
        return np.asarray(to_host(self), dtype)

    def __dlpack_device__(self):
        return borrowing.device()

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A capsule of DLPack with this memory, as the array API standard defines it.

        Parameters
        ----------
        stream : int, optional
            The stream of the consumer, which is made to wait for our launches: None or 1 is the legacy default stream,
            2 the default stream of the thread, -1 waits for nothing, others are handles.
        max_version : (int, int), optional
            The highest version of DLPack that the consumer reads; without it the capsule has no version.
        dl_device : (int, int), optional
            Where the consumer wants the array: on this GPU, or on the host, which takes a copy.
        copy : bool, optional
            True: a copy; False: never a copy; None: a copy only where it is needed.

        Raises
        ------
        BufferError
            ``dl_device`` and ``copy`` ask for what is not possible.
        ValueError
            ``stream`` is none of the above.
        """
        if dl_device not in (None, borrowing.device()):
            if tuple(dl_device) != (exchange.CPU, 0) or copy is False:
                raise BufferError(
                    f"dl_device must be {borrowing.device()}, where the array is, or with a copy (1, 0), the host; got "
                    f"{dl_device} and copy={copy}"
                )
            host = to_host(self)
            return exchange.given(borrowing.memory_of(host, host), (exchange.CPU, 0), max_version, True)
        streams.let_follow(stream)
        self._lend()
        array = self
        if copy:
            if not self.is_c_contiguous():
                raise BufferError("copy must be None or False for an array that is not C-contiguous, got True")
            array = to_device(self, empty(self.shape, self.dtype))
            streams.wait()
        return exchange.given(borrowing.memory_of(array, array), borrowing.device(), max_version, bool(copy))
