"""The fused path of a limit kernel: what it needs of the graph, of the duals, and of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..fused import FusedKernel, Inputs, NotFusedError, PiecewiseLinear, lower
from ..graph.elementwise import Elementwise
from ..graph.graph import Graph
from ..graph.known import Known
from .duals import piecewise_linear
from .expectation import analysed
from .recursion import Recursion, deep_recursion

PAYS = 1e8
"""Gaussian expectations from which on a fused program repays the seconds that compiling it takes."""

_CHUNK = 1024


@dataclass(frozen=True)
class Fusion:
    """A graph's fused kernel, or why it has none.

    `arrays` are Known arrays with the axes of positions that are summed over with the width, `quantities` numbers of
    one example at each position.
    """

    graph: Graph
    kernel: FusedKernel | None = None
    reason: str = ""
    arrays: tuple[tuple[Known, tuple[int, ...]], ...] = ()
    quantities: tuple[Known, ...] = ()

    def inputs(self, x: np.ndarray) -> Inputs:
        """What the fused kernel reads of examples, in the precision that JAX gives them."""
        chunk = min(_CHUNK, len(x))
        parts: list[list[np.ndarray]] = []
        for start in range(0, len(x), chunk):
            part = x[start : start + chunk]
            count = len(part)
            if count < chunk:
                part = np.concatenate([part, np.repeat(part[-1:], chunk - count, axis=0)])
            parts.append([np.asarray(a)[:count] for a in self._evaluate(jnp.asarray(part))])
        whole = [np.ascontiguousarray(np.concatenate(columns)) for columns in zip(*parts, strict=True)]
        return Inputs(tuple(whole[: len(self.arrays)]), tuple(whole[len(self.arrays) :]))

    @cached_property
    def _evaluate(self) -> Callable[[jax.Array], list[Any]]:
        def one(example: jax.Array) -> list[jax.Array]:
            recursion = Recursion(self.graph, (example,))
            with deep_recursion():
                arrays = [_positions_by_width(recursion.known(known, 0), axes) for known, axes in self.arrays]
                return arrays + [recursion.known(known, 0).reshape(-1) for known in self.quantities]

        return jax.jit(jax.vmap(one))


def fuse(graph: Graph, threads: int | None) -> Fusion:
    try:
        program, arrays, quantities = lower(graph, _function)
        return Fusion(graph, FusedKernel(program, threads), "", tuple(arrays), tuple(quantities))
    except NotFusedError as refusal:
        return Fusion(graph, reason=str(refusal))


def _function(function: Elementwise) -> PiecewiseLinear | None:
    activation = analysed(function)
    found = None if activation.span is None else piecewise_linear(activation.span)
    if found is None or activation.zero_value is None:
        return None
    return PiecewiseLinear(*found, at_zero=activation.zero_value)


def _positions_by_width(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """[positions, width] of an array over (*positions, width), some axes of which are width as well."""
    kept = [axis for axis in range(array.ndim - 1) if axis not in axes]
    array = jnp.transpose(array, [*kept, *axes, array.ndim - 1])
    positions = int(np.prod(array.shape[: len(kept)], dtype=int))
    return array.reshape(positions, -1)
