"""What kind of values a column has, and which columns tell nothing; text that is no category is refused with advice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .table import WHOLE, Array, Column, Source

FREE_WORDS = 3  # text with at least this many words a value, mostly different, is no category
FEW_ROWS = 20  # with fewer rows, distinct values say nothing about identifiers
SAID_AS_ID = re.compile(r"(^|[_ .-])(id|idx|index|uuid|guid|row|key)$|[a-z](Id|ID)$", re.ASCII)
DATE_LIKE = re.compile(r"\s*\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T]\d{1,2}:\d{2}.*)?\s*")
NUMBER_LIKE = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
GROUPED = re.compile(r"\s*[+-]?\d{1,3}(,\d{3})+(\.\d*)?\s*")
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


def kind_of(
    name: str, whole: Column, rows: Array, categories: Sequence[str], keep: Sequence[str], source: Source
) -> tuple[str | None, str | None]:
    """What a column is, and why it is left out, if it is.

    Parameters
    ----------
    name : str
    whole : Column
    rows : int array
        Those of training; of the others it counts only what kind of values they are.
    categories, keep : sequence of str
        As of `Preprocessing`.
    source : Source
        The table.

    Raises
    ------
    ValueError
        It is free text, or text because of a few values.
    """
    values = whole.take(rows)
    present = values.present
    if not len(present):
        return None, "empty"
    if not values.missing.any() and (present == present[0]).all():
        return None, "constant"
    if name in categories:
        return "category", None
    if are_booleans(values):
        return "boolean", None
    if values.kind == "text":
        refuse_mistaken(name, whole, source)
    if values.kind in ("text", "number") and name not in keep and _identifies(name, whole):
        return None, "identifier"
    if values.kind != "text":
        return values.kind, None
    distinct = len(set(present.tolist()))
    if distinct > max(2, len(present) / 2) and _words(present) >= FREE_WORDS:
        raise ValueError(
            f"column {name!r} is free text, as {present[0][:40]!r}: leave it out (--drop {quoted(name)}), or make "
            "numbers of it, as scikit-learn's TfidfVectorizer does"
        )
    return "category", None


def refuse_mistaken(name: str, values: Column, source: Source = WHOLE) -> None:
    """Refuse text that is numbers but for a few values, or numbers in another way of writing; says how to read it."""
    counts = Counter(values.present.tolist())
    others = [text for text in counts if not NUMBER_LIKE.fullmatch(text)]
    if not others:
        return
    row = int(np.flatnonzero(~values.missing & (values.values == others[0]))[0])
    where = f"column {name!r} is text: row {source.number(row)} has {others[0]!r}"
    as_categories = f"for categories: --category {quoted(name)}"
    column = f"frame[{name!r}]"  # where the values are not read from text, it is the table that has to change
    if all(GROUPED.fullmatch(text) for text in others):
        options = "for numbers with grouped digits: --thousands , and for a decimal comma: --decimal ,"
        change = f"make numbers of it, as by pandas.to_numeric({column}.str.replace(',', ''))"
    elif all(DECIMAL_COMMA.fullmatch(text) for text in others):
        options = "for a decimal comma: --decimal ,"
        change = f"make numbers of it, as by pandas.to_numeric({column}.str.replace(',', '.'))"
    elif all(DATE_LIKE.fullmatch(text) for text in others):
        options = f"for dates: --date-format and how they are written, as %d/%m/%Y; {as_categories}"
        change = f"make dates of it, as by pandas.to_datetime({column}, format='%d/%m/%Y'); {as_categories}"
    elif _mostly_numbers(counts, others):
        where += ", and most rows have numbers"
        options = f"if that is a missing value: --na {quoted(others[0])}; {as_categories}"
        change = (
            f"if that is a missing value, make numbers of the others, as by pandas.to_numeric({column}, "
            f"errors='coerce'); {as_categories}"
        )
    else:
        return
    raise ValueError(f"{where}; {options if source.text else change}")


def _mostly_numbers(counts, others):
    numbers = counts.total() - sum(counts[text] for text in others)
    return len(others) <= 2 and 2 * numbers >= counts.total() and len(counts) - len(others) > 2


def quoted(text: str) -> str:
    """A text as a shell takes it."""
    return text if re.fullmatch(r"[\w.?-]+", text) else f"'{text}'"


def as_booleans(values: Column) -> Column:
    """Truth values, also from text such as ``"True"`` and ``"FALSE"``."""
    if values.kind == "text":
        return Column(np.array([text.lower() == "true" for text in values.values], bool), values.missing)
    return values


def are_booleans(values: Column) -> bool:
    """Whether the column has truth values, or the text of such."""
    if values.kind == "boolean":
        return True
    return values.kind == "text" and {text.lower() for text in values.present.tolist()} <= {"true", "false"}


def _identifies(name, values):
    """Whether whole numbers, or text, tell rows apart and nothing else."""
    present = values.present
    if len(values) < FEW_ROWS or len(present) < len(values):
        return False
    if values.kind == "number":
        if float(present.max()) - float(present.min()) < len(present) - 1:  # so they repeat
            return False
        if not np.array_equal(present, np.rint(present)) or len(np.unique(present)) < len(present):
            return False
        in_order = present[0] in (0, 1) and bool((np.diff(present.astype(np.float64)) == 1).all())
        return in_order or bool(SAID_AS_ID.search(name)) or name.lower() == "id"
    return len(set(present.tolist())) > 0.9 * len(present) and _words(present) < FREE_WORDS


def _words(texts):
    return np.mean([len(text.split()) for text in texts.tolist()])
