"""Files and frames as tables. pyarrow reads text, Parquet, Arrow and JSON; NumPy reads NPZ.

What a file is follows from its name, and of standard input from its first bytes. Text is given to pyarrow with the
dialect that its first lines show: the separator, the quotes, and whether they begin with names.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import io
import lzma
import pathlib
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .table import Column, Table, from_columns, listed

SNIFFED = 1 << 16  # bytes of a text file that tell its dialect
SEPARATORS = ",;\t|"
TEXT, JSON = {".csv", ".tsv", ".txt", ".data", ".tab", ".psv"}, {".jsonl", ".ndjson", ".json"}
ARROW, PARQUET = {".feather", ".arrow", ".ipc"}, {".parquet", ".pq"}
DECOMPRESSORS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error
MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"PK": ".npz", b"{": ".jsonl", b"\0\0": ".idx"}
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
EXPECTED = "CSV, Parquet, Feather or Arrow, JSON lines, NPZ or IDX, also compressed"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How to read, beyond what the first lines show.

    Parameters
    ----------
    header : {"auto", "yes", "no"}
        Whether the first line of a text file names the columns.
    separator : str, optional
    decimal : str
        The decimal mark.
    thousands : str, optional
        What groups the digits of large numbers.
    na : tuple of str
        Texts that stand for a missing value, beside an empty one, NA, NaN, null, None and their like.
    encoding : str
    date_format : str, optional
        As of strptime, for dates that are not written as 2026-11-29.
    x_key, y_key : str
        Names of the features (n, …) and of the target (n,) in an NPZ file.
    """

    header: str = "auto"
    separator: str | None = None
    decimal: str = "."
    thousands: str | None = None
    na: tuple[str, ...] = ()
    encoding: str = "utf-8"
    date_format: str | None = None
    x_key: str = "X"
    y_key: str = "y"


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
        return _read_digits()
    path, content = _opened(source)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        table = _reader(suffixes, path.name)(source, path, content, dialect)
    except ValueError as error:
        raise error if str(error).startswith(source) else ValueError(f"{source}: {error}") from None
    if not table.columns or not len(table):
        raise ValueError(f"{source} has no rows")
    return table


def _reader(suffixes, name):
    kinds = set(suffixes)
    if ".npz" in kinds:
        return _read_npz
    if re.search(r"[.-]idx\d?(-ubyte)?\b", name.lower()):
        return _read_idx
    for found, reader in ((PARQUET, _read_parquet), (ARROW, _read_ipc), (JSON, _read_json), (TEXT, _read_text)):
        if kinds & found:
            return reader
    raise ValueError(f"expected a name that ends as {EXPECTED} do: .csv, .parquet, .feather, .jsonl or .npz")


def _opened(source):
    """(path that tells name and kind, path or bytes to read)."""
    if source == "-":
        content = sys.stdin.buffer.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        suffix = next((suffix for magic, suffix in MAGIC.items() if content.startswith(magic)), ".csv")
        return pathlib.Path("stdin" + suffix), content
    path = pathlib.Path(source)
    if not path.is_file():
        raise ValueError(f"no such file: {source} (DATA is a file: {EXPECTED}; or -, or: digits)")
    suffix = path.suffix.lower()
    try:
        if suffix in DECOMPRESSORS:
            with DECOMPRESSORS[suffix](path) as stream:
                return path.with_suffix(""), stream.read()
        if suffix in (".zst", ".lz4"):
            with _pyarrow().input_stream(path) as stream:
                return path.with_suffix(""), stream.read()
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [entry for entry in archive.namelist() if not entry.endswith("/")]
                if len(members) != 1:
                    raise ValueError(f"{source} must have one file, it has {listed(members) or 'none'}")
                return pathlib.Path(members[0]), archive.read(members[0])
    except DAMAGED as error:
        raise ValueError(f"{source} cannot be decompressed: {error}") from None
    return path, path


def _stream(content):
    return io.BytesIO(content) if isinstance(content, bytes) else content


def _name(path):
    return path.name.split(".")[0] or "table"


def _read_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits come with scikit-learn: pip install "fastbp[cli]"') from None
    digits = load_digits()
    columns = dict(zip(digits.feature_names, digits.data.T, strict=True))
    return from_columns("digits", columns | {"digit": digits.target})


# ---------------------------------------------------------------------------------------- Arrow
def _pyarrow():
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


def _read_parquet(source, path, content, dialect):
    pa = _pyarrow()
    try:
        return _from_arrow(_name(path), pa.parquet.read_table(_arrow_file(content)))
    except pa.ArrowException as error:
        raise ValueError(f"{source} is not Parquet, or damaged: {error}") from None


def _read_ipc(source, path, content, dialect):
    pa = _pyarrow()
    try:
        try:
            table = pa.feather.read_table(_arrow_file(content))
        except pa.ArrowInvalid:  # the format of streams
            with pa.input_stream(_arrow_file(content)) as stream:
                table = pa.ipc.open_stream(stream).read_all()
    except pa.ArrowException as error:
        raise ValueError(f"{source} is neither Feather nor Arrow, or damaged: {error}") from None
    return _from_arrow(_name(path), table)


def _read_json(source, path, content, dialect):
    pa = _pyarrow()
    try:
        return _from_arrow(_name(path), pa.json.read_json(_stream(content)))
    except pa.ArrowException as error:
        raise ValueError(f"{source} must have one JSON object a line: {error}") from None


def _arrow_file(content):
    return _pyarrow().BufferReader(content) if isinstance(content, bytes) else content


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
    pa = _pyarrow()
    try:
        return _from_arrow(name, frame if isinstance(frame, pa.Table) else pa.table(frame))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(f"{name} has a column of several kinds: {error}") from None


def _from_arrow(name, table, named=True):
    """Columns of Arrow as NumPy's, without pandas' index."""
    metadata = table.schema.pandas_metadata or {}
    index = [column for column in metadata.get("index_columns", []) if isinstance(column, str)]
    names = table.column_names if named else [str(i) for i in range(table.num_columns)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {twice!r}; columns are {listed(names)}")
    columns = zip(names, table.columns, strict=True)
    columns = {name: _column_of_arrow(name, values) for name, values in columns if name not in index}
    return Table(name, columns, named)


def _plain_text(pa, values):
    """Text of polars in the layout of which Arrow can take some."""
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _column_of_arrow(name, values):
    pa = _pyarrow()
    types = pa.types
    if types.is_dictionary(values.type):
        chunks = [_plain_text(pa, chunk.dictionary).take(chunk.indices) for chunk in values.chunks]
        values = pa.chunked_array(chunks, pa.string() if not chunks else chunks[0].type)
    missing = values.is_null().to_numpy().astype(bool)
    kind = values.type
    if types.is_null(kind):
        return Column(np.full(len(values), np.nan), missing)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return Column(values.fill_null("").to_numpy(zero_copy_only=False).astype(object), missing)
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


# ----------------------------------------------------------------------------------------- text
def _read_text(source, path, content, dialect):
    pa = _pyarrow()
    names, separator, quote, padded = _sniffed(source, content, dialect)
    if dialect.decimal == separator:
        raise ValueError(f"{source} has {separator!r} between its columns: that cannot be --decimal too")
    parse = pa.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=True)
    defaults = pa.csv.ConvertOptions()
    formats = [dialect.date_format] if dialect.date_format else []

    def read_csv(**more):
        convert = pa.csv.ConvertOptions(
            null_values=[*defaults.null_values, "None", *dialect.na],
            strings_can_be_null=True,
            true_values=[],  # truth values stay as they are written; `Preprocessing` knows them
            false_values=[],
            decimal_point=dialect.decimal,
            timestamp_parsers=[pa.csv.ISO8601, *formats],
            **more,
        )
        reading = pa.csv.ReadOptions(autogenerate_column_names=names is None, encoding=dialect.encoding)
        return pa.csv.read_csv(_stream(content), read_options=reading, parse_options=parse, convert_options=convert)

    try:
        table = read_csv()
        whole = [field.name for field in table.schema if pa.types.is_integer(field.type)]
        if whole and len(set(table.column_names)) == table.num_columns:  # numbers that begin with 0 are codes
            written = read_csv(include_columns=whole, column_types=dict.fromkeys(whole, pa.string()))
            for name in whole:
                if pa.compute.any(pa.compute.match_substring_regex(written[name], r"^\s*[+-]?0\d")).as_py():
                    table = table.set_column(table.column_names.index(name), name, written[name])
    except pa.ArrowException as error:
        if "UTF8" in str(error) or "UTF-8" in str(error):
            raise _wrong_encoding(source, dialect) from None
        raise ValueError(f"{source}: {error}") from None
    except UnicodeError:
        raise _wrong_encoding(source, dialect) from None
    if any(pa.types.is_binary(field.type) for field in table.schema):  # what pyarrow makes of it
        raise _wrong_encoding(source, dialect)
    if names is not None:
        table = table.rename_columns([name.strip() or f"column {i}" for i, name in enumerate(names)])
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(i, field.name, _text_column(table.column(i), dialect, padded))
    return _from_arrow(_name(path), table, names is not None)


def _text_column(values, dialect, padded):
    """Text without the blanks around it where the file has them, and as numbers where digits are grouped."""
    pa = _pyarrow()
    if padded:
        values = pa.compute.utf8_trim_whitespace(values)
        if dialect.na:
            gone = pa.compute.is_in(values, value_set=pa.array(dialect.na, pa.string()))
            values = pa.compute.if_else(gone, pa.scalar(None, pa.string()), values)
    if not dialect.thousands:
        return values
    group, decimal = re.escape(dialect.thousands), re.escape(dialect.decimal)
    grouped = pa.compute.match_substring_regex(
        values, rf"^\s*[+-]?\d{{1,3}}({group}\d{{3}})*({decimal}\d*)?\s*$|^[+-]?\d+({decimal}\d*)?$"
    )
    if not pa.compute.all(grouped).as_py():
        return values
    plain = pa.compute.replace_substring(values, dialect.thousands, "")
    plain = pa.compute.utf8_trim_whitespace(pa.compute.replace_substring(plain, dialect.decimal, "."))
    return plain.cast(pa.float64())


def _wrong_encoding(source, dialect):
    return ValueError(f"{source} is not text in {dialect.encoding}: name its encoding, as in --encoding latin-1")


def _sniffed(source, content, dialect):
    """(names or None, separator, quote, whether blanks follow the separators), as the first lines show them."""
    if isinstance(content, bytes):
        head = content[:SNIFFED]
    else:
        with open(content, "rb") as file:
            head = file.read(SNIFFED)
    try:
        decoder = io.IncrementalNewlineDecoder(None, True)
        text = decoder.decode(_decoded(head, dialect.encoding))
    except UnicodeError:
        raise _wrong_encoding(source, dialect) from None
    except LookupError:
        raise ValueError(f"--encoding {dialect.encoding}: no such encoding") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{source} has no rows")
    separator = dialect.separator or max(SEPARATORS, key=re.sub(r'"[^"]*"', "", lines[0]).count)
    quote = '"'
    if '"' not in text and re.search(rf"(^|{re.escape(separator)})'[^'\n]*'({re.escape(separator)}|$)", lines[-1]):
        quote = "'"
    if len(head) == SNIFFED:
        text = text[: text.rindex("\n")] if "\n" in text else text
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator, quotechar=quote) if row]
    first, rest = rows[0], rows[1:]
    padded = len(first) > 1 and all(field.startswith(" ") for field in first[1:])
    named = dialect.header == "yes" or (dialect.header == "auto" and _names_columns(first, rest, dialect))
    return (first if named else None), separator, quote, padded


def _decoded(head, encoding):
    import codecs

    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    return codecs.getincrementaldecoder(encoding)().decode(head)


def _names_columns(first, rest, dialect):
    """Whether the first row has names: no number at all, 0 … n - 1, or text above a column of numbers."""
    numbers = [_is_number(field, dialect) for field in first]
    if not any(numbers) or (
        len(first) > 1 and [field.strip() for field in first] == [str(i) for i in range(len(first))]
    ):
        return True
    missing = {"", "na", "nan", "null", "none", "n/a", *dialect.na}
    for i, is_number in enumerate(numbers):
        below = [row[i] for row in rest if len(row) > i and row[i].strip().lower() not in missing]
        text_above = not is_number and first[i].strip().lower() not in missing
        if text_above and below and all(_is_number(field, dialect) for field in below):
            return True
    return False


def _is_number(text, dialect):
    if dialect.thousands:
        text = text.replace(dialect.thousands, "")
    try:
        float(text.replace(dialect.decimal, "."))
    except ValueError:
        return False
    return "_" not in text


# --------------------------------------------------------------------------------------- arrays
def _read_npz(source, path, content, dialect):
    try:
        with np.load(_stream(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DAMAGED as error:
        raise ValueError(f"{source} is not an NPZ file, or damaged: {error}") from None
    except ValueError:
        raise ValueError(f"{source} is not an NPZ file, or has arrays of objects, which would need pickle") from None
    x, y = arrays.get(dialect.x_key), arrays.get(dialect.y_key)
    if x is None:
        if dialect.x_key != "X" or any(array.ndim != 1 for array in arrays.values()) or set(arrays) == {dialect.y_key}:
            raise ValueError(f"{source} has no array {dialect.x_key!r} (--x-key); arrays are {listed(list(arrays))}")
        return from_columns(_name(path), arrays, target=dialect.y_key if dialect.y_key in arrays else "-1")
    if x.ndim < 2:
        raise ValueError(f"{source}: {dialect.x_key} has shape {x.shape}; expected (rows, features)")
    x = x.reshape(len(x), -1)
    names = arrays.get("columns")
    if names is not None and names.shape != (x.shape[1],):
        raise ValueError(
            f"{source}: columns has shape {names.shape}; expected a name for each of {x.shape[1]} features"
        )
    columns = dict(zip(map(str, range(x.shape[1]) if names is None else names.tolist()), x.T, strict=True))
    if y is None:
        return from_columns(_name(path), columns, names is not None, None)
    if y.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"{source}: {dialect.y_key} has shape {y.shape}; expected ({len(x)},), one value a row of {dialect.x_key}"
        )
    return from_columns(_name(path), columns | {dialect.y_key: y.ravel()}, names is not None, dialect.y_key)


def _read_idx(source, path, content, dialect):
    """Images (n, …) of an IDX file, with the labels of the file beside it: images-idx3 and labels-idx1."""
    x = _idx(source, content if isinstance(content, bytes) else content.read_bytes())
    if x.ndim < 2:
        raise ValueError(f"{source} has labels alone: give the file of the images, whose labels are then found")
    columns = {str(i): column for i, column in enumerate(x.reshape(len(x), -1).T)}
    beside = pathlib.Path(source)
    beside = beside.with_name(re.sub(r"idx\d", "idx1", beside.name.replace("images", "labels")))
    if beside.name == pathlib.Path(source).name or not beside.is_file():
        return from_columns(_name(path), columns, False, None)
    found, labels = _opened(str(beside))
    y = _idx(str(beside), labels if isinstance(labels, bytes) else found.read_bytes())
    if y.shape != (len(x),):
        raise ValueError(f"{beside} has shape {y.shape}; expected ({len(x)},), a label for each image of {source}")
    return from_columns(_name(path), columns | {"label": y}, False, "label")


def _idx(source, data):
    """The array of an IDX file: two zeros, type, dimensions, their sizes as big-endian int32, the values."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"{source} is not an IDX file")
    sizes = np.frombuffer(data, ">i4", data[3], 4) if len(data) >= 4 + 4 * data[3] else np.array([-1])
    dtype = np.dtype(IDX_TYPES[data[2]])
    if len(data) != 4 + 4 * data[3] + dtype.itemsize * int(np.prod(sizes, dtype=np.int64)):
        raise ValueError(f"{source} is an IDX file of another length than its header says: damaged")
    return np.frombuffer(data, dtype, offset=4 + 4 * data[3]).reshape(sizes).astype(dtype.newbyteorder("="))
