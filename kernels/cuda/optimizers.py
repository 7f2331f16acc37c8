"""Optimizer steps: values, gradient and state in one pass, over flat arrays or over the arrays of a table.

They compute what `reference.optimizer_step` defines; the update of a parameter is a formula of `updates`. After a loss
that is not finite there are no more updates in a run. Where the gradient of an array of a table is in parts, the update
adds them up.
"""

import math
from functools import cache

from .. import layout
from .compiling import device_function, kernel, made_once, vector
from .driver import cuda
from .elementwise import adding_parts
from .formulas import formulas
from .launch import THREADS, first_element, over_elements
from .operands import FLOATS, INT, INTS, States, type_of
from .parameters import TABLE, Table, for_each_tile
from .record import COEFFICIENTS, NEXT, STOPPED


@device_function
def coefficients_of_step(record):
    """Where the coefficients of a step begin whose losses have been summed up: it is the one before the next.

    Which step has begun is written anew meanwhile, as the rows of the next are gathered beside the update.
    """
    return record[COEFFICIENTS] + (record[NEXT] - 1) * layout.COEFFICIENTS


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
            c = coefficients(scalars, coefficients_of_step(record))
            first, step = first_element()
            for i in range(first, count, step):
                update(c, i, grad[i], values, states)

    return optimizer_kernel


@cache
def update_in_table(name, dtype):
    """Two device functions: the coefficients as above; and element ``i`` of an array of a table, which it updates."""
    coefficients, update = update_of_element(name, dtype)
    total_of_parts = adding_parts(dtype)

    @device_function
    def update_in_table(i, line, c, values, gradients, states):
        at = line.start + i
        if line.parts == 1:  # what there is most of: its loads do not wait for one another
            return update(c, line.offset + i, gradients[at], values, states)
        g = total_of_parts(gradients, at, line.step, line.parts)
        return update(c, line.offset + i, g, values, states)

    return coefficients, update_in_table


@made_once
def update_kernel(name, dtype):
    """The kernel that updates the arrays of a `table` once, unless the record has stopped."""
    coefficients, update = update_in_table(name, dtype)

    @device_function
    def update_tile(tile, line, *operands):
        i = tile * THREADS + cuda.threadIdx.x
        if i < line.columns:
            update(i, line, *operands)

    update_all = for_each_tile(update_tile)

    @kernel(TABLE, INTS, FLOATS, vector(dtype), vector(dtype), states_type(dtype), threads=THREADS)
    def update_kernel(table, record, scalars, values, gradients, states):
        if record[STOPPED] == 0:
            c = coefficients(scalars, coefficients_of_step(record))
            update_all(table, c, values, gradients, states)

    return update_kernel


def states_type(dtype):
    """The type of `States` of a dtype."""
    return type_of(States, vector(dtype), vector(dtype), vector(dtype))


def states_of(state, values):
    """The buffers of an optimizer as `States`, with the values in place of those that it lacks."""
    return States(*(*state, values, values, values)[:3])


def optimizer_step(name, record, values, grad, state, stream):
    """Launch an update of flat arrays, with the coefficients of the record's step; nothing for empty ones."""
    if values.size:
        grid, block = over_elements(values.size)
        optimizer_kernel(name, values.dtype)[grid, block, stream](
            values.size, record.device, record.floats, values, grad, states_of(state, values)
        )


def table(arrays, gradients):
    """The `Table` of arrays for `update`: each as one row, with its padding, in tiles of a number a thread."""
    flat = [array._replace(shape=(math.prod(array.shape[:-1]) * array.ld,)) for array in arrays]
    return Table.of(flat, (1, THREADS), gradients, {})


def update(name, table, record, values, gradients, state, stream):
    """Launch an update of the arrays of a `table`; ``gradients`` is the memory of these, 0 where arrays are padded."""
    if table.tiles:
        update_kernel(name, values.dtype)[table.grid, THREADS, stream](
            table, record.device, record.floats, values, gradients, states_of(state, values)
        )


def kernels(dtype):
    """Every kernel of this file: (name, kernel)."""
    for name in layout.OPTIMIZERS:
        yield f"optimizer {name}", optimizer_kernel(name, dtype)
        yield f"update {name}", update_kernel(name, dtype)
