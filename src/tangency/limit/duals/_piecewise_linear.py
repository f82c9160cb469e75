"""Functions in the span of {1, u, |u|, sign u}, from one square root and one arc tangent; others cut into pieces.

This is the commonest family (ReLU and its step), so that it has its own short program: the general recurrences give
the same numbers with ten times the operations, which a deep network pays for in compile time. Formulas: Cho & Saul,
"Kernel methods for deep learning" (2009), eq. (3) and (6).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._gaussian import geometric_mean
from ._terms import SIGN, Span

_MEAN = math.sqrt(2.0 / math.pi)


class Coefficients(NamedTuple):
    """one + linear·u + absolute·|u| + sign·sign(u)."""

    one: float
    linear: float
    absolute: float
    sign: float


def piecewise_linear(span: Span) -> Coefficients | None:
    """The coefficients of a function of the family; None for any other."""
    found = {"one": 0.0, "linear": 0.0, "absolute": 0.0, "sign": 0.0}
    for term in span.terms:
        plain = term.threshold is None and not (term.gaussian or term.oscillates_or_grows)
        if not plain or term.power > 1 or term.step not in (None, SIGN):
            return None
        if term.step is None:
            found["linear" if term.power else "one"] += term.coefficient
        else:
            found["absolute" if term.power else "sign"] += term.coefficient
    return Coefficients(**found)


class Level(NamedTuple):
    """Σ_n coefficients[n] xⁿ where x = sign · u − threshold > 0, else 0; n ≤ 2 and threshold > 0."""

    threshold: float
    sign: float
    coefficients: tuple[float, float, float]


class Pieces(NamedTuple):
    """core + square·u² around 0, and what there is beyond each threshold besides."""

    core: Coefficients
    square: float
    levels: tuple[Level, ...]


def pieces(span: Span) -> Pieces | None:
    """A piecewise linear or quadratic function, cut at its kinks and jumps elsewhere than at 0.

    None for any other function, and for one whose second derivative jumps at 0. Each kink adds to the function on its
    far side from 0 only.
    """
    # The factors of uⁿ and of uⁿ sign u, and for each kink those of its xⁿ.
    straight, bent = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    found: dict[tuple[float, float], list[float]] = {}
    for term in span.terms:
        if not term.is_piecewise_polynomial or term.power > 2:
            return None
        c, power, place = term.coefficient, term.power, term.threshold
        upward = -1.0 if term.mirrored else 1.0
        if place is None:
            (straight if term.step is None else bent)[power] += c
        elif place == 0.0:  # Half of (±u)ⁿ beyond 0 is the power itself, half goes with sign u.
            straight[power] += 0.5 * c * upward**power
            bent[power] += 0.5 * c * upward ** (power + 1)
        else:
            sign = 1.0 if place > 0.0 else -1.0
            if upward != sign:  # xⁿ where x > 0 is xⁿ everywhere less, on the far side, ± that of −x.
                for n in range(power + 1):
                    straight[n] += c * upward**power * math.comb(power, n) * (-place) ** (power - n)
                c *= -((-1.0) ** power)
            found.setdefault((abs(place), sign), [0.0, 0.0, 0.0])[power] += c
    rounding = [1e-12 * _size(span, power) for power in range(3)]

    def kept(values: list[float]) -> tuple[float, float, float]:
        one, two, three = (0.0 if abs(x) <= least else x for x, least in zip(values, rounding, strict=True))
        return one, two, three

    (one, linear, square), (sign, absolute, bent_square) = kept(straight), kept(bent)
    if bent_square:
        return None
    levels = (Level(*place, kept(own)) for place, own in found.items())
    core = Coefficients(one, linear, absolute, sign)
    return Pieces(core, square, tuple(level for level in levels if any(level.coefficients)))


def _size(span: Span, power: int) -> float:
    """How large the terms are that add up to a coefficient of this power."""
    return sum(
        abs(term.coefficient) * max(abs(term.threshold or 1.0), 1.0) ** (term.power - power)
        for term in span.terms
        if term.power >= power
    )


def piecewise_linear_dual(f: Coefficients, g: Coefficients, a, b, c):
    """E[f(u) g(v)] for variances a, b > 0 and covariance c within [−√(ab), √(ab)] up to rounding."""
    s = geometric_mean(a, b)
    root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
    parts = [
        (f.one * g.one, lambda: jnp.ones_like(c)),
        (f.one * g.absolute, lambda: _MEAN * root_b),
        (f.absolute * g.one, lambda: _MEAN * root_a),
        (f.linear * g.linear, lambda: c),
        (f.linear * g.sign, lambda: _MEAN * c / root_b),
        (f.sign * g.linear, lambda: _MEAN * c / root_a),
        (f.absolute * g.absolute, lambda: absolute_dual(s, c)),
        (f.sign * g.sign, lambda: sign_dual(s, c)),
    ]
    total = jnp.zeros_like(c)
    for weight, value in parts:
        if weight:
            total = total + weight * value()
    return total


def _angle(s, c):
    """√(s² − c²) and arcsin(c/s), accurate near c = ±s and for s² beyond the numbers' range."""
    height = jnp.sqrt(jnp.maximum(((s - c) / s) * ((s + c) / s), 0.0))
    return s * height, jnp.arctan2(c / s, height)


@jax.custom_jvp
def absolute_dual(s, c):
    """E|u||v| = (2/π) (√(s² − c²) + c arcsin(c/s))."""
    height, angle = _angle(s, c)
    return (2.0 / math.pi) * (height + c * angle)


@absolute_dual.defjvp
def _absolute_jvp(primals, tangents):
    s, c = primals
    height, angle = _angle(s, c)
    value = (2.0 / math.pi) * (height + c * angle)
    return value, (2.0 / math.pi) * (height / s * tangents[0] + angle * tangents[1])


@jax.custom_jvp
def sign_dual(s, c):
    """E[sign u sign v] = (2/π) arcsin(c/s); its derivative at c = ±s, which is infinite, comes out as 0."""
    return (2.0 / math.pi) * _angle(s, c)[1]


@sign_dual.defjvp
def _sign_jvp(primals, tangents):
    s, c = primals
    height, angle = _angle(s, c)
    flat = height <= 0
    inverse = jnp.where(flat, 0.0, 1.0 / jnp.where(flat, 1.0, height))
    return (2.0 / math.pi) * angle, (2.0 / math.pi) * inverse * (tangents[1] - c / s * tangents[0])
