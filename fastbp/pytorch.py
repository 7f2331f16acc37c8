"""Makes networks from PyTorch's, without PyTorch itself: it reads modules by the names of classes and attributes.

PyTorch keeps a weight as ``(out, in)`` and computes ``x Wᵀ + b``; here it is ``(in, out)``. The way back is
`Sequential.to_torch_state_dict`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .layers import LAYERS, BatchNorm1d, LayerNorm, Linear, Residual
from .model import Sequential

# Attributes that a module must have for its layer here to compute the same function.
FIXED = {"Softplus": {"beta": 1}}
REMEDIES = dict.fromkeys(("Softmax", "LogSoftmax"), "; leave it out: CrossEntropyLoss and predict_proba take logits")
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
        A part computes what its counterpart cannot, or the same ``Linear`` comes twice.
    """
    if type(module).__name__ != "Sequential":
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    parts = list(_flattened(module))
    weights = list(_weights(parts))
    if len({id(weight) for weight in weights}) < len(weights):
        raise ValueError("module has the same Linear, or the same weight, twice; here a Linear belongs to one place")
    layers = [_layer(part) for part in parts]
    if dtype is None:
        dtype = "float64" if all(str(weight.dtype).endswith("float64") for weight in weights) else "float32"
    model = Sequential(*layers, dtype=dtype, device=device, seed=seed)
    model.training = bool(module.training)
    return model


def _flattened(module):
    for part in module:
        if type(part).__name__ == "Sequential":
            yield from _flattened(part)
        else:
            yield part


def _weights(parts):
    """The weights of linear layers, wherever they are."""
    for part in parts:
        if type(part).__name__ == "Residual":
            yield from _weights(_flattened(part))
        elif type(part).__name__ == "Linear":
            yield part.weight


def _layer(part):
    """The layer that computes what this module does."""
    name = type(part).__name__
    if name not in LAYERS:
        raise TypeError(f"module has a {name}, known are {', '.join(sorted(LAYERS))}{REMEDIES.get(name, '')}")
    if name in READERS:
        return READERS[name](part)
    for attribute, value in FIXED.get(name, {}).items():
        if getattr(part, attribute) != value:
            raise ValueError(f"{name} must have {attribute}={value}, got {getattr(part, attribute)}")
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
