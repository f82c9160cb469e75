"""Activations by name, each with the weight variance that keeps signals alive through depth."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from ..errors import InputError
from .suggestion import suggestion


@dataclass(frozen=True)
class Activation:
    """An elementwise function and the hidden weight variance σ_w² that is used when none is asked for."""

    function: Callable[[jax.Array], jax.Array]
    weight_variance: float


# He et al. 2015 (arXiv:1502.01852, eq. 10): a function that passes half of the line needs σ_w² = 2; others take 1.
_HALF_LINE = 2.0
_WHOLE_LINE = 1.0

ACTIVATIONS = MappingProxyType(
    {
        "abs": Activation(jnp.abs, _WHOLE_LINE),
        "celu": Activation(jax.nn.celu, _HALF_LINE),
        "cos": Activation(jnp.cos, _WHOLE_LINE),
        "elu": Activation(jax.nn.elu, _HALF_LINE),
        "erf": Activation(erf, _WHOLE_LINE),
        "gelu": Activation(functools.partial(jax.nn.gelu, approximate=False), _HALF_LINE),
        "gelu_tanh": Activation(functools.partial(jax.nn.gelu, approximate=True), _HALF_LINE),
        "hard_swish": Activation(jax.nn.hard_swish, _HALF_LINE),
        "hard_tanh": Activation(jax.nn.hard_tanh, _WHOLE_LINE),
        "identity": Activation(jax.nn.identity, _WHOLE_LINE),
        "leaky_relu": Activation(jax.nn.leaky_relu, _HALF_LINE),
        "mish": Activation(jax.nn.mish, _HALF_LINE),
        "relu": Activation(jax.nn.relu, _HALF_LINE),
        "relu6": Activation(jax.nn.relu6, _HALF_LINE),
        "selu": Activation(jax.nn.selu, _WHOLE_LINE),
        "sigmoid": Activation(jax.nn.sigmoid, _WHOLE_LINE),
        "silu": Activation(jax.nn.silu, _HALF_LINE),
        "sin": Activation(jnp.sin, _WHOLE_LINE),
        "softplus": Activation(jax.nn.softplus, _WHOLE_LINE),
        "squareplus": Activation(jax.nn.squareplus, _WHOLE_LINE),
        "tanh": Activation(jnp.tanh, _WHOLE_LINE),
    }
)


def activation(name: str) -> Activation:
    """The activation of that name; `InputError` lists what exists."""
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation '{name}'{suggestion(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]
