"""Other libraries at their best: train steps of a classifier with Adam, and single operations.

A trainer (`TRAINERS`) is a class with a ``name``, a ``how`` (the settings that make it fast), a ``version``, and a
constructor ``(task, weights, rows, threads)`` that copies ``weights`` (pairs of weight ``(in, out)`` and
bias ``(out,)``) into a network of its own. ``train()`` takes one step on each row of ``rows``
(steps, batch) and returns when they are done; ``weights()`` gives the weights as they are now.

The other tables hold functions that give an `Operation`; each tries the ways its library has and keeps the fastest.
Libraries are imported where they are used, after their threads have been limited.
"""

import dataclasses
import functools
import warnings

import numpy as np

from .clocks import fastest
from .process import installed

PEERS = {  # name: the modules it needs
    "numpy": ("numpy",),
    "torch": ("torch",),
    "torch-graph": ("torch",),  # on a GPU
    "torch-medium": ("torch",),  # of less precision, as the next and jax-bfloat16
    "torch-autocast": ("torch",),
    "jax": ("jax",),
    "jax-bfloat16": ("jax",),
    "sklearn": ("sklearn",),
    "onnxruntime": ("onnxruntime", "onnx"),
}


def available(name: str) -> bool:
    """Whether every module that a peer needs is installed."""
    return all(map(installed, PEERS[name]))


def find_peers(names: str) -> tuple[list[str], list[str]]:
    """Of the peers named in a comma-separated list, those that are installed and those that are not."""
    found, missing = [], []
    for name in filter(None, names.split(",")):
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: expected {', '.join(PEERS)}")
        (found if available(name) else missing).append(name)
    return found, missing


@dataclasses.dataclass(frozen=True)
class Task:
    """Layer widths, activation between them, learning rate, and the data: x (n, in), labels y (n,)."""

    widths: tuple[int, ...]
    activation: str
    lr: float
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Operation:
    """A call that returns its result as an array, the library's version, and the way of calling it."""

    call: object
    version: str
    how: str


# ------------------------------------------------------------------------------------------ trainers
class NumPy:
    """NumPy, written for speed: every array is made before."""

    name = "numpy"
    how = "products and Adam in place, into arrays made before"

    def __init__(self, task, weights, rows, threads):
        self.version, self.task, self.rows, self.t = np.__version__, task, rows, 0
        arrays = [np.asarray(array) for pair in weights for array in pair]
        self.values = np.concatenate([array.ravel() for array in arrays])
        self.grad, self.m, self.v, self.scratch = np.zeros((4, self.values.size), self.values.dtype)
        ends = np.cumsum([array.size for array in arrays])[:-1]

        def pairs(flat):
            parts = [part.reshape(array.shape) for part, array in zip(np.split(flat, ends), arrays, strict=True)]
            return list(zip(parts[::2], parts[1::2], strict=True))

        self.layers, self.grads = pairs(self.values), pairs(self.grad)
        self.outputs, self.deltas = (
            [np.empty((rows.shape[1], len(bias)), bias.dtype) for _, bias in self.layers] for _ in range(2)
        )
        self.x = np.empty((rows.shape[1], task.widths[0]), task.x.dtype)
        self.each = np.arange(rows.shape[1])

    def train(self):
        for batch in self.rows:
            self.step(batch)

    def step(self, batch):
        x = np.take(self.task.x, batch, axis=0, out=self.x, mode="clip")  # the default mode makes a copy first
        inputs = [x, *self.outputs]
        for i, (weight, bias) in enumerate(self.layers):
            z = np.matmul(inputs[i], weight, out=self.outputs[i])
            z += bias
            if i < len(self.layers) - 1:
                np.maximum(z, 0, out=z) if self.task.activation == "relu" else np.tanh(z, out=z)
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        z[self.each, self.task.y[batch]] -= 1
        z /= len(batch)
        delta = z
        for i in range(len(self.layers) - 1, -1, -1):
            np.matmul(inputs[i].T, delta, out=self.grads[i][0])
            delta.sum(axis=0, out=self.grads[i][1])
            if i:
                delta = np.matmul(delta, self.layers[i][0].T, out=self.deltas[i - 1])
                delta *= inputs[i] > 0 if self.task.activation == "relu" else 1 - inputs[i] * inputs[i]
        self.adam()

    def adam(self, beta1=0.9, beta2=0.999, eps=1e-8):
        self.t += 1
        self.m *= beta1
        self.m += np.multiply(self.grad, 1 - beta1, out=self.scratch)
        self.grad *= self.grad
        self.v *= beta2
        self.v += np.multiply(self.grad, 1 - beta2, out=self.grad)
        np.sqrt(np.multiply(self.v, 1 / (1 - beta2**self.t), out=self.scratch), out=self.scratch)
        self.scratch += eps
        np.divide(self.m, self.scratch, out=self.scratch)
        self.values -= np.multiply(self.scratch, self.task.lr / (1 - beta1**self.t), out=self.scratch)

    def weights(self):
        return self.layers


def torch_network(weights, activation):
    """A network of PyTorch with copies of the weights, and an activation between its linear layers."""
    import torch

    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]
    layers = []
    for weight, bias in weights:
        linear = torch.nn.Linear(*weight.shape, dtype=getattr(torch, weight.dtype.name))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
            linear.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [linear, activation()]
    return torch.nn.Sequential(*layers[:-1])


class TorchSteps:
    """Eager steps of PyTorch, on any device: what its trainers share."""

    def __init__(self, torch, task, weights, rows, device, **adam):
        self.torch, self.version = torch, torch.__version__
        self.model = torch_network(weights, task.activation).to(device)
        self.loss = torch.nn.MSELoss() if task.y.ndim == 2 else torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.lr, fused=True, **adam)
        self.x, self.y, self.rows = (torch.from_numpy(array).to(device) for array in (task.x, task.y, rows))

    def launch(self):
        """A step on each row; on a GPU nobody waits for them."""
        for batch in self.rows:
            self.step(batch)

    def step(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        self.value(batch).backward()
        self.optimizer.step()

    def value(self, batch):
        return self.loss(self.model(self.x[batch]), self.y[batch])

    def weights(self):
        values = [parameter.detach().cpu().numpy() for parameter in self.model.parameters()]
        return [(weight.T, bias) for weight, bias in zip(values[::2], values[1::2], strict=True)]


class Torch(TorchSteps):
    """PyTorch, eager: torch.compile was slower on small networks and no faster on large ones."""

    name = "torch"
    how = "eager, Adam(fused=True), zero_grad(set_to_none=True)"

    def __init__(self, task, weights, rows, threads):
        import torch

        torch.set_num_threads(threads)
        super().__init__(torch, task, weights, rows, "cpu")

    def train(self):
        self.launch()


class TorchMedium(Torch):
    """PyTorch, which rounds the factors of float32 products where that is faster."""

    name = "torch-medium"
    how = 'as torch, set_float32_matmul_precision("medium")'

    def train(self):
        before = self.torch.get_float32_matmul_precision()  # of the process
        self.torch.set_float32_matmul_precision("medium")
        try:
            super().train()
        finally:
            self.torch.set_float32_matmul_precision(before)


class TorchAutocast(Torch):
    """PyTorch, which casts weights and activations in each step."""

    name = "torch-autocast"
    how = "as torch, forward and loss under autocast(bfloat16)"

    def value(self, batch):
        with self.torch.autocast("cpu", self.torch.bfloat16):
            return super().value(batch)


class Jax:
    """JAX: all steps of one call in one compiled loop."""

    name = "jax"
    how = "jit of lax.scan over steps, donated state, gather inside"

    def __init__(self, task, weights, rows, threads):
        import jax
        import jax.numpy as jnp

        self.version = jax.__version__
        if weights[0][0].dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[task.activation]
        beta1, beta2, eps = 0.9, 0.999, 1e-8

        def loss(parameters, x, y):
            for i, (weight, bias) in enumerate(parameters):
                x = (activation(x) if i else x) @ weight + bias
            return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()

        def step(x, y, state, batch):
            parameters, m, v, t = state
            t = t + 1
            grad = jax.grad(loss)(parameters, x[batch], y[batch])
            m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, grad)
            v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, grad)
            rate, floor = task.lr / (1 - beta1**t), 1 / (1 - beta2**t)
            parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * floor) + eps), parameters, m, v)
            return (parameters, m, v, t), None

        def steps(state, x, y, rows):
            return jax.lax.scan(functools.partial(step, x, y), state, rows)[0]

        self.data = jnp.array(task.x), jnp.array(task.y), jnp.array(rows)
        parameters = [(jnp.array(weight), jnp.array(bias)) for weight, bias in weights]
        m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        self.state = parameters, m, v, jnp.zeros(rows.shape[:-2], weights[0][0].dtype)
        self.steps = jax.jit(self.mapped(steps), donate_argnums=0)
        self.wait = jax.block_until_ready

    def mapped(self, steps):
        return steps

    def train(self):
        self.state = self.wait(self.steps(self.state, *self.data))

    def weights(self):
        return [(np.asarray(weight), np.asarray(bias)) for weight, bias in self.state[0]]


class JaxMany(Jax):
    """Independent networks at once: weights and rows have a leading axis, one entry a network."""

    how = "vmap of lax.scan over steps, donated state, gather inside"

    def mapped(self, steps):
        import jax

        return jax.vmap(steps, in_axes=(0, None, None, 0))


class JaxBfloat16(Jax):
    """JAX, whose products of float32 may round their factors."""

    name = "jax-bfloat16"
    how = 'as jax, default_matmul_precision("bfloat16")'

    def mapped(self, steps):
        import jax

        return jax.default_matmul_precision("bfloat16")(steps)


class Sklearn:
    """scikit-learn: ``partial_fit`` walks once over the rows, in batches."""

    name = "sklearn"
    how = "MLPClassifier.partial_fit, alpha=0"

    def __init__(self, task, weights, rows, threads):
        import sklearn
        from sklearn.neural_network import MLPClassifier

        if task.widths[-1] == 2:
            raise ValueError("scikit-learn gives two classes one logistic output: another network")
        self.version = sklearn.__version__
        order = rows.ravel()
        self.x, self.y, batch = task.x[order], task.y[order], rows.shape[1]
        self.model = MLPClassifier(
            task.widths[1:-1],
            activation=task.activation,
            alpha=0,
            batch_size=batch,
            learning_rate_init=task.lr,
            epsilon=1e-8 * 0.001**0.5,  # it is not divided by the bias correction: this makes the first step equal
            shuffle=False,
        )
        self.model.partial_fit(self.x[:batch], self.y[:batch], classes=np.arange(task.widths[-1]))
        del self.model._optimizer  # private, and the only way to start Adam anew from the given weights
        self.model.coefs_ = [np.array(weight) for weight, _ in weights]
        self.model.intercepts_ = [np.array(bias) for _, bias in weights]

    def train(self):
        self.model.partial_fit(self.x, self.y)

    def weights(self):
        return list(zip(self.model.coefs_, self.model.intercepts_, strict=True))


TRAINERS = {peer.name: peer for peer in (NumPy, Torch, Jax, Sklearn)}
ROUNDED_TRAINERS = {peer.name: peer for peer in (TorchMedium, TorchAutocast, JaxBfloat16)}
MANY_TRAINERS = {"jax": JaxMany}


# ---------------------------------------------------------------------------------------- prediction
def _numpy_predict(weights, x, threads):
    outputs = [np.empty((len(x), len(bias)), x.dtype) for _, bias in weights]

    def call():
        z = x
        for (weight, bias), out in zip(weights, outputs, strict=True):
            if z is not x:
                np.maximum(z, 0, out=z)
            z = np.matmul(z, weight, out=out)
            z += bias
        return z

    return Operation(call, np.__version__, "products into arrays made before")


def _torch_predict(weights, x, threads):
    import torch

    torch.set_num_threads(threads)
    eager = torch_network(weights, "relu").eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # still the fastest for one row
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(eager, torch.from_numpy(x))))
    for _ in range(10):  # it optimizes itself during its first calls
        frozen(torch.from_numpy(x))
    calls = {"eager": eager, "traced and frozen": frozen}
    how, call = fastest({how: functools.partial(model, torch.from_numpy(x)) for how, model in calls.items()})
    return Operation(call, torch.__version__, f"{how}, no gradients")


def _jax_predict(weights, x, threads):
    import jax
    import jax.numpy as jnp

    if x.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    parameters = [(jnp.array(weight), jnp.array(bias)) for weight, bias in weights]

    @jax.jit
    def network(x):
        for i, (weight, bias) in enumerate(parameters):
            x = (jax.nn.relu(x) if i else x) @ weight + bias
        return x

    rows = jnp.array(x)
    return Operation(lambda: network(rows).block_until_ready(), jax.__version__, "jit, weights as constants")


def _onnxruntime_predict(weights, x, threads):
    import onnx
    import onnxruntime

    kind, nodes, constants, value = onnx.helper.np_dtype_to_tensor_dtype(x.dtype), [], [], "x"
    for i, (weight, bias) in enumerate(weights):
        if i:
            nodes.append(onnx.helper.make_node("Relu", [value], [f"a{i}"]))
            value = f"a{i}"
        constants += [onnx.numpy_helper.from_array(np.array(weight), f"w{i}")]
        constants += [onnx.numpy_helper.from_array(np.array(bias), f"b{i}")]
        nodes.append(onnx.helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"z{i}"]))
        value = f"z{i}"
    out = np.empty((len(x), weights[-1][0].shape[1]), x.dtype)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "network", [info("x", kind, x.shape)], [info(value, kind, out.shape)], constants
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, bound = session.io_binding(), np.empty_like(x)
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(bound))
    binding.bind_ortvalue_output(value, onnxruntime.OrtValue.ortvalue_from_numpy(out))

    def run_bound():
        bound[...] = x
        session.run_with_iobinding(binding)
        return out

    how, call = fastest({"run": lambda: session.run(None, {"x": x})[0], "input and output bound": run_bound})
    return Operation(call, onnxruntime.__version__, how)


PREDICTORS = {
    "numpy": _numpy_predict,
    "torch": _torch_predict,
    "jax": _jax_predict,
    "onnxruntime": _onnxruntime_predict,
}


# ------------------------------------------------------------------------------------------- products
def _numpy_product(pairs, threads):
    calls = {how: functools.partial(np.matmul, a, b, out=out) for how, (a, b, out) in pairs.items()}
    how, call = fastest(calls)
    return Operation(call, np.__version__, f"matmul(out=), {how}")


def _torch_product(pairs, threads):
    import torch

    torch.set_num_threads(threads)
    calls = {
        how: functools.partial(torch.mm, *map(torch.from_numpy, (a, b)), out=torch.from_numpy(out))
        for how, (a, b, out) in pairs.items()
    }
    how, call = fastest(calls)
    return Operation(call, torch.__version__, f"mm(out=), {how}")


# functions of {layout: (a, b, out)} and threads
PRODUCTS = {"numpy": _numpy_product, "torch": _torch_product}


# ---------------------------------------------------------------------------------------- elementwise
def _torch_elementwise(name, x, threads):
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(x)
    out = torch.empty_like(x)
    call = {
        "sigmoid": lambda: torch.sigmoid(x, out=out),
        "tanh": lambda: torch.tanh(x, out=out),
        "gelu": lambda: torch.ops.aten.gelu.out(x, out=out),
        "softmax": lambda: torch.softmax(x, 1, out=out),
    }[name]
    return Operation(call, torch.__version__, "out=")


ELEMENTWISE = {"torch": _torch_elementwise}


# ---------------------------------------------------------------------------------------------- graph
def _torch_graph(graph, numbers, threads):
    import torch

    torch.set_num_threads(threads)
    leaves = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in numbers]

    def call():
        for leaf in leaves:
            leaf.grad = None
        graph(*leaves, torch.tanh).backward()
        return [leaf.grad for leaf in leaves]

    return Operation(call, torch.__version__, "eager")


# functions of the graph, its numbers and threads
GRAPHS = {"torch": _torch_graph}
