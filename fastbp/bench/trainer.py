"""This library as a trainer beside its peers, and the random tasks that all of them train on."""

import itertools

import numpy as np

from .. import backend, layers, losses, model, optimizers
from .peers import Task

LR = 1e-3


def network(widths, activation, dtype, device, precision="ieee"):
    """A network with an activation between its linear layers."""
    activation = {"relu": layers.ReLU, "tanh": layers.Tanh}[activation]
    parts = []
    for pair in itertools.pairwise(widths):
        parts += [layers.Linear(*pair), activation()]
    return model.Sequential(*parts[:-1], dtype=dtype, device=device, seed=0, precision=precision)


def weights_of(network):
    """Copies of its weights: a pair for each linear layer."""
    linear = [layer for layer in network.layers if isinstance(layer, layers.Linear)]
    return [(np.array(layer.weight), np.array(layer.bias)) for layer in linear]


class Ours:
    """This library, with the methods of a trainer in `peers`."""

    def __init__(self, task, batch, dtype, device, precision="ieee"):
        self.model = network(task.widths, task.activation, dtype, device, precision)
        self.task, self.batch = task, batch
        self.x = task.x if backend.on_host(device) else backend.load(device).to_device(task.x)
        self.loss = losses.MSELoss() if task.y.ndim == 2 else losses.CrossEntropyLoss()
        self.optimizer = optimizers.Adam(lr=task.lr)

    def train(self):
        self.model.fit(
            self.x,
            self.task.y,
            loss=self.loss,
            optimizer=self.optimizer,
            epochs=1,
            batch_size=self.batch,
            verbose=False,
        )

    def train_steps(self):
        x, y = self.x, self.task.y
        for start in range(0, len(x), self.batch):
            self.step(x[start : start + self.batch], y[start : start + self.batch])

    def step(self, x, y):
        self.model.train_step(x, y, self.loss, self.optimizer)

    def launch(self, rows):
        """The kernels' steps on the rows of (steps, batch), and nothing of ``fit`` around them; after `train`."""
        kernels, y = backend.load(self.model.device), self.task.y
        optimizer, steps = self.optimizer, len(rows)
        workspace = self.model.training_workspace(self.loss, self.loss.kernel(y), optimizer, self.batch)
        x, y, order = kernels.to_device(self.x), kernels.to_device(y), rows.ravel()
        coefficients, keys = optimizer.coefficients(optimizer.step_count, steps), self.model.step_keys(steps)
        network, loss, hits = self.model.network, np.zeros(steps), np.zeros(steps, np.int64)

        def call():
            done = kernels.network_train_steps(
                workspace, network.values, network.statistics, optimizer.state, coefficients, keys, x, y, None, order,
                self.batch, loss, hits,
            )  # fmt: skip
            if done < steps:
                raise ValueError(f"step {done} of {steps} had a loss that is not finite")

        return call

    def weights(self):
        return weights_of(self.model)


def random_task(shape, batches, dtype):
    """A task on random data, and the rows of each batch (batches, batch): a classifier's; with one output MSE."""
    widths, activation, batch, _ = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batches * batch, widths[0]), dtype=dtype)
    y = rng.integers(0, widths[-1], len(x)) if widths[-1] > 1 else rng.standard_normal((len(x), 1), dtype=dtype)
    return Task(widths, activation, LR, x, y), rng.permutation(len(x)).reshape(batches, batch)
