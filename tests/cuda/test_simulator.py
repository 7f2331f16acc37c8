"""What can be run of the CUDA backend without a GPU: its kernels in Numba's simulator, a thread of Python a thread.

The simulator is chosen when Numba is imported, so all of it runs in processes of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from . import emulator

ROOT = Path(__file__).parents[2]


def simulated(*arguments):
    """pytest in a process with the simulator; what the kernels overflow on purpose is no warning there."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "FASTBP_TEST_DEVICES": "cuda"}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    process = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]


def test_tiny_cases_of_the_contract(pytestconfig):
    """Without --long in float32 alone: in the simulator the dtype changes nothing but the arrays."""
    one_dtype = [] if pytestconfig.getoption("long") else ["-k", "not float64"]
    simulated("-m", "tiny", *one_dtype, "tests/contract/test_contract.py")


def test_launches_are_of_kernels_that_are_compiled_ahead():
    simulated("tests/cuda/test_front.py", "-k", "compiled_ahead")


@pytest.mark.skipif(emulator.compiler() is not None, reason="the emulated GPU runs them")
@pytest.mark.parametrize("name", ["gemm", "updates", "steps", "front", "exchange", "pieces"])
def test_what_a_gpu_runs_too(name):
    simulated(f"tests/cuda/test_{name}.py")
