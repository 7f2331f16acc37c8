"""The product of the CUDA backend against NumPy: small integers, so that every order of summing gives the same bits.

In the simulator (NUMBA_ENABLE_CUDASIM=1) or on a GPU. Outputs and the padding of inputs hold NaN: what is not a matrix
is neither used nor written.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels import layout, reference
from fastbp.kernels.cuda import blocking, driver, elementwise, gemm, linear, memory, streams
from fastbp.kernels.cuda.operands import Linear, Matrix


def runs():
    try:
        driver.require()
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(not runs(), reason="needs a GPU, or the simulator: NUMBA_ENABLE_CUDASIM=1")
DTYPES = ("float32", "float64")
TILES = [
    pytest.param(dtype, tile, id=f"{dtype}-{tile.name}")
    for dtype in DTYPES
    for tile in blocking.TILES[np.dtype(dtype).itemsize]
]


too_slow = pytest.mark.skipif(driver.simulated, reason="takes minutes in the simulator")


class Padded:
    """A matrix of small integers in a flat buffer of ``around``; ``shift`` elements off every boundary."""

    def __init__(self, rng, rows, columns, dtype, shift=0, around=np.nan):
        itemsize = np.dtype(dtype).itemsize
        self.shape = rows, columns
        self.ld = layout.leading_dimension(columns, itemsize) + shift
        self.offset = layout.ALIGNMENT // itemsize + shift
        self.memory = layout.aligned_empty(self.offset + rows * self.ld, dtype)
        self.around, self.memory[:] = around, around
        self.values = self.view(self.memory)
        self.values[...] = rng.integers(-4, 5, self.shape)

    def view(self, memory):
        return memory[self.offset :].reshape(-1, self.ld)[:, : self.shape[1]]

    def on_device(self):
        self.device = memory.to_device(self.memory)
        return Matrix(self.device, self.offset, self.ld)

    def from_device(self):
        """The matrix, after a check that nothing else was written."""
        found = memory.to_host(self.device)
        values = self.view(found).copy()
        self.view(found)[...] = self.around
        assert (found == self.around).all()
        return values


def flat(array, ld):
    """An array of the host as a matrix on the device."""
    return Matrix(memory.to_device(array.ravel()), 0, ld)


def check(
    trans, m, n, k, dtype, tile=None, shift=0, beta=0, bias=False, epilogue="none", parameter=0.5, product=gemm.gemm,
    **options,
):  # fmt: skip
    """One product with everything around it."""
    rng = np.random.default_rng([m, n, k])
    a = Padded(rng, *((k, m) if trans == "TN" else (m, k)), dtype, shift)
    b = Padded(rng, *((n, k) if trans == "NT" else (k, n)), dtype, shift)
    c, saved = (Padded(rng, m, n, dtype, shift, around=77) for _ in range(2))  # NaN would hide what NaN makes
    row = Padded(rng, 1, n, dtype, shift)
    left, right = a.values.T if trans == "TN" else a.values, b.values.T if trans == "NT" else b.values
    if options.get("precision") == "bf16x3":  # 257 takes two numbers; where both factors do, low by low is left out
        left[:, ::2] *= 257
        right[1::2] *= 257
    z = left @ right
    z = z + beta * c.values + bias * row.values
    if not beta:
        c.values[...] = np.nan

    step, _, activation = epilogue.partition(":")
    expected, expected_saved = z, saved.values.copy()
    if step == "forward":
        expected = getattr(reference, activation)(z, parameter)
        if activation in layout.SAVES_PRE_ACTIVATION:
            saved.values[...], expected_saved = np.nan, z
    elif step == "backward":
        expected = z * getattr(reference, f"{activation}_derivative")(saved.values, parameter)

    after = gemm.Epilogue(epilogue, beta, row.on_device() if bias else None, parameter, saved.on_device())
    operands = a.on_device(), b.on_device(), c.on_device()
    if tile:
        options["plan"] = blocking.Plan(tile, 1, k)
    count = product(trans, (m, n, k), *operands, streams.stream(), after, **options)
    if count > 1:
        gemm.add_up(count, m, n, beta, options["parts"], operands[2], streams.stream())
    tolerance = 0 if step == "none" else 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(c.from_device(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(saved.from_device(), expected_saved)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
@pytest.mark.parametrize(("dtype", "tile"), TILES)
def test_full_tile_and_tails(dtype, tile, trans):
    check(trans, tile.bm + 3, tile.bn + 5, 2 * tile.bk + 3, dtype, tile, beta=1, bias=True)


@pytest.mark.parametrize(
    ("dtype", "precision", "tile"),
    [
        ("float32", "ieee", blocking.TILES[4][1]),
        ("float64", "ieee", blocking.TILES[8][0]),
        ("float32", "tf32", blocking.MATRIX_TILES[1]),
        pytest.param("float32", "bf16", blocking.MATRIX_TILES[0], marks=too_slow),
    ],
)
def test_two_tiles(dtype, precision, tile):
    """The last rows by the smallest: fewer threads than the block has, but of the tensor cores as many."""
    rest = blocking.tiles_of(np.dtype(dtype).itemsize, precision)[-1]
    m, n, k = tile.bm + rest.bm + 3, tile.bn + 5, 2 * tile.bk + 3
    plan = blocking.Plan(tile, 1, k, rest, tile.bm)
    check("NN", m, n, k, dtype, bias=True, epilogue="forward:silu", plan=plan, precision=precision)
    check("NT", m, n, k, dtype, shift=1, epilogue="backward:relu", plan=plan, precision=precision)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
def test_two_tiles_are_taken(monkeypatch, trans):
    """As if the GPU had two multiprocessors: a medium tile for each, and a row that is left."""
    plans = []
    monkeypatch.setattr(gemm, "multiprocessors", lambda: 2)
    monkeypatch.setattr(gemm, "plan_of", lambda *product: plans.append(blocking.plan_of(*product)) or plans[-1])
    check(trans, 129, 64, 16, "float32", bias=True)
    assert plans == [blocking.Plan(blocking.TILES[4][1], 1, 16, blocking.TILES[4][2], 128)]


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
@pytest.mark.parametrize(("dtype", "tile"), TILES)
def test_any_alignment(dtype, tile, trans):
    check(trans, tile.bm + 1, 7, tile.bk + 1, dtype, tile, shift=1, bias=True)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 0), (1, 33, 17), (33, 1, 4), (16, 16, 32), (0, 3, 2), (3, 0, 2)])
def test_narrow(trans, shape):
    check(trans, *shape, "float32", bias=True)


def test_blocks_walk_over_every_tile():
    tile = blocking.TILES[4][-1]
    check("NN", (blocking.GROUP + 1) * tile.bm + 1, tile.bn + 1, 3, "float32", tile)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", layout.ACTIVATIONS)
def test_epilogues(activation, dtype):
    check("NN", 9, 7, 5, dtype, bias=True, epilogue=f"forward:{activation}")
    check("NT", 9, 7, 5, dtype, epilogue=f"backward:{activation}")


# In the simulator the tensor cores' instruction has the registers that the PTX manual gives it, and a copy is there
# when it is waited for, and no sooner. Small integers are exact in all precisions.
LARGE, MEDIUM, SMALL = blocking.MATRIX_TILES
SIMPLE_LARGE, *_, SIMPLE_SMALL = blocking.TILES[4]


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
@pytest.mark.parametrize("precision", ["tf32", "bf16", "bf16x3"])
def test_tensor_cores(trans, precision):
    k = (SMALL.stages + 1) * SMALL.bk + 3  # every place of the pipeline is used again
    check(trans, SMALL.bm + 3, 13, k, "float32", SMALL, beta=1, bias=True, precision=precision)


@pytest.mark.parametrize("trans", gemm.TRANSPOSITIONS)
@pytest.mark.parametrize(("precision", "tile"), [("tf32", MEDIUM), ("bf16", LARGE)])
def test_large_tiles_of_tensor_cores(trans, precision, tile):
    check(trans, tile.bm - 3, tile.bn - 5, tile.stages * tile.bk + 5, "float32", tile, precision=precision)


@pytest.mark.parametrize("k", [1, 16, 17])
@pytest.mark.parametrize(("trans", "precision"), [("NN", "tf32"), ("NT", "bf16"), ("TN", "tf32")])
def test_tensor_cores_with_any_alignment(trans, precision, k):
    check(trans, SMALL.bm + 1, 7, k, "float32", SMALL, shift=1, bias=True, precision=precision)


def check_rounding(precision, product=gemm.gemm):
    """What a factor is rounded to, of numbers on both sides of a tie, and of those that need care."""
    bits = {"tf32": 10, "bf16": 7}[precision]
    unit = 2.0**-bits
    tie = 1 + unit if precision == "tf32" else 1.0  # away from 0; to even
    cases = {
        1: 1, 1 + unit: 1 + unit, 1 + unit / 2 + unit / 64: 1 + unit, 1 + unit / 4: 1, -1 - 3 * unit / 4: -1 - unit,
        1 + unit / 2: tie, -1 - unit / 2: -tie, 1 + 3 * unit / 2: 1 + 2 * unit, 2 - unit / 4: 2, 0: 0,
        2.0**-126 * (1 + unit): 2.0**-126 * (1 + unit), float(np.finfo(np.float32).max): np.inf,
        np.inf: np.inf, -np.inf: -np.inf,
    }  # fmt: skip
    nan = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    x = np.concatenate([np.array(list(cases), np.float32), nan])
    expected = np.concatenate([np.array(list(cases.values()), np.float32), nan])
    one, out = np.ones(1, np.float32), memory.to_device(np.empty(len(x), np.float32))
    for trans, factors in (("NN", (x, one)), ("TN", (one, x))):
        m, n = len(factors[0]), len(factors[1])
        a, b = flat(factors[0], m if trans == "TN" else 1), flat(factors[1], n)
        product(trans, (m, n, 1), a, b, Matrix(out, 0, n), streams.stream(), precision=precision)
        np.testing.assert_array_equal(memory.to_host(out), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the largest number is rounded up to infinity
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tensor_cores_round_their_factors(precision):
    check_rounding(precision)


def check_high_and_low_parts(product=gemm.gemm):
    """High and low parts are multiplied, but low by low; ties of both go to even."""
    unit = 2.0**-7
    values = [1, 1 + unit / 4, 1 - unit / 4, 1 + unit / 2, -1 - 3 * unit / 2, 3 + 2.0**-12, 1 + 2.0**-17 + unit, 0]
    x = np.array(values, np.float32)
    high = np.array([1, 1, 1, 1, -1 - 2 * unit, 3, 1 + unit, 0])
    low = (x - high).astype(np.float64)  # all are numbers of bfloat16
    out = memory.to_device(np.empty(len(x) ** 2, np.float32))
    a, b = flat(x, 1), flat(x, len(x))
    product("NN", (len(x), len(x), 1), a, b, Matrix(out, 0, len(x)), streams.stream(), precision="bf16x3")
    expected = np.outer(high, high) + np.outer(high, low) + np.outer(low, high)
    np.testing.assert_allclose(memory.to_host(out).reshape(expected.shape), expected, rtol=2.0**-23)
    assert np.abs(expected - np.outer(high, high)).max() > 2.0**-7


def check_order_of_high_and_low_parts(product=gemm.gemm):
    """16 terms are multiplied three times, high by high, high by low, low by high, before the next are.

    Their sums here are 2**24, 1 and -1, then -1 of the next terms: 1 more than 2**24 is no number of float32.
    """
    x, y = np.zeros((2, 32), np.float32)
    x[:3], y[:3] = (4096, 1, -257), (4096, 257, 1)  # 257 = 256 + 1
    x[16], y[16] = -1, 1
    out = memory.to_device(np.empty(1, np.float32))
    product("NN", (1, 1, 32), flat(x, 32), flat(y, 1), Matrix(out, 0, 1), streams.stream(), precision="bf16x3")
    assert memory.to_host(out)[0] == 2**24 - 2


def test_factors_of_two_bfloat16_numbers():
    check_high_and_low_parts()
    check_order_of_high_and_low_parts()


def test_tensor_cores_are_for_float32():
    with pytest.raises(ValueError, match="'tf32' is none of the GPU's for float64"):
        gemm.gemm_kernel("NN", "float64", "none", "tf32")


@pytest.mark.parametrize(
    ("dtype", "trans", "precision"),
    [(dtype, trans, "ieee") for dtype in DTYPES for trans in gemm.TRANSPOSITIONS]
    + [("float32", "NN", "tf32"), ("float32", "NT", "bf16"), ("float32", "TN", "tf32")],
)
def test_the_tile_changes_no_bit(dtype, trans, precision):
    rng, m, n, k = np.random.default_rng(3), 5, 6, 37
    a, b = (rng.standard_normal(count).astype(dtype) for count in (m * k, n * k))
    lda, ldb = m if trans == "TN" else k, k if trans == "NT" else n
    outcomes = set()
    for tile in blocking.tiles_of(a.itemsize, precision):
        c = memory.to_device(np.empty(m * n, dtype))
        operands = flat(a, lda), flat(b, ldb), Matrix(c, 0, n)
        plan = blocking.Plan(tile, 1, k)
        gemm.gemm(trans, (m, n, k), *operands, streams.stream(), precision=precision, plan=plan)
        outcomes.add(memory.to_host(c).tobytes())
    assert len(outcomes) == 1


@pytest.mark.skipif(driver.simulated, reason="the simulator rounds a product before it adds it, and so makes no -0.0")
@pytest.mark.parametrize("tile", blocking.TILES[4], ids=lambda tile: tile.name)
def test_terms_that_do_not_exist_leave_the_sign_of_zero(tile):
    a, b, c = (np.full(1, x, np.float32) for x in (-1e-30, 1e-30, 1))
    c = memory.to_device(c)
    plan = blocking.Plan(tile, 1, 1)
    gemm.gemm("NN", (1, 1, 1), flat(a, 1), flat(b, 1), Matrix(c, 0, 1), streams.stream(), plan=plan)
    assert memory.to_host(c)[0] == 0
    assert np.signbit(memory.to_host(c)[0])


def test_a_row_is_the_same_in_any_batch(monkeypatch):
    rng, fan_in, fan_out = np.random.default_rng(4), 37, 6
    x, weight = (rng.standard_normal(s, dtype=np.float32) for s in ((65, fan_in), (fan_in, fan_out)))

    def forward(rows):
        out = memory.to_device(np.empty(rows * fan_out, np.float32))
        layer = Linear("identity", 0.0, fan_in, fan_out, "ieee")
        factors, target = (flat(x[:rows], fan_in), flat(weight, fan_out)), Matrix(out, 0, fan_out)
        linear.linear_forward(layer, rows, *factors, None, target, None, streams.stream())
        return memory.to_host(out)

    # As it is on a GPU that is faster with other tiles.
    plan_of, tiles = gemm.plan_of, iter((SIMPLE_SMALL, SIMPLE_LARGE))
    monkeypatch.setattr(gemm, "plan_of", lambda *product: plan_of(*product)._replace(tile=next(tiles)))
    outcomes = [forward(rows) for rows in (1, 65)]
    np.testing.assert_array_equal(outcomes[0], outcomes[1][:fan_out])


# ---------------------------------------------------------------------------------------- parts of k
def weight_gradient(x, grad, plan, beta=0, before=0, precision="ieee", ld=None):
    """``x.T @ grad`` in the parts that a plan has."""
    (k, m), n, dtype = x.shape, grad.shape[1], x.dtype
    ld = ld or n
    out = memory.to_device(np.full(m * ld, before, dtype))
    parts = flat(np.full((plan.parts * m, blocking.padded_columns(n)), np.nan, dtype), blocking.padded_columns(n))
    operands, after = (flat(x, m), flat(grad, n), Matrix(out, 0, ld)), gemm.Epilogue(beta=beta)
    if gemm.gemm("TN", (m, n, k), *operands, streams.stream(), after, precision, plan, parts) > 1:
        gemm.add_up(plan.parts, m, n, beta, parts, operands[2], streams.stream())
    return memory.to_host(out).reshape(m, ld)[:, :n]


@pytest.mark.parametrize(("m", "n", "k", "terms"), [(5, 6, 100, 48), (36, 8, 64, 32), (3, 1, 33, 16)])
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "ieee"), ("float64", "ieee"), ("float32", "tf32")])
def test_terms_in_parts(dtype, precision, m, n, k, terms):
    rng = np.random.default_rng([m, n, k])
    x, grad = (rng.integers(-4, 5, (k, width)).astype(dtype) for width in (m, n))
    tile = blocking.tiles_of(x.itemsize, precision)[-1]
    plan = blocking.Plan(tile, -(-k // terms), terms)
    for beta in (0, 1):
        found = weight_gradient(x, grad, plan, beta, 7, precision, ld=n + 3)
        np.testing.assert_array_equal(found, x.T @ grad + 7 * beta)


def test_parts_are_added_up_in_their_order():
    """So are the terms of each: the sum has the bits that this order gives, whatever the tile."""
    rng = np.random.default_rng(5)
    x, grad = (rng.standard_normal((80, width), dtype=np.float32) for width in (5, 6))
    tiles, expected = blocking.TILES[4], 0
    for first in range(0, 80, 32):
        part = slice(first, first + 32)
        whole = blocking.Plan(tiles[-1], 1, len(x[part]))
        expected = expected + weight_gradient(x[part], grad[part], whole)
    for tile in tiles:
        found = weight_gradient(x, grad, blocking.Plan(tile, 3, 32))
        np.testing.assert_array_equal(found, expected)


def test_only_the_gradient_of_a_weight_is_cut(monkeypatch):
    """A row's bits, forward and back, do not depend on its batch, nor on the GPU."""
    asked = {}

    def plan_of(shape, cut, *others):
        asked[shape] = cut
        return blocking.plan_of(shape, cut, *others)

    monkeypatch.setattr(gemm, "plan_of", plan_of)
    n, fan_in, fan_out = 130, 3, 2
    x, weight, grad = (flat(np.ones(s, np.float32), s[1]) for s in ((n, fan_in), (fan_in, fan_out), (n, fan_out)))
    out = Matrix(memory.to_device(np.empty(n * fan_in, np.float32)), 0, fan_in)
    gradient = Matrix(memory.to_device(np.zeros(fan_in * fan_out, np.float32)), 0, fan_out)
    scratch = memory.to_device(np.empty(linear.params_scratch(n, fan_in, fan_out), np.float32))
    layer, stream = Linear("identity", 0.0, fan_in, fan_out, "ieee"), streams.stream()
    linear.linear_forward(layer, n, x, weight, None, out, None, stream)
    linear.linear_backward_input(layer, n, grad, weight, None, out, stream)
    linear.linear_backward_params(layer, n, x, grad, 0, gradient, None, scratch, stream)
    assert asked == {(n, fan_out, fan_in): False, (n, fan_in, fan_out): False, (fan_in, fan_out, n): True}
    np.testing.assert_array_equal(memory.to_host(gradient.data), np.full(fan_in * fan_out, n))


@pytest.mark.skipif(driver.simulated, reason="the simulator asks for no types")
def test_a_launch_with_other_arguments_than_the_kernel_has():
    launcher = elementwise.activation_forward_kernel("tanh", np.dtype(np.float32))[1, 32, streams.stream()]
    single, double = (flat(np.ones((2, 3), dtype), 3) for dtype in DTYPES)
    with pytest.raises(TypeError, match="compiled for arrays of float32, got float64"):
        launcher(2, 3, single, double, 0.0)
    with pytest.raises(TypeError, match="argument"):
        launcher(2, 3, single, single)
