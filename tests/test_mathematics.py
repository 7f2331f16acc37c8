"""The mathematics, item by item: each test is named after the section and item of the notes it shows.

Sections: 1 the linear layer, 2 activations, 3 losses, 4 backpropagation, 5 worked networks, 6 optimizers, 8 slips
of the notes. A batch has one example a row. Everything goes through the public API, in float64, on every backend;
the expected side is written out by hand.
"""

import math

import numpy as np
import pytest

import fastbp


def sigma(z):
    return 1 / (1 + np.exp(-z))


def cdf(z):
    """The normal distribution function."""
    return np.vectorize(math.erfc, otypes=[float])(-z / math.sqrt(2)) / 2


def tanh_argument(z):
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


ACTIVATIONS = {
    "identity": (fastbp.Identity, lambda z: z, np.ones_like),
    "relu": (fastbp.ReLU, lambda z: np.maximum(0, z), lambda z: (z > 0) * 1.0),
    "tanh": (fastbp.Tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (fastbp.Sigmoid, sigma, lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "leaky_relu": (
        lambda **device: fastbp.LeakyReLU(0.2, **device),
        lambda z: np.where(z > 0, z, 0.2 * z),
        lambda z: np.where(z > 0, 1, 0.2),
    ),
    "elu": (
        lambda **device: fastbp.ELU(1.5, **device),
        lambda z: np.where(z > 0, z, 1.5 * np.expm1(z)),
        lambda z: np.where(z > 0, 1, 1.5 * np.exp(z)),
    ),
    "selu": (
        fastbp.SELU,
        lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)),
        lambda z: 1.0507009873554805 * np.where(z > 0, 1, 1.6732632423543772 * np.exp(z)),
    ),
    "gelu": (
        fastbp.GELU,
        lambda z: z * cdf(z),
        lambda z: cdf(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (
        lambda **device: fastbp.GELU("tanh", **device),
        lambda z: z / 2 * (1 + np.tanh(tanh_argument(z))),
        lambda z: (
            (1 + np.tanh(tanh_argument(z))) / 2
            + z / 2 * (1 - np.tanh(tanh_argument(z)) ** 2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
        ),
    ),
    "silu": (fastbp.SiLU, lambda z: z * sigma(z), lambda z: sigma(z) + z * sigma(z) * sigma(-z)),
    "mish": (
        fastbp.Mish,
        lambda z: z * np.tanh(np.log(1 + np.exp(z))),
        lambda z: np.tanh(np.log(1 + np.exp(z))) + z * sigma(z) / np.cosh(np.log(1 + np.exp(z))) ** 2,
    ),
    "softplus": (fastbp.Softplus, lambda z: np.log(1 + np.exp(z)), sigma),
}
LOSSES = {  # and what a target is
    "half_squared_error": (fastbp.HalfSquaredErrorLoss, "real"),
    "mean_squared_error": (fastbp.MSELoss, "real"),
    "l1": (fastbp.L1Loss, "real"),
    "huber": (lambda **device: fastbp.HuberLoss(0.7, **device), "real"),
    "cross_entropy": (fastbp.CrossEntropyLoss, "labels"),
    "soft_cross_entropy": (fastbp.CrossEntropyLoss, "distributions"),
    "smooth_cross_entropy": (lambda **device: fastbp.CrossEntropyLoss(0.2, **device), "labels"),
    "weighted_cross_entropy": (lambda **device: fastbp.CrossEntropyLoss(0, [1, 2, 0.5], **device), "distributions"),
    "binary_cross_entropy": (fastbp.BCELoss, "probabilities"),
    "binary_cross_entropy_with_logits": (fastbp.BCEWithLogitsLoss, "probabilities"),
    "weighted_binary_cross_entropy": (lambda **device: fastbp.BCEWithLogitsLoss(3.0, **device), "probabilities"),
    "poisson": (fastbp.PoissonLoss, "probabilities"),
    "quantile": (lambda **device: fastbp.QuantileLoss(0.3, **device), "real"),
}
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, **CLOSE)


def rng():
    return np.random.default_rng(5)


def linear(weight, bias=None, **where):
    """A linear layer with these values."""
    weight = np.array(weight, dtype=float)
    layer = fastbp.Linear(*weight.shape, bias=bias is not None, **where)
    layer.weight = weight
    if bias is not None:
        layer.bias = np.array(bias, dtype=float)
    return layer


@pytest.fixture
def where(device):
    """Where and in what a layer or a model computes."""
    return {"device": device, "dtype": "float64"}


def target_for(kind, rows):
    """A target of three columns, or labels of three classes."""
    if kind == "labels":
        return np.array([0, 2, 1, 1, 0])[:rows]
    if kind == "distributions":
        return rng().dirichlet(np.ones(3), rows)
    return rng().uniform(size=(rows, 3)) if kind == "probabilities" else rng().standard_normal((rows, 3))


def onehot(labels, classes):
    return np.eye(classes)[labels]


def softmax(s):
    return np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)


# ============================================================================= 1. The linear layer
def test_1_forward_worked(where):
    layer = linear([[0.5, -1.0], [1.5, 0.0]], [0.1, 0.2], **where)
    close(layer.forward(np.array([[1.0, 2.0]])), [[3.6, -0.8]])


def test_1_grad_bias_worked(where):
    layer = linear(np.ones((2, 2)), [0, 0], **where)
    layer.forward(np.zeros((3, 2)))
    layer.backward(np.array([[0.1, -0.2], [0.3, -0.1], [0.2, 0.0]]))
    close(layer.grad_bias, [0.6, -0.3])


def test_1_grad_weight_worked(where):
    layer = linear(np.zeros((2, 2)), [0, 0], **where)
    layer.forward(np.array([[1.0, 2.0]]))
    layer.backward(np.array([[1.0, 2.0]]))
    close(layer.grad_weight, [[1, 2], [2, 4]])


@pytest.mark.parametrize("bias", [True, False])
def test_1_interface(where, bias):
    """``init``, ``forward``, ``backward``, ``update_parameters``."""
    x, grad_output = rng().standard_normal((7, 3)), rng().standard_normal((7, 5))
    layer = fastbp.Linear(3, 5, bias=bias, **where)
    weight, offset = layer.weight.copy(), layer.bias.copy() if bias else 0
    assert weight.shape == (3, 5)
    close(layer.forward(x), x @ weight + offset)
    close(layer.backward(grad_output), grad_output @ weight.T)
    close(layer.grad_weight, x.T @ grad_output)
    layer.update_parameters(0.1)
    close(layer.weight, weight - 0.1 * x.T @ grad_output)
    if bias:
        assert offset.shape == (5,)
        close(layer.grad_bias, grad_output.sum(axis=0))
        close(layer.bias, offset - 0.1 * grad_output.sum(axis=0))


def test_1_backward_overwrites_and_accumulates_on_demand(where):
    layer, x = linear([[1.0, 2.0]], [0, 0], **where), np.array([[3.0], [4.0]])
    for accumulate, times in ((False, 1), (False, 1), (True, 2), (True, 3)):
        layer.forward(x)
        layer.backward(np.ones((2, 2)), accumulate=accumulate)
        close(layer.grad_weight, [[7.0 * times, 7.0 * times]])
        close(layer.grad_bias, [2.0 * times, 2.0 * times])


def test_1_column_convention(where):
    """Examples as columns, ``Z = W X + b u^T``, gives the transposes of the same numbers."""
    W, X, b, dZ = (rng().standard_normal(shape) for shape in ((5, 3), (3, 7), (5, 1), (5, 7)))
    u = np.ones((7, 1))
    layer = linear(W.T, b[:, 0], **where)
    close(layer.forward(X.T), (W @ X + b @ u.T).T)
    close(layer.backward(dZ.T), (W.T @ dZ).T)
    close(layer.grad_weight, (dZ @ X.T).T)
    close(layer.grad_bias, (dZ @ u)[:, 0])


# ================================================================================= 2. Activations
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_2_activation_and_derivative(device, name):
    cls, value, derivative = ACTIVATIONS[name]
    layer, z = cls(device=device), np.linspace(-6, 6, 77).reshape(7, 11)
    grad = rng().standard_normal(z.shape)
    close(layer.forward(z), value(z))
    close(layer.backward(grad), grad * derivative(z))


def test_2_sigmoid_by_its_output(device):
    layer, z = fastbp.Sigmoid(device=device), np.array([[-2.0, 0.0, 3.0]])
    out = layer.forward(z)
    close(out, 1 / (1 + np.exp(-z)))
    close(layer.backward(np.ones((1, 3))), out * (1 - out))


def test_2_tanh_by_its_output(device):
    layer, z = fastbp.Tanh(device=device), np.array([[-2.0, 0.0, 3.0]])
    out = layer.forward(z)
    close(layer.backward(np.ones((1, 3))), 1 - out**2)


def test_2_relu_derivative_at_zero_is_zero(device):
    layer = fastbp.ReLU(device=device)
    close(layer.forward(np.array([[-1.0, -0.0, 0.0, 2.0]])), [[0, 0, 0, 2]])
    close(layer.backward(np.ones((1, 4))), [[0, 0, 0, 1]])


# ====================================================================================== 3. Losses
def test_3_linear_regression(device):
    """``1/2 ||y - s||^2`` summed over outputs, mean over the batch; ``-(y - s)/n``."""
    y, s = rng().standard_normal((2, 6, 3))
    value, grad = fastbp.HalfSquaredErrorLoss(device=device)(s, y)
    close(value, sum(0.5 * np.sum((y[i] - s[i]) ** 2) for i in range(6)) / 6)
    close(grad, -(y - s) / 6)


def test_3_mean_squared_error(device):
    """``(1/N) ||p - y||^2`` over all ``N = n out`` elements; ``(2/N)(p - y)``."""
    y, p = rng().standard_normal((2, 6, 3))
    value, grad = fastbp.MSELoss(device=device)(p, y)
    close(value, np.sum((p - y) ** 2) / 18)
    close(grad, 2 / 18 * (p - y))


def test_3_mean_squared_error_worked(device):
    """Batch 3, one output: ``(2/3)(p - y)``."""
    p, y = np.array([[1.0], [2.0], [4.0]]), np.array([[0.5], [3.0], [1.0]])
    value, grad = fastbp.MSELoss(device=device)(p, y)
    close(value, (0.25 + 1 + 9) / 3)
    close(grad, [[2 / 3 * 0.5], [2 / 3 * -1], [2 / 3 * 3]])


def test_3_softmax_cross_entropy(device):
    """``-(1/n) sum log p_y``; ``(p_ik - 1{k = y_i})/n``."""
    s, labels = rng().standard_normal((6, 4)), np.array([0, 1, 2, 3, 1, 1])
    p = softmax(s)
    value, grad = fastbp.CrossEntropyLoss(device=device)(s, labels)
    close(value, -np.mean([np.log(p[i, labels[i]]) for i in range(6)]))
    close(grad, (p - onehot(labels, 4)) / 6)


def test_3_softmax_cross_entropy_of_probabilities(device):
    """``-(1/n) sum_i sum_k y_ik log p_ik``; ``(p_ik - y_ik)/n`` where the y of a row have a sum of 1."""
    s, y = rng().standard_normal((6, 4)), rng().dirichlet(np.ones(4), 6)
    p = softmax(s)
    value, grad = fastbp.CrossEntropyLoss(device=device)(s, y)
    close(value, -np.sum(y * np.log(p)) / 6)
    close(grad, (p - y) / 6)


def test_3_logistic_regression_on_logits(device):
    """``-(y s - log(1 + e^s))``, ``dL/ds = -(y - p)``; finite for any s."""
    s, y = rng().standard_normal((6, 1)), np.array([[0], [1], [1], [0], [1], [0.25]])
    value, grad = fastbp.BCEWithLogitsLoss(device=device)(s, y)
    close(value, np.mean(-(y * s - np.log(1 + np.exp(s)))))
    close(grad, -(y - sigma(s)) / 6)
    s, y = np.array([[1e3], [1e3], [-1e3], [-1e3]]), np.array([[1], [0], [1], [0]])
    value, grad = fastbp.BCEWithLogitsLoss(device=device)(s, y)
    close(value, (0 + 1e3 + 1e3 + 0) / 4)
    close(grad, np.array([[0], [1], [-1], [0]]) / 4)


def test_3_logistic_regression_on_probabilities(device):
    """``-(y ln p + (1-y) ln(1-p))``, ``-(y/p - (1-y)/(1-p))/N``."""
    p, y = rng().uniform(0.05, 0.95, (3, 2)), np.array([[0, 1], [1, 0], [0.25, 1]])
    value, grad = fastbp.BCELoss(device=device)(p, y)
    close(value, -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    close(grad, -(y / p - (1 - y) / (1 - p)) / 6)


@pytest.mark.parametrize(("p", "y", "expected"), [(0, 0, 0), (1, 1, 0), (0, 1, 100), (1, 0, 100)])
def test_3_log_loss_is_finite_at_0_and_1(device, p, y, expected):
    """Logarithms are not below -100; the gradient divides by no less than 1e-12: what PyTorch gives."""
    value, grad = fastbp.BCELoss(device=device)(np.array([[float(p)]]), np.array([[y]]))
    close(value, expected)
    close(grad, [[(p - y) / 1e-12]])


def test_3_both_forms_of_the_log_loss_agree(device):
    s, y = rng().standard_normal((5, 2)), rng().uniform(size=(5, 2))
    on_logits, on_probabilities = fastbp.BCEWithLogitsLoss(device=device), fastbp.BCELoss(device=device)
    close(on_logits(s, y)[0], on_probabilities(sigma(s), y)[0])
    close(on_logits(s, y)[1], on_probabilities(sigma(s), y)[1] * sigma(s) * sigma(-s))


@pytest.mark.parametrize("name", LOSSES)
def test_3_weighted_mean(device, name):
    """With weights every mean over rows is ``sum w_i l_i / sum w_i``, and so is its gradient."""
    make, kind = LOSSES[name]
    s, y, w = rng().uniform(0.1, 0.9, (5, 3)), target_for(kind, 5), np.array([1.0, 0.5, 0.0, 2.0, 3.0])
    loss = make(device=device)
    value, grad = loss(s, y, sample_weight=w)
    rows = [loss(s[i : i + 1], y[i : i + 1]) for i in range(5)]
    if name == "weighted_cross_entropy":
        w = w * (y @ [1, 2, 0.5])
    close(value, sum(w[i] * rows[i][0] for i in range(5)) / w.sum())
    close(grad, np.concatenate([w[i] * rows[i][1] for i in range(5)]) / w.sum())


@pytest.mark.parametrize("name", LOSSES)
def test_3_gradient_is_of_exactly_that_value(device, name):
    make, kind = LOSSES[name]
    loss, s, y = make(device=device), rng().uniform(0.1, 0.9, (5, 3)), target_for(kind, 5)
    np.testing.assert_allclose(loss(s, y)[1], central_differences(lambda: loss(s, y)[0], s), rtol=1e-6, atol=1e-9)


def central_differences(value, array, eps=1e-6):
    """The derivative of ``value()`` with respect to every element of ``array``, which is moved in place."""
    derivative = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + eps
        above = value()
        array[index] = kept - eps
        derivative[index] = (above - value()) / (2 * eps)
        array[index] = kept
    return derivative


# ====================================================================== 4. Backpropagation through L
def chain(names, widths, where, **options):
    layers = []
    for name, fan_in, fan_out in zip(names, widths, widths[1:], strict=False):
        layers += [fastbp.Linear(fan_in, fan_out), ACTIVATIONS[name][0]()]
    return fastbp.Sequential(*layers, seed=3, **where, **options)


def parameters_of(model):
    """[(W, b)] of the linear layers."""
    return [(layer.weight.copy(), layer.bias.copy()) for layer in model.layers if isinstance(layer, fastbp.Linear)]


def gradients_of(model):
    return [(layer.grad_weight, layer.grad_bias) for layer in model.layers if isinstance(layer, fastbp.Linear)]


def test_4_recurrences(where):
    """``delta^L = dJ/dA^L * g'(Z^L)``, ``delta^l = (delta^(l+1) W^(l+1)^T) * g'(Z^l)``."""
    names, n = ("sigmoid", "relu", "tanh", "identity"), 6
    model = chain(names, (3, 5, 4, 6, 2), where)
    x, upstream = rng().standard_normal((n, 3)), rng().standard_normal((n, 2))
    output = model(x)
    grad_x = model.backward(upstream)

    A, Z, parameters = [x], [], parameters_of(model)
    for name, (W, b) in zip(names, parameters, strict=True):
        Z.append(A[-1] @ W + b)
        A.append(ACTIVATIONS[name][1](Z[-1]))
    close(output, A[-1])
    delta = upstream * ACTIVATIONS[names[-1]][2](Z[-1])
    gradients = gradients_of(model)
    for i in reversed(range(4)):
        close(gradients[i][0], A[i].T @ delta)
        close(gradients[i][1], np.ones(n) @ delta)
        delta = delta @ parameters[i][0].T * (ACTIVATIONS[names[i - 1]][2](Z[i - 1]) if i else 1)
    close(grad_x, delta)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_4_vector_jacobian_product_in_rows(where, name):
    """``dL/dH = (G * R') W^T`` and ``dL/dW = H^T (G * R')``."""
    model = chain([name], (3, 4), where)
    H, G = rng().standard_normal((5, 3)), rng().standard_normal((5, 4))
    ((W, b),) = parameters_of(model)
    R = ACTIVATIONS[name][2](H @ W + b)
    model(H)
    close(model.backward(G), (G * R) @ W.T)
    close(gradients_of(model)[0][0], H.T @ (G * R))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_4_vector_jacobian_product_in_columns(where, name):
    """One example: ``dL/dh_(l-1) = W^T (r' * dL/dh)`` and ``dL/dW = diag(r') dL/dh h_(l-1)^T``, W (out, in)."""
    model = chain([name], (3, 4), where)
    h, upstream = rng().standard_normal((3, 1)), rng().standard_normal((4, 1))
    ((weight, bias),) = parameters_of(model)
    W = weight.T
    r = ACTIVATIONS[name][2](W @ h + bias[:, None])
    model(h.T)
    close(model.backward(upstream.T), (W.T @ (r * upstream)).T)
    close(gradients_of(model)[0][0], (np.diag(r[:, 0]) @ upstream @ h.T).T)


def test_4_layers_alone_make_the_same_chain(where):
    """The layers one by one, each ``backward`` fed with what the one above returned."""
    model = chain(("tanh", "relu", "sigmoid"), (3, 5, 4, 2), where)
    alone = []
    for (W, b), name in zip(parameters_of(model), ("tanh", "relu", "sigmoid"), strict=True):
        alone += [linear(W, b, **where), ACTIVATIONS[name][0](device=where["device"])]
    x, upstream = rng().standard_normal((6, 3)), rng().standard_normal((6, 2))
    out, grad = x, upstream
    for layer in alone:
        out = layer.forward(out)
    for layer in reversed(alone):
        grad = layer.backward(grad)
    close(model(x), out)
    close(model.backward(upstream), grad)
    for (grad_weight, grad_bias), layer in zip(gradients_of(model), alone[::2], strict=True):
        close(grad_weight, layer.grad_weight)
        close(grad_bias, layer.grad_bias)


# With a bias every pair; without one, by default, some of the losses for each activation.
@pytest.mark.parametrize(
    ("activation", "loss_name", "bias"),
    [
        pytest.param(activation, loss, bias, marks=[pytest.mark.long] * (not bias and (i + j) % 4 > 0))
        for i, activation in enumerate(ACTIVATIONS)
        for j, loss in enumerate(LOSSES)
        for bias in (True, False)
    ],
)
def test_4_finite_differences(where, activation, loss_name, bias):
    """Every parameter and every input, central differences with a step of 1e-6."""
    make, kind = LOSSES[loss_name]
    hidden = ACTIVATIONS[activation][0]
    last = fastbp.Sigmoid if loss_name == "binary_cross_entropy" else hidden
    model = fastbp.Sequential(
        fastbp.Linear(3, 5, bias=bias), hidden(), fastbp.Linear(5, 4, bias=bias), hidden(), fastbp.Linear(4, 3),
        last(), seed=8, **where,
    )  # fmt: skip
    x, y = rng().standard_normal((4, 3)), target_for(kind, 4)
    loss = make(device=where["device"])
    flat = model.flat_parameters

    def value():
        model.flat_parameters = flat
        return loss(model(x), y)[0]

    _, grad = loss(model(x), y)
    grad_x = model.backward(grad)
    gradients = model.flat_gradients
    np.testing.assert_allclose(gradients, central_differences(value, flat), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(grad_x, central_differences(value, x), rtol=1e-5, atol=1e-9)


# ============================================================================= 5. Worked networks
@pytest.mark.parametrize("x", [-1.3, 0.0, 0.4, 2.0])
def test_5a_two_sigmoid_units(where, x):
    """``z1 = -1.75 x - 0.1``, ``z2 = 0.172 x + 0.15``, ``out = 0.25 s(z1) + 0.5 s(z2) + 0.2``."""
    model = fastbp.Sequential(
        linear([[-1.75, 0.172]], [-0.1, 0.15]), fastbp.Sigmoid(), linear([[0.25], [0.5]], [0.2]), **where
    )
    s1, s2 = sigma(-1.75 * x - 0.1), sigma(0.172 * x + 0.15)
    close(model(np.array([[x]])), [[0.25 * s1 + 0.5 * s2 + 0.2]])
    grad_x = model.backward(np.array([[1.0]]))
    hidden, output = model.layers[0], model.layers[2]
    close(output.grad_weight, [[s1], [s2]])
    close(output.grad_bias, [1.0])
    close(hidden.grad_weight, [[0.25 * s1 * (1 - s1) * x, 0.5 * s2 * (1 - s2) * x]])
    close(hidden.grad_bias, [0.25 * s1 * (1 - s1), 0.5 * s2 * (1 - s2)])
    close(grad_x, [[0.25 * s1 * (1 - s1) * -1.75 + 0.5 * s2 * (1 - s2) * 0.172]])


W5B = (0.7, -1.2, 0.9, -0.4, 1.1, 0.8, -1.3, 0.6)
B5B = (0.2, 0.5, -1.0, -0.6, 0.05)


@pytest.mark.parametrize("x", [-2.0, -0.3, 0.4, 1.5])
def test_5b_relu_network_1_2_2_1(where, x):
    """All 13 derivatives of ``L = (y - p)^2``, and the one for x, in closed form."""
    w1, w2, w3, w4, w5, w6, w7, w8 = W5B
    b1, b2, b3, b4, b5 = B5B
    y = 0.5

    def dR(z):
        return float(z > 0)

    z1, z2 = w1 * x + b1, w2 * x + b2
    a1, a2 = max(0, z1), max(0, z2)
    z3, z4 = w3 * a1 + w5 * a2 + b3, w4 * a1 + w6 * a2 + b4
    a3, a4 = max(0, z3), max(0, z4)
    p = w7 * a3 + w8 * a4 + b5
    Ly = -2 * (y - p)
    to1 = w7 * dR(z3) * w3 + w8 * dR(z4) * w4  # dp/da1
    to2 = w7 * dR(z3) * w5 + w8 * dR(z4) * w6  # dp/da2

    model = fastbp.Sequential(
        linear([[w1, w2]], [b1, b2]), fastbp.ReLU(), linear([[w3, w4], [w5, w6]], [b3, b4]), fastbp.ReLU(),
        linear([[w7], [w8]], [b5]), **where,
    )  # fmt: skip
    prediction = model(np.array([[x]]))
    close(prediction, [[p]])
    value, grad = fastbp.MSELoss(device=where["device"])(prediction, np.array([[y]]))
    close(value, (y - p) ** 2)
    close(grad, [[Ly]])
    grad_x = model.backward(grad)
    first, second, third = gradients_of(model)
    close(third[0], [[Ly * a3], [Ly * a4]])  # w7, w8
    close(third[1], [Ly])  # b5
    close(
        second[0],  # w3 w4; w5 w6
        [
            [Ly * w7 * dR(z3) * a1, Ly * w8 * dR(z4) * a1],
            [Ly * w7 * dR(z3) * a2, Ly * w8 * dR(z4) * a2],
        ],
    )
    close(second[1], [Ly * w7 * dR(z3), Ly * w8 * dR(z4)])  # b3, b4
    close(first[0], [[Ly * to1 * dR(z1) * x, Ly * to2 * dR(z2) * x]])  # w1, w2
    close(first[1], [Ly * to1 * dR(z1), Ly * to2 * dR(z2)])  # b1, b2
    close(grad_x, [[Ly * (to1 * dR(z1) * w1 + to2 * dR(z2) * w2)]])


def test_5b_every_unit_is_on_for_some_x():
    """The four inputs above reach both sides of every ReLU, so no derivative is tested at zero alone."""
    w1, w2, w3, w4, w5, w6, _, _ = W5B
    b1, b2, b3, b4, _ = B5B
    x = np.array([-2.0, -0.3, 0.4, 1.5])
    a1, a2 = np.maximum(0, w1 * x + b1), np.maximum(0, w2 * x + b2)
    for unit in (a1, a2, np.maximum(0, w3 * a1 + w5 * a2 + b3), np.maximum(0, w4 * a1 + w6 * a2 + b4)):
        assert 0 < (unit > 0).sum() < len(x)


def test_5b_augmented_matrix(where):
    """A layer as one matrix, ``[W b][a; 1]``, W (out, in)."""
    w3, w4, w5, w6 = W5B[2:6]
    b3, b4 = B5B[2:4]
    augmented = np.array([[w3, w5, b3], [w4, w6, b4]])
    a = np.array([[0.3], [0.7]])
    layer = linear(augmented[:, :2].T, augmented[:, 2], **where)
    close(layer.forward(a.T), (augmented @ np.vstack([a, [[1.0]]])).T)
    upstream = np.array([[2.0], [-1.0]])
    layer.backward(upstream.T)
    of_augmented = upstream @ np.vstack([a, [[1.0]]]).T
    close(layer.grad_weight.T, of_augmented[:, :2])
    close(layer.grad_bias, of_augmented[:, 2])


def test_5c_sigmoid_network_4_2_1(where):
    """Batch 3, mean squared error; every derivative as a sum over the three examples."""
    generator = rng()
    W1, b1, W2, b2 = (generator.standard_normal(shape) for shape in ((4, 2), 2, (2, 1), 1))
    X, y = generator.standard_normal((3, 4)), generator.standard_normal((3, 1))
    model = fastbp.Sequential(linear(W1, b1), fastbp.Sigmoid(), linear(W2, b2), fastbp.Sigmoid(), **where)
    prediction = model(X)
    _, grad = fastbp.MSELoss(device=where["device"])(prediction, y)
    close(grad, 2 / 3 * (prediction - y))
    grad_x = model.backward(grad)

    gW1, gb1, gW2, gb2, gX = (np.zeros_like(a) for a in (W1, b1, W2, b2, X))
    for i in range(3):
        h = [sigma(sum(X[i, q] * W1[q, j] for q in range(4)) + b1[j]) for j in range(2)]
        p = sigma(h[0] * W2[0, 0] + h[1] * W2[1, 0] + b2[0])
        close(prediction[i, 0], p)
        delta2 = 2 / 3 * (p - y[i, 0]) * p * (1 - p)
        gb2[0] += delta2
        for j in range(2):
            gW2[j, 0] += h[j] * delta2
            delta1 = delta2 * W2[j, 0] * h[j] * (1 - h[j])
            gb1[j] += delta1
            for q in range(4):
                gW1[q, j] += X[i, q] * delta1
                gX[i, q] += W1[q, j] * delta1
    first, second = gradients_of(model)
    close(first[0], gW1)
    close(first[1], gb1)
    close(second[0], gW2)
    close(second[1], gb2)
    close(grad_x, gX)


def relu_network_5d(out, where):
    generator = rng()
    values = [generator.standard_normal(shape) for shape in ((3, 4), 4, (4, out), out)]
    layers = linear(*values[:2]), fastbp.ReLU(), linear(*values[2:])
    return fastbp.Sequential(*layers, **where), values, generator


def by_hand_5d(values, x, output_delta):
    """Gradients of the 5d network for one example, columns written out: (W1, b1, W2, b2, x)."""
    W1, b1, W2, b2 = values
    z = x @ W1 + b1
    a = np.maximum(0, z)
    delta2 = output_delta(a @ W2 + b2)
    delta1 = np.array([(W2[j] @ delta2) * (z[j] > 0) for j in range(len(z))])
    return np.outer(x, delta1), delta1, np.outer(a, delta2), delta2, W1 @ delta1


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("loss_name", ["half_squared_error", "cross_entropy"])
def test_5d_relu_network(where, loss_name, n):
    """``1/2 (y - o)^2`` and softmax cross-entropy, one example and the batch (Algorithm 3)."""
    out = 1 if loss_name == "half_squared_error" else 3
    model, values, generator = relu_network_5d(out, where)
    X = generator.standard_normal((n, 3))
    if loss_name == "half_squared_error":
        y = generator.standard_normal((n, 1))
        deltas = [lambda o, i=i: (o - y[i]) / n for i in range(n)]
    else:
        y = generator.integers(0, 3, n)
        deltas = [lambda o, i=i: (softmax(o[None])[0] - onehot(y[i], 3)) / n for i in range(n)]
    _, grad = LOSSES[loss_name][0](device=where["device"])(model(X), y)
    grad_x = model.backward(grad)

    examples = [by_hand_5d(values, X[i], deltas[i]) for i in range(n)]
    (gW1, gb1), (gW2, gb2) = gradients_of(model)
    for got, k in ((gW1, 0), (gb1, 1), (gW2, 2), (gb2, 3)):
        close(got, sum(example[k] for example in examples))
    close(grad_x, [example[4] for example in examples])


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_5e_logistic_regression_with_batch_size_1(where, y):
    """``dL/dp = -(y/p - (1-y)/(1-p))`` through the sigmoid gives ``(p - y) x``; one step of descent."""
    w, b, x = np.array([0.4, -0.9, 0.2]), 0.1, np.array([1.0, -2.0, 0.5])
    model = fastbp.Sequential(linear(w[:, None], [b]), fastbp.Sigmoid(), **where)
    p = sigma(w @ x + b)
    prediction = model(x[None])
    close(prediction, [[p]])
    grad_x = model.backward(-(y / prediction - (1 - y) / (1 - prediction)))
    ((grad_weight, grad_bias),) = gradients_of(model)
    close(grad_weight, (p - y) * x[:, None])
    close(grad_bias, [p - y])
    close(grad_x, (p - y) * w[None])
    fastbp.SGD(model.parameters(), lr=0.1).step()
    close(model.layers[0].weight, w[:, None] - 0.1 * (p - y) * x[:, None])
    close(model.layers[0].bias, [b - 0.1 * (p - y)])


# ================================================================================== 6. Optimizers
def regression(where):
    model = chain(("tanh", "identity"), (3, 4, 2), where)
    generator = rng()
    return model, generator.standard_normal((12, 3)), generator.standard_normal((12, 2))


def gradient_by_hand(model, x, y):
    """Of the half squared error of a tanh-identity chain."""
    (W1, b1), (W2, b2) = parameters_of(model)
    a = np.tanh(x @ W1 + b1)
    delta2 = (a @ W2 + b2 - y) / len(x)
    delta1 = delta2 @ W2.T * (1 - a**2)
    return np.concatenate([g.ravel() for g in (x.T @ delta1, delta1.sum(0), a.T @ delta2, delta2.sum(0))])


def descend(model, x, y, optimizer, compiled):
    """One step of an optimizer on the half squared error."""
    optimizer.bind(model._parameters)
    loss = fastbp.HalfSquaredErrorLoss(device=model.device)
    if compiled:
        model.train_step(x, y, loss, optimizer)
    else:
        model.backward(loss(model(x), y)[1])
        optimizer.step()


def follows(where, optimizer, compiled, update, steps=6):
    """The steps of an optimizer are those of ``update(w, g)``, a function that keeps its state itself."""
    model, x, y = regression(where)
    w = model.flat_parameters
    for _ in range(steps):
        w = update(w, gradient_by_hand(model, x, y))
        descend(model, x, y, optimizer, compiled)
        np.testing.assert_allclose(model.flat_parameters, w, rtol=1e-9, atol=1e-12)


def textbook_adam(steps, gradient, w, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_6_gradient_descent_stochastic_mini_batch_full_batch(where, batch_size, compiled):
    model, x, y = regression(where)
    loss, optimizer = fastbp.HalfSquaredErrorLoss(device=where["device"]), fastbp.SGD(model.parameters(), lr=0.3)
    for start in range(0, 12, batch_size):
        xb, yb = x[start : start + batch_size], y[start : start + batch_size]
        expected = model.flat_parameters - 0.3 * gradient_by_hand(model, xb, yb)
        if compiled:
            model.train_step(xb, yb, loss, optimizer)
        else:
            _, grad = loss(model(xb), yb)
            model.backward(grad)
            optimizer.step()
        close(model.flat_parameters, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("hyperparameters", [{}, {"betas": (0.5, 0.75), "eps": 1e-2}])
def test_6_adam(where, compiled, hyperparameters):
    model, x, y = regression(where)
    loss = fastbp.HalfSquaredErrorLoss(device=where["device"])
    optimizer = fastbp.Adam(model.parameters(), lr=0.02, **hyperparameters)
    beta1, beta2 = hyperparameters.get("betas", (0.9, 0.999))
    start = model.flat_parameters
    scratch = chain(("tanh", "identity"), (3, 4, 2), where)

    def gradient(w):
        scratch.flat_parameters = w
        return gradient_by_hand(scratch, x, y)

    for steps in range(1, 8):
        if compiled:
            model.train_step(x, y, loss, optimizer)
        else:
            _, grad = loss(model(x), y)
            model.backward(grad)
            optimizer.step()
        expected = textbook_adam(steps, gradient, start, 0.02, beta1, beta2, hyperparameters.get("eps", 1e-8))
        np.testing.assert_allclose(model.flat_parameters, expected, rtol=1e-9, atol=1e-12)


def test_6_eps_of_adam_counts_from_the_first_step(where):
    """Where the correction is folded into the step size, eps becomes ``eps sqrt(1 - beta2^t)``."""
    layer = linear([[1.0]], **where)
    model = fastbp.Sequential(layer, **where)
    model(np.array([[1.0]]))
    model.backward(np.array([[0.5]]))
    fastbp.Adam(model.parameters(), lr=0.1, eps=0.3).step()
    close(layer.weight, [[1 - 0.1 * 0.5 / (0.5 + 0.3)]])


@pytest.mark.parametrize("compiled", [False, True])
def test_6_momentum_as_an_average(where, compiled):
    """``V <- bV + (1-b)g`` from zero, ``W <- W - aV``."""
    V = 0.0

    def update(w, g):
        nonlocal V
        V = 0.8 * V + (1 - 0.8) * g
        return w - 0.3 * V

    follows(where, fastbp.Momentum(lr=0.3, beta=0.8), compiled, update)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_6_classical_momentum_and_nesterov(where, compiled, nesterov):
    """``V <- mV + g``, ``W <- W - aV``, or ``W <- W - a(g + mV)``."""
    V = 0.0

    def update(w, g):
        nonlocal V
        V = 0.8 * V + g
        return w - 0.05 * (g + 0.8 * V if nesterov else V)

    follows(where, fastbp.SGD(lr=0.05, momentum=0.8, nesterov=nesterov), compiled, update)


def test_6_the_two_momenta_differ_by_a_factor_of_the_rate(where):
    average, classical = (regression(where) for _ in range(2))
    first, second = fastbp.Momentum(lr=0.1, beta=0.75), fastbp.SGD(lr=0.025, momentum=0.75)
    third = fastbp.SGD(lr=0.1, momentum=0.75)
    other = regression(where)
    for _ in range(5):
        descend(*average, first, compiled=True)
        descend(*classical, second, compiled=True)
        descend(*other, third, compiled=True)
    close(average[0].flat_parameters, classical[0].flat_parameters)
    differs(average[0].flat_parameters, other[0].flat_parameters)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_6_rmsprop(where, compiled, inside):
    """``S <- bS + (1-b)g^2``, ``W <- W - a g / sqrt(S + eps)``, or ``/ (sqrt(S) + eps)``."""
    S = 0.0

    def update(w, g):
        nonlocal S
        S = 0.9 * S + (1 - 0.9) * g**2
        return w - 0.05 * g / (np.sqrt(S + 0.01) if inside else np.sqrt(S) + 0.01)

    follows(where, fastbp.RMSProp(lr=0.05, beta=0.9, eps=0.01, eps_inside_sqrt=inside), compiled, update)


def test_6_eps_of_rmsprop_is_inside_the_root_unless_told(where):
    """The first step for g = 0.5: ``S = 0.1 g^2``."""
    for inside, root in ((True, np.sqrt(0.025 + 0.3)), (False, np.sqrt(0.025) + 0.3)):
        layer = linear([[1.0]], **where)
        model = fastbp.Sequential(layer, **where)
        model(np.array([[1.0]]))
        model.backward(np.array([[0.5]]))
        arguments = {} if inside else {"eps_inside_sqrt": False}
        fastbp.RMSProp(model.parameters(), lr=0.1, eps=0.3, **arguments).step()
        close(layer.weight, [[1 - 0.1 * 0.5 / root]])


@pytest.mark.parametrize("compiled", [False, True])
def test_6_adamw(where, compiled):
    """Adam's step from ``(1 - a d) W``: the decay does not go through the moments."""
    m = v = 0.0
    t = 0

    def update(w, g):
        nonlocal m, v, t
        m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
        return (1 - 0.02 * 0.5) * w - 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    follows(where, fastbp.AdamW(lr=0.02, weight_decay=0.5), compiled, update)
    adamw, adam = regression(where), regression(where)
    descend(*adamw, fastbp.AdamW(lr=0.02, weight_decay=0.5), compiled)
    descend(*adam, fastbp.Adam(lr=0.02, weight_decay=0.5), compiled)
    differs(adamw[0].flat_parameters, adam[0].flat_parameters)


@pytest.mark.parametrize("compiled", [False, True])
def test_6_lion(where, compiled):
    """``W <- W - a (sign(b1 m + (1-b1)g) + d W)``, and only then ``m <- b2 m + (1-b2)g``."""
    m = 0.0

    def update(w, g):
        nonlocal m
        direction = np.sign(0.6 * m + (1 - 0.6) * g)
        m = 0.9 * m + (1 - 0.9) * g
        return w - 0.02 * (direction + 0.5 * w)

    follows(where, fastbp.Lion(lr=0.02, betas=(0.6, 0.9), weight_decay=0.5), compiled, update)


# ======================================================================================= 8. Slips
def differs(value, slip):
    """The slip gives another number here, so the test before it would fail under it."""
    assert np.shape(value) != np.shape(slip) or not np.allclose(value, slip, rtol=1e-3, atol=1e-6)


def test_8_adam_bias_correction_is_beta_to_the_t(where):
    """Not ``(1 - beta)^t``; and the stored moments are not the divided ones."""
    gradients = [0.5, -0.2, 0.9]

    def adam(correction, divided=False):
        w, m, v = 1.0, 0.0, 0.0
        for t, g in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / correction(0.9, t), v / correction(0.999, t)
            w -= 0.1 * m_hat / (v_hat**0.5 + 1e-8)
            if divided:
                m, v = m_hat, v_hat
        return w

    layer = linear([[1.0]], **where)
    model = fastbp.Sequential(layer, **where)
    optimizer = fastbp.Adam(model.parameters(), lr=0.1)
    for g in gradients:
        model(np.array([[1.0]]))
        model.backward(np.array([[g]]))
        optimizer.step()
    close(layer.weight, [[adam(lambda beta, t: 1 - beta**t)]])
    differs(layer.weight[0, 0], adam(lambda beta, t: (1 - beta) ** t))
    differs(layer.weight[0, 0], adam(lambda beta, t: 1 - beta**t, divided=True))


def test_8_softmax_gradient_subtracts_at_the_label(device):
    """``p_k - 1`` at the label and ``p_k`` elsewhere, not the other way round."""
    s, labels = np.array([[0.2, -0.5, 1.0], [0.0, 0.3, -0.3]]), np.array([1, 0])
    p = softmax(s)
    _, grad = fastbp.CrossEntropyLoss(device=device)(s, labels)
    for i, label in enumerate(labels):
        for k in range(3):
            close(grad[i, k], (p[i, k] - 1) / 2 if k == label else p[i, k] / 2)
    differs(grad, (p - (1 - onehot(labels, 3))) / 2)


def test_8_log_loss_has_a_minus(device):
    """The loss is ``-log p_y``, which is not negative; without the minus it is the log-likelihood."""
    s, labels = np.array([[0.2, -0.5], [0.0, 0.3]]), np.array([1, 0])
    likelihood = np.mean(np.log(softmax(s)[[0, 1], labels]))
    value, _ = fastbp.CrossEntropyLoss(device=device)(s, labels)
    close(value, -likelihood)
    differs(value, likelihood)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_8_binary_log_loss_has_a_minus(device, name):
    """``-(y ln p + (1-y) ln(1-p))``, which is not negative, and its gradient points away from y."""
    s, y = np.array([[0.3], [-1.2], [2.0]]), np.array([[1.0], [0.0], [0.0]])
    p = sigma(s)
    likelihood = np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    value, grad = LOSSES[name][0](device=device)(p if name == "binary_cross_entropy" else s, y)
    close(value, -likelihood)
    assert value > 0
    np.testing.assert_array_equal(np.sign(grad), np.sign(p - y))
    differs(value, likelihood)


def test_8_grad_bias_is_the_sum_of_delta(where):
    """``delta u``: neither ``delta (A^0)^T`` nor ``delta`` unsummed (batched Algorithm 3)."""
    layer = linear(np.ones((3, 3)), np.zeros(3), **where)
    x, delta = rng().standard_normal((3, 3)), rng().standard_normal((3, 3))
    layer.forward(x)
    layer.backward(delta)
    close(layer.grad_bias, delta.T @ np.ones(3))
    assert layer.grad_bias.shape == (3,)
    differs(np.broadcast_to(layer.grad_bias, (3, 3)), delta)
    differs(np.broadcast_to(layer.grad_bias, (3, 3)), delta.T @ x)


def test_8_sigmoid_derivative_has_ones_not_the_identity(device):
    """``A (1 - A)``: with the identity matrix for 1 every element off the diagonal would be ``-A^2``."""
    layer, z = fastbp.Sigmoid(device=device), rng().standard_normal((4, 4))
    A = layer.forward(z)
    grad = layer.backward(np.ones((4, 4)))
    close(grad, A * (1 - A))
    differs(grad, A * (np.eye(4) - A))


def test_8_input_gradient_uses_the_weight_not_the_input(where):
    """``dL/dx = dL/dz dz/dx``, not ``dL/dz dz/dw``."""
    W, x, upstream = np.array([[2.0, -1.0], [0.5, 3.0]]), np.array([[0.7, -0.4]]), np.array([[1.5, 0.25]])
    layer = linear(W, [0, 0], **where)
    layer.forward(x)
    grad_x = layer.backward(upstream)
    close(grad_x, upstream @ W.T)
    differs(grad_x, upstream * x)


def test_8_composition_uses_each_weight_once(where):
    """``o = f3(f2(f1(x)))`` with three different weights: not the first one twice."""
    generator = rng()
    W1, W2, W3 = generator.standard_normal((3, 2, 2))
    x = generator.standard_normal((5, 2))
    layers = []
    for W in (W1, W2, W3):
        layers += [linear(W), fastbp.Tanh()]
    out = fastbp.Sequential(*layers, **where)(x)
    close(out, np.tanh(np.tanh(np.tanh(x @ W1) @ W2) @ W3))
    differs(out, np.tanh(np.tanh(np.tanh(x @ W1) @ W1) @ W3))
