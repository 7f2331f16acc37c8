"""Small networks in a thread-block cluster: whole models, and which of them are trained so.

`test_steps` has the promises of a step for this way too. Runs on a GPU that has clusters, and on the emulated one.
"""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp.kernels import cuda, layout
from fastbp.kernels.cuda import cluster, cluster_plan, operands

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


def trained(model, rows=82, X_dtype=np.float64, batch_size=39, **options):
    """The losses of two epochs of two batches of ``batch_size`` rows and a short one, and the model's parameters."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((rows, FEATURES)).astype(X_dtype), rng.standard_normal((rows, OUTPUTS))
    options = {"loss": fastbp.MSELoss(), "optimizer": fastbp.Adam(lr=0.02, amsgrad=True)} | options
    history = model.fit(X, y, epochs=2, batch_size=batch_size, verbose=False, **options)
    return np.array(history["loss"]), np.array(model.flat_parameters)


def test_a_model_trains_as_the_reference_does(made, blocks):
    """Of 39 rows seven of eight blocks have five and one four; of four rows half of the blocks or more have none."""
    there, expected = trained(network("cuda")), trained(network("reference"))
    assert set(made) == {(39, blocks), (4, blocks)}
    for a, b in zip(there, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_two_runs_are_equal_to_the_bit(blocks):
    for a, b in zip(trained(network("cuda")), trained(network("cuda")), strict=True):
        np.testing.assert_array_equal(a, b)


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


def workspace_of(model, batch_size=4):
    codes = layout.LOSSES.index("mean_squared_error"), 0.0, layout.OPTIMIZERS.index("adam")
    return cuda.TrainingWorkspace(model.program, model.dtype, batch_size, *codes)


def suits(workspace):
    data = operands.Matrix(cuda.empty(0, np.float32), 0, FEATURES)
    return cluster.suits(workspace, SimpleNamespace(x=data, target=data))


def test_what_does_not_suit_takes_the_ordinary_ways(monkeypatch):
    """float64, normalisation, less precision, more than shared memory holds, older GPUs, and who does not ask."""
    small = workspace_of(network("cuda"))
    low = fastbp.Sequential(fastbp.Linear(FEATURES, OUTPUTS), device="cuda", precision="tf32", seed=0)
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

    def blocks_for(batch_size):
        workspace = workspace_of(network("cuda"), batch_size)
        return workspace.plan.room.blocks if suits(workspace) else None

    # A block of eight has 84 rows or 88, of which a thread makes two by four columns of 21.
    assert (blocks_for(672), blocks_for(704), blocks_for(3000)) == (few, many, many)
    tall = fastbp.Sequential(fastbp.Linear(300, 2), device="cuda", seed=0)
    workspaces = [workspace_of(tall, batch_size) for batch_size in (500, 1000)]
    assert [suits(workspace) and workspace.plan.room.blocks for workspace in workspaces] == [few, many]
    monkeypatch.setattr(cuda.driver, "allow_large_clusters", lambda code: None)  # as where the GPU allows none
    cluster.cluster_kernel.cache_clear()
    assert (blocks_for(672), blocks_for(704), blocks_for(3000)) == (few, few, None)


def test_rows_of_shared_memory_meet_in_no_bank():
    """Eight threads that read 16 bytes each of rows that follow one another read eight different groups of banks."""
    for columns in range(1, 300):
        ld = cluster_plan.leading(columns)
        assert ld >= columns
        assert len({row * ld % 32 // 4 for row in range(8)}) == 8
