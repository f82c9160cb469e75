"""Two spellings of one network have the same limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg

WIDTH = 16

PAIRS = {
    "scales by einsum": (
        lambda p, h: jnp.einsum("tc,c->tc", h, p["scale"]),
        lambda p, h: h * p["scale"][None],
    ),
    "scales of an activation, the parameter first": (
        lambda p, h: jnp.einsum("c,tc->tc", p["scale"], jnp.sin(h)) @ p["w"],
        lambda p, h: (p["scale"][None] * jnp.sin(h)) @ p["w"],
    ),
    "positions tiled": (
        lambda p, h: jnp.tile(jnp.sin(h), (3, 1)) @ p["w"],
        lambda p, h: jnp.concatenate([jnp.sin(h)] * 3) @ p["w"],
    ),
    "units tiled": (
        lambda p, h: jnp.tile(h, (1, 2)) @ p["wide"],
        lambda p, h: jnp.concatenate([h, h], 1) @ p["wide"],
    ),
    "a token tiled": (
        lambda p, h: jnp.concatenate([jnp.tile(p["token"], (2, 1)), h]),
        lambda p, h: jnp.concatenate([p["token"], p["token"], h]),
    ),
    "both axes tiled": (
        lambda p, h: jnp.tile(h, (2, 2)) @ p["wide"],
        lambda p, h: jnp.concatenate([jnp.concatenate([h, h], 1)] * 2) @ p["wide"],
    ),
}


def initial(key):
    k = jax.random.split(key, 5)
    return {
        "in": jax.random.normal(k[0], (3, WIDTH)) / np.sqrt(3),
        "w": jax.random.normal(k[1], (WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "wide": jax.random.normal(k[2], (2 * WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "token": jax.random.normal(k[3], (1, WIDTH)),
        "scale": jnp.ones(WIDTH),
        "out": jax.random.normal(k[4], (WIDTH, 1)) / np.sqrt(WIDTH),
    }


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_same_limit(pair, rng):
    def network(spelling):
        return initial, lambda p, x: (jnp.tanh(spelling(p, x @ p["in"])) @ p["out"]).mean(0)

    x = rng.normal(size=(3, 4, 3))
    found, expected = (tg.limit(network(spelling)) for spelling in pair)
    np.testing.assert_allclose(found(x), expected(x), rtol=1e-12)
    np.testing.assert_allclose(found.nngp(x), expected.nngp(x), rtol=1e-12)


def test_tiling_no_times_is_refused():
    network = initial, lambda p, x: (jnp.tile(x @ p["in"], (0, 1)) @ p["out"]).sum(0)
    with pytest.raises(tg.errors.UnsupportedModelError, match=r"'tile' .* repeats a signal no times\. Repeat it once"):
        tg.limit(network)(np.ones((2, 4, 3)))
