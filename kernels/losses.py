"""Losses of elements, each written once: ``(value, slope)`` from a prediction, its target and the loss's parameter.

The loss of a row is the mean of its values; of the losses that `SUMMED` lists, the sum. `reference` has them under the
same names.
"""

from .elementary import exp_of_nonpositive, exponential, log1p_of_unit, log_of_normal, sign
from .primitives import absolute, select

SUMMED = ("half_squared_error",)


def half_squared_error(s, y, parameter):
    """``e^2 / 2`` of the error ``e = s - y``."""
    error = s - y
    return error * error * 0.5, error


def mean_squared_error(s, y, parameter):
    """``e^2``."""
    error = s - y
    return error * error, error * 2.0


def l1(s, y, parameter):
    """``|e|``; slope 0 at 0."""
    error = s - y
    return absolute(error), sign(error)


def huber(s, y, delta):
    """``e^2 / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``."""
    error = s - y
    size = absolute(error)
    value = select(size <= delta, error * error * 0.5, (size - 0.5 * delta) * delta)
    return value, select(size <= delta, error, sign(error) * delta)


# PyTorch's limits, which keep the loss of a certain and wrong probability finite.
LEAST_LOGARITHM, LEAST_VARIANCE = -100.0, 1e-12
SMALLEST_NORMAL, TWO_64, LOG_TWO_64 = 1.1754943508222875e-38, 18446744073709551616.0, 44.3614195558365
NAN = float("nan")


def limited_logarithm(p):
    """``max(ln p, -100)``; what is no normal number even when multiplied by 2^64 is below the limit."""
    tiny = p < SMALLEST_NORMAL
    value = log_of_normal(select(tiny, p * TWO_64, p)) - select(tiny, LOG_TWO_64, 0.0)
    return select(p < 0.0, NAN, select(value < LEAST_LOGARITHM, LEAST_LOGARITHM, value))


def binary_cross_entropy(p, y, parameter):
    """``-(y ln p + (1 - y) ln(1 - p))`` of a probability."""
    rest = 1.0 - p
    of_rest = select(p <= 0.5, log1p_of_unit(select(p <= 0.5, p, 0.0) * -1.0), limited_logarithm(rest))
    variance = p * rest
    value = (limited_logarithm(p) * y + of_rest * (1.0 - y)) * -1.0
    return value, (p - y) / select(variance < LEAST_VARIANCE, LEAST_VARIANCE, variance)


def binary_cross_entropy_with_logits(s, y, weight):
    """``ln(1 + e^s) - y s + (weight - 1) y ln(1 + e^-s)``; ``weight`` is that of the positive class."""
    linear = select(s > 0.0, s, 0.0) - y * s  # exact for y of 0 or 1, so that small losses stay
    e = exp_of_nonpositive(absolute(s) * -1.0)
    logarithm, probability = log1p_of_unit(e), select(s < 0.0, e, 1.0) / (e + 1.0)
    more, below = y * (weight - 1.0), select(s < 0.0, s * -1.0, 0.0)
    return linear + logarithm + more * (below + logarithm), probability - y + more * (probability - 1.0)


def poisson(s, y, parameter):
    """``e^s - y - y (s - ln y)``, half the deviance of a Poisson distribution whose mean is ``e^s``."""
    mean = exponential(s)
    counted = y >= SMALLEST_NORMAL
    deviance = mean - y - y * (s - log_of_normal(y))
    return select(counted, deviance, select(y < SMALLEST_NORMAL, mean, y)), mean - y


def quantile(s, y, q):
    """``(1 - q) e`` of an error ``e = s - y`` above 0, else ``-q e``; slope 0 at 0."""
    error = s - y
    slope = select(error > 0.0, 1.0 - q, select(error < 0.0, -q, error))
    return error * slope, slope
