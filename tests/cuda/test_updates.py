"""The update of the arrays of a table: parts of gradients in their order, and where arrays lie; to the bit.

In the simulator, on the emulated GPU or on a GPU; that which stores factors not in the simulator.
"""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install fastbp[cuda]")

from fastbp.kernels import layout
from fastbp.kernels.cuda import driver, memory, optimizers, panels, parameters, record, streams
from fastbp.kernels.program import Array

from .test_gemm import runs

pytestmark = pytest.mark.skipif(not runs(), reason="needs a GPU, or the simulator: NUMBA_ENABLE_CUDASIM=1")

# Rows, columns and leading dimension of weights, the numbers of a bias; and how many parts each has its gradient in.
SHAPES = ((7, 70, 80), 9), ((90,), 3), ((33, 5, 5), 1), ((70, 2, 16), 2), ((6,), 1)


class Task:
    """Arrays among parameters, of which all else is NaN, and their gradients, as the update finds both.

    Gradient descent of rate 1 subtracts the gradient, and rounds once.
    """

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        self.arrays, self.places, offset = [], {}, 16
        for row, (shape, _) in enumerate(SHAPES):
            *shape, ld = (*shape, *shape)[-3:] if len(shape) == 1 else shape
            self.arrays.append(Array(row, "any", offset, tuple(shape), ld))
            offset += self.length(row) + 3
        values, expected = np.full((2, offset), np.nan, dtype)
        gradients = [np.full(offset, np.nan, dtype)]
        for array, (_, parts) in zip(self.arrays, SHAPES, strict=True):
            each, here = np.zeros((parts, self.length(array.row) + 1), dtype), array._replace(offset=0)
            array.view(values)[...] = rng.standard_normal(array.shape)
            total = -0.0
            for part in each:
                here.view(part)[...] = rng.standard_normal(array.shape)
                total = total + here.view(part)
            array.view(expected)[...] = array.view(values) - total
            if parts == 1:
                array.view(gradients[0])[...] = total
            else:
                each[:, -1] = np.nan
                start = sum(array.size for array in gradients)
                self.places[array.offset] = parameters.Gradient(start, parts, each.shape[1])
                gradients.append(each.ravel())
        self.values, self.expected = memory.to_device(values), expected
        coefficients = np.zeros((1, layout.COEFFICIENTS))
        coefficients[0, 0] = 1
        given = record.of_one_step(coefficients), self.values, memory.to_device(np.concatenate(gradients))
        self.given = *given, (), streams.stream()

    def length(self, row):
        """Elements of an array with what pads it."""
        array = self.arrays[row]
        return (array.shape[0] if len(array.shape) == 2 else 1) * array.ld

    def check(self):
        np.testing.assert_array_equal(memory.to_host(self.values), self.expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_are_added_up_in_their_order(dtype):
    task = Task(dtype)
    *given, state, stream = task.given
    optimizers.update("sgd", optimizers.table(task.arrays, task.places), *given, state, stream)
    task.check()


def test_blocks_go_from_tile_to_tile(monkeypatch):
    """And from array to array, some without a tile of one between."""
    monkeypatch.setattr(parameters, "multiprocessors", lambda: 1)
    monkeypatch.setattr(parameters, "WAVES", 5)
    test_parts_are_added_up_in_their_order("float32")


@pytest.mark.skipif(driver.simulated, reason="there products read no stored factors")
@pytest.mark.parametrize("precision", panels.FORMS)
def test_parts_where_factors_are_stored(precision, monkeypatch):
    """To the same bits; that factors are those of the new weights test_factors.py sees."""
    monkeypatch.setattr(parameters, "multiprocessors", lambda: 1)
    monkeypatch.setattr(parameters, "WAVES", 2)
    task = Task("float32")
    *given, state, stream = task.given
    table, factors = panels.table(task.arrays, task.places, {}), memory.empty(1, np.int32)
    panels.update("sgd", precision, table, *given, state, factors, stream)
    task.check()
