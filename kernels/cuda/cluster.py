"""Many training steps of a small network in one launch, by one thread-block cluster that keeps everything on the chip.

A cluster is a few blocks, each on a multiprocessor of its own, that wait for one another and reach each other's shared
memory. Every block has a copy of the parameters there and takes a share of the batch forward and back; its part of the
optimizer's state is there too. A step has two barriers of the cluster:

1. Each block makes the gradients of its rows, from products of register tiles, and the sum of its losses.
2. *Barrier.* Each block adds up the gradients of its share of the parameters, block after block in their order, updates
   them, and writes the new ones into the copies of all. All blocks add up the losses in the same way, so each knows
   whether to go on.
3. *Barrier.* The next step begins; its rows have come from global memory meanwhile.

The kernel is compiled for a loss, an optimizer and the activations of the network; the network itself is data: a `Plan`
says where everything lies in a block's shared memory. Two numbers there differ from the program's: rows begin on
16-byte boundaries, an odd number of them apart, so that a register tile is loaded by accesses of 16 bytes that meet in
no bank; what fills them up is 0. Steps are those of `network.TrainingWorkspace.step`, in another order of summation.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .. import layout, program
from . import driver, memory, ptx, steps
from .asked import asked
from .compiling import Clusters, device_function, kernel, vector
from .driver import cuda, types
from .elementwise import splitmix64, weight_scale
from .formulas import formulas
from .launch import THREADS, lanes_of_row, sum_over_lanes
from .losses import loss_of_row
from .operands import FLOAT, FLOATS, INT, INTS, Lanes, Row, matrix, type_of
from .operands import at as element
from .optimizers import states_of, states_type, update_of_element
from .ptx import asynchronous_copy, commit_copies, vector_access, wait_for_copies
from .record import BATCH, COEFFICIENTS, KEYS, NEXT, NUMBERS, ROWS, STEP_HITS, STEP_LOSS, STOPPED
from .steps import (
    ACTIVATION_FORWARD,
    ADD,
    DROPOUT,
    LINEAR_BACKWARD_INPUT,
    LINEAR_FORWARD,
    LOSS,
    Data,
    by_code,
    unit_dropped,
)

BLOCKS = 8  # of a cluster: as many as every GPU that has clusters allows
LEAST_CAPABILITY = (9, 0)
DTYPE = np.dtype(np.float32)
VECTOR = 4  # elements of a 16-byte access
STATIC_BYTES = THREADS * (DTYPE.itemsize + 8 + 8)  # of shared memory that the kernel has beside those of a plan

int32, uint32 = types.int32, types.uint32
WORDS = vector(np.int32)

# The words of an instruction in a plan; places are elements of the block's shared memory.
(
    OPERATION, ACTIVATION, NUMBER,  # as in the program; the number is that of a layer that drops units
    COLUMNS, TERMS,  # what a product makes of how many; other operations have as many of both
    X, LD_X,  # what is read; X may be INPUT
    OTHER, LD_OTHER,  # what else is read, or where a linear layer saves z; of the weights the gradient
    OUT, LD_OUT,
    WEIGHT, LD_WEIGHT, BIAS,  # of the weights their gradients; NONE where there is no bias
    INSTRUCTION,  # which one of the listing it is
    WIDTH,  # words of an instruction
) = range(16)  # fmt: skip
INPUT, NONE = -2, -1


# ------------------------------------------------------------------------------------------------ plan
class Room(NamedTuple):
    """Where things lie in a block's shared memory: of 8 bytes in units of 8 bytes, the others in units of 4."""

    weights: int  # 8 bytes: of the rows of a batch in the loss
    hits: int  # 8
    sums: int  # 8: the block's loss, and after it its hits
    labels: int  # 8: of two batches
    labels_step: int  # from one of the two to the other
    parameters: int
    gradients: int  # as the parameters that train, which come first of these
    share: int  # of the parameters that train: so many a block
    states: int
    slots: int  # of the block's share
    table: int  # of instructions
    losses: int  # of rows
    input: int  # of two batches
    input_step: int
    input_ld: int
    targets: int  # of two batches
    targets_step: int
    targets_ld: int
    prediction: int
    prediction_ld: int
    gradient: int  # of the prediction
    gradient_ld: int
    cleared: int  # from here to the end all begins as 0
    size: int  # the end, in units of 4
    trained: int  # parameters that train
    held: int  # and all
    back: int  # instructions before those of the weights, and all
    end: int
    fan_in: int
    classes: int


class _Places:
    """Hands out places in shared memory, one after another."""

    def __init__(self):
        self.size = 0

    def take(self, elements, unit=1):
        """So many of ``unit`` times 4 bytes, on a 16-byte boundary; where they begin, in these units."""
        begin = -(-self.size // VECTOR) * VECTOR
        self.size = begin + elements * unit
        return begin // unit


def leading(columns):
    """Elements from one row of shared memory to the next: an odd number of 16-byte accesses."""
    accesses = -(-columns // VECTOR)
    return VECTOR * (accesses + 1 - accesses % 2)


class Plan:
    """A program as the kernel reads it, for batches of up to ``batch_size`` rows.

    Attributes
    ----------
    room : Room
    table : int32 array
        The instructions.
    slots : int32 array
        For every place among the parameters the element of the parameter buffer, `NONE` where there is none.
    numbers : float64 array
        The parameters of the listing's instructions.
    bytes : int
        Of shared memory that a block needs.
    row_lanes : int
        Threads that sum over the rows of a block.
    """

    def __init__(self, workspace):
        listing, arrays = workspace.listing, workspace.program.arrays
        instructions = listing.decoded[: listing.updated]
        rows = -(-workspace.batch_size // BLOCKS)
        wide, states = _Places(), layout.OPTIMIZER_STATES[workspace.optimizer]
        labelled = workspace.labelled
        weights, hits, sums = wide.take(rows, 2), wide.take(rows, 2), wide.take(2, 2)
        labels = wide.take(2 * rows * labelled, 2)

        # Parameters: rows of a weight up to a multiple of four, as a tile is four by four.
        self.places, slots = {}, []
        for array in sorted(arrays, key=lambda array: not array.trains):
            self.places[array.offset] = len(slots)
            slots += self._slots(array)
            if array.trains:
                trained = len(slots)
        self.slots = np.array(slots, np.int32)
        share = -(-trained // (BLOCKS * VECTOR)) * VECTOR
        parameters, gradients = wide.take(len(slots)), wide.take(trained)
        state, own = wide.take(states * share), wide.take(share)
        table, losses = wide.take(WIDTH * len(instructions)), wide.take(rows)

        # Values and gradients of rows, and their input and target twice: the next batch comes while this one is used.
        cleared = wide.size
        ld_in, ld_target = leading(workspace.fan_in), leading(workspace.fan_out)
        inputs, targets = wide.take(2 * rows * ld_in), wide.take(2 * rows * ld_target * (not labelled))
        columns = {}
        for operand in (operand for instruction in instructions for operand in instruction.operands if operand):
            if operand.buffer in (program.ACTIVATIONS, program.GRADIENTS):
                key = operand.buffer, operand.offset
                columns[key] = max(columns.get(key, 0), operand.columns)
        self.matrices = {key: (wide.take(rows * leading(count)), leading(count)) for key, count in columns.items()}
        self.matrices[program.INPUT, 0] = INPUT, ld_in

        prediction, gradient = map(self._matrix, (listing.prediction, listing.prediction_gradient))
        self.room = Room(
            weights, hits, sums, labels, rows, parameters, gradients, share, state, own, table, losses, inputs,
            rows * ld_in, ld_in, targets, rows * ld_target, ld_target, *prediction, *gradient, cleared, wide.size,
            trained, len(slots), listing.weights, len(instructions), workspace.fan_in, workspace.fan_out,
        )  # fmt: skip
        self.table = np.array(
            [word for row, instruction in enumerate(instructions) for word in self._words(row, instruction)], np.int32
        )
        self.numbers = np.array([instruction.parameter for instruction in instructions])
        self.bytes = 4 * wide.size
        self.row_lanes = min(1 << (rows - 1).bit_length(), THREADS)
        self.table, self.slots, self.numbers = map(memory.to_device, (self.table, self.slots, self.numbers))

    def _slots(self, array):
        """For each place of a weight or a bias the element of the parameter buffer."""
        rows, columns = array.shape if len(array.shape) == 2 else (1, *array.shape)
        height = -(-rows // VECTOR) * VECTOR if len(array.shape) == 2 else 1
        slots = np.full((height, leading(columns)), NONE)
        slots[:rows, :columns] = array.offset + np.arange(rows)[:, None] * array.ld + np.arange(columns)
        return slots.ravel().tolist()

    def _matrix(self, operand):
        """Where the rows of a batch lie, and how far apart."""
        return self.matrices[operand.buffer, operand.offset]

    def _words(self, row, instruction):
        """An instruction of the listing as the kernel reads it."""
        words, operands = [0] * WIDTH, instruction.operands
        words[INSTRUCTION], words[NUMBER] = row, instruction.number
        words[OPERATION] = program.OPERATIONS.index(instruction.operation)
        words[ACTIVATION] = layout.ACTIVATIONS.index(instruction.activation)

        def put(place, operand):
            words[place], words[place + 1] = self._matrix(operand)

        def put_parameters(begin, weight, bias):
            words[WEIGHT], words[LD_WEIGHT] = begin + self.places[weight.offset], leading(weight.columns)
            words[BIAS] = NONE if bias is None else begin + self.places[bias.offset]

        operation, begin = instruction.operation, self.room.parameters
        if operation == "loss_forward_backward":
            return words
        put(X, operands[0])
        words[TERMS] = operands[0].columns
        if operation == "linear_forward":
            _, weight, bias, out, saved = operands[:5]
            put_parameters(begin, weight, bias)
            put(OTHER, saved)
        elif operation == "linear_backward_input":
            _, weight, other, out = operands[:4]
            put_parameters(begin, weight, None)
            put(OTHER, other)
        elif operation == "linear_backward_params":
            _, out, weight, bias = operands[:4]
            put_parameters(self.room.gradients, weight, bias)
            put(OTHER, out)
        elif operation in ("add", "activation_backward"):
            _, other, out = operands[:3]
            put(OTHER, other)
        else:
            out = operands[2] if operation == "dropout" else operands[1]
        put(OUT, out)
        words[COLUMNS] = out.columns
        return words


# ---------------------------------------------------------------------------------------------- kernel
@device_function
def split(e, columns):
    """Row and column of element ``e`` of rows of so many columns; without 64 bits, whose division is long."""
    row = int32(uint32(e) // uint32(columns))
    return row, int32(e - row * columns)


def gathering(source, dtype):
    """A device function that brings rows of a batch into shared memory; where they need no conversion, by themselves.

    ``shared[to + i * ld] = data[record[start + i]]`` for the rows and columns; there when copies have been waited for
    and threads have met.
    """
    copy, number = asynchronous_copy(1), dtype.type
    as_it_is = source == dtype

    @device_function
    def gather(data, columns, record, start, rows, shared, to, ld):
        for e in range(cuda.threadIdx.x, rows * columns, THREADS):
            i, j = split(e, columns)
            there = element(data, record[start + i], j)
            if as_it_is:
                copy(shared, int32(to + i * ld + j), data.data, there, int32(1))
            else:
                shared[to + i * ld + j] = number(data.data[there])

    return gather


def labels(source):
    """Device functions that bring the labels of a batch, and give that of a row."""
    gather = gathering(source, np.dtype(np.int64))

    @device_function
    def gather_labels(data, record, start, rows, shared, long, room, odd):
        gather(data, 1, record, start, rows, long, room.labels + odd * room.labels_step, 1)

    @device_function
    def label_of(shared, long, room, odd, i):
        return Row(long, room.labels + odd * room.labels_step + i)

    return gather_labels, label_of


def targets(source):
    """The same of targets that are as many numbers as a prediction."""
    gather = gathering(source, DTYPE)

    @device_function
    def gather_targets(data, record, start, rows, shared, long, room, odd):
        to = room.targets + odd * room.targets_step
        gather(data, room.classes, record, start, rows, shared, to, room.targets_ld)

    @device_function
    def target_of(shared, long, room, odd, i):
        return Row(shared, room.targets + odd * room.targets_step + i * room.targets_ld)

    return gather_targets, target_of


@cache
def products(value, derivative, fma):
    """The three products of a linear layer, of matrices in shared memory: device functions.

    A thread makes two rows of four columns (of the gradient of a weight four of four) in registers. Rows begin on
    16-byte boundaries and are filled up with zeros to a multiple of four terms, as are the rows of a weight.
    """
    zero, pair, square = DTYPE.type(0), 2 * VECTOR, VECTOR * VECTOR
    load, store = vector_access(VECTOR)

    @device_function
    def multiply(acc, first, second, w, shared, at):
        """Four terms of two rows with four columns, whose factors are at ``at``, row by row of ``w`` elements."""
        b = cuda.local.array(VECTOR, types.float32)
        for k in range(VECTOR):
            load(b, 0, shared, at + k * w)
            for j in range(VECTOR):
                acc[j] = fma(first[k], b[j], acc[j])
                acc[VECTOR + j] = fma(second[k], b[j], acc[VECTOR + j])

    @device_function
    def finish(acc, part, code, p, saves, shared, out, saved):
        """Activate four columns of a row and store them; beyond the last they meet zeros of the next weight."""
        z = cuda.local.array(VECTOR, types.float32)
        for j in range(VECTOR):
            z[j] = acc[part + j]
        if saves:
            store(shared, saved, z, 0)
        for j in range(VECTOR):
            z[j] = value(code, z[j], p)
        store(shared, out, z, 0)

    @device_function
    def forward(shared, rows, terms, columns, x, ld_x, w, ld_w, bias, out, ld_out, saved, ld_saved, code, p):
        """``saved = x @ w + bias``, ``out = act(saved)``."""
        groups, half = (columns + VECTOR - 1) // VECTOR, (rows + 1) // 2
        acc = cuda.local.array(pair, types.float32)
        first = cuda.local.array(VECTOR, types.float32)
        second = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, half * groups, THREADS):
            i, group = split(e, groups)
            other, j = min(i + half, rows - 1), group * VECTOR
            for c in range(pair):
                acc[c] = zero
            if bias >= 0:
                load(acc, 0, shared, bias + j)
                load(acc, VECTOR, shared, bias + j)
            for k in range(0, terms, VECTOR):
                load(first, 0, shared, x + i * ld_x + k)
                load(second, 0, shared, x + other * ld_x + k)
                multiply(acc, first, second, ld_w, shared, w + k * ld_w + j)
            saves = saved != out
            finish(acc, 0, code, p, saves, shared, out + i * ld_out + j, saved + i * ld_saved + j)
            if i + half < rows:
                at, saved_at = out + other * ld_out + j, saved + other * ld_saved + j
                finish(acc, VECTOR, code, p, saves, shared, at, saved_at)

    @device_function
    def backward(shared, rows, terms, columns, grad, ld_grad, w, ld_w, out, ld_out, saved, ld_saved, code, p):
        """``out = (grad @ w.T) * act'(saved)``; a thread's columns lie apart, so that neighbours read other banks."""
        groups, half = (columns + VECTOR - 1) // VECTOR, (rows + 1) // 2
        acc = cuda.local.array(pair, types.float32)
        first = cuda.local.array(VECTOR, types.float32)
        second = cuda.local.array(VECTOR, types.float32)
        b = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, half * groups, THREADS):
            i, group = split(e, groups)
            other = min(i + half, rows - 1)
            for c in range(pair):
                acc[c] = zero
            for k in range(0, terms, VECTOR):
                load(first, 0, shared, grad + i * ld_grad + k)
                load(second, 0, shared, grad + other * ld_grad + k)
                for c in range(VECTOR):
                    load(b, 0, shared, w + (group + c * groups) * ld_w + k)
                    for q in range(VECTOR):
                        acc[c] = fma(first[q], b[q], acc[c])
                        acc[VECTOR + c] = fma(second[q], b[q], acc[VECTOR + c])
            for c in range(VECTOR):
                j = group + c * groups
                if j < columns:
                    slope = derivative(code, shared[saved + i * ld_saved + j], p)
                    shared[out + i * ld_out + j] = acc[c] * slope
                    if i + half < rows:
                        slope = derivative(code, shared[saved + other * ld_saved + j], p)
                        shared[out + other * ld_out + j] = acc[VECTOR + c] * slope

    @device_function
    def weights(shared, rows, terms, columns, x, ld_x, grad, ld_grad, w, ld_w, bias):
        """``w = x.T @ grad`` and ``bias`` the sums of the columns of ``grad``."""
        groups = (columns + VECTOR - 1) // VECTOR
        tiles = (terms + VECTOR - 1) // VECTOR * groups
        acc = cuda.local.array(square, types.float32)
        a = cuda.local.array(VECTOR, types.float32)
        b = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, tiles + groups, THREADS):
            k, group = split(e, groups)
            k, j = k * VECTOR, group * VECTOR
            for c in range(square):
                acc[c] = zero
            if e < tiles:
                at, at_grad = x + k, grad + j
                for _ in range(rows):
                    load(a, 0, shared, at)
                    load(b, 0, shared, at_grad)
                    at += ld_x
                    at_grad += ld_grad
                    for r in range(VECTOR):
                        for c in range(VECTOR):
                            acc[r * VECTOR + c] = fma(a[r], b[c], acc[r * VECTOR + c])
                for r in range(VECTOR):
                    store(shared, w + (k + r) * ld_w + j, acc, r * VECTOR)
            elif bias >= 0:
                for i in range(rows):
                    load(b, 0, shared, grad + i * ld_grad + j)
                    for c in range(VECTOR):
                        acc[c] += b[c]
                store(shared, bias + j, acc, 0)

    return forward, backward, weights


@cache
def cluster_kernel(loss, optimizer, activations, x_dtype, y_dtype):
    """The kernel, for data of dtypes of their own; ``activations`` are the names of those that the program has."""
    parts, number, zero = formulas(DTYPE), DTYPE.type, DTYPE.type(0)
    codes = [layout.ACTIVATIONS.index(name) for name in activations]
    value = by_code([(code, parts[name]) for code, name in zip(codes, activations, strict=True)])
    derivative = by_code([(code, parts[f"{name}_derivative"]) for code, name in zip(codes, activations, strict=True)])
    forward_product, backward_product, weights_product = products(value, derivative, parts["fma"])
    loss_of, dropped = loss_of_row(loss, DTYPE), unit_dropped(DTYPE)
    coefficients, _ = update_of_element(optimizer, DTYPE)
    update, states_count = parts[optimizer], layout.OPTIMIZER_STATES[optimizer]
    gather_x = gathering(x_dtype, DTYPE)
    gather_targets, target_of = (labels if loss in layout.LABEL_LOSSES else targets)(y_dtype)
    wait_for_all_copies = wait_for_copies(0)
    arrive, wait, from_block, to_block = ptx.cluster_arrive, ptx.cluster_wait, ptx.from_block, ptx.to_block

    @device_function
    def unit_kept(x, probability, word, at, key, record, first_number, i, j):
        """What dropout makes of a unit."""
        of_layer = np.uint64(key) + np.uint64(word[at + NUMBER])
        return dropped(x, probability, splitmix64(of_layer), record[first_number + i], j)

    @device_function
    def by_elements(shared, word, at, rows, columns, x_at, other_at, p, exact, key, record, first_number):
        """An operation that is no product, element by element."""
        operation, code = word[at + OPERATION], word[at + ACTIVATION]
        for e in range(cuda.threadIdx.x, rows * columns, THREADS):
            i, j = split(e, columns)
            x = shared[x_at + i * word[at + LD_X] + j]
            if operation == DROPOUT:
                x = unit_kept(x, exact, word, at, key, record, first_number, i, j)
            elif operation == ACTIVATION_FORWARD:
                x = value(code, x, p)
            else:
                other = shared[other_at + i * word[at + LD_OTHER] + j]
                if operation == ADD:
                    x = x + other
                else:
                    x = x * derivative(code, other, p)
            shared[word[at + OUT] + i * word[at + LD_OUT] + j] = x

    @device_function
    def losses(shared, wide, long, room, rows, odd, parameter, team):
        """The losses and hits of the block's rows, and the gradient of the prediction."""
        height = THREADS // team.count
        for base in range(0, rows, height):
            i = base + cuda.threadIdx.x // team.count
            inside = i < rows
            at = i if inside else np.int64(0)
            loss, hit = loss_of(
                team, inside, room.classes, parameter, Row(shared, room.prediction + at * room.prediction_ld),
                target_of(shared, long, room, odd, at), wide[room.weights + at],
                Row(shared, room.gradient + at * room.gradient_ld),
            )  # fmt: skip
            if inside and team.lane == 0:
                shared[room.losses + i] = loss
                long[room.hits + i] = hit

    @device_function
    def walk(
        shared, word, wide, long, room, rows, odd, x_now, numbers, key, record, first_number, loss_parameter, team
    ):
        """Take the rows of the block forward and back."""
        for r in range(room.back):
            at = room.table + r * WIDTH
            operation, code = word[at + OPERATION], word[at + ACTIVATION]
            exact = numbers[word[at + INSTRUCTION]]
            terms, columns, ld_x, ld_other = word[at + TERMS], word[at + COLUMNS], word[at + LD_X], word[at + LD_OTHER]
            x, other, out, ld_out = word[at + X], word[at + OTHER], word[at + OUT], word[at + LD_OUT]
            x, other = x_now if x == INPUT else x, x_now if other == INPUT else other
            weight, ld_weight, bias, p = word[at + WEIGHT], word[at + LD_WEIGHT], word[at + BIAS], number(exact)
            if operation == LINEAR_FORWARD:
                forward_product(
                    shared, rows, terms, columns, x, ld_x, weight, ld_weight, bias, out, ld_out, other, ld_other,
                    code, p,
                )  # fmt: skip
            elif operation == LINEAR_BACKWARD_INPUT:
                backward_product(
                    shared, rows, terms, columns, x, ld_x, weight, ld_weight, out, ld_out, other, ld_other, code, p
                )
            elif operation == LOSS:
                losses(shared, wide, long, room, rows, odd, loss_parameter, team)
            else:
                by_elements(shared, word, at, rows, columns, x, other, p, exact, key, record, first_number)
            cuda.syncthreads()

    @device_function
    def fill(shared, word, room, share_begin, mine, table, slots, parameters, states):
        """Fill the block's shared memory with what a launch begins with."""
        thread = cuda.threadIdx.x
        for e in range(thread, room.size - room.cleared, THREADS):
            shared[room.cleared + e] = zero
        for e in range(thread, room.end * WIDTH, THREADS):
            word[room.table + e] = table[e]
        for e in range(thread, room.held, THREADS):
            shared[room.parameters + e] = parameters[slots[e]] if slots[e] >= 0 else zero
        for e in range(thread, mine, THREADS):
            slot = slots[share_begin + e]
            word[room.slots + e] = slot
            if slot >= 0:
                if states_count > 0:
                    shared[room.states + e] = states.first[slot]
                if states_count > 1:
                    shared[room.states + room.share + e] = states.second[slot]
                if states_count > 2:
                    shared[room.states + 2 * room.share + e] = states.third[slot]
        cuda.syncthreads()

    @device_function
    def give_back(shared, word, room, share_begin, mine, parameters, states):
        """Write the block's share of the parameters, and its states, to where they came from."""
        for e in range(cuda.threadIdx.x, mine, THREADS):
            slot = word[room.slots + e]
            if slot >= 0:
                parameters[slot] = shared[room.parameters + share_begin + e]
                if states_count > 0:
                    states.first[slot] = shared[room.states + e]
                if states_count > 1:
                    states.second[slot] = shared[room.states + room.share + e]
                if states_count > 2:
                    states.third[slot] = shared[room.states + 2 * room.share + e]

    @device_function
    def weigh(wide, room, rows, n, data, record, start, first, sums):
        """The weights of the block's rows in the loss of ``n``."""
        thread = cuda.threadIdx.x
        scale = 1 / np.float64(n)
        if data.weighted:
            scale = weight_scale(n, record, start, data.row_weight, sums)
        for i in range(thread, rows, THREADS):
            weight = data.row_weight[record[start + first + i]] * scale if data.weighted else scale
            wide[room.weights + i] = weight

    @device_function
    def make_gradients(shared, word, room, rows, x_now):
        """The gradients of all parameters that train, of the block's rows."""
        for r in range(room.back, room.end):
            at = room.table + r * WIDTH
            x = word[at + X]
            weights_product(
                shared, rows, word[at + TERMS], word[at + COLUMNS], x_now if x == INPUT else x, word[at + LD_X],
                word[at + OTHER], word[at + LD_OTHER], word[at + WEIGHT], word[at + LD_WEIGHT], word[at + BIAS],
            )  # fmt: skip

    @device_function
    def sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts):
        """The sum of the losses of the block's rows, and of their hits, where other blocks find them."""
        lane, loss_sum, hits = cuda.threadIdx.x % row_lanes, np.float64(0), np.int64(0)
        for i in range(lane, rows, row_lanes):
            loss_sum += wide[room.weights + i] * np.float64(shared[room.losses + i])
            hits += long[room.hits + i]
        loss_sum = sum_over_lanes(sums, loss_sum, lane, row_lanes)
        hits = sum_over_lanes(counts, hits, lane, row_lanes)
        if cuda.threadIdx.x == 0:
            wide[room.sums] = loss_sum
            long[room.sums + 1] = hits

    @device_function
    def update_share(shared, word, room, share_begin, mine, c):
        """Add up the gradients of the block's share, update it, and write it into the parameters of every block."""
        for e in range(cuda.threadIdx.x, mine, THREADS):
            if word[room.slots + e] >= 0:
                at, state = int32(share_begin + e), room.states + e
                g = zero
                for block in range(BLOCKS):
                    g += from_block(shared, int32(room.gradients + at), int32(block))
                m = v = top = g
                if states_count > 0:
                    m = shared[state]
                if states_count > 1:
                    v = shared[state + room.share]
                if states_count > 2:
                    top = shared[state + 2 * room.share]
                w, m, v, top = update(c, shared[room.parameters + at], g, m, v, top)
                if states_count > 0:
                    shared[state] = m
                if states_count > 1:
                    shared[state + room.share] = v
                if states_count > 2:
                    shared[state + 2 * room.share] = top
                for block in range(BLOCKS):
                    to_block(shared, int32(room.parameters + at), int32(block), w)

    data_type = type_of(Data, matrix(x_dtype), matrix(y_dtype), FLOATS, INT)
    room_type = type_of(Room, *(INT for _ in Room._fields))

    @kernel(
        INT, INT, INT, INT, FLOAT, INTS, FLOATS, WORDS, WORDS, FLOATS, room_type, data_type, vector(DTYPE),
        states_type(DTYPE), threads=THREADS, blocks=1,
    )  # fmt: skip
    def cluster_kernel(
        n, count, lanes, row_lanes, loss_parameter, record, floats, table, slots, numbers, room, data, parameters,
        states,
    ):  # fmt: skip
        shared, word = cuda.shared.array(0, DTYPE, 16), cuda.shared.array(0, int32, 16)
        wide, long = cuda.shared.array(0, np.float64, 16), cuda.shared.array(0, np.int64, 16)
        of_lanes, sums = cuda.shared.array(THREADS, DTYPE), cuda.shared.array(THREADS, np.float64)
        counts = cuda.shared.array(THREADS, np.int64)
        thread, me = cuda.threadIdx.x, ptx.block_in_cluster()
        team = Lanes(thread % lanes, lanes, of_lanes, counts)
        of_block = (n + BLOCKS - 1) // BLOCKS
        first = min(me * of_block, n)
        rows = int32(min(of_block, n - first))
        share_begin = me * room.share
        mine = max(min(room.trained - share_begin, room.share), 0)
        fill(shared, word, room, share_begin, mine, table, slots, parameters, states)
        begin = record[NEXT]
        end = begin if record[STOPPED] != 0 else begin + count
        for step in range(begin - 1, end):
            # The next batch comes while this one is used; before the first there is only a next one.
            after, odd = step + 1, step % 2
            if after < end:
                start = record[ROWS] + after * record[BATCH] + first
                to = room.input + (1 - odd) * room.input_step
                gather_x(data.x, room.fan_in, record, start, rows, shared, to, room.input_ld)
                gather_targets(data.target, record, start, rows, shared, long, room, 1 - odd)
                commit_copies()
            finite = True
            if step >= begin:
                start, key = record[ROWS] + step * record[BATCH], record[record[KEYS] + step]
                number_of_first = start - record[ROWS] + record[NUMBERS] + first
                x_now = int32(room.input + odd * room.input_step)
                weigh(wide, room, rows, n, data, record, start, first, sums)
                walk(
                    shared, word, wide, long, room, rows, odd, x_now, numbers, key, record, number_of_first,
                    number(loss_parameter), team,
                )  # fmt: skip
                make_gradients(shared, word, room, rows, x_now)
                sum_losses(shared, wide, long, room, rows, row_lanes, sums, counts)
                arrive()
                c = coefficients(floats, record[COEFFICIENTS] + step * layout.COEFFICIENTS)
                wait()
                loss_sum, hits = np.float64(0), np.int64(0)
                for block in range(BLOCKS):
                    loss_sum += from_block(wide, room.sums, int32(block))
                    hits += from_block(long, room.sums + 1, int32(block))
                finite = loss_sum - loss_sum == 0
                if thread == 0 and me == 0:
                    floats[record[STEP_LOSS] + step] = loss_sum
                    record[record[STEP_HITS] + step] = hits
                    if finite:
                        record[NEXT] = after
                    else:
                        record[STOPPED] = 1
                if finite:
                    update_share(shared, word, room, share_begin, mine, c)
            wait_for_all_copies()
            arrive()
            wait()
            if not finite:
                break
        give_back(shared, word, room, share_begin, mine, parameters, states)

    return cluster_kernel


# ------------------------------------------------------------------------------------------------ host
def available():
    """Whether clusters are asked for, and the GPU has them."""
    return asked("cluster") and driver.compute_capability() >= LEAST_CAPABILITY


def suits(workspace):
    """Whether a cluster makes the steps of a workspace: clusters are `available`, and all of it fits into one."""
    if not available():
        return False
    operations = workspace.program.training.operations
    if workspace.dtype != DTYPE or workspace.program.precision != "ieee" or not operations.issubset(steps.OPERATIONS):
        return False
    return plan_of(workspace).bytes + STATIC_BYTES <= driver.most_shared()


def side_by_side():
    """How many networks train at once: where clusters are `available`, as many as have multiprocessors of their own."""
    return max(driver.multiprocessors() // BLOCKS, 1) if available() else 1


def plan_of(workspace):
    """The plan of a workspace, made once."""
    if workspace.plan is None:
        workspace.plan = Plan(workspace)
    return workspace.plan


def train_steps(workspace, run, n, count, stream):
    """Make so many steps of ``n`` rows each, in as few launches as they may have."""
    plan, record = plan_of(workspace), workspace.record
    activations = tuple(sorted({instruction.activation for instruction in workspace.listing.decoded}))
    function = cluster_kernel(workspace.loss, workspace.optimizer, activations, run.x.data.dtype, run.target.data.dtype)
    function.allow_shared(plan.bytes)
    weighted = run.row_weight is not None
    data = Data(run.x, run.target, run.row_weight if weighted else workspace.rows.weight, int(weighted))
    for done in range(0, count, steps.MOST_STEPS):
        function[Clusters(1, BLOCKS, plan.bytes), THREADS, stream](
            n, min(steps.MOST_STEPS, count - done), lanes_of_row(workspace.fan_out), plan.row_lanes,
            workspace.loss_parameter, record.device, record.floats, plan.table, plan.slots, plan.numbers, plan.room,
            data, run.parameters, states_of(run.state, run.parameters),
        )  # fmt: skip


def kernels():
    """Some kernels of this file: (name, kernel); every loss, optimizer and activation is in one of them."""
    for i, loss in enumerate(layout.LOSSES):
        optimizer = layout.OPTIMIZERS[i % len(layout.OPTIMIZERS)]
        activations = ("identity", *layout.ACTIVATIONS[1 + i :: len(layout.LOSSES)])
        target = np.dtype(np.int64) if loss in layout.LABEL_LOSSES else DTYPE
        yield f"cluster {loss} {optimizer}", cluster_kernel(loss, optimizer, activations, DTYPE, target)
