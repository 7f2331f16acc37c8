"""Real tables by the command line, beside scikit-learn on the same rows: ``python docs/results/compare_tables.py``.

The tables are those that come with scikit-learn and statsmodels. Every seed is a split of ``fastbp train``, 60/20/20:
training, early stopping, test. scikit-learn gets the first two parts; its MLP, which has the network of the preset
"plain", takes a quarter of them to stop early, and the trees use all. All are measured on the test part: the accuracy
of classes, R² of values.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
import warnings

import numpy as np
import pandas as pd
import sklearn
import statsmodels.api as sm
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fastbp.cli import figures, main
from fastbp.cli.machine import commit
from fastbp.tabular import from_frame, learn

HOW = (
    f"`python docs/results/compare_tables.py`, beside scikit-learn {sklearn.__version__}: means over seeds of what the "
    "test part gives, ± standard errors"
)
figures.write = lambda folder, history, result: ""  # pictures take longer than some trainings
PRESETS = "plain", "realmlp"
NETWORK = {"hidden_layer_sizes": (256,), "batch_size": 32, "early_stopping": True}
NETWORK |= {"validation_fraction": 0.25, "n_iter_no_change": 20}


def bundled(name, target, **names):
    """A frame of statsmodels with the target last, and some numbers as the names that they stand for."""
    frame = getattr(sm.datasets, name).load_pandas().data
    for column, of in names.items():
        frame[column] = frame[column].map(dict(enumerate(of)))
    return frame[[*frame.columns.drop(target), target]]


def of_sklearn(load):
    """A frame of scikit-learn, classes by name."""
    data = load(as_frame=True)
    names = getattr(data, "target_names", None)
    return data.data.assign(target=data.target if names is None else data.target.map(dict(enumerate(map(str, names)))))


TABLES = {
    "iris": lambda: of_sklearn(datasets.load_iris),
    "wine": lambda: of_sklearn(datasets.load_wine),
    "breast_cancer": lambda: of_sklearn(datasets.load_breast_cancer),
    "digits": lambda: of_sklearn(datasets.load_digits),
    "diabetes": lambda: of_sklearn(datasets.load_diabetes),
    "anes96 (vote)": lambda: bundled("anes96", "vote", vote=["Clinton", "Dole"]),
    "fair (affairs)": lambda: bundled("fair", "affairs").sample(1500, random_state=0),
    "randhie (mdvis)": lambda: bundled("randhie", "mdvis").sample(2000, random_state=0),
    "star98 (NABOVE)": lambda: bundled("star98", "NABOVE").drop(columns="NBELOW"),
    "engel (foodexp)": lambda: bundled("engel", "foodexp"),
}


def ours(name, frame, preset, seed):
    """The score of `fastbp train` on the test part."""
    frame.to_csv("table.csv", index=False)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = main(["train", "table.csv", "--preset", preset, "--seed", str(seed), "--threads", "1", "-q"])
    if code:
        raise SystemExit(f"{name} does not train")
    with open(os.path.join(shown.getvalue().strip(), "metrics.json"), encoding="utf-8") as file:
        test = json.load(file)["test"]
    return test.get("accuracy", test.get("R²"))


def theirs(frame, seed):
    """The scores of scikit-learn's on the test part of the same split."""
    target = frame.columns[-1]
    learned = learn(from_frame(frame), target, seed=seed)
    rows = np.concatenate([learned.parts["train"], learned.parts["valid"]])
    X, y = frame.drop(columns=target), frame[target].to_numpy()
    classes = learned.target.classes is not None
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    prepared = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
    )
    network = (MLPClassifier if classes else MLPRegressor)(random_state=seed, **NETWORK)
    if not classes:
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
    trees = (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(random_state=seed)
    found = {}
    for name, model in (("scikit-learn MLP", make_pipeline(prepared, network)), ("HistGradientBoosting", trees)):
        chosen = X if name == "scikit-learn MLP" else X.select_dtypes("number")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(chosen.iloc[rows], y[rows])
        found[name] = model.score(chosen.iloc[learned.parts["test"]], y[learned.parts["test"]])
    return found


def run(tables, seeds, known):
    """Results by table, after every seed; ``known`` are those that are there already."""
    for name, load in TABLES.items():
        if tables and not any(name.startswith(chosen) for chosen in tables):
            continue
        frame = load().reset_index(drop=True)
        numbers = pd.api.types.is_numeric_dtype(frame.iloc[:, -1]) and frame.iloc[:, -1].nunique() > 10
        result = {"rows": len(frame), "measure": "R²" if numbers else "accuracy", "scores": {}}
        result = known.setdefault(name, result)
        for seed in range(min(map(len, result["scores"].values()), default=0), seeds):
            found = {preset: ours(name, frame, preset, seed) for preset in PRESETS} | theirs(frame, seed)
            for model, score in found.items():
                result["scores"].setdefault(model, []).append(score)
            yield known
        words = [
            f"{model} {np.mean(of):.4f} ± {np.std(of, ddof=1) / len(of) ** 0.5:.4f}"
            for model, of in result["scores"].items()
        ]
        print(f"{name}, {result['measure']}, {seeds} seeds: {' · '.join(words)}", flush=True)


def measure():
    """Measure, and keep what is measured after every seed, so that an interrupted call goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="beginnings of the names of some tables (default: all)")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("-o", "--output", required=True, help="JSON file; what it has of this commit is kept")
    parser.add_argument("--machine", default="unnamed", help="its name in the results")
    asked = parser.parse_args()
    output, known = os.path.abspath(asked.output), {}
    if os.path.exists(output):
        with open(output, encoding="utf-8") as file:
            kept = json.load(file)
        known = kept["tables"] if kept["commit"] == commit() else {}
    kept = {"how": HOW, "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit()}
    kept["machine"] = {"name": asked.machine}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for results in run(asked.tables, asked.seeds, known):
            with open(output, "w", encoding="utf-8") as file:
                json.dump(
                    kept | {"tables": {name: results[name] for name in TABLES if name in results}},
                    file,
                    indent=1,
                    ensure_ascii=False,
                )
                file.write("\n")


if __name__ == "__main__":
    measure()
