"""Every operation of the graph: values of NumPy, gradients of finite differences and of PyTorch."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fastbp
from fastbp import Variable
from fastbp import autograd as ag

with np.load(Path(__file__).parent / "golden" / "autograd.npz") as archive:
    GOLDEN = dict(archive)

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def sigma(z):
    return 1 / (1 + np.exp(-z))


def cdf(z):
    return np.vectorize(math.erfc, otypes=[float])(-np.asarray(z) / math.sqrt(2)) / 2


def erf_free_gelu(z):
    return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


class Operation(NamedTuple):
    """An operation, what NumPy has for it, and the range of its arguments."""

    function: object
    numpy: object
    low: float = -2.0
    high: float = 2.0


UNARY = {
    "negative": Operation(ag.negative, np.negative),
    "exp": Operation(ag.exp, np.exp),
    "log": Operation(ag.log, np.log, 0.3, 3),
    "sqrt": Operation(ag.sqrt, np.sqrt, 0.3, 3),
    "absolute": Operation(ag.absolute, np.abs),
    "sigmoid": Operation(ag.sigmoid, sigma),
    "tanh": Operation(ag.tanh, np.tanh),
    "relu": Operation(ag.relu, lambda x: np.maximum(x, 0)),
    "leaky_relu": Operation(lambda x: ag.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": Operation(lambda x: ag.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(x))),
    "selu": Operation(
        ag.selu, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))
    ),
    "gelu": Operation(ag.gelu, lambda x: x * cdf(x)),
    "gelu_tanh": Operation(lambda x: ag.gelu(x, "tanh"), erf_free_gelu),
    "silu": Operation(ag.silu, lambda x: x * sigma(x)),
    "softplus": Operation(ag.softplus, lambda x: np.log1p(np.exp(x))),
    "dropout": Operation(lambda x: ag.dropout(x, 0.0, seed=1), lambda x: x),
    "square": Operation(lambda x: x**2, np.square),
    "cube of the reciprocal": Operation(lambda x: x**-3, lambda x: x**-3.0, 0.5, 2),
    "power of a number": Operation(lambda x: 2.5**x, lambda x: 2.5**x),
    "with numbers": Operation(lambda x: 1 - 3 / (x + 4) * 2, lambda x: 1 - 3 / (x + 4) * 2),
}  # fmt: skip
BINARY = {
    "add": Operation(ag.add, np.add),
    "subtract": Operation(ag.subtract, np.subtract),
    "multiply": Operation(ag.multiply, np.multiply),
    "divide": Operation(ag.divide, np.divide, 0.5, 2),
    "power": Operation(ag.power, np.power, 0.3, 2),
    "maximum": Operation(ag.maximum, np.maximum),
    "minimum": Operation(ag.minimum, np.minimum),
}
REDUCTIONS = {
    "sum": Operation(ag.sum, np.sum),
    "mean": Operation(ag.mean, np.mean),
    "max": Operation(ag.max, np.max),
    "min": Operation(ag.min, np.min),
}
# How a variable can lie in memory: each takes an array and gives what is stored, and what makes the array of it.
LAYOUTS = {
    "plain": (lambda a: a, lambda v: v),
    "transposed": (np.transpose, lambda v: v.transpose()),
    "every second": (lambda a: np.repeat(a, 2, axis=0), lambda v: v[::2]),
    "backwards": (lambda a: a[::-1], lambda v: v[::-1]),
}
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
pairs_of_shapes = arrays.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3)
layouts = st.sampled_from(sorted(LAYOUTS))
seeds = st.integers(0, 2**32 - 1)


def values(operation, shape, seed):
    """Random numbers an operation takes; apart from each other, so that none is at a kink."""
    count = math.prod(shape)
    grid = np.linspace(operation.low, operation.high, count + 2)[1:-1] + 1e-3 * math.sqrt(2)
    return np.random.default_rng(seed).permutation(grid).reshape(shape)


def laid_out(array, layout):
    """What to store, and what makes the array of the variable."""
    return LAYOUTS[layout if array.ndim else "plain"]


def check(function, numpy, inputs, layouts, tolerance=1e-7):
    """Value, shape and gradients of a function of variables that lie in memory as told."""
    store, restore = zip(*(laid_out(x, layout) for x, layout in zip(inputs, layouts, strict=True)), strict=True)

    def restored(*variables):
        return function(*(back(v) for back, v in zip(restore, variables, strict=True)))

    stored = tuple(put(x) for put, x in zip(store, inputs, strict=True))
    variables = [Variable(x, requires_grad=True) for x in stored]
    out = restored(*variables)
    expected = np.asarray(numpy(*inputs))
    assert out.shape == expected.shape
    assert type(out.data) is np.ndarray
    assert type(out._data) is (np.ndarray if expected.ndim else float)  # scalars cost no array inside
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-14)
    out.backward(np.ones(out.shape))
    for variable, x in zip(variables, stored, strict=True):
        assert np.shape(variable.grad) == x.shape
        assert type(variable.grad) is np.ndarray
    errors = fastbp.gradcheck(restored, stored)
    assert all(error < tolerance for error in errors.values()), errors


# ---------------------------------------------------------------------------- finite differences
@pytest.mark.parametrize("name", UNARY)
@SETTINGS
@given(shape=shapes, layout=layouts, seed=seeds)
def test_unary(name, shape, layout, seed):
    operation = UNARY[name]
    check(operation.function, operation.numpy, [values(operation, shape, seed)], [layout])


@pytest.mark.parametrize("name", BINARY)
@SETTINGS
@given(pair=pairs_of_shapes, layout=st.tuples(layouts, layouts), seed=seeds)
def test_binary_with_broadcasting(name, pair, layout, seed):
    operation = BINARY[name]
    x, y = (values(operation, shape, seed + i) * (1 + i / 1000) for i, shape in enumerate(pair.input_shapes))
    check(operation.function, operation.numpy, [x, y], layout)


@pytest.mark.parametrize("name", BINARY)
@SETTINGS
@given(shape=shapes, seed=seeds)
def test_binary_with_a_constant_on_either_side(name, shape, seed):
    operation = BINARY[name]
    x, constant = values(operation, shape, seed), values(operation, shape, seed + 1) * 1.001
    constant = constant if shape else float(constant)
    check(lambda v: operation.function(v, constant), lambda a: operation.numpy(a, constant), [x], ["plain"])
    check(lambda v: operation.function(constant, v), lambda a: operation.numpy(constant, a), [x], ["plain"])


@pytest.mark.parametrize("name", BINARY | UNARY)
@SETTINGS
@given(shape=shapes, seed=seeds)
def test_a_value_that_is_used_several_times(name, shape, seed):
    """Gradients add."""
    operation = (BINARY | UNARY)[name]
    x = values(operation, shape, seed)
    if name in BINARY:
        once, twice = lambda v: operation.function(v, v + 1), lambda a: operation.numpy(a, a + 1)
        tied = operation.function, operation.numpy
        check(lambda v: tied[0](v, v), lambda a: tied[1](a, a), [x], ["plain"])
    else:
        once, twice = operation.function, operation.numpy
    check(lambda v: once(v) * v + once(v), lambda a: twice(a) * a + twice(a), [x], ["plain"])


@pytest.mark.parametrize("name", REDUCTIONS)
@SETTINGS
@given(data=st.data(), layout=layouts, keepdims=st.booleans(), seed=seeds)
def test_reductions(name, data, layout, keepdims, seed):
    operation = REDUCTIONS[name]
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0 if name == "sum" else 1, max_side=4))
    axes = st.none()
    if shape:
        one = st.integers(-len(shape), len(shape) - 1)
        axes = st.one_of(axes, one, arrays.valid_tuple_axes(len(shape), min_size=1))
    axis = data.draw(axes)
    check(
        lambda v: operation.function(v, axis, keepdims),
        lambda a: operation.numpy(a, axis=axis, keepdims=keepdims),
        [values(operation, shape, seed)],
        [layout],
    )


SHAPE_ANY = Operation(None, None)


@SETTINGS
@given(data=st.data(), layout=layouts, seed=seeds)
def test_changes_of_shape(data, layout, seed):
    shape = data.draw(shapes)
    x = values(SHAPE_ANY, shape, seed)
    axes = data.draw(st.permutations(range(len(shape))))
    check(lambda v: v.transpose(*axes) * 3, lambda a: a.transpose(axes) * 3, [x], [layout])
    check(lambda v: v.T**2, lambda a: a.T**2, [x], [layout])
    check(lambda v: v.reshape(v.size), lambda a: a.reshape(a.size), [x], [layout])
    check(lambda v: v.reshape((1, *shape, 1)), lambda a: a.reshape(1, *shape, 1), [x], [layout])


@SETTINGS
@given(data=st.data(), layout=layouts, seed=seeds)
def test_index(data, layout, seed):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    index = data.draw(
        st.one_of(
            arrays.basic_indices(shape, allow_newaxis=True),
            arrays.integer_array_indices(shape),
            arrays.arrays(bool, shape),
        )
    )
    check(lambda v: v[index], lambda a: a[index], [values(SHAPE_ANY, shape, seed)], [layout])


@SETTINGS
@given(data=st.data(), seed=seeds)
def test_concatenate(data, seed):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for i in range(data.draw(st.integers(1, 3))):
        length = data.draw(st.integers(0, 3))
        parts.append(values(SHAPE_ANY, tuple(length if j == axis % len(shape) else n for j, n in enumerate(shape)), i))
    check(
        lambda *v: ag.concatenate(v, axis) ** 2,
        lambda *a: np.concatenate(a, axis) ** 2,
        parts,
        ["plain"] * len(parts),
    )


@SETTINGS
@given(data=st.data(), layout=st.tuples(layouts, layouts), seed=seeds)
def test_matmul(data, layout, seed):
    """Vectors, matrices, stacks of them that broadcast, and empty ones."""
    n, k, m = (data.draw(st.integers(0, 3)) for _ in range(3))
    stacks = data.draw(arrays.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=1, max_side=2))
    left = data.draw(st.sampled_from([(k,), (*stacks.input_shapes[0], n, k)]))
    right = data.draw(st.sampled_from([(k,), (*stacks.input_shapes[1], k, m)]))
    x, y = values(SHAPE_ANY, left, seed), values(SHAPE_ANY, right, seed + 1)
    check(ag.matmul, np.matmul, [x, y], layout)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (1, 1, 1), (0, 3, 2)])
def test_linear(device, sizes, bias):
    n, fan_in, fan_out = sizes
    shapes = ((n, fan_in), (fan_in, fan_out), (fan_out,))[: 2 + bias]
    inputs = [values(SHAPE_ANY, shape, i) for i, shape in enumerate(shapes)]
    check(
        lambda *v: ag.linear(*v, device=device),
        lambda x, w, *b: x @ w + (b[0] if b else 0),
        inputs,
        ["transposed", "every second", "plain"][: 2 + bias],
    )


def test_products_with_constants_of_any_dtype(device):
    """They are computed in float32 or float64."""
    x = np.arange(6.0).reshape(2, 3)
    for constant in (np.arange(12).reshape(3, 4), [[1, 2], [3, 4], [5, 6]], np.ones((3, 2), np.longdouble)):
        for variable in (Variable(x), Variable(x.astype(np.float32)), x.astype(int)):
            out = ag.linear(variable, constant, device=device)
            np.testing.assert_allclose(out.data, x @ np.asarray(constant, float), rtol=1e-6)
    assert ag.linear(Variable(x.astype(np.float32)), np.ones((3, 2), np.float16), device=device).dtype == np.float32
    np.testing.assert_array_equal((Variable(x) @ [[1], [2], [3]]).data, x @ [[1], [2], [3]])


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus"])
def test_activations_on_every_device(device, name, shape):
    x = values(SHAPE_ANY, shape, 0)
    operation = getattr(ag, name)
    np.testing.assert_allclose(operation(x, device=device).data, operation(Variable(x)).data, rtol=1e-12, atol=1e-15)
    assert fastbp.gradcheck(lambda v: operation(v, device=device), x)["x"] < 1e-8


@pytest.mark.parametrize(
    ("shape", "axis"), [((5,), 0), ((3, 4), -1), ((3, 20), 0), ((3, 20), 1), ((2, 3, 4), 1), ((0, 3), 1), ((3, 0), 0)]
)
def test_softmax(device, shape, axis):
    x = values(SHAPE_ANY, shape, 0)
    e = np.exp(x)
    z = ag.softmax(Variable(x), axis, device=device)
    np.testing.assert_allclose(z.data, e / e.sum(axis=axis, keepdims=True), rtol=1e-14)
    assert fastbp.gradcheck(lambda v: ag.softmax(v, axis, device=device), x)["x"] < 1e-8
    assert ag.softmax(Variable(x.astype(np.float32)), axis, device=device).dtype == np.float32


def test_softmax_of_one_row_has_the_jacobian_of_the_textbook():
    x = np.array([0.5, -1.0, 2.0, 1000.0 - 998.5])
    p = np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(fastbp.jacobian(ag.softmax, x), np.diag(p) - np.outer(p, p), rtol=1e-12, atol=1e-16)
    shifted = ag.softmax(x + 1e6).data  # whose exponentials have no value
    np.testing.assert_allclose(shifted, p, rtol=1e-9)
    with pytest.raises(ValueError, match="out of bounds"):
        ag.softmax(x, 1)
    with pytest.raises(ValueError, match="out of bounds"):
        ag.softmax(2.0)


@pytest.mark.parametrize("shape", [(1,), (40,), (5, 7), (2, 3, 4)])
def test_dropout(device, shape):
    """The same elements back as forward; kept ones grow by ``1 / (1 - p)``."""
    x = Variable(np.ones(shape), requires_grad=True)
    z = ag.dropout(x, 0.4, seed=3, device=device)
    z.sum().backward()
    np.testing.assert_array_equal(z.data, x.grad)
    assert set(np.round(z.data.ravel(), 12)) <= {0.0, round(1 / 0.6, 12)}
    assert ag.dropout(x, 0.4, training=False) is x
    generator = np.random.default_rng(0)
    first, second = (ag.dropout(Variable(np.ones(100)), 0.5, seed=generator).data for _ in range(2))
    assert 20 < (first == 0).sum() < 80
    assert (first != second).any()


LOSSES = {
    "half_squared_error": (fastbp.HalfSquaredErrorLoss, {}, "real"),
    "mean_squared_error": (fastbp.MSELoss, {}, "real"),
    "l1": (fastbp.L1Loss, {}, "real"),
    "huber": (fastbp.HuberLoss, {"delta": 0.7}, "real"),
    "binary_cross_entropy": (fastbp.BCELoss, {}, "probability"),
    "binary_cross_entropy_with_logits": (fastbp.BCEWithLogitsLoss, {}, "probability"),
    "cross_entropy": (fastbp.CrossEntropyLoss, {"label_smoothing": 0.1, "class_weight": [1, 2, 3]}, "label"),
}


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0, 0.5]])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(device, name, weights):
    """Value and gradient of the loss itself, as a function, as a method and by the loss object."""
    cls, arguments, kind = LOSSES[name]
    s = np.random.default_rng(0).uniform(0.1, 0.9, (4, 3))
    y = np.array([0, 2, 1, 1]) if kind == "label" else np.random.default_rng(1).uniform(size=(4, 3))
    loss = cls(**arguments, device=device)
    value, gradient = loss(s, y, weights)
    calls = {
        "function": lambda v: getattr(ag, name)(v, y, weights, **arguments, device=device),
        "method": lambda v: getattr(v, name)(y, weights, **arguments, device=device),
        "loss": lambda v: loss(v, Variable(y) if kind != "label" else y, weights),
    }
    for call in calls.values():
        variable = Variable(s, requires_grad=True)
        out = call(variable)
        (3 * out).backward()
        assert out.data == value
        np.testing.assert_allclose(variable.grad, 3 * gradient, rtol=1e-15)
        assert fastbp.gradcheck(call, s)["x"] < 1e-8
    assert getattr(ag, name)(s, y, weights, **arguments).data == pytest.approx(value, rel=1e-12)
    if kind != "label":
        with pytest.raises(TypeError, match="target must not require a gradient"):
            loss(Variable(s), Variable(y, requires_grad=True))


def test_every_function_is_a_method():
    only_functions = {"Function", "Variable", "no_grad", "grad", "concatenate", "as_loss"}
    for name in set(ag.__all__) - only_functions:
        assert getattr(Variable, name) is getattr(ag, name)
    assert only_functions < set(ag.__all__)


# ------------------------------------------------------------------------------------- PyTorch

OF_PYTORCH = {
    "add_column": ag.add,
    "multiply_zero": ag.multiply,
    "power_zero": ag.power,
    "power_number": lambda x: x**3,
    "power_of_number": lambda x: 2.0**x,
    "max_axis_0": lambda x: ag.max(x, 0),
    "max_axis_1": lambda x: ag.max(x, 1, keepdims=True),
    "min_axis_1": lambda x: ag.min(x, 1),
    "max_axes": lambda x: ag.max(x, (0, 2)),
    "sum_axis": lambda x: x.sum(1, keepdims=True),
    "sum_axes": lambda x: x.sum((0, -1)),
    "mean_axis": lambda x: x.mean(0),
    "reshape": lambda x: x.reshape(2, -1),
    "transpose_axes": lambda x: x.transpose(2, 0, 1),
    "index": lambda x: x[1:, ::2],
    "index_repeated": lambda x: x[[0, 2, 0, 0]],
    "index_mask": lambda x: x[x.data > 0],
    "concatenate": lambda x, y: ag.concatenate([x, y], 1),
    **{
        f"matmul_{name}": ag.matmul
        for name in ("vectors", "vector_matrix", "matrix_vector", "stack", "vector_stack", "stack_vector")
    },
    "leaky_relu": lambda z: z.leaky_relu(0.2),
    "elu": lambda z: z.elu(1.5),
    "gelu_tanh": lambda z: z.gelu("tanh"),
    "cross_entropy": lambda s: s.cross_entropy([0, 2, 1, 1]),
    "cross_entropy_smooth": lambda s: s.cross_entropy([0, 2, 1, 1], label_smoothing=0.2),
    "mean_squared_error": lambda p: p.mean_squared_error(np.ones(p.shape)),
    "half_squared_error": lambda p: p.half_squared_error(np.ones(p.shape)),
    "l1": lambda p: p.l1(np.ones(p.shape)),
    "huber": lambda p: p.huber(np.ones(p.shape), delta=0.7),
    "binary_cross_entropy": lambda p: p.binary_cross_entropy(np.full(p.shape, 0.25)),
    "binary_cross_entropy_with_logits": lambda p: p.binary_cross_entropy_with_logits(np.full(p.shape, 0.25)),
    "used_twice": lambda x, y: x * y + x.tanh() / (1 + x * x),
    "attention": lambda q, k, v: (q @ k.T - (q @ k.T).max(1, keepdims=True)).exp() @ v,
}
NAMES = sorted({key.split("/")[0] for key in GOLDEN if "/" in key})


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_pytorch(name):
    """Kinks, ties and zeros included: where PyTorch makes a choice, this is the same one."""
    function = OF_PYTORCH.get(name) or getattr(ag, name)
    inputs = [GOLDEN[key] for key in sorted(GOLDEN) if key.startswith(f"{name}/in/")]
    variables = [Variable(x, requires_grad=True) for x in inputs]
    out = function(*variables)
    out.backward(GOLDEN[f"{name}/seed"])
    np.testing.assert_allclose(out.data, GOLDEN[f"{name}/out"], rtol=1e-13, atol=1e-15)
    for i, variable in enumerate(variables):
        np.testing.assert_allclose(variable.grad, GOLDEN[f"{name}/grad/{i}"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", sorted({"max", "min", "maximum", "minimum", "absolute", "relu", "sum", "mean"} & {*NAMES})
)
def test_scalars_do_as_arrays_of_one_element(name):
    """The formulas between floats are those between arrays, at ties and kinks as well."""
    function = getattr(ag, name)
    count = sum(key.startswith(f"{name}/in/") for key in GOLDEN)
    for numbers in ((0.0, 0.0), (1.5, 1.5), (-2.0, 3.0), (3.0, -2.0)):
        scalars = [Variable(a, requires_grad=True) for a in numbers[:count]]
        ones = [Variable([a], requires_grad=True) for a in numbers[:count]]
        function(*scalars).backward(2.0)
        function(*ones).sum().backward(2.0)
        assert [v.grad for v in scalars] == [v.grad.item() for v in ones]


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -3.5, 2.0, 800.0, -800.0, 1e308, math.inf, -math.inf, math.nan]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_special_numbers_between_scalars(name):
    """Infinity and NaN where NumPy has them, never an exception; the value and the derivatives of arrays."""
    operation = (BINARY | UNARY)[name]
    several = [(a, b) for a in SPECIAL for b in SPECIAL] if name in BINARY else [(a,) for a in SPECIAL]
    if name == "power":  # of numbers NumPy takes the square root here, of arrays the power
        several.remove((-math.inf, 0.5))
    for numbers in several:
        scalars = [Variable(a, requires_grad=True) for a in numbers]
        ones = [Variable([a], requires_grad=True) for a in numbers]
        out, one = operation.function(*scalars), operation.function(*ones)
        out.backward()
        one.backward([1.0])
        np.testing.assert_allclose(out.data, one.data[0], rtol=1e-14, err_msg=str(numbers))
        for a, b in zip(scalars, ones, strict=True):
            np.testing.assert_allclose(a.grad, b.grad[0], rtol=1e-13, atol=1e-300, err_msg=str(numbers))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    """Numbers of Python do not widen float32, and a gradient has the dtype of its variable."""
    x, y = Variable(np.ones((2, 3), dtype), requires_grad=True), Variable(np.ones(3, dtype), requires_grad=True)
    out = ((x * 2 + 1) ** 2 / 3 - y).exp().tanh().sqrt().maximum(0.5) @ np.ones((3, 2), dtype)
    assert out.dtype == dtype
    (out.mean() * 2).backward()
    assert x.grad.dtype == y.grad.dtype == dtype
    mixed = Variable(np.ones(3, np.float64), requires_grad=True) * x
    assert mixed.dtype == np.float64
    mixed.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ag.linear(np.ones((2, 3)), np.ones((2, 3))), ValueError, r"weight must have shape \(3, features\)"),
        (lambda: ag.linear(np.ones(3), np.ones((3, 3))), ValueError, r"x must have shape \(n, features\)"),
        (lambda: ag.linear(np.ones((2, 3)), np.ones((3, 4)), np.ones(3)), ValueError, r"bias must have shape \(4,\)"),
        (lambda: ag.tanh(np.ones(3), device="tpu"), ValueError, "device must be one of"),
        (lambda: ag.gelu(np.ones(3), "erf"), ValueError, "approximate must be one of"),
        (lambda: ag.leaky_relu(np.ones(3), -1), ValueError, "negative_slope must be at least 0"),
        (lambda: ag.dropout(np.ones(3), 1.0), ValueError, "p must be at least 0 and below 1"),
        (lambda: ag.concatenate([]), ValueError, "at least one part"),
        (lambda: ag.concatenate([Variable(1.0)]), ValueError, "reshape scalars"),
        (lambda: Variable(np.ones(3))[Variable(1.0)], TypeError, "cannot be an index"),
        (lambda: Variable(np.ones(3)) + np.ones(4), ValueError, "broadcast"),
        (lambda: Variable(np.ones(3)) + "a", TypeError, None),
        (lambda: Variable(np.ones(3)) * 1j, TypeError, "real numbers"),
        (lambda: Variable(np.ones(3)) @ 2.0, ValueError, "matmul"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
