"""The estimators: scikit-learn's own checks, its numbers where they must be the same, and what they add."""

import importlib
import inspect
import pickle
import sys
import warnings

import numpy as np
import pytest

import fastbp

sklearn = pytest.importorskip("sklearn", minversion="1.6")
from sklearn import neural_network  # noqa: E402 - after the line that may skip this file
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastbp.layers import Activation  # noqa: E402
from fastbp.sklearn import MLPClassifier, MLPRegressor  # noqa: E402
from fastbp.sklearn.arguments import ACTIVATIONS  # noqa: E402

ESTIMATORS = MLPClassifier, MLPRegressor
unconverged = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def expected_to_fail(estimator):
    """What networks that compute in float32, whatever X is, cannot pass, and exact logarithms cannot."""
    if estimator.solver == "lbfgs" and isinstance(estimator, MLPClassifier):
        tails = (
            "logarithms are finite where probabilities are rounded to 0, and theirs are those of the rounded numbers"
        )
        return {"check_classifiers_train": tails}
    if estimator.dtype != "float32":
        return {}
    weights = (
        "weights and repeated rows are sums in another order, and the results have to agree to 1e-7, which is about "
        "the rounding of a single float32 operation"
    )
    kinds = () if estimator.early_stopping else ("dense", "sparse")  # with early stopping theirs fail too
    reasons = {f"check_sample_weight_equivalence_on_{kind}_data": weights for kind in kinds}
    if isinstance(estimator, MLPRegressor):
        reasons["check_regressor_multioutput"] = "predictions must be float64; they have the dtype of the network"
    return reasons


def theirs_of(estimator):
    """scikit-learn's estimator with the arguments of ours."""
    theirs = getattr(neural_network, type(estimator).__name__)()
    known = theirs.get_params()
    return theirs.set_params(**{name: value for name, value in estimator.get_params().items() if name in known})


def checked_by_scikit_learn(*settings):
    """For each of these arguments all checks, of both estimators."""
    estimators = [cls(**arguments) for cls in ESTIMATORS for arguments in settings]
    return parametrize_with_checks(estimators, expected_failed_checks=expected_to_fail)


@pytest.mark.filterwarnings("ignore")
@checked_by_scikit_learn({}, {"early_stopping": True}, {"dtype": "float32"})
def test_scikit_learn(estimator, check):
    fails_only_with_theirs(estimator, check)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@checked_by_scikit_learn(
    {"dtype": "float64"},
    {"dtype": "float64", "early_stopping": True},
    {"dtype": "float32", "early_stopping": True},
    {"solver": "lbfgs"},
    {"solver": "sgd", "normalization": "layer", "residual": True},
)
def test_scikit_learn_at_length(estimator, check):
    fails_only_with_theirs(estimator, check)


def fails_only_with_theirs(estimator, check):
    """Nothing fails that does not fail with scikit-learn's own estimator."""
    try:
        check(estimator)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, ours had it too
            check(theirs_of(estimator))


# -------------------------------------------------------------------------- scikit-learn's numbers
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_names_order_and_defaults_are_those_of_scikit_learn(cls):
    theirs = inspect.signature(getattr(neural_network, cls.__name__)).parameters
    ours = inspect.signature(cls).parameters
    added = ["dropout", "normalization", "residual", "max_grad_norm", "dtype", "device", "precision", "callbacks"]
    added.insert(*((4, "class_weight") if cls is MLPClassifier else (1, "output_activation")))
    assert list(ours) == [*theirs, *added]
    assert {name: ours[name].default for name in theirs} == {name: theirs[name].default for name in theirs}
    assert {name: ours[name].kind for name in theirs} == {name: theirs[name].kind for name in theirs}
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)
    assert cls(**getattr(neural_network, cls.__name__)().get_params()).alpha == 1e-4


def task(kind, rows=90):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 5))
    if kind == "binary":
        return X, np.where(X[:, 0] + X[:, 1] > 0, "yes", "no")
    if kind == "classes":
        return X, (X[:, :3] + 0.1 * rng.normal(size=(rows, 3))).argmax(axis=1) * 10
    if kind == "labels":
        return X, (X[:, :3] + X[:, 1:4] > 0).astype(int)
    if kind == "counts":
        return X, rng.poisson(np.exp(X[:, 0] / 2))
    targets = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1)
    return X, targets if kind == "targets" else targets[:, 0]


def estimator(kind, **arguments):
    return (MLPClassifier if kind in LABELLED else MLPRegressor)(random_state=0, **arguments)


LABELLED = "binary", "classes", "labels"
KINDS = (*LABELLED, "target", "targets", "counts")


SETTINGS = [
    {"solver": "sgd", "learning_rate_init": 0.05},
    {"solver": "sgd", "alpha": 2.0, "shuffle": False, "activation": "tanh", "momentum": 0.5},
    {"solver": "sgd", "learning_rate": "invscaling", "nesterovs_momentum": False, "activation": "logistic"},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1, "activation": "identity"},
    {"solver": "sgd", "momentum": 0.0, "early_stopping": True, "validation_fraction": 0.3, "alpha": 0.0},
    {"solver": "adam", "learning_rate_init": 0.01, "beta_1": 0.8, "epsilon": 1e-4},
    {"solver": "adam", "alpha": 1.0, "activation": "tanh", "hidden_layer_sizes": (8, 6)},
    {"solver": "adam", "early_stopping": True, "validation_fraction": 0.3, "activation": "logistic"},
]


@unconverged
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_loss_curves_are_those_of_scikit_learn(kind, arguments, weighted):
    """The first 20 epochs in float64, the weights they leave, and what is predicted with them."""
    X, y = task(kind)
    weight = np.random.default_rng(1).uniform(0.1, 3, len(y)) if weighted else None
    arguments = {"hidden_layer_sizes": (8,), "batch_size": 20, "max_iter": 20} | arguments
    if kind == "counts":
        arguments |= {"loss": "poisson"}
    ours = estimator(kind, **arguments).fit(X, y, weight)
    theirs = theirs_of(ours).fit(X, y, weight)
    tolerance = 1e-10 if ours.solver == "sgd" else 1e-6
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=tolerance)
    if ours.early_stopping:
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=tolerance)
        np.testing.assert_allclose(ours.best_validation_score_, theirs.best_validation_score_, rtol=tolerance)
    else:
        np.testing.assert_allclose(ours.best_loss_, theirs.best_loss_, rtol=tolerance)
        assert ours.validation_scores_ is theirs.validation_scores_ is None
    for name in ("coefs_", "intercepts_"):
        for mine, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            np.testing.assert_allclose(mine, other, rtol=10 * tolerance, atol=tolerance)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours._no_improvement_count == theirs._no_improvement_count
    np.testing.assert_allclose(ours.predict(X) == theirs.predict(X) if kind in LABELLED else 1, 1)
    if kind in LABELLED:
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)
        np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), rtol=1e-4, atol=1e-7)
    else:
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-4)


@unconverged
@pytest.mark.parametrize("kind", KINDS)
def test_lbfgs_ends_where_that_of_scikit_learn_ends(kind):
    X, y = task(kind)
    arguments = {"loss": "poisson"} if kind == "counts" else {}
    ours = estimator(kind, solver="lbfgs", alpha=1.0, hidden_layer_sizes=(4,), max_iter=400, activation="tanh")
    ours = ours.set_params(**arguments).fit(X, y)
    theirs = theirs_of(ours).fit(X, y)
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-6)
    assert abs(ours.n_iter_ - theirs.n_iter_) <= 1
    assert ours.coefs_[0].dtype == np.float64
    short = estimator(kind, solver="lbfgs", max_iter=5).set_params(**arguments).fit(X, y)
    np.testing.assert_allclose(short.loss_, theirs_of(short).fit(X, y).loss_, rtol=1e-6)
    assert short.n_iter_ == 5
    assert not hasattr(short, "partial_fit")


# --------------------------------------------------------------------------------- beyond scikit-learn
def layers_of(model):
    return [type(layer).__name__ for layer in model.layers]


@unconverged
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize(
    ("loss", "cost"),
    [
        ("absolute_error", lambda e: np.abs(e)),
        ("huber", lambda e: np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5)),
        (fastbp.HuberLoss(delta=0.2), lambda e: np.where(np.abs(e) <= 0.2, e**2 / 2, 0.2 * (np.abs(e) - 0.1))),
        (fastbp.QuantileLoss(0.8), lambda e: np.maximum(-0.8 * e, 0.2 * e)),
    ],
    ids=["absolute", "huber", "huber-0.2", "quantile"],
)
def test_losses_of_regression(loss, cost, solver):
    """The reported loss is the mean over rows and outputs, with the penalty; the weights go down its slope."""
    X, y = task("targets")
    settings = {"solver": solver, "activation": "tanh", "batch_size": 90, "max_iter": 30, "hidden_layer_sizes": (6,)}
    fitted = estimator("targets", loss=loss, alpha=0.1, learning_rate_init=0.01, **settings).fit(X, y)
    start = estimator("targets", loss=loss, alpha=0.1, **settings | {"solver": "sgd", "max_iter": 1}).fit(X, y)
    after = cost(fitted.predict(X) - y).mean() + 0.05 * sum((w**2).sum() for w in fitted.coefs_) / 90
    again = estimator("targets", loss=loss, alpha=0.1, warm_start=True, **settings).fit(X, y)
    again.coefs_, again.intercepts_ = fitted.coefs_, fitted.intercepts_
    again.set_params(solver="sgd", max_iter=1).fit(X, y)
    np.testing.assert_allclose(again.loss_, after, rtol=1e-10)  # that before the update
    assert fitted.loss_ < start.loss_


@unconverged
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_huber_far_from_its_corner_is_the_squared_error(solver):
    """So both follow the gradient of the sum over outputs, with the same penalty."""
    X, y = task("targets")
    settings = {"solver": solver, "max_iter": 8, "alpha": 0.5, "batch_size": 20, "hidden_layer_sizes": (8,)}
    squared, huber = (
        estimator("targets", loss=loss, **settings).fit(X, y) for loss in ("squared_error", fastbp.HuberLoss(1e6))
    )
    for one, other in zip(squared.coefs_, huber.coefs_, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)
    np.testing.assert_allclose(squared.loss_, huber.loss_, rtol=1e-10)


@unconverged
def test_quantiles_and_activations_of_outputs():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    y = rng.exponential(size=400)
    settings = {"max_iter": 200, "learning_rate_init": 0.01, "hidden_layer_sizes": (8,), "random_state": 0}
    fitted = MLPRegressor(fastbp.QuantileLoss(0.9), output_activation="softplus", alpha=0.0, **settings).fit(X, y)
    assert 0.85 < (y <= fitted.predict(X)).mean() < 0.95
    assert fitted.out_activation_ == "softplus"
    assert layers_of(fitted.model_) == ["Linear", "ReLU", "Linear", "Softplus"]
    assert (fitted.predict(-1e3 * X) >= 0).all()


@unconverged
@pytest.mark.parametrize("kind", ["classes", "labels", "target"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_normalisation_and_residuals(kind, solver):
    X, y = task(kind)
    settings = {"hidden_layer_sizes": (6, 6, 4), "batch_size": 30, "max_iter": 12, "solver": solver, "dropout": 0.1}
    fitted = estimator(kind, normalization="batch", residual=True, learning_rate_init=0.05, **settings).fit(X, y)
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert layers_of(fitted.model_) == [*block, "Residual", *block, "Linear"]
    assert layers_of(fitted.model_.layers[4]) == block
    assert [weight.shape for weight in fitted.coefs_[:3]] == [(5, 6), (6, 6), (6, 4)]
    norm = fitted.model_.layers[1]
    assert not (norm.running_mean == 0).any()
    before = fitted.predict(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), before)
    fitted.coefs_[0] = 2 * fitted.coefs_[0]
    assert fitted.model_.layers[1] is norm
    statistics = norm.running_var.copy()
    assert not np.array_equal(fitted.set_params(activation="tanh").predict(X), before)
    np.testing.assert_array_equal(fitted.model_.layers[1].running_var, statistics)
    assert estimator(kind, normalization="layer", **settings).fit(X, y).loss_curve_ or solver == "lbfgs"


@unconverged
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_schedules_and_clipping(solver):
    X, y = task("classes")
    settings = {"solver": solver, "batch_size": 30, "max_iter": 5, "hidden_layer_sizes": (8,)}
    schedule = fastbp.StepSchedule(0.01, every=3, factor=0.5)  # three updates an epoch
    fitted = estimator("classes", learning_rate=schedule, **settings).fit(X, y)
    assert fitted.model_.history["lr"] == [0.01, 0.005, 0.0025, 0.00125, 0.000625]
    constant = estimator("classes", learning_rate=lambda step: 0.001, **settings).fit(X, y)
    np.testing.assert_array_equal(constant.coefs_[0], estimator("classes", **settings).fit(X, y).coefs_[0])
    plain, wide = (estimator("classes", max_grad_norm=norm, **settings).fit(X, y) for norm in (None, 1e9))
    np.testing.assert_allclose(plain.loss_curve_, wide.loss_curve_, rtol=1e-9)
    if solver == "sgd":  # a step is no longer than rate times norm
        one = {"momentum": 0.0, "max_iter": 1, "batch_size": 90, "learning_rate_init": 0.1}
        start = estimator("classes", **settings | one | {"learning_rate_init": 1e-300}).fit(X, y)
        moved = estimator("classes", max_grad_norm=0.01, **settings | one).fit(X, y)
        step = start.model_.flat_parameters - moved.model_.flat_parameters
        np.testing.assert_allclose(np.linalg.norm(step), 0.001, rtol=1e-6)


@unconverged
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(activation):
    X, y = task("target")
    fitted = estimator("target", activation=activation, max_iter=30, learning_rate_init=0.01).fit(X, y)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_all_activations_of_the_library_are_there():
    classes = {cls for cls in vars(fastbp).values() if isinstance(cls, type) and issubclass(cls, Activation)}
    assert set(ACTIVATIONS.values()) == classes


# ------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("kind", ["binary", "classes", "target", "targets"])
def test_learns(kind):
    X, y = task(kind, 600)
    settings = {"hidden_layer_sizes": 32, "learning_rate_init": 0.02, "batch_size": 32, "max_iter": 150}
    fitted = estimator(kind, early_stopping=True, **settings)
    assert fitted.fit(X[:400], y[:400]) is fitted
    assert fitted.score(X[400:], y[400:]) > 0.85


@unconverged
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_early_stopping_puts_the_best_weights_back(kind, given):
    X, y = task(kind, 200)
    held_out = {"X_val": X[100:], "y_val": y[100:]} if given else {}
    settings = {"learning_rate_init": 0.05, "n_iter_no_change": 3, "validation_fraction": 0.3}
    fitted = estimator(kind, early_stopping=True, **settings).fit(X[:100], y[:100], **held_out)
    assert len(fitted.validation_scores_) == len(fitted.loss_curve_) == fitted.n_iter_ < 200
    assert fitted.best_loss_ is None
    assert fitted.best_validation_score_ == max(fitted.validation_scores_)
    if given:
        assert fitted.score(X[100:], y[100:]) == pytest.approx(fitted.best_validation_score_)


@unconverged
@pytest.mark.parametrize("kind", KINDS)
def test_validation_data_alone_change_nothing(kind):
    X, y = task(kind)
    fitted, plain = (estimator(kind, max_iter=4) for _ in range(2))
    fitted.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert fitted.validation_scores_[-1] == pytest.approx(fitted.score(X[60:], y[60:]))
    assert None not in fitted.validation_loss_curve_
    assert fitted.validation_loss_curve_ == fitted.model_.history["val_loss"]
    np.testing.assert_array_equal(fitted.coefs_[0], plain.fit(X[:60], y[:60]).coefs_[0])
    assert plain.validation_scores_ is None
    assert plain.validation_loss_curve_ is None


@unconverged
@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_is_fit_an_epoch_at_a_time(kind):
    X, y = task(kind)
    whole = estimator(kind, max_iter=4, dropout=0.2, batch_size=20, shuffle=False).fit(X, y)
    parts = estimator(kind, dropout=0.2, batch_size=20, shuffle=False)
    classes = {"classes": np.unique(y) if kind != "labels" else range(3)} if isinstance(parts, MLPClassifier) else {}
    for _ in range(2):
        parts.partial_fit(X, y, **classes)
    parts = pickle.loads(pickle.dumps(parts))
    for _ in range(2):
        parts.partial_fit(X, y)
    np.testing.assert_array_equal(parts.predict(X), whole.predict(X))
    np.testing.assert_array_equal(parts.coefs_[0], whole.coefs_[0])
    assert parts.loss_curve_ == whole.loss_curve_


@unconverged
def test_warm_start_goes_on():
    X, y = task("classes")
    fitted = estimator("classes", max_iter=3, warm_start=True).fit(X, y)
    model, first = fitted.model_, list(fitted.loss_curve_)
    fitted.fit(X, y)
    assert fitted.model_ is model
    assert fitted.loss_curve_[:3] == first
    assert len(fitted.loss_curve_) == 6
    assert fitted.loss_curve_[3] < first[0]
    assert estimator("classes", max_iter=3).fit(X, y).fit(X, y).loss_curve_ == first


@unconverged
@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_class_weights_are_sample_weights(kind):
    X, y = task(kind)
    names, counts = np.unique(y, return_counts=True)
    by_class = dict(zip(names, len(y) / (len(names) * counts), strict=True))
    weight = np.array([by_class[name] for name in y])
    expected = estimator(kind, max_iter=3).fit(X, y, sample_weight=weight * 2).predict_proba(X)
    for class_weight in ("balanced", by_class):
        fitted = estimator(kind, max_iter=3, class_weight=class_weight).fit(X, y, sample_weight=np.full(len(y), 2))
        np.testing.assert_allclose(fitted.predict_proba(X), expected, rtol=1e-5)


def test_convergence_warning():
    X, y = task("target")
    with pytest.warns(ConvergenceWarning, match=r"Stochastic Optimizer: Maximum iterations \(2\) reached") as caught:
        estimator("target", max_iter=2).fit(X, y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator("target", tol=10.0).fit(X, y)
        estimator("target", max_iter=1).partial_fit(X, y)


@unconverged
def test_network_callbacks_and_verbose(capsys):
    class Count:
        epochs = 0

        def on_epoch_end(self, model, record):
            self.epochs += 1
            return self.epochs == 3

    count = Count()
    fitted = estimator("classes", hidden_layer_sizes=(8, 4), activation="gelu", dropout=0.1, verbose=True)
    fitted.set_params(callbacks=[count]).fit(*task("classes"))
    assert count.epochs == fitted.n_iter_ == 3
    assert [type(layer).__name__ for layer in fitted.model_.layers] == ["Linear", "GELU", "Dropout"] * 2 + ["Linear"]
    assert [line[:12] for line in capsys.readouterr().out.splitlines()] == [f"Iteration {i}," for i in (1, 2, 3)]


@unconverged
@pytest.mark.parametrize(
    "settings", [{"solver": "sgd", "nesterovs_momentum": False}, {"solver": "adam", "epsilon": 0.01}]
)
@pytest.mark.parametrize("kind", ["classes", "labels", "targets", "counts"])
def test_a_file_keeps_the_optimizer_of_an_estimator(tmp_path, kind, settings):
    """Trained on with it, a loaded network is what the network of the estimator becomes, to the bit."""
    X, y = task(kind)
    fitted = estimator(kind, max_iter=3, batch_size=20, alpha=0.0, **settings).fit(X, y)
    fitted.model_.save(tmp_path / "model.npz", optimizer=fitted.model_.optimizer)
    loaded = fastbp.load(tmp_path / "model.npz")
    assert repr(loaded.last_loss) == repr(fitted.model_.last_loss)
    assert loaded.optimizer.step_count == fitted.model_.optimizer.step_count == 15
    for model in (fitted.model_, loaded):
        arguments = {"loss": model.last_loss, "optimizer": model.optimizer, "batch_size": 20, "verbose": False}
        model.fit(X, fitted._target(y), epochs=2, shuffle=False, **arguments)
    np.testing.assert_array_equal(loaded.flat_parameters, fitted.model_.flat_parameters)


@unconverged
def test_a_file_does_not_keep_a_schedule_that_it_would_have_to_scale(tmp_path):
    X, y = task("labels")
    schedule = fastbp.CosineSchedule(0.01, steps=40)
    fitted = estimator("labels", max_iter=1, solver="sgd", learning_rate=schedule).fit(X, y)
    fitted.model_.save(tmp_path / "model.npz", optimizer=fitted.model_.optimizer)
    with pytest.raises(RuntimeError, match="the lr of this optimizer was a function, which a file cannot hold"):
        fastbp.load(tmp_path / "model.npz").optimizer.lr(0)


@unconverged
def test_dtype_and_device_are_those_of_the_network():
    X, y = task("target")
    fitted = estimator("target", dtype="float64", device="reference", max_iter=2).fit(X, y)
    assert (fitted.model_.dtype, fitted.model_.device) == ("float64", "reference")
    assert fitted.predict(X).dtype == np.float64
    expected = estimator("target", dtype="float64", max_iter=2).fit(X, y).predict(X)
    np.testing.assert_allclose(fitted.predict(X), expected, rtol=1e-10)


@unconverged
def test_pickles_hold_no_training_data():
    X, y = task("classes", 20_000)
    fitted = estimator("classes", hidden_layer_sizes=4, max_iter=1).fit(X, y)
    data = pickle.dumps(fitted)
    assert len(data) < X.nbytes / 20
    np.testing.assert_array_equal(pickle.loads(data).predict(X), fitted.predict(X))


@unconverged
def test_pipeline_and_grid_search():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(random_state=0, max_iter=5))
    search = GridSearchCV(pipeline, {"mlpclassifier__hidden_layer_sizes": [(4,), (8, 8)]}, cv=2)
    assert search.fit(*task("binary")).best_score_ > 0.3


@unconverged
def test_names_of_a_data_frame():
    pandas = pytest.importorskip("pandas")
    X, y = task("binary")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    fitted = estimator("binary", max_iter=1).fit(frame, pandas.Series(y))
    assert list(fitted.feature_names_in_) == list("abcde")
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[list("edcba")])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "step"}, ValueError, "activation must be one of 'identity', 'logistic'"),
        ({"solver": "newton"}, ValueError, "solver must be one of 'lbfgs', 'sgd', 'adam'"),
        ({"learning_rate": "fast"}, ValueError, "learning_rate must be one of 'constant'"),
        ({"loss": "huge"}, ValueError, "loss must be one of 'squared_error', 'poisson', 'absolute_error', 'huber'"),
        ({"loss": fastbp.CrossEntropyLoss()}, ValueError, "loss must be one of"),
        ({"output_activation": "step"}, ValueError, "output_activation must be one of"),
        ({"output_activation": "relu", "loss": "poisson"}, ValueError, "output_activation must be None for loss="),
        ({"normalization": "group"}, ValueError, "normalization must be one of 'batch', 'layer'"),
        ({"normalization": "batch", "batch_size": 89}, ValueError, "cannot train on a batch of one row, and 90 rows"),
        ({"residual": 1}, TypeError, "residual must be True or False"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be above 0"),
        ({"hidden_layer_sizes": (8, 0)}, ValueError, r"hidden_layer_sizes\[1\] must be at least 1"),
        ({"hidden_layer_sizes": (8.0,)}, TypeError, r"hidden_layer_sizes\[0\] must be an integer"),
        ({"alpha": -1.0}, ValueError, "alpha must be at least 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"learning_rate_init": 0.0}, ValueError, "learning_rate_init must be above 0"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change must be at least 1"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1"),
        ({"dtype": "int8"}, ValueError, "dtype must be"),
        ({"device": "abacus"}, ValueError, "device must be one of"),
        (
            {"early_stopping": True, "validation_fraction": 0.01},
            ValueError,
            "The validation set is too small.* leaves 1, and 2 are needed",
        ),
    ],
)
def test_refused_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        estimator("target", **arguments).fit(*task("target"))


@unconverged
def test_refused_data():
    X, y = task("classes")
    fitted = estimator("classes", max_iter=1)
    with pytest.raises(ValueError, match="X_val and y_val must come together"):
        fitted.fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        fitted.partial_fit(X, y)
    fitted.partial_fit(X, y, classes=[0, 10, 20])
    with pytest.raises(ValueError, match="must be those of the first call"):
        fitted.partial_fit(X, y, classes=[0, 10])
    with pytest.raises(ValueError, match="y must hold classes among"):
        fitted.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="does not support early_stopping=True"):
        fitted.set_params(early_stopping=True).partial_fit(X, y)
    with pytest.raises(ValueError, match="needs all rows at once"):
        fitted.set_params(class_weight="balanced").partial_fit(X, y)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    for name in [name for name in sys.modules if name.startswith("fastbp.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(fastbp, "sklearn")
    with pytest.raises(ImportError, match=r"fastbp\[sklearn\]"):
        importlib.import_module("fastbp.sklearn")
