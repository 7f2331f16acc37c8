"""Times measured in turn: the protocol under every claim of speed.

One process on as many cores as threads. In each round ours and every peer are timed in turn (peer, ours, peer,
ours), between two measurements of the machine's multiply-add limit. A round in which the limit falls below `STEADY`
of the best seen, or the process gets less than that share of its core, is dropped, counted and repeated, up to a
bound. Figures are medians of the rounds kept; a ratio is the median of the ratios within a round.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import statistics
import time

from .. import backend
from .clocks import Clock
from .process import load

STEADY = 0.93  # of the best limit seen, or of the core's time: with less, something else had the core
TEAM = 0.9  # of a core for every thread: with less, another process had one
MOST_ROUNDS = 3  # times the rounds asked for
LIMIT_SECONDS = 0.02  # of one measurement of the limit


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
    precision: str = "ieee"  # of products of ours

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


def fma_limit(dtype, device, precision="ieee") -> float | None:
    """GFLOP/s of multiply-adds on registers, one thread, at this moment; None where the backend cannot say."""
    kernels = backend.load(device)
    return kernels.fma_limit(dtype, precision, LIMIT_SECONDS) if kernels.name == "cpu" else None
