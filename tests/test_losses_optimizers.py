"""Losses and the gradients of exactly them; optimizers against their equations."""

import copy
import json
import pickle

import numpy as np
import pytest

import fastbp
from fastbp import losses, optimizers, schedules, steps
from fastbp.data import Chunk
from fastbp.kernels import layout

LOSSES = list(losses.LOSSES.values())


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def prediction_for(loss, rng, rows, outputs):
    """Probabilities where the loss takes them, else any numbers."""
    shape = rows, outputs
    return rng.uniform(0.1, 0.9, shape) if isinstance(loss, fastbp.BCELoss) else rng.normal(size=shape)


def target_for(loss, rng, rows, outputs):
    if isinstance(loss, fastbp.CrossEntropyLoss):
        return rng.integers(0, outputs, rows)
    return rng.uniform(size=(rows, outputs)) if loss.target_range else rng.normal(size=(rows, outputs))


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
    np.testing.assert_allclose(fastbp.CrossEntropyLoss.probabilities(s, device=device), p)


def test_cross_entropy_does_not_overflow(device):
    value, gradient = fastbp.CrossEntropyLoss(device=device)([[1e4, -1e4], [-1e4, 1e4]], [0, 0])
    assert value == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", LOSSES)
def test_gradient_is_that_of_the_value(device, rng, make, weighted):
    loss = make(device=device)
    s, y = prediction_for(loss, rng, 5, 3), target_for(loss, rng, 5, 3)
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
    s, y = prediction_for(loss, rng, 5, 3), target_for(loss, rng, 5, 3)
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
    s, y = prediction_for(loss, rng, 5, 3).astype(dtype), target_for(loss, rng, 5, 3)
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
    assert np.isnan(loss(s, [0, 1] if make is fastbp.CrossEntropyLoss else np.zeros((2, 2)))[0])


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


# ------------------------------------------------------------------ labels, probabilities, weights
def test_huber_and_l1(device):
    s, y = np.array([[0.5, -3.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 4.0]])
    value, gradient = fastbp.HuberLoss(delta=2.0, device=device)(s, y)
    np.testing.assert_allclose(value, (0.125 + 2 * (3 - 1) + 0 + 2 * (4 - 1)) / 4)
    np.testing.assert_allclose(gradient, np.array([[0.5, -2], [0, -2]]) / 4)
    value, gradient = fastbp.L1Loss(device=device)(s, y)
    np.testing.assert_allclose(value, 7.5 / 4)
    np.testing.assert_allclose(gradient, np.array([[1, -1], [0, -1]]) / 4)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_labels_are_the_probabilities_of_a_one_hot_row(device, rng, smoothing):
    s, y = rng.normal(size=(6, 4)), np.array([0, 3, 1, 1, 2, 0])
    loss = fastbp.CrossEntropyLoss(label_smoothing=smoothing, device=device)
    for weight in (None, rng.uniform(1, 2, 6)):
        by_labels, by_rows = loss(s, y, weight), loss(s, np.eye(4)[y], weight)
        np.testing.assert_allclose(by_labels[0], by_rows[0], rtol=1e-14)
        np.testing.assert_allclose(by_labels[1], by_rows[1], rtol=1e-13, atol=1e-16)
    smoothed = (1 - smoothing) * np.eye(4)[y] + smoothing / 4
    log_p = s - np.log(np.exp(s).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss(s, y)[0], -(smoothed * log_p).sum(axis=1).mean())
    np.testing.assert_allclose(loss(s, y)[1], (np.exp(log_p) - smoothed) / 6, rtol=1e-12, atol=1e-15)


def test_class_weights_and_sample_weights_multiply(device, rng):
    s, y, w, c = rng.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0]), rng.uniform(0, 2, 5), [0.5, 2.0, 0.0]
    plain = fastbp.CrossEntropyLoss(device=device)
    weighted = fastbp.CrossEntropyLoss(class_weight=c, device=device)
    for sample_weight, row_weight in ((None, np.array(c)[y]), (w, w * np.array(c)[y])):
        value, gradient = weighted(s, y, sample_weight)
        expected = plain(s, y, row_weight)
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])
    p = rng.dirichlet(np.ones(3), 5)
    np.testing.assert_allclose(weighted(s, p, w)[0], plain(s, p, w * (p @ c))[0], rtol=1e-14)


def test_classes_of_weight_0_alone_are_an_error(device):
    loss = fastbp.CrossEntropyLoss(class_weight=[0, 1], device=device)
    with pytest.raises(ValueError, match="every row a weight of 0"):
        loss(np.ones((2, 2)), [0, 0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fastbp.HuberLoss(0), ValueError, "delta must be above 0, got 0"),
        (lambda: fastbp.HuberLoss(-1), ValueError, "delta must be at least 0"),
        (lambda: fastbp.CrossEntropyLoss(1.0), ValueError, "label_smoothing must be at least 0 and below 1"),
        (lambda: fastbp.CrossEntropyLoss(class_weight=[1, -1]), ValueError, r"class_weight\[1\] = -1"),
        (lambda: fastbp.CrossEntropyLoss(class_weight=[0, 0]), ValueError, "sum above 0"),
        (lambda: fastbp.CrossEntropyLoss(class_weight=[[1, 2]]), ValueError, "one weight a class"),
        (
            lambda: fastbp.CrossEntropyLoss(class_weight=[1, 2])(np.ones((1, 3)), [0]),
            ValueError,
            "each of the 3 outputs",
        ),
        (lambda: fastbp.CrossEntropyLoss()(np.ones((1, 2)), [[0, 1]]), ValueError, r"target.astype\(float\)"),
        (
            lambda: fastbp.CrossEntropyLoss()(np.ones((1, 2)), [[-0.5, 1.5]]),
            ValueError,
            r"0 to 1.*\[0, 0\] = -0.5",
        ),
        (lambda: fastbp.BCELoss()(np.ones((1, 2)), [[0, 2]]), ValueError, r"from 0 to 1, got target\[0, 1\] = 2"),
        (lambda: fastbp.BCEWithLogitsLoss()(np.ones((2, 1)), [0, -1]), ValueError, r"target\[1, 0\] = -1"),
        (lambda: fastbp.MSELoss(device="tpu"), ValueError, "device must be one of"),
        (lambda: fastbp.QuantileLoss(0), ValueError, "q must be above 0, got 0"),
        (lambda: fastbp.QuantileLoss(1.0), ValueError, "q must be between 0 and 1, both excluded, got 1.0"),
        (lambda: fastbp.BCEWithLogitsLoss(0), ValueError, "pos_weight must be above 0, got 0"),
        (lambda: fastbp.BCEWithLogitsLoss([1.0, 2.0]), TypeError, "pos_weight must be a real number"),
        (lambda: fastbp.PoissonLoss()(np.ones((2, 1)), [0, -1]), ValueError, r"from 0 to inf, got target\[1, 0\] = -1"),
        (lambda: fastbp.CrossEntropyLoss(ignore_index=1.5), TypeError, "ignore_index must be an integer"),
        (
            lambda: fastbp.CrossEntropyLoss(ignore_index=-1)(np.ones((3, 2)), [0, -1, -2]),
            ValueError,
            r"got target\[2\] = -2",
        ),
        (
            lambda: fastbp.CrossEntropyLoss(ignore_index=-1)(np.ones((2, 2)), [-1, -1]),
            ValueError,
            "every row a weight of 0",
        ),
    ],
)
def test_bad_arguments_of_losses_with_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "loss",
    [
        fastbp.HuberLoss(0.5), fastbp.CrossEntropyLoss(0.1, [1, 2.5], -100), fastbp.BCELoss(),
        fastbp.CrossEntropyLoss(), fastbp.BCEWithLogitsLoss(2.5), fastbp.BCEWithLogitsLoss(), fastbp.PoissonLoss(),
        fastbp.QuantileLoss(0.9),
    ],
)  # fmt: skip
def test_config_makes_the_same_loss(loss):
    other = losses.LOSSES[type(loss).__name__](**loss.config())
    assert repr(other) == repr(loss)
    assert json.loads(json.dumps(loss.config())) == loss.config()


def test_probabilities(device, rng):
    s = rng.normal(size=(4, 3)) * 1000
    p = fastbp.BCEWithLogitsLoss.probabilities(s, device=device)
    assert np.isfinite(p).all()
    p = fastbp.BCEWithLogitsLoss.probabilities(s / 1000, device=device)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-s / 1000)))
    assert fastbp.BCELoss.probabilities(s, device=device) is s


@pytest.mark.parametrize("loss", [fastbp.CrossEntropyLoss, fastbp.BCEWithLogitsLoss])
def test_probabilities_of_any_layout_and_dtype(device, rng, loss):
    s = rng.normal(size=(9, 20)).astype(np.float32)
    expected = loss.probabilities(s, device=device)
    assert expected.dtype == np.float32
    for given in (s.tolist(), s.astype(np.float64), np.asfortranarray(s), s[:, ::-1].copy()[:, ::-1]):
        p = loss.probabilities(given, device=device)
        assert p.dtype == np.asarray(given).dtype
        np.testing.assert_allclose(p, expected, rtol=1e-5)
    for given in (np.empty((0, 4)), np.empty((3, 0))):
        assert loss.probabilities(given, device=device).shape == given.shape
    with pytest.raises(ValueError, match=r"prediction must have shape \(n, features\), got \(20,\)"):
        loss.probabilities(s[0], device=device)


def test_every_loss_and_optimizer_of_the_contract_has_a_class():
    labels, matrix = np.zeros(2, np.int64), np.zeros((2, 2))
    assert {cls().kernel(target) for cls in losses.LOSSES.values() for target in (labels, matrix)} == set(layout.LOSSES)
    made = [cls() for cls in optimizers.OPTIMIZERS.values()]
    made += [fastbp.SGD(momentum=0.9), fastbp.SGD(momentum=0.9, nesterov=True), fastbp.Adam(amsgrad=True)]
    assert {optimizer.name for optimizer in made} == set(layout.OPTIMIZERS)
    for optimizer in made:
        assert len(optimizer.state_names) == layout.OPTIMIZER_STATES[optimizer.name]


def test_poisson_is_half_the_deviance_of_scikit_learn(device, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    s, y, w = rng.normal(size=(50, 1)), rng.poisson(2.0, 50), rng.uniform(0, 2, 50)
    loss = fastbp.PoissonLoss(device=device)
    for weight in (None, w):
        expected = metrics.mean_poisson_deviance(y, np.exp(s[:, 0]), sample_weight=weight) / 2
        np.testing.assert_allclose(loss(s, y, weight)[0], expected, rtol=1e-13)
    value, gradient = loss(np.log([[2.0], [5.0]]), [2, 5])  # the optimum
    np.testing.assert_allclose([value, *gradient[:, 0]], 0, atol=1e-14)
    assert loss([[-np.inf], [0.0]], [0, 1])[0] == 0  # a mean of 0 expects nothing


def test_quantile_is_the_pinball_loss_and_least_at_the_quantile(device, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    s, y, w = rng.normal(size=50), rng.normal(size=50), rng.uniform(0, 2, 50)
    loss = fastbp.QuantileLoss(0.8, device=device)
    for weight in (None, w):
        expected = metrics.mean_pinball_loss(y, s, sample_weight=weight, alpha=0.8)
        np.testing.assert_allclose(loss(s[:, None], y, weight)[0], expected, rtol=1e-13)
    slopes = [loss(np.full((50, 1), level), y)[1].sum() for level in (np.quantile(y, 0.75), np.quantile(y, 0.85))]
    assert slopes[0] < 0 < slopes[1]
    of_half, of_l1 = fastbp.QuantileLoss(0.5, device=device)(s[:, None], y), fastbp.L1Loss(device=device)(s[:, None], y)
    np.testing.assert_allclose(2 * of_half[0], of_l1[0], rtol=1e-14)
    np.testing.assert_allclose(2 * of_half[1], of_l1[1], rtol=1e-14)


def test_pos_weight_multiplies_the_term_of_the_positive_class(device, rng):
    s, y = rng.normal(size=(6, 3)), rng.integers(0, 2, (6, 3)).astype(float)
    p = 1 / (1 + np.exp(-s))
    value, gradient = fastbp.BCEWithLogitsLoss(pos_weight=4.0, device=device)(s, y)
    np.testing.assert_allclose(value, -(4 * y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
    np.testing.assert_allclose(gradient, (4 * y * (p - 1) + (1 - y) * p) / 18, rtol=1e-13)
    np.testing.assert_array_equal(
        fastbp.BCEWithLogitsLoss(pos_weight=1.0, device=device)(s, y)[1],
        fastbp.BCEWithLogitsLoss(device=device)(s, y)[1],
    )


@pytest.mark.parametrize("ignored", [-100, 7, 1])
def test_ignored_rows_do_not_count(device, rng, ignored):
    """Neither in the loss nor in its mean, with weights of classes and rows or without; other labels stay checked."""
    s, y, w = rng.normal(size=(9, 3)), rng.integers(0, 3, 9), rng.uniform(0.5, 2, 9)
    y[[0, 4, 8]] = ignored
    kept = y != ignored
    for arguments in ({}, {"class_weight": [0.5, 3.0, 2.0]}, {"label_smoothing": 0.2}):
        plain = fastbp.CrossEntropyLoss(device=device, **arguments)
        loss = fastbp.CrossEntropyLoss(ignore_index=ignored, device=device, **arguments)
        for weight, of_kept in ((None, None), (w, w[kept])):
            value, gradient = loss(s, y, weight)
            expected = plain(s[kept], y[kept], of_kept)
            np.testing.assert_allclose(value, expected[0], rtol=1e-14)
            np.testing.assert_allclose(gradient[kept], expected[1], rtol=1e-13)
            np.testing.assert_array_equal(gradient[~kept], 0)
    before = y.copy()
    loss(s, y)
    np.testing.assert_array_equal(y, before)


def test_ignored_and_weighted_rows_are_those_of_pytorch(device, rng):
    torch = pytest.importorskip("torch")
    s, y, c = rng.normal(size=(9, 3)), rng.integers(0, 3, 9), np.array([0.5, 3.0, 2.0])
    y[[0, 4, 8]] = -100
    for weight in (None, c):
        logits = torch.tensor(s, requires_grad=True)
        given = None if weight is None else torch.from_numpy(weight)
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), weight=given)  # ignore_index=-100
        expected.backward()
        value, gradient = fastbp.CrossEntropyLoss(0.0, weight, ignore_index=-100, device=device)(s, y)
        np.testing.assert_allclose(value, expected.item(), rtol=1e-13)
        np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_a_step_and_a_fit_leave_ignored_rows_out(device, rng):
    """A step with them has the bits of one without; in ``fit`` a batch that has nothing else counts for nothing."""
    X, y = rng.normal(size=(30, 5)), rng.integers(0, 3, 30)
    y[::3] = -100
    y[12:18] = -100
    kept = y != -100
    stepped, fitted = [], []
    for data, labels in ((X, y), (X[kept], y[kept])):
        make = fastbp.Linear(5, 7), fastbp.Tanh(), fastbp.Linear(7, 3)
        model = fastbp.Sequential(*make, dtype="float64", device=device, seed=0)
        value = model.train_step(data, labels, fastbp.CrossEntropyLoss(ignore_index=-100), fastbp.SGD(lr=0.1))
        stepped.append((value, model.flat_parameters))
    np.testing.assert_allclose(stepped[0][0], stepped[1][0], rtol=1e-13)
    np.testing.assert_allclose(stepped[0][1], stepped[1][1], rtol=1e-12)
    for labels in (y, np.where(kept, y, 0)):
        model = fastbp.Sequential(
            fastbp.Linear(5, 7), fastbp.Tanh(), fastbp.Linear(7, 3), dtype="float64", device=device, seed=0
        )
        loss = fastbp.CrossEntropyLoss(ignore_index=-100)
        weight = None if labels is y else kept.astype(float)
        model.fit(
            X, labels, loss=loss, optimizer=fastbp.Adam(), epochs=3, batch_size=6, shuffle=False, verbose=False,
            sample_weight=weight,
        )  # fmt: skip
        fitted.append(model.flat_parameters)
    np.testing.assert_array_equal(*fitted)


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


def trajectory(device, optimizer, update, steps=5):
    """Steps of an optimizer beside those of ``update(weights, gradient, t)``."""
    model, gradient = quadratic(device)
    optimizer.bind(model._parameters)
    weights = model.flat_parameters
    for t in range(1, steps + 1):
        weights = update(weights, gradient(), t)
        optimizer.step()
        np.testing.assert_allclose(model.flat_parameters, weights, rtol=1e-11, atol=1e-14)


class Update:
    """Steps written out, with an L2 penalty; what stands between steps is kept as attributes."""

    def __init__(self, l2=0.0):
        self.l2, self.v = l2, 0.0

    def sgd(self, w, g, t):
        return w - 0.1 * (g + self.l2 * w)

    def classical(self, w, g, t):
        self.v = 0.8 * self.v + (g + self.l2 * w)
        return w - 0.1 * self.v

    def nesterov(self, w, g, t):
        g = g + self.l2 * w
        self.v = 0.8 * self.v + g
        return w - 0.1 * (g + 0.8 * self.v)

    def average(self, w, g, t):
        self.v = 0.8 * self.v + 0.2 * (g + self.l2 * w)
        return w - 0.1 * self.v

    def rmsprop(self, w, g, t):
        g = g + self.l2 * w
        self.v = 0.8 * self.v + 0.2 * g**2
        return w - 0.1 * g / np.sqrt(self.v + 1e-3)

    def rmsprop_outside(self, w, g, t):
        g = g + self.l2 * w
        self.v = 0.8 * self.v + 0.2 * g**2
        return w - 0.1 * g / (np.sqrt(self.v) + 1e-3)

    def adam(self, w, g, t, decay=0.0):
        g = g + self.l2 * w
        m, v = self.v if self.v else (0.0, 0.0)
        self.v = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return (1 - 0.1 * decay) * w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def adam_hat(self, w, g, t):
        """With ε̂, beside √v."""
        g = g + self.l2 * w
        m, v = self.v if self.v else (0.0, 0.0)
        self.v = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return w - 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-3)

    def adamw(self, w, g, t):
        return self.adam(w, g, t, decay=0.3)

    def amsgrad(self, w, g, t):
        """With β₂ of 0.5, so that the average of squares falls."""
        g = g + self.l2 * w
        m, v, top = self.v if self.v else (0.0, 0.0, 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.5 * v + 0.5 * g**2
        self.v = m, v, np.maximum(top, v)
        return w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(self.v[2] / (1 - 0.5**t)) + 1e-8)

    def lion(self, w, g, t):
        direction = np.sign(0.8 * self.v + 0.2 * g)
        self.v = 0.6 * self.v + 0.4 * g
        return w - 0.1 * (direction + 0.3 * w)


@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize(
    ("cls", "arguments", "update"),
    [
        (fastbp.SGD, {}, Update.sgd),
        (fastbp.SGD, {"momentum": 0.8}, Update.classical),
        (fastbp.SGD, {"momentum": 0.8, "nesterov": True}, Update.nesterov),
        (fastbp.Momentum, {"beta": 0.8}, Update.average),
        (fastbp.RMSProp, {"beta": 0.8, "eps": 1e-3}, Update.rmsprop),
        (fastbp.RMSProp, {"beta": 0.8, "eps": 1e-3, "eps_inside_sqrt": False}, Update.rmsprop_outside),
        (fastbp.Adam, {}, Update.adam),
        (fastbp.Adam, {"eps": 1e-3, "eps_corrected": False}, Update.adam_hat),
        (fastbp.Adam, {"amsgrad": True, "betas": (0.9, 0.5)}, Update.amsgrad),
    ],
)
def test_optimizers_with_and_without_l2(device, cls, arguments, update, l2):
    step = Update(l2)
    trajectory(device, cls(lr=0.1, weight_decay=l2, **arguments), lambda w, g, t: update(step, w, g, t))


def test_amsgrad_keeps_its_largest_squares_in_files(device, tmp_path, rng):
    X, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    model = fastbp.Sequential(fastbp.Linear(3, 2), dtype="float64", device=device, seed=0)
    optimizer = fastbp.AdamW(lr=0.1, betas=(0.9, 0.5), amsgrad=True)
    for i in range(3):
        model.train_step(X[i * 10 :][:10], y[i * 10 :][:10], fastbp.MSELoss(), optimizer)
    state = optimizer.state_dict()
    assert (state["max_exp_avg_sq"] >= state["exp_avg_sq"]).all()
    assert (state["max_exp_avg_sq"] > state["exp_avg_sq"]).any()
    model.save(tmp_path / "model.npz", optimizer=optimizer)
    other = fastbp.load(tmp_path / "model.npz", device=device)
    assert other.optimizer.amsgrad
    for each, its in ((model, optimizer), (other, other.optimizer)):
        each.train_step(X[30:], y[30:], fastbp.MSELoss(), its)
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


def test_decay_of_adamw_is_apart_from_the_gradient(device):
    trajectory(device, fastbp.AdamW(lr=0.1, weight_decay=0.3), Update().adamw)
    assert fastbp.AdamW().weight_decay == 0.01


def test_lion_moves_by_the_learning_rate_and_decays_apart_from_the_gradient(device):
    trajectory(device, fastbp.Lion(lr=0.1, betas=(0.8, 0.6), weight_decay=0.3), Update().lion)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lion_leaves_0_and_keeps_nan(device, dtype):
    model = fastbp.Sequential(fastbp.Linear(3, 20), dtype=dtype, device=device, seed=0)
    optimizer = fastbp.Lion(model.parameters(), lr=0.5)
    model.flat_parameters = np.zeros(80)
    gradient = np.resize([0.0, -3.0, 1e-30, np.nan], 80)
    model.flat_gradients = gradient
    optimizer.step()
    np.testing.assert_array_equal(model.flat_parameters, np.resize([0.0, 0.5, -0.5, np.nan], 80))
    expected = (0.01 * gradient).astype(dtype)
    np.testing.assert_allclose(optimizer.state_dict()["exp_avg"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_norm_is_that_of_all_real_parameters(device, dtype):
    model = fastbp.Sequential(fastbp.Linear(3, 20), fastbp.Linear(20, 2), dtype=dtype, device=device, seed=0)
    optimizer = fastbp.SGD(model.parameters(), lr=1.0, clip_norm=0.5)
    before = model.flat_parameters
    model.flat_gradients = np.zeros_like(before)
    model._parameters.gradients.fill(np.nan)  # what padding holds
    gradient = np.linspace(-1, 1, before.size).astype(dtype)
    model.flat_gradients = gradient
    optimizer.step()
    moved = before - model.flat_parameters
    np.testing.assert_allclose(moved, 0.5 * gradient / np.linalg.norm(gradient), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.flat_gradients), 0.5, rtol=1e-6)
    before = model.flat_parameters
    model.flat_gradients = np.full(before.size, 0.5 / before.size)  # a smaller norm is left alone
    optimizer.step()
    np.testing.assert_allclose(model.flat_parameters, before - model.flat_gradients, atol=1e-7)


def test_clipped_steps_are_the_same_in_every_loop(device):
    x, y = np.random.default_rng(1).normal(size=(2, 12, 3))
    y = y[:, :2]
    results = []
    for how in ("own loop", "train_step", "fit"):
        model, _ = quadratic(device)
        loss, optimizer = fastbp.MSELoss(device=device), fastbp.Adam(model.parameters(), lr=0.1, clip_norm=0.01)
        if how == "fit":
            model.fit(x, y, loss=loss, optimizer=optimizer, batch_size=4, shuffle=False, verbose=False)
        for start in range(0, 12, 4) if how != "fit" else ():
            xb, yb = x[start : start + 4], y[start : start + 4]
            if how == "train_step":
                model.train_step(xb, yb, loss, optimizer)
            else:
                model.backward(loss(model(xb), yb)[1])
                optimizer.step()
        results.append(model.flat_parameters)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_reset_begins_anew(device):
    model, gradient = quadratic(device)
    optimizer = fastbp.Adam(model.parameters(), lr=0.1)
    gradient()
    optimizer.step()
    optimizer.reset()
    assert optimizer.step_count == 0
    assert not optimizer.state_dict()["exp_avg"].any()


@pytest.mark.parametrize(
    "optimizer",
    [
        fastbp.SGD(momentum=0.5, nesterov=True, clip_norm=1),
        fastbp.Momentum(beta=0.5),
        fastbp.RMSProp(eps_inside_sqrt=False, weight_decay=0.5),
        fastbp.AdamW(betas=(0.5, 0.6)),
        fastbp.Lion(betas=(0.5, 0.6), weight_decay=0.5),
    ],
)
def test_config_makes_the_same_optimizer(optimizer):
    assert repr(type(optimizer)(**optimizer.config())) == repr(optimizer)


def test_what_decides_the_kernel_is_fixed():
    optimizer = fastbp.SGD()
    for name in ("momentum", "nesterov", "clip_norm"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, 0.9)


# ------------------------------------------------------------------------------------- schedules
SCHEDULES = [
    fastbp.CosineSchedule(0.1, 10, 0.01),
    fastbp.OneCycleSchedule(0.1, 10),
    fastbp.CosLogSchedule(0.1, 10, cycles=3),
    fastbp.StepSchedule(0.1, 4, 0.5),
    fastbp.WarmupSchedule(0.1, 5),
    fastbp.WarmupSchedule(fastbp.CosineSchedule(0.1, 10), 5),
]


def test_schedules():
    cosine = fastbp.CosineSchedule(0.1, 10, final_lr=0.02)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10), cosine(99)], [0.1, 0.06, 0.02, 0.02])
    np.testing.assert_allclose([fastbp.StepSchedule(0.1, 3)(i) for i in (0, 2, 3, 6)], [0.1, 0.1, 0.01, 0.001])
    warmup = fastbp.WarmupSchedule(fastbp.StepSchedule(0.8, 1, 0.5), 4)
    np.testing.assert_allclose([warmup(i) for i in range(7)], [0.2, 0.4, 0.6, 0.8, 0.8, 0.4, 0.2])
    assert fastbp.WarmupSchedule(0.8, 4)(100) == 0.8
    cycle = fastbp.OneCycleSchedule(1.0, 20, rise=0.3)
    np.testing.assert_allclose([cycle(0), cycle(5), cycle(19), cycle(50)], [0.04, 1.0, 4e-6, 4e-6])
    rates = [cycle(i) for i in range(20)]
    assert np.argmax(rates) == 5
    np.testing.assert_allclose(rates[12], 4e-6 + (1 - 4e-6) * (1 + np.cos(np.pi * 7 / 14)) / 2)
    cycles = fastbp.CosLogSchedule(0.2, 150)
    ends = [round(150 * (2**k - 1) / 15) for k in range(5)]
    np.testing.assert_allclose([cycles(i) for i in [*ends, 200]], 0, atol=1e-12)
    np.testing.assert_allclose(max(cycles(i) for i in range(70, 150)), 0.2, rtol=1e-3)
    assert [fastbp.OneCycleSchedule(1.0, 1)(i) for i in range(2)] == [4e-6, 4e-6]
    assert all(0 <= fastbp.OneCycleSchedule(1.0, 3, rise=0.3)(i) <= 1 for i in range(5))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_can_be_kept(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert len({schedule, copy.deepcopy(schedule)}) == 1
    assert schedules.from_json(json.loads(json.dumps(schedules.to_json(schedule)))) == schedule
    assert eval(repr(schedule), vars(fastbp)) == schedule


def test_functions_cannot_be_kept():
    assert schedules.to_json(lambda step: 0.1) is None
    assert schedules.to_json(fastbp.WarmupSchedule(lambda step: 0.1, 5)) is None
    assert schedules.from_json(0.1) == schedules.to_json(0.1) == 0.1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fastbp.CosineSchedule(-1, 10), ValueError, "lr must be at least 0"),
        (lambda: fastbp.CosineSchedule(0.1, 0), ValueError, "steps must be at least 1"),
        (lambda: fastbp.OneCycleSchedule(0.1, 10, rise=0), ValueError, "rise must be above 0"),
        (lambda: fastbp.OneCycleSchedule(0.1, 10, rise=1.0), ValueError, "rise must be at least 0 and below 1"),
        (lambda: fastbp.OneCycleSchedule(0.1, 10, start_factor=0), ValueError, "start_factor must be above 0"),
        (lambda: fastbp.StepSchedule(0.1, 2.5), TypeError, "every must be an integer"),
        (lambda: fastbp.WarmupSchedule("0.1", 5), TypeError, "lr must be a real number"),
    ],
)
def test_bad_arguments_of_schedules(make, error, match):
    with pytest.raises(error, match=match):
        make()


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
        assert whole.shape == (10, layout.COEFFICIENTS)


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
        (lambda: fastbp.Adam(weight_decay=-1), ValueError, "weight_decay must be at least 0"),
        (lambda: fastbp.Adam(clip_norm=0), ValueError, "clip_norm must be above 0"),
        (lambda: fastbp.SGD(momentum=1), ValueError, "momentum must be at least 0 and below 1"),
        (lambda: fastbp.SGD(nesterov=True), ValueError, "nesterov=True needs a momentum above 0"),
        (lambda: fastbp.Momentum(beta=1), ValueError, "beta must be at least 0 and below 1"),
        (lambda: fastbp.RMSProp(eps_inside_sqrt=1), TypeError, "eps_inside_sqrt must be True or False"),
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


OPTIMIZERS = [
    fastbp.SGD,
    lambda: fastbp.SGD(momentum=0.9),
    lambda: fastbp.SGD(momentum=0.9, nesterov=True),
    fastbp.Momentum,
    fastbp.RMSProp,
    fastbp.Adam,
    lambda: fastbp.Adam(amsgrad=True),
]


def decaying_networks(device):
    """Two equal networks with weights that need padding, and biases far from 0."""
    layers = fastbp.Linear(3, 19), fastbp.Tanh(), fastbp.LayerNorm(19), fastbp.Linear(19, 2)
    model = fastbp.Sequential(*layers, dtype="float64", seed=0)
    for layer in (model[0], model[3]):
        layer.bias[...] = 2.0
    return [copy.deepcopy(model).to(device) for _ in range(2)]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_compiled_step_decays_weights_and_not_biases(make, weighted, device, rng):
    """As a step through stored gradients does, to which the decay is added."""
    if device == "cuda":
        pytest.skip("decay of its own for weights is on the host")
    (compiled, stored), (one, two), loss = decaying_networks(device), (make(), make()), fastbp.HalfSquaredErrorLoss()
    for optimizer, model in ((one, compiled), (two, stored)):
        optimizer.bind(model.network)
    x, y, decay = rng.normal(size=(21, 3)), rng.normal(size=(21, 2)), np.array([0.3, 0.0, 0.7])
    weight = rng.uniform(0.1, 2, 21) if weighted else None
    chunk, step_loss, step_hits = Chunk(compiled, loss, x, y, weight), np.empty(3), np.zeros(3, np.int64)
    run, add = steps.CompiledSteps(compiled, loss, one, chunk, 7), steps.StoredStep(stored, loss, two)
    run.start(np.arange(21), 3)
    assert run(np.arange(21), step_loss, step_hits, decay) == 3
    for i in range(3):
        rows = slice(7 * i, 7 * i + 7)
        value, _ = add.add(x[rows], y[rows], weight if weight is None else weight[rows])
        assert value == pytest.approx(step_loss[i], rel=1e-12)
        stored.network.add_decay(decay[i])
        add.count = 0
        two.step()
        stored.network.discard_gradients()
    np.testing.assert_allclose(compiled.flat_parameters, stored.flat_parameters, rtol=1e-11)


def test_decay_and_squares_are_of_the_weights_of_linear_layers(device):
    model = decaying_networks(device)[0]
    weights = [model[0].weight, model[3].weight]
    assert model.network.weights_squared() == pytest.approx(sum((weight**2).sum() for weight in weights), rel=1e-12)
    model.flat_gradients = np.ones(model.network.count)
    model.network.add_decay(0.5)
    for layer in (model[0], model[3]):
        np.testing.assert_allclose(layer.grad_weight, 1 + 0.5 * layer.weight)
        np.testing.assert_array_equal(layer.grad_bias, 1)
    np.testing.assert_array_equal(model[2].grad_weight, 1)
