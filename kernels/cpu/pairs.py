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

UPPER, HALF, QUIET, SIGN = 0xFFFF0000, 0x00007FFF, 0x00400000, 0x80000000
MAGNITUDE, LEAST_NORMAL = 0x7FFFFFFF, 0x00800000
I16 = ir.IntType(16)
NARROWS = "avx512bf16" in blocking.FEATURES and blocking.VECTOR_BYTES == 64  # whether the CPU rounds two vectors to one


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


def _rounded(b, v):
    """Emit the bits of the nearest numbers of bfloat16, ties to even, of float32 numbers; in the upper halves.

    Subnormal numbers become 0 and NaN a quiet one, as ``vcvtne2ps2bf16`` has it.
    """
    bits = _integers(b, flushed(b, v))
    odd = b.and_(b.lshr(bits, constant(bits, 16)), constant(bits, 1))
    nearest = b.add(b.add(bits, constant(bits, HALF)), odd)
    return b.select(b.fcmp_unordered("uno", v, v), b.or_(bits, constant(bits, QUIET)), nearest)


def _in_halves(b, even, odd):
    """Emit elements with the upper halves of ``even`` in the lower ones, and those of ``odd`` in the upper ones."""
    even, odd = _rounded(b, even), _rounded(b, odd)
    return b.or_(b.lshr(even, constant(even, 16)), b.and_(odd, constant(odd, UPPER)))


def _narrowed(b, first, second):
    """Emit ``vcvtne2ps2bf16``: vectors one after another as numbers of bfloat16."""
    name = f"llvm.x86.avx512bf16.cvtne2ps2bf16.{8 * blocking.VECTOR_BYTES}"
    return _call(b, name, ir.VectorType(_BFloat(), 2 * first.type.count), [second, first])


def _interleaved(b, even, odd):
    """Emit elements of pairs from vectors of the even and the odd terms."""
    if not NARROWS:
        return _in_halves(b, even, odd)
    lanes, words = even.type.count, ir.VectorType(I16, 2 * even.type.count)
    order = ir.Constant(ir.VectorType(I32, 2 * lanes), [i // 2 + i % 2 * lanes for i in range(2 * lanes)])
    narrowed = b.bitcast(_narrowed(b, even, odd), words)
    return b.shuffle_vector(narrowed, narrowed, order)


def _adjacent(b, first, second):
    """Emit elements of pairs of neighbours."""
    if NARROWS:
        return _narrowed(b, first, second)
    indices = (list(range(start, 2 * first.type.count, 2)) for start in range(2))
    order = [ir.Constant(ir.VectorType(I32, first.type.count), index) for index in indices]
    return _in_halves(b, *(b.shuffle_vector(first, second, of) for of in order))


def _made_by(emit, doc):
    def typed(tc, first, second):
        def codegen(ctx, b, sig, args):
            rows = zip(*(_vectors(b, value, first) for value in args), strict=True)
            return _tile(b, [b.bitcast(emit(b, *row), first.vector) for row in rows])

        return first(first, second), codegen

    typed.__doc__ = doc
    return intrinsic(typed)


pairs = _made_by(_interleaved, "Tiles of the even and of the odd terms, rounded, as one of pairs.")
neighbours = _made_by(_adjacent, "Each row of a tile and then that of the other, rounded, as pairs of neighbours.")


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
