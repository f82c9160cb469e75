"""Activations without a closed form, as the fused path takes them: tables of Hermite coefficients."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ..fused import Series, Table, fit, nodes
from .duals import Activation, product_mean
from .duals import coefficients as hermite

ORDER = 512
"""Powers of the correlation that are tabulated."""


def series(f: Activation, g: Activation) -> Series | None:
    """E[f(u) g(v)] as a polynomial of the correlation; None where a series is not known to be accurate."""
    if f.parameters or g.parameters or (f.breakpoints and g.breakpoints):
        return None
    left, right = _table(f, True), _table(g, True)
    if left is None or right is None:
        return None
    if (left.first, left.step) != (right.first, right.step):
        left, right = _table(f, False), _table(g, False)
    mean = left if f is g else _mean(f, g)
    return None if left is None or right is None or mean is None else Series(left, right, mean)


@lru_cache(maxsize=64)
def _table(f: Activation, parity: bool) -> Table | None:
    values, zero = _evaluated(f)
    return fit(values, zero, parity=parity)


@lru_cache(maxsize=16)
def _evaluated(f: Activation) -> tuple[np.ndarray, np.ndarray]:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        variances = jnp.asarray(nodes())
        found = jax.jit(jax.vmap(jax.vmap(lambda a: hermite(f.numerical, a, (), ORDER, 0)[0])))(variances)
    zero = np.zeros(1 + ORDER)
    zero[:2] = _at_zero(f) ** 2, _at_zero(f)
    return np.concatenate([_square(f, f)[..., None], np.asarray(found)], axis=-1), zero


@lru_cache(maxsize=256)
def _mean(f: Activation, g: Activation) -> Table | None:
    """E[f(u) g(u)] alone."""
    values = _square(f, g)[..., None]
    size = np.sqrt(_square(f, f) * _square(g, g))
    return fit(values, np.array([_at_zero(f) * _at_zero(g)]), parity=False, size=size)


def _square(f: Activation, g: Activation) -> np.ndarray:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(jax.vmap(lambda a: product_mean(f, g, a))))(jnp.asarray(nodes())))


def _at_zero(f: Activation) -> float:
    assert f.zero_value is not None
    return f.zero_value
