"""Whether ours and a peer give the same: before anything is timed, they must."""

import numpy as np

from .clocks import Clock
from .measure import Rival

# Largest difference of two updates, relative to their size. In the first step of Adam a gradient of
# about eps moves its weight by a good part of lr, so rounding errors in those few show (2e-2 on S7).
UPDATE_TOLERANCE = {"float32": 5e-2, "float64": 1e-6}
# Beside those of another precision: the gradients that change their sign move a weight by twice lr.
ROUNDED_UPDATE_TOLERANCE = 0.5
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of results, relative to the largest
# Of results beside those of another precision's units: of the largest, whose sums have thousands of rounded products.
PRECISION_TOLERANCE = {"tf32": 2e-3, "bf16": 2e-2, "bf16x3": 2e-4}


def update_difference(before, after, theirs) -> float:
    """Size of the difference of two updates of the same weights, relative to ours."""
    before, after, theirs = (
        np.concatenate([array.ravel() for pair in weights for array in pair]).astype(np.float64)
        for weights in (before, after, theirs)
    )
    return float(np.linalg.norm(theirs - after) / np.linalg.norm(after - before))


def largest_difference(found, expected) -> float:
    """Largest difference of two arrays, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_same(what, difference, tolerance, of):
    """Refuse a peer whose result is another one."""
    if not difference <= tolerance:
        raise ValueError(
            f"{what} from the same values differs from ours by {difference:.1e} of {of} "
            f"(expected at most {tolerance:.0e}): not the same mathematics"
        )


def checked_rival(what, operation, expected, protocol, target=None) -> Rival:
    """A peer's operation, once it has given what ours gives."""
    found = np.asarray(operation.call(), np.float64)
    difference = largest_difference(found, expected)
    check_same(what, difference, TOLERANCE[protocol.dtype], "the largest value")
    return Rival(Clock(operation.call), operation.version, operation.how, target, {"difference": difference})
