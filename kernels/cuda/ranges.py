"""The type of ranges whose step a kernel is given: they count up while less than their end.

As Numba does not know the sign of such a step, it counts the turns before the loop, by a division of 64 bits, which
takes longer than most loops here, in the compiler too; and it has an error for a step of 0. No step here is negative.
"""

from numba import types
from numba.cuda import cgutils
from numba.cuda.core.imputils import RefType, iternext_impl
from numba.cuda.cudaimpl import lower
from numba.cuda.datamodel.models import StructModel
from numba.cuda.models import register_model


class Upward(types.RangeType):
    """A range of integers of a type."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.name = f"upward_{dtype}"
        self._iterator_type = Upwards(dtype)


class Upwards(types.RangeIteratorType):
    """What goes through an `Upward`."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.name = f"upwards_{dtype}"


@register_model(Upward)
class UpwardModel(StructModel):
    """As Numba makes ranges."""

    def __init__(self, models, kind):
        super().__init__(models, kind, [(name, kind.dtype) for name in ("start", "stop", "step")])


@register_model(Upwards)
class UpwardsModel(StructModel):
    """Where the next number is kept, the end and the step."""

    def __init__(self, models, kind):
        dtype = kind.yield_type
        super().__init__(models, kind, [("next", types.CPointer(dtype)), ("stop", dtype), ("step", dtype)])


@lower("getiter", Upward)
def begin(context, builder, signature, arguments):
    """The iterator of a range."""
    bounds = context.make_helper(builder, signature.args[0], arguments[0])
    made = context.make_helper(builder, signature.return_type)
    made.next, made.stop, made.step = cgutils.alloca_once(builder, bounds.start.type), bounds.stop, bounds.step
    builder.store(bounds.start, made.next)
    return made._getvalue()


@lower("iternext", Upwards)
@iternext_impl(RefType.UNTRACKED)
def go_on(context, builder, signature, arguments, result):
    """The next number, where there is one."""
    kind = signature.args[0]
    iterator = context.make_helper(builder, kind, arguments[0])
    number = builder.load(iterator.next)
    compare = builder.icmp_signed if kind.yield_type.signed else builder.icmp_unsigned
    inside = compare("<", number, iterator.stop)
    result.set_valid(inside)
    with builder.if_then(inside):
        result.yield_(number)
        builder.store(builder.add(number, iterator.step, flags=["nsw"]), iterator.next)
