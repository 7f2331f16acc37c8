"""Fixtures every test may use."""

import importlib

import pytest

BACKENDS = ("reference", "cpu")


@pytest.fixture(params=BACKENDS)
def device(request):
    """The name of a backend."""
    return request.param


@pytest.fixture
def backend(device):
    """The module of a backend: the contract's names."""
    return importlib.import_module(f"fastbp.kernels.{device}")
