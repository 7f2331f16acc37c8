"""Compiled kernels on disk: which file has the machine code of a kernel, and what it must agree with."""

from functools import cache
from pathlib import Path

from .. import jit
from .driver import __version__, config, simulated, types
from .fingerprint import fingerprint

if not simulated:
    from .driver import CUDACodeLibrary, NullCache, dispatchers, normalize_signature


if not simulated:

    class Files(NullCache):
        """What Numba asks for a kernel before it compiles, and gives it afterwards: machine code in files, as in `jit`.

        Numba's own cache would not do: it knows a kernel by its name and runs what it unpickles.
        """

        def __init__(self, dispatcher):
            self.dispatcher = dispatcher

        def load_overload(self, signature, target_context):
            """The kernel, in the context of the GPU; None where it has to be compiled."""
            try:
                made = self.load(signature)
                if made is not None:
                    made.bind()
                return made
            except Exception:  # foreign code, or Numba's private API moved: compiling is always right
                return None

        def load(self, signature):
            """The kernel in its file, or None."""
            path, parts = self.path(signature), None
            if path is not None:
                parts = jit.read_entry(path)
            if parts is None:
                return None
            from cuda.core import ObjectCode

            name, cooperative, code = parts
            library = CUDACodeLibrary(None, name.decode(), entry_name=name.decode())
            library._cubin_cache[library._ensure_cc(None)] = ObjectCode.from_cubin(code, name=name.decode())
            library._finalized = True
            return dispatchers._Kernel._rebuild(
                cooperative=cooperative == b"cooperative", name=name.decode(),
                signature=types.void(*normalize_signature(signature)[0]), codelibrary=library, debug=False,
                lineinfo=False, call_helper=None, extensions=[],
            )  # fmt: skip

        def save_overload(self, signature, made):
            """Write its file, of machine code that is there by now; failing to is no error."""
            try:
                path, code = self.path(signature), made.library.get_cubin().code
                cooperative = b"cooperative" if made.cooperative else b""
                if path is not None and not made.launch_config_sensitive:
                    jit.write_entry(path, made.entry_name.encode(), cooperative, code)
            except Exception:  # Numba's private API moved: run uncached
                pass

        def path(self, signature) -> Path | None:
            """Where the kernel is kept for the GPU in use; None where it is not."""
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
    """Where machine code is kept; None also where the toolkit is not found that it would depend on."""
    try:
        return jit.cache_directory(_stamp())
    except Exception:  # each of the packages asked has errors of its own
        return None


@cache
def _stamp() -> str:
    """A hash of all that any kernel of the GPU depends on."""
    from cuda import bindings, core, pathfinder
    from numba.cuda.cudadrv.libs import get_cudalib, get_libdevice

    # The versions that these libraries tell are not those of every release, so their files stand for them.
    libraries = [pathfinder.load_nvidia_dynamic_lib(name).abs_path for name in ("nvvm", "nvJitLink")]
    files = [Path(path).resolve() for path in (*libraries, get_libdevice(), get_cudalib("cudadevrt", static=True))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = {name: getattr(config, name) for name in ("OPT", "CUDA_DEBUGINFO_DEFAULT", "CUDA_ENABLE_NRT")}
    versions = __version__, core.__version__, bindings.__version__, str(core.Linker.which_backend())
    return jit.stamp_of("cuda", versions, stats, settings)
