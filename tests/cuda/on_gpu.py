"""Everything that needs a GPU, in one call of under 8 minutes; prints a table last.

    python tests/cuda/on_gpu.py [--seconds 460] [--only compare,large,…] [--json FILE]

Each part is a process of its own with its own time limit, so that one that hangs or crashes leaves the others. What
is slowest and least likely to tell something new comes last. The exit code is 0 where every part passed. Where fastbp
is not installed it is, without what it depends on, in a folder that is removed at the end.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RUNS = 20  # that must be equal
LARGE = 2**31 + 2**20  # elements of an array, more than 32 bits with a sign count
COLUMNS = 1 << 16  # of a product of that size
LARGE_BYTES = 24 << 30  # free memory that the large sizes take
TAIL = 3000  # characters of a failed part that are shown


# ------------------------------------------------------------------------------- parts in this file
def machine():
    """The GPU and what it runs with."""
    import fastbp

    fastbp.show_config("cuda")


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
            outcomes.add((model.flat_parameters.tobytes(), model.predict(X).tobytes(), str(history.column("loss"))))
        assert len(outcomes) == 1, f"{len(outcomes)} different results of {RUNS} runs of {widths}"
        print(f"{widths} @ {batch}: {RUNS} equal runs")
    X = rng.standard_normal((512, 4096), dtype=np.float32)
    y, losses = rng.integers(0, 10, len(X)), []
    for device in ("cpu", "cuda"):
        model = fastbp.Sequential(
            fastbp.Linear(4096, 4096), fastbp.ReLU(), fastbp.Linear(4096, 10), device=device, seed=0
        )
        options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.SGD(lr=0.01)}
        losses.append(model.fit(X, y, **options, epochs=2, batch_size=128, verbose=False).column("loss"))
    difference = float(np.abs(np.subtract(*losses)).max())
    assert difference < 1e-4, losses
    cuda.synchronize()
    print(f"4096-4096-10 @ 128: losses of CPU and GPU differ by {difference:.1e}")


def large():
    """Arrays of more than 2**31 elements: their last elements are right."""
    import fastbp
    from fastbp.kernels import cuda, table

    free = cuda.driver.free_memory()
    if free < LARGE_BYTES:
        print(f"left out: {free / 2**30:.0f} GiB are free, and {LARGE_BYTES / 2**30:.0f} are needed")
        return
    rng, relu = np.random.default_rng(0), table.ACTIVATIONS.index("relu")
    last = rng.standard_normal(1000).astype(np.float32)

    values = cuda.empty((1, LARGE), np.float32)
    cuda.driver.to_device(last, cuda.driver.flat(values)[LARGE - 1000 :])
    cuda.activation_forward(values, relu, 0.0, values)
    np.testing.assert_array_equal(cuda.to_host(cuda.driver.flat(values)[LARGE - 1000 :]), np.maximum(last, 0))
    del values
    print("activation: right")

    columns = COLUMNS
    rows = LARGE // columns + 1
    x, weight = rng.standard_normal((rows, 8), dtype=np.float32), rng.standard_normal((8, columns), dtype=np.float32)
    out = cuda.empty((rows, columns), np.float32)
    cuda.linear_forward(cuda.to_device(x), cuda.to_device(weight), None, relu, 0.0, out, out)
    found = cuda.to_host(cuda.driver.flat(out)[(rows - 1) * columns :])
    np.testing.assert_allclose(found, np.maximum(x[-1] @ weight, 0), rtol=1e-5, atol=1e-5)
    del out
    print("product: right")

    features = 64
    rows = LARGE // features
    X, tail = cuda.empty((rows, features), np.int8), rng.integers(-9, 9, (500, features), dtype=np.int8)
    cuda.driver.to_device(tail.reshape(-1), cuda.driver.flat(X)[(rows - 500) * features :])
    model = _network((features, 16, 3))
    workspace = cuda.InferenceWorkspace(model.network.table, model.dtype)
    out = cuda.empty((rows, 3), np.float32)
    cuda.network_forward(workspace, model.network.values, X, out)
    np.testing.assert_array_equal(cuda.to_host(out[rows - 500 :]), model.predict(tail))
    print("predict: right")

    y, other = rng.integers(0, 3, 500), _network((features, 16, 3))
    labels = cuda.empty(rows, np.int64)
    cuda.driver.to_device(y, labels[rows - 500 :])
    optimizer = fastbp.SGD(lr=0.1)
    expected = other.fit(
        tail, y, loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, shuffle=False, batch_size=500, verbose=False
    )
    loss, hits = np.zeros(1), np.zeros(1, np.int64)
    arguments = table.LOSSES.index("cross_entropy"), 0.0, table.OPTIMIZERS.index("sgd")
    workspace = cuda.TrainingWorkspace(model.network.table, model.dtype, 500, *arguments)
    done = cuda.network_train_steps(
        workspace, model.network.values, (), optimizer.coefficients(0, 1), np.zeros(1, np.uint64), X, labels, None,
        np.arange(rows - 500, rows), 500, loss, hits,
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


def _contract():
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    return _pytest(*workers, "tests/contract/test_contract.py")


def parts(report):
    """(name, command or None where it cannot run, most seconds); a function of this file is called by its name."""
    this = [sys.executable, __file__, "--part"]
    compare = [
        sys.executable,
        "-m",
        "fastbp",
        "compare",
        "--device",
        "cuda",
        "--quick",
        "--json",
        str(report),
        "--what",
    ]
    return [
        ("machine", [*this, "machine"], 40),
        ("compare", [*compare, "steps,gemm"], 120),
        ("models and steps", _pytest("tests/cuda/test_front.py", "tests/cuda/test_steps.py"), 120),
        ("exchange", _pytest("tests/cuda/test_exchange.py", "tests/cuda/test_pieces.py"), 60),
        ("equal", [*this, "equal"], 60),
        ("large", [*this, "large"], 60),
        ("products", _pytest("tests/cuda/test_gemm.py", "tests/cuda/test_driver.py"), 60),
        ("contract", _contract(), 150),
        ("sanitizer", _sanitizer(), 90),
    ]


# ---------------------------------------------------------------------------------------------- table
def run(command, seconds, packages):
    """(outcome, output) of a part, with the packages of a folder."""
    path = os.pathsep.join(filter(None, (str(packages), str(ROOT), os.environ.get("PYTHONPATH"))))
    settings = {"FASTBP_TEST_DEVICES": "cuda", "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    environment = os.environ | settings
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            code = None
        output.seek(0)
        return "passed" if code == 0 else "too long" if code is None else f"FAILED ({code})", output.read()


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


def lines_of(name, outcome, output, report):
    """What the table says of a part."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    if outcome != "passed":
        return lines[-1:]
    if name == "compare" and report.exists():
        found = []
        for what, results in json.loads(report.read_text()).items():
            for result in results if what in ("steps", "gemm") else ():
                ours = f"{result['title']:<26}{result['us']:>10.1f} µs"
                if what == "gemm":
                    ours = f"{result['name']} {ours}{result['flops'] / result['us'] / 1e6:>8.1f} TFLOP/s"
                for peer, figures in result["peers"].items():
                    ours += f"   {peer} {figures['us']:.1f} µs, ratio {figures['ratio']:.2f}"
                    ours += f" (aim {figures['target_ratio']:g})" if figures["target_ratio"] else ""
                found.append(ours)
        return found
    return lines if name in ("machine", "equal", "large") else lines[-1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=460, help="for everything together (%(default)s)")
    parser.add_argument("--only", help="names of parts, separated by commas")
    parser.add_argument("--json", type=Path, help="where to keep the figures of the comparison")
    parser.add_argument("--part", choices=("machine", "equal", "large"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return globals()[options.part]()
    begin, rows = time.monotonic(), []
    folder = Path(tempfile.mkdtemp())
    report = options.json.resolve() if options.json else folder / "compare.json"
    install(folder)
    for name, command, seconds in parts(report):
        if options.only and name not in options.only.split(","):
            continue
        left = options.seconds - (time.monotonic() - begin)
        start = time.monotonic()
        if command is None or left < 5:
            outcome, output = "not installed" if command is None else "no time left", ""
        else:
            outcome, output = run(command, min(seconds, left), folder)
        rows.append((name, outcome, time.monotonic() - start, lines_of(name, outcome, output, report)))
        print(f"== {name}: {outcome}", flush=True)
        if outcome != "passed":
            print(output[-TAIL:], flush=True)
    shutil.rmtree(folder)
    print("\n" + "-" * 100)
    for name, outcome, seconds, lines in rows:
        first, *others = lines or [""]
        print(f"{name:<18}{outcome:<14}{seconds:>5.0f} s  {first}")
        for line in others:
            print(f"{'':<41}{line}")
    return int(any(outcome != "passed" for _, outcome, _, _ in rows if outcome != "not installed"))


if __name__ == "__main__":
    sys.exit(main())
