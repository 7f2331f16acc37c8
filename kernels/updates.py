"""Optimizer updates, each written once: ``(w, m, v, top)`` after a step from the same before it and the gradient.

``c`` are the ``layout.COEFFICIENTS`` scalars of the step, ``w`` is a weight and ``g`` its gradient. Of the states
``m``, ``v`` and ``top`` an optimizer has as many as ``layout.OPTIMIZER_STATES`` says, and returns the others as they
are. The ``*_step`` of the same name in `reference` says what an update computes and which scalars it reads.
"""

from .elementary import sign
from .primitives import fma, select, square_root


def sgd(c, w, g, m, v, top):
    """Gradient descent."""
    lr, l2 = c[:2]
    return fma(fma(w, l2, g), -lr, w), m, v, top


def momentum(c, w, g, velocity, v, top):
    """Classical momentum, and the average of the gradients."""
    lr, l2, mu, gain = c[:4]
    velocity = fma(velocity, mu, fma(w, l2, g) * gain)
    return fma(velocity, -lr, w), velocity, v, top


def nesterov(c, w, g, velocity, v, top):
    """Nesterov's momentum."""
    lr, l2, mu = c[:3]
    g = fma(w, l2, g)
    velocity = fma(velocity, mu, g)
    return fma(fma(velocity, mu, g), -lr, w), velocity, v, top


def rmsprop(c, w, g, square_avg, v, top):
    """RMSProp, epsilon inside the root or outside."""
    lr, l2, b, rest, inside, outside = c[:6]
    g = fma(w, l2, g)
    square_avg = fma(square_avg, b, g * g * rest)
    return w - g * lr / (square_root(square_avg + inside) + outside), square_avg, v, top


def averages(c, w, g, m, v):
    """Adam's averages of the gradients and of their squares."""
    _, b1, rest1, b2, rest2, _, l2, _ = c[:8]
    g = fma(w, l2, g)
    return fma(m, b1, g * rest1), fma(v, b2, g * g * rest2)


def adaptive(c, w, m, v):
    """Adam's weight from what stands above the root and under it."""
    step_size, _, _, _, _, epsilon, _, decay = c[:8]
    return fma(w, -decay, w) - m * step_size / (square_root(v) + epsilon)


def adam(c, w, g, m, v, top):
    """Adam and AdamW."""
    m, v = averages(c, w, g, m, v)
    return adaptive(c, w, m, v), m, v, top


def amsgrad(c, w, g, m, v, top):
    """Adam and AdamW by the largest average of squares so far."""
    m, v = averages(c, w, g, m, v)
    top = select(v <= top, top, v)  # NaN is not <= and stays
    return adaptive(c, w, m, top), m, v, top


def lion(c, w, g, exp_avg, v, top):
    """Lion: the sign of an average, and decay apart from the gradient."""
    lr, b1, rest1, b2, rest2, decay = c[:6]
    direction = sign(fma(exp_avg, b1, g * rest1))
    return fma(direction, -lr, fma(w, -decay, w)), fma(exp_avg, b2, g * rest2), v, top
