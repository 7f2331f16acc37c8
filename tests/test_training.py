"""Training as the field knows it: validation split, evaluate, callbacks that change the optimizer, what is shown."""

import gc
import logging
import os
import re
import signal
import sys
import types
import weakref

import numpy as np
import pytest

import fastbp
from fastbp import callbacks


def make(device, dtype="float64"):
    return fastbp.Sequential(
        fastbp.Linear(4, 8), fastbp.Tanh(), fastbp.Linear(8, 3), dtype=dtype, device=device, seed=0
    )


def data(rows=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def fit(model, x, y, optimizer=None, **arguments):
    given = {"loss": fastbp.CrossEntropyLoss(), "epochs": 2, "batch_size": 8, "verbose": False} | arguments
    return model.fit(x, y, optimizer=optimizer or fastbp.Adam(), **given)


def columns(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


# ---------------------------------------------------------------------------------- validation
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("container", [np.asarray, list, "map"])
def test_a_validation_split_is_the_last_rows(device, tmp_path, weighted, container):
    x, y = data()
    weight = np.arange(50) % 4 if weighted else None  # of which some are 0: they count for the split
    parts = (x[40:], y[40:], weight[40:]) if weighted else (x[40:], y[40:])
    model, other = make(device), make(device)
    shuffle = container != "map"
    weights = weight[:40] if weighted else None
    expected = fit(model, x[:40], y[:40], sample_weight=weights, validation_data=parts, shuffle=shuffle)
    if container == "map":
        np.save(tmp_path / "x.npy", x)
        given = np.load(tmp_path / "x.npy", mmap_mode="r"), y
    else:
        given = container(x), container(y)
    history = fit(other, *given, validation_split=0.2, sample_weight=weight, shuffle=shuffle)
    assert columns(history) == columns(expected)
    np.testing.assert_array_equal(other.flat_parameters, model.flat_parameters)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"validation_split": 1.0}, "validation_split must be at least 0 and below 1"),
        ({"validation_split": 1e-3, "X": np.ones((1, 4)), "y": [0]}, "must leave rows for both parts"),
        ({"validation_split": 0.2, "validation_data": data(9)}, "pass one of them"),
        ({"validation_split": 0.2, "X": [data()], "y": None}, r"pass validation_data=\(X, y\)"),
        ({"validation_split": 0.2, "y": [0]}, "y must have 50 rows"),
        ({"loss": fastbp.CrossEntropyLoss}, r"^loss must be an object, got a class; pass loss=CrossEntropyLoss\(\)$"),
        ({"optimizer": fastbp.Adam}, r"^optimizer must be an object, got a class; pass optimizer=Adam\(\)$"),
    ],
)
def test_what_is_refused(arguments, match):
    x, y = data()
    arguments = {"x": x, "y": y} | arguments
    if "X" in arguments:
        arguments["x"] = arguments.pop("X")
    with pytest.raises((TypeError, ValueError), match=match):
        fit(make("reference"), **arguments)


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_is_validation(device, weighted):
    x, y = data()
    given = (*data(20, seed=1), np.arange(20)) if weighted else data(20, seed=1)
    model = make(device)
    with pytest.raises(ValueError, match="evaluate needs a loss"):
        model.evaluate(*given[:2])
    history = fit(model, x, y, validation_data=given)
    before = model.generator.bit_generator.state, model.flat_parameters
    weight = {"sample_weight": given[2]} if weighted else {}
    found = model.evaluate(*given[:2], loss=fastbp.CrossEntropyLoss(), **weight)
    assert found == {"loss": history[-1]["val_loss"], "accuracy": history[-1]["val_accuracy"]}
    assert model.evaluate(*given[:2], **weight) == found
    assert model.evaluate(x, np.zeros((50, 3)), loss=fastbp.MSELoss())["accuracy"] is None
    assert model.generator.bit_generator.state == before[0]
    np.testing.assert_array_equal(model.flat_parameters, before[1])
    with pytest.raises(ValueError, match=r"X\[3, 1\] = nan"):
        model.evaluate(np.where(np.arange(80).reshape(20, 4) == 13, np.nan, 1.0), given[1])
    with pytest.raises(ValueError, match="y must have shape"):
        model.evaluate(x, y[:3])


# -------------------------------------------------------- callbacks that change the optimizer
class AfterBatch:
    """Calls a function with the optimizer after one batch."""

    def __init__(self, batch, change):
        self.batch, self.change, self.seen = batch, change, []

    def on_fit_begin(self, model, run):
        self.optimizer = run["optimizer"]

    def on_batch_end(self, model, record):
        if record["batch"] == self.batch:
            self.change(self.optimizer)
        self.seen.append(model.flat_parameters)


def stop(optimizer):
    optimizer.lr = 0


@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
def test_the_step_after_a_callback_obeys(device, clip_norm):
    x, y = data()
    watch = AfterBatch(3, stop)
    fit(make(device), x, y, fastbp.SGD(lr=0.1, clip_norm=clip_norm), epochs=1, callbacks=[watch])
    moved = [not np.array_equal(a, b) for a, b in zip(watch.seen, watch.seen[1:], strict=False)]
    assert moved == [True, True, False, False, False, False]


@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["compiled", "stored"])
def test_a_reset_begins_anew(device, clip_norm):
    """As if another optimizer had taken over, bias correction and dropout's random bits among it."""
    x, y = data(24)
    model, other = (
        fastbp.Sequential(
            fastbp.Linear(4, 8), fastbp.Dropout(0.5), fastbp.Linear(8, 3), dtype="float64", device=device, seed=0
        )
        for _ in range(2)
    )
    optimizer = fastbp.Adam(lr=0.05, clip_norm=clip_norm)
    watch = AfterBatch(2, lambda optimizer: optimizer.reset())
    fit(model, x, y, optimizer, epochs=1, shuffle=False, callbacks=[watch])
    assert optimizer.step_count == 1
    seen = AfterBatch(9, stop)
    fit(other, x, y, fastbp.Adam(lr=0.05, clip_norm=clip_norm), epochs=1, shuffle=False, callbacks=[seen])
    np.testing.assert_array_equal(watch.seen[1], seen.seen[1])
    assert not np.array_equal(watch.seen[2], seen.seen[2])
    moved = np.abs(watch.seen[2] - watch.seen[1])
    np.testing.assert_allclose(moved[moved > 0], 0.05, rtol=1e-4)  # the first update of Adam: lr times a sign


def test_masks_of_dropout_do_not_depend_on_slices(device):
    x, y = data()
    values = []
    for watch in ([], [AfterBatch(0, stop)]):  # with it a slice is one step
        layers = fastbp.Linear(4, 8), fastbp.Dropout(0.5), fastbp.Linear(8, 3)
        model = fastbp.Sequential(*layers, dtype="float64", device=device, seed=0)
        fit(model, x, y, callbacks=watch)
        values.append(model.flat_parameters)
    np.testing.assert_array_equal(*values)


def test_a_schedule_set_by_a_callback_is_obeyed(device):
    x, y = data()
    optimizer = fastbp.SGD(lr=0.1)
    watch = AfterBatch(7, lambda optimizer: setattr(optimizer, "lr", lambda step: 0.1 / step))
    assert fit(make(device), x, y, optimizer, callbacks=[watch])["lr"] == [0.1 / 6, 0.1 / 13]


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        ([1.0, 0.9, 0.8, 0.7], [1.0, 1.0, 1.0, 1.0]),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5, 0.3, 0.3]),
        ([1.0, 2.0, 0.9, 2.0, 2.0, float("nan")], [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]),
    ],
)
def test_the_rate_is_reduced_on_a_plateau(losses, rates):
    optimizer = fastbp.SGD(lr=1.0)
    callback = fastbp.ReduceLROnPlateau(0.5, patience=2, min_lr=0.3)
    callback.on_fit_begin(make("reference"), {"optimizer": optimizer, "validation_rows": 0})
    seen = []
    for epoch, loss in enumerate(losses, 1):
        callback.on_epoch_end(None, {"epoch": epoch, "loss": loss})
        seen.append(optimizer.lr)
    assert seen == rates


def test_a_rate_below_the_least_is_left():
    optimizer, callback = fastbp.SGD(lr=0.1), fastbp.ReduceLROnPlateau(0.5, patience=1, min_lr=0.3)
    fit(make("reference"), *data(), optimizer, epochs=3, callbacks=[callback])
    assert optimizer.lr == 0.1


def test_a_plateau_needs_a_number():
    with pytest.raises(TypeError, match="needs an optimizer whose lr is a number"):
        fit(make("reference"), *data(), fastbp.SGD(lr=lambda step: 0.1), callbacks=[fastbp.ReduceLROnPlateau()])
    for arguments, match in (((1.0,), "factor must be"), ((0,), "factor must be above 0"), ((0.5, 0), "patience must")):
        with pytest.raises(ValueError, match=match):
            fastbp.ReduceLROnPlateau(*arguments)


@pytest.mark.parametrize("monitor", [None, "val_accuracy"])
def test_the_best_model_is_saved(device, tmp_path, monitor):
    seen = {}

    class Keep:
        def on_epoch_end(self, model, record):
            seen[record["epoch"]] = model.flat_parameters

    keep = fastbp.ModelCheckpoint(tmp_path / "best.npz", monitor)
    model = make(device)
    history = fit(model, *data(), fastbp.Adam(lr=0.3), epochs=8, validation_data=data(20, 1), callbacks=[Keep(), keep])
    values = history[monitor or "val_loss"]
    best = 1 + (np.argmax(values) if monitor else np.argmin(values))
    assert keep.best_epoch == best
    np.testing.assert_array_equal(fastbp.load(tmp_path / "best.npz").flat_parameters, seen[best])
    with pytest.raises(ValueError, match="must end in"):
        fastbp.ModelCheckpoint(tmp_path / "best.pt")


def test_best_weights_are_there_after_ctrl_c(device):
    seen = {}

    class Interrupt:
        def on_epoch_end(self, model, record):
            seen[record["epoch"]] = model.state_dict()
            if record["epoch"] == 6:
                raise KeyboardInterrupt

    stopping, model = fastbp.EarlyStopping(patience=9), make(device)
    assert stopping.best_weights is None
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            *data(),
            fastbp.Adam(lr=0.5),
            epochs=9,
            validation_data=data(20, 1),
            callbacks=[stopping, Interrupt()],
        )
    for name, array in stopping.best_weights.items():
        np.testing.assert_array_equal(array, seen[stopping.best_epoch][name])
    model.load_state_dict(stopping.best_weights)
    stopping = fastbp.EarlyStopping(restore_best=False)
    fit(model, *data(), callbacks=[stopping])
    assert stopping.best_weights is None


# -------------------------------------------------------------------------------------- shown
def test_the_logger_gets_a_line_an_epoch(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="fastbp"):
        fit(make("reference"), *data())
    assert capsys.readouterr().out == ""
    assert [record.name for record in caplog.records] == ["fastbp"] * 2
    assert caplog.messages[1].startswith("epoch 2/2  loss ")


@pytest.mark.parametrize("epochs", [20, 21])
def test_many_epochs_are_a_bar_in_a_terminal(monkeypatch, capsys, epochs):
    rich = pytest.importorskip("rich.progress")
    shown = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(rich.Progress, "start", lambda bar: shown.append("start"))
    monkeypatch.setattr(rich.Progress, "stop", lambda bar: shown.append("stop"))
    monkeypatch.setattr(rich.Progress, "update", lambda bar, task, **what: shown.append(what["description"]))
    fit(make("reference"), *data(), epochs=epochs, verbose=True)
    if epochs == 20:
        assert shown == []
        assert len(capsys.readouterr().out.splitlines()) == 20
        return
    assert (shown[0], shown[-1], len(shown)) == ("start", "stop", 23)
    assert shown[1].startswith("epoch  1/21  loss ")
    shown.clear()
    with pytest.raises(ValueError, match="NaN"):
        fit(make("reference"), *data(), epochs=epochs, verbose=True, callbacks=[Failing()])
    assert shown[-1] == "stop"
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    fit(make("reference"), *data(), epochs=epochs, verbose=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("epoch 21/21  loss ")


class Failing:
    def on_epoch_end(self, model, record):
        raise ValueError("NaN")


def test_many_epochs_are_a_bar_in_a_notebook(monkeypatch, capsys):
    shown = []

    class Bar:
        def __init__(self, total):
            shown.append(total)

        def display(self):
            pass

        progress = property(lambda bar: 0, lambda bar, value: shown.append(value))

    class Line:
        update = staticmethod(shown.append)

    display = types.ModuleType("IPython.display")
    display.ProgressBar, display.display = Bar, lambda text, display_id: Line
    ipython, shell = types.ModuleType("IPython"), types.SimpleNamespace(kernel=object())
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    fit(make("reference"), *data(), epochs=21, verbose=True)
    assert capsys.readouterr().out == ""
    assert shown[:2] == [21, 1]
    assert re.match(r"epoch 21/21  loss ", shown[-1])
    for no_kernel in (None, types.SimpleNamespace()):  # imported by something else; in a terminal
        shell = no_kernel
        fit(make("reference"), *data(), epochs=21, verbose=True)
        assert capsys.readouterr().out.count("\n") == 21


def test_dir_shows_what_is_public():
    model = make("reference")
    assert {"fit", "evaluate", "predict", "save"} <= set(dir(model))
    internal = {"exclusive", "described", "freeze", "last_loss", "remember_loss", "training_workspace", "layer_configs"}
    assert not internal & set(dir(model))
    assert {name for name in dir(fastbp) if not name.startswith("__")} == set(fastbp.__all__)


# ------------------------------------------------------------------------------ learning rates
def test_a_learning_rate_is_found(device):
    x, y = data(200)
    model, optimizer = make(device), fastbp.SGD(lr=123.0, momentum=0.5)
    before = model.flat_parameters, model.generator.bit_generator.state
    found = fastbp.find_lr(model, x, y, loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, batch_size=16, highest=1e4)
    np.testing.assert_array_equal(model.flat_parameters, before[0])
    assert model.generator.bit_generator.state == before[1]
    assert (optimizer.lr, optimizer.step_count) == (123.0, 0)
    assert 1e-3 < found.suggestion < 10
    losses = [
        fit(make(device), x, y, fastbp.SGD(lr=rate, momentum=0.5), epochs=3)[-1]["loss"]
        for rate in (found.suggestion, found.lr[0])
    ]
    assert losses[0] < 0.8 * losses[1]
    assert len(found.lr) == len(found.loss) == len(found.average) <= 100
    again = fastbp.find_lr(model, x, y, loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, batch_size=16, highest=1e4)
    np.testing.assert_array_equal(again.loss, found.loss)


def test_a_learning_rate_test_ends_where_training_fails():
    x, y = data(200)
    loss, optimizer = fastbp.HalfSquaredErrorLoss(), fastbp.SGD()
    found = fastbp.find_lr(make("reference"), x, x[:, :3], loss=loss, optimizer=optimizer, highest=1e6, steps=60)
    assert len(found.lr) < 60
    assert found.suggestion < 1
    worse = fastbp.find_lr(make("reference"), x, y, loss=fastbp.CrossEntropyLoss(), lowest=1e5, highest=1e6)
    assert np.isnan(worse.suggestion) or worse.suggestion < 1e5


def test_learning_rates_are_drawn():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.rc_context({"backend": "agg"}):
        found = fastbp.find_lr(make("reference"), *data(), loss=fastbp.CrossEntropyLoss(), steps=20)
        (axis,) = found.plot().axes
        assert axis.get_xscale() == "log"
        points, average, suggestion = axis.get_lines()
        np.testing.assert_array_equal(points.get_ydata(), found.loss)
        np.testing.assert_array_equal(average.get_xdata(), found.lr)
        assert suggestion.get_xdata()[0] == found.suggestion
        pyplot.close("all")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 9}, "steps must be at least 10"),
        ({"lowest": 1.0, "highest": 1.0}, "lowest must be below highest"),
        ({"lowest": 0.0}, "lowest must be above 0"),
    ],
)
def test_learning_rates_that_cannot_be_tested(arguments, match):
    with pytest.raises(ValueError, match=match):
        fastbp.find_lr(make("reference"), *data(), loss=fastbp.CrossEntropyLoss(), **arguments)


# ------------------------------------------------------------------- the process around training
@pytest.mark.parametrize("optimizer", [fastbp.Adam, fastbp.AdamW, fastbp.Lion, fastbp.RMSProp])
def test_settings_of_numpy_change_nothing(optimizer):
    """``β₁ᵗ`` underflows at step 6 720."""
    x, y = data(16)
    values = []
    for how in ("warn", "raise"):
        model, made = make("cpu", "float32"), optimizer()
        made.step_count = 6700
        with np.errstate(all=how):
            fit(model, x, y, made, epochs=40, batch_size=16, validation_data=data(9))
            made.step_count = 6700
            for _ in range(40):
                model.train_step(x, y, fastbp.CrossEntropyLoss(), made)
        values.append(model.flat_parameters.tobytes())
    assert values[0] == values[1]


def test_weights_that_overflow_in_the_last_step_are_reported(device):
    x, y = data(8)
    model, optimizer = make(device, "float32"), fastbp.SGD(lr=1e39)
    before = model.flat_parameters
    match = "weights were not finite after the last step of epoch 1; weights are back at those epoch 1 began with"
    with pytest.raises(FloatingPointError, match=match):
        fit(model, x, y, optimizer, epochs=1)
    np.testing.assert_array_equal(model.flat_parameters, before)
    fit(model, x, y, fastbp.SGD(lr=1e39), epochs=1, on_nonfinite="continue")
    assert not np.isfinite(model.flat_parameters).all()


def test_weights_that_a_callback_spoils_are_not_kept():
    class Spoil:
        def on_epoch_end(self, model, record):
            model.layers[0].weight[0, 0] = np.nan

    model = make("cpu", "float32")
    before = model.flat_parameters
    with pytest.raises(FloatingPointError, match="weights are back at those epoch 1 began with"):
        fit(model, *data(8), epochs=2, callbacks=[Spoil()])
    np.testing.assert_array_equal(model.flat_parameters, before)


def test_the_data_are_free_when_training_ends():
    x, y = data()
    held = weakref.ref(x)
    gc.disable()  # free without it
    try:
        fit(make("cpu"), x, y)
        del x
        assert held() is None
    finally:
        gc.enable()


def test_a_handler_that_a_callback_set_stays():
    def handler(number, frame):
        pass

    class Set:
        def on_epoch_end(self, model, record):
            signal.signal(signal.SIGINT, handler)

    try:
        fit(make("reference"), *data(), callbacks=[Set()])
        assert signal.getsignal(signal.SIGINT) is handler
        fit(make("reference"), *data())
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of one that meets a finaliser
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
def test_interrupts_of_short_fits_leave_lock_and_handler(number):
    """At 300 moments spread over a fit, from before it to after it."""
    x, y = data(8)
    model = make("reference")
    took = [fit(model, x, y, epochs=1)[0]["seconds"] for _ in range(10)]
    seconds = max(min(took), 1e-4) * 3  # the first takes several times as long as those that follow

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt if number == signal.SIGALRM else raise_interrupt)
    came = 0
    try:
        for i in range(1, 301):
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds * i / 300)
                fit(model, x, y, epochs=1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                came += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert not model._lock.locked()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert came > 30


def raise_interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
