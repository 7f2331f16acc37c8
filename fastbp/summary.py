"""A network as a table of text: layers, widths, parameters and operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .layers import Layer, Linear, Residual, Trained

if TYPE_CHECKING:
    from .model import Sequential


def table(model: Sequential) -> str:
    """A line for each layer, a total, and a line for dtype, device and size."""
    lines = [f"{'layer':<24}{'output':>10}{'parameters':>14}{'FLOPs a sample':>18}"]
    operations = 0
    for title, layer, width in _described(model.layers, model.in_features):
        shapes = layer.shapes if isinstance(layer, Trained) else {}
        count = sum(math.prod(shapes[name]) for name in ("weight", "bias") if name in shapes)
        flops = 2 * layer.in_features * layer.out_features if isinstance(layer, Linear) else 0
        operations += flops
        lines.append(f"{title:<24}{width:>10,}{count:>14,}{flops:>18,}")
    count = model.network.count
    lines.append(f"{'total':<24}{'':>10}{count:>14,}{operations:>18,}")
    size = count * model.dtype.itemsize
    lines.append(f"{model.dtype.name} on {model.device}, {size:,} bytes of parameters")
    return "\n".join(lines)


def _described(layers: Sequence[Layer], width: int, indent: str = "") -> Iterator[tuple[str, Layer, int]]:
    """(title, layer, width of its output) of every layer; those inside a `Residual` are indented."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Linear):
            width = layer.out_features
        frozen = ", frozen" if isinstance(layer, Trained) and not layer.trainable else ""
        yield f"{indent}{i} {type(layer).__name__}{frozen}", layer, width
        if isinstance(layer, Residual):
            yield from _described(layer.layers, width, indent + "  ")
