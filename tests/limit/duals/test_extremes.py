"""Values at variances far from 1: nearly jumps, nearly lines, and numbers near the ends of a precision's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special

from tangency.errors import AccuracyError
from tangency.limit.duals import Activation, dual, mean, product_mean, required_order
from tests.limit.duals.functions import CLOSED, NUMERICAL
from tests.oracles import gaussian as oracle

SINGLE = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("name", ["tanh", "tanh gelu", "mish", "selu", "soft sign", "log"])
def test_functions_without_closed_form_and_their_derivatives(name, slope, activation):
    f, breaks = activation(name), NUMERICAL[name].breaks
    f = f.derivative if slope else f
    order = required_order(f, f, np.array([400.0, 1e4]))
    with jax.enable_x64(True):
        function = jax.jit(jax.vmap(f.function))

        def values(u):
            return np.asarray(function(u.ravel())).reshape(u.shape)

        evaluate = jax.jit(lambda a, b, c: dual(f, f, a, b, c, order=order))
        for a, b, rho in ((1e4, 1e4, 1.0 - 1e-4), (1e-4, 1e4, -0.9), (2e3, 2e3, -1.0)):
            assert required_order(f, f, np.array([a, b])) == order
            size = [oracle.mean(lambda u: values(u) ** 2, x, breaks) for x in (a, b)]
            expected = oracle.dual(values, values, a, b, rho, breaks, breaks)
            assert abs(float(evaluate(a, b, rho * np.sqrt(a * b))) - expected) < 1e-8 * np.sqrt(np.prod(size))


def test_a_mixed_order_serves_every_variance(activation):
    """The order that a large variance asks for is good for small ones, and for pairs that have no windows."""
    tanh, relu, kinked = (activation(name) for name in ("tanh", "relu", "kinks and jump"))
    with jax.enable_x64(True):
        windows = required_order(tanh, tanh, np.array([1e4]))
        pairs = [(tanh, tanh, 1e-9, 1e-9), (tanh, tanh, 1e-5, 2.0), (tanh, relu, 1e-3, 1e-2), (tanh, tanh, 0.3, 5.0)]
        for f, g, a, b in pairs:
            c = 0.7 * np.sqrt(a * b)
            expected = float(jax.jit(lambda f=f, g=g, a=a, b=b, c=c: dual(f, g, a, b, c, order=1024))())
            assert float(dual(f, g, a, b, c, order=windows)) == pytest.approx(expected, rel=1e-8)
        assert kinked.mixture is None


@pytest.mark.parametrize("precise", [False, True])
def test_gradients_where_windows_serve(precise, activation):
    tanh = activation("tanh")
    order = required_order(tanh, tanh, np.array([500.0]))
    dtype, tolerance = (np.float64, 1e-7) if precise else (np.float32, 1e-3)
    with jax.enable_x64(precise):
        gradient = jax.jit(jax.grad(lambda x: dual(tanh, tanh, x[0], x[1], x[2], order=order)))
        slopes = jax.jit(lambda a, b, c: dual(tanh.derivative, tanh.derivative, a, b, c, order=order))
        for a, b, c in ((500.0, 700.0, 300.0), (500.0, 500.0, 500.0)):
            by_a, by_b, by_c = gradient(np.array([a, b, c], dtype))
            assert float(by_c) == pytest.approx(float(slopes(*np.array([a, b, c], dtype))), rel=tolerance)
            assert np.isfinite(by_a) and np.isfinite(by_b)


def test_beyond_the_promised_range_there_is_a_refusal(activation):
    for name, variance in (("soft sign", 1e6), ("kinks and jump", 1e3)):
        with pytest.raises(AccuracyError, match=rf"{name} at variance 1e\+0\d|{name} at variance 1000"):
            required_order(activation(name), activation(name), np.array([variance]))


@pytest.mark.parametrize("name", ["hard tanh", "relu6"])
@pytest.mark.parametrize("precise", [False, True])
def test_clipped_functions_at_any_scale(name, precise, activation):
    f, case = activation(name), CLOSED[name]
    with jax.enable_x64(precise):
        dtype, tolerance = (np.float64, 1e-9) if precise else (np.float32, 3e-5)
        evaluate = jax.jit(lambda a, b, c: dual(f, f, a, b, c))
        for a, b in ((1e-6, 1e-6), (1e2, 1e8), (1e6, 1e6), (1e16, 1e16)):
            for rho in (0.5, -0.75, 1.0, -1.0):
                expected = oracle.dual(case.numpy, case.numpy, a, b, rho, case.breaks, case.breaks)
                size = [oracle.mean(lambda u: case.numpy(u) ** 2, x, case.breaks) for x in (a, b)]
                computed = evaluate(*(dtype(x) for x in (a, b, rho * np.sqrt(a * b))))
                assert abs(float(computed) - expected) < tolerance * np.sqrt(np.prod(size))


def test_sine_and_rectifier_of_tiny_inputs(activation):
    sine, cosine = Activation(jnp.sin), Activation(lambda u: jnp.cos(2.0 * u))
    single = [np.float32(x) for x in (1e-12, 4e-12, 1e-12)]
    assert float(dual(sine, sine, *single)) == pytest.approx(1e-12, rel=8 * SINGLE)
    assert float(dual(cosine, cosine, *single)) == pytest.approx(1.0, rel=8 * SINGLE)
    # E[sin u sin v] at u = v is (1 − e^(−2a))/2.
    assert float(dual(sine, sine, *[np.float32(1e4)] * 3)) == pytest.approx(0.5, rel=8 * SINGLE)
    by_c = jax.grad(lambda c: dual(sine, sine, np.float32(1.0), np.float32(1.0), c))(np.float32(0.0))
    assert float(by_c) == pytest.approx(np.exp(-1.0), rel=8 * SINGLE)
    with jax.enable_x64(True):
        assert float(dual(sine, sine, 1e-16, 1e-16, -1e-16)) == pytest.approx(-1e-16, rel=1e-14)
    relu = activation("relu")
    for a in (1e-12, 1e-30):
        # arccos ρ = π/3 at ρ = 1/2.
        expected = a / (2.0 * np.pi) * (np.sqrt(0.75) + 0.5 * (np.pi - np.pi / 3.0))
        computed = float(dual(relu, relu, np.float32(a), np.float32(a), np.float32(0.5 * a)))
        assert computed == pytest.approx(expected, rel=8 * SINGLE)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_single_precision_rounded(dtype, activation):
    for f in (activation("tanh"), activation("relu6")):
        half = [jnp.asarray(x, dtype) for x in (1.5, 2.0, 1.25)]
        single = [x.astype(jnp.float32) for x in half]
        for value in (lambda a, b, c, f=f: dual(f, f, a, b, c), lambda a, *_, f=f: mean(f, a)):
            assert value(*half).dtype == dtype
            assert value(*half) == value(*single).astype(dtype)
        assert product_mean(f, f, half[0]) == product_mean(f, f, single[0]).astype(dtype)


def test_windows_are_found_by_the_values_alone():
    """Other spellings and scales of slowly saturating and rapidly varying functions."""
    for function in (
        lambda u: jnp.tanh(5.0 * u),
        lambda u: jnp.arctan(u) + 0.1 * u,
        lambda u: jnp.exp(-jnp.abs(u)),
        lambda u: 1.0 / (1.0 + u * u),
        lambda u: 0.5 * (u + jnp.sqrt(u * u + 4.0)),
        lambda u: u * special.expit(1.702 * u),
        jax.nn.log_sigmoid,
    ):
        assert Activation(function).mixture is not None
    assert Activation(lambda u: jnp.tanh(u) * jnp.cos(8.0 * u) * jnp.exp(0.01 * u)).mixture is None
