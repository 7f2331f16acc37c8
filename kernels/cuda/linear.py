"""The linear layer: three products with their epilogues, and column sums, as `reference.linear_*` define them.

`network` and the functions of the contract in `__init__` call these. Each takes the layer as a `Linear` and the number
``n`` of rows; x is (n, fan_in), the weight (fan_in, fan_out), z and its gradient (n, fan_out), all as `Matrix`. Where
a network stores factors (factors.py), ``factors`` are those of the product.
"""

from ..layout import SAVES_PRE_ACTIVATION
from . import panel_gemm, streams
from .blocking import parts_size
from .elementwise import activation_forward, column_sum, sum_chunks, sum_scratch
from .gemm import Epilogue, gemm
from .operands import Matrix


def _product(trans, shape, a, b, c, stream, epilogue, precision, factors=None, **cut):
    """`gemm.gemm`, or that of stored factors where these are asked for, which also takes ``factors``."""
    if factors is not None or panel_gemm.chosen(precision, c.data.dtype) is not None:
        return panel_gemm.gemm(trans, shape, a, b, c, stream, epilogue, precision, factors=factors, **cut)
    return gemm(trans, shape, a, b, c, stream, epilogue, precision, **cut)


def linear_forward(layer, n, x, weight, bias, out, saved, stream, factors=None):
    """``z = x @ weight + bias``, ``out = act(z)``; ``bias`` and ``saved`` may be None.

    ``saved`` gets z where the derivative of the activation reads z, and may get it elsewhere.
    """
    name = layer.activation
    apart = saved is not None and name not in SAVES_PRE_ACTIVATION  # z beside the output, which takes a second launch
    step = "none" if apart or name == "identity" else f"forward:{name}"
    epilogue = Epilogue(step, bias=bias, parameter=layer.parameter, saved=saved)
    c = saved if apart else out
    _product("NN", (n, layer.fan_out, layer.fan_in), x, weight, c, stream, epilogue, layer.precision, factors)
    if apart:
        activation_forward(name, n, layer.fan_out, saved, out, layer.parameter, stream)


def linear_backward_input(layer, n, grad_z, weight, saved, out, stream, factors=None):
    """``out = (grad_z @ weight.T) * act'(saved)``, with the activation of the layer before."""
    step = "none" if layer.activation == "identity" else f"backward:{layer.activation}"
    epilogue = Epilogue(step, parameter=layer.parameter, saved=saved)
    shape = n, layer.fan_in, layer.fan_out
    _product("NT", shape, grad_z, weight, out, stream, epilogue, layer.precision, factors)


def params_scratch(n, fan_in, fan_out):
    """Elements of scratch that `linear_backward_params` needs, for up to ``n`` rows."""
    return parts_size(fan_in, fan_out, n) + sum_scratch(n, fan_out)


def linear_backward_params(layer, n, x, grad_z, beta, grad_weight, grad_bias, scratch, stream, factors=None):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``; ``grad_bias``, unless it is None, likewise of column sums.

    ``scratch`` has `params_scratch` elements. The activation of the layer is not used. Where both sums are cut, one
    launch adds up what either was cut into. Sums of columns are made on a branch, beside the product.
    """
    fan_in, fan_out = layer.fan_in, layer.fan_out
    rows, z, columns = n, grad_z, None
    if grad_bias is not None:
        beside = streams.branch(stream, "columns")
        sums = Matrix(scratch, parts_size(fan_in, fan_out, n), fan_out)
        rows, z = sum_chunks(n, fan_out, grad_z, sums, beside)
        columns = (rows, sums, grad_bias, beside) if z is sums else None
    product = (fan_in, fan_out, n), x, grad_z, grad_weight, stream, Epilogue(beta=beta), layer.precision
    added = _product("TN", *product, factors, parts=scratch, columns=columns)
    if grad_bias is not None and not (added and columns):
        column_sum(rows, fan_out, beta, z, grad_bias, beside)
        streams.join(beside, stream)
