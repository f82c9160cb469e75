"""Slow, obvious Gaussian expectations: nested composite quadrature, graded towards every point where f or g breaks."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_REACH = 13.0
_RATIO = 4.0

Function = Callable[[np.ndarray], np.ndarray]


def numpy_of(function: Callable[[jax.Array], jax.Array]) -> Function:
    """An elementwise JAX function in float64, for arrays of any shape; compiled once."""
    size, call = 2**16, jax.jit(function)

    def value(u: np.ndarray) -> np.ndarray:
        rows = np.pad(np.ravel(u), (0, -np.size(u) % size)).reshape(-1, size)
        with jax.enable_x64(True):
            return np.concatenate([call(row) for row in rows])[: np.size(u)].reshape(np.shape(u))

    return value


def slope_of(function: Callable[[jax.Array], jax.Array]) -> Function:
    """Its derivative, as JAX differentiates it."""
    return numpy_of(lambda u: jax.jvp(function, (u,), (jnp.ones_like(u),))[1])


def _panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of composite Gauss–Legendre quadrature along the last axis of `edges`."""
    edges = np.sort(np.clip(edges, -_REACH, _REACH), axis=-1)
    left, width = edges[..., :-1, None], np.diff(edges, axis=-1)[..., None]
    nodes = left + width * 0.5 * (_NODES + 1.0)
    weights = width * 0.5 * _WEIGHTS
    flat = (*edges.shape[:-1], -1)
    return nodes.reshape(flat), weights.reshape(flat)


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)


def _graded(point: float, finest: float = 1e-10) -> np.ndarray:
    """Panel edges that shrink geometrically towards a point, down to a scale below which all is smooth."""
    steps = 8.0 * _RATIO ** -np.arange(np.ceil(np.log(8.0 / finest) / np.log(_RATIO)) + 1.0)
    return np.concatenate([[point], point + steps, point - steps])


def mean(f: Function, a: float, breaks: tuple[float, ...] = ()) -> float:
    """E[f(u)], u ~ N(0, a)."""
    edges = [np.linspace(-_REACH, _REACH, 40), *(_graded(t / np.sqrt(a)) for t in {0.0, *breaks})]
    z, w = _panels(np.concatenate(edges))
    return float(np.sum(w * _density(z) * f(np.sqrt(a) * z)))


def dual(
    f: Function,
    g: Function,
    a: float,
    b: float,
    correlation: float,
    f_breaks: tuple[float, ...] = (),
    g_breaks: tuple[float, ...] = (),
) -> float:
    """E[f(u) g(v)]; its error is near 1e-15 for functions that are analytic between their breaks."""
    q = np.sqrt((1.0 - correlation) * (1.0 + correlation))
    if q == 0.0:
        sign = np.sign(correlation)
        breaks = (*f_breaks, *(sign * t * np.sqrt(a / b) for t in g_breaks))
        return mean(lambda u: f(u) * g(sign * u * np.sqrt(b / a)), a, breaks)
    points = [t / np.sqrt(a) for t in {0.0, *f_breaks}]
    if correlation:
        points += [
            t / (np.sqrt(b) * correlation) for t in {0.0, *g_breaks} if abs(t) < 20 * np.sqrt(b) * abs(correlation)
        ]
    z, w = _panels(np.concatenate([np.linspace(-_REACH, _REACH, 25), *(_graded(p, 0.25 * q) for p in set(points))]))
    keep = w * _density(z) > 1e-22
    z, w = z[keep], w[keep]
    total = 0.0
    steps = np.array([0.0, *(s * x for x in (1.0, 3.0, 9.0, 27.0) for s in (1, -1))]) / (np.sqrt(b) * q)
    for block in np.array_split(np.arange(len(z)), max(1, len(z) // 200)):
        centre = np.sqrt(b) * correlation * z[block]
        splits = [(t - centre[:, None]) / (np.sqrt(b) * q) + steps for t in {0.0, *g_breaks}]
        uniform = np.broadcast_to(np.linspace(-_REACH, _REACH, 14), (len(block), 14))
        y, v = _panels(np.concatenate([uniform, *splits], axis=1))
        inner = np.sum(v * _density(y) * g(centre[:, None] + np.sqrt(b) * q * y), axis=1)
        total += float(np.sum(w[block] * _density(z[block]) * f(np.sqrt(a) * z[block]) * inner))
    return total


@lru_cache
def hidden_layer(
    function: Callable[[jax.Array], jax.Array],
    breaks: tuple[float, ...],
    variances: tuple[float, ...],
    angles: tuple[float, ...],
) -> np.ndarray:
    """K and Θ of one hidden layer for every two variances and every angle, [2, variances, angles · variances]."""
    count = len(variances)
    found = np.empty((2, count, len(angles), count))
    value, slope = numpy_of(function), slope_of(function)
    for (i, a), (j, angle), (k, b) in product(*map(enumerate, (variances, angles, variances))):
        if k < i:
            found[:, i, j, k] = found[:, k, j, i]
            continue
        rho = np.cos(angle)
        nngp = dual(value, value, a, b, rho, breaks, breaks)
        slopes = dual(slope, slope, a, b, rho, breaks, breaks)
        found[:, i, j, k] = nngp, nngp + rho * np.sqrt(a * b) * slopes
    return found.reshape(2, count, -1)
