"""Every kernel: what `warmup` compiles ahead, and what the tests compile and assemble without a GPU."""

from typing import NamedTuple

import numpy as np

from .. import layout
from . import buffers, compiling, elementwise, gemm, losses, norms, optimizers, probabilities, steps

PARTS = {*layout.ACTIVATIONS, *layout.LOSSES, *layout.OPTIMIZERS}


class Kernel(NamedTuple):
    """A kernel for one dtype."""

    name: str  # unique for a dtype: "loss huber", "gather float64 labelled"
    dtype: np.dtype
    function: compiling.Kernel

    @property
    def part(self) -> str | None:
        """The activation, loss or optimizer whose kernel it is."""
        return next((word for word in self.name.replace(":", " ").split() if word in PARTS), None)

    @property
    def precision(self) -> str:
        """Of the factors of a product; everything else is "ieee"."""
        return next((word for word in self.name.split() if word in layout.PRECISIONS), "ieee")


def kernels(dtypes=(np.float32, np.float64)):
    """All kernels for these dtypes."""
    for dtype in map(np.dtype, dtypes):
        for module in (buffers, elementwise, gemm, norms, probabilities, losses, optimizers, steps):
            for name, function in module.kernels(dtype):
                yield Kernel(name, dtype, function)
