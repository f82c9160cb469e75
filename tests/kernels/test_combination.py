"""Sums, products, multiples and mapped inputs, entry by entry, and against networks that have such kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, DotProduct

import tangency as tg
from tangency.errors import InputError
from tests.oracles.flow import FeatureKernel

A, B = FeatureKernel(7, 3), FeatureKernel(5, 3, seed=1)


@pytest.fixture
def x(rng):
    return rng.normal(size=(6, 3))


@pytest.mark.parametrize("kind", ["nngp", "ntk", "both"])
def test_entry_by_entry(x, kind):
    for first, second in ((x, None), (x, x[:2])):
        a, b = A.evaluate(kind, first, second), B.evaluate(kind, first, second)
        combined = 2.0 * (A + B) * A
        np.testing.assert_allclose(combined.evaluate(kind, first, second), 2 * (a + b) * a, rtol=1e-15)
    np.testing.assert_allclose((3 * A * B).diagonal(kind, x), 3 * A.diagonal(kind, x) * B.diagonal(kind, x), rtol=1e-15)


def test_a_sum_of_networks_has_the_sum_of_kernels(x):
    """The traced limit of f + √2 g, with independent branches, against limits of the branches."""

    def branch(activation, key):
        return eqx.nn.MLP(3, 1, 64, 1, activation=activation, key=key)

    class Both(eqx.Module):
        parts: list

        def __call__(self, x):
            return self.parts[0](x) + jnp.sqrt(2.0).astype(x.dtype) * self.parts[1](x)

    def make(key):
        first, second = jax.random.split(key)
        return Both([branch(jax.nn.relu, first), branch(jnp.sin, second)])

    f, g = tg.limit(lambda key: branch(jax.nn.relu, key)), tg.limit(lambda key: branch(jnp.sin, key))
    for found, expected in zip((f + 2 * g).both(x), tg.limit(make).both(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6)  # √2 is a float32 constant of the traced network


def test_mapped_inputs(x):
    kernel = A.of(lambda v: jnp.sin(v)[::-1])
    mapped = np.sin(x)[:, ::-1]
    np.testing.assert_allclose(kernel(x, x[:2]), A(mapped, mapped[:2]), rtol=1e-14)
    np.testing.assert_allclose(kernel.diagonal("nngp", x), A.diagonal("nngp", mapped), rtol=1e-14)
    assert kernel(x).dtype == np.float64
    assert kernel(x.astype(np.float32), x[:1].astype(np.float32)).shape == (6, 1)
    np.testing.assert_array_equal(kernel(x.tolist()), kernel(x))


def test_they_stay_symmetric_and_are_usable_downstream(x):
    kernel = 0.5 * tg.FunctionKernel(RBF()) * tg.FunctionKernel(DotProduct()).of(jnp.tanh) + A
    matrix = tg.gram(kernel, x)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isfinite(tg.NTKRegressor(kernel).fit(x, x[:, 0]).predict(x)).all()


def test_progress_runs_once_to_the_end(x):
    seen = []
    (A + B + A).evaluate("ntk", x, progress=lambda done, total: seen.append(done / total))
    assert seen == [0.25, 0.5, 1]


def test_jax_inputs_stay_with_jax(x):
    kernel = tg.FunctionKernel(lambda a, b: a @ b.T).of(jnp.tanh) * 2
    found = jax.jit(kernel)(jnp.asarray(x))
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found, 2 * np.tanh(x) @ np.tanh(x).T, rtol=2e-5, atol=1e-5)


def test_refusals(x):
    for factor in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="finite number ≥ 0"):
            factor * A
    with pytest.raises(TypeError):
        A + 1
    with pytest.raises(InputError, match="x1: the mapping failed on an example of shape"):
        A.of(lambda v: v @ jnp.ones((4, 4)))(x)
    with pytest.raises(InputError, match="has no 'both' kernel"):
        tg.gram(A + tg.empirical(eqx.nn.Linear(3, 1, key=jax.random.key(0))), x, kind="both")
