"""Networks whose products read stored factors: the bits of products that store their own.

On the emulated GPU, or on a GPU.
"""

import pickle

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

import fastbp
from fastbp.kernels.cuda import blocking, driver, network, panel_gemm, panels, streams, wgmma

from .test_gemm import runs

pytestmark = pytest.mark.skipif(driver.simulated or not runs(), reason="needs a GPU")


def chain():
    """Values and gradients that products make; the derivative of one activation reads z."""
    return [fastbp.Linear(20, 72), fastbp.GELU(), fastbp.Linear(72, 40), fastbp.ReLU(), fastbp.Linear(40, 5)]


def branches():
    """Values and gradients that other kernels make, some of them by several instructions."""
    inside = fastbp.Linear(24, 24), fastbp.Tanh()
    around = fastbp.LayerNorm(24), fastbp.Residual(*inside), fastbp.Dropout(0.2)
    return [fastbp.Linear(20, 24), fastbp.SiLU(), *around, fastbp.Linear(24, 24), fastbp.Linear(24, 5)]


def task():
    rng = np.random.default_rng(0)
    return rng.standard_normal((100, 20), dtype=np.float32), rng.integers(0, 5, 100)


def trained(make, precision, frozen=(), calls=2):
    """Weights and predictions after two calls of `fit`, between which a weight is changed by hand."""
    X, y = task()
    model = fastbp.Sequential(*make(), device="cuda", precision=precision, seed=0)
    for layer in frozen:
        model[layer].trainable = False
    options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(lr=1e-3), "verbose": False}
    for _ in range(calls):  # of batches of 40 rows, and one of 20
        model.fit(X, y, batch_size=40, epochs=2, **options)
        model[0].weight = 0.5 * model[0].weight
    return model.flat_parameters.tobytes(), model.predict(X).tobytes()


@pytest.mark.parametrize(
    ("make", "precision", "frozen", "asked"),
    [
        (chain, "bf16", (), "wgmma"),
        (branches, "tf32", (0,), "panels"),
        pytest.param(chain, "bf16x3", (2,), "panels", marks=pytest.mark.long),
        pytest.param(branches, "bf16", (), "wgmma", marks=pytest.mark.long),
    ],
)
def test_networks(monkeypatch, make, precision, frozen, asked):
    """To the bit as if every product stored its factors itself."""
    monkeypatch.setenv("FASTBP_CUDA", asked)
    found = trained(make, precision, frozen)
    monkeypatch.setattr(network._Workspace, "stored_factors", lambda workspace, capacity: None)
    monkeypatch.setattr(streams, "branch", lambda stream, name: stream)  # all products store theirs in one place
    assert trained(make, precision, frozen) == found


def test_kernels_that_are_asked_for_meanwhile(monkeypatch):
    """A network goes on with them as one that is new."""
    X, y = task()
    options = {"loss": fastbp.CrossEntropyLoss(), "batch_size": 40, "epochs": 2, "shuffle": False, "verbose": False}

    def found(new):
        model, predicted = fastbp.Sequential(*chain(), device="cuda", precision="bf16", seed=0), []
        for asked in ("panels", "", "wgmma", "wgmma,pairs"):
            monkeypatch.setenv("FASTBP_CUDA", asked)
            if new:
                model = pickle.loads(pickle.dumps(model))
            model.fit(X, y, optimizer=fastbp.SGD(lr=0.1), **options)
            predicted.append(model.predict(X).tobytes())
        return predicted

    assert found(new=False) == found(new=True)


def test_networks_by_pairs_of_blocks(monkeypatch):
    """To the bit as by blocks of their own, captured steps too."""
    if driver.compute_capability() != wgmma.CAPABILITY:
        pytest.skip("needs wgmma")
    monkeypatch.setenv("FASTBP_CUDA", "wgmma")
    found = trained(chain, "bf16")
    monkeypatch.setattr(panel_gemm, "tiles_of", lambda way: blocking.PANEL_TILES[:1])
    assert trained(chain, "bf16") == found


def test_what_is_stored_by_whom(monkeypatch):
    """By launches of their own the input and the gradient of the loss; weights once a call, then by their update."""
    monkeypatch.setenv("FASTBP_CUDA", "panels")
    launched, store, store_weights = [], panels.store, panels.store_weights
    monkeypatch.setattr(panels, "store", lambda *run: launched.append(run[1:3]) or store(*run))
    monkeypatch.setattr(panels, "store_weights", lambda *run: launched.append("weights") or store_weights(*run))
    X, y = task()
    model = fastbp.Sequential(*chain(), device="cuda", precision="bf16", seed=0)
    model.train_step(X, y, fastbp.CrossEntropyLoss(), fastbp.SGD(lr=1e-3))
    assert launched == 2 * ["weights", (100, 20), (100, 5)]  # the first time its launches are listed
    launched.clear()
    model.predict(X)
    assert launched == 2 * ["weights", (100, 20)]
