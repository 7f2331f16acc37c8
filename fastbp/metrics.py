"""Measures of how good predictions are, in terms that people use."""

import numpy as np


def classification(probability: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measures of probabilities (n, classes) for labels (n,).

    ``accuracy``; ``balanced acc.``, the mean over the classes of the share found; ``F1``, the mean over the classes of
    ``2 hits / (rows of the class + rows predicted so)``; ``ROC AUC``, the chance that a row of a class has a higher
    probability of it than a row of another, for two classes that of the second, for more the mean over the classes,
    each against the rest; ``log loss`` in nats. Means are over the classes that are there; what is not defined is NaN.
    """
    classes = probability.shape[1]
    chosen = probability[np.arange(len(labels)), labels].astype(np.float64)
    counts = confusion(probability.argmax(axis=1), labels, classes)
    hits, rows, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    met = rows + predicted > 0
    areas = [roc_auc(probability[:, k], labels == k) for k in ([1] if classes == 2 else range(classes))]
    defined = [area for area in areas if not np.isnan(area)]
    return {
        "accuracy": float((probability.argmax(axis=1) == labels).mean()),
        "balanced acc.": float((hits[rows > 0] / rows[rows > 0]).mean()),
        "F1": float((2 * hits[met] / (rows + predicted)[met]).mean()),
        "ROC AUC": float(np.mean(defined)) if defined else float("nan"),
        "log loss": float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()),
    }


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows of the true class, down, by the predicted class, across."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def roc_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive row has a higher score than another, ties counting half; NaN without either.

    By ranks: ``(Σ rank of the positive - p (p + 1) / 2) / (p q)``, p and q the numbers of both (Mann & Whitney, 1947).
    """
    p, q = int(positive.sum()), int((~positive).sum())
    if not p or not q:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[inverse]
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * q))


def regression(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """R², root mean squared error and mean absolute error of predictions (n,) for targets (n,)."""
    error = prediction - target
    squared, spread = np.mean(error**2), np.mean((target - target.mean()) ** 2)
    return {
        "R²": float(1 - squared / spread) if spread else float("nan"),
        "RMSE": float(np.sqrt(squared)),
        "MAE": float(np.abs(error).mean()),
    }
