"""Tables: what reading, splitting and preprocessing make of files and frames."""

import bz2
import dataclasses
import datetime
import gzip
import io
import json
import lzma
import re
import warnings
import zipfile

import numpy as np
import pytest

import fastbp
from fastbp import tabular
from fastbp.tabular import Dialect, Preprocessing, Target, from_columns, from_frame, learn, read, split
from fastbp.tabular.columns import ByTarget, Numeric, OneHot
from fastbp.tabular.target import raw_target

pd, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, RobustScaler, StandardScaler, TargetEncoder  # noqa: E402

RNG = np.random.default_rng(0)


def make(**columns):
    return from_columns("t", columns)


def values(table):
    """The values of a table by name, None where one is missing."""
    return {
        name: [None if gone else value for value, gone in zip(one.values.tolist(), one.missing, strict=True)]
        for name, one in table.columns.items()
    }


def read_text(folder, text, name="t.csv", encoding="utf-8", **dialect):
    (folder / name).write_bytes(text.encode(encoding))
    return read(str(folder / name), Dialect(**dialect))


# ------------------------------------------------------------------------------------------ text
@pytest.mark.parametrize(
    ("text", "named", "names"),
    [
        ("a,b\n1,2\n3,4\n", True, ["a", "b"]),
        ("1,2\n3,4\n", False, ["0", "1"]),
        ("5.1,3.5,setosa\n4.9,3.0,virginica\n", False, ["0", "1", "2"]),
        ("a;b c\n1;2\n", True, ["a", "b c"]),
        ("\ufeffa\tb\n1\t2\n", True, ["a", "b"]),
        ("a|b\n1|2\n", True, ["a", "b"]),
        ("0,1,2,3,4\n5,6,7,8,9\n", True, ["0", "1", "2", "3", "4"]),  # an array saved by pandas
        ("2019,pop,y\n1,2,3\n", True, ["2019", "pop", "y"]),  # a mixed first line above numbers
        ("a, b, y\n1, 2, 3\n", True, ["a", "b", "y"]),
        (",a,b\n0,1,2\n1,3,4\n", True, ["column 0", "a", "b"]),
        ("'a','b'\n'1,5','2'\n", True, ["a", "b"]),
        ('"a ""x""",b\r\n1,2\r\n', True, ['a "x"', "b"]),
    ],
)
def test_names_of_columns(tmp_path, text, named, names):
    table = read_text(tmp_path, text)
    assert (table.named, list(table.columns), table.name) == (named, names, "t")


def test_header_can_be_said(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"1990,1991\n1,2\n3,4\n"))
    assert list(read(str(tmp_path / "t.csv.gz"), Dialect(header="yes")).columns) == ["1990", "1991"]
    assert len(read(str(tmp_path / "t.csv.gz"))) == 3
    assert read_text(tmp_path, "a,b\nc,d\n", header="no").columns["0"].values.tolist() == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "dialect", "expected"),
    [
        ("a;b\n1,5;-2,25\n", {"decimal": ","}, {"a": [1.5], "b": [-2.25]}),
        ('a,b\n"251,945",1\n"1,000.5",2\n', {"thousands": ","}, {"a": [251945.0, 1000.5], "b": [1, 2]}),
        ("a;b\n1.251,5;x\n", {"thousands": ".", "decimal": ","}, {"a": [1251.5], "b": ["x"]}),
        ("a,b\n?,1\n3,-\n", {"na": ("?", "-")}, {"a": [None, 3], "b": [1, None]}),
        ("a, b\n?, ?\n3, x\n", {"na": ("?",)}, {"a": [None, 3], "b": [None, "x"]}),
        ("a b\n1 2\n", {"separator": " "}, {"a": [1], "b": [2]}),
        ("a,t\n1,u\n2,\n3,v\n", {}, {"a": [1, 2, 3], "t": ["u", None, "v"]}),
        ("a,t\n1,NA\nnan,v\n", {}, {"a": [1, None], "t": [None, "v"]}),
        ("zip,t\n00501,true\n10001,false\n", {}, {"zip": ["00501", "10001"], "t": ["true", "false"]}),
        ('a,b\n"x\ny",2\n', {}, {"a": ["x\ny"], "b": [2]}),
        ("a,t\n1,u\n  , \n3,v\n", {}, {"a": [1, None, 3], "t": ["u", None, "v"]}),  # blanks alone
        ("a,   b\n1,   ?\n2,  5\n", {"na": ("?",)}, {"a": [1, 2], "b": [None, 5]}),  # blanks around
        ("d\n2024-02-29\n", {}, {"d": [datetime.datetime(2024, 2, 29)]}),
        ("d,e\n29/02/2024,1\n", {"date_format": "%d/%m/%Y"}, {"d": [datetime.datetime(2024, 2, 29)], "e": [1]}),
    ],
)
def test_dialects(tmp_path, text, dialect, expected):
    assert values(read_text(tmp_path, text, **dialect)) == expected


def test_encodings(tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv is not text in utf-8: .*--encoding latin-1"):
        read_text(tmp_path, "a,b\nä,1\n", encoding="latin-1")
    assert values(read(str(tmp_path / "t.csv"), Dialect(encoding="latin-1"))) == {"a": ["ä"], "b": [1]}
    with pytest.raises(ValueError, match="--encoding latin-99: no such"):
        read(str(tmp_path / "t.csv"), Dialect(encoding="latin-99"))
    (tmp_path / "late.csv").write_bytes(b"a,b\n" + b"x,1\n" * 50_000 + b"\xe4,1\n")  # beyond what is sniffed
    with pytest.raises(ValueError, match=r"late\.csv is not text in utf-8"):
        read(str(tmp_path / "late.csv"))


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("T.CSV", bytes),
        ("t.csv.gz", gzip.compress),
        ("t.csv.bz2", bz2.compress),
        ("t.csv.xz", lzma.compress),
        ("t.csv.zst", lambda data: pyarrow.compress(data, "zstd", asbytes=True)),
        ("t.tsv", lambda data: data.replace(b",", b"\t")),
    ],
)
def test_compression(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed(b"a,b\n1,2\n"))
    assert values(read(str(tmp_path / name))) == {"a": [1], "b": [2]}


def test_zip(tmp_path):
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.csv", "a,b\n1,2\n")
    assert values(read(str(path))) == {"a": [1], "b": [2]}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"one file, it has inner\.csv, other\.csv"):
        read(str(path))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow", "jsonl", "npz"])
def test_standard_input(monkeypatch, kind):
    data, table = io.BytesIO(), pyarrow.table({"a": [1], "b": [2]})
    if kind == "npz":
        np.savez(data, a=[1], b=[2])
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, data)
    elif kind == "arrow":
        pyarrow.feather.write_feather(table, data)
    else:
        text = b'{"a": 1, "b": 2}\n' if kind == "jsonl" else b"a,b\n1,2\n"
        data.write(gzip.compress(text) if kind == "csv.gz" else text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.getvalue())))
    table = read("-")
    assert (values(table), table.name) == ({"a": [1], "b": [2]}, "stdin")


# ------------------------------------------------------------------------------- columns and frames
MIXED = {
    "text": pd.Categorical(["u", None, "v"]),
    "blank": ["u", "", "v"],
    "whole": pd.array([1, None, 3], dtype="Int64"),
    "real": [0.5, None, np.inf],
    "truth": [True, None, False],
    "day": pd.to_datetime(["2024-01-31", None, "2024-12-01"]),
}
EXPECTED = {
    "text": ["u", None, "v"],
    "blank": ["u", None, "v"],
    "whole": [1, None, 3],
    "real": [0.5, None, None],
    "truth": [True, None, False],
    "day": [datetime.datetime(2024, 1, 31), None, datetime.datetime(2024, 12, 1)],
}


def test_frames(tmp_path):
    frame = pd.DataFrame(MIXED)
    paths = [str(tmp_path / name) for name in ("t.parquet", "t.feather", "t.jsonl")]
    frame.to_parquet(paths[0])
    frame.to_feather(paths[1])
    frame.drop(columns="day").to_json(paths[2], orient="records", lines=True)
    tables = [from_frame(frame), from_frame(pyarrow.table(frame)), from_frame(frame.to_dict("list")), *map(read, paths)]
    for table in tables:
        expected = EXPECTED | ({} if "day" in table.columns else {"day": None})
        assert values(table) == {name: expected[name] for name in table.columns}
        assert table.columns["truth"].kind == "boolean"
    assert tables[0].take(~tables[0].incomplete(["truth"])).columns["truth"].values.dtype == bool


def test_frames_of_polars(tmp_path):
    polars = pytest.importorskip("polars")
    frame = polars.from_pandas(pd.DataFrame(MIXED))
    frame.write_ipc(tmp_path / "t.arrow")
    frame.write_ipc_stream(tmp_path / "stream.arrow")
    for table in (from_frame(frame), read(str(tmp_path / "t.arrow")), read(str(tmp_path / "stream.arrow"))):
        assert values(table) == EXPECTED


def test_other_types_of_arrow():
    time, decimal = pyarrow.array([datetime.time(1, 0, 30)]), pyarrow.array(["1.5"]).cast(pyarrow.decimal128(5, 2))
    far = pyarrow.array([datetime.datetime(2024, 1, 1, 12)], pyarrow.timestamp("ns", "Europe/Rome"))
    table = from_frame(pyarrow.table({"time": time, "decimal": decimal, "far": far, "none": pyarrow.nulls(1)}))
    day = datetime.datetime(2024, 1, 1, 12)
    assert values(table) == {"time": [3630.0], "decimal": [1.5], "far": [day], "none": [None]}
    with pytest.raises(ValueError, match=r"'list'.*--drop list"):
        from_frame(pyarrow.table({"list": [[1, 2]]}))
    with pytest.raises(TypeError, match="several kinds"):
        from_frame(pd.DataFrame({"a": [1, "x"]}))
    with pytest.raises(TypeError, match="one kind, got int, str"):
        make(a=[1, "x"])


def test_the_index_of_pandas_is_no_column(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]})
    frame[frame.a > 1].to_parquet(tmp_path / "t.parquet")
    frame[frame.a > 1].reset_index(drop=True).set_index(pd.Index([7, 8], name="key")).to_feather(tmp_path / "t.feather")
    for name in ("t.parquet", "t.feather"):
        assert values(read(str(tmp_path / name))) == {"a": [2, 3], "b": [5, 6]}
    assert values(from_frame(frame[frame.a > 1])) == {"a": [2, 3], "b": [5, 6]}


# ---------------------------------------------------------------------------------------- arrays
def test_npz(tmp_path):
    path = str(tmp_path / "t.npz")
    np.savez(path, X=np.arange(8).reshape(2, 2, 2), y=[[0], [1]])
    table = read(path)
    assert (list(table.columns), table.named, table.find(table.target)) == (["0", "1", "2", "3", "y"], False, "y")
    np.savez(path, X=np.ones((2, 2)), columns=["b", "a"])
    assert (list(read(path).columns), read(path).named, read(path).target) == (["b", "a"], True, None)
    np.savez(path, b=[1, 2], a=["u", "v"])
    assert values(read(path)) == {"b": [1, 2], "a": ["u", "v"]}


def test_idx(tmp_path):
    images, labels = np.arange(12, dtype=">i4").reshape(3, 2, 2), np.array([5, 0, 4], "u1")
    header = b"\0\0\x0c\3" + np.array(images.shape, ">i4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    path = str(tmp_path / "train-images-idx3-ubyte.gz")
    assert read(path).target is None
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\3" + labels.tobytes()))
    table = read(path)
    assert values(table) == {str(i): [i, i + 4, i + 8] for i in range(4)} | {"label": [5, 0, 4]}
    assert table.target == "label"
    (tmp_path / "t.idx").write_bytes(header + images.tobytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read(str(tmp_path / "t.idx"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", b"", "has no rows"),
        ("t.csv", b"a,b\n", "has no rows"),
        ("t.csv", b"a,b\n1,2\n1\n", "Expected 2 columns, got 1"),
        ("t.csv", b"a,a\n1,2\n", "two columns are called 'a'"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-5], "cannot be decompressed"),
        ("t.csv.xz", b"xxx", "cannot be decompressed"),
        ("t.zip", b"xxx", "cannot be decompressed"),
        ("t.parquet", b"PAR1", "not Parquet"),
        ("t.feather", b"ARROW1", "neither Feather nor Arrow"),
        ("t.jsonl", b"[1", "one JSON object a line"),
        ("t.npz", b"\x93 random", "not an NPZ file"),
        ("t.xls", b"", "expected a name that ends as"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_file(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        read(str(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.array([[object()]]))
    with pytest.raises(ValueError, match="pickle"):
        read(str(tmp_path / "t.npz"))


def test_columns_by_name_and_index():
    table = make(a=[1], b=[2], c=[3])
    assert [table.find(key) for key in ("b", "0", "-1")] == ["b", "a", "c"]
    assert list(table.without(["b", "-1"]).columns) == ["a"]


# ------------------------------------------------------------------------------------ splitting
def test_split_is_a_partition_in_proportion():
    labels = RNG.integers(0, 3, 500)
    parts = split(labels, (60, 20, 20), seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(500))
    for label in range(3):
        count = (labels == label).sum()
        for part, share in zip(tabular.PARTS, (0.6, 0.2, 0.2), strict=True):
            assert abs((labels[parts[part]] == label).sum() - share * count) <= 1


def test_split_follows_the_seed():
    zeros = np.zeros(100)
    first, again, other = (split(zeros, (1, 1, 1), seed)["test"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# -------------------------------------------------------------------------------- preprocessing
def rich(n=400, seed=0):
    """A column of every kind, with gaps in each."""
    rng = np.random.default_rng(seed)
    days = np.datetime64("2020-01-01T06:00", "us") + rng.integers(0, 900 * 24, n) * np.timedelta64(1, "h")
    columns = {
        "number": rng.lognormal(3, 1, n),
        "whole": rng.integers(0, 9, n).astype(float),
        "truth": rng.choice(["True", "False"], n).astype(object),
        "few": rng.choice(["a", "b", "c"], n).astype(object),
        "many": rng.choice([f"k{i}" for i in range(60)], n).astype(object),
        "day": days,
    }
    for column in columns.values():
        gap = {"f": np.nan, "M": np.datetime64("NaT")}.get(column.dtype.kind)
        column[rng.random(n) < 0.1] = gap
    return columns, rng.normal(size=n)


@pytest.mark.parametrize("scaling", ["standard", "robust"])
@pytest.mark.parametrize("task", ["regression", "two classes", "three classes"])
def test_equal_to_scikit_learn(scaling, task):
    columns, y = rich()
    if task != "regression":
        y = np.digitize(y, [0] if task == "two classes" else [-0.5, 0.5])
    fitted = Preprocessing(scaling=scaling).fit(columns, y, np.arange(300))
    with pytest.warns(UserWarning, match="'many' has unknown categories in 4 rows"):
        found = dict(zip(fitted.labels, fitted.transform(columns).T, strict=True))
    train = slice(300)

    def scaled(numbers, indicator=None):
        numbers = numbers[:, None]
        imputer = SimpleImputer(strategy="median").fit(numbers[train])
        filled = imputer.transform(numbers)
        if scaling == "robust":
            z = RobustScaler().fit(filled[train]).transform(filled)
            return (z / np.sqrt(1 + (z / 3) ** 2))[:, 0]
        return StandardScaler().fit(filled[train]).transform(filled)[:, 0]

    for name in ("number", "whole"):
        np.testing.assert_allclose(found[name], scaled(columns[name]), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(found[f"{name} missing"], np.isnan(columns[name]))
    day = pd.Series(columns["day"])
    elapsed = (day - pd.Timestamp(0)) / pd.Timedelta(days=1)
    parts = {"year": day.dt.year, "month": day.dt.month, "day of week": day.dt.day_of_week, "hour": day.dt.hour}
    for part, expected in (parts | {"elapsed days": elapsed}).items():
        np.testing.assert_allclose(found[f"day {part}"], scaled(expected.to_numpy(float)), rtol=1e-9, atol=1e-9)

    def filled(name):
        texts = columns[name][:, None]
        return SimpleImputer(missing_values=None, strategy="most_frequent").fit(texts[train]).transform(texts)

    one_hot = OneHotEncoder(sparse_output=False).fit(filled("few")[train]).transform(filled("few"))
    np.testing.assert_array_equal(np.column_stack([found[f"few={category}"] for category in "abc"]), one_hot)
    encoder = TargetEncoder(target_type={"regression": "continuous", "two classes": "binary"}.get(task, "multiclass"))
    means = encoder.fit(filled("many")[train], y[train]).transform(filled("many"))
    means = StandardScaler().fit(means[train]).transform(means)
    ours = np.column_stack([column for name, column in found.items() if name.startswith("many by target")])
    np.testing.assert_allclose(ours, means, rtol=1e-9, atol=1e-9)


def test_statistics_are_those_of_the_training_rows():
    columns, y = rich()
    fitted = Preprocessing().fit(columns, y, np.arange(300))
    for name in ("number", "whole"):
        columns[name][300:] += 1e6
    columns["day"][300:] += np.timedelta64(10_000, "D")
    columns["few"][300:] = "b"
    assert Preprocessing().fit(columns, y, np.arange(300)) == fitted


def test_means_of_the_target_do_not_tell_the_row_its_own():
    """On a target of noise, categories of two rows each would predict the training rows well if they saw themselves."""
    names, y = np.array([f"k{i // 2}" for i in range(400)], object), np.random.default_rng(0).normal(size=400)
    seen = Preprocessing().fit_transform({"c": names, "x": y * 0 + np.arange(400) % 7}, y)[:, 0]
    blind = Preprocessing().fit({"c": names, "x": y * 0 + np.arange(400) % 7}, y).transform({"c": names, "x": y})[:, 0]
    assert abs(np.corrcoef(seen, y)[0, 1]) < 0.2
    assert np.corrcoef(blind, y)[0, 1] > 0.5


def test_kinds_of_columns():
    n = 60
    columns = {
        "Id": RNG.permutation(n),
        "row": np.arange(n),
        "code": [f"A-{i}" for i in range(n)],
        "flat": np.full(n, 0.1),
        "empty": [None] * n,
        "flat with gaps": [None, *[1.0] * (n - 1)],
        "answer": ["yes", "no"] * (n // 2),
        "truth": ["true", "FALSE"] * (n // 2),
        "real": RNG.normal(size=n),
        "year": np.arange(1900, 1900 + n),  # a time, no number of the row
    }
    fitted = Preprocessing().fit(columns, RNG.normal(size=n))
    out = {"Id": "identifier", "row": "identifier", "code": "identifier", "flat": "constant", "empty": "empty"}
    assert fitted.left_out == out
    kinds = {column.name: column.kind for column in fitted.columns}
    number, category = dict.fromkeys(("flat with gaps", "real", "year"), "number"), {"answer": "category"}
    assert kinds == number | category | {"truth": "boolean"}
    kept = Preprocessing(keep=["row"], categories=["Id"]).fit(columns, RNG.normal(size=n))
    assert {"row", "Id"} <= set(kept.features)
    assert isinstance(kept.columns[0], ByTarget)


FREE_TEXT = [f"a fine house, number {i}" for i in range(32)], r"free text.*--drop c.*TfidfVectorizer"
MISTAKEN = {  # what a column has, the advice where options of reading can help, and where the values have to change
    "?": (["1", "2", "3", "?"] * 8, r"row 4 has '\?'.*--na \?; for categories: --category c", "errors='coerce'"),
    "grouped": (["251,945", "1,000"] * 16, "row 1 has '251,945'.*--thousands ,", r"'251,945'.*to_numeric\(frame\['c"),
    "decimal comma": (["1", "1,5", "2,25", "3"] * 8, "row 2 has '1,5'.*--decimal ,", r"replace\(',', '\.'\)"),
    "dates": (["29/02/2024", "1/3/2024"] * 16, "'29/02/2024'.*--date-format", "'29/02/2024'.*pandas.to_datetime"),
    "free text": (*FREE_TEXT, FREE_TEXT[1]),
}


@pytest.mark.parametrize("text", [True, False], ids=["text", "other sources"])
@pytest.mark.parametrize(("column", "in_text", "elsewhere"), MISTAKEN.values(), ids=MISTAKEN)
def test_text_that_is_no_category_is_refused_with_advice(column, in_text, elsewhere, text):
    table = dataclasses.replace(make(c=column, x=RNG.normal(size=32)), text=text)
    with pytest.raises(ValueError, match=in_text if text else elsewhere) as error:
        Preprocessing().fit(table, RNG.normal(size=32))
    assert text or not re.search("--(na|thousands|decimal|date-format)", str(error.value))
    if "free" not in in_text:
        assert "c" in Preprocessing(categories=["c"]).fit(table, RNG.normal(size=32)).features


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather", "jsonl"])
def test_advice_is_for_the_kind_of_file(tmp_path, suffix):
    """Options of reading are advised where they are taken."""
    frame, path = pd.DataFrame({"c": ["1", "2", "3", "?"] * 8, "y": RNG.normal(size=32)}), str(tmp_path / f"t.{suffix}")
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        getattr(frame, f"to_{suffix}")(path)
    tables = [read(path)] + ([tabular.Stored(path)] if tabular.stays_in_its_file(path) else [])
    for table in tables:
        told = r"--na \?" if suffix == "csv" else r"pandas\.to_numeric\(frame\['c'\], errors='coerce'\)"
        with pytest.raises(ValueError, match=told):
            learn(table, "y")
        with pytest.raises(ValueError, match=told):
            learn(table, "c")


@pytest.mark.parametrize("scaling", ["standard", "robust"])
def test_numbers_beyond_the_range_of_a_mean_are_refused(scaling):
    y = RNG.normal(size=40)
    huge = np.where(np.arange(40) % 2, 1.7e308, -1.7e308 * RNG.random(40))
    with pytest.raises(ValueError, match=r"column 'a' has numbers up to 1\.7e\+308.*another unit"):
        Preprocessing(scaling=scaling).fit({"a": huge, "b": y})
    with pytest.raises(ValueError, match="column 'y' has numbers up to"):
        learn(make(x=y, y=huge), "y")


def test_a_value_that_the_network_cannot_hold_is_refused_with_its_row():
    fitted = Preprocessing().fit({"a": RNG.normal(size=40)})
    with pytest.raises(ValueError, match=r"column 'a' has 1e\+300 in row 2, which is beyond float32"):
        fitted.transform({"a": [1.0, 1e300]}, "float32")
    clipped = Preprocessing(scaling="robust").fit({"a": RNG.normal(size=40)})
    np.testing.assert_allclose(clipped.transform({"a": [1e300]}), 3)  # its square is no number


def test_what_was_not_seen_is_handled_and_said():
    columns, y = rich()
    fitted = Preprocessing().fit(columns, y)
    with pytest.warns(UserWarning, match=r"no column 'number': it counts as missing in every row"):
        without = fitted.transform({name: column for name, column in columns.items() if name != "number"})
    empty = columns | {"number": np.full(400, np.nan)}
    np.testing.assert_array_equal(without, fitted.transform(empty))
    unseen = columns | {"few": np.full(400, "z", object), "many": np.full(400, "z", object)}
    with pytest.warns(UserWarning, match="unknown categories") as said:
        found = dict(zip(fitted.labels, fitted.transform(unseen).T, strict=True))
    assert [str(one.message) for one in said] == [
        f"column {name!r} has unknown categories in 400 rows, as 'z'" for name in ("few", "many")
    ]
    assert not any(found[f"few={category}"].any() for category in "abc")
    many = next(column for column in fitted.columns if column.name == "many")
    np.testing.assert_allclose(found["many by target"] * many.scale[0] + many.center[0], y.mean())
    with pytest.raises(ValueError, match="lacks columns of the model: number, whole, truth, few"):
        fitted.transform({"many": columns["many"], "day": columns["day"]})
    with pytest.raises(ValueError, match="'number' must have values of kind number, as in training; row 1 has 'x'"):
        fitted.transform(columns | {"number": np.full(400, "x", object)})


def test_kept_as_json(tmp_path):
    columns, y = rich()
    fitted = Preprocessing().fit(columns, y)
    assert {type(column) for column in fitted.columns} == {Numeric, OneHot, ByTarget}
    fitted.save(tmp_path / "p.json")
    again = Preprocessing.load(tmp_path / "p.json")
    assert again == fitted
    np.testing.assert_array_equal(again.transform(columns), fitted.transform(columns))
    with pytest.raises(ValueError, match="version 99"):
        Preprocessing.from_dict(json.loads((tmp_path / "p.json").read_text()) | {"version": 99})


def test_arrays_have_the_order_of_training():
    frame = pd.DataFrame({"a": RNG.normal(size=40), "flat": np.ones(40), "b": RNG.normal(size=40)})
    fitted = Preprocessing().fit(frame)
    expected = fitted.transform(frame)
    np.testing.assert_array_equal(fitted.transform(frame[["b", "flat", "a"]]), expected)
    np.testing.assert_array_equal(fitted.transform(frame.to_numpy()), expected)
    np.testing.assert_array_equal(fitted.transform(frame[["a", "b"]].to_numpy()), expected)
    with pytest.raises(ValueError, match="4 columns besides the target; the model takes 3"):
        fitted.transform(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"no names of columns.*--by-position"):
        fitted.transform(from_columns("t", {"0": [1.0], "1": [1.0], "2": [1.0]}, named=False))


# ---------------------------------------------------------------------------------------- target
@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"] * 60, "classification"),
        ([True, False] * 60, "classification"),
        (np.arange(120) % 3, "classification"),
        (np.arange(120) % 3 + 0.0, "classification"),
        (np.arange(120), "regression"),
        (np.arange(120) % 3 + 0.5, "regression"),
        (np.arange(120) % 24, "regression"),  # counts
        (np.arange(120) % 40 * 10_000, "regression"),  # rounded prices
        ([125000.0, 99000, 131000, 87000, 240000, 99500, 181000, 113000, 75000, 310000], "regression"),
    ],
)
def test_task_follows_the_target(values, task):
    assert raw_target("y", make(y=values).columns["y"]).task == task


@pytest.mark.parametrize(
    ("values", "task", "told"),
    [
        ([3.0] * 20, "regression", "one value 3: nothing to predict"),
        (["a"] * 20, "auto", "one value 'a': nothing to tell apart"),
        (np.arange(20.0), "classification", "20 distinct values.*as '0'.*--task regression"),
        (["251,945", "1,000"] * 9, "auto", r"row 1 has '251,945'.*to_numeric\(frame\['y'\]"),
        (["1", "2", "4", "?"] * 9, "regression", r"row 4 has '\?'.*errors='coerce'"),
        (["a", "b"] * 9, "regression", "row 1 has 'a'.*--task classification"),
        (np.array(["2024-01-01"] * 9, "M8[D]"), "auto", "dates"),
    ],
)
def test_targets_that_cannot_be_learned(values, task, told):
    with pytest.raises(ValueError, match=told):
        raw_target("y", make(y=values).columns["y"], task)


def test_classes_go_to_indices_and_back():
    labels = np.array(["no", "yes", "perhaps"] * 20, object)
    learned = learn(make(x=RNG.normal(size=60), y=labels), "y")
    np.testing.assert_array_equal(learned.target.decoded(np.eye(3)[learned.y]), labels)
    with pytest.raises(ValueError, match="does not know: never"):
        learned.target.encoded(make(y=["yes", "never"]).columns["y"])


@pytest.mark.parametrize(
    ("classes", "others"),
    [
        ([0, 1, 2], [["0", "1", "2"], [0.0, 1.0, 2.0]]),
        (["false", "true"], [[False, True], ["FALSE", "True"]]),
        ([False, True], [["false", "true"]]),
        (["00501", "501"], [["00501", "501"]]),
    ],
)
def test_labels_are_found_however_a_table_holds_them(classes, others):
    for other in [classes, *others]:
        found = Target("y", "classification", classes).encoded(make(y=other).columns["y"])
        np.testing.assert_array_equal(found, np.arange(len(classes)))


def test_rows_without_target_are_left_out():
    learned = learn(make(x=RNG.normal(size=60), y=["a", "b", None] * 20), "y")
    assert (len(learned.table), learned.dropped, learned.target.classes) == (40, 20, ["a", "b"])


# -------------------------------------------------------------------------------- the file of a run
@pytest.fixture
def houses():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"area": rng.normal(120, 30, 200), "city": rng.choice(["Rome", "Oslo"], 200)})
    frame["price"] = 1000 * frame["area"] + 50_000 * (frame["city"] == "Oslo")
    return frame


def saved(frame, target, path):
    """A network of a frame, trained and kept as `fastbp train` does."""
    learned = learn(from_frame(frame), target)
    width, outputs = learned.preprocessing.width, learned.target.outputs
    model = fastbp.Sequential(fastbp.Linear(width, outputs), seed=0, device="reference")
    loss = fastbp.MSELoss() if outputs == 1 else fastbp.CrossEntropyLoss()
    optimizer = fastbp.Adam(lr=0.1)
    model.fit(learned.inputs("float32"), learned.y, loss=loss, optimizer=optimizer, epochs=40, verbose=False)
    model.metadata = learned.metadata()
    model.save(path)


def test_what_is_loaded_from_a_run_takes_raw_columns(tmp_path, houses):
    saved(houses, "price", tmp_path / "model.npz")
    for path in (tmp_path, str(tmp_path), tmp_path / "model.npz"):
        predictor = fastbp.load(path, device="reference")
        predicted = predictor.predict(houses)
        assert np.abs(predicted - houses["price"]).max() < 5000
        moved = houses[["price", "city", "area"]]
        np.testing.assert_array_equal(predictor.predict(moved), predicted)
        np.testing.assert_array_equal(predictor.predict(houses[["area", "city"]].to_dict("list")), predicted)
    with pytest.raises(ValueError, match="'price' is a number: use predict"):
        predictor.predict_proba(houses)
    assert isinstance(predictor.model, fastbp.Sequential)
    with pytest.raises(AttributeError, match=r"fastbp\.load\(…\)\.model\.flat_parameters"):
        predictor.flat_parameters  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        predictor.nothing  # noqa: B018
    with pytest.raises(TypeError, match=r"\.model"):
        predictor(houses)


def test_classes_of_a_run(tmp_path, houses):
    houses["dear"] = np.where(houses["price"] > 140_000, "yes", "no")
    saved(houses.drop(columns="price"), "dear", tmp_path / "model.npz")
    predictor = fastbp.load(tmp_path, device="reference")
    probability = predictor.predict_proba(houses)
    assert predictor.classes == ["no", "yes"]
    np.testing.assert_array_equal(predictor.predict(houses), np.array(["no", "yes"])[probability.argmax(axis=1)])
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    with pytest.warns(UserWarning, match="'city' has unknown categories in 1 row, as 'Bonn'"):
        predictor.predict({"area": [100.0], "city": ["Bonn"]})


def test_files_without_preprocessing_load_as_networks(tmp_path):
    model = fastbp.Sequential(fastbp.Linear(2, 1), device="reference")
    model.metadata = {"note": "mine"}
    model.save(tmp_path / "model.npz")
    assert isinstance(fastbp.load(tmp_path / "model.npz", device="reference"), fastbp.Sequential)
    assert isinstance(fastbp.load(tmp_path, device="reference"), fastbp.Sequential)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_files_of_the_first_version_load(tmp_path, task):
    classes = {"classes": ["no", "yes"], "shares": [0.5, 0.5]} if task == "classification" else {}
    kept = {"features": ["a", "b"], "named": True, "mean": [1.0, 2.0], "scale": [2.0, 4.0], "target": "y"}
    kept |= {"task": task, "classes": None, "shares": None, "target_mean": 10.0, "target_scale": 3.0} | classes
    model = fastbp.Sequential(fastbp.Linear(2, 2 if classes else 1), seed=0, device="reference", dtype="float64")
    model.metadata = {"preprocessing": kept, "data": "old.csv", "split": [60, 20, 20], "seed": 0}
    model.save(tmp_path / "model.npz")
    outputs = model.predict([[2.0, -1.0], [0.0, 0.0]])
    predicted = fastbp.load(tmp_path, device="reference").predict({"b": [-2.0, None], "a": [5.0, 1.0]})
    if classes:
        assert predicted.tolist() == np.array(["no", "yes"])[outputs.argmax(axis=1)].tolist()
    else:
        np.testing.assert_allclose(predicted, outputs[:, 0] * 3 + 10)


def test_warnings_name_the_line_of_the_caller(tmp_path, houses):
    saved(houses, "price", tmp_path / "model.npz")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fastbp.load(tmp_path, device="reference").predict(houses[["area"]])
    assert [one.filename for one in said] == [__file__]
