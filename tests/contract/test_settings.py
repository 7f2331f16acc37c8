"""The quick cases of the cpu backend under the other instruction sets that Numba can be told to compile for."""

import concurrent.futures
import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from fastbp.kernels.cpu import blocking

ROOT = Path(__file__).parents[2]

# instruction set: the CPU that Numba is told, and the features; without those it takes the host's.
SETTINGS = {
    "AVX-512": ("x86-64-v4", ("avx512f", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma")),
    "AVX2": ("x86-64-v3", ("avx2", "fma")),
    "generic": ("generic", ()),
}


@pytest.mark.parametrize("instruction_set", SETTINGS)
def test_quick_cases(instruction_set, pytestconfig):
    name, features = SETTINGS[instruction_set]
    host = llvm.get_host_cpu_features()
    if platform.machine() != "x86_64" or not all(host.get(feature) for feature in features):
        pytest.skip(f"this machine has no {instruction_set}")
    if instruction_set == blocking.ISA.name:
        pytest.skip(f"test_contract.py runs with {instruction_set}")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features),
    }

    def run(*command):
        command = [sys.executable, *command]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)

    def of_dtype(dtype):
        selected = ["-m", "quick", "-k", f"cpu and {dtype}"]
        return run("-m", "pytest", "-q", "-p", "no:cacheprovider", *selected, *profile, str(table))

    config = run("-c", "from fastbp.kernels import cpu; print(cpu.config())")
    assert instruction_set in config.stdout, config.stdout + config.stderr
    table = Path(__file__).with_name("test_contract.py")
    profile = ["--long"] * pytestconfig.getoption("long")
    with concurrent.futures.ThreadPoolExecutor() as pool:  # each compiles kernels of its own: two cores halve it
        for cases in pool.map(of_dtype, ("float32", "float64")):
            assert cases.returncode == 0, cases.stdout[-5000:] + cases.stderr[-2000:]
