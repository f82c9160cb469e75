"""Properties that hold for every function and every covariance, by Hypothesis."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.limit.duals import dual, product_mean

NAMES = ["relu", "relu6", "elu"]
variances = st.floats(1e-4, 8.0)
correlations = st.floats(-1.0, 1.0)


def _compiled(activation):
    def evaluate(name_f, name_g):
        f, g = activation(name_f), activation(name_g)
        return jax.jit(lambda a, b, c: dual(f, g, a, b, c, order=512)), jax.jit(lambda a: product_mean(f, f, a))

    return evaluate


@pytest.mark.parametrize(("f", "g"), [("relu", "gelu"), ("tanh", "elu")])
def test_symmetry_and_cauchy_schwarz(f, g, activation):
    forward, square_f = _compiled(activation)(f, g)
    backward, square_g = _compiled(activation)(g, f)

    @settings(max_examples=40, deadline=None, database=None)
    @given(variances, variances, correlations)
    def check(a, b, rho):
        with jax.enable_x64(True):
            c = rho * np.sqrt(a * b)
            value, bound = float(forward(a, b, c)), np.sqrt(float(square_f(a)) * float(square_g(b)))
            assert abs(value - float(backward(b, a, c))) <= 1e-13 * bound
            assert abs(value) <= bound * (1.0 + 1e-9)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_gram_matrices_are_positive_semidefinite_and_single_precision_is_close(name, activation):
    f = activation(name)
    gram = jax.jit(
        lambda c: jax.vmap(jax.vmap(lambda a, b, c: dual(f, f, a, b, c, order=512), (None, 0, 0)), (0, None, 0))(
            c.diagonal(), c.diagonal(), c
        )
    )

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), st.floats(0.05, 2.0))
    def check(seed, scale):
        x = np.random.default_rng(seed).normal(size=(6, 3)) * scale
        # A repeated, an opposite and a zero example.
        x = np.concatenate([x, x[:1], -x[1:2], 0.0 * x[:1]])
        covariance = (x @ x.T).astype(np.float32)
        with jax.enable_x64(True):
            values = np.asarray(gram(covariance.astype(np.float64)))
        assert np.linalg.eigvalsh(values).min() >= -1e-6 * np.trace(values)
        single = gram(covariance)
        assert single.dtype == np.float32
        assert np.max(np.abs(single - values)) <= 1e-5 * np.max(np.abs(values))

    check()


def test_coefficients_belong_to_examples_not_to_pairs(activation):
    """Under two vmaps the work of an entry is the series alone, however dear the coefficients are."""
    f = activation("tanh")

    def work(n):
        pairs = jax.vmap(jax.vmap(lambda a, b, c: dual(f, f, a, b, c, order=64), (None, 0, 0)), (0, None, 0))
        shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in [(n,), (n,), (n, n)]]
        return jax.jit(pairs).lower(*shapes).compile().cost_analysis()["flops"]

    # Doubling n quadruples the entries but only doubles the coefficients.
    assert (work(400) - 2.0 * work(200)) / (400**2 - 2 * 200**2) < 1000.0
