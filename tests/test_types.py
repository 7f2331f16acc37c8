"""The annotations are those of the code: a user's program that names everything runs, and a type checker accepts it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fastbp

from .conftest import ROOT

SCRIPT = Path(__file__).parent / "users_script.py"


def type_errors(folder, program):
    """The errors that pyright reports for a program, as ``line: message``."""
    (folder / "program.py").write_text(program)
    (folder / "pyrightconfig.json").write_text(json.dumps({"include": ["program.py"], "extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", folder]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    )
    assert run.returncode in (0, 1), f'{run.stdout}{run.stderr}\npyright does not run: pip install "fastbp[test]"'
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    found = report["generalDiagnostics"]
    return [f"{one['range']['start']['line'] + 1}: {one['message']}" for one in found if one["severity"] == "error"]


def test_the_program_names_everything():
    words = set(re.findall(r"\w+", SCRIPT.read_text()))
    assert sorted(set(fastbp.__all__) - words) == []


def test_the_program_runs():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_a_type_checker_accepts_the_program(tmp_path):
    assert type_errors(tmp_path, SCRIPT.read_text()) == []


def test_a_type_checker_refuses_every_line(tmp_path):
    lines = [
        "import fastbp",
        "fastbp.Linear('4', 2)",
        "fastbp.Adam(lr='fast')",
        "fastbp.Sequential(fastbp.Linear(2, 2)).fit([[1, 2]], [0], loss=3, optimizer=fastbp.SGD())",
        "fastbp.Sequential(fastbp.Linear(2, 2)).predict([[1, 2]]).nothing",
        "fastbp.load(1)",
        "fastbp.Variable(1.0).backwards()",
        "fastbp.MSELoss()([[1.0]], [[1.0]]) + 1",
        "fastbp.set_num_threads('two')",
        "fastbp.CosineSchedule(0.1, steps=8).rate",
    ]
    refused = {int(error.split(":")[0]) for error in type_errors(tmp_path, "\n".join(lines))}
    assert refused == set(range(2, len(lines) + 1))


def test_dir_is_what_is_public():
    assert {name for name in dir(fastbp) if not name.startswith("_")} == set(fastbp.__all__)
    shown = set(dir(fastbp.Sequential(fastbp.Linear(1, 1), device="reference")))
    assert {"fit", "predict", "layers", "metadata"} <= shown
    assert not {"program", "step_keys", "network"} & shown
