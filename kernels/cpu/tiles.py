"""Tile registers (AMX) for plain ``@njit`` code: eight of 16 rows of 64 bytes, known by their numbers.

``dot(c, a, b)`` is ``tdpbf16ps``: of 16 x 16 sums, each with 16 pairs (`pairs`) of terms,

    t.even += a.even * b.even;  t.odd += a.odd * b.odd  for one pair after another, from 0;  c += t.even + t.odd

each multiply-add fused, all rounded to nearest, ties to even. Subnormal numbers count as 0, of factors and of sums,
and the control register is not looked at (Intel, "Architecture Instruction Set Extensions Programming Reference").
A thread configures its tiles and releases them; in between it has to stay in compiled code.
"""

from collections import namedtuple
from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import blocking
from .pairs import flushed, halves
from .simd import I32, I64, _call, _opaque

SIDE = 16  # rows of a tile, pairs or float32 numbers of a row
ROW_BYTES = 64
TILES = 8
I8 = ir.IntType(8)
VECTOR, INTEGERS = ir.VectorType(ir.FloatType(), SIDE), ir.VectorType(I32, SIDE)
TILE = ir.ArrayType(VECTOR, SIDE)
# Palette 1; of every tile the bytes of a row, then the rows.
CONFIGURATION = [1, *[0] * 15, *[ROW_BYTES, 0] * TILES, *[0] * 16, *[SIDE] * TILES, *[0] * 8]

Tiles = namedtuple("Tiles", "configure release zero load store dot")


@cache
def lowered(emulated) -> Tiles:
    """The intrinsics, by the instructions or by what stands for them.

    - ``configure(scratch)``: 64 bytes of scratch, on a cache line.
    - ``release()``
    - ``zero(number)``
    - ``load(number, p, ld)``, ``store(number, p, ld)``: 16 rows, ``ld`` elements of 4 bytes apart.
    - ``dot(c, a, b)``
    """
    emit = _Emulated if emulated else _Instructions

    @intrinsic
    def configure(tc, scratch):
        def codegen(ctx, b, sig, args):
            emit.configure(b, args[0])
            return ctx.get_dummy_value()

        return types.void(scratch), codegen

    @intrinsic
    def release(tc):
        def codegen(ctx, b, sig, args):
            emit.release(b)
            return ctx.get_dummy_value()

        return types.void(), codegen

    @intrinsic(prefer_literal=True)
    def zero(tc, number):
        def codegen(ctx, b, sig, args):
            emit.zero(b, number.literal_value)
            return ctx.get_dummy_value()

        return types.void(number), codegen

    @intrinsic(prefer_literal=True)
    def load(tc, number, p, ld):
        def codegen(ctx, b, sig, args):
            emit.load(b, number.literal_value, args[1], b.mul(args[2], I64(4)))
            return ctx.get_dummy_value()

        return types.void(number, p, types.intp), codegen

    @intrinsic(prefer_literal=True)
    def store(tc, number, p, ld):
        def codegen(ctx, b, sig, args):
            emit.store(b, number.literal_value, args[1], b.mul(args[2], I64(4)))
            return ctx.get_dummy_value()

        return types.void(number, p, types.intp), codegen

    @intrinsic(prefer_literal=True)
    def dot(tc, c, x, y):
        def codegen(ctx, b, sig, args):
            emit.dot(b, c.literal_value, x.literal_value, y.literal_value)
            return ctx.get_dummy_value()

        return types.void(c, x, y), codegen

    return Tiles(configure, release, zero, load, store, dot)


class _Instructions:
    """What the CPU has."""

    @staticmethod
    def configure(b, scratch):
        configuration = ir.Constant(ir.ArrayType(I8, len(CONFIGURATION)), CONFIGURATION)
        b.store(configuration, b.bitcast(scratch, configuration.type.as_pointer()))
        _call(b, "llvm.x86.ldtilecfg", ir.VoidType(), [scratch])

    @staticmethod
    def release(b):
        _call(b, "llvm.x86.tilerelease", ir.VoidType(), [])

    @staticmethod
    def zero(b, number):
        _call(b, "llvm.x86.tilezero", ir.VoidType(), [I8(number)])

    @staticmethod
    def load(b, number, p, stride):
        _call(b, "llvm.x86.tileloadd64", ir.VoidType(), [I8(number), p, stride])

    @staticmethod
    def store(b, number, p, stride):
        _call(b, "llvm.x86.tilestored64", ir.VoidType(), [I8(number), p, stride])

    @staticmethod
    def dot(b, c, x, y):
        _call(b, "llvm.x86.tdpbf16ps", ir.VoidType(), [I8(number) for number in (c, x, y)])


class _Emulated:
    """Tiles on the stack of the function that uses them, and vectors of 16 numbers."""

    @staticmethod
    def _row(b, number, row):
        """Where a row of a tile is."""
        function = b.function
        if not hasattr(function, "tiles"):
            with b.goto_entry_block():  # not by Numba, which would fill them with zeros
                function.tiles = b.alloca(ir.ArrayType(TILE, TILES))
                function.tiles.align = ROW_BYTES
        return b.gep(function.tiles, [I64(0), I64(number), row])

    @staticmethod
    def _in_memory(b, p, stride, row):
        """Where a row is that is loaded or stored."""
        return b.bitcast(b.gep(p, [b.mul(stride, row)]), VECTOR.as_pointer())

    @staticmethod
    def configure(b, scratch):
        pass

    @staticmethod
    def release(b):
        pass

    @classmethod
    def zero(cls, b, number):
        zeros = _in_all(b, _opaque(b, I32(0)))  # LLVM would call memset, and kernels call no library
        with cgutils.for_range(b, I64(SIDE)) as loop:
            b.store(zeros, cls._row(b, number, loop.index))

    @classmethod
    def load(cls, b, number, p, stride):
        with cgutils.for_range(b, I64(SIDE)) as loop:
            row = b.load(cls._in_memory(b, p, stride, loop.index), align=4)
            b.store(row, cls._row(b, number, loop.index))

    @classmethod
    def store(cls, b, number, p, stride):
        with cgutils.for_range(b, I64(SIDE)) as loop:
            row = b.load(cls._row(b, number, loop.index))
            b.store(row, cls._in_memory(b, p, stride, loop.index), align=4)

    @classmethod
    def dot(cls, b, c, x, y):
        integer, zeros = I32.as_pointer(), ir.Constant(VECTOR, [0.0] * SIDE)
        of_row = [cgutils.alloca_once(b, VECTOR) for _ in range(2)]  # sums of even and of odd terms
        with cgutils.for_range(b, I64(SIDE)) as rows:
            for place in of_row:
                b.store(zeros, place)
            left = b.bitcast(cls._row(b, x, rows.index), integer)
            with cgutils.for_range(b, I64(SIDE)) as terms:
                pair = _in_all(b, b.load(b.gep(left, [terms.index])))
                factors = halves(b, pair), halves(b, b.load(cls._row(b, y, terms.index)))
                for place, u, v in zip(of_row, *factors, strict=True):
                    b.store(flushed(b, _fused(b, u, v, b.load(place))), place)
            place = cls._row(b, c, rows.index)
            sums = flushed(b, b.fadd(*(b.load(place) for place in of_row)))
            b.store(flushed(b, b.fadd(flushed(b, b.load(place)), sums)), place)


def _in_all(b, integer):
    """The 32 bits in every lane."""
    first = b.insert_element(ir.Constant(INTEGERS, ir.Undefined), integer, I32(0))
    return b.bitcast(b.shuffle_vector(first, first, ir.Constant(INTEGERS, [0] * SIDE)), VECTOR)


def _fused(b, x, y, z):
    """x * y + z; the product of two numbers of bfloat16 is exact but where it is beyond the range of float32."""
    if not blocking.HAS_FMA:
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.v{SIDE}f32", VECTOR, [x, y, z])
