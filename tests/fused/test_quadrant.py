"""Clipped functions (kinks or jumps elsewhere than at 0) in fused programs: against quadrature, Owen's T and XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfcx, owens_t

from tangency import limit
from tangency.fused.lookup import to_powers
from tangency.fused.owen import BEND, CHEBYSHEV, mills, smooth_tail, table_of
from tangency.limit.duals import Activation, pieces
from tangency.limit.tabulate import MOST_LEVELS
from tests.fused.networks import agree, convolutional, dense, gated
from tests.oracles import gaussian


def shrink(u):
    """It jumps at ±1/2."""
    return jnp.where(jnp.abs(u) > 0.5, u, 0.0)


def bent(u):
    """Kinks at 0 and on both sides of it, one with a jump."""
    return jnp.maximum(u, -0.7) + 0.5 * jax.nn.relu(u) - jnp.where(u > 1.0, 0.4 + 0.3 * u, 0.0)


def parabola(u):
    """Quadratic between two jumps, with a kink at 0, and lines beyond."""
    return jnp.where(u > 1.5, u - 0.2, jnp.where(u > -1.0, 0.3 * u * u + 0.2 * jnp.abs(u), 0.8 + 0.5 * u))


FUNCTIONS = {
    "hard_tanh": (jax.nn.hard_tanh, (-1.0, 1.0), 15.0),
    "relu6": (jax.nn.relu6, (0.0, 6.0), 400.0),
    "shrink": (shrink, (-0.5, 0.5), 3.5),
    "bent": (bent, (-0.7, 0.0, 1.0), 7.0),
    "hard_swish": (jax.nn.hard_swish, (-3.0, 3.0), 30.0),
    "parabola": (parabola, (-1.0, 0.0, 1.5), 3.0),
}
"""With the places where they break, and a large variance."""


def examples(count, shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape))


ANGLES = np.array([0.0, 1e-3, 0.3, 0.5 * np.pi, 2.5, np.pi])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_expectations_against_quadrature(name, dtype):
    """One hidden layer of two inputs."""
    function, breaks, largest = FUNCTIONS[name]
    variances = 0.03, 1.0, largest
    deviations = np.sqrt(variances)
    x = np.array([[1.0, 0.0]]) * deviations[:, None]
    unit = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    y = (unit[:, None] * deviations[:, None]).reshape(-1, 2)
    kernel = limit(dense(function, inputs=2), fused=True)
    # Weights of variance 1/(3 · inputs), and 1/3 of the readout.
    found = kernel.evaluate("both", np.sqrt(6.0).astype(dtype) * x.astype(dtype), (np.sqrt(6.0) * y).astype(dtype))
    assert found.dtype == dtype and str(kernel).endswith("the whole network is fused on the CPU")
    expected = gaussian.hidden_layer(function, breaks, variances, tuple(ANGLES)) / 3.0
    own = expected[:, [0, 1, 2], [0, 1, 2]]
    scale = np.sqrt(own[:, :, None] * np.tile(own, len(ANGLES))[:, None])
    # Within 1e-3 of ρ = ±1 the root of 1 − ρ² turns an error of rounding into one of its root, in what jumps.
    near = np.where(np.abs(np.sin(ANGLES)) < 0.01, np.sqrt(np.finfo(dtype).eps), 0.0).repeat(3)
    rounding = near * np.outer(deviations, np.tile(deviations, len(ANGLES)))
    allowed = {"float32": 4e-6, "float64": 1e-12}[dtype]
    assert np.all(np.abs(found - expected) <= allowed * scale + 0.3 * rounding)


@pytest.mark.parametrize(
    "make",
    [dense(*[jax.nn.hard_tanh] * 2), dense(jax.nn.relu6, shrink, bias=True), dense(*[jax.nn.hard_swish] * 2)],
    ids=["hard tanh", "a jump", "hard swish"],
)
def test_dense_networks(make):
    """Zeros, equal and opposite inputs, and one so small that it reaches no threshold."""
    x, y = 1.5 * examples(19, (5,)), 1.5 * examples(9, (5,), seed=1)
    x[4], y[3] = x[2], x[7]
    x[6], x[8], x[9] = 0.0, -x[2], 1e-4 * x[1]
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    both = fused.evaluate("both", x)
    assert str(fused).endswith("the whole network is fused on the CPU")
    expected, across = plain.evaluate("both", x), plain.evaluate("both", x, y)
    # XLA does not see that inputs are equal, but does on the diagonal.
    expected[:, [2, 4], [4, 2]] = expected[:, [2], [2]]
    across[:, 7, 3] = plain.diagonal("both", x)[:, 7]
    # x[9] is parallel to x[1], and x[8] opposite to x[2]: 1 − ρ² is all rounding, and its root is in Θ.
    parallel = np.zeros((19, 19), bool)
    parallel[[1, 9], [9, 1]] = parallel[[2, 8, 4, 8], [8, 2, 8, 4]] = True
    np.testing.assert_allclose(both[:, ~parallel], expected[:, ~parallel], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(both[:, parallel], expected[:, parallel], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fused.evaluate("both", x, y), across, rtol=1e-11, atol=1e-14)
    assert np.array_equal(both, np.swapaxes(both, 1, 2))
    assert np.array_equal(np.diagonal(both[1]), fused.diagonal("ntk", x))
    assert both[1, 2, 4] == both[1, 2, 2]
    single = fused.evaluate("both", x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single[:, ~parallel], both[:, ~parallel], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 1e-9])
def test_variances_below_the_tables(scale):
    """No signal reaches the thresholds there."""
    make = dense(jax.nn.hard_tanh)
    x = examples(4, (5,))
    x[1:3] *= scale
    agree(make, x, None, 1e-12)


def test_a_jump_where_a_signal_is_zero():
    make = dense(lambda u: jnp.where(u >= 0, jnp.minimum(u, 1.0) + 1.0, 0.0), inputs=2)
    x = examples(3, (2,))
    x[1] = 0.0
    agree(make, x, None, 1e-11)


def test_convolutional_networks():
    """With a pool, behind which variances are found only once there are coefficients."""
    make = convolutional(jax.nn.hard_tanh, jax.nn.hard_tanh, "average", True)
    x, y = 3.0 * examples(3, (2, 8, 4)), 3.0 * examples(5, (2, 8, 4), seed=1)
    fused, expected = agree(make, x, y, 1e-11)
    np.testing.assert_allclose(fused.evaluate("both", x.astype(np.float32), y.astype(np.float32)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (jax.nn.hard_tanh, jax.nn.relu6),
        (jax.nn.hard_tanh, jnp.sign),
        (jax.nn.hard_tanh, lambda u: u),
        (jax.nn.hard_swish, shrink),
        (jnp.square, bent),
    ],
    ids=["relu6", "sign", "identity", "a square and jumps", "the square"],
)
def test_two_functions_of_one_signal(first, second):
    make = gated(first, second)
    x, y = examples(6, (5,)), examples(3, (5,), seed=1)
    agree(make, x, y, 1e-11)


@pytest.mark.parametrize(
    ("function", "scale", "reason"),
    [(jax.nn.hard_tanh, 60.0, "a small difference of large numbers"), (jax.nn.hard_swish, 20.0, "too many terms")],
    ids=["hard tanh", "hard swish"],
)
def test_variances_far_above_the_thresholds_are_left_to_xla(function, scale, reason):
    make = dense(function)
    x = examples(3, (5,))
    fused, plain = (limit(make, fused=f) for f in (True, False))
    np.testing.assert_array_equal(fused(scale * x), plain(scale * x))
    assert "left to XLA" in str(fused) and reason in str(fused)
    fused(x)
    assert str(fused).endswith("the whole network is fused on the CPU")


WEAK = {
    "zero around 0": lambda u: jnp.maximum(u - 1.0, 0.0),
    "zero around 0, squares": lambda u: jnp.maximum(u - 1.0, 0.0) ** 2,
    "little around 0": lambda u: 1e-2 * u + jnp.maximum(u - 1.0, 0.0) ** 2,
    "constant around 0": lambda u: 1.0 + jnp.maximum(u - 1.0, 0.0) ** 2,
    "zero beyond": lambda u: jnp.where(jnp.abs(u) < 1.0, 1.0 - u * u, 0.0),
}


@pytest.mark.parametrize("name", WEAK)
def test_small_differences_of_large_numbers_are_left_to_xla(name):
    make = dense(WEAK[name], inputs=2)
    angles = np.linspace(0.0, 3.0, 7)
    unit = np.sqrt(6.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fused, plain = (limit(make, fused=f) for f in (True, False))
    left = []
    for variance in (0.01, 0.05, 0.2, 1.0, 2.0, 4.0):
        x = np.sqrt(variance) * np.concatenate([unit, 0.9 * unit])
        expected = plain.evaluate("both", x)
        scale = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
        difference = np.abs(fused.evaluate("both", x) - expected) / (scale[:, :, None] * scale[:, None])
        assert np.max(difference) <= 1e-12
        left.append("beyond its thresholds is a small difference of large numbers" in str(fused))
    assert any(left) and not all(left)


def test_functions_that_have_no_fused_form_say_so():
    kernel = limit(dense(lambda u: jnp.sin(jnp.clip(u, -2.0, 2.0))), fused=True, input_shape=(5,))
    assert "evaluated by XLA: no fused form for the activation" in str(kernel)
    assert "it has a kink elsewhere than at 0" in str(kernel)
    places = np.linspace(-1.0, 1.1, MOST_LEVELS + 1)
    many = limit(dense(lambda u: sum(jnp.where(u > t, 1.0, 0.0) for t in places)), fused=True, input_shape=(5,))
    assert f"it has more than {MOST_LEVELS} kinks elsewhere than at 0" in str(many)
    few = limit(dense(lambda u: sum(jnp.where(u > t, 1.0, 0.0) for t in places[1:])), fused=True, input_shape=(5,))
    assert "the whole network is fused" in str(few)


@pytest.mark.parametrize("name", [*FUNCTIONS, "mirrored"])
def test_pieces_add_up_to_the_function(name):
    function = FUNCTIONS[name][0] if name != "mirrored" else lambda u: bent(-u) - 2.0
    activation = Activation(function)
    assert activation.span is not None
    found = pieces(activation.span)
    assert found is not None
    core, square, levels = found
    u = np.random.default_rng(0).uniform(-8.0, 8.0, 1000)
    total = core.one + core.linear * u + core.absolute * np.abs(u) + core.sign * np.sign(u) + square * u**2
    for level in levels:
        beyond = np.maximum(level.sign * u - level.threshold, 0.0)
        total += sum(c * beyond**n * (beyond > 0.0) for n, c in enumerate(level.coefficients))
        assert level.threshold > 0.0
    with jax.enable_x64(True):
        np.testing.assert_allclose(total, np.asarray(function(jnp.asarray(u))), rtol=1e-11, atol=1e-11)


def test_smooth_tails_against_owens_t():
    """T(h, ∞) − T(h, α) = W t g_h(s), for α² = 1/t² − 1."""
    s = np.linspace(0.02, 1.0, 50)
    for h in (0.05, 0.3, 1.0, 2.5, 5.0):
        chi = h * s / (1.0 + h - s)
        t, alpha = 2.0 * chi / (1.0 + chi**2), (1.0 - chi**2) / (2.0 * chi)
        found = smooth_tail(np.array([h]), s)[0] * t * np.exp(-0.5 * (h / t) ** 2) / (2.0 * np.pi)
        np.testing.assert_allclose(found, owens_t(h, np.inf) - owens_t(h, alpha), rtol=0.0, atol=2e-16)


def test_chebyshev_polynomials_become_powers():
    found, lanes = np.random.default_rng(0).normal(size=(12, 4)), 4
    expected = np.stack([np.polynomial.chebyshev.cheb2poly(found[2:11, lane]) for lane in range(lanes)], axis=1)
    expected = np.concatenate([found[:2], expected, found[11:]])
    to_powers(found.reshape(-1), 2 * lanes, 9, lanes)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", CHEBYSHEV)
def test_tables_hold_smooth_tails(dtype):
    table, s = table_of(1.5, 1), np.linspace(0.01, 1.0, 50)
    variances = np.geomspace(0.01, 30.0, 30)
    columns = table.at(variances)
    h = 1.5 / np.sqrt(variances)
    found = np.polynomial.chebyshev.chebval(2.0 * s - 1.0, columns[:, 3 : 3 + CHEBYSHEV[dtype]].T)
    error = np.abs(found - smooth_tail(h, s)) * np.exp(-0.5 * h * h)[:, None]
    assert np.max(error) <= {"float32": 2e-6, "float64": 1e-12}[dtype]
    left_out = np.sqrt(table.left_out(variances[0], variances[-1], dtype)[1])
    assert left_out <= {"float32": 1.5e-6, "float64": 5e-13}[dtype]
    assert np.sqrt(table.left_out(1.0, 1e3, dtype)[1]) > 1e-8


@pytest.mark.parametrize("dtype", CHEBYSHEV)
def test_mills_ratio(dtype):
    y = np.concatenate([np.linspace(0.0, 8.0, 400), np.geomspace(8.0, 1e8, 50)])
    r = 1.0 / (1.0 + BEND * y)
    found = r * np.polynomial.polynomial.polyval(r, mills(dtype))
    exact = np.sqrt(np.pi / 2.0) * erfcx(y / np.sqrt(2.0))
    assert np.max(np.abs(found - exact)) <= {"float32": 6e-7, "float64": 1e-14}[dtype]
