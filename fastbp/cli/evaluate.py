"""``fastbp evaluate``: a trained model measured on a table that has the target."""

import json
import os

import numpy as np

from .. import tabular
from . import runs, scores, terminal
from .options import add_model_and_data, open_table, use_threads


def add_options(parser):
    """The target, the model and the data."""
    parser.add_argument("--target", metavar="COLUMN", help="the target's column here, if called otherwise")
    parser.add_argument("--drop-missing", action="store_true", help="leave out rows with a missing feature")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_and_data(parser)


def run(options):
    """Measure, beside the trivial baseline."""
    use_threads(options)
    predictor = runs.load(options.model, options.device, options.precision)
    network, preprocessing, target = predictor.model, predictor.preprocessing, predictor.target
    screen = terminal.screen(as_json=options.json)
    whole = open_table(options)
    name = options.target or target.name
    if not options.target and name not in whole.names and whole.target in whole.names:
        name = whole.target  # the array of an NPZ file that is no feature
    if name not in whole.names and not options.target:
        raise ValueError(f"{options.data} has no column {target.name!r} to measure by: name it with --target")
    values = whole.column(whole.find(name))
    there = np.flatnonzero(~values.missing)
    table = whole.take(there)
    y = target.encoded(values.take(there), table)
    known = preprocessing.given if _same_rows(options, network.metadata, whole) else preprocessing.features
    if not options.drop_missing:
        known = []
    rest, lacks = table.without([name]), tabular.Lacks()
    needed = {*preprocessing.needed(rest), *known}
    complete, outputs = np.zeros(len(there), bool), np.empty((len(there), target.outputs), network.dtype)
    done = 0
    for part in rest.parts([column for column in rest.names if column in needed]):
        features, rows = preprocessing.table(part, None, options.by_position), slice(done, done + len(part))
        complete[rows] = ~features.incomplete(column for column in known if column in features.columns)
        outputs[rows] = network.predict(preprocessing.applied(features, network.dtype, lacks))
        done += len(part)
    if not complete.all():
        there, y, outputs = there[complete], y[complete], outputs[complete]
    if not len(there):
        raise ValueError(f"{options.data} has no row to measure by: each lacks the target, or a feature")
    parts = _parts(options, network.metadata, whole, target, y)
    results = {
        part: scores.Result(network, target, outputs[rows], y[rows], there[rows]) for part, rows in parts.items()
    }
    metrics = {part: result.metrics for part, result in results.items()}
    last = list(parts)[-1]
    metrics["baseline"] = scores.baseline(target, y[parts[last]])
    if options.json:
        print(json.dumps({"rows": len(y), "metrics": runs.defined(metrics)}, ensure_ascii=False, allow_nan=False))
        return
    without = f", {len(whole) - len(y)} left out: no target, or a gap" * (len(y) < len(whole))
    screen.line(f"{terminal.rows(len(y))} of {options.data}{without} · target {target.name!r}")
    if last == "test":
        screen.line(
            "this is the table of training, divided as it was then: the network learned from train, valid chose its "
            "epoch, and only test is new to it"
        )
        if preprocessing.by_target:
            screen.line(
                "train is measured here on the inputs that predict makes; in metrics.json, on those of training, where "
                f"a row's own target is not in the means for its category ({scores.listed(preprocessing.by_target)})"
            )
    elif _same_file(options.data, network.metadata["data"]):
        screen.line(
            "these rows include those of training and early stopping: see metrics.json of the run for rows that are "
            "new to the network"
        )
    for remark in lacks.remarks(whole.name):
        screen.line(remark)
    screen.line()
    for line in scores.lines(target, metrics, screen.width):
        screen.line(line)
    screen.line()
    of = f"test part, {terminal.rows(len(parts[last]))}" if last == "test" else f"all rows of {last}"
    if target.classes is not None:
        described = results[last].confusion_lines(screen.width, of)
    else:
        screen.line(of)
        described = results[last].residual_lines()
    for line in described:
        screen.line(line)


def _parts(options, kept, table, target, y):
    """The rows of each part where the table is that of training; else all rows, called after the table."""
    if _same_rows(options, kept, table) and not options.target and options.drop_missing == kept["drop_missing"]:
        return tabular.split(tabular.strata(target, y), kept["split"], kept["seed"])
    return {table.name: np.arange(len(y))}


def _same_rows(options, kept, table):
    return _same_file(options.data, kept["data"]) and kept.get("rows") == len(table)


def _same_file(data, trained):
    if runs.absolute(data) == trained:
        return data != "-"
    return os.path.exists(data) and os.path.exists(trained) and os.path.samefile(data, trained)
