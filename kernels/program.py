"""A network as a program: instructions for both directions, which every backend walks.

`lower` writes the instructions of a chain of layers once: one list predicts, another trains. An instruction is a row
of ``int64``: an operation, which is a function of the contract, its scalars, and an operand for each of its arrays. A
walk goes through the phases of a list and dispatches. What follows from what, and where a number lies, is decided
here, and nothing else knows how a layer is differentiated.

A phase of ``ROWS`` takes some rows of the batch through all its instructions; rows do not meet in it. A phase of
``COLUMNS`` reduces over the whole batch, some columns at a time. The phase of ``WEIGHTS`` makes gradients and updates
parameters. All work of a phase is done before the next begins.
"""

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import contract, layout

# Names; a code is the index of its name.
OPERATIONS = (
    "linear_forward", "activation_forward", "dropout", "add", "layer_norm_forward", "batch_norm_forward",
    "batch_moments", "running_moments", "loss_forward_backward", "activation_backward", "linear_backward_input",
    "layer_norm_backward_input", "batch_norm_backward_input", "norm_backward_params", "linear_backward_params",
    "update_statistics",
)  # fmt: skip
PHASES = ("rows", "columns", "weights")
# Where operands lie. Those before BY_ROWS have a row for each row of the batch.
BUFFERS = (
    "input", "output", "activations", "gradients", "input_gradient", "rows", "target", "row_weight", "row_loss",
    "row_hit", "parameters", "parameter_gradients", "statistics", "reductions",
)  # fmt: skip
(
    INPUT, OUTPUT, ACTIVATIONS, GRADIENTS, INPUT_GRADIENT, ROWS, TARGET, ROW_WEIGHT, ROW_LOSS, ROW_HIT,
    PARAMETERS, PARAMETER_GRADIENTS, STATISTICS, REDUCTIONS,
) = range(14)  # fmt: skip
BY_ROWS = PARAMETERS
NONE = -1  # the buffer of an operand that is not there

# Columns of an instruction, and of an operand in it.
OPERATION, ACTIVATION, PARAMETER, PRECISION, NUMBER, HEAD = range(6)
BUFFER, OFFSET, LD, COLUMNS, OPERAND = range(5)
SLOTS = 8  # operands an instruction may have
WIDTH = HEAD + SLOTS * OPERAND

ROWS_PHASE, COLUMNS_PHASE, WEIGHTS_PHASE = range(len(PHASES))


# What an argument of a call is: known beforehand, an operand that is read or written, or known when it runs.
CONSTANT, READ, WRITTEN, AT_RUN = range(4)


class Layer(NamedTuple):
    """A layer as `lower` takes it."""

    kind: str  # a method of `_Lowering`
    fan_in: int
    fan_out: int
    affine: bool = True  # whether a linear layer has a bias, a normalisation weight and bias
    activation: str = "identity"  # that follows at once
    parameter: float = 0.0  # of the activation, else the probability of dropout or what is added to a variance
    momentum: float = 0.0  # of the running statistics
    inside: tuple = ()  # layers of a residual one
    trains: bool = True  # whether its parameters, and running statistics, change


class Operand(NamedTuple):
    """Where an array lies: at ``offset`` elements a row of the batch (of whole buffers: elements) into its buffer."""

    buffer: int
    offset: int = 0
    ld: int = 1
    columns: int = 0  # 0: a number a row, which has no columns to share


class Array(NamedTuple):
    """A weight, a bias or a running statistic: a matrix or a vector in a flat buffer."""

    row: int  # the number of its layer
    name: str
    offset: int
    shape: tuple[int, ...]
    ld: int
    trains: bool = True

    def view(self, buffer):
        """The array in a buffer of its kind."""
        if len(self.shape) == 1:
            return buffer[self.offset : self.offset + self.shape[0]]
        rows, columns = self.shape
        return buffer[self.offset : self.offset + rows * self.ld].reshape(rows, self.ld)[:, :columns]


@dataclass
class Listing:
    """Instructions in their order, and the phases that they are divided into.

    Attributes
    ----------
    instructions : int64 array (count, WIDTH)
    phases, input_phases : lists of (PHASES code, first instruction, end)
        Up to the updates; and what then makes the gradient of the input, which training does without.
    loss, weights, statistics, updated : int
        The instruction of the loss, the first of the phase of weights, the first there that updates running
        statistics, and the end of that phase.
    width : int
        Elements of activations that a row of the batch needs.
    prediction, prediction_gradient, input_gradient : Operand
        Where the network's output is, and the gradients of it and of the input.
    output_is_saved : bool
        Whether the way back reads the output.
    """

    instructions: np.ndarray
    phases: list
    width: int
    input_phases: list = ()
    loss: int = -1
    weights: int = -1
    statistics: int = -1
    updated: int = -1
    prediction: Operand | None = None
    prediction_gradient: Operand | None = None
    input_gradient: Operand | None = None
    output_is_saved: bool = False

    @cached_property
    def operations(self) -> set[str]:
        """The names of the operations that occur."""
        return {OPERATIONS[code] for code in self.instructions[:, OPERATION]}

    @cached_property
    def decoded(self) -> list["Instruction"]:
        """The instructions as Python reads them."""
        return [Instruction.of(row) for row in self.instructions]

    @cached_property
    def calls(self) -> list[tuple]:
        """The instructions as `Instruction.call` has them."""
        return [instruction.call() for instruction in self.decoded]


class Instruction(NamedTuple):
    """A row of a listing, decoded."""

    operation: str
    activation: str
    parameter: float
    precision: str
    number: int
    operands: tuple

    @classmethod
    def of(cls, row):
        operands = [
            None if operand[BUFFER] == NONE else Operand(*operand.tolist())
            for operand in row[HEAD:].reshape(SLOTS, OPERAND)
        ]
        return cls(
            OPERATIONS[row[OPERATION]], layout.ACTIVATIONS[row[ACTIVATION]], float(row[PARAMETER].view(np.float64)),
            layout.PRECISIONS[row[PRECISION]], int(row[NUMBER]), tuple(operands),
        )  # fmt: skip

    def call(self):
        """The name of the function, and its arguments in their order: pairs of what one is, and that."""
        declaration = contract.FUNCTIONS[self.operation]
        operands, arguments = iter(self.operands), []
        for name in declaration.arguments:
            if name in declaration.operands:
                operand = next(operands)
                if operand is None:
                    arguments.append((CONSTANT, None))
                else:
                    kind = WRITTEN if name in declaration.writes else READ
                    arguments.append((kind, (operand.buffer, operand.offset, operand.columns)))
            elif name == "activation":
                arguments.append((CONSTANT, layout.ACTIVATIONS.index(self.activation)))
            elif name == "precision":
                arguments.append((CONSTANT, layout.PRECISIONS.index(self.precision)))
            elif name in ("activation_parameter", "probability", "eps", "momentum"):
                arguments.append((CONSTANT, self.parameter))
            else:
                arguments.append((AT_RUN, (name, self.number)))
        return self.operation, arguments


def last_writers(instructions) -> dict:
    """The numbers of the instructions that write operands last, by (buffer, offset)."""
    written = {}
    for number, instruction in enumerate(instructions):
        declaration = contract.FUNCTIONS[instruction.operation]
        for name, operand in zip(declaration.operands, instruction.operands, strict=False):
            if operand is not None and name in declaration.writes:
                written[operand.buffer, operand.offset] = number
    return written


@dataclass
class Program:
    """What `lower` makes of layers.

    Attributes
    ----------
    training : Listing
        A step. Its first phase begins when the rows of the batch have been gathered; its last makes and uses the
        gradients of the parameters.
    evaluation : Listing
        The same of a network that does not train: nothing is dropped, and running statistics stand for the batch's.
    inference : Listing
        The way forward alone, into the output of the network.
    arrays, statistics : lists of Array
        Weights and biases in the parameter buffer; running means and variances in the buffer of statistics.
    size, statistics_size, reductions : int
        Elements of the parameter buffer, of the statistics, and of what phases of columns leave to others.
    numbers : int
        How many rows of layers there are: a layer with the activation that follows it is one.
    multiply_adds : int
        Of the products of one example's forward pass.
    """

    layers: tuple
    itemsize: int
    precision: str
    training: Listing
    evaluation: Listing
    inference: Listing
    arrays: list
    statistics: list
    size: int
    statistics_size: int
    reductions: int
    numbers: int
    multiply_adds: int
    in_features: int
    out_features: int

    @cached_property
    def places(self) -> np.ndarray:
        """The parameters as kernels read them, int64 (count, 4): offset, rows, columns, leading dimension of each."""
        places = [(a.offset, *((1, *a.shape) if len(a.shape) == 1 else a.shape), a.ld) for a in self.arrays]
        return np.array(places, np.int64).reshape(-1, 4)

    @cached_property
    def trained_matrices(self) -> np.ndarray:
        """The `places` of the weights of linear layers that an optimizer changes."""
        return np.ascontiguousarray(self.places[[array.trains and len(array.shape) == 2 for array in self.arrays]])

    @cached_property
    def trained(self) -> list[slice]:
        """The parts of the parameter buffer that an optimizer changes: one, the whole, where all layers train."""
        parts = []
        for array, end in zip(self.arrays, [*(array.offset for array in self.arrays[1:]), self.size], strict=True):
            if array.trains:
                joined = parts and parts[-1].stop == array.offset
                parts.append(slice(parts.pop().start if joined else array.offset, end))
        return parts

    @cached_property
    def gradients(self) -> list[Array]:
        """Where the gradients of the parameters that train lie in a buffer without padding, in their order."""
        arrays, offset = [], 0
        for array in (array for array in self.arrays if array.trains):
            arrays.append(array._replace(offset=offset, ld=array.shape[-1]))
            offset += math.prod(array.shape)
        return arrays

    @cached_property
    def trained_size(self) -> int:
        """Numbers that an optimizer changes."""
        return sum(math.prod(array.shape) for array in self.gradients)

    @property
    def frozen(self) -> set[int]:
        """The rows whose parameters do not change."""
        return {array.row for array in [*self.arrays, *self.statistics] if not array.trains}

    @property
    def real_size(self) -> int:
        """Numbers that are trained; the buffer has padding besides."""
        return sum(math.prod(array.shape) for array in self.arrays)

    @property
    def drops(self) -> bool:
        """Whether training takes random bits."""
        return "dropout" in self.training.operations

    @property
    def meets(self) -> bool:
        """Whether rows of a batch meet in training."""
        return "batch_moments" in self.training.operations

    def with_precision(self, precision):
        """The same network, its products of this precision."""
        return lower(self.layers, self.itemsize, precision)

    def with_frozen(self, frozen):
        """The same network, of which these rows do not train."""
        return lower(_frozen(self.layers, frozen, itertools.count()), self.itemsize, self.precision)

    def views(self, buffer):
        """The (weight, bias) views of every row into a parameter-shaped buffer; None where there is none."""
        pairs = [[None, None] for _ in range(self.numbers)]
        for array in self.arrays:
            pairs[array.row][array.name == "bias"] = array.view(buffer)
        return [tuple(pair) for pair in pairs]


def lower(layers, itemsize: int, precision: str = "ieee") -> Program:
    """The program of a chain of layers.

    Parameters
    ----------
    layers : sequence of Layer, or of tuples of its fields
    itemsize : int
        Bytes of an element.
    precision : str
        Of all products, by name.
    """
    layers = tuple(Layer(*layer) for layer in layers)
    training, evaluation, inference = (make(itemsize, precision) for make in (_Training, _Evaluation, _Forward))
    return Program(
        layers=layers,
        itemsize=itemsize,
        precision=precision,
        training=training.whole(layers),
        evaluation=evaluation.whole(layers),
        inference=inference.whole(layers),
        arrays=training.arrays,
        statistics=training.statistics,
        size=training.size,
        statistics_size=training.statistics_size,
        reductions=training.reductions,
        numbers=training.number,
        multiply_adds=training.multiply_adds,
        in_features=layers[0].fan_in,
        out_features=layers[-1].fan_out,
    )


def _frozen(layers, frozen, numbers):
    """The layers, of which those of these numbers do not train."""
    return tuple(
        layer._replace(inside=_frozen(layer.inside, frozen, numbers))
        if layer.kind == "residual"
        else layer._replace(trains=next(numbers) not in frozen)
        for layer in layers
    )


@dataclass
class _Value:
    """What an operation leaves: its output, and what the way back needs to know of it."""

    out: Operand
    saved: Operand | None = None  # what the derivative of its activation reads
    grad: Operand | None = None  # the derivative of the loss with respect to z, where ``out = act(z)``
    activation: str = "identity"
    parameter: float = 0.0
    trained: bool = False  # whether parameters lie before it, so that its gradient is wanted
    pending: list = field(default_factory=list)  # gradients of it that another instruction has made


class _Forward:
    """The way forward, a method a kind of layer: from the layer and its input to its output."""

    def __init__(self, itemsize, precision):
        self.itemsize, self.precision = itemsize, precision
        self.instructions, self.kinds = [], []
        self.arrays, self.statistics = [], []
        self.size = self.statistics_size = self.reductions = self.width = self.number = self.multiply_adds = 0

    def whole(self, layers):
        """The listing of a network."""
        fan_in = layers[0].fan_in
        y = self.chain(layers, _Value(Operand(INPUT, 0, fan_in, fan_in)))
        output = Operand(OUTPUT, 0, y.out.columns, y.out.columns)
        for row in self.instructions:  # what makes the last value writes the output of the network instead
            for operand in row[HEAD:].reshape(SLOTS, OPERAND):
                if tuple(operand) == y.out:
                    operand[:] = output
        return Listing(np.array(self.instructions), self.phases(), self.width)

    def chain(self, layers, x):
        for layer in layers:
            x = getattr(self, layer.kind)(layer, x)
        return x

    # ------------------------------------------------------------------------------ the layers
    def linear(self, layer, x):
        self.multiply_adds += layer.fan_in * layer.fan_out
        weight, bias = self.weight("weight", layer), self.vector("bias", layer)
        y = self.value(layer, trained=x.trained or layer.trains)
        self.emit("linear_forward", x.out, weight, bias, y.out, y.saved, of=y)

        def update():
            if layer.trains:
                self.emit("linear_backward_params", x.out, y.grad, gradient(weight), gradient(bias), kind=WEIGHTS_PHASE)

        self.back(x, lambda: self.into(x, "linear_backward_input", y.grad, weight, fuses=True), update)
        return self.next(y)

    def activation(self, layer, x):
        saves_z = layer.activation in layout.SAVES_PRE_ACTIVATION
        y = self.value(layer, trained=x.trained, saved=x.out if saves_z else None)
        self.emit("activation_forward", x.out, y.out, of=y)
        self.back(x, lambda: self.unchanged_into(x, y.grad))
        return self.next(y)

    def dropout(self, layer, x):
        self.number += 1
        return x

    def residual(self, layer, x):
        inner = self.chain(layer.inside, x)
        y = self.value(layer, trained=inner.trained)
        self.emit("add", x.out, inner.out, y.out)

        def back():
            x.pending.append(y.grad)
            self.unchanged_into(inner, y.grad)

        self.back(inner, back)
        return y

    def layer_norm(self, layer, x):
        weight, bias = (self.vector(name, layer) for name in ("weight", "bias"))
        y, normalised = self.value(layer, trained=x.trained or self.learns(layer)), self.normalised(layer)
        scale = Operand(ACTIVATIONS, self.widened(self.lines(1)), 1, 1)
        self.emit("layer_norm_forward", x.out, weight, bias, y.out, normalised, scale, parameter=layer.parameter)
        self.back(
            x, lambda: self.into(x, "layer_norm_backward_input", y.grad, weight, normalised, scale),
            lambda: self.norm_gradients(layer, y, normalised, weight, bias),
        )  # fmt: skip
        return self.next(y)

    def batch_norm(self, layer, x):
        features = layer.fan_out
        weight, bias = (self.vector(name, layer) for name in ("weight", "bias"))
        running = [self.statistic(name, layer) for name in ("running_mean", "running_var")]
        mean, scale, variance, products, sums = (self.reduction(features) for _ in range(5))
        y, normalised = self.value(layer, trained=x.trained or self.learns(layer)), self.normalised(layer)
        self.moments(layer, x, running, mean, scale, variance)
        self.emit("batch_norm_forward", x.out, mean, scale, weight, bias, y.out, normalised)

        def back():
            sums_of_columns = self.column_sums(layer, y, normalised, products, sums)
            self.into(
                x, "batch_norm_backward_input", y.grad, Operand(ROW_WEIGHT), weight, normalised, scale, *sums_of_columns
            )

        self.back(x, back, lambda: self.norm_gradients(layer, y, normalised, weight, bias))
        self.learn(
            layer,
            lambda: self.emit(
                "update_statistics", mean, variance, *running, parameter=layer.momentum, kind=WEIGHTS_PHASE
            ),
        )
        return self.next(y)

    def moments(self, layer, x, running, mean, scale, variance):
        self.emit("running_moments", *running, mean, scale, parameter=layer.parameter, kind=COLUMNS_PHASE)

    def normalised(self, layer):
        """Where a normalisation leaves what it has normalised, for the way back."""
        return None

    def learns(self, layer):
        """Whether a normalisation has parameters that change."""
        return layer.affine and layer.trains

    def norm_gradients(self, layer, y, normalised, weight, bias):
        if self.learns(layer):
            self.emit("norm_backward_params", y.grad, normalised, gradient(weight), gradient(bias), kind=WEIGHTS_PHASE)

    def back(self, x, *instructions):
        """The way back through what has been emitted, to x; predicting has none."""

    def learn(self, layer, instruction):
        """What updates running statistics; training has it."""

    # ------------------------------------------------------------------------------ places
    def value(self, layer, trained=True, saved=None):
        ld = layout.leading_dimension(layer.fan_out, self.itemsize)
        out = Operand(ACTIVATIONS, self.widened(ld), ld, layer.fan_out)
        grad = out._replace(buffer=GRADIENTS)
        return _Value(out, saved or self.saved(layer, out), grad, layer.activation, layer.parameter, trained)

    def saved(self, layer, out):
        """Where z goes, or the output itself."""
        return out

    def next(self, y):
        self.number += 1
        return y

    def widened(self, elements):
        self.width, offset = self.width + elements, self.width
        return offset

    def weight(self, name, layer):
        ld = layout.leading_dimension(layer.fan_out, self.itemsize)
        return self.parameter(name, layer, (layer.fan_in, layer.fan_out), ld, layer.fan_in * ld)

    def vector(self, name, layer):
        if not layer.affine:
            return None
        features = layer.fan_out
        return self.parameter(name, layer, (features,), features, layout.leading_dimension(features, self.itemsize))

    def parameter(self, name, layer, shape, ld, elements):
        offset = self.size
        self.size += self.lines(elements)
        self.arrays.append(Array(self.number, name, offset, shape, ld, layer.trains))
        return Operand(PARAMETERS, offset, ld, shape[-1])

    def statistic(self, name, layer):
        offset, features = self.statistics_size, layer.fan_out
        self.statistics_size += self.lines(features)
        self.statistics.append(Array(self.number, name, offset, (features,), features, layer.trains))
        return Operand(STATISTICS, offset, features, features)

    def reduction(self, features):
        offset = self.reductions
        self.reductions += self.lines(features)
        return Operand(REDUCTIONS, offset, features, features)

    def lines(self, elements):
        """So many elements, rounded up to whole cache lines."""
        line = layout.ALIGNMENT // self.itemsize
        return -(-elements // line) * line

    # ------------------------------------------------------------------------------ instructions
    def emit(self, operation, *operands, of=None, kind=ROWS_PHASE, parameter=0.0, number=0):
        """An instruction; ``of`` is the value whose activation it takes."""
        row = np.full(WIDTH, NONE, np.int64)
        activation, parameter = (of.activation, of.parameter) if of else ("identity", parameter)
        row[:HEAD] = (
            OPERATIONS.index(operation), layout.ACTIVATIONS.index(activation), np.float64(parameter).view(np.int64),
            layout.PRECISIONS.index(self.precision), number,
        )  # fmt: skip
        for slot, operand in enumerate(operands):
            if operand is not None:
                row[HEAD + slot * OPERAND : HEAD + (slot + 1) * OPERAND] = operand
        self.instructions.append(row)
        self.kinds.append(kind)

    def phases(self):
        """(kind, first, end) of the instructions so far; the first is of rows."""
        phases = [(ROWS_PHASE, 0, 0)]
        for i, kind in enumerate(self.kinds):
            if phases[-1][0] != kind:
                phases.append((kind, i, i))
            phases[-1] = (kind, phases[-1][1], i + 1)
        return phases


class _Training(_Forward):
    """The way forward as it trains, and the way back: what a method above says it is, from the last to the first."""

    def __init__(self, itemsize, precision):
        super().__init__(itemsize, precision)
        self.tape, self.updates, self.lessons = [], [], []

    def whole(self, layers):
        fan_in = layers[0].fan_in
        ld = layout.leading_dimension(fan_in, self.itemsize)
        x = _Value(Operand(INPUT, 0, ld, fan_in), grad=Operand(INPUT_GRADIENT, 0, ld, fan_in))
        y = self.chain(layers, x)
        loss = len(self.instructions)
        self.emit(
            "loss_forward_backward", y.out, Operand(TARGET), Operand(ROW_WEIGHT), Operand(ROW_LOSS), Operand(ROW_HIT),
            y.grad,
        )  # fmt: skip
        self.activate_back(y)
        for value, make_gradient in reversed(self.tape):
            if value.trained:
                make_gradient()
        weights = len(self.instructions)
        for update in self.updates:
            update()
        statistics = len(self.instructions)
        for update in self.lessons:
            update()
        updated, end = len(self.instructions), len(self.phases())
        for value, make_gradient in reversed(self.tape):
            if not value.trained:
                make_gradient()
        phases = self.phases()
        return Listing(
            np.array(self.instructions), phases[:end], self.width, phases[end:], loss, weights, statistics,
            updated,
            y.out, y.grad, x.grad, y.activation != "identity" and y.saved == y.out,
        )  # fmt: skip

    def saved(self, layer, out):
        if layer.activation not in layout.SAVES_PRE_ACTIVATION:
            return out
        return out._replace(offset=self.widened(out.ld))

    def dropout(self, layer, x):
        y, number = self.value(layer, trained=x.trained), self.number
        self.emit("dropout", x.out, Operand(ROWS), y.out, parameter=layer.parameter, number=number)
        self.back(x, lambda: self.into(x, "dropout", y.grad, Operand(ROWS), parameter=layer.parameter, number=number))
        return self.next(y)

    def normalised(self, layer):
        ld = layout.leading_dimension(layer.fan_out, self.itemsize)
        return Operand(ACTIVATIONS, self.widened(ld), ld, layer.fan_out)

    def moments(self, layer, x, running, mean, scale, variance):
        if not layer.trains:
            super().moments(layer, x, running, mean, scale, variance)
            return
        self.emit(
            "batch_moments", x.out, Operand(ROW_WEIGHT), mean, scale, variance,
            parameter=layer.parameter, kind=COLUMNS_PHASE,
        )  # fmt: skip

    def column_sums(self, layer, y, normalised, products, sums):
        """What the moments of the batch add to the gradient of its rows; those of a frozen layer are constants."""
        if not layer.trains:
            return None, None
        self.emit("norm_backward_params", y.grad, normalised, products, sums, kind=COLUMNS_PHASE)
        return products, sums

    def learn(self, layer, instruction):
        if layer.trains:
            self.lessons.append(instruction)

    def back(self, x, make_gradient, update=lambda: None):
        self.tape.append((x, make_gradient))
        self.updates.append(update)

    def into(self, x, operation, *operands, fuses=False, **head):
        """An instruction that makes the gradient of x, and what makes that the gradient of z."""
        if fuses:
            whole = not x.pending
            self.emit(operation, *operands, x.saved or x.out, x.grad, of=x if whole else _Value(x.out), **head)
            if whole:
                return
        else:
            self.emit(operation, *operands, x.grad, **head)
        self.add_pending(x, x.grad, x.pending)

    def unchanged_into(self, x, grad):
        """The same where the gradient of x is one that is there."""
        if x.pending:
            first, *others = x.pending
            self.emit("add", grad, first, x.grad)
            self.add_pending(x, x.grad, others)
        elif x.activation == "identity":
            x.grad = grad
        else:
            self.emit("activation_backward", grad, x.saved, x.grad, of=x)

    def add_pending(self, x, grad, pending):
        for other in pending:
            self.emit("add", grad, other, grad)
        self.activate_back(x)

    def activate_back(self, x):
        if x.activation != "identity":
            self.emit("activation_backward", x.grad, x.saved, x.grad, of=x)


class _Evaluation(_Training):
    """Nothing is dropped, and running statistics, which are constants, stand for those of the batch."""

    dropout, moments = _Forward.dropout, _Forward.moments

    def column_sums(self, layer, y, normalised, products, sums):
        return None, None

    def learn(self, layer, instruction):
        pass


def leaves_sums(arguments: list[tuple]) -> bool:
    """Whether a call with these arguments, as of `Instruction.call`, leaves sums over rows of the batch to others."""
    return any(kind == WRITTEN and what[0] == REDUCTIONS for kind, what in arguments)


def gradient(parameter: Operand | None) -> Operand | None:
    """Where the gradient of a parameter lies."""
    return parameter and parameter._replace(buffer=PARAMETER_GRADIENTS)
