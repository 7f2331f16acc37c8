"""What the functions of the contract read and write, as `reference` declares it beside each of them.

Whatever must know it derives it from `FUNCTIONS`: the walks find the operands of an instruction by it, a backend with
memory of its own which arrays travel, the tests what a call may change.
"""

import inspect
from typing import NamedTuple


class Declaration(NamedTuple):
    """The arguments of a function of the contract, by name and in order, and what becomes of its arrays."""

    arguments: tuple[str, ...]
    reads: tuple[str, ...]  # arrays that are read; those in ``writes`` as well are changed in place
    writes: tuple[str, ...]
    host: tuple[str, ...]  # small arrays that lie on the host whatever the backend

    @property
    def operands(self):
        """The arrays, in the order of the arguments."""
        return tuple(name for name in self.arguments if name in self.reads or name in self.writes)

    @property
    def exchanged(self):
        """The arrays that may lie on another device than the caller's."""
        return tuple(name for name in self.operands if name not in self.host)


FUNCTIONS: dict[str, Declaration] = {}


def touches(reads="", writes="", host=""):
    """Declare which arrays a function reads and writes; names in strings, divided by spaces."""

    def declared(function):
        arguments = tuple(inspect.signature(function).parameters)
        declaration = Declaration(arguments, *(tuple(names.split()) for names in (reads, writes, host)))
        unknown = {*declaration.reads, *declaration.writes, *declaration.host}.difference(arguments)
        assert not unknown, f"{function.__name__} has no arguments {unknown}"
        FUNCTIONS[function.__name__] = declaration
        return function

    return declared
