"""Elementary functions, each written once over `primitives`.

The exponential reduces its argument to ``x = n ln 2 + r`` (Cody and Waite) and takes a polynomial of ``r``; its
coefficients are a Chebyshev fit of ``(e^r - 1 - r) / r^2`` for float32 (relative error of ``e^r`` 1.0e-8) and
the Taylor series for float64. NaN propagates, infinities have their limits.
"""

from math import factorial

from .primitives import absolute, exponent_and_mantissa, fma, is_single, nearest_power, select

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


def exponential(x):
    """``e^x``; 0 below the smallest normal number, infinity above the largest."""
    lowest = lowest_exponent(x)
    large = x > -0.5 * lowest  # there the square of the root: its power of two is a normal number
    half = select(large, x * 0.5, x)
    half = select(half > -lowest, -lowest, half)
    s, q = reduced_exponential(select(half < lowest, lowest, half))
    e = select(x < lowest, 0.0, fma(s, q, s))
    return select(large, e * e, e)


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


# ------------------------------------------------------------------------------------------ the sign
def sign(x):
    """1 above 0, -1 below, else ``x`` itself: 0, or NaN."""
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, x))
