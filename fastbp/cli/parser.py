"""The parser: what commands there are, and the options of the one that is asked for.

A command is a module of its own here, with ``add_options(parser)`` and ``run(options)``; only that of the command
which is asked for is imported.
"""

import argparse
import importlib

from . import machine, runs

COMMANDS = {
    "train": "train a network on a table, and keep it in a numbered folder",
    "predict": "predict with a trained model",
    "evaluate": "measure a trained model on a table that has the target",
    "export": "write the network of a run as ONNX, C or safetensors",
    "info": "show versions, processor features, kernels, threads and cache",
    "warmup": "compile all kernels ahead, so that nothing compiles later",
    "compare": "time this library beside others that are installed",
    "roofline": "show where each kernel of a train step stands against the machine's limits",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class CommandParser(Parser):
    """The parser of a command; it has the options once it has something to parse."""

    def __init__(self, module, **settings):
        super().__init__(**settings)
        self.module, self.has_options = module, False

    def parse_known_args(self, args=None, namespace=None):
        if not self.has_options:
            command = importlib.import_module(f".{self.module}", __package__)
            command.add_options(self)
            self.set_defaults(command=command.run)
            self.has_options = True
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here, so that the error names the command
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def parse(arguments):
    """The options of a command line: those of its config where it names one, with its own above them."""
    parser = Parser(prog="fastbp", description="Train multilayer perceptrons with hand-written kernels.")
    parser.add_argument("--version", action="version", version=f"fastbp {machine.version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does, description=does, module=name)
    options = parser.parse_args(arguments)
    if getattr(options, "resume", None):
        options.config = runs.interrupted_config(options.resume)
    if getattr(options, "config", None):
        config = runs.read_config(options.config)
        unknown = set(config) - set(runs.kept(options))
        if unknown:
            raise ValueError(f"{options.config} has unknown options: {', '.join(sorted(unknown))}")
        # as text, which the parser converts and checks as it does what is typed
        texts = {name: value if isinstance(value, bool) else str(value) for name, value in config.items()}
        commands.choices["train"].set_defaults(**texts)
        options = parser.parse_args(arguments)
    options.arguments = arguments
    return options
