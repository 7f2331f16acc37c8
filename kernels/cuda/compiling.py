"""Kernels and device functions: how they are declared, compiled, and launched.

A kernel is declared with the types of its arguments, so it is compiled for these alone, and a launch asks for no type.
"""

import threading
from functools import lru_cache, partial

import numpy as np

from . import borrowing, disk_cache, streams
from .driver import cuda, simulated, types

if not simulated:
    from cuda.core import LaunchConfig, launch


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
        dispatcher._cache = disk_cache.Files(dispatcher)
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

    def _launch(self, grid, block, stream, *arguments):
        if self.code is None:
            made = self.compile()
            self.cooperative, self.code = made.cooperative, made.library.get_cufunc().kernel
        if not hasattr(_of_thread, "context"):
            _of_thread.context = cuda.current_context()  # Numba makes it the one of this thread
        words = []
        for add, argument in zip(self.adders, arguments, strict=True):
            add(words, argument)
        launch(streams.core_stream(stream), _launch_configuration(grid, block, self.cooperative), self.code, *words)


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
            # An array is passed as its parent, memory info, size, bytes of an element, address, shape and strides.
            array.words = 0, 0, size, itemsize, borrowing.address(array), size, itemsize
            words.extend(array.words)

    return add_array


@lru_cache(maxsize=1024)
def _launch_configuration(grid, block, cooperative):
    return LaunchConfig(grid=grid, block=block, is_cooperative=cooperative)


def vector(dtype):
    """The type of a flat device array: what a kernel's signature names."""
    return types.Array(_type_of(dtype), 1, "C")


def _type_of(dtype):
    return getattr(types, "boolean" if np.dtype(dtype) == np.bool_ else np.dtype(dtype).name)


def cooperative_blocks(kernel, threads) -> int:
    """How many blocks of a kernel are on the GPU at once, and so may wait for one another; in the simulator one."""
    return 1 if simulated else kernel.compile().max_cooperative_grid_blocks(threads)
