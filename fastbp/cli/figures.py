"""The pictures of a run: its curves, and the confusion matrix or the residuals of the test part."""

import numpy as np

CURVES = "curves.png"
MOST_NAMED = 30  # classes whose names and counts are legible


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
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axis = figure.subplots()
    name = _confusion(figure, axis, result) if result.target.classes is not None else _residuals(axis, result)
    figure.savefig(folder / name, dpi=120)
    return f"{CURVES}  {name}"


def _confusion(figure, axis, result):
    counts = result.confusion
    rows = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true", title="test part")
    if len(counts) <= MOST_NAMED:
        names = [str(label) for label in result.target.classes]
        axis.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="center")
        axis.set_yticks(range(len(names)), names)
        for i, j in np.argwhere(counts):
            axis.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    return "confusion.png"


def _residuals(axis, result):
    axis.plot(result.predicted, result.true - result.predicted, ".", markersize=4, color="#4c78a8")
    axis.axhline(0, color="0.5", linewidth=1)
    name = result.target.name
    axis.set(xlabel=f"predicted {name}", ylabel="true less predicted", title="test part")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return "residuals.png"
