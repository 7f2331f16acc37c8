"""gradcheck: small where gradients are right, large where they are wrong."""

import numpy as np
import pytest

import fastbp
from fastbp import layers


def x(rows=4, columns=3):
    return np.random.default_rng(0).normal(size=(rows, columns))


@pytest.mark.parametrize("make", [fastbp.Dropout, *layers.Activation.__subclasses__()])
def test_layers_without_parameters(device, make):
    errors = fastbp.gradcheck(make(device=device), x())
    assert list(errors) == ["x"]
    assert errors["x"] < 1e-8


@pytest.mark.parametrize("bias", [True, False])
def test_linear(device, bias):
    layer = fastbp.Linear(3, 2, bias=bias, device=device, seed=0)
    errors = fastbp.gradcheck(layer, x())
    assert list(errors) == ["x", "weight", "bias"][: 2 + bias]
    assert max(errors.values()) < 1e-8


def test_model_with_a_loss(device):
    model = fastbp.Sequential(
        fastbp.Linear(3, 5), fastbp.GELU(), fastbp.Dropout(0.5), fastbp.Linear(5, 3), device=device, seed=0
    )
    before, training = model.flat_parameters, model.training
    for loss, y in ((None, None), (fastbp.MSELoss(), x()), (fastbp.CrossEntropyLoss(0.1, [1, 2, 3]), [0, 2, 1, 1])):
        errors = fastbp.gradcheck(model, x(), y, loss=loss)
        assert list(errors) == ["x", "0.weight", "0.bias", "3.weight", "3.bias"]
        assert max(errors.values()) < 1e-7
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert model.training == training
    with pytest.raises(RuntimeError, match="no gradients"):
        _ = model.flat_gradients


def test_wrong_gradients_show(device):
    model = fastbp.Sequential(fastbp.Linear(3, 2), device=device, seed=0)
    errors = fastbp.gradcheck(model, x(), x()[:, :2], loss=lambda p, y: (float(((p - y) ** 2).sum()), p - y))
    assert min(errors.values()) > 0.1


def test_bad_arguments(device):
    layer = fastbp.Linear(3, 2, device=device)
    for call, error, match in (
        (lambda: fastbp.gradcheck("layer", x()), TypeError, "network must be a Sequential, a layer or a function"),
        (lambda: fastbp.gradcheck(layer, x(), x()), ValueError, "pass loss="),
        (lambda: fastbp.gradcheck(layer, x(), x(), loss="mse"), TypeError, "loss must be"),
        (lambda: fastbp.gradcheck(layer, x(), eps=0), ValueError, "eps must be above 0"),
        (lambda: fastbp.gradcheck(layer, x()[0]), ValueError, "x must have shape"),
    ):
        with pytest.raises(error, match=match):
            call()
