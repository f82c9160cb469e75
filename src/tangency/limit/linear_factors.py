"""E[x y f(u) g(v)]: Gaussians that enter as they are, beside functions of at most two others.

Regressed on u and v, x = p₁u + p₂v + ε with ε independent of both, so that only expectations of two Gaussians are left:
E[x f g] = p₁ E[u f · g] + p₂ E[f · v g], and likewise for two such factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..graph.elementwise import IDENTITY
from ..graph.elementwise import apply as compose
from ..trace.known import MULTIPLY
from .fields import Field, add, contract, lifted

if TYPE_CHECKING:
    from .expectation import Expectations
    from .placed import Placed


def with_linear_factors(expectations: Expectations, linear: Sequence[Placed], rest: Sequence[Placed]) -> Field | None:
    """The expectation of one or two bare Gaussians times functions of one or two others."""
    covariances = [[_covariance(expectations, x, u) for u in rest] for x in linear]
    variances = [expectations.recursion.variance(*u.variable) for u in rest]
    if len(rest) == 2:
        between = _covariance(expectations, rest[0], rest[1])
        moments = [*variances, between]
        slopes = [[lifted(f, [*row, *moments]) for f in (_first_slope, _second_slope)] for row in covariances]
    else:
        slopes = [[lifted(_slope, [row[0], variances[0]])] for row in covariances]

    def expected(powers: Sequence[int]) -> Field | None:
        return expectations.of([_times_power(u, power) for u, power in zip(rest, powers, strict=True)])

    units = [[int(i == j) for j in range(len(rest))] for i in range(len(rest))]
    if len(linear) == 1:
        return add([_product(slopes[0][i], expected(units[i])) for i in range(len(rest))])
    parts = []
    for i, one in enumerate(units):
        for j, other in enumerate(units):
            powers = [a + b for a, b in zip(one, other, strict=True)]
            parts.append(_product(contract([slopes[0][i], slopes[1][j]], {}), expected(powers)))
    left = [_covariance(expectations, linear[0], linear[1])]
    left += [contract([slopes[0][i], covariances[1][i]], {}).times(-1.0) for i in range(len(rest))]
    remaining = add(left)
    assert remaining is not None
    parts.append(_product(remaining, expected([0] * len(rest))))
    return add(parts)


def of_linear_factors(expectations: Expectations, linear: Sequence[Placed]) -> Field | None:
    """E[x₁ ⋯ x_n] of Gaussians as they are: the sum over pairings (Isserlis 1918)."""
    if not linear:
        return Field(jnp.ones((), expectations.recursion.dtype))
    if len(linear) % 2:
        return None
    first, *others = linear
    pairings = []
    for i, x in enumerate(others):
        covariance = expectations.recursion.query("K", first.variable, x.variable)
        rest = of_linear_factors(expectations, [*others[:i], *others[i + 1 :]])
        pairings.append(None if covariance is None or rest is None else contract([covariance, rest], {}))
    return add(pairings)


def _product(factor: Field, value: Field | None) -> Field | None:
    return None if value is None else contract([factor, value], {})


def _covariance(expectations: Expectations, x: Placed, u: Placed) -> Field:
    return expectations.recursion.number(expectations.recursion.query("K", x.variable, u.variable))


def _times_power(u: Placed, power: int) -> Placed:
    for _ in range(power):
        u = replace(u, function=compose(MULTIPLY, (u.function, IDENTITY)))
    return u


def _slope(x_u: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.where(a > 0, x_u / jnp.where(a > 0, a, 1.0), 0.0)


def _first_slope(x_u: jax.Array, x_v: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """p₁ of the regression on u and v, from sums and differences of the standardised variables.

    These are uncorrelated; where the variables are one, up to rounding, so that a difference is no direction at all,
    it is left out.
    """
    positive = (a > 0) & (b > 0)
    s, t = (jnp.sqrt(jnp.where(v > 0, v, 1.0)) for v in (a, b))
    rho = jnp.where(positive, jnp.clip(c / (s * t), -1.0, 1.0), 0.0)
    x, y = jnp.where(a > 0, x_u / s, 0.0), jnp.where(b > 0, x_v / t, 0.0)
    tiny = 16 * jnp.finfo(rho.dtype).eps
    plus = jnp.where(1 + rho > tiny, (x + y) / jnp.maximum(1 + rho, tiny), 0.0)
    minus = jnp.where(1 - rho > tiny, (x - y) / jnp.maximum(1 - rho, tiny), 0.0)
    return jnp.where(a > 0, (plus + minus) / (2 * s), 0.0)


def _second_slope(x_u: jax.Array, x_v: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return _first_slope(x_v, x_u, b, a, c)
