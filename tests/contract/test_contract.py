"""Every backend against the contract: one test a case, backend and dtype; the cases are in cases.py."""

import inspect

import numpy as np
import pytest

from fastbp.kernels import reference

from . import cases

PARAMETERS = [
    pytest.param(case, dtype, id=f"{case}-{np.dtype(dtype).name}", marks=[pytest.mark.quick] * case.quick)
    for case in cases.CASES
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("case", "dtype"), PARAMETERS)
def test_case(backend, case, dtype):
    case.check(backend, dtype)


@pytest.mark.parametrize("name", cases.contract())
def test_signature_is_the_reference(backend, name):
    assert inspect.signature(getattr(backend, name)) == inspect.signature(getattr(reference, name))


def test_backend_bears_its_name(backend, device):
    assert backend.name == device


def test_every_contract_function_has_a_case():
    assert {case.function for case in cases.CASES} == set(cases.contract())


def test_labels_are_unique():
    names = [str(case) for case in cases.CASES]
    assert len(names) == len(set(names))
