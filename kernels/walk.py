"""The walk in Python: a batch through the instructions of a program, by the functions of any backend.

`reference` trains and predicts by it, and so do loops of the user's own on every device. An instruction is a call of
the function of the contract that bears its name.
"""

import numpy as np

from .program import AT_RUN, BY_ROWS, CONSTANT, GRADIENTS, INPUT, INPUT_GRADIENT, WRITTEN, leaves_sums
from .splitmix import layer_key


def views_in(kind, arrays, buffer):
    """The arrays that lie in a whole buffer, by the place that operands name."""
    return {(kind, array.offset): array.view(buffer) for array in arrays}


class Walk:
    """A batch on its way through a listing, with what instructions leave for others.

    Parameters
    ----------
    kernels : module
        A backend.
    listing : program.Listing
    whole : dict
        The parameters and statistics, as `views_in` finds them.
    x : array (n, in)
    empty : function (shape, dtype) -> array
        Makes what instructions write.
    across : function (operation, values), optional
        Called with the arguments of an instruction that has left sums over the rows of the batch for others: it adds
        those of rows that are elsewhere.
    **at_run
        What else an instruction takes: ``key``, random bits of the step; ``loss`` and ``loss_parameter``.
    """

    def __init__(self, kernels, listing, whole, x, empty, across=None, **at_run):
        self.kernels, self.listing, self.empty, self.across = kernels, listing, empty, across
        self.rows, self.dtype = len(x), x.dtype
        self.arrays = whole | {(INPUT, 0): x}
        self.given = {(INPUT, 0)}  # arrays of the caller, which are not written
        self.at_run = {"beta": 0, "key": 0} | at_run

    def give(self, buffer, array):
        """Let operands of a buffer of one array be this one."""
        self.arrays[buffer, 0] = array

    @property
    def prediction(self):
        """The output of the network."""
        return self._array(self.listing.prediction)

    def _array(self, operand):
        return self.arrays[operand.buffer, operand.offset]

    def forward(self):
        """Up to the prediction."""
        self._run(0, self.listing.loss)
        return self.prediction

    def loss(self):
        """The loss of the rows and its gradient, of the target that was given."""
        self._run(self.listing.loss, self.listing.loss + 1)

    def start_back(self, grad):
        """Begin the way back with this gradient of the prediction."""
        self.arrays = {
            place: array for place, array in self.arrays.items() if place[0] not in (GRADIENTS, INPUT_GRADIENT)
        }  # those of a way back before have been handed out
        operand = self.listing.prediction_gradient
        self.arrays[operand.buffer, operand.offset] = grad
        self.given.add((operand.buffer, operand.offset))

    def back(self):
        """From the gradient of the prediction to those that the parameters' gradients take."""
        self._run(self.listing.loss + 1, self.listing.weights)

    def parameter_gradients(self, whole, beta):
        """Gradients of the parameters into these arrays, added to what they hold where ``beta`` is 1."""
        self.arrays |= whole
        self.at_run["beta"] = beta
        self._run(self.listing.weights, self.listing.statistics)
        self.at_run["beta"] = 0

    def update_statistics(self):
        """Let the running statistics learn from the batch."""
        self._run(self.listing.statistics, self.listing.updated)

    def input_gradient(self):
        """What is left of the way back."""
        self._run(self.listing.updated, len(self.listing.calls))
        return self._array(self.listing.input_gradient)

    def _run(self, first, end):
        for operation, arguments in self.listing.calls[first:end]:
            values = [self._value(kind, what) for kind, what in arguments]
            getattr(self.kernels, operation)(*values)
            if self.across is not None and leaves_sums(arguments):
                self.across(operation, values)

    def _value(self, kind, what):
        if kind == CONSTANT:
            return what
        if kind == AT_RUN:
            name, number = what
            return int(layer_key(self.at_run[name], number).view(np.int64)) if name == "key" else self.at_run[name]
        buffer, offset, columns = what
        array = self.arrays.get((buffer, offset))
        if kind == WRITTEN and (array is None or (buffer, offset) in self.given):
            shape = (self.rows, columns) if buffer < BY_ROWS else (columns,)
            array = self.arrays[buffer, offset] = self.empty(shape, self.dtype)
            self.given.discard((buffer, offset))
        return array
