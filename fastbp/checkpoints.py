"""Checkpoints of `Sequential.fit`: all it needs to go on to the bits of a run that was never stopped.

A checkpoint is a file like that of a model (`files`): written whole or not at all, checksummed, and read without
running code. It keeps the model with its statistics and generator, the optimizer, how far the epoch has come, the
history, and the state of callbacks. A folder keeps two, numbered: the last, and the last good one before it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import backend, files, schedules
from .checks import Array
from .losses import Loss

if TYPE_CHECKING:
    from .model import Sequential
    from .ranks import Ranks
    from .training import Training

CHECKPOINT = files.Format("fastbp checkpoint", 1, "a checkpoint", "state_dict() of the callbacks", "fiub", True)
NAME = re.compile(r"checkpoint-(\d{8})\.npz")
TEMPORARY = re.compile(r"\.checkpoint-\d{8}\.npz\.[0-9a-f]+")  # what a write leaves when its process is killed

_running: dict[int, Any] = {}  # what has ``requested`` of every fit under way, by id


@contextmanager
def running(checkpoints: Any) -> Iterator[None]:
    """Let requests set ``checkpoints.requested``."""
    try:
        _running[id(checkpoints)] = checkpoints
        yield
    finally:
        _running.pop(id(checkpoints), None)


def request_checkpoint() -> None:
    """Ask every running `fit` that has a checkpoint folder to write one.

    It only sets a flag, so signal handlers and other threads may call it. The checkpoint is written at the end of the
    steps under way (with ``accumulate``, at the next update), within about 0.1 s or one step.

    Raises
    ------
    RuntimeError
        No `fit` with ``checkpoint="folder"`` is running.
    """
    running = list(_running.values())
    if not running:
        raise RuntimeError('no fit with a checkpoint folder is running: pass fit(checkpoint="folder")')
    for checkpoints in running:
        checkpoints.requested = True


# --------------------------------------------------------------------------------------- folders
def _numbers(folder):
    """The numbers of the checkpoints in a folder, the newest first."""
    matches = map(NAME.fullmatch, os.listdir(folder))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _path(folder, number):
    return os.path.join(folder, f"checkpoint-{number:08d}.npz")


class Stored(NamedTuple):
    """A checkpoint that was read."""

    path: str
    number: int
    config: dict[str, Any]
    arrays: dict[str, Array]


def newest(folder: str | os.PathLike[str], may_be_missing: bool = False) -> Stored | None:
    """The newest good checkpoint of a folder, or None where it has none; damaged ones are named in a warning.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        All its checkpoints are damaged.
    """
    folder = os.fspath(folder)
    if may_be_missing and not os.path.exists(folder):
        return None
    damaged = []
    for number in _numbers(folder):
        path = _path(folder, number)
        try:
            stored = Stored(path, number, *files.read(path, CHECKPOINT))
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{'; '.join(damaged)}. Training goes on from the one before, {path}", stacklevel=4)
        return stored
    if damaged:
        raise ValueError(f"{folder} has no good checkpoint: {'; '.join(damaged)}")
    return None


def shared(stored: Stored | None, ranks: Ranks) -> Stored | None:
    """The checkpoint that rank 0 has read, on every rank."""
    (place, config), arrays = ranks.shared(
        [stored and [stored.path, stored.number], stored and stored.config], stored.arrays if stored else {}
    )
    return Stored(*place, config, arrays) if place else None


class Checkpoints:
    """Writes checkpoints of one `fit` into a folder.

    Parameters
    ----------
    folder : str or path
        It is made where it is missing, and must hold no checkpoints but those that are gone on from.
    every : int
        Epochs from one to the next; one is written after the last epoch in any case.
    resumed : Stored or None
        The checkpoint that is gone on from.

    Attributes
    ----------
    requested : bool
        Whether one is to be written at the end of the steps under way.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int, resumed: Stored | None) -> None:
        self.folder, self.every, self.requested = os.path.realpath(folder), every, False
        os.makedirs(self.folder, exist_ok=True)
        numbers = _numbers(self.folder)
        own = resumed is not None and os.path.samefile(os.path.dirname(resumed.path), self.folder)
        if numbers and not own:
            raise ValueError(
                f"checkpoint={os.fspath(folder)!r} holds checkpoints of another run; go on with it by "
                f"resume={os.fspath(folder)!r}, or name another folder"
            )
        self.number = max(numbers, default=0)
        self.good = resumed.number if own else None  # the last that is known to be whole

    def write(self, training: Training) -> None:
        """Write a checkpoint. Where that fails the files before stay, a warning says so, and training goes on."""
        self.requested = False
        path = _path(self.folder, self.number + 1)
        try:
            files.write(path, *_kept(training), CHECKPOINT)
        except OSError as error:
            warnings.warn(f"checkpoint {path} could not be written: {error}. Training goes on without it", stacklevel=4)
            return
        self.number += 1
        keep = {
            os.path.basename(_path(self.folder, number)) for number in (self.number, self.good) if number is not None
        }
        for name in os.listdir(self.folder):
            if TEMPORARY.fullmatch(name) or (NAME.fullmatch(name) and name not in keep):
                with suppress(OSError):  # it is in nobody's way, and the next time will do
                    os.unlink(os.path.join(self.folder, name))
        self.good = self.number
        training.logger.info(
            "checkpoint %s: epoch %d, batch %d", path, training.progress.epoch, training.progress.batch
        )


# ------------------------------------------------------------------------- what a checkpoint keeps
def _kept(training):
    """(config, arrays) of a training as it is now."""
    model, progress, snapshot = training.model, training.progress, training.snapshot
    config, arrays = model.described()
    state = training.optimizer.state_dict()
    config["optimizer"] = [training.optimizer.json_config(), state.pop("step_count")]
    arrays |= {f"optimizer.{name}": array for name, array in state.items()}
    config |= {
        "call": training.call,
        "unit": unit(model),
        "progress": dataclasses.asdict(progress),
        "chunk_generator": training.chunk_generator,
        "history": list(model.history),
        "callbacks": [],
        "snapshot": None,
    }
    if progress.batch:
        arrays["steps.loss"] = training.step_loss[: progress.batch]
        arrays["steps.hits"] = training.step_hits[: progress.batch]
    if snapshot is not None:
        config["snapshot"] = [snapshot.epoch, snapshot.before]
        if snapshot.epoch is not None:
            named = model.network.named_copy(snapshot.values)
            arrays |= {f"snapshot.{name}": array for name, array in named.items()}
    for i, callback in enumerate(training.stateful):
        state = dict(callback.state_dict())
        for key in [key for key, value in state.items() if isinstance(value, np.ndarray)]:
            arrays[f"callbacks.{i}.{key}"] = state.pop(key)
        config["callbacks"].append([type(callback).__name__, state])
    return config, arrays


def stateful(callbacks: list[Any]) -> list[Any]:
    """The callbacks whose state is kept; the others are named in a warning."""
    kept = [callback for callback in callbacks if hasattr(callback, "state_dict")]
    for callback in kept:
        if not hasattr(callback, "load_state_dict"):
            raise TypeError(f"the callback {type(callback).__name__} has state_dict, and must have load_state_dict too")
    others = [type(callback).__name__ for callback in callbacks if not hasattr(callback, "state_dict")]
    if others:
        warnings.warn(
            f"checkpoints keep no state of these callbacks, which have no state_dict: {', '.join(others)}", stacklevel=4
        )
    return kept


def described_call(training: Training) -> dict[str, Any]:
    """What must be the same for a training to go on, as JSON."""
    loss, optimizer, settings = training.loss, training.optimizer, training.settings
    return {
        "layers": training.model.layer_configs(),
        "dtype": training.model.dtype.name,
        "frozen": sorted(training.model.program.frozen),
        "loss": [type(loss).__name__, loss.config()] if isinstance(loss, Loss) else _name(loss),
        "optimizer": [type(optimizer).__name__, optimizer.json_config()],
        "batch_size": settings.batch_size,
        "shuffle": _name(settings.shuffle) if callable(settings.shuffle) else settings.shuffle,
        "drop_last": settings.drop_last,
        "accumulate": settings.accumulate,
        "on_nonfinite": settings.on_nonfinite,
        "rows": training.run_record["rows"],
        "validation_rows": training.run_record["validation_rows"],
        "callbacks": [type(callback).__name__ for callback in training.stateful],
    }


def _name(function):
    return getattr(function, "__qualname__", type(function).__name__)


def unit(model: Sequential) -> dict[str, Any]:
    """What the bits of a step depend on besides."""
    config = backend.load(model.device).config()
    unit = {"device": model.device, "precision": model.precision, "instruction set": config.get("instruction set")}
    if model.precision != "ieee" and "bfloat16 unit" in config:
        unit["bfloat16 unit"] = config["bfloat16 unit"]
    return unit


# ---------------------------------------------------------------------------------------- going on
def check(stored: Stored, training: Training) -> None:
    """Refuse a checkpoint of another model or another call; nothing is changed."""
    with files.refusing(stored.path, CHECKPOINT):
        before, written, here = dict(stored.config["call"]), stored.config["unit"], unit(training.model)
    for key, value in files.as_json(training.call).items():
        if not _agree(before.get(key, value), value):
            raise ValueError(
                f"resume goes on with the fit that wrote {stored.path}, whose {key} was {before[key]!r}; "
                f"here it is {value!r}. Make the same call on a model of the same layers"
            )
    if written != here:
        warnings.warn(
            f"{stored.path} was written with {written}, and here it is {here}: training goes on, the last bits may "
            f"differ",
            stacklevel=4,
        )


def _agree(before, now):
    """Whether two descriptions are the same in what the first one says: older releases knew fewer settings."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and _agree(value, now[key]) for key, value in before.items())
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_agree, before, now))
    return before == now


def restore(stored: Stored, training: Training) -> None:
    """Make a training, of which nothing has run, what it was when the checkpoint was written."""
    config, arrays, model, optimizer = stored.config, dict(stored.arrays), training.model, training.optimizer
    with files.refusing(stored.path, CHECKPOINT):
        parts = _grouped(arrays, len(training.stateful))
        progress = type(training.progress)(**config["progress"])
        settings, step_count = config["optimizer"]
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"] | {"step_count": step_count})
        for key, value in settings.items():
            if value != config["call"]["optimizer"][1][key]:  # a callback has set it
                setattr(optimizer, key, schedules.from_json(value) if key == "lr" else value)
        model.generator.bit_generator.state = config["generator"]
        model.history.extend(config["history"])
        if training.snapshot is not None:
            training.snapshot.epoch, training.snapshot.before = config["snapshot"]
            if training.snapshot.epoch is not None:
                training.snapshot.values = model.network.copy_of_named(parts["snapshot"])
        training.progress, training.chunk_generator = progress, config["chunk_generator"]
        training.step_loss, training.step_hits = (parts["steps"].get(key, np.empty(0)) for key in ("loss", "hits"))
    for i, (callback, (_, state)) in enumerate(zip(training.stateful, config["callbacks"], strict=True)):
        callback.load_state_dict(state | parts[f"callbacks.{i}"])


def _grouped(arrays, callbacks):
    """The arrays by what they belong to; those of the model have no prefix."""
    groups = ["optimizer", "snapshot", "steps", *(f"callbacks.{i}" for i in range(callbacks))]
    parts = {}
    for group in groups:
        names = [name for name in arrays if name.startswith(group + ".")]
        parts[group] = {name.removeprefix(group + "."): arrays.pop(name) for name in names}
    return parts | {"model": arrays}
