"""A function as a sum of Gaussian windows of many widths, whose dual is a finite formula at every variance.

f(u) = Σ_k Σ_p (C_kp + D_kp sign u) |β_k u|^p exp(−β_k² u²), with C for the even and D for the odd part of f, and one
scale without a window. The terms resolve a function that varies at |u| = O(1), with or without a break at 0,
where the Hermite series needs thousands of terms: at large variances. The sum is found by least squares in the norms
of the Gaussians it is to serve, and counts only if it is verified in each of them. Weighted by windows, (u, v) is a
Gaussian of another covariance, and E|X|^p|Y|^q with or without signs follows from Stein's identity.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ._gaussian import clamp, determinant, geometric_mean, guarded_sqrt, tilt

TOLERANCE = 2e-10
SMALLEST, LARGEST = 1e-4, 1e4
"""The variances between which a sum is verified."""

_POWERS = 6
_PLAIN_POWERS = 3
_CONDITION = 1e-13
_LADDERS = [
    (low, high, ratio)
    for ratio in (2.0, 1.75)
    for low, high in ((0.03, 6.0), (1e-3, 6.0), (0.03, 50.0), (1e-3, 50.0), (0.03, 400.0))
]
_DELTA = math.sqrt(2.0 / math.pi)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The scales β [scales], 0 for the one without a window, and `weights` [scales, 2, powers] of even and odd part."""

    scales: np.ndarray
    weights: np.ndarray


def fit_mixture(function: Callable[[np.ndarray], np.ndarray]) -> Mixture | None:
    """The first sum within 2e-10 √E f² of the function at every variance from 1e-4 to 1e4, or None."""
    x, w = _half_line()
    right, left = function(x), function(-x)
    parts = np.stack([0.5 * (right + left), 0.5 * (right - left)])
    if not np.all(np.isfinite(parts)):
        return None
    variances = np.geomspace(SMALLEST, LARGEST, 41)
    density = 2.0 * w * np.exp(-0.5 * x * x / variances[:, None]) / np.sqrt(2.0 * np.pi * variances)[:, None]

    def norms(values: np.ndarray) -> np.ndarray:
        return np.sqrt(density @ np.sum(values**2, axis=0))

    size = norms(parts)
    if not np.all(size > 0):
        return None
    local = np.exp(np.interp(np.log(x), 0.5 * np.log(variances), np.log(size)))
    rows = np.sqrt(w / (x + 1e-3)) * np.exp(-0.22 * x * x / LARGEST) / local
    for low, high, ratio in _LADDERS:
        scales = np.concatenate([[0.0], np.exp(np.arange(np.log(low), np.log(high), np.log(ratio)))])
        columns, used = _columns(x, scales)
        weights = np.zeros((2, columns.shape[1]))
        design = columns * rows[:, None]
        norm = np.linalg.norm(design, axis=0)
        present = [i for i in (0, 1) if np.max(np.abs(parts[i])) > 1e-14 * np.max(np.abs(parts))]
        weights[present] = (
            np.linalg.lstsq(design / norm, (parts[present] * rows).T, rcond=_CONDITION)[0] / norm[:, None]
        ).T
        error = norms(weights @ columns.T - parts) / size
        rounding = np.finfo(np.float64).eps * (norms(np.abs(weights) @ np.abs(columns).T) / size) ** 2
        if np.max(error + rounding) <= TOLERANCE:
            table = np.zeros((len(scales), _POWERS, 2))
            table[used] = weights.T
            return Mixture(scales, np.moveaxis(table, 2, 1))
    return None


def _half_line() -> tuple[np.ndarray, np.ndarray]:
    """Composite Gauss–Legendre nodes and weights from 0 to 14 standard deviations of the largest variance."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.concatenate([[0.0], np.geomspace(1e-5, 14.0 * np.sqrt(LARGEST), 110)])
    width = np.diff(edges)[:, None]
    return (edges[:-1, None] + 0.5 * width * (nodes + 1.0)).ravel(), (0.5 * width * weights).ravel()


def _columns(x: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The terms at x ≥ 0, and which (scale, power) they are."""
    unit = np.where(scales == 0.0, 1.0, scales)
    powers = np.arange(_POWERS)
    terms = (unit[:, None, None] * x) ** powers[:, None] * np.exp(-((scales[:, None, None] * x) ** 2))
    used = np.broadcast_to((scales[:, None] > 0) | (powers < _PLAIN_POWERS), (len(scales), _POWERS))
    return terms[used].T, used


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def mixture_dual(f: Mixture, g: Mixture, a, b, c):
    """E[f(u) g(v)] for a, b > 0 and covariance c."""
    return _raw(f, g, a, b, c)


@mixture_dual.defjvp
def _mixture_dual_jvp(f, g, primals, tangents):
    # Forward mode: nothing is stored along the loop.
    units = np.eye(3)
    slopes = [
        jax.jvp(
            functools.partial(_raw, f, g),
            primals,
            tuple(jnp.full_like(x, u) for x, u in zip(primals, row, strict=True)),
        )[1]
        for row in units
    ]
    return mixture_dual(f, g, *primals), sum(slope * step for slope, step in zip(slopes, tangents, strict=True))


def _raw(f: Mixture, g: Mixture, a, b, c):
    s = geometric_mean(a, b)
    c = clamp(c, -s, s)
    d = determinant(a, b, c)
    i, j = (index.ravel() for index in np.indices((len(f.scales), len(g.scales))))

    def rows(x):
        return jnp.asarray(x, c.dtype)

    pairs = rows(f.scales)[i], rows(f.weights)[i], rows(g.scales)[j], rows(g.weights)[j]

    def add(total, pair):
        beta, f_weights, gamma, g_weights = pair
        return total + _scale_pair(beta, f_weights, gamma, g_weights, a, b, c, d), None

    return jax.lax.scan(add, jnp.zeros_like(c), pairs)[0]


def _scale_pair(beta, f_weights, gamma, g_weights, a, b, c, d):
    """The share of one scale of f and one of g."""
    a, b, c, d, n = tilt(2.0 * beta * beta, 2.0 * gamma * gamma, a, b, c, d)
    root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
    product = root_a * root_b
    even, odd = _absolute_moments(c / product, d / (a * b))
    x = _powers_of(jnp.where(beta > 0, beta, 1.0) * root_a)
    y = _powers_of(jnp.where(gamma > 0, gamma, 1.0) * root_b)
    total = jnp.zeros_like(c)
    for weights_f, weights_g, table in zip(f_weights, g_weights, (even, odd), strict=True):
        for p in range(_POWERS):
            row = sum(weights_g[q] * y[q] * table[p][q] for q in range(_POWERS))
            total = total + weights_f[p] * x[p] * row
    return total / jnp.sqrt(n)


def _powers_of(x):
    powers = [jnp.ones_like(x)]
    for _ in range(1, _POWERS):
        powers.append(powers[-1] * x)
    return powers


def _absolute_moments(rho, gap):
    """Tables of E|X|^m |Y|^n and E[sign X sign Y |X|^m |Y|^n], X and Y standard of correlation ρ; `gap` is 1 − ρ².

    Stein's identity raises the powers of X^m Y^n without a sign, with that of X, and with both.
    """
    size = range(_POWERS)
    q = guarded_sqrt(gap)
    # E|qZ|^n, for Y given X = 0 is qZ. Even powers of q keep their derivative at q = 0.
    powers = [x * (q if n % 2 else 1.0) for n, x in enumerate(_powers_of(gap)[k // 2] for k in size)]
    given = [math.sqrt(2.0**n / math.pi) * math.gamma(0.5 * (n + 1)) * x for n, x in enumerate(powers)]
    none, one, both = {}, {}, {}

    def raised(table, m, n, *edges):
        terms = [edge for edge in edges if edge is not None]
        if m >= 2:
            terms.append((m - 1) * table[m - 2, n])
        if n:
            terms.append(n * (rho * table[m - 1, n - 1]))
        return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(rho)

    none[0, 0], both[0, 0] = jnp.ones_like(rho), (2.0 / math.pi) * jnp.arctan2(rho, q)
    for n in size[1:]:
        if n % 2:
            one[0, n] = _DELTA * (rho * given[n - 1]) + ((n - 1) * one[0, n - 2] if n > 1 else 0.0)
        else:
            none[0, n] = (n - 1) * none[0, n - 2]
            both[0, n] = (n - 1) * both[0, n - 2] + _DELTA * (rho * given[n - 1])
    for m in size[1:]:
        for n in size:
            pinned = _DELTA * given[n] if m == 1 else None
            if (m + n) % 2:
                one[m, n] = raised(one, m, n, pinned)
            else:
                none[m, n] = raised(none, m, n)
                both[m, n] = raised(both, m, n, pinned, None if n else _DELTA * (rho * given[m - 1]))

    def entry(m, n, signs):
        if (m + n) % 2 == 0:
            return both[m, n] if (m + signs) % 2 else none[m, n]
        return one[m, n] if (m + signs) % 2 else one[n, m]

    even, odd = ([[entry(m, n, signs) for n in size] for m in size] for signs in (0, 1))
    return even, odd
