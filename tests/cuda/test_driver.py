"""What a machine without the package, or without a GPU, says; that the CPU imports nothing of CUDA; kernels on disk."""

import hashlib
import importlib.util
import json
import shutil
import sys
import typing
from pathlib import Path

import pytest

from ..test_cache import DAMAGES, kernels

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason='needs numba-cuda: pip install "fastbp[cuda]"'
)


def import_without_the_package():
    sys.modules["numba_cuda"] = None
    with pytest.raises(ImportError, match=r'numba-cuda.*pip install "fastbp\[cuda\]".*"fastbp\[cuda12\]"'):
        import fastbp.kernels.cuda  # noqa: F401


def test_without_the_package_the_error_says_what_to_install(fresh):
    fresh(import_without_the_package)


def use_without_a_driver():
    from fastbp.kernels import cuda

    if cuda.driver.cuda.is_available():
        return
    for use in (lambda: cuda.empty(3, "float32"), cuda.synchronize, cuda.config):
        with pytest.raises(RuntimeError, match=r'device "cuda" needs an NVIDIA GPU and its driver.*install the driver'):
            use()


@needs_package
def test_without_a_driver_the_error_says_what_to_do(fresh):
    fresh(use_without_a_driver, NUMBA_ENABLE_CUDASIM=None, FASTBP_TEST_DEVICES=None)


def train_on_the_cpu():
    import numpy as np

    import fastbp

    model = fastbp.Sequential(fastbp.Linear(3, 2), seed=0)
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    model.fit(x, y, loss=fastbp.MSELoss(), optimizer=fastbp.SGD(lr=0.1), epochs=1, batch_size=2)
    assert not [name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda", "cuda"))]


def test_the_cpu_imports_nothing_of_cuda(fresh):
    fresh(train_on_the_cpu)


# ------------------------------------------------------------------------------------ kernels on disk
CAPABILITY = (9, 0, "a")
NAMES = "step_loss", "steps cross_entropy nesterov"  # a plain one, and one whose blocks wait for one another


def on_a_gpu_of(capability):
    """A context in which a kernel is compiled up to the machine code; nothing is given to a driver."""
    from . import machine_code

    return machine_code.as_if_on(capability)


def catalogued(dtype="float32"):
    from fastbp.kernels.cuda import catalogue

    return {kernel.name: kernel for kernel in catalogue.kernels([dtype])}


def compile_and_report(names=NAMES):
    """Print what there is of these kernels, and which Numba compiled."""
    from fastbp.kernels.cuda import machine_code

    known, report, compiled, make = catalogued(), {}, [], machine_code.machine_code

    def counted(kernel):
        compiled.append(kernel.function.__name__)
        return make(kernel)

    machine_code.machine_code = counted
    with on_a_gpu_of(CAPABILITY):
        for name in names:
            symbol, cooperative, code = known[name].function.compile()
            report[name] = [symbol, cooperative, hashlib.sha256(code).hexdigest()]
    print(json.dumps({"kernels": report, "compiled": compiled}))


@pytest.fixture(scope="module")
def cached(fresh):
    """`compile_and_report` in a process with this cache directory."""

    def call(directory, *arguments, **environment):
        environment = {"FASTBP_CACHE": None, "FASTBP_CACHE_DIR": str(directory)} | environment
        return json.loads(fresh(compile_and_report, *arguments, NUMBA_ENABLE_CUDASIM=None, **environment).stdout)

    return call


@pytest.fixture(scope="module")
def filled(cached, tmp_path_factory):
    """(A cache directory with the kernels of `NAMES`, the report of the process that filled it)."""
    directory = tmp_path_factory.mktemp("filled")
    return directory, cached(directory)


@needs_package
def test_what_is_loaded_is_what_was_compiled(cached, filled):
    directory, first = filled
    assert first["compiled"] == ["step_loss_kernel", "steps_kernel"]
    assert [report[1] for report in first["kernels"].values()] == [False, True]  # cooperative
    assert cached(directory) == {"kernels": first["kernels"], "compiled": []}


@needs_package
@pytest.mark.parametrize("damage", ["empty", "one bit", "text"])
def test_a_damaged_file_is_compiled_again(cached, filled, damage, tmp_path):
    shutil.copytree(filled[0], tmp_path / "cache")
    path = kernels(tmp_path / "cache")["step_loss_kernel"]
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    mended = cached(tmp_path / "cache", NAMES[:1])
    assert mended["compiled"] == ["step_loss_kernel"]
    assert cached(tmp_path / "cache", NAMES[:1]) == mended | {"compiled": []}


@needs_package
def test_the_cache_can_be_switched_off(cached, tmp_path):
    report = cached(tmp_path, NAMES[:1], FASTBP_CACHE="0")
    assert report["compiled"] == ["step_loss_kernel"]
    assert not any(tmp_path.iterdir())


def refused_by_the_driver():
    """Code that cannot be loaded is compiled."""
    from fastbp.kernels.cuda import compiling, disk_cache

    kernel, given = catalogued()["step_loss"].function, []

    def refuse_once(made):
        given.append(made)
        if len(given) == 1:
            raise RuntimeError("no kernel image is available for execution on the device")
        return made

    compiling._given, compiling.streams.stream = refuse_once, lambda: None
    with on_a_gpu_of(CAPABILITY):
        kernel.load()
        kept = disk_cache.read(kernel)
    assert len(given) == 2
    assert kernel.code is given[1] is not given[0]
    assert kept == given[1]


@needs_package
def test_what_the_driver_refuses_is_compiled(fresh, filled):
    fresh(refused_by_the_driver, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(filled[0]), NUMBA_ENABLE_CUDASIM=None)


def print_names():
    """The file of every kernel, by the kernel."""
    from fastbp.kernels.cuda import catalogue, cluster, disk_cache, panel_gemm, panels

    with on_a_gpu_of(CAPABILITY):
        found, known = {}, [(kernel.name, kernel.function) for kernel in catalogue.kernels()]
        known += [one for precision in ("ieee", "tf32") for one in cluster.kernels(precision)]
        for precision in panels.FORMS:
            for way in panel_gemm.WAYS:
                known += [(f"{way.NAME} {precision}", one) for one in panel_gemm.kernels(way, precision, "none")]
            known += [(f"panels {precision}", one) for one in panels.kernels(precision)]
        for name, function in known:
            path = disk_cache.path_of(function)
            found.setdefault(str(path), []).append((id(function), name))
        print(json.dumps(found))


@needs_package
def test_every_kernel_has_a_file_of_its_own_the_same_in_every_process(fresh, tmp_path):
    """Two kernels are one only where they are the same object."""
    environment = {"FASTBP_CACHE": None, "FASTBP_CACHE_DIR": str(tmp_path), "NUMBA_ENABLE_CUDASIM": None}
    first, second = (json.loads(fresh(print_names, PYTHONHASHSEED=seed, **environment).stdout) for seed in ("1", "2"))
    assert list(first) == list(second)
    assert "None" not in first
    assert all(len({function for function, _ in kernels}) == 1 for kernels in first.values())
    assert len(first) > 300


def what_makes_another_file():
    """A file's name follows each of the things that its code follows."""
    import numpy as np

    from fastbp.kernels.cuda import blocking, disk_cache, formulas, gemm, later, operands
    from fastbp.kernels.cuda.fingerprint import fingerprint

    from . import machine_code

    def named(kernel, capability=CAPABILITY, **declared):
        vars(kernel).update(declared)
        with machine_code.as_if_on(capability):
            return disk_cache.path_of(kernel)

    def product(group=blocking.GROUP, tile=blocking.TILES[4][-1]):
        gemm.GROUP = group
        gemm.gemm_kernel.cache_clear()
        gemm.block_order.cache_clear()
        return gemm.gemm_kernel("NN", "float32", "none", "ieee", tile, True)

    plain = named(product())
    assert named(product()) == plain
    changed = [
        named(product(group=4)),  # a constant that a device function finds by name
        named(product(tile=blocking.TILES[4][-1]._replace(bk=32))),
        named(product(), signature=(np.dtype(np.int32), *product().signature[1:])),
        named(product(), bounds=(64, 1)),
        named(product(), whole=True),
        named(product(), (8, 0, "")),
        named(product(), (9, 0, "")),
    ]
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    softplus = formulas.formulas(single)["softplus"].py_func
    changed += map(fingerprint, (softplus, formulas.formulas(double)["softplus"].py_func))
    softplus.__globals__["log1p_of_unit"] = formulas.formulas(single)["exp_of_nonpositive"]  # two calls down
    changed.append(fingerprint(softplus))
    for size in (1024, 2048):
        gemm.EPILOGUE_BYTES = size
        changed.append(fingerprint(lambda: gemm.EPILOGUE_BYTES))  # a constant of a module
    constants = 1, 1.0, True, "1", None, (1,), ((1,),), single, double, later.types.int32, later.types.int64, len, int
    constants += operands.Matrix, typing.NamedTuple("Matrix", data=object, ld=int, offset=int)  # in another order
    constants += (*map(np.float32, (1, 2, 0.0, -0.0)), np.float64(1))
    changed += (fingerprint(lambda constant=constant: constant) for constant in constants)
    assert len({plain, *changed}) == 1 + len(changed)


@needs_package
def test_what_makes_another_file(fresh, tmp_path):
    fresh(what_makes_another_file, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path), NUMBA_ENABLE_CUDASIM=None)


def use_what_has_no_fingerprint():
    """A kernel of which it is not known what it depends on is compiled each time."""
    from fastbp.kernels.cuda import compiling, disk_cache

    with on_a_gpu_of(CAPABILITY):
        unknown = object()

        @compiling.kernel(compiling.vector("bool"), threads=32)
        def kernel(out):
            out[0] = unknown is None

        with pytest.raises(TypeError, match="has no fingerprint"):
            disk_cache.path_of(kernel)
        assert disk_cache.read(kernel) is None
        disk_cache.write(kernel, "kernel", False, b"code")


@needs_package
def test_what_has_no_fingerprint_is_not_cached(fresh, tmp_path):
    fresh(use_what_has_no_fingerprint, FASTBP_CACHE=None, FASTBP_CACHE_DIR=str(tmp_path), NUMBA_ENABLE_CUDASIM=None)
    assert not list(tmp_path.rglob("*.kernel"))


def test_the_sources_of_a_folder_belong_to_its_stamp(monkeypatch, tmp_path):
    from fastbp.kernels import disk

    shutil.copytree(Path(disk.__file__).parent, tmp_path / "kernels")
    before = {folder: disk.stamp_of(folder) for folder in ("cpu", "cuda")}
    monkeypatch.setattr(disk, "__file__", str(tmp_path / "kernels/disk.py"))
    assert {folder: disk.stamp_of(folder) for folder in before} == before
    for changed, stays in (("cuda/ptx.py", "cpu"), ("cpu/simd.py", "cuda")):
        with open(tmp_path / "kernels" / changed, "a") as file:
            file.write("# changed\n")
        now = {folder: disk.stamp_of(folder) for folder in before}
        assert [folder for folder in now if now[folder] == before[folder]] == [stays]
        before = now
    (tmp_path / "kernels/activations.py").write_text("")
    assert all(disk.stamp_of(folder) != stamp for folder, stamp in before.items())
