"""Optimizer steps over a whole parameter buffer: values, gradient and state in one pass.

They compute what `reference.optimizer_step` defines; the update of a parameter is a formula of `updates`. After a loss
that is not finite there are no more updates in a run.
"""

from functools import cache

from .. import layout
from .compiling import device_function, kernel, made_once, vector
from .formulas import formulas
from .launch import THREADS, first_element, over_elements
from .operands import FLOATS, INT, INTS, States, type_of
from .record import COEFFICIENTS, CURRENT, STOPPED


@cache
def update_of_element(name, dtype):
    """Two device functions: the coefficients that begin at ``at``, and element ``i``, which it updates by them."""
    update, number = formulas(dtype)[name], dtype.type
    states = layout.OPTIMIZER_STATES[name]

    @device_function
    def coefficients(scalars, at):
        return (
            number(scalars[at]),
            number(scalars[at + 1]),
            number(scalars[at + 2]),
            number(scalars[at + 3]),
            number(scalars[at + 4]),
            number(scalars[at + 5]),
            number(scalars[at + 6]),
            number(scalars[at + 7]),
        )

    @device_function
    def update_of_element(c, i, g, values, buffers):
        m = v = top = g
        if states > 0:
            m = buffers.first[i]
        if states > 1:
            v = buffers.second[i]
        if states > 2:
            top = buffers.third[i]
        w, m, v, top = update(c, values[i], g, m, v, top)
        values[i] = w
        if states > 0:
            buffers.first[i] = m
        if states > 1:
            buffers.second[i] = v
        if states > 2:
            buffers.third[i] = top
        return w

    return coefficients, update_of_element


@made_once
def optimizer_kernel(name, dtype):
    """The kernel that updates every parameter once, unless the record has stopped."""
    coefficients, update = update_of_element(name, dtype)

    @kernel(INT, INTS, FLOATS, vector(dtype), vector(dtype), states_type(dtype), threads=THREADS)
    def optimizer_kernel(count, record, scalars, values, grad, states):
        if record[STOPPED] == 0:
            c = coefficients(scalars, record[COEFFICIENTS] + record[CURRENT] * layout.COEFFICIENTS)
            first, step = first_element()
            for i in range(first, count, step):
                update(c, i, grad[i], values, states)

    return optimizer_kernel


def states_type(dtype):
    """The type of `States` of a dtype."""
    return type_of(States, vector(dtype), vector(dtype), vector(dtype))


def states_of(state, values):
    """The buffers of an optimizer as `States`, with the values in place of those that it lacks."""
    return States(*(*state, values, values, values)[:3])


def optimizer_step(name, record, values, grad, state, stream):
    """Launch an update of flat arrays, with the coefficients of the record's current step; nothing for empty ones."""
    if values.size:
        grid, block = over_elements(values.size)
        optimizer_kernel(name, values.dtype)[grid, block, stream](
            values.size, record.device, record.floats, values, grad, states_of(state, values)
        )


def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    for name in layout.OPTIMIZERS:
        yield f"optimizer {name}", optimizer_kernel(name, dtype)
