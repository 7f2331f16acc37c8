"""How factors of products lie in memory, and the kernels that store them so, called right after who makes the numbers.

Of ``"bf16"`` a factor has one part, of ``"bf16x3"`` a high and a low one. The unit of float32 reads a part as float32
numbers, laid out as what it is made of. A unit of bfloat16 reads pairs (`pairs`) along the terms of the product, 32
terms at once (a chunk), in one of five forms. Of x with rows and columns, ``ld`` elements to a row:

- rows: x as a left factor, terms along its columns; pair q of row r at ``r * ld + q``.
- lines: x^T as a left factor, terms along the rows of x; in a chunk of 32 rows pair q of column c at ``16 c + q``.
- panels: x as a right factor, terms along its rows; in a chunk of 32 rows there are panels of 32 columns, and in a
  panel pair q of column c is at ``32 q + c``.
- stacked: the same panels, but those of all chunks of 32 columns come one after another, then those of the next.
- turned: x^T as a right factor, terms along the columns of x; chunks of 32 columns, panels of 32 rows, stacked.

In the first three, which rows of a batch have, a chunk takes ``32 ld`` elements, so they have the same number of them a
row. Weights are stacked, and a product reads its right factor from one address to the next: only then does the
processor foresee it. ``ld`` is PAIRS there, as if a row had a panel alone. Terms beyond the last are stored as 0; what
lies beyond the last row or column that is no term is never looked at.
"""

from .. import layout
from ..jit import inline
from .elementwise import store_factor
from .operands import Strided
from .pairs import neighbours, pairs
from .simd import (
    is_not_null,
    lanes,
    load,
    load_corner,
    nearest_bfloat16,
    pointer_like,
    prefetch_to_write,
    square,
    store,
    transpose,
    zeros,
)

PLAIN, ROWS, LINES, PANELS, STACKED, TURNED = range(6)
CHUNK = 32  # terms
PAIRS = CHUNK // 2
PANEL = CHUNK * PAIRS  # elements of a panel in a chunk
COLUMN_BYTES = 4 * PAIRS  # from one column to the next, or as much for each of 32


def leading_dimension(columns: int) -> int:
    """Elements a row: an odd number of lines of 64 bytes, lest the rows of a tile fall into the same cache sets."""
    return PAIRS * (-(-columns // CHUNK) | 1)


def chunks(terms: int) -> int:
    """So many terms, rounded up to whole chunks."""
    return -(-terms // CHUNK) * CHUNK


def room(form: int, rows: int, columns: int) -> tuple[int, int]:
    """(elements a row, elements in all) of a part of rows x columns numbers in a form."""
    if form == PLAIN:
        ld = layout.leading_dimension(columns, 4)
        return ld, rows * ld
    if form in (STACKED, TURNED):
        return PAIRS, chunks(rows) * chunks(columns) // 2
    ld = leading_dimension(columns)
    return ld, chunks(rows) * ld


@inline
def left_factor(a):
    """A left factor with elements from row to row and from chunk to chunk: in rows, whose step is 1, or in lines."""
    if a.step == 1:
        return Strided(a.data, a.ld, PAIRS)
    return Strided(a.data, PAIRS, CHUNK * a.step)


@inline
def panels_apart(terms, ld):
    """Elements from a panel to that of the next columns: side by side, or stacked."""
    return (terms + CHUNK - 1) // CHUNK * PANEL if ld == PAIRS else PANEL


@inline
def rest(x):
    """What rounding takes from a tile, of which the low parts are made."""
    return x - nearest_bfloat16(x)


@inline
def row_of(x, columns):
    """A vector of a row; 0 beyond ``columns``, which is None where all are there."""
    return load(zeros(x, 1, 1), x, 0, columns)


@inline
def square_of(x, ld, rows, columns):
    """As many rows as a vector has lanes; 0 beyond ``rows`` and ``columns``, which are None where all are there."""
    if rows is None:
        return load(square(x), x, ld, None)
    return load_corner(square(x), x, ld, rows, columns)


@inline
def rows_of_chunk(x, columns, beyond, high, low, both):
    """Two vectors of a row."""
    first, second = row_of(x, columns), row_of(x + lanes(x), beyond)
    store(neighbours(first, second), high, 0, None)
    if both:
        store(neighbours(rest(first), rest(second)), low, 0, None)


@inline
def lines_of_chunk(x, ldx, even_rows, odd_rows, columns, high, low, both):
    """Rows for as many pairs as a vector has lanes."""
    even, odd = square_of(x, 2 * ldx, even_rows, columns), square_of(x + ldx, 2 * ldx, odd_rows, columns)
    store(transpose(pairs(even, odd)), high, PAIRS, None)
    if both:
        store(transpose(pairs(rest(even), rest(odd))), low, PAIRS, None)


@inline
def turned_of_chunk(x, ldx, rows, columns, beyond, high, low, both):
    """Columns for as many pairs as a vector has lanes, and as many rows."""
    first, second = square_of(x, ldx, rows, columns), square_of(x + lanes(x), ldx, rows, beyond)
    store(transpose(neighbours(first, second)), high, CHUNK, None)
    if both:
        store(transpose(neighbours(rest(first), rest(second))), low, CHUNK, None)


@inline
def panel_of_chunk(x, even_columns, odd_columns, ldx, high, low, both):
    """A vector of each of two rows."""
    even, odd = row_of(x, even_columns), row_of(x + ldx, odd_columns)
    store(pairs(even, odd), high, 0, None)
    if both:
        store(pairs(rest(even), rest(odd)), low, 0, None)


def store_rows(rows, columns, x, ldx, high, low, ld):
    """Store x in rows."""
    width, both = lanes(x), is_not_null(low)
    whole = columns // (2 * width) * (2 * width)
    for i in range(rows):
        source, target = x + i * ldx, i * ld
        for j in range(0, whole, 2 * width):
            rows_of_chunk(source + j, None, None, high + (target + j // 2), low + (target + j // 2), both)
        for j in range(whole, (columns + CHUNK - 1) // CHUNK * CHUNK, 2 * width):
            left = columns - j
            rows_of_chunk(source + j, left, left - width, high + (target + j // 2), low + (target + j // 2), both)


def store_lines(rows, columns, x, ldx, high, low, ld):
    """Store x in lines; it begins with a chunk."""
    width, both = lanes(x), is_not_null(low)
    for i in range(0, rows, CHUNK):
        for q in range(0, PAIRS, width):
            row = i + 2 * q
            left = rows - row
            for j in range(0, columns, width):
                source, target = x + (row * ldx + j), i * ld + j * PAIRS + q
                if left >= 2 * width and columns - j >= width:
                    lines_of_chunk(source, ldx, None, None, None, high + target, low + target, both)
                else:
                    lines_of_chunk(
                        source, ldx, (left + 1) // 2, left // 2, columns - j, high + target, low + target, both
                    )  # fmt: skip


@inline
def panels(rows, columns, x, ldx, high, low, ld, apart):
    """Store x in panels, ``apart`` elements from one to that of the next columns; it begins with both."""
    width, both = lanes(x), is_not_null(low)
    for i in range(0, rows, CHUNK):
        for j in range(0, columns, width):
            source, target, left = x + (i * ldx + j), i * ld + j // CHUNK * apart + j % CHUNK, columns - j
            if rows - i >= CHUNK and left >= width:
                for _ in range(PAIRS):
                    prefetch_to_write(high + (target + apart))  # the next panel's: it comes from memory meanwhile
                    panel_of_chunk(source, None, None, ldx, high + target, low + target, both)
                    source += 2 * ldx
                    target += CHUNK
            else:
                for row in range(i, i + CHUNK, 2):
                    even, odd = left if row < rows else 0, left if row + 1 < rows else 0
                    panel_of_chunk(source, even, odd, ldx, high + target, low + target, both)
                    source += 2 * ldx
                    target += CHUNK


@inline
def turned(rows, columns, x, ldx, high, low, apart):
    """Store x in turned panels, ``apart`` elements from one to that of the next rows; it begins with both."""
    width, both = lanes(x), is_not_null(low)
    for j in range(0, columns, CHUNK):
        for q in range(0, PAIRS, width):
            column = j + 2 * q
            left = columns - column
            for i in range(0, rows, width):
                source = x + (i * ldx + column)
                target = j * PAIRS + i // CHUNK * apart + q * CHUNK + i % CHUNK
                if rows - i >= width and left >= 2 * width:
                    for line in range(width):  # of the next chunk
                        prefetch_to_write(high + (target + PANEL + line * CHUNK))
                    turned_of_chunk(source, ldx, None, None, None, high + target, low + target, both)
                else:
                    turned_of_chunk(source, ldx, rows - i, left, left - width, high + target, low + target, both)


def store_panels(rows, columns, x, ldx, high, low, ld):
    """Store x in panels, side by side or stacked; it begins with a chunk and a panel."""
    panels(rows, columns, x, ldx, high, low, ld, panels_apart(rows, ld))


def store_turned(rows, columns, x, ldx, high, low, ld):
    """Store x in turned panels; it begins with a chunk and a panel."""
    turned(rows, columns, x, ldx, high, low, panels_apart(columns, ld))


@inline
def low_of(high, low_part):
    """Where the low part of a high one is, so many bytes on; nowhere if that is 0."""
    if low_part:
        return high + low_part // 4
    return pointer_like(0, high)


KERNELS = store_factor, store_rows, store_lines, store_panels, store_panels, store_turned  # by form
# Of a weight in bytes: where it begins among the parameters, its rows, columns and leading dimension; where its panels
# begin, and the elements from a panel to the next, and the same of turned panels, 0 where nobody reads them.
WEIGHT = 8


def store_weight(rows, columns, weight, ldw, at_parameter, weights, count, factors, low_part):
    """Store a block of a weight, ``at_parameter`` bytes into the parameters; it begins with a chunk and a panel.

    The weight is found among ``count`` of ``weights``. Low parts are ``low_part`` bytes behind high ones, if any.
    """
    for number in range(count):
        place = weights + number * WEIGHT
        begin = (at_parameter - place[0]) // 4
        if 0 <= begin < place[1] * place[3]:
            row, column = begin // place[3], begin % place[3]
            high = factors + (place[4] // 4 + row * PAIRS + column // CHUNK * place[5])
            panels(rows, columns, weight, ldw, high, low_of(high, low_part), PAIRS, place[5])
            if place[7]:
                high = factors + (place[6] // 4 + column * PAIRS + row // CHUNK * place[7])
                turned(rows, columns, weight, ldw, high, low_of(high, low_part), place[7])
