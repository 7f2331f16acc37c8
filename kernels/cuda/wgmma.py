"""Products of stored factors by warpgroups: ``wgmma``, of compute capability 9.0.

Shared memory holds some stages, each a panel of A and one of B, beside parts of C. A block makes tiles one after
another. Of its three warpgroups the first copies: one thread starts a copy of a panel of A and one of B, each as it
lies, as soon as one of the places in shared memory is free. The two others have 64 rows of the tile each, multiply a
panel when it has come, and say then that its place is free. An element is one chain of instructions over its terms in
their order. (The design is that of CUTLASS's "warp-specialised cooperative" kernels.)
"""

from . import warpgroup
from .blocking import CONSUMERS, PANEL_TILES, WARP
from .compiling import device_function, made_once
from .driver import cuda, types
from .operands import Matrix, at
from .panel_tiles import PART_ROWS, declared, finishing, order_of_tiles, panels_of_part
from .panels import FORMS, ROW
from .warpgroup import BARRIER, ROWS, WARPGROUP, WORD_BYTES

NAME = "wgmma"
CAPABILITY = (9, 0)
TILES = PANEL_TILES
BM = CONSUMERS * ROWS  # of every tile
THREADS = (1 + CONSUMERS) * WARPGROUP
# Of 65536 registers a thread has 168 at first; those that copy give most of theirs to those that hold 128 sums.
FEW_REGISTERS, MANY_REGISTERS = 40, 232
PART = 64  # columns of C that a warp takes at a time to shared memory, for its `PART_ROWS` rows
int32, int64 = types.int32, types.int64


def runs_on(capability) -> bool:
    """Whether a GPU of this compute capability has the instructions."""
    return capability == CAPABILITY


def blocks_of(tiles, multiprocessors):
    """How many blocks there are for so many tiles: each goes from tile to tile."""
    return min(tiles, multiprocessors)


class Places:
    """What lies where in shared memory, in elements of 4 bytes: the stages, a part of C for each warp, barriers."""

    def __init__(self, tile):
        self.stages, self.a_size = tile.stages, BM * ROW
        self.stage_size = self.a_size + tile.bn * ROW
        self.parts = tile.stages * self.stage_size
        self.full = self.parts + CONSUMERS * WARPGROUP // WARP * PART_ROWS * PART  # a stage: its panels have come
        self.free = self.full + tile.stages * BARRIER  # a stage: its panels have been multiplied
        self.bytes = (self.free + tile.stages * BARRIER) * WORD_BYTES


@device_function
def wait_until_over(shared, barrier, parity):
    """Wait until the phase of a barrier that has this parity is over."""
    while warpgroup.is_over(shared, barrier, parity) == 0:
        pass


def tile_maker(precision, epilogue, tile, places, vectors, stores):
    """What is done for a tile of C: device functions, by the thread that copies and by a warpgroup that multiplies.

    ``count(rows, shape)`` is how many tiles rows of C have. ``copy(shared, number, begin, end, shape, a, b, stage,
    parity)`` and ``multiply(..., c, after, stored, stage, parity)`` are for tile ``number`` of the rows from ``begin``
    to ``end``, and return the stage that is next and its parity. Another tile of the kernel has the same ``places``.
    """
    form, stages = FORMS[precision], places.stages
    full, free, b_at, stage_size = places.full, places.free, places.a_size, places.stage_size
    a_bytes, parts_at = places.a_size * WORD_BYTES, places.parts
    copy_panel, arrive, announce = warpgroup.copy_panel, warpgroup.arrive, warpgroup.announce
    bn = tile.bn
    count, place = order_of_tiles(BM, bn)
    b_bytes = bn * ROW * WORD_BYTES
    multiply_panel = warpgroup.multiply_panel(bn, form.kind, form.products)
    way_out = finishing(precision, epilogue, bn // PART, PART, vectors, stores)
    finish, part_size, sums = way_out.finish, way_out.size, bn // 2

    @device_function
    def next_stage(stage, parity):
        """The stage after this one, and the parity of the phase that its barriers are in then."""
        stage = int32(stage + 1)
        if stage == stages:
            return int32(0), int32(parity ^ 1)
        return stage, parity

    @device_function
    def copy(shared, number, begin, end, shape, a, b, stage, parity):
        part, row, column = place(number, begin, end, shape)
        first, panels = panels_of_part(part, shape)
        a_panel = a.start + (first * a.rows + row) * ROW
        b_panel = b.start + (first * b.rows + column) * ROW
        for _ in range(panels):
            wait_until_over(shared, free + stage * BARRIER, parity)
            to, come = stage * stage_size, full + stage * BARRIER
            announce(shared, come, int32(a_bytes + b_bytes))
            copy_panel(shared, to, a.data, a_panel, int32(a_bytes), come)
            copy_panel(shared, to + b_at, b.data, b_panel, int32(b_bytes), come)
            a_panel += a.rows * ROW
            b_panel += b.rows * ROW
            stage, parity = next_stage(stage, parity)
        return stage, parity

    @device_function
    def multiply(shared, number, begin, end, shape, c, after, stored, stage, parity):
        part_of_warp = cuda.shared.array(0, types.float32)
        acc = cuda.local.array(sums, types.float32)
        thread = int32(cuda.threadIdx.x)
        lane, warp = int32(thread % WARP), int32(thread // WARP - WARPGROUP // WARP)  # of those that multiply
        own_rows = warp // (WARPGROUP // WARP) * ROWS * ROW  # where the warpgroup's rows of A begin
        part_of_terms, row, first_column = place(number, begin, end, shape)
        _, panels = panels_of_part(part_of_terms, shape)
        for e in range(sums):
            acc[e] = types.float32(0)
        for _ in range(panels):
            wait_until_over(shared, full + stage * BARRIER, parity)
            cuda.syncwarp()  # who waits in a loop may come out of it alone
            here = stage * stage_size
            multiply_panel(acc, shared, here + own_rows, here + b_at)
            if lane == 0:
                arrive(shared, free + stage * BARRIER)
            stage, parity = next_stage(stage, parity)
        to, row = Matrix(c.data, at(c, part_of_terms * shape.m, 0), c.ld), row + warp * PART_ROWS
        for part in range(bn // PART):
            column = first_column + part * PART
            own_part = parts_at + warp * part_size
            finish(acc, part_of_warp, own_part, lane, part, row, column, shape, to, after, stored)
        return stage, parity

    return count, copy, multiply


@made_once
def product_kernel(precision, epilogue, tile=TILES[0], vectors=True, stores=False, rest=None):
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
    rest : PanelTile, optional
        A smaller one, for the rows of C after the first `Shape.rows`.
    """
    places, stages, two = Places(tile), tile.stages, rest is not None
    full, free = places.full, places.free
    give, take = warpgroup.limit_registers("dec", FEW_REGISTERS), warpgroup.limit_registers("inc", MANY_REGISTERS)
    make_barrier, show_barriers = warpgroup.make_barrier, warpgroup.show_barriers
    count, copy, multiply = tile_maker(precision, epilogue, tile, places, vectors, stores)
    count_rest, copy_rest, multiply_rest = tile_maker(precision, epilogue, rest or tile, places, vectors, stores)

    @device_function
    def copy_all(shared, shape, a, b):
        """What the one thread does that copies."""
        stage, parity = int32(0), int32(1)  # of a new barrier the phase before is over: every place is free
        number, tiles = int64(cuda.blockIdx.x), count(shape.rows, shape)
        while number < tiles:
            stage, parity = copy(shared, number, 0, shape.rows, shape, a, b, stage, parity)
            number += cuda.gridDim.x
        if two:
            end = tiles + count_rest(shape.m - shape.rows, shape)
            while number < end:
                stage, parity = copy_rest(shared, number - tiles, shape.rows, shape.m, shape, a, b, stage, parity)
                number += cuda.gridDim.x

    @device_function
    def multiply_all(shared, shape, c, after, stored):
        """What a warpgroup does that multiplies."""
        stage, parity = int32(0), int32(0)
        number, tiles = int64(cuda.blockIdx.x), count(shape.rows, shape)
        while number < tiles:
            stage, parity = multiply(shared, number, 0, shape.rows, shape, c, after, stored, stage, parity)
            number += cuda.gridDim.x
        if two:
            end, begin = tiles + count_rest(shape.m - shape.rows, shape), shape.rows
            while number < end:
                of_rest = number - tiles
                stage, parity = multiply_rest(shared, of_rest, begin, shape.m, shape, c, after, stored, stage, parity)
                number += cuda.gridDim.x

    @declared(NAME, precision, tile, rest, epilogue, stores, threads=THREADS, blocks=1, shared=places.bytes, whole=True)
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

    return product_kernel
