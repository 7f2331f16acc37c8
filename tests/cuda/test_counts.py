"""How often the host asks the GPU for something: in an epoch of `fit`, in a train step, in a loop of one's own.

It cannot be counted on a GPU; test_emulator.py runs this on the emulated one.
"""

import itertools
import threading

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

import fastbp
from fastbp import slices
from fastbp.kernels import cuda
from fastbp.kernels.cuda import compiling, elementwise, network, streams

from .emulator.counts import Counts, counted, library

pytestmark = pytest.mark.skipif(library() is None, reason="needs the emulated GPU: test_emulator.py runs it there")
if library() is not None:
    from fastbp.kernels.cuda import arrays

STEPS, BATCH = 6, 16


@pytest.fixture(autouse=True)
def one_slice_an_epoch(monkeypatch):
    """However slow the emulated GPU is."""
    monkeypatch.setattr(slices, "SLICE_SECONDS", 1e6)


@pytest.fixture(autouse=True)
def no_memory_of_other_tests():
    """Which would be given back within a test, once there is enough of it, with what that test uses again."""
    counted(lambda: None)  # collects it
    arrays.give_back()


@pytest.fixture(params=["graph", "one kernel"])
def way(request, monkeypatch):
    """How steps are made."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", 1024 if request.param == "one kernel" else -1)
    return request.param


def task(dropout=0.0):
    """Keywords of `fit`, and a model; a batch of rows and labels."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((STEPS * BATCH, 8), dtype=np.float32), rng.integers(0, 4, STEPS * BATCH)
    dropped = [fastbp.Dropout(dropout)] if dropout else []
    layers = fastbp.Linear(8, 16), fastbp.ReLU(), *dropped, fastbp.Linear(16, 4)
    model = fastbp.Sequential(*layers, device="cuda", seed=0)
    return model, fastbp.CrossEntropyLoss(), fastbp.Adam(lr=1e-3), X, y


def of_an_epoch(model, fit):
    """What one epoch more asks for; ``fit(epochs)`` trains, and captures its steps, wherever its data lie."""

    def of_a_call(epochs):
        for *_, workspace in model._training_workspaces.values():
            workspace.graphs.clear()
        return counted(lambda: fit(epochs))

    for _ in range(2):  # compiled, allocated; and again, in memory that the first call has left
        of_a_call(3)
    first, second = of_a_call(3), of_a_call(4)
    return Counts(*(more - less for less, more in zip(first, second, strict=True)))


def test_an_epoch_of_fit(way):
    """Beside the steps: the run there and back, the snapshot of the weights, and whether they are finite; one wait."""
    model, loss, optimizer, X, y = task(dropout=0.1)
    options = {"loss": loss, "optimizer": optimizer, "batch_size": BATCH, "verbose": False}
    found = of_an_epoch(model, lambda epochs: model.fit(X, y, epochs=epochs, **options))
    steps = {"launches": 2, "replays": STEPS} if way == "graph" else {"launches": 3, "replays": 0}
    assert found == Counts(**steps, copies=4, waits=1, allocations=0)


def test_many_steps_are_few_replays(monkeypatch):
    """Of 16 steps each, and one by one what is left, to the same bits; a short `fit` captures one step alone."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    captured, capture = [], streams.capture
    monkeypatch.setattr(streams, "capture", lambda launches: captured.append(1) or capture(launches))

    def of_fit(steps, before=network.STEPS_BEFORE):
        """The replays and captures of two epochs of so many steps, and the weights after them."""
        monkeypatch.setattr(network, "STEPS_BEFORE", before)
        captured.clear()
        model, loss, optimizer, X, y = task(dropout=0.1)
        rows = np.arange(2 * steps) % len(X)
        options = {"loss": loss, "optimizer": optimizer, "batch_size": 2, "epochs": 2, "verbose": False}
        replays = counted(lambda: model.fit(X[rows], y[rows], **options)).replays
        return replays, len(captured), model.flat_parameters.tobytes()

    assert network.STEPS_A_GRAPH == 16
    *found, weights = of_fit(67)
    assert found == [(4 + 2) + (4 + 3), 2]  # the first step is launched
    assert of_fit(67, before=1000) == (66 + 67, 1, weights)
    assert of_fit(30)[:2] == (29 + 30, 1)
    assert of_fit(35)[:2] == (34 + (2 + 3), 2)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("rows", [BATCH, 1000])
def test_launches_of_a_step(monkeypatch, rows, labelled):
    """Of two layers: rows and targets, forward, loss and its sum, back, two gradients of each, the update.

    Where gradients are sums of parts and of chunks of rows, the update adds them up.
    """
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    found, step = [], network.TrainingWorkspace.step
    monkeypatch.setattr(
        network.TrainingWorkspace, "step", lambda *run: found.append(counted(lambda: step(*run)).launches)
    )
    model, loss, optimizer, X, y = task()
    batch = np.arange(rows) % len(X)
    if not labelled:
        loss, y = fastbp.MSELoss(), np.eye(4)[y]
    model.train_step(X[batch], y[batch], loss, optimizer)
    assert found == [0, 10]  # the first time its launches are listed


@pytest.fixture
def of_a_graph(monkeypatch):
    """A function: the nodes of a captured graph of so many steps, and how many of them wait for one another."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    monkeypatch.setattr(network, "STEPS_BEFORE", 0)

    def count():
        return np.array([library().emulator_count(name) for name in (b"captured", b"path")])

    def of(*hidden, rows, weighted=False, steps=1):
        """Of linear layers 8-hidden-4 with ReLU."""
        monkeypatch.setattr(network, "STEPS_A_GRAPH", steps)
        layers = [fastbp.Linear(*sides) for sides in itertools.pairwise((8, *hidden, 4))]
        layers = [part for layer in layers for part in (layer, fastbp.ReLU())][:-1]
        model, rng = fastbp.Sequential(*layers, device="cuda", seed=0), np.random.default_rng(0)
        examples = (1 + steps) * rows  # the first step is launched
        x, y = rng.standard_normal((examples, 8), dtype=np.float32), rng.integers(0, 4, examples)
        options = {"sample_weight": np.ones(examples)} if weighted else {}
        options |= {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(lr=1e-3), "verbose": False}
        before = count()
        model.fit(x, y, batch_size=rows, epochs=1, **options)
        return tuple((count() - before).tolist())

    return of


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [BATCH, 1000])
@pytest.mark.parametrize(("hidden", "nodes", "path"), [((16,), 10, 6), ((16, 12), 14, 8), ((16,) * 8, 38, 20)])
def test_the_longest_chain_of_a_captured_step(of_a_graph, hidden, rows, nodes, path, weighted):
    """Rows, forward, loss, back to the first layer, its gradient and the update; the others are beside these.

    So are sums of columns beside their product, and the weights of rows beside the rows. A gradient more than there are
    branches lengthens nothing, nor do gradients that are sums of parts.
    """
    assert of_a_graph(*hidden, rows=rows, weighted=weighted) == (nodes + weighted, path)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("hidden", "nodes", "path"), [((16,), 10, 5), ((16, 12), 14, 7)])
def test_the_longest_chain_of_captured_steps(of_a_graph, hidden, nodes, path, weighted):
    """Rows are gathered beside the update of the step before."""
    assert of_a_graph(*hidden, rows=1000, weighted=weighted, steps=3) == (3 * (nodes + weighted), 1 + 3 * path)


def test_sums_of_very_many_rows_are_not_left_to_the_update(of_a_graph):
    """Of more chunks than a thread of the update adds up in the order that they always have, nothing waits for them."""
    rows = (elementwise.SUM_LANES + 1) * elementwise.SUM_ROWS
    assert of_a_graph(16, rows=rows) == (12, 7)


def test_a_first_step_that_fails_is_not_captured_next(monkeypatch):
    """Its kernels may not have been compiled, and within a capture nothing can be."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    model, loss, optimizer, X, y = task()

    def fails(*run):
        raise MemoryError("no room")

    with monkeypatch.context() as without_room:
        without_room.setattr(network.TrainingWorkspace, "step", fails)
        with pytest.raises(MemoryError):
            model.train_step(X[:BATCH], y[:BATCH], loss, optimizer)
    ((*_, workspace),) = model._training_workspaces.values()
    assert not workspace.graphs
    model.train_step(X[:BATCH], y[:BATCH], loss, optimizer)
    assert [graphs.replayed for graphs in workspace.graphs.values()] == [0]


@pytest.mark.parametrize(("name", "steps"), [("clear", 0), ("last_linear", 2)])
def test_an_interruption_before_a_first_step(monkeypatch, name, steps):
    """Where gradients are cleared, or other kernels chosen: the next step finds nothing that is half there."""
    monkeypatch.setattr(cuda.steps, "MOST_ROWS", -1)
    monkeypatch.setenv("FASTBP_CUDA", "")
    model, loss, optimizer, X, y = task()

    def step():
        model.train_step(X[:BATCH], y[:BATCH], loss, optimizer)

    def interrupted(*run):
        raise KeyboardInterrupt

    for _ in range(steps):
        step()
    monkeypatch.setenv("FASTBP_CUDA", "panels")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(network, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            step()
    step()
    ((*_, workspace),) = model._training_workspaces.values()
    assert [graphs.replayed for graphs in workspace.graphs.values()] == [0]


def test_a_train_step(way):
    """Rows of the host, or rows that are on the GPU at other addresses each time."""
    model, loss, optimizer, X, y = task()
    x, y = X[:BATCH], y[:BATCH]
    there = [(cuda.to_device(x), cuda.to_device(y)) for _ in range(4)]
    for _ in range(4):
        model.train_step(x, y, loss, optimizer)
    one = {"launches": 0, "replays": 1} if way == "graph" else {"launches": 1, "replays": 0}
    expected = Counts(**one, copies=4, waits=1, allocations=0)
    assert counted(lambda: model.train_step(x, y, loss, optimizer)) == expected
    found = [counted(lambda pair=pair: model.train_step(*pair, loss, optimizer)) for pair in there]
    assert found == [expected] * 4


def test_a_loop_of_ones_own():
    model, loss, _, X, y = task()
    optimizer = fastbp.Adam(model.parameters(), lr=1e-3)
    x, y = X[:BATCH], y[:BATCH]

    def step():
        _, grad = loss(model(x), y)
        model.backward_parameters(grad)
        optimizer.step()

    for _ in range(4):
        step()
    assert counted(step) == Counts(launches=8, replays=0, copies=4, waits=5, allocations=0)


# ------------------------------------------------------------------------------------- memory, launches
def freed():
    """How many pieces of memory the driver has got back so far."""
    return library().emulator_count(b"free")


def test_memory_is_given_back_together():
    """A thread without the context of the GPU leaves it to others, and the driver waits for the GPU each time."""
    counted(lambda: None)  # collects what other tests have left
    arrays.give_back()
    before, held = freed(), [cuda.empty(16, np.float32) for _ in range(2 * arrays.UNUSED + 1)]
    thread = threading.Thread(target=lambda: [held.pop() for _ in range(arrays.UNUSED + 1)])
    thread.start()
    thread.join()
    assert freed() == before
    held.pop()
    assert freed() == before + arrays.UNUSED + 2
    held.clear()
    large = cuda.empty(arrays.UNUSED_BYTES // 4 + 1, np.float32)
    before = freed()
    del large
    assert freed() == before + arrays.UNUSED


def addresses(*sizes):
    """Where arrays of these sizes are; nobody has them then."""
    return {cuda.borrowing.address(array) for array in [cuda.empty(size, np.float32) for size in sizes]}


def test_memory_that_nobody_has_is_used_again():
    """Where all that used it is in order: not what another library was lent, or a stream of a thread's own has used."""
    arrays.give_back()
    first = addresses(16, 16, 32)
    assert addresses(32, 16, 16) == first
    one, two = (cuda.empty(16, np.float32) for _ in range(2))
    places = [cuda.borrowing.address(array) for array in (one, two)]
    del one, two
    again = [cuda.empty(16, np.float32) for _ in range(2)]
    assert [cuda.borrowing.address(array) for array in again] == places  # in any order that they were left in
    del again
    assert not addresses(64) & first
    for lend in (lambda array: array.__dlpack__(), lambda array: array.__cuda_array_interface__):
        array = cuda.empty(128, np.float32)
        lent = cuda.borrowing.address(array)
        lend(array[64:])
        del array
        assert counted(lambda: addresses(128)).allocations == 1
        assert addresses(128) != {lent}
    with streams.own_stream():
        assert counted(lambda: addresses(16)).allocations == 1
        own = cuda.empty(256, np.float32)
    del own
    assert counted(lambda: addresses(256)).allocations == 1
    array = cuda.empty(1024, np.float32)
    with streams.own_stream():
        del array
    assert counted(lambda: addresses(1024)).allocations == 1


def test_memory_that_nobody_has_makes_room(monkeypatch):
    kept = cuda.empty(16, np.float32)
    allocate, left = arrays.driver_calls.cuMemAlloc, [1]

    def full(size):
        return (arrays.driver_calls.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None) if left.pop() else allocate(size)

    arrays.give_back()
    before = freed()
    del kept  # of another size, so it is not used again
    monkeypatch.setattr(arrays.driver_calls, "cuMemAlloc", full)
    left[:] = [0, 1]
    cuda.empty(32, np.float32)
    assert freed() == before + 1
    left[:] = [1, 1]
    with pytest.raises(MemoryError, match="no room on the GPU"):
        cuda.empty(16, np.float32)


def test_a_launch_is_prepared_once(monkeypatch):
    monkeypatch.setattr(compiling, "LAUNCHES", 3)
    x, stream = cuda.zeros(8, np.float32), streams.stream()
    kernel = cuda.buffers.clear_kernel(np.dtype(np.float32))
    assert kernel[1, 32, stream] is kernel[1, 32, stream]
    assert kernel[2, 32, stream] is not kernel[1, 32, stream]
    for blocks in range(1, 9):
        kernel[blocks, 32, stream](8, x)
        assert len(kernel.launches) <= 3
    streams.capture(lambda builder: kernel[1, 32, builder](8, x))()
    assert all(of_stream is stream for _, _, of_stream in kernel.launches)
