"""The roofline: operations, bytes and roofs, not the times."""

import itertools

import pytest

from fastbp import backend
from fastbp.bench import measure, process, roofline, shapes, training_steps
from fastbp.cli import main

SHAPE = (6, 5, 4, 3), "tanh", 8, {}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """A machine whose limit is known, and small arrays."""
    monkeypatch.setattr(measure, "fma_limit", lambda *_: 100.0)
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    monkeypatch.setattr(roofline, "FOOTPRINTS", {"near": 1 << 10, "memory": 1 << 16})
    monkeypatch.setattr(training_steps, "BATCHES", 2)
    monkeypatch.setattr(measure, "STEADY", 0.0)


def test_products_of_all_kernels_are_those_of_a_step():
    kernels = roofline.kernels_of(SHAPE, "float32", "reference")
    products = [kernel for kernel in kernels if kernel.name in ("forward", "grad input", "grad weight")]
    assert sum(kernel.flops for kernel in products) == shapes.step_flops(SHAPE[0], SHAPE[2])
    assert [kernel.layer for kernel in kernels if kernel.name == "grad input"] == ["4 → 3", "5 → 4"]
    adam = sum(kernel.bytes for kernel in kernels if kernel.name == "Adam")
    assert adam == 7 * 4 * sum(a * b + b for a, b in itertools.pairwise(SHAPE[0]))
    for kernel in kernels:
        kernel.call()


def test_bytes_count_every_operand_once():
    by_name = {
        (kernel.name, kernel.layer): kernel.bytes for kernel in roofline.kernels_of(SHAPE, "float64", "reference")
    }
    assert by_name["forward", "6 → 5"] == 8 * (8 * 6 + 6 * 5 + 5 + 8 * 5)
    assert by_name["grad weight", "6 → 5"] == 8 * (8 * 6 + 8 * 5 + 6 * 5 + 5)
    assert by_name["grad input", "5 → 4"] == 8 * (8 * 4 + 5 * 4 + 8 * 5 + 8 * 5)


def test_the_lower_roof_counts():
    assert roofline.roof_seconds(200e9, 10e9, 100, 50) == 2.0
    assert roofline.roof_seconds(200e9, 150e9, 100, 50) == 3.0
    assert roofline.footprint(1024) == "near"
    assert roofline.footprint(1025) == roofline.footprint(1 << 20) == "memory"


def test_measured_step_adds_up():
    found = roofline.measure_step(SHAPE, "float32", "reference")
    for row in found["kernels"]:
        assert row["gflops"] == pytest.approx(row["intensity"] * row["gbytes"])
        assert row["fraction_of_roof"] > 0
        assert row["bound_by"] in ("multiply-adds", "near", "memory")
    text = roofline.lines(found)
    assert sum(line.startswith((" forward", " grad weight", " Adam")) for line in text) == 9
    assert any("100 GFLOP/s" in line for line in text)


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".html", b"<!doctype html>")])
def test_command_writes_a_picture(suffix, start, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(process, "in_force", lambda variables: True)
    monkeypatch.setattr(process, "pin", lambda threads: [0])
    monkeypatch.setattr(backend, "_threads", None)
    path = tmp_path / f"roof{suffix}"
    assert main(["roofline", "--shape", "6-5-3@8", "--device", "reference", "-o", str(path)]) == 0
    assert path.read_bytes().startswith(start)
    if suffix == ".html":
        page = path.read_text(encoding="utf-8")
        assert "<svg" in page
        assert "grad weight" in page
    assert "of roof" in capsys.readouterr().out


def test_bad_arguments_are_refused_before_anything_is_measured(capsys):
    for arguments, words in (
        (["--shape", "all"], "expected one shape"),
        (["--shape", "S0"], "unknown shape"),
        (["-o", "roof.txt"], ".svg"),
    ):
        assert main(["roofline", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_device_that_has_no_limit_is_refused(monkeypatch):
    monkeypatch.setattr(measure, "fma_limit", lambda *_: None)
    with pytest.raises(ValueError, match="use --device cpu"):
        roofline.measure_step(SHAPE, "float32", "reference")


@pytest.mark.parametrize("unit", ["float32", "amx-emulated", "avx512-bf16-emulated"])
def test_products_of_less_precision_have_the_limit_of_their_unit(unit, monkeypatch, capsys):
    """A limit of a unit is that of its kernel, which reads zeros of the right size."""
    limit = backend.load("cpu").fma_limit
    monkeypatch.setenv("FASTBP_BF16_UNIT", unit)
    assert limit("float32", "bf16", 1e-3) > 0
    asked = []
    monkeypatch.setattr(measure, "fma_limit", lambda dtype, device, precision="ieee": asked.append(precision) or 100.0)
    monkeypatch.setattr(process, "in_force", lambda variables: True)
    monkeypatch.setattr(process, "pin", lambda threads: [])
    assert main(["roofline", "--shape", "6-5-3@8", "--precision", "bf16x3"]) == 0
    told = capsys.readouterr().out
    assert f"precision bf16x3 by the {unit} unit" in told
    assert "a train step of 6-5-3 @ 8, float32, products in bf16x3" in told
    assert set(asked) == {"ieee", "bf16x3"}  # that of a step beside others is float32's
