"""Codes -> kernels: the one place that knows every kernel's signature and resolves names to addresses.

A kernel is compiled on first use, on its own, for one dtype; the walk and the contract call it by address. So
only what a run uses is compiled, and another architecture, batch size or number of threads compiles nothing.
"""

import ctypes
import inspect
from functools import cache

import numpy as np
from numba import from_dtype, types

from .. import layout
from ..jit import Kernel, compile_kernel
from . import (
    buffers,
    elementwise,
    formats,
    gemm,
    gemm_amx,
    gemm_avx512,
    linear,
    losses,
    network,
    norms,
    optimizers,
    probabilities,
    units,
)
from .operands import Factor, Finish, Low, Matrix, Operand, Origin, Packing, Products, Rows, Strided
from .simd import Pointer

INT, FLOAT = types.intp, types.float64
INTS, FLOATS = Pointer(types.int64), Pointer(types.float64)

# The kernels as Python calls them: pointers are integers.
PRODUCT = (INT,) * 21 + (FLOAT,)
ELEMENTWISE = (INT,) * 6 + (FLOAT,)
SOFTMAX = (INT,) * 7
LOSS = INT, INT, FLOAT, *(INT,) * 10
OPTIMIZER = (INT,) * 10
STORE_FACTOR = (INT,) * 7
DROPOUT = (*(INT,) * 9, FLOAT)
GATHER = (INT,) * 7
SQUARED_NORM = (INT,) * 4
COLUMN_SUM = (INT,) * 6
OPERATION = INT, INT, FLOAT, INT, INT


def _real(dtype) -> Pointer:
    return Pointer(from_dtype(np.dtype(dtype)))


def _fields(operand, *arguments) -> types.BaseTuple:
    """The type of a named tuple: kernels get its fields one after another."""
    return types.BaseTuple.from_types(arguments, operand)


# Arguments of the functions of `linear`, compiled alone, that are no integers.
LINEAR = {
    "parameter": FLOAT,
    "products": _fields(Products, INT, INT, INT, INT, INT),
    **dict.fromkeys(("grad_weight", "summed"), _fields(Matrix, INT, INT)),
    **dict.fromkeys(("x", "weight", "bias", "out", "saved", "grad_z"), _fields(Operand, INT, INT, INT)),
}


@cache
def _compiled(function, *arguments) -> Kernel:
    return compile_kernel(function, types.void(*arguments))


def c_function(kernel: Kernel, *arguments):
    """The kernel as a Python callable that releases the GIL: integers, and float64 where ``arguments`` say so."""
    if kernel.function is None:
        types_of = [ctypes.c_double if argument is FLOAT else ctypes.c_int64 for argument in arguments]
        kernel.function = ctypes.CFUNCTYPE(None, *types_of)(kernel.address)
    return kernel.function


@cache
def product(dtype, unit=units.FLOAT32) -> Kernel:
    """The gemm kernel of a unit, one of `units.NAMES`."""
    function = gemm.gemm
    if unit != units.FLOAT32:
        of_pairs = gemm_amx if units.has_tiles(unit) else gemm_avx512
        function = of_pairs.kernel(units.is_emulated(unit))
    p = _real(dtype)
    a, b, origin = _fields(Strided, p, INT, INT), _fields(Factor, p, INT, INT), _fields(Origin, INT, p)
    c, finish = _fields(Matrix, p, INT), _fields(Finish, INT, p, INT, FLOAT)
    low, packing = _fields(Low, p, p, INT), _fields(Packing, p, INTS)
    return _compiled(function, INT, INT, INT, a, b, low, origin, c, packing, finish)


_forward_kernels = cache(elementwise.activation_forward_kernel)
_backward_kernels = cache(elementwise.activation_backward_kernel)


@cache
def activation_forward(dtype, name) -> Kernel:
    """``other = act(c)``."""
    p = _real(dtype)
    return _compiled(_forward_kernels(name), INT, INT, p, INT, p, INT, FLOAT)


@cache
def activation_backward(dtype, name) -> Kernel:
    """``c *= act'(other)``."""
    p = _real(dtype)
    return _compiled(_backward_kernels(name), INT, INT, p, INT, p, INT, FLOAT)


@cache
def softmax(dtype) -> Kernel:
    """`probabilities.softmax`."""
    p = _real(dtype)
    return _compiled(probabilities.softmax, INT, INT, p, INT, p, INT, p)


@cache
def column_sum(dtype) -> Kernel:
    """``out = beta * out`` plus the sums of columns."""
    p = _real(dtype)
    return _compiled(elementwise.column_sum, INT, INT, p, INT, INT, p)


@cache
def group_column_sum(dtype) -> Kernel:
    """`elementwise.group_column_sum`."""
    p = _real(dtype)
    return _compiled(elementwise.group_column_sum, INT, INT, p, INT, INT, INT, p, INT, p)


@cache
def transpose(dtype) -> Kernel:
    """`elementwise.transpose_rows`."""
    p = _real(dtype)
    return _compiled(elementwise.transpose_rows, INT, INT, p, INT, p, INT)


@cache
def store_factor(dtype, form) -> Kernel:
    """What stores parts of a factor in a form of `formats`."""
    p = _real(dtype)
    return _compiled(formats.KERNELS[form], INT, INT, p, INT, p, p, INT)


@cache
def store_weight(dtype) -> Kernel:
    """`formats.store_weight`."""
    p = _real(dtype)
    return _compiled(formats.store_weight, INT, INT, p, INT, INT, INTS, INT, p, INT)


@cache
def dropout(dtype) -> Kernel:
    """`elementwise.dropout_rows`."""
    p = _real(dtype)
    return _compiled(elementwise.dropout_rows, INT, INT, p, INT, p, INT, INTS, INT, INT, FLOAT)


@cache
def shuffle():
    """`elementwise.shuffle_rows` as a callable of (count, address, key)."""
    return c_function(_compiled(elementwise.shuffle_rows, INT, INTS, INT), INT, INT, INT)


@cache
def gather(source, dtype) -> Kernel:
    """Rows by index from ``source`` to ``dtype``; a bool is read as the byte it is."""
    number = _real(np.uint8 if source == np.bool_ else source)
    return _compiled(elementwise.gather_rows, INT, INT, INTS, number, INT, _real(dtype), INT)


@cache
def squared_norm(dtype) -> Kernel:
    """`buffers.squared_norm`."""
    return _compiled(buffers.squared_norm, INT, INTS, _real(dtype), FLOATS)


@cache
def block_squares(dtype) -> Kernel:
    """`buffers.block_squares`."""
    return _compiled(buffers.block_squares, INT, INT, _real(dtype), INT, FLOATS)


@cache
def loss(dtype, name) -> Kernel:
    """A loss of `losses`, by name."""
    p = _real(dtype)
    target = _fields(Matrix, INTS if name in layout.LABEL_LOSSES else p, INT)
    matrix, of_rows = _fields(Matrix, p, INT), _fields(Rows, FLOATS, p, INTS)
    return _compiled(losses.kernel(name), INT, INT, FLOAT, matrix, target, of_rows, p, matrix)


@cache
def loss_sum(dtype) -> Kernel:
    """`losses.loss_sum`."""
    return _compiled(losses.loss_sum, INT, FLOATS, _real(dtype), FLOATS)


@cache
def optimizer(dtype, name) -> Kernel:
    """An optimizer of `optimizers`, by name."""
    p = _real(dtype)
    return _compiled(optimizers.kernel(name), INT, INT, FLOATS, p, INT, p, INT, p, p, p)


@cache
def linear_function(name):
    """`linear.linear_forward` and its like, compiled alone, as a callable of addresses."""
    function = getattr(linear, name).py_func
    arguments = [LINEAR.get(argument, INT) for argument in inspect.signature(function).parameters]
    fields = [field for argument in arguments for field in getattr(argument, "types", [argument])]
    return c_function(_compiled(function, *arguments), *fields)


@cache
def operation(dtype, name) -> Kernel:
    """An operation of `norms`, which the walk calls by its operands alone."""
    return _compiled(getattr(norms, name), INT, INT, FLOAT, INTS, _real(dtype))


@cache
def operate() -> Kernel:
    """`network.operate`."""
    return _compiled(network.operate, INTS, INTS, INTS, *(INT,) * 5)


@cache
def walk(name):
    """`network.forward` or another walk of `network`, as a callable of (record address, thread)."""
    return c_function(_compiled(getattr(network, name), INTS, INT), INTS, INT)
