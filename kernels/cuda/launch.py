"""Grids: how many blocks of how many threads; and the loops and sums over threads that kernels share.

Every thread takes its first element and goes on in steps of the whole grid, so a grid may have any size, and the bits
of an element do not depend on it. No kernel adds floats atomically: sums over threads are trees of a fixed shape.
"""

import operator

import numpy as np

from .compiling import device_function
from .driver import cuda, multiprocessors, simulated

THREADS = 32 if simulated else 256  # of a block; in the simulator each is a slow thread of the host
WAVES = 16  # at most so many blocks for a multiprocessor; beyond, each thread takes more elements
MAX_GRID_Y = 65535


def _power_of_two(n, most):
    """The least power of two that is at least ``n``, and at most ``most``."""
    return min(1 << max(n - 1, 0).bit_length(), most)


def over_elements(count):
    """The grid and block of a kernel for ``count`` elements, which begins with `first_element`."""
    return min(-(-count // THREADS), WAVES * multiprocessors()), THREADS


def over_rows(rows, columns):
    """The grid and block of a kernel for ``rows x columns`` elements, with blocks no wider than the rows need."""
    width = _power_of_two(columns, THREADS)
    height = THREADS // width
    blocks = min(-(-columns // width), MAX_GRID_Y)
    return (min(-(-rows // height), max(WAVES * multiprocessors() // blocks, 1)), blocks), (width, height)


def lanes_of_row(columns):
    """How many threads share a row: a power of two that depends on the length of the row alone."""
    return _power_of_two(-(-columns // 4), THREADS)


def of_rows(rows, columns):
    """The grid and block of a kernel that sums along rows; a block has `lanes_of_row` threads for each of its rows."""
    lanes = lanes_of_row(columns)
    height = THREADS // lanes
    return min(-(-rows // height), WAVES * multiprocessors()), (lanes, height)


@device_function
def first_element():
    """The first element of this thread, and the step to its next one."""
    return (
        np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x,
        np.int64(cuda.gridDim.x) * cuda.blockDim.x,
    )


@device_function
def first_row():
    """The first row of this thread, and the step to its next one."""
    return (
        np.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y,
        np.int64(cuda.gridDim.x) * cuda.blockDim.y,
    )


@device_function
def first_column():
    """The first column of this thread, and the step to its next one."""
    return (
        np.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x,
        np.int64(cuda.gridDim.y) * cuda.blockDim.x,
    )


def for_each_element(function):
    """A device function ``(rows, columns, *operands)`` that calls ``function(i, j, *operands)`` for every element.

    The grid must be that of `over_rows`.
    """

    @device_function
    def loop(rows, columns, *operands):
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                function(i, j, *operands)

    return loop


def for_each_row(function):
    """A device function ``(rows, *operands)`` that calls ``function(i, inside, *operands)`` for every row.

    The grid must be that of `of_rows`. All threads of a block make the same number of calls, so that they can wait for
    one another; ``inside`` is False in a call for a row that does not exist.
    """

    @device_function
    def loop(rows, *operands):
        row, row_step = first_row()
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            function(i, i < rows, *operands)

    return loop


@device_function
def larger(x, y):
    """The larger of two numbers; the second one if either is NaN."""
    return x if x > y else y


@device_function
def smaller(x, y):
    """The smaller of two numbers; the second one if either is NaN."""
    return x if x < y else y


def over_lanes(combine):
    """A device function ``(shared, value, lane, lanes)``: the values of a group of threads combined, for each of them.

    A group is ``lanes`` consecutive threads of a block, a power of two. All threads of the block must call it.
    ``shared`` has an element for each thread of the block. The shape of the tree depends on ``lanes`` alone.
    """

    @device_function
    def combined(shared, value, lane, lanes):
        at = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        shared[at] = value
        cuda.syncthreads()
        half = lanes >> 1
        while half > 0:
            if lane < half:
                shared[at] = combine(shared[at], shared[at + half])
            cuda.syncthreads()
            half >>= 1
        result = shared[at - lane]
        cuda.syncthreads()
        return result

    return combined


sum_over_lanes, max_over_lanes, min_over_lanes = (over_lanes(combine) for combine in (operator.add, larger, smaller))
