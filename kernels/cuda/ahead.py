"""Kernels compiled ahead of their first launch, by a process for each core, as Numba compiles one at a time in each.

What a step launches is found by going through it with a `compiling.Listing` in place of a stream. Each process compiles
a share of what is not on disk, and leaves it there. What a process could not compile is compiled where it is launched.
"""

import os
import pickle
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

from ..processors import available_cores
from . import disk_cache, driver
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
    """Compile those that are not on disk, unless one process would do all of it.

    Nothing is done where Python is a part of another program: that must not be started once more.

    Parameters
    ----------
    kernels : list of compiling.Kernel
    """
    is_python = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    if not is_python or disk_cache.cache_directory() is None:
        return
    with _compiling:  # another thread finds on disk what this one has compiled
        missing = {
            disk_cache.path_of(kernel): kernel.recipe
            for kernel in kernels
            if kernel.code is None and disk_cache.read(kernel) is None
        }
        recipes = list(missing.values())
        processes = min(available_cores(), len(recipes))
        if processes > 1:
            _run([pickle.dumps(recipes[first::processes]).hex() for first in range(processes)])


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
    """Compile kernels by the recipes that are the last argument, for the GPU in use, to disk."""
    driver.require()
    for module, make, arguments, named in pickle.loads(bytes.fromhex(sys.argv[-1])):
        getattr(import_module(module), make)(*arguments, **named).compile()
