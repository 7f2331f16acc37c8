"""The linear layer: three products with their epilogues. What `reference.linear_*` define, on addresses.

``finish`` is the address of the kernel of an activation or its derivative, 0 for the identity. The functions are
inlined into the walk (network.py) and, through `cpu.__init__`, are what the tests call.
"""

from ..jit import inline
from .blocking import GRADIENT_SCRATCH, MC, NARROW_BYTES
from .microkernel import FROM_BIAS, FROM_ZERO
from .operands import Factor, Finish, Matrix, Origin, Packing, Strided
from .simd import call


@inline
def linear_forward(products, finish, parameter, rows, x, weight, bias, out, saved, panel):
    """``saved = x @ weight + bias``; ``out = act(saved)`` unless ``finish`` is 0 (identity, out is saved)."""
    a, b = Strided(x.data, x.ld, 1), Factor(weight.data, weight.ld, 0)
    origin = Origin(FROM_BIAS if bias.data else FROM_ZERO, bias.data)
    epilogue, packing = Finish(finish, out.data, out.ld, parameter), Packing(panel, products.sizes)
    call(products.gemm, (rows, out.columns, x.columns, a, b, origin, Matrix(saved.data, saved.ld), packing, epilogue))


@inline
def swaps(n, fan_in, fan_out):
    """Whether ``grad_z_prev.T = weight @ grad_z.T`` is the cheaper product: few rows are transposed, not the weight.

    Counts what is transposed: the result once and ``grad_z`` for every MC rows of the weight, or the weight. The
    blocks of the result have to fit the scratch.
    """
    return (n + 15) * MC <= GRADIENT_SCRATCH and n * (fan_in + fan_out * ((fan_in + MC - 1) // MC)) < fan_in * fan_out


@inline
def linear_backward_input(products, finish, parameter, n, grad_z, weight, saved, out, panel, scratch):
    """``out = (grad_z @ weight.T) * act'(saved)``."""
    item, fan_in, fan_out = products.itemsize, out.columns, grad_z.columns
    zero, packing = Origin(FROM_ZERO, 0), Packing(panel, products.sizes)
    if products.transpose and swaps(n, fan_in, fan_out):
        b, c = Factor(grad_z.data, grad_z.ld, 1), Matrix(scratch, (n + 15) // 16 * 16)
        for i in range(0, fan_in, MC):
            rows = min(MC, fan_in - i)
            a = Strided(weight.data + item * i * weight.ld, weight.ld, 1)
            call(products.gemm, (rows, n, fan_out, a, b, zero, c, packing, Finish(0, 0, 0, 0.0)))
            block = out.data + item * i
            call(products.transpose, (n, rows, c, Matrix(block, out.ld)))
            if finish:
                call(finish, (n, rows, block, out.ld, saved.data + item * i, saved.ld, parameter))
    else:
        a, b = Strided(grad_z.data, grad_z.ld, 1), Factor(weight.data, weight.ld, 1)
        epilogue = Finish(finish, saved.data, saved.ld, parameter)
        call(products.gemm, (n, fan_in, fan_out, a, b, zero, Matrix(out.data, out.ld), packing, epilogue))


@inline
def is_narrow(rows, fan_out, lanes, item):
    """Whether rows of a weight get their gradient through its transpose: the outputs leave most lanes empty."""
    return 2 * fan_out <= lanes and rows >= lanes and (rows + 15) * fan_out * item <= NARROW_BYTES


@inline
def linear_backward_params(products, n, x, grad_z, beta, grad_weight, grad_bias, panel):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise; any block of rows and columns.

    Where a transpose is wanted, and `is_narrow`, it is made as ``grad_z.T @ x`` in ``panel``; ``beta`` is 0 then.
    """
    fan_in, fan_out, nothing = x.columns, grad_z.columns, Finish(0, 0, 0, 0.0)
    if products.transpose:
        a, b, c = Strided(grad_z.data, 1, grad_z.ld), Factor(x.data, x.ld, 0), Matrix(panel, (fan_in + 15) // 16 * 16)
        call(products.gemm, (fan_out, fan_in, n, a, b, Origin(FROM_ZERO, 0), c, Packing(0, products.sizes), nothing))
        call(products.transpose, (fan_in, fan_out, c, grad_weight))
    else:
        a, b = Strided(x.data, 1, x.ld), Factor(grad_z.data, grad_z.ld, 0)
        call(
            products.gemm,
            (fan_in, fan_out, n, a, b, Origin(beta, 0), grad_weight, Packing(panel, products.sizes), nothing),
        )
    if grad_bias:
        call(products.column_sum, (n, fan_out, grad_z.data, grad_z.ld, beta, grad_bias))
