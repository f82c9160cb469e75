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

from ..graph.elementwise import Elementwise
from ..graph.graph import Graph
from ..graph.signal import Leaf
from .duals import Activation
from .duals import required_order as order_for
from .recursion import DualUse, Recursion, analysed

_CHUNK = 4096


@dataclass(frozen=True)
class _Plan:
    """The expectations without closed form, and a function x -> (variances of their leaves, their parameters)."""

    uses: tuple[DualUse, ...]
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
    measured = [np.concatenate([np.asarray(p[k], np.float64) for p in parts]) for k in range(len(parts[0]))]
    leaves, functions = _leaves(plan.uses), _functions(plan.uses)
    variances = dict(zip(leaves, measured, strict=False))
    parameters = dict(zip(functions, measured[len(leaves) :], strict=True))
    orders = []
    for use in plan.uses:
        values = np.concatenate([variances[use.u], variances[use.v]])
        if use.f.parameters or use.g.parameters:
            for row in _extremes(variances[use.u], parameters[use.f], parameters[use.g]):
                f_params, g_params = tuple(parameters[use.f][row]), tuple(parameters[use.g][row])
                there = np.array([variances[use.u][row], variances[use.v][row]])
                orders.append(order_for(analysed(use.f), analysed(use.g), there, f_params, g_params))
        else:
            orders.append(_order_between(analysed(use.f), analysed(use.g), float(values.min()), float(values.max())))
    return max(orders) or None


def _starts(x: np.ndarray) -> range:
    return range(0, len(x), _CHUNK)


@lru_cache(maxsize=4096)
def _order_between(f: Activation, g: Activation, smallest: float, largest: float) -> int:
    return order_for(f, g, np.array([smallest, largest]))


def _extremes(variances: np.ndarray, *parameters: np.ndarray) -> list[int]:
    """The examples with the largest and smallest variance and parameters, in size and in units of the variance."""
    columns = [variances, *(np.abs(p[:, k]) for p in parameters for k in range(p.shape[1]))]
    columns += [column * np.sqrt(variances) for column in columns[1:]]
    return sorted({int(row) for column in columns for row in (np.argmax(column), np.argmin(column))})


def _plan(graph: Graph, tangent: bool) -> _Plan:
    plans = _plans.setdefault(graph, {})
    if tangent not in plans:
        uses = _uses(graph, tangent)
        plans[tangent] = _Plan(uses, jax.jit(lambda x: jax.vmap(lambda a: _measure(graph, uses, a))(x)))
    return plans[tangent]


def _uses(graph: Graph, tangent: bool) -> tuple[DualUse, ...]:
    """The distinct expectations of a pair that have no closed form."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        example = jax.ShapeDtypeStruct(graph.input_shape, jnp.float64)
        collected: list[DualUse] = []

        def run(a: jax.Array, b: jax.Array) -> Any:
            recursion = Recursion(graph, (a, b))
            kernels = recursion.kernels(tangent=tangent)
            collected.extend(recursion.uses)
            return kernels

        jax.eval_shape(run, example, example)
        unique = {(use.f, use.g, use.u, use.v): use for use in collected}
        one = np.ones(1)
        return tuple(u for u in unique.values() if not _is_closed(u, one))


def _is_closed(use: DualUse, variances: np.ndarray) -> bool:
    f, g = analysed(use.f), analysed(use.g)
    return f.span is not None and g.span is not None and order_for(f, g, variances) == 0


def _leaves(uses: tuple[DualUse, ...]) -> list[Leaf]:
    return list(dict.fromkeys(leaf for use in uses for leaf in (use.u, use.v)))


def _functions(uses: tuple[DualUse, ...]) -> list[Elementwise]:
    return list(dict.fromkeys(function for use in uses for function in (use.f, use.g)))


def _measure(graph: Graph, uses: tuple[DualUse, ...], example: jax.Array) -> list[jax.Array]:
    recursion = Recursion(graph, (example,))
    recursion.sweep(tangent=False)
    variances = [recursion.variance(leaf, 0) for leaf in _leaves(uses)]
    parameters = [
        jnp.stack([recursion.known(p, 0) for p in function.parameters]) if function.parameters else jnp.zeros(0)
        for function in _functions(uses)
    ]
    return [*variances, *parameters]
