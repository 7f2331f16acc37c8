"""Layers, each usable alone or as a part of `Sequential`.

A layer alone owns its parameters; in a `Sequential` they are views into the buffer of the model.
"""

from __future__ import annotations

from typing import Any

from . import activations
from .activations import *
from .activations import Activation as Activation
from .base import Layer as Layer
from .base import Trained as Trained
from .dropout import Dropout
from .linear import Linear
from .normalization import BatchNorm1d, LayerNorm
from .normalization import Normalization as Normalization
from .residual import Residual

__all__ = ["BatchNorm1d", "Dropout", "LayerNorm", "Linear", "Residual"]
__all__ += activations.__all__

LAYERS = {name: globals()[name] for name in __all__}


def from_config(name: str, arguments: dict[str, Any]) -> Layer:
    """The layer of a class's name and what its `Layer.config` gave."""
    if name == "Residual":
        return Residual(*(from_config(*inner) for inner in arguments["layers"]))
    return LAYERS[name](**arguments)
