"""The column to predict: what its values are to a network, and what a network's outputs are in its own terms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from . import fitting
from .kinds import are_booleans, refuse_mistaken
from .table import WHOLE, Array, Column, Source, listed, positions, text_of

FEW_CLASSES = 10  # whole numbers with at most this many distinct values are taken for class labels


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
    link : {"identity", "log"}
        Of what the network's output is: of the standardised values, or of the values over ``scale``, their mean.
    """

    name: str
    task: str
    classes: list[Any] | None = None
    shares: list[float] | None = None
    mean: float = 0.0
    scale: float = 1.0
    link: str = "identity"

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.classes) if self.classes else 1

    def encoded(self, values: Column, source: Source = WHOLE) -> Array:
        """Class indices (int64), or the standardised values (float64), array (n,), of a column without gaps."""
        if self.classes is None:
            return (_values(self.name, values, source) - self.mean) / self.scale
        index = {text_of(label): i for i, label in enumerate(self.classes)}
        texts = values.texts()
        if {text.lower() for text in index} == {"true", "false"}:  # True, TRUE and true are one
            written = {text.lower(): i for text, i in index.items()}
            index = {text: written.get(text.lower(), -1) for text in set(texts.tolist())}
        codes = positions(texts, index)
        if (codes < 0).any():
            unknown = sorted(set(texts[codes < 0].tolist()))
            raise ValueError(
                f"column {self.name!r} has classes that the model does not know: {listed(unknown)}; "
                f"it knows {listed(self.classes)}"
            )
        return codes

    def decoded(self, outputs: Array) -> Array:
        """The network's outputs (n, outputs) as labels, or as values in the target's own units, array (n,)."""
        if self.classes is not None:
            return np.array(self.classes)[outputs.argmax(axis=1)]
        values = outputs[:, 0].astype(np.float64)
        return self.in_own_units(np.exp(values) if self.link == "log" else values)

    @property
    def trivial(self) -> float:
        """The mean of the training rows, standardised."""
        return 1.0 if self.link == "log" else 0.0

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


def _values(name, values, source):
    if values.kind not in ("number", "boolean"):
        if values.kind == "text":
            refuse_mistaken(name, values, source)
        first = int(np.flatnonzero(~values.missing)[0])
        raise ValueError(
            f"column {name!r} must have numbers for regression; row {source.number(first)} has "
            f"{text_of(values.values[first])!r} (for classes: --task classification)"
        )
    return values.numbers()


def raw_target(
    name: str,
    values: Column,
    task: str = "auto",
    link: str = "identity",
    source: Source = WHOLE,
) -> Target:
    """The target as its values show it, before shares, mean and scale are known.

    Parameters
    ----------
    name : str
    values : Column
        Without gaps.
    task : {"auto", "classification", "regression"}
        ``"auto"``: text, truth values and whole numbers with at most ``FEW_CLASSES`` distinct values are classes.
    link : {"identity", "log"}
        ``"log"`` is for counts, which are not negative.
    source : Source
        The table.
    """
    if not len(values):
        raise ValueError(f"column {name!r} has no value in any row")
    if values.kind == "date":
        raise ValueError(f"column {name!r} has dates, which cannot be predicted: choose another with --target")
    if values.kind == "text" and task == "auto" and not are_booleans(values):
        refuse_mistaken(name, values, source)
    if task == "auto":
        task = _task_of(values)
    if task == "regression":
        numbers = _values(name, values, source)
        if (numbers == numbers[0]).all():
            raise ValueError(f"column {name!r} has the one value {numbers[0]:g}: nothing to predict")
        if link == "log" and numbers.min() < 0:
            row = int(np.argmin(numbers))
            raise ValueError(
                f"column {name!r} must have no negative value where its mean is predicted by its logarithm, as by "
                f"--loss poisson; row {source.number(row)} has {numbers[row]:g}"
            )
        return Target(name, task, link=link)
    labels = values.values
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    classes = sorted(set(labels.tolist())) if labels.dtype.kind == "O" else np.unique(labels).tolist()
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
    if target.link == "log":
        return dataclasses.replace(target, scale=float(encoded.mean()) or 1.0)
    mean, scale = fitting.scaling_of([target.name], encoded[:, None], "standard")
    return dataclasses.replace(target, mean=float(mean[0]), scale=float(scale[0]))
