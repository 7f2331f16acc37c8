"""The command line: ``fastbp train digits`` and what follows from it."""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import shlex
import sys
import time

import numpy as np

from . import backend, callbacks, layers, losses, metrics, model, optimizers, runs, tabular, terminal
from .bench import comparisons, measure, peers, process, report, roofline, shapes, training_steps
from .kernels.table import PRECISIONS

ACTIVATIONS = {"identity": layers.Identity, "relu": layers.ReLU, "tanh": layers.Tanh, "sigmoid": layers.Sigmoid}
OPTIMIZERS = {"adam": optimizers.Adam, "sgd": optimizers.SGD}
LOSSES = {"classification": losses.CrossEntropyLoss, "regression": losses.MSELoss}
NOT_IN_CONFIG = {"command", "arguments", "config", "quiet", "json"}
COMPILED_SECONDS = 0.3  # a warm-up that took longer has compiled something; else the kernels were on disk
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(arguments=None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parsed(arguments)
        options.arguments = arguments
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("fastbp: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"fastbp: {error}", file=sys.stderr)
        return 2


# ------------------------------------------------------------------------------------- options
class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parsed(arguments):
    parser, train = _parsers()
    options = parser.parse_args(arguments)
    if getattr(options, "config", None):
        config = runs.read_config(options.config)
        unknown = set(config) - (set(vars(options)) - NOT_IN_CONFIG)
        if unknown:
            raise ValueError(f"{options.config} has unknown options: {', '.join(sorted(unknown))}")
        train.set_defaults(**config)
        options = parser.parse_args(arguments)
    return options


def _parsers():
    parser = _Parser(prog="fastbp", description="Train multilayer perceptrons with hand-written kernels.")
    parser.add_argument("--version", action="version", version=f"fastbp {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name, command, help):
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(command=command)
        return added

    train = add("train", _train, "train a network on a table, and keep it in a numbered folder")
    train.add_argument("data", metavar="DATA", nargs="?", help="CSV, Parquet or NPZ file, or: digits")
    train.add_argument("--config", metavar="FILE", help="take options from the config.toml of a run")
    train.add_argument("--start", metavar="MODEL", help="go on from a run or model: its layers, weights and split")
    _add_reading(train)
    train.add_argument("--target", metavar="COLUMN", help="what to predict, by name or index (default: the last)")
    train.add_argument(
        "--task", choices=("auto", *LOSSES), default="auto", help="kind of target (%(default)s: by its values)"
    )
    train.add_argument("--drop", metavar="COLUMNS", default="", help="columns to leave out, separated by commas")
    train.add_argument("--drop-missing", action="store_true", help="leave out rows with missing values")
    train.add_argument("--split", default="60/20/20", help="shares for training, early stopping and test (%(default)s)")
    train.add_argument("--hidden", default="256", help="widths of the hidden layers, or: none (%(default)s)")
    train.add_argument(
        "--activation", choices=ACTIVATIONS, default="relu", help="after each hidden layer (%(default)s)"
    )
    train.add_argument("--epochs", type=_positive, default=200, help="at most (%(default)s)")
    train.add_argument("--batch-size", type=_positive, default=32, help="rows a step (%(default)s)")
    train.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="(%(default)s)")
    train.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    train.add_argument(
        "--patience", type=_positive, default=20, help="epochs without improvement before an early stop (%(default)s)"
    )
    train.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of all computation (%(default)s)"
    )
    train.add_argument(
        "--seed", type=int, default=0, help="of the split, the first weights and the shuffling (%(default)s)"
    )
    _add_machine(train)
    train.add_argument("--run-dir", metavar="DIR", default="runs", help="where the numbered folders are (%(default)s)")
    output = train.add_mutually_exclusive_group()
    output.add_argument("-q", "--quiet", action="store_true", help="print only the folder of the run")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")

    predict = add("predict", _predict, "predict with a trained model")
    predict.add_argument("-o", "--output", metavar="OUT", help="CSV or NPZ file (default: CSV to the terminal)")
    predict.add_argument("--proba", action="store_true", help="also the probability of each class")
    evaluate = add("evaluate", _evaluate, "measure a trained model on a table that has the target")
    evaluate.add_argument("--target", metavar="COLUMN", help="the target's column here, if called otherwise")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    for reader in (predict, evaluate):
        reader.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a run, or a model file")
        reader.add_argument("data", metavar="DATA", help="CSV, Parquet or NPZ file, or: digits")
        reader.add_argument("--drop-missing", action="store_true", help="leave out rows with missing values")
        _add_reading(reader)
        _add_machine(reader)

    info = add("info", _info, "show versions, processor features, kernels, threads and cache")
    warmup = add("warmup", _warmup, "compile all kernels ahead, so that nothing compiles later")
    for command in (info, warmup):
        command.add_argument("--device", choices=backend.MODULES, default="cpu", help="where to compute (%(default)s)")

    comparison = add("compare", _compare, "time this library beside others that are installed")
    comparison.add_argument(
        "--what", default="steps", help=f"all, or some of {', '.join(comparisons.COMPARISONS)} (%(default)s)"
    )
    comparison.add_argument(
        "--shapes",
        help="of steps, predict, width, busy and many: ids, all, odd, or layers and batch: 784-256-10@128 "
        "(default: a few of each; S1 to S4)",
    )
    comparison.add_argument(
        "--peers", help=f"some of {', '.join(peers.PEERS)} (default: the fastest of those that can do it)"
    )
    comparison.add_argument("--rounds", type=_positive, default=7, help="undisturbed rounds for each row (%(default)s)")
    comparison.add_argument(
        "--threads", type=_positive, default=1, help="cores that this process is kept to (%(default)s)"
    )
    comparison.add_argument("--quick", action="store_true", help="three short rounds: a first look, not a result")
    comparison.add_argument("--json", metavar="FILE", help="write everything measured")

    roof = add("roofline", _roofline, "show where each kernel of a train step stands against the machine's limits")
    roof.add_argument("--shape", default="S5", help="an id, or layers and batch: 784-256-10@128 (%(default)s)")
    roof.add_argument(
        "-o", "--output", metavar="FILE", help="also a picture: .svg, .png or .pdf, or a page: .html (needs matplotlib)"
    )
    for command in (comparison, roof):
        command.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(%(default)s)")
        command.add_argument("--device", choices=backend.MODULES, default="cpu", help="where to compute (%(default)s)")
        command.add_argument(
            "--isa", choices=process.INSTRUCTION_SETS, default="host", help="instruction set of all (%(default)s)"
        )
    return parser, train


def _add_reading(parser):
    parser.add_argument(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the first line of a CSV has names (%(default)s)",
    )
    parser.add_argument("--x-key", default="X", help="features in an NPZ file (%(default)s)")
    parser.add_argument("--y-key", default="y", help="target in an NPZ file (%(default)s)")


def _add_machine(parser):
    parser.add_argument("--device", choices=backend.MODULES, default="cpu", help="where to compute (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="ieee",
        help="what factors of products are rounded to, with --device cuda (%(default)s: nothing)",
    )
    parser.add_argument("--threads", type=_positive, help="workers (default: what the machine has)")


def _read(options):
    table = tabular.read(options.data, header=options.header, x_key=options.x_key, y_key=options.y_key)
    table = table.without(filter(None, getattr(options, "drop", "").split(",")))
    return table.without_missing_rows() if options.drop_missing else table


def _positive(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


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


# --------------------------------------------------------------------------------------- train
class _Job:
    """Everything a training run consists of; also the callback that makes its folder."""

    def __init__(self, options):
        if options.data is None:
            raise ValueError(
                "DATA is missing: a CSV, Parquet or NPZ file, or the word digits, as in: fastbp train digits"
            )
        self.options, self.folder = options, None
        self.table = _read(options)
        if options.start:
            self.network, self.preprocessing = _load(options.start, options)
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
        """Nothing is written before `fit` has found its arguments good."""
        self.folder = runs.create(self.options.run_dir, self.table.name)
        runs.write_config(self.folder, {k: v for k, v in vars(self.options).items() if k not in NOT_IN_CONFIG})

    def train(self, screen):
        x, y = self.data["train"]
        validation = self.data["valid"]
        if self.preprocessing.task == "classification":
            score, score_of = "valid acc", lambda record: record["val_accuracy"]
        else:
            spread = validation[1].var() or float("nan")
            score, score_of = "valid R²", lambda record: 1 - record["val_loss"] / spread
        with screen.progress(self.options.epochs) as progress:
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
            )

    def keep(self, name, optimizer=None):
        """Write the model and how it came about; returns its path."""
        path = self.folder / name
        self.network.save(path, optimizer)
        runs.write_history(self.folder, self.network.history)
        return path

    def metrics(self):
        """Metrics of each part, and on the test part those of the trivial baseline."""
        scores = {part: _metrics(self.network, self.preprocessing, *data) for part, data in self.data.items()}
        return scores | {"baseline": _baseline(self.preprocessing, self.data["test"][1])}


def _train(options):
    _use_threads(options)
    screen = terminal.screen(options.quiet, options.json)
    job = _Job(options)
    _announce(screen, job)
    _compile(screen, job)
    begin = time.perf_counter()
    try:
        job.train(screen)
    except (KeyboardInterrupt, FloatingPointError):
        if job.folder:
            last = job.keep(runs.LAST, job.optimizer)
            config, start = (shlex.quote(str(path)) for path in (job.folder / runs.CONFIG, last))
            again = f"fastbp train --config {config} --start {start}"
            print(f"fastbp: the model as it is now is {last}; to go on: {again}", file=sys.stderr)
        raise
    _conclude(screen, job, time.perf_counter() - begin)


def _use_threads(options):
    if options.threads is not None:
        backend.set_num_threads(options.threads)


def _load(run_or_model, options):
    network = model.load(runs.model_path(run_or_model), device=options.device, precision=options.precision)
    if "preprocessing" not in network.metadata:
        raise ValueError(
            f"{run_or_model} does not say how to prepare data: it is not of `fastbp train`; use fastbp.load"
        )
    return network, tabular.Preprocessing(**network.metadata["preprocessing"])


def _metrics(network, preprocessing, x, y):
    outputs = network.predict(x)
    if preprocessing.task == "classification":
        return metrics.classification(losses.CrossEntropyLoss.probabilities(outputs, device=network.device), y)
    return metrics.regression(preprocessing.values(outputs), preprocessing.in_own_units(y))


def _baseline(preprocessing, y):
    """Metrics of predicting, whatever the row, how often each class is, or the mean."""
    if preprocessing.task == "classification":
        return metrics.classification(np.tile(preprocessing.shares, (len(y), 1)), y)
    return metrics.regression(preprocessing.in_own_units(np.zeros(len(y))), preprocessing.in_own_units(y))


def _metrics_lines(preprocessing, scores):
    """The table of metrics, whose last column is the baseline."""
    if preprocessing.task == "classification":
        trivial, unit = f"always {preprocessing.classes[int(np.argmax(preprocessing.shares))]}", ""
    else:
        trivial, unit = "always the mean", f"   RMSE and MAE in units of {preprocessing.target!r}"
    columns = {trivial if part == "baseline" else part: values for part, values in scores.items()}
    lines = terminal.metrics_lines(columns)
    return [lines[0] + unit, *lines[1:]]


def _announce(screen, job):
    """Say what is about to be done, with what."""
    options, table, preprocessing, network = job.options, job.table, job.preprocessing, job.network
    screen.line(_machine(options.device, network.dtype, f"seed {options.seed}"), "bold")
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
            "version": _version(),
            "data": options.data,
            "rows": {part: len(rows) for part, rows in job.parts.items()},
            "task": preprocessing.task,
            "target": preprocessing.target,
            "parameters": count,
            "machine": backend.load(options.device).config(),
        },
    )


def _version():
    return importlib.metadata.version("fastbp")


def _machine(device, *more):
    """The first line: version, processor, and what else is in force."""
    config = backend.load(device).config()
    words = {"instruction set": "", "cores available": "cores ", "threads": "threads ", "numba": "numba "}
    facts = [word + config[key] for key, word in words.items() if key in config]
    machine = f"{device} ({', '.join(facts)})" if facts else device
    return " · ".join([f"fastbp {_version()}", machine, *map(str, more)])


def _compile(screen, job):
    """Warm up; name and time the pause when there was one."""
    activations = {layer.name for layer in job.network.layers if isinstance(layer, layers.Activation)}
    parts = {"activations": activations, "losses": [job.loss.name], "optimizers": [job.optimizer.name]}
    with screen.working("compiling kernels …"):
        seconds = backend.warmup(job.network.dtype, device=job.network.device, **parts)
    if seconds > COMPILED_SECONDS:
        screen.line()
        screen.line(f"compiling kernels … {seconds:.1f} s   (first run only{_cached_in(job.network.device)})")
    screen.record("compile", {"seconds": seconds})


def _cached_in(device):
    folder = backend.load(device).config().get("kernel cache", "off")
    return "" if folder == "off" else f"; cached in {folder}"


def _conclude(screen, job, seconds):
    """Show and keep the result."""
    epochs, best = len(job.network.history), job.stopping.best_epoch
    why = f"no improvement for {job.options.patience} epochs" if epochs < job.options.epochs else "all epochs done"
    screen.line()
    screen.line(f"{why}: the weights of epoch {best} are restored   ({epochs} epochs in {seconds:.2f} s)")
    scores = job.metrics()
    job.keep(runs.MODEL)
    runs.write_metrics(job.folder, scores)
    screen.line()
    for line in _metrics_lines(job.preprocessing, scores):
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
    screen.record("result", {"run": str(job.folder), "best_epoch": best, "epochs": epochs, "metrics": scores})
    if job.options.quiet:
        print(job.folder)


# ------------------------------------------------------------------------- predict and evaluate
def _predict(options):
    _use_threads(options)
    network, preprocessing = _load(options.model, options)
    if options.proba and preprocessing.task != "classification":
        raise ValueError(f"--proba is for classes, and {options.model} predicts the number {preprocessing.target!r}")
    if options.output:
        _check_output(options)
    table = _read(options)
    outputs = network.predict(preprocessing.inputs(table, network.dtype))
    prediction = preprocessing.values(outputs)
    probability = losses.CrossEntropyLoss.probabilities(outputs, device=network.device) if options.proba else None
    if options.output and options.output.endswith(".npz"):
        arrays = {"prediction": prediction}
        if options.proba:
            arrays |= {"probability": probability, "classes": np.array(preprocessing.classes)}
        np.savez(options.output, **arrays)
    else:
        _write_csv(options.output, preprocessing, prediction, probability)
    if options.output:
        print(f"saved {terminal.number(len(prediction))} predictions of {preprocessing.target!r}: {options.output}")


def _check_output(options):
    if not options.output.endswith((".csv", ".npz")):
        raise ValueError(f"--output {options.output}: expected a name ending in .csv or .npz")
    for used in (options.data, runs.model_path(options.model)):
        if os.path.exists(options.output) and os.path.exists(used) and os.path.samefile(options.output, used):
            raise ValueError(f"--output {options.output} would overwrite what is read: choose another name")


def _write_csv(path, preprocessing, prediction, probability):
    header, columns = [preprocessing.target], [prediction.tolist()]
    if probability is not None:
        header += [f"p({label})" for label in preprocessing.classes]
        columns += probability.T.tolist()
    with open(path, "w", newline="", encoding="utf-8") if path else contextlib.nullcontext(sys.stdout) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for values in zip(*columns, strict=True):
            writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in values])


def _evaluate(options):
    _use_threads(options)
    network, preprocessing = _load(options.model, options)
    table = _read(options)
    if options.target:
        table = table.renamed(options.target, preprocessing.target)
    if preprocessing.target not in table.columns:
        raise ValueError(f"{options.data} has no column {preprocessing.target!r} to measure by: name it with --target")
    x, y = preprocessing.inputs(table, network.dtype), preprocessing.targets(table)
    scores = {table.name: _metrics(network, preprocessing, x, y), "baseline": _baseline(preprocessing, y)}
    if options.json:
        print(json.dumps({"rows": len(table), "metrics": scores}, ensure_ascii=False))
        return
    print(f"{terminal.number(len(table))} rows of {options.data} · target {preprocessing.target!r}")
    if options.data == network.metadata["data"]:
        print("these rows include those that the model was trained on: see metrics.json of the run for unseen ones")
    print()
    for line in _metrics_lines(preprocessing, scores):
        print(line)


# ---------------------------------------------------------------------------- info and warm-up
def _info(options):
    print(f"fastbp {_version()}")
    backend.show_config(options.device)


def _warmup(options):
    seconds = backend.warmup(device=options.device)
    print(f"all kernels are ready, in {seconds:.1f} s{_cached_in(options.device)}")


# ------------------------------------------------------------------------- compare and roofline
def _compare(options):
    names = comparisons.parse_what(options.what, options.threads, options.device)
    known = comparisons.comparisons(options.device)
    asked = shapes.parse_shapes(options.shapes) if options.shapes else None
    if asked and not any(known[name].shapes for name in names):
        raise ValueError(f"--shapes {options.shapes}, but {', '.join(names)} has none")
    found, missing = (None, []) if options.peers is None else peers.find_peers(options.peers)
    variables = process.environment(options.threads, options.isa)
    if not process.in_force(variables):
        return process.run_with(variables, options.arguments)
    rounds, seconds = (3, 0.02) if options.quick else (options.rounds, 0.1)
    how = measure.Protocol(rounds, seconds, options.dtype, options.device, options.threads)
    cores = process.pin(options.threads)
    backend.set_num_threads(options.threads)
    print(_where(options, cores))
    for name in missing:
        print(f"without {name}: it is not installed")
    results = {}
    for name in names:
        comparison = known[name]
        chosen = comparison.chosen(found)
        beside = [training_steps.ONE_THREAD] if comparison.beside_one_thread(options.threads) else []
        columns = [*chosen, *beside]
        print(f"\n{report.heading(comparison, columns)}", flush=True)
        results[name] = []
        for case in comparison.cases(asked or comparison.shapes, chosen, how):
            results[name].append(how.measure(case))
            print(report.row(comparison, columns, results[name][-1]), flush=True)
            if options.json:  # after each row: what is killed later leaves what it has measured
                _write_report(options, cores, how, results)
        print()
        for line in report.remarks(comparison, results[name]):
            print(line)


def _write_report(options, cores, how, results):
    written = {"version": _version(), "cores": cores, "isa": options.isa, "limit_gflops": how.best_limit}
    written |= {"machine": backend.load(options.device).config(), "load": process.load()}
    pathlib.Path(options.json).write_text(json.dumps(written | results, indent=1) + "\n")


def _where(options, cores):
    pinned = f"pinned to core {', '.join(map(str, cores))}" if cores else "not pinned: this system cannot"
    load = process.load()
    return _machine(options.device, options.dtype, pinned) + ("" if load is None else f" · load {load:.1f}")


def _roofline(options):
    shape = shapes.parse_shapes(options.shape)
    if len(shape) != 1:
        raise ValueError(f"--shape {options.shape}: expected one shape, got {len(shape)}")
    if options.output:
        roofline.check_output(options.output)
    variables = process.environment(1, options.isa)
    if not process.in_force(variables):
        return process.run_with(variables, options.arguments)
    cores = process.pin(1)
    backend.set_num_threads(1)
    print(_where(options, cores), end="\n\n")
    found = roofline.measure_step(*shape.values(), options.dtype, options.device)
    for line in roofline.lines(found):
        print(line)
    if options.output:
        roofline.write(found, options.output)
        print(f"\n{options.output}")
