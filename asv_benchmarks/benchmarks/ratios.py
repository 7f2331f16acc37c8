"""Paired ratios: other libraries timed in turn with ours, in one process on one core, by `fastbp.compare`."""

import numpy as np

from . import TOO_LATE
from .common import WHY_NOT_NUMPY, Benchmark, grid, require


class NumPy:
    """The reference as a peer: every step in NumPy."""

    name, how, version = "numpy", "the reference", np.__version__

    def __init__(self, task, weights, rows, threads):
        self.trainer = require("fastbp.compare").Ours(task, rows.shape[1], task.x.dtype.name, "reference")
        self.rows = rows
        for layer, (weight, bias) in zip(self.trainer.model.layers[::2], weights, strict=True):
            layer.weight, layer.bias = weight, bias

    def train(self):
        for batch in self.rows:
            self.trainer.step(self.trainer.task.x[batch], self.trainer.task.y[batch])

    def weights(self):
        return self.trainer.weights()


class TrainStep(Benchmark):
    """A step of ours by a step of theirs: an epoch of ``fit`` against the peer at its best, the same mathematics."""

    params = (
        ["numpy", "torch", "jax", "sklearn"],
        grid(["S1", "S2", "S3"], ["S4", "S5", "S6", "S7", "S8", "S9", "513-257-129-11@77"]),
    )
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        super().setup()
        if TOO_LATE and peer in ("numpy", "sklearn"):
            raise NotImplementedError(WHY_NOT_NUMPY)
        self.compare.pin(1)
        found = [NumPy] if peer == "numpy" else self.compare.find_peers(peer)[0]
        if not found:
            raise NotImplementedError(f"{peer} is not installed")
        self.peer = found[0]

    def track_ratio(self, peer, shape):
        result = self.compared(shape, "float32", self.peer)
        if result is None or result["left_out"]:  # disturbed, or a network that the peer cannot train
            return float("nan")
        return 1 / result["peers"][peer]["ratio"]
