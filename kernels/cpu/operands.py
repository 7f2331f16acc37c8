"""What kernels are given, as values: an address or a pointer with all that belongs to it.

A named tuple reaches a compiled kernel as its fields, one after another, as C passes them.
"""

from typing import NamedTuple


class Matrix(NamedTuple):
    """Where the first row begins, and how far it is to the next."""

    data: object
    ld: int


class Block(NamedTuple):
    """A part of a matrix."""

    data: object
    ld: int
    rows: int
    columns: int


class InLast(NamedTuple):
    """The valid columns of a tile, which reach into the last of its vectors: only that one is masked."""

    columns: int


class Operand(NamedTuple):
    """A matrix that knows its columns; ``data`` and ``columns`` are 0 where there is none."""

    data: object
    ld: int
    columns: int


class Strided(NamedTuple):
    """The left factor of a product: elements from row to row, and from term to term."""

    data: object
    ld: int
    step: int


class Factor(NamedTuple):
    """The right factor of a product, or its transpose."""

    data: object
    ld: int
    transposed: int


class Low(NamedTuple):
    """The low parts of the factors of a product, laid out as the high ones; null where a factor is one number.

    The product is ``a b + a b_low + a_low b`` then, one sum after the other; the last two the other way round where it
    is made ``swapped``, by its transpose: so an element is one chain of multiply-adds in one order.
    """

    a: object
    b: object
    swapped: int


class Packing(NamedTuple):
    """Where a product may copy its operands to, 0 where it may not, and the sizes of `blocking.sizes_for`."""

    scratch: object
    sizes: object


class Origin(NamedTuple):
    """What a product is added to: FROM_ZERO, FROM_OUTPUT or FROM_BIAS of the micro-kernel, and the bias."""

    kind: int
    bias: object


class Finish(NamedTuple):
    """The address of a kernel ``(rows, columns, c, ldc, other, ld_other, parameter)``, 0 for none, and what it gets."""

    kernel: int
    other: object
    ld: int
    parameter: float


class Products(NamedTuple):
    """The addresses of the kernels that a linear layer calls, and the bytes of an element."""

    gemm: int
    transpose: int  # 0: nothing is made by its transpose
    column_sum: int
    itemsize: int
    sizes: int  # the address of those of `blocking.sizes_for`


class Group(NamedTuple):
    """Whether a group of rows of a batch is the first one, and whether it is the last: 1 or 0."""

    begins: int
    ends: int


class Rows(NamedTuple):
    """What a loss has of every row: weight, value, and whether the label was guessed."""

    weight: object
    loss: object
    hit: object
