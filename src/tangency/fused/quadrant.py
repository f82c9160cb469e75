"""Functions with kinks or jumps elsewhere than at 0 (clipped ones), at one position of one pair, as lines of code.

Such a function is one + linear·u + absolute·|u| + sign·sign u + square·u² and terms in [±u > τ], (±u − τ)₊ and its
square, so that its expectations are moments of normal variables X, Y with correlation ρ beyond h = τ/√a and k = τ'/√b.
With

    q = √(1 − ρ²),   R² = h² − 2ρhk + k²,   m = k − ρh,   n = h − ρk,   W = exp(−R²/(2q²)) / 2π

Owen's formulas ("Tables for computing bivariate normal probabilities", 1956, eqs. 2.1 and 2.4) become

    P(X > h, Y > k) = D(h, m) + D(k, n),   D(h, m) = W t g_h(s), or Φ(−h) − W t g_h(s) where m < 0,
    t = hq/R,   s = (1 + h) q / (q + R + |m|),

with g_h smooth on 0 ≤ s ≤ 1, a polynomial in 2s − 1 whose coefficients are looked up for each example, and

    E[δ(X − h) [Y > k]] = W M(|m|/q), or φ(h) − W M(|m|/q) where m < 0,

M being Mills' ratio. All other moments follow by Stein's identity. Nothing in a sum is much larger than the sum at the
variances that a rule serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Polynomial

from .error_function import MEAN
from .owen import BEFORE, BEND, COLUMNS, mills
from .program import PiecewiseLinear, PiecewiseQuadratic, Threshold, Truncated, tables

if TYPE_CHECKING:
    from .pointwise import Writer

_EXPONENTIAL_DEGREES = {"float32": 7, "float64": 13}
_LOWEST = {"float32": -60.0, "float64": -600.0}
"""Exponents below which exp is 0: less than that would be subnormal numbers."""

_MANTISSA = {"float32": 23, "float64": 52}
_LN2_HIGH = {"float32": 0.693359375, "float64": 0.693147180369123816490}
_LEAST_Q = {"float32": 1e-6, "float64": 1e-40}
"""Less than any q but 0, and products of six such are numbers."""

_HIGHEST = 200.0
"""Thresholds farther out, in units of the deviation, are as good as this."""


@dataclass(frozen=True)
class Moments:
    """Variables of two thresholds: P(X > h, Y > k), E[δ(X − h) [Y > k]], E[δ(Y − k) [X > h]] and qW."""

    probability: str
    left: str
    right: str
    corner: str


@dataclass(frozen=True)
class Side:
    """One function and one side's variables. `levels` are its thresholds; that of |u| and sign u at 0 comes first.

    The rest of the function around 0 is one + linear·u + square·u².
    """

    which: str
    core: PiecewiseLinear
    levels: tuple[Threshold, ...]
    root: str
    inverse: str
    variance: str
    one: float
    linear: float
    square: float


def truncated(writer: Writer, place: int, rule: Truncated) -> str:
    """The expectation, by moments of one variable where u and v are equal."""
    f, g = _side(writer, place, "a", rule.f), _side(writer, place, "b", rule.g)
    middle = writer.shared_value(" + ".join((writer.plain_dual(place, f.core, g.core), *_squares(writer, place, f, g))))
    equal = " + ".join((middle, *_equal(writer, place, rule, f)))
    if writer.mode == "first":
        return _guarded(writer, place, f, g, equal)
    parts = [middle]
    for own, other in ((f, g), (g, f)):
        parts += [
            part for level in other.levels if level.threshold for part in _smooth(writer, place, own, other, level)
        ]
    parts += [
        _product(writer, place, (f, first), (g, second))
        for first in f.levels
        for second in g.levels
        if first.threshold or second.threshold
    ]
    value, equal = writer.shared_value(" + ".join(parts)), writer.shared_value(equal)
    chosen = f"where_equal({f.inverse}, {g.inverse}, {equal}, {value})"
    chosen = f"where_less({writer.correlation(place)}, {writer.constant(1.0)}, {value}, {chosen})"
    return _guarded(writer, place, f, g, chosen)


def _guarded(writer: Writer, place: int, f: Side, g: Side, value: str) -> str:
    if not writer.guarded:
        return value
    means = _mean(writer, place, f), _mean(writer, place, g)
    return writer.guard(writer.roots(place), f.core, g.core, means, writer.shared_value(value))


def _squares(writer: Writer, place: int, f: Side, g: Side) -> list[str]:
    """What the squares add around 0: E[u² g(v)] = a E g + c² E g″, where |v| has the second derivative 2δ."""
    c, found = writer.of(place), []
    for own, other in ((f, g), (g, f)):
        core, twice = other.core, f"({c} * {c})"
        if own.square and core.one:
            found.append(f"{writer.constant(own.square * core.one)} * {own.variance}")
        if own.square and core.absolute:
            value = f"fma({own.variance}, {other.root}, {twice} * {other.inverse})"
            found.append(f"{writer.constant(MEAN * own.square * core.absolute)} * {value}")
    if f.square and g.square:
        value = f"fma({writer.constant(2.0)} * {c}, {c}, {f.variance} * {g.variance})"
        found.append(f"{writer.constant(f.square * g.square)} * {value}")
    return found


def _smooth(writer: Writer, place: int, own: Side, other: Side, level: Threshold) -> list[str]:
    """E of one + linear·u + square·u² times a level's terms g: E[u g] = c E g′ and E[u² g] = a E g + c² E g″."""
    c, found = writer.of(place), []
    if own.one:
        found.append(f"{writer.constant(own.one)} * {_first(writer, place, other, level)}")
    if own.linear:
        found.append(f"({writer.constant(own.linear)} * {c}) * {_slope(writer, place, other, level)}")
    if own.square:
        first, bend = _first(writer, place, other, level), _bend(writer, place, other, level)
        found.append(f"{writer.constant(own.square)} * fma({own.variance}, {first}, ({c} * {c}) * {bend})")
    return found


def _equal(writer: Writer, place: int, rule: Truncated, side: Side) -> list[str]:
    """What E[f(u) g(u)] has beside what the functions are around 0: moments of x = (±u − τ)₊.

    Beyond a threshold the functions are the terms of this threshold and a polynomial in x, from all others before it.
    """
    sums: dict[float, list[float]] = {}
    any_level = {level.threshold: level for level in rule.f.levels + rule.g.levels}
    for sign in (1.0, -1.0):
        levels = [{x.threshold: x for x in function.levels if x.sign == sign} for function in (rule.f, rule.g)]
        for threshold in sorted({*levels[0], *levels[1]}):
            (before_f, own_f), (before_g, own_g) = (
                _beyond(function, own, threshold, sign) for function, own in zip((rule.f, rule.g), levels, strict=True)
            )
            products = np.convolve(before_f + own_f, before_g + own_g) - np.convolve(before_f, before_g)
            total = sums.setdefault(threshold, [0.0] * len(products))
            sums[threshold] = [x + float(y) for x, y in zip(total, products, strict=True)]
    return [_moment_sum(writer, place, side, any_level[threshold], powers) for threshold, powers in sums.items()]


def _beyond(
    function: PiecewiseQuadratic, levels: dict[float, Threshold], threshold: float, sign: float
) -> tuple[np.ndarray, np.ndarray]:
    """A function just beyond a threshold as a polynomial in x: without its own terms there, and those."""
    core = function.core
    around = core.one + sign * core.sign, sign * core.linear + core.absolute, function.square
    before = _shifted(around, threshold)
    for level in levels.values():
        if level.threshold < threshold:
            before = before + _shifted(level.coefficients, threshold - level.threshold)
    own = levels.get(threshold)
    return before, np.array(own.coefficients if own else (0.0, 0.0, 0.0))


def _shifted(coefficients: tuple[float, float, float], by: float) -> np.ndarray:
    """The polynomial in x + by, as one in x."""
    none, one, two = coefficients
    return np.array([none + by * (one + by * two), one + 2.0 * by * two, two])


def _moment_sum(writer: Writer, place: int, side: Side, level: Threshold, powers: Sequence[float]) -> str:
    """Σ_n powers[n] E x^n = √a q(a) φ(h) + p(a) Φ(−h), where E x^(n+1) = n a E x^(n−1) − τ E x^n."""
    tail, density = (_column(writer, place, side, level, column) for column in (0, 1))
    one, variance, tau = Polynomial([1.0]), Polynomial([0.0, 1.0]), level.threshold
    moments = [one, -tau * one], [0.0 * one, one]
    parts = []
    for known, scale in zip(moments, (tail, f"{side.root} * {density}"), strict=True):
        for n in range(1, len(powers) - 1):
            known.append(n * variance * known[n - 1] - tau * known[n])
        total = sum((power * moment for power, moment in zip(powers, known, strict=True)), 0.0 * one)
        coefficients = np.trim_zeros(total.coef, "b").tolist()
        if coefficients:
            parts.append(f"({writer.horner(coefficients, side.variance)} * {scale})")
    return " + ".join(parts) or writer.constant(0.0)


def _side(writer: Writer, place: int, which: str, function: PiecewiseQuadratic) -> Side:
    """With |u| = 2u₊ − u and sign u = 2 [u > 0] − 1."""
    names, core = writer.roots(place), function.core
    at_zero = 2.0 * core.sign, 2.0 * core.absolute, 0.0
    middle = (Threshold(0.0, 1.0, at_zero, None),) if any(at_zero) else ()
    root, inverse, variance = (names[f"{which}{number}"] for number in ("root", "inverse", "variance"))
    one, linear = core.one - core.sign, core.linear - core.absolute
    return Side(which, core, middle + function.levels, root, inverse, variance, one, linear, function.square)


def _height(writer: Writer, side: Side, level: Threshold) -> str:
    h, most = writer.shared_value(f"{writer.constant(level.threshold)} * {side.inverse}"), writer.constant(_HIGHEST)
    return writer.shared_value(f"where_less({h}, {most}, {h}, {most})")


def _row(writer: Writer, place: int, side: Side, level: Threshold) -> str:
    """Where the coefficients of g_h start."""
    slot, table = writer.slot(place, False), tables(writer.layout.program).index(level.table)
    assert slot is not None
    # Where an example meets itself, what was just looked up lies across the lanes.
    which = "b" if writer.mode == "first" else side.which
    return writer.shared_value(writer.access.row(which, slot, table))


def _column(writer: Writer, place: int, side: Side, level: Threshold, column: int) -> str:
    return writer.shared_value(writer.coefficient(side.which, _row(writer, place, side, level), column))


def _first(writer: Writer, place: int, side: Side, level: Threshold) -> str:
    """E of the level's terms."""
    return writer.shared_value(_moment_sum(writer, place, side, level, level.coefficients))


def _slope(writer: Writer, place: int, side: Side, level: Threshold) -> str:
    """E of their derivative: that of a jump is a point mass, whose expectation is φ(h) / √a."""
    jump, one, two = level.coefficients
    value = _moment_sum(writer, place, side, level, (level.sign * one, 2.0 * level.sign * two))
    density = _column(writer, place, side, level, 1)
    if jump:
        value = f"{value} + {writer.constant(level.sign * jump)} * ({density} * {side.inverse})"
    return writer.shared_value(value)


def _bend(writer: Writer, place: int, side: Side, level: Threshold) -> str:
    """E of their second derivative: that of a jump has the expectation h φ(h) / a."""
    jump, one, two = level.coefficients
    tail, density = (_column(writer, place, side, level, column) for column in (0, 1))
    parts = []
    if two:
        parts.append(f"{writer.constant(2.0 * two)} * {tail}")
    if one or jump:
        value = writer.constant(one)
        if jump:
            value = f"fma({writer.constant(jump * level.threshold)} * {side.inverse}, {side.inverse}, {value})"
        parts.append(f"({value} * {side.inverse}) * {density}")
    return writer.shared_value(" + ".join(parts))


def _mean(writer: Writer, place: int, side: Side) -> str:
    parts = [writer.mean(side.core, side.root)]
    if side.square:
        parts.append(f"{writer.constant(side.square)} * {side.variance}")
    parts += [_first(writer, place, side, level) for level in side.levels if level.threshold]
    return f"({' + '.join(parts)})"


def _product(writer: Writer, place: int, left: tuple[Side, Threshold], right: tuple[Side, Threshold]) -> str:
    """E of the product of two levels' terms."""
    (f, first), (g, second) = left, right
    moment = _Products(writer, place, left, right)
    scales = [("", f.root, f.variance), ("", g.root, g.variance)]
    parts = []
    for m, n in product(range(3), range(3)):
        factor = first.coefficients[m] * second.coefficients[n]
        if factor:
            scale = " * ".join(part for part in (writer.constant(factor), scales[0][m], scales[1][n]) if part)
            parts.append(f"({scale}) * ({moment.of(m, n)})")
    return writer.shared_value(" + ".join(parts))


class _Products:
    """E[x^m y^n] beyond two thresholds, x = X − h and y = Y − k, by Stein's identity from the moments of order 0."""

    def __init__(self, writer: Writer, place: int, left: tuple[Side, Threshold], right: tuple[Side, Threshold]):
        self.writer, self.moments = writer, _moments(writer, place, left, right)
        self.h, self.k = (_height(writer, side, level) if level.threshold else "" for side, level in (left, right))
        self.rho = _signed(writer, place, left[1].sign * right[1].sign)

    def of(self, m: int, n: int) -> str:
        """As an expression."""
        h, k, rho = self.h, self.k, self.rho
        p, a, b = self.moments.probability, self.moments.left, self.moments.right
        match m, n:
            case 0, 0:
                return p
            case 1, 0:
                return f"fma({rho}, {b}, {a})" + (f" - {h} * {p}" if h else "")
            case 0, 1:
                return f"fma({rho}, {a}, {b})" + (f" - {k} * {p}" if k else "")
            case 1, 1:
                both = f"fma({h}, {k}, {rho})" if h and k else rho
                value = f"fma({both}, {p}, {self.moments.corner})"
                return value + (f" - {h} * {b}" if h else "") + (f" - {k} * {a}" if k else "")
            # Thresholds at 0, which have no h or no k, have no squares.
            case 2, _:
                rest = f"{self.writer.constant(float(n))} * {self.named(1, n - 1)}" if n else self.edge(h, k, b)
                below, level, lower = self.named(0, n), h, self.named(1, n)
            case _:  # n = 2, m < 2
                rest = self.named(0, 1) if m else self.edge(k, h, a)
                below, level, lower = self.named(m, 0), k, self.named(m, 1)
        return f"fma({rho}, {rest}, {below})" + (f" - {level} * {lower}" if level else "")

    def named(self, m: int, n: int) -> str:
        """As a variable."""
        return self.writer.shared_value(self.of(m, n))

    def edge(self, own: str, other: str, density: str) -> str:
        """E[δ(y) x₊]: that of the corner, and the mean of x there times E δ(y)."""
        minus = self.writer.constant(-1.0)
        mean = f"fma({self.rho}, {other}, {minus} * {own})" if other else f"({minus} * {own})"
        return self.writer.shared_value(f"fma({mean}, {density}, {self.moments.corner})")


def _signed(writer: Writer, place: int, sign: float) -> str:
    """±ρ, held within ±1."""
    rho = writer.held_correlation(place)
    return rho if sign > 0 else writer.shared_value(f"{writer.constant(-1.0)} * {rho}")


def _moments(writer: Writer, place: int, left: tuple[Side, Threshold], right: tuple[Side, Threshold]) -> Moments:
    """What all expectations of two levels share. Both signs of ρ that two thresholds meet with are one call."""
    (f, first), (g, second) = left, right
    sign = first.sign * second.sign
    names, key = writer.roots(place), f"moments {first.threshold} {second.threshold}"
    if f"{key} {sign}" not in names:
        signs = [
            x.sign * y.sign
            for x in f.levels
            for y in g.levels
            if (x.threshold, y.threshold) == (first.threshold, second.threshold)
        ]
        signs = sorted({*signs}, reverse=True)
        one, least = writer.constant(1.0), writer.constant(_LEAST_Q[writer.dtype])
        gaps = {f"gap{i}": writer.shared_value(f"{one} - {_signed(writer, place, x)}") for i, x in enumerate(signs)}
        rho = _signed(writer, place, 1.0)
        q = writer.shared_value(f"sqrt(({one} - {rho}) * ({one} + {rho}))")
        given = {"q": writer.shared_value(f"where_less({q}, {least}, {least}, {q})")} | gaps
        for row, height, (side, level) in (("row_a", "h", left), ("row_b", "k", right)):
            if level.threshold:
                given |= {row: _row(writer, place, side, level), height: _height(writer, side, level)}
        function, numbers = _function(writer, tuple(given), len(signs), bool(first.threshold), bool(second.threshold))
        local = len(writer.lines)
        results = [[f"{part}{i}_{local}" for part in ("p", "da", "db", "qw")] for i in range(len(signs))]
        made = ", ".join(name for group in results for name in group)
        writer.lines.append(f"{made} = {function}(C, H, {', '.join(given.values())}, cs, {numbers})")
        for x, group in zip(signs, results, strict=True):
            names[f"{key} {x}"] = " ".join(group)
    return Moments(*names[f"{key} {sign}"].split())


def _function(writer: Writer, arguments: tuple[str, ...], signs: int, left: bool, right: bool) -> tuple[str, int]:
    """The function of the moments of two thresholds, of which one may be 0, for one ρ or for both signs of it."""
    piece = writer.piece()
    sides = [("a", "h", "m")] * left + [("b", "k", "n")] * right
    for i in map(str, range(signs)):
        _distances(piece, i, left, right)
        _inverses(piece, i, sides)
        _exponential(piece, i, f"{piece.constant(-0.5)} * (ratio{i} * ratio{i})")
        for offset in "mn":
            r = f"r_{offset}{i}"
            piece.define(f"mills_{offset}{i}", f"{r} * {piece.horner(mills(piece.dtype), r)}")
    _smooth_tails(piece, [f"{side}{i}" for i in range(signs) for side, _, _ in sides])
    zero, results = piece.constant(0.0), []
    for i in map(str, range(signs)):
        weight = piece.define(f"W{i}", f"{piece.constant(0.5 / math.pi)} * power{i}")
        parts = []
        for side, level, offset in sides:
            inside = piece.define(f"in_{side}{i}", f"{weight} * (({level} * q) * (q * over{i})) * g_{side}{i}")
            tail = piece.coefficient(side, f"row_{side}", 0)
            value = f"where_less(off_{offset}{i}, {zero}, {tail} - {inside}, {inside})"
            parts.append(piece.define(f"d_{side}{i}", value))
        results.append(" + ".join(parts))
        for side, offset, has_row in (("a", "m", left), ("b", "n", right)):
            edge = piece.define(f"edge_{side}{i}", f"{weight} * mills_{offset}{i}")
            density = piece.coefficient(side, f"row_{side}", 1) if has_row else piece.constant(MEAN / 2.0)
            results.append(piece.define(edge, f"where_less(off_{offset}{i}, {zero}, {density} - {edge}, {edge})"))
        results.append(f"q * {weight}")
    return writer.source.piece("moments", f"C, H, {', '.join(arguments)}", piece, ", ".join(results))


def _distances(piece: Writer, i: str, left: bool, right: bool) -> None:
    """m, n and R."""
    if left and right:
        piece.define("d", "k - h")
        piece.define(f"off_m{i}", f"fma(gap{i}, h, d)")
        piece.define(f"off_n{i}", f"fma(gap{i}, k, {piece.constant(-1.0)} * d)")
        piece.define(f"R{i}", f"sqrt(fma(d, d, {piece.constant(2.0)} * (h * k) * gap{i}))")
    else:
        level, near, far = ("h", "m", "n") if left else ("k", "n", "m")
        piece.define(f"off_{near}{i}", f"(gap{i} - {piece.constant(1.0)}) * {level}")
        piece.define(f"off_{far}{i}", level)
        piece.define(f"R{i}", level)
    # Both h q and k q are at most R, but for rounding.
    for level in ("h",) * left + ("k",) * right:
        piece.define("bound", f"{level} * q")
        piece.define(f"R{i}", f"where_less(R{i}, bound, bound, R{i})")


def _inverses(piece: Writer, i: str, sides: list[tuple[str, str, str]]) -> None:
    """1/(qR), R/q, the arguments of Mills' ratio and those of the smooth tails, by one division."""
    bend, two = piece.constant(BEND), piece.constant(2.0)
    for offset in "mn":
        piece.define(f"size_{offset}", f"absolute(off_{offset}{i})")
        piece.define(f"below_{offset}", f"fma({bend}, size_{offset}, q)")
    for side, _, offset in sides:
        piece.define(f"under_{side}", f"(q + R{i}) + size_{offset}")
    piece.define("product", f"q * R{i}")
    piece.define("below", "below_m * below_n")
    piece.define("under", " * ".join(f"under_{side}" for side, _, _ in sides))
    piece.define("inverse", f"{piece.constant(1.0)} / (product * (below * under))")
    piece.define(f"over{i}", "inverse * (below * under)")
    piece.define(f"ratio{i}", f"R{i} * (R{i} * over{i})")
    piece.define("share", "(q * product) * inverse")
    for offset, other in ("mn", "nm"):
        piece.define(f"r_{offset}{i}", f"(share * under) * below_{other}")
    for side, level, _ in sides:
        others = "".join(f" * under_{other}" for other, _, _ in sides if other != side)
        inner = f"({piece.constant(1.0)} + {level}) * ((share * below){others})"
        piece.define(f"x_{side}{i}", f"fma({two}, {inner}, {piece.constant(-1.0)})")


def _smooth_tails(piece: Writer, chains: list[str]) -> None:
    """g_h(s) for each side and sign: even and odd powers apart, whose sums do not wait for each other."""
    for chain in chains:
        piece.define(f"square_{chain}", f"x_{chain} * x_{chain}")
    end = COLUMNS[piece.dtype]
    for column in range(end - 1, BEFORE - 1, -1):
        for side in dict.fromkeys(chain[0] for chain in chains):
            piece.define(f"c_{side}", piece.coefficient(side, f"row_{side}", column))
        for chain in chains:
            total, c = f"{'odd' if column % 2 else 'even'}_{chain}", f"c_{chain[0]}"
            piece.define(total, c if column >= end - 2 else f"fma({total}, square_{chain}, {c})")
    for chain in chains:
        piece.define(f"g_{chain}", f"fma(odd_{chain}, x_{chain}, even_{chain})")


def _exponential(piece: Writer, i: str, x: str) -> None:
    """Defines a power, exp x for x ≤ 0, as 2^n times a polynomial; 0 where it is too small to matter."""
    dtype = piece.dtype
    lowest, zero = piece.constant(_LOWEST[dtype]), piece.constant(0.0)
    magic = piece.constant(1.5 * 2.0 ** _MANTISSA[dtype])
    piece.define("exponent", x)
    piece.define("held", f"where_less(exponent, {lowest}, {lowest}, exponent)")
    piece.define("shifted", f"fma(held, {piece.constant(1.0 / math.log(2.0))}, {magic})")
    piece.define("whole", f"shifted - {magic}")
    high = _LN2_HIGH[dtype]
    piece.define("rest", f"fma(whole, {piece.constant(-high)}, held)")
    piece.define("rest", f"fma(whole, {piece.constant(high - math.log(2.0))}, rest)")
    series = [1.0 / math.factorial(k) for k in range(_EXPONENTIAL_DEGREES[dtype] + 1)]
    piece.define(f"power{i}", f"power_of_two(shifted) * {piece.horner(series, 'rest')}")
    piece.define(f"power{i}", f"where_less(exponent, {lowest}, {zero}, power{i})")
