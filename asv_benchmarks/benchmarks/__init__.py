"""Benchmarks of fastbp for airspeed velocity; ../README.md says how to run and read them.

What is set here must be set before numba and a BLAS are loaded: a kernel cache for each environment and commit, so
that commits never share one and each is compiled once; and for the libraries beside us one thread, and the kernels
that OpenBLAS itself chooses for the processor (told to be a Haswell, it is half as fast where there is AVX-512).
"""

import os
from pathlib import Path

_environment = Path(os.environ.get("ASV_ENV_DIR") or Path(__file__).parents[1] / "env" / "existing")
_commit = os.environ.get("ASV_COMMIT", "working-tree")[:12]
os.environ.setdefault("FASTBP_CACHE_DIR", str(_environment / "fastbp-kernels" / _commit))

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_variable, "1")
for _variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_variable, None)
