"""Row-block kernels around the products: activations, column sums, gathered rows.

Every function here is a C-ABI kernel over ``rows x columns`` elements of buffers with their own leading
dimensions. An element's result does not depend on where in a vector it falls.
"""

import numpy as np

from .. import activations, splitmix
from ..jit import inline
from . import simd
from .blocking import ROWS_AHEAD
from .simd import element, lanes, load, load_converted, load_row, prefetch, store, zeros

FORMULAS = activations.bind(
    {primitive.__name__: getattr(simd, primitive.__name__) for primitive in activations.PRIMITIVES}, inline
)


def activation_forward_kernel(name):
    """``other = act(c)``; the arguments are those that `gemm` gives its ``finish``."""
    value = FORMULAS[name]

    def activation_forward(rows, columns, c, ldc, other, ld_other, parameter):
        if ldc == columns and ld_other == columns:
            columns, rows = rows * columns, 1
        width = lanes(c)
        for i in range(rows):
            z, out = c + i * ldc, other + i * ld_other
            whole = columns - columns % width
            for j in range(0, whole, width):
                store(value(load(zeros(c, 1, 1), z + j, 0, None), parameter), out + j, 0, None)
            if whole < columns:
                tail = columns - whole
                store(value(load(zeros(c, 1, 1), z + whole, 0, tail), parameter), out + whole, 0, tail)

    activation_forward.__qualname__ = f"{name}_forward"  # a name of its own in the cache
    return activation_forward


def activation_backward_kernel(name):
    """``c *= act'(other)``, ``other`` being what the activation saved."""
    derivative = FORMULAS[name + "_derivative"]

    def activation_backward(rows, columns, c, ldc, other, ld_other, parameter):
        if ldc == columns and ld_other == columns:
            columns, rows = rows * columns, 1
        width = lanes(c)
        for i in range(rows):
            grad, saved = c + i * ldc, other + i * ld_other
            whole = columns - columns % width
            for j in range(0, whole, width):
                slope = derivative(load(zeros(c, 1, 1), saved + j, 0, None), parameter)
                store(load(zeros(c, 1, 1), grad + j, 0, None) * slope, grad + j, 0, None)
            if whole < columns:
                tail = columns - whole
                slope = derivative(load(zeros(c, 1, 1), saved + whole, 0, tail), parameter)
                store(load(zeros(c, 1, 1), grad + whole, 0, tail) * slope, grad + whole, 0, tail)

    activation_backward.__qualname__ = f"{name}_backward"
    return activation_backward


def column_sum(rows, columns, z, ldz, beta, out):
    """``out = beta * out + sum of the rows of z``, each column summed in the order of the rows."""
    width = 4 * lanes(z)
    for j in range(0, columns, width):
        tail = columns - j
        total = zeros(z, 1, 4)
        if beta:
            total = load_row(total, out + j, tail)
        for i in range(rows):
            total += load_row(total, z + i * ldz + j, tail)
        store(total, out + j, 0, tail)


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
    indexed = simd.is_not_null(index)
    for i in range(rows):
        row = i
        if indexed:
            row = index[i]
            if i + ROWS_AHEAD < rows:
                prefetch(x + index[i + ROWS_AHEAD] * ldx)
        source, target = x + row * ldx, out + i * ldo
        whole = columns - columns % width
        for j in range(0, whole, width):
            store(load_converted(zeros(out, 1, 1), source + j), target + j, 0, None)
        for j in range(whole, columns):
            target[j] = source[j]
