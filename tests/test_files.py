"""Model files: what they keep, that they are whole or absent, and that foreign ones are refused."""

import io
import json
import os
import pathlib
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import fastbp
from fastbp import files


@pytest.fixture
def trained(device):
    model = fastbp.Sequential(
        fastbp.Tanh(),
        fastbp.Linear(4, 20),
        fastbp.ReLU(),
        fastbp.Linear(20, 3, bias=False),
        dtype="float64",
        device=device,
        seed=0,
    )
    optimizer = fastbp.Adam(lr=0.01)
    model.fit(*data(), loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, epochs=2, verbose=False)
    return model, optimizer


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 4)), rng.integers(0, 3, 50)


def test_round_trip(device, trained, tmp_path):
    model, _ = trained
    model.metadata = {"mean": [0.5, 1.5], "classes": ["a", "b", "ç"]}
    model.eval()
    model.save(tmp_path / "model.npz")
    loaded = fastbp.load(tmp_path / "model.npz", device=device)
    x, _ = data()
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    assert repr(loaded) == repr(model)
    assert loaded.metadata == model.metadata
    assert loaded.dtype == model.dtype
    assert not loaded.training
    assert loaded.optimizer is None
    assert loaded.generator.random() == model.generator.random()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resumed_training_has_the_same_bits(device, tmp_path, dtype):
    def start():
        return fastbp.Sequential(
            fastbp.Linear(4, 20), fastbp.Tanh(), fastbp.Linear(20, 3), dtype=dtype, device=device, seed=0
        )

    arguments = {"loss": fastbp.CrossEntropyLoss(), "batch_size": 8, "verbose": False}
    whole = start()
    history = whole.fit(*data(), optimizer=fastbp.Adam(lr=0.01), epochs=20, **arguments)
    half, optimizer = start(), fastbp.Adam(lr=0.01)
    half.fit(*data(), optimizer=optimizer, epochs=10, **arguments)
    half.save(tmp_path / "half.npz", optimizer)
    resumed = fastbp.load(tmp_path / "half.npz", device=device)
    rest = resumed.fit(*data(), optimizer=resumed.optimizer, epochs=10, **arguments)
    np.testing.assert_array_equal(resumed.flat_parameters, whole.flat_parameters)
    assert rest.column("loss") == history.column("loss")[10:]
    assert resumed.optimizer.step_count == 140


def test_function_as_rate_has_to_be_given_again(device, trained, tmp_path):
    model, optimizer = trained
    optimizer.lr = lambda step: 0.01
    model.save(tmp_path / "model.npz", optimizer)
    loaded = fastbp.load(tmp_path / "model.npz", device=device)
    with pytest.raises(RuntimeError, match=r"set optimizer.lr again"):
        loaded.train_step(*data(), fastbp.CrossEntropyLoss(), loaded.optimizer)
    loaded.optimizer.lr = 0.01
    loaded.train_step(*data(), fastbp.CrossEntropyLoss(), loaded.optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: fastbp.SGD(lr=0.01, momentum=0.5, nesterov=True, clip_norm=1.0),
        lambda: fastbp.Momentum(lr=fastbp.CosineSchedule(0.01, 100), weight_decay=1e-3),
        lambda: fastbp.RMSProp(lr=fastbp.WarmupSchedule(fastbp.StepSchedule(0.01, 3), 4)),
        lambda: fastbp.AdamW(lr=fastbp.OneCycleSchedule(0.01, 100)),
        lambda: fastbp.Lion(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.1),
    ],
)
def test_optimizers_and_losses_come_back_whole(device, tmp_path, optimizer):
    arguments = {"loss": fastbp.CrossEntropyLoss(0.1, [1.0, 2.0, 3.0]), "batch_size": 8, "verbose": False}
    activations = fastbp.LeakyReLU(0.1), fastbp.GELU("tanh"), fastbp.Mish()
    layers = [layer for activation in activations for layer in (fastbp.Linear(4, 4), activation)]
    model, optimizer = fastbp.Sequential(*layers, fastbp.Linear(4, 3), device=device, seed=0), optimizer()
    model.fit(*data(), optimizer=optimizer, **arguments)
    model.save(tmp_path / "model.npz", optimizer)
    loaded = fastbp.load(tmp_path / "model.npz", device=device)
    assert repr(loaded) == repr(model)
    assert repr(loaded.optimizer) == repr(optimizer)
    assert repr(loaded._loss) == repr(arguments["loss"])
    loaded.fit(*data(), optimizer=loaded.optimizer, **arguments)
    model.fit(*data(), optimizer=optimizer, **arguments)
    np.testing.assert_array_equal(loaded.flat_parameters, model.flat_parameters)


def test_numpy_reads_the_arrays(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as archive:
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(archive[name], array)
        assert json.loads(archive["config.json"])["format"] == "fastbp model"


def test_same_model_same_file(trained, tmp_path):
    model, optimizer = trained
    for name in ("a.npz", "b.npz"):
        model.save(tmp_path / name, optimizer)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_initial_values_are_not_drawn_again(device, tmp_path):
    def once(rng, fan_in, fan_out):
        return np.ones((fan_in, fan_out))

    fastbp.Sequential(fastbp.Linear(2, 2, init=once), device=device).save(tmp_path / "model.npz")
    np.testing.assert_array_equal(fastbp.load(tmp_path / "model.npz", device=device)[0].weight, 1)


# -------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(trained, tmp_path, monkeypatch, broken):
    model, _ = trained
    path = tmp_path / "model.npz"
    model.save(path)
    before = path.read_bytes()
    model.flat_parameters = np.zeros(model.flat_parameters.size)

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.npz"]


def test_order_of_operations_makes_it_atomic(trained, tmp_path, monkeypatch):
    model, _ = trained
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (calls.append(name), real(*arguments)))
    model.save(tmp_path / "model.npz")
    assert calls == ["fsync", "replace", "fsync"]


def test_link_stays_a_link(device, trained, tmp_path):
    model, _ = trained
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "real" / "model.npz")
    model.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    fastbp.load(tmp_path / "real" / "model.npz", device=device)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, p: m.save(p / "model.bin"), ValueError, r'must end in "\.npz"'),
        (lambda m, p: m.save(p / "missing" / "model.npz"), FileNotFoundError, "missing"),
        (lambda m, p: m.save(p / "model.npz", optimizer="adam"), TypeError, "optimizer must be of type"),
        (lambda m, p: m.save(p / "model.npz", fastbp.SGD(other().parameters())), ValueError, "another model"),
        (lambda m, p: (setattr(m, "metadata", {"x": object()}), m.save(p / "m.npz")), TypeError, "model.metadata"),
        (lambda m, p: (setattr(m, "metadata", {"x": np.nan}), m.save(p / "m.npz")), TypeError, "model.metadata"),
        (lambda m, p: fastbp.load(p / "model.npz"), FileNotFoundError, "model.npz"),
        (lambda m, p: fastbp.load(p / "model.pt"), ValueError, r'must end in "\.npz"'),
        (lambda m, p: fastbp.load(p / "model.npz", device="tpu"), ValueError, "device must be one of"),
    ],
)
def test_bad_arguments(trained, tmp_path, call, error, match):
    with pytest.raises(error, match=match):
        call(trained[0], tmp_path)
    assert not list(tmp_path.iterdir())


def other():
    return fastbp.Sequential(fastbp.Linear(1, 1), device="reference")


# ---------------------------------------------------------------------------------- safetensors
def test_safetensors_keep_the_same(device, trained, tmp_path):
    model, optimizer = trained
    model.metadata = {"classes": ["a", "ç"]}
    for name in ("model.npz", "model.safetensors", "again.safetensors"):
        model.save(tmp_path / name, optimizer)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    first, second = (fastbp.load(tmp_path / f"model.{kind}", device=device) for kind in ("npz", "safetensors"))
    assert repr(first) == repr(second)
    assert first.metadata == second.metadata == model.metadata
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[name], array)
    for name, array in first.optimizer.state_dict().items():
        np.testing.assert_array_equal(second.optimizer.state_dict()[name], array)
    arrays = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(arrays["1.weight"], model[1].weight)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_files_keep_norms_and_residual_blocks(device, ending, tmp_path):
    """Square weights that are not symmetric, running statistics, and the names that `state_dict` has."""
    rng = np.random.default_rng(0)
    block = fastbp.Residual(fastbp.LayerNorm(4, eps=0.01), fastbp.Linear(4, 4, bias=False), fastbp.Mish())
    layers = fastbp.BatchNorm1d(4, momentum=0.5), fastbp.Linear(4, 4), block, fastbp.BatchNorm1d(4, affine=False)
    model = fastbp.Sequential(*layers, dtype="float64", device=device, seed=0)
    X, y = 3 + rng.normal(size=(40, 4)), rng.normal(size=(40, 4))
    model.fit(X, y, loss=fastbp.MSELoss(), optimizer=fastbp.Lion(), epochs=3, batch_size=8, verbose=False)
    path = tmp_path / f"model{ending}"
    model.save(path)
    other = fastbp.load(path, device=device)
    assert repr(other) == repr(model)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    read = safetensors.numpy.load_file(path) if ending == ".safetensors" else dict(np.load(path))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(read[name], array)
    assert (read["0.running_mean"] > 1).all()


def test_damaged_safetensors_are_refused(tmp_path):
    model = fastbp.Sequential(fastbp.Linear(3, 4), device="reference", seed=0)
    path = tmp_path / "x.safetensors"
    model.save(path)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1  # a bit of an array
    for damaged in (b"", b"{}", content[:-1], content[: len(content) // 2], bytes(changed)):
        path.write_bytes(damaged)
        refused(path)
    safetensors.numpy.save_file({"0.weight": np.ones((3, 4))}, path)
    refused(path)
    safetensors.numpy.save_file({"0.weight": np.ones((3, 4))}, path, metadata={"config": "5"})
    refused(path, "does not name the format")


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    model = fastbp.Sequential(fastbp.Linear(3, 4), device="reference")
    for call in (lambda: model.save(tmp_path / "x.safetensors"), lambda: fastbp.load(tmp_path / "x.safetensors")):
        with pytest.raises(ImportError, match=r"pip install \"fastbp\[safetensors\]\""):
            call()
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------- reading
def refused(path, match="is not a model file of fastbp"):
    with pytest.raises(ValueError, match=match):
        fastbp.load(path, device="reference")


@pytest.fixture
def content(tmp_path):
    model = fastbp.Sequential(fastbp.Linear(3, 4), fastbp.ReLU(), fastbp.Linear(4, 2), device="reference", seed=0)
    model.save(tmp_path / "good.npz", fastbp.Adam())
    return (tmp_path / "good.npz").read_bytes()


def test_foreign_files(tmp_path):
    path = tmp_path / "x.npz"
    for foreign in (b"", b"PK", b"not a zip archive at all" * 10, b"\x93NUMPY\x01\x00"):
        path.write_bytes(foreign)
        refused(path)
    np.savez(path, X=np.ones((3, 2)))
    refused(path)
    np.savez_compressed(path, X=np.ones((3, 2)))
    refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"format": "something else"}')
    refused(path, "does not name the format")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "[" * 100_000)
    refused(path)


def test_truncated_files(tmp_path, content):
    path = tmp_path / "x.npz"
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        refused(path)


def test_changed_bytes_are_noticed(tmp_path, content):
    path, rng = tmp_path / "x.npz", np.random.default_rng(0)
    good = fastbp.load(tmp_path / "good.npz", device="reference").flat_parameters
    for position in rng.integers(0, len(content), 400):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            model = fastbp.load(path, device="reference")
        except ValueError as error:
            assert "is not a model file of fastbp, or is damaged" in str(error)  # noqa: PT017
        else:  # a byte that means nothing, such as a date in the directory of the archive
            np.testing.assert_array_equal(model.flat_parameters, good)


def rewrite(content, path, change):
    """A file whose parts were changed and whose checksum is right: what an attacker would write."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
        arrays = {
            name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)))
            for name in archive.namelist()
            if name != "config.json"
        }
    config.pop("sha256")
    change(config, arrays)
    config["sha256"] = files._digest(config, arrays)
    with open(path, "wb") as file:
        files._write_archive(file, config, arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda c, a: c.update(version=99),
        lambda c, a: c.update(layers=[["Linear", {"in_features": 10**9, "out_features": 10**9}]]),
        lambda c, a: c["layers"].pop(),
        lambda c, a: c.update(layers=[["os.system", {}]]),
        lambda c, a: c.update(layers=5),
        lambda c, a: c["layers"][0][1].update(init="zeros", weight=3),
        lambda c, a: c.update(dtype="object"),
        lambda c, a: c.update(generator={"bit_generator": "MT19937"}),
        lambda c, a: c.update(loss=["Loss"]),
        lambda c, a: c.update(optimizer=["Adam", {"lr": -1}, 0]),
        lambda c, a: c.update(optimizer=["Adam", {}, -1]),
        lambda c, a: c.pop("layers"),
        lambda c, a: a.pop("0.weight"),
        lambda c, a: a.update({"0.weight": np.ones((4, 3))}),
        lambda c, a: a.update({"unknown": np.ones(3)}),
        lambda c, a: a.update({"optimizer.exp_avg": np.ones(3)}),
        lambda c, a: a.update({"0.bias": np.array(["x"] * 4)}),
    ],
)
def test_files_made_to_harm(tmp_path, content, change):
    rewrite(content, tmp_path / "x.npz", lambda config, arrays: None)
    fastbp.load(tmp_path / "x.npz", device="reference")
    rewrite(content, tmp_path / "x.npz", change)
    refused(tmp_path / "x.npz")


def test_no_pickle_is_read(tmp_path, content):
    class Harm:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "harmed",))

    harm = np.empty(4, object)
    harm[:] = [Harm()] * 4
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, harm, allow_pickle=True)
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(tmp_path / "x.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, buffer.getvalue() if name == "0.bias.npy" else good.read(name))
    refused(tmp_path / "x.npz")
    assert not (tmp_path / "harmed").exists()


def test_header_that_claims_too_much(tmp_path, content):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(tmp_path / "x.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, header.getvalue() if name == "0.bias.npy" else good.read(name))
    refused(tmp_path / "x.npz")


def test_decompression_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * (1 << 24))
    refused(tmp_path / "x.npz", "compressed entries")
