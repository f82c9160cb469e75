"""Limits of networks that average over members: axes of weights that no weight contracts have a finite length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tests.oracles.monte_carlo import Entries, dense, initialiser
from tests.oracles.spatial import Erf, Relu, State, check, outer

FEATURES, WIDTH, MEMBERS = 4, 16, 3


@pytest.fixture
def data(rng):
    x, y = rng.normal(size=(3, FEATURES)), rng.normal(size=(2, FEATURES))
    return x, y, State.inputs(x[:, None], y[:, None])


def members(outputs, inputs):
    """A weight [member, in, out] of variance 1/fan-in."""
    return Entries((MEMBERS, inputs, outputs), 1 / inputs)


def averaged(s):
    """The mean of independent members of the same law."""
    mean = outer(s.mean, s.mean)
    return State(mean + (s.k - mean) / MEMBERS, s.mean, s.theta / MEMBERS, s.first)


def test_mean_over_the_members_of_one_layer(data):
    x, y, s = data

    def apply(p, x):
        return p["last"] @ jax.vmap(lambda w: jax.nn.relu(x @ w))(p["first"]).mean(axis=0)

    network = initialiser({"first": members(WIDTH, FEATURES), "last": dense(2, WIDTH)}), apply
    check(limit(network), x, y, averaged(s.dense(1.0).act(Relu)).dense(1.0))


def test_sum_over_the_members_of_two_layers(data):
    x, y, s = data

    def apply(p, x):
        h = jnp.einsum("mi,mij->mj", jax.lax.erf(jnp.einsum("i,mij->mj", x, p["first"])), p["second"])
        return p["last"] @ jax.nn.relu(h).sum(axis=0)

    entries = {"first": members(WIDTH, FEATURES), "second": members(WIDTH, WIDTH), "last": dense(2, WIDTH)}
    s = averaged(s.dense(1.0).act(Erf).dense(1.0).act(Relu)) * MEMBERS
    check(limit((initialiser(entries), apply)), x, y, s.dense(1.0))


def test_mean_of_whole_networks(data):
    x, y, s = data

    def apply(p, x):
        return jax.vmap(lambda w, v: jax.nn.relu(x @ w) @ v)(p["first"], p["last"]).mean(axis=0)

    network = initialiser({"first": members(WIDTH, FEATURES), "last": members(2, WIDTH)}), apply
    check(limit(network), x, y, s.dense(1.0).act(Relu).dense(1.0) * MEMBERS**-0.5)


def test_mean_over_the_leading_part_of_features(data):
    """Units that are grouped by a reshape are members as well."""
    x, y, s = data

    def apply(p, x):
        return p["last"] @ jax.nn.relu(p["first"] @ x).reshape(MEMBERS, WIDTH).mean(axis=0)

    network = initialiser({"first": dense(MEMBERS * WIDTH, FEATURES), "last": dense(2, WIDTH)}), apply
    check(limit(network), x, y, averaged(s.dense(1.0).act(Relu)).dense(1.0))


def test_tokens_in_any_integer_type(rng):
    words = rng.integers(0, 5, size=(3, 6))

    def apply(p, x):
        seen = (x != 0).astype(p["rows"].dtype)
        h = jax.nn.relu(jax.nn.one_hot(x, 5) @ p["rows"]) * seen[:, None]
        return p["last"] @ (h.sum(axis=0) / jnp.maximum(seen.sum(), 1.0))

    kernel = limit((initialiser({"rows": Entries((5, WIDTH), 1.0), "last": dense(2, WIDTH)}), apply))
    expected = np.zeros((3, 3))
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            pairs = [0.5 if s == t else 1 / (2 * np.pi) for s in a[a != 0] for t in b[b != 0]]
            expected[i, j] = np.mean(pairs)
    for kind in (np.int64, np.int32, np.uint8):
        np.testing.assert_allclose(kernel.nngp(words.astype(kind)), expected, rtol=1e-6)
