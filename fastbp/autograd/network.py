"""Operations of the graph that are kernels of the contract: products, activations, dropout and losses.

What layers and losses compute, they compute here as well, by the same calls. Between arrays ``device`` says whose
kernels; a product of vectors or of stacks of matrices, which the contract does not have, is NumPy's.
"""

import functools
import math

import numpy as np

from .. import backend, checks, losses
from ..graph import Function, Variable, scalar, value_of
from ..kernels import layout
from ..layers.linear import IDENTITY


# ------------------------------------------------------------------------------------- products
class Linear(Function):
    """What `linear` puts into the graph."""

    @staticmethod
    def forward(ctx, x, weight, bias, device):
        dtype = np.float32 if np.result_type(x, weight) == np.float32 else np.float64
        x, weight = checks.converted(x, dtype), checks.converted(weight, dtype)
        bias = None if bias is None else checks.converted(bias, dtype)
        ctx.save_for_backward(x, weight, bias, backend.load(device))
        out = np.empty((len(x), weight.shape[1]), dtype)
        ctx.saved_tensors[-1].linear_forward(x, weight, bias, *IDENTITY, out, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, kernels = ctx.saved_tensors
        grad = checks.converted(grad, x.dtype)
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if to_x:
            grad_x = np.empty_like(x)
            kernels.linear_backward_input(grad, weight, x, *IDENTITY, grad_x)
        if to_weight or to_bias:
            grad_weight = np.empty_like(weight)
            grad_bias = None if bias is None else np.empty_like(bias)
            kernels.linear_backward_params(x, grad, 0, grad_weight, grad_bias)
        return grad_x, grad_weight, grad_bias, None


def linear(x, weight, bias=None, *, device="cpu"):
    """``x W + b``, as the layer `fastbp.Linear`.

    Parameters
    ----------
    x : Variable or array (n, in)
    weight : Variable or array (in, out)
    bias : Variable or array (out,), optional
    device : str

    Returns
    -------
    Variable (n, out)
    """
    checks.choice("device", device, backend.MODULES)
    a = checks.matrix("x", value_of(x))
    b = checks.matrix("weight", value_of(weight), rows=a.shape[1])
    if bias is not None:
        checks.shape("bias", checks.numeric("bias", value_of(bias)), (b.shape[1],))
    return Linear.apply(x if type(x) is Variable else a, weight if type(weight) is Variable else b, bias, device)


class MatMul(Function):
    """What `matmul` puts into the graph."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return np.matmul(x, y)

    @staticmethod
    def backward(ctx, grad):
        x, y = map(np.asarray, ctx.saved_tensors)
        grad = np.asarray(grad)
        if y.ndim == 1:  # as a matrix of one column
            y, grad = y[:, None], grad[..., None]
            to_y = _transposed(np.atleast_2d(x)) @ (grad[..., None, :] if x.ndim == 1 else grad)
            return (grad @ _transposed(y)).reshape(x.shape), to_y[..., 0]
        if x.ndim == 1:  # as a matrix of one row
            row = grad[..., None, :]
            return (row @ _transposed(y))[..., 0, :], x[:, None] @ row
        return grad @ _transposed(y), _transposed(x) @ grad


def _transposed(matrices):
    return np.swapaxes(matrices, -1, -2)


def matmul(x, y):
    """``x @ y`` as NumPy has it; ``∂L/∂x = G yᵀ``, ``∂L/∂y = xᵀ G``. Two matrices are multiplied by `linear`."""
    a, b = value_of(x), value_of(y)
    if np.ndim(a) == np.ndim(b) == 2 and np.size(a) and np.size(b) and np.shape(a)[1] == np.shape(b)[0]:
        return linear(x, y)
    return MatMul.apply(x, y)


# ---------------------------------------------------------------------------------- activations
class Activation(Function):
    """What the activations put into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, z, name, parameter, device):
        shape = np.shape(z)
        z = _as_matrix(z)
        code, kernels, out = layout.ACTIVATIONS.index(name), backend.load(device), np.empty_like(z)
        if z.size:
            kernels.activation_forward(z, code, parameter, out)
        saved = z if name in layout.SAVES_PRE_ACTIVATION else out
        ctx.save_for_backward(shape, saved, code, parameter, kernels, name)
        return out.reshape(shape)

    @staticmethod
    def backward(ctx, grad):
        shape, saved, code, parameter, kernels, _ = ctx.saved_tensors
        grad_z = np.empty_like(saved)
        if saved.size:
            grad = checks.converted(np.reshape(grad, saved.shape), saved.dtype)
            kernels.activation_backward(grad, saved, code, parameter, grad_z)
        return grad_z.reshape(shape), None, None, None

    @property
    def label(self):
        return self.saved_tensors[-1] if self.saved_tensors else super().label


def _as_matrix(array):
    """The elements as a kernel reads them, rows along the last axis."""
    array = checks.numeric("x", array)
    dtype = np.float32 if array.dtype == np.float32 else np.float64
    width = array.shape[-1] if array.ndim else 1
    return checks.converted(array, dtype).reshape(array.size // width if width else 0, width)


def _activation(x, name, parameter, device):
    checks.choice("device", device, backend.MODULES)
    return Activation.apply(x, name, parameter, device)


def sigmoid(x, *, device="cpu"):
    """``z = 1 / (1 + e^-x)``; ``∂z/∂x = z (1 - z)``."""
    if type(x) is Variable and type(x._data) is float:
        e = math.exp(-abs(x._data))  # never overflows
        value = (1.0 if x._data >= 0 else e) / (1.0 + e)
        return scalar(Sigmoid, value, x, value * (1.0 - value))
    return _activation(x, "sigmoid", 0.0, device)


class Sigmoid(Function):
    """Between scalars."""

    reads_inputs, label = False, "sigmoid"


def tanh(x, *, device="cpu"):
    """``z = tanh x``; ``∂z/∂x = 1 - z²``."""
    if type(x) is Variable and type(x._data) is float:
        value = math.tanh(x._data)
        return scalar(Tanh, value, x, 1.0 - value * value)
    return _activation(x, "tanh", 0.0, device)


class Tanh(Function):
    """Between scalars."""

    reads_inputs, label = False, "tanh"


def relu(x, *, device="cpu"):
    """``z = max(0, x)``; ``∂z/∂x`` is 1 above 0, and 0 elsewhere."""
    if type(x) is Variable and type(x._data) is float:
        on = not x._data <= 0  # NaN stays NaN
        return scalar(ReLU, x._data if on else 0.0, x, 1.0 if on else 0.0)
    return _activation(x, "relu", 0.0, device)


class ReLU(Function):
    """Between scalars."""

    reads_inputs, label = False, "relu"


def leaky_relu(x, negative_slope=0.01, *, device="cpu"):
    """``z = x`` above 0, ``negative_slope x`` elsewhere; ``∂z/∂x`` at 0 is ``negative_slope`` (≥ 0)."""
    return _activation(x, "leaky_relu", checks.real("negative_slope", negative_slope), device)


def elu(x, alpha=1.0, *, device="cpu"):
    """``z = x`` above 0, ``alpha (e^x - 1)`` elsewhere, alpha not negative; ``∂z/∂x = z + alpha`` there."""
    return _activation(x, "elu", checks.real("alpha", alpha), device)


def selu(x, *, device="cpu"):
    """``z = s x`` above 0, ``s α (e^x - 1)`` elsewhere, ``s = 1.0507…``, ``α = 1.6732…``."""
    return _activation(x, "selu", 0.0, device)


def gelu(x, approximate="none", *, device="cpu"):
    """``z = x Φ(x)``, Φ the normal distribution function; ``approximate="tanh"`` as in `fastbp.GELU`."""
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    return _activation(x, names[checks.choice("approximate", approximate, names)], 0.0, device)


def silu(x, *, device="cpu"):
    """``z = x / (1 + e^-x)``."""
    return _activation(x, "silu", 0.0, device)


def softplus(x, *, device="cpu"):
    """``z = ln(1 + e^x)``; ``∂z/∂x = 1 / (1 + e^-x)``."""
    return _activation(x, "softplus", 0.0, device)


class Softmax(Function):
    """What `softmax` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, axis, device):
        rows = np.moveaxis(np.asarray(x), axis, -1)
        z = _as_matrix(rows)
        out = np.empty_like(z)
        if z.size:
            backend.load(device).softmax(z, out)
        out = np.moveaxis(out.reshape(rows.shape), -1, axis)
        ctx.save_for_backward(out, axis)
        return out

    @staticmethod
    def backward(ctx, grad):
        z, axis = ctx.saved_tensors
        flow = grad * z
        return flow - z * flow.sum(axis=axis, keepdims=True), None, None


def softmax(x, axis=-1, *, device="cpu"):
    """``z_j = e^(x_j) / Σ_k e^(x_k)`` along an axis; ``∂L/∂x_j = z_j (g_j - Σ_k g_k z_k)`` for the gradient g of z.

    The value is the kernel's along the last axis, other axes are moved there and back; the derivative is NumPy's.
    Where a loss follows, `cross_entropy` of x itself is faster and more exact.

    Parameters
    ----------
    x : Variable or array
    axis : int
    device : str

    Returns
    -------
    Variable
        NaN along an axis that has NaN or +inf, or nothing but -inf; else 0 where x is -inf.
    """
    checks.choice("device", device, backend.MODULES)
    return Softmax.apply(x, int(axis), device)


# -------------------------------------------------------------------------------------- dropout
class Dropout(Function):
    """What `dropout` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, p, key, device):
        ctx.save_for_backward(p, key, backend.load(device))
        return Dropout.dropped(x, *ctx.saved_tensors)

    @staticmethod
    def backward(ctx, grad):
        return Dropout.dropped(grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def dropped(array, p, key, kernels):
        x = _as_matrix(array)
        out = np.empty_like(x)
        if x.size:
            kernels.dropout(x, np.arange(len(x)), key, p, out)
        return out.reshape(np.shape(array))


def dropout(x, p=0.5, *, training=True, seed=None, device="cpu"):
    """``z = x m / (1 - p)``, with ``m`` 0 with probability ``p`` and 1 otherwise; ``z = x`` where not training.

    Parameters
    ----------
    x : Variable or array
    p : float
        In [0, 1).
    training : bool
    seed : int or numpy.random.Generator, optional
        A generator draws other elements at every call, an integer the same ones.
    device : str

    Returns
    -------
    Variable
    """
    p = checks.real("p", p, below=1.0)
    checks.choice("device", device, backend.MODULES)
    if not checks.boolean("training", training):
        return x if type(x) is Variable else Variable(x)
    generator = seed if isinstance(seed, np.random.Generator) else checks.generator("seed", seed)
    return Dropout.apply(x, p, int(generator.integers(-(2**63), 2**63)), device)


# --------------------------------------------------------------------------------------- losses
def half_squared_error(prediction, target, sample_weight=None, *, device="cpu"):
    """`fastbp.HalfSquaredErrorLoss`: ``½ Σ_k (ŷ_k - y_k)²``, mean over rows."""
    return _loss(losses.HalfSquaredErrorLoss(device=device), prediction, target, sample_weight)


def mean_squared_error(prediction, target, sample_weight=None, *, device="cpu"):
    """`fastbp.MSELoss`: ``(ŷ - y)²``, mean over all elements."""
    return _loss(losses.MSELoss(device=device), prediction, target, sample_weight)


def l1(prediction, target, sample_weight=None, *, device="cpu"):
    """`fastbp.L1Loss`: ``|ŷ - y|``, mean over all elements."""
    return _loss(losses.L1Loss(device=device), prediction, target, sample_weight)


def huber(prediction, target, sample_weight=None, *, delta=1.0, device="cpu"):
    """`fastbp.HuberLoss`: ``e²/2`` up to ``delta``, ``delta (|e| - delta/2)`` beyond, mean over all elements."""
    return _loss(losses.HuberLoss(delta, device=device), prediction, target, sample_weight)


def binary_cross_entropy(prediction, target, sample_weight=None, *, device="cpu"):
    """`fastbp.BCELoss`: ``-(y ln p + (1 - y) ln(1 - p))`` of probabilities p, mean over all elements."""
    return _loss(losses.BCELoss(device=device), prediction, target, sample_weight)


def binary_cross_entropy_with_logits(prediction, target, sample_weight=None, *, device="cpu"):
    """`fastbp.BCEWithLogitsLoss`: ``ln(1 + e^s) - y s`` of logits s, mean over all elements."""
    return _loss(losses.BCEWithLogitsLoss(device=device), prediction, target, sample_weight)


def cross_entropy(prediction, target, sample_weight=None, *, label_smoothing=0.0, class_weight=None, device="cpu"):
    """`fastbp.CrossEntropyLoss`: ``-Σ_k y_k log softmax(s)_k``, mean over rows, of labels or probabilities."""
    loss = losses.CrossEntropyLoss(label_smoothing, class_weight, device=device)
    return _loss(loss, prediction, target, sample_weight)


def _loss(loss, prediction, target, sample_weight):
    return loss(prediction if type(prediction) is Variable else Variable(prediction), target, sample_weight)


def as_loss(function):
    """A loss that `fit`, ``train_step`` and loops of one's own take, from a function of variables.

    Parameters
    ----------
    function : callable
        ``function(prediction, target)``, or with a third argument, the sample weights, where there are some: from a
        Variable and an array to a Variable, one number.

    Returns
    -------
    callable
        ``(prediction, target) -> (value, gradient)``.

    Examples
    --------
    >>> @fastbp.autograd.as_loss
    ... def log_cosh(prediction, target):
    ...     error = prediction - target
    ...     return (error + (1 + (-2 * error).exp()).log() - math.log(2)).mean()
    >>> model.fit(X, y, loss=log_cosh, optimizer=fastbp.Adam(), epochs=20)
    """

    def loss(prediction, target, *sample_weight):
        prediction = Variable(prediction, requires_grad=True)
        value = function(prediction, target, *sample_weight)
        if not isinstance(value, Variable) or value.size != 1:
            raise TypeError(f"a loss must return a Variable of one number, got {value!r}")
        value.backward()
        gradient = np.zeros_like(prediction.data) if prediction.grad is None else prediction.grad
        return value.item(), gradient

    return functools.wraps(function)(loss)
