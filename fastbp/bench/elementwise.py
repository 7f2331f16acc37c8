"""Activations and the softmax of ours beside those of a peer."""

import functools

import numpy as np

from .. import backend
from ..kernels import layout
from . import peers
from .agreement import checked_rival
from .clocks import Clock
from .measure import Case
from .products import laid_out

ELEMENTWISE_SHAPE = 64, 64


def elementwise_case(name, names, protocol, shape=ELEMENTWISE_SHAPE) -> Case:
    """An activation or the softmax: the compiled kernel, called from Python with its arguments bound.

    A layer calls an activation like that from compiled code; the addresses that the contract's function makes are
    told beside. Arguments are numbers of C already, as those of a peer are tensors.
    """
    kernels = backend.load(protocol.device)
    x = laid_out(np.random.default_rng(0).standard_normal(shape, dtype=protocol.dtype))
    out, also = laid_out(x), {}
    if name == "softmax":
        contract = lambda: kernels.softmax(x, out)  # noqa: E731
    else:
        code = layout.ACTIVATIONS.index(name)
        contract = lambda: kernels.activation_forward(x, code, 0.0, out)  # noqa: E731
    contract()
    call, expected = contract, np.array(out)
    if kernels.name == "cpu":
        context, row = kernels.context, x.strides[0] // x.itemsize
        scratch = np.empty(kernels.blocking.SQUARE, x.dtype)
        if name == "softmax":
            function, last = context.c_function(context.softmax(x.dtype), *context.SOFTMAX), scratch.ctypes.data
        else:
            kernel = context.activation_forward(x.dtype, name)
            function, last = context.c_function(kernel, *context.ELEMENTWISE), 0.0
        arguments = *x.shape, x.ctypes.data, row, out.ctypes.data, row, last
        arguments = [of_c(argument) for of_c, argument in zip(function.argtypes, arguments, strict=True)]
        call, also = functools.partial(function, *arguments), {"contract": Clock(contract)}
        call.scratch = scratch  # of which the kernel has the address only
    rivals = {}
    for peer in names:
        operation = peers.ELEMENTWISE[peer](name, x, protocol.threads)
        rivals[peer] = checked_rival(f"{name} of {peer}", operation, expected, protocol, 2)
    return Case("E1", f"{name} of {x.shape}", Clock(call), rivals, also=also)


def elementwise_cases(shapes, names, protocol):
    """Activations, and the softmax of three widths."""
    for name in ("sigmoid", "tanh", "gelu", "softmax"):
        yield elementwise_case(name, names, protocol)
    for columns in (10, 1000):
        yield elementwise_case("softmax", names, protocol, (ELEMENTWISE_SHAPE[0], columns))
