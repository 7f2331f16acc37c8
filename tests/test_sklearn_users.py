"""What people's scripts do with scikit-learn's networks works with ours: each a report from using them."""

import copy
import gc
import json
import pickle
import warnings
import weakref

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.7")
from scipy import sparse
from sklearn import neural_network
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fastbp
from fastbp import sklearn as ours
from fastbp.sklearn import MLPClassifier, MLPRegressor

IRIS, KIND = load_iris(return_X_y=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:A column-vector y was passed"),
]


def both(name, X, y, **arguments):
    """Our estimator and theirs, fitted."""
    arguments = {"random_state": 0} | arguments
    return [getattr(module, name)(**arguments).fit(X, y) for module in (ours, neural_network)]


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_arguments_of_theirs_are_taken(name):
    theirs = getattr(neural_network, name)(solver="sgd", learning_rate="invscaling", power_t=0.3, max_fun=9, max_iter=2)
    mine = getattr(ours, name)(**theirs.get_params())
    np.testing.assert_allclose(mine.fit(IRIS, KIND).score(IRIS, KIND), mine.score(IRIS, KIND))
    assert {key: mine.get_params()[key] for key in theirs.get_params()} == theirs.get_params()


def test_first_argument_of_a_regressor_is_the_loss():
    assert MLPRegressor("poisson").loss == "poisson"


def test_lbfgs_takes_part_in_a_grid():
    grid = {"solver": ["lbfgs", "adam"], "max_iter": [200]}
    searches = [
        GridSearchCV(module.MLPClassifier(random_state=0, hidden_layer_sizes=(8,)), grid, cv=2).fit(IRIS, KIND)
        for module in (ours, neural_network)
    ]
    assert searches[0].best_params_ == searches[1].best_params_
    assert np.isfinite(searches[0].cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("learning_rate", ["adaptive", "invscaling"])
def test_policies_work_over_warm_starts(learning_rate):
    settings = {"solver": "sgd", "learning_rate": learning_rate, "warm_start": True, "max_iter": 15, "random_state": 0}
    settings |= {"tol": 0.05, "n_iter_no_change": 2, "learning_rate_init": 0.01}
    fits = [module.MLPClassifier(**settings) for module in (ours, neural_network)]
    for _ in range(3):
        for estimator in fits:
            estimator.fit(IRIS, KIND)
        np.testing.assert_allclose(fits[0].loss_curve_, fits[1].loss_curve_, rtol=1e-10)
        assert fits[0]._optimizer.learning_rate == pytest.approx(fits[1]._optimizer.learning_rate)


def test_sparse_input_of_encoders():
    words = [["a"], ["b"]] * 20
    fitted = make_pipeline(OneHotEncoder(), MLPClassifier(random_state=0, max_iter=300)).fit(words, [0, 1] * 20)
    assert fitted.score(words, [0, 1] * 20) == 1
    texts = [word for (word,) in words]
    vectors = make_pipeline(TfidfVectorizer(token_pattern="."), MLPClassifier(random_state=0, max_iter=9))
    assert vectors.fit(texts, [0, 1] * 20).predict(texts).shape == (40,)
    cells = np.random.default_rng(0).integers(0, 30, (200, 4))
    encode = ColumnTransformer([("categories", OneHotEncoder(handle_unknown="ignore"), [0, 1, 2, 3])])
    assert make_pipeline(encode, MLPRegressor(max_iter=2)).fit(cells, cells[:, 0]).predict(cells).shape == (200,)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize("settings", [{}, {"early_stopping": True}, {"solver": "lbfgs"}])
def test_sparse_and_dense_rows_give_the_same(form, settings):
    dense, thin = (MLPClassifier(random_state=0, max_iter=5, **settings) for _ in range(2))
    dense.fit(IRIS, KIND)
    thin.fit(form(IRIS), KIND)
    np.testing.assert_array_equal(dense.predict_proba(IRIS), thin.predict_proba(form(IRIS)))
    np.testing.assert_array_equal(dense.predict_proba(form(IRIS)), dense.predict_proba(IRIS))
    if settings == {}:
        dense.partial_fit(IRIS, KIND)
        np.testing.assert_array_equal(dense.coefs_[0], thin.partial_fit(form(IRIS), KIND).coefs_[0])


def test_several_labels():
    X, y = make_multilabel_classification(random_state=0)
    mine, theirs = both("MLPClassifier", X, y, max_iter=20)
    np.testing.assert_allclose(mine.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    np.testing.assert_array_equal(mine.predict(X), theirs.predict(X))
    assert mine.__sklearn_tags__().classifier_tags.multi_label
    assert MLPClassifier().partial_fit(X, y, classes=range(5)).predict(X).shape == y.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_dtype_follows_the_data(dtype):
    X = np.round(IRIS).astype(dtype)
    mine, theirs = both("MLPClassifier", X, KIND, max_iter=3)
    assert mine.coefs_[0].dtype == theirs.coefs_[0].dtype == mine.predict_proba(X).dtype
    assert MLPClassifier(dtype="float32", max_iter=2).fit(X, KIND).coefs_[0].dtype == np.float32
    if dtype != np.float32:
        assert 0 < json.loads(json.dumps(mine.predict_proba(X)[0, 1])) < 1


def test_penalty_of_a_short_batch():
    X, y = load_digits(return_X_y=True)
    X, y = StandardScaler().fit_transform(X)[:405], y[:405]
    mine, theirs = both("MLPClassifier", X, y, alpha=10, max_iter=60)
    np.testing.assert_allclose(mine.loss_curve_[:20], theirs.loss_curve_[:20], rtol=1e-6)
    assert mine.score(X, y) == pytest.approx(theirs.score(X, y), abs=0.02)
    assert abs(mine.n_iter_ - theirs.n_iter_) <= 1


def test_early_stopping_with_a_class_of_one_row():
    X, y = np.r_[IRIS, IRIS[:1]], np.r_[KIND, 3]
    mine, theirs = both("MLPClassifier", X, y, early_stopping=True)
    np.testing.assert_allclose(mine.validation_scores_, theirs.validation_scores_)
    many = np.arange(150) % 40  # more classes than validation rows
    mine, theirs = both("MLPClassifier", IRIS, many, early_stopping=True)
    np.testing.assert_allclose(mine.validation_scores_, theirs.validation_scores_)


def test_several_outputs_stop_where_theirs_stop():
    y = np.stack([IRIS[:, 0], KIND, IRIS[:, 1]], 1)
    mine, theirs = both("MLPRegressor", IRIS, y, tol=1e-3)
    assert abs(mine.n_iter_ - theirs.n_iter_) <= 1
    np.testing.assert_allclose(mine.loss_curve_[:20], theirs.loss_curve_[:20], rtol=1e-6)


def test_patience_goes_on_over_warm_starts():
    settings = {"random_state": 0, "warm_start": True, "tol": 0.05, "solver": "sgd", "learning_rate_init": 0.05}
    epochs = []
    for module in (ours, neural_network):
        estimator = module.MLPClassifier(**settings)
        epochs.append([estimator.fit(IRIS, KIND).n_iter_ for _ in range(4)])
    assert epochs[0] == epochs[1]
    assert epochs[0][1:] == [1, 1, 1]
    with pytest.raises(ValueError, match="same classes as in the previous call"):
        MLPClassifier(warm_start=True, max_iter=1).fit(IRIS, KIND).fit(IRIS, KIND > 0)


def test_weights_can_be_put_in():
    fitted = MLPClassifier(random_state=0, max_iter=2).fit(IRIS, KIND)
    other = MLPClassifier(random_state=1, max_iter=2).fit(IRIS, KIND)
    for i in range(2):
        fitted.coefs_[i] = other.coefs_[i].copy()
    fitted.intercepts_ = [bias.copy() for bias in other.intercepts_]
    np.testing.assert_array_equal(fitted.predict_proba(IRIS), other.predict_proba(IRIS))
    fitted.coefs_[1][...] = 0  # a view again
    fitted.intercepts_[1][:] = [0, 5, 0]
    assert (fitted.predict(IRIS) == 1).all()
    fitted.coefs_, fitted.intercepts_ = [np.eye(4)[:, :3]], [np.zeros(3)]  # a network of another shape
    np.testing.assert_array_equal(fitted.predict(IRIS), IRIS[:, :3].argmax(axis=1))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_divergence_is_as_theirs(early_stopping):
    settings = {"learning_rate_init": 1, "activation": "identity", "solver": "sgd", "max_iter": 20}
    X = IRIS * 1e100
    curves = []
    for module in (ours, neural_network):
        estimator = module.MLPRegressor(random_state=0, early_stopping=early_stopping, **settings)
        if early_stopping:
            curves.append(np.isnan(estimator.fit(X, KIND).validation_scores_))
        else:
            with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
                estimator.fit(X, KIND)
            curves.append(np.isnan(estimator.loss_curve_))
    assert len(curves[0]) == len(curves[1]) == 20
    assert curves[0][-1]
    assert curves[1][-1]


def test_one_class():
    mine, theirs = both("MLPClassifier", IRIS, np.full(150, "rose"), max_iter=5)
    np.testing.assert_array_equal(mine.predict(IRIS), theirs.predict(IRIS))
    np.testing.assert_allclose(mine.predict_proba(IRIS), theirs.predict_proba(IRIS))
    scores = cross_val_score(MLPClassifier(max_iter=2), IRIS, KIND)  # sorted by class
    assert np.isfinite(scores).all()


def test_activation_may_change_after_fit():
    mine, theirs = both("MLPClassifier", IRIS, KIND, max_iter=5)
    for estimator in (mine, theirs):
        estimator.set_params(activation="tanh")
    np.testing.assert_allclose(mine.predict_proba(IRIS), theirs.predict_proba(IRIS))


@pytest.mark.parametrize("repeats", [1, 4])
def test_balance_counts_sample_weights(repeats):
    """Weights, and rows repeated as often, are the same."""
    often = np.where(KIND == 0, repeats, 1)
    settings = {"class_weight": "balanced", "solver": "lbfgs", "random_state": 0, "max_iter": 5}
    weighted = MLPClassifier(**settings).fit(IRIS, KIND, sample_weight=often)
    repeated = MLPClassifier(**settings).fit(IRIS.repeat(often, 0), KIND.repeat(often))
    np.testing.assert_allclose(weighted.predict_proba(IRIS), repeated.predict_proba(IRIS), rtol=1e-6)


def test_warning_is_theirs():
    texts = []
    for module in (ours, neural_network):
        with pytest.warns(ConvergenceWarning) as caught:
            module.MLPClassifier(max_iter=2).fit(IRIS, KIND)
        texts.append(str(caught[0].message))
    assert texts[0] == texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum it")
        MLPClassifier(max_iter=2).fit(IRIS, KIND)


def test_an_interrupt_ends_training_with_a_warning():
    class Interrupt:
        def on_epoch_end(self, model, record):
            if record["epoch"] == 3:
                raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Training interrupted by user"):
        fitted = MLPClassifier(callbacks=[Interrupt()]).fit(IRIS, KIND)
    assert fitted.n_iter_ == 3
    assert fitted.partial_fit(IRIS, KIND).t_ == 600


def test_a_refused_fit_changes_nothing():
    fitted = MLPClassifier(random_state=0, max_iter=2).fit(IRIS[:100], np.where(KIND[:100], "cat", "dog"))
    before, state = fitted.predict(IRIS), dict(vars(fitted))
    with pytest.raises(ValueError, match="must not be negative"):
        fitted.fit(IRIS[:, :2], KIND, sample_weight=np.full(150, -1.0))
    assert vars(fitted).keys() == state.keys()
    assert fitted.n_features_in_ == 4
    np.testing.assert_array_equal(fitted.predict(IRIS), before)
    refused = [
        ("hidden_layer_sizes", {"hidden_layer_sizes": (0,)}),
        ("The validation set is too small", {"early_stopping": True, "validation_fraction": 0.005}),
        ("class_weight must be a dict", {"class_weight": "even"}),
        ("a batch of one row", {"normalization": "batch", "batch_size": 149}),
        ("callbacks must be|a callback must have", {"callbacks": [3]}),
        ("float32 cannot hold", {"dtype": "float32"}),
    ]
    for message, arguments in refused:
        defaults = {name: fitted.get_params()[name] for name in arguments}
        with pytest.raises((ValueError, TypeError), match=message):
            fitted.set_params(**arguments).fit(IRIS * (1e39 if "dtype" in arguments else 1), KIND)
        fitted.set_params(**defaults)
        assert vars(fitted).keys() == state.keys()
        np.testing.assert_array_equal(fitted.predict(IRIS), before)
    np.testing.assert_array_equal(fitted.classes_, ["cat", "dog"])


def test_a_refused_first_partial_fit_changes_nothing():
    fitted = MLPClassifier(random_state=0)
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.partial_fit(IRIS * np.nan, KIND, classes=[0, 1, 2])
    assert not hasattr(fitted, "classes_")
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        fitted.partial_fit(IRIS, KIND)
    assert fitted.partial_fit(IRIS, KIND > 0, classes=[False, True]).predict(IRIS).dtype == bool


def test_a_fit_that_explodes_is_not_fitted():
    settings = {"learning_rate_init": 1.0, "activation": "identity", "solver": "sgd", "max_iter": 20}
    fitted = MLPRegressor(random_state=0, max_iter=2).fit(IRIS, KIND)
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        fitted.set_params(**settings).fit(IRIS * 1e100, KIND)
    with pytest.raises(NotFittedError):
        fitted.predict(IRIS)
    assert np.isfinite(fitted.set_params(learning_rate_init=1e-4).fit(IRIS, KIND).predict(IRIS)).all()


def test_the_container_of_the_rows_changes_nothing(tmp_path):
    """A memory map that is read only, as joblib hands out, Fortran's order, other strides: the same bits."""
    stored = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", IRIS.dtype, IRIS.shape)
    stored[:] = IRIS
    forms = np.load(tmp_path / "X.npy", mmap_mode="r"), np.asfortranarray(IRIS), np.repeat(IRIS, 2, axis=0)[::2]
    expected = MLPClassifier(random_state=0, max_iter=5).fit(IRIS, KIND).predict_proba(IRIS)
    for X in forms:
        fitted = MLPClassifier(random_state=0, max_iter=5).fit(X, KIND)
        np.testing.assert_array_equal(fitted.predict_proba(X), expected)


@pytest.mark.long
def test_processes_of_joblib_change_nothing():
    X = np.random.default_rng(0).normal(size=(20_000, 10))  # which joblib maps into memory
    y = np.argmax(X[:, :3], axis=1)
    fits = [OneVsRestClassifier(MLPClassifier((8,), random_state=0, max_iter=3), n_jobs=n).fit(X, y) for n in (1, 2)]
    np.testing.assert_array_equal(*(fitted.predict_proba(X) for fitted in fits))


def test_not_fitted():
    with pytest.raises(AttributeError, match="'MLPClassifier' object has no attribute 'coefs_'"):
        MLPClassifier().coefs_  # noqa: B018
    assert not hasattr(MLPClassifier(), "intercepts_")


def test_partial_fit_of_single_rows():
    fits = [module.MLPClassifier(random_state=0, solver="sgd") for module in (ours, neural_network)]
    for estimator in fits:
        for row in range(0, 150, 10):
            estimator.partial_fit(IRIS[row : row + 1], KIND[row : row + 1], classes=[0, 1, 2])
    np.testing.assert_allclose(fits[0].loss_curve_, fits[1].loss_curve_, rtol=1e-10)
    assert fits[0].t_ == fits[1].t_ == 15


class Forgetful:
    """An estimator that makes everything anew in each call of `partial_fit`, as if it were the first of a process."""

    def __init__(self, estimator):
        self.estimator = estimator

    def partial_fit(self, *arguments):
        self.estimator = pickle.loads(pickle.dumps(self.estimator)).partial_fit(*arguments)


@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1")
@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_what_partial_fit_keeps_is_renewed_with_what_it_is_made_of(name, solver):
    """Rows of many shapes and changed arguments, weights and threads: the bits of an estimator that keeps nothing."""
    kept = getattr(ours, name)(random_state=0, solver=solver, hidden_layer_sizes=(6,))
    kept.partial_fit(IRIS, KIND, *([None, [0, 1, 2]] if name == "MLPClassifier" else []))
    other = Forgetful(copy.deepcopy(kept))
    threads = fastbp.get_num_threads()

    def follow(rows, *, weight=None, form=np.asarray, dtype=np.float64, **arguments):
        for fitted in (kept, other.estimator):
            fitted.set_params(**arguments)
        for fitted in (kept, other):
            fitted.partial_fit(form(IRIS[rows].astype(dtype)), KIND[rows], weight)
        assert kept.loss_ == other.estimator.loss_
        for one, two in zip(kept.coefs_, other.estimator.coefs_, strict=True):
            np.testing.assert_array_equal(one, two)

    one, few = slice(60, 61), slice(40, 47)
    try:
        for rows in (one, few, one, slice(0, 150), one):
            follow(rows)
        follow(few, weight=np.arange(7.0))
        follow(one, weight=[3.0])
        follow(one)
        for alpha in (0.0, 2.0, 1e-4):
            follow(one, alpha=alpha)
        follow(few, batch_size=3)
        follow(few, form=sparse.csr_array)
        follow(few, form=np.asfortranarray, dtype=np.float32)
        fastbp.set_num_threads(1)
        follow(few)
        for fitted in (kept, other.estimator):
            fitted.coefs_[0] = np.full((4, 6), 0.1)
            fitted.intercepts_ = [np.ones(6), np.ones(len(fitted.intercepts_[1]))]
        follow(one)
        follow(one, activation="tanh")  # another network
        follow(few, shuffle=False)
        if name == "MLPRegressor":
            follow(few, loss="huber")
            follow(few, loss=fastbp.HuberLoss(0.01))
    finally:
        fastbp.set_num_threads(threads)


def test_partial_fit_leaves_no_rows_behind():
    fitted = MLPClassifier(random_state=0, hidden_layer_sizes=(4,)).partial_fit(IRIS, KIND, classes=[0, 1, 2])
    small = len(pickle.dumps(fitted))
    many = np.tile(IRIS, (100, 1))
    for _ in range(2):
        fitted.partial_fit(many, np.tile(KIND, 100))
    assert len(pickle.dumps(fitted)) < small + 100
    alive = weakref.ref(many)
    del many
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 2), (1, 3), (3, 1)])
def test_another_number_of_outputs_is_refused(first, then, solver):
    """Of a network that goes on training; kernels read as many targets as there are outputs."""
    fitted = MLPRegressor(random_state=0, max_iter=2, warm_start=True, solver=solver).fit(IRIS, IRIS[:, :first])
    before = fitted.predict(IRIS)
    for train in [fitted.fit] + ([] if solver == "lbfgs" else [fitted.partial_fit]):
        with pytest.raises(ValueError, match=f"y must have {first} outputs? a row, .* got {then}; for another network"):
            train(IRIS, IRIS[:, :then])
        np.testing.assert_array_equal(fitted.predict(IRIS), before)


def test_targets_fit_the_weights_that_were_put_in():
    fitted = MLPClassifier(random_state=0, max_iter=1).fit(IRIS, KIND > 0)
    fitted.coefs_, fitted.intercepts_ = [np.eye(4)[:, :3]], [np.zeros(3)]
    with pytest.raises(ValueError, match=r"y must have 3 outputs a row, .* got 1"):
        fitted.partial_fit(IRIS, KIND > 0)


def test_probabilities_in_the_tails():
    fitted = MLPClassifier(hidden_layer_sizes=(), dtype="float32", max_iter=1).fit(IRIS[:100], KIND[:100])
    fitted.coefs_[0][...], fitted.intercepts_[0][...] = 0, 18
    np.testing.assert_allclose(fitted.predict_proba(IRIS)[0], [1.523e-8, 1], rtol=1e-3)
    np.testing.assert_allclose(fitted.predict_log_proba(IRIS)[0], [-18.000000015, -1.523e-8], rtol=1e-3)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 90), ("float64", 700)])
def test_logarithms_of_probabilities_in_the_tails(dtype, size):
    """Also where the probability itself is rounded to 0 or 1: a sigmoid of the other sign, a log-softmax."""
    fitted = MLPClassifier(hidden_layer_sizes=(), dtype=dtype, max_iter=1).fit(IRIS[:100], KIND[:100])
    fitted.coefs_[0][...], fitted.intercepts_[0][...] = 0, size
    np.testing.assert_allclose(fitted.predict_log_proba(IRIS)[0], [-size, -np.exp(-float(size))], rtol=1e-3)
    fitted.intercepts_[0][...] = 40
    np.testing.assert_allclose(fitted.predict_proba(IRIS)[0, 0], np.exp(-40.0), rtol=1e-5)
    fitted = MLPClassifier(hidden_layer_sizes=(), dtype=dtype, max_iter=1).fit(IRIS, KIND)
    fitted.coefs_[0][...], fitted.intercepts_[0][...] = 0, [0, size, 2]
    np.testing.assert_allclose(fitted.predict_log_proba(IRIS)[0, ::2], [-size, 2 - size], rtol=1e-6)


@pytest.mark.parametrize("form", [np.array, sparse.csr_array])
def test_numbers_that_the_network_cannot_hold_are_refused(form):
    fitted = MLPClassifier(dtype="float32", max_iter=1).fit(IRIS, KIND)
    rows = form([[1e39, 0, 0, 0]])
    with pytest.raises(ValueError, match="float32 cannot hold"):
        fitted.predict(rows)
    with pytest.raises(ValueError, match="float32 cannot hold"):
        fitted.partial_fit(rows, [0])
    with pytest.raises(ValueError, match=r"y\[1\] = 1e\+39, which float32 cannot hold"):
        MLPRegressor(dtype="float32", max_iter=1).fit(IRIS[:2], [0, 1e39])


CASES = [
    IRIS,
    IRIS.astype(np.float32),
    np.asfortranarray(IRIS),
    IRIS[::2],
    IRIS.tolist(),
    IRIS.astype(int),
    IRIS[:, :3],
    IRIS[0],
    IRIS[:0],
    IRIS * np.nan,
    IRIS * np.inf,
    IRIS * 2e307,  # whose sum is infinite
    sparse.csr_array(IRIS),
    np.ma.masked_array(IRIS),
]


@pytest.mark.parametrize("X", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("named", [False, True])
def test_plain_arrays_are_checked_as_validate_data_does(X, named, monkeypatch):
    """The fast path of plain arrays gives what the other way gives: the same result, warning or error."""
    pandas = pytest.importorskip("pandas")
    train = pandas.DataFrame(IRIS, columns=list("abcd")) if named else IRIS
    fitted = MLPClassifier(random_state=0, max_iter=2).fit(train, KIND)

    def outcome():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = fitted.predict_proba(X).tolist()
            except Exception as error:
                result = repr(error)
        return result, [str(warning.message) for warning in caught]

    quick = outcome()
    monkeypatch.setattr("fastbp.sklearn.base.passes", lambda estimator, X: False)
    assert repr(outcome()) == repr(quick)


@pytest.mark.parametrize("y", [[0], [3], [1.0], ["1"], [[1]], [0, 1]])
def test_labels_of_partial_fit_are_checked_on_both_ways(y, monkeypatch):
    def outcome():
        fitted = MLPClassifier(random_state=0).partial_fit(IRIS, KIND, classes=[0, 1, 2])
        try:
            return fitted.partial_fit(IRIS[:1], np.array(y)).coefs_[0].tolist()
        except Exception as error:
            return repr(error)

    quick = outcome()
    monkeypatch.setattr("fastbp.sklearn.classifier.passes", lambda estimator, X: False)
    assert outcome() == quick


@pytest.mark.parametrize(
    "y", [[0.5], [3], [True], [np.nan], [np.inf], [1e308], ["1"], ["a"], [[1.0]], [[1.0, 2.0]], [0.0, 1.0], [1 + 1j]]
)
def test_numbers_of_partial_fit_are_checked_on_both_ways(y, monkeypatch):
    def outcome():
        fitted = MLPRegressor(random_state=0).partial_fit(IRIS, KIND)
        try:
            return fitted.partial_fit(IRIS[:1], np.array(y)).coefs_[0].tolist()
        except Exception as error:
            return repr(error)

    quick = outcome()
    monkeypatch.setattr("fastbp.sklearn.regressor.passes", lambda estimator, X: False)
    assert outcome() == quick
