"""What is tabulated of one threshold for `quadrant`: Owen's T function in a smooth form, and Mills' ratio."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.polynomial.chebyshev import chebpts1, chebvander
from scipy.special import erfcx, ndtr

from .lookup import DECADES, GROUP
from .polynomials import fit
from .tables import Evaluated, Table

CHEBYSHEV = {"float32": 18, "float64": 42}
"""How many coefficients of g_h are used."""

BEFORE = 2
"""Columns before them: Φ(−h) and φ(h)."""

COLUMNS = {dtype: BEFORE + count for dtype, count in CHEBYSHEV.items()}
assert all(count % GROUP == 0 for count in COLUMNS.values())

_SAMPLES = 64

_FAR = 40.0
"""Thresholds farther out, in units of the deviation, are never reached: φ is 0 there, and so is what it multiplies."""

BEND = 0.3
"""Mills' ratio M(y) is r times a polynomial in r = 1 / (1 + BEND · y)."""

_MILLS_DEGREES = {"float32": 8, "float64": 20}


@lru_cache
def mills(dtype: str) -> tuple[float, ...]:
    """M(y) / r as a polynomial in r, coefficients lowest first."""

    def value(r: np.ndarray) -> np.ndarray:
        y = ((1 - r) / (BEND * r)).astype(np.float64)
        return math.sqrt(math.pi / 2.0) * erfcx(y / math.sqrt(2.0)) / r

    return fit(value, _MILLS_DEGREES[dtype])


@lru_cache(maxsize=64)
def table_of(threshold: float, order: int) -> Table:
    """1, Φ(−h), φ(h) and the Chebyshev coefficients of g_h, for h = threshold / √variance and for moments up to
    E x₊ⁿ y₊ⁿ, n = `order`.
    """
    settled = threshold > _FAR * 10.0 ** (DECADES[0] / 2)
    return Table(
        0,
        1,
        1 + COLUMNS["float64"],
        lambda variances: _evaluated(threshold, order, variances),
        COLUMNS,
        settled,
        BEFORE,
    )


def _evaluated(threshold: float, order: int, variances: np.ndarray) -> Evaluated:
    h = threshold / np.sqrt(variances)
    points = chebpts1(_SAMPLES)
    transform = (2.0 / _SAMPLES) * chebvander(points, _SAMPLES - 1)
    transform[:, 0] /= 2.0
    found = np.stack([smooth_tail(row, (points + 1.0) / 2.0) @ transform for row in h])
    density = np.exp(-0.5 * h * h) / math.sqrt(2.0 * math.pi)
    numbers = [np.ones_like(h), ndtr(-h), density]
    columns = np.concatenate([np.stack(numbers, axis=-1), found[..., : CHEBYSHEV["float64"]]], axis=-1)
    # In units of E f², which is about a power of the smaller of the variance and τ²; K multiplies by that of the
    # larger. Where E f² is much less, the functions are not served (see `Truncated`).
    size = np.maximum(variances, threshold**2) / np.minimum(variances, threshold**2)
    scale = size**order * np.exp(-0.5 * h * h) / (2.0 * math.pi)
    left_out = {}
    for dtype, count in CHEBYSHEV.items():
        rest = scale * np.abs(found[..., count:]).sum(axis=-1)
        left_out[dtype] = np.stack([np.ones_like(rest), rest**2], axis=-1)
    zero = np.zeros(columns.shape[-1])
    zero[0] = 1.0
    return Evaluated(columns, zero, np.ones_like(h), None, left_out)


def smooth_tail(h: np.ndarray, s: np.ndarray) -> np.ndarray:
    """g_h(s) = exp(h²/(2t²)) / t · ∫ exp(−(h² / 2)(1 + z²)) / (1 + z²) dz from z = √(1 − t²)/t on, [h, s]."""
    h, s = h[:, None], s[None]
    chi = h * s / (1.0 + h - s)
    t, start = 2.0 * chi / (1.0 + chi * chi), (1.0 - chi) * (1.0 + chi) / (2.0 * chi)
    reach = 80.0 / h**2 / (start + np.sqrt(start**2 + 80.0 / h**2))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    edges = np.append(0.0, 2.0 ** np.arange(-14.0, 1.0))
    widths = np.diff(edges)
    z = (edges[:-1, None] + widths[:, None] * (nodes + 1.0) / 2.0).ravel() * reach[..., None]
    measure = (widths[:, None] * weights / 2.0).ravel()
    start, square = start[..., None], h[..., None] ** 2
    values = np.exp(-square * (start * z + 0.5 * z * z)) / (1.0 + (start + z) ** 2)
    return (values @ measure) * reach / t
