"""Gradients of any computation: variables, functions between them, and backpropagation through the graph they make.

>>> from fastbp.autograd import Variable
>>> x, y, z = Variable(-2.0, requires_grad=True), Variable(5.0, requires_grad=True), Variable(-4.0, requires_grad=True)
>>> L = (x + y) * z
>>> L.backward()
>>> print(x.grad, y.grad, z.grad)
-4.0 -4.0 3.0

Operations are functions of this module and methods of `Variable`; layers, `fastbp.Sequential` and losses take a
`Variable` too. What follows NumPy is in ``arithmetic``, what calls the kernels in ``network``; `Function` is for
operations of one's own.
"""

from ..graph import Function, Variable, grad, no_grad
from .arithmetic import (
    absolute,
    add,
    concatenate,
    divide,
    exp,
    index,
    log,
    max,
    maximum,
    mean,
    min,
    minimum,
    multiply,
    negative,
    power,
    reshape,
    sqrt,
    subtract,
    sum,
    transpose,
)
from .drawing import to_dot
from .network import (
    as_loss,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    dropout,
    elu,
    gelu,
    half_squared_error,
    huber,
    l1,
    leaky_relu,
    linear,
    matmul,
    mean_squared_error,
    relu,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)

OPERATORS = {
    "add": add, "sub": subtract, "mul": multiply, "truediv": divide, "pow": power, "matmul": matmul,
}  # fmt: skip
METHODS = (
    absolute, add, binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, divide, dropout, elu, exp,
    gelu, half_squared_error, huber, index, l1, leaky_relu, linear, log, matmul, max, maximum, mean,
    mean_squared_error, min, minimum, multiply, negative, power, relu, reshape, selu, sigmoid, silu, softmax, softplus,
    sqrt, subtract, sum, tanh, to_dot, transpose,
)  # fmt: skip


def _reflected(operation):
    return lambda x, y: operation(y, x)


for _name, _operation in OPERATORS.items():
    setattr(Variable, f"__{_name}__", _operation)
    setattr(Variable, f"__r{_name}__", _reflected(_operation))
for _operation in METHODS:
    setattr(Variable, _operation.__name__, _operation)
Variable.__neg__, Variable.__abs__, Variable.__getitem__ = negative, absolute, index
Variable.T = property(transpose)

__all__ = [
    "Function",
    "Variable",
    "absolute",
    "add",
    "as_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "concatenate",
    "cross_entropy",
    "divide",
    "dropout",
    "elu",
    "exp",
    "gelu",
    "grad",
    "half_squared_error",
    "huber",
    "index",
    "l1",
    "leaky_relu",
    "linear",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "mean_squared_error",
    "min",
    "minimum",
    "multiply",
    "negative",
    "no_grad",
    "power",
    "relu",
    "reshape",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "sqrt",
    "subtract",
    "sum",
    "tanh",
    "to_dot",
    "transpose",
]
