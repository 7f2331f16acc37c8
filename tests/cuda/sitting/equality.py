"""Runs that must be equal to the bit, and arrays of more elements than 32 bits count."""

import numpy as np

from .tools import RUNS, network

LARGE = 2**31 + 2**20  # elements of an array, more than 32 bits with a sign count
COLUMNS = 1 << 16  # of a product of that size
LARGE_BYTES = 24 << 30  # free memory that the large sizes take


def equal():
    """Runs from the same seed are equal to the bit, whatever makes the steps; a wide network learns as on the CPU."""
    import fastbp
    from fastbp.kernels import cuda

    rng = np.random.default_rng(0)
    for widths, batch in (((32, 64, 64, 8), 256), ((256, 512, 512, 8), 256), ((33, 300, 8), 77)):
        X = rng.standard_normal((1000, widths[0]), dtype=np.float32)
        y = rng.integers(0, widths[-1], len(X))
        outcomes = set()
        for _ in range(RUNS):
            model = network(widths)
            history = model.fit(
                X, y, loss=fastbp.CrossEntropyLoss(), optimizer=fastbp.Adam(lr=1e-3), epochs=3, batch_size=batch,
                verbose=False,
            )  # fmt: skip
            outcomes.add((model.flat_parameters.tobytes(), model.predict(X).tobytes(), str(history["loss"])))
        assert len(outcomes) == 1, f"{len(outcomes)} different results of {RUNS} runs of {widths}"
        print(f"{widths} @ {batch}: {RUNS} equal runs")
    X = rng.standard_normal((512, 4096), dtype=np.float32)
    y, losses = rng.integers(0, 10, len(X)), []
    for device in ("cpu", "cuda"):
        model = fastbp.Sequential(
            fastbp.Linear(4096, 4096), fastbp.ReLU(), fastbp.Linear(4096, 10), device=device, seed=0
        )
        options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.SGD(lr=0.01)}
        losses.append(model.fit(X, y, **options, epochs=2, batch_size=128, verbose=False)["loss"])
    difference = float(np.abs(np.subtract(*losses)).max())
    assert difference < 1e-4, losses
    cuda.synchronize()
    print(f"4096-4096-10 @ 128: losses of CPU and GPU differ by {difference:.1e}")


def large():
    """Arrays of more than 2**31 elements: their last elements are right."""
    import fastbp
    from fastbp.kernels import cuda, layout

    free = cuda.memory.free_memory()
    if free < LARGE_BYTES:
        print(f"left out: {free / 2**30:.0f} GiB are free, and {LARGE_BYTES / 2**30:.0f} are needed")
        return
    rng, relu = np.random.default_rng(0), layout.ACTIVATIONS.index("relu")
    last = rng.standard_normal(1000).astype(np.float32)

    values = cuda.empty((1, LARGE), np.float32)
    cuda.memory.to_device(last, cuda.memory.flat(values)[LARGE - 1000 :])
    cuda.activation_forward(values, relu, 0.0, values)
    np.testing.assert_array_equal(cuda.to_host(cuda.memory.flat(values)[LARGE - 1000 :]), np.maximum(last, 0))
    del values
    print("activation: right")

    columns = COLUMNS
    rows = LARGE // columns + 1
    x, weight = rng.standard_normal((rows, 8), dtype=np.float32), rng.standard_normal((8, columns), dtype=np.float32)
    out = cuda.empty((rows, columns), np.float32)
    cuda.linear_forward(cuda.to_device(x), cuda.to_device(weight), None, relu, 0.0, out, out)
    found = cuda.to_host(cuda.memory.flat(out)[(rows - 1) * columns :])
    np.testing.assert_allclose(found, np.maximum(x[-1] @ weight, 0), rtol=1e-5, atol=1e-5)
    del out
    print("product: right")

    features = 64
    rows = LARGE // features
    X, tail = cuda.empty((rows, features), np.int8), rng.integers(-9, 9, (500, features), dtype=np.int8)
    cuda.memory.to_device(tail.reshape(-1), cuda.memory.flat(X)[(rows - 500) * features :])
    model = network((features, 16, 3))
    workspace = cuda.InferenceWorkspace(model.program, model.dtype)
    out = cuda.empty((rows, 3), np.float32)
    cuda.network_forward(workspace, model.network.values, model.network.statistics, X, out)
    np.testing.assert_array_equal(cuda.to_host(out[rows - 500 :]), model.predict(tail))
    print("predict: right")

    y, other = rng.integers(0, 3, 500), network((features, 16, 3))
    labels = cuda.empty(rows, np.int64)
    cuda.memory.to_device(y, labels[rows - 500 :])
    optimizer = fastbp.SGD(lr=0.1)
    expected = other.fit(
        tail, y, loss=fastbp.CrossEntropyLoss(), optimizer=optimizer, shuffle=False, batch_size=500, verbose=False
    )
    loss, hits = np.zeros(1), np.zeros(1, np.int64)
    arguments = layout.LOSSES.index("cross_entropy"), 0.0, layout.OPTIMIZERS.index("sgd")
    workspace = cuda.TrainingWorkspace(model.program, model.dtype, 500, *arguments)
    done = cuda.network_train_steps(
        workspace, model.network.values, model.network.statistics, (), optimizer.coefficients(0, 1),
        np.zeros(1, np.uint64), X, labels, None, np.arange(rows - 500, rows), 500, loss, hits,
    )  # fmt: skip
    assert (done, loss[0]) == (1, expected[0]["loss"])
    assert model.flat_parameters.tobytes() == other.flat_parameters.tobytes()
    print("steps: right")
