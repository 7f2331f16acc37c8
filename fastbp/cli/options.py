"""Options that several commands have, and what is done with them."""

import argparse
import os
import sys

from .. import backend, tabular
from ..kernels.layout import PRECISIONS


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def names_in(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def add_reading(parser):
    """How a table is read."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the first line of a CSV has names (%(default)s)",
    )
    group.add_argument("--separator", metavar="S", help="between the columns of a CSV (default: by its first line)")
    group.add_argument("--decimal", metavar="D", default=".", help="the decimal mark (%(default)s)")
    group.add_argument("--thousands", metavar="T", help="what groups the digits of large numbers, as in 251,945")
    group.add_argument(
        "--na", metavar="TEXTS", default="", help="texts that stand for a missing value, separated by commas, as: ?,-"
    )
    group.add_argument("--encoding", default="utf-8", help="of a CSV, as latin-1 (%(default)s)")
    group.add_argument("--date-format", metavar="F", help="of dates that are not as 2026-11-29, as %%d/%%m/%%Y")
    group.add_argument("--x-key", default="X", help="features in an NPZ file (%(default)s)")
    group.add_argument("--y-key", default="y", help="target in an NPZ file (%(default)s)")


def open_table(options) -> tabular.Table | tabular.Stored:
    """The table DATA, without the columns to leave out; one that can be read by parts stays in its file."""
    dropped = names_in(getattr(options, "drop", ""))
    dialect = tabular.Dialect(
        header=options.header,
        separator={"\\t": "\t", "tab": "\t"}.get(options.separator, options.separator),
        decimal=options.decimal,
        thousands=options.thousands,
        na=tuple(names_in(options.na)),
        encoding=options.encoding,
        date_format=options.date_format,
        x_key=options.x_key,
        y_key=options.y_key,
    )
    if tabular.stays_in_its_file(options.data):
        dialect.refuse_elsewhere(options.data)
        return tabular.Stored(options.data).without(dropped)
    return tabular.read(options.data, dialect).without(dropped)


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
        help="of products in float32: bf16 and bf16x3, with --device cuda tf32 too (%(default)s: the dtype's)",
    )
    parser.add_argument("--threads", type=positive, help="workers (default: what the machine has)")


def use_threads(options):
    """As many workers as asked for; more than there are cores are said to be so."""
    if options.threads is not None:
        backend.set_num_threads(options.threads)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if cores and options.threads > cores:
            print(f"fastbp: {options.threads} threads on {cores} cores are slower than {cores}", file=sys.stderr)


def add_model_and_data(parser):
    """A trained model, and the table that it is used on."""
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a run, or a model file")
    parser.add_argument("data", metavar="DATA", help="a table in a file, - for standard input, or: digits")
    parser.add_argument(
        "--by-position", action="store_true", help="take columns without names in the order of training"
    )
    add_reading(parser)
    add_machine(parser)
