"""The last layer and its loss in one launch: to the bit as in two, and only where a block has whole rows.

On the emulated GPU, or on a GPU.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

import fastbp
from fastbp.kernels import cuda
from fastbp.kernels.cuda import driver, last_layer, network
from fastbp.kernels.cuda.operands import Linear

from .test_gemm import runs

pytestmark = pytest.mark.skipif(driver.simulated or not runs(), reason="needs a GPU")
ROWS, BATCH = 147, 70  # a batch of more than one block, not of whole ones, and one of less


def trained(outputs, loss, y, precision, dtype, monkeypatch, together):
    """Weights and losses, and how often the last layer and the loss were launched together."""
    launched, both = [], last_layer.forward_and_loss
    monkeypatch.setattr(last_layer, "forward_and_loss", lambda *run: launched.append(1) or both(*run))
    if not together:
        monkeypatch.setattr(last_layer, "suits", lambda *layer: False)
    X = np.random.default_rng(0).standard_normal((ROWS, 5)).astype(dtype)
    layers = fastbp.Linear(5, 9), fastbp.Tanh(), fastbp.Linear(9, outputs)
    model = fastbp.Sequential(*layers, device="cuda", dtype=dtype, precision=precision, seed=0)
    weights = np.linspace(0, 2, ROWS)
    options = {"optimizer": fastbp.SGD(lr=0.1), "batch_size": BATCH, "sample_weight": weights, "verbose": False}
    model.fit(X, y, loss=loss, epochs=2, **options)
    return model.flat_parameters.tobytes(), [epoch["loss"] for epoch in model.history], len(launched)


@pytest.mark.parametrize(
    ("outputs", "loss", "precision", "dtype"),
    [
        (
            2,
            fastbp.CrossEntropyLoss(),
            "ieee",
            "float32",
        ),  # a thread for each row: the block has more threads than rows
        (10, fastbp.CrossEntropyLoss(label_smoothing=0.1), "tf32", "float32"),
        (32, fastbp.CrossEntropyLoss(), "bf16x3", "float32"),
        (3, fastbp.HuberLoss(), "bf16", "float32"),
        (1, fastbp.MSELoss(), "ieee", "float64"),
        (17, fastbp.CrossEntropyLoss(), "ieee", "float64"),
    ],
)
def test_together_as_one_after_the_other(monkeypatch, outputs, loss, precision, dtype):
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    rng = np.random.default_rng(1)
    labels = isinstance(loss, fastbp.CrossEntropyLoss)
    y = rng.integers(0, outputs, ROWS) if labels else rng.standard_normal((ROWS, outputs)).astype(dtype)
    found = [trained(outputs, loss, y, precision, dtype, monkeypatch, together) for together in (True, False)]
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 0 == found[1][2]


def test_where_a_block_has_whole_rows(monkeypatch):
    """And the product would be made by such blocks, alone."""
    monkeypatch.setattr(last_layer, "multiprocessors", lambda: 132)
    float32 = np.dtype(np.float32)
    assert last_layer.suits(Linear("identity", 0.0, 128, 32, "ieee"), 1024, float32)
    assert not last_layer.suits(Linear("identity", 0.0, 128, 33, "ieee"), 1024, float32)
    assert not last_layer.suits(Linear("sigmoid", 0.0, 128, 32, "ieee"), 1024, float32)
    assert last_layer.suits(Linear("identity", 0.0, 128, 10, "tf32"), 1024, float32)
    assert not last_layer.suits(Linear("identity", 0.0, 128, 10, "tf32"), 1 << 16, float32)


@pytest.mark.parametrize(
    ("last", "asked"), [((fastbp.Linear(4, 3), fastbp.Sigmoid()), ""), ((fastbp.Linear(4, 3),), "panels")]
)
def test_others_are_launched_one_after_the_other(monkeypatch, last, asked):
    """An output that has an activation, and products that read stored factors."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    monkeypatch.setenv("FASTBP_CUDA", asked)
    monkeypatch.setattr(network.last_layer, "forward_and_loss", None)
    model = fastbp.Sequential(*last, device="cuda", precision="tf32", seed=0)
    x, y = np.ones((8, 4), np.float32), np.zeros((8, 3), np.float32)
    model.train_step(x, y, fastbp.MSELoss(), fastbp.SGD(lr=0.1))
