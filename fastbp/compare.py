"""This library timed beside others: what is compared, case by case. How it is timed is in `measure`.

`COMPARISONS` is the table: each has a title, the peers that it knows, and a function that makes its cases. Before
anything is timed, ours and the peer must give the same result. Weights and data are random. A step of ours is an
epoch of ``model.fit`` divided by its batches, everything included; a peer takes as many steps.
"""

import collections.abc
import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np

from . import autograd, backend, gpu_peers, layers, losses, many, model, optimizers, peers
from .kernels import table
from .measure import Case, Clock, ProgramClock, Rival, SampleClock, busy_core, installed, timed
from .peers import Task

# id: widths, activation, batch, and the least ratio to each peer that this library aims at in float32.
SHAPES = {
    "S1": ((4, 32, 32, 2), "relu", 32, {"torch": 65, "jax": 2.8}),
    "S2": ((64, 128, 10), "relu", 64, {"torch": 11, "jax": 1.6}),
    "S3": ((784, 128, 10), "relu", 64, {"torch": 2.7, "jax": 1.35}),
    "S4": ((784, 256, 128, 10), "relu", 128, {"torch": 1.62, "jax": 1.22}),
    "S5": ((784, 512, 512, 10), "relu", 256, {"torch": 1.28, "jax": 1.17}),
    "S6": ((1024, 1024, 1024, 1024, 10), "relu", 256, {"torch": 1.23, "jax": 1.18}),
    "S7": ((2048, 2048, 2048, 1000), "relu", 512, {"torch": 1.14, "jax": 1.12}),
    "S8": ((4096, 4096, 4096), "relu", 32, {"torch": 2.4, "jax": 2.6}),
    "S9": ((4, 32, 16, 4), "tanh", 10_000, {"torch": 8, "jax": 3.3}),
}
# Sizes near those that are multiples of no vector: the same ratios must hold.
ODD_SHAPES = {
    "O1": ((5, 33, 31, 3), "relu", 31, SHAPES["S1"][3]),
    "O2": ((65, 127, 11), "relu", 63, SHAPES["S2"][3]),
    "O3": ((783, 129, 9), "relu", 65, SHAPES["S3"][3]),
    "O4": ((513, 257, 129, 11), "relu", 77, SHAPES["S4"][3]),
    "O6": ((1023, 1025, 1021, 11), "relu", 255, SHAPES["S6"][3]),
    "O9": ((5, 33, 17, 3), "tanh", 9_999, SHAPES["S9"][3]),
}
PREDICTIONS = {
    "I1": ((16, 64, 64, 4), "relu", 1, {"torch": 10, "onnxruntime": 2}),
    "I32": ((16, 64, 64, 4), "relu", 32, {}),
    "I4096": ((784, 256, 128, 10), "relu", 4096, {}),
}
PREDICT_MOST = {"I1": 2e-6}  # seconds aimed at
GPU_SHAPES = {
    "G1": ((32, 64, 64, 1), "relu", 256, {"torch": 6, "torch-graph": 1.5}),
    "G2": ((784, 256, 128, 10), "relu", 1024, {"torch": 3}),
    "G3": ((4096, 4096, 4096, 4096), "relu", 1024, {"torch": 1}),
}
WIDTHS = {f"w{w}": ((10, w, w, 10), "relu", 128, {}) for w in (16, 17, 24, 32, 33, 48, 64, 65, 80, 96, 97, 112, 128)}
MANY = 32  # networks
ONE_THREAD = "one thread"
GROUPS = {"all": SHAPES, "odd": ODD_SHAPES}

PEERS = {  # name: the modules it needs
    "numpy": ("numpy",),
    "torch": ("torch",),
    "torch-graph": ("torch",),  # on a GPU
    "jax": ("jax",),
    "sklearn": ("sklearn",),
    "onnxruntime": ("onnxruntime", "onnx"),
}
BATCHES = 64  # in an epoch
EPOCH_FLOPS = 128e9  # larger epochs have fewer batches: about 2 s at 64 GFLOP/s
FEWEST_BATCHES = 16  # or what an epoch of fit() costs once would weigh more than it ever does
LR = 1e-3
# Largest difference of two updates, relative to their size. In the first step of Adam a gradient of
# about eps moves its weight by a good part of lr, so rounding errors in those few show (2e-2 on S7).
UPDATE_TOLERANCE = {"float32": 5e-2, "float64": 1e-6}
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of results, relative to the largest

PRODUCT_SIZES = 128, 256, 512, 1024, 2048
PRODUCT_TARGET_FROM = 256  # smaller products have no target
GPU_PRODUCT_SIZE = 4096
# Of results beside those of another precision's units: of the largest, whose sums have thousands of rounded products.
PRECISION_TOLERANCE = {"tf32": 2e-3, "bf16": 2e-2}
LAUNCHED_FLOPS, MOST_LAUNCHED = 2e12, 1024  # of steps between two events: about 50 ms, and so many at most
LAYOUT = "its own layout", "our layout"


# ------------------------------------------------------------------------------------------ options
def parse_shapes(text: str) -> dict[str, tuple]:
    """Shapes by id, as layers and batch (``513-257-129-11@77``), or ``all``, or ``odd``; several with commas."""
    known = SHAPES | ODD_SHAPES | PREDICTIONS | GPU_SHAPES
    shapes = {}
    for name in text.split(","):
        if name in GROUPS:
            shapes |= GROUPS[name]
            continue
        if name in known:
            shapes[name] = known[name]
            continue
        try:
            widths, batch = name.split("@")
            widths, batch = tuple(int(width) for width in widths.split("-")), int(batch)
            if len(widths) < 2 or min(*widths, batch) < 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"unknown shape {name!r}: expected {', '.join(known)}, all, odd, "
                f"or layers and batch as in 784-256-10@128"
            ) from None
        shapes[name] = widths, "relu", batch, {}
    return shapes


def comparisons(device) -> dict[str, "Comparison"]:
    """The table for a device."""
    return COMPARISONS if backend.on_host(device) else GPU_COMPARISONS


def parse_what(text: str, threads: int, device: str = "cpu") -> list[str]:
    """Names of comparisons on a device, separated by commas, or ``all`` that so many threads can make."""
    known = comparisons(device)
    if text == "all":
        return [name for name, comparison in known.items() if comparison.threads <= threads]
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown comparison {name!r} on {device!r}: expected {', '.join(known)}, or all")
        if known[name].threads > threads:
            raise ValueError(f"the comparison {name} needs --threads {COMPARISONS[name].threads}, got {threads}")
    return names


def find_peers(names: str) -> tuple[list[str], list[str]]:
    """Of the peers named in a comma-separated list, those that are installed and those that are not."""
    found, missing = [], []
    for name in filter(None, names.split(",")):
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: expected {', '.join(PEERS)}")
        (found if all(map(installed, PEERS[name])) else missing).append(name)
    return found, missing


# -------------------------------------------------------------------------------------------- steps
def step_flops(widths, batch) -> int:
    """Floating-point operations in the products of one step; the first layer needs no input gradient."""
    return sum(2 * a * b * batch * (3 if i else 2) for i, (a, b) in enumerate(itertools.pairwise(widths)))


def network(widths, activation, dtype, device):
    """A network with an activation between its linear layers."""
    activation = {"relu": layers.ReLU, "tanh": layers.Tanh}[activation]
    parts = []
    for pair in itertools.pairwise(widths):
        parts += [layers.Linear(*pair), activation()]
    return model.Sequential(*parts[:-1], dtype=dtype, device=device, seed=0)


def weights_of(network):
    """Copies of its weights: a pair for each linear layer."""
    linear = [layer for layer in network.layers if isinstance(layer, layers.Linear)]
    return [(np.array(layer.weight), np.array(layer.bias)) for layer in linear]


class Ours:
    """This library, with the methods of a trainer in `peers`."""

    def __init__(self, task, batch, dtype, device):
        self.model = network(task.widths, task.activation, dtype, device)
        self.task, self.batch = task, batch
        self.x = task.x if backend.on_host(device) else backend.load(device).to_device(task.x)
        self.loss = losses.MSELoss() if task.y.ndim == 2 else losses.CrossEntropyLoss()
        self.optimizer = optimizers.Adam(lr=task.lr)

    def train(self):
        self.model.fit(
            self.x,
            self.task.y,
            loss=self.loss,
            optimizer=self.optimizer,
            epochs=1,
            batch_size=self.batch,
            verbose=False,
        )

    def train_steps(self):
        x, y = self.x, self.task.y
        for start in range(0, len(x), self.batch):
            self.step(x[start : start + self.batch], y[start : start + self.batch])

    def step(self, x, y):
        self.model.train_step(x, y, self.loss, self.optimizer)

    def launch(self, rows):
        """The kernels' steps on the rows of (steps, batch), and nothing of ``fit`` around them; after `train`."""
        kernels, y = backend.load(self.model.device), self.task.y
        optimizer, steps = self.optimizer, len(rows)
        workspace = self.model.training_workspace(self.loss, self.loss.kernel(y), optimizer, self.batch)
        x, y, order = kernels.to_device(self.x), kernels.to_device(y), rows.ravel()
        coefficients, keys = optimizer.coefficients(optimizer.step_count, steps), self.model.step_keys(steps)
        values, loss, hits = self.model._parameters.values, np.zeros(steps), np.zeros(steps, np.int64)

        def call():
            done = kernels.network_train_steps(
                workspace, values, optimizer.state, coefficients, keys, x, y, None, order, self.batch, loss, hits
            )
            if done < steps:
                raise ValueError(f"step {done} of {steps} had a loss that is not finite")

        return call

    def weights(self):
        return weights_of(self.model)


def random_task(shape, batches, dtype):
    """A task on random data, and the rows of each batch (batches, batch): a classifier's; with one output MSE."""
    widths, activation, batch, _ = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batches * batch, widths[0]), dtype=dtype)
    y = rng.integers(0, widths[-1], len(x)) if widths[-1] > 1 else rng.standard_normal((len(x), 1), dtype=dtype)
    return Task(widths, activation, LR, x, y), rng.permutation(len(x)).reshape(batches, batch)


def step_case(name, shape, trainers, protocol, batches=None) -> Case:
    """Train steps of one shape.

    Parameters
    ----------
    name : str
    shape : tuple
        As in `SHAPES`.
    trainers : list of classes
        As in `peers`.
    protocol : Protocol
    batches : int, optional
        In an epoch; by default as `BATCHES` and `EPOCH_FLOPS` say.

    Raises
    ------
    ValueError
        A first step of a peer from the same weights is another one than ours.
    """
    widths, _, batch, targets = shape
    flops = step_flops(widths, batch)
    batches = batches or min(BATCHES, max(FEWEST_BATCHES, int(EPOCH_FLOPS / flops)))
    task, rows = random_task(shape, batches, protocol.dtype)

    ours, warmup = timed(lambda: _started(Ours(task, batch, protocol.dtype, protocol.device)))
    facts = {"widths": widths, "activation": task.activation, "batch": batch, "batches": batches}
    facts["ours_warmup_seconds"] = warmup
    rivals, left_out = {}, {}
    for trainer in trainers:
        if task.y.ndim == 2 and backend.on_host(protocol.device):
            left_out[trainer.name] = "it is compared as a classifier only"
            continue
        try:
            difference = _update_difference(trainer, task, rows[:1], protocol)
        except ValueError as error:
            left_out[trainer.name] = str(error)
            continue
        _same(f"{name}: one step of {trainer.name}", difference, UPDATE_TOLERANCE[protocol.dtype], "the update")
        weights = Ours(task, batch, protocol.dtype, protocol.device).weights()
        peer, warmup = timed(lambda: _started(trainer(task, weights, rows, protocol.threads)))  # noqa: B023
        rivals[trainer.name] = Rival(
            Clock(peer.train, batches),
            peer.version,
            peer.how,
            targets.get(trainer.name),
            {"warmup_seconds": warmup, "difference": difference},
        )
        if not backend.on_host(protocol.device):
            rivals[trainer.name].also["events"] = Clock(peer.launch, batches, gpu_peers.elapsed)
    also = {"train_step": Clock(ours.train_steps, batches)}
    if not backend.on_host(protocol.device):
        times = max(
            1, min(MOST_LAUNCHED, int(LAUNCHED_FLOPS / flops)) // batches
        )  # the rows of an epoch again and again
        launch = ours.launch(np.concatenate([rows] * times))
        also["events"] = Clock(launch, batches * times, backend.load(protocol.device).elapsed)
    return Case(
        name,
        title_of(shape),
        Clock(ours.train, batches),
        rivals,
        flops=flops,
        also=also,
        left_out=left_out,
        facts=facts,
        shares_cores=not backend.on_host(protocol.device),
    )


def _started(trainer):
    """After its first epoch everything is compiled and every buffer is there."""
    trainer.train()
    return trainer


def _update_difference(trainer, task, rows, protocol):
    """Size of the difference of two first steps, relative to the step."""
    ours = Ours(task, rows.shape[1], protocol.dtype, protocol.device)
    before = ours.weights()
    peer = trainer(task, before, rows, protocol.threads)
    peer.train()
    ours.step(task.x[rows[0]], task.y[rows[0]])
    return _relative(before, ours.weights(), peer.weights())


def _relative(before, after, theirs):
    before, after, theirs = (
        np.concatenate([array.ravel() for pair in weights for array in pair]).astype(np.float64)
        for weights in (before, after, theirs)
    )
    return float(np.linalg.norm(theirs - after) / np.linalg.norm(after - before))


def _same(what, difference, tolerance, of):
    if not difference <= tolerance:
        raise ValueError(
            f"{what} from the same values differs from ours by {difference:.1e} of {of} "
            f"(expected at most {tolerance:.0e}): not the same mathematics"
        )


def _steps(shapes, names, protocol):
    trainers = peers.TRAINERS if backend.on_host(protocol.device) else gpu_peers.TRAINERS
    for name, shape in shapes.items():
        yield step_case(name, shape, [trainers[peer] for peer in names], protocol)


# --------------------------------------------------------------------------- width, and a busy core
def _thread_case(name, shape, trainers, protocol):
    """Steps with as many threads as the library chooses, beside one thread."""
    case, kernels = step_case(name, shape, trainers, protocol), backend.load(protocol.device)
    epoch = case.ours.call

    def with_threads(threads):
        def call():
            kernels.set_num_threads(threads)
            epoch()

        return Clock(call, case.ours.units)

    case.ours, case.also = with_threads(None), {}
    case.rivals[ONE_THREAD] = Rival(with_threads(1), "", "this library on one thread", 1 / 1.03)
    return case


def _width(shapes, names, protocol):
    """Time must grow smoothly with the width, and no number of threads be slower than one."""
    make = _thread_case if protocol.threads > 1 else step_case
    for name, shape in shapes.items():
        yield make(name, shape, [peers.TRAINERS[peer] for peer in names], protocol)


def _busy(shapes, names, protocol):
    """Another process takes one of the cores: at most 1.3 times the time of one thread."""
    for name, shape in shapes.items():
        case = _thread_case(name, shape, [], protocol)
        case.rivals[ONE_THREAD].target = 1 / 1.3
        case.during, case.shares_cores = busy_core, True
        yield case


# ------------------------------------------------------------------------------------------- predict
def predict_case(name, shape, names, protocol) -> Case:
    """``predict`` from Python: the median and the 99th percentile of single calls."""
    widths, activation, batch, targets = shape
    if activation != "relu":
        raise ValueError(f"{name}: predictions are compared with relu only")
    ours = network(widths, activation, protocol.dtype, protocol.device)
    x = np.random.default_rng(0).standard_normal((batch, widths[0]), dtype=protocol.dtype)
    expected, rivals = ours.predict(x), {}
    for peer in names:
        operation = peers.PREDICTORS[peer](weights_of(ours), x, protocol.threads)
        rivals[peer] = _rival(f"{name}: predict of {peer}", operation, expected, protocol, targets.get(peer))
        rivals[peer].clock = SampleClock(operation.call)
    return Case(
        name,
        title_of(shape),
        SampleClock(lambda: ours.predict(x)),
        rivals,
        flops=sum(2 * batch * a * b for a, b in itertools.pairwise(widths)),
        most=PREDICT_MOST.get(name),
        facts={"widths": widths, "activation": activation, "batch": batch},
    )


def _rival(what, operation, expected, protocol, target=None):
    """A peer's operation, once it has given what ours gives."""
    found = np.asarray(operation.call(), np.float64)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    _same(what, difference, TOLERANCE[protocol.dtype], "the largest value")
    return Rival(Clock(operation.call), operation.version, operation.how, target, {"difference": difference})


def _predict(shapes, names, protocol):
    for name, shape in shapes.items():
        yield predict_case(name, shape, names, protocol)


# -------------------------------------------------------------------------------------- gemm, elementwise
def laid_out(array):
    """A copy laid out as the library lays out its own: aligned, rows padded."""
    *rows, columns = array.shape
    padded = table.leading_dimension(columns, array.itemsize) if rows else columns
    copy = table.aligned_zeros((*rows, padded), array.dtype)[..., :columns]
    copy[...] = array
    return copy


def product_case(kind, size, names, protocol) -> Case:
    """One of the three products of a layer of ``size`` x ``size`` and as large a batch, without an epilogue.

    NN is ``X W``, NT is ``dZ W^T``, TN is ``X^T dZ``. A peer has the faster of its own layout and ours; what ours
    takes with bias and ReLU, their derivative or the bias gradient in it is told beside.
    """
    kernels, rng = backend.load(protocol.device), np.random.default_rng(0)
    a, b = (laid_out(rng.standard_normal((size, size), dtype=protocol.dtype)) for _ in range(2))
    out, bias = laid_out(np.zeros_like(a)), laid_out(np.zeros(size, protocol.dtype))
    identity, relu = (table.ACTIVATIONS.index(name) for name in ("identity", "relu"))
    plain, fused = {
        "NN": (
            lambda: kernels.linear_forward(a, b, None, identity, 0.0, out, out),
            lambda: kernels.linear_forward(a, b, bias, relu, 0.0, out, out),
        ),
        "NT": (
            lambda: kernels.linear_backward_input(a, b, a, identity, 0.0, out),
            lambda: kernels.linear_backward_input(a, b, a, relu, 0.0, out),
        ),
        "TN": (
            lambda: kernels.linear_backward_params(a, b, 0, out, None),
            lambda: kernels.linear_backward_params(a, b, 0, out, bias),
        ),
    }[kind]

    def operands(copy):
        first, second = copy(a), copy(b)
        return first.T if kind == "TN" else first, second.T if kind == "NT" else second, copy(np.zeros_like(a))

    plain()
    expected, rivals = np.array(out), {}
    for peer in names:
        pairs = dict(zip(LAYOUT, (operands(np.array), operands(laid_out)), strict=True))
        operation = peers.PRODUCTS[peer](pairs, protocol.threads)
        target = 1.05 if size >= PRODUCT_TARGET_FROM else None
        rivals[peer] = _rival(f"{kind} {size}: {peer}", operation, expected, protocol, target)
    return Case(
        kind, f"{size} x {size} x {size}", Clock(plain), rivals, flops=2 * size**3, also={"fused": Clock(fused)}
    )


def gpu_product_case(kind, size, precision, names, protocol) -> Case:
    """`product_case` on the GPU, in one of its precisions, timed by events."""
    kernels, rng = backend.load(protocol.device), np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=protocol.dtype) for _ in range(2))
    there, other = kernels.to_device(a), kernels.to_device(b)
    out, identity = kernels.zeros((size, size), a.dtype), table.ACTIVATIONS.index("identity")
    code = table.PRECISIONS.index(precision)
    product = {
        "NN": lambda: kernels.linear_forward(there, other, None, identity, 0.0, out, out, code),
        "NT": lambda: kernels.linear_backward_input(there, other, there, identity, 0.0, out, code),
        "TN": lambda: kernels.linear_backward_params(there, other, 0, out, None, code),
    }[kind]
    product()
    expected, rivals = kernels.to_host(out), {}
    tolerance, target = (
        (TOLERANCE[protocol.dtype], 0.85) if precision == "ieee" else (PRECISION_TOLERANCE[precision], None)
    )
    for peer in names:
        operation, found = gpu_peers.product(kind, a, b, precision)
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        _same(f"{kind} {size} {precision}: {peer}", difference, tolerance, "the largest value")
        clock = Clock(operation.call, elapsed=gpu_peers.elapsed)
        rivals[peer] = Rival(clock, operation.version, operation.how, target, {"difference": difference})
    return Case(
        kind,
        f"{size} x {size} x {size} {precision}",
        Clock(product, elapsed=kernels.elapsed),
        rivals,
        flops=2 * size**3,
        facts={"precision": precision},
        shares_cores=True,
    )


def _gpu_gemm(shapes, names, protocol):
    for precision in backend.load(protocol.device).precisions(np.dtype(protocol.dtype)):
        for kind in ("NN", "NT", "TN"):
            yield gpu_product_case(kind, GPU_PRODUCT_SIZE, precision, names, protocol)


def _gemm(shapes, names, protocol):
    for kind, size in itertools.product(("NN", "NT", "TN"), PRODUCT_SIZES):
        yield product_case(kind, size, names, protocol)


ELEMENTWISE_SHAPE = 64, 64


def elementwise_case(name, names, protocol, shape=ELEMENTWISE_SHAPE) -> Case:
    """An activation or the softmax: the compiled kernel, called from Python with its arguments bound.

    A layer calls an activation like that from compiled code; the addresses that the contract's function makes are
    told beside. Arguments are numbers of C already, as those of a peer are tensors.
    """
    kernels = backend.load(protocol.device)
    x = laid_out(np.random.default_rng(0).standard_normal(shape, dtype=protocol.dtype))
    out, also = laid_out(x), {}
    if name == "softmax":
        contract = lambda: kernels.softmax(x, out)  # noqa: E731
    else:
        code = table.ACTIVATIONS.index(name)
        contract = lambda: kernels.activation_forward(x, code, 0.0, out)  # noqa: E731
    contract()
    call, expected = contract, np.array(out)
    if hasattr(kernels, "context"):
        context, row = kernels.context, x.strides[0] // x.itemsize
        scratch = np.empty(kernels.blocking.SQUARE, x.dtype)
        if name == "softmax":
            function, last = context.c_function(context.softmax(x.dtype), *context.SOFTMAX), scratch.ctypes.data
        else:
            kernel = context.activation_forward(x.dtype, name)
            function, last = context.c_function(kernel, *context.ELEMENTWISE), 0.0
        arguments = *x.shape, x.ctypes.data, row, out.ctypes.data, row, last
        arguments = [of_c(argument) for of_c, argument in zip(function.argtypes, arguments, strict=True)]
        call, also = functools.partial(function, *arguments), {"contract": Clock(contract)}
        call.scratch = scratch  # of which the kernel has the address only
    rivals = {}
    for peer in names:
        operation = peers.ELEMENTWISE[peer](name, x, protocol.threads)
        rivals[peer] = _rival(f"{name} of {peer}", operation, expected, protocol, 2)
    return Case("E1", f"{name} of {x.shape}", Clock(call), rivals, also=also)


def _elementwise(shapes, names, protocol):
    for name in ("sigmoid", "tanh", "gelu", "softmax"):
        yield elementwise_case(name, names, protocol)
    for columns in (10, 1000):
        yield elementwise_case("softmax", names, protocol, (ELEMENTWISE_SHAPE[0], columns))


# -------------------------------------------------------------------------------------------- graph
GRAPH_NUMBERS = 0.5, 0.3


def scalar_graph(x, y, tanh):
    """Fifty operations on two scalars, one after the other."""
    z = x
    for _ in range(12):
        z = tanh(z * y + x) - y
    return z * z + z


def graph_case(names, protocol) -> Case:
    """Forward and backward through `scalar_graph`, where all there is to be fast at is the graph itself; float64."""
    leaves = [autograd.Variable(number, requires_grad=True) for number in GRAPH_NUMBERS]

    def ours():
        for leaf in leaves:
            leaf.grad = None
        scalar_graph(*leaves, autograd.tanh).backward()
        return [leaf.grad for leaf in leaves]

    rivals = {}
    for peer in names:
        operation = peers.GRAPHS[peer](scalar_graph, GRAPH_NUMBERS, protocol.threads)
        rivals[peer] = _rival(f"the gradient of {peer}", operation, np.array(ours()), protocol, 3)
    return Case("A1", "50 operations on scalars", Clock(ours), rivals)


def _graph(shapes, names, protocol):
    yield graph_case(names, protocol)


# -------------------------------------------------------------------------------- networks side by side
def many_case(name, shape, names, protocol, count=MANY, batches=BATCHES) -> Case:
    """`fit_many`: independent networks on the same data; the time is that of one step of one network."""
    widths, activation, batch, _ = shape
    task, rows = random_task(shape, batches, protocol.dtype)
    networks = [network(widths, activation, protocol.dtype, protocol.device) for _ in range(count)]
    optimizer = [optimizers.Adam(lr=task.lr) for _ in networks]
    loss, rng, rivals = losses.CrossEntropyLoss(), np.random.default_rng(1), {}

    def ours():
        many.fit_many(networks, task.x, task.y, loss=loss, optimizer=optimizer, epochs=1, batch_size=batch)

    for peer in names:
        trainer, before = peers.MANY_TRAINERS[peer], weights_of(networks[0])
        stacked = [(np.stack([weight] * count), np.stack([bias] * count)) for weight, bias in before]
        first = trainer(task, stacked, np.stack([rows[:1]] * count), protocol.threads)
        first.train()
        step = Ours(task, batch, protocol.dtype, protocol.device)
        step.step(task.x[rows[0]], task.y[rows[0]])
        theirs = [(weight[-1], bias[-1]) for weight, bias in first.weights()]
        difference = _relative(before, step.weights(), theirs)
        _same(f"{name}: one step of {peer}", difference, UPDATE_TOLERANCE[protocol.dtype], "the update")
        each = np.stack([rng.permutation(len(task.x)).reshape(rows.shape) for _ in networks])
        running = trainer(task, stacked, each, protocol.threads)
        clock = Clock(running.train, count * batches)
        rivals[peer] = Rival(clock, running.version, running.how, 1.5, {"difference": difference})
    return Case(
        "M1", f"{count} x {title_of(shape)}", Clock(ours, count * batches), rivals, flops=step_flops(widths, batch)
    )


def _many(shapes, names, protocol):
    for name, shape in shapes.items():
        yield many_case(name, shape, names, protocol)


# ------------------------------------------------------------------------------------------- start-up
FIRST_STEP = """
import json, time
import numpy as np
import fastbp
x, y = np.random.default_rng(0).random((64, 64), np.float32), np.arange(64) % 10
def step(activation, loss, target, optimizer):
    start = time.perf_counter()
    model = fastbp.Sequential(fastbp.Linear(64, 128), activation, fastbp.Linear(128, 10), seed=0)
    model.train_step(x, target, loss, optimizer)
    return time.perf_counter() - start
step(fastbp.ReLU(), fastbp.CrossEntropyLoss(), y, fastbp.Adam(lr=1e-3))
"""
FURTHER = {
    "one activation more (Tanh)": "fastbp.Tanh(), fastbp.CrossEntropyLoss(), y, fastbp.Adam(lr=1e-3)",
    "one loss more (MSELoss)": "fastbp.ReLU(), fastbp.MSELoss(), np.eye(64, 10), fastbp.Adam(lr=1e-3)",
    "one optimizer more (SGD)": "fastbp.ReLU(), fastbp.CrossEntropyLoss(), y, fastbp.SGD(lr=1e-3)",
}
COLD_ROUNDS = 3  # of programs that compile


class _EmptyCache:
    """A directory without kernels for every process that asks."""

    def __call__(self):
        self.directory = tempfile.TemporaryDirectory()  # the one before is removed
        return {"FASTBP_CACHE_DIR": self.directory.name}


def _startup(shapes, names, protocol):
    """Fresh processes, from their start to their end."""

    def imports(module):
        return ProgramClock(f"import {module}")

    rivals = {name: Rival(imports(peers.IMPORTS[name]), "", f"import {peers.IMPORTS[name]}") for name in names}
    note = _import_note if "numpy" in names else None
    yield Case("W1", "import fastbp", imports("fastbp"), rivals, note=note)
    empty = _EmptyCache()
    yield Case(
        "W2",
        "first step, empty cache",
        ProgramClock(FIRST_STEP, environment=empty),
        {},
        most=5,
        most_rounds=COLD_ROUNDS,
    )
    for title, arguments in FURTHER.items():
        program = f"{FIRST_STEP}print(step({arguments}))"
        clock = ProgramClock(program, environment=empty, printed=True)
        yield Case("W2", title, clock, {}, most=0.5, most_rounds=COLD_ROUNDS)
    ProgramClock(FIRST_STEP).run()  # fill the cache
    yield Case("W2", "first step, kernels cached", ProgramClock(FIRST_STEP), {}, most=0.8)
    if not installed("sklearn"):
        return  # its digits are the data
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "digits.npz"
        _write_digits(path)
        rivals = {
            name: Rival(
                ProgramClock(peers.DIGITS[name], path), "", "the same network", 1 if name == "sklearn" else None
            )
            for name in names
            if name in peers.DIGITS
        }
        ours = ProgramClock(peers.DIGITS["fastbp"], path)
        ours.run()
        yield Case("W3", "digits to 97 %, kernels cached", ours, rivals)


def _import_note(result):
    more = (result["us"] - result["peers"]["numpy"]["us"]) / 1e6
    return f"import fastbp takes {more:.3f} s more than import numpy (aim: at most 0.03 s)"


def _write_digits(path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


# ---------------------------------------------------------------------------------------- the table
@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared: ``cases(shapes, peers, protocol)`` yields a `Case` for each row.

    ``title`` heads the column of what is timed and ``unit`` says what a time is of. ``peers`` are those compared with
    when none is asked for, ``further`` those that may be asked for. ``shapes`` are those of no ``--shapes``; None
    where it has none. ``columns`` are further ones: floor, p99, aim, or the name of a clock in ``Case.also``.
    ``threads`` are the fewest it can do with.
    """

    title: str
    unit: str
    cases: collections.abc.Callable
    peers: tuple[str, ...]
    further: tuple[str, ...] = ()
    shapes: dict[str, tuple] | None = None
    columns: tuple[str, ...] = ("floor",)
    scale: str = "µs"
    threads: int = 1

    def chosen(self, found):
        """Of the peers found, those it knows; its own where None were asked for."""
        if found is None:
            return [name for name in self.peers if all(map(installed, PEERS[name]))]
        return [name for name in found if name in self.peers + self.further]

    def beside_one_thread(self, threads):
        """Whether its cases set the threads that the library chooses beside one."""
        return self.cases in (_width, _busy) and threads > 1


STEPS = "layers @ batch", "a train step: an epoch of fit() divided by its batches"
COMPARISONS = {
    "steps": Comparison(
        *STEPS, _steps, ("torch", "jax"), ("numpy", "sklearn"),
        {name: SHAPES[name] for name in ("S1", "S2", "S3", "S4")}, ("floor", "train_step"),
    ),
    "predict": Comparison(
        "layers @ rows", "a call of predict() from Python", _predict, ("torch", "onnxruntime"), ("numpy", "jax"),
        PREDICTIONS, ("floor", "p99", "aim"),
    ),
    "gemm": Comparison(
        "product", "a product", _gemm, ("numpy", "torch"), columns=("floor", "fused")
    ),
    "elementwise": Comparison(
        "activation", "a call", _elementwise, ("torch",), columns=("contract",)
    ),
    "graph": Comparison(
        "graph", "forward and backward", _graph, ("torch",), columns=()
    ),
    "width": Comparison(
        *STEPS, _width, ("torch", "jax"), ("numpy", "sklearn"), WIDTHS
    ),
    "busy": Comparison(
        *STEPS, _busy, (), shapes={name: SHAPES[name] for name in ("S1", "S2", "S4", "S5")}, threads=2
    ),
    "startup": Comparison(
        "program", "a process, or what it prints", _startup, ("numpy", "sklearn", "torch"), ("jax",),
        columns=("aim",), scale="s",
    ),
    "many": Comparison(
        "networks, layers @ batch", "a step of one network", _many, ("jax",), shapes={"S2": SHAPES["S2"]}
    ),
}  # fmt: skip
GPU_COMPARISONS = {
    "steps": Comparison(
        STEPS[0], f"{STEPS[1]}, by the clock of the host", _steps, ("torch", "torch-graph"), (), GPU_SHAPES,
        ("events", "train_step"),
    ),
    "gemm": Comparison(
        "product", "a product, by events on the GPU's stream", _gpu_gemm, ("torch",), columns=()
    ),
}  # fmt: skip


# -------------------------------------------------------------------------------------------- report
MICROSECONDS = {"µs": 1, "s": 1e6}  # in a unit
EXPLAINED = {
    "floor": "floor: the products at the limit of multiply-adds, and its share of ours",
    "p99": "p99: what one call in a hundred exceeds, and the ratio of it",
    "aim": "aim: the time aimed at",
    "train_step": "train_step: one call from Python a step",
    "events": "events: a step of many launched together, by events on the GPU's stream, and the ratio of it",
    "fused": "fused: with bias and ReLU, its derivative, or the bias gradient",
    "contract": "contract: the same through the function that checks nothing but makes addresses",
}


def columns(comparison, names) -> list[tuple]:
    """(heading, width, function of a result) of every column."""
    unit = MICROSECONDS[comparison.scale]
    digits = ".3f" if comparison.scale == "s" else None

    def time(value):
        return _figure(value and value / unit, digits)

    def peer(name, key):
        return lambda result: result["peers"].get(name, {}).get(key)

    def cells(of, form):
        return lambda result: form(of(result))

    chosen = [
        ("", -6, lambda result: "" if "@" in result["name"] else result["name"]),
        (comparison.title, -30, lambda result: result["title"]),
        (f"ours {comparison.scale}", 9, lambda result: time(result["us"])),
    ]
    for column in comparison.columns:
        if column == "floor":
            chosen += [
                ("floor", 9, lambda result: time(result["floor_us"])),
                ("of it", 7, lambda result: _figure(result["fraction_of_limit"], ".0%")),
            ]
        elif column == "p99":
            chosen.append(("p99", 9, lambda result: time(result["p99_us"])))
        elif column == "aim":
            chosen.append(("aim", 8, lambda result: _figure(result["most_us"] and result["most_us"] / unit, "≤ g")))
    for name in names:
        chosen += [
            (f"{name} {comparison.scale}", max(12, len(name) + 5), cells(peer(name, "us"), time)),
            ("ratio", 7, cells(peer(name, "ratio"), lambda value: _figure(value, ".2f"))),
            ("aim", 8, cells(peer(name, "target_ratio"), lambda value: _figure(value, "≥ g"))),
        ]
        if "p99" in comparison.columns:
            chosen.append(("p99", 7, cells(peer(name, "p99_ratio"), lambda value: _figure(value, ".2f"))))
    for column in comparison.columns:
        if column not in ("floor", "p99", "aim"):
            chosen.append((column, 12, lambda result, column=column: time(result["also_us"].get(column))))
        if column == "events":
            for name in names:
                of_peer = peer(name, "also_ratio")
                chosen.append(
                    (name, len(name) + 3, lambda result, of=of_peer: _figure((of(result) or {}).get("events"), ".2f"))
                )
    return [*chosen, ("  rounds", -8, _rounds)]


def heading(comparison, names) -> str:
    """The line above the rows."""
    return _line((title, width) for title, width, _ in columns(comparison, names))


def row(comparison, names, result) -> str:
    """One case."""
    return _line((cell(result), width) for _, width, cell in columns(comparison, names))


def remarks(comparison, results) -> list[str]:
    """What a reader of the rows has to know besides."""
    lines = [
        f"{comparison.scale} {comparison.unit}, medians",
        "ratio: peer / ours, median over rounds; dropped: disturbed rounds",
        *(EXPLAINED[column] for column in comparison.columns),
    ]
    for name in dict.fromkeys(name for result in results for name in result["peers"]):
        found = [result["peers"][name] for result in results if name in result["peers"]]
        line = (
            f"{name} {found[0]['version']}".rstrip() + ": " + " / ".join(dict.fromkeys(peer["how"] for peer in found))
        )
        if "difference" in found[0]:
            line += f"; differs from ours by at most {max(peer['difference'] for peer in found):.0e}"
        lines.append(line)
    loads = [result["load"] for result in results if result["load"] is not None]
    if loads:
        lines.append(f"load of the machine, this process included: {min(loads):.1f} to {max(loads):.1f}")
    for result in results:
        notes = [result["note"]] if result.get("note") else []
        if "ours_warmup_seconds" in result:
            warmups = {"ours": result["ours_warmup_seconds"]}
            warmups |= {n: peer["warmup_seconds"] for n, peer in result["peers"].items() if "warmup_seconds" in peer}
            times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in warmups.items())
            notes.append(f"first epoch, compilation included: {times}")
        if result.get("batches", BATCHES) < BATCHES:
            notes.append(f"{result['batches']} batches an epoch instead of {BATCHES}, to keep it near 2 s")
        notes += [f"without {name}: {reason}" for name, reason in result["left_out"].items()]
        if not result["rounds_used"]:
            notes.append("no undisturbed round: the figures are of disturbed ones")
        if notes:
            lines.append(f"{result['name']}: " + "; ".join(notes))
    return lines


def title_of(shape) -> str:
    """Layers and batch."""
    widths, activation, batch, _ = shape
    return "-".join(map(str, widths)) + ("" if activation == "relu" else f" {activation}") + f" @ {batch}"


def _rounds(result):
    dropped = f" ({result['rounds_dropped']} dropped)" if result["rounds_dropped"] else ""
    return f"  {result['rounds_used']}{dropped}"


def _line(cells):
    return " " + "".join(f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in cells).rstrip()


def _figure(value, form=None):
    if value is None:
        return "-"
    if form and form[0] in "≤≥":
        return form.replace("g", f"{value:.3g}")
    return f"{value:{form or ('.1f' if value < 1000 else ',.0f')}}".replace(",", " ")
