"""Fitting a function in spans of terms with closed-form moments: by its values, never by its name or spelling."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ._terms import SIGN, Span, Term
from ._watch import Features

_TOLERANCE = 2e-12
_FAR = np.geomspace(61.0, 1e9, 60)
"""Where clip(u, −100, 100) stops being u: checked as far as the arithmetic of each basis reaches."""


def fit_span(function: Callable[[np.ndarray], np.ndarray], kinks: tuple[float, ...], features: Features) -> Span | None:
    """The first span that reproduces the function on two grids, to |u| = 60 and to 1e9, or None.

    `function` maps float64 arrays to float64 arrays. On a narrower grid ReLU6 would pass for ReLU.
    """
    first, second = _grid(1), np.concatenate([_grid(2), _FAR, -_FAR])
    values, check = function(first), function(second)
    if not np.any(np.isfinite(values)) or not np.any(np.isfinite(check)):
        return None
    if not np.any(values[np.isfinite(values)]) and not np.any(check[np.isfinite(check)]):
        return Span(())
    for basis in _bases(kinks, features):
        span = _fit(basis, first, values)
        if span is not None and _agrees(span, second, check):
            return span
    return None


def _grid(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    wide = np.linspace(-60.0, 60.0, 401) + generator.uniform(0.01, 0.2)
    middle = generator.uniform(-8.0, 8.0, 400)
    near = np.exp(generator.uniform(np.log(1e-6), 0.0, 60))
    return np.concatenate([wide, middle, near, -near])


def _powers(degree: int, **kind) -> list[Term]:
    return [Term(1.0, power, **kind) for power in range(degree + 1)]


def _bases(kinks: tuple[float, ...], features: Features) -> Iterator[list[Term]]:
    yield _powers(1) + _powers(1, step=SIGN)
    yield _powers(3)
    yield _powers(3) + _powers(3, step=SIGN)
    yield _powers(8)
    if kinks and len(kinks) <= 8:
        # Anchored at 0, so that small inputs see the piece around 0 without cancellation.
        yield _powers(3) + [term for t in kinks for term in _powers(3, threshold=t, mirrored=t < 0)]
    slopes = {*features.erf, *(float(np.sqrt(g)) for g in features.gaussian)}
    slopes = _merged(slopes, tuple(features.erf))
    for chosen in [*((slope,) for slope in slopes), slopes]:
        if features.erf and 0 < len(chosen) <= 3:
            yield _powers(2) + [t for slope in chosen for t in _error_function_family(slope)]
    for gamma in features.gaussian:
        yield _powers(1) + _powers(4, gaussian=gamma)
    if 0 < len(features.trig) <= 4:
        yield _powers(2) + _trigonometric(features.trig, 0)
        yield _powers(2) + _trigonometric(_sums(features.trig), 0)
        yield _powers(2) + _trigonometric(_sums(features.trig), 1)
    if 0 < len(features.exp) <= 4:
        rates = tuple(dict.fromkeys([*features.exp, *(-r for r in features.exp), *(2 * r for r in features.exp)]))
        yield _powers(1) + [t for r in features.exp for t in _powers(1, rate=r)]
        yield _powers(2) + [t for r in rates for t in _powers(2, rate=r)]


def _merged(slopes: set[float], preferred: tuple[float, ...]) -> tuple[float, ...]:
    kept = list(dict.fromkeys(preferred))
    for slope in sorted(slopes):
        if all(abs(slope - other) > 1e-9 * other for other in kept):
            kept.append(slope)
    return tuple(kept)


def _error_function_family(slope: float) -> list[Term]:
    return _powers(2, step=0.5 / slope**2) + _powers(3, gaussian=slope**2)


def _sums(frequencies: tuple[float, ...]) -> tuple[float, ...]:
    pairs = [abs(w + s * x) for w, x in itertools.combinations_with_replacement(frequencies, 2) for s in (1, -1)]
    return tuple(dict.fromkeys(w for w in [*frequencies, *pairs] if w > 1e-9))


def _trigonometric(frequencies: tuple[float, ...], degree: int) -> list[Term]:
    return [
        term
        for frequency in frequencies
        for sine in (False, True)
        for term in _powers(degree, frequency=frequency, sine=sine)
    ]


def _fit(basis: list[Term], u: np.ndarray, values: np.ndarray) -> Span | None:
    with np.errstate(all="ignore"):
        columns = np.stack([term(u) for term in basis], axis=1)
    # Rows are scaled to their largest term, so that near 0 the low powers count as much as the high ones far out.
    rows = np.max(np.abs(columns), axis=1)
    usable = np.isfinite(values) & np.isfinite(rows) & (rows > 0) & (rows < 1e150)
    if np.count_nonzero(usable) < 4 * len(basis):
        return None
    columns, values = columns[usable] / rows[usable, None], values[usable] / rows[usable]
    kept = np.arange(len(basis))
    coefficients = np.zeros(0)
    for _ in range(3):
        scale = np.max(np.abs(columns[:, kept]), axis=0)
        coefficients = np.linalg.lstsq(columns[:, kept] / scale, values, rcond=1e-15)[0] / scale
        size = np.max(np.abs(columns[:, kept] * coefficients), axis=0)
        significant = size > 1e-11 * np.max(size)
        if np.all(significant):
            break
        kept, coefficients = kept[significant], coefficients[significant]
    return Span(tuple(basis[i].scaled(_rounded(float(x))) for i, x in zip(kept, coefficients, strict=True)))


def _rounded(x: float) -> float:
    for digits in range(7):
        nearest = round(x, digits)
        if nearest and abs(nearest - x) < 1e-12 * max(1.0, abs(x)):
            return nearest
    return x


def _agrees(span: Span, u: np.ndarray, values: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        parts = np.stack([term(u) for term in span.terms] or [np.zeros_like(u)], axis=1)
    usable = np.isfinite(values) & np.all(np.isfinite(parts), axis=1)
    if any(term.frequency for term in span.terms):
        usable &= np.abs(u) < 1e3
    if np.count_nonzero(usable) < 0.3 * len(u):
        return False
    parts, values = parts[usable], values[usable]
    scale = np.sum(np.abs(parts), axis=1)
    return bool(np.all(np.abs(np.sum(parts, axis=1) - values) <= _TOLERANCE * scale + 1e-300))
