"""A program that uses every public name; `test_types.py` runs it and checks its types."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.neural_network import MLPRegressor as Theirs

import fastbp
from fastbp import Variable
from fastbp.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV
from fastbp.tabular import Predictor, Preprocessing, Stored, learn

fastbp.set_num_threads(fastbp.get_num_threads())
request = fastbp.request_checkpoint  # for handlers of signals
seconds: float = fastbp.warmup("float32", activations=["relu"], losses=["cross_entropy"], optimizers=["sgd"])
threads: str = fastbp.show_config()["threads"]

rng = np.random.default_rng(0)
X, labels = rng.standard_normal((64, 4)), rng.integers(0, 3, 64)
y = X[:, :1] > 0

# Several processes
communicator: fastbp.distributed.Communicator = fastbp.distributed.alone()
communicator.barrier()
ranks = communicator.rank, communicator.size
others = fastbp.distributed.mpi, fastbp.distributed.nccl

# Layers
activations = [fastbp.ELU(alpha=1.0), fastbp.GELU("tanh"), fastbp.SELU(), fastbp.SiLU(), fastbp.Softplus()]
activations += [fastbp.Identity(), fastbp.LeakyReLU(negative_slope=0.1), fastbp.Mish(), fastbp.Sigmoid()]
for activation in (*activations, fastbp.Tanh()):
    output: np.ndarray[Any, Any] = activation(X)
layer = fastbp.Linear(4, 2, init="kaiming_normal", seed=0)
layer.weight = np.ones((4, 2))
layer.backward(np.ones_like(layer(X)))
layer.update_parameters(learning_rate=0.1)
total = float(layer.grad_weight.sum())

# Training, prediction and files
block = fastbp.Residual(fastbp.LayerNorm(8), fastbp.Linear(8, 8), fastbp.ReLU(), fastbp.Dropout(0.1))
model = fastbp.Sequential(fastbp.Linear(4, 8), block, fastbp.Linear(8, 3), seed=0)
variances = fastbp.BatchNorm1d(4, momentum=0.2).forward(X).var(axis=0)
cross_entropy = fastbp.CrossEntropyLoss(label_smoothing=0.1, class_weight=[1, 2, 1], ignore_index=-100)
stopping = fastbp.EarlyStopping(patience=1)
history: fastbp.History = model.fit(
    X, labels, loss=cross_entropy, optimizer=fastbp.Adam(lr=fastbp.CosineSchedule(1e-2, steps=8)), epochs=2,
    batch_size=16, validation_data=(X, labels), callbacks=[stopping], verbose=False,
)  # fmt: skip
best: float = min(history["val_loss"])
classes = model.predict_proba(X).argmax(axis=1)
model.summary()
with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "model.npz")
    model.to_onnx(Path(folder) / "model.onnx")
    model.to_c(Path(folder) / "model.h", name="network")
    same = fastbp.load(f"{folder}/model.npz", device="cpu").predict(X) == model.predict(X)
    watching = [fastbp.ReduceLROnPlateau(factor=0.5, patience=2), fastbp.ModelCheckpoint(f"{folder}/best.npz")]
    model.fit(
        X, labels, loss=cross_entropy, optimizer=fastbp.Adam(), callbacks=watching, verbose=False,
        validation_split=0.25, checkpoint=f"{folder}/run", every=1, resume=f"{folder}/run",
    )  # fmt: skip
suggestion: float = fastbp.find_lr(model, X, labels, loss=cross_entropy, optimizer=fastbp.SGD()).suggestion
scores: dict[str, float | None] = model.evaluate(X, labels, loss=cross_entropy)
chunks = [(X, labels), (X, labels)]
model.fit(chunks, loss=cross_entropy, optimizer=fastbp.SGD(momentum=0.9, nesterov=True), verbose=False)

# Tables
columns = {"x": X[:, 0], "colour": ["red", "blue"] * 32}
preprocessing = Preprocessing(one_hot=10).fit(columns, labels)
inputs: np.ndarray[Any, Any] = preprocessing.transform(columns, "float32")
learned = learn(Stored({"age": X[:, 0], "label": labels}), "label").data("float32")["train"][0]
rows_of_a_file: int = len(Stored(X).rows(2, 5).loaded())
predictor_type: type[Predictor] = Predictor

# A loop of one's own, with a loss of one's own as well
model.train()
rises: float = fastbp.CosLogSchedule(0.1, steps=8)(4)
optimizer = fastbp.AdamW(model.parameters(), lr=fastbp.WarmupSchedule(fastbp.StepSchedule(1e-2, every=4), steps=2))
for xb, yb in fastbp.batches(X, labels, batch_size=16, seed=0):
    loss, gradient = cross_entropy(model(xb), yb)
    gradient_x = model.backward(gradient)
    optimizer.step()
loss = 2 * model.train_step(X, labels, cross_entropy, optimizer)


def squared(prediction: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
    difference = prediction - target
    return float((difference**2).sum()), 2 * difference


# Losses and optimizers
momentum = fastbp.Momentum(lr=0.01, beta=0.9)
optimizers = [fastbp.Adam(amsgrad=True), fastbp.RMSProp(lr=lambda step: 0.01 / (1 + step), clip_norm=1.0)]
optimizers += [fastbp.SGD(lr=fastbp.OneCycleSchedule(0.1, steps=8)), fastbp.Lion(lr=1e-3, betas=(0.9, 0.99))]
several = [fastbp.Sequential(fastbp.Linear(4, 1), seed=seed) for seed in range(4)]
fits = fastbp.fit_many(several, X, y, loss=fastbp.BCEWithLogitsLoss(pos_weight=2.0), optimizer=optimizers, epochs=2)
losses = [fastbp.HalfSquaredErrorLoss(), fastbp.MSELoss(), fastbp.L1Loss(), fastbp.HuberLoss(delta=0.5)]
losses += [fastbp.PoissonLoss(), fastbp.QuantileLoss(q=0.9)]
for one in (*losses, squared):
    several[0].fit(X, y, loss=one, optimizer=optimizers[0], epochs=1, verbose=False)
probability = several[1].predict_proba(X)
value, gradient = fastbp.BCELoss()(probability, y, sample_weight=np.ones(64))


# Gradients of any computation
class Square(fastbp.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grad


w = Variable(np.ones((4, 1)), requires_grad=True, name="w")
z = (Square.apply(X @ w) + 1).log().mean() + cross_entropy(model(w.T), [0]) - fastbp.autograd.exp(-w).sum() / 4
z.backward()
assert w.grad is not None
with fastbp.autograd.no_grad():
    w -= 0.1 * w.grad
print(f"{z.item():.3f}", w.shape)
errors: dict[str, float] = fastbp.gradcheck(layer, X)
saliency = fastbp.input_gradient(model, X, labels, loss=cross_entropy) + fastbp.jacobian(model, X).sum(axis=1)

# Beside other libraries
linear = type("Linear", (SimpleNamespace,), {})(in_features=2, out_features=1, weight=np.ones((1, 2)), bias=None)
torch_module = type("Sequential", (list,), {"training": False})([linear])
converted = fastbp.from_torch(torch_module, dtype="float64").to_torch_state_dict()["0.weight"]
found = MLPClassifier(hidden_layer_sizes=(8,), max_iter=20, random_state=0, tol=10).fit(X, labels).predict(X)
theirs = Theirs(hidden_layer_sizes=(4,), max_iter=2).fit(X, X[:, 0])
coefficients = fastbp.to_sklearn(fastbp.from_sklearn(theirs)).coefs_
found = MLPSearchCV(MLPClassifier(max_iter=2, tol=10), {"alpha": [0.1, 1.0]}, cv=2).fit(X, labels).predict(X)
robust = MLPRegressor(fastbp.QuantileLoss(0.9), output_activation="softplus", normalization="layer", residual=True)
robust.set_params(learning_rate=fastbp.CosineSchedule(0.01, 9), max_grad_norm=1.0, max_iter=2, tol=10).fit(X, X[:, 0])
curve: list[float] = MLPRegressor(hidden_layer_sizes=8, max_iter=2).partial_fit(X, X[:, 0]).loss_curve_
figure = fastbp.plot_history(history)
figure.clear()
