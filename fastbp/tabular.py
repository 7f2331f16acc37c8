"""Tables for the command line: reading them, splitting them, and the preprocessing saved with a model.

A table is named columns of equal length. CSV and Parquet are read by pyarrow, NPZ by NumPy, ``digits``
is scikit-learn's bundled set. Features are standardised, ``(x - mean) / scale`` with both taken from
the training part; a regression target likewise, class labels become their index in ``classes``.
"""

import csv
import dataclasses
import io
import pathlib

import numpy as np

FEW_CLASSES = 50  # whole numbers with at most this many distinct values are taken for class labels
PARTS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, in order.

    Parameters
    ----------
    name : str
        What the data is called; runs are named after it.
    columns : dict of str to array (n,)
    named : bool
        False where the source has no names, so that a column is called by its position.
    target : str or None
        The column to predict when none is asked for, by name or by index.
    """

    name: str
    columns: dict[str, np.ndarray]
    named: bool
    target: str | None = "-1"

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def find(self, column: str) -> str:
        """The name of a column given by name or by index (negative: from the end)."""
        if column in self.columns:
            return column
        names = list(self.columns)
        try:
            return names[int(column)]
        except (ValueError, IndexError):
            raise ValueError(f"column {column!r} not found in {self.name}; columns are {_listed(names)}") from None

    def without(self, columns) -> "Table":
        """The table less some columns, given by name or by index."""
        dropped = {self.find(column) for column in columns}
        return dataclasses.replace(self, columns={k: v for k, v in self.columns.items() if k not in dropped})

    def renamed(self, column: str, name: str) -> "Table":
        """The table with another name for a column, given by name or by index."""
        old = self.find(column)
        return dataclasses.replace(self, columns={name if k == old else k: v for k, v in self.columns.items()})

    def without_missing_rows(self) -> "Table":
        """The table less the rows in which a value is missing or not finite."""
        keep = ~np.any([_missing(values) for values in self.columns.values()], axis=0)
        return dataclasses.replace(self, columns={k: v[keep] for k, v in self.columns.items()})

    def require_complete(self, columns) -> None:
        """Raise unless every value of these columns is there."""
        gaps = {name: int(_missing(self.columns[name]).sum()) for name in columns}
        gaps = {name: count for name, count in gaps.items() if count}
        if gaps:
            where = _listed([f"{name} ({count} rows)" for name, count in gaps.items()])
            raise ValueError(
                f"values missing or not finite in {where}: fill them in, or leave out those rows (--drop-missing) "
                "or those columns (--drop)"
            )


def _listed(names, most=12) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def _missing(values) -> np.ndarray:
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    if values.dtype.kind == "O":
        return np.array([value is None for value in values])
    return np.zeros(len(values), bool)


# -------------------------------------------------------------------------------------- reading
def read(source: str, *, header: str = "auto", x_key: str = "X", y_key: str = "y") -> Table:
    """Read ``digits``, or a CSV, Parquet or NPZ file.

    Parameters
    ----------
    source : str
        ``"digits"`` or a path. CSV may be compressed, and separated by comma, semicolon or tab.
    header : {"auto", "yes", "no"}
        Whether the first line of a CSV names the columns; ``"auto"``: when no field of it is a number.
    x_key, y_key : str
        Names of the features (n, …) and of the target (n,) in an NPZ file; the target may be absent.
    """
    if source == "digits":
        return _read_digits()
    path = pathlib.Path(source)
    if not path.is_file():
        raise ValueError(f"no such file: {source} (DATA is a CSV, Parquet or NPZ file, or: digits)")
    suffixes = path.suffixes
    if ".npz" in suffixes:
        table = _read_npz(path, x_key, y_key)
    elif ".parquet" in suffixes:
        table = _from_arrow(path, _pyarrow("parquet").read_table(path), named=True)
    elif {".csv", ".tsv", ".txt"} & set(suffixes):
        table = _read_csv(path, header)
    else:
        raise ValueError(f"{source}: expected a name ending in .csv, .tsv, .txt, .parquet or .npz")
    if not table.columns or not len(table):
        raise ValueError(f"{source} has no rows")
    return table


def _name(path):
    return path.name.split(".")[0]


def _read_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits come with scikit-learn: pip install "fastbp[cli]"') from None
    digits = load_digits()
    columns = dict(zip(digits.feature_names, digits.data.T, strict=True))
    return Table("digits", columns | {"digit": digits.target}, named=True)


def _pyarrow(module):
    """``pyarrow.csv`` or ``pyarrow.parquet``."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise ImportError('reading CSV and Parquet needs pyarrow: pip install "fastbp[cli]"') from None
    return getattr(pyarrow, module)


def _from_arrow(path, table, named):
    names = table.column_names if named else [str(i) for i in range(table.num_columns)]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two columns have the same name; columns are {_listed(names)}")
    columns = [column.to_numpy() for column in table.columns]
    return Table(_name(path), dict(zip(names, columns, strict=True)), named)


def _read_csv(path, header):
    reader = _pyarrow("csv")
    import pyarrow

    with pyarrow.input_stream(path) as stream:
        first_line = io.TextIOWrapper(stream, encoding="utf-8-sig").readline()
    delimiter = max(",;\t", key=first_line.count)
    first_row = next(csv.reader([first_line], delimiter=delimiter), [])
    named = header == "yes" or (header == "auto" and not any(_is_number(field) for field in first_row))
    try:
        table = reader.read_csv(
            path,
            read_options=reader.ReadOptions(autogenerate_column_names=not named),
            parse_options=reader.ParseOptions(delimiter=delimiter),
        )
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from None
    return _from_arrow(path, table, named)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_npz(path, x_key, y_key):
    with np.load(path, allow_pickle=False) as arrays:
        if x_key not in arrays:
            raise ValueError(f"{path} has no array {x_key!r} (--x-key); arrays are {_listed(arrays.files)}")
        x = arrays[x_key]
        y = arrays.get(y_key)
    if x.ndim < 2:
        raise ValueError(f"{path}: {x_key} has shape {x.shape}; expected (rows, features)")
    x = x.reshape(len(x), -1)
    columns = {str(i): column for i, column in enumerate(x.T)}
    if y is not None:
        if y.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"{path}: {y_key} has shape {y.shape}; expected ({len(x)},), one value a row of {x_key}")
        columns[y_key] = y.ravel()
    return Table(_name(path), columns, named=False, target=None if y is None else y_key)


# ------------------------------------------------------------------------------------ splitting
def split(strata: np.ndarray, fractions, seed: int) -> dict[str, np.ndarray]:
    """Rows of the three parts, drawn at random within each stratum.

    Parameters
    ----------
    strata : array (n,)
        Rows of equal value are divided in the same proportions: the class labels, or zeros.
    fractions : sequence of three floats
        For training, early stopping and the final test.
    seed : int

    Returns
    -------
    dict of str to int64 array
        Sorted row numbers under ``"train"``, ``"valid"``, ``"test"``.
    """
    rng = np.random.default_rng(seed)
    shares = np.cumsum(fractions) / np.sum(fractions)
    parts = {part: [] for part in PARTS}
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        cuts = np.rint(shares[:-1] * len(rows)).astype(int)
        for part, piece in zip(PARTS, np.split(rows, cuts), strict=True):
            parts[part].append(piece)
    parts = {part: np.sort(np.concatenate(pieces)) for part, pieces in parts.items()}
    for part, rows in parts.items():
        if not len(rows):
            raise ValueError(f"{len(strata)} rows are too few: none is left for the {part} part of the split")
    return parts


# -------------------------------------------------------------------------------- preprocessing
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From raw columns to what the network sees, and back from its outputs.

    Parameters
    ----------
    features : list of str
        Columns in the order of the network's inputs.
    named : bool
        Whether `features` are names; else positions.
    mean, scale : list of float
        One for each feature.
    target : str
    task : {"classification", "regression"}
    classes, shares : list or None
        Labels in the order of the network's outputs, and how often each is in the training part.
    target_mean, target_scale : float
        Of a regression target.
    """

    features: list
    named: bool
    mean: list
    scale: list
    target: str
    task: str
    classes: list | None = None
    shares: list | None = None
    target_mean: float = 0.0
    target_scale: float = 1.0

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.classes) if self.task == "classification" else 1

    def inputs(self, table: Table, dtype="float64") -> np.ndarray:
        """Standardised features of a table, array (n, features)."""
        x = np.empty((len(table), len(self.features)), dtype)
        names = self._features_of(table)
        table.require_complete(names)
        for j, name in enumerate(names):
            x[:, j] = (_numbers(table, name) - self.mean[j]) / self.scale[j]
        return x

    def _features_of(self, table):
        """The table's names for the features: the same names, or all but the target where names are positions."""
        if not (self.named and table.named):
            names = list(table.columns)
            if len(names) != len(self.features):
                names = [name for name in names if name != self.target]
            if len(names) != len(self.features):
                raise ValueError(
                    f"{table.name} has {len(names)} columns besides the target; the model takes {len(self.features)}"
                )
            return names
        absent = [name for name in self.features if name not in table.columns]
        if absent:
            raise ValueError(f"{table.name} lacks columns of the model: {_listed(absent)}")
        return self.features

    def targets(self, table: Table) -> np.ndarray:
        """Class indices (int64), or the standardised values (float64), array (n,)."""
        table.require_complete([self.target])
        if self.task == "regression":
            return (_numbers(table, self.target) - self.target_mean) / self.target_scale
        labels, inverse = np.unique(_labels(table.columns[self.target]), return_inverse=True)
        index = {label: i for i, label in enumerate(self.classes)}
        unknown = [label for label in labels.tolist() if label not in index]
        if unknown:
            raise ValueError(
                f"column {self.target!r} has classes that the model does not know: {_listed(unknown)}; "
                f"it knows {_listed(self.classes)}"
            )
        return np.array([index[label] for label in labels.tolist()], np.int64)[inverse]

    def strata(self, table: Table) -> np.ndarray:
        """What `split` keeps in proportion: the classes; of a regression target nothing."""
        return self.targets(table) if self.task == "classification" else np.zeros(len(table), np.int64)

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """The network's outputs (n, outputs) as labels or as values in the target's own units, array (n,)."""
        if self.task == "classification":
            return np.array(self.classes)[outputs.argmax(axis=1)]
        return self.in_own_units(outputs[:, 0].astype(np.float64))

    def in_own_units(self, standardised: np.ndarray) -> np.ndarray:
        """Values of a regression target, from standardised ones."""
        return standardised * self.target_scale + self.target_mean


def learn(table: Table, target: str, task: str, fractions, seed: int) -> tuple[Preprocessing, dict]:
    """Divide a table and learn its preprocessing from the training part.

    Parameters
    ----------
    table : Table
    target : str
        Column to predict, by name or by index.
    task : {"auto", "classification", "regression"}
        ``"auto"``: text, truth values and whole numbers with few distinct values are classes.
    fractions, seed
        For `split`, which is by class for classification.

    Returns
    -------
    Preprocessing
    parts : dict
        As from `split`.
    """
    target = table.find(target)
    features = [name for name in table.columns if name != target]
    if not features:
        raise ValueError(f"{table.name} has no column besides the target {target!r}")
    table.require_complete([target, *features])
    values = table.columns[target]
    task = _task_of(values) if task == "auto" else task
    classes = np.unique(_labels(values)).tolist() if task == "classification" else None
    if classes and len(classes) < 2:
        raise ValueError(f"column {target!r} has the one value {classes[0]!r}: nothing to tell apart")

    if classes and len(classes) > max(2, len(table) / 2):
        raise ValueError(f"column {target!r} has {len(classes)} distinct values in {len(table)} rows: not classes")

    raw = Preprocessing(features, table.named, [0.0] * len(features), [1.0] * len(features), target, task, classes)
    parts = split(raw.strata(table), fractions, seed)
    rows = parts["train"]
    columns = [_numbers(table, name)[rows] for name in features]
    learned = {
        "mean": [float(column.mean()) for column in columns],
        "scale": [_spread(column) for column in columns],
    }
    if task == "regression":
        values = _numbers(table, target)[rows]
        learned |= {"target_mean": float(values.mean()), "target_scale": _spread(values)}
    else:
        learned["shares"] = (np.bincount(raw.targets(table)[rows], minlength=len(classes)) / len(rows)).tolist()
    return dataclasses.replace(raw, **learned), parts


def _task_of(values):
    few = len(np.unique(_labels(values))) <= FEW_CLASSES
    whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and np.array_equal(values, np.rint(values)))
    return "classification" if values.dtype.kind in "OUSb" or (whole and few) else "regression"


def _labels(values):
    """Class labels as JSON can hold them: text, truth values, or numbers (whole ones as int)."""
    if values.dtype.kind in "OUS":
        return np.array([str(value) for value in values])
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        return values.astype(np.int64)
    return values


def _numbers(table, name):
    values = table.columns[name]
    if values.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} of {table.name} is not numeric: leave it out (--drop {name}) or encode it")
    return values.astype(np.float64)


def _spread(values):
    """Standard deviation, or 1 for a column that is constant but for rounding."""
    spread = float(values.std())
    return spread if spread > 1e-12 * abs(values.mean()) else 1.0
