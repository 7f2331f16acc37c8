"""Networks as C99: one header with the parameters and a function that predicts a row. `Sequential.to_c` is the door."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import chains, files
from .layers import Activation, BatchNorm1d, LayerNorm, Linear

if TYPE_CHECKING:
    from .model import Sequential

NUMBERS_A_LINE = 6
# Functions that a header may need; ``@`` stands for its name, ``~`` for the f of float's functions and numbers.
HELPERS = {
    "linear": """
static inline void @_linear(const @_real *x, const @_real *weight, const @_real *bias, int in, int out, @_real *y)
{
    int i, j;
    for (j = 0; j < out; ++j)
        y[j] = bias ? bias[j] : 0.0~;
    for (i = 0; i < in; ++i)
        for (j = 0; j < out; ++j)
            y[j] += x[i] * weight[i * out + j];
}
""",
    "layer_norm": """
static inline void @_layer_norm(const @_real *x, const @_real *weight, const @_real *bias, @_real eps, int n, @_real *y)
{
    @_real mean = 0.0~, variance = 0.0~, scale;
    int i;
    for (i = 0; i < n; ++i)
        mean += x[i];
    mean /= (@_real)n;
    for (i = 0; i < n; ++i)
        variance += (x[i] - mean) * (x[i] - mean);
    scale = 1.0~ / sqrt~(variance / (@_real)n + eps);
    for (i = 0; i < n; ++i)
        y[i] = (x[i] - mean) * scale * (weight ? weight[i] : 1.0~) + (bias ? bias[i] : 0.0~);
}
""",
    "batch_norm": """
static inline void @_batch_norm(const @_real *x, const @_real *mean, const @_real *gain, const @_real *bias, int n,
                                @_real *y)
{
    int i;
    for (i = 0; i < n; ++i)
        y[i] = (x[i] - mean[i]) * gain[i] + (bias ? bias[i] : 0.0~);
}
""",
    "add": """
static inline void @_add(const @_real *x, const @_real *z, int n, @_real *y)
{
    int i;
    for (i = 0; i < n; ++i)
        y[i] = x[i] + z[i];
}
""",
}
# Activations: the expression of z, and of a where they have a parameter.
ACTIVATIONS = {
    "identity": "z",
    "relu": "z <= 0.0~ ? 0.0~ : z",
    "tanh": "tanh~(z)",
    "sigmoid": "1.0~ / (1.0~ + exp~(-z))",
    "leaky_relu": "z <= 0.0~ ? z * a : z",
    "elu": "z > 0.0~ ? z : a * expm1~(z)",
    "selu": "1.0507009873554805~ * (z > 0.0~ ? z : 1.6732632423543772~ * expm1~(z))",
    "gelu": "0.5~ * z * erfc~(-0.7071067811865476~ * z)",
    "gelu_tanh": "z / (1.0~ + exp~(-1.5957691216057308~ * z * (1.0~ + 0.044715~ * z * z)))",
    "silu": "z / (1.0~ + exp~(-z))",
    "softplus": "(z > 0.0~ ? z : 0.0~) + log1p~(exp~(-fabs~(z)))",
    "mish": "z * tanh~((z > 0.0~ ? z : 0.0~) + log1p~(exp~(-fabs~(z))))",
}
ACTIVATION = """
static inline void @_{name}(const @_real *x{argument}, int n, @_real *y)
{{
    int i;
    for (i = 0; i < n; ++i) {{
        const @_real z = x[i];
        y[i] = {expression};
    }}
}}
"""
HEADER = """\
/* A network of fastbp, for C99 and later. It needs nothing but math.h (link with -lm), and allocates nothing.

{network}

   @_predict computes the {outputs} outputs of one row of {inputs} inputs, as Sequential.predict does. */
#ifndef @_HEADER
#define @_HEADER

#include <math.h>

#define @_INPUTS {inputs}
#define @_OUTPUTS {outputs}
#define @_SCRATCH {scratch} /* numbers on the stack */

typedef {real} @_real;
{arrays}{helpers}
static inline void @_predict(const @_real *input, @_real *output)
{{
{declaration}{calls}
}}

#endif
"""


def write(model: Sequential, path: str | os.PathLike[str], name: str | None) -> None:
    """Write ``model`` as `Sequential.to_c` says."""
    name = Path(path).stem if name is None else name
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f'name must begin a name of C, letters, digits and "_", got {name!r}: pass another name=…')
    text = _Header(model).text(name)
    with files.replacing(path) as file:
        file.write(text.encode("ascii"))


class _Header:
    """The parts of a header, their names still open."""

    def __init__(self, model: Sequential) -> None:
        self.model, self.dtype, self.state = model, model.dtype, model.state_dict()
        self.suffix = "f" if self.dtype == np.float32 else ""
        self.arrays: list[str] = []
        self.helpers: dict[str, str] = {}
        self.steps = chains.steps(model.layers)
        self.widths = {"input": model.in_features}
        for step in self.steps:
            taken = self.widths[step.reads[0]]
            self.widths[step.name] = step.layer.out_features if isinstance(step.layer, Linear) else taken
        self.places, self.scratch = placed(self.steps, self.widths)
        self.calls = [self.call(step) for step in self.steps]

    def text(self, name: str) -> str:
        """The whole header."""
        network = "\n".join(f"   {line}" for line in repr(self.model).splitlines())
        whole = HEADER.format(
            network=network.replace("*/", ""), inputs=self.model.in_features,
            outputs=self.model.out_features, scratch=self.scratch, real="float" if self.suffix else "double",
            arrays="".join(self.arrays), helpers="".join(self.helpers.values()),
            declaration="    @_real scratch[@_SCRATCH];\n" if self.scratch else "",
            calls="\n".join(f"    {call}" for call in self.calls),
        )  # fmt: skip
        return whole.replace("@", name).replace("~", self.suffix)

    def call(self, step: chains.Step) -> str:
        """The call that makes the value of a step."""
        layer, n = step.layer, self.widths[step.reads[0]]
        x, y = (self.pointer(value) for value in (step.reads[0], step.name))
        if len(step.reads) == 2:
            return self.use("add", x, self.pointer(step.reads[1]), n, y)
        if isinstance(layer, Linear):
            weight, bias = (self.parameter(step, part) for part in ("weight", "bias"))
            return self.use("linear", x, weight, bias, n, layer.out_features, y)
        if isinstance(layer, LayerNorm):
            weight, bias = (self.parameter(step, part) for part in ("weight", "bias"))
            return self.use("layer_norm", x, weight, bias, self.number(layer.eps), n, y)
        if isinstance(layer, BatchNorm1d):
            mean, variance = (self.state[f"{step.name}.running_{part}"] for part in ("mean", "var"))
            gain = 1 / np.sqrt(variance.astype(np.float64) + layer.eps)
            if layer.affine:
                gain *= self.state[f"{step.name}.weight"]
            names = self.array(step, "mean", mean), self.array(step, "gain", gain), self.parameter(step, "bias")
            return self.use("batch_norm", x, *names, n, y)
        if isinstance(layer, Activation):
            return self.activation(layer, x, n, y)
        raise TypeError(f"C headers have no function for {layer!r}")

    def activation(self, layer, x, n, y):
        expression = ACTIVATIONS[layer.name]
        takes = re.search(r"\ba\b", expression) is not None
        argument = ", @_real a" if takes else ""
        self.helpers[layer.name] = ACTIVATION.format(name=layer.name, argument=argument, expression=expression)
        parameter = [self.number(layer.parameter)] if takes else []
        return f"@_{layer.name}({', '.join(map(str, [x, *parameter, n, y]))});"

    def use(self, helper, *arguments):
        self.helpers[helper] = HELPERS[helper]
        return f"@_{helper}({', '.join(map(str, arguments))});"

    def pointer(self, value):
        if value == "input":
            return "input"
        return "output" if value == self.steps[-1].name else f"scratch + {self.places[value]}"

    def parameter(self, step, part):
        """The name of a parameter's array, or the null pointer."""
        value = self.state.get(f"{step.name}.{part}")
        return "0" if value is None else self.array(step, part, value)

    def array(self, step, part, value):
        """Define an array of constants; returns its name."""
        name = f"@_{part}_{step.name.replace('.', '_')}"
        numbers = [self.number(number) for number in value.astype(self.dtype).ravel()]
        lines = [", ".join(numbers[i : i + NUMBERS_A_LINE]) for i in range(0, len(numbers), NUMBERS_A_LINE)]
        shape = " * ".join(map(str, value.shape))
        self.arrays.append(f"\nstatic const @_real {name}[{shape}] = {{\n    " + ",\n    ".join(lines) + "\n};\n")
        return name

    def number(self, value):
        """The shortest decimal that reads back as this number."""
        value = self.dtype.type(value)
        if not np.isfinite(value):
            raise ValueError(f"all parameters must be finite to be written as C, got {value}")
        return np.format_float_scientific(value, unique=True, trim="0") + "~"


def placed(steps: list[chains.Step], widths: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where each value lies between the layers, and how many numbers that takes: at the first place that is free."""
    last = {name: i for i, step in enumerate(steps) for name in step.reads}
    places: dict[str, int] = {}
    live: list[tuple[int, int, str]] = []  # (first, end, value)
    total = 0
    for i, step in enumerate(steps[:-1]):
        if not isinstance(step.layer, Linear):  # an element is read before it is written: that may be its own place
            live = [entry for entry in live if last[entry[2]] > i or entry[2] != step.reads[0]]
        first = 0
        for begin, end, _ in sorted(live):
            if begin - first >= widths[step.name]:
                break
            first = max(first, end)
        end = first + widths[step.name]
        places[step.name], total = first, max(total, end)
        live = [entry for entry in live if last[entry[2]] > i] + [(first, end, step.name)]
    return places, total
