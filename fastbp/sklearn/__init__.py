"""`MLPClassifier` and `MLPRegressor` in the place of scikit-learn's: its arguments, rules and numbers, our kernels.

`MLPSearchCV` searches for their arguments, with all fits side by side.

The arguments, their order and defaults, the fitted attributes, the first weights, the order of rows, the penalty, the
stopping rules and the warnings are those of ``sklearn.neural_network``. The notes of the classes say what differs.
"""

from importlib import import_module

try:
    import_module("sklearn.base")
except ImportError:
    raise ImportError('fastbp.sklearn needs the package scikit-learn: pip install "fastbp[sklearn]"') from None

from .classifier import MLPClassifier
from .regressor import MLPRegressor
from .search import MLPSearchCV

__all__ = ["MLPClassifier", "MLPRegressor", "MLPSearchCV"]
