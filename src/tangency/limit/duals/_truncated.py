"""Moments of a bivariate normal truncated to a quadrant: E[x₊^m y₊^n].

Stein's identity raises the powers; the boundary of the quadrant contributes one-dimensional truncated moments; the
start is the quadrant's probability, from Owen's T function (Owen, "Tables for computing bivariate normal
probabilities", 1956, eqs. 2.1, 2.4), which unlike an integral over the correlation is smooth up to ρ = ±1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc

from ._gaussian import clamp, guarded_sqrt, over_sqrt

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_UNIT_NODES, _UNIT_WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS
_FAR = 40.0


def normal_cdf(x):
    """Φ(x), accurate in the lower tail."""
    return 0.5 * erfc(-x * math.sqrt(0.5))


def normal_pdf(x):
    """φ(x)."""
    return jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


def _owen_t(h, slope_numerator, slope_denominator):
    """T(h, α) for h ≥ 0 and α = numerator / denominator with denominator ≥ 0; α = 0/0 counts as 0."""
    size = jnp.abs(slope_numerator)
    steep = size > slope_denominator
    bottom = jnp.where(steep, size, slope_denominator)
    alpha = jnp.where(steep, slope_denominator, size) / jnp.where(bottom > 0, bottom, 1.0)
    # For α > 1, T(h, α) follows from T(αh, 1/α); αh may be infinite, where everything has vanished.
    far = h * size / jnp.where(steep & (slope_denominator > 0), slope_denominator, 1.0)
    far = jnp.where(slope_denominator > 0, jnp.minimum(far, _FAR), jnp.where(h > 0, _FAR, 0.0))
    start = jnp.where(steep, far, h)
    y = 1.0 + (alpha * jnp.asarray(_UNIT_NODES, start.dtype)) ** 2
    # A sum, not a dot product: under `vmap` it fuses with the exponentials and nothing is stored.
    integral = jnp.sum(jnp.asarray(_UNIT_WEIGHTS, start.dtype) * jnp.exp(-0.5 * start * start * y) / y)
    direct = integral * alpha * (1.0 / (2.0 * math.pi))
    above, beyond = normal_cdf(-h), normal_cdf(-far)
    reflected = 0.5 * (above + beyond) - above * beyond - direct
    return jnp.sign(slope_numerator) * jnp.where(steep, reflected, direct)


def _offset(h, k, rho, q):
    """k − ρh without cancellation near ρ = ±1, q = √(1 − ρ²)."""
    near = q * q / (1.0 + jnp.abs(rho))
    return jnp.where(rho >= 0, (k - h) + near * h, (k + h) - near * h)


@jax.custom_jvp
def quadrant_probability(h, k, rho, q):
    """P(X > h, Y > k) for standard normals with correlation ρ; q must be √(1 − ρ²), known to full accuracy.

    Derivatives are those with q following ρ; the infinite one at ρ = ±1, h = ±k is returned as 0.
    """
    u, v = -h, -k
    # Owen's formula is read off at (|u|, |v|), where the sign of α carries that of u.
    t_u = jnp.where(u < 0, -1.0, 1.0) * _owen_t(jnp.abs(u), _offset(u, v, rho, q), jnp.abs(u) * q)
    t_v = jnp.where(v < 0, -1.0, 1.0) * _owen_t(jnp.abs(v), _offset(v, u, rho, q), jnp.abs(v) * q)
    opposite = (u < 0) != (v < 0)
    value = 0.5 * (normal_cdf(u) + normal_cdf(v)) - t_u - t_v - jnp.where(opposite, 0.5, 0.0)
    return jnp.clip(value, 0.0, 1.0)


@quadrant_probability.defjvp
def _quadrant_probability_jvp(primals, tangents):
    h, k, rho, q = primals
    dh, dk, drho, _ = tangents
    by_h = -normal_pdf(h) * normal_cdf(-_standardised(_offset(h, k, rho, q), q))
    by_k = -normal_pdf(k) * normal_cdf(-_standardised(_offset(k, h, rho, q), q))
    flat = q <= 0
    density = normal_pdf(h) * normal_pdf(_standardised(_offset(h, k, rho, q), q)) / jnp.where(flat, 1.0, q)
    by_rho = jnp.where(flat, 0.0, density)
    return quadrant_probability(h, k, rho, q), by_h * dh + by_k * dk + by_rho * drho


def _standardised(mean, deviation):
    """mean / deviation, ±40 standard deviations where the deviation is 0, and 0 for 0/0."""
    flat = deviation <= 0
    ratio = jnp.where(flat, 0.0, mean) / jnp.where(flat, 1.0, deviation)
    return jnp.clip(jnp.where(flat, _FAR * jnp.sign(jax.lax.stop_gradient(mean)), ratio), -_FAR, _FAR)


def one_sided_moments(order: int, mean, variance):
    """[E[y₊^n] for n = 0 … order], y ~ N(mean, variance); n = 0 is P(y > 0)."""
    deviation = guarded_sqrt(variance)
    ratio = _standardised(mean, deviation)
    moments = [normal_cdf(ratio)]
    if order >= 1:
        moments.append(mean * moments[0] + deviation * normal_pdf(ratio))
    for n in range(1, order):
        moments.append(mean * moments[n] + n * variance * moments[n - 1])
    return moments


def _central_moments(order: int, mean, variance):
    moments = [jnp.ones_like(variance), mean * jnp.ones_like(variance)]
    for n in range(1, order):
        moments.append(mean * moments[n] + n * variance * moments[n - 1])
    return moments[: order + 1]


def _boundary(mean_x, mean_y, a, b, c, d):
    """The density of x at 0, and the mean and variance of y given x = 0."""
    del b
    density = jnp.exp(-0.5 * mean_x * mean_x / a) / jnp.sqrt(2.0 * math.pi * a)
    # Exactly zero for equal inputs, whichever way the compiler contracts the products.
    mean = (mean_y - mean_x) + (a - c) / a * mean_x
    return density, mean, d / a


def _raise_powers(order_x: int, order_y: int, start, boundary_x, boundary_y, mean_x, mean_y, a, b, c):
    """Fill the table E[x^m y^n] on a domain by Stein's identity from its first entry and its boundary terms."""
    table = [[start] + [start] * order_y for _ in range(order_x + 1)]
    for n in range(order_y):
        table[0][n + 1] = mean_y * table[0][n] + c * boundary_x[n]
        table[0][n + 1] += b * (n * table[0][n - 1] if n else boundary_y[0])
    for m in range(order_x):
        for n in range(order_y + 1):
            value = mean_x * table[m][n] + a * (m * table[m - 1][n] if m else boundary_x[n])
            table[m + 1][n] = value + c * (n * table[m][n - 1] if n else boundary_y[m])
    return tuple(map(tuple, table))


def _table(centred: bool, shape, mean_x, mean_y, a, b, c, d):
    """E[x₊^m y₊^n] for all m, n; E[δ(x) y₊^n]; E[δ(y) x₊^m]; and the joint density at the corner (0, 0)."""
    order_x, order_y = shape[0] - 1, shape[1] - 1
    if centred:
        start = 0.25 + jnp.arctan2(c, guarded_sqrt(d)) / (2.0 * math.pi)
    else:
        root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
        rho = clamp(c / (root_a * root_b), -1.0, 1.0)
        start = quadrant_probability(-mean_x / root_a, -mean_y / root_b, rho, guarded_sqrt(d) / (root_a * root_b))
    density_x, mean, variance = _boundary(mean_x, mean_y, a, b, c, d)
    boundary_x = [density_x * moment for moment in one_sided_moments(order_y, mean, variance)]
    deviation = guarded_sqrt(variance)
    corner = density_x * over_sqrt(normal_pdf(_standardised(mean, deviation)), variance)
    density_y, mean, variance = _boundary(mean_y, mean_x, b, a, c, d)
    boundary_y = [density_y * moment for moment in one_sided_moments(order_x, mean, variance)]
    table = _raise_powers(order_x, order_y, start, boundary_x, boundary_y, mean_x, mean_y, a, b, c)
    return table, boundary_x, boundary_y, corner


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def truncated_moments(centred: bool, shape: tuple[int, int], mean_x, mean_y, a, b, c, d):
    """Rows of E[x₊^m y₊^n] for m < shape[0], n < shape[1], (x, y) normal as given; d must be ab − c².

    `centred` states that both means are 0, and takes the arcsine formula in place of Owen's T. Derivatives are
    those of Price's theorem, with d following a, b, c; the one that is infinite, of jumps at d = 0, comes out as 0.
    """
    return _table(centred, shape, mean_x, mean_y, a, b, c, d)[0]


@truncated_moments.defjvp
def _truncated_moments_jvp(centred, shape, primals, tangents):
    mean_x, mean_y, a, b, c, _ = primals
    dmean_x, dmean_y, da, db, dc, _ = tangents
    table, edge_x, edge_y, corner = _table(centred, shape, *primals)

    def by_x(m, n):
        return m * table[m - 1][n] if m else edge_x[n]

    def by_y(m, n):
        return n * table[m][n - 1] if n else edge_y[m]

    def by_xy(m, n):
        if m and n:
            return m * n * table[m - 1][n - 1]
        return (n * edge_x[n - 1] if n else corner) if not m else m * edge_y[m - 1]

    def by_xx(m, n):
        # The derivative of the point mass at x = 0 falls on the density and on what y does given x.
        return m * by_x(m - 1, n) if m else -(mean_x * edge_x[n] + c * by_xy(0, n)) / a

    def by_yy(m, n):
        return n * by_y(m, n - 1) if n else -(mean_y * edge_y[m] + c * by_xy(m, 0)) / b

    def tangent(m, n):
        by_covariance = by_xy(m, n) * dc + 0.5 * (by_xx(m, n) * da + by_yy(m, n) * db)
        return by_covariance if centred else by_covariance + by_x(m, n) * dmean_x + by_y(m, n) * dmean_y

    return table, tuple(tuple(tangent(m, n) for n in range(shape[1])) for m in range(shape[0]))


def weighted_sum(weights, table):
    """Σ_mn weights[m][n] table[m][n]; weights that are the Python number 0 cost nothing."""
    terms = [
        w * x
        for row, moments in zip(weights, table, strict=True)
        for w, x in zip(row, moments, strict=True)
        if not (isinstance(w, float) and w == 0.0)
    ]
    return sum(terms, jnp.zeros_like(table[0][0]))


def power_moments(order_x: int, order_y: int, mean_y, a, b, c, d):
    """table[m][n] = E[x^m y₊^n] for x centred and y of mean `mean_y`."""
    density, mean, variance = _boundary(mean_y, 0.0, b, a, c, d)
    boundary_y = [density * moment for moment in _central_moments(order_x, mean, variance)]
    one_sided = one_sided_moments(order_y, mean_y + jnp.zeros_like(b), b)
    nothing = [jnp.zeros_like(b)] * (order_y + 1)
    table = _raise_powers(order_x, order_y, one_sided[0], nothing, boundary_y, 0.0, mean_y, a, b, c)
    return table
