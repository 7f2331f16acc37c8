"""``C = beta C + A B`` and its epilogues, for A and B as they lie or transposed: NN, NT and TN.

A block of threads makes a tile of C, of which each thread holds a part in registers. The block copies a panel of A and
a panel of B, ``bk`` terms of each, from global to shared memory, where both lie term by term; it fetches the next two
into registers while it multiplies these. Rows, columns and terms that do not exist cost the main loop nothing: for a
row or column beyond the last it reads the last again and never stores the result, and the last terms, filled up with
zeros, come after the loop. An element is one chain of multiply-adds in the order of its terms, whatever the tile; or
as many as the parts that the terms are cut into, added up in their order. (The blocking of CUTLASS and of S. Boehm,
"How to optimize a CUDA matmul kernel", 2022.)
"""

from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from ..layout import ACTIVATIONS, PRECISIONS, SAVES_PRE_ACTIVATION
from . import borrowing, driver
from .blocking import (
    EPILOGUE_BYTES,
    GROUP,
    SECTOR_BYTES,
    VECTOR_BYTES,
    WARP,
    blocks_of,
    plan_of,
    tiles_of,
)
from .compiling import device_function, kernel, made_once, unrolled
from .driver import cuda, types
from .elementwise import adding_parts
from .formulas import formulas
from .launch import THREADS as ELEMENT_THREADS
from .launch import for_each_element, multiprocessors, over_rows
from .operands import INT, SHAPE, Finish, Matrix, Shape, at, finish_type, matrix
from .ptx import thread_again, vector_access
from .tensor_cores import tensor_core_sums

TRANSPOSITIONS = ("NN", "NT", "TN")
# Elements between the rows of a panel that is turned, beyond their length: whether a thread stores one term of a row or
# 16 bytes of them, one after another, those of a warp go to a bank each.
TURNED_SPREAD = 4
ALIGNMENT = None if driver.simulated else VECTOR_BYTES  # the simulator's arrays have none
int32, int64 = types.int32, types.int64


# ---------------------------------------------------------------------------------------------- panels
@cache
def panel(extent, terms, along_k, width, threads, element, pitch, filler):
    """How a block copies a panel of A (or of B: read column for row) from global to shared memory.

    A panel has ``extent`` rows of ``terms`` terms. In global memory the terms of a row touch (``along_k``), or the
    rows of a term do; a thread reads ``width`` elements at once. In shared memory the panel lies term by term,
    ``pitch`` elements apart. ``filler`` stands for terms that do not exist. Returns device functions, which make
    ``units`` accesses a thread.
    """
    units = extent * terms // (width * threads)
    assert units * width * threads == extent * terms
    # Along k, neighbouring threads share a sector of a row and then go to the next row.
    together = min(SECTOR_BYTES * 8 // (width * element.bitwidth), terms // width)
    across = extent // width
    load, store = vector_access(width)
    load_one, store_one = vector_access(1)

    @device_function
    def row_of(unit):
        """The (first) row of an access within the panel."""
        if along_k:
            return unit // together % extent
        return unit % across * width

    @device_function
    def term_of(unit):
        """The (first) term of an access within the panel."""
        if along_k:
            return (unit % together + unit // (together * extent) * together) * width
        return unit // across

    @device_function
    def locate(positions, targets, thread, source, first, rows, start):
        """Find a thread's accesses in the first panel (those beyond the last row lie in it) and in shared memory."""
        last = (rows - 1) // width * width
        for q in range(units):
            row, term = row_of(thread + q * threads), term_of(thread + q * threads)
            if along_k:
                positions[q] = at(source, int64(min(first + row, rows - 1)), term)
            else:
                positions[q] = at(source, int64(term), min(first + row, last))
            targets[q] = int32(start + term * pitch + row)

    @device_function
    def fetch(registers, array, positions, step):
        """Read a whole panel, and move on to the next, ``step`` elements further."""
        for q in range(units):
            load(registers, q * width, array, positions[q])
            positions[q] += step

    @device_function
    def fetch_last(registers, array, positions, thread, left):
        """Read a panel of which only ``left`` terms exist."""
        for q in range(units):
            term = term_of(thread + q * threads)
            for e in range(width):
                registers[q * width + e] = element(filler)
            if along_k:
                for e in range(width):
                    if term + e < left:
                        load_one(registers, q * width + e, array, positions[q] + e)
            elif term < left:
                load(registers, q * width, array, positions[q])

    @device_function
    def put(registers, shared, targets, stage):
        for q in range(units):
            to = int32(stage + targets[q])
            if along_k:
                for e in range(width):
                    store_one(shared, to + e * pitch, registers, q * width + e)
            else:
                store(shared, to, registers, q * width)

    return SimpleNamespace(units=units, locate=locate, fetch=fetch, fetch_last=fetch_last, put=put)


# --------------------------------------------------------------------------------------- multiply-adds
@cache
def multiply(tile, element, pitch_a, pitch_b):
    """A device function that multiplies all terms in shared memory into the registers of a thread."""
    tm, tn = tile.tm, tile.tn
    width = VECTOR_BYTES * 8 // element.bitwidth
    stride_a, stride_b = width * tile.lanes_m, width * tile.lanes_n
    groups_a, groups_b = tm // width, tn // width
    load, _ = vector_access(width)

    @device_function
    def one(term, acc, shared, a, b):
        a_values = cuda.local.array(tm, element)
        b_values = cuda.local.array(tn, element)
        for g in range(groups_a):
            load(a_values, g * width, shared, a + term * pitch_a + g * stride_a)
        for g in range(groups_b):
            load(b_values, g * width, shared, b + term * pitch_b + g * stride_b)
        for i in range(tm):
            for j in range(tn):
                acc[i * tn + j] += a_values[i] * b_values[j]

    return unrolled(tile.bk, one)


@cache
def multiply_add_sums(trans, tile, element, vectors):
    """How a block makes the sums of its tile: a device function, the shared memory it needs, and a thread's elements.

    ``sums(acc, shared, first_row, first_column, m, n, k, a, b)`` leaves them in ``acc``, row by row, for the tile that
    begins at C's ``first_row`` and ``first_column``. ``grain_m`` of a thread's rows touch, and ``grain_n`` of its
    columns.
    """
    width = VECTOR_BYTES * 8 // element.bitwidth
    bm, bn, bk, threads = tile.bm, tile.bn, tile.bk, tile.threads
    lanes = paired_lanes(tile)
    place = thread_place(tile, width, width, lanes)
    held = tile.tm * tile.tn

    # A panel that is turned on its way is spread, so that the threads' stores meet in no bank.
    a_along_k, b_along_k = trans != "TN", trans == "NT"
    pitch_a, pitch_b = bm + TURNED_SPREAD * a_along_k, bn + TURNED_SPREAD * b_along_k
    access = width if vectors else 1
    # -0.0 * 0.0 added to a sum changes no bit of it; 0.0 would make 0.0 of -0.0.
    a_panel = panel(bm, bk, a_along_k, access, threads, element, pitch_a, -0.0)
    b_panel = panel(bn, bk, b_along_k, access, threads, element, pitch_b, 0.0)
    a_locate, a_fetch, a_fetch_last, a_put = a_panel.locate, a_panel.fetch, a_panel.fetch_last, a_panel.put
    b_locate, b_fetch, b_fetch_last, b_put = b_panel.locate, b_panel.fetch, b_panel.fetch_last, b_panel.put
    a_units, b_units = a_panel.units, b_panel.units
    a_held, b_held = a_units * access, b_units * access
    multiply_add = multiply(tile, element, pitch_a, pitch_b)
    a_size, stage_size = bk * pitch_a, bk * (pitch_a + pitch_b)

    @device_function
    def sums(acc, shared, first_row, first_column, m, n, k, a, b):
        a_registers = cuda.local.array(a_held, element)
        b_registers = cuda.local.array(b_held, element)
        a_positions = cuda.local.array(a_units, int64)
        b_positions = cuda.local.array(b_units, int64)
        a_targets = cuda.local.array(a_units, int32)
        b_targets = cuda.local.array(b_units, int32)

        thread = cuda.threadIdx.x
        row, column, _ = place(thread)
        a_locate(a_positions, a_targets, thread, a, first_row, m, 0)
        b_locate(b_positions, b_targets, thread, b, first_column, n, a_size)
        a_step = bk if a_along_k else bk * a.ld
        b_step = bk if b_along_k else bk * b.ld
        left = int32(k // bk)  # whole panels
        for i in range(held):
            acc[i] = element(0)
        stage = int32(0)  # where the panels begin that are multiplied
        if left > 0:
            a_fetch(a_registers, a.data, a_positions, a_step)
            b_fetch(b_registers, b.data, b_positions, b_step)
            a_put(a_registers, shared, a_targets, stage)
            b_put(b_registers, shared, b_targets, stage)
        cuda.syncthreads()

        a_read = row
        b_read = a_size + column
        while left > 1:
            a_fetch(a_registers, a.data, a_positions, a_step)
            b_fetch(b_registers, b.data, b_positions, b_step)
            multiply_add(0, acc, shared, int32(stage + a_read), int32(stage + b_read))
            stage = int32(stage_size - stage)
            a_put(a_registers, shared, a_targets, stage)
            b_put(b_registers, shared, b_targets, stage)
            cuda.syncthreads()
            left = int32(left - 1)

        # The last whole panel, then the tail.
        tail, more = int32(k % bk), True
        while more:
            if left > 0:
                multiply_add(0, acc, shared, int32(stage + a_read), int32(stage + b_read))
            more = tail > 0
            if more:
                # Fetched no sooner: beside all the factors there are no registers for it.
                thread = thread_again()
                a_fetch_last(a_registers, a.data, a_positions, thread, tail)
                b_fetch_last(b_registers, b.data, b_positions, thread, tail)
                stage = int32(stage_size - stage)
                a_put(a_registers, shared, a_targets, stage)
                b_put(b_registers, shared, b_targets, stage)
                cuda.syncthreads()
                left, tail = int32(1), int32(0)

    return SimpleNamespace(
        sums=sums, shared=2 * stage_size, grain_m=width, grain_n=width, lanes=lanes, spread=2 * width
    )


@cache
def paired_lanes(tile):
    """A device function: which of a warp's threads along m and along n a lane is.

    Lanes that differ in their lowest bit are neighbours along m and read the same of B; those that differ in the next
    bit are neighbours along n and read the same of A. So 16 threads get their 16 bytes at once, where others would be
    served by eight: in a cycle comes back a register a thread, and two that ask for the same address share it.
    """
    half_m = tile.lanes_m // 2

    @device_function
    def lanes(lane):
        return lane % 2 + lane // 4 % half_m * 2, lane // 2 % 2 + lane // (4 * half_m) * 2

    return lanes


# -------------------------------------------------------------------------------------------- epilogues
@cache
def thread_place(tile, grain_m, grain_n, lanes):
    """A device function: a thread's first row and column in the tile, and the number of its row among all threads'.

    A thread's rows come in groups of ``grain_m`` that touch, and its columns in groups of ``grain_n``; ``lanes`` tells
    which of a warp's threads along m and along n a lane is.
    """
    warps_n, lanes_m, warp_m, warp_n = tile.warps_n, tile.lanes_m, tile.warp_m, tile.warp_n

    @device_function
    def place(thread):
        lane, warp = thread % WARP, thread // WARP
        lane_m, lane_n = lanes(lane)
        warp_row = warp // warps_n
        row, column = warp_row * warp_m + lane_m * grain_m, warp % warps_n * warp_n + lane_n * grain_n
        return row, column, warp_row * lanes_m + lane_m

    return place


@cache
def part_of_registers(rows, tm, tn, grain, width, pitch, group):
    """A device function that puts part ``part``, of ``rows`` rows of a thread's registers, into shared memory.

    ``grain`` columns of a thread touch, and the next begin ``group`` further on; a thread stores ``width`` at once.

    Registers have no addresses, so the compiler must know which ones: each part has a function.
    """
    _, store = vector_access(width)

    def with_part(p, before):
        @device_function
        def put(acc, shared, line, part):
            if part == p:
                for i in range(rows):
                    for j in range(0, tn, width):
                        store(shared, line + i * pitch + j // grain * group + j % grain, acc, (p * rows + i) * tn + j)
            else:
                before(acc, shared, line, part)

        return put

    @device_function
    def function(acc, shared, line, part):
        pass

    for p in range(tm // rows):
        function = with_part(p, function)
    return function


@cache
def finisher(epilogue, element, width, vectors):
    """A device function that makes some elements of a row of C from their sums.

    In ``finish(z, r, s, n, c, after)``, ``z`` holds ``width`` sums of row ``r``, from column ``s`` on; those beyond the
    last of ``n`` columns do not exist. ``vectors`` tells whether the arrays allow wide accesses.
    """
    step, _, activation = epilogue.partition(":")
    forward, backward = step == "forward", step == "backward"
    saves = activation in SAVES_PRE_ACTIVATION
    functions = formulas(np.dtype(element.name))
    value, derivative = functions[activation or "identity"], functions[f"{activation or 'identity'}_derivative"]
    load, store = vector_access(width)
    load_one, store_one = vector_access(1)

    @device_function
    def read(registers, array, index, count):
        if vectors and count == width:
            load(registers, 0, array, index)
        else:
            for e in range(width):
                if e < count:
                    load_one(registers, e, array, index + e)

    @device_function
    def write(array, index, registers, count):
        if vectors and count == width:
            store(array, index, registers, 0)
        else:
            for e in range(width):
                if e < count:
                    store_one(array, index + e, registers, e)

    @device_function
    def finish(z, r, s, n, c, after):
        other = cuda.local.array(width, element)
        count = min(width, n - s)
        to, other_to = at(c, int64(r), s), at(after.saved, int64(r), s)
        if after.has_bias:
            read(other, after.bias.data, at(after.bias, 0, s), count)
            for e in range(width):
                z[e] += other[e]
        if after.beta:
            read(other, c.data, to, count)
            for e in range(width):
                z[e] += other[e]
        if forward:
            if saves:
                write(after.saved.data, other_to, z, count)
            for e in range(width):
                z[e] = value(z[e], element(after.parameter))
        if backward:
            read(other, after.saved.data, other_to, count)
            for e in range(width):
                z[e] *= derivative(other[e], element(after.parameter))
        write(c.data, to, z, count)

    return finish


# --------------------------------------------------------------------------------------------- kernels
@cache
def block_order(bm, bn):
    """A device function: the first row and column of the tile of a block."""

    @device_function
    def origin(block, m, n):
        tiles_m, tiles_n = (m + bm - 1) // bm, (n + bn - 1) // bn
        first = block // (GROUP * tiles_n) * GROUP
        inside, rows = block % (GROUP * tiles_n), min(GROUP, tiles_m - first)
        return (first + inside % rows) * bm, inside // rows * bn

    return origin


@cache
def precisions(dtype) -> tuple[str, ...]:
    """Of float32 also those of the tensor cores."""
    return PRECISIONS if np.dtype(dtype) == np.float32 else PRECISIONS[:1]


def check_precision(precision, dtype):
    """Raise ValueError for a precision that the GPU has no product of."""
    if precision not in precisions(dtype):
        name = np.dtype(dtype).name
        raise ValueError(f"precision {precision!r} is none of the GPU's for {name}: {precisions(dtype)}")


@cache
def tile_maker(trans, dtype, epilogue, precision, tile, vectors):
    """How a block makes a tile of C: a device function, and the elements of shared memory that it needs.

    In ``make(shared, block, begin, end, n, k, a, b, c, after)``, ``block`` is the number of the tile among those of C's
    rows from ``begin`` to ``end``. The other arguments are those of `gemm_kernel`.
    """
    element = getattr(types, np.dtype(dtype).name)
    width = VECTOR_BYTES * 8 // element.bitwidth
    if precision == "ieee":
        maker = multiply_add_sums(trans, tile, element, vectors)
    else:
        maker = tensor_core_sums(trans, tile, precision, vectors)
    make_sums, grain_m, grain_n = maker.sums, maker.grain_m, maker.grain_n
    bn, tm, tn, threads = tile.bn, tile.tm, tile.tn, tile.threads
    lanes_m, lanes_n, warp_m = tile.lanes_m, tile.lanes_n, tile.warp_m
    group_m, group_n = grain_m * lanes_m, grain_n * lanes_n
    place = thread_place(tile, grain_m, grain_n, maker.lanes)
    load, _ = vector_access(width)

    # The tile goes to C through shared memory, `part_rows` rows of every thread at a time. So a block writes whole
    # lines, and the code of the epilogue exists once. Rows are spread so that no two stores of a warp meet in a bank.
    across = tile.warps_m * lanes_m
    pitch_c = bn + maker.spread
    part_rows = tm
    while part_rows * across * pitch_c > max(maker.shared, EPILOGUE_BYTES * 8 // element.bitwidth):
        part_rows //= 2
    part_size, parts = part_rows * across * pitch_c, tm // part_rows
    assert parts * part_rows == tm
    chunks = bn // width  # of a row
    part_chunks = part_rows * across * chunks
    held = tm * tn
    put_part = part_of_registers(part_rows, tm, tn, grain_n, min(grain_n, width), across * pitch_c, group_n)
    finish = finisher(epilogue, element, width, vectors)
    origin = block_order(tile.bm, bn)

    @device_function
    def make(shared, block, begin, end, n, k, a, b, c, after):
        acc = cuda.local.array(held, element)
        z = cuda.local.array(width, element)

        first_row, first_column = origin(block, end - begin, n)
        first_row += begin
        make_sums(acc, shared, first_row, first_column, end, n, k, a, b)

        thread = thread_again()
        _, column, line = place(thread)
        own = line * pitch_c + column
        for part in range(parts):
            cuda.syncthreads()
            put_part(acc, shared, own, part)
            cuda.syncthreads()
            for chunk in range(thread, part_chunks, threads):
                line, s = chunk // chunks, chunk % chunks * width
                i, q = part * part_rows + line // across, line % across
                r = q // lanes_m * warp_m + i // grain_m * group_m + q % lanes_m * grain_m + i % grain_m
                load(z, 0, shared, line * pitch_c + s)
                if first_row + r < end and first_column + s < n:
                    finish(z, first_row + r, first_column + s, n, c, after)

    return SimpleNamespace(make=make, shared=max(maker.shared, part_size))


def blocks_at_once(tile, vectors) -> int:
    """How many blocks are to fit a multiprocessor: without vectors half, as a thread needs twice the registers."""
    return tile.blocks if vectors else tile.blocks // 2


@made_once
def gemm_kernel(trans, dtype, epilogue, precision="ieee", tile=None, vectors=True, rest=None):
    """The kernel of a product.

    Parameters
    ----------
    trans : "NN", "NT" or "TN"
    dtype : numpy.dtype or its name
    epilogue : "none", "forward:<activation>" or "backward:<activation>"
    precision : "ieee", "tf32", "bf16" or "bf16x3"
        Of the factors of a product; sums are float32. The last two are for float32 and use the tensor cores.
    tile : Tile
    vectors : bool
        Whether A, B and C allow 16-byte accesses.
    rest : Tile, optional
        A smaller one of the same precision, for the rows of C after the first `Shape.rows`.
    """
    check_precision(precision, dtype)
    element = getattr(types, np.dtype(dtype).name)
    tile = tile or tiles_of(element.bitwidth // 8, precision)[-1]
    of_tile, of_rest = (tile_maker(trans, dtype, epilogue, precision, one, vectors) for one in (tile, rest or tile))
    make, make_rest, shared_size = of_tile.make, of_rest.make, max(of_tile.shared, of_rest.shared)
    bm, bn, rest_threads, two = tile.bm, tile.bn, (rest or tile).threads, rest is not None
    cut = trans == "TN"  # into parts of k, whose sums lie one after another in C

    def gemm_kernel(shape, a, b, c, after):
        m, n, k = shape.m, shape.n, shape.k
        shared = cuda.shared.array(shared_size, element, ALIGNMENT)
        block = cuda.blockIdx.x
        if cut:
            part = cuda.blockIdx.y
            first = part * shape.terms
            k = min(shape.terms, k - first)
            a = Matrix(a.data, at(a, first, 0), a.ld)
            b = Matrix(b.data, at(b, first, 0), b.ld)
            c = Matrix(c.data, at(c, part * m, 0), c.ld)
        if two:
            blocks = shape.rows // bm * ((n + bn - 1) // bn)
            if block < blocks:
                make(shared, block, 0, shape.rows, n, k, a, b, c, after)
            elif cuda.threadIdx.x < rest_threads:  # barriers wait for no warp that has ended
                make_rest(shared, block - blocks, shape.rows, m, n, k, a, b, c, after)
        else:
            make(shared, block, 0, m, n, k, a, b, c, after)

    # What profilers show.
    tiles = f"{tile.name}_{rest.name}" if two else tile.name
    gemm_kernel.__qualname__ = f"gemm_{trans}_{precision}_{tiles}_{epilogue.replace(':', '_')}"
    operand = matrix(dtype)
    blocks = blocks_at_once(tile, vectors)
    signature = SHAPE, operand, operand, operand, finish_type(dtype)
    return kernel(*signature, threads=tile.threads, blocks=blocks)(gemm_kernel)


@made_once
def sum_of_parts_kernel(dtype):
    """``out = beta out`` + the parts of a product, in their order; ``bias`` likewise of chunks, if there are any."""
    total_of_parts = adding_parts(np.dtype(dtype))

    @for_each_element
    @device_function
    def add_up(i, j, rows, count, beta, parts, out, chunks, sums, bias):
        total, to = total_of_parts(parts.data, at(parts, i, j), rows * parts.ld, count), at(out, i, j)
        out.data[to] = total + out.data[to] if beta else total
        if i == 0 and chunks > 0:
            total, to = total_of_parts(sums.data, at(sums, 0, j), sums.ld, chunks), at(bias, 0, j)
            bias.data[to] = bias.data[to] + total if beta else total

    operand = matrix(dtype)

    @kernel(INT, INT, INT, INT, operand, operand, INT, operand, operand, threads=ELEMENT_THREADS)
    def sum_of_parts_kernel(rows, columns, count, beta, parts, out, chunks, sums, bias):
        add_up(rows, columns, rows, count, beta, parts, out, chunks, sums, bias)

    return sum_of_parts_kernel


def kernels(dtype):
    """Every product of a network, in every precision: (name, kernel)."""
    dtype = np.dtype(dtype)
    yield "sum_of_parts", sum_of_parts_kernel(dtype)
    uses = [("NN", "none"), ("NT", "none"), ("TN", "none")]
    uses += [("NN", f"forward:{name}") for name in ACTIVATIONS if name != "identity"]
    uses += [("NT", f"backward:{name}") for name in ACTIVATIONS if name != "identity"]
    for precision in precisions(dtype):
        tiles = tiles_of(dtype.itemsize, precision)
        for (trans, epilogue), tile, vectors in product(uses, tiles, (True, False)):
            name = f"gemm {trans} {epilogue} {precision} {tile.name} {'vectors' if vectors else 'elements'}"
            yield name, gemm_kernel(trans, dtype, epilogue, precision, tile, vectors, None)


def have_vectors(*operands):
    """Whether rows of all operands start on 16-byte boundaries."""
    width = VECTOR_BYTES // operands[0].data.dtype.itemsize
    return all(
        offset % width == 0 and ld % width == 0 and borrowing.address(data) % VECTOR_BYTES == 0
        for data, offset, ld in operands
    )


# --------------------------------------------------------------------------------------------- launcher
class Epilogue(NamedTuple):
    """What a product does with its sums ``z = beta C + A B + bias``.

    Parameters
    ----------
    name : "none", "forward:<activation>" or "backward:<activation>"
        ``C = z``, ``C = act(z)`` or ``C = z * act'(saved)``. Forward writes z to ``saved`` where the activation's
        derivative needs z.
    beta : 0 or 1
        0: C is not read.
    bias : Matrix of one row, optional
    parameter : float
        Of the activation.
    saved : Matrix, optional
        Without it forward writes z to C, before the output.
    """

    name: str = "none"
    beta: int = 0
    bias: Matrix | None = None
    parameter: float = 0.0
    saved: Matrix | None = None


def finish_of(c, epilogue):
    """What the kernel of a product does with its sums."""
    has_bias, row = (0, c) if epilogue.bias is None else (1, epilogue.bias)
    saved = c if epilogue.saved is None else epilogue.saved
    return Finish(epilogue.beta, Matrix(row.data, row.offset, 0), has_bias, epilogue.parameter, saved)


def plan_for(shape, cut, dtype, precision):
    """The plan that a shape asks for; its terms may be ``cut`` into parts."""
    return plan_of(shape, cut, dtype.itemsize, precision, multiprocessors())


def gemm(trans, shape, a, b, c, stream, epilogue=Epilogue(), precision="ieee", plan=None, parts=None):  # noqa: B008
    """``C = beta C + A B`` and what the epilogue says.

    Parameters
    ----------
    trans : "NN", "NT" or "TN"
        A is (m, k), for "TN" stored as (k, m); B is (k, n), for "NT" stored as (n, k).
    shape : (m, n, k)
    a, b, c : Matrix
        Of one dtype, as are those of the epilogue.
    stream : stream, or what stands in place of one
    epilogue : Epilogue
    precision : "ieee", "tf32", "bf16" or "bf16x3"
        What A and B are rounded to, of float32, for the tensor cores; "ieee" rounds nothing.
    plan : Plan, optional
        Instead of the one that the shape asks for.
    parts : Matrix, optional
        For "TN", the gradient of a weight, with no more than ``beta`` in its epilogue: its terms are cut into as many
        parts as the shape asks for, up to `blocking.most_parts`. What a row gives, forward and back, must not depend on
        the batch that it comes in, so other products are never cut.

    Returns
    -------
    int
        How many parts there are. If several, they are in ``parts``, each after the rows of the one before, and C is
        what `add_up` makes of them.
    """
    m, n, _ = shape
    if m == 0 or n == 0:
        return 1
    dtype = c.data.dtype
    check_precision(precision, dtype)
    if plan is None:
        plan = plan_for(shape, trans == "TN" and parts is not None, dtype, precision)
    if plan.parts > 1:
        c, epilogue = parts, Epilogue()
    _launch(trans, shape, a, b, c, stream, epilogue, precision, plan)
    return plan.parts


def add_up(count, m, n, beta, parts, c, stream, columns=None):
    """Launch ``C = beta C`` + the parts that `gemm` has left, and ``bias = beta bias`` + the sums of chunks of columns.

    ``columns`` are, if not None, how many chunks, up to `elementwise.SUM_LANES`, their sums and the bias as `Matrix`.
    """
    grid, block = over_rows(m, n)
    sum_of_parts_kernel(c.data.dtype)[grid, block, stream](m, n, count, beta, parts, c, *(columns or (0, c, c)))


def _launch(trans, shape, a, b, c, stream, epilogue, precision, plan):
    """Launch the kernel of a product."""
    (m, n, k), (tile, parts, terms, rest, rows), dtype = shape, plan, c.data.dtype
    after = finish_of(c, epilogue)
    vectors = have_vectors(a, b, c, after.saved, after.bias)
    function = gemm_kernel(trans, dtype, epilogue.name, precision, tile, vectors, rest)
    blocks = sum(blocks_of(plan, m, n))
    function[(blocks, parts), tile.threads, stream](Shape(m, n, k, terms, rows), a, b, c, after)
