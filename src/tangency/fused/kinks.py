"""Functions with a kink or a jump at 0: what follows the first Hermite coefficients, as lines of code.

Coefficients of a smooth function fall faster than any power of k, those of a kink as powers of it: for even and for odd
k apart, (−1)^⌊k/2⌋ t_k = Σ_i α_i g_i(k) with g_i(k) = (k + 1)^(−q) (K / (k + 1))^i, q = 7/4 for even and 5/4 for odd k
(those of |u| and of sign u, divided by √(k + 1); Abramowitz & Stegun, "Handbook of Mathematical Functions" (1964),
22.5 and 6.1.47). A few α, found by least squares from K on, then stand for all further terms of the polynomial in ρ:

    Σ_{k ≥ s} t_k t'_k ρ^k = ρ^s Σ_j w_j τ_j(ρ²),   w_j = Σ_{i+l=j} α_i α'_l,
    τ_j(z) = Σ_n z^n K^j / (s + 1 + 2n)^(2q + j)

where s is K for the even terms and K + 1 for the odd ones. τ_j, where Horner's rule starts, is a smooth function of
t = √(1 − z) that varies where t is about 1/√K: a polynomial in t / (t + BEND). Its derivative needs no other function:
2n = (s + 1 + 2n) − (s + 1), so that 2z τ'_j = K τ_{j−1} − (s + 1) τ_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .lookup import GROUP
from .polynomials import fit

if TYPE_CHECKING:
    from .pointwise import Writer

EXPONENTS = 1.75, 1.25
"""q for even and for odd k."""


@dataclass(frozen=True)
class Tail:
    """Where the coefficients stop and how many α stand for the others, in one precision.

    Attributes:
        terms: K.
        order: how many α the even, and how many the odd coefficients have.
        loops: the columns of the coefficients, last ones first.
        column: that of the first α; those for odd coefficients follow.
        degrees: of the polynomials for τ_{−1}, τ_0, …, whose shares become smaller.
    """

    terms: int
    order: int
    loops: tuple[tuple[int, int], ...]
    column: int
    degrees: tuple[int, ...]

    @property
    def columns(self) -> int:
        """How many columns are looked up."""
        end = self.column + 2 * self.order
        return end + -end % GROUP


TAILS = {
    "float32": Tail(16, 4, ((0, 16),), 16, (8, 7, 7, 6, 6, 5, 5, 4)),
    "float64": Tail(96, 7, ((24, 104), (0, 16)), 104, tuple(range(21, 7, -1))),
}
"""A table has all columns of float32 first."""

BEND = 0.5
"""The t around which the polynomials' variable bends."""

_SMALLEST = 0.01
"""The least ρ² that is divided by."""

COLUMNS = TAILS["float64"].column + 2 * TAILS["float64"].order


def decay(tail: Tail, parity: int, k: np.ndarray) -> np.ndarray:
    """g_i(k), [k, order]."""
    ratio = tail.terms / (k + 1.0)
    return ((k + 1.0) ** -EXPONENTS[parity])[:, None] * ratio[:, None] ** np.arange(tail.order)


@lru_cache
def polynomial(tail: Tail, parity: int, j: int) -> tuple[float, ...]:
    """τ_j as a polynomial in (1 + BEND) t / (t + BEND), coefficients lowest first."""
    function = _integral(tail.terms + parity, 2.0 * EXPONENTS[parity] + j, float(tail.terms) ** j)
    return fit(lambda v: function(BEND * v / (1.0 + BEND - v)), tail.degrees[j + 1])


def _integral(start: int, power: float, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """factor · Σ_n z^n / (start + 1 + 2n)^power by Euler's integral for the powers."""
    nodes, weight = np.polynomial.legendre.leggauss(16)
    edges = np.geomspace(1e-30, 50.0 / start, 200)
    x = (edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1.0) / 2.0).ravel()
    measure = (np.diff(edges)[:, None] * weight / 2.0).ravel()
    measure = factor / math.gamma(power) * measure * x ** (power - 1.0) * np.exp(-(start + 1.0) * x)

    def value(t: np.ndarray) -> np.ndarray:
        below = -np.expm1(-2.0 * x) + np.square(t.astype(np.float64))[:, None] * np.exp(-2.0 * x)
        return ((1.0 / below) @ measure).astype(np.longdouble)

    return value


def beyond(writer: Writer, rows: tuple[str, str], rho: str, results: list[str]) -> None:
    """Defines what Horner's rule starts with: for even and for odd terms; with four results, also the derivatives of
    these in ρ². `rows` are where the coefficients of both sides start. All layers share one function.
    """
    piece = writer.piece()
    tail, bent, half_inverse = TAILS[writer.dtype], *_distance(piece)
    values, slopes = [], []
    for parity in (0, 1):
        first = tail.column + parity * tail.order
        left, right = (
            [
                piece.define(f"{side}{i}_{parity}", piece.coefficient(side, f"row_{side}", first + i))
                for i in range(tail.order)
            ]
            for side in "ab"
        )
        taus = [
            piece.define(f"tau{j}_{parity}", piece.horner(polynomial(tail, parity, j - 1), bent))
            for j in range(2 * tail.order)
        ]
        products = []
        for j in range(2 * tail.order - 1):
            pairs = [(left[i], right[j - i]) for i in range(tail.order) if 0 <= j - i < tail.order]
            products.append(piece.define(f"product{j}_{parity}", _sum(pairs)))
        values.append(piece.define(f"tail_{parity}", _sum(zip(products, taus[1:], strict=True))))
        before = f"{piece.constant(float(tail.terms))} * ({_sum(zip(products, taus[:-1], strict=True))})"
        start = piece.constant(-1.0 - parity - tail.terms)
        slopes.append(f"{half_inverse} * fma({start}, {values[-1]}, {before})")
    made = ", ".join((values + slopes)[: len(results)])
    function, numbers = writer.source.piece("beyond", "C, H, row_a, row_b, rho", piece, made)
    writer.lines.append(f"{', '.join(results)} = {function}(C, H, {rows[0]}, {rows[1]}, {rho}, cs, {numbers})")


def _distance(piece: Writer) -> tuple[str, str]:
    """(1 + BEND) t / (t + BEND) and 1/(2ρ²), by one division. Where ρ is small, ρ^K is as good as zero, whatever it is
    multiplied by.
    """
    one, least = piece.constant(1.0), piece.constant(_SMALLEST)
    piece.define("t", f"sqrt(({one} - rho) * ({one} + rho))")
    piece.define("square", "rho * rho")
    piece.define("square", f"where_less(square, {least}, {least}, square)")
    piece.define("below", f"t + {piece.constant(BEND)}")
    piece.define("over", f"{one} / (square * below)")
    bent = piece.define("bent", f"({piece.constant(1.0 + BEND)} * t) * (square * over)")
    return bent, piece.define("half_inverse", f"({piece.constant(0.5)} * below) * over")


def _sum(pairs: Iterable[tuple[str, str]]) -> str:
    """The sum of products."""
    total = ""
    for x, y in pairs:
        total = f"fma({x}, {y}, {total})" if total else f"{x} * {y}"
    return total
