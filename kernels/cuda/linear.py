"""The linear layer: three products with their epilogues, and column sums. What `reference.linear_*` define.

Arrays are flat, with an offset and a leading dimension. The walk (network.py) and the contract (`__init__`) call these.
"""

from ..layout import SAVES_PRE_ACTIVATION
from .elementwise import activation_forward, column_sum
from .gemm import gemm


def linear_forward(
    name, n, fan_in, fan_out, x, x_offset, ldx, weight, w_offset, ldw, bias, b_offset, parameter,
    out, out_offset, ldo, saved, saved_offset, lds, precision, stream,
):  # fmt: skip
    """``z = x @ weight + bias``, ``out = act(z)``; z to ``saved`` unless that is None."""
    epilogue, c = f"forward:{name}", (out, out_offset, ldo)
    apart = saved is not None and name not in SAVES_PRE_ACTIVATION  # what the derivative does not ask for
    if apart or name == "identity":
        epilogue = "none"
    if apart:
        c = saved, saved_offset, lds
    gemm(
        "NN", n, fan_out, fan_in, x, x_offset, ldx, weight, w_offset, ldw, 0, bias, b_offset, parameter,
        *c, saved, saved_offset, lds, epilogue, stream, precision,
    )  # fmt: skip
    if apart:
        activation_forward(name, n, fan_out, *c, out, out_offset, ldo, parameter, stream)


def linear_backward_input(
    name, n, fan_in, fan_out, grad_z, g_offset, ldg, weight, w_offset, ldw, saved, saved_offset, lds, parameter,
    out, out_offset, ldo, precision, stream,
):  # fmt: skip
    """``out = (grad_z @ weight.T) * act'(saved)``."""
    gemm(
        "NT", n, fan_in, fan_out, grad_z, g_offset, ldg, weight, w_offset, ldw, 0, None, 0, parameter,
        out, out_offset, ldo, saved, saved_offset, lds, "none" if name == "identity" else f"backward:{name}", stream,
        precision,
    )  # fmt: skip


def linear_backward_params(
    n, fan_in, fan_out, x, x_offset, ldx, grad_z, g_offset, ldg, beta, grad_weight, w_offset, ldw,
    grad_bias, b_offset, scratch, precision, stream,
):  # fmt: skip
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise unless ``grad_bias`` is None."""
    gemm(
        "TN", fan_in, fan_out, n, x, x_offset, ldx, grad_z, g_offset, ldg, beta, None, 0, 0.0,
        grad_weight, w_offset, ldw, None, 0, 0, "none", stream, precision,
    )  # fmt: skip
    if grad_bias is not None:
        column_sum(n, fan_out, beta, grad_z, g_offset, ldg, grad_bias, b_offset, scratch, stream)
