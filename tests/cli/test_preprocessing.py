"""The stored constants do exactly what scikit-learn's transformers do."""

import numpy as np
import polars as pl
import pytest

from tangency.cli.columns import Column
from tangency.cli.preprocessing import Preprocessing, make_transformer
from tangency.cli.split import split_rows
from tangency.errors import InputError

COLUMNS = (Column("a", "numeric"), Column("b", "numeric"), Column("c", "category"), Column("d", "category"))
TRAIN = pl.DataFrame(
    {
        "a": [1.0, None, 4.0, 2.5],
        "b": [10.0, 20.0, 40.0, 10.0],
        "c": ["x", "y", None, "x"],
        "d": ["p", "p", "q", "r"],
    }
)
NEW = pl.DataFrame({"a": [None, 7.0], "b": [None, 1.0], "c": ["unseen", None], "d": [None, "q"]}, schema=TRAIN.schema)


@pytest.mark.parametrize("frame", [TRAIN, NEW], ids=["training rows", "new rows"])
def test_constants_repeat_scikit_learn(frame):
    transformer = make_transformer(["a", "b"], ["c", "d"]).fit(TRAIN)
    ours = Preprocessing.fit(TRAIN, COLUMNS)
    np.testing.assert_allclose(ours(frame), transformer.transform(frame), rtol=0, atol=1e-14)
    assert len(ours.feature_names) == ours.size == ours(frame).shape[1]


def test_features_by_hand():
    ours = Preprocessing.fit(TRAIN, COLUMNS)
    features = dict(zip(ours.feature_names, ours(TRAIN).T, strict=True))
    filled = np.array([1.0, 2.5, 4.0, 2.5])
    np.testing.assert_allclose(features["a"], (filled - 2.5) / filled.std())
    assert features["a is missing"][1] > 0 > features["a is missing"][0]
    np.testing.assert_array_equal(features["c = x"], [1, 0, 0, 1])
    np.testing.assert_array_equal(features["c is missing"], [0, 0, 1, 0])


def test_unseen_categories_and_late_gaps_are_neutral():
    ours = Preprocessing.fit(TRAIN, COLUMNS)
    features = dict(zip(ours.feature_names, ours(NEW).T, strict=True))
    assert features["c = x"][0] == features["c = y"][0] == features["c is missing"][0] == 0
    assert features["b"][0] == 0


def test_columns_constant_in_training_are_left_out_and_named():
    train = TRAIN.with_columns(b=pl.lit(3.0))
    ours = Preprocessing.fit(train, COLUMNS)
    assert ours.constant == ["b"]
    assert "b" not in ours.feature_names
    assert ours(NEW).shape == (2, ours.size)
    assert np.isfinite(ours(NEW)).all()


def test_a_column_without_values_in_the_training_part_stays_finite():
    train = TRAIN.with_columns(a=pl.lit(None, dtype=pl.Float64))
    ours = Preprocessing.fit(train, COLUMNS)
    assert np.isfinite(ours(NEW)).all()


def test_nothing_varies():
    with pytest.raises(InputError, match="no input column varies"):
        Preprocessing.fit(pl.DataFrame({"a": [1.0, 1.0]}), [Column("a", "numeric")])


def test_split_is_stratified_repeatable_and_complete():
    target = np.repeat(["a", "b", "c"], [60, 30, 10])
    train, test = split_rows(target, 0.2, task="classification", seed=1)
    again = split_rows(target, 0.2, task="classification", seed=1)
    other = split_rows(target, 0.2, task="classification", seed=2)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(100))
    assert np.unique(target[test], return_counts=True)[1].tolist() == [12, 6, 2]
    assert np.array_equal(train, again[0])
    assert not np.array_equal(train, other[0])


def test_a_class_with_one_row_trains():
    target = np.array(["a"] * 10 + ["b"] * 10 + ["rare"])
    train, test = split_rows(target, 0.2, task="classification", seed=0)
    assert 20 in train
    assert train.size + test.size == 21


@pytest.mark.parametrize(("rows", "fraction"), [(4, 0.1), (1, 0.5), (4, 0.99)])
def test_a_split_that_cannot_be(rows, fraction):
    with pytest.raises(InputError, match="cannot be split"):
        split_rows(np.arange(rows) % 2, fraction, task="classification", seed=0)


def test_classes_of_one_row_each_cannot_be_split():
    with pytest.raises(
        InputError, match=r"every class has one row only, .* 3 rows cannot be split; for numbers say --task regression"
    ):
        split_rows(np.array([3, 5, 8]), 0.2, task="classification", seed=0)
