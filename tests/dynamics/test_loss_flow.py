import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF

import tangency as tg
from tangency.dynamics.ode import Equation
from tangency.errors import ConvergenceError, InputError, MemoryLimitError
from tests.oracles.flow import FeatureKernel
from tests.oracles.loss_flow import function_values, softmax_derivative

N, INPUTS, OUTPUTS = 8, 3, 3
KERNEL = FeatureKernel(features=40, inputs=INPUTS)
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(N, INPUTS)), RNG.normal(size=(5, INPUTS))
Y, LABELS = RNG.normal(size=N), np.array([0, 1, 2, 0, 1, 2, 2, 0])


def half_square(prediction, target):
    return jnp.sum((prediction - target) ** 2) / 2


def start(x):
    return np.sin(x[:, 0])


def test_the_squared_loss_agrees_with_its_closed_form():
    for ridge in (0.0, 0.05):
        closed = tg.kernel_flow(KERNEL, X, Y, ridge=ridge, f0=start)
        solved = tg.kernel_flow(KERNEL, X, Y, cost=half_square, ridge=ridge, f0=start)
        times = [1e12, 0.0, 0.3, 7.0, 500.0, 1e5, np.inf]
        np.testing.assert_allclose(solved(X_NEW, times), closed(X_NEW, times), rtol=0, atol=1e-9)
        np.testing.assert_allclose(solved.train(times), closed.train(times), rtol=0, atol=1e-9)
        np.testing.assert_allclose(solved(X_NEW), closed(X_NEW), rtol=0, atol=1e-11)
        np.testing.assert_allclose(solved.coefficients(7.0), closed.coefficients(7.0), atol=1e-7)
        np.testing.assert_allclose(solved.function(7.0)(X_NEW), solved(X_NEW, 7.0) - start(X_NEW), atol=1e-12)
        assert solved.convergence().status == "converged"
        assert solved.convergence(7.0).status == "reached" and solved.convergence(7.0).time == 7.0
        np.testing.assert_array_equal(solved(X_NEW, 0.0), start(X_NEW))


def test_duplicates_and_ill_conditioned_kernels_agree_with_the_closed_form():
    kernel = RBF(1.0)
    x = np.concatenate([np.linspace(-1, 1, 30), [0.5, 0.5]])[:, None]
    y = np.sin(3 * x[:, 0]) + np.append(np.zeros(30), [1.0, -1.0])
    closed, solved = tg.kernel_flow(kernel, x, y), tg.kernel_flow(kernel, x, y, cost=half_square)
    assert closed.eigen.condition() > 1e14 and solved.unresolved > 10
    between = x[:-3] + 0.01
    for t in (1.0, 1e3, 1e6, 1e12):
        np.testing.assert_allclose(solved.train(t), closed.train(t), rtol=0, atol=1e-8)
        np.testing.assert_allclose(solved(between, t), closed(between, t), rtol=0, atol=1e-8)


def test_softmax_agrees_with_an_explicit_integrator_in_function_space():
    times = [0.5, 20.0, 300.0]
    flow = tg.kernel_flow(KERNEL, X, LABELS, cost="softmax", f0=np.ones((N, OUTPUTS)))
    reference = function_values(KERNEL(X), softmax_derivative(LABELS), np.ones((N, OUTPUTS)), times)
    np.testing.assert_allclose(flow.train(times), reference, rtol=0, atol=1e-8)
    distributions = tg.kernel_flow(KERNEL, X, np.eye(OUTPUTS)[LABELS], cost="softmax")
    np.testing.assert_allclose(distributions.train(20.0) + 1, reference[1], rtol=0, atol=1e-8)
    probabilities = np.exp(reference) / np.exp(reference).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(
        flow.cost(times), -np.log(probabilities[:, np.arange(N), LABELS]).mean(axis=1), atol=1e-8
    )
    with pytest.raises(InputError, match="f0 was given by its values"):
        flow(X_NEW, 1.0)
    values = np.zeros((5, OUTPUTS))
    np.testing.assert_allclose(flow(X_NEW, 1.0, f0=values), flow.function(1.0)(X_NEW), atol=1e-13)


def test_separable_classes_never_converge_but_a_ridge_makes_them():
    flow = tg.kernel_flow(KERNEL, X, LABELS, cost="softmax")
    report = flow.convergence()
    assert report.status == "not converged" and report.remaining > 1e-3
    with pytest.raises(ConvergenceError, match="no end that was found.*give a finite t, or a ridge") as caught:
        flow(X_NEW)
    assert caught.value.report == report
    assert np.isfinite(flow(X_NEW, 1e12)).all() and 0 < flow.cost(1e12) < 1e-9
    ridge = 0.1
    end = tg.kernel_flow(KERNEL, X, LABELS, cost="softmax", ridge=ridge)
    alpha = end.coefficients()
    stationary = softmax_derivative(LABELS)(end.train()) + ridge * alpha
    np.testing.assert_allclose(KERNEL(X) @ stationary, 0.0, atol=1e-13)
    assert end.convergence().status == "converged" and end.convergence().gradient_norm < 1e-14


def test_matrix_valued_kernels_by_both_methods(monkeypatch):
    monkeypatch.setattr(Equation, "_explicit", lambda self, duration: True)
    root = np.random.default_rng(1).normal(size=(OUTPUTS, 2))
    coupling = root @ root.T
    full = KERNEL(X)[:, :, None, None] * coupling
    reference = function_values(full, softmax_derivative(LABELS), np.zeros((N, OUTPUTS)), [5.0])[0]
    coupled = tg.kernel_flow(tg.CoupledKernel(KERNEL, coupling), X, LABELS, cost="softmax")
    np.testing.assert_allclose(coupled.train(5.0), reference, rtol=0, atol=1e-9)
    np.testing.assert_allclose(coupled(X, 5.0), reference, rtol=0, atol=1e-9)
    monkeypatch.setattr(Equation, "_explicit", lambda self, duration: False)
    whole = tg.kernel_flow(lambda a, b: KERNEL(a, b)[:, :, None, None] * coupling, X, LABELS, cost="softmax")
    np.testing.assert_allclose(whole(X_NEW, 5.0), coupled(X_NEW, 5.0), rtol=0, atol=1e-9)


def test_the_end_of_other_losses_is_their_minimum():
    x, y = X[:1], np.array([3.0])
    flow = tg.kernel_flow(KERNEL, x, y, cost="poisson")
    assert flow.convergence().status == "converged"
    np.testing.assert_allclose(flow.train(), np.log(3.0), atol=1e-11)
    assert flow.train(1.0).shape == (1,)
    one = tg.kernel_flow(KERNEL, x, y, cost=half_square)
    expected = 3 * (1 - np.exp(-KERNEL(x)[0, 0] * np.array([0, 1.5, 1e12, np.inf])))
    np.testing.assert_allclose(one.train([0.0, 1.5, 1e12, np.inf])[:, 0], expected, rtol=1e-10)


def test_the_time_at_which_a_cost_is_reached():
    flow = tg.kernel_flow(KERNEL, X, Y, cost=half_square)
    time = flow.time_to(0.01)
    closed = tg.kernel_flow(KERNEL, X, Y)
    assert ((closed.train(time) - Y) ** 2).sum() / 2 / N == pytest.approx(0.01, rel=1e-8)
    assert flow.time_to(flow.cost(0.0)) == 0.0
    with pytest.raises(ConvergenceError, match="has not fallen to -1"):
        flow.time_to(-1.0)


def test_nothing_moves_where_the_start_is_stationary():
    for y, f0 in ((np.zeros(N), None), (Y, Y)):
        flow = tg.kernel_flow(KERNEL, X, y, cost=half_square, f0=f0)
        np.testing.assert_array_equal(flow.train([0.0, 1e12, np.inf]), np.tile(y, (3, 1)))
        assert flow.convergence().status == "converged"
    still = tg.kernel_flow(lambda a, b: np.zeros((len(a), len(b))), X, Y, cost=half_square)
    np.testing.assert_array_equal(still(X_NEW, [1.0, 1e12]), 0.0)


def test_bad_arguments():
    for cost in ("hinge", "quantile"):
        with pytest.raises(InputError, match=rf"the {cost}.* loss has kinks.*tangency.losses.{cost}\(smoothing"):
            tg.kernel_flow(KERNEL, X, np.sign(Y), cost=cost)
    flow = tg.kernel_flow(KERNEL, X, Y, cost=half_square)
    for t in (-1.0, np.nan, [[1.0]], "late"):
        with pytest.raises(InputError, match="^t (is|has|holds)"):
            flow(X_NEW, t)
    with pytest.raises(InputError, match="t is a vector"):
        flow.convergence([1.0, 2.0])
    with pytest.raises(InputError, match="could not be called|returned shape"):
        tg.kernel_flow(KERNEL, X, np.stack([Y, Y], axis=1), cost=lambda f, y: (f - y) ** 2)
    with pytest.raises(InputError, match="not positive semi-definite"):
        tg.kernel_flow(lambda a, b: -a @ b.T, X, Y, cost=half_square)
    with pytest.raises(MemoryLimitError, match="implicit solver for 24 coordinates"):
        tg.kernel_flow(KERNEL, X, LABELS, cost="softmax", memory=10_000)
