"""From the columns of a table to what a network sees.

scikit-learn learns on the training rows (`fitting`). What it learned is kept as JSON and applied by NumPy (`columns`);
the tests compare both. So a model predicts without scikit-learn, and its file has nothing that is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .arrow import from_frame
from .columns import ENCODINGS, ByTarget, Numeric, codes_of
from .fitting import cross_fitted, fit_category, fit_numbers
from .kinds import are_booleans, as_booleans, kind_of, refuse_mistaken
from .table import Array, Column, Table, from_columns, listed, text_of

VERSION = 2
ONE_HOT = 40  # categories of a column that get an input each; of more, each is encoded by the target's mean


class Lacks:
    """What tables lack, or have that training has not seen; of the parts of a table it is one."""

    def __init__(self) -> None:
        self.absent: list[str] = []
        self._unknown: dict[str, tuple[int, str]] = {}

    def see(self, column: str, unknown: int, example: str) -> None:
        """Note so many rows of unknown categories."""
        before, first = self._unknown.get(column, (0, example))
        self._unknown[column] = before + unknown, first

    def remarks(self, table: str) -> list[str]:
        """A line for each column."""
        return [f"{table} has no column {name!r}: it counts as missing in every row" for name in self.absent] + [
            f"column {name!r} has unknown categories in {count} row{'s' * (count > 1)}, as {example!r}"
            for name, (count, example) in self._unknown.items()
        ]


class Preprocessing:
    """What the columns of a table go through before a network sees them.

    Numbers are standardised, ``(x - mean) / deviation``, and their gaps filled with the median; truth values are 0 and
    1; of a date there are year, month, day of week, hour and elapsed days; categories get an input each, or, if they
    are more than ``one_hot``, the target's mean. Where the training rows had gaps, an input says so. Constant columns
    and identifiers are left out. The statistics are those of the training rows alone.

    Parameters
    ----------
    one_hot : int
        Most categories of a column that get an input each.
    categories : sequence of str
        Columns of numbers that are categories.
    keep : sequence of str
        Columns that are not to be taken for identifiers.
    scaling : {"standard", "robust"}
        ``"robust"``: ``x`` less the median, over the distance of the quartiles, then ``x / √(1 + (x / 3)²)``
        (Holzmüller et al., "Better by default", 2024).

    Attributes
    ----------
    features : list of str
        Columns that `transform` takes.
    given : list of str
        Columns that `fit` got, in order.
    named : bool
        Whether these are names; else positions.
    columns : list of Numeric, OneHot or ByTarget
    left_out : dict of str to str
        Columns left out, and why.
    gaps : dict of str to int
        Missing values of the training rows.
    """

    def __init__(
        self,
        *,
        one_hot: int = ONE_HOT,
        categories: Sequence[str] = (),
        keep: Sequence[str] = (),
        scaling: str = "standard",
    ) -> None:
        if scaling not in ("standard", "robust"):
            raise ValueError(f'scaling must be "standard" or "robust", got {scaling!r}')
        self.one_hot, self.categories, self.keep, self.scaling = one_hot, list(categories), list(keep), scaling
        self.features: list[str] = []
        self.given: list[str] = []
        self.named = True
        self.columns: list[Any] = []
        self.left_out: dict[str, str] = {}
        self.gaps: dict[str, int] = {}

    # ------------------------------------------------------------------------------------- fitting
    def fit(self, X: Any, y: Any = None, rows: Array | None = None) -> Preprocessing:
        """Learn from the training rows.

        Parameters
        ----------
        X : frame, dict of columns, Table, or array (n, columns)
        y : array (n,), optional
            The target: integers for classes, floating-point numbers for values. Needed where a column has more
            categories than ``one_hot``.
        rows : int array, optional
            The training rows, by default all. Of the others only the kind of a column is learnt.

        Raises
        ------
        ValueError
            A column is free text, or is text because of a few values: the error says what to do.
        ImportError
            Fitting needs scikit-learn.
        """
        self.given = []
        table = self.table(X)
        rows = np.arange(len(table)) if rows is None else rows
        y = None if y is None else np.asarray(y)[rows]
        self.named, self.columns, self.left_out, self.gaps = table.named, [], {}, {}
        numeric: list[tuple[str, str, Column]] = []
        for name, values in table.columns.items():
            kind, why = kind_of(name, values, rows, self.categories, self.keep, table)
            if kind is None or why:
                self.left_out[name] = why or ""
                continue
            gaps = int(values.missing[rows].sum())
            if gaps:
                self.gaps[name] = gaps
            if kind == "category":
                self.columns.append(fit_category(name, values.take(rows), y, self.one_hot))
            else:
                numeric.append((name, kind, as_booleans(values) if kind == "boolean" else values))
                self.columns.append(None)
        fitted = fit_numbers(numeric, rows, self.scaling)
        self.columns = [next(fitted) if one is None else one for one in self.columns]
        self.features = [one.name for one in self.columns]
        self.given = list(table.columns)
        if not self.features:
            reasons = listed([f"{name} ({why})" for name, why in self.left_out.items()])
            raise ValueError(f"{table.name} has no column to learn from: left out are {reasons or 'none'}; see --keep")
        return self

    # ---------------------------------------------------------------------------------- transforming
    def transform(self, X: Any, dtype: Any = "float64") -> Array:
        """What the network sees, array (n, width).

        Parameters
        ----------
        X : frame, dict of columns, Table, or array (n, columns)
            Columns are found by name; an array has them in the order of training.
        dtype : str

        Raises
        ------
        ValueError
            A column has text where numbers are expected, or more than half of the columns are not there.

        Warns
        -----
        UserWarning
            For values of unknown categories, which count as none of the known ones, and for columns that are not there,
            which count as missing in every row.
        """
        table, lacks = self.table(X), Lacks()
        out = self.applied(table, dtype, lacks)
        for remark in lacks.remarks(table.name):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return out

    def fit_transform(self, X: Any, y: Any = None, dtype: Any = "float64") -> Array:
        """`fit`, and `transform` of its rows but for means of the target: see `of_others`."""
        table = self.fit(X, y).table(X)
        out = self.applied(table, dtype, Lacks())
        for first, means in self.of_others(table, y):
            out[:, first : first + means.shape[1]] = means
        return out

    def of_others(self, table: Table, y: Any) -> Iterator[tuple[int, Array]]:
        """Means of the target for the rows that `fit` got, each taken over other rows: (first input, array (n, …)).

        Else a network would read the target in its inputs. They are made in five folds, which depend on nothing.
        """
        first = 0
        for one in self.columns:
            if isinstance(one, ByTarget) and one.name in table.columns:
                yield first, cross_fitted(one, table.column(one.name), np.asarray(y))
            first += one.width

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return sum(one.width for one in self.columns)

    @property
    def by_target(self) -> list[str]:
        """The columns whose categories the target's mean stands for."""
        return [one.name for one in self.columns if isinstance(one, ByTarget)]

    @property
    def labels(self) -> list[str]:
        """What the inputs are called."""
        return [label for one in self.columns for label in one.labels]

    def applied(self, table: Table, dtype: Any, lacks: Lacks) -> Array:
        """`transform` of a table whose columns have the right names; what it lacks goes into ``lacks``."""
        absent = [name for name in self.features if name not in table.columns]
        if 2 * len(absent) > len(self.features):
            raise ValueError(f"{table.name} lacks columns of the model: {listed(absent)}")
        lacks.absent = absent
        out, first = np.empty((len(table), self.width), dtype), 0
        for one in self.columns:
            values = table.columns.get(one.name)
            values = self._converted(one, _gap(one, len(table)) if values is None else values, table)
            inputs = out[:, first : first + one.width]
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
                unknown = one.inputs(values, inputs)
            beyond = np.flatnonzero(~np.isfinite(inputs).all(axis=1))
            if len(beyond):
                raise ValueError(
                    f"column {one.name!r} has {values.values[beyond[0]]:g} in row {table.number(beyond[0])}, "
                    f"which is beyond {out.dtype} when standardised as in training"
                )
            if unknown:
                codes = codes_of(values, one.categories, one.fill)
                lacks.see(one.name, unknown, values.texts()[np.flatnonzero(codes < 0)[0]])
            first += one.width
        return out

    def _converted(self, one, values, table):
        """The column in the kind it was learned as."""
        if one.kind == "category":
            return values
        if values.missing.all():
            return _gap(one, len(values))
        if one.kind == "boolean" and are_booleans(values):
            return as_booleans(values)
        if one.kind == "boolean" and values.kind == "number" and set(np.unique(values.present)) <= {0, 1}:
            return values
        if values.kind == one.kind or (one.kind == "number" and values.kind == "boolean"):
            return values
        if values.kind == "text":
            refuse_mistaken(one.name, values, table)
        first = int(np.flatnonzero(~values.missing)[0])
        raise ValueError(
            f"column {one.name!r} must have values of kind {one.kind}, as in training; row {table.number(first)} has "
            f"{text_of(values.values[first])!r}"
        )

    def needed(self, table: Any) -> list[str]:
        """The columns of a table that `transform` looks at: by name its features, without names all."""
        names = [name for name in table.names if name in self.features]
        return names if names and self.named and table.named else table.names

    def table(self, X: Any, target: str | None = None, by_position: bool = False) -> Table:
        """Anything that `transform` takes, as a table whose columns have the names of training.

        Parameters
        ----------
        X : frame, dict of columns, Table, or array (n, columns)
        target : str, optional
            A column that may be there too.
        by_position : bool
            Take columns without names in the order of training, as of an array, where training had names.
        """
        if isinstance(X, np.ndarray):
            if X.ndim != 2:
                raise ValueError(f"X must have shape (rows, columns), got {X.shape}")
            found = from_columns("X", dict(zip(map(str, range(X.shape[1])), X.T, strict=True)), False)
        else:
            found = from_frame(X)
        if not self.given or (self.named and found.named):
            return found
        if self.named and not (by_position or isinstance(X, np.ndarray)):
            raise ValueError(
                f"{found.name} has no names of columns, and the model was trained by name: give it a header row, or in "
                "NPZ an array 'columns', or say --by-position"
            )
        names, fitting = list(found.columns), {len(self.features): self.features, len(self.given): self.given}
        for other in (target, found.target):
            if len(names) not in fitting and other in names:
                names.remove(other)
        if len(names) not in fitting:
            raise ValueError(
                f"{found.name} has {len(names)} columns besides the target; the model takes {len(self.given)}"
            )
        columns = zip(fitting[len(names)], names, strict=True)
        return dataclasses.replace(found, columns={new: found.columns[old] for new, old in columns})

    # -------------------------------------------------------------------------------------- files
    def to_dict(self) -> dict[str, Any]:
        """All that was learned, as JSON holds it."""
        kinds = {kind: name for name, kind in ENCODINGS.items()}
        columns = [{"encoding": kinds[type(one)]} | dataclasses.asdict(one) for one in self.columns]
        names = "one_hot categories keep scaling given named left_out gaps"
        return {"version": VERSION, "columns": columns} | {name: getattr(self, name) for name in names.split()}

    @classmethod
    def from_dict(cls, learned: dict[str, Any]) -> Preprocessing:
        """What `to_dict` gave, or a model file of version 0.1 keeps."""
        if "version" not in learned:
            return cls._of_first_version(learned)
        if learned["version"] != VERSION:
            raise ValueError(f"the preprocessing has version {learned['version']!r}, this fastbp reads {VERSION}")
        made = cls(**{name: learned[name] for name in ("one_hot", "categories", "keep", "scaling")})
        for name in ("given", "named", "left_out", "gaps"):
            setattr(made, name, learned[name])
        for arguments in learned["columns"]:
            arguments = dict(arguments)
            made.columns.append(ENCODINGS[arguments.pop("encoding")](**arguments))
        made.features = [one.name for one in made.columns]
        return made

    @classmethod
    def _of_first_version(cls, learned):
        """Numbers alone, without a median: gaps are filled with the mean."""
        made = cls()
        made.named, made.features, made.given = learned["named"], learned["features"], learned["features"]
        for name, mean, scale in zip(made.features, learned["mean"], learned["scale"], strict=True):
            made.columns.append(Numeric(name, "number", ["value"], [mean], [mean], [scale], False))
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, ensure_ascii=False, allow_nan=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Preprocessing:
        """Read what `save` wrote."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocessing) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if not self.columns:
            return f"Preprocessing(one_hot={self.one_hot}, scaling={self.scaling!r})"
        return f"Preprocessing({len(self.features)} columns to {self.width} inputs, scaling={self.scaling!r})"


def _gap(one, count):
    values = {"date": np.full(count, "NaT", "datetime64[us]"), "category": np.full(count, "", object)}
    return Column(values.get(one.kind, np.full(count, np.nan)), np.ones(count, bool))
