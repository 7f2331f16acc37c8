"""That speed is not bought with mistakes: digits after a fixed budget, and the distance to the reference."""

import numpy as np

from .common import Benchmark, Public, grid, require


class Digits(Public):
    """Digits not recognised, of those not seen, after 20 epochs; seeded, so a change is a change of the numbers."""

    params = grid(["relu"], ["tanh", "sigmoid"])
    param_names = ("activation",)
    unit = "%"

    def setup(self, activation):
        super().setup()
        x, y = require("sklearn.datasets", "load_digits")(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        self.x, self.y = (x / 16)[order], y[order]
        self.layer = {"relu": self.fastbp.ReLU, "tanh": self.fastbp.Tanh, "sigmoid": self.fastbp.Sigmoid}[activation]

    def track_mistakes(self, activation):
        bp, unseen = self.fastbp, slice(1437, None)
        wrong = []
        for seed in range(3):
            model = bp.Sequential(bp.Linear(64, 128), self.layer(), bp.Linear(128, 10), seed=seed)
            model.fit(
                self.x[:1437], self.y[:1437], loss=bp.CrossEntropyLoss(), optimizer=bp.Adam(lr=3e-3),
                epochs=20, batch_size=64, verbose=False,
            )  # fmt: skip
            wrong.append(model.predict(self.x[unseen]).argmax(axis=1) != self.y[unseen])
        return 100 * float(np.mean(wrong))


class Error(Benchmark):
    """Largest difference to the reference in float64 from the same weights, in units of eps times the largest value."""

    params = (["64-128-10@64", *grid([], ["784-512-512-10@256"])], ["float32", "float64"])
    param_names = ("shape", "dtype")
    unit = "eps"

    def setup(self, shape, dtype):
        super().setup()
        self.ours, self.exact = self.network(shape, 4, dtype), self.network(shape, 4, "float64", "reference")
        self.x, self.y = self.ours.task.x, self.ours.task.y
        self.exact.model.flat_parameters = self.ours.model.flat_parameters

    def distance(self, ours, exact, dtype):
        return float(np.abs(ours - exact).max() / np.abs(exact).max() / np.finfo(dtype).eps)

    def track_predict(self, shape, dtype):
        return self.distance(self.ours.model.predict(self.x), self.exact.model.predict(self.x), dtype)

    def track_gradient(self, shape, dtype):
        for trainer in (self.ours, self.exact):
            _, gradient = trainer.loss(trainer.model(self.x), self.y)
            trainer.model.backward(gradient)
        return self.distance(self.ours.model.flat_gradients, self.exact.model.flat_gradients, dtype)
