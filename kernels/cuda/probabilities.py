"""The softmax of rows, several threads a row, and the exponentials that the cross-entropy shares."""

from functools import cache

import numpy as np

from .driver import cuda, device_function, kernel, types, vector
from .formulas import formulas
from .launch import THREADS, first_row, max_over_lanes, of_rows, sum_over_lanes


@cache
def exponentials(dtype):
    """A device function: ``out = e^(z - shift)`` of a thread's part of a row, whose sum it returns."""
    exponential, zero = formulas(dtype)["exp_of_nonpositive"], dtype.type(0)

    @device_function
    def exponentials(lane, lanes, columns, z, s, shift, out, o):
        total = zero
        for j in range(lane, columns, lanes):
            e = exponential(z[s + j] - shift)
            out[o + j] = e
            total += e
        return total

    return exponentials


@cache
def softmax_kernel(dtype):
    """`reference.softmax`; a row has as many threads as a block is wide."""
    exponentials_of_row, number = exponentials(dtype), dtype.type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @kernel(threads=THREADS)
    def softmax_kernel(rows, columns, z, z_offset, ldz, out, out_offset, ldo):
        shared = cuda.shared.array(THREADS, dtype)
        row, row_step = first_row()
        lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            inside = i < rows
            s, o = z_offset + i * ldz, out_offset + i * ldo
            largest, total = lowest, zero
            if inside:
                for j in range(lane, columns, lanes):
                    largest = z[s + j] if z[s + j] > largest else largest
            shift = max_over_lanes(shared, largest, lane, lanes)
            if inside:
                total = exponentials_of_row(lane, lanes, columns, z, s, shift, out, o)
            share = one / sum_over_lanes(shared, total, lane, lanes)
            if inside:
                for j in range(lane, columns, lanes):
                    out[o + j] *= share

    return softmax_kernel


def softmax(rows, columns, z, z_offset, ldz, out, out_offset, ldo, stream):
    """Launch it; nothing where there is no element."""
    if rows and columns:
        grid, block = of_rows(rows, columns)
        softmax_kernel(out.dtype)[grid, block, stream](rows, columns, z, z_offset, ldz, out, out_offset, ldo)


def kernels(dtype):
    """Every kernel of this file: (name, kernel, signature)."""
    i, a = types.int64, vector(dtype)
    yield "softmax", softmax_kernel(dtype), (i, i, a, i, i, a, i, i)
