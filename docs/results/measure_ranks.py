"""Times steps on two ranks, and their collectives: ``python docs/results/measure_ranks.py``, with the extra mpi.

It writes distributed.json beside it. Ranks are processes of one machine with a thread and a core each.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

import fastbp
from fastbp import distributed
from fastbp.cli.machine import commit
from fastbp.shards import TAIL

NETWORKS = {"T": (16, 64, 64, 1), "S4": (784, 256, 128, 10), "M": (1024, 1024, 1024, 10), "L": (2048, 2048, 2048, 2048)}
BATCH = 128  # rows of a rank
SECONDS = 1.0  # of each measurement
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


def overlap_seconds(widths, communicator, steps):
    """Steps of this rank alone, each with an all-reduce of as many numbers as it has parameters: (after it, meanwhile).

    Meanwhile is the most that reducing one layer while another goes backward could save: all of the collective begins
    before the step, and is waited for after it.
    """
    from mpi4py import MPI

    model, optimizer, (X, y) = model_of(widths), fastbp.Adam(), rows_of(widths, BATCH)
    buffer, loss = np.zeros(model.flat_parameters.size, np.float32), fastbp.MSELoss()

    def after():
        model.train_step(X, y, loss, optimizer)
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, buffer)

    def meanwhile():
        request = MPI.COMM_WORLD.Iallreduce(MPI.IN_PLACE, buffer)
        model.train_step(X, y, loss, optimizer)
        request.Wait()

    best = [float("inf")] * 2
    for _ in range(6):
        for i, step in enumerate((after, meanwhile)):
            communicator.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            best[i] = min(best[i], (time.perf_counter() - start) / steps)
    return best


def pinned():
    """The communicator of MPI, this rank on a core of its own."""
    communicator = distributed.mpi()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[communicator.rank % len(cores)]})
    return communicator


def measure_ranks():
    """On each of two ranks; rank 0 prints."""
    communicator, found = pinned(), {}
    for name, widths in NETWORKS.items():
        steps = 5 if name == "L" else 40
        parameters = int(model_of(widths).flat_parameters.size)
        communicator.barrier()
        side = step_seconds(widths, distributed.alone(), steps)
        communicator.barrier()
        after, meanwhile = overlap_seconds(widths, communicator, steps // 2)
        found[name] = {
            "widths": list(widths),
            "parameters": parameters,
            "side_us": 1e6 * side,
            "rank_us": 1e6 * step_seconds(widths, communicator, steps),
            "collective_us": 1e6 * collective_seconds(parameters, communicator),
            "after_us": 1e6 * after,
            "meanwhile_us": 1e6 * meanwhile,
        }
    if communicator.rank == 0:
        print(json.dumps(found))


def measure_alone():
    """The compiled step of one process on one thread, and pairs with and without a communicator of one rank."""
    communicator, found = pinned(), {"alone_us": {}}
    for name, widths in NETWORKS.items():
        found["alone_us"][name] = 1e6 * step_seconds(widths, distributed.alone(), 5 if name == "L" else 40)
    widths = NETWORKS["S4"]
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", default="unnamed", help="its name in the results")
    asked = parser.parse_args()
    networks, alone = started("ranks", 2), started("alone", 1)
    for name, network in networks.items():
        network["alone_us"] = alone["alone_us"][name]
    result = {
        "date": date.today().isoformat(),
        "machine": {"name": asked.machine},
        "commit": commit(),
        "how": f"float32, Adam, {BATCH} rows a rank, a thread and a core a rank, two ranks on one machine, MPICH of "
        "the wheel; best epoch",
        "batch": BATCH,
        "networks": networks,
        "one_rank": alone["one_rank"],
    }
    (Path(__file__).parent / "distributed.json").write_text(json.dumps(result, indent=1) + "\n")


{"ranks": measure_ranks, "alone": measure_alone}.get(sys.argv[-1], main)()
