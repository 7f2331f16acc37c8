"""Layers alone: the equations of the linear layer and of the activations, and what a layer owns."""

import copy
import pickle

import numpy as np
import pytest

import fastbp
from fastbp import layers

ACTIVATIONS = [fastbp.Identity, fastbp.ReLU, fastbp.Tanh, fastbp.Sigmoid]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def linear(device):
    layer = fastbp.Linear(2, 2, dtype="float64", device=device)
    layer.weight = [[0.5, -1.0], [1.5, 0.0]]
    layer.bias = [0.1, 0.2]
    return layer


def test_linear_forward_of_the_notes(linear):
    np.testing.assert_allclose(linear.forward([[1, 2]]), [[3.6, -0.8]], rtol=1e-15)


def test_linear_bias_gradient_is_the_sum_of_rows(linear):
    linear.forward(np.ones((3, 2)))
    linear.backward([[0.1, -0.2], [0.3, -0.1], [0.2, 0.0]])
    np.testing.assert_allclose(linear.grad_bias, [0.6, -0.3], rtol=1e-15)


def test_linear_gradients_of_the_notes(linear):
    linear.forward([[1, 2]])
    grad_input = linear.backward([[1, 2]])
    np.testing.assert_array_equal(linear.grad_weight, [[1, 2], [2, 4]])
    np.testing.assert_allclose(grad_input, [[1, 2]] @ linear.weight.T)


def test_update_parameters_is_gradient_descent(linear):
    weight, bias = linear.weight.copy(), linear.bias.copy()
    linear.forward([[1, 2]])
    linear.backward([[1, 2]])
    linear.update_parameters(learning_rate=0.1)
    np.testing.assert_allclose(linear.weight, weight - 0.1 * np.array([[1, 2], [2, 4]]), rtol=1e-15)
    np.testing.assert_allclose(linear.bias, bias - [0.1, 0.2], rtol=1e-15)


def test_backward_overwrites_unless_told_to_accumulate(linear):
    linear.forward([[1, 2]])
    linear.backward([[1, 2]])
    linear.backward([[1, 2]])
    np.testing.assert_array_equal(linear.grad_weight, [[1, 2], [2, 4]])
    linear.backward([[1, 2]], accumulate=True)
    np.testing.assert_array_equal(linear.grad_weight, [[2, 4], [4, 8]])
    np.testing.assert_array_equal(linear.grad_bias, [2, 4])


def test_row_and_column_conventions_give_the_same_numbers(device, rng):
    layer = fastbp.Linear(3, 4, dtype="float64", device=device, seed=0)
    x, grad = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    z = layer.forward(x)
    grad_x = layer.backward(grad)
    w = layer.weight.T  # (out, in); examples are columns
    np.testing.assert_allclose(z.T, w @ x.T + layer.bias[:, None] * np.ones((1, 5)))
    np.testing.assert_allclose(grad_x.T, w.T @ grad.T)
    np.testing.assert_allclose(layer.grad_weight.T, grad.T @ x)
    np.testing.assert_allclose(layer.grad_bias[:, None], grad.T @ np.ones((5, 1)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_layer_hides_its_padding(device, rng, dtype):
    layer = fastbp.Linear(37, 300, dtype=dtype, device=device, seed=0)
    assert layer.weight.shape == (37, 300)
    assert layer.bias.shape == (300,)
    x = rng.normal(size=(9, 37)).astype(dtype)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(layer(x), x @ layer.weight + layer.bias, rtol=tolerance, atol=tolerance)
    assert layer(x).dtype == dtype


def test_without_bias(device):
    layer = fastbp.Linear(3, 2, bias=False, device=device, seed=0)
    assert layer.bias is None
    np.testing.assert_array_equal(layer(np.zeros((2, 3))), 0)
    layer.backward(np.ones((2, 2)))
    assert layer.grad_bias is None
    with pytest.raises(ValueError, match="bias=False"):
        layer.bias = [0, 0]


def test_default_initialisation_is_pytorchs(device):
    layer = fastbp.Linear(100, 200, device=device, seed=0)
    for values in (layer.weight, layer.bias):
        assert np.abs(values).max() <= 0.1
        assert np.abs(values).max() > 0.09
        assert abs(values.std() - 0.1 / np.sqrt(3)) < 0.005


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("zeros", 0),
        ("lecun_normal", np.sqrt(1 / 400)),
        ("lecun_uniform", np.sqrt(1 / 400)),
        ("xavier_normal", np.sqrt(2 / 700)),
        ("xavier_uniform", np.sqrt(2 / 700)),
        ("kaiming_normal", np.sqrt(2 / 400)),
        ("kaiming_uniform", np.sqrt(2 / 400)),
        (lambda rng, fan_in, fan_out: rng.normal(0, 3, (fan_in, fan_out)), 3),
    ],
)
def test_initialisers(device, init, deviation):
    layer = fastbp.Linear(400, 300, init=init, device=device, seed=0)
    assert abs(layer.weight.std() - deviation) <= 0.02 * deviation
    assert not layer.bias.any()


def test_same_seed_same_values(device):
    first, second = (fastbp.Linear(5, 4, device=device, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_setting_copies_and_never_changes_the_argument(device):
    layer = fastbp.Linear(2, 2, device=device)
    values = np.ones((2, 2), np.float32)
    layer.weight = values
    values[:] = 7
    np.testing.assert_array_equal(layer.weight, 1)
    layer.weight = values
    layer.weight[:] = 3
    np.testing.assert_array_equal(values, 7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_alone(device, rng, activation, dtype):
    z = rng.normal(size=(7, 5)).astype(dtype)
    value, derivative = {
        fastbp.Identity: (lambda z: z, lambda z: np.ones_like(z)),
        fastbp.ReLU: (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
        fastbp.Tanh: (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        fastbp.Sigmoid: (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    }[activation]
    layer = activation(device=device)
    out = layer.forward(z)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, value(z), rtol=1e-5)
    out[:] = 0  # what backward needs is the layer's own
    grad = rng.normal(size=(7, 5)).astype(dtype)
    np.testing.assert_allclose(layer.backward(grad), grad * derivative(z), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: fastbp.LeakyReLU(), "LeakyReLU(negative_slope=0.01)"),
        (lambda: fastbp.LeakyReLU(0), "LeakyReLU(negative_slope=0.0)"),
        (lambda: fastbp.ELU(), "ELU(alpha=1.0)"),
        (lambda: fastbp.GELU(), "GELU(approximate='none')"),
        (lambda: fastbp.GELU(approximate="tanh"), "GELU(approximate='tanh')"),
        (lambda: fastbp.SELU(), "SELU()"),
    ],
)
def test_arguments_of_activations_are_kept(make, code):
    layer = make()
    assert repr(layer) == code
    assert repr(layers.LAYERS[type(layer).__name__](**layer.config())) == code


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fastbp.LeakyReLU(-0.1), ValueError, "negative_slope must be at least 0"),
        (lambda: fastbp.LeakyReLU(np.nan), ValueError, "negative_slope must be"),
        (lambda: fastbp.LeakyReLU("0.1"), TypeError, "negative_slope must be a real number"),
        (lambda: fastbp.ELU(-1), ValueError, "alpha must be at least 0"),
        (lambda: fastbp.GELU("erf"), ValueError, "approximate must be one of 'none', 'tanh'"),
    ],
)
def test_bad_arguments_of_activations(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_parameter_of_an_activation_reaches_the_kernels_of_a_model(device):
    linear = fastbp.Linear(1, 1, bias=False)
    linear.weight = [[1]]
    model = fastbp.Sequential(linear, fastbp.LeakyReLU(0.25), fastbp.ELU(2.0), dtype="float64", device=device)
    x = np.array([[-4.0], [0.5]])
    expected = [[2 * np.expm1(-1)], [0.5]]
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-15)
    np.testing.assert_allclose(model(x), expected, rtol=1e-15)
    np.testing.assert_allclose(model.backward(np.ones((2, 1))), [[2 * np.exp(-1) * 0.25], [1]], rtol=1e-15)


def test_relu_has_derivative_0_at_0(device):
    layer = fastbp.ReLU(device=device)
    layer(np.zeros((1, 3)))
    np.testing.assert_array_equal(layer.backward(np.ones((1, 3))), 0)


@pytest.mark.parametrize("make", [lambda d: fastbp.Linear(2, 2, device=d), lambda d: fastbp.Tanh(device=d)])
def test_backward_before_forward(device, make):
    with pytest.raises(RuntimeError, match=r"forward\(\) before"):
        make(device).backward(np.ones((1, 2)))


def test_gradients_before_backward(device):
    layer = fastbp.Linear(2, 2, device=device)
    with pytest.raises(RuntimeError, match="no gradients are stored"):
        _ = layer.grad_weight
    with pytest.raises(RuntimeError, match="no gradients are stored"):
        layer.update_parameters(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"in_features": 0, "out_features": 2}, ValueError, "in_features must be at least 1, got 0"),
        ({"in_features": 2.0, "out_features": 2}, TypeError, "in_features must be an integer"),
        ({"in_features": 2, "out_features": True}, TypeError, "out_features must be an integer"),
        ({"in_features": 2, "out_features": 2, "bias": 1}, TypeError, "bias must be True or False"),
        ({"in_features": 2, "out_features": 2, "init": "nought"}, ValueError, "init must be one of 'default'"),
        ({"in_features": 2, "out_features": 2, "dtype": "float16"}, ValueError, '"float32" or "float64"'),
        ({"in_features": 2, "out_features": 2, "device": "tpu"}, ValueError, "device must be one of 'cpu'"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        fastbp.Linear(**arguments)


def test_bad_batches(linear):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), got \(4, 3\)"):
        linear(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"x\[None, :\]"):
        linear(np.ones(2))
    linear(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"grad_output must have shape \(4, 2\), got \(3, 2\)"):
        linear.backward(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"weight must have shape \(2, 2\), got \(2,\)"):
        linear.weight = [1, 2]


def test_init_of_another_shape(device):
    layer = fastbp.Linear(2, 3, init=lambda rng, fan_in, fan_out: np.zeros((fan_out, fan_in)), device=device)
    with pytest.raises(ValueError, match=r"init returns must have shape \(2, 3\)"):
        _ = layer.weight


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_independent(linear, duplicate):
    other = duplicate(linear)
    np.testing.assert_array_equal(other.weight, linear.weight)
    other.weight = np.zeros((2, 2))
    assert linear.weight.any()
    np.testing.assert_allclose(linear([[1, 2]]), [[3.6, -0.8]])


def test_every_activation_of_the_contract_has_a_class():
    from fastbp.kernels import layout

    classes = [cls for cls in layers.LAYERS.values() if issubclass(cls, layers.Activation)]
    assert {cls().name for cls in classes} | {fastbp.GELU("tanh").name} == set(layout.ACTIVATIONS)
