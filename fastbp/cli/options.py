"""Options that several commands have, and what is done with them."""

import argparse

from .. import backend, tabular
from ..kernels.layout import PRECISIONS


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def add_reading(parser):
    """How a table is read."""
    parser.add_argument(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the first line of a CSV has names (%(default)s)",
    )
    parser.add_argument("--x-key", default="X", help="features in an NPZ file (%(default)s)")
    parser.add_argument("--y-key", default="y", help="target in an NPZ file (%(default)s)")


def read_table(options) -> tabular.Table:
    """The table DATA, without the columns and rows to leave out."""
    table = tabular.read(options.data, header=options.header, x_key=options.x_key, y_key=options.y_key)
    table = table.without(filter(None, getattr(options, "drop", "").split(",")))
    return table.without_missing_rows() if options.drop_missing else table


def add_device(parser):
    """The device alone."""
    parser.add_argument("--device", choices=backend.MODULES, default="cpu", help="where to compute (%(default)s)")


def add_machine(parser):
    """Device, precision and threads."""
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="ieee",
        help="what factors of products are rounded to, with --device cuda (%(default)s: nothing)",
    )
    parser.add_argument("--threads", type=positive, help="workers (default: what the machine has)")


def use_threads(options):
    """As many workers as asked for."""
    if options.threads is not None:
        backend.set_num_threads(options.threads)


def add_model_and_data(parser):
    """A trained model, and the table that it is used on."""
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a run, or a model file")
    parser.add_argument("data", metavar="DATA", help="CSV, Parquet or NPZ file, or: digits")
    parser.add_argument("--drop-missing", action="store_true", help="leave out rows with missing values")
    add_reading(parser)
    add_machine(parser)
