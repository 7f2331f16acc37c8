"""Makes networks from PyTorch's, without PyTorch itself: it reads modules by the names of classes and attributes.

PyTorch keeps a weight as ``(out, in)`` and computes ``x Wᵀ + b``; here it is ``(in, out)``. The way back is
`Sequential.to_torch_state_dict`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .layers import LAYERS, Linear
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
        Of ``Linear``, ``Dropout`` and the activations that have a class here; inner ones are flattened.
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
    weights = [part.weight for part in parts if type(part).__name__ == "Linear"]
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


def _layer(part):
    """The layer that computes what this module does."""
    name = type(part).__name__
    if name not in LAYERS:
        raise TypeError(f"module has a {name}, known are {', '.join(sorted(LAYERS))}{REMEDIES.get(name, '')}")
    if name == "Linear":
        return _linear(part)
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


def _array(tensor):
    """The numbers of a tensor on any device and of any floating-point dtype, one that NumPy lacks too."""
    return tensor.detach().cpu().double().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)
