"""Products over our own padded buffers: NN, TN and NT with one micro-kernel, nothing large packed.

``C (m, n) = origin + A (m, k) B (k, n)``. A is read an element at a time, so its rows and its terms may have any
stride: NN and TN differ only there. B is read along the rows of a column panel; for NT the panel is a transposed
copy of at most KC rows, made just before its use. Blocks of k continue the chains in C, so blocking changes no
bit of the result.
"""

from ..jit import inline
from .blocking import AHEAD, FAR, KC, MC, MR, NV
from .microkernel import FROM_OUTPUT, column_panel
from .operands import Matrix, Origin, Strided
from .simd import call, lanes, load_corner, prefetch_row, square, store, transpose, zeros


@inline
def transpose_panel(k, columns, b, ldb, ahead, panel, width):
    """``panel[0:k, 0:columns] = b[0:columns, 0:k].T``; rows of the panel are ``width`` apart."""
    block = lanes(b)
    for j in range(0, columns, block):
        for i in range(0, k, block):
            if ahead:
                for row in range(block):
                    prefetch_row(zeros(b, 1, 1), b + (j + row) * ldb + (i + ahead))
            corner = load_corner(square(b), b + j * ldb + i, ldb, columns - j, k - i)
            store(transpose(corner), panel + i * width + j, width, None)


@inline
def balanced(total, limit, unit):
    """The size of equal parts of ``total``, at most ``limit`` (a multiple of ``unit``), in multiples of ``unit``."""
    parts = max((total + limit - 1) // limit, 1)
    return max((total + parts * unit - 1) // (parts * unit), 1) * unit


def gemm(m, n, k, a, b, origin, c, panel, finish):
    """``C = origin + A B``, and ``finish`` called on every finished block of a column panel while it is in L1.

    Parameters
    ----------
    m, n, k : int
    a : Strided
    b : Factor
        Transposed: ``b`` holds ``B^T`` (n, k).
    origin : Origin
    c : Matrix
    panel : pointer to KC * NV registers of scratch, for a transposed factor
    finish : Finish
    """
    width, vector = NV * lanes(c.data), lanes(c.data)
    far = k * n > FAR * vector
    height = balanced(m, MC, MR)
    for i in range(0, m, height):
        rows = min(height, m - i)
        for start in range(0, max(k, 1), KC):
            terms = min(KC, k - start)
            beginning = origin.kind if start == 0 else FROM_OUTPUT
            last = start + terms >= k
            left = Strided(a.data + i * a.ld + start * a.step, a.ld, a.step)
            j = 0
            while j < n:
                columns = width if n - j >= width else min(vector, n - j)
                before, target = Origin(beginning, origin.bias + j), Matrix(c.data + i * c.ld + j, c.ld)
                if b.transposed:
                    transpose_panel(terms, columns, b.data + j * b.ld + start, b.ld, far * AHEAD, panel, width)
                    right, ahead = Matrix(panel, width), 0
                else:
                    right, ahead = Matrix(b.data + start * b.ld + j, b.ld), far * width  # the next panel's lines
                if columns == width:
                    column_panel(zeros(c.data, 1, NV), rows, terms, left, right, ahead, before, target, None)
                else:
                    column_panel(zeros(c.data, 1, 1), rows, terms, left, right, ahead, before, target, columns)
                if last and finish.kernel:
                    other = finish.other + i * finish.ld + j
                    call(finish.kernel, (rows, columns, target, Matrix(other, finish.ld), finish.parameter))
                j += columns
