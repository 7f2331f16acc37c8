"""Lines over all versions: what every one can do since the first that trained, by names that all of them have.

The peers are those of ``fastbp.bench`` in the checkout that this file lies in, whatever version is installed, and the
rounds are read here: versions without a comparison of their own are measured as the others are, and a change of the
comparison moves no line. Steps are timed by the processor's time that this process takes, single predictions by the
median: both change little while something else runs on the core.
"""

import importlib
import itertools
import statistics
import sys
import time
import types
from pathlib import Path

import numpy as np

from .common import OF_LIMIT, ROUNDS, WINDOW, Public, require

BENCH = "bench_of_the_suite"
LR, BATCHES = 1e-3, 64
STEADY, MOST_ROUNDS = 0.93, 3  # as in fastbp.bench.measure
SAME = 5e-2, 1e-4  # largest difference of a first update, and of predictions: as in fastbp.bench.agreement


def bench(name):
    """A module of fastbp.bench beside the suite that needs no other part of fastbp."""
    if BENCH not in sys.modules:
        sys.modules[BENCH] = types.ModuleType(BENCH)
        sys.modules[BENCH].__path__ = [str(Path(__file__).parents[2] / "fastbp" / "bench")]
    return importlib.import_module(f"{BENCH}.{name}")


def check_same(ours, theirs, tolerance):
    """Refuse a peer that does not give what ours gives."""
    difference = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
    if not difference <= tolerance:
        raise ValueError(f"the peer differs by {difference:.1e}: not the same mathematics")


def processor_seconds(work):
    """What ``work()`` takes of the processor, in all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Milestone(Public):
    """Ours beside something else, in rounds between two readings of the multiply-add limit."""

    def setup(self, *_):
        super().setup()
        self.fma_limit = require("fastbp.kernels.cpu", "fma_limit")

    def limit(self):
        """Operations a second of multiply-adds at this moment."""
        return 1e9 * self.fma_limit("float32", seconds=WINDOW)

    def network(self, widths):
        bp = self.fastbp
        layers = [layer for pair in itertools.pairwise(widths) for layer in (bp.Linear(*pair), bp.ReLU())]
        return bp.Sequential(*layers[:-1], seed=0)

    def weights(self, model):
        linear = [layer for layer in model.layers if isinstance(layer, self.fastbp.Linear)]
        return [(np.array(layer.weight), np.array(layer.bias)) for layer in linear]

    def ratio(self, ours, flops=None, peer=None):
        """Time of ours by that of a peer, or by that of so many operations at the limit.

        The median of the rounds in which the core was about as fast as in the best.
        """
        rounds, kept = [], []
        for clock in filter(None, (ours, peer)):
            clock.prepare(WINDOW)
        while len(kept) < ROUNDS and len(rounds) < MOST_ROUNDS * ROUNDS:
            before = self.limit()
            theirs = peer.read()["seconds"] if peer else None
            seconds = ours.read()["seconds"]
            after = self.limit()
            rounds.append((seconds / (theirs or 2 * flops / (before + after)), min(before, after)))
            best = max(limit for _, limit in rounds)
            kept = [figure for figure, limit in rounds if limit >= STEADY * best]
        return statistics.median(kept)


class Training(Milestone):
    """What trains on random data of a shape, in epochs of `BATCHES` batches."""

    def setup(self, shape):
        super().setup()
        bp, shapes, peers, rng = self.fastbp, bench("shapes"), bench("peers"), np.random.default_rng(0)
        widths, activation, batch, _ = shapes.SHAPES[shape]
        self.flops = BATCHES * shapes.step_flops(widths, batch)
        x = rng.standard_normal((BATCHES * batch, widths[0]), dtype=np.float32)
        y = rng.integers(0, widths[-1], len(x))
        self.rows = rng.permutation(len(x)).reshape(BATCHES, batch)
        self.task = peers.Task(widths, activation, LR, x, y)
        self.model, self.loss, self.adam = self.network(widths), bp.CrossEntropyLoss(), bp.Adam(lr=LR)

    def fit(self):
        x, y, batch = self.task.x, self.task.y, self.rows.shape[1]
        self.model.fit(x, y, loss=self.loss, optimizer=self.adam, epochs=1, batch_size=batch, verbose=False)

    def train_steps(self):
        x, y, batch = self.task.x, self.task.y, self.rows.shape[1]
        for start in range(0, len(x), batch):
            self.model.train_step(x[start : start + batch], y[start : start + batch], self.loss, self.adam)

    def clock(self, epoch):
        return bench("clocks").Clock(epoch, elapsed=processor_seconds)

    def trainer(self, peer):
        """A peer whose first step was found to be ours, with the weights that ours had before it."""
        trainer, x, y, first = bench("peers").TRAINERS[peer], self.task.x, self.task.y, self.rows[:1]
        flat = lambda weights: np.concatenate([array.ravel() for pair in weights for array in pair])  # noqa: E731
        before = self.weights(self.model)
        one = trainer(self.task, before, first, 1)
        one.train()
        self.model.train_step(x[first[0]], y[first[0]], self.loss, self.adam)
        check_same(flat(self.weights(self.model)) - flat(before), flat(one.weights()) - flat(before), SAME[0])
        return trainer(self.task, before, self.rows, 1)


class Step(Training):
    """A step with Adam, as a multiple of the time its products take at the limit."""

    params = (["S1", "S2", "S3", "S4"],)
    param_names = ("shape",)
    unit = OF_LIMIT

    def track_fit(self, shape):
        return self.ratio(self.clock(self.fit), self.flops)

    def track_train_step(self, shape):
        return self.ratio(self.clock(self.train_steps), self.flops)


class StepRatio(Training):
    """The same by a step of theirs."""

    params = (["torch", "jax"], ["S1", "S2", "S3", "S4"])
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        require(peer)
        super().setup(shape)

    def track_fit(self, peer, shape):
        return self.ratio(self.clock(self.fit), peer=self.clock(self.trainer(peer).train))


class PredictRatio(Milestone):
    """A call of ``predict`` by a call of theirs, medians of single calls."""

    params = (["torch", "onnxruntime"], ["16-64-64-4@1", "784-256-128-10@32"])
    param_names = ("peer", "shape")
    unit = "ours / theirs"

    def setup(self, peer, shape):
        require(peer)
        super().setup()

    def track_predict(self, peer, shape):
        widths, _, batch, _ = bench("shapes").parse_shapes(shape)[shape]
        model, x = self.network(widths), np.random.default_rng(0).standard_normal((batch, widths[0]), np.float32)
        theirs, clock = bench("peers").PREDICTORS[peer](self.weights(model), x, 1), bench("clocks").SampleClock
        check_same(model.predict(x), np.asarray(theirs.call()), SAME[1])
        return self.ratio(clock(lambda: model.predict(x)), peer=clock(theirs.call))
