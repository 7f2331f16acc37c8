"""Runs the calls of the table on arrays that touch a page nobody may access: ``python -m ... DEVICE``.

Once every array ends where the page begins, once it begins where the page ends. A read or a write past an array, or a
write to one that the contract declares as read, kills the process; the case that did it is the last line printed. Every
array of every declaration has to be in some call.
"""

import ctypes
import faulthandler
import importlib
import mmap
import sys
import zlib

import numpy as np

from fastbp.kernels import layout
from fastbp.kernels.contract import FUNCTIONS

from . import cases

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ = 0, 1


def protect(address, size, access):
    if LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access):
        raise OSError(ctypes.get_errno(), "mprotect")


def fenced(operand: cases.Operand, rng, at_end: bool, written: bool) -> np.ndarray:
    """A copy of the operand that ends, or starts, exactly at an inaccessible page; only read unless it is written."""
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
        protect(page, PAGE, PROT_NONE)
    start = PAGE + (inner - size if at_end else 0)
    strides = (step * value.itemsize, value.itemsize)[-value.ndim :]
    array = np.ndarray(value.shape, value.dtype, region, start, strides)
    array[...] = value
    if not written:
        protect(address + PAGE, inner, PROT_READ)
    return array


def run(backend):
    left = {(function, name) for function, declaration in FUNCTIONS.items() for name in declaration.operands}
    for case in cases.CASES:
        if case.arguments is None or not case.quick:
            continue
        for dtype in case.dtypes:
            for at_end in (True, False):
                print(f"{case} {np.dtype(dtype).name} {'end' if at_end else 'start'}", flush=True)
                rng = cases.GENERATOR(zlib.crc32(case.label.encode()))
                arguments = case.arguments(rng, dtype)
                if case.function == "network_train_steps":  # which GPUs refuse to fill, so the table leaves it out
                    step_squares = cases.output(arguments[cases.AT["step_loss"]].value.shape, np.float64)
                    arguments = (*arguments, step_squares)
                declared = cases.uses(case.function, arguments)
                left.difference_update((case.function, use.name) for use in declared if use.operand.value.size)
                in_order = iter(declared)

                def place(operand, rng=rng, at_end=at_end, in_order=in_order):
                    return fenced(operand, rng, at_end, next(in_order).written)

                getattr(backend, case.function)(*cases.each(arguments, place, backend, dtype))
    assert not left, f"no call has these arrays: {sorted(left)}"


def trip():
    """Read one element past an array."""
    array = fenced(cases.given(np.zeros(5, np.float32)), None, at_end=True, written=False)
    ctypes.string_at(array.ctypes.data + array.nbytes, 1)


def write():
    """Write to an array that is only read."""
    array = fenced(cases.given(np.zeros(5, np.float32)), None, at_end=True, written=False)
    ctypes.memset(array.ctypes.data, 1, 1)


if __name__ == "__main__":
    faulthandler.enable()
    if sys.argv[1] == "trip":
        trip()
    elif sys.argv[1] == "write":
        write()
    else:
        run(importlib.import_module(f"fastbp.kernels.{sys.argv[1]}"))
