"""What a command shows: plain lines, a terminal with colour and a bar, JSON lines, or nothing.

A screen has ``line(text, style)``; ``record(kind, values)``, which only `JsonLines` shows; ``working(text)``, a
context for a wait of unknown length; and ``progress(total)``, a context that gives a function ``(done, text)``.
"""

import contextlib
import json
import math
import os
import sys

MOST_ROWS = 30  # epochs shown; of more, one row in a window of equal length: the best of it, or its last


class Plain:
    """Lines by `print`, for files, pipes and terminals without rich."""

    def line(self, text="", style=""):
        print(text, flush=True)

    def record(self, kind, values):
        """Only for `JsonLines`."""

    @contextlib.contextmanager
    def working(self, text):
        yield

    @contextlib.contextmanager
    def progress(self, total):
        yield lambda done, text: None


class Quiet(Plain):
    """Nothing."""

    def line(self, text="", style=""):
        pass


class JsonLines(Quiet):
    """One JSON object a line, each with a ``"kind"``."""

    def record(self, kind, values):
        print(json.dumps({"kind": kind} | values, ensure_ascii=False), flush=True)


class Rich(Plain):
    """A terminal, by the library rich."""

    def __init__(self):
        import rich.console
        import rich.progress
        import rich.text

        self.console = rich.console.Console()
        self.text, self.columns = rich.text.Text, rich.progress

    def line(self, text="", style=""):
        self.console.print(self.text(text, style), soft_wrap=True)

    @contextlib.contextmanager
    def working(self, text):
        with self.console.status(text):
            yield

    @contextlib.contextmanager
    def progress(self, total):
        columns = (
            self.columns.TextColumn(" training"),
            self.columns.BarColumn(),
            self.columns.MofNCompleteColumn(),
            self.columns.TextColumn("{task.fields[text]}"),
            self.columns.TimeElapsedColumn(),
        )
        with self.columns.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)


def screen(quiet=False, as_json=False):
    """The screen that fits the options and where the output goes."""
    if as_json:
        return JsonLines()
    if quiet:
        return Quiet()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with contextlib.suppress(ImportError):
            return Rich()
    return Plain()


def number(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}".replace(",", " ")


class EpochRows:
    """Callback of ``fit``: a row an epoch, the best so far marked with a star.

    Parameters
    ----------
    screen : screen
    progress : function (done, text)
    patience : int
        As of the early stopping, to show how much of it is used.
    score : str
        Name of the column that says how good the validation part is predicted.
    score_of : function (record) -> float
    """

    def __init__(self, screen, progress, patience, score, score_of):
        self.screen, self.progress, self.patience = screen, progress, patience
        self.score, self.score_of = score, score_of
        self.best, self.best_epoch = math.inf, 0

    def on_fit_begin(self, model, run):
        self.rows, self.window = run["rows"], math.ceil(run["epochs"] / MOST_ROWS)
        self.waiting, self.waiting_is_best = None, False
        self.screen.line()
        columns = f"{'train loss':>13}{'valid loss':>13}  {self.score:>11}{'lr':>10}{'samples/s':>12}{'time':>11}"
        self.screen.line(f" {'epoch':>5}{columns}", "bold")

    def on_epoch_end(self, model, record):
        epoch, improved = record["epoch"], record["val_loss"] < self.best
        if improved:
            self.best, self.best_epoch = record["val_loss"], epoch
        if improved or not self.waiting_is_best:
            self.waiting, self.waiting_is_best = self._row(record, "*" if improved else " "), improved
        if epoch % self.window == 0 or epoch == 1:
            self._show()
        self.screen.record("epoch", record)
        self.progress(
            epoch, f"· best {self.best:.4f} @{self.best_epoch} · patience {epoch - self.best_epoch}/{self.patience}"
        )

    def on_fit_end(self, model, history):
        self._show()

    def state_dict(self):
        """What a checkpoint keeps."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state):
        self.best, self.best_epoch = state["best"], state["best_epoch"]

    def _show(self):
        if self.waiting is not None:
            self.screen.line(self.waiting, "green" if self.waiting_is_best else "")
        self.waiting, self.waiting_is_best = None, False

    def _row(self, record, mark):
        rate = self.rows / record["seconds"]
        speed = f"{rate / 1e6:.1f} M" if rate >= 1e6 else f"{rate / 1e3:.1f} k"
        seconds = record["seconds"]
        time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
        return (
            f" {record['epoch']:>5}{record['loss']:>13.4f}{record['val_loss']:>13.4f} {mark}"
            f"{self.score_of(record):>11.4f}{record['lr']:>10.1e}{speed:>12}{time:>11}"
        )
