"""Products of ours beside those of a peer, on the CPU and on a GPU."""

import itertools

import numpy as np

from .. import backend
from ..kernels import layout
from . import gpu_peers, peers
from .agreement import PRECISION_TOLERANCE, TOLERANCE, check_same, checked_rival, largest_difference
from .clocks import Clock
from .measure import Case, Rival

PRODUCT_SIZES = 128, 256, 512, 1024, 2048
PRODUCT_TARGET_FROM = 256  # smaller products have no target
GPU_PRODUCT_SIZE = 4096
LAYOUT = "its own layout", "our layout"


def laid_out(array):
    """A copy laid out as the library lays out its own: aligned, rows padded."""
    *rows, columns = array.shape
    padded = layout.leading_dimension(columns, array.itemsize) if rows else columns
    copy = layout.aligned_zeros((*rows, padded), array.dtype)[..., :columns]
    copy[...] = array
    return copy


def product_case(kind, size, names, protocol) -> Case:
    """One of the three products of a layer of ``size`` x ``size`` and as large a batch, without an epilogue.

    NN is ``X W``, NT is ``dZ W^T``, TN is ``X^T dZ``. A peer has the faster of its own layout and ours; what ours
    takes with bias and ReLU, their derivative or the bias gradient in it is told beside.
    """
    kernels, rng = backend.load(protocol.device), np.random.default_rng(0)
    a, b = (laid_out(rng.standard_normal((size, size), dtype=protocol.dtype)) for _ in range(2))
    out, bias = laid_out(np.zeros_like(a)), laid_out(np.zeros(size, protocol.dtype))
    identity, relu = (layout.ACTIVATIONS.index(name) for name in ("identity", "relu"))
    plain, fused = {
        "NN": (
            lambda: kernels.linear_forward(a, b, None, identity, 0.0, out, out),
            lambda: kernels.linear_forward(a, b, bias, relu, 0.0, out, out),
        ),
        "NT": (
            lambda: kernels.linear_backward_input(a, b, a, identity, 0.0, out),
            lambda: kernels.linear_backward_input(a, b, a, relu, 0.0, out),
        ),
        "TN": (
            lambda: kernels.linear_backward_params(a, b, 0, out, None),
            lambda: kernels.linear_backward_params(a, b, 0, out, bias),
        ),
    }[kind]

    def operands(copy):
        first, second = copy(a), copy(b)
        return first.T if kind == "TN" else first, second.T if kind == "NT" else second, copy(np.zeros_like(a))

    plain()
    expected, rivals = np.array(out), {}
    for peer in names:
        pairs = dict(zip(LAYOUT, (operands(np.array), operands(laid_out)), strict=True))
        operation = peers.PRODUCTS[peer](pairs, protocol.threads)
        target = 1.05 if size >= PRODUCT_TARGET_FROM else None
        rivals[peer] = checked_rival(f"{kind} {size}: {peer}", operation, expected, protocol, target)
    return Case(
        kind, f"{size} x {size} x {size}", Clock(plain), rivals, flops=2 * size**3, also={"fused": Clock(fused)}
    )


def gpu_product_case(kind, size, precision, names, protocol) -> Case:
    """`product_case` on the GPU, in one of its precisions, timed by events."""
    kernels, rng = backend.load(protocol.device), np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=protocol.dtype) for _ in range(2))
    there, other = kernels.to_device(a), kernels.to_device(b)
    out, identity = kernels.zeros((size, size), a.dtype), layout.ACTIVATIONS.index("identity")
    code = layout.PRECISIONS.index(precision)
    product = {
        "NN": lambda: kernels.linear_forward(there, other, None, identity, 0.0, out, out, code),
        "NT": lambda: kernels.linear_backward_input(there, other, there, identity, 0.0, out, code),
        "TN": lambda: kernels.linear_backward_params(there, other, 0, out, None, code),
    }[kind]
    product()
    expected, rivals = kernels.to_host(out), {}
    tolerance, target = (
        (TOLERANCE[protocol.dtype], 0.85) if precision == "ieee" else (PRECISION_TOLERANCE[precision], None)
    )
    for peer in names:
        operation, found = gpu_peers.product(kind, a, b, precision)
        difference = largest_difference(found, expected)
        check_same(f"{kind} {size} {precision}: {peer}", difference, tolerance, "the largest value")
        clock = Clock(operation.call, elapsed=gpu_peers.elapsed)
        rivals[peer] = Rival(clock, operation.version, operation.how, target, {"difference": difference})
    return Case(
        kind,
        f"{size} x {size} x {size} {precision}",
        Clock(product, elapsed=kernels.elapsed),
        rivals,
        flops=2 * size**3,
        facts={"precision": precision},
        shares_cores=True,
    )


def product_cases(shapes, names, protocol):
    """Every product of every size."""
    for kind, size in itertools.product(("NN", "NT", "TN"), PRODUCT_SIZES):
        yield product_case(kind, size, names, protocol)


def gpu_product_cases(shapes, names, protocol):
    """Every product in every precision."""
    for precision in backend.load(protocol.device).precisions(np.dtype(protocol.dtype)):
        for kind in ("NN", "NT", "TN"):
            yield gpu_product_case(kind, GPU_PRODUCT_SIZE, precision, names, protocol)
