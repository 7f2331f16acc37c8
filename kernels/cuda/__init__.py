"""The contract on NVIDIA GPUs: `reference` on device arrays, by hand-written kernels, through numba-cuda.

Arrays are on the device (`to_device`), except the small ones that `network_train_steps` and `shuffle` name. Launches
go to one stream and are not waited for; `to_host` and `synchronize` wait, and so does the end of a run of steps.
"""

import contextlib
import threading
from functools import partial

import numpy as np

from .. import layout as _layout
from . import (
    borrowing,
    buffers,
    catalogue,
    disk_cache,
    driver,
    elementwise,
    gemm,
    linear,
    losses,
    memory,
    network,
    norms,
    optimizers,
    probabilities,
    streams,
)
from . import record as records
from .operands import Matrix, Rows

name = "cuda"


# --------------------------------------------------------------------------------------- single layers
def _name(activation):
    return _layout.ACTIVATIONS[activation]


def _matrix(array):
    array = borrowing.as_device_array(array)
    return Matrix(memory.flat(array), 0, memory.leading(array))


def _row(array):
    """A vector that may be None."""
    return None if array is None else Matrix(memory.flat(array), 0, 0)


def activation_forward(z, activation, activation_parameter, out):
    """In place or not."""
    elementwise.activation_forward(
        _name(activation), *z.shape, _matrix(z), _matrix(out), activation_parameter, streams.stream()
    )


def activation_backward(grad_out, saved, activation, activation_parameter, grad_z):
    """In place or not."""
    elementwise.activation_backward(
        _name(activation), *grad_out.shape, _matrix(grad_out), _matrix(saved), _matrix(grad_z),
        activation_parameter, streams.stream(),
    )  # fmt: skip


def softmax(z, out):
    """Several threads a row; in place or not."""
    probabilities.softmax(*z.shape, _matrix(z), _matrix(out), streams.stream())


def precisions(dtype) -> tuple[str, ...]:
    """Of float32 also those of the tensor cores."""
    return gemm.precisions(dtype)


def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """A product whose epilogue adds the bias and activates."""
    linear.linear_forward(
        _name(activation), len(x), *weight.shape, _matrix(x), _matrix(weight), _row(bias), activation_parameter,
        _matrix(out), None if saved is out else _matrix(saved), _layout.PRECISIONS[precision], streams.stream(),
    )  # fmt: skip


def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """A product with the transposed weight whose epilogue multiplies by the derivative."""
    linear.linear_backward_input(
        _name(activation), len(grad_z), *weight.shape, _matrix(grad_z), _matrix(weight), _matrix(saved),
        activation_parameter, _matrix(grad_z_prev), _layout.PRECISIONS[precision], streams.stream(),
    )  # fmt: skip


def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """A product with the transposed input, and column sums."""
    scratch = _scratch(elementwise.sum_scratch(len(x), grad_weight.shape[1]), grad_z.dtype)
    linear.linear_backward_params(
        len(x), *grad_weight.shape, _matrix(x), _matrix(grad_z), beta, _matrix(grad_weight), _row(grad_bias), scratch,
        _layout.PRECISIONS[precision], streams.stream(),
    )  # fmt: skip


_scratches = threading.local()  # dtype -> what the calling thread's largest sum of columns so far needed


def _scratch(size, dtype):
    of_thread = vars(_scratches)
    if dtype.name not in of_thread or of_thread[dtype.name].size < size:
        of_thread[dtype.name] = memory.empty(max(size, 1), dtype)
    return of_thread[dtype.name]


def dropout(x, rows, key, probability, out):
    """In place or not."""
    elementwise.dropout(
        *x.shape, memory.flat(rows), 0, -1, int(key), probability, _matrix(x), _matrix(out), streams.stream()
    )


def shuffle(rows, key):
    """By the CPU: a swap depends on the one before. ``rows`` on the host or on the device, where it is sent back."""
    from .. import cpu

    if not borrowing.is_on_device(rows):
        cpu.shuffle(rows, key)
        return
    order = np.ascontiguousarray(memory.to_host(rows))
    cpu.shuffle(order, key)
    memory.to_device(order, memory.flat(rows))


def loss_forward_backward(loss, loss_parameter, prediction, target, row_weight, row_loss, row_hit, grad):
    """Several threads a row."""
    rows = Rows(memory.flat(row_weight), memory.flat(row_loss), memory.flat(row_hit))
    targets = _matrix(target) if target.ndim == 2 else Matrix(memory.flat(target), 0, 1)
    losses.loss_forward_backward(
        _layout.LOSSES[loss], *prediction.shape, loss_parameter, _matrix(prediction), targets, rows, _matrix(grad),
        streams.stream(),
    )  # fmt: skip


def optimizer_step(optimizer, coefficients, values, grad, state):
    """One pass; the coefficients may be on the host."""
    name = _layout.OPTIMIZERS[optimizer]
    update = records.of_one_step(coefficients)
    optimizers.optimizer_step(
        name, update, memory.flat(values), memory.flat(grad), tuple(map(memory.flat, state)), streams.stream()
    )


def optimizer_call(optimizer, coefficients, values, grad, state):
    """A launch."""
    return partial(optimizer_step, optimizer, coefficients, values, grad, state)


# ------------------------------------------------------------------------------ normalisation, sums
def _operate(name, rows, columns, number, *operands):
    """A launcher of norms.py; matrices and vectors as arrays."""
    placed = [
        None if array is None else _matrix(array) if array.ndim == 2 else memory.flat(array) for array in operands
    ]
    norms.OPERATIONS[name](rows, columns, number, *placed, streams.stream())


def add(x, y, out):
    """A thread an element, in place or not."""
    _operate("add", *x.shape, 0.0, x, y, out)


def layer_norm_forward(x, weight, bias, eps, out, saved, scale):
    """Several threads a row."""
    _operate("layer_norm_forward", *x.shape, eps, x, weight, bias, out, saved, scale)


def layer_norm_backward_input(grad_out, weight, saved, scale, grad_x):
    """Several threads a row."""
    _operate("layer_norm_backward_input", *saved.shape, 0.0, grad_out, weight, saved, scale, grad_x)


def norm_backward_params(grad_out, saved, beta, grad_weight, grad_bias):
    """Several threads a column."""
    _operate("norm_backward_params", *saved.shape, beta, grad_out, saved, grad_weight, grad_bias)


def batch_moments(x, row_weight, eps, mean, scale, variance):
    """Several threads a column."""
    _operate("batch_moments", *x.shape, eps, x, row_weight, mean, scale, variance)


def running_moments(running_mean, running_var, eps, mean, scale):
    """A thread a feature."""
    _operate("running_moments", 1, len(mean), eps, running_mean, running_var, mean, scale)


def batch_norm_forward(x, mean, scale, weight, bias, out, saved):
    """A thread an element."""
    _operate("batch_norm_forward", *x.shape, 0.0, x, mean, scale, weight, bias, out, saved)


def batch_norm_backward_input(grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x):
    """A thread an element."""
    operands = grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x
    _operate("batch_norm_backward_input", *saved.shape, 0.0, *operands)


def update_statistics(mean, variance, momentum, running_mean, running_var):
    """A thread a feature."""
    arrays = map(memory.flat, (mean, variance, running_mean, running_var))
    update = records.of_one_step(np.zeros(_layout.COEFFICIENTS))
    norms.update_statistics(len(mean), momentum, update, *arrays, streams.stream())


# ---------------------------------------------------------------------------------------- whole buffers
def squared_norm(places, buffer):
    """One number comes back."""
    return _parameter_sum("square", places, buffer)


def all_finite(places, buffer):
    """One number comes back."""
    return _parameter_sum("zero_if_finite", places, buffer) == 0


def launch_all_finite(places, buffer):
    """`all_finite` of what launches before have left in the buffer, while the host goes on.

    Returns
    -------
    function () -> bool
        To be called once the host has waited for launches, and before the calling thread begins another.
    """
    if not hasattr(_answers, "pinned"):
        _answers.pinned = memory.pinned(1, np.float64)
    pinned = _answers.pinned
    memory.fetch(_launch_parameter_sum("zero_if_finite", places, buffer), pinned)
    return lambda: bool(pinned[0] == 0)


_answers = threading.local()  # pinned: page-locked memory for one number


def _parameter_sum(formula, places, buffer):
    return memory.to_host(_launch_parameter_sum(formula, places, buffer)).item()


def _launch_parameter_sum(formula, places, buffer):
    driver.require()
    pieces = buffers.pieces_of(buffer.size)
    sums = _scratch(pieces + 1, np.dtype(np.float64))
    buffers.parameter_sum(formula, memory.flat(places), memory.flat(buffer), sums, streams.stream())
    return sums[pieces : pieces + 1]


def scale(x, factor, out):
    """In place or not."""
    driver.require()
    buffers.scale(memory.flat(x), factor, memory.flat(out), streams.stream())


def copy(x, out):
    """From the device to itself."""
    memory.to_device(x, out)


def clear(out):
    """A kernel: the host has no zeros to send."""
    driver.require()
    buffers.clear(memory.flat(out), streams.stream())


# --------------------------------------------------------------------------------------------- networks
InferenceWorkspace = network.InferenceWorkspace
TrainingWorkspace = network.TrainingWorkspace
network_forward = network.network_forward
network_train_steps = network.network_train_steps
launch_train_steps = network.launch_train_steps


# ---------------------------------------------------------------------------------------------- buffers
def gathers(dtype) -> bool:
    """Native floats of 16, 32 and 64 bits, integers and bool."""
    dtype = np.dtype(dtype)
    return dtype.isnative and (dtype.kind in "iub" or dtype in (np.float16, np.float32, np.float64))


def gather(x, rows, out):
    """A thread an element."""
    source = Matrix(memory.flat(x), 0, x.shape[1])
    elementwise.gather_rows(*out.shape, memory.flat(rows), source, _matrix(out), streams.stream())


empty = memory.empty
synchronize = streams.synchronize
elapsed = streams.elapsed


def zeros(shape, dtype):
    """Cleared where it is."""
    array = memory.empty(shape, dtype)
    clear(array)
    return array


def to_device(array):
    """A copy; of an array that is there already, the array itself."""
    return memory.to_device(array)


def to_host(array):
    """A copy, when all launches before have finished."""
    return memory.to_host(array)


# ---------------------------------------------------------------------------------------------- process
def set_num_threads(threads):
    """Nothing: a launch takes the whole GPU."""


def get_num_threads():
    """1: one thread of the host launches."""
    return 1


@contextlib.contextmanager
def serial():
    """Nothing to do: launches are in the order of the calls."""
    yield


def warmup(dtype, activations, losses, optimizers):
    """Compile the kernels of these parts for the GPU that is there; the simulator compiles nothing.

    The network that first uses it compiles the kernel of steps.py, and so it is with products of less precision.
    """
    if driver.simulated:
        return
    driver.require()
    parts = {*activations, "identity", *losses, *optimizers}
    for kernel in catalogue.kernels([dtype]):
        wanted = kernel.precision == "ieee" and (kernel.part is None or kernel.part in parts)
        if wanted and not kernel.name.startswith("steps"):
            kernel.function.compile()


def config():
    """The GPU and the package in use, and where compiled kernels are kept."""
    lines = {"backend": "cuda"} | driver.describe()
    return lines if driver.simulated else lines | {"kernel cache": str(disk_cache.cache_directory() or "off")}
