"""Metrics against scikit-learn's, and the baselines against their own formulas."""

import numpy as np
import pytest
from sklearn import metrics as reference

from tangency.cli.baselines import predict_baselines
from tangency.cli.metrics import format_metric, score


def test_classification_metrics(rng):
    true, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    found = score("classification", true, predicted)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(true, predicted), abs=1e-14)
    assert found["balanced accuracy"] == pytest.approx(reference.balanced_accuracy_score(true, predicted), abs=1e-14)
    assert found["macro F1"] == pytest.approx(reference.f1_score(true, predicted, average="macro"), abs=1e-14)


def test_a_class_that_is_predicted_but_not_there(recwarn):
    found = score("classification", np.array(["a", "a"]), np.array(["a", "b"]))
    assert found["balanced accuracy"] == 0.5
    assert not recwarn.list


def test_regression_metrics(rng):
    true, predicted = rng.normal(size=50), rng.normal(size=50)
    found = score("regression", true, predicted)
    assert found["RMSE"] == pytest.approx(reference.root_mean_squared_error(true, predicted), abs=1e-14)
    assert found["MAE"] == pytest.approx(reference.mean_absolute_error(true, predicted), abs=1e-14)
    assert found["R²"] == pytest.approx(reference.r2_score(true, predicted), abs=1e-14)


def test_r_squared_is_undefined_for_one_value():
    assert score("regression", np.ones(3), np.zeros(3))["R²"] is None
    assert format_metric("regression", None) == "–"


def test_regression_baselines_do_not_depend_on_units(rng):
    x, x_test = rng.normal(size=(40, 2)), rng.normal(size=(10, 2))
    y = 5 + x[:, 0] + 0.1 * rng.normal(size=40)
    plain = dict(predict_baselines("regression", x, y, x_test, seed=0))
    # A power of two scales without rounding: the SVM's solver stops at 1e-3, where it stops depends on every bit.
    scaled = dict(predict_baselines("regression", x, 64 * y, x_test, seed=0))
    assert len(plain) == 4
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name], 64 * values, rtol=1e-14, err_msg=name)
    np.testing.assert_allclose(plain["constant (mean)"], y.mean())


def test_a_rare_class_gets_no_cross_validation(rng):
    x, y = rng.normal(size=(30, 2)), np.array([0] * 14 + [1] * 15 + [2])
    names = [name for name, _ in predict_baselines("classification", x, y, x, seed=0)]
    assert "RBF SVM (C = 1)" in names
