"""The contract on the CPU: `reference` on arrays, handed as addresses to compiled kernels.

The single layers run on the calling thread; `network_forward` and `network_train_steps` run on the team.
"""

import contextlib
import ctypes
import math
import struct
import threading
import time
from functools import partial

import numpy as np

from .. import jit, reference, splitmix
from .. import table as _table
from . import blocking, context, linear, network, team

name = "cpu"
_calling = threading.local()  # serial: this thread works alone
# Fields that change from call to call, in one call of C.
_set_rows, _ROWS_AT = struct.Struct("=7q").pack_into, 8 * network.GATHER_X
_set_steps, _STEPS_AT = struct.Struct("=11q").pack_into, 8 * network.COEFFICIENTS
_DATA = object.__basicsize__  # where an array of NumPy keeps its address: after the header, by its C API
_threads = None  # None: as many as there are cores, fewer for little work


def _address(array) -> int:
    """The address of an array's first element; the buffer protocol takes a quarter of the time of ``.ctypes``."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, strided or empty
        return array.ctypes.data


# --------------------------------------------------------------------------------------- single layers
def _ld(array):
    return array.strides[0] // array.itemsize


def _name(activation):
    return _table.ACTIVATIONS[activation]


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


def _panel(dtype):
    """Scratch for a transposed panel."""
    return _table.aligned_empty(blocking.PANEL_BYTES, np.uint8).view(dtype)


def _transpose(dtype, wanted):
    """The address of the kernel that transposes, where it is wanted."""
    return context.transpose(dtype).address if wanted else 0


def _narrow(dtype, rows, fan_out):
    return linear.is_narrow.py_func(rows, fan_out, blocking.VECTOR_BYTES // dtype.itemsize, dtype.itemsize)


def precisions(dtype) -> tuple[str, ...]:
    """All arithmetic is that of the dtype."""
    return _table.PRECISIONS[:1]


def _require_ieee(precision):
    if precision:
        raise ValueError(f"the CPU computes in its dtype only, got precision {_table.PRECISIONS[precision]!r}")


def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """On the calling thread: gemm from the bias, activation on every finished panel."""
    _require_ieee(precision)
    activate = 0
    if _name(activation) != "identity" or _address(saved) != _address(out):
        activate = context.activation_forward(x.dtype, _name(activation)).address
    context.linear_function("linear_forward")(
        context.product(x.dtype).address, activate, len(x), *weight.shape, _address(x), _ld(x),
        _address(weight), _ld(weight), 0 if bias is None else _address(bias), activation_parameter,
        _address(out), _ld(out), _address(saved), _ld(saved), 0,
    )  # fmt: skip


def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """On the calling thread: gemm with transposed panels of the weight, derivative on every finished panel."""
    _require_ieee(precision)
    derive = 0
    if _name(activation) != "identity":
        derive = context.activation_backward(grad_z.dtype, _name(activation)).address
    swaps = linear.swaps.py_func(len(grad_z), *weight.shape)
    panel, scratch = _panel(grad_z.dtype), _table.aligned_empty(blocking.GRADIENT_SCRATCH, grad_z.dtype)
    context.linear_function("linear_backward_input")(
        context.product(grad_z.dtype).address, _transpose(grad_z.dtype, swaps), derive,
        grad_z.itemsize, len(grad_z), *weight.shape, _address(grad_z), _ld(grad_z),
        _address(weight), _ld(weight), _address(saved), _ld(saved), activation_parameter,
        _address(grad_z_prev), _ld(grad_z_prev), _address(panel), _address(scratch),
    )  # fmt: skip


def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """On the calling thread: gemm with x read along its columns."""
    _require_ieee(precision)
    panel, transpose = _panel(x.dtype), _transpose(x.dtype, not beta and _narrow(x.dtype, *grad_weight.shape))
    context.linear_function("linear_backward_params")(
        context.product(x.dtype).address, transpose, context.column_sum(x.dtype).address, len(x), *grad_weight.shape,
        _address(x), _ld(x), _address(grad_z), _ld(grad_z), beta,
        _address(grad_weight), _ld(grad_weight), 0 if grad_bias is None else _address(grad_bias),
        _address(panel),
    )  # fmt: skip


def loss_forward_backward(loss, loss_parameter, prediction, target, row_weight, row_loss, row_hit, grad):
    """On the calling thread."""
    kernel = context.loss(prediction.dtype, _table.LOSSES[loss])
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
    kernel = context.optimizer(values.dtype, _table.OPTIMIZERS[optimizer])
    states = [_address(array) for array in state] + [0, 0]
    _call(
        kernel, context.OPTIMIZER, 1, values.size, _address(coefficients), _address(values), 0,
        _address(grad), 0, *states[:2],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- whole buffers
# A pass of NumPy over memory is as fast as any.
scale, copy, clear = reference.scale, reference.copy, reference.clear


def squared_norm(table, buffer):
    """On the calling thread."""
    result = np.empty(1)
    kernel = context.squared_norm(buffer.dtype)
    _call(kernel, context.SQUARED_NORM, len(table), _address(table), _address(buffer), _address(result))
    return result.item()


def all_finite(table, buffer):
    """By the sum of the buffer, which is finite only where everything is; element by element where it is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.add.reduce(buffer)) or reference.all_finite(table, buffer)


# --------------------------------------------------------------------------------------------- networks
class _Workspace:
    """A record for the walk, and the arrays its addresses point to."""

    def __init__(self, table, dtype, capacity):
        self.table = np.ascontiguousarray(table)
        _require_ieee(self.table[:, _table.PRECISION].max())
        self.dtype = np.dtype(dtype)
        self.record = np.zeros(network.FIELDS, np.int64)
        self.address = self.record.ctypes.data
        self.bytes, self.fields = memoryview(self.record).cast("B"), memoryview(self.record)
        self.arrays = []
        self.pointed = {}  # field -> array
        self.pace, self.paced = team.Pace(), False
        self.gathered = self.dtype, 0  # the last source dtype and the address of its kernel
        self.fan_in, self.fan_out = int(table[0, _table.FAN_IN]), int(table[-1, _table.FAN_OUT])
        # Multiply-adds of the forward pass of one row: what decides whether a team pays.
        self.linear = self.table[:, _table.KIND] == _table.KINDS.index("linear")
        self.work = int((self.table[:, _table.FAN_IN] * self.table[:, _table.FAN_OUT])[self.linear].sum())
        kernels = context.activation_addresses(self.dtype, self.table)
        self.set(
            ITEMSIZE=self.dtype.itemsize,
            LANES=blocking.VECTOR_BYTES // self.dtype.itemsize,
            TABLE=self.keep(self.table),
            TABLE_ROWS=len(self.table),
            KERNELS=self.keep(kernels),
            GEMM=context.product(self.dtype).address,
            COPY=context.activation_forward(self.dtype, "identity").address,
            CAPACITY=capacity,
            PANEL_BYTES=blocking.PANEL_BYTES,
            BARRIER=self.keep(np.zeros(1, np.int64)),
            YIELD=team.yield_address(),
        )
        self.barrier = self.arrays[-1]

    def keep(self, array) -> int:
        """The address of an array that lives as long as the workspace."""
        self.arrays.append(array)
        return array.ctypes.data

    def buffer(self, shape, dtype=None) -> int:
        """The address of a new uninitialised array."""
        return self.keep(_table.aligned_empty(shape, self.dtype if dtype is None else dtype))

    def gather(self, source) -> int:
        """The address of the kernel that reads rows of this dtype."""
        if source is not self.gathered[0] or not self.gathered[1]:
            self.gathered = source, context.gather(source, self.dtype).address
        return self.gathered[1]

    def set(self, **fields):
        for field, value in fields.items():
            self.record[getattr(network, field)] = value

    def point(self, field, array):
        """Set a field to the address of an array that callers pass again and again."""
        if self.pointed.get(field) is not array:
            self.pointed[field] = array
            self.fields[field] = 0 if array is None else array.ctypes.data

    def threads_for(self, multiply_adds):
        """Workers for regions of so much work each."""
        if _threads == 1 or (_threads is None and multiply_adds <= blocking.SERIAL_WORK):
            return 1
        if getattr(_calling, "serial", False):
            return 1
        if _threads is not None:
            return _threads
        if (cores := team.available_cores()) == 1:
            return 1
        self.paced = True
        return self.pace.choose(cores)

    def run(self, threads, units):
        """Run the walk on the team; ``units`` is how much work that is."""
        start = time.perf_counter() if self.paced else 0.0
        alone = threads == 1
        if not alone:
            self.barrier[0] = 0
            self.fields[network.THREADS] = threads
            alone = not team.run(partial(self.walk, self.address), threads)
        if alone:
            self.fields[network.THREADS] = 1
            self.walk(self.address, 0)
        if self.paced:
            self.pace.record(threads, (time.perf_counter() - start) / units)


class InferenceWorkspace(_Workspace):
    """Activations of ``blocking.ROWS`` rows for every thread."""

    def __init__(self, table, dtype):
        super().__init__(table, dtype, blocking.ROWS)
        self.members = 0
        self.walk = context.walk("forward")

    def prepare(self, threads):
        """Activations and scratch for this many threads."""
        if threads > self.members:
            outputs = blocking.ROWS * _table.activation_width(self.table) * self.dtype.itemsize
            rows = blocking.ROWS * int(self.table[0, _table.LD_IN]) * self.dtype.itemsize
            stride = blocking.PANEL_BYTES + -(-rows // _table.ALIGNMENT) * _table.ALIGNMENT
            outputs = -(-outputs // _table.ALIGNMENT) * _table.ALIGNMENT
            self.set(
                OUTPUTS=self.buffer(threads * outputs, np.uint8), OUTPUTS_BYTES=outputs,
                SCRATCH=self.buffer(threads * stride, np.uint8), SCRATCH_BYTES=stride,
            )  # fmt: skip
            self.members = threads


class TrainingWorkspace(_Workspace):
    """Activations and gradients of a batch, scratch for every thread."""

    def __init__(self, table, dtype, batch_size, loss, loss_parameter, optimizer):
        super().__init__(table, dtype, batch_size)
        self.batch_size, self.loss, self.loss_parameter, self.optimizer = batch_size, loss, loss_parameter, optimizer
        self.members = 0
        self.walk = context.walk("train_steps")
        loss_name, optimizer_name = _table.LOSSES[loss], _table.OPTIMIZERS[optimizer]
        self.drops = bool((self.table[:, _table.KIND] == _table.KINDS.index("dropout")).any())
        self.labels = loss_name in _table.LABEL_LOSSES
        width, ldt = _table.activation_width(self.table), _table.leading_dimension(self.fan_out, self.dtype.itemsize)
        shapes = self.table[:, [_table.FAN_IN, _table.FAN_OUT]][self.linear].tolist()
        lanes = blocking.VECTOR_BYTES // self.dtype.itemsize
        transposes = any(linear.swaps.py_func(batch_size, *shape) for shape in shapes[1:])
        transposes |= any(_narrow(self.dtype, min(fan_in, lanes), fan_out) for fan_in, fan_out in shapes)
        self.set(
            TRANSPOSE=_transpose(self.dtype, transposes),
            DROPOUT=context.dropout(self.dtype).address if self.drops else 0,
            COLUMN_SUM=context.column_sum(self.dtype).address,
            LOSS=context.loss(self.dtype, loss_name).address,
            LOSS_PARAMETER=np.float64(loss_parameter).view(np.int64),
            LOSS_SUM=context.loss_sum(self.dtype).address,
            OPTIMIZER=context.optimizer(self.dtype, optimizer_name).address,
            INPUT=self.buffer(batch_size * int(self.table[0, _table.LD_IN])),
            OUTPUTS=self.buffer(batch_size * width),
            GRADIENTS=self.buffer(batch_size * width),
            TARGET_IS_LABEL=self.labels,
            TARGET_BATCH=self.buffer(batch_size, np.int64) if self.labels else self.buffer(batch_size * ldt),
            LD_TARGET_BATCH=ldt,
            BATCH_WEIGHT=self.buffer(batch_size, np.float64),
            ROW_LOSS=self.buffer(batch_size),
            ROW_HIT=self.buffer(batch_size, np.int64),
        )

    def prepare(self, threads):
        """Scratch for this many threads."""
        if threads > self.members:
            elements = blocking.GRADIENT_COLUMNS + blocking.GRADIENT_SCRATCH
            stride = blocking.PANEL_BYTES + elements * self.dtype.itemsize
            self.set(SCRATCH=self.buffer(threads * stride, np.uint8), SCRATCH_BYTES=stride)
            self.members = threads


def network_forward(workspace, parameters, x, out):
    """On the team, in blocks of rows."""
    count = len(x)
    threads = workspace.threads_for(count * workspace.work)
    if threads > workspace.members:
        workspace.prepare(threads)
    workspace.point(network.PARAMETERS, parameters)
    gather = 0 if x.dtype == workspace.dtype else workspace.gather(x.dtype)
    _set_rows(
        workspace.bytes, _ROWS_AT,
        gather, id(x) + _DATA, workspace.fan_in, x.itemsize, count, id(out) + _DATA, workspace.fan_out,
    )  # fmt: skip
    workspace.run(threads, count or 1)


def network_train_steps(
    workspace, parameters, state, coefficients, keys, x, target, row_weight, rows, batch_size, step_loss, step_hits
):
    """On the team; the walk calls the same kernels as the single layers."""
    count = len(rows)
    threads = workspace.threads_for(3 * min(batch_size, count) * workspace.work)
    if threads > workspace.members:
        workspace.prepare(threads)
    state_1, state_2, *_ = *state, None, None
    workspace.point(network.PARAMETERS, parameters)
    workspace.point(network.STATE_1, state_1)
    workspace.point(network.STATE_2, state_2)
    gather_target = ldt = 0
    if not workspace.labels:
        gather_target, ldt = context.gather(target.dtype, workspace.dtype).address, target.shape[1]
    _set_rows(workspace.bytes, _ROWS_AT, workspace.gather(x.dtype), id(x) + _DATA, x.shape[1], x.itemsize, count, 0, 0)
    _set_steps(
        workspace.bytes, _STEPS_AT,
        id(coefficients) + _DATA, id(keys) + _DATA, gather_target, id(target) + _DATA, ldt,
        0 if row_weight is None else id(row_weight) + _DATA, id(rows) + _DATA, batch_size,
        id(step_loss) + _DATA, id(step_hits) + _DATA, 0,
    )  # fmt: skip
    workspace.run(threads, count or 1)
    return workspace.fields[network.STEPS_DONE]


# ---------------------------------------------------------------------------------------------- buffers
def gathers(dtype) -> bool:
    """Native float32, float64, integers and bool."""
    dtype = np.dtype(dtype)
    return dtype.isnative and (dtype.kind in "iub" or dtype in (np.float32, np.float64))


def gather(x, rows, out):
    """On the calling thread."""
    _call(
        context.gather(x.dtype, out.dtype), context.GATHER, *out.shape, _address(rows), _address(x), _ld(x),
        _address(out), _ld(out),
    )  # fmt: skip


def empty(shape, dtype):
    """On a cache line."""
    return _table.aligned_empty(shape, dtype)


def zeros(shape, dtype):
    """On a cache line."""
    return _table.aligned_zeros(shape, dtype)


def to_device(array):
    """The array itself."""
    return array


def to_host(array):
    """The array itself."""
    return array


def synchronize():
    """Nothing to wait for: every call returns when its work is done."""


# ---------------------------------------------------------------------------------------------- process
def set_num_threads(threads):
    """None: as many as there are cores, fewer where timing says so."""
    global _threads
    _threads = threads


def get_num_threads():
    """Those set, or the cores there are."""
    return team.available_cores() if _threads is None else _threads


@contextlib.contextmanager
def serial():
    """For the calling thread alone."""
    before = getattr(_calling, "serial", False)
    _calling.serial = True
    try:
        yield
    finally:
        _calling.serial = before


def warmup(dtype, activations, losses, optimizers):
    """Every kernel that training and predicting with these parts calls."""
    dtype = np.dtype(dtype)
    context.product(dtype)
    context.column_sum(dtype)
    context.gather(dtype, dtype)
    context.loss_sum(dtype)
    context.transpose(dtype)
    context.shuffle()
    context.squared_norm(dtype)
    for activation in {"identity", *activations}:
        context.activation_forward(dtype, activation)
        if activation != "identity":
            context.activation_backward(dtype, activation)
    for loss in losses:
        context.loss(dtype, loss)
    if not {"cross_entropy", "soft_cross_entropy"}.isdisjoint(losses):  # predictions become probabilities by it
        context.softmax(dtype)
    if "binary_cross_entropy_with_logits" in losses:
        context.activation_forward(dtype, "sigmoid")
    for optimizer in optimizers:
        context.optimizer(dtype, optimizer)
    context.walk("forward")
    context.walk("train_steps")


def config():
    """Instruction set, tile, threads and cache in force."""
    isa = blocking.ISA
    directory = jit.cache_directory()
    return {
        "backend": "cpu",
        "instruction set": isa.name + ("" if blocking.HAS_FMA else ", no fused multiply-add"),
        "register tile": f"{isa.mr} x {isa.nv} vectors of {isa.vector_bytes} bytes",
        "threads": str(get_num_threads()),
        "cores available": str(team.available_cores()),
        "kernel cache": str(directory) if directory else "off",
        "numba": jit.numba.__version__,
        "llvmlite": jit.llvmlite.__version__,
    }


def fma_limit(dtype, seconds=0.02):
    """The machine's multiply-add limit on this thread at this minute, in GFLOP/s.

    A product whose operands stay in the first-level cache: every row of A, and every row tile of C, is the same.
    """
    dtype = np.dtype(dtype)
    rows, k, width = 1000 * blocking.MR, 256, blocking.NV * blocking.VECTOR_BYTES // dtype.itemsize
    a, b, c = (_table.aligned_zeros(shape, dtype) for shape in (k, (k, width), width))
    function = context.c_function(context.product(dtype), *context.PRODUCT)
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        function(
            rows, width, k, a.ctypes.data, 0, 1, b.ctypes.data, width, 0, 0, 0, c.ctypes.data, 0, 0, 0, 0, 0, 0.0
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * k * width / best
