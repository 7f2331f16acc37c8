"""What is not the core has a room of its own, which nothing of the core imports."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp.cli import main

PACKAGE = Path(fastbp.__file__).parent
ROOMS = "bench", "cli", "sklearn", "tabular"
DOORS = {(Path("loading.py"), "fastbp.tabular.Predictor")}  # `load` opens it for the file of a run
BEYOND_THE_CORE = {PACKAGE / "__main__.py", *(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))}


def modules():
    """Every file of the core; fastbp/kernels may be a link."""
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")]
    return sorted({path.relative_to(PACKAGE) for path in files if path not in BEYOND_THE_CORE})


def imported(file):
    """Absolute names of all that a file of the package imports, also within its functions."""
    package = ".".join(("fastbp", *file.parent.parts))
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_among(names):
    """Of names of modules, those in a room."""
    return sorted(name for name in names if any(f"{name}.".startswith(f"fastbp.{room}.") for room in ROOMS))


def test_the_core_is_all_there():
    assert {Path("model.py"), Path("autograd/__init__.py"), Path("kernels/cpu/__init__.py")} <= set(modules())
    assert all((PACKAGE / room / "__init__.py").is_file() for room in ROOMS)


@pytest.mark.parametrize("file", modules(), ids=str)
def test_the_core_imports_no_room(file):
    doors = {name for module, name in DOORS if module == file}
    assert set(rooms_among(imported(file))) == doors


def test_a_door_is_opened_only_where_it_is_needed():
    code = "import sys, fastbp; print(*(name for name in sys.modules if name.startswith('fastbp.tabular')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_predict_imports_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("points.npz", X=np.random.default_rng(0).normal(size=(60, 3)), y=np.arange(60) % 2)
    assert main(["train", "points.npz", "--device", "reference", "--hidden", "4", "--epochs", "1", "-q"]) == 0
    code = """if True:
        import sys
        from fastbp.cli import main
        code = main(["predict", "runs/points-001", "points.npz", "--device", "reference", "--proba", "-o", "out.csv"])
        print(*sys.modules, sep="\\n", file=sys.stderr)
        sys.exit(code)"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert Path("out.csv").is_file()
    loaded = set(process.stderr.split())
    assert {"fastbp.model", "fastbp.cli.predict"} <= loaded
    others = {"sklearn", "pandas", "torch", "pyarrow", "rich", "matplotlib"}
    assert not loaded & ({"fastbp.bench", "fastbp.cli.train"} | others)
