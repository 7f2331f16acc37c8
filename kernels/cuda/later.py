"""What of Numba stands in the code of kernels, and is imported when a kernel has to be compiled.

A kernel that is found on disk needs no compiler, and importing Numba takes longer than a first step. So kernels name
objects of these classes, which answer Numba, when it asks for their ``_numba_type_``, as what they stand for.
"""

from functools import cached_property
from importlib import import_module

import numpy as np


class Later:
    """Something that is found when it is needed; in a kernel it is what is found, and so in a call.

    Parameters
    ----------
    name : str
        Of what it stands for, in hashes of what a kernel's code follows from.
    find : function () -> object
    """

    def __init__(self, name, find):
        self.name, self._find = name, find

    @cached_property
    def found(self):
        """What it stands for."""
        return self._find()

    def __call__(self, *arguments, **options):
        found = (argument.found if isinstance(argument, Later) else argument for argument in arguments)
        return self.found(*found, **options)

    @cached_property
    def _numba_type_(self):
        from numba.cuda.descriptor import cuda_target

        return cuda_target.typing_context.resolve_value_type(self.found)


class Module(Later):
    """A module: who asks for an attribute imports it."""

    def __init__(self, name):
        super().__init__(name, lambda: import_module(name))

    def __getattr__(self, name):
        return getattr(self.found, name)


class Type(Later):
    """A type of Numba's, by its name."""

    def __init__(self, name):
        super().__init__(name, lambda: getattr(import_module("numba").types, name))

    @property
    def bitwidth(self):
        """Bits of a number of this type."""
        return 8 * np.dtype(self.name).itemsize


class Types(Later):
    """``numba.types``, whose attributes are found later too."""

    def __init__(self):
        super().__init__("numba.types", lambda: import_module("numba").types)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return Type(name)


class Function(Later):
    """A function that kernels call; ``declare`` makes of it what Numba takes for one."""

    def __init__(self, py_func, declare):
        super().__init__(py_func.__qualname__, lambda: declare(py_func))
        self.py_func = py_func


def inlined(function):
    """A function of plain CUDA Python, inlined into kernels."""
    return Function(function, lambda function: cuda.jit(function, device=True, forceinline=True))


def intrinsic(function):
    """A function that emits instructions of LLVM: ``(typing_context, *types)``, as `numba.cuda.extending` has it."""

    def declare(function):
        from numba.cuda.descriptor import cuda_target
        from numba.cuda.extending import intrinsic

        made, context = intrinsic(function), cuda_target.typing_context
        type(context).refresh(context)  # so it is known from now on
        return made

    return Function(function, declare)


def i32():
    """LLVM's type of integers of 32 bits."""
    return ir.IntType(32)


def i64():
    """LLVM's type of integers of 64 bits."""
    return ir.IntType(64)


cuda, libdevice, ir, types = Module("numba.cuda"), Module("numba.cuda.libdevice"), Module("llvmlite.ir"), Types()
