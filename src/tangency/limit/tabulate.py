"""Activations without a closed form, as the fused path takes them: tables of Hermite coefficients."""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from ..fused import (
    COLUMNS,
    DECADES,
    TAILS,
    Evaluated,
    NotFusedError,
    PiecewiseLinear,
    PiecewiseQuadratic,
    Series,
    Table,
    Threshold,
    Truncated,
    decay,
    table_of,
)
from .duals import Activation, Pieces, pieces, product_mean
from .duals import coefficients as hermite

_AMPLIFIED = 100.0
"""How much larger than E f² the terms may be that add up to it."""

MOST_LEVELS = 6
"""Places where a function breaks: programs, and the time to compile them, grow with the square of their number."""

ORDER = 512
"""Powers of the correlation that are tabulated."""

WHOLE = {dtype: tail.columns for dtype, tail in TAILS.items()}

Powers = tuple[int, int]
"""The lowest power of the correlation, and the step from one to the next."""


def series(f: Activation, g: Activation) -> Series | None:
    """E[f(u) g(v)] as a polynomial of the correlation; None for kinks elsewhere than at 0, and for parameters."""
    if f.zero_value is None or g.zero_value is None:
        return None
    if f.breakpoints and g.breakpoints:
        if any(f.breakpoints) or any(g.breakpoints):
            return None
        left, right = _kinked(f), _kinked(g)
        return Series(left, right, left if f is g else _mean(f, g))
    powers = _powers(f)
    if powers != _powers(g):
        powers = 0, 1
    left = _table(f, powers)
    return Series(left, left, left) if f is g else Series(left, _table(g, powers), _mean(f, g))


def integrated(f: Activation, g: Activation, f_slope: Activation, g_slope: Activation) -> Series | None:
    """E[f(u) g(v)] of continuous functions by the polynomial of their slopes', so that one evaluation serves both.

    The slopes must be the functions' own derivatives.
    """
    slopes = series(f_slope, g_slope)
    if slopes is None or f.zero_value is None or g.zero_value is None:
        return None
    odd = not slopes.kinked and (1, 2) in (_powers(f), _powers(g))
    return Series(slopes.f, slopes.g, _mean(f, g), True, None if odd else (_origin(f), _origin(g)))


def truncated(f: Activation, g: Activation, slopes: bool) -> Truncated | None:
    """E[f(u) g(v)] of piecewise linear or quadratic functions by moments of truncated normal variables, or None.

    `slopes`: whether they are slopes of the functions whose kernel this is part of, and read the same tables.

    Raises:
        NotFusedError: the pairs of places where they break are too many for a program.
    """
    if f.span is None or g.span is None or f.zero_value is None or g.zero_value is None:
        return None
    first, second = pieces(f.span), pieces(g.span)
    if first is None or second is None or ((first.square or second.square) and not (first.levels or second.levels)):
        return None
    cut = first, second
    if max(len(own.levels) for own in cut) > MOST_LEVELS:
        label = (f if len(first.levels) > MOST_LEVELS else g).label
        raise NotFusedError(f"the activation {label}: it has more than {MOST_LEVELS} kinks elsewhere than at 0")
    degrees = [n for own in cut for level in own.levels for n, factor in enumerate(level.coefficients) if factor]
    # The slopes' kernel then reads the tables of the functions'.
    order = max(1, max(degrees, default=0) + slopes)
    sides = [
        PiecewiseQuadratic(
            PiecewiseLinear(*own.core, at_zero=_at_zero(function)),
            own.square,
            tuple(Threshold(*level, table_of(level.threshold, order)) for level in own.levels),
        )
        for function, own in zip((f, g), cut, strict=True)
    ]
    (low, high), (least, most) = _served(f, first), _served(g, second)
    return Truncated(*sides, served=(max(low, least), min(high, most)))


@lru_cache(maxsize=64)
def _served(f: Activation, cut: Pieces) -> tuple[float, float]:
    """The variances around 1, or next to it, at which E f² is no small difference of the terms that it is computed
    from.
    """
    variances = 10.0 ** np.linspace(*DECADES, 8 * (DECADES[1] - DECADES[0]) + 1)
    mean = _each(lambda a: product_mean(f, f, a), variances[None])[0]
    one, linear, absolute, sign = (x * x for x in cut.core)
    size = one + sign + (linear + absolute) * variances + 3.0 * (cut.square * variances) ** 2
    for threshold, _, (none, first, second) in cut.levels:
        scale = variances + threshold**2
        # A table is as accurate as its largest numbers nearby, at variances half a panel away.
        reached = ndtr(-threshold / np.sqrt(1.8 * variances))
        size += (none**2 + first**2 * scale + 3.0 * (second * scale) ** 2) * reached
    good = size <= _AMPLIFIED * mean
    if not good.any():
        return np.inf, 0.0
    middle, bad = min(np.flatnonzero(good), key=lambda k: abs(np.log(variances[k]))), np.flatnonzero(~good)
    low, high = max(bad[bad < middle], default=-1) + 1, min(bad[bad > middle], default=len(good)) - 1
    return (float(variances[low]) if low else 0.0), (float(variances[high]) if high + 1 < len(good) else np.inf)


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
def _kinked(f: Activation) -> Table:
    return Table(0, 1, 1 + COLUMNS, partial(_kinked_coefficients, f), WHOLE)


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
    return Evaluated(values, zero, values[..., 0])


def _kinked_coefficients(f: Activation, variances: np.ndarray) -> Evaluated:
    """E f(u)², and what `kinks` says of h_k / √(k + 1)."""
    k = np.arange(ORDER)
    values, whole_zero, *_ = _coefficients(f, (0, 1), variances)
    mean, found = values[..., 0], values[..., 1:]
    signed = found * np.where(k // 2 % 2, -1.0, 1.0)
    alphas, noise, left_out = {}, {}, {}
    for dtype, tail in TAILS.items():
        parts, energy, rest = [], 0.0, 0.0
        for parity in (0, 1):
            chosen = k[tail.terms + parity :: 2]
            # Squares of differences in h_k, not in h_k / √(k + 1).
            size, basis = np.sqrt(chosen + 1.0), decay(tail, parity, chosen)
            solve = np.linalg.pinv(basis * size[:, None]) * size
            here = signed[..., chosen]
            parts.append(here @ solve.T)
            noise.setdefault(dtype, []).extend(np.maximum(1.0, np.linalg.norm(solve, axis=1)))
            energy = energy + np.sum((here * size) ** 2, axis=-1)
            rest = rest + np.sum(((parts[-1] @ basis.T - here) * size) ** 2, axis=-1)
        alphas[dtype] = np.concatenate(parts, axis=-1)
        left_out[dtype] = np.stack([energy, rest], axis=-1) / mean[..., None]
    single, double = TAILS["float32"], TAILS["float64"]
    middle = found[..., single.terms : double.terms]
    numbers = [mean[..., None], found[..., : single.terms], alphas["float32"], middle, alphas["float64"]]
    amplified = [np.ones(single.terms), noise["float32"], np.ones(middle.shape[-1]), noise["float64"]]
    # All but the first coefficient are 0 there, and the α too.
    zero = whole_zero[: 1 + COLUMNS]
    return Evaluated(np.concatenate(numbers, axis=-1), zero, mean, np.concatenate(amplified), left_out)


def _means(f: Activation, g: Activation, variances: np.ndarray) -> Evaluated:
    """E f(u) g(u) alone."""

    def moments(a: jax.Array) -> jax.Array:
        return jnp.stack([product_mean(f, g, a), product_mean(f, f, a), product_mean(g, g, a)])

    values = _each(moments, variances)
    zero = np.array([_at_zero(f) * _at_zero(g)])
    return Evaluated(values[..., :1], zero, np.sqrt(values[..., 1] * values[..., 2]))


def _expectation(f: Activation, variances: np.ndarray) -> Evaluated:
    """E f(u) alone."""

    def moments(a: jax.Array) -> jax.Array:
        return jnp.stack([hermite(f.numerical, a, (), ORDER, 0)[0, 0], jnp.sqrt(product_mean(f, f, a))])

    values = _each(moments, variances)
    return Evaluated(values[..., :1], np.array([_at_zero(f)]), values[..., 1])


def _each(function, variances: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(jax.vmap(function)))(jnp.asarray(variances)))


def _at_zero(f: Activation) -> float:
    assert f.zero_value is not None
    return f.zero_value
