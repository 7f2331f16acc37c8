"""Files of models and checkpoints: JSON and arrays in an uncompressed ``.npz``, or of models in ``.safetensors``.

They are written whole or not at all.

An ``.npz`` is a zip archive of ``config.json`` and one ``NAME.npy`` an array, so ``numpy.load`` and ``unzip`` read it
too; ``.safetensors`` has the JSON as ``config`` in its metadata. The config holds a SHA-256 of everything else.
Reading trusts nothing: it allocates no more than the file has bytes, and never unpickles.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .checks import Array

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Format(NamedTuple):
    """What a kind of file is."""

    name: str
    version: int
    what: str  # in errors
    keeps: str  # what to look at where something is no JSON
    kinds: str  # of the dtypes of its arrays
    allow_nan: bool  # in its JSON


MODEL = Format("fastbp model", 1, "a model file", "model.metadata", "f", False)
CONFIG = "config.json"
SAFETENSORS = ".safetensors"


def checked_path(path: str | os.PathLike[str]) -> str:
    """``path`` as a string that ends as a model's file does."""
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


def as_json(value: Any, allow_nan: bool = True) -> Any:
    """``value`` as it comes back from a file."""
    return json.loads(json.dumps(value, allow_nan=allow_nan))


def _digest(config, arrays):
    """SHA-256 of the config and of every array with its name, dtype and shape."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- writing
def write(path: str | os.PathLike[str], config: dict[str, Any], arrays: dict[str, Array], form: Format = MODEL) -> None:
    """Write a file, as `replacing` does."""
    path = checked_path(path)
    config = {"format": form.name, "version": form.version} | config
    try:
        config = as_json(config, form.allow_nan)
    except (TypeError, ValueError) as error:
        raise TypeError(f"what {form.what} keeps must be JSON (look at {form.keeps}): {error}") from None
    config["sha256"] = _digest(config, arrays)
    with replacing(path) as file:
        (_write_safetensors if path.endswith(SAFETENSORS) else _write_archive)(file, config, arrays)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write; an older one at ``path`` stays until the new one is complete and on disk, and gives its mode."""
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    _remove_abandoned(folder, name)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    try:
        with _locked(temporary) as file:
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(os.stat(path).st_mode)
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                    os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows renames no open file; elsewhere the lock holds until it has its name
                file.close()
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


def _locked(path):
    """A new file, locked while this process has it open: so the next can tell what a kill left."""
    while True:
        file = open(path, "wb")  # noqa: SIM115
        with suppress(BlockingIOError):
            _lock(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
        file.close()  # before it was locked, another process took it for one that was left


def _remove_abandoned(folder, name):
    """Remove what processes left that were killed while they wrote ``name``."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "rb") as left:
                    if _lock(left):
                        os.unlink(entry.path)


def _lock(file):
    """Lock a file while it is open; False where the system has no locks, BlockingIOError where somebody has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


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
def refusing(path: str | os.PathLike[str], form: Format = MODEL) -> Iterator[None]:
    """Turn any error that a foreign or damaged file causes into one ValueError."""
    try:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a seek to where an archive says that a part begins
                raise
            raise ValueError("it names places outside of the file") from error
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
            f"{os.fspath(path)} is not {form.what} of fastbp, or is damaged: {error or type(error).__name__}"
        ) from error


def read(path: str | os.PathLike[str], form: Format = MODEL) -> tuple[dict[str, Any], dict[str, Array]]:
    """The (config, arrays) that `write` wrote.

    Raises
    ------
    ValueError
        The file is foreign or damaged.
    OSError
        It cannot be opened or read.
    """
    path = checked_path(path)
    with open(path, "rb") as file, refusing(path, form):
        config, arrays = (_read_safetensors if path.endswith(SAFETENSORS) else _read_archive)(file)
        if not isinstance(config, dict) or config.get("format") != form.name:
            raise ValueError("its config does not name the format")
        if config.get("version") != form.version:
            raise ValueError(f"it has version {config.get('version')!r}, this fastbp reads version {form.version}")
        for array in arrays.values():
            if array.dtype.kind not in form.kinds:
                raise ValueError(f"it has an array of dtype {array.dtype}")
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
    if dtype.hasobject or fortran_order:
        raise ValueError(f"it has an array of dtype {dtype}, or in column order")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
