"""Fixtures every test may use."""

import concurrent.futures
import contextlib
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Those of a machine without a GPU, unless FASTBP_TEST_DEVICES says which.
BACKENDS = tuple(os.environ.get("FASTBP_TEST_DEVICES", "reference,cpu").split(","))
ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds until a process counts as one that hangs
COLLECTED = pytest.StashKey[list[str]]()  # the ids of all tests of this run, long ones among them

os.environ.pop("COLUMNS", None)  # of the terminal that the tests were started from: output is as wide as a test says

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_whole(config):
    """Whether this is a run of all tests, not of some that its command names."""
    if hasattr(config, "workerinput"):  # a process of such a run
        return config.workerinput["whole"]
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS


def pytest_xdist_auto_num_workers(config):
    """A run of all tests has as many processes as training would have threads; others have one, their own."""
    import fastbp

    return fastbp.get_num_threads() if is_whole(config) else 0


def pytest_configure_node(node):
    """Tell a process of the run whether it is one of all tests."""
    node.workerinput["whole"] = is_whole(node.config)


def pytest_unconfigure():
    """Let a process end without a last look at all that Numba has made, which takes it up to half a minute."""
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests marked long too")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Without --long, the tests marked so are left out."""
    config.stash[COLLECTED] = [item.nodeid for item in items]
    if config.getoption("long"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(params=BACKENDS)
def device(request):
    """The name of a backend."""
    return request.param


@pytest.fixture
def backend(device):
    """The module of a backend: the contract's names, taking arrays of the host."""
    module = importlib.import_module(f"fastbp.kernels.{device}")
    if device == "cuda":
        from .contract.host_arrays import HostArrays

        return HostArrays(module)
    return module


def in_fresh_process(function, *arguments, cwd=ROOT, **environment):
    """Call a function of a test module, with literals, in a process of its own.

    ``environment`` has variables, None takes one out; packages are imported from ``cwd`` first. A process that fails,
    is killed or hangs fails the test, with the stacks of its threads; the finished one is returned.
    """
    code = (
        f"import faulthandler; faulthandler.dump_traceback_later({PATIENCE}, exit=True)\n"
        f"from {function.__module__} import {function.__name__} as function\n"
        f"function(*{arguments!r})"
    )
    variables = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        cwd=cwd, env=variables, capture_output=True, text=True, timeout=PATIENCE + 30,
    )  # fmt: skip
    assert process.returncode == 0, f"exit code {process.returncode}\n{process.stdout}\n{process.stderr[-6000:]}"
    return process


def bfloat16_units():
    """For parametrize: every unit that multiplies bfloat16 on the CPU, those that this machine lacks as skipped."""
    from fastbp.kernels.cpu import units

    def has(unit):
        with contextlib.suppress(ValueError):
            return bool(units.usable(unit))
        return False

    return [
        pytest.param(unit, marks=pytest.mark.skipif(not has(unit), reason=f"this machine has no {unit}"))
        for unit in units.NAMES
    ]


@pytest.fixture
def unit(request, monkeypatch):
    """The unit that multiplies bfloat16: the parameter, by `bfloat16_units`."""
    from fastbp.kernels.cpu import units

    monkeypatch.setenv(units.VARIABLE, request.param)
    return request.param


@pytest.fixture(scope="session")
def fresh():
    """`in_fresh_process`."""
    return in_fresh_process


def warm_up(*dtypes):
    """Compile every kernel for these dtypes, or none, and print where the cache is."""
    import fastbp
    from fastbp.kernels import jit

    if dtypes:
        fastbp.warmup(dtypes)
    print(jit.cache_directory() or "")


def warm_up_at_once(*dtypes, **environment):
    """`warm_up` with a process a dtype, side by side; what they print."""

    def printed(dtype):
        return in_fresh_process(warm_up, dtype, **environment).stdout

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(printed, dtypes))


def pytest_sessionstart(session):
    """A run of all tests begins by filling its cache on two cores; others compile what they need."""
    config = session.config
    begins = is_whole(config) and not hasattr(config, "workerinput") and not config.getoption("collectonly")
    if begins and "cpu" in BACKENDS:
        warm_up_at_once("float32", "float64")


@pytest.fixture(scope="session")
def warmed(tmp_path_factory, fresh):
    """A private cache directory with every kernel: ``warmed(*dtypes, **environment)``.

    What the cache of this run has of them is copied, and only the rest is compiled.
    """

    def call(*dtypes, **environment):
        directory = tmp_path_factory.mktemp("kernels")
        here = fresh(warm_up, **environment).stdout.strip()
        if here:
            shutil.copytree(here, directory / Path(here).name)
        warm_up_at_once(*dtypes, **{"FASTBP_CACHE_DIR": str(directory), "FASTBP_CACHE": None} | environment)
        return directory

    return call


@pytest.fixture(scope="session")
def warm_cache(warmed):
    """A private cache directory that holds every kernel."""
    return warmed("float32", "float64")
