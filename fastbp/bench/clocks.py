"""Clocks: what is timed, and how. A clock is prepared once and read in every round."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time

import numpy as np

SAMPLES = 30, 20_000  # single calls in a reading, at least and at most


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
