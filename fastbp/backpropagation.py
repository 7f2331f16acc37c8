"""Backpropagation through a graph of variables: ``∂L/∂x = Σ ∂L/∂z ∂z/∂x`` over all z computed from x.

Variables are visited from the newest to the oldest, without recursion, so no stack limits the depth of a graph. Each
passes its gradient on to its inputs: a scalar by a product and a sum, an array by the ``backward`` of its function.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import Array

if TYPE_CHECKING:
    from .graph import Function, Variable


class _Sign:
    """A constant whose repr is its name."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


# The node of a variable is None, LEAF, an instance of Function, the class of one between scalars, or FREED.
LEAF = _Sign("leaf")  # requires a gradient and was not computed
FREED = _Sign("freed")  # was computed; backward has freed its graph


def inputs_of(variable: Variable) -> tuple[Variable, ...]:
    """The variables that one was computed from."""
    node = variable._node
    if type(node) is type:
        return (variable._x,) if variable._dy is None else (variable._x, variable._y)
    return () if node is None or type(node) is _Sign else tuple(x for x in node.inputs if x is not None)


_tick_of = operator.attrgetter("_tick")


def backpropagate(root: Variable, gradient: float | Array, retain_graph: bool) -> None:
    """Set the gradient of ``root``, and of every variable it was computed from."""
    order = reachable(root)
    order.sort(key=_tick_of)  # a variable is newer than its inputs
    if root._node is LEAF:
        root._grad = gradient if root._grad is None else root._grad + gradient
        return
    root._grad = gradient
    with np.errstate(all="ignore"):
        _back(order, retain_graph)


def _back(order, retain_graph):
    """Give the inputs of each variable their gradients, the newest variable first."""
    next_variable = order.pop
    while order:
        variable = next_variable()  # perhaps the last reference, so that it is freed after its turn
        node, grad = variable._node, variable._grad
        if type(node) is not type:
            if grad is not None:  # None where a function returned none for it
                _flow_through(node, grad)
        elif grad is not None:
            x, y, dy = variable._x, variable._y, variable._dy
            if x._node is not None:
                flow = x._grad
                x._grad = grad * variable._dx if flow is None else flow + grad * variable._dx
            if dy is not None and y._node is not None:
                flow = y._grad
                y._grad = grad * dy if flow is None else flow + grad * dy
        if not retain_graph:
            variable._node, variable._x, variable._y = FREED, None, None


def reachable(root: Variable) -> list[Variable]:
    """Return the computed variables that ``root`` depends on, without gradients; refuse a value that was changed."""
    if root._node is LEAF:
        return [root]
    order, seen = [root], {root}
    for variable in order:
        node, tick = variable._node, variable._tick
        if type(node) is type:
            inputs = (variable._x,) if variable._dy is None else (variable._x, variable._y)
        elif node is FREED:
            raise RuntimeError(
                "the graph has been freed by an earlier backward(): pass retain_graph=True to that one, or compute "
                "the values again"
            )
        else:
            node.check_unchanged()
            inputs = node.inputs
        for x in inputs:
            if x is None:
                continue
            if x._tick > tick and node.reads_inputs:
                _refuse_changed(node, x)
            inner = x._node
            if inner is not None and inner is not LEAF and x not in seen:
                seen.add(x)
                order.append(x)
    for variable in order:
        variable._grad = None
    return order


def _refuse_changed(function, variable):
    function = function if type(function) is type else type(function)
    name = f" {variable.name!r}" if variable.name else ""
    raise RuntimeError(
        f"a value that {function.__name__} needs for backward(), the Variable{name} of shape {variable.shape}, was "
        f"changed after {function.__name__} had read it: change values after backward(), or compute again"
    )


def _flow_through(ctx, grad):
    """Add the gradients that a function returns to those of its inputs."""
    if type(grad) is not float:
        frozen(grad)
    flows = flows_of(ctx, grad)
    for x, flow in zip(ctx.inputs, flows, strict=True):
        if x is None or flow is None or x._node is None:
            continue
        data, before = x._data, x._grad
        if type(flow) is not type(data) or (
            type(flow) is not float and (flow.shape != data.shape or flow.dtype != data.dtype)
        ):
            flow = _like(ctx, data, flow)
        if before is not None:
            x._grad = before + flow
        elif x._node is LEAF and type(flow) is not float and not _unshared(flow, flows):
            x._grad = flow.copy()
        else:
            x._grad = flow


def _unshared(flow, flows):
    """Whether the array is shared with nothing, so that a leaf may own it."""
    return flow.base is None and flow.flags.writeable and sum(flow is other for other in flows) <= 1


def flows_of(ctx: Function, grad: float | Array) -> tuple[Any, ...]:
    """What ``backward`` returns, as a tuple with a gradient for each input."""
    flows = type(ctx).backward(ctx, grad)
    flows = flows if type(flows) is tuple else (flows,)
    if len(flows) > len(ctx.inputs) and all(flow is None for flow in flows[len(ctx.inputs) :]):
        flows = flows[: len(ctx.inputs)]  # of defaults that were not given
    if len(flows) != len(ctx.inputs):
        raise ValueError(
            f"{ctx!r}.backward must return {len(ctx.inputs)} gradients, one for every argument of forward "
            f"(None for what is no Variable), got {len(flows)}"
        )
    return flows


def _like(ctx, data, flow):
    """The gradient in the shape and dtype of the value."""
    data, flow = np.asarray(data), np.asarray(flow)
    if flow.shape != data.shape:
        flow = summed_to(flow, data.shape)
        if flow is None:
            raise ValueError(f"{ctx!r}.backward must return a gradient of shape {data.shape} for that argument")
    if data.ndim == 0:
        return float(flow)
    return flow if flow.dtype == data.dtype else flow.astype(data.dtype)


def summed_to(array: Array, shape: tuple[int, ...]) -> Array | None:
    """The adjoint of broadcasting from ``shape``: the sum over the new axes; None where the shapes do not broadcast."""
    more = array.ndim - len(shape)
    if more < 0:
        return None
    pairs = list(zip(array.shape[more:], shape, strict=True))
    if any(size not in (1, long) for long, size in pairs):
        return None
    stretched = [more + axis for axis, (long, size) in enumerate(pairs) if size == 1 != long]
    return array.sum(axis=(*range(more), *stretched)).reshape(shape)


def frozen(array: Array) -> Array:
    """Make the array read-only and return it."""
    array.setflags(write=False)
    return array
