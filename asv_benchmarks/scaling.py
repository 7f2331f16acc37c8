"""Where more threads stop helping: counts the tasks of a step and simulates their schedule. For docs/scaling.md.

    python asv_benchmarks/scaling.py [--gflops 240] [--gbps 35] [--total-gbps 300] [--cores-per-l3 8] [--barrier-us 1]

The splits are those of fastbp/kernels/cpu/network.py (`share`, `linear_weights`) with the sizes of blocking.py. A
task costs the longer of its operations at the rate of a core and its bytes at its share of the memory's; a region
lasts as long as its slowest thread, and a barrier follows. What a part of a tile costs is a whole one.
"""

import argparse
import itertools

from fastbp.kernels.cpu import blocking

SHAPES = {
    "S1": ((4, 32, 32, 2), 32),
    "S2": ((64, 128, 10), 64),
    "S3": ((784, 128, 10), 64),
    "S4": ((784, 256, 128, 10), 128),
    "S5": ((784, 512, 512, 10), 256),
    "S6": ((1024, 1024, 1024, 1024, 10), 256),
    "S7": ((2048, 2048, 2048, 1000), 512),
    "S8": ((4096, 4096, 4096), 32),
    "S9": ((4, 32, 16, 4), 10_000),
    "S5 @ 4096": ((784, 512, 512, 10), 4096),
    "8192-8192-8192 @ 1024": ((8192, 8192, 8192), 1024),
}
THREADS = 1, 2, 4, 8, 16, 32, 64
ITEMSIZE, LANES = 4, blocking.VECTOR_BYTES // 4
L3_BYTES = 32 << 20  # a network that fits there reads its weights without the memory


def round_up(n, unit):
    return -(-n // unit) * unit


def share(count, threads):
    """Rows of each thread in region 1, as `network.share` cuts them."""
    unit = blocking.MR_TAIL
    cuts = [count * i // threads // unit * unit for i in range(threads)] + [count]
    return [end - start for start, end in itertools.pairwise(cuts)]


def blocks(fan_in, fan_out, batch):
    """(height, width) of every block of weights of a layer in region 2, in the order of `network.linear_weights`."""
    width = min(fan_out, blocking.GRADIENT_COLUMNS)
    fitting = blocking.GRADIENT_SLICE_BYTES // (ITEMSIZE * batch) // blocking.GRADIENT_UNIT * blocking.GRADIENT_UNIT
    width = min(width, max(fitting, blocking.GRADIENT_UNIT))
    ld = round_up(width, LANES) + LANES if width % LANES or width != fan_out else width
    most = max(blocking.GRADIENT_MOST // ld // blocking.MR, 1) * blocking.MR
    height = max(round_up(-(-fan_in // 16), blocking.MR), blocking.GRADIENT_LEAST // width)
    height = min(height, most)
    return [
        (min(height, fan_in - i), min(width, fan_out - j))
        for j in range(0, fan_out, width)
        for i in range(0, fan_in, height)
    ]


def tile_rows(rows):
    """Rows as the micro-kernel pays for them: whole tiles, then tails; a row alone costs a tail of 4."""
    tiles, rest = divmod(rows, blocking.MR)
    tails, single = divmod(rest, blocking.MR_TAIL)
    return tiles * blocking.MR + (tails + single) * blocking.MR_TAIL


class Machine:
    """Rates: operations of a core, bytes of a core and of all together, cores that share a cache, a barrier."""

    def __init__(self, gflops, gbps, total_gbps, cores_per_l3, barrier_us):
        self.flops, self.bytes, self.total = 1e9 * gflops, 1e9 * gbps, 1e9 * total_gbps
        self.cores_per_l3, self.barrier = cores_per_l3, 1e-6 * barrier_us

    def bandwidth(self, threads):
        """Bytes a second of each of so many threads that read different memory."""
        return min(self.bytes, self.total / threads)

    def bandwidth_of_the_same(self, threads):
        """The same where all read the same: of cores that share a cache one reads for all."""
        return self.bandwidth(-(-threads // self.cores_per_l3))

    def products(self, rows, k, columns):
        return 2 * tile_rows(rows) * k * round_up(columns, LANES) / self.flops

    def region_1(self, widths, rows, threads):
        """Seconds of a thread with so many rows: two products a layer, its weights read once a pass if far away."""
        if not rows:
            return 0.0
        layers = list(itertools.pairwise(widths))
        seconds = rows * widths[0] * 2 * ITEMSIZE / self.bandwidth(threads)  # gathered
        far = sum(a * b for a, b in layers) * ITEMSIZE > L3_BYTES
        for i, (fan_in, fan_out) in enumerate(layers):
            passes = -(-rows // blocking.ROWS) * (2 if i else 1)
            compute = self.products(rows, fan_in, fan_out)
            if i:
                compute += self.products(rows, fan_out, fan_in)
            read = passes * fan_in * fan_out * ITEMSIZE / self.bandwidth_of_the_same(threads) if far else 0.0
            seconds += max(compute, read)
        return seconds

    def region_2(self, widths, batch, threads):
        """Seconds of the slowest thread, and the number of tasks: block t belongs to thread t modulo threads."""
        load, task = [0.0] * threads, 0
        layers = list(itertools.pairwise(widths))
        far = sum(a * b for a, b in layers) * 3 * ITEMSIZE > L3_BYTES
        for fan_in, fan_out in layers:
            for height, width in blocks(fan_in, fan_out, batch):
                streams = 24 * height * width / self.bandwidth(threads) if far else 0.0  # Adam's
                load[task % threads] += self.products(height, batch, width) + streams
                task += 1
        return max(load), task

    def serial(self, batch):
        """Seconds of a step that every thread spends alike: sums of the losses and of the hits of the batch."""
        return 1e-9 * batch / 2

    def step(self, widths, batch, threads):
        first = max(self.region_1(widths, rows, threads) for rows in share(batch, threads))
        second, _ = self.region_2(widths, batch, threads)
        barriers = 2 * self.barrier if threads > 1 else 0.0
        return first + second + barriers + self.serial(batch), first, second

    def step_in_two_dimensions(self, widths, batch, threads):
        """As docs/scaling.md proposes: every product of region 1 in tasks of rows x columns, then a barrier."""
        layers = list(itertools.pairwise(widths))
        seconds, products = batch * widths[0] * 2 * ITEMSIZE / self.bandwidth(threads) / threads, 0
        far = sum(a * b for a, b in layers) * ITEMSIZE > L3_BYTES
        for i, (fan_in, fan_out) in enumerate(layers):
            for k, columns in ((fan_in, fan_out), (fan_out, fan_in))[: 2 if i else 1]:
                read = fan_in * fan_out * ITEMSIZE / (threads * self.bandwidth(threads)) if far else 0.0
                seconds += max(self.best_tiling(batch, k, columns, threads), read)
                products += 1
        second, _ = self.region_2(widths, batch, threads)
        barriers = (products + 1) * self.barrier if threads > 1 else 0.0
        return seconds + second + barriers + self.serial(batch)

    def best_tiling(self, rows, k, columns, threads):
        """Seconds of a product by MR x (NV registers) tiles, dealt as rectangles to threads."""
        row_tiles, column_tiles = -(-rows // blocking.MR), -(-columns // (blocking.NV * LANES))
        best = None
        for across in range(1, min(threads, column_tiles) + 1):
            down = min(max(threads // across, 1), row_tiles)
            height = min(-(-row_tiles // down) * blocking.MR, rows)
            width = min(-(-column_tiles // across) * blocking.NV * LANES, columns)
            seconds = self.products(height, k, width)
            best = seconds if best is None else min(best, seconds)
        return best


def stops(times):
    """The largest number of threads that still gives 10 % over the number before; all in THREADS."""
    last = THREADS[0]
    for before, threads in itertools.pairwise(THREADS):
        if times[threads] > times[before] / 1.1:
            break
        last = threads
    return last


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gflops", type=float, default=240, help="of a core, float32")
    parser.add_argument("--gbps", type=float, default=35, help="memory bandwidth of a core")
    parser.add_argument("--total-gbps", type=float, default=300, help="memory bandwidth of all cores together")
    parser.add_argument("--cores-per-l3", type=int, default=8, help="cores that share a third-level cache")
    parser.add_argument("--barrier-us", type=float, default=1, help="a barrier of the team")
    machine = Machine(**vars(parser.parse_args()))
    head = ["shape", "1 thread µs", "rows a thread at 64", "blocks", *map(str, THREADS[1:])]
    head += ["stops at", "regions at 64, µs", "2-D: 64"]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for name, (widths, batch) in SHAPES.items():
        steps = {threads: machine.step(widths, batch, threads) for threads in THREADS}
        times = {threads: step[0] for threads, step in steps.items()}
        speed = [f"{times[1] / times[threads]:.1f}" for threads in THREADS[1:]]
        rows = share(batch, 64)
        _, first, second = steps[64]
        two = times[1] / machine.step_in_two_dimensions(widths, batch, 64)
        cells = [
            name,
            f"{1e6 * times[1]:.0f}",
            f"{min(rows)}–{max(rows)}",
            machine.region_2(widths, batch, 64)[1],
            *speed,
            stops(times),
        ]
        cells += [f"{1e6 * first:.0f} + {1e6 * second:.0f}", f"{two:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
