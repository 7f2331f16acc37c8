"""Data that come to the GPU in pieces: no piece is read before it is there, or overwritten before it was read.

The order of copies and launches is checked with streams that make each as late or as early as may be; training with
pieces in the simulator, where test_simulator.py starts it, or on a GPU.
"""

import gc
from types import SimpleNamespace

import numpy as np
import pytest

import fastbp
from fastbp import device, slices, steps
from fastbp import pieces as pieces_module
from fastbp.pieces import Pieces

from .streams import COPIES, LAUNCHES, LateCopies, Streams, kernels

ROWS = 23


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 3), dtype=np.float32), rng.integers(0, 2, ROWS), rng.uniform(1, 2, ROWS)


# ------------------------------------------------------------------------------------------- the order
def used(pieces, streams, order, rows):
    """What launches read of each piece; each reads its piece twice, before and after the next is made ready."""
    seen = []
    pieces.start(order, rows)
    for piece in range(-(-len(order) // rows)):
        for _ in range(2):
            arrays = pieces.arrays_of(piece)
            streams.launch(
                lambda arrays=arrays: seen.append([None if array is None else array.copy() for array in arrays])
            )
            pieces.launched(piece)
            pieces.prepare(piece + 1)
    return seen


@pytest.mark.parametrize("early", [None, COPIES, LAUNCHES])
@pytest.mark.parametrize("rows", [4, 23])
def test_copies_wait_for_launches_that_had_the_memory_before(data, early, rows):
    streams, order = Streams(early), np.arange(ROWS)
    backend = kernels(streams)
    new = backend.empty

    def used_before(shape, dtype):
        array = new(shape, dtype)
        streams.launch(lambda: array.fill(0))
        return array

    backend.empty = used_before
    seen = used(Pieces(backend, data, [array.dtype for array in data], None), streams, order, rows)
    streams.finish()
    for i, arrays in enumerate(seen):
        for array, whole in zip(arrays, data, strict=True):
            np.testing.assert_array_equal(array, whole[i // 2 * rows :][:rows])


@pytest.mark.parametrize("early", [None, COPIES, LAUNCHES])
@pytest.mark.parametrize("rows", [1, 4, 23, 30])
def test_launches_read_their_piece(data, early, rows):
    streams, order = Streams(early), np.random.default_rng(1).permutation(ROWS)
    X, y, weight = data
    dtypes = [X.dtype, y.dtype, weight.dtype]
    pieces = Pieces(kernels(streams), data, dtypes, None)
    for _ in range(2):  # epochs
        seen = used(pieces, streams, order, rows)
        streams.finish()
        expected = [order[start : start + rows] for start in range(0, ROWS, rows) for _ in range(2)]
        assert len(seen) == len(expected)
        for arrays, part in zip(seen, expected, strict=True):
            for array, whole in zip(arrays, data, strict=True):
                np.testing.assert_array_equal(array, whole[part])
    assert sum(streams.log) == 2 * 3 * ROWS  # each row once an epoch


def test_the_next_piece_comes_while_one_is_used(data):
    streams = Streams()
    pieces = Pieces(kernels(streams), (data[0], data[1], None), [np.float32, np.int64, None], None)
    pieces.start(np.arange(ROWS), 10)
    pieces.arrays_of(0)
    assert streams.log == [10, 10]
    pieces.prepare(1)
    pieces.prepare(1)
    assert streams.log == [10, 10, 10, 10]
    assert pieces.arrays_of(0)[2] is None
    pieces.arrays_of(1)
    pieces.prepare(2)
    assert streams.log[4:] == [3, 3]
    pieces.prepare(3)  # there is none
    assert len(streams.log) == 6


@pytest.mark.parametrize("kind", [">f4", "every other column", "int8", "every other row"])
def test_rows_are_converted(data, kind):
    X = np.round(4 * data[0])
    given = {"every other column": np.repeat(X, 2, axis=1)[:, ::2], "every other row": np.repeat(X, 2, axis=0)[::2]}
    given = given[kind] if kind in given else X.astype(kind)
    streams, order = Streams(), np.arange(ROWS)[::-1]
    pieces = Pieces(kernels(streams), (given,), [np.dtype("f4")], None)
    seen = used(pieces, streams, order, 5)
    streams.finish()
    np.testing.assert_array_equal(np.concatenate([array for (array,) in seen[::2]]), X[::-1])


def test_places_are_used_again(data):
    streams = Streams()
    first = Pieces(kernels(streams), data, [array.dtype for array in data], None)
    used(first, streams, np.arange(ROWS), 5)
    memory = [id(place.memory[0][1]) for place in first.places]
    second = Pieces(kernels(streams), [array[::-1] for array in data], [array.dtype for array in data], first)
    seen = used(second, streams, np.arange(ROWS), 4)
    streams.finish()
    assert [id(place.memory[0][1]) for place in second.places] == memory
    np.testing.assert_array_equal(seen[0][0], data[0][::-1][:4])


def test_memory_outlives_its_copies(data):
    streams = Streams()
    pieces = Pieces(kernels(streams), data, [array.dtype for array in data], None)
    pieces.start(np.arange(ROWS), 5)
    pieces.prepare(0)
    assert streams.queues[COPIES]
    del pieces
    gc.collect()
    assert not streams.queues[COPIES]


def test_a_piece_that_failed_is_made_anew(data, monkeypatch):
    streams = Streams()
    pieces = Pieces(kernels(streams), data, [array.dtype for array in data], None)
    pieces.start(np.arange(ROWS), 5)
    pieces.prepare(0)

    def failing(array, rows, out):
        out[...] = 0
        raise OSError("the file has gone")

    monkeypatch.setattr(pieces_module, "_gather", failing)
    with pytest.raises(OSError, match="the file has gone"):
        pieces.prepare(2)  # into the place of piece 0
    monkeypatch.undo()
    seen = []
    arrays = pieces.arrays_of(0)
    streams.launch(lambda: seen.extend(array.copy() for array in arrays))
    streams.finish()
    for array, whole in zip(seen, data, strict=True):
        np.testing.assert_array_equal(array, whole[:5])


# ------------------------------------------------------------------------------------------- training
@pytest.fixture
def cuda(monkeypatch):
    """That of the GPU or of the simulator, with data in pieces of two batches."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')
    from fastbp.kernels import cuda

    if not cuda.driver.cuda.is_available():
        pytest.skip("needs a GPU; test_simulator.py runs it without one")
    monkeypatch.setattr(steps, "STAGING_BYTES", 2 * 4 * 40)
    monkeypatch.setattr(slices, "SLICE_SECONDS", 1000)  # a call makes the steps of a piece, however slow they are
    return cuda


@pytest.fixture
def late(cuda, monkeypatch):
    """Copies of the simulator as late as may be."""
    if cuda.driver.simulated:
        streams = LateCopies()
        monkeypatch.setattr(cuda.memory, "send", streams.send)
        for name in ("mark", "follow", "copy_stream"):
            monkeypatch.setattr(cuda.streams, name, getattr(streams, name))
        return streams.log
    sent, send = [], cuda.memory.send
    monkeypatch.setattr(cuda.memory, "send", lambda host, to: sent.append(len(host)) or send(host, to))
    return sent


def trained(X, y=None, **options):
    """Losses and weights after two epochs of six batches."""
    model = fastbp.Sequential(fastbp.Linear(3, 2), device="cuda", seed=1)
    options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(lr=0.05), "epochs": 2} | options
    history = model.fit(X, y, batch_size=4, verbose=False, **options)
    return history["loss"], model.flat_parameters.tobytes()


@pytest.fixture
def no_room(monkeypatch):
    """Call it for a device that has room for no data."""
    return lambda: monkeypatch.setattr(device, "RESIDENT_SHARE", -1.0)


def test_training_is_the_same_to_the_bit(data, late, no_room):
    X, y, weight = data
    expected = trained(X, y, sample_weight=weight)
    assert late == []
    no_room()
    assert trained(X, y, sample_weight=weight) == expected
    assert late == 2 * ([8] * 6 + [7] * 3)


def test_the_next_piece_is_sent_before_the_host_waits(data, cuda, late, no_room, monkeypatch):
    from fastbp.kernels.cuda.record import Record

    end = Record.end
    monkeypatch.setattr(Record, "end", lambda *given: late.append("wait") or end(*given))
    mark, launches = cuda.streams.mark, cuda.streams.stream()
    monkeypatch.setattr(cuda.streams, "mark", lambda of: late.extend(["launched"] * (of == launches)) or mark(of))
    no_room()
    trained(*data[:2], epochs=1)
    new = ["launched", 8, 8]  # copies to new memory come after all launches so far
    assert late == [*new, "launched", *new, "wait", "launched", 7, 7, "wait", "launched", "wait"]


def test_memory_maps_come_in_pieces(data, late, no_room, tmp_path):
    X, y, _ = data
    expected = trained(X, y, shuffle=False, epochs=1)
    np.save(tmp_path / "x.npy", X)
    no_room()
    assert trained(np.load(tmp_path / "x.npy", mmap_mode="r"), y, shuffle=False, epochs=1) == expected


def test_a_batch_that_is_left_out_leaves_the_others_in_place(data, late, no_room):
    X, y, _ = data
    X = X.copy()
    X[[1, 13]] = 3e38  # their losses are not finite
    options = {"on_nonfinite": "continue", "shuffle": False}
    expected = trained(X, y, **options)
    no_room()
    assert trained(X, y, **options) == expected
    assert np.isfinite(expected[0]).all()


@pytest.mark.parametrize("fits", [True, False])
def test_squares_of_weights_are_refused(data, cuda, no_room, fits):
    """Whether the data come in pieces or not."""
    model, optimizer = fastbp.Sequential(fastbp.Linear(3, 2), device="cuda", seed=1), fastbp.SGD(lr=0.1)
    if not fits:
        no_room()
    chunk = SimpleNamespace(X=data[0][:4], y=data[1][:4], weight=None, labels=True, first=0)
    optimizer.bind(model.network)
    run = steps.CompiledSteps(model, fastbp.CrossEntropyLoss(), optimizer, chunk, 4)
    assert (run.pieces is None) == fits
    run.start(np.arange(4), 1)
    with pytest.raises(ValueError, match="the GPU sums no squares of weights"):
        run(np.arange(4), np.zeros(1), np.zeros(1, np.int64), step_squares=np.zeros(1))


def test_chunks_of_an_iterable_come_in_pieces(data, late):
    X, y, weight = data
    chunks = [(X[:9], y[:9], weight[:9]), (X[9:], y[9:])]
    trained(chunks)
    assert late == 2 * ([8] * 3 + [1] * 3 + [8] * 2 + [6] * 2)
    late.clear()
    trained(X, y)
    assert late == []


def test_an_error_while_the_next_piece_is_made_ready_loses_no_step(data, late, no_room, monkeypatch):
    X, y, _ = data
    no_room()
    gather, optimizer = pieces_module._gather, fastbp.Adam(lr=0.05)

    def failing(array, rows, out):
        if 8 in rows:
            raise OSError("the file has gone")
        gather(array, rows, out)

    monkeypatch.setattr(pieces_module, "_gather", failing)
    with pytest.raises(OSError, match="the file has gone"):
        trained(X, y, optimizer=optimizer, shuffle=False)
    assert optimizer.step_count == 2
    assert (optimizer.state_dict()["exp_avg"] != 0).any()
