"""Which kernels run: device names, the modules behind them, and what is set for the whole process.

A backend is a plain module with the names of ``kernels/reference.py``. It is imported on first use, so
``import fastbp`` costs NumPy only, and nothing of CUDA is imported before a model asks for it. There is no fall-back
from one device to another.
"""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from . import checks
from .kernels import layout

MODULES = {"cpu": "fastbp.kernels.cpu", "cuda": "fastbp.kernels.cuda", "reference": "fastbp.kernels.reference"}

Kernels: TypeAlias = Any  # a module with the names of kernels/reference.py, or `device.DeviceKernels`

# Where the precisions that round are to be had, for errors.
WHERE = {
    "tf32": 'tensor cores have it; choose device="cuda" and dtype="float32"',
    "bf16": 'choose dtype="float32"',
    "bf16x3": 'choose dtype="float32"',
}

MOST_THREADS = 512  # more, waiting for one another on a few cores, would be at it for minutes

_loaded: dict[str, Kernels] = {}
_threads: int | None = None  # as set by set_num_threads


def on_host(device: str) -> bool:
    """Whether a device computes in the memory of the host, on NumPy's arrays."""
    return device != "cuda"


def load(device: str) -> Kernels:
    """The backend of a device: its module, wrapped in `device.DeviceKernels` where the device has its own memory."""
    if device not in _loaded:
        checks.choice("device", device, MODULES)
        module = importlib.import_module(MODULES[device])
        if _threads is not None:
            module.set_num_threads(_threads)
        if not on_host(device):
            from .device import DeviceKernels

            module = DeviceKernels(module)
        _loaded[device] = module
    return _loaded[device]


def require(device: str) -> None:
    """Raise an error that says what to do, unless this process can compute on the device."""
    kernels = load(device)
    if not on_host(device):
        kernels.driver.require()


def check_precision(precision: str, dtype: DTypeLike, device: str) -> None:
    """Raise unless the device has this precision for products of this dtype."""
    checks.choice("precision", precision, layout.PRECISIONS)
    known = load(device).precisions(dtype)
    if precision not in known:
        names = ", ".join(f'"{name}"' for name in known)
        raise ValueError(
            f'device="{device}" and dtype="{np.dtype(dtype).name}" has precision {names}, got "{precision}": '
            f"{WHERE[precision]}"
        )


def set_num_threads(threads: int) -> None:
    """Use this many workers, in the whole process, from the next call on.

    Parameters
    ----------
    threads : int
        From 1 to `MOST_THREADS`, which is 512; more workers than cores is allowed. Results have the same bits for every
        number.
    """
    global _threads
    if checks.integer("threads", threads, minimum=1) > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}, got {threads}")
    _threads = int(threads)
    for module in _loaded.values():
        module.set_num_threads(_threads)


def threads_are_set() -> bool:
    """Whether `set_num_threads` was called."""
    return _threads is not None


def get_num_threads() -> int:
    """The number of workers in use: what `set_num_threads` set, else what the CPU backend chose."""
    return load("cpu").get_num_threads() if _threads is None else _threads


def warmup(
    dtype: DTypeLike | Sequence[DTypeLike] = ("float32", "float64"),
    *,
    device: str = "cpu",
    activations: Sequence[str] = layout.ACTIVATIONS,
    losses: Sequence[str] = layout.LOSSES,
    optimizers: Sequence[str] = layout.OPTIMIZERS,
) -> float:
    """Compile what training and prediction use, so that nothing has to be compiled later.

    Parameters
    ----------
    dtype : dtype or sequence of dtypes
        float32, float64 or both.
    device : str
    activations, losses, optimizers : sequences of str
        Names as in ``fastbp.kernels.layout``; everything by default.

    Returns
    -------
    float
        Seconds taken; almost none when the compiled kernels are on disk already.
    """
    dtypes = [checks.dtype("dtype", one) for one in (dtype if isinstance(dtype, list | tuple) else [dtype])]
    given = {"activations": activations, "losses": losses, "optimizers": optimizers}
    known = {"activations": layout.ACTIVATIONS, "losses": layout.LOSSES, "optimizers": layout.OPTIMIZERS}
    for argument, names in given.items():
        for name in names:
            checks.choice(argument, name, known[argument])
    module = load(device)
    start = time.perf_counter()
    for one in dtypes:
        module.warmup(one, activations, losses, optimizers)
    return time.perf_counter() - start


def show_config(device: str = "cpu") -> dict[str, str]:
    """Print the versions, processor features, kernels, threads and cache in use.

    Returns
    -------
    dict of str to str
        The lines that were printed.
    """
    config = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
    }
    module = load(device)
    config |= {"threads": str(module.get_num_threads())} | module.config()
    width = max(map(len, config))
    for key, value in config.items():
        print(f"{key:<{width}}  {value}")
    return config
