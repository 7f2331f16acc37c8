"""Times steps on two ranks, and their collectives: ``python docs/results/measure_ranks.py``, with the extra mpi.

It writes distributed.json beside it. Ranks are processes of one machine with a thread each.
"""

import itertools
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

import fastbp
from fastbp import distributed
from fastbp.shards import TAIL

NETWORKS = {"T": (16, 64, 64, 1), "S4": (784, 256, 128, 10), "M": (1024, 1024, 1024, 10), "L": (2048, 2048, 2048, 2048)}
BATCH = 128  # rows of a rank
SECONDS = 1.5  # of each measurement
PAIRS = 15


def model_of(widths):
    fastbp.set_num_threads(1)
    layers = [fastbp.Linear(a, b) for a, b in itertools.pairwise(widths)]
    between = [layer for linear in layers[:-1] for layer in (linear, fastbp.ReLU())]
    return fastbp.Sequential(*between, layers[-1], seed=0)


def rows_of(widths, rows):
    rng = np.random.default_rng(0)
    return rng.random((rows, widths[0]), np.float32), rng.random((rows, widths[-1]), np.float32)


def step_seconds(widths, communicator, steps):
    """The best epoch, by steps."""
    model, best, end = model_of(widths), float("inf"), time.perf_counter() + SECONDS
    optimizer, (X, y) = fastbp.Adam(), rows_of(widths, BATCH * steps)
    epochs = 3
    while True:
        history = model.fit(
            X, y, loss=fastbp.MSELoss(), optimizer=optimizer, epochs=epochs, batch_size=BATCH,
            communicator=communicator, verbose=False,
        )  # fmt: skip
        best = min(best, *history["seconds"])
        late = np.array([time.perf_counter() > end], np.int64)
        communicator.allreduce_(late)  # all go on, or none
        if late[0]:
            return best / steps


def collective_seconds(parameters, communicator):
    """An all-reduce of a gradient, without a step between."""
    buffer, best = np.zeros(parameters + TAIL, np.float32), float("inf")
    for _ in range(20):
        communicator.barrier()
        start = time.perf_counter()
        for _ in range(5):
            communicator.allreduce_(buffer)
        best = min(best, (time.perf_counter() - start) / 5)
    return best


def measure_ranks():
    """On each of two ranks; rank 0 prints."""
    communicator, found = distributed.mpi(), {}
    for name, widths in NETWORKS.items():
        steps = 5 if name == "L" else 40
        parameters = int(model_of(widths).flat_parameters.size)
        found[name] = {
            "widths": list(widths),
            "parameters": parameters,
            "rank_us": 1e6 * step_seconds(widths, communicator, steps),
            "collective_us": 1e6 * collective_seconds(parameters, communicator),
        }
    if communicator.rank == 0:
        print(json.dumps(found))


def measure_alone():
    """The compiled step of one process on one thread, and pairs with and without a communicator of one rank."""
    found = {"alone_us": {}}
    for name, widths in NETWORKS.items():
        found["alone_us"][name] = 1e6 * step_seconds(widths, distributed.alone(), 5 if name == "L" else 40)
    communicator, widths = distributed.mpi(), NETWORKS["S4"]
    model, optimizer, (X, y), ratios = model_of(widths), fastbp.Adam(), rows_of(widths, BATCH * 60), []
    for _ in range(PAIRS):
        seconds = []
        for given in (None, communicator):
            start = time.perf_counter()
            model.fit(
                X, y, loss=fastbp.MSELoss(), optimizer=optimizer, epochs=4, batch_size=BATCH, communicator=given,
                verbose=False,
            )  # fmt: skip
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    print(json.dumps(found | {"one_rank": sorted(ratios)}))


def started(what, ranks):
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [mpiexec, "-n", str(ranks), sys.executable, __file__, what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    networks, alone = started("ranks", 2), started("alone", 1)
    for name, network in networks.items():
        network["alone_us"] = alone["alone_us"][name]
    git = ["git", "rev-parse", "HEAD"]
    result = {
        "date": date.today().isoformat(),
        "machine": {"name": "zen3-2core", "cores": 2},
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "how": f"float32, Adam, {BATCH} rows a rank, a thread a rank, two ranks on one machine, MPICH of the wheel; "
        "best epoch",
        "batch": BATCH,
        "networks": networks,
        "one_rank": alone["one_rank"],
    }
    (Path(__file__).parent / "distributed.json").write_text(json.dumps(result, indent=1) + "\n")


{"ranks": measure_ranks, "alone": measure_alone}.get(sys.argv[-1], main)()
