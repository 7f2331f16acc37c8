"""How a function is compiled that is only ever part of others: to be linked into them, not to be run.

The one file that reaches into Numba's pipeline. Numba would optimise such a function, with all that it calls, and make
machine code of it, and do so again in every caller: a sixth of the time that a kernel takes to compile. And it would
compile the function anew for every constant that it is called with: a seventh.
"""

from numba import _dynfunc, njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import InlineOverloads, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes, InlineInlinables, LiteralUnroll, MakeFunctionToJitFunction

# Passes for what no kernel has: closures, array expressions, functions that Numba inlines itself.
UNUSED = {
    InlineClosureLikes, InlineInlinables, InlineOverloads, LiteralUnroll, MakeFunctionToJitFunction, NopythonRewrites,
}  # fmt: skip


class _Part(JITCodeLibrary):
    """Code that is linked into that of its callers as it is, and optimised there, once, with all around it."""

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _MakeKnown(LoweringPass):
    """Callers find the function, though there is nothing to execute."""

    _name = "fastbp_make_known"

    def __init__(self):
        super().__init__()

    def run_pass(self, state):
        lowered = state.cr
        entry = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "", 0, lowered.env, (state.library,)
        )  # fmt: skip
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=entry)
        return True


class Inlined(Compiler):
    """The pipeline of `jit.inline`."""

    def define_pipelines(self):
        self.state.flags.no_compile = True
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        (pipeline,) = super().define_pipelines()
        pipeline.passes = [entry for entry in pipeline.passes if entry[0] not in UNUSED]
        pipeline.add_pass_after(_MakeKnown, NativeLowering)
        pipeline.finalize()
        return [pipeline]


def inlined(function, **flags):
    """The function as others call it, compiled once for the types of its arguments, whatever their values."""
    # No wrappers: it is never called from Python, and making it callable doubles its compile time.
    dispatcher = njit(
        forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=Inlined, **flags
    )(function)  # fmt: skip
    template = dispatcher.get_call_template

    def template_of_types(arguments, keywords):
        return template(
            [types.unliteral(argument) for argument in arguments],
            {name: types.unliteral(argument) for name, argument in keywords.items()},
        )

    dispatcher.get_call_template = template_of_types
    return dispatcher
