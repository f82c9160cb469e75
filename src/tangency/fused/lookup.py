"""Looking up Hermite coefficients in tables over the variance: compiled functions that generated programs call.

A table's rows: first the values at variance 0, then for each panel of the logarithm of the variance the Chebyshev
coefficients of every column. Its first column is a mean, E[f(u) g(u)]; the others, if any, are Hermite coefficients.
"""

from __future__ import annotations

import math

import numba

DECADES = (-10, 4)
"""Powers of ten between which variances are tabulated."""

PANELS_PER_DECADE = 4
PANELS = (DECADES[1] - DECADES[0]) * PANELS_PER_DECADE
NODES = 14
"""Chebyshev polynomials in a panel."""

_LOWEST = DECADES[0] * math.log(10.0)
_WIDTH = math.log(10.0) / PANELS_PER_DECADE


@numba.njit(error_model="numpy")
def look_up(B, source, target, M, start, columns, H, place, terms, W, lanes):
    """For `lanes` variances from B[source] on: means to B[target …], and `terms` coefficients to H[place …].

    The last coefficient is √(E f² − Σ h²), so that the squares of all add up to the mean square. Variances beyond the
    table are looked up at its ends. W is scratch for NODES + `terms` numbers.
    """
    for lane in range(lanes):
        variance = float(B[source + lane])
        first, count = start, 1
        W[0] = 1.0
        if variance > 0.0:
            x = min(max((math.log(variance) - _LOWEST) / _WIDTH, 0.0), PANELS - 1e-12)
            panel = int(x)
            t = 2.0 * (x - panel) - 1.0
            W[1] = t
            for d in range(2, NODES):
                W[d] = 2.0 * t * W[d - 1] - W[d - 2]
            first, count = start + (1 + panel * NODES) * columns, NODES
        mean = 0.0
        for d in range(count):
            mean += W[d] * M[first + d * columns]
        B[target + lane] = mean
        if terms == 0:
            continue
        known = min(terms, columns) - 1
        for k in range(terms):
            W[NODES + k] = 0.0
        for d in range(count):
            for k in range(known):
                W[NODES + k] += W[d] * M[first + d * columns + 1 + k]
        rest = mean
        for k in range(known):
            rest -= W[NODES + k] * W[NODES + k]
        W[NODES + terms - 1] = math.sqrt(max(rest, 0.0))
        for k in range(terms):
            H[place + k * lanes + lane] = W[NODES + k]
