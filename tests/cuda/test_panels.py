"""Products of stored factors against NumPy: small integers, so that every order of summing gives the same bits.

On the emulated GPU, where a copy comes as late as it may and a product reads shared memory when it is waited for
(`emulator/execute.cpp`), or on a GPU: by warpgroups on one of compute capability 9.0.
"""

import functools

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels.cuda import blocking, driver, gemm, memory, mma, panel_gemm, panels, streams, wgmma
from fastbp.kernels.cuda.operands import Matrix
from fastbp.kernels.cuda.panel_tiles import Factors

from .test_gemm import check, check_high_and_low_parts, check_order_of_high_and_low_parts, check_rounding, runs

pytestmark = pytest.mark.skipif(driver.simulated or not runs(), reason="needs a GPU")
HERE = [way for way in panel_gemm.WAYS if not driver.simulated and runs() and way.runs_on(driver.compute_capability())]


@pytest.fixture(params=panels.FORMS)
def precision(request):
    return request.param


def kinds(others=(None,), turns=3):
    """Parameters: every precision, way, tile and one of ``others``; by default one of so many, in turn."""
    tiles = [(way, tile) for way in HERE for tile in way.TILES]
    return [
        pytest.param(
            precision, way, tile, other, marks=[pytest.mark.long] * ((i + j + k) % turns != 0),
            id="-".join(filter(None, (precision, way.NAME, tile.name, str(other or "")))),
        )
        for i, precision in enumerate(panels.FORMS)
        for j, (way, tile) in enumerate(tiles)
        for k, other in enumerate(others)
    ]  # fmt: skip


@pytest.fixture(params=HERE, ids=lambda way: way.NAME)
def way(request):
    return request.param


def check_panels(way, precision, trans, m, n, k, **options):
    check(trans, m, n, k, "float32", product=panel_gemm.gemm, precision=precision, way=way, **options)


def plan_of(precision, tile, k, parts=1):
    """A plan by a tile, of so many parts at most."""
    all_panels = panels.panels_of(precision, k)
    each = -(-all_panels // parts)
    return blocking.PanelPlan(tile, -(-all_panels // each), each)


@pytest.mark.parametrize(("precision", "way", "tile", "trans"), kinds(gemm.TRANSPOSITIONS))
def test_full_tiles_and_tails(precision, way, tile, trans):
    k = (tile.stages + 1) * panels.FORMS[precision].terms + 3  # every place of the pipeline is used again
    plan = plan_of(precision, tile, k)
    check_panels(way, precision, trans, tile.bm + 3, tile.bn + 5, k, beta=1, bias=True, plan=plan)


@pytest.mark.parametrize(("precision", "way", "tile", "_"), kinds())
def test_blocks_go_from_tile_to_tile(precision, way, tile, _, monkeypatch):
    """Copies run ahead into the next tile; as if the GPU had fewer multiprocessors than there are tiles."""
    monkeypatch.setattr(driver, "multiprocessors", lambda: 2)
    k = panels.FORMS[precision].terms + 1
    check_panels(way, precision, "NN", 4 * tile.bm + 1, tile.bn + 1, k, plan=plan_of(precision, tile, k))


PAIRS = [(way, *pair) for way in HERE for pair in blocking.with_smaller(way.TILES)]


@pytest.mark.parametrize(("way", "tile", "rest"), PAIRS, ids=lambda one: getattr(one, "NAME", getattr(one, "name", "")))
def test_two_tiles(way, tile, rest, monkeypatch):
    """The last rows by a smaller tile, in the same launch; panels of its first come while those of the larger go."""
    monkeypatch.setattr(driver, "multiprocessors", lambda: 3)
    precision = list(panels.FORMS)[PAIRS.index((way, tile, rest)) % len(panels.FORMS)]
    m, n, k = 2 * tile.bm + rest.bm + 3, tile.bn + 5, 2 * panels.FORMS[precision].terms + 1
    plan = plan_of(precision, tile, k)._replace(rest=rest, rows=2 * tile.bm)
    check_panels(way, precision, "NN", m, n, k, bias=True, epilogue="forward:silu", plan=plan)


@pytest.mark.parametrize(("precision", "way", "tile", "beta"), kinds((0, 1)))
def test_terms_in_parts(precision, way, tile, beta, monkeypatch):
    """The last part has fewer panels, and a block makes tiles of several parts."""
    monkeypatch.setattr(driver, "multiprocessors", lambda: 3)
    m, n, k = tile.bm + 3, tile.bn + 5, 4 * panels.FORMS[precision].terms + 3
    plan = plan_of(precision, tile, k, parts=3)
    assert plan.parts == 3
    ld = blocking.padded_columns(n)
    parts = Matrix(memory.to_device(np.full(3 * m * ld, np.nan, np.float32)), 0, ld)
    check_panels(way, precision, "TN", m, n, k, beta=beta, plan=plan, parts=parts)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 0), (1, 33, 17), (33, 1, 64), (0, 3, 2), (3, 0, 2)])
def test_narrow(way, precision, shape):
    check_panels(way, precision, "NT", *shape, bias=True)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_any_alignment(way, precision, trans):
    check_panels(way, precision, trans, 9, 70, 65, shift=1, bias=True)


def test_epilogues(way, precision):
    # The derivative of SiLU needs what is before it.
    check_panels(way, precision, "NN", 9, 7, 5, bias=True, epilogue="forward:silu")
    check_panels(way, precision, "NT", 9, 7, 5, epilogue="backward:relu")


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the largest number is rounded up to infinity
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_are_rounded(way, precision):
    check_rounding(precision, functools.partial(panel_gemm.gemm, way=way))


def test_factors_of_two_bfloat16_numbers(way):
    product = functools.partial(panel_gemm.gemm, way=way)
    check_high_and_low_parts(product)
    check_order_of_high_and_low_parts(product)


def test_chosen_where_it_is_asked_for(precision, monkeypatch):
    """Those by warpgroups before the others, where the GPU has the instructions."""
    for listed, capability, expected in (
        ("", (9, 0), None), ("wgmma", (9, 0), wgmma), ("wgmma", (10, 0), None), ("panels", (8, 0), mma),
        ("panels", (7, 5), None), ("panels,wgmma", (9, 0), wgmma), ("panels,wgmma", (10, 0), mma),
    ):  # fmt: skip
        monkeypatch.setenv("FASTBP_CUDA", listed)
        monkeypatch.setattr(driver, "compute_capability", functools.partial(tuple, capability))
        assert panel_gemm.chosen(precision, np.float32) is expected
        assert panel_gemm.chosen("ieee", np.float32) is None
        assert panel_gemm.chosen(precision, np.float64) is None


def test_pairs_where_they_are_asked_for(monkeypatch):
    for listed, names in ("wgmma", ["large", "medium", "small"]), ("wgmma,pairs", ["pair", "large", "medium", "small"]):
        monkeypatch.setenv("FASTBP_CUDA", listed)
        assert [tile.name for tile in panel_gemm.tiles_of(wgmma)] == names
        assert panel_gemm.tiles_of(mma) == mma.TILES


# ------------------------------------------------------------------------------------- stored factors
class Pair:
    """Memory for a matrix of up to (rows, columns) as both factors that it may be, whose elements are NaN before."""

    def __init__(self, precision, rows, columns):
        self.precision = precision
        sizes = panels.room(precision, rows, columns), panels.room(precision, columns, rows)
        self.memory = [memory.to_device(np.full(size, -1, np.int32)) for size in sizes]

    def of(self, rows, columns):
        along, across = self.memory
        return panels.Stored(
            panels.Panels(along, 0, panels.padded(rows)), panels.Panels(across, 0, panels.padded(columns))
        )

    def bytes(self, rows, columns):
        """What has been stored of a matrix, without what lies beyond its rows in the last eight, and behind it."""
        found = []
        for array, lines, terms in zip(self.memory, (rows, columns), (columns, rows), strict=True):
            count, ends = panels.panels_of(self.precision, terms), panels.padded(lines)
            stored = memory.to_host(array)[: count * ends * panels.ROW]
            lined = stored.reshape(count, ends // 8, panels.UNITS, 8, panels.UNIT).swapaxes(2, 3)
            found.append(lined.reshape(count, ends, panels.ROW)[:, :lines].tobytes())
        return found


def on_device(array):
    return Matrix(memory.to_device(np.ascontiguousarray(array, np.float32).ravel()), 0, array.shape[1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (70, 9), (9, 70), (130, 200)])
def test_how_factors_lie(precision, rows, columns):
    """Every number in its unit, high parts before low ones, and zeros for terms that do not exist."""
    form = panels.FORMS[precision]
    x = np.random.default_rng([rows, columns]).standard_normal((rows, columns), dtype=np.float32)
    pair = Pair(precision, rows, columns)
    panels.store(precision, rows, columns, on_device(x), pair.of(rows, columns), streams.stream())
    for found, factor in zip(pair.bytes(rows, columns), (x, x.T), strict=True):
        lines, terms = factor.shape
        filled = np.zeros((lines, panels.panels_of(precision, terms) * form.terms), np.float32)
        filled[:, :terms] = factor
        if precision == "tf32":
            numbers = np.frombuffer(found, np.float32)
            parts = [numbers.reshape(-1, lines, form.terms)]
        else:
            numbers = (np.frombuffer(found, np.uint16).astype(np.uint32) << 16).view(np.float32)
            parts = np.moveaxis(numbers.reshape(-1, lines, form.parts, form.terms), 2, 0)
        stored = sum(np.moveaxis(part, 0, 1).reshape(lines, -1).astype(np.float64) for part in parts)
        unit = {"tf32": 2**-11, "bf16": 2**-8, "bf16x3": 2**-16}[precision]
        assert (stored[:, terms:] == 0).all()
        assert (abs(stored - filled) <= unit * abs(filled)).all()


@pytest.mark.parametrize(("precision", "way", "tile", "shape"), kinds(((131, 269), (5, 70), (64, 32))))
def test_what_a_product_makes_is_stored(precision, way, tile, shape):
    """Out of its epilogue as by a launch after it, where there were other numbers before: those of a larger batch."""
    (m, n), rng, k, stream = shape, np.random.default_rng(shape), 17, streams.stream()
    a, b = (on_device(rng.standard_normal(shape)) for shape in ((m, k), (k, n)))
    c = Matrix(memory.to_device(np.full(m * n, np.nan, np.float32)), 0, n)
    pairs = [Pair(precision, 2 * m, n) for _ in range(2)]
    factors = Factors(
        panel_gemm._stored("a", precision, m, k, a, True, stream),
        panel_gemm._stored("b", precision, n, k, b, False, stream),
    )
    epilogue, plan = gemm.Epilogue("forward:tanh"), plan_of(precision, tile, k)
    made = factors._replace(made=pairs[0].of(m, n))
    panel_gemm.gemm("NN", (m, n, k), a, b, c, stream, epilogue, precision, plan, factors=made, way=way)
    panels.store(precision, m, n, c, pairs[1].of(m, n), stream)
    same = pairs[0].bytes(m, n) == pairs[1].bytes(m, n)  # whose difference pytest would look at for minutes
    assert same
    found = memory.to_host(c.data)
    panel_gemm.gemm("NN", (m, n, k), a, b, c, stream, epilogue, precision, plan, factors=factors, way=way)
    np.testing.assert_array_equal(memory.to_host(c.data), found)
