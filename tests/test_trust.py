"""Nothing that was checked once is trusted after user code ran, and results depend on the data alone.

Not on its container, layout or path, nor on what the process has set: NumPy's errors, the control register of a thread.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastbp
from fastbp.autograd import Function, Variable, index, linear, matmul, mean_squared_error, no_grad
from fastbp.graph import recording

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.standard_normal((90, 6)).astype(np.float32), GENERATOR.integers(0, 3, 90)
LOSS = fastbp.CrossEntropyLoss()


def network(device="cpu", dtype="float32", features=6, outputs=3):
    return fastbp.Sequential(
        fastbp.Dropout(0.2), fastbp.Linear(features, 16), fastbp.ReLU(), fastbp.Dropout(), fastbp.Linear(16, outputs),
        dtype=dtype, device=device, seed=5,
    )  # fmt: skip


def trained(X, y=None, device="cpu", dtype="float32", **arguments):
    model = network(device, dtype)
    arguments = {"loss": LOSS, "optimizer": fastbp.Adam(), "epochs": 2, "batch_size": 16, "verbose": False} | arguments
    history = model.fit(X, y, **arguments)
    return model.flat_parameters, history["loss"]


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


# --------------------------------------------------------------------------------- labels that change
class Spoil:
    """A callback that changes the labels."""

    def __init__(self, y, value, batch=3):
        self.y, self.value, self.batch = y, value, batch

    def on_batch_end(self, model, record):
        if record["batch"] == self.batch and record["epoch"] == 1:
            self.kept = model.flat_parameters
            self.y[:] = self.value


@pytest.mark.parametrize("value", [-1, 3, 10**6, -(2**62), 2**62])
@pytest.mark.parametrize("kind", ["compiled", "stored", "converted", "continue"])
def test_labels_changed_by_a_callback(device, value, kind):
    y, model = Y.copy(), network(device)
    spoil = Spoil(y, value)
    arguments = {"on_nonfinite": "continue"} if kind == "continue" else {}
    optimizer = fastbp.SGD(clip_norm=1.0 if kind == "stored" else None)
    with pytest.raises(ValueError, match="labels go from 0 to 2, and now"):
        model.fit(
            np.asfortranarray(X) if kind == "converted" else X, y, loss=LOSS, optimizer=optimizer, batch_size=16,
            callbacks=[spoil], verbose=False, **arguments,
        )  # fmt: skip
    np.testing.assert_array_equal(model.flat_parameters, spoil.kept)
    assert optimizer.step_count == 3
    model.fit(X, Y, loss=LOSS, optimizer=optimizer, verbose=False)


def test_labels_of_validation_changed_by_a_callback(device):
    y, model = Y.copy(), network(device)
    with pytest.raises(ValueError, match="labels go from 0 to 2, and now"):
        model.fit(
            X, Y, loss=LOSS, optimizer=fastbp.SGD(), validation_data=(X, y), callbacks=[Spoil(y, 77)], batch_size=16,
            verbose=False,
        )  # fmt: skip


def test_ignored_labels_are_no_change(device):
    y = np.where(np.arange(90) % 7 == 0, -100, Y)
    loss = fastbp.CrossEntropyLoss(ignore_index=-100)
    model = network(device)
    history = model.fit(
        X, y, loss=loss, optimizer=fastbp.SGD(), validation_data=(X, y), epochs=2, verbose=False, batch_size=16
    )
    assert np.isfinite(history["val_loss"]).all()


# ------------------------------------------------------------------------------------------ the graph
def changed_between(operation, array, *others):
    """Gradients with respect to ``others`` where the array is changed before the way back, and where it is not."""
    results = []
    for change in (False, True):
        given = array.copy()
        variables = [Variable(other, requires_grad=True) for other in others]
        out = operation(given, *variables)
        if change:
            given[...] = 0 if given.dtype.kind in "iu" else 100
        out.backward(np.ones(out.shape))
        results.append([variable.grad for variable in variables])
    return results


CHANGED = {
    "a * x": (lambda a, x: a * x, (4, 3), [(4, 3)]),
    "x / a": (lambda a, x: x / a, (4, 3), [(4, 3)]),
    "a / x": (lambda a, x: a / x, (4, 3), [(4, 3)]),
    "x ** a": (lambda a, x: x**a, (4, 3), [(4, 3)]),
    "matmul": (lambda a, x: matmul(a, x), (4,), [(4,)]),
    "a @ x": (lambda a, x: a @ x, (4, 3), [(3, 2)]),
    "linear": (lambda a, w, b: linear(a, w, b), (4, 3), [(3, 2), (2,)]),
    "a + x": (lambda a, x: a + x, (4, 3), [(4, 3)]),
    "loss": (lambda a, x: mean_squared_error(x, a), (4, 3), [(4, 3)]),
    "weights": (lambda a, x: mean_squared_error(x, np.ones((4, 1)), a), (4,), [(4, 1)]),
}


@pytest.mark.parametrize("name", CHANGED)
def test_arrays_that_change_before_backward(name):
    operation, shape, others = CHANGED[name]
    kept, changed = changed_between(
        operation, GENERATOR.random(shape) + 1, *(GENERATOR.random(other) + 1 for other in others)
    )
    for one, other in zip(kept, changed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "place",
    [lambda i: i, lambda i: (slice(None), i), lambda i: (i, i), lambda i: i.tolist()],
    ids=["rows", "columns", "elements", "list"],
)
def test_indices_that_change_before_backward(place):
    gradients = []
    for change in (False, True):
        x, i = Variable(np.arange(9.0).reshape(3, 3), requires_grad=True), np.array([0, 2, 2])
        given = place(i)
        z = index(x, given).sum()
        if change:
            i[:] = 1
            if isinstance(given, list):
                given[:] = [1, 1, 1]
        z.backward()
        gradients.append(x.grad)
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("kind", ["layer", "parameter", "statistics", "bias of another layer"])
def test_parameters_written_before_backward_are_noticed(kind):
    model = fastbp.Sequential(fastbp.Linear(6, 4), fastbp.BatchNorm1d(4), fastbp.Linear(4, 3), seed=0)
    views = {
        "layer": lambda: model[0].weight,
        "parameter": lambda: model.parameters()[0].data,
        "statistics": lambda: model[1].running_mean,
        "bias of another layer": lambda: model[2].bias,
    }
    views[kind]()[...] += 1  # before: it does not matter
    out = model(Variable(X, requires_grad=True))
    views[kind]()[...] += 1
    with pytest.raises(RuntimeError, match="were changed after it had been called"):
        out.backward(np.ones(out.shape))
    out = model(Variable(X, requires_grad=True))
    views[kind]()
    out.backward(np.ones(out.shape))


def test_a_layer_written_before_backward_is_noticed():
    layer = fastbp.Linear(6, 3, seed=0)
    out = layer(Variable(X))
    layer.weight[0, 0] = 7
    with pytest.raises(RuntimeError, match="were changed after it had been called"):
        out.backward(np.ones(out.shape))


def test_weights_of_a_loss_have_no_gradient():
    w = Variable(np.ones(4), requires_grad=True)
    with pytest.raises(TypeError, match="sample_weight must not require a gradient"):
        mean_squared_error(Variable(np.ones((4, 1))), np.zeros((4, 1)), w)
    mean_squared_error(Variable(np.ones((4, 1)), requires_grad=True), np.zeros((4, 1)), w.detach()).backward()


def test_no_grad_of_a_generator_function():
    seen = []

    @no_grad()
    def produce(count):
        for i in range(count):
            seen.append(recording())
            try:
                answer = yield i
            except KeyError:
                answer = "caught"
            seen.append(answer)
        return "end"

    generator = produce(3)
    assert next(generator) == 0
    assert recording()
    assert generator.send("sent") == 1
    assert recording()
    assert generator.throw(KeyError("x")) == 2
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "end"
    assert seen == [False, "sent", False, "caught", False, None]
    assert recording()
    produce(2).close()
    begun = produce(2)
    next(begun)
    begun.close()
    assert recording()


def test_no_grad_of_functions():
    @no_grad()
    def nested(depth):
        assert not recording()
        return nested(depth - 1) if depth else "done"

    assert nested(3) == "done"
    assert recording()

    async def wait():
        pass

    with pytest.raises(TypeError, match="no_grad cannot decorate"):
        no_grad()(wait)


def test_a_function_may_return_none_for_defaults():
    class Scale(Function):
        @staticmethod
        def forward(ctx, x, factor=2.0, offset=0.0):
            ctx.factor = factor
            return x * factor + offset

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.factor, None, None

    x = Variable(3.0, requires_grad=True)
    (Scale.apply(x) + Scale.apply(x, 5.0)).backward()
    assert x.grad == 7

    class Extra(Scale):
        @staticmethod
        def backward(ctx, grad):
            return grad, None, grad

    with pytest.raises(ValueError, match="must return 1 gradients"):
        Extra.apply(x).backward()


# ------------------------------------------------------------------------------------ dropout and order
LAYOUTS = {
    "Fortran": np.asfortranarray,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "misaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
def test_dropout_goes_by_the_row(device, arrange, clip_norm):
    x = X.astype(np.float64).astype(np.float32)
    plain = trained(x, Y, device, optimizer=fastbp.Adam(clip_norm=clip_norm))
    assert_same(plain, trained(arrange(x), Y, device, optimizer=fastbp.Adam(clip_norm=clip_norm)))


@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
@pytest.mark.parametrize("arrange", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("length", [16, 32, 1000])
def test_dropout_does_not_go_by_chunks(device, clip_norm, arrange, length):
    arguments = {"shuffle": False, "batch_size": 16}
    plain = trained(X, Y, device, optimizer=fastbp.Adam(clip_norm=clip_norm), **arguments)
    chunks = [(arrange(X[i : i + length]), Y[i : i + length]) for i in range(0, len(X), length)]
    assert_same(plain, trained(chunks, None, device, optimizer=fastbp.Adam(clip_norm=clip_norm), **arguments))


def test_dropout_does_not_go_by_slices(device, monkeypatch):
    plain = trained(np.asfortranarray(X), Y, device)
    monkeypatch.setattr("fastbp.slices.FIRST_STEPS", 1)
    monkeypatch.setattr("fastbp.slices.SLICE_SECONDS", 0)
    assert_same(plain, trained(np.asfortranarray(X), Y, device))
    monkeypatch.setattr("fastbp.steps.STAGING_BYTES", 1)
    assert_same(plain, trained(np.asfortranarray(X), Y, device))


def test_stored_steps_drop_what_compiled_ones_do(device):
    compiled, stored = (trained(X, Y, device, "float64", optimizer=fastbp.SGD(clip_norm=c)) for c in (None, 1e9))
    np.testing.assert_allclose(compiled[0], stored[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shuffle", [True, "blocks"])
def test_containers_have_one_order(device, tmp_path, shuffle, monkeypatch):
    monkeypatch.setattr("fastbp.data.SHUFFLE_BLOCK", 20)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    plain = trained(X, Y, device, shuffle=shuffle)
    for same in (mapped, np.asarray(mapped), np.asfortranarray(mapped), X.tolist()):
        assert_same(plain, trained(same, Y, device, shuffle=shuffle))
    in_a_list = trained([(mapped, Y)], None, device, shuffle=shuffle)
    assert_same(plain, in_a_list)
    orders = [[y.tolist() for _, y in fastbp.batches(x, Y, 16, shuffle=shuffle, seed=3)] for x in (X, mapped)]
    assert orders[0] == orders[1]


# ------------------------------------------------------------------------------- settings of the process
def test_settings_of_numpy(device):
    tiny, small, large = X * 1e-20, X.astype(np.float64) * 1e-42, 1e4 * X
    with np.errstate(all="ignore"):
        plain = trained(tiny, Y, device, epochs=3)
        model = network(device)
        probabilities = model.predict_proba(large, loss=LOSS)
    with np.errstate(all="raise"):
        optimizer = fastbp.Adam()
        optimizer.step_count = 10**6
        assert np.isfinite(optimizer.coefficients(10**6, 3)).all()
        raised = trained(tiny, Y, device, epochs=3)
        assert_same(plain, raised)
        trained(small, Y, device, "float32", optimizer=fastbp.RMSProp(clip_norm=1e-20))
        model = network(device)
        np.testing.assert_array_equal(model.predict_proba(large, loss=LOSS), probabilities)
        model.predict(np.full((2, 6), 1e300))
        x = Variable(np.array([-1e4, 1e4]), requires_grad=True)
        (x.exp() + x / np.array([0.0, 1e-300]) + x.sigmoid() + x.softmax() + x.log()).sum().backward()
        w = Variable(np.array([1e-300]))
        w *= 1e-300
        for loss in (fastbp.MSELoss(), fastbp.HuberLoss(), fastbp.L1Loss()):
            loss(np.full((3, 1), 1e-30), np.zeros((3, 1)), np.array([1e-300, 1, 0]))
        for schedule in (fastbp.CosineSchedule(0.1, steps=10), fastbp.StepSchedule(1e-300, every=1, factor=1e-9)):
            fastbp.SGD(lr=schedule).coefficients(0, 30)


def test_control_register_of_threads(fresh):
    fresh(bits_under_control)


def bits_under_control():
    """Subnormal numbers are 0 in every thread, whatever the calling one was told."""
    from numba import types

    from fastbp.kernels.cpu import context, simd
    from fastbp.kernels.jit import compile_kernel

    if not simd.X86:
        return

    def set_control(value, before):
        before[0] = simd.exchange_control(value)

    kernel = compile_kernel(set_control, types.void(types.int64, simd.Pointer(types.int64)))
    function, before = context.c_function(kernel, types.intp, types.intp), np.zeros(1, np.int64)
    x, results = X * np.float32(1e-38), []
    for control in (0x1F80, 0x1F80 | 0x8040):  # the default; subnormal numbers are 0
        for threads in (1, 3):
            fastbp.set_num_threads(threads)
            function(control, before.ctypes.data)
            model = fastbp.Sequential(fastbp.Linear(6, 40, bias=False), fastbp.Linear(40, 3, bias=False), seed=0)
            model.fit(x, x[:, :3], loss=fastbp.L1Loss(), optimizer=fastbp.SGD(lr=1e-3), epochs=2, verbose=False)
            out = model.predict(np.repeat(x, 50, axis=0))
            function(0x1F80, before.ctypes.data)
            assert before[0] & 0x8040 == control & 0x8040  # as it was
            results.append((model.flat_parameters.tobytes(), out.tobytes()))
            assert (np.abs(out[out != 0]) >= np.finfo(np.float32).tiny).all()
            assert (out == 0).any()
    assert all(result == results[0] for result in results)


def test_without_the_compiler_there_is_one_clear_error():
    code = (
        "import fastbp\n"
        "fastbp.Sequential(fastbp.Linear(2, 1), device='reference').predict([[1.0, 2.0]])\n"
        "fastbp.Sequential(fastbp.Linear(2, 1))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "RuntimeError: NUMBA_DISABLE_JIT is set" in process.stderr.splitlines()[-1]


def test_most_threads():
    with pytest.raises(ValueError, match="threads must be at most 512, got 5000"):
        fastbp.set_num_threads(5000)


def test_warmup_leaves_nothing_to_compile(fresh):
    fresh(everything_after_warmup)


def everything_after_warmup():
    fastbp.warmup()
    from fastbp.kernels import jit

    before = set(jit._kernels)
    for dtype in ("float32", "float64"):
        for source in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"):
            model = fastbp.Sequential(
                fastbp.Linear(6, 40), fastbp.Mish(), fastbp.Dropout(), fastbp.BatchNorm1d(40), fastbp.LayerNorm(40),
                fastbp.Residual(fastbp.Linear(40, 40), fastbp.GELU()), fastbp.Linear(40, 3), dtype=dtype, seed=0,
            )  # fmt: skip
            x = (X > 0).astype(source)
            model.fit(x, Y, loss=LOSS, optimizer=fastbp.Adam(), verbose=False)
            model.predict(x)
            model.fit(x, x[:, :3], loss=fastbp.MSELoss(), optimizer=fastbp.Lion(clip_norm=1.0), verbose=False)
        out = model(X)
        model.backward(np.ones_like(out))
        layer = fastbp.Linear(6, 3, dtype=dtype)
        layer.backward(layer(X))
        alone = fastbp.BatchNorm1d(6, dtype=dtype)
        alone.backward(alone(X))
        drop = fastbp.Dropout()
        drop.backward(drop(X.astype(dtype)))
        for kind in (fastbp.Identity, fastbp.ReLU, fastbp.Softplus):
            activation = kind()
            activation.backward(activation(X.astype(dtype)))
        Variable(X.astype(dtype), requires_grad=True).softmax().sum().backward()
    assert set(jit._kernels) == before


# ------------------------------------------------------------------------------------ large and small
@pytest.mark.parametrize("size", [1e200, 1e308, 1e-200, 1e-320])
def test_norms_of_large_and_small_gradients(device, size):
    model = fastbp.Sequential(fastbp.Linear(3, 3), dtype="float64", device=device)
    optimizer = fastbp.SGD(model.parameters(), lr=1.0, clip_norm=min(0.5, size))
    before = model.flat_parameters
    direction = np.arange(1.0, 13) / 12
    model.flat_gradients = size * direction
    optimizer.step()
    expected = min(0.5, size) * direction / np.linalg.norm(direction)
    if size > 1e-300:
        np.testing.assert_allclose(before - model.flat_parameters, expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(np.linalg.norm(model.flat_gradients / min(0.5, size)), 1, rtol=1e-12)


def test_norms_of_what_is_no_number(device):
    model = fastbp.Sequential(fastbp.Linear(3, 3), dtype="float64", device=device)
    optimizer = fastbp.SGD(model.parameters(), clip_norm=1.0)
    model.flat_gradients = np.zeros(12)
    optimizer.step()
    assert model.flat_gradients.tolist() == [0] * 12
    model.flat_gradients = np.full(12, np.inf)
    with np.errstate(all="raise"):
        optimizer.step()
    assert np.isnan(model.flat_parameters).all()


def test_weights_that_are_too_large_are_refused(device):
    for loss in (fastbp.MSELoss(device=device), fastbp.CrossEntropyLoss(device=device)):
        target = np.zeros((4, 3)) if isinstance(loss, fastbp.MSELoss) else np.zeros(4, int)
        with pytest.raises(ValueError, match="only their ratios count"):
            loss(np.ones((4, 3)), target, np.full(4, 1e308))
        large, plain = (loss(np.ones((4, 3)), target, w * np.arange(4.0)) for w in (2.0**300, 1))
        assert large[0] == plain[0]
        np.testing.assert_array_equal(large[1], plain[1])
    with pytest.raises(ValueError, match="only their ratios count"):
        trained(X, Y, device, sample_weight=np.full(90, 1e200))
    plain, tiny = trained(X, Y, device), trained(X, Y, device, sample_weight=np.full(90, 1e-300))
    np.testing.assert_allclose(plain[0], tiny[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain[1], tiny[1], rtol=1e-5)


@pytest.mark.parametrize("value", [10**400, np.longdouble("1e400"), np.longdouble("inf"), float("inf")])
def test_numbers_beyond_float64_are_refused(value):
    with pytest.raises(ValueError, match="lr must be at least 0 and finite"):
        fastbp.SGD(lr=value)


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="long double is float64")
def test_long_double_data(device):
    x = X.astype(np.longdouble)
    assert_same(trained(X, Y, device), trained(x, Y, device))
    x[3, 2] = np.longdouble("1e400")
    with pytest.raises(ValueError, match=r"X\[3, 2\] = 1e\+400, which float32 cannot hold"):
        trained(x, Y, device)


# --------------------------------------------------------------------------------------- the boundary
@pytest.mark.parametrize("where", ["predict", "fit", "train_step", "forward", "loss", "Variable"])
def test_masked_arrays_are_refused(where):
    masked, model = np.ma.array(X, mask=X > 1), network()
    calls = {
        "predict": lambda: model.predict(masked),
        "fit": lambda: trained(masked, Y),
        "train_step": lambda: model.train_step(masked, Y, LOSS, fastbp.SGD()),
        "forward": lambda: model(masked),
        "loss": lambda: LOSS(X[:, :3], np.ma.array(Y, mask=Y == 1)),
        "Variable": lambda: Variable(masked),
    }
    with pytest.raises(TypeError, match="without a mask"):
        calls[where]()


def test_a_refused_step_changes_nothing(device):
    model, optimizer = network(device), fastbp.Adam()
    model.train_step(X, Y, LOSS, optimizer)
    kept, probabilities = model.flat_parameters, model.predict_proba(X)
    fresh, other = fastbp.BCEWithLogitsLoss(), fastbp.SGD()
    for x, y, loss, one, match in (
        (X, Y + 7, LOSS, optimizer, "labels from 0 to 2"),
        (X[:, :2], Y, fresh, other, "x must have shape"),
        (X, np.full((90, 3), 7.0), fresh, other, "numbers from 0 to 1"),
        (X[:0], np.zeros((0, 3)), fresh, other, "at least one row"),
    ):
        with pytest.raises(ValueError, match=match):
            model.train_step(x, y, loss, one)
        np.testing.assert_array_equal(model.flat_parameters, kept)
        np.testing.assert_array_equal(model.predict_proba(X), probabilities)
        assert optimizer.step_count == 1
    other.require_free_for(network(device).network)  # it has not become that of the model


def test_a_loss_whose_parameter_changes_takes_no_more_memory():
    model = fastbp.Sequential(fastbp.Linear(6, 400), fastbp.Linear(400, 3), seed=0)
    optimizer = fastbp.SGD()
    for smoothing in np.linspace(0, 0.5, 40):
        model.train_step(X, Y, fastbp.CrossEntropyLoss(smoothing), optimizer)
        model.fit(X, Y, loss=fastbp.CrossEntropyLoss(smoothing), optimizer=optimizer, verbose=False)
        model.train_step(X, X[:, :3], fastbp.HuberLoss(0.1 + smoothing), optimizer)
    assert len(model._training_workspaces) == 2
    twin = fastbp.Sequential(fastbp.Linear(6, 400), fastbp.Linear(400, 3), seed=0)
    twin.load_state_dict(model.state_dict())
    loss = fastbp.CrossEntropyLoss(0.3)
    assert model.train_step(X, Y, loss, optimizer) == twin.train_step(X, Y, loss, fastbp.SGD())


def test_views_of_what_is_written(device):
    """Arrays that lie in the memory of the model itself."""
    model = fastbp.Sequential(fastbp.Linear(4, 4, bias=False), fastbp.Linear(4, 4, bias=False), device=device, seed=0)
    first, second = model[0].weight.copy(), model[1].weight.copy()
    model.load_state_dict({"0.weight": model[1].weight, "1.weight": model[0].weight})
    np.testing.assert_array_equal(model[0].weight, second)
    np.testing.assert_array_equal(model[1].weight, first)
    x = GENERATOR.standard_normal((4, 4)).astype(np.float32)
    for subject in (model, fastbp.Linear(4, 4, bias=False, seed=0, device=device)):
        layer = model[0] if subject is model else subject
        subject(x)
        subject.backward(np.ones((4, 4)))
        given = layer.grad_weight
        apart = given.copy()
        subject(x)
        grad_input = subject.backward(given)
        kept = layer.grad_weight.copy()
        subject(x)
        np.testing.assert_array_equal(subject.backward(apart), grad_input)
        np.testing.assert_array_equal(layer.grad_weight, kept)


def test_every_dtype_is_read(device):
    for code in "?bBhHiIlLqQefdg":
        x = (X > 0).astype(code)
        expected = network(device).predict(x.astype(np.float32))
        np.testing.assert_array_equal(network(device).predict(x), expected, err_msg=code)
        swapped = x.astype(x.dtype.newbyteorder())
        np.testing.assert_array_equal(network(device).predict(swapped), expected, err_msg=code)
