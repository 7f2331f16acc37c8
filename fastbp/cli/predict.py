"""``fastbp predict``: what a trained model says of a table."""

import io
import os
import sys

import numpy as np

from .. import files, tabular
from . import outputs, runs, terminal
from .options import add_model_and_data, names_in, open_table, use_threads


def add_options(parser):
    """The output, the model and the data."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help=f"file that ends in {', '.join(outputs.OUTPUTS)} (default: CSV to the terminal)",
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
    table, work = open_table(options), _Work(options, predictor)
    if not options.output:
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # as in a file; a locale without a letter would lose it
        work.through(table, outputs.csv_rows(sys.stdout))
        return
    with files.replacing(options.output) as file, outputs.writing(file, options.output) as write:
        work.through(table, write)
    left = f", none for {terminal.rows(work.without)} with a missing feature" if work.without else ""
    predicted = terminal.number(len(table) - work.without)
    print(f"saved {predicted} predictions of {target.name!r}{left}: {options.output}")


class _Work:
    """Predictions for the parts of a table."""

    def __init__(self, options, predictor):
        self.options, self.predictor, self.without = options, predictor, 0

    def through(self, table, write):
        """Predict and write, a part after the other; then say what the table lacks."""
        ids = [table.find(name) for name in names_in(self.options.id)]
        lacks, needed = tabular.Lacks(), self.predictor.preprocessing.needed(table)
        for part in table.parts([name for name in table.names if name in {*needed, *ids}]):
            write(self._columns(part, ids, lacks))
        for remark in lacks.remarks(table.name):
            print(f"fastbp: {remark}", file=sys.stderr)

    def _columns(self, part, ids, lacks):
        preprocessing, target, model = self.predictor.preprocessing, self.predictor.target, self.predictor.model
        features = preprocessing.table(part, target.name, self.options.by_position)
        inputs = preprocessing.applied(features, model.dtype, lacks)
        used = [name for name in preprocessing.features if name in features.columns]
        gaps = features.incomplete(used) if self.options.drop_missing else np.zeros(len(part), bool)
        self.without += int(gaps.sum())
        columns = {name: part.columns[name] for name in ids}
        predicted = target.decoded(model.predict(inputs))
        columns[_free(target.name, columns)] = tabular.Column(predicted, gaps)
        if self.options.proba:
            for label, of_class in zip(target.classes, model.predict_proba(inputs).T, strict=True):
                columns[_free(f"p({label})", columns)] = tabular.Column(of_class, gaps)
        return columns


def _check_output(options):
    if not options.output.endswith(outputs.OUTPUTS):
        raise ValueError(f"--output {options.output}: expected a name ending in {', '.join(outputs.OUTPUTS)}")
    for used in (options.data, runs.model_path(options.model)):
        if os.path.exists(options.output) and os.path.exists(used) and os.path.samefile(options.output, used):
            raise ValueError(f"--output {options.output} would overwrite what is read: choose another name")


def _free(name, columns):
    """The name, or that of a prediction where another column is called so."""
    return f"{name} predicted" if name in columns else name
