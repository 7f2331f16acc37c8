"""The graph as Graphviz text, as the notes draw it: values going forward, gradients coming back."""

import numpy as np

from ..backpropagation import flows_of, inputs_of

DIGITS = 4  # significant ones
LARGEST = 8  # elements that are written out; of more the shape is


def to_dot(output):
    """Draw the graph that led to a variable, in Graphviz's language.

    A box is a variable, with its name, its value and the gradient that came in; an ellipse is the function that made
    it. The number on an edge is the gradient that goes back along it. Gradients are there after
    ``output.backward(retain_graph=True)``; without ``retain_graph`` the graph is freed and only the output is left.

    Parameters
    ----------
    output : Variable

    Returns
    -------
    str
        For ``dot -Tsvg`` and everything else that reads Graphviz.
    """
    variables = _ancestors(output)
    number = {variable: i for i, variable in enumerate(variables)}
    lines = ["digraph {", "  rankdir=LR;", "  node [shape=box, fontname=Helvetica];"]
    lines += ["  edge [fontname=Helvetica, fontcolor=firebrick];"]
    for variable, i in number.items():
        lines.append(f'  v{i} [label="{_label(variable)}"];')
        function = variable.grad_fn
        if function is None:
            continue
        lines.append(f'  f{i} [label="{function.label}", shape=ellipse];')
        for x, flow in zip(function.inputs, _flows(variable, function), strict=True):
            if x is not None:
                text = "" if flow is None else f' [label="{_number(flow)}"]'
                lines.append(f"  v{number[x]} -> f{i}{text};")
        text = "" if variable.grad is None else f' [label="{_number(variable.grad)}"]'
        lines.append(f"  f{i} -> v{i}{text};")
    return "\n".join([*lines, "}"])


def _ancestors(output):
    """The variables that one was computed from, in the order of their making, and itself."""
    found, seen = [output], {output}
    for variable in found:
        for x in inputs_of(variable):
            if x not in seen:
                seen.add(x)
                found.append(x)
    return sorted(found, key=lambda variable: variable._tick)


def _flows(variable, function):
    """The gradient that goes back to every input, or None where none is known."""
    grad = variable._grad
    if grad is None:
        return [None] * len(function.inputs)
    if type(variable._node) is type:
        return [grad * slope for slope in (variable._dx, variable._dy) if slope is not None]
    function.stores_gradients = False
    try:
        return flows_of(function, grad)
    finally:
        function.stores_gradients = True


def _label(variable):
    lines = [variable.name] if variable.name else []
    lines.append(f"data {_number(variable.data)}")
    if variable.grad is not None:
        lines.append(f"grad {_number(variable.grad)}")
    return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)


def _number(value):
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}" if value.size > LARGEST else _number(value.tolist())
    return f"[{', '.join(map(_number, value))}]" if isinstance(value, list) else f"{value:.{DIGITS}g}"
