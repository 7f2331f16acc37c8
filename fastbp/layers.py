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
from .kernels import table
from .parameters import Parameter, Parameters, assign

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Dropout",
    "Identity",
    "LeakyReLU",
    "Linear",
    "Mish",
    "ReLU",
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
        ctx.version = ctx.network.version if ctx.has_parameters else None
        return out

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
        if self.has_parameters and self.version != self.network.version:
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_saved": None}

    def _last_saved(self):
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward() needs a forward() before it")
        return self._saved


class Linear(Layer):
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
        self.dtype = checks.dtype("dtype", dtype)
        self.device = checks.choice("device", device, backend.MODULES)
        self.seed = seed
        self._given = {}  # values set before there is a buffer
        self._parameters = self._row = self._saved = None
        self.adopted = False

    # ------------------------------------------------------------------------------ parameters
    @property
    def row(self) -> tuple[Any, ...]:
        """This layer as a row for `kernels.table.lower`, without an activation."""
        return ("linear", self.in_features, self.out_features, self.has_bias, "identity", 0.0)

    @property
    def network(self) -> Parameters:
        """The `Parameters` that hold this layer; a layer used alone makes its own here."""
        if self._parameters is None:
            network = Parameters([self.row], [""], self.dtype, self.device)
            self._place(network, 0, self.first_values(checks.generator("seed", self.seed)))
        return self._parameters

    def first_values(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """The (weight, bias) that were set, or newly drawn ones."""
        if self._parameters is not None:
            return self.weight, self.bias
        given = self._given.get("weight"), self._given.get("bias")
        if given[0] is not None and (given[1] is not None or not self.has_bias):
            return given
        drawn = initializers.linear(self._init, rng, self.in_features, self.out_features)
        checks.shape("the weight that init returns", np.asarray(drawn[0]), (self.in_features, self.out_features))
        return tuple(new if old is None else old for old, new in zip(given, drawn, strict=True))

    def _place(self, network, row, values):
        for view, value in zip(network.views[row], values, strict=True):
            if view is not None:
                network.write(view, value)
        self._parameters, self._row = network, row
        self._given = self._init = None

    def adopt(self, network: Parameters, row: int, values: Any) -> None:
        """Become a row of a model, with these values."""
        self._place(network, row, values)
        self.adopted = True

    def _set(self, name, shape, value):
        array = checks.numeric(name, value)
        checks.shape(name, array, shape)
        if self._parameters is None:
            self._given[name] = array.copy()
        else:
            assign(self.network, name, self._view(name), array)

    def _view(self, name):
        return self.network.views[self._row][name == "bias"]

    @property
    def weight(self) -> Array:
        return self.network.readable(self._view("weight"))

    @weight.setter
    def weight(self, value: ArrayLike) -> None:
        self._set("weight", (self.in_features, self.out_features), value)

    @property
    def bias(self) -> Array | None:
        return self.network.readable(self._view("bias"))

    @bias.setter
    def bias(self, value: ArrayLike) -> None:
        if not self.has_bias:
            raise ValueError("bias cannot be set: the layer was made with bias=False")
        self._set("bias", (self.out_features,), value)

    @property
    def grad_weight(self) -> Array:
        return self.network.readable(self.network.gradient_views[self._row][0])

    @property
    def grad_bias(self) -> Array | None:
        return self.network.readable(self.network.gradient_views[self._row][1])

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
        grad_weight, grad_bias = network.store_gradients()[self._row]
        network.backend.linear_backward_params(x, grad_output, int(accumulate), grad_weight, grad_bias)
        return self.backward_input(grad_output)

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """``∂L/∂X = G Wᵀ`` alone, without storing gradients."""
        x, network = self._last_saved(), self.network
        grad_output = checks.batch("grad_output", grad_output, self.out_features, network.dtype, len(x))
        grad_input, weight = np.empty_like(x), network.views[self._row][0]
        network.backend.linear_backward_input(grad_output, weight, x, *IDENTITY, grad_input)
        return grad_input

    def update_parameters(self, learning_rate: float) -> None:
        """``W ← W - learning_rate ∂L/∂W``, and the bias likewise."""
        network = self.network
        coefficients = np.zeros(table.COEFFICIENTS)
        coefficients[0] = checks.real("learning_rate", learning_rate)
        span = network.span(self._row)
        network.backend.optimizer_step(_SGD, coefficients, network.values[span], network.gradients[span], ())
        network.version += 1

    def parameters(self) -> list[Parameter]:
        """Named views of this layer's parameters; those of the whole model once it is part of one."""
        return self.network.named()

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
        Its name in ``fastbp.kernels.table``, which gives its ``code``.
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
        return table.ACTIVATIONS.index(self.name)

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """``g(x)`` for a batch ``x`` (n, features); float64 is kept, other dtypes give float32."""
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
        x = checks.matrix("x", x)
        x = checks.converted(x, np.float64 if x.dtype == np.float64 else np.float32)
        out = np.empty_like(x)
        backend.load(self.device).activation_forward(x, self.code, self.parameter, out)
        self._saved = x if self.name in table.SAVES_PRE_ACTIVATION else out.copy()
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


IDENTITY = table.ACTIVATIONS.index("identity"), 0.0  # code and parameter
_SGD = table.OPTIMIZERS.index("sgd")


class Dropout(Layer):
    """``y = x m / (1 - p)``, with ``m`` 0 with probability ``p`` and 1 otherwise; ``y = x`` when not training.

    Srivastava et al., "Dropout", 2014. In a model, the units dropped depend on the seed, the training step, the row of
    the data and the unit, not on threads or the place in a batch. They depend on the place instead for rows that have
    to be converted before the kernels can read them, and in steps through stored gradients (own loops, ``clip_norm``,
    ``accumulate``). `Sequential.eval`, ``predict`` and validation drop nothing.

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
        x = checks.matrix("x", x)
        x = checks.converted(x, np.float64 if x.dtype == np.float64 else np.float32)
        key = int(self.generator.integers(-(2**63), 2**63)) if self.training else None
        self._saved = x.shape, x.dtype, key
        return self._dropped(x, key)

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """``grad_output m / (1 - p)`` with the ``m`` of the last `forward`; there is nothing to accumulate."""
        (rows, features), dtype, key = self._last_saved()
        return self._dropped(checks.batch("grad_output", grad_output, features, dtype, rows), key)

    def config(self) -> dict[str, Any]:
        return {"p": self.p}


LAYERS: dict[str, type[Layer]] = {name: globals()[name] for name in __all__}
