"""Wraps a backend that has its own memory, for callers whose arrays may be on the host.

`DeviceKernels` has the names of the contract. An array of the host is sent before a call and, if the call writes it,
fetched afterwards. An array on the device, another library's too, is used in place. So layers, losses and networks have
the same code for every device; arrays that should stay on the device are allocated there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import checks
from .checks import Array
from .kernels import contract
from .pieces import Pieces

RESIDENT_SHARE = 0.5  # of the free memory of the device, that data of one call of fit may take


class DeviceKernels:
    """A backend module whose calls take arrays of the host as well.

    Parameters
    ----------
    module : module
        With the names of ``kernels/reference.py``, and modules ``driver``, ``memory``, ``borrowing`` and ``streams``.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.driver = module, module.driver
        self.memory, self.borrowing = module.memory, module.borrowing
        for name, declaration in contract.FUNCTIONS.items():
            if declaration.exchanged:
                setattr(self, name, self._exchanging(name, declaration))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def _exchanging(self, name, declaration):
        """The call of this name, which sends and fetches arrays of the host."""
        function, places = getattr(self.module, name), declaration.arguments
        read, written = (
            [places.index(argument) for argument in arguments if argument in declaration.exchanged]
            for arguments in (declaration.reads, declaration.writes)
        )

        def call(*arguments):
            self.driver.require()
            arguments, sent = list(arguments), {}
            for place in read:
                arguments[place] = self._there(arguments[place], sent, self.to_device)
            fetched = [(arguments[place], place) for place in written if isinstance(arguments[place], np.ndarray)]
            for place in written:
                arguments[place] = self._there(arguments[place], sent, self._empty_like)
            result = function(*arguments)
            for array, place in fetched:
                array[...] = self.to_host(arguments[place])
            return result

        return call

    def _there(self, array, sent, send):
        """The array on the device; arguments that share memory get the same one."""
        if not isinstance(array, np.ndarray):
            return array
        key = array.ctypes.data, array.shape, array.strides
        if key not in sent:
            sent[key] = send(array)
        return sent[key]

    def _empty_like(self, array):
        return self.empty(array.shape, array.dtype)

    # ------------------------------------------------------------------------------------ arrays
    def write(self, view: Any, values: ArrayLike) -> None:
        """Copy an array of the host, or a number, into a parameter buffer or a view of one."""
        flat = self.memory.flat(view)
        if view.ndim == 2:  # the padding between its rows is written too: it means nothing
            rows, columns = view.shape
            padded = np.zeros((rows, self.memory.leading(view)), view.dtype)
            padded[:, :columns] = values
            self.memory.to_device(padded.reshape(-1)[: flat.size], flat)
        else:
            host = np.empty(flat.size, view.dtype)
            host[...] = values
            self.memory.to_device(host, flat)

    def is_there(self, value: Any) -> bool:
        """Whether the value is an array on a device."""
        return self.borrowing.is_on_device(value)

    def matrix(self, argument: str, value: Any, columns: int, rows: int | None = None) -> Any:
        """A two-dimensional array of the device, checked as by `checks.matrix` and not copied."""
        try:
            array = self.borrowing.as_device_array(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from error
        shape = tuple(array.shape)
        if len(shape) != 2 or shape[1] != columns or rows not in (None, shape[0]):
            raise ValueError(f"{argument} must have shape ({'n' if rows is None else rows}, {columns}), got {shape}")
        if not self.gathers(array.dtype) or not (array.is_c_contiguous() or array.size == 0):
            raise TypeError(
                f"{argument} must be C-contiguous where it is on the GPU and hold floats of 16, 32 or 64 bits, "
                f"integers or bool, got dtype {array.dtype} and strides {array.strides}; make such a copy first"
            )
        return array

    def batch(self, argument: str, value: Any, columns: int, dtype: DTypeLike, rows: int | None = None) -> Any:
        """`checks.batch` on the device; an array of the host is copied there."""
        if not self.is_there(value):
            return self.to_device(checks.batch(argument, value, columns, dtype, rows))
        array = self.matrix(argument, value, columns, rows)
        if array.dtype != dtype:
            raise TypeError(f"{argument} must have dtype {dtype} where it is on the GPU, got {array.dtype}; convert it")
        return array

    def to_host(self, array: Any) -> Array:
        """The array on the host: a copy of one of the device."""
        return array if isinstance(array, np.ndarray) else self.module.to_host(array)

    # -------------------------------------------------------------------------------------- data
    def resident(self, arrays: Sequence[Any], dtype: DTypeLike) -> list[Any] | None:
        """Copies of the arrays on the device, or None where they would take too much of its free memory.

        Arrays that are there already are not copied. Arrays of a dtype or layout that kernels do not read are converted
        to ``dtype`` a block at a time.
        """
        dtypes = self.dtypes(arrays, dtype)
        pairs = [pair for pair in zip(arrays, dtypes, strict=True) if pair[0] is not None]
        size = sum(array.size * there.itemsize for array, there in pairs if not self.is_there(array))
        if size > RESIDENT_SHARE * self.memory.free_memory():
            return None
        return [
            None if array is None else self._held(array, there) for array, there in zip(arrays, dtypes, strict=True)
        ]

    def dtypes(self, arrays: Sequence[Any], dtype: DTypeLike) -> list[np.dtype[Any] | None]:
        """The dtypes of the arrays on the device: their own where kernels read it, else ``dtype``."""
        return [
            None if array is None else array.dtype if self.gathers(array.dtype) else np.dtype(dtype) for array in arrays
        ]

    def _held(self, array, dtype):
        if self.is_there(array):
            return array
        held = self.empty(array.shape, dtype)
        for part in checks.blocks(array):
            self.memory.to_device(checks.converted(array[part], dtype), held[part])
        return held

    def pieces(self, arrays: Sequence[Any], dtype: DTypeLike, before: Pieces | None = None) -> Pieces:
        """`Pieces` of arrays of the host."""
        return Pieces(self, arrays, self.dtypes(arrays, dtype), before)
