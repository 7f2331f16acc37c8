"""fastbp trains multilayer perceptrons with hand-written Numba kernels behind one written contract.

>>> import fastbp
>>> model = fastbp.Sequential(fastbp.Linear(784, 256), fastbp.ReLU(), fastbp.Linear(256, 10), seed=0)
>>> model.fit(X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=1e-3), epochs=20)
>>> model.predict(X)
"""

from .backend import get_num_threads, set_num_threads, show_config, warmup
from .layers import ELU, GELU, SELU, Dropout, Identity, LeakyReLU, Linear, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .losses import CrossEntropyLoss, HalfSquaredErrorLoss, MSELoss
from .model import Sequential, load
from .optimizers import SGD, Adam
from .training import EarlyStopping, History, batches

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "SGD",
    "Adam",
    "CrossEntropyLoss",
    "Dropout",
    "EarlyStopping",
    "HalfSquaredErrorLoss",
    "History",
    "Identity",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "batches",
    "get_num_threads",
    "load",
    "set_num_threads",
    "show_config",
    "warmup",
]
