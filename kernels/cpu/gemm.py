"""Products over our own padded buffers: NN, TN and NT with one micro-kernel, operands packed where that pays.

``C (m, n) = origin + A (m, k) B (k, n)``. A is read an element at a time, so its rows and its terms may have any
stride: NN and TN differ only there. B is read along the rows of a column panel; for NT the panel is a transposed copy.

Where `blocking.product_sizes` says so, A of TN is copied to strips of as many rows as a tile has, term after term, and
used for the panels of B; and a panel of B is copied, and used for all strips. The next panel's lines are
asked for meanwhile. Where A passes in several blocks of rows, as many copied panels as fit are kept for all of them.
Every element of C is one chain of multiply-adds in the order of k, and blocks of k continue it in C, so neither blocks
nor packing change a bit.
"""

from ..jit import inline
from .blocking import (
    COPY_TILES,
    FAR_BYTES,
    MR,
    NV,
    PANELS,
    SPAN_BYTES,
    STRIP_PANELS,
    STRIPS_BYTES,
    TERMS,
    VECTOR_BYTES,
)  # fmt: skip
from .microkernel import FROM_OUTPUT, column_panel, part_of, parts_of
from .operands import Block, InLast, Matrix, Origin, Strided
from .simd import (
    across,
    call,
    is_not_null,
    lanes,
    load,
    load_corner,
    square,
    store,
    transpose,
    zeros,
)  # fmt: skip

AT_ONCE = 16  # terms of all strips are copied before the next: the lines that two strips share are still in L1


@inline
def transpose_panel(k, columns, b, ldb, panel, width):
    """``panel[0:k, 0:columns] = b[0:columns, 0:k].T``; rows of the panel are ``width`` apart."""
    block = lanes(b)
    for j in range(0, columns, block):
        for i in range(0, k, block):
            corner = load_corner(square(b), b + j * ldb + i, ldb, columns - j, k - i)
            store(transpose(corner), panel + i * width + j, width, None)


@inline
def copy_terms(row, terms, source, step, target, width, columns):
    """``target[t] = source[t]`` for vectors as wide as ``row``, 0 beyond ``columns``."""
    for _ in range(terms):
        store(load(row, source, 0, columns), target, 0, None)
        source += step
        target += width


@inline
def strip_length(terms, vector):
    """Elements from strip to strip: the terms, what is written beyond them, and a line, to be in other cache sets."""
    return (terms * MR + vector + 15) // 16 * 16 + 16


@inline
def pack_strips(rows, terms, a, strips, apart):
    """Strips of MR rows of A, which lie side by side, ``apart`` elements from each other: term after term, 0 beyond A.

    Whole registers are written; what is beyond the MR rows is the beginning of the next term, which is written next.
    """
    for start in range(0, terms, AT_ONCE):
        source, target = a.data + start * a.step, strips + start * MR
        for i in range(0, rows, MR):
            copy_terms(across(strips, MR), min(AT_ONCE, terms - start), source + i, a.step, target, MR, rows - i)
            target += apart


@inline
def balanced(total, limit, unit):
    """The size of equal parts of ``total``, at most ``limit`` (a multiple of ``unit``), in multiples of ``unit``."""
    if total <= limit:  # without a division: a product of a narrow network takes a few hundred cycles
        return max((total + unit - 1) // unit, 1) * unit
    parts = (total + limit - 1) // limit
    return (total + parts * unit - 1) // (parts * unit) * unit


@inline
def pays(sizes, panels, terms, a, item):
    """Whether A is read down its columns in more pages than the TLB reaches, and strips of it are used often."""
    return a.ld == 1 and panels >= sizes[STRIP_PANELS] and terms * a.step * item > sizes[SPAN_BYTES]


def gemm(m, n, k, a, b, low, origin, c, packing, finish):
    """``C = origin + A B``, and ``finish`` called on every finished block of a column panel while it is in L1.

    Parameters
    ----------
    m, n, k : int
    a : Strided
    b : Factor
        Transposed: ``b`` holds ``B^T`` (n, k).
    low : Low
    origin : Origin
    c : Matrix
    packing : Packing
        `blocking.packed_bytes` of scratch, which a transposed factor needs.
    finish : Finish
    """
    for part in range(parts_of(low)):
        left, right, before, after = part_of(part, a, b, low, origin, finish)
        add_product(m, n, k, left, right, before, c, packing, after)


@inline
def add_product(m, n, k, a, b, origin, c, packing, finish):
    """`gemm` of factors that are one number each."""
    width, vector, item = NV * lanes(c.data), lanes(c.data), VECTOR_BYTES // lanes(c.data)
    sizes, panel = packing.sizes, packing.scratch
    strips = panel + (sizes[PANELS] + NV - 1) * sizes[TERMS] * width
    depth = balanced(k, sizes[TERMS], 1)
    length, may = strip_length(depth, vector), is_not_null(panel)
    packs = may and pays(sizes, n // width, depth, a, item)
    copies = may and m >= sizes[COPY_TILES] * MR and depth * b.ld * item > sizes[SPAN_BYTES]
    far = k * n * item > sizes[FAR_BYTES]
    height, group, kept = max(m, 1), max(n, 1), 0
    if (m + MR - 1) * length * item > MR * sizes[STRIPS_BYTES]:
        height = balanced(m, max(sizes[STRIPS_BYTES] // (length * item), 1) * MR, MR)
        if sizes[PANELS] > 1 and (copies or b.transposed):
            group, kept = sizes[PANELS] * width, sizes[TERMS] * width
    for start in range(0, max(k, 1), depth):
        terms = min(depth, k - start)
        beginning = origin.kind if start == 0 else FROM_OUTPUT
        last = start + terms >= k
        for first in range(0, n, group):
            end = min(first + group, n)
            for i in range(0, m, height):
                rows, again = min(height, m - i), kept and i
                left, apart = Strided(a.data + i * a.ld + start * a.step, a.ld, a.step), MR * a.ld
                if packs:
                    pack_strips(rows, terms, left, strips, length)
                    left, apart = Strided(strips, 1, MR), length
                j, place = first, panel
                while j < end:
                    columns = min(width, n - j)
                    if columns <= width - vector:
                        columns = min(vector, columns)
                    before, target = Origin(beginning, origin.bias + j), Matrix(c.data + i * c.ld + j, c.ld)
                    right, ask = Matrix(place, width), Block(b.data, b.ld, 0, 0)
                    if b.transposed:
                        if not again:
                            source = b.data + j * b.ld + start
                            transpose_panel(terms, columns, source, b.ld, place, width)
                            if far:  # the next panel's lines
                                ask = Block(source + width * b.ld, b.ld, width, terms)
                    else:
                        source = b.data + start * b.ld + j
                        if (far or copies) and not again:
                            ask = Block(source + width, b.ld, terms, width)
                        if not copies or columns < width:
                            right = Matrix(source, b.ld)
                        elif not again:
                            copy_terms(zeros(panel, 1, NV), terms, source, b.ld, place, width, None)
                    if columns == width:
                        row = zeros(c.data, 1, NV)
                        column_panel(row, rows, terms, left, apart, right, ask, before, target, None)
                    elif columns > vector:
                        row, valid = zeros(c.data, 1, NV), InLast(columns)
                        column_panel(row, rows, terms, left, apart, right, None, before, target, valid)
                    else:
                        row = zeros(c.data, 1, 1)
                        column_panel(row, rows, terms, left, apart, right, None, before, target, columns)
                    if last and finish.kernel:
                        other = finish.other + i * finish.ld + j
                        call(finish.kernel, (rows, columns, target, Matrix(other, finish.ld), finish.parameter))
                    j += columns
                    place += kept
