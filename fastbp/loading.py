"""`load`: a model from the file that `Sequential.save` wrote, or from the folder of a run."""

from __future__ import annotations

import os
from typing import Any

from . import backend, chains, checks, files, schedules
from .layers import from_config
from .losses import LOSSES
from .model import Sequential
from .optimizers import OPTIMIZERS

RUN_MODEL = "model.npz"  # in the folder of a run


def load(path: str | os.PathLike[str], *, device: str = "cpu", precision: str = "ieee") -> Sequential | Any:
    """Read a model that `Sequential.save` wrote, or what ``fastbp train`` kept.

    Parameters
    ----------
    path : str or path
        A model file, or the folder of a run.
    device, precision : str
        Where and how the model is to compute, as for `Sequential`; files are the same for all.

    Returns
    -------
    Sequential or fastbp.tabular.Predictor
        A model, with the stored optimizer, if any, as ``model.optimizer``. If the file also says what data go through
        before, as those of ``fastbp train`` do, a predictor that takes raw columns; its ``model`` is the network.

    Raises
    ------
    ValueError
        The file is not a model of this library, or damaged.
    OSError
        It cannot be opened or read.
    """
    path = os.fspath(path)
    model = _load_network(os.path.join(path, RUN_MODEL) if os.path.isdir(path) else path, device, precision)
    if "preprocessing" not in model.metadata:
        return model
    from .tabular import Predictor  # a room: only who loads the file of a run needs it

    return Predictor(model)


def _load_network(path, device, precision):
    backend.require(device)
    config, arrays = files.read(path)
    with files.refusing(path):
        layers = [from_config(name, arguments) for name, arguments in config["layers"]]
        for prefix, layer in chains.named(layers):
            for name in layer.shapes:  # which checks the shapes before a model of that size is allocated
                setattr(layer, name, arrays[prefix + name])
        model = Sequential(*layers, dtype=config["dtype"], device=device)
        if config.get("frozen"):
            model.freeze({checks.integer("frozen", row, minimum=0) for row in config["frozen"]})
        model.generator.bit_generator.state = config["generator"]
        model.training, model.metadata = bool(config["training"]), dict(config["metadata"])
        if config["loss"] is not None:
            name, arguments = config["loss"]
            model.remember_loss(LOSSES[name](**arguments))
        if config["optimizer"] is not None:
            name, arguments, step_count = config["optimizer"]
            rate = schedules.from_json(arguments["lr"])
            rate = _forgotten_rate if rate is None else rate
            model.optimizer = OPTIMIZERS[name](model.parameters(), **(arguments | {"lr": rate}))
            prefix = "optimizer."
            state = {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
            model.optimizer.load_state_dict({"step_count": step_count} | state)
        if set(arrays) != set(model.state_dict()):
            raise ValueError(f"it has arrays {sorted(arrays)}, which are not those of its layers")
    return model.to(device, precision)


def _forgotten_rate(step):
    raise RuntimeError("the lr of this optimizer was a function, which a file cannot hold; set optimizer.lr again")
