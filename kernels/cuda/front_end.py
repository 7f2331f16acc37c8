"""What Numba does between a kernel's Python and its machine code, without what kernels here have no use for.

Numba compiles each device function by itself, the smallest one in several milliseconds, and looks for much that is not
there or that it has found already. It has no options for this, so `front_end` puts other parts in place of its own.
"""

import gc
import operator
from contextlib import contextmanager

from numba import types
from numba.cuda import codegen, compiler, cudadecl, cudaimpl
from numba.cuda.core import callconv, postproc, transforms, typed_passes, untyped_passes
from numba.cuda.core.compiler_lock import global_compiler_lock
from numba.cuda.core.compiler_machinery import PassManager
from numba.cuda.cudadrv import nvvm
from numba.cuda.descriptor import cuda_target

from .addresses import Vector, new_arrays
from .ranges import Upward

UNUSED = {  # for closures, exceptions, contexts and expressions of arrays, and what only people read
    untyped_passes.IRProcessing,
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.AnnotateTypes,
}
OPERATORS = {bool, range, *filter(callable, vars(operator).values())}

_found = {}  # (operator, types of its operands) -> signature, the type of the function that found it


class Compiler(compiler.CUDACompiler):
    """Numba's compiler of one function, without the passes that are `UNUSED`, and each of the others once."""

    def define_pipelines(self):
        """One pipeline, as `CUDACompiler` has."""
        manager = PassManager("fastbp")
        for step, description in dict(super().define_pipelines()[0].passes).items():
            if step not in UNUSED:
                manager.add_pass(step, description)
        manager.finalize()
        return [manager]


def found_once(find):
    """``find``, the typing of a call of a builtin, but an operator on the same types is looked for once.

    A range whose step is no constant is an `Upward`.
    """

    def found(function, context, arguments, named):
        if context is not cuda_target.typing_context or named or function.typing_key not in OPERATORS:
            return find(function, context, arguments, named)
        key = function.typing_key, tuple(arguments)
        if key not in _found:
            signature = find(function, context, arguments, named)
            if function.typing_key is range and len(arguments) == 3 and not isinstance(arguments[2], types.Literal):
                signature = signature.replace(return_type=Upward(signature.return_type.dtype))
            _found[key] = signature, function
        signature, first = _found[key]
        if first is not function:  # it is asked for the implementation
            function._impl_keys[signature.args] = first.get_impl_key(signature)
        return signature

    return found


def vectors(generic):
    """``generic``, the typing of ``cuda.local.array`` and ``cuda.shared.array``, but a flat one is a `Vector`."""

    def typing(template):
        declared = generic(template)

        def typer(shape, dtype, alignment=None):
            array = declared(shape, dtype, alignment)
            return Vector(array.dtype) if array is not None and array.ndim == 1 else array

        return typer

    return typing


def short_name(convention, name, kinds, *, abi_tags=(), uid=None):
    """The name of a compiled function, or with a point before it of its environment: its own name and a number."""
    return f"{'environment_' * name.startswith('.')}{name.rpartition('.')[2].strip('<>')}_{uid}"


def lifetimes_last(run):
    """``run``, what comes after a pass, but how long variables live is found out where they are deleted alone."""

    def shorter(processor, emit_dels=False, extend_lifetimes=False):
        if emit_dels:
            run(processor, emit_dels, extend_lifetimes)
        else:
            processor.func_ir.blocks = transforms.canonicalize_cfg(processor.func_ir.blocks)

    return shorter


def install_intrinsics():
    """What a refresh has left to do after the first: make known the code of intrinsics that were typed since."""
    context = cuda_target.target_context
    context.install_registry(next(iter(context._registries)))  # where `_IntrinsicTemplate` puts them


def once(modules):
    """``modules``, the property of a library that lists what goes to NVVM, but each module only once."""
    return property(lambda library: list(dict.fromkeys(modules.fget(library))))


def replacements():
    """What `front_end` puts where: (place, name, value)."""
    yield compiler, "CUDACompiler", Compiler
    yield types.BaseFunction, "get_call_type", found_once(types.BaseFunction.get_call_type)
    yield cuda_target.typing_context, "refresh", lambda: None  # `later` does what is left to do
    yield cuda_target.target_context, "refresh", install_intrinsics
    yield cudadecl.Cuda_array_decl, "generic", vectors(cudadecl.Cuda_array_decl.generic)
    yield cudaimpl, "_generic_array", new_arrays(cudaimpl._generic_array)
    yield postproc.PostProcessor, "run", lifetimes_last(postproc.PostProcessor.run)
    yield callconv.BaseCallConv, "mangler", short_name
    yield codegen.CUDACodeLibrary, "modules", once(codegen.CUDACodeLibrary.modules)
    yield nvvm.CompilationUnit, "verify", lambda unit: None  # the compiler finds what it would


@contextmanager
def front_end():
    """Within it Numba compiles for the GPU so; other threads of the process wait to compile.

    There is no garbage before a kernel is done, so none is looked for.
    """
    with global_compiler_lock:
        cuda_target.target_context.refresh()
        collects, before = gc.isenabled(), []
        try:
            gc.disable()
            for place, name, ours in replacements():
                before.append((place, name, getattr(place, name)))
                setattr(place, name, ours)
            yield
        finally:
            for place, name, theirs in before:
                setattr(place, name, theirs)
            if collects:
                gc.enable()
