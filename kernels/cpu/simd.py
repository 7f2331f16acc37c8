"""Vectors as values: a register tile, a lane mask and a typed pointer for plain ``@njit`` code.

The only file that emits LLVM IR. A `Tile` is rows x vectors SIMD registers of one dtype; it is assigned, passed
and returned like a number, and LLVM keeps it in registers. The operations are generic over the shape, which is
part of the type. ``+ - * /`` and comparisons work on tiles, between a tile and a tile of one row (broadcast
down), and between a tile and a number (broadcast everywhere, converted to the tile's dtype).

Pointers count in elements: ``p + n``, ``p[i]``, ``p[i] = x``. Loads and stores ask for the natural alignment of
an element only. ``columns`` is the number of valid columns of a tile, or None when all are: lanes beyond it are
neither read nor written. As `operands.InLast` it reaches into the last vector, so no other one needs a mask.
"""

import operator
import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from . import blocking

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
SUFFIX = {types.float32: "f32", types.float64: "f64"}
INTEGERS = {types.float32: I32, types.float64: I64}  # the integers as wide as the float
MANTISSA_BITS = {types.float32: 23, types.float64: 52}
EXPONENT_BIAS = {types.float32: 127, types.float64: 1023}


# --------------------------------------------------------------------------------------------- types
class Pointer(types.Type):
    """The address of elements of ``dtype``."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"Pointer({dtype})")


@register_model(Pointer)
class PointerModel(models.PrimitiveModel):
    """An address of bytes."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.IntType(8).as_pointer())


class Tile(types.Type):
    """rows x vectors registers of ``dtype``."""

    def __init__(self, dtype, rows, vectors):
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        super().__init__(f"Tile({dtype}, {rows}, {vectors})")

    @property
    def lanes(self):
        return blocking.VECTOR_BYTES * 8 // self.dtype.bitwidth

    @property
    def registers(self):
        return self.rows * self.vectors

    @property
    def vector(self):
        return ir.VectorType(FLOATS[self.dtype], self.lanes)

    def shaped(self, rows, vectors):
        return Tile(self.dtype, rows, vectors)


class Mask(types.Type):
    """The result of comparing tiles: one bit a lane."""

    def __init__(self, tile):
        self.tile = tile
        super().__init__(f"Mask({tile})")


@register_model(Tile)
class TileModel(models.PrimitiveModel):
    """An array of registers."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.ArrayType(fe_type.vector, fe_type.registers))


@register_model(Mask)
class MaskModel(models.PrimitiveModel):
    """A bit for each lane of each register."""

    def __init__(self, dmm, fe_type):
        bits = ir.VectorType(I1, fe_type.tile.lanes)
        super().__init__(dmm, fe_type, ir.ArrayType(bits, fe_type.tile.registers))


# ------------------------------------------------------------------------------------ emitting pieces
def _call(b, name, result, arguments):
    """Call the LLVM intrinsic ``name``."""
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return b.call(function, arguments)


def _constant(ty, value):
    """A vector of the tile type with ``value`` in every lane."""
    return ir.Constant(ty.vector, [value] * ty.lanes)


def _splat(b, ty, scalar):
    undefined = ir.Constant(ty.vector, ir.Undefined)
    first = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, ty.lanes), [0] * ty.lanes))


def _vectors(b, tile, ty):
    return [b.extract_value(tile, q) for q in range(ty.registers)]


def _tile(b, vectors, element=None):
    tile = ir.Constant(ir.ArrayType(element or vectors[0].type, len(vectors)), ir.Undefined)
    for q, vector in enumerate(vectors):
        tile = b.insert_value(tile, vector, q)
    return tile


def _at(b, pointer, dtype, offset=None, vector=None, lane=0):
    """The address of element ``offset + lane``, as a pointer to ``vector`` or to an element."""
    element = FLOATS[dtype]
    p = b.bitcast(pointer, element.as_pointer())
    if offset is not None:
        p = b.gep(p, [offset])
    if lane:
        p = b.gep(p, [I64(lane)])
    return b.bitcast(p, vector.as_pointer()) if vector else p


def _lane_masks(b, ty, columns, columns_type):
    """A mask for each vector of a row of the tile; None for an unmasked one."""
    if isinstance(columns_type, types.NoneType):
        return [None] * ty.vectors
    full = 0
    if isinstance(columns_type, types.BaseTuple):  # operands.InLast
        full, columns = ty.vectors - 1, b.extract_value(columns, 0)
    index = ir.VectorType(I32, ty.lanes)
    undefined = ir.Constant(index, ir.Undefined)
    first = b.insert_element(undefined, b.trunc(columns, I32), I32(0))
    limit = b.shuffle_vector(first, undefined, ir.Constant(index, [0] * ty.lanes))
    return [None] * full + [
        b.icmp_signed("<", ir.Constant(index, list(range(j * ty.lanes, (j + 1) * ty.lanes))), limit)
        for j in range(full, ty.vectors)
    ]


def _load(b, ty, p, mask, fill=None):
    align = ty.dtype.bitwidth // 8
    if mask is None:
        load = b.load(p)
        load.align = align
        return load
    name = f"llvm.masked.load.v{ty.lanes}{SUFFIX[ty.dtype]}.p0"
    return _call(b, name, ty.vector, [p, I32(align), mask, _constant(ty, 0.0) if fill is None else fill])


def _store(b, ty, value, p, mask):
    align = ty.dtype.bitwidth // 8
    if mask is None:
        b.store(value, p).align = align
    else:
        name = f"llvm.masked.store.v{ty.lanes}{SUFFIX[ty.dtype]}.p0"
        _call(b, name, ir.VoidType(), [value, p, I32(align), mask])


def _opaque(b, value):
    """The same integer or pointer, of which LLVM cannot know where it comes from."""
    return b.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def _fma(b, ty, x, y, z):
    """x * y + z, fused where the instruction set can; a call into libm otherwise, so not there."""
    if not blocking.HAS_FMA:
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.v{ty.lanes}{SUFFIX[ty.dtype]}", ty.vector, [x, y, z])


def _float(ctx, b, value, source, dtype):
    """A number as an element of ``dtype``."""
    return ctx.cast(b, value, types.unliteral(source), dtype)


def _operand(ctx, b, value, ty, result):
    """The vectors of an operand of an operation with tile type ``result``."""
    if isinstance(ty, Tile):
        return [
            b.extract_value(value, q if ty.rows == result.rows else q % ty.vectors) for q in range(result.registers)
        ]
    return [_splat(b, result, _float(ctx, b, value, ty, result.dtype))] * result.registers


# ------------------------------------------------------------------------------------------ pointers
@infer_global(operator.add)
@infer_global(operator.iadd)
class PointerAdd(AbstractTemplate):
    """``p + n``: n elements on."""

    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Pointer) and isinstance(args[1], types.Integer):
            return signature(args[0], args[0], types.intp)


@lower_builtin(operator.add, Pointer, types.Integer)
@lower_builtin(operator.iadd, Pointer, types.Integer)
def _pointer_add(ctx, b, sig, args):
    p = b.bitcast(args[0], ctx.get_data_type(sig.args[0].dtype).as_pointer())
    return b.bitcast(b.gep(p, [args[1]]), ir.IntType(8).as_pointer())


@infer_global(operator.getitem)
class PointerGet(AbstractTemplate):
    """``p[n]``: the element there."""

    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Pointer) and isinstance(args[1], types.Integer):
            return signature(args[0].dtype, args[0], types.intp)


@lower_builtin(operator.getitem, Pointer, types.Integer)
def _pointer_get(ctx, b, sig, args):
    p = b.bitcast(args[0], ctx.get_data_type(sig.args[0].dtype).as_pointer())
    return ctx.unpack_value(b, sig.return_type, b.gep(p, [args[1]]))


@infer_global(operator.setitem)
class PointerSet(AbstractTemplate):
    """``p[n] = value``: the element there."""

    def generic(self, args, kws):
        if len(args) == 3 and isinstance(args[0], Pointer) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.intp, args[0].dtype)


@lower_builtin(operator.setitem, Pointer, types.Integer, types.Any)
def _pointer_set(ctx, b, sig, args):
    p = b.bitcast(args[0], ctx.get_data_type(sig.args[0].dtype).as_pointer())
    ctx.pack_value(b, sig.args[2], args[2], b.gep(p, [args[1]]))
    return ctx.get_dummy_value()


@intrinsic
def pointer(tc, address, dtype):
    """The elements of ``dtype`` (a NumPy scalar type) at an integer address."""

    def codegen(ctx, b, sig, args):
        return b.inttoptr(args[0], ir.IntType(8).as_pointer())

    return Pointer(dtype.dtype)(types.intp, dtype), codegen


@intrinsic
def pointer_like(tc, address, p):
    """An address as a pointer like ``p``."""

    def codegen(ctx, b, sig, args):
        return b.inttoptr(args[0], ir.IntType(8).as_pointer())

    return p(types.intp, p), codegen


@intrinsic
def as_floats(tc, p):
    """The same address, of float64 numbers."""

    def codegen(ctx, b, sig, args):
        return args[0]

    return Pointer(types.float64)(p), codegen


@intrinsic
def element(tc, p, x):
    """The number ``x`` rounded to the dtype that ``p`` points to."""

    def codegen(ctx, b, sig, args):
        return _float(ctx, b, args[1], x, p.dtype)

    return p.dtype(p, x), codegen


@intrinsic
def is_not_null(tc, p):
    """Whether the pointer is not 0."""

    def codegen(ctx, b, sig, args):
        return b.icmp_unsigned("!=", b.ptrtoint(args[0], I64), I64(0))

    return types.boolean(p), codegen


# ------------------------------------------------------------------------------- making and storing tiles
@intrinsic(prefer_literal=True)
def zeros(tc, p, rows, vectors):
    """A tile of zeros, of the dtype that ``p`` points to."""
    ty = Tile(p.dtype, rows.literal_value, vectors.literal_value)

    def codegen(ctx, b, sig, args):
        return _tile(b, [_constant(ty, 0.0)] * ty.registers)

    return ty(p, rows, vectors), codegen


@intrinsic(prefer_literal=True)
def tall(tc, strip, rows):
    """A tile of zeros as wide as ``strip``, with ``rows`` rows."""
    ty = strip.shaped(rows.literal_value, strip.vectors)

    def codegen(ctx, b, sig, args):
        return _tile(b, [_constant(ty, 0.0)] * ty.registers)

    return ty(strip, rows), codegen


@intrinsic(prefer_literal=True)
def across(tc, p, columns):
    """A tile of zeros of one row with as few vectors as ``columns`` fill, of the dtype that ``p`` points to."""
    vectors = -(-columns.literal_value // Tile(p.dtype, 1, 1).lanes)
    ty = Tile(p.dtype, 1, vectors)

    def codegen(ctx, b, sig, args):
        return _tile(b, [_constant(ty, 0.0)] * ty.registers)

    return ty(p, columns), codegen


@intrinsic
def square(tc, p):
    """A tile of zeros with as many rows as lanes, of the dtype that ``p`` points to."""
    ty = Tile(p.dtype, 1, 1)
    ty = ty.shaped(ty.lanes, 1)

    def codegen(ctx, b, sig, args):
        return _tile(b, [_constant(ty, 0.0)] * ty.registers)

    return ty(p), codegen


@intrinsic
def lanes(tc, p):
    """Elements in one register, of the dtype that ``p`` points to."""
    count = Tile(p.dtype, 1, 1).lanes

    def codegen(ctx, b, sig, args):
        return I64(count)

    return types.intp(p), codegen


@intrinsic
def load(tc, tile, p, ld, columns):
    """A tile like ``tile`` with the rows at ``p``, ``ld`` elements apart; 0 beyond ``columns``."""

    def codegen(ctx, b, sig, args):
        masks = _lane_masks(b, tile, args[3], columns)
        rows = []
        for i in range(tile.rows):
            offset = b.mul(args[2], I64(i))
            for j in range(tile.vectors):
                p = _at(b, args[1], tile.dtype, offset, tile.vector, j * tile.lanes)
                rows.append(_load(b, tile, p, masks[j]))
        return _tile(b, rows)

    return tile(tile, p, types.intp, columns), codegen


@intrinsic
def load_corner(tc, tile, p, ld, rows, columns):
    """A tile like ``tile`` of which only ``rows`` rows and ``columns`` columns exist; 0 beyond."""

    def codegen(ctx, b, sig, args):
        values = []
        for i in range(tile.rows):
            there = b.icmp_signed("<", I64(i), args[3])
            masks = _lane_masks(b, tile, b.select(there, args[4], I64(0)), columns)
            offset = b.mul(args[2], I64(i))
            for j in range(tile.vectors):
                p = _at(b, args[1], tile.dtype, offset, tile.vector, j * tile.lanes)
                values.append(_load(b, tile, p, masks[j]))
        return _tile(b, values)

    return tile(tile, p, types.intp, types.intp, columns), codegen


@intrinsic
def load_filled(tc, tile, p, ld, columns, fill):
    """`load` with ``fill`` beyond ``columns``."""

    def codegen(ctx, b, sig, args):
        masks = _lane_masks(b, tile, args[3], columns)
        beyond = _splat(b, tile, _float(ctx, b, args[4], fill, tile.dtype))
        rows = []
        for i in range(tile.rows):
            offset = b.mul(args[2], I64(i))
            for j in range(tile.vectors):
                p = _at(b, args[1], tile.dtype, offset, tile.vector, j * tile.lanes)
                rows.append(_load(b, tile, p, masks[j], beyond))
        return _tile(b, rows)

    return tile(tile, p, types.intp, columns, fill), codegen


@intrinsic
def load_row(tc, tile, p, columns):
    """A tile like ``tile`` with the row at ``p`` in every row; 0 beyond ``columns``."""

    def codegen(ctx, b, sig, args):
        masks = _lane_masks(b, tile, args[2], columns)
        row = [
            _load(b, tile, _at(b, args[1], tile.dtype, None, tile.vector, j * tile.lanes), masks[j])
            for j in range(tile.vectors)
        ]
        return _tile(b, row * tile.rows)

    return tile(tile, p, columns), codegen


@intrinsic
def load_converted(tc, tile, p):
    """A tile of one row like ``tile``, converted from the numbers that ``p`` points to."""
    source = p.dtype

    def codegen(ctx, b, sig, args):
        element = ctx.get_data_type(source)
        base = b.bitcast(args[1], element.as_pointer())
        row = []
        for j in range(tile.vectors):
            at = b.bitcast(b.gep(base, [I64(j * tile.lanes)]), ir.VectorType(element, tile.lanes).as_pointer())
            value = b.load(at)
            value.align = max(source.bitwidth // 8, 1)
            row.append(_convert(b, value, source, tile))
        return _tile(b, row)

    return tile(tile, p), codegen


@intrinsic
def load_converted_first(tc, tile, p, count):
    """`load_converted` of one vector of which the first ``count`` numbers exist; 0 beyond."""
    source = p.dtype

    def codegen(ctx, b, sig, args):
        element = ctx.get_data_type(source)
        vector, bits = ir.VectorType(element, tile.lanes), source.bitwidth
        kind = "i" if isinstance(source, types.Integer) else "f"
        mask = _lane_masks(b, tile, args[2], count)[0]
        arguments = [b.bitcast(args[1], vector.as_pointer()), I32(bits // 8), mask, ir.Constant(vector, None)]
        value = _call(b, f"llvm.masked.load.v{tile.lanes}{kind}{bits}.p0", vector, arguments)
        return _tile(b, [_convert(b, value, source, tile)])

    return tile(tile, p, count), codegen


def _convert(b, value, source, tile):
    if isinstance(source, types.Integer):
        return (b.sitofp if source.signed else b.uitofp)(value, tile.vector)
    if source.bitwidth > tile.dtype.bitwidth:
        return b.fptrunc(value, tile.vector)
    return b.fpext(value, tile.vector) if source.bitwidth < tile.dtype.bitwidth else value


@intrinsic
def store(tc, tile, p, ld, columns):
    """Write the rows of a tile to ``p``, ``ld`` elements apart."""

    def codegen(ctx, b, sig, args):
        masks = _lane_masks(b, tile, args[3], columns)
        for i in range(tile.rows):
            offset = b.mul(args[2], I64(i))
            for j in range(tile.vectors):
                p = _at(b, args[1], tile.dtype, offset, tile.vector, j * tile.lanes)
                _store(b, tile, b.extract_value(args[0], i * tile.vectors + j), p, masks[j])
        return ctx.get_dummy_value()

    return types.void(tile, p, types.intp, columns), codegen


def _ask(b, p, writes=0, locality=2):
    """Emit a request for the line at ``p``: by L2, with locality 3 by L1."""
    _call(b, "llvm.prefetch.p0", ir.VoidType(), [p, I32(writes), I32(locality), I32(1)])


@intrinsic
def prefetch(tc, p):
    """Ask L2 for the line at ``p``; never faults."""

    def codegen(ctx, b, sig, args):
        _ask(b, args[0])
        return ctx.get_dummy_value()

    return types.void(p), codegen


@intrinsic
def prefetch_to_write(tc, p):
    """Ask L1 for the line at ``p``, which will be written; never faults."""

    def codegen(ctx, b, sig, args):
        _ask(b, args[0], writes=1, locality=3)
        return ctx.get_dummy_value()

    return types.void(p), codegen


@intrinsic
def prefetch_row(tc, tile, p):
    """Ask L2 for the lines of one row of the tile at ``p``; never faults."""

    def codegen(ctx, b, sig, args):
        step = max(64 // blocking.VECTOR_BYTES, 1)
        for j in range(0, tile.vectors, step):
            line = _at(b, args[1], tile.dtype, None, ir.IntType(8), j * tile.lanes)
            _ask(b, line)
        return ctx.get_dummy_value()

    return types.void(tile, p), codegen


@intrinsic
def store_corner(tc, tile, p, ld, rows, columns):
    """Write the first ``rows`` rows and ``columns`` columns of a tile."""

    def codegen(ctx, b, sig, args):
        for i in range(tile.rows):
            there = b.icmp_signed("<", I64(i), args[3])
            masks = _lane_masks(b, tile, b.select(there, args[4], I64(0)), columns)
            offset = b.mul(args[2], I64(i))
            for j in range(tile.vectors):
                p = _at(b, args[1], tile.dtype, offset, tile.vector, j * tile.lanes)
                _store(b, tile, b.extract_value(args[0], i * tile.vectors + j), p, masks[j])
        return ctx.get_dummy_value()

    return types.void(tile, p, types.intp, types.intp, columns), codegen


# ------------------------------------------------------------------------------------------- products
GROUP = 6  # rows whose offsets are in registers; more would put some on the stack


@intrinsic
def row_offsets(tc, tile, ld):
    """Where the rows of ``tile`` begin, ``ld`` elements apart, in bytes: what `rank_1` asks for, made before its loop.

    An even row is a power of two times an odd one, which the address of a load does for nothing. The odd ones are
    opaque: LLVM would else walk from row to row by additions that wait for each other (12 x 1 tiles 1.6 times as
    slow), and keep sums of strides on the stack.
    """
    ty = types.UniTuple(types.intp, min(tile.rows, GROUP))

    def codegen(ctx, b, sig, args):
        odd = {i: _opaque(b, b.mul(args[1], I64(i * tile.dtype.bitwidth // 8))) for i in range(1, len(ty), 2)}
        offsets = [I64(0)]
        for i in range(1, len(ty)):
            power = i & -i
            offsets.append(b.mul(odd[i // power], I64(power)))
        return ctx.make_tuple(b, ty, offsets)

    return ty(tile, ld), codegen


def outer_product(b, tile, result, a, offsets, right, multiply_add):
    """Emit ``result += a[0:rows] outer right``; the elements of ``a`` are at `row_offsets`."""
    a = _opaque(b, a)
    for i in range(tile.rows):
        if i and i % GROUP == 0:
            a = _opaque(b, b.gep(a, [b.mul(b.extract_value(offsets, GROUP // 2), I64(2))]))
        address = b.gep(a, [b.extract_value(offsets, i % GROUP)])
        element = b.load(b.bitcast(address, FLOATS[tile.dtype].as_pointer()))
        element.align = tile.dtype.bitwidth // 8
        left = _splat(b, tile, element)
        for j in range(tile.vectors):
            q = i * tile.vectors + j
            result = b.insert_value(result, multiply_add(b, tile, left, right[j], b.extract_value(result, q)), q)
    return result


@intrinsic
def rank_1(tc, tile, a, offsets, row, columns):
    """``tile += a[0:rows] outer row[0:columns]``; the elements of ``a`` are at `row_offsets`."""

    def codegen(ctx, b, sig, args):
        result, a, offsets, row, columns_value = args
        masks = _lane_masks(b, tile, columns_value, columns)
        right = [
            _load(b, tile, _at(b, row, tile.dtype, None, tile.vector, j * tile.lanes), masks[j])
            for j in range(tile.vectors)
        ]
        return outer_product(b, tile, result, a, offsets, right, _fma)

    return tile(tile, a, offsets, row, columns), codegen


# -------------------------------------------------------------------------------------- element by element
def _result(args):
    """The tile type of an operation on these operands, or None when it is not for tiles."""
    tiles = [a for a in args if isinstance(a, Tile)]
    if len(args) != 2 or not tiles or not all(isinstance(a, (Tile, types.Number)) for a in args):
        return None
    return max(tiles, key=lambda ty: ty.rows)


def _arithmetic(operation, emit, comparison=False):
    @infer_global(operation)
    class Arithmetic(AbstractTemplate):
        def generic(self, args, kws):
            result = _result(args)
            if result is not None:
                return signature(Mask(result) if comparison else result, *args)

    def lower(ctx, b, sig, args):
        result = sig.return_type.tile if comparison else sig.return_type
        left, right = (_operand(ctx, b, v, t, result) for v, t in zip(args, sig.args, strict=True))
        return _tile(b, [emit(b, x, y) for x, y in zip(left, right, strict=True)])

    for operands in ((Tile, Tile), (Tile, types.Number), (types.Number, Tile)):
        lower_builtin(operation, *operands)(lower)


_arithmetic(operator.add, lambda b, x, y: b.fadd(x, y))
_arithmetic(operator.iadd, lambda b, x, y: b.fadd(x, y))
_arithmetic(operator.sub, lambda b, x, y: b.fsub(x, y))
_arithmetic(operator.mul, lambda b, x, y: b.fmul(x, y))
_arithmetic(operator.truediv, lambda b, x, y: b.fdiv(x, y))
_arithmetic(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), comparison=True)
_arithmetic(operator.le, lambda b, x, y: b.fcmp_ordered("<=", x, y), comparison=True)
_arithmetic(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), comparison=True)
_arithmetic(operator.ge, lambda b, x, y: b.fcmp_ordered(">=", x, y), comparison=True)
_arithmetic(operator.eq, lambda b, x, y: b.fcmp_ordered("==", x, y), comparison=True)


@intrinsic
def fma(tc, x, y, z):
    """``x * y + z``, rounded once where the instruction set has it."""
    ty = next(t for t in (x, y, z) if isinstance(t, Tile))

    def codegen(ctx, b, sig, args):
        xs, ys, zs = (_operand(ctx, b, v, t, ty) for v, t in zip(args, sig.args, strict=True))
        return _tile(b, [_fma(b, ty, *operands) for operands in zip(xs, ys, zs, strict=True)])

    return ty(x, y, z), codegen


@intrinsic
def select(tc, condition, x, y):
    """``x`` where the condition holds, else ``y``."""
    ty = condition.tile

    def codegen(ctx, b, sig, args):
        xs, ys = (_operand(ctx, b, v, t, ty) for v, t in zip(args[1:], sig.args[1:], strict=True))
        bits = [b.extract_value(args[0], q) for q in range(ty.registers)]
        return _tile(b, [b.select(*operands) for operands in zip(bits, xs, ys, strict=True)])

    return ty(condition, x, y), codegen


def _unary(name, doc):
    def typed(tc, x):
        def codegen(ctx, b, sig, args):
            llvm_name = f"llvm.{name}.v{x.lanes}{SUFFIX[x.dtype]}"
            return _tile(b, [_call(b, llvm_name, x.vector, [v]) for v in _vectors(b, args[0], x)])

        return x(x), codegen

    typed.__doc__ = doc
    return intrinsic(typed)


square_root = _unary("sqrt", "The square root, correctly rounded.")
absolute = _unary("fabs", "The absolute value.")


@intrinsic
def nearest_bfloat16(tc, x):
    """float32 numbers rounded to the nearest of bfloat16, ties to even; NaN stays as it is."""

    def codegen(ctx, b, sig, args):
        integers = ir.VectorType(I32, x.lanes)

        def constant(value):
            return ir.Constant(integers, [value] * x.lanes)

        rounded = []
        for v in _vectors(b, args[0], x):
            bits = b.bitcast(v, integers)
            odd = b.and_(b.lshr(bits, constant(16)), constant(1))
            nearest = b.and_(b.add(b.add(bits, constant(0x7FFF)), odd), constant(0xFFFF0000))
            rounded.append(b.select(b.fcmp_unordered("uno", v, v), v, b.bitcast(nearest, x.vector)))
        return _tile(b, rounded)

    return x(x), codegen


@intrinsic
def nearest_power(tc, x, factor):
    """``(n, 2**n)`` for the integer n nearest to ``x * factor``, within the range of normal exponents.

    Added to 1.5 * 2**23 (2**52) a number loses its fraction, and the integer is in the low bits of the sum.
    """
    ty = types.UniTuple(x, 2)

    def codegen(ctx, b, sig, args):
        magic = _constant(x, 1.5 * 2.0 ** MANTISSA_BITS[x.dtype])
        integers = ir.VectorType(INTEGERS[x.dtype], x.lanes)
        bias = ir.Constant(integers, [EXPONENT_BIAS[x.dtype]] * x.lanes)
        shift = ir.Constant(integers, [MANTISSA_BITS[x.dtype]] * x.lanes)
        factors = _operand(ctx, b, args[1], factor, x)
        sums = [_fma(b, x, v, w, magic) for v, w in zip(_vectors(b, args[0], x), factors, strict=True)]
        powers = [b.bitcast(b.shl(b.add(b.bitcast(t, integers), bias), shift), x.vector) for t in sums]
        return ctx.make_tuple(b, ty, [_tile(b, [b.fsub(t, magic) for t in sums]), _tile(b, powers)])

    return ty(x, factor), codegen


@intrinsic
def exponent_and_mantissa(tc, x):
    """``(e, m)`` with ``x = m * 2**e`` and ``m`` in [sqrt(1/2), sqrt(2)), for positive normal x."""
    ty = types.UniTuple(x, 2)

    def codegen(ctx, b, sig, args):
        integer, bits, bias = INTEGERS[x.dtype], MANTISSA_BITS[x.dtype], EXPONENT_BIAS[x.dtype]
        integers = ir.VectorType(integer, x.lanes)

        def constant(value):
            return ir.Constant(integers, [value] * x.lanes)

        one = bias << bits
        root_half = {23: 0x3F3504F3, 52: 0x3FE6A09E667F3BCD}[bits]
        exponents, mantissas = [], []
        for v in _vectors(b, args[0], x):
            shifted = b.add(b.bitcast(v, integers), constant(one - root_half))
            exponent = b.sub(b.lshr(shifted, constant(bits)), constant(bias))
            mantissa = b.add(b.and_(shifted, constant((1 << bits) - 1)), constant(root_half))
            exponents.append(b.sitofp(exponent, x.vector))
            mantissas.append(b.bitcast(mantissa, x.vector))
        return ctx.make_tuple(b, ty, [_tile(b, exponents), _tile(b, mantissas)])

    return ty(x), codegen


@intrinsic
def is_single(tc, x):
    """Whether the tile is float32; a constant, so the branch not taken is never compiled to code."""
    single = x.dtype == types.float32

    def codegen(ctx, b, sig, args):
        return cgutils.true_bit if single else cgutils.false_bit

    return types.boolean(x), codegen


@intrinsic
def first_lanes(tc, x, columns):
    """The mask of the first ``columns`` lanes of every row of a tile."""

    def codegen(ctx, b, sig, args):
        return _tile(b, _lane_masks(b, x, args[1], columns) * x.rows)

    return Mask(x)(x, columns), codegen


# ------------------------------------------------------------------------------------------ across lanes
def _reduction(name, number):
    """The reduction of every row of a tile, vectors first, in a tree whose shape is fixed.

    A tile of one vector a row, the same in all lanes; or, of a tile of one row, a ``number``.
    """

    def typed(tc, x):
        result = x.dtype if number else x.shaped(x.rows, 1)

        def codegen(ctx, b, sig, args):
            vectors, rows = _vectors(b, args[0], x), []
            for i in range(0, x.registers, x.vectors):
                total = vectors[i]
                for v in vectors[i + 1 : i + x.vectors]:
                    total = _combine(b, name, total, v)
                rows.append(total)
            width = x.lanes
            while width > 1:
                width //= 2
                order = ir.Constant(ir.VectorType(I32, x.lanes), [(i + width) % x.lanes for i in range(x.lanes)])
                rows = [_combine(b, name, total, b.shuffle_vector(total, total, order)) for total in rows]
            return b.extract_element(rows[0], I32(0)) if number else _tile(b, rows)

        return result(x), codegen

    return intrinsic(typed)


@intrinsic
def sum_rows(tc, tile):
    """A tile of one row: the sums of the columns, in a tree whose shape is fixed."""
    ty = tile.shaped(1, tile.vectors)

    def codegen(ctx, b, sig, args):
        rows = _vectors(b, args[0], tile)
        while len(rows) > tile.vectors:
            half = len(rows) // 2
            rows = [b.fadd(x, y) for x, y in zip(rows[:half], rows[half:], strict=True)]
        return _tile(b, rows)

    return ty(tile), codegen


def _combine(b, name, x, y):
    if name == "sum":
        return b.fadd(x, y)
    return b.select(b.fcmp_unordered(">=", x, y), x, y)  # NaN in x stays; NaN in y loses: callers test for NaN


sum_lanes, max_lanes = _reduction("sum", number=True), _reduction("max", number=True)
sum_across, max_across = _reduction("sum", number=False), _reduction("max", number=False)


@intrinsic
def maximum(tc, x, y):
    """The larger of each pair; ``x`` where either is NaN."""

    def codegen(ctx, b, sig, args):
        pairs = zip(_vectors(b, args[0], x), _vectors(b, args[1], y), strict=True)
        return _tile(b, [_combine(b, "max", u, v) for u, v in pairs])

    return x(x, y), codegen


@intrinsic
def any_lane(tc, mask):
    """Whether any lane of the mask is set."""

    def codegen(ctx, b, sig, args):
        total = b.extract_value(args[0], 0)
        for q in range(1, mask.tile.registers):
            total = b.or_(total, b.extract_value(args[0], q))
        return b.icmp_unsigned(
            "!=", b.bitcast(total, ir.IntType(mask.tile.lanes)), ir.Constant(ir.IntType(mask.tile.lanes), 0)
        )

    return types.boolean(mask), codegen


@intrinsic
def transpose(tc, tile):
    """The transpose of a square tile: as many rows as lanes, one vector each."""
    if tile.rows != tile.lanes or tile.vectors != 1:
        raise TypeError(f"transpose needs a square tile, got {tile}")

    def codegen(ctx, b, sig, args):
        rows = _vectors(b, args[0], tile)
        n = tile.lanes
        index = ir.VectorType(I32, n)
        width = 1
        while width < n:  # exchange the off-diagonal blocks of size `width`
            low = ir.Constant(index, [i if not i & width else n + i - width for i in range(n)])
            high = ir.Constant(index, [i + width if not i & width else n + i for i in range(n)])
            for i in range(n):
                if not i & width:
                    x, y = rows[i], rows[i + width]
                    rows[i], rows[i + width] = b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)
            width *= 2
        return _tile(b, rows)

    return tile(tile), codegen


# --------------------------------------------------------------------------------- calling by address, atomics
@intrinsic
def call(tc, address, arguments):
    """Call the C function at an integer address with integers, pointers and float64 numbers; it returns nothing."""

    def codegen(ctx, b, sig, args):
        values = [b.extract_value(args[1], i) for i in range(len(sig.args[1]))]
        function = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        b.call(b.inttoptr(args[0], function.as_pointer()), values)
        return ctx.get_dummy_value()

    return types.void(types.intp, arguments), codegen


@intrinsic
def atomic_add(tc, p, value):
    """Add to the integer at ``p``, sequentially consistent; returns the old value."""

    def codegen(ctx, b, sig, args):
        return b.atomic_rmw("add", b.bitcast(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.intp(p, types.intp), codegen


@intrinsic
def atomic_load(tc, p):
    """Read the integer at ``p`` with acquire ordering."""

    def codegen(ctx, b, sig, args):
        return b.load_atomic(b.bitcast(args[0], I64.as_pointer()), "acquire", 8)

    return types.intp(p), codegen


# ------------------------------------------------------------------------------------ control register
X86, ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")
# Of the walk: round to nearest, no exceptions, and subnormal numbers, results and operands, are 0. Processors take some
# hundred cycles for each of them, and training meets many: Adam's averages of gradients that have become 0 shrink until
# rounding keeps them subnormal for good, and so are the probabilities of classes that are ruled out.
CONTROL = 0x1F80 | 0x8040 if X86 else 1 << 24 if ARM else 0


def _set_control(b, value):
    if X86:
        place = cgutils.alloca_once_value(b, b.trunc(value, I32))
        _call(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [b.bitcast(place, ir.IntType(8).as_pointer())])
    elif ARM:
        b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), [I64]), "msr fpcr, $0", "r", side_effect=True), [value])


@intrinsic
def exchange_control(tc, control):
    """Set how this thread rounds, and return how it did: 0 on machines whose register is not known here.

    Threads come with what other libraries have set; bits would depend on which thread made them.
    """

    def codegen(ctx, b, sig, args):
        before = ir.Constant(I64, 0)
        if X86:
            place = cgutils.alloca_once(b, I32)
            _call(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), [b.bitcast(place, ir.IntType(8).as_pointer())])
            before = b.zext(b.load(place), I64)
        elif ARM:
            before = b.call(ir.InlineAsm(ir.FunctionType(I64, []), "mrs $0, fpcr", "=r", side_effect=True), [])
        _set_control(b, args[0])
        return before

    return types.int64(types.int64), codegen
