"""Row-block kernels around the products: activations, column sums, gathered rows.

Every function here is a C-ABI kernel over ``rows x columns`` elements of buffers with their own leading
dimensions. An element's result does not depend on where in a vector it falls.
"""

import numpy as np

from .. import splitmix
from ..jit import inline
from .blocking import TALL, VECTORS_AHEAD
from .formulas import FORMULAS
from .simd import (
    element,
    is_not_null,
    lanes,
    load,
    load_converted,
    load_corner,
    load_row,
    nearest_bfloat16,
    prefetch,
    square,
    store,
    store_corner,
    sum_rows,
    tall,
    transpose,
    zeros,
)

CHAINS = 4  # sums of a column that run side by side: an addition takes some cycles, a load half of one


@inline
def run(rows, columns, ldc, ld_other):
    """The shape ``(rows, columns, ldc, ld_other)`` of a block, as TALL long rows where it is one run of memory."""
    if ldc == columns and ld_other == columns and rows * columns % TALL == 0:
        columns = rows * columns // TALL
        return TALL, columns, columns, columns
    return rows, columns, ldc, ld_other


def activation_forward_kernel(name):
    """``other = act(c)``; the arguments are those that `gemm` gives its ``finish``."""
    value = FORMULAS[name]

    def activation_forward(rows, columns, c, ldc, other, ld_other, parameter):
        rows, columns, ldc, ld_other = run(rows, columns, ldc, ld_other)
        width = lanes(c)
        high, whole = rows - rows % TALL, columns - columns % width
        for i in range(0, high, TALL):
            z, out = c + i * ldc, other + i * ld_other
            for j in range(0, whole, width):
                store(value(load(zeros(c, TALL, 1), z + j, ldc, None), parameter), out + j, ld_other, None)
        for i in range(high if whole == columns else 0, rows):
            z, out = c + i * ldc, other + i * ld_other
            for j in range(whole if i < high else 0, columns, width):
                store(value(load(zeros(c, 1, 1), z + j, 0, columns - j), parameter), out + j, 0, columns - j)

    activation_forward.__qualname__ = f"{name}_forward"  # a name of its own in the cache
    return activation_forward


def activation_backward_kernel(name):
    """``c *= act'(other)``, ``other`` being what the activation saved."""
    derivative = FORMULAS[name + "_derivative"]

    def activation_backward(rows, columns, c, ldc, other, ld_other, parameter):
        rows, columns, ldc, ld_other = run(rows, columns, ldc, ld_other)
        width = lanes(c)
        high, whole = rows - rows % TALL, columns - columns % width
        for i in range(0, high, TALL):
            grad, saved = c + i * ldc, other + i * ld_other
            for j in range(0, whole, width):
                slope = derivative(load(zeros(c, TALL, 1), saved + j, ld_other, None), parameter)
                store(load(zeros(c, TALL, 1), grad + j, ldc, None) * slope, grad + j, ldc, None)
        for i in range(high if whole == columns else 0, rows):
            grad, saved = c + i * ldc, other + i * ld_other
            for j in range(whole if i < high else 0, columns, width):
                slope = derivative(load(zeros(c, 1, 1), saved + j, 0, columns - j), parameter)
                store(load(zeros(c, 1, 1), grad + j, 0, columns - j) * slope, grad + j, 0, columns - j)

    activation_backward.__qualname__ = f"{name}_backward"
    return activation_backward


@inline
def column_panel_sum(strip, rows, z, ldz, beta, out, columns):
    """`column_sum` of a panel as wide as ``strip``, a tile of one row."""
    total, rest = tall(strip, CHAINS), strip
    whole = rows - rows % CHAINS
    for i in range(0, whole, CHAINS):
        total += load(total, z + i * ldz, ldz, columns)
    for i in range(whole, rows):
        rest += load_row(rest, z + i * ldz, columns)
    rest += sum_rows(total)
    if beta:
        rest += load_row(rest, out, columns)
    store(rest, out, 0, columns)


def column_sum(rows, columns, z, ldz, beta, out):
    """``out = beta * out + sum of the rows of z``: CHAINS sums of every CHAINS-th row, added in a fixed order."""
    width = 2 * lanes(z)
    for j in range(0, columns, width):
        if columns - j >= width:
            column_panel_sum(zeros(z, 1, 2), rows, z + j, ldz, beta, out + j, None)
        else:
            column_panel_sum(zeros(z, 1, 2), rows, z + j, ldz, beta, out + j, columns - j)


def group_column_sum(rows, columns, z, ldz, begins, ends, chains, ld, out):
    """`column_sum` of rows that come in groups, to the bit: its chains grow in memory, and the last group adds them up.

    The first group ``begins`` them; ``rows`` of all but the one that ``ends`` are a multiple of CHAINS.
    """
    width = lanes(z)
    for j in range(0, columns, width):
        total, rest, tail = tall(zeros(z, 1, 1), CHAINS), zeros(z, 1, 1), columns - j
        if not begins:
            total = load(total, chains + j, ld, tail)
        whole = rows - rows % CHAINS
        for i in range(0, whole, CHAINS):
            total += load(total, z + (i * ldz + j), ldz, tail)
        if not ends:
            store(total, chains + j, ld, tail)
        else:
            for i in range(whole, rows):
                rest += load_row(rest, z + (i * ldz + j), tail)
            rest += sum_rows(total)
            store(rest, out + j, 0, tail)


def transpose_rows(rows, columns, x, ldx, out, ldo):
    """``out = x.T``, ``rows x columns`` elements of it, by squares in registers."""
    side = lanes(out)
    for i in range(0, rows, side):
        for j in range(0, columns, side):
            corner = load_corner(square(out), x + j * ldx + i, ldx, columns - j, rows - i)
            store_corner(transpose(corner), out + i * ldo + j, ldo, rows - i, columns - j)


def store_factor(rows, columns, x, ldx, high, low, ldf):
    """``high = bf16(x)`` and, unless that is null, ``low = bf16(x - high)``: what products of less precision read."""
    width, both = lanes(x), is_not_null(low)
    for i in range(rows):
        for j in range(0, columns, width):
            tail = columns - j
            whole = load(zeros(x, 1, 1), x + (i * ldx + j), 0, tail)
            upper = nearest_bfloat16(whole)
            store(upper, high + (i * ldf + j), 0, tail)
            if both:
                store(nearest_bfloat16(whole - upper), low + (i * ldf + j), 0, tail)


splitmix64 = inline(splitmix.mixed)
UPPER_HALF = np.uint64(32)


def dropout_rows(rows, columns, x, ldx, out, ldo, index, key, threshold, scale):
    """`reference.dropout`; ``threshold`` and ``scale`` are ``p * 2**64`` and ``1 / (1 - p)``."""
    least, gain = np.uint64(threshold), element(out, scale)
    for i in range(rows):
        row_key = splitmix64(np.uint64(key) + np.uint64(index[i]))
        source, target = x + i * ldx, out + i * ldo
        for j in range(columns):
            kept = splitmix64(row_key + np.uint64(j)) >= least
            target[j] = source[j] * gain if kept else element(out, 0.0)


def shuffle_rows(count, rows, key):
    """`reference.shuffle`."""
    for back in range(count - 1):
        i = count - 1 - back
        j = np.int64(((splitmix64(np.uint64(key) + np.uint64(i)) >> UPPER_HALF) * np.uint64(i + 1)) >> UPPER_HALF)
        rows[i], rows[j] = rows[j], rows[i]


def gather_rows(rows, columns, index, x, ldx, out, ldo):
    """``out[i] = x[index[i]]``, converted to the dtype of ``out``; ``index`` may be null: rows as they come."""
    width = lanes(out)
    whole = columns - columns % width
    indexed = is_not_null(index)
    ahead = max(VECTORS_AHEAD * width // max(columns, width), 1)
    for i in range(rows):
        row = later = i
        if indexed:
            row, later = index[i], index[min(i + ahead, rows - 1)]
        source, coming, target = x + row * ldx, x + later * ldx, out + i * ldo
        for j in range(0, whole, width):
            prefetch(coming + j)
            store(load_converted(zeros(out, 1, 1), source + j), target + j, 0, None)
        prefetch(coming + whole)
        for j in range(whole, columns):
            target[j] = source[j]
