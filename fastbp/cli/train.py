"""``fastbp train``: a network trained on a table, and kept in a numbered folder."""

import contextlib
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import sys
import time

import numpy as np

from .. import backend, callbacks, chains, checkpoints, distributed, initializers, layers, model, tabular
from .. import ranks as working
from . import components, division, figures, machine, runs, scores, terminal
from .options import add_machine, add_reading, names_in, open_table, positive, use_threads

CHECKPOINT_SECONDS = 60  # from one checkpoint to the next
COMPILED_SECONDS = 0.3  # a warm-up that took longer has compiled something; else the kernels were on disk


def add_options(parser):
    """The data, the network, how it is trained, and what is shown."""
    parser.add_argument("data", metavar="DATA", nargs="?", help="a table in a file, - for standard input, or: digits")
    parser.add_argument("--config", metavar="FILE", help="take options from the config.toml of a run")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, as if it had not been")
    parser.add_argument("--start", metavar="MODEL", help="go on from a run or model: its layers, weights and split")
    add_reading(parser)
    _add_table(parser.add_argument_group("table"))
    _add_training(parser.add_argument_group("network and training; what is not given is as the preset has it"))
    add_machine(parser)
    parser.add_argument("--run-dir", metavar="DIR", default="runs", help="where the numbered folders are (%(default)s)")
    parser.add_argument(
        "--distributed", choices=("mpi", "nccl"),
        help="train on the processes that mpiexec has started; NCCL joins their GPUs (--device cuda)",
    )  # fmt: skip
    output = parser.add_mutually_exclusive_group()
    output.add_argument("-q", "--quiet", action="store_true", help="print only the folder of the run")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_table(group):
    group.add_argument("--target", metavar="COLUMN", help="what to predict, by name or index (default: the last)")
    group.add_argument(
        "--task",
        choices=("auto", *components.LOSSES),
        default="auto",
        help="kind of target (%(default)s: text and few whole numbers are classes)",
    )
    group.add_argument("--drop", metavar="COLUMNS", default="", help="columns to leave out, separated by commas")
    group.add_argument("--keep", metavar="COLUMNS", default="", help="columns that are no identifiers")
    group.add_argument("--category", metavar="COLUMNS", default="", help="columns of numbers that are categories")
    group.add_argument(
        "--drop-missing", action="store_true", help="leave out rows with missing values, instead of filling them"
    )
    group.add_argument(
        "--one-hot", type=positive, default=40, metavar="N",
        help="categories of a column that get an input each; of more, the target's mean stands for them (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--scaling", choices=("standard", "robust"), help="of numbers: by deviation, or by quartiles and clipped"
    )
    group.add_argument("--split", default="60/20/20", help="shares for training, early stopping and test (%(default)s)")


def _add_training(group):
    plain = {"norm": "none", "loss": "by the task"} | components.PRESETS["plain"]["any"]
    group.add_argument(
        "--preset",
        choices=components.PRESETS,
        default="plain",
        help="%(default)s, or the simple form of RealMLP, which is slower and often better (%(default)s)",
    )
    group.add_argument("--hidden", help=f"widths of the hidden layers, or: none ({plain['hidden']})")
    for option, known, does in (
        ("--activation", components.ACTIVATIONS, "after each hidden layer, as elu:alpha=0.5"),
        ("--norm", components.NORMS, "before each activation"),
        ("--optimizer", components.OPTIMIZERS, "as sgd:momentum=0.9,nesterov=true"),
        ("--schedule", components.SCHEDULES, "of the learning rate, in updates, as cosine:final_lr=1e-5"),
        ("--loss", components.ALL_LOSSES, "what is minimised, as huber:delta=0.5"),
    ):
        group.add_argument(
            option, type=components.component(known), metavar="NAME[:KEY=VALUE,…]", default=None,
            help=components.help_of(known, does, plain[option[2:]]),
        )  # fmt: skip
    group.add_argument("--dropout", type=float, default=0.0, metavar="P", help="after each activation (%(default)s)")
    group.add_argument("--residual", action="store_true", help="add its input to a hidden layer of the same width")
    group.add_argument("--init", choices=initializers.INITIALIZERS, help=f"of weights ({plain['init']})")
    group.add_argument("--no-bias", action="store_true", help="layers without biases")
    group.add_argument("--epochs", type=positive, help=f"at most ({plain['epochs']})")
    group.add_argument("--batch-size", type=positive, help=f"rows a step ({plain['batch_size']})")
    group.add_argument(
        "--shuffle", choices=("all", "blocks", "none"), default="all",
        help="rows of an epoch: all; by blocks of 16 384, for a table much larger than memory; not (%(default)s)",
    )  # fmt: skip
    group.add_argument("--lr", type=float, help=f"learning rate, of a schedule the highest ({plain['lr']:g})")
    group.add_argument("--warmup", type=int, default=0, metavar="UPDATES", help="in which the rate rises (%(default)s)")
    group.add_argument(
        "--class-weight",
        metavar="WEIGHTS",
        help="of classes in the loss: balanced (so that each counts as much), or as in no=1,yes=5",
    )
    group.add_argument(
        "--patience", type=positive, help=f"epochs without improvement before an early stop ({plain['patience']})"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of all computation (%(default)s)"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of the split, the first weights and the shuffling (%(default)s)"
    )


def run(options):
    """Train, and keep the result or what there is of it; of several ranks the first one shows and keeps."""
    use_threads(options)
    communicator = getattr(distributed, options.distributed)() if options.distributed else None
    try:
        _run(options, communicator)
    except Exception as error:
        if working.of(communicator) is not None and not isinstance(error, FloatingPointError):  # which all ranks raise
            print(f"fastbp: {error}", file=sys.stderr, flush=True)
            communicator.abort()
        raise


def _run(options, communicator):
    """Train in this process, alone or as one of several ranks."""
    ranks = working.of(communicator)
    first = ranks is None or ranks.first
    screen = terminal.screen(options.quiet or not first, options.json and first)
    job = _Job(options, communicator)
    if first:
        _announce(screen, job)
    _compile(screen, job)
    begin = time.perf_counter()
    try:
        with _terminated_as_interrupted():
            job.train(screen)
    except KeyboardInterrupt:
        if job.folder:
            job.keep(runs.LAST, job.optimizer)
            if job.stopping.best_weights is not None:
                job.network.load_state_dict(job.stopping.best_weights)
                job.keep(runs.MODEL)
            again = f"fastbp train --resume {shlex.quote(str(job.folder))}"
            said = f"interrupted after epoch {len(job.network.history)}; to go on: {again}"
            (job.folder / runs.INTERRUPTED).write_text(said + "\n", encoding="utf-8")
            has = "the last model" if job.stopping.best_weights is None else "the best model so far, and the last"
            print(f"fastbp: {job.folder} has {has}; {said}", file=sys.stderr)
        raise
    except FloatingPointError:
        if job.folder:
            last = job.keep(runs.LAST, job.optimizer)
            config, start = (shlex.quote(str(path)) for path in (job.folder / runs.CONFIG, last))
            again = f"fastbp train --config {config} --start {start}"
            print(f"fastbp: the model as it is now is {last}; to go on: {again}", file=sys.stderr)
        raise
    if first:
        _conclude(screen, job, time.perf_counter() - begin)


@contextlib.contextmanager
def _terminated_as_interrupted():
    """Let SIGTERM, which clusters send before the end, do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


class _Job:
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


def _announce(screen, job):
    """Say what is about to be done, with what."""
    options, learned, network, target = job.options, job.learned, job.network, job.target
    unit = machine.multiplied(options.device, network.precision)
    screen.line(machine.described(options.device, network.dtype, *unit, f"seed {options.seed}"), "bold")
    for label, text in scores.data_lines(options, learned, job.incomplete):
        screen.item(label, text)
    fractions, seed = job.division()
    sizes = {part: terminal.number(len(rows)) for part, rows in learned.parts.items()}
    stratified = "by class, " if target.classes is not None else ""
    how = f"({'/'.join(f'{share:g}' for share in fractions)}, {stratified}seed {seed})"
    screen.item(
        "split", f"train {sizes['train']} · valid {sizes['valid']} for early stopping · test {sizes['test']}   {how}"
    )
    both = "numbers" if target.classes is not None or target.link == "log" else "numbers and target"
    how = "mean and deviation" if learned.preprocessing.scaling == "standard" else "median and quartiles"
    clipped = ", then clipped" * (learned.preprocessing.scaling == "robust")
    log = f"; the output is the logarithm of {target.name!r} over its mean" * (target.link == "log")
    screen.item("scale", f"{both} standardised: {how} of the training part{clipped}{log}")
    screen.item("model", " · ".join(_layer(layer) for layer in network.layers))
    count = network.flat_parameters.size
    size = f"{terminal.number(count)} parameters, {terminal.number(count * network.dtype.itemsize // 1000)} kB"
    screen.item("", size + (f", from {options.start}" if options.start else ""))
    rate = job.optimizer.lr if not callable(job.optimizer.lr) else f"{options.lr:g} {options.schedule}"
    weights = f" · classes weighted {options.class_weight}" if options.class_weight else ""
    screen.item(
        "optim",
        f"{type(job.optimizer).__name__} lr {rate} · batch {options.batch_size} · at most {options.epochs} epochs · "
        f"early stop after {options.patience} without improvement{weights}",
    )
    screen.record(
        "run",
        {
            "version": machine.version(),
            "data": options.data,
            "rows": {part: len(rows) for part, rows in learned.parts.items()},
            "task": target.task,
            "target": target.name,
            "left_out": learned.preprocessing.left_out,
            "parameters": count,
            "machine": backend.load(options.device).config(),
        },
    )


def _layer(layer):
    if isinstance(layer, layers.Linear):
        return f"Linear {layer.in_features}→{layer.out_features}"
    if isinstance(layer, layers.Residual):
        return f"Residual({' · '.join(_layer(inner) for inner in layer.layers)})"
    return type(layer).__name__


def _compile(screen, job):
    """Warm up; name and time the pause when there was one."""
    inner = chains.flattened(job.network.layers)
    activations = {layer.name for layer in inner if isinstance(layer, layers.Activation)}
    parts = {"activations": activations, "losses": [job.loss.name], "optimizers": [job.optimizer.name]}
    with screen.working("compiling kernels …"):
        seconds = backend.warmup(job.network.dtype, device=job.network.device, **parts)
    if seconds > COMPILED_SECONDS:
        screen.line()
        screen.line(f"compiling kernels … {seconds:.1f} s   (first run only{machine.cached_in(job.network.device)})")
    screen.record("compile", {"seconds": seconds})


def _conclude(screen, job, seconds):
    """Show and keep the result."""
    epochs, best = len(job.network.history), job.stopping.best_epoch
    why = f"no improvement for {job.options.patience} epochs" if epochs < job.options.epochs else "all epochs done"
    screen.line()
    screen.line(f"{why}: the weights of epoch {best} are restored   ({epochs} epochs in {seconds:.2f} s)")
    results, baseline = job.results()
    metrics = {part: result.metrics for part, result in results.items()} | {"baseline": baseline}
    job.keep(runs.MODEL)
    runs.write_metrics(job.folder, metrics)
    pictures = figures.write(job.folder, job.network.history, results["test"])
    screen.line()
    for line in scores.lines(job.target, metrics, screen.width):
        screen.line(line)
    if job.target.classes is not None:
        screen.line()
        for line in results["test"].confusion_lines(screen.width, "test part"):
            screen.line(line)
    folder = shlex.quote(str(job.folder))
    screen.line()
    screen.item("saved", f"{job.folder}{os.sep}")
    screen.item("", f"{runs.MODEL}     layers, weights, preprocessing")
    screen.item("", f"{runs.CONFIG}   all options")
    screen.item("", f"history.csv  metrics.json  {pictures}")
    screen.line()
    screen.command("next", f"fastbp predict {folder} {shlex.quote(job.options.data)} -o predictions.csv")
    screen.item("", f"in Python: fastbp.load({json.dumps(str(job.folder))}).predict(frame)")
    screen.command("again", f"fastbp train --config {folder}/{runs.CONFIG}")
    screen.record("result", {"run": str(job.folder), "best_epoch": best, "epochs": epochs, "metrics": metrics})
    if job.options.quiet:
        print(job.folder)
