"""Arrays of parameters as kernels go through them: by a table on the GPU, whole blocks from tile to tile.

The table says where the gradient of an array lies, whole or in parts that its reader adds up. Where products read
stored factors (panels.py), it says as which factors the array is stored.
"""

from typing import NamedTuple

import numpy as np

from . import memory
from .compiling import device_function
from .driver import cuda, types
from .launch import WAVES, multiprocessors
from .operands import INT, INTS, type_of

int32 = types.int32


class Gradient(NamedTuple):
    """Where the gradient of an array lies: the sum of its parts, each of which is laid out as the array."""

    start: int
    parts: int = 1
    step: int = 0  # from part to part


class Line(NamedTuple):
    """A line of a `Table`: an array of (rows, columns)."""

    end: int  # of its tiles, among those of all arrays
    offset: int  # where it lies among the parameters
    rows: int
    columns: int
    ld: int
    start: int  # and the next two: its `Gradient`
    parts: int
    step: int
    along: int  # and the next: where the factor begins that it is stored as, and its rows; 0 rows: it is none
    along_rows: int
    across: int
    across_rows: int


class Table(NamedTuple):
    """Arrays of parameters, on the GPU: their number, the tiles they have, and of all the first field, the second, …"""

    arrays: int
    tiles: int
    places: object

    @classmethod
    def of(cls, arrays, tile, gradients, factors):
        """The table of some arrays.

        Parameters
        ----------
        arrays : list of program.Array
        tile : (int, int)
            Its rows and columns.
        gradients : dict
            The offset of an array -> its `Gradient`, where that is not one part at the same offset.
        factors : dict
            (Offset, whether along) -> where the factor begins, and its rows.
        """
        lines, end = [], 0
        for array in arrays:
            rows, columns = array.shape if len(array.shape) == 2 else (1, *array.shape)
            end += -(-rows // tile[0]) * -(-columns // tile[1])
            gradient = gradients.get(array.offset, Gradient(array.offset))
            along, across = (factors.get((array.offset, along), (0, 0)) for along in (True, False))
            lines.append(Line(end, array.offset, rows, columns, array.ld, *gradient, *along, *across))
        return cls(len(lines), end, memory.to_device(np.array(lines, np.int64).T.flatten()))

    @property
    def grid(self):
        """Blocks of a launch."""
        return grid_of(self.tiles)


TABLE = type_of(Table, INT, INT, INTS)


def grid_of(tiles):
    """Blocks for so many tiles."""
    return min(tiles, WAVES * multiprocessors())


@device_function
def field(table, array, number):
    """A number of an array's line."""
    return table.places[number * table.arrays + array]


@device_function
def line_of(table, array):
    """The line of an array: its fields in their order."""
    return Line(
        field(table, array, 0),
        field(table, array, 1),
        field(table, array, 2),
        field(table, array, 3),
        field(table, array, 4),
        field(table, array, 5),
        int32(field(table, array, 6)),
        field(table, array, 7),
        field(table, array, 8),
        field(table, array, 9),
        field(table, array, 10),
        field(table, array, 11),
    )


def for_each_tile(function):
    """A device function ``(table, *operands)``: ``function(tile, line, *operands)`` for the tiles of every array.

    ``tile`` is the number of one among those of its array, ``line`` the `Line` of that. The grid is that of the table.
    """

    @device_function
    def loop(table, *operands):
        tile, first = int32(cuda.blockIdx.x), int32(0)
        for array in range(int32(table.arrays)):
            end = int32(field(table, array, 0))
            if tile < end:
                line = line_of(table, array)
                while tile < end:
                    function(int32(tile - first), line, *operands)
                    tile = int32(tile + cuda.gridDim.x)
            first = end

    return loop
