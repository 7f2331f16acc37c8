"""How stored factors of products (panel_gemm.py) lie in memory, and the kernels that store them so.

A factor has rows of terms, along which a product sums. Numbers are rounded and stored in panels, each some terms of all
rows, of which a row takes 128 bytes: `UNITS` units of 16. In a panel 8 rows touch, first their first units: so 8 rows
of a unit are a core matrix of the instruction, and whatever rows a tile has, its part of a panel is one piece of
memory. Of bf16x3 a row has the high parts of 32 terms, then their low ones. Terms beyond the last are stored as 0; what
lies beyond the last row is never looked at.

A matrix is a factor in two ways: with its rows as they are, terms ``along`` them, or with its columns as rows and terms
``across`` the rows of the matrix. Who makes the numbers stores either or both: the product that ends a layer, the
update of a weight, or a launch of `store` after another kernel (factors.py).
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .. import layout
from .blocking import PANEL_TILES, UNIT_BYTES, UNITS, WARP_TILES
from .compiling import device_function, kernel, made_once, vector
from .driver import cuda, types
from .launch import THREADS
from .operands import FLOATS, INT, INTS, at, matrix, type_of
from .optimizers import coefficients_of_step, states_of, states_type, update_in_table
from .parameters import TABLE, Table, for_each_tile, grid_of
from .ptx import bf16_pair, vector_access
from .record import STOPPED
from .tensor_cores import low_pair, tf32_number
from .warpgroup import CORE_ROWS, STEP, TERMS, WORD_BYTES

UNIT = UNIT_BYTES // WORD_BYTES  # elements of memory, of 4 bytes
ROW = UNITS * UNIT
SPARE = max(max(tile.bm, tile.bn) for tile in (*PANEL_TILES, *WARP_TILES))  # rows of memory behind the last panel
int32 = types.int32


class Form(NamedTuple):
    """How the panels of a precision are multiplied: every one has the same bytes, whatever its numbers."""

    kind: str  # of its numbers, as the instruction calls it
    products: tuple  # of steps of A and of B, in their order: see `warpgroup.multiply_panel`
    parts: int = 1  # that a factor is the sum of; those of a row lie one after another

    @property
    def each(self) -> int:
        """Numbers of a unit."""
        return TERMS[self.kind] // STEP

    @property
    def units(self) -> int:
        """Of a part of a row."""
        return UNITS // self.parts

    @property
    def terms(self) -> int:
        """Of a panel."""
        return self.units * self.each


EACH = (0, 0), (1, 1), (2, 2), (3, 3)
# The same terms high by high, high by low, low by high, then the next: as in tensor_cores.py.
HIGH_AND_LOW = (0, 0), (0, 2), (2, 0), (1, 1), (1, 3), (3, 1)
FORMS = {"tf32": Form("tf32", EACH), "bf16": Form("bf16", EACH), "bf16x3": Form("bf16", HIGH_AND_LOW, 2)}


class Panels(NamedTuple):
    """A stored factor: from element ``start`` of int32 memory on, ``rows`` from panel to panel; 0: it is not stored."""

    data: object
    start: int
    rows: int


class Stored(NamedTuple):
    """A matrix as both factors that it may be."""

    along: Panels
    across: Panels


PANELS = type_of(Panels, vector(np.int32), INT, INT)


def panels_of(precision, terms):
    """Panels along k."""
    return -(-terms // FORMS[precision].terms)


def padded(rows):
    """Rows from panel to panel."""
    return -(-rows // CORE_ROWS) * CORE_ROWS


def room(precision, rows, terms):
    """Elements of int32 that a factor takes."""
    return (panels_of(precision, terms) * padded(rows) + SPARE) * ROW


# ----------------------------------------------------------------------------------------------- units
@cache
def rounding(precision):
    """A device function: the numbers of a unit, rounded, as elements of 4 bytes; then what is left, of bf16x3."""

    @device_function
    def function(values, words):
        for word in range(UNIT):
            if precision == "tf32":
                words[word] = tf32_number(values[word])
            else:
                x, y = values[2 * word], values[2 * word + 1]
                words[word] = bf16_pair(x, y)
                if precision == "bf16x3":
                    words[UNIT + word] = low_pair(x, y, words[word])

    return function


@cache
def storing(precision, rows, columns, place, threads):
    """A device function that stores a part of a matrix, which lies in shared memory, as a part of its factors.

    Parameters
    ----------
    rows, columns : int
        Of the part: multiples of `CORE_ROWS` and of the numbers of a unit, as is where it begins in the matrix.
    place : device function (row, column) -> int
        Where an element of the part is; those beyond the matrix are 0 there.
    threads : int
        That store it together. ``store(thread, tile, start, first_row, first_column, m, n, stored)`` stores the part
        that begins at ``start`` of ``tile`` and in row ``first_row`` and column ``first_column`` of the (m, n) matrix.
    """
    form = FORMS[precision]
    each, parts, units, held = form.each, form.parts, form.units, form.parts * UNIT
    round_unit = rounding(precision)
    _, store = vector_access(UNIT)

    def of(lines, terms, along):
        """A device function for the one or the other factor, ``lines`` rows of ``terms`` terms."""
        across = terms // each

        @device_function
        def function(thread, tile, start, first_line, first_term, count, panels):
            values = cuda.local.array(each, types.float32)
            words = cuda.local.array(held, int32)
            end = (count + form_terms - 1) // form_terms * units
            for q in range(thread, lines * across, threads):
                of_eight, unit, line = q % CORE_ROWS, q // CORE_ROWS % across, q // (CORE_ROWS * across) * CORE_ROWS
                for e in range(each):
                    if along:
                        values[e] = tile[start + place(line + of_eight, unit * each + e)]
                    else:
                        values[e] = tile[start + place(unit * each + e, line + of_eight)]
                round_unit(values, words)
                row, to = first_line + line, first_term // each + unit
                if row < panels.rows and to < end:
                    eight = panels.start + (to // units * panels.rows + row) * ROW
                    for part in range(parts):
                        unit_of_row = part * units + to % units
                        store(panels.data, eight + (unit_of_row * CORE_ROWS + of_eight) * UNIT, words, part * UNIT)

        return function

    form_terms = form.terms
    along, across = of(rows, columns, True), of(columns, rows, False)

    @device_function
    def store_part(thread, tile, start, first_row, first_column, m, n, stored):
        if stored.along.rows:
            along(thread, tile, start, first_row, first_column, n, stored.along)
        if stored.across.rows:
            across(thread, tile, start, first_column, first_row, m, stored.across)

    return store_part


# --------------------------------------------------------------------------------- kernels of their own
TILE = 64  # rows and columns that a block stores at a time
PITCH = TILE + 1  # in shared memory, so that threads that read rows, or columns, meet in few banks
TILE_SIZE = TILE * PITCH


@device_function
def place_in_tile(row, column):
    """Where an element is in shared memory."""
    return row * PITCH + column


def storing_tile(precision, value):
    """A device function by which a block stores a tile of a matrix: ``(number, rows, columns, stored, *operands)``.

    An element of the matrix is what ``value(row, column, *operands)`` returns.
    """
    store = storing(precision, TILE, TILE, place_in_tile, THREADS)

    @device_function
    def store_tile(number, rows, columns, stored, *operands):
        tile = cuda.shared.array(TILE_SIZE, types.float32)
        thread, across = np.int64(cuda.threadIdx.x), (columns + TILE - 1) // TILE
        first_row, first_column = number // across * TILE, number % across * TILE
        for e in range(thread, TILE * TILE, THREADS):
            i, j, x = e // TILE, e % TILE, types.float32(0)
            if first_row + i < rows and first_column + j < columns:
                x = value(first_row + i, first_column + j, *operands)
            tile[place_in_tile(i, j)] = x
        cuda.syncthreads()
        store(thread, tile, 0, first_row, first_column, rows, columns, stored)
        cuda.syncthreads()

    return store_tile


@made_once
def store_kernel(precision):
    """The kernel that stores a matrix as its factors."""

    @device_function
    def value(row, column, x):
        return x.data[at(x, row, column)]

    store_tile = storing_tile(precision, value)

    @kernel(INT, INT, INT, matrix(np.float32), type_of(Stored, PANELS, PANELS), threads=THREADS)
    def store_kernel(tiles, rows, columns, x, stored):
        for number in range(np.int64(cuda.blockIdx.x), tiles, np.int64(cuda.gridDim.x)):
            store_tile(number, rows, columns, stored, x)

    return store_kernel


def store(precision, rows, columns, x, stored, stream):
    """Launch it; ``x`` is a `Matrix`, ``stored`` says as which factors."""
    tiles = -(-rows // TILE) * -(-columns // TILE)
    if tiles:
        store_kernel(precision)[grid_of(tiles), THREADS, stream](tiles, rows, columns, x, stored)


# ------------------------------------------------------------------------------------------ parameters
FACTORS, VALUES = vector(np.int32), vector(np.float32)


def table(arrays, gradients, factors):
    """The `Table` of arrays for the launches below, in tiles of `TILE` rows and columns."""
    return Table.of(arrays, (TILE, TILE), gradients, factors)


def storing_all(precision, value):
    """A device function ``(table, factors, *operands)``: stores the arrays of a `table`, by whole blocks.

    Number ``i`` of an array is what ``value(i, line, *operands)`` returns.
    """

    @device_function
    def value_at(row, column, line, *operands):
        return value(row * line.ld + column, line, *operands)

    store = storing_tile(precision, value_at)

    @device_function
    def store_tile(tile, line, factors, *operands):
        along, across = Panels(factors, line.along, line.along_rows), Panels(factors, line.across, line.across_rows)
        store(tile, line.rows, line.columns, Stored(along, across), line, *operands)

    return for_each_tile(store_tile)


@made_once
def store_weights_kernel(precision):
    """The kernel that stores the weights of a table as their factors."""

    @device_function
    def value(i, line, values):
        return values[line.offset + i]

    store_all = storing_all(precision, value)

    @kernel(TABLE, FACTORS, VALUES, threads=THREADS)
    def store_weights_kernel(table, factors, values):
        store_all(table, factors, values)

    return store_weights_kernel


def store_weights(precision, table, values, factors, stream):
    """Launch it."""
    if table.tiles:
        store_weights_kernel(precision)[table.grid, THREADS, stream](table, factors, values)


@made_once
def update_kernel(optimizer, precision):
    """`optimizers.update_kernel` that stores new weights as factors."""
    dtype = np.dtype(np.float32)
    coefficients, update = update_in_table(optimizer, dtype)
    update_all = storing_all(precision, update)

    @kernel(TABLE, FACTORS, INTS, FLOATS, VALUES, VALUES, states_type(dtype), threads=THREADS)
    def update_kernel(table, factors, record, scalars, values, gradients, states):
        if record[STOPPED] == 0:
            c = coefficients(scalars, coefficients_of_step(record))
            update_all(table, factors, c, values, gradients, states)

    return update_kernel


def update(optimizer, precision, table, record, values, gradients, state, factors, stream):
    """Launch `optimizers.update` of a `table` as above, which stores what it has updated."""
    if table.tiles:
        update_kernel(optimizer, precision)[table.grid, THREADS, stream](
            table, factors, record.device, record.floats, values, gradients, states_of(state, values)
        )


def kernels(precision):
    """Every kernel of this file."""
    yield store_kernel(precision)
    yield store_weights_kernel(precision)
    for optimizer in layout.OPTIMIZERS:
        yield update_kernel(optimizer, precision)
