"""Sites behind which positions come together: one gradient for all outputs, wherever that is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tangency as tg
from tests.oracles.jacobian import ntk

OUTPUTS = 5


pytestmark = pytest.mark.usefixtures("double_precision")


def conv(w, x, stride=1, groups=1):
    return lax.conv_general_dilated(x[None], w, (stride, stride), "SAME", feature_group_count=groups)[0]


def window(x, operation, start, shape=(6, 4)):
    return lax.reduce_window(x, start, operation, (1, *shape), (1, *shape), "VALID")


@jax.custom_jvp
def shared_slope(x):
    """Its declared derivative mixes channels, which its values do not."""
    return 2.0 * x


shared_slope.defjvp(lambda primals, tangents: (2.0 * primals[0], jnp.cumsum(tangents[0], 0)))


def late_bias(p, x):
    return jax.nn.relu(conv(p["w"], x) + p["b"][:, None, None]).mean((1, 2))


def in_two_steps(p, x):
    return jnp.tanh(jax.nn.gelu(conv(p["w"], x)).sum(1)).mean(1)


def average_pool(p, x):
    return window(jax.nn.silu(conv(p["w"], x)), lax.add, 0.0).ravel()


def maximum_pool(p, x):
    return window(conv(p["w"], x), lax.max, -jnp.inf)[:, 0, 0]


def positions_first(p, x):
    y = lax.conv_general_dilated(
        x.transpose(1, 2, 0)[None], p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    return jax.nn.relu(y[0]).mean((0, 1))


def turned(p, x):
    return jax.nn.relu(conv(p["w"], x)).transpose(2, 0, 1).max((0, 2))


def residual(p, x):
    y = jax.nn.relu(conv(p["w"], x))
    return jax.nn.relu(y + p["b"][:, None, None] * conv(p["u"], y)).mean((1, 2))


def two_at_once(p, x):
    return jax.nn.relu(conv(p["w"], x) + p["b"][:, None, None] * conv(p["e"], x)).mean((1, 2))


def nested_jit(p, x):
    pooled = jax.jit(lambda w: jax.nn.silu(conv(w, x)).mean((1, 2)))
    return pooled(p["w"]) * pooled(p["e"])


def with_itself(p, x):
    y = conv(p["w"], x)
    return (y * jnp.tanh(y) * jax.nn.sigmoid(y.mean((1, 2), keepdims=True)[:, 0, 0])[:, None, None]).mean((1, 2))


def squared(p, x):
    y = conv(p["w"], x)
    return (y * jnp.tanh(y) + jnp.arange(24.0).reshape(1, 6, 4) * y**2).sum((1, 2)) / 24


def grouped(p, x):
    return jax.nn.relu(conv(p["g"], x, groups=3)).mean((1, 2))


def strided(p, x):
    return jnp.abs(conv(p["w"], x, 2)).max((1, 2))


def tokens(p, x):
    return jnp.tanh(x.reshape(3, 24).T @ p["d"].T).mean(0)


def first_token(p, x):
    return jnp.tanh(x.reshape(3, 24).T @ p["d"].T)[:1].sum(0)


def unscaled(p, x):
    return jax.checkpoint(jax.nn.relu)(conv(p["w"], x)).mean((1, 2))


def softmax(p, x):
    return jax.nn.softmax(conv(p["w"], x), 0).mean((1, 2))


def used_again(p, x):
    y = conv(p["w"], x)
    return jax.nn.relu(y).mean((1, 2)) + jnp.cumsum(y[:, 0, 0])


def twice(p, x):
    return jax.nn.relu(conv(p["w"], x)).mean((1, 2)) + jnp.tanh(conv(p["w"], x)).mean((1, 2))


def mixing_derivative(p, x):
    return shared_slope(conv(p["w"], x)).mean((1, 2))


def channels_merged(p, x):
    return jnp.tile(jax.nn.relu(conv(p["w"], x)).reshape(3, -1).sum(1), 2)


def straight(p, x):
    return conv(p["w"], x)[:, 0, 0]


def normalised(p, x):
    y = conv(p["w"], x)
    return (y / jnp.sqrt(1 + (y**2).mean(0, keepdims=True))).mean((1, 2))


def in_a_loop(p, x):
    def step(h, _):
        return jnp.tanh(conv(p["s"], h)), None

    return lax.scan(step, x, None, length=2)[0].mean((1, 2))[jnp.arange(6) % 3]


POOLED = [
    late_bias, in_two_steps, average_pool, maximum_pool, positions_first, turned, residual, squared, grouped, strided,
    two_at_once, nested_jit, tokens, first_token, straight,
]  # fmt: skip
APART = [with_itself, unscaled, softmax, used_again, twice, mixing_derivative, channels_merged, normalised, in_a_loop]


@pytest.fixture
def parameters(rng):
    shapes = {
        "w": (6, 3, 3, 3),
        "u": (6, 6, 3, 3),
        "b": (6,),
        "d": (6, 3),
        "g": (6, 1, 3, 3),
        "e": (6, 3, 3, 3),
        "s": (3, 3, 3, 3),
        "v": (OUTPUTS, 6),
    }
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def ways(kernel):
    """What is printed of each parameter."""
    return dict(line.split(maxsplit=1) for line in str(kernel).splitlines()[1:])


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
@pytest.mark.parametrize("features", [*POOLED, *APART], ids=lambda features: features.__name__)
def test_against_explicit_jacobians(features, outputs, parameters, rng):
    def network(p, x):
        return p["v"] @ features(p, x)

    x = rng.normal(size=(7, 3, 6, 4))
    every = np.asarray(ntk(network, parameters, x, x))
    diagonal = np.diagonal(every, axis1=2, axis2=3)
    expected = {"full": every, "diagonal": diagonal, "mean": diagonal.mean(-1)}[outputs]
    kernel = tg.empirical(network, parameters, outputs=outputs)
    for found, own in ((kernel(x), expected), (kernel(x, x[:3]), expected[:, :3])):
        np.testing.assert_allclose(found, own, rtol=1e-10, atol=1e-10 * np.abs(own).max())
    own = {"residual": "u", "grouped": "g", "tokens": "d", "first_token": "d", "in_a_loop": "s"}
    leaves = "we" if features in (two_at_once, nested_jit) else own.get(features.__name__, "w")
    assert all(("pooled" in ways(kernel)[leaf]) == (features in POOLED) for leaf in leaves), str(kernel)
