"""Kernels of one element, or one column, a thread: activations, dropout, gathered rows, column sums.

Arrays are flat, with an offset and a leading dimension. What the kernels compute is what `reference` defines.
"""

from functools import cache

import numpy as np

from .. import layout, splitmix
from . import launch
from .driver import cuda, device_function, kernel, simulated, types, vector
from .formulas import formulas
from .launch import THREADS, first_column, first_row, over_rows
from .record import BATCH, KEYS, NEXT, NUMBERS, ROWS


# ----------------------------------------------------------------------------------------- activations
@cache
def activation_forward_kernel(name, dtype):
    """``out = act(z)``."""
    value, number = formulas(dtype)[name], dtype.type

    @kernel(threads=THREADS)
    def activation_forward_kernel(rows, columns, z, z_offset, ldz, out, out_offset, ldo, parameter):
        p = number(parameter)
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                out[out_offset + i * ldo + j] = value(z[z_offset + i * ldz + j], p)

    return activation_forward_kernel


def activation_forward(name, rows, columns, z, z_offset, ldz, out, out_offset, ldo, parameter, stream):
    """Launch it; nothing where there is no element."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        activation_forward_kernel(name, out.dtype)[grid, block, stream](
            rows, columns, z, z_offset, ldz, out, out_offset, ldo, parameter
        )


@cache
def activation_backward_kernel(name, dtype):
    """``out = grad * act'(saved)``."""
    derivative, number = formulas(dtype)[f"{name}_derivative"], dtype.type

    @kernel(threads=THREADS)
    def activation_backward_kernel(
        rows, columns, grad, grad_offset, ldg, saved, saved_offset, lds, out, out_offset, ldo, parameter
    ):
        p = number(parameter)
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                slope = derivative(saved[saved_offset + i * lds + j], p)
                out[out_offset + i * ldo + j] = grad[grad_offset + i * ldg + j] * slope

    return activation_backward_kernel


def activation_backward(
    name, rows, columns, grad, grad_offset, ldg, saved, saved_offset, lds, out, out_offset, ldo, parameter, stream
):
    """Launch it; nothing where there is no element."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        activation_backward_kernel(name, out.dtype)[grid, block, stream](
            rows, columns, grad, grad_offset, ldg, saved, saved_offset, lds, out, out_offset, ldo, parameter
        )


# --------------------------------------------------------------------------------------------- dropout
splitmix64 = device_function(splitmix.mixed)


@cache
def dropout_kernel(dtype):
    """`reference.dropout`; with a ``layer`` from 0 up, of that row of layers in step ``record[which]``.

    Then the key is that of the layer in the step, and the numbers of the rows are those of its batch; else ``key``
    and ``record`` itself.
    """
    number, zero = dtype.type, dtype.type(0)

    @kernel(threads=THREADS)
    def dropout_kernel(
        rows, columns, record, which, layer, key, threshold, gain, x, x_offset, ldx, out, out_offset, ldo
    ):
        of_key, start, least, factor = np.uint64(np.int64(key)), 0, np.uint64(np.int64(threshold)), number(gain)
        if layer >= 0:
            of_key = splitmix64(np.uint64(record[record[KEYS] + record[which]]) + np.uint64(layer))
            start = record[NUMBERS] + record[which] * record[BATCH]
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            of_row = splitmix64(of_key + np.uint64(record[start + i]))
            for j in range(column, columns, column_step):
                kept = splitmix64(of_row + np.uint64(j)) >= least
                out[out_offset + i * ldo + j] = x[x_offset + i * ldx + j] * factor if kept else zero

    return dropout_kernel


def dropout(
    rows, columns, record, which, layer, key, probability, x, x_offset, ldx, out, out_offset, ldo, stream
):  # fmt: skip
    """Launch it; nothing where there is no element."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        threshold = int(splitmix.threshold(probability).view(np.int64))
        dropout_kernel(out.dtype)[grid, block, stream](
            rows, columns, record, which, layer, int(key), threshold, 1 / (1 - probability),
            x, x_offset, ldx, out, out_offset, ldo,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------- rows of data
@cache
def convert_kernel(dtype):
    """``out = x``, from any dtype that `gathers` accepts."""
    number = dtype.type

    @kernel(threads=THREADS)
    def convert_kernel(rows, columns, x, x_offset, ldx, out, out_offset, ldo):
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            for j in range(column, columns, column_step):
                out[out_offset + i * ldo + j] = number(x[x_offset + i * ldx + j])

    return convert_kernel


def convert(rows, columns, x, x_offset, ldx, out, out_offset, ldo, stream):
    """Launch it; nothing where there is no element."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        convert_kernel(out.dtype)[grid, block, stream](rows, columns, x, x_offset, ldx, out, out_offset, ldo)


@cache
def gather_kernel(dtype, of_step, labelled):
    """``out[i] = x[rows[i]]`` for the rows of the batch that begins, and their labels.

    Without ``of_step``, ``record`` is the rows themselves.
    """
    number = dtype.type

    @kernel(threads=THREADS)
    def gather_kernel(rows, columns, record, x, ldx, out, out_offset, ldo, labels, batch_labels):
        start = record[ROWS] + record[NEXT] * record[BATCH] if of_step else np.int64(0)
        row, row_step = first_row()
        column, column_step = first_column()
        for i in range(row, rows, row_step):
            source = record[start + i]
            for j in range(column, columns, column_step):
                out[out_offset + i * ldo + j] = number(x[source * ldx + j])
            if labelled and column == 0:
                batch_labels[i] = labels[source]

    return gather_kernel


def gather(rows, columns, record, x, ldx, out, out_offset, ldo, labels, batch_labels, stream):
    """Launch it for the batch that begins; ``labels`` may be None."""
    grid, block = over_rows(rows, columns)
    labelled = labels is not None
    gather_kernel(out.dtype, True, labelled)[grid, block, stream](
        rows, columns, record, x, ldx, out, out_offset, ldo, *((labels, batch_labels) if labelled else (record, record))
    )


def gather_rows(rows, columns, index, x, ldx, out, out_offset, ldo, stream):
    """Launch it for the rows that ``index`` names; nothing where there is no element."""
    if rows and columns:
        grid, block = over_rows(rows, columns)
        gather_kernel(out.dtype, False, False)[grid, block, stream](
            rows, columns, index, x, ldx, out, out_offset, ldo, index, index
        )


@cache
def weights_kernel():
    """Weights of the batch that begins, divided by their sum; all 0 where that is below `layout.LEAST_WEIGHT`."""

    @kernel(threads=THREADS)
    def weights_kernel(rows, record, row_weight, batch_weight):
        shared = cuda.shared.array(THREADS, np.float64)
        start = record[ROWS] + record[NEXT] * record[BATCH]
        total = np.float64(0)
        for i in range(cuda.threadIdx.x, rows, cuda.blockDim.x):
            total += row_weight[record[start + i]]
        total = launch.sum_over_lanes(shared, total, cuda.threadIdx.x, cuda.blockDim.x)
        scale = np.float64(0)
        if total >= layout.LEAST_WEIGHT:
            scale = 1 / total
        for i in range(cuda.threadIdx.x, rows, cuda.blockDim.x):
            batch_weight[i] = row_weight[record[start + i]] * scale

    return weights_kernel


def weights(rows, record, row_weight, batch_weight, stream):
    """Launch it."""
    weights_kernel()[1, THREADS, stream](rows, record, row_weight, batch_weight)


# ----------------------------------------------------------------------------------------- column sums
SUM_COLUMNS, SUM_LANES = (8, 4) if simulated else (32, 8)  # a block: a warp reads 32 columns of a row at once
SUM_ROWS = 8 if simulated else 512  # rows that a block sums; more are summed in chunks, and the chunks after them


@cache
def column_sum_kernel(dtype):
    """``out[c] = beta * out[c] + sum of the rows of chunk c of z``."""
    zero = dtype.type(0)

    @kernel(threads=THREADS)
    def column_sum_kernel(rows, columns, chunk, beta, z, z_offset, ldz, out, out_offset, ldo):
        shared = cuda.shared.array((SUM_LANES, SUM_COLUMNS), dtype)
        lane, j = cuda.threadIdx.y, np.int64(cuda.blockIdx.y) * SUM_COLUMNS + cuda.threadIdx.x
        first = np.int64(cuda.blockIdx.x) * chunk
        total = zero
        if j < columns:
            for i in range(first + lane, min(first + chunk, rows), SUM_LANES):
                total += z[z_offset + i * ldz + j]
        shared[lane, cuda.threadIdx.x] = total
        cuda.syncthreads()
        if lane == 0 and j < columns:
            total = zero
            for other in range(SUM_LANES):
                total += shared[other, cuda.threadIdx.x]
            at = out_offset + cuda.blockIdx.x * ldo + j
            out[at] = out[at] + total if beta else total

    return column_sum_kernel


def sum_scratch(rows, columns):
    """Elements of scratch that `column_sum` needs."""
    return -(-rows // SUM_ROWS) * columns


def column_sum(rows, columns, beta, z, z_offset, ldz, out, out_offset, scratch, stream):
    """``out = beta * out + the sums of the columns of z``, by chunks of rows and then over the chunks."""
    if columns == 0:
        return
    configured = column_sum_kernel(out.dtype)
    tiles, block = -(-columns // SUM_COLUMNS), (SUM_COLUMNS, SUM_LANES)
    chunks = -(-rows // SUM_ROWS)
    if chunks > 1:
        configured[(chunks, tiles), block, stream](rows, columns, SUM_ROWS, 0, z, z_offset, ldz, scratch, 0, columns)
        rows, z, z_offset, ldz = chunks, scratch, 0, columns
    configured[(1, tiles), block, stream](rows, columns, max(rows, 1), beta, z, z_offset, ldz, out, out_offset, 0)


# ------------------------------------------------------------------------------------------- catalogue
def kernels(dtype):
    """Every kernel of this file: (name, kernel, signature)."""
    i, f, a, ints, doubles = types.int64, types.float64, vector(dtype), vector(np.int64), vector(np.float64)
    for name in layout.ACTIVATIONS:
        yield f"activation_forward {name}", activation_forward_kernel(name, dtype), (i, i, a, i, i, a, i, i, f)
        signature = (i, i, a, i, i, a, i, i, a, i, i, f)
        yield f"activation_backward {name}", activation_backward_kernel(name, dtype), signature
    signature = (i, i, ints, i, i, i, i, f, a, i, i, a, i, i)
    yield "dropout", dropout_kernel(dtype), signature
    for source in map(np.dtype, ("float64", "float32", "float16", "int64", "uint8", "bool")):
        x = vector(source)
        yield f"convert {source}", convert_kernel(dtype), (i, i, x, i, i, a, i, i)
        signature = (i, i, ints, x, i, a, i, i, ints, ints)
        yield f"gather_rows {source}", gather_kernel(dtype, False, False), signature
        for labelled in (False, True):
            yield f"gather {source}{' labelled' * labelled}", gather_kernel(dtype, True, labelled), signature
    yield "weights", weights_kernel(), (i, ints, doubles, doubles)
    yield "column_sum", column_sum_kernel(dtype), (i, i, i, i, a, i, i, a, i, i)
