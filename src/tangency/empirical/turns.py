"""Outputs one after the other on a CPU, all at once elsewhere, where a loop would take longer than what is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Turns: TypeAlias = tuple[Any, Callable[[Any], Any]]
"""The numbers of the outputs, and what gives the arrays of one output, [1, …]."""


def over_outputs(sum_of: Callable[[Any], Any], arrays: Any) -> Any:
    """`sum_of` arrays, or lists of arrays, [o, …], which is a sum over outputs o: on a CPU of one after the other.

    At once, XLA for the CPU would copy them, or fail: jaxlib 0.10.1 crashes on sums of products of an array with
    itself.
    """
    first = jax.tree.map(lambda array: array[:1], arrays)
    if jax.tree.leaves(first)[0].shape == jax.tree.leaves(arrays)[0].shape:
        return sum_of(arrays)

    def in_turn(arrays: Any) -> Any:
        count, of_output = one_by_one(arrays)
        return summed(lambda k: sum_of(of_output(k)), count)

    return lax.platform_dependent(arrays, cpu=in_turn, default=sum_of)


def summed(of: Callable[[Any], Any], numbers: Any) -> Any:
    """Σ over numbers k of of(k), an array or arrays, one after the other."""
    shapes = jax.eval_shape(of, numbers[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return lax.scan(lambda total, k: (jax.tree.map(jnp.add, total, of(k)), None), zeros, numbers)[0]


def one_by_one(arrays: Any) -> Turns:
    """The numbers of the outputs, and what gives the arrays of one output, [1, …], from arrays [o, …].

    They are cut from matrices, the shape in which products have used them before: XLA for the CPU would compute them
    for each shape anew, and copy what has another shape inside a loop than outside.
    """
    rows = jax.tree.map(lambda array: array.reshape(-1, array.shape[-1]), arrays)

    def of_output(k: Any) -> Any:
        def cut(flat: Any, array: Any) -> Any:
            length = len(flat) // len(array)
            return lax.dynamic_slice_in_dim(flat, k * length, length).reshape(1, *array.shape[1:])

        return jax.tree.map(cut, rows, arrays)

    return jnp.arange(len(jax.tree.leaves(arrays)[0])), of_output
