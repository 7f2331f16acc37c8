"""Every backend against the contract: one test a case, backend and dtype; the cases are in cases.py."""

import inspect
from fnmatch import fnmatchcase

import numpy as np
import pytest

from fastbp.kernels import reference

from . import cases


def marks(case):
    return [pytest.mark.quick] * case.quick + [pytest.mark.tiny] * cases.is_tiny(case)


PARAMETERS = [
    pytest.param(case, dtype, id=f"{case}-{np.dtype(dtype).name}", marks=marks(case))
    for case in cases.CASES
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("case", "dtype"), PARAMETERS)
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


def test_every_contract_function_is_simulated_or_named():
    assert {case.function for case in cases.CASES if cases.is_tiny(case)} == set(cases.contract()) - cases.NOT_SIMULATED
    for pattern in cases.TINY:
        assert any(fnmatchcase(str(case), pattern) for case in cases.CASES), pattern


def test_labels_are_unique():
    names = [str(case) for case in cases.CASES]
    assert len(names) == len(set(names))
