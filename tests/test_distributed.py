"""Several ranks train as one process does with all their rows; what befalls one of them is known to all.

Most of it runs on ranks that are threads, with a communicator of the five members alone. What MPI itself must do is
asked of processes that ``mpiexec`` starts.
"""

import copy
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import distributed, shards
from fastbp import ranks as ranks_module

from .conftest import PATIENCE, ROOT

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None, reason='needs pip install "fastbp[mpi]"'
)
TOLERANCE = 1e-12  # of weights in float64, after more than 50 steps of Adam
CUTS = {1: [0, 100], 2: [0, 71, 100], 3: [0, 50, 50, 100]}  # the ranks' rows; of three, one has none


# ------------------------------------------------------------------------------- ranks that are threads
class Threads:
    """What threads share that stand for ranks."""

    def __init__(self, size):
        self.size, self.waiting, self.arrays = size, threading.Barrier(size, timeout=60), [None] * size


class Thread:
    """A communicator of the five members."""

    def __init__(self, rank, shared):
        self.rank, self.size, self.shared = rank, shared.size, shared

    def allreduce_(self, buffer):
        self.shared.arrays[self.rank] = buffer.copy()
        self.barrier()
        total = sum(self.shared.arrays[1:], self.shared.arrays[0])
        self.barrier()
        buffer[...] = total

    def broadcast_(self, buffer, root=0):
        self.shared.arrays[self.rank] = buffer
        self.barrier()
        sent = self.shared.arrays[root].copy()
        self.barrier()
        buffer[...] = sent

    def barrier(self):
        self.shared.waiting.wait()


def on_threads(size, function):
    """What ``function(communicator)`` returns, or raises, on every rank."""
    shared, results = Threads(size), [None] * size

    def run(rank):
        try:
            results[rank] = function(Thread(rank, shared))
        except BaseException as error:
            results[rank] = error

    members = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    return results


def all_good(results):
    """The results, none of which is an error."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# ---------------------------------------------------------------------------------------- what is trained
def rows():
    """X, labels and weights, some of them 0."""
    rng = np.random.default_rng(3)
    weight = rng.uniform(0, 2, 100)
    weight[::9] = 0
    return rng.normal(size=(100, 7)), rng.integers(0, 4, 100), weight


def network(seed=0, dtype="float64"):
    return fastbp.Sequential(
        fastbp.Linear(7, 16, bias=False), fastbp.BatchNorm1d(16), fastbp.ReLU(), fastbp.Dropout(0.2),
        fastbp.Linear(16, 8), fastbp.Tanh(), fastbp.Linear(8, 4), dtype=dtype, seed=seed,
    )  # fmt: skip


def half_squared(prediction, target, weight=None):
    """A loss of a user's own."""
    weight = np.ones(len(prediction)) if weight is None else weight
    weight = (weight / weight.sum())[:, None]
    error = prediction - target
    return 0.5 * float((weight * error**2).sum()), weight * error


def trained(
    communicator, *, weighted=True, values=False, optimizer=None, seed=5, frozen=False, dtype=np.float64, **settings
):
    """A model, its history and its optimizer, of the rows of this rank: 52 steps of Adam or more."""
    X, y, weight = rows()
    X = X.astype(dtype)
    y = np.eye(4)[y] if values else y
    rank, size = getattr(communicator, "rank", 0), getattr(communicator, "size", 1)
    part = slice(*CUTS[size][rank : rank + 2])
    model = network(seed + rank)  # the ranks begin with other weights, which rank 0 makes its own
    if frozen:
        model.layers[1].trainable = model.layers[4].trainable = False
    optimizer = optimizer or fastbp.Adam(lr=1e-2)
    settings = {"epochs": 18, "verbose": False, "loss": fastbp.CrossEntropyLoss()} | settings
    validation = (X[part], y[part], weight[part]) if weighted else (X[part], y[part])
    history = model.fit(
        X[part], y[part], sample_weight=weight[part] if weighted else None, optimizer=optimizer, batch_size=30 // size,
        validation_data=validation, communicator=communicator, **settings,
    )  # fmt: skip
    return model, history, optimizer


def outcome(model, history, optimizer):
    """All that must agree, as arrays."""
    kept = model.state_dict() | {f"optimizer.{key}": value for key, value in optimizer.state_dict().items()}
    columns = {key: np.array(history[key], float) for key in ("loss", "val_loss", "accuracy", "val_accuracy", "lr")}
    return kept | columns


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def alone():
    """What one process makes of all rows."""
    result = trained(None)
    assert result[2].step_count >= 50
    return outcome(*result)


def twice_and_never(epoch):
    """An order of all rows, those of weight 0 too: some come twice, some never, and the last batch is short."""
    return np.random.default_rng(epoch).integers(0, 100, 95)


KINDS = {
    "as it is": {},
    "an order of a function": {"shuffle": twice_and_never},
    "clip by Adam, no weights": {"weighted": False, "optimizer": lambda: fastbp.Adam(lr=1e-2, clip_norm=0.05)},
    "frozen": {"frozen": True},
    "float16": {"dtype": np.float16},
    "without weights": {"weighted": False},
    "accumulate": {"accumulate": 2},
    "clip": {"optimizer": lambda: fastbp.SGD(lr=0.1, momentum=0.9, clip_norm=0.05)},
    "own loss": {"loss": half_squared, "values": True},
    "accumulate, last short": {"accumulate": 4, "drop_last": True},
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_train_as_one_process(kind, size):
    settings = {key: value() if key == "optimizer" else value for key, value in KINDS[kind].items()}
    expected = trained(None, **settings)

    def train(communicator):
        own = {key: value() if key == "optimizer" else value for key, value in KINDS[kind].items()}
        return trained(communicator, **own)

    results = all_good(on_threads(size, train))
    if kind in ("own loss",):  # there is no accuracy of values
        for _, history, _ in [expected, *results]:
            assert history["accuracy"] == [None] * len(history)
            for record in history:
                record |= {"accuracy": 0, "val_accuracy": 0}
    for result in results:
        close(outcome(*result), outcome(*expected))
        np.testing.assert_array_equal(result[0].flat_parameters, results[0][0].flat_parameters)


@pytest.mark.parametrize("shuffle", [False, "blocks"])
def test_other_orders_take_from_every_rank_in_proportion(shuffle, monkeypatch):
    monkeypatch.setattr(fastbp.data, "SHUFFLE_BLOCK", 8)
    X, y, weight = rows()
    settings = {"loss": fastbp.CrossEntropyLoss(), "epochs": 3, "verbose": False}
    layers = fastbp.Linear(7, 8), fastbp.Tanh(), fastbp.Linear(8, 4)

    def train(communicator):
        part = slice(*CUTS[3][communicator.rank : communicator.rank + 2])
        model, optimizer = fastbp.Sequential(*map(copy.deepcopy, layers), dtype="float64", seed=1), fastbp.Adam(lr=1e-2)
        chunk = fastbp.data.Chunk(model, settings["loss"], X[part], y[part], weight[part], may_be_empty=True)
        order = shards.Shard(chunk, ranks_module.of(communicator)).order(copy.deepcopy(model), shuffle, 1)
        model.fit(
            X[part], y[part], sample_weight=weight[part], optimizer=optimizer, batch_size=10, shuffle=shuffle,
            communicator=communicator, **settings | {"epochs": 1},
        )  # fmt: skip
        return model, order

    results = all_good(on_threads(3, train))
    order, there = results[0][1], np.flatnonzero(weight)
    assert sorted(order) == list(range(len(there)))
    first = np.count_nonzero(weight[:50])
    shares = [np.count_nonzero(order[start : start + 30] < first) for start in range(0, 60, 30)]
    assert all(abs(share - 30 * first / len(there)) <= 1 for share in shares)
    if shuffle is False:
        assert list(order[order < first]) == list(range(first))
    else:
        assert list(order[order < first]) != list(range(first))
    # One process, to which a function gives the same rows in the same order.
    one = fastbp.Sequential(*map(copy.deepcopy, layers), dtype="float64", seed=1)
    same = there[order]
    one.fit(
        X[same], y[same], sample_weight=weight[same], optimizer=fastbp.Adam(lr=1e-2), batch_size=30, shuffle=False,
        **settings | {"epochs": 1},
    )  # fmt: skip
    for model, _ in results:
        np.testing.assert_allclose(model.flat_parameters, one.flat_parameters, rtol=0, atol=TOLERANCE)


def test_float32_agrees_to_its_rounding():
    expected = network(5, "float32")
    X, y, _ = rows()
    settings = {"loss": fastbp.CrossEntropyLoss(), "epochs": 3, "verbose": False}
    expected.fit(X, y, optimizer=fastbp.SGD(lr=0.1), batch_size=30, **settings)

    def train(communicator):
        part, model = slice(*CUTS[2][communicator.rank : communicator.rank + 2]), network(5, "float32")
        model.fit(X[part], y[part], optimizer=fastbp.SGD(lr=0.1), batch_size=15, communicator=communicator, **settings)
        return model.flat_parameters

    for flat in all_good(on_threads(2, train)):
        np.testing.assert_allclose(flat, expected.flat_parameters, rtol=0, atol=1e-5)


def test_weights_of_any_size_train_float32():
    X, y, weight = rows()

    def train(scale):
        def one(communicator):
            part, model = slice(*CUTS[2][communicator.rank : communicator.rank + 2]), network(5, "float32")
            model.fit(
                X[part], y[part], sample_weight=weight[part] * scale, loss=fastbp.CrossEntropyLoss(), epochs=2,
                optimizer=fastbp.SGD(lr=0.1), batch_size=15, communicator=communicator, verbose=False,
            )  # fmt: skip
            return model.flat_parameters

        return all_good(on_threads(2, one))[0]

    expected = train(1.0)
    for scale in (1e-60, 1e60):
        np.testing.assert_allclose(train(scale), expected, rtol=0, atol=1e-5)


def test_steps_of_a_loss_of_fastbp_are_compiled_and_others_stored(monkeypatch):
    made = []
    for kind in (shards.CompiledSharedSteps, shards.SharedSteps):
        start = kind.start

        def started(self, *arguments, kind=kind, start=start):
            made.append(kind)
            start(self, *arguments)

        monkeypatch.setattr(kind, "start", started)
    for settings, kind in (
        ({}, shards.CompiledSharedSteps),
        ({"optimizer": fastbp.SGD(clip_norm=1.0)}, shards.CompiledSharedSteps),
        ({"accumulate": 2}, shards.SharedSteps),
        ({"loss": half_squared, "values": True}, shards.SharedSteps),
    ):
        made.clear()
        all_good(on_threads(2, lambda ranks, own=settings: trained(ranks, epochs=1, **copy.deepcopy(own))))
        assert made == [kind] * 2


def test_a_step_is_one_collective_without_padding():
    sizes = []

    class Counting(Thread):
        def allreduce_(self, buffer):
            if self.rank == 0:
                sizes.append(buffer.size)
            super().allreduce_(buffer)

    def train(host):
        model = fastbp.Sequential(fastbp.Linear(7, 33), fastbp.Tanh(), fastbp.Linear(33, 4), dtype="float64", seed=1)
        X, y, _ = rows()
        part, settings = slice(*CUTS[2][host.rank : host.rank + 2]), {"loss": fastbp.CrossEntropyLoss(), "epochs": 2}
        model.fit(
            X[part], y[part], optimizer=fastbp.SGD(), batch_size=10, communicator=Counting(host.rank, host.shared),
            verbose=False, **settings,
        )  # fmt: skip

    all_good(on_threads(2, train))
    count = 7 * 33 + 33 + 33 * 4 + 4
    assert sizes.count(count + shards.TAIL) == 10
    assert max(size for size in sizes if size != count + shards.TAIL) < 20


# ------------------------------------------------------------------------------------ chunks, orders
def test_an_order_is_that_of_the_function_of_rank_0():
    def forbidden(epoch):
        raise AssertionError

    def order(epoch):
        return twice_and_never(epoch) if epoch < 3 else np.array([100])

    def train(communicator, epochs):
        shuffle = order if getattr(communicator, "rank", 0) == 0 else forbidden
        shuffle.__qualname__ = "order"
        return trained(communicator, epochs=epochs, shuffle=shuffle)

    expected = outcome(*train(None, 2))
    for result in all_good(on_threads(2, lambda ranks: train(ranks, 2))):
        close(outcome(*result), expected)
    first, second = on_threads(2, lambda ranks: train(ranks, 3))
    assert isinstance(first, ValueError)
    assert isinstance(second, RuntimeError)
    assert all("shuffle(3)" in str(error) for error in (first, second)), (first, second)


CHUNKS = [0, 40, 41, 100]  # where chunks begin and end; of two ranks, the second has none of the second chunk


def chunks_of(communicator):
    """The rows of this rank of each chunk: the last third of it is the second rank's."""
    X, y, weight = rows()
    rank, size = getattr(communicator, "rank", 0), getattr(communicator, "size", 1)
    for begin, end in itertools.pairwise(CHUNKS):
        cut = begin + -(-2 * (end - begin) // 3)
        part = slice(begin, end) if size == 1 else (slice(begin, cut), slice(cut, end))[rank]
        yield X[part], y[part], weight[part]


class StopsAt:
    """Asks for a checkpoint in the middle of a chunk, and ends training after that."""

    def __init__(self, stops):
        self.stops = stops

    def on_batch_end(self, model, record):
        if self.stops and (record["epoch"], record["batch"]) == (3, 5):
            fastbp.request_checkpoint()
        if self.stops and (record["epoch"], record["batch"]) == (3, 7):
            raise RuntimeError("the end")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def trained_on_chunks(communicator, stops=False, **settings):
    layers = fastbp.Linear(7, 8), fastbp.Tanh(), fastbp.Dropout(0.2), fastbp.Linear(8, 4)
    model, optimizer = fastbp.Sequential(*layers, dtype="float64", seed=1), fastbp.Adam(lr=1e-2)
    model.fit(
        lambda: chunks_of(communicator), loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, epochs=6, verbose=False,
        batch_size=8 // getattr(communicator, "size", 1), communicator=communicator, callbacks=[StopsAt(stops)],
        **settings,
    )  # fmt: skip
    return model.flat_parameters, model.history["loss"], model.history["accuracy"]


def test_chunks_of_ranks_are_chunks_of_all_together(tmp_path):
    expected = trained_on_chunks(None)

    def good(results):
        for result in all_good(results):
            for ours, theirs in zip(result, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)

    good(on_threads(2, trained_on_chunks))
    ends = on_threads(2, lambda ranks: trained_on_chunks(ranks, True, checkpoint=tmp_path, every=100))
    assert all("the end" in str(error) for error in ends), ends
    good([trained_on_chunks(None, resume=tmp_path)])
    good(on_threads(2, lambda ranks: trained_on_chunks(ranks, resume=tmp_path)))


WRONG_CHUNKS = {
    "one less": (lambda rank, chunk: [chunk] * (2 - rank), "as many chunks on every rank, and 1 of 2 ranks have one"),
    "none": (lambda rank, chunk: [], "at least one chunk"),
    "no rows": (lambda rank, chunk: [tuple(part[:0] for part in chunk)], "at least one row on some of the 2 ranks"),
    "a wrong one": (lambda rank, chunk: [chunk, (chunk[0][:, : 7 - rank], chunk[1])], r"chunks\[1\]\[0\] must have"),
    "labels and values": (lambda rank, chunk: [(chunk[0], np.eye(4)[chunk[1]] if rank else chunk[1])],
                          "labels on all 2 ranks or on none, and on 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_CHUNKS)
def test_chunks_that_do_not_match_are_refused_by_all(what):
    X, y, _ = rows()
    given, message = WRONG_CHUNKS[what]

    def train(communicator):
        model = fastbp.Sequential(fastbp.Linear(7, 4), dtype="float64", seed=1)
        model.fit(
            given(communicator.rank, (X, y)), loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.SGD(), batch_size=20,
            communicator=communicator, verbose=False,
        )  # fmt: skip

    for error in on_threads(2, train):
        assert isinstance(error, ValueError | RuntimeError)
        assert re.search(message, str(error)), error


# ------------------------------------------------------------------------------- one process, one rank
def test_one_rank_is_one_process():
    model, history, _ = trained(None, epochs=2)
    for communicator in (distributed.alone(), Thread(0, Threads(1))):
        assert ranks_module.of(communicator) is None
        again, same, _ = trained(communicator, epochs=2)
        np.testing.assert_array_equal(again.flat_parameters, model.flat_parameters)
        assert same["loss"] == history["loss"]
    buffer = np.arange(3.0)
    distributed.alone().allreduce_(buffer)
    distributed.alone().broadcast_(buffer)
    distributed.alone().barrier()
    assert list(buffer) == [0, 1, 2]


def test_what_is_no_communicator_is_refused():
    with pytest.raises(TypeError, match=r"communicator must have rank, size, allreduce_.*lacks rank"):
        trained(object())


# ------------------------------------------------------------------------------- refused at the start
def refusals(changed):
    """What two ranks raise where ``changed(rank)`` gives other settings of `fit`."""
    X, y, _ = rows()

    def train(communicator):
        settings = {
            "X": X[:40], "y": y[:40], "loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(), "batch_size": 8,
            "verbose": False, "communicator": communicator, "model": network(),
        } | changed(communicator.rank)  # fmt: skip
        model = settings.pop("model")
        before = model.flat_parameters
        try:
            model.fit(settings.pop("X"), settings.pop("y"), **settings)
        finally:
            np.testing.assert_array_equal(model.flat_parameters, before)

    return on_threads(2, train)


X_WITH_NAN = np.full((40, 7), np.nan)
OTHERS = {
    "argument": (lambda rank: {"X": X_WITH_NAN} if rank else {}, "finite", ValueError),
    "network": (lambda rank: {"model": fastbp.Sequential(fastbp.Linear(7, 4), dtype="float64")} if rank else {},
                "layers is", ValueError),
    "dtype": (lambda rank: {"model": network(dtype="float32")} if rank else {}, "dtype is 'float32' on rank 1",
              ValueError),
    "optimizer": (lambda rank: {"optimizer": fastbp.SGD()} if rank else {}, "optimizer is", ValueError),
    "loss": (lambda rank: {"loss": fastbp.CrossEntropyLoss(label_smoothing=0.1 * rank)}, "loss is", ValueError),
    "epochs": (lambda rank: {"epochs": 1 + rank}, "epochs is 2 on rank 1, and 1 on rank 0", ValueError),
    "validation": (lambda rank: {"validation_data": (np.zeros((2, 7)), np.zeros(2, int))} if rank else {},
                   "on all 2 ranks or on none, and 1 have", ValueError),
    "no rows": (lambda rank: {"X": np.zeros((0, 7)), "y": np.zeros(0, int)}, "none has", ValueError),
    "one row": (lambda rank: {"X": np.zeros((1 - rank, 7)), "y": np.zeros(1 - rank, int)}, "batch of one row",
                ValueError),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_is_refused_by_all(what):
    changed, message, kind = OTHERS[what]
    errors = refusals(changed)
    assert all(isinstance(error, ValueError | RuntimeError) for error in errors), errors
    assert any(isinstance(error, kind) and message in str(error) for error in errors), errors
    assert all(message in str(error) for error in errors), errors


def test_other_code_is_refused(monkeypatch):
    hashes = iter(["one", "two"])
    lock = threading.Lock()

    def code():
        with lock:
            return next(hashes)

    monkeypatch.setattr(ranks_module, "code", code)
    errors = refusals(lambda rank: {})
    assert all("code of fastbp is" in str(error) for error in errors), errors


def test_the_code_is_that_of_all_files():
    before = ranks_module.code.__wrapped__()
    assert before == ranks_module.code()
    assert len(before) == 16


# ------------------------------------------------------------------------------- stopping and keeping
def test_rank_0_decides_when_to_stop():
    class Stops:
        """Rank 1 would stop at once, rank 0 after two epochs; both set a rate."""

        def __init__(self, rank):
            self.rank = rank

        def on_fit_begin(self, model, run):
            assert run["rank"] == self.rank
            assert run["rows"] == 100
            assert run["validation_rows"] == 100
            self.optimizer = run["optimizer"]

        def on_epoch_end(self, model, record):
            self.optimizer.lr = 0.01 + self.rank
            return record["epoch"] == 2 - self.rank

    results = all_good(on_threads(2, lambda ranks: trained(ranks, weighted=False, callbacks=[Stops(ranks.rank)])))
    assert [len(history) for _, history, _ in results] == [2, 2]
    assert [optimizer.lr for *_, optimizer in results] == [0.01, 0.01]


def test_early_stopping_leaves_the_best_weights_everywhere(capsys):
    def train(ranks):
        return trained(ranks, callbacks=[fastbp.EarlyStopping(patience=1, min_delta=0.03)], epochs=19, verbose=True)

    expected = train(None)
    said = capsys.readouterr().out
    results = all_good(on_threads(2, train))
    assert len(capsys.readouterr().out.splitlines()) == len(said.splitlines())  # one rank prints
    assert 1 < len(expected[1]) < 19
    for result in results:
        close(outcome(*result), outcome(*expected))


def test_a_model_file_is_written_by_rank_0(tmp_path):
    paths = [tmp_path / "model-0.npz", tmp_path / "model-1.npz"]
    all_good(
        on_threads(2, lambda ranks: trained(ranks, epochs=2, callbacks=[fastbp.ModelCheckpoint(paths[ranks.rank])]))
    )
    assert [path.exists() for path in paths] == [True, False]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (1, 2)])
def test_another_number_of_ranks_goes_on(tmp_path, sizes, alone):
    """From the middle of an epoch, and from the end of one."""

    class Asks:
        def __init__(self, communicator):
            self.asks = communicator is None or communicator.rank == communicator.size - 1

        def on_batch_end(self, model, record):
            if self.asks and (record["epoch"], record["batch"]) == (7, 2):
                fastbp.request_checkpoint()
            if (record["epoch"], record["batch"]) == (8, 1):
                raise RuntimeError("the end")

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.asks = False

    class Goes(Asks):
        def on_batch_end(self, model, record):
            pass

    Goes.__name__ = "Asks"
    folder = tmp_path / "run"

    def begin(communicator):
        with pytest.raises(RuntimeError, match="the end"):
            trained(communicator, callbacks=[Asks(communicator)], checkpoint=folder, every=100)

    def go_on(communicator):
        return trained(communicator, callbacks=[Goes(communicator)], checkpoint=folder, every=100, resume=folder)

    def on(size, function):
        return [function(None)] if size == 1 else all_good(on_threads(size, function))

    on(sizes[0], begin)
    assert list(folder.iterdir())
    for result in on(sizes[1], go_on):
        close(outcome(*result), alone)


def test_a_ctrl_c_on_one_rank_stops_all_after_the_same_step(monkeypatch):
    found, of = {}, ranks_module.of

    def noted(communicator):
        found[communicator.rank] = of(communicator)
        return found[communicator.rank]

    class Presses:
        def __init__(self, rank):
            self.rank, self.seen = rank, []

        def on_batch_end(self, model, record):
            self.seen.append((record["epoch"], record["batch"]))
            if self.rank == 1 and self.seen[-1] == (3, 2):
                found[1].interrupts.asked = True  # as the handler of the signal does

    monkeypatch.setattr(ranks_module, "of", noted)
    presses = [Presses(0), Presses(1)]
    ends = on_threads(2, lambda ranks: trained(ranks, callbacks=[presses[ranks.rank]]))
    assert [type(end) for end in ends] == [KeyboardInterrupt] * 2
    assert presses[0].seen == presses[1].seen
    assert presses[0].seen[-1] == (3, 2)  # of the step after that, no callback is told


@pytest.mark.parametrize("on_nonfinite", ["raise", "continue"])
def test_a_loss_that_is_not_finite_is_that_of_all(on_nonfinite):
    X, y, _ = rows()
    X = X.copy()
    X[80, 0] = 1e200  # whose square is infinite; rank 1 has it

    def train(communicator):
        rank, size = (0, 1) if communicator is None else (communicator.rank, communicator.size)
        part = slice(*CUTS[size][rank : rank + 2])
        model = fastbp.Sequential(fastbp.Linear(7, 1), dtype="float64", seed=2)
        optimizer = fastbp.SGD(lr=0.01)
        try:
            model.fit(
                X[part], y[part] / 3, loss=fastbp.MSELoss(), optimizer=optimizer, epochs=2, batch_size=20 // size,
                communicator=communicator, on_nonfinite=on_nonfinite, verbose=False,
            )  # fmt: skip
        except FloatingPointError as error:
            return str(error), model.flat_parameters
        return model.history["loss"], model.flat_parameters

    expected = train(None)
    results = all_good(on_threads(2, train))
    for said, flat in results:
        if on_nonfinite == "raise":
            assert said == expected[0]
            assert "the loss was inf at step" in said
        else:
            np.testing.assert_allclose(said, expected[0], rtol=1e-12)
        np.testing.assert_allclose(flat, expected[1], rtol=0, atol=TOLERANCE)


# ---------------------------------------------------------------------------------------------- NCCL
class FakeNCCL:
    """``nccl.core`` of a library that keeps what it is asked for: the same calls, and arrays of the host in it."""

    SUM = "sum"

    class UniqueId:
        def __init__(self, raw=bytes(128)):
            self.raw = raw

        def __bytes__(self):
            return self.raw

        @staticmethod
        def from_bytes(raw):
            return FakeNCCL.UniqueId(raw)

    class Communicator:
        made = []  # noqa: RUF012

        @classmethod
        def init(cls, nranks, rank, unique_id):
            self = cls()
            self.calls, self.identity, self.nranks, self.rank = [], bytes(unique_id), nranks, rank
            cls.made.append(self)
            return self

        def allreduce(self, sendbuf, recvbuf, op, *, stream=None):
            assert sendbuf is recvbuf
            assert op == FakeNCCL.SUM
            self.calls.append(("allreduce", stream))
            self.ranks[self.rank].allreduce_(sendbuf.array)

        def broadcast(self, sendbuf, recvbuf, root, *, stream=None):
            assert sendbuf is recvbuf
            self.calls.append(("broadcast", stream))
            self.ranks[self.rank].broadcast_(sendbuf.array, root)

    @staticmethod
    def get_unique_id(empty=False):
        return FakeNCCL.UniqueId() if empty else FakeNCCL.UniqueId(os.urandom(128))


class OnDevice:
    """An array of the host that says what one of a device says."""

    def __init__(self, array, stream):
        self.array, self.__cuda_array_interface__ = array, {"stream": stream, "shape": array.shape}


def test_nccl_gets_what_is_on_a_device_and_mpi_the_rest():
    FakeNCCL.Communicator.made.clear()
    lock = threading.Lock()

    def talk(host):
        with lock:
            FakeNCCL.Communicator.ranks = {**getattr(FakeNCCL.Communicator, "ranks", {}), host.rank: host}
        host.barrier()
        ranks = distributed.NCCLRanks(FakeNCCL, host)
        assert (ranks.rank, ranks.size) == (host.rank, 2)
        there, here = OnDevice(np.full(5, 1.0 + ranks.rank), 7), np.full(3, 1.0 + ranks.rank)
        ranks.allreduce_(there)
        ranks.allreduce_(here)
        told, text = OnDevice(np.full(2, 10 + ranks.rank), None), np.full(2, 20 + ranks.rank)
        ranks.broadcast_(told, 1)
        ranks.broadcast_(text, 1)
        ranks.barrier()
        return there.array, here, told.array, text, ranks._comm

    results = all_good(on_threads(2, talk))
    identities = {comm.identity for *_, comm in results}
    assert len(identities) == 1
    assert identities != {bytes(128)}
    for there, here, told, text, comm in results:
        assert list(there) == [3] * 5
        assert list(here) == [3] * 3
        assert list(told) == [11, 11]
        assert list(text) == [21, 21]
        assert comm.nranks == 2
        assert comm.calls == [("allreduce", 7), ("broadcast", 0)]


def test_gradients_go_between_devices_as_they_lie_there(monkeypatch):
    """On a model of the host that passes for one of a device."""
    reduced = []

    class Device(distributed.NCCLRanks):
        def __init__(self, host):
            self._host, self.rank, self.size = host, host.rank, host.size

        def allreduce_(self, buffer):
            if self.rank == 0:
                reduced.append(buffer.size)
            self._host.allreduce_(buffer)

    expected = trained(None, accumulate=2)
    before = shards.SharedStep.__init__

    def between_devices(self, *arguments):
        before(self, *arguments)
        self.between_devices = True

    monkeypatch.setattr(shards.SharedStep, "__init__", between_devices)
    for result in all_good(on_threads(2, lambda host: trained(Device(host), accumulate=2))):
        close(outcome(*result), outcome(*expected))
    size = expected[0].network.size
    assert reduced.count(size) >= 50
    assert reduced.count(shards.TAIL) >= reduced.count(size)


def test_without_the_packages_the_error_says_what_to_install(monkeypatch):
    for name in ("mpi4py", "nccl"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"fastbp\[mpi\]"):
        distributed.mpi()
    with pytest.raises(ImportError, match=r"fastbp\[nccl\]"):
        distributed.nccl()


# ---------------------------------------------------------------------------------------------- MPI
def start(size, function, *arguments, cwd=ROOT):
    """Ranks that MPI starts, each of which calls ``function(communicator, *arguments)`` of this module."""
    code = (
        f"import faulthandler; faulthandler.dump_traceback_later({PATIENCE}, exit=True)\n"
        f"import fastbp; from {__name__} import {function.__name__} as function\n"
        f"function(fastbp.distributed.mpi(), *{arguments!r})"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        [MPIEXEC, "-n", str(size), sys.executable, "-c", code],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process, seconds=PATIENCE):
    """What the ranks printed and their errors, once all have ended."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def train_and_keep(communicator, folder):
    """Train twice: to the end, and to a checkpoint that another number of ranks goes on from."""
    model, history, optimizer = trained(communicator)
    flat, others = model.flat_parameters, model.flat_parameters
    communicator.broadcast_(others)
    np.testing.assert_array_equal(flat, others)
    cores = sum(1 for _ in os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    assert fastbp.get_num_threads() == max(1, cores // communicator.size), fastbp.get_num_threads()
    if communicator.rank == 0:
        np.savez(Path(folder) / f"ranks-{communicator.size}.npz", **outcome(model, history, optimizer))
    trained(communicator, epochs=5, checkpoint=str(Path(folder) / f"kept-{communicator.size}"))
    print(f"trained {communicator.rank}\n", end="", flush=True)  # in one piece, between those of others


@needs_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_mpi_trains_as_one_process(size, alone, tmp_path):
    code, out, error = ended(start(size, train_and_keep, str(tmp_path)))
    assert code == 0, error
    assert sorted(out.splitlines()) == [f"trained {rank}" for rank in range(size)]
    close(dict(np.load(tmp_path / f"ranks-{size}.npz")), alone)
    kept = tmp_path / f"kept-{size}"
    close(outcome(*trained(None, resume=kept)), alone)


class Slow:
    """Tells in a file how far the ranks are, and gives others time."""

    def __init__(self, communicator, folder, then):
        self.communicator, self.folder, self.then = communicator, Path(folder), then

    def on_batch_end(self, model, record):
        time.sleep(0.02)
        if (record["epoch"], record["batch"]) == (6, 2):
            (self.folder / f"pid-{self.communicator.rank}").write_text(str(os.getpid()))
            self.then(self.communicator)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def train_slowly(communicator, folder, what):
    """Train with a checkpoint every epoch; in the sixth, something befalls rank 1."""
    then = {"killed": nothing, "raises": raise_on_rank_1, "Ctrl-C": interrupt_rank_1}[what]
    trained(communicator, callbacks=[Slow(communicator, folder, then)], checkpoint=str(Path(folder) / "run"))


def nothing(communicator):
    pass


def raise_on_rank_1(communicator):
    if communicator.rank == 1:
        raise ValueError("rank 1 has had enough")


def interrupt_rank_1(communicator):
    if communicator.rank == 1:
        signal.raise_signal(signal.SIGINT)


@needs_mpi
@pytest.mark.parametrize("what", ["killed", "raises", "Ctrl-C"])
def test_what_befalls_a_rank_ends_all_and_another_number_goes_on(what, alone, tmp_path):
    process = start(2, train_slowly, str(tmp_path), what)
    pid, deadline = tmp_path / "pid-1", time.monotonic() + PATIENCE
    while not (pid.exists() and pid.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if what == "killed":
        os.kill(int(pid.read_text()), signal.SIGKILL)
    code, out, error = ended(process, 30)
    assert code != 0
    said = {"killed": "KILLED|signal 9|Killed", "raises": "rank 1 has had enough", "Ctrl-C": "KeyboardInterrupt"}[what]
    assert any(part in out + error for part in said.split("|")), out + error
    if what == "raises":
        assert "rank 1 of 2 failed, which ends all of them" in error
    files = sorted((tmp_path / "run").glob("checkpoint-*.npz"))
    assert files
    if what == "Ctrl-C":  # it is kept after the step that it came in
        config, _ = fastbp.files.read(files[-1], fastbp.checkpoints.CHECKPOINT)
        assert (config["progress"]["epoch"], config["progress"]["batch"]) == (6, 3)
    settings = {"checkpoint": tmp_path / "run", "resume": tmp_path / "run"}

    def go_on(communicator):
        return trained(communicator, callbacks=[Slow(communicator, tmp_path, nothing)], **settings)

    for result in all_good(on_threads(3, go_on)):
        close(outcome(*result), alone)


# --------------------------------------------------------------------------------- the command line
def table_file(folder):
    """A Parquet file of several row groups, with gaps and a category."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 301))
    kind = rng.choice(["red", "green", "blue"], 301)
    y = np.where(a + (kind == "red") + rng.normal(scale=0.3, size=301) > 0.5, "yes", "no")
    columns = {"a": [None if i % 17 == 0 else value for i, value in enumerate(a)], "b": b, "kind": kind, "y": y}
    parquet.write_table(arrow.table(columns), folder / "rows.parquet", row_group_size=40)
    return folder / "rows.parquet"


COMMAND = "--target y --dtype float64 --batch-size 25 --hidden 12 --dropout 0.1 --norm layer --epochs 8 -q".split()  # noqa: SIM905


def command(communicator, folder, *arguments):
    """A command; with ``dies``, rank 1 is killed after its fifth epoch. Of the file it reads its own rows alone."""
    from fastbp.cli import job, main
    from fastbp.tabular import Stored

    job.CHECKPOINT_SECONDS = 0
    os.chdir(folder)
    if "dies" in arguments:
        ended = fastbp.EarlyStopping.on_epoch_end

        def end(self, model, record):
            if record["epoch"] == 5 and communicator.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return ended(self, model, record)

        fastbp.EarlyStopping.on_epoch_end = end
    parts = Stored.parts

    def counted(self, *names):
        assert communicator.rank == 0 or len(self) <= -(-301 // communicator.size)
        return parts(self, *names)

    Stored.parts = counted
    code = main(["train", *(part for part in arguments if part != "dies"), "--distributed", "mpi"])
    assert code == 0


@needs_mpi
def test_the_command_line_trains_on_ranks_and_goes_on_with_others(tmp_path):
    from fastbp.cli import main

    data = str(table_file(tmp_path))
    assert main(["train", data, *COMMAND, "--run-dir", str(tmp_path / "alone")]) == 0
    code, _, _ = ended(start(2, command, str(tmp_path), data, *COMMAND, "--run-dir", "killed", "dies"), 90)
    assert code != 0
    code, _, error = ended(start(3, command, str(tmp_path), "--resume", "killed/rows-001", "-q"))
    assert (code, error) == (0, "")
    there, alone = tmp_path / "killed" / "rows-001", tmp_path / "alone" / "rows-001"
    flat, expected = (fastbp.load(folder).model.flat_parameters for folder in (there, alone))
    np.testing.assert_allclose(flat, expected, rtol=0, atol=TOLERANCE)
    histories = [(folder / "history.csv").read_text().splitlines() for folder in (there, alone)]
    assert len(histories[0]) == len(histories[1])
    assert (there / "metrics.json").exists()
    assert not (there / "checkpoints").exists()


@needs_mpi
def test_a_command_that_is_refused_ends_on_all_ranks(tmp_path):
    arguments = [str(table_file(tmp_path)), "--target", "y", "--one-hot", "1", "-q"]
    code, _, error = ended(start(2, command, str(tmp_path), *arguments), 60)
    assert code != 0
    assert "raise --one-hot" in error
    assert not (tmp_path / "runs").exists()


def test_ranks_divide_a_table_and_a_batch_without_rest():
    from fastbp.cli import division

    ranks = [ranks_module.of(Thread(rank, Threads(3))) for rank in range(3)]
    spans = [division.span(100, one) for one in ranks]
    assert [spans[0][0], *(end for _, end in spans)] == [0, 33, 66, 100]
    assert [start for start, _ in spans[1:]] == [33, 66]
    assert sum(division.share_of_batch(32, one) for one in ranks) == 32
    with pytest.raises(ValueError, match="a row for each of the 3 ranks"):
        division.share_of_batch(2, ranks[0])
