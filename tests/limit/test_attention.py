"""Limits of attention, position codes, embeddings and transformers against full position-pair moments, in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tangency import limit
from tangency.errors import UnsupportedModelError
from tests.oracles.monte_carlo import Entries, dense, initialiser
from tests.oracles.spatial import Erf, Relu, State, along_positions, check

T = 5
IN = 3
WIDTH = 16
HEADS = 2
VOCABULARY = 7
CAUSAL = np.tril(np.ones((T, T), bool))
CODES = np.sin(np.outer(np.arange(T), 0.7 ** np.arange(WIDTH)) + np.arange(WIDTH) % 2)
CODES = CODES.astype(np.float32).astype(np.float64)


def network(apply, **entries):
    """A pair (init, apply) of plain JAX; `embed`, weights on the input, and the readout `last` are added."""
    return initialiser({"embed": dense(WIDTH, IN), "last": dense(2, WIDTH)} | entries), apply


def weights(*names):
    return {name: dense(WIDTH, WIDTH) for name in names}


def softmax_attention(q, k, v, mask=None):
    scores = q @ k.T / q.shape[-1]
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


def normalise(h):
    return (h - h.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(h.var(axis=-1, keepdims=True) + 1e-5)


def attended(state, w=1.0, mask=None):
    """Tied queries and keys, values and an output weight, each of variance w / width."""
    return state.dense(w).linear(state.dense(w).attention(1.0, mask)).dense(w)


@pytest.fixture
def sequences(rng):
    x, y = rng.normal(size=(3, T, IN)), rng.normal(size=(2, T, IN))
    return x, y, State.inputs(x, y)


@pytest.fixture
def words(rng):
    x, y = (rng.integers(0, VOCABULARY, size=(n, T), dtype=np.int32) for n in (3, 2))
    return x, y


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize("read", ["mean", "last", "all"])
def test_tied_attention_in_plain_jax(sequences, mask, read):
    x, y, s = sequences

    def apply(p, x):
        h = jax.nn.relu(x @ p["embed"].T)
        q = h @ p["query"].T
        h = softmax_attention(q, q, h @ p["value"].T, mask) @ p["out"].T
        h = jax.nn.relu(h)
        if read != "all":
            h = h.mean(axis=0) if read == "mean" else h[-1]
        return h @ p["last"].T

    s = attended(s.dense(1.0).act(Relu), mask=mask).act(Relu)
    s = {"mean": s.pooled(), "last": s.linear(np.eye(T)[-1:]), "all": s}[read]
    kernel = limit(network(apply, **weights("query", "value", "out")))
    check(kernel, x, y, s.dense(1.0), space=(T,) if read == "all" else ())


def test_queries_and_keys_from_one_weight_written_twice(sequences):
    x, y, s = sequences

    def apply(p, x):
        h = x @ p["embed"].T
        h = softmax_attention(h @ p["query"].T, h @ p["query"].T, h @ p["value"].T) @ p["out"].T
        return h.mean(axis=0) @ p["last"].T

    check(limit(network(apply, **weights("query", "value", "out"))), x, y, attended(s.dense(1.0)).pooled().dense(1.0))


def test_untied_queries_and_keys_attend_to_all_alike(sequences):
    """With a factor 1/d, independent queries and keys have scores that vanish."""
    x, y, s = sequences

    def apply(p, x):
        h = x @ p["embed"].T
        h = softmax_attention(h @ p["query"].T, h @ p["key"].T, h @ p["value"].T, CAUSAL) @ p["out"].T
        return jax.nn.relu(h).mean(axis=0) @ p["last"].T

    h = s.dense(1.0)
    s = h.dense(1.0).linear(CAUSAL / CAUSAL.sum(axis=1, keepdims=True)).dense(1.0).act(Relu)
    check(limit(network(apply, **weights("query", "key", "value", "out"))), x, y, s.pooled().dense(1.0))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_padding_mask_from_the_example(rng, scale):
    """The first feature says which places are filled; the others are neither attended to nor averaged."""
    x, y = rng.normal(size=(3, T, IN)), rng.normal(size=(2, T, IN))
    for part, lengths in ((x, (5, 3, 1)), (y, (2, 4))):
        part[:, :, 0] = np.arange(T) < np.array(lengths)[:, None]

    def apply(p, x):
        filled = x[:, 0] > 0
        h = x @ p["embed"].T
        q = h @ p["query"].T
        scores = jnp.where(filled[None, :], scale * (q @ q.T) / WIDTH, -1e30)
        h = jax.nn.softmax(scores, axis=-1) @ (h @ p["value"].T) @ p["out"].T
        h = jnp.where(filled[:, None], jax.nn.relu(h), 0.0)
        return (h.sum(axis=0) / filled.sum()) @ p["last"].T

    filled = np.concatenate([x, y])[:, :, 0]
    s = State.inputs(x, y).dense(1.0)
    attention = s.dense(1.0).attention(scale, np.repeat(filled[:, None, :], T, axis=1))
    s = s.dense(1.0).linear(attention).dense(1.0).act(Relu)
    s = s.linear((filled / filled.sum(axis=1, keepdims=True))[:, None, :]).dense(1.0)
    check(limit(network(apply, **weights("query", "value", "out"))), x, y, s)


class EquinoxBlock(eqx.Module):
    """Tied multi-head attention and an MLP, normalised before or after."""

    tied: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norms: list
    post: bool = eqx.field(static=True)
    erf: bool = eqx.field(static=True)

    def __init__(self, key, post, erf):
        keys = jax.random.split(key, 5)
        linear = [eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=k) for k in keys]
        self.tied, self.value, self.out, self.up, self.down = linear
        self.norms = [eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)]
        self.post, self.erf = post, erf

    def attend(self, h):
        q, v = (jax.vmap(layer)(h).reshape(T, HEADS, WIDTH // HEADS) for layer in (self.tied, self.value))
        scores = jnp.einsum("thd,shd->hts", q, q) / (WIDTH // HEADS)
        a = jax.nn.softmax(jnp.where(CAUSAL[None], scores, -jnp.inf), axis=-1)
        return jax.vmap(self.out)(jnp.einsum("hts,shd->thd", a, v).reshape(T, WIDTH))

    def mlp(self, h):
        h = jax.vmap(self.up)(h)
        return jax.vmap(self.down)(jax.lax.erf(h) if self.erf else jax.nn.relu(h))

    def __call__(self, h):
        for branch, norm in zip((self.attend, self.mlp), self.norms, strict=True):
            h = jax.vmap(norm)(h + branch(h)) if self.post else h + branch(jax.vmap(norm)(h))
        return h


class EquinoxTransformer(eqx.Module):
    embed: eqx.nn.Linear
    places: jax.Array
    blocks: list
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, key, post, erf):
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Linear(IN, WIDTH, key=keys[0])
        self.places = 0.5 * jax.random.normal(keys[1], (T, WIDTH))
        self.blocks = [EquinoxBlock(k, post, erf) for k in keys[2:4]]
        self.norm = eqx.nn.LayerNorm(WIDTH, use_weight=False, use_bias=False)
        self.last = eqx.nn.Linear(WIDTH, 2, use_bias=False, key=keys[4])

    def __call__(self, x):
        h = jax.vmap(self.embed)(x) + self.places
        for block in self.blocks:
            h = block(h)
        return self.last(jax.vmap(self.norm)(h)[-1])


def block(h, w, post, activation, eps):
    """A transformer block of weights of variance w / width."""
    for branch in (lambda s: attended(s, w, CAUSAL), lambda s: s.dense(w).act(activation).dense(w)):
        h = (h + branch(h)).layer_norm(eps) if post else h + branch(h.layer_norm(eps))
    return h


@pytest.mark.parametrize(("post", "activation"), [(False, Relu), (True, Erf)], ids=["pre-norm", "post-norm"])
def test_equinox_transformer(sequences, post, activation):
    x, y, s = sequences
    h = s.dense(1 / 3, 1 / (3 * IN)).positional(0.25)
    for _ in range(2):
        h = block(h, 1 / 3, post, activation, 1e-5)
    h = h.layer_norm(1e-5, 0.0, 0.0).linear(np.eye(T)[-1:]).dense(1 / 3)
    check(limit(lambda key: EquinoxTransformer(key, post, activation is Erf)), x, y, h)


class FlaxTransformer(nnx.Module):
    def __init__(self, rngs, post, activation):
        self.embed = nnx.Linear(IN, WIDTH, rngs=rngs)
        self.places = nnx.Param(0.5 * jax.random.normal(rngs.params(), (T, WIDTH)))
        linear = [nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(5)]
        self.tied, self.value, self.out, self.up, self.down = linear
        self.first, self.second = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 2, rngs=rngs)
        self.post, self.activation = post, activation

    def attend(self, h):
        q, v = (layer(h).reshape(len(h), T, HEADS, WIDTH // HEADS) for layer in (self.tied, self.value))
        scores = jnp.einsum("bthd,bshd->bhts", q, q) / (WIDTH // HEADS)
        a = nnx.softmax(jnp.where(CAUSAL[None, None], scores, -jnp.inf))
        return self.out(jnp.einsum("bhts,bshd->bthd", a, v).reshape(len(h), T, WIDTH))

    def mlp(self, h):
        return self.down(self.activation(self.up(h)))

    def __call__(self, x):
        h = self.embed(x) + self.places[...][None]
        for branch, norm in ((self.attend, self.first), (self.mlp, self.second)):
            h = norm(h + branch(h)) if self.post else h + branch(norm(h))
        return self.last(h.mean(axis=1))


@pytest.mark.parametrize("post", [False, True], ids=["pre-norm", "post-norm"])
def test_flax_transformer(sequences, post):
    x, y, s = sequences
    h = block(s.dense(1.0, 0.0, eta_b=1.0).positional(0.25), 1.0, post, Relu, 1e-6)
    h = h.pooled().dense(1.0, 0.0, eta_b=1.0)
    check(limit(lambda key: FlaxTransformer(nnx.Rngs(key), post, nnx.relu)), x, y, h)


def test_sinusoidal_codes_are_added(sequences):
    """Fixed numbers that differ from channel to channel: their averages over the channels count."""
    x, y, s = sequences

    def apply(p, x):
        h = normalise(x @ p["embed"].T + CODES)
        return jax.nn.relu(h @ p["m"].T).mean(axis=0) @ p["last"].T

    codes = State.known(np.repeat(CODES[None], 5, axis=0), 3)
    s = (s.dense(1.0) + codes).layer_norm(1e-5, 0.0, 0.0).dense(1.0).act(Relu)
    check(limit(network(apply, **weights("m"))), x, y, s.pooled().dense(1.0))


def test_places_concatenated_as_one_hot(sequences):
    x, y, _ = sequences

    def apply(p, x):
        h = jnp.concatenate([x, jnp.eye(T, dtype=x.dtype)], axis=-1) @ p["embed"].T
        q = h @ p["query"].T
        h = softmax_attention(q, q, h @ p["value"].T) @ p["out"].T
        return jax.nn.relu(h).mean(axis=0) @ p["last"].T

    s = State.inputs(
        *(np.concatenate([part, np.repeat(np.eye(T)[None], len(part), axis=0)], axis=2) for part in (x, y))
    )
    s = attended(s.dense(1.0)).act(Relu).pooled().dense(1.0)
    check(limit(network(apply, embed=dense(WIDTH, IN + T), **weights("query", "value", "out"))), x, y, s)


@pytest.mark.parametrize("variance", [0.5, 0.0])
def test_class_token(sequences, variance):
    """A parameter in front of the sequence, read after attention; at zero it trains at rate 1."""
    x, y, s = sequences

    def apply(p, x):
        h = jnp.concatenate([p["cls"], x @ p["embed"].T])
        q = h @ p["query"].T
        h = h + softmax_attention(q, q, h @ p["value"].T) @ p["out"].T
        return jax.nn.relu(h)[0] @ p["last"].T

    cls = s.linear(np.zeros((1, T))).bias(variance, variance or 1.0)
    s = along_positions(cls, s.dense(1.0))
    s = (s + attended(s)).act(Relu).linear(np.eye(T + 1)[:1]).dense(1.0)
    check(limit(network(apply, cls=Entries((1, WIDTH), variance), **weights("query", "value", "out"))), x, y, s)


class EquinoxWords(eqx.Module):
    rows: eqx.nn.Embedding
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.rows = eqx.nn.Embedding(VOCABULARY, WIDTH, key=k1)
        self.hidden = eqx.nn.Linear(WIDTH, WIDTH, key=k2)
        self.last = eqx.nn.Linear(WIDTH, 2, use_bias=False, key=k3)

    def __call__(self, words):
        return self.last(jax.lax.erf(jax.vmap(lambda word: self.hidden(self.rows(word)))(words)).mean(axis=0))


def test_equinox_embedding(words):
    x, y = words
    s = State.rows(x, y, 1.0).dense(1 / 3, 1 / (3 * WIDTH)).act(Erf).pooled().dense(1 / 3)
    check(limit(EquinoxWords), x, y, s)


class FlaxWords(nnx.Module):
    def __init__(self, rngs):
        self.rows = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, words):
        h = self.norm(self.rows(words))
        return self.last(jax.lax.erf(self.hidden(h)).mean(axis=1))


def test_flax_embedding_keeps_its_traced_variance(words):
    """Flax draws rows of variance 1/width, as the traced width has it."""
    x, y = words
    s = State.rows(x, y, 1 / WIDTH).layer_norm(1e-6).dense(1.0, 0.0, eta_b=1.0).act(Erf)
    check(limit(lambda key: FlaxWords(nnx.Rngs(key))), x, y, s.pooled().dense(1.0, 0.0, eta_b=1.0))


def test_embedding_of_places_and_words_through_attention(words):
    x, y = words

    def apply(p, words):
        h = p["rows"][words] + p["places"]
        q = h @ p["query"].T
        h = h + softmax_attention(q, q, h @ p["value"].T, CAUSAL) @ p["out"].T
        return jax.lax.erf(h @ p["m"].T)[-1] @ p["last"].T

    rows = dict(rows=Entries((VOCABULARY, WIDTH), 1.0), places=Entries((T, WIDTH), 0.3))
    entries = {"last": dense(2, WIDTH)} | rows | weights("query", "value", "out", "m")
    s = State.rows(x, y, 1.0).positional(0.3)
    s = (s + attended(s, mask=CAUSAL)).dense(1.0).act(Erf).linear(np.eye(T)[-1:]).dense(1.0)
    check(limit((initialiser(entries), apply)), x, y, s)


def test_one_attention_layer_applied_twice(sequences):
    """The two uses are correlated; depth is one more position, over which the weights are the same."""
    x, y, s = sequences

    def apply(p, x):
        h = x @ p["embed"].T
        for _ in range(2):
            q = h @ p["query"].T
            h = h + softmax_attention(q, q, h @ p["value"].T) @ p["out"].T
        return jax.nn.relu(h).mean(axis=0) @ p["last"].T

    start, zero, eye = s.dense(1.0), np.zeros((T, T)), np.eye(T)
    branches = along_positions(start * 0.0, start * 0.0)
    for _ in range(2):
        inputs = start.linear(np.vstack([eye, eye])) + branches.linear(np.block([[zero, zero], [eye, zero]]))
        branches = attended(inputs, mask=np.kron(np.eye(2), np.ones((T, T))))
    s = start + branches.linear(np.hstack([eye, eye]))
    kernel = limit(network(apply, **weights("query", "value", "out")))
    check(kernel, x, y, s.act(Relu).pooled().dense(1.0))


def test_an_embedding_read_out_by_its_own_rows_is_refused(words):
    """Rows picked on the way in and contracted on the way out: a weight and its transpose."""
    x, y = words

    def apply(p, words):
        h = p["rows"][words]
        return (h + jax.nn.relu(h @ p["m"].T)).mean(axis=0) @ p["rows"].T

    entries = {"rows": Entries((VOCABULARY, WIDTH), 1 / WIDTH)} | weights("m")
    with pytest.raises(UnsupportedModelError, match="rows"):
        limit((initialiser(entries), apply))(x, y)
