"""The linear layer: three products with their epilogues, and column sums, as `reference.linear_*` define them.

The walk (network.py) and the contract (`__init__`) call these.
"""

from ..layout import SAVES_PRE_ACTIVATION
from .blocking import parts_size
from .elementwise import activation_forward, column_sum, sum_scratch
from .gemm import Epilogue, gemm


def linear_forward(name, n, fan_in, fan_out, x, weight, bias, parameter, out, saved, precision, stream):
    """``z = x @ weight + bias``, ``out = act(z)``; z to ``saved`` unless that is None."""
    apart = saved is not None and name not in SAVES_PRE_ACTIVATION  # what the derivative does not ask for
    step = "none" if apart or name == "identity" else f"forward:{name}"
    epilogue = Epilogue(step, bias=bias, parameter=parameter, saved=saved)
    gemm("NN", (n, fan_out, fan_in), x, weight, saved if apart else out, stream, epilogue, precision)
    if apart:
        activation_forward(name, n, fan_out, saved, out, parameter, stream)


def linear_backward_input(name, n, fan_in, fan_out, grad_z, weight, saved, parameter, out, precision, stream):
    """``out = (grad_z @ weight.T) * act'(saved)``."""
    step = "none" if name == "identity" else f"backward:{name}"
    epilogue = Epilogue(step, parameter=parameter, saved=saved)
    gemm("NT", (n, fan_in, fan_out), grad_z, weight, out, stream, epilogue, precision)


def params_scratch(n, fan_in, fan_out):
    """Elements of scratch that `linear_backward_params` needs, for up to ``n`` rows."""
    return max(sum_scratch(n, fan_out), parts_size(fan_in, fan_out, n))


def linear_backward_params(n, fan_in, fan_out, x, grad_z, beta, grad_weight, grad_bias, scratch, precision, stream):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise unless ``grad_bias`` is None.

    ``scratch`` has `params_scratch` elements.
    """
    shape, epilogue = (fan_in, fan_out, n), Epilogue(beta=beta)
    gemm("TN", shape, x, grad_z, grad_weight, stream, epilogue, precision, parts=scratch)
    if grad_bias is not None:
        column_sum(n, fan_out, beta, grad_z, grad_bias, scratch, stream)
