"""Train steps of ours beside those of a peer: one after the other, by width, and while a core is busy.

A step of ours is an epoch of ``model.fit`` divided by its batches, everything included; a peer takes as many steps.
"""

import numpy as np

from .. import backend
from . import gpu_peers, peers
from .agreement import ROUNDED_UPDATE_TOLERANCE, UPDATE_TOLERANCE, check_same, update_difference
from .clocks import Clock, timed
from .measure import Case, Rival
from .process import busy_core
from .shapes import step_flops, title_of
from .trainer import Ours, random_task

BATCHES = 64  # in an epoch
EPOCH_FLOPS = 128e9  # larger epochs have fewer batches: about 2 s at 64 GFLOP/s
FEWEST_BATCHES = 16  # or what an epoch of fit() costs once would weigh more than it ever does
LAUNCHED_FLOPS, MOST_LAUNCHED = 2e12, 1024  # of steps between two events: about 50 ms, and so many at most
ONE_THREAD = "one thread"
FLOAT32 = "ours, float32"


def step_case(name, shape, trainers, protocol, batches=None) -> Case:
    """Train steps of one shape.

    Parameters
    ----------
    name : str
    shape : tuple
        As in `SHAPES`.
    trainers : list of classes
        As in `peers`.
    protocol : Protocol
    batches : int, optional
        In an epoch; by default as `BATCHES` and `EPOCH_FLOPS` say.

    Raises
    ------
    ValueError
        A first step of a peer from the same weights is another one than ours.
    """
    widths, _, batch, targets = shape
    flops = step_flops(widths, batch)
    batches = batches or min(BATCHES, max(FEWEST_BATCHES, int(EPOCH_FLOPS / flops)))
    task, rows = random_task(shape, batches, protocol.dtype)

    how = protocol.dtype, protocol.device, protocol.precision
    ours, warmup = timed(lambda: _started(Ours(task, batch, *how)))
    facts = {"widths": widths, "activation": task.activation, "batch": batch, "batches": batches}
    facts["ours_warmup_seconds"] = warmup
    rivals, left_out, tolerance = {}, {}, UPDATE_TOLERANCE[protocol.dtype]
    if protocol.precision != "ieee":
        targets, tolerance = {}, ROUNDED_UPDATE_TOLERANCE
        exact = _started(Ours(task, batch, protocol.dtype, protocol.device))
        rivals[FLOAT32] = Rival(Clock(exact.train, batches), "", "this library in float32")
    for trainer in trainers:
        if task.y.ndim == 2 and backend.on_host(protocol.device):
            left_out[trainer.name] = "it is compared as a classifier only"
            continue
        try:
            difference = _first_step_difference(trainer, task, rows[:1], protocol)
        except ValueError as error:
            left_out[trainer.name] = str(error)
            continue
        check_same(f"{name}: one step of {trainer.name}", difference, tolerance, "the update")
        weights = Ours(task, batch, *how).weights()
        peer, warmup = timed(lambda: _started(trainer(task, weights, rows, protocol.threads)))  # noqa: B023
        rivals[trainer.name] = Rival(
            Clock(peer.train, batches),
            peer.version,
            peer.how,
            targets.get(trainer.name),
            {"warmup_seconds": warmup, "difference": difference},
        )
        if not backend.on_host(protocol.device):
            rivals[trainer.name].also["events"] = Clock(peer.launch, batches, gpu_peers.elapsed)
    also = {"train_step": Clock(ours.train_steps, batches)}
    if not backend.on_host(protocol.device):
        times = max(1, min(MOST_LAUNCHED, int(LAUNCHED_FLOPS / flops)) // batches)
        launch = ours.launch(np.concatenate([rows] * times))  # the rows of an epoch again and again
        also["events"] = Clock(launch, batches * times, backend.load(protocol.device).elapsed)
    return Case(
        name,
        title_of(shape),
        Clock(ours.train, batches),
        rivals,
        flops=flops,
        also=also,
        left_out=left_out,
        facts=facts,
        shares_cores=not backend.on_host(protocol.device),
    )


def _started(trainer):
    """After its first epoch everything is compiled and every buffer is there."""
    trainer.train()
    return trainer


def _first_step_difference(trainer, task, rows, protocol):
    """Size of the difference of two first steps, relative to the step."""
    ours = Ours(task, rows.shape[1], protocol.dtype, protocol.device, protocol.precision)
    before = ours.weights()
    peer = trainer(task, before, rows, protocol.threads)
    peer.train()
    ours.step(task.x[rows[0]], task.y[rows[0]])
    return update_difference(before, ours.weights(), peer.weights())


def step_cases(shapes, names, protocol):
    """Steps of each shape."""
    on_host = backend.on_host(protocol.device)
    trainers = peers.TRAINERS | peers.ROUNDED_TRAINERS if on_host else gpu_peers.TRAINERS
    for name, shape in shapes.items():
        yield step_case(name, shape, [trainers[peer] for peer in names], protocol)


def thread_case(name, shape, trainers, protocol) -> Case:
    """Steps with as many threads as the library chooses, beside one thread."""
    case, kernels = step_case(name, shape, trainers, protocol), backend.load(protocol.device)
    epoch = case.ours.call

    def with_threads(threads):
        def call():
            kernels.set_num_threads(threads)
            epoch()

        return Clock(call, case.ours.units)

    case.ours, case.also = with_threads(None), {}
    case.rivals[ONE_THREAD] = Rival(with_threads(1), "", "this library on one thread", 1 / 1.03)
    return case


def width_cases(shapes, names, protocol):
    """Time must grow smoothly with the width, and no number of threads be slower than one."""
    make = thread_case if protocol.threads > 1 else step_case
    for name, shape in shapes.items():
        yield make(name, shape, [peers.TRAINERS[peer] for peer in names], protocol)


def busy_cases(shapes, names, protocol):
    """Another process takes one of the cores: at most 1.3 times the time of one thread."""
    for name, shape in shapes.items():
        case = thread_case(name, shape, [], protocol)
        case.rivals[ONE_THREAD].target = 1 / 1.3
        case.during, case.shares_cores = busy_core, True
        yield case
