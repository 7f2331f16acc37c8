"""What the commands that measure share: the process that they need, and what they say of it."""

from .. import backend
from ..bench import process
from . import machine
from .options import add_device


def add_options(parser):
    """Precision of the numbers, device and instruction set."""
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(%(default)s)")
    add_device(parser)
    parser.add_argument(
        "--isa", choices=process.INSTRUCTION_SETS, default="host", help="instruction set of all (%(default)s)"
    )


def run_elsewhere(options, threads: int) -> int | None:
    """Run the command in a process with the settings it needs; its exit code, or None where this one has them."""
    variables = process.environment(threads, options.isa)
    return None if process.in_force(variables) else process.run_with(variables, options.arguments)


def settle(options, threads: int) -> list[int]:
    """Keep this process to its cores, and say where it runs; returns the cores."""
    cores, load = process.pin(threads), process.load()
    backend.set_num_threads(threads)
    pinned = f"pinned to core {', '.join(map(str, cores))}" if cores else "not pinned: this system cannot"
    where = machine.described(options.device, options.dtype, pinned)
    print(where + ("" if load is None else f" · load {load:.1f}"))
    return cores
