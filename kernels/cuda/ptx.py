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
