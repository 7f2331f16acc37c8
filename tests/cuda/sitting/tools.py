"""What several parts use: networks, and times on the GPU."""

import itertools

RUNS = 20  # that must be equal
LAUNCHES = 20  # of a kernel in a graph, between two events


def least(work, times, readings=3):
    """Microseconds of one of ``times`` parts of what ``work()`` launches, by events; the least of some readings."""
    from fastbp.kernels import cuda

    work()
    return 1e6 * min(cuda.elapsed(work) for _ in range(readings)) / times


def captured(launch):
    """``launch(stream, times)``, launched once, for kernels are loaded then, and `LAUNCHES` times as a graph."""
    from fastbp.kernels.cuda import streams

    launch(streams.stream(), 1)
    return streams.capture(lambda stream: launch(stream, LAUNCHES))


def network(widths, dtype="float32", seed=0):
    """Linear layers of these widths, and ReLU between them."""
    import fastbp

    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [fastbp.Linear(fan_in, fan_out), fastbp.ReLU()]
    return fastbp.Sequential(*layers[:-1], dtype=dtype, device="cuda", seed=seed)
