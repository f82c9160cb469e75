"""Activations without a closed form in fused programs, against the XLA path and against direct quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tangency.fused.lookup import CHUNK, GROUP, NODES, level, look_up
from tangency.fused.tables import AIM, OutOfRangeError, terms
from tangency.limit.duals import Activation, dual, product_mean
from tangency.limit.tabulate import integrated, series
from tests.fused.networks import convolutional, dense, gated


def gelu(u):
    return jax.nn.gelu(u, approximate=True)


SMOOTH = {"tanh": jnp.tanh, "silu": jax.nn.silu, "softplus": jax.nn.softplus, "gelu": gelu}


def examples(count, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SMOOTH)
def test_dense_networks(name, bias):
    make = dense(*[SMOOTH[name]] * 3, bias=bias)
    x, y = 0.8 * examples(19, (5,)), 0.8 * examples(9, (5,), seed=1)
    x[4], x[11], y[3] = x[2], 2.0 * x[2], x[7]
    x[6] = 0.0
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    both = fused.evaluate("both", x)
    assert "the whole network is fused" in str(fused)
    # Odd functions without a bias give a row of zeros for a zero input.
    np.testing.assert_allclose(both, plain.evaluate("both", x), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(fused.evaluate("both", x, y), plain.evaluate("both", x, y), rtol=1e-12, atol=1e-15)
    assert np.array_equal(both, np.swapaxes(both, 1, 2))
    assert np.array_equal(np.diagonal(both[1]), fused.diagonal("ntk", x))
    assert both[1, 2, 4] == both[1, 2, 2]
    single = fused.evaluate("both", x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "pooled"), [("flatten", False), ("average", False), ("average", True)], ids=["flatten", "average", "pools"]
)
def test_convolutional_networks(head, pooled):
    make = convolutional(jnp.tanh, jax.nn.silu, head, pooled)
    shape = 2, 8 if pooled else 4, 4
    x, y = examples(3, shape), examples(5, shape, seed=1)
    x[1, :, :2] = 0.0
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    expected = plain.evaluate("both", x, y)
    np.testing.assert_allclose(fused.evaluate("both", x, y), expected, rtol=1e-12)
    assert "the whole network is fused" in str(fused)
    np.testing.assert_allclose(fused.evaluate("both", x.astype(np.float32), y.astype(np.float32)), expected, rtol=1e-4)
    theta = fused(y)
    assert np.array_equal(theta, theta.T)
    np.testing.assert_allclose(theta, plain(y), rtol=1e-12)
    assert np.array_equal(np.diagonal(theta), fused.diagonal("ntk", y))


def test_equal_inputs_are_equal_to_a_kink_behind_a_series():
    """Θ of ReLU has √(1 − ρ): were equal inputs a rounding away from ρ = 1, it would be off by the root of that."""
    make = dense(jax.nn.silu, jnp.tanh, jax.nn.relu, bias=False)
    x = examples(30, (5,)).astype(np.float32)
    found = limit(make, fused=True).evaluate("both", x, x.copy())
    exact = limit(make, fused=False).diagonal("both", x.astype(np.float64))
    np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), exact, rtol=3e-6)


def test_two_functions_of_one_signal_with_coefficients_of_their_own():
    """Mixed expectations E[f(u) g(v)], where f is odd and g is neither odd nor even."""

    make = gated(jnp.tanh, jax.nn.silu)
    x, y = examples(6, (5,)), examples(3, (5,), seed=1)
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    found = fused.evaluate("both", x, y)
    assert "the whole network is fused" in str(fused)
    # The order of XLA's series is chosen for 1e-9, and the sum over x takes either sign, so that terms cancel.
    np.testing.assert_allclose(found, plain.evaluate("both", x, y), rtol=1e-10)
    np.testing.assert_allclose(fused.evaluate("both", x), plain.evaluate("both", x), rtol=1e-10)


def test_variances_beyond_the_tables_are_left_to_xla():
    make = dense(jnp.tanh, bias=False)
    x = examples(3, (5,))
    for scale in (30.0, 1e-7):
        np.testing.assert_array_equal(*(limit(make, fused=f)(scale * x) for f in (True, False)))


@pytest.mark.parametrize("name", SMOOTH)
def test_tables_between_their_nodes(name):
    f = Activation(SMOOTH[name])
    for function in (f, f.derivative):
        rule = series(function, function)
        assert rule is not None
        assert rule.f.accurate[0] <= 1e-9 and rule.f.accurate[1] >= 1e3
        variances = np.geomspace(1e-9, 1e3, 57)
        with jax.enable_x64(True):
            exact = np.array(jax.vmap(lambda a, h=function: product_mean(h, h, a))(jnp.asarray(variances)))
        np.testing.assert_allclose(rule.f.at(variances)[:, 0], exact, rtol=1e-13)
        # Parseval's identity, for the coefficients.
        small = variances <= 1.0
        found = rule.f.at(variances[small])[:, 1:]
        squares = np.sum(rule.f.weights(found.shape[1]) * found**2, axis=1)
        np.testing.assert_allclose(squares, exact[small], rtol=1e-11)


def test_coefficients_that_are_looked_up():
    f = Activation(jnp.tanh)
    rule = series(f, f)
    assert rule is not None and (rule.f.first, rule.f.step) == (1, 2)
    variances, lanes = np.array([0.3, 1.0, 0.0, 1e-3]), 4
    number = terms(rule.f, rule.g, (1e-3, 1.0), "float64")
    assert number % GROUP == 0
    found, numbers = np.zeros(number * lanes), np.concatenate([variances, np.zeros(3 * lanes)])
    place = 0, lanes, rule.f.packed, 0, rule.f.padded
    look_up(numbers, *place, found, 0, number, np.empty(NODES + CHUNK), lanes, AIM["float64"], False, 1, 2)
    h = found.reshape(number, lanes)
    exact = rule.f.at(variances[[0, 1, 3]])
    np.testing.assert_allclose(numbers[[4, 5, 7]], exact[:, 0], rtol=1e-13)
    assert numbers[6] == 0.0 and not h[:, 2].any()
    counts = numbers[8:12]
    assert counts[1] > counts[0] > counts[3] and set(numbers[12:]) == {counts.max()}
    half = int(counts[0] + counts[1]) // 2
    np.testing.assert_allclose(h[:half, [0, 1]].T, exact[:2, 1 : 1 + half], rtol=1e-6, atol=1e-16)
    every = np.zeros_like(found)
    look_up(numbers, *place, every, 0, number, np.empty(NODES + CHUNK), lanes, AIM["float64"], True, 1, 2)
    assert set(numbers[8:12]) == {number}
    assert np.array_equal(every.reshape(number, lanes)[:half, :2], h[:half, :2])
    assert np.count_nonzero(every) > np.count_nonzero(found)
    rho = 0.97
    total = sum((2 * k + 2) * h[k, 0] * h[k, 1] * rho ** (2 * k + 1) for k in range(half))
    with jax.enable_x64(True):
        assert abs(total / dual(f, f, 0.3, 1.0, rho * np.sqrt(0.3), order=512) - 1.0) < 1e-13
    with pytest.raises(OutOfRangeError):
        terms(rule.f, rule.g, (1.0, 3e3), "float64")


def test_all_cells_of_a_row_take_the_most_terms_of_any():
    numbers = np.array([1.0, 2.0, 9.0, 9.0, 4.0, 1.0, 9.0, 9.0, 3.0, 5.0, 9.0, 9.0])
    level(numbers, 0, 3, 4, 2)
    assert numbers.tolist() == [4.0, 5.0, 9.0, 9.0] * 3


def test_two_of_a_functions_expectations_are_one_polynomial():
    """E[f g] − E f E g is c times the integral of the polynomial of E[f′ g′]."""
    f = Activation(jax.nn.silu)
    rule = integrated(f, f, f.derivative, f.derivative)
    assert rule is not None and rule.integrated and rule.origins is not None
    assert rule.f is series(f.derivative, f.derivative).f
    a, b, rho = 0.7, 1.9, -0.6
    left, right = (rule.f.at(np.array([x]))[0, 1:] for x in (a, b))
    means = [float(table.at(np.array([x]))[0, 0]) for table, x in zip(rule.origins, (a, b), strict=True)]
    c = rho * np.sqrt(a * b)
    found = means[0] * means[1] + c * np.sum(left * right * rho ** np.arange(len(left)))
    with jax.enable_x64(True):
        exact = dual(f, f, a, b, c, order=512), product_mean(f, f, a)
    np.testing.assert_allclose([found, rule.mean.at(np.array([a]))[0, 0]], exact, rtol=1e-12)
