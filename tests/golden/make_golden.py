"""Writes golden.npz, what PyTorch computes: ``python -m tests.golden.make_golden``; test_golden.py reads it.

Inputs are float32 numbers, so that every dtype starts from the same; results are float64. The name of an entry says
what it is: ``activation/NAME``, ``loss/NAME/PARAMETER/…``, ``optimizer/NAME/HYPERPARAMETERS``, ``network/…``.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

PARAMETER = 0.25  # of the activations that have one
STEPS = 10

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": lambda z: functional.leaky_relu(z, PARAMETER),
    "elu": lambda z: functional.elu(z, PARAMETER),
    "selu": functional.selu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
    "softplus": lambda z: functional.softplus(z, threshold=1000),  # the default is z itself above 20
    "mish": functional.mish,
}


def mean_of(function, **arguments):
    """The loss of each row as the mean over its outputs."""
    return lambda prediction, target: function(prediction, target, reduction="none", **arguments).mean(axis=1)


def weighted_binary(weight):
    weight = torch.tensor([weight], dtype=torch.float64)
    return mean_of(functional.binary_cross_entropy_with_logits, pos_weight=weight)


def poisson(prediction, target):
    """PyTorch's leaves out what the target alone decides."""
    of_target = torch.special.xlogy(target, target) - target
    return mean_of(functional.poisson_nll_loss)(prediction, target) + of_target.mean(axis=1)


def cross_entropy(smoothing):
    return lambda prediction, target: functional.cross_entropy(
        prediction, target, reduction="none", label_smoothing=smoothing
    )


LOSSES = {  # (name, parameter) -> (rows of predictions and targets -> losses of the rows, kind of target)
    ("half_squared_error", 0.0): (lambda p, y: 0.5 * mean_of(functional.mse_loss)(p, y) * p.shape[1], "reals"),
    ("mean_squared_error", 0.0): (mean_of(functional.mse_loss), "reals"),
    ("l1", 0.0): (mean_of(functional.l1_loss), "reals"),
    **{("huber", d): (mean_of(functional.huber_loss, delta=d), "reals") for d in (0.5, 1.0, 3.0)},
    ("binary_cross_entropy", 0.0): (mean_of(functional.binary_cross_entropy), "fractions"),
    **{("binary_cross_entropy_with_logits", w): (weighted_binary(w), "fractions") for w in (1.0, 0.3, 8.0)},
    ("poisson", 0.0): (poisson, "counts"),
    **{("soft_cross_entropy", s): (cross_entropy(s), "distributions") for s in (0.0, 0.1, 0.7)},
    **{("cross_entropy", s): (cross_entropy(s), "labels") for s in (0.0, 0.1, 0.7)},
}

# (name, hyperparameters of tests.contract.cases.COEFFICIENTS) -> PyTorch's optimizer.
OPTIMIZERS = {
    ("sgd", "lr=0.1"): lambda w: torch.optim.SGD(w, lr=0.1),
    ("sgd", "lr=0.1,l2=0.3"): lambda w: torch.optim.SGD(w, lr=0.1, weight_decay=0.3),
    ("momentum", "lr=0.05,mu=0.9"): lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9),
    ("momentum", "lr=0.05,mu=0.75,gain=0.25"): lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.75, dampening=0.75),
    ("momentum", "lr=0.05,mu=0.9,l2=0.3"): lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9, weight_decay=0.3),
    ("nesterov", "lr=0.05,mu=0.9"): lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9, nesterov=True),
    ("nesterov", "lr=0.05,mu=0.9,l2=0.3"): lambda w: torch.optim.SGD(
        w, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.3
    ),
    ("rmsprop", "lr=0.05,b=0.99,outside=0.01"): lambda w: torch.optim.RMSprop(w, lr=0.05, alpha=0.99, eps=0.01),
    ("rmsprop", "lr=0.05,b=0.9,l2=0.3"): lambda w: torch.optim.RMSprop(w, lr=0.05, alpha=0.9, weight_decay=0.3),
    ("adam", "lr=0.05"): lambda w: torch.optim.Adam(w, lr=0.05),
    ("adam", "lr=0.05,beta2=0.99,l2=0.3"): lambda w: torch.optim.Adam(w, lr=0.05, betas=(0.9, 0.99), weight_decay=0.3),
    ("adam", "lr=0.05,decay=0.3"): lambda w: torch.optim.AdamW(w, lr=0.05, weight_decay=0.3),
    ("amsgrad", "lr=0.05,beta2=0.5"): lambda w: torch.optim.Adam(w, lr=0.05, betas=(0.9, 0.5), amsgrad=True),
    ("amsgrad", "lr=0.05,beta2=0.5,decay=0.3"): lambda w: torch.optim.AdamW(
        w, lr=0.05, betas=(0.9, 0.5), weight_decay=0.3, amsgrad=True
    ),
}


def activations():
    z = np.concatenate([np.linspace(-12, 12, 193), [-1e-4, 1e-4, -30, 30, -80, 80]]).astype(np.float32)
    yield "activation_z", z
    for name, function in ACTIVATIONS.items():
        variable = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        value = function(variable)
        (slope,) = torch.autograd.grad(value.sum(), variable)
        yield f"activation/{name}", np.stack([value.detach().numpy(), slope.numpy()])


def target_of(kind, rng, rows, out):
    """Random targets of float32, or labels."""
    if kind == "labels":
        return rng.integers(0, out, rows)
    if kind == "distributions":  # half of them of one class, half of some other sum than 1
        rest = rows - rows // 2
        return np.concatenate([np.eye(out)[rng.integers(0, out, rows - rest)], rng.random((rest, out))])
    if kind == "fractions":
        return np.clip(rng.random((rows, out)) * 1.5 - 0.25, 0, 1)
    if kind == "counts":
        return rng.integers(0, 9, (rows, out))
    return rng.integers(-4, 5, (rows, out))


def losses(rng, rows=12, out=6):
    for (name, parameter), (function, kind) in LOSSES.items():
        prediction, target = 4 * rng.standard_normal((rows, out)), target_of(kind, rng, rows, out)
        prediction[:3] = np.round(prediction[:3])  # errors of 0 and of delta, equal logits
        if name == "binary_cross_entropy":
            prediction = rng.integers(0, 257, (rows, out)) / 256
            prediction[0] = 0, 1, 0, 1, 0, 1
        prediction = prediction.astype(np.float32)
        target = target if kind == "labels" else target.astype(np.float32)
        variable = torch.tensor(prediction, dtype=torch.float64, requires_grad=True)
        value = function(variable, torch.tensor(target if kind == "labels" else target.astype(np.float64)))
        (gradient,) = torch.autograd.grad(value.sum(), variable)
        entries = {"prediction": prediction, "target": target, "value": value.detach().numpy(), "gradient": gradient}
        for entry, array in entries.items():
            yield f"loss/{name}/{parameter:g}/{entry}", np.asarray(array)


def optimizers(rng):
    start, grads = (rng.standard_normal(shape).astype(np.float32) for shape in (7, (STEPS, 7)))
    yield "optimizer_start", start
    yield "optimizer_grads", grads
    for (name, hyperparameters), make in OPTIMIZERS.items():
        w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer, trajectory = make([w]), []
        if "gain" in hyperparameters:  # PyTorch's first velocity is the gradient undamped: let that be 0
            w.grad = torch.zeros_like(w)
            optimizer.step()
        for grad in grads:
            w.grad = torch.tensor(grad, dtype=torch.float64)
            optimizer.step()
            trajectory.append(w.detach().numpy().copy())
        yield f"optimizer/{name}/{hyperparameters}", np.array(trajectory)


def network(rng, rows=16):
    """8-16-4, tanh, cross-entropy, Adam of lr 0.01: the losses of ten batches."""
    arrays = [(0.5 * rng.standard_normal(shape)).astype(np.float32) for shape in ((8, 16), 16, (16, 4), 4)]
    x, labels = rng.standard_normal((STEPS * rows, 8)).astype(np.float32), rng.integers(0, 4, STEPS * rows)
    parameters = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    optimizer, step_losses = torch.optim.Adam(parameters, lr=0.01), []
    for i in range(0, len(x), rows):
        w1, b1, w2, b2 = parameters
        hidden = torch.tanh(torch.tensor(x[i : i + rows], dtype=torch.float64) @ w1 + b1)
        loss = functional.cross_entropy(hidden @ w2 + b2, torch.tensor(labels[i : i + rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step_losses.append(loss.item())
    yield "network/parameters", np.concatenate([array.ravel() for array in arrays])
    yield from {"network/x": x, "network/labels": labels, "network/losses": np.array(step_losses)}.items()


def main():
    rng = np.random.default_rng(0)
    entries = dict([*activations(), *losses(rng), *optimizers(rng), *network(rng)])
    np.savez_compressed(Path(__file__).with_name("golden.npz"), torch=torch.__version__, **entries)
    print(f"PyTorch {torch.__version__}, {len(entries)} arrays")


if __name__ == "__main__":
    main()
