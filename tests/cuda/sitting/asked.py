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
    _products("large", "medium", "small")


def pairs():
    """The same of tiles that two blocks make together, beside those of one."""
    _products("pair", "large")


def _products(*names):
    """By tiles of these names."""
    from fastbp.kernels.cuda import ahead, driver, panel_gemm, panels

    driver.require()
    ways = [way for way in panel_gemm.WAYS if way.runs_on(driver.compute_capability())]
    tiles = [(way, tile) for way in ways for tile in way.TILES if tile.name in names]
    kernels = [
        way.product_kernel(precision, "none", tile, vectors, stores)
        for (way, tile), precision, (vectors, stores) in itertools.product(
            tiles, panels.FORMS, ((True, False), (False, False), (True, True))
        )
    ]
    ahead.compile_all(kernels)
    wrong = _wrong_products(tiles)
    if wrong:
        sys.exit(f"{wrong} products are wrong")
    _times_of_products(tiles)


def _on_device(x):
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda.operands import Matrix

    return Matrix(cuda.to_device(np.ascontiguousarray(x).ravel()), 0, x.shape[1])


def _plan(tile, precision, terms):
    from fastbp.kernels.cuda import blocking, panels

    return blocking.PanelPlan(tile, 1, panels.panels_of(precision, terms))


def _wrong_products(tiles):
    """How many products of small integers are not as NumPy's: every order of summing gives the same bits.

    Products of other numbers should have the same bits by every tile. The instructions do not promise it of tiles of
    other widths, so what is found is printed, and counts as wrong where runs of one tile differ.
    """
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import panel_gemm, panels, streams
    from fastbp.kernels.cuda.operands import Matrix

    rng, wrong = np.random.default_rng(0), 0
    cases = itertools.product(panels.FORMS, WARPGROUP_SHAPES, ("NN", "NT", "TN", "NN of any numbers"))
    for precision, (m, n, k), words in cases:
        trans, any_numbers, bits = words[:2], len(words) > 2, {}
        if any_numbers:
            a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
        else:
            a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((m, k), (k, n)))
            if precision == "bf16x3":  # 257 takes two numbers; where both factors do, low by low is left out
                a[:, ::2] *= 257
                b[1::2] *= 257
        stored = _on_device(a.T if trans == "TN" else a), _on_device(b.T if trans == "NT" else b)
        for way, tile in tiles:
            found, plan = set(), _plan(tile, precision, k)
            for _ in range(RUNS):
                c = Matrix(cuda.to_device(np.full(m * n, np.nan, np.float32)), 0, n)
                options = {"precision": precision, "plan": plan, "way": way}
                panel_gemm.gemm(trans, (m, n, k), *stored, c, streams.stream(), **options)
                found.add(cuda.to_host(c.data).tobytes())
            results, one = len(found), found.pop()
            bits.setdefault(one, []).append(f"{way.NAME} {tile.name}")
            different = np.argwhere(np.frombuffer(one, np.float32).reshape(m, n) != a @ b)
            right = results == 1 and (any_numbers or not len(different))
            wrong += not right
            said = "right" if right else f"WRONG, {len(different)} elements from {different[:1].tolist()}"
            title = f"{way.NAME} {tile.name} {precision} {words} {m} x {n} x {k}"
            print(f"{title}: {said}; {results} results of {RUNS} runs", flush=True)
        if any_numbers:
            print(f"{precision} {m} x {n} x {k}, tiles of the same bits: {list(bits.values())}", flush=True)
    return wrong


def _times_of_products(tiles):
    """Microseconds of each launch of a product of `WARPGROUP_SIZE`."""
    from fastbp.kernels import cuda
    from fastbp.kernels.cuda import panel_gemm, panels, streams
    from fastbp.kernels.cuda.operands import Matrix
    from fastbp.kernels.cuda.panel_tiles import Factors

    size, rng = WARPGROUP_SIZE, np.random.default_rng(0)
    a, b = (_on_device(rng.standard_normal((size, size), dtype=np.float32)) for _ in range(2))
    c = Matrix(cuda.zeros((size * size,), np.float32), 0, size)
    stream, shape = streams.stream(), (size, size, size)
    for precision, (way, tile) in itertools.product(panels.FORMS, tiles):
        memory = [cuda.zeros((panels.room(precision, size, size),), np.int32) for _ in range(6)]
        (a_along, a_across), (b_along, b_across), made = (
            panels.Stored(*(panels.Panels(array, 0, size) for array in memory[first : first + 2]))
            for first in (0, 2, 4)
        )
        by = partial(panel_gemm.gemm, precision=precision, plan=_plan(tile, precision, size), way=way)
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
