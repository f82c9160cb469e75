"""The same network in Equinox and in Flax NNX has the same kernel, when its parameters have the same variances."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tangency import limit

IN = 3
WIDTH = 16
T = 5
VOCABULARY = 7


def normal(fan_in):
    """Equinox draws uniformly of variance 1/(3 fan-in), for weights and biases."""
    return nnx.initializers.normal(1 / np.sqrt(3 * fan_in))


def linear(rngs, inputs, outputs, use_bias=True):
    init = normal(inputs)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs)


def conv(rngs, inputs, outputs, size, **options):
    init = normal(inputs * int(np.prod(size)))
    return nnx.Conv(inputs, outputs, size, kernel_init=init, bias_init=init, rngs=rngs, **options)


class EquinoxMlp(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        sizes = [(IN, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]
        self.layers = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, keys, strict=True)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class FlaxMlp(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b, self.c = linear(rngs, IN, WIDTH), linear(rngs, WIDTH, WIDTH), linear(rngs, WIDTH, 2)

    def __call__(self, x):
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x)))))


class EquinoxConv(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(IN, WIDTH, 3, stride=2, padding="SAME", key=k1)
        self.second = eqx.nn.Conv2d(WIDTH, WIDTH, (2, 3), padding=((0, 1), (1, 1)), key=k2)
        self.norm = eqx.nn.GroupNorm(2, WIDTH)
        self.last = eqx.nn.Linear(WIDTH, 2, key=k3)

    def __call__(self, x):
        h = jax.nn.relu(self.norm(self.second(jax.nn.relu(self.first(x)))))
        return self.last(h.mean(axis=(1, 2)))


class FlaxConv(nnx.Module):
    def __init__(self, rngs):
        self.first = conv(rngs, IN, WIDTH, (3, 3), strides=2, padding="SAME")
        self.second = conv(rngs, WIDTH, WIDTH, (2, 3), padding=((0, 1), (1, 1)))
        self.norm = nnx.GroupNorm(WIDTH, 2, epsilon=1e-5, rngs=rngs)
        self.last = linear(rngs, WIDTH, 2)

    def __call__(self, x):
        h = nnx.relu(self.norm(self.second(nnx.relu(self.first(x)))))
        return self.last(h.mean(axis=(1, 2)))


def heads(h):
    return h.reshape(*h.shape[:-1], 2, WIDTH // 2)


class EquinoxWords(eqx.Module):
    """Words at places, one tied attention layer after LayerNorm, the average over places."""

    rows: eqx.nn.Embedding
    places: jax.Array
    norm: eqx.nn.LayerNorm
    tied: eqx.nn.Linear
    value: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.rows = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.places = 0.3 * jax.random.normal(keys[1], (T, WIDTH))
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.tied = eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=keys[2])
        self.value = eqx.nn.Linear(WIDTH, WIDTH, key=keys[3])
        self.last = eqx.nn.Linear(WIDTH, 2, key=keys[4])

    def __call__(self, words):
        h = jax.vmap(self.norm)(jax.vmap(self.rows)(words) + self.places)
        q = heads(jax.vmap(self.tied)(h))
        a = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, q) / (WIDTH // 2), axis=-1)
        h = jnp.einsum("hts,shd->thd", a, heads(jax.vmap(self.value)(h))).reshape(T, WIDTH)
        return self.last(jax.lax.erf(h).mean(axis=0))


class FlaxWords(nnx.Module):
    def __init__(self, rngs):
        self.rows = nnx.Embed(VOCABULARY, WIDTH, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.places = nnx.Param(0.3 * jax.random.normal(rngs.params(), (T, WIDTH)))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.tied = linear(rngs, WIDTH, WIDTH, use_bias=False)
        self.value = linear(rngs, WIDTH, WIDTH)
        self.last = linear(rngs, WIDTH, 2)

    def __call__(self, words):
        h = self.norm(self.rows(words) + self.places[...][None])
        q = heads(self.tied(h))
        a = nnx.softmax(jnp.einsum("bthd,bshd->bhts", q, q) / (WIDTH // 2))
        h = jnp.einsum("bhts,bshd->bthd", a, heads(self.value(h))).reshape(len(h), T, WIDTH)
        return self.last(jax.lax.erf(h).mean(axis=1))


class EquinoxRnn(eqx.Module):
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.inner = eqx.nn.Linear(IN, WIDTH, key=k1)
        self.outer = eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=k2)
        self.last = eqx.nn.Linear(WIDTH, 2, key=k3)

    def __call__(self, x):
        def step(h, token):
            return jax.lax.erf(self.inner(token) + self.outer(h)), None

        return self.last(jax.lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)[0])


class FlaxRnn(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.outer = linear(rngs, IN, WIDTH), linear(rngs, WIDTH, WIDTH, use_bias=False)
        self.last = linear(rngs, WIDTH, 2)

    def __call__(self, x):
        h = jnp.zeros((len(x), WIDTH), x.dtype)
        for t in range(x.shape[1]):
            h = jax.lax.erf(self.inner(x[:, t]) + self.outer(h))
        return self.last(h)


def agree(equinox, flax, x, y, last_axis=None):
    """`last_axis` is the axis of Equinox's channels, which Flax has last."""
    found = limit(equinox).both(x, y)
    if last_axis is not None:
        x, y = (np.moveaxis(part, last_axis, -1) for part in (x, y))
    wanted = limit(lambda key: flax(nnx.Rngs(key))).both(x, y)
    for a, b in zip(found, wanted, strict=True):
        assert np.asarray(a).dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("equinox", "flax", "shape", "last_axis"),
    [
        (EquinoxMlp, FlaxMlp, (IN,), None),
        (EquinoxConv, FlaxConv, (IN, 5, 4), 1),
        (EquinoxRnn, FlaxRnn, (4, IN), None),
    ],
    ids=["mlp", "conv", "rnn"],
)
def test_equinox_and_flax_agree(rng, equinox, flax, shape, last_axis):
    agree(equinox, flax, rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape)), last_axis)


def test_equinox_and_flax_agree_on_words(rng):
    x, y = (rng.integers(0, VOCABULARY, size=(n, T), dtype=np.int32) for n in (3, 2))
    agree(EquinoxWords, FlaxWords, x, y)
