"""What the benchmarks share: parameters, guards, random buffers, and ratios of times measured in turn.

asv takes an increase for a regression, so of every figure here less is better, and microseconds, which change with
the machine and its mood, are avoided: a figure is the time of ours as a multiple of another time measured beside it
in the same process. Rates (GFLOP/s, GB/s) are told besides; asv.conf.json leaves them out of its search for
regressions. A *clock* is a function that measures, or derives from a measurement, how many seconds something
takes at this moment; `ratio` reads two clocks in turn.
"""

import importlib
import os
import statistics
import sys
import timeit

import numpy as np

from . import TOO_LATE

LARGE = os.environ.get("FASTBP_BENCH") == "large"
ROUNDS = 7  # pairs of readings behind a ratio
WINDOW = 0.02  # seconds of a reading, about
SAMPLE = 1e-3  # seconds of one of its samples: far above the cost of the timer

WHY_NOT_NUMPY = f"NumPy was loaded with other values of {', '.join(TOO_LATE)} than README.md says"
OF_LIMIT = "times the time at the limit"


def grid(regular, large):
    """Values of a parameter: the few that mean something, with FASTBP_BENCH=large the others too.

    They are written out in each benchmark: asv refers to them by position, from one version to the next.
    """
    return [*regular, *large] if LARGE else [*regular]


DTYPES = grid(["float32"], ["float64"])


def require(module, name=None):
    """A module, or a name in it; where this version or this environment has none, the benchmark is skipped."""
    try:
        found = importlib.import_module(module)
        return getattr(found, name) if name else found
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(str(error)) from None


def code(kind, name):
    """The code of a name in one of the tuples of ``layout``: ``code("LOSSES", "huber")``."""
    names = require("fastbp.kernels.layout", kind)
    if name not in names:
        raise NotImplementedError(f"{name} is not among {kind}")
    return names.index(name)


class Public:
    """One worker; nothing that a version may lack."""

    timeout = 300

    def setup(self, *_):
        self.fastbp = require("fastbp")
        self.fastbp.set_num_threads(1)


class Benchmark(Public):
    """Besides, the modules that most benchmarks need."""

    def setup(self, *_):
        self.fastbp, self.kernels = require("fastbp"), require("fastbp.kernels.cpu")
        self.shapes, self.steps, self.measure = (
            require(f"fastbp.bench.{name}") for name in ("shapes", "training_steps", "measure")
        )
        self.fastbp.set_num_threads(1)

    def shape(self, text):
        """Widths, activation and batch of ``S1`` to ``S9`` or of ``784-256-10@128``."""
        widths, activation, batch, _ = self.shapes.parse_shapes(text)[text]
        return widths, activation, batch

    def network(self, text, batches, dtype, device="cpu"):
        """A classifier of that shape and its trainer, with random data for some batches."""
        trainer = require("fastbp.bench.trainer")
        task, _ = trainer.random_task(self.shapes.parse_shapes(text)[text], batches, dtype)
        return trainer.Ours(task, self.shape(text)[2], dtype, device)

    def protocol(self, dtype="float32"):
        return self.measure.Protocol(rounds=ROUNDS, seconds=WINDOW, dtype=dtype)

    def compared(self, shape, dtype, *trainers):
        """What `fastbp compare` finds for a shape; None where other processes disturbed every round."""
        protocol, found = self.protocol(dtype), self.shapes.parse_shapes(shape)[shape]
        return undisturbed(protocol.measure(self.steps.step_case(shape, found, trainers, protocol)))

    def peer(self, name):
        """Skip where a library is missing, or was set up by somebody else; keep this process to one core."""
        if TOO_LATE and name in ("numpy", "sklearn"):
            raise NotImplementedError(WHY_NOT_NUMPY)
        if not require("fastbp.bench.peers", "find_peers")(name)[0]:
            raise NotImplementedError(f"{name} is not installed")
        require("fastbp.bench.process", "pin")(1)


def undisturbed(result):
    """A result, or None where other processes disturbed every round."""
    return result if result["rounds_used"] else None


def peer_ratio(result, peer):
    """Ours by theirs; not a number where there is none."""
    if result is None or peer not in result["peers"]:  # disturbed, or what the peer cannot do
        return float("nan")
    return 1 / result["peers"][peer]["ratio"]


def buffer(rng, shape, dtype):
    """Random numbers in (0, 1), laid out as the library lays out its own: aligned, rows padded."""
    layout = require("fastbp.kernels.layout")
    *rows, columns = shape
    ld = layout.leading_dimension(columns, np.dtype(dtype).itemsize) if rows else columns
    array = layout.aligned_zeros((*rows, ld), dtype)[..., :columns]
    array[...] = rng.random(shape)
    return array


# --------------------------------------------------------------------------------------- clocks
def clock(call):
    """The time of a call: the least of the samples of a window. The first call, which may compile, is not timed."""
    call()
    timer = timeit.Timer(call)
    once = timer.timeit(1)
    number = max(1, int(SAMPLE / once))
    repeat = max(1, int(WINDOW / (number * once)))
    return lambda: min(timer.repeat(repeat, number)) / number


def at_fma_limit(flops, dtype):
    """The time of so many floating-point operations at the limit of multiply-adds on registers, one thread."""
    limit = require("fastbp.bench.measure", "fma_limit")
    return lambda: flops / (limit(dtype, "cpu") * 1e9)


def at_memory(traffic, footprint):
    """The time in which NumPy's ``a += b``, on arrays of this many bytes together, moves ``traffic`` bytes."""
    a, b = np.ones((2, footprint // 8), np.float32)
    addition = clock(lambda: np.add(a, b, out=a))
    return lambda: addition() * traffic / (3 * a.nbytes)


def rate(clock, amount):
    """Thousand millions a second of what a call does: the median of some readings."""
    return amount / statistics.median(clock() for _ in range(ROUNDS)) / 1e9


def ratio(ours, other):
    """Median over rounds of one clock's reading divided by the other's, read just before."""
    rounds = [(other(), ours()) for _ in range(ROUNDS)]
    return statistics.median(our_seconds / other_seconds for other_seconds, our_seconds in rounds)


def numpy_ratio(ours, call):
    """`ratio` to a call of NumPy that makes products; not a number where OpenBLAS was set up by somebody else."""
    if TOO_LATE:
        print(WHY_NOT_NUMPY, file=sys.stderr)
        return float("nan")
    return ratio(ours, clock(call))
