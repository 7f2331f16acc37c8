"""Kernels and device functions: how they are declared, compiled and launched.

A kernel is declared with the types of its arguments and compiled for these alone, so a launch need not find out types.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from . import borrowing, disk_cache, driver, streams
from .driver import cuda, simulated, types

if not simulated:
    from .addresses import Vector
    from .driver import LaunchConfig, launch


def device_function(function):
    """Mark a function that kernels call; it is inlined into them."""
    return function if simulated else cuda.jit(function, device=True, forceinline=True)


def unrolled(count, function):
    """A device function that calls ``function(turn, *arguments)`` for each turn below ``count``, a power of two.

    The compiler does not unroll a loop with a long body for every GPU, and an array in registers can only be indexed by
    constants. A function that calls another one twice is inlined everywhere.
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


def kernel(*signature, threads, blocks=None, shared=0, whole=False):
    """A decorator that makes a `Kernel` of a function, for arguments of these types.

    ``threads`` is the most that a block will have, ``blocks`` how many blocks must fit a multiprocessor at least,
    ``shared`` the bytes of dynamic shared memory of a block. ``whole`` tells the assembler that it has the whole
    program, and so may let warps give registers to others.

    Fast-math is off: NaN, infinity and subnormal numbers keep their meaning, division and roots are rounded correctly.
    The compiler may contract ``x * y + z`` to a fused multiply-add, as is usual on a GPU.
    """

    def make(function):
        if simulated:
            return Kernel(cuda.jit(function), signature, shared)
        bounds = threads if blocks is None else (threads, blocks)
        # All code is in one module before it is linked, so optimising at link time (lto) would find nothing to do; but
        # without it the assembler is told that other modules may call this one, and ignores ``setmaxnreg``.
        dispatcher = cuda.jit(function, launch_bounds=bounds, lto=whole)
        dispatcher._cache = disk_cache.Files(dispatcher)
        return Kernel(dispatcher, signature, shared)

    return make


class Kernel:
    """A kernel and the types of its arguments; ``kernel[grid, block, stream](*arguments)`` launches it.

    The first launch compiles it. A launch by Numba looks at the type of every argument, which takes tens of
    microseconds, and more where arrays are in tuples. Here the types are known: a launch turns the arguments into
    numbers, an array into its address, and calls the driver.

    Raises
    ------
    TypeError
        A launch has an array of another dtype than the kernel's, more arguments than the kernel, or fewer.
    """

    def __init__(self, dispatcher, signature, shared):
        self.dispatcher, self.signature, self.shared = dispatcher, signature, shared
        self.words = None if simulated else _words_of(signature)
        self.code = None

    def __getitem__(self, configuration):
        return self.dispatcher[configuration] if simulated else partial(self._launch, *configuration)

    def compile(self):
        """Compile the kernel for the GPU in use, or load it from disk; returns what Numba makes of it."""
        return self.dispatcher.compile(self.signature)

    def load(self):
        """Compile it, and give the machine code to the driver."""
        if self.code is None:
            made = self.compile()
            self.cooperative, self.code = made.cooperative, made.library.get_cufunc().kernel
            if self.shared:
                self.allow_shared(self.shared)

    def allow_shared(self, size):
        """Let its launches have up to so many bytes of dynamic shared memory."""
        self.load()
        driver.allow_shared(self.code, size)

    def _launch(self, grid, block, stream, *arguments):
        self.load()
        if not hasattr(_of_thread, "context"):
            _of_thread.context = cuda.current_context()  # Numba makes it the one of this thread
        try:
            words = self.words(*arguments)
        except AttributeError:  # of an array that is new
            for kind, argument in zip(self.signature, arguments, strict=True):
                _keep_addresses(kind, argument)
            words = self.words(*arguments)
        configuration = _launch_configuration(grid, block, self.cooperative, self.shared)
        launch(streams.core_stream(stream), configuration, self.code, *words)


_of_thread = threading.local()  # context: that of the GPU, once a thread has launched a kernel


def _words_of(signature):
    """A function of the arguments of a launch: the numbers that the compiled kernel takes.

    It is written out for the signature, as a launch is to take a microsecond or two. An array keeps its address, for it
    does not move, as an attribute that names its dtype: so the attribute is missing where the dtype is another.
    """

    def terms(kind, argument):
        if isinstance(kind, types.Array):
            return [f"{argument}.{_kept_in(kind)}"]
        if isinstance(kind, types.BaseTuple):
            return [term for place, field in enumerate(kind) for term in terms(field, f"{argument}[{place}]")]
        return [f"{ {types.int64: 'int', types.float64: 'float'}[kind] }({argument})"]

    names = [f"argument_{place}" for place in range(len(signature))]
    words = [term for kind, name in zip(signature, names, strict=True) for term in terms(kind, name)]
    return eval(f"lambda {', '.join(names)}: ({', '.join(words)},)")


def _kept_in(kind):
    """The attribute of an array that has its address, if its dtype is that of an array type."""
    return f"address_of_{kind.dtype.name}"


def _keep_addresses(kind, argument):
    """Give the arrays in an argument the attributes that `_words_of` reads."""
    if isinstance(kind, types.Array):
        if _type_of(argument.dtype) != kind.dtype:
            raise TypeError(f"the kernel is compiled for arrays of {kind.dtype.name}, got {argument.dtype}")
        setattr(argument, _kept_in(kind), borrowing.address(argument) or 0)
    elif isinstance(kind, types.BaseTuple):
        for field, value in zip(kind, argument, strict=True):
            _keep_addresses(field, value)


@dataclass(frozen=True)
class Clusters:
    """A grid of ``count`` clusters of ``size`` blocks, each with ``shared`` bytes of dynamic shared memory."""

    count: int
    size: int
    shared: int


@lru_cache(maxsize=1024)
def _launch_configuration(grid, block, cooperative, shared):
    if isinstance(grid, Clusters):
        return LaunchConfig(grid=grid.count, cluster=grid.size, block=block, shmem_size=grid.shared)
    return LaunchConfig(grid=grid, block=block, is_cooperative=cooperative, shmem_size=shared)


def vector(dtype):
    """The type of a flat device array of a dtype, for the signature of a kernel."""
    return (types.Array if simulated else Vector)(_type_of(dtype), 1, "C")


def _type_of(dtype):
    return getattr(types, "boolean" if np.dtype(dtype) == np.bool_ else np.dtype(dtype).name)


def cooperative_blocks(kernel, threads) -> int:
    """How many blocks of a kernel fit the GPU at once, so that they may wait for one another; 1 in the simulator."""
    return 1 if simulated else kernel.compile().max_cooperative_grid_blocks(threads)
