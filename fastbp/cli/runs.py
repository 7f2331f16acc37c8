"""One training run, one numbered folder: ``runs/digits-001`` and so on, never overwritten."""

import contextlib
import csv
import json
import math
import pathlib
import tomllib
from collections.abc import Iterator

from .. import loading, tabular

MODEL = loading.RUN_MODEL
LAST = "last.npz"
CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"  # a folder, while the run is not complete
INTERRUPTED = "interrupted.txt"
NOT_IN_CONFIG = {"command", "arguments", "config", "resume", "quiet", "json", "distributed"}


def create(parent: str, name: str) -> pathlib.Path:
    """Make the next folder ``NAME-001``, ``NAME-002``, …"""
    parent = pathlib.Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path.name, name) for path in parent.iterdir()), default=0)
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run was quicker
            number += 1
        else:
            return folder


@contextlib.contextmanager
def removed_if_empty(*folders: pathlib.Path) -> Iterator[None]:
    """Leave no folders in which nothing has been written."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in reversed(folders):
                folder.rmdir()
        raise


def _number(entry, name):
    stem, _, digits = entry.rpartition("-")
    return int(digits) if stem == name and digits.isdecimal() else 0


def model_path(run_or_model: str) -> pathlib.Path:
    """The model file of a run's folder, or the file itself."""
    path = pathlib.Path(run_or_model)
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no model at {file}: expected the folder of a run or a model file")
    return file


def load(run_or_model: str, device: str, precision: str) -> tabular.Predictor:
    """The predictor of a run or a model file."""
    found = loading.load(model_path(run_or_model), device=device, precision=precision)
    if not isinstance(found, tabular.Predictor):
        raise ValueError(
            f"{run_or_model} does not say how to prepare data: it is not of `fastbp train`; use fastbp.load"
        )
    return found


def absolute(data: str) -> str:
    """The path of data, good in any folder; ``digits`` and standard input are no paths."""
    return data if data in ("digits", "-") else str(pathlib.Path(data).absolute())


def kept(options) -> dict:
    """Of a command's options, those that a config holds; paths are good in any folder."""
    found = {name: value for name, value in vars(options).items() if name not in NOT_IN_CONFIG}
    return found | {name: absolute(found[name]) for name in ("data", "start", "run_dir") if found.get(name)}


def write_config(folder: pathlib.Path, options: dict) -> None:
    """Write options as TOML; those that are None are left out."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items() if value is not None]
    (folder / CONFIG).write_text("\n".join(lines) + "\n", encoding="utf-8")


def interrupted_config(folder: str) -> pathlib.Path:
    """The config of a run that can go on."""
    path = pathlib.Path(folder)
    if not ((path / CHECKPOINTS).is_dir() or (path / INTERRUPTED).is_file()):
        raise ValueError(f"{folder} is no run that was interrupted; to train its model further, use --start")
    return path / CONFIG


def read_config(path: str) -> dict:
    """Read what `write_config` wrote."""
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def write_history(folder: pathlib.Path, history: list[dict]) -> None:
    """One line an epoch; no file where there was none."""
    if not history:
        return
    with open(folder / "history.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def write_metrics(folder: pathlib.Path, metrics: dict) -> None:
    """Metrics of every part and of the baseline."""
    text = json.dumps(defined(metrics), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")


def defined(metrics: dict) -> dict:
    """Metrics with None for those that are not defined, which JSON can hold."""
    return {
        part: {name: value if math.isfinite(value) else None for name, value in of_part.items()}
        for part, of_part in metrics.items()
    }
