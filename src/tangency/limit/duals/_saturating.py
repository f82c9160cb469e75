"""Duals of clipped functions, without the truncated moments that at large variance are large and cancel.

For continuous piecewise linear f and g, f'' and g'' are point masses w_i, w_j at t_i, r_j. Price's theorem, used twice,
gives ∂²/∂c² E[f(u) g(v)] = Σ w_i w_j p(t_i, r_j) with p the density of (u, v), so that with c' = √(ab) sin θ

    E[f(u) g(v)] = E f E g + c E f' E g' + 1/(2π) ∫ (c − c') Σ w_i w_j exp(−Q_ij(θ)) dθ,  θ from 0 to arcsin(c/√(ab)).

Where the w of f or of g sum to 0, exp(−Q) − 1 may stand for exp(−Q), and nothing in the sum is large.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._gaussian import determinant, geometric_mean, guarded_sqrt

_NODES = {jnp.dtype(jnp.float32): 24, jnp.dtype(jnp.float64): 48}
_STEP = 4
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
_FINEST = 0.05
_SMALLEST = 1e-30


class Kinks(NamedTuple):
    """constant + slope·u + Σ_i weights[i] (u − places[i])₊."""

    constant: float
    slope: float
    places: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def balance(self) -> float:
        """The slope at +∞ less that at −∞."""
        return sum(self.weights) if abs(sum(self.weights)) > 1e-11 * sum(map(abs, self.weights)) else 0.0

    @property
    def is_bounded(self) -> bool:
        return bool(self.places) and self.balance == 0.0 and self.slope == 0.0

    @property
    def reach(self) -> float:
        """How far from 0 the kinks are."""
        return max(map(abs, self.places), default=0.0)


def kinks(pieces: dict) -> Kinks | None:
    """From the coefficients of truncated powers; None if the function is not continuous and piecewise linear."""
    constant, slope, weights = 0.0, 0.0, {}
    for place, powers in pieces.items():
        if max(powers) > 1 or (place is not None and powers.get(0, 0.0)):
            return None
        weight = powers.get(1, 0.0)
        if place is None:
            constant, slope = constant + powers.get(0, 0.0), slope + weight
            continue
        threshold, orientation = place
        weights[threshold] = weights.get(threshold, 0.0) + weight
        if orientation < 0:  # (t − u)₊ = (u − t)₊ + t − u
            constant, slope = constant + weight * threshold, slope - weight
    slope = 0.0 if abs(slope) < 1e-11 * sum(map(abs, weights.values())) else slope
    return Kinks(constant, slope, tuple(weights), tuple(weights.values()))


def saturating_dual(f: Kinks, g: Kinks, a, b, c):
    """E[f(u) g(v)] for f or g bounded, a, b > 0 and |c| ≤ √(ab); without derivatives."""
    d = determinant(a, b, c)
    (mean_f, slope_f, h), (mean_g, slope_g, k) = _first(f, a), _first(g, b)
    value = mean_f * mean_g + c * (slope_f * slope_g)
    if not f.places or not g.places:
        return value
    s = geometric_mean(a, b)
    height, sign = guarded_sqrt(d), jnp.where(c < 0, -1.0, 1.0)
    # ψ = π/2 − |θ|, graded towards its end: the terms change at ψ of the size of the kinks' places in units of √a.
    places = [functools.reduce(jnp.maximum, map(jnp.abs, x)) for x in (h, k)]
    finest = _FINEST * jnp.clip(jnp.maximum(*places), _SMALLEST, 1.0)
    span = jnp.arcsinh(jnp.arctan2(jnp.abs(c), height) / finest)
    sine_end, cosine_end = height / s, jnp.abs(c) / s

    def integrand(node):
        growth = jnp.exp(span * node)
        half = 0.25 * finest * (growth - 1.0 / growth)
        sine, cosine = jnp.sin(half), jnp.cos(half)
        # The sine and cosine of ψ, and cos(end) − cos ψ.
        sine_psi = sine_end * (1.0 - 2.0 * sine * sine) + cosine_end * 2.0 * sine * cosine
        fall = 2.0 * sine * (cosine_end * sine + sine_end * cosine)
        masses = jnp.zeros_like(half)
        for weight_f, x in zip(f.weights, h, strict=True):
            for weight_g, y in zip(g.weights, k, strict=True):
                exponent = 0.5 * ((x - sign * y) / sine_psi) ** 2 + sign * x * y / (1.0 + cosine_end - fall)
                masses = masses + weight_f * weight_g * jnp.expm1(-exponent)
        return (growth + 1.0 / growth) * fall * masses

    nodes, weights = (x.astype(c.dtype).reshape(-1, _STEP) for x in _unit_rule(_NODES[c.dtype]))

    def add(total, rule):
        return total + sum(rule[1][i] * integrand(rule[0][i]) for i in range(_STEP)), None

    # A loop, so that no axis of nodes is stored for all pairs of examples.
    total = jax.lax.scan(add, jnp.zeros_like(c), (nodes, weights))[0]
    return value + s * span * finest * total * (0.25 / math.pi)


def _unit_rule(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _first(f: Kinks, variance):
    """E f(u), E f'(u), and the kinks' places in units of √variance."""
    root = jnp.sqrt(variance)
    places = [t / root for t in f.places]
    mean = f.constant + f.balance * _DENSITY * root
    slope = f.slope + 0.5 * f.balance
    for t, weight, h in zip(f.places, f.weights, places, strict=True):
        tail = 0.5 * jax.scipy.special.erfc(h * math.sqrt(0.5))
        mean = mean + weight * (root * _DENSITY * jnp.expm1(-0.5 * h * h) - t * tail)
        slope = slope - 0.5 * weight * jax.scipy.special.erf(h * math.sqrt(0.5))
    return mean, slope, places
