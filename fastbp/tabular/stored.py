"""Tables that stay in their files and are read by parts: Parquet, Feather and Arrow, arrays of NumPy.

Of Parquet the row groups that hold the rows are read, of Arrow the record batches, of a mapped array the pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .arrow import from_arrow, imported, index_of_pandas, refuse_twice
from .opening import ARROW, PARQUET, name_of
from .table import PART_VALUES, Array, Column, Table, found, from_columns

NPY = ".npy"


def stays_in_its_file(source: str | os.PathLike[str]) -> bool:
    """Whether `Stored` takes a file: one of Parquet, of Arrow with its batches listed at the end, or of NumPy."""
    path = pathlib.Path(source)
    if not path.is_file():
        return False
    if path.suffix.lower() in ARROW:  # the format of streams has no list of its batches
        with open(path, "rb") as file:
            return file.read(6) == b"ARROW1"
    return path.suffix.lower() in PARQUET | {NPY}


@dataclasses.dataclass(frozen=True, init=False)
class Stored:
    """A table that is read by parts, so that it may be larger than memory.

    It has the names and methods of a `Table`, but for ``columns``: `column` reads one, `loaded` all.

    Parameters
    ----------
    source : str, path, array (n, columns), or dict of arrays (n,)
        A file of Parquet, of Feather or Arrow, or of NumPy (``.npy``), which is mapped; or memory maps.
    name : str, optional
        What the data is called, by default after its file.

    Raises
    ------
    ValueError
        The file is not there, is none of these, or is damaged; or two columns have one name.
    ImportError
        Parquet, Feather and Arrow need pyarrow.
    """

    name: str
    named: bool
    target: str | None
    names: list[str]
    source: Any
    chosen: range | Array
    text: bool = False

    def __init__(self, source: str | os.PathLike[str] | Array | Mapping[str, Array], name: str | None = None) -> None:
        path = None if isinstance(source, np.ndarray | Mapping) else pathlib.Path(source)
        if path is not None and not stays_in_its_file(path):
            raise ValueError(f"{source} must be a file of Parquet, Feather, Arrow or NumPy that ends as these do")
        if path is None or path.suffix.lower() == NPY:
            opened: Any = _Arrays(source if path is None else _mapped(path))
        else:
            opened = (_Parquet if path.suffix.lower() in PARQUET else _Batches)(path)
        if not opened.rows or not opened.names:
            raise ValueError(f"{'the array' if path is None else path} has no rows")
        values = {
            "name": name or ("array" if path is None else name_of(path)),
            "named": opened.named,
            "target": "-1",
            "names": opened.names,
            "source": opened,
            "chosen": range(opened.rows),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.chosen)

    def find(self, column: str) -> str:
        """The name of a column given by name or by index (negative: from the end)."""
        return found(self.name, self.names, column)

    def without(self, columns: Iterable[str]) -> Stored:
        """The table less some columns, given by name or by index."""
        dropped = {self.find(column) for column in columns}
        return self._with(names=[name for name in self.names if name not in dropped])

    def rows(self, start: int, stop: int) -> Stored:
        """The table of the rows from ``start`` to before ``stop``; nothing of the others is read but to skip them."""
        return self._with(chosen=self.chosen[start:stop])

    def take(self, rows: Array) -> Stored:
        """The table of some rows, by ascending number or by mask."""
        return self._with(chosen=np.asarray(self.chosen)[rows])

    def parts(self, names: Sequence[str] | None = None) -> Iterator[Table]:
        """The table as consecutive parts in memory, of all columns or of some."""
        names = self.names if names is None else names
        if not len(self.chosen):
            return
        first, end = int(self.chosen[0]), int(self.chosen[-1]) + 1
        size = max(1, PART_VALUES // max(1, len(names)))
        for part in self.source.parts(first, end, names, size):
            columns, numbers = {name: part.columns[name] for name in names}, np.arange(first, first + len(part))
            table = Table(self.name, columns, self.named, self.target, numbers)
            if not isinstance(self.chosen, range):
                low, high = np.searchsorted(self.chosen, [first, first + len(part)])
                table = table.take(self.chosen[low:high] - first)
            first += len(part)
            if len(table):
                yield table

    def number(self, row: int) -> int:
        """The number of a row, from 1, in the file."""
        return 1 + int(self.chosen[row])

    def incomplete(self, columns: Iterable[str]) -> Array:
        """The rows in which a value of these columns is missing, as a mask."""
        names = list(columns)
        return np.concatenate([part.incomplete(names) for part in self.parts(names)] or [np.zeros(len(self), bool)])

    def column(self, name: str) -> Column:
        """A column of all rows, in memory."""
        return self.loaded([name]).columns[name]

    def loaded(self, names: Sequence[str] | None = None) -> Table:
        """The table in memory, of all columns or of some."""
        parts, columns = list(self.parts(names)), {}
        for name in self.names if names is None else names:
            of_parts = [part.columns.pop(name) for part in parts]  # so that little is held twice
            values, missing = ([getattr(one, kind) for one in of_parts] for kind in ("values", "missing"))
            columns[name] = Column(np.concatenate(values), np.concatenate(missing))
        return Table(self.name, columns, self.named, self.target, np.asarray(self.chosen))

    def _with(self, **changes):
        made = object.__new__(Stored)
        for field in dataclasses.fields(self):
            object.__setattr__(made, field.name, changes.get(field.name, getattr(self, field.name)))
        return made

    def __repr__(self) -> str:
        return f"Stored({self.name!r}, {len(self)} rows, {len(self.names)} columns)"


# --------------------------------------------------------------------------------- what is stored
class _Parquet:
    named = True

    def __init__(self, path):
        self.path, pa = path, imported()
        with _damage(path, "Parquet"), pa.parquet.ParquetFile(path, memory_map=True) as file:
            groups = range(file.metadata.num_row_groups)
            self.ends = np.cumsum([file.metadata.row_group(i).num_rows for i in groups], dtype=np.int64)
            self.names = _names(file.schema_arrow)
        self.rows = int(self.ends[-1]) if len(self.ends) else 0

    def parts(self, start, stop, names, size):
        pa = imported()
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        before = int(self.ends[first - 1]) if first else 0
        skip, left = start - before, stop - start
        with _damage(self.path, "Parquet"), pa.parquet.ParquetFile(self.path, memory_map=True) as file:
            groups = list(range(first, last + 1))
            for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=names):
                kept = batch.slice(skip, left)
                skip, left = max(0, skip - len(batch)), left - len(kept)
                if len(kept):
                    yield from_arrow("", pa.Table.from_batches([kept]))
                if not left:
                    return


class _Batches:
    """The record batches of a file of Feather or Arrow."""

    named = True

    def __init__(self, path):
        self.path = path
        with self._open() as reader:
            self.names = _names(reader.schema)
            self.fields = {name: i for i, name in enumerate(reader.schema.names)}
        with self._open([0]) as reader:
            lengths = [len(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.rows = int(self.ends[-1]) if len(self.ends) else 0

    def _open(self, fields=None):
        pa = imported()
        with _damage(self.path, "Feather or Arrow"):
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            return pa.ipc.open_file(pa.memory_map(str(self.path)), options=options)

    def parts(self, start, stop, names, size):
        pa = imported()
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        with self._open(sorted(self.fields[name] for name in names)) as reader:
            for i in range(first, last + 1):
                with _damage(self.path, "Feather or Arrow"):
                    batch = reader.get_batch(i)
                before = int(self.ends[i]) - len(batch)
                low, high = max(start - before, 0), min(stop - before, len(batch))
                for at in range(low, high, size):
                    yield from_arrow("", pa.Table.from_batches([batch.slice(at, min(size, high - at))]))


class _Arrays:
    """The columns of an array, or arrays by name."""

    def __init__(self, arrays):
        self.named = isinstance(arrays, Mapping)
        if not self.named and arrays.ndim != 2:
            raise ValueError(f"an array must have shape (rows, columns) to be a table, got {arrays.shape}")
        self.arrays = dict(arrays) if self.named else {str(i): column for i, column in enumerate(arrays.T)}
        self.names = list(self.arrays)
        lengths = {len(column) for column in self.arrays.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns must have one length, got {sorted(lengths)}")
        self.rows = lengths.pop() if lengths else 0

    def parts(self, start, stop, names, size):
        for at in range(start, stop, size):
            yield from_columns("", {name: self.arrays[name][at : min(at + size, stop)] for name in names})


def _mapped(path):
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a file of NumPy, or damaged, or has objects: {error}") from None
    return {name: array[name] for name in array.dtype.names} if array.dtype.names else array


def _names(schema):
    index = index_of_pandas(schema)
    names = [name for name in schema.names if name not in index]
    refuse_twice(names)
    return names


@contextlib.contextmanager
def _damage(path, kind):
    """What pyarrow says of a damaged file, as one error."""
    try:
        yield
    except (imported().ArrowException, OSError) as error:
        raise ValueError(f"{path} is not {kind}, or damaged: {error}") from None
