"""The contract as one table of cases, from which the tests of every backend are generated.

A *call* is a contract function with its arguments and the error each output may have: the runner places the
arguments among canaries, runs the backend, runs the reference in float64, and compares. A *behaviour* is a
promise that a single comparison cannot show (same bits for a slice, NaN stays in its row, ...). A new
activation, loss or optimizer is picked up from ``layout.py``; a new contract function must get a case here.

The error measure is the one BLAS testers use, ``|C - C64| <= (16 + sqrt(k)) eps (|X| |W| + |b|)`` for each
element, and none at all for small integers, whose products are exact in any order of summation.
"""

import contextlib
import inspect
import math
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import cycle, pairwise
from itertools import product as all_pairs
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastbp.kernels import layout, program, reference
from fastbp.kernels.contract import FUNCTIONS

DTYPES = (np.float32, np.float64)
GENERATOR = np.random.default_rng


def contract() -> dict[str, Any]:
    """The public functions and classes of reference.py, less the formulas its own tables name."""
    formulas = {*reference.LOSSES.values(), *reference.STEPS.values()}.union(*reference.ACTIVATIONS.values())
    return {
        name: member
        for name, member in vars(reference).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or inspect.isclass(member))
        and member.__module__ == reference.__name__
        and member not in formulas
    }


# ------------------------------------------------------------------------------------- arguments
class Operand(NamedTuple):
    """An array argument: its contents before the call, and what may be done with it."""

    value: np.ndarray
    written: bool = False
    strided: bool = True  # rows may lie any distance apart
    aligned: bool = False  # must start on a cache line


class Same(NamedTuple):
    """The very array of another argument."""

    index: int


class Workspace(NamedTuple):
    """A backend's workspace for a program."""

    kind: str
    program: program.Program
    rest: tuple = ()

    def build(self, backend, dtype):
        return getattr(backend, self.kind)(self.program, dtype, *self.rest)


def given(value, **properties) -> Operand:
    return Operand(np.asarray(value), **properties)


def updated(value, **properties) -> Operand:
    return Operand(np.asarray(value), written=True, **properties)


def output(shape, dtype, **properties) -> Operand:
    """An output that must not be read: NaN, or an unlikely integer."""
    return updated(np.full(shape, nothing(dtype), dtype), **properties)


def nothing(dtype):
    return np.nan if np.dtype(dtype).kind == "f" else -77


def holds_nothing(value):
    return np.array_equal(value, np.full_like(value, nothing(value.dtype)), equal_nan=value.dtype.kind == "f")


def each(arguments, make, backend, dtype) -> list:
    """The arguments of one call, arrays made by ``make(operand)``."""
    built = []
    for argument in arguments:
        if isinstance(argument, Operand):
            argument = make(argument)
        elif isinstance(argument, Same):
            argument = built[argument.index]
        elif isinstance(argument, Workspace):
            argument = argument.build(backend, dtype)
        elif isinstance(argument, tuple):
            argument = tuple(make(operand) for operand in argument)
        built.append(argument)
    return built


def operands(argument) -> tuple[Operand, ...]:
    """The arrays of an argument, in the order in which `each` makes them."""
    if isinstance(argument, Operand):
        return (argument,)
    return argument if isinstance(argument, tuple) and not isinstance(argument, Same | Workspace) else ()


class Use(NamedTuple):
    """An array of a call, and what the contract declares of its memory."""

    name: str  # of the argument
    operand: Operand
    read: bool
    written: bool


def uses(function, arguments) -> list[Use]:
    """What a call does to its arrays, in the order in which `each` makes them, by the declaration beside the function.

    An argument that is another one's array writes to that one's. The table has to agree: it says what an array holds
    before the call, so what is written must be marked so, and what is not read must hold nothing.
    """
    declaration, written, found = FUNCTIONS[function], set(), []
    for i, (name, argument) in enumerate(zip(declaration.arguments, arguments, strict=False)):
        if name in declaration.writes:
            written.add(argument.index if isinstance(argument, Same) else i)
    for i, (name, argument) in enumerate(zip(declaration.arguments, arguments, strict=False)):
        for operand in operands(argument):
            found.append(Use(name, operand, name in declaration.reads, i in written))
            assert operand.written == (i in written), f"{function} is declared otherwise: {name}"
            assert name in declaration.reads or holds_nothing(operand.value), f"{function} reads no {name}"
    return found


# ----------------------------------------------------------------------------------------- cases
class Case(NamedTuple):
    """One row of the table."""

    function: str
    label: str
    check: Callable  # (backend, dtype) -> None
    quick: bool = False  # runs under every instruction set, not only the native one
    arguments: Callable | None = None  # of a call: (rng, dtype) -> its arguments
    dtypes: tuple = DTYPES
    long: bool = False  # a repetition of what other cases hold: not in every run

    def __str__(self):
        return f"{self.function}-{self.label}"


CASES: list[Case] = []


def call(function, label, arguments, bounds, quick=False, dtypes=DTYPES, long=False):
    """Add a call. ``bounds(eps, before, after)`` gives the largest error of each written array, in order.

    ``before`` and ``after`` are the arguments in float64 around the reference's call. NaN in a bound leaves
    an element out.
    """

    def check(backend, dtype):
        rng = GENERATOR(zlib.crc32(label.encode()))
        arguments_ = arguments(rng, dtype)
        declared = uses(function, arguments_)

        def widened(operand):
            return operand.value.astype(np.float64 if operand.value.dtype == dtype else operand.value.dtype)

        before, after = (each(arguments_, widened, reference, np.float64) for _ in range(2))
        expected = getattr(reference, function)(*after)
        exact = written_arrays(arguments_, after)

        placed = []

        def place(operand):
            placed.append(Placed(operand, rng, declared[len(placed)].written))
            return placed[-1].view

        returned = getattr(backend, function)(*each(arguments_, place, backend, dtype))
        assert returned == expected
        for placement in placed:
            placement.assert_only_output_changed()
        results = [placement.view for placement in placed if placement.written]
        limits = bounds(np.finfo(dtype).eps, before, after)
        for i, (result, value, limit) in enumerate(zip(results, exact, limits, strict=True)):
            assert_within(result, value, limit, dtype, f"output {i} of {function}, {label}")

    CASES.append(Case(function, label, check, quick, arguments, dtypes, long))


def behaviour(function, quick=True, dtypes=DTYPES):
    """Add a promise of a function, checked by the decorated ``(backend, dtype)``."""

    def add(check):
        CASES.append(Case(function, check.__name__, check, quick, dtypes=dtypes))
        return check

    return add


def behaviour_of_pairs(function, networks, trainings):
    """Add a promise of networks and trainings, checked by the decorated ``(backend, dtype, pairs)``.

    The default run has pairs in which each of them is; all pairs are in the long one.
    """

    def add(check):
        longer, shorter = sorted((networks, trainings), key=len, reverse=True)
        in_turn = zip(longer, cycle(shorter), strict=False)
        some = [pair if longer is networks else pair[::-1] for pair in in_turn]
        for label, pairs, long in ((check.__name__, some, False), (f"{check.__name__}_for_every_pair", None, True)):

            def checked(backend, dtype, pairs=pairs):
                check(backend, dtype, pairs or all_pairs(networks, trainings))

            CASES.append(Case(function, label, checked, True, long=long))
        return check

    return add


def written_arrays(arguments, built) -> list[np.ndarray]:
    """The written arrays among the built arguments, in order."""
    found = []
    for argument, array in zip(arguments, built, strict=True):
        own = operands(argument)
        arrays = (array,) if isinstance(argument, Operand) else array if own else ()
        found.extend(a for operand, a in zip(own, arrays, strict=True) if operand.written)
    return found


CANARY = {4: np.uint32(0x7FD5A5A5), 8: np.uint64(0x7FF5A5A5A5A5A5A5), 1: np.uint8(0xA5)}  # floats: a NaN
MARGIN = 64  # elements before and after an array


class Placed:
    """An operand among canaries: before it, after it, and between its rows."""

    def __init__(self, operand, rng, written):
        self.written, value = written, operand.value
        rows, columns = value.shape if value.ndim == 2 else (1, value.size)
        self.shape, self.step = value.shape, columns
        self.start = MARGIN if operand.aligned else MARGIN + int(rng.integers(0, 16))
        if value.ndim == 2 and operand.strided:
            self.step = int(rng.choice([columns, layout.leading_dimension(columns, value.itemsize), columns + 1]))
            self.step += int(rng.integers(0, 7)) * (self.step == columns + 1)
        self.base = layout.aligned_empty(self.start + rows * self.step + MARGIN, value.dtype)
        self.base.view(CANARY[value.itemsize].dtype)[...] = CANARY[value.itemsize]
        self.view = self.window(self.base)
        self.view[...] = value
        self.before = self.base.copy()

    def window(self, base):
        rows = self.shape[0] if len(self.shape) == 2 else 1
        block = base[self.start : self.start + rows * self.step].reshape(rows, self.step)
        return block[:, : self.shape[1]] if len(self.shape) == 2 else block[0]

    def assert_only_output_changed(self):
        if self.written:
            self.window(self.before)[...] = self.view
        assert self.before.tobytes() == self.base.tobytes(), "an input, a padding or a neighbour was written to"


def assert_within(result, exact, limit, dtype, what):
    """Every element within its limit; NaN where NaN is due; infinity where the value is out of range."""
    value, limit = result.astype(np.float64), np.broadcast_to(limit, result.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        good = (np.abs(value - exact) <= limit) | (value == exact) | (np.isnan(value) & np.isnan(exact))
        good |= np.isinf(value) & (value * exact > 0) & (np.abs(exact) > np.finfo(dtype).max)
    bad = np.argwhere(~good & ~np.isnan(limit))
    if len(bad):
        first = tuple(bad[0])
        raise AssertionError(
            f"{what}: {len(bad)} of {value.size} wrong, first at {first}: "
            f"{value[first]!r}, exact {exact[first]!r}, allowed error {limit[first]:.3g}"
        )


def assert_same_bits(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    bits = f"u{a.itemsize}"
    different = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
    assert not different.any(), f"{different.sum()} of {a.size} differ, first at {np.argwhere(different)[0]}"


def assert_same_rows(backend, a, b):
    """The same bits; from the reference, whose products are NumPy's, the same numbers."""
    if backend is reference:
        np.testing.assert_allclose(a, b, rtol=0, atol=1000 * np.finfo(b.dtype).eps * np.abs(b).max(initial=0))
    else:
        assert_same_bits(a, b)


# ------------------------------------------------------------------------------------ linear layer
EXACT = frozenset({"identity", "relu"})  # value and derivative round nothing


PARAMETER = 0.25  # of activations that have one; exact in every dtype


def saved_values(activation, z):
    """What an activation saves for its derivative."""
    if activation in layout.SAVES_PRE_ACTIVATION:
        return z
    out = np.empty_like(z)
    reference.activation_forward(z, layout.ACTIVATIONS.index(activation), PARAMETER, out)
    return out


def matrix(rng, shape, dtype, integers):
    return (rng.integers(-4, 5, shape) if integers else rng.standard_normal(shape)).astype(dtype)


def product_gauge(eps, a, b, c=0.0):
    """The BLAS testers' measure for ``a @ b + c``."""
    return (16 + np.sqrt(a.shape[1])) * eps * (np.abs(a) @ np.abs(b) + np.abs(c))


def linear_calls(m, n, k, activation, integers, bias, beta, **marks):
    """The three products of one layer: batch m, outputs n, inputs k."""
    code = layout.ACTIVATIONS.index(activation)
    label = f"{m}x{k}x{n}-{activation}-{'integers' if integers else 'reals'}{'' if bias else '-no_bias'}"
    exact = integers and activation in EXACT

    def forward(rng, dtype):
        b = given(matrix(rng, n, dtype, integers)) if bias else None
        x, weight = (given(matrix(rng, shape, dtype, integers)) for shape in ((m, k), (k, n)))
        saved = output((m, n), dtype) if activation in layout.SAVES_PRE_ACTIVATION else Same(5)
        return x, weight, b, code, PARAMETER, output((m, n), dtype), saved

    def forward_bounds(eps, before, after):
        x, weight, b = before[:3]
        gauge = np.zeros((m, n)) if exact else product_gauge(eps, x, weight, 0.0 if b is None else b)
        rounding = 0 if activation in EXACT else 8 * eps
        return [gauge + rounding * (1 + np.abs(after[5])), gauge][: 1 + (activation in layout.SAVES_PRE_ACTIVATION)]

    def backward_input(rng, dtype):
        grad_z, weight = (given(matrix(rng, shape, dtype, integers)) for shape in ((m, n), (k, n)))
        saved = given(saved_values(activation, matrix(rng, (m, k), dtype, integers)))
        return grad_z, weight, saved, code, PARAMETER, output((m, k), dtype)

    def backward_input_bounds(eps, before, after):
        grad_z, weight, saved = before[:3]
        if exact:
            return [0.0]
        size = np.abs(grad_z) @ np.abs(weight.T)
        _, derivative = reference.ACTIVATIONS[activation]
        return [product_gauge(eps, grad_z, weight.T) * np.abs(derivative(saved, PARAMETER)) + 4 * eps * size]

    def backward_params(rng, dtype):
        x, grad_z = (given(matrix(rng, shape, dtype, integers)) for shape in ((m, k), (m, n)))
        grads = [
            updated(matrix(rng, shape, dtype, integers)) if beta else output(shape, dtype)
            for shape in ((k, n), (n,))[: 1 + bias]
        ]
        return x, grad_z, beta, *grads, *([None] * (not bias))

    def backward_params_bounds(eps, before, after):
        x, grad_z, _, grad_weight, grad_bias = before
        if integers:
            return [0.0] * (1 + bias)
        bounds = [product_gauge(eps, x.T, grad_z, grad_weight if beta else 0.0)]
        if bias:
            bounds.append(product_gauge(eps, np.ones((1, m)), grad_z, grad_bias if beta else 0.0)[0])
        return bounds

    call("linear_forward", label, forward, forward_bounds, **marks)
    call("linear_backward_input", label, backward_input, backward_input_bounds, **marks)
    call("linear_backward_params", f"{label}-beta{beta}", backward_params, backward_params_bounds, **marks)


SIZES = (0, 1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 513)
# Every pair of sizes meets in every two of m, n, k: one Latin square.
SHAPES = [(m, n, SIZES[(i + j) % len(SIZES)]) for i, m in enumerate(SIZES) for j, n in enumerate(SIZES)]
# Across the ends of blocks of rows and of k, and of the cache-resident panels.
BLOCK_SHAPES = [
    *((m, n, k) for m in (83, 84, 85, 95, 96, 97, 239, 241, 255, 257) for n, k in ((10, 33), (65, 514))),
    *((m, n, k) for k in (511, 512, 1024, 1025) for m, n in ((1, 1), (13, 33), (64, 10), (97, 65))),
    *((m, n, 514) for m, n in ((3, 1030), (257, 300), (300, 257))),
    *((514, n, k) for n, k in ((10, 33), (33, 10), (1, 65))),
]


def add_linear_cases():
    activations = layout.ACTIVATIONS
    exact = [name for name in activations if name in EXACT]
    for i, (m, n, k) in enumerate(SHAPES + BLOCK_SHAPES):
        quick = i % 6 == 0 or i >= len(SHAPES)
        marks = {"quick": quick, "long": not quick and i % 7 not in (0, 3)}  # 7: every size stays in every place
        bias, beta = i % 3 != 1, i // 2 % 2
        linear_calls(m, n, k, exact[i % len(exact)], True, bias, beta, **marks)
        if i % 3 == 0 or i >= len(SHAPES):
            linear_calls(m, n, k, activations[i // 3 % len(activations)], False, bias, 1 - beta, **marks)


add_linear_cases()


def random_layer(rng, dtype, m, k, n):
    return (matrix(rng, shape, dtype, False) for shape in ((m, k), (k, n), n))


@behaviour("linear_forward")
def slice_is_slice_of_forward(backend, dtype):
    rng = GENERATOR(1)
    for k, n in ((5, 3), (64, 10), (33, 65), (600, 48)):
        x, weight, bias = random_layer(rng, dtype, 120, k, n)
        for code in range(len(layout.ACTIVATIONS)):
            whole, saved = np.empty((2, 120, n), dtype)
            backend.linear_forward(x, weight, bias, code, PARAMETER, whole, saved)
            for i, j in ((0, 1), (7, 8), (3, 16), (1, 98), (100, 120)):
                part, saved = np.empty((2, j - i, n), dtype)
                backend.linear_forward(x[i:j], weight, bias, code, PARAMETER, part, saved)
                assert_same_rows(backend, part, whole[i:j])


@behaviour("linear_backward_input")
def slice_is_slice_of_backward(backend, dtype):
    rng = GENERATOR(2)
    for k, n in ((5, 3), (64, 10), (33, 65), (48, 600)):
        grad_z, saved = matrix(rng, (120, n), dtype, False), matrix(rng, (120, k), dtype, False)
        weight, whole = matrix(rng, (k, n), dtype, False), np.empty((120, k), dtype)
        backend.linear_backward_input(grad_z, weight, saved, 0, 0.0, whole)
        for i, j in ((0, 1), (7, 8), (3, 16), (1, 98), (100, 120)):
            part = np.empty((j - i, k), dtype)
            backend.linear_backward_input(grad_z[i:j], weight, saved[i:j], 0, 0.0, part)
            assert_same_rows(backend, part, whole[i:j])


@behaviour("linear_forward")
def nan_stays_in_its_row(backend, dtype):
    rng = GENERATOR(3)
    for m, k, n in ((1, 1, 1), (14, 5, 3), (30, 65, 33), (97, 514, 10)):
        x, weight, bias = random_layer(rng, dtype, m, k, n)
        row = m // 2
        x[row, k // 2] = np.nan
        for code in range(len(layout.ACTIVATIONS)):
            out, saved = np.empty((2, m, n), dtype)
            backend.linear_forward(x, weight, bias, code, PARAMETER, out, saved)
            assert np.isnan(out[row]).all()
            assert np.isfinite(np.delete(out, row, axis=0)).all()


@behaviour("linear_backward_input")
def nan_stays_in_its_row_backward(backend, dtype):
    rng = GENERATOR(4)
    for m, k, n in ((1, 1, 1), (14, 5, 3), (30, 65, 33), (97, 10, 514)):
        grad_z, weight, _ = random_layer(rng, dtype, m, n, k)
        row = m // 2
        grad_z[row, n // 2] = np.nan
        out = np.empty((m, k), dtype)
        for code, activation in enumerate(layout.ACTIVATIONS):
            saved = saved_values(activation, matrix(rng, (m, k), dtype, False))
            backend.linear_backward_input(grad_z, weight.T.copy(), saved, code, PARAMETER, out)
            assert np.isnan(out[row]).all()
            assert np.isfinite(np.delete(out, row, axis=0)).all()


@behaviour("linear_backward_params")
def nan_stays_in_its_row_and_column(backend, dtype):
    rng = GENERATOR(5)
    for m, k, n in ((1, 1, 1), (14, 5, 3), (30, 65, 33), (514, 10, 97)):
        x, grad_z = matrix(rng, (m, k), dtype, False), matrix(rng, (m, n), dtype, False)
        x[m // 2, k // 2] = grad_z[m // 3, n // 2] = np.nan
        grad_weight, grad_bias = np.empty((k, n), dtype), np.empty(n, dtype)
        backend.linear_backward_params(x, grad_z, 0, grad_weight, grad_bias)
        touched = np.zeros((k, n), bool)
        touched[k // 2] = touched[:, n // 2] = True
        np.testing.assert_array_equal(np.isnan(grad_weight), touched)
        np.testing.assert_array_equal(np.isnan(grad_bias), np.arange(n) == n // 2)


@behaviour("linear_backward_params")
def accumulating_two_halves_is_the_whole(backend, dtype):
    rng = GENERATOR(6)
    x, grad_z = matrix(rng, (77, 33), dtype, True), matrix(rng, (77, 17), dtype, True)
    whole, halves = (np.empty((33, 17), dtype), np.empty(17, dtype)), (np.empty((33, 17), dtype), np.empty(17, dtype))
    backend.linear_backward_params(x, grad_z, 0, *whole)
    backend.linear_backward_params(x[:40], grad_z[:40], 0, *halves)
    backend.linear_backward_params(x[40:], grad_z[40:], 1, *halves)
    assert_same_bits(whole[0], halves[0])
    assert_same_bits(whole[1], halves[1])


def with_fewer_bits(x, precision):
    """Rounded by arithmetic, where the backends work on bits: tf32 ties away from 0, bf16 to even."""
    bits = {"ieee": 24, "tf32": 11, "bf16": 8}[precision]
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = np.ldexp(mantissa, bits)
    whole = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) if precision == "tf32" else np.rint(scaled)
    return np.ldexp(whole, exponent - bits)


def products_of_parts(a, b, precision):
    """``a @ b`` in float64 of what a precision makes of float32 factors."""
    if precision != "bf16x3":
        return with_fewer_bits(a, precision) @ with_fewer_bits(b, precision)
    a_high, b_high = (with_fewer_bits(x, "bf16") for x in (a, b))
    a_low, b_low = (with_fewer_bits(x - high, "bf16") for x, high in ((a, a_high), (b, b_high)))
    return a_high @ b_high + a_high @ b_low + a_low @ b_high


def product(backend, function, a, b, out, precision):
    """``out = a @ b`` by one of the linear functions."""
    if function == "linear_forward":
        backend.linear_forward(a, b, None, 0, 0.0, out, out, precision)
    elif function == "linear_backward_input":
        backend.linear_backward_input(a, b.T.copy(), out, 0, 0.0, out, precision)
    else:
        backend.linear_backward_params(a.T.copy(), b, 0, out, None, precision)


def add_precision_case(function):
    """Every precision, beside float64 products of what the factors are rounded to; others are refused."""

    @behaviour(function)
    def factors_are_rounded_to_the_precision(backend, dtype):
        rng = GENERATOR(7)
        for m, n, k in ((3, 5, 2), (13, 7, 17), (33, 17, 21)):
            a, b = matrix(rng, (m, k), dtype, False), matrix(rng, (k, n), dtype, False)
            # Halfway between two numbers of tf32, of bf16, of bf16x3, or nearly so.
            a[0, :2] = b[0, :2] = 1 + np.array([2.0**-11, 2.0**-8])
            a[1, :2], b[1, :2] = 1 + 3 * np.array([2.0**-8, 2.0**-17]), 1 + np.array([2.0**-9, 2.0**-8 - 2.0**-17])
            for code, precision in enumerate(layout.PRECISIONS):
                out = np.zeros((m, n), dtype)
                if precision not in backend.precisions(dtype):
                    with pytest.raises(ValueError, match="precision"):
                        product(backend, function, a, b, out, code)
                    continue
                product(backend, function, a, b, out, code)
                expected = products_of_parts(a, b, precision) if dtype == np.float32 else a @ b
                bound = (16 + np.sqrt(k)) * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b))
                assert (np.abs(out - expected) <= bound).all()
                if precision == "bf16x3":
                    wide = a.astype(np.float64) @ b.astype(np.float64)
                    assert (np.abs(out - wide) <= bound + 2.0**-15 * (np.abs(a) @ np.abs(b))).all()

    @behaviour(function)
    def what_is_no_usual_number_is_rounded_as_well(backend, dtype):
        """Subnormal numbers stay, by most units; NaN and infinity do, but that bf16x3 makes NaN of what is infinite."""
        if "bf16" not in backend.precisions(dtype):
            pytest.skip("no bf16")
        largest, least = np.finfo(dtype).max, 2.0**-133  # of bfloat16, the least number above 0
        to_infinity = 1.9999 * 2.0**127
        values = np.array([-0.0, least, 3.4 * least, 2.0**-127, 1.0, to_infinity, largest, np.inf, -np.inf, np.nan, 0])
        rounded = [-0.0, least, 3 * least, 2.0**-127, 1.0, np.inf, np.inf, np.inf, -np.inf, np.nan, np.nan]
        if backend.config().get("bfloat16 unit", "float32") != "float32":  # those of bfloat16 take them for 0
            rounded[1:4] = 0.0, 0.0, 0.0
        a, out = values.astype(dtype)[:, None], np.empty((len(values), 1), dtype)
        a[-1] = np.uint32(0x7FFFFFFF).view(np.float32)  # of whose bits a carry would make -0
        for precision in {"bf16", "bf16x3"}.intersection(backend.precisions(dtype)):
            product(backend, function, a, np.ones((1, 1), dtype), out, layout.PRECISIONS.index(precision))
            expected = np.array(rounded, dtype)
            if precision == "bf16x3":  # the low part holds what is beyond the least number only
                expected[5:] = np.nan
            np.testing.assert_array_equal(out[:, 0], expected)


for name in ("linear_forward", "linear_backward_input", "linear_backward_params"):
    add_precision_case(name)


@behaviour("linear_backward_params")
def columns_are_summed_as_they_are_in_every_precision(backend, dtype):
    rng = GENERATOR(8)
    x, grad_z = matrix(rng, (41, 5), dtype, False), matrix(rng, (41, 19), dtype, False)
    sums = []
    for precision in backend.precisions(dtype):
        grad_weight, grad_bias = np.empty((5, 19), dtype), np.empty(19, dtype)
        backend.linear_backward_params(x, grad_z, 0, grad_weight, grad_bias, layout.PRECISIONS.index(precision))
        sums.append(grad_bias)
    for other in sums[1:]:
        assert_same_bits(other, sums[0])


@behaviour("precisions")
def ieee_is_among_the_precisions(backend, dtype):
    assert set(backend.precisions(dtype)) <= set(layout.PRECISIONS)
    assert backend.precisions(dtype)[0] == "ieee"


# ------------------------------------------------------------------------------------- activations
# By itemsize; identity and relu round nothing. 2.5 were seen; NumPy, which judges float64, is not exact itself.
ULPS = {4: 3, 8: 4}


def sweep(dtype):
    """[-100, 100] and the points where implementations break."""
    info = np.finfo(dtype)
    special = [0.0, info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny, info.eps, info.max, np.inf]
    special += [88.72, 88.73, 87.33, 103.9, 104.0, 709.78, 745.2, 1e38, 0.5, 0.625, 1.0, 9.0, 17.33, 0.34657359]
    values = [np.nan, *special, *(-s for s in special), *np.linspace(-100, 100, 20001)]
    values += [s * 10.0**e for e in range(-30, 3) for s in (-3.3, -1.0, 1.7, 7.7)]
    return np.array(values, dtype)


def activation_calls(activation):
    code, exact = layout.ACTIVATIONS.index(activation), activation in EXACT

    def bounds(eps, before, after):
        if exact:
            return [0.0]
        dtype = np.float32 if eps == np.finfo(np.float32).eps else np.float64
        # What a rounding of z, or of an argument inside, does to the value: z act'(z).
        z = np.nan_to_num(before[0], posinf=0, neginf=0)
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.nan_to_num(np.abs(after[3]).astype(dtype))
            slope = reference.ACTIVATIONS[activation][1](saved_values(activation, z), PARAMETER)
            moved = np.abs(np.nan_to_num(z * slope))
            spacing = np.spacing(size).astype(np.float64)
        roundings = spacing + eps * moved * (activation in layout.SAVES_PRE_ACTIVATION)
        return [ULPS[size.itemsize] * roundings + (1 + np.abs(z)) * np.finfo(dtype).tiny]

    def backward_bounds(eps, before, after):
        return [0.0 if exact else 6 * eps * (1 + PARAMETER) * np.abs(before[0]) + np.finfo(np.float32).tiny]

    for rows, columns in ((1, 1), (3, 1), (1, 7), (5, 17), (0, 4), (4, 0), (13, 33), (7, 32)):
        for alias in (False, True):
            label = f"{activation}-{rows}x{columns}{'-in_place' if alias else ''}"

            def forward(rng, dtype, rows=rows, columns=columns, alias=alias):
                z = matrix(rng, (rows, columns), dtype, False)
                return (
                    (updated(z), code, PARAMETER, Same(0))
                    if alias
                    else (given(z), code, PARAMETER, output(z.shape, dtype))
                )

            def backward(rng, dtype, rows=rows, columns=columns, alias=alias):
                grad = matrix(rng, (rows, columns), dtype, False)
                saved = given(saved_values(activation, matrix(rng, (rows, columns), dtype, False)))
                if alias:
                    return updated(grad), saved, code, PARAMETER, Same(0)
                return given(grad), saved, code, PARAMETER, output(grad.shape, dtype)

            call("activation_forward", label, forward, bounds, quick=True)
            call("activation_backward", label, backward, backward_bounds, quick=True)

    def sweep_forward(rng, dtype):
        points = rng.permutation(sweep(dtype))  # so that every point meets every lane and tail
        points = np.resize(points, (len(points) // 37 + 1, 37))
        return given(points), code, PARAMETER, output(points.shape, dtype)

    def sweep_backward(rng, dtype):
        _, _, _, out = sweep_forward(rng, dtype)
        saved = saved_values(activation, sweep_forward(rng, dtype)[0].value)
        grad = matrix(rng, saved.shape, dtype, False)
        grad[3, 5] = np.nan
        return given(grad), given(saved), code, PARAMETER, out

    call("activation_forward", f"{activation}-sweep", sweep_forward, bounds, quick=True)
    call("activation_backward", f"{activation}-sweep", sweep_backward, backward_bounds, quick=True)


for _activation in layout.ACTIVATIONS:
    activation_calls(_activation)


@behaviour("activation_forward")
def forward_is_the_same_wherever_the_value_stands(backend, dtype):
    z = sweep(dtype)
    for code in range(len(layout.ACTIVATIONS)):
        row, column = np.empty_like(z)[None, :], np.empty_like(z)[:, None]
        backend.activation_forward(z[None, :], code, PARAMETER, row)
        backend.activation_forward(z[:, None].copy(), code, PARAMETER, column)
        np.testing.assert_array_equal(row[0], column[:, 0])


# ----------------------------------------------------------------------------------------- softmax
def probability_gauge(eps, z):
    """Of a softmax: the roundings of the sum, and of ``z - max``, which a rounding moves by eps times its size."""
    spread = z.max(axis=1, keepdims=True, initial=-np.inf) - z
    exponential = np.exp(-spread)
    share = exponential / exponential.sum(axis=1, keepdims=True)
    return ((16 + np.sqrt(z.shape[1])) * eps + eps * np.minimum(spread, 1e4)) * share


def softmax_call(label, make):
    """``make(rng, dtype) -> z``; the result apart or in place."""

    def bounds(eps, before, after):
        with np.errstate(all="ignore"):
            return [np.nan_to_num(probability_gauge(eps, before[0])) + np.finfo(np.float32).tiny]

    def apart(rng, dtype):
        z = make(rng, dtype)
        return given(z), output(z.shape, dtype)

    call("softmax", label, apart, bounds, quick=True)
    call("softmax", f"{label}-in_place", lambda rng, dtype: (updated(make(rng, dtype)), Same(0)), bounds, quick=True)


def softmax_calls():
    shapes = ((0, 3), (3, 0), (1, 1), (5, 1), (3, 2), (5, 7), (8, 10), (17, 16), (1, 17), (9, 33), (13, 64), (4, 513))
    for n, columns in (*shapes, (300, 10), (66, 9)):
        softmax_call(f"{n}x{columns}", lambda rng, dtype, shape=(n, columns): 3 * matrix(rng, shape, dtype, False))
    for columns in (11, 40):
        for size in (0.0, 1e-30, 50.0, 1e4, 3e38):
            softmax_call(
                f"{columns}_of_size_{size:g}",
                lambda rng, dtype, columns=columns, size=size: (
                    rng.choice([-1.0, 0.0, 1.0], (19, columns)) * size
                ).astype(dtype),
            )

        def not_finite(rng, dtype, columns=columns):
            z = matrix(rng, (16, columns), dtype, False)
            z[2, 3] = z[4, -1] = z[5, 0] = np.nan
            z[7, 4], z[8, -1], z[9], z[10, 6], z[11, ::2] = np.inf, np.inf, -np.inf, -np.inf, -np.inf
            z[13, :2], z[14, 1], z[14, 5], z[15, -1] = np.inf, np.inf, -np.inf, -np.inf
            return z

        softmax_call(f"{columns}_not_finite", not_finite)

    for columns in (3, 11):  # the first of a row is not its largest, by more than an exponential can hold
        softmax_call(
            f"{columns}_far_above_the_first",
            lambda rng, dtype, columns=columns: (2000 * np.arange(19 * columns).reshape(19, columns) - 3).astype(dtype),
        )


softmax_calls()


def probabilities(backend, z):
    backend.softmax(z, out := np.empty_like(z))
    return out


@behaviour("softmax")
def slice_is_slice_of_softmax(backend, dtype):
    for columns in (2, 9, 16, 17, 40, 513):
        z = matrix(GENERATOR(51), (50, columns), dtype, False)
        whole = probabilities(backend, z)
        for i, j in ((0, 1), (3, 20), (6, 11), (49, 50)):
            assert_same_bits(probabilities(backend, z[i:j]), whole[i:j])


@behaviour("softmax")
def nan_stays_in_its_row_of_softmax(backend, dtype):
    for columns in (1, 5, 16, 40):
        for bad in (np.nan, np.inf):
            z = matrix(GENERATOR(52), (21, columns), dtype, False)
            z[6, columns // 2] = bad
            out = probabilities(backend, z)
            assert np.isnan(out[6]).all()
            assert np.isfinite(np.delete(out, 6, axis=0)).all()


@behaviour("softmax")
def probabilities_of_a_row_are_shares(backend, dtype):
    """They sum to 1, equal logits have equal shares, a shift by a number is not seen, what is masked gets nothing."""
    for columns in (1, 4, 13, 32, 100):
        z = GENERATOR(53).integers(-8, 9, (30, columns)).astype(dtype)
        out = probabilities(backend, z)
        assert np.abs(out.astype(np.float64).sum(axis=1) - 1).max() < 4 * np.finfo(dtype).eps
        assert_same_bits(probabilities(backend, z + dtype(4096)), out)
        even = np.full((5, columns), -7, dtype)
        np.testing.assert_array_equal(probabilities(backend, even), dtype(1) / dtype(columns))
        z[:, 1::2] = -np.inf
        out = probabilities(backend, z)
        assert (out[:, 1::2] == 0).all()
        np.testing.assert_array_equal(out[:, ::2] > 0, True)


@behaviour("softmax")
def softmax_is_the_gradient_of_cross_entropy_and_its_label(backend, dtype):
    for columns in (3, 16, 40):
        z, labels = 3 * matrix(GENERATOR(54), (23, columns), dtype, False), GENERATOR(55).integers(0, columns, 23)
        grad = evaluate(backend, "cross_entropy", 0.0, z, labels, np.ones(23))[2]
        of_label = np.eye(columns)[labels]
        limit = 2 * probability_gauge(np.finfo(dtype).eps, z.astype(np.float64)) + 4 * np.finfo(dtype).eps * of_label
        assert (np.abs(probabilities(backend, z) - (grad + of_label)) <= limit).all()


# ---------------------------------------------------------------------------------- random numbers
def dropout_calls():
    for n, features in ((0, 3), (1, 1), (3, 7), (8, 16), (17, 33), (5, 513)):
        for probability in (0.0, 0.1, 0.5, 0.999):
            for alias in (False, True):

                def arguments(rng, dtype, n=n, features=features, probability=probability, alias=alias):
                    x, rows = matrix(rng, (n, features), dtype, False), given(rng.integers(0, 2**40, n))
                    x[n // 2 :, features // 2] = np.nan  # stays where it is kept, and only there
                    key = int(rng.integers(-(2**63), 2**63))
                    if alias:
                        return updated(x), rows, key, probability, Same(0)
                    return given(x), rows, key, probability, output(x.shape, dtype)

                def bounds(eps, before, after):
                    return [2 * eps * np.nan_to_num(np.abs(after[4]))]

                label = f"{n}x{features}-{probability:g}{'-in_place' if alias else ''}"
                call("dropout", label, arguments, bounds, quick=True)


dropout_calls()


@behaviour("dropout")
def units_are_kept_as_often_as_asked(backend, dtype):
    ones = np.ones((300, 100), dtype)
    for probability in (0.1, 0.5, 0.9):
        backend.dropout(ones, np.arange(300), 12345, probability, kept := np.empty_like(ones))
        expected, deviation = 1 - probability, math.sqrt(probability * (1 - probability))
        for axis, count in ((None, ones.size), (0, 300), (1, 100)):
            share = np.count_nonzero(kept, axis=axis) / count
            assert np.abs(share - expected).max() < 5 * deviation / math.sqrt(count)
    backend.dropout(ones, np.arange(300), 12345, 0.0, kept)
    assert_same_bits(kept, ones)


@behaviour("dropout")
def units_are_kept_by_key_and_number_of_the_row(backend, dtype):
    x, rows = np.ones((40, 33), dtype), GENERATOR(50).permutation(40)
    in_order, permuted, other_key = (np.empty_like(x) for _ in range(3))
    backend.dropout(x, np.arange(40), 7, 0.5, in_order)
    backend.dropout(x, rows, 7, 0.5, permuted)
    backend.dropout(x, np.arange(40), 2**60, 0.5, other_key)
    assert_same_bits(permuted, in_order[rows])
    assert len(np.unique(np.concatenate([in_order, other_key]), axis=0)) == 80


def shuffle_calls():
    for n in (0, 1, 2, 3, 17, 1000):

        def arguments(rng, dtype, n=n):
            return updated(rng.integers(-5, 2**40, n)), int(rng.integers(-(2**63), 2**63))

        call("shuffle", f"{n}", arguments, lambda eps, before, after: [0.0], quick=True, dtypes=DTYPES[:1])


shuffle_calls()


@behaviour("shuffle", dtypes=DTYPES[:1])
def permutations_are_equally_likely(backend, dtype):
    seen = Counter()
    for key in range(4800):
        backend.shuffle(rows := np.arange(4), key)
        seen[tuple(rows.tolist())] += 1
    assert len(seen) == 24
    statistic = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert statistic < 50  # chi-square of 23 degrees of freedom: once in a thousand


# ------------------------------------------------------------------------------------------ losses
LOSS_PARAMETERS = {
    "cross_entropy": (0.0, 0.1, 0.7),
    "soft_cross_entropy": (0.0, 0.1, 0.7),
    "huber": (0.5, 1.0, 3.0),
    "binary_cross_entropy_with_logits": (1.0, 0.3, 8.0),
    "quantile": (0.5, 0.1, 0.9),
}
SOFTMAX_LOSSES = frozenset({"cross_entropy", "soft_cross_entropy"})
BINARY_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
COUNT_LOSSES = frozenset({"poisson"})  # their targets are not negative
PROBABILITY_LOSSES = frozenset({"binary_cross_entropy"})  # their predictions are in [0, 1]


def loss_parameters(loss):
    """Parameters to try; a loss that has none must not read it."""
    return LOSS_PARAMETERS.get(loss, (np.nan,))


PARAMETRIZED_LOSSES = [(loss, parameter) for loss in layout.LOSSES for parameter in loss_parameters(loss)]


def titled(loss, parameter):
    return loss if np.isnan(parameter) else f"{loss}_{parameter:g}"


def fractions(rng, shape, dtype):
    """Numbers in [0, 1], a quarter of them at the ends."""
    return np.clip(rng.random(shape) * 4 / 3 - 1 / 6, 0, 1).astype(dtype)


def targets(rng, loss, n, out, dtype):
    if loss in layout.LABEL_LOSSES:
        return rng.integers(0, out, n)
    if loss in BINARY_LOSSES:
        return fractions(rng, (n, out), dtype)
    if loss in SOFTMAX_LOSSES:  # distributions; every third row has another sum, every fifth is one class
        target = rng.random((n, out)) + 0.01
        target /= target.sum(axis=1, keepdims=True)
        target[::3] *= 2 * rng.random((len(target[::3]), 1))
        target[::5] = np.eye(out)[rng.integers(0, out, len(target[::5]))]
        return target.astype(dtype)
    if loss in COUNT_LOSSES:
        return (rng.integers(0, 4, (n, out)) * rng.choice([1.0, 0.3, 20.0], (n, out))).astype(dtype)
    return matrix(rng, (n, out), dtype, False)


def predictions(rng, loss, n, out, dtype, scale=3):
    return (
        fractions(rng, (n, out), dtype) if loss in PROBABILITY_LOSSES else scale * matrix(rng, (n, out), dtype, False)
    )


def softmax_gauge(eps, smoothing, prediction, target):
    """Of losses and gradients: the roundings of the sums, of ``s - max``, and of the logarithm."""
    out = prediction.shape[1]
    target = (1 - smoothing) * target + smoothing / out
    gauge, mass = (16 + np.sqrt(out)) * eps, target.sum(axis=1, keepdims=True)
    spread = prediction.max(axis=1, keepdims=True) - prediction
    weighted = np.where(target == 0, 0, target * spread)
    share = mass * probability_gauge(eps, prediction)
    return gauge * (mass[:, 0] * (1 + np.log(out)) + weighted.sum(axis=1)), share + 4 * eps * target


def loss_gauge(eps, loss, parameter, prediction, target):
    """The largest errors of the losses of rows and of their gradients."""
    if loss in layout.LABEL_LOSSES:
        target = np.eye(prediction.shape[1])[target]
    if loss in SOFTMAX_LOSSES:
        return softmax_gauge(eps, parameter, prediction, target)
    out = prediction.shape[1]
    value, slope = reference.LOSSES[loss](prediction, target, parameter)
    value, slope = (16 + np.sqrt(out)) * eps * value, 8 * eps * np.abs(slope)
    if loss == "binary_cross_entropy_with_logits":  # y s is rounded where y is neither 0 nor 1; s(z) - y cancels
        between = (target > 0) & (target < 1)
        size = (2 + parameter) * np.abs(prediction)
        value = value + 4 * eps * np.where(between, size, 0).mean(axis=1)
        slope = slope + 4 * eps * (1 + parameter) * np.abs(target) / out
    if loss == "poisson":  # terms that cancel near the optimum
        mean, logarithm = np.exp(prediction), np.log(np.where(target == 0, 1, target))
        size = mean + np.where(target == 0, 0, target * (1 + np.abs(prediction) + np.abs(logarithm)))
        value, slope = value + 8 * eps * size.mean(axis=1), slope + 8 * eps * (mean + target) / out
    return value, slope


def loss_call(loss, parameter, label, arguments, quick=True, long=False):
    """``arguments(rng, dtype) -> (prediction, target, row_weight)``; the gradient apart or in place."""
    code = layout.LOSSES.index(loss)

    def bounds(eps, before, after):
        _, _, prediction, target, row_weight = before[:5]
        with np.errstate(all="ignore"):
            limits = loss_gauge(eps, loss, parameter, prediction, target)
            value, slope = (np.nan_to_num(limit, posinf=0) for limit in limits)
        smallest = np.finfo(np.float32).tiny  # below, an exponential is 0
        return value + smallest, 0, (slope + smallest) * np.abs(row_weight)[:, None]

    for in_place in (False, True):

        def build(rng, dtype, in_place=in_place):
            prediction, target, row_weight = arguments(rng, dtype)
            n = len(prediction)
            rows = output(n, dtype), output(n, np.int64)
            grad = Same(2) if in_place else output(prediction.shape, dtype)
            make = updated if in_place else given
            return code, parameter, make(prediction), given(target), given(row_weight), *rows, grad

        def in_order(eps, before, after, in_place=in_place):
            row_loss, row_hit, grad = bounds(eps, before, after)
            return (grad, row_loss, row_hit) if in_place else (row_loss, row_hit, grad)

        title = f"{titled(loss, parameter)}-{label}{'-in_place' if in_place else ''}"
        call("loss_forward_backward", title, build, in_order, quick=quick, long=long)


def loss_calls(loss, parameter):
    shapes = [(0, 3), (1, 1), (3, 2), (5, 7), (17, 16), (9, 33), (4, 513), (300, 10)]
    repeated = [(2, 1), (8, 10), (33, 100)]
    for n, out in shapes + repeated:

        def random(rng, dtype, n=n, out=out):
            weight = rng.random(n)
            return predictions(rng, loss, n, out, dtype), targets(rng, loss, n, out, dtype), weight / weight.sum()

        loss_call(loss, parameter, f"{n}x{out}", random, long=(n, out) in repeated)

    # Largest: sums over a row of the largest differences, times delta or smoothed, are numbers.
    for scale in (0.0, 1e-30, 50.0, 1e4, 1e36, *([3e38] if loss in layout.LABEL_LOSSES and parameter == 0 else [])):

        def extreme(rng, dtype, scale=scale):
            prediction = (rng.choice([-1.0, 0.0, 1.0], (41, 11)) * scale).astype(dtype)
            if loss in PROBABILITY_LOSSES:  # close to 0 and to 1
                ends = (prediction > 0).astype(dtype)
                prediction = np.abs(ends - dtype(1e-3) * np.minimum(np.abs(prediction), dtype(100)))
            return prediction, targets(rng, loss, 41, 11, dtype), np.full(41, 1 / 41)

        loss_call(loss, parameter, f"logits_of_size_{scale:g}", extreme)

    def ties(rng, dtype):
        """Logits that are equal, errors of 0 and of delta, probabilities of 0 and 1."""
        if loss in SOFTMAX_LOSSES | BINARY_LOSSES:
            prediction = rng.integers(0, 2 if loss in PROBABILITY_LOSSES else 3, (200, 9))
            target = targets(rng, loss, 200, 9, dtype)
        else:
            prediction, target = rng.integers(-3, 4, (200, 9)) * np.nan_to_num(parameter, nan=1), np.zeros((200, 9))
        target = target if loss in layout.LABEL_LOSSES else target.astype(dtype)
        return prediction.astype(dtype), target, np.full(200, 1 / 200)

    def not_finite(rng, dtype):
        prediction, target = predictions(rng, loss, 16, 21, dtype), targets(rng, loss, 16, 21, dtype)
        prediction[2, 3] = prediction[4, 20] = prediction[5, 0] = np.nan
        prediction[7, 4], prediction[8, 20], prediction[9], prediction[10, 6] = np.inf, np.inf, -np.inf, -np.inf
        prediction[13, :2] = np.inf
        prediction[14, ::2] = -np.inf  # masked, where the target is another class
        if loss in layout.LABEL_LOSSES:
            target[[4, 7, 10, 14]] = 20, 4, 6, 3
        else:
            target[14] = np.arange(21) == 3
            target[12, 5] = np.nan
        return prediction, target, np.full(16, 1 / 16)

    def weightless(rng, dtype):
        weight = rng.integers(0, 2, 50).astype(np.float64)
        return predictions(rng, loss, 50, 6, dtype), targets(rng, loss, 50, 6, dtype), weight / weight.sum()

    loss_call(loss, parameter, "ties", ties)
    loss_call(loss, parameter, "not_finite", not_finite)
    loss_call(loss, parameter, "rows_of_weight_0", weightless)


for _loss, _parameter in PARAMETRIZED_LOSSES:
    loss_calls(_loss, _parameter)


def evaluate(backend, loss, parameter, prediction, target, row_weight=None):
    n = len(prediction)
    row_loss, row_hit, grad = np.empty(n, prediction.dtype), np.empty(n, np.int64), np.empty_like(prediction)
    weight = np.full(n, 1 / n) if row_weight is None else row_weight
    code = layout.LOSSES.index(loss)
    backend.loss_forward_backward(code, parameter, prediction, target, weight, row_loss, row_hit, grad)
    return row_loss, row_hit, grad


@behaviour("loss_forward_backward", dtypes=(np.float64,))
def gradient_is_the_slope_of_the_loss(backend, dtype):
    """Central differences of every row's loss; away from kinks and from the ends of [0, 1]."""
    step = 1e-5
    for loss, parameter in PARAMETRIZED_LOSSES:
        for n, out in ((30, 5), (30, 19)):
            rng = GENERATOR(13)
            prediction, target = predictions(rng, loss, n, out, dtype, scale=1), targets(rng, loss, n, out, dtype)
            if loss in PROBABILITY_LOSSES:
                prediction = 0.1 + 0.8 * prediction
            elif loss not in SOFTMAX_LOSSES | BINARY_LOSSES:
                error = prediction - target
                for kink in (0.0, parameter, -parameter):
                    prediction = np.where(np.abs(error - kink) < 0.01, target + error + 0.05, prediction)
            grad = evaluate(backend, loss, parameter, prediction, target, np.ones(n))[2]
            for j in range(out):
                shift = step * (np.arange(out) == j)
                above, below = (evaluate(backend, loss, parameter, prediction + s, target)[0] for s in (shift, -shift))
                np.testing.assert_allclose(grad[:, j], (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


@behaviour("loss_forward_backward")
def soft_cross_entropy_of_one_class_is_cross_entropy(backend, dtype):
    rng = GENERATOR(14)
    for smoothing in LOSS_PARAMETERS["cross_entropy"]:
        for out in (3, 40):
            prediction, labels = 5 * matrix(rng, (60, out), dtype, False), rng.integers(0, out, 60)
            hard = evaluate(backend, "cross_entropy", smoothing, prediction, labels, np.ones(60))
            onehot = np.eye(out, dtype=dtype)[labels]
            soft = evaluate(backend, "soft_cross_entropy", smoothing, prediction, onehot, np.ones(60))
            limits = softmax_gauge(np.finfo(dtype).eps, smoothing, prediction.astype(np.float64), np.eye(out)[labels])
            for a, b, limit in zip(hard[::2], soft[::2], limits, strict=True):
                assert (np.abs(a - b) <= limit).all()


@behaviour("loss_forward_backward", dtypes=(np.float64,))
def logits_are_probabilities_through_a_sigmoid(backend, dtype):
    rng = GENERATOR(15)
    logits, target = np.linspace(-12, 12, 600).reshape(60, 10), fractions(rng, (60, 10), dtype)
    backend.activation_forward(logits, layout.ACTIVATIONS.index("sigmoid"), 0.0, probability := np.empty_like(logits))
    of_logits, _, slope = evaluate(backend, "binary_cross_entropy_with_logits", 1.0, logits, target)
    of_probability, _, other = evaluate(backend, "binary_cross_entropy", np.nan, probability, target)
    np.testing.assert_allclose(of_logits, of_probability, rtol=1e-9)
    np.testing.assert_allclose(slope, other * probability * (1 - probability), rtol=1e-9, atol=1e-12)


@behaviour("loss_forward_backward")
def small_losses_of_logits_keep_their_digits(backend, dtype):
    logits, target = np.array([[30.0], [-30.0]], dtype), np.array([[1.0], [0.0]], dtype)
    row_loss = evaluate(backend, "binary_cross_entropy_with_logits", 1.0, logits, target)[0]
    np.testing.assert_allclose(row_loss, math.log1p(math.exp(-30)), rtol=8 * np.finfo(dtype).eps)


@behaviour("loss_forward_backward")
def certain_probabilities_have_finite_losses(backend, dtype):
    prediction, target = np.array([[0], [1], [0], [1]], dtype), np.array([[1], [0], [0], [1]], dtype)
    row_loss, _, grad = evaluate(backend, "binary_cross_entropy", np.nan, prediction, target, np.ones(4))
    assert row_loss.tolist() == [100, 100, 0, 0]
    np.testing.assert_allclose(grad[:, 0], [-1e12, 1e12, 0, 0], rtol=4 * np.finfo(dtype).eps)


@behaviour("loss_forward_backward")
def kinks_have_the_slopes_the_contract_names(backend, dtype):
    error, target = np.array([[-3, -0.5, 0, 0.5, 3]], dtype), np.zeros((1, 5), dtype)
    slope = evaluate(backend, "l1", np.nan, error, target, np.full(1, 5.0))[2]
    np.testing.assert_allclose(slope, np.sign(error), rtol=2 * np.finfo(dtype).eps)
    assert slope[0, 2] == 0
    row_loss, _, slope = evaluate(backend, "quantile", 0.25, error, target, np.full(1, 5.0))
    np.testing.assert_allclose(row_loss, (0.25 * 3.5 + 0.75 * 3.5) / 5, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(slope, [[-0.25, -0.25, 0, 0.75, 0.75]], rtol=2 * np.finfo(dtype).eps)
    error, target = np.array([[-3, 3]], dtype), np.zeros((1, 2), dtype)
    for delta in (0.5, 3.0):
        row_loss, _, slope = evaluate(backend, "huber", delta, error, target, np.full(1, 2.0))
        assert row_loss.tolist() == [delta * (3 - delta / 2)]
        assert slope.tolist() == [[-delta, delta]]


@behaviour("loss_forward_backward")
def label_that_is_no_class_is_no_number(backend, dtype):
    """Labels as somebody else may leave them; the rows beside them do not notice."""
    for smoothing in LOSS_PARAMETERS["cross_entropy"]:
        for out in (1, 3, 5, 16, 17, 40):
            rng = GENERATOR(16)
            prediction, labels = matrix(rng, (23, out), dtype, False), rng.integers(0, out, 23)
            good = evaluate(backend, "cross_entropy", smoothing, prediction, labels)
            bad = {2: -1, 3: out, 7: 10**6, 11: -(2**63), 12: 2**63 - 1, 19: 2**32, 22: 2**40 + 1}
            labels[list(bad)] = list(bad.values())
            spoilt = evaluate(backend, "cross_entropy", smoothing, prediction, labels)
            assert np.isnan(spoilt[0][list(bad)]).all()
            assert not spoilt[1][list(bad)].any()
            assert np.isnan(spoilt[2][list(bad)]).all()
            weight = np.full(23, 1 / 23)
            weight[list(bad)] = 0
            left_out = evaluate(backend, "cross_entropy", smoothing, prediction, labels, weight)
            assert not any(part[list(bad)].any() for part in left_out)
            for a, b in zip(good, spoilt, strict=True):
                assert_same_bits(np.delete(a, list(bad), axis=0), np.delete(b, list(bad), axis=0))


@behaviour("loss_forward_backward")
def rows_of_softmax_gradient_sum_to_zero(backend, dtype):
    rng = GENERATOR(10)
    for loss in sorted(SOFTMAX_LOSSES):
        for smoothing in loss_parameters(loss):
            prediction, target = 5 * matrix(rng, (60, 23), dtype, False), targets(rng, loss, 60, 23, dtype)
            grad = evaluate(backend, loss, smoothing, prediction, target, np.ones(60))[2]
            assert np.abs(grad.astype(np.float64).sum(axis=1)).max() < 16 * np.finfo(dtype).eps


@behaviour("loss_forward_backward")
def softmax_does_not_see_a_shift(backend, dtype):
    rng = GENERATOR(11)
    for loss in sorted(SOFTMAX_LOSSES):
        for smoothing in loss_parameters(loss):
            prediction, target = rng.integers(-8, 9, (60, 23)).astype(dtype), targets(rng, loss, 60, 23, dtype)
            shifted = evaluate(backend, loss, smoothing, prediction + dtype(4096), target)
            for a, b in zip(evaluate(backend, loss, smoothing, prediction, target), shifted, strict=True):
                assert_same_bits(a, b)


@behaviour("loss_forward_backward")
def first_of_the_largest_outputs_is_the_guess(backend, dtype):
    prediction = np.array([[1, 3, 3], [3, 3, 1], [2, 2, 2], [np.nan, 1, 0], [0, 1, np.nan]], dtype)
    wide = np.full((5, 40), -7, dtype)  # one row at a time, where few classes are a row a lane
    wide[:, 20:23] = prediction
    for smoothing in LOSS_PARAMETERS["cross_entropy"]:
        for label, hits in enumerate(([0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0])):
            for rows, shift in ((prediction, 0), (wide, 20)):
                guessed = evaluate(backend, "cross_entropy", smoothing, rows, np.full(5, label + shift))[1]
                assert guessed.tolist() == hits


@behaviour("loss_forward_backward")
def rows_without_a_label_add_nothing(backend, dtype):
    """A label below 0 is none, whatever the logits, where the row's weight is 0; the other rows do not see it."""
    rng = GENERATOR(24)
    for out in (3, 40):  # few classes are a row a lane
        for smoothing in LOSS_PARAMETERS["cross_entropy"]:
            prediction, labels = 5 * matrix(rng, (37, out), dtype, False), rng.integers(0, out, 37)
            without = np.isin(np.arange(37), (0, 3, 4, 20, 36))
            weight = np.where(without, 0.0, 1.0)
            whole = evaluate(backend, "cross_entropy", smoothing, prediction, labels, weight)
            labels[without] = -1, -100, -1, -(2**40), -1
            prediction[4], prediction[20, 1] = np.nan, np.inf
            row_loss, row_hit, grad = evaluate(backend, "cross_entropy", smoothing, prediction, labels, weight)
            for result, before in zip((row_loss, row_hit, grad), whole, strict=True):
                assert not result[without].any()
                assert_same_bits(result[~without], before[~without])


@behaviour("loss_forward_backward")
def slice_is_slice_of_loss(backend, dtype):
    rng = GENERATOR(12)
    for loss, parameter in PARAMETRIZED_LOSSES:
        prediction, target = predictions(rng, loss, 50, 19, dtype), targets(rng, loss, 50, 19, dtype)
        weight = rng.random(50)
        whole = evaluate(backend, loss, parameter, prediction, target, weight)
        for i, j in ((0, 1), (3, 20), (49, 50)):
            part = evaluate(backend, loss, parameter, prediction[i:j], target[i:j], weight[i:j])
            for a, b in zip(part, whole, strict=True):
                assert_same_bits(a, b[i:j])


# -------------------------------------------------------------------------------------- optimizers
def adam_coefficients(t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, l2=0.0, decay=0.0):
    root = math.sqrt(1 - beta2**t)
    return [lr * root / (1 - beta1**t), beta1, 1 - beta1, beta2, 1 - beta2, eps * root, l2, lr * decay]


# The scalars of a step t = 1, 2, ... from the hyperparameters of textbooks.
COEFFICIENTS = {
    "sgd": lambda t, lr=0.1, l2=0.0: [lr, l2],
    "momentum": lambda t, lr=0.1, l2=0.0, mu=0.9, gain=1.0: [lr, l2, mu, gain],
    "nesterov": lambda t, lr=0.1, l2=0.0, mu=0.9: [lr, l2, mu],
    "rmsprop": lambda t, lr=0.01, l2=0.0, b=0.99, inside=0.0, outside=1e-8: [lr, l2, b, 1 - b, inside, outside],
    "adam": adam_coefficients,
    "lion": lambda t, lr=0.01, beta1=0.9, beta2=0.99, decay=0.0: [lr, beta1, 1 - beta1, beta2, 1 - beta2, lr * decay],
    "amsgrad": adam_coefficients,
}
HYPERPARAMETERS = {
    "sgd": ({}, {"l2": 0.1}),
    "momentum": ({}, {"mu": 0.75, "gain": 0.25}, {"l2": 0.1}),
    "nesterov": ({}, {"mu": 0.5, "l2": 0.1}),
    "rmsprop": ({}, {"inside": 1e-6, "outside": 0.0}, {"b": 0.9, "l2": 0.1}),
    "adam": ({}, {"l2": 0.1}, {"decay": 0.1, "beta2": 0.99}),
    "lion": ({}, {"decay": 0.1, "beta1": 0.5, "beta2": 0.75}),
    "amsgrad": ({}, {"l2": 0.1}, {"decay": 0.1, "beta2": 0.5}),
}


def coefficients(optimizer, t, **hyperparameters):
    values = np.full(layout.COEFFICIENTS, np.nan)  # what the optimizer does not name, it must not read
    named = COEFFICIENTS[optimizer](t, **hyperparameters)
    values[: len(named)] = named
    return values


def plain_bounds(eps, values, grad, before, after, lr, l2, mu=0.0, gain=1.0):
    """Of gradient descent and of both momenta: the errors of the values and of the velocity."""
    size = np.abs(grad) + np.abs(l2 * values)
    velocity = [4 * eps * (np.abs(mu * old) + gain * size) for old in before]
    step = 4 * eps * (size + sum(np.abs(new) for new in after)) + sum(velocity)
    return [4 * eps * np.abs(values) + lr * step, *velocity]


def square_bounds(eps, values, grad, square_avg, after, l2, b, c):
    """Of ``g + l2 W`` and of the average of its squares."""
    error = 2 * eps * (np.abs(grad) + np.abs(l2 * values))
    grad = grad + l2 * values
    square = 4 * eps * (np.abs(b * square_avg) + c * grad * grad) + 2 * c * np.abs(grad) * error
    return error, square, square / np.maximum(after, np.finfo(np.float32).tiny)


def rmsprop_bounds(eps, values, grad, before, after, lr, l2, b, c, inside, outside):
    error, square, relative = square_bounds(eps, values, grad, before[0], after[0] + inside, l2, b, c)
    size = lr / (np.sqrt(after[0] + inside) + outside)
    grad = np.abs(grad + l2 * values)
    return [4 * eps * np.abs(values) + size * (error + grad * (6 * eps + relative)), square]


def adam_bounds(eps, values, grad, before, after, a, b1, c1, b2, c2, e, l2, decay):
    error, square, relative = square_bounds(eps, values, grad, before[1], after[1], l2, b2, c2)
    first = 4 * eps * (np.abs(b1 * before[0]) + np.abs(c1 * (grad + l2 * values))) + c1 * error
    size = a / (np.sqrt(after[1]) + e)
    return [4 * eps * np.abs(values) + size * (first + np.abs(after[0]) * (6 * eps + relative)), first, square]


def amsgrad_bounds(eps, values, grad, before, after, a, b1, c1, b2, c2, e, l2, decay):
    """Those of adam, by the largest average of squares."""
    _, first, square = adam_bounds(eps, values, grad, before[:2], after[:2], a, b1, c1, b2, c2, e, l2, decay)
    size = a / (np.sqrt(after[2]) + e)
    relative = square / np.maximum(after[2], np.finfo(np.float32).tiny)
    step = 4 * eps * np.abs(values) + size * (first + np.abs(after[0]) * (6 * eps + relative))
    return [step, first, square, square]


def lion_bounds(eps, values, grad, before, after, lr, b1, c1, b2, c2, decay):
    """A sum that is nothing but rounding may have any sign."""
    rounding = 4 * eps * (np.abs(b1 * before[0]) + np.abs(c1 * grad))
    uncertain = np.abs(b1 * before[0] + c1 * grad) < rounding
    step = 4 * eps * (np.abs(values) + lr) + 2 * lr * uncertain
    return [step, 4 * eps * (np.abs(b2 * before[0]) + np.abs(c2 * grad))]


STEP_BOUNDS = {
    "sgd": plain_bounds,
    "momentum": plain_bounds,
    "nesterov": plain_bounds,
    "rmsprop": rmsprop_bounds,
    "adam": adam_bounds,
    "lion": lion_bounds,
    "amsgrad": amsgrad_bounds,
}


MORE_SIZES = (2, 7, 15, 31, 63, 64, 1000)


def optimizer_calls(optimizer, variant, hyperparameters):
    code = layout.OPTIMIZERS.index(optimizer)

    def bounds(eps, before, after):
        _, scalars, values, grad, state = before
        named = scalars[: len(COEFFICIENTS[optimizer](1))]
        return STEP_BOUNDS[optimizer](eps, values, grad, state, after[4], *named)

    for size in (0, 1, 3, 16, 17, 65, 4099, *MORE_SIZES):
        for t in (1, 1000):

            def arguments(rng, dtype, size=size, t=t):
                values, grad, m = (matrix(rng, size, dtype, False) for _ in range(3))
                grad[::7] = 0
                # The first state is a velocity or an average of gradients, but that of rmsprop is one of squares.
                state = [m, *(np.square(matrix(rng, size, dtype, False)) for _ in range(2))][optimizer == "rmsprop" :]
                state = state[: layout.OPTIMIZER_STATES[optimizer]]
                states = tuple(updated(buffer * dtype(t > 1)) for buffer in state)
                scalars = given(coefficients(optimizer, t, **hyperparameters))
                return code, scalars, updated(values), given(grad), states

            label = f"{optimizer}_{variant}-{size}-step_{t}"
            call("optimizer_step", label, arguments, bounds, quick=True, long=size in MORE_SIZES)


for _optimizer in layout.OPTIMIZERS:
    for _variant, _hyperparameters in enumerate(HYPERPARAMETERS[_optimizer]):
        optimizer_calls(_optimizer, _variant, _hyperparameters)


def zero_state(optimizer, shape, dtype):
    return tuple(np.zeros(shape, dtype) for _ in range(layout.OPTIMIZER_STATES[optimizer]))


# The algorithms as books have them, on Python floats: (t, w, g, state, hyperparameters) -> w; state is a list.
def textbook_sgd(t, w, g, state, lr, l2=0.0):
    return w - lr * (g + l2 * w)


def textbook_momentum(t, w, g, state, lr, mu, gain=1.0, l2=0.0):
    """Polyak, 1964; with ``gain = 1 - mu`` the step is along an average of the gradients."""
    state[0] = mu * state[0] + gain * (g + l2 * w)
    return w - lr * state[0]


def textbook_nesterov(t, w, g, state, lr, mu, l2=0.0):
    """Sutskever et al., 2013, in the variable at which PyTorch takes the gradient."""
    g += l2 * w
    state[0] = mu * state[0] + g
    return w - lr * (g + mu * state[0])


def textbook_rmsprop(t, w, g, state, lr, b, inside=0.0, outside=0.0, l2=0.0):
    """Hinton's lecture 6e, 2012; epsilon inside the root as in Graves, 2013, or outside as in PyTorch."""
    g += l2 * w
    state[0] = b * state[0] + (1 - b) * g**2
    return w - lr * g / (math.sqrt(state[0] + inside) + outside)


def textbook_adam(t, w, g, state, lr, beta1=0.9, beta2=0.999, eps=1e-8, l2=0.0, decay=0.0):
    """Kingma & Ba, 2015, algorithm 1; Loshchilov & Hutter, 2019, algorithm 2, for l2 and decay."""
    g += l2 * w
    state[0] = beta1 * state[0] + (1 - beta1) * g
    state[1] = beta2 * state[1] + (1 - beta2) * g**2
    first, second = state[0] / (1 - beta1**t), state[1] / (1 - beta2**t)
    return w - lr * first / (math.sqrt(second) + eps) - lr * decay * w


def textbook_amsgrad(t, w, g, state, lr, beta1=0.9, beta2=0.999, eps=1e-8, l2=0.0, decay=0.0):
    """Reddi et al., 2018, algorithm 2, with the bias corrections and the decay of `textbook_adam`, as in PyTorch."""
    g += l2 * w
    state[0] = beta1 * state[0] + (1 - beta1) * g
    state[1] = beta2 * state[1] + (1 - beta2) * g**2
    state[2] = max(state[2], state[1])
    first, second = state[0] / (1 - beta1**t), state[2] / (1 - beta2**t)
    return w - lr * first / (math.sqrt(second) + eps) - lr * decay * w


def textbook_lion(t, w, g, state, lr, beta1=0.9, beta2=0.99, decay=0.0):
    """Chen et al., 2023, algorithm 2."""
    update = math.copysign(1, beta1 * state[0] + (1 - beta1) * g)
    state[0] = beta2 * state[0] + (1 - beta2) * g
    return w - lr * (update + decay * w)


TEXTBOOKS = (
    (textbook_sgd, "sgd", {"lr": 0.05}),
    (textbook_sgd, "sgd", {"lr": 0.05, "l2": 0.3}),
    (textbook_momentum, "momentum", {"lr": 0.02, "mu": 0.9}),
    (textbook_momentum, "momentum", {"lr": 0.05, "mu": 0.9, "gain": 1 - 0.9}),
    (textbook_momentum, "momentum", {"lr": 0.02, "mu": 0.9, "l2": 0.3}),
    (textbook_nesterov, "nesterov", {"lr": 0.02, "mu": 0.9}),
    (textbook_nesterov, "nesterov", {"lr": 0.02, "mu": 0.9, "l2": 0.3}),
    (textbook_rmsprop, "rmsprop", {"lr": 0.01, "b": 0.99, "outside": 1e-8}),
    (textbook_rmsprop, "rmsprop", {"lr": 0.01, "b": 0.9, "inside": 1e-2, "outside": 0.0}),
    (textbook_rmsprop, "rmsprop", {"lr": 0.01, "b": 0.9, "outside": 1e-2, "l2": 0.3}),
    (textbook_adam, "adam", {"lr": 0.01}),
    (textbook_adam, "adam", {"lr": 0.01, "eps": 1e-2, "l2": 0.3}),
    (textbook_adam, "adam", {"lr": 0.01, "decay": 0.3}),
    (textbook_amsgrad, "amsgrad", {"lr": 0.01, "beta2": 0.5}),
    (textbook_amsgrad, "amsgrad", {"lr": 0.01, "beta2": 0.5, "eps": 1e-2, "l2": 0.3}),
    (textbook_amsgrad, "amsgrad", {"lr": 0.01, "beta2": 0.5, "decay": 0.3}),
    (textbook_lion, "lion", {"lr": 0.01}),
    (textbook_lion, "lion", {"lr": 0.01, "beta1": 0.5, "beta2": 0.75, "decay": 0.3}),
)


@behaviour("optimizer_step")
def optimizers_are_the_textbooks(backend, dtype):
    """50 steps; errors of the state add up over ``1 / (1 - mu)`` steps."""
    for textbook, optimizer, hyperparameters in TEXTBOOKS:
        rng = GENERATOR(20)
        exact, exact_state = [0.5, -1.5, 2.0], [[0.0, 0.0, 0.0] for _ in range(3)]
        values, state = np.array(exact, dtype), zero_state(optimizer, 3, dtype)
        for t in range(1, 51):
            grad = rng.standard_normal(3).astype(dtype)
            scalars = coefficients(optimizer, t, **hyperparameters)
            backend.optimizer_step(layout.OPTIMIZERS.index(optimizer), scalars, values, grad, state)
            exact = [
                textbook(t, w, g, own, **hyperparameters)
                for w, g, own in zip(exact, grad.tolist(), exact_state, strict=True)
            ]
        np.testing.assert_allclose(values, exact, rtol=0, atol=100 * np.finfo(dtype).eps, err_msg=textbook.__name__)


@behaviour("optimizer_step")
def split_buffer_gives_the_same_bits(backend, dtype):
    rng = GENERATOR(21)
    for code, optimizer in enumerate(layout.OPTIMIZERS):
        values, grad = (matrix(rng, 131, dtype, False) for _ in range(2))
        state = tuple(np.square(matrix(rng, 131, dtype, False)) for _ in zero_state(optimizer, 131, dtype))
        scalars = coefficients(optimizer, 3)
        whole, whole_state = values.copy(), tuple(s.copy() for s in state)
        backend.optimizer_step(code, scalars, whole, grad, whole_state)
        for cut in (0, 1, 15, 16, 17, 64, 100, 131):
            part, part_state = values.copy(), tuple(s.copy() for s in state)
            for piece in (slice(0, cut), slice(cut, 131)):
                backend.optimizer_step(code, scalars, part[piece], grad[piece], tuple(s[piece] for s in part_state))
            for a, b in zip((whole, *whole_state), (part, *part_state), strict=True):
                assert_same_bits(a, b)


@behaviour("optimizer_call")
def calls_are_steps_that_wait_to_be_called(backend, dtype):
    rng = GENERATOR(25)
    for code, optimizer in enumerate(layout.OPTIMIZERS):
        values, grad = (matrix(rng, 37, dtype, False) for _ in range(2))
        stepped = [values.copy(), grad, *zero_state(optimizer, 37, dtype)]
        called = [backend.to_device(array.copy()) for array in stepped]
        scalars = coefficients(optimizer, 1)
        to_call = backend.optimizer_call(code, scalars, called[0], called[1], tuple(called[2:]))
        assert_same_bits(backend.to_host(called[0]), values)
        to_call()
        backend.optimizer_step(code, scalars, stepped[0], stepped[1], tuple(stepped[2:]))
        for a, b in zip(called, stepped, strict=True):
            assert_same_bits(backend.to_host(a), b)


@behaviour("optimizer_step")
def learning_rate_0_leaves_values(backend, dtype):
    rng = GENERATOR(22)
    for code, optimizer in enumerate(layout.OPTIMIZERS):
        values, grad = (matrix(rng, 33, dtype, False) for _ in range(2))
        before = values.copy()
        scalars = coefficients(optimizer, 1, lr=0.0)
        backend.optimizer_step(code, scalars, values, grad, zero_state(optimizer, 33, dtype))
        assert_same_bits(values, before)


@behaviour("optimizer_step")
def nan_gradient_stays_in_its_element(backend, dtype):
    rng = GENERATOR(23)
    for code, optimizer in enumerate(layout.OPTIMIZERS):
        values, grad = (matrix(rng, 37, dtype, False) for _ in range(2))
        grad[20] = np.nan
        backend.optimizer_step(code, coefficients(optimizer, 1), values, grad, zero_state(optimizer, 37, dtype))
        np.testing.assert_array_equal(np.isnan(values), np.arange(37) == 20)


# ----------------------------------------------------------------------------------------- network
class Network(NamedTuple):
    """Widths, and an activation a layer.

    ``separate`` gives each activation a row of its own; ``dropout`` stands before every layer; ``norm`` (a kind of
    layer) after every hidden one; ``residual`` puts each layer that keeps its width, with its norm, beside its input.
    """

    widths: tuple
    activations: tuple
    bias: bool = True
    separate: bool = False
    dropout: float = 0.0
    norm: str = ""
    residual: bool = False

    def __str__(self):
        flags = (
            "-no_bias" * (not self.bias) + "-separate" * self.separate + f"-dropout_{self.dropout}" * bool(self.dropout)
            + f"-{self.norm}" * bool(self.norm) + "-residual" * self.residual
        )  # fmt: skip
        return f"{'_'.join(map(str, self.widths))}-{'_'.join(self.activations)}{flags}"

    def suited(self, loss):
        """This network, its outputs in [0, 1] where the loss takes probabilities, or their exponential."""
        if loss not in PROBABILITY_LOSSES | COUNT_LOSSES:
            return self
        return self._replace(activations=(*self.activations[:-1], "sigmoid"))

    def lower(self, dtype):
        layers = []
        for fan_in, fan_out, activation in zip(self.widths, self.widths[1:], self.activations, strict=False):
            block = []
            if self.dropout:
                block.append(program.Layer("dropout", fan_in, fan_in, parameter=self.dropout))
            joined = "identity" if self.separate else activation
            block.append(program.Layer("linear", fan_in, fan_out, self.bias, joined, PARAMETER))
            if self.separate:
                block.append(program.Layer("activation", fan_out, fan_out, False, activation, PARAMETER))
            if self.norm and len(layers) < len(self.activations) - 1:
                block.append(program.Layer(self.norm, fan_out, fan_out, self.bias, parameter=1e-3, momentum=0.25))
            if self.residual and fan_in == fan_out:
                block = [program.Layer("residual", fan_in, fan_in, inside=tuple(block))]
            layers += block
        return program.lower(layers, np.dtype(dtype).itemsize)

    def parameters(self, rng, dtype, integers=False, padding=np.nan):
        """A parameter buffer; every element that is no parameter is ``padding``."""
        lowered = self.lower(dtype)
        buffer = layout.aligned_empty(lowered.size, dtype)
        buffer[...] = padding
        for array in lowered.arrays:
            view = array.view(buffer)
            if integers:  # about six entries of ±1 a column, so that sums stay exact through the layers
                signs = rng.integers(-1, 2, view.shape)
                sparse = rng.random(view.shape) < 9 / max(9, len(view)) if view.ndim == 2 else 1
                view[...] = signs * sparse
            elif view.ndim == 2:
                view[...] = rng.standard_normal(view.shape) / np.sqrt(len(view))
            else:
                view[...] = 0.1 * rng.standard_normal(view.shape)
        return lowered, buffer

    def statistics(self, rng, dtype, padding=np.nan):
        """A buffer of running statistics, likewise."""
        lowered = self.lower(dtype)
        buffer = layout.aligned_empty(lowered.statistics_size, dtype)
        buffer[...] = padding
        for array in lowered.statistics:
            array.view(buffer)[...] = rng.random(array.shape) + 0.5
        return buffer

    def real(self, dtype):
        """Which elements of the buffer are parameters."""
        return _real(self.lower(dtype).arrays, self.lower(dtype).size)


def _real(arrays, size):
    mask = np.zeros(size, bool)
    for array in arrays:
        array.view(mask)[...] = True
    return mask


def batch(rng, shape, dtype):
    """Values every dtype here holds exactly, so that what a backend converts is what the reference reads."""
    kind = np.dtype(dtype).kind
    if kind == "f":
        return rng.standard_normal(shape).astype(np.float32).astype(dtype)
    return rng.integers(0 if kind in "ub" else -3, 2 if kind == "b" else 5, shape).astype(dtype)


NETWORKS = [
    *(Network((7, 3), (a,)) for a in layout.ACTIVATIONS),
    *(
        Network((5, 17, 4), (a, "identity"), separate=separate)
        for a in layout.ACTIVATIONS
        for separate in (False, True)
    ),
    *(Network((13, 33, 8, 3), (a, a, a), bias=False) for a in layout.ACTIVATIONS),
    *(Network((4, 16, 7, 12, 2), (a, b, a, "identity")) for a, b in pairwise(layout.ACTIVATIONS)),
    Network((9, 3), ("identity",), dropout=0.5),
    Network((5, 40, 17, 4), ("tanh", "gelu", "identity"), dropout=0.25),
    Network((5, 40, 17, 4), ("tanh", "gelu", "identity"), separate=True, dropout=0.25),
    Network((1, 1), ("identity",)),
    Network((1, 2, 2, 1), ("relu", "relu", "identity")),
    Network((64, 128, 10), ("relu", "identity")),
    Network((600, 33, 10), ("tanh", "identity")),
    *(
        Network((5, 17, 17, 4), ("tanh", "gelu", "identity"), norm=norm, residual=residual, bias=bias, dropout=dropout)
        for norm, residual, bias, dropout in (
            ("layer_norm", False, True, 0.0),
            ("layer_norm", True, True, 0.0),
            ("layer_norm", True, False, 0.25),
            ("batch_norm", False, True, 0.0),
            ("batch_norm", True, True, 0.0),
            ("batch_norm", True, False, 0.25),
            ("", True, True, 0.0),
            ("", True, True, 0.25),
        )
    ),
    Network((64, 130, 130, 10), ("relu", "silu", "identity"), norm="layer_norm", residual=True, separate=True),
    Network((64, 130, 130, 10), ("relu", "silu", "identity"), norm="batch_norm", residual=True, separate=True),
    Network((6, 6, 6, 6), ("relu", "gelu", "tanh"), residual=True),
    Network((513, 257, 129, 11), ("tanh", "sigmoid", "identity")),
]
BIG = NETWORKS[-1]
# One a loss, for what takes a millisecond a number.
SMALL_NETWORKS = (
    Network((6, 17, 4), ("gelu", "identity"), separate=True),
    Network((6, 1), ("identity",)),
    Network((6, 3), ("identity",)),
    Network((6, 3), ("identity",), dropout=0.5),
    Network((6, 17, 4), ("silu", "identity")),
    Network((6, 3), ("sigmoid",)),
    Network((6, 16, 7, 12, 2), ("leaky_relu", "elu", "leaky_relu", "identity")),
    Network((6, 2, 2, 1), ("relu", "relu", "identity")),
)
INPUT_DTYPES = (np.float32, np.float64, np.uint8, np.int64, np.bool_)


def error_of_chain(eps, layers, number, lowered, parameters, statistics, x, error=0.0):
    """(the next row of layers, its input, a bound of that input's error) after some layers."""
    x = x.astype(np.float64)
    error = error + np.zeros_like(x)
    pairs = lowered.views(parameters)
    running = {(array.row, array.name): array.view(statistics) for array in lowered.statistics}
    for layer in layers:
        if layer.kind == "residual":
            number, inner, inner_error = error_of_chain(
                eps, layer.inside, number, lowered, parameters, statistics, x, error
            )
            x, error = x + inner, error + inner_error + 2 * eps * np.abs(x + inner)
            continue
        weight, bias = (0.0 if view is None else view for view in pairs[number])
        if layer.kind == "linear":
            error = error @ np.abs(weight) + product_gauge(eps, x, weight, bias)
            x = x @ weight + bias
        elif layer.kind in ("layer_norm", "batch_norm"):
            mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
            if layer.kind == "batch_norm":
                mean, var = running[number, "running_mean"], running[number, "running_var"]
            gain = (weight if layer.affine else 1.0) / np.sqrt(var + layer.parameter)
            widest = error.max(axis=1, keepdims=True) + 16 * eps * (np.abs(x) + np.abs(mean)).max(axis=1, keepdims=True)
            x = (x - mean) * gain + (bias if layer.affine else 0.0)
            error = 4 * np.abs(gain) * widest * (1 + np.abs(x)) + 8 * eps * np.abs(x)
        if layer.kind in ("linear", "activation"):
            x = saved_values(layer.activation, x)
            error = error + 8 * eps * (1 + np.abs(x)) * (layer.activation not in EXACT)
        number += 1
    return number, x, error


def forward_call(network, n, x_dtype, quick, long):
    def arguments(rng, dtype):
        rows, parameters = network.parameters(rng, dtype)
        x = given(batch(rng, (n, network.widths[0]), x_dtype), strided=False)
        out = output((n, network.widths[-1]), dtype, strided=False)
        statistics = given(network.statistics(rng, dtype), aligned=True)
        return Workspace("InferenceWorkspace", rows), given(parameters, aligned=True), statistics, x, out

    def bounds(eps, before, after):
        workspace, parameters, statistics, x, _ = before
        return [error_of_chain(eps, workspace.program.layers, 0, workspace.program, parameters, statistics, x)[2]]

    call("network_forward", f"{network}-{n}-{np.dtype(x_dtype).name}", arguments, bounds, quick, long=long)


class Training(NamedTuple):
    """What a training call needs besides its network."""

    loss: str
    optimizer: str
    examples: int  # in x
    used: int  # rows, in an order of their own
    batch_size: int
    weights: bool = False
    x_dtype: type = np.float32
    parameter: float = 0.0  # of the loss

    def __str__(self):
        rest = f"{self.used}@{self.batch_size}-{np.dtype(self.x_dtype).name}{'-weights' * self.weights}"
        return f"{titled(self.loss, self.parameter)}-{self.optimizer}-{rest}"

    def codes(self):
        """What a workspace takes after the batch size."""
        return layout.LOSSES.index(self.loss), self.parameter, layout.OPTIMIZERS.index(self.optimizer)


# Position of an argument of network_train_steps.
AT = {name: i for i, name in enumerate(inspect.signature(reference.network_train_steps).parameters)}
# Those that divide by the size of the gradient have an eps far above its rounding, which keeps that smooth.
TRAINING_HYPERPARAMETERS = {
    "sgd": {"lr": 2.0**-4},
    "momentum": {"lr": 2.0**-5, "mu": 0.5, "l2": 1e-3},
    "nesterov": {"lr": 2.0**-5, "mu": 0.5, "l2": 1e-3},
    "rmsprop": {"lr": 1e-2, "b": 0.9, "outside": 1e-2, "l2": 1e-3},
    "adam": {"lr": 1e-2, "eps": 1e-2, "decay": 0.1},
    "lion": {"lr": 2.0**-8, "beta1": 0.5, "beta2": 0.5, "decay": 0.1},
    "amsgrad": {"lr": 1e-2, "eps": 1e-2, "beta2": 0.5, "decay": 0.1},
}


# An error of the parameters, as a multiple of eps and of the largest parameter or change, after three steps.
TRAINING_GAUGE = 100


def training_targets(rng, training, out, integers):
    """Targets of a dtype that is gathered: exact in each, and ones that the loss takes."""
    shape, kind = (training.examples, out), np.dtype(training.x_dtype).kind
    if training.loss in layout.LABEL_LOSSES:
        return rng.integers(0, out, training.examples)
    if integers:
        return rng.integers(-2, 3, shape).astype(training.x_dtype)
    if training.loss in SOFTMAX_LOSSES | BINARY_LOSSES | COUNT_LOSSES:
        return (rng.integers(0, 5, shape) / 4 if kind == "f" else rng.integers(0, 2, shape)).astype(training.x_dtype)
    return batch(rng, shape, training.x_dtype)


def training_arguments(network, training, rng, dtype, integers=False, padding=np.nan):
    network = network.suited(training.loss)
    rows, parameters = network.parameters(rng, dtype, integers, padding)
    steps = -(-training.used // training.batch_size)
    if integers:
        x = rng.integers(-1, 3, (training.examples, network.widths[0])).astype(training.x_dtype)
    else:
        x = batch(rng, (training.examples, network.widths[0]), training.x_dtype)
    target = training_targets(rng, training, network.widths[-1], integers)
    state = []
    for _ in range(layout.OPTIMIZER_STATES[training.optimizer]):
        # An average far from 0 has its sign whatever the rounding of a gradient.
        start = rng.choice((-1.0, 1.0), len(parameters)) if training.optimizer == "lion" else 0
        state.append(np.where(network.real(dtype), start, padding).astype(dtype))
    hyperparameters = TRAINING_HYPERPARAMETERS[training.optimizer]
    scalars = np.array([coefficients(training.optimizer, t + 1, **hyperparameters) for t in range(steps)])
    return (
        Workspace("TrainingWorkspace", rows, (training.batch_size, *training.codes())),
        updated(parameters, aligned=True),
        updated(network.statistics(rng, dtype, padding), aligned=True),
        tuple(updated(s, aligned=True) for s in state),
        given(scalars.reshape(steps, layout.COEFFICIENTS), strided=False),
        given(rng.integers(0, 2**64, steps, dtype=np.uint64)),
        given(x, strided=False),
        given(target, strided=False),
        given(rng.random(training.examples) + 0.5) if training.weights else None,
        given(rng.permutation(training.examples)[: training.used]),
        training.batch_size,
        output(steps, np.float64),
        output(steps, np.int64),
    )


def training_call(network, training, quick, integers=False, dtypes=DTYPES, long=False):
    def arguments(rng, dtype):
        return training_arguments(network, training, rng, dtype, integers)

    def bounds(eps, before, after):
        limits = []
        for old, new in zip((*before[1:3], *before[3]), (*after[1:3], *after[3]), strict=True):
            real = ~np.isnan(old)
            limit = np.full(len(real), np.nan)
            change = np.abs(new[real] - old[real]).max(initial=0)
            limit[real] = 0.0 if integers else TRAINING_GAUGE * eps * max(change, np.abs(new[real]).max(initial=0))
            limits.append(limit)
        return [*limits, 0.0 if integers else TRAINING_GAUGE * eps * np.abs(after[AT["step_loss"]]), 0]

    label = f"{network}-{training}{'-integers' if integers else ''}"
    call("network_train_steps", label, arguments, bounds, quick, dtypes, long)


def add_network_cases():
    for i, network in enumerate(NETWORKS):
        for j, n in enumerate((1, 2, 13, 77, 300)):
            turn = (i + j) % 4
            forward_call(network, n, INPUT_DTYPES[(i + j) % len(INPUT_DTYPES)], quick=turn == 0, long=turn == 2)
        for j, loss in enumerate(layout.LOSSES):
            if network.widths[-1] == 1 and loss in SOFTMAX_LOSSES:
                continue  # one class is certain: the gradient is nothing but rounding
            size = (77, 16, 1, 30)[(i + j) % 4] if network is not BIG else 77
            if network.norm == "batch_norm" and size == 1:
                size = 5  # a single row is all mean
            training = Training(
                loss,
                layout.OPTIMIZERS[(i + j) % len(layout.OPTIMIZERS)],
                examples=3 * size + 5,
                used=3 * size - size // 3,  # the last batch is short
                batch_size=size,
                weights=(i + j) % 3 == 0,
                x_dtype=INPUT_DTYPES[(i // 2 + j) % len(INPUT_DTYPES)],
                parameter=loss_parameters(loss)[i % len(loss_parameters(loss))],
            )
            training_call(network, training, quick=(i + 2 * j) % 3 == 0, long=(i + 2 * j) % 3 == 1)
    for i, (loss, network) in enumerate(zip(layout.LOSSES, cycle(SMALL_NETWORKS), strict=False)):
        size, used = ((16, 43), (1, 3))[i % 2]
        training = Training(
            loss,
            layout.OPTIMIZERS[i % len(layout.OPTIMIZERS)],
            examples=used + 10,
            used=used,
            batch_size=size,
            weights=i % 3 == 0,
            x_dtype=INPUT_DTYPES[i % len(INPUT_DTYPES)],
            parameter=loss_parameters(loss)[-1],
        )
        training_call(network, training, quick=False)
    relu = Network(BIG.widths, ("relu", "relu", "identity"))
    # One step on integers is exact: no unit of a wide ReLU network can fall to the other side of zero by rounding.
    for network in (
        relu,
        Network((70, 65, 9), ("relu", "identity")),
        Network((9, 33, 33, 2), ("relu", "relu", "relu")),
    ):
        for size in (64, 32, 4):
            training = Training("half_squared_error", "sgd", examples=70, used=size, batch_size=size)
            training_call(network, training, quick=True, integers=True)
    # Gradients that are made in several blocks of columns: a layer too wide, and batches too tall, for one.
    wide = Network((3, 4100, 2), ("tanh", "identity"))
    for network, loss, size in ((wide, "cross_entropy", 30), (BIG, "half_squared_error", 500)):
        training_call(network, Training(loss, "adam", 2 * size, 2 * size - 7, size), quick=False)
    training_call(relu, Training("cross_entropy", "adam", 240, 210, 77), quick=False, dtypes=(np.float64,))
    training_call(relu, Training("mean_squared_error", "sgd", 240, 210, 77), quick=False, dtypes=(np.float64,))


add_network_cases()


def infer(backend, network, x, dtype, padding=np.nan):
    rows, parameters = network.parameters(GENERATOR(30), dtype, padding=padding)
    out = np.empty((len(x), network.widths[-1]), dtype)
    statistics = network.statistics(GENERATOR(29), dtype, padding)
    backend.network_forward(backend.InferenceWorkspace(rows, dtype), parameters, statistics, x, out)
    return out


def train(backend, network, training, dtype, padding=np.nan, prepare=lambda arguments: None):
    """Real parameters, statistics, real state, losses, hits and the number of steps done."""
    arguments = training_arguments(network, training, GENERATOR(31), dtype, padding=padding)
    arguments = each(arguments, lambda operand: operand.value.copy(), backend, dtype)
    prepare(arguments)
    for place in (AT["parameters"], AT["statistics"]):
        aligned = layout.aligned_empty(arguments[place].size, dtype)
        aligned[...] = arguments[place]
        arguments[place] = aligned
    done = backend.network_train_steps(*arguments)
    return [*trained(network, dtype, arguments), *arguments[-2:]], done


def trained(network, dtype, arguments):
    """What a call of network_train_steps has changed, without what pads it."""
    real, lowered = network.real(dtype), network.lower(dtype)
    statistics = arguments[AT["statistics"]][_real(lowered.statistics, lowered.statistics_size)]
    return [arguments[AT["parameters"]][real], statistics, *(s[real] for s in arguments[AT["state"]])]


BEHAVIOUR_NETWORKS = [
    Network((7, 3), ("identity",)),
    Network((5, 17, 4), ("gelu", "identity"), separate=True),
    Network((33, 64, 10), ("relu", "identity")),
    Network((12, 33, 7), ("silu", "identity"), dropout=0.5),
    Network((12, 33, 33, 7), ("silu", "tanh", "identity"), norm="layer_norm", residual=True),
    BIG,
]
# Its rows meet in training, and it has running statistics.
MEETING = Network((12, 33, 33, 7), ("silu", "tanh", "identity"), norm="batch_norm", residual=True, dropout=0.25)
BEHAVIOUR_TRAININGS = [
    Training(loss, optimizer, 90, 80, 33, parameter=parameter)
    for (loss, parameter), optimizer in zip(PARAMETRIZED_LOSSES, cycle(layout.OPTIMIZERS), strict=False)
]


@behaviour("network_forward")
def slice_is_slice_of_network_forward(backend, dtype):
    for network in BEHAVIOUR_NETWORKS:
        x = batch(GENERATOR(32), (300, network.widths[0]), np.float32)
        whole = infer(backend, network, x, dtype)
        for i, j in ((0, 1), (5, 6), (7, 40), (100, 299)):
            assert_same_rows(backend, infer(backend, network, x[i:j], dtype), whole[i:j])


@behaviour("network_forward")
def nan_stays_in_its_row_of_the_network(backend, dtype):
    for network in BEHAVIOUR_NETWORKS:
        x = batch(GENERATOR(33), (40, network.widths[0]), np.float32)
        x[17, -1] = np.nan
        out = infer(backend, network, x, dtype)
        assert np.isnan(out[17]).all()
        assert np.isfinite(np.delete(out, 17, axis=0)).all()


@behaviour("network_forward")
def padding_changes_nothing_forward(backend, dtype):
    for network in BEHAVIOUR_NETWORKS:
        x = batch(GENERATOR(34), (40, network.widths[0]), np.float32)
        assert_same_bits(infer(backend, network, x, dtype, np.nan), infer(backend, network, x, dtype, 0.0))


@behaviour_of_pairs("network_train_steps", (*BEHAVIOUR_NETWORKS, MEETING), BEHAVIOUR_TRAININGS)
def padding_changes_nothing_in_training(backend, dtype, pairs):
    for network, training in pairs:
        (poisoned, _), (clean, _) = (train(backend, network, training, dtype, padding) for padding in (np.nan, 0.0))
        for a, b in zip(poisoned, clean, strict=True):
            assert_same_bits(a, b)


@behaviour("network_train_steps")
def loss_that_is_not_finite_stops_before_its_update(backend, dtype):
    for bad in (np.nan, np.inf):
        for training in BEHAVIOUR_TRAININGS:
            network = BEHAVIOUR_NETWORKS[2]

            def spoil(arguments, bad=bad):
                arguments[AT["x"]][arguments[AT["rows"]][40]] = bad  # a row of the second batch

            def stop_after_one(arguments):
                arguments[AT["rows"]] = arguments[AT["rows"]][:33]
                for name in ("coefficients", "keys", "step_loss", "step_hits"):
                    arguments[AT[name]] = arguments[AT[name]][:1]

            (one, _) = train(backend, network, training, dtype, prepare=stop_after_one)
            stopped, done = train(backend, network, training, dtype, prepare=spoil)
            assert done == 1
            assert not np.isfinite(stopped[-2][1])
            for a, b in zip(one[:-2], stopped[:-2], strict=True):
                assert_same_bits(a, b)
            assert one[-2][0] == stopped[-2][0]


@behaviour("network_train_steps")
def label_that_is_no_class_stops_before_its_update(backend, dtype):
    for network in BEHAVIOUR_NETWORKS:
        training = Training("cross_entropy", "adam", 90, 80, 33)

        def spoil(arguments):
            arguments[AT["target"]][arguments[AT["rows"]][40]] = 10**9

        def stop_after_one(arguments):
            arguments[AT["rows"]] = arguments[AT["rows"]][:33]

        (one, _) = train(backend, network, training, dtype, prepare=stop_after_one)
        stopped, done = train(backend, network, training, dtype, prepare=spoil)
        assert done == 1
        assert np.isnan(stopped[-2][1])
        for a, b in zip(one[:-2], stopped[:-2], strict=True):
            assert_same_bits(a, b)


@behaviour("network_train_steps")
def dropout_knows_rows_by_their_numbers(backend, dtype):
    """A copy of the rows in the order of an epoch trains as the rows themselves."""
    for network in (BEHAVIOUR_NETWORKS[3], MEETING):
        training = Training("cross_entropy", "adam", 90, 80, 33, weights=True)

        def copied(arguments):
            rows = arguments[AT["rows"]]
            for name in ("x", "target", "row_weight"):
                arguments[AT[name]] = np.ascontiguousarray(arguments[AT[name]][rows])
            arguments[AT["rows"]] = np.stack([np.arange(len(rows)), rows])

        (direct, _), (copy, _) = (
            train(backend, network, training, dtype, prepare=prepare) for prepare in (lambda arguments: None, copied)
        )
        for a, b in zip(direct, copy, strict=True):
            assert_same_bits(a, b)


@behaviour("network_train_steps")
def weights_without_a_normal_sum_count_for_nothing(backend, dtype):
    network = BEHAVIOUR_NETWORKS[2]
    training = Training("cross_entropy", "sgd", 40, 32, 16, weights=True)

    def of_weight(weight):
        def prepare(arguments):
            arguments[AT["row_weight"]] = np.full(40, weight)

        return train(backend, network, training, dtype, prepare=prepare)

    for weight in (0.0, 5e-324, 1e-310):
        (values, *_, step_loss, _), done = of_weight(weight)
        assert done == 2
        assert step_loss.tolist() == [0, 0]
        assert_same_bits(values, network.parameters(GENERATOR(31), dtype)[1][network.real(dtype)])
    for a, b in zip(of_weight(1.0)[0], of_weight(2.0**-1000)[0], strict=True):
        assert_same_bits(a, b)


@behaviour("network_train_steps")
def many_steps_are_single_steps(backend, dtype):
    for network, training in zip(cycle(BEHAVIOUR_NETWORKS[1:4]), BEHAVIOUR_TRAININGS, strict=False):
        together, _ = train(backend, network, training, dtype)
        arguments = training_arguments(network, training, GENERATOR(31), dtype)
        arguments = each(arguments, lambda operand: operand.value, backend, dtype)
        workspace, parameters, statistics, state, scalars, keys, x, target, weight, rows, size, *_ = arguments
        step_loss, step_hits = arguments[-2:]
        for step in range(len(step_loss)):
            part = slice(step, step + 1)
            batch_rows = rows[step * size : (step + 1) * size]
            backend.network_train_steps(
                workspace, parameters, statistics, state, scalars[part], keys[part], x, target, weight, batch_rows,
                size, step_loss[part], step_hits[part],
            )  # fmt: skip
        for a, b in zip(together, [*trained(network, dtype, arguments), step_loss, step_hits], strict=True):
            assert_same_bits(a, b)


@behaviour("network_train_steps")
def equal_weights_are_no_weights(backend, dtype):
    """Power-of-two batches, so that 1/n and w/sum(w) are the same number."""
    for loss, parameter in PARAMETRIZED_LOSSES:
        training = Training(loss, "sgd", 70, 64, 32, parameter=parameter)

        def weigh(arguments):
            arguments[AT["row_weight"]] = np.full(70, 0.5)

        plain, weighted = (
            train(backend, BEHAVIOUR_NETWORKS[2], training, dtype, prepare=prepare)[0]
            for prepare in (lambda arguments: None, weigh)
        )
        for a, b in zip(plain, weighted, strict=True):
            assert_same_bits(a, b)


@behaviour("network_train_steps")
def no_rows_are_no_steps(backend, dtype):
    network, training = BEHAVIOUR_NETWORKS[2], Training("cross_entropy", "adam", 10, 0, 4)
    before = network.parameters(GENERATOR(31), dtype)[1][network.real(dtype)]
    (after, *_), done = train(backend, network, training, dtype)
    assert done == 0
    assert_same_bits(after, before)


# ------------------------------------------------------------------------- workspaces and threads
@behaviour("InferenceWorkspace")
def one_inference_workspace_serves_batches_of_any_size(backend, dtype):
    network = BEHAVIOUR_NETWORKS[2]
    rows, parameters = network.parameters(GENERATOR(30), dtype)
    workspace = backend.InferenceWorkspace(rows, dtype)
    x = batch(GENERATOR(35), (500, network.widths[0]), np.float32)
    whole = infer(backend, network, x, dtype)
    for n in (500, 1, 17, 0, 499):
        out = np.empty((n, network.widths[-1]), dtype)
        backend.network_forward(workspace, parameters, network.statistics(GENERATOR(29), dtype), x[:n], out)
        assert_same_rows(backend, out, whole[:n])


@behaviour("InferenceWorkspace")
def one_inference_workspace_serves_any_dtype_and_parameters(backend, dtype):
    network = BEHAVIOUR_NETWORKS[2]
    rows, _ = network.parameters(GENERATOR(30), dtype)
    workspace = backend.InferenceWorkspace(rows, dtype)
    for seed, x_dtype in enumerate((np.uint8, np.int16, np.float32, np.float64, np.uint8)):
        _, parameters = network.parameters(GENERATOR(seed), dtype)
        x = batch(GENERATOR(36), (20, network.widths[0]), x_dtype)
        out, expected = (np.empty((20, network.widths[-1]), dtype) for _ in range(2))
        statistics = network.statistics(GENERATOR(29), dtype)
        backend.network_forward(workspace, parameters, statistics, x, out)
        backend.network_forward(backend.InferenceWorkspace(rows, dtype), parameters, statistics, x, expected)
        assert_same_bits(out, expected)


@behaviour("TrainingWorkspace")
def training_workspace_serves_smaller_batches(backend, dtype):
    network = BEHAVIOUR_NETWORKS[2]
    for training in BEHAVIOUR_TRAININGS:

        def widen(arguments, training=training):
            arguments[0] = backend.TrainingWorkspace(arguments[0].program, dtype, 200, *training.codes())

        exact_size, _ = train(backend, network, training, dtype)
        larger, _ = train(backend, network, training, dtype, prepare=widen)
        for a, b in zip(exact_size, larger, strict=True):
            assert_same_bits(a, b)


def bits_under_threads(backend, run):
    before, results = backend.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            backend.set_num_threads(threads)
            results.append(run())
    finally:
        backend.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


@behaviour("set_num_threads")
def threads_do_not_change_bits(backend, dtype):
    for network in BEHAVIOUR_NETWORKS:
        x = batch(GENERATOR(36), (700, network.widths[0]), np.float32)
        bits_under_threads(backend, lambda network=network, x=x: [infer(backend, network, x, dtype)])


@behaviour_of_pairs("set_num_threads", (*BEHAVIOUR_NETWORKS, MEETING), BEHAVIOUR_TRAININGS)
def threads_do_not_change_bits_of_training(backend, dtype, pairs):
    for network, training in pairs:
        bits_under_threads(backend, lambda n=network, t=training: train(backend, n, t, dtype)[0])


@behaviour("get_num_threads")
def threads_are_at_least_one_and_at_most_those_asked_for(backend, dtype):
    before = backend.get_num_threads()
    assert before >= 1
    try:
        for threads in (1, 3):
            backend.set_num_threads(threads)
            assert 1 <= backend.get_num_threads() <= threads
    finally:
        backend.set_num_threads(before)
    assert backend.get_num_threads() == before


@behaviour("serial")
def serial_work_has_the_bits_of_the_team(backend, dtype):
    """On the calling thread, nested, after an error, and in several threads side by side."""
    network, results = BEHAVIOUR_NETWORKS[2], [None] * 3

    def trained():
        return train(backend, network, BEHAVIOUR_TRAININGS[0], dtype)[0]

    def trained_alone(i):
        with backend.serial():
            results[i] = trained()

    expected = trained()
    with backend.serial(), backend.serial():
        results.append(trained())
    with contextlib.suppress(ZeroDivisionError), backend.serial():
        raise ZeroDivisionError
    results.append(trained())
    threads = [threading.Thread(target=trained_alone, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        for a, b in zip(result, expected, strict=True):
            assert_same_bits(a, b)


# ------------------------------------------------------------------------------ normalisation, sums
def vectors(rng, count, features, dtype):
    """Vectors of a normalisation: not near 0, so that what is wrong shows."""
    return [given((rng.random(features) + 0.5).astype(dtype)) for _ in range(count)]


def weights_of_rows(rng, n, all_there):
    """Weights of a batch, that sum to 1; without ``all_there`` some are 0."""
    weight = rng.random(n) + 0.5
    if not all_there:
        weight[::3] = 0
    return weight / max(weight.sum(), 1.0 if not n else 0.0) if n and weight.any() else weight


def sizes(*arrays):
    return sum(np.abs(array) for array in arrays)


NORM_SHAPES = ((0, 3), (1, 1), (1, 17), (2, 3), (5, 7), (5, 64), (17, 33), (130, 65), (33, 257))


def norm_calls():
    for n, features in NORM_SHAPES:
        for affine in (True, False):
            label = f"{n}x{features}{'' if affine else '-no_affine'}"

            def affines(rng, dtype, features=features, affine=affine):
                return vectors(rng, 2, features, dtype) if affine else [None, None]

            def of_rows(rng, dtype, n=n, features=features, affines=affines):
                x = given(matrix(rng, (n, features), dtype, False))
                outputs = output((n, features), dtype), output((n, features), dtype), output((n, 1), dtype)
                return x, *affines(rng, dtype), 1e-2, *outputs

            def back_of_rows(rng, dtype, n=n, features=features, affine=affine):
                grad, saved = (given(matrix(rng, (n, features), dtype, False)) for _ in range(2))
                weight = vectors(rng, 1, features, dtype)[0] if affine else None
                scale = given((rng.random((n, 1)) + 0.5).astype(dtype))
                return grad, weight, saved, scale, output((n, features), dtype)

            def by_moments(rng, dtype, n=n, features=features, affines=affines):
                x = given(matrix(rng, (n, features), dtype, False))
                outputs = output((n, features), dtype), output((n, features), dtype)
                return x, *vectors(rng, 2, features, dtype), *affines(rng, dtype), *outputs

            def back_by_moments(rng, dtype, n=n, features=features, affine=affine):
                grad, saved = (given(matrix(rng, (n, features), dtype, False)) for _ in range(2))
                weight = vectors(rng, 1, features, dtype)[0] if affine else None
                sums = vectors(rng, 2, features, dtype)
                row_weight = given(weights_of_rows(rng, n, affine))
                return (
                    grad,
                    row_weight,
                    weight,
                    saved,
                    *vectors(rng, 1, features, dtype),
                    *sums,
                    output((n, features), dtype),
                )

            def bound_rows(eps, before, after):
                size = np.abs(after[4]).max(initial=1, axis=1, keepdims=True) + 8 * after[6]
                return [32 * eps * size * (1 + np.abs(after[4])), 32 * eps * size, 16 * eps * after[6]]

            def bound_back_rows(eps, before, after):
                g = before[0] if before[1] is None else before[0] * before[1]
                size = np.abs(g).max(initial=0, axis=1, keepdims=True) * (1 + np.abs(before[2]).max(initial=0) ** 2)
                return [32 * eps * size * before[3] + 0 * after[4]]

            def bound_moments(eps, before, after):
                size = sizes(before[0], before[1]) * before[2]
                return [8 * eps * (size * (1 if before[3] is None else before[3]) + 2), 8 * eps * size]

            def bound_back_moments(eps, before, after):
                grad, row_weight, weight, saved, scale, products, sums = before[:7]
                size = np.abs(grad) + row_weight[:, None] * (np.abs(sums) + np.abs(saved * products))
                return [8 * eps * size * scale * (1 if weight is None else weight)]

            call("layer_norm_forward", label, of_rows, bound_rows, quick=True)
            call("layer_norm_backward_input", label, back_of_rows, bound_back_rows, quick=True)
            call("batch_norm_forward", label, by_moments, bound_moments, quick=True)
            call("batch_norm_backward_input", label, back_by_moments, bound_back_moments, quick=True)

        label = f"{n}x{features}"

        def to_add(rng, dtype, n=n, features=features):
            x, y = (given(matrix(rng, (n, features), dtype, False)) for _ in range(2))
            return x, y, output((n, features), dtype)

        def to_add_in_place(rng, dtype, n=n, features=features):
            return (
                updated(matrix(rng, (n, features), dtype, False)),
                given(matrix(rng, (n, features), dtype, False)),
                Same(0),
            )

        call("add", label, to_add, lambda eps, before, after: [eps * np.abs(after[2])], quick=True)
        call("add", f"{label}-in_place", to_add_in_place, lambda eps, before, after: [eps * np.abs(after[0])])

        for beta in (0, 1):

            def of_parameters(rng, dtype, n=n, features=features, beta=beta):
                grad, saved = (given(matrix(rng, (n, features), dtype, False)) for _ in range(2))
                if beta:
                    outputs = (updated(matrix(rng, features, dtype, False)) for _ in range(2))
                else:
                    outputs = (output(features, dtype) for _ in range(2))
                return grad, saved, beta, *outputs

            def bound_parameters(eps, before, after, beta=beta):
                old = [np.abs(b) if beta else 0 for b in before[3:]]
                grad, saved = np.abs(before[0]), np.abs(before[1])
                factor = (16 + len(grad)) * eps
                return [factor * ((grad * saved).sum(0) + old[0]), factor * (grad.sum(0) + old[1])]

            call("norm_backward_params", f"{label}-beta_{beta}", of_parameters, bound_parameters, quick=True)

        for all_there in (True, False):

            def of_batch(rng, dtype, n=n, features=features, all_there=all_there):
                x = given(matrix(rng, (n, features), dtype, False))
                outputs = (output(features, dtype) for _ in range(3))
                return x, given(weights_of_rows(rng, n, all_there)), 1e-2, *outputs

            def bound_batch(eps, before, after):
                x, weight, _, mean, scale, _ = after
                size = (weight[:, None] * np.abs(x)).sum(0)
                spread = (weight[:, None] * (np.abs(x) + np.abs(mean)) ** 2).sum(0)
                factor = (16 + len(x)) * eps
                rest = max(1 - np.square(weight).sum(), 1e-3)
                return [factor * size, factor * spread * scale**3 + 8 * eps * scale, factor * spread / rest]

            call("batch_moments", f"{label}{'' if all_there else '-zeros'}", of_batch, bound_batch, quick=True)

    for features in (1, 7, 64, 257):

        def of_running(rng, dtype, features=features):
            return *vectors(rng, 2, features, dtype), 1e-3, output(features, dtype), output(features, dtype)

        def to_learn(rng, dtype, features=features):
            mean, variance = vectors(rng, 2, features, dtype)
            if features > 1:
                variance.value[1] = np.nan  # too few rows: nothing to learn
            return mean, variance, 0.3, *(updated(v.value) for v in vectors(rng, 2, features, dtype))

        call("running_moments", str(features), of_running, lambda eps, b, after: [0.0, 8 * eps * after[4]], quick=True)
        call(
            "update_statistics", str(features), to_learn,
            lambda eps, b, after: [8 * eps * np.abs(after[3]), 8 * eps * np.abs(after[4])], quick=True,
        )  # fmt: skip


norm_calls()


@behaviour("layer_norm_forward")
def rows_of_a_slice_are_normalised_alike(backend, dtype):
    x = matrix(GENERATOR(60), (37, 65), dtype, False)
    weight, bias = (v.value for v in vectors(GENERATOR(61), 2, 65, dtype))
    whole = [np.empty_like(x), np.empty_like(x), np.empty((37, 1), dtype)]
    backend.layer_norm_forward(x, weight, bias, 1e-5, *whole)
    for i, j in ((0, 1), (3, 8), (30, 37)):
        part = [np.empty_like(x[i:j]), np.empty_like(x[i:j]), np.empty((j - i, 1), dtype)]
        backend.layer_norm_forward(x[i:j], weight, bias, 1e-5, *part)
        for a, b in zip(part, whole, strict=True):
            assert_same_rows(backend, a, b[i:j])


@behaviour("layer_norm_forward")
def what_is_not_kept_changes_nothing(backend, dtype):
    x = matrix(GENERATOR(62), (9, 33), dtype, False)
    kept, apart = (np.empty_like(x) for _ in range(2))
    backend.layer_norm_forward(x, None, None, 1e-5, kept, np.empty_like(x), np.empty((9, 1), dtype))
    backend.layer_norm_forward(x, None, None, 1e-5, apart, None, np.empty((9, 1), dtype))
    assert_same_bits(kept, apart)
    mean, scale = (v.value for v in vectors(GENERATOR(63), 2, 33, dtype))
    backend.batch_norm_forward(x, mean, scale, None, None, kept, np.empty_like(x))
    backend.batch_norm_forward(x, mean, scale, None, None, apart, None)
    assert_same_bits(kept, apart)


@behaviour("batch_moments")
def one_row_that_counts_has_no_variance(backend, dtype):
    for weight in (np.array([0.0, 1.0, 0.0]), np.zeros(3), np.array([0.0, 1.0 - 2e-16, 0.0])):
        x = matrix(GENERATOR(64), (3, 5), dtype, False)
        mean, scale, variance = (np.empty(5, dtype) for _ in range(3))
        backend.batch_moments(x, weight, 1e-2, mean, scale, variance)
        assert np.isnan(variance).all()
        assert np.isfinite(scale).all()


@behaviour("batch_norm_backward_input")
def constant_moments_only_scale(backend, dtype):
    grad, saved = (matrix(GENERATOR(65), (7, 19), dtype, False) for _ in range(2))
    weight, scale = (v.value for v in vectors(GENERATOR(66), 2, 19, dtype))
    out = np.empty_like(grad)
    backend.batch_norm_backward_input(grad, None, weight, saved, scale, None, None, out)
    np.testing.assert_allclose(out, grad * (scale * weight), rtol=4 * np.finfo(dtype).eps)


# ------------------------------------------------------------------------------- whole buffers
SPREAD = Network((5, 40, 17, 4), ("tanh", "gelu", "identity"), separate=True, dropout=0.25)  # rows of all kinds, padded
SUMMED = (
    Network((1, 1), ("identity",)), Network((7, 3), ("relu",)), Network((13, 33, 8, 3), ("relu",) * 3, bias=False),
    SPREAD, Network((300, 257, 17), ("relu", "identity")), BIG,
)  # fmt: skip


def buffer_calls():
    """Sums of whole numbers, exact in any order, of buffers whose padding is NaN."""
    for network in SUMMED:

        def parameters(rng, dtype, network=network):
            rows, buffer = network.parameters(rng, dtype)
            buffer[network.real(dtype)] = rng.integers(-9, 10, int(network.real(dtype).sum()))
            return given(rows.places, strided=False), given(buffer)

        for function in ("squared_norm", "all_finite"):
            call(function, str(network), parameters, lambda eps, before, after: [], quick=True)

    for shape in ((0,), (1,), (17,), (4099,), (0, 3), (5, 17), (130, 33)):
        label = "x".join(map(str, shape))

        def to_scale(rng, dtype, shape=shape):
            return given(matrix(rng, shape, dtype, False), strided=False), 0.3, output(shape, dtype, strided=False)

        def to_scale_in_place(rng, dtype, shape=shape):
            return updated(matrix(rng, shape, dtype, False), strided=False), -1.7, Same(0)

        def to_copy(rng, dtype, shape=shape):
            x = matrix(rng, shape, dtype, False)
            x[x > 1] = np.nan
            return given(x, strided=False), output(shape, dtype, strided=False)

        def to_clear(rng, dtype, shape=shape):
            return (output(shape, dtype, strided=False),)

        call("scale", label, to_scale, lambda eps, before, after: [2 * eps * np.abs(after[2])], quick=True)
        call("scale", f"{label}-in_place", to_scale_in_place, lambda eps, before, after: [2 * eps * np.abs(after[0])])
        call("copy", label, to_copy, lambda eps, before, after: [0.0], quick=True)
        call("clear", label, to_clear, lambda eps, before, after: [0.0], quick=True)

    for n, features, x_dtype in ((0, 3, np.float32), (1, 1, np.uint8), (5, 17, np.float64), (7, 33, np.int64),
                                 (130, 65, np.float32), (9, 16, np.bool_)):  # fmt: skip

        def to_gather(rng, dtype, n=n, features=features, x_dtype=x_dtype):
            x = given(batch(rng, (n + 3, features), x_dtype), strided=False)
            return x, given(rng.integers(0, n + 3, n)), output((n, features), dtype)

        label = f"{n}x{features}-{np.dtype(x_dtype).name}"
        call("gather", label, to_gather, lambda eps, before, after: [0.0], quick=True)


buffer_calls()


@behaviour("squared_norm")
def squares_neither_overflow_nor_vanish(backend, dtype):
    """Sizes whose squares float32 cannot hold; the sum is that of the exact squares but for its own rounding."""
    network = SPREAD
    for size in (1e30, 1.0, 1e-30):
        rows, buffer = network.parameters(GENERATOR(50), dtype)
        buffer *= dtype(size)
        exact = math.fsum(np.square(buffer[network.real(dtype)], dtype=np.float64))
        assert abs(backend.squared_norm(rows.places, buffer) - exact) <= 1e-12 * exact


@behaviour("squared_norm")
def same_numbers_have_the_same_sum(backend, dtype):
    rows, buffer = SPREAD.parameters(GENERATOR(51), dtype)
    assert backend.squared_norm(rows.places, buffer) == backend.squared_norm(rows.places, buffer)


def spoilt_buffers(dtype):
    """(program, buffer), an element of which is not finite: the first, one in the middle, the last."""
    for network, place, bad in ((SUMMED[1], 0.0, np.inf), (SPREAD, 0.5, np.nan), (SPREAD, 1.0, -np.inf)):
        rows, buffer = network.parameters(GENERATOR(52), dtype)
        parameters = np.flatnonzero(network.real(dtype))
        buffer[parameters[int(place * (len(parameters) - 1))]] = bad
        yield rows, buffer


@behaviour("squared_norm")
def one_bad_element_makes_the_sum_bad(backend, dtype):
    for rows, buffer in spoilt_buffers(dtype):
        assert not math.isfinite(backend.squared_norm(rows.places, buffer))


@behaviour("all_finite")
def one_bad_element_is_seen_wherever_it_is(backend, dtype):
    for rows, buffer in spoilt_buffers(dtype):
        assert backend.all_finite(rows.places, buffer) is False


@behaviour("all_finite")
def large_elements_are_finite_though_their_sum_is_not(backend, dtype):
    rows, buffer = SPREAD.parameters(GENERATOR(53), dtype)
    buffer[SPREAD.real(dtype)] = np.finfo(dtype).max
    assert backend.all_finite(rows.places, buffer) is True


# ----------------------------------------------------------------------------------------- buffers
@behaviour("empty")
def empty_is_aligned_and_shaped(backend, dtype):
    for shape in ((0,), (7,), (3, 5), (0, 4)):
        array = backend.empty(shape, dtype)
        assert array.shape == shape
        assert array.dtype == dtype
        memory = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
        assert array.size == 0 or memory["data"][0] % layout.ALIGNMENT == 0


@behaviour("zeros")
def zeros_are_zero(backend, dtype):
    array = backend.to_host(backend.zeros((3, 5), dtype))
    assert array.shape == (3, 5)
    assert array.dtype == dtype
    assert not array.any()


@behaviour("to_device")
@behaviour("to_host")
@behaviour("synchronize")
def arrays_come_back_as_they_went(backend, dtype):
    array = matrix(GENERATOR(40), (7, 5), dtype, False)
    there = backend.to_device(array)
    backend.synchronize()
    assert_same_bits(backend.to_host(there), array)


@behaviour("gathers")
def gathers_what_can_be_read_directly(backend, dtype):
    assert all(backend.gathers(d) for d in (*INPUT_DTYPES, np.dtype(dtype)))
    swapped = np.dtype(dtype).newbyteorder()
    assert not any(backend.gathers(d) for d in (swapped, np.complex64, np.object_, np.dtype("U3"), np.dtype("M8[s]")))


@behaviour("warmup")
def warmup_takes_names(backend, dtype):
    backend.warmup(np.dtype(dtype), layout.ACTIVATIONS, layout.LOSSES, layout.OPTIMIZERS)


@behaviour("config")
def config_is_text(backend, dtype):
    assert all(isinstance(text, str) and text for item in backend.config().items() for text in item)


# ---------------------------------------------------------------------------------------- the simulator
# What Numba's CUDA simulator runs, where a thread of the GPU is a thread of Python: cases with no dimension above 17,
# and of each kernel one with a full tile and a tail. No pattern names what changes with the length of a table.
TINY = (
    "linear_*-0x3x3-*-reals*", "linear_*-3x3x0-*-reals*", "linear_*-17x0x17-*-reals*", "linear_*-1x2x1-*-reals*",
    "linear_*-1x7x5-*-reals*", "linear_*-2x17x13-*-reals*", "linear_*-2x12x7-*-reals*", "linear_*-3x11x3-*-reals*",
    "linear_*-3x16x11-*-reals*", "linear_*-5x13x5-*-reals*", "linear_*-7x17x7-*-reals*", "linear_*-12x13x1-*-reals*",
    "linear_*-1x13x12-*-reals*", "linear_*-3x17x12-*-integers-no_bias*",
    "linear_*-factors_are_rounded_to_the_precision", "precisions-*",
    "linear_*-33x11x33-*-reals*", "linear_*-2x33x31-*-reals*", "linear_*-33x65x5-*-reals*",
    "activation_*-5x17*", "activation_*-relu-0x4", "activation_*-relu-4x0",
    "softmax-0x3*", "softmax-3x0*", "softmax-1x1*", "softmax-5x7*", "softmax-17x16*", "softmax-9x33*", "softmax-11_*",
    "dropout-0x3-0.5*", "dropout-1x1-*", "dropout-3x7-*", "dropout-17x33-0.5*", "shuffle-*",
    "loss_forward_backward-*-0x3*", "loss_forward_backward-*-1x1", "loss_forward_backward-*-5x7*",
    "loss_forward_backward-*-17x16", "loss_forward_backward-*-not_finite", "loss_forward_backward-*_digits",
    "loss_forward_backward-certain_*", "loss_forward_backward-kinks_*", "loss_forward_backward-first_*",
    "loss_forward_backward-rows_without_*",
    "optimizer_call-*", "optimizer_step-*-0-step_1", "optimizer_step-*-17-step_*", "optimizer_step-*_0-4099-step_1",
    "network_forward-7_3-*-2-*", "network_forward-5_17_4-gelu_identity-separate-13-*",
    "network_forward-5_17_4-tanh_identity-13-*", "network_forward-9_3-identity-dropout_0.5-13-*",
    "network_train_steps-6_*",
    "layer_norm_*-1x1*", "layer_norm_*-5x7*", "layer_norm_*-0x3*", "batch_norm_*-1x17*", "batch_norm_*-5x7*",
    "add-1x1*", "add-5x7*", "norm_backward_params-5x7*", "batch_moments-0x3*", "batch_moments-5x7*",
    "batch_moments-one*",
    "running_moments-7", "update_statistics-7",
    "network_forward-5_17_17_4-tanh_gelu_identity-layer_norm-residual-2-*",
    "network_train_steps-5_17_17_4-tanh_gelu_identity-*batch_norm-residual-*-14@5-*",
    "squared_norm-1_1*", "squared_norm-7_3*", "squared_norm-13_33*", "squared_norm-5_40*", "squared_norm-s*",
    "squared_norm-one*", "all_finite-1_1*", "all_finite-13_33*", "all_finite-5_40*", "all_finite-one*", "all_finite-l*",
    "scale-0*", "scale-1*", "scale-5x17*", "copy-*", "clear-0*", "clear-1*", "clear-5x17", "gather-[01579]x*",
    "to_device-*", "to_host-*", "synchronize-*", "zeros-*", "gathers-*", "warmup-*", "config-*", "get_num_threads-*",
)  # fmt: skip
# Without a tiny case: the simulator's memory is aligned to nothing, and it runs one kernel at a time.
NOT_SIMULATED = frozenset({"InferenceWorkspace", "TrainingWorkspace", "empty", "serial", "set_num_threads"})


def is_tiny(case) -> bool:
    return any(fnmatchcase(str(case), pattern) for pattern in TINY)
