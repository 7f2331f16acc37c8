"""Values and derivatives of the activations, each written once over `primitives` and `elementary` functions.

A name of ``layout.ACTIVATIONS`` is that of the value, ``value(z, parameter)``, and with ``_derivative`` after it that
of ``derivative(saved, parameter)``, where ``saved`` is the output or, where ``layout.SAVES_PRE_ACTIVATION`` lists the
activation, ``z``.
"""

from .elementary import (
    exp_of_nonpositive,
    expm1_of_nonpositive,
    gaussian_of,
    log1p_of_unit,
    lowest_exponent,
    normal_distribution,
    reduced_exponential,
)
from .primitives import absolute, fma, select


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


INVERSE_ROOT_2PI = 0.3989422804014327


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


def tanh_of_softplus_and_slope(z):
    """``tanh(ln(1 + e^z))`` and its derivative, as quotients of positive sums of ``e^-|z|``: nothing cancels."""
    e = exp_of_nonpositive(absolute(z) * -1.0)
    numerator = select(z < 0.0, e * (e + 2.0), fma(e, 2.0, 1.0))
    denominator = numerator + select(z < 0.0, 2.0, e * e * 2.0)
    slope = (e + 1.0) * select(z < 0.0, e, e * e) * 4.0 / (denominator * denominator)
    return numerator / denominator, slope


def mish(z, parameter):
    """``z tanh(ln(1 + e^z))``."""
    factor, _ = tanh_of_softplus_and_slope(z)
    return weighted(factor, z)


def mish_derivative(saved, parameter):
    """``f + z f'`` with ``f = tanh(ln(1 + e^z))``; from z."""
    factor, slope = tanh_of_softplus_and_slope(saved)
    return weighted(slope, saved) + factor
