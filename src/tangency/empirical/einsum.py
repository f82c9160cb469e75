"""Products of two arrays, laid out so that each is one matrix product and nothing is copied that need not be."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax

HIGHEST = lax.Precision.HIGHEST


def einsum(letters: str, left: Any, right: Any) -> Any:
    """`jnp.einsum` of two arrays without repeated letters within one of them, at full precision.

    Axes of one role (in both and kept, contracted, of one array only) become one axis before the product: XLA for the
    CPU would copy an operand with several contracted axes.
    """
    inputs, target = letters.split("->")
    first, second = inputs.split(",")
    sizes = dict(zip(first, left.shape, strict=True)) | dict(zip(second, right.shape, strict=True))
    batch = [a for a in target if a in first and a in second and sizes[a] > 1]
    summed = [a for a in second if a in first and a not in target]
    free1 = [a for a in target if a in first and a not in batch]
    free2 = [a for a in target if a in second and a not in batch and a not in free1]
    x, x_last = _grouped(left, first, batch, free1, summed)
    y, y_last = _grouped(right, second, batch, free2, summed)
    lead = 1 if batch else 0
    contracted = (lead + 1 if x_last else lead,), (lead + 1 if y_last else lead,)
    batched = tuple(range(lead))
    product = lax.dot_general(x, y, (contracted, (batched, batched)), precision=HIGHEST)
    found = [*batch, *free1, *free2]
    product = product.reshape([sizes[a] for a in found])
    return jnp.transpose(product, [found.index(a) for a in target])


def _grouped(array: Any, letters: str, batch: list[str], free: list[str], summed: list[str]) -> tuple[Any, bool]:
    """The array as [batch, free, summed], or [batch, summed, free] where that is how it lies; and which."""
    lies = [a for a, n in zip(letters, array.shape, strict=True) if n > 1]
    missing = [a for a in letters if a not in batch and a not in free and a not in summed]
    if missing:
        array = array.sum([letters.index(a) for a in missing])
        letters = "".join(a for a in letters if a not in missing)
        lies = [a for a in lies if a not in missing]
    letters = "".join(a for a, n in zip(letters, array.shape, strict=True) if n != 1)
    array = array.reshape([n for n in array.shape if n != 1])
    sizes = dict.fromkeys([*batch, *free, *summed], 1) | dict(zip(letters, array.shape, strict=True))
    last = [a for a in [*batch, *summed, *free] if sizes[a] > 1] != lies
    order = [*batch, *free, *summed] if last else [*batch, *summed, *free]
    groups = [free, summed] if last else [summed, free]
    shape = [prod(sizes[a] for a in group) for group in ([batch] if batch else []) + groups]
    return jnp.transpose(array, [letters.index(a) for a in order if a in letters]).reshape(shape), last
