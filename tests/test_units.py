"""The units that multiply numbers of bfloat16: their bits, beside NumPy doing what the manual says, and who chooses.

Where the CPU has not got a unit, the same kernels run with vector instructions for its own (``-emulated``): addresses,
forms, edges and bits are those of the unit. The machine code of the real ones is read in test_assembly.py.
"""

import concurrent.futures
import json
import signal
import threading

import numpy as np
import pytest

import fastbp
from fastbp.kernels import cpu, layout
from fastbp.kernels.cpu import blocking, context, formats, units

from .conftest import bfloat16_units
from .contract import cases
from .contract.cases import assert_same_bits
from .test_distributed import on_threads

each_unit = pytest.mark.parametrize("unit", bfloat16_units(), indirect=True)
of_pairs = pytest.mark.parametrize("unit", bfloat16_units()[1:], indirect=True)
FLOAT32 = np.dtype("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(11)


# ------------------------------------------------------------------------------------- what the manual says
def flushed(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def nearest(x):
    """The nearest number of bfloat16, ties to even, by its bits."""
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), x, rounded)


def multiply_add(x, y, z):
    """One rounding, as the product of two numbers of bfloat16 is exact in float32."""
    return flushed(x * y + z)


def by_pairs(a, b, c):
    """``vdpbf16ps``: the odd term, then the even one."""
    c = flushed(c)
    for t in range(0, a.shape[1], 2):
        for term in (t + 1, t):
            c = multiply_add(a[:, term, None], b[term], c)
    return c


def by_tiles(a, b, c):
    """``tdpbf16ps``: of 32 terms the even and the odd ones, each from 0, then both, then what there was."""
    for t in range(0, a.shape[1], 32):
        sums = [np.zeros_like(c), np.zeros_like(c)]
        for q in range(t, t + 32, 2):
            for odd in range(2):
                sums[odd] = multiply_add(a[:, q + odd, None], b[q + odd], sums[odd])
        c = flushed(flushed(c) + flushed(sums[0] + sums[1]))
    return c


def expected(unit, a, b, origin, precision):
    """``origin + a b`` with the bits of the unit."""
    k = a.shape[1]
    a, b = np.pad(a, ((0, 0), (0, -k % 32))), np.pad(b, ((0, -k % 32), (0, 0)))
    multiply = by_tiles if units.has_tiles(unit) else by_pairs
    high = nearest(flushed(a)), nearest(flushed(b))
    products = [high]
    if precision == "bf16x3":
        low = nearest(flushed(a - high[0])), nearest(flushed(b - high[1]))
        products += [(high[0], low[1]), (low[0], high[1])]
    c = np.broadcast_to(origin, (len(a), b.shape[1])).astype(np.float32)
    for left, right in products:
        c = multiply(left, right, c)
    return c


@of_pairs
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 1, 1), (3, 5, 2), (16, 16, 32), (17, 33, 31), (32, 32, 64), (45, 70, 33), (64, 31, 96), (13, 49, 130)],
)
def test_bits_are_those_of_the_manual(unit, precision, m, n, k, rng):
    """Whole tiles, edges of every kind, and what a product is added to; cancellation makes an order of sums visible."""
    shapes = (m, k), (k, n)
    a, b = (np.ldexp(rng.standard_normal(s, dtype=np.float32), rng.integers(-9, 9, s, np.int32)) for s in shapes)
    bias, before = rng.standard_normal(n, dtype=np.float32), rng.standard_normal((m, n), dtype=np.float32)
    code, zero = layout.PRECISIONS.index(precision), np.zeros((), np.float32)
    out = np.full((m, n), np.nan, np.float32)
    cpu.linear_forward(a, b, bias, 0, 0.0, out, out, code)
    assert_same_bits(out, expected(unit, a, b, bias, precision))
    cpu.linear_backward_input(a, np.ascontiguousarray(b.T), out, 0, 0.0, out, code)
    without = expected(unit, a, b, zero, precision)
    assert_same_bits(out, without)
    out[:] = before
    x, bias_gradient = np.ascontiguousarray(a.T), np.full(n, np.nan, np.float32)
    cpu.linear_backward_params(x, b, 1, out, bias, code)
    assert_same_bits(out, expected(unit, a, b, before, precision))
    cpu.linear_backward_params(x, b, 0, out, bias_gradient, code)
    assert_same_bits(out, without)


@of_pairs
def test_nothing_beyond_the_result_is_written(unit, rng):
    """And rows that are shorter than their distance keep what is between them."""
    for m, n, k in ((5, 3, 9), (33, 40, 65)):
        a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
        around = np.full((m + 2, n + 9), 7, np.float32)
        out = around[1:-1, 4 : n + 4]
        cpu.linear_forward(a, b, None, 0, 0.0, out, out, layout.PRECISIONS.index("bf16"))
        assert_same_bits(out, expected(unit, a, b, np.float32(0), "bf16"))
        out[:] = 7
        assert (around == 7).all()


@of_pairs
def test_what_is_no_usual_number(unit):
    """Subnormal numbers are 0, as factors and as sums; infinity and NaN go their way, and no further than their row."""
    tiny, code = np.finfo(np.float32).tiny, layout.PRECISIONS.index("bf16")
    a = np.array([[tiny / 2, 1], [tiny, 0.5], [-tiny, 0.25], [np.inf, 1], [np.inf, -np.inf], [np.nan, 1], [-0.0, -0.0]])
    out = np.empty((len(a), 1), np.float32)
    cpu.linear_forward(a.astype(np.float32), np.ones((2, 1), np.float32), None, 0, 0.0, out, out, code)
    np.testing.assert_array_equal(out[:, 0], [1, 0.5, 0.25, np.inf, np.nan, np.nan, 0])
    half = np.array([[0.5, 0], [0, 0]], np.float32)
    product = np.empty((2, 2), np.float32)
    cpu.linear_forward(np.full((2, 2), tiny, np.float32), half, None, 0, 0.0, product, product, code)
    assert not product.any()  # tiny / 2 is no normal number
    quiet = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)  # NaN by bits that bfloat16 has not
    for row in (quiet, quiet[:, ::-1].copy()):
        row[0, 1] = 1
        cpu.linear_forward(row, np.ones((2, 1), np.float32), None, 0, 0.0, out[:1], out[:1], code)
        assert np.isnan(out[0, 0])


@each_unit
@pytest.mark.parametrize(
    "case",
    [case for case in cases.CASES if "precision" in case.label or "no_usual_number" in case.label],
    ids=str,
)
def test_the_contract(unit, case):
    case.check(cpu, FLOAT32)


# ------------------------------------------------------------------------------------------------- forms
@pytest.mark.parametrize("form", [formats.ROWS, formats.LINES, formats.PANELS, formats.STACKED, formats.TURNED])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (31, 33), (32, 32), (70, 45), (64, 100)])
def test_forms(form, rows, columns, rng):
    """Every number is where the form says, and terms beyond the last are 0."""
    x = rng.standard_normal((rows, columns + 3), dtype=np.float32)[:, :columns]
    x[0, 0] = np.nan
    x[-1, -1], x[rows // 2, 0] = np.float32(1.17e-38), -1e-40  # subnormal: 0
    ld, size = formats.room(form, rows, columns)
    parts = [np.full(size, np.nan, np.float32) for _ in range(2)]
    arguments = rows, columns, x.ctypes.data, x.strides[0] // 4, *(part.ctypes.data for part in parts), ld
    context.c_function(context.store_factor(FLOAT32, form), *context.STORE_FACTOR)(*arguments)
    i, j = np.indices((formats.chunks(rows), formats.chunks(columns)))
    if form in (formats.LINES, formats.PANELS, formats.STACKED):
        term, other, i, j = i, j, i[:, :columns], j[:, :columns]
    else:
        term, other, i, j = j, i, i[:rows], j[:rows]
    term, other = term[: len(i), : i.shape[1]], other[: len(i), : i.shape[1]]
    chunk, q = term // 32 * 32 * ld, term % 32 // 2
    place = {
        formats.ROWS: i * ld + term // 2,
        formats.LINES: chunk + other * 16 + q,
        formats.PANELS: chunk + other // 32 * 512 + q * 32 + other % 32,
        formats.STACKED: (other // 32 * -(-rows // 32) + i // 32) * 512 + q * 32 + other % 32,
        formats.TURNED: (other // 32 * -(-columns // 32) + j // 32) * 512 + q * 32 + other % 32,
    }[form]
    padded = np.pad(x, ((0, len(i) - rows), (0, i.shape[1] - columns)))
    high = nearest(flushed(padded))
    for part, values in zip(parts, (high, nearest(flushed(padded - high))), strict=True):
        halves = part.view(np.uint16)[2 * place + term % 2].astype(np.uint32) << 16
        np.testing.assert_array_equal(halves.view(np.float32), values)


# ------------------------------------------------------------------------------------- threads and interrupts
def network(precision, seed=0):
    layers = fastbp.Linear(40, 300), fastbp.Tanh(), fastbp.Linear(300, 70), fastbp.ReLU(), fastbp.Linear(70, 5)
    return fastbp.Sequential(*layers, seed=seed, precision=precision)


@pytest.fixture
def data(rng):
    return rng.standard_normal((290, 40), dtype=np.float32), rng.integers(0, 5, 290)


def trained(model, data, epochs=2, **options):
    loss, optimizer = fastbp.CrossEntropyLoss(), options.pop("optimizer", None) or fastbp.Adam(lr=1e-2)
    model.fit(*data, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=130, verbose=False, **options)
    return model


@each_unit
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_compiled_steps_are_those_of_single_products(unit, precision, data):
    """More columns than a block of a gradient has, rows and columns that end within a chunk and a panel."""
    compiled = trained(network(precision), data)
    apart = trained(network(precision), data, optimizer=fastbp.Adam(lr=1e-2, clip_norm=1e30))
    assert_same_bits(compiled.flat_parameters, apart.flat_parameters)


@each_unit
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_threads_change_no_bit_and_rows_are_those_of_any_batch(unit, precision, data):
    found = []
    many = np.tile(data[0], (5, 1))  # more rows than go through the network at once
    try:
        for threads in (1, 2, 3, 7):
            fastbp.set_num_threads(threads)
            model = trained(network(precision), data)
            found.append((model.flat_parameters, model.predict(many)))
    finally:
        cpu.set_num_threads(None)
        fastbp.backend._threads = None
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            assert_same_bits(one, another)
    whole = found[0][1]
    assert_same_bits(whole[:290], whole[-290:])
    for i, j in ((0, 1), (31, 64), (500, 533), (1100, 1450)):
        assert_same_bits(model.predict(many[i:j]), whole[i:j])


@pytest.mark.parametrize("unit", bfloat16_units()[2:3], indirect=True)
def test_no_tiles_are_left_in_use(unit, data):
    """As the processor says (XINUSE): the system saves what a thread has in use with every switch."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from fastbp.kernels.cpu import simd, tiles
    from fastbp.kernels.jit import compile_kernel

    of_unit, scratch, found = tiles.lowered(False), layout.aligned_zeros(64, FLOAT32), np.zeros(1, np.int64)
    configure, release, zero = of_unit.configure, of_unit.release, of_unit.zero

    @intrinsic
    def in_use(tc):
        def codegen(ctx, b, sig, args):
            function = ir.FunctionType(ir.IntType(64), [ir.IntType(32)])
            read = cgutils.get_or_insert_function(b.module, function, "llvm.x86.xgetbv")
            return b.call(read, [ir.IntType(32)(1)])

        return types.int64(), codegen

    def look(using, scratch, found):
        if using:
            configure(scratch)
            zero(0)
        found[0] = in_use()
        if using:
            release()

    arguments = types.intp, simd.Pointer(types.float32), simd.Pointer(types.int64)
    function = context.c_function(compile_kernel(look, types.void(*arguments)), *[types.intp] * 3)

    def tiles_in_use(using=False):
        function(using, scratch.ctypes.data, found.ctypes.data)
        return bool(found[0] >> 18 & 1)  # XTILEDATA

    assert tiles_in_use(using=True)
    assert not tiles_in_use()
    cpu.set_num_threads(1)
    try:
        trained(network("bf16"), data).predict(data[0])
    finally:
        cpu.set_num_threads(None)
    assert not tiles_in_use()


@each_unit
def test_different_models_train_side_by_side(unit, data):
    """Each in a thread of its own, which configures its own tiles and has its own scratch."""

    def training(number):
        return trained(network(("bf16", "bf16x3", "ieee", "bf16")[number], seed=number), data, epochs=4)

    alone = [training(number).flat_parameters for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(training, range(4)), strict=True):
            assert_same_bits(one, other.flat_parameters)


@each_unit
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_ranks_train_together(unit, precision, data):
    """Sums over the rows of the batch, moments among them, leave the walk between instructions that store factors."""

    def weights(one, precision):
        layers = fastbp.Linear(40, 50), fastbp.BatchNorm1d(50), fastbp.Tanh(), fastbp.Linear(50, 5)
        model = fastbp.Sequential(*layers, seed=0, precision=precision)
        own = [x[145 * one.rank : 145 * (one.rank + 1)] for x in data]
        return trained(model, own, optimizer=fastbp.SGD(lr=0.1), communicator=one).flat_parameters

    exact, _ = on_threads(2, lambda one: weights(one, "ieee"))
    ours, other = on_threads(2, lambda one: weights(one, precision))
    assert_same_bits(ours, other)
    assert 0 < np.abs(ours - exact).max() < {"bf16": 2e-3, "bf16x3": 1e-5}[precision]


@each_unit
def test_after_an_interrupt_runs_have_the_same_bits(unit, data):
    """A signal comes while compiled code runs; what is left of the unit's state must not be seen by the next call."""
    expected, begun = trained(network("bf16"), data, epochs=60).flat_parameters, threading.Event()

    class Telling:
        def on_epoch_end(self, model, run):
            if run["epoch"] == 3:
                begun.set()

    other = threading.Thread(target=lambda: begun.wait() and signal.raise_signal(signal.SIGINT))
    other.start()
    with pytest.raises(KeyboardInterrupt):
        trained(network("bf16"), data, epochs=10**6, callbacks=[Telling()])
    other.join()
    exact = network("ieee")
    before = exact.predict(data[0])
    assert_same_bits(trained(network("bf16"), data, epochs=60).flat_parameters, expected)
    assert_same_bits(exact.predict(data[0]), before)


# ------------------------------------------------------------------------------------------------ choice
def test_the_rule_and_what_is_asked_for(monkeypatch):
    monkeypatch.delenv(units.VARIABLE, raising=False)
    assert units.chosen() == cpu.config()["bfloat16 unit"] == units.rule() in ("float32", "amx")
    monkeypatch.setenv(units.VARIABLE, "")
    assert units.chosen() == units.rule()
    monkeypatch.setattr(blocking, "FEATURES", set())
    units.usable.cache_clear()
    assert units.rule.__wrapped__() == "float32"
    units.usable.cache_clear()
    monkeypatch.setenv(units.VARIABLE, "amx-emulated")
    assert units.chosen() == cpu.config()["bfloat16 unit"] == "amx-emulated"
    monkeypatch.setenv(units.VARIABLE, "AMX2")
    with pytest.raises(
        ValueError, match=r"FASTBP_BF16_UNIT may be float32, avx512-bf16, amx, .*; got 'AMX2': name one"
    ):
        network("bf16").predict(np.zeros((1, 40)))


@pytest.mark.parametrize(("unit", "feature"), [("amx", "amx-tile, amx-bf16"), ("avx512-bf16", "avx512bf16")])
def test_a_unit_that_the_cpu_has_not_is_refused(monkeypatch, unit, feature):
    if not set(units.FEATURES[unit]) - blocking.FEATURES:
        pytest.skip("this CPU has it")
    monkeypatch.setenv(units.VARIABLE, unit)
    why = f"FASTBP_BF16_UNIT={unit}: this CPU has no .*{feature}.*unset it, or name float32"
    with pytest.raises(ValueError, match=why):
        network("bf16").predict(np.zeros((1, 40)))
    network("ieee").predict(np.zeros((1, 40)))  # no unit is asked for


def test_tiles_that_the_system_does_not_grant_are_refused(monkeypatch):
    """As by a kernel before 5.16, or one that was told to: asked once, before the first product."""
    asked = []

    class System:
        def syscall(self, *arguments):
            asked.append(arguments)
            return -1

    monkeypatch.setattr(blocking, "FEATURES", blocking.FEATURES | set(units.FEATURES["amx"]))
    monkeypatch.setattr(units.ctypes, "CDLL", lambda *_, **__: System())
    monkeypatch.setattr(units.ctypes, "get_errno", lambda: 95)
    monkeypatch.setattr(units.platform, "system", lambda: "Linux")
    with pytest.raises(ValueError, match=r"the system does not grant tile registers \(\w+, .*supported\)"):
        units.usable.__wrapped__("amx")
    assert asked == [(158, 0x1023, 18)]
    units.usable.cache_clear()
    assert units.rule.__wrapped__() == "float32"  # which info and the first line of training show
    units.usable.cache_clear()


def test_info_names_units_that_may_be_asked_for(monkeypatch):
    monkeypatch.setenv(units.VARIABLE, "float32")
    monkeypatch.setattr(blocking, "FEATURES", blocking.FEATURES | set(units.FEATURES["amx"]))
    assert "amx" in cpu.config()["other bfloat16 units"]
    monkeypatch.setattr(blocking, "FEATURES", set())
    assert "other bfloat16 units" not in cpu.config()


def kernels_of_a_float32_network():
    """The names of all kernels that a first step and a prediction have."""
    from fastbp.kernels import jit

    X, y = np.zeros((8, 40), np.float32), np.zeros(8, np.int64)
    trained(network("ieee"), (X, y), epochs=1).predict(X)
    print(json.dumps(list(jit._kernels)))


def test_a_float32_network_has_none_of_these_kernels(fresh):
    names = json.loads(fresh(kernels_of_a_float32_network).stdout)
    assert any("gemm.gemm" in name for name in names)
    assert not [name for name in names if "formats" in name or "gemm_a" in name or "store" in name]
