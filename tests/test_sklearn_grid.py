"""200 whole fits beside scikit-learn's: the first 20 epochs to the last digits, then where they end."""

import itertools

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.7")
from sklearn import neural_network

from fastbp import sklearn as ours

from .test_sklearn import task, unconverged

CHOICES = {
    "solver": [("sgd", "constant"), ("sgd", "invscaling"), ("sgd", "adaptive"), ("adam", "constant")],
    "activation": ["relu", "tanh", "logistic", "identity"],
    "alpha": [1e-4, 1.0],
    "weighted": [False, True],
    "early_stopping": [False, True],
    "shuffle": [True, False],
    "kind": ["binary", "classes", "labels", "target", "targets", "counts"],
}


def grid():
    """200 of all combinations, the same ones always; every choice with every other."""
    everything = list(itertools.product(*CHOICES.values()))
    chosen = np.random.default_rng(0).choice(len(everything), 200, replace=False)
    return [dict(zip(CHOICES, everything[i], strict=True)) for i in sorted(chosen)]


def fits(solver, activation, alpha, weighted, early_stopping, shuffle, kind):
    """Our fit and theirs."""
    X, y = task(kind)
    solver, policy = solver
    arguments = {"solver": solver, "learning_rate": policy, "activation": activation, "alpha": alpha}
    arguments |= {"early_stopping": early_stopping, "shuffle": shuffle, "batch_size": 20, "random_state": 0}
    arguments |= {"hidden_layer_sizes": (8, 5), "max_iter": 120, "learning_rate_init": 0.01, "tol": 1e-3}
    arguments |= {"validation_fraction": 0.2} | ({"loss": "poisson"} if kind == "counts" else {})
    name = "MLPClassifier" if kind in ("binary", "classes", "labels") else "MLPRegressor"
    weight = np.random.default_rng(1).uniform(0.1, 3, len(y)) if weighted else None
    return [getattr(module, name)(**arguments).fit(X, y, weight) for module in (ours, neural_network)]


def test_the_grid_has_every_pair_of_choices():
    for one, two in itertools.combinations(CHOICES, 2):
        pairs = {(settings[one], settings[two]) for settings in grid()}
        assert len(pairs) == len(CHOICES[one]) * len(CHOICES[two])


@pytest.mark.long
@unconverged
@pytest.mark.parametrize("number", range(200))
def test_a_whole_fit_is_that_of_scikit_learn(number):
    mine, theirs = fits(**grid()[number])
    tolerance = 1e-10 if mine.solver == "sgd" else 1e-6
    curves = [fitted.validation_scores_ if mine.early_stopping else fitted.loss_curve_ for fitted in (mine, theirs)]
    np.testing.assert_allclose(mine.loss_curve_[:20], theirs.loss_curve_[:20], rtol=tolerance)
    np.testing.assert_allclose(curves[0][:20], curves[1][:20], rtol=tolerance, atol=tolerance)
    assert abs(mine.n_iter_ - theirs.n_iter_) <= 1
    both = min(mine.n_iter_, theirs.n_iter_)
    np.testing.assert_allclose(mine.loss_curve_[both - 1], theirs.loss_curve_[both - 1], rtol=1e-3)
