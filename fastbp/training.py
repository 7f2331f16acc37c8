"""Training: epochs of compiled steps, validation, history, callbacks, and what happens when something goes wrong.

A loss of `losses` and an optimizer of `optimizers` train inside the kernels, many steps a call. Any other loss
is a callable ``(prediction, target) -> (value, gradient)`` and trains one step at a time through
``model(x)``, ``model.backward`` and ``optimizer.step``.
"""

import math
import mmap
import signal
import threading
import time

import numpy as np

from . import backend, checks
from .losses import Loss
from .optimizers import Optimizer

SLICE_SECONDS = 0.1  # training steps one call of the kernels is given: Ctrl-C is answered between calls
SLOW = 1e9  # operations a second that the first slice counts on,
FIRST_STEPS = 256  # and the most steps it may have, whatever they cost
SLICE_GROWTH = 16  # how much longer a slice may be than the one before, whose time is all that is known
STAGING_BYTES = 64 << 20  # converted rows that are held at once, where the kernels cannot read the data directly
SHUFFLE_BLOCK = 16_384  # rows of a memory map that are shuffled together: a full permutation would read it at random


# -------------------------------------------------------------------------------------- order
def epoch_rows(kernels, generator, rows, shuffle, by_blocks):
    """The rows (int64) in the order of one epoch."""
    if not shuffle:
        return rows
    if not by_blocks:
        return _shuffled(kernels, generator, rows)
    blocks = [rows[start : start + SHUFFLE_BLOCK] for start in range(0, len(rows), SHUFFLE_BLOCK)]
    order = _shuffled(kernels, generator, np.arange(len(blocks)))
    return np.concatenate([_shuffled(kernels, generator, blocks[i]) for i in order])


def _shuffled(kernels, generator, rows):
    """A permuted copy."""
    rows = rows.copy()
    kernels.shuffle(rows, int(generator.integers(-(2**63), 2**63)))
    return rows


def is_memory_map(array):
    """Whether the array lies in a file that is mapped into memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def count_steps(rows, batch_size, drop_last):
    """Batches in an epoch."""
    if drop_last and rows < batch_size:
        raise ValueError(
            f"drop_last=True leaves nothing to train on: batch_size is {batch_size} and there are {rows} rows; "
            f"use a smaller batch_size or drop_last=False"
        )
    return rows // batch_size if drop_last else -(-rows // batch_size)


def batches(X, y, batch_size, *, shuffle=True, seed=None, drop_last=False):
    """Batches of one epoch, for loops of one's own.

    Parameters
    ----------
    X : array (n, …)
    y : array (n, …)
    batch_size : int
    shuffle : bool
        Arrays by a full permutation, memory maps by blocks of ``training.SHUFFLE_BLOCK`` rows.
    seed : int, optional
    drop_last : bool
        Leave out a last batch that is short.

    Returns
    -------
    iterator of (xb, yb)
    """
    X, y = checks.numeric("X", X), checks.numeric("y", y)
    if X.ndim == 0 or y.ndim == 0 or len(X) != len(y):
        raise ValueError(f"X and y must have the same number of rows, got shapes {X.shape} and {y.shape}")
    checks.not_empty("X", X)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    shuffle, drop_last = checks.boolean("shuffle", shuffle), checks.boolean("drop_last", drop_last)
    steps = count_steps(len(X), batch_size, drop_last)
    rows = np.arange(len(X))
    rows = epoch_rows(backend.load("cpu"), checks.generator("seed", seed), rows, shuffle, is_memory_map(X))
    chosen = (rows[step * batch_size : (step + 1) * batch_size] for step in range(steps))
    return ((X[part], y[part]) for part in chosen)


# --------------------------------------------------------------------------------- single steps
def checked_pair(loss, optimizer):
    """Refuse what cannot train."""
    if not callable(loss):
        raise TypeError(f"loss must be a loss or a function (prediction, target) -> (value, gradient), got {loss!r}")
    checks.instance("optimizer", optimizer, Optimizer)


def single_step(model, loss, optimizer):
    """What `Sequential.train_step` calls for this loss and optimizer: a function (x, y) -> loss."""
    checked_pair(loss, optimizer)
    optimizer.bind(model._parameters)
    model.remember_loss(loss)
    return (_FusedStep if isinstance(loss, Loss) else EagerStep)(model, loss, optimizer)


class _FusedStep:
    """One step as one compiled call, with everything that does not change made ready."""

    def __init__(self, model, loss, optimizer):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.dtype, self.outputs = model.dtype, model.out_features
        self.steps = model._kernels.network_train_steps
        self.network = model._parameters
        self.values, self.state = self.network.values, optimizer.state
        self.capacity = 0
        self.step_loss, self.step_hits = np.zeros(1), np.zeros(1, np.int64)

    def __call__(self, x, y):
        simple = type(x) is np.ndarray and x.dtype == self.dtype and x.ndim == 2 and checks.readable(x)
        if not simple or x.shape[1] != self.model.in_features:
            x = checks.batch("x", x, self.model.in_features, self.dtype)
        n = len(x)
        y = self.labels(y, n) if self.loss.labels else self.targets(y, n)
        if n > self.capacity or n == 0:
            checks.not_empty("x", x)
            self.capacity, self.all_rows = n, np.arange(n)
            self.workspace = self.model.training_workspace(self.loss, self.optimizer, n)
        coefficients = self.optimizer.next_coefficients()
        keys = self.model.step_keys(1)
        self.network.discard_gradients()
        self.optimizer.step_count += self.steps(
            self.workspace,
            self.values,
            self.state,
            coefficients,
            keys,
            x,
            y,
            None,
            self.all_rows[:n],
            n,
            self.step_loss,
            self.step_hits,
        )
        return self.step_loss.item()

    def labels(self, y, rows):
        simple = type(y) is np.ndarray and y.dtype == np.int64 and y.shape == (rows,) and checks.readable(y)
        # As unsigned numbers negative labels are large: one pass finds both faults.
        if simple and np.maximum.reduce(y.view(np.uint64), initial=0) < self.outputs:
            return y
        return checks.labels("y", y, rows, self.outputs)

    def targets(self, y, rows):
        if type(y) is np.ndarray and y.dtype == self.dtype and y.shape == (rows, self.outputs) and checks.readable(y):
            return y
        return checks.converted(checks.targets("y", y, rows, self.outputs), self.dtype)


class EagerStep:
    """One step with a loss that is a function of the user's."""

    def __init__(self, model, loss, optimizer):
        self.model, self.loss, self.optimizer = model, loss, optimizer

    def __call__(self, x, y, sample_weight=None):
        prediction = self.model.forward(x)
        checks.not_empty("x", prediction)
        arguments = (prediction, y) if sample_weight is None else (prediction, y, sample_weight)
        value, gradient = checked_result(self.loss(*arguments), prediction.shape)
        if math.isfinite(value):
            self.model.backward(gradient)
            self.optimizer.step()
        self.model._parameters.discard_gradients()
        return value


def checked_result(result, shape):
    """(value, gradient) of a user's loss."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"loss must return (value, gradient), got {type(result).__name__}")
    value, gradient = float(result[0]), checks.numeric("the gradient that loss returns", result[1])
    checks.shape("the gradient that loss returns", gradient, shape)
    return value, gradient


# -------------------------------------------------------------------------------------- history
class History(list):
    """One dict an epoch: ``epoch, loss, val_loss, accuracy, val_accuracy, lr, seconds``.

    ``loss`` is the mean over the rows of the epoch, each with the weights of its step; what does not apply is None.
    """

    def column(self, key):
        """The values of one key, epoch by epoch."""
        return [record[key] for record in self]


class EarlyStopping:
    """Stop when the loss has not become lower for some epochs, and put the best weights back.

    Watches ``val_loss``; without validation data the training loss, and says so.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training stops.
    min_delta : float
        By how much the loss has to become lower to count.
    restore_best : bool
        Give the model the weights of the best epoch at the end, whether it came early or not. The state of the
        optimizer stays.

    Attributes
    ----------
    best : float
    best_epoch : int or None
    """

    def __init__(self, patience=5, min_delta=0.0, restore_best=True):
        self.patience = checks.integer("patience", patience, minimum=1)
        self.min_delta = checks.real("min_delta", min_delta)
        self.restore_best = checks.boolean("restore_best", restore_best)

    def on_fit_begin(self, model, run):
        self.best, self.best_epoch, self._weights = math.inf, None, None
        self._watched = "val_loss" if run["validation_rows"] else "loss"
        if run["verbose"] and not run["validation_rows"]:
            print("early stopping watches the training loss: there is no validation data")

    def on_epoch_end(self, model, record):
        if record[self._watched] < self.best - self.min_delta:
            self.best, self.best_epoch = record[self._watched], record["epoch"]
            if self.restore_best:
                self._weights = model.flat_parameters
        return record["epoch"] - (self.best_epoch or 0) >= self.patience

    def on_fit_end(self, model, history):
        if self._weights is not None:
            model.flat_parameters = self._weights
            self._weights = None


class _Printer:
    """One plain line an epoch."""

    def on_fit_begin(self, model, run):
        self._epochs = run["epochs"]

    def on_epoch_end(self, model, record):
        parts = [f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"]
        parts += [
            f"{key} {record[key]:.4f}"
            for key in ("loss", "val_loss", "accuracy", "val_accuracy")
            if record[key] is not None
        ]
        print("  ".join([*parts, f"lr {record['lr']:.3g}", f"{record['seconds']:.2f} s"]), flush=True)


def checked_callbacks(callbacks):
    """Refuse what has none of the methods that are called."""
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list, got {callbacks!r}; pass callbacks=[…]")
    for callback in callbacks:
        if not any(hasattr(callback, name) for name in ("on_fit_begin", "on_epoch_end", "on_fit_end")):
            raise TypeError(
                f"a callback must have on_fit_begin(model, run), on_epoch_end(model, record) or "
                f"on_fit_end(model, history); got {callback!r}"
            )
    return list(callbacks)


def _call(callbacks, name, *arguments):
    """Call the method of every callback that has it; whether any returned true."""
    answers = [getattr(callback, name)(*arguments) for callback in callbacks if hasattr(callback, name)]
    return any(answers)  # after every callback was called


# ---------------------------------------------------------------------------------- an epoch
class _Interrupts:
    """While steps run, Ctrl-C waits for the end of their slice, where weights, state and count belong together."""

    def __enter__(self):
        self.deferred = self.came = False
        self._active = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._active:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number, frame):
        if not self.deferred:
            raise KeyboardInterrupt
        self.came = True

    def raise_deferred(self):
        """End of a slice."""
        self.deferred = False
        if self.came:
            raise KeyboardInterrupt

    def __exit__(self, kind, error, traceback):
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Snapshots:
    """Weights and optimizer state at the start of this epoch and of the one before.

    Two, because the weights an epoch starts with are known to be good only when its first loss is finite.
    """

    def __init__(self, network, optimizer):
        self._live = (network.values, *optimizer.state)
        self._optimizer = optimizer
        self._old = self._new = None

    def take(self):
        buffers = [np.empty_like(live) for live in self._live] if self._old is None else self._old[1]
        for buffer, live in zip(buffers, self._live, strict=True):
            np.copyto(buffer, live)
        self._old, self._new = self._new, (self._optimizer.step_count, buffers)

    def restore(self, previous):
        """Go back to the start of this epoch, or of the previous one where there was one."""
        self._optimizer.step_count, buffers = self._old if previous and self._old else self._new
        for buffer, live in zip(buffers, self._live, strict=True):
            np.copyto(live, buffer)


class _FusedSteps:
    """Runs slices of an epoch inside the kernels, from the data itself or from converted copies of its rows."""

    def __init__(self, model, loss, optimizer, X, y, weight, batch_size):
        kernels = model._kernels
        self.run = kernels.network_train_steps
        self.step_keys = model.step_keys
        self.workspace = model.training_workspace(loss, optimizer, batch_size)
        self.values, self.optimizer, self.batch_size = model._parameters.values, optimizer, batch_size
        self.dtype, self.X, self.y, self.weight, self.labels = model.dtype, X, y, weight, loss.labels
        self.direct = all(checks.readable(array) and kernels.gathers(array.dtype) for array in (X, y))
        step_bytes = batch_size * (model.in_features + model.out_features) * self.dtype.itemsize
        self.most = len(X) if self.direct else max(1, STAGING_BYTES // step_bytes)

    def start(self, steps):
        """Make ready for an epoch."""
        self.first = self.optimizer.step_count
        self.coefficients = self.optimizer.coefficients(self.first, steps)
        self.keys = self.step_keys(steps)

    def __call__(self, rows, step_loss, step_hits):
        """Steps done with these rows; fewer than there are batches when a loss is not finite."""
        X, y, weight = self.X, self.y, self.weight
        if not self.direct:
            X = checks.converted(X[rows], self.dtype)
            y = y[rows] if self.labels else checks.converted(y[rows], self.dtype)
            weight = None if weight is None else weight[rows]
            rows = np.arange(len(rows))
        begin = self.optimizer.step_count - self.first
        done = self.run(
            self.workspace,
            self.values,
            self.optimizer.state,
            self.coefficients[begin : begin + len(step_loss)],
            self.keys[begin : begin + len(step_loss)],
            X,
            y,
            weight,
            rows,
            self.batch_size,
            step_loss,
            step_hits,
        )
        self.optimizer.step_count += done
        return done


class _EagerSteps:
    """Runs the steps of a user's loss, one a call."""

    most = 1

    def __init__(self, model, loss, optimizer, X, y, weight, batch_size):
        self.step = EagerStep(model, loss, optimizer)
        self.X, self.y, self.weight = X, y, weight

    def start(self, steps):
        """Nothing has to be made ready."""

    def __call__(self, rows, step_loss, step_hits):
        weight = None if self.weight is None else self.weight[rows]
        step_loss[0] = self.step(self.X[rows], self.y[rows], weight)
        return int(math.isfinite(step_loss[0]))


class _Validation:
    """Loss and accuracy on data that is not trained on."""

    def __init__(self, model, loss, data):
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise TypeError(f"validation_data must be a pair (X, y), got {type(data).__name__}")
        self.model, self.loss = model, loss
        names = "validation_data[0]", "validation_data[1]"
        self.X, self.y = checked_data(model, loss, *data, names)
        self.weight = np.full(len(self.X), 1 / len(self.X))

    def __call__(self):
        """(loss, accuracy or None)."""
        model, loss = self.model, self.loss
        if not isinstance(loss, Loss):
            prediction = model.predict(self.X)
            return checked_result(loss(prediction, self.y), prediction.shape)[0], None
        row_loss, hits = np.empty(len(self.X)), 0
        for start in range(0, len(self.X), model.prediction_block):
            part = slice(start, start + model.prediction_block)
            prediction = model.predict(self.X[part])
            y = self.y[part] if loss.labels else checks.converted(self.y[part], model.dtype)
            row_loss[part], row_hit = loss.rows(model._kernels, prediction, y, self.weight[part], prediction)
            hits += int(row_hit.sum())
        return float(row_loss.mean()), hits / len(self.X) if loss.labels else None


def checked_data(model, loss, X, y, names):
    """X and y as arrays that can be trained on, whose values are all finite; nothing is copied but labels."""
    X = checks.matrix(names[0], X, model.in_features)
    checks.not_empty(names[0], X)
    if isinstance(loss, Loss):
        y = loss.checked_target(names[1], y, len(X), model.out_features)
    else:
        y = checks.numeric(names[1], y)
        if y.ndim == 0 or len(y) != len(X):
            raise ValueError(f"{names[1]} must have {len(X)} rows as {names[0]} has, got shape {y.shape}")
    checks.finite(names[0], X, model.dtype)
    checks.finite(names[1], y, model.dtype)
    return X, y


# ------------------------------------------------------------------------------------------ fit
def fit(
    model,
    X,
    y,
    *,
    loss,
    optimizer,
    epochs=1,
    batch_size=32,
    shuffle=True,
    drop_last=False,
    validation_data=None,
    sample_weight=None,
    callbacks=(),
    on_nonfinite="raise",
    verbose=True,
):
    """Train for some epochs.

    Parameters
    ----------
    X : array (n, in)
        Any real dtype, layout and byte order; finite values. It is used in place, or converted a few batches at a
        time, and never changed.
    y : array (n, out), or integer labels (n,) for a loss of labels
        ``(n,)`` is taken as ``(n, 1)``; nothing else broadcasts.
    loss : loss
        A loss of fastbp, or a function ``(prediction, target) -> (value, gradient)``, which is called with a third
        argument when there are weights.
    optimizer : Optimizer
        Its state continues over calls.
    epochs, batch_size : int
        The last batch of an epoch may be short.
    shuffle : bool
        A new order every epoch, from the generator of the model: arrays by a full permutation, memory maps by
        blocks of ``fastbp.training.SHUFFLE_BLOCK`` rows.
    drop_last : bool
        Leave out a last batch that is short.
    validation_data : pair (X, y), optional
    sample_weight : array (n,), optional
        Weights of the rows, not negative; means become ``Σ wᵢ lᵢ / Σ wᵢ``. Rows of weight 0 are left out.
    callbacks : list
        Objects with some of ``on_fit_begin(model, run)``, where ``run`` is a dict of ``epochs, batch_size, steps,
        rows, validation_rows, verbose``; ``on_epoch_end(model, record)``, which may return True to stop; and
        ``on_fit_end(model, history)``.
    on_nonfinite : "raise" or "continue"
        When the loss of a batch is not finite: go back to the weights and the optimizer state of the last good
        epoch and raise, or leave that batch out and go on.
    verbose : bool
        Print a line an epoch.

    Returns
    -------
    History
        Also ``model.history``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be; nothing has been changed.
    FloatingPointError
        The loss is not finite.
    KeyboardInterrupt
        Ctrl-C, within 0.2 s or one step; the weights are those of a finished step.
    """
    checked_pair(loss, optimizer)
    epochs = checks.integer("epochs", epochs, minimum=1)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    shuffle, drop_last = checks.boolean("shuffle", shuffle), checks.boolean("drop_last", drop_last)
    verbose = checks.boolean("verbose", verbose)
    checks.choice("on_nonfinite", on_nonfinite, ("raise", "continue"))
    callbacks = [_Printer()] * verbose + checked_callbacks(callbacks)
    by_blocks = is_memory_map(X)
    X, y = checked_data(model, loss, X, y, ("X", "y"))
    rows, weight = np.arange(len(X)), None
    if sample_weight is not None:
        weight = checks.weights("sample_weight", sample_weight, len(X))
        rows = np.flatnonzero(weight)
    steps = count_steps(len(rows), batch_size, drop_last)
    batch_size = min(batch_size, len(rows))
    validation = None if validation_data is None else _Validation(model, loss, validation_data)
    with model.exclusive(), _Interrupts() as interrupts:
        optimizer.bind(model._parameters)
        model.remember_loss(loss)
        model._parameters.discard_gradients()
        run_steps = (_FusedSteps if isinstance(loss, Loss) else _EagerSteps)(
            model, loss, optimizer, X, y, weight, batch_size
        )
        model.history = history = History()
        run = {"epochs": epochs, "batch_size": batch_size, "steps": steps, "rows": len(rows), "verbose": verbose}
        _call(callbacks, "on_fit_begin", model, run | {"validation_rows": len(validation.X) if validation else 0})
        snapshots = _Snapshots(model._parameters, optimizer) if on_nonfinite == "raise" else None
        slices = _Slices(run_steps, batch_size, 6 * batch_size * model._parameters.size, interrupts)
        accuracy_known = isinstance(loss, Loss) and loss.labels
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            if snapshots:
                snapshots.take()
            order = epoch_rows(model._kernels, model.generator, rows, shuffle, by_blocks)[: steps * batch_size]
            step_loss, step_hits = slices.epoch(order, steps, epoch, snapshots)
            record = dict.fromkeys(("epoch", "loss", "val_loss", "accuracy", "val_accuracy", "lr", "seconds"))
            record["epoch"] = epoch
            sizes = np.full(steps, batch_size)
            sizes[-1] = len(order) - (steps - 1) * batch_size
            trained = np.isfinite(step_loss)  # all, unless on_nonfinite="continue" left some out
            share = sizes if weight is None else np.add.reduceat(weight[order], np.arange(0, len(order), batch_size))
            record["loss"] = _mean(step_loss[trained], share[trained])
            if accuracy_known:
                record["accuracy"] = _mean(step_hits[trained] / sizes[trained], sizes[trained])
            if validation:
                record["val_loss"], record["val_accuracy"] = validation()
            record["lr"] = float(optimizer.learning_rates(max(optimizer.step_count - 1, 0), 1)[0])
            record["seconds"] = time.perf_counter() - start
            history.append(record)
            if _call(callbacks, "on_epoch_end", model, record):
                break
        _call(callbacks, "on_fit_end", model, history)
    return history


def _mean(values, weights):
    """Weighted mean; NaN of nothing."""
    return float((values * weights).sum() / weights.sum()) if len(values) else math.nan


class _Slices:
    """Cuts epochs into calls short enough for Ctrl-C, by the time that the steps before took."""

    def __init__(self, run_steps, batch_size, step_operations, interrupts):
        self.run_steps, self.batch_size, self.interrupts = run_steps, batch_size, interrupts
        fitting = int(SLICE_SECONDS * SLOW / step_operations)
        self.steps = max(1, min(fitting, FIRST_STEPS, run_steps.most))

    def epoch(self, order, steps, epoch, snapshots):
        """Losses and hits of every step; what happens at a loss that is not finite depends on ``snapshots``."""
        step_loss, step_hits = np.empty(steps), np.zeros(steps, np.int64)
        self.run_steps.start(steps)
        done = 0
        while done < steps:
            stop = min(done + self.steps, steps)
            rows = order[done * self.batch_size : stop * self.batch_size]
            begin = time.perf_counter()
            self.interrupts.deferred = True
            finished = self.run_steps(rows, step_loss[done:stop], step_hits[done:stop])
            self.interrupts.raise_deferred()
            seconds = time.perf_counter() - begin
            if finished:
                fitting = int(SLICE_SECONDS * finished / seconds)
                self.steps = max(1, min(fitting, SLICE_GROWTH * self.steps, self.run_steps.most))
            if done + finished < stop:
                step = done + finished
                if snapshots:
                    snapshots.restore(previous=step == 0)
                    raise FloatingPointError(
                        f"the loss was {step_loss[step]} at step {step + 1} of epoch {epoch}; weights and optimizer "
                        f"are back at those of the last good epoch. Use a smaller lr, or scale the data"
                    )
                finished += 1  # the batch that is left out
            done += finished
        return step_loss, step_hits
