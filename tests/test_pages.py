"""Every block of code in README.md and docs/ is run, a page in one namespace and one folder, and prints what it shows.

A block says what it is: ``python``; ``console``, commands after ``$`` and what they print; ``bash``, commands alone;
``c``, kept as the file that its first line names; ``text``, which is no code, and directly after Python what that
printed; ``{…}``, for Sphinx. Numbers, and how far apart words are, may be others than those shown; a line ``…`` stands
for any lines. A block that cannot be run here has one of `REASONS` as its first line, and is counted.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from fastbp import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "asv_benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
REASONS = {"# installs packages", "# takes minutes", "# needs a GPU", "# with a table of your own"}
NEEDS = {"# needs PyTorch": "torch", "# needs statsmodels": "statsmodels"}  # run where the package is

# Blocks that are not run.
NOT_RUN = {
    "README.md": ["# installs packages", "# takes minutes", "# takes minutes"],
    "asv_benchmarks/README.md": ["# takes minutes"] * 4,
    "docs/benchmarks.md": ["# takes minutes"] * 2,
    "docs/cuda.md": ["# needs a GPU"] * 2,
    "docs/distributed.md": ["# installs packages"] + ["# with a table of your own"] * 2,
    "docs/quickstart.md": ["# installs packages"],
    "docs/results/README.md": ["# takes minutes"],
    "docs/scaling.md": ["# takes minutes"],
    "docs/tables.md": ["# with a table of your own"],
}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs a whole checkout")


class Block(NamedTuple):
    kind: str
    text: str
    shown: str | None  # what Python is to print


def blocks(page):
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found, printed = list(FENCE.finditer(text)), set()
    for i, fence in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        shows = fence["kind"] == "python" and after and after["kind"] == "text"
        shows = shows and not text[fence.end() : after.start()].strip()
        if shows:
            printed.add(i + 1)
        if i not in printed:
            yield Block(fence["kind"], fence["text"], after["text"] if shows else None)


def why_not(block):
    """The first line of a block that is not run, which says why; None of others."""
    first = block.text.partition("\n")[0]
    return first if first in REASONS else None


# ------------------------------------------------------------------------------------- comparing
NUMBER = re.compile(r"\d{1,3}(?: \d{3})+(?:\.\d+)?\b|\d+(?:[.,]\d+)*\.?(?:e[-+]?\d+)?")
MEASURED = re.compile(rf"(?:{NUMBER.pattern}) (?:ms|s|k|M)\b")  # times and rates, which are of a machine
FACTOR, TINY = 2, 1e-3  # how far a number may be off, which another processor rounds otherwise; roundings by 10 more


def shape(line):
    """A line without its numbers, the units that go by them, and the spaces between."""
    return " ".join(NUMBER.sub("0", MEASURED.sub("0 _", line)).replace("*", "").split())


def numbers(line):
    """The numbers of a line but for times and rates."""
    return [float(re.sub("[ ,]", "", text)) for text in NUMBER.findall(MEASURED.sub("", line)) if text.count(".") < 2]


def alike(shown, printed):
    """Whether lines are the same but for the last digits of their numbers."""
    if [shape(line) for line in shown] != [shape(line) for line in printed]:
        return False
    for line, other in zip(shown, printed, strict=True):
        for one, two in zip(numbers(line), numbers(other), strict=True):
            least, most = sorted((one, two))
            if most > (FACTOR if most > TINY else 10 * FACTOR) * least and most > 1e-12:
                return False
    return True


def parts(shown):
    """Lists of lines between the lines ``…``."""
    found = [[]]
    for line in shown.splitlines():
        if line.strip() == "…":
            found.append([])
        elif line.strip():
            found[-1].append(line)
    return found


def require_same(shown, printed, what):
    """Compare what a page shows with what was printed."""
    lines, place = [line for line in printed.splitlines() if line.strip()], 0
    first, *others = parts(shown)
    assert alike(first, lines[: len(first)]), f"{what}\nprinted\n{printed}"
    assert others or len(lines) == len(first), f"{what}\nprinted\n{printed}"
    place = len(first)
    for i, part in enumerate(others):
        ends = i == len(others) - 1 and part
        places = [len(lines) - len(part)] if ends else range(place, len(lines) - len(part) + 1)
        place = next((at + len(part) for at in places if at >= place and alike(part, lines[at : at + len(part)])), None)
        assert place is not None, f"{what}\nshows\n{chr(10).join(part)}\nprinted\n{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss 0.25", "loss  0.31", True),
        ("loss 0.25", "loss  1 234.5", False),
        ("8,320 and 2 560", "8,320 and 2 560", True),
        ("error 3e-06", "error 2e-05", True),
        ("error 3e-06", "error 2e-04", False),
        ("loss 0.25", "los 0.25", False),
        ("a\n…\nb", "a\n1\n2\nb", True),
        ("a\n…\nb", "a\n1\n2\nb\nc", False),
        ("a\n…", "a\nb\nc", True),
        ("a", "a\nb", False),
        ("…\nb\n…\nc", "a\nb\nc", True),
        ("…\nc\n…\nb", "a\nb\nc", False),
        ("12.3 M  3.1 ms", "980 k  1.2 s", True),
    ],
)
def test_comparing(shown, printed, same):
    with contextlib.nullcontext() if same else pytest.raises(AssertionError):
        require_same(shown, printed, "")


# --------------------------------------------------------------------------------------- running
def sessions(text):
    """(command, what it is to print) of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = command[:-1] + more.removeprefix(">").strip()
        yield command, shown


def run_command(command):
    """What a command prints; those of fastbp are run in this process."""
    words = shlex.split(command, comments=True)
    if words[0] != "fastbp":
        process = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"
        return process.stdout
    out, problems = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(problems):
        try:
            status = cli.main(words[1:])
        except SystemExit as end:
            status = end.code
    assert not status, f"{command}\n{out.getvalue()}{problems.getvalue()}"
    return out.getvalue()


def run(block, names):
    """Run a block; whether it could be."""
    needed = NEEDS.get(block.text.partition("\n")[0])
    if needed and importlib.util.find_spec(needed) is None:
        return
    if block.kind == "python":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, "<page>", "exec"), names)
        if block.shown is not None:
            require_same(block.shown, out.getvalue(), block.text)
    elif block.kind == "bash":
        for command in block.text.splitlines():
            run_command(command)
    elif block.kind == "console":
        for command, shown in sessions(block.text):
            printed = run_command(command)
            if shown.strip():
                require_same(shown, printed, command)
    elif block.kind == "c":
        name = re.match(r"/\* (\w+\.[ch]) \*/", block.text)[1]
        Path(name).write_text(block.text, encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are_and_those_not_run_are_counted(page):
    reasons = []
    for block in blocks(page):
        known = block.kind in ("python", "console", "bash", "c", "text") or re.fullmatch(r"\{[\w-]+\}.*", block.kind)
        assert known, f"a block is of kind {block.kind!r}:\n{block.text}"
        if block.kind == "console" and not why_not(block):
            assert block.text.startswith(("$ ", *NEEDS)), block.text
        if why := why_not(block):
            reasons.append(why)
    assert reasons == NOT_RUN.get(name_of(page), [])
    indented = re.findall(r"\n\n((?: {4}|\t)[^\n]*)", FENCE.sub("", page.read_text(encoding="utf-8")))
    assert not [line for line in indented if re.match(r"\s*(?:\$|>>>|python|fastbp|import|from) ", line)]


def has_code(page):
    return any(block.kind in ("python", "console", "bash") and not why_not(block) for block in blocks(page))


# test_autograd_training.py and test_trials.py run them, and look at what they leave.
ELSEWHERE = {ROOT / "docs" / "autograd.md", ROOT / "docs" / "trials.md"}
RUNNABLE = [page for page in PAGES if page not in ELSEWHERE and has_code(page)]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_blocks_run_and_print_what_they_show(page, tmp_path, monkeypatch):
    if "$ cc " in page.read_text(encoding="utf-8") and shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if not why_not(block):
            run(block, names)
