"""Compiled kernels on disk, of the CPU and of GPUs, and where they are. Imports no compiler.

The cache holds one self-contained file a kernel, named by a hash of everything its code depends on. So there is no
index that two processes could tear, no stale callee and no file of another machine; a file that is damaged, of another
name or of somebody else, or a directory that cannot be written, costs a compilation. Where sources are missing
(installed as bytecode, run from an archive) nothing is cached.

The kernels of one such hash but the function, a stamp, have a directory. Those of older stamps stay, for another
checkout or machine may use them, until they take more than OLD_STAMPS bytes: the least recently used go first.
"""

import hashlib
import os
import pkgutil
import platform
import re
import stat
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

OLD_STAMPS = 256 << 20  # bytes that kernels of other stamps may take; those of one take about 3 MB, of a GPU 30 MB
STAMP = re.compile("[0-9a-f]{16}")  # a directory's name
TEMPORARY = ".new-"  # how the name of a file begins that is being written
ABANDONED = 3600.0  # seconds after which nobody is writing it any more


def stamp_of(folder, *parts) -> str:
    """A hash of all that any kernel of a folder depends on: sources, versions, and what else there is.

    OSError where a module is there and its source is not.
    """
    digest = hashlib.sha256()
    for part in (platform.python_version(), metadata.version("numba"), metadata.version("llvmlite"), *parts):
        digest.update(repr(part).encode())
    here = Path(__file__).parent
    for package in (here, here / folder):
        modules = [module.name for module in pkgutil.iter_modules([str(package)]) if not module.ispkg]
        for source in (package / f"{name}.py" for name in ["__init__", *sorted(modules)]):
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def cache_directory(stamp) -> Path | None:
    """Where compiled kernels are kept; None with FASTBP_CACHE=0 or when no safe directory can be written.

    FASTBP_CACHE_DIR if it is not empty, else the user's cache directory, and in it one for each stamp: what ``stamp()``
    returns, a hash of `stamp_of`. Entries are machine code, so a directory that somebody else owns or may write to is
    refused, and one in a place where others may put another in its stead.
    """
    if os.environ.get("FASTBP_CACHE", "1") == "0":
        return None
    try:
        name = stamp()[:16]
    except (OSError, metadata.PackageNotFoundError) as error:
        warnings.warn(f"fastbp: the source of a kernel is missing ({error}); kernels are not cached", stacklevel=2)
        return None
    try:
        root = os.environ.get("FASTBP_CACHE_DIR")
        if not root:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbp"
        directory = Path(root) / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, is_safe in ((directory, _is_private), (directory.parent, _keeps_its_entries)):
            if hasattr(os, "getuid") and not is_safe(path.stat()):
                warnings.warn(f"fastbp: {path} is not private to this user; kernels are not cached", stacklevel=2)
                return None
        tempfile.TemporaryFile(dir=directory).close()
        os.utime(directory)  # last used now
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return directory


def _is_private(info) -> bool:
    """Whether only this user may write to a directory or a file."""
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _keeps_its_entries(info) -> bool:
    """Whether nobody else may rename what this user has in a directory, as in /tmp."""
    return info.st_uid in (os.getuid(), 0) and (not info.st_mode & stat.S_IWOTH or bool(info.st_mode & stat.S_ISVTX))


# An entry is a SHA-256 and what follows: the name of the library, the symbol of the kernel, the object code and the
# bitcode it was made from, each after its length. The checksum is of all that and of the file's place, its stamp and
# name: a file put in the place of another is no entry. Nothing in it is run before the checksum holds.
def _packed(place: str, *parts: bytes) -> bytes:
    content = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.sha256(place.encode() + content).digest() + content


def _unpacked(place: str, raw: bytes) -> list[bytes]:
    if hashlib.sha256(place.encode() + raw[32:]).digest() != raw[:32]:
        raise ValueError("the checksum is wrong")
    parts, start = [], 32
    while start < len(raw):
        end = start + 8 + int.from_bytes(raw[start : start + 8], "little")
        parts.append(raw[start + 8 : end])
        start = end
    return parts


def read_entry(path) -> list[bytes] | None:
    """The parts of a cache file; None where there is none, a damaged one, or one that others may write to."""
    try:
        # Not waiting: a pipe would have us wait for who writes to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or (hasattr(os, "getuid") and not _is_private(info)):
                return None
            return _unpacked(_place(path), file.read())
    except (OSError, ValueError):
        return None


def _place(path) -> str:
    return f"{path.parent.name}/{path.name}"


def write_entry(path, *parts: bytes):
    """Write a cache file in one step; failing to is no error."""
    _tidy(path.parent)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY, delete=False) as file:
            temporary = file.name
            file.write(_packed(_place(path), *parts))
        os.replace(temporary, path)
        temporary = None
    except OSError:  # full disk, no permission
        pass
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


@cache
def _tidy(directory):
    """Once a process that compiles: remove files that nobody finishes writing, and old stamps.

    Of a directory nothing is removed but what has the name of an entry, and of directories none but stamps.
    """
    with suppress(OSError):
        for path in directory.glob(f"{TEMPORARY}*"):
            if time.time() - path.lstat().st_mtime > ABANDONED:
                path.unlink()
    size = 0
    for stamp in sorted(directory.parent.iterdir(), key=_last_used, reverse=True):
        if not STAMP.fullmatch(stamp.name) or stamp.is_symlink() or stamp == directory:
            continue
        with suppress(OSError):  # somebody else's, or removed by another process
            files = [path for path in stamp.iterdir() if path.suffix == ".kernel" or path.name.startswith(TEMPORARY)]
            size += sum(path.lstat().st_size for path in files)
            if size > OLD_STAMPS:
                for path in files:
                    path.unlink()
                stamp.rmdir()


def _last_used(path) -> float:
    """When a process last chose this directory; 0 where it is gone."""
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0
