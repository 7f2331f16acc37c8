"""A chain of layers as a program takes it: widths checked, names given, activations joined to what they follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .kernels import program
from .layers import Activation, Dropout, Layer, Linear, Residual, Trained


class Chain:
    """What becomes of layers that follow one another.

    Parameters
    ----------
    layers : sequence of Layer

    Attributes
    ----------
    rows : list of kernels.program.Layer
        An activation that follows a `Linear` is part of its row.
    prefixes : list of str
        What stands before the names of the parameters of each row, those inside of a `Residual` counted as well.
    placed : list of (Trained, int)
        The layers that have parameters, and the numbers of their rows.

    Raises
    ------
    TypeError, ValueError
        Something is no layer, is part of a model already, or does not take what comes before it.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.prefixes: list[str] = []
        self.placed: list[tuple[Trained, int]] = []
        if Linear not in {type(layer) for layer in flattened(layers)}:
            raise ValueError(f"a Sequential needs at least one Linear, got {tuple(layers)!r}")
        width = next(filter(None, map(_features_in, layers)))
        self.rows, _ = self._lowered(layers, width, "")

    def _lowered(self, layers, width, prefix):
        """(rows, width) after these layers, the first of which gets ``width`` features."""
        rows: list[Any] = []
        for i, layer in enumerate(layers):
            title = f"layer {prefix}{i}"
            if isinstance(layer, Trained):
                self._check(layer, title, width)
            if isinstance(layer, Residual):
                inside, width_after = self._lowered(layer.layers, width, f"{prefix}{i}.")
                if width_after != width:
                    raise ValueError(f"{title}, {layer!r}, adds its input of {width} features to {width_after} outputs")
                rows.append(program.Layer("residual", width, width, inside=tuple(inside)))
            elif isinstance(layer, Activation) and i and isinstance(layers[i - 1], Linear):
                rows[-1] = rows[-1]._replace(activation=layer.name, parameter=layer.parameter)
            else:
                if isinstance(layer, Trained):
                    self.placed.append((layer, len(self.prefixes)))
                self.prefixes.append(f"{prefix}{i}.")
                rows.append(layer.lowered(width))
                width = rows[-1].fan_out
        return rows, width

    def _check(self, layer, title, width):
        if layer.adopted or any(layer is other for other, _ in self.placed):
            raise ValueError(
                f"{title}, {layer!r}, is part of a model already; a {type(layer).__name__} belongs to one place: "
                f"make a new one"
            )
        if layer.in_features != width:
            argument = "in_features" if isinstance(layer, Linear) else "features"
            raise ValueError(f"{title}, {layer!r}, must take {argument}={width}, the outputs before it")


def flattened(layers: Sequence[Layer]) -> Iterator[Layer]:
    """All layers, each before those inside of it; refuses what is none."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layer {i} must be a layer of fastbp, got {layer!r} of type {type(layer).__name__}")
        yield layer
        if isinstance(layer, Residual):
            yield from flattened(layer.layers)


def named(layers: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, Trained]]:
    """The layers that have parameters, with what stands before their names."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Residual):
            yield from named(layer.layers, f"{prefix}{i}.")
        elif isinstance(layer, Trained):
            yield f"{prefix}{i}.", layer


class Step(NamedTuple):
    """A layer on the way forward of a network that predicts; a `Residual` is the sum at its end."""

    layer: Layer
    name: str  # of the layer and of what it gives: "2", or "2.0" for the first layer inside of layer 2
    reads: tuple[str, ...]  # the names of what it takes


def steps(layers: Sequence[Layer], prefix: str = "", x: str = "input") -> list[Step]:
    """The way forward through these layers, which begins with ``x``. Dropout is left out."""
    result: list[Step] = []
    for i, layer in enumerate(layers):
        name, reads = f"{prefix}{i}", (x,)
        if isinstance(layer, Residual):
            inside = steps(layer.layers, f"{name}.", x)
            result += inside
            reads = x, inside[-1].name if inside else x
        elif isinstance(layer, Dropout):
            continue
        result.append(Step(layer, name, reads))
        x = name
    return result


def _features_in(layer):
    """How many features a layer takes, where it says so."""
    if isinstance(layer, Residual):
        return next(filter(None, map(_features_in, layer.layers)), None)
    return layer.in_features if isinstance(layer, Trained) else None
