"""Dropout: which units, how many, the same ones backward, none outside training."""

import copy

import numpy as np
import pytest

import fastbp
from fastbp.kernels.splitmix import splitmix64

ROWS = np.random.default_rng(0).standard_normal((40, 6))
LABELS = np.random.default_rng(1).integers(0, 3, 40)


def network(device="cpu", dtype="float64", p=0.4):
    return fastbp.Sequential(
        fastbp.Dropout(0.1),
        fastbp.Linear(6, 20),
        fastbp.Tanh(),
        fastbp.Dropout(p),
        fastbp.Linear(20, 12),
        fastbp.Dropout(0.2),
        fastbp.GELU(),
        fastbp.Linear(12, 3),
        fastbp.Dropout(0.05),
        dtype=dtype,
        device=device,
        seed=3,
    )


def test_splitmix64_known_answers():
    # The first outputs of the generator of seed 1234567, from the authors' C program.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_alone_keeps_scales_and_repeats_backward(device):
    layer = fastbp.Dropout(0.3, seed=0, device=device)
    x = np.ones((200, 50))
    out = layer.forward(x)
    assert set(np.unique(out)) == {0.0, 1 / 0.7}
    assert abs((out == 0).mean() - 0.3) < 0.02
    np.testing.assert_array_equal(layer.backward(x), out)
    assert not np.array_equal(layer.forward(x), out)
    layer.training = False
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.backward(2 * x), 2 * x)


def test_p_0_changes_nothing(device):
    layer = fastbp.Dropout(0.0, device=device)
    np.testing.assert_array_equal(layer.forward(ROWS), ROWS)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan"), "half", None])
def test_p_must_be_a_probability_below_1(p):
    with pytest.raises((TypeError, ValueError), match="p must"):
        fastbp.Dropout(p)


def test_only_training_drops(device):
    model = network(device)
    first, second = model(ROWS), model(ROWS)
    assert not np.array_equal(first, second)
    model.eval()
    np.testing.assert_array_equal(model(ROWS), model(ROWS))
    np.testing.assert_allclose(model(ROWS), model.predict(ROWS), rtol=1e-12)
    assert not model.training
    model.predict(ROWS)
    assert not model.training


def test_gradients_of_the_same_mask(device):
    """Central differences with the generator put back, so that every evaluation drops the same units."""
    model, loss = network(device), fastbp.CrossEntropyLoss(device=device)
    state = copy.deepcopy(model.generator.bit_generator.state)

    def value(flat):
        model.flat_parameters = flat
        model.generator.bit_generator.state = copy.deepcopy(state)
        return loss(model(ROWS), LABELS)

    flat = model.flat_parameters
    _, gradient = value(flat)
    grad_input = model.backward(gradient)
    exact = model.flat_gradients
    for i in range(0, len(flat), 7):
        step = np.zeros_like(flat)
        step[i] = 1e-6
        slope = (value(flat + step)[0] - value(flat - step)[0]) / 2e-6
        assert slope == pytest.approx(exact[i], rel=1e-5, abs=1e-8)
    assert (grad_input == 0).mean() == pytest.approx(0.1, abs=0.07)


def test_backends_drop_the_same_units():
    trained = []
    for device in ("reference", "cpu"):
        model = network(device)
        model.fit(
            ROWS, LABELS, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(), epochs=3, batch_size=7, verbose=False
        )
        trained.append(model.flat_parameters)
    np.testing.assert_allclose(trained[0], trained[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    trained = []
    for threads in (1, 2, 7):
        fastbp.set_num_threads(threads)
        model = network(dtype=dtype)
        history = model.fit(
            ROWS,
            LABELS,
            loss=fastbp.CrossEntropyLoss(),
            optimizer=fastbp.Adam(),
            epochs=4,
            batch_size=23,
            verbose=False,
        )
        trained.append((model.flat_parameters.tobytes(), history["loss"]))
    assert trained[0] == trained[1] == trained[2]


def test_resume_is_exact(tmp_path, device):
    options = {"loss": fastbp.CrossEntropyLoss(), "batch_size": 9, "verbose": False}
    whole, part, optimizer = network(device), network(device), fastbp.Adam(lr=1e-2)
    whole.fit(ROWS, LABELS, optimizer=fastbp.Adam(lr=1e-2), epochs=6, **options)
    part.fit(ROWS, LABELS, optimizer=optimizer, epochs=3, **options)
    part.save(tmp_path / "half.npz", optimizer)
    resumed = fastbp.load(tmp_path / "half.npz", device=device)
    resumed.fit(ROWS, LABELS, optimizer=resumed.optimizer, epochs=3, **options)
    np.testing.assert_array_equal(whole.flat_parameters, resumed.flat_parameters)
