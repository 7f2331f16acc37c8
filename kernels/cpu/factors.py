"""Which factors of products are stored in the format of the unit that multiplies, where, and when.

Of ``"bf16"`` a factor is rounded to bfloat16, of ``"bf16x3"`` it is the sum of two such numbers, a high and a low part.
It is stored once, right after what makes it, not in a product: values and their gradients by an instruction after the
one that wrote them, in the same block of rows; weights by the walk, at the beginning of a call and after every update.
`formats` has the forms in which factors are stored: one for the unit of float32, four for those of bfloat16.
"""

from typing import NamedTuple

from .. import contract, layout, program
from . import formats, units

PARTS = {"ieee": 0, "bf16": 1, "bf16x3": 2}  # that are stored of a factor
STORE = "store_factor"  # the instruction that stores: operands x, high, low; its number is the form
OPERATIONS = (*program.OPERATIONS, STORE)
WEIGHT_FACTORS = len(program.BUFFERS)  # the code of the buffer: high parts of all weights, then low parts
# What is a factor among the operands of a product, the first two, and the forms that a unit of bfloat16 reads.
PRODUCTS = {
    "linear_forward": (formats.ROWS, formats.STACKED),
    "linear_backward_input": (formats.ROWS, formats.TURNED),
    "linear_backward_params": (formats.LINES, formats.PANELS),
}


class Plan(NamedTuple):
    """A listing whose products read stored factors.

    Attributes
    ----------
    instructions : list of program.Instruction
        Of a product the first two operands are high parts; behind its own operands it has the low ones, and of
        ``linear_backward_params`` the gradient as it is, of which columns are summed.
    phases : list
    activations, gradients : int
        Elements that a row of the batch needs in these buffers.
    weights : list of Stored
    weight_size : int
        Elements that one part of all weights takes.
    unit : str
        That multiplies, of `units.NAMES`.
    """

    instructions: list
    phases: list
    activations: int
    gradients: int
    weights: list
    weight_size: int
    unit: str

    @property
    def has_pairs(self) -> bool:
        """Whether the unit is one of bfloat16, so that factors are pairs (`pairs`)."""
        return self.unit != units.FLOAT32


class Stored(NamedTuple):
    """A weight, and its high parts by their form."""

    array: program.Array
    forms: dict  # form -> program.Operand


def forms_of(operation, unit):
    """The forms of the two factors of a product."""
    return (formats.PLAIN, formats.PLAIN) if unit == units.FLOAT32 else PRODUCTS[operation]


def planned(lowered, listing) -> Plan:
    """The plan of a listing of a program; where nothing is rounded, the listing itself."""
    parts = PARTS[lowered.precision]
    if not parts:
        return Plan(listing.decoded, listing.phases, listing.width, listing.width, [], 0, units.FLOAT32)
    end = listing.phases[-1][2]
    stored = _Stored(lowered, listing, parts, units.chosen())
    changed = [stored.reading(instruction) for instruction in listing.decoded[:end]]
    after = stored.after(listing.decoded[:end])
    instructions, phases = [], []
    for kind, first, last in listing.phases:
        begin = len(instructions)
        if first == 0:
            instructions += after.get(-1, [])
        for number in range(first, last):
            instructions += [changed[number], *after.get(number, [])]
        phases.append((kind, begin, len(instructions)))
    widths = stored.widths[program.ACTIVATIONS], stored.widths[program.GRADIENTS]
    return Plan(instructions, phases, *widths, list(stored.weights.values()), stored.weight_size, stored.unit)


class _Stored:
    """The stored factors of a listing, by what they are made of."""

    def __init__(self, lowered, listing, parts, unit):
        self.parts, self.itemsize, self.unit = parts, lowered.itemsize, unit
        self.widths = {program.ACTIVATIONS: listing.width, program.GRADIENTS: listing.width}
        self.factors = {}  # (operand, form) -> its parts
        self.weights = {}  # offset -> Stored
        used = [one for one in listing.decoded[: listing.phases[-1][2]] if one.operation == "linear_backward_input"]
        self.weight_size = self._place_weights(lowered, {instruction.operands[1].offset for instruction in used})

    def _place_weights(self, lowered, turned):
        """Say where weights lie, in panels or as among the parameters, ``turned`` both ways; how much a part takes."""
        end = 0
        for array in lowered.arrays:
            if len(array.shape) == 2:
                rows, columns = array.shape
                if self.unit == units.FLOAT32:
                    forms = {formats.PLAIN: program.Operand(WEIGHT_FACTORS, array.offset, array.ld, columns)}
                else:
                    forms = {}
                    for form in (formats.STACKED, *[formats.TURNED] * (array.offset in turned)):
                        ld, size = formats.room(form, rows, columns)
                        forms[form] = program.Operand(WEIGHT_FACTORS, end, ld, columns)
                        end += size
                self.weights[array.offset] = Stored(array, forms)
        return lowered.size if self.unit == units.FLOAT32 else end

    def of(self, operand, form):
        """(high, low) of an operand in a form, low None where there is none."""
        if (operand, form) not in self.factors:
            make = self._of_weight if operand.buffer == program.PARAMETERS else self._of_rows
            parts = [make(operand, form, part) for part in range(self.parts)]
            self.factors[operand, form] = parts[0], parts[1] if self.parts == 2 else None
        return self.factors[operand, form]

    def _of_weight(self, operand, form, part):
        high = self.weights[operand.offset].forms[form]
        return high._replace(offset=high.offset + part * self.weight_size)

    def _of_rows(self, operand, form, part):
        buffer = program.GRADIENTS if operand.buffer == program.GRADIENTS else program.ACTIVATIONS
        ld = layout.leading_dimension(operand.columns, self.itemsize)
        if form != formats.PLAIN:
            ld = formats.leading_dimension(operand.columns)
        offset = self.widths[buffer]
        self.widths[buffer] += ld
        return program.Operand(buffer, offset, ld, operand.columns)

    def reading(self, instruction):
        """The instruction with stored factors for its own, if it is a product."""
        if instruction.operation not in PRODUCTS:
            return instruction
        own = len(contract.FUNCTIONS[instruction.operation].operands)
        first, second, *others = instruction.operands[:own]
        forms = forms_of(instruction.operation, self.unit)
        (high, low), (second_high, second_low) = self.of(first, forms[0]), self.of(second, forms[1])
        more = [low, second_low] + [second] * (instruction.operation == "linear_backward_params")
        operands = [high, second_high, *others, *more]
        return instruction._replace(operands=(*operands, *[None] * (program.SLOTS - len(operands))))

    def after(self, instructions):
        """The instructions that store values and gradients, by the number of the last that writes one; -1: none."""
        written, after = program.last_writers(instructions), {}
        for (operand, form), parts in self.factors.items():
            if operand.buffer != program.PARAMETERS:
                number = written.get((operand.buffer, operand.offset), -1)
                operands = (operand, *parts, *[None] * (program.SLOTS - 3))
                storing = program.Instruction(STORE, "identity", 0.0, "ieee", form, operands)
                after.setdefault(number, []).append(storing)
        return after
