"""All formulas, over the primitives of a backend."""

from types import FunctionType

from . import activations, elementary, losses, updates

MODULES = elementary, activations, losses, updates  # each calls what is in those before it


def bind(primitives: dict, compile_function, constant=lambda value: value) -> dict:
    """Every primitive and formula by name: a formula is ``compile_function`` of it over the others.

    Parameters
    ----------
    primitives : dict of str to callable
        The backend's own, under the names that `primitives` has.
    compile_function : callable
        From a function to what the backend's code calls.
    constant : callable
        From a constant of a module of formulas to the same as formulas find it.
    """
    bound = dict(primitives)
    for module in MODULES:
        namespace = {name: constant(value) for name, value in vars(module).items()} | bound
        for name, formula in vars(module).items():
            if isinstance(formula, FunctionType) and formula.__module__ == module.__name__:
                bound[name] = namespace[name] = compile_function(FunctionType(formula.__code__, namespace, name))
    return bound
