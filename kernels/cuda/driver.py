"""Finds numba-cuda, and the GPU: which releases fit, what an error says, which device is there.

What the library takes from cuda.core and cuda.bindings, on which numba-cuda stands, is imported here, after the check
of the release, and by the other files from here. Numba itself is imported when a kernel has to be compiled (later.py).
With NUMBA_ENABLE_CUDASIM=1 every kernel runs in Numba's simulator, where a thread of Python stands for a thread of the
GPU: `simulated` tells the few places where something else stands in for what the simulator lacks (libdevice, graphs,
intrinsics).
"""
# ruff: noqa: F401 - what other files import from here

import os
from functools import cache
from types import SimpleNamespace

import numpy as np

try:
    from numba_cuda import __version__  # Numba itself has an older numba.cuda, without what these kernels use
except ImportError as error:
    raise ImportError(
        'device "cuda" needs the package numba-cuda, which is not installed: pip install "fastbp[cuda]" for CUDA 13, '
        'pip install "fastbp[cuda12]" for CUDA 12'
    ) from error


def _check_versions():
    """Raise ImportError for a release that these kernels do not run on; they use private parts of numba-cuda."""
    for package, version, fits, expected in (
        ("numba-cuda", __version__, _release(__version__) == (0, 30), "0.30"),
        ("NumPy", np.__version__, _release(np.__version__) < (2, 5), "below 2.5, for numba-cuda 0.30 uses row_stack"),
    ):
        if not fits:
            raise ImportError(
                f'device "cuda" needs {package} {expected}, got {version}: pip install "fastbp[cuda]" for CUDA 13, '
                'pip install "fastbp[cuda12]" for CUDA 12, brings releases that fit'
            )


def _release(version):
    """The first two numbers of a version."""
    return tuple(int(number) for number in version.split(".")[:2])


_check_versions()

simulated = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

if simulated:
    from numba import cuda, types
    from numba.cuda.cudadrv.devicearray import FakeCUDAArray as Array
    from numba.cuda.simulator.kernel import _get_kernel_context

    class _Simulator:
        """``numba.cuda``, and within a kernel what the simulator puts in its place, in whichever module the kernel is.

        Numba itself replaces the name ``cuda`` only in the module of the kernel, not in those of functions it calls.
        """

        def __getattr__(self, name, module=cuda):
            context = _get_kernel_context()
            return getattr(context if hasattr(context, name) else module, name)

    cuda = _Simulator()
    libdevice = SimpleNamespace(  # the functions of it that the kernels use, in NumPy
        rintf=np.rint,
        rint=np.rint,
        float2int_rn=lambda x: np.int32(np.nan_to_num(np.rint(x))),
        double2int_rn=lambda x: np.int32(np.nan_to_num(np.rint(x))),
        float_as_int=lambda x: np.float32(x).view(np.int32),
        int_as_float=lambda bits: bits.view(np.float32),
        double2hiint=lambda x: np.int32(np.float64(x).view(np.int64) >> 32),
        double2loint=lambda x: np.float64(x).view(np.int64).astype(np.int32),
        hiloint2double=lambda high, low: (np.int64(high) << 32 | np.int64(low) & 0xFFFFFFFF).view(np.float64),
    )
else:
    from cuda import bindings, core, pathfinder
    from cuda.bindings import driver as driver_calls
    from cuda.core import Device, EventOptions, LaunchConfig, ObjectCode, StreamOptions, launch

    from .later import cuda, libdevice, types

_process = None  # the id of the process that uses the GPU, once one does


def require():
    """Raise RuntimeError, with what to do about it, unless this process can use a GPU."""
    global _process
    if _process == os.getpid():
        return
    if _process is not None:
        raise RuntimeError(
            "CUDA was used before this process was forked, and does not survive that: start processes with "
            'multiprocessing.get_context("spawn"), or use the GPU in one process only'
        )
    reason = missing()
    if reason is not None:
        raise RuntimeError(
            f'device "cuda" needs an NVIDIA GPU and its driver, and none answers here ({reason})'
            ': install the driver and check with nvidia-smi, or use device="cpu"'
        )
    _process = os.getpid()


def missing() -> str | None:
    """Why this process finds no GPU; None where it finds one, and in the simulator."""
    if simulated:
        return None
    try:
        called(driver_calls.cuInit(0))
        return None if called(driver_calls.cuDeviceGetCount()) else "there is no GPU"
    except Exception as error:  # cuda.bindings has errors of its own for a driver that is not installed
        return " ".join(str(error).split())


def called(answer):
    """What a function of the driver returned beside its status; RuntimeError where that is none of success."""
    status, *values = answer
    if status:
        raise RuntimeError(f"the CUDA driver answers {status.name}")
    return values[0] if values else None


@cache
def device():
    """The GPU in use: that of the context of the first thread that uses it, or the first one."""
    require()
    return Device()


@cache
def multiprocessors() -> int:
    """The number of multiprocessors of the GPU; 2 in the simulator."""
    return 2 if simulated else device().properties.multiprocessor_count


@cache
def compute_capability() -> tuple[int, int]:
    """The compute capability of the GPU; (0, 0) in the simulator."""
    return (0, 0) if simulated else tuple(device().compute_capability)


@cache
def most_shared() -> int:
    """The most bytes of shared memory that a block may have if its kernel asks for them."""
    return device().properties.max_shared_memory_per_block_optin


def allow_shared(code, size):
    """Let the launches of a kernel, as cuda.core has it, have up to so many bytes of dynamic shared memory."""
    _allow(code, "MAX_DYNAMIC_SHARED_SIZE_BYTES", size, f"{size} bytes of shared memory")


def allow_large_clusters(code):
    """Let the launches of a kernel have clusters of more blocks than the eight that every GPU with clusters allows."""
    _allow(code, "NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1, "clusters of more than eight blocks")


def _allow(code, name, value, words):
    attribute = getattr(driver_calls.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
    (status,) = driver_calls.cuKernelSetAttribute(attribute, value, code.handle, device().device_id)
    if status:
        raise RuntimeError(f"the CUDA driver allows a kernel no {words}: {status.name}")


def clusters_at_once(code, configuration, stream) -> int:
    """How many clusters of a launch the GPU has room for at once; 0 too where it has none of that size."""
    try:
        return code.occupancy.max_active_clusters(configuration, stream=stream)
    except Exception as error:  # cuda.core has errors of its own
        if "CUDA_ERROR_INVALID_CLUSTER_SIZE" not in str(error):
            raise
        return 0


def memory_info() -> tuple[int, int]:
    """The bytes of the GPU that are free, and all; the calling thread has its context."""
    if simulated:
        return tuple(cuda.current_context().get_memory_info())
    status, *sizes = driver_calls.cuMemGetInfo()
    called((status,))
    return tuple(sizes)


def describe() -> dict[str, str]:
    """The GPU in use and the version of numba-cuda, as short strings."""
    lines = {"numba-cuda": __version__}
    if simulated:
        return lines | {"GPU": "simulator"}
    device().set_current()
    free, total = memory_info()
    return lines | {
        "GPU": device().name,
        "compute capability": ".".join(map(str, compute_capability())),
        "multiprocessors": str(multiprocessors()),
        "memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
    }
