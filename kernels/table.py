"""The network table: a network as data, shared by every backend.

``Sequential`` lowers its layers to one ``int64`` row an operation. Compiled code walks the rows
forward and back, so a new architecture is new data and compiles nothing. The offsets of the rows
point into one flat, 64-byte-aligned parameter buffer; gradients and optimizer state are buffers of
the same shape. This file also owns the one rule for leading dimensions.
"""

import numpy as np

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register

# Names; a code is the index of its name. Adding one here and in reference.py makes every generated
# test ask for it.
KINDS = ("linear", "activation", "dropout")
ACTIVATIONS = (
    "identity", "relu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh", "silu", "softplus",
    "mish",
)  # fmt: skip
LOSSES = (
    "half_squared_error", "mean_squared_error", "cross_entropy", "soft_cross_entropy", "l1", "huber",
    "binary_cross_entropy", "binary_cross_entropy_with_logits",
)  # fmt: skip
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "lion")
# What the factors of a product are rounded to: nothing; 10 bits after the leading one; 7 (bfloat16). Sums keep the
# dtype.
PRECISIONS = ("ieee", "tf32", "bf16")

# Losses whose target is one integer label a row; every other target has the prediction's shape.
LABEL_LOSSES = frozenset({"cross_entropy"})
# Activations whose derivative needs the pre-activation z; all others use the output alone.
SAVES_PRE_ACTIVATION = frozenset({"gelu", "gelu_tanh", "silu", "mish"})
# Parameter-sized buffers an optimizer keeps between steps.
OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adam": 2, "lion": 1}

# Columns of the table.
(
    KIND,  # index into KINDS
    FAN_IN,  # inputs of a row
    FAN_OUT,  # outputs of a row
    LD_IN,  # leading dimension of the input, in elements
    LD_OUT,  # leading dimension of the output and of the weight, in elements
    WEIGHT,  # element offset of the weight in the parameter buffer; -1: none
    BIAS,  # element offset of the bias in the parameter buffer; -1: none
    ACTIVATION,  # index into ACTIVATIONS
    PARAMETER,  # the activation's parameter, or dropout's probability: the bits of a float64
    OUTPUT,  # output at OUTPUT * batch elements into the activation buffer
    SAVED,  # what the derivative needs, likewise; equal to OUTPUT where the output is enough
    PRECISION,  # index into PRECISIONS, of the products of a linear row
    COLUMNS,  # number of columns; not a column
) = range(13)

COEFFICIENTS = 8  # float64 slots a step that an optimizer may read


def leading_dimension(columns: int, itemsize: int) -> int:
    """Elements from one row of a buffer to the next, for rows of ``columns`` elements.

    Below one cache line rows are packed (padding would multiply the traffic); from there rows start
    on cache lines, and from 1 KiB up they stay off multiples of 512 bytes, so that the rows of one
    column panel do not fall into the same few cache sets.
    """
    line = ALIGNMENT // itemsize
    if columns < line:
        return max(columns, 1)
    padded = -(-columns // line) * line
    if padded * itemsize >= 1024 and padded * itemsize % 512 == 0:
        padded += line
    return padded


def lower(layers, itemsize: int, precision: str = "ieee") -> tuple[np.ndarray, int]:
    """Lower layers to the table.

    Parameters
    ----------
    layers : sequence of (kind, fan_in, fan_out, has_bias, activation, activation_parameter)
        ``kind`` and ``activation`` by name.
    itemsize : int
        Bytes an element of the parameter buffer has.
    precision : str
        Of all products, by name.

    Returns
    -------
    table : int64 array of shape (len(layers), COLUMNS)
    size : int
        Elements of the parameter buffer.
    """
    line = ALIGNMENT // itemsize
    table = np.full((len(layers), COLUMNS), -1, np.int64)
    table[:, PRECISION] = PRECISIONS.index(precision)
    size = width = 0
    for row, (kind, fan_in, fan_out, has_bias, activation, parameter) in zip(table, layers, strict=True):
        ld_out = leading_dimension(fan_out, itemsize)
        row[[KIND, FAN_IN, FAN_OUT]] = KINDS.index(kind), fan_in, fan_out
        row[[LD_IN, LD_OUT]] = leading_dimension(fan_in, itemsize), ld_out
        row[[ACTIVATION, PARAMETER]] = ACTIVATIONS.index(activation), np.float64(parameter).view(np.int64)
        if kind == "linear":
            row[WEIGHT] = size
            size += -(-fan_in * ld_out // line) * line
            if has_bias:
                row[BIAS] = size
                size += -(-ld_out // line) * line
        row[OUTPUT] = row[SAVED] = width
        width += ld_out
        if activation in SAVES_PRE_ACTIVATION:
            row[SAVED] = width
            width += ld_out
    return table, size


def activation_width(table: np.ndarray) -> int:
    """Elements of activations one example needs."""
    return int((np.maximum(table[:, OUTPUT], table[:, SAVED]) + table[:, LD_OUT]).max())


def parameter_views(table: np.ndarray, buffer: np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """The (weight, bias) views of every row into a parameter-shaped buffer; None where there is none."""
    views = []
    for row in table:
        weight = bias = None
        if row[WEIGHT] >= 0:
            fan_in, fan_out, ld = row[FAN_IN], row[FAN_OUT], row[LD_OUT]
            weight = buffer[row[WEIGHT] : row[WEIGHT] + fan_in * ld].reshape(fan_in, ld)[:, :fan_out]
        if row[BIAS] >= 0:
            bias = buffer[row[BIAS] : row[BIAS] + row[FAN_OUT]]
        views.append((weight, bias))
    return views


def activation_of(row: np.ndarray) -> tuple[int, float]:
    """The (code, parameter) of a row's activation."""
    return int(row[ACTIVATION]), float(row[PARAMETER].view(np.float64))


def aligned_empty(shape, dtype) -> np.ndarray:
    """An uninitialised C-ordered array that starts on a cache line."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_zeros(shape, dtype) -> np.ndarray:
    """A zero-filled C-ordered array that starts on a cache line."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
