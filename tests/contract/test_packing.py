"""Products with operands packed or not, in blocks of any size: the same bits, and no byte beyond what is there."""

import itertools

import numpy as np
import pytest

import fastbp
from fastbp.kernels import cpu, layout
from fastbp.kernels.cpu import blocking, context, gemm

from . import cases
from .test_memory import pytestmark as needs_mprotect

NEVER = 1 << 40
PACKED = {
    "nothing": {"STRIP_PANELS": NEVER, "COPY_TILES": NEVER},
    "strips": {"STRIP_PANELS": 0, "COPY_TILES": NEVER},
    "panels": {"STRIP_PANELS": NEVER, "COPY_TILES": 0},
    "both": {"STRIP_PANELS": 0, "COPY_TILES": 0},
}
# terms, strips, what is far, panels that are kept
BLOCKS = (16, 1, 0, 2), (48, 2, NEVER, 1), (16, 2, 0, 5), (int(blocking.SIZES[blocking.TERMS]), 40, 0, 3)
MR, LANES = blocking.MR, blocking.VECTOR_BYTES // 4
SHAPES = (
    (1, 1, 1), (MR, 2 * LANES, 16), (MR + 1, 2 * LANES + 1, 17), (2 * MR, 4 * LANES - 1, 15), (3 * MR + 5, 70, 49),
    (61, 5 * LANES + 3, 131), (4 * MR, LANES - 1, 97), (2, 131, 33), (3 * MR, 6 * LANES, 600),
    (MR + 2 * blocking.MR_TAIL, 3 * LANES, 35),
)  # fmt: skip


def sizes_of(dtype, packed, terms, strips, far, panels):
    """What gemm is told, and the bytes of scratch that it may use then."""
    sizes, item = blocking.SIZES.copy(), dtype.itemsize
    strip = gemm.strip_length.py_func(terms, blocking.VECTOR_BYTES // item) * item
    values = {"TERMS": terms, "STRIPS_BYTES": strips * strip, "FAR_BYTES": far, "SPAN_BYTES": 0, "PANELS": panels}
    for name, value in (values | PACKED[packed]).items():
        sizes[getattr(blocking, name)] = value
    return sizes, blocking.packed_bytes(sizes)


def in_place(value, pad):
    """A copy whose rows are ``pad`` elements of NaN apart."""
    rows, columns = value.shape
    array = np.full((rows, columns + pad), np.nan, value.dtype)[:, :columns]
    array[...] = value
    return array


def product(kind, a, b, sizes, scratch, out):
    """``out += a @ b`` of operands laid out as the kind asks for."""

    def ld(array):
        return array.strides[0] // array.itemsize

    (m, n), k = out.shape, len(a) if kind == "TN" else a.shape[1]
    strides = (1, ld(a)) if kind == "TN" else (ld(a), 1)
    context.c_function(context.product(out.dtype), *context.PRODUCT)(
        m, n, k, a.ctypes.data, *strides, b.ctypes.data, ld(b), kind == "NT", 0, 0, 0, 1, 0, out.ctypes.data, ld(out),
        scratch.ctypes.data, sizes.ctypes.data, 0, 0, 0, 0.0,
    )  # fmt: skip


def operands(kind, m, n, k, dtype, integers):
    rng = np.random.default_rng((m, n, k))
    shapes = ((k, m) if kind == "TN" else (m, k)), ((n, k) if kind == "NT" else (k, n)), (m, n)
    if integers:
        return [rng.integers(-8, 9, shape).astype(dtype) for shape in shapes]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_packing_and_blocks_change_no_bit(kind, dtype):
    for (m, n, k), integers in itertools.product(SHAPES, (False, True)):
        a, b, c = operands(kind, m, n, k, dtype, integers)
        exact = c + (a.T if kind == "TN" else a).astype(float) @ (b.T if kind == "NT" else b).astype(float)
        expected = None
        for packed, blocks, pad in itertools.product(PACKED, BLOCKS, (0, 1100)):
            sizes, size = sizes_of(dtype, packed, *blocks)
            scratch = np.full(size // dtype.itemsize, np.nan, dtype)
            out = in_place(c, 3)
            product(kind, in_place(a, pad), in_place(b, pad), sizes, scratch, out)
            if expected is None:
                expected = np.array(out)
                tolerance = 0 if integers else 1e-5 * k
                np.testing.assert_allclose(expected, exact, rtol=0, atol=tolerance)
            assert np.array_equal(out, expected), (m, n, k, packed, blocks, pad)
            taken = not np.isnan(scratch).all()
            if packed == "both" and kind != "NT" and n >= 2 * blocking.NV * LANES and m > MR:
                assert taken, (m, n, k, packed, blocks, pad)
            if packed == "nothing" and kind != "NT":
                assert not taken


def run_beside_guard_pages():
    """Products whose operands, result and scratch touch a page that nobody may access."""
    from .guard_pages import fenced

    for kind, dtype, shape in itertools.product(("NN", "NT", "TN"), (np.float32, np.float64), SHAPES):
        arrays, rng = operands(kind, *shape, dtype, False), np.random.default_rng(0)
        for packed, blocks, at_end in itertools.product(PACKED, BLOCKS, (True, False)):
            sizes, size = sizes_of(np.dtype(dtype), packed, *blocks)
            a, b, c = (fenced(cases.given(array), rng, at_end, True) for array in arrays)
            scratch = fenced(cases.given(np.zeros(size // np.dtype(dtype).itemsize, dtype)), None, at_end, True)
            product(kind, a, b, sizes, scratch, c)


@needs_mprotect
def test_packing_stays_inside_its_arrays(fresh):
    fresh(run_beside_guard_pages)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_trains_to_the_same_bits_whatever_is_packed(dtype):
    rng, results, before = np.random.default_rng(0), set(), blocking.SIZES.copy()
    x, y = rng.standard_normal((150, 37)), rng.integers(0, 5, 150)
    try:
        for packed, threads in (("nothing", 1), ("strips", 2), ("panels", 1), *(("both", t) for t in (1, 2, 3, 7))):
            # Fewer strips than the workspace has room for.
            blocking.SIZES[:] = sizes_of(np.dtype(dtype), packed, 48, 3, 0, 2)[0]
            fastbp.set_num_threads(threads)
            model = fastbp.Sequential(
                fastbp.Linear(37, 131), fastbp.Tanh(), fastbp.Linear(131, 67), fastbp.ReLU(), fastbp.Linear(67, 5),
                seed=0, dtype=dtype,
            )  # fmt: skip
            loss, optimizer = fastbp.CrossEntropyLoss(), fastbp.Adam(lr=1e-2)
            model.fit(x, y, loss=loss, optimizer=optimizer, epochs=2, batch_size=64, verbose=False)
            results.add((model.predict(x).tobytes(), *(p.tobytes() for p in model.state_dict().values())))
    finally:
        blocking.SIZES[:] = before
        cpu.set_num_threads(None)
    assert len(results) == 1


# ------------------------------------------------------------------------------------------------- sizes
def directory_of(tmp_path, *entries):
    for number, entry in enumerate(entries):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, text in zip(("level", "type", "size"), entry, strict=True):
            (index / name).write_text(f"{text}\n")
    return tmp_path


def test_l2_is_what_the_system_reports(tmp_path):
    entries = (1, "Data", "48K"), (1, "Instruction", "64K"), (2, "Unified", "2M"), (3, "Unified", "105M")
    assert blocking.l2_bytes(directory_of(tmp_path, *entries)) == 2 * 1024**2


def test_l2_is_guessed_where_nothing_is_reported(tmp_path):
    assert blocking.l2_bytes(tmp_path / "nowhere") == blocking.GUESSED_L2
    assert blocking.l2_bytes(directory_of(tmp_path, (2, "Unified", "unknown"))) == blocking.GUESSED_L2


@pytest.mark.parametrize("kibibytes", [1, 256, 512, 1024, 2048, 1 << 20])
def test_sizes_fit_their_scratch(kibibytes):
    """Squares of registers end with the panel, and one strip fits, whatever the cache."""
    sizes = blocking.product_sizes(1024 * kibibytes)
    terms = int(sizes[blocking.TERMS])
    assert terms % 64 == 0
    for dtype in (np.float32, np.float64):
        item = np.dtype(dtype).itemsize
        strip = gemm.strip_length.py_func(terms, blocking.VECTOR_BYTES // item) * item
        assert strip <= sizes[blocking.STRIPS_BYTES]


def test_a_weight_gradient_is_packed_where_its_terms_lie_in_more_pages_than_the_tlb_reaches():
    """512 rows of a batch of 2048 floats each: on processors with 512 KiB of L2 as on those with 2 MiB."""
    for kibibytes in (512, 2048):
        sizes = blocking.product_sizes(1024 * kibibytes)
        terms = int(sizes[blocking.TERMS])
        wide, narrow = (gemm.Strided(0, 1, layout.leading_dimension(columns, 4)) for columns in (2048, 64))
        assert gemm.pays.py_func(sizes, 100, terms, wide, 4)
        assert not gemm.pays.py_func(sizes, 100, terms, narrow, 4)
