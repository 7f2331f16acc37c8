"""Losses: the value of every row and the gradient, several threads a row; and the loss of a step.

What the kernels compute is `reference.loss_forward_backward`. A loss that sums over its elements is a formula of
`losses`; the cross-entropies are written out. The threads of a row share it in a way that its length alone decides, so
a row's bits are the same in every batch.
"""

from functools import cache

import numpy as np

from .. import layout
from ..losses import SUMMED
from .driver import cuda, device_function, kernel, types, vector
from .formulas import formulas
from .launch import THREADS, first_row, max_over_lanes, min_over_lanes, of_rows, sum_over_lanes
from .probabilities import exponentials
from .record import CURRENT, NEXT, STEP_HITS, STEP_LOSS, STOPPED


# -------------------------------------------------------------------------------- losses of elements
# A loss of a row is a device function ``(shared, shared_column, lane, lanes, inside, columns, parameter, prediction, s,
# target, t, weight, grad, g)``, called by all threads of a block, ``lanes`` a row: the row's arrays begin at s, t, g,
# ``inside`` tells whether there is a row for these threads. It writes the gradient and returns the loss and the hit.
def loss_of_elements(name, dtype):
    """A loss that is a sum or mean over the elements of a row."""
    formula, number = formulas(dtype)[name], dtype.type
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
    zero, one, lowest, nan = number(0), number(1), number(-np.inf), number(np.nan)

    @device_function
    def of_row(
        shared, shared_column, lane, lanes, inside, columns, smoothing, prediction, s, target, t, weight, grad, g
    ):
        each = smoothing / number(columns)
        largest, guess, of_label, label, factor = lowest, np.int64(columns), zero, np.int64(0), number(weight)
        known, of_no_class = True, nan if weight != 0 else zero
        if inside:
            label = target[t]
            known = label >= 0 and label < columns
            of_label = prediction[s + label] if known else zero
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
            share = factor / total
            for j in range(lane, columns, lanes):
                slope = grad[g + j] * share - factor * each
                slope = slope - (one - smoothing) * factor if j == label else slope
                grad[g + j] = slope if known else of_no_class
        if not known:
            return of_no_class, np.int64(0)
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
    """The device function of a loss of ``layout.LOSSES``."""
    written_out = {"cross_entropy": cross_entropy, "soft_cross_entropy": soft_cross_entropy}
    return written_out[name](dtype) if name in written_out else loss_of_elements(name, dtype)


@cache
def loss_kernel(name, dtype):
    """A loss of all rows; a row has as many threads as a block is wide."""
    of_row, number, labelled = loss_of_row(name, dtype), dtype.type, name in layout.LABEL_LOSSES

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
    for name in layout.LOSSES:
        target = ints if name in layout.LABEL_LOSSES else a
        signature = (i, i, f, a, i, i, target, i, doubles, a, ints, a, i, i)
        yield f"loss {name}", loss_kernel(name, dtype), signature
    yield "step_loss", step_loss_kernel(), (i, ints, doubles, doubles, a, ints)
