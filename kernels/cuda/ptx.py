"""Instructions that plain CUDA Python lacks: 16-byte accesses, asynchronous copies, and those of the tensor cores.

This file and warpgroup.py, for what only compute capability 9.0 has, have all that emits LLVM IR for a GPU, but for
arrays (addresses.py) and ranges (ranges.py). Here each has a counterpart in Python that does the same, for the
simulator; what is for clusters has none.
"""

from collections import defaultdict
from functools import cache

import numpy as np

from .driver import cuda, simulated, types

if not simulated:
    from .later import i32, i64, intrinsic, ir


# ------------------------------------------------------------------------------------- the thread
if simulated:

    def thread_again():
        """``cuda.threadIdx.x``, read again: what is computed from it need not be kept in registers until here."""
        return cuda.threadIdx.x

else:

    @intrinsic
    def thread_again(typing_context):
        def generate(context, builder, signature, arguments):
            read = ir.InlineAsm(ir.FunctionType(i32(), []), "mov.u32 $0, %tid.x;", "=r", side_effect=True)
            return builder.call(read, [])

        return types.int32(), generate


# ------------------------------------------------------------------------------------- numbers
if simulated:

    def fma(x, y, z):
        """``x y + z``, rounded once."""
        return cuda.fma(x, y, z)

    def select(condition, x, y):
        """``x`` where the condition holds, else ``y``; both are computed."""
        return x if condition else y

else:

    @intrinsic
    def fma(typing_context, x, y, z):
        return x(x, y, z), lambda context, builder, signature, arguments: builder.fma(*arguments)

    @intrinsic
    def select(typing_context, condition, x, y):
        kind = typing_context.unify_types(x, y)

        def generate(context, builder, signature, arguments):
            return builder.select(*arguments)

        return kind(types.boolean.found, kind, kind), generate


# ------------------------------------------------------------------------------------- wide accesses
@cache
def vector_access(count):
    """Two device functions that copy ``count`` elements in one access of memory.

    ``load(registers, start, array, index)`` is ``registers[start : start + count] = array[index : index + count]``;
    ``store(array, index, registers, start)`` is the reverse. ``registers`` is a local array. ``index`` and the first
    element of the array lie on multiples of ``count`` elements. A load may reach beyond the end of the array, but not
    begin there.
    """
    return _plain_access(count) if simulated else _wide_access(count)


def _plain_access(count):
    def load(registers, start, array, index):
        assert index % count == 0
        for e in range(count):  # on a GPU anything may be behind the end; here it is NaN
            registers[start + e] = array[index + e] if e == 0 or index + e < len(array) else np.nan

    def store(array, index, registers, start):
        assert index % count == 0
        for e in range(count):
            array[index + e] = registers[start + e]

    return load, store


def _element(context, builder, array_type, array, index, offset=0):
    """The address of an element, without a check; a negative index does not count from the end."""
    return builder.gep(array, [builder.add(index, index.type(offset)) if offset else index], inbounds=True)


def _wide_access(count):
    def vector(context, builder, array_type, array, index):
        address = _element(context, builder, array_type, array, index)
        wide = ir.VectorType(context.get_value_type(array_type.dtype), count)
        return builder.bitcast(address, wide.as_pointer()), count * array_type.dtype.bitwidth // 8

    @intrinsic
    def load(typing_context, registers, start, array, index):
        def generate(context, builder, signature, arguments):
            address, alignment = vector(context, builder, array, arguments[2], arguments[3])
            value = builder.load(address, align=alignment)
            for e in range(count):
                register = _element(context, builder, registers, arguments[0], arguments[1], e)
                builder.store(builder.extract_element(value, i32()(e)), register)
            return context.get_dummy_value()

        return types.void(registers, start, array, index), generate

    @intrinsic
    def store(typing_context, array, index, registers, start):
        def generate(context, builder, signature, arguments):
            address, alignment = vector(context, builder, array, arguments[0], arguments[1])
            value = ir.Constant(address.type.pointee, ir.Undefined)
            for e in range(count):
                register = _element(context, builder, registers, arguments[2], arguments[3], e)
                value = builder.insert_element(value, builder.load(register), i32()(e))
            builder.store(value, address, align=alignment)
            return context.get_dummy_value()

        return types.void(array, index, registers, start), generate

    return load, store


# ------------------------------------------------------------------------------------- copies
if simulated:
    # The copies of a thread since it last waited, in groups, the oldest first. Each is made when it is waited for, and
    # until then there is NaN in its place.
    _groups = defaultdict(lambda: [[]])

    def _own_groups():
        return _groups[cuda.threadIdx.x]

    def commit_copies():
        _own_groups().append([])


else:

    def _statement(text, attributes=()):
        """A device function that is one line of PTX without operands; no access to memory is moved across it."""

        @intrinsic
        def function(typing_context):
            def generate(context, builder, signature, arguments):
                asm = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), text, "~{memory}", side_effect=True)
                builder.call(asm, [], attrs=attributes)
                return context.get_dummy_value()

            return types.void(), generate

        return function

    commit_copies = _statement("cp.async.commit_group;")


@cache
def wait_for_copies(groups):
    """A device function by which a thread waits until all its groups of copies but the newest ``groups`` have ended.

    A group is what a thread copied between two calls of ``commit_copies()``. Other threads see the copies after the
    next barrier.
    """

    def wait():
        own = _own_groups()
        while len(own) - 1 > groups:
            for copy in own.pop(0):
                copy()

    return wait if simulated else _statement(f"cp.async.wait_group {groups};")


@cache
def asynchronous_copy(width):
    """A device function that copies numbers of 4 bytes from global to shared memory while the thread goes on.

    ``copy(shared, to, array, index, count)`` is ``shared[to : to + count] = array[index : index + count]`` and zeros up
    to ``to + width``, for 0 <= count <= width. ``width`` is 1 or 4; the indices and first elements of the arrays lie
    on multiples of it. If ``count`` is 0, ``index`` may be anywhere. A copy may reach beyond the end of the array.
    Numbers of 8 bytes are copied one at a time.
    """

    def plain(shared, to, array, index, count):
        assert to % width == 0
        assert 0 <= count <= width
        assert index % width == 0 or count == 0

        def copy():
            for e in range(width):
                inside = e == 0 or index + e < len(array)
                shared[to + e] = (array[index + e] if inside else np.nan) if e < count else 0

        shared[to : to + width] = np.nan
        _own_groups()[-1].append(copy)

    if simulated:
        return plain

    @intrinsic
    def copy(typing_context, shared, to, array, index, count):
        itemsize = array.dtype.bitwidth // 8
        size = itemsize * width
        where = "cg" if size == 16 else "ca"  # 16 bytes may pass by L1

        def generate(context, builder, signature, arguments):
            def address(array, value, index, space, integer):
                pointer = _element(context, builder, array, value, index)
                pointer = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(space))
                return builder.ptrtoint(pointer, integer)

            target = address(shared, arguments[0], arguments[1], 3, i32())
            source = address(array, arguments[2], arguments[3], 1, i64())
            bytes_ = builder.mul(arguments[4], i32()(itemsize))
            asm = ir.InlineAsm(
                ir.FunctionType(ir.VoidType(), [i32(), i64(), i32()]),
                f"cp.async.{where}.shared.global [$0], [$1], {size}, $2;", "r,l,r,~{memory}", side_effect=True,
            )  # fmt: skip
            builder.call(asm, [target, source, bytes_])
            return context.get_dummy_value()

        return types.void(shared, to, array, index, types.int32), generate

    return copy


# ------------------------------------------------------------------------------------- clusters
if not simulated:
    # All threads of all blocks of a cluster wait for one another: what each did before it arrived, in its own shared
    # memory and in that of others, each knows when it has waited. The threads of a warp come together.
    cluster_arrive = _statement("barrier.cluster.arrive.release.aligned;", ("convergent",))
    cluster_wait = _statement("barrier.cluster.wait.acquire.aligned;", ("convergent",))

    @intrinsic
    def block_in_cluster(typing_context):
        """Which block of its cluster a thread is in."""

        def generate(context, builder, signature, arguments):
            read = ir.InlineAsm(ir.FunctionType(i32(), []), "mov.u32 $0, %cluster_ctarank;", "=r")
            return builder.call(read, [])

        return types.int32(), generate

    def _there(context, builder, array_type, array, index, block):
        """The address, in the cluster, of an element of an array in the shared memory of another block."""
        pointer = _element(context, builder, array_type, array, index)
        here = builder.ptrtoint(builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(3)), i32())
        translate = ir.InlineAsm(
            ir.FunctionType(i32(), [i32(), i32()]), "mapa.shared::cluster.u32 $0, $1, $2;", "=r,r,r"
        )
        return builder.call(translate, [here, block])

    _KINDS = {"float32": ("f32", "f"), "float64": ("f64", "d"), "int64": ("u64", "l")}  # of PTX, and a register's

    @intrinsic
    def from_block(typing_context, array, index, block):
        """``array[index]`` of the shared memory of a block of the cluster."""
        kind, register = _KINDS[str(array.dtype)]

        def generate(context, builder, signature, arguments):
            there = _there(context, builder, array, *arguments)
            load = ir.InlineAsm(
                ir.FunctionType(context.get_value_type(array.dtype), [i32()]), f"ld.shared::cluster.{kind} $0, [$1];",
                f"={register},r,~{{memory}}", side_effect=True,
            )  # fmt: skip
            return builder.call(load, [there])

        return array.dtype(array, index, types.int32.found), generate

    @intrinsic
    def to_block(typing_context, array, index, block, value):
        """``array[index] = value`` in the shared memory of a block of the cluster."""
        kind, register = _KINDS[str(array.dtype)]

        def generate(context, builder, signature, arguments):
            there = _there(context, builder, array, *arguments[:3])
            store = ir.InlineAsm(
                ir.FunctionType(ir.VoidType(), [i32(), context.get_value_type(array.dtype)]),
                f"st.shared::cluster.{kind} [$0], $1;", f"r,{register},~{{memory}}", side_effect=True,
            )  # fmt: skip
            builder.call(store, [there, arguments[3]])
            return context.get_dummy_value()

        return types.void(array, index, types.int32, array.dtype), generate


# ------------------------------------------------------------------------------------- tensor cores
if simulated:

    def _bf16(x):
        bits = int(np.float32(x).view(np.uint32))
        return 0x7FFF if x != x else bits + 0x7FFF + (bits >> 16 & 1) >> 16

    def bf16_pair(x, y):
        """Two float32, rounded to bfloat16 with ties to even, as one int32 with x in its lower half."""
        return np.uint32(_bf16(y) << 16 | _bf16(x)).view(np.int32)

else:

    @intrinsic
    def bf16_pair(typing_context, x, y):
        def generate(context, builder, signature, arguments):
            f32 = ir.FloatType()
            convert = ir.InlineAsm(ir.FunctionType(i32(), [f32, f32]), "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")
            return builder.call(convert, arguments)

        return types.int32(types.float32, types.float32), generate


MMA = {
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
}


@cache
def load_matrices(order):
    """Four matrices of 8 rows of 16 bytes from shared memory, as operands of products, by a warp; not in the simulator.

    In ``function(registers, start, shared, index)`` lane ``8 j + r`` names by ``index`` the first of the elements, all
    of 4 bytes, of row r of matrix j. A lane gets element ``lane % 4`` of row ``lane // 4`` of each, that of matrix j in
    ``registers[start + order[j]]``. The four are neighbours where an instruction takes them in that order.
    """

    @intrinsic
    def function(typing_context, registers, start, shared, index):
        def generate(context, builder, signature, arguments):
            source = _element(context, builder, shared, arguments[2], arguments[3])
            source = builder.ptrtoint(builder.addrspacecast(source, source.type.pointee.as_pointer(3)), i32())
            text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
            kind = ir.FunctionType(ir.LiteralStructType([i32()] * 4), [i32()])
            asm = ir.InlineAsm(kind, text, "=r,=r,=r,=r,r,~{memory}", side_effect=True)
            made = builder.call(asm, [source], attrs=("convergent",))
            for matrix, place in enumerate(order):
                register = _element(context, builder, registers, arguments[0], arguments[1], place)
                builder.store(builder.extract_value(made, matrix), register)
            return context.get_dummy_value()

        return types.void(registers, start, shared, index), generate

    return function


@cache
def matrix_multiply_add(precision, apart):
    """``C += A B`` by a warp, for 16 rows of A, 8 columns of B, and as many terms as two operands of a thread hold.

    ``function(acc, upper, lower, a, a_upper, a_lower, b, b_at)``, on local arrays, called by all threads of a warp.
    With ``g, t = lane // 4, lane % 4``: ``acc[upper]`` and ``acc[upper + apart]`` are columns 2t and 2t + 1 of C's row
    g, those at ``lower`` of row g + 8; from ``a_upper`` on are two operands of A's row g, from ``a_lower`` on of row
    g + 8, from ``b_at`` on of B's column g. An operand is the 32 bits of a number, or of a pair of them. The terms of a
    sum may be in any order, as long as threads with the same t have operands of the same terms.
    """
    return (_plain_mma if simulated else _mma)(precision, apart)


def _plain_mma(precision, apart):
    # The registers of the instruction are laid out as the PTX manual says. All threads of the block wait for each other
    # in every call, so none can still read what the call before the last one left: two places are enough.
    registers, calls = {}, defaultdict(int)

    def numbers(operand):
        bits = int(operand) & 0xFFFFFFFF
        parts = [bits] if precision == "tf32" else [bits << 16 & 0xFFFFFFFF, bits & 0xFFFF0000]
        return [np.uint32(part).view(np.float32) for part in parts]

    def function(acc, upper, lower, a, a_upper, a_lower, b, b_at):
        me = cuda.threadIdx.x
        calls[me] += 1
        place, lane, warp = calls[me] % 2, me % 32, me // 32
        rows = [[x for half in range(2) for x in numbers(a[at + half])] for at in (a_upper, a_lower)]
        registers[place, warp, lane] = rows, [x for half in range(2) for x in numbers(b[b_at + half])]
        cuda.syncthreads()
        for register, index in enumerate((upper, upper + apart, lower, lower + apart)):
            row, column = lane // 4, lane % 4 * 2 + register % 2
            for thread in range(4):
                x = registers[place, warp, row * 4 + thread][0][register // 2]
                y = registers[place, warp, column * 4 + thread][1]
                with np.errstate(invalid="ignore"):  # inf * 0 where a factor lies outside of its matrix
                    for e in range(len(y)):
                        acc[index] += x[e] * y[e]

    return function


def _mma(precision, apart):
    @intrinsic
    def function(typing_context, acc, upper, lower, a, a_upper, a_lower, b, b_at):
        def generate(context, builder, signature, arguments):
            def operand(array_type, array, index, half):
                return builder.load(_element(context, builder, array_type, array, index, half))

            a_operands = [operand(a, arguments[3], arguments[4 + row], half) for half in range(2) for row in range(2)]
            b_operands = [operand(b, arguments[6], arguments[7], half) for half in range(2)]
            places = [_element(context, builder, acc, arguments[0], at, e) for at in arguments[1:3] for e in (0, apart)]
            f32 = ir.FloatType()
            text = "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
            call = ir.InlineAsm(
                ir.FunctionType(ir.LiteralStructType([f32] * 4), [i32()] * 6 + [f32] * 4),
                f"{MMA[precision]} {text}", "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=True,
            )  # fmt: skip
            sums = builder.call(call, [*a_operands, *b_operands, *map(builder.load, places)], attrs=("convergent",))
            for e, place in enumerate(places):
                builder.store(builder.extract_value(sums, e), place)
            return context.get_dummy_value()

        return types.void(acc, upper, lower, a, a_upper, a_lower, b, b_at), generate

    return function
