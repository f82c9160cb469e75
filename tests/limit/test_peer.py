"""Kernels of whole networks against an independent implementation; peer/networks.json says which, and how made."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit

WIDTH = 64
RECTIFIED_SQUARE = "rectified square, depth 1"
PEER = json.loads((Path(__file__).parent / "peer" / "networks.json").read_text())
X1, X2 = np.array(PEER["x1"]), np.array(PEER["x2"])


@dataclass(frozen=True)
class Network:
    """A network made of affine layers: (fan-in, w_std, b_std) of each, in the order in which `forward` takes them."""

    layers: list[tuple[int, float, float | None]]
    forward: Callable[[Iterator[Callable], jax.Array], jax.Array]

    def init(self, key: jax.Array) -> list[dict[str, jax.Array]]:
        parameters = []
        for k, (fan_in, w, b) in zip(jax.random.split(key, len(self.layers)), self.layers, strict=True):
            weight_key, bias_key = jax.random.split(k)
            layer = {"weight": w / np.sqrt(fan_in) * jax.random.normal(weight_key, (fan_in, WIDTH))}
            if b is not None:
                layer["bias"] = b * jax.random.normal(bias_key, (WIDTH,))
            parameters.append(layer)
        return parameters

    def apply(self, parameters: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        return self.forward((affine(layer) for layer in parameters), x)


def affine(layer: dict[str, jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: x @ layer["weight"] + layer["bias"] if "bias" in layer else x @ layer["weight"]


def mlp(phi: Callable[[jax.Array], jax.Array], depth: int, w: float, b: float | None) -> Network:
    def forward(dense: Iterator[Callable], x: jax.Array) -> jax.Array:
        for _ in range(depth):
            x = phi(next(dense)(x))
        return next(dense)(x)

    return Network([(5, w, b)] + [(WIDTH, w, b)] * depth, forward)


def residual(branch: Callable[[jax.Array], jax.Array], last: Callable[[jax.Array], jax.Array]) -> Network:
    """x ↦ readout(last(h₃)), h_{l+1} = h_l + W_l branch(h_l) + b_l."""

    def forward(dense: Iterator[Callable], x: jax.Array) -> jax.Array:
        h = next(dense)(x)
        for _ in range(3):
            h = h + next(dense)(branch(h))
        return next(dense)(last(h))

    return Network([(5, 1.2, 0.1), *[(WIDTH, 1.1, 0.2)] * 3, (WIDTH, 1.0, 0.1)], forward)


def two_branches() -> Network:
    def forward(dense: Iterator[Callable], x: jax.Array) -> jax.Array:
        left = jax.nn.relu(next(dense)(x))
        left = jax.nn.relu(next(dense)(left))
        right = jax.lax.erf(next(dense)(x))
        h = jax.nn.relu(next(dense)(jnp.concatenate([left, right])))
        return next(dense)(h)

    layers = [(5, 1.4, 0.1), (WIDTH, 1.4, 0.1), (5, 1.1, 0.3), (2 * WIDTH, 1.3, 0.1), (WIDTH, 1.0, 0.1)]
    return Network(layers, forward)


def normalised(h: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation without scale and shift."""
    centred = h - jnp.mean(h)
    return centred / jnp.sqrt(jnp.mean(centred**2) + eps)


def abrelu(u: jax.Array) -> jax.Array:
    return -0.3 * jnp.minimum(u, 0.0) + 1.2 * jnp.maximum(u, 0.0)


def gelu(u: jax.Array) -> jax.Array:
    return jax.nn.gelu(u, approximate=False)


def rbf(u: jax.Array) -> jax.Array:
    """Random Fourier feature whose dual is exp(−0.6 (a + b − 2c))."""
    return jnp.sqrt(2.0) * jnp.sin(jnp.sqrt(1.2) * u + jnp.pi / 4)


NETWORKS = {
    "relu, depth 1": mlp(jax.nn.relu, 1, 1.4, 0.1),
    "relu, depth 3, no bias": mlp(jax.nn.relu, 3, 1.5, None),
    "relu, depth 8": mlp(jax.nn.relu, 8, 1.4, 0.1),
    "leaky relu, depth 3": mlp(lambda u: jax.nn.leaky_relu(u, 0.1), 3, 1.3, 0.2),
    "abrelu, depth 3": mlp(abrelu, 3, 1.1, 0.3),
    "abs, depth 1": mlp(jnp.abs, 1, 1.0, 0.1),
    "erf, depth 3": mlp(jax.lax.erf, 3, 1.3, 0.2),
    "erf, depth 8, no bias": mlp(lambda u: 0.9 * jax.lax.erf(1.2 * u), 8, 1.3, None),
    "sigmoid-like erf, depth 3": mlp(lambda u: 0.5 * jax.lax.erf(u / 2.4020563531719796) + 0.5, 3, 1.5, 0.2),
    "gelu, depth 3, no bias": mlp(gelu, 3, 1.5, None),
    "gelu, depth 1": mlp(gelu, 1, 1.4, 0.1),
    "sin, depth 2": mlp(lambda u: 1.1 * jnp.sin(0.8 * u + 0.4), 2, 1.2, 0.1),
    "cos, depth 1": mlp(lambda u: jnp.cos(0.7 * u), 1, 1.2, 0.1),
    "rbf, depth 1, no bias": mlp(rbf, 1, 1.0, None),
    "rbf, depth 2": mlp(rbf, 2, 0.8, 0.1),
    "exp, depth 1": mlp(lambda u: 0.8 * jnp.exp(0.5 * u), 1, 0.9, 0.1),
    "gaussian, depth 2": mlp(lambda u: jnp.exp(-0.5 * u**2), 2, 1.2, 0.1),
    "monomial, depth 1": mlp(lambda u: u**3, 1, 0.9, 0.2),
    "polynomial, depth 2": mlp(lambda u: 0.2 + 0.5 * u - 0.3 * u**2 + 0.1 * u**3, 2, 0.8, 0.2),
    RECTIFIED_SQUARE: mlp(lambda u: jax.nn.relu(u) ** 2, 1, 0.9, 0.2),
    "residual relu, 3 blocks": residual(jax.nn.relu, lambda h: h),
    "residual gelu after layer norm, 3 blocks": residual(
        lambda h: gelu(normalised(h, 1e-5)), lambda h: normalised(h, 1e-5)
    ),
    "erf after layer norm, depth 3, no bias": mlp(lambda u: jax.lax.erf(normalised(u, 1e-3)), 3, 1.3, None),
    "concatenation of a relu and an erf branch": two_branches(),
}


def test_every_stored_network_is_compared():
    assert NETWORKS.keys() == PEER["networks"].keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_agree_with_an_independent_implementation(name):
    network = NETWORKS[name]
    stored = [np.array(PEER["networks"][name][kind], np.float64) for kind in ("nngp", "ntk")]
    assert [np.isnan(matrix).sum() for matrix in stored] == [1, 1] if name == RECTIFIED_SQUARE else [0, 0]
    for ours, theirs in zip(limit((network.init, network.apply)).both(X1, X2), stored, strict=True):
        known = np.isfinite(theirs)
        np.testing.assert_allclose(ours[known], theirs[known], rtol=1e-10, atol=0.0)


def test_where_the_other_implementation_has_no_number():
    """relu(u)² at equal examples: E[relu(u)⁴] = 3a²/2 and E[(2 relu(u))²] = 2a, with a = K of the first layer."""
    assert PEER["networks"][RECTIFIED_SQUARE]["nngp"][3][1] is None and np.array_equal(X1[3], X2[1])
    network = NETWORKS[RECTIFIED_SQUARE]
    k, theta = limit((network.init, network.apply)).both(X1, X2)
    a = 0.81 / 5 * X1[3] @ X1[3] + 0.04
    expected = 0.81 * 1.5 * a**2 + 0.04
    np.testing.assert_allclose(k[3, 1], expected, rtol=1e-12)
    np.testing.assert_allclose(theta[3, 1], expected + 0.81 * 2 * a * a, rtol=1e-12)
