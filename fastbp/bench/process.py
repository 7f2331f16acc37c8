"""The process that measures: its cores, its threads, and the instruction set of all in it."""

import contextlib
import importlib.util
import os
import subprocess
import sys

BUSY = "while True: pass"

# What libraries read once, when they are loaded; None: not set, so that each takes its own processor's kernels.
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
INSTRUCTION_SETS = {
    "host": {"OPENBLAS_CORETYPE": None, "OPENBLAS_L2_SIZE": None},
    "avx2": {
        "NUMBA_CPU_NAME": "x86-64-v3",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_L2_SIZE": None,
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}
XLA_INSTRUCTION_SETS = {"host": "", "avx2": " --xla_cpu_max_isa=AVX2"}


def environment(threads, isa="host") -> dict[str, str | None]:
    """Variables that keep the libraries of a process to so many threads, and to an instruction set."""
    xla = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} intra_op_parallelism_threads={threads}"
    return (
        dict.fromkeys(THREAD_COUNTS, str(threads))
        | INSTRUCTION_SETS[isa]
        | {"XLA_FLAGS": xla + XLA_INSTRUCTION_SETS[isa]}
    )


def in_force(variables) -> bool:
    """Whether this process was started with these variables."""
    return all(os.environ.get(name) == value for name, value in variables.items())


def run_with(variables, arguments) -> int:
    """Run the command line once more, in a process with these variables; returns its exit code."""
    changed = {name: value for name, value in (os.environ | variables).items() if value is not None}
    return subprocess.call([sys.executable, "-m", "fastbp", *arguments], env=changed)


def pin(threads: int) -> list[int]:
    """Keep this process, and those it starts, to ``threads`` cores.

    Returns
    -------
    list of int
        The cores; empty where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    if len(cores) < threads:
        raise ValueError(f"--threads {threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores)
    return cores


def load() -> float | None:
    """Processes that wanted a core during the last minute, this one among them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@contextlib.contextmanager
def busy_core():
    """Another process that never rests, on one of our cores."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[-1:])
        yield
    finally:
        process.kill()
        process.wait()


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None
