"""Where predictions go, by parts of a table: CSV, Parquet, Feather, NPZ."""

import contextlib
import csv
import io

import numpy as np

OUTPUTS = (".csv", ".parquet", ".feather", ".npz")


@contextlib.contextmanager
def writing(file, output):
    """A function that writes columns (a dict of `Column`) after those before, into a file of the kind of a name."""
    made = {".csv": _csv, ".npz": _npz}.get(output[output.rindex(".") :], _arrow)
    with made(file, output) as write:
        yield write


@contextlib.contextmanager
def _csv(file, output):
    text = io.TextIOWrapper(file, newline="", encoding="utf-8")
    yield csv_rows(text)
    text.detach()


def csv_rows(text):
    """A function that writes columns to a stream of text, a line for each row; nothing where there is no value."""
    writer, named = csv.writer(text, lineterminator="\n"), False

    def write(columns):
        nonlocal named
        if not named:
            writer.writerow(columns)
            named = True
        for row in zip(*map(_as_text, columns.values()), strict=True):
            writer.writerow(row)

    return write


def _as_text(column):
    values = column.values.astype(str) if column.values.dtype.kind == "M" else column.values
    texts = [f"{value:.8g}" if isinstance(value, float) else value for value in values.tolist()]
    for row in np.flatnonzero(column.missing):
        texts[row] = None
    return texts


@contextlib.contextmanager
def _arrow(file, output):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('writing Parquet and Feather needs pyarrow: pip install "fastbp[cli]"') from None
    with contextlib.ExitStack() as opened:
        writer = None

        def write(columns):
            nonlocal writer
            arrays = {name: pyarrow.array(one.values, mask=one.missing) for name, one in columns.items()}
            table = pyarrow.table(arrays)
            if writer is None:
                if output.endswith(".parquet"):
                    writer = opened.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
                else:
                    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
                    writer = opened.enter_context(pyarrow.ipc.new_file(file, table.schema, options=options))
            writer.write_table(table)

        yield write


@contextlib.contextmanager
def _npz(file, output):
    parts = []
    yield parts.append
    gaps = [name for name in parts[0] if any(part[name].missing.any() for part in parts)]
    if gaps:
        raise ValueError(f"{output}: NPZ cannot hold the gaps of {', '.join(gaps)}; choose .csv or .parquet")
    columns = {name: np.concatenate([part[name].values for part in parts]) for name in parts[0]}
    np.savez(file, **{name: of.astype(str) if of.dtype.kind == "O" else of for name, of in columns.items()})
