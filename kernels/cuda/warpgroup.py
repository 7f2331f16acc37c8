"""What only compute capability 9.0 has (sm_90a): products by 4 warps together, copies of whole panels, barriers that
count bytes, registers that go from one group of warps to another.

Device functions, as those of ptx.py, without twins: nothing here runs in the simulator. ``shared`` is the block's
dynamic shared memory as int32, and places in it are numbers of its elements.
"""

from functools import cache

from .blocking import UNITS
from .driver import simulated, types

WARPGROUP = 128  # threads that make a product together
ROWS = 64  # of A, of a warpgroup's product
CORE_ROWS = 8  # of a core matrix, of `UNIT_BYTES` each
STEP = 2  # core matrices along k that an instruction multiplies
TERMS = {"tf32": 4 * STEP, "bf16": 8 * STEP}  # that these have, by the kind of numbers
WORD_BYTES = 4  # of an element of `shared`
BARRIER = 2  # elements of `shared` that a barrier takes

if not simulated:
    from .later import i32, i64, intrinsic, ir


def _element(context, builder, array_type, array, index):
    """The address of an element of a flat array."""
    return builder.gep(array, [index], inbounds=True)


def _in_space(builder, pointer, space, integer):
    """An address as the instructions of a memory take it: 3 is shared memory, 1 global."""
    return builder.ptrtoint(builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(space)), integer)


def _emit(builder, text, values, result=None):
    """A line of PTX on integers, before and after which memory is as it was; its warp stays together."""
    letters = ["r" if value.type == i32() else "l" for value in values]
    outputs = [] if result is None else ["=r"]
    function = ir.FunctionType(ir.VoidType() if result is None else result, [value.type for value in values])
    asm = ir.InlineAsm(function, text, ",".join([*outputs, *letters, "~{memory}"]), side_effect=True)
    return builder.call(asm, values, attrs=("convergent",))


def _of_barrier(text, number=False, answers=False):
    """A device function ``(shared, barrier[, number])`` that is one line of PTX on a barrier in shared memory."""

    def make(context, builder, signature, arguments):
        barrier = _element(context, builder, signature.args[0], arguments[0], arguments[1])
        values = [_in_space(builder, barrier, 3, i32()), *arguments[2:]]
        found = _emit(builder, text, values, i32() if answers else None)
        return found if answers else context.get_dummy_value()

    returned = types.int32 if answers else types.void

    @intrinsic
    def on_barrier(typing_context, shared, barrier):
        return returned(shared, barrier), make

    @intrinsic
    def on_barrier_with_number(typing_context, shared, barrier, number):
        return returned(shared, barrier, types.int32), make

    return on_barrier_with_number if number else on_barrier


def _of_warp(text):
    """A device function without arguments that is one line of PTX."""

    @intrinsic
    def function(typing_context):
        def make(context, builder, signature, arguments):
            _emit(builder, text, [])
            return context.get_dummy_value()

        return types.void(), make

    return function


# -------------------------------------------------------------------------------- barriers and copies
# A barrier (`mbarrier`) is in a phase until as many threads have arrived as it was made for, and as many bytes have
# come as they announced; then the next phase begins. Who waits names the parity of the phase that is to be over, 0 for
# the first: of a new barrier, the phase of parity 1 counts as over.
if not simulated:
    # (shared, barrier, arrivals): a barrier in its first phase, by one thread.
    make_barrier = _of_barrier("mbarrier.init.shared::cta.b64 [$0], $1;", number=True)
    # (): copies see new barriers, those of another block of the cluster too; other threads do after the next barrier of
    # the block or cluster.
    show_barriers = _of_warp("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;")
    # (shared, barrier): a thread arrives.
    arrive = _of_barrier("mbarrier.arrive.shared::cta.b64 _, [$0];")
    # (shared, barrier, block): a thread arrives at that barrier of a block of its cluster; what it has written is not
    # handed on, for which every arrival would wait for all of its writes.
    arrive_at_block = _of_barrier(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, $0, $1; mbarrier.arrive.shared::cluster.b64 _, [there]; }",
        number=True,
    )
    # (shared, barrier, bytes): a thread arrives, and the phase lasts until so many bytes have come.
    announce = _of_barrier("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", number=True)
    # (shared, barrier, parity): 1 if the phase is over, and what came in it is seen; 0 otherwise, after some time.
    is_over = _of_barrier(
        "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [$1], $2; selp.u32 $0, 1, 0, over; }",
        number=True, answers=True,
    )  # fmt: skip


@cache
def copy_panel(blocks):
    """A device function ``(shared, to, array, index, size, barrier)``: begin to copy a panel, by one thread.

    ``size`` bytes, from element ``index`` of a global array to ``shared``; of a cluster of some ``blocks`` to all of
    them, to the same place. Addresses and size are multiples of 16 bytes. The bytes count for the phase that
    ``barrier`` is in, of each block its own.
    """
    to_all, mask = (".multicast::cluster", f", {(1 << blocks) - 1}") if blocks > 1 else ("", "")
    text = f"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{to_all} [$0], [$1], $2, [$3]{mask};"

    @intrinsic
    def copy(typing_context, shared, to, array, index, size, barrier):
        def make(context, builder, signature, arguments):
            places = [_element(context, builder, shared, arguments[0], arguments[at]) for at in (1, 5)]
            target, counter = (_in_space(builder, place, 3, i32()) for place in places)
            source = _in_space(builder, _element(context, builder, array, arguments[2], arguments[3]), 1, i64())
            _emit(builder, text, [target, source, arguments[4], counter])
            return context.get_dummy_value()

        return types.void(shared, to, array, index, types.int32, barrier), make

    return copy


# ------------------------------------------------------------------------------------------- registers
@cache
def limit_registers(how, count):
    """A device function: all warps of a warpgroup give registers back (``"dec"``) or wait for more (``"inc"``)."""
    return _of_warp(f"setmaxnreg.{how}.sync.aligned.u32 {count};")


# ------------------------------------------------------------------------------------------- products
# What a descriptor says of a panel besides its address: no swizzle, both operands along k. In units of 16 bytes it is
# CORE_ROWS to the next terms ("leading"), and all units of as many rows to the next 8 rows ("stride").
DESCRIPTOR = CORE_ROWS << 16 | UNITS * CORE_ROWS << 32
ADDRESS = (1 << 18) - 1  # bits of an address that it has room for; above them is which block of a cluster it is in


@cache
def multiply_panel(columns, kind, products):
    """A device function: a warpgroup's ``acc += A B`` for a panel of numbers of a ``kind`` of `TERMS`, and wait for it.

    A row of a panel is made of steps of `STEP` units; ``products`` says which step of A and which of B an instruction
    multiplies, one after another. ``multiply(acc, shared, a, b)``: A's `ROWS` rows begin at ``a``, the ``columns`` of B
    at ``b``; panels.py says how they lie. With ``lane, warp`` of a thread in its warpgroup,
    ``acc[4 j + 2 h + e]`` is the sum of row ``16 warp + lane // 4 + 8 h`` and column ``8 j + 2 (lane % 4) + e``.

    One piece of PTX: until the sums are waited for, nothing may touch their registers, not even a move.
    """
    sums, steps = columns // 2, 1 + max(max(pair) for pair in products)
    registers = ", ".join(f"${e}" for e in range(sums))
    shape = f"wgmma.mma_async.sync.aligned.m{ROWS}n{columns}k{TERMS[kind]}.f32.{kind}.{kind}"
    # That sums are added to, signs, and that terms of both operands touch, as those of TF32 always do.
    ways = "1, 1, 1, 0, 0" if kind == "bf16" else "1, 1, 1"
    lines = [f"{shape} {{{registers}}}, ${sums + a}, ${sums + steps + b}, {ways};" for a, b in products]
    text = "\n".join(
        ["wgmma.fence.sync.aligned;", *lines, "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    )
    constraints = ",".join(["=f"] * sums + ["l"] * (2 * steps) + [str(e) for e in range(sums)] + ["~{memory}"])

    @intrinsic
    def multiply(typing_context, acc, shared, a, b):
        def make(context, builder, signature, arguments):
            def descriptors(at):
                address = _in_space(builder, _element(context, builder, shared, arguments[1], at), 3, i32())
                address = builder.and_(address, i32()(ADDRESS))
                first = builder.zext(builder.lshr(address, i32()(4)), i64())
                first = builder.or_(first, i64()(DESCRIPTOR))
                return [builder.add(first, i64()(step * STEP * CORE_ROWS)) for step in range(steps)]

            places = [builder.gep(arguments[0], [i64()(e)], inbounds=True) for e in range(sums)]
            operands = [*descriptors(arguments[2]), *descriptors(arguments[3])]
            f32 = ir.FloatType()
            function = ir.FunctionType(ir.LiteralStructType([f32] * sums), [i64()] * (2 * steps) + [f32] * sums)
            asm = ir.InlineAsm(function, text, constraints, side_effect=True)
            made = builder.call(asm, [*operands, *map(builder.load, places)], attrs=("convergent",))
            for e, place in enumerate(places):
                builder.store(builder.extract_value(made, e), place)
            return context.get_dummy_value()

        return types.void(acc, shared, a, b), make

    return multiply
