"""The contract on NVIDIA GPUs: the functions of `reference` for arrays on a GPU, by kernels compiled with numba-cuda.

Names, arguments, shapes and dtypes are those of `reference`, which documents them; the lines here say what is computed
and how a GPU does it. Arrays are on the GPU (`to_device`), except the small ones that `network_train_steps` and
`shuffle` name. Kernels are launched on one stream and not waited for: `to_host` and `synchronize` wait, and so does the
end of a run of training steps. RuntimeError says what to do where there is no GPU, MemoryError where it has no room.
"""

import contextlib
import threading
from functools import partial

import numpy as np

from .. import layout as _layout
from . import (
    ahead,
    borrowing,
    buffers,
    catalogue,
    cluster,
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
from .operands import Linear, Matrix, Rows

name = "cuda"


# --------------------------------------------------------------------------------------- single layers
def _name(activation):
    return _layout.ACTIVATIONS[activation]


def _matrix(array):
    """An array of one or two dimensions as a `Matrix`."""
    array = borrowing.as_device_array(array)
    return Matrix(memory.beginning(array), 0, memory.leading(array))


def _row(array):
    """A vector as a `Matrix` of one row; None stays None."""
    return None if array is None else Matrix(memory.flat(array), 0, 0)


def activation_forward(z, activation, activation_parameter, out):
    """``out = act(z)``, a thread for an element; ``out`` may be ``z``."""
    name, arrays = _name(activation), map(_matrix, (z, out))
    elementwise.activation_forward(name, *z.shape, *arrays, activation_parameter, streams.stream())


def activation_backward(grad_out, saved, activation, activation_parameter, grad_z):
    """``grad_z = grad_out * act'(saved)``, a thread for an element; ``grad_z`` may be ``grad_out``."""
    name, arrays = _name(activation), map(_matrix, (grad_out, saved, grad_z))
    elementwise.activation_backward(name, *grad_out.shape, *arrays, activation_parameter, streams.stream())


def softmax(z, out):
    """``out_ij = e^z_ij / sum_k e^z_ik``, several threads for a row; ``out`` may be ``z``."""
    probabilities.softmax(*z.shape, _matrix(z), _matrix(out), streams.stream())


def precisions(dtype) -> tuple[str, ...]:
    """The names of the precisions of products that this dtype has: of float32 also those of the tensor cores."""
    return gemm.precisions(dtype)


def linear_forward(x, weight, bias, activation, activation_parameter, out, saved, precision=0):
    """``z = x @ weight + bias``, ``out = act(z)``: a product whose epilogue adds the bias and activates."""
    layer = Linear(_name(activation), activation_parameter, *weight.shape, _layout.PRECISIONS[precision])
    x, weight, bias, target = _matrix(x), _matrix(weight), _row(bias), _matrix(out)
    saved = None if saved is out else _matrix(saved)
    linear.linear_forward(layer, len(out), x, weight, bias, target, saved, streams.stream())


def linear_backward_input(grad_z, weight, saved, activation, activation_parameter, grad_z_prev, precision=0):
    """``grad_z_prev = (grad_z @ weight.T) * act'(saved)``: a product whose epilogue multiplies by the derivative."""
    layer = Linear(_name(activation), activation_parameter, *weight.shape, _layout.PRECISIONS[precision])
    arrays = map(_matrix, (grad_z, weight, saved, grad_z_prev))
    linear.linear_backward_input(layer, len(grad_z), *arrays, streams.stream())


def linear_backward_params(x, grad_z, beta, grad_weight, grad_bias, precision=0):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, a product; ``grad_bias`` likewise, sums of columns."""
    layer = Linear("identity", 0.0, *grad_weight.shape, _layout.PRECISIONS[precision])
    scratch = _scratch(linear.params_scratch(len(x), *grad_weight.shape), grad_z.dtype)
    factors, gradients = map(_matrix, (x, grad_z)), (_matrix(grad_weight), _row(grad_bias))
    linear.linear_backward_params(layer, len(x), *factors, beta, *gradients, scratch, streams.stream())


_scratches = threading.local()  # character of a dtype -> the largest scratch that the calling thread has needed so far


def _scratch(size, dtype):
    """An array of at least ``size`` elements, whose contents mean nothing; each thread has its own."""
    of_thread = vars(_scratches)
    if dtype.char not in of_thread or of_thread[dtype.char].size < size:
        of_thread[dtype.char] = memory.empty(max(size, 1), dtype)
    return of_thread[dtype.char]


def dropout(x, rows, key, probability, out):
    """``out = x / (1 - p)`` where a unit is kept, else 0, a thread for an element; ``out`` may be ``x``."""
    arrays = map(_matrix, (x, out))
    elementwise.dropout(*x.shape, memory.flat(rows), -1, int(key), probability, *arrays, streams.stream())


def shuffle(rows, key):
    """A permutation of ``rows`` in place, made by the CPU, as each swap depends on the one before.

    ``rows`` may be on the host or on the GPU, from where it is fetched and sent back.
    """
    from .. import cpu

    if not borrowing.is_on_device(rows):
        cpu.shuffle(rows, key)
        return
    order = np.ascontiguousarray(memory.to_host(rows))
    cpu.shuffle(order, key)
    memory.to_device(order, memory.flat(rows))


def loss_forward_backward(loss, loss_parameter, prediction, target, row_weight, row_loss, row_hit, grad):
    """The loss of every row, and the gradient of ``sum_i row_weight_i * row_loss_i``; several threads for a row."""
    rows = Rows(memory.flat(row_weight), memory.flat(row_loss), memory.flat(row_hit))
    targets = _matrix(target) if target.ndim == 2 else Matrix(memory.flat(target), 0, 1)
    name, shape, prediction, grad = _layout.LOSSES[loss], prediction.shape, _matrix(prediction), _matrix(grad)
    losses.loss_forward_backward(name, *shape, loss_parameter, prediction, targets, rows, grad, streams.stream())


def optimizer_step(optimizer, coefficients, values, grad, state):
    """Update ``values`` and ``state`` by the gradient, in one pass; the coefficients may be on the host."""
    name, record, state = _layout.OPTIMIZERS[optimizer], records.of_one_step(coefficients), map(memory.flat, state)
    optimizers.optimizer_step(name, record, memory.flat(values), memory.flat(grad), tuple(state), streams.stream())


def optimizer_call(optimizer, coefficients, values, grad, state):
    """`optimizer_step` of these arguments, as a function without any."""
    return partial(optimizer_step, optimizer, coefficients, values, grad, state)


# ------------------------------------------------------------------------------ normalisation, sums
def _operate(name, rows, columns, number, *arrays):
    """Launch an operation of `norms` for arrays of the GPU or None."""
    arrays = [None if array is None else _matrix(array) if array.ndim == 2 else memory.flat(array) for array in arrays]
    norms.launch(name, rows, columns, number, arrays, streams.stream())


def add(x, y, out):
    """``out = x + y``, a thread for an element; ``out`` may be ``x`` or ``y``."""
    _operate("add", *x.shape, 0.0, x, y, out)


def layer_norm_forward(x, weight, bias, eps, out, saved, scale):
    """``out = w x̂ + b`` with ``x̂ = (x - mean) / sqrt(var + eps)`` of a row; several threads for a row."""
    _operate("layer_norm_forward", *x.shape, eps, x, weight, bias, out, saved, scale)


def layer_norm_backward_input(grad_out, weight, saved, scale, grad_x):
    """``grad_x = scale (g - mean(g) - x̂ mean(g x̂))`` with ``g = w grad_out``; several threads for a row."""
    _operate("layer_norm_backward_input", *saved.shape, 0.0, grad_out, weight, saved, scale, grad_x)


def norm_backward_params(grad_out, saved, beta, grad_weight, grad_bias):
    """``grad_weight = beta grad_weight + sum_i grad_out_i x̂_i``, ``grad_bias`` likewise; several threads a column."""
    _operate("norm_backward_params", *saved.shape, beta, grad_out, saved, grad_weight, grad_bias)


def batch_moments(x, row_weight, eps, mean, scale, variance):
    """``mean = sum_i w_i x_i``, ``scale = 1 / sqrt(sum_i w_i (x_i - mean)^2 + eps)``; several threads a column."""
    _operate("batch_moments", *x.shape, eps, x, row_weight, mean, scale, variance)


def running_moments(running_mean, running_var, eps, mean, scale):
    """``mean = running_mean``, ``scale = 1 / sqrt(running_var + eps)``, a thread for a feature."""
    _operate("running_moments", 1, len(mean), eps, running_mean, running_var, mean, scale)


def batch_norm_forward(x, mean, scale, weight, bias, out, saved):
    """``out = w x̂ + b`` with ``x̂ = (x - mean) scale``, a thread for an element."""
    _operate("batch_norm_forward", *x.shape, 0.0, x, mean, scale, weight, bias, out, saved)


def batch_norm_backward_input(grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x):
    """``grad_x_i = w scale (grad_out_i - r_i (grad_bias + x̂_i grad_weight))``, a thread for an element."""
    arrays = grad_out, row_weight, weight, saved, scale, grad_weight, grad_bias, grad_x
    _operate("batch_norm_backward_input", *saved.shape, 0.0, *arrays)


def update_statistics(mean, variance, momentum, running_mean, running_var):
    """``running <- (1 - momentum) running + momentum of_batch``, a thread for a feature."""
    arrays = norms.UpdateStatistics(*map(memory.flat, (mean, variance, running_mean, running_var)))
    record = records.of_one_step(np.zeros(_layout.COEFFICIENTS))
    norms.update_statistics(len(mean), momentum, record, arrays, streams.stream())


# ---------------------------------------------------------------------------------------- whole buffers
def squared_norm(places, buffer):
    """The sum of the squares of all weights and biases, as a float: one number comes back from the GPU."""
    return _parameter_sum("square", places, buffer)


def all_finite(places, buffer):
    """Whether all weights and biases are finite: one number comes back from the GPU."""
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
    """The sum of a formula of `buffers` over the weights and biases at ``places``, as a float."""
    return memory.to_host(_launch_parameter_sum(formula, places, buffer)).item()


def _launch_parameter_sum(formula, places, buffer):
    """That sum, as an array of the device."""
    driver.require()
    pieces = buffers.pieces_of(buffer.size)
    sums = _scratch(pieces + 1, np.dtype(np.float64))
    buffers.parameter_sum(formula, memory.flat(places), memory.flat(buffer), sums, streams.stream())
    return sums[pieces : pieces + 1]


def scale(x, factor, out):
    """``out = factor x``, a thread for an element; ``out`` may be ``x``."""
    driver.require()
    buffers.scale(memory.flat(x), factor, memory.flat(out), streams.stream())


def copy(x, out):
    """``out = x``, from the GPU to itself."""
    memory.to_device(x, out)


def clear(out):
    """``out = 0``, by a kernel, so that no zeros are sent."""
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
    """Whether kernels read data of a dtype: floats of 16, 32 and 64 bits, integers and bool, in native byte order."""
    dtype = np.dtype(dtype)
    return dtype.isnative and (dtype.kind in "iub" or dtype in (np.float16, np.float32, np.float64))


def gather(x, rows, out):
    """``out[i] = x[rows[i]]``, converted to the dtype of ``out``; a thread for an element."""
    source = Matrix(memory.flat(x), 0, x.shape[1])
    elementwise.gather_rows(*out.shape, memory.flat(rows), source, _matrix(out), streams.stream())


empty = memory.empty
synchronize = streams.synchronize
elapsed = streams.elapsed


def zeros(shape, dtype):
    """A new array of zeros on the GPU."""
    array = memory.empty(shape, dtype)
    clear(array)
    return array


def to_device(array):
    """A copy on the GPU; an array that is there already is returned as it is."""
    return memory.to_device(array)


def to_host(array):
    """A copy on the host, made when all launches before have finished."""
    return memory.to_host(array)


# ---------------------------------------------------------------------------------------------- process
def set_num_threads(threads):
    """Does nothing: a launch may take the whole GPU."""


def get_num_threads():
    """1: one thread of the host launches; where small networks train in clusters, one for each that may find room."""
    return cluster.side_by_side()


def at_once(workspace, dtypes):
    """How many networks like that of a workspace train at once; ``dtypes`` are those of the data's x and targets."""
    return cluster.at_once(workspace, dtypes)


def serial():
    """Returns a context in which the launches of threads overlap, if `get_num_threads` is more than 1."""
    return contextlib.nullcontext() if get_num_threads() == 1 else streams.own_stream()


def warmup(dtype, activations, losses, optimizers):
    """Compile the kernels of these activations, losses and optimizers for the GPU in use, and those of any network.

    Products of less precision, those by two tiles and the kernels of `steps`, of which there are many, are compiled by
    the network that first uses them. The simulator compiles nothing.
    """
    if driver.simulated:
        return
    driver.require()
    parts = {*activations, "identity", *losses, *optimizers}
    wanted = [
        kernel.function
        for kernel in catalogue.kernels([dtype])
        if kernel.precision == "ieee"
        and (kernel.part is None or kernel.part in parts)
        and not kernel.name.startswith("steps")
    ]
    ahead.compile_all(wanted)
    for kernel in wanted:
        kernel.compile()


def config():
    """The GPU and the package in use, and where compiled kernels are kept."""
    lines = {"backend": "cuda"} | driver.describe()
    return lines if driver.simulated else lines | {"kernel cache": str(disk_cache.cache_directory() or "off")}
