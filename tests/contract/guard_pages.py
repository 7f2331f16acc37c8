"""Runs the calls of the table on arrays that touch a page nobody may access: ``python -m ... DEVICE``.

Once every array ends where the page begins, once it begins where the page ends. A read or a write past an array
kills the process; the case that did it is the last line printed.
"""

import ctypes
import faulthandler
import functools
import importlib
import mmap
import sys
import zlib

import numpy as np

from fastbp.kernels import layout

from . import cases

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
PROT_NONE = 0


def fenced(operand: cases.Operand, rng, at_end: bool) -> np.ndarray:
    """A copy of the operand that ends, or starts, exactly at an inaccessible page."""
    value = operand.value
    rows, columns = value.shape if value.ndim == 2 else (1, value.size)
    step = columns
    if value.ndim == 2 and operand.strided:
        step = int(rng.choice([columns, layout.leading_dimension(columns, value.itemsize), columns + 3]))
    size = ((rows - 1) * step + columns if value.size else 0) * value.itemsize
    inner = -(-max(size, 1) // PAGE) * PAGE
    region = mmap.mmap(-1, inner + 2 * PAGE)
    address = np.frombuffer(region, np.uint8).ctypes.data
    for page in (address, address + PAGE + inner):
        if LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE + (inner - size if at_end else 0)
    strides = (step * value.itemsize, value.itemsize)[-value.ndim :]
    array = np.ndarray(value.shape, value.dtype, region, start, strides)
    array[...] = value
    return array


def run(backend):
    for case in cases.CASES:
        if case.arguments is None or not case.quick:
            continue
        for dtype in case.dtypes:
            for at_end in (True, False):
                print(f"{case} {np.dtype(dtype).name} {'end' if at_end else 'start'}", flush=True)
                rng = cases.GENERATOR(zlib.crc32(case.label.encode()))
                arguments = case.arguments(rng, dtype)
                place = functools.partial(fenced, rng=rng, at_end=at_end)
                getattr(backend, case.function)(*cases.each(arguments, place, backend, dtype))


def trip():
    """Read one element past an array."""
    array = fenced(cases.given(np.zeros(5, np.float32)), None, at_end=True)
    ctypes.string_at(array.ctypes.data + array.nbytes, 1)


if __name__ == "__main__":
    faulthandler.enable()
    if sys.argv[1] == "trip":
        trip()
    else:
        run(importlib.import_module(f"fastbp.kernels.{sys.argv[1]}"))
