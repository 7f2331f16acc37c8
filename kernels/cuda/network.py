"""The walk over a program: a few launches for each instruction, and for a training step a sequence of launches.

The host decides nothing within a step. Kernels read from the record on the GPU (record.py) which step it is, and its
rows, key and coefficients, so every step of a run is the same sequence of launches. The host launches the first step as
it is and captures the second one as a CUDA graph, which takes one launch for each step from then on, and where many
follow a graph of several steps. A graph has branches: the gradients of parameters are made beside the way back, and the
rows of a step are gathered beside the update of the one before. Small networks make all steps of a run in one launch
(steps.py, cluster.py).
"""

import itertools
from functools import partial

import numpy as np

from .. import layout, program
from ..contract import FUNCTIONS
from . import ahead, borrowing, cluster, last_layer, memory, norms, optimizers, panel_gemm, steps, streams
from .asked import all_asked
from .buffers import clear
from .elementwise import activation_backward, activation_forward, convert, dropout, gather, weights
from .factors import StoredFactors
from .linear import leave_params, linear_backward_input, linear_forward, parts_left, room_for_parts
from .losses import loss_forward_backward, step_loss
from .operands import Linear, Matrix, Rows
from .parameters import Gradient
from .record import Record

INFERENCE_BYTES = 1 << 28  # of activations at most, unless INFERENCE_ROWS rows need more
INFERENCE_ROWS = 64
GRAPHS = 8  # for so many sets of arrays, those used last, a workspace keeps graphs: of one step and of STEPS_A_GRAPH
STEPS_A_GRAPH = 16
# To capture that graph takes the host about as long as to launch its steps, and a replay saves a part of that. So it is
# captured where so many steps have been replayed or are due now: a short `fit` does without, and in a longer one the
# capture stays small beside the steps.
STEPS_BEFORE = 4 * STEPS_A_GRAPH
# The gradients of parameters take turns on so many branches. When it is the turn of a branch again, the way back has
# gone on by as many launches; so a gradient waits for none that takes less time than these.
BRANCHES = 3


class _Workspace:
    """A listing of a program, and memory for the activations of up to ``capacity`` rows."""

    def __init__(self, program, listing, dtype):
        self.program, self.listing, self.dtype = program, listing, np.dtype(dtype)
        self.fan_in, self.fan_out, self.width = program.in_features, program.out_features, listing.width
        self.reductions = memory.empty(max(program.reductions, 1), self.dtype)
        self.capacity = 0
        self.factors = None  # StoredFactors, where products read those
        self.asked = None  # the kernels that FASTBP_CUDA listed when what depends on them was made
        self.vectors = {}  # (buffer, offset) -> the array of the buffer, and the part of it that is a vector

    def places(self, run):
        """Where buffers lie, by their codes: an array, and by what an offset in the buffer is multiplied."""
        return {
            program.ACTIVATIONS: (self.outputs, self.capacity),
            program.PARAMETERS: (run.parameters, 1),
            program.STATISTICS: (run.statistics, 1),
            program.REDUCTIONS: (self.reductions, 1),
        }

    def matrix(self, places, operand):
        """An operand as a `Matrix`; None where there is none."""
        if operand is None:
            return None
        array, scale = places[operand.buffer]
        if isinstance(array, Matrix):  # input or output, which is not in a buffer of the workspace
            return array
        return Matrix(array, operand.offset * scale, operand.ld)

    def vector(self, places, operand):
        """An operand that is a vector, or a whole buffer, as a flat array; None where there is none."""
        if operand is None:
            return None
        array, _ = places[operand.buffer]
        if not operand.columns:
            return array
        key = operand.buffer, operand.offset
        if self.vectors.get(key, (None, None))[0] is not array:
            self.vectors[key] = array, array[operand.offset : operand.offset + operand.columns]
        return self.vectors[key][1]

    def stored_factors(self, capacity):
        """The stored factors of products, with memory for so many rows; None where products read no such factors."""
        if panel_gemm.chosen(self.program.precision, self.dtype) is None:
            return None
        return StoredFactors(self.program, self.listing, capacity)

    def store_weights(self, run, stream):
        """Launch the storing of weights that are factors: the caller may have changed them since the last call."""
        if self.factors is not None:
            self.factors.store_weights(run.parameters, stream)

    def store(self, number, places, n, stream):
        """Launch the storing of factors that instruction ``number`` has made and not stored; -1: of the input."""
        if self.factors is not None:
            self.factors.store(number, n, lambda operand: self.matrix(places, operand), stream)

    def walk(self, first, end, places, n, stream, record=None):
        """Launch instructions for ``n`` rows, in training for the current step of a record."""
        for number in range(first, end):
            instruction = self.listing.decoded[number]
            factors = None if self.factors is None else self.factors.of(number, n)
            operation, activation, parameter = instruction.operation, instruction.activation, instruction.parameter
            operands = instruction.operands
            if operation == "linear_forward":
                x, weight, bias, out, saved = (self.matrix(places, operand) for operand in operands[:5])
                layer = Linear(activation, parameter, operands[0].columns, operands[3].columns, instruction.precision)
                linear_forward(layer, n, x, weight, bias, out, saved if saved != out else None, stream, factors)
            elif operation == "linear_backward_input":
                grad, weight, saved, out = (self.matrix(places, operand) for operand in operands[:4])
                layer = Linear(activation, parameter, operands[3].columns, operands[0].columns, instruction.precision)
                linear_backward_input(layer, n, grad, weight, saved, out, stream, factors)
            elif operation == "linear_backward_params":
                x, grad, weight, bias = (self.matrix(places, operand) for operand in operands[:4])
                layer = Linear(activation, parameter, operands[0].columns, operands[1].columns, instruction.precision)
                leave_params(layer, n, x, grad, 0, weight, bias, *self.parts[number], stream, factors)
            elif operation == "activation_forward":
                z, out = (self.matrix(places, operand) for operand in operands[:2])
                activation_forward(activation, n, operands[0].columns, z, out, parameter, stream)
            elif operation == "activation_backward":
                grad, saved, out = (self.matrix(places, operand) for operand in operands[:3])
                activation_backward(activation, n, operands[0].columns, grad, saved, out, parameter, stream)
            elif operation == "dropout":
                x, out = self.matrix(places, operands[0]), self.matrix(places, operands[2])
                layer = instruction.number
                dropout(n, operands[0].columns, record.device, layer, 0, parameter, x, out, stream)
            elif operation == "update_statistics":
                arrays = norms.UpdateStatistics(*(self.vector(places, operand) for operand in operands[:4]))
                norms.update_statistics(operands[0].columns, parameter, record, arrays, stream)
            else:
                arrays = [self.placed(places, operand) for operand in operands[: COUNTS[operation]]]
                norms.launch(operation, n, operands[0].columns, parameter, arrays, stream)
            self.store(number, places, n, stream)

    def placed(self, places, operand):
        """An operand as `norms` takes it: a matrix as `Matrix`, a vector as a flat array."""
        whole = operand is not None and (operand.buffer >= program.BY_ROWS or not operand.columns)
        return self.vector(places, operand) if whole else self.matrix(places, operand)


# Operation -> how many operands it has.
COUNTS = {name: len(declaration.operands) for name, declaration in FUNCTIONS.items()}


class InferenceWorkspace(_Workspace):
    """Memory to predict with: activations of up to `INFERENCE_BYTES`; more rows are predicted in blocks."""

    def __init__(self, program, dtype):
        super().__init__(program, program.inference, dtype)
        bytes_a_row = max(self.width, 1) * self.dtype.itemsize
        self.most = max(INFERENCE_BYTES // bytes_a_row, INFERENCE_ROWS)
        self.input = None
        self.compiled = False

    def prepare(self, rows, converts):
        """Make room for so many rows, and for their input where that is converted."""
        rows, asked = min(rows, self.most), all_asked()
        if rows > self.capacity or asked != self.asked:
            capacity = min(1 << (rows - 1).bit_length(), self.most)
            outputs, factors = memory.empty(capacity * max(self.width, 1), self.dtype), self.stored_factors(capacity)
            self.compiled &= asked == self.asked
            self.asked, self.capacity, self.outputs, self.factors, self.input = asked, capacity, outputs, factors, None
        if converts and self.input is None:
            self.input = memory.empty(self.capacity * self.fan_in, self.dtype)


class Buffers:
    """The parameters and running statistics of a network, as flat arrays."""

    def __init__(self, parameters, statistics):
        self.parameters, self.statistics = memory.flat(parameters), memory.flat(statistics)


def network_forward(workspace, parameters, statistics, x, out):
    """``out = network(x)``, by blocks of rows that fit the workspace, one after another."""
    n, converts = len(x), x.dtype != workspace.dtype
    workspace.prepare(max(n, 1), converts)
    buffers = Buffers(parameters, statistics)
    places = workspace.places(buffers)
    x, out = memory.flat(x), memory.flat(out)

    def predict(first, stream):
        rows = min(workspace.capacity, n - first)
        source = Matrix(x, first * workspace.fan_in, workspace.fan_in)
        if converts:
            converted = Matrix(workspace.input, 0, workspace.fan_in)
            convert(rows, workspace.fan_in, source, converted, stream)
            source = converted
        target = Matrix(out, first * workspace.fan_out, workspace.fan_out)
        of_rows = {program.INPUT: (source, 1), program.OUTPUT: (target, 1)}
        of_all = places | of_rows
        workspace.store(-1, of_all, rows, stream)
        workspace.walk(0, len(workspace.listing.decoded), of_all, rows, stream)

    def predict_all(stream):
        workspace.store_weights(buffers, stream)
        for first in range(0, n, workspace.capacity):
            predict(first, stream)

    if not workspace.compiled:
        ahead.compile_for(predict_all)
        workspace.compiled = True
    predict_all(streams.stream())


class TrainingWorkspace(_Workspace):
    """Memory to train with: activations and gradients of a batch, gradients of parameters, a record, and graphs."""

    def __init__(self, program, dtype, batch_size, loss, loss_parameter, optimizer):
        super().__init__(program, program.training, dtype)
        ld_in = layout.leading_dimension(self.fan_in, self.dtype.itemsize)
        self.capacity = self.batch_size = batch_size
        self.loss, self.loss_parameter = layout.LOSSES[loss], float(loss_parameter)
        self.optimizer = layout.OPTIMIZERS[optimizer]
        self.labelled = self.loss in layout.LABEL_LOSSES
        self.outputs = memory.empty(batch_size * (self.width + ld_in), self.dtype)
        self.input = Matrix(self.outputs, batch_size * self.width, ld_in)
        self.gradients = memory.empty(batch_size * self.width, self.dtype)
        ld_target = 1 if self.labelled else layout.leading_dimension(self.fan_out, self.dtype.itemsize)
        targets = memory.empty(batch_size * ld_target, np.dtype(np.int64) if self.labelled else self.dtype)
        self.target = Matrix(targets, 0, ld_target)
        self.rows = Rows(
            memory.empty(batch_size, np.float64),
            memory.empty(batch_size, self.dtype),
            memory.empty(batch_size, np.int64),
        )
        self.weight_rows = 0  # how many rows the weights of the rows are equal for; 0 if they are others
        decoded = self.listing.decoded
        self.widest = max(operand.columns for instruction in decoded for operand in instruction.operands if operand)
        self.back = way_back(self.listing)
        self.parameter_gradients = None  # and behind them the parts of those that are cut
        self.parts = {}  # number of an instruction -> the parts of a weight, the chunks of a bias
        self.record = Record()
        self.instructions = memory.to_device(self.listing.instructions.reshape(-1))
        self.numbers = self.instructions.view(np.float64)
        self.plan = None  # of cluster.py, once it has looked for one
        self.choose()

    def choose(self):
        """Begin anew where FASTBP_CUDA lists other kernels than before.

        ``tables`` has for the rows of a step the `Table` that its update goes by, ``graphs`` for sizes, stream and
        addresses the graphs of such steps.
        """
        asked = all_asked()
        if asked != self.asked:
            factors = self.stored_factors(self.batch_size)
            last = last_linear(self.listing) if factors is None else None
            self.asked, self.factors, self.last, self.tables, self.graphs = asked, factors, last, {}, {}

    def places(self, run):
        return super().places(run) | {
            program.INPUT: (self.input, 1),
            program.GRADIENTS: (self.gradients, self.capacity),
            program.ROW_WEIGHT: (self.rows.weight, 1),
            program.PARAMETER_GRADIENTS: (self.parameter_gradients, 1),
        }

    def allocate_gradients(self):
        """Allocate the gradients of parameters, as 0: what pads them stays so."""
        places, end = places_of_parts(self.listing, self.batch_size, self.program.size, self.dtype.itemsize)
        gradients = memory.empty(end, self.dtype)
        clear(gradients, streams.stream())
        parts = {
            number: tuple(Matrix(gradients, start, ld) for start, ld in of_instruction)
            for number, of_instruction in places.items()
        }
        self.parameter_gradients, self.parts = gradients, parts

    def table(self, n):
        """The table of the parameters that train, with what `leave_params` leaves of their gradients for n rows."""
        gradients = {}
        for number, (parts, sums) in self.parts.items():
            instruction = self.listing.decoded[number]
            x, grad, weight, bias = instruction.operands[:4]
            count, chunks = parts_left((x.columns, grad.columns, n), instruction.precision, self.dtype)
            if count > 1:
                gradients[weight.offset] = Gradient(parts.offset, count, x.columns * parts.ld)
            if bias is not None and chunks > 1:
                gradients[bias.offset] = Gradient(sums.offset, chunks, sums.ld)
        table = optimizers.table if self.factors is None else self.factors.table
        return table([array for array in self.program.arrays if array.trains], gradients)

    def step(self, run, n, stream, times=1):
        """A training step of ``n`` rows, or several: the launches, in order.

        Where a graph is captured, the sum of the losses and the gradients of parameters, for which only the update
        waits, are beside the way back, so nothing there may read of the record what that sum writes. It writes NEXT,
        which the next step and the update read, and STOPPED, which updates read: those of statistics after it on its
        branch, those of parameters when all branches have been joined. The others read CURRENT, which is written with
        the gather; and as the next step's rows are gathered beside the update, this does not.
        """
        self.begin(run, n, stream)
        self.make_gradients(run, n, stream)
        for _ in range(times - 1):
            beside = streams.branch(stream, "rows")
            self.begin(run, n, beside)
            self.update(run, n, stream)
            streams.join(beside, stream)
            self.make_gradients(run, n, stream)
        self.update(run, n, stream)

    def begin(self, run, n, stream):
        """Launch the gathering of the rows of the next step of the record, with their weights."""
        record, target_columns = self.record, 1 if self.labelled else self.fan_out
        beside = stream
        if run.row_weight is not None:
            beside = streams.branch(stream, "weights")
            weights(n, record.device, run.row_weight, self.rows.weight, beside)
        gather(n, self.fan_in, target_columns, record.device, run.x, self.input, run.target, self.target, stream)
        streams.join(beside, stream)
        self.store(-1, self.places(run), n, stream)

    def make_gradients(self, run, n, stream):
        """Launch the way forward and back, the sum of the losses and the update of statistics."""
        record, listing, places = self.record, self.listing, self.places(run)
        self.forward_and_loss(places, n, stream)
        self.store(listing.loss, places, n, stream)
        branches = [streams.branch(stream, "loss")]
        step_loss(n, record, self.rows, branches[0])
        self.walk(listing.statistics, listing.updated, places, n, branches[0], record)
        for at, number in self.back:
            if number is not None:
                branches.append(streams.branch(stream, number))
            self.walk(at, at + 1, places, n, stream if number is None else branches[-1], record)
        for branch in dict.fromkeys(branches):
            streams.join(branch, stream)

    def forward_and_loss(self, places, n, stream):
        """Launch the way forward, and the loss of every row with its gradient: with the last layer, if it `suits`."""
        listing, last, end = self.listing, self.last, self.listing.loss
        prediction, grad = (self.matrix(places, at) for at in (listing.prediction, listing.prediction_gradient))
        of_loss = self.target, self.rows, grad, stream
        if last is not None and last_layer.suits(last, n, self.dtype):
            self.walk(0, end - 1, places, n, stream, self.record)
            x, weight, bias = (self.matrix(places, at) for at in listing.decoded[end - 1].operands[:3])
            operands = x, weight, bias, prediction
            last_layer.forward_and_loss(last, self.loss, n, self.loss_parameter, *operands, *of_loss)
        else:
            self.walk(0, end, places, n, stream, self.record)
            loss_forward_backward(self.loss, n, self.fan_out, self.loss_parameter, prediction, *of_loss)

    def update(self, run, n, stream):
        """Launch the update of what trains by its gradients, whose parts it adds up."""
        arrays = run.parameters, self.parameter_gradients, run.state, stream
        update = optimizers.update if self.factors is None else self.factors.update
        update(self.optimizer, self.tables[n], self.record, *arrays)

    def compiled(self, run, n, stream):
        """What is compiled before the first step: its launches, and the last layer alone, which predictions launch."""
        self.first_step(run, n, stream)
        end = self.listing.loss
        self.walk(max(end - 1, 0), end, self.places(run), n, stream, self.record)

    def first_step(self, run, n, stream):
        """The launches before the first step of a call, and that step."""
        self.store_weights(run, stream)
        self.step(run, n, stream)

    def steps(self, run, n, count):
        """Launch ``count`` steps of ``n`` rows each: all in one kernel, or the first one as it is and graphs of it."""
        one_launch = cluster if cluster.suits(self, run.dtypes) else steps if steps.suits(self, n) else None
        if one_launch is not None:
            one_launch.train_steps(self, run, n, count, streams.stream())
            self.weight_rows = 0
            return
        self.choose()
        if self.parameter_gradients is None:
            self.allocate_gradients()
        if n not in self.tables:
            self.tables[n] = self.table(n)
        if run.row_weight is None and self.weight_rows != n:
            memory.to_device(np.full(n, 1 / n), self.rows.weight[:n])
        self.weight_rows = n if run.row_weight is None else 0
        key = (n, streams.stream(), *run.addresses(), borrowing.address(self.record.device))
        graphs = self.graphs.pop(key, None)
        if graphs is None:
            while len(self.graphs) >= GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            ahead.compile_for(lambda stream: self.compiled(run, n, stream))
            self.first_step(run, n, streams.stream())
            graphs = _Graphs()  # whose kernels are all compiled
            count -= 1
        else:
            self.store_weights(run, streams.stream())
        self.graphs[key] = graphs  # the last one; the first has not been used for the longest time
        graphs.replay(partial(self.step, run, n), count)


def last_linear(listing):
    """The layer that makes the prediction, as a `Linear`; None where another instruction does."""
    if not listing.loss or listing.decoded[listing.loss - 1].operation != "linear_forward":
        return None
    instruction = listing.decoded[listing.loss - 1]
    x, _, _, out, saved = instruction.operands[:5]
    if out != listing.prediction or saved not in (None, out):
        return None
    return Linear(instruction.activation, instruction.parameter, x.columns, out.columns, instruction.precision)


def way_back(listing):
    """From the loss to the updates: pairs of an instruction's number and its branch, None for the way back itself.

    A gradient of parameters comes as soon as all that it reads has been written.
    """
    written = program.last_writers(listing.decoded[: listing.weights])
    ready = {at: [] for at in range(listing.loss, listing.weights)}
    for at in range(listing.weights, listing.statistics):
        read = [written.get(what[:2], 0) for kind, what in listing.calls[at][1] if kind == program.READ]
        ready[max(listing.loss, *read)].append(at)
    turns, back = itertools.cycle(range(BRANCHES)), []
    for at, gradients in ready.items():
        back += [(at, None)] if at > listing.loss else []
        back += [(gradient, next(turns)) for gradient in gradients]
    return back


def places_of_parts(listing, rows, start, itemsize):
    """Where the parts of gradients of parameters lie, from ``start`` of their memory on, for up to so many rows.

    Returns
    -------
    dict, int
        The number of an instruction -> the start and leading dimension of the parts of a weight, each as the weight
        itself, and of the chunks of a bias; and the end.
    """
    line, places, end = layout.ALIGNMENT // itemsize, {}, start
    for number in range(listing.weights, listing.statistics):
        if listing.decoded[number].operation == "linear_backward_params":
            x, grad, weight, _ = listing.decoded[number].operands[:4]
            sizes, places[number] = room_for_parts((x.columns, grad.columns, rows), weight.ld), []
            for size, ld in zip(sizes, (weight.ld, grad.columns), strict=True):
                places[number].append((end, ld))
                end += -(-size // line) * line
    return places, end


class _Graphs:
    """The graphs of steps that are the same launches: of one step and of `STEPS_A_GRAPH`, captured when first used."""

    def __init__(self):
        self.replayed, self.by_length = 0, {}  # steps so far; the steps of a graph -> the graph

    def replay(self, step, count):
        """Make ``count`` steps in as few replays as they may have; ``step(stream, times)`` launches so many."""
        many = STEPS_A_GRAPH in self.by_length or self.replayed + count >= STEPS_BEFORE
        long, short = divmod(count, STEPS_A_GRAPH) if many else (0, count)
        for length, times in ((STEPS_A_GRAPH, long), (1, short)):
            for _ in range(times):
                if length not in self.by_length:
                    self.by_length[length] = streams.capture(partial(step, times=length))
                self.by_length[length]()
        self.replayed += count


class Run(Buffers):
    """The arrays of a call of `network_train_steps`, as flat arrays and `Matrix`."""

    def __init__(self, parameters, statistics, state, x, target, row_weight):
        super().__init__(parameters, statistics)
        self.state = tuple(map(memory.flat, state))
        self.x = Matrix(memory.flat(x), 0, x.shape[1])
        self.target = Matrix(memory.flat(target), 0, target.shape[1] if target.ndim == 2 else 1)
        self.row_weight = None if row_weight is None else memory.flat(row_weight)
        self.dtypes = x.dtype, target.dtype

    def addresses(self):
        """The addresses and dtypes that a captured step depends on."""
        arrays = (self.parameters, self.statistics, *self.state, self.x.data, self.target.data, self.row_weight)
        return tuple(None if array is None else (borrowing.address(array), array.dtype.str) for array in arrays)


def network_train_steps(
    workspace, parameters, statistics, state, coefficients, keys, x, target, row_weight, rows, batch_size,
    step_loss, step_hits, step_squares=None, exchange=None,
):  # fmt: skip
    """Training steps as `reference` defines them, on one stream; the host waits for the last one only.

    ``parameters``, ``statistics``, ``state``, ``x``, ``target`` and ``row_weight`` are on the GPU; the others are small
    and may be on the host, from where they are sent once.

    Raises
    ------
    ValueError
        ``step_squares`` or ``exchange`` is given, or ``coefficients`` are not the same for all parameters.
    """
    if step_squares is not None:
        raise ValueError("the GPU sums no squares of weights: step_squares must be None")
    if exchange is not None:
        raise ValueError("the GPU exchanges no gradients within a step: exchange must be None")
    arguments = parameters, statistics, state, coefficients, keys, x, target, row_weight, rows, batch_size
    return launch_train_steps(workspace, *arguments)(step_loss, step_hits)


def launch_train_steps(
    workspace, parameters, statistics, state, coefficients, keys, x, target, row_weight, rows, batch_size
):
    """`network_train_steps` without waiting: returns while the GPU works.

    Returns
    -------
    function (step_loss, step_hits) -> int
        Waits for the last step, writes losses and hits, and returns how many steps were done. It must be called once,
        before the next steps are launched.
    """
    if coefficients.ndim != 2:
        raise ValueError(f"the GPU updates all parameters alike, got coefficients of shape {coefficients.shape}")
    count = rows.shape[rows.ndim - 1]  # the simulator knows no shape[-1]
    number = -(-count // batch_size)
    if number == 0:
        return lambda step_loss, step_hits: 0
    run = Run(parameters, statistics, state, x, target, row_weight)
    workspace.record.begin(coefficients, keys, rows, batch_size, number)
    whole, rest = divmod(count, batch_size)
    if whole:
        workspace.steps(run, batch_size, whole)
    if rest:
        workspace.steps(run, rest, 1)
    return workspace.record.end
