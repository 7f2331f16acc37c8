"""The backends against numbers of PyTorch, made once by golden/make_golden.py."""

from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp.kernels import layout

from .contract.cases import coefficients, zero_state

with np.load(Path(__file__).parent / "golden" / "golden.npz") as archive:
    GOLDEN = dict(archive)
PARAMETER = 0.25  # of the activations that have one

pytestmark = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def names(kind):
    """``(kind, a, b)`` of the entries ``kind/a/b/…``, without what follows."""
    return sorted({tuple(key.split("/")[1:3]) for key in GOLDEN if key.startswith(f"{kind}/")})


def assert_near(result, exact, roundings):
    """Within so many roundings of the larger of 1 and the exact number."""
    limit = roundings * np.finfo(result.dtype).eps
    np.testing.assert_allclose(result.astype(np.float64), exact, rtol=limit, atol=limit)


@pytest.mark.parametrize("name", layout.ACTIVATIONS)
def test_activation(backend, name, dtype):
    code, z = layout.ACTIVATIONS.index(name), GOLDEN["activation_z"].astype(dtype)[None, :]
    value, slope = GOLDEN[f"activation/{name}"]
    backend.activation_forward(z, code, PARAMETER, out := np.empty_like(z))
    saved = z if name in layout.SAVES_PRE_ACTIVATION else out
    backend.activation_backward(np.ones_like(z), saved, code, PARAMETER, grad := np.empty_like(z))
    assert_near(out[0], value, 4)
    assert_near(grad[0], slope, 16)  # PyTorch rounds 1 + tanh before it multiplies by z and its slope


@pytest.mark.parametrize(("name", "parameter"), names("loss"))
def test_loss(backend, name, parameter, dtype):
    prediction, target, value, gradient = (
        GOLDEN[f"loss/{name}/{parameter}/{entry}"] for entry in ("prediction", "target", "value", "gradient")
    )
    prediction = prediction.astype(dtype)
    target = target if name in layout.LABEL_LOSSES else target.astype(dtype)
    n = len(prediction)
    row_loss, row_hit, grad = np.empty(n, dtype), np.empty(n, np.int64), np.empty_like(prediction)
    arguments = prediction, target, np.ones(n), row_loss, row_hit, grad
    backend.loss_forward_backward(layout.LOSSES.index(name), float(parameter), *arguments)
    assert_near(row_loss, value, 16)
    if name == "binary_cross_entropy":  # the limit of p (1 - p), 1e-12, is PyTorch's rounded to float32
        ends = (prediction == 0) | (prediction == 1)
        np.testing.assert_allclose(grad[ends], gradient[ends], rtol=1e-7 + 8 * np.finfo(dtype).eps)
        grad, gradient = grad[~ends], gradient[~ends]
    assert_near(grad, gradient, 16)


@pytest.mark.parametrize(("name", "hyperparameters"), names("optimizer"))
def test_optimizer(backend, name, hyperparameters, dtype):
    named = {key: float(number) for key, number in (item.split("=") for item in hyperparameters.split(","))}
    values = GOLDEN["optimizer_start"].astype(dtype)
    state = zero_state(name, len(values), dtype)
    for t, grad in enumerate(GOLDEN["optimizer_grads"].astype(dtype)):
        backend.optimizer_step(layout.OPTIMIZERS.index(name), coefficients(name, t + 1, **named), values, grad, state)
        assert_near(values, GOLDEN[f"optimizer/{name}/{hyperparameters}"][t], 16)


def test_network(device, dtype):
    """Through the public functions: ten steps of an 8-16-4 network."""
    model = fastbp.Sequential(
        fastbp.Linear(8, 16), fastbp.Tanh(), fastbp.Linear(16, 4), dtype=dtype, device=device
    )  # fmt: skip
    model.flat_parameters = GOLDEN["network/parameters"]
    loss, optimizer, losses = fastbp.CrossEntropyLoss(), fastbp.Adam(lr=0.01), GOLDEN["network/losses"]
    batches = (np.split(GOLDEN[f"network/{name}"], len(losses)) for name in ("x", "labels"))
    steps = [model.train_step(x, y, loss, optimizer) for x, y in zip(*batches, strict=True)]
    np.testing.assert_allclose(steps, losses, rtol=64 * np.finfo(dtype).eps)
