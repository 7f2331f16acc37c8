"""Values and derivatives of the activations, each written once.

The formulas use only ``+ - * /``, comparisons and the primitives below, which are written here for NumPy arrays.
`bind` compiles the same formulas over a backend's own primitives (`cpu.simd` has them for register tiles). What
a backend uses is the pair ``value(z, parameter)`` and ``derivative(saved, parameter)``, where ``saved`` is the
output or, where ``table.SAVES_PRE_ACTIVATION`` lists the activation, ``z``.

The exponential reduces its argument to ``x = n ln 2 + r`` (Cody and Waite) and takes a polynomial of ``r``; its
coefficients are a Chebyshev fit of ``(e^r - 1 - r) / r^2`` for float32 (relative error of ``e^r`` 1.0e-8) and
the Taylor series for float64. NaN propagates, infinities have their limits.
"""

from math import factorial
from types import FunctionType

import numpy as np


# ------------------------------------------------------------------------------------ primitives
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


PRIMITIVES = (fma, select, nearest_power, exponent_and_mantissa, absolute, is_single)


def bind(primitives: dict, compile_function) -> dict:
    """The formulas over other primitives: name -> ``compile_function(formula)``, activations and their parts alike."""
    namespace = dict(globals())
    for name, formula in globals().items():
        if isinstance(formula, FunctionType) and formula not in PRIMITIVES and formula is not bind:
            namespace[name] = compile_function(FunctionType(formula.__code__, namespace, name))
    namespace.update(primitives)
    return namespace


# ------------------------------------------------------------------------------- the exponential
LOG2_E = 1.4426950408889634
# ln 2 in two parts; n * HIGH is exact for every n that occurs.
LN2_HIGH_32, LN2_LOW_32 = 0.693359375, -2.12194440e-4
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Below, exp is under the smallest normal number and comes out as 0.
LOWEST_32, LOWEST_64 = -87.33654, -708.3964185322641

E2, E3, E4, E5, E6 = 0.5, 0.16666576266288757, 0.041666463017463684, 0.008363235741853714, 0.0013933733571320772
T = [1 / factorial(k) for k in range(14)]
T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13 = T[2:]


def lowest_exponent(x):
    """The least x whose exponential is a normal number."""
    if is_single(x):
        return LOWEST_32
    return LOWEST_64


def reduced_exponential(x):
    """``(s, q)`` with ``e^x = s (1 + q)``, ``s`` a power of two and ``|q| < 0.42``, for x in [LOWEST, -LOWEST]."""
    n, s = nearest_power(x, LOG2_E)
    if is_single(x):
        r = fma(n, -LN2_LOW_32, fma(n, -LN2_HIGH_32, x))
        p = fma(fma(fma(fma(r, E6, E5), r, E4), r, E3), r, E2)
    else:
        r = fma(n, -LN2_LOW_64, fma(n, -LN2_HIGH_64, x))
        p = fma(fma(fma(fma(r, T13, T12), r, T11), r, T10), r, T9)
        p = fma(fma(fma(fma(p, r, T8), r, T7), r, T6), r, T5)
        p = fma(fma(fma(p, r, T4), r, T3), r, T2)
    return s, fma(r * r, p, r)


def exp_of_nonpositive(x):
    """``e^x`` for ``x <= 0``; 0 below the smallest normal number."""
    lowest = lowest_exponent(x)
    s, q = reduced_exponential(select(x < lowest, lowest, x))
    return select(x < lowest, 0.0, fma(s, q, s))


def expm1_of_nonpositive(x):
    """``e^x - 1`` for ``x <= 0``, accurate near 0."""
    lowest = lowest_exponent(x)
    s, q = reduced_exponential(select(x < lowest, lowest, x))
    return fma(s, q, s - 1.0)


# log(1 + f) = 2 atanh(u), u = f / (2 + f): the odd series in u, |u| < 0.172.
A = [2 / (2 * k + 1) for k in range(12)]
A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11 = A[1:]
LN2 = 0.6931471805599453


def log_of_normal(x):
    """``ln x`` for positive normal ``x``; infinity gives a large number, NaN stays NaN."""
    e, m = exponent_and_mantissa(x)
    f = m - 1.0
    u = f / (f + 2.0)
    w = u * u
    if is_single(x):
        p = fma(fma(fma(w, A5, A4), w, A3), w, A2)
    else:
        p = fma(fma(fma(fma(w, A11, A10), w, A9), w, A8), w, A7)
        p = fma(fma(fma(fma(fma(p, w, A6), w, A5), w, A4), w, A3), w, A2)
    series = u * w * fma(p, w, A1)
    return select(x * 0.0 == 0.0, fma(e, LN2, fma(2.0, u, series)), x)


def log1p_of_unit(x):
    """``ln(1 + x)`` for x in [-1/2, 1]: ``2 atanh(x / (2 + x))``, accurate near 0."""
    u = x / (x + 2.0)
    w = u * u
    p = polynomial(ATANH_32, w) if is_single(x) else polynomial(ATANH_64, w)
    return fma(u * w, p, 2.0 * u)


ATANH_32 = tuple(2 / (2 * k + 3) for k in range(9))
ATANH_64 = tuple(2 / (2 * k + 3) for k in range(18))


def polynomial(coefficients, x):
    """``sum_k coefficients[k] x^k`` by Horner's rule."""
    total = x * 0.0 + coefficients[-1]
    for k in range(2, len(coefficients) + 1):
        total = fma(total, x, coefficients[len(coefficients) - k])
    return total


# erfc(x) = t Q(2t - 1) e^(-x^2) with t = 2 / (2 + x), x >= 0: Chebyshev expansions of Q, relative errors 1.8e-8
# and 6e-17.
ERFC_32 = (
    0.5107913613319397, 0.34358033537864685, 0.13973572850227356, 0.018221383914351463,
    -0.010751626454293728, -0.003241854952648282, 0.0015291571617126465, 0.0004270201607141644,
    -0.00029938272200524807, -3.2951538742054254e-05, 4.216119850752875e-05, -1.3273954664327903e-06,
)  # fmt: skip
ERFC_64 = (
    0.5107913526210115, 0.34358034220690525, 0.13973604627802688, 0.018221115753442495,
    -0.010755330944716365, -0.0032395925339865133, 0.0015453060290576436, 0.0004186480332964868,
    -0.00033153674761946043, -1.7185737594548938e-05, 7.223535061438543e-05, -1.7074336530735702e-05,
    -1.0848057268891096e-05, 8.060040491028146e-06, -5.628166935192924e-07, -1.8208078384029821e-06,
    1.00091858626541e-06, -3.0587196456747096e-09, -2.855481823834117e-07, 1.6491163111184633e-07,
    -1.6982724012935667e-09, -5.760146697175624e-08, 2.9041985444209086e-08, 6.353864669505139e-09,
    -9.744756625932259e-09, 1.2284536350186566e-09, 1.2051665995883637e-09, -3.3888695546308687e-10,
)  # fmt: skip
ROOT_HALF = 0.7071067811865476
INVERSE_ROOT_2PI = 0.3989422804014327


def gaussian_of(z):
    """``e^(-z^2 / 2)``, the rounding of the square made good."""
    square = z * z
    rest = fma(z, z, square * -1.0)
    e = exp_of_nonpositive(square * -0.5)
    return select(e > 0.0, fma(e, rest * -0.5, e), e)


def normal_distribution(z):
    """``Phi(z) = erfc(-z / sqrt 2) / 2``."""
    t = 2.0 / (absolute(z) * ROOT_HALF + 2.0)
    s = fma(2.0, t, -1.0)
    q = polynomial(ERFC_32, s) if is_single(z) else polynomial(ERFC_64, s)
    tail = gaussian_of(z) * (0.5 * t * q)
    return select(z < 0.0, tail, 1.0 - tail)


# ----------------------------------------------------------------------------------- activations
def identity(z, parameter):
    """``z``."""
    return z


def identity_derivative(saved, parameter):
    """1."""
    return select(saved == saved, 1.0, 1.0)


def relu(z, parameter):
    """``max(0, z)``; 0 at 0."""
    return select(z <= 0.0, 0.0, z)


def relu_derivative(saved, parameter):
    """1 above 0, else 0; from the output."""
    return select(saved <= 0.0, 0.0, 1.0)


def tanh(z, parameter):
    """``-m / (m + 2)`` with ``m = e^(-2 |z|) - 1``, signed as z."""
    minus = expm1_of_nonpositive(absolute(z) * -2.0)
    return select(z < 0.0, minus, 0.0 - minus) / (minus + 2.0)


def tanh_derivative(saved, parameter):
    """``1 - y^2`` from the output."""
    return fma(saved, saved * -1.0, 1.0)


def sigmoid(z, parameter):
    """``1 / (1 + e^-z)``, the exponential kept from its ends; 0 below the smallest normal number."""
    lowest = lowest_exponent(z)
    x = z * -1.0
    x = select(x < lowest, lowest, x)
    s, q = reduced_exponential(select(x > -lowest, -lowest, x))
    return select(z < lowest, 0.0, 1.0 / (fma(s, q, s) + 1.0))


def sigmoid_derivative(saved, parameter):
    """``y (1 - y)`` from the output."""
    return saved * (1.0 - saved)


def sigmoid_and_slope(z):
    """Sigmoid and its derivative from ``z``: ``s (1 - s)`` without the cancellation in ``1 - s``."""
    e = exp_of_nonpositive(absolute(z) * -1.0)
    return select(z < 0.0, e, 1.0) / (e + 1.0), e / ((e + 1.0) * (e + 1.0))


def leaky_relu(z, parameter):
    """``z`` above 0, ``parameter z`` elsewhere."""
    return select(z <= 0.0, z * parameter, z)


def leaky_relu_derivative(saved, parameter):
    """1 above 0, else the slope; from the output."""
    return select(saved <= 0.0, parameter, 1.0)


def elu(z, parameter):
    """``z`` above 0, ``parameter (e^z - 1)`` elsewhere."""
    return select(z > 0.0, z, parameter * expm1_of_nonpositive(select(z > 0.0, 0.0, z)))


def elu_derivative(saved, parameter):
    """1 above 0, else ``y + alpha``; from the output."""
    return select(saved > 0.0, 1.0, saved + parameter)


# Klambauer et al., "Self-Normalizing Neural Networks", 2017.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu(z, parameter):
    """ELU with the alpha and scale that keep a mean of 0 and a variance of 1."""
    return SELU_SCALE * select(z > 0.0, z, SELU_ALPHA * expm1_of_nonpositive(select(z > 0.0, 0.0, z)))


def selu_derivative(saved, parameter):
    """The scale above 0, else ``y + scale alpha``; from the output."""
    return select(saved > 0.0, SELU_SCALE, saved + SELU_SCALE * SELU_ALPHA)


def weighted(weight, x):
    """``weight * x`` for a weight that has gone to 0 faster than ``x`` to infinity."""
    return select(weight > 0.0, weight * x, weight)


def gelu(z, parameter):
    """``z Phi(z)``."""
    return weighted(normal_distribution(z), z)


def gelu_derivative(saved, parameter):
    """``Phi(z) + z phi(z)``; from z."""
    return weighted(gaussian_of(saved), saved * INVERSE_ROOT_2PI) + normal_distribution(saved)


# Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016: 2 sqrt(2 / pi) and the weight of the cube.
GELU_SLOPE, GELU_CUBE = 1.5957691216057308, 0.044715


def gelu_tanh(z, parameter):
    """``z sigmoid(2 u)``, which is ``z (1 + tanh u) / 2``."""
    return weighted(sigmoid(z * fma(z * z, GELU_SLOPE * GELU_CUBE, GELU_SLOPE), parameter), z)


def gelu_tanh_derivative(saved, parameter):
    """``s + z s' u'`` with ``s = sigmoid(2 u)``; from z."""
    square = saved * saved
    u = saved * fma(square, GELU_SLOPE * GELU_CUBE, GELU_SLOPE)
    s, slope = sigmoid_and_slope(u)
    return weighted(slope, saved * fma(square, 3.0 * GELU_SLOPE * GELU_CUBE, GELU_SLOPE)) + s


def silu(z, parameter):
    """``z sigmoid(z)``."""
    return weighted(sigmoid(z, parameter), z)


def silu_derivative(saved, parameter):
    """``s + z s'``; from z."""
    s, slope = sigmoid_and_slope(saved)
    return weighted(slope, saved) + s


def softplus(z, parameter):
    """``ln(1 + e^z)`` as ``max(z, 0) + ln(1 + e^-|z|)``."""
    return select(z > 0.0, z, select(z <= 0.0, 0.0, z)) + log1p_of_unit(exp_of_nonpositive(absolute(z) * -1.0))


def softplus_derivative(saved, parameter):
    """``1 - e^-y`` from the output."""
    return 0.0 - expm1_of_nonpositive(saved * -1.0)


# Every name of table.ACTIVATIONS has its value under that name and its derivative under name + "_derivative".
