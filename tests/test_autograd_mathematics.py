"""Sections 5 and 7 of the mathematics through the graph, each test named after the item it shows.

Section 5 is built three times, of scalars, of arrays and of layers, beside closed forms; arrays and layers must agree
with the layer API to rounding. Section 7 is the notes' computation graph.
"""

import math

import numpy as np
import pytest

import fastbp
from fastbp import Variable
from fastbp import autograd as ag

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, **CLOSE)


def leaf(value):
    return Variable(value, requires_grad=True)


def leaves(*values):
    return [leaf(value) for value in values]


def sigma(z):
    return 1 / (1 + np.exp(-z))


def rng():
    return np.random.default_rng(5)


def model_of(pairs, activation, device, last=None):
    """A chain of linear layers with these (weight, bias) and activations between them."""
    layers = []
    for weight, bias in pairs:
        layer = fastbp.Linear(*np.shape(weight))
        layer.weight, layer.bias = weight, bias
        layers += [layer, activation()]
    layers[-1:] = [last()] if last else []
    return fastbp.Sequential(*layers, dtype="float64", device=device)


def agrees_with_layers(model, x, y, loss, value, parameters, input_variable):
    """Value and all gradients are those of the layer API: of `Sequential`, and of it as a node of the graph."""
    of_loss, grad = loss(model(x), y)
    grad_x = model.backward(grad)
    close(value, of_loss)
    close(input_variable.grad, grad_x)
    gradients = [getattr(model.layers[i], f"grad_{part}") for i in linear(model) for part in ("weight", "bias")]
    for variable, gradient in zip(parameters, gradients, strict=True):
        close(variable.grad, gradient)
    flat = model.flat_gradients
    model.zero_grad()
    x = leaf(x)
    loss(model(x), y).backward()
    close(x.grad, grad_x)
    close(model.flat_gradients, flat)


def linear(model):
    return [i for i, layer in enumerate(model.layers) if isinstance(layer, fastbp.Linear)]


# ============================================================================= 5. Worked networks
@pytest.mark.parametrize("number", [-1.3, 0.0, 0.4, 2.0])
def test_5a_two_sigmoid_units(number):
    """``z1 = -1.75 x - 0.1``, ``z2 = 0.172 x + 0.15``, ``out = 0.25 s(z1) + 0.5 s(z2) + 0.2``, of scalars."""
    x, w1, b1, w2, b2, v1, v2, c = leaves(number, -1.75, -0.1, 0.172, 0.15, 0.25, 0.5, 0.2)
    out = v1 * (w1 * x + b1).sigmoid() + v2 * (w2 * x + b2).sigmoid() + c
    out.backward()
    s1, s2 = sigma(-1.75 * number - 0.1), sigma(0.172 * number + 0.15)
    close(out.data, 0.25 * s1 + 0.5 * s2 + 0.2)
    close([v1.grad, v2.grad, c.grad], [s1, s2, 1])
    close([w1.grad, b1.grad], [0.25 * s1 * (1 - s1) * number, 0.25 * s1 * (1 - s1)])
    close([w2.grad, b2.grad], [0.5 * s2 * (1 - s2) * number, 0.5 * s2 * (1 - s2)])
    close(x.grad, -1.75 * 0.25 * s1 * (1 - s1) + 0.172 * 0.5 * s2 * (1 - s2))


@pytest.mark.parametrize("number", [-1.3, 0.0, 0.4, 2.0])
def test_5a_in_layers(device, number):
    values = [[[-1.75, 0.172]], [-0.1, 0.15], [[0.25], [0.5]], [0.2]]
    x, W1, b1, W2, b2 = leaves([[number]], *values)
    error = ag.linear(ag.sigmoid(ag.linear(x, W1, b1, device=device), device=device), W2, b2, device=device) - 1.0
    loss = (error * error).mean()
    loss.backward()
    model = model_of([values[:2], values[2:]], fastbp.Sigmoid, device)
    agrees_with_layers(model, [[number]], [[1.0]], fastbp.MSELoss(device=device), loss.data, (W1, b1, W2, b2), x)


W5B = (0.7, -1.2, 0.9, -0.4, 1.1, 0.8, -1.3, 0.6)
B5B = (0.2, 0.5, -1.0, -0.6, 0.05)
INPUTS_5B = [-2.0, -0.3, 0.4, 1.5]  # which reach both sides of every ReLU


@pytest.mark.parametrize("number", INPUTS_5B)
def test_5b_relu_network_1_2_2_1(number):
    """All 13 derivatives of ``L = (y - p)^2``, and the one for x, of scalars, in closed form."""
    x, *parameters = leaves(number, *W5B, *B5B)
    w1, w2, w3, w4, w5, w6, w7, w8, b1, b2, b3, b4, b5 = parameters
    z1, z2 = w1 * x + b1, w2 * x + b2
    a1, a2 = z1.relu(), z2.relu()
    z3, z4 = w3 * a1 + w5 * a2 + b3, w4 * a1 + w6 * a2 + b4
    a3, a4 = z3.relu(), z4.relu()
    L = (0.5 - (w7 * a3 + w8 * a4 + b5)) ** 2
    L.backward()

    w = dict(zip(range(1, 9), W5B, strict=True))
    d1, d2, d3, d4 = (float(z.data > 0) for z in (z1, z2, z3, z4))
    Ly = -2 * (0.5 - (w[7] * a3.data + w[8] * a4.data + b5.data))
    to1 = w[7] * d3 * w[3] + w[8] * d4 * w[4]  # dp/da1
    to2 = w[7] * d3 * w[5] + w[8] * d4 * w[6]  # dp/da2
    close([w7.grad, w8.grad, b5.grad], [Ly * a3.data, Ly * a4.data, Ly])
    close([w3.grad, w4.grad], [Ly * w[7] * d3 * a1.data, Ly * w[8] * d4 * a1.data])
    close([w5.grad, w6.grad], [Ly * w[7] * d3 * a2.data, Ly * w[8] * d4 * a2.data])
    close([b3.grad, b4.grad], [Ly * w[7] * d3, Ly * w[8] * d4])
    close([w1.grad, w2.grad], [Ly * to1 * d1 * number, Ly * to2 * d2 * number])
    close([b1.grad, b2.grad], [Ly * to1 * d1, Ly * to2 * d2])
    close(x.grad, Ly * (to1 * d1 * w[1] + to2 * d2 * w[2]))


@pytest.mark.parametrize("number", INPUTS_5B)
def test_5b_in_layers(device, number):
    w1, w2, w3, w4, w5, w6, w7, w8 = W5B
    b1, b2, b3, b4, b5 = B5B
    values = [[[w1, w2]], [b1, b2], [[w3, w4], [w5, w6]], [b3, b4], [[w7], [w8]], [b5]]
    x, W1, c1, W2, c2, W3, c3 = leaves([[number]], *values)
    prediction = ag.relu(ag.relu(x @ W1 + c1) @ W2 + c2) @ W3 + c3
    loss = ((0.5 - prediction) ** 2).sum()
    loss.backward()
    model = model_of([values[:2], values[2:4], values[4:]], fastbp.ReLU, device)
    parameters = W1, c1, W2, c2, W3, c3
    agrees_with_layers(model, [[number]], [[0.5]], fastbp.MSELoss(device=device), loss.data, parameters, x)


def test_5b_augmented_matrix():
    """A layer as one matrix, ``[W b][a; 1]``: the gradient of the matrix is that of W beside that of b."""
    W, b, a, upstream = (rng().standard_normal(shape) for shape in ((2, 2), (2, 1), (2, 1), (2, 1)))
    weight, bias, augmented = leaves(W, b, np.hstack([W, b]))
    (weight @ a + bias).backward(upstream)
    out = augmented @ np.vstack([a, [[1.0]]])
    close(out.data, W @ a + b)
    out.backward(upstream)
    close(augmented.grad, np.hstack([weight.grad, bias.grad]))


def test_5c_sigmoid_network_4_2_1(device):
    """Batch 3, mean squared error; every derivative as a sum over the three examples."""
    generator = rng()
    values = [generator.standard_normal(shape) for shape in ((4, 2), 2, (2, 1), 1)]
    X, y = generator.standard_normal((3, 4)), generator.standard_normal((3, 1))
    x, W1, b1, W2, b2 = leaves(X, *values)
    h = (x @ W1 + b1).sigmoid()
    p = (h @ W2 + b2).sigmoid()
    loss = ((p - y) ** 2).mean()
    loss.backward()
    delta2 = 2 / 3 * (p.data - y) * p.data * (1 - p.data)
    delta1 = delta2 @ values[2].T * h.data * (1 - h.data)
    close(W2.grad, sum(np.outer(h.data[i], delta2[i]) for i in range(3)))
    close(W1.grad, sum(np.outer(X[i], delta1[i]) for i in range(3)))
    close(b2.grad, sum(delta2))
    close(b1.grad, sum(delta1))
    close(x.grad, delta1 @ values[0].T)
    model = model_of([values[:2], values[2:]], fastbp.Sigmoid, device, fastbp.Sigmoid)
    agrees_with_layers(model, X, y, fastbp.MSELoss(device=device), loss.data, (W1, b1, W2, b2), x)


def network_5d(out):
    generator = rng()
    return [generator.standard_normal(shape) for shape in ((3, 4), 4, (4, out), out)], generator


@pytest.mark.parametrize("n", [1, 6])
def test_5d_relu_network_with_half_squared_error(device, n):
    """``1/2 (y - o)^2``, one example and the batch."""
    values, generator = network_5d(1)
    X, y = generator.standard_normal((n, 3)), generator.standard_normal((n, 1))
    x, W1, b1, W2, b2 = leaves(X, *values)
    loss = (0.5 * (y - ((x @ W1 + b1).relu() @ W2 + b2)) ** 2).sum(axis=1).mean()
    loss.backward()
    model = model_of([values[:2], values[2:]], fastbp.ReLU, device)
    agrees_with_layers(
        model, X, y, fastbp.HalfSquaredErrorLoss(device=device), loss.data, (W1, b1, W2, b2), x
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 6])
def test_5d_relu_network_with_softmax_cross_entropy(device, n):
    """The loss from exponentials and logarithms, and as one node: one example and the batch ("Algorithm 3")."""
    values, generator = network_5d(3)
    X, y = generator.standard_normal((n, 3)), generator.integers(0, 3, n)
    model = model_of([values[:2], values[2:]], fastbp.ReLU, device)

    def written_out(s):
        return (s.exp().sum(axis=1).log() - s[np.arange(n), y]).mean()

    for softmax_cross_entropy in (written_out, lambda s: ag.cross_entropy(s, y, device=device)):
        x, W1, b1, W2, b2 = leaves(X, *values)
        s = (x @ W1 + b1).relu() @ W2 + b2
        loss = softmax_cross_entropy(s)
        loss.backward()
        p = np.exp(s.data) / np.exp(s.data).sum(axis=1, keepdims=True)
        close(s.grad, (p - np.eye(3)[y]) / n)
        close(b2.grad, s.grad.sum(axis=0))
        agrees_with_layers(model, X, y, fastbp.CrossEntropyLoss(device=device), loss.data, (W1, b1, W2, b2), x)


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_5e_logistic_regression_with_batch_size_1(device, y):
    """``dL/dp = -(y/p - (1-y)/(1-p))`` through the sigmoid gives ``(p - y) x``; one step of descent."""
    w0, b0, x0 = np.array([0.4, -0.9, 0.2]), 0.1, np.array([1.0, -2.0, 0.5])
    x, w, b = leaves(x0, w0, b0)
    p = (w @ x + b).sigmoid()
    loss = -(y * p.log() + (1 - y) * (1 - p).log())
    loss.backward()
    close(p.data, sigma(w0 @ x0 + b0))
    close(p.grad, -(y / p.data - (1 - y) / (1 - p.data)))
    close(w.grad, (p.data - y) * x0)
    close(b.grad, p.data - y)
    close(x.grad, (p.data - y) * w0)
    model = model_of([(w0[:, None], [b0])], fastbp.Identity, device)
    X, W, c = leaves(x0[None], w0[:, None], [b0])
    ag.binary_cross_entropy_with_logits(X @ W + c, [[y]], device=device).backward()
    agrees_with_layers(model, x0[None], [[y]], fastbp.BCEWithLogitsLoss(device=device), loss.data, (W, c), X)
    with ag.no_grad():
        w -= 0.1 * w.grad
        b -= 0.1 * b.grad
    close(w.data, w0 - 0.1 * (p.data - y) * x0)
    close(b.data, b0 - 0.1 * (p.data - y))


# ====================================================================== 7. The computation graph
def test_7_worked_product_of_a_sum():
    """``L = (x + y) z``: ``dL/dx = dL/dy = z``, ``dL/dz = x + y``."""
    x, y, z = leaves(-2.0, 5.0, -4.0)
    s = x + y
    L = s * z
    L.backward()
    assert L.data == -12
    assert (x.grad, y.grad, z.grad, s.grad, L.grad) == (-4, -4, 3, -4, 1)


def test_7_worked_sigmoid_of_a_product():
    """``L = s(w^T x + b)`` with 3-vectors: with ``d = L (1 - L)``, ``dL/dw = d x``, ``dL/dx = d w``, ``dL/db = d``."""
    w0, x0, b0 = np.array([0.5, -1.0, 2.0]), np.array([1.0, 3.0, -0.5]), 0.25
    d = sigma(w0 @ x0 + b0) * (1 - sigma(w0 @ x0 + b0))
    w, x, b = leaves(w0, x0, b0)
    L = (w @ x + b).sigmoid()
    L.backward()
    close([L.data, L.data * (1 - L.data)], [sigma(w0 @ x0 + b0), d])
    close(w.grad, d * x0)
    close(x.grad, d * w0)
    close(b.grad, d)

    scalars = leaves(*w0, *x0, b0)  # the same, every element a variable of its own
    w1, w2, w3, x1, x2, x3, b = scalars
    L = (w1 * x1 + w2 * x2 + w3 * x3 + b).sigmoid()
    L.backward()
    close([v.grad for v in scalars], [*(d * x0), *(d * w0), d])


def test_7_sum_distributes_the_flow():
    x, y, z = leaves(1.0, 2.0, 3.0)
    ((x + y + z) * 5).backward()
    assert x.grad == y.grad == z.grad == 5


def test_7_product_gives_z_over_x_and_is_right_at_zero():
    values = (2.0, -3.0, 5.0)
    factors = leaves(*values)
    (factors[0] * factors[1] * factors[2]).backward()
    close([x.grad for x in factors], [-30 / x for x in values])
    x, y = leaves(0.0, 7.0)
    (x * y).backward()
    assert (x.grad, y.grad) == (7, 0)


@pytest.mark.parametrize("number", [-3.0, 0.0, 1.5])
def test_7_sigmoid(number):
    z = leaf(number)
    s = z.sigmoid()
    s.backward()
    close(z.grad, s.data * (1 - s.data))


def test_7_max_and_min_route_to_the_selected_input():
    for function, selected in ((ag.maximum, 1), (ag.minimum, 0)):
        inputs = leaves(1.0, 4.0)
        function(*inputs).backward(3.0)
        assert [v.grad for v in inputs] == [3.0 * (i == selected) for i in range(2)]
    a = leaf([1.0, 5.0, -2.0])
    a.max().backward(2.0)
    close(a.grad, [0, 2, 0])
    a.zero_grad()
    a.min().backward(2.0)
    close(a.grad, [0, 0, 2])


@pytest.mark.parametrize("function", [ag.maximum, ag.minimum])
def test_7_ties_share_in_maximum_and_minimum(function):
    """The notes' ``1[z == x_i]`` would give each the whole gradient, which is no subgradient."""
    inputs = leaves(2.0, 2.0)
    function(*inputs).backward(3.0)
    assert [v.grad for v in inputs] == [1.5, 1.5]


@pytest.mark.parametrize("function", [ag.max, ag.min])
def test_7_ties_share_in_full_reductions_and_go_to_the_first_along_an_axis(function):
    a = leaf([[2.0, 2.0], [2.0, 2.0]])
    function(a).backward(8.0)
    close(a.grad, [[2, 2], [2, 2]])
    a.zero_grad()
    function(a, axis=1).backward([8.0, 6.0])
    close(a.grad, [[8, 0], [6, 0]])


def test_7_broadcasting_is_undone_by_sums():
    """``X + b`` repeats b for every row, so ``dL/db`` is a sum over rows."""
    G = rng().standard_normal((5, 3))
    X, b, c = leaves(np.zeros((5, 3)), np.zeros(3), 2.0)
    ((X + b) * c).backward(G)
    close(b.grad, 2 * G.sum(axis=0))
    close(X.grad, 2 * G)
    close(c.grad, 0.0)


def test_7_multivariate_chain_rule():
    """``L = f(u, v)``, ``u = x y``, ``v = x + y``: ``dL/dx = dL/du y + dL/dv``."""
    x, y = leaves(1.5, -0.5)
    u, v = x * y, x + y
    L = u.exp() * v
    L.backward()
    close(u.grad, math.exp(-0.75) * 1.0)
    close(v.grad, math.exp(-0.75))
    close(x.grad, u.grad * -0.5 + v.grad)
    close(y.grad, u.grad * 1.5 + v.grad)


def test_7_composition():
    """``f(g(h(x)))`` with ``h = x^2``, ``g = tanh``, ``f = exp``: the product of the three derivatives."""
    x = leaf(0.7)
    h = x**2
    g = h.tanh()
    f = g.exp()
    f.backward()
    close(x.grad, math.exp(math.tanh(0.49)) * (1 - math.tanh(0.49) ** 2) * 1.4)
    close([g.grad, h.grad], [f.data, f.data * (1 - g.data**2)])


def test_7_softmax_cross_entropy():
    s0, y = rng().standard_normal((4, 3)), np.array([0, 2, 1, 1])
    s = leaf(s0)
    loss = s.cross_entropy(y)
    loss.backward()
    p = np.exp(s0) / np.exp(s0).sum(axis=1, keepdims=True)
    close(loss.data, -np.log(p[np.arange(4), y]).mean())
    close(s.grad, (p - np.eye(3)[y]) / 4)


def test_7_input_gradient_is_by_the_input():
    """``dL/dx = dL/dz dz/dx``, not ``dL/dz dz/dw``, and each weight of ``f3(f2(f1(x)))`` is used once."""
    generator = rng()
    W1, W2, W3 = generator.standard_normal((3, 2, 2))
    x0, G = generator.standard_normal((2, 5, 2))
    x, *weights = leaves(x0, W1, W2, W3)
    out = ((x @ weights[0]).tanh() @ weights[1]).tanh() @ weights[2]
    out.backward(G)
    a1 = np.tanh(x0 @ W1)
    a2 = np.tanh(a1 @ W2)
    delta2 = G @ W3.T * (1 - a2**2)
    delta1 = delta2 @ W2.T * (1 - a1**2)
    close(out.data, a2 @ W3)
    close(x.grad, delta1 @ W1.T)
    for variable, gradient in zip(weights, (x0.T @ delta1, a1.T @ delta2, a2.T @ G), strict=True):
        close(variable.grad, gradient)
