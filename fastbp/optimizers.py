"""Optimizers: a code for the kernel, the scalars of every step, and the state between steps."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar, overload

import numpy as np

from . import checks
from .checks import Array
from .kernels import layout
from .parameters import Parameter, Parameters
from .schedules import LearningRate, rate, to_json

__all__ = ["SGD", "Adam", "AdamW", "Lion", "Momentum", "RMSProp"]

AHEAD = 256  # steps whose scalars are computed together: those of one step would cost as much
NONE_AHEAD = 0, np.empty((0, layout.COEFFICIENTS))  # (first step, scalars) before some are


T = TypeVar("T")


class _Hyperparameter(Generic[T]):
    """A checked attribute; setting it discards the scalars computed ahead."""

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self.check = check

    def __set_name__(self, owner, name):
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: type) -> _Hyperparameter[T]: ...
    @overload
    def __get__(self, optimizer: Optimizer, owner: type | None = None) -> T: ...
    def __get__(self, optimizer: Optimizer | None, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer.__dict__[self.name]

    def __set__(self, optimizer: Optimizer, value: T) -> None:
        value = self.check(self.name, value)
        optimizer._ahead = NONE_AHEAD
        optimizer.__dict__[self.name] = value


def _below_1(argument: str, value: Any) -> float:
    return checks.real(argument, value, below=1.0)


def _betas(argument: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{argument} must be a pair of numbers, got {value!r}")
    return _below_1(f"{argument}[0]", value[0]), _below_1(f"{argument}[1]", value[1])


class Optimizer:
    """Base class of the optimizers: the learning rate, the state and the count of steps.

    An optimizer belongs to the first model it is used with; its state continues over calls of ``fit``.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
        All parameters of one model, as ``model.parameters()`` gives them. ``fit`` and ``train_step`` need none.
    lr : float or callable
        Learning rate, or a function of the number of updates done (0 before the first) that returns it. Can be
        set at any time, like the other numbers unless they say otherwise.
    weight_decay : float
        ``weight_decay W`` is added to the gradient: an L2 penalty of ``½ weight_decay ‖W‖²``, biases included.
    clip_norm : float, optional
        Largest Euclidean norm of all gradients together, above 0: where it is larger, the stored gradients are
        multiplied by ``clip_norm / norm``. It needs stored gradients, so ``fit`` and ``train_step`` run forward,
        backward and update as separate calls. Fixed when the optimizer is made.

    Attributes
    ----------
    step_count : int
        Updates done.
    state : tuple of arrays
        Buffers of the kernel; empty before the first use.
    """

    name: str
    state_names: tuple[str, ...] = ()  # of the buffers, in the order of the kernel
    decay_column = 1  # of the coefficients: what of W is added to the gradient
    lr = _Hyperparameter(rate)
    weight_decay = _Hyperparameter(checks.real)

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self._clip_norm = None if clip_norm is None else checks.positive("clip_norm", clip_norm)
        self.step_count = 0
        self.state: tuple[Any, ...] = ()
        self.network: Parameters | None = None
        if parameters is not None:
            self.bind(self._network_of(parameters))

    @property
    def code(self) -> int:
        """Code of its kernel."""
        return layout.OPTIMIZERS.index(self.name)

    @property
    def clip_norm(self) -> float | None:
        return self._clip_norm

    @staticmethod
    def _network_of(parameters):
        """The network whose parameters these are; all of them, and of one network."""
        try:
            parameters = list(parameters)
            networks = {id(parameter.network): parameter.network for parameter in parameters}
        except (TypeError, AttributeError):
            raise TypeError(
                "parameters must be what model.parameters() returns; other arguments of an optimizer go by name, "
                "for example Adam(model.parameters(), lr=1e-3)"
            ) from None
        if len(networks) != 1:
            raise ValueError(f"parameters must be those of one model, got those of {len(networks)}")
        network = networks.popitem()[1]
        expected = [parameter.name for parameter in network.named()]
        if sorted(parameter.name for parameter in parameters) != sorted(expected):
            raise ValueError(f"parameters must be all of a model, {expected}; got {[p.name for p in parameters]}")
        return network

    def bind(self, network: Parameters) -> None:
        """Make this the optimizer of a network's `Parameters`; an error when it belongs to another network."""
        self.require_free_for(network)
        if self.network is None:
            self.state = network.like(layout.OPTIMIZER_STATES[self.name])
            network.optimizers.add(self)
            self.network = network  # last: then it is bound

    def require_free_for(self, network: Parameters) -> None:
        """Refuse a network when this is the optimizer of another."""
        if self.network is not None and self.network is not network:
            raise ValueError(
                f"optimizer {self!r} has been used with another model, and its state is of that model; "
                f"make a new {type(self).__name__}"
            )

    def reset(self) -> None:
        """Start again: set the state and the count of updates to zero."""
        state = () if self.network is None else self.network.like(len(self.state))
        self.state, self.step_count = state, 0

    def __getstate__(self) -> dict[str, Any]:
        if self.network is None:
            return self.__dict__
        return self.__dict__ | {"state": tuple(map(self.network.backend.to_host, self.state))}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        if self.network is not None:  # a copied array need not start on a cache line
            buffers = self.network.like(len(self.state))
            for buffer, copied in zip(buffers, self.state, strict=True):
                self.network.write(buffer, copied)
            self.state = buffers
            self.network.optimizers.add(self)

    # ----------------------------------------------------------------------------------- steps
    def learning_rate(self, step: int) -> float:
        """Learning rate of the update after ``step`` updates."""
        return checks.real(f"lr({step})", self.lr(step)) if callable(self.lr) else self.lr

    def learning_rates(self, first_step: int, steps: int) -> Array:
        """Learning rates of updates ``first_step … first_step + steps - 1``, float64 (steps,)."""
        if callable(self.lr):
            return np.array([self.learning_rate(step) for step in range(first_step, first_step + steps)])
        return np.full(steps, self.lr)

    def coefficients(self, first_step: int, steps: int) -> Array:
        """The scalars the kernel reads, float64 (steps, layout.COEFFICIENTS)."""
        result, rates = np.zeros((steps, layout.COEFFICIENTS)), self.learning_rates(first_step, steps)
        t = np.arange(first_step + 1, first_step + steps + 1, dtype=np.float64)
        with np.errstate(all="ignore"):  # powers of beta become 0, whatever NumPy is set to do then
            self._fill(result.T, rates, t)
        return result

    def _fill(self, columns, lr, t):
        """Write the slots that the kernel's ``*_step`` in kernels/reference.py lists, for updates ``t = 1, 2, …``."""
        raise NotImplementedError

    def next_coefficients(self, steps: int = 1) -> Array:
        """The scalars of the next updates, float64 (steps, layout.COEFFICIENTS)."""
        if callable(self.lr):
            return self.coefficients(self.step_count, steps)
        first, ahead = self._ahead
        i = self.step_count - first
        if not 0 <= i <= len(ahead) - steps:
            i, ahead = 0, self.coefficients(self.step_count, max(steps, AHEAD))
            self._ahead = self.step_count, ahead
        return ahead[i : i + steps]

    def next_decaying(self, decay: Array) -> Array:
        """The scalars of the next updates of weights, with a decay each, and of biases: (2, steps, COEFFICIENTS)."""
        both = np.empty((2, len(decay), layout.COEFFICIENTS))
        both[:] = self.next_coefficients(len(decay))
        both[0, :, self.decay_column] = decay
        return both

    def step(self) -> None:
        """Update the parameters by the stored gradients, which are clipped first if ``clip_norm`` is set."""
        if self.network is None:
            raise RuntimeError(
                f"the optimizer has no parameters: make it with {type(self).__name__}(model.parameters(), …)"
            )
        network, coefficients = self.network, self.next_coefficients()[0]
        if self._clip_norm is not None:
            network.clip_gradients(self._clip_norm)
        parts = list(network.trained(network.values, network.gradients, *self.state))
        calls: list[Callable[[], Any]] = [
            network.backend.optimizer_call(self.code, coefficients, values, gradients, tuple(state))
            for values, gradients, *state in parts
        ]
        calls.append(partial(setattr, network, "version", network.version + 1))
        calls.append(partial(setattr, self, "step_count", self.step_count + 1))
        deque(map(operator.call, calls), 0)  # one call of C: what an interrupted step has changed, it has counted

    def zero_grad(self) -> None:
        """Set the stored gradients to zero."""
        if self.network is not None:
            self.network.zero_gradients()

    # ----------------------------------------------------------------------------------- files
    def state_dict(self) -> dict[str, Any]:
        """``step_count`` and packed copies of the state by name."""
        named = zip(self.state_names, self.state, strict=False)
        return {"step_count": self.step_count} | {name: self.network.pack(buffer) for name, buffer in named}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, after the optimizer was given its model's parameters."""
        if self.network is None:
            raise RuntimeError("an optimizer takes a state after it was given the parameters of its model")
        expected = {"step_count", *self.state_names}
        if set(state) != expected:
            raise ValueError(f"state must have the keys {sorted(expected)}, got {sorted(state)}")
        step_count = checks.integer("step_count", state["step_count"], minimum=0)
        arrays = [self.network.checked_flat(name, state[name]) for name in self.state_names]
        buffers = self.network.like(len(arrays))
        for buffer, array in zip(buffers, arrays, strict=True):
            self.network.unpack(array, buffer)
        self.state, self.step_count = buffers, step_count

    def config(self) -> dict[str, Any]:
        """Arguments that recreate this optimizer."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "clip_norm": self.clip_norm}

    def json_config(self) -> dict[str, Any]:
        """`config` as JSON, for files; an ``lr`` that is a function other than a schedule of fastbp is None."""
        return self.config() | {"lr": to_json(self.lr)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"


class SGD(Optimizer):
    """``W ← W - lr g``: stochastic, mini-batch or full-batch gradient descent, as the batches are.

    With momentum, the classical form ``V ← μ V + g`` and ``W ← W - lr V``; with Nesterov's
    ``W ← W - lr (g + μ V)`` (Polyak, 1964; Sutskever et al., 2013, as PyTorch writes them).

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    momentum : float
        μ, in [0, 1). Fixed when the optimizer is made.
    nesterov : bool
        Needs a momentum above 0. Fixed when the optimizer is made.
    weight_decay, clip_norm
        As in every optimizer, see `Optimizer`.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self._momentum = _below_1("momentum", momentum)
        self._nesterov = checks.boolean("nesterov", nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs a momentum above 0, for example momentum=0.9")
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    @property
    def name(self) -> str:
        if self._nesterov:
            return "nesterov"
        return "momentum" if self._momentum else "sgd"

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("velocity",) if self._momentum else ()

    @property
    def momentum(self) -> float:
        return self._momentum

    @property
    def nesterov(self) -> bool:
        return self._nesterov

    def _fill(self, columns, lr, t):
        columns[0], columns[1], columns[2], columns[3] = lr, self.weight_decay, self.momentum, 1.0

    def config(self) -> dict[str, Any]:
        return super().config() | {"momentum": self.momentum, "nesterov": self.nesterov}


class Momentum(Optimizer):
    """``V ← β V + (1-β) g`` from zero, ``W ← W - lr V``: an exponentially weighted average of the gradients.

    `SGD` with momentum β is the same with ``lr (1-β)`` for lr.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    beta : float
        β, in [0, 1).
    weight_decay, clip_norm
        As in every optimizer, see `Optimizer`.
    """

    name = "momentum"
    state_names = ("velocity",)
    beta = _Hyperparameter(_below_1)

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 0.01,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.beta = beta
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _fill(self, columns, lr, t):
        columns[0], columns[1], columns[2], columns[3] = lr, self.weight_decay, self.beta, 1 - self.beta

    def config(self) -> dict[str, Any]:
        return super().config() | {"beta": self.beta}


class RMSProp(Optimizer):
    """``S ← β S + (1-β) g²``, ``W ← W - lr g / √(S + eps)`` or ``W ← W - lr g / (√S + eps)``.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    beta : float
        β, in [0, 1).
    eps : float
    eps_inside_sqrt : bool
        Whether eps is added inside the square root; PyTorch adds it outside.
    weight_decay, clip_norm
        As in every optimizer, see `Optimizer`.
    """

    name = "rmsprop"
    state_names = ("square_avg",)
    beta = _Hyperparameter(_below_1)
    eps = _Hyperparameter(checks.real)
    eps_inside_sqrt = _Hyperparameter(checks.boolean)

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 1e-3,
        beta: float = 0.9,
        eps: float = 1e-8,
        eps_inside_sqrt: bool = True,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.beta, self.eps, self.eps_inside_sqrt = beta, eps, eps_inside_sqrt
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _fill(self, columns, lr, t):
        columns[0], columns[1], columns[2], columns[3] = lr, self.weight_decay, self.beta, 1 - self.beta
        columns[4 if self.eps_inside_sqrt else 5] = self.eps

    def config(self) -> dict[str, Any]:
        return super().config() | {"beta": self.beta, "eps": self.eps, "eps_inside_sqrt": self.eps_inside_sqrt}


class Adam(Optimizer):
    """``m ← β₁m + (1-β₁)g``, ``v ← β₂v + (1-β₂)g²``, ``W ← W - lr m̂ / (√v̂ + eps)``.

    With ``m̂ = m / (1-β₁ᵗ)`` and ``v̂ = v / (1-β₂ᵗ)`` at update ``t = 1, 2, …`` (Kingma & Ba, 2015).

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    betas : pair of floats
        β₁ and β₂, in [0, 1).
    eps : float
    weight_decay, clip_norm
        As in every optimizer, see `Optimizer`.
    amsgrad : bool
        Divide by the root of the largest v so far, in place of v (Reddi et al., 2018, as PyTorch has it: the largest
        is taken before the bias correction). Fixed when the optimizer is made.
    eps_corrected : bool
        Whether eps is added to √v̂; if not, to √v before the bias correction, the paper's ε̂, as scikit-learn has it.
    """

    decay_column = 6
    betas = _Hyperparameter(_betas)
    eps = _Hyperparameter(checks.real)
    eps_corrected = _Hyperparameter(checks.boolean)

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        amsgrad: bool = False,
        eps_corrected: bool = True,
    ) -> None:
        self.betas, self.eps, self._amsgrad = betas, eps, checks.boolean("amsgrad", amsgrad)
        self.eps_corrected = eps_corrected
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    @property
    def name(self) -> str:
        return "amsgrad" if self._amsgrad else "adam"

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: layout.OPTIMIZER_STATES[self.name]]

    @property
    def amsgrad(self) -> bool:
        return self._amsgrad

    def _fill(self, columns, lr, t):
        beta1, beta2 = self.betas
        root2 = np.sqrt(1 - beta2**t)
        columns[0] = lr * root2 / (1 - beta1**t)
        columns[1], columns[2], columns[3], columns[4] = beta1, 1 - beta1, beta2, 1 - beta2
        columns[5] = self.eps * root2 if self.eps_corrected else self.eps
        columns[6] = self.weight_decay

    def config(self) -> dict[str, Any]:
        also = {} if self.eps_corrected else {"eps_corrected": False}
        return super().config() | {"betas": self.betas, "eps": self.eps, "amsgrad": self.amsgrad} | also


class AdamW(Adam):
    """`Adam` with decay apart from the gradient: ``W ← (1 - lr weight_decay) W - lr m̂ / (√v̂ + eps)``.

    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    betas : pair of floats
        β₁ and β₂, in [0, 1).
    eps : float
    weight_decay : float
        Biases decay as well.
    clip_norm
        As in every optimizer, see `Optimizer`.
    amsgrad, eps_corrected : bool
        As in `Adam`.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
        amsgrad: bool = False,
        eps_corrected: bool = True,
    ) -> None:
        super().__init__(
            parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm, amsgrad=amsgrad,
            eps_corrected=eps_corrected,
        )  # fmt: skip

    def _fill(self, columns, lr, t):
        super()._fill(columns, lr, t)
        columns[6], columns[7] = 0, lr * self.weight_decay


class Lion(Optimizer):
    """``W ← (1 - lr weight_decay) W - lr sign(β₁m + (1-β₁)g)``, then ``m ← β₂m + (1-β₂)g``.

    Every weight moves by lr, or not at all where the sum is 0. Chen et al., "Symbolic discovery of optimization
    algorithms", 2023, who take an lr 3 to 10 times smaller, and a weight_decay as much larger, than for `AdamW`.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    betas : pair of floats
        β₁ and β₂, in [0, 1).
    weight_decay : float
        Apart from the gradient. Biases decay as well.
    clip_norm
        As in every optimizer, see `Optimizer`.
    """

    name = "lion"
    state_names = ("exp_avg",)
    betas = _Hyperparameter(_betas)

    def __init__(
        self,
        parameters: Iterable[Parameter] | None = None,
        *,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.betas = betas
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _fill(self, columns, lr, t):
        beta1, beta2 = self.betas
        columns[0], columns[5] = lr, lr * self.weight_decay
        columns[1], columns[2], columns[3], columns[4] = beta1, 1 - beta1, beta2, 1 - beta2

    def config(self) -> dict[str, Any]:
        return super().config() | {"betas": self.betas}


OPTIMIZERS: dict[str, type[Optimizer]] = {name: globals()[name] for name in __all__}
