"""The walk: compiled code that goes through the instructions of a program, forward and back.

`forward`, `train_steps`, `train_steps_in_groups` and the two halves of a shared step, `gradients` and
`apply_gradients`, take one argument, the address of a record (an ``int64`` array whose fields are named below), and the
number of the calling thread. They are the same machine code for every architecture, dtype, loss and optimizer: the
record and the instructions hold the addresses of the kernels to call.

A phase is a parallel region with a barrier after it. In one of rows a thread takes rows of the batch, a block at a
time, through all its instructions; in one of columns it takes blocks of columns; in that of weights it takes blocks of
weights through gradient and update, the gradient in a small scratch block that never leaves the cache. A batch of many
rows of a narrow network goes through its phases in groups, so that what a row leaves is in a cache when the gradients
of weights read it: these grow from group to group, each element in one chain, and the last updates. Of a shared step
the gradients are stored, packed, and the blocks are updated in a call of its own. Every sum runs in an order given by
the shapes, so the number of threads changes no bit.
"""

import numpy as np

from .. import layout, program
from ..jit import inline
from . import blocking, factors, formats
from .elementwise import CHAINS as CHAIN_COUNT
from .elementwise import splitmix64
from .linear import is_narrow, linear_backward_input, linear_backward_params, linear_forward
from .operands import Group, Matrix, Operand, Products, Rows
from .simd import CONTROL, as_floats, atomic_add, atomic_load, call, exchange_control, pointer, prefetch

# Fields of the record. Addresses are in bytes, leading dimensions in elements. Of an array that the caller gives, a
# field holds where NumPy keeps its address (see `given`).
(
    THREADS, ITEMSIZE, LANES, INSTRUCTIONS, PHASES, PHASE_COUNT, FEATURES, CLASSES, LD_INPUT,
    # addresses of kernels
    GEMM, SIZES, TRANSPOSE, COPY, DROPOUT, COLUMN_SUM, OPERATE, LOSS, LOSS_PARAMETER, LOSS_SUM, OPTIMIZER,
    # rows of a batch: what a thread's are multiples of, and how many go through the network at once
    ROW_UNIT, ROW_BLOCK,
    # activations for ROW_BLOCK rows (OUTPUTS_BYTES from thread to thread when predicting), and what each thread has for
    # itself: a frame, operands of a call, packed operands of PACKED_BYTES, then converted rows or a block of gradient
    OUTPUTS_BYTES, SCRATCH, SCRATCH_BYTES, PACKED_BYTES,
    # where parts of factors are stored: the kernel that does it, or 0; that of weights where they are pairs, or 0;
    # `formats.WEIGHT` numbers of each weight; bytes from a high part of a weight to the low one, or 0; bytes from a
    # column of a factor of a gradient to the next
    STORE_FACTOR, STORE_PAIRS, WEIGHTS, WEIGHT_COUNT, LOW_PART, FACTOR_BYTES,
    # training only
    STATE_1, STATE_2, STATE_3, TARGET_IS_LABEL, LD_TARGET_BATCH, BARRIER, YIELD,
    # of a batch that goes through the network in groups of rows: the rows of a group for each thread, 0 where it goes
    # as a whole; a kernel, and where the chains of column sums lie until the last group
    GROUP_ROWS, GROUP_COLUMN_SUM, CHAINS,
    BLOCK_SQUARES, SQUARES,  # where squares are summed: a kernel, and a float64 for every block of the phase of weights
    # what changes from call to call: the rows given, and where a prediction goes
    GATHER_X, X, LDX, X_ITEMSIZE, COUNT, OUT,
    # of training
    COEFFICIENTS, KEYS, GATHER_TARGET, TARGET, LDT, ROW_WEIGHT, ROWS, BATCH, STEP_LOSS, STEP_HITS, STEPS_DONE,
    VECTORS,  # bytes from the coefficients of matrices to those of vectors
    NUMBERS,  # bytes from the rows to the numbers that dropout knows them by
    STEP_SQUARES,
    # of a shared step: what row weights are multiplied by, the phases that a call goes through, the instructions that
    # update statistics, and of each parameter that trains where its gradient and its values begin, in bytes, its rows,
    # its columns and its leading dimension, 0 of a vector
    SCALE, FIRST_PHASE, END_PHASE, FIRST_STATISTIC, END_STATISTIC, PARAMETERS_AT, PARAMETER_COUNT,
    # the addresses of the buffers of program.BUFFERS and of stored weights, then 0, where an operand lies that is not
    # there
    BASES,
) = range(72)  # fmt: skip
BUFFERS = len(program.BUFFERS) + 2
FIELDS = BASES + BUFFERS  # the number of fields

# Columns of an instruction as the walk reads it, and of an operand in it.
(OPERATION, KERNEL, PARAMETER, NUMBER, OPERANDS) = range(5)
(BUFFER, OFFSET, LD, COLUMNS, STRIDE, OPERAND) = range(6)  # OFFSET and, from row to row, STRIDE in bytes
WIDTH = OPERANDS + program.SLOTS * OPERAND
PHASE = 3  # columns of a phase
# The operations that the walk knows; all others have their operands alone.
KNOWN = (
    "linear_forward", "linear_backward_input", "linear_backward_params", "activation_forward", "activation_backward",
    "dropout", "loss_forward_backward", factors.STORE,
)  # fmt: skip
(
    LINEAR_FORWARD, LINEAR_BACKWARD_INPUT, LINEAR_BACKWARD_PARAMS, ACTIVATION_FORWARD, ACTIVATION_BACKWARD, DROPOUT_OF,
    LOSS_OF, STORE_OF,
) = map(factors.OPERATIONS.index, KNOWN)  # fmt: skip
INPUT, OUTPUT, ACTIVATIONS, REDUCTIONS = program.INPUT, program.OUTPUT, program.ACTIVATIONS, program.REDUCTIONS
WEIGHT_FACTORS = factors.WEIGHT_FACTORS
WEIGHT = formats.WEIGHT  # columns of WEIGHTS
PARAMETER_AT = 5  # columns of PARAMETERS_AT
STORED_ROWS = 64  # of a weight that a thread takes at once

FRAME_BYTES, OPERAND_BYTES = 8 * BUFFERS, 16 * program.SLOTS
HEAD_BYTES = (FRAME_BYTES + OPERAND_BYTES + layout.ALIGNMENT - 1) // layout.ALIGNMENT * layout.ALIGNMENT
COLUMN_BLOCK = 64  # columns that a thread takes at once where the batch is reduced
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
def share(count, thread, threads, unit):
    """The rows ``[first, last)`` of this thread, in multiples of the record's unit."""
    first = count * thread // threads // unit * unit
    last = count * (thread + 1) // threads // unit * unit
    if thread == threads - 1:
        last = count
    return first, last


@inline
def frame_of(record, thread):
    """This thread's frame: the addresses of all buffers, of which some may be its own."""
    frame = pointer(record[SCRATCH] + thread * record[SCRATCH_BYTES], np.int64)
    for buffer in range(BUFFERS):
        frame[buffer] = record[BASES + buffer]
    return frame


@inline
def panel_of(record, thread):
    """The address of this thread's panel."""
    return record[SCRATCH] + thread * record[SCRATCH_BYTES] + HEAD_BYTES


@inline
def at(frame, operand, row):
    """The address of an operand at a row of the batch; 0 where there is none."""
    return frame[operand[BUFFER]] + operand[OFFSET] + row * operand[STRIDE]


@inline
def operand_of(frame, instruction, slot, row):
    """The operand in a slot, from a row of the batch on."""
    operand = instruction + OPERANDS + slot * OPERAND
    return Operand(at(frame, operand, row), operand[LD], operand[COLUMNS])


@inline
def products_of(record, transpose):
    """The kernels of linear layers; the transpose where it is wanted."""
    return Products(record[GEMM], transpose, record[COLUMN_SUM], record[ITEMSIZE], record[SIZES])


@inline
def copy(record, rows, x, out):
    """Copy rows by the kernel of the identity."""
    call(record[COPY], (rows, x.columns, x.data, x.ld, out.data, out.ld, 0.0))


@inline
def drop(record, instruction, rows, x, out, index, key):
    """Dropout of rows whose numbers are at ``index``."""
    probability = as_floats(instruction)[PARAMETER]
    # p * 2**64 in two halves: a float64 converts to int64 only below 2**63.
    scaled = probability * 4294967296.0
    high = np.int64(scaled)
    threshold = high * 4294967296 + np.int64((scaled - high) * 4294967296.0)
    layer = np.int64(splitmix64(np.uint64(key) + np.uint64(instruction[NUMBER])))
    x_and_out = x.data, x.ld, out.data, out.ld
    call(record[DROPOUT], (rows, x.columns, x_and_out, index, layer, threshold, 1.0 / (1.0 - probability)))


def operate(record, frame, instruction, row, rows, column, columns, gradient):
    """An operation by its operands alone, from a row and a column on.

    Gradients of parameters go to ``gradient``, one after another, where that is not 0. A kernel that the walk calls:
    few networks have such operations.
    """
    operands = frame + BUFFERS
    item = record[ITEMSIZE]
    for slot in range(program.SLOTS):
        operand = instruction + OPERANDS + slot * OPERAND
        address = at(frame, operand, row)
        if operand[COLUMNS]:
            address += item * column
        if gradient and operand[BUFFER] == program.PARAMETER_GRADIENTS:
            address = gradient
            gradient += item * columns
        operands[2 * slot], operands[2 * slot + 1] = address, operand[LD]
    call(instruction[KERNEL], (rows, columns, as_floats(instruction)[PARAMETER], operands, 0))


@inline
def rows_phase(record, frame, begin, end, first, rows, panel, index, key):
    """Instructions ``[begin, end)`` on ``rows`` rows from ``first`` on, whose numbers are at ``index``."""
    for i in range(begin, end):
        instruction = pointer(record[INSTRUCTIONS], np.int64) + i * WIDTH
        operation, kernel, parameter = instruction[OPERATION], instruction[KERNEL], as_floats(instruction)[PARAMETER]
        one = operand_of(frame, instruction, 0, first)
        if operation == LINEAR_FORWARD:
            weight, bias = operand_of(frame, instruction, 1, first), operand_of(frame, instruction, 2, first)
            out, saved = operand_of(frame, instruction, 3, first), operand_of(frame, instruction, 4, first)
            x_low, weight_low = operand_of(frame, instruction, 5, first), operand_of(frame, instruction, 6, first)
            linear_forward(
                products_of(record, 0), kernel, parameter, rows, one, weight, bias, out, saved, panel, x_low.data,
                weight_low.data,
            )  # fmt: skip
        elif operation == LINEAR_BACKWARD_INPUT:
            weight, saved = operand_of(frame, instruction, 1, first), operand_of(frame, instruction, 2, first)
            out, scratch = operand_of(frame, instruction, 3, first), panel + record[PACKED_BYTES]
            products = products_of(record, record[TRANSPOSE])
            grad_low, weight_low = operand_of(frame, instruction, 4, first), operand_of(frame, instruction, 5, first)
            linear_backward_input(
                products, kernel, parameter, rows, one, weight, saved, out, panel, scratch, grad_low.data,
                weight_low.data,
            )  # fmt: skip
        elif operation == ACTIVATION_FORWARD:
            out = operand_of(frame, instruction, 1, first)
            if kernel:
                call(kernel, (rows, one.columns, one.data, one.ld, out.data, out.ld, parameter))
            else:
                copy(record, rows, one, out)
        elif operation == ACTIVATION_BACKWARD:
            saved, out = operand_of(frame, instruction, 1, first), operand_of(frame, instruction, 2, first)
            if one.data != out.data:
                copy(record, rows, one, out)
            if kernel:
                call(kernel, (rows, one.columns, out.data, out.ld, saved.data, saved.ld, parameter))
        elif operation == STORE_OF:
            high, low = operand_of(frame, instruction, 1, first), operand_of(frame, instruction, 2, first)
            call(kernel, (rows, one.columns, one.data, one.ld, high.data, low.data, high.ld))
        elif operation == DROPOUT_OF:
            drop(record, instruction, rows, one, operand_of(frame, instruction, 2, first), index, key)
        elif operation == LOSS_OF:
            target, weight = operand_of(frame, instruction, 1, first), operand_of(frame, instruction, 2, first)
            loss, hit = operand_of(frame, instruction, 3, first), operand_of(frame, instruction, 4, first)
            grad, scratch = operand_of(frame, instruction, 5, first), panel + record[PACKED_BYTES]
            call(
                record[LOSS],
                (
                    rows, one.columns, as_floats(record)[LOSS_PARAMETER], Matrix(one.data, one.ld),
                    Matrix(target.data, target.ld), Rows(weight.data, loss.data, hit.data), scratch,
                    Matrix(grad.data, grad.ld),
                ),
            )  # fmt: skip
        else:
            call(record[OPERATE], (record, frame, instruction, first, rows, 0, one.columns, 0))


@inline
def pass_rows(record, frame, phase, begin, stop, start, gathers, scale, panel, key):
    """Rows ``[begin, stop)`` of the batch, or group, that begins at ``start`` through a phase, a block at a time."""
    for first in range(begin, stop, record[ROW_BLOCK]):
        rows = min(record[ROW_BLOCK], stop - first)
        if gathers:
            gather(record, frame, start, first, rows, scale)
        index = given(record, ROWS) + record[NUMBERS] + 8 * (start + first)
        rows_phase(record, frame, phase[1], phase[2], first, rows, panel, index, key)


@inline
def columns_phase(record, frame, begin, end, rows, thread, threads):
    """Instructions ``[begin, end)`` on all rows, this thread's blocks of columns."""
    task = 0
    for i in range(begin, end):
        instruction = pointer(record[INSTRUCTIONS], np.int64) + i * WIDTH
        features = instruction[OPERANDS + COLUMNS]
        for column in range(0, features, COLUMN_BLOCK):
            if task % threads == thread:
                columns = min(COLUMN_BLOCK, features - column)
                call(record[OPERATE], (record, frame, instruction, 0, rows, column, columns, 0))
            task += 1


@inline
def gather(record, frame, start, first, rows, scale):
    """Rows ``first ...`` of the batch, or group, that begins at ``start``: inputs, targets and their weights."""
    index_address = given(record, ROWS) + 8 * (start + first)
    index = pointer(index_address, np.int64)
    ldx = record[LD_INPUT]
    x = record[BASES + INPUT] + record[ITEMSIZE] * first * ldx
    call(record[GATHER_X], (rows, record[FEATURES], index_address, given(record, X), record[LDX], x, ldx))
    if record[TARGET_IS_LABEL]:
        labels, batch = pointer(given(record, TARGET), np.int64), pointer(record[BASES + program.TARGET], np.int64)
        for i in range(rows):
            if i + blocking.VECTORS_AHEAD < rows:
                prefetch(labels + index[i + blocking.VECTORS_AHEAD])
            batch[first + i] = labels[index[i]]
    else:
        ldt = record[LD_TARGET_BATCH]
        y = record[BASES + program.TARGET] + record[ITEMSIZE] * first * ldt
        call(record[GATHER_TARGET], (rows, record[CLASSES], index_address, given(record, TARGET), record[LDT], y, ldt))
    weight = pointer(frame[program.ROW_WEIGHT], np.float64) + first
    if record[ROW_WEIGHT]:
        row_weight = pointer(given(record, ROW_WEIGHT), np.float64)
        for i in range(rows):
            weight[i] = row_weight[index[i]] * scale
    else:
        for i in range(rows):
            weight[i] = scale


@inline
def weight_scale(record, start, n):
    """1 / the sum of the batch's row weights; 0 below `layout.LEAST_WEIGHT`: the batch counts for nothing."""
    if record[ROW_WEIGHT] == 0:
        return 1.0 / n
    index = pointer(given(record, ROWS) + 8 * start, np.int64)
    row_weight = pointer(given(record, ROW_WEIGHT), np.float64)
    total = 0.0
    for i in range(n):
        total += row_weight[index[i]]
    if total < layout.LEAST_WEIGHT:
        return 0.0
    return 1.0 / total


@inline
def round_up(n, unit):
    """The least multiple of ``unit`` that is not below ``n``."""
    return (n + unit - 1) // unit * unit


@inline
def update(record, coefficients, at_parameter, rows, columns, ld, gradient, ld_gradient):
    """The optimizer on a block of a parameter, ``at_parameter`` bytes into the buffer of each state."""
    call(
        record[OPTIMIZER],
        (
            rows, columns, coefficients, record[BASES + program.PARAMETERS] + at_parameter, ld, gradient, ld_gradient,
            record[STATE_1] + at_parameter, record[STATE_2] + at_parameter, record[STATE_3] + at_parameter,
        ),
    )  # fmt: skip


@inline
def store_weight(record, at_parameter, rows, columns, ld):
    """Store the parts of a block of a weight, ``at_parameter`` bytes into the buffer."""
    weight = record[BASES + program.PARAMETERS] + at_parameter
    if record[STORE_PAIRS]:
        place = at_parameter, record[WEIGHTS], record[WEIGHT_COUNT], record[BASES + WEIGHT_FACTORS], record[LOW_PART]
        call(record[STORE_PAIRS], (rows, columns, weight, ld, place))
        return
    high, low = record[BASES + WEIGHT_FACTORS] + at_parameter, 0
    if record[LOW_PART]:
        low = high + record[LOW_PART]
    call(record[STORE_FACTOR], (rows, columns, weight, ld, high, low, ld))


@inline
def store_weights(record, thread):
    """Store this thread's blocks of all weights."""
    task = 0
    for i in range(record[WEIGHT_COUNT]):
        weight = pointer(record[WEIGHTS], np.int64) + i * WEIGHT
        offset, rows, columns, ld = weight[0], weight[1], weight[2], weight[3]
        for row in range(0, rows, STORED_ROWS):
            if task % record[THREADS] == thread:
                at_parameter = offset + record[ITEMSIZE] * row * ld
                store_weight(record, at_parameter, min(STORED_ROWS, rows - row), columns, ld)
            task += 1


@inline
def update_vector(record, coefficients, at_parameter, columns, gradient):
    """The optimizer on a part of a vector."""
    update(record, coefficients + record[VECTORS], at_parameter, 1, columns, 0, gradient, 0)


@inline
def from_column(frame, instruction, slot, skipped, columns):
    """All rows of the operand in a slot, ``skipped`` bytes further in each; ``data`` stays 0 where there is none."""
    whole = operand_of(frame, instruction, slot, 0)
    if whole.data == 0:
        skipped = 0
    return Operand(whole.data + skipped, whole.ld, columns)


@inline
def block_sizes(record, n, fan_in, fan_out, ld):
    """Rows and columns of the blocks of a weight, and the leading dimension of their gradients."""
    if record[STORE_PAIRS]:  # whole chunks and panels of its parts
        width, chunk = min(fan_out, blocking.PAIRS_COLUMNS), formats.CHUNK
        ld_scratch = round_up(width, record[LANES]) + record[LANES]
        most = blocking.GRADIENT_SCRATCH // (chunk * ld_scratch) * chunk
        return min(round_up((fan_in + 15) // 16, chunk), most), width, ld_scratch
    width = min(fan_out, blocking.GRADIENT_COLUMNS)
    fitting = blocking.GRADIENT_SLICE_BYTES // (record[ITEMSIZE] * n) // blocking.GRADIENT_UNIT * blocking.GRADIENT_UNIT
    width = min(width, max(fitting, blocking.GRADIENT_UNIT))
    ld_scratch = width
    if ld != fan_out or width != fan_out:
        ld_scratch = round_up(width, record[LANES]) + record[LANES]
    most = max(blocking.GRADIENT_MOST // ld_scratch // blocking.MR, 1) * blocking.MR
    height = max(round_up((fan_in + 15) // 16, blocking.MR), blocking.GRADIENT_LEAST // width)
    return min(height, most), width, ld_scratch


@inline
def block_gradient(record, frame, instruction, n, i, j, rows, columns, transpose, beta, gradient, sums, panel):
    """The gradient of a block of a weight, from row ``i`` and column ``j`` on, and of its biases where wanted."""
    left, right = record[FACTOR_BYTES] * i, record[FACTOR_BYTES] * j
    x, grad_z = from_column(frame, instruction, 0, left, rows), from_column(frame, instruction, 1, right, columns)
    x_low, grad_low, summed = 0, 0, Matrix(grad_z.data, grad_z.ld)
    if record[STORE_FACTOR]:
        x_low = from_column(frame, instruction, 4, left, rows).data
        grad_low = from_column(frame, instruction, 5, right, columns).data
        exact = from_column(frame, instruction, 6, record[ITEMSIZE] * j, columns)  # not rounded
        summed = Matrix(exact.data, exact.ld)
    linear_backward_params(
        products_of(record, transpose), n, x, grad_z, beta, gradient, sums, panel, x_low, grad_low, summed
    )  # fmt: skip


@inline
def update_block(record, coefficients, at_weight, rows, columns, ld, gradient, task):
    """The optimizer on a block of a weight, its squares before that and its parts after it where they are wanted."""
    if record[STEP_SQUARES]:
        values = record[BASES + program.PARAMETERS] + at_weight
        call(record[BLOCK_SQUARES], (rows, columns, values, ld, record[SQUARES] + 8 * task))
    update(record, coefficients, at_weight, rows, columns, ld, gradient.data, gradient.ld)
    if record[STORE_FACTOR]:
        store_weight(record, at_weight, rows, columns, ld)


@inline
def add_columns(record, frame, instruction, n, j, columns, group, sums):
    """Sums of columns of a linear layer, from column ``j`` on, over the rows of a group; the last writes ``sums``."""
    z, bias = from_column(frame, instruction, 1, record[ITEMSIZE] * j, columns), instruction + OPERANDS + 3 * OPERAND
    ld = round_up(instruction[OPERANDS + OPERAND + COLUMNS], record[LANES])
    chains = record[CHAINS] + CHAIN_COUNT * bias[OFFSET] + record[ITEMSIZE] * j, ld
    call(record[GROUP_COLUMN_SUM], (n, columns, z.data, z.ld, group.begins, group.ends, chains, sums))


@inline
def linear_weights(record, frame, instruction, n, task, thread, panel, coefficients, group):
    """This thread's blocks of a linear layer, the biases with the first; returns the number of the next block.

    Without ``coefficients`` nothing is updated: gradients go where the instruction says. They grow there with each
    ``group`` of rows of a batch, unless that is None and the batch a whole.
    """
    item, scratch = record[ITEMSIZE], panel + record[PACKED_BYTES]
    weight, bias = instruction + OPERANDS + 2 * OPERAND, instruction + OPERANDS + 3 * OPERAND
    fan_in, fan_out, ld = instruction[OPERANDS + COLUMNS], instruction[OPERANDS + OPERAND + COLUMNS], weight[LD]
    height, width, ld_scratch = block_sizes(record, n, fan_in, fan_out, ld)
    gradient = Matrix(scratch + item * blocking.GRADIENT_COLUMNS, ld_scratch)  # that of the bias comes before it
    beta, ends = 0, True
    if group is not None:
        beta, ends = 1 - group.begins, group.ends
    for j in range(0, fan_out, width):
        for i in range(0, fan_in, height):
            if task % record[THREADS] == thread:
                rows, columns, sums, transpose = min(height, fan_in - i), min(width, fan_out - j), 0, 0
                at_weight = weight[OFFSET] + item * (i * ld + j)
                if i == 0 and bias[COLUMNS]:
                    sums = scratch
                if coefficients is None or group is not None:
                    gradient = Matrix(frame[program.PARAMETER_GRADIENTS] + at_weight, ld)
                added = sums
                if group is not None:
                    added = 0
                    if sums:
                        add_columns(record, frame, instruction, n, j, columns, group, sums)
                else:
                    if coefficients is None and sums:
                        added = at(frame, bias, 0) + item * j
                if is_narrow(rows, fan_out, record[LANES], item):
                    transpose = record[TRANSPOSE]
                block_gradient(
                    record, frame, instruction, n, i, j, rows, columns, transpose, beta, gradient, added, panel
                )  # fmt: skip
                if coefficients is not None and ends:
                    update_block(record, coefficients, at_weight, rows, columns, ld, gradient, task)
                    if sums:
                        update_vector(record, coefficients, bias[OFFSET] + item * j, columns, sums)
            task += 1
    return task


@inline
def weights_phase(record, frame, begin, end, n, thread, panel, coefficients, group):
    """This thread's blocks of parameters, gradient and update, and of running statistics; how many all have.

    Without ``coefficients`` nothing is updated: gradients go where the instructions say. ``group`` is as of
    `linear_weights`; linear layers are all there is where it is not None.
    """
    item, task = record[ITEMSIZE], 0
    scratch = panel + record[PACKED_BYTES]
    for i in range(begin, end):
        instruction = pointer(record[INSTRUCTIONS], np.int64) + i * WIDTH
        if instruction[OPERATION] == LINEAR_BACKWARD_PARAMS:
            task = linear_weights(record, frame, instruction, n, task, thread, panel, coefficients, group)
            continue
        features = instruction[OPERANDS + COLUMNS]
        for column in range(0, features, COLUMN_BLOCK):
            if task % record[THREADS] == thread:
                columns = min(COLUMN_BLOCK, features - column)
                gradient = 0 if coefficients is None else scratch
                call(record[OPERATE], (record, frame, instruction, 0, n, column, columns, gradient))
                if coefficients is not None:
                    for slot in range(program.SLOTS):
                        operand = instruction + OPERANDS + slot * OPERAND
                        if operand[BUFFER] == program.PARAMETER_GRADIENTS:
                            update_vector(record, coefficients, operand[OFFSET] + item * column, columns, gradient)
                            gradient += item * columns
            task += 1
    return task


@inline
def sum_squares(record, step, blocks):
    """Add up the squares of all blocks, in their order, and clear them for the next step."""
    squares, total = pointer(record[SQUARES], np.float64), 0.0
    for block in range(blocks):
        total += squares[block]
        squares[block] = 0.0
    pointer(given(record, STEP_SQUARES), np.float64)[step] = total


@inline
def finite_loss(record, step, n, thread, scratch):
    """Whether the loss of the batch is a number; the first thread writes it."""
    loss, row_hit = pointer(scratch, np.float64), pointer(record[BASES + program.ROW_HIT], np.int64)
    call(record[LOSS_SUM], (n, record[BASES + program.ROW_WEIGHT], record[BASES + program.ROW_LOSS], scratch))
    finite = loss[0] * 0.0 == 0.0
    if thread == 0:
        pointer(given(record, STEP_LOSS), np.float64)[step] = loss[0]
        total = 0
        for i in range(n):
            total += row_hit[i]
        pointer(given(record, STEP_HITS), np.int64)[step] = total
        if finite:
            record[STEPS_DONE] = step + 1
    return finite


def train_steps(record, thread):
    """`reference.network_train_steps` for one thread; leaves the number of steps done in the record."""
    control = exchange_control(CONTROL)
    frame, panel = frame_of(record, thread), panel_of(record, thread)
    phases = pointer(record[PHASES], np.int64)
    count, batch = record[COUNT], record[BATCH]
    steps = (count + batch - 1) // batch
    passed, blocks, finite = 0, 0, True
    if record[STORE_FACTOR]:
        store_weights(record, thread)
        passed += 1
        barrier(record, passed)
    for step in range(steps):
        start = step * batch
        n = min(batch, count - start)
        begin, stop = share(n, thread, record[THREADS], record[ROW_UNIT])
        key, scale = pointer(given(record, KEYS), np.int64)[step], weight_scale(record, start, n)
        for p in range(record[PHASE_COUNT]):
            phase = phases + p * PHASE
            if phase[0] == program.ROWS_PHASE:
                pass_rows(record, frame, phase, begin, stop, start, p == 0, scale, panel, key)
            elif phase[0] == program.COLUMNS_PHASE:
                columns_phase(record, frame, phase[1], phase[2], n, thread, record[THREADS])
            else:
                finite = finite_loss(record, step, n, thread, panel + record[PACKED_BYTES])
                if not finite:
                    break
                coefficients = given(record, COEFFICIENTS) + 8 * layout.COEFFICIENTS * step
                blocks = weights_phase(record, frame, phase[1], phase[2], n, thread, panel, coefficients, None)
            passed += 1
            barrier(record, passed)
        if not finite:
            break
        if thread == 0 and record[STEP_SQUARES]:
            sum_squares(record, step, blocks)
    exchange_control(control)


def train_steps_in_groups(record, thread):
    """`train_steps` where a batch goes through its two phases, of rows and of weights, in groups of GROUP_ROWS."""
    control = exchange_control(CONTROL)
    frame, panel = frame_of(record, thread), panel_of(record, thread)
    of_rows, item = pointer(record[PHASES], np.int64), record[ITEMSIZE]
    of_weights = of_rows + PHASE
    count, batch, most = record[COUNT], record[BATCH], record[GROUP_ROWS] * record[THREADS]
    steps = (count + batch - 1) // batch
    passed, blocks, finite = 0, 0, True
    for step in range(steps):
        start = step * batch
        n = min(batch, count - start)
        key, scale = pointer(given(record, KEYS), np.int64)[step], weight_scale(record, start, n)
        coefficients = given(record, COEFFICIENTS) + 8 * layout.COEFFICIENTS * step
        for done in range(0, n, most):
            rows = min(most, n - done)
            group = Group(int(done == 0), int(done + rows == n))
            begin, stop = share(rows, thread, record[THREADS], record[ROW_UNIT])
            frame[program.ROW_WEIGHT] = record[BASES + program.ROW_WEIGHT] + 8 * done  # all rows have these, of which
            frame[program.ROW_LOSS] = record[BASES + program.ROW_LOSS] + item * done  # the loss is made at the end
            frame[program.ROW_HIT] = record[BASES + program.ROW_HIT] + 8 * done
            pass_rows(record, frame, of_rows, begin, stop, start + done, True, scale, panel, key)
            passed += 1
            barrier(record, passed)
            if group.ends:
                finite = finite_loss(record, step, n, thread, panel + record[PACKED_BYTES])
                if not finite:
                    break
            blocks = weights_phase(
                record, frame, of_weights[1], of_weights[2], rows, thread, panel, coefficients, group
            )  # fmt: skip
            passed += 1
            barrier(record, passed)
        if not finite:
            break
        if thread == 0 and record[STEP_SQUARES]:
            sum_squares(record, step, blocks)
    exchange_control(control)


def gradients(record, thread):
    """The phases of a shared step that the record names, for one thread; the last stores the gradients, packed."""
    control = exchange_control(CONTROL)
    frame, panel = frame_of(record, thread), panel_of(record, thread)
    phases, n = pointer(record[PHASES], np.int64), record[COUNT]
    begin, stop = share(n, thread, record[THREADS], record[ROW_UNIT])
    key, scale = pointer(given(record, KEYS), np.int64)[0], as_floats(record)[SCALE]
    passed = 0
    if record[STORE_FACTOR] and record[FIRST_PHASE] == 0:
        store_weights(record, thread)
        passed += 1
        barrier(record, passed)
    for p in range(record[FIRST_PHASE], record[END_PHASE]):
        phase = phases + p * PHASE
        if phase[0] == program.ROWS_PHASE:
            pass_rows(record, frame, phase, begin, stop, 0, p == 0, scale, panel, key)
        elif phase[0] == program.COLUMNS_PHASE:
            columns_phase(record, frame, phase[1], phase[2], n, thread, record[THREADS])
        elif finite_loss(record, 0, n, thread, panel + record[PACKED_BYTES]):
            weights_phase(record, frame, phase[1], record[FIRST_STATISTIC], n, thread, panel, None, None)
        passed += 1
        barrier(record, passed)
    exchange_control(control)


def apply_gradients(record, thread):
    """What is left of a shared step, for one thread: statistics learn, and parameters are updated in blocks."""
    control = exchange_control(CONTROL)
    frame, item, task = frame_of(record, thread), record[ITEMSIZE], 0
    columns_phase(
        record, frame, record[FIRST_STATISTIC], record[END_STATISTIC], record[COUNT], thread, record[THREADS]
    )  # fmt: skip
    for i in range(record[PARAMETER_COUNT]):
        place = pointer(record[PARAMETERS_AT], np.int64) + i * PARAMETER_AT
        gradient, values, rows, columns, ld = place[0], place[1], place[2], place[3], place[4]
        coefficients = given(record, COEFFICIENTS)
        if ld == 0:
            coefficients += record[VECTORS]
        height = max(blocking.GRADIENT_LEAST // columns, 1)
        for row in range(0, rows, height):
            if task % record[THREADS] == thread:
                update(
                    record, coefficients, values + item * row * ld, min(height, rows - row), columns, ld,
                    frame[program.PARAMETER_GRADIENTS] + gradient + item * row * columns, columns,
                )  # fmt: skip
            task += 1
    exchange_control(control)


def forward(record, thread):
    """`reference.network_forward` for one thread: blocks of rows through activations of its own."""
    control = exchange_control(CONTROL)
    frame, panel = frame_of(record, thread), panel_of(record, thread)
    phases = pointer(record[PHASES], np.int64)
    fan_in, item = record[FEATURES], record[ITEMSIZE]
    frame[ACTIVATIONS] += thread * record[OUTPUTS_BYTES]
    frame[REDUCTIONS] += thread * record[OUTPUTS_BYTES]
    begin, stop = share(record[COUNT], thread, record[THREADS], record[ROW_UNIT])
    if record[STORE_FACTOR]:
        store_weights(record, thread)
        barrier(record, 1)
    for p in range(record[PHASE_COUNT]):
        phase = phases + p * PHASE
        if phase[0] == program.COLUMNS_PHASE:
            columns_phase(record, frame, phase[1], phase[2], 1, 0, 1)
    for first in range(begin, stop, record[ROW_BLOCK]):
        rows = min(record[ROW_BLOCK], stop - first)
        x = given(record, X) + record[X_ITEMSIZE] * first * fan_in
        if record[GATHER_X]:
            converted = panel + record[PACKED_BYTES]
            call(record[GATHER_X], (rows, fan_in, 0, x, fan_in, converted, fan_in))
            x = converted
        frame[INPUT] = x
        frame[OUTPUT] = given(record, OUT) + item * first * record[CLASSES]
        for p in range(record[PHASE_COUNT]):
            phase = phases + p * PHASE
            if phase[0] == program.ROWS_PHASE:
                rows_phase(record, frame, phase[1], phase[2], 0, rows, panel, 0, 0)
    exchange_control(control)
