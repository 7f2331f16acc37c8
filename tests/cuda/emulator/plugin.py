"""``pytest -p tests.cuda.emulator.plugin``: Numba hands the driver PTX, which it takes as well as machine code."""

from cuda.core import ObjectCode
from numba import cuda  # noqa: F401 - before its parts
from numba.cuda.codegen import CUDACodeLibrary


def ptx_as_code(library, cc=None):
    """The PTX of a kernel; of one that comes from disk what was written there."""
    architecture = library._ensure_cc(cc)
    if architecture not in library._cubin_cache:
        text = library.get_lto_ptx(cc) if library._lto else library.get_asm_str(cc)
        library._cubin_cache[architecture] = ObjectCode.from_ptx(text.encode())
    return library._cubin_cache[architecture]


CUDACodeLibrary.get_cubin = ptx_as_code
