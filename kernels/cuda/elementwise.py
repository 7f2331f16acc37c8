"""Activations, dropout, gathering the rows of a batch, the weights of its rows, and sums of columns.

The kernels compute what the functions of these names in `reference` define. A function that launches one takes matrices
as `Matrix`, other arrays flat, and the stream, and launches nothing for an empty matrix.
"""

from functools import cache

import numpy as np

from .. import layout, splitmix
from . import launch
from .compiling import device_function, kernel, made_once
from .driver import cuda, simulated
from .formulas import formulas
from .launch import THREADS, first_column, first_row, for_each_element, over_rows
from .operands import FLOAT, FLOATS, INT, INTS, at, matrix
from .record import BATCH, CURRENT, KEYS, NEXT, NUMBERS, ROWS


# ----------------------------------------------------------------------------------------- activations
@made_once
def activation_forward_kernel(name, dtype):
    """The kernel of ``out = act(z)``, for an activation by its name."""
    value, number = formulas(dtype)[name], dtype.type

    @for_each_element
    @device_function
    def activate(i, j, z, out, parameter):
        out.data[at(out, i, j)] = value(z.data[at(z, i, j)], parameter)

    @kernel(INT, INT, matrix(dtype), matrix(dtype), FLOAT, threads=THREADS)
    def activation_forward_kernel(rows, columns, z, out, parameter):
        activate(rows, columns, z, out, number(parameter))

    return activation_forward_kernel


def activation_forward(name, rows, columns, z, out, parameter, stream):
    """Launch ``out = act(z)``."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        activation_forward_kernel(name, out.data.dtype)[grid, block, stream](rows, columns, z, out, parameter)


@made_once
def activation_backward_kernel(name, dtype):
    """The kernel of ``out = grad * act'(saved)``, for an activation by its name."""
    derivative, number = formulas(dtype)[f"{name}_derivative"], dtype.type

    @for_each_element
    @device_function
    def multiply(i, j, grad, saved, out, parameter):
        slope = derivative(saved.data[at(saved, i, j)], parameter)
        out.data[at(out, i, j)] = grad.data[at(grad, i, j)] * slope

    @kernel(INT, INT, matrix(dtype), matrix(dtype), matrix(dtype), FLOAT, threads=THREADS)
    def activation_backward_kernel(rows, columns, grad, saved, out, parameter):
        multiply(rows, columns, grad, saved, out, number(parameter))

    return activation_backward_kernel


def activation_backward(name, rows, columns, grad, saved, out, parameter, stream):
    """Launch ``out = grad * act'(saved)``."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        function = activation_backward_kernel(name, out.data.dtype)
        function[grid, block, stream](rows, columns, grad, saved, out, parameter)


# --------------------------------------------------------------------------------------------- dropout
splitmix64 = device_function(splitmix.mixed)


@made_once
def dropout_kernel(dtype):
    """The kernel of `reference.dropout`, for rows by their numbers and a key.

    With ``layer = -1`` the numbers are the elements of ``record``. Else ``record`` is that of a run: the numbers are
    those of the batch of its current step, and the key is that of the layer in this step.
    ``threshold`` is the bits of `splitmix.threshold`, ``gain`` is ``1 / (1 - p)``.
    """
    number, zero = dtype.type, dtype.type(0)

    @kernel(INT, INT, INTS, INT, INT, INT, FLOAT, matrix(dtype), matrix(dtype), threads=THREADS)
    def dropout_kernel(rows, columns, record, layer, key, threshold, gain, x, out):
        of_key, start, least, factor = np.uint64(np.int64(key)), 0, np.uint64(np.int64(threshold)), number(gain)
        if layer >= 0:
            of_key = splitmix64(np.uint64(record[record[KEYS] + record[CURRENT]]) + np.uint64(layer))
            start = record[NUMBERS] + record[CURRENT] * record[BATCH]
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            of_row = splitmix64(of_key + np.uint64(record[start + i]))
            for j in range(column, columns, column_step):
                kept = splitmix64(of_row + np.uint64(j)) >= least
                out.data[at(out, i, j)] = x.data[at(x, i, j)] * factor if kept else zero

    return dropout_kernel


def dropout(rows, columns, record, layer, key, probability, x, out, stream):
    """Launch ``out = x / (1 - p)`` where a unit is kept, else 0; ``record`` and ``layer`` as above."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        threshold = int(splitmix.threshold(probability).view(np.int64))
        function, gain = dropout_kernel(out.data.dtype), 1 / (1 - probability)
        function[grid, block, stream](rows, columns, record, layer, key, threshold, gain, x, out)


# ---------------------------------------------------------------------------------------- rows of data
@made_once
def convert_kernel(dtype, source):
    """The kernel of ``out = x``, converted from the dtype ``source``, one that `gathers` accepts."""
    number = dtype.type

    @for_each_element
    @device_function
    def convert(i, j, x, out):
        out.data[at(out, i, j)] = number(x.data[at(x, i, j)])

    @kernel(INT, INT, matrix(source), matrix(dtype), threads=THREADS)
    def convert_kernel(rows, columns, x, out):
        convert(rows, columns, x, out)

    return convert_kernel


def convert(rows, columns, x, out, stream):
    """Launch ``out = x``, converted to the dtype of ``out``."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        convert_kernel(out.data.dtype, x.data.dtype)[grid, block, stream](rows, columns, x, out)


@cache
def gathering(dtype):
    """A device function: ``out[i] = x[row]``, by the threads of a block that lie along the columns."""
    number = dtype.type

    @device_function
    def gather_row(i, row, columns, x, out):
        column, column_step = first_column()
        for j in range(column, columns, column_step):
            out.data[at(out, i, j)] = number(x.data[at(x, row, j)])

    return gather_row


@made_once
def gather_rows_kernel(dtype, source):
    """The kernel of ``out[i] = x[index[i]]``, converted from the dtype ``source``."""
    gather_row = gathering(dtype)

    @kernel(INT, INT, INTS, matrix(source), matrix(dtype), threads=THREADS)
    def gather_rows_kernel(rows, columns, index, x, out):
        first, step = first_row()
        for i in range(first, rows, step):
            gather_row(i, index[i], columns, x, out)

    return gather_rows_kernel


def gather_rows(rows, columns, index, x, out, stream):
    """Launch ``out[i] = x[index[i]]``."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        gather_rows_kernel(out.data.dtype, x.data.dtype)[grid, block, stream](rows, columns, index, x, out)


@made_once
def gather_kernel(dtype, source, target_dtype, target_source):
    """The kernel of `gather`, which converts x and targets from dtypes of their own; labels are targets, int64.

    The next step becomes the current one, and is read as such by all launches of the step but the update.
    """
    gather_row, gather_target = gathering(dtype), gathering(target_dtype)

    @kernel(
        INT, INT, INT, INTS, matrix(source), matrix(dtype), matrix(target_source), matrix(target_dtype),
        threads=THREADS,
    )  # fmt: skip
    def gather_kernel(rows, columns, target_columns, record, x, out, target, batch_target):
        start = record[ROWS] + record[NEXT] * record[BATCH]
        first, step = first_row()
        first_of_row, _ = first_column()
        if first == 0 and first_of_row == 0:
            record[CURRENT] = record[NEXT]
        for i in range(first, rows, step):
            row = record[start + i]
            gather_row(i, row, columns, x, out)
            gather_target(i, row, target_columns, target, batch_target)

    return gather_kernel


def gather(rows, columns, target_columns, record, x, out, target, batch_target, stream):
    """Launch the begin of a record's next step: ``out[i] = x[r]``, ``batch_target[i] = target[r]`` for its rows r."""
    grid, block = over_rows(rows, max(columns, target_columns))
    function = gather_kernel(*(operand.data.dtype for operand in (out, x, batch_target, target)))
    function[grid, block, stream](rows, columns, target_columns, record, x, out, target, batch_target)


@device_function
def weight_scale(rows, record, start, row_weight, shared):
    """1 / the sum of the weights of a batch's rows, for all threads of a block; 0 below `layout.LEAST_WEIGHT`."""
    total = np.float64(0)
    for i in range(cuda.threadIdx.x, rows, cuda.blockDim.x):
        total += row_weight[record[start + i]]
    total = launch.sum_over_lanes(shared, total, cuda.threadIdx.x, cuda.blockDim.x)
    return 1 / total if total >= layout.LEAST_WEIGHT else np.float64(0)


@made_once
def weights_kernel():
    """The kernel of the weights of the rows of a batch, which are divided by their sum.

    All are 0 where the sum is below `layout.LEAST_WEIGHT`.
    """

    @kernel(INT, INTS, FLOATS, FLOATS, threads=THREADS)
    def weights_kernel(rows, record, row_weight, batch_weight):
        shared = cuda.shared.array(THREADS, np.float64)
        start = record[ROWS] + record[NEXT] * record[BATCH]
        scale = weight_scale(rows, record, start, row_weight, shared)
        for i in range(cuda.threadIdx.x, rows, cuda.blockDim.x):
            batch_weight[i] = row_weight[record[start + i]] * scale

    return weights_kernel


def weights(rows, record, row_weight, batch_weight, stream):
    """Launch ``batch_weight = w / sum(w)`` for the weights of the rows of the next step of a record; all float64."""
    weights_kernel()[1, THREADS, stream](rows, record, row_weight, batch_weight)


# ----------------------------------------------------------------------------------------- column sums
SUM_COLUMNS, SUM_LANES = (8, 4) if simulated else (32, 8)  # threads of a block: a warp reads 32 columns of a row
SUM_ROWS = 8 if simulated else 512  # rows of a chunk: more rows are summed in chunks, and then the sums of the chunks


@made_once
def column_sum_kernel(dtype):
    """The kernel that adds to ``beta`` times row c of ``out`` the sum of the rows of ``z`` in chunk c."""
    zero = dtype.type(0)

    @kernel(INT, INT, INT, INT, matrix(dtype), matrix(dtype), threads=THREADS)
    def column_sum_kernel(rows, columns, chunk, beta, z, out):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.y) * SUM_COLUMNS + cuda.threadIdx.x
        first = np.int64(cuda.blockIdx.x) * chunk
        total = zero
        if j < columns:
            for i in range(first + lane, min(first + chunk, rows), SUM_LANES):
                total += z.data[at(z, i, j)]
        shared[lane, cuda.threadIdx.x] = total
        cuda.syncthreads()
        if lane == 0 and j < columns:
            total = zero
            for other in range(SUM_LANES):
                total += shared[other, cuda.threadIdx.x]
            to = at(out, cuda.blockIdx.x, j)
            out.data[to] = out.data[to] + total if beta else total

    return column_sum_kernel


@cache
def adding_parts(dtype):
    """A device function: the sum of ``parts`` numbers that lie ``step`` apart, in their order.

    Of no more than `SUM_LANES` chunks of rows it is the sum that `column_sum_kernel` makes.
    """
    nothing = dtype.type(-0.0)  # added to a number it changes no bit

    @device_function
    def total_of_parts(data, first, step, parts):
        total = nothing
        for _ in range(parts):
            total += data[first]
            first += step
        return total

    return total_of_parts


def chunks_of(rows):
    """How many chunks so many rows are."""
    return -(-rows // SUM_ROWS)


def chunks_left(rows):
    """Of how many chunks `leave_column_sum` leaves the sums to be added up; 1: of none."""
    chunks = chunks_of(rows)
    return chunks if 1 < chunks <= SUM_LANES else 1


def _launch_sums(rows, columns, chunk, beta, z, out, stream):
    if columns:
        grid = max(-(-rows // chunk), 1), -(-columns // SUM_COLUMNS)
        column_sum_kernel(out.data.dtype)[grid, (SUM_COLUMNS, SUM_LANES), stream](rows, columns, chunk, beta, z, out)


def column_sum(rows, columns, beta, z, out, stream):
    """Launch ``out_j = beta * out_j + sum_i z_ij`` for few rows, those of a chunk or the sums of chunks.

    ``beta`` is 0 or 1; with 0 ``out`` is not read.
    """
    _launch_sums(rows, columns, max(rows, 1), beta, z, out, stream)


def leave_column_sum(rows, columns, beta, z, sums, out, stream):
    """Launch `column_sum` of any rows, but leave those of chunks, rows of ``sums``, where there are `chunks_left`."""
    chunks = chunks_of(rows)
    if chunks > 1:
        _launch_sums(rows, columns, SUM_ROWS, 0, z, sums, stream)
    if chunks > SUM_LANES:
        column_sum(chunks, columns, beta, sums, out, stream)
    elif chunks_left(rows) == 1:
        column_sum(rows, columns, beta, z, out, stream)


# ------------------------------------------------------------------------------------------- catalogue
def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    for name in layout.ACTIVATIONS:
        yield f"activation_forward {name}", activation_forward_kernel(name, dtype)
        yield f"activation_backward {name}", activation_backward_kernel(name, dtype)
    yield "dropout", dropout_kernel(dtype)
    for source in map(np.dtype, ("float64", "float32", "float16", "int64", "uint8", "bool")):
        yield f"convert {source}", convert_kernel(dtype, source)
        yield f"gather_rows {source}", gather_rows_kernel(dtype, source)
        for target in map(np.dtype, ("float64", "float32")):
            yield f"gather {source} {target}", gather_kernel(dtype, source, dtype, target)
        yield f"gather {source} labelled", gather_kernel(dtype, source, INT, INT)
    yield "weights", weights_kernel()
    yield "column_sum", column_sum_kernel(dtype)
