"""What users read where the device "cuda" cannot be used: each way to ask for it, and nothing changed by it."""

import sys

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


def without_a_driver(path):
    from fastbp.kernels import cuda

    if not cuda.driver.cuda.is_available():
        ask_for_it(RuntimeError, NO_DRIVER, path)


def test_without_the_package(fresh, tmp_path):
    fresh(without_the_package, str(tmp_path / "model.npz"))


def test_without_a_driver(fresh, tmp_path):
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')
    fresh(without_a_driver, str(tmp_path / "model.npz"), NUMBA_ENABLE_CUDASIM=None, FASTBP_TEST_DEVICES=None)
