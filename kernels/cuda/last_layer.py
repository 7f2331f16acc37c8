"""The last layer of a network and its loss in one launch, where a block of the smallest tile has whole rows.

A step of a small network is a chain of launches of some microseconds each, and so this is one less. The block that has
made some rows of the prediction goes on with their losses and gradients. The bits are those of the two launches: a
product has the same by every tile, and as many threads share a row as in the kernel of losses.py.
"""

from itertools import product

import numpy as np

from .. import layout
from .blocking import Plan, plan_of, tiles_of
from .compiling import kernel, made_once
from .driver import cuda, types
from .gemm import ALIGNMENT, Epilogue, blocks_at_once, finish_of, have_vectors, precisions, tile_maker
from .launch import lanes_of_row, multiprocessors
from .losses import loss_of_step_row, rows_type, target_type
from .operands import FLOAT, INT, SHAPE, Lanes, Shape, finish_type, matrix


def suits(layer, n, dtype) -> bool:
    """Whether a launch makes both: the smallest tile is wide enough, and the one that the product would take.

    Parameters
    ----------
    layer : operands.Linear
    n : int
        Rows.
    """
    tile = tiles_of(dtype.itemsize, layer.precision)[-1]
    shape = n, layer.fan_out, layer.fan_in
    return (
        layer.activation == "identity"
        and layer.fan_out <= tile.bn
        and plan_of(shape, False, dtype.itemsize, layer.precision, multiprocessors()) == Plan(tile, 1, layer.fan_in)
    )


@made_once
def last_layer_kernel(loss, dtype, precision="ieee", vectors=True):
    """The kernel of a loss, and of the product before it."""
    element, number, tile = getattr(types, dtype.name), dtype.type, tiles_of(dtype.itemsize, precision)[-1]
    of_tile, of_row = tile_maker("NN", dtype, "none", precision, tile, vectors), loss_of_step_row(loss, dtype)
    make, shared_size, bm, threads = of_tile.make, of_tile.shared, tile.bm, tile.threads
    operand = matrix(dtype)

    def last_layer_kernel(shape, a, b, c, after, lanes, parameter, target, rows, grad):
        shared = cuda.shared.array(shared_size, element, ALIGNMENT)
        of_lanes, of_columns = cuda.shared.array(threads, dtype), cuda.shared.array(threads, np.int64)
        m, n, thread = shape.m, shape.n, np.int64(cuda.threadIdx.x)
        begin = np.int64(cuda.blockIdx.x) * bm
        make(shared, cuda.blockIdx.x, 0, m, n, shape.k, a, b, c, after)
        cuda.syncthreads()
        of_row_lanes, end = Lanes(thread % lanes, lanes, of_lanes, of_columns), min(begin + bm, m)
        for first in range(begin, begin + bm, threads // lanes):
            i = first + thread // lanes
            of_row(i, i < end, of_row_lanes, n, number(parameter), c, target, rows, grad)

    last_layer_kernel.__qualname__ = f"last_layer_{loss}_{precision}"
    signature = SHAPE, operand, operand, operand, finish_type(dtype), INT, FLOAT, matrix(target_type(loss, dtype))
    blocks = blocks_at_once(tile, vectors)
    return kernel(*signature, rows_type(dtype), operand, threads=threads, blocks=blocks)(last_layer_kernel)


def forward_and_loss(layer, loss, n, parameter, x, weight, bias, out, target, rows, grad, stream):
    """Launch `linear.linear_forward` and `losses.loss_forward_backward`, together; ``layer`` is one that `suits`."""
    dtype = out.data.dtype
    tile, after = tiles_of(dtype.itemsize, layer.precision)[-1], finish_of(out, Epilogue(bias=bias))
    function = last_layer_kernel(loss, dtype, layer.precision, have_vectors(x, weight, out, after.bias))
    shape = Shape(n, layer.fan_out, layer.fan_in, layer.fan_in, n)
    lanes = lanes_of_row(layer.fan_out)
    function[-(-n // tile.bm), tile.threads, stream](shape, x, weight, out, after, lanes, parameter, target, rows, grad)


def kernels(dtype):
    """Of each loss, and of one in each precision: (name, kernel)."""
    for loss, vectors in product(layout.LOSSES, (True, False)):
        for precision in precisions(dtype) if loss == "cross_entropy" else ("ieee",):
            name = f"last_layer {loss} {precision} {'vectors' if vectors else 'elements'}"
            yield name, last_layer_kernel(loss, dtype, precision, vectors)
