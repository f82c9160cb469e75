"""Functions in the span of {1, u, |u|, sign u}, from one square root and one arc tangent.

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
    """weight · (sign · u − threshold)₊ + jump · [sign · u > threshold], threshold > 0."""

    threshold: float
    sign: float
    weight: float
    jump: float


def thresholds(span: Span) -> tuple[Coefficients, tuple[Level, ...]] | None:
    """A piecewise linear function as one of this family and what it has beyond its kinks elsewhere than at 0.

    None for any other function. Each kink adds to the function on its far side from 0 only.
    """
    core = dict.fromkeys(Coefficients._fields, 0.0)
    found: dict[tuple[float, float], list[float]] = {}
    for term in span.terms:
        if not term.is_piecewise_polynomial or term.power > 1:
            return None
        c, power, place = term.coefficient, term.power, term.threshold
        straight, bent = ("linear", "absolute") if power else ("one", "sign")
        if place is None:
            core[straight if term.step is None else bent] += c
            continue
        upward = -1.0 if term.mirrored else 1.0
        if place == 0.0:  # u₊ = (u + |u|)/2, [u > 0] = (1 + sign u)/2, and of −u
            core[straight] += 0.5 * c * (upward if power else 1.0)
            core[bent] += 0.5 * c * (1.0 if power else upward)
            continue
        sign = 1.0 if place > 0.0 else -1.0
        size = c
        if upward != sign:  # x₊ = (−x)₊ + x, [x > 0] = 1 − [−x > 0]
            core["one"] += -upward * c * place if power else c
            core["linear"] += upward * c if power else 0.0
            size = c if power else -c
        found.setdefault((abs(place), sign), [0.0, 0.0])[1 - power] += size
    slope = 1e-12 * sum(abs(term.coefficient) for term in span.terms if term.power)
    size = 1e-12 * sum(abs(term.coefficient) * abs(term.threshold or 1.0) ** term.power for term in span.terms)
    rounding = {"one": size, "linear": slope, "absolute": slope, "sign": size}
    core = {name: 0.0 if abs(value) <= rounding[name] else value for name, value in core.items()}
    kept = {place: (weight, jump) for place, (weight, jump) in found.items() if abs(weight) > slope or abs(jump) > size}
    levels = (Level(*place, *values) for place, values in kept.items())
    return Coefficients(**core), tuple(levels)


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
