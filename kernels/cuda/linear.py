"""The linear layer: three products with their epilogues, and column sums, as `reference.linear_*` define them.

The walk (network.py) and the contract (`__init__`) call these.
"""

from ..layout import SAVES_PRE_ACTIVATION
from . import wgmma
from .elementwise import activation_forward, column_sum
from .gemm import gemm


def _product(precision, out):
    """What makes a product of a precision."""
    return wgmma.gemm if wgmma.chosen(precision, out.data.dtype) else gemm


def linear_forward(name, n, fan_in, fan_out, x, weight, bias, parameter, out, saved, precision, stream):
    """``z = x @ weight + bias``, ``out = act(z)``; z to ``saved`` unless that is None."""
    apart = saved is not None and name not in SAVES_PRE_ACTIVATION  # what the derivative does not ask for
    _product(precision, out)(
        "NN", n, fan_out, fan_in, x, weight, saved if apart else out, stream, bias=bias, saved=saved,
        epilogue="none" if apart or name == "identity" else f"forward:{name}", parameter=parameter, precision=precision,
    )  # fmt: skip
    if apart:
        activation_forward(name, n, fan_out, saved, out, parameter, stream)


def linear_backward_input(name, n, fan_in, fan_out, grad_z, weight, saved, parameter, out, precision, stream):
    """``out = (grad_z @ weight.T) * act'(saved)``."""
    epilogue = "none" if name == "identity" else f"backward:{name}"
    _product(precision, out)(
        "NT", n, fan_in, fan_out, grad_z, weight, out, stream,
        saved=saved, epilogue=epilogue, parameter=parameter, precision=precision,
    )  # fmt: skip


def linear_backward_params(n, fan_in, fan_out, x, grad_z, beta, grad_weight, grad_bias, scratch, precision, stream):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise unless ``grad_bias`` is None."""
    product = _product(precision, grad_weight)
    product("TN", fan_in, fan_out, n, x, grad_z, grad_weight, stream, beta=beta, precision=precision)
    if grad_bias is not None:
        column_sum(n, fan_out, beta, grad_z, grad_bias, scratch, stream)
