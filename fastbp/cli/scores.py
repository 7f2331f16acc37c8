"""How good a model is, on parts of its data and beside a trivial prediction."""

import numpy as np

from .. import losses, metrics


def measured(network, preprocessing, x, y) -> dict[str, float]:
    """The metrics of a network's predictions."""
    outputs = network.predict(x)
    if preprocessing.task == "classification":
        return metrics.classification(losses.CrossEntropyLoss.probabilities(outputs, device=network.device), y)
    return metrics.regression(preprocessing.values(outputs), preprocessing.in_own_units(y))


def baseline(preprocessing, y) -> dict[str, float]:
    """Metrics of predicting, whatever the row, how often each class is, or the mean."""
    if preprocessing.task == "classification":
        return metrics.classification(np.tile(preprocessing.shares, (len(y), 1)), y)
    return metrics.regression(preprocessing.in_own_units(np.zeros(len(y))), preprocessing.in_own_units(y))


def lines(preprocessing, scores) -> list[str]:
    """A table with a row for each metric and a column for each part of the data, the last of which is the baseline."""
    if preprocessing.task == "classification":
        trivial, unit = f"always {preprocessing.classes[int(np.argmax(preprocessing.shares))]}", ""
    else:
        trivial, unit = "always the mean", f"   RMSE and MAE in units of {preprocessing.target!r}"
    columns = {trivial if part == "baseline" else part: values for part, values in scores.items()}
    widths = {column: max(10, len(column) + 3) for column in columns}
    text = [" " * 11 + "".join(f"{column:>{width}}" for column, width in widths.items()) + unit]
    for name in scores["baseline"]:
        cells = (f"{_figure(columns[column][name]):>{width}}" for column, width in widths.items())
        text.append(f" {name:10}" + "".join(cells))
    return text


def _figure(value):
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")
