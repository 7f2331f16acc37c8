"""Arrays on the GPU as kernels read them: ours, and those of other libraries without a copy.

Memory of another library is borrowed: the library gets it back when the launches that read it have finished.
"""

import weakref
from functools import cache

import numpy as np

from .. import exchange
from . import driver, streams
from .driver import simulated

if simulated:
    from .driver import Array
else:
    from .arrays import Array


@cache
def device():
    """The device of all arrays as a pair of DLPack, (type, number); in the simulator it is the host."""
    return (exchange.CPU, 0) if simulated else (exchange.CUDA, driver.device().device_id)


def address(array) -> int:
    """The address of the first element of a device array."""
    return array.ctypes.data if simulated else array.address


def is_on_device(array) -> bool:
    """Whether this is an array on a GPU, ours or of another library."""
    return isinstance(array, Array) or (not isinstance(array, np.ndarray) and exchange.on_gpu(array))


def as_device_array(array):
    """A device array over the memory of an array on the GPU, without a copy.

    Arrays of other libraries come through DLPack, which lets our stream wait for what writes them, or through
    ``__cuda_array_interface__``, where the host waits.

    Raises
    ------
    TypeError
        The array is on the host, or its library does not lend it.
    ValueError
        It is on another GPU than the one in use.
    """
    if isinstance(array, Array):
        return array
    name = type(array).__name__
    if exchange.offers_gpu_memory(array):
        kind, number = exchange.device_of(array)
        if kind == exchange.CUDA and number != _device_number():
            raise ValueError(
                f"expected an array on GPU {_device_number()}, where this process computes; got {name} on GPU "
                f"{number}; copy it there first"
            )
        try:
            lent = exchange.taken(array, int(streams.stream()) or None)
        except BufferError as error:
            raise TypeError(f"{name} cannot be used where it is on the GPU: {error}") from error
        return _borrowed(memory_of(lent, None), lent)
    if hasattr(array, "__cuda_array_interface__"):
        where = array.__cuda_array_interface__
        streams.wait_for(where.get("stream"))
        return _borrowed(_memory_at(where), array)
    raise TypeError(
        f'expected an array on the GPU; got {name} in the memory of the host; use to_device(array), or model.to("cuda")'
    )


def _device_number():
    return 0 if simulated else device()[1]


def memory_of(array, owner):
    """The memory of a device array, or of an array of NumPy that stands for memory of the GPU, as `exchange` has it."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else address(array)
    return exchange.Memory(start, array.shape, array.strides, array.dtype, owner)


def _memory_at(where):
    """The memory that a ``__cuda_array_interface__`` names, as `exchange` has it."""
    if where.get("mask") is not None:
        raise TypeError("an array on the GPU with a mask cannot be used")
    shape, dtype = tuple(where["shape"]), np.dtype(where["typestr"])
    strides = where.get("strides") or exchange.contiguous_strides(shape, dtype.itemsize)
    return exchange.Memory(where["data"][0], shape, strides, dtype, None)


def _borrowed(memory, lent):
    """A device array over memory of another library, which has lent an array.

    When it is dropped, the host waits for the launches so far and then gives the memory back. Without that, a temporary
    array could be freed, and its memory used again, before a kernel has read it.
    """
    weakref.finalize(memory, _give_back, lent).atexit = False
    if simulated:
        return Array(np.asarray(memory))
    where = memory.__array_interface__
    return Array(where["data"][0], where["shape"], where["strides"], np.dtype(where["typestr"]), memory)


def _give_back(lent):
    streams.stream()  # the garbage collector may run in a thread that has not used the GPU
    streams.wait_for_all()
