"""The search: scikit-learn's interface and numbers, and the bits of fits one by one."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.7")
from joblib.parallel import get_active_backend
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV

X, y = load_iris(return_X_y=True)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
TIMES = "mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time"


def same(ours, theirs):
    """All results but times, and what is predicted, to the bit."""
    assert ours.cv_results_.keys() == theirs.cv_results_.keys()
    for name in ours.cv_results_.keys() - set(TIMES):
        np.testing.assert_array_equal(ours.cv_results_[name], theirs.cv_results_[name], err_msg=name)
    assert (ours.best_params_, ours.best_index_, ours.n_splits_) == (
        theirs.best_params_,
        theirs.best_index_,
        theirs.n_splits_,
    )
    assert ours.best_score_ == theirs.best_score_
    for mine, other in zip(ours.best_estimator_.coefs_, theirs.best_estimator_.coefs_, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.fixture
def two_threads():
    before = fastbp.get_num_threads()
    fastbp.set_num_threads(2)
    yield
    fastbp.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_grid_gives_what_fits_one_by_one_give(early_stopping):
    estimator = MLPClassifier(random_state=0, max_iter=15, early_stopping=early_stopping, dropout=0.1)
    grid = [
        {"hidden_layer_sizes": [(8,), (6, 6)], "alpha": [1e-4, 1.0]},
        {"solver": ["sgd", "lbfgs"], "normalization": [None, "layer"]},
    ]
    settings = {"cv": StratifiedKFold(3), "return_train_score": True}
    same(MLPSearchCV(estimator, grid, **settings).fit(X, y), GridSearchCV(estimator, grid, **settings).fit(X, y))


@pytest.mark.usefixtures("two_threads")
def test_candidates_that_are_drawn_and_several_scores():
    estimator = MLPRegressor(random_state=0, max_iter=10, hidden_layer_sizes=(8,))
    space = {"alpha": stats.loguniform(1e-5, 1), "activation": ["tanh", "mish"]}
    settings = {"n_iter": 4, "random_state": 3, "cv": KFold(2), "scoring": ["r2", "neg_mean_squared_error"]}
    settings |= {"refit": "r2"}
    ours = MLPSearchCV(estimator, space, **settings).fit(X, y)
    same(ours, RandomizedSearchCV(estimator, space, **settings).fit(X, y))
    assert len(ours.cv_results_["params"]) == 4


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_pipelines_weights_and_failures():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(random_state=0, max_iter=5))
    search = MLPSearchCV(pipeline, {"mlpclassifier__alpha": [0.1, -1.0]}, cv=2)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    assert search.best_params_ == {"mlpclassifier__alpha": 0.1}
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        clone(search).set_params(error_score="raise").fit(X, y)
    weighted = MLPSearchCV(MLPClassifier(random_state=0, max_iter=5), {"alpha": [0.1]}, cv=2)
    weight = np.arange(150.0)
    alone = GridSearchCV(weighted.estimator, {"alpha": [0.1]}, cv=2).fit(X, y, sample_weight=weight)
    same(weighted.fit(X, y, sample_weight=weight), alone)


@pytest.mark.usefixtures("two_threads")
def test_fits_run_at_the_same_time_and_an_error_stops_the_others():
    meeting = threading.Barrier(2, timeout=60)
    epochs = []

    class Meet:
        def __init__(self, fails):
            self.fails = fails

        def on_fit_begin(self, model, run):
            meeting.wait()  # neither goes on alone

        def on_epoch_end(self, model, record):
            if self.fails:
                raise RuntimeError("broken")
            epochs.append(record["epoch"])

    estimator = MLPClassifier(random_state=0, max_iter=10**7, tol=0.0, n_iter_no_change=10**7, shuffle=False)
    grid = {"callbacks": [[Meet(False)], [Meet(True)]]}
    search = MLPSearchCV(estimator, grid, cv=[(np.arange(100), np.arange(100, 150))], error_score="raise")
    with pytest.raises(RuntimeError, match="broken"):
        search.fit(X, y)
    for _ in range(100):
        before = len(epochs)
        time.sleep(0.2)
        if len(epochs) == before:
            break
    else:
        pytest.fail("the other training went on")


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("device", "jobs"), [("cpu", 2), ("cuda", 1)])
def test_one_fit_at_a_time_where_the_device_is_a_gpu(device, jobs, monkeypatch):
    active = []
    monkeypatch.setattr(GridSearchCV, "fit", lambda search, X, y: active.append(get_active_backend()[1]))
    MLPSearchCV(make_pipeline(StandardScaler(), MLPClassifier(device=device)), {}).fit(X, y)
    assert active == [jobs]
