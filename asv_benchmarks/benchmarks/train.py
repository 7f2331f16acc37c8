"""Train steps: an epoch of ``fit`` divided by its batches, everything included, and the memory that it takes."""

import numpy as np

from .common import DTYPES, OF_LIMIT, Benchmark, grid, require


class Step(Benchmark):
    """A step with Adam, as a multiple of the time its products take at the limit, one thread."""

    params = (grid(["S1", "S2", "S3", "S4"], ["S5", "S6", "S7", "S8", "S9", "513-257-129-11@77"]), DTYPES)
    param_names = ("shape", "dtype")
    unit = OF_LIMIT

    def track_fit(self, shape, dtype):
        result = self.compared(shape, dtype)
        return 1 / result["fraction_of_limit"] if result else float("nan")

    def track_train_step(self, shape, dtype):
        """The same, one call from Python a step."""
        result = self.compared(shape, dtype)
        return result["also_us"]["train_step"] / result["floor_us"] if result else float("nan")


class Memory(Benchmark):
    """The largest resident size of a process that trains, interpreter, data and kernels included."""

    params = grid(["S2", "S4"], ["S6", "S8"])
    param_names = ("shape",)

    def setup_cache(self):
        """Compile in another process: the compiler's memory is not training's."""
        require("fastbp").warmup(
            "float32", activations=["identity", "relu"], losses=["cross_entropy"], optimizers=["adam"]
        )

    def setup(self, shape):
        super().setup()
        self.trainer = self.network(shape, 16, "float32")

    def peakmem_fit(self, shape):
        self.trainer.train()


class MappedMemory(Benchmark):
    """The same with the data in a file of 256 MiB, mapped: pages of the file count while they are resident."""

    def setup_cache(self):
        Memory.setup_cache(self)
        x = np.lib.format.open_memmap("x.npy", "w+", np.float32, (65_536, 1024))
        x[...] = np.random.default_rng(0).random(x.shape[1], np.float32)
        x.flush()

    def setup(self):
        super().setup()
        self.x = np.load("x.npy", mmap_mode="r")
        self.model = require("fastbp.bench.trainer", "network")((1024, 64, 10), "relu", "float32", "cpu")

    def peakmem_fit_memmap(self):
        bp, y = self.fastbp, np.arange(len(self.x)) % 10
        loss, adam = bp.CrossEntropyLoss(), bp.Adam(lr=1e-3)
        self.model.fit(self.x, y, loss=loss, optimizer=adam, epochs=1, batch_size=256, verbose=False)
