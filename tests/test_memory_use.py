"""What `fit` and `predict` hold beside the data: buffers of the parameters, a batch, 8 bytes a row; no data again.

Every arrangement of the data has a process of its own, whose anonymous memory another process watches: pages of a
mapped file are no memory of the process.
"""

import gc
import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

MIB = 1 << 20
SLACK = 64 * MIB  # code, converted rows, losses of the batches
COLUMNS, UNITS, CLASSES = 16, 8, 4  # narrow, so that bytes a row show
BATCH = 512
# malloc keeps what is freed below its threshold, which grows: a later fit would seem to take nothing.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "FASTBP_CACHE": None}

# Looks every millisecond from when it has said so until its input ends; then prints the peak. A thread of the process
# itself would miss what happens while a call holds the interpreter's lock.
WATCH = """
import select, sys
def anonymous():
    with open(f"/proc/{sys.argv[1]}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
start = peak = anonymous()
print(flush=True)
while not select.select([sys.stdin], [], [], 0.001)[0]:
    peak = max(peak, anonymous())
print(1024 * (peak - start))
"""


@contextmanager
def watched():
    """A list that holds, afterwards, by how many bytes the anonymous memory of this process was higher than now."""
    gc.collect()
    command, grown = [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid())], []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        watcher.stdout.readline()
        yield grown
        grown.append(int(watcher.communicate()[0]))


# -------------------------------------------------------------------------------- in the other process
def filled(shape, dtype):
    """An array of numbers that are not all the same, quickly: one block after the other the same."""
    array = np.empty(shape, dtype)
    block = np.random.default_rng(0).integers(0, 200, (1024, *shape[1:])).astype(dtype)
    for start in range(0, len(array), len(block)):
        array[start : start + len(block)] = block[: len(array) - start]
    return array


class Watched:
    """Fits and predictions, each with what it took and what it may take, in bytes."""

    def __init__(self):
        self.results = {}

    def fit(self, name, X, *hidden, buffers, rows, **arguments):
        """A fit of a new network that may take so many buffers of its size, and 8 bytes for so many rows."""
        import fastbp

        widths = [X.shape[1], *hidden, CLASSES]
        layers = [layer for pair in itertools.pairwise(widths) for layer in (fastbp.Linear(*pair), fastbp.ReLU())]
        network = fastbp.Sequential(*layers[:-1], seed=0)
        y = filled((len(X),), np.int64) % CLASSES
        if "validation_data" in arguments:
            arguments["validation_data"] = X[: arguments["validation_data"]], y[: arguments["validation_data"]]
        options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "batch_size": BATCH} | arguments
        with watched() as grown:
            network.fit(X, y, verbose=False, **options)
        batch = 4 * BATCH * (widths[0] + 4 * sum(widths[1:]))  # inputs; values, gradients and what surrounds them
        self.results[name] = grown[0], buffers * network._parameters.values.nbytes + batch + 8 * rows + SLACK
        return network

    def predict(self, network, X):
        with watched() as grown:
            out = network.predict(X)
        self.results["predict"] = grown[0], out.nbytes + SLACK

    def check(self):
        for name, (grown, allowed) in self.results.items():
            print(f"{name}: {grown / MIB:.1f} of {allowed / MIB:.1f} MiB")
        assert all(grown <= allowed for grown, allowed in self.results.values())


def fit_and_predict(X):
    import fastbp

    of_memory, rows = Watched(), len(X)
    of_memory.fit("fit", X, UNITS, buffers=4, rows=rows)
    weight = filled((rows,), np.float64)
    weight[::3] = 0
    held_out = rows // 4
    network = of_memory.fit(
        "fit with weights, validation, early stopping", X, UNITS, buffers=5, rows=rows + held_out,
        sample_weight=weight, validation_data=held_out, callbacks=[fastbp.EarlyStopping()],
    )  # fmt: skip
    of_memory.predict(network, X)
    of_memory.check()


def in_memory(mib, dtype):
    fit_and_predict(filled((mib * MIB // np.dtype(dtype).itemsize // COLUMNS, COLUMNS), dtype))


def by_columns(mib):
    X = np.empty((COLUMNS, mib * MIB // 4 // COLUMNS), np.float32).T
    X[:] = filled((len(X), 1), np.float32)
    fit_and_predict(X)


def mapped(path, mib):
    with open(path, "wb") as file:
        file.truncate(mib * MIB)  # a hole: zeros without a place on the disk
    fit_and_predict(np.memmap(path, np.float32, "r").reshape(-1, COLUMNS))


def large_network(mib):
    """The weights are 64 MiB; a few rows count, so that there are a few steps."""
    import fastbp

    X = filled((mib * MIB // 4 // 4096, 4096), np.float32)
    weight = np.zeros(len(X))
    weight[: 2 * BATCH] = 1
    of_memory, options = Watched(), {"rows": len(X), "sample_weight": weight}
    of_memory.fit("fit", X, 4096, buffers=4, **options)
    of_memory.fit("early stopping", X, 4096, buffers=5, callbacks=[fastbp.EarlyStopping()], epochs=2, **options)
    of_memory.fit("clip_norm", X, 4096, buffers=4, optimizer=fastbp.Adam(clip_norm=1.0), **options)
    of_memory.check()


# ------------------------------------------------------------------------------------------ the tests
def require(mib):
    """Skip where there is not so much memory."""
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory is read from /proc")
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) // 1024
    if available < mib:
        pytest.skip(f"needs {mib} MiB of memory, {available} are available")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (in_memory, (512, "float32")),
        (in_memory, (256, "float16")),
        (in_memory, (160, "uint8")),  # of so many rows that 8 bytes a row show
        (by_columns, (256,)),
        (large_network, (768,)),
    ],
    ids=["float32", "float16", "uint8", "columns", "large network"],
)
def test_data_in_memory(fresh, warm_cache, function, arguments):
    require(4 * arguments[0])
    print(fresh(function, *arguments, FASTBP_CACHE_DIR=str(warm_cache), **ENVIRONMENT).stdout)


def test_memory_map(fresh, warm_cache, tmp_path):
    require(1024)
    mib = 512
    print(fresh(mapped, str(tmp_path / "data"), mib, FASTBP_CACHE_DIR=str(warm_cache), **ENVIRONMENT).stdout)
