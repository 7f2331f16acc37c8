"""The table of conventions of docs/from-pytorch.md, line by line beside PyTorch, where that is installed."""

import warnings

import numpy as np
import pytest

import fastbp
from fastbp.initializers import INITIALIZERS

torch = pytest.importorskip("torch")

F = torch.nn.functional


def tensor(array):
    return torch.tensor(np.asarray(array), requires_grad=np.asarray(array).dtype.kind == "f")


def of_torch(function, prediction, *others):
    """Value and gradient."""
    prediction = tensor(prediction)
    value = function(prediction, *map(torch.as_tensor, others))
    value.backward()
    return value.item(), prediction.grad.numpy()


def require_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-11, atol=1e-15)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def steps_of(ours, theirs, count=5, size=7):
    """The parameters after some steps with the same gradients, of a layer of each library."""
    rng = np.random.default_rng(1)
    model = fastbp.Sequential(fastbp.Linear(size, 3), dtype="float64", seed=0)
    weight = torch.nn.Parameter(torch.tensor(model[0].weight.copy()))
    bias = torch.nn.Parameter(torch.tensor(model[0].bias.copy()))
    ours, theirs = ours(model.parameters()), theirs([weight, bias])
    for _ in range(count):
        gradient = rng.standard_normal((size, 3)), rng.standard_normal(3)
        model.flat_gradients = np.concatenate([gradient[0].ravel(), gradient[1]])
        weight.grad, bias.grad = map(torch.tensor, gradient)
        ours.step()
        theirs.step()
    return model.flat_parameters, np.concatenate([weight.detach().numpy().ravel(), bias.detach().numpy()])


# ----------------------------------------------------------------------------------------- layers
def test_the_first_values_of_linear():
    layer, module = fastbp.Linear(400, 300, seed=0), torch.nn.Linear(400, 300)
    assert layer.weight.shape == tuple(module.weight.shape)[::-1]
    for ours, theirs in ((layer.weight, module.weight), (layer.bias, module.bias)):
        for values in (ours, theirs.detach().numpy()):
            assert 0.99 / 20 < np.abs(values).max() <= 1 / 20 * (1 + 1e-6)
            assert values.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"])
def test_initializers(name):
    ours = INITIALIZERS[name](np.random.default_rng(0), 300, 500)
    theirs = torch.empty(500, 300)
    getattr(torch.nn.init, f"{name}_")(theirs)
    assert ours.std() == pytest.approx(theirs.std().item(), rel=0.02)
    assert not fastbp.Linear(3, 2, init=name, seed=0).bias.any()


def test_gradients_are_replaced_and_add_in_the_graph():
    layer, module = fastbp.Linear(2, 1, seed=0), torch.nn.Linear(2, 1)
    x = np.ones((1, 2), np.float32)
    for _ in range(2):
        layer(x)
        layer.backward(np.ones((1, 1)))
        module(torch.from_numpy(x)).sum().backward()
    assert (layer.grad_weight == 1).all()
    assert (module.weight.grad.numpy() == 2).all()
    v = fastbp.Variable(1.0, requires_grad=True)
    for _ in range(2):
        (v * 1.0).backward()
    assert v.grad == 2


@pytest.mark.parametrize("layer", ["BatchNorm1d", "LayerNorm"])
def test_normalisation(layer, rng):
    x = rng.standard_normal((6, 4))
    ours, theirs = getattr(fastbp, layer)(4, dtype="float64"), getattr(torch.nn, layer)(4, dtype=torch.float64)
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-14)
    assert ours.eps == theirs.eps == 1e-5
    if layer == "BatchNorm1d":
        assert ours.momentum == theirs.momentum == 0.1
        np.testing.assert_allclose(ours.running_mean, theirs.running_mean, rtol=1e-12)
        np.testing.assert_allclose(ours.running_var, theirs.running_var, rtol=1e-12)
        np.testing.assert_allclose(ours.running_var, 0.9 + 0.1 * x.var(axis=0, ddof=1), rtol=1e-12)


def test_dropout_drops_the_share_p():
    x = np.ones((400, 400), np.float32)
    for out in (fastbp.Dropout(0.2, seed=0)(x), torch.nn.Dropout(0.2)(torch.from_numpy(x)).numpy()):
        assert (out == 0).mean() == pytest.approx(0.2, abs=0.01)
        assert out.max() == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ReLU", {}), ("LeakyReLU", {}), ("ELU", {}), ("SELU", {}), ("GELU", {}), ("GELU", {"approximate": "tanh"})]
    + [(name, {}) for name in ("SiLU", "Mish", "Softplus", "Tanh", "Sigmoid")],
)
def test_activations_and_their_derivatives(name, arguments):
    x = np.array([[-30.0, -3, -1, -0.1, 0, 0.1, 1, 3, 19, 21, 30]])
    ours, given = getattr(fastbp, name)(**arguments), tensor(x)
    theirs = getattr(torch.nn, name)(**arguments)(given)
    theirs.sum().backward()
    np.testing.assert_allclose(ours(x), theirs.detach().numpy(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(ours.backward(np.ones_like(x)), given.grad.numpy(), rtol=1e-8, atol=3e-9)


# ----------------------------------------------------------------------------------------- losses
def test_cross_entropy(rng):
    s, y, c = rng.standard_normal((9, 4)), rng.integers(0, 4, 9), np.array([1.0, 2, 0.5, 3])
    require_same(fastbp.CrossEntropyLoss()(s, y), of_torch(F.cross_entropy, s, y))
    weighted = of_torch(lambda s, y: F.cross_entropy(s, y, weight=torch.tensor(c)), s, y)
    require_same(fastbp.CrossEntropyLoss(class_weight=c)(s, y), weighted)
    smoothed = of_torch(lambda s, y: F.cross_entropy(s, y, label_smoothing=0.1), s, y)
    require_same(fastbp.CrossEntropyLoss(label_smoothing=0.1)(s, y), smoothed)
    both = of_torch(lambda s, y: F.cross_entropy(s, y, weight=torch.tensor(c), label_smoothing=0.1), s, y)
    assert fastbp.CrossEntropyLoss(0.1, c)(s, y)[0] != pytest.approx(both[0], rel=1e-6)
    assert torch.nn.CrossEntropyLoss().ignore_index == -100
    assert fastbp.CrossEntropyLoss().ignore_index is None


@pytest.mark.parametrize("name", ["MSELoss", "L1Loss", "HuberLoss"])
def test_losses_of_numbers_are_means_over_elements(name, rng):
    s, y = 2 * rng.standard_normal((2, 9, 4))
    require_same(getattr(fastbp, name)()(s, y), of_torch(getattr(torch.nn, name)(), s, y))


def test_binary_losses(rng):
    s, y = rng.standard_normal((9, 2)), rng.random((9, 2))
    p = 1 / (1 + np.exp(-s))
    require_same(fastbp.BCELoss()(p, y), of_torch(F.binary_cross_entropy, p, y))
    require_same(fastbp.BCEWithLogitsLoss()(s, y), of_torch(F.binary_cross_entropy_with_logits, s, y))
    of_weights = torch.nn.BCEWithLogitsLoss(pos_weight=torch.full((2,), 3.0))
    require_same(fastbp.BCEWithLogitsLoss(pos_weight=3.0)(s, y), of_torch(of_weights, s, y))
    assert fastbp.BCELoss()([[0.0]], [[1.0]])[0] == 100
    assert F.binary_cross_entropy(torch.zeros(1), torch.ones(1)).item() == 100


def test_poisson(rng):
    s, y = rng.standard_normal((9, 2)), rng.integers(0, 5, (9, 2)).astype(float)
    ours, theirs = fastbp.PoissonLoss()(s, y), of_torch(torch.nn.PoissonNLLLoss(log_input=True), s, y)
    of_target = np.where(y > 0, y * np.log(np.maximum(y, 1)) - y, 0).mean()
    require_same((ours[0] - of_target, ours[1]), theirs)


def test_shapes_must_be_equal():
    s, y = np.zeros((3, 1)), np.ones(3)
    assert fastbp.MSELoss()(s, y)[0] == fastbp.MSELoss()(s, y[:, None])[0]
    with pytest.raises(ValueError, match="shape"):
        fastbp.MSELoss()(np.zeros((3, 2)), y)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.nn.MSELoss()(torch.zeros(3, 1), torch.ones(3))
    assert "broadcasting" in str(told[0].message)


# ------------------------------------------------------------------------------------- optimizers
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: fastbp.SGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            lambda p: fastbp.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        ),
        (
            lambda p: fastbp.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        ),
        (fastbp.Adam, torch.optim.Adam),
        (lambda p: fastbp.Adam(p, amsgrad=True), lambda p: torch.optim.Adam(p, amsgrad=True)),
        (lambda p: fastbp.Adam(p, weight_decay=0.1), lambda p: torch.optim.Adam(p, weight_decay=0.1)),
        (fastbp.AdamW, torch.optim.AdamW),
        (
            lambda p: fastbp.RMSProp(p, lr=0.01, beta=0.99, eps_inside_sqrt=False),
            torch.optim.RMSprop,
        ),
    ],
)
def test_optimizers_step_alike(ours, theirs):
    np.testing.assert_allclose(*steps_of(ours, theirs), rtol=1e-11, atol=1e-14)


def test_defaults_of_optimizers():
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    assert torch.optim.SGD(parameter).defaults["lr"] == 1e-3
    assert fastbp.SGD().lr == 1e-2
    theirs, ours = torch.optim.RMSprop(parameter).defaults, fastbp.RMSProp()
    assert (theirs["alpha"], theirs["lr"], theirs["eps"]) == (0.99, 0.01, 1e-8)
    assert (ours.beta, ours.lr, ours.eps, ours.eps_inside_sqrt) == (0.9, 1e-3, 1e-8, True)


def test_clipping():
    model = fastbp.Sequential(fastbp.Linear(2, 1, bias=False), dtype="float64", seed=0)
    optimizer = fastbp.SGD(model.parameters(), lr=1.0, clip_norm=0.5)
    model[0].weight = np.zeros((2, 1))
    model.flat_gradients = np.array([3.0, 4.0])
    optimizer.step()
    np.testing.assert_allclose(model.flat_parameters, [-0.3, -0.4], rtol=1e-15)
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    parameter.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    np.testing.assert_allclose(parameter.grad, np.array([3.0, 4.0]) * 0.5 / (5 + 1e-6), rtol=1e-12)


def test_momentum_is_an_average_of_gradients():
    model = fastbp.Sequential(fastbp.Linear(1, 1, bias=False), dtype="float64", seed=0)
    model[0].weight, optimizer = [[0.0]], fastbp.Momentum(model.parameters(), lr=1.0, beta=0.9)
    model.flat_gradients = [1.0]
    optimizer.step()
    np.testing.assert_allclose(model.flat_parameters, [-0.1], rtol=1e-12)


def test_what_only_one_of_both_has():
    assert not hasattr(torch.nn, "QuantileLoss")
    assert not hasattr(torch.nn, "HalfSquaredErrorLoss")
    assert (torch.tensor(1.0).dtype, fastbp.Variable(1.0).dtype) == (torch.float32, np.float64)


def test_modes():
    x = np.ones((50, 8), np.float32)
    model = fastbp.Sequential(fastbp.Linear(8, 8), fastbp.Dropout(0.5), seed=0)
    assert model.training
    assert (model.predict(x) != 0).all()
    assert (model(x) == 0).any()
    assert (model.eval()(x) != 0).all()
    module = torch.nn.Dropout(0.5)
    assert (module(torch.from_numpy(x)) == 0).any()
    assert (module.eval()(torch.from_numpy(x)) == 1).all()


# --------------------------------------------------------------------------------------- schedules
def scheduled(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules():
    lr_scheduler, steps = torch.optim.lr_scheduler, 20
    cosine = scheduled(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps), steps)
    np.testing.assert_allclose([fastbp.CosineSchedule(0.1, steps)(i) for i in range(steps)], cosine, rtol=1e-9)
    cycle = scheduled(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps), steps - 1)
    np.testing.assert_allclose([fastbp.OneCycleSchedule(0.1, steps)(i) for i in range(steps - 1)], cycle, rtol=1e-9)


def test_plateaus():
    """With patience 2 and losses that never improve, after how many epochs the rate falls first."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    assert (theirs.threshold, theirs.threshold_mode) == (1e-4, "rel")
    fallen = 0
    for epoch in range(1, 10):
        theirs.step(1.0)
        if optimizer.param_groups[0]["lr"] < 0.1:
            fallen = epoch
            break
    model, ours = fastbp.Sequential(fastbp.Linear(1, 1), seed=0), fastbp.SGD(lr=0.1)
    callback = fastbp.ReduceLROnPlateau(patience=2)
    callback.on_fit_begin(model, {"optimizer": ours, "validation_rows": 0})
    for epoch in range(1, 10):
        callback.on_epoch_end(model, {"epoch": epoch, "loss": 1.0})
        if ours.lr < 0.1:
            break
    assert (fallen, epoch) == (4, 3)  # the first epoch is the best, then 3 without improvement, and 2
