import numpy as np
import pytest

from tangency.errors import InputError, SingularMatrixError
from tangency.solve import Eigen, choose_ridge, leave_one_out_residuals
from tests.oracles.flow import leave_one_out, with_spectrum

MATRIX, _ = with_spectrum(np.logspace(-4, 1, 15))


@pytest.mark.parametrize("shape", [(15,), (15, 2)])
def test_centred_residuals_equal_refits_with_their_own_mean(shape):
    y = np.random.default_rng(3).normal(size=shape) + 5.0
    residuals = leave_one_out_residuals(Eigen(MATRIX), y - y.mean(axis=0), 0.2, centred=True)
    np.testing.assert_allclose(residuals, y - leave_one_out(MATRIX, y, 0.2, centred=True), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_squared_error_table_and_choice(centred):
    y = np.random.default_rng(3).normal(size=(15, 2))
    y -= y.mean(axis=0)
    candidates = np.logspace(-3, 2, 9)
    ridge, table = choose_ridge(Eigen(MATRIX), y, candidates, centred=centred)
    expected = [np.mean((y - leave_one_out(MATRIX, y, r, centred)) ** 2) for r in candidates]
    np.testing.assert_allclose(table, np.column_stack([candidates, expected]), rtol=1e-9)
    assert ridge == candidates[np.argmin(expected)]


def test_error_rate_breaks_ties_by_squared_error():
    rng = np.random.default_rng(4)
    labels = np.arange(18) % 3
    x = 0.3 * rng.normal(size=(18, 3)) + np.eye(3)[labels]
    matrix, y = x @ x.T + 0.1 * np.eye(18), np.eye(3)[labels] - 1 / 3
    candidates = np.logspace(-3, 3, 25)
    ridge, table = choose_ridge(Eigen(matrix), y, candidates, "error_rate")
    predictions = [leave_one_out(matrix, y, r) for r in candidates]
    rates = np.array([np.mean(p.argmax(axis=1) != labels) for p in predictions])
    np.testing.assert_array_equal(table[:, 1], rates)
    tied = np.flatnonzero(rates == rates.min())
    best = tied[np.argmin([np.mean((y - predictions[i]) ** 2) for i in tied])]
    assert best != tied[0], "the data must make the tie matter"
    assert ridge == candidates[best]


def test_default_grid_is_relative_to_the_mean_eigenvalue():
    y = np.random.default_rng(3).normal(size=15)
    _, table = choose_ridge(Eigen(MATRIX), y)
    _, scaled = choose_ridge(Eigen(1e6 * MATRIX), y)
    np.testing.assert_allclose(scaled[:, 0], 1e6 * table[:, 0], rtol=1e-9)
    np.testing.assert_allclose(scaled[:, 1], table[:, 1], rtol=1e-6)
    assert len(table) == 31


def test_singular_candidates_are_left_out_and_an_all_singular_grid_is_refused():
    rows = np.array([0, 1, 2, 2])
    eigen = Eigen(MATRIX[np.ix_(rows, rows)])
    y = np.arange(4.0)
    _, table = choose_ridge(eigen, y, [0.0, 1e-18, 0.1])
    assert table[:, 0].tolist() == [0.1]
    with pytest.raises(SingularMatrixError, match="every candidate") as caught:
        choose_ridge(eigen, y, [0.0])
    choose_ridge(eigen, y, [caught.value.smallest_ridge])


def test_zero_matrix_and_zero_targets():
    ridge, table = choose_ridge(Eigen(np.zeros((3, 3))), np.zeros(3))
    assert ridge > 0 and np.all(table[:, 1] == 0)


def test_bad_arguments():
    eigen = Eigen(np.eye(3))
    with pytest.raises(InputError, match="score"):
        choose_ridge(eigen, np.ones(3), score="accuracy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one column per class"):
        choose_ridge(eigen, np.ones(3), score="error_rate")
    with pytest.raises(InputError, match="empty"):
        choose_ridge(eigen, np.ones(3), [])
    with pytest.raises(InputError, match="at least 2 examples"):
        choose_ridge(Eigen(np.eye(1)), np.zeros(1), centred=True)


def test_residuals_that_are_not_defined_are_none():
    assert leave_one_out_residuals(Eigen(np.eye(1)), np.zeros(1), 1.0, centred=True) is None
    singular = Eigen(np.ones((3, 3)))
    for centred in (False, True):
        assert leave_one_out_residuals(singular, np.ones(3), 0.0, centred=centred) is None
        assert leave_one_out_residuals(singular, np.ones(3), 1.0, centred=centred) is not None
