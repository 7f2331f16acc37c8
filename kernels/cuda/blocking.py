"""Every size the CUDA products use, on one screen: the shape of a product -> the tiles of blocks, warps and threads."""

from typing import NamedTuple

WARP = 32
VECTOR_BYTES = 16  # the widest access of a thread
SECTOR_BYTES = 32  # the least that a row of global memory is read by


class Tile(NamedTuple):
    """A block of threads makes ``bm x bn`` elements of C, ``bk`` terms at a time.

    A block has ``warps_m x warps_n`` warps. A thread holds ``tm x tn`` elements in registers, and makes each from all
    its terms in their order: so every tile gives the same bits.
    """

    name: str
    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    warps_m: int
    warps_n: int
    blocks: int  # that fit a multiprocessor: the compiler may use 65536 / (threads * blocks) registers a thread
    stages: int = 2  # places for a panel of A and of B in shared memory

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
        """Threads of a warp along m; the others lie along n."""
        return self.warp_m // self.tm

    @property
    def lanes_n(self) -> int:
        return self.warp_n // self.tn


# By bytes of an element, the largest first. What a tile must load falls with its sides, and with the sides of a
# thread's part what it reads of shared memory: 8 x 8 elements are 64 multiply-adds for four 16-byte loads, and leave
# registers for two blocks of 256 threads, whose waits fill each other's. `bk` is as many terms as make the main loop
# 5 to 10 KB of code, less than the 12 KB of the innermost instruction cache. "medium" is for products that "large"
# cannot spread over the GPU; "small" for those of small batches. No tile shares the terms of a sum among warps: its
# bits would depend on the tile.
# float64 takes two registers an element: no 8 x 8, and half as many blocks.
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
# For the tensor cores.
MATRIX_TILES = (
    Tile("large", 128, 128, 16, 8, 16, 2, 2, 2, 3),
    Tile("medium", 64, 64, 16, 4, 8, 2, 2, 4, 4),
    Tile("small", 32, 32, 16, 2, 4, 2, 2, 4, 8),
)
# Blocks that a product should have, to give each multiprocessor of the GPUs of today (108 to 148) one.
ENOUGH_BLOCKS = 128
# Shared memory that a tile goes to C through; as much as the panels take, so that it costs no block its place.
EPILOGUE_BYTES = 24 * 1024
# Rows of tiles that are worked through together, column by column, so that their A and the columns' B stay in L2.
GROUP = 8


def tiles_of(itemsize: int, precision: str) -> tuple[Tile, ...]:
    """The tiles of a product, the largest first."""
    return TILES[itemsize] if precision == "ieee" else MATRIX_TILES


def tile_of(m: int, n: int, itemsize: int, precision: str = "ieee") -> Tile:
    """The largest tile that gives enough blocks, else the smallest."""
    tiles = tiles_of(itemsize, precision)
    for tile in tiles:
        if -(-m // tile.bm) * -(-n // tile.bn) >= ENOUGH_BLOCKS:
            return tile
    return tiles[-1]
