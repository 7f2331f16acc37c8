"""The parameters of a network and their gradients: one flat, padded, aligned buffer each.

The table (``kernels/table.py``) says where a weight or a bias lies. What users see is named views of shape
``(in, out)`` and ``(out,)`` and packed copies; what padding holds means nothing.
"""

import math

import numpy as np

from . import backend, checks
from .kernels import table as network_table


class Parameters:
    """The buffers of one network.

    Parameters
    ----------
    layers : sequence
        Rows as `kernels.table.lower` takes them.
    prefixes : sequence of str
        What stands before ``weight`` and ``bias`` in a name, one a row.
    dtype, device

    Attributes
    ----------
    version : int
        Goes up whenever the library changes values; what is written into a view does not count.
    """

    def __init__(self, layers, prefixes, dtype, device):
        self.device, self.dtype = device, dtype
        self.table, self.size = network_table.lower(layers, dtype.itemsize)
        self.prefixes = tuple(prefixes)
        self._allocate()

    def _allocate(self):
        self.backend = backend.load(self.device)
        self.values = self.backend.zeros(self.size, self.dtype)
        self.views = self.views_of(self.values)
        self._gradients = self._gradient_views = None
        self._gradients_stored = False
        self.version = 0

    def __getstate__(self):
        attributes = ("device", "dtype", "table", "size", "prefixes")
        state = {name: getattr(self, name) for name in attributes}
        gradients = self.pack(self._gradient_views) if self._gradients_stored else None
        return state, self.pack(self.views), gradients

    def __setstate__(self, state):
        attributes, values, gradients = state
        self.__dict__.update(attributes)
        self._allocate()
        self.unpack(values, self.views)
        if gradients is not None:
            self.unpack(gradients, self.store_gradients())

    # ------------------------------------------------------------------------------- gradients
    @property
    def gradients(self):
        """The gradient buffer; an error where no gradients are stored."""
        self._require_gradients()
        return self._gradients

    @property
    def gradient_views(self):
        """(weight, bias) views of the gradients of every row; an error where no gradients are stored."""
        self._require_gradients()
        return self._gradient_views

    def _require_gradients(self):
        if not self._gradients_stored:
            raise RuntimeError(
                "no gradients are stored: backward() has not run since the start or since the last train_step() "
                "or fit(), which do not store gradients; call forward() and backward() first"
            )

    def store_gradients(self):
        """(weight, bias) views to write gradients into; zero where none were stored."""
        if self._gradients is None:
            self._gradients = self.backend.zeros(self.size, self.dtype)
            self._gradient_views = self.views_of(self._gradients)
        elif not self._gradients_stored:
            self._gradients.fill(0)
        self._gradients_stored = True
        return self._gradient_views

    def discard_gradients(self):
        """From here on the gradients are those of older values: nobody may read them."""
        self._gradients_stored = False
        self.version += 1

    def zero_gradients(self):
        """Set the stored gradients to zero."""
        if self._gradients_stored:
            self._gradients.fill(0)

    def gradient_norm(self):
        """Euclidean norm of all stored gradients, in float64; padding does not count."""
        rows = (np.einsum("...i,...i->...", view, view, dtype=np.float64) for view in real(self.gradient_views))
        return math.sqrt(sum(float(row.sum()) for row in rows))

    def scale_gradients(self, factor):
        """Multiply the stored gradients."""
        with np.errstate(invalid="ignore", over="ignore"):
            np.multiply(self.gradients, self.dtype.type(factor), out=self._gradients)

    def finite(self):
        """Whether all values are finite; so large that their sum is not counts as not."""
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(np.add.reduce(self.values)):  # of padding as well, which may hold anything
                return True
            return all(math.isfinite(np.add.reduce(view, axis=None)) for view in real(self.views))

    # ----------------------------------------------------------------------------------- views
    def named(self):
        """A `Parameter` for every weight and bias, in the order of the layers."""
        return [
            Parameter(self, row, part, self.prefixes[row] + ("weight", "bias")[part])
            for row, pair in enumerate(self.views)
            for part, view in enumerate(pair)
            if view is not None
        ]

    def span(self, row):
        """The slice of the buffers that belongs to a row."""
        starts = [start for start in self.table[:, network_table.WEIGHT] if start >= 0] + [self.size]
        start = self.table[row, network_table.WEIGHT]
        return slice(int(start), int(starts[starts.index(start) + 1]))

    def like(self, count):
        """Zero-filled buffers of the parameters' shape, for an optimizer's state."""
        return tuple(self.backend.zeros(self.size, self.dtype) for _ in range(count))

    # ------------------------------------------------------------------------- packed copies
    def pack(self, views):
        """One-dimensional copy without padding: layer by layer the weight row by row, then the bias."""
        flat, start = np.empty(self.count, self.dtype), 0
        for view in real(views):
            flat[start : start + view.size].reshape(view.shape)[...] = view
            start += view.size
        return flat

    def unpack(self, flat, views):
        """Write a packed array into the views."""
        start = 0
        for view in real(views):
            view[...] = flat[start : start + view.size].reshape(view.shape)
            start += view.size

    def views_of(self, buffer):
        """(weight, bias) views into another buffer of the parameters' shape."""
        return network_table.parameter_views(self.table, buffer)

    @property
    def count(self):
        """Number of real parameters."""
        return sum(view.size for view in real(self.views))

    def checked_flat(self, argument, value):
        """``value`` as a packed array of all parameters."""
        array = checks.numeric(argument, value)
        checks.shape(argument, array, (self.count,))
        return array


def real(views):
    """The arrays among (weight, bias) views, in order."""
    return [view for pair in views for view in pair if view is not None]


class Parameter:
    """A named weight or bias: a view into the buffers of its network.

    Attributes
    ----------
    name : str
        As in `Sequential.state_dict`, for example ``"0.weight"``.
    data : array
        View of the values; assigning copies in.
    grad : array
        View of the gradient; an error where no gradients are stored.
    """

    def __init__(self, parameters, row, part, name):
        self.network, self._row, self._part, self.name = parameters, row, part, name

    @property
    def data(self):
        return self.network.views[self._row][self._part]

    @data.setter
    def data(self, value):
        assign(self.name, self.data, value)
        self.network.version += 1

    @property
    def grad(self):
        return self.network.gradient_views[self._row][self._part]

    @property
    def shape(self):
        return self.data.shape

    def __repr__(self):
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self.network.dtype})"


def assign(name, view, value):
    """Copy ``value`` into a view of exactly its shape."""
    array = checks.numeric(name, value)
    checks.shape(name, array, view.shape)
    view[...] = array
