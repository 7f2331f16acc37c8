"""What docs/architecture.md shows of the code itself: the program of a small network, and the contract's functions."""

import fastbp
from fastbp.kernels import contract, program

# The example of the page, which shows its text.
EXAMPLE = """fastbp.Sequential(
    fastbp.Linear(4, 8), fastbp.Tanh(),
    fastbp.BatchNorm1d(8),
    fastbp.Linear(8, 3),
)"""


class Named:
    """The program of a network, whose operands have names: those of its parameters, else buffer and offset."""

    def __init__(self, network):
        self.program, prefixes = network.program, network.prefixes
        self.names = {}
        for array in self.program.arrays:
            name = prefixes[array.row] + array.name
            self.names[program.PARAMETERS, array.offset] = name
            self.names[program.PARAMETER_GRADIENTS, array.offset] = f"∂{name}"
        for array in self.program.statistics:
            self.names[program.STATISTICS, array.offset] = prefixes[array.row] + array.name

    def operand(self, operand) -> str:
        if operand is None:
            return "none"
        buffer = program.BUFFERS[operand.buffer]
        place = operand.buffer, operand.offset
        if place in self.names:
            return self.names[place]
        many = operand.buffer in (program.ACTIVATIONS, program.GRADIENTS, program.REDUCTIONS)
        return f"{buffer}[{operand.offset}]" if many else buffer

    def touched(self, instruction) -> tuple[list[str], list[str]]:
        """What an instruction reads, and what it writes."""
        declaration = contract.FUNCTIONS[instruction.operation]
        there = dict(zip(declaration.operands, instruction.operands, strict=False))
        # a gradient of parameters is overwritten: it is read only where gradients accumulate
        reads = [name for name in declaration.reads if not (name in declaration.writes and name.startswith("grad_"))]
        sides = ([there[name] for name in names] for names in (reads, declaration.writes))
        reads, writes = ([self.operand(one) for one in side if one is not None] for side in sides)
        return list(dict.fromkeys(reads)), list(dict.fromkeys(writes))

    def line(self, number, instruction) -> str:
        reads, writes = self.touched(instruction)
        activation = f"  {instruction.activation}" if instruction.activation != "identity" else ""
        return f"{number:3}  {instruction.operation:<26}{', '.join(reads)} → {', '.join(writes)}{activation}"

    def phases(self, listing):
        """(name of the phase, (number, instruction) of each of its instructions) of all phases."""
        for kind, first, end in [*listing.phases, *listing.input_phases]:
            yield program.PHASES[kind], [(i, listing.decoded[i]) for i in range(first, end)]

    def text(self, listing) -> str:
        """A line an instruction, a heading a phase."""
        lines = []
        for phase, instructions in self.phases(listing):
            lines.append(phase)
            lines += [self.line(*instruction) for instruction in instructions]
        return "\n".join(lines)


def example() -> Named:
    """The program of the example."""
    return Named(eval(EXAMPLE, {"fastbp": fastbp}).network)


def fenced(text, language="text") -> str:
    return f"```{language}\n{text}\n```"


def operations() -> str:
    """A row for each operation of programs."""
    first_lines = {name: getattr(fastbp.kernels.reference, name).__doc__.splitlines()[0] for name in program.OPERATIONS}
    rows = []
    for name in program.OPERATIONS:
        declaration = contract.FUNCTIONS[name]
        meaning = first_lines[name].rstrip(".").replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{name}` | {meaning} | {' '.join(declaration.reads)} | {' '.join(declaration.writes)} |")
    return "\n".join(["| operation | meaning | reads | writes |", "| --- | --- | --- | --- |", *rows])


MADE = {
    "example-network": lambda: fenced(f"import fastbp\n\n{EXAMPLE}", "python"),
    "example-training": lambda: fenced(example().text(example().program.training)),
    "example-inference": lambda: fenced(example().text(example().program.inference)),
    "operations": operations,
}
