"""The comparison with peers: the protocol and what is compared, not the times."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from fastbp import Variable, autograd, backend
from fastbp.bench import (
    agreement,
    clocks,
    comparisons,
    elementwise,
    graphs,
    measure,
    peers,
    prediction,
    process,
    products,
    report,
    shapes,
    side_by_side,
    startup,
    trainer,
    training_steps,
)
from fastbp.cli import main

SHAPE = (6, 5, 3), "tanh", 8, {}
RELU = (6, 5, 3), "relu", 8, {}


def protocol(dtype="float64", rounds=2, **settings):
    return measure.Protocol(rounds=rounds, seconds=0.0, dtype=dtype, device="reference", **settings)


def measured(shape, trainers, dtype="float64", **settings):
    how = protocol(dtype, **settings)
    return how.measure(training_steps.step_case("x", shape, trainers, how, batches=3))


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """A machine whose limit never changes and whose core is never taken."""
    monkeypatch.setattr(measure, "fma_limit", lambda *_: 100.0)
    monkeypatch.setattr(measure, "STEADY", 0.0)
    monkeypatch.setattr(clocks, "SAMPLES", (5, 5))


# ------------------------------------------------------------------------------------------ options
def test_shapes_by_id_by_layers_and_by_group():
    assert list(shapes.parse_shapes("S4,513-257-129-11@77")) == ["S4", "513-257-129-11@77"]
    assert shapes.parse_shapes("513-257-129-11@77")["513-257-129-11@77"][:3] == ((513, 257, 129, 11), "relu", 77)
    assert shapes.parse_shapes("all") == shapes.SHAPES
    assert shapes.parse_shapes("all,odd") == shapes.SHAPES | shapes.ODD_SHAPES
    for wrong in ("S10", "4@3", "4-0@3", "4-5", "a-b@c", ""):
        with pytest.raises(ValueError, match="unknown shape"):
            shapes.parse_shapes(wrong)


def test_what_by_name_and_all():
    assert comparisons.parse_what("gemm,steps", 1) == ["gemm", "steps"]
    assert comparisons.parse_what("all", 2) == list(comparisons.COMPARISONS)
    assert set(comparisons.COMPARISONS) - set(comparisons.parse_what("all", 1)) == {"busy"}
    with pytest.raises(ValueError, match="unknown comparison 'convolutions'"):
        comparisons.parse_what("steps,convolutions", 1)
    with pytest.raises(ValueError, match="busy needs --threads 2"):
        comparisons.parse_what("steps,busy", 1)


def test_odd_shapes_are_near_the_even_ones_and_aim_at_as_much():
    for name, (widths, activation, batch, targets) in shapes.ODD_SHAPES.items():
        even = shapes.SHAPES["S" + name[1:]]
        assert (activation, targets) == (even[1], even[3])
        assert all(size % 8 for size in (*widths, batch))


def test_flops_count_no_input_gradient_of_the_first_layer():
    assert shapes.step_flops((2, 3, 5), 7) == 2 * 7 * (2 * 2 * 3 + 3 * 3 * 5)


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda module: module in ("jax", "onnxruntime"))
    assert peers.find_peers("torch,jax,onnxruntime") == (["jax"], ["torch", "onnxruntime"])  # it needs onnx too
    with pytest.raises(ValueError, match="unknown peer"):
        peers.find_peers("torch,tensorflow")


def test_a_comparison_takes_the_peers_it_knows(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda module: module != "torch")
    steps = comparisons.COMPARISONS["steps"]
    assert steps.chosen(None) == ["jax"]
    assert steps.chosen(["onnxruntime", "sklearn", "jax"]) == ["sklearn", "jax"]
    assert steps.chosen([]) == []


def test_every_table_names_peers_that_exist():
    known = set(peers.PEERS)
    for known_shapes in (shapes.SHAPES, shapes.PREDICTIONS, shapes.WIDTHS):
        assert {peer for *_, targets in known_shapes.values() for peer in targets} <= known
    for comparison in comparisons.COMPARISONS.values():
        assert set(comparison.peers + comparison.further) <= known
    assert {peer for names in comparisons.ROUNDED_STEPS.values() for peer in names} <= {
        *peers.TRAINERS, *peers.ROUNDED_TRAINERS
    }  # fmt: skip
    tables = (
        peers.TRAINERS,
        peers.ROUNDED_TRAINERS,
        peers.MANY_TRAINERS,
        peers.PREDICTORS,
        peers.PRODUCTS,
        peers.ELEMENTWISE,
        peers.GRAPHS,
    )
    for operations in tables:
        assert set(operations) <= known


# --------------------------------------------------------------------------------------- the process
@pytest.mark.parametrize("isa", process.INSTRUCTION_SETS)
def test_libraries_read_their_settings_in_a_process_of_their_own(isa, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    variables = process.environment(1, isa)
    assert not process.in_force(variables)
    ran = {}
    monkeypatch.setattr(process.subprocess, "call", lambda command, env: ran.update(command=command, env=env) or 7)
    assert main(["compare", "--quick", "--isa", isa]) == 7
    assert ran["command"][1:] == ["-m", "fastbp", "compare", "--quick", "--isa", isa]
    assert ran["env"]["OPENBLAS_NUM_THREADS"] == "1"
    assert ran["env"].get("OPENBLAS_CORETYPE") == {"host": None, "avx2": "Haswell"}[isa]
    assert ("AVX2" in ran["env"]["XLA_FLAGS"]) == (isa == "avx2")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", ran["env"])
        assert process.in_force(variables)


def test_avx2_caps_ours():
    pytest.importorskip("numba")
    if backend.load("cpu").config()["instruction set"] not in ("AVX-512", "AVX2"):
        pytest.skip("this machine has no AVX2")
    variables = {key: value for key, value in process.environment(1, "avx2").items() if value is not None}
    code = "from fastbp.kernels import cpu; print(cpu.config()['instruction set'])"
    output = subprocess.check_output([sys.executable, "-c", code], env=os.environ | variables, text=True)
    assert output.strip() == "AVX2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_keeps_to_one_core():
    before = os.sched_getaffinity(0)
    try:
        assert process.pin(1) == sorted(os.sched_getaffinity(0))
        assert len(os.sched_getaffinity(0)) == 1
        with pytest.raises(ValueError, match="--threads 2"):
            process.pin(2)
    finally:
        os.sched_setaffinity(0, before)


def test_a_busy_core_is_free_again_afterwards(monkeypatch):
    processes = []
    real = process.subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: processes.append(real(*a, **k)) or processes[-1])
    with process.busy_core():
        assert processes[0].poll() is None
    assert processes[0].poll() is not None


# -------------------------------------------------------------------------------------- the protocol
class Exact:
    """A peer that is this library itself, with another learning rate if asked."""

    name, how, version, factor = "exact", "itself", "0", 1.0

    def __init__(self, task, weights, rows, threads):
        task = peers.Task(
            task.widths, task.activation, self.factor * task.lr, task.x[rows.ravel()], task.y[rows.ravel()]
        )
        self.ours = trainer.Ours(task, rows.shape[1], weights[0][0].dtype.name, "reference")

    def train(self):
        self.ours.train_steps()

    def weights(self):
        return self.ours.weights()


def test_other_mathematics_is_refused():
    assert measured(SHAPE, [Exact])["peers"]["exact"]["ratio"] > 0
    wrong = type("Wrong", (Exact,), {"name": "wrong", "factor": 1.01})
    with pytest.raises(ValueError, match="not the same mathematics"):
        measured(SHAPE, [wrong])


class Script(clocks.Clock):
    """Times told beforehand."""

    def __init__(self, *seconds):
        self.seconds = iter(seconds)

    def prepare(self, seconds):
        pass

    def read(self):
        return {"seconds": next(self.seconds)}


def test_figures_are_medians_and_a_ratio_is_of_a_round():
    rival = measure.Rival(Script(9.0, 2.0, 30.0), "1", "scripted", target=2)
    case = measure.Case("x", "scripted", Script(3.0, 1.0, 5.0), {"peer": rival}, flops=2e11, most=4)
    result = protocol("float32", rounds=3).measure(case)
    assert (result["us"], result["peers"]["peer"]["us"], result["peers"]["peer"]["ratio"]) == (3e6, 9e6, 3.0)
    assert (result["floor_us"], result["fraction_of_limit"], result["most_us"]) == (2e6, 2 / 3, 4e6)
    assert result["peers"]["peer"]["target_ratio"] == 2


def test_further_clocks_are_compared_with_their_like():
    rival = measure.Rival(Script(4.0, 4.0), "1", "scripted", also={"events": Script(6.0, 1.0)})
    also = {"events": Script(2.0, 1.0), "train_step": Script(8.0, 8.0)}
    case = measure.Case("x", "scripted", Script(1.0, 1.0), {"peer": rival}, also=also)
    result = protocol().measure(case)
    assert result["also_us"] == {"events": 1.5e6, "train_step": 8e6}
    assert result["peers"]["peer"]["also_us"] == {"events": 3.5e6}
    assert result["peers"]["peer"]["also_ratio"] == {"events": 2.0}
    steps = comparisons.comparisons("cuda")["steps"]
    heading, row = report.heading(steps, ["peer"]), report.row(steps, ["peer"], result)
    assert row[: heading.rindex("peer") + len("peer")].endswith("2.00")


def test_a_clock_of_another_kind():
    """Its seconds are told, of several calls together."""
    calls, works = [], []

    def elapsed(work):
        before = len(calls)
        work()
        works.append(len(calls) - before)
        return 0.5 * works[-1]

    clock = clocks.Clock(lambda: calls.append(1), 2, elapsed)
    clock.prepare(2.0)
    assert clock.read() == {"seconds": 0.25}
    assert works == [1, 4]


def test_disturbed_rounds_are_dropped_counted_and_repeated(monkeypatch):
    monkeypatch.setattr(measure, "STEADY", 0.93)
    monkeypatch.setattr(measure, "_cpu_seconds", lambda: 1e9 * time.perf_counter())
    limits = iter([100.0] * 3 + [100.0, 100.0, 92.0] + [100.0, 94.0, 100.0])  # of one, before and after, a round
    monkeypatch.setattr(measure, "fma_limit", lambda *_: next(limits))
    result = measured(SHAPE, [Exact])
    assert (result["rounds_used"], result["rounds_dropped"]) == (2, 1)
    assert len(result["rounds"]) == 3


def test_a_round_without_its_core_is_dropped(monkeypatch):
    monkeypatch.setattr(measure, "STEADY", 0.93)
    monkeypatch.setattr(measure, "_cpu_seconds", lambda: 0.9 * time.perf_counter())
    case = measure.Case("x", "scripted", Script(*[1.0] * 6), {})
    result = protocol().measure(case)
    assert (result["rounds_used"], result["rounds_dropped"]) == (0, 6)


@pytest.mark.parametrize(("second", "kept"), [(79.0, 0), (81.0, 2)])
def test_rounds_of_two_threads_need_two_cores(monkeypatch, second, kept):
    monkeypatch.setattr(measure, "_cpu_seconds", lambda: 0.0)
    case = measure.Case("x", "scripted", Script(*[1.0] * 6), {})
    how = protocol(threads=2)
    monkeypatch.setattr(measure.Protocol, "limit", lambda self: 100.0 + second)
    assert how.measure(case)["rounds_used"] == kept
    case = measure.Case("x", "scripted", Script(*[1.0] * 6), {}, shares_cores=True)
    assert how.measure(case)["rounds_used"] == 2


def test_repetition_has_an_end(monkeypatch):
    monkeypatch.setattr(measure, "STEADY", 0.93)
    result = measured(SHAPE, [], best_limit=200.0)
    assert result["rounds_used"] == 0
    assert len(result["rounds"]) == measure.MOST_ROUNDS * 2
    assert any("no undisturbed round" in line for line in report.remarks(comparisons.COMPARISONS["steps"], [result]))


def test_single_calls_give_the_hundredth(monkeypatch):
    monkeypatch.setattr(clocks, "SAMPLES", (200, 200))
    ticks, pauses = [0.0], iter([1.0] * 190 + [50.0] * 10)

    def tick():
        ticks[0] += 1.0
        return ticks[0]

    clock = clocks.SampleClock(lambda: None)
    clock.prepare(0.0)
    clock.call = lambda: ticks.__setitem__(0, ticks[0] + next(pauses))
    monkeypatch.setattr(clocks.time, "perf_counter", tick)
    assert clock.read() == {"seconds": 2.0, "p99_seconds": 51.0}


def test_a_program_that_fails_is_an_error():
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        clocks.ProgramClock("1 / 0").read()
    assert clocks.ProgramClock("print('x'); print(0.25)", printed=True).read() == {"seconds": 0.25}
    assert clocks.ProgramClock("import sys; assert sys.argv[1] == 'a b'", "a b").read()["seconds"] > 0


def test_the_fastest_way_of_a_peer_is_taken():
    slow = lambda: sum(range(20_000))  # noqa: E731
    assert clocks.fastest({"slow": slow, "fast": lambda: None}, seconds=0.0)[0] == "fast"


def test_random_data_is_the_same_every_time():
    first, again = (measured(SHAPE, [Exact]) for _ in range(2))
    assert first["peers"]["exact"]["difference"] == again["peers"]["exact"]["difference"] == 0
    assert np.isfinite(first["us"])


# -------------------------------------------------------------------------------------------- peers
def without_double_jax(name, dtype):
    for module in peers.PEERS[name]:
        pytest.importorskip(module)
    if (name, dtype) == ("jax", "float64"):
        pytest.skip("float64 is set for a whole process of jax")


@pytest.mark.parametrize("name", peers.TRAINERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, RELU], ids=["tanh", "relu"])
def test_peers_take_the_same_first_step(name, dtype, shape):
    without_double_jax(name, dtype)
    result = measured(shape, [peers.TRAINERS[name]], dtype)
    timing = result["peers"][name]
    assert timing["difference"] <= {"float32": 1e-4, "float64": 1e-9}[dtype]
    assert timing["us"] > 0
    assert timing["ratio"] > 0
    assert result["rounds_used"] == 2
    json.dumps(result)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_takes_the_same_steps_as_long_as_it_likes(dtype):
    task, rows = trainer.random_task(SHAPE, 20, dtype)
    ours = trainer.Ours(task, 8, dtype, "reference")
    peer = peers.NumPy(task, ours.weights(), rows, 1)
    peer.train()
    for batch in rows:
        ours.step(task.x[batch], task.y[batch])
    for one, other in zip(peer.weights(), ours.weights(), strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol={"float32": 1e-4, "float64": 1e-12}[dtype])


@pytest.mark.parametrize("name", peers.PREDICTORS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers_predict_the_same(name, dtype):
    without_double_jax(name, dtype)
    how = protocol(dtype)
    result = how.measure(prediction.predict_case("x", ((6, 5, 4, 3), "relu", 2, {}), [name], how))
    assert result["p99_us"] >= result["us"] > 0
    assert result["peers"][name]["p99_ratio"] > 0


@pytest.mark.parametrize("name", peers.PRODUCTS)
@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_peers_multiply_the_same(name, kind):
    without_double_jax(name, "float64")
    how = protocol("float64")
    result = how.measure(products.product_case(kind, 20, [name], how))
    assert result["flops"] == 2 * 20**3
    assert result["also_us"]["fused"] > 0


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "softmax"])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_peers_activate_the_same(name, device):
    pytest.importorskip("torch")
    how = protocol("float64")
    how.device = device
    result = how.measure(elementwise.elementwise_case(name, ["torch"], how))
    assert result["peers"]["torch"]["difference"] <= agreement.TOLERANCE["float64"]


def test_peers_differentiate_the_same():
    pytest.importorskip("torch")
    how = protocol("float64")
    result = how.measure(graphs.graph_case(["torch"], how))
    assert result["peers"]["torch"]["difference"] <= 1e-12
    leaves = [Variable(number, requires_grad=True) for number in graphs.GRAPH_NUMBERS]
    text = graphs.scalar_graph(*leaves, autograd.tanh).to_dot()
    assert text.count("ellipse") == 50


def test_networks_side_by_side_take_the_same_first_step():
    pytest.importorskip("jax")
    how = protocol("float32")
    result = how.measure(side_by_side.many_case("x", RELU, ["jax"], how, count=3, batches=2))
    assert result["peers"]["jax"]["difference"] <= 1e-4


def test_a_wrong_operation_is_refused():
    def operation(value):
        return peers.Operation(lambda: np.array([value]), "0", "made up")

    assert agreement.checked_rival("x", operation(1.0), np.array([1.0]), protocol()).facts == {"difference": 0.0}
    for wrong in (1.001, np.nan):
        with pytest.raises(ValueError, match="not the same mathematics"):
            agreement.checked_rival("x", operation(wrong), np.array([1.0]), protocol())


def test_threads_the_library_chooses_beside_one(monkeypatch):
    asked = []
    monkeypatch.setattr(backend.load("reference"), "set_num_threads", asked.append)
    how = protocol(threads=2)
    monkeypatch.setattr(measure.Protocol, "limit", lambda self: 200.0)
    (case,) = comparisons.COMPARISONS["busy"].cases({"x": SHAPE}, [], how)
    assert case.during is process.busy_core
    case.rivals[training_steps.ONE_THREAD].clock.call()
    case.ours.call()
    assert asked == [1, None]


def test_programs_of_the_digits_reach_their_aim(tmp_path):
    pytest.importorskip("sklearn")
    startup.write_digits(tmp_path / "digits.npz")
    for name in ("fastbp", "sklearn"):
        assert clocks.ProgramClock(startup.DIGITS[name], tmp_path / "digits.npz").read()["seconds"] > 0


# -------------------------------------------------------------------------------------------- report
def test_large_shapes_have_fewer_batches_and_say_so():
    result = {"name": "S7", "batches": 16, "peers": {}, "left_out": {}, "rounds_used": 1, "load": None}
    lines = report.remarks(comparisons.COMPARISONS["steps"], [result])
    assert any("16 batches an epoch instead of 64" in line for line in lines)


def test_columns_are_aligned():
    steps = comparisons.COMPARISONS["steps"]
    result = measured(SHAPE, [Exact])
    heading, row = report.heading(steps, ["exact"]), report.row(steps, ["exact"], result)
    for word, digits in (("ratio", f"{result['peers']['exact']['ratio']:.2f}"), ("train_step", "")):
        assert row[: heading.index(word) + len(word)].endswith(digits)
    assert "6-5-3 tanh @ 8" in row


def run(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "in_force", lambda variables: True)
    monkeypatch.setattr(process, "pin", lambda threads: [])
    monkeypatch.setattr(backend, "_threads", None)
    path = tmp_path / "out.json"
    assert main(["compare", "--device", "reference", "--quick", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def test_command_prints_a_table_and_writes_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"sklearn": ("sklearn",), "exact": ()})
    monkeypatch.setattr(peers, "TRAINERS", {"exact": Exact})
    monkeypatch.setitem(
        comparisons.COMPARISONS, "steps", dataclasses.replace(comparisons.COMPARISONS["steps"], peers=("exact",))
    )
    written = run(["--shapes", "6-5-3@8", "--peers", "exact"], tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert "6-5-3 @ 8" in out
    assert "exact µs" in out
    assert "load" in out
    assert written["steps"][0]["rounds_used"] == 3
    assert written["isa"] == "host"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", written["date"])
    assert written["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", written["commit"])


def test_steps_of_less_precision(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"numpy": ("numpy",), "torch": ("no_such_module",), "jax": ("no_such_module",)})
    written = run(["--precision", "bf16x3", "--shapes", "6-5-3@8", "--peers", "numpy"], tmp_path, monkeypatch)
    assert "precision bf16x3" in capsys.readouterr().out
    assert written["precision"] == "bf16x3"
    (found,) = written["steps"]
    assert set(found["peers"]) == {"numpy", training_steps.FLOAT32}
    assert found["peers"]["numpy"]["difference"] < 5e-2
    assert main(["compare", "--what", "gemm", "--precision", "bf16"]) == 2
    assert "unknown comparison 'gemm' on 'cpu' in bf16: expected steps" in capsys.readouterr().err
    assert main(["compare", "--device", "cuda", "--precision", "bf16"]) == 2
    assert "--precision bf16 is for the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", peers.ROUNDED_TRAINERS)
def test_peers_of_less_precision_take_the_same_first_step(name):
    without_double_jax(name, "float32")
    result = measured(RELU, [peers.ROUNDED_TRAINERS[name]], "float32", precision="bf16")
    assert result["peers"][name]["difference"] <= agreement.ROUNDED_UPDATE_TOLERANCE
    assert result["peers"][name]["us"] > 0


def test_command_takes_several_comparisons(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(products, "PRODUCT_SIZES", (16,))
    written = run(["--what", "gemm,predict", "--shapes", "6-5-3@8", "--peers", "numpy"], tmp_path, monkeypatch)
    assert [result["name"] for result in written["gemm"]] == ["NN", "NT", "TN"]
    assert written["predict"][0]["peers"]["numpy"]["ratio"] > 0
    assert "fused" in capsys.readouterr().out


def test_command_refuses_shapes_where_there_are_none(capsys):
    assert main(["compare", "--what", "gemm", "--shapes", "S1"]) == 2
    assert "gemm has none" in capsys.readouterr().err
