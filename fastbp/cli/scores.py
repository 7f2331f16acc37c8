"""How good a model is, on parts of its data and beside a trivial prediction; and what data it was given, in words."""

import functools
import math

import numpy as np

from .. import losses, metrics
from . import terminal

MOST_CLASSES = 20  # of a confusion matrix in a terminal
MOST_CONFUSED = 5  # pairs of classes, and rows of large errors, that are named
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Result:
    """What a network gives for some rows.

    Parameters
    ----------
    network : Sequential
    target : tabular.Target
    outputs : array (n, outputs)
        What it predicts.
    y : array (n,)
        As from `Target.encoded`.
    rows : array (n,), optional
        Numbers of the rows in their table.

    Attributes
    ----------
    metrics : dict of str to float
    predicted, true : array (n,)
        Class indices; or values in the target's own units.
    """

    def __init__(self, network, target, outputs, y, rows=None):
        self.target, self.rows = target, np.arange(len(y)) if rows is None else rows
        if target.classes is None:
            self.predicted, self.true = target.decoded(outputs), target.in_own_units(y)
            self.metrics = metrics.regression(self.predicted, self.true)
        else:
            probability = losses.CrossEntropyLoss.probabilities(outputs, device=network.device)
            self.predicted, self.true = outputs.argmax(axis=1), y
            self.metrics = metrics.classification(probability, y)

    @functools.cached_property
    def confusion(self):
        """Rows by true class (down) and predicted class (across)."""
        return metrics.confusion(self.predicted, self.true, len(self.target.classes))

    def confusion_lines(self, width, of):
        """The confusion matrix as text; of many classes, the pairs that are confused most."""
        counts, names = self.confusion, [str(label) for label in self.target.classes]
        label = min(16, max(len(name) for name in names))
        cell = max(6, min(label, 10) + 1, len(f"{counts.max():,}") + 1)
        if len(names) <= MOST_CLASSES and 8 + label + cell * len(names) <= (width or 120):
            shown = [shortened(name, cell - 1) for name in names]
            yield f"confusion matrix, {of}: true class down, predicted across"
            yield " " * (label + 2) + "".join(f"{name:>{cell}}" for name in shown)
            for name, row in zip(names, counts.tolist(), strict=True):
                yield f"  {shortened(name, label):{label}}" + "".join(f"{count or '·':>{cell}}" for count in row)
            return
        wrong = counts - np.diag(np.diag(counts))
        yield f"confused most, {of}: true class, predicted, rows"
        for place in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]:
            i, j = divmod(int(place), len(names))
            if wrong[i, j]:
                yield f"  {shortened(names[i], 24):24} {shortened(names[j], 24):24} {wrong[i, j]:>6}"

    def residual_lines(self):
        """Quantiles of the errors, and the rows of the largest."""
        residual = self.true - self.predicted
        yield f"true less predicted, in units of {self.target.name!r}"
        yield "  quantile" + "".join(f"{f'{share:.0%}':>10}" for share in QUANTILES)
        yield " " * 10 + "".join(f"{figure(value):>10}" for value in np.quantile(residual, QUANTILES).tolist())
        yield "largest errors"
        yield f"  {'row':>9}{'predicted':>14}{'true':>14}"
        for i in np.argsort(-np.abs(residual), kind="stable")[:MOST_CONFUSED]:
            predicted, true = figure(float(self.predicted[i])), figure(float(self.true[i]))
            yield f"  {self.rows[i] + 1:>9}{predicted:>14}{true:>14}"


def shortened(text: str, most: int) -> str:
    """The text, or as much of it as that many letters hold."""
    return text if len(text) <= most else text[: most - 1] + "…"


def baseline(target, y) -> dict[str, float]:
    """Metrics of predicting, whatever the row, how often each class is, or the mean."""
    if target.classes is not None:
        return metrics.classification(np.tile(target.shares, (len(y), 1)), y)
    return metrics.regression(target.in_own_units(np.full(len(y), target.trivial)), target.in_own_units(y))


def lines(target, scores, width=0) -> list[str]:
    """A table with a row for each metric and a column for each part of the data, the last of which is the baseline."""
    if target.classes is not None:
        trivial, unit = f"always {shortened(str(target.classes[int(np.argmax(target.shares))]), 24)}", ""
    else:
        trivial, unit = "always the mean", f"RMSE and MAE in units of {target.name!r}"
    titles = [trivial if part == "baseline" else shortened(part, 24) for part in scores]
    first = max(map(len, scores["baseline"])) + 2
    widths = [max(10, len(title) + 3) for title in titles]
    if width and first + sum(widths) > width:  # closer together, and what is always predicted as short as needed
        room = max(9, width - first - sum(max(9, len(title) + 1) for title in titles[:-1]))
        titles[-1] = shortened(titles[-1], room - 1)
        widths = [max(9, len(title) + 1) for title in titles]
    text = [" " * first + "".join(f"{title:>{cell}}" for title, cell in zip(titles, widths, strict=True))]
    for name in scores["baseline"]:
        cells = (f"{_score(name, of[name]):>{cell}}" for of, cell in zip(scores.values(), widths, strict=True))
        text.append(f" {name:{first - 1}}" + "".join(cells))
    return text + ([" " + unit] if unit else [])


def _score(name, value):
    """A metric: four decimals of a share or a coefficient, else four digits."""
    if name in ("RMSE", "MAE", "log loss") or value is None or not abs(value) < 10:
        return figure(value)
    return f"{round(value, 4) + 0.0:.4f}"  # no -0.0000


def figure(value):
    """Four digits, or all of a large number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")


def data_lines(options, learned, incomplete):
    """(label, text) of what the table is, what is filled, and what is left out."""
    table, target, preprocessing = learned.table, learned.target, learned.preprocessing
    kind, other = target.task, "regression" if target.classes is not None else "classification"
    if target.classes is not None:
        kind += f", {len(target.classes)} classes"
    if options.task == "auto" and (target.classes is None or not isinstance(target.classes[0], str)):
        kind += f"; if not: --task {other}"
    names = "" if table.named else " · no header row"
    yield "data", f"{options.data}   {terminal.rows(len(table))} · target {target.name!r} ({kind}){names}"
    kinds = {}
    for column in preprocessing.columns:
        kinds[column.kind] = kinds.get(column.kind, 0) + 1
    plural = {"number": "numbers", "boolean": "truth values", "category": "categories", "date": "dates"}
    counts = " · ".join(f"{count} {kind if count == 1 else plural[kind]}" for kind, count in kinds.items())
    yield "", f"columns: {counts} → {terminal.counted(preprocessing.width, 'input')}"
    if preprocessing.by_target:
        names = listed(preprocessing.by_target)
        yield "", f"by the target's mean, as they have more than {preprocessing.one_hot} categories: {names}"
    if learned.sampled < len(table):
        yield "", f"kinds and statistics of columns are those of {terminal.rows(learned.sampled)} drawn at random"
    if learned.dropped:
        yield "missing", f"{terminal.rows(learned.dropped)} without target left out"
    if incomplete:
        yield "missing", f"{terminal.rows(incomplete)} with a missing value left out (--drop-missing)"
    categories = {column.name for column in preprocessing.columns if column.kind == "category"}
    for how, of in (
        ("filled with the median", {n: c for n, c in preprocessing.gaps.items() if n not in categories}),
        ("filled with the most frequent", {n: c for n, c in preprocessing.gaps.items() if n in categories}),
    ):
        if of:
            counts = listed([f"{name} ({count})" for name, count in of.items()])
            yield "missing", f"{how}, and marked by an input: {counts}, counted in the training part"
    if preprocessing.left_out:
        identifiers = "identifier" in preprocessing.left_out.values()
        left = listed([f"{name} ({why})" for name, why in preprocessing.left_out.items()])
        yield "left out", left + "; to have an identifier in: --keep" * identifiers


def listed(names, most=8):
    """Names separated by commas, of many the first."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
