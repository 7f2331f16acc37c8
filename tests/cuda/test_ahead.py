"""Kernels that other processes compile before they are launched.

test_emulator.py runs this on the emulated GPU, whose kernels are another driver's: its processes have its plugin.
"""

import gc
import pickle
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp.kernels import cuda
from fastbp.kernels.cuda import ahead, compiling, disk_cache

from .emulator.counts import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs the emulated GPU: test_emulator.py runs it there")
COMMAND = (
    sys.executable, "-c",
    "import tests.cuda.emulator.plugin; from fastbp.kernels.cuda import ahead; ahead.main()",
)  # fmt: skip


@pytest.fixture
def compiled_here(monkeypatch, tmp_path):
    """An empty cache of kernels none of which is loaded; the names of those that this process compiles from now on."""
    from fastbp.kernels.cuda import machine_code

    names, compile_one = [], machine_code.machine_code

    def noted(kernel):
        names.append(kernel.function.__qualname__.rpartition(".")[2])
        return compile_one(kernel)

    monkeypatch.setattr(machine_code, "machine_code", noted)
    monkeypatch.setenv("FASTBP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "COMMAND", COMMAND)
    monkeypatch.setattr(ahead, "available_cores", lambda: 3)
    disk_cache.cache_directory.cache_clear()
    loaded = {}
    for kernel in (one for one in gc.get_objects() if isinstance(one, compiling.Kernel)):
        loaded[kernel] = kernel.code, dict(kernel.launches)
        kernel.code = None
        kernel.launches.clear()
    yield names
    for kernel, (code, launches) in loaded.items():
        kernel.code = code
        kernel.launches.update(launches)
    disk_cache.cache_directory.cache_clear()


def model_and_data():
    layers = fastbp.Linear(5, 9), fastbp.ReLU(), fastbp.Linear(9, 3)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5), dtype=np.float32), rng.integers(0, 3, 12)
    return fastbp.Sequential(*layers, device="cuda", seed=0), x, y


def fit(model, x, y):
    options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "epochs": 1, "batch_size": 4}
    return model.fit(x, y, **options, verbose=False)["loss"]


@pytest.fixture
def by_graph(monkeypatch):
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)


@pytest.mark.long
def test_a_first_step_finds_its_products_compiled(compiled_here, by_graph):
    model, x, y = model_and_data()
    losses = fit(model, x, y)
    assert not [name for name in compiled_here if name.startswith(("gemm", "loss", "gather", "update"))]
    compiled_here.clear()
    model.predict(x)
    assert compiled_here == []
    assert np.isfinite(losses).all()


class Asked(Exception):
    """The shares that processes would have compiled."""


def test_a_first_prediction_asks_for_its_products(compiled_here, monkeypatch):
    def asked(shares):
        raise Asked(shares)

    monkeypatch.setattr(ahead, "_run", asked)
    model, x, _ = model_and_data()
    with pytest.raises(Asked) as error:
        model.predict(x)
    (shares,) = error.value.args
    assert len(shares) == 2
    made = [make for share in shares for _, *make in pickle.loads(bytes.fromhex(share))]
    assert [(make, arguments[0]) for make, arguments, _ in made] == [("gemm_kernel", "NN")] * 2


@pytest.mark.parametrize("executable", ["/usr/sbin/uwsgi", "C:/Program Files/Application/application.exe", "", None])
def test_a_program_that_has_python_in_it_is_not_started_again(compiled_here, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(ahead, "_run", lambda shares: pytest.fail("a process was started"))
    ahead.compile_all([one.function for one in cuda.catalogue.kernels([np.float32])][:5])


def test_what_processes_cannot_compile_is_compiled_where_it_is_launched(compiled_here, monkeypatch):
    monkeypatch.setattr(ahead, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    x, out = (cuda.to_device(np.ones((2, 3), np.float32)) for _ in range(2))
    ahead.compile_for(lambda stream: two_launches(x, out, stream))
    assert compiled_here == []
    two_launches(x, out, cuda.streams.stream())
    assert len(compiled_here) == 2


def two_launches(x, out, stream):
    for name in ("relu", "tanh"):
        cuda.elementwise.activation_forward(name, 2, 3, cuda._matrix(x), cuda._matrix(out), 0.0, stream)


def test_nothing_is_launched_while_a_step_is_gone_through(monkeypatch, by_graph):
    model, x, y = model_and_data()
    fit(model, x, y)
    listed, launched, note = [], [], compiling.Listing.note

    def noted(listing, kernel):
        listed.append(kernel)
        return note(listing, kernel)

    monkeypatch.setattr(compiling.Listing, "note", noted)
    monkeypatch.setattr(ahead, "compile_all", lambda kernels: launched.append(model.flat_parameters.copy()))
    before = model.flat_parameters.copy()
    for *_, workspace in model._training_workspaces.values():
        workspace.graphs.clear()
    fit(model, x, y)
    assert len(listed) > 8
    np.testing.assert_array_equal(launched[0], before)


def test_one_thread_compiles_and_others_find_it(compiled_here, monkeypatch):
    shares, run = [], ahead._run
    monkeypatch.setattr(ahead, "_run", lambda named: shares.append(named) or run(named))
    kernels = [one.function for one in cuda.catalogue.kernels([np.float32]) if one.name in ("softmax", "step_loss")]
    threads = [threading.Thread(target=ahead.compile_all, args=(kernels,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernels) == 2
    assert [len(named) for named in shares] == [2]
    for kernel in kernels:
        kernel.load()
    assert compiled_here == []
