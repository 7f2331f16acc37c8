"""The model of a product's time, by which tiles and parts of k are taken: over a grid of sizes and GPUs."""

import functools
import itertools

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from fastbp.kernels.cuda import blocking, panels

SIDES, WIDTHS = (16, 64, 256, 512, 1024, 4096), (64, 256, 1024, 4096)
STEP = 64  # from one size to its neighbour
SIZES = range(STEP, 4097, STEP)
GPUS = (60, 108, 132, 148)  # multiprocessors
KINDS = ((4, "ieee"), (8, "ieee"), (4, "tf32"), (4, "bf16"), (4, "bf16x3"))


def cycles(shape, cut, itemsize=4, precision="ieee", multiprocessors=132):
    plan = blocking.plan_of(shape, cut, itemsize, precision, multiprocessors)
    return blocking.predicted_cycles(plan, shape, itemsize, precision, multiprocessors)


def cliffs(shapes, *options):
    """How much longer a product takes than its neighbour, beyond its share of work more."""
    found = []
    for (less, shape_less), (more, shape_more) in itertools.pairwise(shapes):
        found.append(cycles(shape_more, *options) / cycles(shape_less, *options) * less / more)
    return found


@pytest.mark.parametrize("multiprocessors", GPUS)
@pytest.mark.parametrize(("itemsize", "precision"), KINDS)
def test_no_cliff_of_the_gradient_of_a_weight(itemsize, precision, multiprocessors):
    """Over the rows of a batch."""
    for m, n in itertools.product(SIDES, WIDTHS):
        found = cliffs([(k, (m, n, k)) for k in SIZES], True, itemsize, precision, multiprocessors)
        assert max(found) < 1.1, (m, n, max(found))


# Of neighbours the worst cliff, and the shares of those above a tenth and above a fifth, on any of `GPUS`.
FORWARD = {
    (4, "ieee"): (1.24, 0.032, 0.007),
    (8, "ieee"): (1.47, 0.049, 0.019),
    (4, "tf32"): (1.46, 0.054, 0.020),
    (4, "bf16"): (1.44, 0.048, 0.020),
    (4, "bf16x3"): (1.46, 0.057, 0.021),
}


@pytest.mark.parametrize("multiprocessors", GPUS)
@pytest.mark.parametrize(("itemsize", "precision"), KINDS)
def test_cliffs_of_forward_and_input_gradient(itemsize, precision, multiprocessors):
    """Where all terms of an element are one chain, a tile more than the GPU has room for takes a round of its own.

    So the rows of the last round may be made by the smallest tile, beside those of a larger one.
    """
    found, (most, tenths, fifths) = [], FORWARD[itemsize, precision]
    for n, k in itertools.product(SIDES, WIDTHS):
        found += cliffs([(m, (m, n, k)) for m in SIZES], False, itemsize, precision, multiprocessors)
    assert max(found) < most
    assert sum(cliff > 1.1 for cliff in found) < tenths * len(found)
    assert sum(cliff > 1.2 for cliff in found) < fifths * len(found)


@pytest.mark.parametrize("multiprocessors", GPUS)
@pytest.mark.parametrize(("itemsize", "precision"), KINDS)
def test_rows_of_two_tiles_are_all_rows(itemsize, precision, multiprocessors):
    """The larger has whole tiles, fewer than all rows, and no more than the GPU has room for beside the others."""
    two = 0
    for m, n, k in itertools.product(SIZES, SIDES, WIDTHS):
        plan = blocking.plan_of((m + 1, n, k), False, itemsize, precision, multiprocessors)
        first, then = blocking.blocks_of(plan, m + 1, n)
        if plan.rest:
            two += 1
            assert plan.rest.bm < plan.tile.bm
            assert plan.rows % plan.tile.bm == 0 < plan.rows <= m
            assert (first, then) == (
                plan.rows // plan.tile.bm * -(-n // plan.tile.bn),
                -(-(m + 1 - plan.rows) // plan.rest.bm) * -(-n // plan.rest.bn),
            )
        else:
            assert (first, then) == (-(-(m + 1) // plan.tile.bm) * -(-n // plan.tile.bn), 0)
    assert two > 20


def test_the_worst_cliff_of_one_tile():
    """2112 and 2176 rows of a layer 4096-512: a third round of tiles for 64 rows, or some smaller ones beside two."""
    less, more = (blocking.plan_of((rows, 512, 4096), False, 4, "ieee", 132) for rows in (2112, 2176))
    assert (less.rest, more.tile, more.rest) == (None, *blocking.TILES[4][1:])
    one = blocking.predicted_cycles(more._replace(rest=None), (2176, 512, 4096), 4, "ieee", 132)
    assert one > 1.4 * cycles((2112, 512, 4096), False) > 1.2 * cycles((2176, 512, 4096), False)


@pytest.mark.parametrize("multiprocessors", GPUS[1:])
@pytest.mark.parametrize("shape", [(784, 256, 1024), (256, 128, 1024), (128, 10, 1024), (64, 64, 256), (300, 10, 128)])
def test_the_gradient_of_a_small_layer_is_cut(shape, multiprocessors):
    assert cycles(shape, True, 4, "ieee", multiprocessors) < 0.75 * cycles(shape, False, 4, "ieee", multiprocessors)


def test_what_is_large_is_not_cut():
    assert blocking.plan_of((4096, 4096, 1024), True, 4, "ieee", 132) == blocking.Plan(blocking.TILES[4][0], 1, 1024)


@pytest.mark.parametrize("k", [0, 1, 63, 127, 128, 129, 1000, 4097, 100_000])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (64, 10), (784, 256), (3000, 3000)])
def test_parts_are_all_of_k(m, n, k):
    for itemsize, precision in KINDS:
        tile, parts, terms, rest, _ = blocking.plan_of((m, n, k), True, itemsize, precision, 132)
        assert rest is None
        assert (parts - 1) * terms < max(k, 1) <= max(parts * terms, 1)
        assert parts == 1 or terms % tile.bk == terms % blocking.TERMS_UNIT == 0
        most = blocking.most_parts((m, n, k))
        assert parts <= most <= blocking.most_parts((m, n, k + 100))
        assert most == 1 or most * m * blocking.padded_columns(n) <= blocking.PARTS_ELEMENTS
        assert blocking.plan_of((m, n, k), False, itemsize, precision, 132)[1:3] == (1, k)


def test_the_measured_product():
    """4096 x 4096 x 4096 in float32 took 3.149 ms on an H200, at 1.755 GHz; it is what SLACK comes from."""
    seconds = cycles((4096, 4096, 4096), False) / 1.755e9
    assert seconds == pytest.approx(3.149e-3, rel=0.05)


# ------------------------------------------------------------------------------- products by warpgroups
BY_THEMSELVES = blocking.PANEL_TILES[1:]  # blocks that make a tile


@pytest.mark.parametrize("multiprocessors", GPUS)
@pytest.mark.parametrize("k", [0, 1, 64, 65, 1000, 4097, 100_000])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (64, 10), (784, 256), (3000, 3000)])
@pytest.mark.parametrize("tiles", [blocking.PANEL_TILES, blocking.WARP_TILES], ids=["warpgroups", "warps"])
def test_parts_are_all_panels(tiles, m, n, k, multiprocessors):
    for form in panels.FORMS.values():
        shape, all_panels, options = (m, n, k), -(-k // form.terms), (form.terms, len(form.products), multiprocessors)
        _, parts, each, rest, _ = blocking.panel_plan(tiles, shape, True, *options)
        assert rest is None
        assert (parts - 1) * each < max(all_panels, 1) <= max(parts * each, 1)
        assert parts <= blocking.most_parts((m, n, k))
        assert blocking.panel_plan(tiles, shape, False, *options).parts == 1


# Of neighbours the worst cliff, and the shares of those above a tenth and above a fifth.
STORED = {
    ("pairs", 132): (1.33, 0.016, 0.005),
    ("warpgroups", 132): (1.33, 0.016, 0.005),
    ("warps", 108): (1.92, 0.032, 0.019),
    ("warps", 148): (1.62, 0.022, 0.009),
}


@pytest.mark.parametrize(("way", "multiprocessors"), STORED, ids=str)
def test_cliffs_of_stored_factors(way, multiprocessors):
    """Rows beyond whole rounds of a tile are made by a smaller one, in the same launch: all rows, by whole tiles."""
    tiles = {"pairs": blocking.PANEL_TILES, "warpgroups": BY_THEMSELVES, "warps": blocking.WARP_TILES}[way]
    found, two, (most, tenths, fifths) = [], 0, STORED[way, multiprocessors]
    for form, n, k in itertools.product(panels.FORMS.values(), SIDES, WIDTHS):
        taken = []
        for m in SIZES:
            kind = len(form.products), multiprocessors
            plan = blocking.panel_plan(tiles, (m, n, k), False, form.terms, *kind)
            taken.append(blocking.cycles_of_panels(plan, (m, n, k), *kind))
            if plan.rest:
                two += 1
                assert plan.rest in tiles[tiles.index(plan.tile) + 1 :]
                assert plan.rows % plan.tile.bm == 0 < plan.rows < m
        pairs = itertools.pairwise(zip(SIZES, taken, strict=True))
        found += [after / before * less / more for (less, before), (more, after) in pairs]
    assert two > 100
    assert max(found) < most
    assert sum(cliff > 1.1 for cliff in found) < tenths * len(found)
    assert sum(cliff > 1.2 for cliff in found) < fifths * len(found)


def test_tiles_of_panels():
    """Few tiles are smaller ones, and the gradient of a small layer is cut; large products have large tiles, uncut."""
    pair, large, *smaller = blocking.PANEL_TILES
    form, size = panels.FORMS["bf16"], (4096, 4096, 4096)
    kind = {"terms": form.terms, "instructions": 4, "multiprocessors": 132}
    for tiles, largest in (BY_THEMSELVES, large), (blocking.PANEL_TILES, pair):
        plan = functools.partial(blocking.panel_plan, tiles, **kind)
        assert plan((1024, 256, 784), False).tile in smaller
        assert plan((784, 256, 8192), True).parts > 4
        assert plan(size, False) == plan(size, True) == blocking.PanelPlan(largest, 1, 64)


def test_what_two_blocks_copy_together():
    """A third less leaves the cache of memory, which is what bounds the product where all multiprocessors are busy."""
    pair, large = blocking.PANEL_TILES[:2]
    of_pair, of_large = (blocking.cycles_of_stage(tile, 4, 132) for tile in (pair, large))
    assert of_pair == pytest.approx(2 / 3 * of_large)
    assert of_pair > 4 * 128 * 256 / large.rate  # its instructions
    assert blocking.cycles_of_stage(pair, 6, 132) == blocking.cycles_of_stage(pair, 6, 2) == 6 * 128 * 256 / large.rate
