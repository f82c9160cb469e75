"""Polynomials for inverse trigonometric functions, fitted once in extended precision.

The arc cosine: arccos(1 − y) / (π √y) is a polynomial P(y) on 0 ≤ y ≤ 1.

With t = √y, the duals of |u| and sign u at correlation ρ, y = 1 − |ρ|, are |ρ| + 2 t³ R(y) and ±(1 − 2 t P(y)), where
R follows from P term by term: d/dy [t³ R(y)] = t P(y) (Cho & Saul 2009, eq. 3 and 6; Price's theorem). One square root
and no cancellation near ρ = ±1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

DEGREES = {"float32": 6, "float64": 17}
ABSOLUTE_DEGREES = {"float32": 5, "float64": 15}
ARCSINE_DEGREES = {"float32": 4, "float64": 11}
ARCTANGENT_DEGREES = {"float32": 9, "float64": 20}


@lru_cache
def arccosine(dtype: str) -> tuple[float, ...]:
    """Coefficients of P, lowest first, to the precision of the type."""
    return fit(lambda y: 2 * np.arcsin(np.sqrt(y / 2)) / np.sqrt(y) / _PI, DEGREES[dtype])


@lru_cache
def absolute_series(dtype: str) -> tuple[float, ...]:
    """Coefficients of R, lowest first, to the precision of the type."""
    series = np.polynomial.Polynomial([c / (k + 1.5) for k, c in enumerate(arccosine("float64"))])
    return fit(series, ABSOLUTE_DEGREES[dtype])


@lru_cache
def arcsine(dtype: str) -> tuple[float, ...]:
    """Coefficients of Q, lowest first: arcsin w = w + w z Q(z) with z = w² ≤ 1/4."""
    scaled = fit(lambda x: (np.arcsin(np.sqrt(x / 4)) / np.sqrt(x / 4) - 1) / (x / 4), ARCSINE_DEGREES[dtype])
    return tuple(c * 4.0**k for k, c in enumerate(scaled))


@lru_cache
def arctangent(dtype: str) -> tuple[float, ...]:
    """Coefficients of arctan(√z) / √z in z, 0 ≤ z ≤ 1, lowest first."""
    return fit(lambda z: np.arctan(np.sqrt(z)) / np.sqrt(z), ARCTANGENT_DEGREES[dtype])


def fit(function: Callable[[np.ndarray], np.ndarray], degree: int) -> tuple[float, ...]:
    """A polynomial on [0, 1] by interpolation at Chebyshev nodes."""
    count = 4 * degree
    nodes = np.cos((np.arange(count, dtype=np.longdouble) + 0.5) * (np.longdouble(np.pi) / count))
    values = function((nodes + 1) / 2)
    # Discrete orthogonality of Chebyshev polynomials at their nodes, then powers of y by the recurrence.
    rows = np.cos(np.arange(degree + 1, dtype=np.longdouble)[:, None] * np.arccos(nodes))
    chebyshev = 2 * (rows @ values) / count
    chebyshev[0] /= 2
    shift = np.polynomial.Polynomial(np.array([-1, 2], np.longdouble))
    before, here = np.polynomial.Polynomial(np.array([1], np.longdouble)), shift
    total = chebyshev[0] * before + chebyshev[1] * here
    for coefficient in chebyshev[2:]:
        before, here = here, 2 * shift * here - before
        total = total + coefficient * here
    return tuple(float(c) for c in total.coef)


_PI = 4 * np.arctan(np.longdouble(1))
