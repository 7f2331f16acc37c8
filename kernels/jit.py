"""Every compile flag and the cache policy, in one place.

`inline` marks functions that are compiled into their callers. `compile_kernel` turns a Python function into a
C-ABI kernel with an address. Nothing compiles at import.

Kernels are kept on disk, in files whose name is a hash of everything that the code depends on: the source of all
kernels, the flags, the versions, the CPU and its features, the function and its signature (disk.py).
"""

import gc
import hashlib
import os
import threading
import time
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numba
from numba.core import registry
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from . import disk
from .inlining import inlined

if numba.config.DISABLE_JIT:
    raise RuntimeError(
        "NUMBA_DISABLE_JIT is set, so Numba compiles nothing, and the kernels are compiled code; unset it, or use "
        'device="reference", which needs no Numba'
    )

# No fast-math: fused multiply-adds and the order of sums are written out (simd.py), so the bits do not depend
# on what an optimiser makes of them, and NaN and infinity keep their meaning.
FLAGS = {"error_model": "numpy", "nogil": True, "boundscheck": False, "_nrt": False}  # _nrt: nothing allocates

inline = partial(inlined, **FLAGS)

_lock = threading.RLock()
_kernels = {}  # name of function and signature -> Kernel, kept for the life of the process
compiled = []  # (name, seconds) of every kernel compiled, not loaded, by this process

# Forking while another thread compiles would leave the child with locks nobody releases. What is registered last is
# taken first: our lock, then Numba's, the order in which `compile_kernel` takes them.
if hasattr(os, "register_at_fork"):
    for lock in (global_compiler_lock, _lock):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


class Kernel:
    """A compiled C-ABI function: `address`, and the library that keeps it alive."""

    function = None  # the same for Python to call, once somebody has made it

    def __init__(self, library, symbol):
        self.library = library
        self.symbol = symbol
        self.address = library.get_pointer_to_function(symbol)

    def assembly(self) -> str:
        """The machine code, as text, from the optimised module: a kernel from the cache has no other."""
        return str(self.library.codegen._tm.emit_assembly(self.library._get_module_for_linking()))


def compile_kernel(function, signature) -> Kernel:
    """The C-ABI kernel of ``function`` for a Numba signature, from memory, disk or the compiler."""
    name = f"{function.__module__}.{function.__qualname__}{signature}"
    with _lock:
        if name not in _kernels:
            path = _cache_path(name)
            kernel = _load(path)
            if kernel is None:
                start = time.perf_counter()
                compiler = CFunc(function, (signature.args, signature.return_type), {}, dict(FLAGS))
                with _collector_paused():
                    compiler.compile()
                kernel = Kernel(compiler._library, compiler.native_name)
                compiled.append((function.__qualname__, time.perf_counter() - start))
                _save(path, kernel)
            _kernels[name] = kernel
        return _kernels[name]


@contextmanager
def _collector_paused():
    """Numba makes hundreds of thousands of objects that stay; to look for cycles among them takes time for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _stamp() -> str:
    target = registry.cpu_target.target_context.codegen()
    settings = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT")
    return disk.stamp_of("cpu", FLAGS, target.magic_tuple(), {name: getattr(numba.config, name) for name in settings})


@cache
def cache_directory() -> Path | None:
    """Where the CPU's kernels are kept; None where they are not."""
    return disk.cache_directory(_stamp)


def _cache_path(name) -> Path | None:
    directory = cache_directory()
    if directory is None:
        return None
    qualified_name, _, _ = name.partition("(")
    short = qualified_name.rpartition(".")[2]
    return directory / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.kernel"


def _load(path) -> Kernel | None:
    """The kernel in a cache file, or None: then it is compiled."""
    parts = path and disk.read_entry(path)
    if not parts:
        return None
    try:
        name, symbol, *code = parts
        serialized = name.decode(), "object", tuple(code)
        return Kernel(registry.cpu_target.target_context.codegen().unserialize_library(serialized), symbol.decode())
    except Exception:  # foreign, or Numba's private API moved: compiling is always right
        return None


def _save(path, kernel):
    if path is None:
        return
    try:
        name, _, code = kernel.library.serialize_using_object_code()
    except Exception:  # Numba's private API moved: run uncached
        return
    disk.write_entry(path, name.encode(), kernel.symbol.encode(), *code)
