"""Expectations of GELU, the error function and their kin at one position of one pair, as lines of code.

erf(u / √(2s)) is E sign(u + n) for noise n of variance s. With A = a + s, B = b + t, r = c / √(AB), Δ = 1 − r² and S, T
the error functions of both sides, Williams, "Computing with infinite networks" (1997), eq. (11), and Stein's identity
give

    E[S T] = (2/π) arcsin r
    E[uS vT] = (2/π) (c arcsin r + (ab Δ + st r²) / √(AB Δ))

and by Price's theorem their derivatives in c are the expectations of the slopes,

    E[S′ T′] = (2/π) / √(AB Δ)
    E[(uS)′ (vT)′] = (2/π) (arcsin r + (r/√Δ) (s/A + t/B + st / (AB Δ))).

Within each of these no term cancels another (sums of them may, where c < 0), and nothing is singular where a variance
is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .layout import noisy
from .polynomials import arcsine
from .program import ErrorFunctions, noises

if TYPE_CHECKING:
    from .pointwise import Writer

MEAN = math.sqrt(2.0 / math.pi)
"""E|n| of a standard Gaussian."""


@dataclass(frozen=True)
class Angle:
    """Variables that all expectations of a signal share.

    Attributes:
        a, b: 1/√A and 1/√B.
        product: 1/√(AB).
        r: the correlation of u and v with their noise.
        shares: s/A + t/B, the shares that noise has in the variances.
        noise: st/Δ.
        over: 1/√Δ.
        root: √Δ.
        arcsine: (2/π) arcsin r.
    """

    a: str
    b: str
    product: str
    r: str
    shares: str
    noise: str
    over: str
    root: str
    arcsine: str


def error_functions(writer: Writer, place: int, rule: ErrorFunctions) -> str:
    """The expectation as an expression. K and the factor of Θ share their parts."""
    f, g, names, angle = rule.f, rule.g, writer.roots(place), _angle(writer, place, rule)
    common = _combined(
        writer,
        [
            (f.linear * g.linear, ""),
            (MEAN * f.linear * g.step, angle.b),
            (MEAN * f.step * g.linear, angle.a),
            (f.ramp * g.ramp, angle.arcsine),
        ],
    )
    if rule.slopes:
        shares = f"fma({angle.product} * {angle.product}, {angle.noise}, {angle.shares})"
        slope = [
            (MEAN**2 * f.ramp * g.ramp, f"(({angle.r} * {angle.over}) * {shares})"),
            (MEAN**2 * f.step * g.step, f"({angle.product} * {angle.over})"),
        ]
        return _combined(writer, slope, common)
    a, b = names.get("avariance", ""), names.get("bvariance", "")
    value = [
        (f.one * g.one, ""),
        (MEAN * f.one * g.ramp, f"({b} * {angle.b})"),
        (MEAN * f.ramp * g.one, f"({a} * {angle.a})"),
        (f.step * g.step, angle.arcsine),
        (
            MEAN**2 * f.ramp * g.ramp,
            f"(({angle.product} * {angle.root}) * fma({angle.r} * {angle.r}, {angle.noise}, {a} * {b}))",
        ),
    ]
    return f"fma({writer.of(place)}, {common}, {_combined(writer, value)})"


def noisy_inverse(writer: Writer, c: str, noise: float, name: str) -> str:
    """1/√(c + noise), rounded up until 1 − r of equal signals is not above its least value, which is then taken."""
    one = writer.constant(1.0)
    inverse = writer.define(name, f"{one} / sqrt({c} + {writer.constant(noise)})")
    for _ in range(4):
        gap = f"{one} - {c} * ({inverse} * {inverse})"
        least = f"{writer.constant(0.5)} * ({_noise_shares(writer, inverse, inverse, noise, noise)})"
        writer.define(inverse, f"where_less({least}, {gap}, {inverse} * {writer.next_number}, {inverse})")
    return inverse


def _combined(writer: Writer, parts: list[tuple[float, str]], start: str = "") -> str:
    """A sum of numbers times expressions ("" is 1), as a variable; `start` is added."""
    total = start
    for weight, value in parts:
        if weight and not value:
            total = f"({total} + {writer.constant(weight)})" if total else writer.constant(weight)
        elif weight:
            scale = writer.constant(weight)
            total = f"fma({scale}, {value}, {total})" if total else f"{scale} * {value}"
    return writer.shared_value(total or writer.constant(0.0))


def _angle(writer: Writer, place: int, rule: ErrorFunctions) -> Angle:
    names, known = writer.roots(place), noises(writer.layout.program)
    s, t = rule.f.noise, rule.g.noise
    a, b = (names[f"{side}{noisy(known.index(noise))}"] for side, noise in (("a", s), ("b", t)))
    one, share = writer.constant(1.0), writer.shared_value
    product = share(f"{a} * {b}")
    r = share(f"{writer.of(place)} * {product}")
    size = share(f"absolute({r})")
    shares = share(_noise_shares(writer, a, b, s, t))
    # Rounding cannot take 1 − |r| below its least value, that of equal signals, which has no rounding of r in it.
    gap, least = share(f"{one} - {size}"), share(f"{writer.constant(0.5)} * {shares}")
    y = share(f"where_less({gap}, {least}, {least}, {gap})")
    delta = share(f"{y} * ({writer.constant(2.0)} - {y})")
    inverse, root = share(f"{one} / {delta}"), share(f"sqrt({delta})")
    noise = share(f"{writer.constant(s * t)} * {inverse}")
    over = share(f"{root} * {inverse}")
    return Angle(a, b, product, r, shares, noise, over, root, _arcsine(writer, r, size, y))


def _noise_shares(writer: Writer, a: str, b: str, s: float, t: float) -> str:
    if s == t:
        return f"{writer.constant(s)} * ({a} * {a} + {b} * {b})"
    return f"fma({writer.constant(s)}, {a} * {a}, {writer.constant(t)} * ({b} * {b}))"


def _arcsine(writer: Writer, r: str, size: str, y: str) -> str:
    """(2/π) arcsin r, of small relative error everywhere, for y = 1 − |r|: π/2 − 2 arcsin √(y/2) where |r| ≥ 1/2."""
    one, half, share = writer.constant(1.0), writer.constant(0.5), writer.shared_value
    rest = share(f"{half} * {y}")
    z = share(f"where_less({size}, {half}, {r} * {r}, {rest})")
    w = share(f"where_less({size}, {half}, {size}, sqrt({rest}))")
    coefficients = [MEAN**2 * c for c in (1.0, *arcsine(writer.dtype))]
    small = share(f"{w} * {writer.horner(coefficients, z)}")
    large = f"fma({writer.constant(-2.0)}, {small}, {one})"
    return share(f"copysign(where_less({size}, {half}, {small}, {large}), {r})")
