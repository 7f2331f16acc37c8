"""Sums of two arrays, normalisations along rows and over the batch, and what the way back takes of them.

A launcher takes ``(rows, columns, number, *operands, stream)``, the operands as `reference` has them: a matrix as
(array, offset, leading dimension), a vector as an array, None where there is none. It launches nothing where there is
nothing to do. Along a row the threads of
`launch.of_rows` share it; down the columns a block takes some columns, its lanes every so many rows, in an order that
the shape alone decides.
"""

from functools import cache

import numpy as np

from .driver import cuda, device_function, empty, kernel, types, vector
from .elementwise import SUM_COLUMNS, SUM_LANES
from .formulas import formulas
from .launch import (
    THREADS,
    first_column,
    first_element,
    first_row,
    of_rows,
    over_elements,
    over_rows,
    sum_over_lanes,
)
from .record import STOPPED


@cache
def add_kernel(dtype):
    """``out = x + y``."""

    @kernel(threads=THREADS)
    def add_kernel(rows, columns, x, x_offset, ldx, y, y_offset, ldy, out, out_offset, ldo):
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                out[out_offset + i * ldo + j] = x[x_offset + i * ldx + j] + y[y_offset + i * ldy + j]

    return add_kernel


def add(rows, columns, number, x, y, out, stream):
    if rows and columns:
        grid, block = over_rows(rows, columns)
        add_kernel(out[0].dtype)[grid, block, stream](rows, columns, *x, *y, *out)


# -------------------------------------------------------------------------------------- along rows
@cache
def layer_norm_kernel(dtype, affine, keeps):
    """`reference.layer_norm_forward`."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one = number(1)

    @kernel(threads=THREADS)
    def layer_norm_kernel(
        rows, columns, eps, x, x_offset, ldx, weight, bias, out, out_offset, ldo, saved, saved_offset, lds,
        scale, scale_offset, ld_scale,
    ):  # fmt: skip
        shared = cuda.shared.array(THREADS, dtype)
        row, row_step = first_row()
        lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
        share = one / number(columns)
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            inside = i < rows
            at, total, squares = x_offset + i * ldx, zero, zero
            if inside:
                for j in range(lane, columns, lanes):
                    total += x[at + j]
            mean = sum_over_lanes(shared, total, lane, lanes) * share
            if inside:
                for j in range(lane, columns, lanes):
                    squares += (x[at + j] - mean) * (x[at + j] - mean)
            factor = one / square_root(sum_over_lanes(shared, squares, lane, lanes) * share + number(eps))
            if inside:
                if lane == 0:
                    scale[scale_offset + i * ld_scale] = factor
                for j in range(lane, columns, lanes):
                    normalised = (x[at + j] - mean) * factor
                    if keeps:
                        saved[saved_offset + i * lds + j] = normalised
                    if affine:
                        normalised = normalised * weight[j] + bias[j]
                    out[out_offset + i * ldo + j] = normalised

    return layer_norm_kernel


def layer_norm_forward(rows, columns, eps, x, weight, bias, out, saved, scale, stream):
    if rows and columns:
        affine, keeps, memory = weight is not None, saved is not None, out[0]
        grid, block = of_rows(rows, columns)
        layer_norm_kernel(memory.dtype, affine, keeps)[grid, block, stream](
            rows, columns, eps, *x, weight if affine else memory, bias if affine else memory,
            *out, *(saved if keeps else (memory, 0, 0)), *scale,
        )  # fmt: skip


@cache
def layer_norm_back_kernel(dtype, affine):
    """`reference.layer_norm_backward_input`."""
    number, zero = dtype.type, dtype.type(0)
    one = number(1)

    @kernel(threads=THREADS)
    def layer_norm_back_kernel(
        rows, columns, grad, g_offset, ldg, weight, saved, saved_offset, lds, scale, scale_offset, ld_scale,
        out, out_offset, ldo,
    ):  # fmt: skip
        shared = cuda.shared.array(THREADS, dtype)
        row, row_step = first_row()
        lane, lanes = cuda.threadIdx.x, cuda.blockDim.x
        share = one / number(columns)
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            inside = i < rows
            at, kept, total, along = g_offset + i * ldg, saved_offset + i * lds, zero, zero
            if inside:
                for j in range(lane, columns, lanes):
                    g = grad[at + j] * weight[j] if affine else grad[at + j]
                    total += g
                    along += g * saved[kept + j]
            mean = sum_over_lanes(shared, total, lane, lanes) * share
            slope = sum_over_lanes(shared, along, lane, lanes) * share
            if inside:
                factor = scale[scale_offset + i * ld_scale]
                for j in range(lane, columns, lanes):
                    g = grad[at + j] * weight[j] if affine else grad[at + j]
                    out[out_offset + i * ldo + j] = factor * (g - mean - saved[kept + j] * slope)

    return layer_norm_back_kernel


def layer_norm_backward_input(rows, columns, number, grad_out, weight, saved, scale, grad_x, stream):
    if rows and columns:
        affine = weight is not None
        grid, block = of_rows(rows, columns)
        layer_norm_back_kernel(grad_x[0].dtype, affine)[grid, block, stream](
            rows, columns, *grad_out, weight if affine else grad_x[0], *saved, *scale, *grad_x
        )


# ------------------------------------------------------------------------------------ down columns
@device_function
def sum_of_lanes(shared, value):
    """The sum of the lanes of a column, in their order, known to each of them; all threads of the block call it."""
    shared[cuda.threadIdx.y, cuda.threadIdx.x] = value
    cuda.syncthreads()
    total = shared[0, cuda.threadIdx.x]
    for other in range(1, SUM_LANES):
        total += shared[other, cuda.threadIdx.x]
    cuda.syncthreads()
    return total


def over_columns(columns):
    """The grid and block of the kernels below."""
    return -(-columns // SUM_COLUMNS), (SUM_COLUMNS, SUM_LANES)


@cache
def norm_gradients_kernel(dtype):
    """`reference.norm_backward_params`."""
    zero = dtype.type(0)

    @kernel(threads=THREADS)
    def norm_gradients_kernel(rows, columns, beta, grad, g_offset, ldg, saved, saved_offset, lds, of_weight, of_bias):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.x) * SUM_COLUMNS + cuda.threadIdx.x
        along, total = zero, zero
        if j < columns:
            for i in range(np.int64(lane), rows, SUM_LANES):
                g = grad[g_offset + i * ldg + j]
                along += g * saved[saved_offset + i * lds + j]
                total += g
        along = sum_of_lanes(shared, along)
        total = sum_of_lanes(shared, total)
        if lane == 0 and j < columns:
            of_weight[j] = of_weight[j] + along if beta else along
            of_bias[j] = of_bias[j] + total if beta else total

    return norm_gradients_kernel


def norm_backward_params(rows, columns, beta, grad_out, saved, grad_weight, grad_bias, stream):
    if columns:
        grid, block = over_columns(columns)
        norm_gradients_kernel(grad_weight.dtype)[grid, block, stream](
            rows, columns, int(beta), *grad_out, *saved, grad_weight, grad_bias
        )


@cache
def moments_kernel(dtype):
    """`reference.batch_moments`."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one, nan = number(1), number(np.nan)

    @kernel(threads=THREADS)
    def moments_kernel(rows, columns, eps, x, x_offset, ldx, row_weight, mean, scale, variance):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        shared_weight = cuda.shared.array((SUM_LANES, SUM_COLUMNS), np.float64)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.x) * SUM_COLUMNS + cuda.threadIdx.x
        inside = j < columns
        total, spread, squares, counted = zero, zero, np.float64(0), np.float64(0)
        for i in range(np.int64(lane), rows, SUM_LANES):
            squares += row_weight[i] * row_weight[i]
            counted += np.float64(1) if row_weight[i] > 0 else np.float64(0)
            if inside:
                total += x[x_offset + i * ldx + j] * number(row_weight[i])
        squares = sum_of_lanes(shared_weight, squares)
        counted = sum_of_lanes(shared_weight, counted)
        centre = sum_of_lanes(shared, total)
        if inside:
            for i in range(np.int64(lane), rows, SUM_LANES):
                centred = x[x_offset + i * ldx + j] - centre
                spread += centred * centred * number(row_weight[i])
        spread = sum_of_lanes(shared, spread)
        if lane == 0 and inside:
            mean[j] = centre
            scale[j] = one / square_root(spread + number(eps))
            variance[j] = spread * number(np.float64(1) / (np.float64(1) - squares)) if counted > 1 else nan

    return moments_kernel


def batch_moments(rows, columns, eps, x, row_weight, mean, scale, variance, stream):
    if columns:
        grid, block = over_columns(columns)
        moments_kernel(mean.dtype)[grid, block, stream](rows, columns, eps, *x, row_weight, mean, scale, variance)


@cache
def running_kernel(dtype):
    """`reference.running_moments`."""
    number, square_root = dtype.type, formulas(dtype)["square_root"]
    one = number(1)

    @kernel(threads=THREADS)
    def running_kernel(columns, eps, running_mean, running_var, mean, scale):
        first, step = first_element()
        for j in range(first, columns, step):
            mean[j] = running_mean[j]
            scale[j] = one / square_root(running_var[j] + number(eps))

    return running_kernel


def running_moments(rows, columns, eps, running_mean, running_var, mean, scale, stream):
    if columns:
        grid, block = over_elements(columns)
        running_kernel(mean.dtype)[grid, block, stream](columns, eps, running_mean, running_var, mean, scale)


@cache
def batch_norm_kernel(dtype, affine, keeps):
    """`reference.batch_norm_forward`."""

    @kernel(threads=THREADS)
    def batch_norm_kernel(
        rows, columns, x, x_offset, ldx, mean, scale, weight, bias, out, out_offset, ldo, saved, saved_offset, lds
    ):
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                normalised = (x[x_offset + i * ldx + j] - mean[j]) * scale[j]
                if keeps:
                    saved[saved_offset + i * lds + j] = normalised
                if affine:
                    normalised = normalised * weight[j] + bias[j]
                out[out_offset + i * ldo + j] = normalised

    return batch_norm_kernel


def batch_norm_forward(rows, columns, number, x, mean, scale, weight, bias, out, saved, stream):
    if rows and columns:
        affine, keeps = weight is not None, saved is not None
        grid, block = over_rows(rows, columns)
        batch_norm_kernel(out[0].dtype, affine, keeps)[grid, block, stream](
            rows, columns, *x, mean, scale, weight if affine else mean, bias if affine else mean,
            *out, *(saved if keeps else (out[0], 0, 0)),
        )  # fmt: skip


@cache
def batch_norm_back_kernel(dtype, affine, learns):
    """`reference.batch_norm_backward_input`; without ``learns`` the moments are constants."""
    number = dtype.type

    @kernel(threads=THREADS)
    def batch_norm_back_kernel(
        rows, columns, grad, g_offset, ldg, row_weight, weight, saved, saved_offset, lds, scale, products, sums,
        out, out_offset, ldo,
    ):  # fmt: skip
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                g = grad[g_offset + i * ldg + j]
                if learns:
                    g -= number(row_weight[i]) * (sums[j] + saved[saved_offset + i * lds + j] * products[j])
                factor = scale[j] * weight[j] if affine else scale[j]
                out[out_offset + i * ldo + j] = g * factor

    return batch_norm_back_kernel


def batch_norm_backward_input(
    rows, columns, number, grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x, stream
):
    if rows and columns:
        affine, learns = weight is not None, grad_weight is not None
        grid, block = over_rows(rows, columns)
        batch_norm_back_kernel(grad_x[0].dtype, affine, learns)[grid, block, stream](
            rows, columns, *grad_out, row_weight if learns else empty(1, np.float64),
            weight if affine else scale, *saved, scale,
            grad_weight if learns else scale, grad_bias if learns else scale, *grad_x,
        )  # fmt: skip


@cache
def statistics_kernel(dtype):
    """`reference.update_statistics`; nothing once the loss of the record's run is not finite."""
    number = dtype.type
    one = number(1)

    @kernel(threads=THREADS)
    def statistics_kernel(columns, momentum, record, mean, variance, running_mean, running_var):
        share = number(momentum)
        rest = one - share
        first, step = first_element()
        for j in range(first, columns, step):
            if record[STOPPED] == 0 and variance[j] == variance[j]:
                running_mean[j] = rest * running_mean[j] + share * mean[j]
                running_var[j] = rest * running_var[j] + share * variance[j]

    return statistics_kernel


def update_statistics(columns, momentum, record, mean, variance, running_mean, running_var, stream):
    """Launch it, with a `Record`."""
    if columns:
        grid, block = over_elements(columns)
        statistics_kernel(mean.dtype)[grid, block, stream](
            columns, momentum, record.device, mean, variance, running_mean, running_var
        )


# What is launched by its operands alone.
OPERATIONS = {
    launcher.__name__: launcher
    for launcher in (
        add, layer_norm_forward, layer_norm_backward_input, norm_backward_params, batch_moments, running_moments,
        batch_norm_forward, batch_norm_backward_input,
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------- catalogue
def kernels(dtype):
    """Every kernel of this file: (name, kernel, signature)."""
    i, f, a, ints, doubles = types.int64, types.float64, vector(dtype), vector(np.int64), vector(np.float64)
    m = a, i, i
    yield "add", add_kernel(dtype), (i, i, *m, *m, *m)
    for affine in (False, True):
        words = " affine" * affine
        yield f"layer_norm_back{words}", layer_norm_back_kernel(dtype, affine), (i, i, *m, a, *m, *m, *m)
        for other in (False, True):
            title = words + " keeps" * other
            yield f"layer_norm{title}", layer_norm_kernel(dtype, affine, other), (i, i, f, *m, a, a, *m, *m, *m)
            yield f"batch_norm{title}", batch_norm_kernel(dtype, affine, other), (i, i, *m, a, a, a, a, *m, *m)
            signature = (i, i, *m, doubles, a, *m, a, a, a, *m)
            yield f"batch_norm_back{words}{' learns' * other}", batch_norm_back_kernel(dtype, affine, other), signature
    yield "norm_gradients", norm_gradients_kernel(dtype), (i, i, i, *m, *m, a, a)
    yield "moments", moments_kernel(dtype), (i, i, f, *m, doubles, a, a, a)
    yield "running", running_kernel(dtype), (i, f, a, a, a, a)
    yield "statistics", statistics_kernel(dtype), (i, f, ints, a, a, a, a)
