"""The errors of the float32 activations, over one input of each of 2^20 strata of all there are."""

import numpy as np
import pytest

from fastbp.kernels import layout

from . import accuracy


@pytest.mark.parametrize("bits", [pytest.param(20, id="2^20"), pytest.param(26, id="2^26", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", layout.ACTIVATIONS)
def test_errors_of_activations(name, bits):
    """At most 4 ULP, or a reason; then at most 4 beside what a rounding of z does, 4.5 of GELU, which has 4.35 over all
    inputs. Derivatives: 4 eps, absolute."""
    found = accuracy.measured(name, bits)
    assert found.value[0] <= 4 or name in accuracy.REASONS, found
    assert found.conditioned[0] <= (4.5 if name == "gelu" else 4), found
    assert found.derivative[0] <= 4, found
    assert found.value[0] > 0 or name in ("identity", "relu")


def test_every_stratum_is_met():
    z = np.concatenate([block.ravel() for block in accuracy.inputs(20)]).view(np.uint32)
    np.testing.assert_array_equal(z >> 12, np.arange(1 << 20))


def test_a_wrong_value_is_seen(monkeypatch):
    """The measure itself: a kernel that gives the next number but four is five ULP off."""
    name = "tanh"
    forward = accuracy.cpu.activation_forward

    def off(z, code, parameter, out):
        forward(z, code, parameter, out)
        (out.view(np.int32))[...] += 5

    z = next(accuracy.inputs(20))
    right = accuracy.errors(name, z)
    monkeypatch.setattr(accuracy.cpu, "activation_forward", off)
    assert 1 < accuracy.errors(name, z).value[0] - right.value[0] < 8
