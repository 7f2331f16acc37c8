"""Parts of the library by name and arguments: ``sgd:momentum=0.9,nesterov=true``.

A part is a class, its arguments are those of its signature, and their values are JSON.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from .. import callbacks, layers, losses, optimizers, schedules

NOT_TO_CHOOSE = {"parameters", "device", "lr", "max_lr", "features", "class_weight", "dtype"}
ACTIVATIONS = {
    "identity": layers.Identity, "relu": layers.ReLU, "leaky-relu": layers.LeakyReLU, "elu": layers.ELU,
    "selu": layers.SELU, "gelu": layers.GELU, "silu": layers.SiLU, "mish": layers.Mish, "softplus": layers.Softplus,
    "tanh": layers.Tanh, "sigmoid": layers.Sigmoid,
}  # fmt: skip
NORMS: dict[str, Any] = {"none": None, "layer": layers.LayerNorm, "batch": layers.BatchNorm1d}
OPTIMIZERS = {
    "adam": optimizers.Adam, "adamw": optimizers.AdamW, "sgd": optimizers.SGD, "momentum": optimizers.Momentum,
    "rmsprop": optimizers.RMSProp, "lion": optimizers.Lion,
}  # fmt: skip
SCHEDULES = {
    "constant": None, "cosine": schedules.CosineSchedule, "one-cycle": schedules.OneCycleSchedule,
    "step": schedules.StepSchedule, "coslog": schedules.CosLogSchedule,
    "plateau": callbacks.ReduceLROnPlateau,
}  # fmt: skip
LOSSES = {
    "classification": {"cross-entropy": losses.CrossEntropyLoss},
    "regression": {
        "mse": losses.MSELoss, "l1": losses.L1Loss, "huber": losses.HuberLoss, "half": losses.HalfSquaredErrorLoss,
        "quantile": losses.QuantileLoss, "poisson": losses.PoissonLoss,
    },
}  # fmt: skip
LOG_LINK = {"poisson"}  # losses of which the network's output is the logarithm of a mean
ALL_LOSSES = {name: made for of_task in LOSSES.values() for name, made in of_task.items()}

# What options are where they are not given: "any" before the target is known, then by its kind. "realmlp" is the simple
# form of RealMLP (Holzmüller et al., 2024). Theirs scales weights by 1/√in in the network, ours at the start, so that
# its rate is divided by √256 here.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {
        "any": {
            "hidden": "256", "init": "default", "optimizer": "adam", "schedule": "constant", "epochs": 200,
            "batch_size": 32, "patience": 20, "scaling": "standard", "activation": "relu", "lr": 1e-3,
        },
        "classification": {"loss": "cross-entropy"},
        "regression": {"loss": "mse"},
    },
    "realmlp": {
        "any": {
            "hidden": "256,256,256", "init": "lecun_normal", "optimizer": "adam:betas=[0.9,0.95]", "schedule": "coslog",
            "epochs": 256, "batch_size": 256, "patience": 256, "scaling": "robust",
        },
        "classification": {"activation": "selu", "lr": 2.5e-3, "loss": "cross-entropy:label_smoothing=0.1"},
        "regression": {"activation": "mish", "lr": 4.4e-3, "loss": "mse"},
    },
}  # fmt: skip


def fill(options: argparse.Namespace, kind: str) -> None:
    """Set the options that were not given to what the preset has for this kind of target, or for any."""
    for name, value in PRESETS[options.preset][kind].items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def arguments_of(made: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a part that an option can give."""
    if made is None:
        return {}
    parameters = inspect.signature(made).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in NOT_TO_CHOOSE}


def parsed(text: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``.

    Raises
    ------
    ValueError
        The name or a key is not known; the message lists those that are.
    """
    name, _, rest = text.partition(":")
    name = name.replace("_", "-")
    if name not in known:
        raise ValueError(f"{text}: expected one of {', '.join(known)}")
    allowed, given = arguments_of(known[name]), {}
    for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = pair.partition("=")
        if key not in allowed or not equals:
            raise ValueError(f"{text}: {name} takes {', '.join(f'{key}=…' for key in allowed) or 'nothing'}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    return name, given


def component(known: dict[str, Any]) -> Callable[[str], str]:
    """The type of an option that names a part; its errors come before anything is done."""

    def check(text):
        try:
            name, given = parsed(text, known)
            if known not in (NORMS, SCHEDULES):
                known[name](**given)
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def made(text: str, known: dict[str, Any], *first: Any, **more: Any) -> Any:
    """The part that an option names, or None for one that is nothing; ``more`` gives way to what the option says."""
    name, given = parsed(text, known)
    return None if known[name] is None else known[name](*first, **(more | given))


def help_of(known: dict[str, Any], does: str, default: str) -> str:
    """The names with their arguments, for the help of an option."""
    names = [name + f" ({', '.join(arguments_of(one))})" * bool(arguments_of(one)) for name, one in known.items()]
    return f"{does}: {', '.join(names)} ({default})"


def learning_rate(options: Any, steps: int) -> Any:
    """The rate, or the schedule over all ``steps`` updates."""
    name, given = parsed(options.schedule, SCHEDULES)
    rate = options.lr
    if name == "step":
        rate = schedules.StepSchedule(rate, **({"every": max(1, steps // 3)} | given))
    elif name not in ("constant", "plateau"):
        rate = SCHEDULES[name](rate, **({"steps": max(2, steps - options.warmup)} | given))
    return schedules.WarmupSchedule(rate, options.warmup) if options.warmup else rate


def watchers(options: Any) -> list[Any]:
    """What changes the rate while it trains, where the schedule is no function of the updates."""
    name, given = parsed(options.schedule, SCHEDULES)
    return [callbacks.ReduceLROnPlateau(**given)] if name == "plateau" else []


def network(options: Any, inputs: int, outputs: int, widths: list[int]) -> list[layers.Layer]:
    """The layers: for each hidden width a Linear, a norm, an activation and dropout; then a Linear."""
    parts: list[layers.Layer] = []
    linear = {"init": options.init, "bias": not options.no_bias}
    for width in widths:
        block: list[Any] = [
            layers.Linear(inputs, width, **linear),
            made(options.norm or "none", NORMS, width),
            made(options.activation, ACTIVATIONS),
            layers.Dropout(options.dropout) if options.dropout else None,
        ]
        block = [layer for layer in block if layer is not None]
        parts += [layers.Residual(*block)] if options.residual and inputs == width else block
        inputs = width
    last = linear | ({"init": "zeros"} if options.preset == "realmlp" else {})
    return [*parts, layers.Linear(inputs, outputs, **last)]
