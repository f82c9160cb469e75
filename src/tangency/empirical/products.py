"""NTK-vector products: J diag(η) Jᵀ v by one backward and one forward pass, never forming a Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .gradients import output_vector
from .pairs import Pairing
from .program import Program


def transposed(program: Program, rates: Sequence[Any], parameters: Any, rest: Any, x: Any, vectors: Any) -> Any:
    """η Σ_m J(x_m)ᵀ v_m for vectors `[m, o]`: a direction in the parameters."""
    _, back = jax.vjp(lambda values: _outputs(program, values, rest, x), list(parameters))
    (direction,) = back(vectors)
    return [jnp.asarray(rate, d.dtype) * d for rate, d in zip(rates, direction, strict=True)]


def forward(program: Program, parameters: Any, rest: Any, x: Any, direction: Any) -> Any:
    """J(x_n) d, `[n, o]`."""
    return jax.jvp(lambda values: _outputs(program, values, rest, x), (list(parameters),), (direction,))[1]


def products(
    program: Program,
    rates: Sequence[Any],
    parameters: Any,
    rest: Any,
    x1: Any,
    x2: Any,
    rows1: Any,
    rows2: Any,
    pairing: Pairing,
) -> Any:
    """The NTK of two blocks, a column for each example of x2 and functional."""

    def column(index: Any) -> Any:
        m, p = index
        own = jax.lax.dynamic_index_in_dim(x2, m, keepdims=True)
        row = jax.lax.dynamic_index_in_dim(jnp.asarray(rows2), p, keepdims=True)
        direction = transposed(program, rates, parameters, rest, own, _as(row, program, parameters, rest, x1))
        found = forward(program, parameters, rest, x1, direction)
        if pairing == "all":
            return found @ jnp.asarray(rows1, found.dtype).T
        return found @ jax.lax.dynamic_index_in_dim(jnp.asarray(rows1), p, keepdims=False).astype(found.dtype)

    m, k = len(x2), len(rows2)
    indices = (jnp.repeat(jnp.arange(m), k), jnp.tile(jnp.arange(k), m))
    columns = jax.lax.map(column, indices)
    if pairing == "all":
        return columns.reshape(m, k, len(x1), -1).transpose(2, 0, 3, 1)
    each = columns.reshape(m, k, len(x1)).transpose(2, 0, 1)
    return each if pairing == "each" else each.sum(-1)


def _as(row: Any, program: Program, parameters: Any, rest: Any, x: Any) -> Any:
    found = jax.eval_shape(lambda values: _outputs(program, values, rest, x[:1]), list(parameters))
    return row.astype(found.dtype)


def _outputs(program: Program, parameters: Any, rest: Any, x: Any) -> Any:
    """The output vectors of examples, `[n, o]`."""
    return jax.vmap(lambda example: output_vector(program.plain([*parameters, *rest, example])))(x)
