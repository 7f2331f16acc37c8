"""What a network is to the walk: a record of addresses, and the arrays that they point to.

A workspace is made once for a program, a dtype and a batch size; calls set in its record what changes from one to the
next. `network` says what a record holds.
"""

import functools
import time

import numpy as np

from .. import layout, processors
from .. import program as programs
from . import blocking, context, elementwise, factors, formats, linear, network, team

COPYING = {"activation_forward", "activation_backward"}  # operations for which rows may have to be copied


def transpose_address(dtype, wanted):
    """The address of the kernel that transposes, where it is wanted."""
    return context.transpose(dtype).address if wanted else 0


def is_narrow(dtype, rows, fan_out):
    """`linear.is_narrow` of a dtype, for Python."""
    return linear.is_narrow.py_func(rows, fan_out, blocking.VECTOR_BYTES // dtype.itemsize, dtype.itemsize)


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
        places = row[network.OPERANDS :].reshape(programs.SLOTS, network.OPERAND)
        places[:, network.BUFFER] = network.BUFFERS - 1
        for place, operand in zip(places, instruction.operands, strict=True):
            if operand is not None:
                place[:] = _linked_operand(operand, dtype.itemsize, capacity, target)
    return linked


def _linked_operand(operand, itemsize, capacity, target):
    """(buffer, offset in bytes, leading dimension, columns, bytes from row to row)."""
    buffer, offset, ld, columns = operand
    stride = itemsize * ld
    if buffer in (programs.ACTIVATIONS, programs.GRADIENTS):
        offset *= capacity
    elif buffer == programs.TARGET:
        ld, stride = target
    elif buffer in (programs.ROW_WEIGHT, programs.ROW_HIT):
        stride = 8
    elif buffer >= programs.BY_ROWS:
        stride = 0
    return buffer, itemsize * offset, ld, columns, stride


def _linked_weight(weight, item):
    """A row of `network.WEIGHTS`."""
    places = []
    for form, terms in zip((formats.STACKED, formats.TURNED), weight.array.shape, strict=True):
        place = 0, 0
        if (operand := weight.forms.get(form)) is not None:
            place = item * operand.offset, formats.panels_apart.py_func(terms, operand.ld)
        places += place
    return item * weight.array.offset, *weight.array.shape, weight.array.ld, *places


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
        return context.store_factor(dtype, instruction.number).address
    return context.operation(dtype, operation).address


class _Workspace:
    """A record for the walk, and the arrays its addresses point to."""

    def __init__(self, program, listing, dtype, rows, target=(0, 0)):
        self.program, self.dtype, self.plan = program, np.dtype(dtype), factors.planned(program, listing)
        # Of pairs a thread has whole chunks of rows: the next one's terms would else share an element with its own.
        row_unit, row_block, capacity, column = blocking.MR_TAIL, blocking.ROWS, rows, self.dtype.itemsize
        if self.plan.has_pairs:
            row_unit, row_block, capacity = formats.CHUNK, formats.chunks(blocking.ROWS), formats.chunks(rows)
            column = formats.COLUMN_BYTES
        self.capacity = capacity
        self.record = np.zeros(network.FIELDS, np.int64)
        self.address = self.record.ctypes.data
        self.bytes, self.fields = memoryview(self.record).cast("B"), memoryview(self.record)
        self.arrays = []
        self.pointed = {}  # field -> array
        self.pace, self.paced = team.Pace(), False
        self.gathered = self.dtype, 0  # the last source dtype and the address of its kernel
        self.fan_in, self.fan_out, self.work = program.in_features, program.out_features, program.multiply_adds
        operations = {instruction.operation for instruction in self.plan.instructions}
        widest = max(max(array.shape) for array in program.arrays)
        sizes = blocking.sizes_for(min(capacity, row_block), widest, self.dtype.itemsize)
        self.packed_bytes = blocking.scratch_bytes(sizes)
        self.set(
            ITEMSIZE=self.dtype.itemsize,
            LANES=blocking.VECTOR_BYTES // self.dtype.itemsize,
            INSTRUCTIONS=self.keep(_linked(self.plan.instructions, self.dtype, capacity, target)),
            PHASES=self.keep(np.array(self.plan.phases, np.int64)),
            PHASE_COUNT=len(self.plan.phases),
            FEATURES=self.fan_in,
            CLASSES=self.fan_out,
            GEMM=context.product(self.dtype, self.plan.unit).address,
            SIZES=self.keep(sizes),
            COPY=context.activation_forward(self.dtype, "identity").address if operations & COPYING else 0,
            OPERATE=0 if operations <= set(network.KNOWN) else context.operate().address,
            ROW_UNIT=row_unit,
            ROW_BLOCK=row_block,
            FACTOR_BYTES=column,
            PACKED_BYTES=self.packed_bytes,
            BARRIER=self.keep(np.zeros(1, np.int64)),
            YIELD=team.yield_address(),
        )
        self.barrier = self.arrays[-1]
        parts = factors.PARTS[program.precision]
        if parts:
            item, size = self.dtype.itemsize, self.plan.weight_size
            store = context.store_weight(self.dtype) if self.plan.has_pairs else context.store_factor(self.dtype, 0)
            self.set(
                STORE_FACTOR=store.address,
                STORE_PAIRS=store.address if self.plan.has_pairs else 0,
                WEIGHTS=self.keep(np.array([_linked_weight(weight, item) for weight in self.plan.weights], np.int64)),
                WEIGHT_COUNT=len(self.plan.weights),
                LOW_PART=item * size * (parts - 1),
            )
            self.record[network.BASES + factors.WEIGHT_FACTORS] = self.buffer(parts * size)

    def keep(self, array) -> int:
        """The address of an array that lives as long as the workspace."""
        self.arrays.append(array)
        return array.ctypes.data

    def buffer(self, shape, dtype=None) -> int:
        """The address of a new uninitialised array."""
        return self.keep(layout.aligned_empty(shape, self.dtype if dtype is None else dtype))

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
            self.record[network.BASES + getattr(programs, buffer)] = address

    def point(self, field, array):
        """Set a field to the address of an array that callers pass again and again."""
        if self.pointed.get(field) is not array:
            self.pointed[field] = self  # no array: if the next line is not reached, the next call sets the address
            self.fields[field] = 0 if array is None else array.ctypes.data
            self.pointed[field] = array

    def threads_for(self, multiply_adds):
        """Workers for regions of so much work each."""
        if team.wanted == 1 or (team.wanted is None and multiply_adds <= blocking.SERIAL_WORK):
            return 1
        if getattr(team.calling, "serial", False):
            return 1
        if team.wanted is not None:
            return team.wanted
        if (cores := processors.available_cores()) == 1:
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
    """Activations of a block of rows for every thread."""

    def __init__(self, program, dtype):
        super().__init__(program, program.inference, dtype, blocking.ROWS)
        self.members = 0
        self.walk = context.walk("forward")

    def prepare(self, threads):
        """Activations and scratch for this many threads."""
        if threads > self.members:
            item = self.dtype.itemsize
            activations = _lines(self.capacity * self.plan.activations * item)
            own = activations + _lines(self.program.reductions * item)
            stride = network.HEAD_BYTES + self.packed_bytes + _lines(self.capacity * self.fan_in * item)
            outputs = self.buffer(threads * own, np.uint8)
            self.place(ACTIVATIONS=outputs, REDUCTIONS=outputs + activations)
            self.set(OUTPUTS_BYTES=own, SCRATCH=self.buffer(threads * stride, np.uint8), SCRATCH_BYTES=stride)
            self.members = threads


def _lines(size):
    """So many bytes, rounded up to whole cache lines."""
    return -(-size // layout.ALIGNMENT) * layout.ALIGNMENT


class TrainingWorkspace(_Workspace):
    """Activations and gradients of a batch, scratch for every thread."""

    def __init__(self, program, dtype, batch_size, loss, loss_parameter, optimizer):
        loss_name, optimizer_name = layout.LOSSES[loss], layout.OPTIMIZERS[optimizer]
        item = np.dtype(dtype).itemsize
        self.labels = loss_name in layout.LABEL_LOSSES
        ldt = 0 if self.labels else layout.leading_dimension(program.out_features, item)
        self.target = ldt, 8 if self.labels else item * ldt
        super().__init__(program, program.training, dtype, batch_size, self.target)
        self.batch_size, self.loss, self.loss_parameter, self.optimizer = batch_size, loss, loss_parameter, optimizer
        self.members = 0
        ld = layout.leading_dimension(program.in_features, item)
        self.set(
            TRANSPOSE=transpose_address(self.dtype, not self.plan.has_pairs and self.transposes()),
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
        self._group(batch_size, ld + ldt)
        self.place(
            INPUT=self.buffer(batch_size * ld),
            ACTIVATIONS=self.buffer(self.capacity * self.plan.activations),
            GRADIENTS=self.buffer(self.capacity * self.plan.gradients),
            REDUCTIONS=self.buffer(program.reductions),
            TARGET=self.buffer(batch_size, np.int64) if self.labels else self.buffer(batch_size * ldt),
            ROW_WEIGHT=self.buffer(batch_size, np.float64),
            ROW_LOSS=self.buffer(batch_size),
            ROW_HIT=self.buffer(batch_size, np.int64),
        )

    def _group(self, batch_size, given):
        """Let a batch go through the network in groups of rows, where it leaves more than the second cache holds.

        ``given`` are the numbers of a row of the batch, padding included. Where rows meet in other instructions than
        those of linear layers, or factors are stored, it goes as a whole.
        """
        item, plan, program = self.dtype.itemsize, self.plan, self.program
        rows = blocking.group_rows(item * (given + plan.activations + plan.gradients))
        _, (_, begin, end), *others = plan.phases
        linear_alone = {one.operation for one in plan.instructions[begin:end]} == {"linear_backward_params"}
        small = program.size * item <= blocking.GROUPED_BYTES and program.precision == "ieee"
        if batch_size > rows and not others and linear_alone and small:
            self.set(
                GROUP_ROWS=rows,
                GROUP_COLUMN_SUM=context.group_column_sum(self.dtype).address,
                CHAINS=self.buffer(elementwise.CHAINS * program.size),
            )
            self.place(PARAMETER_GRADIENTS=self.buffer(program.size))

    @functools.cached_property
    def walk(self):
        """The walk through many steps."""
        return context.walk("train_steps_in_groups" if self.fields[network.GROUP_ROWS] else "train_steps")

    @functools.cached_property
    def shared(self):
        """A workspace for steps that other processes share."""
        codes = self.loss, self.loss_parameter, self.optimizer
        return _SharedWorkspace(self.program, self.dtype, self.batch_size, *codes)

    def transposes(self):
        """Whether some product is made by its transpose."""
        lanes = blocking.VECTOR_BYTES // self.dtype.itemsize
        training = self.program.training
        for instruction in training.decoded[: training.updated]:
            if instruction.operation == "linear_backward_input":
                grad_z, *_, grad_x = filter(None, instruction.operands)
                if linear.swaps.py_func(self.batch_size, grad_x.columns, grad_z.columns):
                    return True
            elif instruction.operation == "linear_backward_params":
                x, grad_z, *_ = instruction.operands
                rows = min(x.columns, 2 * lanes)  # of a block, at least
                if is_narrow(self.dtype, rows, grad_z.columns):
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
            stride = network.HEAD_BYTES + self.packed_bytes + elements * self.dtype.itemsize
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
        self.row_weight, self.reductions = np.empty(batch_size), layout.aligned_empty(program.reductions, self.dtype)
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
            INSTRUCTIONS=self.keep(_linked(instructions, self.dtype, self.capacity, self.target)),
            FIRST_STATISTIC=operations.index("update_statistics") if "update_statistics" in operations else end,
            END_STATISTIC=end,
            PARAMETERS_AT=self.keep(np.array(places, np.int64)),
            PARAMETER_COUNT=len(places),
        )
        self.segments, begin, loss_at = [], 0, operations.index("loss_forward_backward")
        for number, (_, first, end) in enumerate(self.plan.phases, 1):
            called = [i for i in instructions[first:end] if i.operation != factors.STORE]  # no function of the contract
            sums = [self.values(i) for i in called if programs.leaves_sums(i.call()[1])]
            if sums or number == len(self.plan.phases):
                weighs = self.plan.phases[begin][1] <= loss_at < end
                self.segments.append((begin, number, weighs, sums))
                begin = number

    def values(self, instruction):
        """The operation of an instruction, and its arguments that are numbers or sums."""
        operation, arguments = instruction.call()
        return operation, [
            what if kind == programs.CONSTANT else self.sums(what) if kind != programs.AT_RUN else None
            for kind, what in arguments
        ]

    def sums(self, place):
        """The view of what instructions have left; None of other arrays."""
        buffer, offset, columns = place
        return self.reductions[offset : offset + columns] if buffer == programs.REDUCTIONS else None


def _in_packed(instruction, packed):
    """The instruction with gradients of parameters in a buffer without padding; ``packed`` says where."""
    operands = [
        operand._replace(offset=packed[operand.offset].offset, ld=packed[operand.offset].ld)
        if operand is not None and operand.buffer == programs.PARAMETER_GRADIENTS
        else operand
        for operand in instruction.operands
    ]
    return instruction._replace(operands=tuple(operands))
