"""Gradients beside central differences, for layers, models and losses of one's own."""

import numpy as np

from . import checks
from .layers import Layer, Linear
from .model import Sequential


def gradcheck(network, x, y=None, *, loss=None, eps=1e-6):
    """Compare ``backward`` with ``(f(v + eps) - f(v - eps)) / (2 eps)``, for every input and parameter v.

    Computed in float64, on a copy with the same values; Dropout drops nothing.

    Parameters
    ----------
    network : Sequential or layer
        Left as it is.
    x : array (n, in)
    y : array, optional
        Target for the loss.
    loss : loss, optional
        ``f`` is the value of the loss, whose own gradient is checked with it. Without a loss ``f`` is a sum of all
        outputs with fixed random weights.
    eps : float
        Step of the differences, above 0.

    Returns
    -------
    dict of str to float
        For ``"x"`` and every parameter by name the largest difference between the two, as a fraction of the largest
        derivative of that array or of 1, whichever is larger. Where gradients are right it is about 1e-9, unless a
        unit of a ReLU or the like is within ``eps`` of its kink.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be.
    """
    checks.instance("network", network, (Sequential, Layer))
    eps = checks.positive("eps", eps)
    if loss is None and y is not None:
        raise ValueError("y is the target of a loss: pass loss=… with it")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a loss or a function (prediction, target) -> (value, gradient), got {loss!r}")
    network = _in_float64(network)
    x = np.array(checks.matrix("x", x), np.float64)
    checks.finite("x", x, np.float64)
    out = network.forward(x)
    weights = np.random.default_rng(0).standard_normal(out.shape)

    def f():
        out = network.forward(x)
        return float((weights * out).sum()) if loss is None else loss(out, y)[0]

    grad_x = network.backward(weights if loss is None else loss(out, y)[1])
    parameters = network.parameters() if isinstance(network, Sequential | Linear) else []
    pairs = {"x": (x, grad_x)} | {one.name: (one.data, one.grad.copy()) for one in parameters}
    return {name: _largest_difference(f, values, gradient, eps) for name, (values, gradient) in pairs.items()}


def _in_float64(network):
    """A copy that computes in float64 and drops nothing."""
    if isinstance(network, Sequential):
        layers = [type(layer)(**layer.config()) for layer in network.layers]
        twin = Sequential(*layers, dtype="float64", device=network.device)
        twin.load_state_dict(network.state_dict())
        return twin.eval()
    if isinstance(network, Linear):
        twin = Linear(**network.config(), dtype="float64", device=network.device)
        twin.weight = network.weight
        if network.has_bias:
            twin.bias = network.bias
        return twin
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
