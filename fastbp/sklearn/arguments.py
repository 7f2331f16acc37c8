"""The arguments of the estimators: what they are kept as, and which values they may have."""

from __future__ import annotations

import math
import operator
from functools import partial

from .. import checks, layers, losses

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
    "mish": layers.Mish,
}
NORMALIZATIONS = {"batch": layers.BatchNorm1d, "layer": layers.LayerNorm}
LOSSES = {
    "squared_error": losses.HalfSquaredErrorLoss,
    "poisson": losses.PoissonLoss,
    "absolute_error": losses.L1Loss,
    "huber": losses.HuberLoss,
    "quantile": losses.QuantileLoss,
}


def _none_or(check):
    """The check of an argument that may be None as well."""

    def checked(argument, value):
        if value is not None:
            check(argument, value)

    return checked


def _policy(argument, value):
    if not callable(value):
        checks.choice(argument, value, ("constant", "invscaling", "adaptive"))


def _regression_loss(argument, value):
    if not isinstance(value, tuple(LOSSES.values())):
        checks.choice(argument, value, LOSSES)


def _auto_or_integer(argument, value):
    if value != "auto":
        checks.integer(argument, value, minimum=1)


def _integer_or_infinite(argument, value):
    if value != math.inf:
        checks.integer(argument, value, minimum=1)


_count = partial(checks.integer, minimum=1)
_below_1 = partial(checks.real, below=1.0)
CHECKS = {
    "activation": partial(checks.choice, allowed=ACTIVATIONS),
    "solver": partial(checks.choice, allowed=("lbfgs", "sgd", "adam")),
    "alpha": checks.real,
    "batch_size": _auto_or_integer,
    "learning_rate": _policy,
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
    "normalization": _none_or(partial(checks.choice, allowed=NORMALIZATIONS)),
    "residual": checks.boolean,
    "max_grad_norm": _none_or(checks.positive),
    "dtype": _none_or(checks.dtype),
}
REGRESSOR_CHECKS = CHECKS | {
    "loss": _regression_loss,
    "output_activation": _none_or(partial(checks.choice, allowed=ACTIVATIONS)),
}


def check(estimator, rules):
    """Refuse arguments that are not as the rules say; those that were looked at before are known by identity."""
    state = vars(estimator)
    values = list(map(state.__getitem__, rules))
    known = state.get("_checked_arguments", ())
    if len(known) == len(values) and all(map(operator.is_, values, known)):
        return
    for (name, rule), value in zip(rules.items(), values, strict=True):
        rule(name, value)
    estimator._checked_arguments = values


def store(estimator, arguments):
    """Keep the arguments of ``__init__`` unchanged, as scikit-learn requires."""
    vars(estimator).update({name: value for name, value in arguments.items() if name != "self"})


def trains_by_batches(estimator):
    """Whether there is `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError('partial_fit needs solver="sgd" or "adam"; "lbfgs" trains on all rows at once')
    return True
