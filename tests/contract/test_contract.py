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
