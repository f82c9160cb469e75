"""One-dimensional integrals to rounding error, endpoint singularities included."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_LEVELS = range(2, 11)
_STEP_LIMIT = 6.1
"""Beyond this t the distance to the endpoint, exp(-π sinh t), leaves the range of float64."""


class NoFiniteMomentError(ArithmeticError):
    """An integral diverges, or does not converge to the accuracy asked for."""


class Points(NamedTuple):
    """Points x = anchor + offset. The anchor is the nearer end of the interval, so that x − anchor is exact."""

    anchor: float
    offset: np.ndarray

    @property
    def x(self) -> np.ndarray:
        return self.anchor + self.offset


def integrate(function: Callable[[Points], np.ndarray], lower: float, upper: float) -> float:
    """∫ function over [lower, upper] by the tanh-sinh rule, to about 1e-15 of ∫ |function|.

    Takahasi & Mori (1974), "Double exponential formulas for numerical integration". Integrable singularities at the
    two ends are allowed. Raises NoFiniteMomentError if the rule does not converge.
    """
    if not lower < upper:
        return 0.0
    previous, total, magnitude = np.inf, 0.0, 0.0
    for level in _LEVELS:
        total, magnitude = _tanh_sinh(function, lower, upper, level)
        # The error squares with every level: 1e-12 between the last two leaves rounding error only.
        if abs(total - previous) <= 1e-12 * magnitude:
            return total
        previous = total
    raise NoFiniteMomentError("the integral does not converge")


def _tanh_sinh(function: Callable[[Points], np.ndarray], lower: float, upper: float, level: int) -> tuple[float, float]:
    distance, weight, centre_weight = _rule(level)
    width = upper - lower
    middle = _finite(function(Points(lower, np.array([width / 2]))), np.array([centre_weight]))
    left = _finite(function(Points(lower, width * distance)), weight)
    right = _finite(function(Points(upper, -width * distance)), weight)
    terms = np.concatenate([left, right, middle])
    # Sorted by magnitude, the small terms are not lost against the large ones.
    terms = terms[np.argsort(np.abs(terms))]
    return width * float(np.sum(terms)), width * float(np.sum(np.abs(terms)))


def _finite(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        terms = np.broadcast_to(values, weight.shape) * weight
    bad = ~np.isfinite(terms)
    if np.any(bad & (weight > 1e-200)):
        raise NoFiniteMomentError("the integrand is not finite")
    return np.where(bad, 0.0, terms)


@functools.cache
def _rule(level: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Distances from the nearer end and weights for the unit interval; the midpoint's weight apart."""
    step = 2.0**-level
    t = np.arange(1, int(_STEP_LIMIT / step) + 1) * step
    decay = np.exp(-np.pi * np.sinh(t))
    distance = decay / (1 + decay)
    weight = step * np.pi * np.cosh(t) * decay / (1 + decay) ** 2
    return distance, weight, step * np.pi / 4
