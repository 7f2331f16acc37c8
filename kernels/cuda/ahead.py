"""Kernels compiled ahead of their first launch, by a process for each core, as Numba compiles one at a time in each.

What a step launches is found by going through it with a `compiling.Listing` in place of a stream. Each process compiles
a share of what is not on disk, and leaves it there. What a process could not compile, and kernels that are not in the
catalogue, are compiled where they are launched.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from ..processors import available_cores
from . import catalogue, disk_cache, driver
from .compiling import Listing

COMMAND = sys.executable, "-c", f"from {__name__} import main; main()"  # and what it is to compile

_compiling = threading.Lock()


def compile_for(launches):
    """Compile what ``launches(stream)`` launches, so that its first launches find it on disk."""
    if driver.simulated:
        return
    listing = Listing()
    launches(listing)
    compile_all(listing.kernels)


def compile_all(kernels):
    """Compile those of the catalogue that are not on disk, unless one process would do all of it.

    Where another program has Python in it, that may not be started for another process, and nothing is done.

    Parameters
    ----------
    kernels : list of compiling.Kernel
    """
    is_python = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    if not is_python or disk_cache.cache_directory() is None:
        return
    with _compiling:  # another thread finds on disk what this one has compiled
        missing = {id(kernel) for kernel in kernels if kernel.code is None and disk_cache.read(kernel) is None}
        named = [(kernel.dtype.str, kernel.name) for kernel in catalogue.kernels() if id(kernel.function) in missing]
        processes = min(available_cores(), len(named))
        if processes > 1:  # products, which take the longest, are side by side in the catalogue: all have some
            _run([json.dumps(named[first::processes]) for first in range(processes)])


def _run(shares):
    """A process for each share; returns when all have ended. What one cannot do is done, or refused, at the launch."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": path}
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    running = []
    try:
        for share in shares:
            running.append(subprocess.Popen([*COMMAND, share], env=environment, **silent))
        for process in running:
            process.wait()
    finally:  # of an interruption
        for process in running:
            process.kill()


def main():
    """Compile the kernels that the last argument names, for the GPU in use, to disk."""
    wanted = {(dtype, name) for dtype, name in json.loads(sys.argv[-1])}
    driver.require()
    for kernel in catalogue.kernels({np.dtype(dtype) for dtype, _ in wanted}):
        if (kernel.dtype.str, kernel.name) in wanted:
            kernel.function.compile()
