"""Small finite networks of seven kinds, each in Equinox (called on one example) and in Flax NNX (on a batch)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

CHANNELS, SIZE, TOKENS, WIDTH, WORDS = 3, 6, 5, 8, 7


class EquinoxCNN(eqx.Module):
    convs: list
    head: eqx.nn.Linear

    def __init__(self, key):
        k = jax.random.split(key, 4)
        self.convs = [
            eqx.nn.Conv2d(CHANNELS, 4, 3, padding=1, key=k[0]),
            eqx.nn.Conv2d(4, 6, 3, stride=2, padding=1, key=k[1]),
            eqx.nn.Conv2d(6, 4, 2, groups=2, key=k[2]),
        ]
        self.head = eqx.nn.Linear(4, 2, key=k[3])

    def __call__(self, x):
        x = jnp.moveaxis(x, -1, 0)
        for conv in self.convs:
            x = jax.nn.gelu(conv(x))
        return self.head(x.mean((1, 2)))


class FlaxCNN(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.first = nnx.Conv(CHANNELS, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 6, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.third = nnx.Conv(6, 4, (2, 2), feature_group_count=2, kernel_dilation=1, rngs=rngs)
        self.head = nnx.Linear(4 * 4, 2, rngs=rngs)

    def __call__(self, x):
        for conv in (self.first, self.second, self.third):
            x = jax.nn.gelu(conv(x))
        return self.head(x.reshape(len(x), -1))


class EquinoxNorm(eqx.Module):
    """BatchNorm in inference form, with running statistics that do not train."""

    scale: jax.Array
    shift: jax.Array
    norm: eqx.nn.BatchNorm

    def __init__(self, channels, key):
        self.scale, self.shift = jax.random.normal(key, (2, channels, 1, 1))
        self.norm = eqx.nn.BatchNorm(channels, "batch", mode="batch", channelwise_affine=False)

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.scale * x + self.shift, state


class EquinoxResNet(eqx.Module):
    convs: list
    norms: list
    skip: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        k = jax.random.split(key, 8)
        self.convs = [
            eqx.nn.Conv2d(a, b, 3, stride=s, padding=1, use_bias=False, key=key)
            for a, b, s, key in ((CHANNELS, 4, 1, k[0]), (4, 6, 2, k[1]), (6, 6, 1, k[2]))
        ]
        self.norms = [EquinoxNorm(c, key) for c, key in ((4, k[3]), (6, k[4]), (6, k[5]))]
        self.skip = eqx.nn.Conv2d(4, 6, 1, stride=2, key=k[6])
        self.head = eqx.nn.Linear(6, 2, key=k[7])

    def __call__(self, x, state):
        x, state = self.norms[0](self.convs[0](jnp.moveaxis(x, -1, 0)), state)
        x = jax.nn.relu(x)
        y, state = self.norms[1](self.convs[1](x), state)
        y, state = self.norms[2](self.convs[2](jax.nn.relu(y)), state)
        return self.head(jax.nn.relu(y + self.skip(x)).mean((1, 2))), state


class FlaxResNet(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.first = nnx.Conv(CHANNELS, 4, (3, 3), use_bias=False, rngs=rngs)
        self.second = nnx.Conv(4, 6, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.third = nnx.Conv(6, 6, (3, 3), use_bias=False, rngs=rngs)
        self.skip = nnx.Conv(4, 6, (1, 1), strides=2, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(c, rngs=rngs) for c in (4, 6, 6)])
        for k, norm in enumerate(self.norms):
            draws = jax.random.normal(jax.random.fold_in(key, k), (4, norm.num_features), jnp.float32)
            norm.mean[...], norm.var[...], norm.scale[...], norm.bias[...] = draws[0], 0.5 + draws[1] ** 2, *draws[2:]
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norms[0](self.first(x)))
        y = self.norms[2](self.third(jax.nn.relu(self.norms[1](self.second(x)))))
        return self.head(jax.nn.relu(y + self.skip(x)).mean((1, 2)))


class EquinoxTransformer(eqx.Module):
    patches: eqx.nn.Conv2d
    positions: jax.Array
    token: jax.Array
    norms: list
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        k = jax.random.split(key, 6)
        self.patches = eqx.nn.Conv2d(CHANNELS, WIDTH, 3, stride=3, key=k[0])
        self.positions = jax.random.normal(k[1], (TOKENS, WIDTH))
        self.token = jax.random.normal(k[2], (1, WIDTH))
        self.norms = [eqx.nn.LayerNorm(WIDTH) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, use_key_bias=True, key=k[3])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 1, jax.nn.gelu, key=k[4])
        self.head = eqx.nn.Linear(WIDTH, 2, key=k[5])

    def __call__(self, x):
        x = self.patches(jnp.moveaxis(x, -1, 0)).reshape(WIDTH, -1).T
        x = jnp.concatenate([self.token, x]) + self.positions
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.head(x[0])


def attention(query, key, value, **_):
    """Flax's own takes the softmax in float32, which hides rounding errors from comparisons."""
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / jnp.sqrt(query.shape[-1])
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)


class FlaxTransformer(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.patches = nnx.Conv(CHANNELS, WIDTH, (3, 3), strides=3, padding="VALID", rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs(), (TOKENS, WIDTH)))
        self.token = nnx.Param(jax.random.normal(rngs(), (1, 1, WIDTH)))
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, attention_fn=attention, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(len(x), -1, WIDTH)
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (len(x), 1, WIDTH)), x], 1) + self.positions[...][None]
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))
        return self.head(x[:, 0])


class EquinoxRNN(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(CHANNELS, WIDTH, key=first)
        self.head = eqx.nn.Linear(WIDTH, 2, key=second)

    def __call__(self, x):
        def step(h, entry):
            h = self.cell(entry, h)
            return h, h

        return self.head(jax.lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)[1].mean(0))


class FlaxRNN(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.rnn = nnx.RNN(nnx.LSTMCell(CHANNELS, WIDTH, param_dtype=jnp.float64, rngs=rngs), reverse=True)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class EquinoxEmbedding(eqx.Module):
    embed: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.embed = eqx.nn.Embedding(WORDS, WIDTH, key=first)
        self.dense = eqx.nn.Linear(WIDTH, WIDTH, key=second)

    def __call__(self, x):
        x = jnp.tanh(jax.vmap(self.dense)(jax.vmap(self.embed)(x)))
        return self.embed.weight[:2] @ x.mean(0)


class FlaxEmbedding(nnx.Module):
    """The table reads words in and scores them at the end."""

    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.embed = nnx.Embed(WORDS, WIDTH, dtype=jnp.float64, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.embed.attend(jnp.tanh(self.dense(self.embed(x))).mean(1))


class EquinoxShared(eqx.Module):
    """One matrix used twice and once more transposed; an encoder whose transpose decodes; a scan over layers."""

    square: eqx.nn.Linear
    encoder: eqx.nn.Linear
    stack: jax.Array

    def __init__(self, key):
        k = jax.random.split(key, 3)
        self.square = eqx.nn.Linear(WIDTH, WIDTH, key=k[0])
        self.encoder = eqx.nn.Linear(4, WIDTH, use_bias=False, key=k[1])
        self.stack = jax.random.normal(k[2], (3, WIDTH, WIDTH)) / 3

    def __call__(self, x):
        x = jnp.tanh(self.encoder(x[0, :4] if x.ndim == 2 else x))
        x = jnp.tanh(self.square(jnp.tanh(self.square(x))))
        x = jax.lax.scan(lambda h, w: (jnp.tanh(w @ h) + h, None), x, self.stack)[0]
        x = jnp.tanh(self.square.weight.T @ x)
        return self.encoder.weight.T @ x


class FlaxShared(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.square = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.encoder = nnx.Linear(4, WIDTH, use_bias=False, rngs=rngs)
        self.stack = nnx.Param(jax.random.normal(rngs(), (3, WIDTH, WIDTH)) / 3)

    def __call__(self, x):
        x = jnp.tanh(self.encoder(x))
        x = jax.checkpoint(lambda x: jnp.tanh(self.square(jnp.tanh(self.square(x)))))(x)
        x = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + h, None), x, self.stack[...])[0]
        return jnp.tanh(x @ self.square.kernel[...].T) @ self.encoder.kernel[...].T


class FlaxMLP(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in ((4, WIDTH), (WIDTH, WIDTH), (WIDTH, 3))])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.softplus(layer(x))
        return self.layers[-1](x)


def equinox_mlp(key):
    return eqx.nn.MLP(4, 3, WIDTH, 2, jax.nn.softplus, key=key)


IMAGE, SERIES, VECTOR = (SIZE, SIZE, CHANNELS), (TOKENS, CHANNELS), (4,)
NETWORKS = {
    "Equinox MLP": (equinox_mlp, VECTOR),
    "Flax MLP": (FlaxMLP, VECTOR),
    "Equinox CNN": (EquinoxCNN, IMAGE),
    "Flax CNN": (FlaxCNN, IMAGE),
    "Equinox ResNet": (eqx.nn.make_with_state(EquinoxResNet), IMAGE),
    "Flax ResNet": (FlaxResNet, IMAGE),
    "Equinox transformer": (EquinoxTransformer, IMAGE),
    "Flax transformer": (FlaxTransformer, IMAGE),
    "Equinox RNN": (EquinoxRNN, SERIES),
    "Flax RNN": (FlaxRNN, SERIES),
    "Equinox embedding": (EquinoxEmbedding, "tokens"),
    "Flax embedding": (FlaxEmbedding, "tokens"),
    "Equinox shared weights": (EquinoxShared, VECTOR),
    "Flax shared weights": (FlaxShared, VECTOR),
}
"""By name: `key -> model` (with its state, for the one with BatchNorm in Equinox) and the shape of an example."""


def double(model):
    """All floating-point arrays in float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, model)


def made(name, key):
    """The model in float64, keyword arguments for `tangency.empirical`, and its function and parameters."""
    make, _ = NETWORKS[name]
    model = make(key)
    if isinstance(model, tuple):
        model, state = double(model)
        draws = iter(jax.random.split(jax.random.fold_in(key, 1), 100))
        state = jax.tree.map(
            lambda a: 0.5 + jax.random.uniform(next(draws), a.shape, a.dtype) if eqx.is_inexact_array(a) else a, state
        )
        parameters, static = eqx.partition(model, eqx.is_inexact_array)
        frozen = eqx.nn.inference_mode(static)
        return model, {"state": state}, lambda p, x: eqx.combine(p, frozen)(x, state)[0], parameters
    if isinstance(model, eqx.Module):
        model = double(model)
        parameters, static = eqx.partition(model, eqx.is_inexact_array)
        return model, {}, lambda p, x: eqx.combine(p, static)(x), parameters
    model.eval()
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    parameters, rest = double((parameters, rest))
    whole = nnx.merge(graph, parameters, rest)
    return whole, {}, lambda p, x: nnx.merge(graph, p, rest, copy=True)(x[None])[0], parameters


def examples(name, rng, n):
    _, shape = NETWORKS[name]
    return rng.integers(0, WORDS, size=(n, TOKENS)) if shape == "tokens" else rng.normal(size=(n, *shape))
