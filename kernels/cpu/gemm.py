"""Products over our own padded buffers: NN, TN and NT with one micro-kernel, nothing large packed.

``C (m, n) = origin + A (m, k) B (k, n)``. A is read an element at a time, so its rows and its terms may have any
stride: NN and TN differ only there. B is read along the rows of a column panel; for NT the panel is a transposed
copy of at most KC rows, made just before its use. Blocks of k continue the chains in C, so blocking changes no
bit of the result.
"""

from ..jit import inline
from .blocking import AHEAD, FAR, KC, MC, MR, NV
from .microkernel import FROM_OUTPUT, column_panel
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


def gemm(m, n, k, a, lda, step, b, ldb, transposed, origin, bias, c, ldc, panel, finish, other, ld_other, parameter):
    """``C = origin + A B``, and ``finish`` called on every finished block of a column panel while it is in L1.

    Parameters
    ----------
    m, n, k : int
    a, lda, step : pointer, elements between rows, elements between terms
    b, ldb, transposed : pointer, leading dimension, whether ``b`` holds ``B^T`` (n, k)
    origin, bias : FROM_ZERO, FROM_OUTPUT or FROM_BIAS; pointer to n elements for the last
    c, ldc : pointer, leading dimension
    panel : pointer to KC * NV registers of scratch, for ``transposed``
    finish : int
        Address of a kernel ``(rows, columns, c, ldc, other, ld_other, parameter)``; 0 for none.
    other, ld_other, parameter : what ``finish`` gets beside C
    """
    width, vector = NV * lanes(c), lanes(c)
    far = k * n > FAR * vector
    height = balanced(m, MC, MR)
    for i in range(0, m, height):
        rows = min(height, m - i)
        for start in range(0, max(k, 1), KC):
            terms = min(KC, k - start)
            beginning = origin if start == 0 else FROM_OUTPUT
            last = start + terms >= k
            a_block = a + i * lda + start * step
            j = 0
            while j < n:
                columns = width if n - j >= width else min(vector, n - j)
                target = c + i * ldc + j
                if transposed:
                    transpose_panel(terms, columns, b + j * ldb + start, ldb, far * AHEAD, panel, width)
                    source, ld_source, ahead = panel, width, 0
                else:
                    source, ld_source, ahead = b + start * ldb + j, ldb, far * width  # the next panel's lines
                if columns == width:
                    column_panel(
                        zeros(c, 1, NV), rows, terms, a_block, lda, step, source, ld_source, ahead,
                        beginning, bias + j, target, ldc, None,
                    )  # fmt: skip
                else:
                    column_panel(
                        zeros(c, 1, 1), rows, terms, a_block, lda, step, source, ld_source, ahead,
                        beginning, bias + j, target, ldc, columns,
                    )  # fmt: skip
                if last and finish:
                    call(finish, (rows, columns, target, ldc, other + i * ld_other + j, ld_other, parameter))
                j += columns
