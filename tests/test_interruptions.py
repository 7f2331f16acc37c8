"""An exception at any line, and wherever a signal handler may raise one, leaves every object usable.

A run is repeated with an exception at its first place, its second, and so on. Afterwards everything must be as before
the interrupted step or as after it, and going on must give the numbers of a run that nothing interrupted, to the bit.
In the default run some places are tried, with ``--long`` all of them.
"""

import ast
import copy
import dis
import itertools
import signal
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp.autograd import no_grad
from fastbp.graph import recording

PACKAGE = str(Path(fastbp.__file__).parent)
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.standard_normal((48, 6)).astype(np.float32), GENERATOR.integers(0, 3, 48)
NOP = dis.opmap["NOP"]
MOST = 60  # places of a run that are tried by default


class Interruption(BaseException):
    """What a signal handler raises."""


@cache
def protected(path):
    """Lines at which no signal handler runs before what they do is done: of finally and except, and where with ends."""
    lines = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Try):
            parts = [*node.finalbody, *itertools.chain(*(handler.body for handler in node.handlers))]
            lines |= {line for part in parts for line in range(part.lineno, part.end_lineno + 1)}
            lines |= {handler.lineno for handler in node.handlers}
        elif isinstance(node, ast.With | ast.AugAssign):  # x += f(): f is over, and x as it was
            lines.add(node.lineno)
    return lines


class Interrupter:
    """Raises at the n-th place: a line of the package, or the beginning or the end of a call in it."""

    def __init__(self, places, n):
        self.places, self.left, self.count = places, n, 0

    def __enter__(self):
        (sys.settrace if self.places == "lines" else sys.setprofile)(self.traced)
        return self

    def __exit__(self, *_):
        sys.settrace(None)
        sys.setprofile(None)

    def traced(self, frame, event, _):
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE):
            return self.traced if self.places == "lines" else None
        if "__del__" in (frame.f_code.co_name, frame.f_back.f_code.co_name):  # from where no exception comes out
            return None
        # A line that begins with nothing to do, as try does, has no handler in CPython, and no signal comes there.
        here = event == "line" and frame.f_lineno not in protected(path) and frame.f_code.co_code[frame.f_lasti] != NOP
        if here if self.places == "lines" else event in ("call", "c_return"):
            self.count += 1
            if self.count == self.left:
                self.__exit__()
                raise Interruption
        return self.traced


def count_places(places, prepare, act):
    subject = prepare()
    with Interrupter(places, 0) as interrupter:
        act(subject)
    return interrupter.count


def interruptions(places, prepare, act, long):
    """Subjects that were interrupted: at every place of a run, or at some, the first and the last among them."""
    act(prepare())
    count = count_places(places, prepare, act)
    chosen = range(1, count + 1) if long or count <= MOST else np.unique(np.linspace(1, count, MOST).astype(int))
    for n in chosen:
        subject, reached = prepare(), False
        try:
            with Interrupter(places, n):
                act(subject)
        except Interruption:
            reached = True
        if reached:  # a little less is to be done the second time; and only now is the exception gone
            yield n, subject
        else:
            assert n > 0.9 * count, f"place {n} of {count} was not reached"


def pytest_generate_tests(metafunc):
    if "long" in metafunc.fixturenames:
        metafunc.parametrize("long", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"])


@pytest.fixture(params=["lines", "calls"])
def places(request):
    return request.param


def network(dtype="float32", device="cpu"):
    return fastbp.Sequential(
        fastbp.Linear(6, 8), fastbp.Tanh(), fastbp.LayerNorm(8), fastbp.Linear(8, 3), dtype=dtype, device=device, seed=1
    )


def state_of(model, optimizer):
    state = optimizer.state_dict() if optimizer.network else {"step_count": 0}
    count = state.pop("step_count")
    return count, model.flat_parameters, *(state[name] for name in sorted(state))


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# -------------------------------------------------------------------------------------- training steps
BATCHES = [slice(0, 8), slice(8, 40), slice(40, 48)]  # the second is larger than what was made ready
LOSS = fastbp.CrossEntropyLoss()


@pytest.mark.parametrize("clip_norm", [None, 1.0], ids=["compiled", "stored"])
def test_train_step(places, clip_norm, long):
    def prepare():
        return network(), fastbp.Adam(clip_norm=clip_norm)

    def step(subject, batch):
        model, optimizer = subject
        model.train_step(X[BATCHES[batch]], Y[BATCHES[batch]], LOSS, optimizer)

    clean = prepare()
    states = [(0, clean[0].flat_parameters)]
    for batch in range(3):
        step(clean, batch)
        states.append(state_of(*clean))
    for first in range(3):

        def prepared(first=first):
            subject = prepare()
            for batch in range(first):
                step(subject, batch)
            return subject

        for n, subject in interruptions(places, prepared, lambda subject, first=first: step(subject, first), long):
            count, values, *_ = state_of(*subject)
            moved = not np.array_equal(values, states[first][1])
            assert np.array_equal(values, states[first + moved][1]), n
            assert count == first + moved, n
            for batch in range(first + moved, 3):
                step(subject, batch)
            assert same(state_of(*subject), states[3]), n


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "frozen"])
def test_step_of_a_loop(places, frozen, long):
    """An update, its count and the state of the optimizer, in as many parts as layers that are frozen leave."""

    def prepare():
        model = fastbp.Sequential(*(fastbp.Linear(6, 6) for _ in range(5)), seed=1)
        optimizer = fastbp.Adam(model.parameters(), clip_norm=1.0)
        for layer in model.layers[1::2]:
            layer.trainable = not frozen
        model.backward(np.ones_like(model(X)))
        optimizer.step()
        return model, optimizer

    before, after = prepare(), prepare()
    after[1].step()
    for n, subject in interruptions(places, prepare, lambda subject: subject[1].step(), long):
        reached = next(one for one in (before, after) if same(state_of(*subject), state_of(*one)))
        if reached is before:
            subject[1].step()
        assert same(state_of(*subject), state_of(*after)), n


def test_fit(places, long):
    def prepare():
        return network(), fastbp.Adam()

    def fit(subject, epochs=2):
        model, optimizer = subject
        model.fit(X, Y, loss=LOSS, optimizer=optimizer, epochs=epochs, batch_size=20, shuffle=False, verbose=False,
                  validation_data=(X, Y))  # fmt: skip

    clean = prepare()
    states = [(0, clean[0].flat_parameters)]
    for step in range(12):
        rows = slice(step % 3 * 20, step % 3 * 20 + 20)
        clean[0].train_step(X[rows], Y[rows], LOSS, clean[1])
        states.append(state_of(*clean))
    for n, (model, optimizer) in interruptions(places, prepare, fit, long):
        count = optimizer.step_count
        assert np.array_equal(model.flat_parameters, states[count][1]), n
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler or places == "calls"
        model.train_step(X[:20], Y[:20], LOSS, optimizer)
        model.load_state_dict(clean[0].state_dict())
        fit((model, fastbp.Adam()))
        assert model.history[-1]["loss"] > 0


# --------------------------------------------------------------------------- predictions, gradients, files
def test_predict(places, long):
    expected = network().predict(X)

    def predict(model):
        model.predict(X)
        model.predict(np.asfortranarray(X))
        model.evaluate(X, Y, loss=LOSS)

    scores = network().evaluate(X, Y, loss=LOSS)
    for n, model in interruptions(places, network, predict, long):
        assert model.evaluate(X, Y, loss=LOSS) == scores, n
        np.testing.assert_array_equal(model.predict(X), expected, err_msg=str(n))


@pytest.mark.parametrize("kind", ["model", "layer", "graph"])
def test_backward(places, kind, long):
    grad = np.ones((48, 3), np.float32)

    def prepare():
        return fastbp.Linear(6, 3, seed=0) if kind == "layer" else network()

    def run(subject):
        if kind == "graph":
            out = subject(fastbp.Variable(X))
            out.backward(grad)
        else:
            subject(X)
            return subject.backward(grad)

    def gradients(subject):
        return [parameter.grad.copy() for parameter in subject.parameters()]

    clean = prepare()
    run(clean)
    for n, subject in interruptions(places, prepare, run, long):
        if kind == "graph":
            subject.zero_grad()
        run(subject)
        assert same(gradients(subject), gradients(clean)), n
        assert recording()


def test_save_and_load(places, long, tmp_path):
    path = tmp_path / "model.npz"
    old, new = network(), network()
    new.flat_parameters = -new.flat_parameters
    optimizer = fastbp.Adam(new.parameters())

    def prepare():
        old.save(path)
        return new

    def save(model):
        model.save(path, optimizer)

    for n, model in interruptions(places, prepare, save, long):
        values = fastbp.load(path).flat_parameters
        assert any(np.array_equal(values, one.flat_parameters) for one in (old, new)), n
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.npz"], n
        np.testing.assert_array_equal(model.flat_parameters, -old.flat_parameters)
    new.save(path, optimizer)
    for _ in interruptions(places, lambda: path, fastbp.load, long):
        np.testing.assert_array_equal(fastbp.load(path).flat_parameters, new.flat_parameters)


@pytest.mark.parametrize("change", ["flat_parameters", "load_state_dict", "optimizer"])
def test_values_that_are_set_are_set_together(places, change, long):
    other = network()
    other.flat_parameters = np.arange(other.flat_parameters.size)
    target = fastbp.Adam(other.parameters())
    for batch in BATCHES:
        other.train_step(X[batch], Y[batch], LOSS, target)

    def prepare():
        model = network()
        return model, fastbp.Adam(model.parameters())

    def act(subject):
        model, optimizer = subject
        if change == "flat_parameters":
            model.flat_parameters = other.flat_parameters
        elif change == "load_state_dict":
            model.load_state_dict(other.state_dict())
        else:
            optimizer.load_state_dict(target.state_dict())

    before, after = prepare(), prepare()
    act(after)
    for n, subject in interruptions(places, prepare, act, long):
        assert any(same(state_of(*subject), state_of(*one)) for one in (before, after)), n
        act(subject)
        assert same(state_of(*subject), state_of(*after)), n


def test_models_move(places, long):
    expected = network().predict(X)

    def move(model):
        model.to("reference")

    for n, model in interruptions(places, network, move, long):
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-6, err_msg=str(n))
        model.fit(X, Y, loss=LOSS, optimizer=fastbp.SGD(lr=0.0), verbose=False)
        model.to("cpu")
        np.testing.assert_array_equal(model.predict(X), expected, err_msg=str(n))


def test_numbers_of_an_optimizer(places, long):
    """Scalars computed ahead are those of their steps."""

    def prepare():
        optimizer = fastbp.Adam(lr=0.1)
        optimizer.next_coefficients()
        return optimizer

    def act(optimizer):
        optimizer.step_count = 300
        optimizer.next_coefficients()
        optimizer.lr = 0.2
        optimizer.next_coefficients()

    for n, optimizer in interruptions(places, prepare, act, long):
        optimizer.step_count = 300
        expected = fastbp.Adam(lr=optimizer.lr).coefficients(300, 1)
        np.testing.assert_array_equal(optimizer.next_coefficients(), expected, err_msg=str(n))


def test_no_grad(places, long):
    def act(_):
        with no_grad():
            recording()

    for _ in interruptions(places, lambda: None, act, long):
        assert recording()


# ---------------------------------------------------------------------------------------- real signals
def train_step(model, optimizer):
    model.train_step(X, Y, LOSS, optimizer)


def step_of_a_loop(model, optimizer):
    _, gradient = LOSS(model(X), Y)
    model.backward(gradient)
    if optimizer.network is None:
        optimizer.bind(model._parameters)
    optimizer.step()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
@pytest.mark.parametrize("step", [train_step, step_of_a_loop])
def test_signals_at_any_moment(step):
    """Timers instead of a tracer: the process does not crash, and the weights are those of a finished step."""

    def interrupt(number, frame):
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        clean, optimizer = network(), fastbp.Adam()
        states = [clean.flat_parameters]
        for _ in range(40):
            step(clean, optimizer)
            states.append(clean.flat_parameters)
        for delay in GENERATOR.uniform(1e-5, 2e-3, 150):
            model, optimizer = network(), fastbp.Adam()
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                for _ in range(40):
                    step(model, optimizer)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interruption:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            np.testing.assert_array_equal(model.flat_parameters, states[optimizer.step_count])
            for _ in range(optimizer.step_count, 40):
                step(model, optimizer)
            np.testing.assert_array_equal(model.flat_parameters, states[40])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------- no memory
def test_a_batch_that_has_no_room(fresh):
    fresh(batch_that_has_no_room)


def batch_that_has_no_room():
    """What was made ready before serves on after a MemoryError."""
    import resource

    model, optimizer, loss = fastbp.Sequential(fastbp.Linear(1, 20_000), seed=0), fastbp.SGD(), fastbp.L1Loss()
    twin, other = copy.deepcopy(model), fastbp.SGD()
    x, y = np.ones((500, 1), np.float32), np.zeros((1, 20_000), np.float32)
    model.train_step(x[:8], y.repeat(8, 0), loss, optimizer)
    twin.train_step(x[:8], y.repeat(8, 0), loss, other)
    large = np.ones((200_000, 1), np.float32)
    targets = np.broadcast_to(y, (len(large), 20_000))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    for _ in range(2):
        with pytest.raises(MemoryError):
            model.train_step(large, targets, loss, optimizer)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    for _ in range(2):
        assert model.train_step(x, y.repeat(500, 0), loss, optimizer) == twin.train_step(
            x, y.repeat(500, 0), loss, other
        )
    np.testing.assert_array_equal(model.flat_parameters, twin.flat_parameters)


# --------------------------------------------------------------------------------------------- threads
def test_inference_of_one_model_in_many_threads():
    """Serial bits, whatever the slices, and while others predict."""
    model = network()
    x = GENERATOR.standard_normal((5000, 6)).astype(np.float32)
    expected, wrong = model.predict(x), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            start, rows = rng.integers(0, 5000), rng.integers(1, 3000)
            part = x[start : start + rows]
            if not np.array_equal(model.predict(part), expected[start : start + rows]):
                wrong.append((start, rows))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_training_of_one_model_in_many_threads():
    """One trains; the others are refused, and what they did not do does not show."""
    model, optimizer = network(), fastbp.Adam()
    refused, done = [], []

    def work():
        for _ in range(200):
            try:
                model.train_step(X, Y, LOSS, optimizer)
                done.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 800
    assert all("is being trained already" in error for error in refused)
    twin, other = network(), fastbp.Adam()
    for _ in done:
        twin.train_step(X, Y, LOSS, other)
    assert same(state_of(model, optimizer), state_of(twin, other))
