"""The model of a product's time, by which tiles and parts of k are taken: over a grid of sizes and GPUs."""

import itertools

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from fastbp.kernels.cuda import blocking

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


@pytest.mark.parametrize(
    ("precision", "most", "share"), [("ieee", 1.46, 0.045), ("tf32", 1.73, 0.04), ("bf16", 1.63, 0.035)]
)
def test_cliffs_of_forward(precision, most, share):
    """Where all terms of an element are one chain, a block more than the GPU has room for takes a round of its own.

    What the tiles can do about it: few neighbours differ by more than a tenth.
    """
    found = []
    for n, k in itertools.product(SIDES, WIDTHS):
        found += cliffs([(m, (m, n, k)) for m in SIZES], False, 4, precision)
    assert max(found) < most
    assert sum(cliff > 1.1 for cliff in found) < share * len(found)


@pytest.mark.parametrize("multiprocessors", GPUS[1:])
@pytest.mark.parametrize("shape", [(784, 256, 1024), (256, 128, 1024), (128, 10, 1024), (64, 64, 256)])
def test_the_gradient_of_a_small_layer_is_cut(shape, multiprocessors):
    assert cycles(shape, True, 4, "ieee", multiprocessors) < 0.75 * cycles(shape, False, 4, "ieee", multiprocessors)


def test_what_is_large_is_not_cut():
    assert blocking.plan_of((4096, 4096, 1024), True, 4, "ieee", 132) == (blocking.TILES[4][0], 1, 1024)


@pytest.mark.parametrize("k", [0, 1, 63, 127, 128, 129, 1000, 4097, 100_000])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (64, 10), (784, 256), (3000, 3000)])
def test_parts_are_all_of_k(m, n, k):
    for itemsize, precision in KINDS:
        tile, parts, terms = blocking.plan_of((m, n, k), True, itemsize, precision, 132)
        assert (parts - 1) * terms < max(k, 1) <= max(parts * terms, 1)
        assert parts == 1 or terms % tile.bk == terms % blocking.TERMS_UNIT == 0
        size = parts * m * blocking.padded_columns(n)
        assert parts == 1 or size <= blocking.parts_size(m, n, k) <= blocking.PARTS_ELEMENTS
        assert blocking.parts_size(m, n, k) <= blocking.parts_size(m, n, k + 100)
        assert blocking.plan_of((m, n, k), False, itemsize, precision, 132)[1:] == (1, k)


def test_the_measured_product():
    """4096 x 4096 x 4096 in float32 took 3.149 ms on an H200, at 1.755 GHz; it is what SLACK comes from."""
    seconds = cycles((4096, 4096, 4096), False) / 1.755e9
    assert seconds == pytest.approx(3.149e-3, rel=0.05)
