"""Many training steps of a small network in one launch: a cooperative kernel that walks the program on the device.

It makes the programs whose phases are one of rows and one of weights; the whole grid waits after each. In the first
every block takes some rows of the batch through gather, forward, loss and backward: rows do not meet, so only the
block's own threads wait for one another. In the second every thread makes the gradients of some parameters, each a sum
over the batch in the order of its rows, and updates them at once. The loss of the step is summed by every block in the
same way, so all of them know whether to go on. An element's bits do not depend on the number of blocks.

The kernel is compiled for a dtype, a loss, an optimizer and the activations that the network has; the network itself is
data. It is what `network.TrainingWorkspace.step` does, in another order of summation, where launches would cost more
than their work.
"""

from functools import cache

import numpy as np

from .. import layout, program
from . import driver
from .driver import cuda, device_function, kernel, types, vector
from .elementwise import splitmix64
from .formulas import formulas
from .launch import THREADS, lanes_of_row, multiprocessors, sum_over_lanes
from .losses import loss_of_row
from .optimizers import update_of_element
from .record import BATCH, COEFFICIENTS, KEYS, NEXT, NUMBERS, ROWS, STEP_HITS, STEP_LOSS, STOPPED

# Where a launch costs more than its work: a product this small keeps fewer threads busy than a GPU has.
MOST_WIDTH, MOST_PARAMETERS, MOST_ROWS = 256, 1 << 16, 1024
MOST_STEPS = 4096  # a launch, so that no launch takes seconds
# The operations that are made here; a network with others is launched an instruction at a time.
OPERATIONS = (
    "linear_forward", "activation_forward", "dropout", "add", "loss_forward_backward", "activation_backward",
    "linear_backward_input", "linear_backward_params",
)  # fmt: skip
LINEAR_FORWARD, ACTIVATION_FORWARD, DROPOUT, ADD, LOSS, ACTIVATION_BACKWARD, LINEAR_BACKWARD_INPUT, _ = map(
    program.OPERATIONS.index, OPERATIONS
)
OPERAND, HEAD, INPUT = program.OPERAND, program.HEAD, program.INPUT
TWO_32 = 4294967296.0


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
def steps_kernel(dtype, loss, optimizer, activations):
    """The kernel; ``activations`` are the names of those that the program has, in a tuple."""
    parts, number, zero = formulas(dtype), dtype.type, dtype.type(0)
    codes = [layout.ACTIVATIONS.index(name) for name in activations]
    value = by_code([(code, parts[name]) for code, name in zip(codes, activations, strict=True)])
    derivative = by_code([(code, parts[f"{name}_derivative"]) for code, name in zip(codes, activations, strict=True)])
    loss_of, fma = loss_of_row(loss, dtype), parts["fma"]
    coefficients, update = update_of_element(optimizer, dtype)
    labelled = loss in layout.LABEL_LOSSES

    @device_function
    def dropped(x, probability, of_row, unit):
        """A unit after dropout; ``p * 2**64`` in two halves, as a float64 converts to int64 only below 2**63."""
        scaled = probability * TWO_32
        high = np.int64(scaled)
        least = (np.uint64(high) << np.uint64(32)) + np.uint64(np.int64((scaled - np.float64(high)) * TWO_32))
        kept = splitmix64(of_row + np.uint64(unit)) >= least
        return x * number(np.float64(1) / (np.float64(1) - probability)) if kept else zero

    @device_function
    def operand(instructions, at, slot, capacity, x):
        """(where its first row begins, its leading dimension, its columns); of the input that is at ``x``."""
        place = at + HEAD + slot * OPERAND
        begin = instructions[place + program.OFFSET] * capacity
        if instructions[place + program.BUFFER] == INPUT:
            begin = x
        return begin, instructions[place + program.LD], instructions[place + program.COLUMNS]

    @device_function
    def parameter(instructions, at, slot):
        """(where it begins in the parameter buffer, -1 if there is none; its leading dimension)."""
        place = at + HEAD + slot * OPERAND
        if instructions[place + program.BUFFER] < 0:
            return np.int64(-1), np.int64(0)
        return instructions[place + program.OFFSET], instructions[place + program.LD]

    @device_function
    def unit_kept(x, probability, record, row, unit, key, layer):
        """What dropout makes of a unit."""
        of_layer = splitmix64(np.uint64(key) + np.uint64(layer))
        return dropped(x, probability, splitmix64(of_layer + np.uint64(record[row])), unit)

    @device_function
    def forward(
        instructions, numbers, end, parameters, outputs, capacity, input_offset, first, rows, record, start, key
    ):
        """Instructions up to ``end`` for rows ``first ...`` of the batch."""
        for r in range(end):
            at = r * program.WIDTH
            operation, code = instructions[at], instructions[at + program.ACTIVATION]
            exact = numbers[at + program.PARAMETER]
            p = number(exact)
            x, ldx, fan_in = operand(instructions, at, 0, capacity, input_offset)
            weight, ldw = parameter(instructions, at, 1)
            bias, _ = parameter(instructions, at, 2)
            slot = 1
            if operation == LINEAR_FORWARD:
                slot = 3
            elif operation != ACTIVATION_FORWARD:
                slot = 2
            out, ldo, columns = operand(instructions, at, slot, capacity, input_offset)
            other, ld_other, _ = operand(
                instructions, at, 4 if operation == LINEAR_FORWARD else 1, capacity, input_offset
            )
            for e in range(cuda.threadIdx.x, rows * columns, cuda.blockDim.x):
                i = first + e // columns
                j = e % columns
                if operation == LINEAR_FORWARD:
                    z = zero
                    if bias >= 0:
                        z = parameters[bias + j]
                    for k in range(fan_in):
                        z = fma(outputs[x + i * ldx + k], parameters[weight + k * ldw + j], z)
                    if other != out:
                        outputs[other + i * ld_other + j] = z
                    outputs[out + i * ldo + j] = value(code, z, p)
                elif operation == DROPOUT:
                    outputs[out + i * ldo + j] = unit_kept(
                        outputs[x + i * ldx + j], exact, record, start + i, j, key, instructions[at + program.NUMBER]
                    )
                elif operation == ADD:
                    outputs[out + i * ldo + j] = outputs[x + i * ldx + j] + outputs[other + i * ld_other + j]
                else:
                    outputs[out + i * ldo + j] = value(code, outputs[x + i * ldx + j], p)
            cuda.syncthreads()

    @device_function
    def backward(
        instructions, numbers, begin, end, parameters, outputs, gradients, capacity, input_offset, first, rows, record,
        start, key,
    ):  # fmt: skip
        """Instructions from ``begin`` to ``end``, from the gradient of the prediction to what the parameters' need."""
        for r in range(begin, end):
            at = r * program.WIDTH
            operation, code = instructions[at], instructions[at + program.ACTIVATION]
            exact = numbers[at + program.PARAMETER]
            p = number(exact)
            grad, ldg, fan_out = operand(instructions, at, 0, capacity, input_offset)
            weight, ldw = parameter(instructions, at, 1)
            last = 3 if operation == LINEAR_BACKWARD_INPUT else 2
            other, ld_other, _ = operand(instructions, at, last - 1, capacity, input_offset)
            out, ldo, columns = operand(instructions, at, last, capacity, input_offset)
            for e in range(cuda.threadIdx.x, rows * columns, cuda.blockDim.x):
                i = first + e // columns
                j = e % columns
                if operation == LINEAR_BACKWARD_INPUT:
                    g = zero
                    for k in range(fan_out):
                        g = fma(gradients[grad + i * ldg + k], parameters[weight + j * ldw + k], g)
                    g *= derivative(code, outputs[other + i * ld_other + j], p)
                elif operation == ACTIVATION_BACKWARD:
                    g = gradients[grad + i * ldg + j] * derivative(code, outputs[other + i * ld_other + j], p)
                elif operation == DROPOUT:
                    g = unit_kept(
                        gradients[grad + i * ldg + j], exact, record, start + i, j, key,
                        instructions[at + program.NUMBER],
                    )  # fmt: skip
                else:
                    g = gradients[grad + i * ldg + j] + gradients[other + i * ld_other + j]
                gradients[out + i * ldo + j] = g
            cuda.syncthreads()

    @device_function
    def update_all(
        instructions,
        begin,
        end,
        parameters,
        outputs,
        gradients,
        capacity,
        input_offset,
        n,
        c,
        state_1,
        state_2,
        state_3,
    ):
        """Gradients and updates of this thread's parameters: weights, then biases, of every layer."""
        this = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        threads = np.int64(cuda.gridDim.x) * cuda.blockDim.x
        for r in range(begin, end):
            at = r * program.WIDTH
            x, ldx, fan_in = operand(instructions, at, 0, capacity, input_offset)
            grad, ldg, fan_out = operand(instructions, at, 1, capacity, input_offset)
            weight, ldw = parameter(instructions, at, 2)
            bias, _ = parameter(instructions, at, 3)
            count = fan_in * fan_out
            if bias >= 0:
                count += fan_out
            for e in range(this, count, threads):
                k, j, g = e // fan_out, e % fan_out, zero
                if k < fan_in:
                    for i in range(n):
                        g = fma(outputs[x + i * ldx + k], gradients[grad + i * ldg + j], g)
                    update(c, weight + k * ldw + j, g, parameters, state_1, state_2, state_3)
                else:
                    for i in range(n):
                        g += gradients[grad + i * ldg + j]
                    update(c, bias + j, g, parameters, state_1, state_2, state_3)

    @kernel(threads=THREADS)
    def steps_kernel(
        n, steps, capacity, lanes, loss_parameter, loss_at, weights_at, updated_at, record, floats, instructions,
        numbers, fan_in, ldx, x, target, weighted, row_weight, parameters, state_1, state_2, state_3,
        outputs, input_offset, gradients, target_batch, ldt, batch_weight, row_loss, row_hit,
    ):  # fmt: skip
        shared = cuda.shared.array(THREADS, dtype)
        shared_sum = cuda.shared.array(THREADS, np.float64)
        shared_count = cuda.shared.array(THREADS, np.int64)
        grid, thread, threads = cuda.cg.this_grid(), cuda.threadIdx.x, cuda.blockDim.x
        lane = thread % lanes
        prediction, ldo, classes = operand(instructions, loss_at * program.WIDTH, 0, capacity, input_offset)
        grad, ldg, _ = operand(instructions, loss_at * program.WIDTH, 5, capacity, input_offset)
        of_block = (n + cuda.gridDim.x - 1) // cuda.gridDim.x
        first = min(cuda.blockIdx.x * of_block, n)
        rows = min(of_block, n - first)
        begin = record[NEXT]
        if record[STOPPED] != 0:
            steps = 0
        for step in range(begin, begin + steps):
            start, key = record[ROWS] + step * record[BATCH], record[record[KEYS] + step]
            scale = 1 / np.float64(n)
            if weighted:
                total = np.float64(0)
                for i in range(thread, n, threads):
                    total += row_weight[record[start + i]]
                total = sum_over_lanes(shared_sum, total, thread, threads)
                scale = 1 / total if total >= layout.LEAST_WEIGHT else np.float64(0)
            for e in range(thread, rows * fan_in, threads):
                i = first + e // fan_in
                outputs[input_offset + i * ldx + e % fan_in] = number(x[record[start + i] * fan_in + e % fan_in])
            if not labelled:
                for e in range(thread, rows * classes, threads):
                    i = first + e // classes
                    target_batch[i * ldt + e % classes] = number(target[record[start + i] * classes + e % classes])
            for i in range(first + thread, first + rows, threads):
                batch_weight[i] = row_weight[record[start + i]] * scale if weighted else scale
                if labelled:
                    target_batch[i] = target[record[start + i]]
            cuda.syncthreads()
            forward(
                instructions, numbers, loss_at, parameters, outputs, capacity, input_offset, first, rows, record,
                start - record[ROWS] + record[NUMBERS], key,
            )  # fmt: skip
            for base in range(first, first + rows, threads // lanes):
                i = base + thread // lanes
                inside = i < first + rows
                loss, hit = loss_of(
                    shared, shared_count, lane, lanes, inside, classes, number(loss_parameter),
                    outputs, prediction + i * ldo, target_batch, i if labelled else i * ldt,
                    batch_weight[i] if inside else np.float64(0), gradients, grad + i * ldg,
                )  # fmt: skip
                if inside and lane == 0:
                    row_loss[i] = loss
                    row_hit[i] = hit
            cuda.syncthreads()
            backward(
                instructions, numbers, loss_at + 1, weights_at, parameters, outputs, gradients, capacity, input_offset,
                first, rows, record, start - record[ROWS] + record[NUMBERS], key,
            )  # fmt: skip
            grid.sync()
            loss_sum, hits = np.float64(0), np.int64(0)
            for i in range(thread, n, threads):
                loss_sum += batch_weight[i] * np.float64(row_loss[i])
                hits += row_hit[i]
            loss_sum = sum_over_lanes(shared_sum, loss_sum, thread, threads)
            hits = sum_over_lanes(shared_count, hits, thread, threads)
            finite = loss_sum - loss_sum == 0
            if thread == 0 and cuda.blockIdx.x == 0:
                floats[record[STEP_LOSS] + step] = loss_sum
                record[record[STEP_HITS] + step] = hits
                if finite:
                    record[NEXT] = step + 1
                else:
                    record[STOPPED] = 1
            if not finite:
                break
            c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
            update_all(
                instructions, weights_at, updated_at, parameters, outputs, gradients, capacity, input_offset, n, c,
                state_1, state_2, state_3,
            )  # fmt: skip
            grid.sync()

    return steps_kernel


def signature(dtype, x, target, labelled):
    """The types of its arguments, for the dtypes of the data."""
    i, f, ints, doubles, a = types.int64, types.float64, vector(np.int64), vector(np.float64), vector(dtype)
    x, target, batch = vector(x), vector(target), ints if labelled else a
    return (
        i, i, i, i, f, i, i, i, ints, doubles, ints, doubles, i, i, x, target, types.boolean, doubles, a, a, a,
        a, i, a, batch, i, doubles, a, ints,
    )  # fmt: skip


def suits(workspace, n):
    """Whether steps of ``n`` rows are made here."""
    training = workspace.program.training
    has_all = workspace.program.precision == "ieee" and training.operations.issubset(OPERATIONS)
    small = workspace.widest <= MOST_WIDTH and workspace.program.real_size <= MOST_PARAMETERS
    return has_all and small and n <= MOST_ROWS


def train_steps(workspace, run, n, count, stream):
    """So many steps of ``n`` rows each, in as few launches as they may have."""
    listing = workspace.listing
    activations = tuple(sorted({instruction.activation for instruction in listing.decoded}))
    function = steps_kernel(workspace.dtype, workspace.loss, workspace.optimizer, activations)
    types_ = signature(workspace.dtype, run.x.dtype, run.target.dtype, workspace.labelled)
    useful = max(n, -(-run.parameters.size // THREADS))
    blocks = min(driver.cooperative_blocks(function, types_, THREADS), multiprocessors(), useful)
    record, weighted = workspace.record, run.row_weight is not None
    states = (*run.state, run.parameters, run.parameters, run.parameters)[:3]
    for done in range(0, count, MOST_STEPS):
        function[blocks, THREADS, stream](
            n, min(MOST_STEPS, count - done), workspace.capacity, lanes_of_row(workspace.fan_out),
            workspace.loss_parameter, listing.loss, listing.weights, listing.updated, record.device, record.floats,
            workspace.instructions, workspace.numbers, workspace.fan_in, workspace.input[2], run.x, run.target,
            weighted, run.row_weight if weighted else workspace.weight, run.parameters, *states,
            workspace.outputs, workspace.input[1], workspace.gradients, workspace.target, workspace.ld_target,
            workspace.weight, workspace.row_loss, workspace.row_hit,
        )  # fmt: skip


def kernels(dtype):
    """Kernels of this file: (name, kernel, signature); every loss, optimizer and activation is in one of them."""
    for number, loss in enumerate(layout.LOSSES):
        labelled, optimizer = loss in layout.LABEL_LOSSES, layout.OPTIMIZERS[number % len(layout.OPTIMIZERS)]
        activations = ("identity", *layout.ACTIVATIONS[1 + number :: len(layout.LOSSES)])
        types_ = signature(dtype, dtype, np.int64 if labelled else dtype, labelled)
        yield f"steps {loss} {optimizer}", steps_kernel(dtype, loss, optimizer, activations), types_
