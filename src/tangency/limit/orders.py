"""Choosing the order of the Hermite series from the data: the variances that each activation will really see."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.graph import Graph
from ..trace.tracers import outside_of_traces
from .duals import Activation
from .duals import required_order as order_for
from .expectation import DualUse, analysed
from .fields import broadcastable
from .placed import Placed
from .recursion import Recursion, deep_recursion
from .survey import survey

_CHUNK = 4096


@dataclass(frozen=True)
class _Plan:
    """The expectations without closed form, and a function x -> the variances and parameters of their leaves.

    `measure(x)[i]`, of shape [n, 1 + parameters, positions], belongs to `places[i]`.
    """

    uses: tuple[DualUse, ...]
    places: tuple[Placed, ...]
    measure: Callable[[jax.Array], Any]


_plans: weakref.WeakKeyDictionary[Graph, dict[bool, _Plan]] = weakref.WeakKeyDictionary()


def required_order(graph: Graph, x1: np.ndarray, x2: np.ndarray | None, *, tangent: bool) -> int | None:
    """The order that keeps every expectation in the recursion within 1e-9; None when all have closed forms.

    Raises:
        AccuracyError: some activation cannot reach that at the variances of this data.
    """
    plan = _plan(graph, tangent)
    if not plan.uses:
        return None
    parts = [plan.measure(jnp.asarray(x[i : i + _CHUNK])) for x in (x1, x2) if x is not None for i in _starts(x)]
    measured = {
        place: np.concatenate([_flat(part[k]) for part in parts], axis=1) for k, place in enumerate(plan.places)
    }
    orders = []
    for use in plan.uses:
        f, g = measured[use.f], measured[use.g]
        if len(f) + len(g) > 2:
            rows = _extremes(f, g) if f.shape[1] == g.shape[1] else range(0)
            pairs = [(f[:, row], g[:, row]) for row in rows] or [
                (f[:, i], g[:, j]) for i in _extremes(f) for j in _extremes(g)
            ]
            for left, right in pairs:
                there = np.array([left[0], right[0]])
                functions = analysed(use.f.function), analysed(use.g.function)
                orders.append(order_for(*functions, there, tuple(left[1:]), tuple(right[1:])))
        else:
            values = np.concatenate([f[0], g[0]])
            functions = analysed(use.f.function), analysed(use.g.function)
            orders.append(_order_between(*functions, float(values.min()), float(values.max())))
    return max(orders) or None


def _flat(measured: Any) -> np.ndarray:
    """[n, quantities, positions] as [quantities, n · positions]."""
    array = np.asarray(measured, np.float64)
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)


def _starts(x: np.ndarray) -> range:
    return range(0, len(x), _CHUNK)


@lru_cache(maxsize=4096)
def _order_between(f: Activation, g: Activation, smallest: float, largest: float) -> int:
    return order_for(f, g, np.array([smallest, largest]))


def _extremes(*measured: np.ndarray) -> list[int]:
    """Where a variance or a parameter is largest or smallest, in size and in units of the variance."""
    columns = []
    for rows in measured:
        columns += [rows[0], *np.abs(rows[1:]), *(np.abs(row) * np.sqrt(rows[0]) for row in rows[1:])]
    return sorted({int(row) for column in columns for row in (np.argmax(column), np.argmin(column))})


def _plan(graph: Graph, tangent: bool) -> _Plan:
    plans = _plans.setdefault(graph, {})
    if tangent not in plans:
        uses = _uses(graph, tangent)
        places = tuple(dict.fromkeys(place for use in uses for place in (use.f, use.g)))
        plans[tangent] = _Plan(uses, places, jax.jit(lambda x: jax.vmap(lambda a: _measure(graph, places, a))(x)))
    return plans[tangent]


def _uses(graph: Graph, tangent: bool) -> tuple[DualUse, ...]:
    """The distinct expectations of a pair that have no closed form."""
    one = np.ones(1)
    with outside_of_traces(), jax.enable_x64(True):
        return tuple(use for use in survey(graph, tangent=tangent).uses if not _is_closed(use, one))


def _is_closed(use: DualUse, variances: np.ndarray) -> bool:
    f, g = analysed(use.f.function), analysed(use.g.function)
    return f.span is not None and g.span is not None and order_for(f, g, variances) == 0


def _measure(graph: Graph, places: tuple[Placed, ...], example: jax.Array) -> list[jax.Array]:
    recursion = Recursion(graph, (example,))
    found = []
    with deep_recursion():
        for place in places:
            fields = [recursion.variance(*place.variable), *recursion.expectations.parameters(place)]
            labels = sorted({label for part in fields for label in part.labels})
            arrays = jnp.broadcast_arrays(*(broadcastable(part, labels) for part in fields))
            found.append(jnp.stack([array.reshape(-1) for array in arrays]))
    return found
