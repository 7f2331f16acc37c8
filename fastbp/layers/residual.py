"""The residual connection, ``y = x + f(x)`` around a chain of layers."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import backend, checks
from ..checks import Array
from ..graph import Variable
from .base import Layer


class Residual(Layer):
    """``y = x + f(x)``, where ``f`` is a chain of layers that gives as many features as it gets.

    He et al., "Deep residual learning for image recognition", 2016.

    Parameters
    ----------
    *layers : layers
        At least one.

    Attributes
    ----------
    layers : tuple of layers

    Raises
    ------
    TypeError, ValueError
        There is no layer, or something else than layers. That the widths agree is checked when a `Sequential` is made.
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("Residual needs at least one layer, got none")
        for i, layer in enumerate(layers):
            checks.instance(f"layer {i} of Residual", layer, Layer)
        self.layers = layers
        self._saved = None

    @property
    def device(self) -> str:  # type: ignore[override]
        """That of its layers."""
        return self.layers[0].device

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``x + f(x)`` for a batch ``x`` (n, features)."""
        y: Any = x
        for layer in self.layers:
            y = layer.forward(y)
        if type(x) is Variable:
            return x + y
        self._saved = True
        return self._sum(checks.matrix("x", x), y)

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``G + ∂f/∂xᵀ G``, and the gradients of the layers."""
        self._last_saved()
        grad: Any = grad_output
        for layer in reversed(self.layers):
            grad = layer.backward(grad, accumulate)
        return self._sum(checks.matrix("grad_output", grad_output), grad)

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """``G + ∂f/∂xᵀ G`` alone, without storing gradients."""
        self._last_saved()
        grad: Any = grad_output
        for layer in reversed(self.layers):
            grad = layer.backward_input(grad)
        return self._sum(checks.matrix("grad_output", grad_output), grad)

    def _sum(self, x, y):
        checks.shape("what the layers of Residual give", y, x.shape)
        x, out = checks.converted(x, y.dtype), np.empty_like(y)
        backend.load(self.device).add(x, y, out)
        return out

    def config(self) -> dict[str, Any]:
        return {"layers": [[type(layer).__name__, layer.config()] for layer in self.layers]}

    def __repr__(self) -> str:
        return f"Residual({', '.join(map(repr, self.layers))})"
