"""Optimizer steps on ``rows x columns`` blocks of a parameter buffer: values, gradient and state in one pass.

All kernels have the arguments ``(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2)``; the
states have the values' leading dimension. What they compute is `reference.optimizer_step`.
"""

from .simd import fma, lanes, load, square_root, store, zeros


def sgd(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2):
    minus_lr = -coefficients[0]
    width = lanes(values)
    for i in range(rows):
        for j in range(0, columns, width):
            tail, at = columns - j, i * ldv + j
            w = load(zeros(values, 1, 1), values + at, 0, tail)
            store(fma(load(w, grad + i * ldg + j, 0, tail), minus_lr, w), values + at, 0, tail)


def adam(rows, columns, coefficients, values, ldv, grad, ldg, state_1, state_2):
    step_size, b1, c1 = coefficients[0], coefficients[1], coefficients[2]
    b2, c2, epsilon = coefficients[3], coefficients[4], coefficients[5]
    width = lanes(values)
    for i in range(rows):
        for j in range(0, columns, width):
            tail, at = columns - j, i * ldv + j
            w = load(zeros(values, 1, 1), values + at, 0, tail)
            g = load(w, grad + i * ldg + j, 0, tail)
            m = fma(load(w, state_1 + at, 0, tail), b1, g * c1)
            v = fma(load(w, state_2 + at, 0, tail), b2, g * g * c2)
            store(m, state_1 + at, 0, tail)
            store(v, state_2 + at, 0, tail)
            store(w - m * step_size / (square_root(v) + epsilon), values + at, 0, tail)
