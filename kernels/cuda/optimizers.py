"""Optimizer steps over a whole parameter buffer: values, gradient and state in one pass.

What they compute is `reference.optimizer_step`; the update of a parameter is a formula of `updates`. From the first
loss that is not finite nothing is updated any more.
"""

from functools import cache

import numpy as np

from .. import layout
from .driver import device_function, kernel, types, vector
from .formulas import formulas
from .launch import THREADS, first_element, over_elements
from .record import COEFFICIENTS, CURRENT, STOPPED


@cache
def update_of_element(name, dtype):
    """Device functions: the coefficients that begin at ``at``, and with them the update of element ``i``."""
    update, number = formulas(dtype)[name], dtype.type
    states = layout.OPTIMIZER_STATES[name]

    @device_function
    def coefficients(scalars, at):
        return (
            number(scalars[at]), number(scalars[at + 1]), number(scalars[at + 2]), number(scalars[at + 3]),
            number(scalars[at + 4]), number(scalars[at + 5]), number(scalars[at + 6]), number(scalars[at + 7]),
        )  # fmt: skip

    @device_function
    def update_of_element(c, i, g, values, state_1, state_2, state_3):
        m = v = top = g
        if states > 0:
            m = state_1[i]
        if states > 1:
            v = state_2[i]
        if states > 2:
            top = state_3[i]
        w, m, v, top = update(c, values[i], g, m, v, top)
        values[i] = w
        if states > 0:
            state_1[i] = m
        if states > 1:
            state_2[i] = v
        if states > 2:
            state_3[i] = top

    return coefficients, update_of_element


@cache
def optimizer_kernel(name, dtype):
    """One update of every parameter."""
    coefficients, update = update_of_element(name, dtype)

    @kernel(threads=THREADS)
    def optimizer_kernel(count, record, scalars, values, grad, state_1, state_2, state_3):
        if record[STOPPED] == 0:
            c = coefficients(scalars, record[COEFFICIENTS] + record[CURRENT] * layout.COEFFICIENTS)
            first, step = first_element()
            for i in range(first, count, step):
                update(c, i, grad[i], values, state_1, state_2, state_3)

    return optimizer_kernel


def optimizer_step(name, record, values, grad, state, stream):
    """Launch it, with the coefficients of the step that the record is at."""
    if values.size:
        states = (*state, values, values, values)[:3]
        grid, block = over_elements(values.size)
        optimizer_kernel(name, values.dtype)[grid, block, stream](
            values.size, record.device, record.floats, values, grad, *states
        )


def kernels(dtype):
    """Every kernel of this file: (name, kernel, signature)."""
    ints, doubles, a = vector(np.int64), vector(np.float64), vector(dtype)
    for name in layout.OPTIMIZERS:
        yield f"optimizer {name}", optimizer_kernel(name, dtype), (types.int64, ints, doubles, a, a, a, a, a)
