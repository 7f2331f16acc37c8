"""``predict`` from Python on one thread: from a single row, where the call itself counts, to a table."""

import numpy as np

from .common import DTYPES, OF_LIMIT, Benchmark, at_fma_limit, clock, grid, numpy_ratio, ratio


class Predict(Benchmark):
    params = ([1, 32, 4096], grid(["16-64-64-4", "784-256-128-10"], ["2048-2048-2048-1000"]), DTYPES)
    param_names = ("batch", "layers", "dtype")

    def setup(self, batch, layers, dtype):
        super().setup()
        trainer = self.network(f"{layers}@{batch}", 1, dtype)
        self.x, self.weights = trainer.task.x, trainer.weights()
        self.predict = clock(lambda: trainer.model.predict(self.x))

    def track_over_limit(self, batch, layers, dtype):
        flops = 2 * batch * sum(weight.size for weight, _ in self.weights)
        return ratio(self.predict, at_fma_limit(flops, dtype))

    track_over_limit.unit = OF_LIMIT

    def track_ratio_numpy(self, batch, layers, dtype):
        """Against NumPy's products into arrays made before."""
        outputs = [np.empty((batch, len(bias)), dtype) for _, bias in self.weights]

        def numpy_predict():
            x = self.x
            for (weight, bias), out in zip(self.weights, outputs, strict=True):
                if x is not self.x:
                    np.maximum(x, 0, out=x)
                x = np.matmul(x, weight, out=out)
                x += bias

        return numpy_ratio(self.predict, numpy_predict)

    track_ratio_numpy.unit = "ours / NumPy"
