"""scikit-learn's own tests of its networks, on ours: the names that its file imports are ours while it is executed."""

import importlib.util

import pytest

pytest.importorskip("sklearn", minversion="1.7")
from sklearn import neural_network

from fastbp.sklearn import MLPClassifier, MLPRegressor

# At most ten, each with its reason.
EXCEPTIONS = {
    "test_gradient": "it calls the private method _loss_grad_lbfgs; tests/test_mathematics.py differentiates ours",
}


def executed():
    """The module of scikit-learn's tests, with our estimators."""
    spec = importlib.util.find_spec("sklearn.neural_network.tests.test_mlp")
    if spec is None:
        pytest.skip("scikit-learn is installed without its tests", allow_module_level=True)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neural_network, "MLPClassifier", MLPClassifier)
        patch.setattr(neural_network, "MLPRegressor", MLPRegressor)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def global_random_seed():
    """What scikit-learn's own configuration of pytest gives."""
    return 42


TESTS = {name: test for name, test in vars(executed()).items() if name.startswith("test_")}
globals().update({name: test for name, test in TESTS.items() if name not in EXCEPTIONS})


def test_exceptions_are_few_and_exist():
    assert len(EXCEPTIONS) <= 10
    assert set(EXCEPTIONS) <= set(TESTS)
