"""The history of a training run, and a test of learning rates, as pictures drawn by Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import checks
from .checks import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"loss": ("loss", "val_loss"), "accuracy": ("accuracy", "val_accuracy")}
STYLES = {"training": {"color": "#4c78a8", "marker": "."}, "validation": {"color": "#e4572e", "marker": "."}}
MARKED_EPOCHS = 40  # with more epochs, dots make the line no clearer


def plot_history(history: Sequence[dict[str, Any]]) -> Figure:
    """Draw loss and accuracy by epoch, of training and of validation where there are any.

    The best epoch is marked: the first of the lowest ``val_loss``, or of the lowest ``loss`` without validation data.

    Parameters
    ----------
    history : History or list of dicts
        What `Sequential.fit` returns.

    Returns
    -------
    matplotlib.figure.Figure
        A figure of ``matplotlib.pyplot``, which can show it; ``figure.savefig(path)`` writes it to a file.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    TypeError, ValueError
        ``history`` is no list of records of epochs, or has none.
    """
    columns = _columns(history)
    pyplot = _pyplot("plot_history")
    panels = {title: keys for title, keys in PANELS.items() if any(key in columns for key in keys)}
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    best = _best(columns)
    for axis, (title, keys) in zip(axes[0], panels.items(), strict=True):
        for (part, style), key in zip(STYLES.items(), keys, strict=True):
            if key in columns:
                style = style | ({} if len(history) <= MARKED_EPOCHS else {"marker": ""})
                axis.plot(columns["epoch"], columns[key], label=part, **style)
        if best is not None:
            axis.axvline(best, color="0.5", linestyle="--", linewidth=1, zorder=0, label=f"best epoch, {best}")
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        _finish(axis)
    return figure


def plot_rates(lr: Array, loss: Array, average: Array, suggestion: float) -> Figure:
    """Draw what `fastbp.find_lr` found: losses and their average by learning rate, and the suggestion."""
    figure, axis = _pyplot("plotting").subplots(figsize=(4.8, 3.6), layout="constrained")
    axis.plot(lr, loss, ".", color=STYLES["training"]["color"], alpha=0.4, label="loss of a step")
    axis.plot(lr, average, color=STYLES["validation"]["color"], label="average")
    if math.isfinite(suggestion):
        axis.axvline(
            suggestion, color="0.5", linestyle="--", linewidth=1, zorder=0, label=f"suggestion, {suggestion:.2g}"
        )
    axis.set(xlabel="learning rate", title="loss", xscale="log")
    _finish(axis)
    return figure


def _finish(axis):
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def _columns(history):
    """The values of ``epoch`` and of every key of ``PANELS`` that has some, with NaN where an epoch has none."""
    if not isinstance(history, list | tuple) or not all(isinstance(record, dict) for record in history):
        raise TypeError(f"history must be what fit() returns, a list of dicts; got {type(history).__name__}")
    if not history:
        raise ValueError("history must have at least one epoch, got none: call fit() first")
    columns = {"epoch": [checks.integer("epoch", record.get("epoch"), minimum=1) for record in history]}
    for key in (key for keys in PANELS.values() for key in keys):
        values = [record.get(key) for record in history]
        if any(value is not None for value in values):
            columns[key] = [math.nan if value is None else value for value in values]
    if "loss" not in columns:
        raise ValueError(f"history must have the loss of its epochs, got records of {sorted(history[0])}")
    return columns


def _best(columns):
    """The epoch of the lowest loss, or None where no loss is finite."""
    losses = columns.get("val_loss", columns["loss"])
    finite = [(loss, epoch) for loss, epoch in zip(losses, columns["epoch"], strict=True) if math.isfinite(loss)]
    return min(finite)[1] if finite else None


def _pyplot(what):
    try:
        import matplotlib.pyplot
    except ImportError:
        raise ImportError(f'{what} needs the package matplotlib: pip install "fastbp[plot]"') from None
    return matplotlib.pyplot
