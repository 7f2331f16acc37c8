"""What users read where the device "cuda" cannot be used: each way to ask for it, and nothing changed by it."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

NO_PACKAGE = r'numba-cuda.*pip install "fastbp\[cuda\]" for CUDA 13, pip install "fastbp\[cuda12\]" for CUDA 12'
NO_DRIVER = r'device "cuda" needs an NVIDIA GPU and its driver.*nvidia-smi, or use device="cpu"'


def ask_for_it(error, message, path):
    import fastbp

    model = fastbp.Sequential(fastbp.Linear(3, 2), fastbp.Dropout(0.5), seed=0)
    model.save(path)
    before, optimizer = model.flat_parameters, fastbp.Adam(model.parameters(), lr=0.1)
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    for use in (
        lambda: fastbp.Sequential(fastbp.Linear(3, 2), device="cuda"),
        lambda: model.to("cuda"),
        lambda: fastbp.load(path, device="cuda"),
        lambda: fastbp.Linear(3, 2, device="cuda")(x),
        lambda: fastbp.ReLU(device="cuda")(x),
        lambda: fastbp.MSELoss(device="cuda")(x, x),
        lambda: fastbp.warmup("float32", device="cuda"),
        lambda: fastbp.show_config("cuda"),
    ):
        with pytest.raises(error, match=message):
            use()
    assert model.device == "cpu"
    assert (model.flat_parameters == before).all()
    model.fit(x, y, loss=fastbp.MSELoss(), optimizer=optimizer, verbose=False)
    assert optimizer.step_count == 1


def without_the_package(path):
    sys.modules["numba_cuda"] = None
    ask_for_it(ImportError, NO_PACKAGE, path)


def with_another_release(path, package, version):
    sys.modules.setdefault("numba_cuda", ModuleType("numba_cuda")).__version__ = "0.30.4"
    if package == "numba-cuda":
        sys.modules["numba_cuda"].__version__ = version
    else:
        np.__version__ = version
    message = rf'device "cuda" needs {package} .*0\.30.*, got {version}: pip install "fastbp\[cuda\]" for CUDA 13'
    ask_for_it(ImportError, message, path)


def without_a_driver(path):
    from fastbp.kernels import cuda

    if not cuda.driver.cuda.is_available():
        ask_for_it(RuntimeError, NO_DRIVER, path)


def test_without_the_package(fresh, tmp_path):
    fresh(without_the_package, str(tmp_path / "model.npz"))


@pytest.mark.parametrize(
    ("package", "version"), [("numba-cuda", "0.29.0"), ("numba-cuda", "0.31.1"), ("NumPy", "2.5.0")]
)
def test_another_release(fresh, tmp_path, package, version):
    fresh(with_another_release, str(tmp_path / "model.npz"), package, version)


def test_bounds_are_those_of_the_extras():
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for name, cuda in (("cuda", "cu13"), ("cuda12", "cu12")):
        assert extras[name] == [f"numba-cuda[{cuda}]>=0.30,<0.31", "numpy<2.5"]


def test_without_a_driver(fresh, tmp_path):
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')
    fresh(without_a_driver, str(tmp_path / "model.npz"), NUMBA_ENABLE_CUDASIM=None, FASTBP_TEST_DEVICES=None)
