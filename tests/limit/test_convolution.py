"""Limits of convolutional networks against full position-pair moments, in float64."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tangency import limit
from tests.oracles.spatial import Erf, Relu, State, along_channels, average, check, grid, resized, window

IMAGE = (5, 4)
IN = 3
WIDTH = 12
FLAX = dict(w=1.0, b=0.0, eta=1.0, eta_b=1.0)


class Model(eqx.Module):
    """`forward(parts, x)` on the layers that `build(keys)` draws."""

    parts: dict
    forward: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.forward(self.parts, x)


def model(build, forward):
    """A random network from the layers that `build` draws with an iterator of keys."""
    return lambda key: Model(build(iter(jax.random.split(key, 12))), forward)


def sequential(*layers):
    """Layers in turn: a function of a key that makes one, or an activation or the like."""

    def make(key):
        keys = jax.random.split(key, len(layers))
        return eqx.nn.Sequential(
            [
                layer(k) if isinstance(layer, Build) else eqx.nn.Lambda(layer)
                for layer, k in zip(layers, keys, strict=True)
            ]
        )

    return make


class Build:
    def __init__(self, kind, *args, **kwargs):
        self.make = lambda key: kind(*args, **kwargs, key=key)

    def __call__(self, key):
        return self.make(key)


def conv(inputs, outputs, *args, dims=2, **kwargs):
    return Build(eqx.nn.Conv, dims, inputs, outputs, *args, **kwargs)


def pool(h):
    return h.mean(axis=tuple(range(1, h.ndim)))


def readout(inputs=WIDTH):
    return Build(eqx.nn.Linear, inputs, 2, use_bias=False)


def images(rng, *space, channels=IN):
    """Channels first, for Equinox; and the flat positions × channels of the oracle."""
    x, y = rng.normal(size=(3, channels, *space)), rng.normal(size=(2, channels, *space))
    flat = [np.moveaxis(part, 1, -1).reshape(len(part), -1, channels) for part in (x, y)]
    return x, y, State.inputs(*flat)


def square(size, lengths=IMAGE, **options):
    """The table of a filter that is the same along all axes."""
    return grid(*(window(length, size, **options) for length in lengths), lengths=lengths)


def equinox_conv(state, table, channels):
    """Equinox draws weights and biases uniformly, of variance 1/(3 fan-in)."""
    taps = len(table[0])
    return state.conv(table, 1 / (3 * taps), 1 / (3 * taps * channels))


def wrapped(h):
    return jnp.pad(h, ((0, 0), (1, 1), (1, 1)), mode="wrap")


SAME = square(3, padding="SAME")
STRIDED = grid(window(5, 3, stride=2, padding=(1, 0)), window(4, 2, stride=1, padding=(0, 1)), lengths=IMAGE)


@pytest.mark.parametrize(
    ("space", "size", "options", "table"),
    [
        ((6,), 3, dict(stride=2), window(6, 3, stride=2)),
        ((6,), 3, dict(padding="SAME"), window(6, 3, padding="SAME")),
        ((7,), 3, dict(padding="SAME", stride=2), window(7, 3, padding="SAME", stride=2)),
        ((6,), 4, dict(padding="SAME", stride=2), window(6, 4, padding="SAME", stride=2)),
        ((7,), 3, dict(dilation=2, padding=1), window(7, 3, dilation=2, padding=(1, 1))),
        ((6,), 3, dict(padding=[(2, 0)]), window(6, 3, padding=(2, 0))),
        (IMAGE, 3, dict(), square(3)),
        (IMAGE, 3, dict(padding="SAME"), SAME),
        (IMAGE, (3, 2), dict(stride=(2, 1), padding=[(1, 0), (0, 1)]), STRIDED),
        (IMAGE, 2, dict(dilation=(3, 2)), grid(window(5, 2, dilation=3), window(4, 2, dilation=2), lengths=IMAGE)),
        (IMAGE, 3, dict(padding="SAME", padding_mode="CIRCULAR"), square(3, padding=(1, 1), circular=True)),
        ((4, 3, 2), 2, dict(), square(2, (4, 3, 2))),
        ((4, 3, 2), 3, dict(padding="SAME", stride=2), square(3, (4, 3, 2), padding="SAME", stride=2)),
    ],
)
def test_one_filter_then_the_average_of_an_activation(rng, space, size, options, table):
    x, y, s = images(rng, *space)
    kernel = limit(sequential(conv(IN, WIDTH, size, dims=len(space), **options), jax.nn.relu, pool, readout()))
    check(kernel, x, y, equinox_conv(s, table, IN).act(Relu).pooled().dense(1 / 3))


@pytest.mark.parametrize(
    ("head", "finish"),
    [
        (pool, lambda s: s.pooled()),
        (lambda h: h.sum(axis=(1, 2)), lambda s: s.linear(np.ones((1, 20)))),
        (lambda h: h[:, 2, 1], lambda s: s.linear(np.eye(20)[2 * 4 + 1][None])),
    ],
    ids=["mean", "sum", "one position"],
)
def test_two_layers_and_heads(rng, head, finish):
    x, y, s = images(rng, *IMAGE)
    layers = [conv(IN, WIDTH, 3, padding="SAME"), jax.nn.relu, conv(WIDTH, WIDTH, 3, padding="SAME"), jax.lax.erf]
    s = equinox_conv(equinox_conv(s, SAME, IN).act(Relu), SAME, WIDTH).act(Erf)
    check(limit(sequential(*layers, head, readout())), x, y, finish(s).dense(1 / 3))


def test_output_keeps_positions(rng):
    x, y, s = images(rng, *IMAGE)
    kernel = limit(sequential(conv(IN, WIDTH, 3), jax.nn.relu, conv(WIDTH, 2, 2, padding="SAME")))
    s = equinox_conv(equinox_conv(s, square(3), IN).act(Relu), square(2, (3, 2), padding="SAME"), WIDTH)
    check(kernel, x, y, s, space=(3, 2))


def test_flatten_at_the_end(rng):
    x, y, s = images(rng, *IMAGE)
    kernel = limit(sequential(conv(IN, WIDTH, 3), jax.nn.relu, jnp.ravel, readout(WIDTH * 6)))
    check(kernel, x, y, equinox_conv(s, square(3), IN).act(Relu).flat_dense(1 / (3 * 6)))


def test_flatten_in_the_middle(rng):
    x, y, s = images(rng, *IMAGE)
    linear = Build(eqx.nn.Linear, WIDTH * 6, 16)
    kernel = limit(sequential(conv(IN, WIDTH, 3), jax.nn.relu, jnp.ravel, linear, jax.nn.relu, readout(16)))
    s = equinox_conv(s, square(3), IN).act(Relu).flat_dense(1 / (3 * 6), 1 / (3 * 6 * WIDTH))
    check(kernel, x, y, s.act(Relu).dense(1 / 3))


def test_widths_equal_to_spatial_lengths(rng):
    """4 × 4 images of 4 channels through layers of 4 channels."""
    x, y, s = images(rng, 4, 4, channels=4)
    layers = [conv(4, 4, 3, padding="SAME"), jax.nn.relu, conv(4, 4, 2), jax.nn.relu]
    s = equinox_conv(equinox_conv(s, square(3, (4, 4), padding="SAME"), 4).act(Relu), square(2, (4, 4)), 4).act(Relu)
    check(limit(sequential(*layers, pool, readout(4))), x, y, s.pooled().dense(1 / 3))


class FlaxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 4, (2, 2), padding="VALID", rngs=rngs)
        self.readout = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.readout(h.mean(axis=(1, 2)))


def test_widths_equal_to_spatial_lengths_channels_last(rng):
    x, y, s = images(rng, 4, 4, channels=4)
    for table in (square(3, (4, 4), padding="SAME"), square(2, (4, 4))):
        s = s.conv(table, 1 / len(table[0]), 0.0, eta_b=1.0).act(Relu)
    x, y = (np.moveaxis(part, 1, -1) for part in (x, y))
    check(limit(lambda key: FlaxNet(nnx.Rngs(key))), x, y, s.pooled().dense(**FLAX))


def test_circular_by_wrapped_padding(rng):
    x, y, s = images(rng, *IMAGE)
    table = square(3, padding=(1, 1), circular=True)
    layers = [wrapped, conv(IN, WIDTH, 3), jax.nn.relu, wrapped, conv(WIDTH, WIDTH, 3), jax.nn.relu]
    s = equinox_conv(equinox_conv(s, table, IN).act(Relu), table, WIDTH).act(Relu)
    check(limit(sequential(*layers, pool, readout())), x, y, s.pooled().dense(1 / 3))


@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (2, 1), (1, 1)])
def test_transposed_convolution(rng, stride, padding):
    x, y, s = images(rng, 3, 2)
    up = Build(eqx.nn.ConvTranspose2d, WIDTH, WIDTH, 3, stride=stride, padding=padding)
    kernel = limit(sequential(conv(IN, WIDTH, 1), jax.nn.relu, up, jax.lax.erf, pool, readout()))
    table = square(3, (3, 2), base_dilation=stride, padding=(2 - padding, 2 - padding))
    s = equinox_conv(equinox_conv(s, square(1, (3, 2)), IN).act(Relu), table, WIDTH).act(Erf)
    check(kernel, x, y, s.pooled().dense(1 / 3))


@pytest.mark.parametrize("head", ["mean", "flatten"])
def test_locally_connected(rng, head):
    """Other weights at each place make places independent."""
    x, y, s = images(rng, 6)
    taps = np.arange(5)[:, None] + np.arange(2)
    features = WIDTH if head == "mean" else 5 * WIDTH

    def build(keys):
        local = jax.random.normal(next(keys), (5, WIDTH, WIDTH, 2)) / np.sqrt(2 * WIDTH)
        return dict(
            first=eqx.nn.Conv1d(IN, WIDTH, 1, key=next(keys)),
            local=local,
            readout=eqx.nn.Linear(features, 2, use_bias=False, key=next(keys)),
        )

    def forward(parts, x):
        h = jax.nn.relu(parts["first"](x))
        h = jax.nn.relu(jnp.einsum("sodt,dst->os", parts["local"], h[:, taps]))
        return parts["readout"](h.mean(axis=1) if head == "mean" else h.ravel())

    s = equinox_conv(s, window(6, 1), IN).act(Relu).local(window(6, 2), 1 / 2).act(Relu)
    expected = s.pooled().dense(1 / 3) if head == "mean" else s.flat_dense(1 / 15)
    check(limit(model(build, forward)), x, y, expected)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 2), ((3, 2), (2, 1))])
def test_average_pooling(rng, size, stride):
    x, y, s = images(rng, *IMAGE)
    sizes, strides = np.broadcast_to(size, 2), np.broadcast_to(stride, 2)
    tables = [window(n, k, stride=t) for n, k, t in zip(IMAGE, sizes.tolist(), strides.tolist(), strict=True)]
    small = (len(tables[0]), len(tables[1]))
    layers = [conv(IN, WIDTH, 3, padding="SAME"), jax.nn.relu, eqx.nn.AvgPool2d(size, stride)]
    kernel = limit(sequential(*layers, conv(WIDTH, WIDTH, 2, padding="SAME"), jax.nn.relu, pool, readout()))
    s = equinox_conv(s, SAME, IN).act(Relu).linear(average(grid(*tables, lengths=IMAGE), 20))
    s = equinox_conv(s, square(2, small, padding="SAME"), WIDTH).act(Relu)
    check(kernel, x, y, s.pooled().dense(1 / 3))


class FlaxPool(nnx.Module):
    def __init__(self, rngs, count_include_pad):
        self.conv = nnx.Conv(IN, WIDTH, (3, 3), rngs=rngs)
        self.after = nnx.Conv(WIDTH, WIDTH, (1, 1), rngs=rngs)
        self.readout = nnx.Linear(WIDTH, 2, rngs=rngs)
        self.count = count_include_pad

    def __call__(self, x):
        h = nnx.relu(self.conv(x))
        h = nnx.avg_pool(h, (3, 2), strides=(2, 2), padding="SAME", count_include_pad=self.count)
        return self.readout(nnx.relu(self.after(h)).mean(axis=(1, 2)))


@pytest.mark.parametrize("count", [True, False])
def test_flax_average_pooling(rng, count):
    x, y, s = images(rng, *IMAGE)
    table = grid(window(5, 3, stride=2, padding="SAME"), window(4, 2, stride=2, padding="SAME"), lengths=IMAGE)
    s = s.conv(SAME, 1 / 9, 0.0, eta_b=1.0).act(Relu).linear(average(table, 20, count))
    s = s.dense(**FLAX).act(Relu).pooled().dense(**FLAX)
    x, y = (np.moveaxis(part, 1, -1) for part in (x, y))
    check(limit(lambda key: FlaxPool(nnx.Rngs(key), count)), x, y, s)


@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_image_resize(rng, method):
    x, y, s = images(rng, 3, 2)
    enlarge = lambda h: jax.image.resize(h, (WIDTH, 7, 5), method)  # noqa: E731
    layers = [conv(IN, WIDTH, 2, padding="SAME"), jax.nn.relu, enlarge]
    kernel = limit(sequential(*layers, conv(WIDTH, WIDTH, 3), jax.nn.relu, pool, readout()))
    s = equinox_conv(s, square(2, (3, 2), padding="SAME"), IN).act(Relu)
    s = s.linear(np.kron(resized(3, 7, method), resized(2, 5, method)))
    check(kernel, x, y, equinox_conv(s, square(3, (7, 5)), WIDTH).act(Relu).pooled().dense(1 / 3))


def convs(keys, *shapes, **options):
    return [eqx.nn.Conv2d(i, o, size, key=next(keys), **options) for i, o, size in shapes]


def test_residual_blocks(rng):
    x, y, s = images(rng, *IMAGE)

    def build(keys):
        shapes = [(IN, WIDTH, 3)] + 4 * [(WIDTH, WIDTH, 3)]
        return dict(convs=convs(keys, *shapes, padding=1), readout=eqx.nn.Linear(WIDTH, 1, False, key=next(keys)))

    def forward(parts, x):
        first, *rest = parts["convs"]
        h = first(x)
        for inner, outer in zip(rest[::2], rest[1::2], strict=True):
            h = h + 0.5 * outer(jax.nn.relu(inner(jax.nn.relu(h))))
        return parts["readout"](pool(jax.nn.relu(h)))

    s = equinox_conv(s, SAME, IN)
    for _ in range(2):
        s = s + equinox_conv(equinox_conv(s.act(Relu), SAME, WIDTH).act(Relu), SAME, WIDTH) * 0.5
    check(limit(model(build, forward)), x, y, s.act(Relu).pooled().dense(1 / 3))


def test_images_of_one_pixel_are_vectors(rng):
    x, y, s = images(rng, 1, 1)
    kernel = limit(
        sequential(conv(IN, WIDTH, 1), jax.nn.relu, conv(WIDTH, WIDTH, 1), jax.nn.relu, jnp.ravel, readout())
    )
    expected = s.dense(1 / 3, 1 / 9).act(Relu).dense(1 / 3, 1 / (3 * WIDTH)).act(Relu).dense(1 / 3)
    check(kernel, x, y, expected)


@pytest.mark.parametrize("groups", [1, 3])
def test_group_norm(rng, groups):
    """Normalised over the channels of a group and all places, then an activation."""
    x, y, s = images(rng, *IMAGE)
    norm = Build(lambda key: eqx.nn.GroupNorm(groups, WIDTH))
    layers = [conv(IN, WIDTH, 3), jax.nn.relu, conv(WIDTH, WIDTH, 2), norm, jax.nn.relu, pool, readout()]
    s = equinox_conv(equinox_conv(s, square(3), IN).act(Relu), square(2, (3, 2)), WIDTH)
    check(limit(sequential(*layers)), x, y, s.group_norm(1e-5, then=Relu).pooled().dense(1 / 3))


def test_group_norm_of_an_activation(rng):
    """The average of an activation over the channels and places is subtracted."""
    x, y, s = images(rng, *IMAGE)
    norm = Build(lambda key: eqx.nn.GroupNorm(2, WIDTH))
    layers = [conv(IN, WIDTH, 3), jax.nn.relu, norm, conv(WIDTH, WIDTH, 1), jax.nn.relu, pool, readout()]
    s = equinox_conv(s, square(3), IN).act(Relu).group_norm(1e-5).dense(1 / 3, 1 / (3 * WIDTH)).act(Relu)
    check(limit(sequential(*layers)), x, y, s.pooled().dense(1 / 3))


def test_squeeze_and_excitation(rng):
    x, y, s = images(rng, *IMAGE)

    def build(keys):
        linear = [eqx.nn.Linear(WIDTH, out, False, key=next(keys)) for out in (WIDTH, WIDTH, 2)]
        return dict(convs=convs(keys, (IN, WIDTH, 3), (WIDTH, WIDTH, 2)), linear=linear)

    def forward(parts, x):
        first, second = parts["convs"]
        squeeze, expand, last = parts["linear"]
        h = jax.nn.relu(first(x))
        gate = 0.5 * (1 + jax.lax.erf(expand(jax.nn.relu(squeeze(pool(h))))))
        return last(pool(jax.nn.relu(second(h * gate[:, None, None]))))

    h = equinox_conv(s, square(3), IN).act(Relu)
    gate = h.pooled().dense(1 / 3).act(Relu).dense(1 / 3).act(Erf).plus(1.0) * 0.5
    s = equinox_conv(h.times(gate.linear(np.ones((6, 1)))), square(2, (3, 2)), WIDTH).act(Relu)
    check(limit(model(build, forward)), x, y, s.pooled().dense(1 / 3))


def test_groups_of_channels(rng):
    """A group contracts half of the channels, with weights of twice the variance."""
    x, y, s = images(rng, *IMAGE)
    layers = [conv(IN, WIDTH, 1), jax.nn.relu, conv(WIDTH, WIDTH, 3, groups=2), jax.nn.relu, pool, readout()]
    s = s.dense(1 / 3, 1 / (3 * IN)).act(Relu)
    s = equinox_conv(s, square(3), WIDTH // 2).act(Relu).pooled().dense(1 / 3)
    check(limit(sequential(*layers)), x, y, s)


def test_depthwise_separable(rng):
    """A filter for each channel, then a mixture of channels: together one Gaussian."""
    x, y, s = images(rng, *IMAGE)
    depthwise = conv(WIDTH, WIDTH, 3, groups=WIDTH, use_bias=False, padding="SAME")
    layers = [conv(IN, WIDTH, 1), jax.nn.relu, depthwise, conv(WIDTH, WIDTH, 1), jax.nn.relu, pool, readout()]
    s = s.dense(1 / 3, 1 / (3 * IN)).act(Relu).conv(SAME, 1 / 27).dense(1 / 3, 1 / (3 * WIDTH)).act(Relu)
    check(limit(sequential(*layers)), x, y, s.pooled().dense(1 / 3))


def test_channel_concatenation(rng):
    """A dense block: every layer reads the features of all earlier ones."""
    x, y, s = images(rng, *IMAGE)

    def build(keys):
        body = convs(keys, (IN, 8, 3), (8, 10, 3), (18, 12, 3), padding=1)
        return dict(convs=body, readout=eqx.nn.Linear(30, 1, False, key=next(keys)))

    def forward(parts, x):
        first, second, third = parts["convs"]
        h = jax.nn.relu(first(x))
        h = jnp.concatenate([h, jax.nn.relu(second(h))])
        h = jnp.concatenate([h, jax.nn.relu(third(h))])
        return parts["readout"](pool(h))

    first = equinox_conv(s, SAME, IN).act(Relu)
    second = equinox_conv(first, SAME, 8).act(Relu)
    third = equinox_conv(along_channels((8, first), (10, second)), SAME, 18).act(Relu)
    s = along_channels((8, first), (10, second), (12, third))
    check(limit(model(build, forward)), x, y, s.pooled().dense(1 / 3))
