"""The learning-rate range test: train while the rate rises, and see where the loss stops falling (Smith, 2017)."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import checks, plot
from .checks import Array
from .data import batches
from .losses import LossFunction
from .optimizers import Adam, Optimizer
from .steps import check_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .model import Sequential

SMOOTHING = 0.9  # of the average of the losses: of about ten steps
CAUTION = 0.1  # of the rate with the lowest average, which is near where training fails
DIVERGED = 4  # times the lowest average, above which the test ends


class RangeTest(NamedTuple):
    """What `find_lr` found.

    Attributes
    ----------
    lr : array (steps,)
        The rates that were tried.
    loss : array (steps,)
        The loss before each update.
    average : array (steps,)
        The average of the losses so far, the last ones weighing most.
    suggestion : float
        A tenth of the rate at which the average is lowest, where the loss still falls; NaN where it never fell.
    """

    lr: Array
    loss: Array
    average: Array
    suggestion: float

    def plot(self) -> Figure:
        """Draw loss by rate, with the suggestion; needs Matplotlib."""
        return plot.plot_rates(self.lr, self.loss, self.average, self.suggestion)


def find_lr(
    model: Sequential,
    X: ArrayLike,
    y: ArrayLike,
    *,
    loss: LossFunction,
    optimizer: Optimizer | None = None,
    batch_size: int = 32,
    steps: int = 100,
    lowest: float = 1e-6,
    highest: float = 10.0,
    seed: int | None = 0,
) -> RangeTest:
    """Find a learning rate: train a copy of the model while the rate rises step by step, each time by one factor.

    The test ends early where the loss has grown far above its lowest. The model and the optimizer stay as they are.

    Parameters
    ----------
    X : array (n, in)
    y : array (n, out), or integer labels (n,)
    loss : loss
        As in `Sequential.fit`.
    optimizer : Optimizer, optional
        What to find a rate for: its kind and settings are used, its state is not; by default `Adam`.
    batch_size : int
    steps : int
        Rates to try, at least 10; after the last batch of the data the first comes again, in a new order.
    lowest, highest : float
        The first rate and the last.
    seed : int, optional
        Of the order of the rows.

    Returns
    -------
    RangeTest
        ``lr``, ``loss``, ``average``, ``suggestion``, and ``plot()``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be.
    """
    optimizer = Adam() if optimizer is None else optimizer
    check_pair(loss, optimizer)
    steps = checks.integer("steps", steps, minimum=10)
    lowest, highest = checks.positive("lowest", lowest), checks.positive("highest", highest)
    if lowest >= highest:
        raise ValueError(f"lowest must be below highest, got {lowest:g} and {highest:g}")
    rates, losses, averages = np.geomspace(lowest, highest, steps), [], []
    model, optimizer = copy.deepcopy(model), type(optimizer)(**(optimizer.config() | {"lr": lowest}))
    generator, average = checks.generator("seed", seed), 0.0
    while len(losses) < steps:
        for xb, yb in batches(X, y, batch_size, seed=int(generator.integers(2**32))):
            optimizer.lr = rates[len(losses)]
            value = model.train_step(xb, yb, loss, optimizer)
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            losses.append(value)
            averages.append(average / (1 - SMOOTHING ** len(losses)))
            if len(losses) == steps or not averages[-1] <= DIVERGED * min(averages):
                steps = len(losses)
                break
    best = int(np.nanargmin(averages)) if averages[0] < math.inf else 0
    suggestion = CAUTION * float(rates[best]) if best else math.nan
    return RangeTest(rates[:steps], np.array(losses), np.array(averages), suggestion)
