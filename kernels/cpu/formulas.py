"""The formulas on register tiles."""

from ..formulas import bind
from ..jit import inline
from ..primitives import PRIMITIVES
from . import simd

FORMULAS = bind({primitive.__name__: getattr(simd, primitive.__name__) for primitive in PRIMITIVES}, inline)
