"""An affine layer with Gaussian initialisation in standard parameterisation."""

import math

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray


class Dense(eqx.Module):
    """x ↦ W x + b with W_ij ~ N(0, w_std² / in_size) and b_i ~ N(0, b_std²).

    `b_std=0` means that there is no bias at all, neither at initialisation nor learned.
    """

    weight: Float[Array, "out_size in_size"]
    bias: Float[Array, " out_size"] | None

    def __init__(self, in_size: int, out_size: int, *, w_std: float, b_std: float, key: PRNGKeyArray):
        weight_key, bias_key = jax.random.split(key)
        self.weight = w_std / math.sqrt(in_size) * jax.random.normal(weight_key, (out_size, in_size))
        self.bias = b_std * jax.random.normal(bias_key, (out_size,)) if b_std else None

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        y = self.weight @ x
        return y if self.bias is None else y + self.bias
