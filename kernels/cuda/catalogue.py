"""Every kernel that runs on all GPUs, for `warmup`, which compiles ahead, and tests, which read machine code."""

from typing import NamedTuple

import numpy as np

from .. import layout
from . import buffers, compiling, elementwise, gemm, last_layer, losses, norms, optimizers, probabilities, steps

PARTS = {*layout.ACTIVATIONS, *layout.LOSSES, *layout.OPTIMIZERS}


class Kernel(NamedTuple):
    """A kernel for one dtype, and its name."""

    name: str  # unique among those of a dtype, as "loss huber" or "gather float64 labelled"
    dtype: np.dtype
    function: compiling.Kernel

    @property
    def part(self) -> str | None:
        """The activation, loss or optimizer that the kernel computes; None for a kernel of any network."""
        return next((word for word in self.name.replace(":", " ").split() if word in PARTS), None)

    @property
    def precision(self) -> str:
        """The precision of the factors of a product; "ieee" for every other kernel."""
        return next((word for word in self.name.split() if word in layout.PRECISIONS), "ieee")


def kernels(dtypes=(np.float32, np.float64)):
    """Every kernel for these dtypes, as a `Kernel`."""
    for dtype in map(np.dtype, dtypes):
        for module in (buffers, elementwise, gemm, norms, probabilities, losses, last_layer, optimizers, steps):
            for name, function in module.kernels(dtype):
                yield Kernel(name, dtype, function)
