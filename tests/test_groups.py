"""Batches of many rows go through a narrow network in groups: no bit tells of it."""

import numpy as np
import pytest

import fastbp
from fastbp.kernels import program
from fastbp.kernels.cpu import blocking, elementwise, network

LAYERS = {
    "narrow": lambda: [fastbp.Linear(4, 32), fastbp.Tanh(), fastbp.Linear(32, 16), fastbp.Tanh(), fastbp.Linear(16, 3)],
    "odd": lambda: [fastbp.Linear(7, 19), fastbp.GELU(), fastbp.Dropout(0.3), fastbp.Linear(19, 3)],
    "blocks": lambda: [
        fastbp.Linear(5, 130), fastbp.ReLU(), fastbp.Linear(130, 70), fastbp.ReLU(), fastbp.Linear(70, 3),
    ],
    "without biases": lambda: [fastbp.Linear(4, 9, bias=False), fastbp.Tanh(), fastbp.Linear(9, 3, bias=False)],
    "one layer": lambda: [fastbp.Linear(4, 3)],
    "residual": lambda: [
        fastbp.Linear(4, 8), fastbp.Residual(fastbp.Linear(8, 8), fastbp.Tanh()), fastbp.Linear(8, 3),
    ],
}  # fmt: skip


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request):
    before = fastbp.get_num_threads()
    fastbp.set_num_threads(request.param)
    yield request.param
    fastbp.set_num_threads(before)


def made(layers, dtype="float32"):
    return fastbp.Sequential(*LAYERS[layers](), dtype=dtype, seed=0)


def data(model, rows, labels=True):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, model.in_features)).astype(model.dtype)
    return x, rng.integers(0, 3, rows) if labels else rng.normal(size=(rows, 3)).astype(model.dtype)


def fit(model, x, y, **others):
    loss = fastbp.CrossEntropyLoss() if y.ndim == 1 else fastbp.MSELoss()
    given = {"loss": loss, "optimizer": fastbp.Adam(lr=0.01), "epochs": 2, "batch_size": 77, "verbose": False} | others
    return model.fit(x, y, **given)


def grouped(model):
    """The rows of a group of the workspace that has trained, 0 where batches went as a whole."""
    ((_, _, workspace),) = model._training_workspaces.values()
    return workspace.fields[network.GROUP_ROWS]


def both(monkeypatch, model_of, x_and_y, size, **others):
    """A model trained in groups of ``size`` rows a thread, and one whose batches go as a whole."""
    models = []
    monkeypatch.setattr(blocking, "GROUPED_BYTES", 1 << 20)
    for rows in (size, 1 << 40):
        monkeypatch.setattr(blocking, "group_rows", lambda row_bytes, rows=rows: rows)
        models.append(model_of())
        models[-1].history = fit(models[-1], *x_and_y(models[-1]), **others)
    assert grouped(models[0]) == size
    assert grouped(models[1]) == 0
    return models


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", [name for name in LAYERS if name != "residual"])
@pytest.mark.parametrize("size", [4, 12, 40])
def test_groups_change_no_bit(monkeypatch, threads, layers, dtype, size):
    one, other = both(monkeypatch, lambda: made(layers, dtype), lambda model: data(model, 200), size)
    np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)
    assert one.history["loss"] == other.history["loss"]
    assert one.history["accuracy"] == other.history["accuracy"]


@pytest.mark.parametrize("rows", [76, 77, 78, 79, 80, 81, 153, 154, 155])
def test_a_last_batch_of_any_length(monkeypatch, rows):
    one, other = both(monkeypatch, lambda: made("narrow"), lambda model: data(model, rows), 8)
    np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)


def test_blocks_of_weights_that_are_others_in_the_last_group(monkeypatch):
    one, other = both(monkeypatch, lambda: made("blocks"), lambda model: data(model, 1500), 1100, batch_size=1500)
    np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)


def test_weights_of_rows_and_targets_that_are_matrices(monkeypatch, threads):
    weight = np.random.default_rng(0).random(200)
    weight[::3] = 0
    for labels in (True, False):
        one, other = both(
            monkeypatch, lambda: made("odd"), lambda model, labels=labels: data(model, 200, labels), 8,
            sample_weight=weight,
        )  # fmt: skip
        np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)
        assert one.history["loss"] == other.history["loss"]


@pytest.mark.parametrize("layers", list(LAYERS))
def test_groups_agree_with_the_reference(monkeypatch, layers):
    monkeypatch.setattr(blocking, "group_rows", lambda row_bytes: 8)
    models = [
        fastbp.Sequential(*LAYERS[layers](), dtype="float64", device=device, seed=0) for device in ("cpu", "reference")
    ]
    for model in models:
        fit(model, *data(model, 200))
    np.testing.assert_allclose(models[0].flat_parameters, models[1].flat_parameters, rtol=1e-9, atol=1e-11)


def test_a_step_whose_loss_is_not_finite_is_left_out_whole(monkeypatch, threads):
    # The number that spoils the loss is in the last group: gradients have grown in all groups before.
    def model_of():
        return made("narrow")

    def spoilt(model):
        x, y = data(model, 231, labels=False)
        y[153] = 3e38
        return x, y

    one, other = both(monkeypatch, model_of, spoilt, 8, on_nonfinite="continue", shuffle=False)
    np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)
    assert one.history["loss"] == other.history["loss"]


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_the_penalty_of_estimators(monkeypatch):
    sklearn = pytest.importorskip("fastbp.sklearn")
    x, y = data(made("narrow"), 300)
    curves = []
    for rows in (8, 1 << 40):
        monkeypatch.setattr(blocking, "group_rows", lambda row_bytes, rows=rows: rows)
        curves.append(sklearn.MLPClassifier((16,), alpha=0.1, max_iter=3, batch_size=77, random_state=0).fit(x, y))
    assert curves[0].loss_curve_ == curves[1].loss_curve_
    for ours, theirs in zip(curves[0].coefs_, curves[1].coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "layers",
    [
        [fastbp.Linear(4, 8), fastbp.BatchNorm1d(8), fastbp.Linear(8, 3)],
        [fastbp.Linear(4, 8), fastbp.LayerNorm(8), fastbp.Linear(8, 3)],
    ],
    ids=["BatchNorm1d", "LayerNorm"],
)
def test_where_rows_meet_elsewhere_a_batch_goes_as_a_whole(monkeypatch, layers):
    monkeypatch.setattr(blocking, "group_rows", lambda row_bytes: 8)
    model = fastbp.Sequential(*layers, seed=0)
    fit(model, *data(model, 200))
    assert grouped(model) == 0


def test_who_is_grouped():
    """Batches that leave more than a quarter of L2 holds, of networks whose gradients are small beside it."""
    narrow, wide = made("narrow"), fastbp.Sequential(fastbp.Linear(4, 512), fastbp.Linear(512, 128), seed=0)
    rows = blocking.group_rows(576)
    assert rows % blocking.ROWS == 0
    assert blocking.ROWS % np.lcm(elementwise.CHAINS, blocking.MR_TAIL) == 0
    for model, batch, expected in ((narrow, 64, 0), (narrow, 40 * rows, True), (wide, 40 * rows, 0)):
        workspace = model.training_workspace(fastbp.MSELoss(), "mean_squared_error", fastbp.Adam(), batch)
        assert bool(workspace.fields[network.GROUP_ROWS]) == bool(expected)
        assert bool(workspace.fields[network.BASES + program.PARAMETER_GRADIENTS]) == bool(expected)


@pytest.mark.parametrize("l2", [1 << 18, 1 << 20, 1 << 22])
def test_a_group_fills_a_quarter_of_the_cache(l2):
    rows = blocking.group_rows(100, l2)
    assert rows == blocking.ROWS or rows * 100 <= l2 // 4 < (rows + blocking.ROWS) * 100
