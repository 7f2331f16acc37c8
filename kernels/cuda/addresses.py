"""The type of flat arrays in compiled code: an address, and nothing else.

An array is seven words in Numba, which it takes apart and puts together in every function and at every access: its
length and others that kernels here never read, as they check no bounds and count nothing from the end.
"""

import operator

from llvmlite import ir
from numba import types
from numba.cuda import cgutils
from numba.cuda.cudadrv import nvvm
from numba.cuda.cudaimpl import lower
from numba.cuda.datamodel.models import PrimitiveModel
from numba.cuda.models import register_model


class Vector(types.Array):
    """A flat array of the GPU: in global memory, of a block, or of a thread."""

    def __init__(self, dtype):
        super().__init__(dtype, 1, "C")


@register_model(Vector)
class VectorModel(PrimitiveModel):
    """A pointer to numbers of the dtype."""

    def __init__(self, models, kind):
        super().__init__(models, kind, models.lookup(kind.dtype).get_data_type().as_pointer())


@lower(operator.getitem, Vector, types.Integer)
def get(context, builder, signature, arguments):
    """An element."""
    return context.unpack_value(builder, signature.return_type, _address(context, builder, signature, arguments))


@lower(operator.setitem, Vector, types.Integer, types.Any)
def put(context, builder, signature, arguments):
    """Change an element, to a number of any type."""
    dtype = signature.args[0].dtype
    value = context.cast(builder, arguments[2], signature.args[2], dtype)
    context.pack_value(builder, dtype, value, _address(context, builder, signature, arguments))


def _address(context, builder, signature, arguments):
    """Of an element; a negative index does not count from the end."""
    index = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.gep(arguments[0], [index], inbounds=True)


def new_arrays(make):
    """``make``, Numba's way to a new array of a thread or its block, but of a flat one gives the address."""

    def new_array(context, builder, shape, dtype, symbol_name, addrspace, can_dynsized=False, alignment=None):
        if len(shape) > 1:
            return make(context, builder, shape, dtype, symbol_name, addrspace, can_dynsized, alignment)
        element = context.get_data_type(dtype)
        kind = ir.ArrayType(element, *shape)
        if addrspace == nvvm.ADDRSPACE_LOCAL:
            place = cgutils.alloca_once(builder, kind, name=symbol_name)
            return builder.bitcast(place, element.as_pointer())
        place = cgutils.add_global_variable(builder.module, kind, symbol_name, addrspace)
        place.align = alignment or dtype.bitwidth // 8
        if shape == (0,):  # as large as a launch says
            place.linkage = "external"
        else:
            place.initializer = ir.Constant(kind, ir.Undefined)
        return builder.addrspacecast(place, element.as_pointer())

    return new_array
