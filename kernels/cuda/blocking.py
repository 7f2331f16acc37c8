"""Every size that the matrix products on a GPU use, on one screen, and which of them a product of some shape takes."""

from typing import NamedTuple

WARP = 32
VECTOR_BYTES = 16  # the widest access to memory of a thread
SECTOR_BYTES = 32  # the least that is read of global memory at once


class Tile(NamedTuple):
    """A block of threads makes ``bm x bn`` elements of C, ``bk`` terms at a time.

    A block has ``warps_m x warps_n`` warps. A thread holds ``tm x tn`` elements in registers and adds up all the terms
    of each in their order, so every tile gives the same bits.
    """

    name: str
    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    warps_m: int
    warps_n: int
    blocks: int  # fit a multiprocessor at once, so a thread may use 65536 / (threads * blocks) registers
    stages: int = 2  # how many panels of A and of B there is room for in shared memory

    @property
    def threads(self) -> int:
        return WARP * self.warps_m * self.warps_n

    @property
    def warp_m(self) -> int:
        """Rows of C that a warp makes."""
        return self.bm // self.warps_m

    @property
    def warp_n(self) -> int:
        return self.bn // self.warps_n

    @property
    def lanes_m(self) -> int:
        """How many threads of a warp lie along m."""
        return self.warp_m // self.tm

    @property
    def lanes_n(self) -> int:
        return self.warp_n // self.tn


# By bytes of an element, the largest tile first. The larger a tile, the less it loads from global memory for each
# multiply-add; the larger the part of a thread, the less that reads from shared memory: 8 x 8 elements are 64
# multiply-adds for four loads of 16 bytes, and leave registers for two blocks of 256 threads, one of which computes
# while the other waits. `bk` is as many terms as make the main loop 5 to 10 KB of code, which fits the 12 KB of the
# innermost instruction cache. "medium" is for products that are too small to give every multiprocessor a large tile,
# "small" for those of small batches. No tile divides the terms of a sum among warps: its bits would depend on the tile.
# A float64 takes two registers, so there is no part of 8 x 8, and half as many blocks fit.
TILES = {
    4: (
        Tile("large", 128, 128, 8, 8, 8, 2, 4, 2),
        Tile("medium", 64, 64, 16, 8, 4, 2, 2, 4),
        Tile("small", 32, 32, 16, 4, 4, 1, 2, 8),
    ),
    8: (
        Tile("medium", 64, 64, 16, 8, 4, 2, 2, 2),
        Tile("small", 32, 32, 16, 4, 4, 1, 2, 4),
    ),
}
# Those of the tensor cores.
MATRIX_TILES = (
    Tile("large", 128, 128, 16, 8, 16, 2, 2, 2, 3),
    Tile("medium", 64, 64, 16, 4, 8, 2, 2, 4, 4),
    Tile("small", 32, 32, 16, 2, 4, 2, 2, 4, 8),
)
# As many blocks as a product should have, to give one to each multiprocessor of today's GPUs (108 to 148).
ENOUGH_BLOCKS = 128
# Shared memory through which a tile is written to C: no more than the panels take, so that as many blocks fit.
EPILOGUE_BYTES = 24 * 1024
# So many rows of tiles are made together, column by column, so that their panels of A and B stay in the L2 cache.
GROUP = 8


def tiles_of(itemsize: int, precision: str) -> tuple[Tile, ...]:
    """The tiles that a product may take, the largest first."""
    return TILES[itemsize] if precision == "ieee" else MATRIX_TILES


def tile_of(m: int, n: int, itemsize: int, precision: str = "ieee") -> Tile:
    """The largest tile that cuts an ``m x n`` product into `ENOUGH_BLOCKS` blocks; if none does, the smallest."""
    tiles = tiles_of(itemsize, precision)
    for tile in tiles:
        if -(-m // tile.bm) * -(-n // tile.bn) >= ENOUGH_BLOCKS:
            return tile
    return tiles[-1]
