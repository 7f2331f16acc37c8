"""The linear layer: three products with their epilogues. What `reference.linear_*` define, on addresses.

``gemm`` and ``finish`` are addresses of compiled kernels; arrays are addresses with a leading dimension. The
functions are inlined into the walk (network.py) and, through `cpu.__init__`, are what the tests call.
"""

from ..jit import inline
from .blocking import GRADIENT_SCRATCH, MC, PANEL_BYTES
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
def swaps(n, fan_in, fan_out):
    """Whether ``grad_z_prev.T = weight @ grad_z.T`` is the cheaper product: few rows are transposed, not the weight.

    Counts what is transposed: the result once and ``grad_z`` for every MC rows of the weight, or the weight. The
    blocks of the result have to fit the scratch.
    """
    return (n + 15) * MC <= GRADIENT_SCRATCH and n * (fan_in + fan_out * ((fan_in + MC - 1) // MC)) < fan_in * fan_out


@inline
def linear_backward_input(
    gemm, transpose, finish, item, n, fan_in, fan_out, grad_z, ldg, weight, ldw, saved, lds, parameter,
    grad_z_prev, ldp, panel, scratch,
):  # fmt: skip
    """``grad_z_prev = (grad_z @ weight.T) * act'(saved)``; ``finish`` 0 is the identity, ``transpose`` 0: no swap."""
    if transpose and swaps(n, fan_in, fan_out):
        ldc = (n + 15) // 16 * 16
        for i in range(0, fan_in, MC):
            rows = min(MC, fan_in - i)
            call(
                gemm,
                (
                    rows, n, fan_out, weight + item * i * ldw, ldw, 1, grad_z, ldg, 1, FROM_ZERO, 0,
                    scratch, ldc, panel, 0, 0, 0, 0.0,
                ),
            )  # fmt: skip
            out = grad_z_prev + item * i
            call(transpose, (n, rows, scratch, ldc, out, ldp))
            if finish:
                call(finish, (n, rows, out, ldp, saved + item * i, lds, parameter))
    else:
        call(
            gemm,
            (
                n, fan_in, fan_out, grad_z, ldg, 1, weight, ldw, 1, FROM_ZERO, 0,
                grad_z_prev, ldp, panel, finish, saved, lds, parameter,
            ),
        )  # fmt: skip


@inline
def is_narrow(rows, fan_out, lanes, item):
    """Whether rows of a weight get their gradient through its transpose: the outputs leave most lanes empty."""
    return 2 * fan_out <= lanes and rows >= lanes and (rows + 15) * fan_out * item <= PANEL_BYTES


@inline
def linear_backward_params(
    gemm, transpose, column_sum, n, fan_in, fan_out, x, ldx, grad_z, ldg, beta, grad_weight, ldw, grad_bias, panel
):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise; any block of rows and columns.

    With ``transpose``, where `is_narrow`, it is made as ``grad_z.T @ x`` in ``panel``; ``beta`` is 0 then.
    """
    if transpose:
        ldc = (fan_in + 15) // 16 * 16
        call(gemm, (fan_out, fan_in, n, grad_z, 1, ldg, x, ldx, 0, FROM_ZERO, 0, panel, ldc, 0, 0, 0, 0, 0.0))
        call(transpose, (fan_in, fan_out, panel, ldc, grad_weight, ldw))
    else:
        call(gemm, (fan_in, fan_out, n, x, 1, ldx, grad_z, ldg, 0, beta, 0, grad_weight, ldw, 0, 0, 0, 0, 0.0))
    if grad_bias:
        call(column_sum, (n, fan_out, grad_z, ldg, beta, grad_bias))
