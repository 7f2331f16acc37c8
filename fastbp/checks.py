"""Checks of what users pass: errors are raised before anything is written or changed.

A message names the argument, what was expected, what was given, and a remedy where there is one. Arrays are never
copied whole: the checks look at views, a block at a time.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .kernels import exchange

Array: TypeAlias = NDArray[Any]
T = TypeVar("T")

MOST_WEIGHT = 1e100  # so that sums of weights, and of their products, stay finite
FEW = 1 << 14  # numbers whose extremes are found by their places: that takes longer than a reduction, but begins sooner
BLOCK_BYTES = 1 << 20  # read at a time: the second pass finds it in the second-level cache


# --------------------------------------------------------------------------------------- scalars
def choice(argument: str, value: Any, allowed: Collection[str]) -> str:
    """``value``, one of the names in ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def integer(argument: str, value: Any, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``."""
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{argument} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {value}")
    return int(value)


def generator(argument: str, seed: int | None) -> np.random.Generator:
    """A new generator from None or an integer."""
    return np.random.default_rng(None if seed is None else integer(argument, seed, minimum=0))


def boolean(argument: str, value: Any) -> bool:
    """``value`` as a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def instance(argument: str, value: T, kinds: type | tuple[type, ...]) -> T:
    """``value``, an object of one of these classes."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"{argument} must be of type {names}, got {value!r}")
    return value


def real(argument: str, value: Any, minimum: float = 0.0, below: float = math.inf) -> float:
    """``value`` as a float in ``[minimum, below)``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a real number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer, or a fraction of two
        number = math.inf
    if not minimum <= number < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{argument} must be at least {minimum:g} and {limit}, got {value!s:.50}")
    return number


def positive(argument: str, value: Any) -> float:
    """``value`` as a finite float above 0."""
    if real(argument, value) == 0:
        raise ValueError(f"{argument} must be above 0, got {value}")
    return float(value)


def share(argument: str, value: Any) -> float:
    """``value`` as a float in [0, 1]."""
    if real(argument, value) > 1:
        raise ValueError(f"{argument} must be at most 1, got {value}")
    return float(value)


def batch_that_meets(rows: int) -> None:
    """Refuse a training batch of one row where its rows meet in statistics."""
    if rows == 1:
        raise ValueError("BatchNorm1d cannot train on a batch of one row, which has no variance; take two or more")


def dtype(argument: str, value: Any) -> np.dtype[Any]:
    """``value`` as the float32 or float64 dtype."""
    try:
        result = np.dtype(value)
    except TypeError:
        result = None
    if value is None or result not in (np.float32, np.float64):
        raise ValueError(f'{argument} must be "float32" or "float64", got {value!r}')
    return result


# ---------------------------------------------------------------------------------------- arrays
on_device = exchange.on_gpu


def numeric(argument: str, value: Any) -> Array:
    """``value`` as an array of real numbers; an array is not copied."""
    if not isinstance(value, np.ndarray) and on_device(value):
        raise TypeError(
            f"{argument} must be in the memory of the host here, got a {type(value).__name__} on the GPU; copy it "
            f'to the host first, or move the model there with model.to("cuda")'
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument} must be an array without a mask, whose numbers would be taken for real ones; leave such rows "
            f"out, or fill them: {argument}.filled(…)"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{argument} must be a rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{argument} must hold real numbers (float, integer or bool), got dtype {array.dtype}; "
            f"convert it first, for example with numpy.asarray({argument}, dtype='float32')"
        )
    return array


def matrix(argument: str, value: Any, columns: int | None = None, rows: int | None = None) -> Array:
    """``value`` as a two-dimensional array of real numbers with this many columns and rows; no copy."""
    array = numeric(argument, value)
    fits = array.ndim == 2 and columns in (None, array.shape[1]) and rows in (None, array.shape[0])
    if not fits:
        expected = f"({'n' if rows is None else rows}, {'features' if columns is None else columns})"
        remedy = f"; for a single row pass {argument}[None, :]" if array.ndim == 1 and rows is None else ""
        raise ValueError(f"{argument} must have shape {expected}, got {array.shape}{remedy}")
    return array


def shape(argument: str, array: Array, expected: tuple[int, ...]) -> None:
    """Refuse an array of another shape."""
    if array.shape != expected:
        raise ValueError(f"{argument} must have shape {expected}, got {array.shape}")


def readable(array: Array) -> bool:
    """Whether kernels can read the array's memory directly."""
    flags = array.flags
    return flags.c_contiguous and flags.aligned


def converted(array: Array, dtype: DTypeLike) -> Array:
    """The array in this dtype and a layout that kernels read; not copied where it has them."""
    if type(array) is np.ndarray and array.ndim and array.dtype == dtype and readable(array):
        return array
    with np.errstate(all="ignore"):
        array = np.ascontiguousarray(array, dtype)
    return array if array.flags.aligned else array.copy()


def batch(
    argument: str, value: Any, columns: int | None = None, dtype: DTypeLike = None, rows: int | None = None
) -> Array:
    """``value`` as a matrix that a kernel reads, whatever it is given as: the way in for every array of a user's call.

    Of this dtype; without one float64 is kept, and every other real dtype becomes float32.
    """
    array = matrix(argument, value, columns, rows)
    if dtype is None:
        dtype = np.float64 if array.dtype == np.float64 else np.float32
    return converted(array, dtype)


def not_empty(argument: str, array: Array) -> None:
    """Refuse an array without rows."""
    if len(array) == 0:
        raise ValueError(f"{argument} must have at least one row, got shape {array.shape}")


def targets(argument: str, value: Any, rows: int, columns: int) -> Array:
    """``value`` as a matrix of real targets; ``(n,)`` is taken as ``(n, 1)`` and nothing else broadcasts."""
    array = numeric(argument, value)
    if columns == 1 and array.shape == (rows,):
        return array.reshape(rows, 1)
    if array.shape != (rows, columns):
        also = f" or ({rows},)" if columns == 1 else ""
        raise ValueError(f"{argument} must have shape ({rows}, {columns}){also}, got {array.shape}")
    return array


@functools.cache
def _unsigned(dtype):
    """The unsigned integers of this size and order of bytes."""
    return np.dtype(dtype.str.replace("i", "u"))


def are_labels(array: Array, classes: int) -> bool:
    """Whether all of these integers are labels ``0 … classes - 1``."""
    if array.size == 0:
        return True
    if array.dtype.kind == "i":  # as unsigned numbers negative labels are large: one pass finds both faults
        array = array.view(_unsigned(array.dtype))
    largest = array.item(array.argmax()) if array.size <= FEW else np.maximum.reduce(array)
    return bool(largest < classes)


def labels(argument: str, value: Any, rows: int, classes: int) -> Array:
    """``value`` as int64 labels ``0 … classes - 1``, one a row."""
    array = numeric(argument, value)
    if array.dtype.kind not in "iub":
        raise TypeError(
            f"{argument} must hold integer class labels, got dtype {array.dtype}; "
            f"if the values are whole numbers, pass {argument}.astype(int)"
        )
    if array.shape != (rows,):
        remedy = f"; pass {argument}.ravel()" if array.shape == (rows, 1) else ""
        if array.shape == (rows, classes):
            remedy = f"; probabilities go as floating-point numbers: pass {argument}.astype(float)"
        raise ValueError(f"{argument} must have shape ({rows},), one label a row, got {array.shape}{remedy}")
    if not are_labels(array, classes):
        first = int(np.argmax((array < 0) | (array >= classes)))
        raise ValueError(
            f"{argument} must hold labels from 0 to {classes - 1}, the outputs of the network; "
            f"got {argument}[{first}] = {array[first]}"
        )
    return converted(array, np.int64)


def weights(argument: str, value: Any, rows: int, each: str = "row") -> Array:
    """``value`` as float64 weights, one a row: finite, not negative, not all zero."""
    array = numeric(argument, value)
    if array.shape != (rows,):
        raise ValueError(f"{argument} must have shape ({rows},), one weight a {each}, got {array.shape}")
    finite(argument, array, np.float64)
    array = converted(array, np.float64)
    if not rows:
        return array
    if array.min() < 0:
        first = int(np.argmax(array < 0))
        raise ValueError(f"{argument} must not be negative, got {argument}[{first}] = {array[first]}")
    if not array.any():
        raise ValueError(f"{argument} must have a sum above 0: with all weights zero there is nothing to average")
    if array.max() > MOST_WEIGHT:
        first = int(np.argmax(array > MOST_WEIGHT))
        raise ValueError(
            f"{argument} must be at most {MOST_WEIGHT:g}, or their sum is too large, got {argument}[{first}] = "
            f"{array[first]}; divide them all by a number: only their ratios count"
        )
    return array


def rows(argument: str, value: Any, count: int) -> Array:
    """``value`` as int64 row numbers, ``0 … count - 1``, at least one."""
    array = numeric(argument, value)
    if array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
        raise ValueError(
            f"{argument} must be a one-dimensional array of row numbers, got dtype {array.dtype} and shape "
            f"{array.shape}; of a mask take numpy.flatnonzero"
        )
    if array.min() < 0 or array.max() >= count:
        raise ValueError(f"{argument} must hold row numbers from 0 to {count - 1}, got {array.min()} to {array.max()}")
    return converted(array, np.int64)


def blocks(array: Array) -> Iterable[slice]:
    """Slices of about BLOCK_BYTES that together cover the rows of the array."""
    if array.nbytes <= BLOCK_BYTES:
        return (slice(0, None),) if array.size else ()
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def _index(place, block):
    """The text of a place in a block, as an index of the whole array."""
    return ", ".join(map(str, (place[0] + block.start, *place[1:])))


def are_within(block: Array, least: float, largest: float) -> bool:
    """Whether no number of an array is outside ``[least, largest]``; NaN is not."""
    return not (block.min() < least or block.max() > largest)


def within(argument: str, array: Array, least: float, largest: float) -> None:
    """Refuse numbers outside ``[least, largest]``; NaN passes."""
    for part in blocks(array):
        block = array[part]
        if not are_within(block, least, largest):
            bad = np.argwhere((block < least) | (block > largest))[0]
            index = _index(bad, part)
            raise ValueError(
                f"{argument} must hold numbers from {least} to {largest}, got {argument}[{index}] = {block[tuple(bad)]}"
            )


@functools.cache
def _largest(dtype, wanted):
    """The largest number of this dtype that another can hold."""
    return dtype.type(min(np.finfo(wanted).max, np.finfo(dtype).max))


def are_finite(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether no number is NaN, infinite, or becomes infinite in ``dtype``; the array is read a block at a time."""
    if array.dtype.kind != "f" or array.size == 0:
        return True
    limit = _largest(array.dtype, dtype)
    if array.nbytes <= BLOCK_BYTES:
        return _up_to(limit, array)
    return all(_up_to(limit, array[part]) for part in blocks(array))


def _up_to(limit, block):
    if block.size <= FEW and block.flags.c_contiguous:
        least, largest = block.item(block.argmin()), block.item(block.argmax())
    else:
        least, largest = np.minimum.reduce(block, axis=None), np.maximum.reduce(block, axis=None)
    return bool(least >= -limit and largest <= limit)  # false for NaN, which is found as both


def finite(argument: str, array: Array, dtype: DTypeLike) -> None:
    """Refuse what is not `are_finite`."""
    if are_finite(array, np.dtype(dtype)):
        return
    limit = _largest(array.dtype, np.dtype(dtype))
    for part in blocks(array):
        block = array[part]
        if not _up_to(limit, block):
            bad = np.argwhere(~(np.abs(block) <= limit))[0]
            index = _index(bad, part)
            value = block[tuple(bad)]
            what = f"which {np.dtype(dtype).name} cannot hold" if np.isfinite(value) else "which is not finite"
            raise ValueError(
                f"{argument} must hold finite numbers, got {argument}[{index}] = {value!s}, {what}; "
                f"remove or replace such rows"
            )
