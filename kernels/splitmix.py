"""Random bits as a function of a counter, the same on every backend.

Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014: SplitMix64.
"""

import numpy as np

GAMMA, MULTIPLIER_1, MULTIPLIER_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFT_1, SHIFT_2, SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def splitmix64(counter):
    """The output for the state ``counter``: uint64, a number or an array."""
    with np.errstate(over="ignore"):
        return mixed(np.asarray(counter, np.uint64))


def mixed(counter):
    """The arithmetic alone, which a backend compiles for one number."""
    z = counter + GAMMA
    z = (z ^ (z >> SHIFT_1)) * MULTIPLIER_1
    z = (z ^ (z >> SHIFT_2)) * MULTIPLIER_2
    return z ^ (z >> SHIFT_3)


def layer_key(step_key, row):
    """The key of a dropout layer, by its row, in a step."""
    with np.errstate(over="ignore"):
        return splitmix64(np.uint64(step_key) + np.uint64(row))


def threshold(probability):
    """``p * 2**64`` as uint64."""
    return np.uint64(min(int(probability * 2.0**64), 2**64 - 1))
