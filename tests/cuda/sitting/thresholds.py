"""Where thresholds should be: steps made in each way, products by each tile and number of parts; and the profiler's."""

import itertools
import sys

import numpy as np

from .tools import LAUNCHES, least

STEP_WIDTHS, STEP_BATCHES, STEPS = (32, 128, 256, 512), (64, 256, 1024, 4096), 64
# The gradients of a weight of the middle network that the comparison has, and forward products: small, just below a
# cliff of the model and just above it, large.
CUT = ((784, 256, 1024), (256, 128, 1024), (128, 10, 1024), (512, 512, 4096))
PRODUCTS = ((256, 256, 512), (1024, 512, 1024), (2112, 512, 1024), (2176, 512, 1024), (2048, 1024, 1024))


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
                times[way] = f"{least(ours.launch(rows), STEPS):.1f}"
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
        ld = blocking.padded_columns(n)
        parts = Matrix(cuda.zeros((blocking.most_parts(shape) * m * ld,), np.float32), 0, ld)
        taken = blocking.plan_of(shape, cut, 4, precision, multiprocessors)
        counts = sorted({1, taken.parts, *((4, 8, 16) if cut else ())} & {1, *range(blocking.most_parts(shape) + 1)})
        found, plans = [], [taken] if taken.rest else []
        for tile, count in itertools.product(blocking.tiles_of(4, precision), counts):
            terms = -(-k // (count * blocking.TERMS_UNIT)) * blocking.TERMS_UNIT if count > 1 else k
            plans.append(blocking.Plan(tile, -(-k // terms), terms))
        for plan in plans:

            def launches(stream, trans=trans, shape=shape, of=(a, b, c), precision=precision, plan=plan, parts=parts):
                for _ in range(LAUNCHES):
                    if gemm.gemm(trans, shape, *of, stream, precision=precision, plan=plan, parts=parts) > 1:
                        gemm.add_up(plan.parts, *shape[:2], 0, parts, of[2], stream)

            launches(streams.stream())  # compiles them
            us = least(streams.capture(launches), LAUNCHES)
            cycles = blocking.predicted_cycles(plan, shape, 4, precision, multiprocessors)
            mark = "*" if plan == taken else ""
            name = f"{plan.tile.name}, {plan.rest.name}" if plan.rest else f"{plan.tile.name}/{plan.parts}"
            found.append(f"{name} {us:.1f} ({cycles / us:.0f}){mark}")
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
