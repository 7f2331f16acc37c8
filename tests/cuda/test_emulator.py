"""What can be run of the CUDA backend without a GPU, as it would run on one: compiled kernels, real host code.

The driver is chosen when a process starts, so all of it runs in processes of its own.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from . import emulator

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="needs Linux and a C++ compiler")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory, pytestconfig):
    """That of a process with the emulated GPU; all of a run share its library and compiled kernels."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        folder = folder.parent
    return emulator.environment(folder / "emulator")


@pytest.fixture(scope="module")
def emulated(environment, pytestconfig):
    """Run pytest in a process with the emulated GPU."""

    def run(*arguments, **variables):
        plugins = ["-p", "tests.cuda.emulator.plugin", "-p", "no:cacheprovider"]
        long = ["--long"] * pytestconfig.getoption("long")
        command = [sys.executable, "-m", "pytest", "-q", *long, *plugins, *arguments]
        process = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-4000:]
        assert re.search(r"\d+ passed", process.stdout), process.stdout[-6000:]  # not all skipped

    return run


def test_faults_are_found(emulated):
    emulated("tests/cuda/emulator/faults.py")


def test_steps(emulated):
    emulated("tests/cuda/test_steps.py")


def test_clusters(emulated):
    emulated("tests/cuda/test_cluster.py")


def test_updates(emulated):
    emulated("tests/cuda/test_updates.py")


def test_counts(emulated):
    emulated("tests/cuda/test_counts.py")


def test_ahead(emulated):
    emulated("tests/cuda/test_ahead.py")


FIRST_STEP = """
import sys

import numpy as np

import fastbp

x, y = np.ones((16, 8), np.float32), np.arange(16) % 4
layers = fastbp.Linear(8, 16), fastbp.ReLU(), fastbp.Linear(16, 4)
model = fastbp.Sequential(*layers, device="cuda", seed=0)
print(model.train_step(x, y, fastbp.CrossEntropyLoss(), fastbp.Adam(lr=1e-3)), model.predict(x)[0].tolist())
print([name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite")])
"""


def test_a_first_step_from_disk_imports_no_compiler(environment):
    """Nor does a prediction: who finds all kernels on disk waits neither for Numba nor for LLVM."""

    def output(program):
        process = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    compiled, imported = output(f"import tests.cuda.emulator.plugin\n{FIRST_STEP}")
    assert "'numba.core'" in imported
    assert output(FIRST_STEP) == [compiled, "[]"]


def test_models(emulated):
    emulated("tests/cuda/test_front.py", "tests/cuda/test_exchange.py", "tests/cuda/test_pieces.py")


def test_last_layers(emulated):
    emulated("tests/cuda/test_last_layer.py")


def test_products(emulated):
    emulated("tests/cuda/test_gemm.py")


@pytest.mark.parametrize("chosen", ["full_tiles", "not full_tiles"], ids=["pipeline", "others"])
def test_products_of_stored_factors(emulated, chosen):
    emulated("-x", "tests/cuda/test_panels.py", "-k", chosen)


def test_networks_and_the_contract_by_warpgroups(emulated):
    chosen = "precision_is_that_of or (cuda and float32 and linear and (rounded or every_precision))"
    emulated("tests/cuda/test_front.py", "tests/contract/test_contract.py", "-k", chosen, FASTBP_CUDA="wgmma")


def test_networks_by_stored_factors(emulated):
    emulated("tests/cuda/test_factors.py")
