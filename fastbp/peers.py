"""Other libraries at their best, on one task: train steps of a classifier with Adam.

A peer is a class with a ``name``, a ``how`` (the settings that make it fast), a ``version``, and a
constructor ``(task, weights, rows, threads)`` that copies ``weights`` (pairs of weight ``(in, out)`` and
bias ``(out,)``) into a network of its own. ``train()`` takes one step on each row of ``rows``
(steps, batch) and returns when they are done; ``weights()`` gives the weights as they are now.
Libraries are imported where they are used, after `compare` has limited their threads.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """Layer widths, activation between them, learning rate, and the data: x (n, in), labels y (n,)."""

    widths: tuple[int, ...]
    activation: str
    lr: float
    x: np.ndarray
    y: np.ndarray


class Torch:
    """PyTorch, eager: torch.compile was slower on small networks and no faster on large ones."""

    name = "torch"
    how = "eager, Adam(fused=True), zero_grad(set_to_none=True)"

    def __init__(self, task, weights, rows, threads):
        import torch

        self.version = torch.__version__
        torch.set_num_threads(threads)
        activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[task.activation]
        layers = []
        for weight, bias in weights:
            linear = torch.nn.Linear(*weight.shape, dtype=getattr(torch, weight.dtype.name))
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
                linear.bias.copy_(torch.from_numpy(np.array(bias)))
            layers += [linear, activation()]
        self.model = torch.nn.Sequential(*layers[:-1])
        self.loss = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.lr, fused=True)
        self.x, self.y, self.rows = torch.from_numpy(task.x), torch.from_numpy(task.y), torch.from_numpy(rows)

    def train(self):
        for batch in self.rows:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.model(self.x[batch]), self.y[batch]).backward()
            self.optimizer.step()

    def weights(self):
        values = [parameter.detach().numpy() for parameter in self.model.parameters()]
        return [(weight.T, bias) for weight, bias in zip(values[::2], values[1::2], strict=True)]


class Jax:
    """JAX: all steps of one call in one compiled loop."""

    name = "jax"
    how = "jit of lax.scan over steps, donated state, gather inside"

    def __init__(self, task, weights, rows, threads):
        import jax
        import jax.numpy as jnp

        self.version = jax.__version__
        if weights[0][0].dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[task.activation]
        beta1, beta2, eps = 0.9, 0.999, 1e-8

        def loss(parameters, x, y):
            for i, (weight, bias) in enumerate(parameters):
                x = (activation(x) if i else x) @ weight + bias
            return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()

        def step(x, y, state, batch):
            parameters, m, v, t = state
            t = t + 1
            grad = jax.grad(loss)(parameters, x[batch], y[batch])
            m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, grad)
            v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, grad)
            rate, floor = task.lr / (1 - beta1**t), 1 / (1 - beta2**t)
            parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * floor) + eps), parameters, m, v)
            return (parameters, m, v, t), None

        def steps(state, x, y, rows):
            return jax.lax.scan(functools.partial(step, x, y), state, rows)[0]

        self.data = jnp.array(task.x), jnp.array(task.y), jnp.array(rows)
        parameters = [(jnp.array(weight), jnp.array(bias)) for weight, bias in weights]
        m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        self.state = parameters, m, v, jnp.zeros((), weights[0][0].dtype)
        self.steps = jax.jit(steps, donate_argnums=0)
        self.wait = jax.block_until_ready

    def train(self):
        self.state = self.wait(self.steps(self.state, *self.data))

    def weights(self):
        return [(np.asarray(weight), np.asarray(bias)) for weight, bias in self.state[0]]


class Sklearn:
    """scikit-learn: ``partial_fit`` walks once over the rows, in batches."""

    name = "sklearn"
    how = "MLPClassifier.partial_fit, alpha=0"

    def __init__(self, task, weights, rows, threads):
        import sklearn
        from sklearn.neural_network import MLPClassifier

        if task.widths[-1] == 2:
            raise ValueError("scikit-learn gives two classes one logistic output: another network")
        self.version = sklearn.__version__
        order = rows.ravel()
        self.x, self.y, batch = task.x[order], task.y[order], rows.shape[1]
        self.model = MLPClassifier(
            task.widths[1:-1],
            activation=task.activation,
            alpha=0,
            batch_size=batch,
            learning_rate_init=task.lr,
            epsilon=1e-8 * 0.001**0.5,  # it is not divided by the bias correction: this makes the first step equal
            shuffle=False,
        )
        self.model.partial_fit(self.x[:batch], self.y[:batch], classes=np.arange(task.widths[-1]))
        del self.model._optimizer  # private, and the only way to start Adam anew from the given weights
        self.model.coefs_ = [np.array(weight) for weight, _ in weights]
        self.model.intercepts_ = [np.array(bias) for _, bias in weights]

    def train(self):
        self.model.partial_fit(self.x, self.y)

    def weights(self):
        return list(zip(self.model.coefs_, self.model.intercepts_, strict=True))


PEERS = {peer.name: peer for peer in (Torch, Jax, Sklearn)}
