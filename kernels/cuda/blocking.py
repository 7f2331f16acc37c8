"""Every size that the products on a GPU use: the shape of a product and the GPU -> tiles of blocks, parts of its terms.

Which tile, or which two, and into how many parts the terms of a weight's gradient are cut, is what a model of a
product's time says is fastest. Its constants are arithmetic, or follow from products that were timed (docs/cuda.md).
"""

import itertools
from functools import cache
from typing import NamedTuple

WARP = 32
VECTOR_BYTES = 16  # the widest access to memory of a thread
SECTOR_BYTES = 32  # the least that is read of global memory at once


class Tile(NamedTuple):
    """A block of threads makes ``bm x bn`` elements of C, ``bk`` terms at a time.

    A block has ``warps_m x warps_n`` warps. A thread holds ``tm x tn`` elements in registers and adds up all the terms
    of each in their order, so every tile gives the same bits.
    """

    name: str
    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    warps_m: int
    warps_n: int
    blocks: int  # fit a multiprocessor at once, so a thread may use 65536 / (threads * blocks) registers
    stages: int = 2  # how many panels of A and of B there is room for in shared memory

    @property
    def threads(self) -> int:
        return WARP * self.warps

    @property
    def warp_m(self) -> int:
        """Rows of C that a warp makes."""
        return self.bm // self.warps_m

    @property
    def warp_n(self) -> int:
        return self.bn // self.warps_n

    @property
    def lanes_m(self) -> int:
        """How many threads of a warp lie along m."""
        return self.warp_m // self.tm

    @property
    def lanes_n(self) -> int:
        return self.warp_n // self.tn

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n


# By bytes of an element, the largest tile first. The larger a tile, the less it loads from global memory for each
# multiply-add; the larger the part of a thread, the less that reads from shared memory: 8 x 8 elements are 64
# multiply-adds for four loads of 16 bytes, and leave registers for two blocks of 256 threads, one of which computes
# while the other waits. `bk` is as many terms as make the main loop 5 to 10 KB of code, which fits the 12 KB of the
# innermost instruction cache. "medium" is for products that are too small to give every multiprocessor a large tile,
# "small" for those of small batches. No tile divides the terms of a sum among warps: its bits would depend on the tile.
# A float64 takes two registers, so there is no part of 8 x 8, and half as many blocks fit.
TILES = {
    4: (
        Tile("large", 128, 128, 8, 8, 8, 2, 4, 2),
        Tile("medium", 64, 64, 16, 8, 4, 2, 2, 4),
        Tile("small", 32, 32, 16, 4, 4, 1, 2, 8),
    ),
    8: (
        Tile("medium", 64, 64, 16, 8, 4, 2, 2, 2),
        Tile("small", 32, 32, 16, 4, 4, 1, 2, 4),
    ),
}
# Those of the tensor cores.
MATRIX_TILES = (
    Tile("large", 128, 128, 16, 8, 16, 2, 2, 2, 3),
    Tile("medium", 64, 64, 16, 4, 8, 2, 2, 4, 4),
    Tile("small", 32, 32, 16, 2, 4, 2, 2, 4, 8),
)
# Shared memory through which a tile is written to C: no more than the panels take, so that as many blocks fit.
EPILOGUE_BYTES = 24 * 1024
# So many rows of tiles are made together, column by column, so that their panels of A and B stay in the L2 cache.
GROUP = 8


def tiles_of(itemsize: int, precision: str) -> tuple[Tile, ...]:
    """The tiles that a product may take, the largest first."""
    return TILES[itemsize] if precision == "ieee" else MATRIX_TILES


# ---------------------------------------------------------------------------------------- a model of time
# In cycles of a multiprocessor.
SCHEDULERS = 4  # each issues an instruction of a warp in a cycle
LINE_BYTES = 128  # that shared memory moves in a cycle
LATENCY = 700  # from the request of a panel of global memory until it can be multiplied
BARRIER = 100  # until the warps of a block by itself multiply again
BLOCK = 1500  # before the first panel and after the last
LAUNCH = 4000  # of a kernel within a graph, 2 to 3 µs
PARTS_BYTES = 2000  # that all multiprocessors together move in a cycle, to and from memory or its cache
# What a panel takes beyond the instructions, or with tensor cores the accesses of shared memory, that are counted
# below: of the large tile at 4096 x 4096 x 4096 on an H200, before threads were paired (gemm.py). That of bf16x3, which
# no GPU has run yet, is a guess by its instructions.
SLACK = {"ieee": 1.17, "tf32": 2.2, "bf16": 1.42, "bf16x3": 2.5}
MOST_PARTS = 64  # that terms are cut into
LEAST_TERMS = 64  # of a part
TERMS_UNIT = 16  # parts begin at multiples of it: whole panels of every tile
PARTS_ELEMENTS = 1 << 21  # that all parts have together, at most: 8 MB of float32, which stay in the cache of memory


@cache
def cycles_of_panel(tile, itemsize, precision):
    """What a multiprocessor takes for a panel of a block, where other blocks fill the waits."""
    width = VECTOR_BYTES // itemsize
    panel_lines = (tile.bm + tile.bn) * tile.bk * itemsize / LINE_BYTES
    if precision == "ieee":
        loads = (tile.tm + tile.tn) // width * tile.bk
        accesses = (tile.bm + tile.bn) * tile.bk // (width * tile.threads)
        # float64 has half the units; 10 instructions for an access to memory and its store, 15 for the loop.
        issued = tile.tm * tile.tn * tile.bk * itemsize // 4 + loads + 10 * accesses + 15
        # A load has two passes; a line is stored in one and read in up to two, as rows of global memory are.
        passes = 2 * loads * tile.warps + 2.5 * panel_lines
        return SLACK[precision] * max(issued * tile.warps / SCHEDULERS, passes)
    return SLACK[precision] * (4 * (tile.tm + tile.tn // 2) * tile.warps + panel_lines)


class Plan(NamedTuple):
    """How a product is made."""

    tile: Tile
    parts: int  # that its terms are cut into, one after another
    terms: int  # of every part but the last, which may have fewer
    rest: Tile | None = None  # a smaller tile, for the rows of C after the first `rows`, whole tiles; else for none
    rows: int = 0


def blocks_of(plan, m, n):
    """How many blocks each tile of a plan has in a product of (m, n), for a part of its terms."""
    tile, rest, rows = plan.tile, plan.rest, plan.rows if plan.rest else m
    first = -(-rows // tile.bm) * -(-n // tile.bn)
    return first, -(-(m - rows) // rest.bm) * -(-n // rest.bn) if rest else 0


def predicted_cycles(plan, shape, itemsize, precision, multiprocessors):
    """How long a product takes.

    The busiest multiprocessor has its blocks in rounds of as many as fit it, those of the smaller tile last. In a round
    a panel takes as long as its blocks need it for, or as one block by itself waits.
    """
    (m, n, _), parts, fit = shape, plan.parts, plan.tile.blocks
    first, then = (-(-blocks * parts // multiprocessors) for blocks in blocks_of(plan, m, n))
    busy, alone = cycles_of_block(plan.tile, plan.terms, itemsize, precision)
    busy_then, alone_then = cycles_of_block(plan.rest or plan.tile, plan.terms, itemsize, precision)

    def round_of(resident, beside):
        if not resident + beside:
            return 0
        waits = max(alone if resident else 0, alone_then if beside else 0)
        return BLOCK + max(resident * busy + beside * busy_then, waits)

    full, left = divmod(first, fit)
    beside = min(then, fit - left) if left else 0
    full_then, left_then = divmod(then - beside, fit)
    cycles = LAUNCH + full * round_of(fit, 0) + round_of(left, beside)
    cycles += full_then * round_of(0, fit) + round_of(0, left_then)
    if parts > 1:  # are written, and read by the update, which is there anyway
        cycles += 2 * parts * m * n * itemsize / PARTS_BYTES
    return cycles


def cycles_of_block(tile, terms, itemsize, precision):
    """What a multiprocessor takes for the panels of a block: beside others that fill the waits, and alone."""
    panels, busy = -(-terms // tile.bk), cycles_of_panel(tile, itemsize, precision)
    return panels * busy, panels * (max(busy, LATENCY / (tile.stages - 1)) + BARRIER)


@cache
def plan_of(shape, cut, itemsize, precision, multiprocessors) -> Plan:
    """The fastest by the model; the terms are in one part unless ``cut``.

    A part has whole panels of every tile, so the tile changes no bit: without ``cut`` the GPU does not either.
    """
    k = shape[2]
    terms_of = {1: k}
    for parts in range(2, most_parts(shape) + 1 if cut else 2):
        terms = -(-k // (parts * TERMS_UNIT)) * TERMS_UNIT
        terms_of[-(-k // terms)] = terms
    tiles = tiles_of(itemsize, precision)
    plans = [Plan(tile, *of) for tile, of in itertools.product(tiles, terms_of.items())]
    if not cut:
        plans += [
            Plan(tile, 1, k, tiles[-1], rows)
            for tile in tiles[:-1]
            for rows in whole_rounds(tile, tile.blocks, shape, multiprocessors)
        ]
    return min(plans, key=lambda plan: predicted_cycles(plan, shape, itemsize, precision, multiprocessors))


def whole_rounds(tile, fewer, shape, multiprocessors):
    """Numbers of rows that give every multiprocessor as many tiles, or nearly: as many as there are, or some fewer."""
    m, n, _ = shape
    across = -(-n // tile.bn)
    most = -(-m // tile.bm) * across // multiprocessors
    for each in range(max(most - fewer, 1), most + 1):
        rows = each * multiprocessors // across * tile.bm
        if 0 < rows < m:
            yield rows


# ------------------------------------------------------------------------- products of stored factors
class PanelTile(NamedTuple):
    """A block makes ``bm x bn`` elements of C from stored panels (panels.py); or two do, half of the rows each.

    Each of the two copies its own rows of A, and half of the columns of B for both.
    """

    name: str
    bm: int
    bn: int
    stages: int  # panels of A and of B that shared memory holds
    rate: int  # elements of C that a multiprocessor makes a cycle, for the terms of an instruction
    blocks: int = 1  # of a cluster, that make it together


def with_smaller(tiles):
    """Pairs of a tile, and one of which a block makes fewer elements, for the rest of the rows."""
    pairs = itertools.combinations(tiles, 2)
    return [(tile, rest) for tile, rest in pairs if rest.bm * rest.bn * tile.blocks < tile.bm * tile.bn * rest.blocks]


# By warpgroups, `CONSUMERS` of which multiply (wgmma.py); by warps (mma.py).
CONSUMERS = 2
PANEL_TILES = (
    PanelTile("pair", 256, 256, 4, 128, 2), PanelTile("large", 128, 256, 4, 128),
    PanelTile("medium", 128, 128, 6, 128), PanelTile("small", 128, 64, 8, 128),
)  # fmt: skip
WARP_TILES = PanelTile("large", 128, 128, 3, 64), PanelTile("small", 64, 128, 4, 64)
UNITS, UNIT_BYTES = 8, VECTOR_BYTES  # of a row of a panel, and of a unit
# In a cycle: what all multiprocessors together, and one of them, get of panels out of the cache of memory. The first is
# what products by such tiles are known to reach on an H100 without copies for several blocks, 600 of 990 TFLOP/s.
CACHE_BYTES, COPY_BYTES = 4000, 64


class PanelPlan(NamedTuple):
    """How a product of stored factors is made."""

    tile: PanelTile
    parts: int  # that its panels are cut into, one after another
    each: int  # panels of every part but the last, which may have fewer
    rest: PanelTile | None = None  # a smaller tile, for the rows of C after the first `rows`; as in `Plan`
    rows: int = 0


@cache
def panel_plan(tiles, shape, cut, terms, instructions, multiprocessors) -> PanelPlan:
    """The fastest by a model, of panels of ``terms`` terms that take so many ``instructions``; see `plan_of`."""
    panels = -(-shape[2] // terms)
    each_of = {1: panels}
    for parts in range(2, min(most_parts(shape), panels) + 1 if cut else 2):
        each = -(-panels // parts)
        each_of[-(-panels // each)] = each
    plans = [PanelPlan(tile, *of) for tile, of in itertools.product(tiles, each_of.items())]
    if not cut:
        plans += [
            PanelPlan(tile, 1, panels, rest, rows)
            for tile, rest in with_smaller(tiles)
            for rows in whole_rounds(tile, 1, shape, multiprocessors // tile.blocks)
        ]
    return min(plans, key=lambda plan: cycles_of_panels(plan, shape, instructions, multiprocessors))


def cycles_of_panels(plan, shape, instructions, multiprocessors):
    """How long a product of stored factors takes: rounds of a tile for every multiprocessor, then those of the rest."""
    (m, n, _), (tile, parts, each, rest, rows) = shape, plan
    cycles, rows = LAUNCH, rows if rest else m
    for one, lines in ((tile, rows), (rest, m - rows)):
        if lines:
            tiles, fit = -(-lines // one.bm) * -(-n // one.bn) * parts, multiprocessors // one.blocks
            panel = cycles_of_stage(one, instructions, min(tiles, fit) * one.blocks)
            cycles += -(-tiles // fit) * (BLOCK + each * panel)
    return cycles + (2 * parts * m * n * 4 / PARTS_BYTES if parts > 1 else 0)


def cycles_of_stage(tile, instructions, busy):
    """What a panel of A and one of B take where so many multiprocessors are busy: the instructions, or the copies.

    What two blocks get of B leaves the cache of memory once.
    """
    rows, columns, row_bytes = tile.bm // tile.blocks, tile.bn, UNITS * UNIT_BYTES
    from_cache, come = (rows + columns / tile.blocks) * row_bytes, (rows + columns) * row_bytes
    return max(instructions * rows * columns / tile.rate, from_cache * busy / CACHE_BYTES, come / COPY_BYTES)


# ---------------------------------------------------------------------------------------------- parts
def most_parts(shape) -> int:
    """That the terms of a product may be cut into."""
    m, n, k = shape
    elements = max(m * padded_columns(n), 1)
    return max(min(MOST_PARTS, k // LEAST_TERMS, PARTS_ELEMENTS // elements), 1)


def padded_columns(n) -> int:
    """From one row of a part to the next: rows lie on 16-byte boundaries, in float32 and float64."""
    return -(-n // 4) * 4
