"""Normalisations and residual blocks: alone, in models, against PyTorch's numbers and finite differences."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import fastbp

with np.load(Path(__file__).parent / "golden" / "norms.npz") as archive:
    GOLDEN = dict(archive)
ROWS = len(GOLDEN["x"]) // len(GOLDEN["losses"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def golden_model(device, dtype="float64"):
    model = fastbp.Sequential(
        fastbp.BatchNorm1d(5), fastbp.Linear(5, 9), fastbp.LayerNorm(9), fastbp.GELU(),
        fastbp.Residual(
            fastbp.LayerNorm(9), fastbp.Linear(9, 7), fastbp.Tanh(), fastbp.Linear(7, 9),
            fastbp.BatchNorm1d(9, momentum=0.3),
        ),
        fastbp.LayerNorm(9, affine=False), fastbp.SiLU(), fastbp.Linear(9, 4), dtype=dtype, device=device, seed=0,
    )  # fmt: skip
    model.load_state_dict(state_of("start"))
    return model


def state_of(when):
    """A state of the golden network, in our layout."""
    prefix = f"{when}/"
    return {name.removeprefix(prefix): array.T for name, array in GOLDEN.items() if name.startswith(prefix)}


def network(device, **options):
    return fastbp.Sequential(
        fastbp.Linear(4, 6), fastbp.BatchNorm1d(6), fastbp.ReLU(),
        fastbp.Residual(fastbp.LayerNorm(6), fastbp.Linear(6, 6), fastbp.Tanh(), fastbp.Dropout(0.25)),
        fastbp.Linear(6, 3), device=device, seed=1, **options,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ PyTorch's numbers
def steps():
    for i in range(0, len(GOLDEN["x"]), ROWS):
        yield GOLDEN["x"][i : i + ROWS], GOLDEN["labels"][i : i + ROWS]


def assert_trained(model, losses, roundings):
    limit = roundings * np.finfo(model.dtype).eps
    np.testing.assert_allclose(losses, GOLDEN["losses"], rtol=limit, atol=limit)
    end, state = state_of("end"), model.state_dict()
    assert set(state) == set(end)
    for name, array in end.items():
        np.testing.assert_allclose(state[name], array, rtol=limit, atol=limit, err_msg=name)
    np.testing.assert_allclose(model.predict(GOLDEN["x"]), GOLDEN["predictions"], rtol=limit, atol=8 * limit)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_are_those_of_pytorch(device, dtype):
    model, loss, optimizer = golden_model(device, dtype), fastbp.CrossEntropyLoss(), fastbp.SGD(lr=0.1, momentum=0.9)
    assert_trained(model, [model.train_step(x, y, loss, optimizer) for x, y in steps()], 2e4)


def test_own_loop_is_that_of_pytorch(device):
    model, loss = golden_model(device), fastbp.CrossEntropyLoss()
    optimizer, losses = fastbp.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for x, y in steps():
        value, grad = loss(model(x), y)
        grad_x = model.backward(grad)
        if not losses:
            np.testing.assert_allclose(grad_x, GOLDEN["grad/x"], rtol=1e-9, atol=1e-12)
            for parameter in model.parameters():
                np.testing.assert_allclose(parameter.grad, GOLDEN[f"grad/{parameter.name}"].T, rtol=1e-9, atol=1e-12)
        optimizer.step()
        losses.append(value)
    assert_trained(model, losses, 2e4)


def test_fit_is_that_of_pytorch(device):
    model = golden_model(device)
    loss, optimizer = fastbp.CrossEntropyLoss(), fastbp.SGD(lr=0.1, momentum=0.9)
    options = {"epochs": 1, "batch_size": ROWS, "shuffle": False, "verbose": False}
    history = model.fit(GOLDEN["x"], GOLDEN["labels"], loss=loss, optimizer=optimizer, **options)
    assert_trained(model, GOLDEN["losses"], 2e4)
    assert history[0]["loss"] == pytest.approx(GOLDEN["losses"].mean(), rel=1e-9)


# ----------------------------------------------------------------------------------- finite differences
def derivative(f, array, eps=1e-6):
    numeric = np.empty_like(array)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + eps
        above = f()
        array[i] = kept - eps
        numeric[i] = (above - f()) / (2 * eps)
        array[i] = kept
    return numeric


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_model_against_finite_differences(device, rng, training):
    model, x, weights = golden_model(device), GOLDEN["x"][:7].copy(), rng.standard_normal((7, 4))
    flat = model.flat_parameters
    model.training = training

    def f():
        model.flat_parameters = flat
        return float((weights * model.outputs(x, training)).sum())

    f()
    grad_x = model.backward(weights)
    gradients = model.flat_gradients
    np.testing.assert_allclose(grad_x, derivative(f, x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradients, derivative(f, flat), rtol=1e-6, atol=1e-7)


LAYERS = [
    lambda **options: fastbp.LayerNorm(5, **options),
    lambda **options: fastbp.LayerNorm(5, affine=False, **options),
    lambda **options: fastbp.BatchNorm1d(5, **options),
    lambda **options: fastbp.BatchNorm1d(5, affine=False, **options),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_layer_alone(device, rng, make, training):
    layer, x, weights = make(dtype="float64", device=device), rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    layer.training = training
    if layer.affine:
        layer.weight, layer.bias = rng.random(5) + 0.5, rng.random(5)
    if isinstance(layer, fastbp.BatchNorm1d):
        layer.running_mean, layer.running_var = rng.random(5), rng.random(5) + 0.5

    def f():
        return float((weights * layer.forward(x)).sum())

    f()
    grad_x = layer.backward(weights)
    np.testing.assert_allclose(grad_x, derivative(f, x), rtol=1e-6, atol=1e-8)
    if layer.affine:
        for name in ("weight", "bias"):
            gradient = getattr(layer, f"grad_{name}")
            layer.forward(x)
            np.testing.assert_allclose(gradient, derivative(f, getattr(layer, name)), rtol=1e-6, atol=1e-8)
        layer.backward(weights, accumulate=True)
        np.testing.assert_allclose(layer.grad_bias, 2 * weights.sum(axis=0))


def test_residual_alone_and_in_a_graph(device, rng):
    block = fastbp.Residual(
        fastbp.LayerNorm(4, dtype="float64", device=device),
        fastbp.Linear(4, 4, dtype="float64", device=device, seed=0), fastbp.Tanh(device=device),
    )  # fmt: skip
    x, weights = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
    inner = x
    for layer in block.layers:
        inner = layer.forward(inner)
    np.testing.assert_allclose(block(x), x + inner, rtol=1e-15)
    grad = block.backward(weights)
    np.testing.assert_allclose(grad, derivative(lambda: float((weights * block(x)).sum()), x), rtol=1e-6, atol=1e-8)
    variable = fastbp.Variable(x, requires_grad=True)
    out = block(variable)
    out.backward(weights)
    np.testing.assert_allclose(variable.grad, grad, rtol=1e-12)
    block(x)
    np.testing.assert_allclose(block.backward_input(weights), grad, rtol=1e-12)


@pytest.mark.parametrize(
    "layer", [fastbp.LayerNorm(3), fastbp.BatchNorm1d(3), fastbp.Residual(fastbp.LayerNorm(3), fastbp.Tanh())]
)
def test_gradcheck(layer, rng):
    assert max(fastbp.gradcheck(layer, rng.standard_normal((4, 3))).values()) < 1e-6
    copied = copy.deepcopy(layer)
    model = fastbp.Sequential(fastbp.Linear(2, 3, seed=0), copied, fastbp.Linear(3, 2, seed=1))
    assert max(fastbp.gradcheck(model, rng.standard_normal((4, 2))).values()) < 1e-6


# ----------------------------------------------------------------------------------- running statistics
def test_statistics_learn_as_pytorch_has_them(device, rng):
    layer = fastbp.BatchNorm1d(3, momentum=0.25, dtype="float64", device=device)
    x = rng.standard_normal((10, 3))
    layer.forward(x)
    np.testing.assert_allclose(layer.running_mean, 0.25 * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, 0.75 + 0.25 * x.var(axis=0, ddof=1), rtol=1e-12)
    before = layer.running_mean.copy()
    layer.training = False
    out = layer.forward(x)
    np.testing.assert_array_equal(layer.running_mean, before)
    np.testing.assert_allclose(out, (x - before) / np.sqrt(layer.running_var + 1e-5), rtol=1e-12)


def test_statistics_stay_where_the_loss_is_not_finite(device, rng):
    x, y = rng.standard_normal((8, 4)).astype(np.float32), rng.integers(0, 3, 8)
    loss = fastbp.CrossEntropyLoss()
    for optimizer in (fastbp.SGD(lr=0.1), fastbp.SGD(lr=0.1, clip_norm=1.0)):
        model = network(device)
        model.train_step(x, y, loss, optimizer)
        before = model.state_dict()
        bad = x.copy()
        bad[3, 1] = np.inf
        with np.errstate(all="ignore"):
            assert not np.isfinite(model.train_step(bad, y, loss, optimizer))
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_both_kinds_of_steps_agree(device, rng):
    x, y = rng.standard_normal((30, 4)), rng.integers(0, 3, 30)
    weight = rng.random(30)
    weight[::4] = 0
    states = []
    for clip in (None, 1e9):  # an optimizer that clips goes through stored gradients
        model = fastbp.Sequential(
            fastbp.Linear(4, 6), fastbp.BatchNorm1d(6), fastbp.Tanh(), fastbp.Linear(6, 3), dtype="float64",
            device=device, seed=1,
        )  # fmt: skip
        options = {"epochs": 2, "batch_size": 10, "sample_weight": weight, "shuffle": False, "verbose": False}
        model.fit(x, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(lr=0.1, clip_norm=clip), **options)
        states.append(model.state_dict())
    for name, array in states[0].items():
        np.testing.assert_allclose(states[1][name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_rows_without_weight_count_for_nothing(device, rng):
    """As if they were not there, which they are not for PyTorch's numbers either."""
    x, y = rng.standard_normal((12, 4)), rng.integers(0, 3, 12)
    states = []
    for rows, weight in ((np.arange(8), None), (np.arange(12), np.repeat([1.0, 0.0], [8, 4]))):
        model = fastbp.Sequential(fastbp.BatchNorm1d(4), fastbp.Linear(4, 3), dtype="float64", device=device, seed=1)
        model.fit(
            x[rows], y[rows], sample_weight=weight, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(lr=0.1),
            batch_size=12, epochs=1, shuffle=False, verbose=False,
        )  # fmt: skip
        states.append(model.state_dict())
    for name, array in states[0].items():
        np.testing.assert_allclose(states[1][name], array, rtol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------------------- in models
def test_state_files_and_copies(device, rng, tmp_path):
    model, x = network(device), rng.standard_normal((20, 4)).astype(np.float32)
    options = {"epochs": 2, "batch_size": 5, "verbose": False}
    model.fit(x, rng.integers(0, 3, 20), loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=0.01), **options)
    assert list(model.state_dict()) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.0.weight", "3.0.bias",
        "3.1.weight", "3.1.bias", "4.weight", "4.bias",
    ]  # fmt: skip
    assert model.flat_parameters.size == sum(parameter.data.size for parameter in model.parameters())
    path = tmp_path / "model.npz"
    model.save(path)
    for other in (fastbp.load(path, device=device), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(x), model.predict(x))
        assert repr(other) == repr(model)
    moved = copy.deepcopy(model).to("reference")
    np.testing.assert_allclose(moved.predict(x), model.predict(x), rtol=1e-5, atol=1e-6)
    assert "3 Residual" in str(model)
    assert "  1 Linear" in str(model)


def test_best_weights_have_their_statistics(rng):
    model = network("cpu")
    x, y = rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    states, stopping = {}, fastbp.EarlyStopping(patience=2)

    class Keep:
        def on_epoch_end(self, model, record):
            states[record["epoch"]] = model.state_dict()

    model.fit(
        x, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=0.3), validation_data=(x[:10], y[::-1][:10]),
        epochs=12, batch_size=10, callbacks=[Keep(), stopping], verbose=False,
    )  # fmt: skip
    assert stopping.best_epoch < max(states)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, states[stopping.best_epoch][name], err_msg=name)


def test_weights_of_a_failed_epoch_come_back_with_their_statistics(rng):
    model, x, y = network("cpu"), rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    options = {"epochs": 3, "batch_size": 10, "verbose": False}
    kept = {}

    class Keep:
        def on_epoch_end(self, model, record):
            kept.update(model.state_dict())

    loss, rate = fastbp.CrossEntropyLoss(), lambda step: 0.1 if step < 6 else 1e38
    with pytest.raises(FloatingPointError):
        model.fit(x, y, loss=loss, optimizer=fastbp.SGD(lr=rate), callbacks=[Keep()], **options)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)


def test_threads_change_no_bits(rng):
    x, y, results = rng.standard_normal((300, 4)).astype(np.float32), rng.integers(0, 3, 300), []
    before = fastbp.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            fastbp.set_num_threads(threads)
            model = network("cpu")
            options = {"epochs": 2, "batch_size": 130, "verbose": False}
            model.fit(x, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=0.01), **options)
            results.append([*(array.tobytes() for array in model.state_dict().values()), model.predict(x).tobytes()])
    finally:
        fastbp.set_num_threads(before)
    assert results[1:] == results[:1] * 3


# -------------------------------------------------------------------------------------------- refusals
def test_a_batch_of_one_row_is_refused_before_training(device):
    model = network(device)
    x, y, loss, optimizer = np.zeros((21, 4), np.float32), np.zeros(21, int), fastbp.CrossEntropyLoss(), fastbp.SGD()
    before = model.state_dict()
    for batch_size, drop_last in ((20, False), (1, False), (1, True)):
        with pytest.raises(ValueError, match="batch of one row"):
            model.fit(x, y, loss=loss, optimizer=optimizer, batch_size=batch_size, drop_last=drop_last, verbose=False)
    for call in (lambda: model.train_step(x[:1], y[:1], loss, optimizer), lambda: model(x[:1])):
        with pytest.raises(ValueError, match="batch of one row"):
            call()
    weights = np.ones((4, 3), np.float32)
    model(x[:4])
    with pytest.raises(ValueError, match="batch of one row"):
        model(x[:1])
    assert model.backward(weights).shape == (4, 4)  # the last forward pass is what it was
    for name, array in model.state_dict().items():
        if "running" not in name:  # which model(x) has moved
            np.testing.assert_array_equal(array, before[name])
    model.fit(x, y, loss=loss, optimizer=optimizer, batch_size=20, drop_last=True, epochs=1, verbose=False)
    assert model.eval()(x[:1]).shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fastbp.LayerNorm(0), ValueError, "features"),
        (lambda: fastbp.LayerNorm(3, eps=0), ValueError, "eps must be above 0"),
        (lambda: fastbp.LayerNorm(3, affine=1), TypeError, "affine"),
        (lambda: fastbp.BatchNorm1d(3, momentum=1.5), ValueError, "momentum must be at most 1"),
        (lambda: setattr(fastbp.LayerNorm(3, affine=False), "weight", [1, 2, 3]), ValueError, "affine=False"),
        (lambda: setattr(fastbp.LayerNorm(3), "bias", [1, 2]), ValueError, r"bias must have shape \(3,\)"),
        (lambda: fastbp.Residual(), ValueError, "at least one layer"),
        (lambda: fastbp.Residual("relu"), TypeError, "layer 0 of Residual"),
        (lambda: fastbp.Sequential(fastbp.Linear(2, 3), fastbp.LayerNorm(4)), ValueError, "must take features=3"),
        (
            lambda: fastbp.Sequential(fastbp.Linear(2, 3), fastbp.Residual(fastbp.Linear(3, 4))),
            ValueError, "adds its input of 3 features to 4 outputs",
        ),
        (
            lambda: fastbp.Sequential(fastbp.Linear(2, 3), fastbp.Residual(fastbp.Linear(2, 3))),
            ValueError, r"layer 1\.0, .*must take in_features=3",
        ),
        (lambda: fastbp.Sequential(fastbp.LayerNorm(3)), ValueError, "at least one Linear"),
        (lambda: fastbp.Sequential(*[fastbp.Linear(3, 3), fastbp.LayerNorm(3)] * 2), ValueError, "part of a model"),
    ],
)  # fmt: skip
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_running_statistic_has_no_gradient():
    statistic = next(part for part in network("cpu").network.state() if part.name == "1.running_mean")
    with pytest.raises(AttributeError, match="no gradient"):
        _ = statistic.grad
