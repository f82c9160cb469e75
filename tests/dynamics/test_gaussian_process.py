import numpy as np
import pytest
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from tangency.dynamics import gaussian_process
from tangency.errors import InputError, MemoryLimitError, SingularMatrixError
from tangency.gram import matrix
from tangency.kernels.function import FunctionKernel
from tests.oracles import flow as oracle

N, INPUTS = 9, 3
KERNEL = oracle.FeatureKernel(features=40, inputs=INPUTS)


def data(outputs=()):
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, INPUTS)), rng.normal(size=(N, *outputs)), rng.normal(size=(5, INPUTS))


@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("spectral", [False, True])
def test_posterior_equals_conditioning(outputs, ridge, spectral):
    x, y, x_new = data(outputs)
    process = gaussian_process(KERNEL, x, y, ridge=ridge)
    if spectral:
        assert process.eigenvalues.shape == (N,)
    inverse = np.linalg.inv(KERNEL.nngp(x) + ridge * np.eye(N))
    cross = KERNEL.nngp(x_new, x)
    covariance = KERNEL.nngp(x_new) - cross @ inverse @ cross.T
    np.testing.assert_allclose(process.mean(x_new), cross @ inverse @ y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(process.covariance(x_new), covariance, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(process.variance(x_new), np.diag(covariance), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(process.covariance(x_new), process.covariance(x_new).T)
    columns = y.reshape(N, -1).T
    prior = scipy.stats.multivariate_normal(np.zeros(N), KERNEL.nngp(x) + ridge * np.eye(N))
    expected = sum(prior.logpdf(column) for column in columns)
    assert process.log_marginal_likelihood() == pytest.approx(expected, rel=1e-10)


def test_agrees_with_scikit_learn():
    x, y, x_new = data()
    reference = GaussianProcessRegressor(RBF(1.3), alpha=0.1, optimizer=None).fit(x, y)
    process = gaussian_process(FunctionKernel(RBF(1.3)), x, y, ridge=0.1)
    mean, covariance = reference.predict(x_new, return_cov=True)
    np.testing.assert_allclose(process.mean(x_new), mean, rtol=1e-11)
    np.testing.assert_allclose(process.covariance(x_new), covariance, rtol=1e-10, atol=1e-12)
    assert process.log_marginal_likelihood() == pytest.approx(reference.log_marginal_likelihood_value_, rel=1e-11)


def test_covariance_is_positive_and_variance_never_negative():
    x, y, _ = data()
    process = gaussian_process(KERNEL, x, y)
    assert np.linalg.eigvalsh(process.covariance(x)).min() > -1e-12
    assert process.variance(x).min() >= 0.0
    np.testing.assert_allclose(process.mean(x), y, atol=1e-11)


def test_leave_one_out_and_other_ridges():
    x, y, x_new = data((2,))
    process = gaussian_process(KERNEL, x, y, ridge=0.3)
    np.testing.assert_allclose(process.leave_one_out(), oracle.leave_one_out(KERNEL.nngp(x), y, 0.3), rtol=1e-10)
    np.testing.assert_allclose(process.leave_one_out(1.0), oracle.leave_one_out(KERNEL.nngp(x), y, 1.0), rtol=1e-10)
    other = process.with_ridge(1.0)
    assert other.eigen is process.eigen and other.ridge == 1.0
    direct = gaussian_process(KERNEL, x, y, ridge=1.0)
    np.testing.assert_allclose(other.mean(x_new), direct.mean(x_new), rtol=1e-11)
    np.testing.assert_allclose(other.coefficients(), direct.coefficients(), rtol=1e-11)


def test_blocks_of_rows_do_not_show(monkeypatch):
    x, y, x_new = data()
    process = gaussian_process(KERNEL, x, y, ridge=0.1)
    whole = process.mean(x_new), process.variance(x_new)
    monkeypatch.setattr(matrix, "ENTRIES_AT_ONCE", 2 * N)
    for first, second in zip(whole, (process.mean(x_new), process.variance(x_new)), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12)


def test_refusals():
    x, y, x_new = data()
    x[1] = x[0]
    process = gaussian_process(KERNEL, x, y)
    for call in (lambda: process.mean(x_new), process.log_marginal_likelihood):
        with pytest.raises(SingularMatrixError):
            call()
    with pytest.raises(InputError, match="ridge"):
        gaussian_process(KERNEL, x, y, ridge=-0.1)
    with pytest.raises(InputError, match="an example of x has shape"):
        process.mean(np.ones((2, 2)))
    with pytest.raises(MemoryLimitError, match="9 rows"):
        gaussian_process(KERNEL, x, y, memory=2000)
