"""E[f(u)], E[f(u) g(u)] and E[f(u) g(v)]: scalar functions for `vmap`, `jit` and `grad`."""

import jax
import jax.numpy as jnp

from ...errors import InputError
from ...types import Array
from ._closed import closed_dual, is_closed
from ._mixture import SMALLEST, mixture_dual
from ._numerical import numerical_dual, numerical_mean, product
from ._terms import Span, Term
from .activation import Activation

DEFAULT_ORDER = 256
LARGEST_ORDER = 16384
MIXTURE_ORDER = LARGEST_ORDER + 1
"""Asks for sums of Gaussian windows in place of the series, for every pair of functions that has them."""

_SMALL_IN_SINGLE_PRECISION = 0.03
_ONE = Span((Term(1.0),))


def mean(f: Activation, a: Array, params: tuple = ()) -> Array:
    """E[f(u)], u ~ N(0, a). Scalars in, a scalar out; at a = 0 the function's own value at 0."""
    a, params = _numbers("mean", a, _checked(f, params))
    if _is_half(a):
        return mean(f, _single(a), _single(params)).astype(a.dtype)
    zero = a <= 0
    safe = jnp.where(zero, 1.0, a)
    if f.span is not None:
        value = closed_dual(f.span, _ONE, safe, jnp.ones_like(safe), jnp.zeros_like(safe))
    else:
        value = numerical_mean(f.numerical, safe, params)
    return jnp.where(zero, _at_zero(f, a, params), value)


def product_mean(f: Activation, g: Activation, a: Array, f_params: tuple = (), g_params: tuple = ()) -> Array:
    """E[f(u) g(u)], u ~ N(0, a): the diagonal of the dual, by formula or direct quadrature, never by a series."""
    (a, f_params), g_params = _numbers("product_mean", a, _checked(f, f_params)), _checked(g, g_params)
    g_params = tuple(jnp.asarray(p, a.dtype) for p in g_params)
    if _is_half(a):
        return product_mean(f, g, _single(a), _single(f_params), _single(g_params)).astype(a.dtype)
    zero = a <= 0
    safe = jnp.where(zero, 1.0, a)
    if f.span is not None and g.span is not None and is_closed(f.span, g.span):
        value = closed_dual(f.span, g.span, safe, safe, safe)
    else:
        both = product(f.numerical, g.numerical, f.parameters)
        value = numerical_mean(both, safe, (*f_params, *g_params))
    return jnp.where(zero, _at_zero(f, a, f_params) * _at_zero(g, a, g_params), value)


def dual(
    f: Activation,
    g: Activation,
    a: Array,
    b: Array,
    c: Array,
    f_params: tuple = (),
    g_params: tuple = (),
    *,
    order: int | None = None,
) -> Array:
    """E[f(u) g(v)] for (u, v) centred jointly Gaussian, Var u = a, Var v = b, Cov(u, v) = c.

    Scalars in, a scalar out; lift with `vmap`. Closed form wherever f and g have one; otherwise `order` terms of the
    Hermite series (256 if None; `required_order` says how many are needed), or from 16385 on, sums of Gaussian windows
    if f and g have them (a cost that does not grow with the variance) and else 16384 terms. Where a = 0 the result is
    f(0) E[g(v)], with f's own value at 0, and likewise for b. Rounding may take |c| a little beyond √(ab). Derivatives
    are those of Price's theorem, ∂/∂c = E[f'(u) g'(v)]; an infinite one (jumps of f and g at c = ±√(ab)) comes out
    finite.
    """
    dtype = _float_type("dual", a, b, c)
    a, b, c = (jnp.asarray(x, dtype) for x in (a, b, c))
    f_params = tuple(jnp.asarray(p, dtype) for p in _checked(f, f_params))
    g_params = tuple(jnp.asarray(p, dtype) for p in _checked(g, g_params))
    if _is_half(a):
        a, b, c = _single((a, b, c))
        return dual(f, g, a, b, c, _single(f_params), _single(g_params), order=order).astype(dtype)
    no_a, no_b = a <= 0, b <= 0
    # Where one variance is 0 the result is f(0) E[g(v)]; with f(0) = g(0) = 0 that needs no further formula.
    vanish = f.zero_value == 0.0 and g.zero_value == 0.0
    safe = jnp.where(no_a, 1.0, a), jnp.where(no_b, 1.0, b), jnp.where(no_a | no_b, 0.0, c)
    if f.span is not None and g.span is not None and is_closed(f.span, g.span):
        value = closed_dual(f.span, g.span, *safe)
    else:
        value = _without_closed_form(f, g, *safe, f_params, g_params, order)
    if vanish:
        return jnp.where(no_a | no_b, 0.0, value)
    at_no_a = _at_zero(f, a, f_params) * mean(g, b, g_params)
    at_no_b = mean(f, a, f_params) * _at_zero(g, b, g_params)
    return jnp.where(no_a, at_no_a, jnp.where(no_b, at_no_b, value))


def _without_closed_form(f: Activation, g: Activation, a, b, c, f_params, g_params, order: int | None):
    def series(order):
        return numerical_dual(f.numerical, g.numerical, a, b, c, f_params, g_params, order)

    terms = series_order(f, g, order)
    if terms <= LARGEST_ORDER:
        return series(terms)
    if f.mixture is None or g.mixture is None:
        return series(LARGEST_ORDER)
    # Where both variances are small, windows that cancel lose what a short series keeps.
    small = SMALLEST if a.dtype == jnp.float64 else _SMALL_IN_SINGLE_PRECISION
    windows = mixture_dual(f.mixture, g.mixture, a, b, c)
    return jnp.where(jnp.maximum(a, b) < small, series(DEFAULT_ORDER), windows)


def series_order(f: Activation, g: Activation, order: int | None) -> int:
    """The number of terms to sum: a polynomial's series ends by itself."""
    degrees = [x.span.degree for x in (f, g) if x.span is not None and x.span.degree is not None]
    if degrees:
        return min(degrees) + 1
    if order is None:
        return DEFAULT_ORDER
    if order < 1:
        raise InputError(f"dual: order must be at least 1, got {order}. Use required_order to find one.")
    return order


def _float_type(name: str, *numbers):
    if any(jnp.ndim(x) for x in numbers):
        shapes = ", ".join(str(jnp.shape(x)) for x in numbers)
        raise InputError(
            f"{name}: variances and covariance must be scalars, got shapes {shapes}; lift it with jax.vmap."
        )
    dtype = jnp.result_type(*numbers)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def _numbers(name: str, a, params):
    dtype = _float_type(name, a)
    return jnp.asarray(a, dtype), tuple(jnp.asarray(p, dtype) for p in params)


def _is_half(x) -> bool:
    return jnp.finfo(x.dtype).bits < 32


def _single(numbers):
    """The numbers in float32, in which half-precision ones are worked with."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), numbers)


def _checked(f: Activation, params) -> tuple:
    if len(params) != f.parameters:
        raise InputError(
            f"Activation {f.label} takes {f.parameters} parameters, got {len(params)}: pass one value each."
        )
    return tuple(params)


def _at_zero(f: Activation, like, params):
    if f.zero_value is not None:
        return jnp.full_like(like, f.zero_value)
    return jnp.asarray(f.function(jnp.zeros_like(like), *params), like.dtype)
