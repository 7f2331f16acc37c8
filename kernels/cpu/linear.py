"""The linear layer: three products with their epilogues. What `reference.linear_*` define, on addresses.

``finish`` is the address of the kernel of an activation or its derivative, 0 for the identity. The functions are
inlined into the walk (network.py) and, through `cpu.__init__`, are what the tests call.

``*_low`` are the addresses of the low parts of factors that are sums of two numbers, laid out as the high ones; 0 where
a factor is one number.
"""

from ..jit import inline
from .blocking import GRADIENT_SCRATCH, MC, NARROW_BYTES
from .microkernel import FROM_BIAS, FROM_ZERO
from .operands import Factor, Finish, Low, Matrix, Origin, Packing, Strided
from .simd import call


@inline
def product(products, m, n, k, a, b, a_low, b_low, swapped, origin, c, panel, finish):
    """`gemm.gemm` by the unit's kernel."""
    low, packing = Low(a_low, b_low, swapped), Packing(panel, products.sizes)
    call(products.gemm, (m, n, k, a, b, low, origin, c, packing, finish))


@inline
def linear_forward(products, finish, parameter, rows, x, weight, bias, out, saved, panel, x_low, weight_low):
    """``saved = x @ weight + bias``; ``out = act(saved)`` unless ``finish`` is 0 (identity, out is saved)."""
    a, b = Strided(x.data, x.ld, 1), Factor(weight.data, weight.ld, 0)
    origin = Origin(FROM_BIAS if bias.data else FROM_ZERO, bias.data)
    epilogue = Finish(finish, out.data, out.ld, parameter)
    c = Matrix(saved.data, saved.ld)
    product(
        products, rows, out.columns, x.columns, a, b, x_low, weight_low, 0, origin, c, panel, epilogue
    )  # fmt: skip


@inline
def swaps(n, fan_in, fan_out):
    """Whether ``grad_z_prev.T = weight @ grad_z.T`` is the cheaper product: few rows are transposed, not the weight.

    Counts what is transposed: the result once and ``grad_z`` for every MC rows of the weight, or the weight. The
    blocks of the result have to fit the scratch.
    """
    return (n + 15) * MC <= GRADIENT_SCRATCH and n * (fan_in + fan_out * ((fan_in + MC - 1) // MC)) < fan_in * fan_out


@inline
def linear_backward_input(
    products, finish, parameter, n, grad_z, weight, saved, out, panel, scratch, grad_low, weight_low
):
    """``out = (grad_z @ weight.T) * act'(saved)``."""
    item, fan_in, fan_out = products.itemsize, out.columns, grad_z.columns
    zero = Origin(FROM_ZERO, 0)
    if products.transpose and swaps(n, fan_in, fan_out):
        b, c = Factor(grad_z.data, grad_z.ld, 1), Matrix(scratch, (n + 15) // 16 * 16)
        for i in range(0, fan_in, MC):
            rows = min(MC, fan_in - i)
            skipped, nothing = item * i * weight.ld, Finish(0, 0, 0, 0.0)
            a, a_low = Strided(weight.data + skipped, weight.ld, 1), weight_low + skipped
            product(products, rows, n, fan_out, a, b, a_low, grad_low, 1, zero, c, panel, nothing)
            block = out.data + item * i
            call(products.transpose, (n, rows, c, Matrix(block, out.ld)))
            if finish:
                call(finish, (n, rows, block, out.ld, saved.data + item * i, saved.ld, parameter))
    else:
        a, b = Strided(grad_z.data, grad_z.ld, 1), Factor(weight.data, weight.ld, 1)
        epilogue = Finish(finish, saved.data, saved.ld, parameter)
        c = Matrix(out.data, out.ld)
        product(products, n, fan_in, fan_out, a, b, grad_low, weight_low, 0, zero, c, panel, epilogue)


@inline
def is_narrow(rows, fan_out, lanes, item):
    """Whether rows of a weight get their gradient through its transpose: the outputs fill one vector at most.

    A tile one vector wide loads a number for each multiply-add, one of two vectors for every two.
    """
    return fan_out <= lanes <= rows and fan_out < rows and (rows + 15) * fan_out * item <= NARROW_BYTES


@inline
def linear_backward_params(products, n, x, grad_z, beta, grad_weight, grad_bias, panel, x_low, grad_low, summed):
    """``grad_weight = beta * grad_weight + x.T @ grad_z``, column sums likewise; any block of rows and columns.

    ``summed`` is ``grad_z`` as it is, not rounded. Where a transpose is wanted, and `is_narrow`, the product is made as
    ``grad_z.T @ x`` in ``panel``.
    """
    fan_in, fan_out, nothing = x.columns, grad_z.columns, Finish(0, 0, 0, 0.0)
    if products.transpose:
        a, b, c = Strided(grad_z.data, 1, grad_z.ld), Factor(x.data, x.ld, 0), Matrix(panel, (fan_in + 15) // 16 * 16)
        if beta:
            call(products.transpose, (fan_out, fan_in, grad_weight, c))
        product(products, fan_out, fan_in, n, a, b, grad_low, x_low, 1, Origin(beta, 0), c, 0, nothing)
        call(products.transpose, (fan_in, fan_out, c, grad_weight))
    else:
        a, b = Strided(x.data, 1, x.ld), Factor(grad_z.data, grad_z.ld, 0)
        origin = Origin(beta, 0)
        product(products, fan_in, fan_out, n, a, b, x_low, grad_low, 0, origin, grad_weight, panel, nothing)
    if grad_bias:
        call(products.column_sum, (n, fan_out, summed.data, summed.ld, beta, grad_bias))
