"""Training: epochs of steps, validation, history, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike

from . import callbacks as watching
from . import checks, data
from .data import Data
from .losses import Loss, LossFunction
from .optimizers import Optimizer
from .steps import (
    EagerSteps,
    FusedSteps,
    Interrupts,
    Slices,
    Snapshot,
    check_pair,
    checked_result,
    fused,
)

if TYPE_CHECKING:
    from .model import Sequential


class History(list[dict[str, Any]]):
    """One dict an epoch: ``epoch, loss, val_loss, accuracy, val_accuracy, lr, seconds``.

    ``loss`` is the mean over the rows of the epoch, each with the weights of its step; what does not apply is None.
    Accuracies exist only for targets that are labels. ``history["loss"]`` is a column; the text of a history is one
    line an epoch, and at most ten.
    """

    @overload
    def __getitem__(self, key: SupportsIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice) -> list[dict[str, Any]]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: Any) -> Any:
        return self.column(key) if isinstance(key, str) else super().__getitem__(key)

    def __repr__(self) -> str:
        lines = [watching.line(record, len(self)) for record in self]
        return "\n".join(lines if len(lines) <= 10 else [*lines[:4], "…", *lines[-5:]]) or "no epochs"

    def column(self, key: str) -> list[Any]:
        """The values of one key, epoch by epoch."""
        return [record[key] for record in self]


def fit(
    model: Sequential,
    X: Data,
    y: ArrayLike | None = None,
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    epochs: int = 1,
    batch_size: int = 32,
    shuffle: bool | str = True,
    drop_last: bool = False,
    accumulate: int = 1,
    validation_data: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    sample_weight: ArrayLike | None = None,
    callbacks: Sequence[Any] = (),
    on_nonfinite: str = "raise",
    verbose: bool = True,
) -> History:
    """Train for some epochs.

    Parameters
    ----------
    X : array (n, in), iterable, or function
        An array of any real dtype, layout and byte order, with finite values; it is used in place, or converted a few
        batches at a time, and never changed. Without ``y``: an iterable of chunks ``(X, y)`` or
        ``(X, y, sample_weight)``, or a function without arguments that returns one for every epoch; each chunk is
        checked before it is used.
    y : array (n, out), or integer labels (n,) for a loss of labels
        ``(n,)`` is taken as ``(n, 1)``; nothing else broadcasts.
    loss : loss
        A loss of fastbp, or a function ``(prediction, target) -> (value, gradient)``, which is called with a third
        argument when there are weights.
    optimizer : Optimizer
        Its state continues over calls.
    epochs, batch_size : int
        The last batch of an epoch, or of a chunk, may be short.
    shuffle : bool or "blocks"
        A new order of the rows every epoch, from the generator of the model: a full permutation, or with ``"blocks"``
        of blocks of ``fastbp.data.SHUFFLE_BLOCK`` rows, and within each, for a memory map of a file that is larger than
        the memory. Chunks come in the order of the iterable.
    drop_last : bool
        Leave out the last batch if it is short.
    accumulate : int
        Batches whose gradients are averaged for one update: the gradient of the mean loss over all their rows. The
        last group of an epoch, or of a chunk, has the batches that are left.
    validation_data : (X, y) or (X, y, sample_weight), optional
        ``val_loss`` is the mean with these weights; ``val_accuracy`` counts every row once.
    sample_weight : array (n,), optional
        Weights of the rows, not negative; means become ``Σ wᵢ lᵢ / Σ wᵢ``. Rows of weight 0 are left out.
    callbacks : list
        Objects with some of ``on_fit_begin(model, run)``, where ``run`` is a dict of ``epochs, batch_size, steps,
        rows, validation_rows, verbose, optimizer`` (steps and rows are None where X gives chunks);
        ``on_batch_end(model, record)`` with ``epoch, batch, loss``, for which batches run one a call;
        ``on_epoch_end(model, record)``, which may return True to stop; and ``on_fit_end(model, history)``.
    on_nonfinite : "raise" or "continue"
        When the loss of a batch is not finite: go back to the weights at the start of the last epoch that began with
        finite ones, reset the optimizer (state 0, ``step_count`` 0) and raise; or leave that batch out and go on.
    verbose : bool
        Print a line an epoch.

    Returns
    -------
    History
        Also ``model.history``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be; nothing has been changed. If it is a chunk, the weights are those of a
        finished step.
    FloatingPointError
        The loss is not finite.
    KeyboardInterrupt
        Ctrl-C, within 0.2 s or one step; the weights are those of a finished step.

    Notes
    -----
    Many steps run in one call of the kernels. A user's loss, an optimizer with ``clip_norm``, and ``accumulate`` above
    1 take single steps through stored gradients, with the same numbers.
    """
    settings = Settings(epochs, batch_size, shuffle, drop_last, accumulate, on_nonfinite, verbose)
    check_pair(loss, optimizer)
    watchers = [watching.Printer()] * settings.verbose + watching.checked(callbacks)
    source = data.source(model, loss, X, y, sample_weight, settings.epochs)
    validation = None if validation_data is None else Validation(model, loss, validation_data)
    return Training(model, loss, optimizer, source, validation, watchers, settings).run()


class Settings:
    """The checked numbers and choices of `fit`."""

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        shuffle: bool | str,
        drop_last: bool,
        accumulate: int,
        on_nonfinite: str,
        verbose: bool,
    ) -> None:
        self.epochs = checks.integer("epochs", epochs, minimum=1)
        self.batch_size = checks.integer("batch_size", batch_size, minimum=1)
        self.shuffle, self.drop_last = data.checked_shuffle(shuffle), checks.boolean("drop_last", drop_last)
        self.accumulate = checks.integer("accumulate", accumulate, minimum=1)
        self.on_nonfinite = checks.choice("on_nonfinite", on_nonfinite, ("raise", "continue"))
        self.verbose = checks.boolean("verbose", verbose)


class Training:
    """One call of `fit`, checked and ready to run.

    Parameters
    ----------
    model, loss, optimizer
    source : Chunk or Chunks
    validation : Validation or None
    callbacks : list
    settings : Settings
    """

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        optimizer: Optimizer,
        source: data.Chunk | data.Chunks,
        validation: Validation | None,
        callbacks: Sequence[Any],
        settings: Settings,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.source, self.validation = source, validation
        self.callbacks, self.settings = callbacks, settings
        optimizer.require_free_for(model._parameters)
        self.run_record = {"epochs": settings.epochs, "batch_size": settings.batch_size, "steps": None, "rows": None}
        self.run_record["optimizer"] = optimizer
        if isinstance(source, data.Chunk):
            rows = source.count
            steps = data.count_steps(rows, settings.batch_size, settings.drop_last)
            self.run_record |= {"batch_size": min(settings.batch_size, rows), "steps": steps, "rows": rows}
            self._check_batches(rows)
        self.run_record["verbose"] = settings.verbose
        self.run_record["validation_rows"] = len(validation.X) if validation else 0
        self.interrupts = Interrupts()
        self.each_batch = any(hasattr(callback, "on_batch_end") for callback in callbacks)
        self._ready = None, None  # the last chunk and what runs its steps

    def run(self) -> History:
        """Train; returns the history."""
        model, optimizer = self.model, self.optimizer
        with model.exclusive(), self.interrupts:
            optimizer.bind(model._parameters)
            model.remember_loss(self.loss)
            model._parameters.discard_gradients()
            model.history = history = History()
            watching.call(self.callbacks, "on_fit_begin", model, self.run_record)
            self.slices = Slices(6 * model._parameters.size, self.interrupts, 1 if self.each_batch else None)
            self.snapshot = Snapshot(model._parameters, optimizer) if self.settings.on_nonfinite == "raise" else None
            for epoch in range(1, self.settings.epochs + 1):
                start = time.perf_counter()
                record = dict.fromkeys(("epoch", "loss", "val_loss", "accuracy", "val_accuracy", "lr", "seconds"))
                record["epoch"] = epoch
                record["loss"], record["accuracy"] = self._epoch(epoch)
                if self.validation:
                    record["val_loss"], record["val_accuracy"] = self.validation()
                record["lr"] = float(optimizer.learning_rates(max(optimizer.step_count - 1, 0), 1)[0])
                record["seconds"] = time.perf_counter() - start
                history.append(record)
                if watching.call(self.callbacks, "on_epoch_end", model, record):
                    break
            watching.call(self.callbacks, "on_fit_end", model, history)
        return history

    def _check_batches(self, rows):
        """Refuse rows of which a batch would be a single one, where a layer takes statistics of a batch."""
        batch_size = min(self.settings.batch_size, rows)
        last = 0 if self.settings.drop_last else rows % batch_size
        if self.model.program.meets and 1 in (batch_size, last):
            raise ValueError(
                f"BatchNorm1d cannot train on a batch of one row, and {rows} rows in batches of {batch_size} have "
                f"one; use another batch_size, or drop_last=True"
            )

    def _steps_of(self, chunk):
        """The object that runs the steps of a chunk."""
        if self._ready[0] is not chunk:
            self._check_batches(chunk.count)
            arguments = self.model, self.loss, self.optimizer, chunk, min(self.settings.batch_size, chunk.count)
            accumulate = self.settings.accumulate
            if fused(self.loss, self.optimizer) and accumulate == 1:
                once = chunk is not self.source
                self._ready = chunk, FusedSteps(*arguments, once, self._ready[1])
            else:
                self._ready = chunk, EagerSteps(*arguments, accumulate)
        return self._ready[1]

    def _epoch(self, epoch):
        """(loss, accuracy or None) of an epoch."""
        if self.snapshot:
            self.snapshot.take(epoch)
        losses, weights, hits, labelled, steps = 0.0, 0.0, 0, 0, 0
        for chunk in self.source.epoch():
            run_steps = self._steps_of(chunk)
            order = chunk.order(self.model, self.settings.shuffle)
            if self.settings.drop_last:
                order = order[: len(order) - len(order) % self.settings.batch_size]
            if not len(order):
                continue
            step_loss, step_hits = self._run(run_steps, order, epoch, steps)
            steps += len(step_loss)
            sizes = np.full(len(step_loss), run_steps.batch_size)
            sizes[-1] = len(order) - (len(sizes) - 1) * run_steps.batch_size
            shares = sizes if chunk.weight is None else chunk.step_weights(order, run_steps.batch_size)
            if self.snapshot is None:  # on_nonfinite="continue" may have left some out
                trained = np.isfinite(step_loss)
                step_loss, step_hits, sizes, shares = (part[trained] for part in (step_loss, step_hits, sizes, shares))
            losses += float((step_loss * shares).sum())
            weights += float(shares.sum())
            if chunk.labels:
                hits += int(step_hits.sum())
                labelled += int(sizes.sum())
        if not steps:
            raise ValueError(
                f"drop_last=True leaves nothing to train on: no chunk has batch_size={self.settings.batch_size} rows; "
                f"use a smaller batch_size or drop_last=False"
            )
        return losses / weights if weights else math.nan, hits / labelled if labelled else None

    def _run(self, run_steps, order, epoch, steps_before):
        """Losses and hits of the batches of a chunk."""
        steps = -(-len(order) // run_steps.batch_size)
        step_loss, step_hits = np.empty(steps), np.zeros(steps, np.int64)
        for first, end, failed in self.slices(run_steps, order, step_loss, step_hits):
            for batch in range(first, end + failed) if self.each_batch else ():
                record = {"epoch": epoch, "batch": steps_before + batch + 1, "loss": float(step_loss[batch])}
                watching.call(self.callbacks, "on_batch_end", self.model, record)
            if failed and self.snapshot:
                raise FloatingPointError(
                    f"the loss was {step_loss[end]} at step {steps_before + end + 1} of epoch {epoch}; "
                    f"{self.snapshot.restore()}. Use a smaller lr, or scale the data"
                )
        return step_loss, step_hits


class Validation:
    """Loss and accuracy on data that is not trained on."""

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        arrays: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike],
    ) -> None:
        if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 3):
            what = type(arrays).__name__ + (f" of {len(arrays)}" if isinstance(arrays, tuple | list) else "")
            raise TypeError(f"validation_data must be a pair (X, y), or (X, y, sample_weight); got {what}")
        names = [f"validation_data[{i}]" for i in range(3)]
        self.model, self.loss = model, loss
        self.X, self.y = data.checked_pair(model, loss, *arrays[:2], names)
        weight = arrays[2] if len(arrays) == 3 else None
        if weight is not None:
            weight = checks.weights(names[2], weight, len(self.X))
        self.weight = loss.row_weight(self.y, weight) if isinstance(loss, Loss) else weight
        if not model.network.on_host:
            self.X, *_ = model._kernels.resident((self.X,), model.dtype) or (self.X,)

    def of(self, model: Sequential) -> Validation:
        """This validation for another model of the same shape and dtype."""
        other = copy.copy(self)
        other.model = model
        return other

    def __call__(self) -> tuple[float, float | None]:
        """(loss, accuracy or None)."""
        model, loss, X = self.model, self.loss, self.X
        if not isinstance(loss, Loss):
            prediction = model.predict(X)
            weight = () if self.weight is None else (self.weight,)
            return checked_result(loss(prediction, self.y, *weight), prediction.shape)[0], None
        row_loss, hits = np.empty(len(X)), 0
        counts = np.ones(len(X)) if self.weight is None else (self.weight > 0).astype(np.float64)
        for start in range(0, len(X), model.prediction_block):
            part = slice(start, start + model.prediction_block)
            prediction = model.predict(X[part], to_host=False)
            unused = prediction  # the gradient, written in place
            row_loss[part], row_hit = loss.of_rows(model._kernels, prediction, self.y[part], counts[part], unused)
            hits += int(row_hit.sum())
        if self.weight is None:
            value = row_loss.mean()
        else:
            row_loss *= self.weight
            value = row_loss.sum() / self.weight.sum()
        return float(value), hits / len(X) if loss.takes_labels(self.y) else None
