"""From columns to the matrix that a network sees, with every constant taken from the training part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ..errors import InputError
from .columns import Column


@dataclass(frozen=True)
class Preprocessing:
    """The constants of a fitted preprocessing, and what they do to a table.

    A number x becomes (x − centre) / scale, with a missing one taken for the training mean; a column with gaps in the
    training part adds an indicator, standardised likewise. A category becomes one 0/1 feature for each value seen in
    training, "missing" being a value too; an unseen one becomes all zeros. Constants, not fitted objects, are what a
    model folder holds, so loading needs no pickle.
    """

    numeric: tuple[str, ...]
    fill: np.ndarray
    """`[numeric]`: what stands in for a missing number."""
    indicated: tuple[int, ...]
    """Positions in `numeric` of the columns that have an indicator."""
    centre: np.ndarray
    """`[numeric + indicated]`."""
    scale: np.ndarray
    """`[numeric + indicated]`; 1 for a feature that does not vary."""
    category: tuple[str, ...]
    levels: tuple[tuple[str | None, ...], ...]
    kept: np.ndarray
    """Positions of the features that vary in the training part; the others are left out."""

    @classmethod
    def fit(cls, frame: pl.DataFrame, columns: Sequence[Column]) -> "Preprocessing":
        """The constants of scikit-learn's own transformers fitted on the training part.

        Raises `InputError` when no feature varies.
        """
        numeric = [column.name for column in columns if column.kind == "numeric"]
        category = [column.name for column in columns if column.kind == "category"]
        transformer = make_transformer(numeric, category)
        features = np.asarray(transformer.fit_transform(frame), dtype=np.float64)
        kept = np.flatnonzero(np.ptp(features, axis=0) > 0)
        if kept.size == 0:
            raise InputError("no input column varies in the training part, so there is nothing to learn from")
        constants: dict = {"fill": np.zeros(0), "indicated": (), "centre": np.zeros(0), "scale": np.zeros(0)}
        if numeric:
            imputer, scaler = transformer.named_transformers_["numeric"]
            constants = {
                "fill": np.nan_to_num(np.asarray(imputer.statistics_, dtype=np.float64)),
                "indicated": tuple(int(i) for i in imputer.indicator_.features_),
                "centre": np.asarray(scaler.mean_, dtype=np.float64),
                "scale": np.asarray(scaler.scale_, dtype=np.float64),
            }
        levels = transformer.named_transformers_["category"].categories_ if category else ()
        return cls(
            numeric=tuple(numeric),
            category=tuple(category),
            levels=tuple(tuple(level) for level in levels),
            kept=kept,
            **constants,
        )

    def __call__(self, frame: pl.DataFrame) -> np.ndarray:
        """The features `[n, size]`, float64, finite."""
        numbers = (
            frame.select(self.numeric).cast(pl.Float64).to_numpy() if self.numeric else np.zeros((frame.height, 0))
        )
        gaps = np.isnan(numbers)
        filled = np.where(gaps, self.fill, numbers)
        wide = np.concatenate([filled, gaps[:, list(self.indicated)]], axis=1)
        blocks = [(wide - self.centre) / self.scale]
        for name, levels in zip(self.category, self.levels, strict=True):
            values = np.asarray(frame[name].to_list(), dtype=object)
            blocks += [np.array([value == level for value in values], dtype=np.float64)[:, None] for level in levels]
        return np.concatenate(blocks, axis=1)[:, self.kept]

    def gaps(self, frame: pl.DataFrame) -> dict[str, int]:
        """How many numbers each number column lacks."""
        return {name: frame[name].null_count() for name in self.numeric}

    @property
    def feature_names(self) -> list[str]:
        """One name for every feature, in order."""
        gaps = [f"{self.numeric[i]} is missing" for i in self.indicated]
        levels = [
            f"{name} is missing" if level is None else f"{name} = {level}"
            for name, values in zip(self.category, self.levels, strict=True)
            for level in values
        ]
        names = [*self.numeric, *gaps, *levels]
        return [names[i] for i in self.kept]

    @property
    def constant(self) -> list[str]:
        """Number columns left out because they do not vary in the training part."""
        return [name for i, name in enumerate(self.numeric) if i not in set(self.kept.tolist())]

    @property
    def size(self) -> int:
        """How many features the network sees."""
        return int(self.kept.size)


def make_transformer(numeric: Sequence[str], category: Sequence[str]) -> ColumnTransformer:
    """scikit-learn's transformers for number columns and for category columns."""
    # keep_empty_features: a column without a value in the training part stays in place, so that positions hold.
    imputer = SimpleImputer(add_indicator=True, keep_empty_features=True)
    blocks = [
        ("numeric", Pipeline([("impute", imputer), ("standardise", StandardScaler())]), list(numeric)),
        ("category", OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(category)),
    ]
    return ColumnTransformer([block for block in blocks if block[2]])
