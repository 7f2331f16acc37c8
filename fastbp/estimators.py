"""Networks from scikit-learn's fitted ``MLPClassifier`` and ``MLPRegressor``, and such estimators from networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import chains, checks
from .layers import Activation, Identity, Linear, ReLU, Sigmoid, Tanh
from .losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, PoissonLoss
from .model import Sequential

HIDDEN = {"identity": Identity, "logistic": Sigmoid, "tanh": Tanh, "relu": ReLU}
LOSSES = {"softmax": CrossEntropyLoss, "logistic": BCEWithLogitsLoss, "exp": PoissonLoss}
CLASSES = "classes"  # of the metadata of a model


def _package():
    try:
        import sklearn.neural_network
        import sklearn.preprocessing
        import sklearn.utils.validation
    except ImportError:
        raise ImportError(
            'scikit-learn\'s estimators need the package scikit-learn: pip install "fastbp[sklearn]"'
        ) from None
    return sklearn


def from_sklearn(
    estimator: Any, *, dtype: DTypeLike | None = None, device: str = "cpu", seed: int | None = None
) -> Sequential:
    """A network that computes what a fitted estimator of scikit-learn does, with copies of its parameters.

    Parameters
    ----------
    estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
        Fitted.
    dtype : str, optional
        By default that of the estimator's weights.
    device : str
        Where the model is to compute.
    seed : int, optional
        Of the generator of the model, for shuffling.

    Returns
    -------
    Sequential
        ``predict`` gives what stands before the estimator's last function: the logits of a classifier, whose
        probabilities ``predict_proba`` gives (of two classes that of the second), the values of a regressor, and their
        logarithms where its loss is ``"poisson"``. ``metadata["classes"]`` has the classes of a classifier.

    Raises
    ------
    ImportError
        scikit-learn is not there.
    TypeError
        It is no such estimator; one of `fastbp.sklearn` has its network as ``model_``.
    ValueError
        It is not fitted.
    """
    sklearn = _package()
    kinds = sklearn.neural_network.MLPClassifier, sklearn.neural_network.MLPRegressor
    if not isinstance(estimator, kinds) or type(estimator)._forward_pass_fast is not kinds[0]._forward_pass_fast:
        raise TypeError(
            f"estimator must be scikit-learn's MLPClassifier or MLPRegressor, got {type(estimator).__module__}."
            f"{type(estimator).__name__}; the estimators of fastbp.sklearn have their network as model_"
        )
    sklearn.utils.validation.check_is_fitted(estimator)
    layers: list[Any] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        linear = Linear(*weight.shape)
        linear.weight, linear.bias = weight, bias
        layers += [linear, HIDDEN[estimator.activation]()]
    dtype = estimator.coefs_[0].dtype if dtype is None else dtype
    model = Sequential(*layers[:-1], dtype=dtype, device=device, seed=seed)
    if estimator.out_activation_ in LOSSES:
        model.remember_loss(LOSSES[estimator.out_activation_]())
    if isinstance(estimator, kinds[0]) and estimator.classes_.dtype.kind in "iufbU":
        model.metadata[CLASSES] = estimator.classes_.tolist()
    return model


def to_sklearn(model: Sequential, classes: ArrayLike | None = None) -> Any:
    """A fitted estimator of scikit-learn that predicts what a network does, with copies of its parameters.

    A network that was trained with `CrossEntropyLoss`, `BCEWithLogitsLoss` or `BCELoss`, and one for which ``classes``
    are given, becomes an ``MLPClassifier``, any other an ``MLPRegressor``, for `PoissonLoss` with that loss.

    Parameters
    ----------
    model : Sequential
        Of ``Linear`` with one activation, the same after each but the last: ``Identity``, ``ReLU``, ``Tanh`` or
        ``Sigmoid``. Dropout is left out. A ``Sigmoid`` at the end that was trained with `BCELoss` is the estimator's.
    classes : array, optional
        What the classifier is to predict, in the order of the outputs; of one output two, or one a label. By default
        ``model.metadata["classes"]``, or ``0, 1, …``.

    Returns
    -------
    MLPClassifier or MLPRegressor
        With all fitted attributes, so that ``predict``, ``predict_proba``, ``score`` and ``partial_fit`` work. Two
        outputs of `CrossEntropyLoss` become the one of scikit-learn's: their difference.

    Raises
    ------
    ImportError
        scikit-learn is not there.
    ValueError
        A layer has no counterpart there; ``classes`` are not as many as the outputs say.
    """
    sklearn = _package()
    checks.instance("model", model, Sequential)
    weights, biases, activation, squashed = _chain(model)
    loss, outputs = model._loss, weights[-1].shape[1]
    binary = isinstance(loss, BCEWithLogitsLoss | BCELoss)
    if squashed != isinstance(loss, BCELoss):
        raise ValueError(
            "the last layer must be a Linear, or a Sigmoid in a model that was trained with BCELoss; got "
            f"{model.layers[-1]!r} and the loss {loss!r}"
        )
    if classes is None and (binary or isinstance(loss, CrossEntropyLoss)):
        classes = model.metadata.get(CLASSES, np.arange(2 if outputs == 1 else outputs))
    widths = tuple(weight.shape[1] for weight in weights[:-1])
    arguments: dict[str, Any] = {"hidden_layer_sizes": widths, "activation": activation}
    if classes is None:
        poisson = isinstance(loss, PoissonLoss)
        estimator = sklearn.neural_network.MLPRegressor(**arguments | ({"loss": "poisson"} if poisson else {}))
        estimator.out_activation_ = "exp" if poisson else "identity"
    else:
        estimator = sklearn.neural_network.MLPClassifier(**arguments)
        estimator.classes_ = np.asarray(classes)
        if estimator.classes_.shape != (2 if outputs == 1 else outputs,):
            raise ValueError(f"classes must be {2 if outputs == 1 else outputs} for {outputs} outputs, got {classes!r}")
        several = binary and outputs > 1
        if outputs == 2 and not several:
            weights[-1], biases[-1] = (np.diff(array) for array in (weights[-1], biases[-1]))
            outputs = 1
        estimator.out_activation_ = "logistic" if several or outputs == 1 else "softmax"
        binarizer = sklearn.preprocessing.LabelBinarizer()
        estimator._label_binarizer = binarizer.fit(np.eye(outputs, dtype=int) if several else estimator.classes_)
        if not several and (binarizer.classes_ != estimator.classes_).any():
            raise ValueError(f"classes must be in rising order, as scikit-learn has them, got {classes!r}")
    curve = [] if model.history is None else [float(epoch["loss"]) for epoch in model.history]
    estimator.coefs_, estimator.intercepts_ = weights, biases
    estimator._best_coefs = [weight.copy() for weight in weights]
    estimator._best_intercepts = [bias.copy() for bias in biases]
    estimator.n_features_in_, estimator.n_outputs_, estimator.n_layers_ = model.in_features, outputs, len(weights) + 1
    estimator.loss_curve_, estimator.n_iter_, estimator.t_ = curve, len(curve), 0
    estimator.loss_, estimator.best_loss_ = (curve[-1], min(curve)) if curve else (math.nan, math.inf)
    estimator.validation_scores_ = estimator.best_validation_score_ = None
    estimator._random_state, estimator._no_improvement_count = np.random.RandomState(), 0
    return estimator


def _chain(model):
    """(weights, biases, the activation of the hidden layers as scikit-learn calls it, whether a Sigmoid ends it)."""
    state, weights, biases, after = model.state_dict(), [], [], []
    for step in chains.steps(model.layers):
        if isinstance(step.layer, Linear):
            weights.append(state[f"{step.name}.weight"])
            biases.append(state.get(f"{step.name}.bias", np.zeros(step.layer.out_features, model.dtype)))
            after.append("identity")
        elif isinstance(step.layer, Activation) and after and after[-1] == "identity":
            after[-1] = step.layer.name
        elif not isinstance(step.layer, Identity):
            raise ValueError(f"scikit-learn's networks have no {step.layer!r} (layer {step.name}) at that place")
    names = {layer.name: name for name, layer in HIDDEN.items()}
    hidden, last = set(after[:-1]), after[-1]
    if len(hidden) > 1 or not hidden <= names.keys():
        raise ValueError(
            f"the hidden layers must have one activation of {', '.join(names)}, the same for all; got {sorted(hidden)}"
        )
    if last not in ("identity", "sigmoid"):
        raise ValueError(f"scikit-learn's networks end with a Linear, got {last} after it")
    return weights, biases, names[hidden.pop()] if hidden else "identity", last == "sigmoid"
