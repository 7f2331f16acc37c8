"""`solver="sgd"` and `"adam"`: epochs of steps, and when they end."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from .. import callbacks as watching
from ..steps import Interrupts
from ..training import History, Validation
from .rate import Rate
from .rows import dense, outputs
from .steps import Steps

AUTO_BATCH = 200  # rows of a batch where batch_size="auto"


class Best:
    """The weights of the best epoch; those from before training, until there is one."""

    def __init__(self, model):
        self.network, self.kept = model.network, None
        self.keep()

    def keep(self):
        self.kept = self.network.copied_values(self.kept)

    def restore(self):
        self.network.restore_values(self.kept)


def fit_stochastic(estimator, X, y, weight, X_val, y_val, random, incremental):
    given, weight_val = X_val is not None, None
    if estimator.early_stopping and not given:
        strata = estimator._strata(y)
        rows, rows_val = train_test_split(
            np.arange(X.shape[0]), random_state=random, test_size=estimator.validation_fraction, stratify=strata
        )
        if len(rows_val) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset: "
                f"validation_fraction={estimator.validation_fraction} of {X.shape[0]} rows leaves {len(rows_val)}, "
                "and 2 are needed"
            )
        X, X_val, y, y_val = X[rows], X[rows_val], y[rows], y[rows_val]
        if weight is not None:
            weight, weight_val = weight[rows], weight[rows_val]
    batch_size = min(AUTO_BATCH, X.shape[0]) if estimator.batch_size == "auto" else estimator.batch_size
    if batch_size > X.shape[0]:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
        )
        batch_size = X.shape[0]
    if not (incremental and hasattr(estimator, "_optimizer")):
        estimator._optimizer = Rate(estimator)
    model, rate = estimator.model_, estimator._optimizer
    model.optimizer = rate.optimizer
    steps = Steps(estimator, rate.optimizer, X, estimator._target(y), estimator._weight(y, weight))
    score = None if X_val is None else partial(_score_of, estimator, X_val, y_val, weight_val)
    validation = Validation(model, steps.loss, (dense(X_val), estimator._target(y_val))) if given else None
    if score is not None and estimator.validation_scores_ is None:
        estimator.validation_scores_ = []
    if given:
        estimator.validation_loss_curve_ = estimator.validation_loss_curve_ or []
    watchers = watching.checked(list(estimator.callbacks or ()))
    count, order, epochs = X.shape[0], np.arange(X.shape[0]), 1 if incremental else estimator.max_iter
    run = {"epochs": epochs, "batch_size": batch_size, "steps": -(-count // batch_size), "rows": count}
    run |= {"verbose": bool(estimator.verbose), "validation_rows": 0 if X_val is None else X_val.shape[0]}
    model.history = history = History()
    estimator.n_iter_, best = 0, Best(model) if estimator.early_stopping else None
    try:
        with model.exclusive(), Interrupts() as interrupts:
            watching.call(watchers, "on_fit_begin", model, run)
            for epoch in range(1, epochs + 1):
                begin = time.perf_counter()
                if estimator.shuffle and count > 1:
                    order = order[random.permutation(count)]
                total = 0.0
                for number, start in enumerate(range(0, count, batch_size), 1):
                    rows = order[start : start + batch_size]
                    interrupts.deferred = True
                    value = steps(rows)
                    interrupts.raise_deferred()
                    total += value * len(rows)
                    watching.call(watchers, "on_batch_end", model, {"epoch": epoch, "batch": number, "loss": value})
                _epoch_ended(estimator, epoch, total / count, count, score, best)
                val_loss, val_accuracy = validation() if validation else (None, None)
                if validation:
                    val_loss *= steps.share
                    estimator.validation_loss_curve_.append(val_loss)
                record = {"epoch": epoch, "loss": estimator.loss_, "val_loss": val_loss, "accuracy": None}
                record |= {"val_accuracy": val_accuracy, "lr": rate.learning_rate}
                history.append(record | {"seconds": time.perf_counter() - begin})
                stop = watching.call(watchers, "on_epoch_end", model, history[-1])
                if _converged(estimator, rate) or stop or incremental:
                    break
                if epoch == epochs:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({epochs}) reached and the optimization hasn't "
                        f"converged yet.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
            watching.call(watchers, "on_fit_end", model, history)
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=4)
    if estimator.early_stopping:
        best.restore()


def _epoch_ended(estimator, epoch, loss, rows, score, weights):
    """Keep what an epoch gave, and count those without improvement."""
    estimator.n_iter_, estimator.loss_ = epoch, loss
    estimator.t_ += rows
    estimator.loss_curve_.append(loss)
    if estimator.verbose:
        print(f"Iteration {epoch}, loss = {loss:.8f}")
    if score is not None:
        estimator.validation_scores_.append(score())
        if estimator.verbose:
            print(f"Validation score: {estimator.validation_scores_[-1]:f}")
    if estimator.early_stopping:
        last, best = estimator.validation_scores_[-1], estimator.best_validation_score_
        worse = last < best + estimator.tol
        if last > best:
            estimator.best_validation_score_ = last
            weights.keep()
    else:
        worse = loss > estimator.best_loss_ - estimator.tol
        estimator.best_loss_ = loss if loss < estimator.best_loss_ else estimator.best_loss_
    estimator._no_improvement_count = estimator._no_improvement_count + 1 if worse else 0


def _converged(estimator, rate):
    """Whether training ends for want of improvement; changes the learning rate as its policy says."""
    rate.epoch_ended(estimator.t_)
    if not estimator._no_improvement_count > estimator.n_iter_no_change:
        return False
    what, end = rate.after_no_improvement()
    if estimator.verbose:
        watched = "Validation score" if estimator.early_stopping else "Training loss"
        print(
            f"{watched} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} consecutive "
            f"epochs. {what}"
        )
    if not end:
        estimator._no_improvement_count = 0
    return end


def _score_of(estimator, X, y, weight):
    prediction = estimator._from_outputs(outputs(estimator.model_, X))
    if prediction.dtype.kind == "f" and not np.isfinite(prediction).all():
        return math.nan
    return estimator._metric(y, prediction, sample_weight=weight)
