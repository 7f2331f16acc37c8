"""Models on the GPU: the same numbers as on the CPU, what lies where, moving, files, and errors.

Runs on a GPU, and without one in the simulator, where test_simulator.py starts it: networks are tiny.
"""

import concurrent.futures
import copy
import os
import pickle
import threading
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp import device as front
from fastbp import steps
from fastbp.bench import comparisons, measure, products, report, training_steps
from fastbp.data import Chunk, OrderAhead
from fastbp.kernels import cuda, program

pytestmark = pytest.mark.skipif(
    not cuda.driver.cuda.is_available(), reason="needs a GPU; test_simulator.py runs it without one"
)

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # of losses and values of a few steps, which are all about 1
ROWS, FEATURES, CLASSES = 11, 5, 3
LOSS = fastbp.CrossEntropyLoss()


def network(device="cuda", dtype="float32", dropout=0.0):
    hidden = [fastbp.Linear(FEATURES, 7), fastbp.GELU(), *[fastbp.Dropout(dropout)] * (dropout > 0)]
    return fastbp.Sequential(*hidden, fastbp.Linear(7, CLASSES), dtype=dtype, device=device, seed=1)


@pytest.fixture
def data(rng):
    return rng.standard_normal((ROWS, FEATURES), dtype=np.float32), rng.integers(0, CLASSES, ROWS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def there():
    """Copies on the GPU."""
    return cuda.to_device


@pytest.fixture
def copies(monkeypatch):
    """(how, elements) of the copies from now on: "sent" to the GPU, "fetched" from it, or "there", within it."""
    counted, memory = Counter(), cuda.memory
    to_device, to_host = memory.to_device, memory.to_host

    def sending(array, to=None):
        if not cuda.borrowing.is_on_device(array):
            counted["sent", array.size] += 1
        elif to is not None:
            counted["there", array.size] += 1
        return to_device(array, to)

    def fetching(array, to=None):
        counted["fetched", array.size] += 1
        return to_host(array, to)

    monkeypatch.setattr(memory, "to_device", sending)
    monkeypatch.setattr(memory, "to_host", fetching)
    return counted


def trained(model, X, y, optimizer=None, **options):
    """The history, after two epochs of three batches of which the last is short."""
    optimizer = optimizer or fastbp.Adam(lr=0.05)
    options = {"epochs": 2, "batch_size": 4, "verbose": False} | options
    return model.fit(X, y, loss=options.pop("loss", LOSS), optimizer=optimizer, **options)


def assert_close(first, second, dtype="float32"):
    np.testing.assert_allclose(np.asarray(first, float), np.asarray(second, float), rtol=0, atol=TOLERANCE[dtype])


# ------------------------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_is_that_of_the_cpu(data, dtype):
    X, y = data
    models = [network(device, dtype, dropout=0.25) for device in ("cpu", "cuda")]
    options = {"validation_data": (X[:6], y[:6]), "sample_weight": np.arange(ROWS) / ROWS}
    cpu, gpu = (trained(model, X, y, **options) for model in models)
    for key in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert_close(cpu[key], gpu[key], dtype)
    assert gpu[-1]["loss"] < gpu[0]["loss"]
    assert_close(models[0].predict(X), models[1].predict(X), dtype)
    assert_close(models[0].flat_parameters, models[1].flat_parameters, dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_layers_that_meet_and_branch(data, weighted):
    """Normalisations, one of them frozen, dropout and residual parts: steps are launched, captured and replayed."""
    X, y = data
    options = {"sample_weight": 1 + np.arange(ROWS) / ROWS} if weighted else {}
    results = []
    for device in ("cpu", "cuda"):
        inner = fastbp.Linear(7, 7), fastbp.LayerNorm(7), fastbp.Tanh(), fastbp.Dropout(0.2), fastbp.Linear(7, 7)
        layers = [fastbp.Linear(FEATURES, 7, bias=False), fastbp.BatchNorm1d(7), fastbp.GELU(), fastbp.Residual(*inner)]
        layers += [fastbp.BatchNorm1d(7), fastbp.Dropout(0.2), fastbp.LayerNorm(7), fastbp.Linear(7, CLASSES)]
        model = fastbp.Sequential(*layers, device=device, seed=1)
        model.layers[4].trainable = False
        losses = trained(model, X, y, epochs=3, **options)["loss"]
        results.append((losses, model.predict(X), model.flat_parameters))
    for cpu, gpu in zip(*results, strict=True):
        assert_close(cpu, gpu)


HOW = pytest.mark.parametrize("how", ["clip_norm", "accumulate", "a loss of one's own"])


def through_stored_gradients(model, X, target, how, **options):
    """The history of batches of three rows."""
    own = fastbp.MSELoss()
    loss = (lambda prediction, target: own(prediction, target)) if how.endswith("own") else own
    optimizer = fastbp.SGD(lr=0.1, momentum=0.9, clip_norm=0.3 if how == "clip_norm" else None)
    options = {"loss": loss, "accumulate": 2 if how == "accumulate" else 1, "batch_size": 3} | options
    return trained(model, X, target, optimizer, **options)


@HOW
def test_steps_through_stored_gradients(data, how):
    X, target = data[0][:7], data[0][:7, :CLASSES] ** 2
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        losses = through_stored_gradients(model, X, target, how, epochs=1)["loss"]
        results.append((losses, model.flat_parameters))
    for cpu, gpu in zip(*results, strict=True):
        assert_close(cpu, gpu)


@HOW
def test_steps_through_stored_gradients_leave_data_and_parameters_there(data, there, how, copies):
    X, target = there(data[0][:10]), data[0][:10, :CLASSES] ** 2
    model = network()
    copies.clear()
    through_stored_gradients(model, X, target, how, epochs=1, on_nonfinite="continue")
    own, record = how.endswith("own"), 21  # numbers that an update reads
    sizes = {1, 3} | ({1 * CLASSES, 3 * CLASSES} if own else set())  # the last batch is one row
    assert {size for way, size in copies if way == "fetched"} <= sizes
    assert {size for way, size in copies if way == "sent"} <= sizes | {record, target.size}
    assert copies["sent", target.size] == (not own)
    assert copies["sent", record] == (2 if how == "accumulate" else 4)


def test_own_loop_leaves_parameters_there(data, copies):
    X, y = data[0][:2], data[1][:2]
    model = network()
    optimizer, size = fastbp.Adam(model.parameters(), clip_norm=0.1), model.network.size
    copies.clear()
    for step in ("train_step", "own loop", "own loop again"):  # which has gradients to set to zero
        before = model.predict(X)
        if step == "train_step":
            model.train_step(X, y, LOSS, optimizer)
        else:
            model.zero_grad()
            model.backward(LOSS(model(X), y)[1])
            optimizer.step()
        assert (model.predict(X) != before).any()
    assert copies["fetched", 1] == 3  # the norm
    assert max(elements for _, elements in copies) < size


def test_data_that_do_not_fit_go_through_stored_gradients_to_the_same_bits(data, monkeypatch):
    X, target = data[0][:7], data[0][:7, :CLASSES] ** 2
    results = []
    for share in (front.RESIDENT_SHARE, -1.0):
        monkeypatch.setattr(front, "RESIDENT_SHARE", share)
        model = network()
        losses = through_stored_gradients(model, X, target, "clip_norm", epochs=1)["loss"]
        results.append((losses, model.flat_parameters.tobytes()))
    assert results[0] == results[1]


def test_own_loop_and_train_step(data):
    X, y = data
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        optimizer = fastbp.Adam(model.parameters(), lr=0.05)
        losses = [model.train_step(X[:4], y[:4], LOSS, optimizer), model.train_step(X[4:6], y[4:6], LOSS, optimizer)]
        prediction = model(X)
        value, gradient = LOSS(prediction, y)
        grad_input = model.backward(gradient)
        grad_weight = np.array(model[0].grad_weight)
        optimizer.step()
        results.append((losses, prediction, value, grad_input, grad_weight, model.parameters()[0].data, model(X)))
    for cpu, gpu in zip(*results, strict=True):
        assert_close(cpu, gpu)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_is_that_of_the_reference(data, precision):
    X, y = data
    models = [network(device).to(device, precision) for device in ("reference", "cuda")]
    assert [model.precision for model in models] == [precision] * 2
    for step in ("first", "trained"):
        outputs = [model(X) for model in models]
        assert_close(*outputs)
        assert np.abs(outputs[1] - models[1].to("cuda")(X)).max() > 1e-4, step  # what "ieee" gives is not that
        models[1].to("cuda", precision)
        losses = [trained(model, X, y, epochs=1, shuffle=False)["loss"] for model in models]
        assert_close(*losses)
    assert_close(models[0].predict(X), models[1].predict(X))


def test_precision_belongs_to_the_device(data, tmp_path):
    X, _ = data
    model = network("cuda").to("cuda", "tf32")
    exact = network("cpu").predict(X)
    model.save(tmp_path / "model.npz")
    loaded = fastbp.load(tmp_path / "model.npz", device="cuda", precision="tf32")
    assert (loaded.precision, fastbp.load(tmp_path / "model.npz").precision) == ("tf32", "ieee")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert copy.deepcopy(model).precision == pickle.loads(pickle.dumps(model)).precision == "tf32"
    assert 'precision="tf32"' in repr(model)
    np.testing.assert_array_equal(model.to("cpu").predict(X), exact)
    assert model.precision == "ieee"
    with pytest.raises(ValueError, match=r'device="cuda" and dtype="float64" has precision "ieee", got "tf32"'):
        network("cuda", "float64").to("cuda", "tf32")


def test_layers_and_losses_alone(data):
    X, y = data
    results = []
    for device in ("cpu", "cuda"):
        linear, activation = fastbp.Linear(FEATURES, CLASSES, seed=2, device=device), fastbp.Tanh(device=device)
        out = activation(linear(X))
        value, gradient = fastbp.CrossEntropyLoss(device=device)(out, y)
        grad_input = linear.backward(activation.backward(gradient))
        linear.update_parameters(0.5)
        dropped = fastbp.Dropout(0.5, seed=3, device=device)(X)
        results.append((out, value, gradient, grad_input, linear.grad_bias, linear.weight, dropped))
    for cpu, gpu in zip(*results, strict=True):
        assert_close(cpu, gpu)


def test_digits_train_as_on_the_cpu():
    """Images of 4 x 4 that show one of three strokes, and noise."""
    rng = np.random.default_rng(5)
    strokes = np.stack([np.eye(4), np.eye(4)[::-1], np.tri(4) - np.tri(4, k=-2)]).reshape(3, 16)
    y = np.arange(15) % 3
    X = (strokes[y] + 0.2 * rng.standard_normal((15, 16))).astype(np.float32)
    losses = []
    for device in ("cpu", "cuda"):
        model = fastbp.Sequential(fastbp.Linear(16, 8), fastbp.ReLU(), fastbp.Linear(8, 3), device=device, seed=0)
        losses.append(trained(model, X, y, fastbp.Adam(lr=0.02), batch_size=5, epochs=6)["loss"])
        assert (model.predict(X).argmax(axis=1) == y).all()
    assert_close(*losses)


# ----------------------------------------------------------------------------------- data there, or not
def test_data_that_do_not_fit_are_staged_to_the_same_bits(data, monkeypatch):
    X, y = data
    weight = np.arange(1.0, ROWS + 1)
    models, losses = [network(), network()], []
    losses.append(trained(models[0], X, y, sample_weight=weight)["loss"])
    sent = []
    monkeypatch.setattr(front, "RESIDENT_SHARE", -1.0)
    monkeypatch.setattr(steps, "STAGING_BYTES", 1)  # one batch at a time
    send = cuda.memory.send
    monkeypatch.setattr(cuda.memory, "send", lambda host, to: sent.append(len(host)) or send(host, to))
    losses.append(trained(models[1], X, y, sample_weight=weight)["loss"])
    assert losses[0] == losses[1]
    assert sent == [4] * 6 + [3] * 3 + [4] * 6 + [3] * 3  # X, y and weights of each batch of two epochs
    assert models[0].flat_parameters.tobytes() == models[1].flat_parameters.tobytes()


@pytest.mark.parametrize("kind", ["int8", ">f4", "every other column"])
def test_data_of_other_dtypes_and_layouts(data, kind):
    X, y = (8 * data[0]).round(), data[1]
    if kind == "every other column":
        given = np.repeat(X, 2, axis=1)[:, ::2]
    else:
        given = X.astype(kind)
    models = [network(), network()]
    assert trained(models[0], X, y)[0]["loss"] == trained(models[1], given, y)[0]["loss"]
    assert models[0].predict(X).tobytes() == models[1].predict(given).tobytes()


def test_arrays_of_the_gpu_are_used_where_they_are(data, there, monkeypatch):
    X, y = data
    models = [network(), network()]
    on_gpu = there(X)
    expected = trained(models[0], X, y, validation_data=(X, y))["val_loss"]
    assert expected == trained(models[1], on_gpu, there(y), validation_data=(on_gpu, y))["val_loss"]
    step = [
        model.train_step(*pair, LOSS, fastbp.SGD(lr=0.1))
        for model, pair in zip(models, ((X, y), (on_gpu, there(y))), strict=True)
    ]
    assert step[0] == step[1]
    prediction = models[1].predict(on_gpu, to_host=False)
    assert cuda.borrowing.is_on_device(prediction)
    assert cuda.to_host(prediction).tobytes() == models[0].predict(X).tobytes()
    assert models[1](on_gpu).tobytes() == models[0](X).tobytes()

    def no_copy(*_):
        raise AssertionError("the data were copied to the host")

    monkeypatch.setattr(front.DeviceKernels, "to_host", no_copy)
    models[1].predict(on_gpu, to_host=False)
    models[1].predict_proba(on_gpu, to_host=False)


@pytest.mark.parametrize("loss", [fastbp.CrossEntropyLoss(), fastbp.BCEWithLogitsLoss(), fastbp.BCELoss()])
def test_probabilities_stay_on_the_gpu_until_the_end(data, there, loss, monkeypatch):
    X, _ = data
    model = network()
    expected = loss.probabilities(model.predict(X))
    copies = []
    to_host = front.DeviceKernels.to_host
    monkeypatch.setattr(front.DeviceKernels, "to_host", lambda *given: copies.append(given) or to_host(*given))
    np.testing.assert_allclose(model.predict_proba(X, loss), expected, rtol=1e-5)
    assert len(copies) == 1
    probability = model.predict_proba(there(X), loss, to_host=False)
    assert len(copies) == 1
    assert cuda.borrowing.is_on_device(probability)
    assert cuda.to_host(probability).tobytes() == model.predict_proba(X, loss).tobytes()


@pytest.fixture
def threads(monkeypatch):
    """Runs functions at once; the simulator, which keeps a launch in the kernel itself, makes one launch at a time."""
    if cuda.driver.simulated:
        from numba.cuda.simulator.kernel import FakeCUDAKernel

        configured, one = FakeCUDAKernel.__getitem__, threading.Lock()

        def configure(kernel, configuration):
            def launch(*arguments):
                with one:
                    configured(kernel, configuration)(*arguments)

            return launch

        monkeypatch.setattr(FakeCUDAKernel, "__getitem__", configure)

    def run(*functions):
        with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
            return [future.result() for future in [pool.submit(function) for function in functions]]

    return run


def test_threads_predict_with_one_model(data, there, threads):
    X, _ = data
    model = network()
    given = [X, X[:4], there(X[::-1].copy()), X[3:].astype(np.float64)]
    expected = [model.predict(rows).tobytes() for rows in given]
    together = threads(*[lambda rows=rows: [model.predict(rows).tobytes() for _ in range(2)] for rows in given])
    assert together == [[one, one] for one in expected]
    assert len(model._inference_workspaces) <= len(given)


def test_tensors_of_pytorch_are_used_where_they_are(data):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with a GPU")
    X, y = data
    models = [network(), network()]
    tensor, labels = torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda()
    assert trained(models[0], X, y)[-1]["loss"] == trained(models[1], tensor, labels)[-1]["loss"]
    prediction = torch.as_tensor(models[1].predict(tensor, to_host=False), device="cuda")
    assert prediction.cpu().numpy().tobytes() == models[0].predict(X).tobytes()


@pytest.mark.parametrize("drawing", [False, True], ids=["alone", "a callback draws too"])
def test_an_order_drawn_ahead_is_that_of_its_epoch(data, drawing, monkeypatch):
    """Losses, weights and the generator are those of a run that draws nothing ahead, to the bit."""

    class Draws:
        def on_epoch_end(self, model, record):
            model.generator.random(int(drawing))

    drawn, draw = [], Chunk.order_by
    monkeypatch.setattr(Chunk, "order_by", lambda chunk, generator, *others: (
        drawn.append(generator is model.generator), draw(chunk, generator, *others)
    )[1])  # fmt: skip
    outcomes = []
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(OrderAhead, "draw", lambda *_: None)
        model = network(dropout=0.3)
        losses = trained(model, *data, epochs=4, callbacks=[Draws()])["loss"]
        outcomes.append((losses, model.flat_parameters.tobytes(), model.generator.bit_generator.state))
    assert outcomes[0] == outcomes[1]
    # By a copy of the generator each but the first; where somebody else draws, one in vain and then none.
    assert drawn[:-4] == ([True, False, True, True, True] if drawing else [True, False, False, False])


def test_a_step_of_labels_on_the_gpu_checks_them_afterwards(data, there):
    X, y = data
    model, optimizer = network(dropout=0.3), fastbp.SGD(lr=0.1)
    x, right, wrong = there(X), there(y), there(np.where(np.arange(ROWS) == 2, 3, y))
    for _ in range(2):
        model.train_step(x, right, LOSS, optimizer)
    before = model.flat_parameters.tobytes(), model.generator.bit_generator.state, optimizer.step_count
    with pytest.raises(ValueError, match=r"y must hold labels from 0 to 2.*y\[2\] = 3"):
        model.train_step(x, wrong, LOSS, optimizer)
    assert (model.flat_parameters.tobytes(), model.generator.bit_generator.state, optimizer.step_count) == before
    assert np.isfinite(model.train_step(x, right, LOSS, optimizer))


def test_rows_of_a_step_that_was_interrupted_are_not_overwritten_on_their_way(data, monkeypatch):
    """Page-locked memory is written again only after the copies from there have ended."""
    model, optimizer, waited = network(), fastbp.SGD(lr=0.1), []
    model.train_step(*data, LOSS, optimizer)
    monkeypatch.setattr(cuda, "synchronize", lambda: waited.append(1))
    with monkeypatch.context() as patched:
        patched.setattr(model._step, "steps", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.train_step(*data, LOSS, optimizer)
    assert not waited
    for _ in range(2):
        model.train_step(*data, LOSS, optimizer)
    assert waited == [1]


def test_arrays_of_the_gpu_are_checked(data, there):
    X, y = data
    model = network()
    with pytest.raises(ValueError, match=r"X must have shape \(n, 5\), got \(11, 4\)"):
        model.predict(there(np.ascontiguousarray(X[:, :4])))
    with pytest.raises(TypeError, match="x must have dtype float32 where it is on the GPU, got float64"):
        model(there(X.astype(float)))
    with pytest.raises(ValueError, match=r"y must hold labels from 0 to 2.*y\[2\] = 3"):
        trained(model, there(X), there(np.where(np.arange(ROWS) == 2, 3, y)))
    for use in (network("cpu").predict, network("cpu"), lambda X: trained(network("cpu"), X, y)):
        with pytest.raises(TypeError, match=r'must be in the memory of the host here.*model.to\("cuda"\)'):
            use(there(X))


# ------------------------------------------------------------------------------------- what users see
def test_arrays_that_users_see_are_read_only_copies_and_assigning_writes(data):
    X, _ = data
    model, cpu = network(), network("cpu")
    for seen in (model[0].weight, model[0].bias, model.parameters()[0].data):
        with pytest.raises(ValueError, match="read-only"):
            seen[...] = 0
    weight = np.arange(FEATURES * 7.0).reshape(FEATURES, 7) / 30
    for one in (model, cpu):
        one[0].weight = weight
        one[0].bias = np.ones(7)
        one.parameters()[-1].data = np.zeros(CLASSES)
    assert (model[0].weight == weight.astype(np.float32)).all()
    assert_close(model.predict(X), cpu.predict(X))
    flat = np.linspace(-1, 1, model.flat_parameters.size)
    model.flat_parameters = flat
    assert (model.flat_parameters == flat.astype(np.float32)).all()
    model.load_state_dict(cpu.state_dict())
    assert all((model.state_dict()[name] == array).all() for name, array in cpu.state_dict().items())


def test_weights_go_back_where_training_fails(data):
    X, y = data
    model = network()
    before, optimizer = model.flat_parameters, fastbp.SGD(lr=1e30, momentum=0.5)
    with pytest.raises(FloatingPointError, match="weights are back at those epoch 1 began with"):
        trained(model, X, y, optimizer, epochs=5)
    assert (model.flat_parameters == before).all()
    assert optimizer.step_count == 0
    assert not optimizer.state_dict()["velocity"].any()


def test_copies_of_the_weights_stay_there(data, copies):
    """A snapshot and the best weights of each of three epochs, and those put back."""
    model, optimizer = network(), fastbp.SGD(lr=0.1)
    stopping, size = fastbp.EarlyStopping(), model.network.size
    optimizer.bind(model.network)
    copies.clear()
    losses = trained(model, *data, optimizer, epochs=3, callbacks=[stopping])["loss"]
    assert losses == sorted(losses, reverse=True)
    assert copies["there", size] == 3 + 3 + 1
    assert not copies["sent", size] + copies["fetched", size]
    assert copies["fetched", 1] == 1  # whether they are finite, before the first epoch; afterwards nobody waits for it


def test_early_stopping_restores_the_best_weights(data):
    X, y = data
    results = []
    for device in ("cpu", "cuda"):
        model = network(device)
        history = trained(model, X, y, fastbp.SGD(lr=30.0), epochs=6, callbacks=[fastbp.EarlyStopping(2)])
        results.append((history["loss"], model.flat_parameters))
    assert len(results[0][0]) == len(results[1][0]) < 6
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["compiled", "stored"])
def test_frozen_layers_are_those_of_the_cpu(data, how):
    X, y = data
    values = []
    for where in ("cpu", "cuda"):
        model = fastbp.Sequential(
            fastbp.Linear(FEATURES, 7), fastbp.Tanh(), fastbp.Linear(7, 7), fastbp.Linear(7, CLASSES),
            device=where, seed=1,
        )  # fmt: skip
        model[2].trainable = False
        before = model.state_dict()
        trained(model, X, y, fastbp.AdamW(lr=0.1, clip_norm=None if how == "compiled" else 1e9))
        after = model.state_dict()
        assert [name for name in after if (after[name] == before[name]).all()] == ["2.weight", "2.bias"]
        values.append(model.flat_parameters)
    assert_close(*values)


def test_a_run_goes_on_from_a_checkpoint(data, tmp_path):
    X, y = data
    models = [network(dropout=0.3) for _ in range(3)]
    watch = [[fastbp.EarlyStopping(9)] for _ in models]
    expected = trained(models[0], X, y, epochs=4, callbacks=watch[0])
    trained(models[1], X, y, epochs=2, callbacks=watch[1], checkpoint=tmp_path)
    found = trained(models[2], X, y, epochs=4, callbacks=watch[2], resume=tmp_path)
    assert found["loss"] == expected["loss"]
    np.testing.assert_array_equal(models[2].flat_parameters, models[0].flat_parameters)


def test_many_networks(data):
    models = [network(), network("cpu")]
    histories = fastbp.fit_many(models, *data, loss=LOSS, optimizer=lambda: fastbp.SGD(lr=0.1), batch_size=4)
    assert_close(*(history["loss"] for history in histories))


# ------------------------------------------------------------------------------------- moving, files
def test_moving_there_and_back_goes_on_as_if_nothing_had_happened(data):
    X, y = data
    model, still = network("cpu"), network("cpu")
    optimizers = [fastbp.Adam(lr=0.05), fastbp.Adam(lr=0.05)]
    first = model[0]
    for device in ("cuda", "cpu", "cuda"):
        before = model.flat_parameters
        assert model.to(device) is model
        assert (model.device, model[0]) == (device, first)
        assert (model.flat_parameters == before).all()
        losses = [trained(one, X, y, o)[-1]["loss"] for one, o in zip((model, still), optimizers, strict=True)]
        assert_close(*losses)
        assert (cuda.borrowing.is_on_device(optimizers[0].state[0])) == (device == "cuda")
    assert_close(model.predict(X), still.predict(X))
    assert_close(optimizers[0].state_dict()["exp_avg"], optimizers[1].state_dict()["exp_avg"])


def test_moving_keeps_stored_gradients_and_needs_a_new_forward(data):
    model = network("cpu")
    model.backward(model(data[0]))
    gradients = model.flat_gradients
    model.to("cuda")
    assert (model.flat_gradients == gradients).all()
    with pytest.raises(RuntimeError, match="forward pass before it"):
        model.backward(np.ones((ROWS, CLASSES), np.float32))


def test_moving_without_room_changes_nothing(data, monkeypatch):
    model, optimizer = network("cpu"), fastbp.Adam(lr=0.05)
    trained(model, *data, optimizer)
    before = model.flat_parameters
    allocated, zeros = [], cuda.zeros

    def full(shape, dtype):
        allocated.append(shape)
        if len(allocated) == 3:  # the values and the first buffer of the state fit
            raise MemoryError("no room on the GPU")
        return zeros(shape, dtype)

    monkeypatch.setattr(cuda, "zeros", full)
    with pytest.raises(MemoryError, match="no room"):
        model.to("cuda")
    assert model.device == "cpu"
    assert (model.flat_parameters == before).all()
    trained(model, *data, optimizer)


def test_room_to_predict_grows_as_a_whole(monkeypatch):
    """Else the rows of the next prediction would be written beyond the memory that there is."""
    workspace = cuda.network.InferenceWorkspace(program.lower([("linear", 3, 4)], 4), np.float32)
    workspace.prepare(5, False)
    before = workspace.capacity, workspace.outputs

    def full(shape, dtype):
        raise MemoryError("no room on the GPU")

    monkeypatch.setattr(cuda.memory, "empty", full)
    with pytest.raises(MemoryError, match="no room"):
        workspace.prepare(1000, False)
    assert (workspace.capacity, workspace.outputs) == before


@pytest.mark.parametrize(("made", "used"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_files_are_the_same_for_every_device(data, tmp_path, made, used):
    X, y = data
    model, optimizer = network(made), fastbp.Adam(lr=0.05)
    trained(model, X, y, optimizer)
    model.save(tmp_path / "model.npz", optimizer)
    other = fastbp.load(tmp_path / "model.npz", device=used)
    assert other.device == used
    assert (other.flat_parameters == model.flat_parameters).all()
    losses = [trained(one, X, y, o)[-1]["loss"] for one, o in ((model, optimizer), (other, other.optimizer))]
    assert_close(*losses)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_independent(data, duplicate):
    X, y = data
    model, optimizer = network(), fastbp.Adam(lr=0.05)
    trained(model, X, y, optimizer)
    other, others = duplicate((model, optimizer))
    before = model.flat_parameters
    assert other.device == "cuda"
    after = trained(other, X, y, others)[-1]["loss"]
    assert (model.flat_parameters == before).all()
    assert after == trained(model, X, y, optimizer)[-1]["loss"]
    other.to("cpu")
    assert isinstance(others.state[0], np.ndarray)


# ----------------------------------------------------------------------------------------- comparison
def test_comparison_of_ours(monkeypatch):
    monkeypatch.setattr(training_steps, "MOST_LAUNCHED", 4)
    protocol = measure.Protocol(rounds=1, seconds=1e-4, device="cuda")
    comparison = comparisons.comparisons("cuda")["steps"]
    for shape in (((3, 4, 1), "relu", 2, {}), ((3, 4, 2), "relu", 2, {})):
        result = protocol.measure(training_steps.step_case("tiny", shape, [], protocol, batches=2))
        assert result["us"] > 0
        assert result["also_us"]["events"] > 0
        assert report.row(comparison, [], result)
    for kind, precision in zip(("NN", "NT", "TN", "NN"), cuda.precisions(np.float32), strict=True):
        assert protocol.measure(products.gpu_product_case(kind, 5, precision, [], protocol))["us"] > 0


@pytest.mark.skipif(not cuda.driver.simulated, reason="the simulator's launches can be listened to")
def test_launches_ask_for_what_is_compiled_ahead(monkeypatch, data):
    """Each is of a kernel of the catalogue, and its arguments have the types that this kernel is compiled for."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    from fastbp.kernels.cuda import catalogue, network, signatures

    ahead, launched, launch = {}, {}, FakeCUDAKernel.__call__
    for kernel in catalogue.kernels():
        ahead[kernel.function.function] = kernel.function.signature

    def type_of(argument):
        if isinstance(argument, tuple):
            return signatures.Tuple(type(argument), tuple(map(type_of, argument)))
        return signatures.Flat(argument.dtype) if np.ndim(argument) else np.asarray(argument).dtype

    def listened(kernel, *arguments):
        launched.setdefault(kernel.fn, set()).add(tuple(map(type_of, arguments)))
        return launch(kernel, *arguments)

    monkeypatch.setattr(FakeCUDAKernel, "__call__", listened)
    monkeypatch.setattr(network.steps, "suits", lambda workspace, n: False)  # whose kernel is not among them
    model = fastbp.Sequential(fastbp.Linear(FEATURES, 4), fastbp.GELU(), fastbp.Dropout(0.5), fastbp.Linear(4, CLASSES))
    model = model.to("cuda")
    trained(model, *data, epochs=1, batch_size=6, sample_weight=np.ones(ROWS))
    trained(model, data[0], np.eye(CLASSES)[data[1]], loss=fastbp.MSELoss(), epochs=1, batch_size=ROWS)
    model.predict_proba(data[0].astype(np.float64), loss=LOSS)
    assert len(launched) >= 15
    for function, found in launched.items():
        assert found == {ahead[function]}, function.__qualname__


# --------------------------------------------------------------------------------------------- errors
def test_after_fork_the_error_says_what_to_do(data):
    model = network()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = b"no error"
        try:
            model.predict(data[0])
        except RuntimeError as error:
            message = str(error).encode()
        finally:
            os.write(writer, message)
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert b'multiprocessing.get_context("spawn")' in pipe.read()


def test_out_of_memory_names_the_sizes(monkeypatch):
    def full(*_):
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    model = network("cpu")
    monkeypatch.setattr(cuda.memory, "new_array", full)
    with pytest.raises(MemoryError, match=r"no room on the GPU for an array of shape .* MiB free"):
        model.to("cuda")
    assert model.device == "cpu"


def test_page_locked_memory_that_is_not_there(data, monkeypatch):
    def full(*_):
        raise RuntimeError("[2] Call to cuMemHostAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(cuda.memory, "new_pinned", full)
    with pytest.raises(MemoryError, match=r"no page-locked memory left for an array of shape .*: 0.0 MiB; use smaller"):
        network().train_step(data[0], data[1], LOSS, fastbp.SGD(lr=0.1))
