"""The arguments of the estimators: what they are kept as, and which values they may have."""

from __future__ import annotations

import math
from functools import partial

from .. import checks, layers

ACTIVATIONS = {
    "identity": layers.Identity,
    "logistic": layers.Sigmoid,
    "tanh": layers.Tanh,
    "relu": layers.ReLU,
    "leaky_relu": layers.LeakyReLU,
    "elu": layers.ELU,
    "selu": layers.SELU,
    "gelu": layers.GELU,
    "silu": layers.SiLU,
    "softplus": layers.Softplus,
}


def _auto_or_integer(argument, value):
    if value != "auto":
        checks.integer(argument, value, minimum=1)


def _integer_or_infinite(argument, value):
    if value != math.inf:
        checks.integer(argument, value, minimum=1)


def _dtype_or_none(argument, value):
    if value is not None:
        checks.dtype(argument, value)


_count = partial(checks.integer, minimum=1)
_below_1 = partial(checks.real, below=1.0)
CHECKS = {
    "activation": partial(checks.choice, allowed=ACTIVATIONS),
    "solver": partial(checks.choice, allowed=("lbfgs", "sgd", "adam")),
    "alpha": checks.real,
    "batch_size": _auto_or_integer,
    "learning_rate": partial(checks.choice, allowed=("constant", "invscaling", "adaptive")),
    "learning_rate_init": checks.positive,
    "power_t": checks.real,
    "max_iter": _count,
    "shuffle": checks.boolean,
    "tol": checks.real,
    "warm_start": checks.boolean,
    "momentum": checks.share,
    "nesterovs_momentum": checks.boolean,
    "early_stopping": checks.boolean,
    "validation_fraction": _below_1,
    "beta_1": _below_1,
    "beta_2": _below_1,
    "epsilon": checks.positive,
    "n_iter_no_change": _integer_or_infinite,
    "max_fun": _count,
    "dropout": _below_1,
    "dtype": _dtype_or_none,
}


def store(estimator, arguments):
    """Keep the arguments of ``__init__`` unchanged, as scikit-learn requires."""
    vars(estimator).update({name: value for name, value in arguments.items() if name != "self"})


def trains_by_batches(estimator):
    """Whether there is `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError('partial_fit needs solver="sgd" or "adam"; "lbfgs" trains on all rows at once')
    return True
