"""Shapes at the limits of the blocks of a step: very wide inputs and outputs, large and tiny batches."""

import numpy as np
import pytest

import fastbp

# Inputs and outputs that make the largest blocks of gradient, with and without padded rows.
SHAPES = [(40_000, 17), (40_000, 1), (33_000, 16), (3, 5_000), (20_000, 33), (700, 4_097), (1, 1)]


@pytest.mark.parametrize("rows", [1, 9, 600])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_at_the_limits_of_its_blocks(shape, rows):
    fan_in, fan_out = shape
    if fan_in * fan_out * rows > 5e8:
        pytest.skip("the reference would take too long")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, fan_in)), rng.standard_normal((rows, fan_out))
    after = []
    for device in ("reference", "cpu"):
        model = fastbp.Sequential(fastbp.Linear(fan_in, fan_out), dtype="float64", device=device, seed=1)
        model.train_step(x, y, fastbp.HalfSquaredErrorLoss(), fastbp.SGD(lr=0.1))
        after.append(model.flat_parameters)
    np.testing.assert_allclose(after[1], after[0], rtol=0, atol=1e-12 * np.abs(after[0]).max())
