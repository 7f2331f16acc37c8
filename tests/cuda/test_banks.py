"""No product asks a bank of shared memory for two of its words at once, and fragments come as fast as they can."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from fastbp.kernels.cuda import blocking, cluster_plan, cluster_tensor_cores, gemm, mma, panel_tiles, wgmma

from . import banks

KINDS = (("float32", "ieee"), ("float64", "ieee"), ("float32", "tf32"), ("float32", "bf16"))
PRODUCTS = [
    pytest.param(dtype, precision, tile, trans, id=f"{dtype}-{precision}-{tile.name}-{trans}")
    for dtype, precision in KINDS
    for tile in blocking.tiles_of(np.dtype(dtype).itemsize, precision)
    for trans in gemm.TRANSPOSITIONS
]


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "elements"])
@pytest.mark.parametrize(("dtype", "precision", "tile", "trans"), PRODUCTS)
def test_no_two_words_of_a_bank(dtype, precision, tile, trans, vectors):
    """Panels on their way in, fragments, and the tile on its way out."""
    counts = banks.count(banks.trace(trans, dtype, tile, precision, vectors))
    assert {way for way, _ in counts} == {"store", "load"} | ({"copy"} if precision != "ieee" else set())
    assert {key: count for key, count in counts.items() if count.conflicts} == {}


@pytest.mark.parametrize(("dtype", "precision", "tile", "trans"), [p for p in PRODUCTS if p.values[1] == "ieee"])
def test_fragments_come_in_two_passes(dtype, precision, tile, trans):
    """Four registers a thread, of which two come in a cycle where threads in pairs have an address."""
    panel = banks.of_a_panel(trans, dtype, tile)
    width, warps = 16 // np.dtype(dtype).itemsize, len(banks.WARPS)
    fragments = panel["load", 16]
    assert fragments.requests == (tile.tm + tile.tn) // width * tile.bk * warps
    assert fragments.passes == 2 * fragments.requests


def test_what_the_profiler_counted():
    """50.5 million conflicts at 4096 x 4096 x 4096 on an H200, none in shared memory: rows of A in the first cache.

    A panel has 32 bytes of each row; where rows are 4096 numbers long, they lie in the same banks.
    """
    tile = blocking.TILES[4][0]
    panel = banks.of_a_panel("NN", "float32", tile, space="global")
    warps = 4096**3 // (tile.bm * tile.bn * tile.bk) * tile.threads // blocking.WARP
    assert panel["load", 16].conflicts * warps // len(banks.WARPS) == pytest.approx(50_509_141, rel=0.01)


# ------------------------------------------------------------------------------------------ clusters
@pytest.mark.parametrize("which", range(3), ids=["forward", "backward", "gradients"])
def test_factors_of_a_cluster(which):
    """For tensor cores: no two words of a bank, however long the rows are."""
    product = cluster_tensor_cores.products(lambda code, x, p: x, lambda code, x, p: 1)[which]
    for terms, columns in ((16, 32), (32, 16), (48, 64), (64, 48), (80, 128)):
        rows = 48
        lds = [cluster_plan.leading(count) for count in (terms, terms if which == 1 else columns, columns)]
        traces = []
        for thread in range(blocking.WARP):
            log = []
            shared, function = banks.Memory("shared", 4, log), banks.plain(product, banks.machine(log, thread, 4), {})
            a, b, c = ((i << 20, ld) for i, ld in enumerate(lds))
            if which == 2:
                function(shared, rows, terms, columns, *a, *b, *c, -1)
            else:
                bias = (-1,) if which == 0 else ()
                function(shared, rows, terms, columns, *a, *b, *bias, *c, *c, 0, 0.0)
            traces.append(log)
        factors = banks.count(traces)["load", 8]
        assert factors.conflicts == 0 < factors.requests


# ------------------------------------------------------------------------------------ stored factors
LANES = range(blocking.WARP)


@pytest.mark.parametrize("columns", [wgmma.PART, mma.TILES[0].bn // mma.WARPS_N])
def test_the_way_out_of_a_product_of_stored_factors(columns):
    """A warp's sums go in by 8 bytes, where its instruction left them, and come back by 16."""
    place = banks.plain(panel_tiles.place_in_part(columns), banks.machine([], 0, 4), {})
    for half, block in itertools.product((0, 8), range(0, columns, 8)):
        stores = [4 * place(lane // 4 + half, block + lane % 4 * 2) for lane in LANES]
        assert banks.conflicts(stores, 8) == 0
    for first in range(0, panel_tiles.PART_ROWS * columns // 4, blocking.WARP):
        chunks = [divmod(first + lane, columns // 4) for lane in LANES]
        assert banks.conflicts([4 * place(row, 4 * chunk) for row, chunk in chunks], 16) == 0


# ------------------------------------------------------------------------------------------ the counting
@pytest.mark.parametrize(
    ("addresses", "size", "passes", "conflicts"),
    [
        ([4 * i for i in LANES], 4, 1, 0),
        ([8 * i for i in LANES], 4, 2, 1),  # every second bank
        ([132 * i for i in LANES], 4, 1, 0),
        ([128 * i for i in LANES], 4, 32, 31),  # one bank
        ([64 for _ in LANES], 4, 1, 0),
        ([8 * i for i in LANES], 8, 2, 0),
        ([16 * i for i in LANES], 16, 4, 0),
        ([128 * i for i in LANES], 16, 32, 28),
        ([i % 4 * 16 for i in LANES], 16, 4, 0),  # no pair: as the page says that is named in `groups`
        ([i // 2 % 4 * 16 for i in LANES], 16, 2, 0),
        ([i // 4 * 16 for i in LANES], 16, 2, 0),
    ],
)
def test_passes_of_a_warp(addresses, size, passes, conflicts):
    assert (banks.passes(addresses, size), banks.conflicts(addresses, size)) == (passes, conflicts)
