"""Small networks for fused programs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tangency import limit

WIDTH = 8


def dense(*activations, bias=False, inputs=5):
    def make(key):
        keys = jax.random.split(key, len(activations) + 1)
        layers = []
        for i, activation in enumerate(activations):
            layers.append(eqx.nn.Linear(WIDTH if i else inputs, WIDTH, use_bias=bias, key=keys[i]))
            layers.append(eqx.nn.Lambda(activation))
        return eqx.nn.Sequential([*layers, eqx.nn.Linear(WIDTH, 1, use_bias=bias, key=keys[-1])])

    return make


def convolutional(first, second, head, pooled=False):
    def make(key):
        keys = jax.random.split(key, 3)
        layers = [eqx.nn.Conv2d(2, WIDTH, (2, 3), padding=[(1, 0), (0, 2)], use_bias=False, key=keys[0])]
        layers.append(eqx.nn.Lambda(first))
        if pooled:
            layers.append(eqx.nn.AvgPool2d((2, 1), (2, 1)))
        layers.append(eqx.nn.Conv2d(WIDTH, WIDTH, 3, stride=(2, 1), padding=1, use_bias=False, key=keys[1]))
        layers.append(eqx.nn.Lambda(second))
        layers.append(eqx.nn.Lambda(jnp.ravel if head == "flatten" else lambda h: h.mean((1, 2))))
        features = 8 * WIDTH if head == "flatten" else WIDTH
        return eqx.nn.Sequential([*layers, eqx.nn.Linear(features, 1, use_bias=False, key=keys[2])])

    return make


class Gated(eqx.Module):
    """Two functions of one signal, one with a coefficient of its own: expectations of one with the other."""

    layers: list
    first: object = eqx.field(static=True)
    second: object = eqx.field(static=True)

    def __init__(self, key, first, second):
        sizes = ((5, WIDTH), (WIDTH, 1))
        self.layers = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, jax.random.split(key), strict=True)]
        self.first, self.second = first, second

    def __call__(self, x, key=None):
        u = self.layers[0](x)
        return self.layers[1](self.first(u) * jnp.sum(x) + self.second(u))


def gated(first, second):
    return lambda key: Gated(key, first, second)


def agree(make, x, y, rtol):
    """Asserts that the whole network is fused and agrees with XLA; returns the fused kernel and XLA's K and Θ."""
    fused, expected = limit(make, fused=True), limit(make, fused=False).evaluate("both", x, y)
    np.testing.assert_allclose(fused.evaluate("both", x, y), expected, rtol=rtol)
    assert str(fused).endswith("the whole network is fused on the CPU")
    return fused, expected
