"""``fastbp info``: versions, processor features, kernels, threads and cache."""

from .. import backend
from . import machine
from .options import add_device


def add_options(parser):
    """The device."""
    add_device(parser)


def run(options):
    """Show the settings."""
    print(f"fastbp {machine.version()}")
    backend.show_config(options.device)
