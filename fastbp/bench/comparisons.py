"""The table of what is compared: each has a title, the peers that it knows, and a function that makes its cases."""

import collections.abc
import dataclasses

from .. import backend
from . import elementwise, graphs, prediction, products, side_by_side, startup, training_steps
from .peers import available
from .shapes import GPU_SHAPES, PREDICTIONS, SHAPES, WIDTHS


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared: ``cases(shapes, peers, protocol)`` yields a `Case` for each row.

    ``title`` heads the column of what is timed and ``unit`` says what a time is of. ``peers`` are those compared with
    when none is asked for, ``further`` those that may be asked for. ``shapes`` are those of no ``--shapes``; None
    where it has none. ``columns`` are further ones: floor, p99, aim, or the name of a clock in ``Case.also``.
    ``threads`` are the fewest it can do with.
    """

    title: str
    unit: str
    cases: collections.abc.Callable
    peers: tuple[str, ...]
    further: tuple[str, ...] = ()
    shapes: dict[str, tuple] | None = None
    columns: tuple[str, ...] = ("floor",)
    scale: str = "µs"
    threads: int = 1

    def chosen(self, found):
        """Of the peers found, those it knows; its own where None were asked for."""
        if found is None:
            return [name for name in self.peers if available(name)]
        return [name for name in found if name in self.peers + self.further]

    def beside_one_thread(self, threads):
        """Whether its cases set the threads that the library chooses beside one."""
        return self.cases in (training_steps.width_cases, training_steps.busy_cases) and threads > 1


STEPS = "layers @ batch", "a train step: an epoch of fit() divided by its batches"
COMPARISONS = {
    "steps": Comparison(
        *STEPS, training_steps.step_cases, ("torch", "jax"), ("numpy", "sklearn"),
        {name: SHAPES[name] for name in ("S1", "S2", "S3", "S4")}, ("floor", "train_step"),
    ),
    "predict": Comparison(
        "layers @ rows", "a call of predict() from Python", prediction.predict_cases, ("torch", "onnxruntime"),
        ("numpy", "jax"), PREDICTIONS, ("floor", "p99", "aim"),
    ),
    "gemm": Comparison(
        "product", "a product", products.product_cases, ("numpy", "torch"), columns=("floor", "fused")
    ),
    "elementwise": Comparison(
        "activation", "a call", elementwise.elementwise_cases, ("torch",), columns=("contract",)
    ),
    "graph": Comparison(
        "graph", "forward and backward", graphs.graph_cases, ("torch",), columns=()
    ),
    "width": Comparison(
        *STEPS, training_steps.width_cases, ("torch", "jax"), ("numpy", "sklearn"), WIDTHS
    ),
    "busy": Comparison(
        *STEPS, training_steps.busy_cases, (), shapes={name: SHAPES[name] for name in ("S1", "S2", "S4", "S5")},
        threads=2,
    ),
    "startup": Comparison(
        "program", "a process, or what it prints", startup.startup_cases, ("numpy", "sklearn", "torch"), ("jax",),
        columns=("aim",), scale="s",
    ),
    "many": Comparison(
        "networks, layers @ batch", "a step of one network", side_by_side.many_cases, ("jax",),
        shapes={"S2": SHAPES["S2"]},
    ),
}  # fmt: skip
# Steps of less precision on the CPU, and who has it too.
ROUNDED_STEPS = {
    "bf16": ("torch", "torch-medium", "torch-autocast", "jax", "jax-bfloat16"),
    "bf16x3": ("torch", "jax"),
}
GPU_COMPARISONS = {
    "steps": Comparison(
        STEPS[0], f"{STEPS[1]}, by the clock of the host", training_steps.step_cases,
        ("torch", "torch-graph"), (), GPU_SHAPES, ("events", "train_step"),
    ),
    "gemm": Comparison(
        "product", "a product, by events on the GPU's stream", products.gpu_product_cases, ("torch",), columns=()
    ),
}  # fmt: skip


def comparisons(device, precision="ieee") -> dict[str, Comparison]:
    """The table for a device, and a precision of products of ours."""
    if precision == "ieee":
        return COMPARISONS if backend.on_host(device) else GPU_COMPARISONS
    if not backend.on_host(device):
        raise ValueError(f"--precision {precision} is for the CPU; --what gemm --device cuda has every precision")
    return {"steps": dataclasses.replace(COMPARISONS["steps"], peers=ROUNDED_STEPS[precision])}


def parse_what(text: str, threads: int, device: str = "cpu", precision: str = "ieee") -> list[str]:
    """Names of comparisons on a device, separated by commas, or ``all`` that so many threads can make."""
    known = comparisons(device, precision)
    if text == "all":
        return [name for name, comparison in known.items() if comparison.threads <= threads]
    names = text.split(",")
    for name in names:
        if name not in known:
            where = repr(device) if precision == "ieee" else f"{device!r} in {precision}"
            raise ValueError(f"unknown comparison {name!r} on {where}: expected {', '.join(known)}, or all")
        if known[name].threads > threads:
            raise ValueError(f"the comparison {name} needs --threads {known[name].threads}, got {threads}")
    return names
