"""Layers: the linear layer and the activations, each usable alone or as a part of `Sequential`.

A linear layer alone owns its parameters; in a `Sequential` they are views into the buffer of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import backend, checks, initializers
from .checks import Array
from .graph import Function, Variable
from .initializers import Initializer
from .kernels import layout, program
from .parameters import Parameter, Parameters, assign

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "BatchNorm1d",
    "Dropout",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Mish",
    "ReLU",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class Call(Function):
    """A call of a layer or a network as one function of the graph; its gradients add to those that are stored.

    What ``backward`` needs belongs to the call, so that a layer can be used several times. The layer's own last call is
    restored.
    """

    @staticmethod
    def forward(ctx: Any, layer: Any, forward: Callable[[Array], Array], x: Any) -> Any:
        last = layer.last_call
        try:
            out = forward(x)
            ctx.layer, ctx.call = layer, layer.last_call
        finally:
            layer.last_call = last
        ctx.network = layer.network
        ctx.has_parameters = ctx.network is not None
        ctx.values = ctx.state_of(layer)
        return out

    def state_of(self, layer: Any) -> tuple[Any, ...] | None:
        """What tells whether the values of the layer, alone or in a model, have changed."""
        network = self.network
        return (network.version, network.fingerprint(getattr(layer, "_row", None))) if network is not None else None

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        layer = ctx.layer
        last, layer.last_call = layer.last_call, ctx.call
        try:
            grad_input = layer.backward(grad, accumulate=True) if ctx.stores_gradients else layer.backward_input(grad)
        finally:
            layer.last_call = last
        return None, None, grad_input

    def check_unchanged(self) -> None:
        if self.has_parameters and self.values != self.state_of(self.layer):
            raise RuntimeError(
                f"the parameters of {self.label} were changed after it had been called: call backward() before the "
                f"optimizer steps, or compute again"
            )

    @property
    def label(self) -> str:
        return type(self.layer).__name__


class Layer:
    """Base class of all layers."""

    network: Any = None  # the `Parameters` of a layer that has some
    device: str
    _saved: Any

    @overload
    def __call__(self, x: Variable) -> Variable: ...
    @overload
    def __call__(self, x: ArrayLike) -> Array: ...
    def __call__(self, x: ArrayLike | Variable) -> Any:
        return self.forward(x)

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """The output for a batch ``x`` (n, in); keeps what `backward` needs. A Variable gives a Variable."""
        raise NotImplementedError

    @property
    def last_call(self) -> Any:
        """What `backward` needs of the last `forward`."""
        return self._saved

    @last_call.setter
    def last_call(self, saved: Any) -> None:
        self._saved = saved

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """`backward` without storing gradients."""
        return self.backward(grad_output)

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """The gradient with respect to the input of the last `forward`."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that recreate this layer, for files."""
        return {}

    def lowered(self, features: int) -> program.Layer:
        """This layer as `kernels.program.lower` takes it, where it gets so many features."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_saved": None}

    def _last_saved(self):
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward() needs a forward() before it")
        return self._saved


class Trained(Layer):
    """What layers with parameters share: a weight and a bias, alone or in the buffers of a model."""

    in_features: int
    shapes: dict[str, tuple[int, ...]]  # of the weight, the bias and running statistics, by name
    dtype: np.dtype[Any]
    seed: int | None = None
    _trainable = True  # until there is a buffer

    def _begin(self, dtype, device):
        self.dtype = checks.dtype("dtype", dtype)
        self.device = checks.choice("device", device, backend.MODULES)
        self._given = {}  # values set before there is a buffer
        self._parameters = self._row = self._saved = None
        self.adopted = False

    @property
    def network(self) -> Parameters:
        """The `Parameters` that hold this layer; its own are made here when it is used alone."""
        if self._parameters is None:
            row = self.lowered(self.in_features)._replace(trains=self._trainable)
            network = Parameters([row], [""], self.dtype, self.device)
            self._place(network, 0, self.first_values(checks.generator("seed", self.seed)))
        return self._parameters

    def first_values(self, rng: np.random.Generator) -> dict[str, Any]:
        """The values there are, else first ones, by name."""
        if self._parameters is not None:
            return {name: getattr(self, name) for name in self.shapes}
        if self.shapes.keys() <= self._given.keys():
            return self._given
        return self._drawn(rng) | self._given

    def _drawn(self, rng):
        """First values by name."""
        raise NotImplementedError

    def _place(self, network, row, values):
        for name in self.shapes:
            network.write(network.view(row, name), values[name])
        self._parameters, self._row, self._given = network, row, {}

    def adopt(self, network: Parameters, row: int, values: Any) -> None:
        """Become a row of a model, with these values."""
        self._place(network, row, values)
        self.adopted = True

    @property
    def trainable(self) -> bool:
        """Whether training changes the layer.

        A frozen layer, ``trainable = False``, has gradients 0 and no update, and the state that an optimizer has of it
        is kept; the gradient goes through it to the layers before. A frozen `BatchNorm1d` normalises by its running
        statistics, which stay. It can be set between calls, not while `fit` runs; files keep it.
        """
        return self._trainable if self._parameters is None else self._row not in self._parameters.program.frozen

    @trainable.setter
    def trainable(self, value: bool) -> None:
        value = checks.boolean("trainable", value)
        if self._parameters is None:
            self._trainable = value
        else:
            model, frozen = self._parameters.owner and self._parameters.owner(), self._parameters.program.frozen
            (model or self._parameters).freeze(frozen - {self._row} if value else frozen | {self._row})

    def _set(self, name, value):
        array = checks.numeric(name, value)
        checks.shape(name, array, self.shapes[name])
        if self._parameters is None:
            self._given[name] = array.copy()
        else:
            assign(self.network, name, self._view(name), array)

    def _view(self, name):
        return self.network.view(self._row, name)

    @property
    def weight(self) -> Array:
        return self.network.readable(self._view("weight"))

    @weight.setter
    def weight(self, value: ArrayLike) -> None:
        self._set_parameter("weight", value)

    @property
    def bias(self) -> Array | None:
        return self.network.readable(self._view("bias"))

    @bias.setter
    def bias(self, value: ArrayLike) -> None:
        self._set_parameter("bias", value)

    def _set_parameter(self, name, value):
        if name not in self.shapes:
            raise ValueError(f"{name} cannot be set: the layer was made with {self._without}=False")
        self._set(name, value)

    @property
    def grad_weight(self) -> Array:
        return self.network.readable(self.network.gradient_views[self._row][0])

    @property
    def grad_bias(self) -> Array | None:
        return self.network.readable(self.network.gradient_views[self._row][1])

    def update_parameters(self, learning_rate: float) -> None:
        """``W ← W - learning_rate ∂L/∂W``, and the bias likewise."""
        network = self.network
        coefficients = np.zeros(layout.COEFFICIENTS)
        coefficients[0] = checks.real("learning_rate", learning_rate)
        if not self.trainable:
            raise RuntimeError("this layer is frozen: set trainable = True to update it")
        span = network.span(self._row)
        network.backend.optimizer_step(_SGD, coefficients, network.values[span], network.gradients[span], ())
        network.version += 1

    def parameters(self) -> list[Parameter]:
        """Named views of this layer's parameters; those of the whole model once it is part of one."""
        return self.network.named()


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
    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``X W + b``.

        Parameters
        ----------
        x : array (n, in)
            Kept for `backward` when it needed no conversion: do not change it in between.

        Returns
        -------
        array (n, out)
        """
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
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


class Activation(Layer):
    """Base class of activations: ``out = g(z)`` for every element.

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

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``g(x)`` for a batch ``x`` (n, features); float64 is kept, other dtypes give float32."""
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
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


IDENTITY = layout.ACTIVATIONS.index("identity"), 0.0  # code and parameter
_SGD = layout.OPTIMIZERS.index("sgd")


class Dropout(Layer):
    """``y = x m / (1 - p)``, with ``m`` 0 with probability ``p`` and 1 otherwise; ``y = x`` when not training.

    Srivastava et al., "Dropout", 2014. In a model, the units dropped depend on the seed, the training step, the row of
    the data and the unit, not on threads, the layout of the data or the place in a batch; in loops of your own, where a
    batch is all there is, on its row in the batch. `Sequential.eval`, ``predict`` and validation drop nothing.

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

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``x m / (1 - p)`` for a batch ``x`` (n, features); float64 is kept, other dtypes give float32."""
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
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

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``w x̂ + b`` for a batch ``x`` (n, features)."""
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
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

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``w x̂ + b`` for a batch ``x`` (n, features)."""
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
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


LAYERS = {name: globals()[name] for name in __all__}


def from_config(name: str, arguments: dict[str, Any]) -> Layer:
    """The layer of a class's name and what its `Layer.config` gave."""
    if name == "Residual":
        return Residual(*(from_config(*inner) for inner in arguments["layers"]))
    return LAYERS[name](**arguments)
