"""What formulas are made of besides ``+ - * /`` and comparisons, here for NumPy arrays.

`formulas.bind` puts a backend's own in their place: those of `cpu.simd` for register tiles, those of `cuda.formulas`
for a number of a thread.
"""

import numpy as np


def fma(x, y, z):
    """``x * y + z``; a backend may round once."""
    return x * y + z


def select(condition, x, y):
    """``x`` where the condition holds, else ``y``."""
    return np.where(condition, x, y)


def nearest_power(x, factor):
    """``(n, 2**n)`` for the integer n nearest to ``x * factor``, in the range of normal exponents."""
    n = np.rint(x * factor)
    return n, np.exp2(n)


def exponent_and_mantissa(x):
    """``(e, m)`` with ``x = m * 2**e`` and ``m`` in [sqrt(1/2), sqrt(2)), for positive normal ``x``."""
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    return (e - low).astype(x.dtype), np.where(low, 2 * m, m)


def absolute(x):
    """``|x|``."""
    return np.abs(x)


def is_single(x):
    """Whether ``x`` is float32; known when compiling, so only one branch becomes code."""
    return x.dtype == np.float32


def square_root(x):
    """The square root, correctly rounded."""
    return np.sqrt(x)


PRIMITIVES = (fma, select, nearest_power, exponent_and_mantissa, absolute, is_single, square_root)
