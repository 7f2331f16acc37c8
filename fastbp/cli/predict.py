"""``fastbp predict``: what a trained model says of a table."""

import csv
import io
import os
import sys

import numpy as np

from .. import files
from . import runs, terminal
from .options import add_model_and_data, names_in, read_table, use_threads

OUTPUTS = (".csv", ".parquet", ".feather", ".npz")


def add_options(parser):
    """The output, the model and the data."""
    parser.add_argument(
        "-o", "--output", metavar="OUT", help=f"file that ends in {', '.join(OUTPUTS)} (default: CSV to the terminal)"
    )
    parser.add_argument("--proba", action="store_true", help="also the probability of each class")
    parser.add_argument("--id", metavar="COLUMNS", default="", help="columns of DATA to have beside the predictions")
    parser.add_argument(
        "--drop-missing", action="store_true", help="predict nothing for rows with a missing feature; their lines stay"
    )
    add_model_and_data(parser)


def run(options):
    """Predict, into a file or to the terminal: a line for each row, in order."""
    use_threads(options)
    predictor = runs.load(options.model, options.device, options.precision)
    target = predictor.target
    if options.proba and target.classes is None:
        raise ValueError(f"--proba is for classes, and {options.model} predicts the number {target.name!r}")
    if options.output:
        _check_output(options)
    table = read_table(options)
    features = predictor.preprocessing.table(table, target.name, options.by_position)
    inputs, remarks = predictor.preprocessing.applied(features, predictor.model.dtype)
    for remark in remarks:
        print(f"fastbp: {remark}", file=sys.stderr)
    columns = {}
    for name in names_in(options.id):
        found = table.find(name)
        values = table.columns[found]
        columns[found] = _with_gaps(values.values, values.missing)
    used = [name for name in predictor.preprocessing.features if name in features.columns]
    gaps = features.incomplete(used) if options.drop_missing else np.zeros(len(table), bool)
    columns[_free(target.name, columns)] = _with_gaps(target.decoded(predictor.model.predict(inputs)), gaps)
    if options.proba:
        probability = predictor.model.predict_proba(inputs)
        for label, of_class in zip(target.classes, probability.T, strict=True):
            columns[_free(f"p({label})", columns)] = _with_gaps(of_class, gaps)
    if not options.output:
        _write_csv(sys.stdout, columns)
        return
    with files.replacing(options.output) as file:
        _write(file, columns, options.output)
    left = f", none for {terminal.rows(int(gaps.sum()))} with a missing feature" if gaps.any() else ""
    print(
        f"saved {terminal.number(len(table) - int(gaps.sum()))} predictions of {target.name!r}{left}: {options.output}"
    )


def _check_output(options):
    if not options.output.endswith(OUTPUTS):
        raise ValueError(f"--output {options.output}: expected a name ending in {', '.join(OUTPUTS)}")
    for used in (options.data, runs.model_path(options.model)):
        if os.path.exists(options.output) and os.path.exists(used) and os.path.samefile(options.output, used):
            raise ValueError(f"--output {options.output} would overwrite what is read: choose another name")


def _free(name, columns):
    """The name, or that of a prediction where another column is called so."""
    return f"{name} predicted" if name in columns else name


def _with_gaps(values, missing):
    """The values; as objects, None where one is missing, if one is."""
    if not missing.any():
        return values
    objects = values.astype(object)
    objects[missing] = None
    return objects


def _write(file, columns, output):
    if output.endswith(".csv"):
        text = io.TextIOWrapper(file, newline="", encoding="utf-8")
        _write_csv(text, columns)
        text.detach()
    elif output.endswith(".npz"):
        gaps = [name for name, values in columns.items() if values.dtype.kind == "O" and None in values]
        if gaps:
            raise ValueError(f"{output}: NPZ cannot hold the gaps of {', '.join(gaps)}; choose .csv or .parquet")
        texts = {name: values.astype(str) for name, values in columns.items() if values.dtype.kind == "O"}
        np.savez(file, **(columns | texts))
    else:
        _write_arrow(file, columns, output)


def _write_arrow(file, columns, output):
    try:
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet
    except ImportError:
        raise ImportError('writing Parquet and Feather needs pyarrow: pip install "fastbp[cli]"') from None
    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    write = pyarrow.parquet.write_table if output.endswith(".parquet") else pyarrow.feather.write_feather
    write(table, file)


def _write_csv(file, columns):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    values = [of_column.astype(str) if of_column.dtype.kind == "M" else of_column for of_column in columns.values()]
    for row in zip(*(of_column.tolist() for of_column in values), strict=True):
        writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in row])
