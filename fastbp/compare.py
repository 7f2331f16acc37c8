"""Train steps timed beside other libraries: the protocol under every claim of speed.

One process on as many cores as threads. In each round the library and each peer are timed in turn
(peer, ours, peer, ours), between two measurements of the machine's multiply-add limit. A round in which
the limit falls below `STEADY` of the best seen, or the process gets less than that share of its core, is
dropped, counted and repeated, up to a bound. Figures are medians of the rounds kept; a ratio is the median
of the ratios within a round. Warm-up and compilation come first and are reported apart; so is a check that
one step from the same weights on the same batch gives the same weights. A step of ours is an epoch of
``model.fit`` divided by its batches, everything included. Weights and data are random.
"""

import importlib.util
import itertools
import math
import os
import statistics
import time

import numpy as np

from . import backend, layers, losses, model, optimizers
from .peers import PEERS, Task

# id: widths, activation, batch, and the least ratio to each peer that this library aims at in float32.
SHAPES = {
    "S1": ((4, 32, 32, 2), "relu", 32, {"torch": 65, "jax": 2.8}),
    "S2": ((64, 128, 10), "relu", 64, {"torch": 11, "jax": 1.6}),
    "S3": ((784, 128, 10), "relu", 64, {"torch": 2.7, "jax": 1.35}),
    "S4": ((784, 256, 128, 10), "relu", 128, {"torch": 1.62, "jax": 1.22}),
    "S5": ((784, 512, 512, 10), "relu", 256, {"torch": 1.28, "jax": 1.17}),
    "S6": ((1024, 1024, 1024, 1024, 10), "relu", 256, {"torch": 1.23, "jax": 1.18}),
    "S7": ((2048, 2048, 2048, 1000), "relu", 512, {"torch": 1.14, "jax": 1.12}),
    "S8": ((4096, 4096, 4096), "relu", 32, {"torch": 2.4, "jax": 2.6}),
    "S9": ((4, 32, 16, 4), "tanh", 10_000, {"torch": 8, "jax": 3.3}),
}
BATCHES = 64  # in an epoch
EPOCH_FLOPS = 128e9  # larger epochs have fewer batches: about 2 s at 64 GFLOP/s
FEWEST_BATCHES = 16  # or what an epoch of fit() costs once would weigh more than it ever does
STEADY = 0.93  # of the best limit seen, or of the core's time: with less, something else had the core
MOST_ROUNDS = 3  # times the rounds asked for
LIMIT_SECONDS = 0.02  # of one measurement of the limit
LR = 1e-3
# Largest difference of two updates, relative to their size. In the first step of Adam a gradient of
# about eps moves its weight by a good part of lr, so rounding errors in those few show (2e-2 on S7).
TOLERANCE = {"float32": 5e-2, "float64": 1e-6}
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def parse_shapes(text: str) -> dict[str, tuple]:
    """Shapes by id, as layers and batch (``513-257-129-11@77``), or ``all``."""
    if text == "all":
        return SHAPES
    shapes = {}
    for name in text.split(","):
        if name in SHAPES:
            shapes[name] = SHAPES[name]
            continue
        try:
            widths, batch = name.split("@")
            widths, batch = tuple(int(width) for width in widths.split("-")), int(batch)
            if len(widths) < 2 or min(*widths, batch) < 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"unknown shape {name!r}: expected {', '.join(SHAPES)}, all, or layers and batch as in 784-256-10@128"
            ) from None
        shapes[name] = widths, "relu", batch, {}
    return shapes


def find_peers(names: str) -> tuple[list, list[str]]:
    """The peer classes named in a comma-separated list that are installed, and the names of those that are not."""
    found, missing = [], []
    for name in filter(None, names.split(",")):
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: expected {', '.join(PEERS)}")
        if importlib.util.find_spec(name):
            found.append(PEERS[name])
        else:
            missing.append(name)
    return found, missing


def pin(threads: int) -> list[int]:
    """Keep this process to ``threads`` cores, and libraries imported later to as many threads.

    Returns
    -------
    list of int
        The cores; empty where the system cannot pin.
    """
    for variable in ONE_THREAD:
        os.environ[variable] = str(threads)
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # a peer gets its own processor's kernels
        os.environ.pop(variable, None)
    os.environ["XLA_FLAGS"] = (
        f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} intra_op_parallelism_threads={threads}"
    )
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    if len(cores) < threads:
        raise ValueError(f"--threads {threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores)
    return cores


def step_flops(widths, batch) -> int:
    """Floating-point operations in the products of one step; the first layer needs no input gradient."""
    return sum(2 * a * b * batch * (3 if i else 2) for i, (a, b) in enumerate(itertools.pairwise(widths)))


class Ours:
    """This library, with the methods of a peer."""

    def __init__(self, task, batch, dtype, device):
        activation = {"relu": layers.ReLU, "tanh": layers.Tanh}[task.activation]
        parts = []
        for pair in itertools.pairwise(task.widths):
            parts += [layers.Linear(*pair), activation()]
        self.model = model.Sequential(*parts[:-1], dtype=dtype, device=device, seed=0)
        self.task, self.batch = task, batch
        self.loss, self.optimizer = losses.CrossEntropyLoss(), optimizers.Adam(lr=task.lr)

    def train(self):
        self.model.fit(
            self.task.x,
            self.task.y,
            loss=self.loss,
            optimizer=self.optimizer,
            epochs=1,
            batch_size=self.batch,
            verbose=False,
        )

    def train_steps(self):
        x, y = self.task.x, self.task.y
        for start in range(0, len(x), self.batch):
            self.step(x[start : start + self.batch], y[start : start + self.batch])

    def step(self, x, y):
        self.model.train_step(x, y, self.loss, self.optimizer)

    def weights(self):
        linear = [layer for layer in self.model.layers if isinstance(layer, layers.Linear)]
        return [(np.array(layer.weight), np.array(layer.bias)) for layer in linear]


def compare_shape(name, shape, peers, *, dtype, device, threads, rounds, seconds, best_limit=0.0, batches=None):
    """Time one shape beside the peers.

    Parameters
    ----------
    name : str
    shape : tuple
        As in `SHAPES`.
    peers : list of classes
    dtype, device : str
    threads : int
    rounds : int
        Undisturbed rounds wanted.
    seconds : float
        About how long each timing within a round lasts.
    best_limit : float
        Best limit seen so far, GFLOP/s.
    batches : int, optional
        In an epoch; by default as `BATCHES` and `EPOCH_FLOPS` say.

    Returns
    -------
    dict
        Everything measured; JSON can hold it.
    """
    widths, activation, batch, targets = shape
    flops = step_flops(widths, batch)
    batches = batches or min(BATCHES, max(FEWEST_BATCHES, int(EPOCH_FLOPS / flops)))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batches * batch, widths[0]), dtype=dtype)
    y = rng.integers(0, widths[-1], len(x))
    task = Task(widths, activation, LR, x, y)
    rows = rng.permutation(len(x)).reshape(batches, batch)

    ours, ours_warmup = _timed(lambda: _started(Ours(task, batch, dtype, device)))
    result = {
        "name": name,
        "widths": widths,
        "activation": activation,
        "batch": batch,
        "batches": batches,
        "dtype": dtype,
        "flops": flops,
        "ours_warmup_seconds": ours_warmup,
        "left_out": {},
        "peers": {},
    }
    running = {}
    for peer_class in peers:
        try:
            difference = _update_difference(peer_class, task, rows[:1], dtype, device, threads)
        except ValueError as error:
            result["left_out"][peer_class.name] = str(error)
            continue
        if not difference <= TOLERANCE[dtype]:
            raise ValueError(
                f"{name}: one step of {peer_class.name} from the same weights on the same batch differs from ours by "
                f"{difference:.1e} of the update (expected at most {TOLERANCE[dtype]:.0e}): not the same mathematics"
            )
        start = time.perf_counter()
        peer = _started(peer_class(task, Ours(task, batch, dtype, device).weights(), rows, threads))
        result["peers"][peer.name] = {
            "version": peer.version,
            "how": peer.how,
            "warmup_seconds": time.perf_counter() - start,
            "update_difference": difference,
            "target_ratio": targets.get(peer.name) if dtype == "float32" else None,
        }
        running[peer.name] = peer

    raw = _rounds(ours, running, batches, rounds, seconds, dtype, device, best_limit)
    return result | _summary(raw, result["peers"], flops, best_limit)


def _started(trainer):
    """After its first epoch everything is compiled and every buffer is there."""
    trainer.train()
    return trainer


def _timed(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _update_difference(peer_class, task, rows, dtype, device, threads):
    """Size of the difference of two first steps, relative to the step."""
    ours = Ours(task, rows.shape[1], dtype, device)
    before = ours.weights()
    peer = peer_class(task, before, rows, threads)
    peer.train()
    ours.step(task.x[rows[0]], task.y[rows[0]])
    before, after, theirs = (
        np.concatenate([array.ravel() for pair in weights for array in pair]).astype(np.float64)
        for weights in (before, ours.weights(), peer.weights())
    )
    return float(np.linalg.norm(theirs - after) / np.linalg.norm(after - before))


def _rounds(ours, peers, batches, rounds, seconds, dtype, device, best_limit):
    """Time all in turn until ``rounds`` rounds are undisturbed; a list of dicts, a round each."""
    trainers = {"ours": ours.train, "train_step": ours.train_steps} | {n: peer.train for n, peer in peers.items()}
    repeats = {name: max(1, math.ceil(seconds / _timed(train)[1])) for name, train in trainers.items()}

    def step_us(name):
        start = time.perf_counter()
        for _ in range(repeats[name]):
            trainers[name]()
        return (time.perf_counter() - start) / (repeats[name] * batches) * 1e6

    done = []
    while len(_undisturbed(done, best_limit)) < rounds and len(done) < MOST_ROUNDS * rounds:
        wall, cpu = time.perf_counter(), time.process_time()
        limits = [fma_limit(dtype, device)]
        timings = {}
        for name in peers or [None]:
            theirs = step_us(name) if name else None
            timings[name] = theirs, step_us("ours")
            limits.append(fma_limit(dtype, device))
        train_step = step_us("train_step")
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        done.append({"limits": limits, "timings": timings, "train_step": train_step, "cpu_share": share})
    return done


def _undisturbed(rounds, best_limit):
    limits = [limit for done in rounds for limit in done["limits"] if limit]
    best = max([best_limit, *limits])
    return [
        done
        for done in rounds
        if done["cpu_share"] >= STEADY and all(limit is None or limit >= STEADY * best for limit in done["limits"])
    ]


def _summary(rounds, peers, flops, best_limit):
    """Medians of the undisturbed rounds, or of all where none is."""
    kept = _undisturbed(rounds, best_limit)
    used = kept or rounds
    ours = statistics.median(ours for done in used for _, ours in done["timings"].values())
    limits = [limit for done in used for limit in done["limits"] if limit]
    limit = statistics.median(limits) if limits else None
    timings = {
        name: peer
        | {
            "us": statistics.median(done["timings"][name][0] for done in used),
            "ratio": statistics.median(theirs / ours for theirs, ours in (done["timings"][name] for done in used)),
        }
        for name, peer in peers.items()
    }
    return {
        "us": ours,
        "train_step_us": statistics.median(done["train_step"] for done in used),
        "limit_gflops": limit,
        "best_limit_gflops": max([best_limit, *limits]) or None,
        "floor_us": flops / limit / 1e3 if limit else None,
        "fraction_of_limit": flops / limit / 1e3 / ours if limit else None,
        "rounds_used": len(kept),
        "rounds_dropped": len(rounds) - len(kept),
        "peers": timings,
        "rounds": rounds,
    }


def fma_limit(dtype, device) -> float | None:
    """GFLOP/s of multiply-adds on registers, one thread, at this moment; None where the backend cannot say."""
    kernels = backend.load(device)
    return kernels.fma_limit(dtype, LIMIT_SECONDS) if hasattr(kernels, "fma_limit") else None


# -------------------------------------------------------------------------------------- report
def heading(peers) -> str:
    """The line above the rows."""
    columns = "".join(f"{peer.name + ' µs':>12}{'ratio':>7}{'target':>8}" for peer in peers)
    return f" {'':3}{'layers @ batch':29}{'ours µs':>9}{'floor':>9}{'of it':>6}{columns}{'train_step':>12}  rounds"


def row(result, peers) -> str:
    """One shape."""
    name = result["name"] if result["name"] in SHAPES else ""
    activation = "" if result["activation"] == "relu" else " " + result["activation"]
    shape = "-".join(map(str, result["widths"])) + activation + f" @ {result['batch']}"
    text = f" {name:3}{shape:29}{_figure(result['us']):>9}{_figure(result['floor_us']):>9}"
    text += f"{_figure(result['fraction_of_limit'], '.0%'):>6}"
    for peer in peers:
        timing = result["peers"].get(peer.name, {})
        target = timing.get("target_ratio")
        text += f"{_figure(timing.get('us')):>12}{_figure(timing.get('ratio'), '.2f'):>7}"
        text += f"{'-' if target is None else f'≥ {target:g}':>8}"
    dropped = f" ({result['rounds_dropped']} dropped)" if result["rounds_dropped"] else ""
    return text + f"{_figure(result['train_step_us']):>12}  {result['rounds_used']}{dropped}"


def remarks(results) -> list[str]:
    """What a reader of the rows has to know besides."""
    lines = [
        "µs a train step, medians; ours: an epoch of fit() divided by its batches; floor: the products at the limit of "
        "multiply-adds;",
        "ratio: peer / ours, median over rounds; train_step: one call from Python a step; dropped: disturbed rounds.",
    ]
    for name, peer in {name: peer for result in results for name, peer in result["peers"].items()}.items():
        worst = max(r["peers"][name]["update_difference"] for r in results if name in r["peers"])
        lines.append(
            f"{name} {peer['version']}: {peer['how']}; first update differs from ours by {worst:.0e} of its size"
        )
    for result in results:
        warmups = {"ours": result["ours_warmup_seconds"]}
        warmups |= {name: peer["warmup_seconds"] for name, peer in result["peers"].items()}
        notes = ["first epoch, compilation included: " + ", ".join(f"{name} {s:.2f} s" for name, s in warmups.items())]
        if result["batches"] < BATCHES:
            notes.append(f"{result['batches']} batches an epoch instead of {BATCHES}, to keep it near 2 s")
        notes += [f"without {name}: {reason}" for name, reason in result["left_out"].items()]
        if not result["rounds_used"]:
            notes.append("no undisturbed round: the figures are of disturbed ones")
        lines.append(f"{result['name']}: " + "; ".join(notes))
    return lines


def _figure(value, form=None):
    if value is None:
        return "-"
    return f"{value:{form or ('.1f' if value < 1000 else ',.0f')}}".replace(",", " ")
