"""The cache of compiled kernels: it saves time and can change nothing else.

Every process has a cache directory of the test's own.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbp

from .conftest import ROOT


def train(*widths, batch_size=16, threads=1):
    """Bits of a small training and its predictions."""
    fastbp.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((70, widths[0])).astype(np.float32), rng.integers(0, widths[-1], 70)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (fastbp.Linear(*pair), fastbp.ReLU())][:-1]
    model = fastbp.Sequential(*layers, seed=0)
    model.fit(x, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(), batch_size=batch_size, verbose=False)
    return model.flat_parameters.tobytes() + model.predict(x).tobytes()


def elementwise():
    """Bits made by a few kernels that compile quickly: relu there and back, a sigmoid, a copy."""
    from fastbp.kernels import cpu, layout

    z, saved = np.random.default_rng(0).standard_normal((2, 9, 21)).astype(np.float32)
    out = []
    for name in ("relu", "sigmoid"):
        out.append(np.empty_like(z))
        cpu.activation_forward(z, layout.ACTIVATIONS.index(name), 0.0, out[-1])
    out.append(np.empty_like(z))
    cpu.activation_backward(z, saved, layout.ACTIVATIONS.index("relu"), 0.0, out[-1])
    return b"".join(array.tobytes() for array in out)


def report(*trainings):
    """Print what these trainings gave, or else `elementwise`, and what was compiled."""
    from fastbp.kernels import jit

    bits = [train(*widths, **arguments) for widths, arguments in trainings] or [elementwise()]
    directory = jit.cache_directory()
    answer = {
        "results": [hashlib.sha256(one).hexdigest() for one in bits],
        "compiled": sorted(name for name, _ in jit.compiled),
        "directory": directory and str(directory),
        "package": fastbp.__file__,
    }
    print(json.dumps(answer))


@pytest.fixture(scope="module")
def cached(fresh):
    """`report` in a process with this cache directory."""

    def call(directory, *trainings, **environment):
        environment = {"FASTBP_CACHE": None, "FASTBP_CACHE_DIR": str(directory)} | environment
        return json.loads(fresh(report, *trainings, **environment).stdout)

    return call


@pytest.fixture(scope="module")
def filled(cached, tmp_path_factory):
    """(A cache directory with the kernels of `elementwise`, the report of the process that filled it)."""
    directory = tmp_path_factory.mktemp("filled")
    first = cached(directory)
    assert first["compiled"] == ["identity_forward", "relu_backward", "relu_forward", "sigmoid_forward"]
    return directory, first


@pytest.fixture
def copy(filled, tmp_path):
    """A copy of that directory to be spoilt, and the result that is right."""
    shutil.copytree(filled[0], tmp_path / "cache")
    return tmp_path / "cache", filled[1]["results"]


def kernels(directory):
    """The files of a cache by the name of their kernel."""
    return {path.name.partition("-")[0]: path for path in sorted(directory.rglob("*.kernel"))}


# ------------------------------------------------------------------------------------- it is used
def test_warm_cache_compiles_nothing(cached, filled):
    directory, first = filled
    second = cached(directory)
    assert second["compiled"] == []
    assert second["results"] == first["results"]


def test_warm_cache_trains_without_the_compiler(cached, warm_cache):
    """Nor does another architecture, batch size or number of threads need it."""
    trainings = [
        ((5, 8, 3), {}),
        ((30, 100, 40, 20, 2), {"batch_size": 7}),
        ((64, 3), {"batch_size": 70, "threads": 2}),
        ((600, 9), {"threads": 3}),
    ]
    report = cached(warm_cache, *trainings)
    assert report["compiled"] == []
    assert len(set(report["results"])) == 4


def predict_alone():
    """Loads kernels before anything else of Numba was used; a symbol that is missing would abort here."""
    from fastbp.kernels import jit

    fastbp.Sequential(fastbp.Linear(5, 3), seed=0).predict(np.ones((2, 5), np.float32))
    assert jit.compiled == []


def load_alone(name):
    from fastbp.kernels import jit

    assert jit._load(Path(name)).address


def test_first_thing_a_process_does_is_to_load(fresh, warm_cache):
    fresh(predict_alone, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(warm_cache))


@pytest.mark.parametrize("name", ["forward", "train_steps", "gemm"])  # those with symbols of the runtime
def test_every_kernel_can_be_the_first(fresh, warm_cache, name):
    fresh(load_alone, str(kernels(warm_cache)[name]))


# ------------------------------------------------------------------------------------- damaged files
def flipped(content, every):
    content = bytearray(content)
    for i in range(0, len(content), every):
        content[i] ^= 1 << i % 8
    return bytes(content)


DAMAGES = {
    "empty": lambda content: b"",
    "short": lambda content: content[:20],
    "without its last byte": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "one bit": lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:],
    "many bits": lambda content: flipped(content, 97),
    "garbage": lambda content: np.random.default_rng(0).bytes(len(content)),
    "text": lambda content: b"not a kernel\n" * 100,
}


@pytest.mark.parametrize("damages", [list(DAMAGES)[first : first + 3] for first in (0, 3, 6)], ids=", ".join)
def test_damaged_files_are_compiled_again(cached, copy, damages):
    """Every file has one of the damages."""
    directory, right = copy
    for path, damage in zip(kernels(directory).values(), itertools.cycle(damages), strict=False):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    report = cached(directory)
    assert report["compiled"] == sorted(kernels(directory))
    assert report["results"] == right
    assert cached(directory)["compiled"] == []  # and mended


def test_every_byte_counts(filled):
    """A file with any byte changed is refused before any of it is used."""
    from fastbp.kernels import disk

    path = kernels(filled[0])["relu_forward"]
    content = path.read_bytes()
    place = f"{path.parent.name}/{path.name}"
    name, symbol, object_code, bitcode = disk._unpacked(place, content)
    assert disk._packed(place, name, symbol, object_code, bitcode) == content
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        with pytest.raises(ValueError, match="checksum"):
            disk._unpacked(place, bytes(changed))


def replaced_by_a_directory(path, other):
    path.unlink()
    path.mkdir()


def replaced_by_a_pipe(path, other):
    path.unlink()
    os.mkfifo(path)


def replaced_by_another_kernel(path, other):
    shutil.copy(other, path)


def written_by_anybody(path, other):
    path.chmod(0o666)


def owned_by_somebody_else(path, other):
    if os.getuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 12345, -1)


needs_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


@needs_posix
@pytest.mark.parametrize(
    "change",
    [
        replaced_by_a_directory,
        replaced_by_a_pipe,
        replaced_by_another_kernel,
        written_by_anybody,
        owned_by_somebody_else,
    ],
)
def test_what_is_no_entry_of_this_name_and_user_is_not_read(tmp_path, change):
    from fastbp.kernels import disk

    path, other = tmp_path / "f-0.kernel", tmp_path / "g-0.kernel"
    for entry in (path, other):
        disk.write_entry(entry, entry.name.encode())
        assert disk.read_entry(entry) == [entry.name.encode()]
    change(path, other)
    assert disk.read_entry(path) is None
    assert disk.read_entry(other) == [b"g-0.kernel"]


def test_entry_of_another_stamp_is_not_read(tmp_path):
    """As if a directory had been renamed: what it holds is of other sources."""
    from fastbp.kernels import disk

    (tmp_path / "0").mkdir()
    disk.write_entry(tmp_path / "0/f-0.kernel", b"code")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    assert disk.read_entry(tmp_path / "0/f-0.kernel") == [b"code"]
    assert disk.read_entry(tmp_path / "1/f-0.kernel") is None


@needs_posix
def test_entries_of_others_are_compiled_again(cached, copy):
    directory, right = copy
    paths = kernels(directory)
    changes = [replaced_by_a_directory, replaced_by_a_pipe, replaced_by_another_kernel, written_by_anybody]
    for (name, path), change in zip(paths.items(), changes, strict=True):
        change(path, paths["sigmoid_forward" if name != "sigmoid_forward" else "relu_forward"])
    report = cached(directory)
    assert report["compiled"] == sorted(paths)
    assert report["results"] == right
    assert cached(directory)["compiled"] == list(paths)[:1]  # a directory stays, the others are mended


# --------------------------------------------------------------------------------- what accumulates
def write_an_entry(root, size):
    """Write an entry as a process does that compiles; stamps may take ``size`` bytes."""
    from fastbp.kernels import disk, jit

    disk.OLD_STAMPS = size
    directory = jit.cache_directory()
    disk.write_entry(directory / "f-0.kernel", b"code")
    assert disk.read_entry(directory / "f-0.kernel") == [b"code"]
    assert directory.parent == Path(root)


@pytest.mark.parametrize(("size", "left"), [(3000, "123"), (2999, "23"), (1000, "3"), (999, "")])
def test_least_recently_used_stamps_are_removed(fresh, tmp_path, size, left):
    stamps = {number: tmp_path / (number * 16) for number in "123"}
    for number, stamp in stamps.items():
        stamp.mkdir()
        (stamp / "f-0.kernel").write_bytes(b"x" * 900)
        (stamp / ".new-abc").write_bytes(b"x" * 100)
        os.utime(stamp, (0, int(number)))
    fresh(write_an_entry, str(tmp_path), size, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path))
    assert "".join(number for number, stamp in stamps.items() if stamp.exists()) == left


def test_nothing_of_others_is_removed(fresh, tmp_path):
    """Neither files that are no entries, nor directories that are no stamps, nor what a link points to."""
    elsewhere = tmp_path / "elsewhere"
    cache = tmp_path / "cache"
    kept = [elsewhere / "f-0.kernel", cache / "photographs/f-0.kernel", cache / ("1" * 16) / "letter.txt"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.write_text("x")
    (cache / ("2" * 16)).symlink_to(elsewhere)
    fresh(write_an_entry, str(cache), -1, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(cache))
    assert all(path.read_text() == "x" for path in kept)


def test_files_that_nobody_finished_are_removed(fresh, copy):
    directory, _ = copy
    (stamp,) = directory.iterdir()
    for name, age in ((".new-old", 2), (".new-young", 0)):
        (stamp / name).write_bytes(b"x")
        hours = 3600 * age
        os.utime(stamp / name, (os.stat(stamp / name).st_mtime - hours,) * 2)
    fresh(write_an_entry, str(directory), 0, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(directory))
    assert {path.name for path in stamp.glob(".new*")} == {".new-young"}


# --------------------------------------------------------------------------------------------- warmup
def predict_after_warmup():
    """Print what probabilities compile, or load, after a warmup for their losses."""
    from fastbp.kernels import jit

    losses = ["cross_entropy", "binary_cross_entropy_with_logits"]
    fastbp.warmup("float32", activations=["relu"], losses=losses, optimizers=["sgd"])
    before = set(jit._kernels)
    model = fastbp.Sequential(fastbp.Linear(3, 4), fastbp.ReLU(), fastbp.Linear(4, 2), seed=0)
    for loss in (fastbp.CrossEntropyLoss(), fastbp.BCEWithLogitsLoss()):
        model.predict_proba(np.ones((5, 3), np.float32), loss)
    print(json.dumps([len(before) > 0, sorted(jit._kernels.keys() - before)]))


def test_nothing_is_compiled_for_probabilities_after_warmup(fresh):
    assert json.loads(fresh(predict_after_warmup).stdout) == [True, []]


# -------------------------------------------------------------------------------- unusable directories
def test_cache_can_be_switched_off(cached, copy):
    directory, right = copy
    report = cached(directory, FASTBP_CACHE="0")
    assert report["directory"] is None
    assert report["compiled"]
    assert report["results"] == right


def limit_files_and_report():
    """As on a full disk: every write to a file fails."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    from fastbp.kernels import jit

    try:
        result = elementwise()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"results": [hashlib.sha256(result).hexdigest()], "compiled": len(jit.compiled)}))


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_full_disk(fresh, filled, tmp_path):
    process = fresh(limit_files_and_report, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path))
    report = json.loads(process.stdout)
    assert report["results"] == filled[1]["results"]
    assert report["compiled"] == len(filled[1]["compiled"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def directory_with():
    """(Cache directory, what was warned of) of a process that looks for it with this environment."""
    from fastbp.kernels import jit

    look = jit.cache_directory.__wrapped__  # as a process does once

    def call(**environment):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name, value in ({"FASTBP_CACHE": None, "FASTBP_CACHE_DIR": None} | environment).items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            directory = look()
        return directory and str(directory), "".join(str(warning.message) for warning in caught)

    return call


def test_place_of_the_cache(directory_with, tmp_path):
    stamp = r"[0-9a-f]{16}"
    for environment, place in (
        ({"HOME": str(tmp_path), "XDG_CACHE_HOME": None}, tmp_path / ".cache/fastbp"),
        ({"HOME": str(tmp_path / "z"), "XDG_CACHE_HOME": "", "FASTBP_CACHE_DIR": ""}, tmp_path / "z/.cache/fastbp"),
        ({"XDG_CACHE_HOME": str(tmp_path / "x")}, tmp_path / "x/fastbp"),
        ({"XDG_CACHE_HOME": str(tmp_path / "x"), "FASTBP_CACHE_DIR": str(tmp_path / "y")}, tmp_path / "y"),
    ):
        directory, stderr = directory_with(**environment)
        assert re.fullmatch(f"{re.escape(str(place))}/{stamp}", directory)
        assert os.stat(directory).st_mode & 0o777 == 0o700
        assert stderr == ""


def test_no_place_for_a_cache(directory_with, tmp_path):
    (tmp_path / "file").write_text("")
    for environment in (
        {"FASTBP_CACHE_DIR": str(tmp_path / "file")},
        {"FASTBP_CACHE_DIR": str(tmp_path / "file" / "below")},
        {"FASTBP_CACHE_DIR": "/proc/fastbp"},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": None},
        {"FASTBP_CACHE_DIR": "a\0b"} if sys.platform == "win32" else {"FASTBP_CACHE_DIR": "x" * 5000},
    ):
        assert directory_with(**environment) == (None, "")


def no_home():
    """No HOME, and no entry for the user in the system's list."""
    import pwd

    def nobody(uid):
        raise KeyError(uid)

    pwd.getpwuid = nobody
    from fastbp.kernels import jit

    print(json.dumps(jit.cache_directory() and str(jit.cache_directory())))


def test_no_home(fresh):
    process = fresh(no_home, FASTBP_CACHE=None, FASTBP_CACHE_DIR=None, XDG_CACHE_HOME=None, HOME=None)
    assert json.loads(process.stdout) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_directories_of_others_are_refused(directory_with, tmp_path):
    def ask():
        return directory_with(FASTBP_CACHE_DIR=str(tmp_path / "cache"))

    directory = Path(ask()[0])
    changes = [(directory, 0o777, None), (directory, 0o770, None), (directory.parent, 0o777, None)]
    if os.getuid() == 0:
        changes += [(directory, 0o700, 12345), (directory.parent, 0o755, 12345), (directory.parent, 0o1777, 12345)]
    for path, mode, owner in changes:
        path.chmod(mode)
        if owner is not None:
            os.chown(path, owner, -1)
        place, warned = ask()
        assert place is None
        assert f"{path} is not private to this user; kernels are not cached" in warned
        path.chmod(0o700)
        os.chown(path, os.getuid(), -1)
    directory.parent.chmod(0o1777)  # as /tmp
    assert ask() == (str(directory), "")


def test_refused_directory_is_not_read(cached, copy):
    directory, right = copy
    (stamped,) = directory.iterdir()
    stamped.chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in stamped.iterdir()}
    report = cached(directory)
    assert report["compiled"]
    assert report["results"] == right
    assert {path: path.stat().st_mtime_ns for path in stamped.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_directory_that_cannot_be_written(directory_with, tmp_path):
    tmp_path.chmod(0o500)
    assert directory_with(FASTBP_CACHE_DIR=str(tmp_path / "cache")) == (None, "")


# ------------------------------------------------------------------------------------------ stale code
@pytest.fixture
def package(tmp_path):
    """A copy of the package and its tests; a process that starts there imports it."""
    ignore = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "fastbp", tmp_path / "copy/fastbp", ignore=ignore)
    shutil.copytree(Path(fastbp.kernels.__file__).parent, tmp_path / "copy/fastbp/kernels")
    shutil.copytree(ROOT / "tests", tmp_path / "copy/tests", ignore=ignore)
    return tmp_path / "copy"


def test_changed_callee_in_another_file_is_compiled_anew(fresh, package, tmp_path):
    def run():
        process = fresh(report, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path), cwd=package)
        return json.loads(process.stdout)

    first = run()
    assert first["package"].startswith(str(package))
    assert run()["compiled"] == []
    formulas = package / "fastbp/kernels/activations.py"
    text = formulas.read_text()
    old = "return select(z <= 0.0, 0.0, z)"
    assert text.count(old) == 1
    formulas.write_text(text.replace(old, "return select(z <= 0.0, 0.0, z + z)"))
    changed = run()
    assert changed["directory"] != first["directory"]
    assert changed["compiled"] == first["compiled"]
    assert changed["results"] != first["results"]
    formulas.write_text(text)
    again = run()
    assert (again["results"], again["compiled"]) == (first["results"], [])


def as_bytecode(package):
    """Only the ``.pyc`` files, beside where their sources were."""
    import compileall

    assert compileall.compile_dir(package / "fastbp", quiet=1, legacy=True)
    for path in (package / "fastbp").rglob("*.py"):
        path.unlink()
    return package


def one_module_as_bytecode(package):
    import compileall

    path = package / "fastbp/kernels/activations.py"
    assert compileall.compile_file(path, quiet=1, legacy=True)
    path.unlink()
    return package


def as_archive(package):
    shutil.make_archive(str(package / "packed"), "zip", package, "fastbp")
    shutil.rmtree(package / "fastbp")
    return package


@pytest.mark.parametrize("install", [as_bytecode, one_module_as_bytecode, as_archive])
def test_code_without_sources_is_not_cached(fresh, package, tmp_path, install):
    """What changed could not be told from what did not."""
    cwd = install(package)
    archive = {"PYTHONPATH": str(package / "packed.zip")} if install is as_archive else {}
    process = fresh(report, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path / "cache"), cwd=cwd, **archive)
    told = json.loads(process.stdout)
    assert told["package"].startswith(str(package))
    assert told["directory"] is None
    assert told["compiled"]
    assert "the source of a kernel is missing" in process.stderr
    assert not (tmp_path / "cache").exists()


@functools.cache
def stamp_here():
    from fastbp.kernels import jit

    return jit._stamp()


def print_stamp(flags):
    from fastbp.kernels import jit

    jit.FLAGS.update(flags)
    print(jit._stamp())


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        ({"fastmath": True}, {}),
        ({"boundscheck": True}, {}),
        ({}, {"NUMBA_OPT": "1"}),
        ({}, {"NUMBA_LOOP_VECTORIZE": "0"}),
        ({}, {"NUMBA_CPU_NAME": "generic"}),
        ({}, {"NUMBA_CPU_FEATURES": ""}),
    ],
    ids=str,
)
def test_flags_and_features_belong_to_the_stamp(fresh, flags, environment):
    assert fresh(print_stamp, flags, **environment).stdout.strip() != stamp_here()


def test_stamp_is_the_same_in_every_process(fresh):
    for seed in ("0", "1"):
        assert fresh(print_stamp, {}, PYTHONHASHSEED=seed).stdout.strip() == stamp_here()


# ------------------------------------------------------------------------------------------- races
def test_processes_that_fill_one_cache_at_once(cached, filled, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: cached(tmp_path), range(4)))
    assert all(report["results"] == filled[1]["results"] for report in reports)
    assert cached(tmp_path)["compiled"] == []
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".kernel"}
    assert set(kernels(tmp_path)) == set(kernels(filled[0]))
