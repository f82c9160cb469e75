"""Fourier features before a kernel and before a network: two ways to one kernel."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tangency as tg
from tangency.errors import InputError

FEATURES = {
    "basic": tg.FourierFeatures.basic(2),
    "positional": tg.FourierFeatures.positional(2, 3, 4.0),
    "gaussian": tg.FourierFeatures.gaussian(2, 5, 1.7, key=jax.random.key(0)),
}


def equinox_model(width):
    return lambda key: eqx.nn.MLP(width, 1, 64, 1, activation=jax.nn.relu, key=key)


def flax_model(width):
    def make(key):
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(width, 64, rngs=rngs), jax.nn.relu, nnx.Linear(64, 1, rngs=rngs))

    return make


def pair(width):
    def init(key):
        first, second = jax.random.split(key)
        return jax.random.normal(first, (64, width)) / np.sqrt(width), jax.random.normal(second, (1, 64)) / 8

    return init, lambda p, v: p[1] @ jnp.tanh(p[0] @ v)


@pytest.fixture
def x(rng):
    return rng.uniform(size=(5, 2))


def test_the_mappings_are_those_of_the_paper(x):
    basic = np.concatenate([np.cos(2 * np.pi * x), np.sin(2 * np.pi * x)], axis=1)
    np.testing.assert_allclose(FEATURES["basic"](x), basic, atol=1e-6)
    with jax.enable_x64(True):
        found = np.asarray(FEATURES["positional"](jnp.asarray(x[0])))
    for j in range(3):
        for axis in range(2):
            angle = 2 * np.pi * 4.0 ** (j / 3) * x[0, axis]
            np.testing.assert_allclose(found[2 * j + axis], np.cos(angle), atol=1e-13)
            np.testing.assert_allclose(found[6 + 2 * j + axis], np.sin(angle), atol=1e-13)
    matrix = tg.FourierFeatures.gaussian(4, 3000, 2.5, key=jax.random.key(1)).frequencies
    assert matrix.shape == (3000, 4)
    assert abs(matrix.std() - 2.5) < 4 * 2.5 / np.sqrt(2 * matrix.size)


@pytest.mark.parametrize(
    ("name", "model"),
    [("basic", equinox_model), ("positional", pair), ("gaussian", flax_model)],
)
def test_a_kernel_of_mapped_inputs_is_the_limit_of_the_network_behind_the_mapping(x, name, model):
    features = FEATURES[name]
    network = model(2 * len(features.frequencies))
    mapped = tg.limit(network).of(features)
    inside = tg.limit(features.into(network))
    for found, expected in zip(mapped.both(x, x[:2]), inside.both(x, x[:2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_ntk_of_fourier_features_is_invariant_to_shifts(x):
    kernel = tg.limit(equinox_model(10)).of(FEATURES["gaussian"])
    np.testing.assert_allclose(kernel(x + 0.37), kernel(x), rtol=1e-10)


def test_frequencies_do_not_train():
    make = FEATURES["gaussian"].into(equinox_model(10))
    leaves = jax.tree.leaves(eqx.filter(make(jax.random.key(0)), eqx.is_array))
    assert sorted(leaf.shape for leaf in leaves) == sorted(
        leaf.shape for leaf in jax.tree.leaves(eqx.filter(equinox_model(10)(jax.random.key(0)), eqx.is_array))
    )


def test_dropout_behind_the_mapping_keeps_its_key():
    class Dropping(eqx.Module):
        inner: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x, *, key=None):
            return self.dropout(self.inner(x), key=key)

    network = FEATURES["basic"].into(lambda key: Dropping(eqx.nn.Linear(4, 30, key=key), eqx.nn.Dropout(0.5)))
    out = network(jax.random.key(0))(jnp.ones(2), key=jax.random.key(1))
    assert 0 < np.count_nonzero(out) < 30


def test_refusals(x):
    with pytest.raises(InputError, match="take 2 inputs"):
        FEATURES["basic"](np.ones((3, 4)))
    with pytest.raises(InputError, match="finite matrix"):
        tg.FourierFeatures(np.ones(3))
    for make in (
        lambda: tg.FourierFeatures.basic(0),
        lambda: tg.FourierFeatures.positional(2, 2, -1.0),
        lambda: tg.FourierFeatures.gaussian(2, 1.5, 1.0, key=jax.random.key(0)),
    ):
        with pytest.raises(InputError, match="give"):
            make()
    with pytest.raises(InputError, match="key -> network"):
        FEATURES["basic"].into(3)
