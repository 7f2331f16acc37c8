"""``fastbp train``: a network trained on a table, and kept in a numbered folder."""

import contextlib
import json
import os
import shlex
import signal
import sys
import time

from .. import backend, chains, distributed, initializers, layers
from .. import ranks as working
from . import components, figures, machine, runs, scores, terminal
from .job import Job
from .options import add_machine, add_reading, positive, use_threads

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
    job = Job(options, communicator)
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
    size = f"{terminal.counted(count, 'parameter')}, {terminal.size(count * network.dtype.itemsize)}"
    screen.item("", size + (f", from {options.start}" if options.start else ""))
    rate = job.optimizer.lr if not callable(job.optimizer.lr) else f"{options.lr:g} {options.schedule}"
    weights = f" · classes weighted {options.class_weight}" if options.class_weight else ""
    screen.item(
        "optim",
        f"{type(job.optimizer).__name__} lr {rate} · batch {options.batch_size} · "
        f"at most {terminal.counted(options.epochs, 'epoch')} · "
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
    best, patience = job.stopping.best_epoch, terminal.counted(job.options.patience, "epoch")
    epochs = len(job.network.history)
    why = f"no improvement for {patience}" if epochs < job.options.epochs else "all epochs done"
    took = f"{terminal.counted(epochs, 'epoch')} in {seconds:.2f} s"
    screen.line()
    screen.line(f"{why}: the weights of epoch {best} are restored   ({took})")
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
