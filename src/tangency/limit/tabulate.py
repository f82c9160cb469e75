"""Activations without a closed form, as the fused path takes them: tables of Hermite coefficients."""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from ..fused import Evaluated, Series, Table
from .duals import Activation, product_mean
from .duals import coefficients as hermite

ORDER = 512
"""Powers of the correlation that are tabulated."""

Powers = tuple[int, int]
"""The lowest power of the correlation, and the step from one to the next."""


def series(f: Activation, g: Activation) -> Series | None:
    """E[f(u) g(v)] as a polynomial of the correlation; None where a series converges too slowly, or has parameters."""
    if f.zero_value is None or g.zero_value is None or (f.breakpoints and g.breakpoints):
        return None
    powers = _powers(f)
    if powers != _powers(g):
        powers = 0, 1
    left = _table(f, powers)
    return Series(left, left, left) if f is g else Series(left, _table(g, powers), _mean(f, g))


def integrated(f: Activation, g: Activation, f_slope: Activation, g_slope: Activation) -> Series | None:
    """E[f(u) g(v)] of smooth functions by the polynomial of their slopes', so that one evaluation serves both."""
    slopes = series(f_slope, g_slope)
    if slopes is None or f.zero_value is None or g.zero_value is None:
        return None
    odd = (1, 2) in (_powers(f), _powers(g))
    return Series(slopes.f, slopes.g, _mean(f, g), True, None if odd else (_origin(f), _origin(g)))


def _powers(f: Activation) -> Powers:
    """Which powers an odd or even function has."""
    u = np.linspace(0.01, 12.0, 400) ** 1.5
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        plus, minus = (np.asarray(f.function(jnp.asarray(x))) for x in (u, -u))
    scale = np.maximum(np.abs(plus), 1.0)
    if np.all(np.abs(plus + minus) <= 1e-15 * scale) and f.zero_value == 0.0:
        return 1, 2
    return (0, 2) if np.all(np.abs(plus - minus) <= 1e-15 * scale) else (0, 1)


@lru_cache(maxsize=64)
def _table(f: Activation, powers: Powers) -> Table:
    first, step = powers
    return Table(first, step, 1 + len(range(first, ORDER, step)), partial(_coefficients, f, powers))


@lru_cache(maxsize=64)
def _mean(f: Activation, g: Activation) -> Table:
    return Table(0, 1, 1, partial(_means, f, g))


@lru_cache(maxsize=64)
def _origin(f: Activation) -> Table:
    return Table(0, 1, 1, partial(_expectation, f))


def _coefficients(f: Activation, powers: Powers, variances: np.ndarray) -> Evaluated:
    """E f(u)² and h_k / √(k + 1) for the powers k."""
    roots = np.sqrt(1.0 + np.arange(powers[0], ORDER, powers[1]))

    def columns(a: jax.Array) -> jax.Array:
        found = hermite(f.numerical, a, (), ORDER, 0)[0]
        return jnp.append(product_mean(f, f, a), found[powers[0] :: powers[1]] / roots)

    values, origin = _each(columns, variances), _at_zero(f)
    zero = np.zeros(values.shape[-1])
    zero[0] = origin**2
    if powers[0] == 0:
        zero[1] = origin
    return values, zero, values[..., 0]


def _means(f: Activation, g: Activation, variances: np.ndarray) -> Evaluated:
    """E f(u) g(u) alone."""

    def moments(a: jax.Array) -> jax.Array:
        return jnp.stack([product_mean(f, g, a), product_mean(f, f, a), product_mean(g, g, a)])

    values = _each(moments, variances)
    zero = np.array([_at_zero(f) * _at_zero(g)])
    return values[..., :1], zero, np.sqrt(values[..., 1] * values[..., 2])


def _expectation(f: Activation, variances: np.ndarray) -> Evaluated:
    """E f(u) alone."""

    def moments(a: jax.Array) -> jax.Array:
        return jnp.stack([hermite(f.numerical, a, (), ORDER, 0)[0, 0], jnp.sqrt(product_mean(f, f, a))])

    values = _each(moments, variances)
    return values[..., :1], np.array([_at_zero(f)]), values[..., 1]


def _each(function, variances: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(jax.vmap(function)))(jnp.asarray(variances)))


def _at_zero(f: Activation) -> float:
    assert f.zero_value is not None
    return f.zero_value
