"""Kernels and device functions: how they are declared, compiled and launched.

A kernel is declared with the types of its arguments and compiled for these alone, so a launch need not find out types.
"""

from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import count

import numpy as np

from . import disk_cache, driver, later
from .driver import cuda, simulated
from .signatures import Flat, Tuple

if not simulated:
    from . import streams
    from .arrays import address_in
    from .driver import LaunchConfig, ObjectCode, launch  # noqa: F401 - what `launcher` writes has `launch`

LAUNCHES = 256  # of a kernel on streams, prepared and kept


def device_function(function):
    """Mark a function that kernels call; it is inlined into them."""
    return function if simulated else later.inlined(function)


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


def one_after_another(functions):
    """A device function that calls each of some, in their order, with its arguments."""
    *others, last = functions
    if not others:
        return last
    before = one_after_another(others)

    @device_function
    def all_of_them(*arguments):
        before(*arguments)
        last(*arguments)

    return all_of_them


def kernel(*signature, threads, blocks=None, shared=0, whole=False):
    """A decorator that makes a `Kernel` of a function, for arguments of these types.

    ``threads`` is the most that a block will have, ``blocks`` how many blocks must fit a multiprocessor at least,
    ``shared`` the bytes of dynamic shared memory of a block. ``whole`` tells the assembler that it has the whole
    program, and so may let warps give registers to others.

    Fast-math is off: NaN, infinity and subnormal numbers keep their meaning, division and roots are rounded correctly.
    The compiler may contract ``x * y + z`` to a fused multiply-add, as is usual on a GPU.
    """

    bounds = threads if blocks is None else (threads, blocks)
    return lambda function: Kernel(function, signature, bounds, shared, whole)


def made_once(make):
    """A decorator of functions that make a `Kernel`: one for its arguments, which it keeps as its ``recipe``."""

    @cache
    @wraps(make)
    def made(*arguments, **named):
        kernel = make(*arguments, **named)
        kernel.recipe = make.__module__, make.__name__, arguments, named
        return kernel

    return made


class Listing:
    """What stands in place of a stream where nothing is launched, but noted.

    Attributes
    ----------
    kernels : list of Kernel
        Those of the launches, in their order.
    """

    def __init__(self):
        self.kernels = []

    def note(self, kernel):
        """Note a launch; what is called with its arguments."""
        self.kernels.append(kernel)
        return lambda *arguments: None


class Kernel:
    """A kernel and the types of its arguments; ``kernel[grid, block, stream](*arguments)`` launches it.

    The first launch compiles it. A launch by Numba looks at the type of every argument, which takes tens of
    microseconds, and more where arrays are in tuples. Here the types are known: a launch turns the arguments into
    numbers, an array into its address, and calls the driver, on a stream of `streams`, which have made the context of
    the GPU that of the thread.

    Raises
    ------
    TypeError
        A launch has an array of another dtype than the kernel's, more arguments than the kernel, or fewer.
    """

    def __init__(self, function, signature, bounds, shared, whole):
        self.function, self.signature = function, signature
        # All code is in one module before it is linked, so optimising at link time would find nothing to do; but
        # without it the assembler is told that other modules may call this one, and ignores ``setmaxnreg``.
        self.bounds, self.shared, self.whole = bounds, shared, whole
        self.simulation = cuda.jit(function) if simulated else None
        self.recipe = None  # of `made_once`: a module, its function, and arguments for it
        self.code = None
        self.launches = {}  # (grid, block, stream) -> what launches then; at most LAUNCHES

    def __getitem__(self, configuration):
        launch = self.launches.get(configuration)
        return self._launch_on(*configuration) if launch is None else launch

    def _launch_on(self, grid, block, stream):
        if simulated:
            return self.simulation[grid, block, stream]
        if isinstance(stream, Listing):
            return stream.note(self)
        self.load()
        configuration = self._configuration(grid, block)
        launch = partial(self.launcher, stream.core, configuration, self.code)
        if isinstance(stream, streams.Stream):  # a graph is captured once
            if len(self.launches) >= LAUNCHES:
                self.launches.clear()
            self.launches[grid, block, stream] = launch
        return launch

    def _configuration(self, grid, block):
        if isinstance(grid, Clusters):
            return LaunchConfig(grid=grid.count, cluster=grid.size, block=block, shmem_size=grid.shared)
        return LaunchConfig(grid=grid, block=block, is_cooperative=self.cooperative, shmem_size=self.shared)

    def compile(self, again=False):
        """Its name in the machine code, whether its blocks may wait for one another, and the machine code.

        From disk, or, ``again`` in any case, by Numba and then to disk; for the GPU in use.
        """
        found = None if again else disk_cache.read(self)
        if found is None:
            from .machine_code import machine_code

            found = machine_code(self)
            disk_cache.write(self, *found)
        return found

    def load(self):
        """Compile it, and give the machine code to the driver."""
        if self.code is None:
            streams.stream()  # makes the context that of the thread
            made = self.compile()
            try:
                code = _given(made)
            except Exception:  # from a file, and for another GPU or driver: compiling is always right
                made = self.compile(again=True)
                code = _given(made)
            self.launcher, self.cooperative = launcher(self.signature), made[1]
            self.code = code  # last: then it is loaded, for other threads too
            if self.shared:
                self.allow_shared(self.shared)

    def allow_shared(self, size):
        """Let its launches have up to so many bytes of dynamic shared memory."""
        self.load()
        driver.allow_shared(self.code, size)

    def allow_clusters(self, clusters):
        """Let its launches have these `Clusters`: their shared memory, and more blocks than every GPU has room for."""
        self.allow_shared(clusters.shared)
        driver.allow_large_clusters(self.code)

    def clusters_at_once(self, clusters, threads):
        """How many such `Clusters` of blocks of so many threads the GPU has room for at once, by the driver."""
        self.allow_clusters(clusters)
        return driver.clusters_at_once(self.code, self._configuration(clusters, threads), streams.stream().core)


def _given(made):
    """A kernel that the driver has, from what `Kernel.compile` made."""
    name, _, code = made
    return ObjectCode.from_cubin(code, name=name).get_kernel(name)


def launcher(signature):
    """A function of a stream, a configuration, a kernel's code and the arguments of a launch: it launches.

    It is written out for the signature, as a launch is to take a microsecond or two. Named tuples are unpacked. An
    array has its address in an attribute that names its dtype, which an array of another dtype lacks. An integer must
    be one of Python, which the driver gets as 64 bits; a float may be any number.
    """
    names = map("x{}".format, count())

    def parts(kind):
        """A name for an argument, or names for what is in a tuple; and its words."""
        if isinstance(kind, Tuple):
            fields = [parts(field) for field in kind.fields]
            return f"({', '.join(name for name, _ in fields)},)", [word for _, words in fields for word in words]
        name = next(names)
        if isinstance(kind, Flat):
            return name, [f"{name}.{address_in(kind.dtype)}"]
        return name, [{"int64": "{}", "float64": "float({})"}[kind.name].format(name)]

    arguments = [(next(names), *parts(kind)) for kind in signature]
    lines = [
        f"def launcher(stream, configuration, code, {', '.join(argument for argument, _, _ in arguments)}):",
        *(f"{unpacked} = {argument}" for argument, unpacked, _ in arguments),
        f"launch(stream, configuration, code, {', '.join(word for *_, words in arguments for word in words)})",
    ]
    made = {}
    exec("\n    ".join(lines), globals(), made)
    return made["launcher"]


@dataclass(frozen=True)
class Clusters:
    """A grid of ``count`` clusters of ``size`` blocks, each with ``shared`` bytes of dynamic shared memory."""

    count: int
    size: int
    shared: int


def vector(dtype):
    """The type of a flat device array of a dtype, for the signature of a kernel."""
    return Flat(np.dtype(dtype))


def cooperative_blocks(kernel, threads) -> int:
    """How many blocks of a kernel fit the GPU at once, so that they may wait for one another; 1 in the simulator."""
    if simulated:
        return 1
    kernel.load()
    return kernel.code.occupancy.max_active_blocks_per_multiprocessor(threads, 0) * driver.multiprocessors()
