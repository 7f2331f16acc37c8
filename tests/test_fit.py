"""Training: what an epoch is, how it can be watched and stopped, and what it refuses."""

import os
import signal
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest

import fastbp
from fastbp import backend, slices, steps
from fastbp import data as training_data
from fastbp.kernels import reference


def make(device, dtype="float64", seed=0):
    return fastbp.Sequential(
        fastbp.Linear(4, 16), fastbp.ReLU(), fastbp.Linear(16, 3), dtype=dtype, device=device, seed=seed
    )


def data(rows=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def fit(model, x, y, *, loss=None, optimizer=None, **arguments):
    arguments = {"batch_size": 8, "epochs": 2, "verbose": False} | arguments
    return model.fit(x, y, loss=loss or fastbp.CrossEntropyLoss(), optimizer=optimizer or fastbp.Adam(), **arguments)


# ------------------------------------------------------------------------------------ an epoch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_is_its_steps(device, dtype):
    x, y = data()
    model, steps = make(device, dtype), make(device, dtype)
    history = fit(model, x, y, shuffle=False, epochs=1)
    optimizer, loss = fastbp.Adam(), fastbp.CrossEntropyLoss()
    values = [steps.train_step(x[i : i + 8], y[i : i + 8], loss, optimizer) for i in range(0, 50, 8)]
    np.testing.assert_array_equal(model.flat_parameters, steps.flat_parameters)
    sizes = np.array([8, 8, 8, 8, 8, 8, 2])
    assert history[0]["loss"] == pytest.approx((values * sizes).sum() / 50, rel=1e-14)


def test_fit_learns(device):
    x, y = data(300)
    model = make(device, "float32")
    history = fit(model, x, y, optimizer=fastbp.Adam(lr=0.01), epochs=20)
    assert history[-1]["accuracy"] > 0.95
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.95


def test_history(device):
    x, y = data()
    model = make(device)
    history = fit(
        model, x, y, validation_data=data(20, seed=1), optimizer=fastbp.Adam(lr=lambda step: 0.1 / (step + 1))
    )
    assert model.history is history
    assert isinstance(history, list)
    assert [list(record) for record in history] == [
        ["epoch", "loss", "val_loss", "accuracy", "val_accuracy", "lr", "seconds"]
    ] * 2
    assert history["epoch"] == [1, 2]
    assert history["lr"] == [0.1 / 7, 0.1 / 14]
    value, _ = fastbp.CrossEntropyLoss(device=device)(model.predict(data(20, seed=1)[0]), data(20, seed=1)[1])
    assert history[-1]["val_loss"] == pytest.approx(value, rel=1e-12)
    accuracy = (model.predict(data(20, seed=1)[0]).argmax(axis=1) == data(20, seed=1)[1]).mean()
    assert history[-1]["val_accuracy"] == accuracy


def test_what_does_not_apply_is_none(device):
    x, _ = data()
    record = fit(make(device), x, x[:, :3], loss=fastbp.MSELoss(), epochs=1)[0]
    assert record["accuracy"] is record["val_loss"] is record["val_accuracy"] is None


def test_training_accuracy_counts_rows(device):
    x, y = data()
    model = make(device)
    accuracy = (model.predict(x).argmax(axis=1) == y).mean()
    history = fit(model, x, y, optimizer=fastbp.SGD(lr=0), epochs=1)
    assert history[0]["accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_drop_last(device):
    x, y = data()
    model, other = make(device), make(device)
    fit(model, x, y, drop_last=True, shuffle=False)
    fit(other, x[:48], y[:48], shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    with pytest.raises(ValueError, match="drop_last=True leaves nothing to train on: batch_size is 51"):
        fit(model, x, y, drop_last=True, batch_size=51)


def test_large_batch_is_the_full_batch(device):
    x, y = data()
    model, other = make(device), make(device)
    fit(model, x, y, batch_size=10**9, shuffle=False)
    fit(other, x, y, batch_size=50, shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_seed_decides_everything(device):
    x, y = data()
    models = [make(device, seed=seed) for seed in (0, 0, 1)]
    histories = [fit(model, x, y) for model in models]
    np.testing.assert_array_equal(models[0].flat_parameters, models[1].flat_parameters)
    assert histories[0]["loss"] == histories[1]["loss"] != histories[2]["loss"]


def test_shuffle_is_a_new_permutation_every_epoch(device):
    seen = []

    def loss(prediction, target):
        seen.append(target[:, 0])
        return 0.0, np.zeros_like(prediction)

    fit(make(device), np.ones((50, 4)), np.arange(50), loss=lambda p, t: loss(p, t[:, None]))
    first, second = np.concatenate(seen[:7]), np.concatenate(seen[7:])
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    assert (first != np.arange(50)).any()


def test_state_of_the_optimizer_continues(device):
    x, y = data()
    once, twice = make(device), make(device)
    fit(once, x, y, epochs=4)
    optimizer = fastbp.Adam()
    fit(twice, x, y, optimizer=optimizer)
    fit(twice, x, y, optimizer=optimizer)
    np.testing.assert_array_equal(once.flat_parameters, twice.flat_parameters)
    assert optimizer.step_count == 28


def test_slices_do_not_show(device, monkeypatch):
    x, y = data()
    model, other = make(device), make(device)
    history = fit(model, x, y)
    monkeypatch.setattr(slices, "FIRST_STEPS", 1)
    monkeypatch.setattr(slices, "SLICE_GROWTH", 1)
    assert fit(other, x, y)["loss"] == history["loss"]
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_number_of_workers_does_not_show(device):
    x, y = data(200)
    results = []
    before = backend._threads
    try:
        for threads in (1, 2, 3, 7):
            fastbp.set_num_threads(threads)
            model = make(device, "float32")
            history = fit(model, x, y, batch_size=40, validation_data=(x, y))
            values = [history[key] for key in ("loss", "val_loss", "accuracy")]
            results.append((values, model.flat_parameters.tobytes(), model.predict(x).tobytes()))
    finally:
        backend._threads = before
        backend.load(device).set_num_threads(before)
    assert all(result == results[0] for result in results)


# ----------------------------------------------------------------------------------- the data
@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float32),
        lambda x: x.astype(np.int16),
        lambda x: x.astype(">f8"),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.repeat(x, 2, axis=0)[::2],
    ],
)
def test_every_layout_trains_alike(device, arrange):
    x, y = data()
    x = np.round(x)
    model, other = make(device, "float32"), make(device, "float32")
    fit(model, x, y)
    given = arrange(x)
    fit(other, given, y.astype(np.int8))
    np.testing.assert_array_equal(given, x)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_converted_slices_are_small(device, monkeypatch):
    x, _ = data()
    model, other = make(device), make(device)
    target = x[:, :3]
    fit(model, x, target.copy(), loss=fastbp.MSELoss())
    monkeypatch.setattr(steps, "STAGING_BYTES", 1)
    fit(other, x.astype(">f8"), target, loss=fastbp.MSELoss())
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_column_target_for_one_output(device):
    x, _ = data()
    models = [fastbp.Sequential(fastbp.Linear(4, 1), device=device, seed=0) for _ in range(2)]
    fit(models[0], x, x[:, 0], loss=fastbp.MSELoss())
    fit(models[1], x, x[:, :1], loss=fastbp.MSELoss())
    np.testing.assert_array_equal(models[0].flat_parameters, models[1].flat_parameters)


def test_memory_map(device, tmp_path):
    x, y = data(200)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model, other = make(device), make(device)
    fit(model, mapped, y, shuffle=False)
    fit(other, x, y, shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    fit(model, mapped, y)
    fit(other, x, y)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    fit(model, mapped, y, shuffle="blocks")
    fit(other, x, y, shuffle="blocks")
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_shuffled_by_blocks(monkeypatch):
    monkeypatch.setattr(training_data, "SHUFFLE_BLOCK", 8)
    rows = training_data.epoch_rows(reference, np.random.default_rng(0), range(30), "blocks")
    assert sorted(rows) == list(range(30))
    changes = np.count_nonzero(np.diff(rows // 8))
    assert changes == 3  # one block after the other
    assert (rows[:8] != np.sort(rows[:8])).any()


def test_weights_are_a_weighted_mean(device):
    x, y = data(16)
    weight = np.random.default_rng(3).uniform(0.5, 2, 16)
    model, own = make(device), make(device)
    history = fit(
        model, x, y, sample_weight=weight, epochs=1, batch_size=16, shuffle=False, optimizer=fastbp.SGD(lr=0.1)
    )
    value, grad = fastbp.CrossEntropyLoss(device=device)(own(x), y, weight)
    own.backward(grad)
    fastbp.SGD(own.parameters(), lr=0.1).step()
    np.testing.assert_allclose(model.flat_parameters, own.flat_parameters, rtol=1e-12, atol=1e-15)
    assert history[0]["loss"] == pytest.approx(value, rel=1e-12)


def test_loss_of_an_epoch_is_weighted(device):
    x, y = data()
    weight = np.random.default_rng(3).uniform(0.5, 2, 50)
    model = make(device)
    value, _ = fastbp.CrossEntropyLoss(device=device)(model.predict(x), y, weight)
    history = fit(model, x, y, sample_weight=weight, optimizer=fastbp.SGD(lr=0))
    assert history["loss"] == pytest.approx([value, value], rel=1e-12)


def test_rows_of_weight_0_are_left_out(device):
    x, y = data()
    weight = (np.arange(50) % 3 > 0).astype(float)
    model, other = make(device), make(device)
    fit(model, x, y, sample_weight=weight, shuffle=False)
    fit(other, x[weight > 0], y[weight > 0], shuffle=False)
    np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-11, atol=1e-14)


def test_loss_of_the_users(device):
    x, _ = data()
    target = x[:, :3].copy()

    def loss(prediction, y, weight=None):
        weight = np.ones(len(y)) if weight is None else weight
        error, weight = prediction - y, weight[:, None] / weight.sum()
        return float((weight * error**2).mean(axis=1).sum()), 2 / 3 * weight * error

    for weight in (None, np.linspace(1, 2, 50)):
        model, other = make(device), make(device)
        arguments = {"sample_weight": weight, "validation_data": (x, target)}
        first, second = (
            fit(model, x, target, loss=loss, **arguments),
            fit(other, x, target, loss=fastbp.MSELoss(), **arguments),
        )
        np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-10)
        np.testing.assert_allclose(first["val_loss"], second["val_loss"], rtol=1e-10)


def test_probabilities_as_targets(device):
    x, y = data()
    soft = np.eye(3)[y]
    model, other = make(device), make(device)
    history = fit(model, x, y, validation_data=(x, y))
    by_rows = fit(other, x, soft, validation_data=(x, soft))
    np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(history["val_loss"], by_rows["val_loss"], rtol=1e-12)
    assert by_rows["accuracy"] == by_rows["val_accuracy"] == [None, None]


@pytest.mark.parametrize("as_rows", [False, True])
def test_class_weights_are_row_weights(device, as_rows):
    x, y = data()
    weight = np.array([0.0, 2.0, 0.5])
    target = np.eye(3)[y] if as_rows else y
    model, other = make(device), make(device)
    loss = fastbp.CrossEntropyLoss(class_weight=weight, device=device)
    sample_weight = np.linspace(1, 2, 50)
    history = fit(model, x, target, loss=loss, sample_weight=sample_weight, validation_data=(x, target))
    fit(other, x, target, sample_weight=sample_weight * weight[y])
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    assert history[-1]["val_loss"] == pytest.approx(loss(model.predict(x), target)[0], rel=1e-12)


# ------------------------------------------------------------------------------- accumulated gradients
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("own_loss", [False, True])
def test_accumulated_batches_are_one_large_batch(device, weighted, own_loss):
    x, y = data()
    loss = fastbp.CrossEntropyLoss(device=device)
    arguments = {"loss": (lambda *given: loss(*given)) if own_loss else loss, "shuffle": False}
    arguments["sample_weight"] = np.linspace(0, 2, 50) if weighted else None
    model, other = make(device), make(device)
    small, large = fastbp.Adam(lr=0.01), fastbp.Adam(lr=0.01)
    history = fit(model, x, y, optimizer=small, batch_size=8, accumulate=3, **arguments)  # groups 3, 3, 1 of 50 rows
    expected = fit(other, x, y, optimizer=large, batch_size=24, **arguments)
    assert small.step_count == large.step_count == 6
    np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-9)


def test_stored_steps_are_the_compiled_steps(device):
    x, y = data()
    model, other = make(device, "float32"), make(device, "float32")
    history = fit(model, x, y, optimizer=fastbp.Adam(clip_norm=1e9), validation_data=(x, y))
    expected = fit(other, x, y, optimizer=fastbp.Adam(), validation_data=(x, y))
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    for key in ("val_loss", "accuracy", "val_accuracy"):
        assert history[key] == expected[key]
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_stored_steps_are_those_of_a_loop(device, own):
    """Rows without parameters come first and last, and the user's loss writes into what it is given."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 4)), rng.uniform(size=(8, 3))
    loss, results = fastbp.MSELoss(device=device), []

    def spoiling(prediction, target):
        result = loss(prediction, target)
        prediction[...] = np.nan
        return result

    for loop in (False, True):
        layers = fastbp.Tanh(), fastbp.Sigmoid(), fastbp.Linear(4, 6), fastbp.Linear(6, 3), fastbp.Sigmoid()
        model = fastbp.Sequential(*layers, dtype="float64", device=device, seed=0)
        optimizer = fastbp.SGD(model.parameters(), lr=0.1, clip_norm=0.02)
        for _ in range(3):
            if loop:
                value, gradient = loss(model(x), y)
                model.backward(gradient)
                optimizer.step()
            else:
                value = model.train_step(x, y, spoiling if own else loss, optimizer)
        results.append((value, model.flat_parameters))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", ["uint8", ">f4", "every other column"])
def test_stored_steps_take_data_of_any_kind(device, kind):
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 9, (20, 4)).astype("f4"), rng.integers(0, 9, (20, 3)).astype("f4")
    given = [np.repeat(a, 2, axis=1)[:, ::2] if kind == "every other column" else a.astype(kind) for a in (x, y)]
    results = []
    for pair in ((x, y), given):
        model = make(device, "float32")
        options = {"loss": fastbp.MSELoss(), "optimizer": fastbp.SGD(lr=1e-3), "accumulate": 2}
        results.append((fit(model, *pair, **options)["loss"], model.flat_parameters.tobytes()))
    assert results[0] == results[1]


def test_batch_left_out_of_a_group(device):
    x, y = data()
    x[16:24] *= 1e300  # the last batch of the first group; finite, but its outputs are not
    kept = np.r_[0:16, 24:50]
    model, other = make(device), make(device)
    for m in (model, other):
        m[2].weight = m[2].weight * 1e10
    fit(model, x, y, shuffle=False, on_nonfinite="continue", accumulate=3, epochs=1, optimizer=fastbp.SGD())
    optimizer, loss = fastbp.SGD(other.parameters()), fastbp.CrossEntropyLoss(device=device)
    for part in (kept[:16], kept[16:40], kept[40:]):
        other.backward(loss(other(x[part]), y[part])[1])
        optimizer.step()
    np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-9)


# ------------------------------------------------------------------------------ an order of one's own
@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
def test_orders_are_taken_as_they_are(device, clip_norm):
    """Rows that come several times or never, and another number of them every epoch."""
    x, y = data(30)
    orders = [np.arange(30)[::-1], np.array([4, 4, 7, 29, 0, 4, 8, 9, 10, 11]), np.arange(60) // 2]
    model, other, asked = make(device), make(device), []

    def order(epoch):
        asked.append(epoch)
        return orders[epoch - 1].tolist() if epoch == 2 else orders[epoch - 1]

    optimizer, same = (fastbp.Adam(clip_norm=clip_norm) for _ in range(2))
    fit(model, x, y, epochs=3, shuffle=order, optimizer=optimizer)
    for rows in orders:
        fit(other, x[rows], y[rows], epochs=1, shuffle=False, optimizer=same)
    assert asked == [1, 2, 3]
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    many = [make(device)]
    fastbp.fit_many(
        many, np.concatenate([x, x]), np.concatenate([y, y]), rows=[np.arange(30, 60)], epochs=3, batch_size=8,
        shuffle=order, loss=fastbp.CrossEntropyLoss(), optimizer=[fastbp.Adam(clip_norm=clip_norm)],
    )  # fmt: skip
    np.testing.assert_array_equal(many[0].flat_parameters, model.flat_parameters)


def test_rows_of_weight_0_in_an_order(device):
    """They take their places in batches; a batch of nothing else has no loss and no gradient."""
    x, y = data(30)
    weight = np.ones(30)
    weight[8:20] = 0
    models = [make(device) for _ in range(3)]
    histories = [
        fit(model, x, y, sample_weight=weight, shuffle=lambda epoch: np.arange(30), optimizer=fastbp.SGD(clip_norm=c))
        for model, c in zip(models, (None, 1e9), strict=False)
    ]
    optimizer, loss = fastbp.SGD(), fastbp.CrossEntropyLoss()
    for rows in (range(8), range(20, 24), range(24, 30)) * 2:  # of rows 16 … 23 half count
        models[2].train_step(x[rows], y[rows], loss, optimizer)
    np.testing.assert_allclose(models[0].flat_parameters, models[2].flat_parameters, rtol=1e-12)
    np.testing.assert_allclose(models[1].flat_parameters, models[2].flat_parameters, rtol=1e-12)
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-12)
    assert histories[0]["accuracy"] == histories[1]["accuracy"]


@pytest.mark.parametrize("weightless_first", [True, False])
def test_a_batch_of_weight_0_in_a_group(device, weightless_first):
    x, y = data(16)
    weight, first = np.ones(16), slice(0, 8) if weightless_first else slice(8, 16)
    weight[first] = 0
    model, other = make(device), make(device)
    fit(model, x, y, sample_weight=weight, shuffle=lambda epoch: np.arange(16), epochs=1, accumulate=2)
    fit(other, x[weight > 0], y[weight > 0], epochs=1, shuffle=False)
    np.testing.assert_allclose(model.flat_parameters, other.flat_parameters, rtol=1e-12)


@pytest.mark.parametrize(
    ("order", "error", "match"),
    [
        ([0, 50], ValueError, r"shuffle\(1\) must hold row numbers from 0 to 49, got 0 to 50"),
        ([-1, 3], ValueError, r"shuffle\(1\) must hold row numbers from 0 to 49, got -1 to 3"),
        ([], ValueError, r"shuffle\(1\) must be a one-dimensional array of row numbers"),
        ([[0, 1]], ValueError, r"shuffle\(1\) must be a one-dimensional"),
        ([0.0, 1.0], ValueError, r"shuffle\(1\) must be .* got dtype float64"),
        (np.ones(50, bool), ValueError, "of a mask take numpy.flatnonzero"),
        (None, TypeError, r"shuffle\(1\) must hold real numbers"),
    ],
)
def test_bad_orders(device, order, error, match):
    x, y = data()
    model, optimizer = make(device), fastbp.Adam()
    before = model.flat_parameters
    with pytest.raises(error, match=match):
        fit(model, x, y, shuffle=lambda epoch: order, optimizer=optimizer)
    assert optimizer.step_count == 0
    np.testing.assert_array_equal(model.flat_parameters, before)
    with pytest.raises(error, match=match):
        fastbp.batches(x, y, 8, shuffle=lambda epoch: order)
    with pytest.raises(TypeError, match="or a function epoch -> rows"):
        fit(model, x, y, shuffle=np.random.Generator)


def test_batches_in_an_order_of_ones_own():
    x, y = data(9)
    parts = fastbp.batches(x, y, 2, shuffle=lambda epoch: [8, 0, 8], drop_last=False)
    assert [part.tolist() for _, part in parts] == [y[[8, 0]].tolist(), y[[8]].tolist()]


# --------------------------------------------------------------------------------------- chunks
def chunks(rows=50, size=20, weight=None):
    x, y = data(rows)
    parts = (slice(start, start + size) for start in range(0, rows, size))
    return [(x[part], y[part]) if weight is None else (x[part], y[part], weight[part]) for part in parts]


@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_train_as_their_rows(device, weighted):
    weight = np.linspace(1, 2, 60) if weighted else None
    given, arguments = chunks(60, 20, weight), {"batch_size": 10, "shuffle": False}
    model = make(device)
    expected = fit(model, *data(60), sample_weight=weight, **arguments)
    for X in (given, lambda: iter(given), tuple(given)):
        other = make(device)
        history = fit(other, X, None, **arguments)
        np.testing.assert_array_equal(other.flat_parameters, model.flat_parameters)
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-12)
        assert history["accuracy"] == expected["accuracy"]
    fit(other, iter(given), None, epochs=1, **arguments)


def test_chunks_are_shuffled_within(device):
    seen = []

    def loss(prediction, target):
        seen.extend(target)
        return 0.0, np.zeros_like(prediction)

    fit(make(device), [(np.ones((20, 4)), np.arange(20)), (np.ones((5, 4)), np.arange(20, 25))], None, loss=loss)
    first, second = seen[:25], seen[25:]
    for epoch in (first, second):
        assert sorted(epoch[:20]) == list(range(20))
        assert sorted(epoch[20:]) == list(range(20, 25))
    assert first != second
    assert first[:20] != list(range(20))


def test_short_batches_of_chunks_can_be_dropped(device):
    model, optimizer = make(device), fastbp.Adam()
    fit(model, [*chunks(50, 20), *chunks(5, 5)], None, batch_size=8, drop_last=True, epochs=1, optimizer=optimizer)
    assert optimizer.step_count == 2 + 2 + 1
    with pytest.raises(ValueError, match="no chunk has batch_size=100 rows"):
        fit(model, chunks(), None, batch_size=100, drop_last=True)


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (lambda: iter(chunks()), ValueError, "X is an iterator, which gives its chunks once, and epochs is 2"),
        (lambda: np.ones((5, 4)), TypeError, "an array X needs its y"),
        (lambda: 5, TypeError, "X must be an iterable of chunks"),
        (list, ValueError, "at least one chunk"),
        (lambda: [5], TypeError, r"X must give chunks \(X, y\).*int as chunks\[0\]"),
        (lambda: lambda: 5, TypeError, "what the function X returns must be an iterable"),
    ],
)
def test_bad_chunks(device, X, error, match):
    model = make(device)
    before = model.flat_parameters
    with pytest.raises(error, match=match):
        fit(model, X(), None)
    np.testing.assert_array_equal(model.flat_parameters, before)


def test_chunks_are_checked_before_they_are_used(device):
    good, bad = chunks()[:2]
    model, optimizer, expected = make(device), fastbp.Adam(), make(device)
    bad[0][3, 2] = np.nan
    with pytest.raises(ValueError, match=r"chunks\[1\]\[0\]\[3, 2\] = nan"):
        fit(model, [good, bad], None, optimizer=optimizer, shuffle=False)
    fit(expected, *good, epochs=1, shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, expected.flat_parameters)
    assert optimizer.step_count == 3
    with pytest.raises(ValueError, match=r"pass chunks \(X, y, sample_weight\)"):
        fit(model, chunks(), None, sample_weight=np.ones(50))


# ----------------------------------------------------------------------- watching and stopping
def test_callbacks_of_batches(device):
    x, y = data()
    seen = []

    class Watch:
        def on_batch_end(self, model, record):
            seen.append((record, model.flat_parameters))

    model, other = make(device), make(device)
    history = fit(model, x, y, callbacks=[Watch()])
    expected = fit(other, x, y)
    assert [(record["epoch"], record["batch"]) for record, _ in seen] == [(e, b) for e in (1, 2) for b in range(1, 8)]
    sizes = np.array([8] * 6 + [2])
    losses = np.array([record["loss"] for record, _ in seen[:7]])
    assert (losses * sizes).sum() / 50 == pytest.approx(history[0]["loss"], rel=1e-12)
    assert history["loss"] == expected["loss"]
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    np.testing.assert_array_equal(seen[-1][1], model.flat_parameters)
    assert len({weights.tobytes() for _, weights in seen}) == 14


class Recorder:
    def __init__(self):
        self.calls = []

    def on_fit_begin(self, model, run):
        self.calls.append(("begin", run))

    def on_epoch_end(self, model, record):
        self.calls.append(("epoch", record["epoch"]))
        return record["epoch"] == 2

    def on_fit_end(self, model, history):
        self.calls.append(("end", len(history)))


def test_weights_of_validation_data(device):
    x, y = data()
    weight = np.arange(50.0) % 4
    twice = np.repeat(np.arange(50), weight.astype(int))  # a row of weight 3 is three rows
    expected = fit(make(device), x, y, epochs=2, validation_data=(x[twice], y[twice]))
    history = fit(make(device), x, y, epochs=2, validation_data=(x, y, weight))
    assert history["loss"] == expected["loss"]
    assert history["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-12)
    unweighted = fit(make(device), x, y, epochs=2, validation_data=(x, y))
    assert history["val_accuracy"] == unweighted["val_accuracy"]


def test_weights_of_validation_data_reach_a_users_loss():
    def loss(prediction, target, weight=None):
        weight = np.ones(len(target)) if weight is None else weight
        share = (weight / weight.sum())[:, None].astype(prediction.dtype)
        error = prediction - target
        return float((share * error * error).sum()), 2 * share * error

    model, (x, _) = make("reference"), data()
    target, weight = np.zeros((50, model.out_features)), np.arange(50.0)
    history = fit(model, x, target, loss=loss, epochs=1, validation_data=(x, target, weight))
    assert history[0]["val_loss"] == pytest.approx(loss(model.predict(x), target, weight)[0], rel=1e-12)


def test_a_history_shows_its_columns_and_at_most_ten_lines(device):
    history = fit(make(device), *data(), epochs=12)
    assert history["loss"] == [record["loss"] for record in history]
    assert history[0]["epoch"] == 1
    assert [record["epoch"] for record in history[-2:]] == [11, 12]
    lines = repr(history).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("epoch  1/12  loss ")
    assert lines[4] == "…"
    assert lines[-1].startswith("epoch 12/12  loss ")
    history = fit(make(device), *data(), epochs=10)
    assert "…" not in repr(history)
    assert len(repr(history).splitlines()) == 10


def test_callbacks(device):
    recorder, optimizer = Recorder(), fastbp.Adam()
    history = fit(make(device), *data(), optimizer=optimizer, epochs=5, callbacks=[recorder], validation_data=data(20))
    assert len(history) == 2
    run = {"epochs": 5, "batch_size": 8, "steps": 7, "rows": 50, "verbose": False, "validation_rows": 20}
    run |= {"optimizer": optimizer, "rank": 0}
    assert recorder.calls == [("begin", run), ("epoch", 1), ("epoch", 2), ("end", 2)]


def test_early_stopping_restores_the_best(device):
    x, y = data()
    rates = iter([0.05] * 21 + [50.0] * 1000)
    stopping = fastbp.EarlyStopping(patience=2)
    model = make(device)
    schedule = {step: next(rates) for step in range(1000)}.__getitem__
    seen = {}

    class Keep:
        def on_epoch_end(self, model, record):
            seen[record["epoch"]] = model.flat_parameters

    history = fit(
        model,
        x,
        y,
        optimizer=fastbp.SGD(lr=schedule),
        epochs=30,
        validation_data=(x, y),
        callbacks=[Keep(), stopping],
        on_nonfinite="continue",
    )
    losses = history["val_loss"]
    assert stopping.best == np.nanmin(losses)
    assert len(history) == stopping.best_epoch + 2 < 30
    np.testing.assert_array_equal(model.flat_parameters, seen[stopping.best_epoch])
    np.testing.assert_array_equal(losses.index(stopping.best) + 1, stopping.best_epoch)


def test_early_stopping_on_the_training_loss_says_so(device, capsys):
    x, y = data()
    fit(make(device), x, y, callbacks=[fastbp.EarlyStopping()], epochs=1)
    assert capsys.readouterr().out == ""
    fit(make(device), x, y, callbacks=[fastbp.EarlyStopping()], epochs=1, verbose=True)
    assert "early stopping watches the training loss" in capsys.readouterr().out


@pytest.mark.parametrize("monitor", ["loss", "val_loss", "accuracy", "val_accuracy"])
def test_early_stopping_watches_what_it_is_told(device, monitor):
    x, y = data()
    stopping = fastbp.EarlyStopping(patience=3, monitor=monitor)
    optimizer = fastbp.Adam(lr=0.01)
    history = fit(make(device), x, y, optimizer=optimizer, epochs=8, validation_data=data(20), callbacks=[stopping])
    values = history[monitor]
    assert stopping.best == (max if monitor.endswith("accuracy") else min)(values)
    assert stopping.best_epoch == values.index(stopping.best) + 1
    assert len(history) == min(8, stopping.best_epoch + 3)


def test_early_stopping_refuses_what_it_cannot_watch():
    with pytest.raises(ValueError, match="monitor must be one of"):
        fastbp.EarlyStopping(monitor="seconds")
    model, (x, y) = make("reference"), data()
    with pytest.raises(ValueError, match="needs validation data"):
        fit(model, x, y, epochs=1, callbacks=[fastbp.EarlyStopping(monitor="val_accuracy")])
    target, watch = np.zeros((50, model.out_features)), [fastbp.EarlyStopping(monitor="accuracy")]
    with pytest.raises(ValueError, match="needs targets that are labels"):
        fit(model, x, target, loss=fastbp.MSELoss(), epochs=1, callbacks=watch)


def test_an_error_in_a_callback_names_it():
    class Broken:
        def on_epoch_end(self, model, record):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        fit(make("reference"), *data(), epochs=1, callbacks=[Broken()])
    assert caught.value.__notes__ == ["in on_epoch_end of the callback Broken"]


def test_early_stopping_with_min_delta(device):
    stopping = fastbp.EarlyStopping(patience=3, min_delta=100.0)
    history = fit(make(device), *data(), epochs=10, callbacks=[stopping])
    assert len(history) == 4
    assert stopping.best_epoch == 1


def test_verbose_prints_an_epoch_a_line(device, capsys):
    x, y = data()
    fit(make(device), x, y, validation_data=(x, y), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss ")
    assert "val_accuracy" in lines[1]


def test_fit_stores_no_gradients(device):
    model = make(device)
    x, y = data()
    model(x)
    model.backward(np.ones((50, 3)))
    fit(model, x, y)
    with pytest.raises(RuntimeError, match="do not store gradients"):
        _ = model.flat_gradients


# --------------------------------------------------------------------------- when it goes wrong
def rate_that_explodes_at(step):
    return lambda i: 1e300 if i >= step else 0.01


@pytest.mark.parametrize(
    ("explodes_at", "message", "good_epochs"),
    [
        (14, "the loss was .* at step 2 of epoch 3; weights are back at those epoch 3 began with", 2),
        (
            13,
            "weights were not finite after the last step of epoch 2; weights are back at those epoch 2 began with",
            1,
        ),
        (0, "step 2 of epoch 1; weights are back at those epoch 1 began with", 0),
    ],
)
def test_nonfinite_loss_restores_weights_and_starts_the_optimizer_anew(device, explodes_at, message, good_epochs):
    x, y = data()
    model, good = make(device, "float32"), make(device, "float32")
    optimizer, good_optimizer = fastbp.Adam(lr=rate_that_explodes_at(explodes_at)), fastbp.Adam(lr=0.01)
    with pytest.raises(FloatingPointError, match=message + r".*smaller lr"):
        fit(model, x, y, optimizer=optimizer, epochs=10, shuffle=False)
    if good_epochs:
        fit(good, x, y, optimizer=good_optimizer, epochs=good_epochs, shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, good.flat_parameters)
    assert optimizer.step_count == 0
    assert not any(array.any() for name, array in optimizer.state_dict().items() if name != "step_count")


def test_nonfinite_first_loss_changes_nothing(device):
    x, y = data()
    model, optimizer = make(device), fastbp.Adam()
    model[0].weight = np.full((4, 16), 1e200)
    model[2].weight = np.full((16, 3), 1e200)
    before = model.flat_parameters
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1; nothing has been changed"):
        fit(model, x, y, optimizer=optimizer)
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert optimizer.step_count == 0


def test_finite_weights_are_told_from_others(device):
    model = fastbp.Sequential(fastbp.Linear(3, 20), device=device, seed=0)
    flat = model.flat_parameters
    model._parameters.values.fill(np.nan)  # what padding holds
    model.flat_parameters = flat
    assert model._parameters.all_finite()
    for bad in (np.nan, np.inf, -np.inf):
        model.flat_parameters = np.where(np.arange(flat.size) == 37, bad, flat)
        assert not model._parameters.all_finite()
    model.flat_parameters = np.full(flat.size, 3e38)  # so large that their sum is not finite
    assert model._parameters.all_finite()


@pytest.mark.parametrize("stopping", [False, True])
def test_fit_holds_four_buffers_of_the_parameters(device, stopping):
    """Weights, two moments of Adam and the snapshot; with early stopping the best weights as well."""
    model = fastbp.Sequential(fastbp.Linear(64, 4096), fastbp.ReLU(), fastbp.Linear(4096, 64), device=device, seed=0)
    x, optimizer = np.random.default_rng(0).normal(size=(4, 64)), fastbp.Adam()
    arguments = {"loss": fastbp.MSELoss(), "optimizer": optimizer, "batch_size": 2, "epochs": 3}
    arguments["callbacks"] = [fastbp.EarlyStopping(patience=100)] * stopping
    size = model._parameters.values.nbytes
    if device == "cpu":  # the reference makes arrays as it goes
        fit(model, x, x, **(arguments | {"optimizer": fastbp.Adam()}))  # compiles
        tracemalloc.start()
        fit(model, x, x, **arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (3 + stopping + 0.5) * size  # besides the weights, which were there before


def test_continue_leaves_the_batch_out(device):
    x, y = data()
    x[8:16] *= 1e300  # finite, but their outputs are not
    model, other = make(device), make(device)
    for m in (model, other):
        m[2].weight = m[2].weight * 1e10
    history = fit(model, x, y, shuffle=False, on_nonfinite="continue", epochs=1)
    kept = np.r_[0:8, 16:50]
    expected = fit(other, x[kept], y[kept], shuffle=False, epochs=1)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    assert history[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-12)
    assert history[0]["accuracy"] == pytest.approx(expected[0]["accuracy"], rel=1e-12)


BAD = {
    "wrong width": (lambda x, y: {"X": x[:, :3]}, ValueError, r"X must have shape \(n, 4\), got \(50, 3\)"),
    "one row": (lambda x, y: {"X": x[0]}, ValueError, r"X\[None, :\]"),
    "complex": (lambda x, y: {"X": x.astype(complex)}, TypeError, "X must hold real numbers"),
    "strings": (lambda x, y: {"X": x.astype(str)}, TypeError, "X must hold real numbers"),
    "objects": (lambda x, y: {"X": x.astype(object)}, TypeError, "X must hold real numbers"),
    "no rows": (lambda x, y: {"X": x[:0], "y": y[:0]}, ValueError, "X must have at least one row"),
    "NaN in X": (lambda x, y: {"X": spoilt(x, np.nan)}, ValueError, r"X\[33, 2\] = nan, which is not finite"),
    "inf in X": (lambda x, y: {"X": spoilt(x, -np.inf)}, ValueError, r"X\[33, 2\] = -inf, which is not finite"),
    "too large": (lambda x, y: {"X": spoilt(x, 1e39)}, ValueError, "which float32 cannot hold"),
    "NaN in half": (lambda x, y: {"X": spoilt(x, np.nan).astype("f2")}, ValueError, r"X\[33, 2\] = nan"),
    "few labels": (lambda x, y: {"y": y[1:]}, ValueError, r"y must have shape \(50,\), one label a row, got \(49,\)"),
    "label columns": (lambda x, y: {"y": y[:, None]}, ValueError, r"y.ravel\(\)"),
    "float labels": (lambda x, y: {"y": y.astype(float)}, TypeError, r"y.astype\(int\)"),
    "large label": (lambda x, y: {"y": np.where(np.arange(50) == 7, 3, y)}, ValueError, r"from 0 to 2.*y\[7\] = 3"),
    "negative label": (lambda x, y: {"y": np.where(np.arange(50) == 7, -1, y)}, ValueError, r"y\[7\] = -1"),
    "huge label": (
        lambda x, y: {"y": np.full(50, 2**64 - 1, np.uint64)},
        ValueError,
        r"y\[0\] = 18446744073709551615",
    ),
    "target shape": (lambda x, y: {"y": x, "loss": fastbp.MSELoss()}, ValueError, r"y must have shape \(50, 3\)"),
    "NaN in target": (
        lambda x, y: {"y": spoilt(x, np.nan)[:, 1:], "loss": fastbp.MSELoss()},
        ValueError,
        r"y\[33, 1\] = nan",
    ),
    "weights": (lambda x, y: {"sample_weight": np.ones(49)}, ValueError, r"sample_weight must have shape \(50,\)"),
    "NaN weight": (lambda x, y: {"sample_weight": np.full(50, np.nan)}, ValueError, r"sample_weight\[0\] = nan"),
    "negative weight": (lambda x, y: {"sample_weight": -np.ones(50)}, ValueError, "must not be negative"),
    "no weight": (lambda x, y: {"sample_weight": np.zeros(50)}, ValueError, "sum above 0"),
    "epochs": (lambda x, y: {"epochs": 0}, ValueError, "epochs must be at least 1"),
    "batch size": (lambda x, y: {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    "half a batch": (lambda x, y: {"batch_size": 0.5}, TypeError, "batch_size must be an integer"),
    "shuffle": (lambda x, y: {"shuffle": "yes"}, TypeError, 'shuffle must be True, False, "blocks" or a'),
    "on_nonfinite": (lambda x, y: {"on_nonfinite": "ignore"}, ValueError, "one of 'raise', 'continue'"),
    "loss": (lambda x, y: {"loss": "cross_entropy"}, TypeError, "loss must be a loss or a function"),
    "optimizer": (lambda x, y: {"optimizer": "adam"}, TypeError, "optimizer must be of type Optimizer"),
    "validation": (lambda x, y: {"validation_data": x}, TypeError, r"must be a pair \(X, y\)"),
    "validation of four": (lambda x, y: {"validation_data": (x, y, y, y)}, TypeError, r"must be a pair .* tuple of 4"),
    "validation weight": (
        lambda x, y: {"validation_data": (x, y, y[:3])},
        ValueError,
        r"validation_data\[2\] must have",
    ),
    "validation X": (lambda x, y: {"validation_data": (x[:, :2], y)}, ValueError, r"validation_data\[0\] must have"),
    "validation y": (lambda x, y: {"validation_data": (x, y + 1)}, ValueError, r"validation_data\[1\]\[\d+\] = 3"),
    "validation NaN": (lambda x, y: {"validation_data": (spoilt(x, np.nan), y)}, ValueError, r"\[0\]\[33, 2\] = nan"),
    "accumulate": (lambda x, y: {"accumulate": 0}, ValueError, "accumulate must be at least 1"),
    "class weights": (
        lambda x, y: {"loss": fastbp.CrossEntropyLoss(class_weight=[1, 2])},
        ValueError,
        "class_weight must have one weight for each of the 3 outputs, got 2",
    ),
    "target of 0 and 1": (
        lambda x, y: {"y": x[:, :3], "loss": fastbp.BCEWithLogitsLoss()},
        ValueError,
        "y must hold numbers from 0 to 1",
    ),
    "callbacks": (lambda x, y: {"callbacks": fastbp.EarlyStopping()}, TypeError, "callbacks must be a list"),
    "callback": (lambda x, y: {"callbacks": [print]}, TypeError, "a callback must have"),
}


def spoilt(x, value):
    x = x.copy()
    x[33, 2] = value
    return x


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error_and_changes_nothing(device, change, error, match):
    x, y = data()
    y[3] = 2
    model = make(device, "float32")
    before, state = model.flat_parameters, model.generator.bit_generator.state
    optimizer = fastbp.Adam()
    arguments = {"X": x, "y": y, "loss": fastbp.CrossEntropyLoss(), "optimizer": optimizer} | change(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=match):
            model.fit(**({"verbose": False} | arguments))
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert model.generator.bit_generator.state == state
    assert optimizer.step_count == 0
    assert optimizer.state == ()
    assert model.history is None


class Slow:
    """A user's loss that waits for Ctrl-C in the middle of a step."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prediction, target):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        return 0.0, np.ones_like(prediction)


def test_interrupt_leaves_the_weights_of_a_finished_step(device):
    x, _ = data()
    model, other = make(device), make(device)
    optimizer, loss = fastbp.Adam(), Slow()
    with pytest.raises(KeyboardInterrupt):
        fit(model, x, x, loss=loss, optimizer=optimizer, shuffle=False)
    assert loss.calls == optimizer.step_count == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    own = fastbp.Adam()
    for start in (0, 8, 16):
        other.train_step(x[start : start + 8], None, lambda p, y: (0.0, np.ones_like(p)), own)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    fit(model, *data(), epochs=1)  # the model is free again


def test_interrupt_of_compiled_steps(device):
    x, y = data(1000)
    model, optimizer = make(device), fastbp.Adam()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))

    class Start:
        def on_fit_begin(self, model, run):
            timer.start()

    with pytest.raises(KeyboardInterrupt):
        fit(model, x, y, optimizer=optimizer, epochs=10**6, callbacks=[Start()], batch_size=1, shuffle=False)
    other = make(device)
    same = fastbp.Adam()
    epochs, steps = divmod(optimizer.step_count, 1000)
    if epochs:
        fit(other, x, y, optimizer=same, epochs=epochs, batch_size=1, shuffle=False)
    if steps:
        fit(other, x[:steps], y[:steps], optimizer=same, epochs=1, batch_size=1, shuffle=False)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    assert np.isfinite(model.flat_parameters).all()


def test_fit_in_another_thread(device):
    x, y = data()
    model, expected = make(device), make(device)
    thread = threading.Thread(target=fit, args=(model, x, y))
    thread.start()
    thread.join()
    fit(expected, x, y)
    np.testing.assert_array_equal(model.flat_parameters, expected.flat_parameters)


def test_model_is_free_after_a_callback_failed(device):
    class Failing:
        def on_epoch_end(self, model, record):
            raise LookupError

    model = make(device)
    with pytest.raises(LookupError):
        fit(model, *data(), callbacks=[Failing()])
    fit(model, *data())


def test_ignored_rows_are_no_part_of_the_accuracy(device):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 4)), rng.integers(0, 3, 50)
    y[::3] = -100
    loss = fastbp.CrossEntropyLoss(ignore_index=-100)
    model = fastbp.Sequential(fastbp.Linear(4, 3), dtype="float64", device=device, seed=0)
    hits = (model.predict(X).argmax(axis=1) == y)[y >= 0]
    record = model.fit(
        X, y, validation_data=(X, y), loss=loss, optimizer=fastbp.SGD(lr=1e-300), epochs=1, batch_size=8, verbose=False
    )[0]
    assert record["accuracy"] == record["val_accuracy"] == hits.mean()
