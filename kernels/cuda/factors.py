"""Which factors of products are stored in panels (panels.py), when, and in what memory; where these are asked for.

A factor is stored once, by who makes it: a value or a gradient by the product that ends a layer, or by a launch after
another kernel; weights at the beginning of a call, as the caller may have changed them, and by every update. All
products that read it find it there. (On the CPU `kernels/cpu/factors.py` does this, by instructions of their own.)
"""

import numpy as np

from .. import program
from . import memory, panels
from .panel_tiles import Factors
from .panels import Panels, Stored

# What is a factor among the operands of a product, the first two, and whether terms are along its columns.
PRODUCTS = {
    "linear_forward": (True, False),
    "linear_backward_input": (True, True),
    "linear_backward_params": (False, False),
}
MAKES = {"linear_forward": 3, "linear_backward_input": 3}  # the operand that a product stores where it is a factor
NONE = 0, 0  # a start and rows where there is no factor


class StoredFactors:
    """The stored factors of a listing, in memory for up to ``capacity`` rows.

    Attributes
    ----------
    after : dict
        The number of an instruction -> the operands that are stored after it; -1: the input.
    """

    def __init__(self, lowered, listing, capacity):
        self.precision, self.capacity, self.instructions = lowered.precision, capacity, listing.decoded
        end = listing.phases[-1][2]
        read = {}  # (buffer, offset) -> the operand, and whether along and across
        for instruction in listing.decoded[:end]:
            for operand, along in zip(instruction.operands, PRODUCTS.get(instruction.operation, ()), strict=False):
                read.setdefault((operand.buffer, operand.offset), (operand, set()))[1].add(along)
        weights = {place: ways for place, (_, ways) in read.items() if place[0] == program.PARAMETERS}
        self.rows = {place: of for place, of in read.items() if place not in weights}
        written, self.after = program.last_writers(listing.decoded[:end]), {}
        for place, (operand, _) in self.rows.items():
            self.after.setdefault(written.get(place, -1), []).append(operand)
        self._place_rows()
        self._place_weights(lowered, weights)

    def _place_rows(self):
        self.memory = {}
        for place, (operand, ways) in self.rows.items():
            for along in ways:
                rows, terms = (self.capacity, operand.columns)[:: 1 if along else -1]
                self.memory[place, along] = memory.empty(panels.room(self.precision, rows, terms), np.int32)

    def _place_weights(self, lowered, weights):
        self.weights, end = {}, 0  # (offset, along) -> where the factor begins, and its rows
        for array in lowered.arrays:
            for along in weights.get((program.PARAMETERS, array.offset), ()):
                rows, terms = array.shape[:: 1 if along else -1]
                self.weights[array.offset, along] = end, panels.padded(rows)
                end += panels.room(self.precision, rows, terms)
        self.weight_memory = memory.empty(max(end, 1), np.int32)
        stored = {offset for _, offset in weights}
        self.all_weights = self.table([array for array in lowered.arrays if array.offset in stored], {})

    def table(self, arrays, gradients):
        """The `panels.table` of arrays."""
        return panels.table(arrays, gradients, self.weights)

    # ------------------------------------------------------------------------------ what a launch takes
    def _factor(self, operand, along, n):
        """An operand as a factor, of a batch of n rows."""
        if operand.buffer == program.PARAMETERS:
            return Panels(self.weight_memory, *self.weights[operand.offset, along])
        array = self.memory.get(((operand.buffer, operand.offset), along))
        if array is None:
            return Panels(self.weight_memory, *NONE)
        return Panels(array, 0, panels.padded(n if along else operand.columns))

    def _stored(self, operand, n):
        return Stored(self._factor(operand, True, n), self._factor(operand, False, n))

    def of(self, number, n):
        """The `panel_tiles.Factors` of an instruction, or None if it is no product."""
        instruction = self.instructions[number]
        ways = PRODUCTS.get(instruction.operation)
        if ways is None:
            return None
        a, b = (self._factor(operand, along, n) for operand, along in zip(instruction.operands, ways, strict=False))
        made = self._made(number)
        return Factors(a, b, None if made is None else self._stored(made, n))

    def _made(self, number):
        """The operand that an instruction stores itself; None if there is none."""
        instruction = self.instructions[number]
        if number < 0 or instruction.operation not in MAKES:
            return None
        made = instruction.operands[MAKES[instruction.operation]]
        return made if made in self.after.get(number, ()) else None

    # ------------------------------------------------------------------------------ launches
    def store(self, number, n, matrix_of, stream):
        """Launch the storing of what an instruction has made, unless it has done so; -1: of the input.

        ``matrix_of(operand)`` is an operand as a `Matrix`.
        """
        made = self._made(number)
        for operand in self.after.get(number, ()):
            if operand != made:
                panels.store(self.precision, n, operand.columns, matrix_of(operand), self._stored(operand, n), stream)

    def store_weights(self, values, stream):
        """Launch the storing of all weights that are factors, as they are."""
        panels.store_weights(self.precision, self.all_weights, values, self.weight_memory, stream)

    def update(self, optimizer, table, record, values, gradients, state, stream):
        """Launch `optimizers.update` of a `table`; it stores the new weights."""
        arrays = values, gradients, state, self.weight_memory
        panels.update(optimizer, self.precision, table, record, *arrays, stream)
