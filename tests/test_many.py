"""Independent networks side by side: the bits of ``fit`` one by one."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbp
from fastbp import backend


@pytest.fixture(params=[1, 3])
def threads(request, device):
    before = backend._threads
    fastbp.set_num_threads(request.param)
    yield request.param
    backend._threads = before
    for module in backend._loaded.values():
        module.set_num_threads(before)


def networks(device, count=5, **arguments):
    return [
        fastbp.Sequential(
            fastbp.Linear(4, 16), fastbp.Tanh(), fastbp.Linear(16, 3), device=device, **({"seed": seed} | arguments)
        )
        for seed in range(count)
    ]


def data(rows=90):
    x = np.random.default_rng(0).normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


ARGUMENTS = {"loss": fastbp.CrossEntropyLoss(class_weight=[1, 2, 3]), "epochs": 3, "batch_size": 8}


@pytest.mark.parametrize("by_rows", [False, True])
def test_bits_of_fit_one_by_one(device, threads, by_rows):
    x, y = data()
    weight = np.linspace(0, 1, 90)
    rows = [np.random.default_rng(i).permutation(90)[:50] for i in range(5)] if by_rows else None
    models, alone = networks(device), networks(device)
    arguments = ARGUMENTS | {"validation_data": data(20)}
    histories = fastbp.fit_many(
        models, x, y, optimizer=lambda: fastbp.Adam(lr=0.01), rows=rows, sample_weight=weight,
        callbacks=lambda: [fastbp.EarlyStopping()], **arguments,
    )  # fmt: skip
    for i, (model, history) in enumerate(zip(alone, histories, strict=True)):
        part = rows[i] if by_rows else np.arange(90)
        expected = model.fit(
            x[part], y[part], optimizer=fastbp.Adam(lr=0.01), sample_weight=weight[part],
            callbacks=[fastbp.EarlyStopping()], verbose=False, **arguments,
        )  # fmt: skip
        for key in ("loss", "val_loss", "accuracy", "val_accuracy", "lr"):
            assert history[key] == expected[key]
        np.testing.assert_array_equal(models[i].flat_parameters, model.flat_parameters)
        assert models[i].history is history


def test_networks_may_differ(device, threads):
    x, y = data()
    models, alone = (
        [
            *networks(device, 2, dtype="float64"),
            *networks(device, 1),
            fastbp.Sequential(fastbp.Linear(4, 3), seed=5, device=device),
        ]
        for _ in range(2)
    )
    optimizers = [fastbp.Adam(), fastbp.SGD(momentum=0.9), fastbp.RMSProp(), fastbp.SGD(clip_norm=0.1)]
    fastbp.fit_many(models, x, y, optimizer=optimizers, **ARGUMENTS)
    for model, expected, optimizer in zip(models, alone, optimizers, strict=True):
        expected.fit(x, y, optimizer=type(optimizer)(**optimizer.config()), verbose=False, **ARGUMENTS)
        np.testing.assert_array_equal(model.flat_parameters, expected.flat_parameters)


def test_error_of_one_comes_after_the_others_and_names_it(device, threads):
    x, y = data()
    models, alone = networks(device), networks(device)
    optimizers = [fastbp.Adam(lr=1e300 if i == 2 else 0.01) for i in range(5)]
    with pytest.raises(RuntimeError, match=r"models\[2\] failed: FloatingPointError: the loss was") as caught:
        fastbp.fit_many(models, x, y, optimizer=optimizers, **ARGUMENTS)
    assert isinstance(caught.value.__cause__, FloatingPointError)
    for i in (0, 1, 3, 4):
        alone[i].fit(x, y, optimizer=fastbp.Adam(lr=0.01), verbose=False, **ARGUMENTS)
        np.testing.assert_array_equal(models[i].flat_parameters, alone[i].flat_parameters)


def test_interrupt_stops_all(device, threads):
    x, y = data()
    models, optimizers = networks(device), [fastbp.Adam() for _ in range(5)]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fastbp.fit_many(models, x, y, optimizer=optimizers, **(ARGUMENTS | {"epochs": 10**6}))
    assert all(np.isfinite(model.flat_parameters).all() for model in models)
    models[0].fit(x, y, optimizer=optimizers[0], verbose=False, **ARGUMENTS)  # free again


def test_interrupt_while_threads_start_stops_all(device, threads, monkeypatch):
    submit = ThreadPoolExecutor.submit

    def interrupted(pool, run, i, training):
        future = submit(pool, run, i, training)
        if i == 1:
            signal.raise_signal(signal.SIGINT)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    models = networks(device)
    with pytest.raises(KeyboardInterrupt):
        fastbp.fit_many(models, *data(), optimizer=fastbp.Adam, **(ARGUMENTS | {"epochs": 10**6}))
    assert all(np.isfinite(model.flat_parameters).all() for model in models)
    models[0].fit(*data(), optimizer=fastbp.Adam(), verbose=False, **ARGUMENTS)  # free again


def test_verbose_prints_a_line_a_model(device, capsys):
    fastbp.fit_many(networks(device), *data(), optimizer=fastbp.Adam, verbose=True, **ARGUMENTS)
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.split()[0] for line in lines] == [f"models[{i}]" for i in range(5)]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda m: {"models": []}, ValueError, "at least one Sequential"),
        (lambda m: {"models": [m[0], m[0]]}, ValueError, r"models\[1\] twice"),
        (lambda m: {"models": [m[0], "x"]}, TypeError, r"models\[1\] must be of type Sequential"),
        (lambda m: {"optimizer": fastbp.Adam()}, TypeError, "function that makes one for each model"),
        (lambda m: {"optimizer": [fastbp.Adam()] * 2}, ValueError, "2 different objects"),
        (lambda m: {"optimizer": [fastbp.Adam(), "adam"]}, TypeError, "optimizer must be of type"),
        (lambda m: {"rows": [[0, 1]]}, ValueError, "rows must be 2 arrays"),
        (lambda m: {"rows": [[0, 1], [90]]}, ValueError, r"rows\[1\] must hold row numbers from 0 to 89"),
        (lambda m: {"rows": [[0, 1], [0.5]]}, ValueError, r"rows\[1\] must be a one-dimensional array of row numbers"),
        (lambda m: {"rows": [[0, 1], []]}, ValueError, r"rows\[1\] must be a one-dimensional"),
        (lambda m: {"callbacks": []}, TypeError, "callbacks must be a function"),
        (lambda m: {"epochs": 0}, ValueError, "epochs must be at least 1"),
        (lambda m: {"y": np.full(90, 3)}, ValueError, "labels from 0 to 2"),
    ],
)
def test_bad_arguments_change_nothing(device, change, error, match):
    models = networks(device, 2)
    before = [model.flat_parameters for model in models]
    x, y = data()
    arguments = {"models": models, "X": x, "y": y, "optimizer": fastbp.Adam} | ARGUMENTS | change(models)
    with pytest.raises(error, match=match):
        fastbp.fit_many(**arguments)
    for model, weights in zip(models, before, strict=True):
        np.testing.assert_array_equal(model.flat_parameters, weights)
        assert model.history is None
