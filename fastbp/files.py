"""Model files: JSON and arrays in an uncompressed ``.npz`` or in ``.safetensors``, written whole or not at all.

An ``.npz`` is a zip archive of ``config.json`` and one ``NAME.npy`` an array, so ``numpy.load`` and ``unzip`` read it
too; ``.safetensors`` has the JSON as ``config`` in its metadata. The config holds a SHA-256 of everything else.
Reading trusts nothing: it allocates no more than the file has bytes, and never unpickles.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np

from .checks import Array

FORMAT, VERSION = "fastbp model", 1
CONFIG = "config.json"
SAFETENSORS = ".safetensors"


def _checked_path(path):
    path = os.fspath(path)
    if not path.endswith((".npz", SAFETENSORS)):
        raise ValueError(f'the path of a model must end in ".npz" or "{SAFETENSORS}", got {path!r}')
    if path.endswith(SAFETENSORS):
        _safetensors()
    return path


def _safetensors():
    """The package that reads and writes ``.safetensors``."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            f'files that end in {SAFETENSORS} need the package safetensors: pip install "fastbp[safetensors]"'
        ) from None
    return safetensors


def _digest(config, arrays):
    """SHA-256 of the config and of every array with its name, dtype and shape."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- writing
def write(path: str | os.PathLike[str], config: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a model file, as `replacing` does."""
    path = _checked_path(path)
    config = {"format": FORMAT, "version": VERSION} | config
    try:
        config = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"what a model file keeps must be JSON (look at model.metadata): {error}") from None
    config["sha256"] = _digest(config, arrays)
    with replacing(path) as file:
        (_write_safetensors if path.endswith(SAFETENSORS) else _write_archive)(file, config, arrays)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write; an older one at ``path`` stays until the new one is complete and on disk."""
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # so that the new name survives a power cut
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_safetensors(file, config, arrays):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    file.write(_safetensors().numpy.save(arrays, metadata={"config": json.dumps(config)}))


def _write_archive(file, config, arrays):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(CONFIG), json.dumps(config, indent=1))
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


# --------------------------------------------------------------------------------------- reading
@contextmanager
def refusing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error that a foreign or damaged file causes into one ValueError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a model file of fastbp, or is damaged: {error or type(error).__name__}"
        ) from error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The (config, arrays) that `write` wrote.

    Raises
    ------
    ValueError
        The file is foreign or damaged.
    OSError
        It cannot be opened or read.
    """
    path = _checked_path(path)
    with open(path, "rb") as file, refusing(path):
        config, arrays = (_read_safetensors if path.endswith(SAFETENSORS) else _read_archive)(file)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError("its config does not name the format")
        if config.get("version") != VERSION:
            raise ValueError(f"it has version {config.get('version')!r}, this fastbp reads version {VERSION}")
        checksum = config.pop("sha256")
        if checksum != _digest(config, arrays):
            raise ValueError("the checksum does not match the content")
        return config, arrays


def _read_safetensors(file):
    package = _safetensors()
    try:
        with package.safe_open(file.name, framework="numpy") as content:
            arrays = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            metadata = content.metadata()
    except package.SafetensorError as error:
        raise ValueError(error) from None
    if any(array.dtype.kind != "f" for array in arrays.values()):
        raise ValueError("it has arrays that are not of floating-point numbers")
    return json.loads(metadata["config"]), arrays


def _read_archive(file):
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_sizes(entries, os.fstat(file.fileno()).st_size)
        arrays = {
            entry.filename.removesuffix(".npy"): _read_array(archive.read(entry))
            for entry in entries
            if entry.filename != CONFIG
        }
        return json.loads(archive.read(CONFIG)), arrays


def _check_sizes(entries, file_size):
    """Stored entries cannot be larger than the file: no decompression, no memory beyond the file's size."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it has compressed entries")
    if sum(entry.file_size for entry in entries) > file_size:
        raise ValueError("its entries are larger than the file")


def _read_array(data):
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"it has an array of npy version {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind != "f" or fortran_order:
        raise ValueError(f"it has an array of dtype {dtype}")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
