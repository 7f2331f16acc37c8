"""The predictor of a run: a network behind what its data goes through."""

from __future__ import annotations

import warnings
from typing import Any

from .learning import restored
from .preprocessing import Lacks
from .table import Array


class Predictor:
    """What `fastbp.load` gives for a file of ``fastbp train``: it takes raw columns and predicts labels or values.

    Parameters
    ----------
    model : Sequential
        With ``metadata`` of ``fastbp train``.

    Attributes
    ----------
    model : Sequential
        The network, which takes prepared numbers.
    preprocessing : Preprocessing
        From raw columns to its inputs.
    target : Target
        What it predicts.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.preprocessing, self.target = restored(model.metadata)

    @property
    def classes(self) -> list[Any] | None:
        """Labels in the order of the columns of `predict_proba`; None for regression."""
        return self.target.classes

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file keeps beside the network."""
        return self.model.metadata

    def predict(self, X: Any) -> Array:
        """Labels, or values in the units of the target, array (n,).

        Parameters
        ----------
        X : frame, dict of columns, Table, or array (n, columns)
            Columns are found by name; an array has the columns of ``preprocessing.features``, in that order.

        Raises
        ------
        TypeError, ValueError, ImportError
            As of `Preprocessing.transform`, which also warns.
        """
        return self.target.decoded(self.model.predict(self._inputs(X)))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes, array (n, classes), for ``X`` as in `predict`.

        Raises
        ------
        ValueError
            The target is no class.
        """
        if self.target.classes is None:
            raise ValueError(f"predict_proba is for classes, and {self.target.name!r} is a number: use predict")
        return self.model.predict_proba(self._inputs(X))

    def _inputs(self, X):
        table, lacks = self.preprocessing.table(X, self.target.name), Lacks()
        inputs = self.preprocessing.applied(table, self.model.dtype, lacks)
        for remark in lacks.remarks(table.name):
            warnings.warn(remark, UserWarning, stacklevel=3)
        return inputs

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name != "model" and hasattr(self.model, name):
            raise AttributeError(
                f"what was loaded is the predictor of a run, which takes raw columns; its network has {name!r}: "
                f"fastbp.load(…).model.{name}"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *arguments: Any) -> Any:
        raise TypeError("the predictor of a run cannot be called: use predict(X), or its network: fastbp.load(…).model")

    def __repr__(self) -> str:
        what = f"{len(self.target.classes)} classes" if self.target.classes is not None else "regression"
        columns = len(self.preprocessing.features)
        return f"Predictor(target={self.target.name!r}, {what}, {columns} columns, model={self.model!r})"
