"""What the README shows is true: its Python runs as printed, its commands are those that CI runs."""

import re
from pathlib import Path

import fastbp

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    first, *others = blocks("python")
    exec(first, names)
    assert names["accuracy"] >= 0.97
    assert f"{names['accuracy']:.1%} of the digits" in capsys.readouterr().out
    model, X_test = names["model"], names["X_test"]
    assert (fastbp.load("digits.npz").predict(X_test) == model.predict(X_test)).all()
    before = model.flat_parameters
    for block in others:
        exec(block, names)
    assert (model.flat_parameters != before).any()


def test_commands_set_themselves_up():
    commands = blocks("bash")[0].splitlines()
    assert commands == [
        "# installs packages",
        'python -m pip install -e ".[cli]" && fastbp train digits',
        'python -m pip install -e ".[test]" && python -m pytest',
    ]
