"""Hermite coefficients of activations without a closed form, as tables over the variance.

E[f(u) g(v)] = Σ_k h_k^f(a) h_k^g(b) ρ^k (O'Donnell, "Analysis of Boolean Functions" (2014), proposition 11.37). The
coefficients are numbers of one example, so that they are looked up; what is left for a pair is a polynomial in ρ. The
tables hold h_k / √(k + 1): products of these are the coefficients of the polynomial's integral, which a function's own
expectation is if the table is that of its slope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebpts1, chebvander

from .lookup import CHUNK, DECADES, GROUP, NODES, PANELS, PANELS_PER_DECADE

ACCURACY = 1e-13
"""Error of a table, in units of the root of its mean square."""

AIM = {"float32": 3e-7, "float64": 1e-14}
"""What the terms beyond those used may add up to, in units of √(E f² E g²)."""

PROMISE = {"float32": 1e-6, "float64": 1e-9}
"""As `AIM`, where all terms of the tables are used; with more left over, the kernel is not evaluated here."""

_EXTREMES = 7


class OutOfRangeError(Exception):
    """Variances for which the fused arithmetic is not accurate enough, as the message says; XLA must serve."""


LEFT_OUT = {"float32": 3e-6, "float64": 1e-12}
"""What the least-squares fit to further terms of functions with a kink (see `kinks`) may add up to, in units of
√(E f² E g²). In float32 the polynomials' error comes to it, which is at most as large.
"""


class Evaluated(NamedTuple):
    """What a table is made from.

    Attributes:
        columns: at variances, [PANELS, NODES, columns].
        zero: at variance 0, [columns].
        size: of the mean, [PANELS, NODES].
        noise: how much more each column but the mean suffers from errors than a coefficient; None for coefficients.
        left_out: where the coefficients are not only those of a power series, by precision, in units of E f²: the sum
            of squares of the further terms, and of the errors of the fit to them, [PANELS, NODES, 2].
    """

    columns: np.ndarray
    zero: np.ndarray
    size: np.ndarray
    noise: np.ndarray | None = None
    left_out: dict[str, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """A mean, E[f(u) g(u)], and h_k / √(k + 1) for k = first, first + step, …, of one variance, or what `kinks` or
    `owen` says.

    Attributes:
        columns: how many numbers that are.
        evaluate: finds them at many variances, when they are first needed.
        whole: for coefficients that are not those of a power series, or not only (see `kinks` and `owen`), how many
            columns are looked up in each precision.
        chebyshev: if the last of these are coefficients of Chebyshev polynomials, how many others are before them; in
            H they are those of powers.
        settled: whether below the smallest variance that is tabulated all numbers are as they are there.
    """

    first: int
    step: int
    columns: int
    evaluate: Callable[[np.ndarray], Evaluated]
    whole: Mapping[str, int] | None = None
    settled: bool = False
    chebyshev: int | None = None

    @property
    def padded(self) -> int:
        """How many columns fill whole chunks."""
        return self.columns + -self.columns % CHUNK

    @property
    def size(self) -> int:
        return (1 + PANELS * NODES) * self.padded

    @property
    def packed(self) -> np.ndarray:
        """All numbers in the order in which they are looked up (see `lookup`)."""
        rows = np.pad(self.rows, ((0, 0), (0, self.padded - self.columns)))
        panels = rows[1:].reshape(PANELS, NODES, -1, CHUNK).swapaxes(1, 2)
        return np.append(rows[0], panels)

    @property
    def rows(self) -> np.ndarray:
        """[1 + PANELS · NODES, columns]: at variance 0, and the Chebyshev coefficients of each panel."""
        return self._fitted[0]

    @property
    def accurate(self) -> tuple[float, float]:
        """The variances between which the table is; (∞, 0) if it is nowhere."""
        return self._fitted[1]

    def left_out(self, low: float, high: float, dtype: str) -> tuple[float, float]:
        """The largest `Evaluated.left_out` between two variances."""
        panels = [int(np.clip((np.log10(x) - DECADES[0]) * PANELS_PER_DECADE, 0, PANELS - 1)) for x in (low, high)]
        energy, rest = np.max(self._fitted[2][dtype][panels[0] : panels[1] + 1], axis=(0, 1))
        return float(energy), float(rest)

    @cached_property
    def _fitted(self) -> tuple[np.ndarray, tuple[float, float], dict[str, np.ndarray]]:
        x = np.arange(PANELS)[:, None] + 0.5 * (chebpts1(NODES) + 1.0)
        values, zero, size, noise, left_out = self.evaluate(10.0 ** (DECADES[0] + x / PANELS_PER_DECADE))
        noise = np.ones(self.columns - 1) if noise is None else noise
        transform = (2.0 / NODES) * chebvander(chebpts1(NODES), NODES - 1).T
        transform[0] /= 2.0
        with np.errstate(all="ignore"):
            fitted = np.einsum("dn,pnk->pdk", transform, values)
            scale = np.max(size, axis=1)[:, None, None] ** np.array([1.0] + [0.5] * (self.columns - 1))
            scale = scale * np.append(1.0, noise)
            error = np.max(np.abs(fitted[:, -2:]) / scale, axis=(1, 2))
        good = np.isfinite(error) & (error <= ACCURACY)
        middle = -DECADES[0] * PANELS_PER_DECADE
        rows = np.concatenate([zero[None], np.where(good[:, None, None], fitted, 0.0).reshape(-1, self.columns)])
        if not (good[middle - 1] and good[middle]):
            return rows, (np.inf, 0.0), left_out or {}
        bad = np.flatnonzero(~good)
        low, high = max(bad[bad < middle], default=-1) + 1, min(bad[bad > middle], default=PANELS)
        start, end = (10.0 ** (DECADES[0] + int(panel) / PANELS_PER_DECADE) for panel in (low, high))
        return rows, (0.0 if self.settled and low == 0 else start, end), left_out or {}

    def at(self, variances: np.ndarray) -> np.ndarray:
        """The mean and the coefficients, [n, columns], at positive variances of the table."""
        x = np.clip((np.log10(variances) - DECADES[0]) * PANELS_PER_DECADE, 0.0, PANELS - 1e-12)
        panel = x.astype(int)
        basis = chebvander(2.0 * (x - panel) - 1.0, NODES - 1)
        return np.einsum("nd,ndk->nk", basis, self.rows[1:].reshape(PANELS, NODES, -1)[panel])

    def weights(self, count: int) -> np.ndarray:
        """k + 1 for the first coefficients."""
        return 1.0 + self.first + self.step * np.arange(count)

    def tails(self, variances: np.ndarray) -> np.ndarray:
        """Σ_{j ≥ n} h_j² / E f² for n = 0, 1, …: the largest of the variances'."""
        values = self.at(variances)
        count = values.shape[1] - 1
        squares = values[:, 1:] ** 2 * self.weights(count) / values[:, :1]
        last, before = (squares[:, s].sum(axis=1) for s in (slice(count // 2, None), slice(count // 4, count // 2)))
        ratio = np.clip(last / np.maximum(before, 1e-300), 0.0, 0.9)
        beyond = last * ratio / (1.0 - ratio)
        missing = np.abs(1.0 - squares.sum(axis=1))
        beyond = np.where(missing > np.maximum(1e-11, 3.0 * beyond), missing, beyond)
        inside = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
        return np.max(np.append(inside, np.zeros((len(inside), 1)), axis=1) + beyond[:, None], axis=0)


def terms(f: Table, g: Table, variances: tuple[float, float], dtype: str) -> int:
    """How many terms of E[f(u) g(v)] are needed between two variances.

    Raises:
        OutOfRangeError: a variance is not in the tables, or their terms are too few or fit too badly for it.
    """
    low, high = variances
    if low < max(f.accurate[0], g.accurate[0]) or high > min(f.accurate[1], g.accurate[1]):
        raise OutOfRangeError(f"variances from {low:.3g} to {high:.3g} are not all in the tables of its activations")
    if f.whole is not None and g.whole is not None:
        (energy, rest), (other, its_rest) = (table.left_out(low, high, dtype) for table in (f, g))
        error = np.sqrt(energy * its_rest) + np.sqrt(other * rest) + np.sqrt(rest * its_rest)
        if not error <= LEFT_OUT[dtype]:
            raise OutOfRangeError(_too_large(high))
        return max(f.whole[dtype], g.whole[dtype])
    chosen = np.geomspace(low, high, _EXTREMES)
    left, right = f.tails(chosen), g.tails(chosen)
    count = min(len(left), len(right))
    errors = np.sqrt(left[:count] * right[:count])
    if errors[-1] > PROMISE[dtype]:
        raise OutOfRangeError(_too_large(high))
    enough = errors <= AIM[dtype]
    needed = max(int(np.argmax(enough)) if enough.any() else count - 1, 1)
    return needed + -needed % GROUP


def _too_large(variance: float) -> str:
    return f"with variances up to {variance:.3g}, the expansion of an activation takes too many terms"
