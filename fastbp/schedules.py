"""Schedules of the learning rate: functions ``step -> lr`` of the number of updates done, 0 before the first.

An optimizer takes one as its ``lr``. They can be pickled, compared and kept in model files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from . import checks

LearningRate: TypeAlias = float | Callable[[int], float]


class Schedule:
    """Base class of the schedules, which are compared, shown and kept by their arguments."""

    def __init__(self, **arguments: Any) -> None:
        self.__dict__.update(arguments)

    def __call__(self, step: int) -> float:
        """Learning rate of the update after ``step`` updates."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that recreate this schedule."""
        return dict(self.__dict__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((type(self), *self.config().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.config().items())})"


class CosineSchedule(Schedule):
    """``final_lr + (lr - final_lr) (1 + cos(π t)) / 2`` with ``t = min(step / steps, 1)``.

    Loshchilov & Hutter, 2017, one cycle.

    Parameters
    ----------
    lr : float
        At the first update.
    steps : int
        Updates until ``final_lr``, which holds from then on.
    final_lr : float
    """

    lr: float
    steps: int
    final_lr: float

    def __init__(self, lr: float, steps: int, final_lr: float = 0.0) -> None:
        super().__init__(
            lr=checks.real("lr", lr),
            steps=checks.integer("steps", steps, minimum=1),
            final_lr=checks.real("final_lr", final_lr),
        )

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.final_lr, min(step / self.steps, 1.0))


class OneCycleSchedule(Schedule):
    """From ``max_lr / start_factor`` up to ``max_lr`` and down to ``max_lr / (start_factor final_factor)``.

    Half a cosine each way: with ``up = rise steps - 1``, the rate is ``cosine(start, max, step / up)`` until ``up``,
    then ``cosine(max, end, (step - up) / (steps - 1 - up))``, where
    ``cosine(a, b, t) = b + (a - b) (1 + cos(π t)) / 2`` (Smith & Topin, 2019; the numbers are those of PyTorch's
    ``OneCycleLR``).

    Parameters
    ----------
    max_lr : float
    steps : int
        Updates of the whole cycle; the last rate holds after it.
    rise : float
        Share of the steps before the peak, in (0, 1).
    start_factor, final_factor : float
        Above 0.
    """

    max_lr: float
    steps: int
    rise: float
    start_factor: float
    final_factor: float

    def __init__(
        self, max_lr: float, steps: int, rise: float = 0.3, start_factor: float = 25.0, final_factor: float = 1e4
    ) -> None:
        super().__init__(
            max_lr=checks.real("max_lr", max_lr),
            steps=checks.integer("steps", steps, minimum=1),
            rise=checks.real("rise", checks.positive("rise", rise), below=1.0),
            start_factor=checks.positive("start_factor", start_factor),
            final_factor=checks.positive("final_factor", final_factor),
        )

    def __call__(self, step: int) -> float:
        start = self.max_lr / self.start_factor
        end, peak, last = start / self.final_factor, self.rise * self.steps - 1, self.steps - 1
        if step < peak:
            return _cosine(start, self.max_lr, step / peak)
        return _cosine(self.max_lr, end, min((step - peak) / (last - peak), 1.0))


class StepSchedule(Schedule):
    """``lr factor^⌊step / every⌋``.

    Parameters
    ----------
    lr : float
    every : int
        Updates between changes.
    factor : float
    """

    lr: float
    every: int
    factor: float

    def __init__(self, lr: float, every: int, factor: float = 0.1) -> None:
        super().__init__(
            lr=checks.real("lr", lr),
            every=checks.integer("every", every, minimum=1),
            factor=checks.real("factor", factor),
        )

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


class CosLogSchedule(Schedule):
    """``lr (1 - cos(2π log₂(1 + (2^cycles - 1) t))) / 2`` with ``t = min(step / steps, 1)``.

    Cycles from 0 up to ``lr`` and back to 0, each about twice as long as the one before (Holzmüller et al., "Better by
    default: strong pre-tuned MLPs and boosted trees on tabular data", 2024).

    Parameters
    ----------
    lr : float
        In the middle of a cycle.
    steps : int
        Updates of all cycles; after them the rate is 0.
    cycles : int
    """

    lr: float
    steps: int
    cycles: int

    def __init__(self, lr: float, steps: int, cycles: int = 4) -> None:
        super().__init__(
            lr=checks.real("lr", lr),
            steps=checks.integer("steps", steps, minimum=1),
            cycles=checks.integer("cycles", cycles, minimum=1),
        )

    def __call__(self, step: int) -> float:
        t = min(step / self.steps, 1.0)
        return self.lr * (1 - math.cos(2 * math.pi * math.log2(1 + (2**self.cycles - 1) * t))) / 2


class WarmupSchedule(Schedule):
    """``(step + 1) / steps`` of the first rate for the first ``steps`` updates, then ``lr`` from its beginning.

    Parameters
    ----------
    lr : float or schedule
        What follows the rise: a rate, or a function that is called with ``step - steps``.
    steps : int
        Updates of the linear rise.
    """

    lr: LearningRate
    steps: int

    def __init__(self, lr: LearningRate, steps: int) -> None:
        super().__init__(lr=rate("lr", lr), steps=checks.integer("steps", steps, minimum=1))

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self._after(0) * (step + 1) / self.steps
        return self._after(step - self.steps)

    def _after(self, step):
        return self.lr(step) if callable(self.lr) else self.lr


def _cosine(first, last, t):
    return last + (first - last) * (1 + math.cos(math.pi * t)) / 2


def rate(argument: str, value: Any) -> LearningRate:
    """``value``, a learning rate or a function that returns one."""
    return value if callable(value) else checks.real(argument, value)


SCHEDULES = {cls.__name__: cls for cls in Schedule.__subclasses__()}


# ----------------------------------------------------------------------------------------- files
def to_json(value: Any) -> Any:
    """A rate or a schedule as JSON; None for a function that JSON cannot hold."""
    if not callable(value):
        return value
    if type(value) not in SCHEDULES.values():
        return None
    arguments = {key: to_json(argument) for key, argument in value.config().items()}
    return None if None in arguments.values() else [type(value).__name__, arguments]


def from_json(value: Any) -> Any:
    """The rate or schedule that `to_json` gave."""
    if not isinstance(value, list):
        return value
    name, arguments = value
    return SCHEDULES[name](**{key: from_json(argument) for key, argument in arguments.items()})
