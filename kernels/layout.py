"""The layout of networks in memory, shared by every backend: names and their codes, and leading dimensions.

Offsets of a program (`program`) point into one flat, 64-byte-aligned parameter buffer; gradients and optimizer state
are buffers of the same shape. This file owns the one rule for leading dimensions.
"""

import numpy as np

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register

# Names; a code is the index of its name. Adding one here and in reference.py makes every generated
# test ask for it.
ACTIVATIONS = (
    "identity", "relu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh", "silu", "softplus",
    "mish",
)  # fmt: skip
LOSSES = (
    "half_squared_error", "mean_squared_error", "cross_entropy", "soft_cross_entropy", "l1", "huber",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson", "quantile",
)  # fmt: skip
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "lion", "amsgrad")
# What the factors of a product are rounded to: nothing; 10 bits after the leading one; 7 (bfloat16); the sum of two
# bfloat16 numbers, of which three products are taken. Sums keep the dtype.
PRECISIONS = ("ieee", "tf32", "bf16", "bf16x3")

# Losses whose target is one integer label a row; every other target has the prediction's shape.
LABEL_LOSSES = frozenset({"cross_entropy"})
# Activations whose derivative needs the pre-activation z; all others use the output alone.
SAVES_PRE_ACTIVATION = frozenset({"gelu", "gelu_tanh", "silu", "mish"})
# Parameter-sized buffers an optimizer keeps between steps.
OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adam": 2, "lion": 1, "amsgrad": 3}

LEAST_WEIGHT = 2.2250738585072014e-308  # of a batch that counts: 1 over less than a normal number may be infinite
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
