"""Benchmarks of fastbp for airspeed velocity; ../README.md says how to run and read them.

What is set here must be set before numba and a BLAS are loaded: a kernel cache for each environment and commit, so
that commits never share one and each is compiled once; and for the libraries beside us one thread, and the kernels
that OpenBLAS itself chooses for the processor (told to be a Haswell, it is half as fast where there is AVX-512).
"""

import os
import sys
from pathlib import Path

_environment = Path(os.environ.get("ASV_ENV_DIR") or Path(__file__).parents[1] / "env" / "existing")
_commit = os.environ.get("ASV_COMMIT", "working-tree")[:12]
os.environ.setdefault("FASTBP_CACHE_DIR", str(_environment / "fastbp-kernels" / _commit))

_settings = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    **dict.fromkeys(("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")),  # None: not set
}
# asv may load NumPy before us; then what OpenBLAS reads had to be right from the start.
TOO_LATE = [
    name
    for name, value in _settings.items()
    if name.startswith("OPENBLAS") and "numpy" in sys.modules and (os.environ.get(name) or None) != value
]
for _name, _value in _settings.items():
    os.environ.pop(_name, None)
    if _value is not None:
        os.environ[_name] = _value
