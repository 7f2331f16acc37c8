"""A table: named columns of equal length, each with a mask of the values that are missing; and its split."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
PARTS = ("train", "valid", "test")
PART_VALUES = 1 << 21  # of a table that is worked on by parts: 16 MiB as float64
KINDS = {"f": "number", "i": "number", "u": "number", "b": "boolean", "M": "date", "O": "text"}


@dataclasses.dataclass(frozen=True)
class Column:
    """The values of one column.

    Parameters
    ----------
    values : array (n,)
        Numbers, truth values, ``datetime64[us]``, or text in an array of objects. Where a value is missing, anything.
    missing : bool array (n,)
        Where there is no value; a number that is not finite is none, and neither is text of blanks alone.
    """

    values: Array
    missing: Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def kind(self) -> str:
        """``"number"``, ``"boolean"``, ``"date"`` or ``"text"``."""
        return KINDS[self.values.dtype.kind]

    @property
    def present(self) -> Array:
        """The values that are there."""
        return self.values[~self.missing]

    def take(self, rows: Array | slice) -> Column:
        """The column of some rows, by number or by mask."""
        return Column(self.values[rows], self.missing[rows])

    def numbers(self) -> Array:
        """As float64, NaN where a value is missing; of numbers and truth values only."""
        return np.where(self.missing, np.nan, self.values).astype(np.float64)

    def texts(self) -> Array:
        """As text, in an array of objects; a whole number has no decimal point."""
        if self.kind == "text":
            return self.values
        return np.array([text_of(value) for value in self.values.tolist()], object)


class Source(Protocol):
    """What errors tell of a table: its rows by number, and how to have its values read otherwise."""

    @property
    def text(self) -> bool:
        """Whether it was read from text with separators, in a `Dialect`."""
        ...

    def number(self, row: int) -> int:
        """The number of a row, from 1, in the source."""
        ...


class Whole:
    """The source of values that are all there is."""

    text = False

    def number(self, row: int) -> int:
        """The number of a row, from 1."""
        return row + 1


WHOLE: Source = Whole()


def positions(texts: Array, of: Mapping[str, int]) -> Array:
    """What stands for each text, -1 for one that has nothing; int64 array (n,)."""
    return np.fromiter((of.get(text, -1) for text in texts.tolist()), np.int64, len(texts))


def text_of(value: Any) -> str:
    """A value as text: ``"3"`` for 3.0, ``"true"`` for True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def column(name: str, values: Any) -> Column:
    """A column from an array or a sequence.

    Raises
    ------
    TypeError
        The values are neither numbers, truth values, dates nor text, or several of these.
    """
    array = values if isinstance(values, np.ndarray) else _array(values)
    if array.ndim != 1:
        raise ValueError(f"column {name!r} must be one-dimensional, got shape {array.shape}")
    if array.dtype.kind == "O":
        return _from_objects(name, array)
    if array.dtype.kind in "US":
        return Column(array.astype(str).astype(object), np.char.strip(array.astype(str)) == "")
    if array.dtype.kind == "M":
        return Column(array.astype("datetime64[us]"), np.isnat(array))
    if array.dtype.kind not in "fiub":
        raise TypeError(f"column {name!r} must have numbers, truth values, dates or text, got dtype {array.dtype}")
    return Column(array, ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(len(array), bool))


def _array(values):
    values = list(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _is_gap(item):
    if isinstance(item, str):
        return not item.strip()
    return item is None or item != item or str(item) in ("NaT", "<NA>")


def _from_objects(name, array):
    items = array.tolist()
    missing = np.array([_is_gap(item) for item in items], bool)
    there = [item for item, gone in zip(items, missing, strict=True) if not gone]
    for types, dtype, fill in (
        ((bool, np.bool_), bool, False),
        ((int, float, np.integer, np.floating, decimal.Decimal), np.float64, np.nan),
        ((datetime.date, np.datetime64), "datetime64[us]", np.datetime64("NaT")),
        ((str,), object, ""),
    ):
        if all(isinstance(item, types) for item in there):
            if dtype is np.float64 and all(isinstance(item, int | np.integer) for item in there):
                dtype, fill = np.int64, 0
            values = np.full(len(items), fill, dtype)
            if there:
                values[~missing] = there
            return Column(values, missing if dtype is not np.float64 else ~np.isfinite(values))
    kinds = sorted({type(item).__name__ for item in there})
    raise TypeError(f"column {name!r} must have values of one kind, got {', '.join(kinds)}")


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, in order.

    Parameters
    ----------
    name : str
        What the data is called; runs are named after it.
    columns : dict of str to Column
    named : bool
        False where the source has no names, so that a column is called by its position.
    target : str or None
        The column to predict when none is asked for, by name or by index.
    numbers : int array (n,), optional
        Which rows of its source these are, where they are not all.
    text : bool
        Whether it was read from text with separators, in a `Dialect`.
    """

    name: str
    columns: dict[str, Column]
    named: bool
    target: str | None = "-1"
    numbers: Array | None = None
    text: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def names(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self.columns)

    def number(self, row: int) -> int:
        """The number of a row, from 1, in its source."""
        return 1 + (row if self.numbers is None else int(self.numbers[row]))

    def find(self, column: str) -> str:
        """The name of a column given by name or by index (negative: from the end)."""
        return found(self.name, self.names, column)

    def without(self, columns: Iterable[str]) -> Table:
        """The table less some columns, given by name or by index."""
        dropped = {self.find(column) for column in columns}
        return dataclasses.replace(self, columns={k: v for k, v in self.columns.items() if k not in dropped})

    def take(self, rows: Array | slice) -> Table:
        """The table of some rows, by number or by mask."""
        numbers = (np.arange(len(self)) if self.numbers is None else self.numbers)[rows]
        return dataclasses.replace(self, columns={k: v.take(rows) for k, v in self.columns.items()}, numbers=numbers)

    def parts(self, names: Sequence[str] | None = None) -> Iterator[Table]:
        """The table as consecutive parts, of all columns or of some; nothing is copied."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        columns = {name: self.columns[name] for name in (self.columns if names is None else names)}
        table = dataclasses.replace(self, columns=columns, numbers=numbers)
        size = max(1, PART_VALUES // max(1, len(columns)))
        for start in range(0, len(self), size):
            yield table.take(slice(start, start + size))

    def column(self, name: str) -> Column:
        """A column."""
        return self.columns[name]

    def loaded(self, names: Sequence[str] | None = None) -> Table:
        """The table, of all columns or of some."""
        columns = {name: self.columns[name] for name in (self.columns if names is None else names)}
        return dataclasses.replace(self, columns=columns)

    def incomplete(self, columns: Iterable[str]) -> Array:
        """The rows in which a value of these columns is missing, as a mask."""
        found = np.zeros(len(self), bool)
        for name in columns:
            found |= self.columns[name].missing
        return found


def found(table: str, names: Sequence[str], column: str) -> str:
    """The name of a column given by name or by index (negative: from the end)."""
    if column in names:
        return column
    try:
        return names[int(column)]
    except (ValueError, IndexError):
        raise ValueError(f"column {column!r} not found in {table}; columns are {listed(names)}") from None


def from_columns(name: str, columns: Mapping[str, Any], named: bool = True, target: str | None = "-1") -> Table:
    """A table from arrays or sequences by name."""
    made = {str(key): column(str(key), values) for key, values in columns.items()}
    lengths = {len(values) for values in made.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns must have one length, got {sorted(lengths) or 'none'}")
    return Table(name, made, named, target)


def listed(names: Sequence[Any], most: int = 12) -> str:
    """Names separated by commas, of many the first."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


# ------------------------------------------------------------------------------------ splitting
def split(strata: Array, fractions: Sequence[float], seed: int) -> dict[str, Array]:
    """Rows of the three parts, drawn at random within each stratum.

    Parameters
    ----------
    strata : array (n,)
        Rows of equal value are divided in the same proportions: the class labels, or zeros.
    fractions : sequence of three floats
        For training, early stopping and the final test.
    seed : int

    Returns
    -------
    dict of str to int64 array
        Sorted row numbers under ``"train"``, ``"valid"``, ``"test"``.
    """
    rng = np.random.default_rng(seed)
    shares = np.cumsum(fractions) / np.sum(fractions)
    pieces: dict[str, list[Array]] = {part: [] for part in PARTS}
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        cuts = np.rint(shares[:-1] * len(rows)).astype(int)
        for part, piece in zip(PARTS, np.split(rows, cuts), strict=True):
            pieces[part].append(piece)
    parts = {part: np.sort(np.concatenate(of_part)) for part, of_part in pieces.items()}
    for part, rows in parts.items():
        if not len(rows):
            raise ValueError(f"{len(strata)} rows are too few: none is left for the {part} part of the split")
    return parts
