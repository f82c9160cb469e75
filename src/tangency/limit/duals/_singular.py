"""The singular part of a function with kinks and jumps, and its exact dual.

s(u) = Σ_t Σ_m C_tm (u − t)₊^m exp(−γ(u − t)²) has, up to m = 6, the same jumps in its derivatives as the function, and
nothing else: the Gaussian window keeps it of the function's own size at any variance. It makes f − s smooth
enough for a short Hermite series, and E[s(u) s(v)] is a truncated bivariate normal moment.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ._gaussian import clamp, determinant, geometric_mean, tilt
from ._truncated import truncated_moments, weighted_sum

LEVELS = 6
_WINDOWS = (0.2, 0.5, 1.0, 2.0)
_POINTS = 14


@dataclasses.dataclass(frozen=True, eq=False)
class Singular:
    """Where a function breaks, and how to read the jumps of its Taylor coefficients off its values there.

    `coefficients` [breakpoints, levels + 1] are fixed numbers if the function has no parameters, else None.
    """

    breakpoints: tuple[float, ...]
    coefficients: np.ndarray | None
    window: float = _WINDOWS[1]

    def resolve(self, function: Callable, params, dtype):
        """The coefficients C, a row of levels for each breakpoint: Python numbers, or scalars of these parameters."""
        if self.coefficients is not None:
            return self.coefficients.tolist()
        # In single precision, high derivatives read off values are noise.
        levels = LEVELS if dtype == jnp.float64 else 2
        rows = []
        for points, stencil in _stencils(self.breakpoints, levels):
            values = function(jnp.asarray(points, dtype), *params)
            rows.append(list(jnp.asarray(_windowed(stencil, self.window), dtype) @ values))
        return rows


def singular_part(
    function: Callable[[np.ndarray], np.ndarray], breakpoints: tuple[float, ...], parameters: int
) -> Singular:
    """Measure the jumps of a function without parameters; keep only breakpoints where something jumps."""
    if parameters or not breakpoints:
        return Singular(breakpoints, None if breakpoints else np.zeros((0, LEVELS + 1)))
    kept, jumps, size = [], [], 0.0
    for t, (points, rows) in zip(breakpoints, _stencils(breakpoints, LEVELS), strict=True):
        values = function(points)
        if not np.all(np.isfinite(values)):
            continue
        found = rows @ values
        noise = 200.0 * np.finfo(np.float64).eps * np.sum(np.abs(rows), axis=1) * np.max(np.abs(values))
        found = np.where(np.abs(found) > noise, found, 0.0)
        if np.any(found):
            kept.append(t)
            jumps.append(found)
            size = max(size, float(np.max(np.abs(function(t + np.linspace(-4.0, 4.0, 65))))))
    table = np.array(jumps).reshape(len(kept), LEVELS + 1)
    # A wide window keeps s smooth; one wider than the Taylor series' reach makes s outgrow the function.
    x = np.linspace(0.0, 8.0, 200)[:, None]
    for window in _WINDOWS:
        coefficients = _windowed(table.T, window).T
        peak = np.abs(x ** np.arange(LEVELS + 1) @ coefficients.T * np.exp(-window * x * x))
        if np.max(peak, initial=0.0) <= 5.0 * size:
            break
    return Singular(tuple(kept), coefficients, window)


def _stencils(breakpoints: tuple[float, ...], levels: int):
    """For every breakpoint t, points near it and rows that turn values there into jumps of Taylor coefficients."""
    for i, t in enumerate(breakpoints):
        gaps = [abs(t - other) for j, other in enumerate(breakpoints) if j != i]
        reach = min([0.5, *(0.45 * gap for gap in gaps)])
        x = 0.5 * reach * (1.0 - np.cos((np.arange(_POINTS) + 0.5) * np.pi / _POINTS))
        chebyshev = np.polynomial.chebyshev.Chebyshev.basis
        design = np.stack([chebyshev(n, domain=(0.0, reach))(x) for n in range(_POINTS)], axis=1)
        taylor = np.zeros((levels + 1, _POINTS))
        for n in range(_POINTS):
            polynomial = chebyshev(n, domain=(0.0, reach))
            factorial = 1.0
            for m in range(levels + 1):
                factorial *= max(m, 1)
                taylor[m, n] = (polynomial.deriv(m) if m else polynomial)(0.0) / factorial
        one_sided = taylor @ np.linalg.inv(design)
        signs = (-1.0) ** np.arange(levels + 1)[:, None]
        rows = np.concatenate([one_sided, -signs * one_sided], axis=1)
        yield np.concatenate([t + x, t - x]), rows


def _windowed(rows: np.ndarray, window: float) -> np.ndarray:
    """Divide the jump's Taylor series by the window's: C(x) = J(x) exp(γx²), to the same degree."""
    result = np.array(rows)
    factor = 1.0
    for power in range(2, len(rows), 2):
        factor *= window / (power // 2)
        result[power:] += factor * rows[:-power]
    return result


def singular_values(u, singular: Singular, coefficients):
    """s(u), elementwise."""
    total = jnp.zeros_like(u)
    for i, t in enumerate(singular.breakpoints):
        x = u - t
        polynomial = jnp.zeros_like(u)
        for coefficient in reversed(coefficients[i]):
            polynomial = polynomial * x + coefficient
        total = total + jnp.where(x > 0, polynomial * jnp.exp(-singular.window * x * x), 0.0)
    return total


def singular_dual(f: Singular, f_coefficients, g: Singular, g_coefficients, a, b, c):
    """E[s_f(u) s_g(v)] exactly, a, b > 0."""
    s = geometric_mean(a, b)
    c = clamp(c, -s, s)
    p, q = 2.0 * f.window, 2.0 * g.window
    *state, n = tilt(p, q, a, b, c, determinant(a, b, c))

    def pair(t, r, x, y, centred):
        mean_x = (-t * (1.0 + q * b) + q * c * r) / n
        mean_y = (-r * (1.0 + p * a) + p * c * t) / n
        height = jnp.exp(0.5 * (p * t * mean_x + q * r * mean_y))
        weights = [[p_m * q_k for q_k in y] for p_m in x]
        return height * weighted_sum(weights, truncated_moments(centred, (len(x), len(y)), mean_x, mean_y, *state))

    total, rest = jnp.zeros_like(c), []
    for t, x in zip(f.breakpoints, f_coefficients, strict=True):
        for r, y in zip(g.breakpoints, g_coefficients, strict=True):
            if t == r == 0.0:
                total = total + pair(t, r, x, y, True)
            else:
                rest.append((t, r, x, y))
    if rest:
        # A loop, because the compiler takes long over each copy of the bivariate normal.
        rows = jax.tree.map(lambda *values: jnp.stack([jnp.asarray(v, c.dtype) for v in values]), *rest)
        total = jax.lax.scan(lambda sum_, row: (sum_ + pair(row[0], row[1], row[2], row[3], False), None), total, rows)[
            0
        ]
    return total / jnp.sqrt(n)
