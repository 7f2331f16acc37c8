"""The linear layer, ``Y = X W + b``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import checks, initializers
from ..checks import Array
from ..initializers import Initializer
from ..kernels import layout, program
from .base import Trained

IDENTITY = layout.ACTIVATIONS.index("identity"), 0.0  # code and parameter


class Linear(Trained):
    """``Y = X W + b``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    init : str or callable
        ``"default"`` (PyTorch's, uniform ±1/√in_features for weight and bias), ``"zeros"``, or ``lecun``,
        ``xavier`` or ``kaiming`` with ``_uniform`` or ``_normal``; or a function ``(rng, fan_in, fan_out)`` that
        returns the weight.
    dtype, device : str
        For a layer used alone; a `Sequential` has its own.
    seed : int, optional
        For a layer used alone; in a `Sequential` the generator of the model draws the values.

    Attributes
    ----------
    weight : array (in, out)
    bias : array (out,) or None
    grad_weight, grad_bias : arrays
        The gradients that the last `backward` stored; reading them is an error where there are none.

        All four are views into the memory that the layer computes with; on the device "cuda" they are read-only copies,
        and assigning a whole array sets the values.

    Notes
    -----
    Values are drawn when they are first needed. Values set before the layer goes into a model are kept there.
    """

    _without = "bias"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        init: str | Initializer = "default",
        *,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.in_features = checks.integer("in_features", in_features, minimum=1)
        self.out_features = checks.integer("out_features", out_features, minimum=1)
        self.has_bias = checks.boolean("bias", bias)
        self._init = initializers.checked(init)
        self.seed = seed
        self.shapes = {"weight": (self.in_features, self.out_features)} | (
            {"bias": (self.out_features,)} if self.has_bias else {}
        )
        self._begin(dtype, device)

    def lowered(self, features: int) -> program.Layer:
        return program.Layer("linear", self.in_features, self.out_features, self.has_bias)

    def _drawn(self, rng):
        drawn = initializers.linear(self._init, rng, self.in_features, self.out_features)
        checks.shape("the weight that init returns", np.asarray(drawn[0]), (self.in_features, self.out_features))
        return dict(zip(self.shapes, drawn, strict=False))

    # ----------------------------------------------------------------------------------- steps
    def _output(self, x: ArrayLike) -> Array:
        """``X W + b``."""
        network = self.network
        x = checks.batch("x", x, self.in_features, network.dtype)
        weight, bias = network.views[self._row]
        out = np.empty((len(x), self.out_features), network.dtype)
        network.backend.linear_forward(x, weight, bias, *IDENTITY, out, out)
        self._saved = x
        return out

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``∂L/∂W = Xᵀ G``, ``∂L/∂b = Σ_rows G``; returns ``∂L/∂X = G Wᵀ``.

        Parameters
        ----------
        grad_output : array (n, out)
            ``G``, the gradient with respect to the output of the last `forward`.
        accumulate : bool
            Add to the stored gradients; by default they are overwritten.

        Returns
        -------
        array (n, in)
        """
        x = self._last_saved()
        network = self.network
        grad_output = checks.batch("grad_output", grad_output, self.out_features, network.dtype, len(x))
        grad_output = network.apart_from_gradients(grad_output)
        grad_weight, grad_bias = network.store_gradients()[self._row]
        if self.trainable:
            network.backend.linear_backward_params(x, grad_output, int(accumulate), grad_weight, grad_bias)
        return self.backward_input(grad_output)

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """``∂L/∂X = G Wᵀ`` alone, without storing gradients."""
        x, network = self._last_saved(), self.network
        grad_output = checks.batch("grad_output", grad_output, self.out_features, network.dtype, len(x))
        grad_input, weight = np.empty_like(x), network.views[self._row][0]
        network.backend.linear_backward_input(grad_output, weight, x, *IDENTITY, grad_input)
        return grad_input

    def config(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.has_bias}
