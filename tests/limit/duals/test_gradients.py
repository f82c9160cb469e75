"""Derivatives: Price's theorem, finite differences, and finiteness at every degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency.limit.duals import Activation, dual, mean, product_mean

CONTINUOUS = ["relu", "squared relu", "gelu", "hard swish", "tanh", "elu"]
DEGENERATE = [
    (1.0, 1.0, 1.0),
    (1.0, 1.0, -1.0),
    (0.5, 2.0, 1.0),
    (2.0, 2.0, 2.0 + 1e-15),
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_prices_theorem(name, activation):
    f = activation(name)
    with jax.enable_x64(True):
        by_c = jax.jit(jax.grad(lambda a, b, c: dual(f, f, a, b, c, order=512), 2))
        slopes = jax.jit(lambda a, b, c: dual(f.derivative, f.derivative, a, b, c, order=512))
        for point in [(1.0, 2.0, 0.5), (1.2, 0.7, -0.8), (1.0, 1.0, 1.0), (2.0, 2.0, -2.0)]:
            assert float(by_c(*point)) == pytest.approx(float(slopes(*point)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["squared relu", "gelu", "u sin 2u", "step", "tanh", "elu"])
def test_gradients_are_finite_differences(name, activation):
    f = activation(name)
    step = 1e-5
    with jax.enable_x64(True):
        value = jax.jit(lambda x: dual(f, f, x[0], x[1], x[2]))
        reverse, forward = jax.jit(jax.grad(value)), jax.jit(jax.jacfwd(value))
        for point in [np.array([1.0, 1.6, 0.4]), np.array([0.8, 1.1, -0.7])]:
            differences = [float(value(point + step * e) - value(point - step * e)) / (2 * step) for e in np.eye(3)]
            np.testing.assert_allclose(reverse(point), differences, rtol=1e-7, atol=1e-8)
            np.testing.assert_allclose(forward(point), differences, rtol=1e-7, atol=1e-8)
        for one_sided in (lambda a: product_mean(f, f, a), lambda a: mean(f, a)):
            difference = float(jax.jit(one_sided)(1.3 + step) - jax.jit(one_sided)(1.3 - step)) / (2 * step)
            assert float(jax.jit(jax.grad(one_sided))(1.3)) == pytest.approx(difference, rel=1e-7, abs=1e-8)


def test_second_derivatives(activation):
    with jax.enable_x64(True):
        for name in ("gelu", "relu", "tanh"):
            f = activation(name)
            by_c = jax.jit(jax.grad(lambda c, f=f: dual(f, f, 1.0, 2.0, c, order=512)))
            difference = float(by_c(0.5 + 1e-5) - by_c(0.5 - 1e-5)) / 2e-5
            assert float(jax.jit(jax.grad(by_c))(0.5)) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "precise"), [("relu", False), ("relu", True), ("gelu", False), ("hard tanh", True), ("elu", False)]
)
def test_gradients_are_finite_everywhere(name, precise, activation):
    f = activation(name)
    with jax.enable_x64(precise):
        dtype = np.float64 if precise else np.float32
        points = np.array(DEGENERATE, dtype)
        value = jax.jit(jax.vmap(lambda x: dual(f, f, x[0], x[1], x[2])))
        reverse = jax.jit(jax.vmap(jax.grad(lambda x: dual(f, f, x[0], x[1], x[2]))))
        for result in (value(points), reverse(points)):
            assert result.dtype == dtype
            assert np.all(np.isfinite(result))


def test_relu_at_equal_inputs(activation):
    relu = activation("relu")
    gradient = jax.jit(jax.grad(lambda a, b, c: dual(relu, relu, a, b, c), (0, 1, 2)))
    with jax.enable_x64(True):
        for a in (1e-4, 1.0, 37.0):
            by_a, by_b, by_c = gradient(a, a, a)
            assert float(by_c) == pytest.approx(0.5, rel=1e-12)
            assert float(by_a) == pytest.approx(0.0, abs=1e-12)
            assert float(by_b) == pytest.approx(0.0, abs=1e-12)


def test_zero_vectors_take_the_functions_own_value_at_zero(activation):
    at_least, above = Activation(lambda u: jnp.where(u >= 0, 1.0, 0.0)), activation("step")
    with jax.enable_x64(True):
        assert float(dual(at_least, above, 0.0, 2.0, 0.0)) == pytest.approx(0.5)
        assert float(dual(above, at_least, 0.0, 2.0, 0.0)) == 0.0
        assert float(dual(above, at_least, 2.0, 0.0, 0.0)) == pytest.approx(0.5)
        # AD gives max(u, 0) the slope 1/2 at 0, and jax.nn.relu the slope 0.
        assert float(mean(Activation(lambda u: jnp.maximum(u, 0.0)).derivative, 0.0)) == 0.5
        assert float(mean(activation("relu").derivative, 0.0)) == 0.0
        sigmoid, elu = activation("sigmoid"), activation("elu")
        assert float(product_mean(sigmoid, sigmoid, 0.0)) == 0.25
        by_b = jax.jit(jax.grad(lambda b: dual(sigmoid, elu, 0.0, b, 0.0)))(1.0)
        assert float(by_b) == pytest.approx(0.5 * float(jax.jit(jax.grad(lambda b: mean(elu, b)))(1.0)), rel=1e-12)


def test_not_a_number_is_not_hidden(activation):
    for name in ("relu", "tanh", "hard tanh"):
        assert np.isnan(float(dual(activation(name), activation(name), np.float32(np.nan), 1.0, 0.0)))


def test_gradients_by_parameters():
    """Scaling the input is scaling the variance, also where the function has a kink."""
    scaled, plain = Activation(lambda u, p: jax.nn.elu(p * u), parameters=1), Activation(jax.nn.elu)
    with jax.enable_x64(True):
        by_parameter = jax.jit(jax.grad(lambda p: dual(scaled, scaled, 1.0, 2.0, 0.9, (p,), (p,))))(1.3)
        by_variance = jax.jit(jax.grad(lambda p: dual(plain, plain, p * p, 2.0 * p * p, 0.9 * p * p)))(1.3)
        assert float(by_parameter) == pytest.approx(float(by_variance), rel=1e-11)
