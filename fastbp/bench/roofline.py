"""Where each kernel of a train step stands against the machine's limits of multiply-adds and of memory.

A kernel of F operations on B bytes takes at least ``max(F / limit, B / bandwidth)`` seconds: its roof. Both limits
are measured in turn with the kernel, and of all the best of some readings is taken. B counts every operand once; the
bandwidth is that of NumPy's ``a += b`` over arrays of `FOOTPRINTS` bytes, the least that hold B. S. Williams,
A. Waterman, D. Patterson, "Roofline", 2009.
"""

import dataclasses
import html
import io
import itertools
import statistics
from functools import partial
from pathlib import Path

import numpy as np

from .. import backend
from ..kernels import layout
from . import measure
from .clocks import Clock
from .products import laid_out
from .shapes import title_of
from .training_steps import step_case

FOOTPRINTS = {"256 KiB": 1 << 18, "1 MiB": 1 << 20, "4 MiB": 1 << 22, "16 MiB": 1 << 24, "memory": 1 << 28}
ROUNDS = 7
SECONDS = 0.01  # of a reading
# Operations an element, where a square root, a division or an exponential counts as one.
LOSS_OPERATIONS = 7  # maximum, difference, exponential, sum, division, difference, 1 / n
ADAM_OPERATIONS = 12
ADAM_PASSES = 7  # reads the value, the gradient, m and v; writes the value, m and v
OUTPUTS = (".svg", ".png", ".pdf", ".html")
MARKERS = {"forward": "o", "loss": "D", "grad input": "s", "grad weight": "^", "Adam": "v"}


@dataclasses.dataclass
class Kernel:
    """A kernel of the step: what it is called, of which layer, operations, bytes, and a call of it."""

    name: str
    layer: str
    flops: int
    bytes: int
    call: object


def kernels_of(shape, dtype, device, precision="ieee") -> list[Kernel]:
    """Every kernel that one train step calls, but for the gathering of its rows, on operands of its own.

    A product of less precision has its factors stored for it in the call, which a step does once for all products.
    """
    widths, activation, batch, _ = shape
    kernels, rng, itemsize = backend.load(device), np.random.default_rng(0), np.dtype(dtype).itemsize
    code, identity = (layout.ACTIVATIONS.index(name) for name in (activation, "identity"))
    precision = layout.PRECISIONS.index(precision)

    def array(*shape):
        return laid_out(rng.standard_normal(shape, dtype=dtype))

    def kernel(name, layer, flops, elements, function, *arguments):
        return Kernel(name, layer, flops, elements * itemsize, partial(function, *arguments))

    pairs = list(itertools.pairwise(widths))
    adam, coefficients = layout.OPTIMIZERS.index("adam"), np.array([1e-3, 0.9, 0.1, 0.999, 0.001, 1e-8, 0, 0])
    forward, backward = [], []
    for i, (a, b) in enumerate(pairs):
        flops, layer, after = 2 * batch * a * b, f"{a} → {b}", code if i < len(pairs) - 1 else identity
        x, w, bias, z = array(batch, a), array(a, b), array(b), array(batch, b)
        grad_z, grad_w, grad_bias, grad_x = array(batch, b), array(a, b), array(b), array(batch, a)
        values, gradient, m, v = (np.abs(array(a * b + b)) for _ in range(4))
        forward.append(
            kernel(
                "forward", layer, flops, batch * a + a * b + b + batch * b,
                kernels.linear_forward, x, w, bias, after, 0.0, z, z, precision,
            )
        )  # fmt: skip
        of_layer = [
            kernel(
                "grad input", layer, flops, batch * b + a * b + 2 * batch * a,
                kernels.linear_backward_input, grad_z, w, x, code, 0.0, grad_x, precision,
            ),
            kernel(
                "grad weight", layer, flops, batch * a + batch * b + a * b + b,
                kernels.linear_backward_params, x, grad_z, 0, grad_w, grad_bias, precision,
            ),
            kernel(
                "Adam", layer, ADAM_OPERATIONS * values.size, ADAM_PASSES * values.size,
                kernels.optimizer_step, adam, coefficients, values, gradient, (m, v),
            ),
        ]  # fmt: skip
        backward = of_layer[i == 0 :] + backward  # nobody needs the gradient of the network's input
    outputs = widths[-1]
    loss = kernel(
        "loss", str(outputs), LOSS_OPERATIONS * batch * outputs, 2 * batch * outputs,
        kernels.loss_forward_backward, layout.LOSSES.index("cross_entropy"), 0.0, array(batch, outputs),
        rng.integers(0, outputs, batch), np.full(batch, 1 / batch),
        np.empty(batch, dtype), np.empty(batch, np.int64), array(batch, outputs),
    )  # fmt: skip
    return [*forward, loss, *backward]


def footprint(size: int) -> str:
    """The name of the least of `FOOTPRINTS` that holds so many bytes."""
    return next((name for name, held in FOOTPRINTS.items() if size <= held), "memory")


def roof_seconds(flops, size, limit_gflops, bandwidth_gbytes) -> float:
    """The least time of so many operations on so many bytes."""
    return max(flops / limit_gflops, size / bandwidth_gbytes) / 1e9


def measure_step(shape, dtype, device, precision="ieee") -> dict:
    """Measure the limits, every kernel of a step, and a step of ``fit``; JSON can hold it."""
    if measure.fma_limit(dtype, device, precision) is None:
        raise ValueError(f"device {device!r} cannot measure its limit of multiply-adds; use --device cpu")
    bandwidths = {name: _bandwidth_clock(size) for name, size in FOOTPRINTS.items()}
    kernels = kernels_of(shape, dtype, device, precision)
    clocks = [Clock(kernel.call) for kernel in kernels]
    for clock in clocks:
        clock.prepare(SECONDS)
    limits, seen, taken = [], {name: [] for name in FOOTPRINTS}, [[] for _ in kernels]
    for _ in range(ROUNDS):
        for name, (moved, traffic) in bandwidths.items():
            seen[name].append(traffic / moved.read()["seconds"] / 1e9)
        for clock, seconds in zip(clocks, taken, strict=True):
            limits.append(measure.fma_limit(dtype, device, precision))
            seconds.append(clock.read()["seconds"])
    limit, gbytes = max(limits), {name: max(values) for name, values in seen.items()}
    rows = []
    for kernel, times in zip(kernels, taken, strict=True):
        seconds, level = min(times), footprint(kernel.bytes)
        roof = roof_seconds(kernel.flops, kernel.bytes, limit, gbytes[level])
        rows.append(
            {
                "kernel": kernel.name,
                "layer": kernel.layer,
                "flops": kernel.flops,
                "bytes": kernel.bytes,
                "seconds": seconds,
                "intensity": kernel.flops / kernel.bytes,
                "gflops": kernel.flops / seconds / 1e9,
                "gbytes": kernel.bytes / seconds / 1e9,
                "footprint": level,
                "fraction_of_roof": roof / seconds,
                "bound_by": "multiply-adds" if roof == kernel.flops / limit / 1e9 else level,
            }
        )
    step = measure.Protocol(rounds=3, dtype=dtype, device=device, precision=precision)
    return {
        "title": title_of(shape),
        "dtype": dtype,
        "precision": precision,
        "limit_gflops": limit,
        "median_limit_gflops": statistics.median(limits),
        "bandwidth_gbytes": gbytes,
        "kernels": rows,
        "step_seconds": step.measure(step_case("", shape, [], step))["us"] / 1e6,
    }


def _bandwidth_clock(size):
    """A clock of ``a += b`` on two arrays of ``size`` bytes together, and the bytes that it moves."""
    a, b = np.ones((2, size // 8), np.float32)
    clock = Clock(lambda: np.add(a, b, out=a))
    clock.prepare(SECONDS)
    return clock, 3 * a.nbytes


# -------------------------------------------------------------------------------------------- report
def lines(found) -> list[str]:
    """The table and what it says, as text."""
    bandwidths = found["bandwidth_gbytes"].items()
    rounded = f", products in {found['precision']}" * (found["precision"] != "ieee")
    text = [
        f"a train step of {found['title']}, {found['dtype']}{rounded}",
        f"limits: {found['limit_gflops']:.0f} GFLOP/s of multiply-adds; "
        + ", ".join(f"{value:.0f} GB/s ({name})" for name, value in bandwidths),
        "",
        f" {'kernel':13}{'layer':15}{'MFLOP':>10}{'MB':>9}{'FLOP/B':>9}{'µs':>10}"
        f"{'GFLOP/s':>9}{'GB/s':>8}{'of roof':>9}  bound by",
    ]
    for row in found["kernels"]:
        text.append(
            f" {row['kernel']:13}{row['layer']:15}{row['flops'] / 1e6:10.2f}{row['bytes'] / 1e6:9.2f}"
            f"{row['intensity']:9.1f}{row['seconds'] * 1e6:10.1f}{row['gflops']:9.1f}{row['gbytes']:8.1f}"
            f"{row['fraction_of_roof']:9.0%}  {row['bound_by']}"
        )
    total = sum(row["seconds"] for row in found["kernels"])
    if found["median_limit_gflops"] < measure.STEADY * found["limit_gflops"]:
        text += ["", f"disturbed: the limit was {found['median_limit_gflops']:.0f} GFLOP/s at the median"]
    return [
        *text,
        "",
        f"together {total * 1e6:.1f} µs; a step of fit() takes {found['step_seconds'] * 1e6:.1f} µs",
        "Kernels are called one by one from Python, which costs some µs each, on operands that were just used; in a",
        "step they are called from compiled code, rows are gathered, and Adam follows each block of its gradient.",
    ]


def check_output(path):
    """Refuse a file that could not be written at the end, before anything is measured."""
    if Path(path).suffix not in OUTPUTS:
        raise ValueError(f"--output {path}: expected a name that ends in {', '.join(OUTPUTS)}")
    _figure_class()


def write(found, path):
    """The picture, or a page with the picture and the table, in the format that the name says."""
    path, figure = Path(path), draw(found)
    if path.suffix != ".html":
        figure.savefig(path)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    title = html.escape(f"Roofline of a train step, {found['title']}")
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        "<style>body {max-width: 60em; margin: 2em auto; font-family: sans-serif} pre {overflow-x: auto}</style>\n"
        f"<h1>{title}</h1>\n{svg[svg.index('<svg') :]}\n"
        f"<pre>{html.escape(chr(10).join(lines(found)))}</pre>\n</html>\n",
        encoding="utf-8",
    )


def draw(found):
    """A matplotlib figure: the roofs, and a numbered point for each kernel."""
    figure = _figure_class()(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    limit, kernels = found["limit_gflops"], found["kernels"]
    intensities = [row["intensity"] for row in kernels]
    low, high = min(intensities) / 3, max([*intensities, limit / found["bandwidth_gbytes"]["memory"]]) * 3
    axes.hlines(limit, low, high, color="black", linewidth=1.2)
    axes.text(high, limit, f"{limit:.0f} GFLOP/s ", ha="right", va="bottom")
    styles = itertools.cycle(("dotted", "dashdot", "dashed", "solid"))
    for (name, bandwidth), style in zip(found["bandwidth_gbytes"].items(), styles, strict=False):
        corner = limit / bandwidth
        label = f"{name}: {bandwidth:.0f} GB/s"
        axes.plot([low, corner], [low * bandwidth, limit], color="grey", linestyle=style, linewidth=1, label=label)
    for number, row in enumerate(kernels, 1):
        label = f"{number}  {row['kernel']} {row['layer']}: {row['fraction_of_roof']:.0%}"
        point = row["intensity"], row["gflops"]
        axes.plot(*point, MARKERS[row["kernel"]], color=f"C{(number - 1) % 10}", markersize=7, label=label)
        beside = (5, -10), (5, 4), (-12, -10), (-12, 4)  # points that lie together keep their numbers apart
        axes.annotate(str(number), point, xytext=beside[number % 4], textcoords="offset points", fontsize="small")
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP / byte", ylabel="GFLOP/s")
    axes.set_title(
        f"a train step of {found['title']}, {found['dtype']}: kernels and their share of the roof", loc="left"
    )
    axes.grid(which="major", linewidth=0.3)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('a picture needs the package matplotlib: pip install "fastbp[plot]"') from None
    return Figure
