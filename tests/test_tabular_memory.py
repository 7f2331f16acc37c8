"""What `fastbp train` and `predict` hold of a table that stays in its file: a part of it, and bytes a row."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_memory_use import ENVIRONMENT, MIB, require, watched

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")
COLUMNS = 60
BYTES_A_ROW = 64  # of the target, of the parts of the split, of the order, of what is predicted; some of it twice
SAMPLE = 20_000  # rows that the preprocessing is learned from
SLACK = 96 * MIB  # parts, row groups, buffers, code of pyarrow and scikit-learn


def write(path, rows):
    """A file of Parquet of numbers that do not compress, in row groups; its target is made of two columns."""
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(COLUMNS)]
    schema = pyarrow.schema([(name, "float64") for name in [*names, "y"]])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for _ in range(rows // SAMPLE):
            x = rng.normal(size=(COLUMNS, SAMPLE))
            file.write_table(pyarrow.table([*x, x[0] - x[1]], schema))


def train_and_predict(folder, rows):
    """In a process of its own: what a command takes, and what it may take."""
    import os

    import fastbp
    from fastbp.cli import main
    from fastbp.tabular import learning

    os.chdir(folder)
    size = os.path.getsize("large.parquet")
    learning.SAMPLE_ROWS = SAMPLE
    options = ["--hidden", "8", "--epochs", "1", "--batch-size", "512", "-q"]
    write("small.parquet", SAMPLE)
    assert main(["train", "small.parquet", *options]) == 0  # so that code is there, compiled
    allowed = BYTES_A_ROW * rows + 3 * 8 * SAMPLE * COLUMNS + SLACK
    assert size > 4 * allowed
    for command in (
        ["train", "large.parquet", *options],
        ["predict", "runs/large-001", "large.parquet", "-o", "out.parquet"],
        ["evaluate", "runs/large-001", "large.parquet"],
    ):
        with watched() as grown:
            assert main(command) == 0
        print(f"{command[0]}: {grown[0] / MIB:.0f} of {allowed / MIB:.0f} MiB, of a file of {size / MIB:.0f} MiB")
        assert grown[0] <= allowed
    assert fastbp.load("runs/large-001").metadata["rows"] == rows
    assert len(pyarrow.parquet.read_table("out.parquet")) == rows


@pytest.mark.long
def test_a_file_several_times_the_memory_that_is_taken(fresh, warm_cache, tmp_path):
    require(3 * 1024)
    rows = 2_400_000 // SAMPLE * SAMPLE
    code = f"from tests.test_tabular_memory import write; write({str(tmp_path / 'large.parquet')!r}, {rows})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    process = fresh(train_and_predict, str(tmp_path), rows, FASTBP_CACHE_DIR=str(warm_cache), **ENVIRONMENT)
    print(process.stdout)
