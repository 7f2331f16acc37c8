"""The softmax of rows, and of it what the cross-entropies share.

Rows of more columns than lanes lie side by side, TALL at a time, a register of each in turn: the operations on one
vector wait for each other. Shorter rows are transposed, as many as lanes at a time, so that a lane is a row and none
idles. A row's bits do not depend on the rows beside it.
"""

from ..jit import inline
from .blocking import TALL
from .formulas import FORMULAS
from .simd import (
    lanes,
    load,
    load_corner,
    load_filled,
    max_across,
    maximum,
    square,
    store,
    store_corner,
    sum_across,
    transpose,
    zeros,
)

exp_of_nonpositive = FORMULAS["exp_of_nonpositive"]
MINUS_INFINITY = float("-inf")


# ------------------------------------------------------------------------------------- rows side by side
@inline
def largest_of(tile, columns, z, ldz):
    """The largest of each row that ``tile`` has, spread over its lanes; NaN at most where the row has one."""
    width = lanes(z)
    largest = load_filled(tile, z, ldz, columns, MINUS_INFINITY)
    for j in range(width, columns, width):
        largest = maximum(largest, load_filled(tile, z + j, ldz, columns - j, MINUS_INFINITY))
    return largest


@inline
def exponentials(tile, columns, z, ldz, shift, out, ldo):
    """``out = e^(z - shift)`` of the rows that ``tile`` has; their sums, spread over the lanes."""
    width, total = lanes(out), tile
    for j in range(0, columns, width):
        tail = columns - j
        e = exp_of_nonpositive(load_filled(tile, z + j, ldz, tail, MINUS_INFINITY) - shift)
        store(e, out + j, ldo, tail)
        total += e
    return total


@inline
def softmax_of_rows(tile, columns, z, ldz, out, ldo):
    """Of the rows that ``tile``, which is 0, has."""
    width = lanes(out)
    shift = max_across(largest_of(tile, columns, z, ldz))
    share = 1.0 / sum_across(exponentials(tile, columns, z, ldz, shift, out, ldo))
    for j in range(0, columns, width):
        store(load(tile, out + j, ldo, columns - j) * share, out + j, ldo, columns - j)


# -------------------------------------------------------------------------------------- a row in a lane
@inline
def rows_into_lanes(rows, columns, z, ldz, scratch):
    """The transpose, in a square of registers: row i of z in lane i, column j in vector j of ``scratch``."""
    corner = square(z)
    if rows == lanes(z):  # most are: one mask for all rows
        corner = load(corner, z, ldz, columns)
    else:
        corner = load_corner(corner, z, ldz, rows, columns)
    store(transpose(corner), scratch, lanes(z), None)


@inline
def lanes_into_rows(rows, columns, scratch, out, ldo):
    """The way back."""
    corner = transpose(load(square(out), scratch, lanes(out), None))
    if rows == lanes(out):
        store(corner, out, ldo, columns)
    else:
        store_corner(corner, out, ldo, rows, columns)


@inline
def softmax_of_lanes(columns, scratch):
    """In place."""
    width = lanes(scratch)
    shift = load(zeros(scratch, 1, 1), scratch, 0, None)
    for j in range(1, columns):
        shift = maximum(shift, load(shift, scratch + j * width, 0, None))
    total = zeros(scratch, 1, 1)
    for j in range(columns):
        e = exp_of_nonpositive(load(total, scratch + j * width, 0, None) - shift)
        store(e, scratch + j * width, 0, None)
        total += e
    share = 1.0 / total
    for j in range(columns):
        store(load(total, scratch + j * width, 0, None) * share, scratch + j * width, 0, None)


# ---------------------------------------------------------------------------------------------- kernel
def softmax(rows, columns, z, ldz, out, ldo, scratch):
    """`reference.softmax`; ``scratch`` has a square of registers."""
    width = lanes(out)
    if columns <= width:
        for i in range(0, rows, width):
            count = min(width, rows - i)
            rows_into_lanes(count, columns, z + i * ldz, ldz, scratch)
            softmax_of_lanes(columns, scratch)
            lanes_into_rows(count, columns, scratch, out + i * ldo, ldo)
    else:
        high = rows - rows % TALL
        for i in range(0, high, TALL):
            softmax_of_rows(zeros(out, TALL, 1), columns, z + i * ldz, ldz, out + i * ldo, ldo)
        for i in range(high, rows):
            softmax_of_rows(zeros(out, 1, 1), columns, z + i * ldz, 0, out + i * ldo, 0)
