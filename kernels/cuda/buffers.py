"""Kernels that scale and clear whole arrays, and sum over the weights and biases in a parameter buffer.

What they compute is `reference.scale` and its neighbours. A sum adds the sums of fixed pieces of the buffer in their
order, so its bits do not depend on the grid.
"""

from functools import cache

import numpy as np

from .compiling import device_function, kernel, vector
from .driver import cuda, simulated
from .launch import THREADS, WAVES, first_element, multiprocessors, over_elements, sum_over_lanes
from .operands import FLOAT, FLOATS, INT, INTS

PIECE = THREADS * (16 if simulated else 32)  # elements of the buffer that a block sums at once


@cache
def scale_kernel(dtype):
    """``out = factor x``."""
    number = dtype.type

    @kernel(INT, vector(dtype), FLOAT, vector(dtype), threads=THREADS)
    def scale_kernel(count, x, factor, out):
        by = number(factor)
        first, step = first_element()
        for i in range(first, count, step):
            out[i] = x[i] * by

    return scale_kernel


def scale(x, factor, out, stream):
    """Launch it; nothing where there is no element."""
    if out.size:
        grid, block = over_elements(out.size)
        scale_kernel(out.dtype)[grid, block, stream](out.size, x, factor, out)


@cache
def clear_kernel(dtype):
    """``out = 0``."""
    zero = dtype.type(0)

    @kernel(INT, vector(dtype), threads=THREADS)
    def clear_kernel(count, out):
        first, step = first_element()
        for i in range(first, count, step):
            out[i] = zero

    return clear_kernel


def clear(out, stream):
    """Launch it; nothing where there is no element."""
    if out.size:
        grid, block = over_elements(out.size)
        clear_kernel(out.dtype)[grid, block, stream](out.size, out)


# ---------------------------------------------------------------------------------------------- sums
# What is summed, in float64, over the elements x of a dtype.
def square(x):
    """Of the norm."""
    return np.float64(x) * np.float64(x)


def zero_if_finite(x):
    """0, and NaN where x is NaN or infinite: a sum of them is 0 where everything is finite."""
    return np.float64(x - x)


@cache
def piece_sum_kernel(name, dtype):
    """``sums[p]`` = the sum of a formula over the weights and biases in piece p of the buffer."""
    formula = device_function(globals()[name])

    @device_function
    def part_sum(begin, rows, columns, ld, first, last, buffer):
        """This thread's share of the rows that begin at ``begin`` and lie between ``first`` and ``last``."""
        total = np.float64(0)
        at, end = max(begin, first) + cuda.threadIdx.x, min(begin + rows * ld, last)
        if at < end:
            column, step = (at - begin) % ld, cuda.blockDim.x % ld
            for i in range(at, end, cuda.blockDim.x):
                if column < columns:
                    total += formula(buffer[i])
                column += step
                if column >= ld:
                    column -= ld
        return total

    @kernel(INT, INT, INTS, vector(dtype), FLOATS, threads=THREADS)
    def piece_sum_kernel(pieces, arrays, places, buffer, sums):
        shared = cuda.shared.array(THREADS, np.float64)
        for piece in range(np.int64(cuda.blockIdx.x), pieces, np.int64(cuda.gridDim.x)):
            first = piece * PIECE
            last = first + PIECE
            total = np.float64(0)
            for array in range(arrays):
                at = 4 * array
                begin, rows, columns, ld = places[at], places[at + 1], places[at + 2], places[at + 3]
                total += part_sum(begin, rows, columns, ld, first, last, buffer)
            total = sum_over_lanes(shared, total, cuda.threadIdx.x, cuda.blockDim.x)
            if cuda.threadIdx.x == 0:
                sums[piece] = total

    return piece_sum_kernel


@cache
def sum_kernel():
    """``out[at]`` = the sum of the first ``count`` elements of ``x``. One block."""

    @kernel(INT, FLOATS, INT, FLOATS, threads=THREADS)
    def sum_kernel(count, x, at, out):
        shared = cuda.shared.array(THREADS, np.float64)
        total = np.float64(0)
        for i in range(np.int64(cuda.threadIdx.x), count, np.int64(cuda.blockDim.x)):
            total += x[i]
        total = sum_over_lanes(shared, total, cuda.threadIdx.x, cuda.blockDim.x)
        if cuda.threadIdx.x == 0:
            out[at] = total

    return sum_kernel


def pieces_of(size):
    """Pieces of a buffer of ``size`` elements."""
    return -(-size // PIECE)


def parameter_sum(name, places, buffer, sums, stream):
    """The sum of a formula over all weights and biases into ``sums[pieces]``, after those of the pieces."""
    pieces = pieces_of(buffer.size)
    grid = max(min(pieces, WAVES * multiprocessors()), 1)
    piece_sum_kernel(name, buffer.dtype)[grid, THREADS, stream](pieces, len(places) // 4, places, buffer, sums)
    sum_kernel()[1, THREADS, stream](pieces, sums, pieces, sums)


# ------------------------------------------------------------------------------------------- catalogue
def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    yield "scale", scale_kernel(dtype)
    yield "clear", clear_kernel(dtype)
    for name in ("square", "zero_if_finite"):
        yield f"piece_sum {name}", piece_sum_kernel(name, dtype)
    yield "sum", sum_kernel()
