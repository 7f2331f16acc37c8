"""The package in every form that a person may have it: checkout, wheel, source archive, editable install."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT = "import fastbp.kernels.cpu, fastbp.kernels.layout as t; print(fastbp.__file__); print(t.__file__)"

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists() or not (ROOT / "README.md").exists(), reason="needs a whole checkout"
)


def imported_from(folder: Path, cwd: Path) -> list[Path]:
    """Where a process of its own finds the package and its kernels, when ``folder`` comes first."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    process = subprocess.run([sys.executable, "-c", IMPORT], cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [Path(line) for line in process.stdout.split()]


def sources() -> set[str]:
    """Every module of the package, as an archive names it."""
    python = (path.relative_to(ROOT) for folder in ("fastbp", "kernels") for path in (ROOT / folder).rglob("*.py"))
    return {str(path) if path.parts[0] == "fastbp" else f"fastbp/{path}" for path in python}


@pytest.mark.parametrize("extra", ["cli", "data", "plot", "onnx", "safetensors", "sklearn"])
def test_what_an_extra_brings_is_imported(extra):
    """Nobody installs what nothing uses."""
    modules = {"scikit-learn": "sklearn"}
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fastbp").rglob("*.py"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for package in extras[extra]:
        module = modules.get(name := re.match(r"[\w-]+", package)[0], name)
        assert re.search(rf"^\s*(import|from) {module}\b", text, re.MULTILINE), package


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Source archive and wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    code = f"""
import setuptools.build_meta as backend
backend.build_sdist({str(folder)!r})
backend.build_wheel({str(folder)!r})
"""
    source = tmp_path_factory.mktemp("source") / "checkout"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    process = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    if "No module named 'setuptools" in process.stderr:
        pytest.skip("needs setuptools")
    assert process.returncode == 0, process.stderr
    return folder


def test_link_points_into_the_repository():
    link = ROOT / "fastbp" / "kernels"
    assert link.is_symlink()
    assert os.readlink(link) == "../kernels"


def test_bare_checkout_imports(tmp_path):
    package, kernels = imported_from(ROOT, tmp_path)
    assert package == ROOT / "fastbp" / "__init__.py"
    assert kernels == ROOT / "fastbp" / "kernels" / "layout.py"


def test_repository_root_imports_its_own_package():
    package, kernels = imported_from(Path(), ROOT)
    assert kernels.is_relative_to(package.parent)


def test_wheel_holds_real_folders(built, tmp_path):
    wheel = next(built.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert sources() <= names
        assert "fastbp/py.typed" in names
        assert not any(name.startswith(("kernels/", "tests/")) for name in names)
        assert not any(info.external_attr >> 28 == 0xA for info in archive.infolist())  # symbolic links
        archive.extractall(tmp_path / "installed")
    package, kernels = imported_from(tmp_path / "installed", tmp_path)
    assert package.is_relative_to(tmp_path)
    assert kernels.is_relative_to(tmp_path)


def test_source_archive_holds_real_folders(built, tmp_path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
        assert sources() <= members.keys()
        assert not any(member.issym() or member.islnk() for member in members.values())
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.iterdir())
    package, kernels = imported_from(folder, tmp_path)
    assert kernels == package.parent / "kernels" / "layout.py"
