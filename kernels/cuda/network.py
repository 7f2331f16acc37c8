"""The walk over the network table: a row of the table is a launch, a step a sequence of launches on one stream.

The host decides nothing within a step: which step it is, its rows, key and coefficients are read from the record on
the device (record.py), so every step of a run is the same sequence. It is launched as it is the first time; after that
it is captured as a CUDA graph and replayed, which costs one launch a step. Small networks make all steps of a run in
one launch (steps.py).
"""

import numpy as np

from .. import table as layout
from . import driver, steps
from .buffers import clear
from .elementwise import activation_backward, activation_forward, convert, dropout, gather, sum_scratch, weights
from .linear import linear_backward_input, linear_backward_params, linear_forward
from .losses import loss_forward_backward, step_loss
from .optimizers import optimizer_step
from .record import CURRENT, NEXT, Record

INFERENCE_BYTES = 1 << 28  # of activations, at most, unless a few rows need more
INFERENCE_ROWS = 64
GRAPHS = 8  # kept by a workspace; a graph belongs to the arrays it was captured with


class Row:
    """A row of the table, as Python numbers and names."""

    def __init__(self, number, row):
        self.number = number
        self.kind = layout.KINDS[row[layout.KIND]]
        code, self.parameter = layout.activation_of(row)
        self.activation = layout.ACTIVATIONS[code]
        self.precision = layout.PRECISIONS[row[layout.PRECISION]]
        self.fan_in, self.fan_out, self.ld_in, self.ld_out = (
            int(row[column]) for column in (layout.FAN_IN, layout.FAN_OUT, layout.LD_IN, layout.LD_OUT)
        )
        self.weight, self.bias = int(row[layout.WEIGHT]), int(row[layout.BIAS])
        self.output, self.saved = int(row[layout.OUTPUT]), int(row[layout.SAVED])


class _Workspace:
    """The table and the activations of up to ``capacity`` rows."""

    def __init__(self, table, dtype):
        self.table, self.dtype = np.ascontiguousarray(table), np.dtype(dtype)
        self.rows = [Row(number, row) for number, row in enumerate(self.table)]
        self.fan_in, self.fan_out = self.rows[0].fan_in, self.rows[-1].fan_out
        self.width = layout.activation_width(self.table)
        self.capacity = 0

    def output(self, row):
        """Where a row of the table writes: array, offset, leading dimension."""
        return self.outputs, row.output * self.capacity, row.ld_out

    def saved(self, row):
        """What the derivative of its activation reads, likewise."""
        return self.outputs, row.saved * self.capacity, row.ld_out

    def forward(self, parameters, n, x, out, stream, record=None):
        """The chain for ``n`` rows from ``x``; the last row of the table writes to ``out``, if that is given.

        With a record, of the step that begins: dropout drops.
        """
        for row in self.rows:
            last = out is not None and row is self.rows[-1]
            target = out if last else self.output(row)
            saved = None if row.saved == row.output else self.saved(row)
            if row.kind == "linear":
                linear_forward(
                    row.activation, n, row.fan_in, row.fan_out, *x, parameters, row.weight, row.ld_out,
                    None if row.bias < 0 else parameters, row.bias, row.parameter,
                    *target, *(saved or (None, 0, 0)), row.precision, stream,
                )  # fmt: skip
            elif row.kind == "activation":
                if saved:
                    convert(n, row.fan_out, *x, *saved, stream)
                activation_forward(row.activation, n, row.fan_out, *x, *target, row.parameter, stream)
            elif record is not None:
                dropout(
                    n, row.fan_out, record.device, NEXT, row.number, 0, row.parameter, *x, *target, stream
                )  # fmt: skip
            elif last:
                convert(n, row.fan_out, *x, *target, stream)
            else:
                continue  # nothing is dropped: the next row reads what this one would have
            x = target


class InferenceWorkspace(_Workspace):
    """Activations for as many rows as a call has, up to `INFERENCE_BYTES`; more rows go in blocks."""

    def __init__(self, table, dtype):
        super().__init__(table, dtype)
        bytes_a_row = self.width * self.dtype.itemsize
        self.most = max(INFERENCE_BYTES // bytes_a_row, INFERENCE_ROWS)

    def prepare(self, rows, converts):
        """Room for this many rows; of the input too, where it has another dtype."""
        rows = min(rows, self.most)
        if rows > self.capacity:
            self.capacity = min(1 << (rows - 1).bit_length(), self.most)
            self.outputs = driver.empty(self.capacity * self.width, self.dtype)
            self.input = None
        if converts and self.input is None:
            self.input = driver.empty(self.capacity * self.rows[0].ld_in, self.dtype)


def network_forward(workspace, parameters, x, out):
    """In blocks of rows, one after another."""
    n, stream = len(x), driver.stream()
    converts = x.dtype != workspace.dtype
    workspace.prepare(max(n, 1), converts)
    parameters, x, out = driver.flat(parameters), driver.flat(x), driver.flat(out)
    for first in range(0, n, workspace.capacity):
        rows = min(workspace.capacity, n - first)
        source = x, first * workspace.fan_in, workspace.fan_in
        if converts:
            converted = workspace.input, 0, workspace.rows[0].ld_in
            convert(rows, workspace.fan_in, *source, *converted, stream)
            source = converted
        workspace.forward(parameters, rows, source, (out, first * workspace.fan_out, workspace.fan_out), stream)


class TrainingWorkspace(_Workspace):
    """Activations and gradients of a batch, the gradient of the parameters, a record, and captured graphs."""

    def __init__(self, table, dtype, batch_size, loss, loss_parameter, optimizer):
        super().__init__(table, dtype)
        self.capacity = self.batch_size = batch_size
        self.loss, self.loss_parameter = layout.LOSSES[loss], float(loss_parameter)
        self.optimizer = layout.OPTIMIZERS[optimizer]
        self.labelled = self.loss in layout.LABEL_LOSSES
        self.outputs = driver.empty(batch_size * (self.width + self.rows[0].ld_in), self.dtype)
        self.input = self.outputs, batch_size * self.width, self.rows[0].ld_in
        self.gradients = driver.empty(batch_size * self.width, self.dtype)
        self.ld_target = 0 if self.labelled else layout.leading_dimension(self.fan_out, self.dtype.itemsize)
        self.target = driver.empty(
            batch_size * max(self.ld_target, 1), np.dtype(np.int64) if self.labelled else self.dtype
        )
        self.weight = driver.empty(batch_size, np.float64)
        self.weight_rows = 0  # of so many rows it holds the mean's weights
        self.row_loss, self.row_hit = driver.empty(batch_size, self.dtype), driver.empty(batch_size, np.int64)
        self.scratch = driver.empty(sum_scratch(batch_size, max(row.fan_out for row in self.rows)), self.dtype)
        self.parameter_gradient = None
        self.record = Record()
        self.size = sum(row.fan_out * (row.fan_in + 1) for row in self.rows if row.kind == "linear")
        self.device_table = driver.to_device(self.table.reshape(-1))
        self.device_numbers = self.device_table.view(np.float64)
        self.graphs = {}  # sizes and addresses -> the captured step, None after the first
        trained = [row.number for row in self.rows if row.kind == "linear"]
        self.first_trained = trained[0] if trained else -1

    def gradient(self, row):
        """The derivative of the loss with respect to a row's pre-activation, or what becomes that."""
        return self.gradients, row.output * self.capacity, row.ld_out

    def backward(self, parameters, n, stream):
        """From the gradient of the last output to that of every parameter."""
        grad = self.parameter_gradient
        last = self.rows[-1]
        if last.activation != "identity":
            g = self.gradient(last)
            activation_backward(last.activation, n, last.fan_out, *g, *self.saved(last), *g, last.parameter, stream)
        for row in reversed(self.rows):
            previous = self.rows[row.number - 1] if row.number else None
            g = self.gradient(row)
            if row.kind == "linear":
                x = self.output(previous) if previous else self.input
                linear_backward_params(
                    n, row.fan_in, row.fan_out, *x, *g, 0, grad, row.weight, row.ld_out,
                    None if row.bias < 0 else grad, row.bias, self.scratch, row.precision, stream,
                )  # fmt: skip
            if previous is None or row.number == self.first_trained:
                break
            of_previous, activation = self.gradient(previous), previous.activation
            if row.kind == "linear":
                linear_backward_input(
                    activation, n, row.fan_in, row.fan_out, *g, parameters, row.weight, row.ld_out,
                    *self.saved(previous), previous.parameter, *of_previous, row.precision, stream,
                )  # fmt: skip
                continue
            if row.kind == "dropout":
                dropout(
                    n, row.fan_out, self.record.device, CURRENT, row.number, 0, row.parameter, *g, *of_previous, stream
                )
                g = of_previous
            if activation != "identity" or g is not of_previous:
                activation_backward(
                    activation, n, row.fan_in, *g, *self.saved(previous), *of_previous, previous.parameter, stream
                )

    def step(self, run, n, stream):
        """One training step of ``n`` rows: the launches, in order."""
        record = self.record
        prediction, g = self.output(self.rows[-1]), self.gradient(self.rows[-1])
        labels = (run.target, self.target) if self.labelled else (None, None)
        gather(n, self.fan_in, record.device, run.x, run.ldx, *self.input, *labels, stream)
        if not self.labelled:
            target = self.target, 0, self.ld_target
            gather(n, self.fan_out, record.device, run.target, run.ldt, *target, None, None, stream)
        if run.row_weight is not None:
            weights(n, record.device, run.row_weight, self.weight, stream)
        self.forward(run.parameters, n, self.input, None, stream, record)
        loss_forward_backward(
            self.loss, n, self.fan_out, self.loss_parameter, *prediction, self.target, self.ld_target,
            self.weight, self.row_loss, self.row_hit, *g, stream,
        )  # fmt: skip
        step_loss(n, record, self.weight, self.row_loss, self.row_hit, stream)
        self.backward(run.parameters, n, stream)
        optimizer_step(self.optimizer, record, run.parameters, self.parameter_gradient, run.state, stream)

    def steps(self, run, n, count):
        """So many steps of ``n`` rows each: the first of its kind launched, the others as a graph, or all at once."""
        if steps.suits(self, n):
            steps.train_steps(self, run, n, count, driver.stream())
            self.weight_rows = 0
            return
        if run.row_weight is None and self.weight_rows != n:
            driver.to_device(np.full(n, 1 / n), self.weight[:n])
        self.weight_rows = n if run.row_weight is None else 0
        key = (n, *run.addresses(), driver.address(self.record.device))
        if key not in self.graphs:
            while len(self.graphs) >= GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            self.graphs[key] = None
            self.step(run, n, driver.stream())
            count -= 1
        for _ in range(count):
            if self.graphs[key] is None:
                self.graphs[key] = driver.capture(lambda stream: self.step(run, n, stream))
            self.graphs[key]()


class Run:
    """The arrays of a call, flat."""

    def __init__(self, parameters, state, x, target, row_weight):
        self.parameters, self.state = driver.flat(parameters), tuple(map(driver.flat, state))
        self.x, self.target = driver.flat(x), driver.flat(target)
        self.ldx, self.ldt = x.shape[1], target.shape[1] if target.ndim == 2 else 0
        self.row_weight = None if row_weight is None else driver.flat(row_weight)

    def addresses(self):
        """What a captured step depends on."""
        arrays = (self.parameters, *self.state, self.x, self.target, self.row_weight)
        return tuple(None if array is None else (driver.address(array), array.dtype.str) for array in arrays)


def network_train_steps(
    workspace, parameters, state, coefficients, keys, x, target, row_weight, rows, batch_size, step_loss, step_hits
):
    """On one stream, without waiting for the device before the last step.

    ``parameters``, ``state``, ``x``, ``target`` and ``row_weight`` are on the device; the others are small and may be
    on the host, from where they are sent once.
    """
    arguments = parameters, state, coefficients, keys, x, target, row_weight, rows, batch_size
    return launch_train_steps(workspace, *arguments)(step_loss, step_hits)


def launch_train_steps(workspace, parameters, state, coefficients, keys, x, target, row_weight, rows, batch_size):
    """`network_train_steps`, which goes on while the device works.

    Returns
    -------
    function (step_loss, step_hits) -> int
        Waits for the last step; to be called once, before the next steps.
    """
    count = len(rows)
    number = -(-count // batch_size)
    if number == 0:
        return lambda step_loss, step_hits: 0
    run = Run(parameters, state, x, target, row_weight)
    if workspace.parameter_gradient is None:
        workspace.parameter_gradient = driver.empty(run.parameters.size, workspace.dtype)
        clear(workspace.parameter_gradient, driver.stream())
    workspace.record.begin(coefficients, keys, rows, batch_size, number)
    whole, rest = divmod(count, batch_size)
    if whole:
        workspace.steps(run, batch_size, whole)
    if rest:
        workspace.steps(run, rest, 1)
    return workspace.record.end
