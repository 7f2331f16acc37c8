"""``fastbp evaluate``: a trained model measured on a table that has the target."""

import json

from . import runs, scores, terminal
from .options import add_model_and_data, read_table, use_threads


def add_options(parser):
    """The target, the model and the data."""
    parser.add_argument("--target", metavar="COLUMN", help="the target's column here, if called otherwise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_and_data(parser)


def run(options):
    """Measure, beside the trivial baseline."""
    use_threads(options)
    network, preprocessing = runs.load(options.model, options.device, options.precision)
    table = read_table(options)
    if options.target:
        table = table.renamed(options.target, preprocessing.target)
    if preprocessing.target not in table.columns:
        raise ValueError(f"{options.data} has no column {preprocessing.target!r} to measure by: name it with --target")
    x, y = preprocessing.inputs(table, network.dtype), preprocessing.targets(table)
    measured = scores.measured(network, preprocessing, x, y)
    metrics = {table.name: measured, "baseline": scores.baseline(preprocessing, y)}
    if options.json:
        print(json.dumps({"rows": len(table), "metrics": metrics}, ensure_ascii=False))
        return
    print(f"{terminal.number(len(table))} rows of {options.data} · target {preprocessing.target!r}")
    if options.data == network.metadata["data"]:
        print("these rows include those that the model was trained on: see metrics.json of the run for unseen ones")
    print()
    for line in scores.lines(preprocessing, metrics):
        print(line)
