"""Layer and batch normalisation, forward and backward, their moments over a batch, and the sum of two arrays.

Each operation of `OPERATIONS` computes what the function of its name in `reference` defines. Its arrays come as a named
tuple with the names and the order that they have there: a `Matrix` for a matrix, a flat array for a vector, None for an
operand that is left out. All launchers take ``(rows, columns, number, arrays, stream)``, where ``number`` is ``eps``,
``beta`` or unused, and launch nothing for an empty matrix.

Sums along a row are made by the threads of `launch.of_rows` together. For sums down the columns a block takes
`SUM_COLUMNS` columns, and each of its `SUM_LANES` lanes every `SUM_LANES`-th row. The shape alone decides the order of
the terms of a sum, so the bits do not depend on the GPU.
"""

from collections import namedtuple

import numpy as np

from ..contract import FUNCTIONS
from .compiling import device_function, kernel, made_once, vector
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
from .operands import FLOAT, FLOATS, INT, INTS, at, matrix, row_of, type_of
from .record import STOPPED


def _arrays_of(name):
    """The named tuple for the arrays of an operation."""
    return namedtuple(name, FUNCTIONS[name].operands)


def _filled(arrays, **stand_ins):
    """The named tuple with other arrays in place of those that are None: a kernel has no argument for None."""
    return arrays._replace(**{name: array for name, array in stand_ins.items() if getattr(arrays, name) is None})


# -------------------------------------------------------------------------------------- sum of arrays
Add = _arrays_of("add")


@made_once
def add_kernel(dtype):
    """``out = x + y``."""
    arrays_type = type_of(Add, matrix(dtype), matrix(dtype), matrix(dtype))

    @for_each_element
    @device_function
    def add(i, j, arrays):
        x, y, out = arrays
        out.data[at(out, i, j)] = x.data[at(x, i, j)] + y.data[at(y, i, j)]

    @kernel(INT, INT, arrays_type, threads=THREADS)
    def add_kernel(rows, columns, arrays):
        add(rows, columns, arrays)

    return add_kernel


def add(rows, columns, number, arrays, stream):
    """Launch ``out = x + y``; ``number`` is not used."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        add_kernel(arrays.out.data.dtype)[grid, block, stream](rows, columns, arrays)


# -------------------------------------------------------------------------------------- along rows
LayerNormForward = _arrays_of("layer_norm_forward")
LayerNormBackwardInput = _arrays_of("layer_norm_backward_input")


@made_once
def layer_norm_kernel(dtype, affine, keeps):
    """`reference.layer_norm_forward`: ``affine`` with weight and bias, ``keeps`` where ``saved`` is written."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one, a, m = number(1), vector(dtype), matrix(dtype)
    arrays_type = type_of(LayerNormForward, m, a, a, m, m, m)

    @for_each_row
    @device_function
    def normalise(i, inside, shared, columns, eps, arrays):
        x_all, weight, bias, out_all, saved, scale = arrays
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

    @kernel(INT, INT, FLOAT, arrays_type, threads=THREADS)
    def layer_norm_kernel(rows, columns, eps, arrays):
        shared = cuda.shared.array(THREADS, dtype)
        normalise(rows, shared, columns, number(eps), arrays)

    return layer_norm_kernel


def layer_norm_forward(rows, columns, eps, arrays, stream):
    """Launch ``out = w x̂ + b`` with ``x̂ = (x - mean) / sqrt(var + eps)``, moments over the features of a row."""
    if rows and columns:
        affine, keeps, out = arrays.weight is not None, arrays.saved is not None, arrays.out
        grid, block = of_rows(rows, columns)
        function = layer_norm_kernel(out.data.dtype, affine, keeps)
        arrays = _filled(arrays, weight=out.data, bias=out.data, saved=out)
        function[grid, block, stream](rows, columns, eps, arrays)


@made_once
def layer_norm_back_kernel(dtype, affine):
    """`reference.layer_norm_backward_input`: ``affine`` with a weight."""
    number, zero = dtype.type, dtype.type(0)
    one, a, m = number(1), vector(dtype), matrix(dtype)
    arrays_type = type_of(LayerNormBackwardInput, m, a, m, m, m)

    @for_each_row
    @device_function
    def differentiate(i, inside, shared, columns, arrays):
        grad_all, weight, saved_all, scale, out = arrays
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

    @kernel(INT, INT, arrays_type, threads=THREADS)
    def layer_norm_back_kernel(rows, columns, arrays):
        shared = cuda.shared.array(THREADS, dtype)
        differentiate(rows, shared, columns, arrays)

    return layer_norm_back_kernel


def layer_norm_backward_input(rows, columns, number, arrays, stream):
    """Launch ``grad_x = scale (g - mean(g) - x̂ mean(g x̂))`` with ``g = w grad_out``; ``number`` is not used."""
    if rows and columns:
        affine, data = arrays.weight is not None, arrays.grad_x.data
        grid, block = of_rows(rows, columns)
        function = layer_norm_back_kernel(data.dtype, affine)
        function[grid, block, stream](rows, columns, _filled(arrays, weight=data))


# ------------------------------------------------------------------------------------ down columns
@device_function
def sum_of_lanes(shared, value):
    """The sum of ``value`` over the lanes of this thread's column, in the order of the lanes, for each of them.

    All threads of the block must call it; ``shared`` has the shape (SUM_LANES, SUM_COLUMNS).
    """
    shared[cuda.threadIdx.y, cuda.threadIdx.x] = value
    cuda.syncthreads()
    total = shared[0, cuda.threadIdx.x]
    for other in range(1, SUM_LANES):
        total += shared[other, cuda.threadIdx.x]
    cuda.syncthreads()
    return total


def over_columns(columns):
    """The grid and block of a kernel that sums down columns: a thread for each lane and column."""
    return -(-columns // SUM_COLUMNS), (SUM_COLUMNS, SUM_LANES)


NormBackwardParams = _arrays_of("norm_backward_params")
BatchMoments = _arrays_of("batch_moments")


@made_once
def norm_gradients_kernel(dtype):
    """`reference.norm_backward_params`."""
    zero, a, m = dtype.type(0), vector(dtype), matrix(dtype)

    @kernel(INT, INT, INT, type_of(NormBackwardParams, m, m, a, a), threads=THREADS)
    def norm_gradients_kernel(rows, columns, beta, arrays):
        grad, saved, of_weight, of_bias = arrays
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


def norm_backward_params(rows, columns, beta, arrays, stream):
    """Launch ``grad_weight = beta grad_weight + sum_i grad_out_i x̂_i``, and ``grad_bias`` likewise of ``grad_out``."""
    if columns:
        grid, block = over_columns(columns)
        norm_gradients_kernel(arrays.grad_weight.dtype)[grid, block, stream](rows, columns, int(beta), arrays)


@made_once
def moments_kernel(dtype):
    """`reference.batch_moments`."""
    number, zero, square_root = dtype.type, dtype.type(0), formulas(dtype)["square_root"]
    one, nan, a = number(1), number(np.nan), vector(dtype)

    @kernel(INT, INT, FLOAT, type_of(BatchMoments, matrix(dtype), FLOATS, a, a, a), threads=THREADS)
    def moments_kernel(rows, columns, eps, arrays):
        x, row_weight, mean, scale, variance = arrays
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


def batch_moments(rows, columns, eps, arrays, stream):
    """Launch ``mean = sum_i w_i x_i``, ``scale = 1 / sqrt(sum_i w_i (x_i - mean)^2 + eps)`` and the variance."""
    if columns:
        grid, block = over_columns(columns)
        moments_kernel(arrays.mean.dtype)[grid, block, stream](rows, columns, eps, arrays)


# --------------------------------------------------------------------------- an element or a feature
RunningMoments, UpdateStatistics = _arrays_of("running_moments"), _arrays_of("update_statistics")
BatchNormForward = _arrays_of("batch_norm_forward")
BatchNormBackwardInput = _arrays_of("batch_norm_backward_input")


@made_once
def running_kernel(dtype):
    """`reference.running_moments`."""
    number, square_root = dtype.type, formulas(dtype)["square_root"]
    one, a = number(1), vector(dtype)

    @kernel(INT, FLOAT, type_of(RunningMoments, a, a, a, a), threads=THREADS)
    def running_kernel(columns, eps, arrays):
        running_mean, running_var, mean, scale = arrays
        first, step = first_element()
        for j in range(first, columns, step):
            mean[j] = running_mean[j]
            scale[j] = one / square_root(running_var[j] + number(eps))

    return running_kernel


def running_moments(rows, columns, eps, arrays, stream):
    """Launch ``mean = running_mean``, ``scale = 1 / sqrt(running_var + eps)``; ``rows`` is not used."""
    if columns:
        grid, block = over_elements(columns)
        running_kernel(arrays.mean.dtype)[grid, block, stream](columns, eps, arrays)


@made_once
def batch_norm_kernel(dtype, affine, keeps):
    """`reference.batch_norm_forward`: ``affine`` with weight and bias, ``keeps`` where ``saved`` is written."""
    a, m = vector(dtype), matrix(dtype)

    @for_each_element
    @device_function
    def normalise(i, j, arrays):
        x, mean, scale, weight, bias, out, saved = arrays
        normalised = (x.data[at(x, i, j)] - mean[j]) * scale[j]
        if keeps:
            saved.data[at(saved, i, j)] = normalised
        if affine:
            normalised = normalised * weight[j] + bias[j]
        out.data[at(out, i, j)] = normalised

    @kernel(INT, INT, type_of(BatchNormForward, m, a, a, a, a, m, m), threads=THREADS)
    def batch_norm_kernel(rows, columns, arrays):
        normalise(rows, columns, arrays)

    return batch_norm_kernel


def batch_norm_forward(rows, columns, number, arrays, stream):
    """Launch ``out = w x̂ + b`` with ``x̂ = (x - mean) scale``; ``number`` is not used."""
    if rows and columns:
        affine, keeps = arrays.weight is not None, arrays.saved is not None
        grid, block = over_rows(rows, columns)
        function = batch_norm_kernel(arrays.out.data.dtype, affine, keeps)
        arrays = _filled(arrays, weight=arrays.mean, bias=arrays.mean, saved=arrays.out)
        function[grid, block, stream](rows, columns, arrays)


@made_once
def batch_norm_back_kernel(dtype, affine, learns):
    """`reference.batch_norm_backward_input`: ``affine`` with a weight; without ``learns`` the moments are constants."""
    number, a, m = dtype.type, vector(dtype), matrix(dtype)
    arrays_type = type_of(BatchNormBackwardInput, m, FLOATS if learns else a, a, m, a, a, a, m)

    @for_each_element
    @device_function
    def differentiate(i, j, arrays):
        grad, row_weight, weight, saved, scale, products, sums, out = arrays
        g = grad.data[at(grad, i, j)]
        if learns:
            g -= number(row_weight[i]) * (sums[j] + saved.data[at(saved, i, j)] * products[j])
        factor = scale[j] * weight[j] if affine else scale[j]
        out.data[at(out, i, j)] = g * factor

    @kernel(INT, INT, arrays_type, threads=THREADS)
    def batch_norm_back_kernel(rows, columns, arrays):
        differentiate(rows, columns, arrays)

    return batch_norm_back_kernel


def batch_norm_backward_input(rows, columns, number, arrays, stream):
    """Launch ``grad_x_i = w scale (grad_out_i - r_i (grad_bias + x̂_i grad_weight))``, ``r`` the weights of the rows.

    ``number`` is not used.
    """
    if rows and columns:
        affine, learns, scale = arrays.weight is not None, arrays.grad_weight is not None, arrays.scale
        grid, block = over_rows(rows, columns)
        function = batch_norm_back_kernel(arrays.grad_x.data.dtype, affine, learns)
        arrays = _filled(arrays, weight=scale)
        if not learns:
            arrays = arrays._replace(row_weight=scale, grad_weight=scale, grad_bias=scale)
        function[grid, block, stream](rows, columns, arrays)


@made_once
def statistics_kernel(dtype):
    """`reference.update_statistics`; it writes nothing once a loss of the run has not been finite."""
    number, a = dtype.type, vector(dtype)
    one = number(1)

    @kernel(INT, FLOAT, INTS, type_of(UpdateStatistics, a, a, a, a), threads=THREADS)
    def statistics_kernel(columns, momentum, record, arrays):
        mean, variance, running_mean, running_var = arrays
        share = number(momentum)
        rest = one - share
        first, step = first_element()
        for j in range(first, columns, step):
            if record[STOPPED] == 0 and variance[j] == variance[j]:
                running_mean[j] = rest * running_mean[j] + share * mean[j]
                running_var[j] = rest * running_var[j] + share * variance[j]

    return statistics_kernel


def update_statistics(columns, momentum, record, arrays, stream):
    """Launch ``running <- (1 - momentum) running + momentum of_batch``, in a step of a `Record`."""
    if columns:
        grid, block = over_elements(columns)
        statistics_kernel(arrays.mean.dtype)[grid, block, stream](columns, momentum, record.device, arrays)


# ------------------------------------------------------------------------------------------- by name
OPERATIONS = {
    "add": (Add, add),
    "layer_norm_forward": (LayerNormForward, layer_norm_forward),
    "layer_norm_backward_input": (LayerNormBackwardInput, layer_norm_backward_input),
    "norm_backward_params": (NormBackwardParams, norm_backward_params),
    "batch_moments": (BatchMoments, batch_moments),
    "running_moments": (RunningMoments, running_moments),
    "batch_norm_forward": (BatchNormForward, batch_norm_forward),
    "batch_norm_backward_input": (BatchNormBackwardInput, batch_norm_backward_input),
}


def launch(name, rows, columns, number, arrays, stream):
    """Launch an operation by its name, with its arrays in the order of `reference`."""
    kind, launcher = OPERATIONS[name]
    launcher(rows, columns, number, kind(*arrays), stream)


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
