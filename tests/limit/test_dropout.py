"""Dropout in training: masks of each example's own, against the recursion by hand."""

from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tangency as tg
from tangency.errors import InputError, UnsupportedModelError

FEATURES = 6
KEEP = 0.7


class Dropped(eqx.Module):
    """Two layers of ReLU with dropout after each."""

    layers: list[Any]
    dropout: Any

    def __init__(self, key: Any, rate: float = 1 - KEEP):
        keys = jax.random.split(key, 3)
        sizes = (FEATURES, 64, 64, 2)
        self.layers = [
            eqx.nn.Linear(a, b, use_bias=False, key=k) for (a, b), k in zip(pairwise(sizes), keys, strict=True)
        ]
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x: Any, key: Any = None) -> Any:
        keys = (None, None) if key is None else jax.random.split(key)
        for layer, k in zip(self.layers[:-1], keys, strict=True):
            x = self.dropout(jax.nn.relu(layer(x)), key=k)
        return self.layers[-1](x)


class DroppedNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, normed: bool = False):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        sizes = (FEATURES, 64, 64, 2)
        self.layers = nnx.List(
            [nnx.Linear(a, b, use_bias=False, kernel_init=init, rngs=rngs) for a, b in pairwise(sizes)]
        )
        self.norm = nnx.BatchNorm(64, rngs=rngs) if normed else lambda h: h
        self.dropouts = nnx.List([nnx.Dropout(1 - KEEP, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        for layer, dropout in zip(self.layers[:-1], self.dropouts, strict=True):
            x = dropout(self.norm(nnx.relu(layer(x))))
        return self.layers[-1](x)


def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, Θ) of the network above; uniform weights of variance 1/(3 fan-in) (Cho and Saul 2009 for ReLU)."""
    k = x @ x.T / (3 * FEATURES)
    theta = k.copy()
    noisy = np.eye(len(x)) / KEEP + 1 - np.eye(len(x))
    for _ in range(2):
        scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        angle = np.arccos(np.clip(k / scale, -1, 1))
        np.fill_diagonal(angle, 0)
        moment = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) * noisy
        theta = (moment + (np.pi - angle) / (2 * np.pi) * noisy * theta) / 3
        k = moment / 3
    return k, theta


def examples() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, FEATURES))


@pytest.mark.parametrize("make", [Dropped, lambda key: DroppedNnx(nnx.Rngs(key))], ids=["equinox", "nnx"])
def test_against_the_recursion(make: Any) -> None:
    kernel = tg.limit(make, training=True)
    k, theta = by_hand(examples())
    found = kernel.both(examples())
    np.testing.assert_allclose(found[0], k, rtol=1e-10)
    np.testing.assert_allclose(found[1], theta, rtol=1e-10)
    np.testing.assert_allclose(kernel.diagonal("ntk", examples()), np.diag(theta), rtol=1e-10)
    assert "drawn anew for each example" in str(kernel)


def test_off_unless_asked_for() -> None:
    without = tg.limit(Dropped)(examples())
    np.testing.assert_allclose(without, tg.limit(lambda key: Dropped(key, 0.0))(examples()), rtol=1e-12)
    with_masks = tg.limit(Dropped, training=True)(examples())
    assert np.all(np.diag(with_masks) > np.diag(without))


def test_other_examples_have_other_masks() -> None:
    """Between examples only the variances feel the masks; so a copy is another example."""
    kernel = tg.limit(Dropped, training=True)
    x = examples()
    between = kernel(x, x.copy())
    assert np.all(np.diag(kernel(x)) > np.diag(between))
    upper = np.triu_indices(len(x), 1)
    np.testing.assert_allclose(between[upper], kernel(x)[upper], rtol=1e-12)


def plain(forward: Any, width: int = 64) -> Any:
    def init(key: Any) -> Any:
        a, b = jax.random.split(key)
        weights = jax.random.normal(a, (width, FEATURES)), jax.random.normal(b, (1, width)) / width**0.5
        return weights, jax.random.key(3)

    return init, lambda p, x: p[0][1] @ forward(p[0][0] @ x, p[1])


def test_one_key_is_one_mask() -> None:
    """The same key used twice draws one mask: m² = m."""

    def twice(u: Any, key: Any) -> Any:
        first, second = (jax.random.bernoulli(key, 0.5, u.shape) for _ in range(2))
        return jnp.where(first, u, 0.0) + jnp.where(second, u, 0.0)

    def once(u: Any, key: Any) -> Any:
        return 2 * jnp.where(jax.random.bernoulli(key, 0.5, u.shape), u, 0.0)

    x = examples()
    np.testing.assert_allclose(tg.limit(plain(twice))(x), tg.limit(plain(once))(x), rtol=1e-12)

    def apart(u: Any, key: Any) -> Any:
        masks = (jax.random.bernoulli(k, 0.5, u.shape) for k in jax.random.split(key))
        return sum(jnp.where(mask, u, 0.0) for mask in masks)

    # E[(m + m')²] is 1 for one mask used twice counted at 1/2 · 4, and 3/2 for two.
    ratio = np.diag(tg.limit(plain(apart)).nngp(x)) / np.diag(tg.limit(plain(once)).nngp(x))
    np.testing.assert_allclose(ratio, 0.75, rtol=1e-12)


def test_a_nonlinearity_of_dropped_units_is_refused() -> None:
    def forward(u: Any, key: Any) -> Any:
        return jnp.tanh(jnp.where(jax.random.bernoulli(key, 0.5, u.shape), u, 0.0))

    with pytest.raises(UnsupportedModelError, match="tanh"):
        tg.limit(plain(forward))(examples())


def test_other_draws_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="a random key in the forward pass"):
        tg.limit(plain(lambda u, key: u + jax.random.normal(key, u.shape)))(examples())


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
def test_batch_norm_while_training_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="depends on the others in the batch"):
        tg.limit(lambda key: DroppedNnx(nnx.Rngs(key), normed=True), training=True)(examples())


def test_wrong_choice() -> None:
    with pytest.raises(InputError, match="training: expected True or False"):
        tg.limit(Dropped, training=1)  # pyright: ignore[reportArgumentType]
