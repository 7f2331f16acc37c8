"""Training: epochs of steps, history, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike

from . import callbacks as watching
from . import checkpoints as keeping
from . import checks, data, shards
from . import ranks as working
from .data import Data, Shuffle
from .distributed import Communicator
from .kept import Kept, can_be_kept
from .losses import LossFunction
from .optimizers import Optimizer
from .slices import Interrupts, Slices, Snapshot
from .steps import CompiledSteps, StoredSteps, check_pair, compiled
from .validation import Validation

if TYPE_CHECKING:
    from .model import Sequential
    from .ranks import Ranks


_NOTHING = contextlib.nullcontext()


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
        return [record[key] for record in self] if isinstance(key, str) else super().__getitem__(key)

    def __repr__(self) -> str:
        lines = [watching.line(record, len(self)) for record in self]
        return "\n".join(lines if len(lines) <= 10 else [*lines[:4], "…", *lines[-5:]]) or "no epochs"


def fit(
    model: Sequential,
    X: Data,
    y: ArrayLike | None = None,
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    epochs: int = 1,
    batch_size: int = 32,
    shuffle: Shuffle = True,
    drop_last: bool = False,
    accumulate: int = 1,
    validation_split: float = 0.0,
    validation_data: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    sample_weight: ArrayLike | None = None,
    callbacks: Sequence[Any] = (),
    on_nonfinite: str = "raise",
    verbose: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: str | os.PathLike[str] | None = None,
    communicator: Communicator | None = None,
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
    shuffle : bool, "blocks" or function
        A new order of the rows every epoch, from the generator of the model: a full permutation, or with ``"blocks"``
        of blocks of ``fastbp.data.SHUFFLE_BLOCK`` rows, and within each, for a memory map of a file that is larger than
        the memory. Chunks come in the order of the iterable. A function ``epoch -> order`` is called with 1, 2, … and
        returns the numbers of the rows to train on, in order, an array of integers of any length: some rows several
        times, some never, those of weight 0 too. A batch whose weights are all 0 has loss and gradient 0. With
        `fit_many(rows=…)` and with chunks the numbers are places in those rows. The same call with ``resume`` asks
        again for the order of the epoch that was interrupted.
    drop_last : bool
        Leave out the last batch if it is short.
    accumulate : int
        Batches whose gradients are averaged for one update: the gradient of the mean loss over all their rows. The
        last group of an epoch, or of a chunk, has the batches that are left.
    validation_split : float
        The share of the rows, the last ones of X and y, that serve as validation data and are not trained on.
    validation_data : (X, y) or (X, y, sample_weight), optional
        ``val_loss`` is the mean with these weights; ``val_accuracy`` counts every row once.
    sample_weight : array (n,), optional
        Weights of the rows, not negative; means become ``Σ wᵢ lᵢ / Σ wᵢ``. Rows of weight 0 are left out.
    callbacks : list
        Objects with some of ``on_fit_begin(model, run)``, where ``run`` is a dict of ``epochs, batch_size, steps,
        rows, validation_rows, verbose, optimizer, rank`` (steps and rows are None where X gives chunks, and steps where
        ``shuffle`` is a function); ``on_batch_end(model, record)`` with ``epoch, batch, loss``, for which batches run
        one a call;
        ``on_epoch_end(model, record)``, which may return True to stop; and ``on_fit_end(model, history)``. What they
        set in the optimizer holds from the next step on. Checkpoints keep what ``state_dict()`` of a callback returns,
        a dict of JSON and arrays, and ``load_state_dict(state)`` takes it back.
    on_nonfinite : "raise" or "continue"
        When the loss of a batch, or the weights after an epoch, are not finite: go back to the weights at the start of
        the last epoch that began with finite ones, reset the optimizer (state 0, ``step_count`` 0) and raise; or leave
        that batch out and go on.
    verbose : bool
        Print a line an epoch; where there are many, a terminal (with the package rich) and a notebook show a bar. The
        logger ``"fastbp"`` gets the lines in any case, as INFO.
    checkpoint : path, optional
        A folder for checkpoints, the newest two of which stay. `request_checkpoint` asks for one at once.
    every : int
        Epochs from one checkpoint to the next.
    resume : path, optional
        A folder with checkpoints. The same call on a new model of the same layers goes on from the newest good one,
        to the bits of a run that was never stopped; more ``epochs`` may be asked for. With
        ``checkpoint="folder", resume="folder"``, a folder that is empty or missing begins a run, so the same script
        begins and goes on. Of an iterable X, the chunks of the epoch that are done are passed over.
    communicator : Communicator, optional
        Of `fastbp.distributed`, where several processes train together: each makes this call with rows of its own,
        also for validation, and ends with the same weights. ``batch_size`` is a rank's, and the global batch, which the
        sum of them says, takes from every rank in proportion to its rows. Rank 0 decides when to stop, prints, and
        writes checkpoints; callbacks run on every rank, with the same records.

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
        The loss, or a weight, is not finite.
    KeyboardInterrupt
        Ctrl-C, within 0.2 s or one step; the weights are those of a finished step. With ``checkpoint`` one is
        written first, where Ctrl-C meets a step.

    Notes
    -----
    Many steps run in one call of the kernels. A user's loss, an optimizer with ``clip_norm``, and ``accumulate`` above
    1 take single steps through stored gradients, with the same numbers.
    """
    call = (
        loss, optimizer, epochs, batch_size, shuffle, drop_last, accumulate, on_nonfinite, verbose, validation_split,
        validation_data, sample_weight, callbacks, every, checkpoint, resume, communicator,
    )  # fmt: skip
    kept, model.kept_training = model.kept_training, None
    if kept is not None and kept.serves(model, call, X, y):
        history = kept.run(model, X, y)
        model.kept_training = kept
        return history
    ranks = working.of(communicator)
    with working.agreed(ranks):
        settings = Settings(epochs, batch_size, shuffle, drop_last, accumulate, on_nonfinite, verbose)
        every = checks.integer("every", every, minimum=1)
        check_pair(loss, optimizer)
        callbacks = watching.checked(callbacks)
        if checks.real("validation_split", validation_split, below=1.0):
            if validation_data is not None:
                raise ValueError("validation_split must be 0 where there are validation_data; pass one of them")
            (X, y, sample_weight), validation_data = data.split(model, X, y, sample_weight, validation_split)
        source = data.source(model, loss, X, y, sample_weight, settings.epochs, ranks is not None)
        validation = None if validation_data is None else Validation(model, loss, validation_data, ranks=ranks)
    if ranks is not None:
        source = shards.shared(source, ranks, callable(settings.shuffle))
        settings.batch_size = int(ranks.total(settings.batch_size)[0])
        settings.verbose &= ranks.first
        validated, rows = ranks.total(validation is not None, 0 if validation is None else validation.rows)
    with working.agreed(ranks):
        if ranks is not None:
            shards.check_rows(source, validated, ranks)
            if validation is not None:
                validation.rows = int(rows)
        training = Training(model, loss, optimizer, source, validation, callbacks, settings, ranks)
    if ranks is not None:
        ranks.require_same(working.description(training, keeping.described_call(training), keeping.unit(model)))
    with working.agreed(ranks):
        if checkpoint is not None or resume is not None:
            training.keep(checkpoint, every, resume)
    if not settings.verbose:
        history = training.run()
        if can_be_kept(training, call, X, y):
            model.kept_training = Kept(training, call)
        return history
    reporter = watching.reporter(settings.epochs)
    training.callbacks.insert(0, reporter)
    try:
        return training.run()
    finally:
        reporter.close()


class Settings:
    """The checked numbers and choices of `fit`."""

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        shuffle: Shuffle,
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


@dataclass
class Progress:
    """How far training has come, and what the record of the epoch sums up."""

    epoch: int = 1
    chunk: int = 0  # this many are done in the epoch
    batch: int = 0  # this many are done in the chunk
    steps: int = 0  # of the chunks that are done, as what follows
    loss: float = 0.0  # by weight
    weight: float = 0.0
    hits: int = 0
    labelled: int = 0
    seconds: float = 0.0  # since the epoch began
    stopped: bool = False  # by a callback


class Training:
    """One call of `fit`, checked and ready to run.

    Parameters
    ----------
    model, loss, optimizer
    source : Chunk or Chunks
    validation : Validation or None
    callbacks : list
    settings : Settings
    ranks : Ranks or None
        Those that train together.
    """

    logger = logging.getLogger("fastbp")

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        optimizer: Optimizer,
        source: data.Chunk | data.Chunks | shards.Shards,
        validation: Validation | None,
        callbacks: Sequence[Any],
        settings: Settings,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.ranks = model, loss, optimizer, ranks
        self.source, self.validation = source, validation
        self.callbacks, self.settings = list(callbacks), settings
        optimizer.require_free_for(model._parameters)
        model.require_trainable()
        self.run_record = {"epochs": settings.epochs, "batch_size": settings.batch_size, "steps": None, "rows": None}
        self.run_record["optimizer"] = optimizer
        if isinstance(source, data.Chunk):
            self.run_record |= {"batch_size": self._batch_size(source), "rows": source.count}
            if not callable(settings.shuffle):
                steps = data.count_steps(source.count, settings.batch_size, settings.drop_last)
                self.run_record["steps"] = steps
                self._check_batches(source.count)
        self.run_record["verbose"] = settings.verbose
        self.run_record["validation_rows"] = validation.rows if validation else 0
        self.run_record["rank"] = 0 if ranks is None else ranks.rank
        self.interrupts = Interrupts() if ranks is None else ranks.interrupts
        self.each_batch = any(hasattr(callback, "on_batch_end") for callback in callbacks)
        self._ready = None, None  # the last chunk and what runs its steps
        self._divided = 0, 0  # rows and batch size of the last chunk
        self.slices = Slices(model._parameters, self.interrupts, 1 if self.each_batch else None)
        self.snapshot = Snapshot(model._parameters, optimizer) if settings.on_nonfinite == "raise" else None
        self.checkpoints = self.stored = None
        self.stateful: list[Any] = []  # callbacks whose state checkpoints keep

    def keep(self, folder: str | os.PathLike[str] | None, every: int, resume: str | os.PathLike[str] | None) -> None:
        """Write checkpoints into a folder, and go on from those of another, or of the same."""
        self.stateful = keeping.stateful(self.callbacks)
        self.call = keeping.described_call(self)
        if self.ranks is not None and not self.ranks.first:  # rank 0 reads and writes
            self.ranks.keeps = self.checkpoints = None if folder is None else working.Elsewhere(every)
            return
        if resume is not None:
            same = folder is not None and os.path.abspath(folder) == os.path.abspath(resume)
            self.stored = keeping.newest(resume, may_be_missing=same)
            if self.stored is not None:
                keeping.check(self.stored, self)
        if folder is not None:
            self.checkpoints = keeping.Checkpoints(folder, every, self.stored)
            if self.ranks is not None:
                self.ranks.keeps = self.checkpoints

    def run(self) -> History:
        """Train; returns the history."""
        try:
            return self.model.exclusively(self._run_interruptibly)
        finally:
            self.interrupts.restore()  # again: an exception of a signal's handler may have come as the statement ended

    def _run_interruptibly(self):
        with self.interrupts, keeping.running(self.checkpoints) if self.checkpoints else _NOTHING:
            self.interrupts.raise_deferred()
            return self._train()

    def _train(self):
        """From the first epoch, or from where a checkpoint has been written, to the last."""
        model, optimizer, settings = self.model, self.optimizer, self.settings
        optimizer.bind(model._parameters)
        if self.ranks is not None:
            self.ranks.begin_alike(model, optimizer)
            self.stored = keeping.shared(self.stored, self.ranks)
        model.remember_loss(self.loss)
        if self.snapshot:
            self.snapshot.begin()
        else:
            model._parameters.discard_gradients()
        model.history = history = History()
        watching.call(self.callbacks, "on_fit_begin", model, self.run_record)
        self.progress, self.chunk_generator, self.ahead = Progress(), None, data.OrderAhead()
        if self.stored is not None:
            keeping.restore(self.stored, self)
        while self.progress.epoch <= settings.epochs and not self.progress.stopped:
            record = self._epoch()
            history.append(record)
            stopped = watching.call(self.callbacks, "on_epoch_end", model, record)
            if self.ranks is not None:
                stopped = self.ranks.decided(stopped, optimizer)
            if self.run_record["rank"] == 0 and self.logger.isEnabledFor(logging.INFO):
                self.logger.info(watching.line(record, settings.epochs))
            self.progress = Progress(record["epoch"] + 1, stopped=stopped)
            self._keep_epoch(record["epoch"])
        watching.call(self.callbacks, "on_fit_end", model, history)
        return history

    def _meanwhile(self):
        """While the last steps of a chunk run on a device: draw the next order, and look whether weights are finite."""
        last = self.progress.epoch == self.settings.epochs
        if isinstance(self.source, data.Chunk) and not last and not self.each_batch:
            self.ahead.draw(self.source, self.model, self.settings.shuffle)
        return self.snapshot.look() if self.snapshot else None

    def _keep_epoch(self, epoch):
        """Write a checkpoint after an epoch, where it is time for one."""
        kept = self.checkpoints
        last = epoch == self.settings.epochs or self.progress.stopped
        if kept and (last or kept.requested or epoch % kept.every == 0):
            kept.write(self)

    def _batch_size(self, chunk):
        """The most rows that a batch of a chunk has."""
        return min(self.settings.batch_size, len(chunk.places) if callable(self.settings.shuffle) else chunk.count)

    def _check_batches(self, rows):
        """Refuse rows of which a batch would be a single one, where a layer takes statistics of a batch."""
        batch_size = min(self.settings.batch_size, rows)
        last = 0 if self.settings.drop_last else rows % batch_size
        if self.model.program.meets and 1 in (batch_size, last):
            raise ValueError(
                f"BatchNorm1d cannot train on a batch of one row, and {rows} rows in batches of {batch_size} have "
                f"one; use another batch_size, or drop_last=True"
            )

    @property
    def plain(self) -> bool:
        """Whether the arguments of the call say all of this training: nobody watches, and it is of one chunk."""
        alone = self.ranks is self.validation is self.checkpoints is self.stored is None and not self.callbacks
        return alone and isinstance(self.source, data.Chunk) and not callable(self.settings.shuffle)

    def most_at_once(self) -> int:
        """How many trainings like this one may run at once on its device, where each has a thread of the host."""
        model, kernels, chunk = self.model, self.model._kernels, self.source
        most = kernels.get_num_threads()
        if most == 1 or not (compiled(self.loss, self.optimizer) and self.settings.accumulate == 1):
            return most
        kind = self.loss, self.loss.kernel(chunk.y), self.optimizer
        workspace = model.training_workspace(*kind, self._batch_size(chunk))
        return min(most, kernels.at_once(workspace, kernels.dtypes((chunk.X, chunk.y), model.dtype)))

    def steps_of(self, chunk):
        """The object that runs the steps of a chunk."""
        if self._ready[0] is not chunk:
            arguments = self.model, self.loss, self.optimizer, chunk, self._batch_size(chunk)
            accumulate = self.settings.accumulate
            if self.ranks is not None:
                self._ready = chunk, shards.shared_steps(*arguments, accumulate)
            elif compiled(self.loss, self.optimizer) and accumulate == 1:
                once = chunk is not self.source
                self._ready = chunk, CompiledSteps(*arguments, once, self._ready[1])
            else:
                self._ready = chunk, StoredSteps(*arguments, accumulate)
        return self._ready[1]

    def _epoch(self):
        """The record of an epoch, or of what is left of it."""
        progress, optimizer = self.progress, self.optimizer
        self._start = time.perf_counter() - progress.seconds
        resumed = progress.chunk or progress.batch
        if self.snapshot and not resumed:
            self.snapshot.take(progress.epoch)
        for chunk in self.source.epoch(progress.chunk):
            self._chunk(chunk)
            progress.chunk, progress.batch = progress.chunk + 1, 0
        if not progress.steps:
            raise ValueError(
                f"drop_last=True leaves nothing to train on: no chunk has batch_size={self.settings.batch_size} rows; "
                f"use a smaller batch_size or drop_last=False"
            )
        if self.snapshot and not self.snapshot.finite_after(progress.epoch):
            raise FloatingPointError(
                f"weights were not finite after the last step of epoch {progress.epoch}; {self.snapshot.restore()}. "
                f"Use a smaller lr, or scale the data"
            )
        val_loss, val_accuracy = self.validation() if self.validation else (None, None)
        return {
            "epoch": progress.epoch,
            "loss": progress.loss / progress.weight if progress.weight else math.nan,
            "val_loss": val_loss,
            "accuracy": progress.hits / progress.labelled if progress.labelled else None,
            "val_accuracy": val_accuracy,
            "lr": float(optimizer.learning_rate(max(optimizer.step_count - 1, 0))),
            "seconds": time.perf_counter() - self._start,
        }

    def _chunk(self, chunk):
        """Train on what is left of a chunk, and add it to the sums of the epoch."""
        progress, generator = self.progress, self.model.generator.bit_generator
        run_steps, batch_size = self.steps_of(chunk), self._batch_size(chunk)
        now = None
        if progress.batch:  # gone on from a checkpoint: what the chunk began with is drawn again
            now, generator.state = generator.state, self.chunk_generator
        elif self.checkpoints:
            self.chunk_generator = generator.state
        order = self.ahead.take(chunk, self.model, self.settings.shuffle, progress.epoch)
        if self.settings.drop_last:
            order = order[: len(order) - len(order) % self.settings.batch_size]
        if not len(order):
            return
        self._check_batches(len(order))
        steps = -(-len(order) // batch_size)
        if self._divided != (len(order), batch_size):  # else what these steps wrote is written anew
            self.sizes = np.full(steps, float(batch_size))
            self.sizes[-1] = len(order) - (steps - 1) * batch_size
            step_loss, step_hits = np.empty(steps), np.zeros(steps, np.int64)
            if now is not None:
                step_loss[: progress.batch], step_hits[: progress.batch] = self.step_loss, self.step_hits
            self.step_loss, self.step_hits = step_loss, step_hits
            self._divided = len(order), batch_size  # last: then all is there
        run_steps.start(order, steps, progress.batch)
        if now is not None:
            generator.state = now
        self._run(run_steps, order)
        self._add(chunk, order, batch_size)

    @np.errstate(all="ignore")  # whatever NumPy is set to: a loss that is not finite has been dealt with
    def _add(self, chunk, order, batch_size):
        """Add the losses and hits of a chunk to the sums of the epoch."""
        progress, step_loss, step_hits = self.progress, self.step_loss, self.step_hits
        steps = len(step_loss)
        sizes = self.sizes
        shares = sizes if chunk.weight is None else chunk.step_weights(order, batch_size)
        if chunk.labels and chunk.weight is not None:  # rows that a loss ignores have weight 0
            sizes = chunk.step_labels(order, batch_size)
        if self.snapshot is None:  # on_nonfinite="continue" may have left some out
            trained = np.isfinite(step_loss)
            step_loss, step_hits, sizes, shares = (part[trained] for part in (step_loss, step_hits, sizes, shares))
        if shares is sizes:  # a batch counts by its rows
            weight = labelled = len(order)
        else:
            weight, labelled = float(np.add.reduce(shares)), int(np.add.reduce(sizes))
        progress.steps += steps
        progress.loss += float(np.add.reduce(step_loss * shares))
        progress.weight += weight
        if chunk.labels:
            progress.hits += int(np.add.reduce(step_hits))
            progress.labelled += labelled

    def _run(self, run_steps, order):
        """Run the batches of a chunk that are left."""
        progress, step_loss = self.progress, self.step_loss
        slices = self.slices(run_steps, order, step_loss, self.step_hits, progress.batch, self._meanwhile)
        for first, end, failed in slices:
            if self.checkpoints is None:
                self.interrupts.raise_deferred()
            elif self.interrupts.came:
                self.checkpoints.requested = True
            for batch in range(first, end + failed) if self.each_batch else ():
                record = {"epoch": progress.epoch, "batch": progress.steps + batch + 1, "loss": float(step_loss[batch])}
                watching.call(self.callbacks, "on_batch_end", self.model, record)
            if failed and self.snapshot:
                raise FloatingPointError(
                    f"the loss was {step_loss[end]} at step {progress.steps + end + 1} of epoch {progress.epoch}; "
                    f"{self.snapshot.restore()}. Use a smaller lr, or scale the data"
                )
            progress.batch = end + failed
            if self.checkpoints and self.checkpoints.requested and run_steps.settled:
                progress.seconds = time.perf_counter() - self._start
                self.checkpoints.write(self)
                if self.ranks is not None and self.interrupts.came:
                    self.ranks.communicator.barrier()  # before a rank ends, and all with it
                self.interrupts.raise_deferred()
