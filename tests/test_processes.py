"""Threads, forks, signals and neighbours: nothing aborts, hangs, or changes a bit of a result.

A scenario runs in a process of its own, on a team of workers whatever the size of its model.
"""

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import fastbp
from fastbp import backend

SCENARIOS = []


def scenario(*marks, **environment):
    """Add a function that is called in a process of its own, with these variables."""

    def add(function):
        SCENARIOS.append(pytest.param(function, environment, id=function.__name__, marks=marks))
        return function

    return add


def data(features, classes, rows=700):
    rng = np.random.default_rng(features)
    return rng.standard_normal((rows, features)).astype(np.float32), rng.integers(0, classes, rows)


def make(*widths, activation=fastbp.ReLU, seed=0):
    layers = [layer for pair in itertools.pairwise(widths) for layer in (fastbp.Linear(*pair), activation())][:-1]
    return fastbp.Sequential(*layers, seed=seed)


def fit(model, x, y, *, batch_size=130, epochs=1, **arguments):
    arguments = {"optimizer": fastbp.Adam(), "verbose": False} | arguments
    return model.fit(x, y, loss=fastbp.CrossEntropyLoss(), batch_size=batch_size, epochs=epochs, **arguments)


WIDTHS = 60, 50, 7
X, Y = data(60, 7)


@functools.cache
def expected():
    """Bits of the prediction before and of the weights after one epoch."""
    model = make(*WIDTHS)
    before = model.predict(X).tobytes()
    fit(model, X, Y)
    return before, model.flat_parameters.tobytes()


def check(model=None):
    """A model not trained yet predicts and trains as expected."""
    model = model or make(*WIDTHS)
    assert model.predict(X).tobytes() == expected()[0]
    fit(model, X, Y)
    assert model.flat_parameters.tobytes() == expected()[1]


def forked(work):
    """Do this in a forked child, which must end well."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def at_once(count, work):
    """Call ``work(i)`` in so many threads at once."""
    start, errors = threading.Barrier(count), []

    def run(i):
        try:
            start.wait()
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Busy(threading.Thread):
    """Does something again and again while the block runs."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.over, self.error = work, False, None
        self.working = threading.Event()

    def run(self):
        try:
            while not self.over:
                self.work()
                self.working.set()
        except BaseException as error:
            self.error = error
            self.working.set()

    def __enter__(self):
        self.start()
        self.working.wait()

    def __exit__(self, *_):
        self.over = True
        self.join()
        if self.error is not None:
            raise self.error


# ------------------------------------------------------------------------------------------- fork
@scenario()
def fork_after_use():
    model = make(*WIDTHS)
    model.predict(X)
    expected()
    forked(lambda: check(model))
    check(model)


@scenario()
def fork_before_use():
    forked(check)


@scenario()
def fork_of_a_fork():
    expected()

    def child():
        check()
        forked(check)

    forked(child)


@scenario(FASTBP_CACHE="0")
def fork_while_another_thread_compiles():
    from fastbp.kernels import jit
    from fastbp.kernels.cpu import context

    class Slow(jit.CFunc):  # so that most forks fall between the two locks that compiling takes
        def __init__(self, *arguments):
            super().__init__(*arguments)
            time.sleep(0.1)

    context.loss_sum(np.float32)  # what every process sets up once
    jit.CFunc, compiled = Slow, 0

    def many_small_kernels():
        nonlocal compiled
        for dtype in (np.float32, np.float64):
            for name in ("identity", "relu", "sigmoid"):
                context.activation_forward(dtype, name)
                context.activation_backward(dtype, name)
                compiled += 1

    thread = threading.Thread(target=many_small_kernels)
    thread.start()
    while thread.is_alive():
        forked(lambda: context.loss_sum(np.float64))
    assert compiled == 6


@scenario()
def fork_while_the_team_is_in_use():
    model, other = make(*WIDTHS), make(*WIDTHS)
    expected()
    with Busy(lambda: other.predict(X)):
        for _ in range(10):
            forked(check)
    with Busy(lambda: fit(other, X, Y)):
        for _ in range(5):
            forked(lambda: check(model))
    check(model)


def train(model):
    fit(model, X, Y)
    return model.flat_parameters.tobytes()


@scenario()
def processes_of_multiprocessing():
    model = make(*WIDTHS)
    before, after = expected()
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert [prediction.tobytes() for prediction in pool.map(model.predict, [X] * 3)] == [before] * 3
            assert pool.map(train, [model] * 3) == [after] * 3


@scenario()
def workers_of_joblib_beside_scikit_learn():
    """Processes of loky and of multiprocessing, and threads, with estimators of scikit-learn at work around them."""
    import joblib
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    from fastbp.sklearn import MLPClassifier

    model, (before, after) = make(*WIDTHS), expected()
    with Busy(lambda: RandomForestClassifier(5, n_jobs=2).fit(X, Y)):
        for kind in ("loky", "multiprocessing", "threading"):
            with joblib.Parallel(2, backend=kind) as parallel:
                predicted = parallel(joblib.delayed(make(*WIDTHS).predict)(X) for _ in range(3))
                assert [prediction.tobytes() for prediction in predicted] == [before] * 3
                assert parallel(joblib.delayed(train)(make(*WIDTHS)) for _ in range(3)) == [after] * 3
    estimator = MLPClassifier((20,), max_iter=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three epochs are not enough
        scores = [cross_val_score(estimator, X, Y, cv=2, n_jobs=jobs).tolist() for jobs in (1, 2)]
    assert scores[0] == scores[1]
    check(model)


# --------------------------------------------------------------------------------------- resources
def resident():
    """Bytes of memory that this process has now."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flat(work, times, slack=8 << 20):
    """``work(i)`` so many times takes no more memory than a tenth of that did."""
    for i in range(max(20, times // 10)):
        work(i)
    before = resident()
    for i in range(times):
        work(i)
    assert resident() - before < slack, (before, resident())


@scenario()
def memory_of_many_steps_is_flat():
    model, loss, optimizer = make(*WIDTHS), fastbp.CrossEntropyLoss(), fastbp.Adam()
    flat(lambda i: model.train_step(X[: 16 + i % 3], Y[: 16 + i % 3], loss, optimizer), 10_000)
    flat(lambda i: model.predict(X[: 1 + i % 50]), 2000)


@scenario()
def memory_of_many_fits_is_flat():
    """Of one model and of a new one each time."""
    model = make(*WIDTHS)
    flat(lambda i: fit(model, X[:40], Y[:40], batch_size=16), 250)
    flat(lambda i: fit(make(*WIDTHS, seed=i), X[:40], Y[:40], batch_size=16), 250)


@scenario(pytest.mark.long)
def memory_of_5000_fits_is_flat():
    model = make(*WIDTHS)
    flat(lambda i: fit(model, X[:40], Y[:40], batch_size=16), 2500)
    flat(lambda i: fit(make(*WIDTHS, seed=i), X[:40], Y[:40], batch_size=16), 2500)


@scenario()
def memory_is_refused_by_the_system():
    """Under RLIMIT_AS a call raises MemoryError, and its model is what it was."""
    import resource

    model, twin = make(*WIDTHS), make(*WIDTHS)
    fit(model, X, Y)
    fit(twin, X, Y)
    many = np.lib.stride_tricks.as_strided(X, (2_000_000, 60), (0, 4))  # outputs of 56 MB
    labels = np.zeros(len(many), np.int64)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), limits[1]))
    for work in (lambda: model.predict(many), lambda: fit(model, many, labels)):
        with pytest.raises(MemoryError):
            work()
        assert model.flat_parameters.tobytes() == twin.flat_parameters.tobytes()
    resource.setrlimit(resource.RLIMIT_AS, limits)
    for one in (model, twin):
        fit(one, X, Y)
    assert model.flat_parameters.tobytes() == twin.flat_parameters.tobytes()
    assert model.predict(X).tobytes() == twin.predict(X).tobytes()


# ---------------------------------------------------------------------------------------- threads
@scenario()
def threads_predict_with_one_model():
    model, results = make(*WIDTHS), []
    at_once(8, lambda i: results.extend(model.predict(X).tobytes() == expected()[0] for _ in range(20)))
    assert results == [True] * 160


@scenario()
def threads_train_models_of_their_own():
    after = []
    for seed in range(4):
        model = make(*WIDTHS, seed=seed)
        fit(model, X, Y, epochs=3)
        after.append(model.flat_parameters.tobytes())
    models = [make(*WIDTHS, seed=seed) for seed in range(4)]
    at_once(4, lambda i: fit(models[i], X, Y, epochs=3))
    assert [model.flat_parameters.tobytes() for model in models] == after


@scenario(FASTBP_CACHE="0")
def first_calls_compile_at_once():
    from fastbp.kernels import jit

    results = []
    at_once(16, lambda i: results.append(make(*WIDTHS).predict(X).tobytes()))
    assert len(set(results)) == 1
    names = [name for name, _ in jit.compiled]
    assert "gemm" in names
    assert len(names) == len(set(names)), names


@scenario()
def first_calls_load_at_once():
    at_once(16, lambda i: check())


@scenario()
def second_trainer_is_refused_and_not_noticed():
    class Intruder:
        refused = 0

        def on_epoch_end(self, model, record):
            def intrude():
                with pytest.raises(RuntimeError, match="being trained already"):
                    fit(model, X, Y)
                Intruder.refused += 1

            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()

    undisturbed, model = make(*WIDTHS), make(*WIDTHS)
    fit(undisturbed, X, Y, epochs=3)
    fit(model, X, Y, epochs=3, callbacks=[Intruder()])
    assert Intruder.refused == 3
    assert model.flat_parameters.tobytes() == undisturbed.flat_parameters.tobytes()


@scenario()
def threads_are_refused_by_the_system():
    def start(thread):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = start
    check()


@scenario()
def exit_while_daemons_are_in_kernels():
    for work in (lambda: make(*WIDTHS).predict(X), lambda: fit(make(*WIDTHS), X, Y, epochs=100)):
        busy = Busy(work)
        busy.start()
    time.sleep(0.2)


# ---------------------------------------------------------------------------------------- signals
@scenario()
def interrupt_of_fit_leaves_a_finished_step():
    model, optimizer = make(*WIDTHS), fastbp.Adam()
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))

    class Start:
        def on_fit_begin(self, model, run):
            interrupt.start()

    with pytest.raises(KeyboardInterrupt):
        fit(model, X, Y, optimizer=optimizer, epochs=10**6, callbacks=[Start()], shuffle=False, batch_size=7)
    steps, other, same = optimizer.step_count, make(*WIDTHS), fastbp.Adam()
    epochs, rest = divmod(steps, 100)
    if epochs:
        fit(other, X, Y, optimizer=same, epochs=epochs, shuffle=False, batch_size=7)
    if rest:
        fit(other, X[: 7 * rest], Y[: 7 * rest], optimizer=same, shuffle=False, batch_size=7)
    assert same.step_count == steps
    assert model.flat_parameters.tobytes() == other.flat_parameters.tobytes()
    fit(model, X, Y)


@scenario()
def exceptions_of_signals_do_not_spoil_later_predictions():
    """A handler that raises, whenever it comes: what the team was at is finished before the exception is seen."""

    class Late(Exception):
        pass

    def raise_late(number, frame):
        raise Late

    signal.signal(signal.SIGALRM, raise_late)
    model, caught = make(256, 512, 64), 0
    first, second = (np.random.default_rng(i).standard_normal((3000, 256)).astype(np.float32) for i in range(2))
    bits = [model.predict(x).tobytes() for x in (first, second)]
    for i in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + i % 20))
            model.predict(first)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Late:
            caught += 1
        assert [model.predict(x).tobytes() for x in (second, first)] == bits[::-1]
    assert caught


@scenario()
def a_step_is_done_wholly_or_not_at_all():
    """Whenever a handler raises: between two steps, while the team is sent off, while it is at work."""

    class Late(Exception):
        pass

    def raise_late(number, frame):
        raise Late

    signal.signal(signal.SIGALRM, raise_late)
    x, y, loss = X[:40], Y[:40], fastbp.CrossEntropyLoss()
    (model, optimizer), (twin, same) = ((make(*WIDTHS), fastbp.SGD()) for _ in range(2))
    model.train_step(x, y, loss, optimizer)
    for i in range(200):
        with contextlib.suppress(Late):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + 7 * i % 500))
            for _ in range(100):
                model.train_step(x, y, loss, optimizer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for _ in range(101):
            if np.array_equal(model.flat_parameters, twin.flat_parameters):
                break
            twin.train_step(x, y, loss, same)
        else:
            raise AssertionError(f"half a step, after {i} exceptions")


# ------------------------------------------------------------------------------------- neighbours
def surroundings():
    """State of the process that belongs to others."""
    import numba

    return {
        "settings of Numba": {name: repr(value) for name, value in vars(numba.config).items() if name.isupper()},
        "threads of Numba": numba.get_num_threads(),
        "floating-point errors": np.geterr(),
        "NumPy's generator": repr(np.random.get_state()),  # noqa: NPY002
        "Python's generator": random.getstate(),
        "print options": np.get_printoptions(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "switch interval": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook),
    }


@scenario()
def nothing_of_others_is_changed():
    before = surroundings()
    with np.errstate(all="raise"):
        check()
    assert surroundings() == before


@scenario()
def import_costs_numpy_only():
    code = (
        "import sys, numpy; before = set(sys.modules); import fastbp; "
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*names - sys.stdlib_module_names)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(process.stdout.split()) - {"numpy"} == {"fastbp"}


@scenario(NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
def foreign_parallel_function_of_numba():
    import numba

    @numba.njit(parallel=True)
    def foreign(x):
        total = 0.0
        for i in numba.prange(len(x)):
            total += x[i]
        return total

    numbers = np.ones(10_000)

    def work():
        assert foreign(numbers) == 10_000

    work()
    assert numba.threading_layer() == "workqueue"
    with Busy(work):
        for _ in range(20):
            check()
    forked(check)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
@pytest.mark.parametrize(("function", "environment"), SCENARIOS)
def test_scenario(fresh, warm_cache, function, environment):
    fresh(on_a_team, function.__name__, **{"FASTBP_CACHE_DIR": str(warm_cache), "FASTBP_CACHE": None} | environment)


def on_a_team(name):
    """One scenario, with workers that a small model would not get by itself."""
    fastbp.set_num_threads(3)
    globals()[name]()


# --------------------------------------------------------------------------------- number of workers
@pytest.fixture
def workers():
    before = backend._threads
    yield fastbp.set_num_threads
    backend._threads = before
    backend.load("cpu").set_num_threads(before)


@pytest.mark.parametrize(
    ("widths", "batch_size", "activation"),
    [((300, 200, 100, 7), 130, fastbp.Tanh), ((784, 256, 10), 64, fastbp.ReLU)],
    ids=["three layers", "two layers"],
)
def test_number_of_workers_changes_no_bit(workers, widths, batch_size, activation):
    """Sizes at which rows, blocks of columns and tasks fall to different workers each time."""
    x, y = data(widths[0], widths[-1], rows=3 * batch_size + 11)
    weight = np.random.default_rng(5).random(len(x))
    results = []
    for threads in (1, 2, 3, 7):
        workers(threads)
        model = make(*widths, activation=activation)
        history = fit(
            model, x, y, batch_size=batch_size, epochs=2, sample_weight=weight, validation_data=(x[:99], y[:99])
        )
        record = [history[key] for key in ("loss", "accuracy", "val_loss", "val_accuracy")]
        results.append((record, model.flat_parameters.tobytes(), model.predict(x).tobytes()))
    assert all(result == results[0] for result in results)
