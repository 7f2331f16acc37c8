"""Losses: the value of every row and the gradient, in one pass over rows that are in L1.

All kernels have the arguments ``(rows, columns, parameter, prediction, target, of_rows, scratch, grad)``: matrices, and
what every row has; ``scratch`` has one element a row, and at least a square of registers. What they compute is
`reference.loss_forward_backward`. A loss that sums over its elements is a formula of `losses`; the cross-entropies are
written out.
"""

from ..jit import inline
from ..losses import NAN, SUMMED
from .formulas import FORMULAS
from .probabilities import MINUS_INFINITY, exponentials, lanes_into_rows, largest_of, rows_into_lanes
from .simd import (
    any_lane,
    element,
    first_lanes,
    lanes,
    load,
    load_converted_first,
    load_filled,
    max_lanes,
    select,
    store,
    sum_lanes,
    zeros,
)

exp_of_nonpositive = FORMULAS["exp_of_nonpositive"]
log_of_normal = FORMULAS["log_of_normal"]


# -------------------------------------------------------------------------------- losses of elements
def kernel_of_elements(name):
    """The kernel of a loss that is a sum or mean over the elements of a row."""
    formula, mean = FORMULAS[name], name not in SUMMED

    def loss_of_elements(rows, columns, parameter, prediction, target, of_rows, scratch, grad):
        width = lanes(grad.data)
        scale = 1.0 / columns if mean else 1.0
        for i in range(rows):
            total = zeros(grad.data, 1, 1)
            factor = scale * of_rows.weight[i]
            for j in range(0, columns, width):
                tail = columns - j
                s = load(total, prediction.data + i * prediction.ld + j, 0, tail)
                value, slope = formula(s, load(total, target.data + i * target.ld + j, 0, tail), parameter)
                total += select(first_lanes(total, tail), value, 0.0)
                store(slope * factor, grad.data + i * grad.ld + j, 0, tail)
            of_rows.loss[i] = scale * sum_lanes(total)
            of_rows.hit[i] = 0

    loss_of_elements.__qualname__ = name  # a name of its own in the cache
    return loss_of_elements


# ------------------------------------------------------------------------------------- cross-entropies
@inline
def add_logarithms(rows, scratch, row_loss):
    """``row_loss += log(scratch)``, a vector of rows at a time."""
    width = lanes(scratch)
    for i in range(0, rows, width):
        tail = rows - i
        logarithm = log_of_normal(load_filled(zeros(scratch, 1, 1), scratch + i, 0, tail, 1.0))
        store(load(logarithm, row_loss + i, 0, tail) + logarithm, row_loss + i, 0, tail)


@inline
def first_largest(label, logits, largest):
    """Whether no column before ``label`` is as large as ``largest``."""
    width = lanes(logits)
    for j in range(0, label, width):
        if any_lane(load_filled(zeros(logits, 1, 1), logits + j, 0, label - j, MINUS_INFINITY) == largest):
            return False
    return True


@inline
def fill_row_of_no_class(i, columns, of_rows, slope):
    """Loss and gradient of a row whose label is no class: NaN, or 0 where its weight is."""
    value = 0.0 if of_rows.weight[i] == 0.0 else NAN
    of_rows.loss[i] = value
    of_rows.hit[i] = 0
    for j in range(columns):
        slope[j] = element(slope, value)


@inline
def cross_entropy_of_rows(rows, columns, smoothing, prediction, target, of_rows, scratch, grad):
    """Many classes: a row at a time."""
    width, each = lanes(grad.data), smoothing / columns
    for i in range(rows):
        logits, slope, label = prediction.data + i * prediction.ld, grad.data + i * grad.ld, target.data[i]
        if label < 0 or label >= columns:
            fill_row_of_no_class(i, columns, of_rows, slope)
            scratch[i] = 1.0
            continue
        shift = max_lanes(largest_of(zeros(grad.data, 1, 1), columns, logits, 0))
        of_label = logits[label] - shift
        hit = of_label == 0.0 and first_largest(label, logits, shift)
        of_all = 0.0
        if smoothing > 0.0:
            total = zeros(grad.data, 1, 1)
            for j in range(0, columns, width):
                tail = columns - j
                shifted = load(total, logits + j, 0, tail) - shift
                total += select(first_lanes(total, tail), shifted, 0.0)
            of_all = each * sum_lanes(total)
        normaliser = sum_lanes(exponentials(zeros(grad.data, 1, 1), columns, logits, 0, shift, slope, 0))
        scratch[i] = normaliser
        of_rows.hit[i] = hit and normaliser == normaliser  # NaN anywhere in the row is no hit
        of_rows.loss[i] = -(1.0 - smoothing) * of_label - of_all
        scale = element(grad.data, of_rows.weight[i])
        share = scale / normaliser
        for j in range(0, columns, width):
            tail = columns - j
            store(load(zeros(grad.data, 1, 1), slope + j, 0, tail) * share - scale * each, slope + j, 0, tail)
        slope[label] = slope[label] - element(grad.data, (1.0 - smoothing) * scale)
    add_logarithms(rows, scratch, of_rows.loss)


@inline
def cross_entropy_of_few_classes(rows, columns, smoothing, prediction, target, of_rows, scratch, grad):
    """No more classes than lanes: as many rows as lanes at a time, transposed, so that a lane is a row."""
    width, each = lanes(grad.data), smoothing / columns
    for i in range(0, rows, width):
        count = min(width, rows - i)
        rows_into_lanes(count, columns, prediction.data + i * prediction.ld, prediction.ld, scratch)
        label = load_converted_first(zeros(grad.data, 1, 1), target.data + i, count)
        weight = load_converted_first(label, of_rows.weight + i, count)
        largest, guess, of_label = load(label, scratch, 0, None), label * 0.0, label * 0.0
        for c in range(columns):
            z = load(label, scratch + c * width, 0, None)
            guess = select(z > largest, c, guess)
            largest = select(z > largest, z, largest)
            of_label = select(label == c, z, of_label)
        total, of_all = label * 0.0, label * 0.0
        for c in range(columns):
            shifted = load(label, scratch + c * width, 0, None) - largest
            if smoothing > 0.0:
                of_all += shifted
            e = exp_of_nonpositive(shifted)
            store(e, scratch + c * width, 0, None)
            total += e
        value = log_of_normal(total) - (of_label - largest) * (1.0 - smoothing) - of_all * each
        store(value, of_rows.loss + i, 0, count)
        share = weight / total
        for c in range(columns):
            e = load(label, scratch + c * width, 0, None) * share - weight * each
            store(e - select(label == c, weight * (1.0 - smoothing), 0.0), scratch + c * width, 0, None)
        lanes_into_rows(count, columns, scratch, grad.data + i * grad.ld, grad.ld)
        store(select(guess == label, total, -1.0), scratch, 0, None)
        for r in range(count):
            of_rows.hit[i + r] = scratch[r] > 0.0  # false for NaN: no hit
        if any_lane(label < 0.0) or any_lane(label >= columns):
            for r in range(i, i + count):
                if target.data[r] < 0 or target.data[r] >= columns:
                    fill_row_of_no_class(r, columns, of_rows, grad.data + r * grad.ld)


def cross_entropy(rows, columns, smoothing, prediction, target, of_rows, scratch, grad):
    """Softmax cross-entropy of integer labels."""
    if columns <= lanes(grad.data):
        cross_entropy_of_few_classes(rows, columns, smoothing, prediction, target, of_rows, scratch, grad)
    else:
        cross_entropy_of_rows(rows, columns, smoothing, prediction, target, of_rows, scratch, grad)


def soft_cross_entropy(rows, columns, smoothing, prediction, target, of_rows, scratch, grad):
    """Softmax cross-entropy of distributions."""
    width, each = lanes(grad.data), smoothing / columns
    for i in range(rows):
        logits, slope, y = prediction.data + i * prediction.ld, grad.data + i * grad.ld, target.data + i * target.ld
        shift = max_lanes(largest_of(zeros(grad.data, 1, 1), columns, logits, 0))
        mass, of_target = zeros(grad.data, 1, 1), zeros(grad.data, 1, 1)
        for j in range(0, columns, width):
            mass += load(mass, y + j, 0, columns - j)
        total_mass = (1.0 - smoothing) * sum_lanes(mass) + smoothing
        for j in range(0, columns, width):
            tail = columns - j
            smoothed = load(mass, y + j, 0, tail) * (1.0 - smoothing) + each
            shifted = load(mass, logits + j, 0, tail) - shift
            of_class = select(smoothed == 0.0, 0.0, smoothed * shifted)  # not NaN where the logit is -inf
            of_target += select(first_lanes(mass, tail), of_class, 0.0)
        of_rows.loss[i] = -sum_lanes(of_target)
        normaliser = sum_lanes(exponentials(zeros(grad.data, 1, 1), columns, logits, 0, shift, slope, 0))
        of_rows.loss[i] = of_rows.loss[i] + total_mass * logarithm_of(grad.data, normaliser)
        of_rows.hit[i] = 0
        scale = element(grad.data, of_rows.weight[i])
        share = element(grad.data, total_mass) / normaliser
        for j in range(0, columns, width):
            tail = columns - j
            smoothed = load(mass, y + j, 0, tail) * (1.0 - smoothing) + each
            store((load(mass, slope + j, 0, tail) * share - smoothed) * scale, slope + j, 0, tail)


@inline
def logarithm_of(p, x):
    """The logarithm of one number, by the vector formula."""
    return max_lanes(log_of_normal(zeros(p, 1, 1) + x))


def kernel(name):
    """The kernel of a loss of ``layout.LOSSES``."""
    return globals()[name] if name in ("cross_entropy", "soft_cross_entropy") else kernel_of_elements(name)


def loss_sum(rows, row_weight, row_loss, out):
    """``out[0] = sum_i row_weight_i * row_loss_i``, in the order of the rows."""
    total = 0.0
    for i in range(rows):
        total += row_weight[i] * row_loss[i]
    out[0] = total
