"""The computation graph: what it costs beside the work of its functions."""

import functools
import gc

import numpy as np

from .common import Benchmark, clock, grid, peer_ratio, ratio, require, undisturbed


class Scalars(Benchmark):
    """Forward and backward of 50 operations on scalars, by PyTorch's time: the graph and nothing else."""

    params = (["torch"],)
    param_names = ("peer",)
    unit = "ours / theirs"

    def setup(self, peer):
        super().setup()
        self.case = require("fastbp.bench.graphs", "graph_case")
        self.peer(peer)

    def track_ratio(self, peer):
        protocol = self.protocol()
        return peer_ratio(undisturbed(protocol.measure(self.case([peer], protocol))), peer)


class Growth(Benchmark):
    """Forward and backward of a long chain of scalars: the time of an operation by that in a chain of 1000.

    1 is linear. With the collector on, what it costs to walk over the graph and everything else that is loaded, now
    and then, is told too.
    """

    params = (grid([100_000], [10_000, 1_000_000]), ["on", "off"])
    param_names = ("operations", "garbage collector")
    unit = "times the time in a chain of 1000"

    def setup(self, operations, collector):
        super().setup()
        self.variable = require("fastbp.autograd", "Variable")

    def chain(self, operations):
        x, z = self.variable(0.5, requires_grad=True), self.variable(0.3)
        for _ in range(operations // 2):
            z = z * x + x
        z.backward()

    def track_of_1000(self, operations, collector):
        if collector == "off":
            gc.disable()
        try:
            long, short = (clock(functools.partial(self.chain, length)) for length in (operations, 1000))
            return ratio(long, short) * 1000 / operations
        finally:
            gc.enable()


class Node(Benchmark):
    """A network as one function of the graph: forward, loss and backward, by the same calls without the graph."""

    params = (grid(["S1", "S3"], ["S2", "S4"]),)
    param_names = ("shape",)
    unit = "times the time without"

    def setup(self, shape):
        super().setup()
        trainer = self.network(shape, 1, "float32")
        self.model, self.loss = trainer.model, trainer.loss
        self.x, self.y = trainer.task.x, trainer.task.y
        self.variable = require("fastbp.autograd", "Variable")

    def track_over_eager(self, shape):
        model, loss = self.model, self.loss

        def with_graph():
            loss(model(self.variable(self.x)), self.y).backward()

        def without():
            model.backward(loss(model(self.x), self.y)[1], accumulate=True)

        return ratio(clock(with_graph), clock(without))


class Arrays(Benchmark):
    """The same network of operations on arrays, by its time as layers without the graph."""

    params = Node.params
    param_names = ("shape",)
    unit = "times the time of layers"

    def setup(self, shape):
        super().setup()
        trainer = self.network(shape, 1, "float32")
        self.model, self.loss = trainer.model, trainer.loss
        self.x, self.y = trainer.task.x, trainer.task.y
        self.autograd = require("fastbp.autograd")
        variable = functools.partial(self.autograd.Variable, requires_grad=True)
        self.parameters = [tuple(map(variable, map(np.array, pair))) for pair in trainer.weights()]

    def track_over_layers(self, shape):
        autograd, model, loss = self.autograd, self.model, self.loss

        def of_variables():
            z = self.x
            for i, (weight, bias) in enumerate(self.parameters):
                z = autograd.linear(autograd.relu(z) if i else z, weight, bias)
                weight.grad = bias.grad = None
            loss(z, self.y).backward()

        def of_layers():
            model.backward(loss(model(self.x), self.y)[1])

        return ratio(clock(of_variables), clock(of_layers))
