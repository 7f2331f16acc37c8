"""What FASTBP_CUDA asks for: products by warpgroups, and steps in a cluster. Right? How fast?"""

import itertools
import os
import sys
import time
from functools import partial

import numpy as np

from .tools import LAUNCHES, RUNS, least, network

# -------------------------------------------------------------------------------------- stored factors
# Products of stored factors: less than a tile, a tile and a panel, tails of all, places used again and many tiles.
WARPGROUP_SHAPES = ((16, 8, 16), (128, 256, 64), (131, 261, 323), (1500, 2100, 1111))
WARPGROUP_SIZE = 4096  # of m, n and k, where it is timed


def wgmma():
    """Products of stored factors, by warpgroups and by warps: are they right? Then what each launch takes."""
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import ahead, blocking, driver, panel_gemm, panels, streams
    from fastbp.kernels.cuda.operands import Matrix
    from fastbp.kernels.cuda.panel_tiles import Factors

    driver.require()
    ways = [way for way in panel_gemm.WAYS if way.runs_on(driver.compute_capability())]
    ahead.compile_all([one for way in ways for form in panels.FORMS for one in panel_gemm.kernels(way, form, "none")])
    rng, wrong = np.random.default_rng(0), 0

    def on_device(x):
        return Matrix(cuda.to_device(np.ascontiguousarray(x).ravel()), 0, x.shape[1])

    cases = itertools.product(ways, panels.FORMS, WARPGROUP_SHAPES, ("NN", "NT", "TN"))
    for way, precision, (m, n, k), trans in cases:
        # Small integers: every order of summing gives the same bits.
        a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((m, k), (k, n)))
        if precision == "bf16x3":  # 257 takes two numbers; where both factors do, low by low is left out
            a[:, ::2] *= 257
            b[1::2] *= 257
        stored = on_device(a.T if trans == "TN" else a), on_device(b.T if trans == "NT" else b)
        found = set()
        for _ in range(RUNS):
            c = Matrix(cuda.to_device(np.full(m * n, np.nan, np.float32)), 0, n)
            panel_gemm.gemm(trans, (m, n, k), *stored, c, streams.stream(), precision=precision, way=way)
            found.add(cuda.to_host(c.data).tobytes())
        different = np.argwhere(np.frombuffer(found.pop(), np.float32).reshape(m, n) != a @ b)
        right = not len(different) and not found
        wrong += not right
        words = "right" if right else f"WRONG, {len(different)} elements from {different[:1].tolist()}"
        print(
            f"{way.NAME} {precision} {trans} {m} x {n} x {k}: {words}; {1 + len(found)} results of {RUNS} runs",
            flush=True,
        )
    if wrong:
        sys.exit(f"{wrong} products are wrong")

    size = WARPGROUP_SIZE
    a, b = (on_device(rng.standard_normal((size, size), dtype=np.float32)) for _ in range(2))
    c = Matrix(cuda.zeros((size * size,), np.float32), 0, size)
    stream, shape = streams.stream(), (size, size, size)
    tiles = [(way, tile) for way in ways for tile in way.TILES]
    for precision, (way, tile) in itertools.product(panels.FORMS, tiles):
        memory = [cuda.zeros((panels.room(precision, size, size),), np.int32) for _ in range(6)]
        (a_along, a_across), (b_along, b_across), made = (
            panels.Stored(*(panels.Panels(array, 0, size) for array in memory[first : first + 2]))
            for first in (0, 2, 4)
        )
        plan = blocking.PanelPlan(tile, 1, panels.panels_of(precision, size))
        by = partial(panel_gemm.gemm, precision=precision, plan=plan, way=way)
        factors = Factors(a_along, b_across)
        launches = {
            "A both ways": (panels.store, precision, size, size, a, panels.Stored(a_along, a_across), stream),
            "B both ways": (panels.store, precision, size, size, b, panels.Stored(b_along, b_across), stream),
            "the product": (partial(by, factors=factors), "NN", shape, a, b, c, stream),
            "the product, stored both ways": (
                partial(by, factors=factors._replace(made=made)), "NN", shape, a, b, c, stream,
            ),
            "all": (by, "NN", shape, a, b, c, stream),
        }  # fmt: skip
        for name, (launch, *arguments) in launches.items():

            def work(launch=launch, arguments=arguments):
                for _ in range(LAUNCHES):
                    launch(*arguments)

            print(
                f"{way.NAME} {precision} {tile.name} {size} x {size} x {size}, {name}: {least(work, LAUNCHES):.1f} µs",
                flush=True,
            )


# ------------------------------------------------------------------------------------------- clusters
CLUSTER_SHAPES = (
    ((32, 64, 64, 1), 256),
    ((32, 64, 64, 1), 512),
    ((32, 64, 64, 8), 256),
    ((4, 32, 32, 2), 32),
    ((10, 46, 46, 10), 128),
)
CLUSTER_BATCHES, CLUSTER_RUNS, CLUSTER_NETWORKS = 64, 5, 16


def asking(names):
    """Ask for kernels by name, or for none."""
    os.environ["FASTBP_CUDA"] = names


def clusters():
    """Small networks in a thread-block cluster: losses as in the ordinary way, equal runs, microseconds a step.

    By each number of blocks, of which the kernel should choose (*) the faster one; in each precision.
    """
    from fastbp.bench import shapes, trainer
    from fastbp.kernels.cuda import cluster, cluster_plan

    blocks_of = cluster.blocks_of
    for (widths, batch), precision in itertools.product(CLUSTER_SHAPES, cluster_plan.TILES):
        shape, losses, times = (widths, "relu", batch, {}), {}, {}
        task, rows = trainer.random_task(shape, CLUSTER_BATCHES, "float32")
        for blocks in (0, cluster_plan.FEW_BLOCKS, cluster_plan.MANY_BLOCKS):
            asking("cluster" if blocks else "")
            cluster.blocks_of, outcomes = lambda workspace, blocks=blocks: (blocks,), set()
            for _ in range(CLUSTER_RUNS):
                ours = trainer.Ours(task, batch, "float32", "cuda", precision)
                ours.train()
                outcomes.add(ours.model.flat_parameters.tobytes())
            assert len(outcomes) == 1, f"{len(outcomes)} different results of {CLUSTER_RUNS} runs, {blocks} blocks"
            ((*_, workspace),) = ours.model._training_workspaces.values()
            assert bool(workspace.plan) == bool(blocks), f"no room for {blocks} blocks"
            losses[blocks] = ours.model.history[-1]["loss"]
            way = f"{blocks} blocks{'*' * (blocks_of(workspace)[0] == blocks)}" if blocks else "ordinary"
            times[way] = least(ours.launch(rows), len(rows))
        cluster.blocks_of = blocks_of
        np.testing.assert_allclose(list(losses.values()), losses[0], rtol=1e-4 if precision == "ieee" else 1e-3)
        figures = ", ".join(f"{way} {time:.1f} µs" for way, time in times.items())
        title = f"{shapes.title_of(shape)}, {precision}"
        print(f"{title:<32}right, {CLUSTER_RUNS} equal runs; {figures} a step", flush=True)
    _networks_side_by_side()


def _networks_side_by_side():
    """`fit_many` of small networks: seconds one after another in clusters, and side by side; the same bits."""
    import fastbp
    from fastbp.bench import trainer
    from fastbp.kernels.cuda import cluster

    widths, batch = CLUSTER_SHAPES[0]
    task, _ = trainer.random_task((widths, "relu", batch, {}), CLUSTER_BATCHES, "float32")
    asking("cluster")
    at_once, found = cluster.side_by_side, {}
    for way, threads in {"one after another": lambda: 1, "side by side": at_once}.items():
        cluster.side_by_side = threads
        models = [network(widths, seed=seed) for seed in range(CLUSTER_NETWORKS)]
        options = {"loss": fastbp.MSELoss(), "batch_size": batch, "epochs": 2}
        start = time.perf_counter()
        fastbp.fit_many(models, task.x, task.y, optimizer=lambda: fastbp.Adam(lr=1e-3), **options)
        seconds = time.perf_counter() - start
        found[way] = [model.flat_parameters.tobytes() for model in models]
        print(f"fit_many, {CLUSTER_NETWORKS} networks {way}, {threads()} at once: {seconds:.3f} s", flush=True)
    cluster.side_by_side = at_once
    assert len(set(map(tuple, found.values()))) == 1, "networks side by side are not those one after another"
