"""Moments E[f(u) g(v)] of closed-form terms f, g under a centred bivariate Gaussian.

Everything follows from Stein's identity E[u F(u, v)] = a E[∂F/∂u] + c E[∂F/∂v] and three facts: weighting by a
Gaussian gives another Gaussian; E[sign U sign V] = (2/π) arcsin(corr(U, V)), which for U = u + noise is Williams,
"Computing with infinite networks" (1997), eq. (11), and without noise Cho & Saul, "Kernel methods for deep
learning" (2009), eq. (3); and E exp(ℓ) = exp(½ Var ℓ) for complex linear ℓ.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ._gaussian import clamp, determinant, geometric_mean, guarded_sqrt, over_sqrt, tilt
from ._piecewise_linear import piecewise_linear, piecewise_linear_dual
from ._saturating import kinks, saturating_dual
from ._terms import SIGN, Span, Term
from ._truncated import power_moments, truncated_moments, weighted_sum

_DELTA = 2.0 / math.sqrt(2.0 * math.pi)


def is_closed(f: Span | None, g: Span | None) -> bool:
    """Whether E[f(u) g(v)] is a finite formula in a, b, c."""
    return f is not None and g is not None and all(_is_closed_pair(s, t) for s in f.terms for t in g.terms)


def _is_closed_pair(f: Term, g: Term) -> bool:
    if f.threshold is not None or g.threshold is not None:
        return f.is_piecewise_polynomial and g.is_piecewise_polynomial
    return not ((f.step is not None and g.oscillates_or_grows) or (g.step is not None and f.oscillates_or_grows))


def closed_dual(f: Span, g: Span, a, b, c):
    """E[f(u) g(v)] for variances a, b > 0 and covariance c; |c| may exceed √(ab) by rounding."""
    short_f, short_g = piecewise_linear(f), piecewise_linear(g)
    if short_f is not None and short_g is not None:
        return piecewise_linear_dual(short_f, short_g, a, b, c)
    s = geometric_mean(a, b)
    c = clamp(c, -s, s)
    if any(term.threshold is not None for term in (*f.terms, *g.terms)):
        return _piecewise_polynomial_dual(_pieces(f), _pieces(g), a, b, c)
    total = jnp.zeros_like(c)
    for s_term in f.terms:
        for t_term in g.terms:
            total = total + s_term.coefficient * t_term.coefficient * _pair(s_term, t_term, a, b, c)
    return total


def _pair(f: Term, g: Term, a, b, c):
    state = (a, b, c, determinant(a, b, c))
    normaliser = 1.0
    if f.gaussian or g.gaussian:
        *state, normaliser = tilt(2.0 * f.gaussian, 2.0 * g.gaussian, *state)
        normaliser = jnp.sqrt(normaliser)
    if f.oscillates_or_grows or g.oscillates_or_grows:
        return _exponential_pair(f, g, *state) / normaliser
    if f.step == SIGN and g.step == SIGN and not (f.gaussian or g.gaussian):
        return sign_moment(f.power, g.power, a, b, c)
    return step_moment(f.power, g.power, f.step, g.step, tuple(state)) / normaliser


def step_moment(j: int, k: int, s: float | None, t: float | None, state):
    """E[u^j v^k S(u) T(v)] with S, T error functions of noise variance s, t (None: absent, 0: sign)."""
    a, b, c, d = state
    if (j + k + (s is not None) + (t is not None)) % 2:
        return jnp.zeros_like(a)
    if j == 0 and k == 0:
        if s is None or t is None:
            return jnp.ones_like(a)
        return (2.0 / math.pi) * jnp.arctan2(c, guarded_sqrt(d + a * t + b * s + s * t))
    if j == 0:
        return step_moment(k, j, t, s, (b, a, c, d))
    total = jnp.zeros_like(a)
    if j >= 2:
        total = total + (j - 1) * a * step_moment(j - 2, k, s, t, state)
    if k >= 1:
        total = total + k * c * step_moment(j - 1, k - 1, s, t, state)
    if s is not None:
        total = total + _DELTA * over_sqrt(a, a + s) * step_moment(j - 1, k, None, t, _pinned(s, state))
    if t is not None:
        b1, a1, c1, d1 = _pinned(t, (b, a, c, d))
        total = total + _DELTA * over_sqrt(c, b + t) * step_moment(j - 1, k, s, None, (a1, b1, c1, d1))
    return total


def _pinned(noise: float, state):
    """The covariance given u + noise = 0."""
    a, b, c, d = state
    total = a + noise
    safe = jnp.where(total <= 0, 1.0, total)
    return a * noise / safe, (d + b * noise) / safe, c * noise / safe, d * noise / safe


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def sign_moment(j: int, k: int, a, b, c):
    """E[u^j sign(u) v^k sign(v)]: arc-cosine kernels, with exact derivatives at equal and opposite inputs."""
    s = geometric_mean(a, b)
    rho, gap = c / s, jnp.maximum(((s - c) / s) * ((s + c) / s), 0.0)
    one = jnp.ones_like(rho)
    return jnp.sqrt(a) ** j * jnp.sqrt(b) ** k * step_moment(j, k, SIGN, SIGN, (one, one, rho, gap))


@sign_moment.defjvp
def _sign_moment_jvp(j, k, primals, tangents):
    a, b, c = primals
    da, db, dc = tangents
    value = sign_moment(j, k, a, b, c)
    by_c = _sign_moment_slope(j, k, a, b, c)
    # Euler's relation for a function homogeneous in (u, v) gives the variances' derivatives from that of c.
    by_a = (j * value - c * by_c) / (2.0 * a)
    by_b = (k * value - c * by_c) / (2.0 * b)
    return value, by_a * da + by_b * db + by_c * dc


def _sign_moment_slope(j: int, k: int, a, b, c):
    """Price's theorem: ∂/∂c E[f(u) g(v)] = E[f'(u) g'(v)], with a point mass for the derivative of sign."""
    if (j + k) % 2:
        return jnp.zeros_like(c)
    if j and k:
        return j * k * sign_moment(j - 1, k - 1, a, b, c)
    d = determinant(a, b, c)
    if j == 0 and k == 0:
        return (2.0 / math.pi) * over_sqrt(jnp.ones_like(d), d)
    pinned, power = (a, k - 1) if j == 0 else (b, j - 1)
    moment = step_moment(power, 0, SIGN, None, (d / pinned, d / pinned, d / pinned, jnp.zeros_like(d)))
    return (power + 1) * _DELTA * moment / jnp.sqrt(pinned)


def _exponential_pair(f: Term, g: Term, a, b, c, d):
    del d
    moment = functools.partial(_exponential_moment, f.power, g.power, (f.rate, g.rate))
    w, x = f.frequency, g.frequency
    covariance = (a, b, c)
    if f.power == g.power == 0 and w and x and not (f.rate or g.rate):
        return _trigonometric_pair(f, g, a, b, c)
    if not w or not x:
        return moment((w, x), f.sine or g.sine, covariance)
    difference = moment((w, -x), f.sine != g.sine, covariance)
    total = moment((w, x), f.sine != g.sine, covariance)
    if f.sine and g.sine:
        return 0.5 * (difference - total)
    return 0.5 * (total - difference) if g.sine else 0.5 * (total + difference)


def _trigonometric_pair(f: Term, g: Term, a, b, c):
    """E[sin wu sin xv] = e^{−½(w²a + x²b)} sinh(wxc), and cosh for cosines, without cancellation or overflow."""
    if f.sine != g.sine:
        return jnp.zeros_like(c)
    product = f.frequency * g.frequency
    s = geometric_mean(a, b)
    apart = -0.5 * (f.frequency * jnp.sqrt(a) - g.frequency * jnp.sqrt(b)) ** 2
    difference, total = jnp.exp(apart - product * (s - c)), jnp.exp(apart - product * (s + c))
    if not f.sine:
        return 0.5 * (difference + total)
    positive = c > 0
    y = 2.0 * product * c
    down, up = jnp.where(positive, -y, 0.0), jnp.where(positive, 0.0, y)
    return 0.5 * jnp.where(positive, -difference * jnp.expm1(down), total * jnp.expm1(up))


def _exponential_moment(j: int, k: int, rates, frequencies, sine: bool, covariance):
    """E[u^j v^k exp(ℓ) (cos or sin)(m)] with ℓ, m linear in (u, v) with the given rates and frequencies."""
    a, b, c = covariance
    (p, q), (w, x) = rates, frequencies
    if j == 0 and k == 0:
        size = 0.5 * ((p * p - w * w) * a + (q * q - x * x) * b) + (p * q - w * x) * c
        phase = p * w * a + q * x * b + (p * x + q * w) * c
        return jnp.exp(size) * (jnp.sin(phase) if sine else jnp.cos(phase))
    if j == 0:
        return _exponential_moment(k, j, (q, p), (x, w), sine, (b, a, c))
    moment = functools.partial(_exponential_moment, rates=rates, frequencies=frequencies, covariance=covariance)
    total = jnp.zeros_like(a)
    if p or q:
        total = total + (a * p + c * q) * moment(j - 1, k, sine=sine)
    if w or x:
        turn = (a * w + c * x) * moment(j - 1, k, sine=not sine)
        total = total + turn if sine else total - turn
    if j >= 2:
        total = total + (j - 1) * a * moment(j - 2, k, sine=sine)
    if k >= 1:
        total = total + k * c * moment(j - 1, k - 1, sine=sine)
    return total


def _pieces(span: Span) -> dict:
    """Coefficients by power, for each (threshold, orientation); None is the polynomial part."""
    pieces: dict = {}

    def add(place, power, coefficient):
        powers = pieces.setdefault(place, {})
        powers[power] = powers.get(power, 0.0) + coefficient

    for term in span.terms:
        if term.threshold is not None:
            add((term.threshold, -1.0 if term.mirrored else 1.0), term.power, term.coefficient)
        elif term.step is not None:  # sign(u) u^j = 2 u₊^j − u^j
            add((0.0, 1.0), term.power, 2.0 * term.coefficient)
            add(None, term.power, -term.coefficient)
        else:
            add(None, term.power, term.coefficient)
    return pieces


def _piecewise_polynomial_dual(f: dict, g: dict, a, b, c):
    kinks_f, kinks_g = kinks(f), kinks(g)
    if kinks_f is None or kinks_g is None or not (kinks_f.is_bounded or kinks_g.is_bounded):
        return _piecewise_dual(f, g, a, b, c)

    @jax.custom_jvp
    def value(a, b, c):
        return saturating_dual(kinks_f, kinks_g, a, b, c)

    @value.defjvp
    def _(primals, tangents):
        return value(*primals), jax.jvp(functools.partial(_piecewise_dual, f, g), primals, tangents)[1]

    return value(a, b, c)


def _piecewise_dual(f: dict, g: dict, a, b, c):
    """E[f(u) g(v)] of piecewise polynomials with kinks anywhere; one table of moments per pair of pieces."""
    state = (a, b, c, determinant(a, b, c))
    total = jnp.zeros_like(c)
    for f_place, f_powers in f.items():
        for g_place, g_powers in g.items():
            orders = range(max(f_powers) + 1), range(max(g_powers) + 1)
            weights = [[f_powers.get(j, 0.0) * g_powers.get(k, 0.0) for k in orders[1]] for j in orders[0]]
            total = total + weighted_sum(
                weights, _piece_moments(f_place, g_place, len(weights), len(weights[0]), state)
            )
    return total


def _piece_moments(f_place, g_place, rows: int, columns: int, state):
    a, b, c, d = state
    if f_place is None and g_place is None:
        return [[step_moment(j, k, None, None, state) for k in range(columns)] for j in range(rows)]
    if g_place is None:
        table = _piece_moments(None, f_place, columns, rows, (b, a, c, d))
        return list(zip(*table, strict=True))
    # A mirrored piece is an unmirrored one of −v.
    threshold, sign = g_place
    if f_place is None:
        return power_moments(rows - 1, columns - 1, -sign * threshold, a, b, sign * c, d)
    other, other_sign = f_place
    mean_x, mean_y = (jnp.full_like(c, -s * t) for s, t in ((other_sign, other), (sign, threshold)))
    centred = threshold == other == 0.0
    return truncated_moments(centred, (rows, columns), mean_x, mean_y, a, b, sign * other_sign * c, d)
