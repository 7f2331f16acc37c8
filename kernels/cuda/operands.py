"""Operands of kernels as named tuples, such as an array with all that says where its numbers lie, and their types.

A compiled kernel receives a named tuple as its fields, one after another.
"""

from typing import NamedTuple

import numpy as np

from .compiling import device_function, vector
from .signatures import Tuple

INT, FLOAT = np.dtype(np.int64), np.dtype(np.float64)
INTS, FLOATS = vector(np.int64), vector(np.float64)


class Matrix(NamedTuple):
    """A matrix in a flat array: where its first row begins, and its leading dimension, the distance between rows."""

    data: object
    offset: int
    ld: int


class Row(NamedTuple):
    """A row in a flat array, and where it begins."""

    data: object
    start: int


class Shape(NamedTuple):
    """Of a product: C is (m, n) and has k terms an element; a block takes ``terms`` of them, one after another.

    The first ``rows`` of C are made by one tile, the others, if there are any, by a smaller one.
    """

    m: int
    n: int
    k: int
    terms: int
    rows: int


class Linear(NamedTuple):
    """A linear layer for the host: an activation and its parameter, its sizes, and the precision of its products."""

    activation: str
    parameter: float
    fan_in: int
    fan_out: int
    precision: str


class Finish(NamedTuple):
    """What a product does with its sums; `gemm.Epilogue` says what each field means."""

    beta: int
    bias: Matrix  # one row; read where has_bias is 1
    has_bias: int
    parameter: float
    saved: Matrix


class Rows(NamedTuple):
    """Arrays with a number for each row of a batch: its weight, its loss, and 1 where its label was predicted."""

    weight: object
    loss: object
    hit: object


class Lanes(NamedTuple):
    """The threads that share a row: the number of this one, how many there are, and shared memory of the block."""

    lane: int
    count: int
    shared: object
    shared_column: object


class States(NamedTuple):
    """The buffers that an optimizer keeps beside the values; in place of one that it lacks there may be any array."""

    first: object
    second: object
    third: object


def type_of(kind, *fields):
    """The type of a named tuple of this kind, from the types of its fields."""
    return Tuple(kind, fields)


def matrix(dtype):
    """The type of a `Matrix` of a dtype."""
    return type_of(Matrix, vector(dtype), INT, INT)


def finish_type(dtype):
    """The type of a `Finish` of a dtype."""
    return type_of(Finish, INT, matrix(dtype), INT, FLOAT, matrix(dtype))


SHAPE = type_of(Shape, *[INT] * len(Shape._fields))


@device_function
def at(matrix, i, j):
    """The index of the element in row ``i`` and column ``j`` in the data of a `Matrix`."""
    return matrix.offset + i * matrix.ld + j


@device_function
def row_of(matrix, i):
    """Row ``i`` of a `Matrix`, as a `Row`."""
    return Row(matrix.data, at(matrix, i, 0))
