"""The NTK of finite networks approaches the limit derived from the same function, as one over the root of the width."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tangency as tg

WIDTHS, DRAWS = (16, 64, 256), 12
IMAGE, SERIES, VECTOR, TOKENS = (5, 5, 2), (4, 3), (5,), None


class FlaxMLP(nnx.Module):
    def __init__(self, width, key):
        rngs = nnx.Rngs(key)
        self.first, self.second = nnx.Linear(5, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.gelu(self.second(jax.nn.gelu(self.first(x)))))


class CNN(eqx.Module):
    """With a residual branch that carries an inference-form norm's scale and shift."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    skip: eqx.nn.Conv2d
    scale: jax.Array
    shift: jax.Array
    head: eqx.nn.Linear

    def __init__(self, width, key):
        k = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(2, width, 3, padding=1, key=k[0])
        self.second = eqx.nn.Conv2d(width, width, 3, stride=2, padding=1, key=k[1])
        self.skip = eqx.nn.Conv2d(width, width, 1, stride=2, key=k[2])
        self.scale, self.shift = jnp.ones((width, 1, 1)), jnp.zeros((width, 1, 1))
        self.head = eqx.nn.Linear(width, 1, key=k[3])

    def __call__(self, x):
        x = jax.nn.relu(self.first(jnp.moveaxis(x, -1, 0)))
        x = self.scale * self.second(x) + self.shift + self.skip(x)
        return self.head(jax.nn.relu(x).mean((1, 2)))


class Transformer(eqx.Module):
    """One pre-norm block; keys are queries and scores are divided by the width."""

    embed: eqx.nn.Linear
    norms: list
    query: eqx.nn.Linear
    value: eqx.nn.Linear
    up: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, width, key):
        k = jax.random.split(key, 5)
        self.embed = eqx.nn.Linear(3, width, key=k[0])
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.query, self.value, self.up = (eqx.nn.Linear(width, width, use_bias=False, key=k[i]) for i in (1, 2, 3))
        self.head = eqx.nn.Linear(width, 1, key=k[4])

    def __call__(self, x):
        x = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norms[0])(x)
        q = jax.vmap(self.query)(y)
        x = x + jax.nn.softmax(q @ q.T / q.shape[-1]) @ jax.vmap(self.value)(y)
        x = x + jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return self.head(x.mean(0))


class RNN(eqx.Module):
    recurrent: eqx.nn.Linear
    entry: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, width, key):
        k = jax.random.split(key, 3)
        self.recurrent = eqx.nn.Linear(width, width, key=k[0])
        self.entry = eqx.nn.Linear(3, width, use_bias=False, key=k[1])
        self.head = eqx.nn.Linear(width, 1, key=k[2])

    def __call__(self, x):
        def step(h, entry):
            return jnp.tanh(self.recurrent(h) + self.entry(entry)), None

        start = jnp.zeros(self.recurrent.out_features, x.dtype)
        return self.head(jax.lax.scan(step, start, x)[0])


class Embedding(eqx.Module):
    """The layer after the table is applied twice."""

    table: eqx.nn.Embedding
    dense: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, width, key):
        k = jax.random.split(key, 3)
        self.table = eqx.nn.Embedding(7, width, key=k[0])
        self.dense = eqx.nn.Linear(width, width, key=k[1])
        self.head = eqx.nn.Linear(width, 1, key=k[2])

    def __call__(self, x):
        x = jax.vmap(self.table)(x)
        x = jax.nn.relu(jax.vmap(self.dense)(jax.nn.relu(jax.vmap(self.dense)(x))))
        return self.head(x.mean(0))


NETWORKS = {
    "Flax MLP": (FlaxMLP, VECTOR),
    "residual CNN": (CNN, IMAGE),
    "transformer": (Transformer, SERIES),
    "RNN": (RNN, SERIES),
    "embedding, shared layer": (Embedding, TOKENS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_falls_as_one_over_the_root_of_the_width(name, rng):
    make, shape = NETWORKS[name]
    x = rng.integers(0, 7, (3, 4)) if shape is TOKENS else rng.normal(size=(3, *shape)).astype(np.float32)
    expected = tg.limit(lambda key: make(64, key))(x)
    errors = []
    for width in WIDTHS:

        def draw(key, width=width):
            return tg.empirical(lambda key: make(width, key), key=key, scale="init")(jnp.asarray(x))

        found = jax.jit(lambda keys, draw=draw: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), DRAWS))
        errors.append(np.sqrt(np.mean((np.asarray(found) - expected) ** 2)) / np.abs(expected).max())
    slope = np.polyfit(np.log(WIDTHS), np.log(errors), 1)[0]
    # Twelve draws of six entries give the logarithm of an error to about 0.15, a slope over four octaves to 0.08.
    assert abs(slope + 0.5) < 0.2, (slope, errors)
