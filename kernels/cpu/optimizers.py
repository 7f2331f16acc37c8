"""Optimizer steps on ``rows x columns`` blocks of a parameter buffer: values, gradient and state in one pass.

All kernels have the arguments ``(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2, state_3)``; the
states have the values' leading dimension. What they compute is `reference.optimizer_step`; the update of a vector is a
formula of `updates`.
"""

from .. import layout
from ..jit import inline
from .blocking import AHEAD
from .formulas import FORMULAS
from .simd import lanes, load, prefetch_to_write, store, zeros


@inline
def scalars_of(c):
    """The coefficients of the step, read once; what a formula does not name is dropped when compiling."""
    return c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]


def kernel(name):
    """The kernel of an optimizer of ``layout.OPTIMIZERS``."""
    states = layout.OPTIMIZER_STATES[name]
    update = FORMULAS[name]

    @inline
    def step(scalars, values, grad, state_1, state_2, state_3, columns):
        g = load(zeros(values, 1, 1), grad, 0, columns)
        m = v = top = g
        if states > 0:
            m = load(g, state_1, 0, columns)
        if states > 1:
            v = load(g, state_2, 0, columns)
        if states > 2:
            top = load(g, state_3, 0, columns)
        w, m, v, top = update(scalars, load(g, values, 0, columns), g, m, v, top)
        if states > 0:
            store(m, state_1, 0, columns)
        if states > 1:
            store(v, state_2, 0, columns)
        if states > 2:
            store(top, state_3, 0, columns)
        store(w, values, 0, columns)

    @inline
    def ask(values, state_1, state_2, state_3):
        """Ask for the lines of one place in all buffers."""
        prefetch_to_write(values)
        if states > 0:
            prefetch_to_write(state_1)
        if states > 1:
            prefetch_to_write(state_2)
        if states > 2:
            prefetch_to_write(state_3)

    def optimizer_step(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2, state_3):
        if ldv == columns and ldg == columns:
            columns, rows = rows * columns, 1
        scalars, width = scalars_of(coefficients), lanes(values)
        ahead = ldv if rows > 1 else AHEAD  # what is asked for: the next row
        for i in range(rows):
            at = i * ldv
            whole = columns - columns % width
            for j in range(0, whole, width):
                later = at + j + ahead
                ask(values + later, state_1 + later, state_2 + later, state_3 + later)
                step(
                    scalars, values + (at + j), grad + (i * ldg + j), state_1 + (at + j), state_2 + (at + j),
                    state_3 + (at + j), None,
                )  # fmt: skip
            if whole < columns:
                at += whole
                tail = columns - whole
                step(
                    scalars, values + at, grad + (i * ldg + whole), state_1 + at, state_2 + at, state_3 + at, tail
                )  # fmt: skip

    optimizer_step.__qualname__ = name  # a name of its own in the cache
    return optimizer_step
