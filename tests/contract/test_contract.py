"""Every backend against the contract: one test a case, backend and dtype; the cases are in cases.py."""

import inspect
from fnmatch import fnmatchcase

import numpy as np
import pytest

from fastbp.kernels import reference
from fastbp.kernels.contract import FUNCTIONS

from ..conftest import BACKENDS
from . import cases


def marks(device, case, dtype):
    """Of the oracle the default run has a sample: in float64 a call of it is compared with itself."""
    tiny = cases.is_tiny(case)
    itself = device == "reference" and case.arguments is not None and (dtype == np.float64 or not case.quick)
    long = (case.long or itself) and not (tiny and device == "cuda")
    return [pytest.mark.quick] * case.quick + [pytest.mark.tiny] * tiny + [pytest.mark.long] * long


PARAMETERS = [
    pytest.param(device, case, dtype, id=f"{device}-{case}-{np.dtype(dtype).name}", marks=marks(device, case, dtype))
    for device in BACKENDS
    for case in cases.CASES
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("device", "case", "dtype"), PARAMETERS)
def test_case(backend, case, dtype):
    case.check(backend, dtype)


@pytest.mark.tiny
@pytest.mark.parametrize("name", cases.contract())
def test_signature_is_the_reference(backend, name):
    assert inspect.signature(getattr(backend, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.tiny
def test_backend_bears_its_name(backend, device):
    assert backend.name == device


def test_every_contract_function_has_a_case():
    assert {case.function for case in cases.CASES} == set(cases.contract())


# They take no arrays of a caller, or hand them on as they are.
WITHOUT_OPERANDS = frozenset(
    ("InferenceWorkspace", "TrainingWorkspace", "gathers", "precisions", "empty", "zeros", "to_device", "to_host",
     "optimizer_call", "synchronize", "set_num_threads", "get_num_threads", "serial", "warmup", "config")
)  # fmt: skip


def test_every_contract_function_declares_its_arrays():
    assert set(FUNCTIONS) == set(cases.contract()) - WITHOUT_OPERANDS


def test_every_declared_function_has_a_call():
    """Of which every written array is among canaries, and, in guard_pages.py, every array beside a guard page."""
    assert {case.function for case in cases.CASES if case.arguments and case.quick} == set(FUNCTIONS)


def test_every_contract_function_is_simulated_or_named():
    assert {case.function for case in cases.CASES if cases.is_tiny(case)} == set(cases.contract()) - cases.NOT_SIMULATED
    for pattern in cases.TINY:
        assert any(fnmatchcase(str(case), pattern) for case in cases.CASES), pattern


def test_labels_are_unique():
    names = [str(case) for case in cases.CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("norm", ["", "layer_norm"])
def test_matrices_and_vectors_have_coefficients_of_their_own(backend, device, norm):
    """A step whose vectors have a learning rate of 0, beside one where all have the same."""
    if device == "cuda":
        pytest.skip("the GPU refuses them")
    network = cases.Network((5, 17, 4), ("tanh", "identity"), norm=norm)
    training = cases.Training("cross_entropy", "sgd", 20, 16, 16)
    trained = []
    for rate in (None, 0.0):

        def prepare(arguments, rate=rate):
            if rate is not None:
                scalars = arguments[cases.AT["coefficients"]]
                arguments[cases.AT["coefficients"]] = np.stack([scalars, rate * scalars])

        (parameters, *_), done = cases.train(backend, network, training, np.float64, prepare=prepare)
        assert done == 1
        trained.append(parameters)
    lowered = network.lower(np.float64)
    before = network.parameters(cases.GENERATOR(31), np.float64)[1]
    real = network.real(np.float64)
    alike, apart = (np.full(lowered.size, np.nan) for _ in range(2))
    alike[real], apart[real] = trained
    for array in lowered.arrays:
        expected = before if len(array.shape) == 1 else alike
        np.testing.assert_array_equal(array.view(apart), array.view(expected))
        assert not np.array_equal(array.view(alike), array.view(before))


@pytest.mark.parametrize("frozen", [set(), {0}])
@pytest.mark.parametrize(
    "network", [cases.BEHAVIOUR_NETWORKS[1], cases.BEHAVIOUR_NETWORKS[4], cases.MEETING, cases.BIG]
)
def test_a_step_sums_the_squares_of_the_weights_that_it_updates(backend, device, network, frozen):
    """Those before the update, whatever the number of threads; the training is the same to the bit."""
    training, dtype, before = cases.Training("cross_entropy", "adam", 90, 80, 33), np.float32, backend.get_num_threads()
    results = {}
    for asked, threads in ((False, 1), (True, 1), (True, 2), (True, 3)):

        def prepare(arguments, asked=asked):
            program = arguments[0].program.with_frozen(frozen)
            arguments[0] = backend.TrainingWorkspace(program, dtype, training.batch_size, *training.codes())
            results["program"] = program
            if asked:
                arguments.append(np.full(3, np.nan))

        backend.set_num_threads(threads)
        try:
            if asked and device == "cuda":
                with pytest.raises(ValueError, match="the GPU sums no squares of weights: step_squares must be None"):
                    cases.train(backend, network, training, dtype, prepare=prepare)
                return
            outputs, done = cases.train(backend, network, training, dtype, prepare=prepare)
        finally:
            backend.set_num_threads(before)
        assert done == 3
        results[asked, threads] = outputs

    def squares_before(steps):
        """The same of the weights that so many steps leave."""

        def prepare(arguments):
            arguments[0] = backend.TrainingWorkspace(results["program"], dtype, training.batch_size, *training.codes())
            arguments[cases.AT["rows"]] = arguments[cases.AT["rows"]][: 33 * steps]

        values = np.zeros(results["program"].size, dtype)
        values[network.real(dtype)] = cases.train(backend, network, training, dtype, prepare=prepare)[0][0]
        weights = (a.view(values) for a in results["program"].arrays if len(a.shape) == 2 and a.row not in frozen)
        return sum(np.square(weight, dtype=np.float64).sum() for weight in weights)

    for a, b in zip(results[False, 1][:-2], results[True, 1][:-2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(results[True, 1][-1], [squares_before(steps) for steps in range(3)], rtol=1e-13)
    for threads in (2, 3):
        np.testing.assert_array_equal(results[True, threads][-1], results[True, 1][-1])


class Exchange:
    """With others that have no rows; ``change`` is called with the buffer and the size of the gradient."""

    def __init__(self, program, dtype, change):
        self.size, self.weight, self.change, self.shared = program.trained_size, 32.0, change, []
        self.buffer = np.full(self.size + 3, np.nan, dtype)
        self.buffer[-1] = 7

    def share(self, operation, values):
        self.shared.append(operation)

    def reduce(self):
        self.given = self.buffer.copy()
        self.change(self.buffer, self.size)


def one_step(backend, network, dtype, frozen=(), optimizer="adam", rows=32, change=None, exchanges=True):
    """What a step of 32 rows makes: parameters, statistics and state; loss, hits, steps done, its exchange."""
    training, kept = cases.Training("cross_entropy", optimizer, 90, 32, 32), []

    def prepare(arguments):
        program = arguments[0].program.with_frozen(frozen)
        arguments[0] = backend.TrainingWorkspace(program, dtype, training.batch_size, *training.codes())
        arguments[cases.AT["rows"]] = arguments[cases.AT["rows"]][:rows]
        exchange = Exchange(program, dtype, change or (lambda buffer, size: None)) if exchanges else None
        kept.extend([arguments[cases.AT["step_loss"]], arguments[cases.AT["step_hits"]], exchange])
        arguments += [None, exchange]

    outputs, done = cases.train(backend, network, training, dtype, prepare=prepare)
    step_loss, step_hits, exchange = kept
    return outputs[:-2], step_loss[0], step_hits[0], done, exchange


EXCHANGING = [cases.BEHAVIOUR_NETWORKS[1], cases.BEHAVIOUR_NETWORKS[4], cases.MEETING, cases.BIG]
OF_GPU = "the GPU refuses it"


@pytest.mark.parametrize("network", EXCHANGING)
def test_a_step_that_exchanges_nothing_is_the_step(backend, device, network):
    """To the bit, but for the loss, which is rounded to the dtype on its way."""
    if device == "cuda":
        with pytest.raises(ValueError, match="the GPU exchanges no gradients within a step: exchange must be None"):
            one_step(backend, network, np.float32)
        return
    before = backend.get_num_threads()
    for dtype, frozen in ((np.float32, set()), (np.float64, {0})):
        expected, loss, hits, _, _ = one_step(backend, network, dtype, frozen, exchanges=False)
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            try:
                outputs, step_loss, step_hits, done, exchange = one_step(backend, network, dtype, frozen)
            finally:
                backend.set_num_threads(before)
            for a, b in zip(outputs, expected, strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(step_loss, loss, rtol=np.finfo(dtype).eps)
            assert (step_hits, done) == (hits, 1)
            assert exchange.buffer[-1] == 7  # what is behind the hits is not the step's
            assert bool(exchange.shared) == (network is cases.MEETING)


@pytest.mark.parametrize("network", EXCHANGING)
@pytest.mark.parametrize("frozen", [set(), {0}])
def test_parameters_are_updated_by_what_the_exchange_leaves(backend, device, network, frozen):
    """A gradient whose numbers are all different."""
    if device == "cuda":
        pytest.skip(OF_GPU)

    def change(buffer, size):
        buffer[:size] = np.arange(1, size + 1)
        buffer[size:-1] = 3, 5

    (after, *_), *results, exchange = one_step(backend, network, np.float64, frozen, "sgd", change=change)
    assert results == [3, 5, 1]
    program, before = network.parameters(cases.GENERATOR(31), np.float64)
    program, values = program.with_frozen(frozen), before.copy()
    values[network.real(np.float64)] = after
    packed, lr = iter(program.gradients), cases.TRAINING_HYPERPARAMETERS["sgd"]["lr"]
    for array in program.arrays:
        moved = array.view(before) - array.view(values)
        if array.trains:
            moved -= lr * next(packed).view(np.arange(1.0, exchange.size + 1))
        np.testing.assert_allclose(moved, 0, atol=1e-10)
    assert next(packed, None) is None


@pytest.mark.parametrize("network", EXCHANGING)
def test_a_loss_that_is_not_finite_elsewhere_changes_nothing(backend, device, network):
    if device == "cuda":
        pytest.skip(OF_GPU)

    def change(buffer, size):
        buffer[size] = np.inf

    nothing, *_ = one_step(backend, network, np.float32, {0}, exchanges=False, rows=0)
    outputs, loss, _, done, _ = one_step(backend, network, np.float32, {0}, change=change)
    assert (loss, done) == (np.inf, 0)
    for a, b in zip(outputs, nothing, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("network", EXCHANGING)
def test_a_process_without_rows_adds_nothing(backend, device, network):
    if device == "cuda":
        pytest.skip(OF_GPU)
    *_, done, exchange = one_step(backend, network, np.float64, rows=0)
    assert done == 1
    assert not exchange.given[:-1].any()
