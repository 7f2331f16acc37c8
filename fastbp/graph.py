"""The computation graph: variables and the functions that made them.

A computed `Variable` knows the function that made it and the arguments of that function: the edges of the graph.
Between arrays the function is an instance of `Function`, which keeps what its ``backward`` needs. Between scalars,
which are Python floats, it is only the class, and the variable keeps x, ∂z/∂x, y and ∂z/∂y: the way back makes no call,
and the garbage collector walks over one object instead of three.

Every variable has a tick, the moment its value was set. Ticks order the graph, and reveal a value that was changed
after a function had read it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import checks
from .backpropagation import LEAF, backpropagate, frozen, inputs_of, reachable
from .checks import Array

Operand: TypeAlias = "Variable | ArrayLike"
T = TypeVar("T")

next_tick = itertools.count(1).__next__


# ------------------------------------------------------------------------------------- no_grad
_pauses: list[tuple[int, int]] = []  # (thread, id of the no_grad) within: nearly always none, and every thread records


class no_grad:
    """Stops recording in this thread: ``with no_grad(): w -= 0.1 * w.grad``.

    It is a decorator too: ``@no_grad()``. Of a generator function it stops recording while the generator's own code
    runs, not while that of its caller does.
    """

    def __enter__(self) -> None:
        _pauses.append((threading.get_ident(), id(self)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _pauses.remove((threading.get_ident(), id(self)))

    def __del__(self) -> None:
        for left in [pause for pause in _pauses if pause[1] == id(self)]:  # where an interrupt met __exit__
            _pauses.remove(left)

    def __call__(self, function: Callable[..., T]) -> Callable[..., T]:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"no_grad cannot decorate {function.__qualname__}, which others interrupt where it awaits; "
                f"write with no_grad(): in it"
            )
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*arguments, **named):
                return _unrecorded(function(*arguments, **named))

            return generator

        @functools.wraps(function)
        def call(*arguments, **named):
            with no_grad():
                return function(*arguments, **named)

        return call


def _unrecorded(generator):
    """The generator, whose own code is not recorded."""
    resume = functools.partial(next, generator)
    while True:
        try:
            with no_grad():
                value = resume()
        except StopIteration as end:
            return end.value
        try:
            resume = functools.partial(generator.send, (yield value))
        except GeneratorExit:
            with no_grad():
                generator.close()
            raise
        except BaseException as error:
            resume = functools.partial(generator.throw, error)


def recording() -> bool:
    """Whether this thread records."""
    return not (_pauses and threading.get_ident() in [thread for thread, _ in _pauses])


# ------------------------------------------------------------------------------------ variables
class Variable:
    """A value in the computation graph: an array, or a scalar, which the graph keeps as a Python float.

    Parameters
    ----------
    data : number or array
        Copied. float32 and float64 are kept, float16 becomes float32, integers and bool become float64; what has
        no dimensions becomes a float.
    requires_grad : bool
        Whether `backward` stores the gradient with respect to this variable.
    name : str, optional
        For drawings.

    Attributes
    ----------
    data : read-only array
        For a scalar, an array without dimensions; `item` gives the float. `assign` changes it, and so do ``+=``,
        ``-=``, ``*=`` and ``/=`` where nothing has to be recorded: within `no_grad`, or where no gradient is required.
        (Else ``x += y`` means ``x = x + y`` for a result, and is an error for a leaf.) An array handed out before keeps
        its numbers; `backward` refuses a function that has read the old value.
    grad : array or None
        The gradient of what `backward` was called on with respect to this variable, of the shape and dtype of
        ``data``. A leaf owns this array, and later calls add to it until `zero_grad`; a result has the gradient of the
        last call.
    grad_fn : Function or None
        The function that computed it, with its ``inputs``; None for a leaf, and once `backward` has freed the graph.
    requires_grad : bool
        True for everything computed from a variable that requires a gradient. It can be set for leaves.
    shape, ndim, size, dtype, T
        As of an array; the dtype of a scalar is float64.

    Raises
    ------
    TypeError, ValueError
        ``data`` are not real numbers.

    Notes
    -----
    The operations of `fastbp.autograd` are methods too. ``==`` compares identity; ``<``, ``<=``, ``>`` and ``>=``
    compare the data, as NumPy does.
    """

    __slots__ = ("__weakref__", "_data", "_dx", "_dy", "_grad", "_name", "_node", "_tick", "_x", "_y")
    _data: Any  # a float or a read-only array; so are gradients
    _grad: Any
    _node: Any
    __array_ufunc__ = None  # array + variable calls the operator of the variable

    def __init_subclass__(cls) -> None:
        raise TypeError("Variable cannot be subclassed: the operations look for exactly this class")

    def __init__(self, data: ArrayLike | Variable, requires_grad: bool = False, name: str | None = None) -> None:
        self._data = own_value("data", data)
        self._node = LEAF if checks.boolean("requires_grad", requires_grad) else None
        self._tick = next_tick()
        self._name = name
        self._grad = None

    # ---------------------------------------------------------------------------- what it holds
    @property
    def data(self) -> Array:
        return frozen(np.array(self._data)) if type(self._data) is float else self._data

    @property
    def grad(self) -> Array | None:
        return np.array(self._grad) if type(self._grad) is float else self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is None or value is self._grad:  # x.grad *= 2 assigns the same array
            self._grad = value
            return
        value = own_value("grad", value)
        if np.shape(value) != self.shape:
            raise ValueError(f"grad must have shape {self.shape}, got {np.shape(value)}")
        self._grad = value if type(value) is float else value.astype(self._data.dtype)

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.is_leaf:
            self._node = LEAF if checks.boolean("requires_grad", value) else None
        elif not value:
            raise RuntimeError("requires_grad of a computed Variable cannot be switched off; use detach()")

    @property
    def is_leaf(self) -> bool:
        """Whether it is an origin of the graph, not computed from a variable that requires a gradient."""
        return self._node is None or self._node is LEAF

    @property
    def grad_fn(self) -> Function | None:
        if type(self._node) is not type:
            return self._node if isinstance(self._node, Function) else None
        function = self._node()
        function.inputs = inputs_of(self)
        return function

    @property
    def name(self) -> str | None:
        return getattr(self, "_name", None)

    @name.setter
    def name(self, value: str | None) -> None:
        self._name = value

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self._data)

    @property
    def ndim(self) -> int:
        return np.ndim(self._data)

    @property
    def size(self) -> int:
        return np.size(self._data)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64) if type(self._data) is float else self._data.dtype

    def item(self) -> float:
        """The one number it holds, as a float."""
        return self._data if type(self._data) is float else self._data.item()

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Variable]:
        return (self[i] for i in range(len(self)))

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else repr(self)

    if not TYPE_CHECKING:  # with it, type checkers would take array + variable for an array

        def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
            if self._node is not None:
                raise TypeError(
                    "a Variable that requires a gradient does not become an array by itself, as that would leave the "
                    "graph: use its .data"
                )
            return np.array(self._data, dtype) if copy else np.asarray(self._data, dtype)

    def __repr__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        made = f", grad_fn={self.grad_fn!r}" if self.grad_fn else ", requires_grad=True" if self.requires_grad else ""
        return f"Variable({name}{np.array2string(np.asarray(self._data), separator=', ', prefix='Variable(')}{made})"

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.is_leaf:
            raise RuntimeError("only leaves of a graph can be copied or pickled: use detach() first")
        return _leaf, (self._data, self.requires_grad, self.name, self.grad)

    def __lt__(self, other: Operand) -> Any:
        return self._data < value_of(other)

    def __le__(self, other: Operand) -> Any:
        return self._data <= value_of(other)

    def __gt__(self, other: Operand) -> Any:
        return self._data > value_of(other)

    def __ge__(self, other: Operand) -> Any:
        return self._data >= value_of(other)

    # --------------------------------------------------------------------------------- gradients
    def backward(self, gradient: ArrayLike | None = None, *, retain_graph: bool = False) -> None:
        """Backpropagate: store the gradient of this variable with respect to everything it was computed from.

        Parameters
        ----------
        gradient : number or array of this shape, optional
            The upstream gradient; 1 by default for a single number.
        retain_graph : bool
            Keep what the functions saved, for another `backward` or a drawing. By default it is freed on the way.

        Raises
        ------
        RuntimeError
            Nothing here requires a gradient; the graph was freed by an earlier call; a value that a function had read
            was changed since. No gradient has been changed then.
        ValueError
            There are several numbers and no gradient; it is of another shape.
        """
        self._require_graph()
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() of shape {self.shape} needs the gradient that comes in: "
                    f"pass gradient=…, an array of that shape, or take a sum() or mean() first"
                )
            gradient = 1.0 if type(self._data) is float else np.ones_like(self._data)
        else:
            gradient = own_value("gradient", gradient)
            if np.shape(gradient) != self.shape:
                raise ValueError(f"gradient must have shape {self.shape}, got {np.shape(gradient)}")
            if type(gradient) is not float:
                gradient = gradient.astype(self._data.dtype)
        backpropagate(self, gradient, checks.boolean("retain_graph", retain_graph))

    def _require_graph(self):
        if self._node is None:
            raise RuntimeError(
                "backward() needs a Variable that requires a gradient: make one with requires_grad=True the "
                "origin of this one, outside no_grad()"
            )

    def zero_grad(self) -> None:
        """Forget the gradient: the next `backward` starts from none."""
        self._grad = None

    def detach(self) -> Variable:
        """The same value as a leaf that requires no gradient."""
        return variable_of(self._data)

    # ----------------------------------------------------------------------------------- changes
    def assign(self, value: ArrayLike | Variable) -> Variable:
        """Set a new value of the same shape, converted to this dtype. Only the value of a leaf can be set.

        Returns
        -------
        Variable
            This one.
        """
        if not self.is_leaf:
            raise RuntimeError("the value of a computed Variable cannot be set: make a new one, or use detach()")
        return self._set(own_value("value", value))

    def _set(self, value):
        if np.shape(value) != self.shape:
            raise ValueError(f"value must have shape {self.shape}, got {np.shape(value)}")
        self._data = value if type(value) is float else frozen(value.astype(self._data.dtype, copy=False))
        self._tick = next_tick()
        return self

    def _in_place(self, change, sign, other):
        """Set ``change(data, other)``; where it is recorded, return NotImplemented, and Python makes a new variable."""
        if recording() and (self._node is not None or getattr(other, "_node", None) is not None):
            if self._node is LEAF:
                raise RuntimeError(
                    f"{sign}= would change a Variable whose gradient is required: write x = x {sign} y for a new one, "
                    f"or change values within fastbp.autograd.no_grad()"
                )
            return NotImplemented
        if not self.is_leaf:
            return NotImplemented
        with np.errstate(all="ignore"):
            value = change(self._data, value_of(other))
        return self._set(value if type(value) is float else _held(checks.numeric("the new value", value)))

    def __iadd__(self, other: Operand) -> Variable:
        return self._in_place(operator.add, "+", other)

    def __isub__(self, other: Operand) -> Variable:
        return self._in_place(operator.sub, "-", other)

    def __imul__(self, other: Operand) -> Variable:
        return self._in_place(operator.mul, "*", other)

    def __itruediv__(self, other: Operand) -> Variable:
        return self._in_place(operator.truediv, "/", other)

    if TYPE_CHECKING:  # fastbp.autograd adds these when it is imported; its functions have the docstrings

        def add(self, y: Operand) -> Variable: ...
        def negative(self) -> Variable: ...
        def index(self, place: Any) -> Variable: ...
        def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Variable: ...
        def reshape(self, *shape: Any) -> Variable: ...
        def transpose(self, *axes: Any) -> Variable: ...
        def sigmoid(self, *, device: str = "cpu") -> Variable: ...
        def leaky_relu(self, negative_slope: float = 0.01, *, device: str = "cpu") -> Variable: ...
        def elu(self, alpha: float = 1.0, *, device: str = "cpu") -> Variable: ...
        def gelu(self, approximate: str = "none", *, device: str = "cpu") -> Variable: ...
        def softmax(self, axis: int = -1, *, device: str = "cpu") -> Variable: ...
        def dropout(
            self, p: float = 0.5, *, training: bool = True, seed: int | None = None, device: str = "cpu"
        ) -> Variable: ...
        def linear(self, weight: Operand, bias: Operand | None = None, *, device: str = "cpu") -> Variable: ...
        def half_squared_error(
            self, target: Operand, sample_weight: ArrayLike | None = None, *, device: str = "cpu"
        ) -> Variable: ...
        def huber(
            self, target: Operand, sample_weight: ArrayLike | None = None, *, delta: float = 1.0, device: str = "cpu"
        ) -> Variable: ...
        def cross_entropy(
            self,
            target: Operand,
            sample_weight: ArrayLike | None = None,
            *,
            label_smoothing: float = 0.0,
            class_weight: ArrayLike | None = None,
            device: str = "cpu",
        ) -> Variable: ...
        def to_dot(self) -> str: ...
        @property
        def T(self) -> Variable: ...

        subtract = multiply = divide = power = matmul = maximum = minimum = add
        __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __matmul__ = add
        __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = add
        absolute = exp = log = sqrt = __neg__ = __abs__ = negative
        mean = max = min = sum
        tanh = relu = selu = silu = softplus = sigmoid
        mean_squared_error = l1 = binary_cross_entropy = binary_cross_entropy_with_logits = half_squared_error
        __getitem__ = index


_make = object.__new__


def variable_of(value: Any, node: Any = None) -> Variable:
    """A variable of a float or a read-only array, not copied."""
    variable = _make(Variable)
    variable._data, variable._node, variable._tick, variable._grad = value, node, next_tick(), None
    return variable


def scalar(
    function: type[Function], value: float, x: Any, dx: float | None, y: Any = None, dy: float | None = None
) -> Variable:
    """The scalar ``function(x, y)`` with its derivatives by x and by y, one of which may be a plain number."""
    if type(y) is not Variable:
        dy = None
    elif type(x) is not Variable:
        x, dx, y, dy = y, dy, x, None
    variable = _make(Variable)
    variable._data, variable._tick, variable._grad = value, next_tick(), None
    if (x._node is None and (dy is None or y._node is None)) or (_pauses and not recording()):
        variable._node = None
    else:
        variable._node, variable._x, variable._dx, variable._y, variable._dy = function, x, dx, y, dy
    return variable


def _leaf(data, requires_grad, name, grad):
    variable = Variable(data, requires_grad, name)
    variable.grad = grad
    return variable


def value_of(operand: Any) -> Any:
    """The data of a variable; anything else is returned unchanged."""
    return operand._data if type(operand) is Variable else operand


def _own(argument: Any) -> Any:
    """The argument of a function; an array is copied: whoever gave them may change them before `Variable.backward`."""
    return frozen(argument.copy()) if isinstance(argument, np.ndarray) else argument


def own_value(argument: str, value: Any) -> Any:
    """A float, or a read-only copy as an array of float32 or float64."""
    if type(value) is float:
        return value
    array = checks.numeric(argument, value_of(value))
    return _held(array, copy=True)


def _held(array, copy=False):
    """A number as a float, an array as a read-only one of float32 or float64."""
    if array.ndim == 0:
        return float(array)
    dtype = array.dtype
    if dtype not in _DTYPES:
        dtype = np.float32 if array.dtype.kind == "f" and array.itemsize <= 4 else np.float64
    return frozen(array.astype(dtype) if copy or array.dtype != dtype else array.view())


_DTYPES = frozenset((np.dtype(np.float32), np.dtype(np.float64)))


# ------------------------------------------------------------------------------------ functions
class Function:
    """An operation of the graph; subclasses have a static ``forward`` and ``backward``.

    ``MyFunction.apply(*arguments)`` calls ``forward(ctx, *arguments)`` with floats and read-only arrays in place of
    variables, and returns its result, one number or array, as a variable. ``backward(ctx, grad_output)`` returns the
    gradient of the only argument of ``forward``, or a tuple with one for every argument and None for what is no
    variable; more of None at the end stand for defaults that were not given. Both run with NumPy's floating-point
    errors off. Where the result is recorded and ``backward`` reads its arguments, ``forward`` gets copies of arrays
    that are no variables. A gradient in a broadcast shape is summed to the shape of its argument.

    Attributes
    ----------
    inputs : tuple of Variable or None
        The arguments; None for what is no variable.
    saved_tensors : tuple
        The arguments of ``save_for_backward``. They are dropped, with all other attributes, when `Variable.backward`
        frees the graph.
    needs_input_grad : tuple of bool
        Whether the gradient of each argument is needed.
    reads_inputs : bool
        A class attribute: whether ``backward`` depends on the values of arguments, which then must not change before
        it. False for functions that are linear or whose derivative comes from the result.
    label : str
        Its name in drawings.

    Examples
    --------
    >>> class Square(fastbp.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x
    ...
    ...     @staticmethod
    ...     def backward(ctx, grad_output):
    ...         (x,) = ctx.saved_tensors
    ...         return 2 * x * grad_output
    >>> y = Square.apply(x)
    """

    reads_inputs = True
    has_parameters = False  # whether it has parameters besides its arguments: backward stores their gradients
    stores_gradients = True  # whether backward is to store them
    inputs: tuple[Variable | None, ...] = ()
    saved_tensors: tuple[Any, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    @property
    def label(self) -> str:
        return type(self).__name__

    @staticmethod
    def forward(ctx: Any, /, *arguments: Any, **named: Any) -> Any:
        """The result, from floats and arrays."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, grad_output: Any, /) -> Any:
        """The gradients of the arguments, from that of the result."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Called before ``backward``: raise an error if anything it needs, other than the arguments, was changed."""

    def save_for_backward(self, *values: Any) -> None:
        """Keep values as ``ctx.saved_tensors``."""
        self.saved_tensors = values

    @classmethod
    def apply(cls, *arguments: Any) -> Variable:
        """The result as a variable; it is recorded where an argument requires a gradient."""
        ctx = cls()
        ctx.inputs = tuple([x if type(x) is Variable else None for x in arguments])
        ctx.needs_input_grad = tuple([x is not None and x._node is not None for x in ctx.inputs])
        records = (ctx.has_parameters or True in ctx.needs_input_grad) and recording()
        values = [x._data if type(x) is Variable else _own(x) if records and cls.reads_inputs else x for x in arguments]
        with np.errstate(all="ignore"):
            result = cls.forward(ctx, *values)
        if type(result) is np.ndarray and result.dtype in _DTYPES and result.ndim:
            result = frozen(result.view())
        elif type(result) is not float:
            if not isinstance(result, np.ndarray | np.generic | int | float):
                raise TypeError(f"{cls.__name__}.forward must return one number or array, got {type(result).__name__}")
            result = _held(checks.numeric(f"the result of {cls.__name__}.forward", result))
        records = (ctx.has_parameters or True in ctx.needs_input_grad) and recording()
        return variable_of(result, ctx if records else None)

    def __repr__(self) -> str:
        return f"<{self.label}>"


# ------------------------------------------------------------------------------------ gradients
@overload
def grad(
    output: Variable, inputs: Variable, gradient: ArrayLike | None = None, *, retain_graph: bool = False
) -> Array: ...
@overload
def grad(
    output: Variable, inputs: Sequence[Variable], gradient: ArrayLike | None = None, *, retain_graph: bool = False
) -> tuple[Array, ...]: ...
def grad(
    output: Variable,
    inputs: Variable | Sequence[Variable],
    gradient: ArrayLike | None = None,
    *,
    retain_graph: bool = False,
) -> Any:
    """Gradients of ``output`` with respect to variables, without storing any.

    Parameters
    ----------
    output : Variable
    inputs : Variable or sequence of Variable
        Leaves or results.
    gradient, retain_graph
        As in `Variable.backward`.

    Returns
    -------
    array, or tuple of arrays
        Zeros for an input that the output does not depend on.
    """
    single = isinstance(inputs, Variable)
    inputs = [checks.instance("inputs", x, Variable) for x in ([inputs] if single else inputs)]
    checks.instance("output", output, Variable)._require_graph()
    order = reachable(output)
    functions = [variable._node for variable in order if isinstance(variable._node, Function)]
    leaves = [x for variable in order for x in inputs_of(variable) if x._node is LEAF]
    reached = {*order, *leaves}
    kept = {x: x._grad for x in reached if x._node is LEAF}
    for x in kept:
        x._grad = None
    for function in functions:
        function.stores_gradients = False
    try:
        output.backward(gradient, retain_graph=retain_graph)
        nothing = (x._grad is None or x not in reached for x in inputs)
        result = tuple(np.zeros(x.shape, x.dtype) if none else x.grad for x, none in zip(inputs, nothing, strict=True))
    finally:
        for function in functions:
            function.stores_gradients = True
        for x, before in kept.items():
            x._grad = before
    return result[0] if single else result
