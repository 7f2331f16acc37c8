"""Which factors of products are stored in the format of the unit that multiplies, where, and when.

Of ``"bf16"`` a factor is rounded to bfloat16, of ``"bf16x3"`` it is the sum of two such numbers, a high and a low part.
It is stored once, right after what makes it, not in a product: values and their gradients by an instruction after the
one that wrote them, in the same block of rows; weights by the walk, at the beginning of a call and after every update.
The unit that multiplies here is that of float32, so a stored part is a float32 number whose lower 16 bits are 0, laid
out as what it is made of.
"""

from typing import NamedTuple

from .. import contract, layout, program

UNIT = "float32"  # that multiplies, on every CPU; what sums and bits of bf16 and bf16x3 depend on
PARTS = {"ieee": 0, "bf16": 1, "bf16x3": 2}  # that are stored of a factor
STORE = "store_factor"  # the instruction that stores: operands x, high, low
OPERATIONS = (*program.OPERATIONS, STORE)
WEIGHT_FACTORS = len(program.BUFFERS)  # the code of the buffer: like the parameters; then the low parts
# What is a factor among the operands of a product: the first two.
PRODUCTS = ("linear_forward", "linear_backward_input", "linear_backward_params")


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
    """

    instructions: list
    phases: list
    activations: int
    gradients: int


def planned(lowered, listing) -> Plan:
    """The plan of a listing of a program; where nothing is rounded, the listing itself."""
    parts = PARTS[lowered.precision]
    if not parts:
        return Plan(listing.decoded, listing.phases, listing.width, listing.width)
    end = listing.phases[-1][2]
    stored = _Stored(lowered, listing, parts)
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
    return Plan(instructions, phases, stored.widths[program.ACTIVATIONS], stored.widths[program.GRADIENTS])


class _Stored:
    """The stored factors of a listing, by what they are made of."""

    def __init__(self, lowered, listing, parts):
        self.parts, self.size, self.itemsize = parts, lowered.size, lowered.itemsize
        self.widths = {program.ACTIVATIONS: listing.width, program.GRADIENTS: listing.width}
        self.factors = {}  # operand -> its parts

    def of(self, operand):
        """(high, low) of an operand, low None where there is none."""
        if operand not in self.factors:
            make = self._of_weight if operand.buffer == program.PARAMETERS else self._of_rows
            parts = [make(operand, part) for part in range(self.parts)]
            self.factors[operand] = parts[0], parts[1] if self.parts == 2 else None
        return self.factors[operand]

    def _of_weight(self, operand, part):
        return operand._replace(buffer=WEIGHT_FACTORS, offset=operand.offset + part * self.size)

    def _of_rows(self, operand, part):
        buffer = program.GRADIENTS if operand.buffer == program.GRADIENTS else program.ACTIVATIONS
        ld = layout.leading_dimension(operand.columns, self.itemsize)
        offset = self.widths[buffer]
        self.widths[buffer] += ld
        return program.Operand(buffer, offset, ld, operand.columns)

    def reading(self, instruction):
        """The instruction with stored factors for its own, if it is a product."""
        if instruction.operation not in PRODUCTS:
            return instruction
        own = len(contract.FUNCTIONS[instruction.operation].operands)
        first, second, *others = instruction.operands[:own]
        (high, low), (second_high, second_low) = self.of(first), self.of(second)
        more = [low, second_low] + [second] * (instruction.operation == "linear_backward_params")
        operands = [high, second_high, *others, *more]
        return instruction._replace(operands=(*operands, *[None] * (program.SLOTS - len(operands))))

    def after(self, instructions):
        """The instructions that store values and gradients, by the number of the last that writes one; -1: none."""
        written = {}
        for number, instruction in enumerate(instructions):
            declaration = contract.FUNCTIONS[instruction.operation]
            for name, operand in zip(declaration.operands, instruction.operands, strict=False):
                if operand is not None and name in declaration.writes:
                    written[operand.buffer, operand.offset] = number
        after = {}
        for operand, parts in self.factors.items():
            if operand.buffer != program.PARAMETERS:
                number = written.get((operand.buffer, operand.offset), -1)
                operands = (operand, *parts, *[None] * (program.SLOTS - 3))
                storing = program.Instruction(STORE, "identity", 0.0, "ieee", 0, operands)
                after.setdefault(number, []).append(storing)
        return after
