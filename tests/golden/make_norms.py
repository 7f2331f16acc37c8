"""Writes norms.npz, what PyTorch makes of norms and a residual block: ``python -m tests.golden.make_norms``.

test_norms.py reads it: ``start/NAME`` and ``end/NAME`` are the arrays of the state before and after, in PyTorch's
layout; ``x``, ``labels`` and ``losses`` those of the steps; ``predictions`` of ``x``, when not training, at the end;
``grad/NAME`` and ``grad/x`` the gradients of the first step. Everything but the labels is float64.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

STEPS, ROWS = 8, 12


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def main():
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    module = nn.Sequential(
        nn.BatchNorm1d(5), nn.Linear(5, 9), nn.LayerNorm(9), nn.GELU(),
        Residual(nn.LayerNorm(9), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 9), nn.BatchNorm1d(9, momentum=0.3)),
        nn.LayerNorm(9, elementwise_affine=False), nn.SiLU(), nn.Linear(9, 4),
    ).double()  # fmt: skip
    x, labels = rng.standard_normal((STEPS * ROWS, 5)) * 2 + 1, rng.integers(0, 4, STEPS * ROWS)
    arrays = {f"start/{name}": value.numpy().copy() for name, value in module.state_dict().items()}
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), []
    for i in range(0, len(x), ROWS):
        batch = torch.tensor(x[i : i + ROWS], requires_grad=True)
        loss = nn.functional.cross_entropy(module(batch), torch.tensor(labels[i : i + ROWS]))
        optimizer.zero_grad()
        loss.backward()
        if i == 0:
            arrays |= {f"grad/{name}": value.grad.numpy().copy() for name, value in module.named_parameters()}
            arrays["grad/x"] = batch.grad.numpy().copy()
        optimizer.step()
        losses.append(loss.item())
    arrays |= {f"end/{name}": value.numpy().copy() for name, value in module.state_dict().items()}
    arrays |= {"x": x, "labels": labels, "losses": np.array(losses)}
    arrays["predictions"] = module.eval()(torch.tensor(x)).detach().numpy()
    arrays = {name: value for name, value in arrays.items() if not name.endswith("num_batches_tracked")}
    np.savez_compressed(Path(__file__).with_name("norms.npz"), torch=torch.__version__, **arrays)
    print(f"PyTorch {torch.__version__}, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
