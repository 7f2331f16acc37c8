"""A GPU that is emulated: the driver's library, built from C++ here, under which the CUDA backend runs unchanged.

What it runs is what a GPU would be given: the PTX that Numba compiles, launched, captured in graphs and fed by the real
host code. Numba's simulator, a thread of Python a thread of the GPU, runs neither. Beside results it checks what
compute-sanitizer would on a GPU (execute.cpp), and a stream does nothing before somebody waits for it (driver.cpp).

It says nothing about time, machine code, or the order in which a GPU would run threads.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
NAME = "libcuda.so.1"  # as the driver's is called
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    FLAGS.append("-mfma")  # an instruction instead of a function


def compiler() -> str | None:
    """The C++ compiler, of the variable CXX or by its usual names; None if there is none, or no Linux."""
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None) if os.uname().sysname == "Linux" else None


def build(folder) -> Path:
    """Compile the library into a folder, where it is not there already; returns the library's folder.

    Of processes that do so at once one compiles, and the others wait for it.
    """
    sources = sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.hpp")])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    there = Path(folder) / digest
    there.mkdir(parents=True, exist_ok=True)
    with (there / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (there / NAME).exists():
            files = [str(source) for source in sources if source.suffix == ".cpp"]
            subprocess.run([compiler(), *FLAGS, *files, "-o", str(there / "new"), "-ldl"], check=True)
            (there / "new").rename(there / NAME)
    return there


def environment(folder) -> dict[str, str]:
    """What a process needs to find the emulated GPU; its kernels are kept beside it, apart from those of real ones."""
    library = build(folder)
    settings = {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(library), os.environ.get("LD_LIBRARY_PATH")))),
        "NUMBA_CUDA_DRIVER": str(library / NAME),
        "FASTBP_CACHE_DIR": str(library / "kernels"),
        "FASTBP_TEST_DEVICES": "cuda",
    }
    return {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"} | settings
