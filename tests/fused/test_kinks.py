"""Activations with a kink at 0 and no closed form in fused programs, against direct quadrature and the XLA path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tangency.fused.kinks import BEND, EXPONENTS, TAILS, polynomial
from tangency.fused.tables import OutOfRangeError, terms
from tangency.limit.duals import Activation
from tangency.limit.tabulate import integrated, series
from tests.fused.networks import agree, convolutional, dense, gated
from tests.oracles import gaussian


def bump(u):
    """It jumps at 0."""
    return jnp.where(u > 0, jnp.exp(-jnp.abs(u)), 0.5 * u)


def examples(count, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("function", "largest"), [(jax.nn.elu, 9.0), (jax.nn.selu, 9.0), (bump, 2.0)], ids=["elu", "selu", "bump"]
)
def test_expectations_against_quadrature(function, largest, dtype):
    """One hidden layer of two inputs: every pair of variances and correlations."""
    angles, sizes = np.array([0.0, 1e-3, 0.05, 0.4, 0.5 * np.pi, 2.1, 3.1, np.pi]), np.array([0.02, 1.0, largest])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x = np.array([[1.0, 0.0]]) * np.sqrt(sizes)[:, None]
    y = (unit[:, None] * np.sqrt(sizes)[:, None]).reshape(-1, 2)
    kernel = limit(dense(function, inputs=2), fused=True)
    # Weights of variance 1/(3 · inputs), and 1/3 of the readout.
    found = kernel.evaluate("both", np.sqrt(6.0).astype(dtype) * x.astype(dtype), (np.sqrt(6.0) * y).astype(dtype))
    assert found.dtype == dtype and "the whole network is fused" in str(kernel)
    f, slope = Activation(function), Activation(function).derivative
    for rule in (series(f, f), series(slope, slope)):
        # Nothing is left to XLA.
        assert rule is not None and terms(rule.f, rule.g, (sizes[0], sizes[-1]), dtype) == TAILS[dtype].columns
    expected = gaussian.hidden_layer(function, (0.0,), tuple(sizes), tuple(angles)) / 3.0
    scale = np.sqrt(np.max(np.abs(expected[:, :, :3]), axis=2))[..., None]
    # Within 1e-3 of ρ = ±1 the root of 1 − ρ² turns an error of rounding into one of its root.
    rounding = np.where(np.abs(np.sin(angles)) < 0.01, np.sqrt(np.finfo(dtype).eps), 0.0).repeat(3)
    allowed = {"float32": 2e-6, "float64": 3e-13}[dtype] + 0.3 * rounding
    assert np.all(np.abs(found - expected) <= allowed * np.maximum(1.0, scale) ** 2)


@pytest.mark.parametrize(
    "make",
    [dense(*[jax.nn.elu] * 3, bias=True), dense(bump, jax.nn.selu)],
    ids=["elu", "a jump"],
)
def test_dense_networks(make):
    x, y = 0.8 * examples(19, (5,)), 0.8 * examples(9, (5,), seed=1)
    x[4], y[3] = x[2], x[7]
    x[6] = 0.0
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    both = fused.evaluate("both", x)
    assert str(fused).endswith("the whole network is fused on the CPU")
    expected, across = plain.evaluate("both", x), plain.evaluate("both", x, y)
    # For equal inputs XLA's series ends at 1e-9, but not its quadrature on the diagonal.
    expected[:, [2, 4], [4, 2]] = expected[:, [2], [2]]
    across[:, 7, 3] = plain.diagonal("both", x)[:, 7]
    np.testing.assert_allclose(both, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(fused.evaluate("both", x, y), across, rtol=1e-12, atol=1e-15)
    assert np.array_equal(both, np.swapaxes(both, 1, 2))
    assert np.array_equal(np.diagonal(both[1]), fused.diagonal("ntk", x))
    assert both[1, 2, 4] == both[1, 2, 2]
    single = fused.evaluate("both", x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, both, rtol=1e-4, atol=1e-6)


def test_convolutional_networks():
    """With a pool, behind which variances are found only once there are coefficients."""
    make = convolutional(jax.nn.selu, jax.nn.elu, "average", True)
    x, y = examples(3, (2, 8, 4)), examples(5, (2, 8, 4), seed=1)
    fused, expected = agree(make, x, y, 1e-12)
    np.testing.assert_allclose(fused.evaluate("both", x.astype(np.float32), y.astype(np.float32)), expected, rtol=1e-4)


@pytest.mark.parametrize("second", [jax.nn.selu, jnp.tanh], ids=["another kink", "a smooth function"])
def test_two_functions_of_one_signal(second):
    make = gated(jax.nn.elu, second)
    x, y = examples(6, (5,)), examples(3, (5,), seed=1)
    agree(make, x, y, 1e-10)


def test_variances_that_the_tables_do_not_fit_are_left_to_xla():
    make = dense(jax.nn.elu)
    x = examples(3, (5,))
    fused, plain = (limit(make, fused=f) for f in (True, False))
    for scale, reason in ((60.0, "takes too many terms"), (1e-7, "not all in the tables")):
        np.testing.assert_array_equal(fused(scale * x), plain(scale * x))
        assert "left to XLA" in str(fused) and reason in str(fused)
    fused(x)
    assert str(fused).endswith("the whole network is fused on the CPU")
    slope = Activation(jax.nn.elu).derivative
    rule = series(slope, slope)
    assert rule is not None and rule.kinked
    assert terms(rule.f, rule.g, (1e-3, 2.0), "float32") == TAILS["float32"].columns
    assert terms(rule.f, rule.g, (1e-3, 2.0), "float64") == TAILS["float64"].columns
    with pytest.raises(OutOfRangeError):
        terms(rule.f, rule.g, (1e-3, 1e3), "float32")


def test_only_continuous_functions_are_integrals_of_their_slopes():
    elu, jumping = Activation(jax.nn.elu), Activation(bump)
    assert elu.is_continuous and not jumping.is_continuous and not elu.derivative.derivative.is_continuous
    rule = integrated(elu, elu, elu.derivative, elu.derivative)
    assert rule is not None and rule.kinked and rule.f is series(elu.derivative, elu.derivative).f


@pytest.mark.parametrize("dtype", TAILS)
@pytest.mark.parametrize("parity", [0, 1])
def test_what_further_terms_add_up_to(dtype, parity):
    """The polynomials for τ_j, weighted by ρ^K, against the sums that they stand for."""
    tail = TAILS[dtype]
    n = np.arange(200_000.0)
    for j, accuracy in enumerate((1.0, 1.0, 10.0, 50.0, 200.0), -1):
        power, first = 2.0 * EXPONENTS[parity] + j, tail.terms + parity + 1.0
        scale = np.sum((first + 2.0 * n) ** -power)
        for rho in (0.3, 0.8, 0.99, 0.9997):
            t = np.sqrt((1.0 - rho) * (1.0 + rho))
            found = np.polynomial.polynomial.polyval((1.0 + BEND) * t / (t + BEND), polynomial(tail, parity, j))
            exact = np.sum(rho ** (2.0 * n) * (first + 2.0 * n) ** -power) * float(tail.terms) ** j
            error = abs(found - exact) * rho**tail.terms / (scale * float(tail.terms) ** j)
            assert error <= accuracy * {"float32": 1e-5, "float64": 1e-11}[dtype]
