"""Limits of whole networks against finite networks: many random draws, within four standard errors of their mean.

Each standard error is at most one per cent of the kernel's diagonal, so that a wrong factor, a lost cross term or a
branch wrongly taken for independent is seen. Everything but the draws is in float64, with fixed seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tests.oracles.networks import Estimate, finite_kernels

BANDS = 4.0
LARGEST_ERROR = 0.01
FEATURES = 6
WIDTH = 256

Shape = tuple[int, ...]


class Entries(NamedTuple):
    """Parameters drawn from N(mean, deviation²), or from the uniform law of the same moments."""

    shape: Shape
    deviation: float
    mean: float = 0.0
    uniform: bool = False


def weight(*shape: int, uniform: bool = False) -> Entries:
    return Entries(shape, 1 / np.sqrt(shape[-1]), uniform=uniform)


class Network(NamedTuple):
    """hidden(parameters, x) is a feature vector of the given width; a dense layer "v" reads it."""

    hidden: Callable[[Any, Any], Any]
    parameters: dict[str, Entries]
    width: int

    def init(self, outputs: int) -> Callable[[Any], dict[str, jax.Array]]:
        entries = self.parameters | {"v": weight(outputs, self.width)}

        def draw(key: Any, e: Entries) -> jax.Array:
            if e.uniform:
                edge = 3**0.5 * e.deviation
                return jax.random.uniform(key, e.shape, jnp.float32, e.mean - edge, e.mean + edge)
            # Drawing in float64 would take most of the time of these tests.
            return e.mean + e.deviation * jax.random.normal(key, e.shape, jnp.float32)

        def initialise(key: Any) -> dict[str, jax.Array]:
            keys = jax.random.split(key, len(entries))
            return {
                name: draw(k, e) if e.deviation else jnp.full(e.shape, e.mean)
                for k, (name, e) in zip(keys, entries.items(), strict=True)
            }

        return initialise

    def apply(self, p: Any, x: Any) -> Any:
        return p["v"] @ self.hidden(p, x)

    @property
    def rates(self) -> dict[str, float]:
        """The NTK parameterisation: an entry's learning rate is its variance, and 1 where that is 0."""
        entries = self.parameters | {"v": weight(1, self.width)}
        return {name: e.deviation**2 or 1.0 for name, e in entries.items()}


def nngp_estimate(network: Network, x: np.ndarray, draws: int) -> Estimate:
    """K averaged over the readout exactly: one output alone fluctuates so much that it would need 20,000 draws."""
    with jax.enable_x64(True):
        init = network.init(1)

        @jax.jit
        def one(key: Any) -> jax.Array:
            parameters = jax.tree.map(lambda p: p.astype(jnp.float64), init(key))
            h = jax.vmap(lambda a: network.hidden(parameters, a))(jnp.asarray(x))
            return h @ h.T / network.width

        samples = np.stack([np.asarray(one(key)) for key in jax.random.split(jax.random.key(1), draws)])
    return Estimate(samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(draws))


def check(found: np.ndarray, estimate: Estimate) -> None:
    diagonal = np.sqrt(np.outer(np.diag(estimate.mean), np.diag(estimate.mean)))
    assert np.max(estimate.standard_error / diagonal) <= LARGEST_ERROR
    deviations = np.abs(found - estimate.mean) / estimate.standard_error
    assert np.max(deviations) <= BANDS, f"{np.max(deviations):.1f} standard errors"


def rms_norm(h: Any) -> Any:
    return h / jnp.linalg.norm(h) * np.sqrt(len(h))


def layer_norm(h: Any, scale: Any = 1.0, shift: Any = 0.0) -> Any:
    return scale * (h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + 1e-5) + shift


def relu_mlp_with_biases(n: int) -> Network:
    def hidden(p: Any, x: Any) -> Any:
        for layer in ("1", "2"):
            x = jax.nn.relu(p["w" + layer] @ x + p["b" + layer])
        return x

    biases = {f"b{i}": Entries((n,), 0.5) for i in (1, 2)}
    return Network(hidden, {"w1": weight(n, FEATURES), "w2": weight(n, n)} | biases, n)


def uniform_hidden_weights(n: int) -> Network:
    def hidden(p: Any, x: Any) -> Any:
        return jax.lax.erf(p["m"] @ jnp.sin(p["w"] @ x))

    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n, uniform=True)}, n)


def pre_norm_residual(n: int) -> Network:
    def hidden(p: Any, x: Any) -> Any:
        h = p["w"] @ x
        for i in (1, 2):
            h = h + p[f"b{i}"] @ jax.nn.relu(p[f"a{i}"] @ layer_norm(h, p[f"scale{i}"], p[f"shift{i}"]))
        return h

    blocks = {f"{name}{i}": weight(n, n) for i in (1, 2) for name in "ab"}
    norms = {f"scale{i}": Entries((n,), 0.0, 1.0) for i in (1, 2)} | {f"shift{i}": Entries((n,), 0.0) for i in (1, 2)}
    return Network(hidden, {"w": weight(n, FEATURES)} | blocks | norms, n)


def norm_after_an_activation(n: int) -> Network:
    """LayerNorm of a non-Gaussian signal, RMSNorm of the input."""

    def hidden(p: Any, x: Any) -> Any:
        h = layer_norm(jax.nn.relu(p["w"] @ rms_norm(x)), p["scale"], p["shift"])
        return jax.lax.erf(p["m"] @ h)

    norm = {"scale": Entries((n,), 0.0, 1.2), "shift": Entries((n,), 0.0, 0.3)}
    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n)} | norm, n)


def shared_layer_at_different_scales(n: int) -> Network:
    """One weight and one bias used twice; the tangent sums over all pairs of uses."""

    def hidden(p: Any, x: Any) -> Any:
        h = jnp.tanh(p["w"] @ x)
        for scale in (2.0, -0.5):
            h = jnp.tanh(scale * (p["m"] @ h) + p["b"])
        return h

    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n), "b": Entries((n,), 0.4)}, n)


def shared_layer_in_a_residual_block(n: int) -> Network:
    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(p["w"] @ x)
        for _ in range(2):
            h = h + 0.5 * jax.nn.relu(p["m"] @ h)
        return h

    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n)}, n)


def gated_linear_unit(n: int) -> Network:
    def hidden(p: Any, x: Any) -> Any:
        h = jax.lax.erf(p["w"] @ x)
        return (p["a"] @ h) * jax.nn.sigmoid(p["g"] @ h)

    return Network(hidden, {"w": weight(n, FEATURES), "a": weight(n, n), "g": weight(n, n)}, n)


def concatenation_then_norm(n: int) -> Network:
    """Two parts of different variance under one LayerNorm, then one ReLU."""

    def hidden(p: Any, x: Any) -> Any:
        return jax.nn.relu(layer_norm(jnp.concatenate([p["w"] @ x, 3.0 * (p["u"] @ jnp.sin(x))])))

    return Network(hidden, {"w": weight(n // 2, FEATURES), "u": weight(n // 2, FEATURES)}, n)


def zero_and_small_layer_scales(n: int) -> Network:
    """LayerScale at 0.3 and ReZero at 0 per channel: zero variance, learning rate 1."""

    def hidden(p: Any, x: Any) -> Any:
        h = p["w"] @ x
        h = jnp.tanh(h + p["small"] * (p["m"] @ jnp.tanh(h)))
        return p["k"] @ (h + p["zero"] * h**2)

    scales = {"small": Entries((n,), 0.0, 0.3), "zero": Entries((n,), 0.0)}
    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n), "k": weight(n, n)} | scales, n)


def correlated_branches(n: int) -> Network:
    """Functions of one Gaussian in three branches, and of a later Gaussian in a fourth."""

    def hidden(p: Any, x: Any) -> Any:
        u = p["w"] @ x
        h = u + jax.nn.relu(u) - 0.5 * jnp.abs(u)
        return h + jnp.cos(p["m"] @ h)

    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n)}, n)


def gate_by_an_average(n: int) -> Network:
    """The average over the units is a number by the law of large numbers, of zero tangent."""

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(p["w"] @ x)
        return h * jax.nn.sigmoid(4.0 * jnp.mean(h)) + jnp.sin(x[0])

    return Network(hidden, {"w": weight(n, FEATURES)}, n)


def random_scales_and_shifts(n: int) -> Network:
    """One random trainable scale per unit; one random shift used before two layers."""

    def hidden(p: Any, x: Any) -> Any:
        h = p["scale"] * jax.nn.relu(p["w"] @ x + p["shift"])
        return h + jax.nn.relu(p["m"] @ h + p["shift"])

    entries = {"scale": Entries((n,), 0.5, 1.0), "shift": Entries((n,), 0.6)}
    return Network(hidden, {"w": weight(n, FEATURES), "m": weight(n, n)} | entries, n)


def norms_of_a_depthwise_convolution_and_of_an_average(n: int) -> Network:
    """Signals that are no Gaussians, their features along the first axis and three positions along the second."""

    def normalised(h: Any, scale: Any) -> Any:
        return jax.vmap(lambda column: layer_norm(column, scale), 1, 1)(h)

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(p["w"] @ x.reshape(3, 2).T)
        y = jax.lax.conv_general_dilated(h[None], p["d"], (1,), "SAME", feature_group_count=n)[0]
        h = h + p["m"] @ normalised(y, p["scale"])
        return layer_norm(h.mean(1))

    entries = {"d": weight(n, 1, 3), "scale": Entries((n,), 0.0, 1.2)}
    return Network(hidden, {"w": weight(n, 2), "m": weight(n, n)} | entries, n)


NETWORKS = [
    (relu_mlp_with_biases, 300),
    (uniform_hidden_weights, 200),
    (pre_norm_residual, 300),
    (norm_after_an_activation, 250),
    (shared_layer_at_different_scales, 200),
    (shared_layer_in_a_residual_block, 350),
    (gated_linear_unit, 250),
    (concatenation_then_norm, 200),
    (zero_and_small_layer_scales, 250),
    (correlated_branches, 200),
    (gate_by_an_average, 200),
    (random_scales_and_shifts, 420),
    (norms_of_a_depthwise_convolution_and_of_an_average, 350),
]


@pytest.mark.parametrize(("make", "draws"), NETWORKS, ids=[make.__name__ for make, _ in NETWORKS])
def test_finite_networks_have_the_limit_as_their_mean(make, draws, rng):
    network, x = make(WIDTH), rng.normal(size=(3, FEATURES))
    k, theta = limit((network.init(1), network.apply)).both(x)
    check(np.asarray(k), nngp_estimate(network, x, draws))
    check(np.asarray(theta), finite_kernels(network.init(1), network.apply, network.rates, x, draws)[1])


def test_the_deviation_from_the_limit_falls_like_one_over_the_root_of_the_width(rng):
    x, draws, widths = rng.normal(size=(3, FEATURES)), 400, [64, 128, 256, 512, 1024]
    deviations = []
    for n in widths:
        network = Network(lambda p, x: jax.nn.relu(p["w"] @ x), {"w": weight(n, FEATURES)}, n)
        theta = limit((network.init(1), network.apply))(x)
        found = finite_kernels(network.init(1), network.apply, network.rates, x, draws)[1]
        spread = found.standard_error**2 * draws
        deviations.append(np.sqrt(np.sum((found.mean - theta) ** 2 + spread)))
    slope = np.polyfit(np.log(widths), np.log(deviations), 1)[0]
    assert abs(slope + 0.5) <= 0.15, slope
