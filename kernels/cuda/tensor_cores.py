"""The sums of a tile of C by tensor cores, of float32 factors rounded to TF32 or BF16, or made of two numbers of BF16.

``cp.async`` copies panels of A and B, of `TERMS` terms each, as they are from global to shared memory, ``stages - 1``
panels before they are needed: this hides the latency of global memory and takes no registers. A thread rounds the
numbers that it loads from there. Terms may come in any order, so thread t of the four that share a row of A takes terms
4t to 4t + 3, which touch, or rows that touch, as the panel lies: every load has 16 bytes (8 in the smallest tile), and
no two meet in a bank. The terms that do not fill a panel come first; all others come in whole panels. An element is one
chain of multiply-adds, of the same terms in the same order whatever the tile.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from .blocking import WARP
from .compiling import device_function, unrolled
from .driver import cuda, libdevice, types
from .operands import Matrix, at
from .ptx import asynchronous_copy, bf16_pair, commit_copies, matrix_multiply_add, vector_access, wait_for_copies

TERMS = 16  # of a panel: two instructions for TF32, one for BF16
EACH = 4  # terms of a thread, of a row
int32, int64 = types.int32, types.int64


# ---------------------------------------------------------------------------------------------- panels
@cache
def panel(extent, along_k, width, threads):
    """Where a panel of A (or of B: read column for row) lies in shared memory, and how a block copies it there.

    A panel has ``extent`` rows of `TERMS` terms. In global memory the terms of a row touch (``along_k``), or the rows
    of a term do; so they do in shared memory. ``width`` elements are copied at once.
    """
    across = (TERMS if along_k else extent) // width  # accesses that touch
    units, down = extent * TERMS // (width * threads), threads // across
    assert (units * width * threads, down * across) == (extent * TERMS, threads)
    asynchronous = asynchronous_copy(width)

    @device_function
    def place(row, term):
        """Where an element is. Rows that touch are turned by their terms, 8 a thread of the four that load them."""
        if along_k:
            return row * TERMS + term
        return term * extent + (row // 4 ^ term // EACH * 2) * 4 + row % 4

    @device_function
    def start(thread, source, first):
        """Where a thread's first access is in global memory, for terms from 0 on."""
        inner, outer = int64(thread % across * width), int64(thread // across)
        return at(source, first + outer, inner) if along_k else at(source, outer, first + inner)

    def copier(whole):
        @device_function
        def one(q, shared, stage, source, thread, rows, terms):
            inner, line = int32(thread % across * width), int32(thread // across + q * down)
            if along_k:
                there = line < rows
                count = int32(width) if whole else int32(min(max(terms - inner, 0), width))
                to = place(line, inner)
            else:
                there = inner < rows and (whole or line < terms)
                count = int32(width)
                to = place(inner, line)
            position = source.offset + q * down * source.ld
            asynchronous(shared, int32(stage + to), source.data, position, count if there else int32(0))

        all_units = unrolled(units, one)

        @device_function
        def copy(shared, stage, source, thread, rows, terms):
            """Copy a panel of ``rows`` rows and ``terms`` terms to ``stage``, and zeros for what does not exist.

            ``source`` begins at the thread's first access.
            """
            all_units(0, shared, stage, source, thread, rows, terms)

        return copy

    return SimpleNamespace(place=place, start=start, copy=copier(True), copy_part=copier(False))


# ------------------------------------------------------------------------------------------- fragments
@device_function
def tf32_number(x):
    """float32 rounded to 10 bits after the leading one, ties away from 0 (numbers below 2**-126: toward 0).

    Half a unit is added by a multiply-add, which leaves infinity and NaN what they are, and what is below a unit cut
    off: by the tensor core itself, as the assembler knows. (``cvt.rna`` would be a comparison, an addition in place,
    and up to five copies.)
    """
    power_of_two = libdevice.int_as_float(np.int32(libdevice.float_as_int(x) & -0x800000))
    return np.int32(libdevice.float_as_int(x + power_of_two * np.float32(2**-11)) & -0x2000)


@device_function
def lower_number(pair):
    """The first of a pair of bfloat16 numbers, as float32."""
    return libdevice.int_as_float(np.int32(pair << 16))


@device_function
def upper_number(pair):
    """The second of a pair of bfloat16 numbers, as float32."""
    return libdevice.int_as_float(np.int32(pair & -0x10000))


@device_function
def low_pair(x, y, high):
    """What two numbers have beyond a pair that they were rounded to, as such a pair."""
    return bf16_pair(x - lower_number(high), y - upper_number(high))


@cache
def fragments(precision, units, extent, along_k):
    """A device function: what a thread takes of ``units`` times 8 rows of a panel, as operands of the instruction.

    Its rows come in groups of `grain`, which touch; of each it takes `EACH` terms, of which two operands are made for
    TF32's first instruction, then two for its second; or for BF16 two in all. Of bf16x3 the two operands of all high
    parts come first, then those of the low ones.
    """
    width, low = grain(units, along_k), 2 * units
    load, _ = vector_access(EACH if along_k else width)
    held = units * EACH

    @device_function
    def index(unit, term):
        """Where a number is among those loaded."""
        return (unit // width * EACH + term) * width + unit % width

    @device_function
    def function(operands, shared, begin):
        values = cuda.local.array(held, types.float32)
        for u in range(0, units, width):
            if along_k:
                load(values, u * EACH, shared, begin + u * 8 * TERMS)
            else:
                for term in range(EACH):
                    load(values, u * EACH + term * width, shared, begin + term * extent + u * 8)
        for u in range(units):
            for i in range(EACH):
                if precision == "tf32":
                    operands[(i // 2 * units + u) * 2 + i % 2] = tf32_number(values[index(u, i)])
                elif i < 2:
                    x, y = values[index(u, 2 * i)], values[index(u, 2 * i + 1)]
                    pair = bf16_pair(x, y)
                    operands[u * 2 + i] = pair
                    if precision == "bf16x3":
                        operands[low + u * 2 + i] = low_pair(x, y, pair)

    return function


def grain(units, along_k):
    """Rows of a thread that touch."""
    return 1 if along_k else min(4, units)


# -------------------------------------------------------------------------------------------- the sums
@device_function
def lanes(lane):
    """Which of a warp's threads along m and along n a lane is: the instruction has it so."""
    return lane // 4, lane % 4


@cache
def multiply(precision, tile, a_along_k, b_along_k):
    """A device function that multiplies a panel of A by one of B into the registers of a thread.

    Of bf16x3 an instruction's terms are added three times: high by high, high by low, low by high.
    """
    tm, tn, pairs = tile.tm, tile.tn, tile.tn // 2
    steps, parts = 2 if precision == "tf32" else 1, 2 if precision == "bf16x3" else 1
    apart = grain(pairs, b_along_k)
    a_load = fragments(precision, tm, tile.bm, a_along_k)
    b_load = fragments(precision, pairs, tile.bn, b_along_k)
    multiply_add = matrix_multiply_add(precision.removesuffix("x3"), apart)
    a_low, b_low = 2 * tm, 2 * pairs
    a_held, b_held = parts * steps * a_low, parts * steps * b_low

    @device_function
    def one(turn, acc, a_operands, b_operands):
        """All of A by 8 columns of B, for the terms of one instruction."""
        step, j = turn // pairs, turn % pairs
        column = j // apart * 2 * apart + j % apart
        for i in range(0, tm, 2):
            upper, first = i * tn + column, (step * tm + i) * 2
            multiply_add(acc, upper, upper + tn, a_operands, first, first + 2, b_operands, turn * 2)
            if precision == "bf16x3":
                low = a_low + first
                multiply_add(acc, upper, upper + tn, a_operands, first, first + 2, b_operands, b_low + turn * 2)
                multiply_add(acc, upper, upper + tn, a_operands, low, low + 2, b_operands, turn * 2)

    multiply_add_all = unrolled(steps * pairs, one)

    @device_function
    def function(acc, shared, a, b):
        a_operands = cuda.local.array(a_held, int32)
        b_operands = cuda.local.array(b_held, int32)
        a_load(a_operands, shared, a)
        b_load(b_operands, shared, b)
        multiply_add_all(0, acc, a_operands, b_operands)

    return function


@cache
def tensor_core_sums(trans, tile, precision, vectors):
    """How a block makes the sums of its tile: a device function, the shared memory it needs, and a thread's elements.

    What `gemm.multiply_add_sums` is for the other units.
    """
    assert (tile.lanes_m, tile.lanes_n, tile.bk) == (8, 4, TERMS)
    a_along_k, b_along_k = trans != "TN", trans == "NT"
    width = 4 if vectors else 1
    a_panel, b_panel = panel(tile.bm, a_along_k, width, tile.threads), panel(tile.bn, b_along_k, width, tile.threads)
    a_start, a_copy, a_copy_part, a_place = a_panel.start, a_panel.copy, a_panel.copy_part, a_panel.place
    b_start, b_copy, b_copy_part, b_place = b_panel.start, b_panel.copy, b_panel.copy_part, b_panel.place
    grain_m, grain_n = grain(tile.tm, a_along_k), 2 * grain(tile.tn // 2, b_along_k)
    multiply_panels = multiply(precision, tile, a_along_k, b_along_k)
    a_size, stage_size = tile.bm * TERMS, (tile.bm + tile.bn) * TERMS
    ahead = tile.stages - 1
    end = tile.stages * stage_size
    held = tile.tm * tile.tn
    warps_n, warp_m, warp_n = tile.warps_n, tile.warp_m, tile.warp_n
    wait, wait_for_all = wait_for_copies(ahead - 1), wait_for_copies(0)

    @device_function
    def sums(acc, shared, first_row, first_column, m, n, k, a, b):
        thread = int32(cuda.threadIdx.x)
        rows, columns = int32(m - first_row), int32(n - first_column)
        a_step = TERMS if a_along_k else TERMS * a.ld
        b_step = TERMS if b_along_k else TERMS * b.ld
        a_position = a_start(thread, a, first_row)
        b_position = b_start(thread, b, first_column)

        left, tail = int32(k // TERMS), int32(k % TERMS)  # panels to be copied
        panels = left
        stage = int32(0)
        if tail > 0:
            panels = int32(panels + 1)
            last = k // TERMS
            a_copy_part(shared, stage, Matrix(a.data, a_position + last * a_step, a.ld), thread, rows, tail)
            b_copy_part(shared, a_size, Matrix(b.data, b_position + last * b_step, b.ld), thread, columns, tail)
            commit_copies()
            stage = int32(stage_size)
        while stage < ahead * stage_size:
            if left > 0:
                a_copy(shared, stage, Matrix(a.data, a_position, a.ld), thread, rows, tail)
                b_copy(shared, int32(stage + a_size), Matrix(b.data, b_position, b.ld), thread, columns, tail)
                a_position += a_step
                b_position += b_step
                left = int32(left - 1)
            commit_copies()
            stage = int32(stage + stage_size)
        for i in range(held):
            acc[i] = types.float32(0)

        lane, warp = thread % WARP, thread // WARP
        g, t = lanes(lane)
        a_read = int32(a_place(warp // warps_n * warp_m + g * grain_m, t * EACH))
        b_read = int32(a_size + b_place(warp % warps_n * warp_n + g * (grain_n // 2), t * EACH))
        read = int32(0)
        while panels > 0:
            wait()
            cuda.syncthreads()  # what all have copied is there, and what they multiplied last is free
            if left > 0:
                a_copy(shared, stage, Matrix(a.data, a_position, a.ld), thread, rows, tail)
                b_copy(shared, int32(stage + a_size), Matrix(b.data, b_position, b.ld), thread, columns, tail)
                a_position += a_step
                b_position += b_step
                left = int32(left - 1)
            commit_copies()
            multiply_panels(acc, shared, int32(read + a_read), int32(read + b_read))
            stage = read
            read = int32(read + stage_size)
            if read == end:
                read = int32(0)
            panels = int32(panels - 1)
        wait_for_all()

    return SimpleNamespace(
        sums=sums, shared=end, grain_m=grain_m, grain_n=grain_n, lanes=lanes, spread=grain_n * tile.lanes_n % 32 or 4
    )
