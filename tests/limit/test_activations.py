"""Whole kernels with numerically integrated activations, against nested quadrature that knows nothing of series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tests.oracles import gaussian

# name: the model's activation, its derivative in NumPy, and where either breaks
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda u: 1 / np.cosh(u) ** 2, ()),
    "gelu, tanh form": (jax.nn.gelu, None, ()),
    "silu": (jax.nn.silu, None, ()),
    "softplus": (jax.nn.softplus, None, ()),
    "elu": (jax.nn.elu, None, (0.0,)),
    "relu6": (jax.nn.relu6, None, (0.0, 6.0)),
    "hard tanh": (jax.nn.hard_tanh, None, (-1.0, 1.0)),
    "hard swish": (jax.nn.hard_swish, None, (-3.0, 3.0)),
    "shifted": (lambda u: jnp.maximum(u + 0.3, 0.0) * jnp.cos(u), None, (-0.3,)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_two_layer_kernels(name, rng):
    """v·φ(Wx + b): K = σ_v² E[φ(u)φ(u')] and Θ = K + σ_v² E[φ̇φ̇'] Θ₁, to 1e-8 of the exact integrals."""
    function, slope, breaks = ACTIVATIONS[name]
    x = np.concatenate([rng.normal(size=(3, 4)), [[0.1, 0.0, 0.0, 0.0]]])
    x[2] = x[1] + 1e-4

    def init(key):
        k1, k2, k3 = jax.random.split(key, 3)
        return jax.random.normal(k1, (64, 4)), 0.5 * jax.random.normal(k2, (64,)), jax.random.normal(k3, (1, 64)) / 8

    k, theta = limit((init, lambda p, x: p[2] @ function(p[0] @ x + p[1]))).both(x)
    first = x @ x.T + 0.25
    phi, phi_dot = gaussian.numpy_of(function), slope or gaussian.slope_of(function)
    for i in range(4):
        for j in range(i, 4):
            a, b, c = first[i, i], first[j, j], first[i, j]
            rho = c / np.sqrt(a * b)
            expected = gaussian.dual(phi, phi, a, b, rho, breaks, breaks)
            np.testing.assert_allclose(k[i, j], expected, rtol=1e-8)
            expected += gaussian.dual(phi_dot, phi_dot, a, b, rho, breaks, breaks) * c
            np.testing.assert_allclose(theta[i, j], expected, rtol=1e-8)


def test_functions_that_carry_each_examples_own_normaliser(rng):
    """silu of a normalised activation: φ(u; k(x)) differs between examples, and so do its Hermite coefficients."""

    def init(key):
        k1, k2 = jax.random.split(key)
        return jax.random.normal(k1, (64, 4)), jax.random.normal(k2, (1, 64)) / 8

    def apply(p, x):
        h = jnp.tanh(p[0] @ x)
        return p[1] @ jax.nn.silu(h / jnp.sqrt(jnp.mean(h**2) + 1e-5))

    x = rng.normal(size=(3, 4))
    k, theta = limit((init, apply)).both(x)
    first = x @ x.T
    rms = [np.sqrt(gaussian.dual(np.tanh, np.tanh, a, a, 1.0) + 1e-5) for a in np.diag(first)]

    def phi(r):
        return lambda u: np.tanh(u) / r / (1 + np.exp(-np.tanh(u) / r))

    def phi_dot(r):
        def slope(u):
            v = np.tanh(u) / r
            s = 1 / (1 + np.exp(-v))
            return (s + v * s * (1 - s)) / r / np.cosh(u) ** 2

        return slope

    for i in range(3):
        for j in range(3):
            a, b, c = first[i, i], first[j, j], first[i, j]
            rho = c / np.sqrt(a * b)
            expected = gaussian.dual(phi(rms[i]), phi(rms[j]), a, b, rho)
            np.testing.assert_allclose(k[i, j], expected, rtol=1e-8)
            expected += gaussian.dual(phi_dot(rms[i]), phi_dot(rms[j]), a, b, rho) * c
            np.testing.assert_allclose(theta[i, j], expected, rtol=1e-8)
