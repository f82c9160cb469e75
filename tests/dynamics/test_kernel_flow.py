import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import rbf_kernel

from tangency.dynamics import kernel_flow
from tangency.errors import InputError, MemoryLimitError, NonFiniteError, SingularMatrixError
from tangency.gram import matrix
from tangency.kernels import CoupledKernel, FunctionKernel
from tests.oracles import flow as oracle
from tests.oracles.descent import LinearModel

N, INPUTS = 9, 3
KERNEL = oracle.FeatureKernel(features=40, inputs=INPUTS)
TIMES = [0.0, 0.3, 7.0, 500.0]


def data(outputs=(), n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, INPUTS)), rng.normal(size=(n, *outputs)), rng.normal(size=(5, INPUTS))


@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("t", TIMES)
def test_mean_at_finite_times_equals_the_matrix_exponential(outputs, ridge, t):
    x, y, x_new = data(outputs)
    flow = kernel_flow(KERNEL, x, y, ridge=ridge)
    alpha = oracle.coefficients(KERNEL(x), y, ridge, t)
    np.testing.assert_allclose(flow.coefficients(t), alpha, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(flow(x_new, t), KERNEL(x_new, x) @ alpha, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(flow.train(t), KERNEL(x) @ alpha, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("t", TIMES)
def test_flow_is_that_of_a_network_in_parameter_space(ridge, t):
    x, y, x_new = data()
    start = np.zeros(40)
    theta = oracle.trained_parameters(KERNEL.features(x), y, ridge, t, start)
    flow = kernel_flow(KERNEL, x, y, ridge=ridge)
    np.testing.assert_allclose(flow(x_new, t), KERNEL.features(x_new) @ theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_infinite_time_is_kernel_regression(outputs, ridge):
    x, y, x_new = data(outputs)
    expected = KERNEL(x_new, x) @ np.linalg.solve(KERNEL(x) + ridge * np.eye(N), y)
    flow = kernel_flow(KERNEL, x, y, ridge=ridge)
    for t in (None, np.inf):
        np.testing.assert_allclose(flow(x_new, t), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(flow(x_new, 1e12), expected, rtol=1e-10, atol=1e-10)
    assert flow.eigenvalues[0] > 1e-3
    np.testing.assert_allclose(flow(x_new), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_a_vector_of_times_leads(outputs):
    x, y, x_new = data(outputs)
    flow, times = kernel_flow(KERNEL, x, y, ridge=0.01), [0.0, 2.0, np.inf]
    for method in (flow, flow.covariance, flow.variance):
        together = method(x_new, times)
        np.testing.assert_allclose(together, np.stack([method(x_new, t) for t in times]), rtol=1e-11, atol=1e-13)
    assert flow(x_new, times).shape == (3, 5, *outputs)
    assert flow(x_new, [2.0]).shape == (1, 5, *outputs)
    assert flow.train(times).shape == flow.coefficients(times).shape == (3, N, *outputs)
    np.testing.assert_allclose(flow.train(times)[1], flow(x, 2.0), rtol=1e-11, atol=1e-12)
    assert flow.covariance(x_new, times).shape == (3, 5, 5) and flow.variance(x_new, times).shape == (3, 5)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("t", [*TIMES, np.inf])
def test_covariance_is_that_of_the_initial_process_pushed_through_training(ridge, t):
    x, y, x_new = data()
    flow = kernel_flow(KERNEL, x, y, ridge=ridge)
    expected = oracle.ensemble_covariance(KERNEL, x, x_new, ridge, t)
    covariance = flow.covariance(x_new, t)
    np.testing.assert_allclose(covariance, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12
    np.testing.assert_allclose(flow.variance(x_new, t), np.diag(expected), rtol=1e-10, atol=1e-10)


def test_mean_and_covariance_are_those_of_a_sampled_ensemble():
    x, y, x_new = data()
    rng, draws, t = np.random.default_rng(5), 4000, 3.0
    features, features_new = KERNEL.features(x), KERNEL.features(x_new)
    starts = rng.normal(size=(draws, 40)) * KERNEL.scale
    origin = oracle.trained_parameters(features, y, 0.05, t, np.zeros(40))
    jump = [oracle.trained_parameters(features, 0 * y, 0.05, t, unit) for unit in np.eye(40)]
    functions = (origin + starts @ np.array(jump)) @ features_new.T
    flow = kernel_flow(KERNEL, x, y, ridge=0.05)
    deviation = np.sqrt(flow.variance(x_new, t))
    error = (functions.mean(axis=0) - flow(x_new, t)) / deviation
    assert np.abs(error).max() < 5 / np.sqrt(draws)
    correlation = (np.cov(functions.T) - flow.covariance(x_new, t)) / np.outer(deviation, deviation)
    assert np.abs(correlation).max() < 5 * np.sqrt(2 / draws)


def test_at_time_zero_nothing_has_been_learnt():
    x, y, x_new = data((2,))
    flow = kernel_flow(KERNEL, x, y)
    np.testing.assert_array_equal(flow(x_new, 0.0), np.zeros((5, 2)))
    np.testing.assert_array_equal(flow.covariance(x_new, 0), KERNEL.nngp(x_new))


def test_interpolation_leaves_no_spread_on_training_points():
    x, y, _ = data()
    flow = kernel_flow(KERNEL, x, y)
    np.testing.assert_allclose(flow.train(), y, atol=1e-11)
    assert flow.variance(x).min() >= 0.0
    np.testing.assert_allclose(flow.variance(x), 0.0, atol=1e-11)


def test_leave_one_out_equals_refits():
    x, y, _ = data((2,))
    flow = kernel_flow(KERNEL, x, y, ridge=0.05)
    for ridge in (None, 0.0, 1.0):
        used = 0.05 if ridge is None else ridge
        refits = [
            kernel_flow(KERNEL, np.delete(x, i, 0), np.delete(y, i, 0), ridge=used)(x[i : i + 1])[0] for i in range(N)
        ]
        np.testing.assert_allclose(flow.leave_one_out(ridge), refits, rtol=1e-10, atol=1e-10)


def test_other_ridges_share_matrices_and_factorisations():
    evaluations = []

    class Counted(oracle.FeatureKernel):
        def evaluate(self, kind, x1, x2=None, *, progress=None):
            evaluations.append((kind, x2 is None))
            return super().evaluate(kind, x1, x2)

    x, y, x_new = data()
    kernel = Counted(40, INPUTS)
    flow = kernel_flow(kernel, x, y, ridge=1.0)
    eigen = flow.eigen
    for ridge in (0.1, 0.0):
        other = flow.with_ridge(ridge)
        assert other.ridge == ridge and other.eigen is eigen
        expected = kernel_flow(KERNEL, x, y, ridge=ridge)(x_new, [1.0, np.inf])
        np.testing.assert_allclose(other(x_new, [1.0, np.inf]), expected, rtol=1e-11, atol=1e-12)
        other.variance(x_new)
    assert evaluations.count(("ntk", True)) == 1 and evaluations.count(("nngp", True)) == 1
    assert flow.ridge == 1.0


def test_cholesky_suffices_at_infinite_time():
    x, y, x_new = data()
    flow = kernel_flow(KERNEL, x, y, ridge=0.1)
    flow(x_new), flow.variance(x_new), flow.train()
    assert "eigen" not in flow._training.matrices.system.__dict__


def test_blocks_of_rows_do_not_show(monkeypatch):
    x, y, x_new = data((2,))
    flow = kernel_flow(KERNEL, x, y, ridge=0.1)
    whole = flow(x_new, [1.0, np.inf]), flow.variance(x_new, [1.0, np.inf])
    monkeypatch.setattr(matrix, "ENTRIES_AT_ONCE", 2 * 2 * N)
    parts = flow(x_new, [1.0, np.inf]), flow.variance(x_new, [1.0, np.inf])
    for first, second in zip(whole, parts, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12)


def test_one_example():
    flow = kernel_flow(KERNEL, np.ones((1, INPUTS)), [2.0])
    theta = KERNEL(np.ones((1, INPUTS)))[0, 0]
    assert flow.train(1.5) == pytest.approx([2 * (1 - np.exp(-1.5 * theta))], rel=1e-12)
    assert flow.train() == pytest.approx([2.0])
    assert flow.leave_one_out() == pytest.approx([0.0])


def test_the_longest_times_do_not_overflow():
    x, y, x_new = data()
    flow = kernel_flow(FunctionKernel(lambda a, b: 1e6 * KERNEL(a, b)), x, y)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(flow(x_new, 1.7e308), flow(x_new), rtol=1e-10)


def test_zero_targets():
    x, y, x_new = data()
    np.testing.assert_array_equal(kernel_flow(KERNEL, x, 0 * y)(x_new, [0.0, 1.0, np.inf]), 0.0)


def test_small_rates_keep_their_digits():
    """A feature 1e-9 as large is learnt 1e18 times slower: (1 − e^{−μτ})/μ must not cancel."""
    x = np.diag([1.0, 1e-9])
    flow = kernel_flow(FunctionKernel(lambda a, b: a @ b.T), x, [1.0, 1.0])
    t = 5.0
    assert flow.coefficients(t)[1] == pytest.approx(t / 2, rel=1e-14)
    assert flow.coefficients(t)[0] == pytest.approx(-np.expm1(-t / 2), rel=1e-14)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("t", [1.0, 1e6, 1e12, 1e40, 1e308])
def test_duplicated_rows_train_as_their_mean_at_any_finite_time(same, t):
    x, y, x_new = data()
    x[4] = x[2]
    y[4] = y[2] if same else -y[2]
    flow = kernel_flow(KERNEL, x, y)
    mean = y.copy()
    mean[[2, 4]] = (y[2] + y[4]) / 2
    tolerance = 1e-10 if t < 1e12 else 1e-3 * (not same) + 1e-9
    np.testing.assert_allclose(flow(x_new, t), kernel_flow(KERNEL, x, mean)(x_new, t), atol=tolerance)
    assert np.isfinite(flow.covariance(x_new, t)).all()


def test_duplicated_rows_at_infinite_time():
    x, y, x_new = data()
    x[4], y[4] = x[2], y[2]
    rest = np.delete(np.arange(N), 4)
    expected = kernel_flow(KERNEL, x[rest], y[rest])
    flow = kernel_flow(KERNEL, x, y)
    np.testing.assert_allclose(flow(x_new), expected(x_new), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(flow.covariance(x_new), expected.covariance(x_new), atol=1e-9)
    y[4] += 1.0
    contradictory = kernel_flow(KERNEL, x, y)
    with pytest.raises(SingularMatrixError) as caught:
        contradictory(x_new)
    ridge = caught.value.smallest_ridge
    assert ridge is not None
    fitted = contradictory.with_ridge(ridge).train()
    np.testing.assert_allclose(fitted[[2, 4]], y[[2, 4]].mean(), atol=1e-4)


def test_ill_conditioned_kernels_train_but_do_not_interpolate_noise():
    x = np.linspace(-1, 1, 60)[:, None]
    y = np.random.default_rng(0).normal(size=60)
    flow = kernel_flow(FunctionKernel(lambda a, b: rbf_kernel(a, b, gamma=1.0)), x, y)
    assert flow.eigen.condition() > 1e14
    for t in (1.0, 1e12, 1e200):
        assert np.isfinite(flow(x, t)).all()
    with pytest.raises(SingularMatrixError):
        flow(x)


def test_rounding_below_zero_is_reported():
    matrix, _ = oracle.with_spectrum(np.array([-1e-9, 0.5, 1.0]))
    by_index = FunctionKernel(lambda a, b: matrix[np.ix_(a[:, 0].astype(int), b[:, 0].astype(int))])
    flow = kernel_flow(by_index, np.arange(3)[:, None], np.ones(3), ridge=0.1)
    assert flow.clipped == pytest.approx(1e-9, rel=1e-5)
    assert flow.eigenvalues[0] == 0.0
    assert kernel_flow(KERNEL, *data()[:2]).clipped == 0.0


@pytest.mark.parametrize("t", [-1.0, np.nan, [1.0, -2.0], [[1.0]], [], "late"])
def test_bad_times(t):
    x, y, x_new = data()
    flow = kernel_flow(KERNEL, x, y, ridge=0.1)
    for method in (flow, flow.covariance, flow.variance):
        with pytest.raises(InputError, match="^t (is|has|holds)"):
            method(x_new, t)
    with pytest.raises(InputError, match="^t "):
        flow.train(t)


def test_bad_arguments():
    x, y, x_new = data()
    with pytest.raises(InputError, match="ridge is -1.0"):
        kernel_flow(KERNEL, x, y, ridge=-1)
    with pytest.raises(InputError, match="ridge"):
        kernel_flow(KERNEL, x, y).with_ridge(np.nan)
    with pytest.raises(InputError, match=r"y has shape \(8,\); the 9 examples"):
        kernel_flow(KERNEL, x, y[:-1])
    with pytest.raises(InputError, match="y has dtype"):
        kernel_flow(KERNEL, x, ["a"] * N)
    y[3] = np.nan
    with pytest.raises(NonFiniteError, match="y is not finite: row 3 has NaN"):
        kernel_flow(KERNEL, x, y)
    x[2, 1] = np.inf
    with pytest.raises(NonFiniteError, match="x is not finite: row 2 has inf"):
        kernel_flow(KERNEL, x, np.zeros(N))
    flow = kernel_flow(KERNEL, x_new, np.zeros(5), ridge=0.1)
    for method in (flow, flow.covariance, flow.variance):
        with pytest.raises(InputError, match="an example of x has shape"):
            method(np.ones((2, INPUTS + 1)))
        with pytest.raises(NonFiniteError, match="x is not finite: row 1"):
            method([[1.0, 1.0, 1.0], [1.0, np.nan, 1.0]])


def test_more_rows_than_memory_holds():
    x, y, _ = data(n=200)
    with pytest.raises(MemoryLimitError, match="exact solution with 200 rows .* about 176 rows"):
        kernel_flow(KERNEL, x, y, memory=10**6)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_training_starts_from_any_function(ridge):
    x, y, x_new = data()
    start = np.random.default_rng(3).normal(size=40)

    def f0(x):
        return KERNEL.features(x) @ start

    flow = kernel_flow(KERNEL, x, y, ridge=ridge, f0=f0)
    for t in TIMES:
        theta = oracle.trained_parameters(KERNEL.features(x), y, ridge, t, start)
        np.testing.assert_allclose(flow(x_new, t), KERNEL.features(x_new) @ theta, rtol=0, atol=1e-10)
        np.testing.assert_allclose(flow.train(t), KERNEL.features(x) @ theta, rtol=0, atol=1e-10)
    alpha = np.linalg.solve(KERNEL(x) + ridge * np.eye(N), y - f0(x))
    np.testing.assert_allclose(flow(x_new), f0(x_new) + KERNEL(x_new, x) @ alpha, atol=1e-10)
    by_values = kernel_flow(KERNEL, x, y, ridge=ridge, f0=f0(x))
    np.testing.assert_allclose(by_values(x_new, [1.0, np.inf], f0=f0(x_new)), flow(x_new, [1.0, np.inf]), atol=1e-12)
    np.testing.assert_array_equal(
        flow.covariance(x_new, 1.0), kernel_flow(KERNEL, x, y, ridge=ridge).covariance(x_new, 1.0)
    )
    np.testing.assert_allclose(flow.function(2.0)(x_new), flow(x_new, 2.0) - f0(x_new), atol=1e-13)
    refits = [
        kernel_flow(KERNEL, np.delete(x, i, 0), np.delete(y, i), ridge=1.0, f0=f0)(x[i : i + 1])[0] for i in range(N)
    ]
    np.testing.assert_allclose(flow.leave_one_out(1.0), refits, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_matrix_valued_kernels_train_as_their_parameters(ridge):
    x, y, x_new = data((2,))
    model = LinearModel(INPUTS, 30, 2, shared=True)

    def rows(x):
        return model.features(x).swapaxes(1, 2).reshape(-1, 30)

    flow = kernel_flow(model.kernel, x, y, ridge=ridge, f0=model)
    for t in (0.0, 0.3, 50.0):
        generator = np.zeros((31, 31))
        generator[:30, :30] = -(rows(x).T @ rows(x) + ridge * np.eye(30)) / N
        generator[:30, 30] = (rows(x).T @ y.ravel() + ridge * model.start) / N
        theta = (scipy.linalg.expm(generator * t) @ np.append(model.start, 1.0))[:30]
        np.testing.assert_allclose(flow(x_new, t), model(x_new, theta), rtol=0, atol=1e-10)
        np.testing.assert_allclose(flow.train(t), model(x, theta), rtol=0, atol=1e-10)
    if ridge == 0:
        np.testing.assert_allclose(flow.train(), y, atol=1e-9)
    covariance = flow.covariance(x_new, [1.0, 5.0])
    assert covariance.shape == (2, 5, 5, 2, 2)
    np.testing.assert_allclose(np.einsum("tnnoo->tno", covariance), flow.variance(x_new, [1.0, 5.0]), atol=1e-12)
    np.testing.assert_allclose(flow.covariance(x_new, 0.0), model.kernel(x_new, x_new), atol=1e-13)
    with pytest.raises(InputError, match="leave-one-out is not available"):
        flow.leave_one_out()


def test_coupled_outputs_train_as_the_matrix_valued_kernel_does():
    x, y, x_new = data((3,))
    root = np.random.default_rng(4).normal(size=(3, 2))
    coupling = root @ root.T
    coupled = kernel_flow(CoupledKernel(KERNEL, coupling), x, y, ridge=0.05, f0=np.ones((N, 3)))
    full = kernel_flow(
        FunctionKernel(lambda a, b: KERNEL(a, b)[:, :, None, None] * coupling), x, y, ridge=0.05, f0=np.ones((N, 3))
    )
    times, values = [0.0, 2.0, 100.0, np.inf], np.ones((5, 3))
    np.testing.assert_allclose(coupled(x_new, times, f0=values), full(x_new, times, f0=values), atol=1e-11)
    np.testing.assert_allclose(coupled.train(times), full.train(times), atol=1e-11)
    learnt = np.einsum("nmop,tmp->tno", full.kernel.evaluate("ntk", x_new, x), coupled.coefficients(times))
    np.testing.assert_allclose(learnt + 1, full(x_new, times, f0=values), atol=1e-11)
    np.testing.assert_allclose(coupled.eigenvalues, full.eigenvalues, atol=1e-12)
    same = kernel_flow(CoupledKernel(KERNEL, np.eye(3)), x, y, ridge=0.05)
    plain = kernel_flow(KERNEL, x, y, ridge=0.05)
    np.testing.assert_allclose(same.variance(x_new, 2.0), np.repeat(plain.variance(x_new, 2.0)[:, None], 3, 1))
    np.testing.assert_allclose(same.covariance(x_new, 2.0)[..., 1, 1], plain.covariance(x_new, 2.0), atol=1e-14)
    np.testing.assert_allclose(same.leave_one_out(0.1), plain.leave_one_out(0.1), atol=1e-12)
    np.testing.assert_allclose(coupled.with_ridge(0.2).train(1.0), full.with_ridge(0.2).train(1.0), atol=1e-11)
    spread = kernel_flow(FunctionKernel(lambda a, b: KERNEL(a, b)[:, :, None, None] * coupling), x, y, ridge=0.05)
    both = kernel_flow(CoupledKernel(FunctionKernel(KERNEL), coupling), x, y, ridge=0.05)
    np.testing.assert_allclose(both.covariance(x_new, times), spread.covariance(x_new, times), atol=1e-11)
    np.testing.assert_allclose(both.variance(x_new, times), spread.variance(x_new, times), atol=1e-11)


@pytest.mark.parametrize("t", [1e6, 1e12])
def test_contradictory_duplicates_train_as_their_mean_to_rounding(t):
    x, y, x_new = data()
    x[4] = x[2]
    mean = y.copy()
    mean[[2, 4]] = (y[2] + y[4]) / 2
    flow, expected = kernel_flow(KERNEL, x, y), kernel_flow(KERNEL, x, mean)
    np.testing.assert_allclose(flow.train(t), expected.train(t), rtol=0, atol=1e-12)
    np.testing.assert_allclose(flow(x_new, t), expected(x_new, t), rtol=0, atol=1e-11)
    np.testing.assert_allclose(flow(x_new, [1.0, t])[1], expected(x_new, t), rtol=0, atol=1e-11)
