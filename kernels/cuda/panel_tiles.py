"""What products of stored factors (panels.py) share, whoever multiplies: their arguments, tiles, and the way out to C.

The warps of a block hold sums as the instructions of tensor cores leave them, 16 rows at a time: with ``g, t = lane //
4, lane % 4`` a thread has columns ``8 j + 2 t`` and the next of rows ``g`` and ``g + 8``. They go to C through shared
memory, a part of 16 rows after another, and from there, where C is a factor of other products, into its panels.
"""

from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from .blocking import GROUP, WARP
from .compiling import device_function, kernel
from .driver import cuda, types
from .gemm import finisher
from .operands import INT, finish_type, matrix, type_of
from .panels import PANELS, Panels, Stored, storing
from .ptx import vector_access

int32, int64, uint32 = types.int32, types.int64, types.uint32
PART_ROWS = 16
SHARED_ALIGNMENT = 128  # bytes that dynamic shared memory is aligned to; copies and instructions need 16


class Shape(NamedTuple):
    """Of a product: C is (m, n), of ``panels`` of terms, cut into ``parts`` of ``each``; the last may have fewer.

    The first ``rows`` of C are made by one tile, the others, if there are any, by a smaller one.
    """

    m: int
    n: int
    panels: int
    parts: int
    each: int
    rows: int


class Factors(NamedTuple):
    """The stored factors of a product, and what it makes as those that it may be; None if it is none."""

    a: Panels
    b: Panels
    made: Stored | None = None


def declared(way, precision, tile, rest, epilogue, stores, **options):
    """A decorator of the kernels ``(shape, a, b, c, after, stored)``; ``options`` are those of `compiling.kernel`."""
    shape = type_of(Shape, *[INT] * len(Shape._fields))
    signature = shape, PANELS, PANELS, matrix(np.float32), finish_type(np.float32), type_of(Stored, PANELS, PANELS)

    def decorate(function):
        tiles = [one.name for one in (tile, rest) if one]
        words = way, precision, *tiles, epilogue.replace(":", "_"), *["stores"] * stores
        function.__qualname__ = "_".join(words)  # what profilers show
        return kernel(*signature, **options)(function)

    return decorate


# ----------------------------------------------------------------------------------------------- tiles
@cache
def order_of_tiles(bm, bn):
    """Two device functions: how many tiles rows of C have, in all parts; and where one of them is.

    ``place(number, begin, end, shape)`` is the part, and the first row and column, of a tile of the rows from ``begin``
    to ``end``: part by part, `GROUP` tiles' rows together, column by column. Divisions of 64 bits, which ``range`` has
    too, would be calls, beside which the assembler serialises.
    """

    @device_function
    def of_part(rows, n):
        return uint32((rows + bm - 1) // bm), uint32((n + bn - 1) // bn)

    @device_function
    def count(rows, shape):
        tiles_m, tiles_n = of_part(rows, shape.n)
        return int64(tiles_m) * int64(tiles_n) * shape.parts

    @device_function
    def place(number, begin, end, shape):
        tiles_m, tiles_n = of_part(end - begin, shape.n)
        group, tiles = uint32(GROUP), uint32(tiles_m * tiles_n)
        part, number = uint32(uint32(number) // tiles), uint32(uint32(number) % tiles)
        size = uint32(group * tiles_n)
        first = uint32(number // size * group)
        inside, rows = uint32(number % size), min(group, uint32(tiles_m - first))
        return int64(part), begin + int64(first + inside % rows) * bm, int64(inside // rows) * bn

    return count, place


@device_function
def panels_of_part(part, shape):
    """The first panel of a part, and how many it has."""
    first = part * shape.each
    return first, min(shape.each, shape.panels - first)


# ---------------------------------------------------------------------------------------------- way out
@cache
def place_in_part(columns):
    """A device function: where an element is in a part of 16 rows.

    Groups of 8 columns are turned by the row, so that no two threads that store or load together meet in a bank.
    """
    groups = columns // 8

    @device_function
    def place(row, column):
        return int32(row * columns + (column // 8 ^ row % groups) * 8 + column % 8)

    return place


@cache
def part_of_sums(parts, columns):
    """A device function that puts part ``part`` of a warp's sums into shared memory: `PART_ROWS` rows of ``columns``.

    Registers have no addresses, so each part has a function.
    """
    _, store = vector_access(2)
    place = place_in_part(columns)

    def with_part(p, before):
        @device_function
        def put(acc, memory, start, lane, part):
            if part == p:
                for j in range(columns // 8):
                    for h in range(2):
                        to = start + place(lane // 4 + 8 * h, 8 * j + lane % 4 * 2)
                        store(memory, to, acc, (p * columns // 8 + j) * 4 + 2 * h)
            else:
                before(acc, memory, start, lane, part)

        return put

    @device_function
    def function(acc, memory, start, lane, part):
        pass

    for p in range(parts):
        function = with_part(p, function)
    return function


def finishing(precision, epilogue, parts, columns, vectors, stores):
    """How a warp brings its sums to C, in ``parts`` of 16 rows and so many ``columns``: a device function.

    Parameters
    ----------
    epilogue : str
        The name of a `gemm.Epilogue`.
    vectors : bool
        Whether C and what the epilogue reads allow 16-byte accesses.
    stores : bool
        Whether C is stored as a factor, too.

    Returns
    -------
    SimpleNamespace
        ``finish(acc, memory, start, lane, part, row, column, shape, c, after, stored)``: a part, whose first element is
        C's in this row and column, through shared memory from ``start`` on; ``size``, elements of that.
    """
    width = 4
    chunks = columns // width
    load, put = vector_access(width)
    put_part, place = part_of_sums(parts, columns), place_in_part(columns)
    finish_some = finisher(epilogue, types.float32, width, vectors)
    store_part = storing(precision, PART_ROWS, columns, place, WARP)

    @device_function
    def finish(acc, memory, start, lane, part, row, column, shape, c, after, stored):
        z = cuda.local.array(width, types.float32)
        m, n = shape.m, shape.n
        cuda.syncwarp()
        put_part(acc, memory, start, lane, part)
        cuda.syncwarp()
        for chunk in range(lane, PART_ROWS * chunks, WARP):
            i, j = chunk // chunks, chunk % chunks * width
            at_part, r, s = start + place(i, j), row + i, column + j
            load(z, 0, memory, at_part)
            if r < m and s < n:
                finish_some(z, r, s, n, c, after)
            if stores:
                for e in range(width):
                    if r >= m or s + e >= n:
                        z[e] = types.float32(0)
                put(memory, at_part, z, 0)
        if stores:
            cuda.syncwarp()
            store_part(lane, memory, start, row, column, m, n, stored)

    return SimpleNamespace(finish=finish, size=PART_ROWS * columns)
