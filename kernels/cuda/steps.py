"""Many training steps of a small network in one launch: a cooperative kernel that walks the program on the device.

It makes programs of one phase of rows and one of weights; the whole grid waits after each. In the phase of rows a
block takes some rows of the batch through gather, forward, loss and backward: rows do not meet, so only the threads of
a block wait for one another. In the phase of weights a thread makes the gradients of some parameters, each a sum over
the batch in the order of its rows, and updates them at once. Every block sums the loss of the step in the same way, so
all of them know whether to go on. An element's bits do not depend on the number of blocks.

The kernel is compiled for a dtype, a loss, an optimizer and the activations of the network; the network itself is data.
It does what `network.TrainingWorkspace.step` does, in another order of summation, where launches would cost more than
their work.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .. import layout, program
from . import compiling
from .compiling import device_function, kernel, made_once, vector
from .driver import cuda
from .elementwise import splitmix64, weight_scale
from .formulas import formulas
from .launch import THREADS, lanes_of_row, multiprocessors, sum_over_lanes
from .losses import loss_of_row, rows_type
from .operands import FLOAT, FLOATS, INT, INTS, Lanes, Matrix, Row, Rows, matrix, row_of, type_of
from .operands import at as element
from .optimizers import states_of, states_type, update_of_element
from .record import BATCH, COEFFICIENTS, KEYS, NEXT, NUMBERS, ROWS, STEP_HITS, STEP_LOSS, STOPPED

# Where a launch costs more than its work: a product this small keeps fewer threads busy than a GPU has.
MOST_WIDTH, MOST_PARAMETERS, MOST_ROWS = 256, 1 << 16, 1024
MOST_STEPS = 4096  # a launch, so that no launch takes seconds
# The operations that the kernel has; a network with others is launched an instruction at a time.
OPERATIONS = (
    "linear_forward",
    "activation_forward",
    "dropout",
    "add",
    "loss_forward_backward",
    "activation_backward",
    "linear_backward_input",
    "linear_backward_params",
)
LINEAR_FORWARD, ACTIVATION_FORWARD, DROPOUT, ADD, LOSS, ACTIVATION_BACKWARD, LINEAR_BACKWARD_INPUT, _ = map(
    program.OPERATIONS.index, OPERATIONS
)
OPERAND, HEAD, INPUT = program.OPERAND, program.HEAD, program.INPUT
TWO_32 = 4294967296.0


class Task(NamedTuple):
    """How many rows a batch has, of how many numbers; the steps to make; threads a row of the loss; its parameter."""

    rows: int
    fan_in: int
    steps: int
    lanes: int
    loss_parameter: float


class Notes(NamedTuple):
    """The record of a run (record.py): its integers and its floats."""

    integers: object
    floats: object


class Listing(NamedTuple):
    """The instructions, as integers and as floats, and which are the loss, the first of the weights, the end."""

    instructions: object
    numbers: object
    loss: int
    weights: int
    end: int


class Data(NamedTuple):
    """The rows of a run, their targets and their weights; ``weighted`` is 0 where they all weigh the same."""

    x: Matrix
    target: Matrix
    row_weight: object
    weighted: int


class Batch(NamedTuple):
    """What the loss has of a batch: its targets, and of every row what `Rows` has."""

    targets: Matrix
    rows: Rows


class Memory(NamedTuple):
    """The parameters, and what a batch has: ``capacity`` rows of values and gradients, and the gathered input."""

    parameters: object
    values: object
    gradients: object
    capacity: int
    input: Matrix  # in ``values``


class Part(NamedTuple):
    """The rows of the batch that a block takes, and what dropout needs: the numbers of rows, and a key."""

    first: int
    rows: int
    record: object
    numbers: int  # of the batch's first row, in the record
    key: int


# ------------------------------------------------------------------------------------- device functions
def by_code(functions):
    """A device function ``(code, x, parameter)``: the one of ``functions``, a list of pairs, that has the code."""
    (code, function), *others = functions
    of_others = by_code(others) if others else None
    if of_others is None:

        @device_function
        def only(wanted, x, parameter):
            return function(x, parameter)

        return only

    @device_function
    def chosen(wanted, x, parameter):
        if wanted == code:
            return function(x, parameter)
        return of_others(wanted, x, parameter)

    return chosen


@cache
def unit_dropped(dtype):
    """A device function: what dropout makes of a unit, for the key of a layer in a step and the number of the row."""
    number, zero = dtype.type, dtype.type(0)

    @device_function
    def dropped(x, probability, of_layer, row, unit):
        # ``p * 2**64`` in two halves, as a float64 converts to int64 only below 2**63
        scaled = probability * TWO_32
        high = np.int64(scaled)
        least = (np.uint64(high) << np.uint64(32)) + np.uint64(np.int64((scaled - np.float64(high)) * TWO_32))
        kept = splitmix64(splitmix64(of_layer + np.uint64(row)) + np.uint64(unit)) >= least
        return x * number(np.float64(1) / (np.float64(1) - probability)) if kept else zero

    return dropped


@cache
def activation_by_code(names, dtype):
    """``act`` and ``act'`` as device functions ``(code, x, parameter)``, of the activations that a network has."""
    parts, codes = formulas(dtype), [layout.ACTIVATIONS.index(name) for name in names]
    value = by_code([(code, parts[name]) for code, name in zip(codes, names, strict=True)])
    derivative = by_code([(code, parts[f"{name}_derivative"]) for code, name in zip(codes, names, strict=True)])
    return value, derivative


@device_function
def operand(listing, memory, at, slot):
    """An operand in rows, of the instruction at ``at``: where it begins, its leading dimension, its columns."""
    place, instructions = at + HEAD + slot * OPERAND, listing.instructions
    begin = instructions[place + program.OFFSET] * memory.capacity
    if instructions[place + program.BUFFER] == INPUT:
        begin = memory.input.offset
    return begin, instructions[place + program.LD], instructions[place + program.COLUMNS]


@device_function
def parameter(listing, at, slot):
    """An operand in the parameters: where it begins, -1 if there is none, and its leading dimension."""
    place, instructions = at + HEAD + slot * OPERAND, listing.instructions
    if instructions[place + program.BUFFER] < 0:
        return np.int64(-1), np.int64(0)
    return instructions[place + program.OFFSET], instructions[place + program.LD]


@cache
def gathering(dtype):
    """A device function that brings rows of a batch together, converted to a dtype."""
    number = dtype.type

    @device_function
    def gather(source, columns, record, start, first, rows, out):
        """``out[i] = source[record[start + i]]`` for ``rows`` rows of the batch, from ``first`` on."""
        for e in range(cuda.threadIdx.x, rows * columns, cuda.blockDim.x):
            i = first + e // columns
            j = e % columns
            out.data[element(out, i, j)] = number(source.data[element(source, record[start + i], j)])

    return gather


@cache
def walking(dtype, activations):
    """Device functions that take the rows of a part forward, to the loss, and back from its gradient."""
    number, zero, fma, dropped = dtype.type, dtype.type(0), formulas(dtype)["fma"], unit_dropped(dtype)
    value, derivative = activation_by_code(activations, dtype)

    @device_function
    def unit_kept(x, probability, part, row, unit, layer):
        """What dropout makes of a unit."""
        of_layer = splitmix64(np.uint64(part.key) + np.uint64(layer))
        return dropped(x, probability, of_layer, part.record[part.numbers + row], unit)

    @device_function
    def forward(listing, memory, part):
        """Take the rows of a part through all instructions before the loss."""
        instructions, parameters, values = listing.instructions, memory.parameters, memory.values
        for r in range(listing.loss):
            at = r * program.WIDTH
            operation, code = instructions[at], instructions[at + program.ACTIVATION]
            exact = listing.numbers[at + program.PARAMETER]
            p = number(exact)
            x, ldx, fan_in = operand(listing, memory, at, 0)
            weight, ldw = parameter(listing, at, 1)
            bias, _ = parameter(listing, at, 2)
            slot = 1
            if operation == LINEAR_FORWARD:
                slot = 3
            elif operation != ACTIVATION_FORWARD:
                slot = 2
            out, ldo, columns = operand(listing, memory, at, slot)
            other, ld_other, _ = operand(listing, memory, at, 4 if operation == LINEAR_FORWARD else 1)
            for e in range(cuda.threadIdx.x, part.rows * columns, cuda.blockDim.x):
                i = part.first + e // columns
                j = e % columns
                if operation == LINEAR_FORWARD:
                    z = zero
                    if bias >= 0:
                        z = parameters[bias + j]
                    for k in range(fan_in):
                        z = fma(values[x + i * ldx + k], parameters[weight + k * ldw + j], z)
                    if other != out:
                        values[other + i * ld_other + j] = z
                    values[out + i * ldo + j] = value(code, z, p)
                elif operation == DROPOUT:
                    values[out + i * ldo + j] = unit_kept(
                        values[x + i * ldx + j], exact, part, i, j, instructions[at + program.NUMBER]
                    )
                elif operation == ADD:
                    values[out + i * ldo + j] = values[x + i * ldx + j] + values[other + i * ld_other + j]
                else:
                    values[out + i * ldo + j] = value(code, values[x + i * ldx + j], p)
            cuda.syncthreads()

    @device_function
    def backward(listing, memory, part):
        """Take them back, from the gradient of the prediction to all that the gradients of the parameters need."""
        instructions, parameters = listing.instructions, memory.parameters
        values, gradients = memory.values, memory.gradients
        for r in range(listing.loss + 1, listing.weights):
            at = r * program.WIDTH
            operation, code = instructions[at], instructions[at + program.ACTIVATION]
            exact = listing.numbers[at + program.PARAMETER]
            p = number(exact)
            grad, ldg, fan_out = operand(listing, memory, at, 0)
            weight, ldw = parameter(listing, at, 1)
            last = 3 if operation == LINEAR_BACKWARD_INPUT else 2
            other, ld_other, _ = operand(listing, memory, at, last - 1)
            out, ldo, columns = operand(listing, memory, at, last)
            for e in range(cuda.threadIdx.x, part.rows * columns, cuda.blockDim.x):
                i = part.first + e // columns
                j = e % columns
                if operation == LINEAR_BACKWARD_INPUT:
                    g = zero
                    for k in range(fan_out):
                        g = fma(gradients[grad + i * ldg + k], parameters[weight + j * ldw + k], g)
                    g *= derivative(code, values[other + i * ld_other + j], p)
                elif operation == ACTIVATION_BACKWARD:
                    g = gradients[grad + i * ldg + j] * derivative(code, values[other + i * ld_other + j], p)
                elif operation == DROPOUT:
                    g = unit_kept(gradients[grad + i * ldg + j], exact, part, i, j, instructions[at + program.NUMBER])
                else:
                    g = gradients[grad + i * ldg + j] + gradients[other + i * ld_other + j]
                gradients[out + i * ldo + j] = g
            cuda.syncthreads()

    return forward, backward


@cache
def losses_of_part(dtype, loss):
    """A device function: the losses and hits of the rows of a part, and the gradient of the prediction."""
    number, loss_of = dtype.type, loss_of_row(loss, dtype)

    @device_function
    def losses(task, listing, memory, part, of_batch, team):
        at, height = listing.loss * program.WIDTH, cuda.blockDim.x // team.count
        targets, batch, last = of_batch.targets, of_batch.rows, part.first + part.rows
        prediction, ldo, classes = operand(listing, memory, at, 0)
        grad, ldg, _ = operand(listing, memory, at, 5)
        for base in range(part.first, last, height):
            i = base + cuda.threadIdx.x // team.count
            inside = i < last
            weight = batch.weight[i] if inside else np.float64(0)
            predicted, to = Row(memory.values, prediction + i * ldo), Row(memory.gradients, grad + i * ldg)
            loss, hit = loss_of(
                team, inside, classes, number(task.loss_parameter), predicted, row_of(targets, i), weight, to
            )
            if inside and team.lane == 0:
                batch.loss[i] = loss
                batch.hit[i] = hit

    return losses


@cache
def updating(dtype, optimizer):
    """Device functions: the coefficients of a step, and the gradients of all parameters with their update."""
    zero, fma = dtype.type(0), formulas(dtype)["fma"]
    coefficients, update = update_of_element(optimizer, dtype)

    @device_function
    def update_all(listing, memory, n, c, states):
        """Make the gradients of this thread's parameters and update these: weights, then biases, of every layer."""
        values, gradients = memory.values, memory.gradients
        this = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        threads = np.int64(cuda.gridDim.x) * cuda.blockDim.x
        for r in range(listing.weights, listing.end):
            at = r * program.WIDTH
            x, ldx, fan_in = operand(listing, memory, at, 0)
            grad, ldg, fan_out = operand(listing, memory, at, 1)
            weight, ldw = parameter(listing, at, 2)
            bias, _ = parameter(listing, at, 3)
            count = fan_in * fan_out
            if bias >= 0:
                count += fan_out
            for e in range(this, count, threads):
                k, j, g = e // fan_out, e % fan_out, zero
                if k < fan_in:
                    for i in range(n):
                        g = fma(values[x + i * ldx + k], gradients[grad + i * ldg + j], g)
                    update(c, weight + k * ldw + j, g, memory.parameters, states)
                else:
                    for i in range(n):
                        g += gradients[grad + i * ldg + j]
                    update(c, bias + j, g, memory.parameters, states)

    return coefficients, update_all


@device_function
def weigh(n, record, start, part, data, weight, sums):
    """The weights of a part's rows in the loss of a batch of ``n``."""
    scale = 1 / np.float64(n)
    if data.weighted:
        scale = weight_scale(n, record, start, data.row_weight, sums)
    for i in range(part.first + cuda.threadIdx.x, part.first + part.rows, cuda.blockDim.x):
        weight[i] = data.row_weight[record[start + i]] * scale if data.weighted else scale


@device_function
def sum_losses(n, batch, sums, counts):
    """The loss of a batch and its hits, the same in every block."""
    loss_sum, hits = np.float64(0), np.int64(0)
    for i in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        loss_sum += batch.weight[i] * np.float64(batch.loss[i])
        hits += batch.hit[i]
    loss_sum = sum_over_lanes(sums, loss_sum, cuda.threadIdx.x, cuda.blockDim.x)
    return loss_sum, sum_over_lanes(counts, hits, cuda.threadIdx.x, cuda.blockDim.x)


@device_function
def note(record, floats, step, loss_sum, hits):
    """Note the loss of a step and its hits, and that the next one is due, or none where the loss is not finite."""
    floats[record[STEP_LOSS] + step] = loss_sum
    record[record[STEP_HITS] + step] = hits
    if loss_sum - loss_sum == 0:
        record[NEXT] = step + 1
    else:
        record[STOPPED] = 1


# ---------------------------------------------------------------------------------------------- kernel
@made_once
def steps_kernel(dtype, loss, optimizer, activations, x_dtype, y_dtype):
    """The kernel, for data of dtypes of their own; ``activations`` are the names of those that the program has."""
    labelled = loss in layout.LABEL_LOSSES
    target_dtype = np.dtype(np.int64) if labelled else dtype
    gather_x, gather_target = gathering(dtype), gathering(target_dtype)
    forward, backward = walking(dtype, activations)
    losses = losses_of_part(dtype, loss)
    coefficients, update_all = updating(dtype, optimizer)
    a, m = vector(dtype), matrix(dtype)
    task_type, notes_type = type_of(Task, INT, INT, INT, INT, FLOAT), type_of(Notes, INTS, FLOATS)
    listing_type = type_of(Listing, INTS, FLOATS, INT, INT, INT)
    data_type = type_of(Data, matrix(x_dtype), matrix(y_dtype), FLOATS, INT)
    memory_type = type_of(Memory, a, a, a, INT, m)
    batch_type = type_of(Batch, matrix(target_dtype), rows_type(dtype))
    signature = task_type, notes_type, listing_type, data_type, memory_type, states_type(dtype), batch_type

    @kernel(*signature, threads=THREADS)
    def steps_kernel(task, notes, listing, data, memory, states, of_batch):
        n, fan_in, steps, lanes = task.rows, task.fan_in, task.steps, task.lanes
        record, floats, targets, batch = notes.integers, notes.floats, of_batch.targets, of_batch.rows
        shared = cuda.shared.array(THREADS, dtype)
        shared_sum = cuda.shared.array(THREADS, np.float64)
        shared_count = cuda.shared.array(THREADS, np.int64)
        grid, thread = cuda.cg.this_grid(), cuda.threadIdx.x
        team = Lanes(thread % lanes, lanes, shared, shared_count)
        _, _, classes = operand(listing, memory, listing.loss * program.WIDTH, 0)
        of_block = (n + cuda.gridDim.x - 1) // cuda.gridDim.x
        first = min(cuda.blockIdx.x * of_block, n)
        rows = min(of_block, n - first)
        begin = record[NEXT]
        if record[STOPPED] != 0:
            steps = 0
        for step in range(begin, begin + steps):
            start, key = record[ROWS] + step * record[BATCH], record[record[KEYS] + step]
            part = Part(first, rows, record, start - record[ROWS] + record[NUMBERS], key)
            gather_x(data.x, fan_in, record, start, first, rows, memory.input)
            gather_target(data.target, 1 if labelled else classes, record, start, first, rows, targets)
            weigh(n, record, start, part, data, batch.weight, shared_sum)
            cuda.syncthreads()
            forward(listing, memory, part)
            losses(task, listing, memory, part, of_batch, team)
            cuda.syncthreads()
            backward(listing, memory, part)
            grid.sync()
            loss_sum, hits = sum_losses(n, batch, shared_sum, shared_count)
            if thread == 0 and cuda.blockIdx.x == 0:
                note(record, floats, step, loss_sum, hits)
            if loss_sum - loss_sum != 0:
                break
            c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
            update_all(listing, memory, n, c, states)
            grid.sync()

    return steps_kernel


# ------------------------------------------------------------------------------------------------ host
def suits(workspace, n):
    """Whether this kernel makes steps of ``n`` rows."""
    training = workspace.program.training
    has_all = workspace.program.precision == "ieee" and training.operations.issubset(OPERATIONS)
    small = workspace.widest <= MOST_WIDTH and workspace.program.real_size <= MOST_PARAMETERS
    return has_all and small and n <= MOST_ROWS


def train_steps(workspace, run, n, count, stream):
    """Make so many steps of ``n`` rows each, in as few launches as they may have."""
    listing, record = workspace.listing, workspace.record
    activations = tuple(sorted({instruction.activation for instruction in listing.decoded}))
    function = steps_kernel(
        workspace.dtype, workspace.loss, workspace.optimizer, activations, run.x.data.dtype, run.target.data.dtype
    )
    useful = max(n, -(-run.parameters.size // THREADS))
    blocks = min(compiling.cooperative_blocks(function, THREADS), multiprocessors(), useful)
    weighted = run.row_weight is not None
    instructions = Listing(workspace.instructions, workspace.numbers, listing.loss, listing.weights, listing.updated)
    data = Data(run.x, run.target, run.row_weight if weighted else workspace.rows.weight, int(weighted))
    memory = Memory(run.parameters, workspace.outputs, workspace.gradients, workspace.capacity, workspace.input)
    states, batch = states_of(run.state, run.parameters), Batch(workspace.target, workspace.rows)
    notes, lanes = Notes(record.device, record.floats), lanes_of_row(workspace.fan_out)
    for done in range(0, count, MOST_STEPS):
        task = Task(n, workspace.fan_in, min(MOST_STEPS, count - done), lanes, workspace.loss_parameter)
        function[blocks, THREADS, stream](task, notes, instructions, data, memory, states, batch)


def kernels(dtype):
    """Kernels of this file: (name, kernel); every loss, optimizer and activation is in one of them."""
    for number, loss in enumerate(layout.LOSSES):
        optimizer = layout.OPTIMIZERS[number % len(layout.OPTIMIZERS)]
        activations = ("identity", *layout.ACTIVATIONS[1 + number :: len(layout.LOSSES)])
        target = np.dtype(np.int64) if loss in layout.LABEL_LOSSES else dtype
        yield f"steps {loss} {optimizer}", steps_kernel(dtype, loss, optimizer, activations, dtype, target)
