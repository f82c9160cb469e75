"""What the columns of a table mean: numbers or categories, inputs or target, with one line for each that is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from ..errors import InputError, NonFiniteError
from ..models.suggestion import listed, suggestion
from .data import Table

Task = Literal["classification", "regression"]
Label = str | int | float

# A text column in which at least this share of the values are numbers is taken for a column of numbers with a slip.
MOSTLY_NUMBERS = 0.9
# The most distinct integers that are taken for classes rather than for counts.
MOST_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Column:
    """An input column: numbers are standardised, categories are one-hot encoded."""

    name: str
    kind: Literal["numeric", "category"]


def target_name(table: Table, asked: str | None) -> str:
    """The target column: the one asked for, else the data set's own. Raises `InputError` when there is none."""
    name = asked if asked is not None else table.default_target
    if name is None:
        raise InputError(f"{table.source}: name the target with --target; columns are {_listing(table.columns)}")
    if name not in table.columns:
        raise InputError(f"{table.source} has no column '{name}'{suggestion(name, table.columns)}")
    return name


def describe_columns(table: Table, target: str) -> tuple[Column, ...]:
    """The kind of every column but the target.

    Raises `InputError` for a table without inputs, a column without values, a named column that is constant, and a
    column of numbers with text in it.
    """
    names = [name for name in table.columns if name != target]
    if not names:
        raise InputError(f"{table.source} has no column besides the target '{target}'")
    return tuple(_describe(table, name) for name in names)


def _describe(table: Table, name: str) -> Column:
    series = table.frame[name]
    present = series.drop_nulls()
    if present.is_empty():
        raise InputError(f"{table.source}, column '{name}' is empty; remove it")
    if present.len() == series.len() and present.n_unique() == 1 and name not in table.features:
        raise InputError(f"{table.source}, column '{name}' is constant (always {present[0]}); remove it")
    if series.dtype != pl.String:
        return Column(name, "numeric")
    if not table.untyped:
        return Column(name, "category")
    parsed = present.cast(pl.Float64, strict=False)
    share = 1 - parsed.null_count() / present.len()
    if MOSTLY_NUMBERS <= share < 1:
        as_numbers(table, name)
    return Column(name, "numeric" if share == 1 else "category")


def as_numbers(table: Table, name: str) -> np.ndarray:
    """A column as float64 `[n]`, NaN where a value is missing. Raises for text and for infinity, naming the row."""
    series = table.frame[name]
    numbers = series.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() & series.is_not_null()).arg_true()
    if wrong.len():
        row = int(wrong[0])
        raise InputError(
            f"{table.source}, column '{name}', row {row + 1}: '{series[row]}' where a number must be; "
            "correct it, or leave the cell empty if the value is missing"
        )
    values = numbers.to_numpy().astype(np.float64)
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise NonFiniteError(
            f"{table.source}, column '{name}', row {infinite[0] + 1}: {values[infinite[0]]} is not finite"
        )
    return np.where(numbers.is_null().to_numpy(), np.nan, values)


def inputs(table: Table, columns: Sequence[Column]) -> pl.DataFrame:
    """The input columns alone: float64 (null where missing) for numbers, text for categories.

    Raises `InputError` when a column is missing, or holds text where it held numbers when the model was fitted.
    """
    missing = [column.name for column in columns if column.name not in table.columns]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise InputError(f"{table.source} lacks the column{plural} {_listing(missing)} that the model was fitted with")
    parts = {}
    for column in columns:
        if column.kind == "numeric":
            parts[column.name] = pl.Series(as_numbers(table, column.name), nan_to_null=True, dtype=pl.Float64)
        else:
            parts[column.name] = _as_text(table.frame[column.name])
    return pl.DataFrame(parts)


def _as_text(series: pl.Series) -> pl.Series:
    # A whole number must read the same from a float column as from text: "3", not "3.0".
    if series.dtype.is_float():
        values = [None if v is None else str(int(v)) if float(v).is_integer() else str(v) for v in series]
        return pl.Series(series.name, values, dtype=pl.String)
    return series.cast(pl.String)


def infer_task(table: Table, target: str, asked: Task | None = None) -> Task:
    """Text, or at most 20 distinct integers, are classes; everything else is regression. `asked` overrides."""
    if asked is not None:
        return asked
    series = table.frame[target].drop_nulls()
    numbers = series.cast(pl.Float64, strict=False)
    if numbers.null_count():
        return "classification"
    whole = bool((numbers == numbers.round()).all())
    return "classification" if whole and numbers.n_unique() <= MOST_INTEGER_CLASSES else "regression"


def target_values(table: Table, target: str, task: Task) -> np.ndarray:
    """The target `[n]`: float64 for regression; for classification integers where all labels are whole, else text.

    Raises `InputError` for missing values, for text in a regression target, and for a target with one value only.
    """
    series = table.frame[target]
    empty = series.is_null().arg_true()
    if series.dtype.is_float():
        empty = (series.is_null() | series.is_nan()).arg_true()
    if empty.len():
        raise InputError(
            f"{table.source}, target '{target}' is missing in {empty.len()} rows (first: row {empty[0] + 1}); "
            "remove those rows"
        )
    return as_numbers(table, target) if task == "regression" else _labels(series)


def _labels(series: pl.Series) -> np.ndarray:
    numbers = series.cast(pl.Float64, strict=False)
    if not numbers.null_count() and bool((numbers == numbers.round()).all()):
        return numbers.cast(pl.Int64).to_numpy()
    return np.asarray(_as_text(series).to_list(), dtype=np.str_)


def check_target_varies(values: np.ndarray, target: str, task: Task, part: str) -> None:
    """Raise `InputError` when there is nothing to learn because the target has a single value in that part."""
    if np.unique(values).size == 1:
        what = f"one class only ('{values[0]}')" if task == "classification" else f"a constant ({values[0]:g})"
        raise InputError(f"target '{target}' is {what} in the {part}; there is nothing to learn")


def _listing(names: Sequence[str]) -> str:
    return listed([f"'{name}'" for name in names], 12)
