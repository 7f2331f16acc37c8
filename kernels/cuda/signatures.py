"""The types of a kernel's arguments: scalars as dtypes, flat arrays, and named tuples of these."""

from typing import NamedTuple

import numpy as np


class Flat(NamedTuple):
    """A flat device array of a dtype; a kernel gets its address."""

    dtype: np.dtype


class Tuple(NamedTuple):
    """A named tuple of a kind; a kernel gets its fields, one after another."""

    kind: type
    fields: tuple
