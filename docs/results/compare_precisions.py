"""What less precision of products costs in quality on the CPU: ``python docs/results/compare_precisions.py``.

Every seed is a split, first weights and an order of rows, the same in each precision; a network is trained for a
fixed number of epochs and measured on the test part: the accuracy of classes, R² of values. One more score is of the
network that was trained in float32 and predicts in bf16.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import sklearn
from sklearn import datasets
from sklearn.model_selection import train_test_split

import fastbp
from fastbp.cli.machine import commit

FILE = Path(__file__).with_name("precision.json")
HOW = (
    f"`python docs/results/compare_precisions.py`, data of scikit-learn {sklearn.__version__}: means over ten seeds, "
    "± standard errors; Adam, batches of 64"
)
SEEDS = 10
PRECISIONS = ("ieee", "bf16x3", "bf16")
# title: X and y, hidden widths, activation, epochs, learning rate
TASKS = {
    "digits, 64-128-64-10": (lambda: datasets.load_digits(return_X_y=True), (128, 64), fastbp.ReLU, 40, 2e-3),
    "Friedman's first regression (noise 0.1), 10-128-128-1": (
        lambda: datasets.make_friedman1(3000, noise=0.1, random_state=0), (128, 128), fastbp.Tanh, 150, 2e-3,
    ),
    "500 features of which 60 matter, 8 classes, 500-256-128-8": (
        lambda: datasets.make_classification(
            4000, 500, n_informative=60, n_redundant=100, n_classes=8, class_sep=2.0, random_state=0
        ),
        (256, 128), fastbp.ReLU, 25, 1e-3,
    ),
}  # fmt: skip


def trained(data, seed, precision, hidden, activation, epochs, lr):
    """A network, and its loss at the end of training."""
    X, y = data
    classes = y.dtype.kind == "i"
    widths = [X.shape[1], *hidden, y.max() + 1 if classes else 1]
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [fastbp.Linear(a, int(b)), activation()]
    model = fastbp.Sequential(*layers[:-1], seed=seed, precision=precision)
    history = model.fit(
        X, y, loss=fastbp.CrossEntropyLoss() if classes else fastbp.MSELoss(), batch_size=64, epochs=epochs,
        optimizer=fastbp.Adam(lr=fastbp.CosineSchedule(lr, epochs * -(-len(X) // 64))), verbose=False,
    )  # fmt: skip
    return model, history[-1]["loss"]


def score(model, X, y):
    """The accuracy of classes, else R²."""
    predicted = model.predict(X)
    if y.dtype.kind == "i":
        return float((predicted.argmax(axis=1) == y).mean())
    return float(1 - np.square(predicted - y).mean() / y.var())


def measured(load, *settings):
    """Scores on the test part and last losses, of every precision and seed."""
    X, y = load()
    scores, losses = {}, {}
    for seed in range(SEEDS):
        parts = [part.astype(np.float32) for part in train_test_split(X, random_state=seed, test_size=0.3)]
        targets = train_test_split(y, random_state=seed, test_size=0.3)
        mean, deviation = parts[0].mean(axis=0), parts[0].std(axis=0) + 1e-6
        parts = [(part - mean) / deviation for part in parts]
        if targets[0].dtype.kind == "f":
            centre, spread = targets[0].mean(), targets[0].std()
            targets = [((target - centre) / spread).astype(np.float32)[:, None] for target in targets]
        for precision in PRECISIONS:
            model, loss = trained((parts[0], targets[0]), seed, precision, *settings)
            scores.setdefault(precision, []).append(score(model, parts[1], targets[1]))
            losses.setdefault(precision, []).append(loss)
            if precision == "ieee":
                model.to("cpu", precision="bf16")
                scores.setdefault("ieee, predicts in bf16", []).append(score(model, parts[1], targets[1]))
    return {"measure": "R²" if targets[0].ndim == 2 else "accuracy", "scores": scores, "losses": losses}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="its name in the results")
    asked = parser.parse_args()
    results = {}
    for title, (load, *settings) in TASKS.items():
        results[title] = measured(load, *settings)
        for precision, found in results[title]["scores"].items():
            error = np.std(found, ddof=1) / len(found) ** 0.5
            print(f"{title}: {precision} {np.mean(found):.5f} ± {error:.5f}", flush=True)
    config = fastbp.backend.load("cpu").config()
    machine = {"name": asked.machine, "instruction set": config["instruction set"], "unit": config["bfloat16 unit"]}
    result = {"how": HOW, "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(), "machine": machine}
    FILE.write_text(json.dumps(result | {"tasks": results}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
