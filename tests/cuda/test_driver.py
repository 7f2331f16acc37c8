"""What a machine without the package, or without a GPU, says; and that the CPU imports nothing of CUDA."""

import sys

import pytest


def import_without_the_package():
    sys.modules["numba_cuda"] = None
    with pytest.raises(ImportError, match=r'numba-cuda.*pip install "fastbp\[cuda\]".*"fastbp\[cuda12\]"'):
        import fastbp.kernels.cuda  # noqa: F401


def test_without_the_package_the_error_says_what_to_install(fresh):
    fresh(import_without_the_package)


def use_without_a_driver():
    from fastbp.kernels import cuda

    if cuda.driver.cuda.is_available():
        return
    for use in (lambda: cuda.empty(3, "float32"), cuda.synchronize, cuda.config):
        with pytest.raises(RuntimeError, match=r'device "cuda" needs an NVIDIA GPU and its driver.*install the driver'):
            use()


def test_without_a_driver_the_error_says_what_to_do(fresh):
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')
    fresh(use_without_a_driver, NUMBA_ENABLE_CUDASIM=None, FASTBP_TEST_DEVICES=None)


def train_on_the_cpu():
    import numpy as np

    import fastbp

    model = fastbp.Sequential(fastbp.Linear(3, 2), seed=0)
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    model.fit(x, y, loss=fastbp.MSELoss(), optimizer=fastbp.SGD(lr=0.1), epochs=1, batch_size=2)
    assert not [name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda", "cuda"))]


def test_the_cpu_imports_nothing_of_cuda(fresh):
    fresh(train_on_the_cpu)
