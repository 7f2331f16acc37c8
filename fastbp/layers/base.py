"""What all layers share: a call as a function of the graph, and parameters that a model may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import backend, checks
from ..checks import Array
from ..graph import Function, Variable
from ..kernels import layout, program
from ..parameters import Parameter, Parameters, assign

_SGD = layout.OPTIMIZERS.index("sgd")


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


class Called:
    """What is called with a batch: a layer, or a network."""

    network: Any = None  # the `Parameters` of what has some

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
        """The output for a batch; keeps what `backward` needs.

        Parameters
        ----------
        x : array (n, in), or Variable
            Kept when it needed no conversion: do not change it before `backward`.

        Returns
        -------
        array (n, out), or Variable
            For a `fastbp.Variable`, a Variable whose ``grad_fn`` is the whole layer or network.
        """
        if type(x) is Variable:
            return Call.apply(self, self._output, x)
        return self._output(x)

    def _output(self, x: ArrayLike) -> Array:
        """`forward` of a batch that is no Variable."""
        raise NotImplementedError


class Layer(Called):
    """Base class of all layers."""

    device: str
    _saved: Any

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
