"""Losses: the value of every row and the gradient, several threads a row; and the loss of a step.

What the kernels compute is `reference.loss_forward_backward`. A loss that sums over its elements is one formula, from
a prediction and its target to value and slope; the cross-entropies are written out. The threads of a row share it in
a way that its length alone decides, so a row's bits are the same in every batch.
"""

from functools import cache

import numpy as np

from .. import table
from ..activations import exp_of_nonpositive, log1p_of_unit, log_of_normal
from .driver import cuda, device_function, kernel, types, vector
from .formulas import absolute, formulas, select, typed
from .launch import THREADS, first_row, max_over_lanes, min_over_lanes, of_rows, sum_over_lanes
from .probabilities import exponentials
from .record import CURRENT, NEXT, STEP_HITS, STEP_LOSS, STOPPED


# -------------------------------------------------------------------------------- losses of elements
# `typed` puts what these call, over the primitives of the dtype in use, in the place of what is imported here.
def half_squared_error(s, y, parameter):
    error = s - y
    return error * error * 0.5, error


def mean_squared_error(s, y, parameter):
    error = s - y
    return error * error, error * 2.0


def sign(x):
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, x))


def l1(s, y, parameter):
    error = s - y
    return absolute(error), sign(error)


def huber(s, y, delta):
    error = s - y
    size = absolute(error)
    value = select(size <= delta, error * error * 0.5, (size - 0.5 * delta) * delta)
    return value, select(size <= delta, error, sign(error) * delta)


# PyTorch's limits, which keep the loss of a certain and wrong probability finite.
LEAST_LOGARITHM, LEAST_VARIANCE = -100.0, 1e-12
SMALLEST_NORMAL, TWO_64, LOG_TWO_64 = 1.1754943508222875e-38, 18446744073709551616.0, 44.3614195558365
NAN = float("nan")


def limited_logarithm(p):
    """``max(ln p, -100)``; what is no normal number even when multiplied by 2^64 is below the limit."""
    tiny = p < SMALLEST_NORMAL
    value = log_of_normal(select(tiny, p * TWO_64, p)) - select(tiny, LOG_TWO_64, 0.0)
    return select(p < 0.0, NAN, select(value < LEAST_LOGARITHM, LEAST_LOGARITHM, value))


def binary_cross_entropy(p, y, parameter):
    rest = 1.0 - p
    of_rest = select(p <= 0.5, log1p_of_unit(select(p <= 0.5, p, 0.0) * -1.0), limited_logarithm(rest))
    variance = p * rest
    value = (limited_logarithm(p) * y + of_rest * (1.0 - y)) * -1.0
    return value, (p - y) / select(variance < LEAST_VARIANCE, LEAST_VARIANCE, variance)


def binary_cross_entropy_with_logits(s, y, parameter):
    linear = select(s > 0.0, s, 0.0) - y * s  # exact for y of 0 or 1, so that small losses stay
    e = exp_of_nonpositive(absolute(s) * -1.0)
    return linear + log1p_of_unit(e), select(s < 0.0, e, 1.0) / (e + 1.0) - y


SUMMED = ("half_squared_error",)  # over the outputs; the others take the mean


# A loss of a row is a device function ``(shared, shared_column, lane, lanes, inside, columns, parameter, prediction, s,
# target, t, weight, grad, g)``, called by all threads of a block, ``lanes`` a row: the row's arrays begin at s, t, g,
# ``inside`` tells whether there is a row for these threads. It writes the gradient and returns the loss and the hit.
def loss_of_elements(name, dtype):
    """A loss that is a sum or mean over the elements of a row."""
    parts = dict(formulas(dtype))
    for part in (sign, limited_logarithm):
        parts[part.__name__] = device_function(typed(part, dtype, parts))
    formula, number = device_function(typed(globals()[name], dtype, parts)), dtype.type
    mean, zero = name not in SUMMED, number(0)

    @device_function
    def of_row(
        shared, shared_column, lane, lanes, inside, columns, parameter, prediction, s, target, t, weight, grad, g
    ):
        scale = 1 / np.float64(columns) if mean else np.float64(1)
        total = zero
        if inside:
            factor = number(scale * weight)
            for j in range(lane, columns, lanes):
                value, slope = formula(prediction[s + j], target[t + j], parameter)
                total += value
                grad[g + j] = slope * factor
        return number(scale) * sum_over_lanes(shared, total, lane, lanes), np.int64(0)

    return of_row


# ----------------------------------------------------------------------------------- cross-entropies
def cross_entropy(dtype):
    """Softmax cross-entropy of integer labels."""
    logarithm, exponentials_of_row, number = formulas(dtype)["log_of_normal"], exponentials(dtype), dtype.type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @device_function
    def of_row(
        shared, shared_column, lane, lanes, inside, columns, smoothing, prediction, s, target, t, weight, grad, g
    ):
        each = smoothing / number(columns)
        largest, guess, of_label, label = lowest, np.int64(columns), zero, np.int64(0)
        if inside:
            label = target[t]
            of_label = prediction[s + label]
            for j in range(lane, columns, lanes):
                z = prediction[s + j]
                if z > largest:
                    largest = z
                    guess = np.int64(j)
        shift = max_over_lanes(shared, largest, lane, lanes)
        guess = min_over_lanes(shared_column, guess if largest == shift else np.int64(columns), lane, lanes)
        of_label -= shift
        total, of_all = zero, zero
        if inside:
            if smoothing > zero:
                for j in range(lane, columns, lanes):
                    of_all += prediction[s + j] - shift
            total = exponentials_of_row(lane, lanes, columns, prediction, s, shift, grad, g)
        total = sum_over_lanes(shared, total, lane, lanes)
        of_all = sum_over_lanes(shared, of_all, lane, lanes)
        if inside:
            factor = number(weight)
            share = factor / total
            for j in range(lane, columns, lanes):
                slope = grad[g + j] * share - factor * each
                grad[g + j] = slope - (one - smoothing) * factor if j == label else slope
        hit = np.int64(1) if guess == label and total == total else np.int64(0)  # NaN anywhere is no hit
        return logarithm(total) - (one - smoothing) * of_label - each * of_all, hit

    return of_row


def soft_cross_entropy(dtype):
    """Softmax cross-entropy of distributions."""
    parts, number = formulas(dtype), dtype.type
    exponential, logarithm = parts["exp_of_nonpositive"], parts["log_of_normal"]
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @device_function
    def of_row(
        shared, shared_column, lane, lanes, inside, columns, smoothing, prediction, s, target, t, weight, grad, g
    ):
        each = smoothing / number(columns)
        largest, mass = lowest, zero
        if inside:
            for j in range(lane, columns, lanes):
                z = prediction[s + j]
                if z > largest:
                    largest = z
                mass += target[t + j]
        shift = max_over_lanes(shared, largest, lane, lanes)
        mass = (one - smoothing) * sum_over_lanes(shared, mass, lane, lanes) + smoothing
        total, of_target = zero, zero
        if inside:
            for j in range(lane, columns, lanes):
                shifted = prediction[s + j] - shift
                smoothed = (one - smoothing) * target[t + j] + each
                if smoothed != zero:  # else not NaN where the logit is -inf
                    of_target += smoothed * shifted
                e = exponential(shifted)
                grad[g + j] = e
                total += e
        total = sum_over_lanes(shared, total, lane, lanes)
        of_target = sum_over_lanes(shared, of_target, lane, lanes)
        if inside:
            factor = number(weight)
            share = mass / total
            for j in range(lane, columns, lanes):
                smoothed = (one - smoothing) * target[t + j] + each
                grad[g + j] = (grad[g + j] * share - smoothed) * factor
        return mass * logarithm(total) - of_target, np.int64(0)

    return of_row


@cache
def loss_of_row(name, dtype):
    """The device function of a loss of ``table.LOSSES``."""
    written_out = {"cross_entropy": cross_entropy, "soft_cross_entropy": soft_cross_entropy}
    return written_out[name](dtype) if name in written_out else loss_of_elements(name, dtype)


@cache
def loss_kernel(name, dtype):
    """A loss of all rows; a row has as many threads as a block is wide."""
    of_row, number, labelled = loss_of_row(name, dtype), dtype.type, name in table.LABEL_LOSSES

    @kernel(threads=THREADS)
    def loss_kernel(
        rows, columns, parameter, prediction, p_offset, ldp, target, ldt, row_weight, row_loss, row_hit,
        grad, g_offset, ldg,
    ):  # fmt: skip
        shared = cuda.shared.array(THREADS, dtype)
        shared_column = cuda.shared.array(THREADS, np.int64)
        row, row_step = first_row()
        p, lane = number(parameter), cuda.threadIdx.x
        for first in range(row - cuda.threadIdx.y, rows, row_step):
            i = first + cuda.threadIdx.y
            inside = i < rows
            loss, hit = of_row(
                shared, shared_column, lane, cuda.blockDim.x, inside, columns, p, prediction, p_offset + i * ldp,
                target, i if labelled else i * ldt, row_weight[i] if inside else np.float64(0),
                grad, g_offset + i * ldg,
            )  # fmt: skip
            if inside and lane == 0:
                row_loss[i] = loss
                row_hit[i] = hit

    return loss_kernel


def loss_forward_backward(
    name, rows, columns, parameter, prediction, p_offset, ldp, target, ldt, row_weight, row_loss, row_hit,
    grad, g_offset, ldg, stream,
):  # fmt: skip
    """Launch it; nothing where there is no row."""
    if rows:
        grid, block = of_rows(rows, columns)
        loss_kernel(name, prediction.dtype)[grid, block, stream](
            rows, columns, float(parameter), prediction, p_offset, ldp, target, ldt, row_weight, row_loss, row_hit,
            grad, g_offset, ldg,
        )  # fmt: skip


# ------------------------------------------------------------------------------------ loss of a step
@cache
def step_loss_kernel():
    """Loss and hits of the batch into the record, which then is at its update and the step after it. One block.

    When the loss is not finite the record is stopped and stays at this step.
    """

    @kernel(threads=THREADS)
    def step_loss_kernel(rows, record, floats, row_weight, row_loss, row_hit):
        shared = cuda.shared.array(THREADS, np.float64)
        shared_hits = cuda.shared.array(THREADS, np.int64)
        step, stopped = record[NEXT], record[STOPPED]
        loss, hits = np.float64(0), np.int64(0)
        for i in range(cuda.threadIdx.x, rows, cuda.blockDim.x):
            loss += row_weight[i] * np.float64(row_loss[i])
            hits += row_hit[i]
        loss = sum_over_lanes(shared, loss, cuda.threadIdx.x, cuda.blockDim.x)
        hits = sum_over_lanes(shared_hits, hits, cuda.threadIdx.x, cuda.blockDim.x)
        if cuda.threadIdx.x == 0 and stopped == 0:
            floats[record[STEP_LOSS] + step] = loss
            record[record[STEP_HITS] + step] = hits
            record[CURRENT] = step
            if loss - loss == 0:
                record[NEXT] = step + 1
            else:
                record[STOPPED] = 1

    return step_loss_kernel


def step_loss(rows, record, row_weight, row_loss, row_hit, stream):
    """Launch it."""
    step_loss_kernel()[1, THREADS, stream](rows, record.device, record.floats, row_weight, row_loss, row_hit)


def kernels(dtype):
    """Every kernel of this file: (name, kernel, signature)."""
    i, f, a, ints, doubles = types.int64, types.float64, vector(dtype), vector(np.int64), vector(np.float64)
    for name in table.LOSSES:
        target = ints if name in table.LABEL_LOSSES else a
        signature = (i, i, f, a, i, i, target, i, doubles, a, ints, a, i, i)
        yield f"loss {name}", loss_kernel(name, dtype), signature
    yield "step_loss", step_loss_kernel(), (i, ints, doubles, doubles, a, ints)
