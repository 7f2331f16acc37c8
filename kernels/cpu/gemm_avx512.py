"""Products of pairs by ``vdpbf16ps``: `gemm.gemm` for factors in the forms of `formats`.

``C (m, n) = origin + A B``. A register tile of C takes the pairs of all terms, one after another, so every element is
one chain in the order of the terms, whatever tile it falls into.
"""

from functools import cache

from ..jit import inline
from .blocking import MR, MR_TAIL
from .formats import CHUNK, PAIRS, left_factor, panels_apart
from .microkernel import FROM_BIAS, FROM_OUTPUT, part_of, parts_of
from .operands import Matrix, Origin, Strided
from .pairs import dot_product
from .simd import call, lanes, load, load_row, row_offsets, store, tall, zeros


@cache
def kernel(emulated):
    """`gemm` by the instruction, or by what stands for it."""
    dot_pairs = dot_product(emulated)

    @inline
    def update(tile, chunks, a, b, origin, c, columns):
        """``C = origin + A B`` for one tile; ``a`` goes from row to row and from chunk to chunk, ``b`` likewise."""
        if origin.kind == FROM_OUTPUT:
            tile = load(tile, c.data, c.ld, columns)
        elif origin.kind == FROM_BIAS:
            tile = load_row(tile, origin.bias, columns)
        offsets, left, right = row_offsets(tile, a.ld), a.data, b.data
        for _ in range(chunks):
            for q in range(PAIRS):
                tile = dot_pairs(tile, left + q, offsets, right + q * CHUNK)
            left += a.step
            right += b.ld
        store(tile, c.data, c.ld, columns)

    @inline
    def column_panel(row, m, chunks, a, b, origin, c, columns):
        """``C = origin + A B`` for m rows of a panel as wide as ``row``, a tile of one row."""
        rows = 0
        while m > 0:
            if m >= MR:
                rows = MR
                update(tall(row, MR), chunks, a, b, origin, c, columns)
            elif m >= MR_TAIL:
                rows = MR_TAIL
                update(tall(row, MR_TAIL), chunks, a, b, origin, c, columns)
            else:
                rows = 1
                update(tall(row, 1), chunks, a, b, origin, c, columns)
            m -= rows
            a = Strided(a.data + rows * a.ld, a.ld, a.step)
            c = Matrix(c.data + rows * c.ld, c.ld)

    def gemm(m, n, k, a, b, low, origin, c, packing, finish):
        """`gemm.gemm`; nothing is packed, the factors are stored as they are read."""
        for part in range(parts_of(low)):
            left, right, before, after = part_of(part, a, b, low, origin, finish)
            add_product(m, n, k, left, right, before, c, after)

    @inline
    def add_product(m, n, k, a, b, origin, c, finish):
        """`gemm` of factors that are one number each."""
        vector, chunks = lanes(c.data), (k + CHUNK - 1) // CHUNK
        left, apart, j = left_factor(a), panels_apart(k, b.ld), 0
        while j < n:
            columns = min(2 * vector, n - j)
            if columns < 2 * vector:
                columns = min(vector, columns)
            right = Matrix(b.data + (j // CHUNK * apart + j % CHUNK), CHUNK * b.ld)
            before, target = Origin(origin.kind, origin.bias + j), Matrix(c.data + j, c.ld)
            if columns > vector:
                column_panel(zeros(c.data, 1, 2), m, chunks, left, right, before, target, None)
            else:
                column_panel(zeros(c.data, 1, 1), m, chunks, left, right, before, target, columns)
            if finish.kernel:
                call(finish.kernel, (m, columns, target, Matrix(finish.other + j, finish.ld), finish.parameter))
            j += columns

    gemm.__qualname__ = f"gemm_avx512{'_emulated' * emulated}"  # a name of its own in the cache
    return gemm
