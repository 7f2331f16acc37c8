"""Where the time of a step goes."""

import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np

from .tools import LAUNCHES, captured, least

WHERE = (  # layers, activation, batch: those of the comparison, with labels
    ((32, 64, 64, 2), "relu", 256, {}),
    ((784, 256, 128, 10), "relu", 1024, {}),
    ((4096, 4096, 4096, 4096), "relu", 1024, {}),
)
WHERE_BATCHES, WHERE_EPOCHS = 16, 8
WHERE_STEPS = 128  # of a call, timed by events: most of them in graphs of many steps
FUNCTIONS = 14  # of a profile that are shown


def where():
    """Where the time of a step goes: each kernel, what the host does in `fit`, and JAX and PyTorch beside."""
    _where(WHERE, ("ieee", "tf32"))


def stored():
    """The same of larger networks by products of stored factors, for which FASTBP_CUDA asks; JAX and PyTorch alike."""
    os.environ["FASTBP_CUDA"] = "panels,wgmma"
    _where(WHERE[1:], ("tf32", "bf16"))


def _where(networks, precisions):
    from fastbp.bench import shapes

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes the memory of the others
    failed = 0
    for shape, precision in itertools.product(networks, precisions):
        print(f"{shapes.title_of(shape)}, {precision}", flush=True)
        for part in (_step_by_clock_and_events, _step_by_kernels, _host_of_fit, _peers_of_a_step):
            try:
                part(shape, precision)
            except Exception as error:
                failed += part is not _peers_of_a_step  # which need not be installed
                print(f"  {part.__name__}: {type(error).__name__}, {' '.join(str(error).split())[:200]}", flush=True)
    if failed:
        sys.exit(f"{failed} measurements failed")


def _ours(shape, precision):
    """Our trainer on a random task, after its first epoch; and the rows of the batches of `WHERE_STEPS` steps."""
    from fastbp.bench import trainer

    task, rows = trainer.random_task(shape, WHERE_BATCHES, "float32")
    ours = trainer.Ours(task, shape[2], "float32", "cuda", precision)
    ours.train()
    return ours, np.concatenate([rows] * (WHERE_STEPS // WHERE_BATCHES))


def _fit(ours, epochs=WHERE_EPOCHS):
    options = {"loss": ours.loss, "optimizer": ours.optimizer, "batch_size": ours.batch, "verbose": False}
    ours.model.fit(ours.x, ours.task.y, epochs=epochs, **options)


def _by_clock(work, steps, readings=3):
    """Microseconds of a step of ``work()``; the least of some readings."""
    times = []
    for _ in range(readings):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / steps


def _step_by_clock_and_events(shape, precision):
    """A step in `fit` by the clock of the host, in the kernels' call by events, and in `train_step` by the clock."""
    ours, rows = _ours(shape, precision)
    _fit(ours, 2)
    by_clock = _by_clock(lambda: _fit(ours), WHERE_BATCHES * WHERE_EPOCHS)
    by_events = least(ours.launch(rows), WHERE_STEPS)
    ours.train_steps()
    single = _by_clock(ours.train_steps, WHERE_BATCHES)
    print(f"  a step: fit {by_clock:.1f} µs, by events {by_events:.1f}, train_step {single:.1f}", flush=True)


def _step_by_kernels(shape, precision):
    """Each launch of a step, `LAUNCHES` times in a graph of its own; and all of them, a step after another."""
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import compiling, network, steps, streams

    suits, steps.suits = steps.suits, lambda workspace, n: False
    try:
        ours, rows = _ours(shape, precision)
        model, optimizer, batch, y = ours.model, ours.optimizer, ours.batch, ours.task.y
        graph = least(ours.launch(rows), WHERE_STEPS)
    finally:
        steps.suits = suits
    workspace = model.training_workspace(ours.loss, ours.loss.kernel(y), optimizer, batch)
    many = 8 * LAUNCHES  # steps: the kernel that ends a step goes on to the next each time

    def begin():
        order = np.resize(rows, (many, batch)).ravel()
        coefficients = optimizer.coefficients(optimizer.step_count, many)
        workspace.record.begin(coefficients, np.zeros(many, np.uint64), order, batch, many)

    begin()
    values, statistics = model.network.values, model.network.statistics
    run = network.Run(values, statistics, optimizer.state, ours.x, cuda.to_device(y), None)
    found, launching = [], compiling.Kernel.__getitem__
    compiling.Kernel.__getitem__ = lambda kernel, configuration: (
        lambda *arguments: found.append((kernel, (*configuration, *arguments)))
    )
    try:
        workspace.step(run, batch, streams.stream())
    finally:
        compiling.Kernel.__getitem__ = launching
    total = 0.0
    for kernel, (grid, block, _, *arguments) in found:
        begin()

        def launched(stream, times, kernel=kernel, grid=grid, block=block, arguments=arguments):
            for _ in range(times):
                kernel[grid, block, stream](*arguments)

        one = least(captured(launched), LAUNCHES)
        total += one
        name = kernel.function.__qualname__.rpartition(".")[2]
        print(f"  {one:>9.1f} µs  {name:<44} {grid} x {block}", flush=True)
    print(f"  {total:>9.1f} µs  {len(found)} launches alone; a step as a graph {graph:.1f} µs", flush=True)


def _host_of_fit(shape, precision):
    """What the host does in an epoch of `fit`: how often it asks the GPU for something, and its functions by time."""
    import cProfile
    import pstats

    from fastbp.kernels.cuda import compiling, memory, streams

    ours, _ = _ours(shape, precision)
    _fit(ours, 2)
    counts, places = {}, [(compiling, "launch"), (streams, "wait")]
    places += [(memory, name) for name in ("to_device", "to_host", "fetch", "empty", "pinned")]
    before = [getattr(module, name) for module, name in places]

    def counting(name, function):
        def counted(*arguments, **options):
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                calls, seconds = counts.get(name, (0, 0.0))
                counts[name] = calls + 1, seconds + time.perf_counter() - begin

        return counted

    for (module, name), function in zip(places, before, strict=True):
        setattr(module, name, counting(name, function))
    try:
        _fit(ours)
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)
    told = (f"{name} {calls} in {1e6 * seconds:.0f} µs" for name, (calls, seconds) in counts.items())
    print(f"  {WHERE_EPOCHS} epochs of {WHERE_BATCHES} steps: {', '.join(told)}", flush=True)
    profile = cProfile.Profile()
    profile.runcall(_fit, ours)
    found = pstats.Stats(profile).stats.items()
    for (file, line, name), (_, calls, own, whole, _) in sorted(found, key=lambda item: -item[1][2])[:FUNCTIONS]:
        place = f"{Path(file).name}:{line} {name}"
        print(f"  {1e6 * own:>9.0f} µs  {place:<60.60} {calls:>6} calls, {1e6 * whole:.0f} µs with what they call")


def _peers_of_a_step(shape, precision):
    """A step of JAX and of PyTorch's graph, in TF32, or BF16 by their own means, where ours is; by the clock."""
    from fastbp.bench import gpu_peers, peers, trainer

    task, rows = trainer.random_task(shape, WHERE_BATCHES, "float32")
    weights = trainer.weights_of(trainer.network(shape[0], shape[1], "float32", "cpu"))

    def jax():
        import jax as library

        precisions = {"ieee": "float32", "tf32": "tensorfloat32", "bf16": "bfloat16"}
        with library.default_matmul_precision(precisions[precision]):
            peer = peers.Jax(task, weights, rows, 1)
            peer.train()
            return _by_clock(peer.train, WHERE_BATCHES)

    def torch():
        import torch as library

        class Graph(gpu_peers.TorchGraph):
            tf32 = precision == "tf32"

        with library.autocast("cuda", library.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            peer = Graph(task, weights, rows, 1)  # captures its step
        peer.train()
        return _by_clock(peer.train, WHERE_BATCHES)

    for name, measure in (("JAX", jax), ("PyTorch, graph", torch)):
        try:
            print(f"  {name}: {measure():.1f} µs a step", flush=True)
        except Exception as error:
            print(f"  without {name}: {type(error).__name__}, {' '.join(str(error).split())[:150]}", flush=True)
