"""Derivatives of networks and of functions of variables, and their check against central differences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import checks
from .checks import Array
from .graph import Variable, grad, own_value
from .layers import BatchNorm1d, Layer, Residual, Trained, from_config
from .layers.base import Call
from .model import Sequential


def input_gradient(
    model: Sequential | Layer | Callable[[Variable], Variable],
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    loss: Callable[..., Any] | None = None,
) -> Array:
    """Gradient of a loss, or of the sum of the outputs, with respect to the input.

    The model computes in evaluation mode; its own mode, stored gradients and saved values do not change.

    Parameters
    ----------
    model : Sequential, layer, or function of a Variable
    X : array (n, in)
    y : array, optional
        Target for the loss.
    loss : loss, optional
        A loss of fastbp, a function ``(prediction, target) -> (value, gradient)``, or without ``y`` a function of the
        prediction, a Variable, that returns a Variable.

    Returns
    -------
    array of X's shape
        float32 and float64 are kept. Rows are independent, so without a loss each row is the gradient of the sum of its
        own outputs.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be.
    """
    if loss is None and y is not None:
        raise ValueError("y is the target of a loss: pass loss=… with it")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a loss or a function, got {loss!r}")
    x = Variable(X, requires_grad=True)
    out = _function(model)(x)
    if loss is None:
        return grad(out, x, np.ones(out.shape))
    if y is None:
        return grad(loss(out), x)
    return grad(out, x, loss(out.data, y)[1])


def jacobian(function: Sequential | Layer | Callable[[Variable], Variable], X: ArrayLike) -> Array:
    """Derivatives of all outputs with respect to all inputs, by one backpropagation for each output.

    Parameters
    ----------
    function : Sequential, layer, or function of a Variable that returns one
    X : array

    Returns
    -------
    array
        For a network or layer, whose rows are independent, of shape ``(n, out, in)``: element ``[i, k, j]`` is
        ``∂output[i, k] / ∂X[i, j]``. For any other function, the shape of its value followed by that of X.

    Raises
    ------
    TypeError
        ``function`` is not callable, or returns no Variable.
    """
    x = Variable(X, requires_grad=True)
    out = _function(function)(x)
    if isinstance(function, Sequential | Layer):
        rows, outputs = out.shape
        result = np.empty((rows, outputs, x.shape[1]), x.dtype)
        for k in range(outputs):
            seed = np.zeros(out.shape)
            seed[:, k] = 1
            result[:, k] = grad(out, x, seed, retain_graph=True)
        return result
    result = np.zeros(out.shape + x.shape, x.dtype)
    for place in np.ndindex(out.shape) if out.requires_grad else ():
        seed = np.zeros(out.shape)
        seed[place] = 1
        result[place] = grad(out, x, seed, retain_graph=True)
    return result


def _function(model):
    """A model, layer or function as a function of a variable that returns one, in evaluation mode."""
    if isinstance(model, Sequential):
        return functools.partial(Call.apply, model, functools.partial(model.forward_in_mode, training=False))
    if isinstance(model, Layer):
        return functools.partial(Call.apply, model, model.forward)
    if not callable(model):
        raise TypeError(f"a Sequential, a layer or a function of Variables was expected, got {model!r}")

    def function(*variables):
        out = model(*variables)
        if not isinstance(out, Variable):
            raise TypeError(f"the function must return a Variable, got {type(out).__name__}")
        return out

    return function


# ------------------------------------------------------------------------------ finite differences
def gradcheck(
    network: Sequential | Layer | Callable[..., Variable],
    x: ArrayLike | tuple[ArrayLike, ...],
    y: ArrayLike | None = None,
    *,
    loss: Callable[..., Any] | None = None,
    eps: float = 1e-6,
) -> dict[str, float]:
    """Compare ``backward`` with ``(f(v + eps) - f(v - eps)) / (2 eps)``, for every input and parameter v.

    Everything is computed in float64, on a copy of a network or layer whose Dropout drops nothing.

    Parameters
    ----------
    network : Sequential, layer, or function of Variables
        It is not changed. A function takes one variable for each input and returns a Variable that depends on them
        alone.
    x : array (n, in), or tuple of numbers and arrays
        The inputs; a tuple for a function of several variables.
    y : array, optional
        Target for the loss.
    loss : loss, optional
        ``f`` is the value of the loss, so that its own gradient is checked too. Without a loss ``f`` is a sum of all
        outputs with fixed random weights.
    eps : float
        Step of the differences, above 0.

    Returns
    -------
    dict of str to float
        For ``"x"`` and every parameter by name, or for every variable by the name the function has for it, the largest
        difference between the two, as a fraction of the largest derivative of that array or of 1, whichever is larger.
        Correct gradients give about 1e-9, unless a unit of a ReLU or the like is within ``eps`` of its kink.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be.
    """
    eps = checks.positive("eps", eps)
    if loss is None and y is not None:
        raise ValueError("y is the target of a loss: pass loss=… with it")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a loss or a function (prediction, target) -> (value, gradient), got {loss!r}")
    if isinstance(network, Sequential | Layer):
        return _check_network(_in_float64(network), x, y, loss, eps)
    if not callable(network):
        raise TypeError(f"network must be a Sequential, a layer or a function of Variables, got {network!r}")
    return _check_function(_function(network), _names(network, x), x if type(x) is tuple else (x,), y, loss, eps)


def _check_network(network, x, y, loss, eps):
    x = np.array(checks.matrix("x", x), np.float64)
    checks.finite("x", x, np.float64)
    out = network.forward(x)
    weights = _weights(out.shape)

    def f():
        out = network.forward(x)
        return float((weights * out).sum()) if loss is None else loss(out, y)[0]

    grad_x = network.backward(weights if loss is None else loss(out, y)[1])
    parameters = network.parameters() if isinstance(network, Sequential | Trained) else []
    pairs = {"x": (x, grad_x)} | {one.name: (one.data, one.grad.copy()) for one in parameters}
    return {name: _largest_difference(f, values, gradient, eps) for name, (values, gradient) in pairs.items()}


def _check_function(function, names, inputs, y, loss, eps):
    values = [np.array(own_value(name, one), np.float64) for name, one in zip(names, inputs, strict=True)]
    for name, value in zip(names, values, strict=True):
        checks.finite(name, np.atleast_1d(value), np.float64)
    variables = [Variable(value, requires_grad=True) for value in values]
    out = function(*variables)
    weights = _weights(out.shape) if loss is None else loss(out.data, y)[1]

    def f():
        out = function(*map(Variable, values)).data
        return float((weights * out).sum()) if loss is None else loss(out, y)[0]

    gradients = grad(out, variables, weights)
    return {
        name: _largest_difference(f, value, gradient, eps)
        for name, value, gradient in zip(names, values, gradients, strict=True)
    }


def _names(function, x):
    """The names a function has for its arguments."""
    if type(x) is not tuple:
        return ["x"]
    try:
        names = list(inspect.signature(function).parameters)[: len(x)]
    except (TypeError, ValueError):
        names = []
    return names if len(names) == len(x) else [f"x{i}" for i in range(len(x))]


def _weights(shape):
    """Weights of the sum of the outputs whose derivatives are compared."""
    return np.random.default_rng(0).standard_normal(shape)


def _in_float64(network):
    """A copy that computes in float64 and drops nothing."""
    if isinstance(network, Sequential):
        layers = [from_config(type(layer).__name__, layer.config()) for layer in network.layers]
        twin = Sequential(*layers, dtype="float64", device=network.device)
        twin.load_state_dict(network.state_dict())
        return twin.eval()
    if isinstance(network, Trained):
        twin = type(network)(**network.config(), dtype="float64", device=network.device)
        for name in network.shapes:
            setattr(twin, name, getattr(network, name))
        if isinstance(twin, BatchNorm1d):
            twin.training = False
        return twin
    if isinstance(network, Residual):
        return Residual(*map(_in_float64, network.layers))
    twin = type(network)(**network.config(), device=network.device)
    twin.training = False
    return twin


def _largest_difference(f, values, gradient, eps):
    numeric = np.empty_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + eps
        above = f()
        values[index] = kept - eps
        numeric[index] = (above - f()) / (2 * eps)
        values[index] = kept
    return float(np.abs(gradient - numeric).max(initial=0) / max(1.0, np.abs(numeric).max(initial=0)))
