import jax
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

import tangency as tg
from tangency.dynamics import RKHSFunction
from tangency.errors import InputError, NonFiniteError
from tests.oracles.flow import FeatureKernel

N, INPUTS, OUTPUTS = 9, 3, 2
KERNEL = FeatureKernel(features=40, inputs=INPUTS)
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(N, INPUTS)), RNG.normal(size=(5, INPUTS))
COUPLING = np.array([[2.0, 0.5], [0.5, 1.0]])
KERNELS = {
    "k ⊗ I": KERNEL,
    "k ⊗ B": tg.CoupledKernel(KERNEL, COUPLING),
    "full": lambda a, b: KERNEL(a, b)[:, :, None, None] * COUPLING,
}
TARGETS = {
    "squared": RNG.normal(size=(N, OUTPUTS)),
    "softmax": RNG.integers(0, OUTPUTS, N),
    "logistic": RNG.integers(0, 2, (N, OUTPUTS)),
    "huber": 2 * RNG.normal(size=(N, OUTPUTS)),
    "hinge": np.sign(RNG.normal(size=(N, OUTPUTS))),
    "quantile": RNG.normal(size=(N, OUTPUTS)),
    "poisson": RNG.poisson(2.0, (N, OUTPUTS)),
}


def start(x):
    return np.stack([np.sin(x[:, 0]), np.cos(x[:, 1])], axis=1)


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("cost", list(TARGETS))
def test_the_gradient_is_the_derivative_of_the_cost_in_every_direction(kernel, cost):
    """dC(f)[g] = ⟨∇_K C|_f, g⟩_K by central differences."""
    kernel, y = KERNELS[kernel], TARGETS[cost]
    gradient = tg.kernel_gradient(kernel, cost, X, y, start)
    direction = RKHSFunction(kernel, X_NEW, np.random.default_rng(1).normal(size=(5, OUTPUTS)))
    loss = getattr(tg.losses, cost)()

    def cost_at(step):
        values = start(X) + step * direction(X)
        with jax.enable_x64(True):
            return np.mean([loss(f, target) for f, target in zip(values, np.asarray(y), strict=True)])

    difference = (cost_at(1e-5) - cost_at(-1e-5)) / 2e-5
    assert gradient.inner(direction) == pytest.approx(difference, rel=1e-7, abs=1e-8)


def test_the_gradient_of_the_squared_cost_by_hand():
    y = TARGETS["squared"][:, 0]
    gradient = tg.kernel_gradient(KERNEL, "squared", X, y)
    np.testing.assert_allclose(gradient(X_NEW), -KERNEL(X_NEW, X) @ y / N, atol=1e-14)
    assert gradient.norm() == pytest.approx(np.sqrt(y @ KERNEL(X) @ y) / N, rel=1e-12)
    values = np.ones(N)
    np.testing.assert_allclose(
        tg.kernel_gradient(KERNEL, "squared", X, y, values)(X_NEW), KERNEL(X_NEW, X) @ (values - y) / N, atol=1e-14
    )
    at_gradient = tg.kernel_gradient(KERNEL, "squared", X, y, gradient)
    np.testing.assert_allclose(at_gradient.coefficients, (gradient(X) - y) / N, atol=1e-14)


def test_functions_of_one_kernel_are_a_vector_space():
    f = RKHSFunction(KERNEL, X, RNG.normal(size=N))
    g = RKHSFunction(KERNEL, X_NEW, RNG.normal(size=5))
    np.testing.assert_allclose((2 * f - g / 4 + -f)(X_NEW), f(X_NEW) - g(X_NEW) / 4, atol=1e-13)
    assert (f + f).centres is f.centres and len((f + g).centres) == N + 5
    assert f.inner(g) == pytest.approx(g.inner(f), rel=1e-12)
    assert (f + g).norm() ** 2 == pytest.approx(f.norm() ** 2 + 2 * f.inner(g) + g.norm() ** 2, rel=1e-12)
    reproducing = RKHSFunction(KERNEL, X_NEW[:1], [1.0])
    assert f.inner(reproducing) == pytest.approx(f(X_NEW)[0], rel=1e-12)
    assert (f - f).norm() == 0.0


def test_functions_of_different_kernels_do_not_mix():
    f, g = RKHSFunction(KERNEL, X, np.ones(N)), RKHSFunction(rbf_kernel, X, np.ones(N))
    for operation in (lambda: f + g, lambda: f - g, lambda: f.inner(g)):
        with pytest.raises(InputError, match="different kernels"):
            operation()
    np.testing.assert_allclose((g + RKHSFunction(rbf_kernel, X, np.ones(N)))(X), 2 * g(X))
    with pytest.raises(InputError, match=r"outputs \(\) and \(2,\)"):
        f + RKHSFunction(KERNEL, X, np.ones((N, 2)))
    with pytest.raises(TypeError):
        f + 1.0  # pyright: ignore[reportOperatorIssue]
    coupled = RKHSFunction(tg.CoupledKernel(KERNEL, COUPLING), X, np.ones((N, 2)))
    again = RKHSFunction(tg.CoupledKernel(KERNEL, COUPLING), X, np.ones((N, 2)))
    assert coupled.inner(again) == pytest.approx(coupled.norm() ** 2)
    with pytest.raises(InputError, match="different kernels"):
        coupled + RKHSFunction(tg.CoupledKernel(KERNEL, 2 * COUPLING), X, np.ones((N, 2)))


@pytest.mark.parametrize("kernel", [rbf_kernel, laplacian_kernel, RBF(1.3), lambda a, b: 1.0 + a @ b.T])
def test_plain_functions_are_kernels_everywhere(kernel):
    y = TARGETS["squared"][:, 0]
    matrix, cross = kernel(X, X), kernel(X_NEW, X)
    np.testing.assert_allclose(tg.gram(kernel, X_NEW, X), cross)
    np.testing.assert_allclose(tg.kernel_gradient(kernel, "squared", X, y)(X_NEW), -cross @ y / N, atol=1e-13)
    np.testing.assert_allclose(
        tg.kernel_descent(kernel, X, y, learning_rate=0.1, steps=1)(X_NEW), 0.1 * cross @ y / N, atol=1e-13
    )
    alpha = np.linalg.solve(matrix + 0.1 * np.eye(N), y)
    np.testing.assert_allclose(tg.kernel_flow(kernel, X, y, ridge=0.1)(X_NEW), cross @ alpha, atol=1e-10)
    np.testing.assert_allclose(tg.gaussian_process(kernel, X, y, ridge=0.1).mean(X_NEW), cross @ alpha, atol=1e-10)


def test_bad_arguments():
    y = TARGETS["squared"]
    for kernel, message in (
        ("rbf", "kernel is 'rbf'"),
        (lambda a, b: np.ones((2, 2)), r"returned shape \(2, 2\)"),
        (tg.CoupledKernel(KERNEL, np.eye(3)), "the kernel has 3 outputs but the function has 2"),
        (tg.CoupledKernel(KERNELS["full"], COUPLING), "inside a CoupledKernel is matrix-valued"),
    ):
        with pytest.raises(InputError, match=message):
            tg.kernel_gradient(kernel, "squared", X, y)(X)
    for coupling, message in (
        (np.ones((2, 3)), r"coupling has shape \(2, 3\)"),
        ([[1.0, 2.0], [0.0, 1.0]], "not symmetric"),
        (np.diag([1.0, -1.0]), "must be positive semi-definite"),
        ([[np.nan]], "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            tg.CoupledKernel(KERNEL, coupling)
    with pytest.raises(InputError, match="y has the label 2, but there are 2 outputs"):
        tg.kernel_gradient(KERNEL, "softmax", X, [0, 1, 2] * 3, np.zeros((N, 2)))
    with pytest.raises(NonFiniteError, match="f0 is not finite in row 4"):
        tg.kernel_gradient(KERNEL, "squared", X, y[:, 0], np.where(np.arange(N) == 4, np.nan, 0.0))
    with pytest.raises(InputError, match="coefficients has shape"):
        RKHSFunction(KERNEL, X, np.ones(4))
