"""Reading a table: CSV, Parquet, `.npz`, or a data set that ships with scikit-learn."""

import csv
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError, NonFiniteError

DATA_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")

# What other tools write for a value that is not there.
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})


@dataclass(frozen=True)
class Table:
    """Columns of equal length under unique names.

    `source` is how messages call it and `name` is what files made from it are called. In a table that is `untyped`
    (CSV) every column holds text, so that "01" stays "01" until it is known whether the column means numbers.
    `features` are columns that came out of one array (pixels, say), where a constant one is no mistake.
    """

    frame: pl.DataFrame
    source: str
    name: str
    untyped: bool = False
    default_target: str | None = None
    features: frozenset[str] = field(default_factory=frozenset)
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return self.frame.columns


def read_table(data: str, target: str | None = None) -> Table:
    """The table that DATA names: one of `DATA_SETS`, or a `.csv`, `.tsv`, `.parquet` or `.npz` file.

    `target` tells which of an `.npz` file's arrays is the target. Raises `InputError` when there is no such file, or
    it cannot be read as what its ending says, or it has no rows; `NonFiniteError` for NaN or infinity.
    """
    if data in DATA_SETS:
        return _read_scikit_learn(data)
    path = Path(data)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{data} {kind}; give a CSV, Parquet or .npz file, or one of {', '.join(DATA_SETS)}")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{data}: cannot tell the format from '{path.suffix}'; use {', '.join(readers)}")
    try:
        table = _read_npz(path, target) if reader is _read_npz else reader(path)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{data} cannot be read as {path.suffix}: {reason}") from error
    if table.frame.height == 0 or not table.columns:
        raise InputError(f"{data} has no rows")
    return table


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    if not first.strip():
        raise InputError(f"{path} is empty")
    separator = max(",;\t", key=first.count)
    header = next(csv.reader([first], delimiter=separator))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: more than one column is called '{repeated[0]}'; give each its own name")
    frame = pl.read_csv(path, separator=separator, infer_schema=False)
    frame = frame.rename({name: name.strip() for name in frame.columns})
    text = pl.all().str.strip_chars()
    frame = frame.select(pl.when(text.str.to_lowercase().is_in(sorted(MISSING))).then(None).otherwise(text).name.keep())
    if frame.width > 1:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    return Table(frame, str(path), path.stem, untyped=True)


def _read_parquet(path: Path) -> Table:
    frame = pl.read_parquet(path)
    for name, dtype in frame.schema.items():
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null, pl.Categorical, pl.Enum)):
            raise InputError(f"{path}, column '{name}': type {dtype} is neither numbers nor text; convert it first")
    text = [name for name, dtype in frame.schema.items() if not dtype.is_numeric()]
    return Table(frame.with_columns(pl.col(text).cast(pl.String)), str(path), path.stem)


def _read_npz(path: Path, target: str | None) -> Table:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        raise InputError(
            f"{path}: holds Python objects or is damaged ({str(error).splitlines()[0]}); "
            "save plain arrays of numbers or text"
        ) from error
    target = "y" if target is None else target
    inputs = next((name for name in ("X", "x") if name in arrays and name != target), None)
    ignored = sorted(set(arrays) - {inputs, target}) if inputs else []
    kept = {name: array for name, array in arrays.items() if name not in ignored}
    rows = {name: array.shape[0] for name, array in kept.items() if array.ndim}
    if len(rows) < len(kept) or len(set(rows.values())) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in kept.items())
        raise InputError(f"{path}: arrays must have one row an example, all the same number; found {shapes}")
    columns: dict[str, np.ndarray] = {}
    features: set[str] = set()
    for name, array in kept.items():
        _check_array(path, name, array)
        if array.ndim == 1:
            columns[name] = array
        else:
            flat = array.reshape(array.shape[0], -1)
            parts = {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
            columns |= parts
            features |= set(parts)
    frame = pl.DataFrame({name: _plain(column) for name, column in columns.items()})
    notes = (f"{path.name}: arrays not used: {', '.join(ignored)}",) if ignored else ()
    default = "y" if "y" in columns else None
    return Table(frame, str(path), path.stem, default_target=default, features=frozenset(features), notes=notes)


def _plain(column: np.ndarray) -> np.ndarray | list[str]:
    if column.dtype.kind == "b":
        return ["true" if value else "false" for value in column]
    if column.dtype.kind == "U":
        return column.tolist()
    return np.ascontiguousarray(column, dtype=np.float64 if column.dtype.kind == "f" else None)


def _check_array(path: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biufU":
        raise InputError(f"{path}, array '{name}': type {array.dtype} is neither numbers nor text")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        index = ", ".join(map(str, where))
        raise NonFiniteError(f"{path}, array '{name}': {array[where]} at [{index}]; replace it or leave that row out")


def _read_scikit_learn(name: str) -> Table:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    features = {str(column): bunch.data[:, i] for i, column in enumerate(bunch.feature_names)}
    labels = bunch.get("target_names")
    is_text = labels is not None and np.asarray(labels).dtype.kind == "U"
    target = np.asarray(labels)[bunch.target].tolist() if is_text else bunch.target
    frame = pl.DataFrame({**features, "target": target})
    return Table(frame, name, name, default_target="target", features=frozenset(features))
