"""What a kernel is made from, as a hash: the name of its file in the cache.

Kernels are closures that factories make, many of one name; and a constant that a test puts into a module makes another
kernel of the same source. So the hash follows what Numba's compiler follows: the code of the function, and everything
it finds in its closure or by name, device functions included, to the end.
"""

import hashlib
import inspect
from types import CodeType, FunctionType, ModuleType

import numpy as np

OURS = __package__.rpartition(".")[0]  # modules whose values a kernel may read; those of others have versions


def fingerprint(function, *others) -> str:
    """The hash of a kernel's function, and of plain values.

    Raises
    ------
    TypeError
        It finds something of which it is not known what identifies it.
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
        elif isinstance(value, frozenset):  # of a literal in the code
            put("set", *sorted(map(repr, value)))
        elif isinstance(value, CodeType):
            add_code(value)
        elif id(value) in seen:
            put("again", seen[id(value)])
        elif isinstance(value, FunctionType):
            seen[id(value)] = len(seen)
            add_function(value)
        elif hasattr(value, "py_func"):  # a dispatcher
            put("compiled", sorted(value.targetoptions.items()))
            add(value.py_func)
        elif hasattr(value, "_defn"):  # an intrinsic
            put("intrinsic")
            add(value._defn)
        elif hasattr(value, "mangling_args") or kind.__module__ == "llvmlite.ir.types":  # a type of Numba's or LLVM's
            put("type", repr(value))
        elif isinstance(value, ModuleType):
            put("module", value.__name__)
        elif inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields"):
            put("named tuple", value.__qualname__, *value._fields)
        elif (inspect.isclass(value) or inspect.isbuiltin(value)) and not value.__module__.startswith(OURS):
            put("named", value.__module__, value.__qualname__)
        else:
            raise TypeError(f"{value!r} of {kind} has no fingerprint")

    def add_code(code):
        put(
            "code", code.co_name, code.co_code, code.co_flags, code.co_argcount, code.co_posonlyargcount,
            code.co_kwonlyargcount, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
        )  # fmt: skip
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
        """A value, and of a module of ours what the function may look up in it."""
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
    """What the code and the functions in it look up by name, in an order of their own."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})
