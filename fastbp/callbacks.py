"""Callbacks watch and stop `Sequential.fit`; they are objects with some of the methods in ``METHODS``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import checks

if TYPE_CHECKING:
    from .model import Sequential
    from .training import History

METHODS = {
    "on_fit_begin": "on_fit_begin(model, run)",
    "on_batch_end": "on_batch_end(model, record)",
    "on_epoch_end": "on_epoch_end(model, record)",
    "on_fit_end": "on_fit_end(model, history)",
}

MONITORED = "loss", "val_loss", "accuracy", "val_accuracy"


class EarlyStopping:
    """Stop when the loss, or an accuracy, has not improved for some epochs, and restore the best weights.

    It watches ``val_loss``; without validation data it watches the training loss and says so.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training stops.
    min_delta : float
        Smallest change that counts as an improvement.
    restore_best : bool
        Restore the weights of the best epoch when training ends, early or not. The optimizer keeps its state.
    monitor : "loss", "val_loss", "accuracy", "val_accuracy", or None
        The key of the records to watch: a loss shall fall, an accuracy rise.

    Attributes
    ----------
    best : float
    best_epoch : int or None
    """

    best: float
    best_epoch: int | None

    def __init__(
        self, patience: int = 5, min_delta: float = 0.0, restore_best: bool = True, monitor: str | None = None
    ) -> None:
        self.patience = checks.integer("patience", patience, minimum=1)
        self.min_delta = checks.real("min_delta", min_delta)
        self.restore_best = checks.boolean("restore_best", restore_best)
        self.monitor = None if monitor is None else checks.choice("monitor", monitor, MONITORED)

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        self._watched = self.monitor or ("val_loss" if run["validation_rows"] else "loss")
        if self._watched.startswith("val_") and not run["validation_rows"]:
            raise ValueError(
                f"monitor={self.monitor!r} needs validation data, and there are none; pass validation_data=(X, y)"
            )
        self._sign = -1 if self._watched.endswith("accuracy") else 1
        self.best, self.best_epoch, self._weights = self._sign * math.inf, None, None
        if run["verbose"] and self.monitor is None and not run["validation_rows"]:
            print("early stopping watches the training loss: there is no validation data")

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> bool:
        value = record[self._watched]
        if value is None:
            raise ValueError(
                f"monitor={self.monitor!r} needs targets that are labels, and these have no accuracy; "
                f'use monitor="loss" or "val_loss"'
            )
        if self._sign * value < self._sign * self.best - self.min_delta:
            self.best, self.best_epoch = value, record["epoch"]
            if self.restore_best:
                self._weights = model.network.copied_values(self._weights)
        return record["epoch"] - (self.best_epoch or 0) >= self.patience

    def on_fit_end(self, model: Sequential, history: History) -> None:
        if self._weights is not None:
            model.network.restore_values(self._weights)
            self._weights = None


class Printer:
    """Prints one plain line an epoch."""

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        self._epochs = run["epochs"]

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        print(line(record, self._epochs), flush=True)


def line(record: dict[str, Any], epochs: int) -> str:
    """A record of an epoch in one line."""
    parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
    parts += [f"{key} {record[key]:.4f}" for key in MONITORED if record[key] is not None]
    return "  ".join([*parts, f"lr {record['lr']:.3g}", f"{record['seconds']:.2f} s"])


def checked(callbacks: Any) -> list[Any]:
    """The callbacks as a list; an object with none of the methods is refused."""
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list, got {callbacks!r}; pass callbacks=[…]")
    for callback in callbacks:
        if not any(hasattr(callback, name) for name in METHODS):
            *most, last = METHODS.values()
            raise TypeError(f"a callback must have {', '.join(most)} or {last}; got {callback!r}")
    return list(callbacks)


def call(callbacks: Iterable[Any], name: str, *arguments: Any) -> bool:
    """Call this method of every callback that has it; return whether any of them returned true.

    An error gets a note that names the callback.
    """
    answers = []
    for callback in callbacks:
        if hasattr(callback, name):
            try:
                answers.append(getattr(callback, name)(*arguments))
            except Exception as error:
                error.add_note(f"in {name} of the callback {type(callback).__name__}")
                raise
    return any(answers)  # after every callback was called
