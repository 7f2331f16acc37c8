"""Rows of X: which need no check, and what the network gives for them."""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse

from .. import checks

FLOATS = np.dtype(np.float64), np.dtype(np.float32)
BLOCK_BYTES = 16 << 20  # of sparse rows that are made dense at once to predict


def dense(X):
    """X as an array, if it is sparse."""
    return X.toarray() if sparse.issparse(X) else X


def passes(estimator, X):
    """Whether X is a plain array that `validate_data` would return unchanged: looking takes a few microseconds."""
    state = vars(estimator)
    if type(X) is not np.ndarray or X.ndim != 2 or X.dtype not in FLOATS or not X.size:
        return False
    if "_coefs" not in state or "feature_names_in_" in state or X.shape[1] != state.get("n_features_in_"):
        return False
    return has_finite_sum(X)


def are_numbers(y, rows):
    """Whether y is a plain array of finite numbers, one a row, that `validate_data` would return unchanged."""
    numbers = type(y) is np.ndarray and (y.dtype in FLOATS or y.dtype.kind in "iu")
    return numbers and y.shape == (rows,) and has_finite_sum(y)


def has_finite_sum(array):
    """Whether the sum of all is finite, so that everything is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.add.reduce(array, axis=None))


def check_held(X, dtype):
    """Refuse finite numbers that a network of this dtype cannot hold."""
    if X.dtype != dtype:
        argument, numbers = ("X.data", X.data) if sparse.issparse(X) else ("X", X)
        checks.finite(argument, numbers, dtype)


def outputs(model, X):
    """What the network gives for X; sparse rows are made dense a block at a time."""
    check_held(X, model.dtype)
    if not sparse.issparse(X):
        return model.predict(X)
    rows = max(1, BLOCK_BYTES // (X.shape[1] * model.dtype.itemsize))
    return np.vstack([model.predict(X[start : start + rows].toarray()) for start in range(0, X.shape[0], rows)])
