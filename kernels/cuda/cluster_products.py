"""The three products of a linear layer whose matrices are in a block's shared memory, and loops over their elements."""

from functools import cache

import numpy as np

from .cluster_plan import VECTOR
from .compiling import device_function
from .driver import cuda, types
from .launch import THREADS
from .ptx import vector_access

DTYPE = np.dtype(np.float32)
int32, uint32 = types.int32, types.uint32
load, store = vector_access(VECTOR)


@device_function
def split(e, columns):
    """Row and column of element ``e`` of rows of so many columns; without 64 bits, whose division is long."""
    row = int32(uint32(e) // uint32(columns))
    return row, int32(e - row * columns)


@cache
def finishing(value):
    """A device function: activate four columns of a row and store them; those beyond the last count for nothing."""

    @device_function
    def finish(acc, part, code, p, saves, shared, out, saved):
        z = cuda.local.array(VECTOR, types.float32)
        for j in range(VECTOR):
            z[j] = acc[part + j]
        if saves:
            store(shared, saved, z, 0)
        for j in range(VECTOR):
            z[j] = value(code, z[j], p)
        store(shared, out, z, 0)

    return finish


@device_function
def sum_columns(shared, rows, grad, ld_grad, bias, j):
    """The sums of four columns of a gradient, from column ``j`` on, for ``bias``."""
    acc = cuda.local.array(VECTOR, types.float32)
    b = cuda.local.array(VECTOR, types.float32)
    for c in range(VECTOR):
        acc[c] = types.float32(0)
    for i in range(rows):
        load(b, 0, shared, grad + i * ld_grad + j)
        for c in range(VECTOR):
            acc[c] += b[c]
    store(shared, bias + j, acc, 0)


@cache
def products(value, derivative, fma):
    """The three products of a linear layer, of matrices in shared memory: device functions.

    A thread makes two rows of four columns (of the gradient of a weight four of four) in registers. Rows begin on
    16-byte boundaries and are filled up with zeros to a multiple of four terms, as are the rows of a weight.
    """
    zero, pair, square = DTYPE.type(0), 2 * VECTOR, VECTOR * VECTOR
    finish = finishing(value)

    @device_function
    def multiply(acc, first, second, w, shared, at):
        """Four terms of two rows with four columns, whose factors are at ``at``, row by row of ``w`` elements."""
        b = cuda.local.array(VECTOR, types.float32)
        for k in range(VECTOR):
            load(b, 0, shared, at + k * w)
            for j in range(VECTOR):
                acc[j] = fma(first[k], b[j], acc[j])
                acc[VECTOR + j] = fma(second[k], b[j], acc[VECTOR + j])

    @device_function
    def forward(shared, rows, terms, columns, x, ld_x, w, ld_w, bias, out, ld_out, saved, ld_saved, code, p):
        """``saved = x @ w + bias``, ``out = act(saved)``."""
        groups, half = (columns + VECTOR - 1) // VECTOR, (rows + 1) // 2
        acc = cuda.local.array(pair, types.float32)
        first = cuda.local.array(VECTOR, types.float32)
        second = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, half * groups, THREADS):
            i, group = split(e, groups)
            other, j = min(i + half, rows - 1), group * VECTOR
            for c in range(pair):
                acc[c] = zero
            if bias >= 0:
                load(acc, 0, shared, bias + j)
                load(acc, VECTOR, shared, bias + j)
            for k in range(0, terms, VECTOR):
                load(first, 0, shared, x + i * ld_x + k)
                load(second, 0, shared, x + other * ld_x + k)
                multiply(acc, first, second, ld_w, shared, w + k * ld_w + j)
            saves = saved != out
            finish(acc, 0, code, p, saves, shared, out + i * ld_out + j, saved + i * ld_saved + j)
            if i + half < rows:
                at, saved_at = out + other * ld_out + j, saved + other * ld_saved + j
                finish(acc, VECTOR, code, p, saves, shared, at, saved_at)

    @device_function
    def backward(shared, rows, terms, columns, grad, ld_grad, w, ld_w, out, ld_out, saved, ld_saved, code, p):
        """``out = (grad @ w.T) * act'(saved)``; a thread's columns lie apart, so that neighbours read other banks."""
        groups, half = (columns + VECTOR - 1) // VECTOR, (rows + 1) // 2
        acc = cuda.local.array(pair, types.float32)
        first = cuda.local.array(VECTOR, types.float32)
        second = cuda.local.array(VECTOR, types.float32)
        b = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, half * groups, THREADS):
            i, group = split(e, groups)
            other = min(i + half, rows - 1)
            for c in range(pair):
                acc[c] = zero
            for k in range(0, terms, VECTOR):
                load(first, 0, shared, grad + i * ld_grad + k)
                load(second, 0, shared, grad + other * ld_grad + k)
                for c in range(VECTOR):
                    load(b, 0, shared, w + (group + c * groups) * ld_w + k)
                    for q in range(VECTOR):
                        acc[c] = fma(first[q], b[q], acc[c])
                        acc[VECTOR + c] = fma(second[q], b[q], acc[VECTOR + c])
            for c in range(VECTOR):
                j = group + c * groups
                if j < columns:
                    slope = derivative(code, shared[saved + i * ld_saved + j], p)
                    shared[out + i * ld_out + j] = acc[c] * slope
                    if i + half < rows:
                        slope = derivative(code, shared[saved + other * ld_saved + j], p)
                        shared[out + other * ld_out + j] = acc[VECTOR + c] * slope

    @device_function
    def weights(shared, rows, terms, columns, x, ld_x, grad, ld_grad, w, ld_w, bias):
        """``w = x.T @ grad`` and ``bias`` the sums of the columns of ``grad``."""
        groups = (columns + VECTOR - 1) // VECTOR
        tiles = (terms + VECTOR - 1) // VECTOR * groups
        acc = cuda.local.array(square, types.float32)
        a = cuda.local.array(VECTOR, types.float32)
        b = cuda.local.array(VECTOR, types.float32)
        for e in range(cuda.threadIdx.x, tiles + groups, THREADS):
            k, group = split(e, groups)
            k, j = k * VECTOR, group * VECTOR
            if e < tiles:
                for c in range(square):
                    acc[c] = zero
                at, at_grad = x + k, grad + j
                for _ in range(rows):
                    load(a, 0, shared, at)
                    load(b, 0, shared, at_grad)
                    at += ld_x
                    at_grad += ld_grad
                    for r in range(VECTOR):
                        for c in range(VECTOR):
                            acc[r * VECTOR + c] = fma(a[r], b[c], acc[r * VECTOR + c])
                for r in range(VECTOR):
                    store(shared, w + (k + r) * ld_w + j, acc, r * VECTOR)
            elif bias >= 0:
                sum_columns(shared, rows, grad, ld_grad, bias, j)

    return forward, backward, weights
