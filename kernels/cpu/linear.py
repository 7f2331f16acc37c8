"""The linear layer: three products with their epilogues. What `reference.linear_*` define, on addresses.

``gemm`` and ``finish`` are addresses of compiled kernels; arrays are addresses with a leading dimension. The
functions are inlined into the walk (network.py) and, through `cpu.__init__`, are what the tests call.
"""

from ..jit import inline
from .microkernel import FROM_BIAS, FROM_ZERO
from .simd import call


@inline
def linear_forward(gemm, finish, n, fan_in, fan_out, x, ldx, weight, ldw, bias, parameter, out, ldo, saved, lds, panel):
    """``saved = x @ weight + bias``; ``out = act(saved)`` unless ``finish`` is 0 (identity, out is saved)."""
    origin = FROM_BIAS if bias else FROM_ZERO
    call(
        gemm,
        (n, fan_out, fan_in, x, ldx, 1, weight, ldw, 0, origin, bias, saved, lds, panel, finish, out, ldo, parameter),
    )


@inline
def linear_backward_input(
    gemm, finish, n, fan_in, fan_out, grad_z, ldg, weight, ldw, saved, lds, parameter, grad_z_prev, ldp, panel
):
    """``grad_z_prev = (grad_z @ weight.T) * act'(saved)``; ``finish`` 0 is the identity."""
    call(
        gemm,
        (
            n, fan_in, fan_out, grad_z, ldg, 1, weight, ldw, 1, FROM_ZERO, 0,
            grad_z_prev, ldp, panel, finish, saved, lds, parameter,
        ),
    )  # fmt: skip


@inline
def linear_backward_params(
    gemm, column_sum, n, fan_in, fan_out, x, ldx, grad_z, ldg, beta, grad_weight, ldw, grad_bias
):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise; any block of rows and columns."""
    call(gemm, (fan_in, fan_out, n, x, 1, ldx, grad_z, ldg, 0, beta, 0, grad_weight, ldw, 0, 0, 0, 0, 0.0))
    if grad_bias:
        call(column_sum, (n, fan_out, grad_z, ldg, beta, grad_bias))
