"""Columns of Arrow as columns of a table: Parquet, Feather and Arrow files, JSON lines, frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .opening import name_of, stream
from .table import Column, Table, from_columns, listed


def imported() -> Any:
    """pyarrow with its parts; imported where a table is read."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.feather
        import pyarrow.json
        import pyarrow.parquet
    except ImportError:
        raise ImportError('reading tables needs pyarrow: pip install "fastbp[cli]"') from None
    return pyarrow


def read_parquet(source, path, content, dialect):
    """Read a Parquet file."""
    pa = imported()
    try:
        return from_arrow(name_of(path), pa.parquet.read_table(_arrow_file(content)))
    except pa.ArrowException as error:
        raise ValueError(f"{source} is not Parquet, or damaged: {error}") from None


def read_ipc(source, path, content, dialect):
    """Read a Feather or an Arrow file, or a stream of Arrow."""
    pa = imported()
    try:
        try:
            table = pa.feather.read_table(_arrow_file(content))
        except pa.ArrowInvalid:  # the format of streams
            with pa.input_stream(_arrow_file(content)) as stream:
                table = pa.ipc.open_stream(stream).read_all()
    except pa.ArrowException as error:
        raise ValueError(f"{source} is neither Feather nor Arrow, or damaged: {error}") from None
    return from_arrow(name_of(path), table)


def read_json(source, path, content, dialect):
    """Read JSON lines: an object a row."""
    pa = imported()
    try:
        return from_arrow(name_of(path), pa.json.read_json(stream(content)))
    except pa.ArrowException as error:
        raise ValueError(f"{source} must have one JSON object a line: {error}") from None


def _arrow_file(content):
    return imported().BufferReader(content) if isinstance(content, bytes) else content


def from_frame(frame: Any, name: str = "the frame") -> Table:
    """A table from a frame of pandas or polars, a table of Arrow, or a dict of columns.

    Raises
    ------
    ImportError
        Frames need pyarrow.
    TypeError
        A column has values of several kinds, or X is none of these.
    """
    if isinstance(frame, Table):
        return frame
    if isinstance(frame, dict):
        return from_columns(name, frame)
    pa = imported()
    try:
        return from_arrow(name, frame if isinstance(frame, pa.Table) else pa.table(frame))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(f"{name} has a column of several kinds: {error}") from None


def from_arrow(name, table, named=True, text=False):
    """Columns of Arrow as NumPy's, without pandas' index; ``text`` as of `Table`."""
    index = index_of_pandas(table.schema)
    names = table.column_names if named else [str(i) for i in range(table.num_columns)]
    refuse_twice(names)
    columns = zip(names, table.columns, strict=True)
    columns = {name: _column_of_arrow(name, values) for name, values in columns if name not in index}
    return Table(name, columns, named, text=text)


def index_of_pandas(schema: Any) -> list[str]:
    """The columns that pandas keeps its index in."""
    metadata = schema.pandas_metadata or {}
    return [column for column in metadata.get("index_columns", []) if isinstance(column, str)]


def refuse_twice(names: Sequence[str]) -> None:
    """Raise where two columns have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {twice!r}; columns are {listed(names)}")


def _plain_text(pa, values):
    """Text of polars in the layout of which Arrow can take some."""
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _column_of_arrow(name, values):
    pa = imported()
    types = pa.types
    if types.is_dictionary(values.type):
        chunks = [_plain_text(pa, chunk.dictionary).take(chunk.indices) for chunk in values.chunks]
        values = pa.chunked_array(chunks, pa.string() if not chunks else chunks[0].type)
    values = _plain_text(pa, values)
    missing = values.is_null().to_numpy().astype(bool)
    kind = values.type
    if types.is_null(kind):
        return Column(np.full(len(values), np.nan), missing)
    if types.is_string(kind) or types.is_large_string(kind):
        values = values.fill_null("")
        blank = pa.compute.equal(pa.compute.utf8_trim_whitespace(values), "")
        return Column(values.to_numpy(zero_copy_only=False).astype(object), blank.to_numpy().astype(bool))
    if types.is_boolean(kind):
        return Column(values.fill_null(False).to_numpy().astype(bool), missing)
    if types.is_temporal(kind) and not types.is_duration(kind) and not types.is_time(kind):
        moments = values.cast(pa.timestamp("us")) if types.is_date(kind) or kind.tz is None else values
        moments = moments.cast(pa.timestamp("us", kind.tz) if types.is_timestamp(kind) else pa.timestamp("us"))
        return Column(moments.to_numpy().astype("datetime64[us]"), missing)
    if types.is_time(kind) or types.is_duration(kind):  # in seconds
        unit = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        whole = pa.int32() if getattr(kind, "bit_width", 64) == 32 else pa.int64()
        return Column(values.cast(whole).cast(pa.int64()).fill_null(0).to_numpy() / unit, missing)
    if types.is_decimal(kind) or types.is_float16(kind):
        values, kind = values.cast(pa.float64()), pa.float64()
    if types.is_integer(kind) or types.is_floating(kind):
        array = values.fill_null(0).to_numpy()
        return Column(array, missing | ~np.isfinite(array) if array.dtype.kind == "f" else missing)
    raise ValueError(f"column {name!r} has values of type {kind}: leave it out (--drop {name}), or make numbers of it")
