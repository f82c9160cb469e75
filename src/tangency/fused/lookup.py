"""Looking up Hermite coefficients in tables over the variance: compiled functions that generated programs call.

A table's columns: first a mean, E[f(u) g(u)]; then, if any, Hermite coefficients h_k / √(k + 1), or what `kinks` or
`owen` says. They lie in chunks of CHUNK columns: first the values at variance 0, then for each panel of the logarithm
of the variance, chunk by chunk, the Chebyshev coefficients, those of one polynomial in a row.
"""

from __future__ import annotations

import math

import numba

from .simd import fma, vectors

DECADES = (-10, 4)
"""Powers of ten between which variances are tabulated."""

PANELS_PER_DECADE = 4
PANELS = (DECADES[1] - DECADES[0]) * PANELS_PER_DECADE
NODES = 14
"""Chebyshev polynomials in a panel."""

GROUP = 4
"""Terms that are summed side by side: their number is a multiple."""

CHUNK = 8
"""Columns that are looked up at once, side by side in memory."""

load, store, spread = vectors(CHUNK)

_SMALL = 1e-3
"""Coefficients below it, in units of what may be left out, are zero: products of such would be subnormal numbers, with
which a processor takes a hundred times as long.
"""

_ROUNDING = 1e-12
_LOWEST = DECADES[0] * math.log(10.0)
_WIDTH = math.log(10.0) / PANELS_PER_DECADE


@numba.njit(error_model="numpy")
def chunk_of(W, count, M, start):
    """Σ_d W[d] M[start + CHUNK · d + c] for all c of a chunk, behind the NODES numbers of W."""
    total = spread(W, 0) * load(M, start)
    for d in range(1, count):
        total = fma(spread(W, d), load(M, start + CHUNK * d), total)
    store(W, NODES, total)


@numba.njit(error_model="numpy")
def look_up(B, source, target, M, start, padded, H, place, terms, W, lanes, aim, whole, first_power, step):
    """For `lanes` variances from B[source] on: means to B[target …], and coefficients to H[place …].

    With `terms`, how many terms each of them needs, and the most of these, are written behind the means. Two examples
    need half the sum of their numbers of terms: the logarithm of what is left out is convex in the number. So `terms`
    is the most that any example needs, and every other one gets coefficients for half the sum. Variances beyond the
    table are looked up at its ends. `padded` is the number of columns with those that fill the last chunk; W is scratch
    for NODES + CHUNK numbers. With `whole`, every example gets all. Coefficients too small to matter are written as 0
    (see `_SMALL`).
    """
    most = GROUP
    for lane in range(lanes):
        variance = float(B[source + lane])
        first, count = start, 1
        W[0] = 1.0
        if variance > 0.0:
            x = min(max((math.log(variance) - _LOWEST) / _WIDTH, 0.0), PANELS - 1e-12)
            panel = int(x)
            t = 2.0 * (x - panel) - 1.0
            before, here = 1.0, t
            for d in range(1, NODES):
                W[d] = here
                before, here = here, 2.0 * t * here - before
            first, count = start + (1 + panel * NODES) * padded, NODES
        chunk_of(W, count, M, first)
        mean = W[NODES]
        B[target + lane] = mean
        if terms == 0:
            continue
        rest, needed, k = mean, terms, 0
        small = (_SMALL * aim) ** 2 * mean
        known = min(terms, padded - 1)
        while k < min(known, (needed + terms + 1) // 2):
            begin = (k + 1) % CHUNK
            if begin == 0:
                chunk_of(W, count, M, first + (k + 1) * count)
            energy, end = 0.0, min(k + CHUNK - begin, known)
            for c in range(end - k):
                value = W[NODES + begin + c]
                energy += (1 + first_power + step * (k + c)) * value * value
                H[place + (k + c) * lanes + lane] = value if value * value > small else 0.0
            rest -= energy
            k = end
            if not whole and needed == terms and energy <= 0.1 * aim * mean and rest <= max(aim, _ROUNDING) * mean:
                needed = min(k, terms)
        for column in range(k, terms):
            H[place + column * lanes + lane] = 0.0
        B[target + lanes + lane] = needed
        most = max(most, needed)
    if terms:
        for lane in range(lanes):
            B[target + 2 * lanes + lane] = most


@numba.njit(error_model="numpy")
def to_powers(H, place, count, lanes):
    """Coefficients of Chebyshev polynomials, H[place …], become those of powers, by T_k = 2 x T_(k−1) − T_(k−2)."""
    for first in range(count - 1):
        for k in range(count - 1, first + 1, -1):
            for at in range(place + k * lanes, place + (k + 1) * lanes):
                H[at - 2 * lanes] -= H[at]
                H[at] *= 2


@numba.njit(error_model="numpy")
def level(B, place, cells, stride, lanes):
    """The most terms that one of the cells of a row needs, for all of them: then loops of equal length follow."""
    for lane in range(lanes):
        most = 0.0
        for cell in range(cells):
            most = max(most, B[place + cell * stride + lane])
        for cell in range(cells):
            B[place + cell * stride + lane] = most
