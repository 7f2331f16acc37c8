"""The measures are those of scikit-learn, and defined where theirs are."""

import numpy as np
import pytest

from fastbp import metrics

measures = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification(classes):
    rng = np.random.default_rng(classes)
    probability = rng.dirichlet(np.ones(classes), 200).round(1) + 1e-3  # with ties
    probability /= probability.sum(axis=1, keepdims=True)
    labels = rng.integers(0, classes, 200)
    predicted = probability.argmax(axis=1)
    scores = probability[:, 1] if classes == 2 else probability
    expected = {
        "accuracy": measures.accuracy_score(labels, predicted),
        "balanced acc.": measures.balanced_accuracy_score(labels, predicted),
        "F1": measures.f1_score(labels, predicted, average="macro"),
        "ROC AUC": measures.roc_auc_score(labels, scores, multi_class="ovr"),
        "log loss": measures.log_loss(labels, probability),
    }
    found = metrics.classification(probability, labels)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)
    matrix = metrics.confusion(predicted, labels, classes)
    np.testing.assert_array_equal(matrix, measures.confusion_matrix(labels, predicted))


def test_classes_that_are_not_there():
    found = metrics.classification(np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1]]), np.array([0, 0]))
    assert (found["accuracy"], found["balanced acc."], found["F1"]) == (1, 1, 1)
    assert np.isnan(found["ROC AUC"])


def test_regression():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 50))
    expected = {
        "R²": measures.r2_score(target, prediction),
        "RMSE": measures.root_mean_squared_error(target, prediction),
        "MAE": measures.mean_absolute_error(target, prediction),
    }
    assert metrics.regression(prediction, target) == pytest.approx(expected)
