"""What is reported about one output, from its abstract value."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .concrete import is_key, rounding_unit
from .laws import UNIFORM
from .quadrature import NoFiniteMomentError
from .rounding import meant_number, meant_variance
from .values import Known, Origin, Random, Summary, Unresolved, Value, compact

_COINCIDENCE = 0.5
# The moments of a nonlinear function are rarely simple numbers, so it takes more to believe that one is.
_COINCIDENCE_OF_OTHERS = 0.005
_LARGEST_RANK = 5


@dataclass(frozen=True)
class InitialiserStatistics:
    """Mean and variance of one parameter leaf over the random key.

    The entries are independent and identically distributed up to the mean ("orthogonal": identically distributed and
    uncorrelated). `mean` is a number, or an array of the leaf's shape where the entries' means differ. `distribution`
    is "normal", "uniform", "truncated normal", "constant", "orthogonal" or "other". `draw` identifies the random
    numbers, None for a constant: two leaves with equal draws hold, at least in part, the same random numbers, because
    a key was used twice or because they overlap as slices of one array.
    """

    mean: float | np.ndarray
    variance: float
    distribution: str
    draw: tuple | None


@dataclass(frozen=True)
class UnresolvedInitialiser:
    """A leaf whose statistics could not be derived: why, and the user's source line ("model.py:12") if known."""

    reason: str
    source: str | None


def leaf_statistics(
    value: Value, shape: tuple[int, ...], dtype, source: str | None
) -> InitialiserStatistics | UnresolvedInitialiser:
    """What is known about an output of the given shape and dtype; its `draw` is left open."""
    if isinstance(value, Unresolved):
        return UnresolvedInitialiser(value.reason, value.source or source)
    if is_key(dtype):
        return UnresolvedInitialiser("is a PRNG key, not a parameter", source)
    if isinstance(value, Known):
        return _constant_leaf(value, dtype, source)
    if not isinstance(value, (Random, Summary)):
        return UnresolvedInitialiser("is an intermediate of a random draw (random bits or a matrix factor)", source)
    try:
        return _random_leaf(value, max(value.epsilon, rounding_unit(dtype)), _fans(shape))
    except NoFiniteMomentError:
        return UnresolvedInitialiser("has no finite variance, or one that could not be integrated", source)


def _random_leaf(value: Random | Summary, epsilon: float, fans: Sequence[float]) -> InitialiserStatistics:
    if isinstance(value, Random):
        (mean, variance), distribution = value.law.moments(), value.law.distribution
    else:
        mean, variance, distribution = value.mean, value.variance, value.distribution
    if not math.isfinite(variance) or not np.all(np.isfinite(mean)):
        raise NoFiniteMomentError
    coincidence = _COINCIDENCE_OF_OTHERS if distribution == "other" else _COINCIDENCE
    # A uniform law is written with its width or with its half-width.
    bases, offset = ((1 / 12, 1 / 3) if distribution == "uniform" else ()), 0.0
    if isinstance(value, Random) and value.law.affine is not None and value.law.base != UNIFORM:
        base_mean, base_variance = value.law.base.moments()
        bases, offset = (base_variance,), value.law.affine[0] * base_mean
    meant = meant_variance(variance, epsilon, base_variances=bases, fans=fans, coincidence=coincidence)
    if not isinstance(mean, np.ndarray):
        # Only the shift was rounded by itself; the rest of the mean is a multiple of the standard deviation.
        stretch = math.sqrt(meant / variance) if variance else 1.0
        mean = _meant_mean(mean - offset, variance, epsilon, coincidence) + offset * stretch
    if meant == 0:
        distribution = "constant"
    return InitialiserStatistics(mean, meant, distribution, None)


def _meant_mean(mean: float, variance: float, epsilon: float, coincidence: float) -> float:
    if abs(mean) <= 4 * epsilon * math.sqrt(variance):
        return 0.0
    return meant_number(mean, epsilon, coincidence=coincidence)


def _fans(shape: tuple[int, ...]) -> list[float]:
    """Numbers that a fan could be: products of some of the axes, and the means of two such products."""
    if len(shape) > _LARGEST_RANK:
        return []
    products = {math.prod(axes) for r in range(1, len(shape) + 1) for axes in itertools.combinations(shape, r)} - {0}
    return sorted(products | {(a + b) / 2 for a, b in itertools.combinations(products, 2)})


def _constant_leaf(value: Known, dtype, source: str | None) -> InitialiserStatistics | UnresolvedInitialiser:
    if value.from_key:
        return UnresolvedInitialiser("is computed from the key itself, not from a random draw", source)
    if value.array.dtype.kind not in "biuf":
        return UnresolvedInitialiser(f"is a constant of type {np.dtype(dtype).name}", source)
    if not np.all(np.isfinite(compact(value.array))):
        return UnresolvedInitialiser("is a constant with NaN or infinite entries", source)
    entry = 0.0 if value.array.size == 0 else value.common_entry
    if entry is None:
        return InitialiserStatistics(value.array.astype(np.float64), 0.0, "constant", None)
    epsilon = max(value.epsilon, rounding_unit(dtype))
    return InitialiserStatistics(meant_number(entry, epsilon), 0.0, "constant", None)


def shared_draws(origins: Sequence[Sequence[Origin]]) -> list[tuple | None]:
    """One identity for each set of leaves that are connected by shared random numbers."""
    leader = list(range(len(origins)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    users: dict[bytes, list[int]] = {}
    for i, leaf in enumerate(origins):
        for key in {key for origin in leaf for key in origin.draw.keys}:
            for j in users.setdefault(key, []):
                if find(i) != find(j) and any(a.overlaps(b) for a in leaf for b in origins[j]):
                    leader[find(i)] = find(j)
            users[key].append(i)
    representatives = [origins[find(i)][0] if origins[i] else None for i in range(len(origins))]
    return [None if r is None else (r.draw.keys, r.draw.shape, r.part) for r in representatives]
