"""Kernels that scale and clear whole arrays, and sums over the weights and biases in a parameter buffer.

They compute what `reference.scale`, `clear`, `squared_norm` and `all_finite` define. A sum adds up the sums of fixed
pieces of the buffer in their order, so its bits do not depend on the grid.
"""

import numpy as np

from .compiling import device_function, kernel, made_once, vector
from .driver import cuda, simulated
from .launch import THREADS, WAVES, first_element, multiprocessors, over_elements, sum_over_lanes
from .operands import FLOAT, FLOATS, INT, INTS

PIECE = THREADS * (16 if simulated else 32)  # elements of a piece of the buffer, which a block sums


@made_once
def scale_kernel(dtype):
    """The kernel of ``out = factor x``."""
    number = dtype.type

    @kernel(INT, vector(dtype), FLOAT, vector(dtype), threads=THREADS)
    def scale_kernel(count, x, factor, out):
        by = number(factor)
        first, step = first_element()
        for i in range(first, count, step):
            out[i] = x[i] * by

    return scale_kernel


def scale(x, factor, out, stream):
    """Launch ``out = factor x``, on flat arrays of one dtype; nothing for empty ones."""
    if out.size:
        grid, block = over_elements(out.size)
        scale_kernel(out.dtype)[grid, block, stream](out.size, x, factor, out)


@made_once
def clear_kernel(dtype):
    """The kernel of ``out = 0``."""
    zero = dtype.type(0)

    @kernel(INT, vector(dtype), threads=THREADS)
    def clear_kernel(count, out):
        first, step = first_element()
        for i in range(first, count, step):
            out[i] = zero

    return clear_kernel


def clear(out, stream):
    """Launch ``out = 0``, on a flat array; nothing for an empty one."""
    if out.size:
        grid, block = over_elements(out.size)
        clear_kernel(out.dtype)[grid, block, stream](out.size, out)


# ---------------------------------------------------------------------------------------------- sums
# What is summed over the elements x of a buffer, as float64.
def square(x):
    """``x^2``: the sum is the square of the norm."""
    return np.float64(x) * np.float64(x)


def zero_if_finite(x):
    """0, but NaN where x is NaN or infinite: the sum is 0 where everything is finite."""
    return np.float64(x - x)


@made_once
def piece_sum_kernel(name, dtype):
    """The kernel that sets ``sums[p]`` to the sum of a formula over the weights and biases in piece p of the buffer.

    ``places`` has four integers for each weight and bias: where it begins, its rows, columns and leading dimension.
    """
    formula = device_function(globals()[name])

    @device_function
    def part_sum(begin, rows, columns, ld, first, last, buffer):
        """This thread's share of the sum over an array that begins at ``begin``, between ``first`` and ``last``."""
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


@made_once
def sum_kernel():
    """The kernel that sets ``out[at]`` to the sum of the first ``count`` elements of ``x``, by one block."""

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
    """The number of pieces of a buffer of ``size`` elements."""
    return -(-size // PIECE)


def parameter_sum(name, places, buffer, sums, stream):
    """Launch the sum of the formula ``name`` over all weights and biases.

    The sums of the pieces go to the first `pieces_of` elements of ``sums``, float64, and the whole sum to the next one.
    """
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
