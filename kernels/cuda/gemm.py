"""``C = beta C + A B`` and its epilogues, for A and B as they lie or transposed: NN, NT and TN.

A block of threads makes a tile of C. It copies a panel of A and a panel of B, ``bk`` terms of each, from global to
shared memory, where both lie term by term, and fetches the next two into registers while it multiplies these; a
thread holds its part of the tile in registers. Rows, columns and terms that do not exist cost the main loop nothing:
rows and columns beyond the last read the last again and are never stored, and the last terms, filled up with zeros,
come first. (The blocking of CUTLASS and of S. Boehm, "How to optimize a CUDA matmul kernel", 2022.)
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from .. import table
from . import driver
from .blocking import GROUP, SECTOR_BYTES, VECTOR_BYTES, WARP, tile_of
from .driver import cuda, device_function, types
from .formulas import formulas
from .ptx import vector_access

LAYOUTS = ("NN", "NT", "TN")
ALIGNMENT = None if driver.simulated else VECTOR_BYTES  # the simulator's arrays have none
int32, int64 = types.int32, types.int64


# ---------------------------------------------------------------------------------------------- panels
def panel(extent, terms, along_k, width, threads, element, pitch):
    """How a block copies a panel of A (or of B: read column for row) from global to shared memory.

    A panel has ``extent`` rows of ``terms`` terms. In global memory the terms of a row touch (``along_k``), or the
    rows of a term do; ``width`` elements are read at once. In shared memory it lies term by term, ``pitch`` elements
    apart. Returns device functions, which work on ``units`` accesses a thread.
    """
    units = extent * terms // (width * threads)
    assert units * width * threads == extent * terms
    # Along k, neighbouring threads share a sector of a row and then go to the next row.
    together = min(SECTOR_BYTES * 8 // (width * element.bitwidth), terms // width)
    across = extent // width
    load, store = vector_access(width)

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
    def locate(positions, thread, offset, first, rows, ld):
        """Where the accesses of a thread are in the first panel; beyond the last row, in the last."""
        last = (rows - 1) // width * width
        for q in range(units):
            row, term = row_of(thread + q * threads), term_of(thread + q * threads)
            if along_k:
                positions[q] = offset + int64(min(first + row, rows - 1)) * ld + term
            else:
                positions[q] = offset + int64(term) * ld + min(first + row, last)

    @device_function
    def fetch(registers, array, positions, advance):
        """A whole panel, ``advance`` elements after the first."""
        for q in range(units):
            load(registers, q * width, array, positions[q] + advance)

    @device_function
    def fetch_last(registers, array, positions, advance, thread, left):
        """A panel of which only ``left`` terms exist; zeros for the others."""
        for q in range(units):
            term = term_of(thread + q * threads)
            for e in range(width):
                registers[q * width + e] = element(0)
            if along_k:
                for e in range(width):
                    if term + e < left:
                        registers[q * width + e] = array[positions[q] + advance + e]
            elif term < left:
                load(registers, q * width, array, positions[q] + advance)

    @device_function
    def put(registers, shared, start, thread):
        for q in range(units):
            row, term = row_of(thread + q * threads), term_of(thread + q * threads)
            if along_k:
                for e in range(width):
                    shared[start + (term + e) * pitch + row] = registers[q * width + e]
            else:
                store(shared, start + term * pitch + row, registers, q * width)

    return SimpleNamespace(units=units, locate=locate, fetch=fetch, fetch_last=fetch_last, put=put)


# --------------------------------------------------------------------------------------- multiply-adds
def multiply(tile, element, pitch_a, pitch_b):
    """A device function that multiplies all of a slice's terms in shared memory into the registers of a thread."""
    tm, tn = tile.tm, tile.tn
    width = VECTOR_BYTES * 8 // element.bitwidth
    stride_a, stride_b = width * tile.lanes_m, width * tile.lanes_n
    groups_a, groups_b = tm // width, tn // width
    load, _ = vector_access(width)

    @device_function
    def one(acc, shared, a, b):
        a_values = cuda.local.array(tm, element)
        b_values = cuda.local.array(tn, element)
        for g in range(groups_a):
            load(a_values, g * width, shared, a + g * stride_a)
        for g in range(groups_b):
            load(b_values, g * width, shared, b + g * stride_b)
        for i in range(tm):
            for j in range(tn):
                acc[i * tn + j] += a_values[i] * b_values[j]

    def twice(terms, half):
        # The compiler does not unroll a loop over so long a body; a function that calls another twice does.
        @device_function
        def both(acc, shared, a, b):
            half(acc, shared, a, b)
            half(acc, shared, a + terms * pitch_a, b + terms * pitch_b)

        return both

    terms, function = 1, one
    while terms < tile.bk // tile.slices:
        function, terms = twice(terms, function), 2 * terms
    assert terms * tile.slices == tile.bk
    return function


# --------------------------------------------------------------------------------------------- kernels
@cache
def gemm_kernel(layout, dtype, epilogue, precision="float", tile=None, vectors=True):
    """The ``@cuda.jit`` kernel of a product.

    Parameters
    ----------
    layout : "NN", "NT" or "TN"
    dtype : numpy.dtype or its name
    epilogue : "none", "forward:<activation>" or "backward:<activation>"
    precision : "float"
    tile : Tile
    vectors : bool
        Whether A, B and C allow 16-byte accesses.
    """
    element = getattr(types, np.dtype(dtype).name)
    itemsize = element.bitwidth // 8
    width = VECTOR_BYTES // itemsize
    tile = tile or tile_of(1, 1, itemsize)
    step, _, activation = epilogue.partition(":")
    forward, backward = step == "forward", step == "backward"
    saves = activation in table.SAVES_PRE_ACTIVATION
    functions = formulas(np.dtype(dtype))
    value, derivative = functions[activation or "identity"], functions[f"{activation or 'identity'}_derivative"]

    threads, slices = tile.threads, tile.slices
    bm, bn, bk, tm, tn = tile.bm, tile.bn, tile.bk, tile.tm, tile.tn
    warps_n, lanes_n = tile.warps_n, tile.lanes_n
    warp_m, warp_n = tile.bm // tile.warps_m, tile.bn // tile.warps_n
    group_m, group_n = width * tile.lanes_m, width * tile.lanes_n
    a_along_k, b_along_k = layout != "TN", layout == "NT"
    # A panel that is turned on its way is spread by one access, so that the threads' stores meet in no bank.
    pitch_a, pitch_b = bm + width * a_along_k, bn + width * b_along_k
    access = width if vectors else 1
    a_panel = panel(bm, bk, a_along_k, access, threads, element, pitch_a)
    b_panel = panel(bn, bk, b_along_k, access, threads, element, pitch_b)
    a_locate, a_fetch, a_fetch_last, a_put = a_panel.locate, a_panel.fetch, a_panel.fetch_last, a_panel.put
    b_locate, b_fetch, b_fetch_last, b_put = b_panel.locate, b_panel.fetch, b_panel.fetch_last, b_panel.put
    a_units, b_units = a_panel.units, b_panel.units
    a_held, b_held = a_units * access, b_units * access
    multiply_add = multiply(tile, element, pitch_a, pitch_b)
    a_size, stage_size = bk * pitch_a, bk * (pitch_a + pitch_b)
    held = tm * tn
    slice_threads = threads // slices
    finished = tm // slices  # rows of registers that a slice finishes
    shared_size = max(2 * stage_size, slices * held * slice_threads if slices > 1 else 0)
    assert tm % slices == 0

    @driver.kernel(threads=threads, blocks=tile.blocks)
    def gemm_kernel(
        m, n, k, a, a_offset, lda, b, b_offset, ldb, beta, bias, bias_offset, has_bias, parameter,
        c, c_offset, ldc, saved, saved_offset, lds,
    ):  # fmt: skip
        shared = cuda.shared.array(shared_size, element, ALIGNMENT)
        acc = cuda.local.array(held, element)
        a_registers = cuda.local.array(a_held, element)
        b_registers = cuda.local.array(b_held, element)
        a_positions = cuda.local.array(a_units, int64)
        b_positions = cuda.local.array(b_units, int64)

        # Blocks walk through GROUP rows of tiles at a time, column by column.
        tiles_m, tiles_n = (m + bm - 1) // bm, (n + bn - 1) // bn
        block = cuda.blockIdx.x
        first_tile = block // (GROUP * tiles_n) * GROUP
        group = min(GROUP, tiles_m - first_tile)
        inside = block % (GROUP * tiles_n)
        first_row, first_column = (first_tile + inside % group) * bm, inside // group * bn

        thread = cuda.threadIdx.x
        lane, warp = thread % WARP, thread // WARP
        part = warp % (slice_threads // WARP)  # of the tile
        slice_index = warp // (slice_threads // WARP)
        row = part // warps_n * warp_m + lane // lanes_n * width
        column = part % warps_n * warp_n + lane % lanes_n * width

        a_locate(a_positions, thread, a_offset, first_row, m, lda)
        b_locate(b_positions, thread, b_offset, first_column, n, ldb)
        a_step = bk if a_along_k else bk * lda
        b_step = bk if b_along_k else bk * ldb
        panels = max((k + bk - 1) // bk, 1)
        last = panels - 1
        a_fetch_last(a_registers, a, a_positions, last * a_step, thread, k - last * bk)
        b_fetch_last(b_registers, b, b_positions, last * b_step, thread, k - last * bk)
        a_put(a_registers, shared, 0, thread)
        b_put(b_registers, shared, a_size, thread)
        for i in range(held):
            acc[i] = element(0)
        cuda.syncthreads()

        stage = 0  # where the panels begin that are multiplied
        a_advance, b_advance = int64(0), int64(0)
        a_read = row + slice_index * (bk // slices) * pitch_a
        b_read = a_size + column + slice_index * (bk // slices) * pitch_b
        for p in range(panels):
            if p < last:
                a_fetch(a_registers, a, a_positions, a_advance)
                b_fetch(b_registers, b, b_positions, b_advance)
            multiply_add(acc, shared, stage + a_read, stage + b_read)
            if p < last:
                a_advance += a_step
                b_advance += b_step
                stage = stage_size - stage
                a_put(a_registers, shared, stage, thread)
                b_put(b_registers, shared, stage + a_size, thread)
                cuda.syncthreads()

        if slices > 1:  # add the shares; each slice goes on with some rows of registers
            place = thread % slice_threads
            cuda.syncthreads()
            for i in range(held):
                shared[(slice_index * held + i) * slice_threads + place] = acc[i]
            cuda.syncthreads()
            for i in range(finished * tn):
                at = (slice_index * finished * tn + i) * slice_threads + place
                total = shared[at]
                for s in range(1, slices):
                    total += shared[at + s * held * slice_threads]
                acc[i] = total

        for i in range(finished):
            ti = i + slice_index * finished
            r = first_row + row + ti // width * group_m + ti % width
            for j in range(tn):
                s = first_column + column + j // width * group_n + j % width
                if r < m and s < n:
                    z = acc[i * tn + j]
                    to = c_offset + int64(r) * ldc + s
                    if has_bias:
                        z += bias[bias_offset + s]
                    if beta:
                        z += c[to]
                    if forward:
                        if saves:
                            saved[saved_offset + int64(r) * lds + s] = z
                        z = value(z, element(parameter))
                    if backward:
                        z *= derivative(saved[saved_offset + int64(r) * lds + s], element(parameter))
                    c[to] = z

    return gemm_kernel


def _is_aligned(array, offset, ld, width):
    """Whether rows start on 16-byte boundaries."""
    first = 0 if driver.simulated else array.device_ctypes_pointer.value
    return offset % width == 0 and ld % width == 0 and first % VECTOR_BYTES == 0


# --------------------------------------------------------------------------------------------- launcher
def gemm(
    layout, m, n, k, a, a_offset, lda, b, b_offset, ldb, beta, bias, bias_offset, parameter,
    c, c_offset, ldc, saved, saved_offset, lds, epilogue, stream, precision="float", tile=None,
):  # fmt: skip
    """``z = beta C + A B + bias``; ``C = z``, ``C = act(z)`` or ``C = z * act'(saved)``.

    Parameters
    ----------
    layout : "NN", "NT" or "TN"
        A is (m, k), for "TN" stored as (k, m); B is (k, n), for "NT" stored as (n, k).
    a, b, c, bias, saved : flat device arrays of one dtype; ``bias`` and ``saved`` may be None
    *_offset, ld* : int
        The first element, and the elements from one row to the next.
    beta : 0 or 1
        0: C is not read.
    parameter : float
        Of the activation.
    epilogue : "none", "forward:<activation>" or "backward:<activation>"
        Forward writes z to ``saved`` where the activation's derivative needs z; backward reads ``saved``.
    stream : stream or graph builder
    precision : "float"
    tile : Tile, optional
        Instead of the one that the shape asks for.
    """
    if m == 0 or n == 0:
        return
    tile = tile or tile_of(m, n, c.dtype.itemsize)
    width = VECTOR_BYTES // c.dtype.itemsize
    vectors = _is_aligned(a, a_offset, lda, width) and _is_aligned(b, b_offset, ldb, width)
    function = gemm_kernel(layout, c.dtype.name, epilogue, precision, tile, vectors)
    blocks = -(-m // tile.bm) * -(-n // tile.bn)
    function[blocks, tile.threads, stream](
        m, n, k, a, a_offset, lda, b, b_offset, ldb, beta,
        c if bias is None else bias, bias_offset, bias is not None, float(parameter),
        c, c_offset, ldc, c if saved is None else saved, saved_offset, lds,
    )  # fmt: skip
