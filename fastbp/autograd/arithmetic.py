"""Operations of the graph in NumPy: arithmetic with broadcasting, reductions, and changes of shape.

Each is a `Function` between arrays, and a function for users that is a method of `Variable` as well. Between scalars an
operation is its formula and its derivatives in Python's floats; where those raise an error, NumPy says what to give.
"""

import copy
import math

import numpy as np

from .. import checks
from ..graph import Function, Variable, scalar, value_of


def _scalars(x, y):
    """The numbers of two operands where both are scalars and at least one is a variable, else None."""
    if type(x) is Variable:
        a, b = x._data, y._data if type(y) is Variable else y
    elif type(y) is Variable:
        a, b = x, y._data
    else:
        return None
    if (type(a) is float or type(a) is int) and (type(b) is float or type(b) is int):
        return a, b
    return None


# ---------------------------------------------------------------------------------- arithmetic
class Add(Function):
    """What `add` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, y):
        return np.add(x, y)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def add(x, y):
    """``z = x + y``; ``∂z/∂x = ∂z/∂y = 1``: the gradient goes to both."""
    if pair := _scalars(x, y):
        a, b = pair
        return scalar(Add, a + b, x, 1.0, y, 1.0)
    return Add.apply(x, y)


class Subtract(Function):
    """What `subtract` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, y):
        return np.subtract(x, y)

    @staticmethod
    def backward(ctx, grad):
        return grad, -grad


def subtract(x, y):
    """``z = x - y``; ``∂z/∂x = 1``, ``∂z/∂y = -1``."""
    if pair := _scalars(x, y):
        a, b = pair
        return scalar(Subtract, a - b, x, 1.0, y, -1.0)
    return Subtract.apply(x, y)


class Multiply(Function):
    """What `multiply` puts into the graph."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return np.multiply(x, y)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        to_x, to_y = ctx.needs_input_grad
        return grad * y if to_x else None, grad * x if to_y else None


def multiply(x, y):
    """``z = x y``; ``∂z/∂x = y``, ``∂z/∂y = x``: ``z / x``, and right where x is 0."""
    if pair := _scalars(x, y):
        a, b = pair
        return scalar(Multiply, a * b, x, b, y, a)
    return Multiply.apply(x, y)


class Divide(Function):
    """What `divide` puts into the graph."""

    @staticmethod
    def forward(ctx, x, y):
        z = np.divide(x, y)
        ctx.save_for_backward(y, z)
        return z

    @staticmethod
    def backward(ctx, grad):
        y, z = ctx.saved_tensors
        to_x = np.divide(grad, y)
        return to_x, -to_x * z if ctx.needs_input_grad[1] else None


def divide(x, y):
    """``z = x / y``; ``∂z/∂x = 1 / y``, ``∂z/∂y = -z / y``."""
    if pair := _scalars(x, y):
        a, b = pair
        if b:
            return scalar(Divide, a / b, x, 1.0 / b, y, -(a / b) / b)
    return Divide.apply(x, y)


class Power(Function):
    """What `power` puts into the graph."""

    @staticmethod
    def forward(ctx, x, y):
        x, y = (one if isinstance(one, int | float) else np.asarray(one) for one in (x, y))
        z = np.power(x, y)
        ctx.save_for_backward(x, y, z)
        return z

    @staticmethod
    def backward(ctx, grad):
        x, y, z = ctx.saved_tensors
        to_x = to_y = None
        if ctx.needs_input_grad[0]:
            exponent = (y or 1) if isinstance(y, int | float) else np.where(y == 0, 1, y)  # 0 x^0 is 0 for any x
            to_x = grad * (y * np.power(x, exponent - 1))
        if ctx.needs_input_grad[1]:
            flat = np.equal(x, 0) & np.greater_equal(y, 0)
            to_y = grad * np.where(flat, 0, z * np.log(np.where(flat, 1, x)))
        return to_x, to_y


def power(x, y):
    """``z = x^y``; ``∂z/∂x = y x^(y-1)``, 0 for y = 0; ``∂z/∂y = z ln x``, 0 for x = 0 and y ≥ 0, NaN for x < 0."""
    pair = _scalars(x, y)
    if pair and pair[0] > 0:
        a, b = pair
        try:
            value = a**b
            return scalar(Power, value, x, b * a ** (b - 1), y, value * math.log(a))
        except OverflowError:
            pass
    return Power.apply(x, y)


class Negative(Function):
    """What `negative` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x):
        return np.negative(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def negative(x):
    """``z = -x``; ``∂z/∂x = -1``."""
    if type(x) is Variable and type(x._data) is float:
        return scalar(Negative, -x._data, x, -1.0)
    return Negative.apply(x)


# ---------------------------------------------------------------------------------- functions
class Exp(Function):
    """What `exp` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x):
        z = np.exp(x)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def exp(x):
    """``z = e^x``; ``∂z/∂x = z``."""
    if type(x) is Variable and type(x._data) is float:
        try:
            value = math.exp(x._data)
            return scalar(Exp, value, x, value)
        except OverflowError:
            pass
    return Exp.apply(x)


class Log(Function):
    """What `log` puts into the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return np.log(x)

    @staticmethod
    def backward(ctx, grad):
        return np.divide(grad, ctx.saved_tensors[0])


def log(x):
    """``z = ln x``; ``∂z/∂x = 1 / x``."""
    if type(x) is Variable and type(x._data) is float and x._data > 0:
        return scalar(Log, math.log(x._data), x, 1.0 / x._data)
    return Log.apply(x)


class Sqrt(Function):
    """What `sqrt` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x):
        z = np.sqrt(x)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, grad):
        return np.divide(grad, 2.0 * ctx.saved_tensors[0])


def sqrt(x):
    """``z = √x``; ``∂z/∂x = 1 / (2 z)``, infinite at 0."""
    if type(x) is Variable and type(x._data) is float and x._data > 0:
        value = math.sqrt(x._data)
        return scalar(Sqrt, value, x, 0.5 / value)
    return Sqrt.apply(x)


class Absolute(Function):
    """What `absolute` puts into the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return np.absolute(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * np.sign(ctx.saved_tensors[0])


def absolute(x):
    """``z = |x|``; ``∂z/∂x = sign x``, 0 at 0. Also ``abs(x)``."""
    return Absolute.apply(x)


# ---------------------------------------------------------------------------- maxima and minima
class Maximum(Function):
    """What `maximum` puts into the graph."""

    select = staticmethod(np.maximum)
    loses = staticmethod(np.less)  # whether the first is not selected against the second

    @classmethod
    def forward(cls, ctx, x, y):
        ctx.save_for_backward(x, y)
        return cls.select(x, y)

    @classmethod
    def backward(cls, ctx, grad):
        x, y = ctx.saved_tensors
        tied = np.equal(x, y)
        return tuple(np.where(tied, grad / 2, np.where(cls.loses(*pair), 0, grad)) for pair in ((x, y), (y, x)))


class Minimum(Maximum):
    """What `minimum` puts into the graph."""

    select = staticmethod(np.minimum)
    loses = staticmethod(np.greater)


def maximum(x, y):
    """``z = max(x, y)`` of each pair; the gradient goes to the larger, half to each where they are equal."""
    if pair := _scalars(x, y):
        a, b = pair
        if a > b:
            return scalar(Maximum, float(a), x, 1.0, y, 0.0)
        if a < b:
            return scalar(Maximum, float(b), x, 0.0, y, 1.0)
    return Maximum.apply(x, y)


def minimum(x, y):
    """``z = min(x, y)`` of each pair; the gradient goes to the smaller, half to each where they are equal."""
    if pair := _scalars(x, y):
        a, b = pair
        if a < b:
            return scalar(Minimum, float(a), x, 1.0, y, 0.0)
        if a > b:
            return scalar(Minimum, float(b), x, 0.0, y, 1.0)
    return Minimum.apply(x, y)


class Max(Function):
    """What `max` puts into the graph."""

    select = staticmethod(np.max)
    place = staticmethod(np.argmax)

    @classmethod
    def forward(cls, ctx, x, axis, keepdims):
        z = cls.select(x, axis=axis, keepdims=keepdims)
        ctx.save_for_backward(x, axis, keepdims, z)
        return z

    @classmethod
    def backward(cls, ctx, grad):
        x, axis, keepdims, z = ctx.saved_tensors
        grad = _expanded(grad, axis, keepdims)
        if isinstance(axis, int) and np.ndim(x):
            flow = np.zeros_like(x)
            np.put_along_axis(flow, np.expand_dims(cls.place(x, axis=axis), axis), grad, axis)
        else:
            z = _expanded(z, axis, keepdims)
            selected = np.equal(x, z) | (np.isnan(x) & np.isnan(z))
            flow = np.where(selected, grad / selected.sum(axis=axis, keepdims=True), 0)
        return flow, None, None


class Min(Max):
    """What `min` puts into the graph."""

    select = staticmethod(np.min)
    place = staticmethod(np.argmin)


def max(x, axis=None, keepdims=False):
    """Largest element over an axis, some axes (a tuple) or all.

    The gradient goes to the largest element: to the first of equal ones along one axis, in equal shares over several
    axes or all, as in PyTorch.
    """
    return Max.apply(x, _axis(axis), keepdims)


def min(x, axis=None, keepdims=False):
    """Smallest element over an axis, some axes (a tuple) or all; the gradient goes as that of `max`."""
    return Min.apply(x, _axis(axis), keepdims)


# ----------------------------------------------------------------------------------- reductions
def _axis(axis):
    """An axis as an int, several as a tuple."""
    if axis is None:
        return None
    if isinstance(axis, tuple | list):
        return tuple(int(one) for one in axis)
    return int(axis)


def _expanded(array, axis, keepdims):
    """An array that was reduced, with axes of length 1 where it was."""
    return array if axis is None or keepdims else np.expand_dims(array, axis)


class Sum(Function):
    """What `sum` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        ctx.save_for_backward(np.shape(x), axis, keepdims)
        return np.sum(x, axis=axis, keepdims=keepdims)

    @staticmethod
    def backward(ctx, grad):
        shape, axis, keepdims = ctx.saved_tensors
        return np.broadcast_to(_expanded(grad, axis, keepdims), shape), None, None


def sum(x, axis=None, keepdims=False):
    """Sum over an axis, some axes (a tuple) or all; the gradient goes to every element."""
    return Sum.apply(x, _axis(axis), keepdims)


class Mean(Function):
    """What `mean` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        z = np.mean(x, axis=axis, keepdims=keepdims)
        ctx.save_for_backward(np.shape(x), axis, keepdims, np.size(x) / (np.size(z) or 1))
        return z

    @staticmethod
    def backward(ctx, grad):
        shape, axis, keepdims, count = ctx.saved_tensors
        return np.broadcast_to(_expanded(np.divide(grad, count), axis, keepdims), shape), None, None


def mean(x, axis=None, keepdims=False):
    """Mean over an axis, some axes (a tuple) or all N elements; every element gets ``1/N`` of the gradient."""
    return Mean.apply(x, _axis(axis), keepdims)


# -------------------------------------------------------------------------------------- shapes
class Reshape(Function):
    """What `reshape` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, shape):
        ctx.save_for_backward(np.shape(x))
        return np.reshape(x, shape)

    @staticmethod
    def backward(ctx, grad):
        return np.reshape(grad, ctx.saved_tensors[0]), None


def reshape(x, *shape):
    """The elements, row by row, in another shape: ``reshape(x, 2, -1)`` or ``reshape(x, (2, -1))``."""
    return Reshape.apply(x, shape[0] if len(shape) == 1 else shape)


class Transpose(Function):
    """What `transpose` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, axes):
        ctx.save_for_backward(None if axes is None else np.argsort(axes))
        return np.transpose(x, axes)

    @staticmethod
    def backward(ctx, grad):
        return np.transpose(grad, ctx.saved_tensors[0]), None


def transpose(x, *axes):
    """The axes in another order, by default in reverse: ``transpose(x, 0, 2, 1)`` or ``transpose(x, (0, 2, 1))``."""
    axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None
    if axes is not None:
        ndim = np.ndim(value_of(x))
        axes = tuple(axis + ndim if axis < 0 else axis for axis in axes)
    return Transpose.apply(x, axes)


class Index(Function):
    """What `index` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(np.shape(x), copy.deepcopy(index))  # arrays and lists that others may change
        return np.asarray(x)[index]

    @staticmethod
    def backward(ctx, grad):
        shape, index = ctx.saved_tensors
        flow = np.zeros(shape, getattr(grad, "dtype", None))
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is None or part is ... or isinstance(part, int | np.integer | slice) for part in parts):
            flow[index] = grad
        else:  # which may name an element several times
            np.add.at(flow, index, grad)
        return flow, None


def index(x, place):
    """``x[place]``, for any index that NumPy takes; an element that is named several times gets the sum."""
    for part in place if isinstance(place, tuple) else (place,):
        if isinstance(part, Variable):
            raise TypeError("a Variable cannot be an index: use its .data, as integers")
    return Index.apply(x, place)


class Concatenate(Function):
    """What `concatenate` puts into the graph."""

    reads_inputs = False

    @staticmethod
    def forward(ctx, axis, *parts):
        ctx.save_for_backward(axis, np.cumsum([np.shape(part)[axis] for part in parts])[:-1])
        return np.concatenate(parts, axis=axis)

    @staticmethod
    def backward(ctx, grad):
        axis, ends = ctx.saved_tensors
        return None, *np.split(grad, ends, axis=axis)


def concatenate(parts, axis=0):
    """The variables and arrays of a sequence, one after the other along an axis that they have."""
    parts = tuple(parts)
    if not parts or any(np.ndim(value_of(part)) == 0 for part in parts):
        raise ValueError("concatenate needs at least one part, and none without an axis; reshape scalars to (1,) first")
    return Concatenate.apply(checks.integer("axis", axis, minimum=-np.ndim(value_of(parts[0]))), *parts)
