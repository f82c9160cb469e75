"""Means and duals of arbitrary functions by quadrature and Hermite series, with Price's theorem as derivative rule.

Derivatives with respect to a, b, c are series in the same coefficients (∂/∂c E[fg] = E[f'g'],
∂/∂a E[fg] = ½ E[f''g]; Price, "A useful theorem for nonlinear devices having Gaussian inputs", 1958), so that no
derivative passes through quadrature nodes and jumps are counted as the point masses they are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ._gaussian import geometric_mean
from ._hermite import CHUNK, hermite_coefficients, power_series, quadrature, shifted
from ._singular import Singular, singular_dual, singular_values


@dataclasses.dataclass(frozen=True, eq=False)
class Numerical:
    """A function as quadrature sees it: `function(u, *params)`, and its singular part. Compared by identity."""

    function: Callable
    singular: Singular


@dataclasses.dataclass(frozen=True)
class Series:
    """Which series: E of the `f_shift`-th derivative of f(u) times the `g_shift`-th of g(v), to `order` terms.

    `split` subtracts the singular parts' product, which is then added exactly.
    """

    f: Numerical
    g: Numerical
    order: int
    split: bool
    f_shift: int = 0
    g_shift: int = 0


def numerical_dual(f: Numerical, g: Numerical, a, b, c, f_params, g_params, order: int):
    """E[f(u) g(v)] for a, b > 0 by `order` terms of the series, plus the exact dual of the singular parts."""
    split = bool(f.singular.breakpoints) and bool(g.singular.breakpoints)
    spec = Series(f, g, order + -order % CHUNK, split)
    return _dual(spec, a, b, c, f_params, g_params) if split else _series(spec, a, b, c, f_params, g_params)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _dual(spec: Series, a, b, c, f_params, g_params):
    jumps = _jumps(spec, f_params, g_params, a.dtype)
    exact = singular_dual(spec.f.singular, jumps[0], spec.g.singular, jumps[1], a, b, c)
    return _series(spec, a, b, c, f_params, g_params) + exact


@_dual.defjvp
def _dual_jvp(spec, primals, tangents):
    a, b, c, f_params, g_params = primals
    da, db, dc, df, dg = tangents
    jumps = _jumps(spec, f_params, g_params, a.dtype)

    def by_covariance(a, b, c):
        exact = singular_dual(spec.f.singular, jumps[0], spec.g.singular, jumps[1], a, b, c)
        return _series(spec, a, b, c, f_params, g_params) + exact

    def by_parameters(f_params, g_params):
        # One set of jumps for both summands: rounding in the derivatives of the high ones cancels between them.
        jumps = _jumps(spec, f_params, g_params, a.dtype)
        exact = singular_dual(spec.f.singular, jumps[0], spec.g.singular, jumps[1], a, b, c)
        return _raw_series(spec, a, b, c, f_params, g_params, jumps) + exact

    value, tangent = jax.jvp(by_covariance, (a, b, c), (da, db, dc))
    for slope, step in _by_parameters(lambda p: by_parameters(p, g_params), f_params, df):
        tangent = tangent + slope * step
    for slope, step in _by_parameters(lambda p: by_parameters(f_params, p), g_params, dg):
        tangent = tangent + slope * step
    return value, tangent


def _jumps(spec: Series, f_params, g_params, dtype):
    if not spec.split:
        return None, None
    pairs = (spec.f, f_params), (spec.g, g_params)
    return tuple(x.singular.resolve(x.function, params, dtype) for x, params in pairs)


def _shares_nodes(f: Numerical) -> bool:
    return not any(f.singular.breakpoints)


def coefficients(f: Numerical, a, params, order: int, shift: int, jumps=None):
    """Hermite coefficients [parts, order] of the `shift`-th derivative of f, or given the coefficients of its singular
    part, of its smooth and its singular part."""
    scale = jnp.sqrt(a)
    nodes, weights = quadrature(scale, f.singular.breakpoints, order + shift)
    u = scale * nodes
    values = f.function(u, *params)
    # Without f(0), the coefficients keep their relative accuracy as a → 0.
    origin = jnp.asarray(f.function(jnp.zeros_like(a), *params), a.dtype)
    parts = [values - origin]
    if jumps is not None:
        singular = singular_values(u, f.singular, jumps)
        parts = [parts[0] - singular, singular]
    table = hermite_coefficients(jnp.stack(parts), nodes, weights, order + shift, shared_nodes=_shares_nodes(f))
    table = table.at[0, 0].add(origin)
    return shifted(table, shift, scale, order)


def _raw_series(spec: Series, a, b, c, f_params, g_params, jumps):
    x = coefficients(spec.f, a, f_params, spec.order, spec.f_shift, jumps[0])
    y = coefficients(spec.g, b, g_params, spec.order, spec.g_shift, jumps[1])
    rho = jnp.clip(c / geometric_mean(a, b), -1.0, 1.0)
    # With r + s the smooth and the singular part: (r+s)(r'+s') − s s' = r (r'+s') + s r'.
    pairs = [(x[0], y[0] + y[1]), (x[1], y[0])] if spec.split else [(x[0], y[0])]
    return power_series(pairs, rho)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _series(spec: Series, a, b, c, f_params, g_params):
    return _raw_series(spec, a, b, c, f_params, g_params, _jumps(spec, f_params, g_params, a.dtype))


@_series.defjvp
def _series_jvp(spec, primals, tangents):
    a, b, c, f_params, g_params = primals
    da, db, dc, df, dg = tangents
    by_a = 0.5 * _series(dataclasses.replace(spec, f_shift=spec.f_shift + 2), *primals)
    by_b = 0.5 * _series(dataclasses.replace(spec, g_shift=spec.g_shift + 2), *primals)
    by_c = _series(dataclasses.replace(spec, f_shift=spec.f_shift + 1, g_shift=spec.g_shift + 1), *primals)
    tangent = by_a * da + by_b * db + by_c * dc

    def raw(f_params, g_params):
        return _raw_series(spec, a, b, c, f_params, g_params, _jumps(spec, f_params, g_params, a.dtype))

    for slope, step in _by_parameters(lambda p: raw(p, g_params), f_params, df):
        tangent = tangent + slope * step
    for slope, step in _by_parameters(lambda p: raw(f_params, p), g_params, dg):
        tangent = tangent + slope * step
    return _series(spec, *primals), tangent


def _by_parameters(value: Callable, params, tangents):
    """(∂value/∂p, dp) for every parameter, in forward mode: nothing is stored along the series."""
    for i, step in enumerate(tangents):
        unit = tuple(jnp.ones_like(p) if i == j else jnp.zeros_like(p) for j, p in enumerate(params))
        yield jax.jvp(value, (params,), (unit,))[1], step


_MEAN_ORDER = 4


def numerical_mean(f: Numerical, a, params):
    """E[f(u)] for a > 0."""
    return _mean(f, 0, a, params)


def product(f: Numerical, g: Numerical, f_parameters: int) -> Numerical:
    """u ↦ f(u) g(u), whose parameters are f's followed by g's. Only for means: its jumps are not measured."""

    def function(u, *params):
        return f.function(u, *params[:f_parameters]) * g.function(u, *params[f_parameters:])

    return Numerical(function, Singular(tuple(sorted({*f.singular.breakpoints, *g.singular.breakpoints})), None))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mean(f: Numerical, shift: int, a, params):
    """E[f^(shift)(u)]; the `shift`-th derivative is put on the density."""
    return _raw_mean(f, shift, a, params)


def _raw_mean(f: Numerical, shift: int, a, params):
    scale = jnp.sqrt(a)
    nodes, weights = quadrature(scale, f.singular.breakpoints, _MEAN_ORDER)
    origin = jnp.asarray(f.function(jnp.zeros_like(a), *params), a.dtype)
    values = f.function(scale * nodes, *params) - origin
    moment = hermite_coefficients(values[None], nodes, weights, shift + 1, shared_nodes=_shares_nodes(f))[
        0, shift
    ] * math.sqrt(math.factorial(shift))
    return moment / scale**shift + (0.0 if shift else origin)


@_mean.defjvp
def _mean_jvp(f, shift, primals, tangents):
    a, params = primals
    da, dparams = tangents
    tangent = 0.5 * _mean(f, shift + 2, a, params) * da
    for slope, step in _by_parameters(lambda p: _raw_mean(f, shift, a, p), params, dparams):
        tangent = tangent + slope * step
    return _mean(f, shift, a, params), tangent
