"""Sums of two arrays, normalisations along rows and over the batch, and what the way back needs of them.

A launcher takes ``(rows, columns, number, *operands, stream)``, with the operands of `reference`: a `Matrix`, an array
for a vector, None where there is none. It launches nothing where there is nothing to do. The threads of `of_rows` share
a row. A block takes some columns, and of them each of its lanes takes every so many rows. The shape alone decides the
order of a sum.
"""

from functools import cache

import numpy as np

from .compiling import device_function, kernel, vector
from .driver import cuda
from .elementwise import SUM_COLUMNS, SUM_LANES
from .formulas import formulas
from .launch import (
    THREADS,
    first_element,
    for_each_element,
    for_each_row,
    of_rows,
    over_elements,
    over_rows,
    sum_over_lanes,
)
from .memory import empty
from .operands import FLOAT, FLOATS, INT, INTS, at, matrix, row_of
from .record import STOPPED


@cache
def add_kernel(dtype):
    """``out = x + y``."""

    @for_each_element
    @device_function
    def add(i, j, x, y, out):
        out.data[at(out, i, j)] = x.data[at(x, i, j)] + y.data[at(y, i, j)]

    @kernel(INT, INT, matrix(dtype), matrix(dtype), matrix(dtype), threads=THREADS)
    def add_kernel(rows, columns, x, y, out):
        add(rows, columns, x, y, out)

    return add_kernel


def add(rows, columns, number, x, y, out, stream):
    """Launch `reference.add`."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        add_kernel(out.data.dtype)[grid, block, stream](rows, columns, x, y, out)


# -------------------------------------------------------------------------------------- along rows
@cache
def layer_norm_kernel(dtype, affine, keeps):
    """`reference.layer_norm_forward`."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one, a, m = number(1), vector(dtype), matrix(dtype)

    @for_each_row
    @device_function
    def normalise(i, inside, shared, columns, eps, x_all, weight, bias, out_all, saved, scale):
        lane, lanes, share = cuda.threadIdx.x, cuda.blockDim.x, one / number(columns)
        x, out, total, squares = row_of(x_all, i), row_of(out_all, i), zero, zero
        if inside:
            for j in range(lane, columns, lanes):
                total += x.data[x.start + j]
        mean = sum_over_lanes(shared, total, lane, lanes) * share
        if inside:
            for j in range(lane, columns, lanes):
                squares += (x.data[x.start + j] - mean) * (x.data[x.start + j] - mean)
        factor = one / square_root(sum_over_lanes(shared, squares, lane, lanes) * share + eps)
        if inside:
            if lane == 0:
                scale.data[at(scale, i, 0)] = factor
            for j in range(lane, columns, lanes):
                normalised = (x.data[x.start + j] - mean) * factor
                if keeps:
                    saved.data[at(saved, i, j)] = normalised
                if affine:
                    normalised = normalised * weight[j] + bias[j]
                out.data[out.start + j] = normalised

    @kernel(INT, INT, FLOAT, m, a, a, m, m, m, threads=THREADS)
    def layer_norm_kernel(rows, columns, eps, x, weight, bias, out, saved, scale):
        shared = cuda.shared.array(THREADS, dtype)
        normalise(rows, shared, columns, number(eps), x, weight, bias, out, saved, scale)

    return layer_norm_kernel


def layer_norm_forward(rows, columns, eps, x, weight, bias, out, saved, scale, stream):
    """Launch `reference.layer_norm_forward`."""
    if rows and columns:
        affine, keeps = weight is not None, saved is not None
        grid, block = of_rows(rows, columns)
        layer_norm_kernel(out.data.dtype, affine, keeps)[grid, block, stream](
            rows, columns, eps, x, weight if affine else out.data, bias if affine else out.data, out,
            saved if keeps else out, scale,
        )  # fmt: skip


@cache
def layer_norm_back_kernel(dtype, affine):
    """`reference.layer_norm_backward_input`."""
    number, zero = dtype.type, dtype.type(0)
    one, a, m = number(1), vector(dtype), matrix(dtype)

    @for_each_row
    @device_function
    def differentiate(i, inside, shared, columns, grad_all, weight, saved_all, scale, out):
        lane, lanes, share = cuda.threadIdx.x, cuda.blockDim.x, one / number(columns)
        grad, saved, total, along = row_of(grad_all, i), row_of(saved_all, i), zero, zero
        if inside:
            for j in range(lane, columns, lanes):
                g = grad.data[grad.start + j] * weight[j] if affine else grad.data[grad.start + j]
                total += g
                along += g * saved.data[saved.start + j]
        mean = sum_over_lanes(shared, total, lane, lanes) * share
        slope = sum_over_lanes(shared, along, lane, lanes) * share
        if inside:
            factor = scale.data[at(scale, i, 0)]
            for j in range(lane, columns, lanes):
                g = grad.data[grad.start + j] * weight[j] if affine else grad.data[grad.start + j]
                out.data[at(out, i, j)] = factor * (g - mean - saved.data[saved.start + j] * slope)

    @kernel(INT, INT, m, a, m, m, m, threads=THREADS)
    def layer_norm_back_kernel(rows, columns, grad, weight, saved, scale, out):
        shared = cuda.shared.array(THREADS, dtype)
        differentiate(rows, shared, columns, grad, weight, saved, scale, out)

    return layer_norm_back_kernel


def layer_norm_backward_input(rows, columns, number, grad_out, weight, saved, scale, grad_x, stream):
    """Launch `reference.layer_norm_backward_input`."""
    if rows and columns:
        affine = weight is not None
        grid, block = of_rows(rows, columns)
        layer_norm_back_kernel(grad_x.data.dtype, affine)[grid, block, stream](
            rows, columns, grad_out, weight if affine else grad_x.data, saved, scale, grad_x
        )


# ------------------------------------------------------------------------------------ down columns
@device_function
def sum_of_lanes(shared, value):
    """The sum of the lanes of this thread's column, in their order. All threads of the block call it."""
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

    @kernel(INT, INT, INT, matrix(dtype), matrix(dtype), vector(dtype), vector(dtype), threads=THREADS)
    def norm_gradients_kernel(rows, columns, beta, grad, saved, of_weight, of_bias):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.x) * SUM_COLUMNS + cuda.threadIdx.x
        along, total = zero, zero
        if j < columns:
            for i in range(np.int64(lane), rows, SUM_LANES):
                g = grad.data[at(grad, i, j)]
                along += g * saved.data[at(saved, i, j)]
                total += g
        along = sum_of_lanes(shared, along)
        total = sum_of_lanes(shared, total)
        if lane == 0 and j < columns:
            of_weight[j] = of_weight[j] + along if beta else along
            of_bias[j] = of_bias[j] + total if beta else total

    return norm_gradients_kernel


def norm_backward_params(rows, columns, beta, grad_out, saved, grad_weight, grad_bias, stream):
    """Launch `reference.norm_backward_params`."""
    if columns:
        grid, block = over_columns(columns)
        norm_gradients_kernel(grad_weight.dtype)[grid, block, stream](
            rows, columns, beta, grad_out, saved, grad_weight, grad_bias
        )


@cache
def moments_kernel(dtype):
    """`reference.batch_moments`."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one, nan, a = number(1), number(np.nan), vector(dtype)

    @kernel(INT, INT, FLOAT, matrix(dtype), FLOATS, a, a, a, threads=THREADS)
    def moments_kernel(rows, columns, eps, x, row_weight, mean, scale, variance):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        shared_weight = cuda.shared.array((SUM_LANES, SUM_COLUMNS), np.float64)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.x) * SUM_COLUMNS + cuda.threadIdx.x
        inside = j < columns
        total, spread, squares, counted = zero, zero, np.float64(0), np.float64(0)
        for i in range(np.int64(lane), rows, SUM_LANES):
            squares += row_weight[i] * row_weight[i]
            counted += np.float64(1) if row_weight[i] > 0 else np.float64(0)
            if inside:
                total += x.data[at(x, i, j)] * number(row_weight[i])
        squares = sum_of_lanes(shared_weight, squares)
        counted = sum_of_lanes(shared_weight, counted)
        centre = sum_of_lanes(shared, total)
        if inside:
            for i in range(np.int64(lane), rows, SUM_LANES):
                centred = x.data[at(x, i, j)] - centre
                spread += centred * centred * number(row_weight[i])
        spread = sum_of_lanes(shared, spread)
        if lane == 0 and inside:
            mean[j] = centre
            scale[j] = one / square_root(spread + number(eps))
            variance[j] = spread * number(np.float64(1) / (np.float64(1) - squares)) if counted > 1 else nan

    return moments_kernel


def batch_moments(rows, columns, eps, x, row_weight, mean, scale, variance, stream):
    """Launch `reference.batch_moments`."""
    if columns:
        grid, block = over_columns(columns)
        moments_kernel(mean.dtype)[grid, block, stream](rows, columns, eps, x, row_weight, mean, scale, variance)


@cache
def running_kernel(dtype):
    """`reference.running_moments`."""
    number, square_root = dtype.type, formulas(dtype)["square_root"]
    one, a = number(1), vector(dtype)

    @kernel(INT, FLOAT, a, a, a, a, threads=THREADS)
    def running_kernel(columns, eps, running_mean, running_var, mean, scale):
        first, step = first_element()
        for j in range(first, columns, step):
            mean[j] = running_mean[j]
            scale[j] = one / square_root(running_var[j] + number(eps))

    return running_kernel


def running_moments(rows, columns, eps, running_mean, running_var, mean, scale, stream):
    """Launch `reference.running_moments`."""
    if columns:
        grid, block = over_elements(columns)
        running_kernel(mean.dtype)[grid, block, stream](columns, eps, running_mean, running_var, mean, scale)


@cache
def batch_norm_kernel(dtype, affine, keeps):
    """`reference.batch_norm_forward`."""
    a, m = vector(dtype), matrix(dtype)

    @for_each_element
    @device_function
    def normalise(i, j, x, mean, scale, weight, bias, out, saved):
        normalised = (x.data[at(x, i, j)] - mean[j]) * scale[j]
        if keeps:
            saved.data[at(saved, i, j)] = normalised
        if affine:
            normalised = normalised * weight[j] + bias[j]
        out.data[at(out, i, j)] = normalised

    @kernel(INT, INT, m, a, a, a, a, m, m, threads=THREADS)
    def batch_norm_kernel(rows, columns, x, mean, scale, weight, bias, out, saved):
        normalise(rows, columns, x, mean, scale, weight, bias, out, saved)

    return batch_norm_kernel


def batch_norm_forward(rows, columns, number, x, mean, scale, weight, bias, out, saved, stream):
    """Launch `reference.batch_norm_forward`."""
    if rows and columns:
        affine, keeps = weight is not None, saved is not None
        grid, block = over_rows(rows, columns)
        batch_norm_kernel(out.data.dtype, affine, keeps)[grid, block, stream](
            rows, columns, x, mean, scale, weight if affine else mean, bias if affine else mean, out,
            saved if keeps else out,
        )  # fmt: skip


@cache
def batch_norm_back_kernel(dtype, affine, learns):
    """`reference.batch_norm_backward_input`; without ``learns`` the moments are constants."""
    number, a, m = dtype.type, vector(dtype), matrix(dtype)

    @for_each_element
    @device_function
    def differentiate(i, j, grad, row_weight, weight, saved, scale, products, sums, out):
        g = grad.data[at(grad, i, j)]
        if learns:
            g -= number(row_weight[i]) * (sums[j] + saved.data[at(saved, i, j)] * products[j])
        factor = scale[j] * weight[j] if affine else scale[j]
        out.data[at(out, i, j)] = g * factor

    @kernel(INT, INT, m, FLOATS, a, m, a, a, a, m, threads=THREADS)
    def batch_norm_back_kernel(rows, columns, grad, row_weight, weight, saved, scale, products, sums, out):
        differentiate(rows, columns, grad, row_weight, weight, saved, scale, products, sums, out)

    return batch_norm_back_kernel


def batch_norm_backward_input(
    rows, columns, number, grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x, stream
):
    """Launch `reference.batch_norm_backward_input`."""
    if rows and columns:
        affine, learns = weight is not None, grad_weight is not None
        grid, block = over_rows(rows, columns)
        batch_norm_back_kernel(grad_x.data.dtype, affine, learns)[grid, block, stream](
            rows, columns, grad_out, row_weight if learns else empty(1, np.float64), weight if affine else scale,
            saved, scale, grad_weight if learns else scale, grad_bias if learns else scale, grad_x,
        )  # fmt: skip


@cache
def statistics_kernel(dtype):
    """`reference.update_statistics`; nothing once the loss of the record's run is not finite."""
    number, a = dtype.type, vector(dtype)
    one = number(1)

    @kernel(INT, FLOAT, INTS, a, a, a, a, threads=THREADS)
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
    """Every kernel of this file: (name, kernel)."""
    yield "add", add_kernel(dtype)
    for affine in (False, True):
        words = " affine" * affine
        yield f"layer_norm_back{words}", layer_norm_back_kernel(dtype, affine)
        for other in (False, True):
            title = words + " keeps" * other
            yield f"layer_norm{title}", layer_norm_kernel(dtype, affine, other)
            yield f"batch_norm{title}", batch_norm_kernel(dtype, affine, other)
            yield f"batch_norm_back{words}{' learns' * other}", batch_norm_back_kernel(dtype, affine, other)
    yield "norm_gradients", norm_gradients_kernel(dtype)
    yield "moments", moments_kernel(dtype)
    yield "running", running_kernel(dtype)
    yield "statistics", statistics_kernel(dtype)
