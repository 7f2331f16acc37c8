"""Compiled kernels on disk: which file holds the machine code of a kernel, and all that the code depends on."""

from functools import cache
from pathlib import Path

from .. import jit
from .driver import __version__, config, simulated, types
from .fingerprint import fingerprint

if not simulated:
    from .driver import (
        CUDACodeLibrary,
        NullCache,
        ObjectCode,
        bindings,
        core,
        dispatchers,
        get_cudalib,
        get_libdevice,
        normalize_signature,
        pathfinder,
    )

    class Files(NullCache):
        """The cache of a kernel, which Numba asks before it compiles and tells afterwards; files are those of `jit`.

        Numba's own cache is not used, as it identifies a kernel by its name and unpickles what a file holds.
        """

        def __init__(self, dispatcher):
            self.dispatcher = dispatcher

        def load_overload(self, signature, target_context):
            """The kernel, loaded onto the GPU; None where it has to be compiled."""
            try:
                made = self.load(signature)
                if made is not None:
                    made.bind()
                return made
            except Exception:  # code for another GPU, or another numba-cuda: compiling is always right
                return None

        def load(self, signature):
            """The kernel from its file, or None where there is no sound file."""
            path, parts = self.path(signature), None
            if path is not None:
                parts = jit.read_entry(path)
            if parts is None:
                return None
            name, cooperative, code = parts
            library = CUDACodeLibrary(None, name.decode(), entry_name=name.decode())
            library._cubin_cache[library._ensure_cc(None)] = ObjectCode.from_cubin(code, name=name.decode())
            library._finalized = True
            made_of = {"name": name.decode(), "codelibrary": library, "cooperative": cooperative == b"cooperative"}
            made_of |= {"signature": types.void(*normalize_signature(signature)[0])}
            unused = {"debug": False, "lineinfo": False, "call_helper": None, "extensions": []}
            return dispatchers._Kernel._rebuild(**made_of, **unused)

        def save_overload(self, signature, made):
            """Write the machine code to the file of the kernel; it is no error if that fails."""
            try:
                path, code = self.path(signature), made.library.get_cubin().code
                cooperative = b"cooperative" if made.cooperative else b""
                if path is not None and not made.launch_config_sensitive:
                    jit.write_entry(path, made.entry_name.encode(), cooperative, code)
            except Exception:  # another numba-cuda: the kernel runs, and is compiled again next time
                pass

        def path(self, signature) -> Path | None:
            """The file of the kernel for the GPU in use; None where it is not kept on disk."""
            options = self.dispatcher.targetoptions
            if options["debug"] or options["link"] or options["extensions"]:  # need more than machine code
                return None
            directory = cache_directory()
            if directory is None:
                return None
            function, (arguments, _) = self.dispatcher.py_func, normalize_signature(signature)
            architecture = CUDACodeLibrary(None, "")._ensure_cc(None)
            name = fingerprint(function, repr(arguments), repr(sorted(options.items())), repr(architecture))
            return directory / f"{function.__qualname__.rpartition('.')[2]}-{name[:32]}.kernel"


def cache_directory() -> Path | None:
    """Where machine code is kept; None where nothing is cached, or where the toolkit that makes it is not found."""
    try:
        return jit.cache_directory(_stamp())
    except Exception:  # the packages that `_stamp` asks raise errors of their own
        return None


@cache
def _stamp() -> str:
    """A hash of all that the machine code of every kernel depends on: sources, versions, compiler and settings."""
    # These libraries do not change their version with every release, so size and time of their files are hashed.
    libraries = [pathfinder.load_nvidia_dynamic_lib(name).abs_path for name in ("nvvm", "nvJitLink")]
    files = [Path(path).resolve() for path in (*libraries, get_libdevice(), get_cudalib("cudadevrt", static=True))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = {name: getattr(config, name) for name in ("OPT", "CUDA_DEBUGINFO_DEFAULT", "CUDA_ENABLE_NRT")}
    versions = __version__, core.__version__, bindings.__version__, str(core.Linker.which_backend())
    return jit.stamp_of("cuda", versions, stats, settings)
