"""Limits of networks over space and time against finite networks: random draws, within three standard errors.

The standard errors are at most one per cent of the kernel's diagonal, and the widths such that the deviation of the
mean from the limit, of order 1/width, is smaller still. All seeds are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tests.oracles.monte_carlo import Entries, Network, check, dense, finite_kernels

FEATURES = 5
STEPS = 4
VOCABULARY = 7


def convolve(weights, h):
    """[out, in, tap] on [position, in], zero padding."""
    padding = [(weights.shape[2] // 2,) * 2]
    out = jax.lax.conv_general_dilated(h.T[None], weights, (1,), padding, dimension_numbers=("NCW", "OIW", "NCW"))
    return out[0].T


def layer_norm(h):
    mean = jnp.mean(h, axis=-1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(jnp.var(h, axis=-1, keepdims=True) + 1e-5)


def attend(p, h):
    """Causal softmax attention with one weight for queries and keys."""
    q = h @ p["query"].T
    scores = jnp.where(np.tril(np.ones((len(h), len(h)), bool)), q @ q.T / q.shape[1], -np.inf)
    return jax.nn.softmax(scores, axis=-1) @ (h @ p["value"].T) @ p["out"].T


def recurrent(n):
    """h_t = erf(W x_t + U h_{t-1} + b), averaged over time."""

    def hidden(p, x):
        h, total = jnp.zeros(n), jnp.zeros(n)
        for t in range(STEPS):
            h = jax.lax.erf(p["w"] @ x[t] + p["u"] @ h + p["b"])
            total = total + h
        return total / STEPS

    return Network(hidden, {"w": dense(n, FEATURES), "u": dense(n, n), "b": Entries((n,), 0.1)}, n)


def tied(n):
    """One filter and one bias used at two depths, both of which are read."""

    def hidden(p, x):
        first = jax.lax.erf(convolve(p["w"], x))
        second = jax.lax.erf(convolve(p["m"], first) + p["b"][None])
        third = jax.lax.erf(convolve(p["m"], second) + p["b"][None])
        return jnp.mean(second + third, axis=0)

    return Network(hidden, {"w": dense(n, FEATURES, 3), "m": dense(n, n, 3), "b": Entries((n,), 0.2)}, n)


def swiglu(n):
    def hidden(p, x):
        h = x @ p["w"].T
        return jnp.mean(jax.nn.silu(h @ p["g"].T) * (h @ p["u"].T), axis=0)

    return Network(hidden, {"w": dense(n, FEATURES), "g": dense(n, n), "u": dense(n, n)}, n)


def embedding(n):
    """Words at places; the same word gives the same row, at all places and in all examples."""

    def hidden(p, words):
        h = jax.lax.erf((p["rows"][words] + p["places"]) @ p["w"].T)
        return jax.lax.erf(p["m"] @ jnp.mean(h, axis=0))

    rows, places = Entries((VOCABULARY, n), 1.0), Entries((STEPS, n), 0.3)
    return Network(hidden, {"rows": rows, "places": places, "w": dense(n, n), "m": dense(n, n)}, n)


def causal_transformer(n):
    """A pre-norm block, read at the last place."""

    def hidden(p, x):
        h = x @ p["w"].T + p["places"]
        h = h + attend(p, layer_norm(h))
        h = h + jax.nn.relu(layer_norm(h) @ p["up"].T) @ p["down"].T
        return layer_norm(h)[-1]

    weights = {name: dense(n, n) for name in ("query", "value", "out", "up", "down")}
    return Network(hidden, {"w": dense(n, FEATURES), "places": Entries((STEPS, n), 0.3)} | weights, n)


def norm_then_activation(n):
    """The tangent of a scale is the signal itself, which the slope of the activation depends on."""

    def hidden(p, x):
        return jnp.mean(jax.nn.relu(p["scale"][None] * layer_norm(x @ p["w"].T) + p["shift"][None]), axis=0)

    norm = {"scale": Entries((n,), 0.0, 1.0), "shift": Entries((n,), 0.0)}
    return Network(hidden, {"w": dense(n, FEATURES)} | norm, n)


def group_norm(n):
    """Two groups of channels, each normalised over its channels and all places."""

    def hidden(p, x):
        h = convolve(p["w"], x).reshape(len(x), 2, n // 2)
        mean = jnp.mean(h, axis=(0, 2), keepdims=True)
        h = ((h - mean) * jax.lax.rsqrt(jnp.var(h, axis=(0, 2), keepdims=True) + 1e-5)).reshape(len(x), n)
        h = jax.nn.relu(p["scale"][None] * h + p["shift"][None])
        return jnp.mean(jax.nn.relu(convolve(p["m"], h)), axis=0)

    norm = {"scale": Entries((n,), 0.0, 1.0), "shift": Entries((n,), 0.0)}
    return Network(hidden, {"w": dense(n, FEATURES, 3), "m": dense(n, n, 3)} | norm, n)


def squeeze_and_excitation(n):
    """Channels gated by functions of their averages over space."""

    def hidden(p, x):
        h = jax.nn.relu(convolve(p["w"], x))
        gate = jax.nn.sigmoid(p["expand"] @ jax.nn.relu(p["squeeze"] @ jnp.mean(h, axis=0)))
        return jnp.mean(jax.lax.erf(convolve(p["m"], h * gate[None])), axis=0)

    weights = {"w": dense(n, FEATURES, 3), "m": dense(n, n, 3), "squeeze": dense(n, n), "expand": dense(n, n)}
    return Network(hidden, weights, n)


def sequences(rng):
    return rng.normal(size=(3, STEPS, FEATURES))


def words(rng):
    return rng.integers(0, VOCABULARY, size=(3, STEPS), dtype=np.int32)


NETWORKS = [
    (recurrent, sequences, 256, 300),
    (tied, sequences, 256, 300),
    (swiglu, sequences, 384, 900),
    (embedding, words, 256, 400),
    (causal_transformer, sequences, 512, 200),
    (norm_then_activation, sequences, 256, 300),
    (group_norm, sequences, 384, 300),
    (squeeze_and_excitation, sequences, 384, 300),
]


@pytest.mark.parametrize(("make", "data", "width", "draws"), NETWORKS, ids=[make.__name__ for make, *_ in NETWORKS])
def test_finite_networks_have_the_limit_as_their_mean(make, data, width, draws, rng):
    network, x = make(width), data(rng)
    k, theta = limit((network.init, network.apply)).both(x)
    finite_k, finite_theta = finite_kernels(network, x, draws)
    check(k, finite_k)
    check(theta, finite_theta)
