"""The contract on the CPU: `reference` on arrays, handed as addresses to compiled kernels.

The single layers run on the calling thread; `network_forward` and `network_train_steps` run on the team.
"""

import ctypes
import functools
import math
import struct
import time

import llvmlite
import numba
import numpy as np

from .. import jit, processors, reference, splitmix
from .. import layout as _layout
from .. import program as _program
from . import blocking, context, factors, formats, linear, network, norms, units
from .team import get_num_threads
from .team import serial as serial
from .team import set_num_threads as set_num_threads
from .workspaces import InferenceWorkspace as InferenceWorkspace
from .workspaces import TrainingWorkspace as TrainingWorkspace
from .workspaces import is_narrow, transpose_address

name = "cpu"
# Fields that change from call to call, in one call of C.
_set_rows, _ROWS_AT = struct.Struct("=6q").pack_into, 8 * network.GATHER_X
_set_steps, _STEPS_AT = struct.Struct("=14q").pack_into, 8 * network.COEFFICIENTS
_PARAMETERS, _STATISTICS = network.BASES + _program.PARAMETERS, network.BASES + _program.STATISTICS
_STATES = network.STATE_1, network.STATE_2, network.STATE_3
_PARAMETER_GRADIENTS = network.BASES + _program.PARAMETER_GRADIENTS
_DATA = object.__basicsize__  # where an array of NumPy keeps its address: after the header, by its C API
_word_at = ctypes.c_size_t.from_address


def _address(array) -> int:
    """The address of an array's first element, in a sixth of the time of ``.ctypes``."""
    return _word_at(id(array) + _DATA).value


# --------------------------------------------------------------------------------------- single layers
def _ld(array):
    return array.strides[0] // array.itemsize


def _name(activation):
    return _layout.ACTIVATIONS[activation]


def _call(kernel, signature, *arguments):
    context.c_function(kernel, *signature)(*arguments)


def _elementwise(kernel, c, other, parameter):
    _call(kernel, context.ELEMENTWISE, *c.shape, _address(c), _ld(c), _address(other), _ld(other), parameter)


def activation_forward(z, activation, activation_parameter, out):
    """On the calling thread; in place or not."""
    _elementwise(context.activation_forward(z.dtype, _name(activation)), z, out, activation_parameter)


def activation_backward(grad_out, saved, activation, activation_parameter, grad_z):
    """Copies the gradient unless in place, then multiplies."""
    if _address(grad_z) != _address(grad_out):
        _elementwise(context.activation_forward(grad_out.dtype, "identity"), grad_out, grad_z, 0.0)
    _elementwise(context.activation_backward(grad_z.dtype, _name(activation)), grad_z, saved, activation_parameter)


def softmax(z, out):
    """On the calling thread; in place or not."""
    scratch = np.empty(blocking.SQUARE, z.dtype)
    _call(
        context.softmax(z.dtype), context.SOFTMAX, *z.shape, _address(z), _ld(z), _address(out), _ld(out),
        _address(scratch),
    )  # fmt: skip


def dropout(x, rows, key, probability, out):
    """On the calling thread."""
    threshold = int(splitmix.threshold(probability).view(np.int64))
    _call(
        context.dropout(x.dtype), context.DROPOUT, *x.shape, _address(x), _ld(x), _address(out), _ld(out),
        _address(rows), key, threshold, 1 / (1 - probability),
    )  # fmt: skip


def shuffle(rows, key):
    """On the calling thread."""
    context.shuffle()(len(rows), _address(rows), int(key))


@functools.lru_cache(256)
def _sizes(longest, itemsize):
    """`blocking.sizes_for` of matrices with no longer side."""
    return blocking.sizes_for(longest, longest, itemsize)


def _packing(dtype, *lengths):
    """Scratch for packed operands, and the sizes, of a product of matrices with these lengths."""
    sizes = _sizes(max(lengths), dtype.itemsize)
    return _layout.aligned_empty(blocking.scratch_bytes(sizes), np.uint8).view(dtype), sizes


def _products(dtype, unit, sizes, transposes=False):
    """The fields of `operands.Products`; of pairs nothing is made by its transpose."""
    transpose = transpose_address(dtype, transposes and unit == units.FLOAT32)
    kernels = context.product(dtype, unit).address, transpose, context.column_sum(dtype).address
    return *kernels, dtype.itemsize, sizes.ctypes.data


def _operand(array):
    """The fields of `operands.Operand`."""
    return (0, 0, 0) if array is None else (_address(array), _ld(array), array.shape[-1])


def precisions(dtype) -> tuple[str, ...]:
    """Of float32 also those whose factors are made of bfloat16 numbers."""
    return tuple(factors.PARTS) if dtype == np.float32 else ("ieee",)


class _Factors:
    """The factors of a product as a precision has them: the unit, and of each its operand and its low part.

    Attributes
    ----------
    unit : str
        Of `units.NAMES`.
    operands : list of tuple
        The fields of `operands.Operand`, of the high part or of the array itself.
    low : list of int
        Addresses; 0 where there is no such part.
    """

    def __init__(self, operation, arrays, precision):
        name, dtype = _layout.PRECISIONS[precision], arrays[0].dtype
        if name not in precisions(dtype):
            raise ValueError(f"precision {name!r} is none of the CPU's for {dtype}: {precisions(dtype)}")
        self.unit, self.low, self.kept = units.FLOAT32, [0, 0], []
        self.operands = [_operand(array) for array in arrays]
        if parts := factors.PARTS[name]:
            self.unit = units.chosen()
            for i, (array, form) in enumerate(zip(arrays, factors.forms_of(operation, self.unit), strict=True)):
                ld, size = formats.room(form, *array.shape)
                high, *low = (_layout.aligned_empty(size, dtype) for _ in range(parts))
                self.kept += [high, *low]
                self.operands[i], self.low[i] = (_address(high), ld, array.shape[1]), _pointer(*low)
                _call(
                    context.store_factor(dtype, form), context.STORE_FACTOR, *array.shape, _address(array), _ld(array),
                    _address(high), self.low[i], ld,
                )  # fmt: skip


def _pointer(array=None):
    """The address of an array, 0 for none."""
    return 0 if array is None else _address(array)


def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """On the calling thread: gemm from the bias, activation on every finished panel."""
    of = _Factors("linear_forward", (x, weight), precision)
    activate = 0
    if _name(activation) != "identity" or _address(saved) != _address(out):
        activate = context.activation_forward(x.dtype, _name(activation)).address
    panel, sizes = _packing(x.dtype, len(x), *weight.shape)
    context.linear_function("linear_forward")(
        *_products(x.dtype, of.unit, sizes), activate, activation_parameter, len(x), *of.operands[0], *of.operands[1],
        *_operand(bias), *_operand(out), *_operand(saved), _address(panel), *of.low,
    )  # fmt: skip


def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """On the calling thread: gemm with transposed panels of the weight, derivative on every finished panel."""
    of = _Factors("linear_backward_input", (grad_z, weight), precision)
    derive = 0
    if _name(activation) != "identity":
        derive = context.activation_backward(grad_z.dtype, _name(activation)).address
    swaps = linear.swaps.py_func(len(grad_z), *weight.shape)
    panel, sizes = _packing(grad_z.dtype, len(grad_z), *weight.shape)
    scratch = _layout.aligned_empty(blocking.GRADIENT_SCRATCH, grad_z.dtype)
    context.linear_function("linear_backward_input")(
        *_products(grad_z.dtype, of.unit, sizes, swaps), derive, activation_parameter, len(grad_z), *of.operands[0],
        *of.operands[1], *_operand(saved), *_operand(grad_z_prev), _address(panel), _address(scratch), *of.low,
    )  # fmt: skip


def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """On the calling thread: gemm with x read along its columns."""
    narrow = is_narrow(x.dtype, *grad_weight.shape)
    panel, sizes = _packing(x.dtype, len(x), *grad_weight.shape)
    of = _Factors("linear_backward_params", (x, grad_z), precision)
    context.linear_function("linear_backward_params")(
        *_products(x.dtype, of.unit, sizes, narrow), len(x), *of.operands[0], *of.operands[1], beta,
        _address(grad_weight), _ld(grad_weight), _pointer(grad_bias), _address(panel), *of.low,
        _address(grad_z), _ld(grad_z),
    )  # fmt: skip


def loss_forward_backward(loss, loss_parameter, prediction, target, row_weight, row_loss, row_hit, grad):
    """On the calling thread."""
    kernel = context.loss(prediction.dtype, _layout.LOSSES[loss])
    scratch = np.empty(max(len(prediction), blocking.SQUARE), prediction.dtype)
    ldt = _ld(target) if target.ndim == 2 else 0
    _call(
        kernel, context.LOSS, *prediction.shape, loss_parameter, _address(prediction), _ld(prediction),
        _address(target), ldt,
        _address(row_weight), _address(row_loss), _address(row_hit), _address(scratch),
        _address(grad), _ld(grad),
    )  # fmt: skip


def optimizer_step(optimizer, coefficients, values, grad, state):
    """On the calling thread, as one run of memory."""
    optimizer_call(optimizer, coefficients, values, grad, state)()


def optimizer_call(optimizer, coefficients, values, grad, state):
    """The kernel and its arguments."""
    kernel = context.optimizer(values.dtype, _layout.OPTIMIZERS[optimizer])
    states = [_address(array) for array in state] + [0, 0, 0]
    return functools.partial(
        context.c_function(kernel, *context.OPTIMIZER), 1, values.size, _address(coefficients), _address(values), 0,
        _address(grad), 0, *states[:3],
    )  # fmt: skip


# ------------------------------------------------------------------------------ normalisation, sums
def _operate(name, number, *arrays):
    """An operation of norms.py on all rows and columns of its first array."""
    first = arrays[0]
    rows, columns = first.shape if first.ndim == 2 else (1, first.size)
    operands = np.zeros((_program.SLOTS, 2), np.int64)
    for slot, array in enumerate(arrays):
        if array is not None:
            operands[slot] = _address(array), _ld(array)
    kernel = context.operation(first.dtype, name)
    _call(kernel, context.OPERATION, rows, columns, number, _address(operands), 0)


def add(x, y, out):
    """On the calling thread, as all of these."""
    _operate("add", 0.0, x, y, out)


def layer_norm_forward(x, weight, bias, eps, out, saved, scale):
    """Rows side by side."""
    _operate("layer_norm_forward", eps, x, weight, bias, out, saved, scale)


def layer_norm_backward_input(grad_out, weight, saved, scale, grad_x):
    """A row at a time."""
    _operate("layer_norm_backward_input", 0.0, grad_out, weight, saved, scale, grad_x)


def norm_backward_params(grad_out, saved, beta, grad_weight, grad_bias):
    """Both sums in one pass."""
    _operate("norm_backward_params", float(beta), grad_out, saved, grad_weight, grad_bias)


def batch_moments(x, row_weight, eps, mean, scale, variance):
    """Two passes, as the variance is about the mean."""
    _operate("batch_moments", eps, x, row_weight, mean, scale, variance)


def running_moments(running_mean, running_var, eps, mean, scale):
    """A vector of features at a time."""
    _operate("running_moments", eps, running_mean, running_var, mean, scale)


def batch_norm_forward(x, mean, scale, weight, bias, out, saved):
    """A row at a time."""
    _operate("batch_norm_forward", 0.0, x, mean, scale, weight, bias, out, saved)


def batch_norm_backward_input(grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x):
    """A row at a time."""
    arrays = grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x
    _operate("batch_norm_backward_input", 0.0, *arrays)


def update_statistics(mean, variance, momentum, running_mean, running_var):
    """A vector of features at a time."""
    _operate("update_statistics", momentum, mean, variance, running_mean, running_var)


# ---------------------------------------------------------------------------------------- whole buffers
# A pass of NumPy over memory is as fast as any.
scale, copy, clear = reference.scale, reference.copy, reference.clear


def squared_norm(places, buffer):
    """On the calling thread."""
    result = np.empty(1)
    kernel = context.squared_norm(buffer.dtype)
    _call(kernel, context.SQUARED_NORM, len(places), _address(places), _address(buffer), _address(result))
    return result.item()


def all_finite(places, buffer):
    """By sums, which are finite only where everything is; element by element where they are not.

    A large buffer is summed by a kernel that every training has, as rows of some lines.
    """
    sums = buffer
    if buffer.size > blocking.FEW:
        columns = 2 * blocking.VECTOR_BYTES // buffer.itemsize  # those that `column_sum` adds side by side
        sums = np.empty(2 * columns, buffer.dtype)
        sums[columns:] = buffer[-columns:]  # of which some are beyond the last row
        kernel, rows = context.column_sum(buffer.dtype), buffer.size // columns
        _call(kernel, context.COLUMN_SUM, rows, columns, _address(buffer), columns, 0, _address(sums))
    finite = math.isfinite(sums.item(sums.argmin())) and math.isfinite(sums.item(sums.argmax()))
    return finite or reference.all_finite(places, buffer)


# --------------------------------------------------------------------------------------------- networks
def network_forward(workspace, parameters, statistics, x, out):
    """On the team, in blocks of rows."""
    count = len(x)
    threads = workspace.threads_for(count * workspace.work)
    if threads > workspace.members:
        workspace.prepare(threads)
    workspace.point(_PARAMETERS, parameters)
    workspace.point(_STATISTICS, statistics)
    gather = 0 if x.dtype == workspace.dtype else workspace.gather(x.dtype)
    _set_rows(workspace.bytes, _ROWS_AT, gather, id(x) + _DATA, workspace.fan_in, x.itemsize, count, id(out) + _DATA)
    workspace.run(threads, count or 1)


def network_train_steps(
    workspace, parameters, statistics, state, coefficients, keys, x, target, row_weight, rows, batch_size,
    step_loss, step_hits, step_squares=None, exchange=None,
):  # fmt: skip
    """On the team; the walk calls the same kernels as the single layers."""
    count = rows.shape[-1]
    if exchange is not None:
        workspace, results = workspace.shared, (step_loss, step_hits)
        step_loss, step_hits = workspace.results
    threads = workspace.threads_for(3 * min(batch_size, count) * workspace.work)
    if threads > workspace.members:
        workspace.prepare(threads)
    if step_squares is not None:
        workspace.sums_squares()
    workspace.point(_PARAMETERS, parameters)
    workspace.point(_STATISTICS, statistics)
    for field, buffer in zip(_STATES, state, strict=False):  # as many as the workspace's optimizer has
        workspace.point(field, buffer)
    gather_target = ldt = 0
    if not workspace.labels:
        gather_target, ldt = context.gather(target.dtype, workspace.dtype).address, target.shape[1]
    _set_rows(workspace.bytes, _ROWS_AT, workspace.gather(x.dtype), id(x) + _DATA, x.shape[1], x.itemsize, count, 0)
    _set_steps(
        workspace.bytes, _STEPS_AT,
        id(coefficients) + _DATA, id(keys) + _DATA, gather_target, id(target) + _DATA, ldt,
        0 if row_weight is None else id(row_weight) + _DATA, id(rows) + _DATA, batch_size,
        id(step_loss) + _DATA, id(step_hits) + _DATA, 0, 0 if coefficients.ndim == 2 else coefficients.nbytes // 2,
        0 if rows.ndim == 1 else 8 * count, 0 if step_squares is None else id(step_squares) + _DATA,
    )  # fmt: skip
    if exchange is not None:
        return _shared_step(workspace, threads, row_weight, rows, results, exchange)
    workspace.run(threads, count or 1)
    return workspace.fields[network.STEPS_DONE]


def _shared_step(workspace, threads, row_weight, rows, results, exchange):
    """One step of which all is set but what is shared: two calls of compiled code, and one more for each sum."""
    fields, size, total, count = workspace.fields, workspace.program.trained_size, exchange.weight, rows.shape[-1]
    share = scale = 1 / total if total >= _layout.LEAST_WEIGHT else 0.0
    if len(workspace.segments) > 1:  # first the moments of these rows are taken
        weight = np.ones(count) if row_weight is None else row_weight[rows if rows.ndim == 1 else rows[0]]
        own = weight.sum()
        scale = 1 / own if own >= _layout.LEAST_WEIGHT else 0.0
    workspace.weights[network.SCALE] = scale
    workspace.point(_PARAMETER_GRADIENTS, exchange.buffer)
    for first, end, weighs, sums in workspace.segments:
        if weighs and first:
            np.multiply(weight, share, out=workspace.row_weight[:count])
        fields[network.FIRST_PHASE], fields[network.END_PHASE] = first, end
        workspace.run(threads, None if sums else count or 1, context.walk("gradients"))
        for operation, values in sums:
            exchange.share(operation, values)
    buffer, (step_loss, step_hits) = exchange.buffer, results
    buffer[size], buffer[size + 1] = workspace.results[0][0], workspace.results[1][0]
    exchange.reduce()
    finite = math.isfinite(buffer[size])
    if finite:
        workspace.run(threads, None, context.walk("apply_gradients"))
    step_loss[0], step_hits[0] = buffer[size], buffer[size + 1]
    return int(finite)


# ---------------------------------------------------------------------------------------------- buffers
SOURCES = (
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
_READ = frozenset(map(np.dtype, SOURCES))  # the name of a dtype is composed each time, which takes microseconds


@functools.cache
def gathers(dtype) -> bool:
    """Those of `SOURCES`, as this machine orders bytes."""
    return np.dtype(dtype) in _READ


def gather(x, rows, out):
    """On the calling thread."""
    _call(
        context.gather(x.dtype, out.dtype), context.GATHER, *out.shape, _address(rows), _address(x), _ld(x),
        _address(out), _ld(out),
    )  # fmt: skip


def empty(shape, dtype):
    """On a cache line."""
    return _layout.aligned_empty(shape, dtype)


def zeros(shape, dtype):
    """On a cache line."""
    return _layout.aligned_zeros(shape, dtype)


def to_device(array):
    """The array itself."""
    return array


def to_host(array):
    """The array itself."""
    return array


def synchronize():
    """Nothing to wait for: every call returns when its work is done."""


# ---------------------------------------------------------------------------------------------- process
def warmup(dtype, activations, losses, optimizers):
    """Every kernel that training and predicting with these parts calls."""
    dtype = np.dtype(dtype)
    context.product(dtype)
    context.column_sum(dtype)
    for source in SOURCES:
        context.gather(np.dtype(source), dtype)
    context.dropout(dtype)
    if precisions(dtype) != ("ieee",):
        unit = units.chosen()
        context.product(dtype, unit)
        for form in {form for operation in factors.PRODUCTS for form in factors.forms_of(operation, unit)}:
            context.store_factor(dtype, form)
        if unit != units.FLOAT32:
            context.store_weight(dtype)
    context.loss_sum(dtype)
    context.transpose(dtype)
    context.shuffle()
    context.squared_norm(dtype)
    context.block_squares(dtype)
    for activation in {"identity", *activations}:
        context.activation_forward(dtype, activation)
        context.activation_backward(dtype, activation)
    for operation in _program.OPERATIONS:
        if hasattr(norms, operation):
            context.operation(dtype, operation)
    for function in ("linear_forward", "linear_backward_input", "linear_backward_params"):
        context.linear_function(function)
    for loss in losses:
        context.loss(dtype, loss)
    if not {"cross_entropy", "soft_cross_entropy"}.isdisjoint(losses):  # predictions become probabilities by it
        context.softmax(dtype)
    if "binary_cross_entropy_with_logits" in losses:
        context.activation_forward(dtype, "sigmoid")
    for optimizer in optimizers:
        context.optimizer(dtype, optimizer)
    context.operate()
    context.walk("forward")
    context.walk("train_steps")
    context.walk("train_steps_in_groups")
    context.group_column_sum(dtype)


def config():
    """Instruction set, tile, threads and cache in force."""
    isa = blocking.ISA
    directory = jit.cache_directory()
    others = {"other bfloat16 units": f"{', '.join(found)} by {units.VARIABLE}"} if (found := units.others()) else {}
    return {
        "backend": "cpu",
        "instruction set": isa.name + ("" if blocking.HAS_FMA else ", no fused multiply-add"),
        "bfloat16 unit": units.chosen(),
        **others,
        "register tile": f"{isa.mr} x {isa.nv} vectors of {isa.vector_bytes} bytes",
        "threads": str(get_num_threads()),
        "cores available": str(processors.available_cores()),
        "kernel cache": str(directory) if directory else "off",
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def fma_limit(dtype, precision="ieee", seconds=0.02):
    """The machine's multiply-add limit on this thread at this minute, in GFLOP/s, by the unit of a precision.

    A product whose operands stay in the first-level cache: every row of A, and every block of C, is the same. Of
    ``"bf16x3"`` it is a third, as a product is three.
    """
    dtype, parts = np.dtype(dtype), factors.PARTS[precision]
    unit = units.chosen() if parts else units.FLOAT32
    width = blocking.NV * blocking.VECTOR_BYTES // dtype.itemsize if unit == units.FLOAT32 else formats.CHUNK
    rows, k = 1000 * blocking.MR, 256
    # Zeros lie alike in every form; pairs take less room than numbers.
    a, b, c = (_layout.aligned_zeros(shape, dtype) for shape in (k, (k, width), (formats.CHUNK, width)))
    ldb = width if unit == units.FLOAT32 else formats.PAIRS
    panel, sizes = _packing(dtype, k)
    function = context.c_function(context.product(dtype, unit), *context.PRODUCT)
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        function(
            rows, width, k, a.ctypes.data, 0, 1, b.ctypes.data, ldb, 0, 0, 0, 0, 0, 0, c.ctypes.data, 0,
            panel.ctypes.data if unit != units.FLOAT32 else 0, sizes.ctypes.data, 0, 0, 0, 0.0,
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * k * width / best / (3 if precision == "bf16x3" else 1)
