"""Training and predicting as wholes, small enough for the simulator: the promises of the walk over the program.

Runs on a GPU, and without one in the simulator, where test_simulator.py starts it.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from fastbp.kernels import cuda, layout, reference

from ..contract import cases

pytestmark = pytest.mark.skipif(
    not cuda.driver.cuda.is_available(), reason="needs a GPU; test_simulator.py runs it without one"
)


LAUNCHES, ONE_LAUNCH, CLUSTER = "a launch an instruction", "all steps in one launch", "in a cluster"


@pytest.fixture(autouse=True, params=[LAUNCHES, ONE_LAUNCH, CLUSTER])
def path(request, monkeypatch):
    """How steps are made; small networks take the second way, and the third where it is asked for."""
    if request.param == CLUSTER:
        if cuda.driver.compute_capability() < cuda.cluster.LEAST_CAPABILITY:
            pytest.skip("needs a GPU with clusters")
        monkeypatch.setenv("FASTBP_CUDA", "cluster")
    else:
        monkeypatch.setattr(cuda.steps, "MOST_ROWS", 1024 if request.param == ONE_LAUNCH else -1)
        monkeypatch.delenv("FASTBP_CUDA", raising=False)
    return request.param


NETWORK = cases.Network((5, 7, 3), ("gelu", "identity"), dropout=0.25)
TRAINING = cases.Training("cross_entropy", "adam", examples=13, used=11, batch_size=4)  # two whole batches and a rest


def prepared(network=NETWORK, training=TRAINING, padding=0.0, weights=None):
    """Arguments of a training call on the device, made from the same numbers each time."""
    arguments = cases.training_arguments(network, training, np.random.default_rng(7), np.float32, padding=padding)
    arguments = cases.each(arguments, lambda operand: operand.value.copy(), cuda, np.float32)
    for name in ("parameters", "statistics", "x", "target"):
        arguments[cases.AT[name]] = cuda.to_device(arguments[cases.AT[name]])
    arguments[cases.AT["state"]] = tuple(map(cuda.to_device, arguments[cases.AT["state"]]))
    if weights is not None:
        arguments[cases.AT["row_weight"]] = cuda.to_device(weights)
    return arguments


def results(arguments, done, network=NETWORK):
    """Real parameters and state, losses and hits, and the steps done."""
    real = network.real(np.float32)
    buffers = [arguments[cases.AT["parameters"]], *arguments[cases.AT["state"]]]
    return [cuda.to_host(buffer)[real] for buffer in buffers] + list(arguments[-2:]), done


def trained(**options):
    arguments = prepared(**options)
    return results(arguments, cuda.network_train_steps(*arguments))


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        cases.assert_same_bits(a, b)


def assert_steps_are_the_reference(network, training, weights=None):
    arguments = prepared(network, training, weights=weights)
    there = results(arguments, cuda.network_train_steps(*arguments), network)

    def widened(operand):
        return operand.value.astype(np.float64 if operand.value.dtype == np.float32 else operand.value.dtype)

    exact = cases.training_arguments(network, training, np.random.default_rng(7), np.float32, padding=0.0)
    exact = cases.each(exact, widened, reference, np.float64)
    exact[cases.AT["row_weight"]] = weights
    assert there[1] == reference.network_train_steps(*exact) == 3
    real = network.real(np.float32)
    expected = [exact[cases.AT["parameters"]][real], *(s[real] for s in exact[cases.AT["state"]]), *exact[-2:]]
    for a, b in zip(there[0], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("weights", [None, np.arange(13.0)], ids=["mean", "weighted"])
def test_steps_are_the_reference(weights):
    assert_steps_are_the_reference(NETWORK, TRAINING, weights)


@pytest.mark.parametrize("optimizer", layout.OPTIMIZERS)
def test_steps_of_every_optimizer_and_activation(optimizer, path, pytestconfig):
    if path == CLUSTER and optimizer != "amsgrad" and not pytestconfig.getoption("long"):
        pytest.skip("--long makes all of them: a kernel each")
    activations = layout.ACTIVATIONS[layout.OPTIMIZERS.index(optimizer) :: len(layout.OPTIMIZERS)]
    network = cases.Network((5, *(4 for _ in activations), 3), (*activations, "identity"))
    assert_steps_are_the_reference(network, TRAINING._replace(optimizer=optimizer))


def test_gradients_in_parts(monkeypatch, path):
    """Of large batches of small layers; launched, captured and replayed. The rest has other parts."""
    plans, plan_of = [], cuda.gemm.plan_of
    monkeypatch.setattr(cuda.gemm, "plan_of", lambda *product: plans.append(plan_of(*product)) or plans[-1])
    assert_steps_are_the_reference(NETWORK, TRAINING._replace(examples=440, used=440, batch_size=200))
    assert any(plan.parts > 1 for plan in plans) == (path == LAUNCHES)


def test_column_sums_in_chunks():
    """That the update adds up, but for those of the rest."""
    rows = 2 * cuda.elementwise.SUM_ROWS + 1
    used = 2 * rows + cuda.elementwise.SUM_ROWS
    assert_steps_are_the_reference(NETWORK, TRAINING._replace(examples=used, used=used, batch_size=rows))


def test_steps_a_launch_change_no_bits(monkeypatch):
    expected, _ = trained()
    monkeypatch.setattr(cuda.steps, "MOST_STEPS", 2)
    assert_equal(trained()[0], expected)


def test_steps_a_graph_change_no_bits(monkeypatch):
    expected, _ = trained(training=TRAINING._replace(used=13))
    monkeypatch.setattr(cuda.network, "STEPS_A_GRAPH", 2)
    monkeypatch.setattr(cuda.network, "STEPS_BEFORE", 2)
    assert_equal(trained(training=TRAINING._replace(used=13))[0], expected)


def test_a_step_is_captured_once_and_replayed(monkeypatch, path):
    captured, capture = [], cuda.streams.capture
    monkeypatch.setattr(cuda.streams, "capture", lambda launches: captured.append(1) or capture(launches))
    training = TRAINING._replace(used=13)  # three whole batches and a rest of one row
    arguments = prepared(training=training)
    first, _ = results(arguments, cuda.network_train_steps(*arguments))
    graphs = path == LAUNCHES
    assert len(captured) == graphs  # the first launched, the second captured, the third replayed
    again = prepared(training=training)
    for old, new in zip(
        (arguments[1], *arguments[3], arguments[cases.AT["x"]], arguments[cases.AT["target"]]),
        (again[1], *again[3], again[cases.AT["x"]], again[cases.AT["target"]]),
        strict=True,
    ):
        cuda.memory.to_device(new, old)
    for out in arguments[-2:]:
        out[...] = 0
    second, _ = results(arguments, cuda.network_train_steps(*arguments))
    assert len(captured) == 2 * graphs  # now the rest too
    assert_equal(first, second)


@pytest.mark.skipif(cuda.driver.simulated, reason="there an empty array, such as no statistics, is a new one each time")
def test_the_graphs_that_were_used_last_are_kept(monkeypatch, path):
    captured, capture = [], cuda.streams.capture
    monkeypatch.setattr(cuda.streams, "capture", lambda launches: captured.append(1) or capture(launches))
    monkeypatch.setattr(cuda.network, "GRAPHS", 2)
    runs = [prepared(training=TRAINING._replace(used=8)) for _ in range(3)]  # two batches, the second captured
    for chosen, graphs in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):  # the third time for 2, instead of 1
        cuda.network_train_steps(runs[0][0], *runs[chosen][1:])
        assert len(captured) == graphs * (path == LAUNCHES)


def test_many_steps_are_single_steps():
    together, done = trained()
    assert done == 3
    arguments = prepared()
    workspace, parameters, statistics, state, scalars, keys, x, target, weight, rows, size, *_ = arguments
    step_loss, step_hits = arguments[-2:]
    for step in range(3):
        part = slice(step, step + 1)
        batch = rows[step * size : (step + 1) * size]
        one = cuda.network_train_steps(
            workspace, parameters, statistics, state, scalars[part], keys[part], x, target, weight, batch, size,
            step_loss[part], step_hits[part],
        )  # fmt: skip
        assert one == 1
    assert_equal(together, results(arguments, 3)[0])


def test_padding_changes_nothing():
    assert_equal(trained(padding=np.nan)[0], trained(padding=0.0)[0])


def test_equal_weights_are_no_weights():
    training = TRAINING._replace(used=8)  # batches of a power of two, so that 1/n and w/sum(w) are the same number
    assert_equal(trained(training=training)[0], trained(training=training, weights=np.full(13, 0.5))[0])


def test_weights_of_0_count_for_nothing():
    (*_, losses, _), done = trained(weights=np.zeros(13))
    assert done == 3
    assert losses.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_that_is_not_finite_stops_before_its_update(monkeypatch, bad):
    """Where steps are graphs, within one of two steps, before another graph."""
    monkeypatch.setattr(cuda.network, "STEPS_A_GRAPH", 2)
    monkeypatch.setattr(cuda.network, "STEPS_BEFORE", 2)
    training = TRAINING._replace(used=13)  # three whole batches and a rest of one row
    first = prepared(training=training)
    for name in ("coefficients", "keys", "step_loss", "step_hits"):
        first[cases.AT[name]] = first[cases.AT[name]][:1]
    first[cases.AT["rows"]] = first[cases.AT["rows"]][:4]
    expected, _ = results(first, cuda.network_train_steps(*first))
    spoilt = prepared(training=training)
    x = cuda.to_host(spoilt[cases.AT["x"]])
    x[spoilt[cases.AT["rows"]][5]] = bad  # a row of the second batch
    spoilt[cases.AT["x"]] = cuda.to_device(x)
    stopped, done = results(spoilt, cuda.network_train_steps(*spoilt))
    assert done == 1
    assert_equal(stopped[:-2], expected[:-2])
    assert stopped[-2][0] == expected[-2][0]
    assert not np.isfinite(stopped[-2][1])
    assert np.isnan(stopped[-2][2])  # a step that was not made: not written


def test_larger_workspace_serves_smaller_batches():
    expected, _ = trained()
    arguments = prepared()
    arguments[0] = cuda.TrainingWorkspace(NETWORK.lower(np.float32), np.float32, 9, *TRAINING.codes())
    assert_equal(results(arguments, cuda.network_train_steps(*arguments))[0], expected)


def test_no_rows_are_no_steps():
    arguments = prepared(training=TRAINING._replace(used=0))
    before = cuda.to_host(arguments[1])
    assert cuda.network_train_steps(*arguments) == 0
    cases.assert_same_bits(cuda.to_host(arguments[1]), before)


def test_inference_in_blocks_is_inference(monkeypatch):
    """Blocks of four rows, the last one short; a row has the same bits in every batch."""
    rows, parameters = NETWORK.parameters(np.random.default_rng(3), np.float32)
    x = np.random.default_rng(4).standard_normal((11, 5)).astype(np.float32)

    def predict(x, workspace):
        out = cuda.empty((len(x), 3), np.float32)
        cuda.network_forward(workspace, cuda.to_device(parameters), cuda.zeros(0, np.float32), cuda.to_device(x), out)
        return cuda.to_host(out)

    whole = predict(x, cuda.InferenceWorkspace(rows, np.float32))
    monkeypatch.setattr(cuda.network, "INFERENCE_BYTES", 0)
    monkeypatch.setattr(cuda.network, "INFERENCE_ROWS", 4)
    blocks = cuda.InferenceWorkspace(rows, np.float32)
    for part in (slice(0, 11), slice(3, 4), slice(2, 8), slice(0, 0)):
        cases.assert_same_bits(predict(x[part], blocks), whole[part])
    exact = np.empty((11, 3))
    workspace, nothing = reference.InferenceWorkspace(rows, np.float64), np.zeros(0)
    reference.network_forward(workspace, parameters.astype(np.float64), nothing, x, exact)
    np.testing.assert_allclose(whole, exact, rtol=0, atol=1e-5)


def test_array_of_the_host_is_refused():
    arguments = prepared()
    arguments[cases.AT["x"]] = cuda.to_host(arguments[cases.AT["x"]])
    with pytest.raises(TypeError, match="expected an array on the GPU; got ndarray"):
        cuda.network_train_steps(*arguments)


def test_coefficients_of_vectors_apart_are_refused():
    arguments = prepared()
    arguments[cases.AT["coefficients"]] = np.stack([arguments[cases.AT["coefficients"]]] * 2)
    with pytest.raises(ValueError, match=r"all parameters alike, got coefficients of shape \(2, 3, 8\)"):
        cuda.network_train_steps(*arguments)


def test_shuffle_permutes_rows_wherever_they_are():
    expected = np.arange(20)
    reference.shuffle(expected, 5)
    there, here = cuda.to_device(np.arange(20)), np.arange(20)
    cuda.shuffle(there, 5)
    cuda.shuffle(here, 5)
    cases.assert_same_bits(cuda.to_host(there), expected)
    cases.assert_same_bits(here, expected)


def test_wide_sums_of_columns_go_by_chunks():
    """More rows than a block sums, with a rest; exact on integers."""
    rows = 2 * cuda.elementwise.SUM_ROWS + 3
    x, grad = (np.random.default_rng(8).integers(-4, 5, (rows, n)).astype(np.float32) for n in (2, 11))
    weight, bias = cuda.zeros((2, 11), np.float32), cuda.to_device(np.ones(11, np.float32))
    for _ in range(2):
        cuda.linear_backward_params(cuda.to_device(x), cuda.to_device(grad), 1, weight, bias)
    np.testing.assert_array_equal(cuda.to_host(bias), 1 + 2 * grad.sum(axis=0))
    np.testing.assert_array_equal(cuda.to_host(weight), 2 * (x.T @ grad))


def test_steps_learn():
    """Five steps on one batch lower its loss."""
    network = cases.Network((4, 6, 3), ("gelu", "identity"), separate=True)  # in the kernel of `NETWORK`
    arguments = cases.training_arguments(
        network, TRAINING._replace(used=8, batch_size=8), np.random.default_rng(1), np.float32, padding=0.0
    )
    arguments = cases.each(arguments, lambda operand: operand.value.copy(), cuda, np.float32)
    for name in ("parameters", "statistics", "x", "target"):
        arguments[cases.AT[name]] = cuda.to_device(arguments[cases.AT[name]])
    arguments[cases.AT["state"]] = tuple(map(cuda.to_device, arguments[cases.AT["state"]]))
    losses = []
    for t in range(1, 6):
        arguments[cases.AT["coefficients"]] = cases.coefficients("adam", t, lr=0.1)[None]
        assert cuda.network_train_steps(*arguments) == 1
        losses.append(float(arguments[cases.AT["step_loss"]][0]))
    assert losses == sorted(losses, reverse=True)
