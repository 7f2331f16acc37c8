"""What a column becomes for a network: numbers, dates in parts, an input for each category, or means of the target.

What scikit-learn learned (`fitting`) is kept here as numbers and text, and applied by NumPy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .table import Array, Column, positions

MICROSECONDS = 86_400e6  # of a day


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
            out[:, j] = scaled / np.hypot(1, scaled / 3) if self.clip else scaled
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
        codes = codes_of(values, self.categories, self.fill)
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
        codes = codes_of(values, self.categories, self.fill)
        for j, encoding in enumerate(self.encodings):
            means = np.append(encoding, self.unknown[j])  # the code of an unknown category is -1
            out[:, j] = (means[codes] - self.center[j]) / self.scale[j]
        if self.indicator:
            out[:, -1] = values.missing
        return int((codes < 0).sum())


ENCODINGS: dict[str, Any] = {"numeric": Numeric, "one-hot": OneHot, "target": ByTarget}


def codes_of(values: Column, categories: list[str], fill: str) -> Array:
    """The position of every value among the categories, -1 for one that is none of them; int64 array (n,)."""
    return positions(filled(values, fill), {category: i for i, category in enumerate(categories)})


def filled(values: Column, fill: str) -> Array:
    """Text with the gaps filled, array (n,) of objects."""
    return np.where(values.missing, fill, values.texts()).astype(object)


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
