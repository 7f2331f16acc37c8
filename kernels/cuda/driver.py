"""The one door to numba.cuda: its options, its errors, and device memory as flat arrays.

Nothing else in the library imports numba.cuda, so that a successor of numba-cuda is a change to this file. With
NUMBA_ENABLE_CUDASIM=1 every kernel runs in Numba's simulator, a thread of Python a thread of the GPU: `simulated`
tells the few places where a twin stands in for what the simulator lacks (libdevice, graphs, intrinsics).
"""

import contextlib
import os
import threading
import time
import weakref
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .. import jit
from .fingerprint import fingerprint

try:
    from numba_cuda import __version__  # Numba itself has an older numba.cuda, without what these kernels use
except ImportError as error:
    raise ImportError(
        'device "cuda" needs the package numba-cuda, which is not installed: pip install "fastbp[cuda]" for CUDA 13, '
        'pip install "fastbp[cuda12]" for CUDA 12'
    ) from error


def _check_versions():
    """Raise for releases that these kernels do not run on: private API is used, so numba-cuda's bound is narrow."""
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

from .. import exchange  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # small networks have small grids
simulated = bool(config.ENABLE_CUDASIM)

if simulated:
    from numba.cuda.cudadrv.devicearray import FakeCUDAArray as NumbaArray
    from numba.cuda.simulator.kernel import _get_kernel_context

    class _Simulator:
        """Numba's cuda, and within a kernel what stands for it there: the simulator itself renames one module only."""

        def __getattr__(self, name, module=cuda):
            context = _get_kernel_context()
            return getattr(context if hasattr(context, name) else module, name)

    cuda = _Simulator()
    libdevice = SimpleNamespace(  # in NumPy, what is used of it
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
    from cuda.bindings import driver as bindings
    from cuda.core import LaunchConfig, Stream, launch
    from numba.cuda import dispatcher as _dispatcher
    from numba.cuda import libdevice as libdevice
    from numba.cuda.codegen import CUDACodeLibrary
    from numba.cuda.core.caching import NullCache
    from numba.cuda.core.sigutils import normalize_signature
    from numba.cuda.cudadrv.devicearray import DeviceNDArray as NumbaArray
    from numba.cuda.extending import intrinsic as intrinsic

    MAX_DYNAMIC_SHARED = bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

_process = None  # which process opened the driver


# ------------------------------------------------------------------------------------------- compiling
def device_function(function):
    """A function that kernels call; compiled into them."""
    return function if simulated else cuda.jit(function, device=True, forceinline=True)


def unrolled(count, function):
    """A device function that calls ``function(turn, *arguments)`` for each turn below ``count``, a power of two.

    The compiler leaves a loop over a long body as it is, for one GPU or another, and registers have no addresses; a
    function that calls another twice is inlined for all.
    """
    turns = 1
    while turns < count:
        function, turns = _twice(turns, function), 2 * turns
    if turns != count:
        raise ValueError(f"count is a power of two; got {count}")
    return function


def _twice(turns, half):
    @device_function
    def both(turn, *arguments):
        half(turn, *arguments)
        half(turn + turns, *arguments)

    return both


def kernel(*signature, threads, blocks=None):
    """Make a `Kernel` of a function, for arguments of these types.

    ``threads`` is the most that a block will have, ``blocks`` the fewest blocks that must fit a multiprocessor.

    Fast-math is off: NaN, infinity and subnormal numbers keep their meaning, division and roots are rounded correctly.
    The compiler may contract ``x * y + z``, here as everywhere on a GPU.
    """

    def make(function):
        if simulated:
            return Kernel(cuda.jit(function), signature)
        bounds = threads if blocks is None else (threads, blocks)
        # Everything is one module before it is linked, so the linker's optimiser (lto) has nothing left to do; and
        # without it the PTX that the tests read is what becomes machine code.
        dispatcher = cuda.jit(function, launch_bounds=bounds, lto=False)
        dispatcher._cache = _Files(dispatcher)
        return Kernel(dispatcher, signature)

    return make


class Kernel:
    """A kernel and the types of its arguments; ``kernel[grid, block, stream](*arguments)`` launches it.

    The first launch compiles it. Numba's own launch asks every argument for its type, which takes tens of microseconds,
    and longer where arrays lie in tuples. This one knows the types: it turns the arguments into numbers and calls the
    driver.

    Raises
    ------
    TypeError
        A launch has an array of another dtype than the kernel's.
    ValueError
        A launch has more arguments than the kernel, or fewer.
    """

    def __init__(self, dispatcher, signature):
        self.dispatcher, self.signature = dispatcher, signature
        self.adders = [_adder(kind) for kind in signature]
        self.code = None

    def __getitem__(self, configuration):
        return self.dispatcher[configuration] if simulated else partial(self._launch, *configuration)

    def compile(self):
        """The kernel for the GPU in use, as Numba has it."""
        return self.dispatcher.compile(self.signature)

    def load(self):
        """Compile it, and give the machine code to the driver."""
        if self.code is None:
            made = self.compile()
            self.cooperative, self.code = made.cooperative, made.library.get_cufunc().kernel

    def allow_shared(self, size):
        """Let its launches have up to so many bytes of dynamic shared memory."""
        self.load()
        _checked(
            bindings.cuKernelSetAttribute(MAX_DYNAMIC_SHARED, size, self.code.handle, cuda.get_current_device().id)
        )

    def _launch(self, grid, block, stream, *arguments):
        self.load()
        if not hasattr(_of_thread, "context"):
            _of_thread.context = cuda.current_context()  # Numba makes it the one of this thread
        words = []
        for add, argument in zip(self.adders, arguments, strict=True):
            add(words, argument)
        launch(_core_stream(stream), _launch_configuration(grid, block, self.cooperative), self.code, *words)


_of_thread = threading.local()  # context: that of the GPU, once a thread has launched


def _adder(kind):
    """A function ``(words, argument)`` that adds an argument of a type to the numbers that a compiled kernel takes."""
    if isinstance(kind, types.Array):
        return _array_adder(np.dtype(np.bool_ if kind.dtype == types.boolean else kind.dtype.name))
    if isinstance(kind, types.BaseTuple):
        return _tuple_adder([_adder(field) for field in kind])
    number = {types.int64: int, types.float64: float}[kind]
    return lambda words, argument: words.append(number(argument))


def _tuple_adder(adders):
    def add_tuple(words, argument):
        for add, field in zip(adders, argument, strict=True):
            add(words, field)

    return add_tuple


def _array_adder(dtype):
    """Of flat arrays. Their words stay with them: an array does not move."""

    def add_array(words, array):
        if array.dtype != dtype:
            raise TypeError(f"the kernel is compiled for arrays of {dtype}, got {array.dtype}")
        try:
            words.extend(array.words)
        except AttributeError:
            size, itemsize = array.size, dtype.itemsize
            array.words = 0, 0, size, itemsize, address(array), size, itemsize  # the last two: shape and stride
            words.extend(array.words)

    return add_array


@dataclass(frozen=True)
class Clusters:
    """A grid of ``count`` clusters of ``size`` blocks, each with ``shared`` bytes of dynamic shared memory."""

    count: int
    size: int
    shared: int


@lru_cache(maxsize=1024)
def _launch_configuration(grid, block, cooperative):
    if isinstance(grid, Clusters):
        return LaunchConfig(grid=grid.count, cluster=grid.size, block=block, shmem_size=grid.shared)
    return LaunchConfig(grid=grid, block=block, is_cooperative=cooperative)


def _core_stream(stream):
    """One of `stream`, or a graph that is being captured, as `launch` takes it."""
    return _core_streams.get(stream, stream)


def vector(dtype):
    """The type of a flat device array: what a kernel's signature names."""
    return types.Array(_type_of(dtype), 1, "C")


def _type_of(dtype):
    return getattr(types, "boolean" if np.dtype(dtype) == np.bool_ else np.dtype(dtype).name)


# ---------------------------------------------------------------------------------------------- cache
if not simulated:

    class _Files(NullCache):
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
            return _dispatcher._Kernel._rebuild(
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


# --------------------------------------------------------------------------------------------- device
def require():
    """Raise unless this process can use a GPU, with what to do about it."""
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


def stream():
    """The stream of all launches; it waits for the default stream of other libraries, and they for it."""
    return 0 if simulated else getattr(_of_thread, "stream", None) or _stream("launches")


@contextlib.contextmanager
def own_stream():
    """Within it the calling thread's `stream` is one of its own, which goes on beside those of other threads.

    It begins after all that was launched before, and has ended when this ends.
    """
    if simulated:
        yield
        return
    launched = mark(stream())
    with _making_streams:
        purpose = _free_streams.pop() if _free_streams else f"beside {len(_streams)}"
    own = _stream(purpose)
    follow(launched, own)
    _of_thread.stream = own
    try:
        yield
    finally:
        _of_thread.stream = None
        own.synchronize()
        _free_streams.append(purpose)


_free_streams = []  # names of those that no thread has


def copy_stream():
    """The stream of copies that are made beside the launches."""
    return 0 if simulated else _stream("copies")


_streams, _making_streams = {}, threading.Lock()
_core_streams = {}  # a stream of Numba's -> the same as cuda.core has it


def _stream(purpose):
    """One for all threads."""
    if purpose not in _streams:
        with _making_streams:
            if purpose not in _streams:
                made = cuda.stream()
                _core_streams[made] = Stream.from_handle(int(made))
                _streams[purpose] = made
    return _streams[purpose]


def capture(launches):
    """``launches(stream)`` as a CUDA graph: a function that replays it on the `stream`.

    Everything it launches must have been compiled, and the arrays must stay where they are. The simulator, which has no
    graphs, launches again.
    """
    if simulated:
        return lambda: launches(stream())
    from cuda.core import Device

    device = Device()
    device.set_current()
    builder = device.create_graph_builder()
    builder.begin_building()
    launches(builder)
    graph = builder.end_building().complete()
    return lambda: graph.launch(_core_stream(stream()))


def cooperative_blocks(kernel, threads) -> int:
    """How many blocks of a kernel are on the GPU at once, and so may wait for one another; in the simulator one."""
    return 1 if simulated else kernel.compile().max_cooperative_grid_blocks(threads)


def synchronize():
    """Wait until all launches have finished."""
    require()
    cuda.synchronize()


def elapsed(work) -> float:
    """Seconds from the start of what ``work()`` launches on the `stream` to its end, by events.

    Where launches come too slowly the GPU waits, and that counts. The simulator, which has no events, takes the time.
    """
    if simulated:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = cuda.event(), cuda.event()
    start.record(stream())
    work()
    end.record(stream())
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _checked(outcome):
    """Raise unless a call of the driver has succeeded."""
    status, *_ = outcome
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver refuses a call: {status.name}")


@cache
def compute_capability() -> tuple[int, int]:
    """Of the GPU; the simulator has none of those that are asked for."""
    return (0, 0) if simulated else tuple(cuda.get_current_device().compute_capability)


@cache
def most_shared() -> int:
    """Bytes of shared memory that a block may have if its kernel asks for them."""
    return cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


@cache
def multiprocessors() -> int:
    """Multiprocessors of the GPU; the simulator counts as one of two."""
    return 2 if simulated else cuda.get_current_device().MULTIPROCESSOR_COUNT


def describe() -> dict[str, str]:
    """The GPU in use, as short strings."""
    lines = {"numba-cuda": __version__}
    if simulated:
        return lines | {"GPU": "simulator"}
    require()
    directory = cache_directory()
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    free, total = cuda.current_context().get_memory_info()
    return lines | {
        "GPU": name,
        "compute capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": str(multiprocessors()),
        "memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        "kernel cache": str(directory) if directory else "off",
    }


# --------------------------------------------------------------------------------------------- memory
def free_memory():
    """Bytes that are free on the GPU; without end in the simulator."""
    require()
    return cuda.current_context().get_memory_info()[0]


def empty(shape, dtype):
    """An uninitialised device array; rows of C order, the first element on a cache line."""
    require()
    dtype = np.dtype(dtype)
    try:
        array = cuda.device_array(shape, dtype)
    except Exception as error:
        if not _out_of_memory(error):
            raise
        free, total = cuda.current_context().get_memory_info()
        raise MemoryError(
            f"no room on the GPU for an array of shape {shape} and dtype {dtype}: {_mib(shape, dtype)}, "
            f"{free / 2**20:.1f} of {total / 2**20:.1f} MiB free; use smaller batches, or free other arrays"
        ) from error
    array.__class__ = DeviceArray
    return array


def _out_of_memory(error):
    return "OUT_OF_MEMORY" in str(error).upper().replace(" ", "_")


def _mib(shape, dtype):
    return f"{int(np.prod(shape, dtype=np.int64)) * dtype.itemsize / 2**20:.1f} MiB"


def to_device(array, to=None):
    """A copy on the device; of a device array, the array itself."""
    require()
    if is_on_device(array) and to is None:
        return as_device_array(array)
    if to is None:
        to = empty(array.shape, array.dtype)
    if not is_on_device(array):
        array = np.ascontiguousarray(array)
    if array.size:
        to.copy_to_device(array, stream=stream())
    return to


def to_host(array, to=None):
    """A copy on the host, when all launches before have finished."""
    require()
    array = as_device_array(array)
    if array.size == 0:
        return np.empty(array.shape, array.dtype) if to is None else to
    if not array.is_c_contiguous():
        return np.lib.stride_tricks.as_strided(to_host(flat(array)), array.shape, array.strides).copy()
    result = array.copy_to_host(to, stream=stream())
    _wait()
    return result


def _wait():
    """Wait until all launches before have finished; copies beside them go on."""
    if not simulated:
        stream().synchronize()


def pinned(shape, dtype):
    """An uninitialised array of the host in page-locked memory, from which `send` copies while the host goes on."""
    require()
    dtype = np.dtype(dtype)
    try:
        return cuda.pinned_array(shape, dtype)
    except Exception as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(
            f"the host has no page-locked memory left for an array of shape {shape} and dtype {dtype}: "
            f"{_mib(shape, dtype)}; use smaller batches, or see what else on this machine locks memory"
        ) from error


def send(host, to):
    """Copy page-locked memory to the device, beside the launches; it must stay as it is until the copy has ended."""
    to.copy_to_device(host, stream=copy_stream())


def mark(of):
    """An event: what a stream has been given so far has ended. ``synchronize()`` of it waits for that on the host."""
    event = cuda.event() if simulated else cuda.event(timing=False)
    event.record(of)
    return event


def follow(event, on):
    """Let what a stream is given from here on wait for an event."""
    event.wait(on)


def flat(array):
    """One-dimensional memory from an array's first element to its last: what kernels take, with a `leading` dimension.

    Rows of a two-dimensional array may lie any distance apart; elements of a row must touch.
    """
    array = as_device_array(array)
    if array.ndim == 1 and array.strides[0] == array.dtype.itemsize:
        return array
    if array.size == 0:
        return empty(1, array.dtype)
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    itemsize = array.dtype.itemsize
    return window(array, 0, (last // itemsize + 1,), (itemsize,), array.dtype)


def window(array, start, shape, strides, dtype):
    """An array over the memory of another, ``start`` bytes after its first element."""
    if simulated:
        return NumbaArray(np.asarray(exchange.Memory(address(array) + start, shape, strides, dtype, array)))
    return NumbaArray(shape, strides, dtype, stream=array.stream, gpu_data=array.gpu_data.view(start))


def leading(array) -> int:
    """Elements from one row of an array to the next."""
    return array.strides[0] // array.dtype.itemsize


def address(array) -> int:
    """Where a device array begins."""
    return array.ctypes.data if simulated else array.device_ctypes_pointer.value


# ---------------------------------------------------------------------------------- other libraries
@cache
def device():
    """The device of all arrays as DLPack has it, (type, number); that of the simulator is the host."""
    return (exchange.CPU, 0) if simulated else (exchange.CUDA, cuda.get_current_device().id)


class DeviceArray(NumbaArray):
    """An array of Numba's, which other libraries can use where it is: what they then do comes after our launches."""

    @property
    def __cuda_array_interface__(self):
        return super().__cuda_array_interface__ | {"stream": int(stream())}

    def __dlpack_device__(self):
        return device()

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A capsule with this memory, as the array API standard has it.

        Parameters
        ----------
        stream : int, optional
            The consumer's stream, which is made to wait for our launches: 1 is the legacy default stream, as is None,
            2 the default stream of the thread, -1 waits for nothing, others are handles.
        max_version : (int, int), optional
            Of the capsule; without it the capsule has no version.
        dl_device : (int, int), optional
            Where the consumer wants the array: here, or on the host, which takes a copy.
        copy : bool, optional

        Raises
        ------
        BufferError
            What is asked for cannot be had.
        ValueError
            ``stream`` is none of these.
        """
        if dl_device not in (None, device()):
            if tuple(dl_device) != (exchange.CPU, 0) or copy is False:
                raise BufferError(
                    f"dl_device must be {device()}, where the array is, or with a copy (1, 0), the host; got "
                    f"{dl_device} and copy={copy}"
                )
            host = to_host(self)
            return exchange.given(_memory(host, host), (exchange.CPU, 0), max_version, True)
        _let_follow(stream)
        array = self
        if copy:
            if not self.is_c_contiguous():
                raise BufferError("copy must be None or False for an array that is not C-contiguous, got True")
            array = to_device(self, empty(self.shape, self.dtype))
            _wait()
        return exchange.given(_memory(array, array), device(), max_version, bool(copy))


def _let_follow(other):
    """Make a stream of another library, numbered as in DLPack, wait for the launches before."""
    if other is not None and (not isinstance(other, int) or other < -1 or other == 0):
        raise ValueError(
            f"stream must be None, -1, 1, 2 or the handle of a CUDA stream, got {other!r}; "
            f"0 may mean different streams and is not allowed"
        )
    if simulated or other == -1:
        return
    follow(mark(stream()), cuda.external_stream(1 if other is None else other))


def is_on_device(array) -> bool:
    """Whether kernels can read an array where it is."""
    return exchange.on_gpu(array)


def as_device_array(array):
    """A device array of Numba's, over the same memory; raises TypeError for an array of the host.

    Arrays of other libraries come through DLPack, which lets our stream wait for what writes them, or through
    ``__cuda_array_interface__``, where the host waits.
    """
    if hasattr(array, "__cuda_ndarray__"):
        return array
    name = type(array).__name__
    if exchange.offers_gpu_memory(array):
        kind, number = exchange.device_of(array)
        if kind == exchange.CUDA and number != _device_number():
            raise ValueError(
                f"expected an array on GPU {_device_number()}, where this process computes; got {name} on GPU "
                f"{number}; copy it there first"
            )
        try:
            lent = exchange.taken(array, int(stream()) or None)
        except BufferError as error:
            raise TypeError(f"{name} cannot be used where it is on the GPU: {error}") from error
        return _borrowed(lent)
    if hasattr(array, "__cuda_array_interface__"):
        lent = cuda.as_cuda_array(array)
        return _borrowed(lent)
    raise TypeError(
        f'expected an array on the GPU; got {name} in the memory of the host; use to_device(array), or model.to("cuda")'
    )


def _device_number():
    return 0 if simulated else device()[1]


def _memory(array, owner):
    """The memory of an array of the device, or of one of NumPy's that stands for it."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else address(array)
    return exchange.Memory(start, array.shape, array.strides, array.dtype, owner)


def _borrowed(lent):
    """A device array over memory of another library, which gets it back when the launches that read it have finished.

    Without that, a temporary array could be freed, and its memory used again, before a launch comes to it.
    """
    memory = _memory(lent, None)
    weakref.finalize(memory, _give_back, lent).atexit = False
    if simulated:
        return NumbaArray(np.asarray(memory))
    return cuda.from_cuda_array_interface(memory.__array_interface__, owner=memory)


def _give_back(lent):
    cuda.current_context()  # the collector may have come in any thread
    _wait()
