"""``C = beta C + A B`` by tensor cores and warpgroups (compute capability 9.0), where FASTBP_CUDA asks for it.

First each factor is rounded and stored in panels of 128 bytes a row, in the format of the instruction (a kernel of its
own, `pack_kernel`); both along k, so NN, NT and TN are the same product. Of bf16x3 a row has the high parts of 32
terms, then their low ones. So a panel of A and one of B take 48 KB in every precision, and shared memory holds `STAGES`
of each beside the parts of C.

A block makes tiles of 128 x 256 elements, one after another. Of its three warpgroups the first copies: one thread
starts a copy of a panel of A and one of B, each as it lies, as soon as one of the places in shared memory is free. The
two others have 64 rows of the tile each, multiply a panel when it has come, and say then that its place is free. An
element is one chain of instructions over its terms in their order. (The design is that of CUTLASS's "warp-specialised
cooperative" kernels.)
"""

import threading
from functools import cache
from typing import NamedTuple

import numpy as np

from . import compiling, driver, memory, streams, warpgroup
from .asked import asked
from .blocking import GROUP, VECTOR_BYTES, WARP
from .compiling import device_function, made_once
from .driver import cuda, types
from .gemm import Epilogue, finish_of, finisher, is_aligned
from .operands import FLOAT, INT, Finish, at, matrix, type_of
from .ptx import bf16_pair, vector_access
from .tensor_cores import low_pair, tf32_number
from .warpgroup import BARRIER, ROWS, STEP, TERMS, UNIT_BYTES, WARPGROUP, WORD_BYTES

NAME = "wgmma"
CAPABILITY = (9, 0)
CONSUMERS = 2  # warpgroups that multiply
BM, BN = CONSUMERS * ROWS, 256  # of a tile
UNITS = 8  # of `UNIT_BYTES`, of a row of a panel
STAGES = 4  # panels of A and of B that shared memory holds
THREADS = (1 + CONSUMERS) * WARPGROUP
# Of 65536 registers a thread has 168 at first; those that copy give most of theirs to those that hold 128 sums.
FEW_REGISTERS, MANY_REGISTERS = 40, 232

# Shared memory, in elements of 4 bytes: the stages, a part of C for each warp, barriers.
UNIT = UNIT_BYTES // WORD_BYTES
A_SIZE, B_SIZE = (extent * UNITS * UNIT for extent in (BM, BN))
STAGE_SIZE = A_SIZE + B_SIZE
PART = 64  # columns of C that a warp takes at a time to shared memory, for its 16 rows
PART_SIZE = 16 * PART
PARTS_AT = STAGES * STAGE_SIZE
FULL_AT = PARTS_AT + CONSUMERS * WARPGROUP // WARP * PART_SIZE  # a stage: its panels have come
FREE_AT = FULL_AT + STAGES * BARRIER  # a stage: its panels have been multiplied
SHARED_BYTES = (FREE_AT + STAGES * BARRIER) * 4
PACK_THREADS = 256
int32, int64, uint32 = types.int32, types.int64, types.uint32


class Form(NamedTuple):
    """How the panels of a precision are multiplied: every one has the same bytes, whatever its numbers."""

    kind: str  # of its numbers, as the instruction calls it
    products: tuple  # of steps of A and of B, in their order: see `warpgroup.multiply_panel`
    parts: int = 1  # that a factor is the sum of; those of a row lie one after another

    @property
    def each(self) -> int:
        """Numbers of a unit."""
        return TERMS[self.kind] // STEP

    @property
    def terms(self) -> int:
        """Of a panel."""
        return UNITS // self.parts * self.each


EACH = (0, 0), (1, 1), (2, 2), (3, 3)
# The same terms high by high, high by low, low by high, then the next: as in tensor_cores.py.
HIGH_AND_LOW = (0, 0), (0, 2), (2, 0), (1, 1), (1, 3), (3, 1)
FORMS = {"tf32": Form("tf32", EACH), "bf16": Form("bf16", EACH), "bf16x3": Form("bf16", HIGH_AND_LOW, 2)}


def chosen(precision, dtype) -> bool:
    """Whether products of this precision are made here: asked for, and the GPU has the instructions."""
    here = precision in FORMS and dtype == np.float32 and asked(NAME)
    return here and driver.compute_capability() == CAPABILITY


# --------------------------------------------------------------------------------------------- panels
@cache
def rounding(precision):
    """A device function: the numbers of a unit, rounded, as elements of 4 bytes; then what is left, of bf16x3."""

    @device_function
    def function(values, words):
        for word in range(UNIT):
            if precision == "tf32":
                words[word] = tf32_number(values[word])
            else:
                x, y = values[2 * word], values[2 * word + 1]
                words[word] = bf16_pair(x, y)
                if precision == "bf16x3":
                    words[UNIT + word] = low_pair(x, y, words[word])

    return function


@made_once
def pack_kernel(precision, extent, along_k):
    """Round a factor and store it in panels of ``extent`` rows, zeros for what does not exist.

    A factor has ``rows`` rows of ``terms`` terms; in memory the terms of a row touch (``along_k``), or the rows of a
    term do. Panels lie row of panels by row of panels. In a panel the first unit of all rows comes first.
    """
    form = FORMS[precision]
    each, panel_terms, parts = form.each, form.terms, form.parts
    held = parts * UNIT
    units = extent * UNITS // parts  # of a part of a panel
    round_unit = rounding(precision)
    _, store = vector_access(UNIT)

    def pack_kernel(rows, terms, source, panels, packed):
        values = cuda.local.array(each, types.float32)
        words = cuda.local.array(held, int32)
        thread = int64(cuda.threadIdx.x)
        for panel in range(int64(cuda.blockIdx.x), panels * ((rows + extent - 1) // extent), int64(cuda.gridDim.x)):
            first_row, first_term = panel // panels * extent, panel % panels * panel_terms
            for unit in range(thread, units, PACK_THREADS):
                row, term = first_row + unit % extent, first_term + unit // extent * each
                for e in range(each):
                    values[e] = types.float32(0)
                    if row < rows and term + e < terms:
                        if along_k:
                            values[e] = source.data[at(source, row, term + e)]
                        else:
                            values[e] = source.data[at(source, term + e, row)]
                round_unit(values, words)
                for part in range(parts):
                    store(packed, ((panel * parts + part) * units + unit) * UNIT, words, part * UNIT)

    pack_kernel.__qualname__ = f"wgmma_pack_{precision}_{extent}_{'along_k' if along_k else 'across_k'}"
    signature = INT, INT, matrix(np.float32), INT, compiling.vector(np.int32)
    return compiling.kernel(*signature, threads=PACK_THREADS)(pack_kernel)


def panels_of(precision, terms):
    """Panels along k."""
    return -(-terms // FORMS[precision].terms)


def packed_size(precision, extent, rows, terms):
    """Elements of int32 that the panels of a factor take."""
    return -(-rows // extent) * panels_of(precision, terms) * extent * UNITS * UNIT


def pack(precision, extent, along_k, rows, terms, source, packed, stream):
    """Launch it."""
    panels = panels_of(precision, terms)
    blocks, kernel = -(-rows // extent) * panels, pack_kernel(precision, extent, along_k)
    if blocks:
        kernel[blocks, PACK_THREADS, stream](rows, terms, source, panels, packed)


# ----------------------------------------------------------------------------------- who copies, who multiplies
@device_function
def tile_of(number, m, n):
    """The row and column of a tile, in tiles: `GROUP` rows together, column by column.

    Divisions of 64 bits, which ``range`` has too, would be calls, beside which the assembler serialises products.
    """
    tiles_m, tiles_n, group = uint32((m + BM - 1) // BM), uint32((n + BN - 1) // BN), uint32(GROUP)
    size = uint32(group * tiles_n)
    first = uint32(uint32(number) // size * group)
    inside, rows = uint32(uint32(number) % size), min(group, uint32(tiles_m - first))
    return int64(first + inside % rows), int64(inside // rows)


@device_function
def tiles_of(m, n):
    """How many tiles C has."""
    return (m + BM - 1) // BM * ((n + BN - 1) // BN)


@device_function
def next_stage(stage, parity):
    """The stage after this one, and the parity of the phase that its barriers are in then."""
    stage = int32(stage + 1)
    if stage == STAGES:
        return int32(0), int32(parity ^ 1)
    return stage, parity


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
def part_of_sums():
    """A device function that puts part ``part`` of the columns of a warp's sums into shared memory.

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

    for p in range(BN // PART):
        function = with_part(p, function)
    return function


@made_once
def product_kernel(precision, epilogue, vectors=True):
    """The kernel of a product of packed factors; ``epilogue`` as the name of a `gemm.Epilogue`.

    ``vectors`` tells whether C and what the epilogue reads allow 16-byte accesses.
    """
    form = FORMS[precision]
    multiply = warpgroup.multiply_panel(BM, BN, form.kind, form.products)
    give, take = warpgroup.limit_registers("dec", FEW_REGISTERS), warpgroup.limit_registers("inc", MANY_REGISTERS)
    make_barrier, show_barriers, copy_panel = warpgroup.make_barrier, warpgroup.show_barriers, warpgroup.copy_panel
    arrive, announce = warpgroup.arrive, warpgroup.announce
    put_part = part_of_sums()
    width = 4
    chunks = PART // width
    load, _ = vector_access(width)
    finish = finisher(epilogue, types.float32, width, vectors)
    sums = BN // 2

    @device_function
    def copy_all(shared, m, n, panels, a, b):
        """What the one thread does that copies."""
        stage, parity = int32(0), int32(1)  # of a new barrier the phase before is over: every place is free
        tile, tiles = int64(cuda.blockIdx.x), tiles_of(m, n)
        while tile < tiles:
            tile_row, tile_column = tile_of(tile, m, n)
            a_panel, b_panel = tile_row * panels * A_SIZE, tile_column * panels * B_SIZE
            for _ in range(panels):
                wait_until_over(shared, FREE_AT + stage * BARRIER, parity)
                to, full = stage * STAGE_SIZE, FULL_AT + stage * BARRIER
                announce(shared, full, int32(STAGE_SIZE * WORD_BYTES))
                copy_panel(shared, to, a, a_panel, int32(A_SIZE * WORD_BYTES), full)
                copy_panel(shared, to + A_SIZE, b, b_panel, int32(B_SIZE * WORD_BYTES), full)
                a_panel += A_SIZE
                b_panel += B_SIZE
                stage, parity = next_stage(stage, parity)
            tile += cuda.gridDim.x

    @device_function
    def multiply_all(shared, m, n, panels, c, after):
        """What a warpgroup does that multiplies."""
        part_of_warp = cuda.shared.array(0, types.float32)
        acc = cuda.local.array(sums, types.float32)
        z = cuda.local.array(width, types.float32)
        thread = int32(cuda.threadIdx.x)
        lane, warp = int32(thread % WARP), int32(thread // WARP - WARPGROUP // WARP)  # of those that multiply
        own_rows = warp // (WARPGROUP // WARP) * ROWS * UNIT  # where the warpgroup's rows of A begin
        own_part = PARTS_AT + warp * PART_SIZE
        stage, parity = int32(0), int32(0)
        tile, tiles = int64(cuda.blockIdx.x), tiles_of(m, n)
        while tile < tiles:
            for e in range(sums):
                acc[e] = types.float32(0)
            for _ in range(panels):
                wait_until_over(shared, FULL_AT + stage * BARRIER, parity)
                cuda.syncwarp()  # who waits in a loop may come out of it alone
                begin = stage * STAGE_SIZE
                multiply(acc, shared, begin + own_rows, begin + A_SIZE)
                if lane == 0:
                    arrive(shared, FREE_AT + stage * BARRIER)
                stage, parity = next_stage(stage, parity)
            tile_row, tile_column = tile_of(tile, m, n)
            first_row, first_column = tile_row * BM + warp * 16, tile_column * BN
            for part in range(BN // PART):
                cuda.syncwarp()
                put_part(acc, part_of_warp, own_part, lane, part)
                cuda.syncwarp()
                for chunk in range(lane, 16 * chunks, WARP):
                    row, column = chunk // chunks, chunk % chunks * width
                    load(z, 0, part_of_warp, own_part + place_in_part(row, column))
                    r, s = first_row + row, first_column + part * PART + column
                    if r < m and s < n:
                        finish(z, r, s, n, c, after)
            tile += cuda.gridDim.x

    def product_kernel(m, n, panels, a, b, c, after):
        shared = cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        if thread == 0:
            for stage in range(STAGES):
                make_barrier(shared, FULL_AT + stage * BARRIER, int32(1))
                make_barrier(shared, FREE_AT + stage * BARRIER, int32(CONSUMERS * WARPGROUP // WARP))
            show_barriers()
        cuda.syncthreads()
        if thread < WARPGROUP:
            give()
            if thread == 0:
                copy_all(shared, m, n, panels, a, b)
        else:
            take()
            multiply_all(shared, m, n, panels, c, after)

    product_kernel.__qualname__ = f"wgmma_{precision}_{epilogue.replace(':', '_')}"
    operand, packed = matrix(np.float32), compiling.vector(np.int32)
    after = type_of(Finish, INT, operand, INT, FLOAT, operand)
    signature = INT, INT, INT, packed, packed, operand, after
    return compiling.kernel(*signature, threads=THREADS, blocks=1, shared=SHARED_BYTES, whole=True)(product_kernel)


# --------------------------------------------------------------------------------------------- launcher
_rooms, _launching = {}, threading.Lock()  # stream, factor, size -> memory for its panels


def _room(factor, size):
    """Memory of at least so many elements, the same for all products of a stream; kept, for captured graphs have it."""
    key = streams.stream(), factor, 1 << max(size - 1, 0).bit_length()
    if key not in _rooms:
        _rooms[key] = memory.empty(key[2], np.int32)
    return _rooms[key]


def gemm(trans, shape, a, b, c, stream, epilogue=Epilogue(), *, precision):  # noqa: B008
    """`gemm.gemm` of a precision of `FORMS`: two launches store the factors, one multiplies them.

    All products of a stream have one place for their panels, as a product follows its factors there.
    """
    m, n, k = shape
    if m == 0 or n == 0:
        return
    after = finish_of(c, epilogue)
    vectors = all(is_aligned(operand, VECTOR_BYTES // 4) for operand in (c, after.saved, after.bias))
    tiles = -(-m // BM) * -(-n // BN)
    with _launching:
        a_packed, b_packed = _room("a", packed_size(precision, BM, m, k)), _room("b", packed_size(precision, BN, n, k))
        pack(precision, BM, trans != "TN", m, k, a, a_packed, stream)
        pack(precision, BN, trans == "NT", n, k, b, b_packed, stream)
        grid, kernel = min(tiles, driver.multiprocessors()), product_kernel(precision, epilogue.name, vectors)
        kernel[grid, THREADS, stream](m, n, panels_of(precision, k), a_packed, b_packed, c, after)
