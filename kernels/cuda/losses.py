"""Losses: the loss of every row and the gradient, several threads for a row; and the loss of a training step.

The kernels compute what `reference.loss_forward_backward` defines. A loss that is a sum or mean over elements is a
formula of `kernels/losses.py`; the cross-entropies are written out here. The length of a row alone decides how threads
share it, so a row has the same bits in every batch.
"""

from functools import cache

import numpy as np

from .. import layout
from ..losses import SUMMED
from .compiling import device_function, kernel, made_once, vector
from .driver import cuda
from .formulas import formulas
from .launch import THREADS, for_each_row, max_over_lanes, min_over_lanes, of_rows, sum_over_lanes
from .operands import FLOAT, FLOATS, INT, INTS, Lanes, Rows, matrix, row_of, type_of
from .probabilities import exponentials
from .record import CURRENT, NEXT, STEP_HITS, STEP_LOSS, STOPPED


# -------------------------------------------------------------------------------- losses of elements
# The loss of a row is a device function ``(lanes, inside, columns, parameter, prediction, target, weight, grad)``;
# prediction, target and grad are each a `Row`. All threads of a block call it; ``inside`` is False for those that have
# no row. It writes the gradient, and returns the loss, and 1 where the label was predicted, else 0.
def loss_of_elements(name, dtype):
    """The loss of a row by the formula of its elements: their mean, or for those in `SUMMED` their sum."""
    formula, number = formulas(dtype)[name], dtype.type
    mean, zero = name not in SUMMED, number(0)

    @device_function
    def of_row(lanes, inside, columns, parameter, prediction, target, weight, grad):
        scale = 1 / np.float64(columns) if mean else np.float64(1)
        total = zero
        if inside:
            factor = number(scale * weight)
            for j in range(lanes.lane, columns, lanes.count):
                value, slope = formula(prediction.data[prediction.start + j], target.data[target.start + j], parameter)
                total += value
                grad.data[grad.start + j] = slope * factor
        return number(scale) * sum_over_lanes(lanes.shared, total, lanes.lane, lanes.count), np.int64(0)

    return of_row


# ----------------------------------------------------------------------------------- cross-entropies
def cross_entropy(dtype):
    """Softmax cross-entropy of integer labels, with label smoothing.

    Where the label is no class, loss and gradient are NaN, or 0 if the weight of the row is 0.
    """
    logarithm, exponentials_of_row, number = formulas(dtype)["log_of_normal"], exponentials(dtype), dtype.type
    zero, one, lowest, nan = number(0), number(1), number(-np.inf), number(np.nan)

    @device_function
    def of_row(lanes, inside, columns, smoothing, prediction, target, weight, grad):
        each = smoothing / number(columns)
        largest, guess, of_label, label, factor = lowest, np.int64(columns), zero, np.int64(0), number(weight)
        known, of_no_class = True, nan if weight != 0 else zero
        if inside:
            label = target.data[target.start]
            known = label >= 0 and label < columns
            of_label = prediction.data[prediction.start + label] if known else zero
            for j in range(lanes.lane, columns, lanes.count):
                z = prediction.data[prediction.start + j]
                if z > largest:
                    largest = z
                    guess = np.int64(j)
        shift = max_over_lanes(lanes.shared, largest, lanes.lane, lanes.count)
        guess = min_over_lanes(
            lanes.shared_column, guess if largest == shift else np.int64(columns), lanes.lane, lanes.count
        )
        of_label -= shift
        total, of_all = zero, zero
        if inside:
            if smoothing > zero:
                for j in range(lanes.lane, columns, lanes.count):
                    of_all += prediction.data[prediction.start + j] - shift
            total = exponentials_of_row(lanes.lane, lanes.count, columns, prediction, shift, grad)
        total = sum_over_lanes(lanes.shared, total, lanes.lane, lanes.count)
        of_all = sum_over_lanes(lanes.shared, of_all, lanes.lane, lanes.count)
        if inside:
            share = factor / total
            for j in range(lanes.lane, columns, lanes.count):
                slope = grad.data[grad.start + j] * share - factor * each
                slope = slope - (one - smoothing) * factor if j == label else slope
                grad.data[grad.start + j] = slope if known else of_no_class
        if not known:
            return of_no_class, np.int64(0)
        hit = np.int64(1) if guess == label and total == total else np.int64(0)  # 0 if any logit is NaN
        return logarithm(total) - (one - smoothing) * of_label - each * of_all, hit

    return of_row


def soft_cross_entropy(dtype):
    """Softmax cross-entropy of distributions over the classes, with label smoothing."""
    parts, number = formulas(dtype), dtype.type
    exponential, logarithm = parts["exp_of_nonpositive"], parts["log_of_normal"]
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @device_function
    def of_row(lanes, inside, columns, smoothing, prediction, target, weight, grad):
        each = smoothing / number(columns)
        largest, mass = lowest, zero
        if inside:
            for j in range(lanes.lane, columns, lanes.count):
                z = prediction.data[prediction.start + j]
                if z > largest:
                    largest = z
                mass += target.data[target.start + j]
        shift = max_over_lanes(lanes.shared, largest, lanes.lane, lanes.count)
        mass = (one - smoothing) * sum_over_lanes(lanes.shared, mass, lanes.lane, lanes.count) + smoothing
        total, of_target = zero, zero
        if inside:
            for j in range(lanes.lane, columns, lanes.count):
                shifted = prediction.data[prediction.start + j] - shift
                smoothed = (one - smoothing) * target.data[target.start + j] + each
                if smoothed != zero:  # 0 * -inf would be NaN
                    of_target += smoothed * shifted
                e = exponential(shifted)
                grad.data[grad.start + j] = e
                total += e
        total = sum_over_lanes(lanes.shared, total, lanes.lane, lanes.count)
        of_target = sum_over_lanes(lanes.shared, of_target, lanes.lane, lanes.count)
        if inside:
            factor = number(weight)
            share = mass / total
            for j in range(lanes.lane, columns, lanes.count):
                smoothed = (one - smoothing) * target.data[target.start + j] + each
                grad.data[grad.start + j] = (grad.data[grad.start + j] * share - smoothed) * factor
        return mass * logarithm(total) - of_target, np.int64(0)

    return of_row


@cache
def loss_of_row(name, dtype):
    """The device function of a loss by its name in ``layout.LOSSES``; see above."""
    written_out = {"cross_entropy": cross_entropy, "soft_cross_entropy": soft_cross_entropy}
    return written_out[name](dtype) if name in written_out else loss_of_elements(name, dtype)


def target_type(name, dtype):
    """The dtype of the targets of a loss, for predictions of a dtype."""
    return np.dtype(np.int64) if name in layout.LABEL_LOSSES else dtype


@cache
def loss_of_step_row(name, dtype):
    """A device function: row ``i`` of the matrices of a step, whose loss and hit it writes to its `Rows`, too."""
    of_row = loss_of_row(name, dtype)

    @device_function
    def each(i, inside, lanes, columns, parameter, prediction, target, rows, grad):
        weight = rows.weight[i] if inside else np.float64(0)
        loss, hit = of_row(
            lanes, inside, columns, parameter, row_of(prediction, i), row_of(target, i), weight, row_of(grad, i)
        )
        if inside and lanes.lane == 0:
            rows.loss[i] = loss
            rows.hit[i] = hit

    return each


@made_once
def loss_kernel(name, dtype):
    """The kernel of a loss, for all rows; as many threads share a row as a block is wide."""
    each, number = for_each_row(loss_of_step_row(name, dtype)), dtype.type
    targets = matrix(target_type(name, dtype))

    @kernel(INT, INT, FLOAT, matrix(dtype), targets, rows_type(dtype), matrix(dtype), threads=THREADS)
    def loss_kernel(count, columns, parameter, prediction, target, rows, grad):
        shared = cuda.shared.array(THREADS, dtype)
        shared_column = cuda.shared.array(THREADS, np.int64)
        lanes = Lanes(cuda.threadIdx.x, cuda.blockDim.x, shared, shared_column)
        each(count, lanes, columns, number(parameter), prediction, target, rows, grad)

    return loss_kernel


def rows_type(dtype):
    """The type of `Rows` for losses of a dtype."""
    return type_of(Rows, FLOATS, vector(dtype), INTS)


def loss_forward_backward(name, count, columns, parameter, prediction, target, rows, grad, stream):
    """Launch the losses of ``count`` rows and the gradient of ``sum_i weight_i * loss_i``; nothing for 0 rows.

    ``prediction``, ``target`` and ``grad`` are each a `Matrix`; labels are one of one column, int64.
    """
    if count:
        grid, block = of_rows(count, columns)
        function = loss_kernel(name, prediction.data.dtype)
        function[grid, block, stream](count, columns, parameter, prediction, target, rows, grad)


# ------------------------------------------------------------------------------------ loss of a step
@made_once
def step_loss_kernel(dtype):
    """The kernel that writes the loss of a step, and its number of hits, into the record, by one block.

    It is that of the current step, and the next step is the one after it. A loss that is not finite stops the record,
    whose next step stays this one.
    """

    @kernel(INT, INTS, FLOATS, rows_type(dtype), threads=THREADS)
    def step_loss_kernel(count, record, floats, rows):
        shared = cuda.shared.array(THREADS, np.float64)
        shared_hits = cuda.shared.array(THREADS, np.int64)
        step, stopped = record[CURRENT], record[STOPPED]
        loss, hits = np.float64(0), np.int64(0)
        for i in range(cuda.threadIdx.x, count, cuda.blockDim.x):
            loss += rows.weight[i] * np.float64(rows.loss[i])
            hits += rows.hit[i]
        loss = sum_over_lanes(shared, loss, cuda.threadIdx.x, cuda.blockDim.x)
        hits = sum_over_lanes(shared_hits, hits, cuda.threadIdx.x, cuda.blockDim.x)
        if cuda.threadIdx.x == 0 and stopped == 0:
            floats[record[STEP_LOSS] + step] = loss
            record[record[STEP_HITS] + step] = hits
            if loss - loss == 0:
                record[NEXT] = step + 1
            else:
                record[STOPPED] = 1

    return step_loss_kernel


def step_loss(count, record, rows, stream):
    """Launch the loss of a step, ``sum_i weight_i * loss_i`` over ``count`` rows, into a `Record`."""
    step_loss_kernel(rows.loss.dtype)[1, THREADS, stream](count, record.device, record.floats, rows)


def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    for name in layout.LOSSES:
        yield f"loss {name}", loss_kernel(name, dtype)
    yield "step_loss", step_loss_kernel(dtype)
