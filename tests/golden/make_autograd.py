"""Writes autograd.npz, gradients as PyTorch has them: ``python -m tests.golden.make_autograd``.

test_autograd_operations.py reads it. Of an operation ``NAME`` there are ``NAME/in/0``, ``NAME/in/1`` …, ``NAME/out``,
``NAME/seed`` (the gradient that comes in) and ``NAME/grad/0`` …; everything is float64.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

RNG = np.random.default_rng(7)


def real(*shape):
    return RNG.standard_normal(shape)


def positive(*shape):
    return RNG.uniform(0.2, 3.0, shape)


TIES = np.array([[1.0, 3.0, 3.0], [3.0, -2.0, 0.5]])
LABELS = [0, 2, 1, 1]
Z = np.concatenate([np.linspace(-8, 8, 65), [-0.0, 40.0, -40.0]])

OPERATIONS = {  # name: function and inputs
    "add": (torch.add, real(3, 4), real(4)),
    "add_column": (torch.add, real(3, 1), real(1, 4)),
    "subtract": (torch.subtract, real(2, 3, 4), real(3, 1)),
    "multiply": (torch.multiply, real(3, 4), real(4)),
    "multiply_zero": (torch.multiply, np.array([0.0, -0.0, 2.0]), np.array([3.0, 0.0, 0.0])),
    "divide": (torch.divide, real(3, 4), positive(3, 1)),
    "power": (torch.pow, positive(3, 4), real(4)),
    "power_zero": (torch.pow, np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])),
    "power_number": (lambda x: x**3, real(5)),
    "power_of_number": (lambda x: 2.0**x, real(5)),
    "negative": (torch.negative, real(3)),
    "exp": (torch.exp, real(3, 4)),
    "log": (torch.log, positive(3, 4)),
    "sqrt": (torch.sqrt, positive(3, 4)),
    "absolute": (torch.abs, np.array([-2.0, 0.0, 3.0])),
    "maximum": (torch.maximum, TIES, np.array([3.0, 3.0, 3.0])),
    "minimum": (torch.minimum, TIES, np.array([1.0, -2.0, 0.5])),
    "max": (torch.max, TIES),
    "min": (torch.min, np.minimum(TIES, 1.0)),
    "max_axis_0": (lambda x: torch.max(x, 0).values, np.maximum(TIES, 1.0)),
    "max_axis_1": (lambda x: torch.max(x, 1, keepdim=True).values, TIES),
    "min_axis_1": (lambda x: torch.min(x, 1).values, np.minimum(TIES, 1.0)),
    "max_axes": (lambda x: torch.amax(x, (0, 2)), np.stack([TIES, TIES - 1])),
    "sum": (torch.sum, real(3, 4)),
    "sum_axis": (lambda x: torch.sum(x, 1, keepdim=True), real(3, 4)),
    "sum_axes": (lambda x: torch.sum(x, (0, -1)), real(3, 4, 2)),
    "mean": (torch.mean, real(3, 4)),
    "mean_axis": (lambda x: torch.mean(x, 0), real(3, 4)),
    "reshape": (lambda x: x.reshape(2, -1), real(3, 4)),
    "transpose": (lambda x: x.T, real(3, 4)),
    "transpose_axes": (lambda x: x.permute(2, 0, 1), real(3, 4, 2)),
    "index": (lambda x: x[1:, ::2], real(3, 4)),
    "index_repeated": (lambda x: x[[0, 2, 0, 0]], real(3, 4)),
    "index_mask": (lambda x: x[x > 0], real(3, 4)),
    "concatenate": (lambda x, y: torch.cat([x, y], 1), real(3, 4), real(3, 2)),
    "matmul": (torch.matmul, real(3, 4), real(4, 2)),
    "matmul_vectors": (torch.matmul, real(4), real(4)),
    "matmul_vector_matrix": (torch.matmul, real(4), real(4, 2)),
    "matmul_matrix_vector": (torch.matmul, real(3, 4), real(4)),
    "matmul_stack": (torch.matmul, real(5, 1, 3, 4), real(2, 4, 2)),
    "matmul_vector_stack": (torch.matmul, real(4), real(5, 4, 2)),
    "matmul_stack_vector": (torch.matmul, real(5, 3, 4), real(4)),
    "linear": (lambda x, w, b: x @ w + b, real(3, 4), real(4, 2), real(2)),
    "sigmoid": (torch.sigmoid, Z),
    "tanh": (torch.tanh, Z),
    "relu": (torch.relu, Z),
    "leaky_relu": (lambda z: functional.leaky_relu(z, 0.2), Z),
    "elu": (lambda z: functional.elu(z, 1.5), Z),
    "selu": (functional.selu, Z),
    "gelu": (functional.gelu, Z),
    "gelu_tanh": (lambda z: functional.gelu(z, approximate="tanh"), Z),
    "silu": (functional.silu, Z),
    "softplus": (lambda z: functional.softplus(z, threshold=1000), Z),
    "cross_entropy": (lambda s: functional.cross_entropy(s, torch.tensor(LABELS)), real(4, 3)),
    "cross_entropy_smooth": (
        lambda s: functional.cross_entropy(s, torch.tensor(LABELS), label_smoothing=0.2),
        real(4, 3),
    ),
    "mean_squared_error": (lambda p: functional.mse_loss(p, torch.ones_like(p)), real(4, 3)),
    "half_squared_error": (lambda p: 0.5 * ((p - 1) ** 2).sum() / 4, real(4, 3)),
    "l1": (lambda p: functional.l1_loss(p, torch.ones_like(p)), real(4, 3)),
    "huber": (lambda p: functional.huber_loss(p, torch.ones_like(p), delta=0.7), real(4, 3)),
    "binary_cross_entropy": (
        lambda p: functional.binary_cross_entropy(p, torch.full_like(p, 0.25)),
        RNG.uniform(0.1, 0.9, (4, 3)),
    ),
    "binary_cross_entropy_with_logits": (
        lambda p: functional.binary_cross_entropy_with_logits(p, torch.full_like(p, 0.25)),
        real(4, 3),
    ),
    "used_twice": (lambda x, y: x * y + torch.tanh(x) / (1 + x * x), real(3, 4), real(4)),
    "attention": (
        lambda q, k, v: torch.exp(q @ k.T - torch.max(q @ k.T, 1, keepdim=True).values) @ v,
        real(3, 4), real(5, 4), real(5, 2),
    ),
}  # fmt: skip


def entries():
    for name, (function, *inputs) in OPERATIONS.items():
        variables = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in inputs]
        out = function(*variables)
        seed = torch.tensor(RNG.standard_normal(tuple(out.shape)), dtype=torch.float64)
        for i, (array, gradient) in enumerate(zip(inputs, torch.autograd.grad(out, variables, seed), strict=True)):
            yield f"{name}/in/{i}", np.asarray(array)
            yield f"{name}/grad/{i}", gradient.numpy()
        yield f"{name}/out", out.detach().numpy()
        yield f"{name}/seed", seed.numpy()


def main():
    arrays = dict(entries())
    np.savez_compressed(Path(__file__).with_name("autograd.npz"), torch=torch.__version__, **arrays)
    print(f"PyTorch {torch.__version__}, {len(OPERATIONS)} operations")


if __name__ == "__main__":
    main()
