"""The number an author wrote, from the number that its rounding to float32 left in the program."""

import math
from collections.abc import Sequence
from fractions import Fraction

_DOUBLE_EPSILON = 2.0**-52
_HALF_PRECISION = 2.0**-12
"""Formats with a larger rounding unit have 16 bits."""


def is_rounded(epsilon: float) -> bool:
    """Whether a format with this rounding unit is coarser than float64."""
    return epsilon > _DOUBLE_EPSILON


def meant_number(value: float, epsilon: float, *, coincidence: float = 0.5) -> float:
    """The simplest short decimal or rational within four roundings of `value`; `value` itself if there is none."""
    if not is_rounded(epsilon):
        return value
    return min(_decimals(value, epsilon, coincidence) + _rationals(value, epsilon, coincidence), default=(0, value))[1]


def meant_variance(
    variance: float,
    epsilon: float,
    *,
    base_variances: Sequence[float] = (),
    fans: Sequence[float] = (),
    coincidence: float = 0.5,
) -> float:
    """The variance that an initialiser is meant to have, if it was computed in a format with rounding unit `epsilon`.

    Candidates, the simplest of which is taken: multiples of a variable with variance 1, or one of `base_variances`,
    by a short decimal (0.02) or by the root of a rational p/q (2/fan-in). In formats of 16 bits, too coarse to tell
    such candidates apart, the nearest of them and of 1/f and 2/f for f in `fans` is taken. The variance itself is
    returned if none is near.
    """
    if not is_rounded(epsilon) or variance <= 0:
        return variance
    candidates = []
    for base in (1.0, *base_variances):
        # A relative error of a scale counts twice in the variance.
        scales = _decimals(math.sqrt(variance / base), epsilon / 2, coincidence / 2)
        candidates += [(cost, base * scale**2) for cost, scale in scales]
        candidates += [(cost, base * square) for cost, square in _rationals(variance / base, epsilon, coincidence)]
    if epsilon > _HALF_PRECISION:
        nearby = [c / fan for fan in fans for c in (1.0, 2.0) if abs(c / fan - variance) <= 4 * epsilon * variance]
        candidates = [(abs(value - variance), value) for value in (*nearby, *(value for _, value in candidates))]
    return min(candidates, default=(0.0, variance))[1]


# A match says something only if it is no coincidence. About cost · tolerance candidates of this cost lie within the
# tolerance of any given number; that is bounded by `coincidence` (cost up to 10^6 in float32 for one half).


def _decimals(value: float, epsilon: float, coincidence: float) -> list[tuple[float, float]]:
    tolerance, digits = 4 * epsilon, 1
    while 10.0**digits * tolerance <= coincidence:
        rounded = float(f"{value:.{digits - 1}e}")
        if abs(rounded - value) <= tolerance * abs(value):
            return [(10.0**digits, rounded)]
        digits += 1
    return []


def _rationals(value: float, epsilon: float, coincidence: float) -> list[tuple[float, float]]:
    """The rational p/q with the smallest denominator within the tolerance."""
    tolerance, size = 4 * epsilon, abs(value)
    if not 1e-12 < size < 1e12:
        return []
    simplest = _simplest_between(Fraction(size * (1 - tolerance)), Fraction(size * (1 + tolerance)))
    cost = simplest.numerator * simplest.denominator
    return [(float(cost), math.copysign(float(simplest), value))] if cost * tolerance <= coincidence else []


def _simplest_between(lower: Fraction, upper: Fraction) -> Fraction:
    """The fraction with the smallest denominator in [lower, upper], 0 < lower < upper (Stern–Brocot)."""
    whole = math.floor(lower)
    if whole == lower:
        return Fraction(whole)
    if whole + 1 <= upper:
        return Fraction(whole + 1)
    return whole + 1 / _simplest_between(1 / (upper - whole), 1 / (lower - whole))
