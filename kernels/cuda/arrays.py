"""Arrays on the GPU: an address, a shape, strides and a dtype; views of them, and copies from and to the host.

A step makes tens of views, so making one takes a microsecond or two. The arrays of Numba do more, and take ten times as
long.
"""

import math
import sys
from collections import deque
from contextlib import suppress
from functools import cache

import numpy as np

from ..exchange import contiguous_strides
from . import streams
from .driver import called, driver_calls

UNUSED, UNUSED_BYTES = 64, 256 << 20  # memory that nobody has any more: more than that is given back together


@cache
def address_in(dtype) -> str:
    """The attribute of an array of this dtype that has its address, and that an array of another dtype lacks."""
    return f"address_of_{dtype.name}"


class Memory:
    """Uninitialised memory of the GPU. When nobody has it any more it is used again, or given back with other memory.

    Launches on one stream run in their order. So memory that was used on the stream of all launches may be had again
    at once by who launches there. Not so where others may still use it: launches on a thread's own stream, or another
    library that it was `lent` to. To give memory back the driver waits for the GPU.
    """

    lent = False

    def __init__(self, size):
        self.size, self.in_order = size, streams.is_of_all()
        self.address = (self.in_order and _taken_again(size)) or _allocated(size)

    def __del__(self, finalizing=sys.is_finalizing):
        if hasattr(self, "address") and not finalizing():
            in_order = self.in_order and not self.lent and streams.begun() and streams.is_of_all()
            _unused.append((self.address, self.size, in_order))
            many = len(_unused) > UNUSED or sum(size for _, size, _ in list(_unused)) > UNUSED_BYTES
            if many and streams.begun():  # else this is for a thread that has the context
                give_back()


_unused = deque()  # (address, size, whether all that used it is in order) of memory that nobody has any more


def _taken_again(size):
    """The address of unused memory of this size, which nobody can use out of order; None where there is none.

    The first address, so that what is made again and again comes to lie in the same places, for which steps are
    captured.
    """
    for entry in sorted(entry for entry in list(_unused) if entry[1:] == (size, True)):
        with suppress(ValueError):  # where another thread takes it too
            _unused.remove(entry)
            return entry[0]
    return None


def _allocated(size):
    """The address of new memory."""
    status, address = driver_calls.cuMemAlloc(size)
    if status == driver_calls.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        give_back()
        status, address = driver_calls.cuMemAlloc(size)
    return int(called((status, address)))


def give_back():
    """Give the memory that nobody has any more back to the driver."""
    while _unused:
        with suppress(IndexError):  # where another thread does so too
            driver_calls.cuMemFree(_unused.pop()[0])


class Array:
    """An array on the GPU.

    Parameters
    ----------
    address : int
        Of its first element.
    shape, strides : tuples of int
        Strides are in bytes.
    dtype : numpy.dtype
    owner : object
        Lives as long as the array and its views, and has the memory.
    """

    __cuda_ndarray__ = True  # one of ours, not to be borrowed

    def __init__(self, address, shape, strides, dtype, owner):
        self.address, self.shape, self.strides, self.dtype, self.owner = address, shape, strides, dtype, owner
        self.ndim, self.size = len(shape), math.prod(shape)
        setattr(self, address_in(dtype), address)

    @classmethod
    def new(cls, shape, dtype):
        """An array of uninitialised memory."""
        strides = contiguous_strides(shape, dtype.itemsize)
        size = dtype.itemsize * math.prod(shape)
        memory = Memory(size) if size else None
        return cls(memory.address if size else 0, shape, strides, dtype, memory)

    def __getattr__(self, name):
        if name.startswith("address_of_"):  # what a launch asks for
            expected = name.removeprefix("address_of_")
            raise TypeError(f"the kernel is compiled for arrays of {expected}, got {self.dtype}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def __cuda_array_interface__(self):
        strides = None if self.is_c_contiguous() else self.strides
        where = {"data": (self.address, False), "shape": self.shape, "strides": strides}
        return where | {"typestr": self.dtype.str, "version": 3}

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize

    def is_c_contiguous(self):
        """Whether elements follow each other in the order of C; the stride of an axis of one means nothing."""
        expected = contiguous_strides(self.shape, self.dtype.itemsize)
        if self.strides == expected or self.size == 0:
            return True
        axes = zip(self.shape, self.strides, expected, strict=True)
        return all(stride == other for length, stride, other in axes if length > 1)

    # ------------------------------------------------------------------------------------------- views
    def seen_as(self, address, shape, strides, dtype):
        """An array over the same memory."""
        return type(self)(address, shape, strides, dtype, self.owner)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, item):
        """A view by slices or integers of the first axes; no element, which would be a copy to the host."""
        parts = item if isinstance(item, tuple) else (item,)
        address, shape, strides = self.address, [], []
        for part, length, stride in zip(parts, self.shape, self.strides, strict=False):
            if isinstance(part, slice):
                first, end, step = part.indices(length)
                if step < 1:
                    raise IndexError(f"slices of an array on the GPU go forward, got a step of {step}")
                shape.append(len(range(first, end, step)))
                strides.append(stride * step)
            else:
                first = range(length)[part]
            address += first * stride
        known = len(parts)
        if known > self.ndim:
            raise IndexError(f"too many indices for an array of {self.ndim} dimensions: {known}")
        shape, strides = (*shape, *self.shape[known:]), (*strides, *self.strides[known:])
        return self.seen_as(address, shape, strides, self.dtype)

    def reshape(self, *shape):
        """The same elements in their order in another shape, of a C-contiguous array."""
        if not self.is_c_contiguous() or math.prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} and strides {self.strides} has no view of shape {shape}")
        return self.seen_as(self.address, shape, contiguous_strides(shape, self.dtype.itemsize), self.dtype)

    def view(self, dtype):
        """The memory of a C-contiguous array as elements of another dtype."""
        dtype, (*before, last) = np.dtype(dtype), self.shape
        length, rest = divmod(last * self.dtype.itemsize, dtype.itemsize)
        if rest or not self.is_c_contiguous():
            raise ValueError(f"an array of {self.dtype}, {self.shape} with strides {self.strides}, is none of {dtype}")
        shape = (*before, length)
        return self.seen_as(self.address, shape, contiguous_strides(shape, dtype.itemsize), dtype)

    # ------------------------------------------------------------------------------------------ copies
    def _check(self, array):
        if array.shape != self.shape or array.dtype != self.dtype or not self.is_c_contiguous():
            raise ValueError(
                f"C-contiguous arrays of one shape and dtype are copied; got {self.dtype} {self.shape} with strides "
                f"{self.strides}, and {array.dtype} {array.shape}"
            )

    def copy_to_device(self, array, stream):
        """Begin to copy a C-contiguous array of the GPU, or of the host, into this one."""
        self._check(array)
        if isinstance(array, Array):
            answer = driver_calls.cuMemcpyDtoDAsync(self.address, array.address, self.nbytes, stream.handle)
        else:
            answer = driver_calls.cuMemcpyHtoDAsync(self.address, array.ctypes.data, self.nbytes, stream.handle)
        called(answer)

    def copy_to_host(self, to, stream):
        """Begin to copy this array into a C-contiguous one of the host."""
        self._check(to)
        called(driver_calls.cuMemcpyDtoHAsync(to.ctypes.data, self.address, self.nbytes, stream.handle))


class PageLocked:
    """Uninitialised page-locked memory of the host, as NumPy takes it for an array."""

    def __init__(self, shape, dtype):
        streams.stream()  # makes the context that of the thread
        self.address = called(driver_calls.cuMemHostAlloc(max(math.prod(shape) * dtype.itemsize, 1), 0))
        self.__array_interface__ = {
            "data": (self.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self, finalizing=sys.is_finalizing):
        if hasattr(self, "address") and not finalizing():
            driver_calls.cuMemFreeHost(self.address)
