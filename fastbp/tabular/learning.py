"""From a table to what a network trains on: rows, columns, task, split and preprocessing, learned in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .preprocessing import Preprocessing, Target, raw_target, with_statistics
from .table import Array, Table, split


@dataclasses.dataclass
class Learned:
    """A table made ready.

    Parameters
    ----------
    table : Table
        Its rows that have the target.
    preprocessing : Preprocessing
    target : Target
    parts : dict of str to array
        As from `split`.
    dropped : int
        Rows left out, as they lack the target.
    """

    table: Table
    preprocessing: Preprocessing
    target: Target
    parts: dict[str, Array]
    dropped: int

    def inputs(self, dtype: Any) -> Array:
        """What the network sees of every row, array (n, width)."""
        features = self.table.without([self.target.name])
        return self.preprocessing.for_training(features, self.targets(), self.parts["train"], dtype)

    def targets(self) -> Array:
        """Class indices, or standardised values, array (n,)."""
        return self.target.encoded(self.table.columns[self.target.name])

    def metadata(self) -> dict[str, Any]:
        """What a model file keeps of it, as JSON."""
        return {"preprocessing": self.preprocessing.to_dict(), "target": dataclasses.asdict(self.target)}


def learn(
    table: Table,
    target: str,
    preprocessing: Preprocessing | None = None,
    *,
    task: str = "auto",
    fractions: Sequence[float] = (60, 20, 20),
    seed: int = 0,
) -> Learned:
    """Divide a table and learn its preprocessing from the training part.

    Parameters
    ----------
    table : Table
    target : str
        Column to predict, by name or by index.
    preprocessing : Preprocessing, optional
        With its settings; it is fitted here.
    task : {"auto", "classification", "regression"}
    fractions, seed
        For `split`, which is by class for classification.
    """
    name = table.find(target)
    if len(table.columns) < 2:
        raise ValueError(f"{table.name} has no column besides the target {name!r}")
    table, dropped = with_target(table, name)
    raw = raw_target(name, table.columns[name], task)
    encoded = raw.encoded(table.columns[name])
    parts = split(strata(raw, encoded), fractions, seed)
    learned = with_statistics(raw, encoded[parts["train"]])
    made = preprocessing or Preprocessing()
    made.fit(table.without([name]), learned.encoded(table.columns[name]), parts["train"])
    return Learned(table, made, learned, parts, dropped)


def again(table: Table, metadata: dict[str, Any]) -> Learned:
    """A table made ready as a model's file says, with the split that it was trained by."""
    preprocessing, target = restored(metadata)
    table, dropped = with_target(table, target.name)
    encoded = target.encoded(table.columns[target.name])
    parts = split(strata(target, encoded), metadata["split"], metadata["seed"])
    return Learned(table, preprocessing, target, parts, dropped)


def restored(metadata: dict[str, Any]) -> tuple[Preprocessing, Target]:
    """Preprocessing and target of a model's file, also of version 0.1."""
    kept = metadata["preprocessing"]
    return Preprocessing.from_dict(kept), Target.from_dict(metadata.get("target", kept))


def with_target(table: Table, name: str) -> tuple[Table, int]:
    """The rows that have the target, and how many have not."""
    missing = table.columns[name].missing
    return (table.take(~missing), int(missing.sum())) if missing.any() else (table, 0)


def strata(target: Target, encoded: Array) -> Array:
    """What `split` keeps in proportion: the classes; of values nothing."""
    return encoded if target.classes is not None else np.zeros(len(encoded), np.int64)
