"""Training data: which forms are accepted, how they are checked, and in which order their rows are used.

Arrays and memory maps are one chunk of rows, used every epoch; an iterable gives chunks as they come. Only labels and
weights are converted or copied here.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from . import backend, checks
from .backend import Kernels
from .checks import Array
from .losses import Loss, LossFunction

if TYPE_CHECKING:
    from .model import Sequential

ChunkLike: TypeAlias = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]  # X, y, sample_weight
Shuffle: TypeAlias = bool | str | Callable[[int], ArrayLike]  # True, False, "blocks", or epoch -> order of rows
Data: TypeAlias = ArrayLike | Iterable[ChunkLike] | Callable[[], Iterable[ChunkLike]]

WEIGHTS_TOGETHER = 1 << 17  # weights that are looked up at once
LOOKED_AT_BYTES = 64 << 20  # of X, in one call of a kernel
BLOCKS = "blocks"  # a value of ``shuffle``
SHUFFLE_BLOCK = 16_384  # rows that are shuffled together then


# -------------------------------------------------------------------------------------- order
def epoch_rows(
    kernels: Kernels,
    generator: np.random.Generator,
    rows: range | Array,
    shuffle: Shuffle,
    weight: Array | None = None,
    epoch: int = 1,
) -> range | Array:
    """The rows (int64) in the order of one epoch: a range without the rows of weight 0, or an array, overwritten.

    What a function says is taken as it is: places in ``rows``, some several times or never, those of weight 0 too.
    """
    if callable(shuffle):
        places = checks.rows(f"shuffle({epoch})", shuffle(epoch), len(rows))
        return places + rows.start if isinstance(rows, range) else rows[places]
    if shuffle != BLOCKS:
        order = _array(rows, weight)
        if shuffle:
            _shuffle(kernels, generator, order)
        return order
    starts = np.arange(0, len(rows), SHUFFLE_BLOCK)
    _shuffle(kernels, generator, starts)
    order, end = np.empty(len(rows), np.int64), 0
    for start in starts:
        block = _array(rows[start : start + SHUFFLE_BLOCK], weight)
        _shuffle(kernels, generator, block)
        order[end : end + len(block)] = block
        end += len(block)
    return order[:end]


def _array(rows, weight):
    """The rows as an array; nothing else of this size is allocated."""
    if not isinstance(rows, range):
        return rows
    if weight is None:
        return np.arange(rows.start, rows.stop)
    array = np.flatnonzero(weight[rows.start : rows.stop])
    array += rows.start
    return array


def _shuffle(kernels, generator, rows):
    """Shuffle the rows in place, by the next 64 bits of the generator."""
    kernels.shuffle(rows, generator.bit_generator.random_raw() - 2**63)


def checked_shuffle(shuffle: Any) -> Shuffle:
    """``shuffle``, which is True, False, "blocks" or a function."""
    if isinstance(shuffle, bool | np.bool_):
        return bool(shuffle)
    if isinstance(shuffle, str) and shuffle == BLOCKS:
        return shuffle
    if callable(shuffle) and not isinstance(shuffle, type):
        return shuffle
    raise TypeError(f'shuffle must be True, False, "{BLOCKS}" or a function epoch -> rows, got {shuffle!r}')


def count_steps(rows: int, batch_size: int, drop_last: bool) -> int:
    """The number of batches in an epoch."""
    if drop_last and rows < batch_size:
        raise ValueError(
            f"drop_last=True leaves nothing to train on: batch_size is {batch_size} and there are {rows} rows; "
            f"use a smaller batch_size or drop_last=False"
        )
    return rows // batch_size if drop_last else -(-rows // batch_size)


def batches(
    X: ArrayLike,
    y: ArrayLike,
    batch_size: int,
    *,
    shuffle: Shuffle = True,
    seed: int | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """Batches of one epoch, for a training loop of your own.

    Parameters
    ----------
    X : array (n, …)
    y : array (n, …)
    batch_size : int
    shuffle : bool, "blocks" or function
        As in `Sequential.fit`; this is epoch 1.
    seed : int, optional
    drop_last : bool
        Leave out the last batch if it is short.

    Returns
    -------
    iterator of (xb, yb)
    """
    X, y = checks.numeric("X", X), checks.numeric("y", y)
    if X.ndim == 0 or y.ndim == 0 or len(X) != len(y):
        raise ValueError(f"X and y must have the same number of rows, got shapes {X.shape} and {y.shape}")
    checks.not_empty("X", X)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    shuffle, drop_last = checked_shuffle(shuffle), checks.boolean("drop_last", drop_last)
    rows = epoch_rows(backend.load("cpu"), checks.generator("seed", seed), range(len(X)), shuffle)
    steps = count_steps(len(rows), batch_size, drop_last)
    chosen = (rows[step * batch_size : (step + 1) * batch_size] for step in range(steps))
    return ((X[part], y[part]) for part in chosen)


# -------------------------------------------------------------------------------------- checked
def checked_pair(
    model: Sequential, loss: LossFunction, X: Any, y: Any, names: Sequence[str], may_be_empty: bool = False
) -> tuple[Array, Array]:
    """X and y as arrays of finite values that the model can train on; only labels are copied."""
    X = model.checked_inputs(names[0], X)
    if not may_be_empty:
        checks.not_empty(names[0], X)
    y = model._kernels.to_host(y) if checks.on_device(y) else y  # labels are checked on the host
    if isinstance(loss, Loss):
        y = loss.checked_target(names[1], y, len(X), model.out_features)
    else:
        y = checks.numeric(names[1], y)
        if y.ndim == 0 or len(y) != len(X):
            raise ValueError(f"{names[1]} must have {len(X)} rows as {names[0]} has, got shape {y.shape}")
    if isinstance(X, np.ndarray) and not are_finite(model, X):  # not read on a device: NaN shows in the loss
        checks.finite(names[0], X, model.dtype)
    checks.finite(names[1], y, model.dtype)
    return X, y


def are_finite(model: Sequential, X: Array) -> bool:
    """Whether all numbers of X, an array of the host, are finite in the model's dtype.

    Kernels of the host look at large arrays of their dtype: as fast as memory gives them, and in one pass.
    """
    kernels, size = model._kernels, X.shape[0] * X.shape[1]
    few = size <= checks.FEW or X.dtype != model.dtype
    if few or not (model.network.on_host and checks.readable(X)):
        return checks.are_finite(X, model.dtype)
    flat, together = X.reshape(size), LOOKED_AT_BYTES // X.itemsize  # Ctrl-C is answered between the parts
    parts = (flat[start : start + together] for start in range(0, size, together))
    return all(kernels.all_finite(np.array([[0, 1, len(part), len(part)]]), part) for part in parts)


class Chunk:
    """Rows that have been checked for a model and a loss.

    Attributes
    ----------
    X, y : arrays
    labels : bool
        Whether y is one integer label a row.
    weight : float64 array (n,) or None
        The weight of every row: its sample weight times its class weight.
    rows : range, or int64 array
        The rows to train on; of a range, those whose weight is not 0.
    places : range, or int64 array
        The rows that an order function numbers, those of weight 0 too.
    count : int
        How many rows are trained on.
    first : int
        The rows of the epoch before these: `Dropout` knows a row by its number in the epoch's data.
    """

    def __init__(
        self,
        model: Sequential,
        loss: LossFunction,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        names: Sequence[str] = ("X", "y", "sample_weight"),
        first: int = 0,
        may_be_empty: bool = False,
    ) -> None:
        self.first = first
        self.X, self.y = checked_pair(model, loss, X, y, names, may_be_empty)
        if sample_weight is not None:
            sample_weight = checks.weights(names[2], sample_weight, len(self.X))
        known = isinstance(loss, Loss)
        self.labels = known and loss.takes_labels(self.y)
        self.weight = loss.row_weight(self.y, sample_weight) if known else sample_weight
        self.rows = self.places = range(len(self.X))
        self.count = len(self.X) if self.weight is None else int(np.count_nonzero(self.weight))

    def of_rows(self, argument: str, rows: ArrayLike) -> Chunk:
        """The same data, restricted to these rows."""
        rows = checks.rows(argument, rows, len(self.X))
        chunk = copy.copy(self)
        chunk.places = rows
        chunk.rows = rows if self.weight is None else rows[self.weight[rows] > 0]
        chunk.count = len(chunk.rows)
        if not chunk.count:
            raise ValueError(f"{argument} must name rows whose weight is above 0, got {len(rows)} rows of weight 0")
        return chunk

    def order(self, model: Sequential, shuffle: Shuffle, epoch: int) -> Array:
        """The rows in the order of one epoch, drawn by the generator of the model or given by a function."""
        return self.order_by(model.generator, model._kernels, shuffle, epoch)

    def order_by(self, generator: np.random.Generator, kernels: Kernels, shuffle: Shuffle, epoch: int) -> Array:
        """`order`, drawn by a generator."""
        rows = self.places if callable(shuffle) else self.rows if isinstance(self.rows, range) else self.rows.copy()
        return epoch_rows(kernels, generator, rows, shuffle, self.weight, epoch)

    def step_weights(self, order: Array, batch_size: int) -> Array:
        """The sums of the weights of the batches of an epoch."""
        return self._step_sums(lambda rows: self.weight[rows], order, batch_size)

    def step_labels(self, order: Array, batch_size: int) -> Array:
        """How many rows of each batch of an epoch have a label: a loss may ignore the others."""
        return self._step_sums(lambda rows: (self.y[rows] >= 0).astype(np.int64), order, batch_size)

    def _step_sums(self, of_rows, order, batch_size):
        """The sums over the batches of an epoch of what each row has: ``of_rows(rows)``, of some rows at a time."""
        together = max(1, WEIGHTS_TOGETHER // batch_size) * batch_size
        parts = (of_rows(order[start : start + together]) for start in range(0, len(order), together))
        return np.concatenate([np.add.reduceat(part, np.arange(0, len(part), batch_size)) for part in parts])

    def epoch(self, done: int = 0) -> tuple[Chunk, ...]:
        """The chunks of an epoch: this one, unless it is done."""
        return (self,)[done:]


class OrderAhead:
    """The order of the next epoch, drawn while this one runs, by a copy of the generator: nobody sees that it was.

    Where the generator is then not as it was, because a callback has drawn from it, the order is drawn as ever, and
    none is drawn ahead any more.
    """

    def __init__(self) -> None:
        self.drawn: tuple[Chunk, Array, bytes, Any] | None = None  # whose, the order, the generator before and after
        self.useful = True

    def draw(self, chunk: Chunk, model: Sequential, shuffle: Shuffle) -> None:
        """Draw the next order of a chunk; a function is asked for no order before its epoch."""
        if self.useful and self.drawn is None and shuffle and not callable(shuffle):
            generator = copy.deepcopy(model.generator)
            before = pickle.dumps(generator.bit_generator.state)
            order = chunk.order_by(generator, model._kernels, shuffle, 0)
            self.drawn = chunk, order, before, generator.bit_generator.state

    def take(self, chunk: Chunk, model: Sequential, shuffle: Shuffle, epoch: int) -> Array:
        """The order of an epoch that begins."""
        drawn, self.drawn = self.drawn, None
        if drawn is not None:
            of, order, before, after = drawn
            if of is chunk and before == pickle.dumps(model.generator.bit_generator.state):
                model.generator.bit_generator.state = after
                return order
            self.useful = False
        return chunk.order(model, shuffle, epoch)


def split(
    model: Sequential, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None, share: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, ...]]:
    """X, y and weights of the first rows, and those of the last ``share`` of them, for validation."""
    if y is None:
        raise ValueError("validation_split needs arrays X and y; where X gives chunks pass validation_data=(X, y)")
    X = model.checked_inputs("X", X)
    y = model._kernels.to_host(y) if checks.on_device(y) else checks.numeric("y", y)
    rows = math.floor(len(X) * (1 - share))
    if not 0 < rows < len(X):
        raise ValueError(
            f"validation_split must leave rows for both parts; {share:g} of {len(X)} rows are {len(X) - rows}"
        )
    if y.ndim == 0 or len(y) != len(X):
        raise ValueError(f"y must have {len(X)} rows as X has, got shape {y.shape}")
    parts = [X, y]
    if sample_weight is not None:
        parts.append(checks.weights("sample_weight", sample_weight, len(X)))
    first = [part[:rows] for part in parts]
    return (*first, None)[:3], tuple(part[rows:] for part in parts)


class Chunks:
    """The chunks of an iterable, each checked before it is used."""

    def __init__(self, model: Sequential, loss: LossFunction, X: Any, epochs: int, may_be_empty: bool = False) -> None:
        self.model, self.loss, self.X, self.may_be_empty = model, loss, X, may_be_empty
        self.called = callable(X) and not hasattr(X, "__iter__")
        if not self.called:
            first = _iterator("X", X)
            if first is X and epochs > 1:
                raise ValueError(
                    f"X is an iterator, which gives its chunks once, and epochs is {epochs}: pass a function that "
                    f"returns a new iterator for every epoch, or a list of chunks"
                )

    def epoch(self, done: int = 0) -> Iterator[Chunk]:
        """The chunks of an epoch; those that are done are taken and passed over."""
        chunks = _iterator("what the function X returns", self.X()) if self.called else iter(self.X)
        count = rows = 0
        for count, chunk in enumerate(chunks, 1):
            if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                raise TypeError(
                    f"X must give chunks (X, y) or (X, y, sample_weight), got "
                    f"{type(chunk).__name__} as chunks[{count - 1}]; "
                    f"arrays go in as X and y"
                )
            if count > done:
                names = [f"chunks[{count - 1}][{i}]" for i in range(3)]
                yield Chunk(self.model, self.loss, *chunk, names=names, first=rows, may_be_empty=self.may_be_empty)
            rows += len(chunk[0])
        if not count:
            raise ValueError("X must give at least one chunk (X, y) an epoch, got none")


def _iterator(argument, value):
    try:
        if isinstance(value, np.ndarray | str | bytes):
            raise TypeError
        return iter(value)
    except TypeError:
        raise TypeError(
            f"{argument} must be an iterable of chunks (X, y) when there is no y, got {type(value).__name__}; "
            f"an array X needs its y"
        ) from None


def source(
    model: Sequential,
    loss: LossFunction,
    X: Any,
    y: ArrayLike | None,
    sample_weight: ArrayLike | None,
    epochs: int,
    shared: bool = False,
) -> Chunk | Chunks:
    """The data as an object whose ``epoch()`` gives chunks; where they are ``shared``, this part may have no rows."""
    if y is not None:
        return Chunk(model, loss, X, y, sample_weight, may_be_empty=shared)
    if sample_weight is not None:
        raise ValueError("sample_weight must be None when X gives chunks: pass chunks (X, y, sample_weight)")
    return Chunks(model, loss, X, epochs, may_be_empty=shared)
