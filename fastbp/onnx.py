"""Networks as ONNX files: a node or two a layer, read by ONNX Runtime and others. `Sequential.to_onnx` is the door."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from . import chains, files
from .layers import Activation, BatchNorm1d, LayerNorm, Linear

if TYPE_CHECKING:
    from .model import Sequential

OPSET = 20  # the first that has all of LayerNormalization, Mish and Gelu
# The operators of activations that have one, and what their parameter is called there.
OPERATORS = {
    "identity": ("Identity", None),
    "relu": ("Relu", None),
    "tanh": ("Tanh", None),
    "sigmoid": ("Sigmoid", None),
    "leaky_relu": ("LeakyRelu", "alpha"),
    "elu": ("Elu", "alpha"),
    "selu": ("Selu", None),
    "softplus": ("Softplus", None),
    "mish": ("Mish", None),
}


def write(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write ``model`` as `Sequential.to_onnx` says."""
    content = _Graph(model).model.SerializeToString()
    with files.replacing(path) as file:
        file.write(content)


def _package():
    try:
        import onnx
    except ImportError:
        raise ImportError('to_onnx needs the package onnx: pip install "fastbp[onnx]"') from None
    return onnx


class _Graph:
    """Nodes and arrays of a network, and the file they make."""

    def __init__(self, model: Sequential) -> None:
        onnx = _package()
        self.helper, self.numpy_helper = onnx.helper, onnx.numpy_helper
        self.dtype, self.state = model.dtype, model.state_dict()
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        steps = chains.steps(model.layers)
        self.names = {"input": "input"} | {step.name: f"layer {step.name}" for step in steps[:-1]}
        self.names[steps[-1].name] = "output"
        for step in steps:
            self.add(step)
        kind = self.helper.np_dtype_to_tensor_dtype(self.dtype)
        ends = [
            self.helper.make_tensor_value_info(name, kind, ["rows", features])
            for name, features in (("input", model.in_features), ("output", model.out_features))
        ]
        graph = self.helper.make_graph(self.nodes, "fastbp", ends[:1], ends[1:], self.arrays)
        opset = [self.helper.make_opsetid("", OPSET)]
        self.model = self.helper.make_model(
            graph,
            opset_imports=opset,
            ir_version=self.helper.find_min_ir_version_for(opset),
            producer_name="fastbp",
        )
        onnx.checker.check_model(self.model)

    def add(self, step: chains.Step) -> None:
        """The nodes of a layer."""
        layer, out = step.layer, self.names[step.name]
        x, *others = (self.names[name] for name in step.reads)
        if others:
            self.node("Add", [x, *others], out)
        elif isinstance(layer, Linear):
            bias = [self.array(f"{step.name}.bias")] if layer.has_bias else []
            self.node("Gemm", [x, self.array(f"{step.name}.weight"), *bias], out)
        elif isinstance(layer, LayerNorm):
            self.node("LayerNormalization", [x, *self.scale(step, layer)], out, axis=-1, epsilon=layer.eps)
        elif isinstance(layer, BatchNorm1d):
            running = [self.array(f"{step.name}.{name}") for name in ("running_mean", "running_var")]
            self.node("BatchNormalization", [x, *self.scale(step, layer), *running], out, epsilon=layer.eps)
        elif isinstance(layer, Activation):
            self.activation(layer, x, out)
        else:
            raise TypeError(f"ONNX files have no layer for {layer!r}")

    def activation(self, layer, x, out):
        if layer.name == "silu":
            gate = f"{out} gate"
            self.node("Sigmoid", [x], gate)
            self.node("Mul", [x, gate], out)
        elif layer.name in ("gelu", "gelu_tanh"):
            self.node("Gelu", [x], out, approximate="tanh" if layer.name == "gelu_tanh" else "none")
        else:
            operator, parameter = OPERATORS[layer.name]
            self.node(operator, [x], out, **({parameter: layer.parameter} if parameter else {}))

    def scale(self, step, layer):
        """The names of weight and bias of a normalisation, which ONNX always wants."""
        if layer.affine:
            return [self.array(f"{step.name}.{name}") for name in ("weight", "bias")]
        given = {"weight": np.ones(layer.features), "bias": np.zeros(layer.features)}
        return [self.array(f"{step.name}.{name}", value) for name, value in given.items()]

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(self.helper.make_node(operator, inputs, [output], name=f"{output} {operator}", **attributes))

    def array(self, name, value=None):
        value = self.state[name] if value is None else value.astype(self.dtype)
        self.arrays.append(self.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name
