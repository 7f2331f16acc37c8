"""What a run of ``fastbp train`` consists of: the table and what is learned of it, network, loss, optimizer, folder."""

import math
import pathlib
import shutil
import time

import numpy as np

from .. import callbacks, checkpoints, model, tabular
from .. import ranks as working
from . import components, division, runs, scores, terminal
from .options import names_in, open_table

CHECKPOINT_SECONDS = 60  # from one checkpoint to the next


def _widths(text):
    try:
        return [] if text == "none" else [int(width) for width in text.split(",")]
    except ValueError:
        raise ValueError(f"--hidden {text}: expected widths separated by commas, as in 64,64, or none") from None


def _fractions(text):
    try:
        fractions = [float(share) for share in text.split("/")]
    except ValueError:
        fractions = []
    if len(fractions) != 3 or min(fractions) <= 0:
        raise ValueError(f"--split {text}: expected three shares above zero, as in 60/20/20")
    return fractions


def _link(loss):
    """What the network's output is to the mean of the target: itself, or its logarithm."""
    return "log" if loss and components.parsed(loss, components.ALL_LOSSES)[0] in components.LOG_LINK else "identity"


def _class_weight(text, target):
    """A weight for each class, of mean 1 over the rows where they are balanced."""
    if text == "balanced":
        return [1 / (len(target.shares) * share) if share else 0.0 for share in target.shares]
    given = dict(pair.rpartition("=")[::2] for pair in text.split(","))
    unknown = set(given) - {str(label) for label in target.classes}
    try:
        weights = [float(given.get(str(label), 1)) for label in target.classes]
    except ValueError:
        weights = []
    if unknown or not weights or min(weights) < 0:
        classes = ", ".join(f"{label}=1" for label in target.classes[:3])
        raise ValueError(f"--class-weight {text}: expected balanced, or weights of the classes, as in {classes}")
    return weights


class Job:
    """Everything a training run consists of; also the callback that makes its folder."""

    def __init__(self, options, communicator=None):
        if options.data is None:
            raise ValueError(
                "DATA is missing: a table in a file, - for standard input, or the word digits, as in: "
                "fastbp train digits"
            )
        self.options, self.folder, self.communicator = options, None, communicator
        self.ranks = working.of(communicator)
        components.fill(options, "any")
        if self.ranks is None:
            self._learn()
        else:
            self._learn_together()
        self.table, self.target = self.learned.table, self.learned.target
        components.fill(options, self.target.task)
        self.batch_size, rows = options.batch_size, len(self.learned.parts["train"])
        if self.ranks is not None:
            self.batch_size, rows = division.share_of_batch(self.batch_size, self.ranks), len(self.numbers["train"])
        self.loss = self._loss()
        self.stopping = callbacks.EarlyStopping(options.patience)
        self.optimizer = self.network.optimizer
        name, _ = components.parsed(options.optimizer, components.OPTIMIZERS)
        steps = options.epochs * math.ceil(rows / options.batch_size)
        rate = components.learning_rate(options, steps)
        if type(self.optimizer) is components.OPTIMIZERS[name]:
            self.optimizer.lr = rate
        else:
            self.optimizer = components.made(options.optimizer, components.OPTIMIZERS, lr=rate)
        self.data = self.mine = self._data()
        if self.ranks is not None and self.ranks.first:  # which learned from all rows, and scores them all
            counts = {part: np.searchsorted(rows, self.end) for part, rows in self.numbers.items()}
            self.mine = {part: (x[: counts[part]], y[: counts[part]]) for part, (x, y) in self.data.items()}

    def _learn(self):
        """Read the table, and learn from it."""
        options, table = self.options, open_table(self.options)
        self.source_rows = len(table)
        if options.start:
            predictor = runs.load(options.start, options.device, options.precision)
            self.network = predictor.model
            self.learned = tabular.again(self._rows(table, predictor.preprocessing), self.network.metadata)
        else:
            self._begin(table)

    def _learn_together(self):
        """Rank 0 learns and tells, and each rank has its rows."""
        options, ranks, self.learned = self.options, self.ranks, None
        with working.agreed(ranks):
            division.check(options)
            if ranks.first:
                self._learn()
                division.check_learned(self.learned)
        metadata = self.network.metadata | {"source_rows": self.source_rows} if ranks.first else None
        metadata, self.numbers = division.told(self.learned, metadata, ranks)
        self.end = division.span(metadata["source_rows"], ranks)[1]
        with working.agreed(ranks):
            if not ranks.first:
                self.learned = division.own_part(options, metadata, self.numbers, ranks)
                components.fill(options, self.learned.target.task)
                if options.start:
                    self.network = runs.load(options.start, options.device, options.precision).model
                else:
                    self.network = self._network()

    def _data(self):
        """Inputs and targets of the parts; those of a stored table stay on the disk that the run is on."""
        folder = None
        if isinstance(self.table, tabular.Stored):
            folder = pathlib.Path(self.options.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
        return self.learned.data(self.network.dtype, folder)

    def division(self):
        """Shares and seed of the split; those of the model when going on, so that its test part stays unseen."""
        return self.network.metadata["split"], self.network.metadata["seed"]

    def _rows(self, table, preprocessing=None):
        """Without rows that have a gap in a column of training, where that is asked for."""
        self.incomplete = 0
        if not self.options.drop_missing:
            return table
        gaps = table.incomplete(table.names if preprocessing is None else preprocessing.given)
        self.incomplete = int(gaps.sum())
        if self.incomplete == len(table):
            raise ValueError(f"{self.options.data} has a missing value in every row: train without --drop-missing")
        return table.take(~gaps)

    def _begin(self, table):
        options = self.options
        target = options.target or table.target
        if target is None:
            raise ValueError(f"{options.data} has no array {options.y_key!r} to learn from (--y-key)")
        fractions = _fractions(options.split)
        settings = tabular.Preprocessing(
            one_hot=options.one_hot,
            categories=[table.find(name) for name in names_in(options.category)],
            keep=[table.find(name) for name in names_in(options.keep)],
            scaling=options.scaling,
        )
        self.learned = tabular.learn(
            self._rows(table),
            target,
            settings,
            task=options.task,
            link=_link(options.loss),
            fractions=fractions,
            seed=options.seed,
        )
        components.fill(options, self.learned.target.task)
        self.network = self._network()
        self.network.metadata = self.learned.metadata() | {
            "data": runs.absolute(options.data),
            "rows": len(table),
            "drop_missing": options.drop_missing,
            "split": fractions,
            "seed": options.seed,
        }

    def _network(self):
        options, width = self.options, self.learned.preprocessing.width
        return model.Sequential(
            *components.network(options, width, self.learned.target.outputs, _widths(options.hidden)),
            dtype=options.dtype,
            device=options.device,
            seed=options.seed,
            precision=options.precision,
        )

    def _loss(self):
        options, task = self.options, self.target.task
        known = components.LOSSES[task]
        name = options.loss
        if components.parsed(name, components.ALL_LOSSES)[0] not in known:
            raise ValueError(f"--loss {name}: of {task} there are {', '.join(known)}; or choose another --task")
        if _link(name) != self.target.link:
            raise ValueError(
                f"--loss {name}: {options.start} predicts {self.target.name!r} by a loss of another kind; leave out "
                "--start"
            )
        if not options.class_weight:
            return components.made(name, known)
        if task != "classification":
            raise ValueError(
                f"--class-weight is for classes, and {self.target.name!r} is a number (--task classification)"
            )
        return components.made(name, known, class_weight=_class_weight(options.class_weight, self.target))

    def on_fit_begin(self, network, run):
        """A run begins when `fit` has found its arguments good."""
        self.folder, self.kept_at = self.made, time.monotonic()
        if self.folder and not self.options.resume:
            runs.write_config(self.folder, runs.kept(self.options))

    def on_epoch_end(self, network, record):
        """Let no more time be lost than `CHECKPOINT_SECONDS`."""
        if self.folder and time.monotonic() - self.kept_at > CHECKPOINT_SECONDS:
            checkpoints.request_checkpoint()
            self.kept_at = time.monotonic()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """There is nothing that goes on."""

    def train(self, screen):
        validation = self.data["valid"]
        score, score_of = None, None
        if self.target.classes is not None:
            score, score_of = "valid acc", lambda record: record["val_accuracy"]
        elif self.loss.name == "mean_squared_error" and len(validation[1]) and validation[1].var():
            spread = validation[1].var()
            score, score_of = "valid R²", lambda record: 1 - record["val_loss"] / spread
        with screen.progress(self.options.epochs) as progress:
            rows = terminal.EpochRows(screen, progress, self.options.patience, score, score_of)
            watchers = [self, rows, *components.watchers(self.options), self.stopping]
            if self.ranks is not None and not self.ranks.first:
                self.made = None
                self._fit(watchers, runs.CHECKPOINTS)  # which rank 0 writes
                return
            if self.options.resume:
                self.made = pathlib.Path(self.options.resume)
            else:
                self.made = runs.create(self.options.run_dir, self.table.name)
            kept = self.made / runs.CHECKPOINTS
            with runs.removed_if_empty(self.made, kept):
                self._fit(watchers, kept)
        shutil.rmtree(kept)
        (self.made / runs.INTERRUPTED).unlink(missing_ok=True)

    def _fit(self, watchers, kept):
        self.network.fit(
            *self.mine["train"],
            loss=self.loss,
            optimizer=self.optimizer,
            epochs=self.options.epochs,
            batch_size=self.batch_size,
            shuffle={"all": True, "none": False}.get(self.options.shuffle, self.options.shuffle),
            validation_data=self.mine["valid"],
            callbacks=watchers,
            verbose=False,
            checkpoint=kept,
            every=self.options.epochs,
            resume=kept if self.options.resume else None,
            communicator=self.communicator,
        )

    def keep(self, name, optimizer=None):
        """Write the model and how it came about; returns its path."""
        path = self.folder / name
        self.network.save(path, optimizer)
        runs.write_history(self.folder, self.network.history)
        return path

    def results(self):
        """What the network gives for each part, and on the test part the trivial baseline."""
        parts = {
            part: scores.Result(self.network, self.target, self.network.predict(x), y)
            for part, (x, y) in self.data.items()
        }
        return parts, scores.baseline(self.target, self.data["test"][1])
