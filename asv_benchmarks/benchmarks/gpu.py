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
        self.peers = require("fastbp.bench.gpu_peers")
        if not require("torch").cuda.is_available():
            raise NotImplementedError("this PyTorch has no GPU")

    def on_gpu(self, case):
        """What `fastbp compare` finds for ``case(protocol)``."""
        protocol = self.measure.Protocol(rounds=ROUNDS, seconds=WINDOW, device="cuda")
        return protocol.measure(case(protocol))


class Step(OnGPU):
    """A train step by one of PyTorch."""

    params = ("G1", "G2", "G3"), ("torch", "torch-graph")
    param_names = ("shape", "peer")
    unit = "times PyTorch"

    def result(self, shape, peer):
        found, trainers = self.shapes.parse_shapes(shape)[shape], [self.peers.TRAINERS[peer]]
        return self.on_gpu(functools.partial(self.steps.step_case, shape, found, trainers))

    def track_fit(self, shape, peer):
        """An epoch of ``fit`` divided by its batches, by the clock of the host."""
        return peer_ratio(self.result(shape, peer), peer)

    def track_events(self, shape, peer):
        """Many steps launched together, between two events on the GPU's stream."""
        found = self.result(shape, peer)["peers"].get(peer)
        return 1 / found["also_ratio"]["events"] if found else float("nan")


class Product(OnGPU):
    """A product of 4096 x 4096 x 4096 by PyTorch's of the same precision, by events.

    With "bf16" PyTorch casts A and B in each call and leaves C in bfloat16, where ours is float32.
    """

    params = ("NN", "NT", "TN"), ("ieee", "tf32", "bf16")
    param_names = ("kind", "precision")
    unit = "times PyTorch"

    def track_product(self, kind, precision):
        products = require("fastbp.bench.products")
        size = products.GPU_PRODUCT_SIZE
        case = functools.partial(products.gpu_product_case, kind, size, precision, ["torch"])
        return peer_ratio(self.on_gpu(case), "torch")
