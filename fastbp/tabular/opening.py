"""Files before they are read: found, decompressed, and named after what is in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pathlib
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from .table import listed

ARROW, PARQUET = {".feather", ".arrow", ".ipc"}, {".parquet", ".pq"}
DECOMPRESSORS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error
MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"PK": ".npz", b"{": ".jsonl", b"\0\0": ".idx"}
EXPECTED = "CSV, Parquet, Feather or Arrow, JSON lines, NPZ or IDX, also compressed"


def opened(source: str) -> tuple[pathlib.Path, pathlib.Path | bytes]:
    """(path that tells name and kind, path or bytes to read)."""
    if source == "-":
        content = sys.stdin.buffer.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        suffix = next((suffix for magic, suffix in MAGIC.items() if content.startswith(magic)), ".csv")
        return pathlib.Path("stdin" + suffix), content
    path = pathlib.Path(source)
    if not path.is_file():
        raise ValueError(f"no such file: {source} (DATA is a file: {EXPECTED}; or -, or: digits)")
    suffix = path.suffix.lower()
    try:
        if suffix in DECOMPRESSORS:
            with DECOMPRESSORS[suffix](path) as stream:
                return path.with_suffix(""), stream.read()
        if suffix in (".zst", ".lz4"):
            from .arrow import imported

            with imported().input_stream(path) as stream:
                return path.with_suffix(""), stream.read()
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [entry for entry in archive.namelist() if not entry.endswith("/")]
                if len(members) != 1:
                    raise ValueError(f"{source} must have one file, it has {listed(members) or 'none'}")
                return pathlib.Path(members[0]), archive.read(members[0])
    except DAMAGED as error:
        raise ValueError(f"{source} cannot be decompressed: {error}") from None
    return path, path


def stream(content: pathlib.Path | bytes) -> pathlib.Path | io.BytesIO:
    """What readers take of the two forms of a content."""
    return io.BytesIO(content) if isinstance(content, bytes) else content


def name_of(path: pathlib.Path) -> str:
    """What the data of a file is called."""
    return path.name.split(".")[0] or "table"
