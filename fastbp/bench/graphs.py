"""The computation graph of ours beside that of a peer."""

import numpy as np

from .. import autograd
from . import peers
from .agreement import checked_rival
from .clocks import Clock
from .measure import Case

GRAPH_NUMBERS = 0.5, 0.3


def scalar_graph(x, y, tanh):
    """Fifty operations on two scalars, one after the other."""
    z = x
    for _ in range(12):
        z = tanh(z * y + x) - y
    return z * z + z


def graph_case(names, protocol) -> Case:
    """Forward and backward through `scalar_graph`, in which nothing but the graph itself takes time; float64."""
    leaves = [autograd.Variable(number, requires_grad=True) for number in GRAPH_NUMBERS]

    def ours():
        for leaf in leaves:
            leaf.grad = None
        scalar_graph(*leaves, autograd.tanh).backward()
        return [leaf.grad for leaf in leaves]

    rivals = {}
    for peer in names:
        operation = peers.GRAPHS[peer](scalar_graph, GRAPH_NUMBERS, protocol.threads)
        rivals[peer] = checked_rival(f"the gradient of {peer}", operation, np.array(ours()), protocol, 3)
    return Case("A1", "50 operations on scalars", Clock(ours), rivals)


def graph_cases(shapes, names, protocol):
    """The one graph."""
    yield graph_case(names, protocol)
