"""Text with separators as a table: pyarrow reads it in the dialect that its first lines show."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

from .arrow import from_arrow, imported
from .opening import name_of, stream

SNIFFED = 1 << 16  # bytes of a text file that tell its dialect
SEPARATORS = ",;\t|"


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

    def refuse_elsewhere(self, source: str) -> None:
        """Refuse what is said of text where a file is none: its values have types, and would not be read by it."""
        said = [
            "--" + field.name.replace("_", "-")
            for field in dataclasses.fields(self)
            if field.name not in ("x_key", "y_key") and getattr(self, field.name) != field.default
        ]
        if said:
            raise ValueError(
                f"{source} is no text with separators, whose values would be read by {', '.join(said)}; leave that "
                f"out, and write the column in the file as what it is"
            )


def read_text(source, path, content, dialect):
    """Read text with a separator between its columns, which is found out where it is not given."""
    pa = imported()
    names, separator, quote, padded = _sniffed(source, content, dialect)
    if dialect.decimal == separator:
        raise ValueError(f"{source} has {separator!r} between its columns: that cannot be --decimal too")
    parse = pa.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=True)
    defaults = pa.csv.ConvertOptions()
    formats = [dialect.date_format] if dialect.date_format else []
    gaps = [*defaults.null_values, "None", *dialect.na]

    def read_csv(**more):
        convert = pa.csv.ConvertOptions(
            null_values=gaps,
            strings_can_be_null=True,
            true_values=[],  # truth values stay as they are written; `Preprocessing` knows them
            false_values=[],
            decimal_point=dialect.decimal,
            timestamp_parsers=[pa.csv.ISO8601, *formats],
            **more,
        )
        reading = pa.csv.ReadOptions(autogenerate_column_names=names is None, encoding=dialect.encoding)
        return pa.csv.read_csv(stream(content), read_options=reading, parse_options=parse, convert_options=convert)

    try:
        table = read_csv()
        blanks = _gaps_with_blanks(table, gaps)
        if blanks:
            gaps += blanks
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
    return from_arrow(name_of(path), table, names is not None, text=True)


def _gaps_with_blanks(table, gaps):
    """Texts of the table that stand for a missing value but for the blanks around them, and blanks alone."""
    pa, found = imported(), set()
    known = pa.array(["", *gaps], pa.string())
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = table.column(i).unique().drop_null()
            blank = pa.compute.is_in(pa.compute.utf8_trim_whitespace(texts), value_set=known)
            found.update(texts.filter(blank).to_pylist())
    return sorted(found - set(gaps))


def _text_column(values, dialect, padded):
    """Text without the blanks around it where the file has them, and as numbers where digits are grouped."""
    pa = imported()
    if padded:
        values = pa.compute.utf8_trim_whitespace(values)
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
