"""``predict`` from Python on one thread: from a single row, where the call itself counts, to a table."""

from .common import DTYPES, OF_LIMIT, Benchmark, at_fma_limit, clock, grid, ratio


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
