"""The optimizer of an estimator, and what its policy makes of the learning rate.

A loss of the kernels is a mean over all elements, scikit-learn's gradients are of the sum over outputs. So gradients
count ``scale`` times: for SGD that is a factor of the learning rate, for Adam, which divides by their size, one by
which epsilon, beside ``√v`` before the bias correction as theirs, is divided.
"""

from __future__ import annotations

import math
from typing import Any

from .. import optimizers

LEAST_RATE = 1e-6  # where learning_rate="adaptive" ends


class SGD(optimizers.SGD):
    """Stochastic gradient descent whose gradients count ``scale`` times."""

    scale = 1.0

    def _fill(self, columns, lr, t):
        super()._fill(columns, lr * self.scale, t)

    def json_config(self) -> dict[str, Any]:
        """Of the optimizer of the library that makes the same steps, whose rate is ``scale`` times this one's.

        Where that is a schedule and the scale is not 1, there is none: files keep None, as of any other function.
        """
        if self.scale == 1:
            return super().json_config()
        return super().json_config() | {"lr": None if callable(self.lr) else self.lr * self.scale}


class Rate:
    """An optimizer and the policy of its learning rate.

    The velocities of scikit-learn hold learning rates, ours do not: where the rate changes, they are scaled.
    """

    def __init__(self, estimator, scale):
        adam, schedule = estimator.solver == "adam", callable(estimator.learning_rate)
        self.policy = "constant" if adam or schedule else estimator.learning_rate
        self.first, self.power = float(estimator.learning_rate_init), estimator.power_t
        lr = estimator.learning_rate if schedule else self.first
        clip = None if estimator.max_grad_norm is None else estimator.max_grad_norm / scale
        if adam:
            betas = estimator.beta_1, estimator.beta_2
            self.optimizer = optimizers.Adam(
                lr=lr, betas=betas, eps=estimator.epsilon / scale, clip_norm=clip, eps_corrected=False
            )
        else:
            momentum = min(estimator.momentum, math.nextafter(1.0, 0.0))  # our optimizers want it below 1
            nesterov = bool(estimator.nesterovs_momentum and momentum)
            self.optimizer = SGD(lr=lr, momentum=momentum, nesterov=nesterov, clip_norm=clip)
            self.optimizer.scale = float(scale)

    @property
    def learning_rate(self):
        """That of the last update; of the first one before it."""
        optimizer = self.optimizer
        return optimizer.lr(max(optimizer.step_count - 1, 0)) if callable(optimizer.lr) else optimizer.lr

    def change(self, rate):
        """Set the learning rate."""
        optimizer = self.optimizer
        for velocity in optimizer.state:
            optimizer.network.backend.scale(velocity, optimizer.lr / rate, velocity)
        optimizer.lr = rate

    def epoch_ended(self, rows_seen):
        """Follow ``"invscaling"``."""
        if self.policy == "invscaling":
            self.change(self.first / (rows_seen + 1) ** self.power)

    def after_no_improvement(self):
        """What is done about it, and whether training ends."""
        if self.policy != "adaptive":
            return "Stopping.", True
        if self.learning_rate <= LEAST_RATE:
            return "Learning rate too small. Stopping.", True
        self.change(self.learning_rate / 5)
        return f"Setting learning rate to {self.learning_rate:f}", False
