"""``pytest -p tests.cuda.emulator.plugin``: Numba hands the driver PTX, which it takes as well as machine code.

Launches are listened to: an integer that is none of Python would reach the driver in another size.
"""

from cuda.core import ObjectCode
from numba import cuda  # noqa: F401 - before its parts
from numba.cuda.codegen import CUDACodeLibrary

from fastbp.kernels.cuda import ahead, compiling
from fastbp.kernels.cuda.operands import INT
from fastbp.kernels.cuda.signatures import Tuple


def ptx_as_code(library, cc=None):
    """The PTX of a kernel; of one that comes from disk what was written there."""
    architecture = library._ensure_cc(cc)
    if architecture not in library._cubin_cache:
        text = library.get_lto_ptx(cc) if library._lto else library.get_asm_str(cc)
        library._cubin_cache[architecture] = ObjectCode.from_ptx(text.encode())
    return library._cubin_cache[architecture]


def listened(signature, make=compiling.launcher):
    """A launcher that refuses what is no integer of Python where the kernel takes an integer."""
    launch = make(signature)

    def checked(stream, configuration, code, *arguments):
        check(signature, arguments)
        launch(stream, configuration, code, *arguments)

    return checked


def check(kinds, arguments):
    for kind, argument in zip(kinds, arguments, strict=False):  # how many there are the launcher knows
        if isinstance(kind, Tuple):
            check(kind.fields, argument)
        elif kind == INT:
            assert type(argument) is int, (kinds, arguments)


CUDACodeLibrary.get_cubin = ptx_as_code
compiling.launcher = listened
ahead.available_cores = lambda: 1  # a process more would take longer to start than the others of the suite compile
