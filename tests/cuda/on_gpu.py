"""Everything that needs a GPU, in one call of under 8 minutes; prints a table as it goes, and again at the end.

    python tests/cuda/on_gpu.py [--seconds 460] [--only smoke,steps,…] [--out FOLDER]

Each part is a process of its own with its own time limit, so that one that hangs or crashes leaves the others. What is
worth most comes first: whether kernels run at all, how fast, and where thresholds should be; then the tests.
Kernels that one part compiles the next finds on disk. ``--out`` keeps the output of each part, the figures of the
comparisons and the table, written after every part. The exit code is 0 where every part passed. Where fastbp is not
installed it is, without what it depends on, in a folder that is removed at the end.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RUNS = 20  # that must be equal
LARGE = 2**31 + 2**20  # elements of an array, more than 32 bits with a sign count
COLUMNS = 1 << 16  # of a product of that size
LARGE_BYTES = 24 << 30  # free memory that the large sizes take
TAIL = 3000  # characters of a failed part that are shown
WIDTH = 220  # characters of a line of the table
PATIENCE = 10  # seconds until a killed part is left behind
FEWEST_SECONDS = 5  # that a part is begun with


# ------------------------------------------------------------------------------- parts in this file
def machine():
    """The GPU and what it runs with."""
    import fastbp

    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], check=False)
    fastbp.show_config("cuda")


# ---------------------------------------------------------------------------------------------- smoke
def _layer(shape, precision):
    """A linear layer there and back: the three products and the column sums."""
    from fastbp.kernels import layout

    n, fan_in, fan_out = shape
    gelu, relu = (layout.ACTIVATIONS.index(name) for name in ("gelu", "relu"))

    def run(kernels):
        rng = np.random.default_rng(0)
        x, weight, grad_z, bias = (
            rng.standard_normal(size, dtype=np.float32)
            for size in ((n, fan_in), (fan_in, fan_out), (n, fan_out), (fan_out,))
        )
        out, saved, grad_x, grad_weight, grad_bias = map(np.zeros_like, (grad_z, grad_z, x, weight, bias))
        kernels.linear_forward(x, weight, bias, gelu, 0.0, out, saved, precision)
        kernels.linear_backward_input(grad_z, weight, x, relu, 0.0, grad_x, precision)
        kernels.linear_backward_params(x, grad_z, 0, grad_weight, grad_bias, precision)
        return out, saved, grad_x, grad_weight, grad_bias

    return run


def _elementwise(kernels):
    from fastbp.kernels import layout

    x = np.random.default_rng(0).standard_normal((33, 70), dtype=np.float32)
    forward, backward, probabilities, dropped = (np.zeros_like(x) for _ in range(4))
    tanh = layout.ACTIVATIONS.index("tanh")
    kernels.activation_forward(x, tanh, 0.0, forward)
    kernels.activation_backward(x, forward, tanh, 0.0, backward)
    kernels.softmax(x, probabilities)
    kernels.dropout(x, np.arange(33), 7, 0.5, dropped)
    return forward, backward, probabilities, dropped


def _loss(kernels):
    from fastbp.kernels import layout

    rng = np.random.default_rng(0)
    prediction, labels = rng.standard_normal((33, 10), dtype=np.float32), rng.integers(0, 10, 33)
    loss, hit, grad = np.zeros(33, np.float32), np.zeros(33, np.int64), np.zeros_like(prediction)
    code = layout.LOSSES.index("cross_entropy")
    kernels.loss_forward_backward(code, 0.1, prediction, labels, np.full(33, 1 / 33), loss, hit, grad)
    return loss, hit, grad


def _update(kernels):
    from fastbp.kernels import layout

    values, grad, first = np.random.default_rng(0).standard_normal((3, 999), dtype=np.float32)
    second = np.abs(first)
    coefficients = np.zeros(layout.COEFFICIENTS)
    coefficients[:6] = 1e-3, 0.9, 0.1, 0.999, 1e-3, 1e-8
    kernels.optimizer_step(layout.OPTIMIZERS.index("adam"), coefficients, values, grad, (first, second))
    return values, first, second


def _buffers(kernels):
    """What is done to whole buffers, and rows that are gathered."""
    import fastbp

    model = fastbp.Sequential(fastbp.Linear(6, 16), fastbp.Linear(16, 3), device="reference", seed=0)
    places, values = model.network.program.places, model.network.values
    scaled, copied, cleared = np.zeros_like(values), np.zeros_like(values), values.copy()
    x = np.random.default_rng(0).standard_normal((20, 6), dtype=np.float32)
    gathered = np.zeros((5, 6), np.float32)
    kernels.scale(values, 0.5, scaled)
    kernels.copy(values, copied)
    kernels.clear(cleared)
    kernels.gather(x, np.arange(10)[::2].copy(), gathered)
    norm, finite = kernels.squared_norm(places, values), kernels.all_finite(places, values)
    return scaled, copied, cleared, gathered, np.float64(norm), np.int64(finite)


def _training(in_one_kernel):
    """Losses and predictions of a small network, its steps in one kernel or in a captured graph."""

    def run(kernels):
        import fastbp
        from fastbp.kernels.cuda import steps

        on_gpu = kernels.name == "cuda"
        suits, steps.suits = steps.suits, lambda workspace, n: in_one_kernel
        try:
            rng = np.random.default_rng(0)
            X, y = rng.standard_normal((50, 6), dtype=np.float32), rng.integers(0, 3, 50)
            layers = fastbp.Linear(6, 16), fastbp.ReLU(), fastbp.Dropout(0.2), fastbp.Linear(16, 3)
            model = fastbp.Sequential(*layers, device="cuda" if on_gpu else "reference", seed=0)
            options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(lr=0.01)}
            history = model.fit(X, y, **options, epochs=2, batch_size=12, verbose=False)
        finally:
            steps.suits = suits
        return np.array(history["loss"]), model.predict(X)

    return run


def smoke():
    """One call of every kind of kernel gives what `reference` gives."""
    from fastbp.kernels import cuda, reference
    from tests.contract.host_arrays import HostArrays

    cases = {"elementwise": _elementwise, "loss": _loss, "optimizer": _update, "buffers": _buffers}
    for code, precision in enumerate(cuda.precisions(np.float32)):
        cases[f"layer {precision}, 16-byte rows"] = _layer((36, 20, 24), code)
        cases[f"layer {precision}, odd rows"] = _layer((35, 21, 23), code)
        cases[f"layer {precision}, terms in parts"] = _layer((300, 20, 24), code)
    cases |= {"training, graph": _training(False), "training, one kernel": _training(True)}
    wrong = []
    for name, case in cases.items():
        start = time.perf_counter()
        try:
            found = case(HostArrays(cuda))
            seconds = time.perf_counter() - start
            difference = 0.0
            for one, other in zip(found, case(reference), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
                difference = max(difference, float(np.abs(one - other).max()))
            print(f"{name}: right, to {difference:.0e}, in {seconds:.1f} s", flush=True)
        except Exception as error:
            wrong.append(name)
            traceback.print_exc()
            print(f"{name}: WRONG, {' '.join(str(error).split())[:150]}", flush=True)
    files = list(Path(os.environ.get("FASTBP_CACHE_DIR", "/nowhere")).rglob("*.kernel"))
    print(f"{len(files)} kernels on disk", flush=True)
    if wrong:
        sys.exit(f"wrong: {'; '.join(wrong)}")


def again():
    """A second process finds every kernel of `smoke` on disk, and the driver takes it."""
    folder = Path(os.environ["FASTBP_CACHE_DIR"])
    before = set(folder.rglob("*.kernel"))
    start = time.perf_counter()
    smoke()
    more = {path.name for path in folder.rglob("*.kernel")} - {path.name for path in before}
    print(f"all of smoke from disk: {len(more)} compiled, {time.perf_counter() - start:.1f} s")
    if more:
        sys.exit(f"compiled again: {', '.join(sorted(more))[:300]}")


WARMED = {  # activations, losses and optimizers of the parts in this file and of the comparisons
    "identity", "relu", "gelu", "tanh", "cross_entropy", "mean_squared_error", "adam", "sgd",
}  # fmt: skip


def needed():
    """What of the catalogue these parts launch; a kernel of steps.py is compiled by the network that needs it."""
    from fastbp.kernels.cuda import catalogue

    known = catalogue.kernels([np.float32])
    return [one for one in known if one.part in {None, *WARMED} and not one.name.startswith("steps")]


def warm():
    """Compile what the parts below need, a process a core, so that they find it on disk; tests compile the rest."""
    share, shares = (int(os.environ.get(name, default)) for name, default in (("SHARE", "-1"), ("SHARES", "0")))
    if share >= 0:
        for kernel in needed()[share::shares]:
            kernel.function.compile()
        return
    from fastbp.kernels.cuda import driver

    driver.require()
    cores = max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 16))
    command = [sys.executable, __file__, "--part", "warm"]
    processes = [
        subprocess.Popen(command, env=os.environ | {"SHARE": str(share), "SHARES": str(cores)})
        for share in range(cores)
    ]
    codes = [process.wait() for process in processes]
    print(f"{len(list(Path(os.environ['FASTBP_CACHE_DIR']).rglob('*.kernel')))} kernels on disk")
    sys.exit(max(map(abs, codes)))


# ----------------------------------------------------------------------------------------- thresholds
STEP_WIDTHS, STEP_BATCHES, STEPS = (32, 128, 256, 512), (64, 256, 1024, 4096), 32
# The gradients of a weight of the middle network that the comparison has, and forward products: small, just below a
# cliff of the model and just above it, large.
CUT = ((784, 256, 1024), (256, 128, 1024), (128, 10, 1024), (512, 512, 4096))
PRODUCTS = ((256, 256, 512), (1024, 512, 1024), (2112, 512, 1024), (2176, 512, 1024), (2048, 1024, 1024))
LAUNCHES = 20  # of a kernel in a graph, between two events


def _least(work, times, readings=3):
    """Microseconds of one of ``times`` parts of what ``work()`` launches, by events; the least of some readings."""
    from fastbp.kernels import cuda

    work()
    return 1e6 * min(cuda.elapsed(work) for _ in range(readings)) / times


def _captured(launch):
    """``launch(stream, times)``, launched once, for kernels are loaded then, and `LAUNCHES` times as a graph."""
    from fastbp.kernels.cuda import streams

    launch(streams.stream(), 1)
    return streams.capture(lambda stream: launch(stream, LAUNCHES))


def thresholds():
    """What MOST_WIDTH, MOST_PARAMETERS, MOST_ROWS of steps.py and the model of time in blocking.py should be."""
    failed = _step_thresholds()
    _plans()
    if failed:
        sys.exit(f"{failed} of the steps failed")


def _step_thresholds():
    """A step by launches, by a graph, by the kernel of all steps: microseconds, by events around `STEPS` of them."""
    from fastbp.bench import shapes, trainer
    from fastbp.kernels.cuda import network, steps, streams

    suits, capture = steps.suits, streams.capture
    ways = {
        "launches": (False, lambda launches: lambda: launches(streams.stream())),
        "graph": (False, capture),
        "one kernel": (True, capture),
    }
    failed = 0
    print(f"{'layers @ batch':<26}{'parameters':>11}" + "".join(f"{way:>12}" for way in ways) + "  µs a step; now")
    for width, batch in itertools.product(STEP_WIDTHS, STEP_BATCHES):
        shape, times, now = ((width, width, width, 10), "relu", batch, {}), {}, "-"
        task, rows = trainer.random_task(shape, 4, "float32")
        rows = np.concatenate([rows] * (STEPS // len(rows)))
        for way, (in_one_kernel, captured) in ways.items():
            network.steps.suits, streams.capture = lambda workspace, n: in_one_kernel, captured  # noqa: B023
            try:
                ours = trainer.Ours(task, batch, "float32", "cuda")
                ours.train()
                times[way] = f"{_least(ours.launch(rows), STEPS):.1f}"
                ((*_, workspace),) = ours.model._training_workspaces.values()
                now = "one kernel" if suits(workspace, batch) else "graph"
            except Exception as error:
                print(f"{way}: {' '.join(str(error).split())[:200]}")
                times[way], failed = "failed", failed + 1
            finally:
                network.steps.suits, streams.capture = suits, capture
        parameters = sum(b * (a + 1) for a, b in itertools.pairwise(shape[0]))
        row = f"{shapes.title_of(shape):<26}{parameters:>11}" + "".join(f"{times[way]:>12}" for way in ways)
        print(f"{row}  {now}", flush=True)
    return failed


def _plans():
    """Products by each tile and number of parts: microseconds, captured, and the clock that the model needs for them.

    The model is right where this clock is the same in all rows; a plan should be taken (*) that is the fastest.
    """
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import blocking, driver, gemm, streams
    from fastbp.kernels.cuda.operands import Matrix

    print(f"{'m x n x k':<25}{'precision':<10}plans: µs (MHz); * is taken now")
    products = [("NN", shape) for shape in PRODUCTS] + [("TN", shape) for shape in CUT]
    for precision, (trans, shape) in itertools.product(cuda.precisions(np.float32), products):
        (m, n, k), cut, multiprocessors = shape, trans == "TN", driver.multiprocessors()
        sides = (m, k), (k, n), (m, n)
        a, b, c = (Matrix(cuda.zeros((rows * columns,), np.float32), 0, columns) for rows, columns in sides)
        a = a._replace(ld=m) if cut else a
        parts = cuda.zeros((max(blocking.parts_size(*shape), 1),), np.float32)
        taken = blocking.plan_of(shape, cut, 4, precision, multiprocessors)
        counts = sorted({1, taken.parts, *((4, 8, 16) if cut else ())} & {1, *range(blocking.most_parts(shape) + 1)})
        found = []
        for tile, count in itertools.product(blocking.tiles_of(4, precision), counts):
            terms = -(-k // (count * blocking.TERMS_UNIT)) * blocking.TERMS_UNIT if count > 1 else k
            plan = blocking.Plan(tile, -(-k // terms), terms)

            def launches(stream, trans=trans, shape=shape, of=(a, b, c), precision=precision, plan=plan, parts=parts):
                for _ in range(LAUNCHES):
                    gemm.gemm(trans, shape, *of, stream, precision=precision, plan=plan, parts=parts)

            launches(streams.stream())  # compiles them
            us = _least(streams.capture(launches), LAUNCHES)
            cycles = blocking.predicted_cycles(plan, shape, 4, precision, multiprocessors)
            mark = "*" if plan == taken else ""
            found.append(f"{tile.name}/{plan.parts} {us:.1f} ({cycles / us:.0f}){mark}")
        print(f"{trans} {f'{m} x {n} x {k}':<22}{precision:<10}" + "  ".join(found), flush=True)


def product():
    """Products for a profiler, 4096 x 4096 x 4096: NN in each precision, NT and TN in float32; twice, to warm up."""
    from fastbp.kernels import cuda

    a, b, c = (cuda.zeros((4096, 4096), np.float32) for _ in range(3))
    for _ in range(2):
        for code in range(len(cuda.precisions(np.float32))):
            cuda.linear_forward(a, b, None, 0, 0.0, c, c, code)
        cuda.linear_backward_input(a, b, c, 0, 0.0, c)
        cuda.linear_backward_params(a, b, 0, c, None)
    cuda.synchronize()


# ---------------------------------------------------------------------------------------------- where
WHERE = (  # layers, activation, batch: those of the comparison, with labels
    ((32, 64, 64, 2), "relu", 256, {}),
    ((784, 256, 128, 10), "relu", 1024, {}),
    ((4096, 4096, 4096, 4096), "relu", 1024, {}),
)
WHERE_BATCHES, WHERE_EPOCHS = 16, 8
FUNCTIONS = 14  # of a profile that are shown


def where():
    """Where the time of a step goes: each kernel, what the host does in `fit`, and JAX and PyTorch beside."""
    from fastbp.bench import shapes

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes the memory of the others
    failed = 0
    for shape, precision in itertools.product(WHERE, ("ieee", "tf32")):
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
    """Our trainer on a random task, after its first epoch; and the rows of each batch."""
    from fastbp.bench import trainer

    task, rows = trainer.random_task(shape, WHERE_BATCHES, "float32")
    ours = trainer.Ours(task, shape[2], "float32", "cuda", precision)
    ours.train()
    return ours, rows


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
    by_events = _least(ours.launch(rows), WHERE_BATCHES)
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
        graph = _least(ours.launch(rows), WHERE_BATCHES)
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
    found, launch = [], compiling.Kernel._launch
    compiling.Kernel._launch = lambda kernel, *arguments: found.append((kernel, arguments))
    try:
        workspace.step(run, batch, streams.stream())
    finally:
        compiling.Kernel._launch = launch
    total = 0.0
    for kernel, (grid, block, _, *arguments) in found:
        begin()

        def launched(stream, times, kernel=kernel, grid=grid, block=block, arguments=arguments):
            for _ in range(times):
                kernel[grid, block, stream](*arguments)

        one = _least(_captured(launched), LAUNCHES)
        total += one
        name = kernel.dispatcher.py_func.__qualname__.rpartition(".")[2]
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
    """A step of JAX and of PyTorch's graph, with TF32 where ours has it; by the clock."""
    from fastbp.bench import gpu_peers, peers, trainer

    task, rows = trainer.random_task(shape, WHERE_BATCHES, "float32")
    weights = trainer.weights_of(trainer.network(shape[0], shape[1], "float32", "cpu"))

    def jax():
        import jax as library

        with library.default_matmul_precision("tensorfloat32" if precision == "tf32" else "float32"):
            peer = peers.Jax(task, weights, rows, 1)
            peer.train()
            return _by_clock(peer.train, WHERE_BATCHES)

    def torch():
        class Graph(gpu_peers.TorchGraph):
            tf32 = precision == "tf32"

        peer = Graph(task, weights, rows, 1)
        peer.train()
        return _by_clock(peer.train, WHERE_BATCHES)

    for name, measure in (("JAX", jax), ("PyTorch, graph", torch)):
        try:
            print(f"  {name}: {measure():.1f} µs a step", flush=True)
        except Exception as error:
            print(f"  without {name}: {type(error).__name__}, {' '.join(str(error).split())[:150]}", flush=True)


# ---------------------------------------------------------------------------------------- warpgroups
# Of products by warpgroups: less than a tile, a tile and a panel, tails of all, every place used again and many tiles.
WARPGROUP_SHAPES = ((16, 8, 16), (128, 256, 64), (131, 261, 323), (1500, 2100, 1111))
WARPGROUP_SIZE = 4096  # of m, n and k, where it is timed


def wgmma():
    """Products by warpgroups, which FASTBP_CUDA=wgmma asks for: are they right? Then what each launch takes."""
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import driver, streams, wgmma
    from fastbp.kernels.cuda.operands import Matrix

    driver.require()
    if driver.compute_capability() != wgmma.CAPABILITY:
        print(f"left out: needs compute capability {wgmma.CAPABILITY}, here is {driver.compute_capability()}")
        return
    rng, wrong = np.random.default_rng(0), 0

    def on_device(x):
        return Matrix(cuda.to_device(np.ascontiguousarray(x).ravel()), 0, x.shape[1])

    for (m, n, k), trans in itertools.product(WARPGROUP_SHAPES, ("NN", "NT", "TN")):
        # Small integers: every order of summing gives the same bits.
        a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((m, k), (k, n)))
        stored = on_device(a.T if trans == "TN" else a), on_device(b.T if trans == "NT" else b)
        found = set()
        for _ in range(RUNS):
            c = Matrix(cuda.to_device(np.full(m * n, np.nan, np.float32)), 0, n)
            wgmma.gemm(trans, (m, n, k), *stored, c, streams.stream())
            found.add(cuda.to_host(c.data).tobytes())
        different = np.argwhere(np.frombuffer(found.pop(), np.float32).reshape(m, n) != a @ b)
        right = not len(different) and not found
        wrong += not right
        words = "right" if right else f"WRONG, {len(different)} elements from {different[:1].tolist()}"
        print(f"{trans} {m} x {n} x {k}: {words}; {1 + len(found)} results of {RUNS} runs", flush=True)
    if wrong:
        sys.exit(f"{wrong} products are wrong")

    size = WARPGROUP_SIZE
    a, b = (on_device(rng.standard_normal((size, size), dtype=np.float32)) for _ in range(2))
    c = Matrix(cuda.zeros((size * size,), np.float32), 0, size)
    sizes = (wgmma.packed_size(extent, size, size) for extent in (wgmma.BM, wgmma.BN))
    a_packed, b_packed = (cuda.zeros((elements,), np.int32) for elements in sizes)
    stream, panels = streams.stream(), wgmma.panels_of(size)
    blocks, after = driver.multiprocessors(), wgmma.finish_of(c, wgmma.Epilogue())
    kernel = wgmma.product_kernel("none")
    ways = {
        "A along k": lambda: wgmma.pack(wgmma.BM, True, size, size, a, a_packed, stream),
        "B across k": lambda: wgmma.pack(wgmma.BN, False, size, size, b, b_packed, stream),
        "the product": lambda: kernel[blocks, wgmma.THREADS, stream](size, size, panels, a_packed, b_packed, c, after),
        "all": lambda: wgmma.gemm("NN", (size, size, size), a, b, c, stream),
    }
    for name, launch in ways.items():

        def work(launch=launch):
            for _ in range(LAUNCHES):
                launch()

        print(f"{size} x {size} x {size}, {name}: {_least(work, LAUNCHES):.1f} µs", flush=True)


# ------------------------------------------------------------------------------------------- clusters
CLUSTER_SHAPES = ((32, 64, 64, 1), 256), ((32, 64, 64, 8), 256), ((4, 32, 32, 2), 32), ((10, 46, 46, 10), 128)
CLUSTER_BATCHES, CLUSTER_RUNS, CLUSTER_NETWORKS = 64, 5, 16


def _asking(names):
    """Ask for kernels by name, or for none."""
    os.environ["FASTBP_CUDA"] = names
    return names or "ordinary"


def clusters():
    """Small networks in a thread-block cluster: losses as in the ordinary way, equal runs, microseconds a step."""
    from fastbp.bench import shapes, trainer
    from fastbp.kernels.cuda import cluster

    for widths, batch in CLUSTER_SHAPES:
        shape, losses, times = (widths, "relu", batch, {}), {}, {}
        task, rows = trainer.random_task(shape, CLUSTER_BATCHES, "float32")
        for names in ("", "cluster"):
            way, outcomes = _asking(names), set()
            for _ in range(CLUSTER_RUNS):
                ours = trainer.Ours(task, batch, "float32", "cuda")
                ours.train()
                outcomes.add(ours.model.flat_parameters.tobytes())
            assert len(outcomes) == 1, f"{len(outcomes)} different results of {CLUSTER_RUNS} runs, {way}"
            ((*_, workspace),) = ours.model._training_workspaces.values()
            assert cluster.suits(workspace) == bool(names)
            losses[way] = ours.model.history[-1]["loss"]
            times[way] = _least(ours.launch(rows), len(rows))
        np.testing.assert_allclose(losses["cluster"], losses["ordinary"], rtol=1e-4)
        figures = ", ".join(f"{way} {time:.1f} µs" for way, time in times.items())
        print(f"{shapes.title_of(shape):<26}right, {CLUSTER_RUNS} equal runs; {figures} a step", flush=True)
    _networks_side_by_side()


def _networks_side_by_side():
    """`fit_many` of small networks: seconds one after another in clusters, and side by side; the same bits."""
    import fastbp
    from fastbp.bench import trainer
    from fastbp.kernels.cuda import cluster

    widths, batch = CLUSTER_SHAPES[0]
    task, _ = trainer.random_task((widths, "relu", batch, {}), CLUSTER_BATCHES, "float32")
    _asking("cluster")
    at_once, found = cluster.side_by_side, {}
    for way, threads in {"one after another": lambda: 1, "side by side": at_once}.items():
        cluster.side_by_side = threads
        models = [_network(widths, seed=seed) for seed in range(CLUSTER_NETWORKS)]
        options = {"loss": fastbp.MSELoss(), "batch_size": batch, "epochs": 2}
        start = time.perf_counter()
        fastbp.fit_many(models, task.x, task.y, optimizer=lambda: fastbp.Adam(lr=1e-3), **options)
        seconds = time.perf_counter() - start
        found[way] = [model.flat_parameters.tobytes() for model in models]
        print(f"fit_many, {CLUSTER_NETWORKS} networks {way}, {threads()} at once: {seconds:.3f} s", flush=True)
    cluster.side_by_side = at_once
    assert len(set(map(tuple, found.values()))) == 1, "networks side by side are not those one after another"


# ------------------------------------------------------------------------------------- equal and large
def _network(widths, dtype="float32", seed=0):
    import fastbp

    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [fastbp.Linear(fan_in, fan_out), fastbp.ReLU()]
    return fastbp.Sequential(*layers[:-1], dtype=dtype, device="cuda", seed=seed)


def equal():
    """Runs from the same seed are equal to the bit, whatever makes the steps; a wide network learns as on the CPU."""
    import fastbp
    from fastbp.kernels import cuda

    rng = np.random.default_rng(0)
    for widths, batch in (((32, 64, 64, 8), 256), ((256, 512, 512, 8), 256), ((33, 300, 8), 77)):
        X = rng.standard_normal((1000, widths[0]), dtype=np.float32)
        y = rng.integers(0, widths[-1], len(X))
        outcomes = set()
        for _ in range(RUNS):
            model = _network(widths)
            history = model.fit(
                X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=1e-3), epochs=3, batch_size=batch,
                verbose=False,
            )  # fmt: skip
            outcomes.add((model.flat_parameters.tobytes(), model.predict(X).tobytes(), str(history["loss"])))
        assert len(outcomes) == 1, f"{len(outcomes)} different results of {RUNS} runs of {widths}"
        print(f"{widths} @ {batch}: {RUNS} equal runs")
    X = rng.standard_normal((512, 4096), dtype=np.float32)
    y, losses = rng.integers(0, 10, len(X)), []
    for device in ("cpu", "cuda"):
        model = fastbp.Sequential(
            fastbp.Linear(4096, 4096), fastbp.ReLU(), fastbp.Linear(4096, 10), device=device, seed=0
        )
        options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.SGD(lr=0.01)}
        losses.append(model.fit(X, y, **options, epochs=2, batch_size=128, verbose=False)["loss"])
    difference = float(np.abs(np.subtract(*losses)).max())
    assert difference < 1e-4, losses
    cuda.synchronize()
    print(f"4096-4096-10 @ 128: losses of CPU and GPU differ by {difference:.1e}")


def large():
    """Arrays of more than 2**31 elements: their last elements are right."""
    import fastbp
    from fastbp.kernels import cuda, layout

    free = cuda.memory.free_memory()
    if free < LARGE_BYTES:
        print(f"left out: {free / 2**30:.0f} GiB are free, and {LARGE_BYTES / 2**30:.0f} are needed")
        return
    rng, relu = np.random.default_rng(0), layout.ACTIVATIONS.index("relu")
    last = rng.standard_normal(1000).astype(np.float32)

    values = cuda.empty((1, LARGE), np.float32)
    cuda.memory.to_device(last, cuda.memory.flat(values)[LARGE - 1000 :])
    cuda.activation_forward(values, relu, 0.0, values)
    np.testing.assert_array_equal(cuda.to_host(cuda.memory.flat(values)[LARGE - 1000 :]), np.maximum(last, 0))
    del values
    print("activation: right")

    columns = COLUMNS
    rows = LARGE // columns + 1
    x, weight = rng.standard_normal((rows, 8), dtype=np.float32), rng.standard_normal((8, columns), dtype=np.float32)
    out = cuda.empty((rows, columns), np.float32)
    cuda.linear_forward(cuda.to_device(x), cuda.to_device(weight), None, relu, 0.0, out, out)
    found = cuda.to_host(cuda.memory.flat(out)[(rows - 1) * columns :])
    np.testing.assert_allclose(found, np.maximum(x[-1] @ weight, 0), rtol=1e-5, atol=1e-5)
    del out
    print("product: right")

    features = 64
    rows = LARGE // features
    X, tail = cuda.empty((rows, features), np.int8), rng.integers(-9, 9, (500, features), dtype=np.int8)
    cuda.memory.to_device(tail.reshape(-1), cuda.memory.flat(X)[(rows - 500) * features :])
    model = _network((features, 16, 3))
    workspace = cuda.InferenceWorkspace(model.program, model.dtype)
    out = cuda.empty((rows, 3), np.float32)
    cuda.network_forward(workspace, model.network.values, model.network.statistics, X, out)
    np.testing.assert_array_equal(cuda.to_host(out[rows - 500 :]), model.predict(tail))
    print("predict: right")

    y, other = rng.integers(0, 3, 500), _network((features, 16, 3))
    labels = cuda.empty(rows, np.int64)
    cuda.memory.to_device(y, labels[rows - 500 :])
    optimizer = fastbp.SGD(lr=0.1)
    expected = other.fit(
        tail, y, loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, shuffle=False, batch_size=500, verbose=False
    )
    loss, hits = np.zeros(1), np.zeros(1, np.int64)
    arguments = layout.LOSSES.index("cross_entropy"), 0.0, layout.OPTIMIZERS.index("sgd")
    workspace = cuda.TrainingWorkspace(model.program, model.dtype, 500, *arguments)
    done = cuda.network_train_steps(
        workspace, model.network.values, model.network.statistics, (), optimizer.coefficients(0, 1),
        np.zeros(1, np.uint64), X, labels, None, np.arange(rows - 500, rows), 500, loss, hits,
    )  # fmt: skip
    assert (done, loss[0]) == (1, expected[0]["loss"])
    assert model.flat_parameters.tobytes() == other.flat_parameters.tobytes()
    print("steps: right")


# ------------------------------------------------------------------------------------------- programs
def _pytest(*arguments):
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _sanitizer():
    found = shutil.which("compute-sanitizer")
    if found is None:
        return None
    return [found, "--tool", "memcheck", "--error-exitcode", "9", *_pytest("-x", "tests/cuda/test_steps.py")]


METRICS = {  # of ncu, and what they are called here
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM throughput",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM throughput",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "achieved occupancy",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "of them in shared memory",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": "passes of loads from it",
    "launch__registers_per_thread": "registers",
}


def _profile():
    found = shutil.which("ncu")
    if found is None:
        return None
    skip = ["--kernel-name", "regex:gemm", "--launch-skip", "5", "--launch-count", "5"]
    return [found, *skip, "--metrics", ",".join(METRICS), sys.executable, __file__, "--part", "product"]


def _contract():
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    return _pytest(*workers, "tests/contract/test_contract.py")


HERE = (  # functions of this file
    "machine", "smoke", "again", "where", "thresholds", "clusters", "warm", "product", "wgmma", "equal", "large",
)  # fmt: skip
COMPARISONS = ("steps", "gemm", "gemm by wgmma")


def parts(folder):
    """(name, command or None where it is not installed, most seconds), the most valuable first."""
    this = [sys.executable, __file__, "--part"]
    compare = [sys.executable, "-m", "fastbp", "compare", "--device", "cuda", "--quick"]
    return [
        ("machine", [*this, "machine"], 40),
        ("warm", [*this, "warm"], 75),
        ("smoke", [*this, "smoke"], 90),
        ("again", [*this, "again"], 40),
        ("where", [*this, "where"], 80),
        ("gemm", [*compare, "--json", str(folder / "gemm.json"), "--what", "gemm"], 60),
        ("steps", [*compare, "--json", str(folder / "steps.json"), "--what", "steps"], 90),
        ("wgmma", [*this, "wgmma"], 60),
        (
            "gemm by wgmma",
            ["env", "FASTBP_CUDA=wgmma", *compare, "--json", str(folder / "gemm by wgmma.json"), "--what", "gemm"],
            60,
        ),
        ("thresholds", [*this, "thresholds"], 90),
        ("clusters", [*this, "clusters"], 60),
        ("models in clusters", _pytest("tests/cuda/test_cluster.py"), 60),
        ("models and steps", _pytest("tests/cuda/test_front.py", "tests/cuda/test_steps.py"), 120),
        ("exchange", _pytest("tests/cuda/test_exchange.py", "tests/cuda/test_pieces.py"), 60),
        ("equal", [*this, "equal"], 60),
        ("profile", _profile(), 60),
        ("products", _pytest("tests/cuda/test_gemm.py"), 60),
        ("large", [*this, "large"], 60),
        ("contract", _contract(), 150),
        ("sanitizer", _sanitizer(), 90),
    ]


# ---------------------------------------------------------------------------------------------- table
def run(command, seconds, packages, path):
    """The outcome of a part whose output goes to a file; it uses the packages and the kernels of a folder."""
    places = os.pathsep.join(filter(None, (str(packages), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "FASTBP_TEST_DEVICES": "cuda", "PYTHONPATH": places, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1", "FASTBP_CACHE_DIR": str(packages / "kernels-on-disk"), "FASTBP_CACHE": "1",
    }  # fmt: skip
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    with path.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return "passed" if code == 0 else "too long" if code is None else f"FAILED ({code})"


def _end(process):
    """A process and those that it started; one that hangs in the driver is left behind."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    process.kill()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end: what follows shares the GPU with it", flush=True)


def install(folder):
    """Into a folder, where the library is not installed."""
    probe = [sys.executable, "-P", "-c", "import fastbp.kernels, importlib.metadata as m; m.version('fastbp')"]
    if subprocess.run(probe, cwd=folder, capture_output=True).returncode == 0:
        return
    source = folder / "source"
    source.mkdir()
    for name in ("fastbp", "kernels"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True)


def lines_of(name, outcome, output, folder):
    """What the table says of a part; of one that was ended, what it had said until then."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    report = folder / f"{name}.json"
    if name in COMPARISONS and report.exists():
        return _compared(name.split()[0], json.loads(report.read_text())) + ([] if outcome == "passed" else lines[-1:])
    if name == "profile":
        return _profiled(lines) or lines[-1:]
    if name in HERE and outcome in ("passed", "too long"):
        return lines
    if name == "smoke":
        return [line for line in lines if ": right, " in line or ": WRONG, " in line] or lines[-1:]
    return lines[-1:]


def _compared(what, report):
    found = []
    for result in report.get(what, ()):
        ours = f"{result['title']:<26}{result['us']:>10.1f} µs"
        if what == "gemm":
            ours = f"{result['name']} {ours}{result['flops'] / result['us'] / 1e6:>8.1f} TFLOP/s"
        if "events" in result["also_us"]:
            ours += f", by events {result['also_us']['events']:.1f}"
        for peer, figures in result["peers"].items():
            ours += f"   {peer} {figures['us']:.1f} µs, ratio {figures['ratio']:.2f}"
            ours += f" (aim {figures['target_ratio']:g})" if figures["target_ratio"] else ""
            if "events" in figures["also_ratio"]:
                ours += f", by events {figures['also_ratio']['events']:.2f}"
        found += [ours, *(f"without {peer}: {reason}" for peer, reason in result["left_out"].items())]
    return found


def _profiled(lines):
    """A line for each kernel that ncu has measured: its name, then the metrics."""
    found = []
    for line in lines:
        words = line.split()
        if words and words[0] in METRICS and found:
            unit = words[1] if len(words) == 3 else ""
            found[-1] += f"   {METRICS[words[0]]} {words[-1]} {unit}".rstrip()
        elif line.startswith(" ") and (name := re.search(r"gemm_(NN|NT|TN)_\w+?(?=B\d+v|\b)", words[0])):
            found.append(name[0])
    return found


def table_row(name, outcome, seconds, lines):
    """The lines of a part in the table."""
    first, *others = lines or [""]
    return "\n".join(
        [f"{name:<18}{outcome:<14}{seconds:>5.0f} s  {first[:WIDTH]}".rstrip()]
        + [f"{'':<41}{line[:WIDTH]}" for line in others]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=460, help="for everything together (%(default)s)")
    parser.add_argument("--only", help="names of parts, separated by commas")
    parser.add_argument("--out", type=Path, help="a folder for outputs, figures and the table")
    parser.add_argument("--part", choices=HERE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return globals()[options.part]()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the table
    begin, rows = time.monotonic(), []
    packages = Path(tempfile.mkdtemp())
    folder = (options.out or packages / "out").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known = parts(folder)
    wanted = options.only.split(",") if options.only else [name for name, _, _ in known]
    if unknown := set(wanted) - {name for name, _, _ in known}:
        parser.error(f"--only {', '.join(sorted(unknown))}: expected {', '.join(name for name, _, _ in known)}")
    try:
        install(packages)
        for name, command, seconds in known:
            if name not in wanted:
                continue
            path, start = folder / f"{name.replace(' ', '-')}.txt", time.monotonic()
            left = options.seconds - (start - begin)
            if command is None or left < FEWEST_SECONDS:
                rows.append((name, "not installed" if command is None else "no time left", 0, []))
            else:
                outcome = run(command, min(seconds, left), packages, path)
                output = path.read_text(errors="replace")
                rows.append((name, outcome, time.monotonic() - start, lines_of(name, outcome, output, folder)))
                if outcome.startswith("FAILED"):
                    print(output[-TAIL:], flush=True)
            print(table_row(*rows[-1]), flush=True)
            (folder / "table.txt").write_text("\n".join(table_row(*row) for row in rows) + "\n")
    finally:  # whatever ends this, the table comes
        shutil.rmtree(packages / "kernels-on-disk", ignore_errors=True)
        print("\n" + "-" * 100)
        for row in rows:
            print(table_row(*row))
        if options.out:
            print(f"everything is in {folder}", flush=True)
        shutil.rmtree(packages, ignore_errors=True)
    return int(any(outcome not in ("passed", "not installed") for _, outcome, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
