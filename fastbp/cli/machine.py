"""What a command says of the machine it runs on."""

import functools
import importlib.metadata
import pathlib
import subprocess

from .. import backend

FILE = pathlib.Path(__file__)
ASKED = (
    ("ls-files", "--error-unmatch", FILE.name),
    ("rev-parse", "HEAD"),
    ("status", "--porcelain", "--untracked-files=no"),
)  # of git


def version() -> str:
    """This library's."""
    return importlib.metadata.version("fastbp")


@functools.cache
def commit() -> str | None:
    """The commit of this library's checkout; with a plus where files differ, None where there is no checkout."""
    git = ["git", "-C", str(FILE.parent)]
    try:
        ours, head, changes = (subprocess.run([*git, *words], capture_output=True, text=True) for words in ASKED)
    except OSError:  # no git
        return None
    return None if ours.returncode else head.stdout.strip() + "+" * bool(changes.stdout.strip())


def described(device, *more) -> str:
    """The first line: version, processor, and what else is in force."""
    config = backend.load(device).config()
    words = {"instruction set": "", "cores available": "cores ", "threads": "threads ", "numba": "numba "}
    facts = [word + config[key] for key, word in words.items() if key in config]
    machine = f"{device} ({', '.join(facts)})" if facts else device
    return " · ".join([f"fastbp {version()}", machine, *map(str, more)])


def multiplied(device, precision) -> list[str]:
    """What products of less precision are made by; nothing of those of the dtype."""
    if precision == "ieee":
        return []
    unit = backend.load(device).config().get("bfloat16 unit")
    return [f"precision {precision}" + (f" by the {unit} unit" if unit else "")]


def cached_in(device) -> str:
    """Where compiled kernels are kept; empty where they are not."""
    folder = backend.load(device).config().get("kernel cache", "off")
    return "" if folder == "off" else f"; cached in {folder}"
