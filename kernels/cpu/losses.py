"""Losses: the value of every row and the gradient, in one pass over rows that are in L1.

All kernels have the arguments ``(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit,
scratch, grad, ldg)``; ``scratch`` has one element a row, and at least
a square of registers. What they compute is `reference.loss_forward_backward`.
"""

from ..jit import inline
from .elementwise import FORMULAS
from .simd import (
    any_lane,
    element,
    lanes,
    load,
    load_converted_first,
    load_corner,
    load_filled,
    max_lanes,
    maximum,
    select,
    square,
    store,
    store_corner,
    sum_lanes,
    transpose,
    zeros,
)

exp_of_nonpositive = FORMULAS["exp_of_nonpositive"]
log_of_normal = FORMULAS["log_of_normal"]
MINUS_INFINITY = float("-inf")


@inline
def squared_error(scale, rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, grad, ldg):
    """``scale ||s - y||^2`` and its gradient."""
    width = lanes(grad)
    for i in range(rows):
        total = zeros(grad, 1, 1)
        slope = 2.0 * scale * row_weight[i]
        for j in range(0, columns, width):
            tail = columns - j
            error = load(total, prediction + i * ldp + j, 0, tail) - load(total, target + i * ldt + j, 0, tail)
            total += error * error
            store(error * slope, grad + i * ldg + j, 0, tail)
        row_loss[i] = scale * sum_lanes(total)
        row_hit[i] = 0


def half_squared_error(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, scratch, grad, ldg):
    squared_error(0.5, rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, grad, ldg)


def mean_squared_error(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, scratch, grad, ldg):
    squared_error(1.0 / columns, rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, grad, ldg)


@inline
def first_largest(i, label, prediction, ldp, largest):
    """Whether no column before ``label`` is as large as ``largest``."""
    width = lanes(prediction)
    for j in range(0, label, width):
        if any_lane(
            load_filled(zeros(prediction, 1, 1), prediction + i * ldp + j, label - j, MINUS_INFINITY) == largest
        ):
            return False
    return True


@inline
def cross_entropy_of_rows(rows, columns, prediction, ldp, target, row_weight, row_loss, row_hit, scratch, grad, ldg):
    """Many classes: a row at a time; the logarithms of the sums are taken last, a vector of rows at a time."""
    width = lanes(grad)
    for i in range(rows):
        logits, slope, label = prediction + i * ldp, grad + i * ldg, target[i]
        largest = load_filled(zeros(grad, 1, 1), logits, columns, MINUS_INFINITY)
        for j in range(width, columns, width):
            largest = maximum(largest, load_filled(largest, logits + j, columns - j, MINUS_INFINITY))
        shift = max_lanes(largest)
        of_label = logits[label]
        hit = of_label == shift and first_largest(i, label, prediction, ldp, shift)
        total = zeros(grad, 1, 1)
        for j in range(0, columns, width):
            tail = columns - j
            e = exp_of_nonpositive(load_filled(total, logits + j, tail, MINUS_INFINITY) - shift)
            store(e, slope + j, 0, tail)
            total += e
        normaliser = sum_lanes(total)
        scratch[i] = normaliser
        row_hit[i] = hit and normaliser == normaliser  # NaN anywhere in the row is no hit
        row_loss[i] = shift - of_label
        scale = element(grad, row_weight[i])
        share = scale / normaliser
        for j in range(0, columns, width):
            tail = columns - j
            store(load(total, slope + j, 0, tail) * share, slope + j, 0, tail)
        slope[label] = slope[label] - scale
    for i in range(0, rows, width):
        tail = rows - i
        logarithm = log_of_normal(load_filled(zeros(grad, 1, 1), scratch + i, tail, 1.0))
        store(load(logarithm, row_loss + i, 0, tail) + logarithm, row_loss + i, 0, tail)


@inline
def cross_entropy_of_few_classes(
    rows, columns, prediction, ldp, target, row_weight, row_loss, row_hit, scratch, grad, ldg
):
    """No more classes than lanes: as many rows as lanes at a time, transposed, so that a lane is a row."""
    width = lanes(grad)
    for i in range(0, rows, width):
        count = min(width, rows - i)
        logits = load_corner(square(grad), prediction + i * ldp, ldp, count, columns)
        store(transpose(logits), scratch, width, None)
        label = load_converted_first(zeros(grad, 1, 1), target + i, count)
        weight = load_converted_first(label, row_weight + i, count)
        largest, guess, of_label = load(label, scratch, 0, None), label * 0.0, label * 0.0
        for c in range(columns):
            z = load(label, scratch + c * width, 0, None)
            guess = select(z > largest, c, guess)
            largest = select(z > largest, z, largest)
            of_label = select(label == c, z, of_label)
        total = label * 0.0
        for c in range(columns):
            e = exp_of_nonpositive(load(label, scratch + c * width, 0, None) - largest)
            store(e, scratch + c * width, 0, None)
            total += e
        store(log_of_normal(total) + (largest - of_label), row_loss + i, 0, count)
        share = weight / total
        for c in range(columns):
            e = load(label, scratch + c * width, 0, None)
            store(e * share - select(label == c, weight, 0.0), scratch + c * width, 0, None)
        store_corner(transpose(load(square(grad), scratch, width, None)), grad + i * ldg, ldg, count, columns)
        store(select(guess == label, total, -1.0), scratch, 0, None)
        for r in range(count):
            row_hit[i + r] = scratch[r] > 0.0  # false for NaN: no hit


def cross_entropy(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, scratch, grad, ldg):
    """Softmax cross-entropy."""
    if columns <= lanes(grad):
        cross_entropy_of_few_classes(
            rows, columns, prediction, ldp, target, row_weight, row_loss, row_hit, scratch, grad, ldg
        )
    else:
        cross_entropy_of_rows(rows, columns, prediction, ldp, target, row_weight, row_loss, row_hit, scratch, grad, ldg)


def loss_sum(rows, row_weight, row_loss, out):
    """``out[0] = sum_i row_weight_i * row_loss_i``, in the order of the rows."""
    total = 0.0
    for i in range(rows):
        total += row_weight[i] * row_loss[i]
    out[0] = total
