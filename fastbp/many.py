"""Independent networks side by side: one network a thread, all on the same data."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from numpy.typing import ArrayLike

from . import backend, checks, data
from . import callbacks as watching
from .losses import LossFunction
from .model import Sequential
from .optimizers import Optimizer
from .slices import Interrupts
from .steps import check_pair
from .training import History, Settings, Training
from .validation import Validation


def fit_many(
    models: Iterable[Sequential],
    X: ArrayLike,
    y: ArrayLike,
    *,
    loss: LossFunction,
    optimizer: Callable[[], Optimizer] | Sequence[Optimizer],
    rows: Sequence[ArrayLike] | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    shuffle: data.Shuffle = True,
    drop_last: bool = False,
    accumulate: int = 1,
    validation_data: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    sample_weight: ArrayLike | None = None,
    callbacks: Callable[[], Sequence[Any]] = list,
    on_nonfinite: str = "raise",
    verbose: bool = False,
) -> list[History]:
    """Train independent networks side by side: seeds, folds, grid points, ensembles.

    Every model trains as its own ``fit`` would, to the bit. Each model runs on one thread, at most `get_num_threads` of
    them at once; X and y are shared and never copied. On a GPU models train one after another, unless FASTBP_CUDA asks
    for clusters (docs/cuda.md).

    Parameters
    ----------
    models : sequence of Sequential
        Different objects.
    X, y : arrays
        As in `Sequential.fit`, for all models.
    loss : loss
        For all models.
    optimizer : function or sequence
        A function without arguments that makes the optimizer of a model, such as ``lambda: fastbp.Adam(lr=1e-3)``,
        or one optimizer a model.
    rows : sequence of int arrays, optional
        The rows of X that each model trains on, such as the training parts of folds; all by default. With ``rows``
        a model trains as on ``X[rows[i]], y[rows[i]]``, except that masks of `Dropout` depend on the row of X.
    epochs, batch_size, shuffle, drop_last, accumulate, validation_data, sample_weight, on_nonfinite
        As in `Sequential.fit`, for all models.
    callbacks : function
        Makes the list of callbacks of a model, such as ``lambda: [fastbp.EarlyStopping()]``. They are called on the
        thread of the model.
    verbose : bool
        Print a line when a model has finished.

    Returns
    -------
    list of History
        Also ``model.history`` of every model.

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be; nothing has been changed.
    RuntimeError
        Training of a model failed; it names the model. The other models have been trained.
    KeyboardInterrupt
        Ctrl-C; the weights of every model are those of a finished step.
    """
    models = _checked_models(models)
    settings = Settings(epochs, batch_size, shuffle, drop_last, accumulate, on_nonfinite, verbose)
    optimizers = _one_each("optimizer", optimizer, models)
    if rows is not None and (not hasattr(rows, "__len__") or len(rows) != len(models)):
        raise ValueError(f"rows must be {len(models)} arrays of row numbers, one a model, got {rows!r:.100}")
    if not callable(callbacks):
        raise TypeError(f"callbacks must be a function that makes a list, got {callbacks!r}; pass lambda: […]")
    checked, trainings = {}, []  # data are checked once for all models of one shape, dtype and device
    for i, model in enumerate(models):
        check_pair(loss, optimizers[i])
        key = model.in_features, model.out_features, model.dtype, model.device
        if key not in checked:
            validation = None if validation_data is None else Validation(model, loss, validation_data)
            checked[key] = data.Chunk(model, loss, X, y, sample_weight), validation
        chunk, validation = checked[key]
        chunk = chunk if rows is None else chunk.of_rows(f"rows[{i}]", rows[i])
        validation = validation and validation.of(model)
        watchers = watching.checked(callbacks())
        trainings.append(Training(model, loss, optimizers[i], chunk, validation, watchers, settings))
    return _side_by_side(trainings)


def _checked_models(models):
    models = list(models)
    if not models:
        raise ValueError("models must be at least one Sequential, got none")
    for i, model in enumerate(models):
        checks.instance(f"models[{i}]", model, Sequential)
        if any(model is other for other in models[:i]):
            raise ValueError(f"models must be different objects, got models[{i}] twice; use copy.deepcopy")
    return models


def _one_each(argument, made, models):
    """One object a model, from a function or a sequence."""
    if callable(made):
        return [made() for _ in models]
    if not isinstance(made, list | tuple):
        raise TypeError(
            f"{argument} must be a function that makes one for each model, or a list, got {made!r}; "
            f"pass for example lambda: fastbp.Adam(lr=1e-3)"
        )
    if len({id(one) for one in made}) != len(models) or len(made) != len(models):
        raise ValueError(f"{argument} must have {len(models)} different objects, one a model, got {len(made)}")
    return list(made)


def _side_by_side(trainings):
    """Run all trainings, even if some fail."""

    def run(i, training):
        with training.model._kernels.serial():
            history = training.run()
        if training.settings.verbose:
            print(f"models[{i}]  epochs {len(history)}  loss {history[-1]['loss']:.4f}", flush=True)
        return history

    # A GPU has one stream, which runs launches in the order of the calls, unless its kernels leave room for others.
    elsewhere = [training.most_at_once() for training in trainings if not training.model.network.on_host]
    at_once = min(elsewhere, default=backend.get_num_threads())
    threads = min(len(trainings), at_once)
    with Interrupts() as interrupts, concurrent.futures.ThreadPoolExecutor(threads, "fastbp-fit") as pool:
        futures = [pool.submit(run, i, training) for i, training in enumerate(trainings)]
        try:
            interrupts.raise_deferred()
            concurrent.futures.wait(futures)
        except BaseException:
            for training in trainings:
                training.interrupts.came = True
            pool.shutdown(cancel_futures=True)
            raise
    failed = [i for i, future in enumerate(futures) if future.exception() is not None]
    if failed:
        error = futures[failed[0]].exception()
        also = f"; so did {', '.join(f'models[{i}]' for i in failed[1:])}" if failed[1:] else ""
        raise RuntimeError(f"training of models[{failed[0]}] failed: {type(error).__name__}: {error}{also}") from error
    return [future.result() for future in futures]
