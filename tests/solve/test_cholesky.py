import numpy as np
import pytest

from tangency.errors import InputError, SingularMatrixError
from tangency.solve import Cholesky, Eigen, RidgeSystem
from tests.oracles.flow import with_spectrum


@pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 4)])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_solve_equals_direct_solution(shape, ridge, order):
    matrix, _ = with_spectrum(np.logspace(-2, 1, 10))
    before = matrix.copy()
    b = np.random.default_rng(2).normal(size=shape)
    value = Cholesky(np.asarray(matrix, order=order), ridge).solve(b)
    np.testing.assert_allclose(value, np.linalg.solve(matrix + ridge * np.eye(10), b), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(matrix, before)


def test_log_determinant():
    matrix, _ = with_spectrum(np.logspace(-2, 1, 10))
    expected = np.linalg.slogdet(matrix + 0.2 * np.eye(10))[1]
    assert Cholesky(matrix, 0.2).log_determinant() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("eigenvalues", [np.array([0.0, 1.0, 2.0]), np.array([1e-17, 1.0, 2.0]), np.zeros(3)])
def test_singular_matrices_name_a_ridge_that_works(eigenvalues):
    matrix, _ = with_spectrum(eigenvalues)
    with pytest.raises(SingularMatrixError, match="use a ridge of at least") as caught:
        Cholesky(matrix)
    assert caught.value.smallest_ridge is not None and caught.value.smallest_ridge < 1e-10
    Cholesky(matrix, caught.value.smallest_ridge)


def test_an_inaccurate_solution_is_refused():
    matrix, vectors = with_spectrum(np.logspace(-14, 0, 20))
    y = vectors @ np.ones(20)
    with pytest.raises(SingularMatrixError) as caught:
        Cholesky(matrix, 1e-13).solve(y)
    ridge = caught.value.smallest_ridge
    assert ridge is not None
    value = Cholesky(matrix, ridge).solve(y)
    assert np.linalg.norm(matrix @ value + ridge * value - y) <= 1e-6 * np.linalg.norm(y)


def test_bad_input():
    with pytest.raises(InputError, match="shape"):
        Cholesky(np.ones((2, 3)))
    with pytest.raises(InputError, match="ridge"):
        Cholesky(np.eye(2), -1.0)


def test_system_answers_alike_before_and_after_the_eigendecomposition():
    matrix, _ = with_spectrum(np.logspace(-2, 1, 10))
    system, b = RidgeSystem(matrix), np.random.default_rng(2).normal(size=(10, 2))
    before = [system.solve(b, ridge) for ridge in (0.1, 0.1, 1.0)] + [system.log_determinant(0.1)]
    assert "eigen" not in system.__dict__
    assert isinstance(system.eigen, Eigen)
    after = [system.solve(b, ridge) for ridge in (0.1, 0.1, 1.0)] + [system.log_determinant(0.1)]
    for first, second in zip(before, after, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-11)


def test_system_falls_back_on_the_pseudo_inverse():
    rows = np.array([0, 1, 1])
    matrix = with_spectrum(np.array([1.0, 2.0]))[0][np.ix_(rows, rows)]
    y = np.array([1.0, 2.0, 2.0])
    np.testing.assert_allclose(matrix @ RidgeSystem(matrix).solve(y), y, atol=1e-12)
    with pytest.raises(SingularMatrixError):
        RidgeSystem(matrix).solve(np.array([1.0, 2.0, 3.0]))
    with pytest.raises(SingularMatrixError):
        RidgeSystem(matrix).log_determinant()
