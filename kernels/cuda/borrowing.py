"""Arrays that kernels read where they are: those of Numba, and over memory of other libraries, which get it back."""

import weakref
from functools import cache

import numpy as np

from .. import exchange
from . import streams
from .driver import NumbaArray, cuda, simulated


@cache
def device():
    """The device of all arrays as DLPack has it, (type, number); that of the simulator is the host."""
    return (exchange.CPU, 0) if simulated else (exchange.CUDA, cuda.get_current_device().id)


def address(array) -> int:
    """Where a device array begins."""
    return array.ctypes.data if simulated else array.device_ctypes_pointer.value


def is_on_device(array) -> bool:
    """Whether kernels can read an array where it is."""
    return exchange.on_gpu(array)


def as_device_array(array):
    """A device array of Numba's, over the same memory; raises TypeError for an array of the host.

    Arrays of other libraries come through DLPack, which lets our stream wait for what writes them, or through
    ``__cuda_array_interface__``, where the host waits.
    """
    if hasattr(array, "__cuda_ndarray__"):
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
        return _borrowed(lent)
    if hasattr(array, "__cuda_array_interface__"):
        lent = cuda.as_cuda_array(array)
        return _borrowed(lent)
    raise TypeError(
        f'expected an array on the GPU; got {name} in the memory of the host; use to_device(array), or model.to("cuda")'
    )


def _device_number():
    return 0 if simulated else device()[1]


def memory_of(array, owner):
    """The memory of an array of the device, or of one of NumPy's that stands for it."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else address(array)
    return exchange.Memory(start, array.shape, array.strides, array.dtype, owner)


def _borrowed(lent):
    """A device array over memory of another library, which gets it back when the launches that read it have finished.

    Without that, a temporary array could be freed, and its memory used again, before a launch comes to it.
    """
    memory = memory_of(lent, None)
    weakref.finalize(memory, _give_back, lent).atexit = False
    if simulated:
        return NumbaArray(np.asarray(memory))
    return cuda.from_cuda_array_interface(memory.__array_interface__, owner=memory)


def _give_back(lent):
    cuda.current_context()  # the collector may have come in any thread
    streams.wait()
