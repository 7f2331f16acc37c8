"""What the host asks of the emulated GPU: launches, replays, copies, waits, allocations and what is freed."""

import ctypes
import gc
import os
from collections.abc import Callable
from typing import NamedTuple


class Counts(NamedTuple):
    """How often; ``waits`` are also copies from and to memory that is not page-locked."""

    launches: int
    replays: int
    copies: int
    waits: int
    allocations: int


NAMES = "launch", "replay", "copy", "wait", "allocation"  # of driver.cpp


def library():
    """The driver's library, which is loaded already, where it is the emulated one; else None."""
    if "NUMBA_CUDA_DRIVER" not in os.environ:
        return None
    loaded = ctypes.CDLL(os.environ["NUMBA_CUDA_DRIVER"])
    return loaded if hasattr(loaded, "emulator_count") else None


def counted(work: Callable[[], object]) -> Counts:
    """What one call of ``work`` asks for; nothing is collected meanwhile, which would free memory of before."""
    count = library().emulator_count
    count.restype, count.argtypes = ctypes.c_uint64, [ctypes.c_char_p]
    gc.collect()
    before = [count(name.encode()) for name in NAMES]
    work()
    return Counts(*(count(name.encode()) - first for name, first in zip(NAMES, before, strict=True)))
