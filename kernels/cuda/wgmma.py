"""``C = beta C + A B`` by tensor cores and warpgroups (compute capability 9.0), where FASTBP_CUDA asks for it.

Both factors are stored in panels (panels.py), each along the terms, so NN, NT and TN are the same product. A panel of
128 rows takes 16 KB in every precision; shared memory holds some stages, each a panel of A and one of B, beside the
parts of C.

A block makes tiles of C, one after another. Of its three warpgroups the first copies: one thread starts a copy of a
panel of A and one of B, each as it lies, as soon as one of the places in shared memory is free. The two others have 64
rows of the tile each, multiply a panel when it has come, and say then that its place is free. An element is one chain
of instructions over its terms in their order; of the gradient of a weight as many as the parts that the terms are cut
into, added up in their order. What a product makes may be a factor of others: then it is stored in panels too, out of
the shared memory through which it goes to C. (The design is that of CUTLASS's "warp-specialised cooperative" kernels.)
"""

import threading
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from . import driver, memory, streams, warpgroup
from .asked import asked
from .blocking import CONSUMERS, GROUP, PANEL_TILES, VECTOR_BYTES, WARP, padded_columns, panel_plan
from .compiling import device_function, kernel, made_once
from .driver import cuda, types
from .gemm import Epilogue, finish_of, finisher, is_aligned, launch_sum
from .operands import FLOAT, INT, Finish, Matrix, at, matrix, type_of
from .panels import FORMS, PANELS, ROW, Panels, Stored, padded, panels_of, room, store, storing
from .ptx import vector_access
from .warpgroup import BARRIER, ROWS, WARPGROUP, WORD_BYTES

NAME = "wgmma"
CAPABILITY = (9, 0)
BM = CONSUMERS * ROWS  # of every tile
THREADS = (1 + CONSUMERS) * WARPGROUP
# Of 65536 registers a thread has 168 at first; those that copy give most of theirs to those that hold 128 sums.
FEW_REGISTERS, MANY_REGISTERS = 40, 232
PART = 64  # columns of C that a warp takes at a time to shared memory, for its 16 rows
PART_SIZE = 16 * PART
int32, int64, uint32 = types.int32, types.int64, types.uint32


class Places:
    """What lies where in shared memory, in elements of 4 bytes: the stages, a part of C for each warp, barriers."""

    def __init__(self, tile):
        self.a_size, self.b_size = BM * ROW, tile.bn * ROW
        self.stage_size = self.a_size + self.b_size
        self.parts = tile.stages * self.stage_size
        self.full = self.parts + CONSUMERS * WARPGROUP // WARP * PART_SIZE  # a stage: its panels have come
        self.free = self.full + tile.stages * BARRIER  # a stage: its panels have been multiplied
        self.bytes = (self.free + tile.stages * BARRIER) * WORD_BYTES


class Shape(NamedTuple):
    """Of a product: C is (m, n), of ``panels`` of terms, cut into ``parts`` of ``each``; the last may have fewer."""

    m: int
    n: int
    panels: int
    parts: int
    each: int


class Factors(NamedTuple):
    """The stored factors of a product, and what it makes as those that it may be; None if it is none."""

    a: Panels
    b: Panels
    made: Stored | None = None


def chosen(precision, dtype) -> bool:
    """Whether products of this precision are made here: asked for, and the GPU has the instructions."""
    here = precision in FORMS and dtype == np.float32 and asked(NAME)
    return here and driver.compute_capability() == CAPABILITY


# ----------------------------------------------------------------------------------- who copies, who multiplies
@cache
def order_of_tiles(bn):
    """Two device functions: how many tiles a product has, in all parts; and where one of them is.

    ``place(number, shape)`` is the part, and the row and column in tiles: part by part, `GROUP` rows together, column
    by column. Divisions of 64 bits, which ``range`` has too, would be calls, beside which the assembler serialises.
    """

    @device_function
    def of_part(shape):
        return uint32((shape.m + BM - 1) // BM), uint32((shape.n + bn - 1) // bn)

    @device_function
    def count(shape):
        tiles_m, tiles_n = of_part(shape)
        return int64(tiles_m) * int64(tiles_n) * shape.parts

    @device_function
    def place(number, shape):
        tiles_m, tiles_n = of_part(shape)
        group, tiles = uint32(GROUP), uint32(tiles_m * tiles_n)
        part, number = uint32(uint32(number) // tiles), uint32(uint32(number) % tiles)
        size = uint32(group * tiles_n)
        first = uint32(number // size * group)
        inside, rows = uint32(number % size), min(group, uint32(tiles_m - first))
        return int64(part), int64(first + inside % rows), int64(inside // rows)

    return count, place


@device_function
def panels_of_part(part, shape):
    """The first panel of a part, and how many it has."""
    first = part * shape.each
    return first, min(shape.each, shape.panels - first)


@device_function
def wait_until_over(shared, barrier, parity):
    """Wait until the phase of a barrier that has this parity is over."""
    while warpgroup.is_over(shared, barrier, parity) == 0:
        pass


@device_function
def place_in_part(row, column):
    """Where an element of C is in the part that a warp writes."""
    return int32(row * PART + (column // 8 ^ row % 8) * 8 + column % 8)


@cache
def part_of_sums(columns):
    """A device function that puts part ``part`` of the ``columns`` of a warp's sums into shared memory.

    Rows of `PART` elements; their groups of 8 are turned by the row, so that no two threads that store or load together
    meet in a bank: see `place_in_part`. Registers have no addresses, so each part has a function.
    """
    _, store = vector_access(2)

    def with_part(p, before):
        @device_function
        def put(acc, part_of_warp, start, lane, part):
            if part == p:
                for j in range(PART // 8):
                    for h in range(2):
                        to = start + place_in_part(lane // 4 + 8 * h, 8 * j + lane % 4 * 2)
                        store(part_of_warp, to, acc, (p * PART // 8 + j) * 4 + 2 * h)
            else:
                before(acc, part_of_warp, start, lane, part)

        return put

    @device_function
    def function(acc, part_of_warp, start, lane, part):
        pass

    for p in range(columns // PART):
        function = with_part(p, function)
    return function


@made_once
def product_kernel(precision, epilogue, tile=PANEL_TILES[0], vectors=True, stores=False):
    """The kernel of a product of stored factors.

    Parameters
    ----------
    precision : "tf32", "bf16" or "bf16x3"
    epilogue : str
        The name of a `gemm.Epilogue`.
    tile : blocking.PanelTile
    vectors : bool
        Whether C and what the epilogue reads allow 16-byte accesses.
    stores : bool
        Whether C is stored as a factor, too.
    """
    form, places, stages, bn = FORMS[precision], Places(tile), tile.stages, tile.bn
    full, free, b_at, stage_size = places.full, places.free, places.a_size, places.stage_size
    a_bytes, b_bytes, parts_at = places.a_size * WORD_BYTES, places.b_size * WORD_BYTES, places.parts
    count_tiles, place_tile = order_of_tiles(bn)
    multiply = warpgroup.multiply_panel(bn, form.kind, form.products)
    give, take = warpgroup.limit_registers("dec", FEW_REGISTERS), warpgroup.limit_registers("inc", MANY_REGISTERS)
    make_barrier, show_barriers, copy_panel = warpgroup.make_barrier, warpgroup.show_barriers, warpgroup.copy_panel
    arrive, announce = warpgroup.arrive, warpgroup.announce
    put_part = part_of_sums(bn)
    width = 4
    chunks = PART // width
    load, put = vector_access(width)
    finish = finisher(epilogue, types.float32, width, vectors)
    store_part = storing(precision, 16, PART, place_in_part, WARP)
    sums = bn // 2

    @device_function
    def next_stage(stage, parity):
        """The stage after this one, and the parity of the phase that its barriers are in then."""
        stage = int32(stage + 1)
        if stage == stages:
            return int32(0), int32(parity ^ 1)
        return stage, parity

    @device_function
    def copy_all(shared, shape, a, b):
        """What the one thread does that copies."""
        stage, parity = int32(0), int32(1)  # of a new barrier the phase before is over: every place is free
        number, tiles = int64(cuda.blockIdx.x), count_tiles(shape)
        while number < tiles:
            part, tile_row, tile_column = place_tile(number, shape)
            first, panels = panels_of_part(part, shape)
            a_panel = a.start + (first * a.rows + tile_row * BM) * ROW
            b_panel = b.start + (first * b.rows + tile_column * bn) * ROW
            for _ in range(panels):
                wait_until_over(shared, free + stage * BARRIER, parity)
                to, come = stage * stage_size, full + stage * BARRIER
                announce(shared, come, int32(a_bytes + b_bytes))
                copy_panel(shared, to, a.data, a_panel, int32(a_bytes), come)
                copy_panel(shared, to + b_at, b.data, b_panel, int32(b_bytes), come)
                a_panel += a.rows * ROW
                b_panel += b.rows * ROW
                stage, parity = next_stage(stage, parity)
            number += cuda.gridDim.x

    @device_function
    def multiply_all(shared, shape, c, after, stored):
        """What a warpgroup does that multiplies."""
        part_of_warp = cuda.shared.array(0, types.float32)
        acc = cuda.local.array(sums, types.float32)
        z = cuda.local.array(width, types.float32)
        m, n = shape.m, shape.n
        thread = int32(cuda.threadIdx.x)
        lane, warp = int32(thread % WARP), int32(thread // WARP - WARPGROUP // WARP)  # of those that multiply
        own_rows = warp // (WARPGROUP // WARP) * ROWS * ROW  # where the warpgroup's rows of A begin
        own_part = parts_at + warp * PART_SIZE
        stage, parity = int32(0), int32(0)
        number, tiles = int64(cuda.blockIdx.x), count_tiles(shape)
        while number < tiles:
            for e in range(sums):
                acc[e] = types.float32(0)
            part_of_terms, tile_row, tile_column = place_tile(number, shape)
            _, panels = panels_of_part(part_of_terms, shape)
            for _ in range(panels):
                wait_until_over(shared, full + stage * BARRIER, parity)
                cuda.syncwarp()  # who waits in a loop may come out of it alone
                begin = stage * stage_size
                multiply(acc, shared, begin + own_rows, begin + b_at)
                if lane == 0:
                    arrive(shared, free + stage * BARRIER)
                stage, parity = next_stage(stage, parity)
            to = Matrix(c.data, at(c, part_of_terms * m, 0), c.ld)
            first_row, first_column = tile_row * BM + warp * 16, tile_column * bn
            for part in range(bn // PART):
                cuda.syncwarp()
                put_part(acc, part_of_warp, own_part, lane, part)
                cuda.syncwarp()
                for chunk in range(lane, 16 * chunks, WARP):
                    row, column = chunk // chunks, chunk % chunks * width
                    place = own_part + place_in_part(row, column)
                    load(z, 0, part_of_warp, place)
                    r, s = first_row + row, first_column + part * PART + column
                    if r < m and s < n:
                        finish(z, r, s, n, to, after)
                    if stores:
                        for e in range(width):
                            if r >= m or s + e >= n:
                                z[e] = types.float32(0)
                        put(part_of_warp, place, z, 0)
                if stores:
                    cuda.syncwarp()
                    store_part(lane, part_of_warp, own_part, first_row, first_column + part * PART, m, n, stored)
            number += cuda.gridDim.x

    def product_kernel(shape, a, b, c, after, stored):
        shared = cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        if thread == 0:
            for stage in range(stages):
                make_barrier(shared, full + stage * BARRIER, int32(1))
                make_barrier(shared, free + stage * BARRIER, int32(CONSUMERS * WARPGROUP // WARP))
            show_barriers()
        cuda.syncthreads()
        if thread < WARPGROUP:
            give()
            if thread == 0:
                copy_all(shared, shape, a, b)
        else:
            take()
            multiply_all(shared, shape, c, after, stored)

    stored = "_stores" if stores else ""
    product_kernel.__qualname__ = f"wgmma_{precision}_{tile.name}_{epilogue.replace(':', '_')}{stored}"
    operand = matrix(np.float32)
    after, shape = type_of(Finish, INT, operand, INT, FLOAT, operand), type_of(Shape, INT, INT, INT, INT, INT)
    signature = shape, PANELS, PANELS, operand, after, type_of(Stored, PANELS, PANELS)
    return kernel(*signature, threads=THREADS, blocks=1, shared=places.bytes, whole=True)(product_kernel)


def kernels(precision, epilogue):
    """The products with an epilogue: by each tile, and as it is or stored."""
    for tile, vectors, stores in product(PANEL_TILES, (True, False), (False, True)):
        yield product_kernel(precision, epilogue, tile, vectors, stores)


# --------------------------------------------------------------------------------------------- launcher
_rooms, _launching = {}, threading.Lock()  # stream, factor, size -> memory for its panels


def _room(factor, size):
    """Memory of at least so many elements, the same for all products of a stream; kept, for captured graphs have it."""
    key = streams.stream(), factor, 1 << max(size - 1, 0).bit_length()
    if key not in _rooms:
        _rooms[key] = memory.empty(key[2], np.int32)
    return _rooms[key]


def _stored(factor, precision, rows, terms, x, along, stream):
    """Store a factor of a product for it alone; ``along`` as in `panels.Stored`."""
    panels = Panels(_room(factor, room(precision, rows, terms)), 0, padded(rows))
    none = panels._replace(rows=0)
    size, stored = ((rows, terms), Stored(panels, none)) if along else ((terms, rows), Stored(none, panels))
    store(precision, *size, x, stored, stream)
    return panels


def gemm(
    trans, shape, a, b, c, stream, epilogue=Epilogue(), precision="bf16", plan=None, parts=None, columns=None,  # noqa: B008
    factors=None,
):  # fmt: skip
    """`gemm.gemm` of a precision of `FORMS`, of stored ``factors``.

    Without them two launches store A and B first. All products of a stream have one place for these, as a product
    follows its factors there.

    Parameters
    ----------
    plan : blocking.PanelPlan, optional
    factors : Factors, optional
    """
    m, n, k = shape
    if m == 0 or n == 0:
        return False
    if factors is None:
        with _launching:
            a_stored = _stored("a", precision, m, k, a, trans != "TN", stream)
            b_stored = _stored("b", precision, n, k, b, trans == "NT", stream)
            factors = Factors(a_stored, b_stored)
            return gemm(trans, shape, a, b, c, stream, epilogue, precision, plan, parts, columns, factors)
    if plan is None:
        form, cut = FORMS[precision], trans == "TN" and parts is not None
        plan = panel_plan(shape, cut, form.terms, len(form.products), driver.multiprocessors())
    if plan.parts > 1:
        sums = Matrix(parts, 0, padded_columns(n))
        _launch(shape, factors, sums, stream, Epilogue(), precision, plan)
        launch_sum(plan.parts, m, n, epilogue.beta, sums, c, columns, stream)
    else:
        _launch(shape, factors, c, stream, epilogue, precision, plan)
    return plan.parts > 1


def _launch(shape, factors, c, stream, epilogue, precision, plan):
    """Launch the kernel of a product."""
    (m, n, k), tile, after = shape, plan.tile, finish_of(c, epilogue)
    vectors = all(is_aligned(operand, VECTOR_BYTES // 4) for operand in (c, after.saved, after.bias))
    made = factors.made or Stored(factors.a._replace(rows=0), factors.a._replace(rows=0))
    grid = min(-(-m // BM) * -(-n // tile.bn) * plan.parts, driver.multiprocessors())
    kernel = product_kernel(precision, epilogue.name, tile, vectors, factors.made is not None)
    of = Shape(m, n, panels_of(precision, k), plan.parts, plan.each)
    kernel[grid, THREADS, stream](of, factors.a, factors.b, c, after, made)
