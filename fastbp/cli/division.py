"""How ranks that train together divide a table: rank 0 reads it and learns from it, each reads its own rows.

Rank 0 learns the preprocessing and the split, and tells them. The ranks' parts follow one another in the table, so that
all of them together train as one process does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tabular
from ..checks import Array
from ..ranks import Ranks
from ..tabular.learning import restored
from .options import open_table


def span(rows: int, ranks: Ranks) -> tuple[int, int]:
    """The rows of the source that this rank has: first, and one past the last."""
    return rows * ranks.rank // ranks.size, rows * (ranks.rank + 1) // ranks.size


def share_of_batch(batch_size: int, ranks: Ranks) -> int:
    """This rank's part of the rows of a step."""
    if batch_size < ranks.size:
        raise ValueError(f"--batch-size {batch_size}: expected at least a row for each of the {ranks.size} ranks")
    return batch_size // ranks.size + (ranks.rank < batch_size % ranks.size)


def check(options: Any) -> None:
    """Refuse what each rank would have to read and cannot."""
    if options.data == "-":
        raise ValueError("--distributed needs a file that every rank can read, and DATA is standard input")


def told(learned: tabular.Learned | None, metadata: Any, ranks: Ranks) -> tuple[Any, dict[str, Array]]:
    """What rank 0 has learned, on every rank: metadata, and by part the rows of the source in their order."""
    if learned is None:
        return ranks.shared(None, {})
    table = learned.table
    numbers = table.chosen if isinstance(table, tabular.Stored) else table.numbers
    numbers = np.arange(len(table)) if numbers is None else np.asarray(numbers)
    return ranks.shared(metadata, {part: numbers[rows].astype(np.int64) for part, rows in learned.parts.items()})


def check_learned(learned: tabular.Learned) -> None:
    """Refuse preprocessing that needs all rows where a rank has some."""
    wide = learned.preprocessing.by_target
    if wide:
        raise ValueError(
            f"--distributed cannot take means of the target for the categories of {', '.join(wide)}: they "
            f"need the rows of all ranks; raise --one-hot, or leave the columns out by --drop"
        )


def own_part(options: Any, metadata: Any, numbers: dict[str, Array], ranks: Ranks) -> tabular.Learned:
    """The rows of this rank, made ready by what rank 0 has learned."""
    first, end = span(metadata["source_rows"], ranks)
    table = open_table(options)
    table = table.rows(first, end) if isinstance(table, tabular.Stored) else table.take(np.arange(first, end))
    preprocessing, target = restored(metadata)
    parts = {part: rows[(rows >= first) & (rows < end)] - first for part, rows in numbers.items()}
    chosen = np.sort(np.concatenate(list(parts.values())))
    parts = {part: np.searchsorted(chosen, rows) for part, rows in parts.items()}
    table = table.take(chosen)
    values = table.column(target.name) if isinstance(table, tabular.Stored) else table.columns[target.name]
    return tabular.Learned(table, preprocessing, target, target.encoded(values), parts, np.arange(1), len(table), 0)
