"""Whether kernels run at all: the machine, a call of every kind of kernel, and the kernels on disk."""

import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np


def machine():
    """The GPU and what it runs with."""
    import fastbp

    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], check=False)
    fastbp.show_config("cuda")


# ---------------------------------------------------------------------------------------------- smoke
def _layer(shape, precision):
    """A linear layer there and back: the three products and the column sums."""
    from fastbp.kernels import layout

    n, fan_in, fan_out = shape
    gelu, relu = (layout.ACTIVATIONS.index(name) for name in ("gelu", "relu"))

    def run(kernels):
        rng = np.random.default_rng(0)
        x, weight, grad_z, bias = (
            rng.standard_normal(size, dtype=np.float32)
            for size in ((n, fan_in), (fan_in, fan_out), (n, fan_out), (fan_out,))
        )
        out, saved, grad_x, grad_weight, grad_bias = map(np.zeros_like, (grad_z, grad_z, x, weight, bias))
        kernels.linear_forward(x, weight, bias, gelu, 0.0, out, saved, precision)
        kernels.linear_backward_input(grad_z, weight, x, relu, 0.0, grad_x, precision)
        kernels.linear_backward_params(x, grad_z, 0, grad_weight, grad_bias, precision)
        return out, saved, grad_x, grad_weight, grad_bias

    return run


def _elementwise(kernels):
    from fastbp.kernels import layout

    x = np.random.default_rng(0).standard_normal((33, 70), dtype=np.float32)
    forward, backward, probabilities, dropped = (np.zeros_like(x) for _ in range(4))
    tanh = layout.ACTIVATIONS.index("tanh")
    kernels.activation_forward(x, tanh, 0.0, forward)
    kernels.activation_backward(x, forward, tanh, 0.0, backward)
    kernels.softmax(x, probabilities)
    kernels.dropout(x, np.arange(33), 7, 0.5, dropped)
    return forward, backward, probabilities, dropped


def _loss(kernels):
    from fastbp.kernels import layout

    rng = np.random.default_rng(0)
    prediction, labels = rng.standard_normal((33, 10), dtype=np.float32), rng.integers(0, 10, 33)
    loss, hit, grad = np.zeros(33, np.float32), np.zeros(33, np.int64), np.zeros_like(prediction)
    code = layout.LOSSES.index("cross_entropy")
    kernels.loss_forward_backward(code, 0.1, prediction, labels, np.full(33, 1 / 33), loss, hit, grad)
    return loss, hit, grad


def _update(kernels):
    from fastbp.kernels import layout

    values, grad, first = np.random.default_rng(0).standard_normal((3, 999), dtype=np.float32)
    second = np.abs(first)
    coefficients = np.zeros(layout.COEFFICIENTS)
    coefficients[:6] = 1e-3, 0.9, 0.1, 0.999, 1e-3, 1e-8
    kernels.optimizer_step(layout.OPTIMIZERS.index("adam"), coefficients, values, grad, (first, second))
    return values, first, second


def _buffers(kernels):
    """What is done to whole buffers, and rows that are gathered."""
    import fastbp

    model = fastbp.Sequential(fastbp.Linear(6, 16), fastbp.Linear(16, 3), device="reference", seed=0)
    places, values = model.network.program.places, model.network.values
    scaled, copied, cleared = np.zeros_like(values), np.zeros_like(values), values.copy()
    x = np.random.default_rng(0).standard_normal((20, 6), dtype=np.float32)
    gathered = np.zeros((5, 6), np.float32)
    kernels.scale(values, 0.5, scaled)
    kernels.copy(values, copied)
    kernels.clear(cleared)
    kernels.gather(x, np.arange(10)[::2].copy(), gathered)
    norm, finite = kernels.squared_norm(places, values), kernels.all_finite(places, values)
    return scaled, copied, cleared, gathered, np.float64(norm), np.int64(finite)


def _training(in_one_kernel):
    """Losses and predictions of a small network, its steps in one kernel or in a captured graph."""

    def run(kernels):
        import fastbp
        from fastbp.kernels.cuda import steps

        on_gpu = kernels.name == "cuda"
        suits, steps.suits = steps.suits, lambda workspace, n: in_one_kernel
        try:
            rng = np.random.default_rng(0)
            X, y = rng.standard_normal((50, 6), dtype=np.float32), rng.integers(0, 3, 50)
            layers = fastbp.Linear(6, 16), fastbp.ReLU(), fastbp.Dropout(0.2), fastbp.Linear(16, 3)
            model = fastbp.Sequential(*layers, device="cuda" if on_gpu else "reference", seed=0)
            options = {"loss": fastbp.CrossEntropyLoss(), "optimizer": fastbp.Adam(lr=0.01)}
            history = model.fit(X, y, **options, epochs=2, batch_size=12, verbose=False)
        finally:
            steps.suits = suits
        return np.array(history["loss"]), model.predict(X)

    return run


def smoke():
    """One call of every kind of kernel gives what `reference` gives."""
    from fastbp.kernels import cuda, reference
    from tests.contract.host_arrays import HostArrays

    cases = {"elementwise": _elementwise, "loss": _loss, "optimizer": _update, "buffers": _buffers}
    for code, precision in enumerate(cuda.precisions(np.float32)):
        cases[f"layer {precision}, 16-byte rows"] = _layer((36, 20, 24), code)
        cases[f"layer {precision}, odd rows"] = _layer((35, 21, 23), code)
        cases[f"layer {precision}, rows in parts"] = _layer((600, 20, 24), code)
    cases |= {"training, graph": _training(False), "training, one kernel": _training(True)}
    wrong = []
    for name, case in cases.items():
        start = time.perf_counter()
        try:
            found = case(HostArrays(cuda))
            seconds = time.perf_counter() - start
            difference = 0.0
            for one, other in zip(found, case(reference), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
                difference = max(difference, float(np.abs(one - other).max()))
            print(f"{name}: right, to {difference:.0e}, in {seconds:.1f} s", flush=True)
        except Exception as error:
            wrong.append(name)
            traceback.print_exc()
            print(f"{name}: WRONG, {' '.join(str(error).split())[:150]}", flush=True)
    files = list(Path(os.environ.get("FASTBP_CACHE_DIR", "/nowhere")).rglob("*.kernel"))
    print(f"{len(files)} kernels on disk", flush=True)
    if wrong:
        sys.exit(f"wrong: {'; '.join(wrong)}")


def again():
    """A second process finds every kernel of `smoke` on disk, and the driver takes it."""
    folder = Path(os.environ["FASTBP_CACHE_DIR"])
    before = set(folder.rglob("*.kernel"))
    start = time.perf_counter()
    smoke()
    more = {path.name for path in folder.rglob("*.kernel")} - {path.name for path in before}
    print(f"all of smoke from disk: {len(more)} compiled, {time.perf_counter() - start:.1f} s")
    if more:
        sys.exit(f"compiled again: {', '.join(sorted(more))[:300]}")


# ------------------------------------------------------------------------------------------- warming
WARMED = {  # activations, losses and optimizers of the parts in these files and of the comparisons
    "identity", "relu", "gelu", "tanh", "cross_entropy", "mean_squared_error", "adam", "sgd",
}  # fmt: skip


def needed():
    """What of the catalogue these parts launch; a kernel of steps.py is compiled by the network that needs it."""
    from fastbp.kernels.cuda import catalogue

    known = catalogue.kernels([np.float32])
    return [one for one in known if one.part in {None, *WARMED} and not one.name.startswith("steps")]


def warm():
    """Compile what the parts below need, a process a core, so that they find it on disk; tests compile the rest."""
    from fastbp.kernels.cuda import ahead, driver

    driver.require()
    kernels = [kernel.function for kernel in needed()]
    ahead.compile_all(kernels)
    print(f"{len(list(Path(os.environ['FASTBP_CACHE_DIR']).rglob('*.kernel')))} kernels on disk")
    for kernel in kernels:  # of one that could not be compiled, the error
        kernel.compile()
