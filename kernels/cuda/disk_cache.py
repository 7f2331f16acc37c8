"""Compiled kernels on disk: which file holds the machine code of a kernel, and all that the code depends on."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from .. import disk
from . import driver
from .fingerprint import fingerprint

if not driver.simulated:
    from .driver import bindings, core, pathfinder

SETTINGS = ("NUMBA_OPT", "NUMBA_CUDA_DEBUGINFO", "NUMBA_CUDA_ENABLE_NRT")  # variables that Numba follows


def read(kernel):
    """What `machine_code.machine_code` gave for the kernel, from its file; None where there is no sound file."""
    try:
        name, cooperative, code = disk.read_entry(path_of(kernel))
        return name.decode(), cooperative == b"cooperative", code
    except Exception:  # no file, or nothing is kept: compiling is always right
        return None


def write(kernel, name, cooperative, code):
    """Write the machine code to the file of the kernel; it is no error if that fails."""
    with suppress(Exception):  # the kernel runs, and is compiled again next time
        disk.write_entry(path_of(kernel), name.encode(), b"cooperative" if cooperative else b"", code)


def path_of(kernel) -> Path | None:
    """The file of the kernel for the GPU in use; None where it is not kept on disk."""
    directory = cache_directory()
    if directory is None:
        return None
    declared = kernel.signature, kernel.bounds, kernel.whole, driver.compute_capability()
    name = fingerprint(kernel.function, *map(repr, declared))
    return directory / f"{kernel.function.__qualname__.rpartition('.')[2]}-{name[:32]}.kernel"


@cache
def cache_directory() -> Path | None:
    """Where machine code is kept; None where nothing is cached, or where the toolkit that makes it is not found."""
    try:
        return disk.cache_directory(_stamp)
    except Exception:  # the packages that `_stamp` asks raise errors of their own
        return None


@cache
def _stamp() -> str:
    """A hash of all that the machine code of every kernel depends on: sources, versions, compiler and settings."""
    # These libraries do not change their version with every release, so size and time of their files are hashed.
    libraries = [pathfinder.load_nvidia_dynamic_lib(name).abs_path for name in ("nvvm", "nvJitLink")]
    libraries += [pathfinder.find_bitcode_lib("device"), pathfinder.find_static_lib("cudadevrt")]
    files = [Path(path).resolve() for path in libraries]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = {name: os.environ.get(name) for name in SETTINGS}
    versions = driver.__version__, core.__version__, bindings.__version__, str(core.Linker.which_backend())
    return disk.stamp_of("cuda", versions, stats, settings)
