"""Tables: reading them, and what their columns go through before a network sees them.

A room of its own: ``fastbp.load`` imports it for the file of a run, and the commands do. scikit-learn and pyarrow are
imported where something is learned or read; a model of numbers predicts without both.
"""

from .arrow import from_frame
from .learning import Learned, again, learn, strata
from .predictor import Predictor
from .preprocessing import Lacks, Preprocessing
from .reading import read
from .stored import Stored, stays_in_its_file
from .table import PARTS, Column, Table, from_columns, split
from .target import Target
from .text import Dialect

__all__ = [
    "PARTS",
    "Column",
    "Dialect",
    "Lacks",
    "Learned",
    "Predictor",
    "Preprocessing",
    "Stored",
    "Table",
    "Target",
    "again",
    "from_columns",
    "from_frame",
    "learn",
    "read",
    "split",
    "stays_in_its_file",
    "strata",
]
