"""Times measured in turn: the protocol under every claim of speed.

One process on as many cores as threads. In each round ours and every peer are timed in turn (peer, ours, peer,
ours), between two measurements of the machine's multiply-add limit. A round in which the limit falls below `STEADY`
of the best seen, or the process gets less than that share of its core, is dropped, counted and repeated, up to a
bound. Figures are medians of the rounds kept; a ratio is the median of the ratios within a round.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from . import backend

STEADY = 0.93  # of the best limit seen, or of the core's time: with less, something else had the core
TEAM = 0.9  # of a core for every thread: with less, another process had one
MOST_ROUNDS = 3  # times the rounds asked for
LIMIT_SECONDS = 0.02  # of one measurement of the limit
SAMPLES = 30, 20_000  # single calls in a reading, at least and at most
BUSY = "while True: pass"

# What libraries read once, when they are loaded; None: not set, so that each takes its own processor's kernels.
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
INSTRUCTION_SETS = {
    "host": {"OPENBLAS_CORETYPE": None, "OPENBLAS_L2_SIZE": None},
    "avx2": {
        "NUMBA_CPU_NAME": "x86-64-v3",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_L2_SIZE": None,
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}
XLA_INSTRUCTION_SETS = {"host": "", "avx2": " --xla_cpu_max_isa=AVX2"}


# ------------------------------------------------------------------------------------- the process
def environment(threads, isa="host") -> dict[str, str | None]:
    """Variables that keep the libraries of a process to so many threads, and to an instruction set."""
    xla = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} intra_op_parallelism_threads={threads}"
    return (
        dict.fromkeys(THREAD_COUNTS, str(threads))
        | INSTRUCTION_SETS[isa]
        | {"XLA_FLAGS": xla + XLA_INSTRUCTION_SETS[isa]}
    )


def in_force(variables) -> bool:
    """Whether this process was started with these variables."""
    return all(os.environ.get(name) == value for name, value in variables.items())


def run_with(variables, arguments) -> int:
    """Run the command line once more, in a process with these variables; returns its exit code."""
    changed = {name: value for name, value in (os.environ | variables).items() if value is not None}
    return subprocess.call([sys.executable, "-m", "fastbp", *arguments], env=changed)


def pin(threads: int) -> list[int]:
    """Keep this process, and those it starts, to ``threads`` cores.

    Returns
    -------
    list of int
        The cores; empty where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    if len(cores) < threads:
        raise ValueError(f"--threads {threads}, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores)
    return cores


def load() -> float | None:
    """Processes that wanted a core during the last minute, this one among them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@contextlib.contextmanager
def busy_core():
    """Another process that never rests, on one of our cores."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[-1:])
        yield
    finally:
        process.kill()
        process.wait()


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


# ------------------------------------------------------------------------------------------- clocks
def by_host(work) -> float:
    """Seconds that ``work()`` takes by the clock of the host."""
    return timed(work)[1]


@dataclasses.dataclass
class Clock:
    """A call that is timed many times in a row; it consists of ``units``, of which the time is told.

    ``elapsed(work)`` gives the seconds that ``work()`` takes: of the host, or of a GPU between two events.
    """

    call: object
    units: int = 1
    elapsed: object = by_host

    def prepare(self, seconds):
        """Warm up, and find how many calls take about so long."""
        self.call()
        self.repeats = max(1, math.ceil(seconds / self.elapsed(self.call)))

    def read(self) -> dict:
        """Seconds a unit."""
        call = self.call

        def work():
            for _ in range(self.repeats):
                call()

        return {"seconds": self.elapsed(work) / (self.repeats * self.units)}


class SampleClock(Clock):
    """A call of which each is timed on its own: the median, and the time that one in a hundred exceeds."""

    def prepare(self, seconds):
        super().prepare(seconds)
        fewest, most = SAMPLES
        self.samples = np.empty(min(most, max(fewest, self.repeats)))

    def read(self):
        call, clock, samples = self.call, time.perf_counter, self.samples
        for i in range(len(samples)):
            start = clock()
            call()
            samples[i] = clock() - start
        median, p99 = np.percentile(samples, (50, 99))
        return {"seconds": float(median), "p99_seconds": float(p99)}


class ProgramClock(Clock):
    """A Python program, from the start of its process to its end, or the number of seconds it prints last."""

    def __init__(self, program, *arguments, environment=dict, printed=False):
        super().__init__(lambda: self.run())
        self.command = [sys.executable, "-c", program, *map(str, arguments)]
        self.environment, self.printed = environment, printed

    def run(self) -> float:
        variables = os.environ | self.environment()
        process, seconds = timed(lambda: subprocess.run(self.command, env=variables, capture_output=True, text=True))
        if process.returncode:
            raise ValueError(f"a program of the comparison failed:\n{process.stderr[-2000:]}")
        return json.loads(process.stdout.splitlines()[-1]) if self.printed else seconds

    def prepare(self, seconds):
        pass

    def read(self):
        return {"seconds": self.run()}


def timed(work):
    """What the work returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def fastest(calls, seconds=0.02):
    """The name and the call of the fastest of a dict of calls, the others read in turn with it."""
    clocks = {name: Clock(call) for name, call in calls.items()}
    for clock in clocks.values():
        clock.prepare(seconds)
    readings = {name: [] for name in clocks}
    for _ in range(3):
        for name, clock in clocks.items():
            readings[name].append(clock.read()["seconds"])
    name = min(readings, key=lambda name: min(readings[name]))
    return name, calls[name]


# ------------------------------------------------------------------------------------------ a case
@dataclasses.dataclass
class Rival:
    """What ours is compared with: its clock, version, the settings that make it fast, the ratio aimed at.

    ``also`` holds further clocks, under names that those of ours have in `Case.also`.
    """

    clock: Clock
    version: str
    how: str
    target: float | None = None
    facts: dict = dataclasses.field(default_factory=dict)
    also: dict[str, Clock] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Case:
    """One row of a comparison.

    ``flops`` of a unit of ours gives a floor; ``most`` is a time aimed at, in seconds; ``also`` holds further clocks
    of ours; ``left_out`` says why a peer is missing; ``facts`` are kept with the result; ``during`` is a context
    around the measurement, and with ``shares_cores`` a round counts although others have a core; ``most_rounds``
    bounds the rounds where one is long; ``note`` makes a remark of the result.
    """

    name: str
    title: str
    ours: Clock
    rivals: dict[str, Rival]
    flops: int | None = None
    most: float | None = None
    also: dict[str, Clock] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict = dataclasses.field(default_factory=dict)
    during: object = contextlib.nullcontext
    shares_cores: bool = False
    most_rounds: int | None = None
    note: object = None


@dataclasses.dataclass
class Protocol:
    """How to measure: see the text above. ``seconds`` is about how long each timing within a round lasts."""

    rounds: int = 7
    seconds: float = 0.1
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    best_limit: float = 0.0

    def limit(self) -> float | None:
        """GFLOP/s of multiply-adds of all threads at this moment."""
        if self.threads == 1:
            return fma_limit(self.dtype, self.device)
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            limits = list(pool.map(lambda _: fma_limit(self.dtype, self.device), range(self.threads)))
        return None if None in limits else sum(limits)

    def measure(self, case) -> dict:
        """Everything measured of a case; JSON can hold it."""
        wanted = min(self.rounds, case.most_rounds or self.rounds)
        with case.during():
            rivals = case.rivals.values()
            clocks = [case.ours, *case.also.values(), *(rival.clock for rival in rivals)]
            for clock in [*clocks, *(clock for rival in rivals for clock in rival.also.values())]:
                clock.prepare(self.seconds)
            done = []
            while len(self._undisturbed(done, case)) < wanted and len(done) < MOST_ROUNDS * wanted:
                done.append(self._round(case))
        result = self._summary(done, case)
        self.best_limit = result["best_limit_gflops"] or 0.0
        return result

    def _round(self, case):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        one = fma_limit(self.dtype, self.device)
        limits, pairs, ours = [self.limit()], {}, []
        for name, rival in case.rivals.items():
            theirs = rival.clock.read()
            ours.append(case.ours.read())
            pairs[name] = theirs, ours[-1]
            limits.append(self.limit())
        if not pairs:
            ours.append(case.ours.read())
            limits.append(self.limit())
        also, also_theirs = {}, {name: {} for name in case.rivals}
        for what, clock in case.also.items():
            for name, rival in case.rivals.items():
                if what in rival.also:
                    also_theirs[name][what] = rival.also[what].read()
            also[what] = clock.read()
        share = (_cpu_seconds() - cpu) / (time.perf_counter() - wall)
        return {
            "limit_of_one": one, "limits": limits, "pairs": pairs, "ours": ours, "also": also,
            "also_theirs": also_theirs, "cpu_share": share,
        }  # fmt: skip

    def _undisturbed(self, rounds, case):
        best = max([self.best_limit, *(limit for done in rounds for limit in done["limits"] if limit)])

        def quiet(done):
            if case.shares_cores:
                return True
            if done["cpu_share"] < STEADY:
                return False
            if any(limit is not None and limit < STEADY * best for limit in done["limits"]):
                return False
            team = self.threads * TEAM * (done["limit_of_one"] or 0.0)
            return self.threads == 1 or all(limit is None or limit >= team for limit in done["limits"])

        return [done for done in rounds if quiet(done)]

    def _summary(self, rounds, case):
        """Medians of the undisturbed rounds, or of all where none is."""
        kept = self._undisturbed(rounds, case)
        used = kept or rounds
        limits = [limit for done in used for limit in done["limits"] if limit]
        limit = statistics.median(limits) if limits else None
        ours = [reading for done in used for reading in done["ours"]]
        seconds = _median(ours)
        floor = case.flops / limit / 1e9 if limit and case.flops else None
        result = {
            "name": case.name,
            "title": case.title,
            **case.facts,
            "dtype": self.dtype,
            "threads": self.threads,
            "load": load(),
            "us": 1e6 * seconds,
            "most_us": case.most and 1e6 * case.most,
            "also_us": {name: 1e6 * _median(done["also"][name] for done in used) for name in case.also},
            "flops": case.flops,
            "limit_gflops": limit,
            "best_limit_gflops": max([self.best_limit, *limits]) or None,
            "floor_us": floor and 1e6 * floor,
            "fraction_of_limit": floor and floor / seconds,
            "rounds_used": len(kept),
            "rounds_dropped": len(rounds) - len(kept),
            "left_out": case.left_out,
            "peers": {
                name: self._rival_summary(rival, [done["pairs"][name] for done in used])
                | _also_summary([(done["also_theirs"][name], done["also"]) for done in used])
                for name, rival in case.rivals.items()
            },
            "rounds": rounds,
        }
        if "p99_seconds" in ours[0]:
            result["p99_us"] = 1e6 * _median(ours, "p99_seconds")
        if case.note:
            result["note"] = case.note(result)
        return result

    def _rival_summary(self, rival, pairs):
        summary = {
            "version": rival.version,
            "how": rival.how,
            **rival.facts,
            "us": 1e6 * _median(theirs for theirs, _ in pairs),
            "ratio": statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs),
            "target_ratio": rival.target if self.dtype == "float32" else None,
        }
        if "p99_seconds" in pairs[0][0]:
            summary["p99_us"] = 1e6 * _median((theirs for theirs, _ in pairs), "p99_seconds")
            summary["p99_ratio"] = statistics.median(
                theirs["p99_seconds"] / ours["p99_seconds"] for theirs, ours in pairs
            )
        return summary


def _also_summary(rounds):
    """Medians of a rival's further clocks, and of the ratios within a round."""
    names = list(rounds[0][0])
    return {
        "also_us": {what: 1e6 * _median(theirs[what] for theirs, _ in rounds) for what in names},
        "also_ratio": {
            what: statistics.median(theirs[what]["seconds"] / ours[what]["seconds"] for theirs, ours in rounds)
            for what in names
        },
    }


def _median(readings, key="seconds"):
    return statistics.median(reading[key] for reading in readings)


def _cpu_seconds():
    """Of this process and of those it started that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def fma_limit(dtype, device) -> float | None:
    """GFLOP/s of multiply-adds on registers, one thread, at this moment; None where the backend cannot say."""
    kernels = backend.load(device)
    return kernels.fma_limit(dtype, LIMIT_SECONDS) if hasattr(kernels, "fma_limit") else None
