"""Tables: what reading, splitting and preprocessing make of files."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from fastbp import tabular
from fastbp.tabular import Preprocessing, Table, learn, read, split

RNG = np.random.default_rng(0)


def make(**columns):
    return Table("t", {name: np.asarray(values) for name, values in columns.items()}, named=True)


# -------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize(
    ("text", "named", "names"),
    [
        ("a,b\n1,2\n3,4\n", True, ["a", "b"]),
        ("1,2\n3,4\n", False, ["0", "1"]),
        ("5.1,3.5,setosa\n4.9,3.0,virginica\n", False, ["0", "1", "2"]),
        ("a;b c\n1;2\n", True, ["a", "b c"]),
        ("\ufeffa\tb\n1\t2\n", True, ["a", "b"]),
    ],
)
def test_csv_dialects(tmp_path, text, named, names):
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    table = read(str(path))
    assert (table.named, list(table.columns), table.name) == (named, names, "t")


def test_header_can_be_said(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"1990,1991\n1,2\n3,4\n"))
    assert list(read(str(path), header="yes").columns) == ["1990", "1991"]
    assert len(read(str(path))) == 3


def test_parquet_and_npz(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": ["x", None]}), tmp_path / "t.parquet")
    table = read(str(tmp_path / "t.parquet"))
    assert table.columns["b"].tolist() == ["x", None]
    np.savez(tmp_path / "t.npz", X=np.arange(8).reshape(2, 2, 2), y=[[0], [1]])
    table = read(str(tmp_path / "t.npz"))
    assert list(table.columns) == ["0", "1", "2", "3", "y"]
    assert table.find(table.target) == "y"


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.array([[object()]]))
    with pytest.raises(ValueError, match="pickle"):
        read(str(tmp_path / "t.npz"))


def test_missing_values_are_found_and_left_out():
    table = make(a=[1.0, np.nan, 3.0, np.inf], b=np.array(["x", "y", None, "z"], object))
    with pytest.raises(ValueError, match=r"a \(2 rows\), b \(1 rows\)"):
        table.require_complete(["a", "b"])
    assert len(table.without_missing_rows()) == 1


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
@pytest.mark.parametrize(
    ("values", "task"),
    [
        (np.array(["a", "b"] * 30, object), "classification"),
        (np.array([True, False] * 30), "classification"),
        (np.arange(60) % 3, "classification"),
        (np.arange(60) % 3 + 0.0, "classification"),
        (np.arange(60), "regression"),
        (np.arange(60) % 3 + 0.5, "regression"),
    ],
)
def test_task_follows_the_target(values, task):
    preprocessing, _ = learn(make(x=RNG.normal(size=60), y=values), "y", "auto", (60, 20, 20), 0)
    assert preprocessing.task == task


def test_scaling_is_learnt_from_the_training_part_only():
    table = make(x=RNG.normal(5, 3, 100), flat=np.full(100, 0.1), y=RNG.normal(1e5, 1e3, 100))
    preprocessing, parts = learn(table, "y", "auto", (60, 20, 20), 0)
    table.columns["x"][parts["test"]] += 1e6
    again, _ = learn(table, "y", "auto", (60, 20, 20), 0)
    assert again == preprocessing
    x = preprocessing.inputs(table)[parts["train"]]
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=0), [1, 0], atol=1e-12)
    y = preprocessing.targets(table)
    np.testing.assert_allclose(preprocessing.in_own_units(y), table.columns["y"])


def test_classes_go_to_indices_and_back():
    labels = np.array(["no", "yes", "perhaps"] * 20, object)
    table = make(x=RNG.normal(size=60), y=labels)
    preprocessing, _ = learn(table, "y", "auto", (60, 20, 20), 0)
    outputs = np.eye(3)[preprocessing.targets(table)]
    np.testing.assert_array_equal(preprocessing.values(outputs), labels)
    with pytest.raises(ValueError, match="does not know: never"):
        preprocessing.targets(make(y=np.array(["yes", "never"], object)))


def test_preprocessing_is_json():
    table = make(x=np.arange(60, dtype=np.float32), y=np.arange(60, dtype=np.uint8) % 2)
    preprocessing, _ = learn(table, "y", "auto", (60, 20, 20), 0)
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(preprocessing)))) == preprocessing
