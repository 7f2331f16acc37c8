"""The graph itself: recording, backpropagation, freeing, changes of values, functions of one's own, drawings."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import fastbp
from fastbp import Function, Variable
from fastbp import autograd as ag


def leaf(value, **arguments):
    return Variable(value, requires_grad=True, **arguments)


# ------------------------------------------------------------------------------------ variables
def test_what_a_variable_holds():
    """Read-only copies of float32 or float64; inside the graph a scalar is a float."""
    for number in (3, 3.0, np.float32(3), np.array(3), np.array([[3]])[0, 0], True + 2):
        v = Variable(number)
        assert type(v._data) is type(v.item()) is float
        assert (type(v.data), v.data.shape, v.data.dtype) == (np.ndarray, (), np.float64)
        assert v.data == 3.0
        with pytest.raises(ValueError, match="read-only"):
            v.data[...] = 1
    given = np.array([1.0, 2.0])
    v = Variable(given)
    given[0] = 7
    assert v.data[0] == 1
    for variable in (v, v * 2, (leaf(1.0) * v).tanh(), v.reshape(2, 1), v[:1], v.detach()):
        with pytest.raises(ValueError, match="read-only"):
            variable.data[0] = 1
    kept = {np.float32: np.float32, np.float64: np.float64, np.float16: np.float32, np.int8: np.float64}
    for dtype, result in (kept | {bool: np.float64, ">f4": np.float32, ">f8": np.float64}).items():
        assert Variable(np.ones(2, dtype)).dtype == result
    assert Variable([1, 2]).dtype == Variable(2).dtype == np.float64
    assert not v.requires_grad
    assert v.grad is v.grad_fn is v.name is None


def test_attributes():
    v = Variable(np.arange(6.0).reshape(2, 3), name="v")
    assert (v.shape, v.ndim, v.size, len(v), v.T.shape, v.name) == ((2, 3), 2, 6, 2, (3, 2), "v")
    assert [row.shape for row in v] == [(3,), (3,)]
    assert (Variable([[2.5]]).item(), float(Variable(2.5)), f"{Variable(2.5):.2f}") == (2.5, 2.5, "2.50")
    assert f"{Variable(2.5)}" == "Variable(2.5)"
    assert Variable(1.0)
    assert not Variable(0.0)
    with pytest.raises(TypeError, match="float"):
        iter(Variable(1.0))
    np.testing.assert_array_equal(np.asarray(v), v.data)
    assert (v > 2).sum() == 3
    assert (v >= Variable(2.0)).sum() == 4
    assert Variable(1.0) < 2 <= Variable(2.0)
    assert not Variable(1.0) >= 2
    assert repr(leaf(2.0, name="w")) == "Variable(w: 2., requires_grad=True)"
    assert repr(leaf(2.0) * leaf([1.0, 2.0])) == "Variable([2., 4.], grad_fn=<Multiply>)"
    assert repr(leaf(2.0).tanh() + 1).endswith("grad_fn=<Add>)")


@pytest.mark.parametrize("data", ["a", 1j, None, [[1], [1, 2]], np.array(["x"])])
def test_data_must_be_real_numbers(data):
    with pytest.raises((TypeError, ValueError), match="data must"):
        Variable(data)


def test_arrays_leave_the_answer_to_the_variable():
    v = leaf([1.0, 2.0])
    for out in (np.ones(2) + v, np.ones(2) * v, np.float64(3) - v, np.ones((2, 2)) @ v, 2 / v, 2**v):
        assert isinstance(out, Variable)
    with pytest.raises(TypeError, match=r"use its \.data"):
        np.asarray(v)


def test_copies_are_leaves():
    v = leaf([1.0, 2.0], name="v")
    (v * v).sum().backward()
    for twin in (copy.deepcopy(v), pickle.loads(pickle.dumps(v))):
        assert (twin.requires_grad, twin.name, twin.is_leaf) == (True, "v", True)
        np.testing.assert_array_equal(twin.data, v.data)
        np.testing.assert_array_equal(twin.grad, v.grad)
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        copy.copy(v * 2)
    with pytest.raises(TypeError, match="subclassed"):
        type("Parameter", (Variable,), {})


# ------------------------------------------------------------------------------------- recording
def test_requires_grad_is_inherited():
    x, constant = leaf(2.0), Variable(3.0)
    assert (x * constant).requires_grad
    assert not (constant * 2).requires_grad
    assert (constant * 2).grad_fn is None
    out = x * constant
    assert isinstance(out.grad_fn, Function)
    assert out.grad_fn.inputs == (x, constant)
    assert (x * 2).grad_fn.inputs == (2 * x).grad_fn.inputs == (x,)
    constant.requires_grad = True
    x.requires_grad = False
    assert (constant * 2).requires_grad
    assert not (x * 2).requires_grad
    with pytest.raises(RuntimeError, match=r"use detach\(\)"):
        out.requires_grad = False


def test_no_grad():
    x, a = leaf(2.0), leaf(np.ones(3))
    with ag.no_grad():
        assert not (x * x).requires_grad
        assert not (a @ a).requires_grad
        with ag.no_grad():
            pass
        assert not (x * x).requires_grad

    @ag.no_grad()
    def evaluate():
        return x * x

    assert not evaluate().requires_grad
    with pytest.raises(KeyError), ag.no_grad():
        raise KeyError
    assert (x * x).requires_grad


def test_no_grad_is_of_one_thread():
    x, inside, checked = leaf(2.0), threading.Event(), threading.Event()
    found = []

    def pause():
        with ag.no_grad():
            inside.set()
            checked.wait(10)
            found.append((x * x).requires_grad)

    thread = threading.Thread(target=pause)
    thread.start()
    assert inside.wait(10)
    found.append((x * x).requires_grad)
    checked.set()
    thread.join()
    assert found == [True, False]


def test_detach():
    x = leaf([1.0, 2.0])
    d = (x * x).detach()
    assert not d.requires_grad
    (x * d).sum().backward()
    np.testing.assert_array_equal(x.grad, d.data)


# ------------------------------------------------------------------------------- backpropagation
def test_a_value_used_twice_gets_the_sum():
    x, a = leaf(3.0), leaf([1.0, 2.0])
    (x * x + x).backward()
    assert x.grad == 7
    (a * a + a + a[::-1]).sum().backward()
    np.testing.assert_array_equal(a.grad, [4, 6])


def test_gradients_of_leaves_add_over_calls_and_those_of_results_do_not():
    x = leaf(3.0)
    y = x * x
    out = y * 2
    out.backward(retain_graph=True)
    assert (x.grad, y.grad, out.grad) == (12, 2, 1)
    out.backward(10, retain_graph=True)
    assert (x.grad, y.grad, out.grad) == (132, 20, 10)
    x.zero_grad()
    out.backward()
    assert x.grad == 12
    x.grad = None
    (x + 1).backward()
    assert x.grad == 1


def test_backward_from_a_leaf():
    x = leaf([1.0, 2.0])
    for times in (1, 2):
        x.backward([1.0, 1.0])
        np.testing.assert_array_equal(x.grad, [times, times])
    x.grad *= 2  # it is an array of its own
    y = Variable(np.ones(2, np.float32), requires_grad=True)
    out = y * 2
    out.backward(np.ones(2))
    assert out.grad.dtype == y.grad.dtype == np.float32


def test_gradients_of_leaves_are_arrays_of_their_own():
    """However the gradient came, changing it in place changes nothing else."""

    class Same(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, grad_output):
            flow = grad_output * 1
            return flow, flow

    class View(Same):
        @staticmethod
        def backward(ctx, grad_output):
            flow = grad_output * 1
            return flow, flow[:]

    seed = np.ones((2, 3))
    for function in (
        ag.add, Same.apply, View.apply, lambda x, y: (x - seed) + (y - seed), lambda x, y: x.T.T + y.reshape(2, 3),
        lambda x, y: ag.concatenate([x, y])[:2] + x + y,
        lambda x, y: x.sum(axis=0) + y, lambda x, y: ag.linear(x, np.eye(3)) + y,
    ):  # fmt: skip
        x, y = leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))
        function(x, y).backward(seed)
        before = y.grad.copy()
        x.grad *= 5
        np.testing.assert_array_equal(y.grad, before)
        y.grad += 1
        np.testing.assert_array_equal(seed, 1)
    x, y = leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))
    Same.apply(x, y * 2).backward(seed)  # what a result shares with a leaf is read-only
    x.grad *= 5
    np.testing.assert_array_equal(y.grad, 2)


@pytest.mark.parametrize("value", [2.0, [2.0, 3.0]])
def test_gradients_can_be_set(value):
    """Scaled, clipped, replaced; what is set is copied, in shape and dtype of the variable."""
    x = leaf(value)
    (x * 3).sum().backward()
    assert type(x.grad) is np.ndarray
    x.grad *= 2
    np.testing.assert_array_equal(x.grad, np.full(x.shape, 6))
    given = np.ones(x.shape, np.float32)
    x.grad = given
    given[...] = 5
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad, np.ones(x.shape))
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(x.shape, 4))
    with pytest.raises(ValueError, match="grad must have shape"):
        x.grad = np.ones((3, 3))
    with pytest.raises(TypeError, match="grad must hold real numbers"):
        x.grad = "one"


def test_what_is_not_reached_gets_no_gradient():
    x, y = leaf(1.0), leaf(2.0)
    (x * 2).backward()
    assert y.grad is None
    assert Variable(1.0).grad is None
    constant = Variable(3.0)
    (x * constant).backward()
    assert constant.grad is None


@pytest.mark.parametrize("length", [100_000])
def test_long_chains_need_no_stack(length):
    x = leaf(1.0)
    out = x
    for _ in range(length):
        out = out + x
    out.backward()
    assert x.grad == length + 1
    a = leaf([1.0])
    out = a
    for _ in range(length):
        out = out * 1.0
    out.backward([1.0])
    np.testing.assert_array_equal(a.grad, [1])
    for _ in range(2):  # without backward: the graph goes when nobody holds it
        out = a
        for _ in range(length):
            out = -out
        del out


def test_wide_graphs_visit_a_node_once():
    """A ladder of 60 doublings has 2^60 paths."""
    x = leaf(1.0)
    out = x
    for _ in range(60):
        out = (out + out) * 0.5
    out.backward()
    assert x.grad == 1


def test_functions_run_in_the_reverse_order_of_their_making():
    """No function may run before everything that its result was used in has run."""
    order = []

    class Record(Function):
        reads_inputs = False

        @staticmethod
        def forward(ctx, x, name):
            ctx.name = name
            return x * 1

        @staticmethod
        def backward(ctx, grad_output):
            order.append(ctx.name)
            return grad_output, None

    x = leaf([1.0])
    a = Record.apply(x, "a")
    b = Record.apply(a, "b")
    c = Record.apply(a, "c")
    d = Record.apply(b + a, "d")
    (d + c).sum().backward()
    assert order == ["d", "c", "b", "a"]
    np.testing.assert_array_equal(x.grad, [3])


@pytest.mark.parametrize("value", [2.0, [2.0, 3.0]])
def test_backward_frees_the_graph(value):
    x = leaf(value)
    y = x * x
    held = weakref.ref(y)
    out = (y * y).sum()
    out.backward(np.ones(out.shape), retain_graph=True)
    assert held() is not None
    out.backward(np.ones(out.shape))
    del y
    assert held() is None  # nothing but the graph held it, and no cycle did
    assert out.grad_fn is None
    for call in (out.backward, (out + 1).backward):
        before = np.copy(x.grad)
        with pytest.raises(RuntimeError, match="retain_graph=True"):
            call()
        np.testing.assert_array_equal(x.grad, before)


def test_intermediate_arrays_are_freed_on_the_way():
    """Backpropagation holds no more than the forward pass did."""
    alive = []

    class Watch(Function):
        reads_inputs = False

        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad_output):
            alive.append(sum(one() is not None for one in watched))
            return grad_output

    out, watched = leaf(np.ones(3)), []
    for _ in range(5):
        out = Watch.apply(out)
        watched.append(weakref.ref(out))
    gc.disable()
    try:
        out.sum().backward()
    finally:
        gc.enable()
    assert alive[0] == 5
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] <= 2


def test_backward_needs_a_gradient_for_several_numbers():
    out = leaf([1.0, 2.0]) * 2
    with pytest.raises(ValueError, match=r"pass gradient=…, an array of that shape, or take a sum\(\)"):
        out.backward()
    with pytest.raises(ValueError, match=r"gradient must have shape \(2,\), got \(3,\)"):
        out.backward(np.ones(3))
    (leaf([[2.0]]) * 2).backward()  # one number, of whatever shape
    with pytest.raises(TypeError, match="retain_graph must be True or False"):
        out.backward(np.ones(2), retain_graph=1)


def test_backward_needs_something_that_requires_a_gradient():
    for out in (Variable(1.0), Variable(1.0) * 2, leaf(1.0).detach()):
        with pytest.raises(RuntimeError, match="requires_grad=True"):
            out.backward()
        with pytest.raises(RuntimeError, match="requires_grad=True"):
            ag.grad(out, leaf(1.0))


def test_grad_stores_nothing():
    x, w, b = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf(1.0)
    x.grad = [9.0, 9.0]
    kept = x.grad
    layer = fastbp.Linear(2, 1, dtype="float64", seed=0)
    h = x * w
    out = layer(h.reshape(1, 2)).sum() + b * 2
    of_h, of_x, of_b, of_other = ag.grad(out, (h, x, b, leaf([5.0])))
    np.testing.assert_allclose(of_h, layer.weight[:, 0])
    np.testing.assert_allclose(of_x, layer.weight[:, 0] * [3, 4])
    assert of_b == 2
    np.testing.assert_array_equal(of_other, [0])
    assert x.grad is kept
    assert w.grad is b.grad is None
    with pytest.raises(RuntimeError, match="no gradients are stored"):
        _ = layer.grad_weight
    np.testing.assert_array_equal(ag.grad((x * 3).sum(), x), [3, 3])


# ----------------------------------------------------------------------------- changes of values
@pytest.mark.parametrize("value", [2.0, [2.0, 3.0]])
def test_changes_in_place(value):
    x = leaf(value)
    before, held = np.copy(x.data), x.data
    with ag.no_grad():
        same = x
        x += 1
        x *= 2
        x -= 3 * x.data
        x /= -4
    assert x is same
    np.testing.assert_array_equal(x.data, before + 1)
    np.testing.assert_array_equal(held, before)
    assert x.requires_grad
    assert x.assign(np.zeros(x.shape)) is x
    np.testing.assert_array_equal(x.data, np.zeros(x.shape))
    with pytest.raises(RuntimeError, match="write x = x \\+ y"):
        x += 1
    constant = Variable(value)
    constant += 1
    np.testing.assert_array_equal(constant.data, before + 1)


def test_what_has_to_be_recorded_makes_a_new_variable():
    x = leaf(2.0)
    loss = first = x * x
    loss += 3 * x
    loss -= 1
    assert first.data == 4
    assert loss.data == 9
    loss.backward()
    assert x.grad == 7
    total = Variable(0.0)
    total += leaf(1.0)
    assert total.requires_grad


def test_changes_keep_shape_and_dtype():
    x = Variable(np.ones(3, np.float32))
    x += np.ones(3)
    assert x.dtype == np.float32
    for change in (lambda: x.assign([1.0]), lambda: x._in_place(np.add, "+", np.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"value must have shape \(3,\)"):
            change()
    with pytest.raises(RuntimeError, match="cannot be set"):
        (leaf(1.0) * 2).assign(3.0)
    with pytest.raises(TypeError, match="value must hold real numbers"):
        x.assign("abc")


@pytest.mark.parametrize("value", [2.0, [2.0, 3.0]])
@pytest.mark.parametrize(
    "function", [lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x**y, lambda x, y: ag.maximum(x, y * 0.5)]
)
def test_backward_refuses_a_value_that_was_changed(function, value):
    x, y = leaf(value, name="x"), leaf(value)
    for change in (lambda: x.assign(x.data), lambda: y.assign(y.data)):
        out = function(x, y)
        change()
        with pytest.raises(RuntimeError, match="changed after"):
            out.backward(np.ones(out.shape))
        assert x.grad is y.grad is None
        function(x, y).sum().backward()  # computed again
        x.zero_grad(), y.zero_grad()
    out = x.log()
    x.assign(value)
    with pytest.raises(RuntimeError, match=r"Log needs for backward.*'x'"):
        out.backward(np.ones(out.shape))


@pytest.mark.parametrize("value", [2.0, [2.0, 3.0]])
@pytest.mark.parametrize(
    "function", [lambda x: x + 1, lambda x: -x, lambda x: x.exp(), lambda x: x.sum(), lambda x: x.tanh()]
)
def test_a_change_of_what_is_not_needed_is_fine(function, value):
    x = leaf(value)
    expected = ag.grad(function(x).sum(), x)
    out = function(x).sum()
    x.assign(np.zeros(x.shape))
    out.backward()
    np.testing.assert_array_equal(x.grad, expected)


# ------------------------------------------------------------------------------ functions of one's own
class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad_output


class ScaledSum(Function):
    """``factor (x + y)``, with broadcasting and a plain number between the variables."""

    @staticmethod
    def forward(ctx, x, factor, y):
        ctx.factor = factor
        return factor * (x + y)

    @staticmethod
    def backward(ctx, grad_output):
        assert ctx.needs_input_grad == (True, False, True)
        return ctx.factor * grad_output, None, ctx.factor * grad_output


def test_a_function_of_ones_own():
    for value in (2.0, [2.0, -3.0]):
        x = leaf(value)
        out = Cube.apply(x)
        assert repr(out.grad_fn) == "<Cube>"
        out.sum().backward()
        np.testing.assert_allclose(x.grad, 3 * np.square(value))
        assert fastbp.gradcheck(Cube.apply, value)["x"] < 1e-8
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 4)), rng.normal(size=4)
    assert max(fastbp.gradcheck(lambda x, y: ScaledSum.apply(x, 2.5, y), inputs).values()) < 1e-8
    assert not Cube.apply(Variable(2.0)).requires_grad
    assert Cube.apply(2.0).data == 8


def test_a_function_sees_read_only_values():
    class Careless(Function):
        @staticmethod
        def forward(ctx, x):
            x += 1
            return x

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output

    class CarelessBackward(Careless):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad_output):
            grad_output *= 2
            return grad_output

    with pytest.raises(ValueError, match="read-only"):
        Careless.apply(leaf([1.0]))
    with pytest.raises(ValueError, match="read-only"):
        CarelessBackward.apply(leaf([1.0])).backward()


def test_bad_functions():
    def function(result, gradient):
        class Bad(Function):
            @staticmethod
            def forward(ctx, x, y):
                return result

            @staticmethod
            def backward(ctx, grad_output):
                return gradient

        return Bad.apply(leaf([1.0, 2.0]), 3)

    for result, match in (((1, 2), "must return one number or array, got tuple"), (None, "got NoneType")):
        with pytest.raises(TypeError, match=match):
            function(result, None)
    with pytest.raises(TypeError, match="real numbers"):
        function(np.array([1j]), None)
    for gradient, match in (
        (np.ones(2), "must return 2 gradients.*got 1"),
        ((np.ones(3), None), r"must return a gradient of shape \(2,\)"),
        ((1.0, None), r"must return a gradient of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            function(np.ones(2), gradient).backward(np.ones(2))
    out = function(np.ones(2), (None, None))
    out.backward(np.ones(2))  # no gradient is none


def test_a_wrong_function_shows_in_gradcheck():
    class Wrong(Cube):
        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x * grad_output

    assert fastbp.gradcheck(Wrong.apply, [2.0, 3.0])["x"] > 0.1


# ------------------------------------------------------------------------- layers, models, losses
@pytest.fixture
def network(device):
    layers = fastbp.Linear(3, 5), fastbp.GELU(), fastbp.Linear(5, 2), fastbp.Tanh()
    return fastbp.Sequential(*layers, dtype="float64", device=device, seed=0)


def batch(rows=4, columns=3):
    return np.random.default_rng(0).standard_normal((rows, columns))


def test_a_model_is_one_node(network):
    x, seed = leaf(batch()), batch(4, 2)
    out = network(x)
    assert repr(out.grad_fn) == "<Sequential>"
    out.backward(seed)
    gradients = network.flat_gradients
    np.testing.assert_array_equal(network(batch()), out.data)
    np.testing.assert_array_equal(network.backward(seed), x.grad)
    np.testing.assert_array_equal(network.flat_gradients, gradients)


def test_layers_are_nodes(network, device):
    alone = []
    for layer in network.layers:
        twin = type(layer)(**layer.config(), device=device)
        if isinstance(layer, fastbp.Linear):
            twin = fastbp.Linear(**layer.config(), device=device, dtype="float64")
            twin.weight, twin.bias = layer.weight, layer.bias
        alone.append(twin)
    x, seed = leaf(batch()), batch(4, 2)
    out = x
    for layer in alone:
        out = layer(out)
    out.backward(seed)
    np.testing.assert_allclose(network(batch()), out.data, rtol=1e-14)
    np.testing.assert_allclose(network.backward(seed), x.grad, rtol=1e-13)
    np.testing.assert_allclose(network.layers[0].grad_weight, alone[0].grad_weight, rtol=1e-13)
    np.testing.assert_allclose(network.layers[2].grad_bias, alone[2].grad_bias, rtol=1e-13)
    assert not fastbp.ReLU(device=device)(Variable(batch())).requires_grad
    assert fastbp.Linear(3, 2, device=device)(Variable(batch())).requires_grad  # it has parameters


def test_shared_weights_add_up(network):
    """The gradient of a network used twice is the sum of those of the two uses."""
    first, second, seed = batch(), 2 * batch()[::-1], batch(4, 2)
    expected = 0
    for x in (first, second):
        network(x)
        network.backward(seed)
        expected = expected + network.flat_gradients
    network.zero_grad()
    (network(Variable(first)) + network(Variable(second))).backward(seed)
    np.testing.assert_allclose(network.flat_gradients, expected, rtol=1e-12)
    network(Variable(first)).backward(seed)  # as gradients of leaves add over calls
    assert np.abs(network.flat_gradients - expected).max() > 0.1


def test_a_call_through_the_graph_leaves_the_last_call(network):
    x, seed = batch(), batch(4, 2)
    network(x)
    expected = network.backward(seed)
    network(x)
    out = network(leaf(3 * x))
    np.testing.assert_array_equal(network.backward(seed), expected)
    out.backward(seed)
    np.testing.assert_array_equal(network.backward(seed), expected)


def test_dropout_drops_the_same_units_on_the_way_back(device):
    model = fastbp.Sequential(fastbp.Linear(3, 50), fastbp.Dropout(0.5), dtype="float64", device=device, seed=0)
    alone = fastbp.Dropout(0.5, seed=0, device=device)
    for function in (lambda x: model(x), lambda x: alone(x)):
        x = leaf(np.ones((2, 3)))
        a, b = function(x), function(x)
        assert (a.data != b.data).any()
    x = leaf(np.ones((2, 3)))
    a, b = alone(x), alone(x)
    ag.concatenate([a, b]).sum().backward()
    np.testing.assert_array_equal(x.grad, a.data + b.data)
    model.eval()
    np.testing.assert_array_equal(model(x).data, model(x).data)


def change_by_optimizer(model):
    model(batch())
    model.backward(batch(4, 2))
    fastbp.SGD(model.parameters(), lr=0.1).step()


CHANGES = {
    "optimizer": change_by_optimizer,
    "train_step": lambda m: m.train_step(batch(), batch(4, 2), fastbp.MSELoss(device=m.device), fastbp.SGD(lr=0.1)),
    "fit": lambda m: m.fit(
        batch(), batch(4, 2), loss=fastbp.MSELoss(device=m.device), optimizer=fastbp.SGD(), verbose=False
    ),
    "flat_parameters": lambda m: setattr(m, "flat_parameters", m.flat_parameters),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict()),
    "weight": lambda m: setattr(m.layers[0], "weight", m.layers[0].weight),
    "data": lambda m: setattr(m.parameters()[0], "data", m.parameters()[0].data),
    "update_parameters": lambda m: (
        change_by_optimizer(m),
        m.backward(batch(4, 2)),
        m.layers[0].update_parameters(0.1),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_backward_refuses_parameters_that_were_changed(network, name):
    x = leaf(batch())
    out = network(x)
    CHANGES[name](network)
    with pytest.raises(RuntimeError, match="parameters of Sequential were changed"):
        out.backward(batch(4, 2))
    assert x.grad is None
    network(x).backward(batch(4, 2))


def test_bad_input_of_a_layer(network):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3\), got \(4, 2\)"):
        network(Variable(batch(4, 2)))
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3\), got \(\)"):
        network(Variable(1.0))


def test_loss_of_a_variable(device):
    loss, y = fastbp.CrossEntropyLoss(device=device), [0, 2, 1, 1]
    x = leaf(batch())
    out = loss(x, y)
    assert repr(out.grad_fn) == "<CrossEntropyLoss>"
    assert out.data == loss(batch(), y)[0]
    (out * 2).backward()
    np.testing.assert_allclose(x.grad, 2 * loss(batch(), y)[1])


# ----------------------------------------------------------------------------- derivatives of inputs
def test_input_gradient(network):
    x, y, loss = batch(), batch(4, 2), fastbp.MSELoss(device=network.device)
    network(x)
    network.backward(y)
    before = network.flat_gradients
    found = {
        "sum": fastbp.input_gradient(network, x),
        "loss": fastbp.input_gradient(network, x, y, loss=loss),
        "user": fastbp.input_gradient(network, x, y, loss=lambda p, t: (0.0, p - t)),
        "graph": fastbp.input_gradient(network, x, loss=lambda p: ((p - y) ** 2).mean()),
        "function": fastbp.input_gradient(lambda v: network(v) * 2, x),
        "layer": fastbp.input_gradient(network.layers[1], x),
    }
    np.testing.assert_array_equal(network.flat_gradients, before)
    assert network.training
    out = network(x)
    np.testing.assert_array_equal(found["sum"], network.backward(np.ones((4, 2))))
    np.testing.assert_array_equal(found["loss"], network.backward(loss(out, y)[1]))
    np.testing.assert_array_equal(found["user"], network.backward(out - y))
    np.testing.assert_allclose(found["graph"], found["loss"], rtol=1e-13)
    np.testing.assert_allclose(found["function"], 2 * found["sum"], rtol=1e-13)
    layer = fastbp.GELU()
    layer(x)
    np.testing.assert_array_equal(found["layer"], layer.backward(np.ones_like(x)))


def test_jacobian(network):
    x = batch()
    network.eval()
    of_rows = fastbp.jacobian(network, x)
    assert of_rows.shape == (4, 2, 3)
    np.testing.assert_allclose(of_rows.sum(axis=1), fastbp.input_gradient(network, x), rtol=1e-12)
    full = fastbp.jacobian(lambda v: network(v), x)
    assert full.shape == (4, 2, 4, 3)
    np.testing.assert_allclose(full[np.arange(4), :, np.arange(4)], of_rows, rtol=1e-12)
    assert not full[0, :, 1:].any()
    w = np.random.default_rng(1).normal(size=(3, 2))
    np.testing.assert_allclose(fastbp.jacobian(lambda v: v @ w, x[0]), w.T)
    assert fastbp.jacobian(lambda v: v * v, 3.0) == 6
    assert not fastbp.jacobian(lambda v: Variable(np.ones(2)), x).any()
    with pytest.raises(RuntimeError, match="no gradients are stored"):
        _ = network.flat_gradients


def test_evaluation_mode_in_derivatives(device):
    model = fastbp.Sequential(fastbp.Linear(3, 50), fastbp.Dropout(0.5), dtype="float64", device=device, seed=0)
    np.testing.assert_allclose(fastbp.jacobian(model, batch()), np.broadcast_to(model.layers[0].weight.T, (4, 50, 3)))
    assert model.training


def test_bad_arguments_of_derivatives(network):
    for call, error, match in (
        (lambda: fastbp.jacobian("model", batch()), TypeError, "a Sequential, a layer or a function of Variables"),
        (lambda: fastbp.jacobian(lambda v: v.data, batch()), TypeError, "must return a Variable, got ndarray"),
        (lambda: fastbp.input_gradient(network, batch(), batch(4, 2)), ValueError, "pass loss="),
        (lambda: fastbp.input_gradient(network, batch(), loss=3), TypeError, "loss must be a loss or a function"),
        (lambda: fastbp.gradcheck(lambda a, b: a, (1.0, np.nan)), ValueError, "b must hold finite numbers"),
    ):
        with pytest.raises(error, match=match):
            call()


# ------------------------------------------------------------------------------------- drawings
def test_to_dot():
    """``L = (x + y) z``: data, functions, and the gradients that come in and go out."""
    x, y, z = leaf(-2.0, name="x"), leaf(5.0, name="y"), leaf(-4.0, name='"z"')
    out = (x + y) * z
    assert "grad" not in out.to_dot()
    out.backward(retain_graph=True)
    lines = [line.strip() for line in ag.to_dot(out).splitlines()]
    for line in (
        'v0 [label="x\\ndata -2\\ngrad -4"];',
        'v2 [label="\\"z\\"\\ndata -4\\ngrad 3"];',
        'f3 [label="Add", shape=ellipse];',
        'v0 -> f3 [label="-4"];',
        'f3 -> v3 [label="-4"];',
        'f4 [label="Multiply", shape=ellipse];',
        'v3 -> f4 [label="-4"];',
        'v2 -> f4 [label="3"];',
        'f4 -> v4 [label="1"];',
        'v4 [label="data -12\\ngrad 1"];',
    ):
        assert line in lines
    assert lines[0] == "digraph {"
    assert lines[-1] == "}"
    out.backward()
    assert "ellipse" not in out.to_dot()


def test_to_dot_of_arrays_and_layers(network):
    """What goes back along each edge adds up to the gradient; drawing stores nothing."""
    x = leaf(batch(), name="x")
    h = network(x)
    out = (h * h).sum() + x.sum()
    out.backward(retain_graph=True)
    before, grad = network.flat_gradients, x.grad.copy()
    text = out.to_dot()
    np.testing.assert_array_equal(network.flat_gradients, before)
    np.testing.assert_array_equal(x.grad, grad)
    assert '[label="Sequential", shape=ellipse]' in text
    assert "float64 (4, 3)" in text
    text = (leaf([1.0, 2.0]).tanh() @ [1.0, 1.0]).to_dot()
    assert '[label="tanh", shape=ellipse]' in text
    assert "data [1, 2]" in text
