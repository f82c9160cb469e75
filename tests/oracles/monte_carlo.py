"""Finite networks with a wide last hidden layer, averaged over random draws; the readout is averaged by hand.

A network is `f = v · h(parameters, x)` with v ~ N(0, 1/width). K = E[h h']/width needs no draw of v. Θ adds to K the
tangent of h: Σ_p η_p ∂_p f ∂_p f' at drawn v, which fluctuates little. Parameters are drawn in float32, all else is in
float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracles.networks import Estimate

Parameters = dict[str, Any]


class Entries(NamedTuple):
    """An array of parameters from N(mean, variance); it trains at the rate `variance`, or 1 where that is 0."""

    shape: tuple[int, ...]
    variance: float
    mean: float = 0.0


def initialiser(entries: dict[str, Entries]) -> Callable[[Any], Parameters]:
    """A function of a key that draws all entries, in float32."""

    def init(key: Any) -> Parameters:
        keys = jax.random.split(key, len(entries))
        return {
            name: e.mean + e.variance**0.5 * jax.random.normal(k, e.shape) if e.variance else jnp.full(e.shape, e.mean)
            for k, (name, e) in zip(keys, entries.items(), strict=True)
        }

    return init


class Network(NamedTuple):
    """`hidden(parameters, example)` is `[width]`."""

    hidden: Callable[[Parameters, Any], Any]
    parameters: dict[str, Entries]
    width: int

    def init(self, key: Any) -> Parameters:
        return initialiser(self.parameters | {"readout": Entries((1, self.width), 1 / self.width)})(key)

    def apply(self, parameters: Parameters, x: Any) -> Any:
        return parameters["readout"] @ self.hidden(parameters, x)


def dense(outputs: int, inputs: int, *taps: int) -> Entries:
    """Weights [outputs, inputs, *taps] of variance 1/fan-in."""
    return Entries((outputs, inputs, *taps), 1 / (inputs * int(np.prod(taps))))


def finite_kernels(network: Network, x: np.ndarray, draws: int, seed: int = 0) -> tuple[Estimate, Estimate]:
    """(K, Θ), `[n, n]` each, with their standard errors."""
    rates = {name: e.variance or 1.0 for name, e in network.parameters.items()}
    with jax.enable_x64(True):
        examples = jnp.asarray(x)

        def one(_: None, key: Any) -> tuple[None, tuple[jax.Array, jax.Array]]:
            parameters = {name: p.astype(jnp.float64) for name, p in network.init(key).items()}
            readout = parameters.pop("readout")[0]

            def read(trained: Parameters, example: Any) -> tuple[jax.Array, jax.Array]:
                h = network.hidden(trained, example)
                return readout @ h, h

            slopes, h = jax.vmap(lambda example: jax.grad(read, has_aux=True)(parameters, example))(examples)
            k = h @ h.T / network.width
            flat = {name: slope.reshape(len(x), -1) for name, slope in slopes.items()}
            return None, (k, k + sum(rates[name] * s @ s.T for name, s in flat.items()))

        with jax.numpy_dtype_promotion("standard"):
            # Thousands of networks: here the time goes to running, not to compiling.
            options = {"xla_backend_optimization_level": "1"}
            run = jax.jit(lambda keys: jax.lax.scan(one, None, keys), compiler_options=options)
            _, (k, theta) = run(jax.random.split(jax.random.key(seed, impl="rbg"), draws))
        return estimate(k), estimate(theta)


def estimate(samples: Any) -> Estimate:
    samples = np.asarray(samples)
    return Estimate(samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


def check(found: Any, expected: Estimate, bands: float = 3.0, largest_error: float = 0.01) -> None:
    """`found` lies within so many standard errors, and those are small beside the diagonal.

    Entries that hardly fluctuate, such as the variance of a normalised signal, are held to 1e-4 of the diagonal.
    """
    scale = np.sqrt(np.outer(np.diag(expected.mean), np.diag(expected.mean)))
    assert np.max(expected.standard_error / scale) <= largest_error
    deviations = np.abs(np.asarray(found) - expected.mean) / np.maximum(expected.standard_error, 1e-4 * scale)
    assert np.max(deviations) <= bands, f"{np.max(deviations):.1f} standard errors"
