"""Initial values of weights: functions ``(rng, fan_in, fan_out) -> array (fan_in, fan_out)``.

PyTorch's default for a linear layer is uniform in ±1/√fan_in, for the weight and for the bias; the others are by LeCun
et al. 1998, Glorot & Bengio 2010 ("xavier") and He et al. 2015 ("kaiming"). A bias is drawn by the default rule when
the weight is, else it is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from . import checks
from .checks import Array

# The generator by its name: reading it would import numpy.random.
Initializer: TypeAlias = Callable[["np.random.Generator", int, int], ArrayLike]


def _uniform(variance):
    def initialize(rng, fan_in, fan_out):
        bound = np.sqrt(3 * variance(fan_in, fan_out))
        return rng.uniform(-bound, bound, (fan_in, fan_out))

    return initialize


def _normal(variance):
    def initialize(rng, fan_in, fan_out):
        return rng.normal(0, np.sqrt(variance(fan_in, fan_out)), (fan_in, fan_out))

    return initialize


def _lecun(fan_in, fan_out):
    return 1 / fan_in


def _xavier(fan_in, fan_out):
    return 2 / (fan_in + fan_out)


def _kaiming(fan_in, fan_out):
    return 2 / fan_in


def default(rng: np.random.Generator, fan_in: int, fan_out: int) -> Array:
    """Uniform in ±1/√fan_in."""
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, (fan_in, fan_out))


def zeros(rng: np.random.Generator, fan_in: int, fan_out: int) -> Array:
    """Zeros."""
    return np.zeros((fan_in, fan_out))


INITIALIZERS: dict[str, Initializer] = {
    "default": default,
    "zeros": zeros,
    "lecun_uniform": _uniform(_lecun),
    "lecun_normal": _normal(_lecun),
    "xavier_uniform": _uniform(_xavier),
    "xavier_normal": _normal(_xavier),
    "kaiming_uniform": _uniform(_kaiming),
    "kaiming_normal": _normal(_kaiming),
}


def checked(init: str | Initializer) -> str | Initializer:
    """``init``, a name or a callable."""
    return init if callable(init) else checks.choice("init", init, INITIALIZERS)


def linear(init: str | Initializer, rng: np.random.Generator, fan_in: int, fan_out: int) -> tuple[ArrayLike, Array]:
    """The first weight and bias of a linear layer."""
    weight = INITIALIZERS.get(init, init)(rng, fan_in, fan_out)
    bound = 1 / np.sqrt(fan_in)
    bias = rng.uniform(-bound, bound, fan_out) if init == "default" else np.zeros(fan_out)
    return weight, bias
