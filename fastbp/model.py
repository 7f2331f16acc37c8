"""`Sequential`: layers lowered to a program, which compiled code walks, or Python an instruction at a time.

``fit``, ``train_step`` and ``predict`` hand the whole program to the kernels. ``model(x)`` and ``backward`` walk the
same instructions in Python and keep what lies between, for loops of the user's own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import backend, chains, checks, files, summary, training, validation
from .checks import Array
from .kept import Kept
from .kernels import layout
from .kernels import program as programs
from .kernels.walk import Walk
from .layers import Layer, Residual
from .layers.base import Called
from .losses import LOSSES, Loss, LossFunction
from .optimizers import OPTIMIZERS, Optimizer
from .parameters import Parameter, Parameters
from .steps import single_step

T = TypeVar("T")

# Predictions are made in blocks of about this many multiply-adds and bytes of rows: Ctrl-C is answered between blocks,
# and a conversion takes no more memory than a block.
BLOCK_OPERATIONS = 1 << 28
BLOCK_BYTES = 16 << 20
DEVICE_BLOCK_BYTES = 64 << 20  # where rows are sent to a device, which takes only microseconds for 16 MiB

# What other modules use and users do not: `dir` leaves it out.
_INTERNAL = frozenset(
    {"backward_input", "checked_inputs", "described", "exclusive", "exclusively", "forward_in_mode", "freeze"}
    | {"handed_out", "kept_training", "last_call", "last_loss", "layer_configs", "network", "outputs"}
    | {"prediction_block", "program", "remember_loss", "require_trainable", "step_keys", "training_workspace"}
)

_BUSY = "this model is being trained already; train a copy.deepcopy of it instead"


class Sequential(Called):
    """A chain of layers that trains and predicts.

    Parameters
    ----------
    *layers : layers
        At least one `Linear`. The layers become part of the model: their arrays are views into its buffer, and
        values set before are kept.
    dtype : str
        ``"float32"`` or ``"float64"``: of the parameters and of all computation.
    device : str
        ``"cpu"``, ``"cuda"`` (an NVIDIA GPU; needs the extra of that name) or ``"reference"``.
    seed : int, optional
        Seed of the one generator that draws initial values and shuffles; it is saved with the model.
    precision : str
        The format that factors of matrix products are rounded to, in float32; ``"ieee"`` rounds nothing. ``"bf16"`` (8
        bits of exponent, 7 of mantissa) and ``"bf16x3"``, factors as sums of two such numbers and products within
        ``2**-15 |X| |W|``, are for ``"cuda"`` and ``"cpu"``, ``"tf32"`` (8 and 10) for the tensor cores of ``"cuda"``.
        Sums, weights, updates and all other operations stay float32. Files keep neither precision nor device.

    Attributes
    ----------
    layers : tuple of layers
    history : History or None
        Of the last `fit`.
    metadata : dict
        Anything JSON can hold, kept in the file.
    optimizer : Optimizer or None
        The optimizer that a loaded file held; pass it to `fit` to continue training.
    """

    def __init__(
        self,
        *layers: Layer,
        dtype: DTypeLike = "float32",
        device: str = "cpu",
        seed: int | None = None,
        precision: str = "ieee",
    ) -> None:
        self.dtype = checks.dtype("dtype", dtype)
        chain = chains.Chain(layers)
        self._parameters = Parameters(chain.rows, chain.prefixes, self.dtype, device, precision)
        self.layers = layers
        self.generator = checks.generator("seed", seed)
        self.training = True
        self.history: training.History | None = None
        self.optimizer: Optimizer | None = None
        self.metadata: dict[str, Any] = {}
        self._loss = None  # the last loss trained with, which says what predict_proba means
        values = [layer.first_values(self.generator) for layer, _ in chain.placed]
        for (layer, row), first in zip(chain.placed, values, strict=True):
            layer.adopt(self._parameters, row, first)
        self._lock = threading.Lock()
        self._prepare()

    def _prepare(self):
        """What a process makes for itself, for the device where the parameters are: views, workspaces."""
        self._kernels = self._parameters.backend
        self._parameters.owner = weakref.ref(self)
        self._values, self._statistics = self._parameters.values, self._parameters.statistics
        self.program = self._parameters.program
        self.in_features, self.out_features = self.program.in_features, self.program.out_features
        self._drops, self._no_keys = self.program.drops, np.zeros(1, np.uint64)
        self._inference_workspaces = []  # free ones: every concurrent predict takes one
        self._training_workspaces = {}  # (loss code, optimizer code) -> (capacity, loss parameter, workspace)
        self._step = None  # what the last train_step made ready
        self.kept_training: Kept | None = None  # of the last fit
        self._walk = None  # of the last forward pass
        row_bytes = (self.in_features + self.out_features) * self.dtype.itemsize
        if self._parameters.on_host:
            self._empty, self._batch = np.empty, checks.batch
            self.prediction_block = max(1, min(BLOCK_OPERATIONS // self._parameters.size, BLOCK_BYTES // row_bytes))
        else:  # the results of layers stay on the device
            self._empty, self._batch = self._kernels.empty, self._kernels.batch
            self.prediction_block = max(1, DEVICE_BLOCK_BYTES // row_bytes)

    def __getstate__(self) -> dict[str, Any]:
        names = "dtype layers generator training history optimizer metadata _loss _parameters"
        return {name: getattr(self, name) for name in names.split()}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._prepare()

    @property
    def device(self) -> str:
        return self._parameters.device

    @property
    def precision(self) -> str:
        return self._parameters.precision

    def to(self, device: str, precision: str = "ieee") -> Sequential:
        """Move the model to another device, with its layers, stored gradients and the state of its optimizers.

        Parameters
        ----------
        device : str
        precision : str
            As for a new model: the present precision is not carried over.

        Returns
        -------
        Sequential
            The model itself.

        Raises
        ------
        ImportError, RuntimeError, MemoryError
            The device cannot be used, or has no room: the error says what to do, and nothing has been changed.
        """
        checks.choice("device", device, backend.MODULES)
        if (device, precision) != (self.device, self.precision):
            with self.exclusive():
                self._parameters.to(device, precision)
                try:
                    for layer in chains.flattened(self.layers):
                        if not isinstance(layer, Residual):
                            layer.device = device
                        layer.last_call = None
                finally:
                    self._prepare()  # always: what was prepared before is for the other device
        return self

    def freeze(self, frozen: Collection[int]) -> None:
        """Let the rows of these numbers not train, and all others."""
        with self.exclusive():  # not while `fit` runs
            self._parameters.freeze(frozen)
        self._prepare()

    def require_trainable(self) -> None:
        """Refuse to train where every layer is frozen."""
        if not self.program.trained:
            raise ValueError("every layer of this model is frozen; set trainable = True for one at least")

    # ------------------------------------------------------------------------------ parameters
    def parameters(self) -> list[Parameter]:
        """Named views of all parameters, for an optimizer."""
        return self._parameters.named()

    @property
    def flat_parameters(self) -> Array:
        """Packed copy of all parameters: layer by layer the weight row by row, then the bias. Assigning writes."""
        return self._parameters.pack(self._parameters.values)

    @flat_parameters.setter
    def flat_parameters(self, value: ArrayLike) -> None:
        network = self._parameters
        flat, new = network.checked_flat("flat_parameters", value), network.copied_values()
        network.unpack(flat, new[0])
        network.restore_values(new)

    @property
    def flat_gradients(self) -> Array:
        """Packed copy of all gradients, ordered as `flat_parameters`. Assigning writes."""
        return self._parameters.pack(self._parameters.gradients)

    @flat_gradients.setter
    def flat_gradients(self, value: ArrayLike) -> None:
        flat = self._parameters.checked_flat("flat_gradients", value)
        self._parameters.store_gradients()
        self._parameters.unpack(flat, self._parameters.gradients)

    def zero_grad(self) -> None:
        """Set the stored gradients to zero. Not needed before `backward`, which overwrites them."""
        self._parameters.zero_gradients()

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and running statistics by name: ``"0.weight"`` (in, out), ``"0.bias"`` (out,), …"""
        return {part.name: part.copied() for part in self._parameters.state()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy in what `state_dict` returned; names and shapes must be those of this model."""
        parameters = self._parameters.state()
        names = {parameter.name for parameter in parameters}
        if set(state) != names:
            raise ValueError(
                f"state must have the keys of this model; missing {sorted(names - set(state))}, "
                f"unknown {sorted(set(state) - names)}"
            )
        arrays = [checks.numeric(parameter.name, state[parameter.name]) for parameter in parameters]
        for parameter, array in zip(parameters, arrays, strict=True):
            checks.shape(parameter.name, array, parameter.shape)
        network = self._parameters
        new = network.copied_values()  # apart from the arrays, which may be views of this model
        views = network.named_views(new)
        for parameter, array in zip(parameters, arrays, strict=True):
            network.write(views[parameter.name], array)
        network.restore_values(new)

    def to_torch_state_dict(self) -> dict[str, Array]:
        """`state_dict` in PyTorch's layout: ``"0.weight"`` is (out, in); its keys are those of an ``nn.Sequential``.

        PyTorch is not needed; there, ``module.load_state_dict({name: torch.from_numpy(array) for name, array in
        model.to_torch_state_dict().items()})``. `fastbp.from_torch` is the way back.
        """
        return {part.name: np.array(part.copied().T, order="C") for part in self._parameters.state()}

    # ------------------------------------------------------------------------------------ modes
    def train(self) -> Sequential:
        """Set the mode that ``model(x)`` obeys to training; returns the model."""
        self.training = True
        return self

    def eval(self) -> Sequential:
        """Set the mode that ``model(x)`` obeys to evaluation; returns the model."""
        self.training = False
        return self

    # ----------------------------------------------------------------------------- own loops
    def _output(self, x: ArrayLike) -> Array:
        return self.forward_in_mode(x, self.training)

    def forward_in_mode(self, x: Any, training: bool) -> Array:
        """`forward` in training or in evaluation mode, whatever the mode of the model."""
        out = self.outputs(x, training)
        self._walk.update_statistics()
        return self.handed_out(out)

    def handed_out(self, out: Any) -> Array:
        """The result of `outputs` on the host; the caller may change it, as `backward` does not read it."""
        result = self._kernels.to_host(out)
        return out.copy() if result is out and self._walk.listing.output_is_saved else result

    def outputs(
        self,
        x: Any,
        training: bool,
        row_weight: Array | None = None,
        numbers: Array | None = None,
        keys: Array | None = None,
        across: Callable[[str, list[Any]], None] | None = None,
    ) -> Any:
        """The prediction, where the model computes.

        ``row_weight`` counts in statistics of the batch; ``numbers`` are those that `Dropout` knows the rows by, by
        default their places in the batch; ``keys`` are of `step_keys`, by default the next ones; ``across`` is of
        `kernels.walk.Walk`.
        """
        x = self._batch("x", x, self.in_features, self.dtype)
        listing, network, n = self.program.training if training else self.program.evaluation, self._parameters, len(x)
        if keys is None:
            keys = self.step_keys(1) if training else self._no_keys
        walk = Walk(self._kernels, listing, network.whole, x, self._empty, across, key=keys[0])
        if "dropout" in listing.operations:
            walk.give(programs.ROWS, np.arange(n) if numbers is None else numbers)
        if "batch_moments" in listing.operations:
            if across is None:
                checks.batch_that_meets(n)
            weight = np.ones(n) if row_weight is None else np.asarray(row_weight, np.float64)
            walk.give(programs.ROW_WEIGHT, weight / max(weight.sum(), np.finfo(float).tiny))
        out = walk.forward()
        self._walk = walk  # only now: where something was refused the last forward pass stays what it was
        return out

    def backward(self, grad_output: ArrayLike, accumulate: bool = False) -> Array:
        """Gradients of all parameters, by the chain rule from the last layer to the first.

        Parameters
        ----------
        grad_output : array (n, out)
            Gradient with respect to the output of the last ``model(x)``.
        accumulate : bool
            Add to the stored gradients; by default they are overwritten.

        Returns
        -------
        array (n, in)
            Gradient with respect to the input.
        """
        self._backward(grad_output, True, accumulate)
        return self._input_gradient()

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """`backward` without the gradients of the parameters: those that are stored stay."""
        self._backward(grad_output, False)
        return self._input_gradient()

    def backward_parameters(self, grad_output: ArrayLike, accumulate: bool = False) -> None:
        """`backward` without the gradient of the input, whose product can be the largest.

        Parameters
        ----------
        grad_output, accumulate
            As of `backward`.
        """
        self._backward(grad_output, True, accumulate)

    def _backward(self, grad_output, store, accumulate=False):
        walk, network = self._walk, self._parameters
        if walk is None:
            raise RuntimeError("backward() needs a forward pass before it: call model(x) first")
        grad = self._batch("grad_output", grad_output, self.out_features, self.dtype, walk.rows)
        grad = network.apart_from_gradients(grad)
        walk.start_back(grad)
        walk.back()
        if store:
            network.store_gradients(all_overwritten=not accumulate)
            walk.parameter_gradients(network.whole_gradients, int(accumulate))

    def _input_gradient(self):
        return self._kernels.to_host(self._walk.input_gradient())

    @property
    def last_call(self) -> Any:
        """What `backward` needs of the last `forward`."""
        return self._walk

    @last_call.setter
    def last_call(self, call: Any) -> None:
        self._walk = call

    @property
    def network(self) -> Parameters:
        """The `Parameters`."""
        return self._parameters

    def exclusively(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call a function while the model is held as by `exclusive`, a generator, which is slower; what it returns."""
        taken = []
        try:
            taken.extend(map(self._lock.acquire, (False,)))  # one call: an interrupt comes before it or after
            if not taken[0]:
                raise RuntimeError(_BUSY)
            return call(*arguments)
        finally:
            if taken == [True]:
                self._lock.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model for training; a second trainer is refused."""
        taken = []
        try:
            taken.extend(map(self._lock.acquire, (False,)))  # one call: an interrupt comes before it or after
            if not taken[0]:
                raise RuntimeError(_BUSY)
            yield
        finally:
            if taken == [True]:
                self._lock.release()

    def train_step(self, x: ArrayLike, y: ArrayLike, loss: LossFunction, optimizer: Optimizer) -> float:
        """One step of training as one compiled call: forward, loss, backward, update.

        It is the same step as in a loop of your own. No gradients are stored. When the loss is not finite, nothing is
        updated.

        Parameters
        ----------
        x : array (n, in)
        y : array (n, out), or integer labels (n,)
        loss : loss
            With a user's function, or an optimizer with ``clip_norm``, the step takes several calls and gives the same
            numbers.
        optimizer : Optimizer

        Returns
        -------
        float
            Loss of the batch before the update.
        """
        step = self._step
        if step is None or step.loss is not loss or step.optimizer is not optimizer:
            step = single_step(self, loss, optimizer)
        return self.exclusively(self._train_step, step, x, y)

    def _train_step(self, step, x, y):
        value = step(x, y)
        if step is not self._step:  # only now: a step that is refused changes nothing
            self.remember_loss(step.loss)
            self._step = step
        return value

    def step_keys(self, steps: int) -> Array:
        """Random bits of the next training steps, uint64 (steps,), for dropout."""
        if self._drops:
            return self.generator.integers(2**64, size=steps, dtype=np.uint64)
        return self._no_keys if steps == 1 else np.zeros(steps, np.uint64)

    def remember_loss(self, loss: LossFunction) -> None:
        """Keep the loss that training starts with, and drop what an earlier `train_step` prepared."""
        self._step = None
        self._loss = loss if isinstance(loss, Loss) else None

    def training_workspace(self, loss: Loss, kernel: str, optimizer: Optimizer, batch_size: int) -> Any:
        """A workspace for batches of up to ``batch_size``, with this kernel of the loss."""
        key = layout.LOSSES.index(kernel), optimizer.code
        capacity, parameter, workspace = self._training_workspaces.get(key, (0, None, None))
        if capacity < batch_size or parameter != loss.parameter:  # one for each kernel, not for each parameter
            workspace = self._kernels.TrainingWorkspace(
                self.program, self.dtype, batch_size, key[0], loss.parameter, key[1]
            )
            self._training_workspaces[key] = batch_size, loss.parameter, workspace
        return workspace

    fit, evaluate = training.fit, validation.evaluate

    @property
    def last_loss(self) -> Loss | None:
        """The last loss of `fit` or `train_step`, which a file keeps; None where it was a user's function."""
        return self._loss

    # ------------------------------------------------------------------------------ predictions
    @overload
    def predict(self, X: ArrayLike, *, to_host: Literal[True] = True) -> Array: ...
    @overload
    def predict(self, X: ArrayLike, *, to_host: bool) -> Any: ...
    def predict(self, X: ArrayLike, *, to_host: bool = True) -> Any:
        """Outputs of the network, whatever the mode; several threads may call it at once.

        Parameters
        ----------
        X : array (n, in)
            Any real dtype and layout; what is not read directly is converted a block at a time.
        to_host : bool
            Whether the result is copied to the host; if not, it stays on the device of the model. This matters only for
            the device "cuda", whose arrays offer ``__dlpack__`` and ``__cuda_array_interface__``.

        Returns
        -------
        array (n, out)
            In the dtype of the model. A row has the same bits whatever rows are around it.
        """
        simple = type(X) is np.ndarray and X.dtype == self.dtype and X.ndim == 2 and checks.readable(X)
        if not simple or X.shape[1] != self.in_features:
            X = self.checked_inputs("X", X)
        out = (np.empty if to_host else self._kernels.empty)((len(X), self.out_features), self.dtype)
        try:
            workspace = self._inference_workspaces.pop()
        except IndexError:
            workspace = self._kernels.InferenceWorkspace(self.program, self.dtype)
        block = self.prediction_block
        if simple and len(X) <= block:
            self._kernels.network_forward(workspace, self._values, self._statistics, X, out)
        else:
            direct = not isinstance(X, np.ndarray) or (checks.readable(X) and self._kernels.gathers(X.dtype))
            for start in range(0, len(X), block):
                part = X[start : start + block]
                part = part if direct else checks.converted(part, self.dtype)
                self._kernels.network_forward(
                    workspace, self._values, self._statistics, part, out[start : start + block]
                )
        self._inference_workspaces.append(workspace)
        return out

    def checked_inputs(self, argument: str, X: Any) -> Any:
        """X as a matrix with a column a feature, of the host or of the device; no copy."""
        if not self._parameters.on_host and self._kernels.is_there(X):
            return self._kernels.matrix(argument, X, self.in_features)
        return checks.matrix(argument, X, self.in_features)

    @overload
    def predict_proba(self, X: ArrayLike, loss: Loss | None = None, *, to_host: Literal[True] = True) -> Array: ...
    @overload
    def predict_proba(self, X: ArrayLike, loss: Loss | None = None, *, to_host: bool) -> Any: ...
    def predict_proba(self, X: ArrayLike, loss: Loss | None = None, *, to_host: bool = True) -> Any:
        """Probabilities as the loss defines them: softmax, sigmoid, or the outputs themselves.

        Parameters
        ----------
        X : array (n, in)
        loss : loss, optional
            A classification loss; by default the last one that `fit` or `train_step` used, which is kept in the
            file. The softmax for `CrossEntropyLoss`, the sigmoid for `BCEWithLogitsLoss`, the outputs for `BCELoss`.
        to_host : bool
            As in `predict`.

        Returns
        -------
        array (n, out)

        Raises
        ------
        ValueError
            The loss is none of these.
        """
        loss = self._loss if loss is None else loss
        if not hasattr(loss, "probabilities"):
            raise ValueError(
                f"predict_proba needs a classification loss, got {loss!r}; "
                f"pass loss=fastbp.CrossEntropyLoss() if the outputs are logits of classes"
            )
        probability = loss.probabilities(self.predict(X, to_host=False), device=self.device)
        return self._kernels.to_host(probability) if to_host else probability

    # ------------------------------------------------------------------------------- description
    def __str__(self) -> str:
        return summary.table(self)

    def summary(self) -> None:
        """Print layers, output widths, parameters, and the floating-point operations of a sample's forward pass."""
        print(self)

    def __repr__(self) -> str:
        layers = "".join(f"    {layer!r},\n" for layer in self.layers)
        precision = "" if self.precision == "ieee" else f' precision="{self.precision}",'
        return f'Sequential(\n{layers}    dtype="{self.dtype.name}", device="{self.device}",{precision}\n)'

    def __dir__(self) -> list[str]:
        return sorted(set(super().__dir__()) - _INTERNAL)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        return self.layers[index]

    # ------------------------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str], optimizer: Optimizer | None = None) -> None:
        """Write the model to a file, wholly or not at all.

        The file keeps layers, parameters, dtype, generator, the last loss and `metadata`.

        Parameters
        ----------
        path : str or path
            Ends in ``.npz``, or in ``.safetensors``, which needs the extra of that name. An older file there stays
            until the new one is complete.
        optimizer : Optimizer, optional
            The optimizer the model was trained with, to go on later as if training had not stopped. An ``lr``
            that is a function other than a schedule of fastbp is not kept.

        Raises
        ------
        RuntimeError
            On the thread that trains the model, in the middle of a step, as in a signal handler: there
            `fastbp.request_checkpoint` serves. Another thread waits for the end of the step.
        """
        if optimizer is not None:
            checks.instance("optimizer", optimizer, tuple(OPTIMIZERS.values()))
        with self._parameters.changes.none("saving a model"):
            config, arrays = self.described(optimizer)
        files.write(path, config, arrays)

    def layer_configs(self) -> list[Any]:
        """The kinds of the layers and their arguments, as JSON."""
        return [[type(layer).__name__, layer.config()] for layer in self.layers]

    def described(self, optimizer: Optimizer | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
        """What files keep of a model and its optimizer: JSON, and copies of arrays by name."""
        arrays = self.state_dict()
        config = {
            "dtype": self.dtype.name,
            "layers": self.layer_configs(),
            "loss": [type(self._loss).__name__, self._loss.config()] if type(self._loss) in LOSSES.values() else None,
            "training": self.training,
            "generator": self.generator.bit_generator.state,
            "metadata": self.metadata,
            "optimizer": None,
        }
        if self.program.frozen:
            config["frozen"] = sorted(self.program.frozen)
        if optimizer is not None:
            optimizer.bind(self._parameters)
            state = optimizer.state_dict()
            config["optimizer"] = [type(optimizer).__name__, optimizer.json_config(), state.pop("step_count")]
            arrays |= {f"optimizer.{name}": array for name, array in state.items()}
        return config, arrays

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the network as an ONNX file, which other programs run: what `predict` computes, in the model's dtype.

        The file is of opset 20 and has one input, ``"input"`` (rows, in), and one output, ``"output"`` (rows, out),
        for any number of rows. The output is that of the last layer, for a classifier its logits. Dropout is left out;
        the parameters bear the names of `state_dict`.

        Parameters
        ----------
        path : str or path
            An older file there stays until the new one is complete.

        Raises
        ------
        ImportError
            The package onnx is not there: ``pip install "fastbp[onnx]"``.

        Notes
        -----
        ONNX Runtime's CPU computes float64 networks only of ``Linear``, the normalisations, ``ReLU``, ``Tanh``,
        ``Sigmoid``, ``SiLU`` and ``Residual``: it has no other activations in float64. ONNX rounds the ``eps`` of a
        normalisation to float32.
        """
        from . import onnx

        onnx.write(self, path)

    def to_c(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Write the network as a C99 header without allocation, which needs ``math.h`` alone.

        The header defines ``void NAME_predict(const NAME_real *input, NAME_real *output)``, which computes one row of
        what `predict` does, for a classifier its logits, and the sizes ``NAME_INPUTS`` and ``NAME_OUTPUTS``.
        ``NAME_real`` is ``float`` or ``double``, as the dtype of the model. What lies between the layers is on the
        stack, ``NAME_SCRATCH`` numbers. A long row of products is summed one after the other, in that dtype.

        Parameters
        ----------
        path : str or path
            An older file there stays until the new one is complete.
        name : str, optional
            What all names in the header begin with; by default the name of the file without its ending.

        Raises
        ------
        ValueError
            ``name`` cannot begin a name of C; a parameter is not finite.
        """
        from . import c99

        c99.write(self, path, name)
