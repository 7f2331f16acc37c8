"""What a command shows: plain lines, a terminal with colour and a bar, JSON lines, or nothing.

A screen has ``line(text, style)``; ``item(label, text)``, a line with a label in the margin; ``command(label, text)``,
such a line that can be typed; ``record(kind, values)``, which only `JsonLines` shows; ``working(text)``, a context for
a wait of unknown length; ``progress(total)``, a context that gives a function ``(done, text)``; and ``width``, its
columns, or 0 where lines may have any length.
"""

import codecs
import contextlib
import io
import json
import math
import os
import shutil
import sys
import textwrap

MARGIN = 10  # columns of the labels of items
PLAIN = {"·": "-", "→": "->", "…": "...", "²": "2", "×": "x", "–": "-", "−": "-", "≥": ">=", "µ": "u"}
MOST_ROWS = 30  # epochs shown; of more, one row in a window of equal length: the best of it, or its last


def plain_where_needed():
    """Let streams that lack a character, as those in ASCII, show a plain one, and closed ones take what comes."""

    def replaced(error):
        text = error.object[error.start : error.end]
        plain = "".join(PLAIN.get(character, "?") for character in text)
        return plain, error.end

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
    codecs.register_error("fastbp-plain", replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fastbp-plain")


def columns() -> int:
    """Of the terminal, or as COLUMNS says; 0 for a pipe or a file, whose lines may be long."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def wrapped(text, width, indent=0) -> list[str]:
    """Lines of at most ``width`` columns, broken between words; those after the first are set in."""
    if not width or len(text) <= width:
        return [text]
    lead = len(text) - len(text.lstrip())
    indent = min(indent + lead, width // 2)
    lines = textwrap.wrap(
        text.lstrip(), width, initial_indent=text[:lead], subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return lines or [text]


class Plain:
    """Lines by `print`, for files, pipes and terminals without rich."""

    def __init__(self):
        self.width = columns()

    def line(self, text="", style="", indent=0, broken=""):
        """A line, or several where it is broken; those end in ``broken``, but for the last."""
        *lines, last = wrapped(text, self.width and self.width - len(broken), indent)
        for part in [*(part + broken for part in lines), last]:
            self.show(part, style)

    def show(self, text, style):
        """Print a line that fits."""
        print(text, flush=True)

    def item(self, label, text, style="", broken=""):
        """A line with a label in the margin."""
        self.line(f"{label or ' ':{MARGIN}}{text}", style, MARGIN if label else 0, broken)

    def command(self, label, text):
        """A command with a label in the margin; the lines of one that is broken can be pasted as they are."""
        self.item(label, text, "bold", " \\")

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

    def line(self, text="", style="", indent=0, broken=""):
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

        super().__init__()
        self.console = rich.console.Console()
        self.text, self.columns = rich.text.Text, rich.progress

    def show(self, text, style):
        self.console.print(self.text(text, style), soft_wrap=True)

    @contextlib.contextmanager
    def working(self, text):
        with self.console.status(text):
            yield

    @contextlib.contextmanager
    def progress(self, total):
        columns = (
            self.columns.TextColumn(" training"),
            self.columns.BarColumn(bar_width=min(40, max(8, self.width - 72))),
            self.columns.MofNCompleteColumn(),
            self.columns.TextColumn("{task.fields[text]}"),
        )
        if self.width >= 70:
            columns += (self.columns.TimeElapsedColumn(),)
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


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def rows(count: int) -> str:
    """So many rows."""
    return counted(count, "row")


def size(count: int) -> str:
    """So many bytes."""
    return f"{number(count // 1000)} kB" if count >= 1000 else counted(count, "byte")


class EpochRows:
    """Callback of ``fit``: a row an epoch, the best so far marked with a star.

    Parameters
    ----------
    screen : screen
    progress : function (done, text)
    patience : int
        As of the early stopping, to show how much of it is used.
    score : str or None
        Name of the column that says how good the validation part is predicted.
    score_of : function (record) -> float, or None
    """

    def __init__(self, screen, progress, patience, score, score_of):
        self.screen, self.progress, self.patience = screen, progress, patience
        self.best, self.best_epoch = math.inf, 0
        shown = {
            "epoch": (6, lambda record: str(record["epoch"])),
            "train loss": (13, lambda record: f"{record['loss']:.4f}"),
            "valid loss": (13, lambda record: f"{record['val_loss']:.4f}"),
            "": (2, lambda record: "*" if record["epoch"] == self.best_epoch else ""),
            score: (11, lambda record: f"{score_of(record):.4f}"),
            "lr": (10, lambda record: f"{record['lr']:.1e}"),
            "samples/s": (12, self._speed),
            "time": (11, _time),
        }
        if score is None:
            del shown[score]
        for least in ("samples/s", "time", "lr", score):  # columns that a narrow terminal does without
            if screen.width and sum(width for width, _ in shown.values()) > screen.width:
                shown.pop(least, None)
        self.shown = shown

    def on_fit_begin(self, model, run):
        self.rows, self.window = run["rows"], math.ceil(run["epochs"] / MOST_ROWS)
        self.waiting, self.waiting_is_best = None, False
        self.screen.line()
        self.screen.line("".join(f"{title:>{width}}" for title, (width, _) in self.shown.items()), "bold")

    def on_epoch_end(self, model, record):
        epoch, improved = record["epoch"], record["val_loss"] < self.best
        if improved:
            self.best, self.best_epoch = record["val_loss"], epoch
        if improved or not self.waiting_is_best:
            self.waiting, self.waiting_is_best = self._row(record), improved
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

    def _row(self, record):
        return "".join(f"{shows(record):>{width}}" for width, shows in self.shown.values())

    def _speed(self, record):
        rate = self.rows / record["seconds"]
        return f"{rate / 1e6:.1f} M" if rate >= 1e6 else f"{rate / 1e3:.1f} k"


def _time(record):
    seconds = record["seconds"]
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
