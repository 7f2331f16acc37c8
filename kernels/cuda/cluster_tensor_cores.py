"""The three products of a linear layer by tensor cores, of factors in a block's shared memory that are rounded to TF32.

A warp makes `SIDE` x `SIDE` elements, `TERMS` terms an instruction. In shared memory the terms of a row of A touch, or
the rows of a term do; so of B, read column for row. Of either a thread takes rows 2g and 2g + 1 and terms 2t and 2t + 1
(`tensor_cores.lanes`), by accesses of 8 bytes that meet in no bank, as rows lie an odd number of 16 bytes apart. So it
has four columns of C that touch, of two rows. Rows beyond the last are read as the last one, and not stored.
"""

from functools import cache

from .blocking import WARP
from .cluster_plan import SIDE, VECTOR
from .cluster_products import DTYPE, finishing, int32, load, split, store, sum_columns
from .compiling import device_function, unrolled
from .driver import cuda, types
from .launch import THREADS
from .ptx import matrix_multiply_add, vector_access
from .tensor_cores import lanes, tf32_number

TERMS = 8  # of an instruction
WARPS = THREADS // WARP
ELEMENTS = SIDE * SIDE // WARP  # of a thread


# ------------------------------------------------------------------------------------------- factors
@cache
def factor(along_k):
    """Device functions: where a thread's two accesses to a factor are, and its operands, for all terms or a part.

    ``along_k`` tells that the terms of a row touch.
    """
    load_two, _ = vector_access(2)
    zero = DTYPE.type(0)

    @device_function
    def place(at, ld, first, last, g, t):
        """The two accesses for the first `TERMS` terms, and the step to the next ones; the row ``last`` is the last."""
        row, term = first + 2 * g, 2 * t
        if along_k:
            one, other = at + min(row, last) * ld + term, at + min(row + 1, last) * ld + term
            return int32(one), int32(other), int32(TERMS)
        one = int32(at + term * ld + min(row, last // 2 * 2))
        return one, int32(one + ld), int32(TERMS * ld)

    @device_function
    def round_one(e, operands, values):
        operands[e] = tf32_number(values[e] if along_k else values[e % 2 * 2 + e // 2])

    @device_function
    def part_of_one(e, values, shared, one, other, at, left, t):
        there = 2 * t + (e % 2 if along_k else e // 2) < left
        x = shared[(one if e < 2 else other) + e % 2 if there else at]
        values[e] = x if there else zero

    round_all, part_of_all = unrolled(4, round_one), unrolled(4, part_of_one)

    @device_function
    def whole(operands, shared, one, other):
        """Row after row, of each its two terms."""
        values = cuda.local.array(4, types.float32)
        load_two(values, 0, shared, one)
        load_two(values, 2, shared, other)
        round_all(0, operands, values)

    @device_function
    def part(operands, shared, one, other, at, left, t):
        """The same of the terms that are ``left``; in place of the others zeros."""
        values = cuda.local.array(4, types.float32)
        part_of_all(0, values, shared, one, other, at, left, t)
        round_all(0, operands, values)

    return place, whole, part


@cache
def multiply(a_along_k, b_along_k):
    """A device function: all terms of a thread's elements, added to ``acc``; all threads of a warp call it."""
    multiply_add = matrix_multiply_add("tf32", 2)
    a_place, a_whole, a_part = factor(a_along_k)
    b_place, b_whole, b_part = factor(b_along_k)

    @device_function
    def one(turn, acc, a_operands, b_operands):
        multiply_add(acc, turn, VECTOR + turn, a_operands, 0, 2, b_operands, 2 * turn)

    multiply_add_all = unrolled(2, one)

    @device_function
    def function(acc, shared, terms, a, ld_a, row, last_row, b, ld_b, column, last_column, g, t):
        a_operands = cuda.local.array(4, int32)
        b_operands = cuda.local.array(4, int32)
        a_one, a_other, a_step = a_place(a, ld_a, row, last_row, g, t)
        b_one, b_other, b_step = b_place(b, ld_b, column, last_column, g, t)
        for _ in range(terms // TERMS):
            a_whole(a_operands, shared, a_one, a_other)
            b_whole(b_operands, shared, b_one, b_other)
            multiply_add_all(0, acc, a_operands, b_operands)
            a_one, a_other = int32(a_one + a_step), int32(a_other + a_step)
            b_one, b_other = int32(b_one + b_step), int32(b_other + b_step)
        left = terms % TERMS
        if left > 0:
            a_part(a_operands, shared, a_one, a_other, a, left, t)
            b_part(b_operands, shared, b_one, b_other, b, left, t)
            multiply_add_all(0, acc, a_operands, b_operands)

    return function


# ------------------------------------------------------------------------------------------ products
@cache
def products(value, derivative):
    """The three products as device functions, with the arguments of those of `cluster_products`."""
    finish, zero = finishing(value), DTYPE.type(0)
    forward_sums, backward_sums, weights_sums = multiply(True, False), multiply(True, True), multiply(False, False)

    @device_function
    def own():
        """The thread's warp, and its place in it along rows and along columns."""
        thread = int32(cuda.threadIdx.x)
        g, t = lanes(thread % WARP)
        return thread // WARP, g, t

    @device_function
    def tiles(rows, columns):
        """How many tiles there are for so many rows and columns, and how many of them side by side."""
        across = (columns + SIDE - 1) // SIDE
        return (rows + SIDE - 1) // SIDE * across, across

    @device_function
    def tile(e, across, g, t):
        """The first row and column of a tile, and those of the thread's elements in it."""
        i, j = split(e, across)
        i, j = i * SIDE, j * SIDE
        return i, j, i + 2 * g, j + VECTOR * t

    @device_function
    def forward_row(half, shared, rows, row, column, acc, out, ld_out, saved, ld_saved, code, p):
        i = row + half
        if i < rows:
            at, saved_at = out + i * ld_out + column, saved + i * ld_saved + column
            finish(acc, half * VECTOR, code, p, saved != out, shared, at, saved_at)

    @device_function
    def backward_row(half, shared, rows, row, column, acc, out, ld_out, saved, ld_saved, code, p):
        z = cuda.local.array(VECTOR, types.float32)
        i = row + half
        if i < rows:
            load(z, 0, shared, saved + i * ld_saved + column)
            for c in range(VECTOR):
                acc[half * VECTOR + c] *= derivative(code, z[c], p)
            store(shared, out + i * ld_out + column, acc, half * VECTOR)

    @device_function
    def weights_row(half, shared, rows, row, column, acc, w, ld_w):
        if row + half < rows:
            store(shared, w + (row + half) * ld_w + column, acc, half * VECTOR)

    forward_rows, backward_rows, weights_rows = (unrolled(2, of) for of in (forward_row, backward_row, weights_row))

    @device_function
    def forward(shared, rows, terms, columns, x, ld_x, w, ld_w, bias, out, ld_out, saved, ld_saved, code, p):
        """``saved = x @ w + bias``, ``out = act(saved)``."""
        warp, g, t = own()
        count, across = tiles(rows, columns)
        acc = cuda.local.array(ELEMENTS, types.float32)
        for e in range(warp, count, WARPS):
            i, j, row, column = tile(e, across, g, t)
            for c in range(ELEMENTS):
                acc[c] = zero
            if bias >= 0 and column < columns:
                load(acc, 0, shared, bias + column)
                load(acc, VECTOR, shared, bias + column)
            forward_sums(acc, shared, terms, x, ld_x, i, rows - 1, w, ld_w, j, columns - 1, g, t)
            if column < columns:
                forward_rows(0, shared, rows, row, column, acc, out, ld_out, saved, ld_saved, code, p)

    @device_function
    def backward(shared, rows, terms, columns, grad, ld_grad, w, ld_w, out, ld_out, saved, ld_saved, code, p):
        """``out = (grad @ w.T) * act'(saved)``."""
        warp, g, t = own()
        count, across = tiles(rows, columns)
        acc = cuda.local.array(ELEMENTS, types.float32)
        for e in range(warp, count, WARPS):
            i, j, row, column = tile(e, across, g, t)
            for c in range(ELEMENTS):
                acc[c] = zero
            backward_sums(acc, shared, terms, grad, ld_grad, i, rows - 1, w, ld_w, j, columns - 1, g, t)
            if column < columns:
                backward_rows(0, shared, rows, row, column, acc, out, ld_out, saved, ld_saved, code, p)

    @device_function
    def weights(shared, rows, terms, columns, x, ld_x, grad, ld_grad, w, ld_w, bias):
        """``w = x.T @ grad`` and ``bias`` the sums of the columns of ``grad``."""
        warp, g, t = own()
        count, across = tiles(terms, columns)
        acc = cuda.local.array(ELEMENTS, types.float32)
        for e in range(warp, count, WARPS):
            i, j, row, column = tile(e, across, g, t)
            for c in range(ELEMENTS):
                acc[c] = zero
            weights_sums(acc, shared, rows, x, ld_x, i, terms - 1, grad, ld_grad, j, columns - 1, g, t)
            if column < columns:
                weights_rows(0, shared, terms, row, column, acc, w, ld_w)
        if bias >= 0:
            for group in range(cuda.threadIdx.x, (columns + VECTOR - 1) // VECTOR, THREADS):
                sum_columns(shared, rows, grad, ld_grad, bias, int32(group) * VECTOR)

    return forward, backward, weights
