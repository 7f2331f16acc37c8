"""Files as tables. pyarrow reads text, Parquet, Arrow and JSON; NumPy reads NPZ and IDX.

What a file is follows from its name, and of standard input from its first bytes.
"""

from __future__ import annotations

import re

from .arrays import read_idx, read_npz
from .arrow import read_ipc, read_json, read_parquet
from .opening import ARROW, EXPECTED, PARQUET, opened
from .table import Table, from_columns
from .text import Dialect, read_text

TEXT, JSON = {".csv", ".tsv", ".txt", ".data", ".tab", ".psv"}, {".jsonl", ".ndjson", ".json"}


def read(source: str, dialect: Dialect | None = None) -> Table:
    """Read a file as a table.

    Parameters
    ----------
    source : str
        ``"digits"``, ``"-"`` for standard input, or a path: text with a separator, Parquet, Feather or Arrow, JSON
        lines, NPZ or IDX; compressed by gzip, bzip2, xz, Zstandard or in a zip archive of one file.
    dialect : Dialect, optional

    Raises
    ------
    ValueError
        There is no such file, it is no table, or it is damaged.
    ImportError
        Reading it needs pyarrow.
    """
    dialect = dialect or Dialect()
    if source == "digits":
        dialect.refuse_elsewhere(source)
        return _read_digits()
    path, content = opened(source)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        reader = _reader(suffixes, path.name)
        if reader is not read_text:
            dialect.refuse_elsewhere(source)
        table = reader(source, path, content, dialect)
    except ValueError as error:
        raise error if str(error).startswith(source) else ValueError(f"{source}: {error}") from None
    if not table.columns or not len(table):
        raise ValueError(f"{source} has no rows")
    return table


def _reader(suffixes, name):
    kinds = set(suffixes)
    if ".npz" in kinds:
        return read_npz
    if re.search(r"[.-]idx\d?(-ubyte)?\b", name.lower()):
        return read_idx
    for found, reader in ((PARQUET, read_parquet), (ARROW, read_ipc), (JSON, read_json), (TEXT, read_text)):
        if kinds & found:
            return reader
    raise ValueError(f"expected a name that ends as {EXPECTED} do: .csv, .parquet, .feather, .jsonl or .npz")


def _read_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits come with scikit-learn: pip install "fastbp[cli]"') from None
    digits = load_digits()
    columns = dict(zip(digits.feature_names, digits.data.T, strict=True))
    return from_columns("digits", columns | {"digit": digits.target})
