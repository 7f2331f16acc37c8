"""The last training of a model, kept without its data: the same call again begins where its checks would end.

What a short call of `fit` costs beside its steps is checks of arguments and objects that are made of them. Where all
arguments but the data are the very objects of the call before, and the data have the form of its data, what was made
then is used again, and only the numbers are looked at. Whatever is otherwise takes the long way, errors among it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, data
from .checks import Array
from .steps import CompiledSteps

if TYPE_CHECKING:
    from .model import Sequential
    from .training import History, Training


class Kept:
    """A training at rest, which holds neither the model nor data.

    Parameters
    ----------
    training : Training
        One that has run, and that `can_be_kept`.
    call : tuple
        The arguments of `fit` but X and y.
    """

    def __init__(self, training: Training, call: tuple[Any, ...]) -> None:
        self.training, self.call = training, call
        self.chunk, self.steps = training.source, training.steps_of(training.source)
        self.forms = _form(self.chunk.X), _form(self.chunk.y)
        self._give(None, None, None)

    def serves(self, model: Sequential, call: tuple[Any, ...], X: Any, y: Any) -> bool:
        """Whether a call of `fit` has these arguments and data of this form, which are fit to use."""
        if not (all(map(operator.is_, call, self.call)) and type(X) is type(y) is np.ndarray):
            return False
        if (_form(X), _form(y)) != self.forms or not (checks.readable(X) and checks.readable(y)):
            return False
        loss, steps = self.training.loss, self.steps
        if loss.parameter != steps.workspace.loss_parameter or loss.weighs_by_target or not data.are_finite(model, X):
            return False
        if self.chunk.labels:
            return checks.are_labels(y, steps.outputs)
        return checks.are_finite(y, steps.dtype) and (
            loss.target_range is None or checks.are_within(y, *loss.target_range)
        )

    def run(self, model: Sequential, X: Array, y: Array) -> History:
        """Train on these data."""
        self._give(model, X, y)
        try:
            return self.training.run()
        finally:
            self._give(None, None, None)

    def _give(self, model, X, y):
        chunk, steps = self.chunk, self.steps
        self.training.model = steps.model = model
        chunk.X = steps.X = X
        chunk.y = steps.y = y


def _form(array):
    return array.shape, array.dtype


def can_be_kept(training: Training, call: tuple[Any, ...], X: Any, y: Any) -> bool:
    """Whether all of a training but its data and their checks is the same in the next call of the same arguments.

    A list of callbacks may have some then.
    """
    chunk, changes = training.source, any(isinstance(argument, list) for argument in call)
    if changes or not (training.plain and chunk.X is X and chunk.y is y and type(X) is type(y) is np.ndarray):
        return False
    steps = training.steps_of(chunk)
    direct = type(steps) is CompiledSteps and steps.direct and not steps.on_device
    return direct and chunk.weight is None and not training.loss.weighs_by_target
