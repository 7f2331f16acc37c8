"""Small networks in a thread-block cluster: whole models, and which of them are trained so.

`test_steps` has the promises of a step for this way too. Runs on a GPU that has clusters, and on the emulated one.
"""

import itertools
import threading
from functools import cache

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp.kernels import cuda, layout
from fastbp.kernels.cuda import cluster, cluster_plan, compiling, operands

from ..contract import cases

pytestmark = pytest.mark.skipif(
    not cuda.driver.cuda.is_available() or cuda.driver.compute_capability() < cluster.LEAST_CAPABILITY,
    reason="needs a GPU with clusters; test_emulator.py runs it on an emulated one",
)
FEATURES, OUTPUTS = 6, 2


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The rows of a step and the blocks of the cluster, for each call that a cluster has made steps for."""
    calls, train_steps = [], cluster.train_steps

    def counted(workspace, run, n, count, stream):
        calls.append((n, workspace.plan.room.blocks))
        train_steps(workspace, run, n, count, stream)

    monkeypatch.setattr(cluster, "train_steps", counted)
    monkeypatch.setenv("FASTBP_CUDA", "cluster")
    return calls


@pytest.fixture(params=[cluster.FEW_BLOCKS, cluster_plan.MANY_BLOCKS])
def blocks(request, monkeypatch):
    """How many blocks a cluster has."""
    monkeypatch.setattr(cluster, "blocks_of", lambda workspace: (request.param,))
    return request.param


def network(device, dtype="float32", norm=False, width=21, seed=1):
    """Layers of every kind that the kernel has, one of them frozen, with an odd number of columns here and there."""
    layers = [
        fastbp.Dropout(0.2),
        fastbp.Linear(FEATURES, width),
        fastbp.Softplus(),
        *[fastbp.LayerNorm(width)] * norm,
        fastbp.Residual(fastbp.Linear(width, width, bias=False), fastbp.Tanh()),
        fastbp.Linear(width, 3),
        fastbp.Linear(3, OUTPUTS),
        fastbp.Tanh(),
    ]
    model = fastbp.Sequential(*layers, dtype=dtype, device=device, seed=seed)
    model.layers[-3].trainable = False
    return model


def trained(model, rows=98, X_dtype=np.float64, batch_size=47, **options):
    """The losses of two epochs of two batches of ``batch_size`` rows and a short one, and the model's parameters."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((rows, FEATURES)).astype(X_dtype), rng.standard_normal((rows, OUTPUTS))
    options = {"loss": fastbp.MSELoss(), "optimizer": fastbp.Adam(lr=0.02, amsgrad=True)} | options
    history = model.fit(X, y, epochs=2, batch_size=batch_size, verbose=False, **options)
    return np.array(history["loss"]), np.array(model.flat_parameters)


def test_a_model_trains_as_the_reference_does(made, blocks):
    """Of 47 rows the last block has one less than the others; of four rows half of the blocks or more have none."""
    there, expected = trained(network("cuda")), trained(network("reference"))
    assert set(made) == {(47, blocks), (4, blocks)}
    for a, b in zip(there, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", cluster_plan.TILES)
def test_two_runs_are_equal_to_the_bit(blocks, precision):
    runs = [trained(network("cuda").to("cuda", precision)) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_trains_in_tf32_as_the_reference_does(made, blocks):
    """Far closer than in "ieee"; not as close as there, for a number halfway may be rounded to another one."""
    there, expected, exact = (
        trained(network(device).to(device, precision))
        for device, precision in (("cuda", "tf32"), ("reference", "tf32"), ("reference", "ieee"))
    )
    assert set(made) == {(47, blocks), (4, blocks)}
    for a, b, c in zip(there, expected, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)
        assert np.abs(a - b).mean() < np.abs(c - b).mean() / 10


def test_many_networks_train_side_by_side_to_the_same_bits(monkeypatch, blocks):
    """Three threads, each with a stream, all of them in their first step before any goes on."""
    monkeypatch.setattr(cuda.driver, "multiprocessors", lambda: 3 * cluster.FEW_BLOCKS + 1)
    started, streams, counted = threading.Barrier(3, timeout=120), {}, cluster.train_steps

    def together(workspace, run, n, count, stream):
        if workspace not in streams:
            streams[workspace] = stream
            started.wait()
        counted(workspace, run, n, count, stream)

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, FEATURES)), rng.standard_normal((20, OUTPUTS))
    options = {"loss": fastbp.MSELoss(), "epochs": 2, "batch_size": 9}
    alone, many = ([network("cuda", seed=seed) for seed in range(3)] for _ in range(2))
    for model in alone:
        model.fit(X, y, optimizer=fastbp.Adam(lr=0.02, amsgrad=True), verbose=False, **options)
    monkeypatch.setattr(cluster, "train_steps", together)
    fastbp.fit_many(many, X, y, optimizer=lambda: fastbp.Adam(lr=0.02, amsgrad=True), **options)
    assert len(streams) == len(set(streams.values())) == 3
    assert cuda.streams.stream() not in streams.values()
    for one, other in zip(alone, many, strict=True):
        assert one.history[-1]["loss"] == other.history[-1]["loss"]
        np.testing.assert_array_equal(one.flat_parameters, other.flat_parameters)
    np.testing.assert_array_equal(many[0].predict(X), alone[0].predict(X))


def test_as_many_train_at_once_as_the_gpu_has_room_for(monkeypatch, blocks):
    """By the blocks of their clusters; one after another where one of them trains in another way."""
    monkeypatch.setattr(cuda.driver, "multiprocessors", lambda: 4 * cluster.FEW_BLOCKS)
    asked, threads, counted = [], set(), cluster.train_steps

    def clusters_at_once(code, configuration, stream):
        asked.append(configuration.cluster)
        return 32 // configuration.cluster[0]

    def noted(*arguments):
        threads.add(threading.get_ident())
        counted(*arguments)

    monkeypatch.setattr(cuda.driver, "clusters_at_once", clusters_at_once)
    monkeypatch.setattr(cluster, "train_steps", noted)
    X, y = np.zeros((20, FEATURES)), np.zeros((20, OUTPUTS))
    options = {"loss": fastbp.MSELoss(), "optimizer": lambda: fastbp.Adam(amsgrad=True), "batch_size": 9}
    for norms, most in (((False,) * 5, 32 // blocks), ((False, False, True), 1)):
        asked.clear()
        threads.clear()
        fastbp.fit_many([network("cuda", norm=norm) for norm in norms], X, y, **options)
        assert len(threads) == most
        assert {size for size, *_ in asked} == {blocks}


def workspace_of(model, batch_size=4):
    codes = layout.LOSSES.index("mean_squared_error"), 0.0, layout.OPTIMIZERS.index("adam")
    return cuda.TrainingWorkspace(model.program, model.dtype, batch_size, *codes)


DTYPES = np.dtype(np.float32), np.dtype(np.float32)  # of the data


def suits(workspace):
    return cluster.suits(workspace, DTYPES)


def test_what_does_not_suit_takes_the_ordinary_ways(monkeypatch):
    """float64, normalisation, bfloat16, more than shared memory holds, older GPUs, and who does not ask."""
    small = workspace_of(network("cuda"))
    low = fastbp.Sequential(fastbp.Linear(FEATURES, OUTPUTS), device="cuda", precision="bf16", seed=0)
    others = network("cuda", dtype="float64"), network("cuda", norm=True), network("cuda", width=200), low
    assert suits(small)
    assert not any(suits(workspace_of(model)) for model in others)
    assert not suits(workspace_of(network("cuda"), batch_size=16000))
    with monkeypatch.context() as older:
        older.setattr(cuda.driver, "compute_capability", lambda: (8, 9))
        assert not suits(small)
    monkeypatch.delenv("FASTBP_CUDA")
    assert not suits(small)


def test_as_many_blocks_as_a_network_needs(monkeypatch):
    """Many where each thread would make several tiles, or where few have no room; if the GPU has a place for them."""
    many, few = cluster_plan.MANY_BLOCKS, cluster.FEW_BLOCKS

    def blocks_for(batch_size, precision="ieee"):
        workspace = workspace_of(network("cuda").to("cuda", precision), batch_size)
        return workspace.plan.room.blocks if suits(workspace) else None

    # A block of eight has 84 rows or 88, of which a thread makes two by four columns of 21.
    assert (blocks_for(672), blocks_for(704), blocks_for(3000)) == (few, many, many)
    # A warp makes 16 of 64 rows or 65, by 16 columns.
    assert (blocks_for(512, "tf32"), blocks_for(520, "tf32")) == (few, many)
    tall = fastbp.Sequential(fastbp.Linear(300, 2), device="cuda", seed=0)
    workspaces = [workspace_of(tall, batch_size) for batch_size in (500, 1000)]
    assert [suits(workspace) and workspace.plan.room.blocks for workspace in workspaces] == [few, many]
    monkeypatch.setattr(cuda.driver, "allow_large_clusters", lambda code: None)  # as where the GPU allows none
    cluster.cluster_kernel.cache_clear()
    assert (blocks_for(672), blocks_for(704), blocks_for(3000)) == (few, few, None)


# ------------------------------------------------------------------------------------------ products
SHARED = 1 << 13  # numbers
FUNCTIONS = "linear_forward", "linear_backward_input", "linear_backward_params"


class Products:
    """The linear functions of the contract, by the products of a cluster."""

    def precisions(self, dtype):
        return tuple(cluster_plan.TILES)

    def linear_forward(self, x, weight, bias, activation, parameter, out, saved, precision):
        self.make(0, x, weight, out, precision)

    def linear_backward_input(self, grad, weight, saved, activation, parameter, out, precision):
        self.make(1, grad, weight, out, precision)

    def linear_backward_params(self, x, grad, beta, out, bias, precision):
        self.make(2, x, grad, out, precision)

    def make(self, which, a, b, out, precision):
        """One of the products; what fills up rows is NaN where no zeros are needed, and the others are refused."""
        name = layout.PRECISIONS[precision]
        if name not in self.precisions(a.dtype):
            raise ValueError("precision")
        memory, places, begin = np.full(SHARED, 0 if name == "ieee" else np.nan, np.float32), [], 0
        for matrix in (a, b, out):
            ld, height = cluster_plan.leading(matrix.shape[1]), cluster_plan.VECTOR
            end = begin + ld * -(-len(matrix) // height) * height
            memory[begin:end].reshape(-1, ld)[: len(matrix), : matrix.shape[1]] = matrix
            places.append((begin, ld))
            begin = end
        there, columns = cuda.to_device(memory), b.shape[0 if which == 1 else 1]
        kernel = product_kernel(which, name)
        kernel[1, cluster.THREADS, cuda.streams.stream()](*a.shape, columns, *itertools.chain(*places), there)
        found, (begin, ld) = cuda.to_host(there), places[2]
        out[...] = found[begin:end].reshape(-1, ld)[: len(out), : out.shape[1]]
        memory[begin : end if which == 2 else begin + len(out) * ld] = 0  # rows of a weight are filled up
        found[memory == 0] = 0
        np.testing.assert_array_equal(found, memory)  # nothing else was written


@cache
def product_kernel(which, precision):
    """A kernel of one of the products: forward, back, or the gradient of a weight."""
    value, derivative = cluster.activation_by_code(("identity",), cluster.DTYPE)
    forward, backward, weights = cluster.products_of(precision, value, derivative)
    gpu, dtype, zero = cuda.driver.cuda, cluster.DTYPE, cluster.DTYPE.type(0)

    @compiling.kernel(*[operands.INT] * 9, compiling.vector(dtype), threads=cluster.THREADS)
    def kernel(rows, terms, columns, a, ld_a, b, ld_b, c, ld_c, memory):
        shared, thread = gpu.shared.array(SHARED, dtype, 16), gpu.threadIdx.x
        for e in range(thread, SHARED, cluster.THREADS):
            shared[e] = memory[e]
        gpu.syncthreads()
        if which == 0:
            forward(shared, rows, terms, columns, a, ld_a, b, ld_b, -1, c, ld_c, c, ld_c, 0, zero)
        elif which == 1:
            backward(shared, rows, terms, columns, a, ld_a, b, ld_b, c, ld_c, c, ld_c, 0, zero)
        else:
            weights(shared, rows, terms, columns, a, ld_a, b, ld_b, c, ld_c, -1)
        gpu.syncthreads()
        for e in range(thread, SHARED, cluster.THREADS):
            memory[e] = shared[e]

    return kernel


@pytest.mark.parametrize("function", FUNCTIONS)
def test_factors_are_rounded_to_the_precision(function):
    """As the contract has it of the functions; not even NaN beyond the last row or column changes a number."""
    promise = function, "factors_are_rounded_to_the_precision"
    (check,) = (case.check for case in cases.CASES if (case.function, case.label) == promise)
    check(Products(), np.float32)


def test_rows_of_shared_memory_meet_in_no_bank():
    """Eight threads that read 16 bytes each of rows that follow one another read eight different groups of banks."""
    for columns in range(1, 300):
        ld = cluster_plan.leading(columns)
        assert ld >= columns
        assert len({row * ld % 32 // 4 for row in range(8)}) == 8
