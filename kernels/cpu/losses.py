"""Losses: the value of every row and the gradient, in one pass over rows that are in L1.

All kernels have the arguments ``(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit,
scratch, grad, ldg)``; ``scratch`` has one element a row. What they compute is `reference.loss_forward_backward`.
"""

from ..jit import inline
from .elementwise import FORMULAS
from .simd import (
    any_lane,
    element,
    lanes,
    load,
    load_filled,
    max_lanes,
    maximum,
    store,
    sum_lanes,
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


def cross_entropy(rows, columns, prediction, ldp, target, ldt, row_weight, row_loss, row_hit, scratch, grad, ldg):
    """Softmax cross-entropy; the logarithms of the sums are taken last, a vector of rows at a time."""
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


def loss_sum(rows, row_weight, row_loss, out):
    """``out[0] = sum_i row_weight_i * row_loss_i``, in the order of the rows."""
    total = 0.0
    for i in range(rows):
        total += row_weight[i] * row_loss[i]
    out[0] = total
