"""``fastbp train``: a network trained on a table, and kept in a numbered folder."""

import contextlib
import dataclasses
import itertools
import pathlib
import shlex
import shutil
import signal
import sys
import time

from .. import backend, callbacks, checkpoints, layers, losses, model, optimizers, tabular
from . import machine, runs, scores, terminal
from .options import add_machine, add_reading, positive, read_table, use_threads

ACTIVATIONS = {"identity": layers.Identity, "relu": layers.ReLU, "tanh": layers.Tanh, "sigmoid": layers.Sigmoid}
OPTIMIZERS = {"adam": optimizers.Adam, "sgd": optimizers.SGD}
LOSSES = {"classification": losses.CrossEntropyLoss, "regression": losses.MSELoss}
CHECKPOINT_SECONDS = 60  # from one checkpoint to the next
COMPILED_SECONDS = 0.3  # a warm-up that took longer has compiled something; else the kernels were on disk


def add_options(parser):
    """The data, the network, how it is trained, and what is shown."""
    parser.add_argument("data", metavar="DATA", nargs="?", help="CSV, Parquet or NPZ file, or: digits")
    parser.add_argument("--config", metavar="FILE", help="take options from the config.toml of a run")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, as if it had not been")
    parser.add_argument("--start", metavar="MODEL", help="go on from a run or model: its layers, weights and split")
    add_reading(parser)
    parser.add_argument("--target", metavar="COLUMN", help="what to predict, by name or index (default: the last)")
    parser.add_argument(
        "--task", choices=("auto", *LOSSES), default="auto", help="kind of target (%(default)s: by its values)"
    )
    parser.add_argument("--drop", metavar="COLUMNS", default="", help="columns to leave out, separated by commas")
    parser.add_argument("--drop-missing", action="store_true", help="leave out rows with missing values")
    parser.add_argument(
        "--split", default="60/20/20", help="shares for training, early stopping and test (%(default)s)"
    )
    parser.add_argument("--hidden", default="256", help="widths of the hidden layers, or: none (%(default)s)")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, default="relu", help="after each hidden layer (%(default)s)"
    )
    parser.add_argument("--epochs", type=positive, default=200, help="at most (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, help="rows a step (%(default)s)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    parser.add_argument(
        "--patience", type=positive, default=20, help="epochs without improvement before an early stop (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of all computation (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, the first weights and the shuffling (%(default)s)"
    )
    add_machine(parser)
    parser.add_argument("--run-dir", metavar="DIR", default="runs", help="where the numbered folders are (%(default)s)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("-q", "--quiet", action="store_true", help="print only the folder of the run")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(options):
    """Train, and keep the result or what there is of it."""
    use_threads(options)
    screen = terminal.screen(options.quiet, options.json)
    job = _Job(options)
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
            print(f"fastbp: {job.folder} has the best model so far, and the last; {said}", file=sys.stderr)
        raise
    except FloatingPointError:
        if job.folder:
            last = job.keep(runs.LAST, job.optimizer)
            config, start = (shlex.quote(str(path)) for path in (job.folder / runs.CONFIG, last))
            again = f"fastbp train --config {config} --start {start}"
            print(f"fastbp: the model as it is now is {last}; to go on: {again}", file=sys.stderr)
        raise
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


class _Job:
    """Everything a training run consists of; also the callback that makes its folder."""

    def __init__(self, options):
        if options.data is None:
            raise ValueError(
                "DATA is missing: a CSV, Parquet or NPZ file, or the word digits, as in: fastbp train digits"
            )
        self.options, self.folder = options, None
        self.table = read_table(options)
        if options.start:
            self.network, self.preprocessing = runs.load(options.start, options.device, options.precision)
            self.parts = tabular.split(self.preprocessing.strata(self.table), *self.division())
        else:
            self._begin()
        loss = LOSSES[self.preprocessing.task]
        self.loss, self.stopping = loss(), callbacks.EarlyStopping(options.patience)
        self.optimizer = self.network.optimizer
        if not isinstance(self.optimizer, OPTIMIZERS[options.optimizer]):
            self.optimizer = OPTIMIZERS[options.optimizer]()
        self.optimizer.lr = options.lr
        x = self.preprocessing.inputs(self.table, self.network.dtype)
        y = self.preprocessing.targets(self.table)
        self.data = {part: (x[rows], y[rows]) for part, rows in self.parts.items()}

    def division(self):
        """Shares and seed of the split; those of the model when going on, so that its test part stays unseen."""
        return self.network.metadata["split"], self.network.metadata["seed"]

    def _begin(self):
        options, table = self.options, self.table
        target = options.target or table.target
        if target is None:
            raise ValueError(f"{options.data} has no array {options.y_key!r} to learn from (--y-key)")
        fractions = _fractions(options.split)
        self.preprocessing, self.parts = tabular.learn(table, target, options.task, fractions, options.seed)
        widths = [len(self.preprocessing.features), *_widths(options.hidden), self.preprocessing.outputs]
        parts = []
        for pair in itertools.pairwise(widths):
            parts += [layers.Linear(*pair), ACTIVATIONS[options.activation]()]
        self.network = model.Sequential(
            *parts[:-1],
            dtype=options.dtype,
            device=options.device,
            seed=options.seed,
            precision=options.precision,
        )
        self.network.metadata = {
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "data": options.data,
            "split": fractions,
            "seed": options.seed,
        }

    def on_fit_begin(self, network, run):
        """A run begins when `fit` has found its arguments good."""
        self.folder, self.kept_at = self.made, time.monotonic()
        if not self.options.resume:
            runs.write_config(self.folder, runs.kept(self.options))

    def on_epoch_end(self, network, record):
        """Let no more time be lost than `CHECKPOINT_SECONDS`."""
        if time.monotonic() - self.kept_at > CHECKPOINT_SECONDS:
            checkpoints.request_checkpoint()
            self.kept_at = time.monotonic()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        """There is nothing that goes on."""

    def train(self, screen):
        x, y = self.data["train"]
        validation = self.data["valid"]
        if self.preprocessing.task == "classification":
            score, score_of = "valid acc", lambda record: record["val_accuracy"]
        else:
            spread = validation[1].var() or float("nan")
            score, score_of = "valid R²", lambda record: 1 - record["val_loss"] / spread
        if self.options.resume:
            self.made = pathlib.Path(self.options.resume)
        else:
            self.made = runs.create(self.options.run_dir, self.table.name)
        kept = self.made / runs.CHECKPOINTS
        with screen.progress(self.options.epochs) as progress, runs.removed_if_empty(self.made, kept):
            rows = terminal.EpochRows(screen, progress, self.options.patience, score, score_of)
            self.network.fit(
                x,
                y,
                loss=self.loss,
                optimizer=self.optimizer,
                epochs=self.options.epochs,
                batch_size=self.options.batch_size,
                validation_data=validation,
                callbacks=[self, rows, self.stopping],
                verbose=False,
                checkpoint=kept,
                every=self.options.epochs,
                resume=kept if self.options.resume else None,
            )
        shutil.rmtree(kept)
        (self.made / runs.INTERRUPTED).unlink(missing_ok=True)

    def keep(self, name, optimizer=None):
        """Write the model and how it came about; returns its path."""
        path = self.folder / name
        self.network.save(path, optimizer)
        runs.write_history(self.folder, self.network.history)
        return path

    def metrics(self):
        """Metrics of each part, and on the test part those of the trivial baseline."""
        parts = {part: scores.measured(self.network, self.preprocessing, *data) for part, data in self.data.items()}
        return parts | {"baseline": scores.baseline(self.preprocessing, self.data["test"][1])}


def _announce(screen, job):
    """Say what is about to be done, with what."""
    options, table, preprocessing, network = job.options, job.table, job.preprocessing, job.network
    screen.line(machine.described(options.device, network.dtype, f"seed {options.seed}"), "bold")
    features = f"{terminal.number(len(preprocessing.features))} numeric features"
    kind = preprocessing.task
    if preprocessing.classes:
        kind += f", {len(preprocessing.classes)} classes"
    names = "" if table.named else " · no header row"
    rows = f"{terminal.number(len(table))} rows · {features} · target {preprocessing.target!r} ({kind}){names}"
    screen.line(f"data    {options.data}   {rows}")
    fractions, seed = job.division()
    sizes = {part: terminal.number(len(rows)) for part, rows in job.parts.items()}
    stratified = "by class, " if preprocessing.classes else ""
    how = f"({'/'.join(f'{share:g}' for share in fractions)}, {stratified}seed {seed})"
    screen.line(
        f"split   train {sizes['train']} · valid {sizes['valid']} for early stopping · test {sizes['test']}   {how}"
    )
    both = "X" if preprocessing.classes else "X and y"
    screen.line(f"scale   {both} standardised: mean and deviation of the training part")
    chain = " · ".join(
        f"Linear {layer.in_features}→{layer.out_features}" if isinstance(layer, layers.Linear) else type(layer).__name__
        for layer in network.layers
    )
    count = network.flat_parameters.size
    size = f"{terminal.number(count)} parameters, {terminal.number(count * network.dtype.itemsize // 1000)} kB"
    screen.line(f"model   {chain}")
    screen.line(f"        {size}" + (f", from {options.start}" if options.start else ""))
    screen.line(
        f"optim   {type(job.optimizer).__name__} lr {job.optimizer.lr:g} · batch {options.batch_size} · at most "
        f"{options.epochs} epochs · early stop after {options.patience} without improvement"
    )
    screen.record(
        "run",
        {
            "version": machine.version(),
            "data": options.data,
            "rows": {part: len(rows) for part, rows in job.parts.items()},
            "task": preprocessing.task,
            "target": preprocessing.target,
            "parameters": count,
            "machine": backend.load(options.device).config(),
        },
    )


def _compile(screen, job):
    """Warm up; name and time the pause when there was one."""
    activations = {layer.name for layer in job.network.layers if isinstance(layer, layers.Activation)}
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
    metrics = job.metrics()
    job.keep(runs.MODEL)
    runs.write_metrics(job.folder, metrics)
    screen.line()
    for line in scores.lines(job.preprocessing, metrics):
        screen.line(line)
    folder = shlex.quote(str(job.folder))
    screen.line()
    screen.line(f"saved   {job.folder}/")
    screen.line(f"          {runs.MODEL}     layers, weights, preprocessing")
    screen.line(f"          {runs.CONFIG}   the same again: fastbp train --config {folder}/{runs.CONFIG}")
    screen.line("          history.csv  metrics.json")
    screen.line()
    screen.line(f"next    fastbp predict {folder} {shlex.quote(job.options.data)} -o predictions.csv", "bold")
    screen.line(f'        in Python: fastbp.load("{job.folder / runs.MODEL}")')
    screen.record("result", {"run": str(job.folder), "best_epoch": best, "epochs": epochs, "metrics": metrics})
    if job.options.quiet:
        print(job.folder)
