"""Properties that every limit kernel has, on networks over positions: symmetry, positivity, invariances, precision."""

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency import limit
from tangency.errors import InputError, UnsupportedModelError

SHAPE = (2, 4, 3)


class Convolutional(eqx.Module):
    """Two convolutions with a skip connection, a norm, and a pooled or flattened readout."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    last: eqx.nn.Linear
    pooled: bool

    def __init__(self, key, pooled=True):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(2, 12, 3, padding=1, key=k1)
        self.second = eqx.nn.Conv2d(12, 12, 2, padding=((0, 1), (1, 0)), key=k2)
        self.norm = eqx.nn.GroupNorm(2, 12)
        self.last = eqx.nn.Linear(12 if pooled else 12 * 12, 1, key=k3)
        self.pooled = pooled

    def __call__(self, x):
        h = self.first(x)
        h = self.norm(h) + self.second(jax.nn.relu(h))
        return self.last(h.mean((1, 2)) if self.pooled else h.ravel())


POOLED = limit(Convolutional)
FLAT = limit(lambda key: Convolutional(key, pooled=False))
seeds = st.integers(0, 2**31 - 1)


def images(seed, n=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *SHAPE)) * 10.0 ** rng.uniform(-2, 1)
    x[-1] = x[0]
    return x


@pytest.mark.parametrize("kernel", [POOLED, FLAT], ids=["pooled", "flat"])
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_symmetric_and_positive(kernel, seed):
    x = images(seed)
    for matrix in kernel.both(x):
        assert np.array_equal(matrix, matrix.T)
        eigenvalues = np.linalg.eigvalsh(matrix)
        assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]


@pytest.mark.parametrize("kernel", [POOLED, FLAT], ids=["pooled", "flat"])
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_the_diagonal_is_that_of_the_matrix_and_of_the_cross_kernel(kernel, seed):
    x = images(seed)
    for kind in ("nngp", "ntk"):
        diagonal = kernel.diagonal(kind, x)
        assert np.array_equal(np.diag(kernel.evaluate(kind, x)), diagonal)
        np.testing.assert_allclose(np.diag(kernel.evaluate(kind, x, x.copy())), diagonal, rtol=1e-7)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_entries_do_not_depend_on_their_neighbours(seed):
    x = images(seed)
    whole, order = POOLED(x), np.random.default_rng(seed).permutation(len(x))
    np.testing.assert_allclose(POOLED(x[order], x), whole[order], rtol=1e-7)
    np.testing.assert_allclose(POOLED(x[:1], x[1:3]), whole[:1, 1:3], rtol=1e-12)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_single_precision_is_close_to_double(seed):
    x = images(seed)
    for single, double in zip(POOLED.both(x.astype(np.float32)), POOLED.both(x), strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=2e-3)


def test_turned_images_under_a_pooled_network_with_symmetric_filters_keep_their_kernel(rng):
    """Mirroring every image mirrors every position, which an average does not see."""

    def make(key):
        k1, k2 = jax.random.split(key)
        pool = eqx.nn.Lambda(lambda h: jax.nn.relu(h).mean((1, 2)))
        return eqx.nn.Sequential([eqx.nn.Conv2d(2, 12, 3, padding=1, key=k1), pool, eqx.nn.Linear(12, 1, key=k2)])

    x = rng.normal(size=(3, *SHAPE))
    kernel = limit(make)
    np.testing.assert_allclose(kernel(x[:, :, ::-1]), kernel(x), rtol=1e-13)


def test_contributions_of_the_parameters_sum_to_the_kernel(rng):
    x, y = rng.normal(size=(3, *SHAPE)), rng.normal(size=(2, *SHAPE))
    for arguments in ((x,), (x, y)):
        parts = POOLED.contributions(*arguments)
        assert set(parts) == {f"{a}.{b}" for a in ("first", "second", "norm", "last") for b in ("weight", "bias")}
        np.testing.assert_allclose(sum(parts.values()), POOLED(*arguments), rtol=1e-12)
    np.testing.assert_allclose(parts["last.bias"], 1 / 36, rtol=1e-14)
    with pytest.raises(InputError, match="contributions: needs concrete arrays"):
        jax.jit(lambda z: POOLED.contributions(z)["last.bias"])(x)


def test_frozen_parameters_contribute_nothing(rng):
    x = rng.normal(size=(3, *SHAPE))
    trainable = jax.tree.map(lambda _: True, eqx.filter(Convolutional(jax.random.key(0)), eqx.is_array))
    trainable = eqx.tree_at(lambda m: m.first.weight, trainable, False)
    frozen = limit(Convolutional, trainable=trainable)
    np.testing.assert_allclose(frozen(x), POOLED(x) - POOLED.contributions(x)["first.weight"], rtol=1e-12)


@pytest.mark.parametrize("inner", [2, 24])
def test_a_narrow_inner_width_is_remarked_on(inner):
    def make(key):
        k1, k2, k3 = jax.random.split(key, 3)
        layers = [eqx.nn.Linear(4, 32, key=k1), eqx.nn.Linear(32, inner, key=k2), eqx.nn.Linear(inner, 32, key=k3)]
        return eqx.nn.Sequential([*layers, eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(32, 1, key=k3)])

    with pytest.raises(UnsupportedModelError, match="same random numbers"):
        limit(make)(np.ones((2, 4)))
    text = str(limit(lambda key: _narrow(key, inner), input_shape=(4,)))
    assert ("reads only 2 units" in text) == (inner == 2)


def _narrow(key, inner):
    keys = jax.random.split(key, 4)
    sizes = [(4, 32), (32, inner), (inner, 32), (32, 1)]
    return eqx.nn.Sequential([eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, keys, strict=True)])


def test_branches_on_constants_are_taken(rng):
    def make(deep):
        def apply(p, x):
            h = p["w"] @ x
            h = jax.lax.cond(deep, lambda h: p["u"] @ jax.nn.relu(h), lambda h: h, h)
            return p["v"] @ h

        def init(key):
            shapes = {"w": (16, 4), "u": (16, 16), "v": (1, 16)}
            keys = jax.random.split(key, 3)
            return {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

        return limit((init, apply))

    x = rng.normal(size=(3, 4))
    np.testing.assert_allclose(make(False).nngp(x), x @ x.T / 16, rtol=1e-13)
    assert np.all(make(True).nngp(x) != make(False).nngp(x))


def test_a_stopped_gradient_keeps_the_values_and_loses_the_tangent(rng):
    def init(key):
        k1, k2 = jax.random.split(key)
        return {"w": jax.random.normal(k1, (16, 4)), "v": jax.random.normal(k2, (1, 16)) / 4}

    def apply(p, x):
        return p["v"] @ jax.lax.stop_gradient(jax.nn.relu(p["w"] @ x))

    x = rng.normal(size=(3, 4))
    k, theta = limit((init, apply)).both(x)
    np.testing.assert_allclose(theta, k, rtol=1e-13)
    moved = limit((init, lambda p, x: p["v"] @ jax.nn.relu(p["w"] @ x)))
    np.testing.assert_allclose(k, moved.nngp(x), rtol=1e-13)
    assert np.all(np.diag(moved(x)) > np.diag(theta))


def test_parameters_hidden_in_a_closure_are_an_error():
    def make(key):
        k1, k2 = jax.random.split(key)
        last = eqx.nn.Linear(12, 1, key=k2)
        return eqx.nn.Sequential([eqx.nn.Linear(4, 12, key=k1), eqx.nn.Lambda(lambda h: last(jax.nn.relu(h)))])

    with pytest.raises(InputError, match="not part of the network that the function returned"):
        limit(make)(np.ones((2, 4)))
