"""`solver="sgd"` and `"adam"`: epochs of steps, what is kept of each, and when they end."""

from __future__ import annotations

import math
import threading
import time
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from .. import callbacks as watching
from ..slices import Interrupts, Slices
from ..training import History
from ..validation import Validation
from .rate import Rate
from .rows import dense, outputs
from .steps import Steps

AUTO_BATCH = 200  # rows of a batch where batch_size="auto"


class Group:
    """Trainings that one search started; they stop together."""

    def __init__(self):
        self.stopped, self.running = False, weakref.WeakSet()

    def interrupts(self):
        """Those of a training that begins."""
        interrupts = Interrupts()
        interrupts.came = self.stopped
        self.running.add(interrupts)
        return interrupts

    def stop(self):
        """Stop those that run, and those that would begin."""
        self.stopped = True
        for interrupts in list(self.running):
            interrupts.came = True


class Started(threading.local):
    """The search that started what runs on this thread."""

    group = None


started = Started()


class Best:
    """The weights of the best epoch; those from before training, until there is one."""

    def __init__(self, model):
        self.network, self.kept = model.network, None
        self.keep()

    def keep(self):
        """Keep the weights of now."""
        self.kept = self.network.copied_values(self.kept)

    def restore(self):
        """Put the kept weights back."""
        self.network.restore_values(self.kept)


class Epochs:
    """A call of `fit` or `partial_fit`, checked and ready to run.

    Parameters
    ----------
    estimator
    X, y, weight
        Checked data; weights are None or float64.
    validation : (X, y) or None
    random : RandomState or None
        None where nothing is drawn.
    incremental : bool
        One epoch, with the optimizer of the one before.
    """

    def __init__(self, estimator, X, y, weight, validation, random, incremental):
        self.estimator, self.random, self.incremental = estimator, random, incremental
        self.given, weight_val = validation is not None, None
        if estimator.early_stopping and not self.given:
            rows, rows_val = self._split(X, y)
            X, validation, y = X[rows], (X[rows_val], y[rows_val]), y[rows]
            if weight is not None:
                weight, weight_val = weight[rows], weight[rows_val]
        self.count, self.epochs = X.shape[0], 1 if incremental else estimator.max_iter
        self.batch_size = min(AUTO_BATCH, self.count) if estimator.batch_size == "auto" else estimator.batch_size
        if self.batch_size > self.count:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=5
            )
            self.batch_size = self.count
        self.batches, self.model = -(-self.count // self.batch_size), estimator.model_
        if self.model.program.meets and 1 in (self.batch_size, self.count % self.batch_size):
            raise ValueError(
                f'normalization="batch" cannot train on a batch of one row, and {self.count} rows in batches of '
                f'{self.batch_size} have one; use another batch_size, or normalization="layer"'
            )
        self.slices = None  # of a call with one step
        self.watchers = watching.checked(list(estimator.callbacks)) if estimator.callbacks else []
        self.data, self.validation = (X, estimator._checked_target(y), estimator._weight(y, weight)), validation
        self.weight_val, self.loss_of_validation = weight_val, None
        self.steps = self._steps()
        if self.given:
            arrays = dense(validation[0]), estimator._checked_target(validation[1])
            self.loss_of_validation = Validation(self.model, self.steps.objective.loss, arrays)

    def _split(self, X, y):
        """Rows to train on and rows to validate on."""
        estimator, rows = self.estimator, X.shape[0]
        rows, rows_val = train_test_split(
            np.arange(rows),
            random_state=self.random,
            test_size=estimator.validation_fraction,
            stratify=estimator._strata(y),
        )
        if len(rows_val) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset: "
                f"validation_fraction={estimator.validation_fraction} of {X.shape[0]} rows leaves {len(rows_val)}, "
                "and 2 are needed"
            )
        return rows, rows_val

    def _steps(self):
        """The optimizer and what runs its steps; of the call before, if this is a `partial_fit` after another."""
        estimator, state = self.estimator, vars(self.estimator)
        made_of = state.get("loss"), estimator.out_activation_, estimator.n_outputs_  # what an objective is made of
        if self.incremental and "_optimizer" in state:
            known, ready = state.get("_steps", (None, None))
            if known == made_of and ready.model is self.model and ready.optimizer is estimator._optimizer.optimizer:
                return ready
        objective = estimator._objective()
        if not (self.incremental and "_optimizer" in state):
            estimator._optimizer = Rate(estimator, objective.scale)
        steps = Steps(self.model, objective, estimator._optimizer.optimizer)
        estimator._steps = made_of, steps
        return steps

    def run(self):
        """Train."""
        estimator, model, watchers = self.estimator, self.model, self.watchers
        X_val = self.validation[0] if self.validation else None
        if X_val is not None and estimator.validation_scores_ is None:
            estimator.validation_scores_ = []
        if self.given:
            estimator.validation_loss_curve_ = estimator.validation_loss_curve_ or []
        rate = estimator._optimizer
        model.optimizer = rate.optimizer
        model.history = history = History()
        run = {
            "epochs": self.epochs, "batch_size": self.batch_size, "steps": self.batches, "rows": self.count,
            "verbose": bool(estimator.verbose), "validation_rows": 0 if X_val is None else X_val.shape[0],
            "optimizer": rate.optimizer,
        }  # fmt: skip
        # One step is not interrupted, and a handler of signals takes longer than it.
        interrupts = nullcontext()
        if self.epochs * self.batches > 1 or watchers:
            interrupts = Interrupts() if started.group is None else started.group.interrupts()
            each_batch = any(hasattr(watcher, "on_batch_end") for watcher in watchers)
            self.slices = Slices(model.network, interrupts, 1 if each_batch else None)
        self.order = np.arange(self.count)
        self.best, estimator.n_iter_ = Best(model) if estimator.early_stopping else None, 0
        self.steps.give(*self.data, estimator.alpha, self.batch_size)
        self.sizes = self.steps.sizes_of(self.count)
        try:
            with model.exclusive(), interrupts:
                if self.slices is not None:
                    interrupts.raise_deferred()
                watching.call(watchers, "on_fit_begin", model, run)
                for epoch in range(1, self.epochs + 1):
                    history.append(self._epoch(epoch))
                    stop = watching.call(watchers, "on_epoch_end", model, history[-1])
                    if self._converged(rate) or stop or self.incremental:
                        break
                    if epoch == self.epochs:
                        warnings.warn(
                            f"Stochastic Optimizer: Maximum iterations ({epoch}) reached and the optimization hasn't "
                            f"converged yet.",
                            ConvergenceWarning,
                            stacklevel=4,
                        )
                watching.call(watchers, "on_fit_end", model, history)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        finally:
            self.steps.give(None, None, None, estimator.alpha, 1)  # they stay with the estimator, the data do not
        if self.best is not None:
            self.best.restore()

    def _epoch(self, epoch):
        """Train for an epoch; its record."""
        estimator, begin = self.estimator, time.perf_counter()
        if estimator.shuffle and self.count > 1:
            self.order = self.order[self.random.permutation(self.count)]
        step_loss, step_hits = np.empty(self.batches), np.zeros(self.batches, np.int64)
        if self.slices is None:
            self.model.network.changes.under_way(self.steps, self.order, step_loss, step_hits)
        else:
            self._in_slices(epoch, step_loss, step_hits)
        self._keep(epoch, float(step_loss.dot(self.sizes)) / self.count)
        val_loss = val_accuracy = None
        if self.loss_of_validation:
            val_loss, val_accuracy = self.loss_of_validation()
            val_loss *= self.steps.objective.share
            estimator.validation_loss_curve_.append(val_loss)
        return {
            "epoch": epoch, "loss": estimator.loss_, "val_loss": val_loss, "accuracy": None,
            "val_accuracy": val_accuracy, "lr": estimator._optimizer.learning_rate,
            "seconds": time.perf_counter() - begin,
        }  # fmt: skip

    def _in_slices(self, epoch, step_loss, step_hits):
        """Run an epoch, with answers to Ctrl-C and calls of callbacks between its slices."""
        for first, end, failed in self.slices(self.steps, self.order, step_loss, step_hits):
            self.slices.interrupts.raise_deferred()
            for batch in range(first, end + failed) if self.slices.most else ():
                record = {"epoch": epoch, "batch": batch + 1, "loss": float(step_loss[batch])}
                watching.call(self.watchers, "on_batch_end", self.model, record)

    def _keep(self, epoch, loss):
        """Keep what an epoch gave, and count those without improvement."""
        estimator = self.estimator
        estimator.n_iter_, estimator.loss_ = epoch, loss
        estimator.t_ += self.count
        estimator.loss_curve_.append(loss)
        if estimator.verbose:
            print(f"Iteration {epoch}, loss = {loss:.8f}")
        if self.validation is not None:
            estimator.validation_scores_.append(self._score())
            if estimator.verbose:
                print(f"Validation score: {estimator.validation_scores_[-1]:f}")
        if estimator.early_stopping:
            last, best = estimator.validation_scores_[-1], estimator.best_validation_score_
            worse = last < best + estimator.tol
            if last > best:
                estimator.best_validation_score_ = last
                self.best.keep()
        else:
            worse = loss > estimator.best_loss_ - estimator.tol
            estimator.best_loss_ = loss if loss < estimator.best_loss_ else estimator.best_loss_
        estimator._no_improvement_count = estimator._no_improvement_count + 1 if worse else 0

    def _score(self):
        """The score on the validation data; NaN where predictions are not finite."""
        X, y = self.validation
        prediction = self.estimator._from_outputs(outputs(self.model, X))
        if prediction.dtype.kind == "f" and not np.isfinite(prediction).all():
            return math.nan
        return self.estimator._metric(y, prediction, sample_weight=self.weight_val)

    def _converged(self, rate):
        """Whether training ends for want of improvement; changes the learning rate as its policy says."""
        estimator = self.estimator
        rate.epoch_ended(estimator.t_)
        if not estimator._no_improvement_count > estimator.n_iter_no_change:
            return False
        what, end = rate.after_no_improvement()
        if estimator.verbose:
            watched = "Validation score" if estimator.early_stopping else "Training loss"
            print(
                f"{watched} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
                f"consecutive epochs. {what}"
            )
        if not end:
            estimator._no_improvement_count = 0
        return end
