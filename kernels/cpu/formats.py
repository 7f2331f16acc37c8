"""How factors of products lie in memory, and the kernels that store them so, called right after who makes the numbers.

Of ``"bf16"`` a factor has one part, of ``"bf16x3"`` a high and a low one. The unit of float32 reads a part as float32
numbers, laid out as what it is made of. A unit of bfloat16 reads pairs (`pairs`) along the terms of the product, 32
terms at once (a chunk), in one of four forms. Of x with rows and columns, ``ld`` elements to a row:

- rows: x as a left factor, terms along its columns; pair q of row r at ``r * ld + q``.
- lines: x^T as a left factor, terms along the rows of x; in a chunk of 32 rows pair q of column c at ``16 c + q``.
- panels: x as a right factor, terms along its rows; in a chunk of 32 rows there are panels of 32 columns, and in a
  panel pair q of column c is at ``32 q + c``.
- turned: x^T as a right factor, terms along the columns of x; chunks of 32 columns, panels of 32 rows.

A chunk takes ``32 ld`` elements, so all forms have the same number of them a row. Terms beyond the last are stored as
0; what lies beyond the last row or column that is no term is never looked at.
"""

from .. import layout
from ..jit import inline
from .elementwise import store_factor
from .operands import Strided
from .pairs import evens, odds, pairs
from .simd import (
    is_not_null,
    lanes,
    load,
    load_corner,
    nearest_bfloat16,
    pointer_like,
    square,
    store,
    transpose,
    zeros,
)

PLAIN, ROWS, LINES, PANELS, TURNED = range(5)
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
    terms, others = (columns, rows) if form == TURNED else (rows, columns)
    ld = leading_dimension(others)
    return ld, chunks(terms) * ld


@inline
def left_factor(a):
    """A left factor with elements from row to row and from chunk to chunk: in rows, whose step is 1, or in lines."""
    if a.step == 1:
        return Strided(a.data, a.ld, PAIRS)
    return Strided(a.data, PAIRS, CHUNK * a.step)


@inline
def high_pairs(even, odd):
    """The high parts of two tiles."""
    return pairs(nearest_bfloat16(even), nearest_bfloat16(odd))


@inline
def low_pairs(even, odd):
    """The low parts of two tiles."""
    return pairs(nearest_bfloat16(even - nearest_bfloat16(even)), nearest_bfloat16(odd - nearest_bfloat16(odd)))


def store_rows(rows, columns, x, ldx, high, low, ld):
    """Store x in rows."""
    width, both = lanes(x), is_not_null(low)
    for i in range(rows):
        for j in range(0, (columns + CHUNK - 1) // CHUNK * CHUNK, 2 * width):
            source, target = x + (i * ldx + j), i * ld + j // 2
            first = load(zeros(x, 1, 1), source, 0, columns - j)
            second = load(zeros(x, 1, 1), source + width, 0, columns - j - width)
            even, odd = evens(first, second), odds(first, second)
            store(high_pairs(even, odd), high + target, 0, None)
            if both:
                store(low_pairs(even, odd), low + target, 0, None)


def store_lines(rows, columns, x, ldx, high, low, ld):
    """Store x in lines; it begins with a chunk."""
    width, both = lanes(x), is_not_null(low)
    for i in range(0, rows, CHUNK):
        for q in range(0, PAIRS, width):
            row = i + 2 * q
            for j in range(0, columns, width):
                source, target = x + (row * ldx + j), i * ld + j * PAIRS + q
                even = load_corner(square(x), source, 2 * ldx, (rows - row + 1) // 2, columns - j)
                odd = load_corner(square(x), source + ldx, 2 * ldx, (rows - row) // 2, columns - j)
                store(transpose(high_pairs(even, odd)), high + target, PAIRS, None)
                if both:
                    store(transpose(low_pairs(even, odd)), low + target, PAIRS, None)


def store_panels(rows, columns, x, ldx, high, low, ld):
    """Store x in panels; it begins with a chunk and a panel."""
    width, both = lanes(x), is_not_null(low)
    for i in range(0, rows, CHUNK):
        for q in range(PAIRS):
            row = i + 2 * q
            for j in range(0, columns, width):
                source, target = x + (row * ldx + j), i * ld + j // CHUNK * PANEL + q * CHUNK + j % CHUNK
                even = load(zeros(x, 1, 1), source, 0, columns - j if row < rows else 0)
                odd = load(zeros(x, 1, 1), source + ldx, 0, columns - j if row + 1 < rows else 0)
                store(high_pairs(even, odd), high + target, 0, None)
                if both:
                    store(low_pairs(even, odd), low + target, 0, None)


def store_turned(rows, columns, x, ldx, high, low, ld):
    """Store x in turned panels; it begins with a chunk and a panel."""
    width, both = lanes(x), is_not_null(low)
    for j in range(0, columns, CHUNK):
        for q in range(0, PAIRS, width):
            column = j + 2 * q
            for i in range(0, rows, width):
                source, target = x + (i * ldx + column), j * ld + i // CHUNK * PANEL + q * CHUNK + i % CHUNK
                first = load_corner(square(x), source, ldx, rows - i, columns - column)
                second = load_corner(square(x), source + width, ldx, rows - i, columns - column - width)
                even, odd = evens(first, second), odds(first, second)
                store(transpose(high_pairs(even, odd)), high + target, CHUNK, None)
                if both:
                    store(transpose(low_pairs(even, odd)), low + target, CHUNK, None)


@inline
def low_of(high, low_part):
    """Where the low part of a high one is, so many bytes on; nowhere if that is 0."""
    if low_part:
        return high + low_part // 4
    return pointer_like(0, high)


KERNELS = store_factor, store_rows, store_lines, store_panels, store_turned  # by form
panels_of_block, turned_block = inline(store_panels), inline(store_turned)
# Of a weight in bytes: where it begins among the parameters, its rows, columns and leading dimension; where its panels
# begin, and their elements a row, and the same of turned panels, whose elements a row are 0 where nobody reads them.
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
            high = factors + (place[4] // 4 + row * place[5] + column * PAIRS)
            panels_of_block(rows, columns, weight, ldw, high, low_of(high, low_part), place[5])
            if place[7]:
                high = factors + (place[6] // 4 + column * place[7] + row * PAIRS)
                turned_block(rows, columns, weight, ldw, high, low_of(high, low_part), place[7])
