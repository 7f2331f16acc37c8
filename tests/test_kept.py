"""A call of `fit` like the one before begins where its checks would end: it must find all that has changed between."""

import copy
import gc
import weakref

import numpy as np
import pytest

import fastbp
from fastbp import slices


class Watcher:
    def on_fit_end(self, model, history):
        pass


class Calls:
    """A model, and a call of `fit` that is always the same."""

    def __init__(self, loss=None, outputs=3, **arguments):
        self.model = fastbp.Sequential(
            fastbp.Linear(4, 8), fastbp.Tanh(), fastbp.Dropout(0.25), fastbp.Linear(8, outputs), seed=0
        )
        self.arguments = {
            "loss": loss or fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "epochs": 2, "batch_size": 8,
            "verbose": False,
        } | arguments  # fmt: skip

    def fit(self, x, y, **others):
        return self.model.fit(x, y, **(self.arguments | others))


def data(rows=50, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def targets(x, outputs=1):
    return np.repeat(x[:, :1] ** 2, outputs, axis=1)


def columns(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def is_kept(calls):
    return calls.model.kept_training is not None


@pytest.mark.parametrize("loss", [fastbp.CrossEntropyLoss, fastbp.MSELoss])
@pytest.mark.parametrize("shuffle", [True, False, "blocks"])
@pytest.mark.parametrize("on_nonfinite", ["raise", "continue"])
def test_kept_trainings_have_the_numbers_of_others(loss, shuffle, on_nonfinite):
    # The last batch is short; data and their number change, so that the second call is served and the third is not.
    first, second = (Calls(loss(), shuffle=shuffle, on_nonfinite=on_nonfinite) for _ in range(2))
    for rows, seed in ((50, 1), (50, 2), (31, 3), (31, 4)):
        x, y = data(rows, seed)
        y = y if loss is fastbp.CrossEntropyLoss else targets(x, 3)
        second.model.kept_training = None
        histories = first.fit(x, y), second.fit(x, y)
        assert is_kept(first)
        assert columns(histories[0]) == columns(histories[1])
        np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)
    assert first.arguments["optimizer"].step_count == second.arguments["optimizer"].step_count


def test_the_second_call_is_served_by_the_first(monkeypatch):
    calls, (x, y) = Calls(), data()
    calls.fit(x, y)
    monkeypatch.setattr(fastbp.training, "Settings", None)  # no other way is open
    assert len(calls.fit(*data(seed=1))) == 2
    with pytest.raises(TypeError, match="NoneType"):
        calls.fit(x[:40], y[:40])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found_in_every_call(value):
    calls, (x, y) = Calls(), data()
    calls.fit(x, y)
    before, count = calls.model.flat_parameters, calls.arguments["optimizer"].step_count
    x[49, 3] = value
    with pytest.raises(ValueError, match=r"X must hold finite numbers, got X\[49, 3\]"):
        calls.fit(x, y)
    np.testing.assert_array_equal(calls.model.flat_parameters, before)
    assert calls.arguments["optimizer"].step_count == count
    calls.fit(*data())


@pytest.mark.parametrize("label", [-1, 3, -(2**63)])
def test_labels_are_looked_at_in_every_call(label):
    calls, (x, y) = Calls(), data()
    calls.fit(x, y)
    y[7] = label
    with pytest.raises(ValueError, match=r"y must hold labels from 0 to 2.* got y\[7\]"):
        calls.fit(x, y)


@pytest.mark.parametrize(
    ("loss", "wrong", "message"),
    [
        (fastbp.MSELoss(), np.nan, r"y must hold finite numbers, got y\[3, 0\]"),
        (fastbp.BCEWithLogitsLoss(), 1.5, r"y must hold numbers from 0.* got y\[3, 0\]"),
    ],
)
def test_targets_are_looked_at_in_every_call(loss, wrong, message):
    calls, (x, _) = Calls(loss, outputs=1), data()
    y = (x[:, :1] > 0).astype(np.float32)
    calls.fit(x, y)
    assert is_kept(calls)
    y[3] = wrong
    with pytest.raises(ValueError, match=message):
        calls.fit(x, y)


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 3}, {"batch_size": 7}, {"shuffle": False}, {"drop_last": True}, {"accumulate": 2},
        {"loss": fastbp.CrossEntropyLoss()}, {"validation_split": 0.5}, {"callbacks": [Watcher()]},
        {"sample_weight": np.arange(50.0)}, {"on_nonfinite": "continue"},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_another_argument_counts(other):
    first, second = Calls(), Calls()
    for calls in (first, second):
        calls.fit(*data())
    second.model.kept_training = None
    assert columns(first.fit(*data(), **other)) == columns(second.fit(*data(), **other))
    np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"epochs": True}, TypeError),
        ({"shuffle": 1}, TypeError),
        ({"verbose": 0}, TypeError),
        ({"every": 0}, ValueError),
    ],
)
def test_what_only_equals_an_argument_is_checked(wrong, kind):
    calls = Calls(epochs=1, shuffle=True)
    calls.fit(*data())
    assert is_kept(calls)
    with pytest.raises(kind, match=next(iter(wrong))):
        calls.fit(*data(), **wrong)


def test_a_loss_whose_number_was_set_is_another():
    first, second = Calls(fastbp.HuberLoss(), 1), Calls(fastbp.HuberLoss(), 1)
    x, _ = data()
    for calls in (first, second):
        calls.fit(x, targets(x))
        calls.arguments["loss"].parameter = 0.125
    second.model.kept_training = None
    assert columns(first.fit(x, targets(x))) == columns(second.fit(x, targets(x)))


@pytest.mark.parametrize("own", [{"class_weight": np.array([1.0, 2.0, 5.0])}, {"ignore_index": 1}])
def test_a_loss_that_was_given_weights_is_another(own):
    first, second = Calls(), Calls()
    for calls in (first, second):
        calls.fit(*data())
        ((name, value),) = own.items()
        assert hasattr(calls.arguments["loss"], name)
        setattr(calls.arguments["loss"], name, value)
    second.model.kept_training = None
    assert columns(first.fit(*data())) == columns(second.fit(*data()))
    np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)


def test_what_the_model_became_between_calls_counts():
    def changed(calls):
        calls.fit(*data())
        weights = calls.model.state_dict()
        calls.model.load_state_dict({name: array / 2 for name, array in weights.items()})
        yield calls.fit(*data())
        calls.model.layers[0].trainable = False
        yield calls.fit(*data())
        calls.model.layers[0].trainable = True
        calls.model.to("cpu", precision="bf16")
        yield calls.fit(*data())
        calls.arguments["optimizer"].lr = 0.5
        yield calls.fit(*data())
        calls.arguments["optimizer"].reset()
        yield calls.fit(*data())

    class Forgetful(Calls):
        def fit(self, x, y):
            self.model.kept_training = None
            return super().fit(x, y)

    first, second = Calls(), Forgetful()
    for one, other in zip(changed(first), changed(second), strict=True):
        assert columns(one) == columns(other)
        np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)


def test_weights_that_somebody_spoilt_are_found():
    calls = Calls()
    calls.fit(*data())
    weight = calls.model.layers[0].weight  # a view that may be written at any time
    calls.fit(*data())
    weight[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="nothing has been changed"):
        calls.fit(*data())


def test_a_call_that_ends_in_an_error_is_not_kept():
    calls = Calls(fastbp.MSELoss())
    x, _ = data()
    calls.fit(x, targets(x, 3))
    before = calls.model.flat_parameters
    with np.errstate(all="raise"), pytest.raises(FloatingPointError, match="the loss was inf"):
        calls.fit(x, np.full((50, 3), 3e38, np.float32))
    np.testing.assert_array_equal(calls.model.flat_parameters, before)
    assert not is_kept(calls)
    calls.fit(x, targets(x, 3))


def test_a_list_of_callbacks_may_grow():
    ended = []

    class Watch:
        def on_fit_end(self, model, history):
            ended.append(history)

    watchers = []
    calls = Calls(callbacks=watchers)
    calls.fit(*data())
    watchers.append(Watch())
    calls.fit(*data())
    assert len(ended) == 1


def test_neither_data_nor_model_are_held():
    calls, (x, y) = Calls(), data()
    gc.disable()  # free without it
    try:
        for _ in range(2):
            calls.fit(x, y)
        assert is_kept(calls)
        held = [weakref.ref(what) for what in (x, y, calls.model)]
        del x, y
        assert held[0]() is held[1]() is None
        calls.model = None
        assert held[2]() is None
    finally:
        gc.enable()


def test_a_copy_has_no_training_of_the_model():
    calls = Calls()
    calls.fit(*data())
    other = copy.deepcopy(calls.model)
    assert is_kept(calls)
    assert other.kept_training is None


@pytest.mark.parametrize(
    "own",
    [{"shuffle": lambda epoch: np.arange(50)}, {"loss": lambda out, y: (0.0, 0 * out)}, {"callbacks": [Watcher()]}],
    ids=lambda own: next(iter(own)),
)
def test_what_a_user_made_is_not_held(own):
    calls = Calls(**own)
    calls.fit(*data())
    assert not is_kept(calls)


def test_a_slice_that_took_long_does_not_make_all_others_short(monkeypatch):
    """As the first one, in which kernels are compiled: the next ones grow."""
    clock, sizes = [0.0], []

    class Steps:
        batch_size, most, meanwhile = 1, 10_000, None

        def __call__(self, rows, step_loss, step_hits):
            sizes.append(len(rows))
            clock[0] += 1000.0 if len(sizes) == 1 else 1e-5 * len(rows)
            return len(rows)

    monkeypatch.setattr(slices.time, "perf_counter", lambda: clock[0])
    network = Calls().model.network
    cut = slices.Slices(network, slices.Interrupts())
    order = np.arange(8000)
    assert [failed for *_, failed in cut(Steps(), order, np.zeros(8000), np.zeros(8000, np.int64))].count(True) == 0
    assert sum(sizes) == 8000
    assert sizes[:4] == [sizes[0], 1, 16, 256]
