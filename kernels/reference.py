"""The contract, in NumPy: the definition, the documentation and the oracle of every backend.

Every backend module has these names with these arguments in this order and this meaning. Inputs come
first, then scalars, outputs last and written in place. Kernels never validate, never raise and never
allocate results; ``beta = 0`` means that an output is not read. Arrays are float32 or float64 with
unit stride along rows; a batch has one example a row.

Notation: ``n`` rows (the batch), ``in`` and ``out`` features of a layer, ``z`` the pre-activation,
``grad_*`` the derivative of the loss with respect to ``*``.

Source of the equations: the linear layer, ``Y = X W + b``, and backpropagation through a chain of
them, ``delta_l = (delta_(l+1) W_(l+1)^T) * g'(Z_l)``; Kingma & Ba, "Adam", 2015, for `adam_step`; Chen et al.,
"Symbolic discovery of optimization algorithms", 2023, for `lion_step`.
"""

import contextlib
import functools
import math
import sys

import numpy as np

from . import layout as _layout
from . import program as _program
from . import splitmix as _splitmix
from . import walk as _walk
from .contract import touches as _touches

name = "reference"


# ---------------------------------------------------------------------------------- activations
def identity(z, parameter):
    return z


def identity_derivative(saved, parameter):
    return np.ones_like(saved)


def relu(z, parameter):
    return np.where(z <= 0, np.zeros((), z.dtype), z)  # NaN is not <= 0 and stays NaN


def relu_derivative(saved, parameter):
    return np.where(saved <= 0, 0, 1).astype(saved.dtype)


def tanh(z, parameter):
    return np.tanh(z)


def tanh_derivative(saved, parameter):
    return 1 - saved * saved


def sigmoid(z, parameter):
    e = np.exp(-np.abs(z))  # never overflows
    return np.where(z >= 0, 1, e) / (1 + e)


def sigmoid_derivative(saved, parameter):
    return saved * (1 - saved)


def leaky_relu(z, parameter):
    return np.where(z <= 0, z * z.dtype.type(parameter), z)


def leaky_relu_derivative(saved, parameter):
    return np.where(saved <= 0, parameter, 1).astype(saved.dtype)


def elu(z, parameter):
    return np.where(z > 0, z, z.dtype.type(parameter) * np.expm1(np.minimum(z, 0)))


def elu_derivative(saved, parameter):
    return np.where(saved > 0, 1, saved + saved.dtype.type(parameter))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu(z, parameter):
    scale = z.dtype.type(SELU_SCALE)
    return scale * elu(z, SELU_ALPHA)


def selu_derivative(saved, parameter):
    scale = saved.dtype.type(SELU_SCALE)
    return np.where(saved > 0, scale, saved + saved.dtype.type(SELU_SCALE * SELU_ALPHA))


def _erfc(x):
    return np.vectorize(math.erfc, otypes=[np.float64])(x)


def _weighted(weight, x):
    """``weight * x`` for a weight that has gone to 0 faster than ``x`` to infinity."""
    return np.where(weight > 0, weight * x, weight)


def gelu(z, parameter):
    wide = z.astype(np.float64)
    return _weighted(0.5 * _erfc(-wide / math.sqrt(2)), wide).astype(z.dtype)


def gelu_derivative(saved, parameter):
    z = saved.astype(np.float64)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (0.5 * _erfc(-z / math.sqrt(2)) + _weighted(density, z)).astype(saved.dtype)


def _sigmoid_slope(z):
    """``sigmoid'(z)`` from z, without the cancellation in ``1 - s``."""
    e = np.exp(-np.abs(z))
    return e / (1 + e) ** 2


def _gelu_argument(z):
    """2 sqrt(2 / pi) (z + 0.044715 z^3) and its derivative."""
    slope = z.dtype.type(2 * math.sqrt(2 / math.pi))
    cube = z.dtype.type(0.044715)
    return slope * z * (1 + cube * z * z), slope * (1 + 3 * cube * z * z)


def gelu_tanh(z, parameter):
    return _weighted(sigmoid(_gelu_argument(z)[0], 0.0), z)  # (1 + tanh u) / 2 = sigmoid(2 u)


def gelu_tanh_derivative(saved, parameter):
    argument, slope = _gelu_argument(saved)
    return sigmoid(argument, 0.0) + _weighted(_sigmoid_slope(argument), saved * slope)


def silu(z, parameter):
    return _weighted(sigmoid(z, 0.0), z)


def silu_derivative(saved, parameter):
    return sigmoid(saved, 0.0) + _weighted(_sigmoid_slope(saved), saved)


def softplus(z, parameter):
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def softplus_derivative(saved, parameter):
    return -np.expm1(-saved)


def mish(z, parameter):
    return _weighted(np.tanh(softplus(z, 0.0)), z)


def mish_derivative(saved, parameter):
    inner = softplus(saved, 0.0)
    slope = sigmoid(saved, 0.0) / np.cosh(inner) ** 2  # without the cancellation in 1 - tanh^2
    return np.tanh(inner) + _weighted(slope, saved)


# (value of z, derivative from what is saved); the saved array is the output, or z where
# layout.SAVES_PRE_ACTIVATION lists the activation.
ACTIVATIONS = {
    "identity": (identity, identity_derivative),
    "relu": (relu, relu_derivative),
    "tanh": (tanh, tanh_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "leaky_relu": (leaky_relu, leaky_relu_derivative),  # parameter: the slope below 0
    "elu": (elu, elu_derivative),  # parameter: alpha
    "selu": (selu, selu_derivative),
    "gelu": (gelu, gelu_derivative),
    "gelu_tanh": (gelu_tanh, gelu_tanh_derivative),
    "silu": (silu, silu_derivative),
    "softplus": (softplus, softplus_derivative),
    "mish": (mish, mish_derivative),
}


def _activation(code):
    return ACTIVATIONS[_layout.ACTIVATIONS[code]]


@_touches("z", "out")
def activation_forward(z, activation, activation_parameter, out):
    """``out = act(z)``.

    Parameters
    ----------
    z : array (n, features)
    activation : int
        Code from ``layout.ACTIVATIONS``.
    activation_parameter : float
        The slope or scale of activations that have one; ignored by the others.
    out : array (n, features), written
        May be ``z`` itself.
    """
    with np.errstate(all="ignore"):
        out[...] = _activation(activation)[0](z, activation_parameter)


@_touches("grad_out saved", "grad_z")
def activation_backward(grad_out, saved, activation, activation_parameter, grad_z):
    """``grad_z = grad_out * act'(saved)``.

    Parameters
    ----------
    grad_out, saved : arrays (n, features)
        ``saved`` is the output of the activation, or its pre-activation for the activations that
        ``layout.SAVES_PRE_ACTIVATION`` names.
    activation, activation_parameter : int, float
    grad_z : array (n, features), written
        May be ``grad_out`` itself.
    """
    with np.errstate(all="ignore"):
        grad_z[...] = grad_out * _activation(activation)[1](saved, activation_parameter)


@_touches("z", "out")
def softmax(z, out):
    """``out_ij = e^(z_ij - m_i) / sum_j e^(z_ij - m_i)`` with ``m_i`` the largest of row i.

    -inf becomes 0. A row that has NaN or +inf, or nothing but -inf, becomes NaN: its shares have no value.

    Parameters
    ----------
    z : array (n, features)
    out : array (n, features), written
        May be ``z`` itself.
    """
    with np.errstate(all="ignore"):
        exponential = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
        out[...] = exponential / exponential.sum(axis=1, keepdims=True)


# --------------------------------------------------------------------------------- linear layer
def precisions(dtype) -> tuple[str, ...]:
    """The names from ``layout.PRECISIONS`` that products of this dtype may have; "ieee" always."""
    return _layout.PRECISIONS if dtype == np.float32 else _layout.PRECISIONS[:1]


def _rounded(x, name):
    """The nearest numbers with as few bits as the precision has: tf32 rounds ties away from 0, bf16 to even.

    The exponents are those of float32, so subnormal numbers and -0 stay; NaN stays, and what is beyond the largest
    number becomes infinity.
    """
    if name == "ieee":
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    if name == "tf32":
        bits = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    else:
        bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, bits.view(np.float32))


def _product(a, b, precision):
    """``a @ b`` of what the precision makes of the factors.

    Of bf16x3 a factor is ``high + low`` with ``high = bf16(x)`` and ``low = bf16(x - high)``, and the product is
    ``high high + high low + low high``: within ``2**-15 |a| @ |b|`` of the exact one, besides the roundings of sums.
    Where a factor is infinite, or rounds to infinity, ``low`` is not finite either and the product is NaN.
    """
    name = _layout.PRECISIONS[precision]
    if name not in precisions(a.dtype):
        raise ValueError(f"precision {name!r} is for float32, got {a.dtype}")
    if name != "bf16x3":
        return _rounded(a, name) @ _rounded(b, name)
    a_high, b_high = (_rounded(x, "bf16") for x in (a, b))
    a_low, b_low = (_rounded(x - high, "bf16") for x, high in ((a, a_high), (b, b_high)))
    return a_high @ b_high + a_high @ b_low + a_low @ b_high


@_touches("x weight bias", "out saved")
def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """``z = x @ weight + bias``; ``out = act(z)``.

    Parameters
    ----------
    x : array (n, in)
    weight : array (in, out)
    bias : array (out,) or None
    activation, activation_parameter : int, float
    out : array (n, out), written
    saved : array (n, out), written
        ``out`` itself where the derivative needs only the output, else another array that
        receives ``z``.
    precision : int
        Code from ``layout.PRECISIONS``, of those that `precisions` names: what ``x`` and ``weight`` are rounded to.
        Other backends refuse what they do not have.

    Notes
    -----
    In the compiled backends a row of the result has the same bits whatever rows are around it; here NumPy's
    product decides.
    """
    with np.errstate(all="ignore"):
        z = _product(x, weight, precision)
        if bias is not None:
            z = z + bias
        saved[...] = z
        activation_forward(z, activation, activation_parameter, out)


@_touches("grad_z weight saved", "grad_z_prev")
def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """``grad_z_prev = (grad_z @ weight.T) * act'(saved)``.

    Parameters
    ----------
    grad_z : array (n, out)
    weight : array (in, out)
    saved : array (n, in)
        What the activation that produced this layer's input saved.
    activation, activation_parameter : int, float
        That activation; identity gives the plain gradient of the layer's input.
    grad_z_prev : array (n, in), written
    precision : int
        What ``grad_z`` and ``weight`` are rounded to.
    """
    with np.errstate(all="ignore"):
        product = _product(grad_z, weight.T, precision)
        activation_backward(product, saved, activation, activation_parameter, grad_z_prev)


@_touches("x grad_z grad_weight grad_bias", "grad_weight grad_bias")
def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``; ``grad_bias`` likewise, column sums.

    Parameters
    ----------
    x : array (n, in)
    grad_z : array (n, out)
    beta : int
        0 overwrites, without reading; 1 adds.
    grad_weight : array (in, out), written
    grad_bias : array (out,) or None, written
    precision : int
        What ``x`` and ``grad_z`` are rounded to for ``grad_weight``; the column sums are of ``grad_z`` as it is.
    """
    with np.errstate(all="ignore"):
        weight_sum = _product(x.T, grad_z, precision)
        grad_weight[...] = grad_weight + weight_sum if beta else weight_sum
        if grad_bias is not None:
            column_sum = grad_z.sum(axis=0)
            grad_bias[...] = grad_bias + column_sum if beta else column_sum


# -------------------------------------------------------------------------------------- dropout
@_touches("x rows", "out")
def dropout(x, rows, key, probability, out):
    """``out = x / (1 - p)`` where a unit is kept, else 0; forward and, with the gradient as ``x``, backward.

    A unit is kept where ``splitmix64(splitmix64(key + row) + unit) >= p * 2**64``: a matter of the key, the number
    of the row and the unit alone.

    Parameters
    ----------
    x : array (n, features)
    rows : int64 array (n,)
        A number for each row: its place in the data set.
    key : int
        64 random bits, as an int64.
    probability : float
        Of dropping a unit, in [0, 1).
    out : array (n, features), written
        May be ``x`` itself.
    """
    with np.errstate(all="ignore"):
        row_keys = _splitmix.splitmix64(np.int64(key).view(np.uint64) + rows.view(np.uint64))
        bits = _splitmix.splitmix64(row_keys[:, None] + np.arange(x.shape[1], dtype=np.uint64))
        kept = bits >= _splitmix.threshold(probability)
        out[...] = np.where(kept, x * x.dtype.type(1 / (1 - probability)), 0)


@_touches("rows", "rows", host="rows")
def shuffle(rows, key):
    """Permute ``rows`` in place: Fisher and Yates' algorithm on SplitMix64.

    For ``i = n - 1 ... 1`` exchanges elements ``i`` and ``j = floor(u (i + 1))``, where ``u`` is the upper half of
    ``splitmix64(key + i)`` as a fraction. A permutation is as likely as another to within ``n / 2**32``.

    Parameters
    ----------
    rows : int64 array (n,), permuted
        ``n < 2**32``.
    key : int
        64 random bits, as an int64.
    """
    with np.errstate(all="ignore"):
        bits = _splitmix.splitmix64(np.int64(key).view(np.uint64) + np.arange(len(rows), dtype=np.uint64))
    for i in range(len(rows) - 1, 0, -1):
        j = (int(bits[i]) >> 32) * (i + 1) >> 32
        rows[i], rows[j] = rows[j], rows[i]


# --------------------------------------------------------------------------------------- losses
# Each returns the loss of every row and the gradient of every row's loss. ``parameter`` is what LOSSES says.
def half_squared_error(prediction, target, parameter):
    """``1/2 ||s - y||^2``."""
    error = prediction - target
    return 0.5 * (error * error).sum(axis=1), error


def mean_squared_error(prediction, target, parameter):
    """``||s - y||^2 / out``."""
    error = prediction - target
    return (error * error).mean(axis=1), 2 * error / error.dtype.type(prediction.shape[1])


def l1(prediction, target, parameter):
    """``sum |s - y| / out``; slope 0 at 0."""
    error = prediction - target
    return np.abs(error).mean(axis=1), np.sign(error) / error.dtype.type(prediction.shape[1])


def huber(prediction, target, parameter):
    """``e^2 / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``; the mean over outputs."""
    error, delta = prediction - target, prediction.dtype.type(parameter)
    size = np.abs(error)
    value = np.where(size <= delta, error * error / 2, delta * (size - delta / 2))
    slope = np.where(size <= delta, error, delta * np.sign(error))
    return value.mean(axis=1), slope / error.dtype.type(prediction.shape[1])


def binary_cross_entropy(prediction, target, parameter):
    """``-(y ln p + (1 - y) ln(1 - p))`` of probabilities, logarithms not below -100; the mean over outputs.

    The gradient divides by ``p (1 - p)``, not below 1e-12: both limits are PyTorch's.
    """
    columns = prediction.dtype.type(prediction.shape[1])
    value = -(target * np.maximum(np.log(prediction), -100) + (1 - target) * np.maximum(np.log1p(-prediction), -100))
    slope = (prediction - target) / np.maximum(prediction * (1 - prediction), prediction.dtype.type(1e-12))
    return value.mean(axis=1), slope / columns


def binary_cross_entropy_with_logits(prediction, target, parameter):
    """``ln(1 + e^s) - y s + (w - 1) y ln(1 + e^-s)``, ``w`` the weight of the positive class; the mean over outputs."""
    columns, weight = prediction.dtype.type(prediction.shape[1]), prediction.dtype.type(parameter)
    # Exact for y of 0 or 1, so that small losses stay.
    linear = np.maximum(prediction, 0) - target * prediction
    logarithm, probability = np.log1p(np.exp(-np.abs(prediction))), sigmoid(prediction, 0.0)
    more = (weight - 1) * target
    value = linear + logarithm + more * (np.maximum(-prediction, 0) + logarithm)
    return value.mean(axis=1), (probability - target + more * (probability - 1)) / columns


def poisson(prediction, target, parameter):
    """``e^s - y - y (s - ln y)``, half the deviance of a Poisson variable of mean ``e^s``; mean over outputs."""
    columns, mean = prediction.dtype.type(prediction.shape[1]), np.exp(prediction)
    deviance = mean - target - target * (prediction - np.log(np.where(target == 0, 1, target)))
    return np.where(target == 0, mean, deviance).mean(axis=1), (mean - target) / columns


def quantile(prediction, target, parameter):
    """``(1 - q) e`` where ``e = s - y`` is above 0, else ``-q e``; slope 0 at 0; the mean over outputs."""
    error, q = prediction - target, prediction.dtype.type(parameter)
    slope = np.where(error > 0, 1 - q, np.where(error < 0, -q, error))
    return (error * slope).mean(axis=1), slope / error.dtype.type(prediction.shape[1])


def soft_cross_entropy(prediction, target, parameter):
    """``-sum_k y_k log softmax(s)_k`` for a distribution y, smoothed to ``(1 - parameter) y + parameter / out``.

    A class with ``y_k = 0`` adds nothing, even where its logit is -inf.
    """
    smoothing = prediction.dtype.type(parameter)
    target = (1 - smoothing) * target + smoothing / prediction.dtype.type(prediction.shape[1])
    shifted = prediction - prediction.max(axis=1, keepdims=True)
    exponential = np.exp(shifted)
    total = exponential.sum(axis=1, keepdims=True)
    mass = target.sum(axis=1, keepdims=True)
    of_target = np.where(target == 0, 0, target * shifted).sum(axis=1)
    return (np.log(total) * mass)[:, 0] - of_target, mass * exponential / total - target


def cross_entropy(prediction, target, parameter):
    """`soft_cross_entropy` of integer labels; NaN where a label is no class."""
    onehot, known = np.zeros_like(prediction), _classes(prediction, target)
    onehot[known, target[known]] = 1
    value, slope = soft_cross_entropy(prediction, onehot, parameter)
    return np.where(known, value, np.nan), np.where(known[:, None], slope, np.nan)


def _classes(prediction, target):
    """Which labels are classes."""
    return (target >= 0) & (target < prediction.shape[1])


LOSSES = {
    "half_squared_error": half_squared_error,
    "mean_squared_error": mean_squared_error,
    "cross_entropy": cross_entropy,  # parameter: label smoothing
    "soft_cross_entropy": soft_cross_entropy,  # parameter: label smoothing
    "l1": l1,
    "huber": huber,  # parameter: delta
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,  # parameter: weight of the positive class
    "poisson": poisson,
    "quantile": quantile,  # parameter: q
}


@_touches("prediction target row_weight", "row_loss row_hit grad")
def loss_forward_backward(loss, loss_parameter, prediction, target, row_weight, row_loss, row_hit, grad):
    """Losses of the rows, and the gradient of ``sum_i row_weight_i * row_loss_i``.

    With ``row_weight = 1/n`` this is the mean over rows; with ``w_i / sum(w)`` the weighted mean.

    Parameters
    ----------
    loss : int
        Code from ``layout.LOSSES``.
    loss_parameter : float
        What `LOSSES` says; ignored by the other losses.
    prediction : array (n, out)
    target : int64 array (n,) of labels for the losses in ``layout.LABEL_LOSSES``, else array (n, out)
        Where a label is no class, below 0 or not below out, loss and gradient of the row are NaN, or 0 where its
        weight is 0: who gave the labels may have changed them since they were checked.
    row_weight : float64 array (n,)
    row_loss : array (n,) of the prediction's dtype, written
    row_hit : int64 array (n,), written
        1 where the first largest output of the row is its label and the loss a number; 0 for losses
        without labels.
    grad : array (n, out), written
        May be ``prediction`` itself.
    """
    loss_name = _layout.LOSSES[loss]
    with np.errstate(all="ignore"):
        value, gradient = LOSSES[loss_name](prediction, target, loss_parameter)
        if loss_name in _layout.LABEL_LOSSES:
            hit = prediction.argmax(axis=1) == target
            row_hit[...] = hit & ~np.isnan(value)
            nothing = ~_classes(prediction, target) & (row_weight == 0)
            value, gradient = np.where(nothing, 0, value), np.where(nothing[:, None], 0, gradient)
        else:
            row_hit[...] = 0
        row_loss[...] = value
        grad[...] = gradient * row_weight[:, None].astype(prediction.dtype)


# ----------------------------------------------------------------------------------- optimizers
# ``coefficients`` begin with what each lists; ``l2`` adds ``l2 * W`` to the gradient.
def sgd_step(coefficients, values, grad):
    """Gradient descent, ``W <- W - lr g``; ``[lr, l2]``."""
    lr, l2 = coefficients[:2].astype(values.dtype)
    values -= lr * (grad + l2 * values)


def momentum_step(coefficients, values, grad, velocity):
    """``V <- mu V + gain g``, ``W <- W - lr V``; ``[lr, l2, mu, gain]``.

    ``gain`` is 1 for classical momentum and ``1 - mu`` for the exponentially weighted average.
    """
    lr, l2, mu, gain = coefficients[:4].astype(values.dtype)
    velocity[...] = mu * velocity + gain * (grad + l2 * values)
    values -= lr * velocity


def nesterov_step(coefficients, values, grad, velocity):
    """``V <- mu V + g``, ``W <- W - lr (g + mu V)``; ``[lr, l2, mu]``."""
    lr, l2, mu = coefficients[:3].astype(values.dtype)
    grad = grad + l2 * values
    velocity[...] = mu * velocity + grad
    values -= lr * (grad + mu * velocity)


def rmsprop_step(coefficients, values, grad, square_avg):
    """``S <- b S + (1 - b) g^2``, ``W <- W - lr g / (sqrt(S + inside) + outside)``.

    ``[lr, l2, b, 1 - b, inside, outside]``: epsilon stands in one of the last two places, the other is 0.
    """
    lr, l2, b, c, inside, outside = coefficients[:6].astype(values.dtype)
    grad = grad + l2 * values
    square_avg[...] = b * square_avg + c * grad * grad
    values -= lr * grad / (np.sqrt(square_avg + inside) + outside)


def adam_step(coefficients, values, grad, exp_avg, exp_avg_sq):
    """Adam with the bias corrections folded into the step size.

    ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2``,
    ``W <- (1 - decay) W - a m / (sqrt(v) + e)`` with ``a = lr sqrt(1 - b2^t) / (1 - b1^t)`` and
    ``e = eps sqrt(1 - b2^t)``: the same numbers as the divided moments of the paper. ``decay`` is AdamW's
    ``lr * weight_decay``.
    ``[a, b1, 1 - b1, b2, 1 - b2, e, l2, decay]``.
    """
    _adaptive_step(coefficients, values, grad, exp_avg, exp_avg_sq, exp_avg_sq)


def lion_step(coefficients, values, grad, exp_avg):
    """``W <- (1 - decay) W - lr sign(b1 m + (1 - b1) g)``, then ``m <- b2 m + (1 - b2) g``.

    The sign of 0 is 0, that of NaN is NaN. ``decay`` is ``lr * weight_decay``.
    ``[lr, b1, 1 - b1, b2, 1 - b2, decay]``.
    """
    lr, b1, c1, b2, c2, decay = coefficients[:6].astype(values.dtype)
    values -= decay * values + lr * np.sign(b1 * exp_avg + c1 * grad)
    exp_avg[...] = b2 * exp_avg + c2 * grad


def amsgrad_step(coefficients, values, grad, exp_avg, exp_avg_sq, max_exp_avg_sq):
    """`adam_step` with ``u <- max(u, v)`` in place of ``v`` under the root (Reddi et al., 2018, as PyTorch has it)."""
    _adaptive_step(coefficients, values, grad, exp_avg, exp_avg_sq, max_exp_avg_sq)


def _adaptive_step(coefficients, values, grad, exp_avg, exp_avg_sq, largest):
    a, b1, c1, b2, c2, e, l2, decay = coefficients[:8].astype(values.dtype)
    grad = grad + l2 * values
    exp_avg[...] = b1 * exp_avg + c1 * grad
    exp_avg_sq[...] = b2 * exp_avg_sq + c2 * grad * grad
    np.maximum(largest, exp_avg_sq, out=largest)
    values -= decay * values + a * exp_avg / (np.sqrt(largest) + e)


STEPS = {
    "sgd": sgd_step,
    "momentum": momentum_step,
    "nesterov": nesterov_step,
    "rmsprop": rmsprop_step,
    "adam": adam_step,
    "lion": lion_step,
    "amsgrad": amsgrad_step,
}


@_touches("coefficients values grad state", "values state", host="coefficients")
def optimizer_step(optimizer, coefficients, values, grad, state):
    """One update of ``values`` in place.

    Parameters
    ----------
    optimizer : int
        Code from ``layout.OPTIMIZERS``.
    coefficients : float64 array (layout.COEFFICIENTS,)
        The scalars of this step; each ``*_step`` above lists its own.
    values : array (size,), updated
    grad : array (size,)
    state : tuple of arrays (size,), updated
        As many as ``layout.OPTIMIZER_STATES`` says, zero before the first step.
    """
    with np.errstate(all="ignore"):
        STEPS[_layout.OPTIMIZERS[optimizer]](coefficients, values, grad, *state)


def optimizer_call(optimizer, coefficients, values, grad, state):
    """`optimizer_step` with these arguments, as a function of none; the caller keeps the arrays.

    On the CPU it is C from end to end, so that no handler of a signal cuts it in two.
    """
    return functools.partial(optimizer_step, optimizer, coefficients, values, grad, state)


# ------------------------------------------------------------------------------ normalisation, sums
@_touches("x y", "out")
def add(x, y, out):
    """``out = x + y``.

    Parameters
    ----------
    x, y : arrays (n, features)
    out : array (n, features), written
        May be ``x`` or ``y`` itself.
    """
    with np.errstate(all="ignore"):
        np.add(x, y, out=out)


def _affine(normalised, weight, bias):
    return normalised if weight is None else normalised * weight + bias


@_touches("x weight bias", "out saved scale")
def layer_norm_forward(x, weight, bias, eps, out, saved, scale):
    """``out = w x̂ + b`` with ``x̂ = (x - mean) / sqrt(var + eps)``, mean and variance over the features of a row.

    Parameters
    ----------
    x : array (n, features)
    weight, bias : arrays (features,), or both None: 1 and 0
    eps : float
        Positive.
    out : array (n, features), written
        May be ``x`` itself.
    saved : array (n, features) or None, written
        ``x̂``, for the way back.
    scale : array (n, 1), written
        ``1 / sqrt(var + eps)``; the variance is the mean of the squares.

    Notes
    -----
    Ba, Kiros & Hinton, "Layer normalization", 2016.
    """
    with np.errstate(all="ignore"):
        centred = x - x.mean(axis=1, keepdims=True)
        scale[...] = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + x.dtype.type(eps))
        normalised = centred * scale
        if saved is not None:
            saved[...] = normalised
        out[...] = _affine(normalised, weight, bias)


@_touches("grad_out weight saved scale", "grad_x")
def layer_norm_backward_input(grad_out, weight, saved, scale, grad_x):
    """``grad_x = scale (g - mean(g) - x̂ mean(g x̂))`` with ``g = w grad_out``; means over the features of a row.

    Parameters
    ----------
    grad_out, saved : arrays (n, features)
    weight : array (features,) or None
    scale : array (n, 1)
        What `layer_norm_forward` wrote, as ``saved``.
    grad_x : array (n, features), written
        May be ``grad_out`` itself.
    """
    with np.errstate(all="ignore"):
        g = grad_out if weight is None else grad_out * weight
        along = (g * saved).mean(axis=1, keepdims=True)
        grad_x[...] = scale * (g - g.mean(axis=1, keepdims=True) - saved * along)


@_touches("grad_out saved grad_weight grad_bias", "grad_weight grad_bias")
def norm_backward_params(grad_out, saved, beta, grad_weight, grad_bias):
    """``grad_weight = beta * grad_weight + sum_i grad_out_i x̂_i``; ``grad_bias`` likewise of ``grad_out``.

    Parameters
    ----------
    grad_out, saved : arrays (n, features)
        ``saved`` is ``x̂``.
    beta : int
        0 overwrites, without reading; 1 adds.
    grad_weight, grad_bias : arrays (features,), written
    """
    with np.errstate(all="ignore"):
        of_weight, of_bias = (grad_out * saved).sum(axis=0), grad_out.sum(axis=0)
        grad_weight[...] = grad_weight + of_weight if beta else of_weight
        grad_bias[...] = grad_bias + of_bias if beta else of_bias


@_touches("x row_weight", "mean scale variance")
def batch_moments(x, row_weight, eps, mean, scale, variance):
    """``mean = sum_i w_i x_i``, ``scale = 1 / sqrt(sum_i w_i (x_i - mean)^2 + eps)``, for every feature.

    Parameters
    ----------
    x : array (n, features)
    row_weight : float64 array (n,)
        Their sum is 1, or they are all 0.
    eps : float
        Positive.
    mean, scale : arrays (features,), written
    variance : array (features,), written
        Without bias: the weighted one over ``1 - sum_i w_i^2``, which is 1 - 1/n for equal weights. NaN where no more
        than one row counts: there is nothing to learn from it.
    """
    with np.errstate(all="ignore"):
        weight = row_weight.astype(x.dtype)[:, None]
        mean[...] = (weight * x).sum(axis=0)
        centred = x - mean
        biased = (weight * centred * centred).sum(axis=0)
        scale[...] = 1 / np.sqrt(biased + x.dtype.type(eps))
        rest = 1 - np.square(row_weight).sum()
        variance[...] = biased / x.dtype.type(rest) if np.count_nonzero(row_weight) > 1 else np.nan


@_touches("running_mean running_var", "mean scale")
def running_moments(running_mean, running_var, eps, mean, scale):
    """``mean = running_mean``, ``scale = 1 / sqrt(running_var + eps)``: the moments outside of training.

    Parameters
    ----------
    running_mean, running_var : arrays (features,)
    eps : float
    mean, scale : arrays (features,), written
    """
    with np.errstate(all="ignore"):
        mean[...] = running_mean
        scale[...] = 1 / np.sqrt(running_var + running_var.dtype.type(eps))


@_touches("x mean scale weight bias", "out saved")
def batch_norm_forward(x, mean, scale, weight, bias, out, saved):
    """``out = w x̂ + b`` with ``x̂ = (x - mean) * scale``.

    Parameters
    ----------
    x : array (n, features)
    mean, scale : arrays (features,)
    weight, bias : arrays (features,), or both None: 1 and 0
    out : array (n, features), written
        May be ``x`` itself.
    saved : array (n, features) or None, written
        ``x̂``, for the way back.

    Notes
    -----
    Ioffe & Szegedy, "Batch normalization", 2015.
    """
    with np.errstate(all="ignore"):
        normalised = (x - mean) * scale
        if saved is not None:
            saved[...] = normalised
        out[...] = _affine(normalised, weight, bias)


@_touches("grad_out row_weight weight saved scale grad_weight grad_bias", "grad_x")
def batch_norm_backward_input(grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x):
    """``grad_x_i = w scale (grad_out_i - r_i (grad_bias + x̂_i grad_weight))``, ``r`` the weights of the rows.

    Parameters
    ----------
    grad_out, saved : arrays (n, features)
    row_weight : float64 array (n,)
    weight : array (features,) or None
    scale : array (features,)
    grad_weight, grad_bias : arrays (features,), or both None
        What `norm_backward_params` made of the whole batch; None where the moments are constants.
    grad_x : array (n, features), written
        May be ``grad_out`` itself.
    """
    with np.errstate(all="ignore"):
        grad = grad_out
        if grad_weight is not None:
            grad = grad_out - row_weight.astype(grad_out.dtype)[:, None] * (grad_bias + saved * grad_weight)
        grad_x[...] = grad * (scale if weight is None else scale * weight)


@_touches("mean variance running_mean running_var", "running_mean running_var")
def update_statistics(mean, variance, momentum, running_mean, running_var):
    """``running <- (1 - momentum) running + momentum of_batch``; nothing where the batch's variance is NaN.

    Parameters
    ----------
    mean, variance : arrays (features,)
        Of `batch_moments`.
    momentum : float
        In [0, 1].
    running_mean, running_var : arrays (features,), updated
    """
    there, share = ~np.isnan(variance), mean.dtype.type(momentum)
    for running, new in ((running_mean, mean), (running_var, variance)):
        running[there] = (1 - share) * running[there] + share * new[there]


# -------------------------------------------------------------------------------------- network
class InferenceWorkspace:
    """What `network_forward` needs besides its arguments; one call at a time may use it."""

    def __init__(self, program, dtype):
        self.program, self.dtype = program, np.dtype(dtype)


class TrainingWorkspace:
    """What `network_train_steps` needs besides its arguments, for batches of up to ``batch_size``."""

    def __init__(self, program, dtype, batch_size, loss, loss_parameter, optimizer):
        self.program, self.dtype, self.batch_size = program, np.dtype(dtype), batch_size
        self.loss, self.loss_parameter, self.optimizer = loss, loss_parameter, optimizer


def _in_dtype(array, dtype):
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _whole(program, parameters, statistics):
    """The parameters and statistics, as a walk finds them."""
    return _walk.views_in(_program.PARAMETERS, program.arrays, parameters) | _walk.views_in(
        _program.STATISTICS, program.statistics, statistics
    )


@_touches("parameters statistics x", "out")
def network_forward(workspace, parameters, statistics, x, out):
    """The whole chain: ``out = network(x)``.

    Parameters
    ----------
    workspace : InferenceWorkspace
    parameters : array (size,)
        The padded buffer that ``program.lower`` describes.
    statistics : array (statistics_size,)
        The running statistics, likewise.
    x : array (n, in), of a dtype that `gathers` accepts, C-contiguous
    out : array (n, out), C-contiguous, written

    Notes
    -----
    In the compiled backends a row of the result has the same bits whatever rows are around it and however many
    threads ran.
    """
    whole, listing = _whole(workspace.program, parameters, statistics), workspace.program.evaluation
    kernels = sys.modules[__name__]
    out[...] = _walk.Walk(kernels, listing, whole, _in_dtype(x, workspace.dtype), np.empty).forward()


@_touches(
    "parameters statistics state coefficients keys x target row_weight rows",
    "parameters statistics state step_loss step_hits step_squares",
    host="coefficients keys rows step_loss step_hits step_squares",
)
def network_train_steps(
    workspace, parameters, statistics, state, coefficients, keys, x, target, row_weight, rows, batch_size,
    step_loss, step_hits, step_squares=None, exchange=None,
):  # fmt: skip
    """Many training steps: gather rows, forward, loss, backward, update.

    Stops before the update of the first step whose loss is not finite, as that of a label that is no class.

    Parameters
    ----------
    workspace : TrainingWorkspace
    parameters : array (size,), updated
    statistics : array (statistics_size,), updated
        With the parameters.
    state : tuple of arrays (size,), updated
    coefficients : float64 array (steps, layout.COEFFICIENTS), or (2, steps, layout.COEFFICIENTS)
        Of two, the first are of matrices, the second of vectors; both C-contiguous. The GPU refuses two.
    keys : uint64 array (steps,)
        Random bits of each step, for dropout.
    x : array (N, in), of a dtype that `gathers` accepts, C-contiguous
    target : int64 array (N,) of labels, or array (N, out) of a dtype that `gathers` accepts
    row_weight : float64 array (N,) or None
        None is the mean over the rows of a batch, else the weighted mean; a batch whose weights have a sum below
        ``layout.LEAST_WEIGHT`` has loss and gradient 0.
    rows : int64 array (r,), or (2, r), C-contiguous
        The rows to use, in order; ``steps = ceil(r / batch_size)``, the last batch may be short. Of two, the second are
        the numbers that dropout knows these rows by.
    batch_size : int
        At most the workspace's.
    step_loss : float64 array (steps,), written
        The loss of each batch before its update.
    step_hits : int64 array (steps,), written
        Rows of each batch whose largest output is their label.
    step_squares : float64 array (steps,), written, or None
        Of each step done, the sum of the squares of the weights of linear layers that it updates, before it updates
        them; biases do not count. The order of the sum is fixed. The GPU refuses it.
    exchange : object, or None
        Other processes have rows of the batch as well. There is one step then, of these rows, which may be none; what
        is written is of all rows of the batch. ``exchange.weight`` is the sum of their weights. The step fills
        ``exchange.buffer``, an array of the dtype of the network, with what these rows contribute: the gradients of the
        parameters that train, laid out as `program.Program.gradients` says, then the loss, then the hits; there may be
        room for more behind them. Between gradient and update it calls ``exchange.reduce()``, which makes the buffer
        that of all rows. ``exchange.share(operation, values)`` is called with the arguments of an instruction that has
        left sums over these rows for others, and makes them those of all rows; of the arguments it may be given those
        alone that are numbers or such sums. Not with ``step_squares``. The GPU refuses it.

    Returns
    -------
    int
        Steps done; fewer than ``steps`` when a loss was not finite (that loss is in ``step_loss``).
    """
    program, dtype = workspace.program, workspace.dtype
    labels = _layout.LOSSES[workspace.loss] in _layout.LABEL_LOSSES
    whole, grad = _whole(program, parameters, statistics), np.zeros_like(parameters)
    gradients = _walk.views_in(_program.PARAMETER_GRADIENTS, program.arrays, grad)
    of_loss = {"loss": workspace.loss, "loss_parameter": workspace.loss_parameter}
    of_matrices, of_vectors = coefficients if coefficients.ndim == 3 else (coefficients, coefficients)
    rows, numbers = rows if rows.ndim == 2 else (rows, rows)
    across = None if exchange is None else exchange.share
    for step, start in enumerate(range(0, len(rows), batch_size) if exchange is None else (0,)):
        batch = rows[start : start + batch_size]
        n = len(batch)
        own_weight = np.ones(n) if row_weight is None else row_weight[batch]
        own = weight = _shares(own_weight, own_weight.sum())
        if exchange is not None:
            weight = _shares(own_weight, exchange.weight)
        kernels = sys.modules[__name__]
        walk = _walk.Walk(
            kernels, program.training, whole, _in_dtype(x[batch], dtype), np.empty, across, key=keys[step], **of_loss
        )
        row_loss, row_hit = np.empty(n, dtype), np.empty(n, np.int64)
        walk.give(_program.ROWS, numbers[start : start + batch_size])
        walk.give(_program.TARGET, target[batch] if labels else _in_dtype(target[batch], dtype))
        walk.give(_program.ROW_WEIGHT, own)  # of which moments are taken
        walk.give(_program.ROW_LOSS, row_loss)
        walk.give(_program.ROW_HIT, row_hit)
        walk.forward()
        walk.give(_program.ROW_WEIGHT, weight)
        walk.loss()
        step_loss[step], step_hits[step] = (row_loss * weight).sum(), row_hit.sum()
        if exchange is None and not np.isfinite(step_loss[step]):
            return step
        walk.back()
        walk.parameter_gradients(gradients, 0)
        if exchange is not None:
            _exchange(program, exchange, grad, step_loss, step_hits)
            if not np.isfinite(step_loss[0]):
                return 0
        walk.update_statistics()
        if step_squares is not None:
            step_squares[step] = squared_norm(program.trained_matrices, parameters)
        for array in (array for array in program.arrays if array.trains):
            values, gradient, *states = map(array.view, (parameters, grad, *state))
            scalars = of_vectors if len(array.shape) == 1 else of_matrices
            optimizer_step(workspace.optimizer, scalars[step], values, gradient, states)
    return len(step_loss)


def _shares(weight, total):
    """Weights as shares of a total; all 0 where that counts for nothing."""
    return weight / total if total >= _layout.LEAST_WEIGHT else np.zeros(len(weight))


def _exchange(program, exchange, grad, step_loss, step_hits):
    """Make gradients, loss and hits those of all processes."""
    buffer, size = exchange.buffer, program.trained_size
    trained = [array for array in program.arrays if array.trains]
    for array, packed in zip(trained, program.gradients, strict=True):
        packed.view(buffer)[...] = array.view(grad)
    buffer[size], buffer[size + 1] = step_loss[0], step_hits[0]
    exchange.reduce()
    step_loss[0], step_hits[0] = buffer[size], buffer[size + 1]
    for array, packed in zip(trained, program.gradients, strict=True):
        array.view(grad)[...] = packed.view(buffer)


# ------------------------------------------------------------------------------- whole buffers
def _views(places, buffer):
    for offset, rows, columns, ld in places:
        yield buffer[offset : offset + rows * ld].reshape(rows, ld)[:, :columns]


@_touches("places buffer")
def squared_norm(places, buffer):
    """``Σ x²`` over all weights and biases, in float64; padding does not count.

    Parameters
    ----------
    places : int64 array (arrays, 4), C-contiguous
        Where they lie: ``Program.places``.
    buffer : array (size,)
        Of the parameters' shape: their values, gradients or state.

    Returns
    -------
    float
        Not finite where an element is not, or where the squares of float64 are too large. The order of the sum is
        fixed: the same numbers have the same bits every time.
    """
    with np.errstate(all="ignore"):
        return float(sum(np.square(view, dtype=np.float64).sum() for view in _views(places, buffer)))


@_touches("places buffer")
def all_finite(places, buffer):
    """Whether no weight or bias is NaN or infinite; padding does not count.

    Parameters
    ----------
    places, buffer
        As of `squared_norm`.

    Returns
    -------
    bool
    """
    return all(bool(np.isfinite(view).all()) for view in _views(places, buffer))


@_touches("x", "out")
def scale(x, factor, out):
    """``out = factor x``, the factor rounded to the dtype.

    Parameters
    ----------
    x : array of any shape, C-contiguous
    factor : float
    out : array of the same shape and dtype, C-contiguous, written
        May be ``x`` itself.
    """
    with np.errstate(all="ignore"):
        np.multiply(x, x.dtype.type(factor), out=out)


@_touches("x", "out")
def copy(x, out):
    """``out = x``.

    Parameters
    ----------
    x : array of any shape, C-contiguous
    out : array of the same shape and dtype, C-contiguous, written
    """
    np.copyto(out, x)


@_touches(writes="out")
def clear(out):
    """``out = 0``.

    Parameters
    ----------
    out : array of any shape, C-contiguous, written
    """
    out.fill(0)


# -------------------------------------------------------------------------------------- buffers
def gathers(dtype) -> bool:
    """Whether rows of this dtype can be read directly; other arrays are converted a block at a time."""
    dtype = np.dtype(dtype)
    return dtype.isnative and dtype.kind in "fiub"


@_touches("x rows", "out")
def gather(x, rows, out):
    """``out[i] = x[rows[i]]``, converted to the dtype of ``out``.

    Parameters
    ----------
    x : array (N, features), of a dtype that `gathers` accepts, C-contiguous
    rows : int64 array (n,)
    out : array (n, features), written
    """
    out[...] = _in_dtype(x[rows], out.dtype)


def empty(shape, dtype):
    """An uninitialised array of the backend."""
    return _layout.aligned_empty(shape, dtype)


def zeros(shape, dtype):
    """A zero-filled array of the backend."""
    return _layout.aligned_zeros(shape, dtype)


def to_device(array):
    """The array on the backend's device, a copy only where it must be."""
    return array


def to_host(array):
    """The array as a NumPy array, a copy only where it must be."""
    return array


def synchronize():
    """Wait until the backend has finished all work handed to it."""


# -------------------------------------------------------------------------------------- process
def set_num_threads(threads):
    """Use this many workers from the next call on."""


def get_num_threads():
    """Workers in use; the reference has one."""
    return 1


@contextlib.contextmanager
def serial():
    """Within it, what the calling thread starts runs on that thread alone: many small networks side by side."""
    yield


def warmup(dtype, activations, losses, optimizers):
    """Compile what networks of these parts use (names from layout.py), so that nothing compiles later."""


def config():
    """What is in force here, as a dict of short strings for `fastbp.show_config`."""
    return {"backend": "NumPy reference", "numpy": np.__version__}
