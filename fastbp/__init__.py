"""fastbp trains multilayer perceptrons with hand-written Numba kernels behind one written contract.

>>> import fastbp
>>> model = fastbp.Sequential(fastbp.Linear(784, 256), fastbp.ReLU(), fastbp.Linear(256, 10), seed=0)
>>> model.fit(X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=1e-3), epochs=20)
>>> model.predict(X)
"""

from . import autograd
from .backend import get_num_threads, set_num_threads, show_config, warmup
from .callbacks import EarlyStopping
from .data import batches
from .differences import gradcheck, input_gradient, jacobian
from .graph import Function, Variable
from .layers import ELU, GELU, SELU, Dropout, Identity, LeakyReLU, Linear, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HalfSquaredErrorLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
)
from .many import fit_many
from .model import Sequential, load
from .optimizers import SGD, Adam, AdamW, Momentum, RMSProp
from .plot import plot_history
from .pytorch import from_torch
from .schedules import CosineSchedule, OneCycleSchedule, StepSchedule, WarmupSchedule
from .training import History

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "SGD",
    "Adam",
    "AdamW",
    "BCELoss",
    "BCEWithLogitsLoss",
    "CosineSchedule",
    "CrossEntropyLoss",
    "Dropout",
    "EarlyStopping",
    "Function",
    "HalfSquaredErrorLoss",
    "History",
    "HuberLoss",
    "Identity",
    "L1Loss",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "Momentum",
    "OneCycleSchedule",
    "RMSProp",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "StepSchedule",
    "Tanh",
    "Variable",
    "WarmupSchedule",
    "autograd",
    "batches",
    "fit_many",
    "from_torch",
    "get_num_threads",
    "gradcheck",
    "input_gradient",
    "jacobian",
    "load",
    "plot_history",
    "set_num_threads",
    "show_config",
    "warmup",
]
