"""Train steps on one and two threads, against the limit of as many threads at that moment."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from .common import OF_LIMIT, ROUNDS, WINDOW, Benchmark, clock, grid

SECOND_CORE = 1.8  # times one thread's limit that two must reach: else another process has the second core


class Threads(Benchmark):
    params = (grid(["S2", "S4"], ["S1", "S3", "S5", "S6", "S9"]), [1, 2])
    param_names = ("shape", "threads")
    unit = OF_LIMIT

    def setup(self, shape, threads):
        super().setup()
        if len(os.sched_getaffinity(0)) < threads:
            raise NotImplementedError(f"this process may use fewer than {threads} cores")
        self.fastbp.set_num_threads(threads)
        widths, _, batch = self.shape(shape)
        batches = self.compare.BATCHES
        self.flops = batches * self.compare.step_flops(widths, batch)
        self.epoch = clock(self.network(shape, batches, "float32").train)
        self.pool = ThreadPoolExecutor(threads)

    def limit(self, threads):
        """GFLOP/s of multiply-adds of this many threads at once, less the time in which they had no core."""
        wall, cpu = time.perf_counter(), time.process_time()
        total = sum(self.pool.map(self.kernels.fma_limit, ["float32"] * threads, [WINDOW] * threads))
        cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
        return total * min(1, cores / threads)

    def track_fit(self, shape, threads):
        """The median of the rounds in which every thread had a core; not a number where there was none."""
        multiples = []
        for _ in range(ROUNDS):
            one, together = self.limit(1), self.limit(threads)
            seconds = self.epoch()
            if threads == 1 or together >= SECOND_CORE * one:
                multiples.append(seconds * together * 1e9 / self.flops)
        return statistics.median(multiples) if multiples else float("nan")
