"""Losses and the gradients of exactly them; optimizers against their equations."""

import copy
import pickle

import numpy as np
import pytest

import fastbp
from fastbp import losses, optimizers
from fastbp.kernels import table

LOSSES = [fastbp.HalfSquaredErrorLoss, fastbp.MSELoss, fastbp.CrossEntropyLoss]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def target_for(loss, rng, rows, outputs):
    return rng.integers(0, outputs, rows) if loss.labels else rng.normal(size=(rows, outputs))


# --------------------------------------------------------------------------------------- losses
def test_half_squared_error(device, rng):
    s, y = rng.normal(size=(2, 5, 3))
    value, gradient = fastbp.HalfSquaredErrorLoss(device=device)(s, y)
    np.testing.assert_allclose(value, 0.5 * ((s - y) ** 2).sum() / 5)
    np.testing.assert_allclose(gradient, (s - y) / 5)


def test_mean_squared_error(device, rng):
    s, y = rng.normal(size=(2, 5, 3))
    value, gradient = fastbp.MSELoss(device=device)(s, y)
    np.testing.assert_allclose(value, ((s - y) ** 2).mean())
    np.testing.assert_allclose(gradient, 2 / 15 * (s - y))


def test_mean_squared_error_of_the_notes(device):
    s, y = np.array([[1.0], [2.0], [4.0]]), np.array([0.5, 2.5, 1.0])
    _, gradient = fastbp.MSELoss(device=device)(s, y)  # a target (n,) for one output
    np.testing.assert_allclose(gradient, 2 / 3 * (s - y[:, None]))


def test_cross_entropy(device, rng):
    s, y = rng.normal(size=(6, 4)), np.array([0, 3, 1, 1, 2, 0])
    p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    value, gradient = fastbp.CrossEntropyLoss(device=device)(s, y)
    np.testing.assert_allclose(value, -np.log(p[np.arange(6), y]).mean())
    np.testing.assert_allclose(gradient, (p - np.eye(4)[y]) / 6, atol=1e-15)
    np.testing.assert_allclose(fastbp.CrossEntropyLoss.probabilities(s), p)


def test_cross_entropy_does_not_overflow(device):
    value, gradient = fastbp.CrossEntropyLoss(device=device)([[1e4, -1e4], [-1e4, 1e4]], [0, 0])
    assert value == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", LOSSES)
def test_gradient_is_that_of_the_value(device, rng, make, weighted):
    loss = make(device=device)
    s = rng.normal(size=(5, 3))
    y = target_for(loss, rng, 5, 3)
    weight = rng.uniform(0, 2, 5) if weighted else None
    gradient = loss(s, y, weight)[1]
    numeric = np.empty_like(s)
    for index in np.ndindex(*s.shape):
        up, down = s.copy(), s.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        numeric[index] = (loss(up, y, weight)[0] - loss(down, y, weight)[0]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


@pytest.mark.parametrize("make", LOSSES)
def test_weights(device, rng, make):
    loss = make(device=device)
    s, y = rng.normal(size=(5, 3)), target_for(loss, rng, 5, 3)
    plain, weighted = loss(s, y), loss(s, y, [2, 2, 2, 2, 2])
    np.testing.assert_allclose(plain[0], weighted[0], rtol=1e-15)
    np.testing.assert_allclose(plain[1], weighted[1], rtol=1e-14)
    kept, left = loss(s[1:], y[1:]), loss(s, y, [0, 1, 1, 1, 1])
    np.testing.assert_allclose(left[0], kept[0])
    np.testing.assert_allclose(left[1][1:], kept[1])
    np.testing.assert_array_equal(left[1][0], 0)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_arguments_are_kept(device, rng, make, dtype):
    loss = make(device=device)
    s, y = rng.normal(size=(5, 3)).astype(dtype), target_for(loss, rng, 5, 3)
    before = s.copy(), y.copy()
    value, gradient = loss(s, y)
    assert isinstance(value, float)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(s, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("make", LOSSES)
def test_nan_propagates(device, make):
    loss = make(device=device)
    s = np.array([[np.nan, 1.0], [0.0, 1.0]])
    assert np.isnan(loss(s, [0, 1] if loss.labels else np.zeros((2, 2)))[0])


@pytest.mark.parametrize(
    ("make", "arguments", "error", "match"),
    [
        (fastbp.MSELoss, (np.ones((3, 2)), np.ones(3)), ValueError, r"target must have shape \(3, 2\), got \(3,\)"),
        (fastbp.MSELoss, (np.ones((3, 2)), np.ones((3, 1))), ValueError, r"got \(3, 1\)"),
        (fastbp.MSELoss, (np.ones((3, 1)), np.ones((1, 3))), ValueError, r"\(3, 1\) or \(3,\), got \(1, 3\)"),
        (fastbp.MSELoss, (np.ones(3), np.ones(3)), ValueError, "prediction must have shape"),
        (fastbp.MSELoss, (np.ones((0, 2)), np.ones((0, 2))), ValueError, "at least one row"),
        (fastbp.MSELoss, (np.ones((2, 2)), np.ones((2, 2)), [0, 0]), ValueError, "sum above 0"),
        (fastbp.MSELoss, (np.ones((2, 2)), np.ones((2, 2)), [1, -1]), ValueError, r"sample_weight\[1\] = -1"),
        (fastbp.MSELoss, (np.ones((2, 2)), np.ones((2, 2)), [1]), ValueError, r"sample_weight must have shape \(2,\)"),
        (fastbp.CrossEntropyLoss, (np.ones((2, 3)), [0, 3]), ValueError, r"0 to 2.*target\[1\] = 3"),
        (fastbp.CrossEntropyLoss, (np.ones((2, 3)), [-1, 2]), ValueError, r"target\[0\] = -1"),
        (fastbp.CrossEntropyLoss, (np.ones((2, 3)), [0.0, 1.0]), TypeError, r"target.astype\(int\)"),
        (fastbp.CrossEntropyLoss, (np.ones((2, 3)), [[0], [1]]), ValueError, r"target.ravel\(\)"),
        (fastbp.CrossEntropyLoss, (np.ones((2, 3)), ["a", "b"]), TypeError, "target must hold real numbers"),
    ],
)
def test_bad_arguments_of_losses(device, make, arguments, error, match):
    with pytest.raises(error, match=match):
        make(device=device)(*arguments)


def test_every_loss_and_optimizer_of_the_contract_has_a_class():
    assert {cls.name for cls in losses.LOSSES.values()} == set(table.LOSSES)
    assert {cls.name for cls in optimizers.OPTIMIZERS.values()} == set(table.OPTIMIZERS)
    for cls in optimizers.OPTIMIZERS.values():
        assert len(cls.state_names) == table.OPTIMIZER_STATES[cls.name]


# ----------------------------------------------------------------------------------- optimizers
def quadratic(device, seed=0):
    """A model, and a function that stores the gradient of a fixed loss and returns a packed copy of it."""
    model = fastbp.Sequential(
        fastbp.Linear(3, 5), fastbp.Tanh(), fastbp.Linear(5, 2), dtype="float64", device=device, seed=seed
    )
    x, y = np.random.default_rng(1).normal(size=(2, 4, 3))

    def gradient():
        _, grad = fastbp.MSELoss(device=device)(model(x), y[:, :2])
        model.backward(grad)
        return model.flat_gradients

    return model, gradient


def test_gradient_descent(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        expected = model.flat_parameters - 0.3 * gradient()
        optimizer.step()
        np.testing.assert_allclose(model.flat_parameters, expected, rtol=1e-13)
    assert optimizer.step_count == 3


def test_adam_of_the_paper(device):
    model, gradient = quadratic(device)
    lr, beta1, beta2, eps = 0.01, 0.8, 0.95, 1e-3
    optimizer = fastbp.Adam(model.parameters(), lr=lr, betas=(beta1, beta2), eps=eps)
    weights = model.flat_parameters
    m = v = np.zeros_like(weights)
    for t in range(1, 6):
        g = gradient()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        weights = weights - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        optimizer.step()
        np.testing.assert_allclose(model.flat_parameters, weights, rtol=1e-11)
    state = optimizer.state_dict()
    np.testing.assert_allclose(state["exp_avg"], m, rtol=1e-12)  # not the divided moments
    np.testing.assert_allclose(state["exp_avg_sq"], v, rtol=1e-12)


def test_rate_from_a_function_of_the_step(device):
    seen = []

    def rate(step):
        seen.append(step)
        return 0.1 / (1 + step)

    model, gradient = quadratic(device)
    optimizer = fastbp.SGD(model.parameters(), lr=rate)
    for step in range(3):
        expected = model.flat_parameters - 0.1 / (1 + step) * gradient()
        optimizer.step()
        np.testing.assert_allclose(model.flat_parameters, expected, rtol=1e-13)
    assert seen == [0, 1, 2]


def test_changed_rate_holds_from_the_next_step(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.SGD(model.parameters(), lr=0.1)
    gradient()
    optimizer.step()
    optimizer.lr = 0
    before = model.flat_parameters
    gradient()
    optimizer.step()
    np.testing.assert_array_equal(model.flat_parameters, before)


def test_coefficients_do_not_depend_on_how_steps_are_cut():
    for optimizer in (fastbp.SGD(lr=0.1), fastbp.Adam(lr=lambda step: 0.1 / (step + 1))):
        whole = optimizer.coefficients(0, 10)
        parts = np.concatenate([optimizer.coefficients(0, 3), optimizer.coefficients(3, 7)])
        np.testing.assert_array_equal(whole, parts)
        assert whole.shape == (10, table.COEFFICIENTS)


def test_second_model_is_refused(device):
    (first, _), (second, _gradient) = quadratic(device), quadratic(device)
    optimizer = fastbp.Adam(first.parameters())
    before = second.flat_parameters
    x, y = np.ones((4, 3)), np.ones((4, 2))
    with pytest.raises(ValueError, match="another model"):
        second.train_step(x, y, fastbp.MSELoss(), optimizer)
    with pytest.raises(ValueError, match="another model"):
        second.fit(x, y, loss=fastbp.MSELoss(), optimizer=optimizer, verbose=False)
    np.testing.assert_array_equal(second.flat_parameters, before)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fastbp.Adam(1e-3), TypeError, r"model.parameters\(\)"),
        (lambda: fastbp.Adam([]), ValueError, "those of one model"),
        (lambda: fastbp.SGD(lr=-1), ValueError, "lr must be at least 0"),
        (lambda: fastbp.SGD(lr=np.nan), ValueError, "lr must be"),
        (lambda: fastbp.SGD(lr="fast"), TypeError, "lr must be a real number"),
        (lambda: fastbp.Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be at least 0 and below 1"),
        (lambda: fastbp.Adam(betas=0.9), ValueError, "pair"),
        (lambda: fastbp.Adam(eps=-1), ValueError, "eps must be"),
        (lambda: fastbp.SGD().step(), RuntimeError, "has no parameters"),
    ],
)
def test_bad_arguments_of_optimizers(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_some_of_the_parameters_are_refused(device):
    model, _ = quadratic(device)
    with pytest.raises(ValueError, match="must be all of a model"):
        fastbp.SGD(model.parameters()[:2])


def test_bad_rate_of_a_function(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.SGD(model.parameters(), lr=lambda step: -1.0)
    gradient()
    with pytest.raises(ValueError, match=r"lr\(0\) must be at least 0"):
        optimizer.step()


def test_step_without_gradients(device):
    model, _ = quadratic(device)
    optimizer = fastbp.SGD(model.parameters())
    with pytest.raises(RuntimeError, match="no gradients are stored"):
        optimizer.step()
    assert optimizer.step_count == 0


def test_state_dict_continues_exactly(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        gradient()
        optimizer.step()
    other, other_gradient = quadratic(device)
    other.load_state_dict(model.state_dict())
    continued = fastbp.Adam(other.parameters(), lr=0.01)
    continued.load_state_dict(optimizer.state_dict())
    for step in (optimizer, continued):
        (gradient if step is optimizer else other_gradient)()
        step.step()
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_bad_state_changes_nothing(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.Adam(model.parameters())
    gradient()
    optimizer.step()
    before = optimizer.state_dict()
    for bad in ({}, before | {"exp_avg_sq": [1.0]}, before | {"step_count": -1}):
        with pytest.raises(ValueError, match="must"):
            optimizer.load_state_dict(bad)
    for key, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_model_and_optimizer_stay_together(device, duplicate):
    model, gradient = quadratic(device)
    optimizer = fastbp.Adam(model.parameters(), lr=0.01)
    gradient()
    optimizer.step()
    other, other_optimizer = duplicate((model, optimizer))
    gradient()
    other.flat_gradients = model.flat_gradients
    optimizer.step()
    other_optimizer.step()
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    assert other_optimizer.step_count == optimizer.step_count == 2
