"""docs/reliability.md names tests that exist, and all that the page must name; and what a look at the sources holds."""

import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from .conftest import COLLECTED, ROOT, is_whole

PAGE = ROOT / "docs" / "reliability.md"
ROW = re.compile(r"^\| ([PH]\d+) \|.*\| (.*) \|$", re.MULTILINE)
NAME = re.compile(r"`(test_\w+\.py::[^`]+)`")


@pytest.fixture(scope="module")
def collected(pytestconfig):
    """The ids of all tests, long ones among them, from the name of their file on."""
    if is_whole(pytestconfig):
        return {after_folders(name) for name in pytestconfig.stash[COLLECTED]}
    command = [sys.executable, "-m", "pytest", "--long", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {after_folders(line) for line in process.stdout.splitlines() if "::" in line}


def after_folders(line):
    """An id without the folders of its file; parameters may have slashes of their own."""
    path, _, name = line.partition("::")
    return f"{path.rpartition('/')[2]}::{name}"


@pytest.mark.skipif(not PAGE.exists(), reason="needs a whole checkout")
def test_the_page_names_tests_that_exist(collected):
    without_parameters = {name.partition("[")[0] for name in collected}
    names = NAME.findall(PAGE.read_text(encoding="utf-8"))
    assert len(names) > 50
    for name in names:
        if "[" not in name:
            assert name in without_parameters, name
        else:  # brackets stand for themselves
            pattern = name.replace("[", "[[]", 1)
            assert any(fnmatchcase(one, pattern) for one in collected), name


@pytest.mark.skipif(not PAGE.exists(), reason="needs a whole checkout")
def test_every_promise_and_hazard_has_a_test_or_a_word():
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(ROW.findall(text))
    assert all(NAME.findall(tests) for tests in rows.values())
    spoken = set(re.findall(r"\b[PH]\d+\b", ROW.sub("", text)))
    spoken |= {f"H{number}" for number in range(37, 48)}  # "H37 to H47"
    wanted = {f"P{number}" for number in range(1, 18)} | {f"H{number}" for number in range(1, 57)}
    assert rows.keys() | spoken == wanted
    assert not rows.keys() & spoken


def test_kernels_have_no_parallel_loops_and_no_fast_math():
    """What Numba makes of loops, NaN and divisions is written out in the kernels instead."""
    from fastbp.kernels import jit

    assert jit.FLAGS["error_model"] == "numpy"
    assert not {"fastmath", "parallel"} & jit.FLAGS.keys()
    for path in Path(jit.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"fastmath=|parallel=True|\bprange\(", line), (path, line)
