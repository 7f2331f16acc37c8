"""A hash of all that a kernel is compiled from, which names its file in the cache.

Kernels are closures that are made by functions, and many have the same name; a constant that a test changes in a module
makes another kernel of the same source. So the hash covers what the compiler of Numba reads: the code of the function,
and whatever that finds in its closure or by name, with the functions that it calls, and those that they call.
"""

import hashlib
import inspect
from types import CodeType, FunctionType, ModuleType

import numpy as np

from .later import Function, Later

OURS = __package__.rpartition(".")[0]  # in modules of this package values are hashed; others are known by version
# What of a code object, beside its constants, decides which machine code it becomes.
ATTRIBUTES = (
    "co_name",
    "co_code",
    "co_flags",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
)


def fingerprint(function, *others) -> str:
    """The hash of the function of a kernel and of other plain values, in hexadecimal.

    Raises
    ------
    TypeError
        The function uses a value of a kind for which this module has no rule.
    """
    digest, seen = hashlib.sha256(), {}

    def put(*words):
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)

    def add(value):
        kind = type(value)
        if value is None or kind in (bool, int, float, complex, str, bytes, type(...)):
            put(kind.__name__, repr(value))
        elif isinstance(value, np.generic):
            put("number", value.dtype.str, value.tobytes())
        elif isinstance(value, np.dtype):
            put("dtype", value.str)
        elif isinstance(value, tuple | list):
            put(kind.__qualname__, len(value))
            for element in value:
                add(element)
        elif kind is dict:
            put("dict")
            add(tuple(value.items()))
        elif isinstance(value, frozenset):  # from a set display in the code
            put("set", *sorted(map(repr, value)))
        elif isinstance(value, CodeType):
            add_code(value)
        elif id(value) in seen:
            put("again", seen[id(value)])
        elif isinstance(value, FunctionType):
            seen[id(value)] = len(seen)
            add_function(value)
        elif isinstance(value, Function):
            put("declared", kind.__qualname__)
            add(value.py_func)
        elif isinstance(value, Later):
            put("later", kind.__qualname__, value.name)
        elif isinstance(value, ModuleType):
            put("module", value.__name__)
        elif inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields"):
            put("named tuple", value.__qualname__, *value._fields)
        elif (inspect.isclass(value) or inspect.isbuiltin(value)) and not value.__module__.startswith(OURS):
            put("named", value.__module__, value.__qualname__)
        else:
            raise TypeError(f"{value!r} of {kind} has no fingerprint")

    def add_code(code):
        put("code", *(getattr(code, attribute) for attribute in ATTRIBUTES))
        add(code.co_consts)

    def add_function(function):
        put("function", function.__module__, function.__qualname__)
        add(function.__code__)
        add(function.__defaults__)
        add(tuple((function.__kwdefaults__ or {}).items()))
        names, visited = _names(function.__code__), set()
        for cell in function.__closure__ or ():
            add_found(cell.cell_contents, names, visited)
        for name in names:
            if name in function.__globals__:  # else a builtin, or an attribute
                put("global", name)
                add_found(function.__globals__[name], names, visited)

    def add_found(value, names, visited):
        """Hash a value; of a module of this package also what the function may look up in it."""
        add(value)
        if isinstance(value, ModuleType) and value.__name__.startswith(OURS) and value not in visited:
            visited.add(value)
            for name in names:
                if hasattr(value, name):
                    put("attribute", name)
                    add_found(getattr(value, name), names, visited)

    add(function)
    add(others)
    return digest.hexdigest()


def _names(code) -> list[str]:
    """The names that the code, and the functions defined in it, look up, sorted."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})
