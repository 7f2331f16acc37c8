"""The comparison with peers: the protocol, not the times."""

import json
import os

import numpy as np
import pytest

from fastbp import compare, peers
from fastbp.cli import main

SHAPE = (6, 5, 3), "tanh", 8, {}
OPTIONS = {"device": "reference", "threads": 1, "rounds": 2, "seconds": 0.0, "batches": 3}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """A machine whose limit never changes and whose core is never taken."""
    monkeypatch.setattr(compare, "fma_limit", lambda dtype, device: 100.0)
    monkeypatch.setattr(compare, "STEADY", 0.0)


def test_shapes_by_id_by_layers_and_all():
    assert list(compare.parse_shapes("S4,513-257-129-11@77")) == ["S4", "513-257-129-11@77"]
    assert compare.parse_shapes("513-257-129-11@77")["513-257-129-11@77"][:3] == ((513, 257, 129, 11), "relu", 77)
    assert compare.parse_shapes("all") == compare.SHAPES
    for wrong in ("S10", "4@3", "4-0@3", "4-5", "a-b@c", ""):
        with pytest.raises(ValueError, match="unknown shape"):
            compare.parse_shapes(wrong)


def test_flops_count_no_input_gradient_of_the_first_layer():
    assert compare.step_flops((2, 3, 5), 7) == 2 * 7 * (2 * 2 * 3 + 3 * 3 * 5)


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: name == "jax" or None)
    assert compare.find_peers("torch,jax") == ([peers.Jax], ["torch"])
    with pytest.raises(ValueError, match="unknown peer"):
        compare.find_peers("torch,tensorflow")


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers_take_the_same_first_step(name, dtype):
    pytest.importorskip(name)
    if (name, dtype) == ("jax", "float64"):
        pytest.skip("float64 is set for a whole process of jax")
    result = compare.compare_shape("x", SHAPE, [peers.PEERS[name]], dtype=dtype, **OPTIONS)
    timing = result["peers"][name]
    assert timing["update_difference"] <= {"float32": 1e-4, "float64": 1e-9}[dtype]
    assert timing["us"] > 0
    assert timing["ratio"] > 0
    assert result["rounds_used"] == 2
    json.dumps(result)


class Exact:
    """A peer that is this library itself, with another learning rate if asked."""

    name, how, version, factor = "exact", "itself", "0", 1.0

    def __init__(self, task, weights, rows, threads):
        task = peers.Task(
            task.widths, task.activation, self.factor * task.lr, task.x[rows.ravel()], task.y[rows.ravel()]
        )
        self.ours = compare.Ours(task, rows.shape[1], weights[0][0].dtype.name, "reference")

    def train(self):
        for start in range(0, len(self.ours.task.x), self.ours.batch):
            part = slice(start, start + self.ours.batch)
            self.ours.step(self.ours.task.x[part], self.ours.task.y[part])

    def weights(self):
        return self.ours.weights()


def test_other_mathematics_is_refused():
    assert compare.compare_shape("x", SHAPE, [Exact], dtype="float64", **OPTIONS)["peers"]["exact"]["ratio"] > 0
    wrong = type("Wrong", (Exact,), {"name": "wrong", "factor": 1.01})
    with pytest.raises(ValueError, match="not the same mathematics"):
        compare.compare_shape("x", SHAPE, [wrong], dtype="float64", **OPTIONS)


def test_disturbed_rounds_are_dropped_counted_and_repeated(monkeypatch):
    monkeypatch.setattr(compare, "STEADY", 0.93)
    monkeypatch.setattr(compare.time, "process_time", lambda: 1e9 * compare.time.perf_counter())
    limits = iter([100.0, 100.0, 100.0, 92.0, 100.0, 94.0, 100.0, 100.0])
    monkeypatch.setattr(compare, "fma_limit", lambda dtype, device: next(limits))
    result = compare.compare_shape("x", SHAPE, [Exact], dtype="float64", **OPTIONS)
    assert (result["rounds_used"], result["rounds_dropped"]) == (2, 1)
    assert len(result["rounds"]) == 3


def test_repetition_has_an_end(monkeypatch):
    monkeypatch.setattr(compare, "STEADY", 0.93)
    result = compare.compare_shape("x", SHAPE, [], dtype="float64", best_limit=200.0, **OPTIONS)
    assert result["rounds_used"] == 0
    assert len(result["rounds"]) == compare.MOST_ROUNDS * OPTIONS["rounds"]
    assert any("no undisturbed round" in line for line in compare.remarks([result]))


def test_large_shapes_have_fewer_batches_and_say_so():
    result = {"name": "S7", "batches": 16, "peers": {}, "left_out": {}, "rounds_used": 1, "ours_warmup_seconds": 1.0}
    assert any("16 batches an epoch instead of 64" in line for line in compare.remarks([result]))


def test_command_prints_a_table_and_writes_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "pin", lambda threads: [])
    monkeypatch.setattr(compare, "PEERS", {"exact": Exact})
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(compare.backend, "_threads", None)
    path = tmp_path / "out.json"
    arguments = ["--shapes", "6-5-3@8", "--peers", "exact", "--device", "reference", "--quick", "--json", str(path)]
    assert main(["compare", *arguments]) == 0
    out = capsys.readouterr().out
    assert "6-5-3 @ 8" in out
    assert "exact µs" in out
    written = json.loads(path.read_text())
    assert written["shapes"][0]["rounds_used"] == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_keeps_to_one_core(monkeypatch):
    before = os.sched_getaffinity(0)
    for variable in (*compare.ONE_THREAD, "XLA_FLAGS"):
        monkeypatch.setenv(variable, "x")
    try:
        assert compare.pin(1) == sorted(os.sched_getaffinity(0))
        assert len(os.sched_getaffinity(0)) == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
        with pytest.raises(ValueError, match="--threads 2"):
            compare.pin(2)
    finally:
        os.sched_setaffinity(0, before)


def test_targets_are_of_peers_that_exist():
    assert {peer for *_, targets in compare.SHAPES.values() for peer in targets} <= set(peers.PEERS)


def test_random_data_is_the_same_every_time():
    first, again = (compare.compare_shape("x", SHAPE, [Exact], dtype="float64", **OPTIONS) for _ in range(2))
    assert first["peers"]["exact"]["update_difference"] == again["peers"]["exact"]["update_difference"] == 0
    assert np.isfinite(first["us"])
