"""The recipes of docs/trials.md run as printed, where their packages are installed."""

import re

import pytest

from .conftest import ROOT

pytest.importorskip("sklearn", minversion="1.7")
RECIPES = dict(
    re.findall(
        r"^<!-- recipe: (\w+) -->\n\n```python\n(.*?)^```$",
        (ROOT / "docs" / "trials.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def run(name):
    """What a recipe leaves, by name."""
    names = {}
    exec(RECIPES[name], names)
    return names


def test_every_block_is_a_recipe():
    assert (ROOT / "docs" / "trials.md").read_text(encoding="utf-8").count("```python") == len(RECIPES) == 4


def test_a_grid_on_dask():
    pytest.importorskip("dask.distributed")
    names = run("dask")
    serial = names["GridSearchCV"](names["search"].estimator, names["grid"], cv=3).fit(names["X"], names["y"])
    assert names["best"] == serial.best_params_
    assert (names["search"].cv_results_["mean_test_score"] == serial.cv_results_["mean_test_score"]).all()


def test_a_grid_on_ray():
    pytest.importorskip("ray")
    assert run("ray")["best"]["alpha"] in (1e-4, 1e-2)


def test_searches_as_units_of_work():
    pytest.importorskip("dask.distributed")
    names = run("parts")
    assert len(names["fitted"]) == 2
    assert names["best"].best_score_ == max(search.best_score_ for search in names["fitted"]) > 0.5


def test_pruned_trials():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = run("optuna")["study"]
    states = [trial.state for trial in study.trials]
    assert states.count(optuna.trial.TrialState.PRUNED) >= 1
    assert study.best_value > 0.9
