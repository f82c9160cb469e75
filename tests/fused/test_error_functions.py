"""GELU, the error function and their kin in fused programs, against the XLA path, whose closed forms have oracles."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tangency import limit
from tangency.fused import simd
from tangency.fused.polynomials import arcsine
from tangency.limit.duals import Activation, error_span
from tests.fused.networks import convolutional, dense, gated

erf = jax.scipy.special.erf


def mixed(u):
    """Every term of the family, with noise of variance 2."""
    return 0.3 + 0.2 * u + (0.5 * u - 0.4) * erf(0.5 * u)


def shifted(u):
    """Another function of the family, of noise 1, and a linear one."""
    return jax.nn.gelu(u, approximate=False) + 3.0 * u


def both(make, x, y):
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    found = fused.evaluate("both", x, y)
    assert "the whole network is fused" in str(fused)
    return fused, found, plain.evaluate("both", x.astype(np.float64), y.astype(np.float64))


def examples(count, scale=1.0):
    return scale * np.random.default_rng(count).normal(size=(count, 5))


@pytest.mark.parametrize(
    "make",
    [dense(mixed, mixed), gated(mixed, shifted), gated(mixed, lambda u: 2.0 * u)],
    ids=["every term", "two noises", "a linear one"],
)
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


def gelu(u):
    return jax.nn.gelu(u, approximate=False)


@pytest.mark.parametrize(
    ("head", "pooled"), [("flatten", False), ("average", False), ("average", True)], ids=["flatten", "average", "pools"]
)
def test_convolutional_networks(head, pooled):
    make = convolutional(gelu, mixed, head, pooled)
    shape = 2, 8 if pooled else 4, 4
    x, y = (np.random.default_rng(count).normal(size=(count, *shape)) for count in (3, 9))
    x[1, :, :2] = 0.0
    fused, found, expected = both(make, x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    theta = fused(y)
    assert np.array_equal(np.diagonal(theta), fused.diagonal("ntk", y))
    assert np.array_equal(np.diagonal(fused(y, y.copy())), fused.diagonal("ntk", y))


def test_wider_registers_change_nothing(monkeypatch):
    """Each lane holds an example of its own, whatever lies beside it."""
    x = np.random.default_rng(0).normal(size=(21, 2, 4, 4)).astype(np.float32)
    lanes, found = [], []
    for bits in (256, 512):
        monkeypatch.setattr(simd, "register_bits", lambda bits=bits: bits)
        lanes.append(simd.vector_lanes("float32"))
        found.append(limit(convolutional(gelu, jax.nn.relu, "average"), fused=True).evaluate("both", x))
    assert lanes == [8, 16]
    assert np.array_equal(*found)


@pytest.mark.parametrize("activation", [lambda u: erf(u) + erf(2.0 * u), jnp.square], ids=["two noises", "a square"])
def test_other_closed_forms_are_evaluated_step_by_step(activation):
    x, y = examples(4), np.concatenate([examples(9), -examples(4), np.zeros((1, 5))])
    _, found, expected = both(dense(activation, activation), x, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-13 * np.max(np.abs(other)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (mixed, (0.3, 0.2, 0.5, -0.4, 2.0)),
        (lambda u: 3.0 * u - 1.0, (-1.0, 3.0, 0.0, 0.0, None)),
        (jax.nn.relu, None),
        (jnp.square, None),
        (lambda u: jnp.exp(-u * u), None),
        (lambda u: erf(u) + erf(2.0 * u), None),
    ],
    ids=["family", "linear", "a kink", "a square", "a Gaussian", "two noises"],
)
def test_what_belongs_to_the_family(function, expected):
    span = Activation(function).span
    assert span is not None
    found = error_span(span)
    if expected is None or found is None:
        assert found is expected
    else:
        assert found[:4] == pytest.approx(expected[:4], abs=1e-12)
        assert found.noise == (None if expected[4] is None else pytest.approx(expected[4], rel=1e-12))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 2e-16)])
def test_the_polynomial_of_the_arc_sine(dtype, tolerance):
    with mpmath.workdps(40):
        for w in np.linspace(1e-6, 0.5, 101):
            z = mpmath.mpf(w) ** 2
            polynomial = mpmath.fsum(mpmath.mpf(c) * z**k for k, c in enumerate(arcsine(dtype)))
            assert abs(w + w * z * polynomial - mpmath.asin(w)) < tolerance * w
