"""The walk: compiled code that goes through the rows of the network table, forward and back.

`forward` and `train_steps` take one argument, the address of a record (an ``int64`` array whose fields are named
below), and the number of the calling thread. They are the same machine code for every architecture, dtype, loss
and optimizer: the record and the table hold the addresses of the kernels to call.

A step has two parallel regions with a barrier after each. In the first a thread takes rows of the batch through
gather, forward, loss and backward; in the second it takes blocks of weights through gradient and update, the
gradient in a small scratch block that never leaves the cache. Every sum runs in an order given by the shapes, so
the number of threads changes no bit.
"""

import numpy as np

from .. import table as layout
from ..jit import inline
from . import blocking
from .elementwise import splitmix64
from .linear import is_narrow, linear_backward_input, linear_backward_params, linear_forward
from .simd import as_floats, atomic_add, atomic_load, call, pointer, prefetch

# Fields of the record. Addresses are in bytes, leading dimensions in elements. Of an array that the caller gives, a
# field holds where NumPy keeps its address (see `given`).
(
    THREADS, ITEMSIZE, LANES, TABLE, TABLE_ROWS, PARAMETERS,
    # addresses of kernels; KERNELS holds (activation forward, activation backward) of each row
    KERNELS, GEMM, TRANSPOSE, COPY, DROPOUT, COLUMN_SUM, LOSS, LOSS_PARAMETER, LOSS_SUM, OPTIMIZER,
    # activations for CAPACITY rows (OUTPUTS_BYTES from thread to thread when predicting), and each thread's
    # scratch: a transposed panel of PANEL_BYTES, then converted rows or a block of gradient
    CAPACITY, INPUT, OUTPUTS, OUTPUTS_BYTES, SCRATCH, SCRATCH_BYTES, PANEL_BYTES,
    # training only
    STATE_1, STATE_2, TARGET_IS_LABEL, TARGET_BATCH, LD_TARGET_BATCH, GRADIENTS, BATCH_WEIGHT, ROW_LOSS, ROW_HIT,
    BARRIER, YIELD,
    # what changes from call to call: the rows given, and where a prediction goes
    GATHER_X, X, LDX, X_ITEMSIZE, COUNT, OUT, LD_OUT,
    # of training
    COEFFICIENTS, KEYS, GATHER_TARGET, TARGET, LDT, ROW_WEIGHT, ROWS, BATCH, STEP_LOSS, STEP_HITS, STEPS_DONE,
    FIELDS,  # the number of fields
) = range(53)  # fmt: skip

LINEAR_KIND, DROPOUT_KIND = layout.KINDS.index("linear"), layout.KINDS.index("dropout")
SPINS = 4000  # looks at the barrier before the core is given away: some microseconds


@inline
def given(record, field):
    """The address of a caller's array: reading it here is a load, in Python it takes a quarter of a microsecond."""
    return pointer(record[field], np.int64)[0]


@inline
def barrier(record, phase):
    """Wait until every thread has come here ``phase`` times: spin a little, then yield the core."""
    threads = record[THREADS]
    if threads > 1:
        counter = pointer(record[BARRIER], np.int64)
        atomic_add(counter, 1)
        looks = 0
        while atomic_load(counter) < phase * threads:
            looks += 1
            if looks > SPINS:
                call(record[YIELD], ())


@inline
def share(count, thread, threads):
    """The rows ``[first, last)`` of this thread, in multiples of the micro-kernel's tail height."""
    unit = blocking.MR_TAIL
    first = count * thread // threads // unit * unit
    last = count * (thread + 1) // threads // unit * unit
    if thread == threads - 1:
        last = count
    return first, last


@inline
def drop(record, r, rows, columns, x, ldx, out, ldo, index, key):
    """Dropout of row ``r`` of the table: a copy where ``index``, the numbers of the rows, is 0 (predicting)."""
    if index:
        floats = as_floats(pointer(record[TABLE], np.int64) + r * layout.COLUMNS)
        probability = floats[layout.PARAMETER]
        # p * 2**64 in two halves: a float64 converts to int64 only below 2**63.
        scaled = probability * 4294967296.0
        high = np.int64(scaled)
        threshold = high * 4294967296 + np.int64((scaled - high) * 4294967296.0)
        layer = np.int64(splitmix64(np.uint64(key) + np.uint64(r)))
        call(record[DROPOUT], (rows, columns, x, ldx, out, ldo, index, layer, threshold, 1.0 / (1.0 - probability)))
    else:
        call(record[COPY], (rows, columns, x, ldx, out, ldo, 0.0))


@inline
def forward_rows(record, outputs, x, ldx, rows, first, panel, out, ld_out, index, key):
    """The chain for ``rows`` rows from ``x``; each row of the table writes its output at row ``first``.

    The last output goes to ``out`` instead, unless that is 0. ``index`` is the address of the numbers of the rows,
    when training.
    """
    table, floats = pointer(record[TABLE], np.int64), pointer(record[TABLE], np.float64)
    parameters, kernels, item = record[PARAMETERS], pointer(record[KERNELS], np.int64), record[ITEMSIZE]
    for r in range(record[TABLE_ROWS]):
        row = table + r * layout.COLUMNS
        parameter = (floats + r * layout.COLUMNS)[layout.PARAMETER]
        ldo = row[layout.LD_OUT]
        target = outputs + item * (row[layout.OUTPUT] * record[CAPACITY] + first * ldo)
        saved, lds = outputs + item * (row[layout.SAVED] * record[CAPACITY] + first * ldo), ldo
        if out and r == record[TABLE_ROWS] - 1:
            if saved == target:
                saved, lds = out, ld_out
            target, ldo = out, ld_out
        finish = kernels[2 * r]
        if row[layout.KIND] == LINEAR_KIND:
            bias = 0
            if row[layout.BIAS] >= 0:
                bias = parameters + item * row[layout.BIAS]
            linear_forward(
                record[GEMM], finish, rows, row[layout.FAN_IN], row[layout.FAN_OUT], x, ldx,
                parameters + item * row[layout.WEIGHT], row[layout.LD_OUT], bias, parameter,
                target, ldo, saved, lds, panel,
            )  # fmt: skip
        elif row[layout.KIND] == DROPOUT_KIND:
            drop(record, r, rows, row[layout.FAN_OUT], x, ldx, target, ldo, index, key)
        else:
            if saved != target:
                call(record[COPY], (rows, row[layout.FAN_OUT], x, ldx, saved, lds, 0.0))
            if finish:
                call(finish, (rows, row[layout.FAN_OUT], x, ldx, target, ldo, parameter))
            else:
                call(record[COPY], (rows, row[layout.FAN_OUT], x, ldx, target, ldo, 0.0))
        x, ldx = target, ldo


@inline
def backward_rows(record, rows, first, panel, index, key):
    """From the gradient of the last output to those of every row's pre-activation."""
    table, floats = pointer(record[TABLE], np.int64), pointer(record[TABLE], np.float64)
    kernels, item, capacity = pointer(record[KERNELS], np.int64), record[ITEMSIZE], record[CAPACITY]
    grad_z, ldg = 0, 0
    for back in range(record[TABLE_ROWS]):
        r = record[TABLE_ROWS] - 1 - back
        row = table + r * layout.COLUMNS
        parameter = (floats + r * layout.COLUMNS)[layout.PARAMETER]
        columns, ld, derivative = row[layout.FAN_OUT], row[layout.LD_OUT], kernels[2 * r + 1]
        saved = record[OUTPUTS] + item * (row[layout.SAVED] * capacity + first * ld)
        grad = record[GRADIENTS] + item * (row[layout.OUTPUT] * capacity + first * ld)
        if back > 0 and row[layout.COLUMNS + layout.KIND] == LINEAR_KIND:  # the next row is linear
            after = row + layout.COLUMNS
            linear_backward_input(
                record[GEMM], record[TRANSPOSE], derivative, item, rows, after[layout.FAN_IN], after[layout.FAN_OUT],
                grad_z, ldg, record[PARAMETERS] + item * after[layout.WEIGHT], after[layout.LD_OUT],
                saved, ld, parameter, grad, ld, panel, panel + record[PANEL_BYTES],
            )  # fmt: skip
        else:
            if back > 0 and row[layout.COLUMNS + layout.KIND] == DROPOUT_KIND:
                drop(record, r + 1, rows, columns, grad_z, ldg, grad, ld, index, key)
            elif back > 0:
                call(record[COPY], (rows, columns, grad_z, ldg, grad, ld, 0.0))
            if derivative:
                call(derivative, (rows, columns, grad, ld, saved, ld, parameter))
        grad_z, ldg = grad, ld


@inline
def gather(record, start, first, rows, scale):
    """Rows ``first ...`` of the batch that begins at ``start``: inputs, targets and their weights."""
    index_address = given(record, ROWS) + 8 * (start + first)
    index = pointer(index_address, np.int64)
    table = pointer(record[TABLE], np.int64)
    fan_in, ldx = table[layout.FAN_IN], table[layout.LD_IN]
    x = record[INPUT] + record[ITEMSIZE] * first * ldx
    call(record[GATHER_X], (rows, fan_in, index_address, given(record, X), record[LDX], x, ldx))
    if record[TARGET_IS_LABEL]:
        labels, batch = pointer(given(record, TARGET), np.int64), pointer(record[TARGET_BATCH], np.int64)
        for i in range(rows):
            if i + blocking.VECTORS_AHEAD < rows:
                prefetch(labels + index[i + blocking.VECTORS_AHEAD])
            batch[first + i] = labels[index[i]]
    else:
        ldt = record[LD_TARGET_BATCH]
        columns = table[(record[TABLE_ROWS] - 1) * layout.COLUMNS + layout.FAN_OUT]
        y = record[TARGET_BATCH] + record[ITEMSIZE] * first * ldt
        call(record[GATHER_TARGET], (rows, columns, index_address, given(record, TARGET), record[LDT], y, ldt))
    weight = pointer(record[BATCH_WEIGHT], np.float64) + first
    if record[ROW_WEIGHT]:
        row_weight = pointer(given(record, ROW_WEIGHT), np.float64)
        for i in range(rows):
            weight[i] = row_weight[index[i]] * scale
    else:
        for i in range(rows):
            weight[i] = scale


@inline
def weight_scale(record, start, n):
    """1 / the sum of the batch's row weights; 0 when they are all 0, so that the batch counts for nothing."""
    if record[ROW_WEIGHT] == 0:
        return 1.0 / n
    index = pointer(given(record, ROWS) + 8 * start, np.int64)
    row_weight = pointer(given(record, ROW_WEIGHT), np.float64)
    total = 0.0
    for i in range(n):
        total += row_weight[index[i]]
    if total == 0.0:
        return 0.0
    return 1.0 / total


@inline
def rows_region(record, step, start, n, thread, panel):
    """Region 1: this thread's rows of the batch through gather, forward, loss and backward."""
    table, item, capacity = pointer(record[TABLE], np.int64), record[ITEMSIZE], record[CAPACITY]
    ldx = table[layout.LD_IN]
    end = table + (record[TABLE_ROWS] - 1) * layout.COLUMNS
    ldo, classes = end[layout.LD_OUT], end[layout.FAN_OUT]
    loss_parameter = as_floats(record)[LOSS_PARAMETER]
    key = pointer(given(record, KEYS), np.int64)[step]
    scale = weight_scale(record, start, n)
    begin, stop = share(n, thread, record[THREADS])
    for first in range(begin, stop, blocking.ROWS):
        rows = min(blocking.ROWS, stop - first)
        gather(record, start, first, rows, scale)
        index = given(record, ROWS) + 8 * (start + first)
        forward_rows(
            record, record[OUTPUTS], record[INPUT] + item * first * ldx, ldx, rows, first, panel, 0, 0, index, key
        )
        offset = item * (end[layout.OUTPUT] * capacity + first * ldo)
        ldt, target = 0, record[TARGET_BATCH] + 8 * first
        if not record[TARGET_IS_LABEL]:
            ldt = record[LD_TARGET_BATCH]
            target = record[TARGET_BATCH] + item * first * ldt
        call(
            record[LOSS],
            (
                rows, classes, loss_parameter, record[OUTPUTS] + offset, ldo,
                target, ldt, record[BATCH_WEIGHT] + 8 * first,
                record[ROW_LOSS] + item * first, record[ROW_HIT] + 8 * first, panel + record[PANEL_BYTES],
                record[GRADIENTS] + offset, ldo,
            ),
        )  # fmt: skip
        backward_rows(record, rows, first, panel, index, key)


@inline
def round_up(n, unit):
    return (n + unit - 1) // unit * unit


@inline
def weights_region(record, step, n, thread, panel):
    """Region 2: this thread's blocks of weights, gradient and update, the biases with the first block."""
    table, item, capacity = pointer(record[TABLE], np.int64), record[ITEMSIZE], record[CAPACITY]
    coefficients = given(record, COEFFICIENTS) + 8 * layout.COEFFICIENTS * step
    x, ldx = record[INPUT], table[layout.LD_IN]
    parameters, state_1, state_2 = record[PARAMETERS], record[STATE_1], record[STATE_2]
    scratch = panel + record[PANEL_BYTES]
    block = scratch + item * blocking.GRADIENT_COLUMNS  # the bias gradient comes before it
    task = 0
    for r in range(record[TABLE_ROWS]):
        row = table + r * layout.COLUMNS
        fan_in, fan_out, ld = row[layout.FAN_IN], row[layout.FAN_OUT], row[layout.LD_OUT]
        output = item * row[layout.OUTPUT] * capacity
        grad_z = record[GRADIENTS] + output
        if row[layout.KIND] == LINEAR_KIND:
            width = min(fan_out, blocking.GRADIENT_COLUMNS)
            fitting = blocking.GRADIENT_SLICE_BYTES // (item * n) // blocking.GRADIENT_UNIT * blocking.GRADIENT_UNIT
            width = min(width, max(fitting, blocking.GRADIENT_UNIT))
            ld_scratch = width
            if ld != fan_out or width != fan_out:
                ld_scratch = round_up(width, record[LANES]) + record[LANES]
            most = max(blocking.GRADIENT_MOST // ld_scratch // blocking.MR, 1) * blocking.MR
            height = max(round_up((fan_in + 15) // 16, blocking.MR), blocking.GRADIENT_LEAST // width)
            height = min(height, most)
            for j in range(0, fan_out, width):
                columns = min(width, fan_out - j)
                for i in range(0, fan_in, height):
                    if task % record[THREADS] == thread:
                        rows = min(height, fan_in - i)
                        sums = 0
                        if i == 0 and row[layout.BIAS] >= 0:
                            sums = scratch
                        at = item * (row[layout.WEIGHT] + i * ld + j)
                        transpose = 0
                        if is_narrow(rows, fan_out, record[LANES], item):
                            transpose = record[TRANSPOSE]
                        linear_backward_params(
                            record[GEMM], transpose, record[COLUMN_SUM], n, rows, columns, x + item * i, ldx,
                            grad_z + item * j, ld, 0, block, ld_scratch, sums, panel,
                        )  # fmt: skip
                        call(
                            record[OPTIMIZER],
                            (
                                rows, columns, coefficients, parameters + at, ld, block, ld_scratch,
                                state_1 + at, state_2 + at,
                            ),
                        )  # fmt: skip
                        if sums:
                            at = item * (row[layout.BIAS] + j)
                            call(
                                record[OPTIMIZER],
                                (1, columns, coefficients, parameters + at, 0, sums, 0, state_1 + at, state_2 + at),
                            )
                    task += 1
        x, ldx = record[OUTPUTS] + output, ld


def train_steps(record, thread):
    """`reference.network_train_steps` for one thread; leaves the number of steps done in the record."""
    panel = record[SCRATCH] + thread * record[SCRATCH_BYTES]
    scratch = panel + record[PANEL_BYTES]
    losses, hits = pointer(given(record, STEP_LOSS), np.float64), pointer(given(record, STEP_HITS), np.int64)
    loss, row_hit = pointer(scratch, np.float64), pointer(record[ROW_HIT], np.int64)
    count, batch = record[COUNT], record[BATCH]
    steps = (count + batch - 1) // batch
    phase = 0
    for step in range(steps):
        start = step * batch
        n = min(batch, count - start)
        rows_region(record, step, start, n, thread, panel)
        phase += 1
        barrier(record, phase)
        call(record[LOSS_SUM], (n, record[BATCH_WEIGHT], record[ROW_LOSS], scratch))
        finite = loss[0] * 0.0 == 0.0
        if thread == 0:
            losses[step] = loss[0]
            total = 0
            for i in range(n):
                total += row_hit[i]
            hits[step] = total
            if finite:
                record[STEPS_DONE] = step + 1
        if not finite:
            break
        weights_region(record, step, n, thread, panel)
        phase += 1
        barrier(record, phase)


def forward(record, thread):
    """`reference.network_forward` for one thread: blocks of rows through thread-private activations."""
    table = pointer(record[TABLE], np.int64)
    fan_in, ldi, item = table[layout.FAN_IN], table[layout.LD_IN], record[ITEMSIZE]
    panel = record[SCRATCH] + thread * record[SCRATCH_BYTES]
    outputs = record[OUTPUTS] + thread * record[OUTPUTS_BYTES]
    begin, stop = share(record[COUNT], thread, record[THREADS])
    for first in range(begin, stop, record[CAPACITY]):
        rows = min(record[CAPACITY], stop - first)
        x, ldx = given(record, X) + record[X_ITEMSIZE] * first * record[LDX], record[LDX]
        if record[GATHER_X]:
            buffer = panel + record[PANEL_BYTES]
            call(record[GATHER_X], (rows, fan_in, 0, x, ldx, buffer, ldi))
            x, ldx = buffer, ldi
        out = given(record, OUT) + item * first * record[LD_OUT]
        forward_rows(record, outputs, x, ldx, rows, 0, panel, out, record[LD_OUT], 0, 0)
