"""Callbacks watch and stop `Sequential.fit`; they are objects with some of the methods in ``METHODS``."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import checks, files
from .checks import Array

if TYPE_CHECKING:
    from .model import Sequential
    from .training import History

METHODS = {
    "on_fit_begin": "on_fit_begin(model, run)",
    "on_batch_end": "on_batch_end(model, record)",
    "on_epoch_end": "on_epoch_end(model, record)",
    "on_fit_end": "on_fit_end(model, history)",
}

MOST_LINES = 20  # epochs that are shown a line each where a bar can be shown
MONITORED = "loss", "val_loss", "accuracy", "val_accuracy"


class _Watching:
    """What the callbacks that watch a number have in common.

    It is ``val_loss`` by default, and without validation data the training loss.
    """

    best: float
    best_epoch: int | None

    def __init__(self, monitor: str | None, min_delta: float) -> None:
        self.monitor = None if monitor is None else checks.choice("monitor", monitor, MONITORED)
        self.min_delta = checks.real("min_delta", min_delta)

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        self._watched = self.monitor or ("val_loss" if run["validation_rows"] else "loss")
        if self._watched.startswith("val_") and not run["validation_rows"]:
            raise ValueError(
                f"monitor={self.monitor!r} needs validation data, and there are none; pass validation_data=(X, y)"
            )
        self._sign = -1 if self._watched.endswith("accuracy") else 1
        self.best, self.best_epoch = self._sign * math.inf, None

    def improved(self, record: dict[str, Any]) -> bool:
        """Whether this epoch is the best so far, by more than ``min_delta``; then it is remembered."""
        value = record[self._watched]
        if value is None:
            raise ValueError(
                f"monitor={self.monitor!r} needs targets that are labels, and these have no accuracy; "
                f'use monitor="loss" or "val_loss"'
            )
        better = self._sign * value < self._sign * self.best - self.min_delta
        if better:
            self.best, self.best_epoch = value, record["epoch"]
        return better

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; called after ``on_fit_begin``."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class EarlyStopping(_Watching):
    """Stop when the loss, or an accuracy, has not improved for some epochs, and restore the best weights.

    It watches ``val_loss``; without validation data it watches the training loss and says so.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training stops.
    min_delta : float
        Smallest change that counts as an improvement.
    restore_best : bool
        Restore the weights of the best epoch when training ends, early or not. The optimizer keeps its state. Ctrl-C
        and errors restore nothing; the best weights are in ``best_weights``.
    monitor : "loss", "val_loss", "accuracy", "val_accuracy", or None
        The key of the records to watch: a loss shall fall, an accuracy rise.

    Attributes
    ----------
    best : float
    best_epoch : int or None
    """

    def __init__(
        self, patience: int = 5, min_delta: float = 0.0, restore_best: bool = True, monitor: str | None = None
    ) -> None:
        super().__init__(monitor, min_delta)
        self.patience = checks.integer("patience", patience, minimum=1)
        self.restore_best = checks.boolean("restore_best", restore_best)
        self._network = self._weights = None

    @property
    def best_weights(self) -> dict[str, Array] | None:
        """Copies of the weights of the best epoch, for `Sequential.load_state_dict`; None without ``restore_best``."""
        return None if self._weights is None else self._network.named_copy(self._weights)

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        super().on_fit_begin(model, run)
        self._network, self._weights = model.network, None
        if run["verbose"] and self.monitor is None and not run["validation_rows"]:
            print("early stopping watches the training loss: there is no validation data")

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> bool:
        if self.improved(record) and self.restore_best:
            self._weights = self._network.copied_values(self._weights)
        return record["epoch"] - (self.best_epoch or 0) >= self.patience

    def on_fit_end(self, model: Sequential, history: History) -> None:
        if self._weights is not None:
            self._network.restore_values(self._weights)

    def state_dict(self) -> dict[str, Any]:
        weights = {f"weights.{name}": array for name, array in (self.best_weights or {}).items()}
        return super().state_dict() | weights

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        prefix = "weights."
        named = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        self._weights = self._network.copy_of_named(named) if named else None


class ReduceLROnPlateau(_Watching):
    """Multiply the learning rate by ``factor`` when the loss, or an accuracy, has not improved for some epochs.

    Then it waits anew. The optimizer's ``lr`` must be a number, not a schedule.

    Parameters
    ----------
    factor : float
        In (0, 1).
    patience : int
        Epochs without improvement after which the rate is reduced.
    min_lr : float
        The rate goes no lower.
    min_delta : float
        Smallest change that counts as an improvement.
    monitor : "loss", "val_loss", "accuracy", "val_accuracy", or None
        The key of the records to watch; by default ``val_loss``, without validation data ``loss``.

    Attributes
    ----------
    best : float
    best_epoch : int or None
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        min_lr: float = 0.0,
        *,
        min_delta: float = 0.0,
        monitor: str | None = None,
    ) -> None:
        super().__init__(monitor, min_delta)
        self.factor = checks.real("factor", checks.positive("factor", factor), below=1.0)
        self.patience = checks.integer("patience", patience, minimum=1)
        self.min_lr = checks.real("min_lr", min_lr)

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        super().on_fit_begin(model, run)
        self._optimizer, self._since = run["optimizer"], 0
        if callable(self._optimizer.lr):
            raise TypeError(
                f"ReduceLROnPlateau needs an optimizer whose lr is a number, got {self._optimizer.lr!r}; "
                f"pass lr=1e-3, or leave the callback out"
            )

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        if self.improved(record):
            self._since = record["epoch"]
        elif record["epoch"] - self._since >= self.patience:
            self._since, lr = record["epoch"], self._optimizer.lr
            self._optimizer.lr = min(lr, max(lr * self.factor, self.min_lr))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._since = state["since"]


class ModelCheckpoint(_Watching):
    """Save the model whenever the loss, or an accuracy, is the best so far of this training.

    It writes a model file, for `fastbp.load`; to go on with training, ``fit(checkpoint="folder")``.

    Parameters
    ----------
    path : str or path
        Of the file, which is replaced: as of `Sequential.save`.
    monitor : "loss", "val_loss", "accuracy", "val_accuracy", or None
        The key of the records to watch; by default ``val_loss``, without validation data ``loss``.
    min_delta : float
        Smallest change that counts as an improvement.

    Attributes
    ----------
    best : float
    best_epoch : int or None
    """

    def __init__(self, path: str | os.PathLike[str], monitor: str | None = None, *, min_delta: float = 0.0) -> None:
        super().__init__(monitor, min_delta)
        self.path = files.checked_path(path)

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        super().on_fit_begin(model, run)
        self._writes = run.get("rank", 0) == 0

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        if self.improved(record) and self._writes:
            model.save(self.path)


# ------------------------------------------------------------------------------------- showing
class Lines:
    """Prints one plain line an epoch."""

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        self._epochs = run["epochs"]

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        print(line(record, self._epochs), flush=True)

    def close(self) -> None:
        """Leave the output as other programs expect it; called however training ends."""


class TerminalBar(Lines):
    """A bar of the package rich, beside it the line of the last epoch."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(BarColumn(bar_width=20), TextColumn("{task.description}"))

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        super().on_fit_begin(model, run)
        self._task = self._bar.add_task("", total=self._epochs)
        self._bar.start()

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        self._bar.update(self._task, completed=record["epoch"], description=line(record, self._epochs))

    def close(self) -> None:
        self._bar.stop()


class NotebookBar(Lines):
    """The line of the last epoch in a notebook, each in the place of the one before."""

    def on_fit_begin(self, model: Sequential, run: dict[str, Any]) -> None:
        from IPython.display import ProgressBar, display

        super().on_fit_begin(model, run)
        self._bar, self._line = ProgressBar(self._epochs), display("", display_id=True)
        self._bar.display()

    def on_epoch_end(self, model: Sequential, record: dict[str, Any]) -> None:
        self._bar.progress = record["epoch"]
        self._line.update(line(record, self._epochs))


def _in_notebook():
    """Whether this process serves a notebook: its shell has a kernel then."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def reporter(epochs: int) -> Lines:
    """What shows so many epochs where the output goes: lines, or a bar where there are many."""
    if epochs > MOST_LINES:
        if _in_notebook():
            return NotebookBar()
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and importlib.util.find_spec("rich"):
            return TerminalBar()
    return Lines()


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
