"""Networks from scikit-learn's own estimators and back: the same predictions there and here."""

import numpy as np
import pytest

import fastbp

sklearn_networks = pytest.importorskip("sklearn.neural_network")
MLPClassifier, MLPRegressor = sklearn_networks.MLPClassifier, sklearn_networks.MLPRegressor
pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def data(rng, kind, n=60):
    """X with as many features as the first hidden layer has units, so that its weight is square."""
    X = rng.normal(size=(n, 5))
    targets = {
        "real": X[:, 0] - X[:, 1],
        "reals": X[:, :2] * [1, -2],
        "counts": rng.poisson(np.exp(X[:, 0])),
        "two": np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)],
        "three": np.digitize(X[:, 0], [-0.5, 0.5]) * 10,
        "labels": (X[:, :3] > 0).astype(int),
    }
    return X, targets[kind]


def fitted(kind, X, y, **arguments):
    cls = MLPClassifier if kind in ("two", "three", "labels") else MLPRegressor
    if kind == "counts":
        arguments["loss"] = "poisson"
    arguments = {"hidden_layer_sizes": (5, 5), "max_iter": 10, "random_state": 0} | arguments
    return cls(**arguments).fit(X, y)


def same(estimator, model, X, rtol=1e-9):
    """Whether the network predicts what the estimator does."""
    raw, own = model.predict(X), estimator.predict(X)
    if isinstance(estimator, MLPClassifier):
        p = estimator.predict_proba(X)
        if p.shape[1] == 2 and raw.shape[1] == 1:
            p = p[:, 1:]
        np.testing.assert_allclose(model.predict_proba(X), p, rtol=rtol)
    else:
        raw = np.exp(raw) if estimator.out_activation_ == "exp" else raw
        np.testing.assert_allclose(raw.reshape(own.shape), own, rtol=rtol, atol=rtol)


KINDS = ["real", "reals", "counts", "two", "three", "labels"]


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(rng, kind, activation, device):
    X, y = data(rng, kind)
    estimator = fitted(kind, X, y, activation=activation)
    model = fastbp.from_sklearn(estimator, device=device)
    assert model.dtype == np.float64
    assert model.device == device
    np.testing.assert_array_equal(model[0].weight, estimator.coefs_[0])
    same(estimator, model, X)
    back = fastbp.to_sklearn(model)
    assert type(back) is type(estimator)
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))
    if isinstance(estimator, MLPClassifier):
        np.testing.assert_array_equal(back.classes_, estimator.classes_)
        np.testing.assert_array_equal(back.predict_proba(X), estimator.predict_proba(X))
    assert back.score(X, y) == estimator.score(X, y)
    missing = {name for name in vars(estimator) if name.endswith("_")} - set(vars(back))
    assert not missing
    back.partial_fit(X, y)  # all that training goes on with is there
    assert not np.array_equal(back.coefs_[0], estimator.coefs_[0])
    np.testing.assert_array_equal(model[0].weight, estimator.coefs_[0])  # copies


def test_float32_stays(rng):
    X, y = data(rng, "three")
    estimator = fitted("three", X.astype(np.float32), y)
    model = fastbp.from_sklearn(estimator)
    assert model.dtype == np.float32
    same(estimator, model, X.astype(np.float32), rtol=1e-5)
    assert fastbp.to_sklearn(model).coefs_[0].dtype == np.float32
    assert fastbp.from_sklearn(estimator, dtype="float64").dtype == np.float64


@pytest.mark.parametrize(
    ("kind", "outputs", "loss", "end"),
    [
        ("three", 3, fastbp.CrossEntropyLoss(), []),
        ("two", 2, fastbp.CrossEntropyLoss(), []),
        ("two", 1, fastbp.BCEWithLogitsLoss(), []),
        ("two", 1, fastbp.BCELoss(), [fastbp.Sigmoid]),
        ("labels", 3, fastbp.BCEWithLogitsLoss(), []),
        ("reals", 2, fastbp.HuberLoss(), []),
        ("counts", 1, fastbp.PoissonLoss(), []),
    ],
)
def test_networks_that_were_trained_here(rng, kind, outputs, loss, end):
    X, y = data(rng, kind)
    hidden = fastbp.Linear(5, 5, bias=False), fastbp.Tanh(), fastbp.Dropout(0.2), fastbp.Linear(5, 6), fastbp.Tanh()
    model = fastbp.Sequential(*hidden, fastbp.Linear(6, outputs), *(layer() for layer in end), dtype="float64", seed=0)
    target = np.unique(y, return_inverse=True)[1] if kind in ("two", "three") else y
    history = model.fit(X, target, loss=loss, optimizer=fastbp.Adam(lr=0.01), epochs=5, verbose=False)
    names = {"two": ["no", "yes"], "three": [0, 10, 20]}.get(kind)
    estimator = fastbp.to_sklearn(model, classes=names)
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 5
    assert estimator.loss_ == history[-1]["loss"]
    if kind == "two" and outputs == 2:
        np.testing.assert_allclose(estimator.predict_proba(X), model.predict_proba(X), rtol=1e-12)
        assert estimator.out_activation_ == "logistic"
        np.testing.assert_array_equal(estimator.predict(X), np.array(names)[model.predict(X).argmax(axis=1)])
    else:
        same(estimator, model, X)
    assert set(np.unique(estimator.predict(X))) <= set(np.unique(y)) or kind in ("reals", "counts")
    same(estimator, fastbp.from_sklearn(estimator), X)


def test_classes_stay_in_files(rng, tmp_path):
    X, y = data(rng, "two")
    estimator = fitted("two", X, y)
    fastbp.from_sklearn(estimator).save(tmp_path / "model.npz")
    back = fastbp.to_sklearn(fastbp.load(tmp_path / "model.npz"))
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))


class Doubled(MLPRegressor):
    def _forward_pass_fast(self, X, check_input=True):
        return 2 * super()._forward_pass_fast(X, check_input)


def test_what_is_no_estimator_of_theirs(rng):
    own = pytest.importorskip("fastbp.sklearn")
    X, y = data(rng, "real")
    with pytest.raises(TypeError, match=r"fastbp\.sklearn have their network as model_"):
        fastbp.from_sklearn(own.MLPRegressor(max_iter=1).fit(X, y))
    with pytest.raises(TypeError, match="scikit-learn's MLPClassifier or MLPRegressor, got"):
        fastbp.from_sklearn(Doubled(max_iter=1).fit(X, y))
    with pytest.raises(ValueError, match="not fitted"):
        fastbp.from_sklearn(MLPRegressor())


def chain(*layers, loss=None):
    model = fastbp.Sequential(*layers)
    if loss is not None:
        model.remember_loss(loss)
    return model


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        (chain(fastbp.Linear(2, 2), fastbp.LayerNorm(2), fastbp.Linear(2, 1)), None, r"have no LayerNorm\(.*layer 1"),
        (chain(fastbp.Residual(fastbp.Linear(2, 2)), fastbp.Linear(2, 1)), None, r"have no Residual"),
        (chain(fastbp.Tanh(), fastbp.Linear(2, 2)), None, r"have no Tanh\(\) \(layer 0\)"),
        (chain(fastbp.Linear(2, 2), fastbp.Tanh(), fastbp.ReLU(), fastbp.Linear(2, 1)), None, r"ReLU\(\) \(layer 2\)"),
        (
            chain(fastbp.Linear(2, 2), fastbp.Tanh(), fastbp.Linear(2, 2), fastbp.ReLU(), fastbp.Linear(2, 1)),
            None,
            r"the same for all; got \['relu', 'tanh'\]",
        ),
        (chain(fastbp.Linear(2, 2), fastbp.GELU(), fastbp.Linear(2, 1)), None, r"got \['gelu'\]"),
        (chain(fastbp.Linear(2, 2), fastbp.Tanh()), None, "end with a Linear, got tanh"),
        (chain(fastbp.Linear(2, 2), fastbp.Sigmoid()), None, "a Sigmoid in a model that was trained with BCELoss"),
        (chain(fastbp.Linear(2, 3), loss=fastbp.CrossEntropyLoss()), ["a", "b"], "classes must be 3 for 3 outputs"),
        (chain(fastbp.Linear(2, 1), loss=fastbp.BCEWithLogitsLoss()), ["a"], "classes must be 2 for 1 outputs"),
        (chain(fastbp.Linear(2, 2), loss=fastbp.CrossEntropyLoss()), ["b", "a"], "in rising order"),
    ],
)
def test_networks_that_are_none_of_scikit_learn(model, classes, message):
    with pytest.raises(ValueError, match=message):
        fastbp.to_sklearn(model, classes=classes)
