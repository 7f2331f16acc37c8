"""The machine code of a kernel, by Numba. Imported where a kernel has to be compiled: it was not found on disk.

Numba's dispatchers compile, but launch nothing and keep nothing.
"""

from numba import cuda, types
from numba.cuda import dispatcher

from .addresses import Vector
from .front_end import front_end
from .signatures import Flat, Tuple


def numba_type(kind):
    """What Numba has for the type of an argument in a signature."""
    if isinstance(kind, Flat):
        return Vector(numba_type(kind.dtype))
    if isinstance(kind, Tuple):
        return types.BaseTuple.from_types([numba_type(field) for field in kind.fields], kind.kind)
    return types.boolean if kind.kind == "b" else getattr(types, kind.name)


def compiled(kernel):
    """A kernel as Numba has it, with all its code; for the GPU in use."""
    options = cuda.jit(kernel.function, launch_bounds=kernel.bounds, lto=kernel.whole).targetoptions
    with front_end():
        return dispatcher._Kernel(kernel.function, tuple(map(numba_type, kernel.signature)), **options)


def machine_code(kernel):
    """Its name in the machine code, whether its blocks may wait for one another, and the machine code."""
    made = compiled(kernel)
    return made.entry_name, made.cooperative, made.library.get_cubin().code
