"""The picture of a history: what is in it, which epoch is marked, what is refused."""

import subprocess
import sys

import numpy as np
import pytest

import fastbp

pytest.importorskip("matplotlib")


@pytest.fixture
def draw():
    """`plot_history` without a window; figures are closed afterwards."""
    import matplotlib.pyplot

    with matplotlib.pyplot.rc_context({"backend": "agg"}):
        yield fastbp.plot_history
    matplotlib.pyplot.close("all")


def history(loss, **columns):
    records = [{"epoch": i + 1, "loss": value, "lr": 0.1} for i, value in enumerate(loss)]
    for key, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[key] = value
    return fastbp.History(records)


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_training_and_validation_in_two_panels(draw):
    columns = {"val_loss": [0.8, 0.5, 0.6], "accuracy": [0.2, 0.5, 0.6], "val_accuracy": [0.1, 0.3, 0.2]}
    loss, accuracy = draw(history([0.9, 0.6, 0.4], **columns)).axes
    assert [loss.get_title(), accuracy.get_title()] == ["loss", "accuracy"]
    for axis, training, validation in ((loss, "loss", "val_loss"), (accuracy, "accuracy", "val_accuracy")):
        drawn = lines(axis)
        assert set(drawn) == {"training", "validation", "best epoch, 2"}
        expected = columns | {"loss": [0.9, 0.6, 0.4]}
        np.testing.assert_array_equal(drawn["training"].get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(drawn["training"].get_ydata(), expected[training])
        np.testing.assert_array_equal(drawn["validation"].get_ydata(), expected[validation])


def test_what_there_is_not_is_not_drawn(draw):
    """Regression without validation: the loss alone, of which the lowest is marked, the first of equal ones."""
    columns = dict.fromkeys(("val_loss", "accuracy", "val_accuracy"), [None] * 4)
    (axis,) = draw(history([0.9, 0.2, 0.2, np.nan], **columns)).axes
    assert set(lines(axis)) == {"training", "best epoch, 2"}


def test_no_finite_loss_no_best_epoch(draw):
    (axis,) = draw(history([np.nan, np.inf])).axes
    assert set(lines(axis)) == {"training"}


def test_a_notebook_shows_the_picture_once(draw, monkeypatch):
    """It shows what a cell results in, and what pyplot still has."""
    import matplotlib.pyplot

    monkeypatch.setattr(matplotlib.pyplot, "get_backend", lambda: "inline")
    assert draw(history([0.5])).axes
    assert matplotlib.pyplot.get_fignums() == []


def test_history_of_fit(draw, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    model = fastbp.Sequential(fastbp.Linear(3, 2), device="reference", seed=0)
    model.fit(
        X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(), epochs=3, validation_data=(X, y), verbose=False
    )
    figure = draw(model.history)
    assert len(figure.axes) == 2
    figure.savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([], ValueError, "at least one epoch"),
        (None, TypeError, "what fit\\(\\) returns"),
        ([1.0, 0.5], TypeError, "a list of dicts"),
        ([{"epoch": 1}], ValueError, "must have the loss"),
        ([{"loss": 1.0}], TypeError, "epoch must be an integer"),
    ],
)
def test_refused(value, error, message):
    with pytest.raises(error, match=message):
        fastbp.plot_history(value)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"fastbp\[plot\]"):
        fastbp.plot_history(history([1.0]))


def test_import_of_fastbp_imports_no_face():
    code = "import sys, fastbp; assert not {'matplotlib', 'sklearn', 'torch', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
