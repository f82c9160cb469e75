import numpy as np
import pytest

from tangency.errors import InputError, NonFiniteError, SingularMatrixError
from tangency.solve import Eigen
from tangency.solve.eigen import eigh_driver
from tangency.solve.solution import round_up
from tests.oracles.flow import leave_one_out, with_spectrum


def well_conditioned(n=12):
    return with_spectrum(np.logspace(-2, 1, n))[0]


@pytest.mark.parametrize("shape", [(12,), (12, 1), (12, 3)])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_solve_equals_direct_solution(shape, ridge):
    matrix, b = well_conditioned(), np.random.default_rng(1).normal(size=shape)
    expected = np.linalg.solve(matrix + ridge * np.eye(12), b)
    np.testing.assert_allclose(Eigen(matrix).solve(b, ridge), expected, rtol=1e-10, atol=1e-10)


def test_filter_applies_functions_of_the_matrix_and_keeps_leading_axes():
    matrix, b = well_conditioned(), np.random.default_rng(1).normal(size=(12, 2))
    filtered = Eigen(matrix).filter(lambda e: np.stack([e, e**2, np.ones_like(e)]), b)
    assert filtered.shape == (3, 12, 2)
    np.testing.assert_allclose(filtered, np.stack([matrix @ b, matrix @ matrix @ b, b]), atol=1e-12)


def test_filter_refuses_a_function_that_changes_the_length():
    with pytest.raises(InputError, match="last axis must be 12"):
        Eigen(well_conditioned()).filter(lambda e: e[:-1], np.ones(12))


@pytest.mark.parametrize("shape", [(12,), (12, 3)])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_leave_one_out_equals_refits(shape, ridge):
    matrix, y = well_conditioned(), np.random.default_rng(1).normal(size=shape)
    expected = y - leave_one_out(matrix, y, ridge)
    np.testing.assert_allclose(Eigen(matrix).leave_one_out(y, ridge), expected, rtol=1e-10, atol=1e-10)


def test_inverse_diagonal_and_determinant():
    matrix = well_conditioned()
    shifted = matrix + 0.1 * np.eye(12)
    np.testing.assert_allclose(Eigen(matrix).inverse_diagonal(0.1), np.diag(np.linalg.inv(shifted)), rtol=1e-11)
    assert Eigen(matrix).log_determinant(0.1) == pytest.approx(np.linalg.slogdet(shifted)[1], rel=1e-12)


def test_condition():
    matrix, _ = with_spectrum(np.array([1.0, 3.0, 7.0]))
    assert Eigen(matrix).condition(1.0) == pytest.approx(4.0, rel=1e-12)
    assert Eigen(np.zeros((2, 2))).condition() == np.inf


def test_one_example():
    eigen = Eigen(np.array([[4.0]]))
    assert eigen.solve(np.array([8.0])) == pytest.approx([2.0])
    # Without its only example the prediction is the prior mean, 0.
    assert eigen.leave_one_out(np.array([8.0]), 0.5) == pytest.approx([8.0])


def test_zero_right_hand_side_is_solved_even_when_singular():
    np.testing.assert_array_equal(Eigen(np.zeros((3, 3))).solve(np.zeros((3, 2))), 0.0)


def test_condition_1e14_is_solved_in_range_and_refused_outside_it():
    matrix, vectors = with_spectrum(np.logspace(-14, 0, 20))
    eigen = Eigen(matrix)
    assert eigen.condition() > 1e13
    reachable = matrix @ vectors[:, -5:].sum(axis=1)
    np.testing.assert_allclose(matrix @ eigen.solve(reachable), reachable, atol=1e-12)
    with pytest.raises(SingularMatrixError, match="ridge of at least"):
        eigen.solve(vectors[:, 0] + vectors[:, -1])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_smallest_ridge_works_and_half_of_it_does_not(scale):
    matrix, vectors = with_spectrum(np.logspace(-18, 0, 30))
    eigen = Eigen(scale * matrix)
    y = vectors @ np.ones(30)
    with pytest.raises(SingularMatrixError) as caught:
        eigen.solve(y)
    ridge = caught.value.smallest_ridge
    assert ridge is not None and f"{ridge:g}" in str(caught.value)
    value = eigen.solve(y, float(f"{ridge:g}"))
    residual = scale * matrix @ value + ridge * value - y
    assert np.linalg.norm(residual) <= 1e-6 * np.linalg.norm(y)
    assert eigen.condition(ridge) <= 1 / (30 * np.finfo(float).eps)
    with pytest.raises(SingularMatrixError):
        eigen.solve(y, ridge / 2)


def test_smallest_ridge_of_the_zero_matrix_and_of_a_sound_one():
    zero = Eigen(np.zeros((3, 3)))
    zero.solve(np.ones(3), zero.smallest_ridge(np.ones(3)))
    assert Eigen(well_conditioned()).smallest_ridge(np.ones(12)) == 0.0


def test_duplicated_rows_with_equal_targets_take_the_least_norm_solution():
    rows = np.array([0, 1, 2, 2, 1])
    base = well_conditioned(3)
    matrix, y = base[np.ix_(rows, rows)], np.array([1.0, 2.0, -1.0, -1.0, 2.0])
    value = Eigen(matrix).solve(y)
    np.testing.assert_allclose(value, np.linalg.pinv(matrix, rcond=1e-10) @ y, rtol=1e-9)
    np.testing.assert_allclose(matrix @ value, y, atol=1e-10)


def test_duplicated_rows_refuse_different_targets_and_leave_one_out():
    rows = np.array([0, 1, 2, 2])
    eigen = Eigen(well_conditioned(3)[np.ix_(rows, rows)])
    with pytest.raises(SingularMatrixError):
        eigen.solve(np.array([1.0, 2.0, 3.0, 4.0]))
    for call in (lambda: eigen.leave_one_out(np.ones(4)), eigen.inverse_diagonal, eigen.log_determinant):
        with pytest.raises(SingularMatrixError) as caught:
            call()
        assert eigen.invertible(caught.value.smallest_ridge)


@pytest.mark.parametrize("spectrum", [np.array([0.0, 1.0, 2.0]), np.logspace(-14, 0, 20)])
def test_every_column_is_judged_by_itself(spectrum):
    matrix, vectors = with_spectrum(spectrum)
    b = np.stack([1e9 * vectors[:, -1], vectors[:, 0]], axis=1)
    with pytest.raises(SingularMatrixError):
        Eigen(matrix).solve(b)


def test_range_tolerance():
    matrix, vectors = with_spectrum(np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(Eigen(matrix).solve(vectors[:, 1] + 1e-9 * vectors[:, 0]), vectors[:, 1], atol=1e-9)
    with pytest.raises(SingularMatrixError):
        Eigen(matrix).solve(vectors[:, 1] + 1e-7 * vectors[:, 0])


@pytest.mark.parametrize(("value", "rounded"), [(1.04, 1.1), (1.2, 1.2), (9.96, 10.0), (3.21e-15, 3.3e-15), (1.1, 1.1)])
def test_ridges_are_rounded_up_to_two_digits(value, rounded):
    assert round_up(value) == rounded


def test_rounding_below_zero_is_clipped_and_reported():
    matrix, _ = with_spectrum(np.array([-1e-9, 0.5, 1.0]))
    eigen = Eigen(matrix)
    assert eigen.clipped == pytest.approx(1e-9, rel=1e-5)
    assert eigen.eigenvalues[0] == 0.0
    # What was clipped says how far the other eigenvalues can be trusted.
    assert not eigen.invertible(5e-10) and eigen.invertible(2e-9)
    assert Eigen(well_conditioned()).clipped == 0.0


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.ones((2, 3)), InputError, r"shape \(2, 3\)"),
        (np.ones(4), InputError, r"shape \(4,\)"),
        (np.ones((0, 0)), InputError, "n ≥ 1"),
        (np.array([[1.0, 2.0], [3.0, 9.0]]), InputError, r"not symmetric: \[0, 1\] is 2"),
        (np.array([[1.0, 0.0], [0.0, np.nan]]), NonFiniteError, r"matrix\[1, 1\] is nan"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), InputError, "not positive semi-definite"),
        (np.array([["a"]]), InputError, "dtype"),
    ],
)
def test_bad_matrices(matrix, error, message):
    with pytest.raises(error, match=message):
        Eigen(matrix)


def test_float32_matrices_are_symmetric_to_their_own_rounding():
    matrix = np.array([[2.0, 1.0], [1.0 + 1e-6, 2.0]])
    Eigen(matrix.astype(np.float32))
    with pytest.raises(InputError, match="not symmetric"):
        Eigen(matrix)


def test_defects_are_found_beyond_the_first_block_of_rows():
    matrix = np.eye(1500)
    matrix[1400, 1300] = 0.5
    with pytest.raises(InputError, match=r"\[1300, 1400\]"):
        Eigen(matrix)
    matrix[1450, 3] = np.inf
    with pytest.raises(NonFiniteError, match=r"matrix\[1450, 3\] is inf"):
        Eigen(matrix)


@pytest.mark.parametrize("ridge", [-1e-9, np.nan, np.inf, "much"])
def test_bad_ridges(ridge):
    with pytest.raises(InputError, match="ridge"):
        Eigen(np.eye(2)).solve(np.ones(2), ridge)


@pytest.mark.parametrize(
    ("b", "message"), [(np.ones(3), r"shape \(3,\)"), (np.ones((2, 1, 1)), "shape"), ([1.0, np.nan], "row 1")]
)
def test_bad_right_hand_sides(b, message):
    with pytest.raises(InputError, match=message):
        Eigen(np.eye(2)).solve(b)


def test_driver_leaves_divide_and_conquer_before_its_workspace_overflows():
    assert eigh_driver(32_699) == "evd"
    assert eigh_driver(32_700) == "evr"
    assert 1 + 6 * 32_699 + 2 * 32_699**2 < 2**31
