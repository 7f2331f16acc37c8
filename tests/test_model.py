"""`Sequential`: what it computes, whose memory it is, own loops, single steps, predictions, copies."""

import copy
import pickle
import threading

import numpy as np
import pytest

import fastbp


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def small(device, dtype="float64", last=(), seed=0):
    return fastbp.Sequential(
        fastbp.Linear(3, 20),
        fastbp.Tanh(),
        fastbp.Linear(20, 5),
        fastbp.Sigmoid(),
        fastbp.Linear(5, 2),
        *last,
        dtype=dtype,
        device=device,
        seed=seed,
    )


def by_hand(model, x):
    values = {"Tanh": np.tanh, "Sigmoid": lambda z: 1 / (1 + np.exp(-z)), "ReLU": lambda z: np.maximum(z, 0)}
    for layer in model.layers:
        x = x @ layer.weight + layer.bias if isinstance(layer, fastbp.Linear) else values[type(layer).__name__](x)
    return x


ARCHITECTURES = {
    "linear": lambda: [fastbp.Linear(3, 2)],
    "mlp": lambda: [fastbp.Linear(3, 20), fastbp.Tanh(), fastbp.Linear(20, 2)],
    "activation first": lambda: [fastbp.Tanh(), fastbp.Linear(3, 2)],
    "activation after activation": lambda: [fastbp.Linear(3, 9), fastbp.Tanh(), fastbp.Sigmoid(), fastbp.Linear(9, 2)],
    "activation last": lambda: [fastbp.Linear(3, 4), fastbp.Linear(4, 2), fastbp.Sigmoid(), fastbp.Tanh()],
}


# ------------------------------------------------------------------------------------ the chain
@pytest.mark.parametrize("layers", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_forward_predict_and_the_formula_agree(device, rng, layers):
    model = fastbp.Sequential(*layers(), dtype="float64", device=device, seed=0)
    x = rng.normal(size=(7, 3))
    np.testing.assert_allclose(model(x), by_hand(model, x), rtol=1e-12)
    np.testing.assert_allclose(model.predict(x), by_hand(model, x), rtol=1e-12)


# An activation whose derivative needs z, joined to the layer before it, and one that another activation follows.
SAVES_Z = {
    "gelu": lambda: [fastbp.Linear(3, 9), fastbp.GELU(), fastbp.Linear(9, 2)],
    "mish, silu": lambda: [fastbp.Linear(3, 9), fastbp.Mish(), fastbp.SiLU(), fastbp.Linear(9, 2), fastbp.GELU("tanh")],
}


@pytest.mark.parametrize("layers", [*ARCHITECTURES.values(), *SAVES_Z.values()], ids=[*ARCHITECTURES, *SAVES_Z])
def test_backward_against_finite_differences(device, rng, layers):
    model = fastbp.Sequential(*layers(), dtype="float64", device=device, seed=0)
    x, upstream = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model(x)
    grad_x = model.backward(upstream)
    gradients, flat = model.flat_gradients, model.flat_parameters
    numeric = np.empty_like(flat)
    for i in range(len(flat)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = flat.copy()
            moved[i] += step
            model.flat_parameters = moved
            ends.append((model(x) * upstream).sum())
        numeric[i] = (ends[0] - ends[1]) / 2e-6
    model.flat_parameters = flat
    np.testing.assert_allclose(gradients, numeric, atol=1e-8)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        difference = ((model(up) - model(down)) * upstream).sum() / 2e-6
        assert grad_x[index] == pytest.approx(difference, abs=1e-8)


def test_backward_accumulates_when_told(device, rng):
    model = small(device)
    x, grad = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model(x)
    model.backward(grad)
    once = model.flat_gradients
    model.backward(grad)
    np.testing.assert_array_equal(model.flat_gradients, once)
    model.backward(grad, accumulate=True)
    np.testing.assert_allclose(model.flat_gradients, 2 * once, rtol=1e-14)
    model.zero_grad()
    np.testing.assert_array_equal(model.flat_gradients, 0)


def test_backward_of_the_parameters_alone(device, rng):
    """Layers without parameters come first; gradients are overwritten, or added to."""
    layers = fastbp.Tanh(), fastbp.Sigmoid(), fastbp.Linear(3, 4), fastbp.ReLU(), fastbp.Linear(4, 2)
    model = fastbp.Sequential(*layers, dtype="float64", device=device, seed=0)
    x, grad = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model(x)
    for accumulate in (False, True):
        model.backward(grad)
        model.backward(grad, accumulate=accumulate)
        expected = model.flat_gradients
        model.backward(grad)
        assert model.backward_parameters(grad, accumulate=accumulate) is None
        np.testing.assert_array_equal(model.flat_gradients, expected)


def test_output_may_be_changed_before_backward(device, rng):
    x, grad = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    results = []
    for spoil in (False, True):
        model = small(device, last=[fastbp.Tanh()])
        out = model(x)
        if spoil:
            out[:] = 9
        results.append(model.backward(grad))
    np.testing.assert_array_equal(*results)


# ----------------------------------------------------------------------------------- ownership
def test_layers_become_views_and_keep_values_set_before(device):
    weight = np.arange(6.0).reshape(3, 2)
    layer = fastbp.Linear(3, 2)
    layer.weight = weight
    model = fastbp.Sequential(layer, dtype="float64", device=device, seed=0)
    np.testing.assert_array_equal(layer.weight, weight)
    assert layer.weight.dtype == np.float64
    assert np.shares_memory(layer.weight, model.parameters()[0].data)
    layer.weight = 2 * weight
    np.testing.assert_array_equal(model.state_dict()["0.weight"], 2 * weight)


def test_layer_used_alone_keeps_its_values(device, rng):
    layer = fastbp.Linear(3, 2, dtype="float64", device=device, seed=1)
    x = rng.normal(size=(4, 3))
    alone = layer(x)
    model = fastbp.Sequential(layer, dtype="float64", device=device)
    np.testing.assert_allclose(model(x), alone, rtol=1e-14)


def test_seed_decides_the_values(device):
    np.testing.assert_array_equal(small(device, seed=4).flat_parameters, small(device, seed=4).flat_parameters)
    assert (small(device, seed=4).flat_parameters != small(device, seed=5).flat_parameters).any()


def test_flat_parameters(device):
    model = small(device)
    flat = model.flat_parameters
    assert flat.shape == (3 * 20 + 20 + 20 * 5 + 5 + 5 * 2 + 2,)
    np.testing.assert_array_equal(flat[:60].reshape(3, 20), model[0].weight)
    np.testing.assert_array_equal(flat[60:80], model[0].bias)
    flat[:] = 1
    assert (model.flat_parameters != 1).any()  # a copy
    model.flat_parameters = flat
    np.testing.assert_array_equal(model[2].weight, 1)
    with pytest.raises(ValueError, match=r"flat_parameters must have shape \(197,\)"):
        model.flat_parameters = flat[1:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_padding_holds_does_not_matter(device, rng, dtype):
    models = [small(device, dtype) for _ in range(2)]
    buffer, flat = models[1]._parameters.values, models[1].flat_parameters
    buffer[:] = np.nan
    models[1].flat_parameters = flat
    assert np.isnan(buffer).any()
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 2, 30)
    for model in models:
        model.fit(x, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(), batch_size=8, verbose=False)
        model(x)
        model.backward(np.ones((30, 2)))
        fastbp.SGD(model.parameters()).step()
    np.testing.assert_array_equal(models[0].predict(x), models[1].predict(x))
    np.testing.assert_array_equal(models[0].flat_parameters, models[1].flat_parameters)
    np.testing.assert_array_equal(models[0].flat_gradients, models[1].flat_gradients)


def test_named_parameters(device):
    model = small(device)
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert [parameter.name for parameter in model.parameters()] == names
    assert list(model.state_dict()) == names
    model.parameters()[1].data = np.ones(20)
    np.testing.assert_array_equal(model[0].bias, 1)


def test_load_state_dict(device):
    model, other = small(device, seed=0), small(device, seed=1)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)
    state = model.state_dict()
    for bad in (
        {k: v for k, v in state.items() if k != "4.bias"},
        state | {"9.bias": np.ones(2)},
        state | {"4.bias": np.ones(3)},
        {k: 0 * v for k, v in state.items()} | {"4.bias": np.ones(3)},
    ):
        with pytest.raises(ValueError, match="must have"):
            other.load_state_dict(bad)
        np.testing.assert_array_equal(model.flat_parameters, other.flat_parameters)


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        (list, ValueError, "at least one Linear"),
        (lambda: [fastbp.ReLU()], ValueError, "at least one Linear"),
        (lambda: [fastbp.Linear(3, 2), fastbp.Linear(3, 2)], ValueError, "layer 1.*must take in_features=2"),
        (lambda: [[fastbp.Linear(3, 2)]], TypeError, "layer 0 must be a layer of fastbp"),
        (lambda: [fastbp.Linear(3, 2), fastbp.ReLU], TypeError, "layer 1 must be a layer of fastbp"),
        (lambda: [fastbp.Linear(2, 2)] * 2, ValueError, "part of a model already"),
    ],
)
def test_bad_layers(device, layers, error, match):
    with pytest.raises(error, match=match):
        fastbp.Sequential(*layers(), device=device)


def test_layer_of_another_model(device):
    model = small(device)
    with pytest.raises(ValueError, match="part of a model already"):
        fastbp.Sequential(model[0], device=device)


def test_failed_model_leaves_layers_free(device):
    layer = fastbp.Linear(3, 2)
    for arguments in ({"dtype": "int32"}, {"device": "tpu"}):
        with pytest.raises(ValueError, match="must be"):
            fastbp.Sequential(layer, **arguments)
    fastbp.Sequential(layer, device=device)


# ----------------------------------------------------------------------------------- own loops
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_own_loop_and_train_step_are_the_same_step(device, rng, dtype, zero):
    loop, single = small(device, dtype), small(device, dtype)
    loss_fn = fastbp.CrossEntropyLoss(device=device)
    loop_optimizer, single_optimizer = fastbp.Adam(loop.parameters(), lr=0.01), fastbp.Adam(lr=0.01)
    for rows in (8, 8, 3, 8):
        x, y = rng.normal(size=(rows, 3)), rng.integers(0, 2, rows)
        value, grad = loss_fn(loop(x), y)
        if zero:
            loop_optimizer.zero_grad()
        loop.backward(grad)
        loop_optimizer.step()
        assert single.train_step(x, y, loss_fn, single_optimizer) == pytest.approx(value, rel=1e-5)
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(loop.flat_parameters, single.flat_parameters, rtol=tolerance, atol=tolerance)
    assert loop_optimizer.step_count == single_optimizer.step_count == 4


def test_train_step_with_a_loss_of_the_users(device, rng):
    own, builtin = small(device), small(device)

    def loss_fn(prediction, target):
        error = prediction - target
        return (error**2).mean(), 2 * error / error.size

    x, y = rng.normal(size=(2, 6, 3))
    optimizers = fastbp.Adam(), fastbp.Adam()
    for _ in range(3):
        a = own.train_step(x, y[:, :2], loss_fn, optimizers[0])
        b = builtin.train_step(x, y[:, :2], fastbp.MSELoss(), optimizers[1])
        assert a == pytest.approx(b)
    np.testing.assert_allclose(own.flat_parameters, builtin.flat_parameters, rtol=1e-10)


def test_train_step_stores_no_gradients(device, rng):
    model, optimizer = small(device), fastbp.SGD()
    x, y = rng.normal(size=(4, 3)), np.array([0, 1, 1, 0])
    model(x)
    model.backward(np.ones((4, 2)))
    model.train_step(x, y, fastbp.CrossEntropyLoss(), optimizer)
    for read in (lambda: model.flat_gradients, lambda: model[0].grad_weight, lambda: model.parameters()[0].grad):
        with pytest.raises(RuntimeError, match="do not store gradients"):
            read()
    with pytest.raises(RuntimeError, match="no gradients"):
        optimizer.step()
    model(x)
    model.backward(np.zeros((4, 2)), accumulate=True)  # adds to nothing that was there
    np.testing.assert_array_equal(model.flat_gradients, 0)


def test_train_step_with_nan_changes_nothing_and_says_nan(device):
    model, optimizer = small(device), fastbp.Adam()
    before = model.flat_parameters
    x = np.full((4, 3), np.nan)
    assert np.isnan(model.train_step(x, [0, 1, 0, 1], fastbp.CrossEntropyLoss(), optimizer))
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert optimizer.step_count == 0


@pytest.mark.parametrize(
    ("x", "y", "error", "match"),
    [
        (np.ones((4, 2)), [0, 1, 0, 1], ValueError, r"x must have shape \(n, 3\), got \(4, 2\)"),
        (np.ones((4, 3)), [0, 1, 0], ValueError, r"y must have shape \(4,\)"),
        (np.ones((4, 3)), [0, 1, 0, 2], ValueError, r"y\[3\] = 2"),
        (np.ones((4, 3)), np.array([0, 1, -1, 0]), ValueError, r"y\[2\] = -1"),
        (np.ones((4, 3)), [0.0, 1.0, 0.0, 1.0], TypeError, "integer class labels"),
        (np.ones((0, 3)), np.ones(0, int), ValueError, "at least one row"),
        (np.ones((4, 3), complex), [0, 1, 0, 1], TypeError, "complex128"),
    ],
)
def test_train_step_with_bad_batches(device, x, y, error, match):
    model, optimizer = small(device), fastbp.SGD()
    before = model.flat_parameters
    with pytest.raises(error, match=match):
        model.train_step(x, y, fastbp.CrossEntropyLoss(), optimizer)
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert optimizer.step_count == 0


def test_train_step_with_what_cannot_train(device):
    model = small(device)
    with pytest.raises(TypeError, match="loss must be"):
        model.train_step(np.ones((2, 3)), [0, 1], "mse", fastbp.SGD())
    with pytest.raises(TypeError, match="optimizer must be of type Optimizer"):
        model.train_step(np.ones((2, 3)), [0, 1], fastbp.MSELoss(), "sgd")
    with pytest.raises(TypeError, match=r"loss must return \(value, gradient\)"):
        model.train_step(np.ones((2, 3)), [0, 1], lambda prediction, target: 1.0, fastbp.SGD())


def test_backward_before_forward(device):
    with pytest.raises(RuntimeError, match=r"call model\(x\) first"):
        small(device).backward(np.ones((1, 2)))


def test_mode(device):
    model = small(device)
    assert model.training
    assert model.eval() is model
    assert not model.training
    model.predict(np.ones((1, 3)))
    assert not model.training
    assert model.train().training


# --------------------------------------------------------------------------------- predictions
def arrangements(x):
    yield "float16", x.astype(np.float16)
    yield "float32", x.astype(np.float32)
    yield "float64", x.astype(np.float64)
    yield "int8", x.astype(np.int8)
    yield "uint64", x.astype(np.uint64)
    yield "bool", x > 2
    yield "big-endian", x.astype(">f8")
    yield "columns", np.asfortranarray(x)
    yield "every other row", np.repeat(x, 2, axis=0)[::2]
    yield "every other column", np.repeat(x, 2, axis=1)[:, ::2]
    yield "backwards", x[::-1, ::-1][::-1, ::-1].copy()[::-1, ::-1]
    yield "zero stride", np.broadcast_to(x[:1], x.shape)
    read_only = x.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    yield "unaligned", unaligned
    yield "list", x.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind, _ in arrangements(np.ones((2, 2)))])
def test_predict_takes_every_layout(device, dtype, kind):
    model = small(device, dtype)
    x = dict(arrangements(np.random.default_rng(0).integers(0, 5, (6, 3)).astype(dtype)))[kind]
    before = np.array(x)
    out = model.predict(x)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, model.predict(np.array(x, dtype, order="C")))
    np.testing.assert_array_equal(model.forward(x), model.forward(np.array(x, dtype, order="C")))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_of_a_slice_is_the_slice_of_predict(device, rng, dtype):
    if device == "reference":
        pytest.skip("NumPy's products depend on the batch")
    model = small(device, dtype)
    x = rng.normal(size=(300, 3)).astype(dtype)
    whole = model.predict(x)
    for part in (slice(0, 1), slice(5, 22), slice(7, 300, 3), slice(299, 300)):
        np.testing.assert_array_equal(model.predict(x[part]), whole[part])


def test_predict_in_blocks(device, rng):
    model = small(device)
    x = rng.normal(size=(50, 3))
    whole = model.predict(x)
    model.prediction_block = 7
    np.testing.assert_allclose(model.predict(x), whole, rtol=1e-14)
    np.testing.assert_allclose(model.predict(np.asfortranarray(x)), whole, rtol=1e-14)


def test_predict_of_nothing_and_of_nan(device):
    model = small(device)
    assert model.predict(np.ones((0, 3))).shape == (0, 2)
    x = np.zeros((3, 3))
    x[1, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(model.predict(x)).any(axis=1), [False, True, False])


def test_predict_leaves_what_backward_needs(device, rng):
    model, other = small(device), small(device)
    x = rng.normal(size=(4, 3))
    for m in (model, other):
        m(x)
    model.predict(rng.normal(size=(9, 3)))
    np.testing.assert_array_equal(model.backward(np.ones((4, 2))), other.backward(np.ones((4, 2))))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones((4, 2)), ValueError, r"X must have shape \(n, 3\), got \(4, 2\)"),
        (np.ones(3), ValueError, r"X\[None, :\]"),
        (np.ones((1, 1, 3)), ValueError, r"got \(1, 1, 3\)"),
        (np.ones((2, 3), complex), TypeError, "complex128"),
        (np.array([["a", "b", "c"]]), TypeError, "<U1"),
        (np.array([[None, 1, 2]]), TypeError, "object"),
        (np.ones((2, 3), "datetime64[s]"), TypeError, "datetime64"),
        ([[1, 2], [3]], ValueError, "rectangular"),
    ],
)
def test_predict_of_bad_arrays(device, x, error, match):
    with pytest.raises(error, match=match):
        small(device).predict(x)


def test_predict_from_several_threads(device, rng):
    model = small(device)
    x = rng.normal(size=(200, 3))
    expected, results = model.predict(x), []

    def work():
        results.extend(np.array_equal(model.predict(x), expected) for _ in range(30))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 120


def test_predict_proba(device, rng):
    model = small(device)
    x = rng.normal(size=(4, 3))
    with pytest.raises(ValueError, match="needs a classification loss, got None"):
        model.predict_proba(x)
    expected = fastbp.CrossEntropyLoss.probabilities(model.predict(x), device=device)
    np.testing.assert_array_equal(model.predict_proba(x, loss=fastbp.CrossEntropyLoss()), expected)
    model.train_step(x, [0, 1, 0, 1], fastbp.CrossEntropyLoss(), fastbp.SGD(lr=0))
    np.testing.assert_array_equal(model.predict_proba(x), expected)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    rows = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(model.predict_proba(rows[7:31]), model.predict_proba(rows)[7:31])


def test_predict_proba_of_binary_losses(device, rng):
    model = small(device)
    x = rng.normal(size=(4, 3))
    for loss, expected in (
        (fastbp.BCEWithLogitsLoss(), 1 / (1 + np.exp(-model.predict(x)))),
        (fastbp.BCELoss(), model.predict(x)),
    ):
        np.testing.assert_allclose(model.predict_proba(x, loss), expected, rtol=1e-14)
    with pytest.raises(ValueError, match="needs a classification loss"):
        model.predict_proba(x, fastbp.MSELoss())


def test_train_step_takes_labels_and_probabilities_in_turn(device, rng):
    x, labels = rng.normal(size=(4, 3)), np.array([0, 1, 0, 1])
    loss, soft = fastbp.CrossEntropyLoss(class_weight=[1, 3], device=device), np.eye(2)[labels]
    model, own = small(device), small(device)
    optimizer, own_optimizer = fastbp.SGD(lr=0.1), fastbp.SGD(own.parameters(), lr=0.1)
    for y in (labels, soft, labels, labels.astype(np.int8), soft.astype(np.float32)):
        value, gradient = loss(own(x), y)
        own.backward(gradient)
        own_optimizer.step()
        assert model.train_step(x, y, loss, optimizer) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(model.flat_parameters, own.flat_parameters, rtol=1e-12)
    with pytest.raises(ValueError, match=r"y\[1, 0\] = 7"):
        model.train_step(x, soft + np.array([[0, 0], [7, 0], [0, 0], [0, 0]]), loss, optimizer)


# ---------------------------------------------------------------------------------- the object
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_independent(device, rng, duplicate):
    model = small(device)
    x, y = rng.normal(size=(4, 3)), np.array([0, 1, 0, 1])
    model.train_step(x, y, fastbp.CrossEntropyLoss(), fastbp.Adam())
    model.predict(x)
    other = duplicate(model)
    expected = model.predict(x)
    np.testing.assert_array_equal(other.predict(x), expected)
    assert np.shares_memory(other[0].weight, other.parameters()[0].data)
    other.train_step(x, y, fastbp.CrossEntropyLoss(), fastbp.SGD(lr=1.0))
    np.testing.assert_array_equal(model.predict(x), expected)
    assert (other.predict(x) != expected).any()
    assert other.generator.random() == model.generator.random()


def test_copy_keeps_gradients(device, rng):
    model = small(device)
    model(rng.normal(size=(4, 3)))
    model.backward(np.ones((4, 2)))
    np.testing.assert_array_equal(copy.deepcopy(model).flat_gradients, model.flat_gradients)


def test_two_trainers_of_one_model(device, rng):
    model = small(device)
    x, y = rng.normal(size=(4, 3)), np.array([0, 1, 0, 1])
    loss, optimizer, errors = fastbp.CrossEntropyLoss(), fastbp.SGD(), []

    def other():
        for train in (
            lambda: model.train_step(x, y, loss, optimizer),
            lambda: model.fit(x, y, loss=loss, optimizer=optimizer, verbose=False),
        ):
            with pytest.raises(RuntimeError, match="being trained already") as caught:
                train()
            errors.append(caught)

    before = model.flat_parameters
    with model.exclusive():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 2
    np.testing.assert_array_equal(model.flat_parameters, before)
    model.train_step(x, y, loss, optimizer)


def test_precision_of_products(rng):
    x = rng.standard_normal((9, 5), dtype=np.float32)
    model = fastbp.Sequential(fastbp.Linear(5, 3), device="reference", seed=0, precision="tf32")
    exact = fastbp.Sequential(fastbp.Linear(5, 3), seed=0).predict(x)
    np.testing.assert_allclose(model.predict(x), exact, rtol=0, atol=0.01)
    assert np.abs(model.predict(x) - exact).max() > 1e-5
    np.testing.assert_allclose(model.to("cpu").predict(x), exact)
    assert model.precision == "ieee"
    with pytest.raises(ValueError, match=r'device="cpu" .* has precision "ieee", "bf16", "bf16x3", got "tf32"'):
        model.to("cpu", precision="tf32")
    assert (model.device, model.precision) == ("cpu", "ieee")
    with pytest.raises(ValueError, match="precision must be one of 'ieee', 'tf32', 'bf16', 'bf16x3'; got 'fp8'"):
        fastbp.Sequential(fastbp.Linear(5, 3), precision="fp8")


def test_summary(device, capsys):
    model = small(device)
    model.summary()
    text = capsys.readouterr().out
    assert "0 Linear" in text
    assert "197" in text
    assert f"{2 * (60 + 100 + 10)}" in text
    assert f"{197 * 8:,} bytes" in text
    assert "Linear(in_features=3, out_features=20, bias=True)" in repr(model)


def test_batches():
    x, y = np.arange(20).reshape(10, 2), np.arange(10)
    parts = list(fastbp.batches(x, y, 4, seed=0))
    assert [len(xb) for xb, _ in parts] == [4, 4, 2]
    for xb, yb in parts:
        np.testing.assert_array_equal(xb[:, 0], 2 * yb)
    assert sorted(np.concatenate([yb for _, yb in parts])) == list(range(10))
    assert [len(xb) for xb, _ in fastbp.batches(x, y, batch_size=4, drop_last=True)] == [4, 4]
    np.testing.assert_array_equal(next(fastbp.batches(x, y, 10, shuffle=False))[1], y)
    with pytest.raises(ValueError, match="same number of rows"):
        fastbp.batches(x, y[1:], 4)
    with pytest.raises(ValueError, match="drop_last=True leaves nothing"):
        fastbp.batches(x, y, 11, drop_last=True)
