"""`Sequential`: layers lowered to a network table, walked by compiled code or a row at a time.

``fit``, ``train_step`` and ``predict`` hand the whole table to the kernels. ``model(x)`` and ``backward`` make the same
kernel calls a row at a time and keep the values between rows, for users' own loops.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import backend, checks, files, schedules, training
from .checks import Array
from .graph import Variable
from .kernels import table as network_table
from .kernels.splitmix import layer_key
from .layers import IDENTITY, LAYERS, Activation, Call, Dropout, Layer, Linear
from .losses import LOSSES, Loss, LossFunction
from .optimizers import OPTIMIZERS, Optimizer
from .parameters import Parameter, Parameters
from .steps import single_step

# Predictions are made in blocks of about this many multiply-adds and bytes of rows: Ctrl-C is answered between blocks,
# and a conversion takes no more memory than a block.
BLOCK_OPERATIONS = 1 << 28
BLOCK_BYTES = 16 << 20
DEVICE_BLOCK_BYTES = 64 << 20  # where rows are sent to a device, which takes only microseconds for 16 MiB

_DROPOUT = network_table.KINDS.index("dropout")
_BUSY = "this model is being trained already; train a copy.deepcopy of it instead"


class Sequential:
    """A chain of layers that trains and predicts.

    Parameters
    ----------
    *layers : Linear, activation or Dropout
        At least one `Linear`. The layers become part of the model: their arrays are views into its buffer, and
        values set before are kept.
    dtype : str
        ``"float32"`` or ``"float64"``: of the parameters and of all computation.
    device : str
        ``"cpu"``, ``"cuda"`` (an NVIDIA GPU; needs the extra of that name) or ``"reference"``.
    seed : int, optional
        Seed of the one generator that draws initial values and shuffles; it is saved with the model.
    precision : str
        The format that factors of matrix products are rounded to; ``"ieee"`` rounds nothing. On ``"cuda"`` in float32
        ``"tf32"`` (8 bits of exponent, 10 of mantissa) and ``"bf16"`` (8 and 7) use the tensor cores; their sums, and
        all other operations, stay float32. Files keep neither precision nor device.

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
        rows, prefixes = _lowered(layers)
        self._parameters = Parameters(rows, prefixes, self.dtype, device, precision)
        self.layers = layers
        self.generator = checks.generator("seed", seed)
        self.training = True
        self.history: training.History | None = None
        self.optimizer: Optimizer | None = None
        self.metadata: dict[str, Any] = {}
        self._loss = None  # the last loss trained with: predict_proba follows it
        places = [row for row, (kind, *_) in enumerate(rows) if kind == "linear"]
        linear = [layer for layer in layers if isinstance(layer, Linear)]
        values = [layer.first_values(self.generator) for layer in linear]
        for layer, row, pair in zip(linear, places, values, strict=True):
            layer.adopt(self._parameters, row, pair)
        self._prepare()

    def _prepare(self):
        """Make what belongs to this process: views, workspaces, locks."""
        table = self._parameters.table
        self._kernels = self._parameters.backend
        self._values = self._parameters.values
        self._drops = bool((table[:, network_table.KIND] == _DROPOUT).any())
        self._no_keys = np.zeros(1, np.uint64)
        self._activations = [network_table.activation_of(row) for row in table]
        self._precision = int(table[0, network_table.PRECISION])
        self._first_trained = int((table[:, network_table.WEIGHT] >= 0).argmax())
        self.in_features = int(table[0, network_table.FAN_IN])
        self.out_features = int(table[-1, network_table.FAN_OUT])
        self._inference_workspaces = []  # free ones: every concurrent predict takes one
        self._training_workspaces = {}  # (loss code and parameter, optimizer code) -> (capacity, workspace)
        self._step = None  # what the last train_step made ready
        self._drop_key = None  # random bits of the last forward pass, when it was in training mode
        self._trace = None  # (input, saved) of every row of the last forward
        row_bytes = (self.in_features + self.out_features) * self.dtype.itemsize
        if self._parameters.on_host:
            self._empty, self._batch = np.empty, checks.batch
            self.prediction_block = max(1, min(BLOCK_OPERATIONS // self._parameters.size, BLOCK_BYTES // row_bytes))
        else:  # the results of layers stay on the device
            self._empty, self._batch = self._kernels.empty, self._kernels.batch
            self.prediction_block = max(1, DEVICE_BLOCK_BYTES // row_bytes)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        names = "dtype layers generator training history optimizer metadata _loss _parameters"
        return {name: getattr(self, name) for name in names.split()}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
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
                for layer in self.layers:
                    layer.device, layer.last_call = device, None
            self._prepare()
        return self

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
        flat = self._parameters.checked_flat("flat_parameters", value)
        self._parameters.unpack(flat, self._parameters.values)
        self._parameters.version += 1

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
        """Copies of all parameters by name: ``"0.weight"`` (in, out), ``"0.bias"`` (out,), …"""
        return {parameter.name: np.array(parameter.data) for parameter in self.parameters()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy in what `state_dict` returned; names and shapes must be those of this model."""
        parameters = self.parameters()
        names = {parameter.name for parameter in parameters}
        if set(state) != names:
            raise ValueError(
                f"state must have the keys of this model; missing {sorted(names - set(state))}, "
                f"unknown {sorted(set(state) - names)}"
            )
        arrays = [checks.numeric(parameter.name, state[parameter.name]) for parameter in parameters]
        for parameter, array in zip(parameters, arrays, strict=True):
            checks.shape(parameter.name, array, parameter.shape)
        for parameter, array in zip(parameters, arrays, strict=True):
            parameter.data = array

    def to_torch_state_dict(self) -> dict[str, Array]:
        """`state_dict` in PyTorch's layout: ``"0.weight"`` is (out, in); its keys are those of an ``nn.Sequential``.

        PyTorch is not needed; there, ``module.load_state_dict({name: torch.from_numpy(array) for name, array in
        model.to_torch_state_dict().items()})``. `fastbp.from_torch` is the way back.
        """
        return {parameter.name: parameter.data.T.copy() for parameter in self.parameters()}

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
    @overload
    def __call__(self, x: Variable) -> Variable: ...
    @overload
    def __call__(self, x: ArrayLike) -> Array: ...
    def __call__(self, x: ArrayLike | Variable) -> Any:
        return self.forward(x)

    @overload
    def forward(self, x: Variable) -> Variable: ...
    @overload
    def forward(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike | Variable) -> Any:
        """The output for a batch; keeps what `backward` needs.

        Parameters
        ----------
        x : array (n, in), or Variable
            Kept when it needed no conversion: do not change it before `backward`.

        Returns
        -------
        array (n, out), or Variable
            For a `fastbp.Variable`, a Variable whose ``grad_fn`` is the whole network.
        """
        if type(x) is Variable:
            return Call.apply(self, self.forward, x)
        return self.forward_in_mode(x, self.training)

    def forward_in_mode(self, x: ArrayLike, training: bool) -> Array:
        """`forward` in training or in evaluation mode, whatever the mode of the model."""
        return self.handed_out(self.outputs(x, training))

    def handed_out(self, out: Any) -> Array:
        """The result of `outputs` on the host; the caller may change it, as `backward` does not read it."""
        result = self._kernels.to_host(out)
        if self._trace[-1][1] is result and self._activations[-1][0] != IDENTITY[0]:
            return out.copy()
        return result

    def outputs(self, x: ArrayLike, training: bool) -> Any:
        """`forward_in_mode` with its result left on the device of the model."""
        x = self._batch("x", x, self.in_features, self.dtype)
        kernels, trace = self._kernels, []
        self._drop_key = self.step_keys(1)[0] if training else None
        rows = zip(self._parameters.table, self._parameters.views, self._activations, strict=True)
        for i, (row, (weight, bias), activation) in enumerate(rows):
            out = self._empty((len(x), int(row[network_table.FAN_OUT])), self.dtype)
            output_is_enough = row[network_table.SAVED] == row[network_table.OUTPUT]
            if row[network_table.KIND] == _DROPOUT:
                self._drop(i, x, out)
                saved = out
            elif weight is None:
                kernels.activation_forward(x, *activation, out)
                saved = out if output_is_enough else x
            else:
                saved = out if output_is_enough else self._empty(out.shape, self.dtype)
                kernels.linear_forward(x, weight, bias, *activation, out, saved, self._precision)
            trace.append((x, saved))
            x = out
        self._trace = trace
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
        return self._backward(grad_output, True, accumulate)

    def backward_input(self, grad_output: ArrayLike) -> Array:
        """`backward` without the gradients of the parameters: stored ones are kept."""
        return self._backward(grad_output, False)

    def backward_parameters(self, grad_output: ArrayLike, accumulate: bool = False) -> None:
        """`backward` without the gradient of the input, whose product can be the largest.

        Parameters
        ----------
        grad_output, accumulate
            As of `backward`.
        """
        self._backward(grad_output, True, accumulate, self._first_trained)

    def _backward(self, grad_output, store, accumulate=False, last_row=None):
        if self._trace is None:
            raise RuntimeError("backward() needs a forward pass before it: call model(x) first")
        trace, activations, kernels = self._trace, self._activations, self._kernels
        grad = self._batch("grad_output", grad_output, self.out_features, self.dtype, len(trace[0][0]))
        gradient_views = self._parameters.store_gradients(all_overwritten=not accumulate) if store else None
        grad_z = self._empty(grad.shape, self.dtype)
        kernels.activation_backward(grad, trace[-1][1], *activations[-1], grad_z)
        for i in range(len(trace) - 1, -1, -1):
            x = trace[i][0]
            weight = self._parameters.views[i][0]
            if store and weight is not None:
                kernels.linear_backward_params(x, grad_z, int(accumulate), *gradient_views[i], self._precision)
            if i == last_row:
                return None
            # The input of the first row has no activation before it.
            saved, activation = (trace[i - 1][1], activations[i - 1]) if i else (x, IDENTITY)
            grad_z_prev = self._empty(x.shape, self.dtype)
            if weight is None:
                if self._parameters.table[i, network_table.KIND] == _DROPOUT:
                    self._drop(i, grad_z, grad_z)
                kernels.activation_backward(grad_z, saved, *activation, grad_z_prev)
            else:
                kernels.linear_backward_input(grad_z, weight, saved, *activation, grad_z_prev, self._precision)
            grad_z = grad_z_prev
        return kernels.to_host(grad_z)

    @property
    def last_call(self) -> Any:
        """What `backward` needs of the last `forward`."""
        return self._trace, self._drop_key

    @last_call.setter
    def last_call(self, call: Any) -> None:
        self._trace, self._drop_key = call

    @property
    def network(self) -> Parameters:
        """The `Parameters`."""
        return self._parameters

    def _drop(self, row, x, out):
        """Dropout of a row of the table, by the key of the last forward pass; none when that was in eval mode."""
        if self._drop_key is None:
            self._kernels.activation_forward(x, *IDENTITY, out)
        else:
            key = int(layer_key(self._drop_key, row).view(np.int64))
            self._kernels.dropout(x, np.arange(len(x)), key, self._activations[row][1], out)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model for training; a second trainer is refused."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_BUSY)
        try:
            yield
        finally:
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
            self._step = step = single_step(self, loss, optimizer)
        taken = []
        try:
            taken.extend(map(self._lock.acquire, (False,)))  # one call: an interrupt comes before it or after
            if not taken[0]:
                raise RuntimeError(_BUSY)
            return step(x, y)
        finally:
            if taken == [True]:
                self._lock.release()

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
        key = network_table.LOSSES.index(kernel), loss.parameter, optimizer.code
        capacity, workspace = self._training_workspaces.get(key, (0, None))
        if capacity < batch_size:
            workspace = self._kernels.TrainingWorkspace(self._parameters.table, self.dtype, batch_size, *key)
            self._training_workspaces[key] = batch_size, workspace
        return workspace

    fit = training.fit

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
            workspace = self._kernels.InferenceWorkspace(self._parameters.table, self.dtype)
        block = self.prediction_block
        if simple and len(X) <= block:
            self._kernels.network_forward(workspace, self._values, X, out)
        else:
            direct = not isinstance(X, np.ndarray) or (checks.readable(X) and self._kernels.gathers(X.dtype))
            for start in range(0, len(X), block):
                part = X[start : start + block]
                part = part if direct else checks.converted(part, self.dtype)
                self._kernels.network_forward(workspace, self._values, part, out[start : start + block])
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
        lines = [f"{'layer':<24}{'output':>10}{'parameters':>14}{'FLOPs a sample':>18}"]
        width, operations = self.in_features, 0
        for i, layer in enumerate(self.layers):
            count = flops = 0
            if isinstance(layer, Linear):
                width = layer.out_features
                count = layer.in_features * width + width * layer.has_bias
                flops = 2 * layer.in_features * width
            operations += flops
            lines.append(f"{f'{i} {type(layer).__name__}':<24}{width:>10,}{count:>14,}{flops:>18,}")
        count = self._parameters.count
        lines.append(f"{'total':<24}{'':>10}{count:>14,}{operations:>18,}")
        size = count * self.dtype.itemsize
        lines.append(f"{self.dtype.name} on {self.device}, {size:,} bytes of parameters")
        return "\n".join(lines)

    def summary(self) -> None:
        """Print layers, output widths, parameters, and the floating-point operations of a sample's forward pass."""
        print(self)

    def __repr__(self) -> str:
        layers = "".join(f"    {layer!r},\n" for layer in self.layers)
        precision = "" if self.precision == "ieee" else f' precision="{self.precision}",'
        return f'Sequential(\n{layers}    dtype="{self.dtype.name}", device="{self.device}",{precision}\n)'

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
        """
        arrays = self.state_dict()
        config = {
            "dtype": self.dtype.name,
            "layers": [[type(layer).__name__, layer.config()] for layer in self.layers],
            "loss": [type(self._loss).__name__, self._loss.config()] if type(self._loss) in LOSSES.values() else None,
            "training": self.training,
            "generator": self.generator.bit_generator.state,
            "metadata": self.metadata,
            "optimizer": None,
        }
        if optimizer is not None:
            checks.instance("optimizer", optimizer, tuple(OPTIMIZERS.values()))
            optimizer.bind(self._parameters)
            state = optimizer.state_dict()
            arguments = optimizer.config() | {"lr": schedules.to_json(optimizer.lr)}
            config["optimizer"] = [type(optimizer).__name__, arguments, state.pop("step_count")]
            arrays |= {f"optimizer.{name}": array for name, array in state.items()}
        files.write(path, config, arrays)


def load(path: str | os.PathLike[str], *, device: str = "cpu", precision: str = "ieee") -> Sequential:
    """Read a model that `Sequential.save` wrote.

    Parameters
    ----------
    path : str or path
    device, precision : str
        Where and how the model is to compute, as for `Sequential`; files are the same for all.

    Returns
    -------
    Sequential
        With the stored optimizer, if any, as ``model.optimizer``.

    Raises
    ------
    ValueError
        The file is not a model of this library, or damaged.
    """
    backend.require(device)
    config, arrays = files.read(path)
    with files.refusing(path):
        layers = [LAYERS[name](**arguments) for name, arguments in config["layers"]]
        for i, layer in enumerate(layers):
            if isinstance(layer, Linear):  # its setters check the shapes before the model is allocated
                layer.weight = arrays[f"{i}.weight"]
                if layer.has_bias:
                    layer.bias = arrays[f"{i}.bias"]
        model = Sequential(*layers, dtype=config["dtype"], device=device)
        model.generator.bit_generator.state = config["generator"]
        model.training, model.metadata = bool(config["training"]), dict(config["metadata"])
        if config["loss"] is not None:
            name, arguments = config["loss"]
            model._loss = LOSSES[name](**arguments)
        if config["optimizer"] is not None:
            name, arguments, step_count = config["optimizer"]
            rate = schedules.from_json(arguments["lr"])
            rate = _forgotten_rate if rate is None else rate
            model.optimizer = OPTIMIZERS[name](model.parameters(), **(arguments | {"lr": rate}))
            prefix = "optimizer."
            state = {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
            model.optimizer.load_state_dict({"step_count": step_count} | state)
        if set(arrays) != {parameter.name for parameter in model.parameters()}:
            raise ValueError(f"it has arrays {sorted(arrays)}, which are not those of its layers")
    return model.to(device, precision)


def _forgotten_rate(step):
    raise RuntimeError("the lr of this optimizer was a function, which a file cannot hold; set optimizer.lr again")


def _lowered(layers):
    """Rows for `kernels.table.lower` and the prefix of the names of each; an activation joins the linear before it."""
    width = None
    for i, layer in enumerate(layers):
        if not isinstance(layer, Linear | Activation | Dropout):
            raise TypeError(f"layer {i} must be a layer of fastbp, got {layer!r} of type {type(layer).__name__}")
        if isinstance(layer, Linear):
            if any(layer is earlier for earlier in layers[:i]) or layer.adopted:
                raise ValueError(
                    f"layer {i}, {layer!r}, is part of a model already; a Linear belongs to one place: make a new one"
                )
            if width not in (None, layer.in_features):
                raise ValueError(f"layer {i}, {layer!r}, must take in_features={width}, the outputs before it")
            width = layer.out_features
    if width is None:
        raise ValueError(f"a Sequential needs at least one Linear, got {layers!r}")
    width = next(layer.in_features for layer in layers if isinstance(layer, Linear))
    rows, prefixes = [], []
    for i, layer in enumerate(layers):
        if isinstance(layer, Linear):
            width = layer.out_features
            rows.append(layer.row)
            prefixes.append(f"{i}.")
        elif isinstance(layer, Dropout):
            rows.append(("dropout", width, width, False, "identity", layer.p))
            prefixes.append("")
        elif i and isinstance(layers[i - 1], Linear):
            rows[-1] = (*rows[-1][:4], layer.name, layer.parameter)
        else:
            rows.append(("activation", width, width, False, layer.name, layer.parameter))
            prefixes.append("")
    return rows, prefixes
