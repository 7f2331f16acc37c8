"""The softmax of rows, several threads for a row, and the exponentials that it shares with the cross-entropy."""

from functools import cache

import numpy as np

from .compiling import device_function, kernel, made_once
from .driver import cuda
from .formulas import formulas
from .launch import THREADS, for_each_row, max_over_lanes, of_rows, sum_over_lanes
from .operands import INT, matrix, row_of


@cache
def exponentials(dtype):
    """A device function: ``out_j = e^(z_j - shift)`` for this thread's elements of a `Row`; it returns their sum."""
    exponential, zero = formulas(dtype)["exp_of_nonpositive"], dtype.type(0)

    @device_function
    def exponentials(lane, lanes, columns, z, shift, out):
        total = zero
        for j in range(lane, columns, lanes):
            e = exponential(z.data[z.start + j] - shift)
            out.data[out.start + j] = e
            total += e
        return total

    return exponentials


@made_once
def softmax_kernel(dtype):
    """The kernel of `reference.softmax`; as many threads share a row as a block is wide."""
    exponentials_of_row, number = exponentials(dtype), dtype.type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @for_each_row
    @device_function
    def softmax(i, inside, lane, lanes, shared, columns, z_all, out_all):
        z, out, largest, total = row_of(z_all, i), row_of(out_all, i), lowest, zero
        if inside:
            for j in range(lane, columns, lanes):
                logit = z.data[z.start + j]
                largest = logit if logit > largest else largest
        shift = max_over_lanes(shared, largest, lane, lanes)
        if inside:
            total = exponentials_of_row(lane, lanes, columns, z, shift, out)
        share = one / sum_over_lanes(shared, total, lane, lanes)
        if inside:
            for j in range(lane, columns, lanes):
                out.data[out.start + j] *= share

    @kernel(INT, INT, matrix(dtype), matrix(dtype), threads=THREADS)
    def softmax_kernel(rows, columns, z, out):
        shared = cuda.shared.array(THREADS, dtype)
        softmax(rows, cuda.threadIdx.x, cuda.blockDim.x, shared, columns, z, out)

    return softmax_kernel


def softmax(rows, columns, z, out, stream):
    """Launch ``out_ij = e^z_ij / sum_k e^z_ik``, for a `Matrix` each; nothing for an empty one."""
    if rows and columns:
        grid, block = of_rows(rows, columns)
        softmax_kernel(out.data.dtype)[grid, block, stream](rows, columns, z, out)


def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    yield "softmax", softmax_kernel(dtype)
