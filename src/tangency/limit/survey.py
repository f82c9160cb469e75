"""What the recursion of a graph will do, found once by tracing it on shapes: before any data is seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import jax

from ..graph.graph import Graph
from ..trace.equations import numbers_made
from ..trace.tracers import outside_of_traces
from .expectation import DualUse
from .recursion import Recursion


@dataclass(frozen=True)
class Survey:
    """What the recursion takes for one example or pair.

    The distinct expectations of two Gaussians, the entries of the largest array and of all arrays, and whether any
    expectation is by quasi-Monte-Carlo.
    """

    uses: tuple[DualUse, ...]
    largest: int
    numbers: float
    sampled: bool


def survey(graph: Graph, *, tangent: bool, diagonal: bool = False) -> Survey:
    """Trace the recursion of a pair of examples, or of one example with itself; once for each graph.

    Raises:
        UnsupportedModelError: something in it has no rule.
    """
    return _traced(graph, tangent, diagonal)


@lru_cache(maxsize=256)
def _traced(graph: Graph, tangent: bool, diagonal: bool) -> Survey:
    uses: list[DualUse] = []
    sampled: list[bool] = []

    def run(*examples: jax.Array) -> Any:
        recursion = Recursion(graph, examples)
        kernels = recursion.kernels(tangent=tangent)
        uses.extend(recursion.uses)
        sampled.extend(recursion.sampled)
        return kernels

    with outside_of_traces(), jax.enable_x64(True):
        program = jax.make_jaxpr(run)(*[graph.example()] * (1 if diagonal else 2))
    sizes = (prod(v.aval.shape) for e in program.eqns for v in e.outvars)  # pyright: ignore[reportAttributeAccessIssue]
    return Survey(tuple(dict.fromkeys(uses)), max(sizes, default=1), numbers_made(program.jaxpr), bool(sampled))
