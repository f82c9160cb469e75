"""Guarded scalar arithmetic on the covariance [[a, c], [c, b]] of two centred Gaussians."""

import jax
import jax.numpy as jnp


def guarded_sqrt(x):
    """√x for x > 0 and 0 elsewhere, with a zero derivative at 0 in place of an infinite one. NaN stays NaN."""
    inside = x <= 0
    return jnp.where(inside, 0.0, jnp.sqrt(jnp.where(inside, 1.0, x)))


def over_sqrt(numerator, x):
    """numerator / √x, and 0 where x ≤ 0: the callers' numerators vanish there at least as fast."""
    inside = x <= 0
    return jnp.where(inside, 0.0, numerator / jnp.sqrt(jnp.where(inside, 1.0, x)))


def clamp(x, low, high):
    """x held within [low, high] where rounding took it out, with derivative 1 everywhere, ends included."""
    return x + jax.lax.stop_gradient(jnp.clip(x, low, high) - x)


def geometric_mean(a, b):
    """√(ab) for a, b > 0, which is exactly a where a = b and neither overflows nor underflows on the way."""
    large, small = jnp.maximum(a, b), jnp.minimum(a, b)
    return large * jnp.sqrt(small / large)


@jax.custom_jvp
def determinant(a, b, c):
    """ab − c², never negative, without the cancellation near c = ±√(ab); its derivative is that of ab − c²."""
    s = geometric_mean(a, b)
    return jnp.maximum((s - c) * (s + c), 0.0)


@determinant.defjvp
def _determinant_jvp(primals, tangents):
    a, b, c = primals
    da, db, dc = tangents
    return determinant(a, b, c), b * da + a * db - 2.0 * c * dc


def tilt(g, h, a, b, c, d):
    """The covariance (a, b, c, d) after weighting by exp(−½ g u² − ½ h v²), and N with E[weight] = N^(−1/2).

    Σ' = (Σ⁻¹ + diag(g, h))⁻¹, written in the determinant d = ab − c² so that no step cancels and equal
    arguments stay exactly equal.
    """
    n = 1.0 + g * a + h * b + g * h * d
    return (a + h * d) / n, (b + g * d) / n, c / n, d / n, n
