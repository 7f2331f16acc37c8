"""Every compile flag and the cache policy, in one place.

`inline` marks functions that are compiled into their callers. `compile_kernel` turns a Python function into a
C-ABI kernel with an address. Nothing compiles at import.

The cache holds one self-contained file a kernel, named by a hash of everything its code depends on: the
source of all kernels, the flags, the versions of Python, Numba and llvmlite, the CPU and its features, the
function and its signature. So there is no index that two processes could tear, no stale callee and no file of
another machine; a file that is damaged, or a directory that cannot be written, costs a compilation.
"""

import hashlib
import os
import pickle
import platform
import stat
import tempfile
import threading
import time
import warnings
from functools import cache
from pathlib import Path

import llvmlite
import numba
from numba.core import registry
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

# No fast-math: fused multiply-adds and the order of sums are written out (simd.py), so the bits do not depend
# on what an optimiser makes of them, and NaN and infinity keep their meaning.
FLAGS = {"error_model": "numpy", "nogil": True, "boundscheck": False, "_nrt": False}  # _nrt: nothing allocates

# No wrappers: an inlined function is never called from Python, and making it callable doubles its compile time.
inline = numba.njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **FLAGS)

_lock = threading.RLock()
_kernels = {}  # (function, signature) -> Kernel, kept for the life of the process
compiled = []  # (name, seconds) of every kernel compiled, not loaded, by this process

# Forking while another thread compiles would leave the child with locks nobody releases.
if hasattr(os, "register_at_fork"):
    for lock in (_lock, global_compiler_lock):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


class Kernel:
    """A compiled C-ABI function: `address`, and the library that keeps it alive."""

    def __init__(self, library, symbol):
        self.library = library
        self.symbol = symbol
        self.address = library.get_pointer_to_function(symbol)

    def assembly(self) -> str:
        """The machine code, as text."""
        return self.library.get_asm_str()


def compile_kernel(function, signature) -> Kernel:
    """The C-ABI kernel of ``function`` for a Numba signature, from memory, disk or the compiler."""
    key = (function, signature)
    with _lock:
        if key not in _kernels:
            path = _cache_path(function, signature)
            kernel = _load(path)
            if kernel is None:
                start = time.perf_counter()
                compiler = CFunc(function, (signature.args, signature.return_type), {}, dict(FLAGS))
                compiler.compile()
                kernel = Kernel(compiler._library, compiler.native_name)
                compiled.append((function.__name__, time.perf_counter() - start))
                _save(path, kernel)
            _kernels[key] = kernel
        return _kernels[key]


@cache
def _stamp() -> str:
    """A hash of all that any kernel depends on."""
    digest = hashlib.sha256()
    target = registry.cpu_target.target_context.codegen()
    for part in (
        platform.python_version(),
        numba.__version__,
        llvmlite.__version__,
        FLAGS,
        target.magic_tuple(),
        {name: getattr(numba.config, name) for name in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT")},
    ):
        digest.update(repr(part).encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def cache_directory() -> Path | None:
    """Where compiled kernels are kept; None with FASTBP_CACHE=0 or when no safe directory can be written.

    FASTBP_CACHE_DIR, else the user's cache directory. Entries are machine code, so a directory that somebody
    else owns or may write to is refused.
    """
    if os.environ.get("FASTBP_CACHE", "1") == "0":
        return None
    try:
        root = os.environ.get("FASTBP_CACHE_DIR")
        if root is None:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbp"
        directory = Path(root) / _stamp()[:16]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            warnings.warn(f"fastbp: {directory} is not private to this user; kernels are not cached", stacklevel=2)
            return None
        tempfile.TemporaryFile(dir=directory).close()
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return directory


def _cache_path(function, signature) -> Path | None:
    directory = cache_directory()
    if directory is None:
        return None
    name = f"{function.__module__}.{function.__qualname__}{signature}"
    return directory / f"{function.__name__}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.kernel"


def _load(path) -> Kernel | None:
    """The kernel in a cache file, or None: then it is compiled."""
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        serialized, symbol = pickle.loads(raw[32:])
        return Kernel(registry.cpu_target.target_context.codegen().unserialize_library(serialized), symbol)
    except Exception:  # missing, torn, foreign, or Numba's private API moved: compiling is always right
        return None


def _save(path, kernel):
    """Write the cache file in one step; failing to is no error."""
    if path is None:
        return
    temporary = None
    try:
        raw = pickle.dumps((kernel.library.serialize_using_object_code(), kernel.symbol))
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(raw).digest() + raw)
        os.replace(temporary, path)
    except Exception:  # full disk, no permission, or Numba's private API moved: run uncached
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
