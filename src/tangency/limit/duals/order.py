"""How many terms of the Hermite series an accuracy needs, or whether another rule must serve; decided in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import AccuracyError, InputError
from ._closed import is_closed
from ._hermite import quadrature
from ._mixture import LARGEST, SMALLEST
from ._numerical import Numerical
from ._singular import singular_values
from .activation import Activation
from .evaluate import DEFAULT_ORDER, LARGEST_ORDER, MIXTURE_ORDER, series_order

TOLERANCE = 1e-9
_SMALLEST_ORDER = 64
_VARIANCES = 5
_DEAR_ORDER = 1024
"""Beyond it, coefficients and terms cost more than a sum of Gaussian windows."""

_TINY = 1e-10


def required_order(
    f: Activation, g: Activation, variances: np.ndarray, f_params: tuple = (), g_params: tuple = ()
) -> int:
    """The order at which `dual(f, g, …, order=…)` errs by at most 1e-9 √(E f² E g²); 0 in closed form.

    `variances`: any shape, every variance that u or v will take; `f_params`, `g_params`: one typical value each.
    Coefficients die out the more slowly the larger the variance (the function's singularities come closer, in units
    of √a) or, for some functions at low order, the smaller it is, so the extremes and three values between decide.
    The remainder is bounded for every correlation by the Cauchy–Schwarz inequality on the tails of the coefficients.
    Where more than 1024 terms are needed and f and g have sums of Gaussian windows, the result is 16385, which asks
    for these.

    Raises AccuracyError, with the activation, the variance and the error that can be had, if 16384 terms or the
    quadrature itself are not enough; InputError if a variance is negative or not finite.
    """
    values = np.asarray(variances, np.float64).ravel()
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError("required_order: variances must be finite and not negative; check the inputs' norms.")
    if f.span is not None and g.span is not None and is_closed(f.span, g.span):
        return 0
    values = values[values > 0]
    if values.size == 0:
        return 0
    chosen = np.unique(np.exp(np.linspace(np.log(values.min()), np.log(values.max()), _VARIANCES)))
    remainder = _Remainder(f, g, chosen, f_params, g_params)
    if series_order(f, g, _SMALLEST_ORDER) < _SMALLEST_ORDER:
        return 0
    order = _SMALLEST_ORDER
    while order <= LARGEST_ORDER:
        if remainder.beyond(order) <= TOLERANCE:
            return order
        order *= 2
        if order == 2 * _DEAR_ORDER and _windows_serve(f, g, chosen):
            return MIXTURE_ORDER
    raise remainder.refusal(LARGEST_ORDER)


def _windows_serve(f: Activation, g: Activation, variances: np.ndarray) -> bool:
    """Whether sums of Gaussian windows, or for two small variances the default series, are accurate enough."""
    if variances[0] < _TINY or variances[-1] > LARGEST * (1.0 + 1e-9) or f.mixture is None or g.mixture is None:
        return False
    small = variances[variances < SMALLEST]
    return small.size == 0 or _Remainder(f, g, small).beyond(DEFAULT_ORDER) <= TOLERANCE


class _Remainder:
    """What the series of E[f(u) g(v)] leaves out, relative to √(E f² E g²)."""

    def __init__(self, f: Activation, g: Activation, variances: np.ndarray, f_params: tuple = (), g_params: tuple = ()):
        split = bool(f.breakpoints) and bool(g.breakpoints)
        self._functions, self._variances = (f, g), variances
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            first = _Tails(f, variances, f_params, split)
            self._tails = first, first if f is g and not f.parameters else _Tails(g, variances, g_params, split)

    def beyond(self, order: int) -> float:
        """The largest error of `order` terms for any two of the variances."""
        return float(np.max(self._errors(order)))

    def _errors(self, order: int) -> np.ndarray:
        (smooth_f, rest_f), (smooth_g, rest_g) = (x.beyond(order) for x in self._tails)
        # r (r' + s') + s r' in the notation of the series, bounded for each pair of variances by its worst.
        return np.outer(smooth_f, smooth_g + rest_g) + np.outer(rest_f, smooth_g)

    def refusal(self, order: int) -> AccuracyError:
        """The error that says where `order` terms fail most."""
        errors = self._errors(order)
        i, j = np.unravel_index(np.argmax(errors), errors.shape)
        worse_f = self._tails[0].beyond(order)[0][i] >= self._tails[1].beyond(order)[0][j]
        name, variance = (x[0 if worse_f else 1] for x in (self._functions, (self._variances[i], self._variances[j])))
        return AccuracyError(
            f"Activation {name.label} at variance {variance:.4g}: {order} Hermite terms leave a relative error of "
            f"{errors[i, j]:.1e}, above {TOLERANCE:.0e}. Scale the inputs or the weight variance down."
        )


class _Tails:
    """Norms of what the Hermite series of a function leaves out, for each of several variances."""

    def __init__(self, activation: Activation, variances: np.ndarray, params, split: bool):
        numerical = activation.numerical
        self._z, self._energy = [], []
        weighted = []
        for variance in variances:
            z, w, values = _samples(numerical, variance, params, split, refine=1)
            density = w * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
            total = _square_mean(density, values)
            _check_quadrature(activation, numerical, variance, params, split, total)
            scale = 1.0 / np.sqrt(total) if total > 0 else 0.0
            weighted.append(values * scale * w * np.exp(-0.25 * z * z) / np.sqrt(2.0 * np.pi))
            self._z.append(z)
            self._energy.append(np.sum(density * (values * scale) ** 2, axis=1))
        self._nodes, self._weighted = np.stack(self._z), np.stack(weighted)
        envelope = np.exp(-0.25 * self._nodes**2)
        self._state = (np.zeros_like(envelope), envelope)
        self._squares: list[np.ndarray] = []

    def _extend(self, order: int):
        previous, current = self._state
        for k in range(len(self._squares), order):
            self._squares.append(np.einsum("vpn,vn->vp", self._weighted, current) ** 2)
            previous, current = current, (self._nodes * current - np.sqrt(k) * previous) / np.sqrt(k + 1.0)
        self._state = previous, current

    def beyond(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """√Σ_{k ≥ order} of the squared coefficients of the smooth and the singular part, relative to √E f².

        The next octave is summed and the rest extrapolated from the decay between octaves; Parseval's identity
        catches coefficients that have not begun to show.
        """
        self._extend(2 * order)
        squares = np.stack(self._squares)
        last = np.sum(squares[order : 2 * order], axis=0)
        before = np.sum(squares[order // 2 : order], axis=0)
        ratio = np.clip(last / np.maximum(before, 1e-300), 0.0, 0.9)
        tail = last / (1.0 - ratio)
        energy = np.stack(self._energy)
        missing = energy - np.sum(squares[: 2 * order], axis=0)
        hidden = missing > np.maximum(1e-12 * np.maximum(energy, 1.0), 3.0 * tail)
        tail = np.where(hidden, missing, tail)
        norms = np.sqrt(tail)
        return norms[:, 0], norms[:, 1] if norms.shape[1] > 1 else np.zeros(len(norms))


def _samples(f: Numerical, variance: float, params, split: bool, refine: int):
    scale = jnp.sqrt(jnp.asarray(variance, jnp.float64))
    z, w = quadrature(scale, f.singular.breakpoints, 2 * LARGEST_ORDER, refine)
    u = scale * z
    params = tuple(jnp.asarray(p, jnp.float64) for p in params)
    values = f.function(u, *params)
    parts = [values]
    if split:
        jumps = f.singular.resolve(f.function, params, u.dtype)
        singular = singular_values(u, f.singular, jumps)
        parts = [values - singular, singular]
    return np.asarray(z), np.asarray(w), np.stack([np.asarray(x) for x in parts])


def _square_mean(density: np.ndarray, values: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(density * np.sum(values, axis=0) ** 2))


def _check_quadrature(activation: Activation, f: Numerical, variance: float, params, split: bool, total: float):
    z, w, values = _samples(f, variance, params, split, refine=3)
    finer = _square_mean(w * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi), values)
    if not np.isfinite(total) or not np.isfinite(finer):
        raise AccuracyError(
            f"Activation {activation.label} at variance {variance:.4g}: its mean square is not finite (error ∞). "
            "Scale its input down, or use a function that is finite everywhere."
        )
    error = abs(finer - total) / finer if finer > 0 else 0.0
    if not error <= 0.1 * TOLERANCE:
        raise AccuracyError(
            f"Activation {activation.label} at variance {variance:.4g}: quadrature of its square leaves a relative "
            f"error of {error:.1e}, above {0.1 * TOLERANCE:.0e}. Scale its input down."
        )
