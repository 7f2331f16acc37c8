"""The command line: ``fastbp train digits`` and what follows from it. Nothing of the core imports it."""

import os
import sys

from . import terminal
from .parser import parse

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(arguments=None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    terminal.plain_where_needed()
    try:
        options = parse(arguments)
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("fastbp: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"fastbp: {error}", file=sys.stderr)
        return 2
