"""Everything that needs a GPU, in one call of under 8 minutes; prints a table as it goes, and again at the end.

    python tests/cuda/on_gpu.py [--seconds 460] [--only smoke,steps,…] [--out FOLDER]

Each part is a process of its own with its own time limit, so that one that hangs or crashes leaves the others. What is
worth most comes first: whether kernels run at all, how fast, and where thresholds should be; then the tests.
Kernels that one part compiles the next finds on disk. ``--out`` keeps the output of each part, the figures of the
comparisons and the table, written after every part. The exit code is 0 where every part passed. Where fastbp is not
installed it is, without what it depends on, in a folder that is removed at the end.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # as it is for the parts
    sys.path.insert(0, str(ROOT))

from tests.cuda.sitting import asked, equality, running, table, thresholds, where  # noqa: E402

TAIL = 3000  # characters of a failed part that are shown
PATIENCE = 10  # seconds until a killed part is left behind
FEWEST_SECONDS = 5  # that a part is begun with
HERE = {  # parts that are functions of ours
    "machine": running.machine,
    "warm": running.warm,
    "smoke": running.smoke,
    "again": running.again,
    "where": where.where,
    "stored": where.stored,
    "thresholds": thresholds.thresholds,
    "product": thresholds.product,
    "wgmma": asked.wgmma,
    "pairs": asked.pairs,
    "clusters": asked.clusters,
    "equal": equality.equal,
    "large": equality.large,
}


# ---------------------------------------------------------------------------------------------- parts
def _pytest(*arguments):
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def _sanitizer():
    found = shutil.which("compute-sanitizer")
    if found is None:
        return None
    return [found, "--tool", "memcheck", "--error-exitcode", "9", *_pytest("-x", "tests/cuda/test_steps.py")]


def _profile():
    found = shutil.which("ncu")
    if found is None:
        return None
    skip = ["--kernel-name", "regex:gemm", "--launch-skip", "5", "--launch-count", "5"]
    return [found, *skip, "--metrics", ",".join(table.METRICS), sys.executable, __file__, "--part", "product"]


def _contract():
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    return _pytest(*workers, "tests/contract/test_contract.py")


def parts(folder):
    """(name, command or None where it is not installed, most seconds), the most valuable first."""
    this = [sys.executable, __file__, "--part"]
    compare = [sys.executable, "-m", "fastbp", "compare", "--device", "cuda", "--quick"]
    return [
        ("machine", [*this, "machine"], 40),
        ("warm", [*this, "warm"], 75),
        ("smoke", [*this, "smoke"], 90),
        ("again", [*this, "again"], 40),
        ("where", [*this, "where"], 80),
        ("gemm", [*compare, "--json", str(folder / "gemm.json"), "--what", "gemm"], 60),
        ("steps", [*compare, "--json", str(folder / "steps.json"), "--what", "steps"], 90),
        ("wgmma", [*this, "wgmma"], 120),
        ("pairs", [*this, "pairs"], 60),
        (
            "gemm by wgmma",
            ["env", "FASTBP_CUDA=wgmma", *compare, "--json", str(folder / "gemm by wgmma.json"), "--what", "gemm"],
            60,
        ),
        ("stored", [*this, "stored"], 100),
        ("thresholds", [*this, "thresholds"], 90),
        ("clusters", [*this, "clusters"], 60),
        ("models in clusters", _pytest("tests/cuda/test_cluster.py"), 60),
        ("models and steps", _pytest("tests/cuda/test_front.py", "tests/cuda/test_steps.py"), 120),
        ("exchange", _pytest("tests/cuda/test_exchange.py", "tests/cuda/test_pieces.py"), 60),
        ("equal", [*this, "equal"], 60),
        ("profile", _profile(), 60),
        ("products", _pytest("tests/cuda/test_gemm.py"), 60),
        ("large", [*this, "large"], 60),
        ("contract", _contract(), 150),
        ("sanitizer", _sanitizer(), 90),
    ]


# ------------------------------------------------------------------------------------------ processes
def run(command, seconds, packages, path):
    """The outcome of a part whose output goes to a file; it uses the packages and the kernels of a folder."""
    places = os.pathsep.join(filter(None, (str(packages), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "FASTBP_TEST_DEVICES": "cuda", "PYTHONPATH": places, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1", "FASTBP_CACHE_DIR": str(packages / "kernels-on-disk"), "FASTBP_CACHE": "1",
    }  # fmt: skip
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    with path.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return "passed" if code == 0 else "too long" if code is None else f"FAILED ({code})"


def _end(process):
    """A process and those that it started; one that hangs in the driver is left behind."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    process.kill()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end: what follows shares the GPU with it", flush=True)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=460, help="for everything together (%(default)s)")
    parser.add_argument("--only", help="names of parts, separated by commas")
    parser.add_argument("--out", type=Path, help="a folder for outputs, figures and the table")
    parser.add_argument("--part", choices=HERE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return HERE[options.part]()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the table
    begin, rows = time.monotonic(), []
    packages = Path(tempfile.mkdtemp())
    folder = (options.out or packages / "out").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known = parts(folder)
    wanted = options.only.split(",") if options.only else [name for name, _, _ in known]
    if unknown := set(wanted) - {name for name, _, _ in known}:
        parser.error(f"--only {', '.join(sorted(unknown))}: expected {', '.join(name for name, _, _ in known)}")
    try:
        install(packages)
        for name, command, seconds in known:
            if name not in wanted:
                continue
            path, start = folder / f"{name.replace(' ', '-')}.txt", time.monotonic()
            left = options.seconds - (start - begin)
            if command is None or left < FEWEST_SECONDS:
                rows.append((name, "not installed" if command is None else "no time left", 0, []))
            else:
                outcome = run(command, min(seconds, left), packages, path)
                output = path.read_text(errors="replace")
                lines = table.lines_of(name, outcome, output, folder, name in HERE)
                rows.append((name, outcome, time.monotonic() - start, lines))
                if outcome.startswith("FAILED"):
                    print(output[-TAIL:], flush=True)
            print(table.row(*rows[-1]), flush=True)
            (folder / "table.txt").write_text("\n".join(table.row(*one) for one in rows) + "\n")
    finally:  # whatever ends this, the table comes
        shutil.rmtree(packages / "kernels-on-disk", ignore_errors=True)
        print("\n" + "-" * 100)
        for one in rows:
            print(table.row(*one))
        if options.out:
            print(f"everything is in {folder}", flush=True)
        shutil.rmtree(packages, ignore_errors=True)
    return int(any(outcome not in ("passed", "not installed") for _, outcome, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
