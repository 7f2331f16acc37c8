"""Layers that do not train: what stays, what still flows through them, and where it is kept."""

import copy

import numpy as np
import pytest

import fastbp
from fastbp.kernels import program

FROZEN = [(0,), (1,), (3,), (4,), (0, 1), (1, 3), (0, 3, 4), (0, 1, 3)]  # 3 is the Linear inside of the Residual


def data(rows=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def make(device, frozen=(), dtype="float64"):
    block = fastbp.Residual(fastbp.LayerNorm(8), fastbp.Linear(8, 8))
    layers = fastbp.Linear(4, 8), fastbp.BatchNorm1d(8), fastbp.Tanh(), block, fastbp.Linear(8, 3)
    model = fastbp.Sequential(*layers, dtype=dtype, device=device, seed=0)
    for place in frozen:
        layer_at(model, place).trainable = False
    return model


def layer_at(model, place):
    return model[3].layers[1] if place == 3 else model[place]


def prefixes(frozen):
    return tuple("3.1." if place == 3 else f"{place}." for place in frozen)


def fit(model, optimizer=None, **arguments):
    x, y = data()
    given = {"loss": fastbp.CrossEntropyLoss(), "epochs": 2, "batch_size": 8, "verbose": False} | arguments
    return model.fit(x, y, optimizer=optimizer or fastbp.AdamW(lr=0.01, weight_decay=0.1), **given)


@pytest.mark.parametrize("frozen", FROZEN, ids=str)
@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
def test_frozen_layers_stay_and_the_others_train(device, frozen, clip_norm):
    model = make(device, frozen)
    before = model.state_dict()
    fit(model, fastbp.AdamW(lr=0.01, weight_decay=0.1, clip_norm=clip_norm))
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == name.startswith(prefixes(frozen)), name


@pytest.mark.parametrize("frozen", [(0,), (3,), (1, 3), (4,)], ids=str)
def test_training_is_that_of_the_definition(frozen):
    """The compiled walk beside the reference, and both beside a loop that puts frozen values back."""
    models = [make("reference", frozen), make("cpu", frozen)]
    for model in models:
        fit(model, fastbp.SGD(lr=0.1, momentum=0.9))
    np.testing.assert_allclose(models[1].flat_parameters, models[0].flat_parameters, rtol=1e-9, atol=1e-12)
    if 1 in frozen:  # whose running statistics stand for the batch's, unlike in a loop
        return
    x, y = data()
    whole, loss = make("reference"), fastbp.CrossEntropyLoss(device="reference")
    optimizer, kept = fastbp.SGD(whole.parameters(), lr=0.1, momentum=0.9), whole.state_dict()
    frozen_model = make("reference", frozen)
    for xb, yb in list(fastbp.batches(x, y, 8, seed=0)) * 2:
        whole.backward(loss(whole(xb), yb)[1])
        optimizer.step()
        now = whole.state_dict()
        whole.load_state_dict(now | {name: kept[name] for name in now if name.startswith(prefixes(frozen))})
        frozen_model.train_step(xb, yb, loss, optimizer_of(frozen_model))
    np.testing.assert_allclose(frozen_model.flat_parameters, whole.flat_parameters, rtol=1e-9, atol=1e-12)


def optimizer_of(model, made={}):  # noqa: B006 - one for each model
    return made.setdefault(id(model), fastbp.SGD(lr=0.1, momentum=0.9))


def test_gradients_of_frozen_layers_are_0_and_flow_through(device):
    x, y = data()
    whole, model = make(device), make(device)
    loss = fastbp.CrossEntropyLoss(device=device)
    grads = []
    for one in (whole, model):
        one.backward(loss(one(x), y)[1])  # leaves gradients of all layers
    model[4].trainable = model[0].trainable = False
    for one in (whole, model):
        grads.append(one.backward(loss(one(x), y)[1]))
    np.testing.assert_array_equal(grads[0], grads[1])
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(other.grad, 0 if other.name[0] in "04" else one.grad)
    assert not model[0].grad_weight.any()
    if device != "cuda":
        model[0](x)
        model[0].backward(np.ones((40, 8)))
        assert not model[0].grad_weight.any()
    with pytest.raises(RuntimeError, match="set trainable = True to update it"):
        model[0].update_parameters(0.1)


def test_the_state_of_the_optimizer_is_kept(device):
    model, optimizer = make(device), fastbp.Adam(lr=0.01)
    fit(model, optimizer)
    before = optimizer.state_dict()
    model[0].trainable = False
    fit(model, optimizer)
    count = 4 * 8 + 8  # of the first layer
    for name in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_array_equal(optimizer.state_dict()[name][:count], before[name][:count])
        assert (optimizer.state_dict()[name][count:] != before[name][count:]).any()
    values = model[0].weight.copy()
    model[0].trainable = True
    fit(model, optimizer)
    assert (model[0].weight != values).any()


def test_a_frozen_layer_stays_frozen(device, tmp_path):
    model = make(device, (0, 3))
    for other in (copy.deepcopy(model), saved(model, tmp_path, device), again(model, tmp_path)):
        assert [layer_at(other, place).trainable for place in (0, 1, 3, 4)] == [False, True, False, True]
        before = other.state_dict()
        fit(other)
        after = other.state_dict()
        np.testing.assert_array_equal(after["0.weight"], before["0.weight"])
        assert (after["4.weight"] != before["4.weight"]).any()
        layer_at(other, 0).trainable = True
        assert not layer_at(model, 0).trainable
    assert "0 Linear, frozen" in str(model)
    alone = fastbp.Linear(4, 8)
    alone.trainable = False
    part = fastbp.Sequential(alone, fastbp.Linear(8, 3), device=device)
    assert not part[0].trainable
    with pytest.raises(TypeError, match="trainable must be True or False"):
        alone.trainable = 0.5


def saved(model, folder, device):
    model.save(folder / "model.npz")
    return fastbp.load(folder / "model.npz", device=device)


def again(model, folder):
    """Training that was begun, and is gone on with on a model of the same frozen layers."""
    fit(make(model.device, (0, 3)), fastbp.AdamW(lr=0.01), epochs=1, checkpoint=folder / "run")
    with pytest.raises(ValueError, match="whose frozen was"):
        fit(make(model.device), fastbp.AdamW(lr=0.01), resume=folder / "run")
    other = make(model.device, (0, 3))
    fit(other, fastbp.AdamW(lr=0.01), resume=folder / "run")
    return other


def test_a_frozen_batch_norm_takes_single_rows(device):
    x, y = data()
    model = make(device, (1,))
    model.train_step(x[:1], y[:1], fastbp.CrossEntropyLoss(), fastbp.SGD())
    np.testing.assert_allclose(model.forward(x), model.predict(x), rtol=1e-10, atol=1e-12)


def test_what_cannot_be(device):
    model = make(device, (0, 1, 4))
    model[3].layers[0].trainable = model[3].layers[1].trainable = False
    with pytest.raises(ValueError, match="every layer of this model is frozen"):
        fit(model)
    with pytest.raises(ValueError, match="every layer of this model is frozen"):
        model.train_step(*data(), fastbp.CrossEntropyLoss(), fastbp.SGD())

    class Freeze:
        def on_epoch_end(self, model, record):
            model[0].trainable = False

    with pytest.raises(RuntimeError, match="being trained already"):
        fit(make(device), callbacks=[Freeze()])


def test_what_a_frozen_layer_costs():
    """No instruction for its gradient, nor for those before it that nothing needs."""
    whole, model = make("reference").program, make("reference", (0, 1)).program
    names = [[program.OPERATIONS[row[0]] for row in one.training.instructions[: one.training.updated]]
             for one in (whole, model)]  # fmt: skip
    assert names[0].count("linear_backward_params") == 3
    assert names[1].count("linear_backward_params") == 2
    assert "batch_moments" not in names[1]
    assert {"batch_norm_backward_input", "layer_norm_backward_input"} <= set(names[0]) - set(names[1])
    assert whole.trained == [slice(0, whole.size)]
