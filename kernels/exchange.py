"""Arrays on a GPU that belong to other libraries, and DLPack for ours.

NumPy makes and takes the capsules of DLPack: it knows their layouts, versions, dtypes and flags, and calls their
deleters. It refuses memory that is not of the host, so that of a GPU goes under another name: as an array that nobody
reads or writes, of which only address, shape, strides and dtype are used.
"""

import ctypes
import math
from functools import lru_cache

import numpy as np

CPU, CUDA, CUDA_MANAGED = 1, 2, 13  # types of devices, of which kernels on a GPU read the last two
_VERSION = 1, 0  # of DLPack, where capsules have a version
_COPIED = 2  # a flag of theirs
_NUMPY_HAS_VERSIONS = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


# ---------------------------------------------------------------------------------------- capsules
class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _Tensor(ctypes.Structure):
    """The beginning of a DLTensor."""

    _fields_ = (("data", ctypes.c_void_p), ("device", _Device))


class _Unversioned(ctypes.Structure):
    """The beginning of a DLManagedTensor."""

    _fields_ = (("tensor", _Tensor),)
    major = _VERSION[0]


class _Versioned(ctypes.Structure):
    """The beginning of a DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _managed(capsule):
    """What is in a capsule that nobody has taken."""
    for name, kind in ((b"dltensor_versioned", _Versioned), (b"dltensor", _Unversioned)):
        if _is_valid(capsule, name):
            return kind.from_address(_pointer(capsule, name))
    raise BufferError("__dlpack__ gave no capsule of DLPack, or one that is used already")


# ------------------------------------------------------------------------------------------- where
def device_of(value):
    """(type, number) of the device that an array is on, or None where it does not offer DLPack."""
    try:
        kind, number = value.__dlpack_device__()
    except (AttributeError, BufferError, TypeError, ValueError):  # some arrays of a library cannot be exchanged
        return None
    return int(kind), int(number)


def offers_gpu_memory(value):
    """Whether DLPack gives an array that kernels on a GPU can read."""
    device = None if isinstance(value, np.ndarray) else device_of(value)
    return device is not None and device[0] in (CUDA, CUDA_MANAGED)


def on_gpu(value):
    """Whether this is an array in the memory of a GPU."""
    return (
        hasattr(value, "__cuda_ndarray__")
        or offers_gpu_memory(value)
        or hasattr(value, "__cuda_array_interface__")  # last: some tensors of PyTorch answer with an error
    )


# ---------------------------------------------------------------------------------- taking, giving
class _AsOnHost:
    """An array of a GPU, for `numpy.from_dlpack`."""

    def __init__(self, array, stream):
        self.array, self.stream = array, stream
        self.capsule = self.tensor = self.device = None  # what it gave: the capsule keeps the tensor alive

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, max_version=None, **_):
        try:
            capsule = self.array.__dlpack__(stream=self.stream, max_version=max_version)
        except TypeError:  # a library from before versions
            capsule = self.array.__dlpack__(stream=self.stream)
        managed = _managed(capsule)
        if managed.major == _VERSION[0]:  # NumPy refuses others, whose layout is not known here
            self.capsule, self.tensor = capsule, managed.tensor
            self.device = _Device.from_buffer_copy(self.tensor.device)
            self.tensor.device = _Device(CPU, 0)
        return capsule

    def restore(self):
        """Give the tensor its device back, for the deleter."""
        if self.tensor is not None:
            self.tensor.device = self.device


def taken(array, stream):
    """The memory of an array of another library, through DLPack and without a copy.

    Parameters
    ----------
    array : object with ``__dlpack__``
    stream : int or None
        The handle of the stream that will use the memory: the library lets it wait for what writes the array. None
        where the device has no streams.

    Returns
    -------
    numpy.ndarray
        Stands for the memory; not to be read or written where that is not of the host. The library may free the
        memory when this is dropped. ``flags.writeable`` is what the library says.

    Raises
    ------
    BufferError
        NumPy has no such dtype, or the library refuses.
    """
    source = _AsOnHost(array, stream)
    try:
        return np.from_dlpack(source)
    except RuntimeError as error:  # what NumPy raised before 2.0
        raise BufferError(str(error)) from error
    finally:
        source.restore()


@lru_cache(maxsize=1024)
def contiguous_strides(shape, itemsize) -> tuple[int, ...]:
    """The strides, in bytes, of a C-contiguous array."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Memory:
    """Memory as NumPy takes it for an array; keeps its owner."""

    def __init__(self, address, shape, strides, dtype, owner):
        self.__array_interface__ = {
            "data": (address, False),
            "shape": tuple(shape),
            "strides": tuple(strides),
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }
        self.owner = owner


def given(memory, device, max_version, copied=False):
    """A capsule of DLPack.

    Parameters
    ----------
    memory : Memory
        Its owner lives as long as the consumer uses the capsule.
    device : (int, int)
        Type and number.
    max_version : (int, int) or None
        What the consumer reads; below 1.0, or None, the capsule has no version.
    copied : bool
        Whether nobody else uses the memory.
    """
    view = np.asarray(memory)
    versioned = _NUMPY_HAS_VERSIONS and max_version is not None and tuple(max_version) >= _VERSION
    capsule = view.__dlpack__(max_version=_VERSION) if versioned else view.__dlpack__()
    managed = _managed(capsule)
    managed.tensor.device = _Device(*device)
    if versioned and copied:
        managed.flags |= _COPIED
    if view.size == 0:
        managed.tensor.data = None
    return capsule
