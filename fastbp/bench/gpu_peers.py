"""Peers on the GPU, as in `peers`: PyTorch, a call at a time and as a CUDA graph of a step, TF32 off.

An epoch ends when the GPU has finished: a peer waits for it there, as ``fit`` does. `elapsed` is PyTorch's own clock of
the GPU, for launches that nobody waits for in between.
"""

import numpy as np

from .peers import Operation, TorchSteps


def _torch(tf32=False):
    """PyTorch with a GPU, its products in float32 throughout, or of factors in TF32."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("this PyTorch has no GPU")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch


def elapsed(work) -> float:
    """Seconds from the start of what ``work()`` launches to its end, by events on PyTorch's stream."""
    from torch.cuda import Event

    start, end = Event(enable_timing=True), Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Torch(TorchSteps):
    """PyTorch, eager."""

    name = "torch"
    how = "eager, Adam(fused=True), zero_grad(set_to_none=True), TF32 off, data on the GPU"
    tf32 = False

    def __init__(self, task, weights, rows, threads, **adam):
        super().__init__(_torch(self.tf32), task, weights, rows, "cuda", **adam)

    def train(self):
        self.launch()
        self.torch.cuda.synchronize()


class TorchGraph(Torch):
    """PyTorch, the step captured as a CUDA graph after three steps on another stream, as its manual says."""

    name = "torch-graph"
    how = "a step as a CUDA graph, Adam(fused=True, capturable=True), TF32 off, data on the GPU"

    def __init__(self, task, weights, rows, threads):
        super().__init__(task, weights, rows, threads, capturable=True)
        torch = self.torch
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.batch = self.rows[0].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                super().step(self.batch)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            super().step(self.batch)
        with torch.no_grad():  # back to the weights and the state of the start
            for parameter, value in zip(self.model.parameters(), before, strict=True):
                parameter.copy_(value)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def step(self, batch):
        self.batch.copy_(batch)
        self.graph.replay()


TRAINERS = {peer.name: peer for peer in (Torch, TorchGraph)}


PRODUCTS = {  # how PyTorch multiplies in a precision
    "ieee": "mm(out=), TF32 off",
    "tf32": "mm(out=), allow_tf32",
    "bf16x3": "mm(out=), TF32 off: in float32",
    "bf16": "mm under autocast(bfloat16), which casts A and B in each call and leaves C in bfloat16, ours in float32",
}


def product(kind, a, b, precision) -> tuple[Operation, np.ndarray]:
    """``A B``, ``A Bᵀ`` or ``Aᵀ B`` of arrays of the host; and the product."""
    torch = _torch()
    a, b = (torch.from_numpy(np.ascontiguousarray(array)).cuda() for array in (a, b))
    a, b = a.T if kind == "TN" else a, b.T if kind == "NT" else b
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device="cuda")
    settings = torch.backends.cuda.matmul

    def in_float32():
        settings.allow_tf32 = precision == "tf32"  # of the process: each call says what it needs
        return torch.mm(a, b, out=out)

    def in_bfloat16():
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return torch.mm(a, b)

    call = in_bfloat16 if precision == "bf16" else in_float32
    found = call().float() if precision == "bf16" else call()
    return Operation(call, torch.__version__, PRODUCTS[precision]), found.cpu().numpy()
