"""GELU, the error function and their kin in fused programs, against the XLA path, whose closed forms have oracles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tangency import limit
from tangency.fused import simd
from tangency.fused.polynomials import arcsine

WIDTH = 8
erf = jax.scipy.special.erf


def mixed(u):
    """Every term of the family, with noise of variance 2."""
    return 0.3 + 0.2 * u + (0.5 * u - 0.4) * erf(0.5 * u)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGENCY_CACHE_DIR", str(tmp_path_factory.mktemp("fused")))
        yield


def dense(*activations):
    def make(key):
        keys = jax.random.split(key, len(activations) + 1)
        layers = []
        for i, activation in enumerate(activations):
            layers.append(eqx.nn.Linear(WIDTH if i else 5, WIDTH, use_bias=False, key=keys[i]))
            layers.append(eqx.nn.Lambda(activation))
        return eqx.nn.Sequential([*layers, eqx.nn.Linear(WIDTH, 1, use_bias=False, key=keys[-1])])

    return make


class Gated(eqx.Module):
    """Two error functions of one signal, with coefficients of their own: expectations of one with the other."""

    layers: list

    def __init__(self, key):
        sizes = ((5, WIDTH), (WIDTH, 1))
        self.layers = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, jax.random.split(key), strict=True)]

    def __call__(self, x, key=None):
        u = self.layers[0](x)
        return self.layers[1](mixed(u) * jnp.sum(x) + jax.nn.gelu(u, approximate=False) * x[0] + 3.0 * u)


def both(make, x, y):
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    found = fused.evaluate("both", x, y)
    assert "the whole network is fused" in str(fused)
    return fused, found, plain.evaluate("both", x.astype(np.float64), y.astype(np.float64))


def examples(count, scale=1.0):
    return scale * np.random.default_rng(count).normal(size=(count, 5))


@pytest.mark.parametrize("make", [dense(mixed, mixed), Gated], ids=["every term", "two noises"])
def test_every_term_of_the_family(make):
    x, y = examples(4), np.concatenate([examples(9), -examples(4), 3.0 * examples(4)])
    fused, found, expected = both(make, x, y)
    # Terms of either sign cancel in sums: errors are relative to the largest entry.
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-13 * np.max(np.abs(other)))
    symmetric = fused(y)
    assert np.array_equal(symmetric, symmetric.T)
    assert np.array_equal(np.diagonal(symmetric), fused.diagonal("ntk", y))
    assert np.array_equal(np.diagonal(fused(x, x.copy())), fused.diagonal("ntk", x))


@pytest.mark.parametrize("scale", [0.0, 1e-120, 1e-3, 1e3, 1e8])
def test_variances_of_every_size(scale):
    """Even 0, and those beside which the noise vanishes in rounding; on inputs that are equal, opposite or neither."""
    x = examples(4, scale)
    y = np.concatenate([x, -x, examples(3), x + 1e-3 * examples(4, scale)[::-1]])
    for activation in (mixed, erf):
        _, found, expected = both(dense(activation), x, y)
        exact = limit(dense(activation), fused=False).diagonal("both", x)
        np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), exact, rtol=2e-15)
        error = max(1e-14, min(1e-15 * scale**2, 1e-8))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0.0, atol=error * np.max(np.abs(other)))


def test_single_precision():
    x = np.concatenate([examples(6, 30.0), examples(6, 0.01)]).astype(np.float32)
    _, found, expected = both(dense(mixed, mixed), x, x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


def test_small_correlations_have_small_relative_errors():
    x, y = np.eye(5)[:1], np.eye(5)[1:2] + np.array([[1e-12], [1e-6], [0.1]]) * np.eye(5)[:1]
    _, found, expected = both(dense(erf), x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_wider_registers_change_nothing(monkeypatch):
    x = examples(21).astype(np.float32)
    found = []
    for bits in (256, 512):
        monkeypatch.setattr(simd, "register_bits", lambda bits=bits: bits)
        found.append(limit(Gated, fused=True).evaluate("both", x))
    assert np.array_equal(*found)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 2e-16)])
def test_the_polynomial_of_the_arc_sine(dtype, tolerance):
    with mpmath.workdps(40):
        for w in np.linspace(1e-6, 0.5, 101):
            z = mpmath.mpf(w) ** 2
            polynomial = mpmath.fsum(mpmath.mpf(c) * z**k for k, c in enumerate(arcsine(dtype)))
            assert abs(w + w * z * polynomial - mpmath.asin(w)) < tolerance * w
