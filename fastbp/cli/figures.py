"""The pictures of a run: its curves, and the confusion matrix or the residuals of the test part."""

import numpy as np

from .scores import shortened

CURVES = "curves.png"
MOST_NAMED = 30  # classes whose names and counts are legible
LONGEST_NAME = 24  # letters of a class


def write(folder, history, result) -> str:
    """Draw into the folder of a run; returns what was drawn, in words."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return '(for pictures: pip install "fastbp[plot]")'
    from ..plot import plot_history

    matplotlib.use("agg")
    curves = plot_history(history)
    curves.savefig(folder / CURVES, dpi=120)
    from matplotlib import pyplot

    pyplot.close(curves)
    figure = Figure(figsize=_size(result), layout="constrained")
    axis = figure.subplots()
    name = _confusion(figure, axis, result) if result.target.classes is not None else _residuals(axis, result)
    figure.savefig(folder / name, dpi=120)
    return f"{CURVES}  {name}"


def _size(result):
    """Width and height in inches: larger for many classes, and for names that need room."""
    names = _names(result)
    beside = 0.05 * max(map(len, names), default=0)
    square = 0.3 * len(names)
    return max(4.8, square + 1.6) + beside, max(4.2, square + 1) + (beside if _slanted(names) else 0)


def _names(result):
    """What the axes of the confusion matrix say; of too many classes, and of numbers, nothing."""
    classes = result.target.classes or []
    return [shortened(str(label), LONGEST_NAME) for label in classes] if len(classes) <= MOST_NAMED else []


def _slanted(names):
    return max(map(len, names), default=0) > 3


def _confusion(figure, axis, result):
    counts = result.confusion
    rows = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)), label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true", title="test part")
    names = _names(result)
    if names:
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if _slanted(names) else {}
        axis.set_xticks(range(len(names)), names, **slant)
        axis.set_yticks(range(len(names)), names)
        for i, j in np.argwhere(counts):
            axis.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    return "confusion.png"


def _residuals(axis, result):
    from matplotlib.ticker import EngFormatter

    residual = result.true - result.predicted
    axis.plot(result.predicted, residual, ".", markersize=4, color="#4c78a8")
    for along, values in ((axis.xaxis, result.predicted), (axis.yaxis, residual)):
        if np.abs(values).max() >= 1e5:
            along.set_major_formatter(EngFormatter())  # 500 k, 1 M
    axis.axhline(0, color="0.5", linewidth=1)
    name = result.target.name
    axis.set(xlabel=f"predicted {name}", ylabel="true less predicted", title="test part")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return "residuals.png"
