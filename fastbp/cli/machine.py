"""What a command says of the machine it runs on."""

import importlib.metadata

from .. import backend


def version() -> str:
    """This library's."""
    return importlib.metadata.version("fastbp")


def described(device, *more) -> str:
    """The first line: version, processor, and what else is in force."""
    config = backend.load(device).config()
    words = {"instruction set": "", "cores available": "cores ", "threads": "threads ", "numba": "numba "}
    facts = [word + config[key] for key, word in words.items() if key in config]
    machine = f"{device} ({', '.join(facts)})" if facts else device
    return " · ".join([f"fastbp {version()}", machine, *map(str, more)])


def cached_in(device) -> str:
    """Where compiled kernels are kept; empty where they are not."""
    folder = backend.load(device).config().get("kernel cache", "off")
    return "" if folder == "off" else f"; cached in {folder}"
