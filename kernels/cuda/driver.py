"""Finds and loads numba-cuda, and the GPU: which releases fit, what an error says, which device is there.

All that the library takes from numba.cuda, and from cuda.core and cuda.bindings on which that stands, is imported here,
after the check of the release, and by the other files from here. With NUMBA_ENABLE_CUDASIM=1 every kernel runs in
Numba's simulator, where a thread of Python stands for a thread of the GPU: `simulated` tells the few places where
something else stands in for what the simulator lacks (libdevice, graphs, intrinsics).
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

from numba import cuda, types  # noqa: E402  an unfit release may fail at its import
from numba.cuda.core import config  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # small networks have small grids
simulated = bool(config.ENABLE_CUDASIM)

if simulated:
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
    from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch
    from numba.cuda import dispatcher as dispatchers
    from numba.cuda import libdevice
    from numba.cuda.codegen import CUDACodeLibrary
    from numba.cuda.core.caching import NullCache
    from numba.cuda.core.sigutils import normalize_signature
    from numba.cuda.cudadrv.libs import get_cudalib, get_libdevice
    from numba.cuda.datamodel.models import ArrayModel
    from numba.cuda.extending import intrinsic
    from numba.cuda.models import register_model

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
    if not cuda.is_available():
        reason = " ".join(str(cuda.cuda_error() or "there is no GPU").split())
        raise RuntimeError(
            f'device "cuda" needs an NVIDIA GPU and its driver, and none answers here ({reason})'
            ': install the driver and check with nvidia-smi, or use device="cpu"'
        )
    _process = os.getpid()


@cache
def multiprocessors() -> int:
    """The number of multiprocessors of the GPU; 2 in the simulator."""
    return 2 if simulated else cuda.get_current_device().MULTIPROCESSOR_COUNT


@cache
def compute_capability() -> tuple[int, int]:
    """The compute capability of the GPU; (0, 0) in the simulator."""
    return (0, 0) if simulated else tuple(cuda.get_current_device().compute_capability)


@cache
def most_shared() -> int:
    """The most bytes of shared memory that a block may have if its kernel asks for them."""
    return cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def allow_shared(code, size):
    """Let the launches of a kernel, as cuda.core has it, have up to so many bytes of dynamic shared memory."""
    attribute = driver_calls.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver_calls.cuKernelSetAttribute(attribute, size, code.handle, cuda.get_current_device().id)
    if status:
        raise RuntimeError(f"the CUDA driver allows a kernel no {size} bytes of shared memory: {status.name}")


def describe() -> dict[str, str]:
    """The GPU in use and the version of numba-cuda, as short strings."""
    lines = {"numba-cuda": __version__}
    if simulated:
        return lines | {"GPU": "simulator"}
    require()
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    free, total = cuda.current_context().get_memory_info()
    return lines | {
        "GPU": name,
        "compute capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": str(multiprocessors()),
        "memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
    }
