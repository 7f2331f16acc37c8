"""The formulas of activations, losses and updates on the GPU: their primitives, for one number, and their constants.

A float of Python in a kernel is a float64, and whatever is computed with it becomes float64. `typed` gives a function
whose float constants have another dtype.
"""

import math
from functools import cache
from types import FunctionType

import numpy as np

from ..formulas import bind
from .compiling import device_function
from .driver import libdevice, simulated
from .ptx import fma, select

SINGLE = np.dtype(np.float32)


def typed_constant(value, dtype):
    """A float or a tuple of floats, converted to a dtype; anything else as it is."""
    if isinstance(value, float):
        return dtype.type(value)
    if isinstance(value, tuple) and value and all(isinstance(v, float) for v in value):
        return tuple(dtype.type(v) for v in value)
    return value


def typed(function, dtype):
    """The same function with the float constants of its code converted to a dtype."""
    code = function.__code__
    code = code.replace(co_consts=tuple(typed_constant(value, dtype) for value in code.co_consts))
    return FunctionType(code, function.__globals__, function.__name__, closure=function.__closure__)


# ----------------------------------------------------------------------------------------- primitives
# For float32 and float64 where they differ; `formulas` gives them the names that kernels/formulas.py expects.
def single(x):
    """Whether ``x`` is a float32, of one that is."""
    return True


def double(x):
    """The same of a float64."""
    return False


def power_single(x, factor):
    """``n``, the integer nearest to ``x factor``, and ``2**n``, from the bits of its exponent; float32."""
    n = libdevice.rintf(x * factor)
    return n, libdevice.int_as_float(np.int32((libdevice.float2int_rn(n) + 127) << 23))


def power_double(x, factor):
    """The same in float64."""
    n = libdevice.rint(x * factor)
    return n, libdevice.hiloint2double(np.int32((libdevice.double2int_rn(n) + 1023) << 20), np.int32(0))


ROOT_2 = 1.4142135623730951


def parts_single(x):
    """``e`` and ``m`` with ``x = m 2**e`` and ``m`` from ``sqrt(1/2)`` to ``sqrt(2)``; ``x`` is positive and normal."""
    bits = libdevice.float_as_int(x)
    e = np.int32((bits >> 23) - 127)
    m = libdevice.int_as_float(np.int32((bits & 0x7FFFFF) | 0x3F800000))
    high = m >= np.float32(ROOT_2)
    return np.float32(e + 1) if high else np.float32(e), m * np.float32(0.5) if high else m


def parts_double(x):
    """The same of a float64."""
    bits = libdevice.double2hiint(x)
    e = np.int32((bits >> 20) - 1023)
    m = libdevice.hiloint2double(np.int32((bits & 0xFFFFF) | 0x3FF00000), libdevice.double2loint(x))
    high = m >= ROOT_2
    return np.float64(e + 1) if high else np.float64(e), m * 0.5 if high else m


@cache
def formulas(dtype) -> dict:
    """All formulas and primitives for a dtype, as a dict from names to device functions."""
    is_single = dtype == SINGLE
    by_dtype = {
        "nearest_power": power_single if is_single else power_double,
        "exponent_and_mantissa": parts_single if is_single else parts_double,
        "is_single": single if is_single else double,
    }
    builtins = {"fma": fma, "select": select, "absolute": abs, "square_root": np.sqrt if simulated else math.sqrt}
    return bind(
        builtins | {name: device_function(function) for name, function in by_dtype.items()},
        lambda formula: device_function(typed(formula, dtype)),
        lambda constant: typed_constant(constant, dtype),
    )
