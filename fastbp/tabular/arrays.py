"""Arrays as a table: NPZ and IDX files, read by NumPy."""

from __future__ import annotations

import pathlib
import re

import numpy as np

from .opening import DAMAGED, name_of, opened, stream
from .table import from_columns, listed

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(source, path, content, dialect):
    """Read an NPZ file: X and y, or arrays (n,) that are columns."""
    try:
        with np.load(stream(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DAMAGED as error:
        raise ValueError(f"{source} is not an NPZ file, or damaged: {error}") from None
    except ValueError:
        raise ValueError(f"{source} is not an NPZ file, or has arrays of objects, which would need pickle") from None
    x, y = arrays.get(dialect.x_key), arrays.get(dialect.y_key)
    if x is None:
        if dialect.x_key != "X" or any(array.ndim != 1 for array in arrays.values()) or set(arrays) == {dialect.y_key}:
            raise ValueError(f"{source} has no array {dialect.x_key!r} (--x-key); arrays are {listed(list(arrays))}")
        return from_columns(name_of(path), arrays, target=dialect.y_key if dialect.y_key in arrays else "-1")
    if x.ndim < 2:
        raise ValueError(f"{source}: {dialect.x_key} has shape {x.shape}; expected (rows, features)")
    x = x.reshape(len(x), -1)
    names = arrays.get("columns")
    if names is not None and names.shape != (x.shape[1],):
        raise ValueError(
            f"{source}: columns has shape {names.shape}; expected a name for each of {x.shape[1]} features"
        )
    columns = dict(zip(map(str, range(x.shape[1]) if names is None else names.tolist()), x.T, strict=True))
    if y is None:
        return from_columns(name_of(path), columns, names is not None, None)
    if y.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"{source}: {dialect.y_key} has shape {y.shape}; expected ({len(x)},), one value a row of {dialect.x_key}"
        )
    return from_columns(name_of(path), columns | {dialect.y_key: y.ravel()}, names is not None, dialect.y_key)


def read_idx(source, path, content, dialect):
    """Images (n, …) of an IDX file, with the labels of the file beside it: images-idx3 and labels-idx1."""
    x = _idx(source, content if isinstance(content, bytes) else content.read_bytes())
    if x.ndim < 2:
        raise ValueError(f"{source} has labels alone: give the file of the images, whose labels are then found")
    columns = {str(i): column for i, column in enumerate(x.reshape(len(x), -1).T)}
    beside = pathlib.Path(source)
    beside = beside.with_name(re.sub(r"idx\d", "idx1", beside.name.replace("images", "labels")))
    if beside.name == pathlib.Path(source).name or not beside.is_file():
        return from_columns(name_of(path), columns, False, None)
    found, labels = opened(str(beside))
    y = _idx(str(beside), labels if isinstance(labels, bytes) else found.read_bytes())
    if y.shape != (len(x),):
        raise ValueError(f"{beside} has shape {y.shape}; expected ({len(x)},), a label for each image of {source}")
    return from_columns(name_of(path), columns | {"label": y}, False, "label")


def _idx(source, data):
    """The array of an IDX file: two zeros, type, dimensions, their sizes as big-endian int32, the values."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"{source} is not an IDX file")
    sizes = np.frombuffer(data, ">i4", data[3], 4) if len(data) >= 4 + 4 * data[3] else np.array([-1])
    dtype = np.dtype(IDX_TYPES[data[2]])
    if len(data) != 4 + 4 * data[3] + dtype.itemsize * int(np.prod(sizes, dtype=np.int64)):
        raise ValueError(f"{source} is an IDX file of another length than its header says: damaged")
    return np.frombuffer(data, dtype, offset=4 + 4 * data[3]).reshape(sizes).astype(dtype.newbyteorder("="))
