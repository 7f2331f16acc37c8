"""The type of flat arrays that reach a compiled function as their address alone, one word.

Numba passes an array as seven words: beside the address its length and others that kernels here never read, as they
check no bounds and count nothing from the end. Within a function a `Vector` is an array like any other, of length 0.
"""

from llvmlite import ir
from numba import types
from numba.cuda.datamodel.models import ArrayModel
from numba.cuda.models import register_model


class Vector(types.Array):
    """A flat device array, in the signature of a kernel."""


@register_model(Vector)
class VectorModel(ArrayModel):
    """Numba's model of an array, but for how a function takes one."""

    @property
    def _pointer(self):
        return self._models[self.get_field_position("data")]

    def get_argument_type(self):
        """A pointer."""
        return self._pointer.get_argument_type()

    def as_argument(self, builder, value):
        """The pointer of an array."""
        return self._pointer.as_argument(builder, self.get(builder, value, "data"))

    def from_argument(self, builder, value):
        """The array at a pointer; what else Numba knows of an array is 0."""
        nothing = ir.Constant(self.get_value_type(), None)
        return self.set(builder, nothing, self._pointer.from_argument(builder, value), "data")
