"""How often a product of the GPU asks the banks of shared memory, from the kernel's own functions.

The functions that Numba compiles are run as plain Python, a thread after another, for a block of a product: which
element a thread accesses when does not depend on the numbers. What the 32 threads of a warp access together then is
one request of memory, and `passes` says in how many parts it is served.
"""

import inspect
import types as python
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from fastbp.kernels.cuda import driver, gemm, later, ptx, tensor_cores
from fastbp.kernels.cuda.blocking import WARP
from fastbp.kernels.cuda.operands import Finish, Matrix, Shape

BANKS, BANK_BYTES = 32, 4
PANELS = 2  # of a product that is traced, and one more: the difference is what a panel takes
FAR = 1 << 40  # elements between the matrices in global memory
WARPS = (0, -1)  # of a block, that are traced: what one does the others do elsewhere


class Access(NamedTuple):
    """What a thread asks for at once."""

    space: str  # "shared" or "global"
    way: str  # "load", "store", "copy"
    address: int  # in bytes
    size: int


# ----------------------------------------------------------------------------------------------- banks
def paired(addresses):
    """Whether all threads have the address of their neighbour, or all that of the one after it: 2 results a pass."""
    return any(all(a == addresses[i ^ step] for i, a in enumerate(addresses)) for step in (1, 2))


def groups(addresses, size):
    """The threads that are served together where no bank is asked for two of its words.

    4 bytes a thread: all. 16: 8 threads, or 16 that are paired (what comes back in a cycle is a register a thread, and
    two threads with the same address share it: https://forums.developer.nvidia.com/t/77228). 8: in between.
    """
    together = WARP * BANK_BYTES // max(size, BANK_BYTES)
    if size > BANK_BYTES and paired(addresses):
        together *= 2
    return [addresses[first : first + together] for first in range(0, WARP, together)]


def passes(addresses, size):
    """In how many parts the accesses of a warp are served: of each group as many as its most wanted bank has words."""
    total = 0
    for group in groups(addresses, size):
        words = {(a + byte) // BANK_BYTES for a in group for byte in range(0, size, BANK_BYTES)}
        total += max(Counter(word % BANKS for word in words).values())
    return total


def conflicts(addresses, size):
    """Parts beyond those that accesses of this size take where no two words meet in a bank."""
    return passes(addresses, size) - len(groups(addresses, size))


# ---------------------------------------------------------------------------------------------- traces
class Memory:
    """An array of which only the accesses count."""

    def __init__(self, space, itemsize, log, start=0):
        self.space, self.itemsize, self.log, self.start = space, itemsize, log, start

    def note(self, way, index, count):
        self.log.append(Access(self.space, way, (self.start + int(index)) * self.itemsize, count * self.itemsize))


def plain(thing, swaps, done):
    """A device function as a function of Python, with ``swaps`` (by identity) for what only a GPU has."""
    if id(thing) in swaps:
        return swaps[id(thing)]
    if isinstance(thing, driver.types.Number if driver.simulated else later.Type):
        return float if "float" in thing.name else int
    function = getattr(thing, "py_func", thing)
    if not isinstance(function, python.FunctionType) or not function.__module__.startswith("fastbp.kernels.cuda"):
        return thing
    if id(function) not in done:
        cells = [python.CellType() for _ in function.__closure__ or ()]
        used = inspect.getclosurevars(function).globals
        scope = {"__builtins__": __builtins__} | {name: plain(value, swaps, done) for name, value in used.items()}
        done[id(function)] = python.FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, tuple(cells)
        )
        for cell, of in zip(cells, function.__closure__ or (), strict=True):
            cell.cell_contents = plain(of.cell_contents, swaps, done)
    return done[id(function)]


def machine(log, thread, itemsize):
    """What stands for the GPU: by the identity of what it replaces."""
    place = SimpleNamespace(x=thread)
    stub = SimpleNamespace(
        threadIdx=place, blockIdx=SimpleNamespace(x=0, y=0, z=0), syncthreads=lambda: None,
        local=SimpleNamespace(array=lambda count, kind: [0] * count),
        shared=SimpleNamespace(array=lambda count, kind, alignment=None: Memory("shared", itemsize, log)),
    )  # fmt: skip
    swaps = {id(driver.cuda): stub, id(ptx.thread_again): lambda: place.x, id(ptx.commit_copies): lambda: None}
    for count in (1, 2, 4):
        load, store = ptx.vector_access(count)
        swaps[id(load)] = lambda registers, start, array, index, n=count: array.note("load", index, n)
        swaps[id(store)] = lambda array, index, registers, start, n=count: array.note("store", index, n)
    for count in (1, 4):
        copy = ptx.asynchronous_copy(count)
        swaps[id(copy)] = lambda shared, to, array, index, left, n=count: shared.note("copy", to, n)
    for ahead in range(8):
        swaps[id(ptx.wait_for_copies(ahead))] = lambda: None
    for precision in ptx.MMA:
        for apart in (1, 2, 4):
            swaps[id(ptx.matrix_multiply_add(precision, apart))] = lambda *arguments: None
    swaps |= {id(ptx.bf16_pair): lambda x, y: 0, id(tensor_cores.tf32_number): lambda x: 0}
    return swaps


def trace(trans, dtype, tile, precision="ieee", vectors=True, panels=PANELS, ld=4096):
    """The accesses of the threads of `WARPS`, for the first block of a product of so many whole panels of terms."""
    itemsize = np.dtype(dtype).itemsize
    kernel = gemm.gemm_kernel(trans, dtype, "none", precision, tile, vectors)
    shape = Shape(tile.bm, tile.bn, panels * tile.bk, panels * tile.bk, 0)
    first_of_warps = range(0, tile.threads, WARP)
    traces = []
    for thread in (first_of_warps[warp] + lane for warp in WARPS for lane in range(WARP)):
        log = []
        a, b, c = (Matrix(Memory("global", itemsize, log, i * FAR), 0, ld) for i in range(3))
        function = plain(kernel.function, machine(log, thread, itemsize), {})
        function(shape, a, b, c, Finish(0, c, 0, 0.0, c))
        traces.append(log)
    return traces


def requests(traces, space):
    """(way, size, the addresses of a warp's threads) of every access of a warp to a space."""
    for first in range(0, len(traces), WARP):
        logs = [[access for access in log if access.space == space] for log in traces[first : first + WARP]]
        for accesses in zip(*logs, strict=True):
            kinds = {(access.way, access.size) for access in accesses}
            assert len(kinds) == 1, kinds  # all threads of a warp do the same
            yield *kinds.pop(), [access.address for access in accesses]


class Count(NamedTuple):
    """Of accesses of warps to a space, in one way and of one size."""

    requests: int
    passes: int
    conflicts: int


def count(traces, space="shared"):
    """{(way, size): `Count`} of the warps that were traced."""
    totals = {}
    for way, size, addresses in requests(traces, space):
        total = totals.setdefault((way, size), np.zeros(3, int))
        total += 1, passes(addresses, size), conflicts(addresses, size)
    return {key: Count(*map(int, total)) for key, total in totals.items()}


def of_a_panel(*product, space="shared", **options):
    """`count` of what is done for one panel more."""
    less, more = (count(trace(*product, panels=panels, **options), space) for panels in (PANELS, PANELS + 1))
    return {key: Count(*np.subtract(more[key], less[key]).tolist()) for key in more}
