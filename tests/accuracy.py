"""Errors of the activations in float32: ``python tests/accuracy.py``, over all 2^32 inputs or one of each stratum.

It stands with the tests, whose judge it has: the contract's formulas in float64 (`fastbp.kernels.reference`), whose own
errors are a billionth of what is measured. ``test_accuracy.py`` runs it on 2^20 inputs; ``--inputs 32 --json
docs/results/accuracy-float32.json`` makes the table of docs/accuracy.md, some hours of work, of all inputs; the file is
written after each activation, and ``--activations`` does some of them and leaves the rows of the others as they are.
"""

import argparse
import datetime
import json
import multiprocessing
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastbp.kernels import cpu, layout, reference

PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}  # as layers have them by default
FLOAT32 = np.finfo(np.float32)
ROWS, COLUMNS = 32, 1024  # inputs of one call: what is made of them stays in the processor's caches
# Why some have more than 4 ULP in places.
REASONS = {
    "gelu": "near 0 a ULP of Φ, just above ½, is two of the value; left tail: the rounding of z² in exp(−z²/2)",
    "gelu_tanh": "left tail: the rounding of the sigmoid's argument",
    "mish": "left tail: sums and a quotient of e^z",
}


class Errors(NamedTuple):
    """The largest errors seen, each with the input where it was."""

    value: tuple = (0.0, 0.0)  # in ULP of the exact value
    conditioned: tuple = (0.0, 0.0)  # in ULP and what a rounding of z does to the value
    derivative: tuple = (0.0, 0.0)  # absolute, in units of eps, of the derivative that training uses

    def with_more(self, other):
        """The larger of each."""
        return Errors(*map(max, self, other))


def inputs(bits, start=0, stop=None, seed=0):
    """Blocks of float32: of the 2^32 patterns, in order, one at random of each of 2^bits strata from start to stop."""
    width, count = 1 << (32 - bits), 1 << bits
    for first in range(start, count if stop is None else stop, ROWS * COLUMNS):
        last = min(first + ROWS * COLUMNS, count if stop is None else stop)
        patterns = np.arange(first, last, dtype=np.uint64) * width
        patterns += np.random.default_rng([seed, first]).integers(0, width, last - first, dtype=np.uint64)
        yield np.resize(patterns.astype(np.uint32).view(np.float32), (ROWS, COLUMNS))


def errors(name, z):
    """The errors of an activation's kernels over a matrix of inputs."""
    code, parameter = layout.ACTIVATIONS.index(name), PARAMETERS.get(name, 0.0)
    value, derivative = reference.ACTIVATIONS[name]
    out, slope = np.empty_like(z), np.empty_like(z)
    cpu.activation_forward(z, code, parameter, out)
    saved = z if name in layout.SAVES_PRE_ACTIVATION else out
    cpu.activation_backward(np.ones_like(z), saved, code, parameter, slope)

    with np.errstate(all="ignore"):
        wide = z.astype(np.float64)
        exact = value(wide, parameter)
        exact_slope = derivative(wide if name in layout.SAVES_PRE_ACTIVATION else exact, parameter)
        for got, expected in ((out, exact), (slope, exact_slope)):
            wrong = np.isnan(got) != np.isnan(expected)
            assert not wrong.any(), f"{name}({z[wrong][0]!r}): {got[wrong][0]!r}, expected {expected[wrong][0]!r}"
        exact, got = (np.clip(a, FLOAT32.min, FLOAT32.max) for a in (exact, out.astype(np.float64)))
        # Below the smallest normal number values may come out as 0: docs/accuracy.md.
        counted = np.abs(exact) >= (1 + np.abs(wide)) * FLOAT32.tiny
        spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        error = np.where(counted, np.abs(got - exact) / spacing, 0.0)
        room = 1 + np.nan_to_num(np.abs(wide * exact_slope) * FLOAT32.eps / spacing, posinf=0.0)
        of_slope = np.abs(slope - exact_slope) / FLOAT32.eps
    small = ~counted & ~np.isnan(exact)
    assert (np.abs(got[small]) <= 2 * (1 + np.abs(wide[small])) * FLOAT32.tiny).all(), name
    return Errors(*(largest(measure, z) for measure in (error, error / room, of_slope)))


def largest(measure, z):
    """(The largest, the input where it is) of those that are numbers."""
    measure = np.fmax(measure, 0.0)  # NaN has no size
    at = np.unravel_index(np.argmax(measure), z.shape)
    return float(measure[at]), float(z[at])


def measured(name, bits, start=0, stop=None):
    """The errors over one of each of 2^bits strata, or over those from start to stop."""
    found = Errors()
    for z in inputs(bits, start, stop):
        found = found.with_more(errors(name, z))
    return found


def of_part(task):
    """The errors of one task of the pool."""
    return measured(*task)


def table(name, found, bits, before):
    """The file of docs/results: the row of an activation, and of the file before those of the others."""

    def shown(error):
        size, at = error
        return f"{size:.2f} at {at:.4g}" if size else "0"

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    reason = REASONS.get(name, "") if found.value[0] > 4 else ""
    inputs = "all" if bits == 32 else f"2^{bits}"
    rows = {row["cells"][0]: row for row in before.get("rows", [])}
    rows[f"`{name}`"] = {
        "cells": [f"`{name}`", inputs, *map(shown, (found.value, found.conditioned, found.derivative)), reason]
    }
    columns = ["activation", "inputs", "value, ULP", "beside a rounding of z, ULP", "derivative, ε", "more than 4 ULP"]
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "commit": commit.stdout.strip(),
        "machine": {"name": platform.machine().replace("_", "-")},
        "how": "the largest error, and where, over all 2^32 inputs or one of each of so many strata of them",
        "columns": columns,
        "rows": [rows[cell] for cell in (f"`{known}`" for known in layout.ACTIVATIONS) if cell in rows],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20, metavar="BITS", help="2^BITS of them (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="default: one for each core")
    parser.add_argument(
        "--activations", nargs="+", choices=layout.ACTIVATIONS, default=layout.ACTIVATIONS, metavar="NAME"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table")
    options = parser.parse_args()
    count, part = 1 << options.inputs, max(1 << 18, 1 << (options.inputs - 10))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name in options.activations:
            tasks = [(name, options.inputs, start, min(start + part, count)) for start in range(0, count, part)]
            found = Errors()
            for errors_of_part in pool.imap_unordered(of_part, tasks):
                found = found.with_more(errors_of_part)
            print(name, *found, flush=True)
            if options.json:
                before = json.loads(options.json.read_text()) if options.json.exists() else {}
                made = table(name, found, options.inputs, before)
                options.json.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
