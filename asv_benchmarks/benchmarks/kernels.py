"""Single kernels of the contract on one thread, against the limit of multiply-adds or the speed of memory."""

import numpy as np

from .common import (
    DTYPES,
    OF_LIMIT,
    Benchmark,
    at_fma_limit,
    at_memory,
    buffer,
    clock,
    code,
    grid,
    numpy_ratio,
    rate,
    ratio,
)  # fmt: skip

PRODUCTS = ["forward (NN)", "backward_input (NT)", "backward_params (TN)"]
OTHER_LOSSES = [
    "half_squared_error", "soft_cross_entropy", "l1", "huber",
    "binary_cross_entropy", "binary_cross_entropy_with_logits",
]  # fmt: skip


class Product(Benchmark):
    """The products of a layer: ``act(X W + b)``, ``(dZ W^T) * act'``, ``X^T dZ`` with its column sums.

    Without an epilogue they are the plain gemm NN, NT and TN of the layer's sizes.
    """

    params = (
        PRODUCTS,
        ["plain", "bias and ReLU"],
        grid(["64-128@64", "256-256@256", "784-256@128"], ["784-128@64", "128-10@128", "1024-1024@256", "513-257@77"]),
        DTYPES,
    )
    param_names = ("product", "epilogue", "layer", "dtype")

    def setup(self, product, epilogue, layer, dtype):
        super().setup()
        (fan_in, fan_out), _, batch = self.shape(layer)
        rng = np.random.default_rng(0)
        shapes = (batch, fan_in), (fan_in, fan_out), (batch, fan_out), (fan_out,)
        (x, weight, z, bias), (grad_x, grad_weight, grad_z, grad_bias) = (
            [buffer(rng, shape, dtype) for shape in shapes] for _ in range(2)
        )
        activation = code("ACTIVATIONS", "relu"), 0.0
        if epilogue == "plain":
            activation, bias, grad_bias = (code("ACTIVATIONS", "identity"), 0.0), None, None
        kernels = self.kernels
        ours, self.numpy = {
            PRODUCTS[0]: (
                lambda: kernels.linear_forward(x, weight, bias, *activation, z, z),
                lambda: np.matmul(x, weight, out=z),
            ),
            PRODUCTS[1]: (
                lambda: kernels.linear_backward_input(grad_z, weight, x, *activation, grad_x),
                lambda: np.matmul(grad_z, weight.T, out=grad_x),
            ),
            PRODUCTS[2]: (
                lambda: kernels.linear_backward_params(x, grad_z, 0, grad_weight, grad_bias),
                lambda: np.matmul(x.T, grad_z, out=grad_weight),
            ),
        }[product]
        self.ours, self.flops = clock(ours), 2 * batch * fan_in * fan_out

    def track_over_limit(self, product, epilogue, layer, dtype):
        return ratio(self.ours, at_fma_limit(self.flops, dtype))

    track_over_limit.unit = OF_LIMIT

    def track_gflops(self, product, epilogue, layer, dtype):
        return rate(self.ours, self.flops)

    track_gflops.unit = "GFLOP/s"

    def track_ratio_numpy(self, product, epilogue, layer, dtype):
        """Against NumPy's product alone, without an epilogue."""
        return numpy_ratio(self.ours, self.numpy)

    track_ratio_numpy.unit = "ours / NumPy"


class Elementwise(Benchmark):
    """Kernels that visit each element once; what one costs is counted in multiply-adds at the limit."""

    unit = "multiply-adds an element"
    shape_of_array = 128, 512

    def setup(self, dtype):
        super().setup()
        rng = np.random.default_rng(0)
        self.x, self.y, self.out = (buffer(rng, self.shape_of_array, dtype) for _ in range(3))

    def cost(self, call, dtype):
        return ratio(clock(call), at_fma_limit(2 * self.x.size, dtype))

    def gbytes(self, call, passes):
        """GB/s of so many passes over the array, each read or written once; it stays in a cache."""
        return rate(clock(call), passes * self.x.nbytes)


class Activation(Elementwise):
    params = (
        grid(
            ["relu", "tanh", "sigmoid", "gelu"],
            ["identity", "leaky_relu", "elu", "selu", "gelu_tanh", "silu", "softplus"],
        ),
        DTYPES,
    )
    param_names = ("activation", "dtype")

    def setup(self, activation, dtype):
        super().setup(dtype)
        self.activation = code("ACTIVATIONS", activation), 0.25

    def value(self):
        self.kernels.activation_forward(self.x, *self.activation, self.out)

    def derivative(self):
        self.kernels.activation_backward(self.x, self.y, *self.activation, self.out)

    def track_value(self, activation, dtype):
        return self.cost(self.value, dtype)

    def track_derivative(self, activation, dtype):
        return self.cost(self.derivative, dtype)

    def track_gbytes_value(self, activation, dtype):
        return self.gbytes(self.value, passes=2)

    def track_gbytes_derivative(self, activation, dtype):
        return self.gbytes(self.derivative, passes=3)

    track_gbytes_value.unit = track_gbytes_derivative.unit = "GB/s"


class Dropout(Elementwise):
    params = (DTYPES,)
    param_names = ("dtype",)

    def track_dropout(self, dtype):
        if not hasattr(self.kernels, "dropout"):
            return float("nan")
        rows = np.arange(len(self.x))
        return self.cost(lambda: self.kernels.dropout(self.x, rows, 1, 0.5, self.out), dtype)


class Loss(Elementwise):
    """A loss and its gradient in one call."""

    params = (
        grid(["cross_entropy", "mean_squared_error"], OTHER_LOSSES),
        grid([10], [1000]),
        DTYPES,
    )
    param_names = ("loss", "outputs", "dtype")

    def setup(self, loss, outputs, dtype):
        self.shape_of_array = 65_536 // outputs, outputs
        super().setup(dtype)
        self.code, rows = code("LOSSES", loss), len(self.x)
        if loss == "cross_entropy":
            self.y = np.random.default_rng(1).integers(0, outputs, rows)
        self.rows = np.full(rows, 1 / rows), np.empty(rows, dtype), np.empty(rows, np.int64)  # weight, loss, hit

    def compute(self):
        self.kernels.loss_forward_backward(self.code, 0.5, self.x, self.y, *self.rows, self.out)

    def track_loss(self, loss, outputs, dtype):
        return self.cost(self.compute, dtype)

    def track_gbytes(self, loss, outputs, dtype):
        return self.gbytes(self.compute, passes=2)  # labels, where the target is one, are little beside

    track_gbytes.unit = "GB/s"


class Adam(Benchmark):
    """A step of Adam reads four arrays and writes three: bound by memory, unless they stay in a cache."""

    params = (grid([1 << 16, 1 << 22], [1 << 24]), DTYPES)
    param_names = ("parameters", "dtype")

    def setup(self, parameters, dtype):
        super().setup()
        rng = np.random.default_rng(0)
        self.values, self.grad, *self.state = (buffer(rng, (parameters,), dtype) for _ in range(4))

        adam = code("OPTIMIZERS", "adam")
        coefficients, state = np.array([1e-3, 0.9, 0.1, 0.999, 0.001, 1e-8, 0, 0]), tuple(self.state)
        self.traffic = 7 * self.values.nbytes
        self.step = clock(lambda: self.kernels.optimizer_step(adam, coefficients, self.values, self.grad, state))

    def track_over_memory(self, parameters, dtype):
        return ratio(self.step, at_memory(self.traffic, footprint=4 * self.values.nbytes))

    track_over_memory.unit = "times the time at memory speed"

    def track_gbytes(self, parameters, dtype):
        return rate(self.step, self.traffic)

    track_gbytes.unit = "GB/s"
