"""Optimizers: a code for the kernel, the scalars of every step, and the state between steps."""

import numpy as np

from . import checks
from .kernels import table

AHEAD = 256  # steps whose scalars are computed at once for single steps: the cost of one is that of a slice


class _Hyperparameter:
    """A checked attribute; setting it makes scalars computed ahead invalid."""

    def __init__(self, check):
        self.check = check

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else optimizer.__dict__[self.name]

    def __set__(self, optimizer, value):
        optimizer.__dict__[self.name] = self.check(self.name, value)
        optimizer._ahead_first, optimizer._ahead = 0, np.empty((0, table.COEFFICIENTS))


def _learning_rate(argument, value):
    return value if callable(value) else checks.real(argument, value)


def _betas(argument, value):
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{argument} must be a pair of numbers, got {value!r}")
    return tuple(checks.real(f"{argument}[{i}]", beta, below=1.0) for i, beta in enumerate(value))


class Optimizer:
    """What the optimizers share: the learning rate, the state and the count of steps.

    An optimizer belongs to the first model it is used with; its state continues over calls of ``fit``.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
        All parameters of one model, as ``model.parameters()`` gives them. ``fit`` and ``train_step`` need none.
    lr : float or callable
        Learning rate, or a function of the number of updates done (0 before the first) that returns it. Can be
        set at any time.

    Attributes
    ----------
    step_count : int
        Updates done.
    state : tuple of arrays
        Buffers of the kernel; empty before the first use.
    """

    name = None
    state_names = ()  # of the buffers, in the order of the kernel
    lr = _Hyperparameter(_learning_rate)

    def __init__(self, parameters=None, *, lr):
        self.lr = lr
        self.step_count = 0
        self.state = ()
        self.network = None
        if parameters is not None:
            self.bind(self._network_of(parameters))

    def __init_subclass__(cls):
        cls.code = table.OPTIMIZERS.index(cls.name)

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

    def bind(self, network):
        """Make this the optimizer of a network's `Parameters`; an error when it is another's."""
        if self.network is network:
            return
        if self.network is not None:
            raise ValueError(
                f"optimizer {self!r} has been used with another model, and its state is of that model; "
                f"make a new {type(self).__name__}"
            )
        self.state = network.like(table.OPTIMIZER_STATES[self.name])
        self.network = network

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.network is not None:  # a copied array need not start on a cache line
            buffers = self.network.like(len(self.state))
            for buffer, copied in zip(buffers, self.state, strict=True):
                buffer[...] = copied
            self.state = buffers

    # ----------------------------------------------------------------------------------- steps
    def learning_rates(self, first_step, steps):
        """Learning rates of updates ``first_step … first_step + steps - 1``, float64 (steps,)."""
        if callable(self.lr):
            rates = [self.lr(step) for step in range(first_step, first_step + steps)]
            return np.array([checks.real(f"lr({first_step + i})", rate) for i, rate in enumerate(rates)])
        return np.full(steps, self.lr)

    def coefficients(self, first_step, steps):
        """The scalars the kernel reads, float64 (steps, table.COEFFICIENTS)."""
        raise NotImplementedError

    def next_coefficients(self):
        """The scalars of the next update, float64 (1, table.COEFFICIENTS)."""
        i = self.step_count - self._ahead_first
        if not 0 <= i < len(self._ahead) or callable(self.lr):
            i, self._ahead_first = 0, self.step_count
            self._ahead = self.coefficients(self.step_count, 1 if callable(self.lr) else AHEAD)
        return self._ahead[i : i + 1]

    def step(self):
        """Update the parameters by the stored gradients."""
        if self.network is None:
            raise RuntimeError(
                f"the optimizer has no parameters: make it with {type(self).__name__}(model.parameters(), …)"
            )
        network, coefficients = self.network, self.next_coefficients()[0]
        network.backend.optimizer_step(self.code, coefficients, network.values, network.gradients, self.state)
        self.step_count += 1

    def zero_grad(self):
        """Set the stored gradients to zero."""
        if self.network is not None:
            self.network.zero_gradients()

    # ----------------------------------------------------------------------------------- files
    def state_dict(self):
        """``step_count`` and packed copies of the state by name."""
        packed = (self.network.pack(self.network.views_of(buffer)) for buffer in self.state)
        return {"step_count": self.step_count} | dict(zip(self.state_names, packed, strict=False))

    def load_state_dict(self, state):
        """Continue from what `state_dict` returned, after the optimizer was given its model's parameters."""
        if self.network is None:
            raise RuntimeError("an optimizer takes a state after it was given the parameters of its model")
        expected = {"step_count", *self.state_names}
        if set(state) != expected:
            raise ValueError(f"state must have the keys {sorted(expected)}, got {sorted(state)}")
        step_count = checks.integer("step_count", state["step_count"], minimum=0)
        arrays = [self.network.checked_flat(name, state[name]) for name in self.state_names]
        for buffer, array in zip(self.state, arrays, strict=True):
            self.network.unpack(array, self.network.views_of(buffer))
        self.step_count = step_count

    def config(self):
        """Arguments that make this optimizer again."""
        return {"lr": self.lr}

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"


class SGD(Optimizer):
    """``W ← W - lr g``: stochastic, mini-batch or full-batch gradient descent, as the batches are.

    Parameters
    ----------
    parameters : iterable of Parameter, optional
    lr : float or callable
    """

    name = "sgd"

    def __init__(self, parameters=None, *, lr=0.01):
        super().__init__(parameters, lr=lr)

    def coefficients(self, first_step, steps):
        result = np.zeros((steps, table.COEFFICIENTS))
        result[:, 0] = self.learning_rates(first_step, steps)
        return result


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
    """

    name = "adam"
    state_names = ("exp_avg", "exp_avg_sq")
    betas = _Hyperparameter(_betas)
    eps = _Hyperparameter(checks.real)

    def __init__(self, parameters=None, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        self.betas, self.eps = betas, eps
        super().__init__(parameters, lr=lr)

    def coefficients(self, first_step, steps):
        beta1, beta2 = self.betas
        t = np.arange(first_step + 1, first_step + steps + 1, dtype=np.float64)
        correction1, root2 = 1 - beta1**t, np.sqrt(1 - beta2**t)
        result = np.zeros((steps, table.COEFFICIENTS))
        result[:, 0] = self.learning_rates(first_step, steps) * root2 / correction1
        result[:, 1:5] = beta1, 1 - beta1, beta2, 1 - beta2
        result[:, 5] = self.eps * root2
        return result

    def config(self):
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps}


OPTIMIZERS = {cls.__name__: cls for cls in (SGD, Adam)}
