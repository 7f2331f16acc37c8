"""The pages say what is there: what is made of files and of code is as it was made, and what they name exists."""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp
from fastbp.kernels import program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = sorted((DOCS / "results").glob("*.json"))
PAGES = [ROOT / "README.md", ROOT / "asv_benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
UNCHANGED = {DOCS / "notebook.md"}  # whose names are those of its days

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs a whole checkout")


def made(root, *arguments):
    command = [sys.executable, str(root / "docs" / "make"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def environment():
    """What a process of its own needs to find this package."""
    return os.environ | {"PYTHONPATH": str(Path(fastbp.__file__).parents[1])}


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
        assert part["date"] >= shown


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


def listing(text):
    """Operations by the numbers of their lines."""
    return {int(number): operation for number, operation in re.findall(r"^ *(\d+)  (\w+)", text, flags=re.MULTILINE)}


def test_the_example_is_as_the_page_explains_it():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- made: example-training -->(.*?)<!-- end -->", page, flags=re.DOTALL)[1]
    operations = listing(block)
    explained = {
        0: "linear_forward",
        1: "batch_moments",
        4: "loss_forward_backward",
        5: "linear_backward_input",
        6: "norm_backward_params",
        7: "batch_norm_backward_input",
        8: "activation_backward",
        9: "linear_backward_params",
        10: "norm_backward_params",
        11: "linear_backward_params",
        12: "update_statistics",
        13: "linear_backward_input",
    }
    assert explained.items() <= operations.items()
    assert re.search(r"^  0 .*  tanh$", block, flags=re.MULTILINE)


def test_phases_of_a_network_without_batch_norm():
    parts = fastbp.Linear(4, 8), fastbp.LayerNorm(8), fastbp.Residual(fastbp.Linear(8, 8), fastbp.ReLU())
    training = fastbp.Sequential(*parts, device="reference").network.program.training
    assert [program.PHASES[kind] for kind, _, _ in training.phases] == ["rows", "weights"]


@pytest.mark.parametrize(
    ("heading", "commit"), [("An activation", "4d4b27c"), ("An optimizer", "ec403b9"), ("A kind of layer", "fc17abc")]
)
def test_what_to_touch_is_what_a_commit_touched(heading, commit):
    shown = subprocess.run(
        ["git", "-C", ROOT, "show", "--name-only", "--format=", commit], capture_output=True, text=True
    )
    if shown.returncode:
        pytest.skip("needs the history")
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = page.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE) for name in row.split("`")[1::2]}
    assert len(named) >= 4
    then = {name: "fastbp/layers.py" for name in named if name.startswith("fastbp/layers/")}
    if commit != "fc17abc":
        then["kernels/layout.py"] = "kernels/table.py"
    assert {then.get(name, name) for name in named} <= set(shown.stdout.split())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the table is of AVX-512")
def test_the_schedule_is_what_the_model_gives():
    settings = {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": "+avx512f,+avx512vl,+avx2,+fma"}
    script = str(ROOT / "asv_benchmarks" / "scaling.py")
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment() | settings)
    assert process.returncode == 0, process.stderr
    result = json.loads((DOCS / "results" / "scaling.json").read_text())
    rows = ["| " + " | ".join(cells) + " |" for cells in (result["columns"], *(row["cells"] for row in result["rows"]))]
    assert rows == [line for line in process.stdout.splitlines() if line.startswith("|") and "---" not in line]


@pytest.mark.parametrize("page", sorted({*PAGES} - UNCHANGED), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_of_measured_figures_are_made(page):
    by_hand = re.sub(r"<!-- made:.*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    rows = [line for line in by_hand.splitlines() if line.startswith("|")]
    assert not [row for row in rows if re.search(r"\d\s?(?:ns|µs|ms|×|GFLOP/s|TFLOP/s|ULP)\b|\d ×", row)]


def test_an_import_that_points_up_is_an_error():
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(DOCS / "make")!r})
        import drawings
        drawings.layered({{"model": ["model"], "checks": ["checks"]}}, {{("model", "checks"), ("checks", "model")}})"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert process.returncode != 0
    assert "import each other in a circle" in process.stderr


def test_kernels_import_nothing_of_the_core():
    page = (DOCS / "architecture-house.svg").read_text(encoding="utf-8")
    fills = dict(re.findall(r'y="(\d+)" width="\d+" height="\d+" rx="5" fill="(#\w+)"', page))
    above = [int(y) for y, fill in fills.items() if fill == "#dbe9f6"]
    below = [int(y) for y, fill in fills.items() if fill == "#fde3c8"]
    assert max(above) < min(below)


@pytest.mark.parametrize(
    "module", ["fastbp", "fastbp.autograd", "fastbp.distributed", "fastbp.sklearn", "fastbp.tabular"]
)
def test_every_public_name_is_in_the_reference(module):
    found, current = set(), ""
    for page in sorted((DOCS / "api").glob("*.md")):
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if directive == "currentmodule":
                current = name
            else:
                found.add(f"{current}.{name}")
    public = importlib.import_module(module).__all__
    shown_in_their_module = {"Variable", "Function"} if module == "fastbp.autograd" else set()  # those of fastbp
    names = {f"{module}.{name}" for name in {*public} - shown_in_their_module - {"autograd", "distributed"}}
    assert names <= found, sorted(names - found)


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^[\w/-]+$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert {*listed} == pages - {"index"}
    assert len(listed) == len({*listed})
