"""The micro-kernel: a register tile of C that k rank-1 updates go through, and the ladder of tile heights.

Every element of C is one chain of fused multiply-adds in the order of k, whatever tile it falls into, so a
result has the same bits wherever the blocks and tails are.
"""

from ..jit import inline
from .blocking import MR, MR_TAIL
from .operands import Matrix, Strided
from .simd import is_not_null, load, load_row, prefetch_row, rank_1, row_offsets, store, tall

# What a tile holds before the first update.
FROM_ZERO, FROM_OUTPUT, FROM_BIAS = 0, 1, 2
# Terms of a turn of the loop that most of the time goes to: what counts turns takes issue slots from multiply-adds
# where another thread has the other half of the core.
TURN = 4
SPLITS = 2 * MR_TAIL > MR  # whether two lower tiles take more rows than one of MR


@inline
def update(tile, k, a, b, ask, origin, c, columns, turns=None):
    """``C = origin + A B`` for one tile; asks for a row of ``ask`` with every term, unless that is None.

    Unless ``turns`` is None, TURN terms are added in a turn of the loop.
    """
    if origin.kind == FROM_OUTPUT:
        tile = load(tile, c.data, c.ld, columns)
    elif origin.kind == FROM_BIAS:
        tile = load_row(tile, origin.bias, columns)
    offsets = row_offsets(tile, a.ld)
    left, right = a.data, b.data
    if ask is not None:
        asked = ask.data
    if turns is not None:
        for _ in range(k // TURN):
            for _ in range(TURN):
                tile = rank_1(tile, left, offsets, right, columns)
                left += a.step
                right += b.ld
        k %= TURN
    for _ in range(k):
        if ask is not None:
            prefetch_row(tile, asked)
            asked += ask.ld
        tile = rank_1(tile, left, offsets, right, columns)
        left += a.step
        right += b.ld
    store(tile, c.data, c.ld, columns)


@inline
def column_panel(row, m, k, a, apart, b, ask, origin, c, columns, whole=None):
    """``C = origin + A B`` for m rows of a column panel as wide as ``row``, a tile of one row.

    From one MR rows of A to the next it is ``apart`` elements. The first tile asks for the k rows of ``ask``, unless
    that is None or lies nowhere. Unless ``whole`` is None the panel is of the widest, which most of the time goes to:
    its code may be long.
    """
    rows, splits = 0, SPLITS and apart == MR * a.ld  # a strip ends after MR rows
    if ask is not None:  # noqa: SIM102 - compiled only where there is something to ask for
        if is_not_null(ask.data) and m >= MR + MR_TAIL:
            rows = MR
            update(tall(row, MR), k, a, b, ask, origin, c, columns)
    while True:
        m -= rows
        a = Strided(a.data + (apart if rows == MR else rows * a.ld), a.ld, a.step)
        c = Matrix(c.data + rows * c.ld, c.ld)
        if m >= MR and not (splits and 2 * MR_TAIL <= m < MR + MR_TAIL):
            rows = MR
            update(tall(row, MR), k, a, b, None, origin, c, columns, whole)
        elif m >= MR_TAIL:
            rows = MR_TAIL
            update(tall(row, MR_TAIL), k, a, b, None, origin, c, columns)
        elif m >= 2 and whole is not None:
            rows = 2
            update(tall(row, 2), k, a, b, None, origin, c, columns)
        elif m > 0:
            rows = 1
            update(tall(row, 1), k, a, b, None, origin, c, columns)
        else:
            break
