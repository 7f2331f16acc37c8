"""The optimizer of an estimator, and what its policy makes of the learning rate."""

from __future__ import annotations

import math

from .. import optimizers

LEAST_RATE = 1e-6  # where learning_rate="adaptive" ends


class Adam(optimizers.Adam):
    """Adam with epsilon beside ``√v`` itself, before the bias correction."""

    def _fill(self, columns, lr, t):
        super()._fill(columns, lr, t)
        columns[5] = self.eps


class Rate:
    """The optimizer of an estimator, and what its policy makes of the learning rate.

    The velocities of scikit-learn hold learning rates, ours do not: where the rate changes, they are scaled.
    """

    def __init__(self, estimator):
        self.policy = "constant" if estimator.solver == "adam" else estimator.learning_rate
        self.first, self.power = float(estimator.learning_rate_init), estimator.power_t
        if estimator.solver == "adam":
            betas = estimator.beta_1, estimator.beta_2
            self.optimizer = Adam(lr=self.first, betas=betas, eps=estimator.epsilon)
        else:
            momentum = min(estimator.momentum, math.nextafter(1.0, 0.0))  # our optimizers want it below 1
            nesterov = bool(estimator.nesterovs_momentum and momentum)
            self.optimizer = optimizers.SGD(lr=self.first, momentum=momentum, nesterov=nesterov)

    @property
    def learning_rate(self):
        return self.optimizer.lr

    def change(self, rate):
        optimizer = self.optimizer
        for velocity in optimizer.state:
            optimizer.network.backend.scale(velocity, optimizer.lr / rate, velocity)
        optimizer.lr = rate

    def epoch_ended(self, rows_seen):
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
