"""Finite NTKs against explicit Jacobians, in float64."""

import jax
import numpy as np
import pytest

import tangency as tg
from tests.finite_networks import NETWORKS, examples, made
from tests.oracles.jacobian import ntk

METHODS = ["auto", "structured", "jacobian", "products"]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        model, options, function, parameters = made(request.param, jax.random.key(0))
        x, y = examples(request.param, rng, 3), examples(request.param, rng, 2)
        return model, options, x, y, ntk(function, parameters, x, y), ntk(function, parameters, x, x)


@pytest.mark.parametrize("method", METHODS)
def test_all_pairs_of_outputs(case, method):
    model, options, x, y, expected, symmetric = case
    kernel = tg.empirical(model, outputs="full", method=method, **options)
    close(kernel(x, y), expected)
    if method == "auto":
        found = kernel(x)
        close(found, symmetric)
        np.testing.assert_array_equal(found, found.transpose(1, 0, 3, 2))


def test_other_pairings(case):
    model, options, x, y, expected, _ = case
    diagonal = np.einsum("nmoo->nmo", expected)
    close(tg.empirical(model, outputs="diagonal", **options)(x, y), diagonal)
    close(tg.empirical(model, **options)(x, y), diagonal.mean(-1))


OPERATORS = ["Equinox MLP", "Equinox CNN", "Flax transformer", "Equinox RNN", "Flax embedding"]


@pytest.mark.parametrize("case", OPERATORS, indirect=True)
def test_products_of_the_operator(case):
    model, options, x, y, expected, _ = case
    v = np.array([1.0, -0.5])
    mean = np.einsum("nmoo->nm", expected) / expected.shape[-1]
    close(tg.empirical(model, **options).operator(x, y) @ v, mean @ v)
