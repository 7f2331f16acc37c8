"""Dropout: units that a training step leaves out, drawn by counting so that threads and layouts do not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import backend, checks
from ..checks import Array
from ..kernels import program
from .base import Layer


class Dropout(Layer):
    """``y = x m / (1 - p)``, with ``m`` 0 with probability ``p`` and 1 otherwise; ``y = x`` when not training.

    Srivastava et al., "Dropout", 2014. In a model, the units dropped depend on the seed, the training step, the row of
    the data and the unit, not on threads, the layout of the data or the place in a batch; in loops of your own, where a
    batch is all there is, on its row in the batch. `Sequential.eval`, ``predict`` and validation drop nothing.
    Used alone, float64 is kept, and other dtypes give float32.

    Parameters
    ----------
    p : float
        Probability of dropping a unit, in [0, 1).
    seed : int, optional
        For a layer used alone; in a `Sequential` the generator of the model draws.
    device : str
        For a layer used alone; a `Sequential` has a device of its own.

    Attributes
    ----------
    training : bool
        For a layer used alone: whether `forward` drops.

    Raises
    ------
    TypeError, ValueError
        ``p`` is no number in [0, 1).
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None, device: str = "cpu") -> None:
        self.p = checks.real("p", p, below=1.0)
        self.device = checks.choice("device", device, backend.MODULES)
        self.generator = checks.generator("seed", seed)
        self.training = True
        self._saved = None  # the shape, dtype and key of the last forward

    def _dropped(self, x, key):
        out = np.empty_like(x)
        if key is None:
            out[...] = x
        else:
            backend.load(self.device).dropout(x, np.arange(len(x)), key, self.p, out)
        return out

    def _output(self, x: ArrayLike) -> Array:
        """``x m / (1 - p)``."""
        x = checks.batch("x", x)
        key = int(self.generator.integers(-(2**63), 2**63)) if self.training else None
        self._saved = x.shape, x.dtype, key
        return self._dropped(x, key)

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``grad_output m / (1 - p)`` with the ``m`` of the last `forward`; there is nothing to accumulate."""
        (rows, features), dtype, key = self._last_saved()
        return self._dropped(checks.batch("grad_output", grad_output, features, dtype, rows), key)

    def lowered(self, features: int) -> program.Layer:
        return program.Layer("dropout", features, features, parameter=self.p)

    def config(self) -> dict[str, Any]:
        return {"p": self.p}
