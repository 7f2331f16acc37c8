"""Normalisations: over the features of a row, `LayerNorm`, and over the rows of a batch, `BatchNorm1d`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import checks
from ..checks import Array
from ..kernels import program
from .base import Trained


class Normalization(Trained):
    """What normalisations share: ``y = w x̂ + b``, with ``w`` first 1 and ``b`` 0.

    Parameters
    ----------
    features : int
    eps : float
        Added to the variance.
    affine : bool
        Whether there are ``w`` and ``b``; else they are 1 and 0.
    dtype, device : str
        For the layer alone; in a `Sequential` those of the model hold.

    Attributes
    ----------
    weight, bias : arrays (features,) or None
    grad_weight, grad_bias : arrays
        As of a `Linear`.

    Raises
    ------
    TypeError, ValueError
        An argument is no positive number, or no bool.
    """

    _without = "affine"
    kind: str  # as `kernels.program` calls it

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
    ) -> None:
        self.in_features = self.features = checks.integer("features", features, minimum=1)
        self.eps = checks.positive("eps", eps)
        self.affine = checks.boolean("affine", affine)
        self.shapes = dict.fromkeys(("weight", "bias"), (self.features,)) if self.affine else {}
        self._begin(dtype, device)

    def _drawn(self, rng):
        return {name: np.full(self.features, float(name in ("weight", "running_var"))) for name in self.shapes}

    def lowered(self, features: int) -> program.Layer:
        return program.Layer(self.kind, self.features, self.features, self.affine, parameter=self.eps)

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "eps": self.eps, "affine": self.affine}

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``∂L/∂w = Σ_rows G x̂``, ``∂L/∂b = Σ_rows G``; returns ``∂L/∂X``.

        Parameters
        ----------
        grad_output : array (n, features)
            ``G``, the gradient with respect to the output of the last `forward`.
        accumulate : bool
            Add to the stored gradients; by default they are overwritten.

        Returns
        -------
        array (n, features)
        """
        normalised, network = self._last_saved()[0], self.network
        grad_output = checks.batch("grad_output", grad_output, self.features, network.dtype, len(normalised))
        if self.affine and self.trainable:
            grad_output = network.apart_from_gradients(grad_output)
            views = network.store_gradients()[self._row]
            network.backend.norm_backward_params(grad_output, normalised, int(accumulate), *views)
        return self.backward_input(grad_output)


class LayerNorm(Normalization):
    """``y = w x̂ + b`` with ``x̂ = (x - mean) / √(var + eps)``, mean and variance over the features of a row.

    Ba, Kiros & Hinton, "Layer normalization", 2016. The variance is the mean of the squares about the mean.

    Parameters
    ----------
    features : int
    eps : float
        Added to the variance.
    affine : bool
        Whether there are ``w``, first 1, and ``b``, first 0.
    dtype, device : str
        For the layer alone; in a `Sequential` those of the model hold.
    """

    kind = "layer_norm"

    def _output(self, x: ArrayLike) -> Array:
        """``w x̂ + b``."""
        network = self.network
        x = checks.batch("x", x, self.features, network.dtype)
        out, normalised, scale = np.empty_like(x), np.empty_like(x), np.empty((len(x), 1), x.dtype)
        network.backend.layer_norm_forward(x, *network.views[self._row], self.eps, out, normalised, scale)
        self._saved = normalised, scale
        return out

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """``∂L/∂X`` alone, without storing gradients."""
        (normalised, scale), network = self._last_saved(), self.network
        grad_output = checks.batch("grad_output", grad_output, self.features, network.dtype, len(normalised))
        grad_input, weight = np.empty_like(normalised), network.views[self._row][0]
        network.backend.layer_norm_backward_input(grad_output, weight, normalised, scale, grad_input)
        return grad_input


class BatchNorm1d(Normalization):
    """``y = w x̂ + b`` with ``x̂ = (x - mean) / √(var + eps)``, mean and variance of a feature over the batch.

    Ioffe & Szegedy, "Batch normalization", 2015. The one layer whose training depends on which rows are in a batch; so
    a training batch needs two rows. Sample weights count in mean and variance. When not training the running
    statistics stand for those of the batch: they become ``(1 - momentum) running + momentum of_batch`` with every
    batch, whose variance goes in without bias. `Sequential.fit` and ``train_step`` let them learn from a batch with the
    update of the parameters, and only if its loss is finite; ``model(x)`` in training mode does at once.

    Parameters
    ----------
    features : int
    eps : float
        Added to the variance.
    momentum : float
        In [0, 1].
    affine : bool
        Whether there are ``w``, first 1, and ``b``, first 0.
    dtype, device : str
        For the layer alone; in a `Sequential` those of the model hold.

    Attributes
    ----------
    running_mean, running_var : arrays (features,)
        First 0 and 1; in files and `Sequential.state_dict`, not in ``flat_parameters``.
    training : bool
        For the layer alone: whether `forward` takes the statistics of the batch.
    """

    kind = "batch_norm"

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
    ) -> None:
        super().__init__(features, eps, affine, dtype=dtype, device=device)
        self.momentum = checks.share("momentum", momentum)
        self.shapes |= dict.fromkeys(("running_mean", "running_var"), (self.features,))
        self.training = True

    @property
    def running_mean(self) -> Array:
        return self.network.readable(self._view("running_mean"))

    @running_mean.setter
    def running_mean(self, value: ArrayLike) -> None:
        self._set("running_mean", value)

    @property
    def running_var(self) -> Array:
        return self.network.readable(self._view("running_var"))

    @running_var.setter
    def running_var(self, value: ArrayLike) -> None:
        self._set("running_var", value)

    def _output(self, x: ArrayLike) -> Array:
        """``w x̂ + b``."""
        network = self.network
        x, kernels = checks.batch("x", x, self.features, network.dtype), network.backend
        running = self._view("running_mean"), self._view("running_var")
        mean, scale, variance = (np.empty(self.features, x.dtype) for _ in range(3))
        row_weight = None
        if self.training:
            checks.batch_that_meets(len(x))
            row_weight = np.full(len(x), 1 / len(x))
            kernels.batch_moments(x, row_weight, self.eps, mean, scale, variance)
            kernels.update_statistics(mean, variance, self.momentum, *running)
        else:
            kernels.running_moments(*running, self.eps, mean, scale)
        out, normalised = np.empty_like(x), np.empty_like(x)
        kernels.batch_norm_forward(x, mean, scale, *network.views[self._row], out, normalised)
        self._saved = normalised, scale, row_weight
        return out

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """``∂L/∂X`` alone, without storing gradients."""
        (normalised, scale, row_weight), network = self._last_saved(), self.network
        grad_output = checks.batch("grad_output", grad_output, self.features, network.dtype, len(normalised))
        grad_input, weight, sums = np.empty_like(normalised), network.views[self._row][0], (None, None)
        if row_weight is not None:
            sums = tuple(np.empty(self.features, normalised.dtype) for _ in range(2))
            network.backend.norm_backward_params(grad_output, normalised, 0, *sums)
        network.backend.batch_norm_backward_input(grad_output, row_weight, weight, normalised, scale, *sums, grad_input)
        return grad_input

    def lowered(self, features: int) -> program.Layer:
        return super().lowered(features)._replace(momentum=self.momentum)

    def config(self) -> dict[str, Any]:
        return super().config() | {"momentum": self.momentum}
