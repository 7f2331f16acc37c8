"""``fit_many``: independent networks trained at once, beside those of a peer."""

import numpy as np

from .. import losses, many, optimizers
from . import peers
from .agreement import UPDATE_TOLERANCE, check_same, update_difference
from .clocks import Clock
from .measure import Case, Rival
from .shapes import step_flops, title_of
from .trainer import Ours, network, random_task, weights_of
from .training_steps import BATCHES

MANY = 32  # networks


def many_case(name, shape, names, protocol, count=MANY, batches=BATCHES) -> Case:
    """`fit_many`: independent networks on the same data; the time is that of one step of one network."""
    widths, activation, batch, _ = shape
    task, rows = random_task(shape, batches, protocol.dtype)
    networks = [network(widths, activation, protocol.dtype, protocol.device) for _ in range(count)]
    optimizer = [optimizers.Adam(lr=task.lr) for _ in networks]
    loss, rng, rivals = losses.CrossEntropyLoss(), np.random.default_rng(1), {}

    def ours():
        many.fit_many(networks, task.x, task.y, loss=loss, optimizer=optimizer, epochs=1, batch_size=batch)

    for peer in names:
        trainer, before = peers.MANY_TRAINERS[peer], weights_of(networks[0])
        stacked = [(np.stack([weight] * count), np.stack([bias] * count)) for weight, bias in before]
        first = trainer(task, stacked, np.stack([rows[:1]] * count), protocol.threads)
        first.train()
        step = Ours(task, batch, protocol.dtype, protocol.device)
        step.step(task.x[rows[0]], task.y[rows[0]])
        theirs = [(weight[-1], bias[-1]) for weight, bias in first.weights()]
        difference = update_difference(before, step.weights(), theirs)
        check_same(f"{name}: one step of {peer}", difference, UPDATE_TOLERANCE[protocol.dtype], "the update")
        each = np.stack([rng.permutation(len(task.x)).reshape(rows.shape) for _ in networks])
        running = trainer(task, stacked, each, protocol.threads)
        clock = Clock(running.train, count * batches)
        rivals[peer] = Rival(clock, running.version, running.how, 1.5, {"difference": difference})
    return Case(
        "M1", f"{count} x {title_of(shape)}", Clock(ours, count * batches), rivals, flops=step_flops(widths, batch)
    )


def many_cases(shapes, names, protocol):
    """Networks of each shape."""
    for name, shape in shapes.items():
        yield many_case(name, shape, names, protocol)
