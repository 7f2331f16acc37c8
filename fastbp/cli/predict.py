"""``fastbp predict``: what a trained model says of a table."""

import contextlib
import csv
import os
import sys

import numpy as np

from .. import losses
from . import runs, terminal
from .options import add_model_and_data, read_table, use_threads


def add_options(parser):
    """The output, the model and the data."""
    parser.add_argument("-o", "--output", metavar="OUT", help="CSV or NPZ file (default: CSV to the terminal)")
    parser.add_argument("--proba", action="store_true", help="also the probability of each class")
    add_model_and_data(parser)


def run(options):
    """Predict, into a file or to the terminal."""
    use_threads(options)
    network, preprocessing = runs.load(options.model, options.device, options.precision)
    if options.proba and preprocessing.task != "classification":
        raise ValueError(f"--proba is for classes, and {options.model} predicts the number {preprocessing.target!r}")
    if options.output:
        _check_output(options)
    table = read_table(options)
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
