"""The pages say what is there: what is made of files and of code is as it was made, and what they name exists."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = sorted((DOCS / "results").glob("*.json"))
PAGES = [ROOT / "README.md", ROOT / "asv_benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
UNCHANGED = {DOCS / "notebook.md"}  # whose names are those of its days

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs a whole checkout")


def made(root, *arguments):
    command = [sys.executable, str(root / "docs" / "make"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    )


@pytest.fixture
def copied(tmp_path):
    """The pages in a folder of their own."""
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_pages_are_as_made():
    process = made(ROOT, "--check")
    assert process.returncode == 0, f"run: python docs/make\n{process.stdout}{process.stderr}"


def test_a_figure_that_is_changed_by_hand_is_noticed_and_put_right(copied):
    readme = copied / "README.md"
    before = readme.read_text()
    first = json.loads((DOCS / "results" / "steps.json").read_text())["steps"][0]
    row = f"| {first['title']} | {first['us']} |"
    assert row in before
    readme.write_text(before.replace(row, f"| {first['title']} | {first['us'] / 2} |"))
    process = made(copied, "--check")
    assert process.returncode == 1
    assert f"+{row}" in process.stdout
    assert made(copied).returncode == 0
    assert readme.read_text() == before


def test_one_file_feeds_readme_and_pages(copied):
    path = copied / "docs" / "results" / "steps.json"
    report = json.loads(path.read_text())
    report["steps"][0]["us"] = 1234.5
    path.write_text(json.dumps(report))
    assert made(copied).returncode == 0
    for page in ("README.md", "docs/performance.md"):
        assert "| 1 234 |" in (copied / page).read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_is_from(path):
    result = json.loads(path.read_text())
    for part in [result, *(row for row in result.get("rows", ()) if "commit" in row)]:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", part["date"])
        assert re.fullmatch(r"[0-9a-f]{40}", part["commit"])
    assert result["machine"]["name"]
    assert result["how"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_commits_of_results_are_in_the_history(path):
    def git(*arguments):
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)

    shallow = git("rev-parse", "--is-shallow-repository")
    if shallow.returncode or shallow.stdout.strip() != "false":
        pytest.skip("needs the history")
    result = json.loads(path.read_text())
    for part in [result, *(row for row in result.get("rows", ()) if "commit" in row)]:
        assert git("merge-base", "--is-ancestor", part["commit"], "HEAD").returncode == 0
        shown = git("show", "-s", "--format=%as", part["commit"]).stdout.strip()
        assert part["date"] == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", sorted({*PAGES} - UNCHANGED), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:fastbp|kernels|tests|asv_benchmarks|docs)/[\w/]+\.(?:py|md|json)\b", text)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", sorted({*PAGES} - UNCHANGED), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_network_is_no_table(page):
    assert not re.findall(r"network table|table of the network|a column of the table", page.read_text(encoding="utf-8"))
