"""Paired ratios: other libraries timed in turn with ours, in one process on one core, by `fastbp compare`."""

from .common import Benchmark, grid, peer_ratio, require, undisturbed


class TrainStep(Benchmark):
    """A step of ours by a step of theirs: an epoch of ``fit`` against the peer at its best, the same mathematics."""

    params = (
        ["numpy", "torch", "jax", "sklearn"],
        grid(["S1", "S2", "S3", "S4"], ["S5", "S6", "S7", "S8", "S9", "513-257-129-11@77"]),
    )
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        super().setup()
        self.peer(peer)

    def track_ratio(self, peer, shape):
        return peer_ratio(self.compared(shape, "float32", require("fastbp.bench.peers", "TRAINERS")[peer]), peer)


class Predict(Benchmark):
    """A call of ``predict`` by a call of theirs: medians, and what one call in a hundred exceeds."""

    params = (
        ["numpy", "torch", "jax", "onnxruntime"],
        grid(["16-64-64-4@1", "784-256-128-10@32"], ["784-256-128-10@4096"]),
    )
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        super().setup()
        self.peer(peer)

    def measured(self, peer, shape):
        protocol, found = self.protocol(), self.shapes.parse_shapes(shape)[shape]
        case = require("fastbp.bench.prediction", "predict_case")(shape, found, [peer], protocol)
        return undisturbed(protocol.measure(case))

    def track_ratio(self, peer, shape):
        return peer_ratio(self.measured(peer, shape), peer)

    def track_ratio_p99(self, peer, shape):
        result = self.measured(peer, shape)
        return 1 / result["peers"][peer]["p99_ratio"] if result else float("nan")


class Product(Benchmark):
    """gemm, by theirs in the layout that suits them best."""

    params = (["numpy", "torch"], ["NN", "NT", "TN"], grid([256], [128, 512, 1024, 2048]))
    param_names = ("peer", "product", "size")
    unit = "ours / theirs"

    def setup(self, peer, product, size):
        super().setup()
        self.peer(peer)

    def track_ratio(self, peer, product, size):
        protocol = self.protocol()
        case = require("fastbp.bench.products", "product_case")(product, size, [peer], protocol)
        return peer_ratio(undisturbed(protocol.measure(case)), peer)


class Many(Benchmark):
    """`fit_many` of 32 networks by ``jax.vmap``."""

    params = (["jax"], ["S2"])
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        super().setup()
        self.peer(peer)

    def track_ratio(self, peer, shape):
        protocol = self.protocol()
        many_case = require("fastbp.bench.side_by_side", "many_case")
        case = many_case(shape, self.shapes.SHAPES[shape], [peer], protocol)
        return peer_ratio(undisturbed(protocol.measure(case)), peer)
