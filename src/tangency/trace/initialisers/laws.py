"""The law of one random number: a piecewise function of a uniform or truncated normal base variable."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from .quadrature import Points, integrate

_NORMAL_CUT = 38.4
"""The standard normal density is below 1e-320 beyond this point."""


@dataclass(frozen=True)
class Base:
    """The base variable: uniform on [0, 1], or standard normal truncated to [lower, upper]."""

    kind: Literal["uniform", "normal"]
    lower: float
    upper: float

    @property
    def mass(self) -> float:
        """The probability of [lower, upper] before truncation."""
        return 1.0 if self.kind == "uniform" else normal_mass(self.lower, self.upper)

    def probability(self, lower: float, upper: float) -> float:
        """P(lower < B < upper)."""
        return upper - lower if self.kind == "uniform" else normal_mass(lower, upper) / self.mass

    def expectation(self, function: Callable[[Points], np.ndarray], lower: float, upper: float) -> float:
        """E[function(B); lower < B < upper]. Raises NoFiniteMomentError.

        Whatever grows too fast to have an expectation under the normal law overflows before the cut.
        """
        if self.kind == "uniform":
            return integrate(function, lower, upper)
        ends = _panels(max(lower, -_NORMAL_CUT), min(upper, _NORMAL_CUT))

        def weighted(points: Points) -> np.ndarray:
            density = _density(points.x)
            with np.errstate(all="ignore"):
                return np.where(density > 0, function(points) * density, 0.0)

        return math.fsum(integrate(weighted, a, b) for a, b in itertools.pairwise(ends)) / self.mass

    def moments(self) -> tuple[float, float]:
        """Mean and variance of the base variable itself."""
        if self.kind == "uniform":
            return 0.5, 1 / 12
        if math.isinf(self.lower) and math.isinf(self.upper):
            return 0.0, 1.0
        mass = self.mass
        mean = (float(_density(self.lower)) - float(_density(self.upper))) / mass
        variance = 1 + (_edge(self.lower) - _edge(self.upper)) / mass - mean**2
        if variance > 0.1:
            return mean, variance
        # A narrow or far truncation: the closed form loses its digits to cancellation.
        mean = 0.0 if self.lower == -self.upper else self.expectation(lambda points: points.x, self.lower, self.upper)
        return mean, self.expectation(lambda points: (points.x - mean) ** 2, self.lower, self.upper)


UNIFORM = Base("uniform", 0.0, 1.0)
NORMAL = Base("normal", -math.inf, math.inf)


@dataclass(frozen=True)
class Piece:
    """The function on [lower, upper] of the base variable. `affine` is (scale, shift) if it is scale·b + shift."""

    lower: float
    upper: float
    function: Callable[[Points], np.ndarray]
    affine: tuple[float, float] | None = None

    @property
    def constant(self) -> float | None:
        return self.affine[1] if self.affine is not None and self.affine[0] == 0 else None

    def at(self, x: float) -> float:
        """The value at one point, anchored at the nearer finite end."""
        anchor = min(
            (end for end in (self.lower, self.upper) if math.isfinite(end)), key=lambda e: abs(x - e), default=x
        )
        return float(np.broadcast_to(self.function(Points(anchor, np.array([x - anchor]))), (1,))[0])


def affine_piece(lower: float, upper: float, scale: float, shift: float) -> Piece:
    def function(points: Points) -> np.ndarray:
        return (scale * points.anchor + shift) + scale * points.offset

    return Piece(lower, upper, function, (scale, shift))


@dataclass(frozen=True)
class Law:
    """The law of f(B): f is given piece by piece, the pieces cover the support of B in order."""

    base: Base
    pieces: tuple[Piece, ...]

    @property
    def affine(self) -> tuple[float, float] | None:
        """(scale, shift) if the law is that of scale·B + shift."""
        return self.pieces[0].affine if len(self.pieces) == 1 else None

    @property
    def is_discrete(self) -> bool:
        return all(piece.constant is not None for piece in self.pieces)

    @property
    def distribution(self) -> str:
        if self.affine is None:
            return "other"
        if self.affine[0] == 0:
            return "constant"
        if self.base.kind == "uniform":
            return "uniform"
        return "normal" if self.base == NORMAL else "truncated normal"

    def moments(self) -> tuple[float, float]:
        """Mean and variance. Raises NoFiniteMomentError if there is none, or it cannot be integrated."""
        if self.affine is not None:
            scale, shift = self.affine
            mean, variance = self.base.moments()
            return scale * mean + shift, scale**2 * variance
        mean = math.fsum(self._expectation(piece, lambda value: value) for piece in self.pieces)
        return mean, math.fsum(self._expectation(piece, lambda value: (value - mean) ** 2) for piece in self.pieces)

    def _expectation(self, piece: Piece, of: Callable) -> float:
        if piece.constant is not None:
            return of(piece.constant) * self.base.probability(piece.lower, piece.upper)
        return self.base.expectation(lambda points: of(piece.function(points)), piece.lower, piece.upper)


def affine_law(base: Base, scale: float, shift: float) -> Law:
    return Law(base, (affine_piece(base.lower, base.upper, scale, shift),))


def normal_mass(lower: float, upper: float) -> float:
    """Φ(upper) − Φ(lower), from the tail that keeps its digits."""
    if lower > 0:
        return float(special.ndtr(-lower) - special.ndtr(-upper))
    return float(special.ndtr(upper) - special.ndtr(lower))


def as_uniform(law: Law) -> Law:
    """The same function of the same draw, written over the uniform base variable."""
    base = law.base
    if base.kind == "uniform":
        return law
    below = float(special.ndtr(base.lower))

    def to_uniform(x: float) -> float:
        return float(np.clip((special.ndtr(x) - below) / base.mass, 0.0, 1.0))

    def rewritten(piece: Piece) -> Piece:
        def function(points: Points) -> np.ndarray:
            return piece.function(Points(0.0, special.ndtri(below + points.x * base.mass)))

        affine = piece.affine if piece.constant is not None else None
        return Piece(to_uniform(piece.lower), to_uniform(piece.upper), function, affine)

    return Law(UNIFORM, tuple(rewritten(piece) for piece in law.pieces))


def refine(operands: Sequence[Law | float], extra: Iterable[float] = ()) -> tuple[Base, list[tuple[Piece, ...]]]:
    """All operands cut at the same points; numbers become constant pieces."""
    laws = [operand for operand in operands if isinstance(operand, Law)]
    if any(law.base != laws[0].base for law in laws):
        operands = [as_uniform(operand) if isinstance(operand, Law) else operand for operand in operands]
        laws = [operand for operand in operands if isinstance(operand, Law)]
    base = laws[0].base
    cuts = sorted({end for law in laws for piece in law.pieces for end in (piece.lower, piece.upper)} | set(extra))
    cells = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
    return base, [tuple(_restrict(operand, a, b) for operand in operands) for a, b in cells]


def _restrict(operand: Law | float, lower: float, upper: float) -> Piece:
    if not isinstance(operand, Law):
        return affine_piece(lower, upper, 0.0, float(operand))
    piece = next(piece for piece in operand.pieces if piece.lower <= lower and upper <= piece.upper)
    return Piece(lower, upper, piece.function, piece.affine)


def crossings(first: Piece, second: Piece) -> list[float]:
    """Where the two functions are equal inside their common interval, by sign changes on a fine grid."""
    lower, upper = first.lower, first.upper
    if first.affine is not None and second.affine is not None:
        slope = first.affine[0] - second.affine[0]
        root = (second.affine[1] - first.affine[1]) / slope if slope else math.nan
        return [root] if lower < root < upper else []
    start, stop = max(lower, -_NORMAL_CUT), min(upper, _NORMAL_CUT)
    grid = start + (stop - start) * (0.5 - 0.5 * np.cos(np.pi * (np.arange(2000) + 0.5) / 2000))

    def difference(x: float) -> float:
        return first.at(x) - second.at(x)

    points = Points(0.0, grid)
    with np.errstate(all="ignore"):
        values = np.broadcast_to(first.function(points) - second.function(points), grid.shape)
    change = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    roots = [
        optimize.root_scalar(difference, bracket=(grid[i], grid[i + 1]), xtol=1e-300, rtol=1e-15).root for i in change
    ]
    return roots + [float(grid[i]) for i in np.flatnonzero(values == 0) if 0 < i < grid.size - 1 and values[i - 1] != 0]


def midpoint(piece: Piece) -> float:
    """A point well inside the piece's interval."""
    if math.isinf(piece.lower) and math.isinf(piece.upper):
        return 0.0
    if math.isinf(piece.lower):
        return piece.upper - 1.0
    return piece.lower + 1.0 if math.isinf(piece.upper) else 0.5 * (piece.lower + piece.upper)


def _density(x) -> np.ndarray:
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def _edge(x: float) -> float:
    return 0.0 if math.isinf(x) else x * float(_density(x))


def _panels(lower: float, upper: float) -> list[float]:
    count = max(1, math.ceil((upper - lower) / 4))
    return [lower + (upper - lower) * i / count for i in range(count)] + [upper]
