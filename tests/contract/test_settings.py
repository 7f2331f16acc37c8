"""The quick cases of the cpu backend under the other instruction sets that Numba can be told to compile for."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

ROOT = Path(__file__).parents[2]

# instruction set: (what the host must have, what Numba is told)
SETTINGS = {
    "AVX-512": (("avx512f", "avx512vl", "avx512dq", "avx512bw"), {"NUMBA_CPU_NAME": "x86-64-v4"}),
    "AVX2": (("avx2", "fma"), {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}),
    "generic": ((), {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}),
}


@pytest.mark.parametrize("instruction_set", SETTINGS)
def test_quick_cases(instruction_set):
    features, variables = SETTINGS[instruction_set]
    host = llvm.get_host_cpu_features()
    if platform.machine() != "x86_64" or not all(host.get(feature) for feature in features):
        pytest.skip(f"this machine has no {instruction_set}")
    environment = {**os.environ, **variables}

    def run(*command):
        command = [sys.executable, *command]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)

    config = run("-c", "from fastbp.kernels import cpu; print(cpu.config())")
    assert instruction_set in config.stdout, config.stdout + config.stderr
    table = Path(__file__).with_name("test_contract.py")
    cases = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "quick", "-k", "cpu", str(table))
    assert cases.returncode == 0, cases.stdout[-5000:] + cases.stderr[-2000:]
