"""Products of pairs on tile registers: `gemm.gemm` for factors in the forms of `formats`.

``C (m, n) = origin + A B``, 32 x 32 of C at a time in 2 x 2 tiles, which take the chunks of all terms one after
another: four dot products for four loads. A tile at an edge of C is loaded from scratch and stored there, so the tiles
have one configuration. Its factors are read whole: what lies beyond gives sums that nobody looks at.
"""

from functools import cache

from ..jit import inline
from .blocking import STRIPS_BYTES
from .formats import CHUNK, PAIRS, left_factor, panels_apart
from .microkernel import FROM_BIAS, FROM_OUTPUT, FROM_ZERO, parts_of
from .operands import Low, Matrix, Origin, Strided
from .simd import call, lanes, load, prefetch_to_write, store, zeros
from .tiles import SIDE, lowered

BLOCK = 2 * SIDE  # rows and columns of C
# Scratch in elements: a block of C, a part of the bias, the configuration of the tiles.
BIAS, CONFIGURATION = BLOCK * BLOCK, BLOCK * BLOCK + BLOCK


@inline
def copy_block(rows, columns, source, lds, target, ldt):
    """``target = source``."""
    for i in range(rows):
        for j in range(0, columns, lanes(source)):
            row = load(zeros(source, 1, 1), source + (i * lds + j), 0, columns - j)
            store(row, target + (i * ldt + j), 0, columns - j)


@cache
def kernel(emulated):
    """`gemm` by the instructions, or by what stands for them."""
    tiles = lowered(emulated)
    configure, release, zero, dot = tiles.configure, tiles.release, tiles.zero, tiles.dot
    load_tile, store_tile = tiles.load, tiles.store

    @inline
    def multiply(parts, chunks, a, b, low, origin, c, two_rows, two_columns):
        """A block of C in 2 x 2 tiles, or in fewer."""
        lower, right = c.data + SIDE * c.ld, c.data + SIDE
        if origin.kind == FROM_ZERO:
            zero(0)
            zero(1)
            zero(2)
            zero(3)
        elif origin.kind == FROM_BIAS:
            load_tile(0, origin.bias, 0)
            load_tile(1, origin.bias + SIDE, 0)
            load_tile(2, origin.bias, 0)
            load_tile(3, origin.bias + SIDE, 0)
        else:
            load_tile(0, c.data, c.ld)
            if two_columns:
                load_tile(1, right, c.ld)
            if two_rows:
                load_tile(2, lower, c.ld)
            if two_rows and two_columns:
                load_tile(3, lower + SIDE, c.ld)
        row = c.data
        for part in range(parts):
            x, y = a.data, b.data
            if part == 1:
                y = low.b
            elif part == 2:
                x = low.a
            for _ in range(chunks):
                prefetch_to_write(row)  # a row of C, which comes while its sums are made
                prefetch_to_write(row + SIDE)
                row += c.ld
                load_tile(4, x, a.ld)
                load_tile(6, y, CHUNK)
                dot(0, 4, 6)
                if two_columns:
                    load_tile(7, y + SIDE, CHUNK)
                    dot(1, 4, 7)
                if two_rows:
                    load_tile(5, x + SIDE * a.ld, a.ld)
                    dot(2, 5, 6)
                if two_rows and two_columns:
                    dot(3, 5, 7)
                x += a.step
                y += b.ld
        store_tile(0, c.data, c.ld)
        if two_columns:
            store_tile(1, right, c.ld)
        if two_rows:
            store_tile(2, lower, c.ld)
        if two_rows and two_columns:
            store_tile(3, lower + SIDE, c.ld)

    @inline
    def block(rows, columns, parts, chunks, a, b, low, origin, c, scratch):
        """At most 32 x 32 of C."""
        whole, target = rows == BLOCK and columns == BLOCK, c
        if not whole:
            target = Matrix(scratch, BLOCK)
            if origin.kind == FROM_OUTPUT:
                copy_block(rows, columns, c.data, c.ld, scratch, BLOCK)
            elif origin.kind == FROM_BIAS:
                copy_block(1, columns, origin.bias, 0, scratch + BIAS, 0)
                origin = Origin(FROM_BIAS, scratch + BIAS)
        if rows > SIDE:
            if columns > SIDE:
                multiply(parts, chunks, a, b, low, origin, target, True, True)
            else:
                multiply(parts, chunks, a, b, low, origin, target, True, False)
        elif columns > SIDE:
            multiply(parts, chunks, a, b, low, origin, target, False, True)
        else:
            multiply(parts, chunks, a, b, low, origin, target, False, False)
        if not whole:
            copy_block(rows, columns, scratch, BLOCK, c.data, c.ld)

    def gemm(m, n, k, a, b, low, origin, c, packing, finish):
        """`gemm.gemm`; nothing is packed, the factors are stored as they are read. ``packing`` has the scratch.

        Nothing is made by its transpose, and of factors with low parts all sums are made while C is in the tiles.
        """
        chunks, scratch, parts = (k + CHUNK - 1) // CHUNK, packing.scratch, parts_of(low)
        whole, apart = left_factor(a), panels_apart(k, b.ld)
        configure(scratch + CONFIGURATION)
        height = max(packing.sizes[STRIPS_BYTES] // (4 * PAIRS * max(chunks, 1)) // BLOCK * BLOCK, BLOCK)
        for top in range(0, m, height):  # of A, which stay in L2
            end = min(top + height, m)
            for j in range(0, n, BLOCK):
                columns = min(BLOCK, n - j)
                at_panel = j // CHUNK * apart
                right = Matrix(b.data + at_panel, CHUNK * b.ld)
                for i in range(top, end, BLOCK):
                    at_row = i * whole.ld
                    left, lows = Strided(whole.data + at_row, whole.ld, whole.step), Low(low.a, low.b, 0)
                    if parts > 1:
                        lows = Low(low.a + at_row, low.b + at_panel, 0)
                    before, target = Origin(origin.kind, origin.bias + j), Matrix(c.data + (i * c.ld + j), c.ld)
                    block(min(BLOCK, end - i), columns, parts, chunks, left, right, lows, before, target, scratch)
                if finish.kernel:
                    target = Matrix(c.data + (top * c.ld + j), c.ld)
                    other = Matrix(finish.other + (top * finish.ld + j), finish.ld)
                    call(finish.kernel, (end - top, columns, target, other, finish.parameter))
        release()

    gemm.__qualname__ = f"gemm_amx{'_emulated' * emulated}"  # a name of its own in the cache
    return gemm
