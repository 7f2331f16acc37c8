"""The command line: what it writes, what it shows, and what it says when something is wrong."""

import csv
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

import numpy as np
import pytest

import fastbp
from fastbp import tabular
from fastbp.cli import main, runs, terminal
from fastbp.cli import train as cli_train

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")

ROWS = 200
SMALL = ("--device", "reference", "--hidden", "8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, and leaves the number of threads as it was."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def houses():
    """houses.csv: a number to predict from two, and a note in text."""
    rng = np.random.default_rng(0)
    rooms, age = rng.normal(4, 1, ROWS), rng.normal(50, 20, ROWS)
    price = 1e5 + 3e4 * rooms - 500 * age + rng.normal(0, 1000, ROWS)
    rows = zip(rooms, age, price, strict=True)
    write("houses.csv", ["rooms", "age", "note", "price"], [(r, a, "fine", p) for r, a, p in rows])
    return "houses.csv", "--drop", "note", "--target", "price"


@pytest.fixture
def flowers():
    """flowers.csv: two classes by name, in a file without a header row."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, 2))
    write("flowers.csv", None, [(*row, "rose" if sum(row) > 0 else "lily") for row in x.tolist()])
    return ("flowers.csv",)


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def train(*arguments):
    """Run ``fastbp train`` quietly."""
    assert main(["train", *arguments, "-q"]) == 0


def metrics(run):
    with open(f"{run}/metrics.json") as file:
        return json.load(file)


# ---------------------------------------------------------------------------------------- train
def test_digits_reach_97_percent():
    for seed in range(10):
        train("digits", "--seed", str(seed))
    accuracies = [metrics(f"runs/digits-{i:03d}")["test"]["accuracy"] for i in range(1, 11)]
    assert statistics.median(accuracies) >= 0.97


def test_a_run_keeps_model_config_history_and_metrics(houses, capsys):
    train(*houses, *SMALL, "--epochs", "4")
    assert capsys.readouterr().out.strip() == "runs/houses-001"
    assert sorted(os.listdir("runs/houses-001")) == ["config.toml", "history.csv", "metrics.json", "model.npz"]
    assert [row[0] for row in read_csv("runs/houses-001/history.csv")] == ["epoch", "1", "2", "3", "4"]
    assert set(metrics("runs/houses-001")) == {"train", "valid", "test", "baseline"}


def test_runs_are_numbered_and_the_config_gives_the_same_again(houses):
    train(*houses, *SMALL, "--epochs", "3", "--seed", "5")
    train("--config", "runs/houses-001/config.toml")
    first, second = (fastbp.load(f"runs/houses-00{i}/model.npz") for i in (1, 2))
    np.testing.assert_array_equal(first.flat_parameters, second.flat_parameters)
    assert metrics("runs/houses-001") == metrics("runs/houses-002")


def test_the_command_line_overrides_the_config(houses):
    train(*houses, *SMALL, "--epochs", "3")
    train("--config", "runs/houses-001/config.toml", "--epochs", "2")
    assert len(read_csv("runs/houses-002/history.csv")) == 3


def test_regression_is_measured_in_the_units_of_the_target(houses, capsys):
    train(*houses, *SMALL, "--epochs", "60", "--lr", "0.01")
    scores = metrics("runs/houses-001")
    assert scores["test"]["R²"] > 0.9
    assert scores["baseline"]["RMSE"] > 1e4
    assert main(["predict", "runs/houses-001", "houses.csv", "-o", "out.csv"]) == 0
    predicted = np.array([float(row[0]) for row in read_csv("out.csv")[1:]])
    price = np.array([float(row[3]) for row in read_csv("houses.csv")[1:]])
    assert main(["evaluate", "runs/houses-001", "houses.csv", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["houses"]
    assert reported["RMSE"] == pytest.approx(np.sqrt(np.mean((predicted - price) ** 2)), rel=1e-5)
    assert reported["MAE"] == pytest.approx(np.abs(predicted - price).mean(), rel=1e-5)


def test_task_can_be_chosen():
    np.savez("counts.npz", X=np.random.default_rng(0).normal(size=(90, 3)), y=np.arange(90) % 3)
    train("counts.npz", *SMALL, "--epochs", "1")
    train("counts.npz", *SMALL, "--epochs", "1", "--task", "regression")
    assert "accuracy" in metrics("runs/counts-001")["test"]
    assert "R²" in metrics("runs/counts-002")["test"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0, 1000])  # from one checkpoint to the next: one an epoch, or none yet
def test_an_interrupted_run_keeps_best_and_last_and_goes_on(houses, capsys, monkeypatch, number, seconds):
    train(*houses, *SMALL, "--epochs", "6", "--lr", "0.1")
    epoch_ended = terminal.EpochRows.on_epoch_end

    def interrupt(self, model, record):
        epoch_ended(self, model, record)
        if record["epoch"] == 4:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(terminal.EpochRows, "on_epoch_end", interrupt)
        patched.setattr(cli_train, "CHECKPOINT_SECONDS", seconds)
        assert main(["train", *houses, *SMALL, "--epochs", "6", "--lr", "0.1"]) == 130
    run, said = pathlib.Path("runs/houses-002"), "fastbp train --resume runs/houses-002"
    assert said in capsys.readouterr().err
    assert said in (run / "interrupted.txt").read_text()
    assert fastbp.load(run / "last.npz").optimizer.step_count == 4 * 4
    assert main(["predict", str(run), "houses.csv", "-o", "out.csv"]) == 0  # with the best so far
    train("--resume", str(run))
    assert sorted(path.name for path in run.iterdir()) == [
        "config.toml", "history.csv", "last.npz", "metrics.json", "model.npz"
    ]  # fmt: skip
    first, second = (fastbp.load(f"runs/houses-00{i}/model.npz") for i in (1, 2))
    np.testing.assert_array_equal(second.flat_parameters, first.flat_parameters)
    assert metrics("runs/houses-001") == metrics("runs/houses-002")
    assert main(["train", "--resume", str(run)]) == 2
    assert "is no run that was interrupted" in capsys.readouterr().err
    train("--config", str(run / "config.toml"), "--start", str(run / "last.npz"), "--epochs", "1")


def test_a_loss_that_is_not_finite_is_one_line(houses, capsys):
    assert main(["train", *houses, *SMALL, "--lr", "1e30", "--optimizer", "sgd"]) == 2
    assert "smaller lr" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------- predict and evaluate
def test_predict_prepares_raw_data_as_training_did():
    train("digits", "--epochs", "2")
    assert main(["predict", "runs/digits-001", "digits", "--proba", "-o", "out.npz"]) == 0
    model = fastbp.load("runs/digits-001/model.npz")
    table, known = tabular.read("digits"), model.metadata["preprocessing"]
    x = np.column_stack([table.columns[name] for name in known["features"]])
    x = (x - known["mean"]) / known["scale"]
    with np.load("out.npz") as out:
        np.testing.assert_array_equal(out["prediction"], model.predict(x).argmax(axis=1))
        np.testing.assert_allclose(out["probability"].sum(axis=1), 1, rtol=1e-5)


def test_predict_finds_columns_by_name(houses):
    train(*houses, *SMALL, "--epochs", "2")
    rows = read_csv("houses.csv")[1:]
    write("moved.csv", ["age", "rooms"], [(row[1], row[0]) for row in rows])
    for data in ("houses", "moved"):
        assert main(["predict", "runs/houses-001", f"{data}.csv", "-o", f"{data}-out.csv"]) == 0
    assert read_csv("houses-out.csv") == read_csv("moved-out.csv")
    assert read_csv("houses-out.csv")[0] == ["price"]


def test_predict_takes_columns_without_names_by_position(flowers, capsys):
    train(*flowers, *SMALL, "--epochs", "30")
    write("new.csv", None, [(2, 2), (-2, -2)])
    capsys.readouterr()
    assert main(["predict", "runs/flowers-001", "new.csv", "--proba"]) == 0
    header, first, second = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["2", "p(lily)", "p(rose)"]
    assert (first[0], second[0]) == ("rose", "lily")


def test_predict_never_overwrites_what_it_reads(houses, capsys):
    train(*houses, *SMALL, "--epochs", "1")
    before = read_csv("houses.csv")
    assert main(["predict", "runs/houses-001", "houses.csv", "-o", "houses.csv"]) == 2
    assert read_csv("houses.csv") == before


def test_evaluate_by_another_column_name(houses, capsys):
    train(*houses, *SMALL, "--epochs", "1")
    rows = read_csv("houses.csv")
    write("sold.csv", ["rooms", "age", "paid"], [(row[0], row[1], row[3]) for row in rows[1:]])
    assert main(["evaluate", "runs/houses-001", "sold.csv"]) == 2
    assert "--target" in capsys.readouterr().err
    assert main(["evaluate", "runs/houses-001", "sold.csv", "--target", "paid"]) == 0
    assert "RMSE" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "DATA is missing"),
        (["train", "nowhere.csv"], "no such file"),
        (["train", "houses.xls"], ".parquet or .npz"),
        (["train", "houses.csv", "--target", "size"], "columns are rooms, age, note, price"),
        (["train", "houses.csv"], "--drop note"),
        (["train", "gaps.csv"], "--drop-missing"),
        (["train", "houses.csv", "--drop", "note", "--task", "classification"], "not classes"),
        (["train", "digits", "--hidden", "a"], "as in 64,64"),
        (["train", "digits", "--split", "80/20"], "as in 60/20/20"),
        (["train", "digits", "--epochs", "0"], "at least 1"),
        (["train", "digits", "--lr", "-1", "--device", "reference"], "lr must be"),
        (["train", "digits", "--config", "houses.csv"], "not TOML"),
        (["train", "x.npz"], "no array 'y'"),
        (["train", "x.npz", "--x-key", "x"], "arrays are X"),
        (["predict", "runs/digits-009", "digits"], "no model at"),
        (["predict", "houses.csv", "digits"], ".npz"),
        (["predict", "x.npz", "digits"], "not a model file"),
        (["compare", "--shapes", "S0"], "unknown shape"),
        (["compare", "--peers", "tensorflow"], "unknown peer"),
    ],
)
def test_errors_are_one_line_with_a_cure_and_write_nothing(houses, capsys, folder, arguments, told):
    write("gaps.csv", ["a", "y"], [(1, 0), ("", 1), (3, 0)])
    (folder / "houses.xls").touch()
    np.savez("x.npz", X=np.zeros((4, 2)))
    before = sorted(os.listdir())
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse's own
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert sorted(os.listdir()) == before


# -------------------------------------------------------------------------------------- screens
def test_plain_output_has_no_control_characters(flowers, capsys):
    assert main(["train", *flowers, *SMALL, "--epochs", "5"]) == 0
    out = capsys.readouterr().out
    assert not {"\r", "\x1b"} & set(out)
    for told in (
        "float32",
        "target '2' (classification, 2 classes)",
        "no header row",
        "train 120",
        "always",
        "*",
        "next",
    ):
        assert told in out


def test_json_is_one_object_a_line(flowers, capsys):
    assert main(["train", *flowers, *SMALL, "--epochs", "3", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["kind"] for record in records] == ["run", "compile", "epoch", "epoch", "epoch", "result"]
    assert records[-1]["run"] == "runs/flowers-001"


class Lines(terminal.Plain):
    """A screen that remembers."""

    def __init__(self):
        self.lines = []

    def line(self, text="", style=""):
        self.lines.append(text)


def test_long_trainings_show_few_rows_and_always_the_best():
    screen, losses = Lines(), np.random.default_rng(0).random(200)
    rows = terminal.EpochRows(screen, lambda done, text: None, 50, "valid acc", lambda record: 0.5)
    rows.on_fit_begin(None, {"rows": 100, "epochs": 200})
    for epoch, loss in enumerate(losses, start=1):
        rows.on_epoch_end(None, {"epoch": epoch, "loss": loss, "val_loss": loss, "lr": 0.1, "seconds": 0.1})
    rows.on_fit_end(None, None)
    starred = [int(line.split()[0]) for line in screen.lines if "*" in line]
    assert len(screen.lines) < 35
    assert starred[-1] == losses.argmin() + 1


def test_a_terminal_gets_a_bar(flowers):
    pty, _ = pytest.importorskip("pty"), pytest.importorskip("rich")
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "fastbp", "train", *flowers, *SMALL, "--epochs", "3"]
    process = subprocess.Popen(command, stdout=writer, stderr=writer, env=os.environ | {"TERM": "xterm-256color"})
    os.close(writer)
    shown = b""
    try:
        while part := os.read(reader, 4096):
            shown += part
    except OSError:  # how Linux reports the end of a terminal
        pass
    os.close(reader)
    assert process.wait() == 0
    assert "patience 0/20" in shown.decode()
    assert "runs/flowers-001" in shown.decode()


def test_help_and_version_import_nothing_heavy():
    heavy = ["numba", "rich", "sklearn", "pyarrow", "torch", "jax"]
    code = f"""if True:
        import contextlib, sys
        from fastbp.cli import main
        for arguments in ["--help"], ["train", "--help"], ["compare", "--help"], ["--version"]:
            with contextlib.suppress(SystemExit):
                main(arguments)
        print([name for name in {heavy} if name in sys.modules])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "train a network on a table" in out
    assert out.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_is_no_error(flowers):
    train(*flowers, *SMALL, "--epochs", "1")
    write("long.csv", None, [(0.5, 0.5)] * 50_000)
    predict = f"{sys.executable} -m fastbp predict runs/flowers-001 long.csv --device reference"
    done = subprocess.run(f"{predict} | head -n 1", shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_info_and_warmup(capsys):
    assert main(["info", "--device", "reference"]) == 0
    assert main(["warmup", "--device", "reference"]) == 0
    assert "NumPy reference" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- runs
def test_config_survives_a_round_trip(folder):
    options = {"data": 'a "b"\\c é', "epochs": 3, "lr": 1e-05, "drop_missing": True}
    runs.write_config(folder, options | {"target": None})
    assert runs.read_config(folder / runs.CONFIG) == options


def test_run_folders_count_on(folder):
    names = [runs.create("runs", "a").name for _ in range(2)]
    (folder / "runs" / "a-007").mkdir()
    names += [runs.create("runs", name).name for name in ("a", "a-b")]
    assert names == ["a-001", "a-002", "a-008", "a-b-001"]
