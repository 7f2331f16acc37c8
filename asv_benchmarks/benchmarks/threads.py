"""Train steps on one and two threads, against the limit of as many threads at that moment."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from .common import OF_LIMIT, ROUNDS, WINDOW, Benchmark, clock, grid

UNDISTURBED = 0.9  # of a core for every thread, in time and in speed: with less, another process had it


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
        batches = self.steps.BATCHES
        self.flops = batches * self.shapes.step_flops(widths, batch)
        self.epoch = clock(self.network(shape, batches, "float32").train)
        self.pool = ThreadPoolExecutor(threads)

    def limit(self, threads):
        """GFLOP/s of multiply-adds of this many threads at once."""
        return sum(self.pool.map(lambda _: self.kernels.fma_limit("float32", seconds=WINDOW), range(threads)))

    def track_fit(self, shape, threads):
        """The median of the rounds in which every thread had a core; not a number where there was none."""
        multiples = []
        for _ in range(ROUNDS):
            one = self.limit(1)
            limit, cores = with_cores(lambda: self.limit(threads))
            seconds, epoch_cores = with_cores(self.epoch)
            if min(limit / one, cores) >= UNDISTURBED * threads and epoch_cores >= UNDISTURBED:
                multiples.append(seconds * limit * 1e9 / self.flops)
        return statistics.median(multiples) if multiples else float("nan")


def with_cores(work):
    """What the work returns, and how many cores it kept busy."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.process_time() - cpu) / (time.perf_counter() - wall)
