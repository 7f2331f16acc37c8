"""Products of stored factors by warps: ``mma.sync``, of compute capability 8.0 and later.

A block copies panels of A and of B as they lie into shared memory, some panels before they are multiplied. A core
matrix there, 8 rows of 16 bytes that touch, is what ``ldmatrix`` hands out to the threads of a warp as the products
take it, and its rows meet in no bank. Nothing is rounded in the loop. An element is one chain of instructions over its
terms, in the order of wgmma.py.
"""

from functools import cache
from types import SimpleNamespace

from .blocking import UNITS, WARP, WARP_TILES
from .compiling import device_function, made_once, one_after_another, unrolled
from .driver import cuda, types
from .operands import Matrix, at
from .panel_tiles import PART_ROWS, SHARED_ALIGNMENT, declared, finishing, order_of_tiles, panels_of_part
from .panels import FORMS, ROW, UNIT
from .ptx import asynchronous_copy, commit_copies, load_matrices, matrix_multiply_add, wait_for_copies
from .warpgroup import CORE_ROWS, STEP, WORD_BYTES

NAME = "panels"
TILES = WARP_TILES
WARPS_M, WARPS_N = 2, 4
THREADS = WARP * WARPS_M * WARPS_N
STEPS = UNITS // STEP  # of a row of a panel
COLUMNS = 8  # of C that an instruction makes, for `PART_ROWS` rows
int32, int64 = types.int32, types.int64


def runs_on(capability) -> bool:
    """Whether a GPU of this compute capability has the instructions."""
    return capability >= (8, 0)


def grid_of(kernel, tile, tiles, of_rest, multiprocessors):
    """The grid of a launch: a block for each tile."""
    return tiles + of_rest


def runs_of(form):
    """The products of a panel, divided into runs that share their steps: one of A and of B for each part."""
    length = len(form.products) * form.parts // STEPS
    return [form.products[first : first + length] for first in range(0, len(form.products), length)]


def multiplying(form, blocks_m, blocks_n, products):
    """A device function that makes a run of products of a panel, one after another for every element of a warp.

    In ``multiply(acc, shared, a_read, b_read)`` a lane names the first row that it has for `load_matrices`.
    """
    parts = form.parts
    steps = sorted({step for pair in products for step in pair})
    first, last = steps[0], steps[-1]
    held_a, held_b = parts * blocks_m * 4, parts * blocks_n * 2
    # The registers of an instruction: of A rows 0 and 8 of a unit, then of the next unit; of B the units of a column.
    load_a, load_b = load_matrices((0, 2, 1, 3)), load_matrices((0, 1, 2, 3))
    multiply_add = matrix_multiply_add(form.kind, 1)

    def adding(of_a, of_b):
        from_a, from_b = steps.index(of_a) * blocks_m * 4, steps.index(of_b) * blocks_n * 2

        @device_function
        def add(acc, i, j, a, b):
            to, upper = (i * blocks_n + j) * 4, from_a + i * 4
            multiply_add(acc, to, to + 2, a, upper, upper + 2, b, from_b + j * 2)

        return add

    add = one_after_another([adding(*pair) for pair in products])

    @device_function
    def multiply(acc, shared, a_read, b_read):
        a, b = cuda.local.array(held_a, int32), cuda.local.array(held_b, int32)
        for part in range(parts):
            step = (first if part == 0 else last) * STEP * CORE_ROWS * UNIT
            for i in range(blocks_m):
                load_a(a, (part * blocks_m + i) * 4, shared, a_read + step + i * PART_ROWS * ROW)
            for j in range(0, blocks_n, 2):
                load_b(b, (part * blocks_n + j) * 2, shared, b_read + step + j * COLUMNS * ROW)
        for j in range(blocks_n):
            for i in range(blocks_m):
                add(acc, i, j, a, b)

    return multiply


@cache
def tile_maker(precision, epilogue, tile, vectors, stores):
    """How a block makes a tile of C: device functions, and the elements of shared memory that it needs.

    ``make(number, begin, end, shape, a, b, c, after, stored)`` makes tile ``number`` of the ``count(rows, shape)`` that
    the rows of C from ``begin`` to ``end`` have.
    """
    form, bm, bn, ahead = FORMS[precision], tile.bm, tile.bn, tile.stages - 1
    warp_m, warp_n = bm // WARPS_M, bn // WARPS_N
    blocks_m, blocks_n = warp_m // PART_ROWS, warp_n // COLUMNS
    a_size, stage_size = bm * ROW, (bm + bn) * ROW
    end = tile.stages * stage_size
    count, place = order_of_tiles(bm, bn)
    way_out = finishing(precision, epilogue, blocks_m, warp_n, vectors, stores)
    finish, part_size = way_out.finish, way_out.size
    assert THREADS // WARP * part_size <= end
    copy_unit, wait, wait_for_all = asynchronous_copy(UNIT), wait_for_copies(ahead - 1), wait_for_copies(0)
    multiply = one_after_another([multiplying(form, blocks_m, blocks_n, products) for products in runs_of(form)])
    sums = blocks_m * blocks_n * 4

    @device_function
    def copy_one(q, shared, to, thread, data, source):
        unit = (thread + q * THREADS) * UNIT
        copy_unit(shared, int32(to + unit), data, source + unit, int32(UNIT))

    copy_a, copy_b = (unrolled(extent * ROW // (UNIT * THREADS), copy_one) for extent in (bm, bn))

    @device_function
    def copy(shared, stage, thread, left, a, a_panel, b, b_panel):
        """Begin to copy a panel of A and one of B, if any are left; a group of copies in any case."""
        if left > 0:
            copy_a(0, shared, stage, thread, a.data, a_panel)
            copy_b(0, shared, int32(stage + a_size), thread, b.data, b_panel)
        commit_copies()

    @device_function
    def make(number, begin, stop, shape, a, b, c, after, stored):
        shared = cuda.shared.array(0, int32, SHARED_ALIGNMENT)
        memory = cuda.shared.array(0, types.float32, SHARED_ALIGNMENT)
        acc = cuda.local.array(sums, types.float32)
        part, tile_row, tile_column = place(number, begin, stop, shape)
        first, panels = panels_of_part(part, shape)
        thread = int32(cuda.threadIdx.x)
        lane, warp = thread % WARP, thread // WARP
        own_row, own_column = warp // WARPS_N * warp_m, warp % WARPS_N * warp_n
        a_panel = a.start + (first * a.rows + tile_row) * ROW
        b_panel = b.start + (first * b.rows + tile_column) * ROW
        for e in range(sums):
            acc[e] = types.float32(0)
        left, stage = int32(panels), int32(0)  # panels to be copied, and where to
        while stage < ahead * stage_size:
            copy(shared, stage, thread, left, a, a_panel, b, b_panel)
            a_panel += a.rows * ROW
            b_panel += b.rows * ROW
            left = int32(left - 1)
            stage = int32(stage + stage_size)
        matrix, line = lane // CORE_ROWS, lane % CORE_ROWS * UNIT  # whose row the lane names, of four
        one, other, read = matrix % 2, matrix // 2, int32(0)
        a_read = (own_row + one * CORE_ROWS) * ROW + other * CORE_ROWS * UNIT + line
        b_read = a_size + (own_column + other * COLUMNS) * ROW + one * CORE_ROWS * UNIT + line
        for _ in range(panels):
            wait()
            cuda.syncthreads()  # what all have copied is there, and what they multiplied last is free
            copy(shared, stage, thread, left, a, a_panel, b, b_panel)
            a_panel += a.rows * ROW
            b_panel += b.rows * ROW
            left = int32(left - 1)
            multiply(acc, shared, int32(read + a_read), int32(read + b_read))
            stage = read
            read = int32(read + stage_size)
            if read == end:
                read = int32(0)
        wait_for_all()
        cuda.syncthreads()  # then the place of panels is that of C
        to = Matrix(c.data, at(c, part * shape.m, 0), c.ld)
        row, column, start = tile_row + own_row, tile_column + own_column, warp * part_size
        for block in range(blocks_m):
            finish(acc, memory, start, lane, block, row + block * PART_ROWS, column, shape, to, after, stored)

    return SimpleNamespace(make=make, count=count, shared=end * WORD_BYTES)


@made_once
def product_kernel(precision, epilogue, tile=TILES[0], vectors=True, stores=False, rest=None):
    """The kernel of a product of stored factors; the arguments are those of `wgmma.product_kernel`."""
    of_tile, of_rest = (tile_maker(precision, epilogue, one, vectors, stores) for one in (tile, rest or tile))
    make, count, make_rest, two = of_tile.make, of_tile.count, of_rest.make, rest is not None
    shared = max(of_tile.shared, of_rest.shared)

    @declared(NAME, precision, tile, rest, epilogue, stores, threads=THREADS, blocks=1, shared=shared)
    def product_kernel(shape, a, b, c, after, stored):
        number = int64(cuda.blockIdx.x)
        if two:
            tiles = count(shape.rows, shape)
            if number < tiles:
                make(number, 0, shape.rows, shape, a, b, c, after, stored)
            else:
                make_rest(number - tiles, shape.rows, shape.m, shape, a, b, c, after, stored)
        else:
            make(number, 0, shape.m, shape, a, b, c, after, stored)

    return product_kernel
