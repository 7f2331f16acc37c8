"""The command line: what it writes, what it shows, and what it says when something is wrong."""

import csv
import io
import json
import lzma
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp
from fastbp import tabular
from fastbp.cli import components, figures, job, main, options, runs, terminal
from fastbp.tabular import split

pd, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")
from sklearn import metrics as measures  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

ROWS = 200
RNG = np.random.default_rng(0)
SMALL = ("--device", "reference", "--hidden", "8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, request):
    """Every test runs in a folder of its own, without pictures unless it asks for them, which take half a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(figures, "write", lambda folder, history, result: "")
    return tmp_path


@pytest.fixture
def pictures():
    """Pictures are drawn."""


@pytest.fixture
def houses():
    """houses.csv: a number to predict from two, and free text."""
    rng = np.random.default_rng(0)
    rooms, age = rng.normal(4, 1, ROWS), rng.normal(50, 20, ROWS)
    price = 1e5 + 3e4 * rooms - 500 * age + rng.normal(0, 1000, ROWS)
    rows = zip(rooms, age, price, strict=True)
    texts = [f"a fine house, number {i}" for i in range(ROWS)]
    write(
        "houses.csv",
        ["rooms", "age", "note", "price"],
        [(r, a, t, p) for t, (r, a, p) in zip(texts, rows, strict=True)],
    )
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


def test_a_run_keeps_model_config_history_metrics_and_pictures(houses, capsys, pictures):
    train(*houses, *SMALL, "--epochs", "4")
    assert capsys.readouterr().out.strip() == "runs/houses-001"
    drawn = ["curves.png", "residuals.png"]
    kept = ["config.toml", "history.csv", "metrics.json", "model.npz", *drawn]
    assert sorted(os.listdir("runs/houses-001")) == sorted(kept)
    assert all(Path("runs/houses-001", name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    assert [row[0] for row in read_csv("runs/houses-001/history.csv")] == ["epoch", "1", "2", "3", "4"]
    assert set(metrics("runs/houses-001")) == {"train", "valid", "test", "baseline"}


def test_runs_are_numbered_and_the_config_gives_the_same_again(houses):
    train(*houses, *SMALL, "--epochs", "3", "--seed", "5")
    train("--config", "runs/houses-001/config.toml")
    first, second = (fastbp.load(f"runs/houses-00{i}") for i in (1, 2))
    np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)
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
    reported = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["test"]
    test = split(np.zeros(ROWS), (60, 20, 20), 0)["test"]
    assert reported["RMSE"] == pytest.approx(np.sqrt(np.mean((predicted - price)[test] ** 2)), rel=1e-5)
    assert reported["MAE"] == pytest.approx(np.abs(predicted - price)[test].mean(), rel=1e-5)


def test_task_can_be_chosen():
    np.savez("counts.npz", X=np.random.default_rng(0).normal(size=(90, 3)), y=np.arange(90) % 3)
    train("counts.npz", *SMALL, "--epochs", "1")
    train("counts.npz", *SMALL, "--epochs", "1", "--task", "regression")
    assert "accuracy" in metrics("runs/counts-001")["test"]
    assert "R²" in metrics("runs/counts-002")["test"]


def interrupted(patched, number, *options):
    """Train, with this signal after the fourth epoch."""
    epoch_ended = terminal.EpochRows.on_epoch_end

    def interrupt(self, model, record):
        epoch_ended(self, model, record)
        if record["epoch"] == 4:
            os.kill(os.getpid(), number)

    patched.setattr(terminal.EpochRows, "on_epoch_end", interrupt)
    assert main(["train", *options]) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0, 1000])  # from one checkpoint to the next: one an epoch, or none yet
def test_an_interrupted_run_keeps_best_and_last_and_goes_on(houses, capsys, monkeypatch, number, seconds):
    train(*houses, *SMALL, "--epochs", "6", "--lr", "0.1")
    with monkeypatch.context() as patched:
        patched.setattr(job, "CHECKPOINT_SECONDS", seconds)
        interrupted(patched, number, *houses, *SMALL, "--epochs", "6", "--lr", "0.1")
    run, said = pathlib.Path("runs/houses-002"), "fastbp train --resume runs/houses-002"
    assert said in capsys.readouterr().err
    assert said in (run / "interrupted.txt").read_text()
    assert fastbp.load(run / "last.npz").model.optimizer.step_count == 4 * 4
    assert main(["predict", str(run), "houses.csv", "-o", "out.csv"]) == 0  # with the best so far
    train("--resume", str(run))
    assert sorted(path.name for path in run.iterdir()) == [
        "config.toml", "history.csv", "last.npz", "metrics.json", "model.npz"
    ]  # fmt: skip
    first, second = (fastbp.load(f"runs/houses-00{i}/model.npz").model for i in (1, 2))
    np.testing.assert_array_equal(second.flat_parameters, first.flat_parameters)
    assert metrics("runs/houses-001") == metrics("runs/houses-002")
    assert main(["train", "--resume", str(run)]) == 2
    assert "is no run that was interrupted" in capsys.readouterr().err
    train("--config", str(run / "config.toml"), "--start", str(run / "last.npz"), "--epochs", "1")


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("mixed", ["--preset", "realmlp", "--keep", "id", "--loss", "huber:delta=0.5"]),
        ("mixed", ["--drop-missing", "--one-hot", "1", "--scaling", "robust", "--loss", "quantile", "--schedule=step"]),
        ("rare", ["--class-weight", "yes=5", "--schedule", "plateau:factor=0.5,patience=1", "--lr", "0.3"]),
        ("rare", ["--norm=batch", "--dropout=0.2", "--optimizer=sgd:momentum=0.9", "--schedule=cosine", "--warmup=9"]),
        ("rare", ["--start", "runs/rare-001", "--optimizer", "lion", "--class-weight", "balanced"]),
    ],
)
def test_an_interrupted_run_of_a_table_goes_on(data, options, request, monkeypatch):
    options = [request.getfixturevalue(data), "--device", "reference", "--epochs", "6", *options]
    if "--start" in options:
        train(options[0], *SMALL, "--epochs", "1")
    else:
        options += ["--hidden", "8"]
    train(*options)
    expected = sorted(pathlib.Path("runs").iterdir())[-1]
    with monkeypatch.context() as patched:
        patched.setattr(job, "CHECKPOINT_SECONDS", 0)
        interrupted(patched, signal.SIGINT, *options)
    run = sorted(pathlib.Path("runs").iterdir())[-1]
    assert fastbp.load(run).model.metadata == fastbp.load(expected).model.metadata
    for file in ("model.npz", "last.npz"):  # the best, and the last
        assert main(["predict", str(run / file), options[0], "-o", "out.csv"]) == 0
        assert len(read_csv("out.csv")) == len(read_csv(options[0]))
    train("--resume", str(run))
    assert (run / "config.toml").read_text() == (expected / "config.toml").read_text()
    assert metrics(run) == metrics(expected)
    first, second = (fastbp.load(folder).model for folder in (expected, run))
    np.testing.assert_array_equal(second.flat_parameters, first.flat_parameters)
    columns = [[row[:3] for row in read_csv(folder / "history.csv")] for folder in (expected, run)]
    assert columns[0] == columns[1]


def test_a_loss_that_is_not_finite_is_one_line(houses, capsys):
    assert main(["train", *houses, *SMALL, "--lr", "1e30", "--optimizer", "sgd"]) == 2
    assert "smaller lr" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------- predict and evaluate
def test_predict_prepares_raw_data_as_training_did():
    train("digits", "--epochs", "2")
    assert main(["predict", "runs/digits-001", "digits", "--proba", "-o", "out.npz"]) == 0
    predictor = fastbp.load("runs/digits-001/model.npz")
    assert predictor.preprocessing.left_out == dict.fromkeys(["pixel_0_0", "pixel_4_0", "pixel_4_7"], "constant")
    X = load_digits(as_frame=True).data
    x = X[predictor.preprocessing.features].to_numpy()
    x = (x - x[train_rows()].mean(axis=0)) / x[train_rows()].std(axis=0)
    with np.load("out.npz") as out:
        np.testing.assert_array_equal(out["digit"], predictor.model.predict(x).argmax(axis=1))
        np.testing.assert_array_equal(out["digit"], predictor.predict(X))
        np.testing.assert_allclose(sum(out[f"p({digit})"] for digit in range(10)), 1, rtol=1e-5)


def train_rows():
    return split(load_digits().target, (60, 20, 20), 0)["train"]


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
        (["train", "houses.xls"], ".jsonl or .npz"),
        (["train", "houses.csv", "--target", "size"], "columns are rooms, age, note, price"),
        (["train", "houses.csv"], "--drop note"),
        (["train", "latin.csv"], "--encoding latin-1"),
        (["train", "commas.csv"], "row 1 has '251,945'"),
        (["train", "semicolons.csv", "--target", "a"], "--decimal ,"),
        (["train", "semicolons.csv"], "one value 1"),
        (["train", "gaps.csv", "--target", "b"], "no value in any row"),
        (["train", "gaps.csv", "--drop-missing"], "a missing value in every row"),
        (["train", "houses.csv", "--drop", "note", "--class-weight", "balanced"], "--class-weight is for classes"),
        (["train", "digits", "--class-weight", "x=1"], "as in 0=1, 1=1, 2=1"),
        (["train", "digits", "--loss", "mse"], "of classification there are cross-entropy"),
        (["train", "digits", "--activation", "swish"], "expected one of identity, relu"),
        (["train", "digits", "--optimizer", "sgd:beta=1"], "sgd takes momentum=…, nesterov=…"),
        (["train", "digits", "--optimizer", "adam:betas=[2,0]"], "betas"),
        (["train", "houses.csv", "--drop", "note", "--task", "classification"], "not classes"),
        (["train", "digits", "--hidden", "a"], "as in 64,64"),
        (["train", "digits", "--split", "80/20"], "as in 60/20/20"),
        (["train", "digits", "--epochs", "0"], "at least 1"),
        (["train", "digits", "--lr", "-1", "--device", "reference"], "lr must be"),
        (["train", "digits", "--config", "houses.csv"], "not TOML"),
        (["train", "--config", "wrong.toml"], "--epochs"),
        (["train", "x.npz"], "no array 'y'"),
        (["train", "x.npz", "--x-key", "x"], "arrays are X"),
        (["predict", "runs/digits-009", "digits"], "no model at"),
        (["predict", "houses.csv", "digits"], ".npz"),
        (["predict", "x.npz", "digits"], "not a model file"),
        (["train", "houses.csv", "--drop", "note,rooms,age"], "no column besides the target"),
        (["compare", "--shapes", "S0"], "unknown shape"),
        (["compare", "--peers", "tensorflow"], "unknown peer"),
    ],
)
def test_errors_are_one_line_with_a_cure_and_write_nothing(houses, capsys, folder, arguments, told):
    write("gaps.csv", ["a", "b", "y"], [(1, "", 0), ("", "", 1), (3, "", 0)])
    Path("wrong.toml").write_text('data = "digits"\nepochs = "many"\n')
    write("commas.csv", ["x", "y"], [(i, "251,945") for i in range(20)])
    Path("semicolons.csv").write_text("a;y\n" + "1,5;1\n" * 20)
    Path("latin.csv").write_bytes("a,y\nä,1\n".encode("latin-1"))
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

    def __init__(self, width=0):
        self.lines, self.width = [], width

    def show(self, text, style):
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


def test_a_terminal_gets_a_bar_and_no_colour_where_none_is_wanted(flowers):
    pty, _ = pytest.importorskip("pty"), pytest.importorskip("rich")
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "fastbp", "train", *flowers, *SMALL, "--epochs", "3"]
    environment = {"TERM": "xterm-256color", "NO_COLOR": "1", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=writer, stderr=writer, env=os.environ | environment)
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
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)


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


# --------------------------------------------------------------------------------- real tables
@pytest.fixture
def mixed():
    """mixed.csv: numbers, categories, a truth value and a date to predict a price from, with gaps and an identifier."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.arange(1, ROWS + 1), "area": rng.normal(120, 30, ROWS).round(1)})
    frame["city"] = rng.choice(["Rome", "Oslo", "Bonn"], ROWS)
    frame["garden"] = rng.random(ROWS) < 0.5
    frame["sold"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, ROWS), "D")
    frame["price"] = 1000 * frame["area"] + 40_000 * (frame["city"] == "Oslo") + rng.normal(0, 1000, ROWS)
    frame.loc[::10, "area"], frame.loc[::11, "city"], frame.loc[5, "price"] = np.nan, None, np.nan
    frame.to_csv("mixed.csv", index=False)
    return "mixed.csv"


def test_a_real_table_trains_and_says_what_was_done(mixed, capsys):
    assert main(["train", mixed, *SMALL, "--epochs", "80", "--lr", "0.01"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for told in (
        "199 rows · target 'price' (regression; if not: --task classification)",
        "columns: 1 number · 1 category · 1 boolean · 1 date → 11 inputs",
        "1 row without target left out",
        "filled with the median, and marked by an input: area (12), counted in the training part",
        "filled with the most frequent, and marked by an input: city (",
        "left out id (identifier); to have an identifier in: --keep",
        'in Python: fastbp.load("runs/mixed-001").predict(frame)',
    ):
        assert told in out
    assert metrics("runs/mixed-001")["test"]["R²"] > 0.6


def test_every_row_keeps_its_line(mixed, capsys):
    train(mixed, *SMALL, "--epochs", "2")
    capsys.readouterr()
    assert main(["predict", "runs/mixed-001", mixed, "--id", "id,price", "-o", "out.parquet"]) == 0
    found = pd.read_parquet("out.parquet")
    assert list(found.columns) == ["id", "price", "price predicted"]
    assert found["id"].tolist() == list(range(1, ROWS + 1))
    assert found["price predicted"].notna().all()
    np.testing.assert_allclose(found["price"], pd.read_csv(mixed)["price"])
    frame = pd.read_csv(mixed, parse_dates=["sold"])
    with pytest.warns(UserWarning, match="no column 'area'"):
        fastbp.load("runs/mixed-001").predict(frame.drop(columns="area"))
    np.testing.assert_allclose(fastbp.load("runs/mixed-001").predict(frame), found["price predicted"])
    frame.assign(note=np.nan, price=np.nan).to_csv("more.csv", index=False)  # what the model does not need
    assert main(["predict", "runs/mixed-001", "more.csv", "--drop-missing", "-o", "some.csv"]) == 0
    some = pd.read_csv("some.csv", skip_blank_lines=False)["price"]
    lacking = frame["area"].isna() | frame["city"].isna()
    assert some.isna().tolist() == lacking.tolist()
    np.testing.assert_allclose(some[~lacking], found["price predicted"][~lacking], rtol=1e-6)
    assert f"none for {lacking.sum()} rows with a missing feature" in capsys.readouterr().out


def test_what_was_not_seen_is_said_while_predicting(mixed, capsys):
    train(mixed, *SMALL, "--epochs", "1")
    pd.read_csv(mixed).drop(columns="garden").assign(city="Paris").to_csv("new.csv", index=False)
    assert main(["predict", "runs/mixed-001", "new.csv"]) == 0
    captured = capsys.readouterr()
    assert "has no column 'garden': it counts as missing" in captured.err
    assert f"'city' has unknown categories in {ROWS} rows, as 'Paris'" in captured.err
    assert len(captured.out.splitlines()) == ROWS + 2  # the folder of the run, and the header


def test_columns_without_names_are_not_taken_for_named_ones(houses, capsys):
    train(*houses, *SMALL, "--epochs", "2")
    frame = pd.read_csv("houses.csv")
    np.savez("moved.npz", X=frame[["age", "rooms"]], columns=["age", "rooms"])
    np.savez("bare.npz", X=frame[["rooms", "age"]])
    main(["predict", "runs/houses-001", "houses.csv", "-o", "expected.csv"])
    assert main(["predict", "runs/houses-001", "moved.npz", "-o", "moved.csv"]) == 0
    assert main(["predict", "runs/houses-001", "bare.npz"]) == 2
    assert "or say --by-position" in capsys.readouterr().err
    assert main(["predict", "runs/houses-001", "bare.npz", "--by-position", "-o", "bare.csv"]) == 0
    assert read_csv("expected.csv") == read_csv("moved.csv") == read_csv("bare.csv")


def test_an_npz_with_its_target_under_another_key(capsys):
    X, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    np.savez("train.npz", X=X, y=y)
    np.savez("new.npz", X=X, label=y)
    train("train.npz", *SMALL, "--epochs", "1")
    for command in ("predict", "evaluate"):
        assert main([command, "runs/train-001", "new.npz", "--y-key", "label"]) == 0
    assert "90 rows of new.npz" in capsys.readouterr().out


def test_counts_are_predicted_as_numbers(capsys):
    rng = np.random.default_rng(0)
    write("counts.csv", ["x", "visits"], [(x, int(24 * x)) for x in rng.random(400)])
    assert main(["train", "counts.csv", *SMALL, "--epochs", "1"]) == 0
    assert "target 'visits' (regression; if not: --task classification)" in capsys.readouterr().out
    train("counts.csv", *SMALL, "--epochs", "1", "--task", "classification")
    assert "accuracy" in metrics("runs/counts-002")["test"]


def test_ten_rows_are_enough():
    write("ten.csv", ["x", "y"], [(i, 1000.0 * i**2) for i in range(9, -1, -1)])
    train("ten.csv", *SMALL, "--epochs", "1")
    assert "R²" in metrics("runs/ten-001")["test"]


@pytest.fixture
def rare():
    """rare.csv: 5 % of the rows are frauds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    fraud = x[:, 0] + rng.normal(0, 0.3, 400) > np.quantile(x[:, 0], 0.95)
    write(
        "rare.csv",
        ["a", "b", "c", "fraud"],
        [(*row, "yes" if one else "no") for row, one in zip(x, fraud, strict=True)],
    )
    return "rare.csv"


def test_rare_classes_are_visible(rare, capsys, pictures):
    assert main(["train", rare, *SMALL, "--epochs", "10", "--lr", "0.01"]) == 0
    out = capsys.readouterr().out
    for told in ("balanced acc.", "F1", "ROC AUC", "confusion matrix, test part", "confusion.png"):
        assert told in out
    assert main(["predict", "runs/rare-001", rare, "--proba", "-o", "out.csv"]) == 0
    found, frame = pd.read_csv("out.csv"), pd.read_csv(rare)
    rows = split((frame["fraud"] == "yes").astype(int), (60, 20, 20), 0)["test"]
    true, predicted = frame["fraud"][rows], found["fraud"][rows]
    scores = metrics("runs/rare-001")["test"]
    assert scores["balanced acc."] == pytest.approx(measures.balanced_accuracy_score(true, predicted))
    assert scores["F1"] == pytest.approx(measures.f1_score(true, predicted, average="macro"))
    assert scores["ROC AUC"] == pytest.approx(measures.roc_auc_score(true == "yes", found["p(yes)"][rows]))
    capsys.readouterr()
    assert main(["evaluate", "runs/rare-001", rare]) == 0
    shown = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith("confusion matrix, test part, 80 rows: "))
    cells = [[int(cell.replace("·", "0")) for cell in line.split()[1:]] for line in shown[at + 2 : at + 4]]
    assert cells == measures.confusion_matrix(true, predicted, labels=["no", "yes"]).tolist()


def test_class_weights_find_more_of_a_rare_class(rare):
    train(rare, *SMALL, "--epochs", "10")
    train(rare, *SMALL, "--epochs", "10", "--class-weight", "balanced")
    train(rare, *SMALL, "--epochs", "10", "--class-weight", "yes=20")
    found = [metrics(f"runs/rare-00{i}")["train"]["balanced acc."] for i in (1, 2, 3)]
    assert min(found[1:]) > found[0] + 0.1


def test_evaluate_says_for_which_rows(houses, capsys):
    train(*houses, *SMALL, "--epochs", "2")
    assert main(["evaluate", "runs/houses-001", "houses.csv"]) == 0
    out = capsys.readouterr().out
    for told in (
        "train",
        "valid",
        "the network learned from train, valid chose its epoch, and only test is new to it",
        "test part, 40 rows",
        "true less predicted",
        "largest errors",
    ):
        assert told in out
    pd.read_csv("houses.csv")[:50].to_csv("new.csv", index=False)
    assert main(["evaluate", "runs/houses-001", "new.csv"]) == 0
    assert "all rows of new" in capsys.readouterr().out
    largest = re.search(r"row +predicted +true\n +(\d+)   +(.*\d)   +(.*)\n", out)
    row, *numbers = (part.replace(" ", "") for part in largest.groups())
    assert float(numbers[1]) == pytest.approx(pd.read_csv("houses.csv")["price"][int(row) - 1], abs=1)


# ------------------------------------------------------------------------------- parts by name
@pytest.mark.parametrize(
    ("option", "layers"),
    [
        ([f"--activation={name}"], ["Linear", components.ACTIVATIONS[name].__name__, "Linear"])
        for name in components.ACTIVATIONS
    ]
    + [
        (["--norm=layer:eps=0.01"], ["Linear", "LayerNorm", "ReLU", "Linear"]),
        (["--norm=batch:momentum=0.2", "--dropout=0.1"], ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]),
        (["--hidden=8,8", "--residual"], ["Linear", "ReLU", "Residual", "Linear"]),
        (["--hidden=none", "--no-bias", "--init=zeros"], ["Linear"]),
    ],
)
def test_layers(flowers, option, layers):
    train(*flowers, *SMALL, "--epochs", "1", *option)
    model = fastbp.load("runs/flowers-001").model
    assert [type(layer).__name__ for layer in model.layers] == layers


@pytest.mark.parametrize(
    "option",
    [
        *(["--optimizer", name] for name in components.OPTIMIZERS),
        ["--optimizer", "sgd:momentum=0.9,nesterov=true,clip_norm=1"],
        ["--optimizer", "adamw:betas=[0.8,0.9],weight_decay=0.1"],
        *(["--schedule", name, "--warmup", "5"] for name in components.SCHEDULES if name != "plateau"),
        ["--schedule", "plateau:factor=0.5,patience=1"],
        ["--schedule", "cosine:final_lr=1e-5"],
        ["--loss", "cross-entropy:label_smoothing=0.1"],
        ["--shuffle", "blocks"],
        ["--shuffle", "none"],
    ],
    ids=" ".join,
)
def test_optimizers_schedules_and_losses(flowers, option):
    train(*flowers, *SMALL, "--epochs", "4", *option)
    losses = [float(row[1]) for row in read_csv("runs/flowers-001/history.csv")[1:]]
    assert losses[-1] < losses[0]


@pytest.fixture
def visits():
    """visits.csv: counts whose logarithm is linear, with a mean of about 7."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    write("visits.csv", ["a", "b", "visits"], [(*row, rng.poisson(np.exp(1.5 + row @ [0.8, -0.5]))) for row in x])
    return "visits.csv"


def test_counts_by_the_poisson_loss(visits, capsys):
    """Means of counts: above 0, and nearer to those that made them than what squared errors learn."""
    error, frame = {}, pd.read_csv(visits)
    expected = np.exp(1.5 + frame[["a", "b"]].to_numpy() @ [0.8, -0.5])
    for loss in ("poisson", "mse"):
        train(visits, "--hidden", "16", "--loss", loss, "--epochs", "60", "--lr", "0.01")
        run = fastbp.load(f"runs/visits-00{1 + len(error)}")
        error[loss] = np.abs(np.log(np.maximum(run.predict(frame), 1e-3)) - np.log(expected)).mean()
        if loss == "poisson":
            assert (run.predict(frame) > 0).all()
            assert run.target.link == "log"
            logs = run.model.predict(run.preprocessing.transform(frame, "float32"))[:, 0].astype(float)
            np.testing.assert_allclose(run.predict(frame), np.exp(logs) * run.target.scale)
    assert error["poisson"] < min(0.1, error["mse"])
    assert metrics("runs/visits-001")["baseline"]["R²"] == pytest.approx(0, abs=0.05)  # always the mean
    assert metrics("runs/visits-001")["test"]["R²"] > 0.7
    capsys.readouterr()
    main(["export", "runs/visits-001", "net.npz"])
    main(["export", "runs/visits-001", "net.h"])
    assert "gives     log(visits / " in capsys.readouterr().out
    assert main(["evaluate", "runs/visits-001", visits]) == 0
    assert main(["train", visits, "--start", "runs/visits-001", "--loss", "mse"]) == 2
    assert "predicts 'visits' by a loss of another kind" in capsys.readouterr().err


def test_counts_are_not_negative(capsys):
    write("temperatures.csv", ["x", "t"], [(i, i % 30 - 3) for i in range(90)])
    assert main(["train", "temperatures.csv", "--loss", "poisson"]) == 2
    assert "no negative value where its mean is predicted by its logarithm, as by --loss poisson; row 1 has -3" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("loss", components.LOSSES["regression"])
def test_losses_of_regression(houses, loss, capsys):
    assert main(["train", *houses, *SMALL, "--epochs", "2", "--loss", loss]) == 0
    assert ("valid R²" in capsys.readouterr().out) == (loss == "mse")


@pytest.mark.parametrize("data", ["flowers", "houses"])
def test_the_preset_of_realmlp(data, request):
    train(*request.getfixturevalue(data), *SMALL, "--preset", "realmlp", "--epochs", "2")
    run = fastbp.load(f"runs/{data}-001")
    assert run.preprocessing.scaling == "robust"
    assert type(run.model.layers[1]) is (fastbp.SELU if data == "flowers" else fastbp.Mish)
    kept = runs.read_config(f"runs/{data}-001/config.toml")
    assert (kept["batch_size"], kept["hidden"], kept["schedule"]) == (256, "8", "coslog")  # what is given is as given


def test_parts_have_the_arguments_that_are_given():
    made = components.made("sgd:momentum=0.9,nesterov=true", components.OPTIMIZERS, lr=0.5)
    assert (type(made), made.config()["momentum"], made.config()["nesterov"], made.lr) == (fastbp.SGD, 0.9, True, 0.5)
    assert components.made("adam:betas=[0.8,0.9]", components.OPTIMIZERS).betas == (0.8, 0.9)
    assert components.made("gelu:approximate=tanh", components.ACTIVATIONS).name == fastbp.GELU("tanh").name
    asked = options.argparse.Namespace(lr=0.1, schedule="step:factor=0.5", warmup=10)
    rate = components.learning_rate(asked, 300)
    assert rate == fastbp.WarmupSchedule(fastbp.StepSchedule(0.1, every=100, factor=0.5), 10)


def test_every_part_of_the_library_can_be_chosen():
    """A new activation, optimizer, schedule or loss for tables is an option too, or is left out here for a reason."""
    from fastbp import layers, losses, optimizers, schedules

    def named(known):
        return {made for made in known.values() if made is not None}

    assert named(components.ACTIVATIONS) == set(layers.Activation.__subclasses__())
    assert named(components.NORMS) == set(layers.Normalization.__subclasses__())
    assert named(components.OPTIMIZERS) == set(optimizers.OPTIMIZERS.values())
    others = {fastbp.WarmupSchedule, fastbp.ReduceLROnPlateau}
    assert named(components.SCHEDULES) ^ set(schedules.SCHEDULES.values()) == others
    others = {"BCELoss", "BCEWithLogitsLoss"}  # two classes have two outputs here, of which cross-entropy is the same
    assert {made.__name__ for made in components.ALL_LOSSES.values()} == set(losses.LOSSES) - others


# -------------------------------------------------------------------------------------- export
def test_export(mixed, capsys):
    runtime = pytest.importorskip("onnxruntime")
    train(mixed, *SMALL, "--epochs", "2")
    for output in ("net.onnx", "net.h", "net.npz"):
        assert main(["export", "runs/mixed-001", output]) == 0
    predictor, frame = fastbp.load("runs/mixed-001"), pd.read_csv(mixed, parse_dates=["sold"])
    inputs = predictor.preprocessing.transform(frame, "float32")
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": inputs})
    predicted = output[:, 0] * predictor.target.scale + predictor.target.mean
    np.testing.assert_allclose(predicted, predictor.predict(frame), rtol=1e-4)
    assert "net_predict" in Path("net.h").read_text()
    np.testing.assert_array_equal(fastbp.load("net.npz").predict(frame), predictor.predict(frame))
    out = " ".join(capsys.readouterr().out.split())
    assert "takes 11 prepared numbers a row: area, area missing, city=Bonn" in out
    assert f"gives (price - {predictor.target.mean:.9g}) / {predictor.target.scale:.9g}" in out
    assert main(["export", "runs/mixed-001", "net.pt"]) == 2


# ------------------------------------------------------------- narrow terminals, pipes and streams
@pytest.mark.parametrize("width", [60, 80])
def test_narrow_terminals(mixed, rare, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    long = {"no": "nothing unusual about it at all", "yes": "a fraud"}
    frame = pd.read_csv(rare)
    frame.assign(code=RNG.choice([f"c{i}" for i in range(50)], len(frame)), fraud=frame["fraud"].map(long))[
        ["code", *frame]
    ].to_csv("long.csv", index=False)
    for data in (mixed, rare, "long.csv"):
        assert main(["train", data, *SMALL, "--epochs", "3"]) == 0
        assert main(["evaluate", f"runs/{data[:-4]}-001", data]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    joined = re.sub(r" \\\n +", " ", out)  # as a shell reads it
    assert f"fastbp predict runs/{mixed[:-4]}-001 {mixed} -o predictions.csv\n" in joined
    assert f"fastbp train --config runs/{mixed[:-4]}-001/config.toml\n" in joined
    assert "train is measured here on the inputs that predict makes" in " ".join(out.split())  # of long.csv alone
    counts = {len(line.split()) for line in lines if line.startswith((" accuracy ", " balanced acc. "))}
    assert counts == {5, 6}  # no line of a table is broken
    headers = [line for line in lines if line.strip().startswith("epoch ")]
    assert all(("samples/s" in line) == (width == 80) for line in headers)


def test_a_closed_output_takes_what_comes(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["info", "--device", "reference"]) == 0


def test_words_are_wrapped_whole():
    lines = terminal.wrapped("data      one two three four five", 20, 10)
    assert lines == ["data      one two", " " * 10 + "three four", " " * 10 + "five"]
    assert terminal.wrapped("x" * 30, 20) == ["x" * 30]


def test_a_pipe_in_ascii_gets_plain_characters_and_whole_lines(flowers):
    command = [sys.executable, "-m", "fastbp", "train", *flowers, *SMALL, "--epochs", "2"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": ""}
    out = subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode("ascii")
    assert "200 rows - target '2' (classification, 2 classes)" in out
    assert "Linear 2->8 - ReLU - Linear 8->2" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) > 80


def test_predictions_in_a_pipe_are_utf_8_whatever_the_locale():
    write("words.csv", ["x", "kind"], [(i % 2 + i / 100, "süß" if i % 2 else "sauer") for i in range(60)])
    train("words.csv", *SMALL, "--epochs", "30", "--lr", "0.05")
    command = [sys.executable, "-m", "fastbp", "predict", "runs/words-001", "words.csv", "--device", "reference"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    out = subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode()
    assert set(out.split()) == {"kind", "süß", "sauer"}


def test_more_threads_than_cores_are_said(flowers, capsys):
    before = fastbp.get_num_threads()
    try:
        train(*flowers, *SMALL, "--epochs", "1", "--threads", "99")
    finally:
        fastbp.set_num_threads(before)
    assert "99 threads on" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("kind", ["CSV", "feather", "jsonl", "zip", "csv.xz", "parquet"])
def test_kinds_of_files_train(kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "y"])
    text, path = frame.to_csv(index=False), Path(f"table.{kind}")
    if kind == "zip":
        frame.to_csv(path, index=False, compression={"method": "zip", "archive_name": "table.csv"})
    elif kind in ("CSV", "csv.xz"):
        path.write_bytes(text.encode() if kind == "CSV" else lzma.compress(text.encode()))
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        getattr(frame, f"to_{kind}")(path)
    train(str(path), *SMALL, "--epochs", "1")
    assert metrics("runs/table-001")["test"]["RMSE"] > 0


def test_standard_input(houses, capsys, monkeypatch):
    for command in ("train", "predict runs/stdin-001"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("houses.csv").read_bytes())))
        more = [*houses[1:], *SMALL, "--epochs", "1", "-q"] if command == "train" else []
        assert main([*command.split(), "-", *more]) == 0
    assert len(capsys.readouterr().out.splitlines()) == ROWS + 2


def test_a_config_is_good_in_any_folder(houses, folder, monkeypatch):
    train(*houses, *SMALL, "--epochs", "1")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    train("--config", "../runs/houses-001/config.toml")
    assert (folder / "runs" / "houses-002" / "model.npz").is_file()


@pytest.mark.parametrize("labels", [("00501", "01002"), ("true", "false")])
def test_labels_are_as_they_were_written(capsys, labels):
    rows = [(i % 2 + (i % 7) / 100, labels[i % 2]) for i in range(60)]
    write("codes.csv", ["x", "zip"], rows)
    train("codes.csv", *SMALL, "--epochs", "30", "--lr", "0.05")
    capsys.readouterr()
    main(["predict", "runs/codes-001", "codes.csv"])
    assert set(capsys.readouterr().out.split()) == {"zip", *labels}


def test_blank_labels_are_missing():
    write("blank.csv", ["x", "kind"], [(i, ["u", "", "v"][i % 3]) for i in np.random.default_rng(0).permutation(90)])
    for option in ([], ["--drop-missing"]):
        train("blank.csv", *SMALL, "--epochs", "1", *option)
    for run in ("runs/blank-001", "runs/blank-002"):
        assert fastbp.load(run).classes == ["u", "v"]


def test_predictions_take_the_place_of_a_file_when_all_are_written(houses, monkeypatch, capsys):
    train(*houses, *SMALL, "--epochs", "1")
    Path("out.csv").write_text("old")

    def full(text):
        text.write("half")
        raise OSError("no space left on device")

    monkeypatch.setattr("fastbp.cli.outputs.csv_rows", full)
    assert main(["predict", "runs/houses-001", "houses.csv", "-o", "out.csv"]) == 2
    assert Path("out.csv").read_text() == "old"
    assert not [name for name in os.listdir() if name.startswith(".")]


# ------------------------------------------------------------------------- tables that stay in their files
def stored(frame, kind):
    """A frame in a file of some kind, in pieces that are smaller than the parts it is read by."""
    if kind == "parquet":
        frame.to_parquet("table.parquet", row_group_size=37)
    else:
        pyarrow.feather.write_feather(pyarrow.Table.from_pandas(frame), "table.feather", chunksize=37)
    return f"table.{kind}"


@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize("options", [[], ["--drop-missing", "--one-hot", "2"]], ids=["filled", "dropped"])
def test_a_table_that_stays_in_its_file_gives_the_same_bits(mixed, capsys, monkeypatch, kind, options):
    """Of parts of a few rows as of the whole in memory: the network, the predictions, what is measured."""
    path, arguments = stored(pd.read_csv(mixed, parse_dates=["sold"]), kind), [*SMALL, "--epochs", "3", *options]
    train(mixed, *arguments)
    capsys.readouterr()
    monkeypatch.setattr("fastbp.tabular.stored.PART_VALUES", 200)
    train(path, *arguments)
    assert sorted(os.listdir("runs")) == ["mixed-001", "table-001"]  # nothing is left of the inputs
    first, second = (fastbp.load(f"runs/{name}-001") for name in ("mixed", "table"))
    np.testing.assert_array_equal(first.model.flat_parameters, second.model.flat_parameters)
    assert first.preprocessing == second.preprocessing
    assert metrics("runs/mixed-001") == metrics("runs/table-001")
    more = ["--drop-missing"] * bool(options)
    for data in (mixed, path):
        assert main(["predict", "runs/mixed-001", data, "--id", "id,city", "-o", f"{data}.csv", *more]) == 0
    assert read_csv(f"{mixed}.csv") == read_csv(f"{path}.csv")
    for output in ("out.parquet", "out.feather"):
        assert main(["predict", "runs/mixed-001", path, "--id", "id,city,sold", "-o", output, *more]) == 0
        found = getattr(pd, f"read_{output[4:]}")(output)
        assert found["sold"].tolist() == pd.read_csv(mixed, parse_dates=["sold"])["sold"].tolist()
        assert found["city"].isna().tolist() == pd.read_csv(mixed)["city"].isna().tolist()
    capsys.readouterr()
    measured = []
    for run, data in (("mixed-001", mixed), ("table-001", path)):
        assert main(["evaluate", f"runs/{run}", data, *more, "--json"]) == 0
        measured.append(json.loads(capsys.readouterr().out))
    assert measured[0] == measured[1]


def test_means_of_the_target_in_a_table_that_stays_in_its_file(monkeypatch):
    """A category's mean of the target is that of other rows, also in parts, and where a sample is learned from."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"c": rng.choice([f"k{i}" for i in range(60)], 400), "x": rng.normal(size=400)})
    frame["y"] = rng.normal(size=400)
    frame.to_parquet("table.parquet", row_group_size=64)
    for most in (200_000, 150):
        monkeypatch.setattr("fastbp.tabular.learning.SAMPLE_ROWS", most)
        monkeypatch.setattr("fastbp.tabular.stored.PART_VALUES", 100)
        whole = tabular.learn(tabular.from_frame(frame), "y", seed=3)
        by_parts = tabular.learn(tabular.Stored("table.parquet"), "y", seed=3)
        assert whole.sampled == min(most, 400)
        assert whole.preprocessing == by_parts.preprocessing
        expected, mapped = whole.data("float32"), by_parts.data("float32", ".")
        inputs = whole.inputs("float32")
        for part, (x, y) in mapped.items():
            assert isinstance(x, np.memmap)
            np.testing.assert_array_equal(x, expected[part][0])
            np.testing.assert_array_equal(x, inputs[whole.parts[part]])
            np.testing.assert_array_equal(y, expected[part][1])
        own = whole.preprocessing.applied(whole.table, "float32", tabular.Lacks())[:, 0]
        of_others = np.flatnonzero(inputs[:, 0] != own)
        assert set(of_others) <= set(whole.sample)
        assert len(of_others) > 0.9 * len(whole.sample)


def test_a_large_table_is_learned_from_a_sample_that_is_said(mixed, capsys, monkeypatch):
    monkeypatch.setattr("fastbp.tabular.learning.SAMPLE_ROWS", 120)
    assert main(["train", mixed, *SMALL, "--epochs", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "kinds and statistics of columns are those of 120 rows drawn at random" in told
    frame = pd.read_csv(mixed, parse_dates=["sold"])
    sample = tabular.learn(tabular.from_frame(frame), "price").sample
    there = frame[frame["price"].notna()].reset_index(drop=True)
    run = fastbp.load("runs/mixed-001").preprocessing
    area = next(column for column in run.columns if column.name == "area")
    assert len(sample) < 120
    assert area.fill == [there["area"][sample].median()]
    train("--config", "runs/mixed-001/config.toml", "--start", "runs/mixed-001", "--epochs", "1")


def test_arrays_of_numpy_train():
    x = np.random.default_rng(0).normal(size=(90, 4))
    np.save("table.npy", np.column_stack([x, x @ [1, 2, 3, 4]]))
    train("table.npy", *SMALL, "--epochs", "3")
    assert fastbp.load("runs/table-001").preprocessing.features == ["0", "1", "2", "3"]
    np.save("new.npy", x)
    assert main(["predict", "runs/table-001", "new.npy", "-o", "out.csv"]) == 0
    assert len(read_csv("out.csv")) == 91


def test_a_column_that_no_table_can_have_may_be_left_out(capsys):
    rng = np.random.default_rng(0)
    lists, x = [[1, 2]] * 60, rng.normal(size=60)
    pyarrow.parquet.write_table(pyarrow.table({"lists": lists, "x": x, "y": 2 * x}), "table.parquet")
    assert main(["train", "table.parquet", *SMALL]) == 2
    assert "--drop lists" in capsys.readouterr().err
    train("table.parquet", *SMALL, "--epochs", "1", "--drop", "lists")
    assert main(["predict", "runs/table-001", "table.parquet", "-o", "out.csv"]) == 0


def test_the_row_of_a_bad_value_is_that_of_the_file(mixed, capsys):
    """Also where rows before it are left out."""
    train(mixed, *SMALL, "--epochs", "1")
    frame = pd.read_csv(mixed).astype({"area": object}).drop(columns=["sold"])
    frame["area"] = [f"{value}" if value == value else None for value in frame["area"]]
    frame.loc[151, "area"] = "large"
    frame.to_csv("bad.csv", index=False)
    assert main(["evaluate", "runs/mixed-001", "bad.csv"]) == 2
    assert "row 152 has 'large'" in capsys.readouterr().err


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


def test_what_a_command_does_not_know_points_to_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["info", "runs/digits-001"])
    assert "unrecognized arguments: runs/digits-001 (see fastbp info --help)" in capsys.readouterr().err
