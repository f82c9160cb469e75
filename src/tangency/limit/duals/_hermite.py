"""Gaussian integrals of one variable, the Hermite coefficients of a function, and the series they make.

ψ_k = He_k/√k! are the orthonormal Hermite polynomials. With h_k(a) = E[f(√a z) ψ_k(z)], Mehler's formula gives
E[f(u) g(v)] = Σ_k h_k^f(a) h_k^g(b) ρ^k (O'Donnell, "Analysis of Boolean Functions" (2014), proposition 11.37).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

REACH = 12.5
"""|z| beyond which e^(−z²/4), which bounds the integrand up to the growth of f, is below 1e-16."""

CHUNK = 16
_POINTS = 16
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(_POINTS)
# Activations vary at |u| = O(1), so in z at 1/√a: panels in proportion to |z| serve every variance up to 1e5.
_GRADED = tuple(sign * 1.5**-k for k in range(16) for sign in (1.0, -1.0))
_AROUND_BREAKS = (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, -4.0)


def panel_count(order: int) -> int:
    """Uniform panels in z that resolve ψ_k up to `order`, whose local frequency is √k."""
    return max(20, 2 * math.ceil(REACH * math.sqrt(order) / 16.0))


def quadrature(scale, breakpoints: tuple[float, ...], order: int, refine: int = 1):
    """Composite Gauss–Legendre nodes z and weights on [−12.5, 12.5], split where u = scale · z breaks.

    `scale` is √a > 0. `refine` divides every panel. The weights are plain: no Gaussian density in them. Unless
    the function breaks away from 0, nodes are constants, so that they are shared by all examples under `vmap`.
    """
    dtype = scale.dtype
    edges = np.union1d(np.linspace(-REACH, REACH, panel_count(order) + 1), _GRADED)
    splits = sorted({t + x for t in breakpoints if t for x in _AROUND_BREAKS})
    if splits:
        moving = jnp.asarray(splits, dtype) / jax.lax.stop_gradient(scale)
        edges = jnp.sort(jnp.clip(jnp.concatenate([jnp.asarray(edges, dtype), moving]), -REACH, REACH))
    left, width = edges[:-1, None], (edges[1:] - edges[:-1])[:, None] / refine
    left = (left + width * np.arange(refine, dtype=dtype)[None]).reshape(-1, 1)
    width = width.repeat(refine, axis=0)
    nodes = left + width * (0.5 * (_GAUSS_NODES + 1.0)).astype(dtype)[None]
    weights = width * (0.5 * _GAUSS_WEIGHTS).astype(dtype)[None]
    return jnp.asarray(nodes.ravel(), dtype), jnp.asarray(weights.ravel(), dtype)


def hermite_coefficients(values, nodes, weights, order: int, *, shared_nodes: bool):
    """∫ values(z) ψ_k(z) φ(z) dz for k < order: `values` [parts, nodes] gives [parts, order].

    The recurrence carries ψ_k(z) e^(−z²/4), which stays below 1.1 for every k and z, in any precision. Nodes that
    are shared by all examples make one table for all and leave a matrix product per block of k.
    """
    dtype = nodes.dtype
    envelope = jnp.exp(-0.25 * nodes * nodes)
    weighted = values * (weights * envelope * (1.0 / math.sqrt(2.0 * math.pi)))[None]
    block = min(64 if shared_nodes else 4, order)
    k = np.arange(order + -order % block, dtype=np.float64).reshape(-1, block)
    steps = jnp.asarray(np.stack([1.0 / np.sqrt(k + 1.0), np.sqrt(k / (k + 1.0))], axis=-1), dtype)

    def raise_degree(carry, factors):
        previous, current = carry
        following = nodes * current * factors[0] - previous * factors[1]
        return (current, following), current

    def integrate_block(carry, factors):
        carry, polynomials = jax.lax.scan(raise_degree, carry, factors)
        return carry, jnp.matmul(weighted, polynomials.T, precision=jax.lax.Precision.HIGHEST)

    _, coefficients = jax.lax.scan(integrate_block, (jnp.zeros_like(envelope), envelope), steps)
    return jnp.moveaxis(coefficients, 0, 1).reshape(len(values), -1)[:, :order]


def shifted(coefficients, shift: int, scale, order: int):
    """Hermite coefficients [parts, order] of the `shift`-th derivative of f from those of f, at u = scale · z."""
    k = np.arange(order, dtype=np.float64)
    factor = np.ones(order)
    for i in range(1, shift + 1):
        factor = factor * np.sqrt(k + i)
    return coefficients[:, shift : shift + order] * jnp.asarray(factor, coefficients.dtype)[None] / scale**shift


def power_series(pairs, rho):
    """Σ_k (Σ_i x_ik y_ik) ρ^k for pairs (x_i, y_i) of coefficient vectors of one length, by Horner's rule.

    Runs in chunks of 16 unrolled terms, so that under two `vmap`s the compiler fuses a chunk into one pass over
    the entries; each term is an array of its own, contiguous along the examples.
    """
    padding = -pairs[0][0].shape[-1] % CHUNK

    def terms(x):
        padded = jnp.pad(x, (0, padding))
        return tuple(padded[k::CHUNK] for k in range(CHUNK))

    def step(total, rows):
        for k in reversed(range(CHUNK)):
            total = total * rho
            for x, y in rows:
                total = total + x[k] * y[k]
        return total, None

    chunks = [(terms(x), terms(y)) for x, y in pairs]
    return jax.lax.scan(step, jnp.zeros_like(rho), chunks, reverse=True)[0]
