"""The bugs can be planted: each text is in its file, once. Whether a test notices them, plant_bugs.py sees."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUGS = runpy.run_path(str(Path(__file__).parent / "plant_bugs.py"))["BUGS"]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_text_is_once_in_its_file(bug):
    text = (ROOT / "fastbp" / bug.file).read_text()
    assert text.count(bug.old) == 1
    assert bug.new != bug.old
    ast.parse(text.replace(bug.old, bug.new))


@pytest.mark.parametrize("tests", sorted({bug.tests for bug in BUGS}))
def test_names_a_file_of_tests(tests):
    assert (ROOT / tests.split()[0]).is_file()


def test_titles_are_unique():
    titles = [bug.title for bug in BUGS]
    assert len(set(titles)) == len(titles)
