"""Products of stored factors by warpgroups: ``wgmma``, of compute capability 9.0.

Shared memory holds some stages, each a panel of A and one of B, beside parts of C. A block makes tiles one after
another. Of its three warpgroups the first copies: one thread starts a copy of a panel of A and one of B, each as it
lies, as soon as one of the places in shared memory is free. The two others have 64 rows of the tile each, multiply a
panel when it has come, and say then that its place is free. An element is one chain of instructions over its terms in
their order. (The design is that of CUTLASS's "warp-specialised cooperative" kernels.)

Two blocks of a cluster may make a tile of twice the rows together, each half of them. Their panel of B is the same:
each block copies half of it into the shared memory of both, as soon as the place is free in both. So a warp tells both
blocks when it has multiplied a panel, and the blocks wait for each other before they end.
"""

from . import ptx, warpgroup
from .blocking import CONSUMERS, PANEL_TILES, WARP
from .compiling import Clusters, device_function, made_once
from .driver import cuda, types
from .operands import Matrix, at
from .panel_tiles import PART_ROWS, SHARED_ALIGNMENT, declared, finishing, order_of_tiles, panels_of_part
from .panels import FORMS, ROW
from .warpgroup import BARRIER, ROWS, WARPGROUP, WORD_BYTES

NAME = "wgmma"
CAPABILITY = (9, 0)
TILES = PANEL_TILES
BM = CONSUMERS * ROWS  # rows that a block makes of every tile
WARPS = CONSUMERS * WARPGROUP // WARP  # that multiply
THREADS = (1 + CONSUMERS) * WARPGROUP
# Of 65536 registers a thread has 168 at first; those that copy give most of theirs to those that hold 128 sums.
FEW_REGISTERS, MANY_REGISTERS = 40, 232
PART = 64  # columns of C that a warp takes at a time to shared memory, for its `PART_ROWS` rows
int32, int64 = types.int32, types.int64


def runs_on(capability) -> bool:
    """Whether a GPU of this compute capability has the instructions."""
    return capability == CAPABILITY


def grid_of(kernel, tile, tiles, of_rest, multiprocessors):
    """The grid of a launch: blocks, or clusters of them, each of which goes from tile to tile."""
    count = min(tiles + -(-of_rest // tile.blocks), multiprocessors // tile.blocks)
    return count if tile.blocks == 1 else Clusters(count, tile.blocks, kernel.shared)


class Places:
    """What lies where in shared memory, in elements of 4 bytes: the stages, a part of C for each warp, barriers."""

    def __init__(self, tile):
        self.stages, self.a_size = tile.stages, BM * ROW
        self.stage_size = self.a_size + tile.bn * ROW
        self.parts = tile.stages * self.stage_size
        self.full = self.parts + WARPS * PART_ROWS * PART  # a stage: its panels have come
        self.free = self.full + tile.stages * BARRIER  # a stage: its panels have been multiplied
        self.bytes = (self.free + tile.stages * BARRIER) * WORD_BYTES


@device_function
def wait_until_over(shared, barrier, parity):
    """Wait until the phase of a barrier that has this parity is over."""
    while warpgroup.is_over(shared, barrier, parity) == 0:
        pass


def tile_maker(precision, epilogue, tile, places, vectors, stores, blocks):
    """What is done for a tile of C: device functions, by the thread that copies and by a warpgroup that multiplies.

    ``count(rows, shape)`` is how many tiles rows of C have. ``copy(shared, me, number, begin, end, shape, a, b, stage,
    parity)`` and ``multiply(..., c, after, stored, stage, parity)`` are for tile ``number`` of the rows from ``begin``
    to ``end``, and return the stage that is next and its parity; ``me`` is which of the ``blocks`` of the cluster does
    so. Another tile of the kernel has the same ``places``, and may be of one block by itself.
    """
    form, stages, together = FORMS[precision], places.stages, tile.blocks > 1
    full, free, b_at, stage_size = places.full, places.free, places.a_size, places.stage_size
    a_bytes, parts_at = places.a_size * WORD_BYTES, places.parts
    copy_panel, copy_for_all, announce = warpgroup.copy_panel(1), warpgroup.copy_panel(tile.blocks), warpgroup.announce
    arrive, arrive_at_block = warpgroup.arrive, warpgroup.arrive_at_block
    bn, own_columns = tile.bn, tile.bn // tile.blocks
    count, place = order_of_tiles(tile.bm, bn)
    b_bytes, own_b_bytes = bn * ROW * WORD_BYTES, own_columns * ROW * WORD_BYTES
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
    def leave(shared, barrier, lane, me):
        """A warp needs a place no more, and says so ``blocks`` times: to each block that copies there."""
        if blocks == 1:
            if lane == 0:
                arrive(shared, barrier)
        elif lane < blocks:
            arrive_at_block(shared, barrier, lane if together else me)

    @device_function
    def copy(shared, me, number, begin, end, shape, a, b, stage, parity):
        part, row, column = place(number, begin, end, shape)
        first, panels = panels_of_part(part, shape)
        own_b = b_at
        if together:
            row, column, own_b = row + me * BM, column + me * own_columns, own_b + me * (own_columns * ROW)
        a_panel = a.start + (first * a.rows + row) * ROW
        b_panel = b.start + (first * b.rows + column) * ROW
        for _ in range(panels):
            wait_until_over(shared, free + stage * BARRIER, parity)
            to, come = stage * stage_size, full + stage * BARRIER
            announce(shared, come, int32(a_bytes + b_bytes))
            copy_panel(shared, to, a.data, a_panel, int32(a_bytes), come)
            copy_for_all(shared, to + own_b, b.data, b_panel, int32(own_b_bytes), come)
            a_panel += a.rows * ROW
            b_panel += b.rows * ROW
            stage, parity = next_stage(stage, parity)
        return stage, parity

    @device_function
    def multiply(shared, me, number, begin, end, shape, c, after, stored, stage, parity):
        part_of_warp = cuda.shared.array(0, types.float32, SHARED_ALIGNMENT)
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
            leave(shared, free + stage * BARRIER, lane, me)
            stage, parity = next_stage(stage, parity)
        if together:
            row += me * BM
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
    places, stages, two, blocks = Places(tile), tile.stages, rest is not None, tile.blocks
    full, free = places.full, places.free
    give, take = warpgroup.limit_registers("dec", FEW_REGISTERS), warpgroup.limit_registers("inc", MANY_REGISTERS)
    make_barrier, show_barriers = warpgroup.make_barrier, warpgroup.show_barriers
    block_in_cluster, arrive, wait = ptx.block_in_cluster, ptx.cluster_arrive, ptx.cluster_wait
    count, copy, multiply = tile_maker(precision, epilogue, tile, places, vectors, stores, blocks)
    count_rest, copy_rest, multiply_rest = tile_maker(
        precision, epilogue, rest or tile, places, vectors, stores, blocks
    )

    @device_function
    def first_tile():
        """The number of the first tile of a block, or of its cluster, and how far it is to the next."""
        return int64(cuda.blockIdx.x) // blocks, int64(cuda.gridDim.x) // blocks

    @device_function
    def copy_all(shared, me, shape, a, b):
        """What the one thread does that copies."""
        stage, parity = int32(0), int32(1)  # of a new barrier the phase before is over: every place is free
        (number, step), tiles = first_tile(), count(shape.rows, shape)
        while number < tiles:
            stage, parity = copy(shared, me, number, 0, shape.rows, shape, a, b, stage, parity)
            number += step
        if two:
            number, begin, end = (number - tiles) * blocks + me, shape.rows, shape.m
            while number < count_rest(end - begin, shape):
                stage, parity = copy_rest(shared, me, number, begin, end, shape, a, b, stage, parity)
                number += step * blocks

    @device_function
    def multiply_all(shared, me, shape, c, after, stored):
        """What a warpgroup does that multiplies."""
        stage, parity = int32(0), int32(0)
        (number, step), tiles = first_tile(), count(shape.rows, shape)
        while number < tiles:
            stage, parity = multiply(shared, me, number, 0, shape.rows, shape, c, after, stored, stage, parity)
            number += step
        if two:
            number, begin, end = (number - tiles) * blocks + me, shape.rows, shape.m
            while number < count_rest(end - begin, shape):
                stage, parity = multiply_rest(shared, me, number, begin, end, shape, c, after, stored, stage, parity)
                number += step * blocks

    @device_function
    def meet():
        """All threads of the block, or of the cluster, wait for one another."""
        if blocks == 1:
            cuda.syncthreads()
        else:
            cuda.syncwarp()
            arrive()
            wait()

    @declared(NAME, precision, tile, rest, epilogue, stores, threads=THREADS, blocks=1, shared=places.bytes, whole=True)
    def product_kernel(shape, a, b, c, after, stored):
        shared = cuda.shared.array(0, int32, SHARED_ALIGNMENT)
        thread, me = cuda.threadIdx.x, block_in_cluster() if blocks > 1 else int32(0)
        if thread == 0:
            for stage in range(stages):
                make_barrier(shared, full + stage * BARRIER, int32(1))
                make_barrier(shared, free + stage * BARRIER, int32(blocks * WARPS))
            show_barriers()
        meet()
        if thread < WARPGROUP:
            give()
            if thread == 0:
                copy_all(shared, me, shape, a, b)
        else:
            take()
            multiply_all(shared, me, shape, c, after, stored)
        if blocks > 1:
            meet()

    return product_kernel
