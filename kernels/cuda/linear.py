"""The linear layer: three products with their epilogues, and column sums, as `reference.linear_*` define them.

`network` and the functions of the contract in `__init__` call these. Each takes the layer as a `Linear` and the number
``n`` of rows; x is (n, fan_in), the weight (fan_in, fan_out), z and its gradient (n, fan_out), all as `Matrix`. Where
a network stores factors (factors.py), ``factors`` are those of the product.
"""

from ..layout import SAVES_PRE_ACTIVATION
from . import gemm, panel_gemm, streams
from .blocking import most_parts, padded_columns
from .elementwise import activation_forward, chunks_left, chunks_of, column_sum, leave_column_sum
from .gemm import Epilogue
from .operands import Matrix


def _product(trans, shape, a, b, c, stream, epilogue, precision, factors=None, **cut):
    """`gemm.gemm`, or that of stored factors where these are asked for, which also takes ``factors``."""
    if factors is not None or panel_gemm.chosen(precision, c.data.dtype) is not None:
        return panel_gemm.gemm(trans, shape, a, b, c, stream, epilogue, precision, factors=factors, **cut)
    return gemm.gemm(trans, shape, a, b, c, stream, epilogue, precision, **cut)


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
    return sum(room_for_parts((fan_in, fan_out, n), padded_columns(fan_out)))


def linear_backward_params(layer, n, x, grad_z, beta, grad_weight, grad_bias, scratch, stream):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``; ``grad_bias``, unless it is None, likewise of column sums.

    ``scratch`` has `params_scratch` elements. The activation of the layer is not used. Where both sums are cut, one
    launch adds up what either was cut into.
    """
    fan_in, fan_out = layer.fan_in, layer.fan_out
    parts = Matrix(scratch, 0, padded_columns(fan_out))
    sums = Matrix(scratch, room_for_parts((fan_in, fan_out, n), parts.ld)[0], fan_out)
    count = leave_params(layer, n, x, grad_z, beta, grad_weight, grad_bias, parts, sums, stream)
    chunks = 1 if grad_bias is None else chunks_left(n)
    columns = (chunks, sums, grad_bias) if chunks > 1 else None
    if count > 1:
        gemm.add_up(count, fan_in, fan_out, beta, parts, grad_weight, stream, columns)
    elif columns:
        column_sum(chunks, fan_out, beta, sums, grad_bias, stream)


def leave_params(layer, n, x, grad_z, beta, grad_weight, grad_bias, parts, sums, stream, factors=None):
    """Launch `linear_backward_params`, but leave what is cut to be added up: ``parts``, and chunks, rows of ``sums``.

    Returns how many parts there are; there are `chunks_left`. Sums of columns are made on a branch, beside the product.
    """
    beside, fan_out = streams.branch(stream, "columns"), layer.fan_out
    if grad_bias is not None:
        leave_column_sum(n, fan_out, beta, grad_z, sums, grad_bias, beside)
    product = (layer.fan_in, fan_out, n), x, grad_z, grad_weight, stream, Epilogue(beta=beta), layer.precision
    count = _product("TN", *product, factors, parts=parts)
    streams.join(beside, stream)
    return count


def parts_left(shape, precision, dtype):
    """What `leave_params` leaves of a layer, (fan_in, fan_out, n): how many parts, and how many chunks; 1 is none."""
    way = panel_gemm.chosen(precision, dtype)
    if way is None:
        plan = gemm.plan_for(shape, True, dtype, precision)
    else:
        plan = panel_gemm.plan_for(way, shape, True, precision)
    return plan.parts, chunks_left(shape[2])


def room_for_parts(shape, ld):
    """Elements of the parts of a layer, (fan_in, fan_out, n), with this leading dimension, and those of its chunks.

    There is room for those of fewer rows as well.
    """
    fan_in, fan_out, n = shape
    most = most_parts(shape)
    return most * fan_in * ld if most > 1 else 0, chunks_of(n) * fan_out
