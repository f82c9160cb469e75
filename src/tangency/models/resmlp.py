"""A multilayer perceptron with pre-norm residual blocks."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import activation as activation_named
from .dense import Dense


class Block(eqx.Module):
    """x ↦ x + W₂ φ(W₁ LayerNorm(x) + b₁) + b₂ (Xiong et al. 2020, arXiv:2002.04745, the Pre-LN form)."""

    norm: eqx.nn.LayerNorm
    inner: Dense
    outer: Dense
    activation: Callable[[jax.Array], jax.Array] = eqx.field(static=True)

    def __init__(
        self, width: int, *, activation: Callable[[jax.Array], jax.Array], w_std: float, b_std: float, key: PRNGKeyArray
    ):
        inner_key, outer_key = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(width)
        self.inner = Dense(width, width, w_std=w_std, b_std=b_std, key=inner_key)
        self.outer = Dense(width, width, w_std=1.0, b_std=b_std, key=outer_key)
        self.activation = activation

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        return x + self.outer(self.activation(self.inner(self.norm(x))))


class ResMLP(eqx.Module):
    """An affine embedding, `depth` pre-norm residual blocks, a LayerNorm and an affine readout.

    The weight in front of each activation has the variance w_std² / fan-in, with w_std² = 2 for ReLU-like activations
    and 1 otherwise unless it is given; all other weights have 1 / fan-in. Biases have the variance b_std².
    """

    embedding: Dense
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    readout: Dense

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
        embedding_key, readout_key, *keys = jax.random.split(key, depth + 2)
        self.embedding = Dense(in_size, width, w_std=1.0, b_std=b_std, key=embedding_key)
        self.blocks = tuple(Block(width, activation=chosen.function, w_std=w_std, b_std=b_std, key=k) for k in keys)
        self.norm = eqx.nn.LayerNorm(width)
        self.readout = Dense(width, out_size, w_std=1.0, b_std=b_std, key=readout_key)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))
