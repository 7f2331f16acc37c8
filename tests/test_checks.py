"""The checks, and what is set for the whole process."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import fastbp
from fastbp import backend, checks, data


def test_import_costs_numpy_only():
    code = (
        "import sys, fastbp;"
        "print([m for m in ('numba', 'llvmlite', 'scipy', 'sklearn', 'fastbp.kernels.cpu') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_all_public_names_exist_and_are_documented():
    for name in fastbp.__all__:
        assert getattr(fastbp, name).__doc__


# --------------------------------------------------------------------------------- the finite check
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "g"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1, 777, 999])
def test_finite_names_the_first_bad_value(dtype, value, row, monkeypatch):
    monkeypatch.setattr(checks, "BLOCK_BYTES", 1000)
    x = np.zeros((1000, 3), dtype)
    checks.finite("X", x, np.float32)
    x[row, 1] = x[999, 2] = value
    with pytest.raises(ValueError, match=rf"X\[{row}, 1\] = "):
        checks.finite("X", x, np.float32)


def test_finite_of_what_the_dtype_cannot_hold():
    largest = float(np.finfo(np.float32).max)
    checks.finite("X", np.array([[largest, -largest]]), np.float32)
    checks.finite("X", np.array([[1e300]]), np.float64)
    for value in (1e39, -1e39):
        with pytest.raises(ValueError, match="which float32 cannot hold"):
            checks.finite("X", np.array([[value]]), np.float32)


def test_finite_accepts_what_has_nothing_to_check():
    for array in (np.zeros((0, 3)), np.zeros((3, 0)), np.ones((2, 2), bool), np.ones((2, 2), np.uint64)):
        checks.finite("X", array, np.float32)


def test_nothing_is_copied_whole():
    x = np.zeros((1 << 22, 2), np.float32)  # 32 MiB
    model = fastbp.Sequential(fastbp.Linear(2, 1), device="reference")
    y = np.zeros(1 << 22, np.float32)
    checks.matrix("X", x[:1], 2)  # imports what it looks at arrays with, a megabyte of modules
    for given in (x, np.asfortranarray(x)):
        tracemalloc.start()
        X, target = checks.matrix("X", given, 2), checks.targets("y", y, len(y), 1)
        checks.finite("X", X, model.dtype)
        checks.finite("y", target, model.dtype)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.shares_memory(X, given)
        assert np.shares_memory(target, y)
        assert peak < 1 << 20


# ------------------------------------------------------------------------------------- scalars
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: checks.integer("n", "3", 0), TypeError, "n must be an integer, got '3' of type str"),
        (lambda: checks.integer("n", True, 0), TypeError, "n must be an integer"),
        (lambda: checks.integer("n", -1, 0), ValueError, "n must be at least 0, got -1"),
        (lambda: checks.real("a", 1j), TypeError, "a must be a real number"),
        (lambda: checks.real("a", np.inf), ValueError, "a must be at least 0 and finite, got inf"),
        (lambda: checks.real("a", 1, below=1.0), ValueError, "at least 0 and below 1"),
        (lambda: checks.choice("c", "z", ("x", "y")), ValueError, "c must be one of 'x', 'y'; got 'z'"),
        (lambda: checks.choice("c", None, ("x", "y")), ValueError, "got None"),
        (lambda: checks.dtype("dtype", "int32"), ValueError, '"float32" or "float64", got \'int32\''),
        (lambda: checks.dtype("dtype", None), ValueError, "got None"),
        (lambda: checks.dtype("dtype", "nonsense"), ValueError, "got 'nonsense'"),
    ],
)
def test_scalars(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_accepted_scalars():
    assert checks.integer("n", np.int8(3), 0) == 3
    assert checks.real("a", np.float32(0.5)) == 0.5
    assert checks.boolean("b", np.True_) is True
    for dtype in ("float32", np.float32, np.dtype("f4")):
        assert checks.dtype("dtype", dtype) == np.float32


# ------------------------------------------------------------------------------------- process
@pytest.fixture
def threads():
    before = backend._threads
    yield
    backend._threads = before
    for module in backend._loaded.values():
        module.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_number_of_threads():
    for number in (1, 3, np.int64(2)):
        fastbp.set_num_threads(number)
        assert fastbp.get_num_threads() == number
        assert backend.load("cpu").get_num_threads() == number
    for bad, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error, match="threads must be"):
            fastbp.set_num_threads(bad)
        assert fastbp.get_num_threads() == 2


def test_threads_set_before_a_backend_is_loaded():
    code = (
        "import fastbp; fastbp.set_num_threads(5);"
        "from fastbp import backend; print(backend.load('cpu').get_num_threads())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "5\n"


def test_unknown_device_lists_those_there_are():
    for name in ("gpu", None, 3):
        with pytest.raises(ValueError, match="device must be one of 'cpu', 'cuda', 'reference'; got"):
            backend.load(name)


def test_show_config(device, capsys):
    config = fastbp.show_config(device)
    printed = capsys.readouterr().out
    assert config["device"] == device
    for key, value in config.items():
        assert isinstance(value, str)
        assert f"{key} " in printed
        assert value in printed


def test_warmup(device):
    assert fastbp.warmup("float32", device=device) >= 0
    assert fastbp.warmup(["float32"], device=device, activations=["relu"], losses=[], optimizers=["sgd"]) >= 0
    with pytest.raises(ValueError, match="activations must be one of 'identity'"):
        fastbp.warmup(device=device, activations=["maxout"])
    with pytest.raises(ValueError, match="float32"):
        fastbp.warmup("float16", device=device)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1 << 17, -1])
@pytest.mark.parametrize("largest", [False, True], ids=["sums are finite", "sums are infinite"])
def test_a_number_of_a_large_array_that_is_not_finite(dtype, bad, place, largest):
    model = fastbp.Sequential(fastbp.Linear(5, 1), dtype=dtype)
    x = np.full(((1 << 20) // 5 + 1, 5), np.finfo(dtype).max if largest else 1, dtype)
    assert data.are_finite(model, x)
    x.reshape(-1)[place] = bad
    assert not data.are_finite(model, x)
    with pytest.raises(ValueError, match="X must hold finite numbers"):
        model.fit(x, np.zeros(len(x)), loss=fastbp.MSELoss(), optimizer=fastbp.SGD(), verbose=False)


@pytest.mark.parametrize("dtype", [">i8", ">i2", "<i4", "i1", ">u4", "bool"])
def test_labels_of_any_order_of_bytes(dtype):
    labels = np.array([0, 1, 1], dtype)
    assert checks.are_labels(labels, 2)
    assert not checks.are_labels(labels, 1)
    assert checks.labels("y", labels, 3, 2).tolist() == [0, 1, 1]
    if "i" in dtype:
        assert not checks.are_labels(np.array([0, -1, 1], dtype), 2)
    assert not checks.are_labels(np.repeat(labels, checks.FEW), 1)  # by a reduction


def test_a_large_array_is_looked_at_in_parts(monkeypatch):
    model = fastbp.Sequential(fastbp.Linear(2, 1))
    x = np.zeros((1 << 18, 2), np.float32)
    monkeypatch.setattr(data, "LOOKED_AT_BYTES", 4 * 1001)
    assert data.are_finite(model, x)
    for place in (1000, 1001, -1):
        x.reshape(-1)[place] = np.nan
        assert not data.are_finite(model, x)
        x.reshape(-1)[place] = 0
