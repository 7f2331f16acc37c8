"""What scikit-learn learns of columns: `SimpleImputer`, `StandardScaler` or `RobustScaler`, `OneHotEncoder` and
`TargetEncoder`, fitted on the training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .columns import DATE_PARTS, PART, ByTarget, Numeric, OneHot, filled
from .table import Array, Column

FITTED_TOGETHER = 1 << 22  # values in one matrix


def imported() -> tuple[Any, Any]:
    """Two modules of scikit-learn, imported where something is learned: preprocessing and impute."""
    try:
        from sklearn import impute, preprocessing
    except ImportError:
        raise ImportError('learning from a table needs scikit-learn: pip install "fastbp[cli]"') from None
    return preprocessing, impute


def fit_numbers(columns: Sequence[tuple[str, str, Column]], rows: Array, scaling: str) -> Iterator[Numeric]:
    """Imputation and scaling of columns (name, kind, values), of which the training rows count."""
    size = max(1, FITTED_TOGETHER // max(1, len(rows)))
    for start in range(0, len(columns), size):
        group = [(name, kind, values.take(rows)) for name, kind, values in columns[start : start + size]]
        yield from _fit_together(group, scaling)


def _fit_together(columns, scaling):
    """Columns in one matrix."""
    _, impute = imported()
    chosen = []
    for name, kind, values in columns:
        parts = DATE_PARTS if kind == "date" else ["value"]
        for part in parts:
            numbers = PART[part](values)
            numbers[values.missing] = np.nan
            there = numbers[~values.missing]
            if len(parts) == 1 or (len(there) and np.ptp(there)):  # a date's constant parts say nothing
                chosen.append((name, part, numbers))
    learned = {}
    if chosen:
        matrix = np.column_stack([numbers for _, _, numbers in chosen])
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by `scaling_of`
            imputer = impute.SimpleImputer(strategy="median", keep_empty_features=True).fit(matrix)
            complete = imputer.transform(matrix)
        center, scale = scaling_of([name for name, _, _ in chosen], complete, scaling)
        for j, (name, part, _) in enumerate(chosen):
            learned.setdefault(name, []).append((part, imputer.statistics_[j], center[j], scale[j]))
    for name, kind, values in columns:
        of_parts = [list(items) for items in zip(*learned.get(name, []), strict=True)] or [[], [], [], []]
        parts, fill, center_of, scale_of = of_parts
        numbers = ([float(number) for number in items] for items in (fill, center_of, scale_of))
        indicator = bool(values.missing.any())
        yield Numeric(name, kind, parts, *numbers, indicator, scaling == "robust" and kind != "boolean")


def scaling_of(names: Sequence[str], numbers: Array, scaling: str) -> tuple[Array, Array]:
    """Center and scale, arrays (columns,), of ``numbers`` (n, columns), as `Preprocessing` has ``scaling``.

    Raises
    ------
    ValueError
        The squares of a column's numbers, or their range, are beyond float64.
    """
    preprocessing, _ = imported()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        if scaling == "standard":
            scaler = preprocessing.StandardScaler().fit(numbers)
            center, scale = scaler.mean_, scaler.scale_
        else:
            scaler = preprocessing.RobustScaler().fit(numbers)
            quartiles = np.subtract(*np.percentile(numbers, [75, 25], axis=0))
            # where the quartiles are equal, half of the range
            center, scale = scaler.center_, np.where(quartiles > 0, scaler.scale_, np.ptp(numbers, axis=0) / 2)
    overflown = np.flatnonzero(~(np.isfinite(center) & np.isfinite(scale)))
    if len(overflown):
        column = overflown[0]
        raise ValueError(
            f"column {names[column]!r} has numbers up to {np.abs(numbers[:, column]).max():g}, too large for a mean "
            "and a deviation in float64: use another unit"
        )
    return center, scale


def fit_category(name: str, values: Column, y: Array | None, one_hot: int) -> OneHot | ByTarget:
    """An input for each category, or means of the target ``y`` where there are more than ``one_hot``."""
    preprocessing, impute = imported()
    texts = np.where(values.missing, None, values.texts()).astype(object)[:, None]
    imputer = impute.SimpleImputer(missing_values=None, strategy="most_frequent").fit(texts)
    fill, indicator = str(imputer.statistics_[0]), bool(values.missing.any())
    texts = imputer.transform(texts)
    categories = preprocessing.OneHotEncoder(handle_unknown="ignore").fit(texts).categories_[0].tolist()
    if len(categories) <= one_hot:
        return OneHot(name, categories, fill, indicator)
    if y is None:
        raise ValueError(
            f"column {name!r} has {len(categories)} categories, more than one_hot={one_hot}: pass y to fit, "
            "for their encoding by the target's mean"
        )
    encoders = [_target_encoder(categories).fit(texts, numbers) for numbers in _as_numbers(y)]
    encodings = [encoder.encodings_[0].tolist() for encoder in encoders]
    unknown = [float(encoder.target_mean_) for encoder in encoders]
    means = np.hstack([encoder.transform(texts) for encoder in encoders])
    scaler = preprocessing.StandardScaler().fit(means)
    scaling = scaler.mean_.tolist(), scaler.scale_.tolist()
    return ByTarget(name, categories, fill, indicator, encodings, unknown, *scaling)


def cross_fitted(one: ByTarget, values: Column, y: Array) -> Array:
    """For each row the means of the target over the four fifths of the rows that it is not in."""
    from sklearn.model_selection import KFold

    texts = filled(values, one.fill)[:, None]
    means = np.empty((len(y), len(one.encodings)))
    for others, rows in KFold(5, shuffle=True, random_state=0).split(texts):
        for j, numbers in enumerate(_as_numbers(y)):
            encoder = _target_encoder(one.categories).fit(texts[others], numbers[others])
            means[rows, j] = encoder.transform(texts[rows])[:, 0]
    return (means - one.center) / one.scale


def _target_encoder(categories):
    preprocessing, _ = imported()
    return preprocessing.TargetEncoder(categories=[np.array(categories, object)], target_type="continuous")


def _as_numbers(y):
    """The target as numbers: values as they are, of two classes the second, of more each against the rest."""
    if y.dtype.kind == "f":
        return [y]
    classes = np.unique(y)
    return [(y == label).astype(np.float64) for label in (classes[1:] if len(classes) == 2 else classes)]
