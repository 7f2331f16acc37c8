"""``fastbp warmup``: all kernels compiled ahead."""

from .. import backend
from . import machine
from .options import add_device


def add_options(parser):
    """The device."""
    add_device(parser)


def run(options):
    """Compile, and say how long it took."""
    seconds = backend.warmup(device=options.device)
    print(f"all kernels are ready, in {seconds:.1f} s{machine.cached_in(options.device)}")
