"""What plain CUDA Python cannot say: 16-byte accesses and inline PTX; each with a plain twin.

The only file that emits LLVM IR for a GPU. The simulator runs the twins.
"""

from functools import cache

import numpy as np

from .driver import cuda, simulated, types

if not simulated:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    I32 = ir.IntType(32)


# ------------------------------------------------------------------------------------- the thread
if simulated:

    def thread_again():
        """``cuda.threadIdx.x``, read anew: what follows from it takes no register before."""
        return cuda.threadIdx.x

else:

    @intrinsic
    def thread_again(typing_context):
        def generate(context, builder, signature, arguments):
            read = ir.InlineAsm(ir.FunctionType(I32, []), "mov.u32 $0, %tid.x;", "=r", side_effect=True)
            return builder.call(read, [])

        return types.int32(), generate


# ------------------------------------------------------------------------------------- wide accesses
@cache
def vector_access(count):
    """Two device functions that copy ``count`` elements in one access of memory.

    ``load(registers, start, array, index)`` is ``registers[start : start + count] = array[index : index + count]``;
    ``store(array, index, registers, start)`` is the way back. ``registers`` is a local array. ``index`` and the
    array's first element lie on multiples of ``count`` elements. A load may reach over the array's end, not begin
    there.
    """
    return _plain_access(count) if simulated else _wide_access(count)


def _plain_access(count):
    def load(registers, start, array, index):
        assert index % count == 0
        for e in range(count):  # what a GPU has in memory after the end is NaN here
            registers[start + e] = array[index + e] if e == 0 or index + e < len(array) else np.nan

    def store(array, index, registers, start):
        assert index % count == 0
        for e in range(count):
            array[index + e] = registers[start + e]

    return load, store


def _wide_access(count):
    def element(context, builder, array_type, array, index, offset=0):
        # A negative index is not from the end, and nothing is checked.
        data = context.make_array(array_type)(context, builder, value=array).data
        return builder.gep(data, [builder.add(index, index.type(offset)) if offset else index], inbounds=True)

    def vector(context, builder, array_type, array, index):
        address = element(context, builder, array_type, array, index)
        wide = ir.VectorType(context.get_value_type(array_type.dtype), count)
        return builder.bitcast(address, wide.as_pointer()), count * array_type.dtype.bitwidth // 8

    @intrinsic
    def load(typing_context, registers, start, array, index):
        def generate(context, builder, signature, arguments):
            address, alignment = vector(context, builder, array, arguments[2], arguments[3])
            value = builder.load(address, align=alignment)
            for e in range(count):
                register = element(context, builder, registers, arguments[0], arguments[1], e)
                builder.store(builder.extract_element(value, I32(e)), register)
            return context.get_dummy_value()

        return types.void(registers, start, array, index), generate

    @intrinsic
    def store(typing_context, array, index, registers, start):
        def generate(context, builder, signature, arguments):
            address, alignment = vector(context, builder, array, arguments[0], arguments[1])
            value = ir.Constant(address.type.pointee, ir.Undefined)
            for e in range(count):
                register = element(context, builder, registers, arguments[2], arguments[3], e)
                value = builder.insert_element(value, builder.load(register), I32(e))
            builder.store(value, address, align=alignment)
            return context.get_dummy_value()

        return types.void(array, index, registers, start), generate

    return load, store


# ------------------------------------------------------------------------------------- tensor cores
MMA = {
    "tf32": ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8),
    "bf16": ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16),
}


@cache
def matrix_multiply_add(precision):
    """(function, terms): a warp's ``C += A B`` for A (16, terms) and B (terms, 8) of float32 numbers rounded before.

    ``function(acc, at, below, a, a_at, b, b_at)``, on local arrays, called by all threads of a warp. With
    ``g, t = lane // 4, lane % 4`` a thread has C's (g, 2t) and (g, 2t + 1) from ``acc[at]`` on, those of row g + 8
    from ``acc[below]`` on; A's terms t, t + 4, ... of row g, then of row g + 8; and B's of column g. (A sum's terms
    may be taken in any order: for bf16, t and t + 4 stand where the instruction has 2t and 2t + 1.)
    """
    instruction, terms = MMA[precision]
    return (_plain_mma if simulated else _mma)(precision, instruction, terms // 4), terms


def _plain_mma(precision, instruction, each):
    # The layout of the instruction's registers, as the PTX manual has it; threads meet at two barriers of the block.
    packed = each // 2  # numbers in a register
    registers = {}

    def function(acc, at, below, a, a_at, b, b_at):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        a_registers = [
            [a[a_at + row * each + half * packed + e] for e in range(packed)] for half in range(2) for row in range(2)
        ]
        b_registers = [[b[b_at + half * packed + e] for e in range(packed)] for half in range(2)]
        registers[warp, lane] = a_registers, b_registers
        cuda.syncthreads()
        for register, index in enumerate((at, at + 1, below, below + 1)):
            row, column = lane // 4 + register // 2 * 8, lane % 4 * 2 + register % 2
            for term in range(4 * each):
                half, thread, e = term // (4 * packed), term % (4 * packed) // packed, term % packed
                x = registers[warp, row % 8 * 4 + thread][0][row // 8 + 2 * half][e]
                acc[index] += x * registers[warp, column * 4 + thread][1][half][e]
        cuda.syncthreads()

    return function


def _mma(precision, instruction, each):
    @intrinsic
    def function(typing_context, acc, at, below, a, a_at, b, b_at):
        def generate(context, builder, signature, arguments):
            def address(array_type, array, index, offset):
                data = context.make_array(array_type)(context, builder, value=array).data
                return builder.gep(data, [builder.add(index, index.type(offset))], inbounds=True)

            def bits(array_type, array, index, offset):
                return builder.bitcast(builder.load(address(array_type, array, index, offset)), I32)

            def operand(array_type, array, index, offset):
                """One register: a number, or the upper halves of two that follow each other."""
                first = bits(array_type, array, index, offset)
                if precision == "tf32":
                    return first
                second = bits(array_type, array, index, offset + 1)
                return builder.or_(builder.lshr(first, I32(16)), builder.and_(second, I32(0xFFFF0000)))

            step = each // 2
            a_operands = [
                operand(a, arguments[3], arguments[4], row * each + half * step)
                for half in range(2)
                for row in range(2)
            ]
            b_operands = [operand(b, arguments[5], arguments[6], half * step) for half in range(2)]
            places = [address(acc, arguments[0], arguments[1 + row], e) for row in range(2) for e in range(2)]
            f32 = ir.FloatType()
            result = ir.LiteralStructType([f32] * 4)
            inputs = [*a_operands, *b_operands, *map(builder.load, places)]
            text = "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
            call = ir.InlineAsm(
                ir.FunctionType(result, [I32] * 6 + [f32] * 4),
                f"{instruction} {text}", "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=True,
            )  # fmt: skip
            sums = builder.call(call, inputs, attrs=("convergent",))
            for e, place in enumerate(places):
                builder.store(builder.extract_value(sums, e), place)
            return context.get_dummy_value()

        return types.void(acc, at, below, a, a_at, b, b_at), generate

    return function
