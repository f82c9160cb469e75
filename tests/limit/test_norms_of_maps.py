"""Norms of pooled and depthwise signals, which are no Gaussians: second moments are all that they need."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tangency import limit
from tangency.errors import UnsupportedModelError
from tests.limit.test_convolution import IMAGE, IN, SAME, WIDTH, Build, conv, images, model, pool, readout, sequential
from tests.oracles.spatial import Erf, Relu, State, average, check, grid, window

EPS = 1e-5
STEM = conv(IN, WIDTH, 1), jax.nn.relu


def stem(s: State) -> State:
    """A 1×1 convolution and a ReLU."""
    return s.dense(1 / 3, 1 / (3 * IN)).act(Relu)


def everywhere(layer: Callable) -> Callable:
    """What acts on the channels, at each position."""
    return jax.vmap(jax.vmap(layer, 1, 1), 2, 2)


def without_deviation(s: State) -> State:
    """Divided by its deviation over the channels."""
    return s.linear((1 / np.sqrt(s.variance - s.mean**2))[:, :, None])


@pytest.mark.parametrize(
    ("norm", "finish"),
    [
        (Build(lambda key: eqx.nn.LayerNorm(WIDTH)), lambda s: s.layer_norm(EPS)),
        (Build(lambda key: eqx.nn.RMSNorm(WIDTH)), lambda s: s.rms_norm(EPS, eta_shift=1.0)),
        (Build(lambda key: eqx.nn.GroupNorm(2, WIDTH)), lambda s: s.layer_norm(EPS)),
        (lambda h: np.sqrt(WIDTH) * h / jnp.linalg.norm(h), lambda s: s.rms_norm(0.0, 0.0)),
        (lambda h: h / jnp.sqrt((h**2).mean() + 0.1), lambda s: s.rms_norm(0.1, 0.0)),
        (lambda h: h / h.std(), without_deviation),
    ],
    ids=["LayerNorm", "RMSNorm", "GroupNorm", "unit length", "mean square", "deviation"],
)
def test_norms_of_an_average(rng, norm, finish):
    x, y, s = images(rng, *IMAGE)
    check(limit(sequential(*STEM, pool, norm, readout())), x, y, finish(stem(s).pooled()).dense(1 / 3))


def test_norm_of_windows_of_an_average(rng):
    """Each position by itself, and all of them together."""
    x, y, s = images(rng, *IMAGE)
    windows = eqx.nn.AvgPool2d(2, 1)
    s = stem(s).linear(average(grid(window(5, 2), window(4, 2), lengths=IMAGE), 20))
    after = conv(WIDTH, WIDTH, 1), jax.lax.erf, pool, readout()

    def finished(s):
        return s.dense(1 / 3, 1 / (3 * WIDTH)).act(Erf).pooled().dense(1 / 3)

    layer = Build(lambda key: eqx.nn.Lambda(everywhere(eqx.nn.LayerNorm(WIDTH, use_weight=False, use_bias=False))))
    check(limit(sequential(*STEM, windows, layer, *after)), x, y, finished(s.layer_norm(EPS, 0.0, 0.0)))
    group = Build(lambda key: eqx.nn.GroupNorm(3, WIDTH))
    check(limit(sequential(*STEM, windows, group, *after)), x, y, finished(s.group_norm(EPS)))


def test_norm_of_an_average_of_branches(rng):
    """An activation beside a Gaussian, which are correlated through nothing but the input."""
    x, y, s = images(rng, *IMAGE)

    def build(keys):
        make = [conv(IN, WIDTH, 1), conv(WIDTH, WIDTH, 1, use_bias=False), readout()]
        return dict(layers=[m(next(keys)) for m in make], norm=eqx.nn.LayerNorm(WIDTH))

    def forward(parts, x):
        first, second, last = parts["layers"]
        h = jax.nn.relu(first(x))
        return last(parts["norm"](pool(h + second(h))))

    s = stem(s)
    check(limit(model(build, forward)), x, y, (s + s.dense(1 / 3)).pooled().layer_norm(EPS).dense(1 / 3))


def test_norm_of_a_depthwise_convolution(rng):
    x, y, s = images(rng, *IMAGE)
    depthwise = conv(WIDTH, WIDTH, 3, groups=WIDTH, padding="SAME")

    def build(keys):
        make = [conv(IN, WIDTH, 1), depthwise, conv(WIDTH, WIDTH, 1), readout()]
        return dict(layers=[m(next(keys)) for m in make], norm=eqx.nn.LayerNorm(WIDTH))

    def forward(parts, x):
        first, second, third, last = parts["layers"]
        h = everywhere(parts["norm"])(second(jax.nn.relu(first(x))))
        return last(pool(jax.nn.relu(third(h))))

    s = stem(s).conv(SAME, 1 / 27, 1 / 27).layer_norm(EPS).dense(1 / 3, 1 / (3 * WIDTH)).act(Relu)
    check(limit(model(build, forward)), x, y, s.pooled().dense(1 / 3))


class ConvNeXt(nnx.Module):
    """Two blocks (Liu et al. 2022, figure 4) with erf for GELU, between a patch embedding and a normalised average."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(IN, WIDTH, (2, 2), strides=(1, 1), padding="VALID", rngs=rngs)
        self.depthwise = nnx.List(
            [nnx.Conv(WIDTH, WIDTH, (3, 3), feature_group_count=WIDTH, rngs=rngs) for _ in range(2)]
        )
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs) for _ in range(4)])
        self.wide = nnx.List([nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs) for _ in range(2)])
        self.narrow = nnx.List([nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        h = self.norms[0](self.stem(x))
        for depthwise, norm, wide, narrow in zip(self.depthwise, self.norms[1:], self.wide, self.narrow, strict=False):
            h = h + narrow(jax.lax.erf(wide(norm(depthwise(h)))))
        return self.head(self.norms[3](h.mean((-3, -2))))


def test_convnext(rng):
    x, y, s = images(rng, *IMAGE)
    x, y = np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)
    biased = dict(b=0.0, eta_b=1.0)
    inside = grid(window(5, 2), window(4, 2), lengths=IMAGE)
    lengths = (4, 3)
    same = grid(*(window(length, 3, padding="SAME") for length in lengths), lengths=lengths)
    h = s.conv(inside, 1 / 4, **biased).layer_norm(EPS)
    for _ in range(2):
        branch = h.conv(same, 1 / 9, **biased).layer_norm(EPS)
        h = h + branch.dense(1.0, **biased).act(Erf).dense(1.0, **biased)
    expected = h.pooled().layer_norm(EPS).dense(1.0)
    check(limit(lambda key: ConvNeXt(nnx.Rngs(params=key)), input_shape=(*IMAGE, IN)), x, y, expected)


@pytest.mark.parametrize(
    "use",
    [lambda h: h**2, lambda h: h**3, lambda h: h * h * h, lambda h: jax.nn.relu(h * h), lambda h: (h * h - 1.0) ** 2],
    ids=["square", "cube", "product of three", "activation", "square of a square"],
)
def test_other_functions_of_an_average_are_refused(rng, use):
    """Only averages over the width may be taken of a square."""
    kernel_of = sequential(*STEM, pool, use, readout())
    with pytest.raises(UnsupportedModelError, match=r"a pooled or depthwise signal\).*numerical=True"):
        limit(kernel_of)(rng.normal(size=(2, IN, *IMAGE)))
