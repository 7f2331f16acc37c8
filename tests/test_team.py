"""How many threads the team has, and who chooses; that their number changes no bit."""

import itertools
import math

import numpy as np
import pytest

import fastbp
from fastbp import backend
from fastbp.kernels import processors
from fastbp.kernels.cpu import team

VERSION_1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


# ------------------------------------------------------------------------------- how many there may be
@pytest.mark.parametrize(
    ("membership", "quotas", "cores"),
    [
        ("0::/\n", {"": "max 100000"}, math.inf),
        ("0::/\n", {"": "250000 100000"}, 2),
        ("0::/\n", {"": "50000 100000"}, 1),
        ("4:cpu:/x\n0::/user.slice/job\n", {"user.slice/job": "300000 100000"}, 3),
        ("0::/a/b\n", {"a": "200000 100000", "a/b": "400000 100000"}, 2),
        ("0::/a/b\n", {"a": "400000 100000", "a/b": "max 100000"}, 4),
        ("0::/a\n", {"a": "nonsense"}, math.inf),
        ("4:cpu:/x\n", {"": "100000 100000"}, 1),
        ("4:cpu,cpuacct:/x/y\n3:memory:/z\n", {"cpu/x/y": (-1, 100000), "cpu/x": (250000, 100000)}, 2),
        ("4:cpu,cpuacct:/docker/x\n", {"cpu": (150000, 50000)}, 3),  # a container sees its own group as the root
        ("4:cpuset,cpuacct:/x\n", {"cpu/x": (100000, 100000)}, math.inf),
        ("4:cpu:/x\n", {"cpu/x": (-1, 100000)}, math.inf),
        ("4:cpu:/x\n0::/y\n", {"cpu/x": (400000, 100000), "y": "200000 100000"}, 2),
        (None, {}, math.inf),
    ],
)
def test_quota_of_control_groups(monkeypatch, tmp_path, membership, quotas, cores):
    """Of a process's own groups and of all around them, a text in version 2 and numbers in version 1: the smallest."""
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    for group, quota in quotas.items():
        folder = tmp_path / "groups" / group
        folder.mkdir(parents=True, exist_ok=True)
        files = {"cpu.max": quota} if isinstance(quota, str) else dict(zip(VERSION_1, quota, strict=True))
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")
    monkeypatch.setattr(processors, "MEMBERSHIP", str(tmp_path / "membership"))
    monkeypatch.setattr(processors, "CONTROL_GROUPS", str(tmp_path / "groups"))
    assert processors._quota.__wrapped__() == cores


def test_threads_are_no_more_than_cores_of_affinity_and_quota(monkeypatch):
    """Unless `fastbp.set_num_threads` says how many."""
    monkeypatch.setattr(processors, "_quota", lambda: 5)
    monkeypatch.setattr(team, "wanted", None)
    for affinity, cores in ((3, 3), (5, 5), (64, 5)):
        monkeypatch.setattr(
            processors.os, "sched_getaffinity", lambda process, n=affinity: set(range(n)), raising=False
        )
        assert processors.available_cores() == cores
        assert backend.load("cpu").get_num_threads() == cores


def test_pace_tries_both_and_keeps_the_faster():
    pace, costs, chosen = team.Pace(), {4: 3.0, 1: 2.0}, []
    for _ in range(10):
        threads = pace.choose(4)
        chosen.append(threads)
        pace.record(threads, costs[threads])
    assert chosen == [4] + [1] * 9


def test_pace_tries_again_when_cores_have_come_back():
    pace, chosen = team.Pace(), []
    for call in range(2 * pace.CALLS):
        threads = pace.choose(2)
        chosen.append(threads)
        pace.record(threads, {2: 1.0 if call > pace.CALLS // 2 else 3.0, 1: 2.0}[threads])
    assert chosen[2 : pace.CALLS - 1] == [1] * (pace.CALLS - 3)
    assert chosen[pace.CALLS + 1 :] == [2] * (pace.CALLS - 1)


def test_every_member_is_called_with_its_number():
    called = []
    assert team.run(called.append, 3)
    assert sorted(called) == [0, 1, 2]


def test_a_busy_team_calls_nothing():
    inner = []
    assert team.run(lambda thread: inner.append(team.run(inner.append, 2)) if thread == 0 else None, 2)
    assert inner == [False]


# ------------------------------------------------------------------------------------------ the same bits
OPTIMIZERS = {
    "SGD": lambda: fastbp.SGD(lr=0.1),
    "momentum": lambda: fastbp.SGD(lr=0.05, momentum=0.9),
    "Momentum": lambda: fastbp.Momentum(lr=0.05),
    "Nesterov": lambda: fastbp.SGD(lr=0.05, momentum=0.9, nesterov=True),
    "RMSProp": lambda: fastbp.RMSProp(lr=1e-3),
    "Adam": lambda: fastbp.Adam(lr=1e-3),
    "AdamW": lambda: fastbp.AdamW(lr=1e-3),
    "Lion": lambda: fastbp.Lion(lr=1e-3),
}
# Widths and batch: S2 of docs/performance.md, odd ones, and more rows than go through the network together.
SHAPES = {"S2": ((64, 128, 10), 64), "odd": ((131, 67, 33, 11), 77), "long": ((5, 19, 7, 3), 601)}


@pytest.fixture
def set_threads():
    """`fastbp.set_num_threads`, undone afterwards."""
    before = backend._threads
    yield fastbp.set_num_threads
    backend._threads = before
    backend.load("cpu").set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "optimizer", "dtype"),
    [(shape, "Adam", dtype) for shape in SHAPES for dtype in ("float32", "float64")]
    + [("odd", optimizer, "float32") for optimizer in OPTIMIZERS if optimizer != "Adam"],
)
def test_number_of_threads_changes_no_bit(set_threads, shape, optimizer, dtype):
    """Of weights, losses and predictions: more threads than cores, than rows of a short batch, than blocks."""
    widths, batch = SHAPES[shape]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2 * batch + 9, widths[0])).astype(dtype), rng.integers(0, widths[-1], 2 * batch + 9)
    results = []
    for threads in (1, 2, 3, 7, 64):
        set_threads(threads)
        layers = [fastbp.Dropout(0.1)]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [fastbp.Linear(fan_in, fan_out), fastbp.Tanh(), fastbp.Dropout(0.2)]
        model = fastbp.Sequential(*layers[:-2], dtype=dtype, seed=1)
        history = model.fit(
            x, y, loss=fastbp.CrossEntropyLoss(), optimizer=OPTIMIZERS[optimizer](), batch_size=batch, epochs=2,
            sample_weight=1.0 + y % 3, validation_data=(x, y), verbose=False,
        )  # fmt: skip
        losses = [history[key] for key in ("loss", "val_loss", "accuracy")]
        predictions = model.predict(x), model.predict(x[:1])
        results.append((losses, model.flat_parameters.tobytes(), [array.tobytes() for array in predictions]))
    assert all(np.isfinite(results[0][0]).ravel())
    assert all(result == results[0] for result in results)
