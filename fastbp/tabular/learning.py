"""From a table to what a network trains on: rows, columns, task, split and preprocessing, learned in this order.

A table may be in memory or stay in its file; what is made of it is the same. Target and split are of all rows. The
preprocessing is learned from the training rows of a sample, which of most tables is the whole. Inputs are made by
parts; of a stored table they go into files without a name, which the network reads in any order as it does arrays, and
which are gone when they are no longer used, however the process ends.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from .columns import ByTarget
from .preprocessing import Lacks, Preprocessing
from .stored import Stored
from .table import Array, Table, split
from .target import Target, raw_target, with_statistics

SAMPLE_ROWS, SAMPLE_VALUES = 200_000, 60_000_000  # most rows, and values, that preprocessing is learned from
Folder = str | os.PathLike[str]


@dataclasses.dataclass
class Learned:
    """A table made ready.

    Parameters
    ----------
    table : Table or Stored
        Its rows that have the target.
    preprocessing : Preprocessing
    target : Target
    y : array (n,)
        The target of every row: class indices, or standardised values.
    parts : dict of str to array
        As from `split`.
    sample : int array
        The training rows that the preprocessing was learned from.
    sampled : int
        How many rows were looked at to learn it.
    dropped : int
        Rows left out, as they lack the target.
    """

    table: Table | Stored
    preprocessing: Preprocessing
    target: Target
    y: Array
    parts: dict[str, Array]
    sample: Array
    sampled: int
    dropped: int

    def data(self, dtype: Any, folder: Folder | None = None) -> dict[str, tuple[Array, Array]]:
        """Inputs (n, width) and target (n,) of each part of the split.

        Parameters
        ----------
        dtype : str
            Of the inputs.
        folder : str or path, optional
            Where the inputs are kept as memory maps of files without a name; by default they are arrays in memory.

        Raises
        ------
        OSError
            The disk is full.
        """
        inputs = self._inputs(self.parts, dtype, folder)
        return {part: (inputs[part], self.y[rows]) for part, rows in self.parts.items()}

    def inputs(self, dtype: Any) -> Array:
        """What the network sees of every row, array (n, width)."""
        return self._inputs({"all": np.arange(len(self.table))}, dtype)["all"]

    def metadata(self) -> dict[str, Any]:
        """What a model file keeps of it, as JSON."""
        return {"preprocessing": self.preprocessing.to_dict(), "target": dataclasses.asdict(self.target)}

    def _inputs(self, wanted, dtype, folder=None):
        """The inputs of some rows, sorted, under each name."""
        made = {name: _Rows((len(rows), self.preprocessing.width), dtype, folder) for name, rows in wanted.items()}
        for start, inputs in self._by_parts(dtype):
            for name, rows in wanted.items():
                first, last = np.searchsorted(rows, [start, start + len(inputs)])
                made[name].append(inputs[rows[first:last] - start])
        return {name: rows.array() for name, rows in made.items()}

    def _by_parts(self, dtype):
        """(number of the first row, inputs) of consecutive rows."""
        features, preprocessing = self.table.without([self.target.name]), self.preprocessing
        by_name = features.named and preprocessing.named
        names = preprocessing.needed(features)
        encoded = [one.name for one in preprocessing.columns if isinstance(one, ByTarget) and one.name in names]
        of_others = []
        if encoded or not by_name:
            table = preprocessing.table(features.take(self.sample).loaded(encoded if by_name else None))
            of_others = list(preprocessing.of_others(table, self.y[self.sample]))
        start = 0
        for part in features.parts(names):
            inputs = preprocessing.applied(preprocessing.table(part), dtype, Lacks())
            first, last = np.searchsorted(self.sample, [start, start + len(part)])
            for column, means in of_others:
                rows = self.sample[first:last] - start
                inputs[rows, column : column + means.shape[1]] = means[first:last]
            yield start, inputs
            start += len(part)


class _Rows:
    """An array that is filled row after row, in memory or in a file without a name."""

    def __init__(self, shape, dtype, folder):
        self.shape, self.dtype, self.filled = shape, np.dtype(dtype), 0
        self.file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.whole = np.empty(shape, dtype) if folder is None else None

    def append(self, rows):
        if self.file is not None:
            self.file.write(np.ascontiguousarray(rows).data)
        else:
            self.whole[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def array(self):
        if self.file is None:
            return self.whole
        with self.file:
            self.file.flush()
            return np.memmap(self.file, self.dtype, "r", shape=self.shape)


def learn(
    table: Table | Stored,
    target: str,
    preprocessing: Preprocessing | None = None,
    *,
    task: str = "auto",
    link: str = "identity",
    fractions: Sequence[float] = (60, 20, 20),
    seed: int = 0,
) -> Learned:
    """Divide a table and learn its preprocessing from the training part.

    Parameters
    ----------
    table : Table or Stored
    target : str
        Column to predict, by name or by index.
    preprocessing : Preprocessing, optional
        With its settings; it is fitted here: from all training rows, or, of a table of more than 200 000 rows or
        60 000 000 values, from those among so many rows drawn at random.
    task : {"auto", "classification", "regression"}
    link : {"identity", "log"}
        ``"log"`` for counts, as `fastbp.PoissonLoss` takes them.
    fractions, seed
        For `split`, which is by class for classification.
    """
    name = table.find(target)
    if len(table.names) < 2:
        raise ValueError(f"{table.name} has no column besides the target {name!r}")
    table, dropped = with_target(table, name)
    values = table.column(name)
    raw = raw_target(name, values, task, link, table)
    y = raw.encoded(values, table)
    parts = split(strata(raw, y), fractions, seed)
    learned = with_statistics(raw, y[parts["train"]])
    y = y if learned.classes is not None else (y - learned.mean) / learned.scale
    features, rows = table.without([name]), drawn(len(table), len(table.names) - 1, seed)
    sample = among(rows, parts["train"])
    of_rows = features.loaded() if len(rows) == len(table) else features.take(rows).loaded()
    made = preprocessing or Preprocessing()
    made.fit(of_rows, y[rows], sample)
    return Learned(table, made, learned, y, parts, rows[sample], len(rows), dropped)


def again(table: Table | Stored, metadata: dict[str, Any]) -> Learned:
    """A table made ready as a model's file says, with the split that it was trained by."""
    preprocessing, target = restored(metadata)
    table, dropped = with_target(table, target.name)
    y = target.encoded(table.column(target.name), table)
    parts = split(strata(target, y), metadata["split"], metadata["seed"])
    rows = drawn(len(table), len(preprocessing.given), metadata["seed"])
    return Learned(table, preprocessing, target, y, parts, rows[among(rows, parts["train"])], len(rows), dropped)


def drawn(count: int, columns: int, seed: int) -> Array:
    """The rows that preprocessing is learned from, in order: all, or of a large table some at random."""
    most = min(SAMPLE_ROWS, SAMPLE_VALUES // columns)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False))


def among(rows: Array, others: Array) -> Array:
    """Which of some rows, in order, are among others, in order too."""
    at = np.minimum(np.searchsorted(others, rows), len(others) - 1)
    return np.flatnonzero(others[at] == rows)


def restored(metadata: dict[str, Any]) -> tuple[Preprocessing, Target]:
    """Preprocessing and target of a model's file, also of version 0.1."""
    kept = metadata["preprocessing"]
    return Preprocessing.from_dict(kept), Target.from_dict(metadata.get("target", kept))


def with_target(table: Table | Stored, name: str) -> tuple[Table | Stored, int]:
    """The rows that have the target, and how many have not."""
    missing = table.column(name).missing
    return (table.take(~missing), int(missing.sum())) if missing.any() else (table, 0)


def strata(target: Target, encoded: Array) -> Array:
    """What `split` keeps in proportion: the classes; of values nothing."""
    return encoded if target.classes is not None else np.zeros(len(encoded), np.int64)
