"""Measures of how good predictions are, in terms that people use."""

import numpy as np


def classification(probability: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and log loss in nats, of probabilities (n, classes) for labels (n,)."""
    chosen = probability[np.arange(len(labels)), labels].astype(np.float64)
    return {
        "accuracy": float((probability.argmax(axis=1) == labels).mean()),
        "log loss": float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()),
    }


def regression(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """R², root mean squared error and mean absolute error of predictions (n,) for targets (n,)."""
    error = prediction - target
    squared, spread = np.mean(error**2), np.mean((target - target.mean()) ** 2)
    return {
        "R²": float(1 - squared / spread) if spread else float("nan"),
        "RMSE": float(np.sqrt(squared)),
        "MAE": float(np.abs(error).mean()),
    }
