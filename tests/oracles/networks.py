"""Finite networks by brute force: explicit Jacobians of many random draws, averaged.

Nothing here knows of any recursion. For outputs f of shape [o] the kernels per output coordinate are estimated by
K = mean_o f_o f'_o and Θ = mean_o Σ_p η_p ∂_p f_o ∂_p f'_o. The fluctuation of one draw falls like 1/√width, that of
the average over draws like 1/√(width · draws).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Estimate(NamedTuple):
    mean: np.ndarray
    standard_error: np.ndarray


def finite_kernels(
    init: Callable[[Any], Any], apply: Callable[[Any, Any], Any], rates: Any, x: np.ndarray, draws: int, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """(K, Θ) of networks `apply(init(key), example)`, `[n, n]` each, in float64.

    `rates` is a pytree like the parameters: the learning rate η of the entries of each.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), draws)
        examples = jnp.asarray(x, jnp.float64)

        @jax.jit
        def one(key: Any) -> tuple[jax.Array, jax.Array]:
            parameters = jax.tree.map(lambda p: p.astype(jnp.float64), init(key))
            f = jax.vmap(lambda a: apply(parameters, a))(examples)
            jacobian = jax.jacrev(lambda p: jax.vmap(lambda a: apply(p, a))(examples))(parameters)
            theta = sum(
                rate * jnp.einsum("no...,mo...->nm", j, j) / f.shape[1]
                for j, rate in zip(jax.tree.leaves(jacobian), jax.tree.leaves(rates), strict=True)
            )
            return f @ f.T / f.shape[1], jnp.asarray(theta)

        samples = [jax.device_get(one(key)) for key in keys]
    return _estimate([k for k, _ in samples]), _estimate([t for _, t in samples])


def _estimate(samples: list[np.ndarray]) -> Estimate:
    stacked = np.stack(samples)
    return Estimate(stacked.mean(axis=0), stacked.std(axis=0, ddof=1) / np.sqrt(len(stacked)))
