"""Activations in JAX next to the same functions in NumPy, with the points where they break."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf, expit


class Case(NamedTuple):
    jax: Callable
    numpy: Callable
    breaks: tuple[float, ...] = ()


def _softplus(u):
    return np.logaddexp(u, 0.0)


def _elu(scale, alpha, stretch=1.0):
    return lambda u: scale * np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0.0) / stretch))


CLOSED = {
    "relu": Case(jax.nn.relu, lambda u: np.maximum(u, 0.0), (0.0,)),
    "leaky": Case(lambda u: jnp.where(u >= 0, u, 0.2 * u), lambda u: np.where(u >= 0, u, 0.2 * u), (0.0,)),
    "step": Case(lambda u: jnp.where(u > 0, 1.0, 0.0), lambda u: (u > 0) * 1.0, (0.0,)),
    "squared relu": Case(lambda u: jnp.maximum(u, 0) ** 2, lambda u: np.maximum(u, 0.0) ** 2, (0.0,)),
    "cubic": Case(lambda u: u * u * u - u, lambda u: u**3 - u),
    "erf": Case(jax.lax.erf, erf),
    "gelu": Case(lambda u: jax.nn.gelu(u, approximate=False), lambda u: 0.5 * u * (1.0 + erf(u / np.sqrt(2.0)))),
    "gelu'": Case(
        lambda u: jax.jvp(lambda x: jax.nn.gelu(x, approximate=False), (u,), (jnp.ones_like(u),))[1],
        lambda u: 0.5 * (1.0 + erf(u / np.sqrt(2.0))) + u * np.exp(-0.5 * u * u) / np.sqrt(2.0 * np.pi),
    ),
    "sin + cos": Case(lambda u: jnp.sin(u) + jnp.cos(u), lambda u: np.sin(u) + np.cos(u)),
    "u sin 2u": Case(lambda u: u * jnp.sin(2.0 * u), lambda u: u * np.sin(2.0 * u)),
    "exp": Case(lambda u: jnp.exp(0.3 * u), lambda u: np.exp(0.3 * u)),
    "gauss": Case(lambda u: u * jnp.exp(-0.7 * u * u), lambda u: u * np.exp(-0.7 * u * u)),
    "relu6": Case(jax.nn.relu6, lambda u: np.clip(u, 0.0, 6.0), (0.0, 6.0)),
    "hard tanh": Case(jax.nn.hard_tanh, lambda u: np.clip(u, -1.0, 1.0), (-1.0, 1.0)),
    "hard swish": Case(jax.nn.hard_swish, lambda u: u * np.clip(u + 3.0, 0.0, 6.0) / 6.0, (-3.0, 3.0)),
}

NUMERICAL = {
    "tanh": Case(jnp.tanh, np.tanh),
    "sigmoid": Case(jax.nn.sigmoid, expit),
    "softplus": Case(jax.nn.softplus, _softplus),
    "silu": Case(jax.nn.silu, lambda u: u * expit(u)),
    "tanh gelu": Case(jax.nn.gelu, lambda u: 0.5 * u * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (u + 0.044715 * u**3)))),
    "mish": Case(jax.nn.mish, lambda u: u * np.tanh(_softplus(u))),
    "elu": Case(jax.nn.elu, _elu(1.0, 1.0), (0.0,)),
    "selu": Case(jax.nn.selu, _elu(1.0507009873554804934193349852946, 1.6732632423543772848170429916717), (0.0,)),
    "celu": Case(lambda u: jax.nn.celu(u, 0.5), _elu(1.0, 0.5, 0.5), (0.0,)),
    "soft sign": Case(jax.nn.soft_sign, lambda u: u / (1.0 + np.abs(u)), (0.0,)),
    "log": Case(lambda u: jnp.sign(u) * jnp.log1p(jnp.abs(u)), lambda u: np.sign(u) * np.log1p(np.abs(u)), (0.0,)),
    "kinks and jump": Case(
        lambda u: jnp.where(u > 1.0, jnp.tanh(u), jnp.maximum(u, -0.5) * jnp.exp(-0.1 * u * u)),
        lambda u: np.where(u > 1.0, np.tanh(u), np.maximum(u, -0.5) * np.exp(-0.1 * u * u)),
        (-0.5, 1.0),
    ),
}
