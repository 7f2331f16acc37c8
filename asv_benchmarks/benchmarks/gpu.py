"""Train steps and products on a GPU as multiples of PyTorch's on the same one; skipped where either is missing."""

import functools

from .common import ROUNDS, WINDOW, Benchmark, peer_ratio, require


class OnGPU(Benchmark):
    """What needs the device "cuda", and a PyTorch that has it."""

    def setup(self, *_):
        super().setup()
        try:
            require("fastbp.backend", "require")("cuda")
        except (ImportError, RuntimeError) as error:
            raise NotImplementedError(str(error)) from None
        self.peers = require("fastbp.gpu_peers")
        if not require("torch").cuda.is_available():
            raise NotImplementedError("this PyTorch has no GPU")

    def on_gpu(self, case):
        """What `fastbp.compare` finds for ``case(protocol)``."""
        protocol = self.measure.Protocol(rounds=ROUNDS, seconds=WINDOW, device="cuda")
        return protocol.measure(case(protocol))


class Step(OnGPU):
    """An epoch of ``fit`` divided by its batches, by a step of PyTorch."""

    params = ("G1", "G2", "G3"), ("torch", "torch-graph")
    param_names = ("shape", "peer")
    unit = "times PyTorch"

    def track_fit(self, shape, peer):
        found, trainers = self.compare.parse_shapes(shape)[shape], [self.peers.TRAINERS[peer]]
        return peer_ratio(self.on_gpu(functools.partial(self.compare.step_case, shape, found, trainers)), peer)


class Product(OnGPU):
    """A product of 4096 x 4096 x 4096 in float32, by PyTorch's with TF32 off."""

    params = ("NN", "NT", "TN")
    param_names = ("kind",)
    unit = "times PyTorch"

    def track_product(self, kind):
        size = self.compare.GPU_PRODUCT_SIZE
        return peer_ratio(self.on_gpu(functools.partial(self.compare.gpu_product_case, kind, size, ["torch"])), "torch")
