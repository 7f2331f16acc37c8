"""Sums over a whole parameter buffer, without what pads it."""

from ..jit import inline
from .simd import fma, lanes, load_converted, load_converted_first, sum_lanes, zeros

VECTORS = 4  # squares that are added side by side: an addition takes some cycles, a load half of one


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


def block_squares(rows, columns, x, ldx, out):
    """`squares` of a block into ``out[0]``."""
    out[0] = squares(rows, columns, x, ldx, out)


def squared_norm(count, places, buffer, out):
    """`reference.squared_norm` into ``out[0]``."""
    total = 0.0
    for i in range(count):
        place = places + 4 * i
        total += squares(place[1], place[2], buffer + place[0], place[3], out)
    out[0] = total
