"""From the columns of a table to what a network sees, and from its outputs back to the target.

scikit-learn learns: `SimpleImputer`, `StandardScaler`, `OneHotEncoder` and `TargetEncoder` are fitted on the training
rows. What they learned is kept as numbers and text, which JSON holds, and applied by the few lines of NumPy here; the
tests compare them. So a model predicts without scikit-learn, and its file has nothing that is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .arrow import from_frame
from .table import Array, Column, Table, from_columns, listed, text_of

VERSION = 2
ONE_HOT = 40  # categories of a column that get an input each; of more, each is encoded by the target's mean
FREE_WORDS = 3  # text with at least this many words a value, mostly different, is no category
FEW_CLASSES = 10  # whole numbers with at most this many distinct values are taken for class labels
FEW_ROWS = 20  # with fewer rows, distinct values say nothing about identifiers
SAID_AS_ID = re.compile(r"(^|[_ .-])(id|idx|index|uuid|guid|row|key)$|[a-z](Id|ID)$", re.ASCII)
DATE_LIKE = re.compile(r"\s*\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T]\d{1,2}:\d{2}.*)?\s*")
NUMBER_LIKE = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
GROUPED = re.compile(r"\s*[+-]?\d{1,3}(,\d{3})+(\.\d*)?\s*")
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
MICROSECONDS = 86_400e6  # of a day


# -------------------------------------------------------------------------------------- columns
@dataclasses.dataclass
class Numeric:
    """Numbers, truth values, or the parts of a date: gaps filled with the median, then ``(x - center) / scale``.

    Parameters
    ----------
    name : str
    kind : {"number", "boolean", "date"}
    parts : list of str
        Of a date its parts; else ``["value"]``.
    fill, center, scale : list of float
        One for each part.
    indicator : bool
        Whether a last input says that the value is missing.
    clip : bool
        Whether ``x / √(1 + (x / 3)²)`` follows, which is within ±3.
    """

    name: str
    kind: str
    parts: list[str]
    fill: list[float]
    center: list[float]
    scale: list[float]
    indicator: bool
    clip: bool = False

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return len(self.parts) + self.indicator

    @property
    def labels(self) -> list[str]:
        """What the inputs are called."""
        names = [self.name if part == "value" else f"{self.name} {part}" for part in self.parts]
        return names + [f"{self.name} missing"] * self.indicator

    def inputs(self, values: Column, out: Array) -> int:
        """Write the inputs, array (n, width); returns how many values are of an unknown category: none."""
        for j, part in enumerate(self.parts):
            numbers = PART[part](values)
            numbers[values.missing] = self.fill[j]
            scaled = (numbers - self.center[j]) / self.scale[j]
            out[:, j] = scaled / np.sqrt(1 + (scaled / 3) ** 2) if self.clip else scaled
        if self.indicator:
            out[:, -1] = values.missing
        return 0


@dataclasses.dataclass
class OneHot:
    """An input for each category, 1 where the value is it; gaps are filled with the most frequent one.

    Parameters
    ----------
    name : str
    categories : list of str
        In order. A value that is none of them gives zeros.
    fill : str
    indicator : bool
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: list[str]
    fill: str
    indicator: bool

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return len(self.categories) + self.indicator

    @property
    def labels(self) -> list[str]:
        """What the inputs are called."""
        return [f"{self.name}={category}" for category in self.categories] + [f"{self.name} missing"] * self.indicator

    def inputs(self, values: Column, out: Array) -> int:
        """Write the inputs, array (n, width); returns how many values are of an unknown category."""
        codes = _codes(values, self.categories, self.fill)
        out[:, : len(self.categories)] = codes[:, None] == np.arange(len(self.categories))
        if self.indicator:
            out[:, -1] = values.missing
        return int((codes < 0).sum())


@dataclasses.dataclass
class ByTarget:
    """The target's mean among the rows of the category, shrunk to that of all rows (Micci-Barreca, 2001).

    Parameters
    ----------
    name : str
    categories : list of str
    fill : str
    indicator : bool
    encodings : list of list of float
        For each output the standardised mean of every category.
    unknown : list of float
        For each output what a category that is not known gets.
    center, scale : list of float
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: list[str]
    fill: str
    indicator: bool
    encodings: list[list[float]]
    unknown: list[float]
    center: list[float]
    scale: list[float]

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return len(self.encodings) + self.indicator

    @property
    def labels(self) -> list[str]:
        """What the inputs are called."""
        several = len(self.encodings) > 1
        names = [f"{self.name} by target" + f" {i}" * several for i in range(len(self.encodings))]
        return names + [f"{self.name} missing"] * self.indicator

    def inputs(self, values: Column, out: Array) -> int:
        """Write the inputs, array (n, width); returns how many values are of an unknown category."""
        codes = _codes(values, self.categories, self.fill)
        for j, encoding in enumerate(self.encodings):
            means = np.append(encoding, self.unknown[j])  # the code of an unknown category is -1
            out[:, j] = (means[codes] - self.center[j]) / self.scale[j]
        if self.indicator:
            out[:, -1] = values.missing
        return int((codes < 0).sum())


ENCODINGS: dict[str, Any] = {"numeric": Numeric, "one-hot": OneHot, "target": ByTarget}


def _codes(values, categories, fill):
    """The position of every value among the categories, -1 for one that is none of them."""
    position = {category: i for i, category in enumerate(categories)}
    found, inverse = np.unique(_filled(values, fill).astype(str), return_inverse=True)
    return np.array([position.get(text, -1) for text in found.tolist()], np.int64)[inverse]


def _filled(values, fill):
    """Text with the gaps filled."""
    return np.where(values.missing, fill, values.texts())


def _elapsed(values):
    return values.values.astype("datetime64[us]").astype(np.int64) / MICROSECONDS


def _month(values):
    return (values.values.astype("datetime64[M]").astype(np.int64) % 12 + 1).astype(np.float64)


PART: dict[str, Any] = {
    "value": Column.numbers,
    "year": lambda values: values.values.astype("datetime64[Y]").astype(np.int64) + 1970.0,
    "month": _month,
    "day of week": lambda values: (values.values.astype("datetime64[D]").astype(np.int64) + 3) % 7.0,  # Monday is 0
    "hour": lambda values: _elapsed(values) % 1 * 24,
    "elapsed days": _elapsed,
}
DATE_PARTS = [part for part in PART if part != "value"]


# --------------------------------------------------------------------------------- what a column is
def _bad_number(name, values):
    """Refuse text that is numbers but for a few values, or numbers in another way of writing; says how to read it."""
    rows = np.flatnonzero(~values.missing)
    distinct, at, counts = np.unique(values.texts()[rows].astype(str), return_index=True, return_counts=True)
    plain = np.array([bool(NUMBER_LIKE.fullmatch(text)) for text in distinct.tolist()], bool)
    others = distinct[~plain].tolist()
    if not others:
        return
    row = int(rows[at[~plain].min()])
    where = f"column {name!r} is text: row {row + 1} has {values.values[row]!r}"
    as_categories = f"for categories: --category {_quoted(name)}"
    if all(GROUPED.fullmatch(text) for text in others):
        raise ValueError(
            f"{where}; for numbers with grouped digits: --thousands , and for a decimal comma: --decimal ,"
        )
    if all(DECIMAL_COMMA.fullmatch(text) for text in others):
        raise ValueError(f"{where}; for a decimal comma: --decimal ,")
    if all(DATE_LIKE.fullmatch(text) for text in others):
        raise ValueError(f"{where}; for dates: --date-format and how they are written, as %d/%m/%Y; {as_categories}")
    if len(others) <= 2 and 2 * counts[plain].sum() >= len(rows) and plain.sum() > 2:
        raise ValueError(
            f"{where}, and most rows have numbers; if that is a missing value: --na {_quoted(values.values[row])}; "
            f"{as_categories}"
        )


def _quoted(text):
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


# -------------------------------------------------------------------------------- preprocessing
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
        for name, whole in table.columns.items():
            values = whole.take(rows)
            kind, why = self._kind(name, whole, values)
            if why:
                self.left_out[name] = why
                continue
            if values.missing.any():
                self.gaps[name] = int(values.missing.sum())
            if kind == "category":
                self.columns.append(self._fit_category(name, values, y))
            else:
                numeric.append((name, kind, as_booleans(values) if kind == "boolean" else values))
                self.columns.append(None)
        fitted = iter(self._fit_numeric(numeric))
        self.columns = [next(fitted) if one is None else one for one in self.columns]
        self.features = [one.name for one in self.columns]
        self.given = list(table.columns)
        if not self.features:
            reasons = listed([f"{name} ({why})" for name, why in self.left_out.items()])
            raise ValueError(f"{table.name} has no column to learn from: left out are {reasons or 'none'}; see --keep")
        return self

    def _kind(self, name, whole, values):
        """(kind, why it is left out or None) of a column."""
        present = values.present
        if not len(present):
            return None, "empty"
        if not values.missing.any() and (present == present[0]).all():
            return None, "constant"
        if name in self.categories:
            return "category", None
        if are_booleans(values):
            return "boolean", None
        if values.kind == "text":
            _bad_number(name, whole)
        if values.kind in ("text", "number") and name not in self.keep and _identifies(name, whole):
            return None, "identifier"
        if values.kind != "text":
            return values.kind, None
        distinct = len(set(present.tolist()))
        if distinct > max(2, len(present) / 2) and _words(present) >= FREE_WORDS:
            raise ValueError(
                f"column {name!r} is free text, as {present[0][:40]!r}: leave it out (--drop {_quoted(name)}), or make "
                "numbers of it, as scikit-learn's TfidfVectorizer does"
            )
        return "category", None

    def _fit_numeric(self, columns):
        """Imputation and scaling of all numbers in one matrix."""
        if not columns:
            return
        preprocessing, impute = _sklearn()
        chosen = []
        for name, kind, values in columns:
            parts = DATE_PARTS if kind == "date" else ["value"]
            for part in parts:
                numbers = PART[part](values)
                numbers[values.missing] = np.nan
                there = numbers[~values.missing]
                if len(parts) == 1 or (len(there) and np.ptp(there)):  # a date's constant parts say nothing
                    chosen.append((name, part, numbers))
        matrix = np.column_stack([numbers for _, _, numbers in chosen])
        imputer = impute.SimpleImputer(strategy="median", keep_empty_features=True).fit(matrix)
        filled = imputer.transform(matrix)
        center, scale = self._scaling(preprocessing, filled)
        learned = {}
        for j, (name, part, _) in enumerate(chosen):
            learned.setdefault(name, []).append((part, imputer.statistics_[j], center[j], scale[j]))
        for name, kind, values in columns:
            of_parts = [list(items) for items in zip(*learned.get(name, []), strict=True)] or [[], [], [], []]
            parts, fill, center_of, scale_of = of_parts
            numbers = ([float(number) for number in items] for items in (fill, center_of, scale_of))
            indicator = bool(values.missing.any())
            yield Numeric(name, kind, parts, *numbers, indicator, self.scaling == "robust" and kind != "boolean")

    def _scaling(self, preprocessing, filled):
        if self.scaling == "standard":
            scaler = preprocessing.StandardScaler().fit(filled)
            return scaler.mean_, scaler.scale_
        scaler = preprocessing.RobustScaler().fit(filled)
        quartiles = np.subtract(*np.percentile(filled, [75, 25], axis=0))
        # where the quartiles are equal, half of the range
        return scaler.center_, np.where(quartiles > 0, scaler.scale_, np.ptp(filled, axis=0) / 2)

    def _fit_category(self, name, values, y):
        preprocessing, impute = _sklearn()
        texts = np.where(values.missing, None, values.texts()).astype(object)[:, None]
        imputer = impute.SimpleImputer(missing_values=None, strategy="most_frequent").fit(texts)
        fill, indicator = str(imputer.statistics_[0]), bool(values.missing.any())
        filled = imputer.transform(texts)
        categories = preprocessing.OneHotEncoder(handle_unknown="ignore").fit(filled).categories_[0].tolist()
        if len(categories) <= self.one_hot:
            return OneHot(name, categories, fill, indicator)
        if y is None:
            raise ValueError(
                f"column {name!r} has {len(categories)} categories, more than one_hot={self.one_hot}: pass y to fit, "
                "for their encoding by the target's mean"
            )
        encoders = [_target_encoder(categories).fit(filled, numbers) for numbers in _as_numbers(y)]
        encodings = [encoder.encodings_[0].tolist() for encoder in encoders]
        unknown = [float(encoder.target_mean_) for encoder in encoders]
        means = np.hstack([encoder.transform(filled) for encoder in encoders])
        scaler = preprocessing.StandardScaler().fit(means)
        scaling = scaler.mean_.tolist(), scaler.scale_.tolist()
        return ByTarget(name, categories, fill, indicator, encodings, unknown, *scaling)

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
        out, remarks = self.applied(self.table(X), dtype)
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=2)
        return out

    def fit_transform(self, X: Any, y: Any = None, dtype: Any = "float64") -> Array:
        """`fit`, and what the network sees in training: see `for_training`."""
        self.fit(X, y)
        table = self.table(X)
        return self.for_training(table, y, np.arange(len(table)), dtype)

    def for_training(self, X: Any, y: Any, rows: Array, dtype: Any = "float64") -> Array:
        """`transform` of all rows, but means of the target for the training rows are taken over other rows.

        Else a network would read the target in its inputs. They are made in five folds, which depend on nothing.
        """
        table = self.table(X)
        out, _ = self.applied(table, dtype)
        first = 0
        for one in self.columns:
            if isinstance(one, ByTarget):
                values, targets = table.columns[one.name].take(rows), np.asarray(y)[rows]
                means = _cross_fitted(one.categories, _filled(values, one.fill).astype(object)[:, None], targets)
                out[rows, first : first + len(one.encodings)] = (means - one.center) / one.scale
            first += one.width
        return out

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return sum(one.width for one in self.columns)

    @property
    def labels(self) -> list[str]:
        """What the inputs are called."""
        return [label for one in self.columns for label in one.labels]

    def applied(self, table: Table, dtype: Any = "float64") -> tuple[Array, list[str]]:
        """`transform` of a table whose columns have the right names; and remarks on what it lacks."""
        absent = [name for name in self.features if name not in table.columns]
        if 2 * len(absent) > len(self.features):
            raise ValueError(f"{table.name} lacks columns of the model: {listed(absent)}")
        remarks = [f"{table.name} has no column {name!r}: it counts as missing in every row" for name in absent]
        out, first = np.empty((len(table), self.width), dtype), 0
        for one in self.columns:
            values = table.columns.get(one.name)
            values = self._converted(one, _gap(one, len(table)) if values is None else values)
            unknown = one.inputs(values, out[:, first : first + one.width])
            if unknown:
                codes = _codes(values, one.categories, one.fill)
                example = values.texts()[np.flatnonzero(codes < 0)[0]]
                remarks.append(
                    f"column {one.name!r} has unknown categories in {unknown} row{'s' * (unknown > 1)}, as {example!r}"
                )
            first += one.width
        return out, remarks

    def _converted(self, one, values):
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
            _bad_number(one.name, values)
        first = int(np.flatnonzero(~values.missing)[0])
        raise ValueError(
            f"column {one.name!r} must have values of kind {one.kind}, as in training; row {first + 1} has "
            f"{text_of(values.values[first])!r}"
        )

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


def _target_encoder(categories):
    preprocessing, _ = _sklearn()
    return preprocessing.TargetEncoder(categories=[np.array(categories, object)], target_type="continuous")


def _as_numbers(y):
    """The target as numbers: values as they are, of two classes the second, of more each against the rest."""
    if y.dtype.kind == "f":
        return [y]
    classes = np.unique(y)
    return [(y == label).astype(np.float64) for label in (classes[1:] if len(classes) == 2 else classes)]


def _cross_fitted(categories, texts, y):
    """For each row the means of the target over the four fifths of the rows that it is not in."""
    from sklearn.model_selection import KFold

    means = np.empty((len(y), len(_as_numbers(y))))
    for others, rows in KFold(5, shuffle=True, random_state=0).split(texts):
        for j, numbers in enumerate(_as_numbers(y)):
            encoder = _target_encoder(categories).fit(texts[others], numbers[others])
            means[rows, j] = encoder.transform(texts[rows])[:, 0]
    return means


def _sklearn():
    try:
        from sklearn import impute, preprocessing
    except ImportError:
        raise ImportError('learning from a table needs scikit-learn: pip install "fastbp[cli]"') from None
    return preprocessing, impute


# --------------------------------------------------------------------------------------- target
@dataclasses.dataclass
class Target:
    """The column to predict: labels of classes, or values.

    Parameters
    ----------
    name : str
    task : {"classification", "regression"}
    classes, shares : list or None
        Labels in the order of the network's outputs, and how often each is in the training rows.
    mean, scale : float
        Of the training rows' values.
    """

    name: str
    task: str
    classes: list[Any] | None = None
    shares: list[float] | None = None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.classes) if self.classes else 1

    def encoded(self, values: Column) -> Array:
        """Class indices (int64), or the standardised values (float64), array (n,), of a column without gaps."""
        if self.classes is None:
            return (_values(self.name, values) - self.mean) / self.scale
        index = {text_of(label): i for i, label in enumerate(self.classes)}
        found, inverse = np.unique(values.texts().astype(str), return_inverse=True)
        texts = found.tolist()
        if {text.lower() for text in index} == {"true", "false"}:  # True, TRUE and true are one
            index, texts = {text.lower(): i for text, i in index.items()}, [text.lower() for text in texts]
        codes = [index.get(text, -1) for text in texts]
        unknown = [text for text, code in zip(found.tolist(), codes, strict=True) if code < 0]
        if unknown:
            raise ValueError(
                f"column {self.name!r} has classes that the model does not know: {listed(unknown)}; "
                f"it knows {listed(self.classes)}"
            )
        return np.array(codes, np.int64)[inverse]

    def decoded(self, outputs: Array) -> Array:
        """The network's outputs (n, outputs) as labels, or as values in the target's own units, array (n,)."""
        if self.classes is not None:
            return np.array(self.classes)[outputs.argmax(axis=1)]
        return self.in_own_units(outputs[:, 0].astype(np.float64))

    def in_own_units(self, standardised: Array) -> Array:
        """Values from standardised ones."""
        return standardised * self.scale + self.mean

    @classmethod
    def from_dict(cls, learned: dict[str, Any]) -> Target:
        """What ``dataclasses.asdict`` gave, or a model file of version 0.1 keeps."""
        if "target_mean" in learned:
            given = {"name": learned["target"], "mean": learned["target_mean"], "scale": learned["target_scale"]}
            return cls(**given, **{key: learned[key] for key in ("task", "classes", "shares")})
        return cls(**learned)


def _values(name, values):
    if values.kind not in ("number", "boolean"):
        if values.kind == "text":
            _bad_number(name, values)
        first = int(np.flatnonzero(~values.missing)[0])
        raise ValueError(
            f"column {name!r} must have numbers for regression; row {first + 1} has {text_of(values.values[first])!r} "
            "(for classes: --task classification)"
        )
    return values.numbers()


def raw_target(name: str, values: Column, task: str = "auto") -> Target:
    """The target as its values show it, before shares, mean and scale are known.

    Parameters
    ----------
    name : str
    values : Column
        Without gaps.
    task : {"auto", "classification", "regression"}
        ``"auto"``: text, truth values and whole numbers with at most ``FEW_CLASSES`` distinct values are classes.
    """
    if not len(values):
        raise ValueError(f"column {name!r} has no value in any row")
    if values.kind == "date":
        raise ValueError(f"column {name!r} has dates, which cannot be predicted: choose another with --target")
    if values.kind == "text" and task == "auto" and not are_booleans(values):
        _bad_number(name, values)
    if task == "auto":
        task = _task_of(values)
    if task == "regression":
        numbers = _values(name, values)
        if not np.ptp(numbers):
            raise ValueError(f"column {name!r} has the one value {numbers[0]:g}: nothing to predict")
        return Target(name, task)
    labels = values.values
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    classes = np.unique(labels.astype(str) if labels.dtype.kind == "O" else labels).tolist()
    if len(classes) < 2:
        raise ValueError(f"column {name!r} has the one value {classes[0]!r}: nothing to tell apart")
    if len(classes) > max(2, len(values) / 2):
        raise ValueError(
            f"column {name!r} has {len(classes)} distinct values in {len(values)} rows, as {text_of(classes[0])!r}: "
            "not classes; for numbers: --task regression"
        )
    return Target(name, task, classes)


def _task_of(values):
    if values.kind in ("text", "boolean"):
        return "classification"
    distinct = np.unique(values.values)
    whole = np.array_equal(distinct, np.rint(distinct))
    few = len(distinct) <= min(FEW_CLASSES, max(2, len(values) / 3))
    return "classification" if whole and few else "regression"


def with_statistics(target: Target, encoded: Array) -> Target:
    """The target with shares, or mean and scale, of the training rows; of values still in their own units."""
    if target.classes is not None:
        shares = np.bincount(encoded, minlength=len(target.classes)) / len(encoded)
        return dataclasses.replace(target, shares=shares.tolist())
    preprocessing, _ = _sklearn()
    scaler = preprocessing.StandardScaler().fit(encoded[:, None])
    return dataclasses.replace(target, mean=float(scaler.mean_[0]), scale=float(scaler.scale_[0]))
