"""Tables that stay in their files: what is read by parts is what is read at once."""

import numpy as np
import pytest

from fastbp import cli, tabular
from fastbp.tabular import Stored, read, stored

pd, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
ROWS = 200


def frame():
    """A column of every kind, with gaps."""
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"real": rng.normal(size=ROWS).astype("float32"), "whole": rng.integers(0, 9, ROWS)})
    made["text"] = rng.choice(["u", "v", "w"], ROWS)
    made["group"] = pd.Categorical(rng.choice(["x", "y"], ROWS))
    made["truth"] = pd.array(rng.random(ROWS) < 0.5, "boolean")
    made["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 900, ROWS), "D")
    for name in ("real", "text", "group", "truth", "day"):
        made.loc[rng.random(ROWS) < 0.1, name] = None
    return made


@pytest.fixture(params=["parquet", "feather", "uncompressed feather", "npy", "structured npy"])
def path(request, tmp_path):
    """A file of each kind, whose pieces are smaller than a part, or larger."""
    kind, path = request.param, str(tmp_path / f"t.{request.param.split()[-1]}")
    if kind == "parquet":
        frame().to_parquet(path, row_group_size=30)
    elif "feather" in kind:
        how = "uncompressed" if kind.startswith("un") else "lz4"
        pyarrow.feather.write_feather(pyarrow.Table.from_pandas(frame()), path, compression=how, chunksize=30)
    else:
        numbers = np.random.default_rng(0).normal(size=(ROWS, 3))
        numbers[::7, 1] = np.nan
        dtype = [(name, float) for name in "abc"]
        np.save(path, numbers if kind == "npy" else np.array(list(map(tuple, numbers)), dtype))
    return path


def whole(path):
    """The table in memory."""
    if not path.endswith("npy"):
        return read(path)
    array = np.load(path)
    columns = {name: array[name] for name in array.dtype.names} if array.dtype.names else dict(enumerate(array.T))
    return tabular.from_columns("t", columns, bool(array.dtype.names))


def same(found, expected):
    assert (found.name, found.named, found.target, len(found)) == (
        expected.name, expected.named, expected.target, len(expected)
    )  # fmt: skip
    assert list(found.columns) == list(expected.columns)
    for name, column in found.columns.items():
        of = expected.columns[name]
        assert column.values.dtype == of.values.dtype
        np.testing.assert_array_equal(column.missing, of.missing)
        np.testing.assert_array_equal(column.present, of.present)


@pytest.fixture(params=[1, 64, 10_000])
def part(request, monkeypatch):
    """Rows of a part, of one column."""
    monkeypatch.setattr(stored, "PART_VALUES", request.param)
    return request.param


def test_parts_are_the_table(path, part):
    table, expected = Stored(path), whole(path)
    assert (len(table), table.names, table.find("-1")) == (ROWS, expected.names, expected.find("-1"))
    same(table.loaded(), expected)
    for name in table.names:
        same(table.loaded([name]), expected.without(set(expected.names) - {name}))
        np.testing.assert_array_equal(table.column(name).missing, expected.columns[name].missing)
    same(table.without(["1"]).loaded(), expected.without(["1"]))
    parts = list(table.parts())
    assert max(map(len, parts)) <= max(1, part // len(table.names))
    assert [number for part in parts for number in part.numbers] == list(range(ROWS))


@pytest.mark.parametrize("rows", [(0, 1), (0, 30), (29, 31), (60, 140), (199, 200), (50, 50), (0, ROWS)])
def test_a_range_of_rows(path, rows):
    taken = Stored(path).rows(*rows)
    assert len(taken) == rows[1] - rows[0]
    if len(taken):
        same(taken.loaded(), whole(path).take(np.arange(*rows)))


def test_a_range_of_a_range(path):
    same(Stored(path).rows(20, 90).rows(10, 13).loaded(), whole(path).take(np.arange(30, 33)))


def test_rows_by_number_and_by_mask(path, part):
    expected, rng = whole(path), np.random.default_rng(0)
    rows = np.sort(rng.choice(ROWS, 50, replace=False))
    taken = Stored(path).take(rows)
    same(taken.loaded(), expected.take(rows))
    assert taken.loaded().numbers.tolist() == rows.tolist()
    mask = rng.random(50) < 0.5
    same(taken.take(mask).loaded(), expected.take(rows[mask]))


def test_only_the_row_groups_of_the_rows_are_read(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    frame().to_parquet(path, row_group_size=20)
    asked, read_batches = [], pyarrow.parquet.ParquetFile.iter_batches

    def watched(self, *, row_groups, **more):
        asked.append(row_groups)
        return read_batches(self, row_groups=row_groups, **more)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    assert len(Stored(path).rows(50, 60).loaded()) == 10
    assert len(Stored(path).rows(50, 61).loaded()) == 11
    assert asked == [[2], [2, 3]]


def test_arrays_of_a_memory_map(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    same(Stored(mapped, "x").loaded(), tabular.from_columns("x", {"0": X[:, 0], "1": X[:, 1]}, False))
    same(Stored({"a": mapped[:, 0], "y": y}, "x").loaded(), tabular.from_columns("x", {"a": X[:, 0], "y": y}))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("none.parquet", "none.parquet must be a file of Parquet"),
        ("t.csv", "must be a file of Parquet"),
        ("bad.parquet", "bad.parquet is not Parquet, or damaged"),
        ("bad.feather", "bad.feather is not Feather or Arrow, or damaged"),
        ("bad.npy", "bad.npy is not a file of NumPy"),
        ("empty.parquet", "empty.parquet has no rows"),
        ("twice.feather", "two columns are called 'a'"),
        (np.zeros(3), r"shape \(rows, columns\)"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, r"one length, got \[2, 3\]"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_stored_table_is_refused(tmp_path, monkeypatch, source, told):
    monkeypatch.chdir(tmp_path)
    for name, content in (("t.csv", b"a\n1\n"), ("bad.parquet", b"PAR1"), ("bad.feather", b"ARROW1"), ("bad.npy", b"")):
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], "int64")}), "empty.parquet")
    with (
        pyarrow.OSFile("twice.feather", "wb") as sink,
        pyarrow.ipc.new_file(sink, pyarrow.schema([("a", "int64")] * 2)),
    ):
        pass
    with pytest.raises(ValueError, match=told):
        Stored(source)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".jsonl", ".npz"])
def test_how_to_read_text_is_refused_of_other_files(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    if suffix == ".npz":
        np.savez(path, X=np.ones((3, 2)), y=np.arange(3))
    elif suffix == ".jsonl":
        path.write_text('{"a": 1, "y": 2}\n{"a": 2, "y": 3}\n')
    else:
        table = pyarrow.table({"a": [1.0, 2.0], "y": [2.0, 3.0]})
        (pyarrow.parquet.write_table if suffix == ".parquet" else pyarrow.feather.write_feather)(table, str(path))
    assert len(tabular.read(str(path))) in (2, 3)
    with pytest.raises(ValueError, match=r"is no text with separators.*--decimal, --na, --date-format"):
        tabular.read(str(path), tabular.Dialect(decimal=",", na=("?",), date_format="%Y"))
    assert cli.main(["train", str(path), "--separator", ";", "--epochs", "1", "-q"]) == 2
