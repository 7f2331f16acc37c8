"""What a user waits for in a fresh process: the import, the first step, and digits learned to 97 %."""

import tempfile
from pathlib import Path

import numpy as np

from .clocks import ProgramClock
from .measure import Case, Rival
from .process import installed

IMPORTS = {"numpy": "numpy", "torch": "torch", "jax": "jax", "sklearn": "sklearn.neural_network"}

# Digits in a file with x_train, y_train, x_test, y_test, until 97 % of the test part are right: 64-128-10, ReLU,
# batches of 64, Adam with lr 3e-3.
DIGITS = {
    "fastbp": """
import sys
import numpy as np
import fastbp
x, y, x_test, y_test = (np.load(sys.argv[1])[name] for name in ("x_train", "y_train", "x_test", "y_test"))
model = fastbp.Sequential(fastbp.Linear(64, 128), fastbp.ReLU(), fastbp.Linear(128, 10), seed=0)
loss, adam = fastbp.CrossEntropyLoss(), fastbp.Adam(lr=3e-3)
for epoch in range(200):
    model.fit(x, y, loss=loss, optimizer=adam, epochs=1, batch_size=64, verbose=False)
    if (model.predict(x_test).argmax(axis=1) == y_test).mean() >= 0.97:
        sys.exit(0)
sys.exit("97 % not reached")
""",
    "sklearn": """
import sys
import numpy as np
from sklearn.neural_network import MLPClassifier
x, y, x_test, y_test = (np.load(sys.argv[1])[name] for name in ("x_train", "y_train", "x_test", "y_test"))
model = MLPClassifier((128,), batch_size=64, learning_rate_init=3e-3, alpha=0, random_state=0)
for epoch in range(200):
    model.partial_fit(x, y, classes=range(10))
    if (model.predict(x_test) == y_test).mean() >= 0.97:
        sys.exit(0)
sys.exit("97 % not reached")
""",
    "torch": """
import sys
import numpy as np
import torch
x, y, x_test, y_test = (torch.from_numpy(np.load(sys.argv[1])[n]) for n in ("x_train", "y_train", "x_test", "y_test"))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
loss, adam = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
for epoch in range(200):
    for batch in torch.randperm(len(x)).split(64):
        adam.zero_grad(set_to_none=True)
        loss(model(x[batch]), y[batch]).backward()
        adam.step()
    with torch.inference_mode():
        if (model(x_test).argmax(dim=1) == y_test).double().mean() >= 0.97:
            sys.exit(0)
sys.exit("97 % not reached")
""",
}

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


def startup_cases(shapes, names, protocol):
    """Fresh processes, from their start to their end."""

    def imports(module):
        return ProgramClock(f"import {module}")

    rivals = {name: Rival(imports(IMPORTS[name]), "", f"import {IMPORTS[name]}") for name in names}
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
        write_digits(path)
        rivals = {
            name: Rival(ProgramClock(DIGITS[name], path), "", "the same network", 1 if name == "sklearn" else None)
            for name in names
            if name in DIGITS
        }
        ours = ProgramClock(DIGITS["fastbp"], path)
        ours.run()
        yield Case("W3", "digits to 97 %, kernels cached", ours, rivals)


def _import_note(result):
    more = (result["us"] - result["peers"]["numpy"]["us"]) / 1e6
    return f"import fastbp takes {more:.3f} s more than import numpy (aim: at most 0.03 s)"


def write_digits(path):
    """The data of `DIGITS`, as one file."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
