"""fastbp trains multilayer perceptrons with hand-written Numba kernels behind one written contract.

>>> import fastbp
>>> model = fastbp.Sequential(fastbp.Linear(784, 256), fastbp.ReLU(), fastbp.Linear(256, 10), seed=0)
>>> model.fit(X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=1e-3), epochs=20)
>>> model.predict(X)
"""

from . import autograd, distributed, layers, losses, optimizers
from .backend import get_num_threads, set_num_threads, show_config, warmup
from .callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from .checkpoints import request_checkpoint
from .data import batches
from .differences import gradcheck, input_gradient, jacobian
from .estimators import from_sklearn, to_sklearn
from .graph import Function, Variable
from .layers import *
from .loading import load
from .losses import *
from .many import fit_many
from .model import Sequential
from .optimizers import *
from .plot import plot_history
from .pytorch import from_torch
from .rates import find_lr
from .schedules import CosineSchedule, CosLogSchedule, OneCycleSchedule, StepSchedule, WarmupSchedule
from .training import History

__all__ = [
    "CosLogSchedule",
    "CosineSchedule",
    "EarlyStopping",
    "Function",
    "History",
    "ModelCheckpoint",
    "OneCycleSchedule",
    "ReduceLROnPlateau",
    "Sequential",
    "StepSchedule",
    "Variable",
    "WarmupSchedule",
    "autograd",
    "batches",
    "distributed",
    "find_lr",
    "fit_many",
    "from_sklearn",
    "from_torch",
    "get_num_threads",
    "gradcheck",
    "input_gradient",
    "jacobian",
    "load",
    "plot_history",
    "request_checkpoint",
    "set_num_threads",
    "show_config",
    "to_sklearn",
    "warmup",
]
__all__ += layers.__all__ + losses.__all__ + optimizers.__all__


def __dir__() -> list[str]:
    """What is public."""
    return sorted([*__all__, "__all__", "__doc__", "__name__", "__path__"])
