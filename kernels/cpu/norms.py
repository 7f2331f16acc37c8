"""Normalisations, their moments over rows or over the batch, and the sums that the way back takes.

Every function here is an operation that the walk knows nothing else of: ``(rows, columns, number, operands, like)``,
where ``operands`` holds the address and the leading dimension of each and ``like`` is a pointer of their dtype. What
they compute is what `reference` says of their names. Sums of columns go down the rows in their order, so that columns
may be divided among threads; sums along a row do not depend on the rows beside it.
"""

import numpy as np

from ..jit import inline
from .blocking import TALL
from .operands import Matrix
from .simd import (
    first_lanes,
    fma,
    is_not_null,
    lanes,
    load,
    load_row,
    pointer,
    pointer_like,
    select,
    square_root,
    store,
    sum_across,
    zeros,
)

NAN = float("nan")


@inline
def matrix(operands, slot, like):
    """The operand in a slot."""
    return Matrix(pointer_like(operands[2 * slot], like), operands[2 * slot + 1])


@inline
def doubles(operands, slot):
    """The vector of float64 numbers in a slot."""
    return pointer(operands[2 * slot], np.float64)


@inline
def vector(operands, slot, like):
    """The vector in a slot."""
    return pointer_like(operands[2 * slot], like)


def add(rows, columns, number, operands, like):
    """``out = x + y``."""
    x, y, out = matrix(operands, 0, like), matrix(operands, 1, like), matrix(operands, 2, like)
    width = lanes(like)
    for i in range(rows):
        left, right, total = x.data + i * x.ld, y.data + i * y.ld, out.data + i * out.ld
        for j in range(0, columns, width):
            tail, empty = columns - j, zeros(like, 1, 1)
            store(load(empty, left + j, 0, tail) + load(empty, right + j, 0, tail), total + j, 0, tail)


# -------------------------------------------------------------------------------------- along rows
@inline
def below(matrix, rows):
    """The matrix without its first rows."""
    return Matrix(matrix.data + rows * matrix.ld, matrix.ld)


@inline
def normalise_rows(tile, columns, eps, x, weight, bias, out, saved, scale):
    """`layer_norm_forward` of the rows that ``tile``, which is 0, has: they lie side by side."""
    width, share = lanes(out.data), 1.0 / columns
    total, squares = tile, tile
    for j in range(0, columns, width):
        total += load(tile, x.data + j, x.ld, columns - j)
    mean = sum_across(total) * share
    for j in range(0, columns, width):
        tail = columns - j
        centred = select(first_lanes(tile, tail), load(tile, x.data + j, x.ld, tail) - mean, 0.0)
        squares = fma(centred, centred, squares)
    factor = 1.0 / square_root(sum_across(squares) * share + eps)
    store(factor, scale.data, scale.ld, 1)
    for j in range(0, columns, width):
        tail = columns - j
        normalised = (load(tile, x.data + j, x.ld, tail) - mean) * factor
        if is_not_null(saved.data):
            store(normalised, saved.data + j, saved.ld, tail)
        if is_not_null(weight):
            normalised = fma(normalised, load_row(tile, weight + j, tail), load_row(tile, bias + j, tail))
        store(normalised, out.data + j, out.ld, tail)


def layer_norm_forward(rows, columns, eps, operands, like):
    """TALL rows side by side, then what is left."""
    x, out = matrix(operands, 0, like), matrix(operands, 3, like)
    weight, bias = vector(operands, 1, like), vector(operands, 2, like)
    saved, scale = matrix(operands, 4, like), matrix(operands, 5, like)
    high = rows - rows % TALL
    for i in range(0, high, TALL):
        normalise_rows(
            zeros(like, TALL, 1),
            columns,
            eps,
            below(x, i),
            weight,
            bias,
            below(out, i),
            below(saved, i),
            below(scale, i),
        )
    for i in range(high, rows):
        normalise_rows(
            zeros(like, 1, 1), columns, eps, below(x, i), weight, bias, below(out, i), below(saved, i), below(scale, i)
        )


@inline
def weighted(grad, weight, j, columns):
    """A vector of the gradient of what was normalised; of one row."""
    g = load(zeros(grad, 1, 1), grad + j, 0, columns - j)
    if is_not_null(weight):
        g = g * load(zeros(grad, 1, 1), weight + j, 0, columns - j)
    return g


def layer_norm_backward_input(rows, columns, number, operands, like):
    """A row at a time: two sums, then the result."""
    grad_out, saved, grad_x = matrix(operands, 0, like), matrix(operands, 2, like), matrix(operands, 4, like)
    weight, scale = vector(operands, 1, like), matrix(operands, 3, like)
    width, share = lanes(like), 1.0 / columns
    for i in range(rows):
        grad, normalised, out = below(grad_out, i).data, below(saved, i).data, below(grad_x, i).data
        total, along = zeros(like, 1, 1), zeros(like, 1, 1)
        for j in range(0, columns, width):
            g = weighted(grad, weight, j, columns)
            total += g
            along = fma(g, load(g, normalised + j, 0, columns - j), along)
        mean, slope, factor = sum_across(total) * share, sum_across(along) * share, scale.data[i * scale.ld]
        for j in range(0, columns, width):
            g = weighted(grad, weight, j, columns) - mean
            store((g - load(g, normalised + j, 0, columns - j) * slope) * factor, out + j, 0, columns - j)


# ------------------------------------------------------------------------------------ down columns
def norm_backward_params(rows, columns, beta, operands, like):
    """Both sums in one pass down the rows."""
    grad_out, saved = matrix(operands, 0, like), matrix(operands, 1, like)
    grad_weight, grad_bias = vector(operands, 2, like), vector(operands, 3, like)
    width = 2 * lanes(like)
    for j in range(0, columns, width):
        tail, empty = columns - j, zeros(like, 1, 2)
        of_weight, of_bias = empty, empty
        for i in range(rows):
            g = load_row(empty, grad_out.data + i * grad_out.ld + j, tail)
            of_weight = fma(g, load_row(empty, saved.data + i * saved.ld + j, tail), of_weight)
            of_bias += g
        if beta != 0.0:
            of_weight += load_row(empty, grad_weight + j, tail)
            of_bias += load_row(empty, grad_bias + j, tail)
        store(of_weight, grad_weight + j, 0, tail)
        store(of_bias, grad_bias + j, 0, tail)


def batch_moments(rows, columns, eps, operands, like):
    """Two passes down the rows, as the variance is about the mean."""
    x, row_weight = matrix(operands, 0, like), doubles(operands, 1)
    mean, scale, variance = vector(operands, 2, like), vector(operands, 3, like), vector(operands, 4, like)
    counted, squares = 0, 0.0
    for i in range(rows):
        counted += row_weight[i] > 0.0
        squares += row_weight[i] * row_weight[i]
    unbiased = 1.0 / (1.0 - squares) if counted > 1 else NAN
    width = 2 * lanes(like)
    for j in range(0, columns, width):
        tail, empty = columns - j, zeros(like, 1, 2)
        centre, spread = empty, empty
        for i in range(rows):
            centre += load_row(empty, x.data + i * x.ld + j, tail) * row_weight[i]
        for i in range(rows):
            centred = load_row(empty, x.data + i * x.ld + j, tail) - centre
            spread = fma(centred, centred * row_weight[i], spread)
        store(centre, mean + j, 0, tail)
        store(1.0 / square_root(spread + eps), scale + j, 0, tail)
        store(spread * unbiased, variance + j, 0, tail)


def running_moments(rows, columns, eps, operands, like):
    """A vector of features at a time."""
    running_mean, running_var = vector(operands, 0, like), vector(operands, 1, like)
    mean, scale = vector(operands, 2, like), vector(operands, 3, like)
    for j in range(0, columns, lanes(like)):
        tail, empty = columns - j, zeros(like, 1, 1)
        store(load(empty, running_mean + j, 0, tail), mean + j, 0, tail)
        store(1.0 / square_root(load(empty, running_var + j, 0, tail) + eps), scale + j, 0, tail)


def batch_norm_forward(rows, columns, number, operands, like):
    """A row at a time."""
    x, out, saved = matrix(operands, 0, like), matrix(operands, 5, like), matrix(operands, 6, like)
    mean, scale = vector(operands, 1, like), vector(operands, 2, like)
    weight, bias = vector(operands, 3, like), vector(operands, 4, like)
    for i in range(rows):
        for j in range(0, columns, lanes(like)):
            tail, empty = columns - j, zeros(like, 1, 1)
            centred = load(empty, x.data + i * x.ld + j, 0, tail) - load(empty, mean + j, 0, tail)
            normalised = centred * load(empty, scale + j, 0, tail)
            if is_not_null(saved.data):
                store(normalised, saved.data + i * saved.ld + j, 0, tail)
            if is_not_null(weight):
                normalised = fma(normalised, load(empty, weight + j, 0, tail), load(empty, bias + j, 0, tail))
            store(normalised, out.data + i * out.ld + j, 0, tail)


def batch_norm_backward_input(rows, columns, number, operands, like):
    """A row at a time; moments that are constants add nothing."""
    grad_out, saved, grad_x = matrix(operands, 0, like), matrix(operands, 3, like), matrix(operands, 7, like)
    row_weight, weight, scale = doubles(operands, 1), vector(operands, 2, like), vector(operands, 4, like)
    grad_weight, grad_bias = vector(operands, 5, like), vector(operands, 6, like)
    for i in range(rows):
        for j in range(0, columns, lanes(like)):
            tail, empty = columns - j, zeros(like, 1, 1)
            g = load(empty, grad_out.data + i * grad_out.ld + j, 0, tail)
            if is_not_null(grad_weight):
                normalised = load(empty, saved.data + i * saved.ld + j, 0, tail)
                along = fma(normalised, load(empty, grad_weight + j, 0, tail), load(empty, grad_bias + j, 0, tail))
                g = g - along * row_weight[i]
            factor = load(empty, scale + j, 0, tail)
            if is_not_null(weight):
                factor = factor * load(empty, weight + j, 0, tail)
            store(g * factor, grad_x.data + i * grad_x.ld + j, 0, tail)


def update_statistics(rows, columns, momentum, operands, like):
    """A vector of features at a time; where the variance is NaN there is nothing to learn."""
    mean, variance = vector(operands, 0, like), vector(operands, 1, like)
    running_mean, running_var = vector(operands, 2, like), vector(operands, 3, like)
    rest = 1.0 - momentum
    for j in range(0, columns, lanes(like)):
        tail, empty = columns - j, zeros(like, 1, 1)
        new_var, old_var = load(empty, variance + j, 0, tail), load(empty, running_var + j, 0, tail)
        new_mean, old_mean = load(empty, mean + j, 0, tail), load(empty, running_mean + j, 0, tail)
        learnt = new_var == new_var
        store(select(learnt, old_mean * rest + new_mean * momentum, old_mean), running_mean + j, 0, tail)
        store(select(learnt, old_var * rest + new_var * momentum, old_var), running_var + j, 0, tail)
