"""The micro-kernel: a register tile of C that k rank-1 updates go through, and the ladder of tile heights.

Every element of C is one chain of fused multiply-adds in the order of k, whatever tile it falls into, so a
result has the same bits wherever the blocks and tails are.
"""

from ..jit import inline
from .blocking import MR, MR_TAIL, NV
from .operands import Factor, Finish, Matrix, Origin, Strided
from .simd import is_not_null, lanes, load, load_row, prefetch_row, rank_1, row_offsets, store, tall

# What a tile holds before the first update.
FROM_ZERO, FROM_OUTPUT, FROM_BIAS = 0, 1, 2
# Terms of a turn of the loop that most of the time goes to: what counts turns takes issue slots from multiply-adds
# where another thread has the other half of the core.
TURN = 4
SPLITS = 2 * MR_TAIL > MR  # whether two lower tiles take more rows than one of MR


@inline
def part_of(part, a, b, low, origin, finish):
    """Of the products that a product of factors with low parts consists of, one: its factors, origin and finish."""
    kind, kernel, left, right = origin.kind, finish.kernel, a.data, b.data
    if is_not_null(low.b):
        if part < 2:
            kernel = 0
        if part > 0:
            kind = FROM_OUTPUT
            if (part == 1) == (low.swapped != 0):
                left = low.a
            else:
                right = low.b
    return (
        Strided(left, a.ld, a.step), Factor(right, b.ld, b.transposed), Origin(kind, origin.bias),
        Finish(kernel, finish.other, finish.ld, finish.parameter),
    )  # fmt: skip


@inline
def parts_of(low):
    """How many products a product consists of."""
    return 3 if is_not_null(low.b) else 1


@inline
def update(tile, k, a, b, origin, c, columns, turns=None):
    """``C = origin + A B`` for one tile; unless ``turns`` is None, TURN terms are added in a turn of the loop."""
    if origin.kind == FROM_OUTPUT:
        tile = load(tile, c.data, c.ld, columns)
    elif origin.kind == FROM_BIAS:
        tile = load_row(tile, origin.bias, columns)
    offsets = row_offsets(tile, a.ld)
    left, right = a.data, b.data
    if turns is not None:
        for _ in range(k // TURN):
            for _ in range(TURN):
                tile = rank_1(tile, left, offsets, right, columns)
                left += a.step
                right += b.ld
        k %= TURN
    for _ in range(k):
        tile = rank_1(tile, left, offsets, right, columns)
        left += a.step
        right += b.ld
    store(tile, c.data, c.ld, columns)


@inline
def column_panel(row, m, k, a, apart, b, ask, origin, c, columns):
    """``C = origin + A B`` for m rows of a column panel as wide as ``row``, a tile of one row.

    From one MR rows of A to the next it is ``apart`` elements. Unless ``ask`` is None the panel is of the widest, which
    most of the time goes to: its code may be long, and before each tile it asks for a part of that block, which comes
    while the tiles are made.
    """
    rows, splits = 0, SPLITS and apart == MR * a.ld  # a strip ends after MR rows
    if ask is not None:
        asked, left = ask.data, ask.rows
        at_once = (left * MR + m - 1) // max(m, 1)
    while True:
        m -= rows
        a = Strided(a.data + (apart if rows == MR else rows * a.ld), a.ld, a.step)
        c = Matrix(c.data + rows * c.ld, c.ld)
        if ask is not None:
            for _ in range(min(at_once, left)):
                for j in range(0, ask.columns, NV * lanes(asked)):
                    prefetch_row(row, asked + j)
                asked += ask.ld
            left -= at_once
        if m >= MR and not (splits and 2 * MR_TAIL <= m < MR + MR_TAIL):
            rows = MR
            update(tall(row, MR), k, a, b, origin, c, columns, ask)
        elif m >= MR_TAIL:
            rows = MR_TAIL
            update(tall(row, MR_TAIL), k, a, b, origin, c, columns)
        elif m >= 2 and ask is not None:
            rows = 2
            update(tall(row, 2), k, a, b, origin, c, columns)
        elif m > 0:
            rows = 1
            update(tall(row, 1), k, a, b, origin, c, columns)
        else:
            break
