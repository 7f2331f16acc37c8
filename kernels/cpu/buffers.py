"""Sums over a whole parameter buffer, without what pads it."""

from .. import table
from ..jit import inline
from .simd import fma, lanes, load_converted, load_converted_first, sum_lanes, zeros

VECTORS = 4  # squares that are added side by side: an addition takes some cycles, a load half of one
WEIGHT, BIAS, FAN_IN, FAN_OUT, LD_OUT, COLUMNS = (
    table.WEIGHT, table.BIAS, table.FAN_IN, table.FAN_OUT, table.LD_OUT, table.COLUMNS
)  # fmt: skip


@inline
def squares(rows, columns, x, ldx, out):
    """The sum of the squares of ``rows x columns`` elements, in the dtype of ``out``."""
    if ldx == columns:
        columns, rows = rows * columns, 1
    width = lanes(out)
    whole = columns - columns % (VECTORS * width)
    total, rest = zeros(out, 1, VECTORS), zeros(out, 1, 1)
    for i in range(rows):
        row = x + i * ldx
        for j in range(0, whole, VECTORS * width):
            wide = load_converted(total, row + j)
            total = fma(wide, wide, total)
        for j in range(whole, columns, width):
            narrow = load_converted_first(rest, row + j, columns - j)
            rest = fma(narrow, narrow, rest)
    return sum_lanes(total) + sum_lanes(rest)


def squared_norm(rows, network, buffer, out):
    """`reference.squared_norm` into ``out[0]``; ``network`` is the table."""
    total = 0.0
    for r in range(rows):
        row = network + r * COLUMNS
        if row[WEIGHT] >= 0:
            total += squares(row[FAN_IN], row[FAN_OUT], buffer + row[WEIGHT], row[LD_OUT], out)
        if row[BIAS] >= 0:
            total += squares(1, row[FAN_OUT], buffer + row[BIAS], row[FAN_OUT], out)
    out[0] = total
