"""The compiled kernels beside the reference, over networks, losses, optimizers, dtypes and batches that are drawn.

In float64 both backends compute the same but for the order of sums; what is compiled in float32 is compared with the
reference in float64 of the same weights.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

import fastbp
from fastbp.kernels import layout

from .contract import cases

LR = 2.0**-5
EXPLOSION = 1e3  # a change of weights by which a training runs away: float32 overflows where float64 does not
LOSSES = {
    "half_squared_error": fastbp.HalfSquaredErrorLoss,
    "mean_squared_error": fastbp.MSELoss,
    "cross_entropy": fastbp.CrossEntropyLoss,
    "soft_cross_entropy": lambda: fastbp.CrossEntropyLoss(label_smoothing=0.1),  # with probabilities as targets
    "l1": fastbp.L1Loss,
    "huber": fastbp.HuberLoss,
    "binary_cross_entropy": fastbp.BCELoss,
    "binary_cross_entropy_with_logits": fastbp.BCEWithLogitsLoss,
    "poisson": fastbp.PoissonLoss,
    "quantile": lambda: fastbp.QuantileLoss(0.25),
}
# An eps far above the rounding of a gradient, by whose size these divide.
OPTIMIZERS = {
    "sgd": lambda: fastbp.SGD(lr=LR, weight_decay=1e-3),
    "momentum": lambda: fastbp.SGD(lr=LR, momentum=0.5),
    "nesterov": lambda: fastbp.SGD(lr=LR, momentum=0.5, nesterov=True),
    "rmsprop": lambda: fastbp.RMSProp(lr=LR, eps=1e-2),
    "adam": lambda: fastbp.AdamW(lr=LR, eps=1e-2),
    "lion": lambda: fastbp.Lion(lr=LR),
    "amsgrad": lambda: fastbp.Adam(lr=LR, eps=1e-2, amsgrad=True),
}
ACTIVATIONS = {
    "identity": fastbp.Identity,
    "relu": fastbp.ReLU,
    "tanh": fastbp.Tanh,
    "sigmoid": fastbp.Sigmoid,
    "leaky_relu": fastbp.LeakyReLU,
    "elu": fastbp.ELU,
    "selu": fastbp.SELU,
    "gelu": fastbp.GELU,
    "gelu_tanh": lambda: fastbp.GELU(approximate="tanh"),
    "silu": fastbp.SiLU,
    "softplus": fastbp.Softplus,
    "mish": fastbp.Mish,
}
SIZES = st.sampled_from((1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100))


def test_every_name_of_the_contract_is_drawn():
    assert LOSSES.keys() == set(layout.LOSSES)
    assert OPTIMIZERS.keys() == set(layout.OPTIMIZERS)
    assert ACTIVATIONS.keys() == set(layout.ACTIVATIONS)


@st.composite
def trainings(draw):
    """What one training needs, and all of it in the report of a failure."""
    loss = draw(st.sampled_from(layout.LOSSES))
    layers = draw(
        st.lists(
            st.tuples(
                SIZES,
                st.sampled_from(layout.ACTIVATIONS),
                st.sampled_from(("", "", "layer_norm", "batch_norm")),
                st.sampled_from((0.0, 0.0, 0.5)),  # dropout
                st.booleans(),  # a bias
                st.booleans(),  # a residual block after it
            ),
            max_size=3,
        )
    )
    return {
        "loss": loss,
        "layers": layers,
        "features": draw(SIZES),
        "outputs": draw(SIZES.filter(lambda n: n > 1 or loss not in cases.SOFTMAX_LOSSES)),
        "optimizer": draw(st.sampled_from(layout.OPTIMIZERS)),
        "dtype": draw(st.sampled_from(("float32", "float64"))),
        "batch": draw(st.sampled_from((1, 2, 3, 7, 8, 13, 16, 33, 64, 77))),
        "rest": draw(st.booleans()),  # a last batch that is shorter
        "weights": draw(st.booleans()),
        "x_dtype": draw(st.sampled_from((np.float32, np.float64, np.uint8, np.bool_))),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def network(training, dtype, device):
    """The network of a training, its weights drawn in float64."""
    fan_in, layers = training["features"], []
    for units, activation, norm, dropout, bias, residual in training["layers"]:
        block = [fastbp.Linear(fan_in, units, bias=bias)]
        if norm:
            block.append(fastbp.LayerNorm(units) if norm == "layer_norm" else fastbp.BatchNorm1d(units))
        block.append(ACTIVATIONS[activation]())
        if dropout:
            block.append(fastbp.Dropout(dropout))
        if residual:
            block.append(fastbp.Residual(fastbp.Linear(units, units), ACTIVATIONS[activation]()))
        layers, fan_in = layers + block, units
    layers.append(fastbp.Linear(fan_in, training["outputs"]))
    if training["loss"] in cases.PROBABILITY_LOSSES:
        layers.append(fastbp.Sigmoid())
    model = fastbp.Sequential(*layers, dtype=dtype, device=device, seed=training["seed"])
    size = model.flat_parameters.size
    model.flat_parameters = np.random.default_rng(training["seed"]).standard_normal(size).astype(dtype) / 4
    return model


def check(training):
    """Predictions before, losses and weights after one epoch of the two backends."""
    rng, batch = np.random.default_rng(training["seed"]), training["batch"]
    if any(norm == "batch_norm" for _, _, norm, *_ in training["layers"]):
        batch = max(batch, 4)  # a batch of one row is refused
    rows = 2 * batch + (batch // 2 if training["rest"] else 0)
    x = cases.batch(rng, (rows, training["features"]), training["x_dtype"])
    x = (x % 4).astype(x.dtype) if x.dtype == np.uint8 else x
    y = cases.targets(rng, training["loss"], rows, training["outputs"], np.dtype(training["dtype"]))
    if training["loss"] in cases.SOFTMAX_LOSSES and y.ndim == 2:
        y = np.minimum(y, 1)
    weight = rng.random(rows) if training["weights"] else None

    def trained(dtype, device):
        model = network(training, dtype, device)
        before = model.predict(x)
        start = model.flat_parameters.astype(np.float64)
        history = model.fit(
            x, y, loss=LOSSES[training["loss"]](), optimizer=OPTIMIZERS[training["optimizer"]](), batch_size=batch,
            sample_weight=weight, verbose=False,
        )  # fmt: skip
        return before, history["loss"][0], start, model.flat_parameters.astype(np.float64)

    try:
        exact_before, exact_loss, start, exact_after = trained("float64", "reference")
    except FloatingPointError:
        reject()
    change = np.abs(exact_after - start).max()
    assume(change < EXPLOSION)
    if training["loss"] in cases.PROBABILITY_LOSSES:  # -ln p and -ln(1 - p) make much of a rounding of p near 0 and 1
        assume(exact_before.min() > 1e-3 and exact_before.max() < 1 - 1e-3)
    before, loss, start, after = trained(training["dtype"], "cpu")
    tolerance = 1e-10 if training["dtype"] == "float64" else 1e-4
    np.testing.assert_allclose(before, exact_before, rtol=0, atol=tolerance * max(1, np.abs(exact_before).max()))
    np.testing.assert_allclose(loss, exact_loss, rtol=10 * tolerance, atol=10 * tolerance)
    if training["optimizer"] == "lion":  # the sign of a gradient that is nothing but rounding
        assert np.abs(after - exact_after).max() <= 2 * LR * -(-rows // batch) + tolerance
    else:
        np.testing.assert_allclose(after, exact_after, rtol=0, atol=100 * tolerance * max(change, 1e-2))


def drawn(examples):
    """A test over so many trainings, the same in every run."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(trainings())
    def test(training):
        check(training)

    return test


test_cpu_beside_reference_over_100_trainings = drawn(100)
test_cpu_beside_reference_over_1000_trainings = pytest.mark.long(drawn(1000))
