"""Two numbers of bfloat16 to an element: how a unit of bfloat16 reads its factors, the even term in the lower half.

An element of such a buffer has the size of a float32 number and is moved as one. `dot_product` is ``vdpbf16ps``:

    c += a.odd * b.odd;  c += a.even * b.even

each a fused multiply-add, rounded to nearest, ties to even. Subnormal numbers count as 0, of factors and of sums, and
the control register is not looked at (Intel, "Architecture Instruction Set Extensions Programming Reference").
"""

from functools import cache

from llvmlite import ir
from numba.extending import intrinsic

from . import blocking
from .simd import I32, _at, _call, _fma, _load, _tile, _vectors, outer_product

UPPER, QUIET, SIGN, MAGNITUDE, LEAST_NORMAL = 0xFFFF0000, 0x00400000, 0x80000000, 0x7FFFFFFF, 0x00800000


class _BFloat(ir.Type):
    """LLVM's type, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def _integers(b, v):
    """The bits of a vector of float32 numbers."""
    return b.bitcast(v, ir.VectorType(I32, v.type.count))


def constant(integers, value):
    """A vector of integers, all the same."""
    return ir.Constant(integers.type, [value] * integers.type.count)


@intrinsic
def pairs(tc, even, odd):
    """Tiles that `nearest_bfloat16` has rounded, as one of pairs; NaN becomes a quiet one, lest it lose its bits."""

    def codegen(ctx, b, sig, args):
        made = []
        for two in zip(*(_vectors(b, value, even) for value in args), strict=True):
            halves = []
            for v in two:
                bits = _integers(b, v)
                halves.append(b.select(b.fcmp_unordered("uno", v, v), b.or_(bits, constant(bits, QUIET)), bits))
            lower = b.lshr(halves[0], constant(halves[0], 16))
            upper = b.and_(halves[1], constant(halves[1], UPPER))
            made.append(b.bitcast(b.or_(lower, upper), even.vector))
        return _tile(b, made)

    return even(even, odd), codegen


def _every_second(start, doc):
    def typed(tc, first, second):
        def codegen(ctx, b, sig, args):
            order = ir.Constant(ir.VectorType(I32, first.lanes), list(range(start, 2 * first.lanes, 2)))
            rows = zip(_vectors(b, args[0], first), _vectors(b, args[1], first), strict=True)
            return _tile(b, [b.shuffle_vector(x, y, order) for x, y in rows])

        return first(first, second), codegen

    typed.__doc__ = doc
    return intrinsic(typed)


evens = _every_second(0, "The even elements of each row of a tile, then those of the other tile.")
odds = _every_second(1, "The odd elements of each row of a tile, then those of the other tile.")


def flushed(b, v):
    """Emit float32 numbers with 0, of their sign, for subnormal ones."""
    bits = _integers(b, v)
    tiny = b.icmp_unsigned("<", b.and_(bits, constant(bits, MAGNITUDE)), constant(bits, LEAST_NORMAL))
    return b.bitcast(b.select(tiny, b.and_(bits, constant(bits, SIGN)), bits), v.type)


def halves(b, v):
    """Emit the (even, odd) numbers of pairs as float32, subnormal ones 0."""
    bits = _integers(b, v)
    even, odd = b.shl(bits, constant(bits, 16)), b.and_(bits, constant(bits, UPPER))
    return flushed(b, b.bitcast(even, v.type)), flushed(b, b.bitcast(odd, v.type))


def _instruction(b, tile, x, y, total):
    of_pairs = ir.VectorType(_BFloat(), 2 * tile.lanes)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{8 * blocking.VECTOR_BYTES}"
    # The broadcast is the last operand, which may be in memory.
    return _call(b, name, tile.vector, [total, b.bitcast(y, of_pairs), b.bitcast(x, of_pairs)])


def _emulated(b, tile, x, y, total):
    total = flushed(b, total)
    for left, right in list(zip(halves(b, x), halves(b, y), strict=True))[::-1]:
        total = flushed(b, _fma(b, tile, left, right, total))
    return total


@cache
def dot_product(emulated):
    """The intrinsic for the unit or for what stands for it."""
    multiply_add = _emulated if emulated else _instruction

    @intrinsic
    def dot_pairs(tc, tile, a, offsets, row):
        """``tile += a[0:rows] outer row``, of pairs; the elements of ``a`` are at `row_offsets`."""

        def codegen(ctx, b, sig, args):
            result, a, offsets, row = args
            right = [
                _load(b, tile, _at(b, row, tile.dtype, None, tile.vector, j * tile.lanes), None)
                for j in range(tile.vectors)
            ]
            return outer_product(b, tile, result, a, offsets, right, multiply_add)

        return tile(tile, a, offsets, row), codegen

    return dot_pairs
