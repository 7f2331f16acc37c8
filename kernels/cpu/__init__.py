"""The contract on the CPU: `reference` on arrays, handed as addresses to compiled kernels.

The single layers run on the calling thread; `network_forward` and `network_train_steps` run on the team.
"""

import contextlib
import ctypes
import functools
import math
import struct
import threading
import time

import numpy as np

from .. import jit, reference, splitmix
from .. import layout as _layout
from .. import program as _program
from . import blocking, context, factors, linear, network, norms, team

name = "cpu"
_calling = threading.local()  # serial: this thread works alone
# Fields that change from call to call, in one call of C.
_set_rows, _ROWS_AT = struct.Struct("=6q").pack_into, 8 * network.GATHER_X
_set_steps, _STEPS_AT = struct.Struct("=14q").pack_into, 8 * network.COEFFICIENTS
_PARAMETERS, _STATISTICS = network.BASES + _program.PARAMETERS, network.BASES + _program.STATISTICS
_PARAMETER_GRADIENTS = network.BASES + _program.PARAMETER_GRADIENTS
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


def _panel(dtype):
    """Scratch for a transposed panel."""
    return _layout.aligned_empty(blocking.PACKED_BYTES, np.uint8).view(dtype)


def _transpose(dtype, wanted):
    """The address of the kernel that transposes, where it is wanted."""
    return context.transpose(dtype).address if wanted else 0


def _products(dtype, transposes=False):
    """The fields of `operands.Products`."""
    kernels = context.product(dtype).address, _transpose(dtype, transposes), context.column_sum(dtype).address
    return *kernels, dtype.itemsize, blocking.SIZES.ctypes.data


def _operand(array):
    """The fields of `operands.Operand`."""
    return (0, 0, 0) if array is None else (_address(array), _ld(array), array.shape[-1])


def _narrow(dtype, rows, fan_out):
    return linear.is_narrow.py_func(rows, fan_out, blocking.VECTOR_BYTES // dtype.itemsize, dtype.itemsize)


def precisions(dtype) -> tuple[str, ...]:
    """Of float32 also those whose factors are made of bfloat16 numbers."""
    return tuple(factors.PARTS) if dtype == np.float32 else ("ieee",)


def _parts(array, precision):
    """What a product of this precision reads of an array: (high, low), low None where it has no such part."""
    name = _layout.PRECISIONS[precision]
    if name not in precisions(array.dtype):
        raise ValueError(f"precision {name!r} is none of the CPU's for {array.dtype}: {precisions(array.dtype)}")
    if not factors.PARTS[name]:
        return array, None
    high, low = (
        _layout.aligned_empty(array.shape, array.dtype) if part < factors.PARTS[name] else None for part in range(2)
    )
    _call(
        context.store_factor(array.dtype), context.STORE_FACTOR, *array.shape, _address(array), _ld(array),
        _address(high), _pointer(low), _ld(high),
    )  # fmt: skip
    return high, low


def _pointer(array):
    """The address of an array, 0 for none."""
    return 0 if array is None else _address(array)


def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """On the calling thread: gemm from the bias, activation on every finished panel."""
    (x, x_low), (weight, weight_low) = _parts(x, precision), _parts(weight, precision)
    activate = 0
    if _name(activation) != "identity" or _address(saved) != _address(out):
        activate = context.activation_forward(x.dtype, _name(activation)).address
    panel = _panel(x.dtype)
    context.linear_function("linear_forward")(
        *_products(x.dtype), activate, activation_parameter, len(x), *_operand(x), *_operand(weight),
        *_operand(bias), *_operand(out), *_operand(saved), _address(panel), _pointer(x_low), _pointer(weight_low),
    )  # fmt: skip


def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """On the calling thread: gemm with transposed panels of the weight, derivative on every finished panel."""
    (grad_z, grad_low), (weight, weight_low) = _parts(grad_z, precision), _parts(weight, precision)
    derive = 0
    if _name(activation) != "identity":
        derive = context.activation_backward(grad_z.dtype, _name(activation)).address
    swaps = linear.swaps.py_func(len(grad_z), *weight.shape)
    panel, scratch = _panel(grad_z.dtype), _layout.aligned_empty(blocking.GRADIENT_SCRATCH, grad_z.dtype)
    context.linear_function("linear_backward_input")(
        *_products(grad_z.dtype, swaps), derive, activation_parameter, len(grad_z), *_operand(grad_z),
        *_operand(weight), *_operand(saved), *_operand(grad_z_prev), _address(panel), _address(scratch),
        _pointer(grad_low), _pointer(weight_low),
    )  # fmt: skip


def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """On the calling thread: gemm with x read along its columns."""
    panel, narrow = _panel(x.dtype), not beta and _narrow(x.dtype, *grad_weight.shape)
    summed, (x, x_low), (grad_z, grad_low) = grad_z, _parts(x, precision), _parts(grad_z, precision)
    context.linear_function("linear_backward_params")(
        *_products(x.dtype, narrow), len(x), *_operand(x), *_operand(grad_z), beta,
        _address(grad_weight), _ld(grad_weight), _pointer(grad_bias), _address(panel), _pointer(x_low),
        _pointer(grad_low), _address(summed), _ld(summed),
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
    """By the sum of the buffer, which is finite only where everything is; element by element where it is not."""
    with np.errstate(all="ignore"):
        return math.isfinite(np.add.reduce(buffer)) or reference.all_finite(places, buffer)


# --------------------------------------------------------------------------------------------- networks
def _linked(instructions, dtype, capacity, target):
    """The instructions as the walk reads them: addresses of kernels, and operands in bytes.

    ``target`` is the leading dimension of the targets, and the bytes from one to the next.
    """
    linked = np.zeros((len(instructions), network.WIDTH), np.int64)
    for row, instruction in zip(linked, instructions, strict=True):
        row[: network.OPERANDS] = (
            factors.OPERATIONS.index(instruction.operation), _kernel(instruction, dtype),
            np.float64(instruction.parameter).view(np.int64), instruction.number,
        )  # fmt: skip
        places = row[network.OPERANDS :].reshape(_program.SLOTS, network.OPERAND)
        places[:, network.BUFFER] = network.BUFFERS - 1
        for place, operand in zip(places, instruction.operands, strict=True):
            if operand is not None:
                place[:] = _linked_operand(operand, dtype.itemsize, capacity, target)
    return linked


def _linked_operand(operand, itemsize, capacity, target):
    """(buffer, offset in bytes, leading dimension, columns, bytes from row to row)."""
    buffer, offset, ld, columns = operand
    stride = itemsize * ld
    if buffer in (_program.ACTIVATIONS, _program.GRADIENTS):
        offset *= capacity
    elif buffer == _program.TARGET:
        ld, stride = target
    elif buffer in (_program.ROW_WEIGHT, _program.ROW_HIT):
        stride = 8
    elif buffer >= _program.BY_ROWS:
        stride = 0
    return buffer, itemsize * offset, ld, columns, stride


def _kernel(instruction, dtype):
    """The address of the kernel that an instruction calls; 0 where the walk knows it, or there is nothing to do."""
    operation, activation = instruction.operation, instruction.activation
    if operation in ("linear_forward", "activation_forward", "linear_backward_input", "activation_backward"):
        if activation == "identity":
            return 0
        find = context.activation_forward if operation.endswith("forward") else context.activation_backward
        return find(dtype, activation).address
    if operation in ("linear_backward_params", "dropout", "loss_forward_backward"):
        return 0
    if operation == factors.STORE:
        return context.store_factor(dtype).address
    return context.operation(dtype, operation).address


class _Workspace:
    """A record for the walk, and the arrays its addresses point to."""

    def __init__(self, program, listing, dtype, capacity, target=(0, 0)):
        self.program, self.dtype, self.plan = program, np.dtype(dtype), factors.planned(program, listing)
        self.record = np.zeros(network.FIELDS, np.int64)
        self.address = self.record.ctypes.data
        self.bytes, self.fields = memoryview(self.record).cast("B"), memoryview(self.record)
        self.arrays = []
        self.pointed = {}  # field -> array
        self.pace, self.paced = team.Pace(), False
        self.gathered = self.dtype, 0  # the last source dtype and the address of its kernel
        self.fan_in, self.fan_out, self.work = program.in_features, program.out_features, program.multiply_adds
        self.set(
            ITEMSIZE=self.dtype.itemsize,
            LANES=blocking.VECTOR_BYTES // self.dtype.itemsize,
            INSTRUCTIONS=self.keep(_linked(self.plan.instructions, self.dtype, capacity, target)),
            PHASES=self.keep(np.array(self.plan.phases, np.int64)),
            PHASE_COUNT=len(self.plan.phases),
            FEATURES=self.fan_in,
            CLASSES=self.fan_out,
            GEMM=context.product(self.dtype).address,
            SIZES=blocking.SIZES.ctypes.data,
            COPY=context.activation_forward(self.dtype, "identity").address,
            CAPACITY=capacity,
            PACKED_BYTES=blocking.PACKED_BYTES,
            BARRIER=self.keep(np.zeros(1, np.int64)),
            YIELD=team.yield_address(),
        )
        self.barrier = self.arrays[-1]
        parts = factors.PARTS[program.precision]
        if parts:
            item = self.dtype.itemsize
            weights = [(item * a.offset, *a.shape, a.ld) for a in program.arrays if len(a.shape) == 2]
            self.set(
                STORE_FACTOR=context.store_factor(self.dtype).address,
                WEIGHTS=self.keep(np.array(weights, np.int64)),
                WEIGHT_COUNT=len(weights),
                LOW_PART=item * program.size * (parts - 1),
            )
            self.record[network.BASES + factors.WEIGHT_FACTORS] = self.buffer(parts * program.size)

    def keep(self, array) -> int:
        """The address of an array that lives as long as the workspace."""
        self.arrays.append(array)
        return array.ctypes.data

    def buffer(self, shape, dtype=None) -> int:
        """The address of a new uninitialised array."""
        return self.keep(_layout.aligned_empty(shape, self.dtype if dtype is None else dtype))

    def gather(self, source) -> int:
        """The address of the kernel that reads rows of this dtype."""
        if source is not self.gathered[0] or not self.gathered[1]:
            self.gathered = source, context.gather(source, self.dtype).address
        return self.gathered[1]

    def set(self, **fields):
        for field, value in fields.items():
            self.record[getattr(network, field)] = value

    def place(self, **buffers):
        """Set where buffers of the program lie."""
        for buffer, address in buffers.items():
            self.record[network.BASES + getattr(_program, buffer)] = address

    def point(self, field, array):
        """Set a field to the address of an array that callers pass again and again."""
        if self.pointed.get(field) is not array:
            self.pointed[field] = self  # no array: if the next line is not reached, the next call sets the address
            self.fields[field] = 0 if array is None else array.ctypes.data
            self.pointed[field] = array

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

    def run(self, threads, units, walk=None):
        """Run a walk, by default its own, on the team; ``units`` is how much work that is, None: it is not timed."""
        walk = walk or self.walk
        start = time.perf_counter() if self.paced else 0.0
        alone = threads == 1
        if not alone:
            self.barrier[0] = 0
            self.fields[network.THREADS] = threads
            alone = not team.run(functools.partial(walk, self.address), threads)
        if alone:
            self.fields[network.THREADS] = 1
            walk(self.address, 0)
        if self.paced and units is not None:
            self.pace.record(threads, (time.perf_counter() - start) / units)


class InferenceWorkspace(_Workspace):
    """Activations of ``blocking.ROWS`` rows for every thread."""

    def __init__(self, program, dtype):
        super().__init__(program, program.inference, dtype, blocking.ROWS)
        self.members = 0
        self.walk = context.walk("forward")

    def prepare(self, threads):
        """Activations and scratch for this many threads."""
        if threads > self.members:
            item = self.dtype.itemsize
            activations = _lines(blocking.ROWS * self.plan.activations * item)
            own = activations + _lines(self.program.reductions * item)
            stride = network.HEAD_BYTES + blocking.PACKED_BYTES + _lines(blocking.ROWS * self.fan_in * item)
            outputs = self.buffer(threads * own, np.uint8)
            self.place(ACTIVATIONS=outputs, REDUCTIONS=outputs + activations)
            self.set(OUTPUTS_BYTES=own, SCRATCH=self.buffer(threads * stride, np.uint8), SCRATCH_BYTES=stride)
            self.members = threads


def _lines(size):
    """So many bytes, rounded up to whole cache lines."""
    return -(-size // _layout.ALIGNMENT) * _layout.ALIGNMENT


class TrainingWorkspace(_Workspace):
    """Activations and gradients of a batch, scratch for every thread."""

    def __init__(self, program, dtype, batch_size, loss, loss_parameter, optimizer):
        loss_name, optimizer_name = _layout.LOSSES[loss], _layout.OPTIMIZERS[optimizer]
        item = np.dtype(dtype).itemsize
        self.labels = loss_name in _layout.LABEL_LOSSES
        ldt = 0 if self.labels else _layout.leading_dimension(program.out_features, item)
        self.target = ldt, 8 if self.labels else item * ldt
        super().__init__(program, program.training, dtype, batch_size, self.target)
        self.batch_size, self.loss, self.loss_parameter, self.optimizer = batch_size, loss, loss_parameter, optimizer
        self.members = 0
        ld = _layout.leading_dimension(program.in_features, item)
        self.set(
            TRANSPOSE=_transpose(self.dtype, self.transposes(batch_size)),
            DROPOUT=context.dropout(self.dtype).address if program.drops else 0,
            COLUMN_SUM=context.column_sum(self.dtype).address,
            LOSS=context.loss(self.dtype, loss_name).address,
            LOSS_PARAMETER=np.float64(loss_parameter).view(np.int64),
            LOSS_SUM=context.loss_sum(self.dtype).address,
            OPTIMIZER=context.optimizer(self.dtype, optimizer_name).address,
            LD_INPUT=ld,
            TARGET_IS_LABEL=self.labels,
            LD_TARGET_BATCH=ldt,
        )
        self.place(
            INPUT=self.buffer(batch_size * ld),
            ACTIVATIONS=self.buffer(batch_size * self.plan.activations),
            GRADIENTS=self.buffer(batch_size * self.plan.gradients),
            REDUCTIONS=self.buffer(program.reductions),
            TARGET=self.buffer(batch_size, np.int64) if self.labels else self.buffer(batch_size * ldt),
            ROW_WEIGHT=self.buffer(batch_size, np.float64),
            ROW_LOSS=self.buffer(batch_size),
            ROW_HIT=self.buffer(batch_size, np.int64),
        )

    @functools.cached_property
    def walk(self):
        """The walk through many steps."""
        return context.walk("train_steps")

    @functools.cached_property
    def shared(self):
        """A workspace for steps that other processes share."""
        codes = self.loss, self.loss_parameter, self.optimizer
        return _SharedWorkspace(self.program, self.dtype, self.batch_size, *codes)

    def transposes(self, batch_size):
        """Whether some product is made by its transpose."""
        lanes = blocking.VECTOR_BYTES // self.dtype.itemsize
        training = self.program.training
        for instruction in training.decoded[: training.updated]:
            if instruction.operation == "linear_backward_input":
                grad_z, *_, grad_x = filter(None, instruction.operands)
                if linear.swaps.py_func(batch_size, grad_x.columns, grad_z.columns):
                    return True
            elif instruction.operation == "linear_backward_params":
                x, grad_z, *_ = instruction.operands
                if _narrow(self.dtype, min(x.columns, lanes), grad_z.columns):
                    return True
        return False

    def sums_squares(self):
        """Make ready for the sums of squares, unless it is: a number for every block of weights there may be."""
        if not self.fields[network.SQUARES]:
            listing, blocks = self.program.training, 0
            for instruction in listing.decoded[listing.weights : listing.updated]:
                first, second, *_ = instruction.operands
                linear_one = instruction.operation == "linear_backward_params"
                rows, columns = (first.columns, second.columns) if linear_one else (1, first.columns)
                blocks += -(-rows // blocking.MR) * -(-columns // blocking.GRADIENT_UNIT)
            squares = self.keep(np.zeros(blocks))
            self.set(BLOCK_SQUARES=context.block_squares(self.dtype).address, SQUARES=squares)

    def prepare(self, threads):
        """Scratch for this many threads."""
        if threads > self.members:
            elements = blocking.GRADIENT_COLUMNS + blocking.GRADIENT_SCRATCH
            stride = network.HEAD_BYTES + blocking.PACKED_BYTES + elements * self.dtype.itemsize
            self.set(SCRATCH=self.buffer(threads * stride, np.uint8), SCRATCH_BYTES=stride)
            self.members = threads


class _SharedWorkspace(TrainingWorkspace):
    """The same for steps that stop between gradient and update, and wherever sums over the rows of the batch are left.

    Attributes
    ----------
    segments : list of (first, end, weighs, sums)
        The phases of each call of the walk, whether the loss is among them, and the calls that have left sums then.
    row_weight, results : arrays
        What the rows of the batch weigh; their loss and hits.
    """

    def __init__(self, program, dtype, batch_size, loss, loss_parameter, optimizer):
        super().__init__(program, dtype, batch_size, loss, loss_parameter, optimizer)
        self.weights, self.results = self.record.view(np.float64), (np.zeros(1), np.zeros(1, np.int64))
        self.row_weight, self.reductions = np.empty(batch_size), _layout.aligned_empty(program.reductions, self.dtype)
        self.place(ROW_WEIGHT=self.keep(self.row_weight), REDUCTIONS=self.keep(self.reductions))
        trained = [array for array in program.arrays if array.trains]
        packed = {array.offset: place for array, place in zip(trained, program.gradients, strict=True)}
        instructions, item = [_in_packed(one, packed) for one in self.plan.instructions], self.dtype.itemsize
        places = []
        for array in trained:
            shape = (1, *array.shape, 0) if len(array.shape) == 1 else (*array.shape, array.ld)
            places.append((item * packed[array.offset].offset, item * array.offset, *shape))
        operations = [instruction.operation for instruction in instructions]
        end = self.plan.phases[-1][2]
        self.set(
            INSTRUCTIONS=self.keep(_linked(instructions, self.dtype, batch_size, self.target)),
            FIRST_STATISTIC=operations.index("update_statistics") if "update_statistics" in operations else end,
            END_STATISTIC=end,
            PARAMETERS_AT=self.keep(np.array(places, np.int64)),
            PARAMETER_COUNT=len(places),
        )
        self.segments, begin, loss_at = [], 0, operations.index("loss_forward_backward")
        for number, (_, first, end) in enumerate(self.plan.phases, 1):
            sums = [self.values(i) for i in instructions[first:end] if _program.leaves_sums(i.call()[1])]
            if sums or number == len(self.plan.phases):
                weighs = self.plan.phases[begin][1] <= loss_at < end
                self.segments.append((begin, number, weighs, sums))
                begin = number

    def values(self, instruction):
        """The operation of an instruction, and its arguments that are numbers or sums."""
        operation, arguments = instruction.call()
        return operation, [
            what if kind == _program.CONSTANT else self.sums(what) if kind != _program.AT_RUN else None
            for kind, what in arguments
        ]

    def sums(self, place):
        """The view of what instructions have left; None of other arrays."""
        buffer, offset, columns = place
        return self.reductions[offset : offset + columns] if buffer == _program.REDUCTIONS else None


def _in_packed(instruction, packed):
    """The instruction with gradients of parameters in a buffer without padding; ``packed`` says where."""
    operands = [
        operand._replace(offset=packed[operand.offset].offset, ld=packed[operand.offset].ld)
        if operand is not None and operand.buffer == _program.PARAMETER_GRADIENTS
        else operand
        for operand in instruction.operands
    ]
    return instruction._replace(operands=tuple(operands))


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
    state_1, state_2, state_3, *_ = *state, None, None, None
    workspace.point(_PARAMETERS, parameters)
    workspace.point(_STATISTICS, statistics)
    workspace.point(network.STATE_1, state_1)
    workspace.point(network.STATE_2, state_2)
    workspace.point(network.STATE_3, state_3)
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
        weight = None if row_weight is None else row_weight[rows if rows.ndim == 1 else rows[0]]
        return _shared_step(workspace, threads, count, weight, results, exchange)
    workspace.run(threads, count or 1)
    return workspace.fields[network.STEPS_DONE]


def _shared_step(workspace, threads, count, weight, results, exchange):
    """One step of which all is set but what is shared: two calls of compiled code, and one more for each sum."""
    fields, size, total = workspace.fields, workspace.program.trained_size, exchange.weight
    share = 1 / total if total >= _layout.LEAST_WEIGHT else 0.0
    workspace.weights[network.SCALE] = share
    if len(workspace.segments) > 1:  # first the moments of these rows are taken
        weight = np.ones(count) if weight is None else weight
        own = weight.sum()
        workspace.weights[network.SCALE] = 1 / own if own >= _layout.LEAST_WEIGHT else 0.0
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
    for source in SOURCES:
        context.gather(np.dtype(source), dtype)
    context.dropout(dtype)
    if precisions(dtype) != ("ieee",):
        context.store_factor(dtype)
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
    context.walk("forward")
    context.walk("train_steps")


def config():
    """Instruction set, tile, threads and cache in force."""
    isa = blocking.ISA
    directory = jit.cache_directory()
    return {
        "backend": "cpu",
        "instruction set": isa.name + ("" if blocking.HAS_FMA else ", no fused multiply-add"),
        "bfloat16 unit": factors.UNIT,
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
    a, b, c = (_layout.aligned_zeros(shape, dtype) for shape in (k, (k, width), width))
    function = context.c_function(context.product(dtype), *context.PRODUCT)
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        function(
            rows, width, k, a.ctypes.data, 0, 1, b.ctypes.data, width, 0, 0, 0, c.ctypes.data, 0, 0,
            blocking.SIZES.ctypes.data, 0, 0, 0, 0.0,
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * k * width / best
