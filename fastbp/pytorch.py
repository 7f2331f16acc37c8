"""Makes networks from PyTorch's, without importing PyTorch: it reads modules by the names of classes and attributes.

A name is no behaviour: modules of PyTorch whose forward pass has been changed, by a hook or a subclass, are refused,
and in the end both networks have to give the same for a few rows. PyTorch keeps a weight as ``(out, in)`` and computes
``x Wᵀ + b``; here it is ``(in, out)``. The way back is `Sequential.to_torch_state_dict`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .layers import LAYERS, BatchNorm1d, LayerNorm, Linear, Residual
from .model import Sequential

# Attributes that a module must have for its layer here to compute the same function, and the least they may be.
FIXED = {"Softplus": {"beta": 1}}
LEAST = {"Softplus": {"threshold": 20}}  # the identity above it; from there on the two differ by less than 3e-9
PROBE_ROWS = 8
REMEDIES = dict.fromkeys(("Softmax", "LogSoftmax"), "; leave it out: CrossEntropyLoss and predict_proba take logits")
REMEDIES["Parametrized"] = "; bake its parameters in with torch.nn.utils.parametrize.remove_parametrizations"
REMEDIES["Flatten"] = "; leave it out, and pass rows that are flat already"


def from_torch(
    module: Any, *, dtype: DTypeLike | None = None, device: str = "cpu", seed: int | None = None
) -> Sequential:
    """A model that computes what a PyTorch module does, with copies of its parameters.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of ``Linear``, ``LayerNorm`` over one dimension, ``BatchNorm1d``, ``Dropout`` and the activations that have a
        class here; inner ones are flattened. PyTorch has no residual block: a class of the user's that is named
        ``Residual``, holds its layers as a ``Sequential`` does and adds its input to what they give, is a `Residual`.
    dtype : str, optional
        By default ``"float64"`` where all parameters are, else ``"float32"``.
    device : str
        Where the model is to compute.
    seed : int, optional
        Of the generator of the model, for shuffling and dropout.

    Returns
    -------
    Sequential
        In the mode of the module, training or evaluation. Layers have the numbers they have in ``module`` unless inner
        ones were flattened.

    Raises
    ------
    TypeError
        ``module`` is no ``Sequential``, or has a part that has no counterpart here.
    ValueError
        A part computes what its counterpart cannot, or something else than its class does; the same ``Linear`` or
        normalisation comes twice.
    """
    if type(module).__name__ != "Sequential":
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    _require_unchanged(module)
    parts = list(_flattened(module))
    weights = []
    for owner in ("Linear", "LayerNorm", "BatchNorm1d"):
        owned = list(_owned(parts, owner))
        if len({id(it) for it in owned}) < len(owned):
            raise ValueError(
                f"module has the same {owner}, or the same weight, twice; here a {owner} belongs to one place"
            )
        weights += owned if owner == "Linear" else []
    layers = [_layer(part) for part in parts]
    if dtype is None:
        dtype = "float64" if all(str(weight.dtype).endswith("float64") for weight in weights) else "float32"
    model = Sequential(*layers, dtype=dtype, device=device, seed=seed)
    model.training = bool(module.training)
    if _is_of_pytorch(module):
        _require_same(model, module)
    return model


def _is_of_pytorch(part):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(part, torch.nn.Module)


def _require_unchanged(part):
    """Refuse a module of PyTorch that does not run the forward pass of its class, or of PyTorch's class."""
    if not _is_of_pytorch(part):
        return
    name = type(part).__name__
    if name in LAYERS.keys() - {"Residual"} | {"Sequential"} and not type(part).__module__.startswith("torch.nn."):
        raise TypeError(f"module has a {name} of {type(part).__module__}, which need not be PyTorch's: make it that")
    if part._forward_hooks or part._forward_pre_hooks:
        raise ValueError(
            f"{name} has forward hooks, which cannot be converted: remove them (of weight_norm and spectral_norm by "
            f"torch.nn.utils.remove_weight_norm and remove_spectral_norm)"
        )
    if "forward" in vars(part):
        raise ValueError(f"{name} has a forward of its own, which cannot be converted: delete that attribute")


def _require_same(model, module):
    """Refuse a module that gives something else than the model for a few rows, dropout and statistics left out."""
    torch = sys.modules["torch"]
    weight = next(module.parameters())
    x = np.random.default_rng(0).normal(size=(PROBE_ROWS, model.in_features)).astype(model.dtype)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            expected = _array(module(torch.from_numpy(x).to(weight.device, weight.dtype)))
    finally:
        for part, mode in modes:
            part.training = mode
    scale = max(1.0, float(np.abs(expected).max()))
    limit = torch.finfo(weight.dtype).eps ** 0.5 * scale
    if not np.allclose(model.predict(x), expected, rtol=0, atol=limit, equal_nan=True):
        raise ValueError(
            "module computes something else than its layers in their order: look for a forward of its own, for example "
            "a Residual that does not add its input"
        )


def _flattened(module):
    for part in module:
        _require_unchanged(part)
        if type(part).__name__ == "Sequential":
            yield from _flattened(part)
        else:
            yield part


def _owned(parts, owner):
    """The weights of layers of this name, wherever they are; of those without a weight, the layers."""
    for part in parts:
        if type(part).__name__ == "Residual":
            yield from _owned(_flattened(part), owner)
        elif type(part).__name__ == owner:
            yield part if part.weight is None else part.weight


def _layer(part):
    """The layer that computes what this module does."""
    name = type(part).__name__
    if name not in LAYERS:
        remedy = REMEDIES.get("Parametrized" if name.startswith("Parametrized") else name, "")
        raise TypeError(f"module has a {name}, known are {', '.join(sorted(LAYERS))}{remedy}")
    if name in READERS:
        return READERS[name](part)
    for attribute, value in FIXED.get(name, {}).items():
        if getattr(part, attribute) != value:
            raise ValueError(f"{name} must have {attribute}={value}, got {getattr(part, attribute)}")
    for attribute, least in LEAST.get(name, {}).items():
        if getattr(part, attribute) < least:
            raise ValueError(f"{name} must have {attribute} of {least} or more, got {getattr(part, attribute)}")
    return LAYERS[name](**{argument: getattr(part, argument) for argument in LAYERS[name]().config()})


def _linear(part):
    layer = Linear(part.in_features, part.out_features, bias=part.bias is not None)
    layer.weight = _array(part.weight).T
    if layer.has_bias:
        layer.bias = _array(part.bias)
    return layer


def _layer_norm(part):
    if len(part.normalized_shape) != 1:
        raise ValueError(f"LayerNorm must be over one dimension, got normalized_shape={tuple(part.normalized_shape)}")
    if part.weight is not None and part.bias is None:
        raise ValueError("LayerNorm must have both weight and bias, or neither; got bias=False")
    layer = LayerNorm(part.normalized_shape[0], eps=part.eps, affine=part.weight is not None)
    return _with_arrays(layer, part)


def _batch_norm(part):
    if part.running_mean is None or part.momentum is None:
        raise ValueError("BatchNorm1d must have running statistics and a momentum; got one without")
    affine = part.weight is not None
    return _with_arrays(BatchNorm1d(part.num_features, part.eps, part.momentum, affine), part)


def _residual(part):
    return Residual(*map(_layer, _flattened(part)))


def _with_arrays(layer, part):
    for name in layer.shapes:
        setattr(layer, name, _array(getattr(part, name)))
    return layer


READERS = {"Linear": _linear, "LayerNorm": _layer_norm, "BatchNorm1d": _batch_norm, "Residual": _residual}


def _array(tensor):
    """The numbers of a tensor on any device and of any floating-point dtype, one that NumPy lacks too."""
    return tensor.detach().cpu().double().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)
