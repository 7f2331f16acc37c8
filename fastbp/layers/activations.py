"""Activations: ``out = g(z)`` for every element. Each class names its formula in `fastbp.kernels.layout`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import backend, checks
from ..checks import Array
from ..kernels import layout, program
from .base import Layer

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class Activation(Layer):
    """Base class of activations: ``out = g(z)`` for every element.

    Used alone, float64 is kept, and other dtypes give float32.

    Parameters
    ----------
    device : str
        For a layer used alone; a `Sequential` has a device of its own.

    Attributes
    ----------
    name : str
        Its name in ``fastbp.kernels.layout``, which gives its ``code``.
    parameter : float
        The number its kernel takes, where it takes one.
    """

    name: str
    parameter = 0.0

    def __init__(self, *, device: str = "cpu") -> None:
        self.device = checks.choice("device", device, backend.MODULES)
        self._saved = None

    @property
    def code(self) -> int:
        return layout.ACTIVATIONS.index(self.name)

    def lowered(self, features: int) -> program.Layer:
        return program.Layer("activation", features, features, False, self.name, self.parameter)

    def _output(self, x: ArrayLike) -> Array:
        """``g(x)``."""
        x = checks.batch("x", x)
        out = np.empty_like(x)
        backend.load(self.device).activation_forward(x, self.code, self.parameter, out)
        self._saved = x if self.name in layout.SAVES_PRE_ACTIVATION else out.copy()
        return out

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``g'(x) * grad_output`` at the last `forward`; there is nothing to accumulate."""
        saved = self._last_saved()
        grad_output = checks.batch("grad_output", grad_output, saved.shape[1], saved.dtype, len(saved))
        grad_input = np.empty_like(saved)
        kernels = backend.load(self.device)
        kernels.activation_backward(grad_output, saved, self.code, self.parameter, grad_input)
        return grad_input


class Identity(Activation):
    """``g(z) = z``."""

    name = "identity"


class ReLU(Activation):
    """``g(z) = max(0, z)``; the derivative at 0 is 0."""

    name = "relu"


class LeakyReLU(Activation):
    """``g(z) = z`` above 0, ``negative_slope z`` elsewhere; the derivative at 0 is ``negative_slope``.

    Parameters
    ----------
    negative_slope : float
        Not negative: the derivative is taken from the sign of the output.
    device : str

    Raises
    ------
    TypeError, ValueError
        ``negative_slope`` is no number, negative or not finite.
    """

    name = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.parameter = checks.real("negative_slope", negative_slope)

    def config(self) -> dict[str, Any]:
        return {"negative_slope": self.parameter}


class ELU(Activation):
    """``g(z) = z`` above 0, ``alpha (e^z - 1)`` elsewhere; there ``g' = g + alpha``.

    Parameters
    ----------
    alpha : float
        Not negative: the derivative is taken from the sign of the output.
    device : str

    Raises
    ------
    TypeError, ValueError
        ``alpha`` is no number, negative or not finite.
    """

    name = "elu"

    def __init__(self, alpha: float = 1.0, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.parameter = checks.real("alpha", alpha)

    def config(self) -> dict[str, Any]:
        return {"alpha": self.parameter}


class SELU(Activation):
    """``g(z) = s z`` above 0, ``s α (e^z - 1)`` elsewhere, ``s = 1.0507…``, ``α = 1.6732…``.

    Klambauer et al., "Self-normalizing neural networks", 2017.
    """

    name = "selu"


class GELU(Activation):
    """``g(z) = z Φ(z)``, Φ the normal distribution function (Hendrycks & Gimpel, 2016).

    Parameters
    ----------
    approximate : str
        ``"none"``, or ``"tanh"`` for ``g(z) = z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2``.
    device : str

    Raises
    ------
    ValueError
        ``approximate`` is another word.
    """

    names = {"none": "gelu", "tanh": "gelu_tanh"}  # noqa: RUF012 - a constant

    def __init__(self, approximate: str = "none", *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.approximate = checks.choice("approximate", approximate, self.names)
        self.name = self.names[approximate]

    def config(self) -> dict[str, Any]:
        return {"approximate": self.approximate}


class SiLU(Activation):
    """``g(z) = z / (1 + e^-z)``, also called swish."""

    name = "silu"


class Softplus(Activation):
    """``g(z) = ln(1 + e^z)``, ``g' = 1 / (1 + e^-z)``."""

    name = "softplus"


class Mish(Activation):
    """``g(z) = z tanh(ln(1 + e^z))`` (Misra, 2019)."""

    name = "mish"


class Tanh(Activation):
    """``g(z) = tanh z``, ``g' = 1 - g²``."""

    name = "tanh"


class Sigmoid(Activation):
    """``g(z) = 1 / (1 + e^-z)``, ``g' = g (1 - g)``."""

    name = "sigmoid"
