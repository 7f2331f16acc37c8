"""Checkpoints: a run that goes on is a run that never stopped, and no fault costs more than the time since the last."""

import builtins
import contextlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import threading
import time
import warnings

import numpy as np
import pytest

import fastbp
from fastbp import checkpoints, files

GOLDEN = pathlib.Path(__file__).parent / "golden" / "checkpoint"


def data(rows=20):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def make(device, dtype="float64", plain=False, seed=0):
    between = [] if plain else [fastbp.BatchNorm1d(6), fastbp.Dropout(0.3)]
    layers = fastbp.Linear(4, 6), fastbp.Tanh(), *between, fastbp.Linear(6, 3)
    return fastbp.Sequential(*layers, dtype=dtype, device=device, seed=seed)


class Killed(Exception):
    pass


class Ask:
    """Asks for a checkpoint after a step, and ends training after the next one; draws by the model's generator."""

    def __init__(self, at=None):
        self.at, self.asked = at, False

    def on_batch_end(self, model, record):
        model.generator.random()
        if self.asked:
            raise Killed
        if (record["epoch"], record["batch"]) == self.at:
            fastbp.request_checkpoint()
            self.asked = True

    def on_fit_end(self, model, history):
        if self.asked:
            raise Killed

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def outcome(model, optimizer, history, *callbacks):
    """All that a run leaves, as something to compare."""
    state = {name: array.tobytes() for name, array in model.state_dict().items()}
    state |= {name: np.asarray(array).tobytes() for name, array in optimizer.state_dict().items()}
    kept = [(callback.best, callback.best_epoch) for callback in callbacks]
    return state, str(without_seconds(history)), model.generator.bit_generator.state, optimizer.json_config(), kept


def chunks():
    x, y = data(20)
    return [(x[:10], y[:10]), (x[10:], y[10:], np.linspace(1, 2, 10))]


def own_loss(prediction, target):
    error = prediction - np.eye(3)[target]
    return float((error**2).mean()), 2 * error / error.size


class Noise:
    """Draws by the model's generator, as callbacks may."""

    def on_batch_end(self, model, record):
        model.generator.random()


def turned(epoch):
    """An order of one's own, of other rows and another length every epoch."""
    return np.roll(np.arange(20), epoch)[: 16 + epoch]


RUNS = {
    "adam": {},
    "an order of one's own": {"shuffle": turned},
    "float32": {"dtype": "float32"},
    "momentum and a schedule": {
        "optimizer": lambda: fastbp.SGD(lr=fastbp.CosineSchedule(0.1, 12), momentum=0.9, nesterov=True)
    },
    "a function as rate": {"optimizer": lambda: fastbp.AdamW(lr=lambda step: 0.01 / (step + 1))},
    "rmsprop in order": {"optimizer": lambda: fastbp.RMSProp(weight_decay=1e-3), "shuffle": False},
    "lion without the last batch": {"optimizer": lambda: fastbp.Lion(lr=1e-2), "drop_last": True},
    "clipped": {"optimizer": lambda: fastbp.Adam(clip_norm=0.01)},
    "by blocks": {"shuffle": "blocks"},
    "accumulated": {"accumulate": 2, "batch_size": 4},
    "weights": {"sample_weight": np.linspace(0, 2, 20)},
    "a loss of one's own": {"loss": own_loss},
    "chunks": {"X": chunks},
    "chunks, clipped": {"X": chunks, "optimizer": lambda: fastbp.Adam(clip_norm=0.01), "batch_size": 4},
    "what cannot be read directly": {"X": lambda: data(20)[0].astype(">f8")[::-1]},
}


def run(device, given, dtype="float64", optimizer=fastbp.Adam, X=None, **arguments):
    """Three epochs with these arguments; returns the outcome."""
    x, y = data()
    if X is not None:
        x, y = X(), None if X is chunks else y
    stopping, optimizer = fastbp.EarlyStopping(patience=9), optimizer()
    arguments = {"batch_size": 7, "loss": fastbp.CrossEntropyLoss(), "epochs": 3} | arguments
    model = make(device, dtype)
    given = {"validation_data": data(9), "verbose": False} | given
    callbacks = [given.pop("ask", Ask()), stopping]
    history = model.fit(x, y, optimizer=optimizer, callbacks=callbacks, **arguments, **given)
    return outcome(model, optimizer, history, stopping)


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_a_run_goes_on_to_the_same_bits_from_every_step(device, tmp_path, arguments):
    expected = run(device, {}, **arguments)
    written = 0
    for at in itertools.product((1, 2, 3), range(1, 7)):
        folder = tmp_path / str(at)
        try:
            run(device, {"checkpoint": folder, "every": 9, "ask": Ask(at)}, **arguments)
        except Killed:
            written += 1
        else:
            continue
        assert run(device, {"resume": folder}, **arguments) == expected, at
    assert written >= 6


def test_checkpoints_are_of_epochs_and_two_are_kept(device, tmp_path):
    x, y = data()
    arguments = {"loss": fastbp.CrossEntropyLoss(), "batch_size": 7, "verbose": False}
    whole, part, rest = (make(device) for _ in range(3))
    history = whole.fit(x, y, optimizer=fastbp.Adam(), epochs=8, **arguments)
    part.fit(x, y, optimizer=fastbp.Adam(), epochs=5, checkpoint=tmp_path / "run", every=2, **arguments)
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-00000002.npz", "checkpoint-00000003.npz"]
    both = {"checkpoint": tmp_path / "run", "resume": tmp_path / "run", "every": 2}
    again = rest.fit(x, y, optimizer=fastbp.Adam(), epochs=8, **both, **arguments)  # the last was after epoch 5
    assert without_seconds(again) == without_seconds(history)
    np.testing.assert_array_equal(rest.flat_parameters, whole.flat_parameters)
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-00000004.npz", "checkpoint-00000005.npz"]
    done = make(device)
    assert without_seconds(done.fit(x, y, optimizer=fastbp.Adam(), epochs=8, **both, **arguments)) == without_seconds(
        history
    )
    np.testing.assert_array_equal(done.flat_parameters, whole.flat_parameters)


@pytest.mark.parametrize("epochs", [1, 5])
def test_callbacks_go_on(tmp_path, epochs):
    """From a run that was stopped by a callback, and from one that was not yet."""
    x, y = data()

    def trained(epochs, folder=None, resume=None):
        watch = fastbp.EarlyStopping(patience=2, min_delta=10), fastbp.ReduceLROnPlateau(0.5, patience=1, min_delta=10)
        watch += (fastbp.ModelCheckpoint(tmp_path / "best.npz"),)
        optimizer, model = fastbp.Adam(lr=0.1), make("reference")
        arguments = {"loss": fastbp.CrossEntropyLoss(), "optimizer": optimizer, "batch_size": 7, "callbacks": watch}
        history = model.fit(x, y, epochs=epochs, checkpoint=folder, resume=resume, verbose=False, **arguments)
        return outcome(model, optimizer, history, *watch), history["lr"], optimizer.lr, watch[0].best_weights

    expected, rates, lr, best = trained(5)
    assert rates == [0.1, 0.1, 0.05]
    assert lr == 0.025
    trained(epochs, folder=tmp_path / "run")
    found, *others, weights = trained(5, resume=tmp_path / "run")
    assert (found, *others) == (expected, rates, lr)
    for name, array in best.items():
        np.testing.assert_array_equal(weights[name], array)
        assert found[0][name] == array.tobytes()


def test_a_failure_after_going_on_restores_what_it_would_have_restored(device, tmp_path):
    x, y = data()
    results = []
    for resumed in (False, True):
        model, optimizer = make(device), fastbp.SGD(lr=lambda step: 1e300 if step == 4 else 0.01)
        arguments = {"loss": fastbp.CrossEntropyLoss(), "optimizer": optimizer, "batch_size": 7, "epochs": 3}
        arguments |= {"callbacks": [Ask((2, 1) if not resumed else None)], "verbose": False}
        folder = {"resume": tmp_path} if resumed else {"checkpoint": tmp_path, "every": 9}
        if not resumed:
            with pytest.raises(Killed):
                model.fit(x, y, **arguments, **folder)
            model, optimizer = make(device), fastbp.SGD(lr=optimizer.lr)
            arguments |= {"optimizer": optimizer, "callbacks": [Ask()]}
            folder = {}
        with pytest.raises(FloatingPointError) as caught:
            model.fit(x, y, **arguments, **folder)
        results.append((str(caught.value), model.flat_parameters.tobytes()))
    assert results[0] == results[1]
    assert "weights are back at those epoch 2 began with" in results[0][0]


# ------------------------------------------------------------------------------------- refusals
def fit(folder=None, resume=None, seed=0, plain=True, **arguments):
    x, y = data()
    model = make("reference", plain=plain, seed=seed)
    given = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "epochs": 2, "batch_size": 7}
    model.fit(x, y, checkpoint=folder, resume=resume, verbose=False, **(given | arguments))
    return model


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"plain": False}, "whose layers was"),
        ({"batch_size": 6}, "whose batch_size was 7; here it is 6"),
        ({"optimizer": fastbp.Adam(lr=0.1)}, "whose optimizer was"),
        ({"loss": fastbp.CrossEntropyLoss(0.1)}, "whose loss was"),
        ({"callbacks": [fastbp.EarlyStopping()]}, "whose callbacks was"),
        ({"shuffle": False}, "whose shuffle was True; here it is False"),
    ],
)
def test_another_call_is_refused(tmp_path, change, match):
    fit(tmp_path)
    with pytest.raises(ValueError, match=match):
        fit(resume=tmp_path, **change)


def test_folders_are_not_taken_for_others(tmp_path):
    run, empty = tmp_path / "run", tmp_path / "empty"
    with pytest.raises(FileNotFoundError):
        fit(resume=run)
    first = fit(run, resume=run)  # missing: a run begins
    with pytest.raises(ValueError, match="holds checkpoints of another run; go on with it by resume="):
        fit(run)
    empty.mkdir()
    np.testing.assert_array_equal(fit(empty, resume=empty).flat_parameters, first.flat_parameters)
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        fit(empty, resume=run)
    with pytest.raises(ValueError, match="every must be at least 1"):
        fit(run, every=0)


def test_callbacks_without_state_are_named(tmp_path):
    with pytest.warns(UserWarning, match="no state of these callbacks, which have no state_dict: Noise"):
        fit(tmp_path, callbacks=[Noise(), fastbp.EarlyStopping()])

    class Half:
        def on_epoch_end(self, model, record):
            pass

        def state_dict(self):
            return {}

    with pytest.raises(TypeError, match="Half has state_dict, and must have load_state_dict"):
        fit(tmp_path / "half", callbacks=[Half()])


def test_another_unit_is_said(tmp_path, monkeypatch):
    fit(tmp_path)
    monkeypatch.setattr(checkpoints, "unit", lambda model: {"device": "elsewhere"})
    with pytest.warns(UserWarning, match="the last bits may differ"):
        fit(resume=tmp_path, epochs=3)


# --------------------------------------------------------------------------------------- faults
def test_a_damaged_checkpoint_costs_one_step_back(tmp_path):
    expected = fit(epochs=4)
    fit(tmp_path, epochs=3)
    newest = tmp_path / "checkpoint-00000003.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"00000003.npz is not a checkpoint .* goes on from the one before.*00000002"):
        found = fit(tmp_path, resume=tmp_path, epochs=4)
    np.testing.assert_array_equal(found.flat_parameters, expected.flat_parameters)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-00000004.npz", "checkpoint-00000005.npz"]
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no good checkpoint: .*00000005.*00000004"):
        fit(resume=tmp_path)


def same(first, second):
    return first[0] == second[0] and all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_every_truncation_and_every_flipped_byte_is_found(tmp_path):
    """A byte that the archive does not use, such as of a date, may differ; then the content is the same."""
    model = fastbp.Sequential(fastbp.Linear(1, 1), device="reference", seed=0)
    arguments = {"loss": fastbp.MSELoss(), "optimizer": fastbp.SGD(), "on_nonfinite": "continue", "verbose": False}
    model.fit([[1]], [[1]], checkpoint=tmp_path, **arguments)
    path = tmp_path / "checkpoint-00000001.npz"
    whole, damaged = path.read_bytes(), tmp_path / "damaged.npz"
    expected = files.read(path, checkpoints.CHECKPOINT)
    unnoticed = 0
    for i in range(len(whole)):
        damaged.write_bytes(whole[:i])
        with pytest.raises(ValueError, match="is not a checkpoint of fastbp, or is damaged"):
            files.read(damaged, checkpoints.CHECKPOINT)
        flipped = bytearray(whole)
        flipped[i] ^= 1 << i % 8
        damaged.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            assert same(files.read(damaged, checkpoints.CHECKPOINT), expected)
            unnoticed += 1
    assert unnoticed < len(whole) / 10


class Faults:
    """Lets the N-th operation on files fail."""

    def __init__(self, monkeypatch, fails):
        self.left = fails
        monkeypatch.setattr(files, "open", self.open, raising=False)
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function):
        def call(*arguments, **named):
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return function(*arguments, **named)

        return call

    def open(self, path, mode):
        file = self.counted(builtins.open)(path, mode)
        if "w" in mode or "x" in mode:
            write = self.counted(file.write)
            file = Written(file, write)
        return file


class Written:
    """A file whose ``write`` is another."""

    def __init__(self, file, write):
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_whatever_write_fails_the_checkpoint_before_is_there(tmp_path):
    expected = fit(epochs=3)
    fit(tmp_path / "start", epochs=2)
    failures = 0
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "start", folder)
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            faults = Faults(monkeypatch, n)
            found = fit(folder, resume=folder, epochs=3)
        stored = checkpoints.newest(folder)
        assert stored.config["progress"]["epoch"] >= 3
        np.testing.assert_array_equal(found.flat_parameters, expected.flat_parameters)
        if faults.left > 0:
            break
        failures += bool(caught)
    assert stored.config["progress"]["epoch"] == 4
    assert not caught
    assert failures > 20


def forever(folder):
    """Train and write checkpoints until killed."""
    fit(folder, resume=folder, epochs=10**9, plain=False)


def killed_in_a_loop(folder, count):
    """What `test_a_kill_leaves_a_good_checkpoint` runs in a process of its own."""
    generator, numbers = random.Random(0), [0]
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                forever(folder)
            finally:
                os._exit(1)
        while not (os.path.isdir(folder) and max(checkpoints._numbers(folder), default=0) > numbers[-1]):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no file is damaged
            stored = checkpoints.newest(folder, may_be_missing=True)
        numbers.append(stored.number if stored else 0)
    assert numbers == sorted(numbers)
    fit(folder, resume=folder, epochs=stored.config["progress"]["epoch"], plain=False)
    assert len(os.listdir(folder)) == 2  # and nothing else is left
    expected = fit(epochs=stored.config["progress"]["epoch"], plain=False)
    found = fit(resume=folder, epochs=stored.config["progress"]["epoch"], plain=False)
    np.testing.assert_array_equal(found.flat_parameters, expected.flat_parameters)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_a_kill_leaves_a_good_checkpoint(fresh, tmp_path, count):
    fresh(killed_in_a_loop, str(tmp_path / "run"), count)


def test_nothing_is_unpickled(tmp_path):
    fit(tmp_path)
    path = tmp_path / "checkpoint-00000002.npz"
    _, arrays = files.read(path, checkpoints.CHECKPOINT)
    with open(path, "wb") as file:
        np.savez(file, **arrays, harmful=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="is not a checkpoint of fastbp, or is damaged"):
        files.read(path, checkpoints.CHECKPOINT)


def test_checkpoints_of_older_releases_are_gone_on_from():
    """``make_golden_checkpoint`` wrote the folder with the first release that had checkpoints."""
    expected = make_golden_checkpoint(None)
    found = make_golden_checkpoint(None, resume=GOLDEN)
    np.testing.assert_allclose(found.flat_parameters, expected.flat_parameters, rtol=1e-12)
    assert [record["epoch"] for record in found.history] == [1, 2, 3]


def make_golden_checkpoint(folder, resume=None, at=None):
    """Three epochs; for the file, ended after the first step of the second."""
    callbacks = [Ask(at), fastbp.EarlyStopping()]
    return fit(folder, resume, plain=False, epochs=3, validation_data=data(9), every=9, callbacks=callbacks)


# ------------------------------------------------------------------------- signals and threads
@pytest.fixture
def slow():
    """A model and arguments of `fit` for which a slice of steps takes long, and one that knows its steps."""
    model = fastbp.Sequential(fastbp.Linear(4, 64), fastbp.ReLU(), fastbp.Linear(64, 3), seed=0)
    x, y = data(2000)
    arguments = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "batch_size": 1, "verbose": False}
    return model, {"X": x, "y": y, "epochs": 10**6} | arguments


class After:
    """Calls a function in a thread some seconds after training has begun, then stops training."""

    def __init__(self, function, seconds=0.3):
        self.function, self.seconds, self.error, self.called = function, seconds, None, False

    def on_fit_begin(self, model, run):
        self.thread = threading.Thread(target=self.call)
        self.thread.start()

    def call(self):
        time.sleep(self.seconds)
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def on_epoch_end(self, model, record):
        called, self.called = self.called, not self.thread.is_alive()
        return called  # an epoch later: what was asked for is written before the last checkpoint

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def at_step(model, arguments, steps):
    """The parameters after so many steps from the beginning."""
    epochs, rest = divmod(steps, 2000)
    other = fastbp.Sequential(fastbp.Linear(4, 64), fastbp.ReLU(), fastbp.Linear(64, 3), seed=0)
    arguments = arguments | {"optimizer": fastbp.Adam(), "shuffle": False, "callbacks": []}
    if epochs:
        other.fit(**(arguments | {"epochs": epochs}))
    if rest:
        part = {"X": arguments["X"][:rest], "y": arguments["y"][:rest], "epochs": 1}
        other.fit(**(arguments | part))
    return other.state_dict()


@pytest.mark.parametrize("how", ["handler", "thread"])
def test_a_requested_checkpoint_is_of_one_step(slow, tmp_path, how):
    model, arguments = slow
    before = signal.signal(signal.SIGUSR1, lambda *_: fastbp.request_checkpoint())
    ask = (lambda: os.kill(os.getpid(), signal.SIGUSR1)) if how == "handler" else fastbp.request_checkpoint
    try:
        callback = After(ask)
        model.fit(**arguments, shuffle=False, callbacks=[callback], checkpoint=tmp_path, every=10**9)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert callback.error is None
    first, _ = sorted(os.listdir(tmp_path))  # the one asked for, and that of the last epoch
    config, arrays = files.read(tmp_path / first, checkpoints.CHECKPOINT)
    for name, array in at_step(model, arguments, config["optimizer"][1]).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_without_a_folder_a_request_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r'pass fit\(checkpoint="folder"\)'):
        fastbp.request_checkpoint()
    fit(tmp_path)
    with pytest.raises(RuntimeError, match="no fit with a checkpoint folder is running"):
        fastbp.request_checkpoint()


def test_save_waits_in_another_thread(slow, tmp_path):
    model, arguments = slow
    numbers = []

    def save():
        for i in range(5):
            model.save(tmp_path / f"{i}.npz", arguments["optimizer"])
            numbers.append(i)

    callback = After(save, 0.1)
    model.fit(**arguments, shuffle=False, callbacks=[callback])
    assert callback.error is None
    assert numbers == list(range(5))
    for i in (0, 4):
        saved = fastbp.load(tmp_path / f"{i}.npz")
        expected = at_step(model, arguments, saved.optimizer.step_count)
        for name, array in saved.state_dict().items():
            np.testing.assert_array_equal(array, expected[name])


def test_save_in_a_handler_names_the_request(slow, tmp_path):
    model, arguments = slow
    errors, handled = [], threading.Event()

    def handler(*_):
        try:
            model.save(tmp_path / "model.npz")
        except RuntimeError as error:
            errors.append(str(error))
        handled.set()

    before = signal.signal(signal.SIGUSR1, handler)

    def signals():
        end = time.monotonic() + 100
        while not errors and time.monotonic() < end:
            handled.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            handled.wait()
            time.sleep(0.01)

    try:
        callback = After(signals, 0.1)
        model.fit(**arguments, callbacks=[callback])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert callback.error is None
    assert errors
    assert "fastbp.request_checkpoint()" in errors[0]
    model.save(tmp_path / "model.npz")


def test_callbacks_may_save(tmp_path):
    class Save:
        def on_batch_end(self, model, record):
            model.save(tmp_path / "model.npz")

    model = fit(callbacks=[Save()])
    np.testing.assert_array_equal(fastbp.load(tmp_path / "model.npz").flat_parameters, model.flat_parameters)
