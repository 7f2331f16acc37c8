"""`solver="lbfgs"`: SciPy's L-BFGS-B over all parameters, on all rows at once."""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning

from .. import optimizers
from .steps import Steps


def fit_lbfgs(estimator, X, target, weight):
    """Minimise the loss with its penalty, and keep what the estimator shows of it."""
    model, objective = estimator.model_, estimator._objective()
    steps = Steps(model, objective, optimizers.SGD(lr=1.0))
    steps.give(X, target, weight, estimator.alpha, X.shape[0])
    batch = steps.batch()

    def value_and_gradient(flat):
        model.flat_parameters = flat
        value = steps.gradients(*batch)
        gradient = model.flat_gradients if math.isfinite(value) else np.full(len(flat), math.nan)
        return value, gradient.astype(np.float64) * objective.scale

    def report(intermediate_result):
        print(f"loss = {intermediate_result.fun:.8f}")

    options = {"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol}
    with model.exclusive():
        result = optimize.minimize(
            value_and_gradient, model.flat_parameters.astype(np.float64), method="L-BFGS-B", jac=True,
            options=options, callback=report if estimator.verbose else None,
        )  # fmt: skip
        model.flat_parameters = result.x
        model.network.discard_gradients()
    estimator.n_iter_, estimator.loss_ = min(result.nit, estimator.max_iter), result.fun
    if result.status:
        warnings.warn(
            f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}): {result.message}; "
            f"raise max_iter={estimator.max_iter} or max_fun={estimator.max_fun}, or scale the data",
            ConvergenceWarning,
            stacklevel=4,
        )
