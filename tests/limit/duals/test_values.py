"""Values against nested quadrature and against the formulas of the papers."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tangency.limit.duals import Activation, dual, mean, product_mean, required_order
from tests.limit.duals.functions import CLOSED, NUMERICAL
from tests.oracles import gaussian as oracle

CORRELATIONS = [0.6, -0.95, 1.0 - 1e-12, 1.0, -1.0]


def _norm(case, a, b):
    squares = (oracle.mean(lambda u: case.numpy(u) ** 2, x, case.breaks) for x in (a, b))
    return np.sqrt(np.prod(list(squares)))


def _worst_error(f, case, a, b, order):
    worst = 0.0
    evaluate = jax.jit(lambda a, b, c: dual(f, f, a, b, c, order=order or None))
    for correlation in CORRELATIONS:
        expected = oracle.dual(case.numpy, case.numpy, a, b, correlation, case.breaks, case.breaks)
        computed = float(evaluate(a, b, correlation * np.sqrt(a * b)))
        worst = max(worst, abs(computed - expected))
    return worst / _norm(case, a, b)


def test_oracle_agrees_with_arbitrary_precision():
    a, b, rho = 1.3, 0.7, 0.8

    def inner(z):
        centre, spread = rho * z, mpmath.sqrt(1 - rho**2)
        kink = -centre / spread
        return mpmath.quad(
            lambda w: mpmath.npdf(w) * mpmath.sqrt(b) * (centre + spread * w),
            [kink, max(kink, 0) + 9],
        )

    with mpmath.workdps(15):
        exact = mpmath.quad(lambda z: mpmath.npdf(z) * mpmath.tanh(mpmath.sqrt(a) * z) * inner(z), [-9, 0, 9])
    ours = oracle.dual(np.tanh, lambda v: np.maximum(v, 0.0), a, b, rho, (), (0.0,))
    assert ours == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        *((name, 0.6, 11.0) for name in CLOSED),
        *((name, 1e-4, 1e-4) for name in ("relu", "gelu", "relu6", "hard swish")),
    ],
)
def test_closed_forms(name, a, b, activation):
    f = activation(name)
    with jax.enable_x64(True):
        assert required_order(f, f, np.array([a, b])) == 0
        # Jumps turn a rounding error ε of ρ next to ±1 into √ε.
        jumps = name == "step"
        assert _worst_error(f, CLOSED[name], a, b, 0) < (1e-7 if jumps else 1e-12)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [*((name, 6.0, 6.0) for name in NUMERICAL), *((name, 1e-4, 3.0) for name in ("softplus", "selu", "soft sign"))],
)
def test_numerical_rule(name, a, b, activation):
    f = activation(name)
    order = required_order(f, f, np.array([a, b]))
    assert order > 0
    with jax.enable_x64(True):
        jumps = name == "kinks and jump"
        assert _worst_error(f, NUMERICAL[name], a, b, order) < (1e-7 if jumps else 1e-9)


@pytest.mark.parametrize("name", ["tanh", "selu", "mish"])
def test_numerical_rule_at_variance_50(name, activation):
    f, case = activation(name), NUMERICAL[name]
    order = required_order(f, f, np.array([50.0]))
    with jax.enable_x64(True):
        value = float(dual(f, f, 50.0, 50.0, 49.99, order=order))
    expected = oracle.dual(case.numpy, case.numpy, 50.0, 50.0, 49.99 / 50.0, case.breaks, case.breaks)
    assert abs(value - expected) < 1e-9 * _norm(case, 50.0, 50.0)


@pytest.mark.parametrize(
    ("f_name", "g_name"),
    [
        ("relu", "gelu"),
        ("relu", "hard tanh"),
        ("leaky", "step"),
        ("cubic", "relu6"),
        ("cubic", "elu"),
        ("exp", "gauss"),
        ("exp", "u sin 2u"),
        ("gelu", "gelu'"),
        ("relu", "sin + cos"),
        ("hard swish", "erf"),
        ("tanh", "relu"),
        ("elu", "log"),
    ],
)
def test_two_different_functions(f_name, g_name, activation):
    f, g = activation(f_name), activation(g_name)
    f_case, g_case = (CLOSED | NUMERICAL)[f_name], (CLOSED | NUMERICAL)[g_name]
    a, b, rho = 0.8, 2.3, 0.85
    order = required_order(f, g, np.array([a, b]))
    expected = oracle.dual(f_case.numpy, g_case.numpy, a, b, rho, f_case.breaks, g_case.breaks)
    swapped = oracle.dual(g_case.numpy, f_case.numpy, a, b, rho, g_case.breaks, f_case.breaks)
    with jax.enable_x64(True):
        c = rho * np.sqrt(a * b)
        assert float(dual(f, g, a, b, c, order=order or None)) == pytest.approx(expected, abs=1e-9)
        assert float(dual(g, f, a, b, c, order=order or None)) == pytest.approx(swapped, abs=1e-9)
        together = oracle.mean(lambda u: f_case.numpy(u) * g_case.numpy(u), a, (*f_case.breaks, *g_case.breaks))
        assert float(product_mean(f, g, a)) == pytest.approx(together, rel=1e-12, abs=1e-13)
        assert float(mean(f, a)) == pytest.approx(oracle.mean(f_case.numpy, a, f_case.breaks), rel=1e-12, abs=1e-13)


def test_arc_cosine_kernels(activation):
    """Cho & Saul (2009), eqs. (3)–(6): orders 0, 1 and 2, at half their normalisation."""
    with jax.enable_x64(True):
        for angle in (0.0, 1e-6, 0.3, 1.5, 3.0, np.pi):
            a, b = 2.0, 3.0
            c = np.sqrt(a * b) * np.cos(angle)
            sine, rest = np.sin(angle), np.pi - angle
            first = sine + rest * np.cos(angle)
            second = 3.0 * sine * np.cos(angle) + rest * (1.0 + 2.0 * np.cos(angle) ** 2)
            assert float(dual(activation("step"), activation("step"), a, b, c)) == pytest.approx(
                rest / (2.0 * np.pi), abs=3e-9
            )
            assert float(dual(activation("relu"), activation("relu"), a, b, c)) == pytest.approx(
                np.sqrt(a * b) * first / (2.0 * np.pi), abs=1e-14
            )
            squared = activation("squared relu")
            assert float(dual(squared, squared, a, b, c)) == pytest.approx(a * b * second / (2.0 * np.pi), abs=1e-13)


def test_error_function_kernel():
    """Williams (1997), eq. (11), for a slope that only the jaxpr knows."""
    f = Activation(lambda u: jax.lax.erf(0.8130123 * u))
    beta, a, b, c = 0.8130123, 1.7, 0.4, -0.6
    expected = 2.0 / np.pi * np.arcsin(2 * beta**2 * c / np.sqrt((1 + 2 * beta**2 * a) * (1 + 2 * beta**2 * b)))
    with jax.enable_x64(True):
        assert float(dual(f, f, a, b, c)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", ["relu", "gelu", "hard swish", "tanh", "elu"])
def test_the_dual_meets_the_diagonal(name, activation):
    f = activation(name)
    order = required_order(f, f, np.array([1.3])) * 8
    with jax.enable_x64(True):
        on_diagonal = float(product_mean(f, f, 1.3))
        assert float(dual(f, f, 1.3, 1.3, 1.3, order=order or None)) == pytest.approx(on_diagonal, rel=1e-12)
        assert float(dual(f, f, 1.3, 1.3, 1.3 * (1 + 4e-16), order=order or None)) == pytest.approx(
            on_diagonal, rel=1e-12
        )


def test_parameters_differ_from_example_to_example(activation):
    f = Activation(lambda u, gain, shift: gain * jnp.tanh(u) + shift, parameters=2)
    tanh = activation("tanh")
    gains, shifts = np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.0, -0.3])
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(lambda p, q: dual(f, f, 1.0, 2.0, 0.7, (p, q), (p, q))))(gains, shifts)
        plain = float(dual(tanh, tanh, 1.0, 2.0, 0.7))
        np.testing.assert_allclose(values, gains**2 * plain + shifts**2, rtol=1e-12)
        expected = gains**2 * float(product_mean(tanh, tanh, 2.0)) + shifts**2
        diagonal = jax.jit(jax.vmap(lambda p, q: product_mean(f, f, 2.0, (p, q), (p, q))))(gains, shifts)
        np.testing.assert_allclose(diagonal, expected, rtol=1e-12)
        np.testing.assert_allclose(jax.vmap(lambda p, q: mean(f, 2.0, (p, q)))(gains, shifts), shifts, atol=1e-14)
