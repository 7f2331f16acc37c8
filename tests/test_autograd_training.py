"""Training through the graph, and docs/autograd.md: its Python runs as printed, its drawings show its graphs."""

import html
import re
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import Function, Variable
from fastbp import autograd as ag

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "autograd.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    """The names that the Python of the page leaves."""
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def test_a_residual_network_with_two_inputs_learns_digits(page):
    assert np.mean([page["residual_network"](seed) for seed in range(3)]) >= 0.97


def test_a_loss_and_a_function_of_ones_own_train_through_fit(page):
    assert page["history"][-1]["loss"] < 0.01
    s, t = np.random.default_rng(1).standard_normal((2, 6, 3))
    value, gradient = page["log_cosh"](s, t)
    assert value == pytest.approx(np.log(np.cosh(s - t)).mean(), rel=1e-12)
    np.testing.assert_allclose(gradient, np.tanh(s - t) / 18, rtol=1e-12)


@pytest.mark.parametrize("name", ["product", "sigmoid"])
def test_drawings_are_those_of_the_graphs(page, name):
    """Every text of a drawing in the order in which Graphviz puts it down: nodes and edges of the description."""
    lines = page[name].splitlines()
    labels = [label for line in lines for label in re.findall(r'\[label="(.*?)"', line)]
    drawn = (DOCS / f"autograd-{name}.svg").read_text(encoding="utf-8")
    texts = [html.unescape(text) for text in re.findall(r"<text [^>]*>(.*?)</text>", drawn)]
    assert sorted(texts) == sorted(part for label in labels for part in label.split("\\n"))
    edges = re.findall(r"<title>(v\d+|f\d+)&#45;&gt;(v\d+|f\d+)</title>", drawn)
    assert sorted(edges) == sorted(re.findall(r"(\w+) -> (\w+)", page[name]))
    assert f"autograd-{name}.svg" in PAGE


def regression(rows=120):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 3))
    return X, np.tanh(X @ rng.standard_normal((3, 2)))


def chain(device, dtype="float64", seed=0):
    return fastbp.Sequential(
        fastbp.Linear(3, 8), fastbp.Tanh(), fastbp.Linear(8, 2), dtype=dtype, device=device, seed=seed
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_loss_trains_as_the_loss_it_is(device, dtype):
    """The mean squared error of variables: the same steps in `fit`, ``train_step`` and with weights of rows."""
    X, y = regression()

    @ag.as_loss
    def squared(prediction, target, weight=None):
        """Documented."""
        rows = ((prediction - np.asarray(target, prediction.dtype)) ** 2).mean(axis=1)
        return rows.mean() if weight is None else (rows * weight).sum() / weight.sum()

    assert (squared.__name__, squared.__doc__) == ("squared", "Documented.")
    weight = np.random.default_rng(1).uniform(size=len(X))
    for arguments in ({}, {"sample_weight": weight}):
        models = [chain(device, dtype) for _ in range(2)]
        histories = [
            model.fit(
                X, y, loss=loss, optimizer=fastbp.SGD(lr=0.1), epochs=3, batch_size=16, validation_data=(X, y),
                verbose=False, **arguments,
            )
            for model, loss in zip(models, (squared, fastbp.MSELoss(device=device)), strict=True)
        ]  # fmt: skip
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(models[0].flat_parameters, models[1].flat_parameters, rtol=1e3 * eps, atol=30 * eps)
        for key in ("loss", "val_loss"):
            np.testing.assert_allclose(*(history[key] for history in histories), rtol=1e2 * eps)
    first, second = chain(device, dtype), chain(device, dtype)
    of_graph = first.train_step(X, y, squared, fastbp.Adam())
    np.testing.assert_allclose(
        of_graph, second.train_step(X, y, fastbp.MSELoss(device=device), fastbp.Adam()), rtol=1e-5
    )


def test_as_loss_refuses_what_is_no_loss():
    for function in (lambda p, y: p - y, lambda p, y: 1.0):
        with pytest.raises(TypeError, match="must return a Variable of one number"):
            ag.as_loss(function)(np.ones((2, 3)), np.ones((2, 3)))


def test_a_chain_through_the_graph_is_the_chain(device):
    """Parts joined by the graph train as one `Sequential`, step by step."""
    X, y = regression()
    whole = chain(device)
    lower = fastbp.Sequential(fastbp.Linear(3, 8), fastbp.Tanh(), dtype="float64", device=device)
    upper = fastbp.Sequential(fastbp.Linear(8, 2), dtype="float64", device=device)
    lower.flat_parameters, upper.flat_parameters = np.split(whole.flat_parameters, [3 * 8 + 8])
    loss = fastbp.MSELoss(device=device)
    optimizers = [fastbp.Adam(part.parameters(), lr=0.01) for part in (lower, upper)]
    optimizer = fastbp.Adam(lr=0.01)
    for xb, yb in fastbp.batches(X, y, batch_size=32, shuffle=True, seed=0):
        expected = whole.train_step(xb, yb, loss, optimizer)
        for part in optimizers:
            part.zero_grad()
        value = loss(upper(lower(Variable(xb))), yb)
        value.backward()
        for part in optimizers:
            part.step()
        np.testing.assert_allclose(value.data, expected, rtol=1e-11)
    together = np.concatenate([lower.flat_parameters, upper.flat_parameters])
    np.testing.assert_allclose(together, whole.flat_parameters, rtol=1e-9, atol=1e-11)


def test_variables_as_parameters():
    """A network of variables, gradient descent by hand, and a function of one's own with a learnable number."""

    class Scale(Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.save_for_backward(x, factor)
            return x * factor

        @staticmethod
        def backward(ctx, grad_output):
            x, factor = ctx.saved_tensors
            return grad_output * factor, grad_output * x

    X, y = regression()
    rng = np.random.default_rng(2)
    parameters = [Variable(0.5 * rng.standard_normal(shape), requires_grad=True) for shape in ((3, 8), 8, (8, 2), 2)]
    parameters.append(Variable(1.0, requires_grad=True))
    W1, b1, W2, b2, factor = parameters
    losses = []
    for _ in range(200):
        prediction = Scale.apply((X @ W1 + b1).tanh() @ W2 + b2, factor)
        loss = ag.mean_squared_error(prediction, y)
        loss += 1e-4 * sum((W**2).sum() for W in (W1, W2))
        for parameter in parameters:
            parameter.zero_grad()
        loss.backward()
        with ag.no_grad():
            for parameter in parameters:
                parameter -= 0.2 * parameter.grad
        losses.append(loss.data)
    assert losses[-1] < losses[0] / 10
    assert factor.data != 1
    assert W1.dtype == np.float64
