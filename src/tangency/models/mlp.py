"""A multilayer perceptron."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import activation as activation_named
from .dense import Dense


class MLP(eqx.Module):
    """`depth` hidden layers x ↦ φ(W x + b), then an affine readout.

    Hidden weights have the variance w_std² / fan-in, with w_std² = 2 for ReLU-like activations and 1 otherwise unless
    it is given; the readout has 1 / fan-in. Biases have the variance b_std².
    """

    hidden: tuple[Dense, ...]
    readout: Dense
    activation: Callable[[jax.Array], jax.Array] = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        depth: int = 2,
        width: int = 512,
        activation: str = "relu",
        w_std: float | None = None,
        b_std: float = 0.1,
        key: PRNGKeyArray,
    ):
        chosen = activation_named(activation)
        w_std = math.sqrt(chosen.weight_variance) if w_std is None else w_std
        *keys, readout_key = jax.random.split(key, depth + 1)
        sizes = [in_size] + [width] * depth
        self.hidden = tuple(
            Dense(fan_in, width, w_std=w_std, b_std=b_std, key=k) for fan_in, k in zip(sizes, keys, strict=False)
        )
        self.readout = Dense(sizes[-1], out_size, w_std=1.0, b_std=b_std, key=readout_key)
        self.activation = chosen.function

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.readout(x)
