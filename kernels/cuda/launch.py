"""How many blocks of how many threads, and the sums and indices that kernels share.

A grid follows from shapes alone and every thread strides over what is left to do, so that any size works; what an
element's bits are does not depend on the grid. No kernel adds floats atomically: sums are trees of a fixed shape.
"""

import numpy as np

from .compiling import device_function
from .driver import cuda, multiprocessors, simulated

THREADS = 32 if simulated else 256  # a block; the simulator's threads are threads of the host, and dear
WAVES = 16  # blocks a multiprocessor is given at most before its threads stride
MAX_GRID_Y = 65535


def _power_of_two(n, most):
    """The least power of two that is at least ``n``, and at most ``most``."""
    return min(1 << max(n - 1, 0).bit_length(), most)


def over_elements(count):
    """The grid and block of a kernel of ``count`` independent elements; see `first_element`."""
    return min(-(-count // THREADS), WAVES * multiprocessors()), THREADS


def over_rows(rows, columns):
    """The grid and block of a kernel of ``rows x columns`` elements: blocks as wide as the rows need."""
    width = _power_of_two(columns, THREADS)
    height = THREADS // width
    blocks = min(-(-columns // width), MAX_GRID_Y)
    return (min(-(-rows // height), max(WAVES * multiprocessors() // blocks, 1)), blocks), (width, height)


def lanes_of_row(columns):
    """Threads that share a row: a power of two, by its length alone."""
    return _power_of_two(-(-columns // 4), THREADS)


def of_rows(rows, columns):
    """The grid and block of a kernel that sums along rows: threads a row, rows a block."""
    lanes = lanes_of_row(columns)
    height = THREADS // lanes
    return min(-(-rows // height), WAVES * multiprocessors()), (lanes, height)


@device_function
def first_element():
    """This thread's first element, and how far it is to the next."""
    return (
        np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x,
        np.int64(cuda.gridDim.x) * cuda.blockDim.x,
    )


@device_function
def first_row():
    """This thread's first row, and how far it is to the next."""
    return (
        np.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y,
        np.int64(cuda.gridDim.x) * cuda.blockDim.y,
    )


@device_function
def first_column():
    """This thread's first column, and how far it is to the next."""
    return (
        np.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x,
        np.int64(cuda.gridDim.y) * cuda.blockDim.x,
    )


def for_each_element(function):
    """A device function ``(rows, columns, *operands)`` that calls ``function(i, j, *operands)`` for every element.

    The grid is that of `over_rows`.
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

    The grid is that of `of_rows`. All threads of a block make every call together, so there may be one for a row that
    does not exist; ``inside`` tells whether it does.
    """

    @device_function
    def loop(rows, *operands):
        row, row_step = first_row()
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            function(i, i < rows, *operands)

    return loop


@device_function
def add(x, y):
    """The sum of two numbers."""
    return x + y


@device_function
def larger(x, y):
    """The larger of two numbers; the second where one is NaN."""
    return x if x > y else y


@device_function
def smaller(x, y):
    """The smaller of two numbers; the second where one is NaN."""
    return x if x < y else y


def over_lanes(combine):
    """A device function ``(shared, value, lane, lanes)``: the values of a group of threads, known to each of them.

    The threads of a group, ``lanes`` of them, a power of two, follow one another in the block; all threads of the block
    must call it. ``shared`` has an element a thread; the tree's shape depends on ``lanes`` alone.
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


sum_over_lanes, max_over_lanes, min_over_lanes = (over_lanes(combine) for combine in (add, larger, smaller))
