"""Optimizer steps on ``rows x columns`` blocks of a parameter buffer: values, gradient and state in one pass.

An optimizer is two functions: the scalars of the step, read once, and the update of one vector. All kernels have
the arguments ``(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2)``; the states have the
values' leading dimension. What they compute is `reference.optimizer_step`.
"""

from .. import table
from ..jit import inline
from .simd import fma, lanes, load, square_root, store, zeros


@inline
def sgd_scalars(coefficients):
    return -coefficients[0], coefficients[1]


@inline
def sgd_update(scalars, w, g, state_1, state_2):
    minus_lr, l2 = scalars
    return fma(fma(w, l2, g), minus_lr, w), state_1, state_2


@inline
def momentum_scalars(coefficients):
    return -coefficients[0], coefficients[1], coefficients[2], coefficients[3]


@inline
def momentum_update(scalars, w, g, velocity, state_2):
    minus_lr, l2, mu, gain = scalars
    velocity = fma(velocity, mu, fma(w, l2, g) * gain)
    return fma(velocity, minus_lr, w), velocity, state_2


@inline
def nesterov_scalars(coefficients):
    return -coefficients[0], coefficients[1], coefficients[2]


@inline
def nesterov_update(scalars, w, g, velocity, state_2):
    minus_lr, l2, mu = scalars
    g = fma(w, l2, g)
    velocity = fma(velocity, mu, g)
    return fma(fma(velocity, mu, g), minus_lr, w), velocity, state_2


@inline
def rmsprop_scalars(coefficients):
    return (
        coefficients[0], coefficients[1], coefficients[2], coefficients[3], coefficients[4], coefficients[5]
    )  # fmt: skip


@inline
def rmsprop_update(scalars, w, g, square_avg, state_2):
    lr, l2, b, c, inside, outside = scalars
    g = fma(w, l2, g)
    square_avg = fma(square_avg, b, g * g * c)
    return w - g * lr / (square_root(square_avg + inside) + outside), square_avg, state_2


@inline
def adam_scalars(coefficients):
    return (
        coefficients[0], coefficients[1], coefficients[2], coefficients[3], coefficients[4], coefficients[5],
        coefficients[6], -coefficients[7],
    )  # fmt: skip


@inline
def adam_update(scalars, w, g, m, v):
    step_size, b1, c1, b2, c2, epsilon, l2, minus_decay = scalars
    g = fma(w, l2, g)
    m = fma(m, b1, g * c1)
    v = fma(v, b2, g * g * c2)
    return fma(w, minus_decay, w) - m * step_size / (square_root(v) + epsilon), m, v


def kernel(name):
    """The kernel of an optimizer of ``table.OPTIMIZERS``."""
    states = table.OPTIMIZER_STATES[name]
    scalars_of, update = globals()[f"{name}_scalars"], globals()[f"{name}_update"]

    @inline
    def step(scalars, values, grad, state_1, state_2, columns):
        g = load(zeros(values, 1, 1), grad, 0, columns)
        m = v = g
        if states > 0:
            m = load(g, state_1, 0, columns)
        if states > 1:
            v = load(g, state_2, 0, columns)
        w, m, v = update(scalars, load(g, values, 0, columns), g, m, v)
        if states > 0:
            store(m, state_1, 0, columns)
        if states > 1:
            store(v, state_2, 0, columns)
        store(w, values, 0, columns)

    def optimizer_step(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2):
        if ldv == columns and ldg == columns:
            columns, rows = rows * columns, 1
        scalars, width = scalars_of(coefficients), lanes(values)
        for i in range(rows):
            at = i * ldv
            whole = columns - columns % width
            for j in range(0, whole, width):
                step(scalars, values + (at + j), grad + (i * ldg + j), state_1 + (at + j), state_2 + (at + j), None)
            if whole < columns:
                at += whole
                tail = columns - whole
                step(scalars, values + at, grad + (i * ldg + whole), state_1 + at, state_2 + at, tail)

    optimizer_step.__qualname__ = name  # a name of its own in the cache
    return optimizer_step
