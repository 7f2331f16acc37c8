"""Optimizer updates, each written once: ``(w, m, v)`` after a step from the same before it, and the gradient ``g``.

``c`` are the ``layout.COEFFICIENTS`` scalars of the step. Of the states ``m`` and ``v`` an optimizer has as many as
``layout.OPTIMIZER_STATES`` says, and returns the others as they are. The ``*_step`` of the same name in `reference`
says what an update computes and which scalars it reads.
"""

from .elementary import sign
from .primitives import fma, square_root


def sgd(c, w, g, m, v):
    """Gradient descent."""
    lr, l2 = c[:2]
    return fma(fma(w, l2, g), -lr, w), m, v


def momentum(c, w, g, velocity, v):
    """Classical momentum, and the average of the gradients."""
    lr, l2, mu, gain = c[:4]
    velocity = fma(velocity, mu, fma(w, l2, g) * gain)
    return fma(velocity, -lr, w), velocity, v


def nesterov(c, w, g, velocity, v):
    """Nesterov's momentum."""
    lr, l2, mu = c[:3]
    g = fma(w, l2, g)
    velocity = fma(velocity, mu, g)
    return fma(fma(velocity, mu, g), -lr, w), velocity, v


def rmsprop(c, w, g, square_avg, v):
    """RMSProp, epsilon inside the root or outside."""
    lr, l2, b, rest, inside, outside = c[:6]
    g = fma(w, l2, g)
    square_avg = fma(square_avg, b, g * g * rest)
    return w - g * lr / (square_root(square_avg + inside) + outside), square_avg, v


def adam(c, w, g, m, v):
    """Adam and AdamW."""
    step_size, b1, rest1, b2, rest2, epsilon, l2, decay = c[:8]
    g = fma(w, l2, g)
    m = fma(m, b1, g * rest1)
    v = fma(v, b2, g * g * rest2)
    return fma(w, -decay, w) - m * step_size / (square_root(v) + epsilon), m, v


def lion(c, w, g, exp_avg, v):
    """Lion: the sign of an average, and decay apart from the gradient."""
    lr, b1, rest1, b2, rest2, decay = c[:6]
    direction = sign(fma(exp_avg, b1, g * rest1))
    return fma(direction, -lr, fma(w, -decay, w)), fma(exp_avg, b2, g * rest2), v
