"""What kernels are given, as values: an array with all that says where its numbers lie; and the types of these values.

A named tuple reaches a compiled kernel as its fields, one after another.
"""

from typing import NamedTuple

import numpy as np

from .compiling import device_function, vector
from .driver import types

INT, FLOAT = types.int64, types.float64
INTS, FLOATS = vector(np.int64), vector(np.float64)


class Matrix(NamedTuple):
    """A flat array, where in it the first row begins, and how far it is from one row to the next."""

    data: object
    offset: int
    ld: int


class Row(NamedTuple):
    """A flat array, and where in it a row begins."""

    data: object
    start: int


class Finish(NamedTuple):
    """What a product does with its sums; `gemm.gemm` says what each field means."""

    beta: int
    bias: Matrix  # one row; read where has_bias is 1
    has_bias: int
    parameter: float
    saved: Matrix


class Rows(NamedTuple):
    """What a loss has of every row: its weight, its value, and whether the label was guessed."""

    weight: object
    loss: object
    hit: object


class Lanes(NamedTuple):
    """The threads that share a row: which of them this one is, how many they are, and scratch for all of a block."""

    lane: int
    count: int
    shared: object
    shared_column: object


class States(NamedTuple):
    """The buffers that an optimizer keeps beside the values; one that it does not have may be any array."""

    first: object
    second: object
    third: object


def type_of(kind, *fields):
    """The type of a named tuple, from the types of its fields."""
    return types.BaseTuple.from_types(fields, kind)


def matrix(dtype):
    """The type of a `Matrix`."""
    return type_of(Matrix, vector(dtype), INT, INT)


@device_function
def at(matrix, i, j):
    """Where the element in row ``i`` and column ``j`` lies in the data of a `Matrix`."""
    return matrix.offset + i * matrix.ld + j


@device_function
def row_of(matrix, i):
    """Row ``i`` of a `Matrix`, as a `Row`."""
    return Row(matrix.data, at(matrix, i, 0))
