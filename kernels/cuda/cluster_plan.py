"""Where everything of a small network lies in a block's shared memory, and its program as `cluster` reads it.

Two numbers differ from the program's: rows begin on 16-byte boundaries, an odd number of them apart, so that a register
tile is loaded by accesses of 16 bytes that meet in no bank; what fills them up is 0.
"""

from typing import NamedTuple

import numpy as np

from .. import layout, program
from . import memory
from .blocking import WARP
from .compiling import Clusters
from .launch import THREADS

FEW_BLOCKS, MANY_BLOCKS = 8, 16  # of a cluster: as many as every GPU that has clusters allows, and as some do
VECTOR = 4  # elements of a 16-byte access
SIDE = 16  # rows and columns that a warp makes at once by tensor cores
TILES = {"ieee": (2, VECTOR, 1), "tf32": (SIDE, SIDE, WARP)}  # made at once, forward and back, by so many threads

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
    blocks: int  # of the cluster


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


def blocks_of(workspace):
    """The numbers of blocks that a cluster may have for a workspace, the better one first.

    Twice as many blocks make a step shorter only where threads of eight make several tiles of the widest layer: then
    there are half as many turns. Else threads would stand idle, and the blocks are as good for another network. What
    does not fit into the memory of few blocks may fit into that of many.
    """
    operands = (operand for instruction in workspace.listing.decoded for operand in instruction.operands if operand)
    widest = max(operand.columns for operand in operands if operand.buffer == program.ACTIVATIONS)
    rows, (height, width, threads) = -(-workspace.batch_size // FEW_BLOCKS), TILES[workspace.program.precision]
    tiles = -(-rows // height) * -(-widest // width)
    return (MANY_BLOCKS, FEW_BLOCKS) if tiles * threads > THREADS else (FEW_BLOCKS, MANY_BLOCKS)


class Plan:
    """A program as the kernel reads it, for a cluster of so many blocks and batches of up to ``batch_size`` rows.

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
    clusters : Clusters
        What a launch needs: one, of so many blocks.
    row_lanes : int
        Threads that sum over the rows of a block.
    """

    def __init__(self, workspace, blocks):
        listing, arrays = workspace.listing, workspace.program.arrays
        instructions = listing.decoded[: listing.updated]
        rows = -(-workspace.batch_size // blocks)
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
        share = -(-trained // (blocks * VECTOR)) * VECTOR
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
            blocks,
        )  # fmt: skip
        self.table = np.array(
            [word for row, instruction in enumerate(instructions) for word in self._words(row, instruction)], np.int32
        )
        self.numbers = np.array([instruction.parameter for instruction in instructions])
        self.bytes = 4 * wide.size
        self.clusters = Clusters(1, blocks, self.bytes)
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
